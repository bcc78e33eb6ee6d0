"""The border between this package and any classifier: its pixel range, its outputs, its logits.

Inside the package a network is a function of float32 images in [0, 1], and gives logits and an
embedding. ``adapt`` makes that of what Keras users have: a network of [0, 255] or [-1, 1], one that
ends in a softmax or a sigmoid, one with a single logit, one with several outputs.

Probabilities are not turned back into logits, which rounding would spoil where they saturate. The
logits are read in front of the softmax, in the graph of the network: an output is followed back,
through what only renames or reshapes it, to the operation that made it. So it does not matter
whether that was a layer, an activation, a lambda or a line of a ``call``.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import keras
import numpy as np
import tensorflow as tf

from cascade_keras import draws, ranges
from cascade_keras.attacks.arguments import as_images
from cascade_keras.attacks.outputs import (
    LOGITS,
    SIGMOID,
    SOFTMAX,
    UNKNOWN,
    declared,
    is_share,
    made_by,
)
from cascade_keras.errors import InputError, shown
from cascade_keras.keras_private import converted, made_by_layer
from cascade_keras.ranges import UNIT, ValueRange, check_images, check_value_range

__all__ = [
    "UNIT",
    "Adapted",
    "Outputs",
    "adapt",
    "check_images",
    "check_value_range",
    "from_unit",
    "guard_images",
    "takes",
    "to_unit",
]

_SIDE = 32  # of probes, where any size is taken
_PROBES = 8  # images on which outputs are looked at; as many again are extreme ones


class Outputs(NamedTuple):
    """What a network makes of images.

    Attributes:
        logits: (m, classes) float32.
        embedding: (m, d) float32; the logits where the network has none.
        raw: what the network itself returned for its primary output, such as probabilities.
    """

    logits: tf.Tensor
    embedding: tf.Tensor
    raw: tf.Tensor


# Pixels.


def to_unit(images, value_range: ValueRange) -> tf.Tensor:
    """Return images of the network's range as float32 in [0, 1].

    Args:
        images: floats, or uint8 where the range is (0, 255).

    Raises:
        InputError: other whole numbers.
    """
    return tf.cast(as_images(images, tuple(value_range)), tf.float32)


def from_unit(images: tf.Tensor, value_range: ValueRange) -> tf.Tensor:
    """Return images of [0, 1] in the network's range; as they are where that is (0, 1)."""
    if tuple(value_range) == UNIT:
        return images
    images = tf.convert_to_tensor(images)
    if images.dtype.size < 4:  # half precision does not hold the pixel values of 0..255
        images = tf.cast(images, tf.float32)
    return ranges.scaled_from_unit(images, tuple(value_range))


def guard_images(images, value_range: ValueRange, what: str = "images") -> tf.Tensor:
    """Return images of the network's range as float32 in [0, 1], in a graph as well.

    Of values that are known only when the graph is run it is asserted there that they are in the
    range, with the sentences of ``check_images``.

    Raises:
        InputError: whole numbers, or values outside the range that are known already.
        tf.errors.InvalidArgumentError: values outside the range, when the graph is run.
    """
    images, value_range = tf.convert_to_tensor(images), tuple(value_range)
    if tf.executing_eagerly():
        return tf.convert_to_tensor(check_images(images, value_range, what))
    unit = to_unit(images, value_range)
    slack, (low, high) = ranges.TOLERANCE, value_range
    lowest, highest = tf.reduce_min(unit), tf.reduce_max(unit)
    empty = tf.equal(tf.size(unit), 0)
    inside = empty | ((lowest >= -slack) & (highest <= 1 + slack))  # false for NaN
    found = [lowest * (high - low) + low, highest * (high - low) + low]
    asserts = [tf.debugging.Assert(inside, [ranges.advice(value_range, what), *found])]
    if ranges.reaches_far(value_range):
        used = empty | (lowest < 0) | (highest <= 0) | (highest * high > 1)
        asserts.append(tf.debugging.Assert(used, [ranges.squeezed(1, value_range, what)]))
    with tf.control_dependencies(asserts):
        return tf.clip_by_value(unit, 0.0, 1.0)


# Networks.


