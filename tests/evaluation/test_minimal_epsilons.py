"""Minimal epsilons of a run: never above what AutoAttack and its members find in it."""

import numpy as np
import pytest
import tensorflow as tf
from support.networks import features

import cascade_keras as ck
from cascade_keras import Evaluation, EvaluationSettings, attacks, draws
from cascade_keras.evaluation import crafter, tasks
from cascade_keras.evaluation.verify import verify

WEIGHTS = [tf.constant(values) for values in features(0).get_weights()]


def network(images):
    """Features written out: attacks trace a network many times, and Keras takes longer for it."""
    first, bias, last, last_bias = WEIGHTS
    return tf.tanh(tf.reshape(images, [-1, 64]) @ first + bias) @ last + last_bias


EPSILONS = (6.0, 12.0, 20.0)
# So few iterations that CW alone finds little.
SHORT = attacks.CWLinf(images=12, iterations=20)


@pytest.fixture(scope="module")
def measured(digits):
    images, labels = digits
    chosen = [attacks.FAB(iterations=10, targets=3), attacks.AutoAttack(iterations=5), SHORT]
    return {
        names: ck.evaluate(
            network,
            images[:40],
            labels[:40],
            some,
            EPSILONS,
            diagnosis_images=0,
            progress=False,
        )
        for names, some in (("all", chosen), ("alone", [SHORT]))
    }


def test_no_minimal_epsilon_is_above_what_other_attacks_of_the_run_find(measured):
    (minimal,), (alone,) = (measured[names].minimal.values() for names in ("all", "alone"))
    rows = measured["all"].minimal_indices
    assert (minimal <= alone).all() and (minimal < alone).any()
    label = measured["all"].labels[rows]
    predictions, broken = measured["all"].predictions, 0
    assert len(predictions) == 1 + 2 * len(EPSILONS)
    for attack, epsilon in predictions:
        wrong = predictions[attack, epsilon][rows] != label
        assert (minimal[wrong] <= epsilon + 1e-4).all()
        broken += (alone[wrong] > epsilon).sum()
    assert broken  # CW alone does not see to it


def test_what_an_attack_has_needed_bounds_them_wherever_it_was_found(digits, monkeypatch):
    """Images of a square attack that follows the diagnosis are no starts, but they count."""

    def nothing(self, images, labels, **starts):
        return attacks.carlini_wagner.Minimal(np.full(len(images), np.inf), images, 0)

    monkeypatch.setattr(attacks.CarliniWagner, "__call__", nothing)
    images, labels = digits
    measured = ck.evaluate(
        network, images[:20], labels[:20], [attacks.FAB(iterations=3, targets=2), SHORT],
        EPSILONS, diagnosis_images=0, progress=False,
    )  # fmt: skip
    (minimal,), rows = measured.minimal.values(), measured.minimal_indices
    expected = np.full(len(rows), np.inf)
    for attack, epsilon in sorted(measured.predictions, key=lambda key: -key[1]):
        if attack != "clean":
            predicted = measured.predictions[attack, epsilon][rows]
            expected[predicted != measured.labels[rows]] = epsilon
    np.testing.assert_array_equal(minimal, expected)
    assert minimal.dtype == np.float32 and len(np.unique(minimal)) > 2


@pytest.mark.parametrize(
    ("attack", "options"),
    [
        ("apgd", {"iterations": 4}),
        ("autoattack", {"iterations": 3, "version": "fast"}),
    ],
)
def test_images_are_crafted_by_their_places_alone(attack, options, digits):
    """Not one after another: the random numbers are those of the places."""
    images, labels = digits
    craft = crafter(network, (8, 8, 1), attack, (6.0, 12.0), seed=3, **options)
    whole = craft(images[:20], labels[:20], 5)
    rows = np.array([1, 4, 17])
    some = craft(images[rows], labels[rows], 5 + rows)
    np.testing.assert_allclose(some, whole[:, rows], atol=1e-6)
    elsewhere = craft(images[rows], labels[rows], rows)
    assert np.abs(elsewhere - whole[:, rows]).max() > 1e-3


@pytest.mark.long
def test_images_that_the_run_has_are_not_made_again(tmp_path, monkeypatch):
    """A run that goes on makes them again, in the same batches: its bytes are the same."""
    made, craft_of = [], tasks.crafter_of

    def counted(logits_fn, image_shape, attack, **others):
        craft = craft_of(logits_fn, image_shape, attack, **others)
        if attack.name != "apgd":
            return craft

        def tell(images, labels, first):
            made.append((first, len(images)))
            return craft.tell(images, labels, first)

        return type(craft)(tell)

    monkeypatch.setattr(tasks, "crafter_of", counted)
    source = ck.load_source(network, (8, 8, 1), weights_hash="features")
    given = {"targets": [source], "dataset": ck.data.load("digits")}
    asked = {"attack": ["apgd", "cw_linf"], "epsilon": [12], "num_images": 21, "batch_size": 13,
             "cw_images": 8, "cw_iterations": 5, "diagnosis_images": 0}  # fmt: skip
    whole = Evaluation(EvaluationSettings(output=tmp_path / "whole", **asked), **given)
    whole.run()
    # The last image for minimal epsilons is none of those that apgd was given.
    rows = whole.measuring.plan.minimal[0].indices
    assert len(rows) == 8 and 13 < rows[-2] < 21 < rows[-1]
    assert made == [(0, 13), (13, 8), (rows[-1:], 1)]

    half = Evaluation(EvaluationSettings(output=tmp_path / "half", **asked), **given)
    run = tasks.MinimalEpsilons.start
    monkeypatch.setattr(tasks.MinimalEpsilons, "start", lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        half.run()
    monkeypatch.setattr(tasks.MinimalEpsilons, "start", run)
    made.clear()
    again = Evaluation(EvaluationSettings(output=tmp_path / "half", **asked), **given)
    again.run()
    assert made == [(0, 13), (13, 8), (rows[-1:], 1)]
    for name in ("report.json", "predictions/network--cw_linf.npy"):
        assert (tmp_path / "half" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()
    assert verify(tmp_path / "whole", 1, **given).holds


def test_places_follow_the_first():
    np.testing.assert_array_equal(draws.places(4, 3), [4, 5, 6])
    np.testing.assert_array_equal(draws.places([9, 2], 2), [9, 2])
