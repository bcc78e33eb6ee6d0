"""What is called suspicious and what is not; real networks are in test_evaluate.py."""

import subprocess
import sys

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cascade_keras.attacks import specs
from cascade_keras.evaluation.cells import Cell
from cascade_keras.evaluation.diagnosis import KINDS, Gradients, at_chance, diagnose, summary

N = 200


def left(percent, count=N, offset=0):
    """So many images correct, the first ones unless they are rolled on: accuracies are nested."""
    return np.roll(np.arange(count) < round(count * percent / 100), offset)


def cells(target="net", source=None, **accuracies):
    """Cells from attack_epsilon=accuracy, e.g. iter_fgsm_16=30; an array is taken as it is."""
    result = {}
    for name, value in accuracies.items():
        attack, _, epsilon = name.rpartition("_") if name != "clean" else (name, "", "0")
        cell = Cell(target, None if name == "clean" else source or target, attack, float(epsilon))
        result[cell] = value if isinstance(value, np.ndarray) else left(value)
    return result


def zero(cross_entropy, margin):
    return {"net": Gradients(left(cross_entropy), left(margin))}


CLEAN = cells(clean=98)


def black_box(attack, own, *transferred):
    result = cells(**{attack: own})
    for source, accuracy in zip(("other", "third"), transferred):
        result |= cells(source=source, **{attack: accuracy})
    return result