def adapt(
    network: Callable,
    *,
    value_range: Sequence[float] | None = None,
    from_logits: bool | str = "auto",
    logits: str | None = None,
    embedding: str | None = None,
    image_shape: Sequence[int] | None = None,
) -> Adapted:
    """Return a network as a function of images in [0, 1] that gives logits and an embedding.

    Args:
        network: a Keras model or layer, or a function, from images (m, H, W, C) to logits or
            probabilities (m, classes), to one output (m, 1) or (m,) of a binary classifier, or to a
            dict or a list of several outputs; an ``AdversarialTrainer`` stands for its network,
            with what it was told of it.
        value_range: of the images that the network takes; (0, 1) where None.
        from_logits: whether the outputs are logits. "auto" looks: where they are probabilities, of
            a softmax or of one sigmoid, the logits are taken from in front of it. False says that
            they are probabilities, of several sigmoids too, whose classes then exclude each other.
        logits: the output that is meant, where there are several: its key in a dict, the name of an
            output of a functional model, its number in a list, or the name of a layer.
        embedding: the output or the layer that is the embedding, flattened; what is called
            "embedding" where None, else the logits.
        image_shape: (H, W, C), where the network does not say it.

    Raises:
        InputError: outputs that are no logits and of which none can be had, or that are not there.
            Where the images' size is not known it is raised when the network is first called.
    """
    own = getattr(network, "border", None)
    value_range = None if value_range is None else check_value_range(value_range)
    if not isinstance(own, Adapted):
        return Adapted(network, value_range or UNIT, from_logits, logits, embedding, image_shape)
    told = {
        "value_range": (value_range, None, own.value_range),
        "from_logits": (from_logits, "auto", own.from_logits),
        "logits": (logits, None, own.logits_name),
        "embedding": (embedding, None, own.embedding_name),
    }
    for name, (given, default, known) in told.items():
        if given not in (default, known):
            raise InputError(
                f"is {given!r} here, but the trainer that was given says {known!r}; leave it out",
                name,
            )
    return own


