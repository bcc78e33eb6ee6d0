"""The minimal-epsilon search against closed forms, its own grid and an independent one."""

import numpy as np
import pytest
import tensorflow as tf
from art.attacks.evasion import CarliniLInfMethod
from support.linear import images_and_network, minimal_epsilons
from support.peers import art_classifier

from cascade_keras import attacks
from cascade_keras.attacks import carlini_wagner as cw

SHAPE = (4, 4, 1)
ROUNDING = 1e-3  # of an epsilon in 0..255 units
SMALL = cw.Grid((1.0, 5.0, 20.0), (5.1, 10.2, 20.4, 30.6, 51.0))


def attack(logits_fn, shape=SHAPE, *, grid=SMALL, **options):
    return cw.CarliniWagner(logits_fn, shape, grid=grid, **options)


def linear(classes, seed=0):
    """A linear network, and the distance of each image to the nearest other class."""
    rng = np.random.default_rng(seed)
    weights = rng.normal(0, 1, (16, classes)).astype("float32")
    bias = rng.normal(0, 0.1, classes).astype("float32") - 0.5 * weights.sum(axis=0)

    def logits_fn(images):
        return tf.reshape(images, [-1, 16]) @ weights + bias

    def distance(images, labels):
        logits = logits_fn(images).numpy().astype("float64")
        shortest = []
        for row, y in zip(logits, labels):
            slopes = np.abs(weights[:, [y]] - weights).astype("float64").sum(axis=0)
            others = np.arange(classes) != y
            shortest.append(((row[y] - row) / np.where(others, slopes, 1))[others].min())
        return 255 * np.array(shortest)

    return logits_fn, distance


def in_the_middle(logits_fn, count=24):
    """Images that no perturbation below 0.3 brings to the limits of the pixels; own labels."""
    rng = np.random.default_rng(1)
    images = rng.uniform(0.4, 0.6, (count, *SHAPE)).astype("float32")
    return images, tf.argmax(logits_fn(images), -1, tf.int32).numpy()


@pytest.fixture(scope="module")
def trained(learned, digits):
    """A network that has learned the digits, images that it has not seen, and labels."""
    images, labels = digits
    chosen = cw.selection(labels[:300], 20)
    return learned, images[chosen], labels[chosen]


@pytest.fixture(scope="module")
def descended(trained):
    logits_fn, images, labels = trained
    return attack(logits_fn, (8, 8, 1))(images, labels)


def check(found, logits_fn, images, labels):
    """What is true of every result."""
    assert found.epsilon.dtype == found.images.dtype == np.float32
    assert found.images.shape == images.shape
    assert found.images.min() >= 0
    assert found.images.max() <= 1
    changed = np.isfinite(found.epsilon) & (found.epsilon > 0)
    apart = np.abs(found.images - images).max(axis=(1, 2, 3)) * np.float32(255)
    np.testing.assert_allclose(found.epsilon[changed], apart[changed], rtol=1e-6)
    np.testing.assert_array_equal(found.images[~changed], images[~changed])
    predicted = np.argmax(logits_fn(found.images), -1)
    np.testing.assert_array_equal(predicted != labels, np.isfinite(found.epsilon))


# Closed forms.


@pytest.mark.parametrize("classes", [2, 5])
def test_descent_finds_the_distance_to_the_nearest_plane(classes):
    logits_fn, distance = linear(classes)
    images, labels = in_the_middle(logits_fn)
    shortest = distance(images, labels)

    found = attack(logits_fn)(images, labels)

    check(found, logits_fn, images, labels)
    assert (found.epsilon >= shortest - ROUNDING).all()
    assert (found.epsilon <= 1.02 * shortest + ROUNDING).all()


@pytest.mark.parametrize("classes", [2, 5])
def test_grid_finds_no_less_than_that_distance(classes):
    logits_fn, distance = linear(classes)
    images, labels = in_the_middle(logits_fn, 4)
    shortest = distance(images, labels)
    taus = tuple(np.arange(0.5, 12, 0.5))

    found = attack(logits_fn, grid=cw.Grid((1.0, 5.0), taus), search="grid", iterations=300)(
        images, labels
    )

    check(found, logits_fn, images, labels)
    assert found.gradients == 4 * 2 * len(taus) * 300
    assert (found.epsilon >= shortest - ROUNDING).all()
    assert np.median(found.epsilon / shortest) < 2


@pytest.mark.parametrize("classes", [2, 6])
def test_descent_is_near_the_minimum_where_pixels_are_at_their_limits(classes):
    images, weights, bias = images_and_network(classes)

    def logits_fn(images):
        return tf.reshape(images, [-1, 64]) @ weights + bias

    labels = np.argmax(logits_fn(images), -1)
    least = minimal_epsilons(images, labels, weights, bias)
    searching = attack(logits_fn, (8, 8, 1))
    found = searching(images, labels)
    check(found, logits_fn, images, labels)
    assert (found.epsilon >= least - ROUNDING).all()
    assert (found.epsilon <= 1.05 * least + ROUNDING).all()