# What fires, the numbers of its sentence; and beside it what only looks like it.
FIRES = {
    "iterative": ("iterative_weaker",
        cells(step_fgsm_8=40, iter_fgsm_8=50, step_fgsm_16=48.5, iter_fgsm_16=61), {},
        "iter_fgsm at epsilon 16 leaves 61.0 %, the weaker step_fgsm 48.5 % (200 images)"),
    "pgd": ("iterative_weaker", cells(step_fgsm_0=30, pgd_0=70), {},
        "pgd at epsilon 0 leaves 70.0 %, the weaker step_fgsm 30.0 %"),
    "least likely": ("iterative_weaker", cells(step_ll_4=30, iter_ll_4=70), {},
        "iter_ll at epsilon 4 leaves 70.0 %, the weaker step_ll 30.0 %"),
    "black box": ("black_box_stronger", black_box("iter_fgsm_8", 60, 50, 31.5), {},
        "iter_fgsm images at epsilon 8 leave 60.0 %, those of third 31.5 % (200 images)"),
    "iterative black box near chance": ("black_box_stronger", black_box("pgd_8", 20, 2), {},
        "pgd images at epsilon 8 leave 20.0 %, those of other 2.0 %"),
    "noise as strong": ("noise_as_strong",
        CLEAN | cells(step_rand_16=60, step_fgsm_16=59, step_rand_4=97, step_fgsm_4=97), {},
        "step_fgsm at epsilon 16 leaves 59.0 %, the random signs of step_rand 60.0 % of 98.0 %"),
    "noise stronger": ("noise_as_strong", CLEAN | cells(step_rand_16=60, step_fgsm_16=80), {},
        "step_fgsm at epsilon 16 leaves 80.0 %, the random signs of step_rand 60.0 %"),
    "survives": ("survives_any_epsilon", CLEAN | cells(pgd_255=70, iter_fgsm_255=30), {},
        "iter_fgsm at epsilon 255 leaves 30.0 % where about 0.0 %"),
    "saturated": ("zero_gradients",
        cells(iter_fgsm_8=80, iter_margin_8=30, iter_fgsm_16=78.5, iter_margin_16=1), zero(34, 0),
        "zero for 34.0 % of the images, that of the margin for 0.0 % (200 images), and at "
        "epsilon 16 iter_fgsm leaves 78.5 %, iter_margin 1.0 % (200 images): the cross entropy "
        "leads nowhere there, which usually means that the softmax is saturated"),
    "not differentiable": ("zero_gradients", CLEAN, zero(100, 100),
        "zero for 100.0 % of the images, that of the margin for 100.0 % (200 images): neither loss "
        "leads anywhere there, which usually means that the network is not differentiable"),
    "label leaking": ("label_leaking", cells(clean=90, step_fgsm_8=98), {},
        "step_fgsm at epsilon 8 leaves 98.0 %, no attack 90.0 % (200 images)"),
    "overstates": ("iterative_overstates", cells(iter_fgsm_8=45, pgd_8=31), {},
        "iter_fgsm at epsilon 8 leaves 45.0 %, pgd 31.0 % (200 images)"),
    "autoattack": ("iterative_overstates",
        cells(iter_fgsm_8=45, pgd_8=36, autoattack_8=left(25, 100)), {},
        "iter_fgsm at epsilon 8 leaves 90.0 %, autoattack 25.0 % (100 images)"),
}  # fmt: skip
SILENT = {
    "iterative slightly weaker": (cells(step_fgsm_16=50, iter_fgsm_16=54), {}),
    "iterative weaker by chance": (cells(step_fgsm_16=50, iter_fgsm_16=left(56, offset=50)), {}),
    "too few steps": (cells(step_fgsm_1=50, iter_fgsm_1=50), {}),
    "too few steps for a fraction": (cells(**{"step_ll_1.5": 50, "iter_ll_1.5": 70}), {}),
    "least likely not reached": (cells(step_ll_16=63, iter_ll_16=80), {}),
    "least likely but untargeted works": (cells(step_ll_4=30, iter_ll_4=70, iter_fgsm_4=25), {}),
    "other epsilon": (cells(step_fgsm_16=50, iter_fgsm_8=90), {}),
    "other kind": (cells(step_ll_16=50, iter_fgsm_16=90, step_fgsm_4=20, iter_ll_4=60), {}),
    "black box weaker": (black_box("iter_fgsm_8", 30, 60, 90), {}),
    "black box of another attack": (cells(step_ll_8=90) | cells("net", "b", step_fgsm_8=20), {}),
    "black-box noise": (black_box("step_rand_8", 80, 40), {}),
    "one step near chance": (black_box("step_fgsm_64", 20, 8), {}),
    "black box alone": (cells(source="other", step_fgsm_8=1, iter_fgsm_8=90, pgd_8=1), {}),
    "gradient stronger": (CLEAN | cells(step_rand_16=60, step_fgsm_16=40), {}),
    "noise harmless": (CLEAN | cells(step_rand_2=97, step_fgsm_2=97), {}),
    "noise near chance": (CLEAN | cells(step_rand_64=20, step_fgsm_64=22), {}),
    "too few images for noise": (
        cells(clean=left(98, 100), step_rand_8=left(86, 100), step_fgsm_8=left(80, 100)),
        {},
    ),
    "falls at last": (CLEAN | cells(pgd_255=70, iter_fgsm_255=0), {}),
    "falls before": (CLEAN | cells(pgd_255=70, iter_fgsm_200=0), {}),
    "bounded": (CLEAN | cells(pgd_128=70), {}),
    "survivors few": (CLEAN | cells(pgd_255=left(10, 50)), {}),
    "one zero gradient": (CLEAN, zero(1, 0)),
    "flat margin alone": (CLEAN, zero(0, 100)),
    "no gradients": (CLEAN, {"net": Gradients(left(50), np.zeros(0, bool))}),
    "leaking by chance": (cells(clean=90, step_fgsm_8=94), {}),
    "noise above clean": (cells(clean=50, step_rand_8=90), {}),
    "nearly pgd": (cells(iter_fgsm_8=45, pgd_8=36), {}),
    "empty": (CLEAN | cells(pgd_8=np.zeros(0, bool), iter_fgsm_8=90), {}),
    "nothing": ({}, {}),
    "plain": (
        CLEAN
        | cells(step_fgsm_2=60, step_fgsm_4=40, step_fgsm_16=15, step_fgsm_255=12)
        | cells(step_ll_2=70, step_ll_4=55, step_ll_16=20, step_rand_4=97, step_rand_16=80)
        | cells(iter_fgsm_2=55, iter_fgsm_4=10, iter_fgsm_16=0, iter_ll_2=66, iter_ll_4=30)
        | cells(iter_ll_16=0, pgd_2=52, pgd_4=8, pgd_16=0, iter_margin_4=9, pgd_255=0)
        | cells(source="other", step_fgsm_4=80, iter_fgsm_4=85, step_fgsm_16=16, iter_fgsm_16=40),
        zero(0, 0),
    ),
    "robust to a tiny epsilon": (
        cells(clean=91, step_fgsm_1=90, step_rand_1=91, iter_fgsm_1=90, pgd_1=89.5),
        zero(0, 0),
    ),
}


