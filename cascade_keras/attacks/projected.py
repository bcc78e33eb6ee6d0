"""Projected gradient descent from random starts (Madry et al., 2018)."""

from __future__ import annotations

from collections.abc import Callable

import tensorflow as tf

from cascade_keras import draws
from cascade_keras.attacks.iterative import _climb
from cascade_keras.attacks.objectives import (
    PIXEL_LEVELS,
    LogitsFn,
    Objective,
    cross_entropy,
    margin,
)
from cascade_keras.attacks.steps import per_image


def pgd(
    logits_fn: LogitsFn,
    images: tf.Tensor,
    labels: tf.Tensor,
    epsilon,
    *,
    seed,
    steps: int = 40,
    step_size=None,
    restarts: int = 1,
    random_start: bool = True,
    objective: Callable[[tf.Tensor], Objective] = cross_entropy,
) -> tf.Tensor:
    """Projected gradient descent: sign steps away from the true class from random starts.

    Of several starts an image keeps the first result that is misclassified, else the one with the
    largest margin; images that are misclassified already are not attacked again.

    Args:
        logits_fn, images, labels, epsilon: as for ``step_fgsm``.
        seed: two integers; the same seed gives the same starts.
        steps: of each start.
        step_size: in 0..255 units; 2.5 epsilon / steps when None, so that every corner of the ball
            can be reached from any other.
        restarts: number of starts.
        random_start: uniform in the epsilon ball; otherwise from the image itself.
        objective: what is ascended: ``cross_entropy``, ``margin`` or ``dlr``.

    Raises:
        ValueError: fewer than one step or start, or several starts that are not random.
    """
    if steps < 1 or restarts < 1:
        raise ValueError(f"steps and restarts must be 1 or above, got {steps} and {restarts}")
    if restarts > 1 and not random_start:
        raise ValueError("several restarts need random_start: they would all give the same images")
    images = tf.convert_to_tensor(images)
    radius = per_image(epsilon, images)
    pixels = images * PIXEL_LEVELS
    stride = 2.5 * radius / steps if step_size is None else per_image(step_size, images)
    everywhere = tf.ones_like(images)

    def attack(number: tf.Tensor, rows: tf.Tensor) -> tf.Tensor:
        start = None
        if random_start:
            # Drawn for all images, so that none depends on which others are still attacked.
            start = draws.start(images, seed, number)
            start = tf.clip_by_value(start * radius, -pixels, PIXEL_LEVELS - pixels)
            start = tf.gather(start, rows)
        return _climb(
            logits_fn,
            tf.gather(images, rows),
            tf.gather(labels, rows),
            objective,
            [tf.gather(radius * everywhere, rows)],
            tf.gather(stride * everywhere, rows),
            steps,
            start,
        )[0]

    def restart(number, best, margins):
        rows = tf.where(margins <= 0)
        found = attack(number, rows[:, 0])
        reached = margin(tf.gather(labels, rows[:, 0]))(logits_fn(found))
        gains = reached > tf.gather_nd(margins, rows)
        best = tf.tensor_scatter_nd_update(best, rows[gains], found[gains])
        margins = tf.tensor_scatter_nd_update(margins, rows[gains], reached[gains])
        return number + 1, best, margins

    nothing_yet = tf.fill([tf.shape(images)[0]], images.dtype.min)
    *_, best, _ = tf.while_loop(
        lambda number, best, margins: (number < restarts) & tf.reduce_any(margins <= 0),
        restart,
        (tf.constant(0), images, nothing_yet),
    )
    return tf.stop_gradient(best)
