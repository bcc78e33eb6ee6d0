"""A page for each table and figure: what was published, ours beside it, and what both are of.

    page = table_page(2, ["reproduction/reports/table2-cw-s0", ...], seeds=(0, 1))
    write_page(page, "reproduction")

writes ``table2.json``, ``table2.csv`` and ``table2.md``. Ours are read from the reports of
bin/evaluate by the names of their networks, whichever calls have made them; of the same number in
several reports the one of more images counts. What is not there yet is said to be missing. The same
reports give the same files to the last byte. No TensorFlow.
"""

from __future__ import annotations

import csv
import math
import os
import pathlib
import re
import statistics
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, NamedTuple

import msgspec

from cascade_keras import recipes
from cascade_keras.attacks.specs import in_words
from cascade_keras.data.specs import DATASETS
from cascade_keras.errors import InputError
from cascade_keras.evaluation.checklist import FAIL
from cascade_keras.evaluation.tables import plain, table
from cascade_keras.files import expand, write_atomically, write_json, write_text
from cascade_keras.recorded import METRICS, read_config
from cascade_keras.records import (
    Count,
    Epsilon,
    Index,
    OpenRecord,
    PerCent,
    Record,
    Text,
    Values,
    read,
)
from cascade_keras.reproduction.measurements import (
    call_of,
    figure_measurements,
    figure_of,
    table_of,
)
from cascade_keras.reproduction.published import CLEAN, COUNT, Cell, Part, Table

if TYPE_CHECKING:
    from cascade_keras.reproduction.jobs import Job
    from cascade_keras.reproduction.plan import Plan

FORMAT = 1
MOST_POINTS = 3.0  # a larger difference has to be explained
IMAGES_OF_COUNTS = 100  # the paper counts of so many
PUBLISHED_SEARCH = "grid"  # of Carlini and Wagner's attack
_CALLED = {"mnist": "MNIST", "cifar10": "CIFAR-10", "cifar100": "CIFAR-100"}
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


class _Measured(OpenRecord):
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
    networks: list[_Measured]
    sources: list[Text]
    black_box: _BlackBox | None = None
    checklist: list[_Item] = msgspec.field(default_factory=list)


# What is written.


class Value(Record):
    """One of our numbers.

    Attributes:
        seed: of the networks.
        value: in per cent; a count is per 100 images.
        examples: of how many images.
        report: the name of its folder.
    """

    seed: Index
    value: float
    examples: Count
    report: Text


class Number(Record):
    """One cell of the table.

    Attributes:
        network, attack, epsilon, sources, kind, each_image: as of ``published.Cell``.
        in_paper: whether the paper has such a number.
        published: it, None where it could not be read.
        values: ours, one a seed.
        ours: their mean.
        spread: their standard deviation (of a sample), of two and more.
        difference: ours minus the published one.
        comparable: whether it is the difference of the same thing.
        why_not: what else it is of, where it is not.
    """

    network: Text
    attack: Text
    epsilon: Epsilon
    sources: list[Text]
    kind: Text
    each_image: bool
    in_paper: bool
    published: float | None
    values: list[Value]
    ours: float | None
    spread: float | None
    difference: float | None
    comparable: bool
    why_not: list[Text]


class Trained(Record):
    """A network of one seed, as far as its training is recorded."""

    seed: Index
    name: Text
    model: Text | None
    loss: Text | None
    steps: Count | None
    weights_hash: Text | None


class Network(Record):
    """A network of a table or figure.

    Attributes:
        network: its name in the paper.
        dataset: that it learned.
        depth: its layers, ``published_depth`` those of the paper's.
        schedule: the steps of the published schedule; of a dataset that stands in, its own.
        share: in per cent of it, the least of all seeds.
        trained: one a seed.
    """

    network: Text
    dataset: Text
    depth: Count | None
    published_depth: Count
    schedule: Count
    share: float | None
    trained: list[Trained]


class Failed(Record):
    """An item of a report's checklist that failed."""

    network: Text
    seed: Index
    title: Text
    text: Text


