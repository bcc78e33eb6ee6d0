"""Auto-PGD against a plain version of the published rule, closed forms, and its properties."""

import numpy as np
import pytest
import tensorflow as tf
from support.networks import CLASSES, smooth

from cascade_keras import attacks, draws
from cascade_keras.attacks import auto_pgd
from cascade_keras.attacks.searches import ascending
from cascade_keras.errors import InputError

RADIUS = 3.0


def published(look, start, lowest, highest, radius, iterations):
    """Algorithm 1 of Croce & Hein (2020) for one image, in steps as they are printed.

    Args:
        look: an image -> its objective, the gradient, whether it is misclassified.

    Returns:
        The iterates, the best one, the iterations of halvings with the conditions that held.
    """
    marks, p = [0], [0.0, 0.22]
    while p[-1] < 1:
        marks.append(int(np.ceil(round(p[-1] * iterations, 9))))
        p.append(p[-1] + max(p[-1] - p[-2] - 0.03, 0.06))
    marks = sorted(set(marks))
    clip = lambda x: np.clip(x, lowest, highest)  # noqa: E731
    # x[k], f[k] as in the paper; x[k] is replaced by the best where the step is halved.
    x, eta, iterates, halvings = [start], 2 * radius, [start], []
    value, gradient, wrong = look(start)
    f, best, best_f, best_gradient = [value], start, value, gradient
    f_max, etas = {0: value}, {0: eta}
    rose = []
    for k in range(iterations):
        if wrong:
            break
        if k in marks and k > 0:
            last = marks[marks.index(k) - 1]
            few = sum(rose[last:k]) < 0.75 * (k - last)
            # eta at a checkpoint is the one that is used from there on.
            same = etas[last] == (eta if last == 0 else etas[marks[marks.index(last) - 1]])
            same = same and f_max[last] == best_f
            f_max[k] = best_f
            if few or same:
                eta = eta / 2
                x[k], f[k], gradient = best, best_f, best_gradient
                halvings.append((k, few, same))
            etas[k] = eta
        z = clip(x[k] + eta * np.sign(gradient))
        alpha = 0.75 if k else 1.0
        before = x[k - 1] if k else x[k]
        x.append(clip(x[k] + alpha * (z - x[k]) + (1 - alpha) * (x[k] - before)))
        value, gradient, wrong = look(x[-1])
        iterates.append(x[-1])
        rose.append(value > f[-1])
        f.append(value)
        if value > best_f:
            best, best_f, best_gradient = x[-1], value, gradient
    return iterates, x[-1] if wrong else best, halvings


def keys_of(count, seed=3):
    return draws.image_keys(seed, tf.range(count))


def start_of(images, keys, number):
    """Uniform noise, as large as epsilon allows."""
    noise = draws.of_images(draws.uniform_of, keys, number, images.shape[1:]).numpy()
    return images + RADIUS / 255 * noise / np.abs(noise).max(axis=(1, 2, 3), keepdims=True)


class Recorded:
    """A network that tells what it was given, in eager mode."""

    def __init__(self, logits_fn):
        self.logits_fn, self.given = logits_fn, []

    def __call__(self, images):
        assert len(images), "TensorFlow's max pooling ends the process at an empty batch"
        self.given.append(images.numpy())
        return self.logits_fn(images)


# The published rule.


def quadratic(images):
    """Of three classes the first is a concave quadratic, ill-conditioned; the last always wins."""
    rng = np.random.default_rng(1)
    turn = np.linalg.qr(rng.normal(size=(9, 9)))[0]
    matrix = turn @ np.diag(np.geomspace(0.01, 30, 9)) @ turn.T
    x = tf.reshape(images, [-1, 9]) - 0.52
    value = -tf.reduce_sum(x * (x @ tf.constant(matrix)), axis=1)
    return tf.stack([value, 0 * value - 1, 0 * value + 1e3], axis=1)


