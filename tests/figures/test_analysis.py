"""Arrays behind the figures: against closed forms and independent computations."""

import keras
import numpy as np
import pytest
import tensorflow as tf

from cascade_keras import attacks, draws, evaluation
from cascade_keras.attacks.carlini_wagner import CarliniWagner, Grid
from cascade_keras.figures import measures as analysis

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
    return lambda images: tf.tanh(tf.reshape(images, [len(images), -1]) @ first) @ last


ONE, OTHER = bent(1), bent(2)


def crafted(network, attack, epsilons, seed=0):
    craft = evaluation.crafter(network, SHAPE, attack, epsilons, seed=seed)
    return craft(IMAGES, LABELS, 0)


def corrcoef(first, second):
    flat = [np.reshape(values, (-1, int(np.prod(SHAPE)))) for values in (first, second)]
    with np.errstate(invalid="ignore"):
        return np.array([np.corrcoef(a, b)[0, 1] for a, b in zip(*flat)])


# Correlations.


def test_pearson_is_that_of_numpy():
    first, second = RNG.normal(3, 2, (2, 7, *SHAPE))
    np.testing.assert_allclose(analysis.pearson(first, second), corrcoef(first, second), rtol=1e-9)
    np.testing.assert_allclose(analysis.pearson(1e-30 * first, second), corrcoef(first, second))
    np.testing.assert_allclose(analysis.pearson(first, first), 1)
    np.testing.assert_allclose(analysis.pearson(first, -5 * first), -1)


@pytest.mark.parametrize("constant", [0.0, 3.0, np.float32(4 / 255)])
def test_pearson_of_a_constant_is_zero(constant):
    values = RNG.normal(size=SHAPE)
    assert analysis.pearson(np.full(SHAPE, constant), values) == 0
    assert analysis.pearson(values, np.full(SHAPE, constant)) == 0


def test_a_network_has_its_own_noises_and_their_mirror_image_is_opposite():
    def mirrored(images):  # its loss falls where that of ONE rises
        return -ONE(images)

    labels = np.zeros(11, "int32")
    two_classes = bent(3, classes=2), lambda images: -bent(3, classes=2)(images)
    found = analysis.noise_correlation(
        two_classes, IMAGES, labels, EPSILONS, attack="step_fgsm", seed=0
    )
    np.testing.assert_allclose(found["correlation"], -1, atol=1e-5)
    found = analysis.noise_correlation([ONE, ONE, mirrored], IMAGES, LABELS, EPSILONS)
    assert found["pairs"].tolist() == [[0, 1], [0, 2], [1, 2]]
    assert found["correlation"].shape == (3, 3, 11)
    np.testing.assert_allclose(found["mean"][0], 1, rtol=1e-6)
    np.testing.assert_allclose(found["deviation"][0], 0, atol=1e-6)


@pytest.mark.parametrize("attack", ["step_ll", "iter_fgsm", "pgd"])
def test_noise_correlation_is_that_of_the_images(attack, monkeypatch):
    monkeypatch.setattr(analysis, "_BATCH", 11 if attack == "pgd" else 4)
    done = []
    options = {"steps": 3} if attack == "pgd" else {}
    found = analysis.noise_correlation(
        [ONE, OTHER], IMAGES, LABELS, EPSILONS, attack=attack, progress=done.append, **options
    )
    for index, epsilon in enumerate(EPSILONS):
        noises = []
        for network in (ONE, OTHER):
            seed = {"seed": [0, 0]} if attack == "pgd" else {}
            made = attacks.ATTACKS[attack](network, IMAGES, LABELS, epsilon, **options, **seed)
            noises.append(made.numpy() - IMAGES)
        np.testing.assert_allclose(found["correlation"][0, index], corrcoef(*noises), atol=1e-5)
    np.testing.assert_allclose(found["mean"], found["correlation"].mean(-1))
    np.testing.assert_allclose(found["deviation"], found["correlation"].std(-1))
    assert done == ([11] if attack == "pgd" else [4, 8, 11])
    assert not found["undefined"].any()