class TablePage(Record):
    """``tableN.json``.

    Attributes:
        format: of the file.
        table, title: as in the paper.
        dataset: that the networks learned, ``published_dataset`` that of the paper.
        seeds: that were asked for.
        numbers: row by row.
        networks: targets and sources.
        attacks: options of those that have any.
        missing: what is not there, a sentence each.
        failed: of the checklists.
        notes: a sentence or two each.
        commands: that made it.
    """

    format: Count
    table: Count
    title: Text
    dataset: Text
    published_dataset: Text
    seeds: list[Index]
    numbers: list[Number]
    networks: list[Network]
    attacks: dict[str, Text]
    missing: list[Text]
    failed: list[Failed]
    notes: list[Text]
    commands: list[Text]


class Picture(Record):
    """One picture of a figure.

    Attributes:
        name: of the call that draws it, ``Measurement.name``.
        seed: of its networks.
        networks: names in the paper.
        dataset: that they learned, ``published_dataset`` that of the paper.
        file: of the picture, from the page's directory; None where it is not there.
        caption: what bin/analyze wrote beside it.
    """

    name: Text
    seed: Index
    networks: list[Text]
    dataset: Text
    published_dataset: Text
    file: Text | None
    caption: str


class FigurePage(Record):
    """``figureN.json``.

    Attributes:
        format: of the file.
        figure: its number in the paper.
        kind: of ``bin/analyze --figure``.
        shows: what is to be seen in the published one.
        note: what is certain of it.
        seeds, networks, missing, commands: as of a ``TablePage``.
        pictures: ours.
    """

    format: Count
    figure: Count
    kind: Text
    shows: Text
    note: str
    seeds: list[Index]
    pictures: list[Picture]
    networks: list[Network]
    missing: list[Text]
    commands: list[Text]


def table_page(
    number: int,
    reports: Iterable[str | os.PathLike],
    *,
    seeds: Sequence[int] = (0,),
    dataset: str | None = None,
    name_of: NameOf = recipes.folder,
    runs: Places | None = None,
    commands: Sequence[str] = (),
) -> TablePage:
    """Return a table's page.

    Args:
        number: of the table.
        reports: directories of bin/evaluate's; those that are not finished count as not there.
        seeds: of the networks.
        dataset: what the networks learned, where that is not the table's own.
        name_of: which run stands for a network.
        runs: where runs are: they say how far a network is that no report has, and how long it was
            trained where a report does not.
        commands: shown at the end.

    Raises:
        InputError: there is no such table; or a report cannot be read, is of other data, or of
            another network of the same name.
    """
    of = table_of(number)
    dataset = dataset or of.dataset
    there = _There([expand(report) for report in reports], dataset, name_of)
    ours = _Ours(seeds, name_of, _expanded(runs), there.networks)
    networks = [ours.network(name, dataset) for name in of.networks]
    numbers = [_number(cell, of, seeds, dataset, there, networks) for cell in of.cells]
    return TablePage(
        format=FORMAT,
        table=number,
        title=of.title,
        dataset=dataset,
        published_dataset=of.dataset,
        seeds=list(seeds),
        numbers=numbers,
        networks=networks,
        attacks=there.options(),
        missing=[*ours.missing(of.networks), *_unmeasured(numbers, seeds, there)],
        failed=_failed(of, seeds, there),
        notes=list(of.notes),
        commands=list(commands),
    )


def figure_page(
    number: int,
    drawn: Mapping[str, str | os.PathLike],
    *,
    output: str | os.PathLike,
    seeds: Sequence[int] = (0,),
    dataset: str | None = None,
    name_of: NameOf = recipes.folder,
    runs: Places | None = None,
    commands: Sequence[str] = (),
) -> FigurePage:
    """Return a figure's page.

    Args:
        number: of the figure.
        drawn: directories of bin/analyze's by the names of the calls, ``Measurement.name``.
        output: the page's directory, from which pictures are named.
        seeds, dataset, name_of, runs, commands: as of ``table_page``.

    Raises:
        InputError: there is no such figure, or a run cannot be read.
    """
    of = figure_of(number)
    ours = _Ours(seeds, name_of, _expanded(runs), {})
    datasets = {name: dataset or part.dataset for part in of.parts for name in part.networks}
    pictures = [
        _picture(of.kind, part, call.name, seed, drawn, expand(output), dataset)
        for seed in seeds
        for part, call in zip(of.parts, figure_measurements(number, seed), strict=True)
    ]
    left = [picture.name for picture in pictures if picture.file is None]
    return FigurePage(
        format=FORMAT,
        figure=number,
        kind=of.kind,
        shows=of.shows,
        note=of.note,
        seeds=list(seeds),
        pictures=pictures,
        networks=[ours.network(name, own) for name, own in datasets.items()],
        missing=[
            *ours.missing(of.networks),
            *([f"Not drawn: {', '.join(left)}."] if left else []),
        ],
        commands=list(commands),
    )


