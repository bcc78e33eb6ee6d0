"""What an attack ascends, and its gradient."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import tensorflow as tf

from cascade_keras.attacks.arguments import as_images

# A network in inference mode: images (batch, H, W, C) -> logits (batch, classes).
LogitsFn = Callable[[tf.Tensor], tf.Tensor]
# What an attack makes large: logits (batch, classes) -> (batch,).
Objective = Callable[[tf.Tensor], tf.Tensor]


def cross_entropy(labels: tf.Tensor) -> Objective:
    """Return logits -> J(X, labels) of each image, (batch, classes) -> (batch,).

    ``labels`` are classes, integers (batch,), or soft, floats (batch, classes) whose rows sum to 1.
    """
    if labels_are_soft(labels):
        return lambda logits: tf.nn.softmax_cross_entropy_with_logits(
            tf.cast(labels, logits.dtype), logits
        )
    return lambda logits: tf.nn.sparse_softmax_cross_entropy_with_logits(labels, logits)


def labels_are_soft(labels: tf.Tensor) -> bool:
    """Whether labels are rows (batch, classes) instead of classes (batch,)."""
    shape = np.shape(labels)
    return (shape.rank if isinstance(shape, tf.TensorShape) else len(shape)) == 2


def classes_of(labels: tf.Tensor) -> tf.Tensor:
    """Return the class of each image, (batch,): of soft labels, that of the largest."""
    return tf.argmax(labels, axis=-1, output_type=tf.int32) if labels_are_soft(labels) else labels


def towards(labels: tf.Tensor) -> Objective:
    """Return logits -> -J(X, labels): ascending it makes an image look like ``labels``."""
    return lambda logits: -cross_entropy(labels)(logits)


def least_likely_labels(logits: tf.Tensor) -> tf.Tensor:
    """Return y_LL, the class with the smallest logit, (batch, classes) -> (batch,) int32."""
    return tf.argmin(full_precision(logits), axis=-1, output_type=tf.int32)


def objective_gradient(
    logits_fn: LogitsFn, images: tf.Tensor, make_objective: Callable[[tf.Tensor], Objective]
) -> tf.Tensor:
    """Return the gradient of the objective with respect to each image, as ``images``.

    ``make_objective`` is given the logits of the images, on which the target of some attacks
    depends, so that one forward pass is enough.
    """
    images = as_images(images)
    # Only the images are watched: recording the weights as well would cost memory and time.
    with tf.GradientTape(watch_accessed_variables=False) as tape:
        tape.watch(images)
        logits = full_precision(logits_fn(images))
        objective = make_objective(tf.stop_gradient(logits))
        # A sum keeps each image's gradient independent of the batch size; a mean would shrink it
        # and underflow to a zero sign in low precision.
        total = tf.reduce_sum(over_members(objective)(logits))
    return tape.gradient(total, images)


def input_gradient(logits_fn: LogitsFn, images: tf.Tensor, objective: Objective) -> tf.Tensor:
    """Return the gradient of the objective with respect to each image, as ``images``."""
    return objective_gradient(logits_fn, images, lambda _: objective)


_MEMBERS = "_cascade_keras_members"


def with_members(mean: tf.Tensor, members: Sequence[tf.Tensor]) -> tf.Tensor:
    """Return an ensemble's mean logits, from which an attack can tell those of its members.

    Args:
        mean: (batch, classes), a tensor of its own.
        members: of each network, (batch, classes) too.
    """
    setattr(mean, _MEMBERS, tuple(members))
    return mean


def over_members(objective: Objective) -> Objective:
    """Return the objective, which of logits ``with_members`` is the mean of each member's own.

    Every attack that differentiates an objective of logits takes it through this.
    """

    def averaged(logits: tf.Tensor) -> tf.Tensor:
        members = getattr(logits, _MEMBERS, None)
        if members is None:
            return objective(logits)
        return tf.add_n([objective(member) for member in members]) / len(members)

    return averaged


def full_precision(logits: tf.Tensor) -> tf.Tensor:
    """Return logits of half precision in float32, in which losses of them are exact enough."""
    return tf.cast(logits, tf.float32) if logits.dtype.size < 4 else logits
