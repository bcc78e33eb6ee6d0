"""What attacks are given: any range of pixels, names, seeds, outputs that are no logits."""

import inspect
import warnings

import keras
import numpy as np
import pytest
import tensorflow as tf
from support.networks import smooth

from cascade_keras import attacks
from cascade_keras.attacks import autoattack, specs
from cascade_keras.errors import InputError

NAMES = specs.image_attacks()
RANGES = {"bytes": (0, 255), "other": (-2.5, 3.5)}
SEED = (3, 4)


# Fewer steps than by default.
SHORT = {"steps": 3, "restarts": 2, "iterations": 2, "targets": 2, "queries": 20}


def options_of(name):
    return {option: SHORT[option] for option in SHORT if option in specs.ATTACKS[name].options}


def of_range(images, value_range):
    low, high = value_range
    return images * (high - low) + low


def in_range(value_range):
    """The smooth network on images of a range, by arithmetic of its own."""
    low, high = value_range
    return lambda images: smooth((images - low) / (high - low))


@pytest.fixture(scope="module")
def batch(digits):
    return tf.cast(digits[0][:6], tf.float64), tf.constant(digits[1][:6])


@pytest.mark.parametrize("value_range", RANGES.values(), ids=RANGES)
@pytest.mark.parametrize("name", NAMES)
def test_images_come_and_go_in_their_range(name, value_range, batch):
    images, labels = batch
    own, options = of_range(images, value_range), {"seed": SEED, **options_of(name)}
    expected = attacks.at_epsilon(name, smooth, images, labels, 8, **options)
    found = attacks.at_epsilon(
        name, in_range(value_range), own, labels, 8, value_range=value_range, **options
    )
    width = value_range[1] - value_range[0]
    np.testing.assert_allclose(found, of_range(expected, value_range), rtol=0, atol=1e-6 * width)
    assert np.abs(found - own).max() <= 8 / 255 * width * (1 + 1e-6)
    several = attacks.at_epsilons(
        name, in_range(value_range), own, labels, [2, 8], value_range=value_range, **options
    )
    if specs.ATTACKS[name].kind == specs.NESTED:  # what is found for 2 may stand for 8
        expected = attacks.at_epsilons(name, smooth, images, labels, [2, 8], **options)[1]
        found = of_range(expected, value_range)
    np.testing.assert_allclose(several[1], found, rtol=0, atol=1e-6 * width)


def function_of(name):
    """What users call: of the row's name where the row's own takes several epsilons."""
    row = specs.ATTACKS[name]
    return getattr(attacks, name) if row.kind == specs.NESTED else row.resolve()


def test_every_attack_takes_a_range():
    functions = [function_of(name) for name in specs.names()]
    functions += [attacks.ladder, attacks.climb, attacks.at_epsilon, attacks.at_epsilons]
    for function in functions:
        parameter = inspect.signature(function).parameters["value_range"]
        assert parameter.default == (0, 1) and parameter.kind is parameter.KEYWORD_ONLY


def test_searches_take_a_range(batch):
    images, labels = batch[0][:2].numpy().astype("float32"), batch[1][:2].numpy()
    minimal = attacks.CarliniWagner(smooth, (8, 8, 1), iterations=20)(images, labels)
    assert np.isfinite(minimal.epsilon).all()
    own = (255 * images).astype(np.uint8)
    wide = attacks.CarliniWagner(
        in_range((0, 255)), (8, 8, 1), value_range=(0, 255), iterations=20
    )(255 * images, labels)
    np.testing.assert_allclose(wide.epsilon, minimal.epsilon, rtol=1e-2)
    far = np.abs(wide.images - 255 * images).max(axis=(1, 2, 3))
    np.testing.assert_allclose(far, wide.epsilon, rtol=1e-4)
    short = {"iterations": 5, "queries": 0, "seed": 1}
    found = autoattack.autoattack(
        in_range((0, 255)), own, labels, [8], value_range=(0, 255), **short
    )
    expected = autoattack.autoattack(
        smooth, own / np.float32(255), labels, [8], num_classes=10, **short
    )
    np.testing.assert_allclose(found, 255 * expected, atol=1e-3)


