"""Iterative adversarial images (section 2.1): small steps that stay in the ball of epsilon.

    iter_fgsm   X_{n+1} = Clip_{X,eps}(X_n + alpha sign(grad J(X_n, y_true)))
    iter_ll     X_{n+1} = Clip_{X,eps}(X_n - alpha sign(grad J(X_n, y_LL)))

for N = floor(min(eps + 4, 1.25 eps)) steps of alpha = 1, y_LL being that of the clean image
throughout. ``ladder`` makes the images of several epsilons and computes once what they share.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import tensorflow as tf

from cascade_keras.attacks.arguments import (
    PIXEL_LEVELS,
    as_float,
    as_images,
    check_range,
    per_image,
    to_unit_range,
)
from cascade_keras.attacks.objectives import (
    LogitsFn,
    Objective,
    cross_entropy,
    input_gradient,
    least_likely_labels,
    towards,
)


def iterations(epsilon) -> tf.Tensor:
    """Return N = floor(min(eps + 4, 1.25 eps)), the paper's number of steps, as int32.

    Below 0.8 that is 0, which would pass the clean image off as an attacked one: an epsilon above 0
    takes one step at least. It is clipped to epsilon, so the image is that of a single step.
    """
    epsilon = as_float(epsilon)
    steps = tf.floor(tf.minimum(epsilon + 4, 1.25 * epsilon))
    return tf.cast(tf.where(epsilon > 0, tf.maximum(steps, 1), steps), tf.int32)


def climb(
    logits_fn: LogitsFn,
    images: tf.Tensor,
    labels: tf.Tensor,
    epsilon,
    *,
    objective: Callable[[tf.Tensor], Objective],
    step_size=1.0,
    steps=None,
    start: tf.Tensor | None = None,
) -> tf.Tensor:
    """Ascend the objective by sign steps inside the ball: the loop of every iterative attack.

    Args:
        step_size: in 0..255 units, of the same shapes as epsilon.
        steps: a scalar; the paper's number, for each image or pixel its own, when None.
        start: the perturbation to start from, in pixel units.
        Others as for ``iter_fgsm``.
    """
    images = as_images(images)
    radius = per_image(epsilon, images)
    step_size = tf.broadcast_to(per_image(step_size, images, "step_size"), tf.shape(images))
    steps = iterations(radius) if steps is None else tf.cast(steps, tf.int32)
    fixed = (images, labels, step_size, *_ball(images, radius))

    def step(n, perturbation):
        if steps.shape.rank == 0:
            return n + 1, _ascend(logits_fn, objective, perturbation, *fixed)
        # Images that are done are not given to the network any more.
        under_way = n < steps
        rows = tf.where(tf.reduce_any(under_way, axis=list(range(1, images.shape.rank))))
        moved = _ascend(
            logits_fn, objective, *(tf.gather_nd(part, rows) for part in (perturbation, *fixed))
        )
        moved = tf.tensor_scatter_nd_update(perturbation, rows, moved)
        return n + 1, tf.where(under_way, moved, perturbation)

    # A while loop is traced once; unrolled, the trace alone takes several times longer.
    start = tf.zeros_like(images) if start is None else start
    last = tf.reduce_max(steps)
    _, perturbation = tf.while_loop(lambda n, _: n < last, step, (tf.constant(0), start))
    return tf.stop_gradient(_perturbed(images, perturbation))


def _ascend(logits_fn, objective, perturbation, images, labels, step_size, lowest, highest):
    """Return Clip_{X,eps}(X_n + alpha sign(grad J(X_n))) - X.

    The perturbation is kept in pixel units. With whole step sizes it is then a whole number held
    exactly, so that images neither drift by rounding nor depend on how far the ball reaches.
    """
    gradient = input_gradient(logits_fn, _perturbed(images, perturbation), objective(labels))
    return tf.clip_by_value(perturbation + step_size * tf.sign(gradient), lowest, highest)


def _ball(images: tf.Tensor, radius) -> tuple[tf.Tensor, tf.Tensor]:
    """Return the bounds of a perturbation: Clip_{X,eps} with max(0, X - eps), min(255, X + eps)."""
    pixels = images * PIXEL_LEVELS
    return tf.maximum(-radius, -pixels), tf.minimum(radius, PIXEL_LEVELS - pixels)


def _perturbed(images: tf.Tensor, perturbation: tf.Tensor) -> tf.Tensor:
    return tf.clip_by_value(images + to_unit_range(perturbation), 0.0, 1.0)


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
        logits_fn, images, labels, epsilon: as for ``step_fgsm``, but no ``Signed`` epsilon. With an
            epsilon for each image, only those that are not done yet are given to the network.
        step_size: alpha, in 0..255 units.
        steps: the number of steps, a scalar; that of ``iterations``, for each image its own, when
            None.
        objective: what is ascended, ``cross_entropy`` or ``margin``.
    """
    options = {"objective": objective, "step_size": step_size, "steps": steps}
    return climb(logits_fn, images, labels, epsilon, **options)


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
    target = least_likely_labels(logits_fn(as_images(images)))
    options = {"objective": towards, "step_size": step_size, "steps": steps}
    return climb(logits_fn, images, target, epsilon, **options)


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

    The first floor(eps / step_size) iterates cannot have left the ball of eps, so they are also
    those of every larger epsilon. This trunk is climbed once; from there each epsilon goes on alone
    for the rest of its own steps. Each image equals the one that ``iter_fgsm`` or ``iter_ll``,
    compiled for the same shapes, makes for its epsilon alone, to the last bit. The number of
    gradients is ``ladder_gradients``: 44 instead of 164 for 1..16.

    Args:
        epsilons: in 0..255 units, in any order.
        attack: "iter_fgsm" or "iter_ll", which takes no ``objective``.
        Others as for ``iter_fgsm``.

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
    steps = iterations(radii) if steps is None else tf.fill([count], tf.cast(steps, tf.int32))
    # Whole step sizes add up exactly; for others one step is kept back for the rounding.
    spare = 0 if float(step_size).is_integer() else 1
    shared = tf.cast(tf.floor(tf.math.divide_no_nan(radii, step_size)), tf.int32) - spare
    shared = tf.clip_by_value(shared, 0, steps)

    def step(e, n, trunk, current, rungs):
        on_trunk = n < shared[e]
        ball = _ball(images, tf.where(on_trunk, tf.cast(PIXEL_LEVELS, images.dtype), radii[e]))
        current = _ascend(logits_fn, objective, current, images, labels, step_size, *ball)
        return e, n + 1, tf.where(on_trunk, current, trunk), current, rungs

    def finish(e, n, trunk, current, rungs):
        here = tf.reshape(tf.range(count) == e, [-1, *([1] * images.shape.rank)])
        return e + 1, shared[e], trunk, trunk, tf.where(here, current, rungs)

    start = tf.zeros_like(images)
    *_, rungs = tf.while_loop(
        lambda e, *_: e < count,
        lambda e, n, *state: tf.cond(
            n < steps[e], lambda: step(e, n, *state), lambda: finish(e, n, *state)
        ),
        (tf.constant(0), tf.constant(0), start, start, tf.stack([start] * count)),
    )
    rungs = tf.stop_gradient(_perturbed(images, rungs))
    return tf.gather(rungs, [ascending.index(float(epsilon)) for epsilon in epsilons])
