"""Labels in every form that users have: what is made of each, and what is refused."""

import numpy as np
import pytest
import tensorflow as tf

from cascade_keras import attacks, losses
from cascade_keras.attacks import Attack, Chosen
from cascade_keras.errors import InputError
from cascade_keras.labels import Labels, check_labels, guard_labels, smoothed

EYE = np.eye(3, dtype="float32")
MIXED = 0.7 * EYE[[0, 1, 2]] + 0.3 * EYE[[1, 2, 0]]

# What is given, the classes, the soft rows or None.
FINE = {
    "classes": ([2, 0, 1], [2, 0, 1], None),
    "a column": ([[2], [0], [1]], [2, 0, 1], None),
    "whole floats": ([2.0, 0.0, 1.0], [2, 0, 1], None),
    "uint8": (np.array([2, 0, 1], "uint8"), [2, 0, 1], None),
    "int64 column": (np.array([[2], [0]], "int64"), [2, 0], None),
    "one-hot integers": (EYE[[2, 0]].astype("int32"), [2, 0], None),
    "one-hot floats": (EYE[[2, 0, 1]], [2, 0, 1], "one-hot"),
    "mixup": (MIXED, [0, 1, 2], MIXED),
    "float16 rows": (MIXED.astype("float16"), [0, 1, 2], MIXED),
    "float64 rows": (MIXED.astype("float64"), [0, 1, 2], MIXED),
}
REFUSED = {
    "multi-hot": (np.array([[1, 1, 0], [0, 1, 0]], "float32"), "multi-label"),
    "multi-hot integers": (np.array([[1, 1, 0], [0, 1, 0]]), "multi-label"),
    "no class": (np.array([[0, 0, 0], [0, 1, 0]]), "multi-label"),
    "logits": (np.array([[2.0, -1.0, 0.0]], "float32"), "multi-label"),
    "NaN row": (np.array([[np.nan, 1, 0]], "float32"), "multi-label"),
    "wrong width": (np.eye(4, dtype="float32"), "rows of 4 labels for a network of 3"),
    "too large": (np.array([0, 3]), r"0\.\.2"),
    "negative": (np.array([0, -1]), r"0\.\.2"),
    "fractions": (np.array([0.0, 0.5], "float32"), "whole numbers"),
    "NaN": (np.array([0.0, np.nan], "float32"), "whole numbers"),
    "rank 3": (np.zeros((2, 1, 3)), "got shape"),
    "text": (np.array(["cat"]), "must be classes"),
}
# How a graph knows of the shape.
SHAPES = {
    "known": lambda given: given.shape,
    "unknown count": lambda given: (None, *given.shape[1:]),
    "unknown width": lambda given: (None,) * given.ndim,
    "unknown rank": lambda given: None,
}


def in_graph(given, shape, binary=False):
    seen = []

    @tf.function(input_signature=[tf.TensorSpec(shape, given.dtype)], autograph=False)
    def made(labels):
        found, checks = guard_labels(labels, 2 if binary else 3, count=len(given), binary=binary)
        with tf.control_dependencies(checks):
            seen.append(found.soft is not None)
            soft = tf.zeros([0]) if found.soft is None else tf.identity(found.soft)
            return tf.identity(found.hard), soft

    hard, soft = made(tf.constant(given))
    return Labels(hard.numpy(), soft.numpy() if seen[-1] else None)


@pytest.mark.parametrize("form", FINE)
def test_labels_are_classes_or_soft_rows(form):
    given, hard, soft = (*map(np.asarray, FINE[form][:2]), FINE[form][2])
    one_hot = isinstance(soft, str)
    found = check_labels(given, 3)
    assert found.hard.dtype == np.int32 and list(found.hard) == list(hard)
    if soft is None or one_hot:
        assert found.soft is None
    else:
        np.testing.assert_allclose(found.soft, soft, atol=1e-3)
    for shape in SHAPES.values():
        found = in_graph(given, shape(given))
        assert list(found.hard) == list(hard)
        if found.soft is not None:
            np.testing.assert_allclose(
                found.soft, EYE[hard] if soft is None or one_hot else soft, atol=1e-3
            )
        else:
            assert soft is None


