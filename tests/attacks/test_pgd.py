"""Projected gradient descent against two independent implementations, and its properties."""

import itertools

import numpy as np
import pytest
import tensorflow as tf
from support.networks import CLASSES, smooth
from support.peers import of_art, of_foolbox

from cascade_keras import attacks

OBJECTIVES = [attacks.cross_entropy, attacks.margin, attacks.dlr]
SEED = (3, 4)

all_objectives = pytest.mark.parametrize("objective", OBJECTIVES)


@pytest.fixture(scope="module")
def batch(digits):
    """Images and the classes that the smooth network takes them for: there is something to lose."""
    images = tf.constant(digits[0][:16])
    return images, tf.argmax(smooth(images), -1, tf.int32)


@pytest.fixture(scope="module")
def interior(batch):
    """Images so far from 0 and 1 that the valid range clips nothing."""
    images = 0.2 + 0.6 * batch[0]
    return images, tf.argmax(smooth(images), -1, tf.int32)


# Cheaper than the defaults, and the loss of the implementations that it is compared with.
CHEAP = {"seed": SEED, "steps": 5, "restarts": 1, "objective": attacks.cross_entropy}


def pgd(images, labels, epsilon, logits_fn=smooth, **options):
    return attacks.pgd(logits_fn, images, labels, epsilon, **CHEAP | options)


def compiled(attack, images, labels, *args):
    """Call attack(images, labels, *args) as programs do: compiled for batches of any size."""
    function = tf.function(
        attack,
        input_signature=[
            tf.TensorSpec([None, *images.shape[1:]], images.dtype),
            tf.TensorSpec([None], tf.int32),
            *(tf.TensorSpec(np.shape(arg), tf.float32) for arg in args),
        ],
    )
    return function(images, labels, *(np.float32(arg) for arg in args)).numpy()


def margins(images, labels, logits_fn=smooth):
    return attacks.margin(labels)(logits_fn(tf.convert_to_tensor(images))).numpy()


# Independent implementations.


@pytest.mark.parametrize("independent", [of_foolbox, of_art])
@pytest.mark.parametrize(
    ("epsilon", "step_size", "steps"), [(4, 1, 8), (8, 0.7, 20), (76.5, 7.65, 10), (2, 5, 3)]
)
def test_same_images_as_an_independent_implementation(
    epsilon, step_size, steps, independent, batch
):
    images, labels = batch
    if independent is of_foolbox:  # the one that can
        images = tf.cast(images, tf.float64)
    expected = independent(smooth, images, labels, epsilon, steps, step_size)

    actual = pgd(images, labels, epsilon, steps=steps, step_size=step_size, random_start=False)

    assert np.abs(expected - images).max() > 0.9 * epsilon / 255  # it did attack
    np.testing.assert_allclose(actual, expected, rtol=0, atol=1e-6)


@all_objectives
@pytest.mark.parametrize(("epsilon", "steps"), [(3, 3), (16, 20)])
def test_whole_steps_from_the_image_are_iter_fgsm(epsilon, steps, objective, batch):
    options = {"steps": steps, "step_size": 1.0, "objective": objective}
    own = compiled(lambda x, y: pgd(x, y, epsilon, random_start=False, **options), *batch)
    expected = compiled(lambda x, y: attacks.iter_fgsm(smooth, x, y, epsilon, **options), *batch)
    np.testing.assert_array_equal(own, expected)


# Closed forms.


@all_objectives
@pytest.mark.parametrize(("steps", "restarts"), [(1, 1), (1, 3), (10, 3)])
def test_reaches_the_corner_of_a_linear_network(steps, restarts, objective, interior):
    """Of three classes two are never near: the gradient's sign is that of w_1 - w_0 throughout."""
    direction = np.random.default_rng(1).normal(size=(64, 1)).astype("float32")
    weights = direction * [[-1, 1, 0]] / 2
    bias = tf.constant([400.0, 0, -4000])  # above any margin that the weights can make up for

    def linear(images):
        return (tf.reshape(images, [-1, 64]) @ tf.constant(weights, tf.float32) + bias) / 40

    images = interior[0]
    labels = tf.zeros(len(images), tf.int32)
    options = {"steps": steps, "restarts": restarts, "objective": objective}

    adversarial = pgd(images, labels, 16.0, linear, **options)

    corner = np.sign(direction).reshape(8, 8, 1)
    np.testing.assert_array_equal(adversarial, images + 16 * corner / np.float32(255))


def test_a_step_of_nothing_leaves_the_start_uniform_in_the_ball(interior):
    images, labels = (tf.repeat(part, 4, axis=0) for part in interior)
    start = 255 * (pgd(images, labels, 8.0, steps=1, step_size=0.0) - images).numpy()

    count = start.size  # 4096
    assert 8 - 8 * 10 / count < start.max() <= 8 + 1e-4  # less with probability e^-5 or so
    assert -8 - 1e-4 <= start.min() < -8 + 8 * 10 / count
    assert abs(start.mean()) < 4 * 8 / np.sqrt(3 * count)
    for share in (0.25, 0.5, 0.75):
        apart = abs(np.mean(np.abs(start) < 8 * share) - share)
        assert apart < 4 * np.sqrt(share * (1 - share) / count)
    assert not np.array_equal(start[0], start[1])  # the same image twice


def test_depends_on_the_seed_only(batch):
    first, second, reseeded = (
        pgd(*batch, 8.0, restarts=2, steps=2, seed=seed) for seed in (SEED, SEED, (3, 5))
    )
    np.testing.assert_array_equal(first, second)
    assert not np.array_equal(first, reseeded)


