"""Accuracy of a network under attack."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Sequence

import numpy as np
import tensorflow as tf

from cascade_keras import attacks

# Names of attacks, with what they add to the attack of ``attacks.ATTACKS`` that they are.
ATTACKS = {
    **{name: (name, {}) for name in attacks.ATTACKS},
    # The same steps on a loss that does not saturate. Where it is much stronger than iter_fgsm, the
    # network masks its gradients.
    "iter_margin": ("iter_fgsm", {"objective": attacks.margin}),
}


@dataclasses.dataclass(frozen=True)
class Result:
    """Accuracy of one network under one attack; attack "clean" has epsilon 0."""

    attack: str
    epsilon: float
    correct: int
    examples: int
    accuracy: float


def evaluate(
    logits_fn: attacks.LogitsFn,
    images: np.ndarray,
    labels: np.ndarray,
    attack: str,
    epsilon: float = 0.0,
    **options,
) -> Result:
    """Attack a network with itself as the source (white box) and count what it still gets right.

    As ``sweep`` for a single epsilon.
    """
    return sweep(logits_fn, images, labels, attack, [epsilon], **options)[0]


def sweep(
    logits_fn: attacks.LogitsFn,
    images: np.ndarray,
    labels: np.ndarray,
    attack: str,
    epsilons: Sequence[float],
    *,
    seed: int = 0,
    batch_size: int = 250,
    progress: Callable[[int], None] = lambda done: None,
) -> list[Result]:
    """Attack a network with itself as the source, at several epsilons; count what is still right.

    Args:
        logits_fn: images (batch, H, W, C) -> logits (batch, classes), in inference mode.
        images: float32 in [0, 1], (N, H, W, C).
        labels: the true classes, (N,).
        attack: "clean" or a name of ``ATTACKS``.
        epsilons: in 0..255 units.
        seed: of the noise of step_rand.
        progress: called with the number of images done after each batch.

    Returns:
        One ``Result`` for each epsilon.

    Raises:
        ValueError: an unknown attack.
    """
    if attack != "clean" and attack not in ATTACKS:
        raise ValueError(f"attack {attack!r} is none of clean, {', '.join(ATTACKS)}")

    signature = (
        tf.TensorSpec([None, *images.shape[1:]], tf.float32),
        tf.TensorSpec([None], tf.int32),
        tf.TensorSpec([], tf.int32),
    )

    @tf.function
    def count_correct(batch: tf.Tensor, true: tf.Tensor, first: tf.Tensor) -> tf.Tensor:
        versions = batch[None]
        if attack != "clean":
            name, options = ATTACKS[attack]
            versions = attacks.at_epsilons(
                name, logits_fn, batch, true, epsilons, seed=[seed, first], **options
            )

        def count(version: tf.Tensor) -> tf.Tensor:
            predicted = tf.argmax(logits_fn(version), axis=-1, output_type=true.dtype)
            return tf.math.count_nonzero(predicted == true)

        return tf.map_fn(count, versions, fn_output_signature=tf.int64)

    # One trace serves every batch, the shorter last one too.
    count_correct = count_correct.get_concrete_function(*signature)
    correct = np.zeros(len(epsilons), np.int64)
    for first, batch, true in _slices(images, labels, batch_size):
        correct += count_correct(batch, true, tf.constant(first)).numpy()
        progress(min(first + batch_size, len(images)))
    return [
        Result(attack, float(epsilon), int(count), len(images), 100.0 * int(count) / len(images))
        for epsilon, count in zip(epsilons, correct, strict=True)
    ]


def _slices(
    images: np.ndarray, labels: np.ndarray, batch_size: int
) -> Iterator[tuple[int, tf.Tensor, tf.Tensor]]:
    for first in range(0, len(images), batch_size):
        part = slice(first, first + batch_size)
        yield first, tf.constant(images[part]), tf.constant(labels[part], tf.int32)
