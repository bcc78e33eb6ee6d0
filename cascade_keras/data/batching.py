"""Batches that are a pure function of (seed, step).

Cropping, flipping and the conversion to [0, 1] are done for a whole batch at a time in the graph.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple, Protocol

import numpy as np
import tensorflow as tf

from cascade_keras import draws
from cascade_keras.attacks.arguments import PIXEL_LEVELS
from cascade_keras.data.datasets import centre_crop
from cascade_keras.data.specs import AUGMENTS, Crop, sides_of
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
        """Return those of the centre crops of these images, (len(rows), h, w, C) uint8."""


def batches(
    images: np.ndarray,
    labels: np.ndarray,
    batch_size: int,
    *,
    seed: int,
    start: int = 0,
    stop: int | None = None,
    crop: Crop | None = None,
    augment: str | bool = "none",
    partners: Partners | None = None,
) -> tf.data.Dataset:
    """Yield the training batches of the steps ``start`` to ``stop`` - 1.

    The batch of a step depends on nothing but the data, the seed and the step. Every epoch is a
    new permutation of the images; where it ends within a batch, the next one begins.

    Args:
        images, labels: uint8 (N, H, W, C) and (N,); images that are a ``numpy.memmap`` stay on
            disk, and those of a batch are read when it is asked for.
        batch_size: images a batch, at most N.
        seed: of the order and of the crops.
        start, stop: the range of steps; without end when ``stop`` is None.
        crop: side of the square, or (height, width), that is cut out of each image; its own sides
            when None.
        augment: a row of ``AUGMENTS``; True is crop_flip. Cut at a random place, the image padded
            with black along the sides that ``crop`` keeps whole, and flip one image in two;
            otherwise the centre is cut.
        partners: adversarial images that some images of each batch bring along.

    Returns:
        A dataset of (``Batch``, labels int32 (batch,)), the images (batch, h, w, C).

    Raises:
        InputError: a batch larger than the dataset, or a crop larger than the images.
    """
    size, height, width, channels = images.shape
    rows, columns = sides_of(crop or (height, width))
    check_batch_size(batch_size, size)
    if rows > height or columns > width:
        raise InputError(f"{crop} exceeds the images' {height}x{width}", "crop")
    chosen = {True: "crop_flip", False: "none"}.get(augment, augment)
    random_crop, random_flip = AUGMENTS[chosen].crop, AUGMENTS[chosen].flip
    margins = [CIFAR_PADDING * (random_crop and crop == own)
               for crop, own in ((rows, height), (columns, width))]  # fmt: skip
    read = _on_disk if isinstance(images, np.memmap) else _in_memory
    pixels_of = read(images, margins, None if random_crop else (rows, columns))
    height, width = height + 2 * margins[0], width + 2 * margins[1]
    if not random_crop:
        height, width = rows, columns
    labels = tf.constant(labels, tf.int32)

    places = range(batch_size)
    with_partner = tf.constant([partners is not None and i in partners.rows for i in places])

    def crop_indices(step: tf.Tensor) -> tf.Tensor:
        down, across = tf.range(rows)[None], tf.range(columns)[None]
        if not random_crop and not random_flip:
            return down[:, :, None] * width + across[:, None, :]
        # Partners were crafted from centre crops, so their clean images are centre crops too.
        centred = with_partner[:, None]
        if random_crop:
            top, left = draws.crops(seed, step, batch_size, height - rows + 1, width - columns + 1)
            top = tf.where(centred, (height - rows) // 2, top)
            left = tf.where(centred, (width - columns) // 2, left)
        else:
            top = left = tf.zeros([batch_size, 1], tf.int32)
        if random_flip:
            flip = draws.flips(seed, step, batch_size)
            across = tf.where(flip & ~centred, across[:, ::-1], across)
        return (top + down)[:, :, None] * width + (left + across)[:, None, :]

    def batch(step: tf.Tensor) -> tuple[Batch, tf.Tensor]:
        order = _order(step, batch_size, size, seed)
        if partners is not None:
            order = tf.where(with_partner, order % partners.examples, order)
        pixels, first_pixel = pixels_of(order)
        chosen = tf.gather(pixels, first_pixel + tf.cast(crop_indices(step), tf.int64))
        chosen.set_shape([batch_size, rows, columns, channels])
        chosen = tf.cast(chosen, tf.float32) / PIXEL_LEVELS
        adversarial = tf.zeros([0, rows, columns, channels], tf.uint8)
        if partners is not None:
            adversarial = partners.read(step, order[partners.rows.start : partners.rows.stop])
            adversarial.set_shape([len(partners.rows), rows, columns, channels])
        adversarial = tf.cast(adversarial, tf.float32) / PIXEL_LEVELS
        return Batch(chosen, step, adversarial), tf.gather(labels, order)

    steps = tf.data.Dataset.range(start, np.iinfo(np.int64).max if stop is None else stop)
    return steps.map(batch).prefetch(2)


def _prepared(images: np.ndarray, margins: Sequence[int], centre: Crop | None) -> np.ndarray:
    """Return images padded with black, or their centres where that is all that is needed."""
    if centre is not None:
        return centre_crop(images, centre)
    if any(margins):
        return np.pad(images, ((0, 0), *((margin,) * 2 for margin in margins), (0, 0)))
    return images


def _in_memory(images: np.ndarray, margins: Sequence[int], centre: Crop | None):
    """Return what gives the pixels of a batch: all there are, and where each image's begin."""
    images = _prepared(images, margins, centre)
    _, height, width, channels = images.shape
    # One row a pixel: a crop of each image is then a single gather.
    pixels = tf.constant(images.reshape(-1, channels))
    return lambda order: (pixels, order[:, None, None] * (height * width))


def _on_disk(images: np.memmap, margins: Sequence[int], centre: Crop | None):
    """Return the same for images that are read batch by batch."""

    def read(order: np.ndarray) -> np.ndarray:
        # In the order of the file, which a disk reads faster.
        there, place = np.unique(order, return_inverse=True)
        found = _prepared(np.asarray(images[there])[place], margins, centre)
        return np.ascontiguousarray(found).reshape(-1, images.shape[3])

    one = _prepared(np.zeros((1, *images.shape[1:]), np.uint8), margins, centre)
    each = one.shape[1] * one.shape[2]

    def pixels_of(order: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        pixels = tf.numpy_function(read, [order], tf.uint8, stateful=False)
        pixels.set_shape([None, images.shape[3]])
        return pixels, tf.range(tf.size(order, tf.int64))[:, None, None] * each

    return pixels_of


def _order(step: tf.Tensor, batch_size: int, size: int, seed: int) -> tf.Tensor:
    """Return which images the batch of a step consists of, (batch,) int64."""
    positions = step * batch_size + tf.range(batch_size, dtype=tf.int64)
    epochs, places = positions // size, positions % size

    def shuffled(epoch: tf.Tensor) -> tf.Tensor:
        return draws.shuffled(places, size, seed, epoch)

    # A batch is no longer than an epoch, so it meets two permutations at most.
    return tf.where(epochs == epochs[0], shuffled(epochs[0]), shuffled(epochs[0] + 1))