def _picture(
    kind: str,
    part: Part,
    call: str,
    seed: int,
    drawn: Mapping[str, str | os.PathLike],
    output: pathlib.Path,
    dataset: str | None,
) -> Picture:
    folder = expand(drawn[call]) if call in drawn else None
    there = folder is not None and (folder / f"{kind}.png").exists()
    return Picture(
        name=call,
        seed=seed,
        networks=list(part.networks),
        dataset=dataset or part.dataset,
        published_dataset=part.dataset,
        file=os.path.relpath(folder / f"{kind}.png", output) if there else None,
        caption=(folder / f"{kind}.txt").read_text(encoding="utf-8") if there else "",
    )


def write_page(page: TablePage | FigurePage, output: str | os.PathLike) -> pathlib.Path:
    """Write a page: tableN.csv, .md and, last, .json; of a figure no .csv.

    Args:
        page: of ``table_page`` or ``figure_page``.
        output: the directory; made where it is not there.

    Returns:
        The Markdown page.
    """
    folder = expand(output)
    folder.mkdir(parents=True, exist_ok=True)
    table = isinstance(page, TablePage)
    stem = f"table{page.table}" if table else f"figure{page.figure}"
    if table:
        _write_csv(folder / f"{stem}.csv", page)
    write_text(folder / f"{stem}.md", markdown(page) if table else figure_markdown(page))
    write_json(folder / f"{stem}.json", msgspec.to_builtins(page))
    return folder / f"{stem}.md"


def read_page(file: str | os.PathLike, kind: type = TablePage) -> TablePage | FigurePage:
    """Return what a tableN.json, or with ``FigurePage`` a figureN.json, holds.

    Raises:
        FileNotFoundError: there is none.
        InputError: it cannot be read.
    """
    return read(expand(file), kind, "make it again")


def write(job: Job, plan: Plan) -> pathlib.Path:
    """Write the page of a plan's job, and return the Markdown page."""
    chosen = plan.settings
    number, output = job.number, chosen.output
    figure = number if job.settings.figure else None
    of = figure_of(number) if figure else table_of(number)
    asked = {
        "seeds": chosen.seeds,
        "dataset": chosen.dataset,
        "name_of": lambda name, seed: plan.run_of(name, seed).name,
        "runs": {
            plan.run_of(name, seed).name: plan.run_of(name, seed)
            for name in of.networks
            for seed in chosen.seeds
        },
        "commands": [" ".join(each.command) for each in (job, *_before(job, plan))],
    }
    calls = {name: plan.job(name).result.parent for name in job.needs}
    if figure:
        return write_page(figure_page(number, calls, output=output, **asked), output)
    return write_page(table_page(number, calls.values(), **asked), output)


def _before(job: Job, plan: Plan) -> list[Job]:
    """Return all jobs that one needs, in the plan's order."""
    needed, new = set(), [job.name]
    while new:
        needs = {need for name in new for need in plan.job(name).needs}
        new = [name for name in needs if name not in needed]
        needed.update(new)
    return [each for each in plan.jobs if each.name in needed]


def _expanded(places: Places | None) -> dict[str, pathlib.Path]:
    return {name: expand(path) for name, path in (places or {}).items()}


# What the reports hold.


class _Count(NamedTuple):
    """A number of a report."""

    value: float
    examples: int
    report: str
    search: str | None = None  # of a minimal epsilon


