"""What searches for misclassified images share: an image that falls leaves, and passes are counted.

A search of one epsilon is a function ``search(logits_fn, images, labels, epsilon, keys, ...)`` that
returns ``Found``; ``ascending`` makes one of several epsilons of it. What an image becomes depends
on no other image of its batch: its random numbers are those of its own key. No network is given an
empty batch, at which TensorFlow's max pooling ends the process.

XLA needs shapes that are known in advance. A search that is traced ``in_whole_batches`` finds the
same, but an image that falls stays in its batch, where it counts no more.
"""

from __future__ import annotations

import contextlib
import contextvars
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple, TypeAlias

import numpy as np
import tensorflow as tf

from cascade_keras.attacks.arguments import PIXEL_LEVELS
from cascade_keras.attacks.objectives import LogitsFn, full_precision
from cascade_keras.errors import InputError, shown


class Found(NamedTuple):
    """What a search has found for each image of a batch, perhaps for several epsilons.

    Attributes:
        images: float32 (batch, H, W, C) in [0, 1]: one that is misclassified, where there is one;
            elsewhere the best that the search has seen.
        fooled: whether the image is misclassified, bool (batch,); where several passes of a network
            that draws random numbers were taken, by more than half of them.
        gradients: how many forward passes with a backward pass each image took, int32 (batch,).
        forwards: how many forward passes alone, int32 (batch,).
    """

    images: tf.Tensor
    fooled: tf.Tensor
    gradients: tf.Tensor
    forwards: tf.Tensor


class Broken(NamedTuple):
    """What a suite has found of a batch at each of its epsilons, arrays.

    Attributes:
        images: float32 (epsilons, batch, H, W, C) in [0, 1].
        stages: which of its stages broke an image, int8 (epsilons, batch): see
            ``specs.stage_names``.
        gradients, forwards: passes that each image took, as in ``Found``, int32 (epsilons, batch);
            what serves several epsilons is counted at the smallest.
    """

    images: np.ndarray
    stages: np.ndarray
    gradients: np.ndarray
    forwards: np.ndarray


def misclassified(logits: tf.Tensor, labels: tf.Tensor) -> tf.Tensor:
    """Return whose largest logit is not that of the label, or is no finite number, (batch,)."""
    logits = full_precision(logits)
    wrong = tf.argmax(logits, axis=-1, output_type=tf.int32) != tf.cast(labels, tf.int32)
    return wrong | ~tf.reduce_all(tf.math.is_finite(logits), axis=-1)


def radius(epsilon, dtype: tf.DType) -> tf.Tensor:
    """Return a scalar epsilon / 255 as the division of this type rounds it."""
    # In float64: of a division by 255 optimisers of graphs make a product that rounds otherwise.
    return tf.cast(tf.cast(epsilon, tf.float64) / PIXEL_LEVELS, dtype)


def bounds(images: tf.Tensor, epsilon) -> tuple[tf.Tensor, tf.Tensor]:
    """Return the lowest and the highest values of images in the ball of a scalar epsilon.

    Those of the ball and of [0, 1]: clipped to these last, an image is in both.
    """
    reach = radius(epsilon, images.dtype)
    return tf.maximum(images - reach, 0.0), tf.minimum(images + reach, 1.0)


def each_pixel(numbers: tf.Tensor) -> tf.Tensor:
    """Return a number an image, (n,), in a shape that broadcasts against images."""
    return numbers[:, tf.newaxis, tf.newaxis, tf.newaxis]


class Masked(NamedTuple):
    """Rows of a batch that all stay in it, while those of the mask alone count, bool (batch,)."""

    mask: tf.Tensor


Rows: TypeAlias = tf.Tensor | Masked  # their numbers, int64 (n,), unless the batch stays whole
_whole = contextvars.ContextVar("searches are traced in whole batches", default=False)


@contextlib.contextmanager
def in_whole_batches() -> Iterator[None]:
    """Within: searches are traced without shapes that depend on how a search goes."""
    token = _whole.set(True)
    try:
        yield
    finally:
        _whole.reset(token)


def rows_where(mask: tf.Tensor) -> Rows:
    """Return the rows of a batch where a mask (batch,) is True."""
    return Masked(mask) if _whole.get() else tf.where(mask)[:, 0]


def rows_among(rows: Rows, mask: tf.Tensor) -> Rows:
    """Return those of rows where a mask, of what ``rows_of`` gives of these, is True."""
    if isinstance(rows, Masked):
        return Masked(rows.mask & mask)
    return tf.gather(rows, tf.where(mask)[:, 0])


