"""What follows from predictions: accuracies, worst cases, transfer rates, minimal epsilons.

``Correct`` maps a cell (target, source, attack, epsilon) to whether the target classifies each
image correctly, bool (n,). Everything is counted per image, so that attacks are compared on the
same images.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence

import numpy as np

from cascade_keras.evaluation.diagnosis import Cell, Correct

CLEAN, CW = "clean", "cw_linf"


def accuracies(correct: Correct) -> list[dict]:
    """Return a record of each cell, in the report's form."""
    return [
        {
            "target": cell.target,
            "source": cell.source,
            "attack": cell.attack,
            "epsilon": cell.epsilon,
            **counts(right),
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


def worst_cases(correct: Correct) -> list[dict]:
    """Return for each target and epsilon the strongest attack, and what withstands all of them.

    ``accuracy`` counts an image only if it is classified correctly under every attack of this
    epsilon; ``strongest`` is the single source and attack with the lowest accuracy. Attacks that
    were given fewer images than others (cw_linf) are left out of the former.
    """
    groups: dict[tuple[str, float], list[Cell]] = {}
    for cell in correct:
        if cell.attack != CLEAN:
            groups.setdefault((cell.target, cell.epsilon), []).append(cell)
    records = []
    for (target, epsilon), cells in groups.items():
        comparable = [cell for cell in cells if cell.attack != CW] or cells
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


def transfers(correct: Correct) -> list[dict]:
    """Return a record for each cell whose source is another network than its target."""
    records = []
    for cell, right in correct.items():
        if cell.attack in (CLEAN, CW) or cell.source == cell.target:
            continue
        own = correct.get(cell._replace(target=cell.source))
        if own is None:
            continue
        clean = [
            correct[Cell(name, None, CLEAN, 0.0)][: len(right)]
            for name in (cell.source, cell.target)
        ]
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


def markdown(content: Mapping) -> str:
    """Return the report as Markdown, from what report.json holds."""
    parts = [_heading(content), _accuracy_table(content), _worst_case_table(content)]
    parts += [_cw_table(content), _transfer_table(content), _diagnosis(content), _origin(content)]
    return "\n\n".join(part for part in parts if part) + "\n"


def _heading(content: Mapping) -> str:
    noise = content["inference_noise"]
    return (
        f"# Robustness: {', '.join(n['name'] for n in content['networks'] if n['target'])}\n\n"
        f"Accuracy in per cent of the first {content['examples']:,} images of the "
        f"{content['split']} split of {content['dataset']}, true labels, seed {content['seed']}, "
        "epsilon in 0..255. "
        + ("Black box: crafted from the sources." if content["sources"] else "White box.")
        + (f" Random signs of {noise:g} are added before every network." if noise else "")
    )


def table(headings: Sequence[str], rows: Sequence[Sequence], left: int = 1) -> str:
    """Return a Markdown table; the first ``left`` columns are text."""
    marks = ["---"] * left + ["---:"] * (len(headings) - left)
    lines = [headings, marks, *rows]
    cells = ([str(cell).replace("|", r"\|") for cell in line] for line in lines)
    return "\n".join("| " + " | ".join(line) + " |" for line in cells)


def grid(content: Mapping) -> tuple[list[str], list[list[str]]]:
    """Return headings and rows: source, attack and epsilon of each row, then a cell a target.

    The lowest accuracy of a target at an epsilon is marked with a star; the last rows are the
    images that withstand all attacks. Without other sources there is no column of sources.
    """
    targets = [network["name"] for network in content["networks"] if network["target"]]
    black_box = bool(content["sources"])
    rows: dict[tuple, dict[str, Mapping]] = {}
    for record in content["results"]:
        source = record["source"]
        if not black_box or record["attack"] in (CLEAN, CW):
            source = "" if record["attack"] == CLEAN else "itself"
        key = (source, record["attack"], record["epsilon"])
        rows.setdefault(key, {})[record["target"]] = record
    lowest: dict[tuple[str, float], float] = {}
    for record in content["results"]:
        if record["attack"] not in (CLEAN, CW):
            place = record["target"], record["epsilon"]
            lowest[place] = min(record["accuracy"], lowest.get(place, 100.0))
    lines = []
    for (source, attack, epsilon), cells in rows.items():
        shown = []
        for target in targets:
            record = cells.get(target)
            if record is None:
                shown.append("")
                continue
            worst = attack not in (CLEAN, CW) and record["accuracy"] == lowest[target, epsilon]
            few = "" if record["examples"] == content["examples"] else f" / {record['examples']}"
            shown.append(f"{record['accuracy']:.1f}{few}" + ("*" if worst else ""))
        head = [source] * black_box + [attack, "" if attack == CLEAN else f"{epsilon:g}"]
        lines.append([*head, *shown])
    for epsilon in sorted({record["epsilon"] for record in content["worst_case"]}):
        withstood = {
            record["target"]: f"{record['accuracy']:.1f}"
            for record in content["worst_case"]
            if record["epsilon"] == epsilon
        }
        head = [""] * black_box + ["all of them", f"{epsilon:g}"]
        lines.append([*head, *(withstood.get(target, "") for target in targets)])
    return ["crafted from"] * black_box + ["attack", "epsilon", *targets], lines


def _accuracy_table(content: Mapping) -> str:
    headings, rows = grid(content)
    text = table(headings, rows, left=headings.index("epsilon"))
    return (
        f"## Accuracy\n\n{text}\n\n* the strongest attack on the target at this epsilon. "
        "A number after a slash is the number of images where it is not that of the others."
    ).replace("\n\n* the", "\n\n\\* the")


def _worst_case_table(content: Mapping) -> str:
    if not content["worst_case"]:
        return ""
    rows = [
        [
            record["target"],
            _named(record["strongest"], record["target"]),
            f"{record['epsilon']:g}",
            f"{record['strongest']['accuracy']:.1f}",
            f"{record['accuracy']:.1f}",
        ]
        for record in content["worst_case"]
    ]
    headings = ["target", "strongest attack", "epsilon", "its accuracy", "withstand all"]
    return (
        "## Worst case\n\nAn image withstands all if it is classified correctly under every attack "
        f"above at its epsilon.\n\n{table(headings, rows, left=2)}"
    )


def _named(record: Mapping, target: str) -> str:
    source = "itself" if record["source"] == target else record["source"]
    return f"{record['attack']} from {source}"


def _cw_table(content: Mapping) -> str:
    if not content["cw_linf"]:
        return ""
    thresholds = [f"> {above['epsilon']:g}" for above in content["cw_linf"][0]["above"]]
    rows = [
        [
            record["target"],
            record["examples"],
            *(above["count"] for above in record["above"]),
            _rounded(record["mean"]),
            _rounded(record["median"]),
            record["misclassified_clean"],
            record["not_found"],
        ]
        for record in content["cw_linf"]
    ]
    headings = ["target", "images", *thresholds, "mean", "median", "wrong when clean", "not found"]
    return (
        "## Minimal epsilon (Carlini and Wagner, L-infinity)\n\nImages whose minimal epsilon is "
        f"above a threshold; mean and median of those found.\n\n{table(headings, rows)}"
    )


def _rounded(value: float | None) -> str:
    return "" if value is None else f"{value:.2f}"


def _transfer_table(content: Mapping) -> str:
    if not content["transfer"]:
        return ""
    rows = [
        [
            record["source"],
            record["target"],
            record["attack"],
            f"{record['epsilon']:g}",
            f"{record['fooled_both']} / {record['fooled_source']}",
            _rounded(record["rate"]),
            f"{record['both_correct_fooled_both']} / {record['both_correct_fooled_source']}",
            _rounded(record["both_correct_rate"]),
        ]
        for record in content["transfer"]
    ]
    headings = ["crafted from", "target", "attack", "epsilon", "fool both / source", "rate, %",
                "both right when clean", "rate, %"]  # fmt: skip
    return (
        "## Transfer\n\nOf the images that fool their source, those that also fool the target; "
        "then only of the images that both networks classify correctly when clean.\n\n"
        + table(headings, rows, left=3)
    )


def _diagnosis(content: Mapping) -> str:
    found = content["diagnosis"]
    if not found:
        return ""
    lines = "\n".join(f"- {sentence}" for sentence in found["sentences"])
    return f"## Can these numbers be trusted?\n\nWhite box, {found['examples']} images.\n\n{lines}"


def _origin(content: Mapping) -> str:
    networks = [
        [network["name"], network["path"], network["weights_hash"][:16]]
        for network in content["networks"]
    ]
    attacks = [
        f"- {attack['name']}"
        + "".join(f", {name} {v}" for name, v in attack["options"].items() if v is not None)
        for attack in content["attacks"]
    ]
    crafting, classifying = (content["seconds"][key] for key in ("crafting", "classifying"))
    return (
        "## What was measured\n\n"
        + table(["network", "path", "SHA-256 of its weights"], networks, left=3)
        + "\n\n"
        + "\n".join(attacks)
        + f"\n\nSHA-256 of the dataset: {content['dataset_fingerprint'][:16]}. "
        f"Crafting took {crafting:.0f} s, classifying {classifying:.0f} s. Versions: "
        + ", ".join(f"{name} {version}" for name, version in content["versions"].items())
        + "."
    )
