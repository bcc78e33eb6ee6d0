"""What a user's own data is before a training step takes it: its parts, by their forms."""

from __future__ import annotations

import contextlib
import math
import numbers
import re
from collections.abc import Iterator
from typing import NamedTuple

import keras
import tensorflow as tf

from cascade_keras.data.batching import Batch
from cascade_keras.errors import InputError, shown

_ASSERTED = re.compile(
    r"assertion failed: \[((?:images|labels|sample_weight)[^\]]*)\]"
    r"(?: \[([^\]]*)\] \[([^\]]*)\])?"
)
_ASSERTED_EAGERLY = re.compile(r"Summarized data: b'((?:labels|sample_weight)[^\n]*)'")
_UNWATCHABLE = re.compile(r"received monitor=(\S+), but Keras isn't able")
_WEIGHTS = "must be finite numbers of 0 or above"
_UNLIKE = re.compile(
    r"Shape of tensor \S+ (\[[^\]]*\]) is not compatible with expected shape (\[[^\]]*\])"
)
_NOT_FOR_XLA = re.compile(r"on XLA_\w+_JIT: (\w+)")


class Given(NamedTuple):
    """What Keras hands to a step.

    Attributes:
        batch: its images are as they were given, of any type and range.
        labels: of any form, see ``labels``.
        weights: float32 (batch,), or None.
        ours: whether it is a ``Batch`` of this package, whose images need no check.
    """

    batch: Batch
    labels: tf.Tensor
    weights: tf.Tensor | None
    ours: bool


def unpack(data, clock, image_shape: tuple | None = None) -> Given:
    """Return the parts of what Keras hands to a step.

    Args:
        data: (images, labels) or (images, labels, weights), the images a tensor or a ``Batch``.
        clock: the step of images that do not come with one.
        image_shape: (H, W, C) of the network, for images of unknown shape.

    Raises:
        InputError: several inputs, images that are none, no labels, or weights of another shape.
    """
    images, labels, weights = keras.utils.unpack_x_y_sample_weight(data)
    images, labels = _only(images), _only(labels)
    if labels is None:
        raise InputError(
            "AdversarialTrainer needs data as (images, labels) or (images, labels, weights)"
        )
    ours = isinstance(images, Batch)
    if not ours:
        if isinstance(images, tuple | list | dict):
            raise InputError(
                f"AdversarialTrainer attacks a single input of images, got {len(images)} inputs"
            )
        single = getattr(labels, "shape", None) == ()
        images = Batch(_images(images, image_shape, single), tf.identity(clock), None)
    if isinstance(labels, tuple | list | dict):
        raise InputError(
            f"labels of {len(labels)} outputs were given; AdversarialTrainer trains one output, "
            "named by logits=, so give its labels alone"
        )
    if images.cascade is not None and images.cascade.shape[0] == 0:
        images = images._replace(cascade=None)
    return Given(images, tf.convert_to_tensor(labels), _weights(weights), ours)


def _only(parts):
    """Return what a dict or a list of one part holds, as of a model whose input has a name."""
    if isinstance(parts, dict) and len(parts) == 1:
        return next(iter(parts.values()))
    plain = type(parts) in (tuple, list) and len(parts) == 1
    return parts[0] if plain and hasattr(parts[0], "shape") else parts


def _images(images, image_shape: tuple | None, single: bool = False) -> tf.Tensor:
    images = tf.convert_to_tensor(images)
    if images.shape.rank is None and image_shape is not None:
        images = tf.ensure_shape(images, [None, *image_shape])
    if images.shape.rank != 4:
        mend = "; add the channels: images[..., None]" if images.shape.rank == 3 else ""
        mend = "; make batches of the dataset: dataset.batch(64)" if single else mend
        raise InputError(
            f"images must have the shape (batch, height, width, channels), got {images.shape}{mend}"
        )
    if image_shape is not None and not images.shape[1:].is_compatible_with(image_shape):
        first = tuple(images.shape[1:])
        turned = tf.TensorShape((*first[1:], first[0])).is_compatible_with(image_shape)
        mend = "; put the channels last: np.moveaxis(images, 1, -1)" if turned else ""
        raise InputError(
            f"images of shape {first} were given, the network takes {tuple(image_shape)}{mend}"
        )
    return images


