"""One step from a random start, against the formulas in NumPy at a linear network."""

import inspect

import numpy as np
import pytest
import tensorflow as tf
from support.networks import smooth

import cascade_keras as ck
from cascade_keras import attacks, draws, losses
from cascade_keras.attacks import specs, started
from cascade_keras.crafting import CraftSettings
from cascade_keras.distances import DISTANCES
from cascade_keras.errors import InputError
from cascade_keras.evaluation.settings import EvaluationSettings
from cascade_keras.figures.settings import FigureSettings

RNG = np.random.default_rng(0)
WEIGHTS = RNG.normal(0, 0.4, (64, 10))
IMAGES = np.clip(RNG.uniform(-0.1, 1.1, (6, 8, 8, 1)), 0, 1)
LABELS = np.array([0, 3, 9, 3, 1, 7])
SEED = (3, 4)
EPSILON = np.array([0, 2.5, 8, 16, 60, 120])  # up to where the range of pixels clips most


def network(images):
    """Logits, of images in float64, in which NumPy agrees to the last sign."""
    return tf.reshape(images, [-1, 64]) @ WEIGHTS


def probabilities(logits):
    powers = np.exp(logits - logits.max(1, keepdims=True))
    return powers / powers.sum(1, keepdims=True)


def up_cross_entropy(images, labels=LABELS):
    """The gradient of the cross entropy of logits x W: (p - y) W'."""
    found = probabilities(images.reshape(-1, 64) @ WEIGHTS) - np.eye(10)[labels]
    return (found @ WEIGHTS.T).reshape(images.shape)


def up_distance(images, clean, kind):
    """The gradient of sum ||f(images) - f(clean)||, f logits or softmax, in the images."""
    logits, fixed = (x.reshape(-1, 64) @ WEIGHTS for x in (images, clean))
    if kind == "l2":
        upstream = 2 * (logits - fixed)
    elif kind == "l1":
        upstream = np.sign(logits - fixed)
    else:
        p, q = probabilities(logits), probabilities(fixed)
        apart = 2 * (p - q)
        upstream = p * (apart - (apart * p).sum(1, keepdims=True))  # the Jacobian is diag(p) - pp'
    return (upstream @ WEIGHTS.T).reshape(images.shape)


def noise():
    key = tf.random.fold_in(SEED, 0, alg="philox")
    return tf.random.stateless_uniform(
        IMAGES.shape, key, -1, 1, tf.float64, alg="philox"
    ).numpy()  # fmt: skip


def radius():
    return EPSILON.reshape(-1, 1, 1, 1) / 255


def projected(images):
    return np.clip(np.clip(images, IMAGES - radius(), IMAGES + radius()), 0, 1)


def test_rs_fgsm_steps_from_uniform_noise_and_is_projected():
    begun = np.clip(IMAGES + radius() * noise(), 0, 1)
    expected = projected(begun + 1.25 * radius() * np.sign(up_cross_entropy(begun)))
    found = attacks.rs_fgsm(network, IMAGES, LABELS, EPSILON, seed=SEED)
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-12)


def test_n_fgsm_steps_from_twice_the_noise_and_leaves_the_ball():
    begun = np.clip(IMAGES + 2 * radius() * noise(), 0, 1)
    expected = np.clip(begun + radius() * np.sign(up_cross_entropy(begun)), 0, 1)
    found = attacks.n_fgsm(network, IMAGES, LABELS, EPSILON, seed=SEED)
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-12)
    far = np.abs(found - IMAGES)[1:] / radius()[1:]
    assert 2 < far.max() <= 3 + 1e-9


@pytest.mark.parametrize("start", ["none", "bernoulli", "uniform"])
@pytest.mark.parametrize("distance", ["softmax", "l2", "l1"])
def test_guided_climbs_cross_entropy_and_distance(start, distance):
    reach = {"none": 0 * noise(), "bernoulli": np.where(noise() < 0, -0.5, 0.5), "uniform": noise()}
    begun = np.clip(IMAGES + radius() * reach[start], 0, 1)
    guide = 3.0
    up = up_cross_entropy(begun) + guide * up_distance(begun, IMAGES, distance)
    expected = projected(begun + radius() * np.sign(up))
    options = {"seed": SEED, "start": start, "distance": distance}
    for given in (guide, tf.constant(guide)):
        found = attacks.guided(network, IMAGES, LABELS, EPSILON, guide=given, **options)
        np.testing.assert_allclose(found, expected, rtol=0, atol=1e-12)
    # The weight matters, but at the image itself, where the distance is flat.
    other = attacks.guided(network, IMAGES, LABELS, EPSILON, guide=0, **options)
    assert np.any(np.abs(other - expected) > 1e-3) == (start != "none")


