"""Which attack of a suite broke which image, and what attacks took; needs no TensorFlow."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from cascade_keras.attacks.specs import ATTACKS, Attack
from cascade_keras.evaluation.cells import Cell

# Of the diagnosis: what says that gradients mislead, so that a search without any is due.
# ``iterative_overstates`` is not among them: it finds AutoAttack itself stronger than others.
MISLED = (
    "zero_gradients",
    "iterative_weaker",
    "black_box_stronger",
    "noise_as_strong",
    "survives_any_epsilon",
    "label_leaking",
)
AFTERWARDS = "square"  # what a fast AutoAttack goes on to


@dataclasses.dataclass(frozen=True)
class Told:
    """What an attack told of its images at one epsilon.

    Attributes:
        gradients, forwards: passes that each image took, (n,).
        stages: of a suite, what broke each: see ``AttackSpec.stage_names``.
        stood: of a suite that was gone on with, how many images stood before.
    """

    gradients: np.ndarray
    forwards: np.ndarray
    stages: np.ndarray | None = None
    stood: int | None = None


def flagged(findings: Sequence[Mapping[str, Any]]) -> set[str]:
    """Return the targets of whose gradients the diagnosis says that they mislead."""
    return {finding["target"] for finding in findings if finding["kind"] in MISLED}


def goes_on(attack: Attack) -> bool:
    """Whether an attack is an AutoAttack that is gone on with where gradients mislead."""
    options = attack.options
    return attack.name == "autoattack" and options["version"] == "fast" and options["queries"] > 0


def records(
    told: Mapping[Cell, Told], right: Mapping[Cell, np.ndarray], attacks: Mapping[str, Attack]
) -> dict[str, list[dict]]:
    """Return which stages broke how many images, and the passes an image, as report.json has it.

    An image counts as broken where the network, shown it among others, takes it for another class:
    what a stage saw alone may differ by rounding.

    Args:
        told: by the cell of the source itself.
        right: whether each source takes its own images for their classes.
        attacks: by their labels.
    """
    stages, passes = [], []
    for cell, each in told.items():
        place = {"source": cell.source, "attack": cell.attack, "epsilon": cell.epsilon}
        means = {name: float(np.mean(getattr(each, name))) for name in ("gradients", "forwards")}
        passes.append({**place, **means})
        if each.stages is None:
            continue
        attack, stands = attacks[cell.attack], right[cell]
        stands_for, *names = ATTACKS[attack.name].stage_names
        numbers = np.where(stands, 0, each.stages)
        broken = {name: int(np.sum(numbers == number)) for number, name in enumerate(names, 1)}
        other = int(np.sum(~stands & (each.stages == 0)))
        record = {
            **place,
            "options": dict(attack.options),
            "examples": len(stands),
            stands_for: int(np.sum(stands)),
            "broken": broken,
            "broken_by_rounding": other,
        }
        if each.stood is not None:
            record["went_on"] = {"to": AFTERWARDS, "stood": each.stood}
        stages.append(record)
    return {"stages": stages, "passes": passes}


def sentences(content: Mapping) -> list[str]:
    """Return of each AutoAttack that was gone on with what came of it."""
    found = []
    for record in content.get("stages", ()):
        if went_on := record.get("went_on"):
            broke = record["broken"][went_on["to"]]
            found.append(
                f"{record['source']}: as its gradients mislead, {_attack(record)} at epsilon "
                f"{record['epsilon']:g} went on to {went_on['to']}, which broke {broke} of the "
                f"{went_on['stood']} images that stood"
            )
    return found


def grid(content: Mapping) -> tuple[list[str], list[list[str]]]:
    """Return headings and rows of what broke how many images, none where no suite was run."""
    found = content.get("stages") or []
    names = dict.fromkeys(
        name for record in found for name, count in record["broken"].items() if count
    )
    rows = []
    took = {_place(record): record for record in content.get("passes", ())}
    for record in found:
        then = f"then {record['went_on']['to']}" if "went_on" in record else ""
        passes = took[_place(record)]
        rows.append(
            [
                record["source"],
                _attack(record, then),
                f"{record['epsilon']:g}",
                *(str(record["broken"].get(name, 0)) for name in names),
                str(record["stands"]),
                f"{passes['gradients']:.0f}",
                f"{passes['forwards']:.0f}",
            ]
        )
    headings = ["network", "attack", "epsilon", *names, "stand", "gradients", "forward passes"]
    return headings, rows


def in_words(content: Mapping) -> str:
    """Return the passes an image of attacks that are no suites, where they were counted."""
    suites = {_place(record) for record in content.get("stages", ())}
    return "; ".join(
        f"{record['attack']} at {record['epsilon']:g} from {record['source']}: "
        f"{record['gradients']:.1f} gradients and {record['forwards']:.1f} forward passes an image"
        for record in content.get("passes", ())
        if _place(record) not in suites
    )


def _attack(record: Mapping, then: str = "") -> str:
    """Return an attack's label with its version, which may be in it, and what followed."""
    name, _, rest = record["attack"].partition(" (")
    version = record["options"].get("version", "")
    others = [text for text in rest.rstrip(")").split(", ") if text != f"version {version}"]
    words = ", ".join(filter(None, [version, *others, then]))
    return f"{name} ({words})" if words else name


def _place(record: Mapping) -> tuple:
    return record["source"], record["attack"], record["epsilon"]
