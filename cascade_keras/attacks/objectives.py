"""What an attack ascends: functions of the logits, one value an image."""

from __future__ import annotations

from collections.abc import Callable

import tensorflow as tf

PIXEL_LEVELS = 255.0

LogitsFn = Callable[[tf.Tensor], tf.Tensor]
Objective = Callable[[tf.Tensor], tf.Tensor]


def to_unit_range(epsilon) -> tf.Tensor:
    """Convert epsilon or a step size from pixel units of 0..255 to the [0, 1] range of images."""
    return tf.convert_to_tensor(epsilon) / PIXEL_LEVELS


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


def objective_gradient(
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
    return objective_gradient(logits_fn, images, lambda _: objective)