def test_noises_that_are_zero_count_as_uncorrelated():
    def flat(images):  # no gradient: no step
        return 0 * ONE(images)

    found = analysis.noise_correlation([ONE, flat], IMAGES, LABELS, EPSILONS)
    np.testing.assert_array_equal(found["correlation"], 0)
    np.testing.assert_array_equal(found["undefined"], 11)


def test_a_pair_needs_two():
    with pytest.raises(ValueError, match="two networks"):
        analysis.noise_correlation([ONE], IMAGES, LABELS, EPSILONS)


def test_gradients_of_a_linear_network_stay_as_they_are():
    # Of two classes: the gradient is (p - 1) (w_true - w_other), always the same direction.
    network = linear(RNG.normal(size=(40, 2)))
    found = analysis.gradient_correlation(network, IMAGES, LABELS % 2, (-16.0, 0.0, 16.0))
    np.testing.assert_allclose(found["correlation"], 1, rtol=1e-5)
    assert found["correlation"].shape == (4, 3, 11)


def test_gradient_correlation_is_that_of_the_gradients():
    found = analysis.gradient_correlation(ONE, IMAGES, LABELS, (0.0, *EPSILONS), seed=3)

    def gradients(images):
        loss = attacks.cross_entropy(LABELS)
        return attacks.input_gradient(ONE, images, loss).numpy()

    at = {"clean": [gradients(IMAGES)] * 4}
    for attack in ("step_ll", "step_fgsm", "step_rand"):
        at[attack] = [gradients(made) for made in crafted(ONE, attack, (0, *EPSILONS), seed=3)]
    for line, (one, other) in enumerate(analysis.GRADIENT_PAIRS):
        for index in range(4):
            expected = corrcoef(at[one][index], at[other][index])
            np.testing.assert_allclose(found["correlation"][line, index], expected, atol=1e-5)
    np.testing.assert_allclose(found["mean"][:, 0], 1, rtol=1e-5)


def test_gradients_of_a_saturated_network_are_counted():
    found = analysis.gradient_correlation(lambda x: 1e6 * ONE(x), IMAGES, LABELS, (4.0,))
    assert np.isfinite(found["correlation"]).all() and found["undefined"].any()


# Logits and embeddings.


def test_logits_are_told_apart_by_the_label():
    epsilons = (-16.0, 0.0, 4.0)
    found = analysis.logits(ONE, IMAGES, LABELS, epsilons, seed=7)
    clean = ONE(IMAGES).numpy()
    rows = np.arange(11)
    false = np.stack([np.delete(row, label) for row, label in zip(clean, LABELS)])
    for attack in range(3):
        np.testing.assert_allclose(found["true"][attack, 1], clean[rows, LABELS], rtol=1e-5)
        np.testing.assert_allclose(found["false"][attack, 1], false.mean(1), atol=1e-5)
        np.testing.assert_allclose(found["largest"][attack, 1], false.max(1), atol=1e-5)
    rand = ONE(crafted(ONE, "step_rand", epsilons, seed=7)[2]).numpy()
    np.testing.assert_allclose(found["true"][2, 2], rand[rows, LABELS], atol=1e-5)
    for name in ("true", "false", "largest"):
        np.testing.assert_allclose(found[f"{name}_mean"], found[name].mean(-1))
        np.testing.assert_allclose(found[f"{name}_deviation"], found[name].std(-1))


def test_a_negative_epsilon_is_the_step_to_the_other_side():
    found = analysis.logits(ONE, IMAGES, LABELS, (-16.0, 16.0), attack_names=["step_fgsm"])
    forth = attacks.step_fgsm(ONE, IMAGES, LABELS, 16).numpy()
    back = ONE(2 * IMAGES - forth).numpy()
    expected = back[np.arange(11), LABELS]
    np.testing.assert_allclose(found["true"][0, 0], expected, atol=1e-5)
    # Towards the true class the loss falls.
    assert (found["true"] - found["false"])[0, 0].mean() > (found["true"] - found["false"])[
        0, 1
    ].mean()


def embedding(network, matrix):
    return lambda images: {
        "logits": network(images),
        "embedding": network(images) @ tf.constant(matrix, tf.float32),
    }


