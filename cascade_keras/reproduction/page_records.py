"""What tableN.json and figureN.json hold: the page of a table or figure. No TensorFlow."""

from __future__ import annotations

import os

import msgspec

from cascade_keras.files import expand
from cascade_keras.records import Count, Epsilon, Index, Record, Text, read

FORMAT = 1


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
        state: why there is none of ours, where a job failed or a training diverged.
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
    state: Text | None = None


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
        state: why there is none of a seed, where its training failed or diverged.
    """

    network: Text
    dataset: Text
    depth: Count | None
    published_depth: Count
    schedule: Count
    share: float | None
    trained: list[Trained]
    state: Text | None = None


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
        without: networks that it lacks, and why, a sentence each.
    """

    name: Text
    seed: Index
    networks: list[Text]
    dataset: Text
    published_dataset: Text
    file: Text | None
    caption: str
    without: list[Text] = msgspec.field(default_factory=list)


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


def read_page(file: str | os.PathLike, kind: type = TablePage) -> TablePage | FigurePage:
    """Return what a tableN.json, or with ``FigurePage`` a figureN.json, holds.

    Raises:
        FileNotFoundError: there is none.
        InputError: it cannot be read.
    """
    return read(expand(file), kind, "make it again")
