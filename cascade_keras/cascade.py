"""Cascade images: iterative adversarial images of defended networks (section 4.1 of the paper).

In a cascade network a share of the adversarial images of a batch, half of them in the paper, are
iter_fgsm images crafted from networks that are already trained, the sources; the others are the
network's own. Each cascade image draws its source and its epsilon,

    eps = min(floor(|N(0, max / 2)| clipped to max), max - 1) + 1,

a whole number of 1..max. They are either crafted within the training step ("online"), or read from
a bank that was crafted before (bank.py). Which is the cheaper is a matter of counting gradients.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import tensorflow as tf

from cascade_keras import attacks, draws
from cascade_keras.losses.specs import ROUNDING, cascade_count

_SAMPLE = 1 << 16  # draws of which the expected number of iterations is the mean


def bank_epsilons(max_epsilon: float) -> list[int]:
    """Return the epsilons that cascade images are drawn from: 1..floor(max_epsilon)."""
    return list(range(1, math.floor(max_epsilon) + 1))


def count_of(attacked: int | tf.Tensor, share: float) -> int | tf.Tensor:
    """Return ``losses.specs.cascade_count``, of a number that may be known only as a step runs."""
    if isinstance(attacked, int):
        return cascade_count(attacked, share)
    # In the same float64, so that both are equal.
    exact = tf.cast(attacked, tf.float64) * share + ROUNDING
    return tf.cast(tf.floor(exact), attacked.dtype)


def draw(
    seed: int, step: tf.Tensor, count: int, num_sources: int, max_epsilon: float, sampling: str
) -> tuple[tf.Tensor, tf.Tensor]:
    """Draw a source and an epsilon for each cascade image of a step.

    Args:
        seed, step: determine the draws.
        count: number of images.
        num_sources: sources are numbered from 0.
        max_epsilon: in 0..255 units, 1 or above.
        sampling: a name of ``draws.EPSILON_SAMPLINGS``.

    Returns:
        The numbers of the sources and the epsilons, whole numbers of 1..floor(max_epsilon): two
        int32 (count,).
    """
    keys = draws.cascade_keys(seed, step)
    source = draws.choices([count], keys.source, num_sources)
    drawn = draws.sample_epsilon(sampling, count, max_epsilon, keys.epsilon)
    epsilon = tf.minimum(tf.cast(drawn, tf.int32), math.floor(max_epsilon) - 1) + 1
    return source, epsilon


def craft(
    sources: Sequence[attacks.LogitsFn],
    images: tf.Tensor,
    labels: tf.Tensor,
    source: tf.Tensor,
    epsilon: tf.Tensor,
) -> tf.Tensor:
    """Return the iter_fgsm image of each image, by its own source and to its own epsilon.

    The gradients taken are just the sum of the images' own numbers of iterations.

    Args:
        sources: each images -> logits, in inference mode.
        images, labels: (batch, H, W, C) in [0, 1] and (batch,).
        source, epsilon: as ``draw`` returns them, (batch,).
    """
    epsilon = tf.cast(epsilon, images.dtype)
    crafted = images
    for number, logits_fn in enumerate(sources):
        rows = tf.where(source == number)
        own = (tf.gather_nd(operand, rows) for operand in (images, labels, epsilon))
        crafted = tf.tensor_scatter_nd_update(crafted, rows, attacks.iter_fgsm(logits_fn, *own))
    return crafted


def online_gradients(max_epsilon: float, sampling: str) -> float:
    """Return the mean number of gradients of a cascade image that is crafted online."""
    _, epsilon = draw(0, tf.constant(0), _SAMPLE, 1, max_epsilon, sampling)
    return float(np.mean(attacks.iterations(epsilon)))


def bank_gradients(max_epsilon: float) -> int:
    """Return the number of gradients of each image of a bank."""
    return attacks.ladder_gradients(bank_epsilons(max_epsilon))
