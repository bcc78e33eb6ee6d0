"""Ours: the numbers that reports of bin/evaluate hold, and the networks that runs do.

Nothing here needs to know which calls have made a report: a number is found by the names of its
networks, its attack and its epsilon. No TensorFlow.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from types import MappingProxyType
from typing import NamedTuple

import msgspec

from cascade_keras.attacks.specs import in_words
from cascade_keras.data.specs import DATASETS
from cascade_keras.errors import InputError
from cascade_keras.evaluation.checklist import FAIL
from cascade_keras.files import expand
from cascade_keras.recorded import read_config
from cascade_keras.records import Count, Epsilon, Index, OpenRecord, PerCent, Text, Values, read
from cascade_keras.reproduction.outcomes import Outcome
from cascade_keras.reproduction.page_records import Network, Trained
from cascade_keras.reproduction.published import CLEAN, Cell
from cascade_keras.runs.run import Run

NameOf = Callable[[str, int], str]  # (network of the paper, seed) -> the run that stands for it
Places = Mapping[str, str | os.PathLike]  # of runs, by their names


# What is read of a report.


class _Result(OpenRecord):
    target: Text
    source: Text | None
    attack: Text
    epsilon: Epsilon
    correct: Index
    examples: Count
    accuracy: PerCent
    options: Values


class _Worst(OpenRecord):
    target: Text
    attack: Text | None
    epsilon: Epsilon
    examples: Count
    accuracy: PerCent
    cells: Count


class _BlackBox(OpenRecord):
    worst: list[_Worst]


class Measured(OpenRecord):
    """A network, as a report has it."""

    name: Text
    weights_hash: Text
    recipe: Values


class _Item(OpenRecord):
    target: Text
    title: Text
    verdict: Text
    text: Text


class _Report(OpenRecord):
    dataset: Text
    results: list[_Result]
    networks: list[Measured]
    sources: list[Text]
    black_box: _BlackBox | None = None
    checklist: list[_Item] = msgspec.field(default_factory=list)


# What all of them hold.


class Counted(NamedTuple):
    """A number of a report."""

    value: float
    examples: int
    report: str
    search: str | None = None  # of a minimal epsilon


class Reports:
    """The numbers of several reports.

    Args:
        reports: their directories; those that are not finished count as not there.
        dataset: that all of them are of.
        name_of: which run stands for a network of the paper.

    Attributes:
        networks: by name.
        failed: items of the checklists that failed, by the network's name.
        name_of: as given.

    Raises:
        InputError: a report cannot be read, is of other data, or of another network of the same
            name.
    """

    def __init__(self, reports: Iterable[str | os.PathLike], dataset: str, name_of: NameOf):
        self.name_of = name_of
        self.networks: dict[str, Measured] = {}
        self.failed: dict[str, dict[str, str]] = {}
        self._results: dict[tuple, Counted] = {}
        self._worst: dict[tuple, Counted] = {}
        self._options: dict[str, dict[str, None]] = {}
        for folder in map(expand, reports):
            file = folder / "report.json"
            if not file.exists():
                continue
            content = read(file, _Report, "run its command again")
            if content.dataset != dataset:
                raise InputError(f"{folder} is of {content.dataset}, not of {dataset}", "dataset")
            self._add(content, folder.name)

    def _add(self, content: _Report, report: str) -> None:
        for network in content.networks:
            known = self.networks.setdefault(network.name, network)
            if known.weights_hash != network.weights_hash:
                raise InputError(
                    f"{report} has another network of the name {network.name} than the reports "
                    "before it; measure it again"
                )
        for result in content.results:
            key = (result.target, result.source, result.attack, round(result.epsilon, 6))
            search = result.options.get("search")
            _keep(self._results, key, Counted(result.accuracy, result.examples, report, search))
            if result.options:
                said = in_words(result.options)
                self._options.setdefault(result.attack, {})[said] = None
        for worst in content.black_box.worst if content.black_box else ():
            # A source that is the target itself is left out of it.
            sources = frozenset(content.sources) - {worst.target}
            if worst.cells == len(sources):
                key = (worst.target, sources, worst.attack, round(worst.epsilon, 6))
                _keep(self._worst, key, Counted(worst.accuracy, worst.examples, report))
        for item in content.checklist:
            if item.verdict == FAIL:
                self.failed.setdefault(item.target, {})[item.title] = item.text

    def options(self) -> dict[str, str]:
        """Return the options of attacks that have any, in words."""
        return {attack: "; or ".join(said) for attack, said in self._options.items()}

    def count(self, cell: Cell, seed: int) -> Counted | None:
        """Return the number of a cell, None where it is not there."""
        target = self.name_of(cell.network, seed)
        sources = [self.name_of(source, seed) for source in cell.sources]
        at = cell.attack, round(cell.epsilon, 6)
        if cell.each_image:
            return self._worst.get((target, frozenset(sources), *at))
        if not sources:
            return self._results.get((target, None if cell.attack == CLEAN else target, *at))
        found = [self._results.get((target, source, *at)) for source in sources]
        if None in found:
            return None
        lowest = min(found, key=lambda count: count.value)
        return lowest._replace(examples=min(count.examples for count in found))


def _keep(counts: dict[tuple, Counted], key: tuple, count: Counted) -> None:
    """Add a number, unless there is one of as many images."""
    if key not in counts or counts[key].examples < count.examples:
        counts[key] = count


# Networks.


def _layers(model: object) -> int | None:
    """Return the layers of a ResNet by its name: ``resnet20``."""
    found = re.match(r"resnet(\d+)", model) if isinstance(model, str) else None
    return int(found[1]) if found else None


class Networks:
    """The networks that stand for those of the paper.

    Args:
        seeds: of each.
        name_of: their names.
        runs: where they are, of those that are known.
        measured: those that reports have.
        lost: those that could not be trained, by the names of their runs.
    """

    def __init__(
        self,
        seeds: Sequence[int],
        name_of: NameOf,
        runs: Places | None,
        measured: Mapping[str, Measured],
        lost: Mapping[str, Outcome] = MappingProxyType({}),
    ):
        self._seeds, self._name_of = seeds, name_of
        self._places = {name: expand(path) for name, path in (runs or {}).items()}
        self._measured, self._lost = measured, lost

    def network(self, network: str, dataset: str) -> Network:
        """Return a network of all seeds."""
        found = (self._trained(network, seed) for seed in self._seeds)
        trained = [one for one in found if one is not None]
        steps = [one.steps for one in trained]
        depths = {_layers(one.model) for one in trained}
        schedule = DATASETS[dataset].steps
        names = (self._name_of(network, seed) for seed in self._seeds)
        states = [self._lost[name].words() for name in names if name in self._lost]
        return Network(
            network=network,
            dataset=dataset,
            depth=depths.pop() if len(depths) == 1 else None,
            published_depth=int(re.match(r"R(\d+)", network)[1]),
            schedule=schedule,
            share=100 * min(steps) / schedule if steps and None not in steps else None,
            trained=trained,
            state="; ".join(dict.fromkeys(states)) or None,
        )

    def _trained(self, network: str, seed: int) -> Trained | None:
        """Return a network that is finished, None of one that is not."""
        name = self._name_of(network, seed)
        measured, run = self._measured.get(name), self._places.get(name)
        finished = run is not None and Run(run).finished
        if measured is None and not finished:
            return None
        recipe = read_config(run).flags if finished else {}
        recipe = {**recipe, **(measured.recipe if measured else {})}
        return Trained(
            seed=seed,
            name=name,
            model=recipe.get("model"),
            loss=recipe.get("loss"),
            steps=recipe.get("steps"),
            weights_hash=measured.weights_hash if measured else None,
        )

    def missing(self, networks: Sequence[str]) -> Iterator[str]:
        """Yield which networks are not there, a sentence for each reason."""
        states: dict[str, list[str]] = {}
        for seed in self._seeds:
            for network in networks:
                name = self._name_of(network, seed)
                state = None if name in self._measured else self._state(name)
                if state:
                    states.setdefault(state, []).append(name)
        for state, names in states.items():
            yield f"{state}: {', '.join(dict.fromkeys(names))}."

    def _state(self, name: str) -> str | None:
        if name in self._lost:
            words = self._lost[name].words().rstrip(".")
            return words[0].upper() + words[1:]
        run = self._places.get(name)
        if run is None or not run.exists():
            return "Not trained"
        if not Run(run).finished:
            return "Training is not finished"
        return "In no report" if self._measured else None
