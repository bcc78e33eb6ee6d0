"""Iterative adversarial images (section 2.1): small steps that stay in the ball of epsilon.

    iter_fgsm   X_{n+1} = Clip_{X,eps}(X_n + alpha sign(grad J(X_n, y_true)))
    iter_ll     X_{n+1} = Clip_{X,eps}(X_n - alpha sign(grad J(X_n, y_LL)))

for N = floor(min(eps + 4, 1.25 eps)) steps of alpha = 1, y_LL being that of the clean image
throughout. For several epsilons ``ladder`` takes the same steps, those that they share once.
"""

from __future__ import annotations

from collections.abc import Callable

import tensorflow as tf

from cascade_keras.attacks.arguments import (
    PIXEL_LEVELS,
    as_float,
    as_images,
    per_image,
    to_unit_range,
)
from cascade_keras.attacks.entry import entry
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


@entry
def climb(
    logits_fn: LogitsFn,
    images: tf.Tensor,
    labels: tf.Tensor,
    epsilon,
    objective: str | Callable[[tf.Tensor], Objective],
    step_size=1.0,
    steps=None,
    start: tf.Tensor | None = None,
) -> tf.Tensor:
    """Ascend the objective by sign steps inside the ball: the loop of every iterative attack.

    As ``iter_fgsm``, but for a step size of any of epsilon's shapes, and from the perturbation
    ``start``, in pixel units.
    """
    images = as_images(images)
    radius = per_image(epsilon, images)
    step_size = tf.broadcast_to(per_image(step_size, images, "step_size"), tf.shape(images))
    steps = iterations(radius) if steps is None else tf.cast(steps, tf.int32)
    fixed = (images, labels, step_size, *ball(images, radius))

    def step(n, perturbation):
        if steps.shape.rank == 0:
            return n + 1, ascend(logits_fn, objective, perturbation, *fixed)
        # Images that are done are not given to the network any more.
        under_way = n < steps
        rows = tf.where(tf.reduce_any(under_way, axis=list(range(1, images.shape.rank))))
        moved = ascend(
            logits_fn, objective, *(tf.gather_nd(part, rows) for part in (perturbation, *fixed))
        )
        moved = tf.tensor_scatter_nd_update(perturbation, rows, moved)
        return n + 1, tf.where(under_way, moved, perturbation)

    # A while loop is traced once; unrolled, the trace alone takes several times longer.
    start = tf.zeros_like(images) if start is None else start
    last = tf.reduce_max(steps)
    _, perturbation = tf.while_loop(lambda n, _: n < last, step, (tf.constant(0), start))
    return tf.stop_gradient(perturbed(images, perturbation))


def ascend(logits_fn, objective, perturbation, images, labels, step_size, lowest, highest):
    """Return Clip_{X,eps}(X_n + alpha sign(grad J(X_n))) - X.

    The perturbation is kept in pixel units. With whole step sizes it is then a whole number held
    exactly, so that images neither drift by rounding nor depend on how far the ball reaches.
    """
    gradient = input_gradient(logits_fn, perturbed(images, perturbation), objective(labels))
    return tf.clip_by_value(perturbation + step_size * tf.sign(gradient), lowest, highest)


def ball(images: tf.Tensor, radius) -> tuple[tf.Tensor, tf.Tensor]:
    """Return the bounds of a perturbation: Clip_{X,eps} with max(0, X - eps), min(255, X + eps)."""
    pixels = images * PIXEL_LEVELS
    return tf.maximum(-radius, -pixels), tf.minimum(radius, PIXEL_LEVELS - pixels)


def perturbed(images: tf.Tensor, perturbation: tf.Tensor) -> tf.Tensor:
    """Return X + perturbation, which is in pixel units, in the valid range."""
    return tf.clip_by_value(images + to_unit_range(perturbation), 0.0, 1.0)


@entry
def iter_fgsm(
    logits_fn: LogitsFn,
    images: tf.Tensor,
    labels: tf.Tensor,
    epsilon,
    *,
    step_size: float = 1.0,
    steps=None,
    objective: str | Callable[[tf.Tensor], Objective] = cross_entropy,
) -> tf.Tensor:
    """Basic iterative method: sign steps away from the true class, inside the epsilon ball.

    Args:
        logits_fn, images, labels, epsilon: as for ``step_fgsm``, but no ``Signed`` epsilon. With an
            epsilon for each image, only those that are not done yet are given to the network.
        step_size: alpha, in 0..255 units.
        steps: the number of steps, a scalar; that of ``iterations``, for each image its own, when
            None.
        objective: as for ``step_fgsm``.
    """
    return climb(logits_fn, images, labels, epsilon, objective, step_size, steps)


@entry
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
    return climb(logits_fn, images, target, epsilon, towards, step_size, steps)