def test_iterates_on_a_quadratic_are_those_of_the_published_rule():
    images = np.random.default_rng(0).uniform(0.4, 0.6, (2, 3, 3, 1))
    labels, keys = tf.fill([2], 2), keys_of(2)
    network = Recorded(quadratic)
    found = auto_pgd.search(
        network, tf.constant(images), labels, RADIUS, keys, objective=lambda _: lambda z: z[:, 0]
    )
    assert not found.fooled.numpy().any() and len(network.given) == 101

    def look(x):
        with tf.GradientTape() as tape:
            variable = tf.Variable(x[None])
            value = quadratic(variable)[0, 0]
        return float(value), tape.gradient(value, variable).numpy()[0], False

    halved = 0
    bounds = np.maximum(images - RADIUS / 255, 0), np.minimum(images + RADIUS / 255, 1)
    for i, start in enumerate(np.clip(start_of(images, keys, 0), *bounds)):
        limits = (bounds[0][i], bounds[1][i], RADIUS / 255)
        iterates, best, halvings = published(look, start, *limits, 100)
        own = [batch[i] for batch in network.given]
        np.testing.assert_allclose(own, iterates, rtol=0, atol=1e-8)
        np.testing.assert_allclose(found.images[i], best, rtol=0, atol=1e-8)
        halved += len(halvings)
    assert halved > 12
    np.testing.assert_array_equal(found.gradients, [100] * 2)
    np.testing.assert_array_equal(found.forwards, [1] * 2)


def test_each_start_is_drawn_anew():
    images = np.random.default_rng(0).uniform(0.4, 0.6, (4, 3, 3, 1))
    network, keys = Recorded(quadratic), keys_of(4)
    auto_pgd.search(
        network, tf.constant(images), tf.fill([4], 2), RADIUS, keys, iterations=1, restarts=3
    )
    expected = [start_of(images, keys, run) for run in range(3)]
    np.testing.assert_allclose(network.given[::2], expected, rtol=0, atol=1e-8)


def test_checkpoints_decide_as_published():
    """Objectives and gradients follow a script, in which all that decides happens."""
    rng = np.random.default_rng(0)
    count, shape = 40, (2, 3, 1)
    # Walks that rise in most steps, and fall further than they rise in some of them.
    rises = rng.uniform(size=(100, count)) < rng.uniform(0.6, 0.9, count)
    script = np.cumsum(np.where(rises, 1, -rng.integers(1, 9, count)), axis=0)
    script = np.concatenate([np.zeros((1, count)), script]) + 1e-3 * rng.uniform(size=(101, count))
    slopes = rng.normal(size=(101, count, *shape))

    def scripted(images):
        step = len(network.given) - 1
        moved = tf.reduce_sum((images - tf.stop_gradient(images)) * slopes[step], axis=[1, 2, 3])
        return tf.stack([script[step] + moved, 0 * moved - 1e4, 0 * moved + 1e4], axis=1)

    network = Recorded(scripted)
    images, keys = rng.uniform(0.1, 0.9, (count, *shape)), keys_of(count)
    found = auto_pgd.search(
        network, tf.constant(images), tf.fill([count], 2), RADIUS, keys,
        objective=lambda _: lambda z: z[:, 0],
    )  # fmt: skip

    lowest, highest = images - RADIUS / 255, images + RADIUS / 255
    decided = []
    for i, start in enumerate(start_of(images, keys, 0)):
        steps = iter(range(101))

        def look(x, steps=steps, i=i):
            step = next(steps)
            return script[step, i], slopes[step, i], False

        limits = (lowest[i], highest[i], RADIUS / 255)
        iterates, best, halvings = published(look, start, *limits, 100)
        own = [batch[i] for batch in network.given]
        np.testing.assert_allclose(own, iterates, rtol=0, atol=1e-8)
        np.testing.assert_allclose(found.images[i], best, rtol=0, atol=1e-8)
        decided += [conditions for _, *conditions in halvings]
    # Either condition decides alone, both do, and many steps are not halved.
    assert {(True, False), (False, True), (True, True)} == set(map(tuple, decided))
    assert 80 < len(decided) < 240 and decided.count([False, True]) > 10


@pytest.mark.parametrize(
    ("iterations", "expected"),
    [(100, [22, 41, 57, 70, 80, 87, 93, 99]), (10, [3, 5, 6, 7, 8, 9]), (1, []), (2, [1]),
     (50, [11, 21, 29, 35, 40, 44, 47])],
)  # fmt: skip
def test_checkpoints_are_the_published_ones(iterations, expected):
    assert auto_pgd.checkpoints(iterations) == expected


