"""Iterative sign attacks and the ladder of epsilons that share their first steps."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import tensorflow as tf

from cascade_keras.attacks.objectives import (
    PIXEL_LEVELS,
    LogitsFn,
    Objective,
    cross_entropy,
    least_likely_labels,
    objective_gradient,
    to_unit_range,
    towards,
)
from cascade_keras.attacks.steps import per_image


def iterations(epsilon) -> tf.Tensor:
    """Return N = floor(min(eps + 4, 1.25 eps)), the paper's number of steps, as int32."""
    epsilon = tf.convert_to_tensor(epsilon, dtype_hint=tf.float32)
    if epsilon.dtype.is_integer:
        epsilon = tf.cast(epsilon, tf.float32)
    return tf.cast(tf.floor(tf.minimum(epsilon + 4, 1.25 * epsilon)), tf.int32)


def _climb(
    logits_fn: LogitsFn,
    images: tf.Tensor,
    labels: tf.Tensor,
    objective: Callable[[tf.Tensor], Objective],
    epsilons: Sequence,
    step_size,
    steps,
    start: tf.Tensor | None = None,
) -> tf.Tensor:
    """Ascend the objective by sign steps inside each epsilon's ball and the valid pixel range.

    Every iterative image is made here. The first floor(eps / step_size) iterates cannot have left
    the ball of eps, so they are also those of every larger epsilon: they are computed once, and
    each epsilon goes on from there alone for the rest of its own steps. Where the images have
    different numbers of steps, those that are done are not computed any more.

    The perturbation is kept in pixel units. With whole step sizes it is then a whole number held
    exactly, so that images neither drift by rounding nor depend on how far the ball reaches.

    Args:
        epsilons: ascending, each in the same one of the shapes that ``per_image`` takes.
        step_size: in 0..255 units; one that differs between images only with a single epsilon.
        steps: of every epsilon; the paper's number, for each image its own, when None.
        start: the perturbation to start from, in pixel units; with a single epsilon only.

    Returns:
        Adversarial images, (len(epsilons), batch, H, W, C).
    """
    images = tf.convert_to_tensor(images)
    radii = tf.stack([per_image(epsilon, images) for epsilon in epsilons])
    count = len(epsilons)
    steps = iterations(radii) if steps is None else tf.fill([count], tf.cast(steps, tf.int32))
    each_its_own = steps.shape.rank > 1
    last = tf.reduce_max(tf.reshape(steps, [count, -1]), axis=1)
    shared = tf.zeros([count], tf.int32)
    if count > 1 and not each_its_own:
        # Whole step sizes add up exactly; for others one step is kept back for the rounding.
        spare = 0 if float(step_size).is_integer() else 1
        shared = tf.cast(tf.floor(tf.reshape(radii, [count]) / step_size), tf.int32) - spare
        shared = tf.clip_by_value(shared, 0, steps)
    pixels = images * PIXEL_LEVELS

    def perturbed(images: tf.Tensor, perturbation: tf.Tensor) -> tf.Tensor:
        return tf.clip_by_value(images + to_unit_range(perturbation), 0.0, 1.0)

    def ascend(perturbation, images, labels, lowest, highest) -> tf.Tensor:
        adversarial = perturbed(images, perturbation)
        direction = tf.sign(objective_gradient(logits_fn, adversarial, lambda _: objective(labels)))
        return tf.clip_by_value(perturbation + step_size * direction, lowest, highest)

    def step(e, n, trunk, current, results):
        on_trunk = n < shared[e]
        radius = tf.where(on_trunk, tf.cast(PIXEL_LEVELS, images.dtype), radii[e])
        lowest = tf.maximum(-radius, -pixels)
        highest = tf.minimum(radius, PIXEL_LEVELS - pixels)
        operands = (current, images, labels, lowest, highest)
        if each_its_own:
            under_way = n < steps[e]
            rows = tf.where(tf.reduce_any(under_way, axis=list(range(1, images.shape.rank))))
            moved = ascend(*(tf.gather_nd(operand, rows) for operand in operands))
            moved = tf.tensor_scatter_nd_update(current, rows, moved)
            current = tf.where(under_way, moved, current)
        else:
            current = ascend(*operands)
        return e, n + 1, tf.where(on_trunk, current, trunk), current, results

    def finish(e, n, trunk, current, results):
        here = tf.reshape(tf.range(count) == e, [-1, *([1] * images.shape.rank)])
        return e + 1, shared[e], trunk, trunk, tf.where(here, current, results)

    # A while loop is traced once; unrolled, the trace alone takes several times longer.
    start = tf.zeros_like(images) if start is None else start
    results = tf.stack([start] * count)
    *_, results = tf.while_loop(
        lambda e, *_: e < count,
        lambda e, n, *state: tf.cond(
            n < last[e], lambda: step(e, n, *state), lambda: finish(e, n, *state)
        ),
        (tf.constant(0), tf.constant(0), start, start, results),
    )
    return tf.stop_gradient(perturbed(images, results))


