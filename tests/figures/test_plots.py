"""Arrays behind the figures: against closed forms and independent computations."""

import dataclasses

import numpy as np
import pytest
import tensorflow as tf
from support.plots import plot, source

from cascade_keras import attacks, draws
from cascade_keras.attacks.carlini_wagner import CarliniWagner
from cascade_keras.attacks.specs import Attack, Grid
from cascade_keras.data.specs import DATASETS
from cascade_keras.figures.captions import OTHER, SAME, UNKNOWN, compare_initialisation
from cascade_keras.figures.measures import project

RNG = np.random.default_rng(0)
SHAPE = (4, 5, 2)
# Far enough from 0 and 1 that no step of up to 20 pixel values is clipped.
IMAGES = RNG.uniform(0.2, 0.8, (11, *SHAPE)).astype("float32")
LABELS = RNG.integers(0, 3, 11).astype("int32")
EPSILONS = (1.0, 4.0, 16.0)


def linear(weights):
    weights = tf.constant(np.reshape(weights, (int(np.prod(SHAPE)), -1)), tf.float32)
    return lambda images: tf.reshape(images, [-1, weights.shape[0]]) @ weights


def bent(seed, classes=3, width=30):
    """A network whose gradients depend on the image."""
    rng = np.random.default_rng(seed)
    first = tf.constant(rng.normal(0, 0.5, (int(np.prod(SHAPE)), width)), tf.float32)
    last = tf.constant(rng.normal(0, 0.5, (width, classes)), tf.float32)
    return lambda images: tf.tanh(tf.reshape(images, [-1, first.shape[0]]) @ first) @ last


ONE, OTHER_ONE = bent(1), bent(2)


def computed(figure, networks, epsilons, attacks=(), progress=lambda done: None, **options):
    options = {"images": IMAGES, "labels": LABELS} | options
    return plot(figure, networks, epsilons, attacks, **options).compute(progress)


def attacked(network, name, epsilon, seed=0, **options):
    """The attack's own function, on all images at once."""
    epsilon = epsilon if epsilon >= 0 else attacks.Signed(epsilon)
    batch = network, IMAGES, LABELS, epsilon
    return attacks.at_epsilon(name, *batch, seed=[seed, 0], **options).numpy()


def correct(network, images):
    return int((network(images).numpy().argmax(-1) == LABELS).sum())


def corrcoef(first, second):
    flat = [np.reshape(values, (-1, int(np.prod(SHAPE)))) for values in (first, second)]
    return np.array([np.corrcoef(a, b)[0, 1] for a, b in zip(*flat)])


# Correlations.


@pytest.mark.parametrize(("attack", "batch"), [("step_ll", 4), ("iter_fgsm", 4), ("pgd", 11)])
def test_noise_correlation_is_that_of_the_images(attack, batch):
    done, networks, options = [], [ONE, bent(1), OTHER_ONE], {}
    if attack == "pgd":
        options = {"steps": 3, "restarts": 1}
    asked = [Attack(attack, EPSILONS, options)]
    found = computed("noise_correlation", networks, EPSILONS, asked, done.append, batch_size=batch)
    if attack == "pgd":
        options["objective"] = attacks.margin
    assert found["pairs"].tolist() == [[0, 1], [0, 2], [1, 2]]
    for column, epsilon in enumerate(EPSILONS):
        noises = [attacked(net, attack, epsilon, **options) - IMAGES for net in networks]
        expected = [corrcoef(noises[one], noises[other]) for one, other in found["pairs"]]
        np.testing.assert_allclose(found["correlation"][:, column], expected, atol=1e-5)
    np.testing.assert_allclose(found["mean"], found["correlation"].mean(-1))
    np.testing.assert_allclose(found["deviation"], found["correlation"].std(-1))
    assert done == ([33] if batch == 11 else [12, 24, 33])  # of all networks
    assert not found["undefined"].any()


def test_noises_that_are_zero_or_equal_everywhere_count_as_uncorrelated():
    networks = [
        ONE,
        lambda images: 0 * ONE(images),  # no gradient: no step
        linear(np.ones((40, 1)) * [0, 1]),  # as many steps for all pixels, but for rounding
    ]
    labels = np.zeros(11, "int32")
    found = computed("noise_correlation", networks, EPSILONS, ["iter_fgsm"], labels=labels)
    np.testing.assert_array_equal(found["correlation"], 0)
    np.testing.assert_array_equal(found["undefined"], 11)


def test_gradient_correlation_is_that_of_the_gradients():
    epsilons = (-16.0, 0.0, 4.0, 16.0)
    found = computed("gradient_correlation", [ONE], epsilons, seed=3)

    def gradients(images):
        loss = attacks.cross_entropy(LABELS)
        return attacks.input_gradient(ONE, tf.constant(images), loss).numpy()

    at = {"clean": [gradients(IMAGES)] * 4}
    for name in ("step_ll", "step_fgsm", "step_rand"):
        at[name] = [gradients(attacked(ONE, name, epsilon, seed=3)) for epsilon in epsilons]
    pairs = [("clean", "step_ll"), ("clean", "step_fgsm"), ("clean", "step_rand"),
             ("step_ll", "step_fgsm")]  # fmt: skip
    expected = [[corrcoef(*both) for both in zip(at[one], at[other])] for one, other in pairs]
    np.testing.assert_allclose(found["correlation"][0], expected, atol=1e-5)
    np.testing.assert_allclose(found["mean"][0, :, 1], 1, rtol=1e-5)


