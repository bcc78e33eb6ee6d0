"""What a reader of a report asks first, each answered with a number; needs no TensorFlow.

Measured robustness is often that of an attack which failed. Each item is a test that such numbers
have been seen to fail (Carlini et al., "On evaluating adversarial robustness", 2019; Pintor et al.,
"Indicators of attack failure", 2022): PASS, FAIL, or NOT TRIED where its numbers are not there.
That all pass proves nothing; one that fails has to be explained.
"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import NamedTuple

import numpy as np

from cascade_keras.attacks.specs import image_attacks
from cascade_keras.evaluation import diagnosis
from cascade_keras.evaluation.asked import name_of
from cascade_keras.evaluation.cells import Cell, Correct
from cascade_keras.evaluation.diagnosis import Gradients, View, per_cent, shared

PASS, FAIL, NOT_TRIED = "PASS", "FAIL", "NOT TRIED"

# What each target is probed with, an entry for each image: see ``indicators``.
INDICATORS = (
    "pgd_10",  # the class after 10 steps on the cross entropy
    "pgd_50",  # after 50 steps
    "rounded",  # that of the same image, rounded to whole pixel values
    "doubled",  # after twice the steps of the report's pgd, on its loss
    "loss_before",  # cross entropy where the 50 steps start
    "loss_after",  # and where they end
    "difference",  # of the clean image's logits when the network is asked twice
)
FEW_STEPS, MANY_STEPS = 10, 50

# In 186 public networks the three whose pgd-10 accuracy misleads are the three above it.
MOST_POINTS_OF_STEPS = 3.0
MOST_POINTS_OF_DOUBLING = 1.0
MOST_POINTS_OF_ROUNDING = 1.0
# An odd image does not make an attack fail.
LEAST_PERCENT_FOOLED = 99.0
LEAST_PERCENT_RISING = 95.0
# The same sums in another order differ by a millionth of the largest logit.
MOST_DIFFERENCE = 1e-3

# The one that is run where nobody asked for it: its first queries change large squares, and break
# most of what masked gradients protect.
SHORT, SHORT_OPTIONS = "square", {"queries": 100}


class Probed(NamedTuple):
    """What a target was probed with, and what came of it.

    Attributes:
        epsilon: of all its attacks, in 0..255 units.
        steps: of the report's pgd, which were doubled.
        values: of each of ``INDICATORS``, (n,) on the first images.
    """

    epsilon: float
    steps: int
    values: Mapping[str, np.ndarray]


class _Seen(NamedTuple):
    """All that is known of one target."""

    view: View
    labels: np.ndarray
    clean: np.ndarray | None  # predictions
    num_classes: int
    probed: Probed | None

    def right(self, name: str) -> np.ndarray:
        """Return which images are right in a row of ``INDICATORS``."""
        classes = self.probed.values[name]
        return classes == self.labels[: len(classes)]


class _Answer(NamedTuple):
    """A number and whether it is fine.

    Attributes:
        passed: whether it is.
        number, unit: what is shown of it.
        examples: how many images it is of.
        text: both numbers in words.
    """

    passed: bool
    number: float
    unit: str
    examples: int
    text: str


def _points(first: np.ndarray, second: np.ndarray) -> float:
    return per_cent(first) - per_cent(second)


def _above_chance(seen: _Seen) -> _Answer | None:
    if seen.clean is None:
        return None
    labels = seen.labels[: len(seen.clean)]
    found = diagnosis.at_chance("", seen.clean, labels, seen.num_classes)
    number, chance = per_cent(seen.clean == labels), 100 / seen.num_classes
    text = f"{number:.1f} % are right without an attack, chance is {chance:.3g} %"
    return _Answer(not list(found), number, "%", len(labels), text)


def _deterministic(seen: _Seen) -> _Answer | None:
    if seen.probed is None:
        return None
    differences = seen.probed.values["difference"]
    number = float(differences.max())
    text = f"two passes of the same image differ by up to {number:.1g} of its largest logit"
    if number > MOST_DIFFERENCE:
        text += (
            ": the network is randomised; ask for autoattack's version rand, which averages "
            "gradients"
        )
    return _Answer(number <= MOST_DIFFERENCE, number, "", len(differences), text)


def _no_zero_gradients(seen: _Seen) -> _Answer | None:
    if seen.view.gradients is None or not len(seen.view.gradients.zero):
        return None
    zero = np.asarray(seen.view.gradients.zero, bool)
    number = per_cent(zero)
    text = f"the gradient of the cross entropy is exactly zero for {number:.1f} %"
    return _Answer(number <= diagnosis.LEAST_ZERO_PERCENT, number, "%", len(zero), text)


def _loss_rises(seen: _Seen) -> _Answer | None:
    if seen.probed is None:
        return None
    rises = seen.probed.values["loss_after"] > seen.probed.values["loss_before"]
    number = per_cent(rises)
    text = (
        f"the cross entropy is higher after {MANY_STEPS} steps than before them for {number:.1f} % "
        f"of the images at epsilon {seen.probed.epsilon:g}"
    )
    return _Answer(number >= LEAST_PERCENT_RISING, number, "%", len(rises), text)


def _iterative_beats_one_step(seen: _Seen) -> _Answer | None:
    pairs = []
    for (attack, epsilon), images in seen.view.own.items():
        spec = diagnosis.row_of(attack)
        one = seen.view.own.get((spec.weaker, epsilon))
        if one is not None and not spec.targeted and diagnosis.reaches(spec, epsilon):
            pairs.append((attack, spec.weaker, epsilon, *shared(images, one)))
    return _least_more(pairs)


def _least_more(pairs: Sequence[tuple]) -> _Answer | None:
    """Return by how many points attacks do more harm than others, at least; None of no pairs.

    Args:
        pairs: an attack and the other, their epsilon, and the images that each leaves.
    """
    if not pairs:
        return None
    attack, other, epsilon, more, less = min(pairs, key=lambda pair: _points(pair[4], pair[3]))
    text = (
        f"{attack} leaves {per_cent(more):.1f} %, {other} {per_cent(less):.1f} % at epsilon "
        f"{epsilon:g}"
    )
    failed = any(diagnosis.clearly_above(more, less) for *_, more, less in pairs)
    return _Answer(not failed, _points(less, more), "points", len(more), text)


def _steps_doubled(seen: _Seen) -> _Answer | None:
    if seen.probed is None:
        return None
    own = seen.view.own.get(("pgd", seen.probed.epsilon))
    if own is None:
        return None
    before, doubled = shared(own, seen.right("doubled"))
    after = before & doubled
    number = _points(before, after)
    text = (
        f"pgd leaves {per_cent(before):.1f} % at epsilon {seen.probed.epsilon:g}, "
        f"{per_cent(after):.1f} % with {2 * seen.probed.steps} instead of {seen.probed.steps} "
        "steps of one more start"
    )
    return _Answer(number < MOST_POINTS_OF_DOUBLING, number, "points", len(before), text)


def _few_steps_do(seen: _Seen) -> _Answer | None:
    if seen.probed is None:
        return None
    few, many = seen.right("pgd_10"), seen.right("pgd_50")
    number = _points(few, many)
    text = (
        f"pgd-{FEW_STEPS} leaves {per_cent(few):.1f} %, pgd-{MANY_STEPS} {per_cent(many):.1f} % at "
        f"epsilon {seen.probed.epsilon:g}, on the cross entropy from one start"
    )
    return _Answer(number < MOST_POINTS_OF_STEPS, number, "points", len(few), text)


def _strongest(seen: _Seen) -> dict[float, tuple[str, np.ndarray]]:
    """Return the attack by the target's own gradients that leaves least, at each epsilon."""
    found: dict[float, tuple[str, np.ndarray]] = {}
    for (attack, epsilon), images in seen.view.own.items():
        if name_of(attack) not in image_attacks() or diagnosis.row_of(attack).gradient_free:
            continue
        if epsilon not in found or per_cent(images) < per_cent(found[epsilon][1]):
            found[epsilon] = attack, images
    return found


