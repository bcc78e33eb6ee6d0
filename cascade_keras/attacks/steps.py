"""Adversarial images: one-step and iterative sign attacks (section 2.1 of the paper).

The loss of a network grows fastest along the gradient of the cross entropy J with respect to its
input. The fast gradient sign method takes one step of that direction's sign, as far as the largest
change of a pixel that is allowed, epsilon:

    step_fgsm   X + eps sign(grad_X J(X, y_true))        away from the true class
    step_ll     X - eps sign(grad_X J(X, y_LL))          towards the least likely class of X
    step_rand   X + eps sign(noise), noise ~ N(0, 1)     no gradient: the control
    step_both   the first half of the images by step_ll, the second half by step_fgsm

The iterative attacks repeat a small step (alpha = 1) and stay in the ball of radius epsilon:

    iter_fgsm   X_{n+1} = Clip_{X,eps}(X_n + alpha sign(grad J(X_n, y_true)))
    iter_ll     X_{n+1} = Clip_{X,eps}(X_n - alpha sign(grad J(X_n, y_LL)))

for N = floor(min(eps + 4, 1.25 eps)) steps, y_LL being that of the clean image throughout.
Projected gradient descent, `pgd`, is not in the paper and is stronger: the same steps from random
starts, more of them, and the worst image of several starts (Madry et al., 2018).

All are functions ``attack(logits_fn, images, labels, epsilon, ...) -> images``, where ``logits_fn``
is any callable from images to logits: a Keras network, a SavedModel's endpoint, a lambda. Images
are floats in [0, 1], (batch, height, width, channels); epsilon and step sizes are in pixel units of
0..255. ``logits_fn`` has to be the network in inference mode: an attack must not move the moving
statistics of batch normalisation.
"""

from __future__ import annotations

from collections.abc import Callable

import tensorflow as tf

from cascade_keras import draws
from cascade_keras.attacks.objectives import (
    LogitsFn,
    Objective,
    cross_entropy,
    least_likely_labels,
    objective_gradient,
    to_unit_range,
    towards,
)


def per_image(epsilon, images: tf.Tensor) -> tf.Tensor:
    """Return epsilon, in pixel units, in a shape that broadcasts against the images.

    Of shape (count, 1, 1, 1, 1) it makes ``count`` versions of each image.

    Raises:
        ValueError: epsilon is neither a scalar, nor one number an image, nor one a pixel.
    """
    epsilon = tf.cast(tf.convert_to_tensor(epsilon), images.dtype)
    rank = epsilon.shape.rank
    if rank == 0:
        return epsilon
    if rank == 1 and epsilon.shape.is_compatible_with(images.shape[:1]):
        return tf.reshape(epsilon, [-1, *([1] * (images.shape.rank - 1))])
    if rank == images.shape.rank and epsilon.shape.is_compatible_with(images.shape):
        return epsilon
    if rank == images.shape.rank + 1 and epsilon.shape[1:].num_elements() == 1:
        return epsilon
    raise ValueError(
        "epsilon must be a scalar, have one number an image (batch,), or one a pixel "
        f"(batch, height, width, channels); got shape {epsilon.shape} for images {images.shape}"
    )


def largest_gradients_mask(gradient: tf.Tensor, sparsity: float) -> tf.Tensor:
    """Return 1 at the given share of each image's values with the largest gradients, 0 elsewhere.

    Args:
        gradient: (batch, height, width, channels).
        sparsity: the share of perturbed values in per cent, above 0 to 100.
    """
    if not 0 < sparsity <= 100:
        raise ValueError(f"sparsity must be above 0 and at most 100 per cent, got {sparsity}")
    if sparsity == 100:
        return tf.ones_like(gradient)
    magnitude = tf.reshape(tf.abs(gradient), [tf.shape(gradient)[0], -1])
    size = tf.cast(tf.shape(magnitude)[1], tf.float32)
    kept = tf.cast(tf.maximum(tf.round(size * sparsity / 100), 1), tf.int32)
    threshold = tf.sort(magnitude, axis=-1, direction="DESCENDING")[:, kept - 1 : kept]
    return tf.reshape(tf.cast(magnitude >= threshold, gradient.dtype), tf.shape(gradient))


def _one_step(images: tf.Tensor, direction: tf.Tensor, epsilon, sparsity: float) -> tf.Tensor:
    images = tf.convert_to_tensor(images)
    noise = tf.sign(direction)
    if sparsity != 100:
        noise *= largest_gradients_mask(direction, sparsity)
    perturbed = images + to_unit_range(per_image(epsilon, images)) * noise
    return tf.stop_gradient(tf.clip_by_value(perturbed, 0.0, 1.0))


def step_fgsm(
    logits_fn: LogitsFn,
    images: tf.Tensor,
    labels: tf.Tensor,
    epsilon,
    *,
    sparsity: float = 100,
    objective: Callable[[tf.Tensor], Objective] = cross_entropy,
) -> tf.Tensor:
    """Fast gradient sign method: X + eps sign(grad_X J(X, y_true)).

    Args:
        logits_fn: images (batch, H, W, C) -> logits (batch, classes), in inference mode.
        images: floats in [0, 1], (batch, H, W, C).
        labels: the true classes, integers (batch,).
        epsilon: in 0..255 units; a scalar, (batch,), or (batch, H, W, C).
        sparsity: per cent of the values that may be perturbed, those with the largest gradients.
        objective: what is ascended, ``cross_entropy`` or ``margin``.

    Returns:
        Adversarial images, as ``images``; no gradient flows through them.
    """
    direction = objective_gradient(logits_fn, images, lambda _: objective(labels))
    return _one_step(images, direction, epsilon, sparsity)


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
    return _one_step(images, direction, epsilon, sparsity)


def step_both(
    logits_fn: LogitsFn, images: tf.Tensor, labels: tf.Tensor, epsilon, *, sparsity: float = 100
) -> tf.Tensor:
    """The first half of the images by ``step_ll``, the rest by ``step_fgsm``, in one pass."""
    towards_least_likely = tf.range(tf.shape(images)[0]) < tf.shape(images)[0] // 2

    def make_objective(clean_logits: tf.Tensor) -> Objective:
        least_likely = towards(least_likely_labels(clean_logits))
        return lambda logits: tf.where(
            towards_least_likely, least_likely(logits), cross_entropy(labels)(logits)
        )

    direction = objective_gradient(logits_fn, images, make_objective)
    return _one_step(images, direction, epsilon, sparsity)


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

    Args:
        seed: two integers; the same seed gives the same noise.

    The network and the labels are not used. With a sparsity the perturbed values are random too.
    """
    del logits_fn, labels
    images = tf.convert_to_tensor(images)
    return _one_step(images, draws.normal_like(images, seed), epsilon, sparsity)
