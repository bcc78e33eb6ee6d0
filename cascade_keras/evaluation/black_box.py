"""Black box: what a target has to do with each source, and what the sources leave together.

How much a transferred image tells depends on how near its source is to the target, so each pair is
marked. Robustness is counted in both of the usual ways, of all images and of those that every
network of the run classifies correctly when clean, and for each image by the worst of the sources:
an attacker needs one that works. Needs no TensorFlow.
"""

from __future__ import annotations

import pathlib
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple, Protocol

import numpy as np

from cascade_keras.evaluation import summary
from cascade_keras.evaluation.cells import CLEAN, Cell, Correct
from cascade_keras.files import expand
from cascade_keras.presets import plain
from cascade_keras.provenance import version_of

ITSELF, SEEN, FAMILY = "itself", "seen", "same family"
UNKNOWN, UNSEEN, NO_SOURCE = "not recorded", "unseen", "no source"
# What they mean, from the nearest on: of an ensemble its nearest member counts.
MARKS = {
    ITSELF: "the target's own gradients are in it, so that it is no black box and counts for none",
    SEEN: "the target's training saw its images, or began with its weights",
    FAMILY: "another network of the target's architecture",
    UNKNOWN: "of another architecture, as far as is known; the target's training is not recorded",
    UNSEEN: "of another architecture, and not in what is recorded of the target's training",
    NO_SOURCE: "the target is asked for its outputs alone",
}


class Kin(Protocol):
    """What is looked at of a network, as of ``sources.Source``; of an ensemble ``members`` too."""

    name: str
    path: pathlib.Path | None
    weights_hash: str
    provenance: Mapping[str, Any]
    shapes: str | None
    weights: str | None


class Mark(NamedTuple):
    """What a source is to a target.

    Attributes:
        mark: one of ``MARKS``.
        member: of an ensemble, the name of its nearest member; None of a network alone.
    """

    mark: str
    member: str | None = None


def mark_of(target: Kin, source: Kin) -> Mark:
    """Return what a source is to a target, by what is recorded of both."""
    members = getattr(source, "members", ())
    marks = [Mark(_mark(target, each), each.name) for each in members]
    nearest = min(marks, key=lambda each: list(MARKS).index(each.mark), default=None)
    return nearest or Mark(_mark(target, source))


def _mark(target: Kin, source: Kin) -> str:
    # Not by ``weights_hash``: that of a function is what its owner calls it, that of a SavedModel
    # by others is of its files.
    if source is target or (source.weights is not None and source.weights == target.weights):
        return ITSELF
    if any(_is_meant(record, source) for record in _training(target)):
        return SEEN
    if source.shapes is not None and source.shapes == target.shapes:
        return FAMILY
    return UNSEEN if target.provenance.get("recipe") else UNKNOWN


def _training(target: Kin) -> Iterator[Mapping[str, str]]:
    """Yield what is recorded of each network that had a part in a target's training."""
    known = target.provenance.get("learned_from") or []
    yield from known
    recipe = target.provenance.get("recipe") or {}
    # Their weights are not recorded: of what a network began with, nor by versions up to 0.4.0.
    paths = [recipe.get("init_from")]
    if not known:
        paths += [*(recipe.get("cascade_source") or ()), *(recipe.get("ensemble_source") or ())]
    yield from ({"path": path} for path in paths if path)


def _is_meant(record: Mapping[str, str], source: Kin) -> bool:
    """Whether a record of another network's training is about this source.

    Where no weights are recorded a network of the same path, or of the same name, counts: it is
    better to call a network seen that was not than the other way round.
    """
    if "weights_hash" in record:
        return record["weights_hash"] in (source.weights_hash, source.weights)
    path = expand(record["path"])
    if source.path is not None:
        places = {source.path.resolve(), source.path.resolve().parent}
        if path.resolve() in places:
            return True
    name = path.parent.name if version_of(path.name) is not None else plain(path.name)
    return (name if path.suffix not in (".keras", ".h5", ".hdf5") else path.stem) == source.name


def black_box(correct: Correct, marks: Mapping[tuple[str, str], Mark]) -> dict[str, Any]:
    """Return what sources leave of each target, as report.json has it.

    Args:
        correct: of all cells, those of clean images too.
        marks: of each target and source, by their names.

    Returns:
        ``all_correct``: how many of the images every network classifies correctly when clean.
        ``marks``: a record of each target and source.
        ``results``: of each target, source, attack and epsilon how many images stand, and in
        ``all_correct`` how many of those that all networks classify correctly. ``worst``: of each
        target, attack and epsilon the same of the images that stand whatever the source, and with
        the attack None whatever the source and the attack. What has the mark ``ITSELF`` is left
        out of it.
    """
    clean = [right for cell, right in correct.items() if cell.attack == CLEAN]
    everyone = np.logical_and.reduce(clean)
    results, groups = [], {}
    for cell, right in correct.items():
        mark = _mark_at(cell, marks)
        if mark is None:
            continue
        results.append({**_record(cell), "mark": mark, **_both(right, everyone)})
        for attack in (cell.attack, None) if mark != ITSELF else ():
            place = cell._replace(source=None, attack=attack)
            groups.setdefault(place, []).append(right)
    worst = [
        {**_record(place), "cells": len(cells), **_both(np.logical_and.reduce(cells), everyone)}
        for place, cells in groups.items()
    ]
    return {
        "all_correct": int(np.count_nonzero(everyone)),
        "marks": [
            {"target": target, "source": source, **mark._asdict()}
            for (target, source), mark in marks.items()
        ],
        "results": results,
        "worst": worst,
    }


