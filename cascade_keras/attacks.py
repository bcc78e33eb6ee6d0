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

from collections.abc import Callable, Sequence

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


def dlr(labels: tf.Tensor) -> Objective:
    """Return logits -> difference of logits ratio, (batch, classes) -> (batch,).

    The margin divided by the distance of the largest logit from the third largest, so that it does
    not depend on the scale of the logits (Croce & Hein, 2020). There must be three classes.
    """

    def objective(logits: tf.Tensor) -> tf.Tensor:
        largest = tf.math.top_k(logits, 3).values
        scale = largest[:, 0] - largest[:, 2]
        return margin(labels)(logits) / tf.maximum(scale, 1e-12)

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


def input_gradient(logits_fn: LogitsFn, images: tf.Tensor, objective: Objective) -> tf.Tensor:
    """Return the gradient of the objective with respect to each image, as ``images``."""
    return _gradient(logits_fn, images, lambda _: objective)


def _per_image(epsilon, images: tf.Tensor) -> tf.Tensor:
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
        epsilons: ascending, each in the same one of the shapes that ``_per_image`` takes.
        step_size: in 0..255 units; one that differs between images only with a single epsilon.
        steps: of every epsilon; the paper's number, for each image its own, when None.
        start: the perturbation to start from, in pixel units; with a single epsilon only.

    Returns:
        Adversarial images, (len(epsilons), batch, H, W, C).
    """
    images = tf.convert_to_tensor(images)
    radii = tf.stack([_per_image(epsilon, images) for epsilon in epsilons])
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
        direction = tf.sign(_gradient(logits_fn, adversarial, lambda _: objective(labels)))
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
    radius = _per_image(epsilon, images)
    pixels = images * PIXEL_LEVELS
    stride = 2.5 * radius / steps if step_size is None else _per_image(step_size, images)
    everywhere = tf.ones_like(images)

    def attack(number: tf.Tensor, rows: tf.Tensor) -> tf.Tensor:
        start = None
        if random_start:
            # Drawn for all images, so that none depends on which others are still attacked.
            start = tf.random.stateless_uniform(
                tf.shape(images),
                tf.random.fold_in(seed, number, alg=GENERATOR),
                -1.0,
                1.0,
                images.dtype,
                alg=GENERATOR,
            )
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
    if attack not in ITERATIVE_ATTACKS:
        raise ValueError(f"attack {attack!r} is none of {', '.join(ITERATIVE_ATTACKS)}")
    if attack == "iter_ll":
        labels, objective = least_likely_labels(logits_fn(images)), towards
    ascending = sorted({float(epsilon) for epsilon in epsilons})
    rungs = _climb(logits_fn, images, labels, objective, ascending, step_size, steps)
    return tf.gather(rungs, [ascending.index(float(epsilon)) for epsilon in epsilons])


def at_epsilons(
    attack: str,
    logits_fn: LogitsFn,
    images: tf.Tensor,
    labels: tf.Tensor,
    epsilons: Sequence[float],
    *,
    seed=None,
    **options,
) -> tf.Tensor:
    """Return the images of any attack for several epsilons, computing what they share once.

    The iterative attacks climb the ``ladder``; the one-step attacks take a single gradient; pgd
    shares nothing, as its step and its starts depend on epsilon.

    Args:
        attack: a name of ``ATTACKS``.
        logits_fn, images, labels: as for ``step_fgsm``.
        epsilons: in 0..255 units, in any order.
        seed: of step_rand and pgd, two integers; the others do not use it.
        **options: of the attack, such as ``objective`` or ``restarts``.

    Returns:
        (len(epsilons), batch, H, W, C), in the order of ``epsilons``.

    Raises:
        ValueError: no epsilon, or an unknown attack.
    """
    if not len(epsilons):
        raise ValueError("epsilons must name at least one epsilon")
    if attack not in ATTACKS:
        raise ValueError(f"attack {attack!r} is none of {', '.join(ATTACKS)}")
    if attack in ITERATIVE_ATTACKS:
        return ladder(logits_fn, images, labels, epsilons, attack=attack, **options)
    if attack in RANDOM_ATTACKS:
        options["seed"] = seed
    if attack in STEP_ATTACKS:
        versions = tf.reshape(tf.constant(list(epsilons), tf.float32), [-1, 1, 1, 1, 1])
        return STEP_ATTACKS[attack](logits_fn, images, labels, versions, **options)
    return tf.map_fn(
        lambda epsilon: ATTACKS[attack](logits_fn, images, labels, epsilon, **options),
        tf.constant(list(epsilons), images.dtype),
    )


def ladder_gradients(epsilons: Sequence[float]) -> int:
    """Return how many gradients of each image ``ladder`` takes, in steps of one pixel value."""
    counts = {float(epsilon): int(iterations(epsilon)) for epsilon in epsilons}
    trunk = int(min(max(counts), max(counts.values())))
    return trunk + sum(count - min(int(epsilon), count) for epsilon, count in counts.items())


STEP_ATTACKS = {
    "step_ll": step_ll,
    "step_fgsm": step_fgsm,
    "step_both": step_both,
    "step_rand": step_rand,
}
ITERATIVE_ATTACKS = {"iter_ll": iter_ll, "iter_fgsm": iter_fgsm}
ATTACKS = {**STEP_ATTACKS, **ITERATIVE_ATTACKS, "pgd": pgd}
RANDOM_ATTACKS = ("step_rand", "pgd")  # those that take a seed
OBJECTIVES = {"cross_entropy": cross_entropy, "margin": margin, "dlr": dlr}


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
