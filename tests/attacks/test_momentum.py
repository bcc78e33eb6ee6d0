"""Momentum and what makes its images carry over, each against a plain version in NumPy."""

import numpy as np
import pytest
import tensorflow as tf
from scipy import signal, stats
from support.networks import smooth

from cascade_keras import attacks, draws
from cascade_keras.attacks import momentum
from cascade_keras.errors import InputError

SEED = 5
EPSILON = 10.0
SHORT = {"steps": 3, "seed": SEED}


@pytest.fixture(scope="module")
def batch(digits):
    images = tf.constant(digits[0][:6], tf.float64)
    return images, tf.argmax(smooth(images), -1, tf.int32)


def resized(image, numbers, probability):
    """An image as its four random numbers have it: whether, how large, from the top, the left."""
    changed, side, top, left = numbers
    height, width = image.shape[:2]
    if changed >= probability:
        return image
    least = int(0.9 * height)
    rows = least + int(side * (height - least))
    columns = round(width * rows / height)
    top, left = int(top * (height - rows + 1)), int(left * (width - columns + 1))
    small = tf.image.resize(image, [rows, columns], "bilinear")
    rest = [(top, height - rows - top), (left, width - columns - left), (0, 0)]
    return tf.pad(tf.cast(small, image.dtype), rest)


def plain(images, labels, numbers=None, *, steps=3, step_size=None, mu=1.0, diversity=0.0,
          kernel=None, scales=1, nesterov=False):  # fmt: skip
    """The attack of a batch; of the network and of resizing TensorFlow's own gradients are used."""
    radius = EPSILON / 255
    alpha = radius / steps if step_size is None else step_size / 255
    made, along = images.copy(), np.zeros_like(images)
    for step in range(steps):
        start = made + alpha * mu * along if nesterov else made
        total = np.zeros_like(images)
        for i in range(scales):
            x = tf.constant(start)
            with tf.GradientTape() as tape:
                tape.watch(x)
                shown = x / 2**i
                if diversity:
                    own = numbers[step * scales + i]
                    shown = tf.stack([resized(shown[n], own[n], diversity) for n in range(len(x))])
                losses = tf.nn.sparse_softmax_cross_entropy_with_logits(labels, smooth(shown))
                loss = tf.reduce_sum(losses)
            total += tape.gradient(loss, x).numpy() / scales
        if kernel is not None:
            for image in total:
                for channel in range(image.shape[-1]):
                    image[..., channel] = signal.convolve2d(image[..., channel], kernel, "same")
        along = mu * along + total / np.abs(total).mean(axis=(1, 2, 3), keepdims=True)
        made = np.clip(
            np.clip(made + alpha * np.sign(along), images - radius, images + radius), 0, 1
        )
    return made


def gaussian(size, deviations=3):
    weights = stats.norm.pdf(np.linspace(-deviations, deviations, size))
    return np.outer(weights, weights) / np.outer(weights, weights).sum()


OPTIONS = {
    "momentum": ({}, {}),
    "less": ({"momentum": 0.5, "step_size": 4.0}, {"mu": 0.5, "step_size": 4.0}),
    "diversity": ({"diversity": 0.7}, {"diversity": 0.7}),
    "translation": ({"translation": 5}, {"kernel": gaussian(5)}),
    "scales": ({"scales": 3}, {"scales": 3}),
    "nesterov": ({"nesterov": True}, {"nesterov": True}),
    "all": (
        {"diversity": 0.8, "translation": 3, "scales": 2, "nesterov": True},
        {"diversity": 0.8, "kernel": gaussian(3), "scales": 2, "nesterov": True},
    ),
}


@pytest.mark.parametrize(("options", "own"), OPTIONS.values(), ids=OPTIONS)
def test_equals_a_plain_version(options, own, batch):
    images, labels = batch
    keys = draws.image_keys(SEED, tf.range(len(images)))
    numbers = [
        draws.of_images(draws.uniform_of, keys, n, [4], 0.0, 1.0).numpy()
        for n in range(own.get("steps", 3) * own.get("scales", 1))
    ]
    expected = plain(images.numpy(), labels, numbers, **own)

    @tf.function
    def attack(images, labels):
        return attacks.mi_fgsm(smooth, images, labels, EPSILON, **{**SHORT, **options})

    made = attack(images, labels).numpy()
    np.testing.assert_allclose(made, expected, rtol=0, atol=1e-9)
    assert np.abs(made - images).max() > 0.9 * EPSILON / 255


