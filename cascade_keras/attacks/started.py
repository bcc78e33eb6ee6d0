"""One-step adversarial images from a random start.

Not in the paper. A single step from the image itself is easily masked: trained with it, networks
learn a loss that is flat, or crooked, just there. These step from a random point near the image,

    start -> gradient of an objective at the start -> step -> projection, or none -> [0, 1]

and differ in these parts alone. B are random signs, U is uniform, P the projection onto the
epsilon ball of X; a start is brought to valid pixels before the gradient is taken.

    rs_fgsm   X0 = X + U(-eps, eps)       P(X0 + 1.25 eps sign(grad J(X0)))   Wong et al., 2020
    n_fgsm    X0 = X + U(-2 eps, 2 eps)   X0 + eps sign(grad J(X0))           de Jorge et al., 2022
    guided    X0 = X + eps / 2 B          P(X0 + eps sign(grad G(X0)))        Sriramanan et al. 2020

where J is the cross entropy, and G = J + guide * the distance of the network's outputs at X and
X0. That distance is what training makes small beside, so the attack looks for its worst point.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import tensorflow as tf

from cascade_keras import draws
from cascade_keras.attacks.arguments import as_images, as_seed, per_image, to_unit_range
from cascade_keras.attacks.entry import entry
from cascade_keras.attacks.objectives import (
    LogitsFn,
    cross_entropy,
    full_precision,
    input_gradient,
    over_members,
)
from cascade_keras.distances import DISTANCES, Distance

# Each start: (images, seed) -> how far from them, in units of its reach.
_STARTS: dict[str, Callable[[tf.Tensor, Any], tf.Tensor]] = {
    "none": lambda images, seed: tf.zeros_like(images),
    "bernoulli": draws.start_signs,
    "uniform": lambda images, seed: draws.start(images, seed, 0),
}
# Of ``guided``, the reach of each in units of epsilon.
_REACH = {"none": 0.0, "bernoulli": 0.5, "uniform": 1.0}


@entry
def rs_fgsm(
    logits_fn: LogitsFn, images: tf.Tensor, labels: tf.Tensor, epsilon, *, seed
) -> tf.Tensor:
    """Fast gradient sign method from a random start (Wong et al., 2020).

    Args:
        logits_fn, images, labels: as for ``step_fgsm``.
        epsilon: as there, but no ``Signed`` one.
        seed: one integer or two; the same seed gives the same start.
    """
    images, radius = _given(images, epsilon)
    start = started(images, radius, "uniform", as_seed(seed))
    direction = input_gradient(logits_fn, start, cross_entropy(labels))
    return moved(start, direction, 1.25 * radius, within=(images, radius))


@entry
def n_fgsm(
    logits_fn: LogitsFn, images: tf.Tensor, labels: tf.Tensor, epsilon, *, seed
) -> tf.Tensor:
    """Fast gradient sign method from far noise, without a projection (de Jorge et al., 2022).

    The images are up to three epsilons away from theirs: they are for training, not for measuring.
    Otherwise as ``rs_fgsm``.
    """
    images, radius = _given(images, epsilon)
    start = started(images, 2 * radius, "uniform", as_seed(seed))
    direction = input_gradient(logits_fn, start, cross_entropy(labels))
    return moved(start, direction, radius)


@entry
def guided(
    logits_fn: LogitsFn,
    images: tf.Tensor,
    labels: tf.Tensor,
    epsilon,
    *,
    seed,
    guide: float | tf.Tensor = 10.0,
    start: str = "bernoulli",
    distance: str | Distance = "softmax",
) -> tf.Tensor:
    """One step up the cross entropy and the distance of the outputs (Sriramanan et al., 2020).

    Args:
        logits_fn, images, labels, epsilon, seed: as for ``rs_fgsm``. The outputs are the logits, or
            what ``with_embedding`` has put beside them.
        guide: of the distance, a lambda in the paper's words; a number or a scalar. Where it is 0
            the clean images are not given to the network.
        start: "bernoulli", epsilon / 2 up or down at each value; "uniform" in the ball; "none".
        distance: of the outputs of images and starts, a name of ``DISTANCES`` or a function (at the
            starts, clean) -> scalar, the sum over the pairs.
    """
    images, radius = _given(images, epsilon)
    apart = DISTANCES[distance] if isinstance(distance, str) else distance
    begun = started(images, _REACH[start] * radius, start, as_seed(seed))

    def alone() -> tf.Tensor:
        return input_gradient(logits_fn, begun, cross_entropy(labels))

    def both() -> tf.Tensor:
        return _guided_gradient(logits_fn, images, begun, labels, guide, apart)

    known = tf.get_static_value(guide) if tf.is_tensor(guide) else guide
    if known is None:
        direction = tf.cond(guide > 0, both, alone)
    else:
        direction = both() if known > 0 else alone()
    return moved(begun, direction, radius, within=(images, radius))


def _guided_gradient(logits_fn, images, begun, labels, guide, apart: Distance) -> tf.Tensor:
    """Return the gradient of J(X0) + guide * distance(output(X0), output(X)), as ``images``."""
    clean = tf.stop_gradient(embedding_of(logits_fn(images)))
    with tf.GradientTape(watch_accessed_variables=False) as tape:
        tape.watch(begun)
        outputs = logits_fn(begun)
        logits = full_precision(outputs)
        total = tf.reduce_sum(over_members(cross_entropy(labels))(logits))
        weight = tf.cast(guide, total.dtype)
        total += weight * tf.cast(apart(embedding_of(outputs), clean), total.dtype)
    return tape.gradient(total, begun)


def started(images: tf.Tensor, reach: tf.Tensor, start: str, seed) -> tf.Tensor:
    """Return where a step begins: images plus noise, valid pixels.

    Args:
        images: (batch, H, W, C) in [0, 1].
        reach: of the noise, in 0..255 units, of the images' shape.
        start: "none", "bernoulli" or "uniform".
        seed: two integers.
    """
    if start == "none":
        return images
    return tf.clip_by_value(images + to_unit_range(reach) * _STARTS[start](images, seed), 0.0, 1.0)


def moved(start: tf.Tensor, direction: tf.Tensor, size: tf.Tensor, within=None) -> tf.Tensor:
    """Return start + size sign(direction), projected and clipped to valid pixels.

    Args:
        start: (batch, H, W, C) in [0, 1].
        direction: of that shape.
        size: in 0..255 units, of that shape.
        within: the images and the radius, in 0..255 units, of the balls that are projected onto;
            none where None.
    """
    step = to_unit_range(size) * tf.sign(direction)
    if within is None:
        return tf.stop_gradient(tf.clip_by_value(start + step, 0.0, 1.0))
    images, radius = within
    radius = to_unit_range(radius)
    perturbation = tf.clip_by_value(start - images + step, -radius, radius)
    return tf.stop_gradient(tf.clip_by_value(images + perturbation, 0.0, 1.0))


def _given(images: tf.Tensor, epsilon) -> tuple[tf.Tensor, tf.Tensor]:
    """Return images in [0, 1], and an epsilon of their shape, in 0..255 units."""
    images = as_images(images)
    return images, tf.broadcast_to(per_image(epsilon, images), tf.shape(images))


_EMBEDDING = "_cascade_keras_embedding"


def with_embedding(logits: tf.Tensor, embedding: tf.Tensor) -> tf.Tensor:
    """Return logits from which a guided attack can tell the embedding of the same pass.

    Args:
        logits: (batch, classes), a tensor of its own.
        embedding: (batch, d).
    """
    if embedding is not logits:
        setattr(logits, _EMBEDDING, embedding)
    return logits


def embedding_of(logits: tf.Tensor) -> tf.Tensor:
    """Return the embedding of logits ``with_embedding``; of others the logits, exact enough."""
    return full_precision(getattr(logits, _EMBEDDING, logits))