# Starts from elsewhere.


def test_no_epsilon_is_above_that_of_a_start(trained, descended):
    logits_fn, images, labels = trained
    fab = attacks.minimal(logits_fn, images, labels, iterations=30)
    nearer = fab.epsilon < descended.epsilon
    assert 0 < nearer.sum() < len(images)
    beyond = np.clip(images + 1.2 * (fab.images - images), 0, 1)
    searching = attack(logits_fn, (8, 8, 1))
    found = searching(images, labels, starts=np.stack([beyond, fab.images]))

    check(found, *trained)
    assert (found.epsilon <= np.minimum(fab.epsilon, descended.epsilon)).all()
    # From there the descent goes on.
    assert (found.epsilon < fab.epsilon)[nearer].any()
    assert found.gradients > descended.gradients
    np.testing.assert_array_equal(found.images[~nearer], descended.images[~nearer])
    farther = searching(images, labels, starts=images)  # none is misclassified
    np.testing.assert_array_equal(farther.images, descended.images)
    assert farther.gradients == descended.gradients
    with pytest.raises(ValueError, match="starts of"):
        searching(images, labels, starts=images[:3])


def test_the_grid_takes_a_start_as_it_is():
    logits_fn, _ = linear(3)
    images, labels = in_the_middle(logits_fn, 4)
    fab = attacks.minimal(
        lambda images: logits_fn(images / 255),
        255 * images,
        labels,
        value_range=(0, 255),
        iterations=20,
    )
    searching = cw.CarliniWagner(
        lambda images: logits_fn(images / 255), SHAPE, grid=SMALL, search="grid",
        iterations=1, value_range=(0, 255),
    )  # fmt: skip
    found = searching(255 * images, labels, starts=fab.images)
    np.testing.assert_array_equal(found.images, fab.images)
    np.testing.assert_allclose(found.epsilon, fab.epsilon, rtol=1e-6)


# Images that need no attack, and networks that withstand it.


@pytest.mark.parametrize("search", ["descent", "grid"])
def test_what_is_misclassified_already_is_left_alone(search):
    logits_fn, _ = linear(2)
    images, labels = in_the_middle(logits_fn, 6)
    labels[::2] = 1 - labels[::2]

    found = attack(logits_fn, search=search, iterations=100)(images, labels)

    check(found, logits_fn, images, labels)
    np.testing.assert_array_equal(found.epsilon == 0, [True, False] * 3)


def unmoved(images):
    return tf.repeat([[2.0, 1.0]], tf.shape(images)[0], axis=0)


def flat(images):
    return unmoved(images) + 0 * tf.reduce_sum(images, axis=[1, 2, 3])[:, None]


def far_away(images):
    return unmoved(images) + tf.reduce_mean(images, axis=[1, 2]) * [0.0, 0.9]


@pytest.mark.parametrize("search", ["descent", "grid"])
@pytest.mark.parametrize("network", [unmoved, flat, far_away])
def test_nothing_is_found_where_there_is_nothing(network, search):
    images, labels = np.full((3, *SHAPE), 0.5, "float32"), np.zeros(3, "int32")
    done = []

    found = attack(network, search=search, iterations=60)(images, labels, done.append)

    check(found, network, images, labels)
    assert np.isinf(found.epsilon).all()
    assert done[-1] == 3
    if search == "descent":
        iterations = 60 if network is far_away else cw.CHUNK
        # One more towards each of the two classes, to see which is near.
        assert found.gradients == 3 * (len(cw.RATES) * iterations + 2)


