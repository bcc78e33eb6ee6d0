"""The page of a table or figure as Markdown and CSV. No TensorFlow."""

from __future__ import annotations

import csv
import math
import pathlib
from collections.abc import Iterable, Iterator, Sequence

from cascade_keras.errors import one_line
from cascade_keras.evaluation.tables import plain, table
from cascade_keras.files import write_atomically
from cascade_keras.reproduction.page_records import FigurePage, Network, Number, TablePage
from cascade_keras.reproduction.published import CLEAN, COUNT

_IN_A_CELL = 60  # characters of why there is no number
MOST_POINTS = 3.0  # a larger difference has to be explained
_CALLED = {"mnist": "MNIST", "cifar10": "CIFAR-10", "cifar100": "CIFAR-100"}


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
        _in_sum(found),
        *_missing(found),
        _numbers(found),
        _networks(found.networks),
        *_failures(found),
        *_notes(found),
        *_made_by(found.commands),
    ]
    return "\n\n".join(part for part in parts if part) + "\n"


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
        if picture.file is None:  # it is among what is missing
            continue
        networks = plain(", ".join(picture.networks))
        parts.append(f"## {networks}, seed {picture.seed}")
        if picture.without:
            parts.append(f"Without {plain('; '.join(picture.without))}.")
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
    explained = [
        "Ours, and the published number in brackets. Accuracies are in per cent, epsilons in 0..255"
    ]
    if any(number.kind == COUNT for number in found.numbers):
        explained.append("cw_linf counts images of 100 that need more than epsilon")
    if any(number.ours is None and not number.state for number in found.numbers):
        explained.append("-: not there")
    if any(number.in_paper and number.published is None for number in found.numbers):
        explained.append("?: printed, but it could not be read which number it is")
    return f"{'; '.join(explained)}.\n\n{table(['', *networks], rows)}"


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
    absent = _in_short(number.state) if number.state else "-"
    ours = absent if number.ours is None else _shown(number, number.ours)
    return f"{ours} ({_published(number)})" if number.in_paper else ours


def _published(number: Number) -> str:
    return "?" if number.published is None else _shown(number, number.published)


def _shown(number: Number, value: float) -> str:
    whole = number.kind == COUNT and value == round(value)
    return f"{value:.0f}" if whole else f"{value:.1f}"


def _in_sum(found: TablePage) -> str:
    """Return how near ours are, where both are of the same thing."""
    published = [number for number in found.numbers if number.published is not None]
    compared = [number for number in published if number.comparable]
    there = sum(number.ours is not None for number in published)
    text = f"Of {len(published)} published numbers {there} have ours beside them"
    if not compared:
        return f"{text}; none can be compared." if there else f"{text}."
    far = [number for number in compared if abs(number.difference) > MOST_POINTS]
    shares = [network.share for network in found.networks if network.share is not None]
    after = f", after {_range(shares)} % of the schedule" if shares and min(shares) < 100 else ""
    text += (
        f", {len(compared)} of the same thing{after}. {len(compared) - len(far)} of these are "
        f"within {MOST_POINTS:g} points"
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
            _shown(number, number.ours),
            _difference(number),
            "" if number.spread is None else f"{number.spread:.1f}",
            f"{standard_error(number):.1f}",
            len(number.values),
            _examples(number),
        ]
        for number in found.numbers
        if number.ours is not None
    ]
    if not rows:
        return ""
    headings = ["network", "images", "published", "ours", "difference", "spread", "s.e.", "seeds",
                "n"]  # fmt: skip
    parts = [
        "## Each of our numbers",
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
            _steps(network),
            network.schedule,
            "" if network.share is None else f"{network.share:.3g}",
            _listed(one.seed for one in network.trained),
        ]
        for network in networks
    ]
    headings = ["network", "run", "model", "loss", "steps", "schedule", "share, %", "seeds"]
    return f"## Networks\n\n{table(headings, rows, left=4)}"


def _steps(network: Network) -> str:
    done = _listed(one.steps for one in network.trained)
    return "; ".join(filter(None, [done, _in_short(network.state or "")]))


def _in_short(state: str) -> str:
    return plain(one_line(state, _IN_A_CELL))


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


# CSV.

FIELDS = (
    "table", "network", "attack", "epsilon", "sources", "kind", "each_image", "published", "ours",
    "difference", "spread", "seeds", "examples", "comparable", "state",
)  # fmt: skip


def write_csv(file: pathlib.Path, found: TablePage) -> None:
    """Write the numbers of a table, one a row."""
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
