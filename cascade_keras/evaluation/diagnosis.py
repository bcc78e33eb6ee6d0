"""Whether measured robustness is to be believed; needs no TensorFlow.

A network can look robust because the attack fails rather than because its decisions are stable:
then its gradients are masked. This shows in the numbers (Athalye, Carlini & Wagner, "Obfuscated
gradients give a false sense of security", 2018, section 3.1; Carlini et al., "On evaluating
adversarial robustness", 2019): attacks that ought to be stronger do less harm than weaker ones.

``diagnose`` compares such pairs image by image, so that chance is not taken for a sign, and says in
a sentence what it found. Finding nothing proves nothing.
"""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import NamedTuple

import numpy as np

from cascade_keras.attacks.specs import (
    ATTACKS,
    ITERATIVE,
    MINIMAL,
    ONE_STEP,
    AttackSpec,
    iteration_count,
)
from cascade_keras.evaluation.asked import name_of
from cascade_keras.evaluation.cells import CLEAN, Cell, Correct

# Of the images that only one of two attacks leaves correct, one's majority follows a binomial
# distribution if both are equally strong. Beyond three standard deviations is one comparison in
# 700, and a report makes dozens: they need at least 10 images that differ, all in one direction.
DEVIATIONS = 3.0
# Thousands of images make any difference significant; less than this is of no consequence.
LEAST_POINTS = 2.0
# Attacks that are both sound differ by a few points; more changes what the network can be said to
# withstand.
LEAST_POINTS_OVERSTATED = 10.0
# iter_ll seeks the least likely class, and an image on its way there often keeps its own: on plain
# networks of digits it leaves up to 17 points more than step_ll.
LEAST_POINTS_TARGETED = 25.0
# Noise is as strong as the gradient if it does this share of the gradient's harm and the rest is
# not significant: that a few images show no difference does not yet make the two equal.
NOISE_SHARE = 0.8
# Far beyond the boundary a one-step image's class is arbitrary, so that accuracy wanders around
# chance and says nothing. Up to this many times chance (and no more than half way to 100 %).
NEAR_CHANCE = 2.5
# From here on any image can become mid-grey or another class's: a working attack leaves nothing.
ANY_EPSILON = 200.0
SURVIVING_POINTS = 5.0
# A single odd image does not make a network's gradients vanish.
LEAST_ZERO_PERCENT = 1.0
# If the margin is flat too at nearly all images where the cross entropy is, softmax is not why.
FLAT_SHARE = 0.9

# The white-box attacks that the rules compare; what nobody asked for is run on fewer images.
LOOKS_AT = ("step_rand", "step_fgsm", "iter_fgsm", "iter_margin", "pgd")
# What has to leave nothing at the largest epsilon, beside those.
UNBOUNDED, LARGEST_EPSILON = "pgd", 255.0


_UNKNOWN = AttackSpec("unknown", MINIMAL, "")  # nothing is expected of an attack without a row


def row_of(attack: str) -> AttackSpec:
    """Return the row of an attack by its label."""
    return ATTACKS.get(name_of(attack), _UNKNOWN)


def _takes_many_steps(spec: AttackSpec) -> bool:
    return spec.weaker is not None or spec.strongest


@dataclasses.dataclass(frozen=True)
class Gradients:
    """Where the gradient with respect to a target's clean image is exactly zero everywhere.

    Attributes:
        zero: (n,) bool, that of the cross entropy.
        zero_margin: (n,) bool, that of the margin of the logits.
    """

    zero: np.ndarray
    zero_margin: np.ndarray


@dataclasses.dataclass(frozen=True)
class Finding:
    """Something that a robust network's numbers would not show.

    Attributes:
        target: the network.
        kind: one of ``KINDS``, or ``AT_CHANCE`` or ``OTHER_RANGE``.
        sentence: one line, with both numbers, the number of images and what it usually means.
        first, second: the numbers in per cent, in the sentence's order.
        examples: how many images they are of.
    """

    target: str
    kind: str
    sentence: str
    first: float
    second: float
    examples: int


class _Evidence(NamedTuple):
    """Two numbers that fit a rule, and the words for its sentence."""

    first: float
    second: float
    examples: int
    gap: float  # in points: of one kind the largest is reported
    words: dict