def _weights(weights) -> tf.Tensor | None:
    if weights is None:
        return None
    weights = tf.cast(tf.convert_to_tensor(weights), tf.float32)
    if weights.shape.rank == 2 and weights.shape[1] == 1:
        weights = weights[:, 0]
    if weights.shape.rank != 1:
        raise InputError(
            f"must be one number an image, (batch,), got {weights.shape}", "sample_weight"
        )
    fine = tf.reduce_all((weights >= 0) & (weights < float("inf")))  # not where one is NaN
    check = tf.debugging.Assert(fine, [f"sample_weight: {_WEIGHTS}"])
    with tf.control_dependencies([] if check is None else [check]):
        return tf.identity(weights)


def check_arguments(x, y=None, sample_weight=None, class_weight=None, **_) -> None:
    """Refuse arguments of ``fit`` of which Keras tells at length, late or not at all.

    Raises:
        InputError: lists of numbers, texts, arrays without images, weights that are none.
    """
    for name, given in (("x", x), ("y", y), ("sample_weight", sample_weight)):
        if type(given) in (list, tuple) and not all(hasattr(part, "shape") for part in given):
            raise InputError("is a list of numbers; give an array, np.asarray(...)", name)
        if getattr(getattr(given, "dtype", None), "kind", None) in ("O", "S", "U"):
            mend = "number the classes: np.unique(y, return_inverse=True)[1]"
            raise InputError(
                f"must be numbers, got {given.dtype}" + (f"; {mend}" if name == "y" else ""), name
            )
    if getattr(x, "shape", None) and x.shape[0] == 0:
        raise InputError("there are no images", "x")
    if class_weight is None:
        return
    if not isinstance(class_weight, dict):
        raise InputError(
            f"must be a dict of classes and numbers, got {shown(class_weight)}", "class_weight"
        )
    for each in class_weight.values():
        number = isinstance(each, numbers.Real) and not isinstance(each, bool)
        if not (number and 0 <= each < float("inf")):
            raise InputError(f"{_WEIGHTS}, got {shown(each)}", "class_weight")


@contextlib.contextmanager
def in_one_line() -> Iterator[None]:
    """Say what a graph asserts of images and labels as it is said of arrays."""
    try:
        yield
    except tf.errors.InvalidArgumentError as error:
        found = _UNLIKE.search(str(error))
        if found is not None:
            raise InputError(
                "images of shape {} were given, the network takes {}".format(*found.groups())
            ) from None
        found = _NOT_FOR_XLA.search(str(error))
        if found is not None:
            raise InputError(
                f"XLA cannot compile the step, which has the operation {found[1]} in "
                "it; leave it off",
                "jit_compile",
            ) from None
        found = _ASSERTED.search(str(error)) or _ASSERTED_EAGERLY.search(str(error))
        if found is None:
            raise
        sentence, *extremes = found.groups()
        if extremes and extremes[0] is not None:
            if not all(math.isfinite(float(extreme)) for extreme in extremes):
                raise InputError("images have values that are not finite numbers") from None
            sentence = f"{sentence} {extremes[0]}, {extremes[1]}"
        setting, colon, rest = sentence.partition(": ")
        if colon and setting in ("labels", "sample_weight"):
            raise InputError(rest, setting) from None
        raise InputError(sentence) from None
    except ValueError as error:
        found = _UNWATCHABLE.search(str(error))
        if found is None:
            raise
        raise InputError(
            f"there is no {found[1]}; monitor val_clean_accuracy or val_adversarial_accuracy, or "
            "say the mode",
            "monitor",
        ) from None
