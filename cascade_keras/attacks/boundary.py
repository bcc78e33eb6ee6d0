"""FAB: the fast adaptive boundary attack (Croce & Hein, 2020), targeted, in the L-infinity norm.

It looks for the nearest misclassified image instead of one within a given epsilon, so one search
serves all epsilons. From the image x it steps to where the network, were it linear, would take the
image for a target class; where it is misclassified it goes back towards x, and so on along the
boundary, from which it is drawn towards the point that is nearest to x:

    f(z) = logit of the target - logit of the label,  H = {z: f(x_i) + grad f(x_i) (z - x_i) = 0}
    d = P_H(x_i) - x_i,  d' = P_H(x) - x,  alpha = min(|d| / (|d| + |d'|), 0.1)
    x_{i+1} = Clip((1 - alpha) (x_i + 1.05 d) + alpha (x + 1.05 d'))
    x_{i+1} = x + 0.9 (x_{i+1} - x)                  where the network misclassifies it

P_H is the projection onto H within [0, 1]^n. The nine classes that are the most likely after the
true one are the targets in turn; whichever other class the network sees counts.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import tensorflow as tf

from cascade_keras.attacks.arguments import (
    PIXEL_LEVELS,
    as_images,
    check_counts,
    per_image,
    to_unit_range,
)
from cascade_keras.attacks.carlini_wagner import ROUNDING, Minimal
from cascade_keras.attacks.entry import as_logits_fn, entry, given_images, given_labels
from cascade_keras.attacks.margins import margin, others
from cascade_keras.attacks.objectives import LogitsFn, classes_of, full_precision
from cascade_keras.attacks.searches import (
    Found,
    each_pixel,
    misclassified,
    put,
    rows_of,
    rows_where,
)
from cascade_keras.ranges import UNIT, ValueRange, check_value_range, scaled_from_unit

BACKWARD = 0.9  # of the way from the image, where an iterate is misclassified
EXTRAPOLATION = 1.05  # of a projection: a little beyond the plane
LARGEST_SHARE = 0.1  # of the image's own projection in an iterate
NEWTON_STEPS = 50  # of a projection at most; about seven are taken


@entry
def fab(
    logits_fn: LogitsFn,
    images: tf.Tensor,
    labels: tf.Tensor,
    epsilon,
    *,
    seed=None,
    iterations: int = 100,
    targets: int = 9,
) -> tf.Tensor:
    """The fast adaptive boundary attack: what is misclassified near each image, see above.

    An image is done as soon as one within epsilon is found; where there is none, and where it is
    misclassified already, the image itself is returned.

    Args:
        logits_fn, images, labels: as for ``step_fgsm``.
        epsilon: in 0..255 units, a scalar or (batch,).
        seed: taken as by other attacks; from the image itself nothing is drawn.
        iterations: of each target, of a forward pass and a gradient each.
        targets: how many classes are aimed at in turn, all others if there are fewer.

    Raises:
        InputError: fewer than one iteration or target.
        ValueError: an epsilon of another shape, negative or not finite.
    """
    del seed
    images = as_images(images)
    radius = per_image(epsilon, images)
    if radius.shape.rank and radius.shape[1:].num_elements() != 1:
        raise ValueError(f"epsilon must be a scalar or (batch,), got shape {radius.shape}")
    radius = tf.reshape(radius, [-1]) * tf.ones([tf.shape(images)[0]], images.dtype)
    labels = tf.cast(classes_of(labels), tf.int32)
    options = check_counts(iterations=iterations, targets=targets)
    found = _nearest(logits_fn, images, labels, to_unit_range(radius), **options)
    return tf.stop_gradient(_within(images, found, to_unit_range(radius)).images)


def minimal(
    logits_fn: LogitsFn,
    images: np.ndarray,
    labels: np.ndarray,
    *,
    iterations: int = 100,
    targets: int = 9,
    value_range: ValueRange = UNIT,
    batch_size: int = 256,
) -> Minimal:
    """Return the smallest perturbation that FAB finds of each image, as ``CarliniWagner`` does.

    Args:
        logits_fn: images (batch, H, W, C) -> logits (batch, classes), in inference mode.
        images: in ``value_range``, (N, H, W, C).
        labels: the true classes, (N,), or soft ones, of which the largest is meant.
        iterations, targets: as for ``fab``.
        value_range: the lowest and the highest value of a pixel, which ``logits_fn`` takes.
        batch_size: of the network.

    Raises:
        InputError: what other attacks refuse, and fewer than one iteration or target.
    """
    options = check_counts(iterations=iterations, targets=targets)
    value_range = check_value_range(value_range)
    given = np.asarray(images)
    images = given_images(images, value_range).numpy().astype(np.float32)
    labels = np.asarray(classes_of(given_labels(labels, len(images))), np.int32)
    network = as_logits_fn(logits_fn, value_range, labels)
    network(tf.fill([1, *images.shape[1:]], 0.5))  # is refused here where it gives no logits

    @tf.function(
        input_signature=[
            tf.TensorSpec([None, *images.shape[1:]], tf.float32), tf.TensorSpec([None], tf.int32)
        ],
        autograph=False,
    )  # fmt: skip
    def of_batch(images, labels):
        never = tf.zeros(tf.shape(labels), tf.float32)
        return _nearest(network, images, labels, never, **options)

    parts = [slice(i, i + batch_size) for i in range(0, max(len(images), 1), batch_size)]
    found = [[part.numpy() for part in of_batch(images[p], labels[p])] for p in parts]
    adversarial, sizes, gradients, _ = map(np.concatenate, zip(*found, strict=True))
    attacked = np.isfinite(sizes) & (sizes > 0)
    adversarial = scaled_from_unit(adversarial, value_range)
    # Images that are left alone are left as they are, to the last bit.
    adversarial[~attacked] = given[~attacked]
    return Minimal(np.float32(PIXEL_LEVELS) * sizes, adversarial, int(gradients.sum()))


def search(
    logits_fn: LogitsFn,
    images: tf.Tensor,
    labels: tf.Tensor,
    epsilon,
    keys: tf.Tensor | None = None,
    *,
    iterations: int = 100,
    targets: int = 9,
) -> Found:
    """Search at one epsilon; see ``searches``.

    Args:
        logits_fn, images, labels: images in [0, 1], int32 labels (batch,).
        epsilon: in 0..255 units, a scalar.
        keys: of the images; nothing is drawn of them.
        iterations, targets: as for ``fab``.
    """
    found = several(
        logits_fn, images, labels, [epsilon], keys, iterations=iterations, targets=targets
    )
    return Found(*(part[0] for part in found))


def several(
    logits_fn: LogitsFn,
    images: tf.Tensor,
    labels: tf.Tensor,
    epsilons: Sequence[float],
    keys: tf.Tensor | None = None,
    *,
    iterations: int = 100,
    targets: int = 9,
) -> Found:
    """Search at several epsilons, all of which one search serves.

    Args:
        logits_fn, images, labels, keys: as for ``search``.
        epsilons: in 0..255 units, in any order.
        iterations, targets: as for ``fab``.

    Returns:
        ``Found`` with a leading axis in the order of ``epsilons``; the passes, that of the clean
        images too, are counted at the smallest.
    """
    del keys
    options = check_counts(iterations=iterations, targets=targets)
    radii = tf.cast(to_unit_range(tf.stack(list(epsilons))), images.dtype)
    # An image that is done at the smallest epsilon above 0 is done at all.
    above = tf.where(radii > 0, radii, float("inf"))
    enough = tf.fill(tf.shape(labels), tf.reduce_min(above))
    found = _nearest(logits_fn, images, labels, enough, **options)
    return _within(images, found, radii[:, tf.newaxis])


class Nearest(NamedTuple):
    """The nearest misclassified image of each image of a batch.

    Attributes:
        images: float32 (batch, H, W, C) in [0, 1]; the clean ones where nothing was found.
        sizes: max|X_adv - X| in the range of [0, 1], (batch,); inf where nothing was found.
        gradients: how many forward passes with a backward pass each image took, int32 (batch,).
        forwards: how many forward passes alone, int32 (batch,).
    """

    images: tf.Tensor
    sizes: tf.Tensor
    gradients: tf.Tensor
    forwards: tf.Tensor


def _nearest(
    logits_fn: LogitsFn,
    images: tf.Tensor,
    labels: tf.Tensor,
    enough: tf.Tensor,
    *,
    iterations: int,
    targets: int,
) -> Nearest:
    """Search each image's nearest misclassified image: itself where it is misclassified.

    Args:
        enough: (batch,), in the range of [0, 1]: an image that is found as near is done.
    """
    logits = full_precision(logits_fn(images))
    classes = tf.shape(logits)[-1]
    ranked = tf.argsort(others(logits, labels), direction="DESCENDING")
    last = tf.minimum(targets, classes - 1) * iterations
    passes = tf.zeros_like(labels)
    sizes = tf.where(misclassified(logits, labels), 0.0, float("inf"))
    clean = Nearest(images, tf.cast(sizes, images.dtype), passes, passes + 1)

    def standing(found: Nearest) -> tf.Tensor:
        return (found.sizes > enough) & (found.sizes > 0)

    def step(number, found, points):
        rows = rows_where(standing(found))
        x, label, target, point, old = rows_of(
            rows, (images, labels, ranked[:, number // iterations], points, found)
        )
        point = tf.where(number % iterations == 0, x, point)
        point = _onwards(x, point, *_linearised(logits_fn, point, label, target))
        seen = full_precision(logits_fn(point))
        wrong = misclassified(seen, label)
        size = tf.reduce_max(tf.abs(point - x), axis=[1, 2, 3])
        better = wrong & _surely(seen, label) & (size < old.sizes)
        new = Nearest(
            tf.where(each_pixel(better), point, old.images),
            tf.where(better, size, old.sizes),
            old.gradients + 1,
            old.forwards + 1,
        )
        point = tf.where(each_pixel(wrong), x + BACKWARD * (point - x), point)
        return number + 1, put(found, rows, new), put(points, rows, point)

    _, found, _ = tf.while_loop(
        lambda number, found, _: (number < last) & tf.reduce_any(standing(found)),
        step,
        (tf.constant(0), clean, images),
    )
    return found


def _within(images: tf.Tensor, found: Nearest, radii: tf.Tensor) -> Found:
    """Return what was found within radii, (batch,) or (epsilons, 1), in the range of [0, 1]."""
    fooled = found.sizes <= radii
    near = tf.where(fooled[..., tf.newaxis, tf.newaxis, tf.newaxis], found.images, images)
    if fooled.shape.rank == 1:
        return Found(near, fooled, found.gradients, found.forwards)
    first = radii == tf.reduce_min(radii)  # where all passes are counted
    gradients, forwards = (tf.where(first, part, 0) for part in (found.gradients, found.forwards))
    return Found(near, fooled, gradients, forwards)


def _surely(logits: tf.Tensor, labels: tf.Tensor) -> tf.Tensor:
    """Return where the margin is more than the rounding of a batch of another size, (batch,)."""
    least = ROUNDING[0] * tf.reduce_max(tf.abs(logits), axis=-1)
    # Not ~(margin <= least), which is True of NaN: graphs are optimised to margin > least.
    finite = tf.reduce_all(tf.math.is_finite(logits), axis=-1)
    return (margin(labels)(logits) > least) | ~finite


def _linearised(logits_fn: LogitsFn, images, labels, targets) -> tuple[tf.Tensor, tf.Tensor]:
    """Return f, the target's logit less the label's, and its gradient: (batch,) and as images."""
    with tf.GradientTape(watch_accessed_variables=False) as tape:
        tape.watch(images)
        logits = full_precision(logits_fn(images))
        value = tf.gather(logits, targets, batch_dims=1) - tf.gather(logits, labels, batch_dims=1)
    gradient = tape.gradient(value, images, unconnected_gradients="zero")
    # Where there are no numbers there is no plane to go to.
    known = tf.math.is_finite(value) & tf.reduce_all(tf.math.is_finite(gradient), axis=[1, 2, 3])
    return tf.where(known, value, 0), tf.where(each_pixel(known), gradient, 0)


def _onwards(clean, points, values, gradients) -> tf.Tensor:
    """Return the next iterates, given f and its gradient at these: see above."""
    shape = tf.shape(points)
    clean, points, gradients = (
        tf.reshape(part, [shape[0], -1]) for part in (clean, points, gradients)
    )
    at_clean = values + tf.reduce_sum(gradients * (clean - points), axis=1)
    both = [tf.concat(pair, axis=0) for pair in (
        (points, clean), (gradients, gradients), (values, at_clean)
    )]  # fmt: skip
    step, own_step = tf.split(to_plane(*both), 2)
    length, own_length = (
        tf.maximum(tf.reduce_max(tf.abs(part), axis=1, keepdims=True), 1e-8)
        for part in (step, own_step)
    )
    share = tf.minimum(length / (length + own_length), LARGEST_SHARE)
    moved = (1 - share) * (points + EXTRAPOLATION * step)
    moved += share * (clean + EXTRAPOLATION * own_step)
    return tf.reshape(tf.clip_by_value(moved, 0.0, 1.0), shape)


def to_plane(points: tf.Tensor, normals: tf.Tensor, values: tf.Tensor) -> tf.Tensor:
    """Return the smallest steps in L-infinity to planes, within [0, 1]: as ``points``, (batch, n).

    Every coordinate goes the same way r towards the plane, or as far as its limit: the step reaches

        g(r) = sum_i |w_i| min(r, room_i) = |value|.

    g rises in straight pieces, each flatter than the one before. So Newton's steps from 0 never go
    too far, and end at the solution once they meet its piece. Where all of [0, 1]^n is on one side,
    the corner that is nearest to the plane is gone to.

    Args:
        points: in [0, 1].
        normals: w of each plane, as ``points``.
        values: value + w (z - point) is 0 where z is on the plane, (batch,).
    """
    values = values[:, tf.newaxis]
    direction = -tf.sign(values) * tf.sign(normals)
    room = tf.where(direction > 0, 1 - points, points)
    weights, needed = tf.abs(normals), tf.abs(values)
    more = 1 + 4 * np.finfo(points.dtype.as_numpy_dtype).eps  # than rounding

    def newton(number, reach, _):
        slope = tf.reduce_sum(tf.where(room > reach, weights, 0), axis=1, keepdims=True)
        missing = needed - tf.reduce_sum(weights * tf.minimum(room, reach), axis=1, keepdims=True)
        farther = tf.minimum(reach + tf.math.divide_no_nan(missing, slope), 1.0)
        # Every plane for itself, so that none depends on how long others take.
        grows = farther > more * reach
        return number + 1, tf.where(grows, farther, reach), tf.reduce_any(grows)

    _, reach, _ = tf.while_loop(
        lambda number, _, grows: grows & (number < NEWTON_STEPS),
        newton,
        (tf.constant(0), tf.zeros_like(values), tf.constant(True)),
    )
    return direction * tf.minimum(room, reach)