def are_some(rows: Rows) -> tf.Tensor:
    """Return whether there is any row."""
    return tf.reduce_any(rows.mask) if isinstance(rows, Masked) else tf.size(rows) > 0


def rows_of(rows: Rows, parts):
    """Return the rows of a tensor, or of all tensors of a structure: all of them where masked."""
    if isinstance(rows, Masked):
        return parts
    return tf.nest.map_structure(lambda part: tf.gather(part, rows), parts)


def put(whole, rows: Rows, parts):
    """Return a tensor, or a structure of them, with these rows replaced."""
    if isinstance(rows, Masked):
        return tf.nest.map_structure(
            lambda old, new: tf.where(
                tf.reshape(rows.mask, [-1, *[1] * (old.shape.rank - 1)]), new, old
            ),
            whole,
            parts,
        )
    places = rows[:, tf.newaxis]
    return tf.nest.map_structure(
        lambda old, new: tf.tensor_scatter_nd_update(old, places, new), whole, parts
    )


def untouched(logits_fn: LogitsFn, images: tf.Tensor, labels: tf.Tensor, passes: int = 1) -> Found:
    """Return what is known before a search: whose clean image is misclassified already.

    Args:
        passes: of a network that draws random numbers: what all of them misclassify.
    """
    none = tf.zeros([tf.shape(images)[0]], tf.int32)

    def another(number, wrong):
        return number + 1, wrong & misclassified(logits_fn(images), labels)

    wrong = misclassified(logits_fn(images), labels)
    if passes > 1:
        _, wrong = tf.while_loop(lambda number, _: number < passes, another, (1, wrong))
    return Found(images, wrong, none, none + passes)


def ascending(
    search: Callable[..., Found],
    logits_fn: LogitsFn,
    images: tf.Tensor,
    labels: tf.Tensor,
    epsilons: Sequence[float],
    keys: tf.Tensor,
    **options,
) -> Found:
    """Search at several epsilons, from the smallest on.

    An image that falls at one stands for all larger ones, which then take no pass: more epsilon
    never leaves more images. One that is misclassified when clean is not searched for; where a
    search takes several passes for a step, ``average``, by all of so many.

    Args:
        search: of one epsilon: ``search(logits_fn, images, labels, epsilon, keys, **options)``,
            given only images that stand, at least one, with a scalar epsilon above 0.
        epsilons: numbers, in 0..255 units, in any order.
        keys: of the images, (batch, 2) int32; see ``draws.image_keys``.

    Returns:
        ``Found`` with a leading axis in the order of ``epsilons``; the one forward pass of the
        clean images is counted at the smallest.

    Raises:
        InputError: an epsilon that is no number known by now.
    """
    values = [_number(epsilon) for epsilon in epsilons]
    sizes = sorted(set(values))
    clean = untouched(logits_fn, images, labels, options.get("average", 1))
    arrays = Found(*(tf.TensorArray(part.dtype, len(sizes)) for part in clean))

    def step(number, last, kept):
        epsilon = tf.gather(tf.constant(sizes, images.dtype), number)
        rows = tf.where(~last.fooled & (epsilon > 0))[:, 0]
        # Passes are of this epsilon; those that have fallen take none.
        before = last._replace(
            gradients=tf.zeros_like(last.gradients),
            forwards=tf.where(number == 0, last.forwards, 0),
        )

        def searched() -> Found:
            given = rows_of(rows, (images, labels, keys))
            new = search(logits_fn, given[0], given[1], epsilon, given[2], **options)
            spent = new.forwards + tf.gather(before.forwards, rows)
            return put(before, rows, new._replace(forwards=spent))

        found = tf.cond(tf.size(rows) > 0, searched, lambda: before)
        kept = Found(*(array.write(number, part) for array, part in zip(kept, found, strict=True)))
        return number + 1, found, kept

    *_, kept = tf.while_loop(
        lambda number, *_: number < len(sizes), step, (tf.constant(0), clean, arrays)
    )
    order = [sizes.index(value) for value in values]
    return Found(*(tf.gather(array.stack(), order) for array in kept))


def _number(epsilon) -> float:
    try:
        return float(epsilon)
    except TypeError as error:
        raise InputError(
            f"must be one number for all images of this attack, got {shown(epsilon)}", "epsilon"
        ) from error
