"""What a user's own data is before a training step takes it: its parts, by their forms."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterator
from typing import NamedTuple

import keras
import tensorflow as tf

from cascade_keras.data.batching import Batch
from cascade_keras.errors import InputError

_ASSERTED = re.compile(
    r"assertion failed: \[((?:images|labels)[^\]]*)\](?: \[([^\]]*)\] \[([^\]]*)\])?"
)
_UNLIKE = re.compile(
    r"Shape of tensor \S+ (\[[^\]]*\]) is not compatible with expected shape (\[[^\]]*\])"
)


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
        images = Batch(_images(images, image_shape), tf.identity(clock), None)
    if isinstance(labels, tuple | list | dict):
        raise InputError(
            f"labels of {len(labels)} outputs were given; AdversarialTrainer trains one output, "
            "named by logits=, so give its labels alone"
        )
    if images.cascade is not None and images.cascade.shape[0] == 0:
        images = images._replace(cascade=None)
    return Given(images, tf.convert_to_tensor(labels), _weights(weights), ours)


def _images(images, image_shape: tuple | None) -> tf.Tensor:
    images = tf.convert_to_tensor(images)
    if images.shape.rank is None and image_shape is not None:
        images = tf.ensure_shape(images, [None, *image_shape])
    if images.shape.rank != 4:
        mend = "; add the channels: images[..., None]" if images.shape.rank == 3 else ""
        raise InputError(
            f"images must have the shape (batch, height, width, channels), got {images.shape}{mend}"
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
    return weights


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
        found = _ASSERTED.search(str(error))
        if found is None:
            raise
        sentence, *extremes = found.groups()
        if extremes[0] is not None:
            sentence = f"{sentence} {extremes[0]}, {extremes[1]}"
        if sentence.startswith("labels: "):
            raise InputError(sentence.removeprefix("labels: "), "labels") from None
        raise InputError(sentence) from None
