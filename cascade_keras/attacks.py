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

All are functions ``attack(logits_fn, images, labels, epsilon, ...) -> images``, where ``logits_fn``
is any callable from images to logits: a Keras network, a SavedModel's endpoint, a lambda. Images
are floats in [0, 1], (batch, height, width, channels); epsilon and step sizes are in pixel units of
0..255. ``logits_fn`` has to be the network in inference mode: an attack must not move the moving
statistics of batch normalisation.
"""

from __future__ import annotations

from collections.abc import Callable

import tensorflow as tf

PIXEL_LEVELS = 255.0
# Of stateless draws; left to itself, TensorFlow would choose another one on another kind of device.
GENERATOR = "philox"

LogitsFn = Callable[[tf.Tensor], tf.Tensor]
Objective = Callable[[tf.Tensor], tf.Tensor]


def to_unit_range(epsilon) -> tf.Tensor:
    """Convert epsilon or a step size from pixel units of 0..255 to the [0, 1] range of images."""
    return tf.convert_to_tensor(epsilon) / PIXEL_LEVELS


# What an attack ascends: functions of the logits, one value an image.


def cross_entropy(labels: tf.Tensor) -> Objective:
    """Return logits -> J(X, labels) of each image, (batch, classes) -> (batch,)."""
    return lambda logits: tf.nn.sparse_softmax_cross_entropy_with_logits(labels, logits)


def margin(labels: tf.Tensor) -> Objective:
    """Return logits -> largest other logit minus the labelled one, (batch, classes) -> (batch,).

    Positive where the image is misclassified. Unlike the cross entropy it does not saturate, so
    its gradient stays informative when the logits are large (Carlini & Wagner, 2017).
    """

    def objective(logits: tf.Tensor) -> tf.Tensor:
        labelled = tf.one_hot(labels, tf.shape(logits)[-1], on_value=True, off_value=False)
        true_logit = tf.gather(logits, labels, batch_dims=1)
        others = tf.where(labelled, logits.dtype.min, logits)
        return tf.reduce_max(others, axis=-1) - true_logit

    return objective


def towards(labels: tf.Tensor) -> Objective:
    """Return logits -> -J(X, labels): ascending it makes an image look like ``labels``."""
    return lambda logits: -cross_entropy(labels)(logits)


def least_likely_labels(logits: tf.Tensor) -> tf.Tensor:
    """Return y_LL, the class with the smallest logit, (batch, classes) -> (batch,) int32."""
    return tf.argmin(logits, axis=-1, output_type=tf.int32)


def _gradient(
    logits_fn: LogitsFn, images: tf.Tensor, make_objective: Callable[[tf.Tensor], Objective]
) -> tf.Tensor:
    """Return the gradient of the objective with respect to each image.

    ``make_objective`` is given the logits of the images, on which the target of some attacks
    depends, so that one forward pass is enough.
    """
    images = tf.convert_to_tensor(images)
    # Only the images are watched: recording the weights as well would cost memory and time.
    with tf.GradientTape(watch_accessed_variables=False) as tape:
        tape.watch(images)
        logits = logits_fn(images)
        objective = make_objective(tf.stop_gradient(logits))
        # A sum keeps each image's gradient independent of the batch size; a mean would shrink it
        # and underflow to a zero sign in low precision.
        total = tf.reduce_sum(objective(logits))
    return tape.gradient(total, images)


def _per_image(epsilon, images: tf.Tensor) -> tf.Tensor:
    """Return epsilon, in pixel units, in a shape that broadcasts against the images.

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
    perturbed = images + to_unit_range(_per_image(epsilon, images)) * noise
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
    direction = _gradient(logits_fn, images, lambda _: objective(labels))
    return _one_step(images, direction, epsilon, sparsity)


def step_ll(
    logits_fn: LogitsFn, images: tf.Tensor, labels: tf.Tensor, epsilon, *, sparsity: float = 100
) -> tf.Tensor:
    """Step towards the least likely class: X - eps sign(grad_X J(X, y_LL)).

    The labels are not used: the target is the class with the smallest logit. Otherwise as
    ``step_fgsm``. One forward and one backward pass.
    """
    del labels
    direction = _gradient(logits_fn, images, lambda logits: towards(least_likely_labels(logits)))
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

    direction = _gradient(logits_fn, images, make_objective)
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
    noise = tf.random.stateless_normal(tf.shape(images), seed, dtype=images.dtype, alg=GENERATOR)
    return _one_step(images, noise, epsilon, sparsity)