@pytest.fixture(scope="module")
def batch(digits):
    """Images in float64, whose signs rounding does not turn, and what the network takes them for.

    That of the tenth is what it is nearly taken for: misclassified already.
    """
    images = digits[0][:10].astype(np.float64)
    labels = np.argmax(smooth(images), -1).astype(np.int32)
    labels[9] = np.argsort(smooth(images)[9])[-2]
    return images, labels


SEARCHES = {
    "apgd": (auto_pgd.search, {"restarts": 2}),
    "dlr": (auto_pgd.search, {"objective": "dlr"}),
    "apgd_targeted": (auto_pgd.search_targeted, {"targets": 3}),
}
ITERATIONS = 12


def objective_by_hand(name, label, target):
    """Formulas of their own, of one row of logits."""

    def value(z):
        ordered = tf.sort(z)
        if name == "apgd":
            return tf.reduce_logsumexp(z) - z[label]
        if name == "dlr":
            other = tf.reduce_max(tf.concat([z[:label], z[label + 1 :]], 0))
            return (other - z[label]) / (ordered[-1] - ordered[-3])
        return (z[target] - z[label]) / (ordered[-1] - (ordered[-3] + ordered[-4]) / 2)

    return value


@pytest.mark.parametrize("name", SEARCHES)
def test_a_network_s_images_and_passes_are_those_of_the_published_rule(name, batch):
    images, labels = (part[:5] for part in batch)
    search, options = SEARCHES[name]
    keys, network = keys_of(5), Recorded(smooth)
    found = search(
        network, tf.constant(images), tf.constant(labels), RADIUS, keys,
        iterations=ITERATIONS, **options,
    )  # fmt: skip
    runs = options.get("targets", options.get("restarts", 1))
    ranking = np.argsort(-smooth(images).numpy(), axis=1)[:, 1:]

    @tf.function(reduce_retracing=True)
    def values(x):
        return smooth(x[None])[0]

    lowest, highest = np.maximum(images - RADIUS / 255, 0), np.minimum(images + RADIUS / 255, 1)
    starts = [np.clip(start_of(images, keys, run), lowest, highest) for run in range(runs)]
    for i, label in enumerate(labels):
        gradients, forwards, reached = 0, int(name == "apgd_targeted"), -np.inf
        for run in range(runs):
            objective = objective_by_hand(name, label, ranking[i, run])

            def look(x, objective=objective, label=label):
                x = tf.constant(x)
                with tf.GradientTape() as tape:
                    tape.watch(x)
                    z = values(x)
                    value = objective(z)
                return float(value), tape.gradient(value, x).numpy(), np.argmax(z) != label

            limits = (lowest[i], highest[i], RADIUS / 255)
            iterates, best, _ = published(look, starts[run][i], *limits, ITERATIONS)
            *_, wrong = look(best)
            last = len(iterates) == ITERATIONS + 1
            gradients += len(iterates) - last
            forwards += last
            value = look(best)[0]
            if wrong or value > reached:
                expected, reached = best, value
            if wrong:
                break
        np.testing.assert_allclose(found.images[i], expected, rtol=0, atol=1e-8)
        assert found.fooled[i] == wrong
        assert (found.gradients[i], found.forwards[i]) == (gradients, forwards)
    assert 0 < np.sum(found.fooled) < 5
    # Those that have fallen are not given to the network any more.
    rows = sum(map(len, network.given))
    assert rows == np.sum(found.gradients) + np.sum(found.forwards)
    classes = np.argmax(smooth(found.images), -1)
    np.testing.assert_array_equal(classes != labels, found.fooled)


# Closed forms.


@pytest.mark.parametrize("classes", [2, 3, 4])
def test_a_linear_network_falls_where_the_corner_is_across_the_border(classes):
    rng = np.random.default_rng(classes)
    weights = rng.normal(size=(64, classes))
    images = rng.uniform(0.3, 0.7, (40, 8, 8, 1)).astype(np.float32)

    def linear(x):
        return tf.reshape(x - 0.5, [-1, 64]) @ tf.constant(weights, x.dtype)

    logits = linear(images).numpy().astype(np.float64)
    labels = logits.argmax(axis=1)
    epsilon = 4
    reach = np.abs(weights[:, None] - weights[:, labels, None]).sum(axis=0)  # (40, classes)
    gaps = logits - logits.max(axis=1, keepdims=True) + epsilon / 255 * reach
    gaps[np.arange(40), labels] = -np.inf
    falls = gaps.max(axis=1) > 0
    assert 0 < falls.sum() < 40
    options = {"seed": 1, "iterations": 5}
    names = {2: ["cross_entropy", "margin"], 3: ["dlr"], 4: ["targeted"]}[classes]
    for name in names:
        if name == "targeted":
            found = attacks.apgd_targeted(linear, images, labels, epsilon, **options)
        else:
            found = attacks.apgd(linear, images, labels, epsilon, objective=name, **options)
        np.testing.assert_array_equal(np.argmax(linear(found), -1) != labels, falls)
        if classes == 2:
            # One direction throughout, so the best of those that stand is the corner.
            corner = np.sign(weights[:, 1 - labels] - weights[:, labels]).T.reshape(images.shape)
            expected = images + np.float32(epsilon / 255) * corner
            np.testing.assert_allclose(found[~falls], expected[~falls], rtol=0, atol=2e-7)