@pytest.mark.parametrize("form", REFUSED)
def test_labels_of_any_other_form_are_refused(form):
    given, message = REFUSED[form]
    with pytest.raises(InputError, match=message):
        check_labels(given, 3)
    for shape in SHAPES.values():
        with pytest.raises((InputError, tf.errors.InvalidArgumentError), match="labels"):
            in_graph(given, shape(given))


def test_a_network_of_one_logit_takes_probabilities_of_class_1():
    chances = np.array([0.0, 0.3, 1.0], "float32")
    for given in (chances, chances[:, None]):
        for found in (check_labels(given, 2, binary=True), in_graph(given, given.shape, True)):
            assert list(found.hard) == [0, 0, 1]
            np.testing.assert_allclose(found.soft, [[1, 0], [0.7, 0.3], [0, 1]], atol=1e-6)
    for bad in (np.array([0.5, 1.5], "float32"), np.array([-1, 1])):
        with pytest.raises(InputError):
            check_labels(bad, 2, binary=True)
        with pytest.raises(tf.errors.InvalidArgumentError):
            in_graph(bad, bad.shape, True)


def test_smoothing_and_soft_losses_are_the_formulas():
    logits = np.random.default_rng(0).normal(0, 2, (3, 3)).astype("float32")
    chances = np.log(np.exp(logits) / np.exp(logits).sum(1, keepdims=True))
    rows = smoothed(check_labels([2, 0, 1], 3), 3, 0.3).soft
    np.testing.assert_allclose(rows, 0.7 * EYE[[2, 0, 1]] + 0.1, atol=1e-6)
    for soft in (rows.numpy(), MIXED):
        expected = -(soft * chances).sum(1)
        np.testing.assert_allclose(losses.cross_entropy(logits, soft), expected, rtol=1e-5)
        np.testing.assert_allclose(attacks.cross_entropy(soft)(logits), expected, rtol=1e-5)
    # The margin is of the largest label.
    np.testing.assert_array_equal(
        attacks.margin(MIXED)(tf.constant(logits)), attacks.margin([0, 1, 2])(tf.constant(logits))
    )


# attacks.PGD(...) and its kind.


def test_an_attack_is_chosen_with_options():
    chosen = attacks.PGD(steps=100)
    assert (chosen.name, chosen.options, str(chosen)) == ("pgd", {"steps": 100}, "pgd (steps 100)")
    assert Attack.at(chosen, [8]) == Attack("pgd", (8,), {"steps": 100})
    assert Attack.at("step_ll", [8]) == Attack("step_ll", (8,)) and str(Chosen("pgd")) == "pgd"
    assert chosen.in_training() == {
        "steps": 100, "step_size": None, "restarts": 1, "objective": "cross_entropy",
    }  # fmt: skip
    for each in (chosen, Chosen("step_ll")):
        assert Chosen.of_json(each.as_json()) == each and hash(each) == hash(each)
    assert attacks.CWLinf(iterations=10).name == "cw_linf" and attacks.AutoAttack(queries=0).options


@pytest.mark.parametrize(
    ("choose", "message"),
    [
        (lambda: attacks.PGD(step=3), "no option 'step'; it has steps, step_size"),
        (lambda: attacks.PGD(steps=0), "steps must be a whole number of at least 1, got 0"),
        (lambda: attacks.PGD(steps=2.5), "steps must be"),
        (lambda: attacks.PGD(step_size=-1), "step_size must be a number above 0"),
        (lambda: attacks.PGD(objective="ce"), "objective must be one of margin, cross_entropy"),
        (lambda: Chosen("pdg"), "'pdg' is none of clean, step_ll"),
        (lambda: Chosen("step_ll", {"steps": 3}), "it has none"),
        (lambda: Chosen.of(8), "must be a name or what attacks.PGD"),
    ],
)
def test_an_attack_with_a_wrong_option_is_refused(choose, message):
    with pytest.raises(InputError, match=message) as caught:
        choose()
    assert caught.value.setting == "attack"