def test_each_option_changes_the_images(batch):
    images, labels = (part.numpy() for part in batch)
    numbers = np.random.default_rng(0).uniform(size=(9, len(images), 4))
    made = [plain(images, labels, numbers, **own) for _, own in OPTIONS.values()]
    for i, first in enumerate(made):
        assert not any(np.allclose(first, other) for other in made[:i])


@pytest.mark.parametrize("shape", [(28, 28, 1), (40, 32, 3), (5, 60, 2), (1, 1, 1)])
def test_resizing_equals_tensorflows_own(shape):
    images = tf.random.stateless_uniform([16, *shape], [0, 1], dtype=tf.float64)
    keys = draws.image_keys(SEED, tf.range(16))
    numbers = draws.of_images(draws.uniform_of, keys, 7, [4], 0.0, 1.0).numpy()
    made = momentum.diverse(images, keys, 7, 0.6).numpy()
    if shape[0] > 1:
        expected = [resized(image, own, 0.6) for image, own in zip(images, numbers, strict=True)]
        np.testing.assert_allclose(made, expected, rtol=0, atol=1e-5)
        kept = (made == images.numpy()).all(axis=(1, 2, 3))
        np.testing.assert_array_equal(kept, numbers[:, 0] >= 0.6)
        assert 2 < kept.sum() < 13
    else:
        np.testing.assert_array_equal(made, images)  # there is nothing smaller


@pytest.mark.parametrize("size", [1, 3, 7, 15])
def test_the_kernel_is_the_published_one(size):
    weights = momentum.gaussian(size)
    np.testing.assert_allclose(np.outer(weights, weights), gaussian(size), atol=1e-12)


def test_what_an_image_becomes_depends_on_no_other(batch):
    images, labels = batch
    options = {"diversity": 0.7, "scales": 2, "steps": 2}
    keys = draws.image_keys(SEED, tf.range(6))
    every = attacks.mi_fgsm(smooth, images, labels, EPSILON, seed=keys, **options)
    own = attacks.mi_fgsm(smooth, images, labels, EPSILON, seed=SEED, **options)
    np.testing.assert_array_equal(own, every)
    rows = [4, 1]
    some = attacks.mi_fgsm(
        smooth, *(tf.gather(part, rows) for part in batch), EPSILON, seed=tf.gather(keys, rows),
        **options,
    )  # fmt: skip
    np.testing.assert_allclose(some, tf.gather(every, rows), atol=1e-12)
    other = attacks.mi_fgsm(smooth, images, labels, EPSILON, seed=SEED + 1, **options)
    assert np.any(other != own)
    # Each image its own epsilon.
    several = attacks.mi_fgsm(
        smooth, images, labels, tf.constant([10.0, 0, 10, 4, 4, 10]), seed=SEED, **options
    )
    rows = [0, 2, 5]
    np.testing.assert_array_equal(tf.gather(several, rows), tf.gather(own, rows))
    np.testing.assert_array_equal(several[1], images[1])


def test_flat_gradients_move_nothing(batch):
    """There is no direction in them: no image of numbers that are none."""

    def flat(images):
        return tf.reduce_sum(0 * images, [1, 2, 3])[:, None] + [[2.0, 1.0]]

    made = attacks.mi_fgsm(flat, batch[0], tf.zeros(6, tf.int32), EPSILON, seed=SEED, steps=2)
    np.testing.assert_array_equal(made, batch[0])


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"steps": 0}, "steps must be a whole number"),
        ({"scales": 1.5}, "scales must be a whole number"),
        ({"translation": 4}, "translation must be odd"),
        ({"diversity": 1.5}, "diversity must be a probability"),
        ({"diversity": float("nan")}, "diversity must be a probability"),
        ({"momentum": -1}, "momentum must be 0 or above"),
        ({"nesterov": 1}, "nesterov must be True or False"),
    ],
)
def test_options_outside_their_range_are_refused(options, said, batch):
    with pytest.raises(InputError, match=said):
        attacks.MIFGSM(**options)
    with pytest.raises(InputError, match=said):
        attacks.mi_fgsm(smooth, *batch, 8, seed=1, **options)