def test_a_network_that_is_not_a_function_is_refused():
    calls = tf.Variable(0)

    def moody(images):
        """Is fooled once in a chunk, but not when the images are verified."""
        fooled = tf.cast(calls.assign_add(1) % cw.CHUNK == cw.CHUNK // 2, tf.float32)
        return tf.stack([fooled + 0 * tf.reduce_mean(images, axis=[1, 2, 3])] * 2, -1) * [2.0, 1.0]

    images = np.full((2, *SHAPE), 0.5, "float32")
    with pytest.raises(RuntimeError, match="inference mode"):
        attack(moody, search="grid", iterations=cw.CHUNK)(images, np.ones(2, "int32"))


# On a trained network.


def test_a_trained_network_is_fooled_by_verified_images(trained, descended):
    check(descended, *trained)
    assert np.isfinite(descended.epsilon).all()
    assert descended.epsilon.max() < 0.6 * 255
    with pytest.raises(AttributeError):
        descended.gradients = 0


def test_descent_is_no_larger_than_the_grid(trained, descended):
    logits_fn, images, labels = trained
    grid = attack(logits_fn, (8, 8, 1), search="grid", iterations=400)(images, labels)

    check(grid, *trained)
    assert descended.epsilon.mean() <= grid.epsilon.mean()
    assert (descended.epsilon <= 1.03 * grid.epsilon + 0.1).all()
    assert descended.gradients < grid.gradients / 5


def test_descent_is_no_larger_than_that_of_art(trained, descended):
    logits_fn, images, labels = trained
    count = 2
    classifier = art_classifier(tf.function(logits_fn), images.shape[1:])
    # Its own defaults find nothing here: ten iterations, from pixels of 0 that tanh cannot move.
    attack = CarliniLInfMethod(
        classifier, learning_rate=0.5, max_iter=15, initial_const=5.0, verbose=False
    )
    found = attack.generate(images[:count], labels[:count])

    fooled = np.argmax(logits_fn(found), -1) != labels[:count]
    size = 255 * np.abs(found - images[:count]).max(axis=(1, 2, 3))
    assert fooled.any()
    assert descended.epsilon[:count][fooled].mean() <= size[fooled].mean()


def test_an_image_is_searched_as_if_alone(trained, descended):
    """But for the rounding of batches of another size, which many iterations enlarge."""
    logits_fn, images, labels = trained
    alone = attack(logits_fn, (8, 8, 1), lanes=8)(images[:6], labels[:6])
    np.testing.assert_allclose(alone.epsilon, descended.epsilon[:6], rtol=0.02)


def test_the_same_at_every_call(trained):
    logits_fn, images, labels = trained
    searching = attack(logits_fn, (8, 8, 1))
    first, second = (searching(images[:3], labels[:3]) for _ in range(2))
    np.testing.assert_array_equal(first.images, second.images)
    assert first.gradients == second.gradients
    none = searching(images[:0], labels[:0])
    assert none.epsilon.shape == (0,) and none.gradients == 0


@pytest.mark.parametrize("search", ["descent", "grid"])
@pytest.mark.parametrize("lanes", [1, 3])
def test_the_lanes_bound_the_batch_and_progress_counts_the_images(search, lanes):
    logits_fn, _ = linear(3)
    images, labels = in_the_middle(logits_fn, 5)
    largest, done = tf.Variable(0), []

    def watched(images):
        largest.assign(tf.maximum(largest, tf.shape(images)[0]))
        return logits_fn(images)

    searching = attack(watched, search=search, iterations=100, lanes=lanes)
    found = searching(images, labels, done.append)

    check(found, logits_fn, images, labels)
    assert largest.numpy() <= lanes
    assert done == sorted(set(done))
    assert done[-1] == 5


# Arguments.


@pytest.mark.parametrize(
    ("setting", "change"),
    [
        ("search", {"search": "random"}),
        ("constants", {"grid": cw.Grid((), (1.0,))}),
        ("constants", {"grid": cw.Grid((2.0, 1.0), (1.0,))}),
        ("taus", {"grid": cw.Grid((1.0,), (0.0, 1.0))}),
        *(("iterations", {"iterations": value}) for value in (0, 1.5)),
        ("lanes", {"lanes": 0}),
        *(("learning_rate", {"learning_rate": value}) for value in (0, float("nan"))),
        ("image_shape", {"shape": (4, 4)}),
    ],
)
def test_bad_arguments_are_refused(setting, change):
    with pytest.raises(ValueError, match=setting):
        attack(flat, **change)


def test_bad_images_are_refused():
    searching = attack(flat)
    for images, labels, message in [
        (np.zeros((2, 5, 4, 1)), np.zeros(2, int), "expected"),
        (np.zeros((2, *SHAPE)), np.zeros(3, int), "expected"),
        (np.zeros((2, *SHAPE)), np.zeros(2), "must be whole numbers"),
        (np.full((2, *SHAPE), 1.1), np.zeros(2, int), "outside of"),
        (np.full((2, *SHAPE), np.nan), np.zeros(2, int), "not finite"),
    ]:
        with pytest.raises(ValueError, match=message):
            searching(images, labels)


# Which images, and what is reported.


@pytest.mark.parametrize(
    ("labels", "count", "expected"),
    [
        ([0, 1, 0, 1, 0, 1], 4, [0, 1, 2, 3]),
        ([0, 0, 0, 1, 1, 1], 4, [0, 1, 3, 4]),
        ([0, 0, 0, 0, 1], 4, [0, 1, 2, 4]),  # a class is short
        ([2, 2, 1, 1, 0, 0], 4, [0, 2, 4, 5]),  # not divisible
        ([5, 5, 5], 3, [0, 1, 2]),
        ([5, 5, 5], 0, []),
    ],
)
def test_selection_takes_the_first_of_each_class_and_alike_many(labels, count, expected):
    np.testing.assert_array_equal(cw.selection(np.array(labels), count), expected)
    for impossible in (len(labels) + 1, -1):
        with pytest.raises(ValueError, match="cannot select"):
            cw.selection(np.array(labels), impossible)


def test_distribution_counts_what_was_not_found():
    epsilon, share = cw.distribution(np.array([3.0, np.inf, 0.0, 1.0], "float32"))
    np.testing.assert_array_equal(epsilon, [0, 1, 3])
    np.testing.assert_array_equal(share, [25, 50, 75])
    assert all(len(part) == 0 for part in cw.distribution(np.array([np.inf])))
