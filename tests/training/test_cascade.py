"""Cascade and ensemble images: who makes them, how far they go, and what the loss makes of them."""

import fractions
import functools
import math

import keras
import numpy as np
import pytest
import tensorflow as tf
from support.networks import smooth_network
from support.oracle import mlp

from cascade_keras import attacks, cascade, data, draws
from cascade_keras.bank import Bank, BankPartners, identity
from cascade_keras.errors import InputError
from cascade_keras.training import AdversarialTrainer

MAX_EPSILON = 6.5  # few iterations; whole epsilons 1..6


def precise(seed):
    """Images -> logits so precise that a gradient's sign is the same in a batch of any size."""
    network = smooth_network(seed)
    return lambda images: tf.cast(network(tf.cast(images, tf.float64)), tf.float32)


SOURCES = (precise(1), precise(2))


def compiled(network, loss, sources=SOURCES, run_eagerly=True, **options):
    options.setdefault("max_epsilon", MAX_EPSILON)
    trainer = AdversarialTrainer(network, loss, cascade_sources=sources, **options)
    trainer.compile(optimizer=keras.optimizers.SGD(0.05, momentum=0.9), run_eagerly=run_eagerly)
    return trainer


@pytest.fixture(scope="module")
def batch(digits):
    return tf.constant(digits[0][:12]), tf.constant(digits[1][:12])


# The draws.

DRAWS = 20_000


def normal_below(value):
    return 0.5 * (1 + math.erf(value / math.sqrt(2)))


def probabilities(sampling, max_epsilon):
    """The probability of each whole epsilon, 1..floor(max_epsilon), from the formula."""
    last = math.floor(max_epsilon)
    if sampling == "max":
        return np.eye(last)[-1]
    if sampling == "uniform":
        below = np.arange(last + 1) / max_epsilon
    else:
        below = np.array([2 * normal_below(2 * e / max_epsilon) - 1 for e in range(last + 1)])
    below[-1] = 1  # everything above is cut off
    return np.diff(below)


@pytest.mark.parametrize("max_epsilon", [16.0, 76.5, 1.0, 1.9])
@pytest.mark.parametrize("sampling", ["clipped_normal", "uniform", "max"])
def test_epsilons_are_drawn_as_the_paper_says(sampling, max_epsilon):
    _, epsilon = drawn = cascade.draw(0, tf.constant(0), DRAWS, 2, max_epsilon, sampling)
    assert {values.dtype for values in drawn} == {tf.int32}
    expected = probabilities(sampling, max_epsilon)
    assert len(expected) == math.floor(max_epsilon)
    assert epsilon.numpy().min() >= 1 and epsilon.numpy().max() <= len(expected)
    shares = np.bincount(epsilon, minlength=len(expected) + 1)[1:] / DRAWS
    assert (np.abs(shares - expected) <= 4 * np.sqrt(expected * (1 - expected) / DRAWS)).all()


# The number of gradients.


@pytest.mark.parametrize(("max_epsilon", "gradients"), [(16, 44), (76.5, 344), (1, 1), (4.9, 5)])
def test_gradients_of_a_bank(max_epsilon, gradients):
    assert cascade.bank_epsilons(max_epsilon) == list(range(1, math.floor(max_epsilon) + 1))
    assert cascade.bank_gradients(max_epsilon) == gradients


@pytest.mark.parametrize("sampling", ["clipped_normal", "uniform", "max"])
@pytest.mark.parametrize("max_epsilon", [16, 76.5])
def test_gradients_online_are_the_mean_of_the_distribution(max_epsilon, sampling):
    epsilon = np.array(cascade.bank_epsilons(max_epsilon))
    steps = np.floor(np.minimum(epsilon + 4, 1.25 * epsilon))
    share = probabilities(sampling, max_epsilon)
    mean = (share * steps).sum()
    deviation = np.sqrt((share * (steps - mean) ** 2).sum())
    found = cascade.online_gradients(max_epsilon, sampling)
    assert abs(found - mean) <= 4 * deviation / np.sqrt(2**16)


# Crafting.


