"""Objectives that do not saturate, for attacks stronger than the paper's."""

from __future__ import annotations

import tensorflow as tf

from cascade_keras.attacks.objectives import Objective, classes_of, cross_entropy
from cascade_keras.errors import InputError


def others(logits: tf.Tensor, labels: tf.Tensor) -> tf.Tensor:
    """Return logits (batch, classes) in which those of the labels, (batch,), are the smallest."""
    labelled = tf.one_hot(labels, tf.shape(logits)[-1], on_value=True, off_value=False)
    return tf.where(labelled, logits.dtype.min, logits)


def margin(labels: tf.Tensor) -> Objective:
    """Return logits -> largest other logit minus the labelled one, (batch, classes) -> (batch,).

    Positive where the image is misclassified. Unlike the cross entropy it does not saturate, so
    its gradient stays informative when the logits are large (Carlini & Wagner, 2017). Of soft
    labels (batch, classes) the largest is the label.
    """
    labels = classes_of(labels)

    def objective(logits: tf.Tensor) -> tf.Tensor:
        true_logit = tf.gather(logits, labels, batch_dims=1)
        return tf.reduce_max(others(logits, labels), axis=-1) - true_logit

    return objective


def dlr(labels: tf.Tensor) -> Objective:
    """Return logits -> difference of logits ratio, (batch, classes) -> (batch,).

    The margin divided by the distance of the largest logit from the third largest, so that it does
    not depend on the scale of the logits (Croce & Hein, 2020). There must be three classes.

    Raises:
        InputError: by the objective, logits of two classes.
    """

    def objective(logits: tf.Tensor) -> tf.Tensor:
        _refuse_two(logits)
        largest = tf.math.top_k(logits, 3).values
        scale = largest[:, 0] - largest[:, 2]
        return margin(labels)(logits) / tf.maximum(scale, 1e-12)

    return objective


def targeted_dlr(labels: tf.Tensor, targets: tf.Tensor) -> Objective:
    """Return logits -> targeted difference of logits ratio, (batch, classes) -> (batch,).

    (z_target - z_label) / (z_1 - (z_3 + z_4) / 2), z_1 being the largest logit (equation 7 of Croce
    & Hein, 2020). Above zero only if the image is misclassified. There must be four classes.
    """

    def objective(logits: tf.Tensor) -> tf.Tensor:
        largest = tf.math.top_k(logits, 4).values
        scale = largest[:, 0] - (largest[:, 2] + largest[:, 3]) / 2
        gap = tf.gather(logits, targets, batch_dims=1) - tf.gather(logits, labels, batch_dims=1)
        return gap / tf.maximum(scale, 1e-12)

    return objective


def _refuse_two(logits: tf.Tensor) -> None:
    if logits.shape[-1] == 2:
        raise InputError(
            "dlr needs 3 classes, the network tells 2 apart; choose cross_entropy or margin",
            "objective",
        )


# What pgd can ascend, by the name that its option takes: labels -> an ``Objective``.
OBJECTIVES = {"cross_entropy": cross_entropy, "margin": margin, "dlr": dlr}
