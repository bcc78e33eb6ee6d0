"""The ladder makes the image of each epsilon as if alone, with as few gradients as it promises."""

import itertools

import numpy as np
import pytest
import tensorflow as tf
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from support.networks import smooth, smooth_network

from cascade_keras import attacks, models

ITERATIVE = ["iter_fgsm", "iter_ll"]
SEEDS = (0, 1, 2)


@pytest.fixture(scope="module")
def networks(randomize):
    def logits_fn(seed):
        network = randomize(models.resnet(8, (8, 8, 1)), seed)
        return tf.function(
            lambda images: network(images, training=False)["logits"],
            input_signature=[tf.TensorSpec([None, 8, 8, 1])],
        )

    drawn = {("smooth", seed): smooth_network(seed) for seed in SEEDS}
    return drawn | {("resnet", seed): logits_fn(seed) for seed in SEEDS[:2]}


@pytest.fixture(scope="module")
def batch(digits):
    images, labels = digits
    return tf.constant(images[:6]), tf.constant(labels[:6])


@pytest.fixture(scope="module")
def exact(batch):
    """In float64, where the size of the batch changes no sign of a gradient."""
    return tf.cast(batch[0], tf.float64), batch[1]


def counting(logits_fn):
    """Return the network, and a variable that counts the images a gradient was taken of."""
    taken = tf.Variable(0)

    @tf.custom_gradient
    def counted(images):
        def gradient(upstream):
            taken.assign_add(tf.shape(upstream)[0])
            return upstream

        return tf.identity(images), gradient

    return lambda images: logits_fn(counted(images)), taken


def alone(attack, logits_fn, images, labels, epsilon, **options):
    return attacks.at_epsilon(attack, logits_fn, images, labels, epsilon, **options)


# The same images.

WHOLE = st.integers(1, 24).map(float)
FRACTIONAL = st.sampled_from([0.3, 0.7, 1.4, 7.7, 12.8, 38.5, 76.5])
ANY = st.floats(0, 16, width=32)


@settings(
    max_examples=20,
    deadline=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
)
@given(data=st.data(), epsilons=st.lists(WHOLE | FRACTIONAL | ANY, min_size=1, max_size=3))
def test_each_image_is_the_one_crafted_alone(data, epsilons, networks, digits):
    name = data.draw(st.sampled_from(sorted(networks)), "network")
    attack = data.draw(st.sampled_from(ITERATIVE), "attack")
    epsilons += data.draw(st.sampled_from([[], epsilons[:1]]), "given twice")
    options = {
        "step_size": data.draw(st.sampled_from([1, 2, 0.7]), "step_size"),
        "steps": data.draw(st.none() | st.integers(0, 12), "steps"),
    }
    if attack == "iter_fgsm":
        objectives = [attacks.cross_entropy, attacks.margin]
        options["objective"] = data.draw(st.sampled_from(objectives), "objective")
    first, count = data.draw(st.integers(0, 1700), "first"), data.draw(st.integers(1, 4), "count")
    images, labels = (tf.constant(array[first : first + count]) for array in digits)

    rungs = attacks.ladder(networks[name], images, labels, epsilons, attack=attack, **options)

    assert rungs.shape == (len(epsilons), *images.shape)
    for rung, epsilon in zip(rungs, epsilons):
        expected = alone(attack, networks[name], images, labels, epsilon, **options)
        np.testing.assert_array_equal(rung, expected, err_msg=f"epsilon {epsilon}")


@pytest.mark.parametrize(
    ("epsilons", "step_size", "steps"),
    [
        # An epsilon below the step takes nothing from the others.
        *itertools.product([(9.5, 0.0), (9.5, 0.7), (9.5, 1.0)], [1, 2, 0.7], [None, 3]),
        # In float32 three steps of 1.1 lead out of the ball of 3.3, where they are clipped.
        ((3.3, 20), 1.1, 3),
        ((11.0, 20), 1.1, 10),
        ((10.4, 20), 1.3, 8),
    ],
)
def test_steps_beyond_or_at_the_border_of_a_ball(epsilons, step_size, steps, batch):
    options = {"step_size": step_size, "steps": steps}
    rungs = attacks.ladder(smooth, *batch, epsilons, **options)
    for rung, epsilon in zip(rungs, epsilons):
        np.testing.assert_array_equal(rung, alone("iter_fgsm", smooth, *batch, epsilon, **options))


# The number of gradients.


@pytest.mark.parametrize(
    ("epsilons", "attack", "traced", "gradients"),
    [
        (range(1, 17), "iter_fgsm", False, 44),
        (range(1, 17), "iter_fgsm", True, 44),
        (range(1, 17), "iter_ll", False, 44),
        (range(1, 77), "iter_fgsm", True, 344),
        ((2, 4, 8, 16), "iter_fgsm", False, 16 + 0 + 1 + 2 + 4),
        ((16, 4, 4, 2, 16), "iter_ll", False, 16 + 0 + 1 + 4),
        ((76.5,), "iter_fgsm", True, 80),
        ((0.9, 2.5), "iter_fgsm", False, 1 + 3),
        ((0.3, 0.7, 0), "iter_fgsm", False, 1 + 1 + 0),
    ],
    ids=str,
)
def test_gradients_of_each_image(epsilons, attack, traced, gradients, batch):
    images, labels = batch[0][:2], batch[1][:2]
    logits_fn, taken = counting(smooth)

    def craft():
        return attacks.ladder(logits_fn, images, labels, epsilons, attack=attack)

    (tf.function(craft) if traced else craft)()

    assert int(taken) == gradients * len(images)
    assert attacks.ladder_gradients(epsilons) == gradients