@pytest.mark.parametrize("kind, correct, gradients, said", FIRES.values(), ids=FIRES)
def test_fires(kind, correct, gradients, said):
    (found,) = diagnose(correct, gradients, 10)
    assert found.kind == kind and found.target == "net" and "\n" not in found.sentence
    numbers = f"{found.first:.1f} %", f"{found.second:.1f} %", f"{found.examples} images"
    for words in (said, "which usually means", *numbers):
        assert words in found.sentence
    assert found.sentence.startswith("net: ")


@pytest.mark.parametrize("correct, gradients", SILENT.values(), ids=SILENT)
def test_silent(correct, gradients):
    assert diagnose(correct, gradients, 10) == []


def test_every_kind_has_a_row():
    assert {kind for kind, *_ in FIRES.values()} == set(KINDS)


def test_two_classes():
    """Chance is 50 %: noise at 55 % is near it, noise at 80 % is not."""
    assert diagnose(CLEAN | cells(step_rand_8=55, step_fgsm_8=54), {}, 2) == []
    (found,) = diagnose(CLEAN | cells(step_rand_8=80, step_fgsm_8=79), {}, 2)
    assert found.kind == "noise_as_strong"


def test_order_and_summary():
    odd = "b\n{0}[red]"
    correct = CLEAN | cells("fine", clean=90, pgd_8=0) | cells(odd, clean=5, step_fgsm_8=50)
    correct |= cells(pgd_255=50, iter_fgsm_255=90, step_fgsm_255=30)
    findings = diagnose(correct, zero(50, 0) | {"late": zero(9, 0)["net"]}, 10)
    assert [(finding.target, finding.kind) for finding in findings] == [
        ("net", "zero_gradients"),
        ("net", "iterative_weaker"),
        ("net", "survives_any_epsilon"),
        ("net", "iterative_overstates"),
        (odd, "label_leaking"),
        ("late", "zero_gradients"),
    ]
    lines = summary(findings, ["fine", odd, "net", "late"])
    assert lines[0].startswith("fine: nothing suspicious")
    assert lines[1].startswith("b {0}[red]: step_fgsm at epsilon 8 leaves 50.0 %, no attack 5.0 %")
    assert [line.partition(":")[0] for line in lines[2:]] == ["net"] * 4 + ["late"]
    assert not any("\n" in line for line in lines)


ATTACKS = ("step_fgsm", "step_ll", "step_rand", "iter_fgsm", "iter_ll", "iter_margin", "pgd")
CELLS = [Cell.clean("net")] + [
    Cell("net", source, attack, epsilon)
    for attack in ATTACKS for source in ("net", "other") for epsilon in (4.0, 16.0)
]  # fmt: skip


@st.composite
def evaluations(draw):
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    count = draw(st.integers(1, 300))
    drawn = draw(st.lists(st.sampled_from(CELLS), unique=True, min_size=2))
    return {cell: rng.uniform(size=count) < rng.uniform() for cell in drawn}


@settings(max_examples=50, deadline=None)
@given(evaluations(), st.randoms())
def test_only_different_images_matter(correct, random):
    """Not their order, nor what only one cell has; where all cells are equal, nothing does."""
    findings = diagnose(correct, {}, 10)
    cell, values = random.choice(list(correct.items()))
    count = len(values)
    assert diagnose(dict.fromkeys(correct, values), {}, 10) == []
    order = random.sample(range(count), count)
    longer = np.concatenate([values, ~values])
    assert diagnose({each: correct[each][order] for each in correct}, {}, 10) == findings
    assert diagnose(correct | {cell: longer}, {}, 10) == findings
    for finding in findings:
        accuracies = {100 * int(values.sum()) / count for values in correct.values()}
        assert finding.examples == count and {finding.first, finding.second} <= accuracies


