"""An iterative attack's images for several epsilons, whose first steps are the same."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import tensorflow as tf

from cascade_keras.attacks.arguments import PIXEL_LEVELS, as_images, check_range
from cascade_keras.attacks.entry import entry
from cascade_keras.attacks.iterative import ascend, ball, iterations, perturbed
from cascade_keras.attacks.objectives import (
    LogitsFn,
    Objective,
    cross_entropy,
    least_likely_labels,
    towards,
)


@entry
def ladder(
    logits_fn: LogitsFn,
    images: tf.Tensor,
    labels: tf.Tensor,
    epsilons: Sequence[float],
    *,
    attack: str = "iter_fgsm",
    step_size: float = 1.0,
    steps: int | None = None,
    objective: str | Callable[[tf.Tensor], Objective] = cross_entropy,
) -> tf.Tensor:
    """Return an iterative attack's images for several epsilons, computing what they share once.

    The first floor(eps / step_size) iterates cannot have left the ball of eps, so they are also
    those of every larger epsilon. This trunk is climbed once; from there each epsilon goes on alone
    for the rest of its own steps. Each image equals the one that ``iter_fgsm`` or ``iter_ll``,
    compiled for the same shapes, makes for its epsilon alone, to the last bit. The number of
    gradients is ``ladder_gradients``: 44 instead of 164 for 1..16.

    Args:
        epsilons: in 0..255 units, in any order.
        attack: "iter_fgsm" or "iter_ll", which takes no ``objective``.
        others: as for ``iter_fgsm``.

    Returns:
        (len(epsilons), batch, H, W, C), in the order of ``epsilons``.
    """
    if not len(epsilons):
        raise ValueError("epsilons must name at least one epsilon")
    if attack not in ("iter_ll", "iter_fgsm"):
        raise ValueError(f"attack {attack!r} is none of iter_ll, iter_fgsm")
    check_range(epsilons, "epsilons")
    check_range(step_size, "step_size")
    images = as_images(images)
    if attack == "iter_ll":
        labels, objective = least_likely_labels(logits_fn(images)), towards
    ascending = sorted({float(epsilon) for epsilon in epsilons})
    count, radii = len(ascending), tf.constant(ascending, images.dtype)
    each = iterations(radii) if steps is None else tf.fill([count], tf.cast(steps, tf.int32))
    # Whole step sizes add up exactly; for others one step is kept back for the rounding.
    spare = 0 if float(step_size).is_integer() else 1
    shared = tf.cast(tf.floor(tf.math.divide_no_nan(radii, step_size)), tf.int32) - spare
    shared = tf.clip_by_value(shared, 0, each)

    def step(e, n, trunk, current, rungs):
        on_trunk = n < shared[e]
        reach = ball(images, tf.where(on_trunk, tf.cast(PIXEL_LEVELS, images.dtype), radii[e]))
        current = ascend(logits_fn, objective, current, images, labels, step_size, *reach)
        return e, n + 1, tf.where(on_trunk, current, trunk), current, rungs

    def finish(e, n, trunk, current, rungs):
        here = tf.reshape(tf.range(count) == e, [-1, *([1] * images.shape.rank)])
        return e + 1, shared[e], trunk, trunk, tf.where(here, current, rungs)

    start = tf.zeros_like(images)
    *_, rungs = tf.while_loop(
        lambda e, *_: e < count,
        lambda e, n, *state: tf.cond(
            n < each[e], lambda: step(e, n, *state), lambda: finish(e, n, *state)
        ),
        (tf.constant(0), tf.constant(0), start, start, tf.stack([start] * count)),
    )
    rungs = tf.stop_gradient(perturbed(images, rungs))
    return tf.gather(rungs, [ascending.index(float(epsilon)) for epsilon in epsilons])
