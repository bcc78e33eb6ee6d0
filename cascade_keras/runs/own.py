"""A network of the user's own in a run: does it fit, can it be resumed, is it the same one."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence

import keras
import tensorflow as tf

from cascade_keras import border, own_code, replicas
from cascade_keras.errors import InputError
from cascade_keras.keras_private import frozen_layers, random_states
from cascade_keras.runs.settings import TrainingSettings

# TensorFlow's operations that draw by a state of their own, which nothing keeps.
_DRAWING = ("Random", "Stateful", "Rng", "TruncatedNormal", "Multinomial", "ParameterizedTruncated")


def check(
    network: keras.Model,
    settings: TrainingSettings,
    shape: Sequence[int],
    num_classes: int,
    setting: str = "network",
) -> None:
    """Refuse a network that does not fit the images or the classes of a dataset.

    Args:
        settings: what they say of its pixels and outputs.
        shape: (H, W, C) of the images.
        num_classes: number of classes; for two, one output does.
        setting: that brought the network.

    Raises:
        InputError: saying what it takes or gives.
    """
    taken = getattr(network, "input_shape", (None, *shape))  # a subclass need not say it
    if not (isinstance(taken, tuple) and len(taken) == 4 and border.takes(taken[1:], shape)):
        raise InputError(f"takes {taken}, the dataset's images are {tuple(shape)}", setting)
    what = f"the network cannot be run on images of shape {tuple(shape)}"
    with own_code.running(what, setting):
        adapted = border.adapt(network, image_shape=shape, **settings.told())
    if adapted.num_classes != num_classes:
        raise InputError(
            f"tells {adapted.num_classes} classes apart, the dataset has {num_classes}; its "
            f"outputs must be (batch, {num_classes})",
            setting,
        )


def check_state(network: keras.Model, shape: Sequence[int], setting: str = "network") -> str | None:
    """Refuse a network whose variables no checkpoint would hold.

    Args:
        shape: (H, W, C) of the images.
        setting: that brought the network.

    Returns:
        What can be computed and cannot be repeated; None where there is nothing of the kind.

    Raises:
        InputError: it has variables that Keras does not know.
    """
    held = (each.value for each in (*network.variables, *random_states(network)))
    known = {id(variable) for each in held for variable in replicas.variables_of(each)}
    step = tf.function(lambda images: network(images, training=True), autograph=False)
    graph = step.get_concrete_function(tf.TensorSpec((None, *shape), tf.float32)).graph
    unknown = [each.name for each in graph.variables if id(each) not in known]
    if unknown:
        raise InputError(
            f"the network has {len(unknown)} variables that Keras does not know, such as "
            f"{unknown[0].partition(':')[0]!r}: they would be neither trained nor saved; make them "
            "by add_weight",
            setting,
        )
    content = graph.as_graph_def()
    nodes = [*content.node, *(node for part in content.library.function for node in part.node_def)]
    drawing = sorted({node.op for node in nodes if node.op.startswith(_DRAWING)})
    if not drawing:
        return None
    return (
        f"the network draws by tf.random ({drawing[0]}), whose state is in no checkpoint: a run "
        "that was stopped goes on with other numbers; keras.random with a SeedGenerator does not"
    )


def architecture(network: keras.Model) -> str:
    """Return a hash of a network's layers and how they are connected, whatever their names.

    Keras numbers the layers of a whole process, so another session names them otherwise.
    """
    try:
        content = json.loads(network.to_json())
    except (NotImplementedError, TypeError, ValueError):
        content = type(network).__qualname__  # a model by subclassing need not say what it is
    names = {name: f"layer {number}" for number, name in enumerate(_layer_names(content))}
    weights = [[weight.dtype, *weight.shape] for weight in network.weights]
    described = [_renamed(content, names), weights]
    if isinstance(content, str):  # which of its layers are frozen is in no description then
        frozen = frozen_layers(network)
        described += [frozen] if frozen else []
    text = json.dumps(described, sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()


def _layer_names(content) -> list[str]:
    """Return the names of all layers in a model's JSON, in order."""
    if isinstance(content, list):
        return [name for item in content for name in _layer_names(item)]
    if not isinstance(content, dict):
        return []
    config = content.get("config")
    own = [config["name"]] if isinstance(config, dict) and "name" in config else []
    return own + [name for item in content.values() for name in _layer_names(item)]


_NOT_ARCHITECTURE = ("shared_object_id", "compile_config")


def _renamed(content, names: dict[str, str]):
    if isinstance(content, dict):
        return {k: _renamed(v, names) for k, v in content.items() if k not in _NOT_ARCHITECTURE}
    if isinstance(content, list):
        return [_renamed(item, names) for item in content]
    return names.get(content, content) if isinstance(content, str) else content