@pytest.mark.parametrize("name", ["step_ll", "step_rand", "iter_fgsm", "pgd"])
def test_nothing_is_added_to_images_of_the_unit_range(name, batch):
    """The graph of an entry is that of the attack itself."""

    def operations(function):
        def crafted(images, labels):
            options = {"seed": SEED} if specs.ATTACKS[name].seeded else {}
            return function(smooth, images, labels, 4.0, **options)

        signature = [tf.TensorSpec([6, 8, 8, 1]), tf.TensorSpec([6], tf.int32)]
        graph = tf.function(crafted).get_concrete_function(*signature).graph.as_graph_def()
        names = [node.op for node in graph.node]
        for inner in graph.library.function:
            names += [node.op for node in inner.node_def]
        return sorted(names)

    attack = specs.ATTACKS[name].resolve()
    assert operations(attack) == operations(attack.__wrapped__)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_images_of_half_precision_are_attacked_in_float32(name, dtype, batch):
    images, options = tf.cast(batch[0], dtype), {"seed": SEED, **options_of(name)}
    found = attacks.at_epsilon(name, smooth, images, batch[1], 4, **options)
    assert found.dtype == tf.float32
    wide = tf.cast(images, tf.float32)
    np.testing.assert_array_equal(
        found, attacks.at_epsilon(name, smooth, wide, batch[1], 4, **options)
    )
    assert np.abs(found - wide).max() <= 4 / 255 + 1e-7


@pytest.mark.parametrize("name", [n for n in NAMES if n != "step_rand"])
def test_probabilities_are_refused(name, batch):
    def probabilities(images):
        return tf.nn.softmax(smooth(images))

    options = {"seed": SEED, **options_of(name)}
    for function in (attacks.at_epsilon, tf.function(attacks.at_epsilon, autograph=False)):
        with pytest.raises(InputError, match=r"logits_fn gives probabilities.*adapt"):
            function(name, probabilities, *batch, 4, **options)
    with pytest.raises(InputError, match="of two classes or more"):
        attacks.at_epsilon(name, lambda x: smooth(x)[:, :1], *batch, 4, **options)
    with pytest.raises(InputError, match="it returns a dict"):
        attacks.at_epsilon(name, lambda x: {"logits": smooth(x)}, *batch, 4, **options)


def test_probabilities_are_refused_by_searches(batch):
    images, labels = batch[0].numpy(), batch[1].numpy()

    def probabilities(images):
        return tf.nn.softmax(smooth(images))

    with pytest.raises(InputError, match="gives probabilities"):
        attacks.CarliniWagner(probabilities, (8, 8, 1))(images, labels)
    with pytest.raises(InputError, match="gives probabilities"):
        autoattack.autoattack(probabilities, images, labels, [4], seed=0, num_classes=10)


def test_outputs_of_which_the_user_says_that_they_are_logits_are_taken(batch):
    network = keras.Sequential(
        [keras.Input((8, 8, 1)), keras.layers.Flatten(), keras.layers.Dense(10, "softmax")]
    )
    from cascade_keras.border import adapt

    images = tf.cast(batch[0], tf.float32)
    attacks.step_fgsm(adapt(network, from_logits=True).logits, images, batch[1], 4)
    with pytest.raises(InputError, match="gives probabilities"):
        attacks.step_fgsm(network, images, batch[1], 4)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"images": lambda x: 255 * x}, "value_range=.0, 255. if the network takes such, or div"),
        ({"images": lambda x: 2 * x - 1}, "value_range=.-1, 1."),
        ({"images": lambda x: x * np.nan}, "not finite"),
        ({"images": lambda x: x[0]}, "must have the shape"),
        ({"images": lambda x: tf.cast(255 * x, tf.uint8)}, "images are uint8"),
        ({"labels": lambda y: y[:-1]}, "labels: there are 5 for 6 images"),
        ({"labels": lambda y: y - 10}, "labels: must be 0 or above"),
        ({"labels": lambda y: tf.cast(y, tf.float32)}, "labels: must be whole numbers"),
        ({"labels": lambda y: 0.9 * tf.one_hot(y, 10)}, "labels: rows of soft labels"),
        ({"labels": lambda y: tf.one_hot(y, 10)[None]}, "labels: must be .batch,."),
        ({"objective": lambda _: "marge"}, "objective: must be one of cross_entropy, margin, dlr"),
        ({"seed": lambda _: "1"}, "seed: must be a whole number or two"),
        ({"seed": lambda _: (1, 2, 3)}, "seed: must be a whole number or two"),
        ({"value_range": lambda _: (1, 0)}, "value_range: must be two finite"),
        ({"value_range": lambda _: (0, 255)}, "value_range=.0, 255. says that they reach 255"),
    ],
)
def test_bad_arguments_are_refused(change, said, batch):
    given = {"images": batch[0], "labels": batch[1], "epsilon": 4, "seed": 1, "steps": 1}
    for name, make in change.items():
        given[name] = make(given.get(name))
    with pytest.raises(InputError, match=said):
        attacks.pgd(smooth, **given)


