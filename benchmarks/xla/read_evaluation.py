"""Read what run_evaluation.py has measured: one JSON file, and the images that nothing fools.

    python benchmarks/xla/read_evaluation.py --programs=FOLDER --evaluated=FOLDER --json=FILE \\
        --note="H100, TF32"

FILE has the plan, the note and of each network its cells: attack, epsilon, how many images are
classified correctly, of how many, the options; the source where images of another network are shown
to it; and "worst", of its own images under all these attacks at an epsilon together. Needs NumPy
alone, so that it reads on the device too.
"""

from __future__ import annotations

import argparse
import json
import pathlib
import sys

import numpy as np

# What is no option of an attack.
_PGD = {"pgd_steps": "steps", "pgd_restarts": "restarts", "pgd_objective": "objective"}
_SUITE = {"version": "version", "iterations": "iterations", "queries": "queries"}
OPTIONS = {"pgd": _PGD, "autoattack": _SUITE}


def options_of(plan: dict, attack: str) -> dict:
    """Return the options of an attack, by the names that bin/evaluate has for them."""
    return {own: plan[name] for name, own in OPTIONS.get(attack, {}).items()}


def cell(attack: str, epsilon: float, right: np.ndarray, **others) -> dict:
    """Return what is known of a network under an attack at an epsilon.

    Args:
        right: which images it classifies correctly, bool (images,).
        others: what else there is to say; left out where it is empty.
    """
    correct, examples = int(right.sum()), len(right)
    return {
        "attack": attack,
        "epsilon": epsilon,
        "correct": correct,
        "examples": examples,
        "accuracy": 100 * correct / examples,
        **{name: value for name, value in others.items() if value},
    }


def cells(plan: dict, evaluated: pathlib.Path) -> dict[str, list[dict]]:
    """Return the cells of each network that anything is known of.

    Args:
        plan: evaluation.json.
        evaluated: the output of ``run_evaluation.py``.
    """
    names = [network["name"] for network in plan["networks"]]
    found: dict[str, list[dict]] = {name: [] for name in names}
    shown: dict[str, list[dict]] = {name: [] for name in names}
    for name in names:
        worst = np.ones((), bool)
        for attack in ("clean", *dict.fromkeys((*plan["attacks"], *plan["transfer"]))):
            file = evaluated / f"{name}--{attack}.npz"
            if not file.exists():
                continue
            with np.load(file) as kept:
                rows = {each: kept[each] for each in kept.files}
            sizes = [0.0] if attack == "clean" else plan["epsilons"]
            options = options_of(plan, attack)
            for epsilon, right in zip(sizes, rows.pop("right"), strict=True):
                found[name].append(cell(attack, epsilon, right, options=options))
            for key in [key for key in rows if key.startswith("right/")]:
                target = key.partition("/")[2]
                for epsilon, right in zip(sizes, rows[key], strict=True):
                    shown[target].append(cell(attack, epsilon, right, source=name))
            with np.load(file) as kept:
                worst = worst & kept["right"]
        if worst.ndim == 2 and len(worst) == len(plan["epsilons"]):
            pairs = zip(plan["epsilons"], worst, strict=True)
            found[name] += [cell("worst", epsilon, right) for epsilon, right in pairs]
    return {name: found[name] + shown[name] for name in names if found[name] + shown[name]}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--programs", required=True, type=pathlib.Path)
    parser.add_argument("--evaluated", required=True, type=pathlib.Path)
    parser.add_argument("--json", required=True, type=pathlib.Path)
    parser.add_argument("--note", default="", help="such as the device and its precision")
    options = parser.parse_args()
    plan = json.loads((options.programs / "evaluation.json").read_text())
    found = cells(plan, options.evaluated)
    if not found:
        sys.exit(f"read_evaluation: {options.evaluated} has nothing of {options.programs}")
    kept = {name: value for name, value in plan.items() if name not in ("kinds", "networks")}
    record = {"note": options.note, "plan": kept, "networks": found}
    partial = options.json.with_suffix(".part")
    partial.write_text(json.dumps(record, indent=1) + "\n")
    partial.replace(options.json)
    for name, rows in found.items():
        for row in rows:
            of = f" by {row['source']}" if "source" in row else ""
            print(f"{name}: {row['attack']}{of} {row['epsilon']:g} {row['accuracy']:.2f} %")


if __name__ == "__main__":
    main()
