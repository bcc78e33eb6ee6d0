"""How far apart the outputs of pairs are: what losses make small, and guided attacks large.

Each is a function (one, other, weights) -> scalar of outputs (k, d), row by row partners, summed
over the pairs. ``DISTANCES`` has them by their names, which ``losses.specs.DISTANCES`` lists
without TensorFlow.
"""

from __future__ import annotations

from collections.abc import Callable

import tensorflow as tf

Distance = Callable[..., tf.Tensor]


def l1(one: tf.Tensor, other: tf.Tensor, weights: tf.Tensor | None = None) -> tf.Tensor:
    """Return sum_i w_i ||a_i - b_i||_1."""
    return _summed(tf.abs(one - other), weights)


def l2(one: tf.Tensor, other: tf.Tensor, weights: tf.Tensor | None = None) -> tf.Tensor:
    """Return sum_i w_i ||a_i - b_i||_2^2: the paper's."""
    return _summed(tf.square(one - other), weights)


def softmax(one: tf.Tensor, other: tf.Tensor, weights: tf.Tensor | None = None) -> tf.Tensor:
    """Return sum_i w_i ||softmax(a_i) - softmax(b_i)||_2^2, at most 2 for each pair.

    That of Sriramanan et al. (2020), there divided by the number of pairs.
    """
    return l2(tf.nn.softmax(one), tf.nn.softmax(other), weights)


def nuclear(one: tf.Tensor, other: tf.Tensor, weights: tf.Tensor | None = None) -> tf.Tensor:
    """Return the sum of the singular values of the matrix (k, d) of the differences a_i - b_i.

    It is of a batch as a whole: how far apart a pair is depends on the others. Weights multiply
    the rows. That of Sriramanan et al. (2021), there divided by the number of pairs.
    """
    apart = one - other
    return _nuclear_norm(apart if weights is None else weights[:, None] * apart)


DISTANCES: dict[str, Distance] = {"l2": l2, "l1": l1, "softmax": softmax, "nuclear": nuclear}


def _summed(apart: tf.Tensor, weights: tf.Tensor | None) -> tf.Tensor:
    return tf.reduce_sum(apart if weights is None else weights[:, None] * apart)


@tf.custom_gradient
def _nuclear_norm(matrix: tf.Tensor):
    values, left, right = tf.linalg.svd(matrix)
    # Where a value is 0 its directions are any, as at equal outputs: of all subgradients, the one
    # without them.
    least = 1e-6 * tf.reduce_max(tf.concat([values, tf.zeros([1], values.dtype)], axis=0))
    kept = tf.cast(values > least, matrix.dtype)

    def gradient(upstream):
        return upstream * tf.matmul(left * kept, right, transpose_b=True)

    return tf.reduce_sum(values), gradient