class _There:
    """The numbers of several reports.

    Attributes:
        networks: by name.
        failed: items of the checklists that failed, by the network's name.
        name_of: which run stands for a network.
    """

    def __init__(self, reports: Sequence[pathlib.Path], dataset: str, name_of: NameOf):
        self.name_of = name_of
        self.networks: dict[str, _Measured] = {}
        self.failed: dict[str, dict[str, str]] = {}
        self._results: dict[tuple, _Count] = {}
        self._worst: dict[tuple, _Count] = {}
        self._options: dict[str, dict[str, None]] = {}
        for folder in reports:
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
            _keep(self._results, key, _Count(result.accuracy, result.examples, report, search))
            if result.options:
                said = in_words(result.options)
                self._options.setdefault(result.attack, {})[said] = None
        for worst in content.black_box.worst if content.black_box else ():
            # A source that is the target itself is left out of it.
            sources = frozenset(content.sources) - {worst.target}
            if worst.cells == len(sources):
                key = (worst.target, sources, worst.attack, round(worst.epsilon, 6))
                _keep(self._worst, key, _Count(worst.accuracy, worst.examples, report))
        for item in content.checklist:
            if item.verdict == FAIL:
                self.failed.setdefault(item.target, {})[item.title] = item.text

    def options(self) -> dict[str, str]:
        """Return the options of attacks that have any, in words."""
        return {attack: "; or ".join(said) for attack, said in self._options.items()}

    def count(self, cell: Cell, seed: int) -> _Count | None:
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


def _keep(counts: dict[tuple, _Count], key: tuple, count: _Count) -> None:
    """Add a number, unless there is one of as many images."""
    if key not in counts or counts[key].examples < count.examples:
        counts[key] = count


# Networks.


def _layers(model: object) -> int | None:
    """Return the layers of a ResNet by its name: ``resnet20``."""
    found = re.match(r"resnet(\d+)", model) if isinstance(model, str) else None
    return int(found[1]) if found else None


class _Ours:
    """The networks that stand for those of the paper.

    Args:
        seeds: of each.
        name_of: their names.
        places: where their runs are, of those that are known.
        measured: those that reports have.
    """

    def __init__(
        self,
        seeds: Sequence[int],
        name_of: NameOf,
        places: Mapping[str, pathlib.Path],
        measured: Mapping[str, _Measured],
    ):
        self._seeds, self._name_of = seeds, name_of
        self._places, self._measured = places, measured

    def network(self, network: str, dataset: str) -> Network:
        """Return a network of all seeds."""
        found = (self._trained(network, seed) for seed in self._seeds)
        trained = [one for one in found if one is not None]
        steps = [one.steps for one in trained]
        depths = {_layers(one.model) for one in trained}
        schedule = DATASETS[dataset].steps
        return Network(
            network=network,
            dataset=dataset,
            depth=depths.pop() if len(depths) == 1 else None,
            published_depth=int(re.match(r"R(\d+)", network)[1]),
            schedule=schedule,
            share=100 * min(steps) / schedule if steps and None not in steps else None,
            trained=trained,
        )

    def _trained(self, network: str, seed: int) -> Trained | None:
        """Return a network that is finished, None of one that is not."""
        name = self._name_of(network, seed)
        measured, run = self._measured.get(name), self._places.get(name)
        finished = run is not None and (run / METRICS).exists()
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
        run = self._places.get(name)
        if run is None or not run.exists():
            return "Not trained"
        if not (run / METRICS).exists():
            return "Training is not finished"
        return "In no report" if self._measured else None


# Numbers.


def _number(
    cell: Cell,
    of: Table,
    seeds: Sequence[int],
    dataset: str,
    there: _There,
    networks: Sequence[Network],
) -> Number:
    counts = {seed: there.count(cell, seed) for seed in seeds}
    values = [
        Value(seed=seed, value=count.value, examples=count.examples, report=count.report)
        for seed, count in counts.items()
        if count is not None
    ]
    ours = [value.value for value in values]
    mean = statistics.fmean(ours) if ours else None
    searches = {count.search for count in counts.values() if count is not None}
    others = _others(cell, of, dataset, values, searches, networks) if ours else []
    compared = ours and cell.value is not None
    return Number(
        network=cell.network,
        attack=cell.attack,
        epsilon=cell.epsilon,
        sources=list(cell.sources),
        kind=cell.kind,
        each_image=cell.each_image,
        in_paper=cell.published,
        published=cell.value,
        values=values,
        ours=mean,
        spread=statistics.stdev(ours) if len(ours) > 1 else None,
        difference=mean - cell.value if compared else None,
        comparable=bool(compared) and not others,
        why_not=others,
    )