@pytest.mark.parametrize("source", [[0, 1, 1, 0, 1, 0, 0, 1], [1] * 8])
def test_each_image_is_crafted_by_its_source_to_its_epsilon(source, batch):
    images, labels = batch[0][:8], batch[1][:8]
    epsilon = tf.constant([1, 6, 3, 16, 1, 2, 9, 4])
    taken = tf.Variable(0)

    def counting(logits_fn):
        def counted(images):
            taken.assign_add(tf.shape(images)[0])
            return logits_fn(images)

        return counted

    signature = [tf.TensorSpec([None, 8, 8, 1]), *[tf.TensorSpec([None], tf.int32)] * 3]
    craft = functools.partial(cascade.craft, [counting(source) for source in SOURCES])
    craft = tf.function(craft, input_signature=signature)
    crafted = craft(images, labels, tf.constant(source), epsilon)

    for i, (number, own) in enumerate(zip(source, epsilon.numpy())):
        alone = attacks.iter_fgsm(SOURCES[number], images[i : i + 1], labels[i : i + 1], float(own))
        np.testing.assert_allclose(crafted[i], alone[0], rtol=0, atol=1e-6)
        assert np.abs(255 * (crafted[i] - images[i])).max() == pytest.approx(own, abs=1e-3)
    assert int(taken) == attacks.iterations(epsilon).numpy().sum()


@pytest.mark.parametrize("loss", ["kurakin", "bidirectional", "pivot"])
def test_sources_stay_as_they_are(loss, batch, randomize):
    layers = keras.layers.Flatten(), keras.layers.BatchNormalization(), keras.layers.Dense(10)
    first = keras.Sequential([keras.Input((8, 8, 1)), *layers])
    network, *sources = (randomize(keras.models.clone_model(first), seed) for seed in range(3))
    trainer = compiled(network, loss, sources=sources, ensemble_sources=sources)

    def values(*networks):
        return [variable.numpy() for network in networks for variable in network.variables]

    before, own = values(*sources), values(network)
    for step in range(3):
        trainer.make_adversarial(*batch, tf.constant(step))
    np.testing.assert_equal(values(network), own)
    trainer.train_on_batch(*batch)
    np.testing.assert_equal(values(*sources), before)
    assert not any(np.array_equal(a, b) for a, b in zip(own, values(network)))
    assert [id(v) for v in trainer.trainable_variables] == [
        id(v) for v in network.trainable_variables
    ]


def test_a_share_is_counted_as_on_paper():
    shares = [*(n / 100 for n in range(1, 101)), 1 / 3, 2 / 3, 1 / 7]
    exact = [fractions.Fraction(share).limit_denominator(100) for share in shares]
    expected = np.array([[math.floor(k * share) for k in range(1, 129)] for share in exact])
    found = [[cascade.count_of(k, share) for k in range(1, 129)] for share in shares]
    np.testing.assert_array_equal(found, expected)
    np.testing.assert_array_equal(found[49], np.arange(1, 129) // 2)
    later = [cascade.count_of(tf.range(1, 129), share) for share in shares]
    np.testing.assert_array_equal(later, expected)


@pytest.mark.parametrize(
    ("k", "share", "own"),
    [(5, 0.5, 3), (4, 0.5, 2), (1, 0.5, 1), (3, 1 / 3, 2), (10, 0.29, 8), (7, 0.9, 1), (5, 1, 0)],
)
@pytest.mark.parametrize("traced", [False, True])
def test_the_last_images_are_a_share_of_the_sources(k, share, own, traced, batch):
    """The others are the network's own, by an epsilon each drawn for these alone."""
    trainer = compiled(mlp(), "pivot", seed=4, cascade_share=share)
    attacked, step = [], tf.constant(7)
    at_epsilon = trainer._at_epsilon
    trainer._at_epsilon = lambda *given: attacked.append(given) or at_epsilon(*given)
    make = trainer.make_adversarial
    if traced:
        images, labels = tf.TensorSpec([None, 8, 8, 1]), tf.TensorSpec([None], tf.int32)
        make = tf.function(make, input_signature=[images, labels, tf.TensorSpec([], tf.int32)])
    images, labels = batch[0][:k], tf.cast(batch[1][:k], tf.int32)
    made = make(images, labels, step)
    assert len(made) == k and (attacked or share == 1) and not (attacked and share == 1)
    source, epsilon = cascade.draw(4, step, k - own, 2, MAX_EPSILON, "clipped_normal")
    for i, number, to in zip(range(own, k), source.numpy(), epsilon.numpy()):
        expected = attacks.iter_fgsm(SOURCES[number], images[i : i + 1], labels[i : i + 1], to)
        np.testing.assert_allclose(made[i], expected[0], rtol=0, atol=1e-6)
    if own:
        epsilon = draws.sample_epsilon(
            "clipped_normal", own, MAX_EPSILON, draws.step_keys(4, step).epsilon
        )
        moved = np.abs(255 * (made - images)[:own]).max(axis=(1, 2, 3))
        np.testing.assert_allclose(moved, epsilon, atol=1e-3)


@pytest.mark.parametrize(
    ("loss", "smoothing", "share"),
    [("kurakin", 0, 0.5), ("pivot", 0, 0.2), ("pivot", 0.4, 1.0), ("kurakin", 0, 1.0)],
)
def test_a_bank_and_online_crafting_train_alike(loss, smoothing, share, digits, tmp_path):
    """The same steps, whether the cascade images were crafted before or within the step."""
    images = np.round(255 * digits[0][:40]).astype(np.uint8)
    labels, epsilons = digits[1][:40], cascade.bank_epsilons(MAX_EPSILON)
    banks = []
    for number, source in enumerate(SOURCES):
        known = {"source_hash": str(number), "dataset_hash": "", "split": "train", "crop": 8}
        wanted = identity(**known, attack="iter_fgsm", epsilons=epsilons, examples=40)
        banks.append(Bank(tmp_path / str(number)))
        banks[-1].craft(wanted, source, images, labels, shard_size=16)
    drawn = {"seed": 5, "max_epsilon": MAX_EPSILON, "sampling": "clipped_normal"}
    results = []
    places = range({0.5: 5, 0.2: 8, 1.0: 0}[share], 10)
    options = {"adversarial_batch_size": 10, "seed": 5}
    options |= {"cascade_share": share, "label_smoothing": smoothing}
    for sources, partners in ((SOURCES, None), ((), BankPartners(banks, places, **drawn))):
        trainer = compiled(mlp(), loss, sources, run_eagerly=False, **options)
        batches = data.batches(images, labels, 14, seed=5, stop=4, partners=partners)
        losses = [
            trainer.train_on_batch(given, classes, return_dict=True) for given, classes in batches
        ]
        results.append((losses, trainer.network.get_weights()))
    (online, online_weights), (bank, bank_weights) = results
    assert len(online) == 4
    for a, b in zip(online, bank):
        assert a == pytest.approx(b, rel=1e-4)
    for a, b in zip(online_weights, bank_weights):
        np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-5)