def _mark_at(cell: Cell, marks: Mapping[tuple[str, str], Mark]) -> str | None:
    """Return the mark of a cell, None of one that has nothing to do with black boxes."""
    if not summary.gives_images(cell.attack):
        return None
    if summary.needs_no_source(cell.attack):
        return NO_SOURCE if cell.source == cell.target else None
    mark = marks.get((cell.target, cell.source))
    return None if mark is None else mark.mark


def _record(cell: Cell) -> dict[str, Any]:
    record = cell._asdict()
    return {key: value for key, value in record.items() if key != "source" or value is not None}


def _both(right: np.ndarray, everyone: np.ndarray) -> dict[str, Any]:
    """Return the counts of all images, and of those that every network is right about."""
    among = right[everyone]
    none = {"correct": 0, "examples": 0, "accuracy": None}
    return {
        **summary.counts(right),
        "all_correct": summary.counts(among) if len(among) else none,
    }


# As tables have it, from what report.json holds.

EVERY = "all of them"  # the attacks at an epsilon
WORST = "worst of them"  # the sources


def is_in(content: Mapping) -> bool:
    """Whether a report has any image of another network's."""
    return bool((content.get("black_box") or {}).get("results"))


def explained(content: Mapping) -> str:
    """Return what the numbers of both tables are, a sentence or two."""
    found = content["black_box"]
    return (
        f"Accuracy of all images / of the {found['all_correct']:,} that every network here "
        "classifies correctly when clean. Worst: the images that are classified correctly whatever "
        "the source."
    )


def marked(content: Mapping, target: str) -> dict[str, list[str]]:
    """Return the sources of a target by what they are to it, the nearest first."""
    found: dict[str, list[str]] = {mark: [] for mark in MARKS}
    for record in content["black_box"]["marks"]:
        if record["target"] == target:
            member = f" ({record['member']})" if record["member"] else ""
            found[record["mark"]].append(record["source"] + member)
    return {mark: sources for mark, sources in found.items() if sources}


def of_target(content: Mapping, target: str) -> tuple[list[str], list[list[str]]]:
    """Return headings and rows of a target: a column a source with its mark, then the worst.

    A source that has the target's own gradients in it stands in brackets.
    """
    found = content["black_box"]
    marks = {r["source"]: r["mark"] for r in found["marks"] if r["target"] == target}
    rows: dict[tuple, dict[str, str]] = {}
    for record in (r for r in found["results"] if r["target"] == target):
        cells = rows.setdefault((record["attack"], record["epsilon"]), {})
        inside = record["mark"] == ITSELF
        if record["mark"] != NO_SOURCE:
            cells[record["source"]] = f"({_pair(record)})" if inside else _pair(record)
    for record in (r for r in found["worst"] if r["target"] == target):
        key = record["attack"] or EVERY, record["epsilon"]
        rows.setdefault(key, {})[WORST] = _pair(record)
    lines = [
        [attack, f"{epsilon:g}", *(cells.get(name, "") for name in (*marks, WORST))]
        for (attack, epsilon), cells in rows.items()
    ]
    headings = [f"{source} ({mark})" for source, mark in marks.items()]
    return ["attack", "epsilon", *headings, WORST], lines


def worst_of_all(content: Mapping) -> tuple[list[str], list[list[str]]]:
    """Return headings and rows of the images that stand whatever the source: a column a target."""
    targets = list(dict.fromkeys(r["target"] for r in content["black_box"]["results"]))
    rows: dict[tuple, dict[str, str]] = {}
    for record in sorted(content["black_box"]["worst"], key=lambda r: r["attack"] is None):
        key = record["attack"] or EVERY, record["epsilon"]
        rows.setdefault(key, {})[record["target"]] = _pair(record)
    lines = [
        [attack, f"{epsilon:g}", *(cells.get(target, "") for target in targets)]
        for (attack, epsilon), cells in rows.items()
    ]
    return ["attack", "epsilon", *targets], lines


def _pair(record: Mapping) -> str:
    among = record["all_correct"]["accuracy"]
    return f"{record['accuracy']:.1f} / " + ("none" if among is None else f"{among:.1f}")