class View:
    """One target's cells, by (attack, epsilon)."""

    def __init__(self, target: str, correct: Correct, gradients: Gradients | None, classes: int):
        self.gradients = gradients
        # Two classes have no room for 2.5 times chance.
        self.near_chance = 100 * min(NEAR_CHANCE / classes, (1 + 1 / classes) / 2)
        self.own: dict[tuple[str, float], np.ndarray] = {}
        self.others: dict[tuple[str, float], dict[str, np.ndarray]] = {}
        self.noise: dict[float, np.ndarray] = {}
        self.clean: np.ndarray | None = None
        for cell, values in correct.items():
            if cell.target == target and len(values):
                self._add(cell, np.asarray(values, bool))

    def _add(self, cell: Cell, images: np.ndarray) -> None:
        if cell.attack == CLEAN:
            self.clean = images
        elif cell.attack == "step_rand":
            # It asks no network, so whichever source it is listed under will do.
            self.noise.setdefault(cell.epsilon, images)
        elif cell.source == cell.target:
            self.own[cell.attack, cell.epsilon] = images
        elif cell.source is not None:
            self.others.setdefault((cell.attack, cell.epsilon), {})[cell.source] = images


def shared(*cells: np.ndarray) -> list[np.ndarray]:
    """Cut the cells to the images they share."""
    examples = min(map(len, cells))
    return [cell[:examples] for cell in cells]


def per_cent(images: np.ndarray) -> float:
    """Return how many of the images, bool (n,), in per cent."""
    return 100.0 * int(np.count_nonzero(images)) / len(images)


def clearly_above(first: np.ndarray, second: np.ndarray, least: float = LEAST_POINTS) -> bool:
    """Whether the first is correct more often by ``least`` points and beyond chance (McNemar)."""
    only_first = np.count_nonzero(first & ~second)
    only_second = np.count_nonzero(~first & second)
    difference = only_first - only_second
    chance = DEVIATIONS * math.sqrt(only_first + only_second)
    return 100 * difference >= least * len(first) and difference > chance


def _clear(
    first: np.ndarray, second: np.ndarray, least: float = LEAST_POINTS, **words
) -> Iterator[_Evidence]:
    """Yield evidence if the first is clearly above the second on the images they share."""
    first, second = shared(first, second)
    if clearly_above(first, second, least):
        numbers = per_cent(first), per_cent(second)
        yield _Evidence(*numbers, len(first), numbers[0] - numbers[1], words)


def reaches(spec: AttackSpec, epsilon: float) -> bool:
    """Whether an attack gets as far as a single step of epsilon does."""
    return spec.kind != ITERATIVE or iteration_count(epsilon) >= epsilon


def _iterative_weaker(view: View) -> Iterator[_Evidence]:
    for (attack, epsilon), images in view.own.items():
        spec = row_of(attack)
        weaker = view.own.get((spec.weaker, epsilon))
        if weaker is None or not reaches(spec, epsilon):
            continue
        if not (spec.targeted and _untargeted_works(view, epsilon, weaker)):
            least = LEAST_POINTS_TARGETED if spec.targeted else LEAST_POINTS
            words = {"attack": attack, "other": spec.weaker, "epsilon": epsilon}
            yield from _clear(images, weaker, least, **words)


def _untargeted_works(view: View, epsilon: float, one_step: np.ndarray) -> bool:
    """Whether many steps away from the true class do more harm than the targeted single step."""
    untargeted = (
        images
        for (attack, size), images in view.own.items()
        if size == epsilon and _takes_many_steps(row_of(attack)) and not row_of(attack).targeted
    )
    pairs = (shared(images, one_step) for images in untargeted)
    return any(per_cent(many) < per_cent(one) for many, one in pairs)


def _black_box_stronger(view: View) -> Iterator[_Evidence]:
    for (attack, epsilon), sources in view.others.items():
        images = view.own.get((attack, epsilon))
        if images is None:
            continue
        for source, transferred in sources.items():
            own = per_cent(shared(images, transferred)[0])
            if own > view.near_chance or row_of(attack).kind != ONE_STEP:
                words = {"attack": attack, "epsilon": epsilon, "other": one_line(source)}
                yield from _clear(images, transferred, **words)


def _noise_as_strong(view: View) -> Iterator[_Evidence]:
    for epsilon, random in view.noise.items():
        step = view.own.get(("step_fgsm", epsilon))
        if step is None or view.clean is None:
            continue
        clean, noise, step = shared(view.clean, random, step)
        before, first, second = map(per_cent, (clean, step, noise))
        harm = before - second
        no_weaker = harm >= NOISE_SHARE * (before - first) and not clearly_above(noise, step)
        as_strong = no_weaker and clearly_above(clean, noise)
        if second > view.near_chance and (as_strong or clearly_above(step, noise)):
            words = {"epsilon": epsilon, "clean": before}
            # The more harm noise does, the more the gradient ought to have done.
            yield _Evidence(first, second, len(step), harm + first - second, words)


