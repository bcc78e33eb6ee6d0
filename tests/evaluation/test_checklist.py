"""The checklist: verdicts from numbers by hand, and probes against pgd itself."""

import json
import warnings

import numpy as np
import pytest
import tensorflow as tf
from support.networks import CLASSES, smooth

import cascade_keras as ck
from cascade_keras import attacks
from cascade_keras.evaluation import checklist, tables
from cascade_keras.evaluation.cells import Cell
from cascade_keras.evaluation.checklist import FAIL, INDICATORS, NOT_TRIED, PASS, Probed
from cascade_keras.evaluation.diagnosis import Gradients
from cascade_keras.evaluation.indicators import indicators

PROBED = True  # see conftest.py
N = 200
LABELS = np.arange(N) % 10


def left(percent):
    return np.arange(N) < round(N * percent / 100)


def own(**accuracies):
    """White-box cells from attack_epsilon=accuracy."""
    found = {}
    for name, percent in accuracies.items():
        attack, _, epsilon = name.rpartition("_")
        found[Cell("net", "net", attack, float(epsilon))] = left(percent)
    return found


def other(attack, epsilon, percent):
    return {Cell("net", "other", attack, float(epsilon)): left(percent)}


def probed(**rows):
    """What a sound network's probes are like, but for some rows: accuracies, or arrays."""
    sound = dict.fromkeys(("pgd_10", "pgd_50", "rounded", "doubled"), 30)
    sound |= {"loss_before": np.zeros(N), "loss_after": np.ones(N), "difference": np.zeros(N)}
    values = {
        name: value if isinstance(value, np.ndarray) else np.where(left(value), LABELS, LABELS + 1)
        for name, value in (sound | rows).items()
    }
    return {"net": Probed(8.0, 40, values)}


def rising(percent):
    return left(percent).astype("float32")


def clean(percent):
    return {Cell.clean("net"): np.where(left(percent), LABELS, (LABELS + 1) % 10)}


def item(check, correct=(), probes=None, gradients=None, predicted=None):
    found = checklist.checklist(
        ["net"], dict(correct), predicted or {}, LABELS, 10, gradients or {}, probes or {}
    )
    assert [each.check for each in found] == [each.key for each in checklist.CHECKS]
    return next(each for each in found if each.check == check)


def zero(percent):
    return {"net": Gradients(left(percent), left(0))}


