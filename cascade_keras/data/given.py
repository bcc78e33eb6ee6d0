"""What a user's own data is made of before a training step takes it."""

from __future__ import annotations

import keras
import tensorflow as tf

from cascade_keras.data.batching import Batch
from cascade_keras.errors import InputError


def unpack(data, clock) -> tuple[Batch, tf.Tensor]:
    """Return the batch and the integer labels (batch,) of what Keras hands to a step.

    Args:
        data: (images, labels), the images floats or a ``Batch``, the labels of any usual form.
        clock: the step of images that do not come with one.

    Raises:
        InputError: several inputs, whole pixel values, no labels, or sample weights.
    """
    images, labels, weights = keras.utils.unpack_x_y_sample_weight(data)
    if labels is None or weights is not None:
        raise InputError("AdversarialTrainer needs data as (images, labels), without weights")
    if not isinstance(images, Batch):
        if isinstance(images, (tuple, list, dict)):
            raise InputError(
                f"AdversarialTrainer attacks a single input of images, got {len(images)} inputs"
            )
        images = Batch(images, tf.identity(clock), None)
    images, step, crafted = images
    if crafted is not None and crafted.shape[0] == 0:
        crafted = None
    images, labels = tf.convert_to_tensor(images), tf.convert_to_tensor(labels)
    if images.dtype.is_integer:
        raise InputError("images must be floats in [0, 1]; divide whole pixel values by 255")
    if labels.shape.rank == 2:
        one_hot = labels.shape[-1] > 1
        labels = tf.argmax(labels, axis=-1) if one_hot else tf.squeeze(labels, axis=-1)
    return Batch(tf.cast(images, tf.float32), step, crafted), tf.cast(labels, tf.int32)