def _survives_any_epsilon(view: View) -> Iterator[_Evidence]:
    large = [
        (per_cent(images), attack, epsilon)
        for (attack, epsilon), images in view.own.items()
        if epsilon >= ANY_EPSILON and _takes_many_steps(row_of(attack))
    ]
    # What a smaller ball of these takes, a larger one holds too: the strongest of all counts.
    for _, attack, epsilon in sorted(large)[:1]:
        images = view.own[attack, epsilon]
        none = np.zeros_like(images)
        yield from _clear(images, none, SURVIVING_POINTS, attack=attack, epsilon=epsilon)


def _zero_gradients(view: View, *, flat: bool) -> Iterator[_Evidence]:
    """Yield the shares of zero gradients of both losses, where the margin's are so too or not."""
    if view.gradients is None:
        return
    gradients = view.gradients.zero, view.gradients.zero_margin
    zero, margin = shared(*(np.asarray(each, bool) for each in gradients))
    if not len(zero):
        return
    share = per_cent(zero)
    if share > LEAST_ZERO_PERCENT and flat == bool(np.mean(margin[zero]) >= FLAT_SHARE):
        words = {"attacks": _margin_comparison(view)}
        yield _Evidence(share, per_cent(margin), len(zero), share, words)


def _margin_comparison(view: View) -> str:
    """Say what the two losses' attacks leave at the largest epsilon that both were run at."""
    both = [
        eps for name, eps in view.own if name == "iter_fgsm" and ("iter_margin", eps) in view.own
    ]
    if not both:
        return ""
    epsilon = max(both)
    names = "iter_fgsm", "iter_margin"
    entropy, margin = shared(*(view.own[name, epsilon] for name in names))
    return (
        f", and at epsilon {epsilon:g} iter_fgsm leaves {per_cent(entropy):.1f} %, iter_margin "
        f"{per_cent(margin):.1f} % ({len(margin)} images)"
    )


def _label_leaking(view: View) -> Iterator[_Evidence]:
    for (attack, epsilon), images in view.own.items():
        if attack == "step_fgsm" and view.clean is not None:
            yield from _clear(images, view.clean, epsilon=epsilon)


def _iterative_overstates(view: View) -> Iterator[_Evidence]:
    for (attack, epsilon), images in view.own.items():
        iterative = view.own.get(("iter_fgsm", epsilon))
        if row_of(attack).strongest and iterative is not None:
            words = {"epsilon": epsilon, "other": attack}
            yield from _clear(iterative, images, LEAST_POINTS_OVERSTATED, **words)


class _Rule(NamedTuple):
    kind: str
    find: Callable[[View], Iterator[_Evidence]]
    sentence: str


# By severity. ``first``, ``second`` and ``examples`` are the evidence's, the rest are its words.
_RULES = (
    _Rule(
        "zero_gradients",
        lambda view: _zero_gradients(view, flat=False),
        "the gradient of the cross entropy is exactly zero for {first:.1f} % of the images, that "
        "of the margin for {second:.1f} % ({examples} images){attacks}: the cross entropy leads "
        "nowhere there, which usually means that the softmax is saturated: trust attacks on the "
        "margin only",
    ),
    _Rule(
        "zero_gradients",
        lambda view: _zero_gradients(view, flat=True),
        "the gradient of the cross entropy is exactly zero for {first:.1f} % of the images, that "
        "of the margin for {second:.1f} % ({examples} images){attacks}: neither loss leads "
        "anywhere there, which usually means that the network is not differentiable (a quantised "
        "input or the like): trust black-box attacks only",
    ),
    _Rule(
        "iterative_weaker",
        _iterative_weaker,
        "{attack} at epsilon {epsilon:g} leaves {first:.1f} %, the weaker {other} {second:.1f} % "
        "({examples} images): many steps do less harm than one, which usually means that gradients "
        "are masked",
    ),
    _Rule(
        "black_box_stronger",
        _black_box_stronger,
        "its own {attack} images at epsilon {epsilon:g} leave {first:.1f} %, those of {other} "
        "{second:.1f} % ({examples} images): another network's gradients do more harm than its "
        "own, which usually means that its own are masked",
    ),
    _Rule(
        "noise_as_strong",
        _noise_as_strong,
        "step_fgsm at epsilon {epsilon:g} leaves {first:.1f} %, the random signs of step_rand "
        "{second:.1f} % of {clean:.1f} % clean ({examples} images): the gradient does no more harm "
        "than noise, which usually means that gradients are masked or that the network learnt this "
        "one attack",
    ),
    _Rule(
        "survives_any_epsilon",
        _survives_any_epsilon,
        "{attack} at epsilon {epsilon:g} leaves {first:.1f} % where about {second:.1f} % is to be "
        "expected ({examples} images): such images can look like anything, which usually means "
        "that the attack fails, not that the network is robust",
    ),
    _Rule(
        "label_leaking",
        _label_leaking,
        "step_fgsm at epsilon {epsilon:g} leaves {first:.1f} %, no attack {second:.1f} % "
        "({examples} images): the attack helps the network, which usually means label leaking: "
        "trained on one-step images of the true label, it reads the label from the perturbation",
    ),
    _Rule(
        "iterative_overstates",
        _iterative_overstates,
        "iter_fgsm at epsilon {epsilon:g} leaves {first:.1f} %, {other} {second:.1f} % "
        "({examples} images): the paper's attack stops short, which usually means that its numbers "
        "overstate robustness",
    ),
)


