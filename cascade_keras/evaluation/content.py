"""What report.json holds, from the predictions that an evaluation computed; needs no TensorFlow."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from cascade_keras.attacks.specs import Attack
from cascade_keras.evaluation import checklist, diagnosis, stages, summary
from cascade_keras.evaluation.cells import Cell


@dataclasses.dataclass(frozen=True)
class Found:
    """What the tasks of an evaluation found.

    Attributes:
        labels: true classes, (count,).
        predicted: of each cell that was asked for, the classes its target took the images for,
            (count,).
        minimal: of each target, the minimal epsilons of ``minimal_indices``, (n,); may be empty.
        minimal_indices: (n,).
        extra: as ``predicted``, of what the diagnosis asked for, on its images only.
        gradients: of each target that is diagnosed, where they are zero.
        short: as ``extra``, of what the checklist asked for.
        probed: of each target that is diagnosed, what it was probed with.
        told: by the cell of each source itself, what attacks told of their images.
    """

    labels: np.ndarray
    predicted: Mapping[Cell, np.ndarray]
    minimal: Mapping[str, np.ndarray]
    minimal_indices: np.ndarray
    extra: Mapping[Cell, np.ndarray]
    gradients: Mapping[str, diagnosis.Gradients]
    short: Mapping[Cell, np.ndarray] = dataclasses.field(default_factory=dict)
    probed: Mapping[str, checklist.Probed] = dataclasses.field(default_factory=dict)
    told: Mapping[Cell, stages.Told] = dataclasses.field(default_factory=dict)

    def correct(self, predicted: Mapping[Cell, np.ndarray]) -> dict[Cell, np.ndarray]:
        """Return where predictions are right."""
        return {cell: classes == self.labels[: len(classes)] for cell, classes in predicted.items()}


def results(
    found: Found,
    targets: Sequence[str],
    sources: Sequence[str],
    thresholds: Sequence[float],
    attacks: Mapping[str, Attack],
) -> dict[str, list]:
    """Return the accuracies and what follows from them, as report.json has it.

    Args:
        targets, sources: names.
        thresholds: epsilons above which minimal epsilons are counted.
        attacks: those that were asked for, by their labels.
    """
    options = _options(attacks)
    correct = found.correct(found.predicted)
    shown = {cell: right for cell, right in correct.items() if cell.target in targets}
    for attack in (name for name in options if not summary.gives_images(name)):
        for target, epsilons in found.minimal.items():
            for threshold in thresholds:
                shown[Cell(target, target, attack, threshold)] = epsilons > threshold
    return {
        "results": summary.accuracies(shown, options),
        "worst_case": summary.worst_cases(shown, options),
        "transfer": summary.transfers(correct, options) if sources else [],
        "cw_linf": summary.minimal_epsilons(found.minimal, thresholds),
        **stages.records(found.told, correct, attacks),
    }


def diagnose(
    found: Found,
    targets: Sequence[str],
    num_classes: int,
    attacks: Mapping[str, Attack],
    chance: Sequence[diagnosis.Finding] = (),
) -> dict[str, Any]:
    """Return the findings, their sentences, and the accuracies that were measured for them.

    Args:
        attacks: all that were run, by their labels.
        chance: findings about the clean images, which come first.
    """
    extra = found.correct(found.extra)
    # What was asked for has more images, and stronger attacks.
    every = {**extra, **found.correct(found.predicted)}
    every = {cell: right for cell, right in every.items() if cell.target in targets}
    findings = [*chance, *diagnosis.diagnose(every, found.gradients, num_classes)]
    return {
        "sentences": diagnosis.summary(findings, targets),
        "findings": [
            {
                "target": finding.target,
                "kind": finding.kind,
                "sentence": finding.sentence,
                "first": finding.first,
                "second": finding.second,
                "examples": finding.examples,
            }
            for finding in findings
        ],
        "results": summary.accuracies(extra, _options(attacks)),
    }


def checked(found: Found, targets: Sequence[str], num_classes: int) -> list[dict]:
    """Return the items of the checklist, those of each target in turn."""
    # What was asked for has more images.
    correct = found.correct({**found.short, **found.extra, **found.predicted})
    items = checklist.checklist(
        targets,
        correct,
        found.predicted,
        found.labels,
        num_classes,
        found.gradients,
        found.probed,
    )
    return [dataclasses.asdict(item) for item in items]


def _options(attacks: Mapping[str, Attack]) -> dict[str, Mapping]:
    return {label: attack.options for label, attack in attacks.items()}