def _grows(seen: _Seen) -> _Answer | None:
    sizes: dict[str, dict[float, np.ndarray]] = {}
    for (attack, epsilon), images in seen.view.own.items():
        if diagnosis.row_of(attack).strongest:
            sizes.setdefault(attack, {})[epsilon] = images
    pairs = []
    for attack, by_epsilon in sizes.items():
        epsilons = sorted(by_epsilon)
        for small, large in itertools.pairwise(epsilons):
            cut = shared(by_epsilon[large], by_epsilon[small])
            pairs.append((attack, small, large, *cut))
    if not pairs:
        return None
    attack, small, large, more, less = max(pairs, key=lambda pair: _points(*pair[3:]))
    text = (
        f"{attack} leaves {per_cent(less):.1f} % at epsilon {small:g}, {per_cent(more):.1f} % at "
        f"{large:g}"
    )
    failed = any(diagnosis.clearly_above(*pair[3:]) for pair in pairs)
    return _Answer(not failed, _points(less, more), "points", len(more), text)


def _reaches_all(seen: _Seen) -> _Answer | None:
    large = [
        (per_cent(images), attack, epsilon, len(images))
        for (attack, epsilon), images in seen.view.own.items()
        if epsilon >= diagnosis.ANY_EPSILON and diagnosis.row_of(attack).strongest
    ]
    if not large:
        return None
    left, attack, epsilon, examples = min(large)
    text = f"{attack} fools {100 - left:.1f} % at epsilon {epsilon:g}"
    return _Answer(100 - left >= LEAST_PERCENT_FOOLED, 100 - left, "%", examples, text)


