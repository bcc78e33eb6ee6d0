"""A page for each table and figure: what was published, ours beside it, and what both are of.

    page = table_page(2, ["reproduction/reports/table2-cw-s0", ...], seeds=(0, 1))
    write_page(page, "reproduction")

writes ``table2.json``, ``table2.csv`` and ``table2.md``. Ours are read from the reports of
bin/evaluate by the names of their networks, whichever calls have made them; of the same number in
several reports the one of more images counts. What is not there yet is said to be missing. The same
reports give the same files to the last byte. Where a job failed or a training diverged, its cells
say so. No TensorFlow.
"""

from __future__ import annotations

import os
import pathlib
import statistics
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from types import MappingProxyType
from typing import TYPE_CHECKING

import msgspec

from cascade_keras import recipes
from cascade_keras.files import expand, write_json, write_text
from cascade_keras.reproduction.measurements import (
    call_name,
    call_of,
    figure_measurements,
    figure_of,
    measurements,
    table_of,
)
from cascade_keras.reproduction.ours import NameOf, Networks, Places, Reports
from cascade_keras.reproduction.outcomes import Outcome
from cascade_keras.reproduction.page_records import (
    FORMAT,
    Failed,
    FigurePage,
    Network,
    Number,
    Picture,
    TablePage,
    Value,
)
from cascade_keras.reproduction.page_text import called, figure_markdown, markdown, write_csv
from cascade_keras.reproduction.published import COUNT, Cell, Part, Table

if TYPE_CHECKING:
    from cascade_keras.reproduction.jobs import Job
    from cascade_keras.reproduction.plan import Plan

IMAGES_OF_COUNTS = 100  # the paper counts of so many
PUBLISHED_SEARCH = "grid"  # of Carlini and Wagner's attack

Lost = Mapping[str, Outcome]  # why jobs have no result, by their names
NOTHING: Lost = MappingProxyType({})


def table_page(
    number: int,
    reports: Iterable[str | os.PathLike],
    *,
    seeds: Sequence[int] = (0,),
    dataset: str | None = None,
    name_of: NameOf = recipes.folder,
    runs: Places | None = None,
    lost: Lost = NOTHING,
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
        lost: why jobs have no result, by their names: runs, and calls of ``measurements``.
        commands: shown at the end.

    Raises:
        InputError: there is no such table; or a report cannot be read, is of other data, or of
            another network of the same name.
    """
    of = table_of(number)
    dataset = dataset or of.dataset
    there = Reports(reports, dataset, name_of)
    ours = Networks(seeds, name_of, runs, there.networks, lost)
    networks = [ours.network(name, dataset) for name in of.networks]
    numbers = [_number(cell, of, seeds, dataset, there, networks, lost) for cell in of.cells]
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
        missing=[
            *ours.missing(of.networks),
            *_unmeasured(numbers, seeds, there),
            *_calls(lost, [call.name for seed in seeds for call in measurements(number, seed)]),
        ],
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
    lost: Lost = NOTHING,
    commands: Sequence[str] = (),
) -> FigurePage:
    """Return a figure's page.

    Args:
        number: of the figure.
        drawn: directories of bin/analyze's by the names of the calls, ``Measurement.name``.
        output: the page's directory, from which pictures are named.
        seeds, dataset, name_of, runs, lost, commands: as of ``table_page``.

    Raises:
        InputError: there is no such figure, or a run cannot be read.
    """
    of = figure_of(number)
    ours = Networks(seeds, name_of, runs, {}, lost)
    datasets = {name: dataset or part.dataset for part in of.parts for name in part.networks}
    pictures = [
        _picture(of.kind, part, call.name, seed, drawn, expand(output), dataset, name_of, lost)
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
            *_calls(lost, left),
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
    name_of: NameOf,
    lost: Lost,
) -> Picture:
    folder = expand(drawn[call]) if call in drawn else None
    there = folder is not None and (folder / f"{kind}.png").exists()
    without = {name: lost.get(name_of(name, seed)) for name in part.networks}
    return Picture(
        name=call,
        seed=seed,
        networks=[name for name, outcome in without.items() if outcome is None],
        dataset=dataset or part.dataset,
        published_dataset=part.dataset,
        file=os.path.relpath(folder / f"{kind}.png", output) if there else None,
        caption=(folder / f"{kind}.txt").read_text(encoding="utf-8") if there else "",
        without=[f"{name}: {outcome.words()}" for name, outcome in without.items() if outcome],
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
        write_csv(folder / f"{stem}.csv", page)
    write_text(folder / f"{stem}.md", markdown(page) if table else figure_markdown(page))
    write_json(folder / f"{stem}.json", msgspec.to_builtins(page))
    return folder / f"{stem}.md"


def write(job: Job, plan: Plan) -> pathlib.Path:
    """Write the page of a plan's job, and return the Markdown page."""
    chosen = plan.settings
    number, output = job.number, chosen.output
    figure = number if job.settings.figure else None
    of = figure_of(number) if figure else table_of(number)
    seen: dict[str, Job | Outcome] = {}
    calls = {name: plan.now(name, seen=seen) for name in job.needs}
    lost = {name: found for name, found in seen.items() if isinstance(found, Outcome)}
    before = [seen.get(each.name, each) for each in _before(job, plan)]
    asked = {
        "seeds": chosen.seeds,
        "dataset": chosen.dataset,
        "name_of": lambda name, seed: plan.run_of(name, seed).name,
        "runs": {
            plan.run_of(name, seed).name: plan.run_of(name, seed)
            for name in of.networks
            for seed in chosen.seeds
        },
        "lost": lost,
        "commands": [" ".join(each.command) for each in (job, *before)],
    }
    made = {name: found.result.parent for name, found in calls.items() if name not in lost}
    if figure:
        return write_page(figure_page(number, made, output=output, **asked), output)
    return write_page(table_page(number, made.values(), **asked), output)


def _before(job: Job, plan: Plan) -> list[Job]:
    """Return all jobs that one needs, in the plan's order."""
    needed, new = set(), [job.name]
    while new:
        needs = {need for name in new for need in plan.job(name).needs}
        new = [name for name in needs if name not in needed]
        needed.update(new)
    return [each for each in plan.jobs if each.name in needed]


# Numbers.


def _number(
    cell: Cell,
    of: Table,
    seeds: Sequence[int],
    dataset: str,
    there: Reports,
    networks: Sequence[Network],
    lost: Lost,
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
        state=None if ours else _state(cell, of, seeds, there.name_of, lost),
    )


def _state(cell: Cell, of: Table, seeds: Sequence[int], name_of: NameOf, lost: Lost) -> str | None:
    """Return why there is no number of a cell, where a job failed or a training diverged."""
    for seed in seeds:
        own = name_of(cell.network, seed)
        call = call_name(of.number, call_of(cell.attack), seed)
        for name in (own, *(name_of(source, seed) for source in cell.sources), call):
            if name in lost:
                words = lost[name].words()
                return words if name in (own, call) else f"{name} {words}"
    return None


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


def _calls(lost: Lost, calls: Iterable[str]) -> Iterator[str]:
    """Yield why calls have no report or picture."""
    for name in calls:
        if name in lost:
            yield f"{name}: {lost[name].words().rstrip('.')}."


def _unmeasured(numbers: Sequence[Number], seeds: Sequence[int], there: Reports) -> Iterator[str]:
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


def _failed(of: Table, seeds: Sequence[int], there: Reports) -> list[Failed]:
    return [
        Failed(network=network, seed=seed, title=title, text=text)
        for network in of.targets
        for seed in seeds
        for title, text in there.failed.get(there.name_of(network, seed), {}).items()
    ]
