"""Iterative steps with momentum (MI-FGSM, Dong et al., 2018), whose images other networks fall for.

The gradient of one step follows the source network's own curves; the mean of several is what other
networks have in common with it:

    g <- mu g + grad / mean|grad|;  X <- Clip_{X,eps}(X + alpha sign(g))

Four more things make images carry over better, each an option of its own that the others allow:
the gradient is that of an image resized and padded at random (diversity, DI: Xie et al., 2019), is
smoothed by a Gaussian, as if of shifted images (translation, TI: Dong et al., 2019), is the mean of
those of X, X / 2, X / 4, ... (scales, SI), or is taken where the momentum leads (nesterov, NI; both
Lin et al., 2020).
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import tensorflow as tf

from cascade_keras import draws
from cascade_keras.attacks import specs
from cascade_keras.attacks.arguments import as_images, as_keys, per_image, to_unit_range
from cascade_keras.attacks.entry import as_objective, entry
from cascade_keras.attacks.iterative import ball, perturbed
from cascade_keras.attacks.objectives import LogitsFn, Objective, cross_entropy, input_gradient

SMALLEST = 0.9  # of an image's height, to which it is resized
DEVIATIONS = 3  # of the Gaussian, from the middle of its kernel to the edge


@entry
def mi_fgsm(
    logits_fn: LogitsFn,
    images: tf.Tensor,
    labels: tf.Tensor,
    epsilon,
    *,
    seed,
    steps: int = 10,
    step_size=None,
    momentum: float = 1.0,
    diversity: float = 0.0,
    translation: int = 1,
    scales: int = 1,
    nesterov: bool = False,
    objective: str | Callable[[tf.Tensor], Objective] = cross_entropy,
) -> tf.Tensor:
    """Sign steps along the momentum of gradients, inside the epsilon ball.

    Args:
        logits_fn, images, labels, epsilon: as for ``iter_fgsm``.
        seed: one integer or two, or a key for each image, see ``draws.image_keys``; of diversity.
        steps: number of steps.
        step_size: in 0..255 units; epsilon / steps when None.
        momentum: mu; 0 is ``iter_fgsm`` with these steps.
        diversity: how probable it is that an image is shown smaller, at 0.9 of its height or more,
            with black around it; each image at each step as its own random numbers have it.
        translation: the height of the Gaussian's kernel in pixels, odd; 1 leaves gradients alone.
        scales: of how many images X / 2^i the gradient is the mean; each takes a pass.
        nesterov: whether gradients are taken at X + alpha mu g, which may be no valid image.
        objective: what is ascended, as for ``step_fgsm``.

    Raises:
        InputError: an option outside its range.
    """
    specs.check_options(
        "mi_fgsm",
        {
            "steps": steps, "momentum": momentum, "diversity": diversity,
            "translation": translation, "scales": scales, "nesterov": nesterov,
        },
    )  # fmt: skip
    steps, scales = int(steps), int(scales)
    images = as_images(images)
    radius = per_image(epsilon, images)
    stride = radius / steps if step_size is None else per_image(step_size, images, "step_size")
    lowest, highest = ball(images, radius)
    keys = as_keys(seed, tf.shape(images)[0]) if diversity else None
    kernel, of_labels = gaussian(int(translation)), as_objective(objective)

    def gradient_at(made: tf.Tensor, number: tf.Tensor) -> tf.Tensor:
        def shown_to_network(made: tf.Tensor) -> tf.Tensor:
            return logits_fn(diverse(made, keys, number, diversity) if diversity else made)

        return input_gradient(shown_to_network, made, of_labels(labels))

    def step(number, perturbation, along):
        made = perturbed(images, perturbation)
        if nesterov:
            made += to_unit_range(stride) * momentum * along
        gradient = tf.zeros_like(images)
        for i in range(scales):
            # By the chain rule, the gradient with respect to X of X / 2^i is so much smaller.
            gradient += gradient_at(made / 2**i, number * scales + i) / 2**i
        gradient = smoothed(gradient / scales, kernel) if translation > 1 else gradient / scales
        size = tf.reduce_mean(tf.abs(gradient), axis=[1, 2, 3], keepdims=True)
        along = momentum * along + tf.math.divide_no_nan(gradient, size)
        perturbation += stride * tf.sign(along)
        return number + 1, tf.clip_by_value(perturbation, lowest, highest), along

    nothing = tf.zeros_like(images)
    _, perturbation, _ = tf.while_loop(
        lambda number, *_: number < steps, step, (tf.constant(0), nothing, nothing)
    )
    return tf.stop_gradient(perturbed(images, perturbation))


def gaussian(size: int) -> np.ndarray:
    """Return a Gaussian's weights along one axis, (size,), of sum 1."""
    weights = np.exp(-0.5 * np.linspace(-DEVIATIONS, DEVIATIONS, size) ** 2)
    return weights / weights.sum()