def _others(
    cell: Cell,
    of: Table,
    dataset: str,
    values: Sequence[Value],
    searches: Collection[str | None],
    networks: Sequence[Network],
) -> list[str]:
    """Return what stands in for what the published number is of."""
    found = []
    if dataset != of.dataset:
        found.append(f"{called(dataset)} for {called(of.dataset)}")
    for network in networks:
        if network.network not in (cell.network, *cell.sources):
            continue
        if network.depth is None:
            found.append(f"{network.network}: its layers are not recorded")
        elif network.depth != network.published_depth:
            found.append(f"{network.depth} layers for {network.published_depth}")
    counted = {value.examples for value in values}
    if cell.kind == COUNT and counted != {IMAGES_OF_COUNTS}:
        number = " and ".join(map(str, sorted(counted)))
        found.append(f"{number} images for {IMAGES_OF_COUNTS}")
    if cell.kind == COUNT and searches != {PUBLISHED_SEARCH}:
        found.append("minimal epsilons by descent, which finds smaller ones, for the grid search")
    return list(dict.fromkeys(found))


# What is missing, and what failed.


def _unmeasured(numbers: Sequence[Number], seeds: Sequence[int], there: _There) -> Iterator[str]:
    """Yield what no report has of networks that are there."""
    left: dict[tuple[int, str], list[str]] = {}
    for number in numbers:
        measured = {value.seed for value in number.values}
        for seed in seeds:
            needed = [there.name_of(name, seed) for name in (number.network, *number.sources)]
            if seed not in measured and all(name in there.networks for name in needed):
                left.setdefault((seed, call_of(number.attack)), []).append(number.network)
    for (seed, call), names in left.items():
        yield (
            f"Not measured ({call.replace('_', ' ')}) of seed {seed}: "
            f"{', '.join(dict.fromkeys(names))}."
        )


def _failed(of: Table, seeds: Sequence[int], there: _There) -> list[Failed]:
    return [
        Failed(network=network, seed=seed, title=title, text=text)
        for network in of.targets
        for seed in seeds
        for title, text in there.failed.get(there.name_of(network, seed), {}).items()
    ]


# CSV.

FIELDS = (
    "table", "network", "attack", "epsilon", "sources", "kind", "each_image", "published", "ours",
    "difference", "spread", "seeds", "examples", "comparable",
)  # fmt: skip


def _write_csv(file: pathlib.Path, found: TablePage) -> None:
    rows = [
        {
            "table": found.table,
            **{name: getattr(number, name) for name in FIELDS if hasattr(number, name)},
            "sources": " ".join(number.sources),
            "seeds": " ".join(str(value.seed) for value in number.values),
            "examples": _examples(number),
        }
        for number in found.numbers
    ]

    def fill(temporary: pathlib.Path) -> None:
        with open(temporary, "w", newline="", encoding="utf-8") as opened:
            writer = csv.DictWriter(opened, FIELDS)
            writer.writeheader()
            writer.writerows(rows)

    write_atomically(file, fill)


# Markdown.


def called(dataset: str) -> str:
    """Return a dataset's name as it is printed."""
    return _CALLED.get(dataset, dataset)


def markdown(found: TablePage) -> str:
    """Return a table's page as Markdown."""
    parts = [
        f"# Table {found.table}: {called(found.published_dataset)}, {found.title}",
        *_other_data({(found.dataset, found.published_dataset)}),
        *_other_networks(found.networks),
        _at_a_glance(found),
        _in_short(found),
        *_missing(found),
        _numbers(found),
        _networks(found.networks),
        *_failures(found),
        *_notes(found),
        *_made_by(found.commands),
    ]
    return "\n\n".join(parts) + "\n"