BOTH = own(step_fgsm_8=40, pgd_8=30)
# check, verdict, number, what it is of.
VERDICTS = [
    ("above_chance", PASS, 90, {"predicted": clean(90)}),
    ("above_chance", FAIL, 10, {"predicted": clean(10)}),
    ("deterministic", PASS, 1e-6, {"probes": probed(difference=np.full(N, 1e-6))}),
    ("deterministic", FAIL, 0.5, {"probes": probed(difference=left(0.5) * 0.5)}),
    ("gradients", PASS, 1, {"gradients": zero(1)}),
    ("gradients", FAIL, 1.5, {"gradients": zero(1.5)}),
    ("loss_rises", PASS, 95, {"probes": probed(loss_after=rising(95))}),
    ("loss_rises", FAIL, 94.5, {"probes": probed(loss_after=rising(94.5))}),
    ("iterative", PASS, 10, {"correct": BOTH}),
    ("iterative", PASS, 0, {"correct": own(step_fgsm_8=30, pgd_8=30)}),
    ("iterative", FAIL, -10, {"correct": BOTH | own(iter_fgsm_8=50)}),
    ("iterative", FAIL, -20, {"correct": BOTH | own(step_fgsm_4=50, pgd_4=70)}),
    ("iterative", NOT_TRIED, None, {"correct": own(step_fgsm_8=40, pgd_4=30, step_ll_4=9)}),
    ("doubled", PASS, 0.5, {"correct": BOTH, "probes": probed(doubled=29.5)}),
    ("doubled", FAIL, 1, {"correct": BOTH, "probes": probed(doubled=29)}),
    ("doubled", PASS, 0, {"correct": BOTH, "probes": probed(doubled=60)}),
    ("doubled", NOT_TRIED, None, {"correct": own(pgd_4=3), "probes": probed()}),
    ("few_steps", PASS, 2.5, {"probes": probed(pgd_10=32.5)}),
    ("few_steps", FAIL, 3, {"probes": probed(pgd_10=33)}),
    ("grows", PASS, 10, {"correct": own(pgd_8=30, pgd_16=20, iter_fgsm_16=90)}),
    ("grows", FAIL, -10, {"correct": own(pgd_4=50, pgd_8=30, pgd_16=40)}),
    ("grows", NOT_TRIED, None, {"correct": BOTH}),
    ("reaches_all", PASS, 99, {"correct": own(pgd_8=30, pgd_255=1)}),
    ("reaches_all", FAIL, 98.5, {"correct": own(pgd_255=1.5)}),
    ("reaches_all", NOT_TRIED, None, {"correct": own(pgd_8=0, step_fgsm_255=0)}),
    ("gradient_free", PASS, 20, {"correct": BOTH | own(square_8=50, step_rand_8=90)}),
    ("gradient_free", FAIL, -10, {"correct": BOTH | own(square_8=20)}),
    ("gradient_free", FAIL, -10, {"correct": BOTH | {
        Cell("net", "net", "square (queries 100)", 8.0): left(20)}}),
    ("gradient_free", FAIL, -25, {"correct": BOTH | own(autoattack_8=0, step_rand_8=5)}),
    ("gradient_free", NOT_TRIED, None, {"correct": BOTH | own(square_4=20)}),
    ("transfer", PASS, 40, {"correct": BOTH | other("pgd", 8, 70)}),
    ("transfer", FAIL, -10, {"correct": BOTH | other("step_fgsm", 8, 20)}),
    ("transfer", NOT_TRIED, None, {"correct": BOTH | own(square_8=3)}),
    ("rounded", PASS, 0.5, {"probes": probed(rounded=30.5)}),
    ("rounded", FAIL, 1, {"probes": probed(rounded=31)}),
]  # fmt: skip


@pytest.mark.parametrize("check, verdict, number, given", VERDICTS)
def test_verdicts(check, verdict, number, given):
    found = item(check, **given)
    assert (found.verdict, found.examples) == (verdict, 0 if number is None else N)
    assert found.number == (None if number is None else pytest.approx(number))
    if number is not None and found.unit == "points":
        # Both numbers are in the sentence: they differ by it.
        percents = [float(word) for word in found.text.split() if word.count(".") == 1]
        assert any(
            abs(abs(a - b) - abs(number)) < 0.06 for a in percents for b in percents if b != a
        ) or number == 0  # fmt: skip


def test_nothing_is_tried_of_nothing():
    found = checklist.checklist(["a", "b"], {}, {}, LABELS, 10, {}, {})
    assert len(found) == 2 * len(checklist.CHECKS) and {i.verdict for i in found} == {NOT_TRIED}
    assert all(each.number is None and each.text.startswith("needs ") for each in found)


def test_every_check_has_a_verdict_of_each_kind_above():
    tried = {(check, verdict) for check, verdict, *_ in VERDICTS}
    assert {(c.key, v) for c in checklist.CHECKS for v in (PASS, FAIL)} <= tried


@pytest.fixture(scope="module")
def data(digits):
    images, labels = digits
    images = np.round(images[:60] * 255) / np.float32(255)
    return images, np.where(np.arange(60) < 50, np.argmax(smooth(images), -1), labels[:60])


def exact(images):
    """Gradients of a smooth network, and a class that any other image changes."""
    images = tf.convert_to_tensor(images)
    levels = tf.reduce_sum(tf.cast(tf.round(images * 255), tf.int32), [1, 2, 3])
    return smooth(images) + 100 * tf.one_hot(levels % CLASSES, CLASSES)