@pytest.mark.parametrize(
    ("attack", "options", "gradients"),
    [
        *((name, {}, 1) for name in ("step_ll", "step_fgsm", "step_both")),
        ("step_fgsm", {"objective": attacks.margin}, 1),
        ("step_rand", {"seed": (3, 4)}, 0),
        *((name, {}, 4 + 0 + 1 + 1) for name in ("iter_ll", "iter_fgsm", "iter_margin")),
    ],
)
def test_any_attack_at_several_epsilons(attack, options, gradients, batch):
    epsilons = [4, 1, 2.5, 1]
    logits_fn, taken = counting(smooth)

    versions = attacks.at_epsilons(attack, logits_fn, *batch, epsilons, **options)

    assert int(taken) == gradients * len(batch[0])
    assert versions.shape == (4, *batch[0].shape)
    for version, epsilon in zip(versions, epsilons):
        expected = attacks.at_epsilon(attack, smooth, *batch, epsilon, **options)
        np.testing.assert_array_equal(version, expected)


# An epsilon for each image, or each pixel.

OWN = np.array([4, 0, 16, 1, 0.3, 2.5])
PIXELS = np.random.default_rng(0).choice([0, 0.5, 1, 2, 4, 7.5], (6, 8, 8, 1))
PIXELS[0], PIXELS[1, :4] = 0, 0


@pytest.mark.parametrize("epsilon", [OWN, PIXELS], ids=["image", "pixel"])
@pytest.mark.parametrize("attack", ITERATIVE)
def test_an_image_is_computed_until_the_last_of_its_pixels_is_done(attack, epsilon, exact):
    images, labels = exact
    each = epsilon.reshape(6, -1, 1, 1) if epsilon is OWN else epsilon
    iterations = attacks.iterations(each).numpy()
    logits_fn, taken = counting(smooth)

    adversarial = alone(attack, logits_fn, images, labels, epsilon)

    sign, classes = (1, labels) if attack == "iter_fgsm" else (-1, np.argmin(smooth(images), -1))
    expected = images
    for n in range(iterations.max()):
        with tf.GradientTape() as tape:
            tape.watch(expected)
            loss = tf.nn.sparse_softmax_cross_entropy_with_logits(classes, smooth(expected))
        moved = expected + sign * tf.sign(tape.gradient(loss, expected)) / 255
        moved = np.clip(moved, images - each / 255, images + each / 255).clip(0, 1)
        expected = tf.where(n < iterations, moved, expected)
    np.testing.assert_allclose(adversarial, expected, rtol=0, atol=1e-9)
    assert int(taken) == iterations.max(axis=(1, 2, 3)).sum()


# Compiled, and stored.


@pytest.mark.parametrize("jit_compile", [False, True], ids=["graph", "xla"])
@pytest.mark.parametrize("attack", ITERATIVE)
def test_compiled_for_any_batch_size(attack, jit_compile, exact):
    epsilons = [4, 1, 2.5]
    signature = [tf.TensorSpec([None, 8, 8, 1], tf.float64), tf.TensorSpec([None], tf.int32)]
    compiled = tf.function(
        lambda images, labels: attacks.ladder(smooth, images, labels, epsilons, attack=attack),
        input_signature=signature,
        jit_compile=jit_compile,
    )
    images, labels = exact
    for count in (6, 2):
        rungs = compiled(images[:count], labels[:count])
        expected = attacks.ladder(smooth, images[:count], labels[:count], epsilons, attack=attack)
        assert rungs.shape == (3, count, 8, 8, 1)
        np.testing.assert_allclose(rungs, expected, rtol=0, atol=1e-6)


@pytest.mark.parametrize("attack", ITERATIVE)
@pytest.mark.parametrize("network", ["smooth", "resnet"])
def test_whole_pixels_survive_storage(network, attack, networks, digits):
    whole = np.round(digits[0][:6] * 255).astype("uint8")
    images, labels = tf.constant(whole.astype("float32") / np.float32(255)), digits[1][:6]
    epsilons = [1, 2, 5, 16]

    rungs = attacks.ladder(networks[network, 0], images, labels, epsilons, attack=attack).numpy()

    np.testing.assert_allclose(255 * rungs, np.round(255 * rungs), rtol=0, atol=1e-4)
    stored = np.round(255 * rungs).astype("uint8")
    loaded = stored.astype("float32") / np.float32(255)
    np.testing.assert_allclose(loaded, rungs, rtol=0, atol=2**-24)  # 1 ulp of [1/2, 1)
    np.testing.assert_array_equal(np.round(255 * loaded), stored)
    reach = np.abs(stored.astype(int) - whole).max(axis=(1, 2, 3, 4))
    np.testing.assert_array_equal(reach, epsilons)


def test_bad_arguments_of_the_ladder_are_refused(batch):
    for epsilons in ([], np.array([])):
        with pytest.raises(ValueError, match="at least one epsilon"):
            attacks.ladder(smooth, *batch, epsilons)
    for attack in ("step_fgsm", "pgd"):
        with pytest.raises(ValueError, match=f"'{attack}' is none of iter_ll, iter_fgsm"):
            attacks.ladder(smooth, *batch, [1], attack=attack)
