"""Projected gradient descent from random starts (Madry et al., 2018).

Not in the paper, and stronger: the steps of ``iter_fgsm``, more of them, from several random
starts, on a loss that does not saturate, and the worst image of all starts.
"""

from __future__ import annotations

from collections.abc import Callable

import tensorflow as tf

from cascade_keras import draws
from cascade_keras.attacks.arguments import PIXEL_LEVELS, as_images, as_seed, per_image
from cascade_keras.attacks.entry import entry
from cascade_keras.attacks.iterative import climb
from cascade_keras.attacks.margins import margin
from cascade_keras.attacks.objectives import LogitsFn, Objective, full_precision
from cascade_keras.attacks.searches import Rows, put, rows_among, rows_of, rows_where


@entry
def pgd(
    logits_fn: LogitsFn,
    images: tf.Tensor,
    labels: tf.Tensor,
    epsilon,
    *,
    seed,
    steps: int = 40,
    step_size=None,
    restarts: int = 5,
    random_start: bool = True,
    objective: str | Callable[[tf.Tensor], Objective] = margin,
) -> tf.Tensor:
    """Projected gradient descent: sign steps away from the true class from random starts.

    Of several starts an image keeps the first result that is misclassified, else the one with the
    largest margin; images that are misclassified already are not attacked again.

    Args:
        logits_fn, images, labels, epsilon: as for ``iter_fgsm``.
        seed: one integer or two; the same seed gives the same starts.
        steps: of each start.
        step_size: in 0..255 units; 2.5 epsilon / steps when None, so that every corner of the ball
            can be reached from any other.
        restarts: number of starts.
        random_start: uniform in the epsilon ball; otherwise one, from the image itself.
        objective: what is ascended, as for ``step_fgsm``; the largest margin of all starts counts.

    Raises:
        ValueError: fewer than one step or start.
    """
    if steps < 1 or restarts < 1 or steps != int(steps) or restarts != int(restarts):
        raise ValueError(
            f"steps and restarts must be whole numbers of 1 or above, got {steps} and {restarts}"
        )
    images, seed = as_images(images), as_seed(seed)
    everywhere = tf.ones_like(images)
    radius = per_image(epsilon, images) * everywhere
    stride = 2.5 * radius / steps
    if step_size is not None:
        stride = per_image(step_size, images, "step_size") * everywhere

    def attack(number: tf.Tensor, rows: Rows) -> tf.Tensor:
        start = tf.zeros_like(images)
        if random_start:
            # Drawn for all images, so that none depends on which others are still attacked.
            start = start_in(images, radius, seed, number)
        some, own, inside, alpha, start = rows_of(rows, (images, labels, radius, stride, start))
        return climb(logits_fn, some, own, inside, objective, alpha, steps, start)

    def restart(number, best, margins):
        rows = rows_where(margins <= 0)
        found = attack(number, rows)
        logits = full_precision(logits_fn(found))
        # In float64, which holds the margins of any network's logits exactly.
        reached = tf.cast(margin(rows_of(rows, labels))(logits), tf.float64)
        gains = reached > rows_of(rows, margins)
        chosen, places = rows_where(gains), rows_among(rows, gains)
        best = put(best, places, rows_of(chosen, found))
        return number + 1, best, put(margins, places, rows_of(chosen, reached))

    starts = restarts if random_start else 1  # from the image itself, all would be the same
    nothing_yet = tf.fill([tf.shape(images)[0]], tf.float64.min)
    *_, best, _ = tf.while_loop(
        lambda number, best, margins: (number < starts) & tf.reduce_any(margins <= 0),
        restart,
        (tf.constant(0), images, nothing_yet),
    )
    return tf.stop_gradient(best)


def start_in(images: tf.Tensor, radius, seed, number) -> tf.Tensor:
    """Return a random perturbation of each image, uniform in its ball, that leaves it an image.

    Args:
        images: (batch, H, W, C) in [0, 1].
        radius: in 0..255 units, as the perturbation is; of any shape that broadcasts.
        seed: two integers.
        number: of the start.
    """
    pixels = images * PIXEL_LEVELS
    start = draws.start(images, seed, number) * radius
    return tf.clip_by_value(start, -pixels, PIXEL_LEVELS - pixels)
