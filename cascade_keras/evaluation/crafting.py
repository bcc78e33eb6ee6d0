"""Networks under attack: how their images are made, and what each network takes them for.

White box, a network is shown the adversarial images of its own gradients; black box, those of
another network, its source. matrix.py does both for many networks; what follows from the
predictions is in summary.py, and whether the numbers can be trusted in diagnosis.py.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Sequence

import numpy as np
import tensorflow as tf

from cascade_keras import attacks, draws

# Names of attacks, with what they add to the attack of ``attacks.ATTACKS`` that they are.
ATTACKS = {
    **{name: (name, {}) for name in attacks.ATTACKS},
    # The same steps on a loss that does not saturate. Where it is much stronger than iter_fgsm, the
    # network masks its gradients.
    "iter_margin": ("iter_fgsm", {"objective": attacks.margin}),
}
NOT_FINITE = -2  # predicted where logits are not finite numbers
_NOISE = 4  # what a seed is used for; data.py and cascade.py have 0 to 3


@dataclasses.dataclass(frozen=True)
class Result:
    """Accuracy of one network under one attack; attack "clean" has epsilon 0."""

    attack: str
    epsilon: float
    correct: int
    examples: int
    accuracy: float


Craft = Callable[[np.ndarray, np.ndarray, int], np.ndarray]
Predict = Callable[[np.ndarray, int], np.ndarray]


def crafter(
    logits_fn: attacks.LogitsFn,
    image_shape: Sequence[int],
    attack: str,
    epsilons: Sequence[float],
    *,
    seed: int = 0,
    **options,
) -> Craft:
    """Return the compiled function that makes an attack's images of one batch at every epsilon.

    It takes images (batch, H, W, C), true labels (batch,) and the index of the first image, from
    which the noise follows, and returns float32 (epsilons, batch, H, W, C).

    Args:
        logits_fn: of the source, images (batch, H, W, C) -> logits (batch, classes), in inference
            mode.
        image_shape: (H, W, C).
        attack: "clean" or a name of ``ATTACKS``.
        epsilons: in 0..255 units.
        seed: of the noise of step_rand and the starts of pgd.
        **options: of the attack; ``objective`` is a name of ``attacks.OBJECTIVES``.

    Raises:
        ValueError: an unknown attack.
    """
    if attack != "clean" and attack not in ATTACKS:
        raise ValueError(f"attack {attack!r} is none of clean, {', '.join(ATTACKS)}")
    if "objective" in options:
        options["objective"] = attacks.OBJECTIVES[options["objective"]]

    @tf.function
    def make(images: tf.Tensor, labels: tf.Tensor, first: tf.Tensor) -> tf.Tensor:
        if attack == "clean":
            return images[None]
        name, own = ATTACKS[attack]
        return attacks.at_epsilons(
            name, logits_fn, images, labels, epsilons, seed=[seed, first], **own, **options
        )

    # One trace serves every batch, the shorter last one too.
    make = make.get_concrete_function(
        tf.TensorSpec([None, *image_shape], tf.float32),
        tf.TensorSpec([None], tf.int32),
        tf.TensorSpec([], tf.int32),
    )

    def craft(images: np.ndarray, labels: np.ndarray, first: int) -> np.ndarray:
        return make(
            tf.constant(images), tf.constant(labels, tf.int32), tf.constant(first, tf.int32)
        ).numpy()

    return craft


def predictor(
    logits_fn: attacks.LogitsFn,
    image_shape: Sequence[int],
    *,
    noise: float = 0.0,
    seed: int = 0,
) -> Predict:
    """Return the compiled function that classifies versions of a batch.

    It takes images (versions, batch, H, W, C) and the index of the first image, and returns classes
    int32 (versions, batch), ``NOT_FINITE`` where logits are not finite.

    Args:
        logits_fn: as for ``crafter``.
        image_shape: (H, W, C).
        noise: random signs of so many pixel values are added before the network (the released code
            has this as a defence at test time); no attack knows of it.
        seed: of that noise.
    """

    @tf.function
    def classify(versions: tf.Tensor, first: tf.Tensor) -> tf.Tensor:
        def classes(images: tf.Tensor) -> tf.Tensor:
            if noise:
                key = tf.random.fold_in([seed, _NOISE], first, alg=draws.GENERATOR)
                images = attacks.step_rand(logits_fn, images, None, noise, seed=key)
            logits = logits_fn(images)
            finite = tf.reduce_all(tf.math.is_finite(logits), axis=-1)
            return tf.where(finite, tf.argmax(logits, -1, tf.int32), NOT_FINITE)

        return tf.map_fn(classes, versions, fn_output_signature=tf.int32)

    classify = classify.get_concrete_function(
        tf.TensorSpec([None, None, *image_shape], tf.float32), tf.TensorSpec([], tf.int32)
    )
    return lambda versions, first: classify(tf.constant(versions), tf.constant(first)).numpy()


def zero_gradients(logits_fn: attacks.LogitsFn, image_shape: Sequence[int]) -> Callable:
    """Return the compiled function that tells whose input gradients are exactly zero.

    It takes images (batch, H, W, C) and true labels (batch,), and returns int32 (2, batch), 1 where
    all of an image's gradient of the cross entropy (first row), of the margin of the logits
    (second row) is zero. A network that saturates has zeros in the first row only.
    """

    @tf.function
    def find(images: tf.Tensor, labels: tf.Tensor) -> tf.Tensor:
        gradients = tf.stack(
            [
                attacks.input_gradient(logits_fn, images, objective(labels))
                for objective in (attacks.cross_entropy, attacks.margin)
            ]
        )
        return tf.cast(tf.reduce_all(gradients == 0, axis=[2, 3, 4]), tf.int32)

    find = find.get_concrete_function(
        tf.TensorSpec([None, *image_shape], tf.float32), tf.TensorSpec([None], tf.int32)
    )
    return lambda images, labels: find(tf.constant(images), tf.constant(labels, tf.int32)).numpy()


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
    show: Callable[[int, np.ndarray], None] = lambda first, versions: None,
    **options,
) -> list[Result]:
    """Attack a network with itself as the source, at several epsilons; count what is still right.

    Args:
        logits_fn: images (batch, H, W, C) -> logits (batch, classes), in inference mode.
        images: float32 in [0, 1], (N, H, W, C).
        labels: the true classes, (N,).
        attack: "clean" or a name of ``ATTACKS``.
        epsilons: in 0..255 units.
        seed: of the noise of step_rand and the starts of pgd.
        progress: called with the number of images done after each batch.
        show: called with the index of the first image of each batch and its adversarial images,
            (epsilons, batch, H, W, C).
        **options: of the attack, see ``crafter``.

    Returns:
        One ``Result`` for each epsilon.

    Raises:
        ValueError: an unknown attack.
    """
    shape = images.shape[1:]
    craft = crafter(logits_fn, shape, attack, epsilons, seed=seed, **options)
    predict = predictor(logits_fn, shape)
    correct = np.zeros(len(epsilons), np.int64)
    for first, batch, true in slices(images, labels, batch_size):
        versions = craft(batch, true, first)
        show(first, versions)
        correct += np.count_nonzero(predict(versions, first) == true, axis=1)
        progress(first + len(batch))
    return [
        Result(attack, float(epsilon), int(count), len(images), 100.0 * int(count) / len(images))
        for epsilon, count in zip(epsilons, correct, strict=True)
    ]


def slices(
    images: np.ndarray, labels: np.ndarray, batch_size: int
) -> Iterator[tuple[int, np.ndarray, np.ndarray]]:
    """Yield the index of the first image, images and labels of each batch in turn."""
    for first in range(0, len(images), batch_size):
        part = slice(first, first + batch_size)
        yield first, images[part], labels[part]