def iterations(epsilon) -> tf.Tensor:
    """Return N = floor(min(eps + 4, 1.25 eps)), the paper's number of steps, as int32."""
    epsilon = tf.convert_to_tensor(epsilon, dtype_hint=tf.float32)
    if epsilon.dtype.is_integer:
        epsilon = tf.cast(epsilon, tf.float32)
    return tf.cast(tf.floor(tf.minimum(epsilon + 4, 1.25 * epsilon)), tf.int32)


def _iterate(
    logits_fn: LogitsFn, images: tf.Tensor, objective: Objective, epsilon, step_size: float, steps
) -> tf.Tensor:
    """Ascend the objective by sign steps inside the epsilon ball and the valid pixel range.

    The perturbation is kept in pixel units. With whole step sizes it is then a whole number held
    exactly, so that images neither drift by rounding nor depend on how far the ball reaches.
    """
    images = tf.convert_to_tensor(images)
    epsilon = _per_image(epsilon, images)
    steps = iterations(epsilon) if steps is None else tf.cast(steps, tf.int32)
    pixels = images * PIXEL_LEVELS
    lowest = tf.maximum(-epsilon, -pixels)
    highest = tf.minimum(epsilon, PIXEL_LEVELS - pixels)

    def perturbed(perturbation: tf.Tensor) -> tf.Tensor:
        return tf.clip_by_value(images + to_unit_range(perturbation), 0.0, 1.0)

    def body(n: tf.Tensor, perturbation: tf.Tensor):
        direction = tf.sign(_gradient(logits_fn, perturbed(perturbation), lambda _: objective))
        moved = tf.clip_by_value(perturbation + step_size * direction, lowest, highest)
        return n + 1, tf.where(n < steps, moved, perturbation)

    # A while loop is traced once; unrolled, the trace alone takes several times longer.
    _, perturbation = tf.while_loop(
        lambda n, _: n < tf.reduce_max(steps), body, (tf.constant(0), tf.zeros_like(images))
    )
    return tf.stop_gradient(perturbed(perturbation))


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
        logits_fn, images, labels, epsilon: as for ``step_fgsm``.
        step_size: alpha, in 0..255 units.
        steps: the number of steps, a scalar; the paper's floor(min(eps + 4, 1.25 eps)), for each
            image its own, when None.
        objective: what is ascended, ``cross_entropy`` or ``margin``.
    """
    return _iterate(logits_fn, images, objective(labels), epsilon, step_size, steps)


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
    return _iterate(logits_fn, images, towards(target), epsilon, step_size, steps)


STEP_ATTACKS = {
    "step_ll": step_ll,
    "step_fgsm": step_fgsm,
    "step_both": step_both,
    "step_rand": step_rand,
}
ITERATIVE_ATTACKS = {"iter_ll": iter_ll, "iter_fgsm": iter_fgsm}


# How far a training image is perturbed (appendix A): epsilon drawn for each image.


def sample_epsilon(sampling: str, count: int, max_epsilon: float, seed) -> tf.Tensor:
    """Draw an epsilon for each image, (count,) float32 in [0, max_epsilon], in 0..255 units.

    Args:
        sampling: "clipped_normal", |N(0, max_epsilon / 2)| clipped to max_epsilon (the paper's);
            "uniform" on [0, max_epsilon]; "max", always max_epsilon; "reversed_normal",
            max_epsilon minus a clipped normal.
        seed: two integers; the same seed gives the same draws.

    Raises:
        ValueError: an unknown sampling.
    """
    if sampling == "max":
        return tf.fill([count], float(max_epsilon))
    if sampling == "uniform":
        return tf.random.stateless_uniform([count], seed, 0.0, max_epsilon, alg=GENERATOR)
    if sampling not in ("clipped_normal", "reversed_normal"):
        raise ValueError(f"epsilon sampling {sampling!r} is none of {', '.join(EPSILON_SAMPLINGS)}")
    normal = tf.abs(tf.random.stateless_normal([count], seed, 0.0, max_epsilon / 2, alg=GENERATOR))
    clipped = tf.minimum(normal, max_epsilon)
    return clipped if sampling == "clipped_normal" else max_epsilon - clipped


EPSILON_SAMPLINGS = ("clipped_normal", "uniform", "max", "reversed_normal")


def jitter_per_pixel(epsilon: tf.Tensor, shape, max_epsilon: float, seed) -> tf.Tensor:
    """Return |epsilon + N(0, 1)| clipped to max_epsilon for every value of every image.

    Args:
        epsilon: (batch,), in 0..255 units.
        shape: of the images, (batch, H, W, C), which is also the result's.
    """
    per_image = tf.reshape(epsilon, [-1, 1, 1, 1])
    noise = tf.random.stateless_normal(shape, seed, alg=GENERATOR)
    return tf.minimum(tf.abs(per_image + noise), max_epsilon)