# A network at chance says nothing about attacks. Of few images chance itself is uncertain.
LEAST_ABOVE_CHANCE = 0.05  # of the way from chance to 100 %, or half of chance where that is less
LEAST_POINTS_OF_RANGE = 10.0
AT_CHANCE, OTHER_RANGE = "at_chance", "value_range"


KINDS = tuple(dict.fromkeys(rule.kind for rule in _RULES))


def is_poor(right: np.ndarray, num_classes: int) -> bool:
    """Whether a network is right about so few clean images, (n,), that its input may be wrong."""
    return bool(np.mean(right) < (1 + 1 / num_classes) / 2)


def at_chance(
    target: str,
    predicted: np.ndarray,
    labels: np.ndarray,
    num_classes: int,
    other: tuple[tuple[float, float], np.ndarray] | None = None,
) -> Iterator[Finding]:
    """Yield a finding where clean images show that a network is not given what it takes.

    Args:
        target: the network.
        predicted, labels: of its clean images, (n,).
        num_classes: 1 / num_classes is chance.
        other: another range of pixel values, and which of the first images the network would be
            right about, (m,), were that its own.
    """
    right, examples = predicted == labels, len(labels)
    chance = 1 / num_classes
    above = min(LEAST_ABOVE_CHANCE * (1 - chance), chance / 2)
    above = max(above, DEVIATIONS * math.sqrt(chance * (1 - chance) / examples))
    constant = len(np.unique(predicted)) == 1 < len(np.unique(labels))
    nothing = constant or bool(np.mean(right) <= chance + above)
    kind = AT_CHANCE if num_classes > 1 and nothing else None
    mend = (
        "its numbers under attack mean nothing; check value_range, the order of the classes, and "
        "whether it was trained"
    )
    first, second = per_cent(right), 100 * chance
    if other is not None:
        (low, high), better = other
        if clearly_above(better, right[: len(better)], LEAST_POINTS_OF_RANGE):
            kind = kind or OTHER_RANGE
            mend = (
                f"is value_range ({low:g}, {high:g}) meant? With it, {per_cent(better):.1f} % of "
                f"{len(better)} are right"
            )
    if kind is not None:
        alike = f", all taken for class {int(predicted[0])}" if constant else ""
        sentence = (
            f"{one_line(target)}: the network is right about {first:.1f} % of clean images, "
            f"chance is {second:.3g} % ({examples} images{alike}): {mend}"
        )
        yield Finding(target, kind, sentence, first, second, examples)


def diagnose(
    correct: Correct, gradients: Mapping[str, Gradients], num_classes: int
) -> list[Finding]:
    """Say what is suspicious about each target's numbers.

    Args:
        correct: what each target classifies correctly of what images; any part of the cells.
        gradients: of targets, by name; may be empty.
        num_classes: tells when accuracy is near chance.

    Returns:
        At most one finding of each of ``KINDS`` for each target, that of the largest difference.
        Targets in the order in which they are first met, kinds in that of ``KINDS``.
    """
    findings = []
    for target in dict.fromkeys(itertools.chain((cell.target for cell in correct), gradients)):
        view = View(target, correct, gradients.get(target), num_classes)
        for rule in _RULES:
            evidence = max(rule.find(view), key=lambda each: each.gap, default=None)
            if evidence is not None:
                findings.append(_finding(target, rule, evidence))
    return findings


def _finding(target: str, rule: _Rule, evidence: _Evidence) -> Finding:
    numbers = {key: getattr(evidence, key) for key in ("first", "second", "examples")}
    sentence = rule.sentence.format(**numbers, **evidence.words)
    return Finding(target, rule.kind, f"{one_line(target)}: {sentence}", **numbers)


def one_line(name: str) -> str:
    """Return a user's name of a network without line breaks and control characters."""
    return "".join(each if each.isprintable() else " " for each in name)


def summary(findings: Sequence[Finding], targets: Sequence[str]) -> list[str]:
    """Return the lines of a report: of each target its sentences, or that there are none."""
    lines = []
    for target in dict.fromkeys([*targets, *(finding.target for finding in findings)]):
        nothing = (
            f"{one_line(target)}: nothing suspicious in these numbers, which does not prove "
            "robustness"
        )
        lines += [each.sentence for each in findings if each.target == target] or [nothing]
    return lines
