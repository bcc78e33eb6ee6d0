"""What follows from predictions: accuracies, worst cases, transfer rates, minimal epsilons.

``Correct`` maps a cell (target, source, attack, epsilon) to whether the target classifies each
image correctly, bool (n,). Everything is counted per image, so that attacks are compared on the
same images.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from cascade_keras.attacks.specs import ATTACKS, MINIMAL
from cascade_keras.evaluation.asked import name_of
from cascade_keras.evaluation.cells import CLEAN, Cell, Correct

Options = Mapping[str, Mapping[str, Any]]  # of each attack by its label


def gives_images(attack: str) -> bool:
    """Whether an attack, by its label, makes images at given epsilons, to be shown to others."""
    row = ATTACKS.get(name_of(attack))
    return attack != CLEAN and not (row is not None and row.kind == MINIMAL)


def needs_no_source(attack: str) -> bool:
    """Whether an attack, by its label, asks the target alone, though others have sources."""
    row = ATTACKS.get(name_of(attack))
    return row is not None and row.gradient_free


def accuracies(correct: Correct, options: Options) -> list[dict]:
    """Return a record of each cell, in the report's form."""
    return [
        {
            "target": cell.target,
            "source": cell.source,
            "attack": cell.attack,
            "epsilon": cell.epsilon,
            **counts(right),
            "options": dict(options.get(cell.attack, {})),
        }
        for cell, right in correct.items()
    ]


def counts(right: np.ndarray) -> dict:
    """Return correct, examples and accuracy in per cent."""
    return {
        "correct": int(np.count_nonzero(right)),
        "examples": len(right),
        "accuracy": 100.0 * float(np.mean(right)),
    }


def worst_cases(correct: Correct, options: Options) -> list[dict]:
    """Return for each target and epsilon the strongest attack, and what withstands all of them.

    ``accuracy`` counts an image only if it is classified correctly under every attack of this
    epsilon; ``strongest`` is the single source and attack with the lowest accuracy. Attacks that
    give minimal epsilons, of fewer images than others, are left out where there are others.
    """
    groups: dict[tuple[str, float], list[Cell]] = {}
    for cell in correct:
        if cell.attack != CLEAN:
            groups.setdefault((cell.target, cell.epsilon), []).append(cell)
    records = []
    for (target, epsilon), cells in groups.items():
        comparable = [cell for cell in cells if gives_images(cell.attack)] or cells
        strongest = min(comparable, key=lambda cell: correct[cell].mean())
        withstood = np.logical_and.reduce([correct[cell] for cell in comparable])
        records.append(
            {
                "target": target,
                "epsilon": epsilon,
                **counts(withstood),
                "strongest": {
                    "source": strongest.source,
                    "attack": strongest.attack,
                    "accuracy": 100.0 * float(correct[strongest].mean()),
                    "options": dict(options.get(strongest.attack, {})),
                },
            }
        )
    return records


@dataclasses.dataclass(frozen=True)
class Transfer:
    """How many of the images that fool their source also fool a target, of one attack and epsilon.

    Kurakin, Goodfellow and Bengio (2017). ``both_correct`` counts only those images whose clean
    versions both networks classify correctly.
    """

    fooled_source: int
    fooled_both: int
    both_correct_fooled_source: int
    both_correct_fooled_both: int

    @property
    def rate(self) -> float:
        """In per cent of the images that fool the source; NaN where there is none."""
        return _per_cent(self.fooled_both, self.fooled_source)

    @property
    def both_correct_rate(self) -> float:
        """The same among the images that both classify correctly when clean."""
        return _per_cent(self.both_correct_fooled_both, self.both_correct_fooled_source)


def transfer(
    source_correct: np.ndarray,
    target_correct: np.ndarray,
    source_clean: np.ndarray,
    target_clean: np.ndarray,
) -> Transfer:
    """Count transfers from what two networks classify correctly, each bool (N,).

    Args:
        source_correct, target_correct: of the source's adversarial images.
        source_clean, target_clean: of the clean images.
    """
    fooled = ~source_correct
    both_fooled = fooled & ~target_correct
    both_clean = source_clean & target_clean
    return Transfer(
        int(fooled.sum()),
        int(both_fooled.sum()),
        int((fooled & both_clean).sum()),
        int((both_fooled & both_clean).sum()),
    )


def _per_cent(part: int, whole: int) -> float:
    return 100.0 * part / whole if whole else float("nan")


def transfers(correct: Correct, options: Options) -> list[dict]:
    """Return a record for each cell whose source is another network than its target."""
    records = []
    for cell, right in correct.items():
        if not gives_images(cell.attack) or cell.source == cell.target:
            continue
        own = correct.get(cell._replace(target=cell.source))
        if own is None:
            continue
        clean = [correct[Cell.clean(name)][: len(right)] for name in (cell.source, cell.target)]
        counted = transfer(own, right, *clean)
        records.append(
            {
                "source": cell.source,
                "target": cell.target,
                "attack": cell.attack,
                "epsilon": cell.epsilon,
                "fooled_source": counted.fooled_source,
                "fooled_both": counted.fooled_both,
                "rate": _number(counted.rate),
                "both_correct_fooled_source": counted.both_correct_fooled_source,
                "both_correct_fooled_both": counted.both_correct_fooled_both,
                "both_correct_rate": _number(counted.both_correct_rate),
                "options": dict(options.get(cell.attack, {})),
            }
        )
    return records


def minimal_epsilons(found: Mapping[str, np.ndarray], thresholds: Sequence[float]) -> list[dict]:
    """Return for each network what its minimal epsilons, (n,), amount to.

    An image for which none was found counts as above every threshold; mean and median leave out
    the images that are misclassified when clean (epsilon 0) and those without any.
    """
    records = []
    for name, epsilon in found.items():
        usual = epsilon[np.isfinite(epsilon) & (epsilon > 0)]
        records.append(
            {
                "target": name,
                "examples": len(epsilon),
                "above": [
                    {"epsilon": float(t), "count": int(np.count_nonzero(epsilon > t))}
                    for t in thresholds
                ],
                "misclassified_clean": int(np.count_nonzero(epsilon == 0)),
                "not_found": int(np.count_nonzero(np.isinf(epsilon))),
                "mean": _number(usual.mean() if len(usual) else np.nan),
                "median": _number(np.median(usual) if len(usual) else np.nan),
            }
        )
    return records


def confusion_matrix(predicted: np.ndarray, labels: np.ndarray, num_classes: int) -> np.ndarray:
    """Return counts (classes, classes): rows are true classes, columns predictions, both (n,)."""
    matrix = np.zeros((num_classes, num_classes), np.int64)
    np.add.at(matrix, (labels, predicted), 1)
    return matrix


def _number(value: float) -> float | None:
    """Return a number as JSON has it: None for NaN."""
    return None if np.isnan(value) else float(value)