@pytest.mark.parametrize("dimensions", [2, 6])
def test_traces_of_a_linear_network_are_straight(dimensions):
    network = embedding(linear(RNG.normal(size=(40, 2))), RNG.normal(size=(2, dimensions)))
    epsilons = (0.0, 4.0, 8.0, 16.0)
    found = analysis.embedding_map(
        network, IMAGES, LABELS % 2, epsilons, traced=np.array([0, 3]), attack="iter_fgsm"
    )
    traces = found["traces"]
    assert traces.shape == (2, 4, 2) and found["points"].shape == (11, 2)
    np.testing.assert_allclose(traces[:, 0], found["points"][[0, 3]], atol=1e-4)
    # iter_fgsm's last iterate lies on the corner of the ball: the way is in proportion to epsilon.
    ways = traces - traces[:, :1]
    expected = ways[:, -1:] * (np.array(epsilons) / 16)[:, None]
    np.testing.assert_allclose(ways, expected, atol=1e-3 * np.abs(ways).max())
    np.testing.assert_allclose(found["embedding"], network(IMAGES)["embedding"], atol=1e-4)
    for place, label in enumerate(np.unique(LABELS % 2)):
        expected = np.median(found["points"][label == LABELS % 2], axis=0)
        np.testing.assert_allclose(found["centres"][place], expected)


def test_two_dimensions_are_not_projected():
    clean, others = RNG.normal(size=(9, 2)), RNG.normal(size=(3, 4, 2))
    points, moved, explained = analysis.project(clean, others)
    np.testing.assert_array_equal(points, clean)
    np.testing.assert_array_equal(moved, others)
    assert np.isnan(explained).all()


def test_projection_keeps_what_lies_in_a_plane():
    """Of 5 dimensions in which only 2 vary, all distances stay; the shares are eigenvalues'."""
    plane = np.linalg.qr(RNG.normal(size=(5, 2)))[0].T
    clean, others = RNG.normal(size=(9, 2)) * (3, 1), RNG.normal(size=(3, 4, 2))
    points, moved, explained = analysis.project(clean @ plane + 7, others @ plane + 7)
    np.testing.assert_allclose(
        np.linalg.norm(points[:, None] - moved[1, 2], axis=-1),
        np.linalg.norm(clean[:, None] - others[1, 2], axis=-1),
    )
    eigenvalues = np.linalg.eigvalsh(np.cov(clean.T))[::-1]
    np.testing.assert_allclose(explained, eigenvalues / eigenvalues.sum())
    np.testing.assert_allclose(points.mean(axis=0), 0, atol=1e-12)


def test_one_dimension_lies_on_a_line():
    points, moved, _ = analysis.project(np.ones((3, 1)), np.ones((2, 1)))
    assert points.tolist() == [[1, 0]] * 3 and moved.tolist() == [[1, 0]] * 2


# Accuracies.


def test_accuracy_curve_is_that_of_the_sweep():
    names, epsilons = ["step_rand", "iter_fgsm", "pgd"], (0.0, 8.0, 64.0)
    options = {"pgd": {"steps": 3, "objective": "margin"}}
    done = []
    found = analysis.accuracy_curve(
        ONE, IMAGES, LABELS, epsilons,
        attack_names=names, options=options, seed=5, progress=done.append,
    )  # fmt: skip
    for row, name in enumerate(names):
        results = evaluation.sweep(
            ONE, IMAGES, LABELS, name, epsilons, seed=5, **options.get(name, {})
        )
        assert found["correct"][row].tolist() == [result.correct for result in results]
        assert found["accuracy"][row].tolist() == [result.accuracy for result in results]
    assert done == sorted(done) and done[-1] == len(IMAGES)


def test_distance_sweep_is_in_the_order_of_lambda():
    networks, weights = [bent(seed) for seed in range(4)], [1e-2, 1e-4, 1e-2, 0.0]
    done = []
    found = analysis.distance_sweep(
        networks, weights, IMAGES, LABELS, (8.0,), attack_names=["step_fgsm"], progress=done.append
    )
    assert found["order"].tolist() == [3, 1, 0, 2]
    assert found["distance_weight"].tolist() == [0, 1e-4, 1e-2, 1e-2]
    assert found["level"].tolist() == [0, 1e-4, 1e-2]
    for place, index in enumerate(found["order"]):
        clean = evaluation.evaluate(networks[index], IMAGES, LABELS, "clean").accuracy
        attacked = evaluation.evaluate(networks[index], IMAGES, LABELS, "step_fgsm", 8.0).accuracy
        assert found["clean"][place] == clean
        assert found["accuracy"][0, 0, place] == attacked
    np.testing.assert_allclose(found["level_clean"][2], found["clean"][2:].mean())
    np.testing.assert_allclose(found["level_accuracy"][0, 0, 2], found["accuracy"][0, 0, 2:].mean())
    assert done[-1] == 4 * len(IMAGES)