@pytest.mark.parametrize("options", [{}, {"restarts": 2, "objective": attacks.dlr}])
def test_a_list_of_epsilons_equals_each_alone(options, batch):
    epsilons = [8, 2.5, 0, 76.5]
    options = {**CHEAP, "steps": 4, **options}

    def together(images, labels):
        return attacks.at_epsilons("pgd", smooth, images, labels, epsilons, **options)

    crafted = compiled(together, *batch)

    assert crafted.shape == (4, *batch[0].shape)
    alone = tf.function(lambda epsilon: pgd(*batch, epsilon, **options))
    for epsilon, images in zip(epsilons, crafted):
        np.testing.assert_array_equal(images, alone(tf.constant(epsilon, tf.float32)))


def test_a_start_beyond_the_valid_pixels_is_brought_back_to_them():
    """A step of 3 from a black pixel, whatever the start, leads to 3 at least, never below 0."""
    images, labels = tf.zeros([16, 8, 8, 1]), tf.zeros([16], tf.int32)

    def brighter_is_worse(images):
        return tf.reduce_sum(images, [1, 2, 3])[:, None] * [[-1.0, 1.0]] + [[100.0, 0.0]]

    options = {"steps": 1, "step_size": 3.0, "objective": attacks.margin}
    found = 255 * pgd(images, labels, 8.0, brighter_is_worse, **options).numpy()
    assert found.min() >= 3 - 1e-4 and found.max() > 7
    np.testing.assert_allclose(found[found < 3 + 1e-4], 3, atol=1e-4)
    assert np.mean(found < 3 + 1e-4) > 0.3  # starts that were below


# Restarts.


# Farther, all starts of an image would end in the same corner of the ball.
EPSILON = 16.0
HALF_WAY = {"steps": 1, "step_size": 6.0}


def test_later_starts_leave_what_is_fooled_alone_and_the_largest_margin_remains(batch):
    images, labels = batch
    asked = []

    def watched(some):
        asked.append(some.numpy())
        return smooth(some)

    found = pgd(images, labels, EPSILON, watched, restarts=4, **HALF_WAY).numpy()

    done, reached = np.zeros(16, bool), np.full((4, 16), -np.inf)
    # Of each start first a gradient is asked for, there, then what the step has come to.
    for number, (started, crafted) in enumerate(zip(asked[::2], asked[1::2], strict=True)):
        apart = np.abs(started[:, None] - images.numpy()).max(axis=(2, 3, 4))
        rows = apart.argmin(axis=1)  # the images that it was tried on
        assert not done[rows].any() and (number or list(rows) == list(range(16)))
        reached[number, rows] = margins(crafted, tf.gather(labels, rows))
        fooled = reached[number, rows] > 0
        np.testing.assert_array_equal(found[rows[fooled]], crafted[fooled])
        done[rows[fooled]] = True
    assert number == 3 and 0 < done.sum() < 16  # both kinds were tried
    np.testing.assert_allclose(margins(found, labels), reached.max(0), rtol=1e-4, atol=1e-5)
    assert len(set(reached[:, ~done].argmax(0))) > 1  # not the first start every time


def test_more_starts_are_never_weaker(batch):
    """Start n is the same whether or not others follow it."""
    images, labels = batch
    results = [pgd(images, labels, EPSILON, restarts=n, **HALF_WAY) for n in (1, 2, 4)]
    reached = [margins(result, labels) for result in results]
    assert not np.array_equal(results[0], results[2])
    for fewer, more in itertools.pairwise(reached):
        assert (more >= fewer - 1e-6).all()
        assert (more[fewer > 0] > 0).all()


# The objective of Croce & Hein, and what is refused.


def test_dlr_is_the_margin_in_units_of_the_third_largest_logit():
    logits = tf.constant([[3.0, 1.0, 2.0, 0.0], [-5.0, -9.0, -4.0, -6.0], [2.0, 2.0, 0.0, 1.0]])
    dlr = attacks.dlr(tf.constant([0, 1, 1]))(logits)
    np.testing.assert_allclose(dlr, [-1 / 2, 5 / 2, 0], atol=1e-7)


def test_dlr_depends_on_neither_scale_nor_shift_of_the_logits(batch):
    images, labels = tf.cast(batch[0], tf.float64), batch[1]
    labels = (labels + tf.range(16) % 2) % CLASSES  # half of them misclassified
    value = attacks.dlr(labels)(smooth(images))
    np.testing.assert_array_equal(value > 0, margins(images, labels) > 0)
    for scale, shift in [(1e-3, 0), (1e3, 0), (1, 50), (7, -3)]:
        np.testing.assert_allclose(attacks.dlr(labels)(scale * smooth(images) + shift), value)


@pytest.mark.parametrize("objective", [attacks.margin, attacks.dlr])
def test_margins_do_not_saturate(objective, batch):
    """Where the cross entropy's gradient underflows to zero theirs is that of any scale."""

    def confident(images):
        return 1e4 * smooth(images)

    stuck = pgd(*batch, 8, confident, random_start=False)
    moved, expected = (
        pgd(*batch, 8, logits_fn, random_start=False, objective=objective)
        for logits_fn in (confident, smooth)
    )
    assert np.mean(stuck == batch[0]) > np.mean(moved == batch[0]) + 0.5
    assert np.mean(np.isclose(moved, expected, atol=1e-6)) > 0.99


@pytest.mark.parametrize("option", ["steps", "restarts"])
def test_none_of_a_thing_is_refused(option, batch):
    with pytest.raises(ValueError, match=option):
        pgd(*batch, 8, **{option: 0})
