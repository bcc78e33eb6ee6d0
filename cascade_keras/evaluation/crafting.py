"""Networks under attack: how their images are made, and what each network takes them for.

White box, a network is shown the adversarial images of its own gradients; black box, those of
another network, its source. tasks.py does both for many networks; what follows from the
predictions is in summary.py, and whether the numbers can be trusted in diagnosis.py.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import numpy as np
import tensorflow as tf

from cascade_keras import attacks, draws
from cascade_keras.attacks import specs
from cascade_keras.attacks.arguments import check_range
from cascade_keras.attacks.epsilons import search
from cascade_keras.attacks.searches import Broken, Found
from cascade_keras.evaluation.stores import Craft, Crafted, Telling, told_by

NOT_FINITE = -2  # predicted where logits are not finite numbers
# Versions (epsilons, batch, H, W, C) and the index of the first image -> classes, int.
Predict = Callable[[np.ndarray, int], np.ndarray]


def crafter(
    logits_fn: attacks.LogitsFn,
    image_shape: Sequence[int],
    attack: str,
    epsilons: Sequence[float],
    *,
    seed: int = 0,
    num_classes: int | None = None,
    signed: bool = False,
    **options,
) -> Craft:
    """Return the function that makes an attack's images of one batch at every epsilon, compiled.

    It takes images (batch, H, W, C), true labels (batch,) and the index of the first image, from
    which the noise follows, and returns float32 (epsilons, batch, H, W, C). That of AutoAttack or
    of a member of it is a ``stores.Telling``, and takes the places of all images too, (batch,).

    Args:
        logits_fn: of the source, images (batch, H, W, C) -> logits (batch, classes), in inference
            mode.
        image_shape: (H, W, C).
        attack: "clean" or the name of a row of ``attacks.specs.ATTACKS``.
        epsilons: in 0..255 units.
        seed: of the attacks that draw random numbers.
        num_classes: of the logits; None finds out, where an attack asks.
        signed: whether one-step attacks may be given negative epsilons, steps to the other side.
        **options: of the attack; those not given are the row's.

    Raises:
        ValueError: an unknown attack, one that gives no images, or epsilons out of range.
    """
    check_range(epsilons, "epsilons", signed=signed)
    if attack == "clean":
        return lambda images, labels, first: np.asarray(images, np.float32)[None]
    spec = specs.look_up(attack, (*specs.image_attacks(), *specs.names(specs.SUITE)))
    options = {**spec.options, **options}
    if spec.kind == specs.SUITE:
        classes = num_classes or int(logits_fn(tf.zeros([1, *image_shape])).shape[-1])
        suite = spec.resolve()(
            logits_fn, image_shape, epsilons, num_classes=classes, seed=seed, **options
        )

        def broken(images: np.ndarray, labels: np.ndarray, first: int) -> Crafted:
            found = suite(images, labels, first)
            return Crafted(found.images, _told(attack, found))

        return Telling(broken)
    nested = spec.kind == specs.NESTED

    @tf.function(autograph=False)
    def make(images: tf.Tensor, labels: tf.Tensor, first: tf.Tensor) -> tf.Tensor | Found:
        given = attack, logits_fn, images, labels, epsilons
        if nested:
            return search(*given, seed=draws.image_keys(seed, first), **options)
        key = draws.attack_seed(seed, first)
        return attacks.at_epsilons(*given, seed=key, signed=signed, **options)

    # One trace serves every batch, the shorter last one too.
    make = make.get_concrete_function(
        tf.TensorSpec([None, *image_shape], tf.float32),
        tf.TensorSpec([None], tf.int32),
        tf.TensorSpec([None] if nested else [], tf.int32),
    )

    def made(images: np.ndarray, labels: np.ndarray, first: int) -> tf.Tensor | Found:
        if nested:
            first = draws.places(first, len(images))
        return make(
            tf.constant(images), tf.constant(labels, tf.int32), tf.constant(first, tf.int32)
        )

    def tell(images: np.ndarray, labels: np.ndarray, first: int) -> Crafted:
        found = made(images, labels, first)
        return Crafted(found.images.numpy(), _told(attack, found))

    return Telling(tell) if nested else lambda *batch: made(*batch).numpy()


def _told(attack: str, found: Found | Broken) -> np.ndarray:
    return np.stack([np.asarray(getattr(found, name), np.int32) for name in told_by(attack)])


def predicted(logits: tf.Tensor) -> tf.Tensor:
    """Return the class that logits (batch, classes) stand for, (batch,); else ``NOT_FINITE``."""
    finite = tf.reduce_all(tf.math.is_finite(logits), axis=-1)
    return tf.where(finite, tf.argmax(logits, -1, tf.int32), NOT_FINITE)


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

    @tf.function(autograph=False)
    def classify(versions: tf.Tensor, first: tf.Tensor) -> tf.Tensor:
        def classes(images: tf.Tensor) -> tf.Tensor:
            if noise:
                key = draws.noise_seed(seed, first)
                images = attacks.step_rand(logits_fn, images, None, noise, seed=key)
            return predicted(logits_fn(images))

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

    @tf.function(autograph=False)
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


def slices(
    images: np.ndarray, labels: np.ndarray, batch_size: int
) -> Iterator[tuple[int, np.ndarray, np.ndarray]]:
    """Yield the index of the first image, images and labels of each batch in turn."""
    for first in range(0, len(images), batch_size):
        part = slice(first, first + batch_size)
        yield first, images[part], labels[part]
