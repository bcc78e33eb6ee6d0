"""The square attack (Andriushchenko et al., 2020): random search, no gradient at all.

The perturbation is a corner of the ball throughout: every value is at its lowest or its highest. It
starts as vertical stripes; each query proposes one square of each image, all of it at one corner of
the ball a channel, and keeps it where the margin of the true class shrinks. Squares become smaller
as queries go by. A network whose gradients mislead, or that has none, hides nothing from it.
"""

from __future__ import annotations

from typing import NamedTuple

import tensorflow as tf

from cascade_keras import draws
from cascade_keras.attacks import specs
from cascade_keras.attacks.entry import entry
from cascade_keras.attacks.epsilons import at_epsilon
from cascade_keras.attacks.margins import margin
from cascade_keras.attacks.objectives import LogitsFn, over_members
from cascade_keras.attacks.searches import (
    Found,
    ascending,
    bounds,
    misclassified,
    put,
    rows_among,
    rows_of,
    rows_where,
)

QUERIES = 5000
LARGEST = 0.8  # share of the image that the first squares cover
# The share is halved after so many squares; the published schedule of 10,000 queries, which the
# standard version of AutoAttack follows as far as its 5,000 go.
HALVED_AFTER = (10, 50, 200, 500, 1000, 2000, 4000, 6000, 8000)
_BLOCK = 250  # squares of an image whose random numbers are drawn together


@entry
def square(
    logits_fn: LogitsFn,
    images: tf.Tensor,
    labels: tf.Tensor,
    epsilon: float,
    *,
    seed,
    queries: int = QUERIES,
) -> tf.Tensor:
    """The square attack: random squares inside the epsilon ball, the network's outputs alone.

    An image is done as soon as it is misclassified, and is not given to the network any more. What
    it becomes follows from its own random numbers, so from no other image of the batch.

    Args:
        logits_fn, images, labels: as for ``iter_fgsm``; no gradient is ever taken.
        epsilon: one number, in 0..255 units.
        seed: one integer or two, or a key for each image, see ``draws.image_keys``.
        queries: forward passes of an image at most.

    Returns:
        As ``images``: misclassified ones where the search found any; elsewhere those of the
        smallest margin. Images that are misclassified already are returned as they are.

    Raises:
        InputError: no query.
    """
    return at_epsilon("square", logits_fn, images, labels, epsilon, seed=seed, queries=queries)


def nested(logits_fn: LogitsFn, images, labels, epsilons, keys, *, queries: int = QUERIES) -> Found:
    """Search at several epsilons, see ``searches.ascending`` and ``square``."""
    specs.check_options("square", {"queries": queries})
    return ascending(search, logits_fn, images, labels, epsilons, keys, queries=int(queries))


def side_of(number, height, width) -> tf.Tensor:
    """Return the side of square ``number``, from 0 on, in images of this size, int32."""
    halvings = tf.reduce_sum(tf.cast(number > tf.constant(HALVED_AFTER), tf.float32))
    share = LARGEST * 0.5**halvings
    side = tf.cast(tf.round(tf.sqrt(share * tf.cast(height * width, tf.float32))), tf.int32)
    # Squares of the first size are higher than a flat image.
    return tf.clip_by_value(side, 1, tf.minimum(height, width))


class _State(NamedTuple):
    """Of each image: the best so far, the true class' margin there, and what ``Found`` tells."""

    bright: tf.Tensor  # which values are at their highest, bool: a quarter of the image's memory
    margins: tf.Tensor  # float64, which holds the differences of any network's logits exactly
    fooled: tf.Tensor
    forwards: tf.Tensor


