"""Batches that are a pure function of (seed, step).

Cropping, flipping and the conversion to [0, 1] are done for a whole batch at a time in the graph.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple, Protocol

import numpy as np
import tensorflow as tf

from cascade_keras import draws
from cascade_keras.attacks.arguments import PIXEL_LEVELS
from cascade_keras.data.datasets import centre_crop
from cascade_keras.data.specs import AUGMENTS, Crop, sides_of
from cascade_keras.errors import InputError
from cascade_keras.replicas import Part

CIFAR_PADDING = 4  # He et al.: 32x32 crops of the image padded to 40x40


class Batch(NamedTuple):
    """The images of a training step, and what else belongs to it.

    Attributes:
        images: float32 (batch, H, W, C) in [0, 1].
        step: the number of batches before this one, a scalar int64: the clock of the training,
            from which all of the step's draws follow.
        cascade: float32 (c, H, W, C), adversarial images made beforehand, of the last c of the
            images that are attacked; c = 0, or None, where there are none.
        part: which part of the step's batch these are, where several replicas share it.
    """

    images: tf.Tensor
    step: tf.Tensor
    cascade: tf.Tensor | None
    part: Part | None = None


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

    def read(
        self, step: tf.Tensor, indices: tf.Tensor, taken: tf.Tensor | None = None
    ) -> tf.Tensor:
        """Return those of the centre crops of these images, (n, h, w, C) uint8.

        Args:
            step: of the batch.
            indices: of the images in the dataset, (n,).
            taken: which of ``rows`` they are, (n,); all of them where None.
        """


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
    held_out: np.ndarray | None = None,
    replicas: range | None = None,
    of_replicas: int = 1,
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
        held_out: indices of images that no batch has, see ``draws.held_out``; an epoch is a
            permutation of the others.
        replicas: yield for each step the parts of these replicas, one after the other, of
            ``of_replicas`` that share each batch; the whole batch where None. Replica r has the
            images r, r + n, r + 2n, ..., so that all have as many of each kind, about.
        of_replicas: how many there are, n, at most ``batch_size``.

    Returns:
        A dataset of (``Batch``, labels int32 (batch,)), the images (batch, h, w, C).

    Raises:
        InputError: a batch larger than the dataset, or a crop larger than the images, or no image
            left that has a partner.
    """
    size, height, width, channels = images.shape
    rows, columns = sides_of(crop or (height, width))
    trained = np.setdiff1d(np.arange(size), () if held_out is None else held_out)
    size = len(trained)
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

    place_of = None if size == len(images) else tf.constant(trained, tf.int64)
    # How many of those that are trained on have a partner: the first ones.
    brought = 0 if partners is None else int(np.searchsorted(trained, partners.examples))
    if partners is not None and not brought:
        raise InputError("all images that have a partner are held out", "bank_examples")
    places = range(batch_size)
    with_partner = tf.constant([partners is not None and i in partners.rows for i in places])

    def crop_indices(step: tf.Tensor, of_part: Callable = _whole) -> tf.Tensor:
        down, across = tf.range(rows)[None], tf.range(columns)[None]
        if not random_crop and not random_flip:
            return down[:, :, None] * width + across[:, None, :]
        # Partners were crafted from centre crops, so their clean images are centre crops too.
        centred = of_part(with_partner)[:, None]
        if random_crop:
            drawn = draws.crops(seed, step, batch_size, height - rows + 1, width - columns + 1)
            top, left = map(of_part, drawn)
            top = tf.where(centred, (height - rows) // 2, top)
            left = tf.where(centred, (width - columns) // 2, left)
        else:
            top = left = tf.zeros([tf.shape(centred)[0], 1], tf.int32)
        if random_flip:
            flip = of_part(draws.flips(seed, step, batch_size))
            across = tf.where(flip & ~centred, across[:, ::-1], across)
        return (top + down)[:, :, None] * width + (left + across)[:, None, :]

    def shown(order: tf.Tensor, crop: tf.Tensor, count: int | None) -> tf.Tensor:
        pixels, first_pixel = pixels_of(order)
        chosen = tf.gather(pixels, first_pixel + tf.cast(crop, tf.int64))
        chosen.set_shape([count, rows, columns, channels])
        return tf.cast(chosen, tf.float32) / PIXEL_LEVELS

    def adversarial(read: Callable[[], tf.Tensor], count: int | None) -> tf.Tensor:
        images = tf.zeros([0, rows, columns, channels], tf.uint8)
        if partners is not None:
            images = read()
            images.set_shape([count, rows, columns, channels])
        return tf.cast(images, tf.float32) / PIXEL_LEVELS

    def order_of(step: tf.Tensor) -> tf.Tensor:
        order = _order(step, batch_size, size, seed)
        if partners is not None:
            order = tf.where(with_partner, order % brought, order)
        return order if place_of is None else tf.gather(place_of, order)

    def batch(step: tf.Tensor) -> tuple[Batch, tf.Tensor]:
        order = order_of(step)
        chosen = shown(order, crop_indices(step), batch_size)
        crafted = adversarial(
            lambda: partners.read(step, order[partners.rows.start : partners.rows.stop]),
            partners and len(partners.rows),
        )
        return Batch(chosen, step, crafted), tf.gather(labels, order)

    def part(number: tf.Tensor) -> tuple[Batch, tf.Tensor]:
        """Return the rows of a replica: those of the whole batch, of which it makes its own."""
        step, replica = number // len(replicas), number % len(replicas)
        own = tf.range(replicas.start + tf.cast(replica, tf.int32), batch_size, of_replicas)
        count = None if batch_size % of_replicas else batch_size // of_replicas
        own.set_shape([count])
        order = tf.gather(order_of(step), own)

        def of_part(values: tf.Tensor) -> tf.Tensor:
            return tf.gather(values, own)

        def read() -> tf.Tensor:
            bring = of_part(with_partner)
            taken = tf.boolean_mask(own, bring) - partners.rows.start
            return partners.read(step, tf.boolean_mask(order, bring), taken)

        chosen = shown(order, crop_indices(step, of_part), count)
        crafted = 0 if partners is None else len(partners.rows)
        where = Part(own, tf.constant(batch_size), tf.constant(crafted))
        return Batch(chosen, step, adversarial(read, None), where), tf.gather(labels, order)

    stop = np.iinfo(np.int64).max // max(1, len(replicas or ())) if stop is None else stop
    if replicas is None:
        return tf.data.Dataset.range(start, stop).map(batch).prefetch(2)
    check_replicas(of_replicas, batch_size)
    each = len(replicas)
    numbers = tf.data.Dataset.range(start * each, stop * each)
    return numbers.map(part).prefetch(2 * each)


def shared_batches(
    strategy: tf.distribute.Strategy,
    images: np.ndarray,
    labels: np.ndarray,
    batch_size: int,
    **options,
) -> tf.data.Dataset | tf.distribute.DistributedDataset:
    """Yield the batches of ``batches`` to the replicas of a strategy, which share each batch.

    With one replica these are ``batches``; ``options`` are theirs. Every worker makes the order of
    all images and of those takes its own.

    Raises:
        InputError: as ``batches``, or fewer images a batch than there are replicas.
    """
    count = strategy.num_replicas_in_sync
    if count == 1:
        return batches(images, labels, batch_size, **options)

    def of_worker(context: tf.distribute.InputContext) -> tf.data.Dataset:
        each = count // context.num_input_pipelines
        first = each * context.input_pipeline_id
        own = range(first, first + each)
        return batches(images, labels, batch_size, replicas=own, of_replicas=count, **options)

    return strategy.distribute_datasets_from_function(of_worker)


def check_replicas(of_replicas: int, batch_size: int) -> None:
    """Raise InputError if a batch has fewer clean images than there are replicas."""
    if of_replicas > batch_size:
        raise InputError(
            f"{batch_size} clean images a batch do not suffice for {of_replicas} replicas",
            "batch_size",
        )


def _whole(values: tf.Tensor) -> tf.Tensor:
    return values


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