def test_gradients_of_a_saturated_network_are_counted():
    found = computed("gradient_correlation", [lambda x: 1e6 * ONE(x)], (4.0,))
    assert np.isfinite(found["correlation"]).all() and found["undefined"].any()


# Logits and embeddings.


def test_logits_are_told_apart_by_the_label():
    epsilons, rows = (-16.0, 0.0, 4.0, 16.0), np.arange(11)
    found = computed("logits", [ONE], epsilons, ["step_ll", "step_fgsm", "step_rand"], seed=7)
    for row, name in enumerate(("step_ll", "step_fgsm", "step_rand")):
        for column, epsilon in enumerate(epsilons):
            made = ONE(attacked(ONE, name, epsilon, seed=7)).numpy()
            false = np.stack([np.delete(values, label) for values, label in zip(made, LABELS)])
            expected = {"true": made[rows, LABELS], "false": false.mean(1), "largest": false.max(1)}
            for kind, values in expected.items():
                np.testing.assert_allclose(found[kind][0, row, column], values, atol=1e-5)
    for name in ("true", "false", "largest"):
        np.testing.assert_allclose(found[f"{name}_mean"], found[name].mean(-1))
        np.testing.assert_allclose(found[f"{name}_deviation"], found[name].std(-1))
    # A negative epsilon is the step to the other side; towards the true class the loss falls.
    back = ONE(2 * IMAGES - attacked(ONE, "step_fgsm", 16)).numpy()
    np.testing.assert_allclose(found["true"][0, 1, 0], back[rows, LABELS], atol=1e-5)
    towards, _, _, away = (found["true_mean"] - found["false_mean"])[0, 1]
    assert towards > away


@pytest.mark.parametrize("dimensions", [2, 6])
def test_traces_of_a_linear_network_are_straight(dimensions):
    network, matrix = linear(RNG.normal(size=(40, 2))), RNG.normal(size=(2, dimensions))

    def outputs(images):
        logits = network(images)
        return {"logits": logits, "embedding": logits @ tf.constant(matrix, tf.float32)}

    epsilons, labels = (0.0, 4.0, 8.0, 16.0), LABELS % 2
    found = computed("embedding_map", [outputs], epsilons, ["iter_fgsm"], labels=labels)
    traces, points = found["traces"][0], found["points"][0]
    assert traces.shape == (2, 4, 2) and points.shape == (11, 2)
    first = [np.flatnonzero(labels == label)[0] for label in (0, 1)]
    np.testing.assert_allclose(traces[:, 0], points[first], atol=1e-4)
    # iter_fgsm's last iterate lies on the corner of the ball: the way is in proportion to epsilon.
    ways = traces - traces[:, :1]
    expected = ways[:, -1:] * (np.array(epsilons) / 16)[:, None]
    np.testing.assert_allclose(ways, expected, atol=1e-3 * np.abs(ways).max())
    np.testing.assert_allclose(found["embedding_0"], outputs(IMAGES)["embedding"], atol=1e-4)
    for place in (0, 1):
        expected = np.median(points[labels == place], axis=0)
        np.testing.assert_allclose(found["centres"][0, place], expected)


def test_embeddings_of_few_dimensions_are_not_projected():
    clean, others = RNG.normal(size=(9, 2)), RNG.normal(size=(3, 4, 2))
    points, moved, explained = project(clean, others)
    np.testing.assert_array_equal(points, clean)
    np.testing.assert_array_equal(moved, others)
    assert np.isnan(explained).all()
    points, moved, _ = project(np.ones((3, 1)), np.ones((2, 1)))
    assert points.tolist() == [[1, 0]] * 3 and moved.tolist() == [[1, 0]] * 2


def test_projection_keeps_what_lies_in_a_plane():
    """Of 5 dimensions in which only 2 vary, all distances stay; the shares are eigenvalues'."""
    plane = np.linalg.qr(RNG.normal(size=(5, 2)))[0].T
    clean, others = RNG.normal(size=(9, 2)) * (3, 1), RNG.normal(size=(3, 4, 2))
    points, moved, explained = project(clean @ plane + 7, others @ plane + 7)
    ways = [
        there[:, None] - moved_to[1, 2] for there, moved_to in ((points, moved), (clean, others))
    ]
    np.testing.assert_allclose(*np.linalg.norm(ways, axis=-1))
    eigenvalues = np.linalg.eigvalsh(np.cov(clean.T))[::-1]
    np.testing.assert_allclose(explained, eigenvalues / eigenvalues.sum())
    np.testing.assert_allclose(points.mean(axis=0), 0, atol=1e-12)


# Accuracies.