def figure_markdown(found: FigurePage) -> str:
    """Return a figure's page as Markdown."""
    parts = [
        f"# Figure {found.figure}: {found.kind}",
        *_other_data({(each.dataset, each.published_dataset) for each in found.pictures}),
        *_other_networks(found.networks),
        f"**Published:** {plain(found.shows)}" + (f" {plain(found.note)}" if found.note else ""),
        *_missing(found),
    ]
    for picture in found.pictures:
        networks = plain(", ".join(picture.networks))
        parts.append(f"## {networks}, seed {picture.seed}")
        if picture.file is not None:
            parts.append(f"![{found.kind} of {networks}]({picture.file})")
            parts.append("\n".join(["```", picture.caption.strip(), "```"]))
    parts += [_networks(found.networks), *_made_by(found.commands)]
    return "\n\n".join(parts) + "\n"


def _other_data(datasets: Iterable[tuple[str, str]]) -> Iterator[str]:
    """Yield which data were replaced, each (ours, published)."""
    for dataset, published in sorted(datasets):
        if dataset != published:
            yield (
                f"> **{called(dataset)} stand in for {called(published)}**, at the epsilons of the "
                "paper. What is seen shows that the programs work, not whether the paper "
                "reproduces."
            )


def _other_networks(networks: Sequence[Network]) -> Iterator[str]:
    """Yield which networks were replaced, or trained for less."""
    replaced: dict[tuple[int, int], list[str]] = {}
    for network in networks:
        if network.depth not in (None, network.published_depth):
            depths = network.depth, network.published_depth
            replaced.setdefault(depths, []).append(network.network)
    for (depth, published), names in replaced.items():
        yield (
            f"> **{depth} layers stand in for {published}** in {plain(', '.join(names))}: these "
            "are other networks than the paper's."
        )
    shares = [network.share for network in networks if network.share is not None]
    if shares and min(shares) < 100:
        yield (
            f"> **Trained for {_range(shares)} % of the schedule**: the table of networks below "
            "says which for how long."
        )


def _range(values: Sequence[float]) -> str:
    low, high = f"{min(values):.3g}", f"{max(values):.3g}"
    return low if low == high else f"{low} to {high}"


def _at_a_glance(found: TablePage) -> str:
    """Return the table turned over: a row a column of the paper's, as networks are fewer."""
    networks = list(dict.fromkeys(number.network for number in found.numbers))
    columns: dict[tuple, dict[str, Number]] = {}
    for number in found.numbers:
        key = number.attack, number.epsilon, tuple(number.sources), number.each_image
        columns.setdefault(key, {})[number.network] = number
    rows = [
        [_what(next(iter(cells.values()))), *(_pair(cells.get(name)) for name in networks)]
        for cells in columns.values()
    ]
    explained = (
        "Ours, and the published number in brackets. Accuracies are in per cent, epsilons in "
        "0..255; cw_linf: how many of 100 images need more. -: not there; ?: could not be read."
    )
    return f"{explained}\n\n{table(['', *networks], rows)}"


def _what(number: Number) -> str:
    """Return what is done to a network: ``step_ll 76.5``."""
    if number.attack == CLEAN:
        return CLEAN
    sign = " > " if number.kind == COUNT else " "
    text = f"{number.attack}{sign}{number.epsilon:g}"
    if number.each_image:
        return f"{text}, each image's worst of {len(number.sources)}"
    if len(number.sources) > 1:
        return f"{text}, lowest of {_several(number.sources)}"
    return f"{text} from {number.sources[0]}" if number.sources else text


def _several(sources: Sequence[str]) -> str:
    return " and ".join(sources) if len(sources) < 3 else str(len(sources))


def _pair(number: Number | None) -> str:
    if number is None:
        return ""
    ours = "-" if number.ours is None else _shown(number, number.ours)
    return f"{ours} ({_published(number)})" if number.in_paper else ours


def _published(number: Number) -> str:
    return "?" if number.published is None else _shown(number, number.published)


def _shown(number: Number, value: float) -> str:
    whole = number.kind == COUNT and value == round(value)
    return f"{value:.0f}" if whole else f"{value:.1f}"