def test_images_are_in_the_ball_as_float32_has_it_and_in_the_valid_range(batch):
    images, labels = batch[0].astype(np.float32), batch[1]
    crafted = tf.function(
        lambda x, y: attacks.apgd(smooth, x, y, 7.65, seed=1, iterations=6), autograph=False
    )(images, labels).numpy()
    radius = np.float32(7.65) / np.float32(255)
    assert (crafted >= np.maximum(images - radius, 0)).all()
    assert (crafted <= np.minimum(images + radius, 1)).all()
    assert (np.abs(crafted - images)[:9].max(axis=(1, 2, 3)) > 0.99 * radius).all()
    np.testing.assert_array_equal(crafted[9], images[9])  # misclassified already


# What it does not depend on.


@pytest.mark.parametrize("name", ["apgd", "apgd_targeted"])
def test_depends_on_no_other_image_and_on_the_seed(name, batch):
    search, options = SEARCHES[name]

    @tf.function(
        input_signature=[
            tf.TensorSpec([None, 8, 8, 1], tf.float64),
            tf.TensorSpec([None], tf.int32),
            tf.TensorSpec([None, 2], tf.int32),
        ],
        autograph=False,
    )
    def crafted(x, y, keys):
        return ascending(search, smooth, x, y, [RADIUS], keys, iterations=ITERATIONS, **options)

    def craft(rows, seed=3):
        keys = draws.image_keys(seed, tf.constant(rows))
        return crafted(batch[0][rows], batch[1][rows], keys)

    whole = craft(np.arange(10))
    assert whole.fooled[0, 9] and not whole.gradients[0, 9]
    for rows in ([4], [8, 0, 9, 3, 5]):
        part = craft(np.array(rows))
        for own, expected in zip(part, whole, strict=True):
            np.testing.assert_allclose(own[0], tf.gather(expected[0], rows), rtol=0, atol=1e-8)
    other = craft(np.arange(10), seed=4)
    assert not np.allclose(other.images[0, :9], whole.images[0, :9])


def test_the_network_is_traced_a_few_times_however_many_steps(batch):
    images, labels = (tf.constant(part) for part in batch)
    traces = []

    def network(x):
        traces.append(x.shape)
        return smooth(x)

    for function, most in ((attacks.apgd, 3), (attacks.apgd_targeted, 4)):
        traces.clear()
        tf.function(
            lambda x, y, f=function: f(network, x, y, RADIUS, seed=1), autograph=False
        ).get_concrete_function(images, labels)
        # The clean images, a step, the last iterate; targets are ranked once more.
        assert len(traces) == most


# Networks that are not what they seem.


def test_gradients_of_a_random_network_are_averaged():
    """Of four passes three point up, but the fourth three times as far down: down on average."""
    slopes, calls = [1.0, 1.0, 1.0, -6.0], []

    def network(images):
        value = slopes[len(calls) % 4] * tf.reduce_sum(images, axis=[1, 2, 3])
        calls.append(len(images))
        # One pass in four takes all images for another class: not on average.
        other = 5.0 if len(calls) % 4 == 1 else -10.0
        return tf.stack([0 * value, value + other, 0 * value - 99], axis=1)

    images = tf.fill([3, 2, 2, 1], 0.5)
    found = auto_pgd.search(
        network, images, tf.zeros([3], tf.int32), 10.0, keys_of(3), iterations=5, average=4,
        objective=lambda _: lambda z: z[:, 1],
    )  # fmt: skip
    assert not found.fooled.numpy().any()
    np.testing.assert_allclose(found.images, 0.5 - 10 / 255, atol=1e-6)
    assert calls == [3] * 24
    np.testing.assert_array_equal(found.gradients, [20] * 3)
    np.testing.assert_array_equal(found.forwards, [4] * 3)


