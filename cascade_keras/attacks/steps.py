"""One-step adversarial images (section 2.1 of the paper).

The loss of a network grows fastest along the gradient of the cross entropy J with respect to its
input. The fast gradient sign method takes one step of that direction's sign, as far as the largest
change of a pixel that is allowed, epsilon:

    step_fgsm   X + eps sign(grad_X J(X, y_true))        away from the true class
    step_ll     X - eps sign(grad_X J(X, y_LL))          towards the least likely class of X
    step_rand   X + eps sign(noise), noise ~ N(0, 1)     no gradient: the control
    step_both   the first half of the images by step_ll, the second half by step_fgsm

All attacks are functions ``attack(logits_fn, images, labels, epsilon, ...) -> images``, where
``logits_fn`` is any callable from images to logits in inference mode: an attack must not move the
moving statistics of batch normalisation. Epsilon and step sizes are in pixel units of 0..255.
"""

from __future__ import annotations

from collections.abc import Callable

import tensorflow as tf

from cascade_keras import draws
from cascade_keras.attacks.arguments import (
    as_images,
    as_seed,
    largest_gradients_mask,
    per_image,
    to_unit_range,
)
from cascade_keras.attacks.entry import as_objective, entry
from cascade_keras.attacks.objectives import (
    LogitsFn,
    Objective,
    cross_entropy,
    least_likely_labels,
    objective_gradient,
    towards,
)


@entry
def step_fgsm(
    logits_fn: LogitsFn,
    images: tf.Tensor,
    labels: tf.Tensor,
    epsilon,
    *,
    sparsity: float = 100,
    objective: str | Callable[[tf.Tensor], Objective] = cross_entropy,
) -> tf.Tensor:
    """Fast gradient sign method: X + eps sign(grad_X J(X, y_true)).

    Args:
        logits_fn: images -> logits (batch, classes), in inference mode.
        images: floats in ``value_range``, (batch, H, W, C); also uint8 where that is (0, 255).
        labels: the true classes, integers (batch,), or soft ones, floats (batch, classes).
        epsilon: in 0..255 units; a scalar, (batch,), (batch, H, W, C), or a ``Signed`` one.
        sparsity: per cent of the values that may be perturbed, those with the largest gradients.
        objective: what is ascended: "cross_entropy", "margin", "dlr", or a function of labels such
            as ``margin``.
        value_range: the lowest and the highest value of a pixel, which ``logits_fn`` takes.

    Returns:
        Adversarial images, as ``images``, of half precision in float32; no gradient flows through
        them.

    Raises:
        ValueError: images that are no floats or outside the range, labels that are none, a network
            that gives probabilities, an epsilon of another shape or outside its range, see
            ``check_range``, or a sparsity outside its range; of every attack.
    """
    of_labels = as_objective(objective)
    direction = objective_gradient(logits_fn, images, lambda _: of_labels(labels))
    return step_along(direction, images, epsilon, sparsity)


@entry
def step_ll(
    logits_fn: LogitsFn, images: tf.Tensor, labels: tf.Tensor, epsilon, *, sparsity: float = 100
) -> tf.Tensor:
    """Step towards the least likely class: X - eps sign(grad_X J(X, y_LL)).

    The labels are not used: the target is the class with the smallest logit. Otherwise as
    ``step_fgsm``. One forward and one backward pass.
    """
    del labels
    direction = objective_gradient(
        logits_fn, images, lambda logits: towards(least_likely_labels(logits))
    )
    return step_along(direction, images, epsilon, sparsity)


@entry
def step_both(
    logits_fn: LogitsFn, images: tf.Tensor, labels: tf.Tensor, epsilon, *, sparsity: float = 100
) -> tf.Tensor:
    """The first half of the images by ``step_ll``, the rest by ``step_fgsm``, in one pass."""
    towards_least_likely = draws.in_first_half(tf.shape(images)[0])

    def make_objective(clean_logits: tf.Tensor) -> Objective:
        least_likely = towards(least_likely_labels(clean_logits))
        return lambda logits: tf.where(
            towards_least_likely, least_likely(logits), cross_entropy(labels)(logits)
        )

    direction = objective_gradient(logits_fn, images, make_objective)
    return step_along(direction, images, epsilon, sparsity)


@entry
def step_rand(
    logits_fn: LogitsFn,
    images: tf.Tensor,
    labels: tf.Tensor,
    epsilon,
    *,
    seed,
    sparsity: float = 100,
) -> tf.Tensor:
    """Random signs: X + eps sign(noise), noise ~ N(0, 1) for each value.

    The network and the labels are not used. With a sparsity the perturbed values are random too.
    ``seed`` is one integer or two; the same seed gives the same noise.
    """
    del logits_fn, labels
    noise = draws.normal_like(as_images(images), as_seed(seed))
    return step_along(noise, images, epsilon, sparsity)


def step_along(direction: tf.Tensor, images: tf.Tensor, epsilon, sparsity: float = 100):
    """Return X + eps sign(direction), clipped to valid pixels: the end of every one-step attack.

    As ``step_fgsm``, and an epsilon (count, 1, 1, 1, 1) makes ``count`` versions of each image.
    """
    images, noise = as_images(images), tf.sign(direction)
    if sparsity != 100:
        noise *= largest_gradients_mask(direction, sparsity)
    perturbed = images + to_unit_range(per_image(epsilon, images, signed=True)) * noise
    return tf.stop_gradient(tf.clip_by_value(perturbed, 0.0, 1.0))