def test_names_seeds_and_labels_of_one_convention(batch):
    images, labels = batch
    for name in attacks.specs._WORDS["objective"]:
        objective = attacks.OBJECTIVES[name]
        for attack in (attacks.step_fgsm, attacks.iter_fgsm):
            np.testing.assert_array_equal(
                attack(smooth, images, labels, 4, objective=name),
                attack(smooth, images, labels, 4, objective=objective),
            )
        np.testing.assert_array_equal(
            attacks.ladder(smooth, images, labels, [1, 4], objective=name),
            attacks.ladder(smooth, images, labels, [1, 4], objective=objective),
        )
    pgd = {"steps": 2, "restarts": 1}
    for attack in (attacks.step_rand, lambda *a, **k: attacks.pgd(*a, **pgd, **k)):
        one = attack(smooth, images, labels, 4, seed=5)
        np.testing.assert_array_equal(one, attack(smooth, images, labels, 4, seed=[5, 0]))
        assert np.any(one != attack(smooth, images, labels, 4, seed=[5, 1]))
    # An attack may be chosen with its options; those beside it count more.
    chosen = attacks.PGD(steps=2, restarts=2)
    np.testing.assert_array_equal(
        attacks.at_epsilon(chosen, smooth, images, labels, 4, seed=5, restarts=1),
        attacks.pgd(smooth, images, labels, 4, seed=5, **pgd),
    )
    np.testing.assert_array_equal(
        attacks.at_epsilons(chosen, smooth, images, labels, [4], seed=5)[0],
        attacks.pgd(smooth, images, labels, 4, seed=5, steps=2, restarts=2),
    )
    expected = attacks.step_fgsm(smooth, images, labels, 4)
    for other in (labels[:, None], labels.numpy().astype(np.uint8), tf.one_hot(labels, 10)):
        np.testing.assert_array_equal(attacks.step_fgsm(smooth, images, other, 4), expected)


def test_a_fraction_as_epsilon_is_warned_of(batch):
    for epsilon in (8 / 255, 0.03, np.float32(0.03)):
        with pytest.warns(UserWarning, match="0..255 units: 0.03"):
            attacks.step_fgsm(smooth, *batch, epsilon)
    with pytest.warns(UserWarning, match="0..255 units"):
        attacks.at_epsilons("pgd", smooth, *batch, [0, 0.01], seed=1, steps=1)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        attacks.step_fgsm(smooth, *batch, 1)
        attacks.step_fgsm(smooth, *batch, 0)
        attacks.step_fgsm(smooth, *batch, tf.constant(0.5, tf.float64))
        attacks.at_epsilons("step_fgsm", smooth, *batch, [0.5, 4])


@pytest.mark.parametrize("grid", [None, ((1.0, 10.0), (8, 16)), specs.Grid((1.0, 10.0), (8, 16))])
def test_grids_of_one_convention(grid, batch):
    images, labels = batch[0][:1].numpy(), batch[1][:1].numpy()
    search = attacks.CarliniWagner(smooth, (8, 8, 1), grid=grid, iterations=20)
    assert search(images, labels).epsilon < 60
    with pytest.raises(ValueError, match="grid must be a Grid"):
        attacks.CarliniWagner(smooth, (8, 8, 1), grid=(1, 2, 3))