class Adapted:
    """A network between the borders: images in [0, 1] -> ``Outputs``. See ``adapt``.

    It is no Keras layer, so that a model that holds it does not take its variables for its own.

    Attributes:
        network: as it was given.
        value_range: of the images that it takes.
        input_shape: (H, W, C) with None where any size is taken; None where it is not known.
        num_classes: None as long as it is not known.
        binary: whether the network itself has one output, for two classes; None as long as it is
            not known.
        kind: what the network's own output is: "logits", "softmax" or "sigmoid"; None as long as it
            is not known.
    """

    def __init__(
        self,
        network: Callable,
        value_range: Sequence[float] = UNIT,
        from_logits: bool | str = "auto",
        logits: str | None = None,
        embedding: str | None = None,
        image_shape: Sequence[int] | None = None,
    ):
        if not callable(network):
            raise InputError(
                "a network is a Keras model or a function from images to logits, got "
                f"{type(network).__name__}"
            )
        if not (isinstance(from_logits, bool) or from_logits == "auto"):
            raise InputError(
                f"must be True, False or 'auto', got {shown(from_logits)}", "from_logits"
            )
        for name, value in (("logits", logits), ("embedding", embedding)):
            if not (value is None or isinstance(value, str) or type(value) is int):
                raise InputError(
                    f"must be the name of an output or layer, got {shown(value)}", name
                )
        self.network = network
        self._written = converted(network)
        self.value_range = check_value_range(value_range)
        self.from_logits = from_logits
        self.logits_name = logits
        self.embedding_name = embedding
        self.input_shape = _input_shape(network, image_shape)
        self.num_classes: int | None = None
        self.binary: bool | None = None
        self.kind: str | None = LOGITS if from_logits is True else None
        self._graphs: dict[tuple, Callable] = {}
        if self.input_shape is not None and None not in self.input_shape:
            self._find_out(self.input_shape)

    def __call__(self, images: tf.Tensor, training: bool = False) -> Outputs:
        """Return what the network makes of images in [0, 1], (m, H, W, C)."""
        images = from_unit(images, self.value_range)
        if self.kind is None:
            self._find_out(images.shape[1:])
        if tf.executing_eagerly() and self.kind != LOGITS:
            return self._in_graph(images, training)  # only a graph shows what is before a softmax
        return self._run(images, training)

    def logits(self, images: tf.Tensor) -> tf.Tensor:
        """Return the logits (m, classes) in inference mode: what attacks take."""
        return self(images).logits

    def learn(self, images: tf.Tensor) -> None:
        """Find out of the number of classes what only the size of images tells."""
        if self.num_classes is None:
            self(images)  # in a graph it is left out again

    def _count(self, width: int | None) -> None:
        """Know the classes by the width of the network's own output, (m,) or (m, width)."""
        self.binary = None if width is None else width == 1
        self.num_classes = 2 if self.binary else width

    def _in_graph(self, images: tf.Tensor, training: bool) -> Outputs:
        """Return what ``_run`` does, by one graph a size of images and mode.

        Its own table of graphs: TensorFlow's would count those of all networks together, and warn
        of too many.
        """
        batch = tf.TensorSpec([_batch_size(self.network), *images.shape[1:]], images.dtype)
        if (batch, training) not in self._graphs:
            run = tf.function(lambda images: self._run(images, training), autograph=False)
            self._graphs[batch, training] = run.get_concrete_function(batch)
        return self._graphs[batch, training](images)

    def _run(self, images: tf.Tensor, training: bool) -> Outputs:
        raw, embedding = self._call(images, training)
        logits = self._logits_of(raw)
        if self.num_classes is None:
            self._count(_width(raw))
        if embedding is None:
            return Outputs(logits, logits, raw)
        return Outputs(logits, _flat(embedding), raw)

    # What the network returns.

    def _call(self, images: tf.Tensor, training: bool) -> tuple[tf.Tensor, tf.Tensor | None]:
        """Return the primary output, and the embedding where the network has one of its own."""
        mode = {"training": training} if isinstance(self.network, keras.Layer) else {}
        wanted = [name for name in (self.logits_name, self.embedding_name) if name is not None]
        layers = {name: _layer_called(self.network, name) for name in wanted}
        layers = {name: layer for name, layer in layers.items() if layer is not None}
        with _recorded(layers) as recorded:
            outputs = self._written(images, **mode)
        named = self._named(outputs)
        primary = self._primary(named, recorded)
        if self.embedding_name is not None:
            return primary, _chosen(self.embedding_name, named, recorded, "embedding")
        embedding = named.get("embedding")
        return primary, None if embedding is primary else embedding

    def _named(self, outputs) -> dict:
        """Return the network's outputs by their names."""
        if isinstance(outputs, dict):
            named = {str(name): output for name, output in outputs.items()}
        elif isinstance(outputs, list | tuple):
            names = getattr(self.network, "output_names", ())
            if len(names) != len(outputs):
                names = map(str, range(len(outputs)))
            named = dict(zip(names, outputs, strict=True))
        else:
            named = {"logits": outputs}
        for name, output in named.items():
            if not tf.is_tensor(output):
                raise InputError(
                    f"the network's output {name!r} is a {type(output).__name__}, no tensor; give "
                    "the model itself, or a function that computes with TensorFlow's tensors"
                )
        return named

    def _primary(self, named: dict, recorded: dict) -> tf.Tensor:
        if self.logits_name is not None:
            output = _chosen(self.logits_name, named, recorded, "logits")
        else:
            others = [name for name in named if name != str(self.embedding_name)]
            name = "logits" if "logits" in named else others[0] if len(others) == 1 else None
            if name is None:
                raise InputError(
                    f"the network returns {', '.join(map(repr, named)) or 'nothing'}; name the "
                    "output that tells the classes apart",
                    "logits",
                )
            output = named[name]
        if output.shape.rank not in (1, 2) or not output.dtype.is_floating:
            raise InputError(
                "the network must return floats of shape (batch, classes), it returns "
                f"{output.dtype.name} {output.shape}; let it end in a Flatten layer, or name the "
                "output or layer that does as logits="
            )
        return output

    # Logits and probabilities.

    def _logits_of(self, raw: tf.Tensor) -> tf.Tensor:
        """Return the logits (m, classes) float32 of the primary output."""
        scores = raw
        if self.kind != LOGITS:
            kind, before = made_by(raw)
            scores = before if self._checked(kind, raw) in (SOFTMAX, SIGMOID) else raw
        scores = tf.cast(scores, tf.float32)
        if _is_single(raw):
            # One logit z of a binary classifier: softmax([0, z]) = (1 - sigmoid(z), sigmoid(z)).
            scores = tf.reshape(scores, [-1, 1])
            scores = tf.concat([tf.zeros_like(scores), scores], axis=-1)
        return declared(scores) if self.from_logits is True else scores

    def _checked(self, kind: str, raw: tf.Tensor) -> str:
        """Return the kind of an output; refuse one that has no logits."""
        single = _is_single(raw)
        if kind == SOFTMAX and single:
            raise InputError(
                "the network's softmax is of one output, which is always 1; give it two, or a "
                "sigmoid"
            )
        if kind == SIGMOID and not single and self.from_logits == "auto":
            raise InputError(
                "the network gives a sigmoid for each class, so none excludes another; pass "
                "from_logits=False if an image has one class only: what is before the sigmoids "
                "are then its scores",
                "from_logits",
            )
        if kind not in (SOFTMAX, SIGMOID) and self.from_logits is False:
            raise _unreachable("gives probabilities (from_logits=False)")
        if kind == UNKNOWN and self.kind in (SOFTMAX, SIGMOID):
            raise _unreachable("gives probabilities")
        return kind

    def _find_out(self, image_shape) -> None:
        """Learn what the network gives, and refuse what cannot be made logits."""
        shape = tf.TensorShape(image_shape)
        if shape.rank != 3 or shape[2] is None:
            return
        known = shape.is_fully_defined()
        sides = [_SIDE if side is None else side for side in shape]
        width = self._declared_logits()
        if width is not None:
            self.kind = LOGITS
            self._count(width)
            return
        with tf.init_scope():  # also where it is first called within a graph
            try:
                kind, width = self._looked_at(sides)
            except InputError:
                raise
            except Exception:  # whatever Keras and TensorFlow raise; it may not take such a size
                if known:
                    raise
                return
        self.kind = kind
        self._count(width)

    def _declared_logits(self) -> int | None:
        """Return the width of the output of a model that says itself that it gives logits.

        Its last layer is dense and linear: it need not be traced then, which takes a second for a
        large one.
        """
        try:
            outputs = self.network.output
        except (AttributeError, ValueError):  # no functional model, or not yet
            return None
        if self.embedding_name is not None or not keras.utils.is_keras_tensor(outputs):
            named = outputs if isinstance(outputs, dict) else {}
        else:
            named = {"logits": outputs}
        tensor = named.get(self.logits_name or "logits")
        if not keras.utils.is_keras_tensor(tensor) or len(tensor.shape) != 2:
            return None
        layer, given = made_by_layer(tensor)
        if type(layer) is keras.layers.Activation and layer.activation is keras.activations.linear:
            layer, _ = made_by_layer(*given)  # as ours end: a cast to float32
        if type(layer) is not keras.layers.Dense:
            return None
        if layer.activation is not keras.activations.linear:
            return None
        return tensor.shape[-1]

    def _looked_at(self, image_shape: list[int]) -> tuple[str, int | None]:
        """Return the kind of the network's output and its width."""
        images = from_unit(_probes(self.network, image_shape), self.value_range)
        if isinstance(self.network, keras.Layer) and not self.network.built:
            self.network(images[:1], training=False)  # which makes its variables
        # What a function raises is told as it is, not as AutoGraph tells of it.
        called = None if isinstance(self.network, keras.Layer) else self._call(images, False)[0]
        found: dict = {}

        def look(images: tf.Tensor) -> tf.Tensor:
            try:
                raw, _ = self._call(images, False)
                kind, _ = made_by(raw)
                found["kind"] = self._checked(kind, raw) if self.kind is None else self.kind
            except InputError as error:
                found["error"] = error  # AutoGraph would make another kind of error of it
                raise
            found["width"] = _width(raw)
            return raw

        batch = tf.TensorSpec([_batch_size(self.network), *image_shape], images.dtype)
        try:
            traced = tf.function(look, autograph=False).get_concrete_function(batch)
        except Exception:
            if "error" in found:
                raise found["error"] from None
            raise
        if found["kind"] == UNKNOWN:
            self._refuse_probabilities(traced(images) if called is None else called)
            found["kind"] = LOGITS
        return found["kind"], found["width"]

    def _refuse_probabilities(self, values: tf.Tensor) -> None:
        """Refuse values of an output that look like probabilities of which no logits are seen."""
        values = values.numpy()
        if not np.isfinite(values).all():
            return
        if is_share(values):
            total = float(values[0].sum(dtype=np.float64))
            raise _unreachable(f"gives probabilities (rows sum to {total:.4g})")
        if (values < 0).any() or (values > 1 + 1e-4).any():
            return
        if _is_single(values):
            raise _unreachable(f"gives numbers of [0, 1] only, here {values.min():.3g}", "sigmoid")
        raise _unreachable("gives numbers of [0, 1] only", "last activation")