def test_probes_are_those_of_pgd(data):
    images, labels = data[0], data[1].astype("int32")
    epsilon, steps, seed, first = 20.0, 5, 3, 7  # whole steps: none ends between two levels
    given = (images, labels, first)
    rows = [indicators(f, (8, 8, 1), epsilon, steps, "margin", seed) for f in (exact, smooth)]
    found, plain = (dict(zip(INDICATORS, probe(*given), strict=True)) for probe in rows)

    def pgd(network, steps, objective):
        return attacks.pgd(network, images, labels, epsilon, seed=(seed, first), steps=steps,
                           restarts=1, objective=objective).numpy()  # fmt: skip

    many = pgd(exact, 50, "cross_entropy")
    wanted = {"pgd_10": pgd(exact, 10, "cross_entropy"), "pgd_50": many,
              "doubled": pgd(exact, 2 * steps, "margin"),
              "rounded": np.round(many * 255) / np.float32(255)}  # fmt: skip
    for name, made in wanted.items():
        # Compiled, a gradient near zero may have another sign than here.
        assert np.mean(found[name] == np.argmax(exact(made), -1)) > 0.9, name
    many = pgd(smooth, 50, "cross_entropy")
    logits = smooth(many).numpy().astype("float64")
    loss = np.log(np.exp(logits).sum(-1)) - logits[np.arange(60), labels]
    np.testing.assert_allclose(plain["loss_after"], loss, rtol=1e-4)
    assert (plain["loss_after"] > plain["loss_before"]).all() and (plain["difference"] == 0).all()


def test_logits_that_are_no_numbers_leave_nothing_missing(data):
    broken = indicators(lambda x: smooth(x) / tf.zeros([]), (8, 8, 1), 8.0, 2, "margin", 0)
    found = broken(data[0][:4], np.zeros(4, "int32"), 0)
    assert np.isfinite(found).all()
    assert (found[INDICATORS.index("pgd_50")] == ck.evaluation.NOT_FINITE).all()


def noisy(images):
    return smooth(images + tf.random.normal(tf.shape(images), stddev=0.3))


def test_a_report_ends_with_the_checklist(data):
    with pytest.warns(UserWarning, match="noisy is randomised.* rand, which averages gradients"):
        found = ck.evaluate(noisy, *data, [attacks.PGD(steps=3, restarts=1)], [20], num_images=20,
                            progress=False)  # fmt: skip
    verdicts = {each.check: each.verdict for each in found.checklist}
    assert verdicts["deterministic"] == FAIL and verdicts["transfer"] == NOT_TRIED
    assert verdicts["gradients"] == PASS
    assert list(verdicts.values()).count(NOT_TRIED) == 1
    content = json.loads(json.dumps(found.to_dict()))
    assert [checklist.Item(**record) for record in content["checklist"]] == found.checklist
    _, last = tables.markdown(content).split("## Checklist\n\n")
    rows = [line for line in last.splitlines() if line.startswith("| ")]
    assert len(rows) == 2 + len(checklist.CHECKS)
    assert last.count("\n- ") == list(verdicts.values()).count(FAIL)
    assert "FAIL" in str(found) and "NOT TRIED" in str(found)
    # Nothing of it is among what was asked for, nor in the diagnosis.
    names = {r["attack"] for r in (*content["results"], *content["diagnosis"]["results"])}
    assert not any(name.startswith("square") for name in names)


def test_a_network_that_is_not_randomised_is_not_noted(data):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found = ck.evaluate(smooth, *data, "step_rand", 8, num_images=4, diagnosis_images=0,
                            progress=False)  # fmt: skip
    # Clean accuracy is there in any case.
    tried = [each.check for each in found.checklist if each.verdict != NOT_TRIED]
    assert tried == ["above_chance"]