def search(
    logits_fn: LogitsFn,
    images: tf.Tensor,
    labels: tf.Tensor,
    epsilon: tf.Tensor,
    keys: tf.Tensor,
    *,
    queries: int = QUERIES,
) -> Found:
    """Search at one epsilon for images that stand.

    Args:
        logits_fn: images -> logits (batch, classes).
        images: floats in [0, 1], (batch, H, W, C).
        labels: the true classes, int32 (batch,).
        epsilon: a scalar above 0, in 0..255 units.
        keys: of the images, (batch, 2).
        queries: forward passes of an image at most, its first stripes among them.
    """
    low, high = bounds(images, epsilon)
    count, height, width, channels = (
        known if known is not None else tf.shape(images)[axis]
        for axis, known in enumerate(images.shape)
    )

    def shown_to_network(made, classes):
        logits = logits_fn(made)
        harm = over_members(lambda own: margin(classes)(tf.cast(own, tf.float64)))
        return -harm(logits), misclassified(logits, classes)

    def step(number, last: _State, inputs):
        rows = rows_where(~last.fooled)
        best, (classes, lowest, highest, numbers) = rows_of(rows, (last.bright, inputs))
        numbers = numbers[:, number % _BLOCK]
        inside = _square_at(numbers[:, :2], number, height, width)
        made = tf.where(inside, (numbers[:, 2:] >= 0.5)[:, tf.newaxis, tf.newaxis], best)
        # Where that is what the network has been shown already, the other corner.
        same = tf.reduce_all(made == best, axis=[1, 2, 3], keepdims=True)
        made ^= inside & same
        margins, fooled = shown_to_network(tf.where(made, highest, lowest), classes)
        better = fooled | (margins < rows_of(rows, last.margins))
        chosen, kept = rows_where(better), rows_among(rows, better)
        return number + 1, _State(
            put(last.bright, kept, rows_of(chosen, made)),
            put(last.margins, kept, rows_of(chosen, margins)),
            put(last.fooled, rows, fooled),
            last.forwards + tf.cast(~last.fooled, tf.int32),
        )

    def block(number, last: _State):
        rows = rows_where(~last.fooled)
        given = rows_of(rows, (labels, low, high))
        numbers = _uniform(rows_of(rows, keys), 1 + number // _BLOCK, [_BLOCK, 2 + channels])
        inputs = (*given, numbers)
        end = tf.minimum(number + _BLOCK, queries - 1)
        number, state = tf.while_loop(
            lambda n, state: (n < end) & ~tf.reduce_all(state.fooled),
            lambda n, state: step(n, state, inputs),
            (number, rows_of(rows, last)),
        )
        return number, put(last, rows, state)

    striped = tf.repeat(_uniform(keys, 0, [1, width, channels]) >= 0.5, height, axis=1)
    margins, fooled = shown_to_network(tf.where(striped, high, low), labels)
    start = _State(striped, margins, fooled, tf.ones([count], tf.int32))
    _, found = tf.while_loop(
        lambda number, state: (number < queries - 1) & ~tf.reduce_all(state.fooled),
        block,
        (tf.constant(0), start),
    )
    best = tf.where(found.bright, high, low)
    return Found(best, found.fooled, tf.zeros_like(found.forwards), found.forwards)


def _uniform(keys: tf.Tensor, number, shape) -> tf.Tensor:
    """Return uniform numbers of [0, 1) for each image, float32 (batch, *shape)."""
    return draws.of_images(draws.uniform_of, keys, number, shape, 0.0, 1.0)


def _square_at(numbers: tf.Tensor, number, height, width) -> tf.Tensor:
    """Return where each image's square is, bool (batch, H, W, 1): anywhere that it fits.

    Args:
        numbers: where, (batch, 2), uniform on [0, 1): from top to bottom and from left to right.
        number: of the square, from which its side follows.
    """
    side = side_of(number, height, width)

    def within(shares, size):
        room = tf.cast(size - side + 1, tf.float32)
        # The product may round up to all of the room.
        first = tf.minimum(tf.cast(shares * room, tf.int32), size - side)[:, tf.newaxis]
        return (tf.range(size) >= first) & (tf.range(size) < first + side)

    down, right = within(numbers[:, 0], height), within(numbers[:, 1], width)
    return (down[:, :, tf.newaxis] & right[:, tf.newaxis])[..., tf.newaxis]
