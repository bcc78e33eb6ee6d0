"""AutoAttack by the Adversarial Robustness Toolbox on small networks."""

import sys

import numpy as np
import pytest
import tensorflow as tf

from cascade_keras import attacks
from cascade_keras.attacks import autoattack
from cascade_keras.errors import InputError

COUNT = 40
EPSILONS = (24, 12)
SHORT = {"iterations": 10, "queries": 20}


@pytest.fixture(scope="module")
def logits_fn(learned):
    return tf.function(learned)


@pytest.fixture(scope="module")
def batch(digits):
    return digits[0][:COUNT], digits[1][:COUNT]


def craft(logits_fn, batch, epsilons=EPSILONS, **options):
    settings = {"seed": 7, "num_classes": 10, **SHORT, **options}
    return autoattack.autoattack(logits_fn, *batch, epsilons, **settings)


@pytest.fixture(scope="module")
def crafted(logits_fn, batch):
    """The images of both epsilons, and that NumPy's generator was left alone on the way."""
    np.random.seed(123)
    expected = np.random.random(5)
    np.random.seed(123)
    images = craft(logits_fn, batch)
    np.testing.assert_array_equal(np.random.random(5), expected)
    return images


def correct(logits_fn, images, labels):
    return np.argmax(logits_fn(tf.constant(images)), axis=-1) == labels


def test_stays_in_the_ball_and_in_the_valid_range(crafted, batch):
    assert crafted.shape == (2, *batch[0].shape)
    assert crafted.dtype == np.float32
    assert crafted.min() >= 0 and crafted.max() <= 1
    reach = 255 * np.abs(crafted - batch[0]).max(axis=(1, 2, 3, 4))
    assert (reach <= np.array(EPSILONS) + 1e-4).all()
    assert (reach > 0.9 * np.array(EPSILONS)).all()


def test_leaves_alone_what_it_does_not_fool(crafted, batch, logits_fn):
    images, labels = batch
    clean = correct(logits_fn, images, labels)
    assert 0 < clean.sum() < COUNT
    for found in crafted:
        robust = correct(logits_fn, found, labels)
        unchanged = (found == images).all(axis=(1, 2, 3))
        np.testing.assert_array_equal(unchanged, robust | ~clean)
        assert 0 < robust.sum() < clean.sum()


def test_is_no_weaker_than_pgd_of_as_many_steps(crafted, batch, logits_fn):
    for epsilon, found in zip(EPSILONS, crafted):
        pgd = attacks.pgd(logits_fn, *batch, float(epsilon), steps=SHORT["iterations"], seed=(0, 0))
        survivors = [correct(logits_fn, images, batch[1]).sum() for images in (found, pgd)]
        assert survivors[0] <= survivors[1] + 1


def test_depends_on_the_seed_only_but_for_the_rounding_of_smaller_batches(
    crafted, batch, logits_fn
):
    first = EPSILONS[:1]
    np.testing.assert_array_equal(craft(logits_fn, batch, first), crafted[:1])
    assert not np.array_equal(craft(logits_fn, batch, first, seed=8), crafted[:1])
    found = craft(logits_fn, batch, [0, *first], batch_size=7)
    np.testing.assert_array_equal(found[0], batch[0])
    survivors = [correct(logits_fn, images, batch[1]).sum() for images in (found[1], crafted[0])]
    assert abs(survivors[0] - survivors[1]) <= 2


@pytest.mark.parametrize("classes", [2, 3, 4])
def test_few_classes(classes):
    """A linear network falls where the corner of the ball in its direction is across the border."""
    rng = np.random.default_rng(0)
    weights = tf.constant(rng.normal(size=(64, classes)), tf.float32)
    images = rng.uniform(0.3, 0.7, (30, 8, 8, 1)).astype("float32")

    def linear(x):
        return tf.reshape(x - 0.5, [-1, 64]) @ weights

    logits = linear(images).numpy()
    labels = logits.argmax(axis=1)
    reach = np.abs(weights - weights.numpy()[:, labels].T[:, :, None]).sum(axis=1)  # (30, classes)
    epsilon = 4
    others = np.arange(classes) != labels[:, None]
    gaps = np.max(
        logits - logits.max(axis=1, keepdims=True) + epsilon / 255 * reach,
        1,
        where=others,
        initial=-np.inf,
    )

    found = craft(linear, (images, labels), [epsilon], num_classes=classes)[0]

    assert 0 < np.sum(gaps > 0) < 30
    np.testing.assert_array_equal(correct(linear, found, labels), gaps < 0)


def test_the_square_attack_uses_no_gradient(batch, logits_fn):
    """Where rounding takes all gradients away, the square attack is what is left."""

    def rounded(images):
        return logits_fn(tf.round(4 * images) / 4 + 0 * images)

    images = np.round(4 * batch[0]) / 4 + 0.12 - 0.24 * (batch[0] > 0.5)  # near the edges
    images = images.astype("float32")
    labels = np.argmax(rounded(images), axis=1)
    stuck = craft(rounded, (images, labels), [16], queries=0)
    found = craft(rounded, (images, labels), [16], queries=100)
    survivors = [correct(rounded, made[0], labels).sum() for made in (found, stuck)]
    assert survivors[0] < survivors[1]


def test_targeted_dlr():
    logits = tf.constant([[5.0, 1.0, 2.0, 4.0, 0.0], [1.0, 9.0, 3.0, 2.0, 5.0]])
    labels, targets = tf.constant([0, 0]), tf.constant([3, 4])
    expected = [(4 - 5) / (5 - (2 + 1) / 2), (5 - 1) / (9 - (3 + 2) / 2)]
    objective = autoattack.targeted_dlr(labels, targets)
    np.testing.assert_allclose(objective(logits), expected, rtol=1e-6)
    np.testing.assert_allclose(objective(10 * logits + 3), expected, rtol=1e-6)


def test_without_art_one_line_says_what_to_install(monkeypatch, batch):
    monkeypatch.setitem(sys.modules, "art.attacks.evasion", None)
    with pytest.raises(InputError, match=r"^attack: .*pip install cascade_keras\[autoattack\]"):
        craft(None, batch)
