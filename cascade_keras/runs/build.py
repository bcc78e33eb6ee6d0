"""What a training's settings describe: network, trainer, schedule, initial weights."""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import json
import warnings
from collections.abc import Callable, Iterator, Sequence

import keras
import tensorflow as tf

from cascade_keras import data, models
from cascade_keras.errors import InputError, first_line
from cascade_keras.losses.specs import LOSSES
from cascade_keras.options import TrainerOptions
from cascade_keras.runs.settings import NORM_OF_DISTANCE, TrainingSettings, initialisation
from cascade_keras.training import AdversarialTrainer


def build_network(settings: TrainingSettings, dataset: data.Dataset) -> keras.Model:
    """Return the network that ``settings.model`` names, with new weights."""
    return models.build(
        settings.model,
        input_shape=image_shape(settings, dataset.preset),
        num_classes=dataset.preset.num_classes,
        embedding_at=settings.embedding_at,
        normalization=settings.normalization,
        mean=data.mean_image(dataset, settings.crop),
    )


def image_shape(settings: TrainingSettings, preset: data.DatasetSpec) -> tuple[int, int, int]:
    """Return (H, W, C) of what the network sees."""
    return (settings.crop, settings.crop, preset.image_shape[-1])


def build_trainer(
    settings: TrainingSettings,
    network: keras.Model,
    *,
    cascade_sources: Sequence[Callable] = (),
    ensemble_sources: Sequence[Callable] = (),
    make: type[AdversarialTrainer] = AdversarialTrainer,
) -> AdversarialTrainer:
    """Return the compiled trainer of a network.

    Args:
        settings: resolved.
        network: images -> {"logits", "embedding"} or logits.
        cascade_sources: those whose images are crafted within the step.
        ensemble_sources: those of one-step images.
        make: the trainer's class.
    """
    # A setting that is named as one of the trainer's options is that option.
    options = {
        field.name: getattr(settings, field.name)
        for field in dataclasses.fields(TrainerOptions)
        if hasattr(settings, field.name)
    }
    trainer = make(
        network,
        distance_norm=NORM_OF_DISTANCE[settings.distance],
        cascade_sources=cascade_sources,
        ensemble_sources=ensemble_sources,
        **options,
    )
    optimizer = keras.optimizers.SGD(
        learning_rate_schedule(settings),
        momentum=settings.momentum,
        global_clipnorm=settings.clip_norm,
        use_ema=settings.use_ema,
        ema_momentum=settings.ema_momentum,
    )
    trainer.compile(optimizer=optimizer)
    return trainer


def learning_rate_schedule(settings: TrainingSettings):
    """Return the learning rate: a warm-up, then divided by 10 after each boundary."""
    rate, boundaries = settings.learning_rate, list(settings.lr_boundaries)
    rates = [rate * 0.1**times for times in range(len(boundaries) + 1)]
    if settings.warmup_steps:
        boundaries, rates = [settings.warmup_steps, *boundaries], [rate * 0.1, *rates]
    if not boundaries:
        return rate
    # Keras keeps the earlier value at a boundary itself; step numbers count from 0.
    return keras.optimizers.schedules.PiecewiseConstantDecay([b - 1 for b in boundaries], rates)


def clean_images(settings: TrainingSettings) -> int:
    """Return how many images of the dataset a step takes.

    Adversarial images join their clean ones for some losses, and replace them for others.
    """
    joined = settings.adversarial_batch_size if LOSSES[settings.loss].pairs else 0
    return settings.batch_size - joined


def load_initialisation(network: keras.Model, path: str) -> None:
    """Load weights from a run's directory, a .keras or a .weights.h5 file.

    Raises:
        InputError: nothing there, or weights of another network.
    """
    file = initialisation(path)
    try:
        with warnings.catch_warnings():
            # Keras warns of every layer that the file lacks before it gives up.
            warnings.simplefilter("ignore")
            network.load_weights(file)
    except Exception as error:  # Keras, h5py and zipfile each raise their own
        raise InputError(
            f"{file} does not hold the weights of this network ({first_line(error)}); give a file "
            "of the same model and dataset",
            "init_from",
        ) from error


@contextlib.contextmanager
def precision(policy: str) -> Iterator[None]:
    """Make networks and optimizers inside under a Keras dtype policy, and leave others alone."""
    before = keras.config.dtype_policy()
    keras.config.set_dtype_policy(policy)
    try:
        yield
    finally:
        keras.config.set_dtype_policy(before)


# A network of the user's own.


def check_own(network: keras.Model, shape: Sequence[int], num_classes: int) -> None:
    """Refuse a network that does not fit the images or the classes of a dataset.

    Args:
        shape: (H, W, C) of the images.
        num_classes: number of logits.

    Raises:
        InputError: saying what it takes or gives.
    """
    taken = getattr(network, "input_shape", None)
    fits = isinstance(taken, tuple) and len(taken) == 4 and all(
        own in (None, side) for own, side in zip(taken[1:], shape, strict=True)
    )  # fmt: skip
    if not fits:
        raise InputError(f"takes {taken}, the dataset's images are {tuple(shape)}", "network")
    outputs = network(tf.zeros((1, *shape)), training=False)
    logits = outputs.get("logits") if isinstance(outputs, dict) else outputs
    if logits is None or len(logits.shape) != 2 or logits.shape[-1] != num_classes:
        given = sorted(outputs) if logits is None else tuple(logits.shape)
        raise InputError(
            f"must give logits of {num_classes} classes, (batch, {num_classes}); it gives {given}",
            "network",
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
    text = json.dumps([_renamed(content, names), weights], sort_keys=True)
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