def _width(output) -> int | None:
    """Return how many numbers an output, (m,) or (m, width), is of each image."""
    return 1 if len(output.shape) == 1 else output.shape[-1]


def _is_single(output) -> bool:
    """Whether an output is one number for each image."""
    return _width(output) == 1


def _unreachable(what: str, kind: str = "softmax") -> InputError:
    return InputError(
        f"the network {what}, whose logits cannot be reached; build or save it without its {kind}, "
        "name the layer before that as logits=, or pass from_logits=True if these are logits",
        "from_logits",
    )


def _flat(embedding: tf.Tensor) -> tf.Tensor:
    embedding = tf.cast(embedding, tf.float32)
    if embedding.shape.rank == 2:
        return embedding
    width = embedding.shape[1:].num_elements()
    return tf.reshape(embedding, [tf.shape(embedding)[0], -1 if width is None else width])


def takes(own: Sequence[int | None], shape: Sequence[int]) -> bool:
    """Whether what takes arrays of its own shape, None where any, takes those of another."""
    return len(own) == len(shape) and all(a in (None, b) for a, b in zip(own, shape, strict=True))


def _input_shape(network: Callable, image_shape: Sequence[int] | None) -> tuple | None:
    own = getattr(network, "input_shape", None)
    if isinstance(network, keras.Layer) and own is not None:
        _check_input(own)
    if isinstance(own, dict | list) and len(own) == 1:
        (own,) = own.values() if isinstance(own, dict) else own
    own = own[1:] if isinstance(own, tuple) and len(own) == 4 else None
    if image_shape is None:
        return own
    given = tuple(image_shape)
    if own is not None and not takes(own, given):
        raise InputError(f"the network takes images of shape {own}, not {given}", "image_shape")
    return given