def _gradient_free_weaker(seen: _Seen) -> _Answer | None:
    free = [("step_rand", epsilon, images) for epsilon, images in seen.view.noise.items()]
    free += [
        (attack, epsilon, images)
        for (attack, epsilon), images in seen.view.own.items()
        if diagnosis.row_of(attack).gradient_free
    ]
    return _compared(seen, free)


def _transfer_weaker(seen: _Seen) -> _Answer | None:
    return _compared(
        seen,
        [
            (f"{attack} from {diagnosis.one_line(source)}", epsilon, images)
            for (attack, epsilon), sources in seen.view.others.items()
            for source, images in sources.items()
        ],
    )


def _compared(seen: _Seen, others: Sequence[tuple[str, float, np.ndarray]]) -> _Answer | None:
    """Return by how many points the target's own gradients do more than other attacks, at least."""
    strongest = _strongest(seen)
    return _least_more(
        [
            (strongest[epsilon][0], name, epsilon, *shared(strongest[epsilon][1], images))
            for name, epsilon, images in others
            if epsilon in strongest and epsilon > 0
        ]
    )


def _rounding_keeps(seen: _Seen) -> _Answer | None:
    if seen.probed is None:
        return None
    exact, rounded = seen.right("pgd_50"), seen.right("rounded")
    number = _points(rounded, exact)
    text = (
        f"pgd-{MANY_STEPS} leaves {per_cent(exact):.1f} % at epsilon {seen.probed.epsilon:g}, "
        f"{per_cent(rounded):.1f} % of its images as uint8"
    )
    return _Answer(number < MOST_POINTS_OF_ROUNDING, number, "points", len(exact), text)


class _Check(NamedTuple):
    key: str
    title: str
    answer: Callable[[_Seen], _Answer | None]
    needs: str  # what is missing where it was not tried