def test_the_last_batch_may_have_a_single_image(digits):
    trainer = compiled(mlp(), "pivot", run_eagerly=False)
    trainer.fit(digits[0][:13], digits[1][:13], batch_size=6, verbose=0, shuffle=False)
    assert int(trainer.steps) == 3
    assert all(np.isfinite(weights).all() for weights in trainer.network.get_weights())


def test_an_ensemble_trains_in_a_graph(batch):
    """The attacker is drawn anew in every step of one trace."""
    options = {"seed": 3, "ensemble_sources": [mlp(1), mlp(2)]}
    eager, traced = (
        compiled(mlp(), "pivot", run_eagerly=run_eagerly, **options)
        for run_eagerly in (True, False)
    )
    assert len({int(draws.attacker(3, tf.constant(step), 2)) for step in range(5)}) > 1
    for _ in range(5):
        a, b = (trainer.train_on_batch(*batch, return_dict=True) for trainer in (eager, traced))
        assert a == pytest.approx(b, rel=1e-3)


# What is refused.


@pytest.mark.parametrize(
    ("options", "setting"),
    [
        ({"loss": "standard", "cascade_sources": SOURCES}, "loss"),
        ({"loss": "standard", "ensemble_sources": SOURCES}, "loss"),
        ({"cascade_sources": SOURCES, "adversarial_batch_size": 1}, "adversarial_batch_size"),
        ({"cascade_sources": SOURCES, "max_epsilon": 0.9}, "max_epsilon"),
        ({"cascade_sources": SOURCES, "cascade_share": 0}, "cascade_share"),
        ({"cascade_sources": SOURCES, "cascade_share": 1.1}, "cascade_share"),
        (
            {"cascade_sources": SOURCES, "cascade_share": 0.1, "adversarial_batch_size": 9},
            "adversarial_batch_size",
        ),
        (
            {"cascade_sources": SOURCES, "ensemble_sources": SOURCES, "cascade_share": 1},
            "cascade_share",
        ),
    ],
)
def test_sources_that_cannot_be_used_are_refused_in_one_line(options, setting):
    with pytest.raises(InputError) as error:
        AdversarialTrainer(mlp(), **options)
    assert error.value.setting == setting and "\n" not in str(error.value)


@pytest.mark.parametrize(
    "options",
    [
        {"ensemble_sources": SOURCES, "adversarial_batch_size": 1, "max_epsilon": 0.9},
        {"cascade_sources": SOURCES, "adversarial_batch_size": 2, "max_epsilon": 1},
        {"cascade_sources": SOURCES, "adversarial_batch_size": 1, "cascade_share": 1},
    ],
    ids=["ensemble", "cascade", "all"],
)
def test_the_smallest_arguments_train(options, batch):
    trainer = AdversarialTrainer(mlp(), **options)
    trainer.compile(run_eagerly=True)
    assert np.isfinite(trainer.train_on_batch(*batch, return_dict=True)["loss"])