def _check_input(shape) -> None:
    """Refuse what a Keras model says of its inputs where that is not one batch of images."""
    if isinstance(shape, dict):
        shape = list(shape.values())
    if isinstance(shape, list) and len(shape) == 1:
        (shape,) = shape
    if isinstance(shape, list):
        raise InputError(
            f"the network takes {len(shape)} inputs; images alone are attacked: give a model of "
            "one input, in which the others are fixed"
        )
    if len(shape) != 4:
        raise InputError(
            f"the network takes inputs of shape {tuple(shape)}, no images (batch, height, width, "
            "channels); put it behind keras.layers.Flatten or Reshape in a Sequential"
        )


def _batch_size(network: Callable) -> int | None:
    """Return how many images a network takes at once, None for any number."""
    shape = getattr(network, "input_shape", None)
    return shape[0] if isinstance(shape, tuple) and shape else None


def _probes(network: Callable, image_shape: Sequence[int]) -> tf.Tensor:
    """Return images that differ much: noise, and as much of it in coarse black and white."""
    noise = draws.probes(_PROBES, image_shape)
    extreme = tf.cast(noise > tf.reshape(tf.linspace(0.0, 1.0, _PROBES), [-1, 1, 1, 1]), tf.float32)
    images = tf.concat([noise, extreme], axis=0)
    count = _batch_size(network)
    return images if count is None else tf.gather(images, tf.range(count) % (2 * _PROBES))


# Layers by their names.


def _layer_called(network: Callable, name: str | int) -> keras.Layer | None:
    """Return the layer of a name, however deep it is nested; None where there is none."""
    found = {id(layer): layer for layer in _layers(network) if layer.name == name}
    if len(found) > 1:
        raise InputError(f"{len(found)} layers of the network are called {name!r}; rename one")
    return next(iter(found.values()), None)


def _layers(network: Callable) -> Iterator[keras.Layer]:
    for layer in getattr(network, "layers", ()):
        yield layer
        yield from _layers(layer)


@contextlib.contextmanager
def _recorded(layers: dict[str, keras.Layer]) -> Iterator[dict[str, list]]:
    """Give what the layers return while the network is called, by their names.

    Their ``call`` is exchanged meanwhile: that works in any model, and for layers within layers.
    """
    recorded: dict[str, list] = {name: [] for name in layers}
    thread = threading.get_ident()  # replicas are traced in threads

    def recording(name: str, call: Callable) -> Callable:
        def recording_call(*args, **kwargs):
            output = call(*args, **kwargs)
            if threading.get_ident() == thread:
                recorded[name].append(output)
            return output

        return recording_call

    own = {name: vars(layer).get("call") for name, layer in layers.items()}
    for name, layer in layers.items():
        object.__setattr__(layer, "call", recording(name, layer.call))
    try:
        yield recorded
    finally:
        for name, layer in layers.items():
            object.__delattr__(layer, "call")
            if own[name] is not None:
                object.__setattr__(layer, "call", own[name])


def _chosen(name: str | int, named: dict, recorded: dict[str, list], setting: str) -> tf.Tensor:
    """Return the output of a name, else what the layer of that name has returned."""
    if str(name) in named:
        return named[str(name)]
    if name not in recorded:
        raise InputError(
            f"the network has no output and no layer {name!r}; its outputs are "
            f"{', '.join(map(repr, named))}",
            setting,
        )
    outputs = recorded[name]
    if len(outputs) != 1 or not tf.is_tensor(outputs[0]):
        raise InputError(
            f"layer {name!r} must be called once and return one tensor; it was called "
            f"{len(outputs)} times",
            setting,
        )
    return outputs[0]