def test_what_is_no_number_neither_leaves_the_ball_nor_counts_as_robust(batch):
    images, labels = (tf.constant(part[:6]) for part in batch)
    images = tf.cast(images, tf.float32)

    def no_slope(x):
        return smooth(x) + tf.reduce_sum(tf.sqrt(0 * x[:, :1, :1]))  # 0, its gradient no number

    found = attacks.apgd(no_slope, images, labels, RADIUS, seed=1, iterations=3)
    assert np.isfinite(found).all() and np.abs(found - images).max() <= RADIUS / 255 + 1e-6

    def overflows(x):
        moved = tf.reduce_sum(tf.abs(x - images[0]), axis=[1, 2, 3], keepdims=True)[:, 0, 0]
        return tf.where(moved > 0.3, np.nan, 0.0) + smooth(x)

    own = auto_pgd.search(overflows, images[:1], labels[:1], 4.0, keys_of(1), iterations=3)
    assert own.fooled[0] and np.isfinite(own.images).all()


def test_a_network_without_gradients_does_not_move(batch):
    images, labels = tf.constant(batch[0][:4]), tf.constant(batch[1][:4])
    found = auto_pgd.search(
        lambda x: smooth(tf.round(2 * x) / 2), images, labels, 2.0, keys_of(4), iterations=3
    )
    start = start_of(images.numpy(), keys_of(4), 0)  # by RADIUS
    start = images + (start - images) * 2 / RADIUS
    stood = ~found.fooled.numpy()
    assert stood.any()
    np.testing.assert_allclose(found.images[stood], np.clip(start, 0, 1)[stood], rtol=0, atol=1e-8)


# What is refused.


@pytest.mark.parametrize(
    ("name", "options", "classes", "said"),
    [
        ("apgd_targeted", {}, 3, "^attack: apgd_targeted needs 4 classes, the network tells 3 apa"
         "rt; choose apgd with the objective dlr"),
        ("apgd_targeted", {}, 2, "tells 2 apart; choose apgd$"),
        ("apgd", {"objective": "dlr"}, 2, "^objective: dlr needs 3 classes, the network tells 2"),
        ("apgd", {"iterations": 0}, 10, "^iterations: must be a whole number of 1 or above, got 0"),
        ("apgd", {"restarts": 1.5}, 10, "^restarts: must be a whole number"),
        ("apgd_targeted", {"targets": 0}, 10, "^targets: must be a whole number"),
        ("apgd_targeted", {"average": -1}, 10, "^average: must be a whole number"),
        ("apgd", {"epsilon": [1, 2]}, 10, "^epsilon: must be one number for all images"),
    ],
)  # fmt: skip
def test_what_cannot_be_done_is_one_line(name, options, classes, said, batch):
    images, labels = batch[0][:2], np.zeros(2, np.int32)
    options = {"epsilon": 4, "seed": 1, **options}
    attack = getattr(attacks, name)
    bias = 9.0 * np.eye(CLASSES)[0]

    def craft(x):
        return attack(lambda x: (smooth(x) + bias)[:, :classes], x, labels, **options)

    with pytest.raises(InputError, match=said):
        # AutoGraph, which makes other errors of most, leaves this one as it is.
        (tf.function(craft) if classes == 3 else craft)(images)


def test_unknown_classes_are_refused_where_they_are_ranked(batch):
    def unknown(x):
        return tf.ensure_shape(
            tf.numpy_function(lambda x: x[:, 0, :, 0], [x], x.dtype), [None, None]
        )

    def craft(x):
        return attacks.apgd_targeted(unknown, x, np.zeros(2, np.int32), 4, seed=1)

    with pytest.raises(InputError, match=r"^logits_fn: must give logits whose number"):
        tf.function(craft, autograph=False)(batch[0][:2])


def test_choosers_know_the_options():
    assert attacks.APGD(objective="dlr", average=4).options == {"objective": "dlr", "average": 4}
    assert str(attacks.APGDTargeted(targets=3)) == "apgd_targeted (targets 3)"
    with pytest.raises(InputError, match="average must be a whole number"):
        attacks.APGD(average=0)