def test_chance_rarely_fires():
    """29 cells of one distribution, 25 comparisons: about one report in 25 says something."""
    rng = np.random.default_rng(0)
    alarms = 0
    for _ in range(300):
        correct = {cell: rng.uniform(size=500) < 0.6 for cell in CELLS}
        alarms += bool(diagnose(correct, {}, 10))
    assert alarms <= 20


def test_attacks_from_outside_are_judged_by_their_rows(monkeypatch):
    """One that names a weaker one step, one that seeks a class, one of few steps, one unknown."""
    monkeypatch.setattr(specs, "ATTACKS", dict(specs.ATTACKS))
    monkeypatch.setattr("cascade_keras.evaluation.diagnosis.ATTACKS", specs.ATTACKS)
    for row in (
        specs.AttackSpec("mine", specs.SEARCH, "", weaker="step_both"),
        specs.AttackSpec("seeking", specs.SEARCH, "", weaker="step_both", targeted=True),
        specs.AttackSpec("best", specs.SUITE, "", strongest=True),
    ):
        specs.register(row)

    def said(**accuracies):
        return [found.kind for found in diagnose(cells(**accuracies), {}, 10)]

    assert said(step_both_8=40, mine_8=60) == ["iterative_weaker"]
    assert said(step_both_8=40, seeking_8=60) == []  # 20 points are usual on the way to a class
    assert said(step_both_8=40, seeking_8=70) == ["iterative_weaker"]
    assert said(step_both_8=40, seeking_8=70, mine_8=30) == []  # what is untargeted works
    assert said(iter_fgsm_8=60, best_8=30) == ["iterative_overstates"]
    assert said(best_255=50) == ["survives_any_epsilon"]
    assert said(step_both_8=40, stranger_8=60, stranger_255=90) == []


def test_needs_no_tensorflow():
    modules = "diagnosis, summary, tables, content, report, settings"
    code = f"from cascade_keras.evaluation import {modules}; import sys; print(*sys.modules)"
    loaded = subprocess.run([sys.executable, "-c", code], check=True, stdout=subprocess.PIPE)
    assert b"evaluation.report" in loaded.stdout and b"tensorflow" not in loaded.stdout


ALL = np.arange(1000)
CHANCE = {  # classes, right of 1,000, whether all are taken for one class -> kind
    "nothing learned": (10, 110, False, "at_chance"),
    "little learned": (10, 200, False, None),
    "worse than chance": (2, 100, False, "at_chance"),
    "two classes, by chance": (2, 540, False, "at_chance"),
    "two classes, learned": (2, 600, False, None),
    "many classes, learned": (1000, 30, False, None),
    "one answer": (2, 800, True, "at_chance"),
    "one class": (1, 1000, False, None),
}


@pytest.mark.parametrize("case", CHANCE)
def test_clean_images_show_a_network_at_chance(case):
    classes, right, one_answer, kind = CHANCE[case]
    labels = np.where(right > ALL, 0, 1) if one_answer else ALL % classes
    predicted = np.where((right > ALL) | one_answer, labels * (not one_answer), (labels + 1))
    found = list(at_chance("net", predicted, labels, classes))
    assert [finding.kind for finding in found] == [kind] * (kind is not None)
    for finding in found:
        assert (finding.first, finding.second) == (right / 10, 100 / classes)
        assert ("all taken for class 0" in finding.sentence) == one_answer


def test_a_range_that_makes_it_right_is_named_where_it_clearly_does():
    labels = ALL % 10
    predicted = np.where(ALL < 400, labels, labels + 1)
    for better, kinds in ((450, []), (900, ["value_range"])):
        other = (0.0, 255.0), better > ALL
        found = list(at_chance("net", predicted, labels, 10, other))
        assert [finding.kind for finding in found] == kinds
    assert "(0, 255) meant? With it, 90.0 % of 1000 are right" in found[0].sentence
    assert (found[0].first, found[0].examples) == (40.0, 1000)