def _in_short(found: TablePage) -> str:
    """Return how near ours are, where both are of the same thing."""
    published = [number for number in found.numbers if number.published is not None]
    compared = [number for number in published if number.comparable]
    there = sum(number.ours is not None for number in published)
    text = f"Of {len(published)} published numbers {there} have ours beside them"
    if not compared:
        return f"{text}; none can be compared." if there else f"{text}."
    far = [number for number in compared if abs(number.difference) > MOST_POINTS]
    text += (
        f", {len(compared)} of the same thing. {len(compared) - len(far)} of these are within "
        f"{MOST_POINTS:g} points"
    )
    if not far:
        return f"{text}."
    lines = [
        f"- {plain(number.network)}, {plain(_what(number))}: {_difference(number)} "
        + ("images" if number.kind == COUNT else "points")
        for number in far
    ]
    return "\n".join([f"{text}; the others are", "", *lines])


def _difference(number: Number) -> str:
    if number.difference is None:
        return ""
    return f"{number.difference:+.1f}" + ("" if number.comparable else " \\*")


def _missing(found: TablePage | FigurePage) -> Iterator[str]:
    if found.missing:
        yield "**Missing.** " + " ".join(map(plain, found.missing))


def _examples(number: Number) -> str:
    return " ".join(dict.fromkeys(str(value.examples) for value in number.values))


def standard_error(number: Number) -> float | None:
    """Return the standard error of our mean, in points, that so few images leave.

    All seeds are measured on the same images, so that more seeds do not lower it.
    """
    if number.ours is None:
        return None
    share = number.ours / 100
    images = min(value.examples for value in number.values)
    return 100 * math.sqrt(max(share * (1 - share), 0) / images)


def _numbers(found: TablePage) -> str:
    rows = [
        [
            number.network,
            _what(number),
            _published(number) if number.in_paper else "",
            "-" if number.ours is None else _shown(number, number.ours),
            _difference(number),
            "" if number.spread is None else f"{number.spread:.1f}",
            "" if number.ours is None else f"{standard_error(number):.1f}",
            len(number.values) or "",
            _examples(number),
        ]
        for number in found.numbers
    ]
    headings = ["network", "images", "published", "ours", "difference", "spread", "s.e.", "seeds",
                "n"]  # fmt: skip
    parts = [
        "## Every number",
        "Ours is the mean over the seeds, spread their standard deviation; s.e. is the standard "
        "error of one network's number from n images.",
        table(headings, rows, left=2),
    ]
    others = list(dict.fromkeys(why for number in found.numbers for why in number.why_not))
    if others:
        parts.append(f"\\* not a difference of the same thing: {plain('; '.join(others))}.")
    if found.attacks:
        said = "; ".join(f"{attack}: {options}" for attack, options in found.attacks.items())
        parts.append(f"Options: {plain(said)}.")
    return "\n\n".join(parts)


def _networks(networks: Sequence[Network]) -> str:
    rows = [
        [
            network.network,
            _listed(one.name.removesuffix(f"-s{one.seed}") for one in network.trained),
            _listed(one.model for one in network.trained),
            _listed(one.loss for one in network.trained),
            _listed(one.steps for one in network.trained),
            network.schedule,
            "" if network.share is None else f"{network.share:.3g}",
            _listed(one.seed for one in network.trained),
        ]
        for network in networks
    ]
    headings = ["network", "run", "model", "loss", "steps", "schedule", "share, %", "seeds"]
    return f"## Networks\n\n{table(headings, rows, left=4)}"


def _listed(items: Iterable[object]) -> str:
    return ", ".join(dict.fromkeys("?" if item is None else str(item) for item in items))


def _failures(found: TablePage) -> Iterator[str]:
    if found.failed:
        yield "## Checks that failed"
        yield (
            "Items of the reports' checklists that say FAIL; what they mean is in "
            "docs/reading_a_report.md."
        )
        yield "\n".join(
            f"- {plain(one.network)}, seed {one.seed}: {plain(one.title)}: {plain(one.text)}"
            for one in found.failed
        )


def _notes(found: TablePage) -> Iterator[str]:
    if found.notes:
        yield "## Notes"
        yield "\n".join(f"- {plain(note)}" for note in found.notes)


def _made_by(commands: Sequence[str]) -> Iterator[str]:
    if commands:
        yield "## Commands"
        yield "\n".join(["```", *commands, "```"])
