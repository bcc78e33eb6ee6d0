"""Pictures and tables beside a report: heat maps, minimal epsilons, confusions, examples."""

from __future__ import annotations

import pathlib
from collections.abc import Mapping, Sequence

import numpy as np

from cascade_keras import figures
from cascade_keras.attacks import carlini_wagner
from cascade_keras.attacks.specs import Attack
from cascade_keras.evaluation import summary
from cascade_keras.evaluation.asked import Given
from cascade_keras.evaluation.cells import Cell
from cascade_keras.evaluation.content import Found
from cascade_keras.evaluation.report import Report
from cascade_keras.evaluation.stores import file_name


def draw_accuracies(
    report: Report,
    records: Sequence[Mapping],
    targets: Sequence[str],
    sources: Sequence[str],
    attacks: Mapping[str, Attack],
) -> None:
    """Draw a heat map for each attack and epsilon; white box, one an epsilon.

    Args:
        records: the results that report.json holds.
        attacks: those whose images are made, by their labels.
    """
    cells = {(r["target"], r["source"], r["attack"], r["epsilon"]): r["accuracy"] for r in records}

    def draw(name: str, values: Sequence, rows: Sequence[str], row_label: str) -> None:
        picture = figures.heat_map(
            np.array(values), rows, targets, row_label=row_label, column_label="target"
        )
        figures.save(picture, report.path / f"{name}.png")

    if sources:
        for label, attack in attacks.items():
            for epsilon in attack.epsilons:
                name = file_name(f"{label}-{epsilon:g}")
                if summary.needs_no_source(label):
                    draw(name, [[cells[t, t, label, epsilon] for t in targets]], [label], "attack")
                    continue
                values = [[cells[t, s, label, epsilon] for t in targets] for s in sources]
                draw(name, values, sources, _crafted_from(attack))
    elif attacks:
        for epsilon in next(iter(attacks.values())).epsilons:
            values = [[cells[t, t, label, epsilon] for t in targets] for label in attacks]
            draw(f"white_box-{epsilon:g}", values, list(map(str, attacks.values())), "attack")


def _crafted_from(attack: Attack) -> str:
    return f"crafted from, by {attack}" if str(attack) != attack.name else "crafted from"


def write_minimal(report: Report, found: Found, thresholds: Sequence[float]) -> None:
    """Write every minimal epsilon, and their distributions as a table and a picture."""
    rows = [
        {"target": name, "image": int(i), "label": int(found.labels[i]), "epsilon": float(e)}
        for name, epsilons in found.minimal.items()
        for i, e in zip(found.minimal_indices, epsilons, strict=True)
    ]
    report.write_csv("cw_linf.csv", ["target", "image", "label", "epsilon"], rows)
    shares = [
        {"target": name, "epsilon": float(e), "misclassified": float(share)}
        for name, epsilons in found.minimal.items()
        for e, share in zip(*carlini_wagner.distribution(epsilons), strict=True)
    ]
    report.write_csv("cw_linf_distribution.csv", ["target", "epsilon", "misclassified"], shares)
    picture = figures.distribution(found.minimal, thresholds=thresholds)
    figures.save(picture, report.path / "cw_linf.png")


def write_confusion(report: Report, found: Found, targets: Sequence[str], given: Given) -> None:
    """Write what each class is taken for, as a table and a picture for each cell of a target."""
    classes = given.num_classes
    names = [given.class_name(number) for number in range(classes)]
    rows = []
    for cell, predicted in found.predicted.items():
        if cell.target not in targets:
            continue
        counts = summary.confusion_matrix(predicted, found.labels[: len(predicted)], classes)
        rows += [
            {
                **cell._asdict(),
                "true": int(true),
                "predicted": int(seen),
                "count": int(counts[true, seen]),
            }
            for true, seen in np.argwhere(counts)
        ]
        figures.save(figures.confusion(counts, names), _picture(report, "confusion", cell))
    fields = [*Cell._fields, "true", "predicted", "count"]
    report.write_csv("confusion.csv", fields, rows)


def fooled(found: Found, cell: Cell, most: int) -> np.ndarray:
    """Return which images a target classifies correctly when clean and not when attacked."""
    correct = found.correct({c: found.predicted[c] for c in (cell, Cell.clean(cell.target))})
    return np.flatnonzero(correct[Cell.clean(cell.target)] & ~correct[cell])[:most]


def draw_examples(
    report: Report,
    found: Found,
    given: Given,
    cell: Cell,
    chosen: np.ndarray,
    clean: np.ndarray,
    adversarial: np.ndarray,
) -> None:
    """Draw images that fool a target, with the class of each and what it is taken for.

    Args:
        given: what the classes are called.
        chosen: which, (n,), see ``fooled``.
        clean, adversarial: these images, (n, H, W, C).
    """
    labels = [given.class_name(label) for label in found.labels[chosen]]
    seen = [given.class_name(label) for label in found.predicted[cell][chosen]]
    titles = [(label, f"{label} → {wrong}") for label, wrong in zip(labels, seen, strict=True)]
    picture = figures.examples(clean, adversarial, titles, epsilon=cell.epsilon)
    figures.save(picture, _picture(report, "examples", cell))


def _picture(report: Report, kind: str, cell: Cell) -> pathlib.Path:
    source = None if cell.source == cell.target else cell.source
    parts = [cell.target, source, cell.attack, cell.epsilon and f"{cell.epsilon:g}"]
    folder = report.path / kind
    folder.mkdir(exist_ok=True)
    return folder / (file_name("-".join(str(part) for part in parts if part)) + ".png")