def smoothed(gradient: tf.Tensor, kernel: np.ndarray) -> tf.Tensor:
    """Return each channel of (batch, H, W, C) convolved with a kernel along both axes.

    Beyond the edges the gradient is zero.
    """
    for shape in ([-1, 1, 1, 1], [1, -1, 1, 1]):
        weights = tf.reshape(tf.constant(kernel, gradient.dtype), shape)
        weights = tf.repeat(weights, tf.shape(gradient)[-1], axis=2)
        gradient = tf.nn.depthwise_conv2d(gradient, weights, [1, 1, 1, 1], "SAME")
    return gradient


def diverse(images: tf.Tensor, keys: tf.Tensor, number, probability: float) -> tf.Tensor:
    """Return images of which some are resized and padded, as their own random numbers have it.

    Args:
        images: (batch, H, W, C).
        keys: of the images, (batch, 2), see ``draws.image_keys``.
        number: of the draw.
        probability: of each image's being changed.
    """
    numbers = tf.cast(draws.of_images(draws.uniform_of, keys, number, [4], 0.0, 1.0), images.dtype)
    changed, side, top, left = tf.unstack(numbers, axis=1)
    height, width = (tf.cast(size, images.dtype) for size in tf.unstack(tf.shape(images)[1:3]))
    least = tf.maximum(tf.floor(SMALLEST * height), 1)
    rows = least + tf.floor(side * tf.maximum(height - least, 1))
    columns = tf.maximum(tf.round(width * rows / height), 1)
    down = _shrinking(height, rows, tf.floor(top * (height - rows + 1)))
    right = _shrinking(width, columns, tf.floor(left * (width - columns + 1)))
    shrunk = tf.einsum("nij,njkc->nikc", down, images)
    shrunk = tf.einsum("nij,nkjc->nkic", right, shrunk)
    return tf.where((changed < probability)[:, None, None, None], shrunk, images)


def _shrinking(size: tf.Tensor, sizes: tf.Tensor, first: tf.Tensor) -> tf.Tensor:
    """Return the linear maps that resize an axis (bilinear) and put it down with zeros around it.

    Args:
        size: of the axis.
        sizes: to which each image's is resized, (batch,).
        first: where it then begins, (batch,).

    Returns:
        (batch, size, size).
    """
    places = tf.range(size, dtype=sizes.dtype)
    within = places - first[:, tf.newaxis]
    # Where the middle of a new pixel lies among the middles of the old ones.
    seen = (within + 0.5) * (size / sizes)[:, tf.newaxis] - 0.5
    seen = tf.clip_by_value(seen, 0.0, size - 1)[..., tf.newaxis]
    weights = tf.maximum(1 - tf.abs(seen - places), 0)
    inside = (within >= 0) & (within < sizes[:, tf.newaxis])
    return tf.where(inside[..., tf.newaxis], weights, 0.0)