def test_cw_distribution_is_that_of_the_attack():
    grid = Grid((1.0, 10.0), (10.0, 50.0))
    found = analysis.cw_distribution(ONE, IMAGES[:4], LABELS[:4], grid=grid, iterations=100)
    expected = CarliniWagner(ONE, SHAPE, grid=grid, iterations=100)(IMAGES[:4], LABELS[:4])
    np.testing.assert_array_equal(found["epsilon"], expected.epsilon)
    assert (found["epsilon"] > 0).any()


# The loss around an image.


def losses(images, label):
    return attacks.cross_entropy(np.full(len(images), label))(ONE(images)).numpy()


def test_loss_surface_has_the_steps_on_its_axes():
    offsets = (-8.0, 0.0, 4.0, 100.0)  # at 100 images are clipped
    found = analysis.loss_surface(ONE, IMAGES, LABELS, offsets, seed=9)
    assert found["loss"].shape == found["margin"].shape == (11, 4, 4)
    clean = attacks.cross_entropy(LABELS)(ONE(IMAGES)).numpy()
    np.testing.assert_allclose(found["loss"][:, 1, 1], clean, rtol=1e-4)
    noise = tf.random.stateless_normal(IMAGES.shape, [9, 0], alg=draws.GENERATOR)
    for index, offset in enumerate(offsets):
        stepped = attacks.step_fgsm(ONE, IMAGES, LABELS, offset)
        expected = attacks.cross_entropy(LABELS)(ONE(stepped)).numpy()
        np.testing.assert_allclose(found["loss"][:, 1, index], expected, rtol=1e-4)
        noisy = attacks.step_rand(ONE, IMAGES, LABELS, offset, seed=[9, 0])
        expected = attacks.cross_entropy(LABELS)(ONE(noisy)).numpy()
        np.testing.assert_allclose(found["loss"][:, index, 1], expected, rtol=1e-4)
    both = np.clip(stepped.numpy() * 0 + IMAGES + (
        100 * np.sign(attacks.input_gradient(ONE, IMAGES, attacks.cross_entropy(LABELS)))
        - 8 * np.sign(noise)
    ) / 255, 0, 1)  # fmt: skip
    expected = attacks.cross_entropy(LABELS)(ONE(both.astype("float32"))).numpy()
    np.testing.assert_allclose(found["loss"][:, 0, 3], expected, rtol=1e-3)


def test_loss_surface_tells_where_the_class_changes():
    found = analysis.loss_surface(ONE, IMAGES, LABELS, (0.0, 60.0))
    wrong = ONE(IMAGES).numpy().argmax(-1) != LABELS
    np.testing.assert_array_equal(found["margin"][:, 0, 0] > 0, wrong)


def test_a_real_network_is_left_as_it_was(digits, randomize):
    """No moving statistic moves, and all batch sizes give the same numbers."""
    from cascade_keras import models

    network = randomize(models.build("resnet8", input_shape=(8, 8, 1), num_classes=10))
    before = [np.array(variable) for variable in network.variables]

    def logits_fn(images):
        return network(images, training=False)["logits"]

    images, labels = digits[0][:6], digits[1][:6]
    with pytest.MonkeyPatch.context() as patch:
        every = analysis.logits(logits_fn, images, labels, (0.0,), attack_names=["step_fgsm"])
        patch.setattr(analysis, "_BATCH", 4)
        apart = analysis.logits(logits_fn, images, labels, (0.0,), attack_names=["step_fgsm"])
    np.testing.assert_allclose(every["true"], apart["true"], rtol=1e-4)
    for variable, value in zip(network.variables, before):
        np.testing.assert_array_equal(keras.ops.convert_to_numpy(variable), value)