_PROBES = "an epsilon above 0 and images for the diagnosis"
_DIAGNOSIS = "attacks by the network's own gradients"
CHECKS = (
    _Check("above_chance", "clean accuracy is above chance", _above_chance, "clean images"),
    _Check(
        "deterministic",
        "the network is deterministic: relative difference",
        _deterministic,
        _PROBES,
    ),
    _Check(
        "gradients",
        f"zero gradients: at most {diagnosis.LEAST_ZERO_PERCENT:g} %",
        _no_zero_gradients,
        "images for the diagnosis",
    ),
    _Check(
        "loss_rises",
        f"the loss rises along the attack: at least {LEAST_PERCENT_RISING:g} %",
        _loss_rises,
        _PROBES,
    ),
    _Check(
        "iterative",
        "many steps do no less harm than one, points",
        _iterative_beats_one_step,
        "step_fgsm and an attack of many steps at one epsilon",
    ),
    _Check(
        "doubled",
        f"twice the steps change less than {MOST_POINTS_OF_DOUBLING:g} point",
        _steps_doubled,
        _PROBES,
    ),
    _Check(
        "few_steps",
        f"pgd-{FEW_STEPS} minus pgd-{MANY_STEPS}: below {MOST_POINTS_OF_STEPS:g} points",
        _few_steps_do,
        _PROBES,
    ),
    _Check(
        "grows", "a larger epsilon does no less harm, points", _grows, f"two epsilons, or {_PROBES}"
    ),
    _Check(
        "reaches_all",
        f"an epsilon of 255 fools at least {LEAST_PERCENT_FOOLED:g} %",
        _reaches_all,
        _PROBES,
    ),
    _Check(
        "gradient_free",
        "attacks without gradients do no more harm, points",
        _gradient_free_weaker,
        f"step_rand or square beside {_DIAGNOSIS}",
    ),
    _Check(
        "transfer",
        "other networks' images do no more harm, points",
        _transfer_weaker,
        f"sources, and {_DIAGNOSIS}",
    ),
    _Check(
        "rounded",
        f"as uint8 the images fool less than {MOST_POINTS_OF_ROUNDING:g} point fewer",
        _rounding_keeps,
        _PROBES,
    ),
)


@dataclasses.dataclass(frozen=True)
class Item:
    """One item of a target's checklist, as report.json has it.

    Attributes:
        target: the network.
        check: which, the ``key`` of one of ``CHECKS``.
        title: the same in words.
        verdict: ``PASS``, ``FAIL`` or ``NOT_TRIED``.
        number: what was measured; None where it was not tried.
        unit: of the number; "%", "points" or nothing.
        examples: how many images it is of.
        text: what the number is made of, or what it would need.
    """

    target: str
    check: str
    title: str
    verdict: str
    number: float | None
    unit: str
    examples: int
    text: str


def checklist(
    targets: Sequence[str],
    correct: Correct,
    predicted: Mapping[Cell, np.ndarray],
    labels: np.ndarray,
    num_classes: int,
    gradients: Mapping[str, Gradients],
    probed: Mapping[str, Probed],
) -> list[Item]:
    """Return every item of every target, in the order of ``CHECKS``.

    Args:
        targets: names.
        correct: what each classifies correctly of what images; any part of the cells.
        predicted: classes of clean images, at least, by cell.
        labels: true classes, (count,).
        num_classes: of them.
        gradients, probed: of the targets that were diagnosed.
    """
    return [
        item
        for target in targets
        for item in _items(
            target,
            _Seen(
                View(target, correct, gradients.get(target), num_classes),
                labels,
                predicted.get(Cell.clean(target)),
                num_classes,
                probed.get(target),
            ),
        )
    ]


def _items(target: str, seen: _Seen) -> Iterator[Item]:
    for check in CHECKS:
        answer = check.answer(seen)
        if answer is None:
            text = f"needs {check.needs}"
            yield Item(target, check.key, check.title, NOT_TRIED, None, "", 0, text)
        else:
            verdict = PASS if answer.passed else FAIL
            yield Item(target, check.key, check.title, verdict, *answer[1:])


# As a table.


def grid(records: Sequence[Mapping]) -> tuple[list[str], list[list[str]]]:
    """Return headings and rows of a checklist, from what report.json holds: a column a target."""
    targets = list(dict.fromkeys(record["target"] for record in records))
    rows: dict[str, dict[str, str]] = {}
    for record in records:
        rows.setdefault(record["title"], {})[record["target"]] = cell(record)
    lines = [
        [title, *(cells.get(target, "") for target in targets)] for title, cells in rows.items()
    ]
    return ["check", *targets], lines


def cell(record: Mapping) -> str:
    """Return verdict and number of an item."""
    if record["number"] is None:
        return record["verdict"]
    number, unit = record["number"], record["unit"]
    shown = f"{number:.1f}{'%' if unit == '%' else ''}" if unit else f"{number:.1g}"
    return f"{record['verdict']} {shown}"


def sentences(records: Sequence[Mapping]) -> list[str]:
    """Return a sentence for each item that failed, the target first."""
    return [
        f"{diagnosis.one_line(record['target'])}: {record['verdict']} {record['title']}: "
        f"{record['text']} ({record['examples']} images)"
        for record in records
        if record["verdict"] == FAIL
    ]
