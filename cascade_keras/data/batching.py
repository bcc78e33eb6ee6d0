"""Batches that are a pure function of (seed, step).

Cropping, flipping and the conversion to [0, 1] are done for a whole batch at a time in the graph.
"""

from __future__ import annotations

from typing import NamedTuple, Protocol

import numpy as np
import tensorflow as tf

from cascade_keras import draws
from cascade_keras.attacks.arguments import PIXEL_LEVELS
from cascade_keras.data.datasets import centre_crop
from cascade_keras.errors import InputError

CIFAR_PADDING = 4  # He et al.: 32x32 crops of the image padded to 40x40


class Batch(NamedTuple):
    """The images of a training step, and what else belongs to it.

    Attributes:
        images: float32 (batch, H, W, C) in [0, 1].
        step: the number of batches before this one, a scalar int64: the clock of the training,
            from which all of the step's draws follow.
        cascade: float32 (c, H, W, C), adversarial images made beforehand, of the last c of the
            images that are attacked; c = 0, or None, where there are none.
    """

    images: tf.Tensor
    step: tf.Tensor
    cascade: tf.Tensor | None


def check_batch_size(batch_size: int, size: int) -> None:
    """Raise InputError if a batch needs more images than there are in an epoch."""
    if batch_size > size:
        raise InputError(
            f"{batch_size} clean images a batch exceed the {size} training images", "batch_size"
        )


class Partners(Protocol):
    """Adversarial images made beforehand, which some images of every batch bring along.

    Attributes:
        rows: the places in a batch of the images that have one.
        examples: only the first so many images of the dataset have any.
    """

    rows: range
    examples: int

    def read(self, step: tf.Tensor, indices: tf.Tensor) -> tf.Tensor:
        """Return those of the centre crops of these images, (len(rows), crop, crop, C) uint8."""


def batches(
    images: np.ndarray,
    labels: np.ndarray,
    batch_size: int,
    *,
    seed: int,
    start: int = 0,
    stop: int | None = None,
    crop: int | None = None,
    augment: bool = False,
    partners: Partners | None = None,
) -> tf.data.Dataset:
    """Yield the training batches of the steps ``start`` to ``stop`` - 1.

    The batch of a step depends on nothing but the data, the seed and the step. Every epoch is a
    new permutation of the images; where it ends within a batch, the next one begins.

    Args:
        images, labels: uint8 (N, H, W, C) and (N,).
        batch_size: images a batch, at most N.
        seed: of the order and of the crops.
        start, stop: the range of steps; without end when ``stop`` is None.
        crop: side of the square that is cut out of each image; its own side when None.
        augment: cut at a random place, the image padded with black where ``crop`` is its own side,
            and flip one image in two; otherwise the centre is cut.
        partners: adversarial images that some images of each batch bring along.

    Returns:
        A dataset of (``Batch``, labels int32 (batch,)), the images (batch, crop, crop, C).

    Raises:
        InputError: a batch larger than the dataset, or a crop larger than the images.
    """
    size, height, width, channels = images.shape
    crop = crop or height
    check_batch_size(batch_size, size)
    if crop > min(height, width):
        raise InputError(f"{crop} exceeds the images' {height}x{width}", "crop")
    if augment and crop == height:
        margins = ((0, 0), (CIFAR_PADDING,) * 2, (CIFAR_PADDING,) * 2, (0, 0))
        images = np.pad(images, margins)
    elif not augment:
        images = centre_crop(images, crop)
    height, width = images.shape[1:3]
    # One row a pixel: a crop of each image is then a single gather.
    pixels = tf.constant(images.reshape(-1, channels))
    labels = tf.constant(labels, tf.int32)

    places = range(batch_size)
    with_partner = tf.constant([partners is not None and i in partners.rows for i in places])

    def crop_indices(step: tf.Tensor) -> tf.Tensor:
        if not augment:
            rows = columns = tf.range(crop)[None]
        else:
            top, left = draws.crops(seed, step, batch_size, height - crop + 1, width - crop + 1)
            flip = draws.flips(seed, step, batch_size)
            # Partners were crafted from centre crops, so their clean images are centre crops too.
            centred = with_partner[:, None]
            top = tf.where(centred, (height - crop) // 2, top)
            left = tf.where(centred, (width - crop) // 2, left)
            across = tf.range(crop)[None]
            across = tf.where(flip & ~centred, across[:, ::-1], across)
            rows, columns = top + tf.range(crop)[None], left + across
        return rows[:, :, None] * width + columns[:, None, :]

    def batch(step: tf.Tensor) -> tuple[Batch, tf.Tensor]:
        order = _order(step, batch_size, size, seed)
        if partners is not None:
            order = tf.where(with_partner, order % partners.examples, order)
        first_pixel = order[:, None, None] * (height * width)
        chosen = tf.gather(pixels, first_pixel + tf.cast(crop_indices(step), tf.int64))
        chosen.set_shape([batch_size, crop, crop, channels])
        chosen = tf.cast(chosen, tf.float32) / PIXEL_LEVELS
        adversarial = tf.zeros([0, crop, crop, channels], tf.uint8)
        if partners is not None:
            adversarial = partners.read(step, order[partners.rows.start : partners.rows.stop])
            adversarial.set_shape([len(partners.rows), crop, crop, channels])
        adversarial = tf.cast(adversarial, tf.float32) / PIXEL_LEVELS
        return Batch(chosen, step, adversarial), tf.gather(labels, order)

    steps = tf.data.Dataset.range(start, np.iinfo(np.int64).max if stop is None else stop)
    return steps.map(batch).prefetch(2)


def _order(step: tf.Tensor, batch_size: int, size: int, seed: int) -> tf.Tensor:
    """Return which images the batch of a step consists of, (batch,) int64."""
    positions = step * batch_size + tf.range(batch_size, dtype=tf.int64)
    epochs, places = positions // size, positions % size

    def shuffled(epoch: tf.Tensor) -> tf.Tensor:
        return draws.shuffled(places, size, seed, epoch)

    # A batch is no longer than an epoch, so it meets two permutations at most.
    return tf.where(epochs == epochs[0], shuffled(epochs[0]), shuffled(epochs[0] + 1))