@pytest.mark.parametrize("soft", [False, True])
def test_without_guide_and_start_it_is_step_fgsm_to_the_last_bit(digits, soft):
    images, labels = digits[0][:8], digits[1][:8]
    labels = np.eye(10, dtype="float32")[labels] * 0.9 + 0.01 if soft else labels
    epsilon = np.linspace(0, 30, 8).astype("float32")
    expected = attacks.step_fgsm(smooth, images, labels, epsilon)
    for guide in (0, tf.constant(0.0)):
        found = attacks.guided(smooth, images, labels, epsilon, seed=0, guide=guide, start="none")
        np.testing.assert_array_equal(found, expected)


def test_the_clean_images_are_asked_for_where_they_weigh_alone():
    calls = []

    def counted(images):
        tf.py_function(lambda: calls.append(1), [], [])
        return network(images)

    @tf.function(input_signature=[tf.TensorSpec([], tf.float64)], autograph=False)
    def guided(guide):
        return attacks.guided(counted, IMAGES, LABELS, 8.0, seed=1, guide=guide)

    for guide, passes in ((0.0, 1), (2.0, 2)):
        calls.clear()
        guided(guide)
        assert len(calls) == passes


def test_the_distance_is_of_the_embedding_where_there_is_one():
    """Which has another direction than the logits; one call gives both."""
    other = RNG.normal(0, 0.4, (64, 3))
    shown = []

    def with_both(images):
        shown.append(len(images))
        flat = tf.reshape(images, [-1, 64])
        return attacks.with_embedding(flat @ WEIGHTS, flat @ other)

    begun = np.clip(IMAGES + radius() * np.where(noise() < 0, -0.5, 0.5), 0, 1)
    apart = 2 * (begun - IMAGES).reshape(-1, 64) @ other
    up = up_cross_entropy(begun) + 5.0 * (apart @ other.T).reshape(IMAGES.shape)
    expected = projected(begun + radius() * np.sign(up))
    options = {"seed": SEED, "guide": 5.0, "distance": "l2"}
    found = attacks.guided(with_both, IMAGES, LABELS, EPSILON, **options)
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-12)
    assert shown == [6, 6]
    assert np.abs(found - attacks.guided(network, IMAGES, LABELS, EPSILON, **options)).max() > 0.01


def test_an_ensemble_is_climbed_by_its_own_rule():
    """Of the members' losses the mean is ascended; the distance is of the mean of their logits."""
    second = RNG.normal(0, 0.4, (64, 10))

    def ensemble(images):
        each = [tf.reshape(images, [-1, 64]) @ w for w in (WEIGHTS, second)]
        return attacks.objectives.with_members(tf.add_n(each) / 2, each)

    begun = tf.constant(np.clip(IMAGES + radius() * np.where(noise() < 0, -0.5, 0.5), 0, 1))
    with tf.GradientTape() as tape:
        tape.watch(begun)
        flat = tf.reshape(begun, [-1, 64])
        each = [
            tf.nn.sparse_softmax_cross_entropy_with_logits(LABELS, flat @ w)
            for w in (WEIGHTS, second)
        ]
        mean = (WEIGHTS + second) / 2
        apart = (flat - IMAGES.reshape(-1, 64)) @ mean
        total = tf.reduce_sum(tf.add_n(each) / 2) + 5.0 * tf.reduce_sum(apart**2)
    expected = projected(begun.numpy() + radius() * np.sign(tape.gradient(total, begun)))
    found = attacks.guided(ensemble, IMAGES, LABELS, EPSILON, seed=SEED, guide=5.0, distance="l2")
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-12)


def test_several_epsilons_are_as_if_each_were_alone():
    for name in ("rs_fgsm", "n_fgsm", "guided"):
        both = attacks.at_epsilons(name, network, IMAGES, LABELS, [3, 20], seed=SEED)
        for epsilon, found in zip((3, 20), both):
            alone = attacks.at_epsilon(name, network, IMAGES, LABELS, epsilon, seed=SEED)
            np.testing.assert_array_equal(found, alone)
        row = specs.ATTACKS[name]
        assert row.gradients([3, 20], {}) == 2 * row.gradients([3], {}) >= 2
        with pytest.raises(ValueError, match="0 or above"):
            attacks.at_epsilons(name, network, IMAGES, LABELS, [-3], seed=SEED, signed=True)
        with pytest.raises(ValueError, match="Signed"):
            attacks.at_epsilon(name, network, IMAGES, LABELS, attacks.Signed(3), seed=SEED)


def test_starts_are_of_the_image_and_of_the_key_alone():
    images = tf.zeros([6, 8, 8, 1])
    signs = draws.start_signs(images, SEED)
    assert set(np.unique(signs)) == {-1, 1} and abs(np.mean(signs)) < 0.15
    np.testing.assert_array_equal(draws.start_signs(images[:2], SEED), signs[:2])
    with draws.of_larger_batch(tf.constant([1, 4]), 6):
        np.testing.assert_array_equal(draws.start_signs(images[:2], SEED), signs.numpy()[[1, 4]])
    assert np.any(draws.start_signs(images, (3, 5)) != signs)


# The distances.