def test_accuracy_curve_counts_what_the_attacks_leave():
    epsilons, done = (0.0, 8.0, 64.0), []
    asked = ["step_rand", "iter_fgsm", Attack("pgd", epsilons, {"steps": 3, "restarts": 1})]
    options = {"pgd": {"steps": 3, "objective": attacks.margin}}
    found = computed("accuracy_curve", [ONE, ONE], epsilons, asked, done.append, seed=5)
    for row, name in enumerate(("step_rand", "iter_fgsm", "pgd")):
        for column, epsilon in enumerate(epsilons):
            made = attacked(ONE, name, epsilon, seed=5, **options.get(name, {}))
            assert found["correct"][:, row, column].tolist() == [correct(ONE, made)] * 2
    np.testing.assert_allclose(found["accuracy"], 100 * found["correct"] / 11)
    assert done == sorted(done) and done[-1] == 2 * len(IMAGES)


def test_distance_sweep_is_in_the_order_of_lambda():
    functions, weights, done = [bent(seed) for seed in range(4)], [1e-2, 1e-4, 1e-2, 0.0], []
    networks = [
        source(function, loss="pivot", distance_weight=weight)
        for function, weight in zip(functions, weights)
    ]
    found = computed("distance_sweep", networks, (8.0,), ["step_fgsm"], done.append)
    assert found["order"].tolist() == [3, 1, 0, 2]
    assert found["distance_weight"].tolist() == [0, 1e-4, 1e-2, 1e-2]
    assert found["level"].tolist() == [0, 1e-4, 1e-2]
    for place, index in enumerate(found["order"]):
        function = functions[index]
        made = attacked(function, "step_fgsm", 8.0)
        assert found["clean"][place] == 100 * correct(function, IMAGES) / 11
        assert found["accuracy"][0, 0, place] == 100 * correct(function, made) / 11
    np.testing.assert_allclose(found["level_clean"][2], found["clean"][2:].mean())
    np.testing.assert_allclose(found["level_accuracy"][0, 0, 2], found["accuracy"][0, 0, 2:].mean())
    assert done[-1] == 4 * len(IMAGES)


def test_cw_distribution_is_that_of_the_attack():
    grid, few = Grid((1.0, 10.0), (10.0, 50.0)), {"images": IMAGES[:4], "labels": LABELS[:4]}
    dataset = dataclasses.replace(DATASETS["digits"], grid=grid)
    found = computed("cw_distribution", [ONE], (4,), dataset=dataset, cw_iterations=100, **few)
    expected = CarliniWagner(ONE, SHAPE, grid=grid, iterations=100)(IMAGES[:4], LABELS[:4])
    np.testing.assert_array_equal(found["epsilon"][0], expected.epsilon)
    assert (found["epsilon"] > 0).any()


# The loss around an image.


def test_loss_surface_has_the_steps_on_its_axes():
    offsets = (-8.0, 0.0, 4.0, 100.0)  # at 100 images are clipped
    found = computed("loss_surface", [ONE], offsets, seed=9)
    loss, margin = found["loss"][0], found["margin"][0]
    assert loss.shape == margin.shape == (11, 4, 4)

    def losses(images):
        return attacks.cross_entropy(LABELS)(ONE(images.astype("float32"))).numpy()

    for index, offset in enumerate(offsets):
        for name, there in (("step_fgsm", loss[:, 1, index]), ("step_rand", loss[:, index, 1])):
            expected = losses(attacked(ONE, name, offset, seed=9))
            np.testing.assert_allclose(there, expected, rtol=1e-4)
    noise = tf.random.stateless_normal(IMAGES.shape, [9, 0], alg=draws.GENERATOR)
    ascent = attacks.input_gradient(ONE, tf.constant(IMAGES), attacks.cross_entropy(LABELS))
    both = np.clip(IMAGES + (100 * np.sign(ascent) - 8 * np.sign(noise)) / 255, 0, 1)
    np.testing.assert_allclose(loss[:, 0, 3], losses(both), rtol=1e-3)
    wrong = ONE(IMAGES).numpy().argmax(-1) != LABELS
    np.testing.assert_array_equal(margin[:, 1, 1] > 0, wrong)


# What captions say of networks.


SEEDED = {"seed": 0, "model": "resnet20", "dataset": "mnist", "init_from": None}
FROM_I = {"init_from": "runs/i"}
INITIALISATIONS = {
    "the same file": (FROM_I, {"init_from": "/x/i/model.keras"}, SAME),
    "other files": (FROM_I, {"init_from": "runs/j"}, OTHER),
    "the start itself": ({"init_from": "saved/b/2"}, SEEDED, SAME),
    "the same seed": (SEEDED, SEEDED, SAME),
    "other seeds": (SEEDED, SEEDED | {"seed": 1}, OTHER),
    "seed and file": (SEEDED, FROM_I, OTHER),
    "unknown": (SEEDED, {}, UNKNOWN),
}


@pytest.mark.parametrize("case", INITIALISATIONS)
def test_initialisations_are_compared(case):
    *recipes, expected = INITIALISATIONS[case]
    first, second = (source(ONE, name, **recipe) for name, recipe in zip("ab", recipes))
    assert compare_initialisation(first, second) == expected
    assert compare_initialisation(second, first) == expected