def iter_fgsm(
    logits_fn: LogitsFn,
    images: tf.Tensor,
    labels: tf.Tensor,
    epsilon,
    *,
    step_size: float = 1.0,
    steps=None,
    objective: Callable[[tf.Tensor], Objective] = cross_entropy,
) -> tf.Tensor:
    """Basic iterative method: sign steps away from the true class, inside the epsilon ball.

    Args:
        logits_fn, images, labels, epsilon: as for ``step_fgsm``. With an epsilon for each image,
            only the images that are not done yet are given to the network.
        step_size: alpha, in 0..255 units.
        steps: the number of steps, a scalar; the paper's floor(min(eps + 4, 1.25 eps)), for each
            image its own, when None.
        objective: what is ascended, ``cross_entropy`` or ``margin``.
    """
    return _climb(logits_fn, images, labels, objective, [epsilon], step_size, steps)[0]


def iter_ll(
    logits_fn: LogitsFn,
    images: tf.Tensor,
    labels: tf.Tensor,
    epsilon,
    *,
    step_size: float = 1.0,
    steps=None,
) -> tf.Tensor:
    """Sign steps towards the least likely class of the clean image, inside the epsilon ball.

    The labels are not used. Otherwise as ``iter_fgsm``.
    """
    del labels
    target = least_likely_labels(logits_fn(images))
    return _climb(logits_fn, images, target, towards, [epsilon], step_size, steps)[0]


def ladder(
    logits_fn: LogitsFn,
    images: tf.Tensor,
    labels: tf.Tensor,
    epsilons: Sequence[float],
    *,
    attack: str = "iter_fgsm",
    step_size: float = 1.0,
    steps: int | None = None,
    objective: Callable[[tf.Tensor], Objective] = cross_entropy,
) -> tf.Tensor:
    """Return an iterative attack's images for several epsilons, computing what they share once.

    Each image equals the one that ``iter_fgsm`` or ``iter_ll``, compiled for the same shapes, makes
    for its epsilon alone, to the last bit. The number of gradients is ``ladder_gradients``: 44
    instead of 164 for 1..16.

    Args:
        logits_fn, images, labels: as for ``step_fgsm``.
        epsilons: in 0..255 units, in any order.
        attack: "iter_fgsm" or "iter_ll".
        step_size, steps, objective: as for ``iter_fgsm``; ``objective`` is that of iter_fgsm only.

    Returns:
        (len(epsilons), batch, H, W, C), in the order of ``epsilons``.

    Raises:
        ValueError: no epsilon, or an unknown attack.
    """
    if not len(epsilons):
        raise ValueError("epsilons must name at least one epsilon")
    if attack not in ("iter_ll", "iter_fgsm"):
        raise ValueError(f"attack {attack!r} is none of iter_ll, iter_fgsm")
    if attack == "iter_ll":
        labels, objective = least_likely_labels(logits_fn(images)), towards
    ascending = sorted({float(epsilon) for epsilon in epsilons})
    rungs = _climb(logits_fn, images, labels, objective, ascending, step_size, steps)
    return tf.gather(rungs, [ascending.index(float(epsilon)) for epsilon in epsilons])