def test_distances_are_the_formulas():
    one, other = RNG.normal(0, 2, (2, 7, 4))
    weights = RNG.uniform(0, 2, 7)
    apart = one - other
    p, q = probabilities(one), probabilities(other)
    for weight in (np.ones(7), weights):
        expected = {
            "l1": (weight * np.abs(apart).sum(1)).sum(),
            "l2": (weight * (apart**2).sum(1)).sum(),
            "softmax": (weight * ((p - q) ** 2).sum(1)).sum(),
            "nuclear": np.linalg.norm(weight[:, None] * apart, "nuc"),
        }
        given = () if weight is not weights else (weights,)
        for name, value in expected.items():
            np.testing.assert_allclose(DISTANCES[name](one, other, *given), value, rtol=1e-9)
    assert tuple(DISTANCES) == losses.specs.DISTANCES
    assert set(losses.specs.DISTANCES) >= set(specs._WORDS["distance"])
    assert set(started._STARTS) == set(started._REACH) == set(specs._WORDS["start"])
    for function in (losses.bidirectional_distance, losses.pivot_distance):
        for name in DISTANCES:
            np.testing.assert_allclose(function(one, other, name), DISTANCES[name](one, other))
        with pytest.raises(ValueError, match="norm must be 1 or 2"):
            function(one, other, "l3")


@pytest.mark.parametrize("name", DISTANCES)
def test_gradients_of_distances_are_finite_differences(name):
    one, other = (tf.constant(part) for part in RNG.normal(0, 1, (2, 5, 3)))
    direction = RNG.normal(0, 1, (5, 3))
    for moving in (0, 1):
        pair = [one, other]
        with tf.GradientTape() as tape:
            tape.watch(pair[moving])
            value = DISTANCES[name](*pair)
        slope = np.sum(tape.gradient(value, pair[moving]) * direction)
        values = []
        for sign in (-1, 1):
            pair = [one, other]
            pair[moving] = pair[moving] + sign * 1e-6 * direction
            values.append(float(DISTANCES[name](*pair)))
        np.testing.assert_allclose(slope, (values[1] - values[0]) / 2e-6, rtol=1e-5)


@pytest.mark.parametrize("rank", [0, 1, 2])
def test_the_nuclear_norm_has_a_gradient_where_singular_values_are_zero(rank):
    """That of equal outputs is 0; of a rank r matrix U V', whose norm is the square root of r."""
    matrix = RNG.normal(0, 1, (6, rank)) @ RNG.normal(0, 1, (rank, 4))
    variable = tf.Variable(matrix)
    with tf.GradientTape() as tape:
        value = DISTANCES["nuclear"](variable, tf.zeros([6, 4], tf.float64))
    gradient = tape.gradient(value, variable).numpy()
    np.testing.assert_allclose(value, np.linalg.norm(matrix, "nuc"), atol=1e-12)
    np.testing.assert_allclose(np.linalg.norm(gradient), rank**0.5, atol=1e-9)
    left, _, right = np.linalg.svd(matrix, full_matrices=False)
    np.testing.assert_allclose(gradient, left[:, :rank] @ right[:rank], atol=1e-9)


# What is refused.


def test_an_attack_that_leaves_the_ball_measures_nothing(digits):
    images, labels = digits[0][:4], digits[1][:4]
    said = "n_fgsm makes training images only: they may be further than epsilon from theirs"
    asked = [
        lambda: EvaluationSettings(attack=("n_fgsm",)),
        lambda: FigureSettings(attack=("n_fgsm",)),
        lambda: CraftSettings(attack="n_fgsm"),
        lambda: ck.evaluate(lambda x: tf.reshape(x, [-1, 64])[:, :10], images, labels, "n_fgsm", 8),
        lambda: ck.callbacks.RobustValidation("n_fgsm", 8),
    ]
    for ask in asked:
        with pytest.raises(InputError, match=said) as error:
            ask()
        assert error.value.setting in ("attack", "attacks") and "\n" not in str(error.value)
    assert "n_fgsm" in specs.training_attacks() and "n_fgsm" not in specs.image_attacks()
    with pytest.raises(ValueError, match="training images only"):
        specs.look_up("n_fgsm", specs.image_attacks())
    with pytest.raises(InputError, match="whole pixel"):
        ck.bank.identity(
            source_hash="0", dataset_hash="0", split="test", crop=8, attack="rs_fgsm",
            epsilons=[1], examples=1,
        )  # fmt: skip


def test_the_others_are_measured_like_any(digits):
    images, labels = digits[0][:20], digits[1][:20]
    chosen = attacks.Guided(guide=2, start="uniform", distance="l2")
    report = ck.evaluate(smooth, images, labels, ["rs_fgsm", chosen], [4, 8], diagnosis_images=0)
    options = {r["attack"]: r["options"] for r in report.to_dict()["results"]}
    assert options["rs_fgsm"] == {}
    assert options["guided"] == {"start": "uniform", "guide": 2.0, "distance": "l2"}
    for bad in ({"start": "far"}, {"distance": "nuclear"}, {"guide": -1}, {"seed": 1}):
        with pytest.raises(InputError):
            attacks.Guided(**bad)
    assert "value_range" in inspect.signature(attacks.guided).parameters
