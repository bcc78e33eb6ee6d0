"""What a run says of itself: config.json, validation.json, metrics.json. Needs no TensorFlow.

``runs.run.Run`` writes them; whoever takes a run for a network reads them too.
"""

from __future__ import annotations

import pathlib
from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Literal

import msgspec
from msgspec import Meta

import cascade_keras
from cascade_keras import records
from cascade_keras.errors import InputError
from cascade_keras.records import (
    Count,
    Epsilon,
    Index,
    OpenRecord,
    PerCent,
    Record,
    Sha256,
    Text,
    Values,
)

CONFIG, METRICS, VALIDATION = "config.json", "metrics.json", "validation.json"
FORMAT = 2  # of config.json; version 0.1.0 wrote none, which is 1

# A flag's value as JSON has it.
Flag = None | bool | int | float | str | list[bool | int | float | str]


class OriginRecord(Record, omit_defaults=True):
    """By what a dataset is found again, see ``data.Origin``."""

    text: Text
    image_size: Annotated[list[Count], Meta(min_length=2, max_length=2)] | None = None
    validation_split: Annotated[float, Meta(gt=0, lt=1)] | None = None
    num_classes: Count | None = None
    imports: list[Text] = msgspec.field(default_factory=list)
    data_dir: Text | None = None
    folders: list[Text] = msgspec.field(default_factory=list)


class DatasetRecord(Record, omit_defaults=True):
    """The data that a run learns: their name, and a hash of them.

    Attributes:
        origin: where they are found, of those that are no row of the package as it is.
        class_names: in order, where they have names.
        image_shape: (height, width, channels) of the stored images, where there is an origin.
    """

    name: Text
    fingerprint: Sha256
    origin: OriginRecord | None = None
    class_names: list[str] = msgspec.field(default_factory=list)
    image_shape: Annotated[list[Count], Meta(min_length=3, max_length=3)] | None = None


class SourceRecord(Record):
    """A network whose images a run is trained with."""

    name: Text
    path: Text
    weights_hash: Text  # of a function in memory, whatever its owner says


SourceRecords = Annotated[list[SourceRecord], Meta(min_length=1)]


class CascadeRecord(Record, omit_defaults=True):
    """Where cascade images come from: banks of so many images each, or the training step."""

    mode: Literal["bank", "online"]
    sources: SourceRecords
    bank_examples: list[Count] | None = None

    def __post_init__(self):
        banks = len(self.bank_examples or ())
        if banks != (len(self.sources) if self.mode == "bank" else 0):
            raise ValueError(
                f"bank_examples are of {banks} banks, the mode is {self.mode} with "
                f"{len(self.sources)} sources"
            )


class EnsembleRecord(Record):
    """The networks whose one-step images a run is trained with."""

    sources: SourceRecords


class RunOrigin(OpenRecord):
    """What a later version's configuration can be known by."""

    format: Annotated[int, Meta(ge=1)] = 1
    versions: dict[str, str] = msgspec.field(default_factory=dict)


class NetworkRecord(Record):
    """A network that is not of ours: what tells another one of the same text from it.

    Attributes:
        architecture: a hash of its layers, their connections and weights' shapes.
    """

    architecture: Sha256


class HeldOutRecord(Record):
    """Training images that a run does not learn, but is looked at by.

    Attributes:
        images: how many.
        hash: of their indices in the training split, ascending, as little-endian int64.
    """

    images: Count
    hash: Sha256


class RunConfig(Record, kw_only=True, omit_defaults=True):
    """config.json: what a run is, written before its first step.

    Attributes:
        format: of the file.
        flags: every setting that determines the result, by its name.
        seed: one of the flags.
        dataset: one of the flags too, and which data these were.
        versions: of the packages that it was started with.
        cascade, ensemble: the networks whose images it is trained with, where there are any.
        network: what it trains, where ``flags.model`` names no network of ours.
        replicas: how many shared each batch when it was started; equal within rounding.
        held_out: the training images that it does not learn, where there are any.
    """

    format: Annotated[int, Meta(ge=1, le=FORMAT)] = 1
    flags: dict[str, Flag]
    seed: Index
    dataset: DatasetRecord
    versions: dict[str, str]
    cascade: CascadeRecord | None = None
    ensemble: EnsembleRecord | None = None
    network: NetworkRecord | None = None
    replicas: Count = 1
    held_out: HeldOutRecord | None = None

    def __post_init__(self):
        for name, value in (("seed", self.seed), ("dataset", self.dataset.name)):
            if self.flags.get(name, value) != value:
                raise ValueError(f"{name} is {value!r}, flags.{name} {self.flags[name]!r}")
        for name, record in (("cascade", self.cascade), ("ensemble", self.ensemble)):
            flag = f"{name}_source"
            count = len(record.sources) if record else 0
            if flag in self.flags and len(self.flags[flag] or ()) != count:
                raise ValueError(f"{name} has {count} sources, flags.{flag} is another number")

    @property
    def sources(self) -> dict[str, Sequence[SourceRecord]]:
        """Of each flag that names networks, those that the run was started with."""
        return {
            "cascade_source": self.cascade.sources if self.cascade else (),
            "ensemble_source": self.ensemble.sources if self.ensemble else (),
        }

    def as_json(self) -> Values:
        """Return the fields as config.json has them."""
        return msgspec.to_builtins(self)


class ResultRecord(Record, omit_defaults=True):
    """How many images a network classifies correctly under one attack, "clean" for none.

    Attributes:
        epsilon: in 0..255 units.
        accuracy: in per cent.
        options: of the attack, where it has any.
    """

    attack: Text
    epsilon: Epsilon
    correct: Index
    examples: Count
    accuracy: PerCent
    options: dict[str, Any] | None = None

    def __post_init__(self):
        if self.correct > self.examples:
            raise ValueError(f"correct is {self.correct} of {self.examples} examples")
        if abs(self.accuracy - 100 * self.correct / self.examples) > 1e-6:
            raise ValueError(
                f"accuracy is {self.accuracy:g}, not {self.correct} of {self.examples} in per cent"
            )
        if self.attack == "clean" and self.epsilon:
            raise ValueError(f"clean images have the epsilon 0, not {self.epsilon:g}")


class LookRecord(Record, omit_defaults=True):
    """One look at the held-out images: how many of them are classified correctly.

    Attributes:
        step: steps done.
        clean: as they are.
        attacked: under the training attack at max_epsilon.
        pgd: under pgd.
        restored: the step whose weights the training went on with, as this network had collapsed.
    """

    step: Count
    clean: Index
    attacked: Index
    pgd: Index
    restored: Count | None = None


class ValidationRecord(Record):
    """validation.json: looks at a network in training, at images that it does not learn.

    Attributes:
        images: how many.
        attack: the training attack.
        max_epsilon, epsilon: of it and of pgd, in 0..255 units.
        rows: ascending.
    """

    images: Count
    attack: Text
    max_epsilon: Epsilon
    epsilon: Epsilon
    rows: list[LookRecord]

    def __post_init__(self):
        steps = [row.step for row in self.rows]
        if steps != sorted(set(steps)):
            raise ValueError("rows: steps do not ascend")
        if any(max(row.clean, row.attacked, row.pgd) > self.images for row in self.rows):
            raise ValueError(f"rows: more are correct than there are images ({self.images})")

    def as_json(self) -> Values:
        """Return the fields as validation.json has them."""
        return msgspec.to_builtins(self)


class ChosenRecord(Record):
    """Which network of a training the finished one is, where that is not the last.

    Attributes:
        step: after which it was looked at.
        by: "pgd" or "clean", the accuracy on held-out images by which it was the best; "collapse",
            the last one before the training's network collapsed.
        correct, examples, accuracy: of the held-out images, under pgd or clean; in per cent.
    """

    step: Count
    by: Literal["pgd", "clean", "collapse"]
    correct: Index
    examples: Count
    accuracy: PerCent


class CollapseRecord(Record):
    """A catastrophic overfitting in the course of a training: seen at a step, after a good one."""

    step: Count
    last_good: Count
    then: Literal["warn", "stop", "restore"]


class Metrics(Record, omit_defaults=True):
    """metrics.json: the accuracies of a finished network on test images, white box.

    Attributes:
        steps: of the schedule.
        stopped_at: the step at which the training ended before, as its network had collapsed.
        chosen: which network of the training it is, where held-out images decided.
        collapses: what was noticed by them.
    """

    steps: Count
    seed: Index
    results: list[ResultRecord]
    stopped_at: Count | None = None
    chosen: ChosenRecord | None = None
    collapses: list[CollapseRecord] = msgspec.field(default_factory=list)

    def __post_init__(self):
        cells = [(result.attack, result.epsilon) for result in self.results]
        twice = next((cell for cell in cells if cells.count(cell) > 1), None)
        if twice:
            raise ValueError(f"results hold {twice[0]} at epsilon {twice[1]:g} twice")

    def as_json(self) -> Values:
        """Return the fields as metrics.json has them."""
        return msgspec.to_builtins(self)


def chosen_in_words(chosen: Mapping[str, Any]) -> str:
    """Return which network of a training the finished one is: its step, and by what number."""
    why = {
        "pgd": "the best of the training under pgd",
        "clean": "the best of the training",
        "collapse": "the last before catastrophic overfitting, under pgd",
    }[chosen["by"]]
    return (
        f"{chosen['step']}, {why}: {chosen['accuracy']:.1f}% of {chosen['examples']:,} images held "
        "out of the training"
    )


def read_config(run: pathlib.Path) -> RunConfig:
    """Return the config.json of a run.

    Args:
        run: its directory.

    Raises:
        InputError: there is none, it cannot be read, holds what cannot be true, or what only the
            later version knows that made it.
    """
    file, own = run / CONFIG, cascade_keras.__version__
    mend = "restore it, or use another name"
    try:
        origin = records.read(file, RunOrigin, mend)
        if origin.versions.get("cascade_keras", own) != own:
            mend = go_on_with(origin.versions)
        if origin.format > FORMAT:
            raise InputError(
                f"{file}: is of format {origin.format}, version {own} knows up to {FORMAT}; {mend}"
            )
        return records.read(file, RunConfig, mend)
    except FileNotFoundError as error:
        raise InputError(f"{run} is not a run (no {CONFIG}); name a run's directory") from error


def read_metrics(run: pathlib.Path) -> Metrics:
    """Return the metrics.json of a finished run.

    Raises:
        InputError: there is none, it cannot be read, or holds what cannot be true of the run.
    """
    file, mend = run / METRICS, "remove it and start the run's bin/train command again"
    try:
        metrics = records.read(file, Metrics, mend)
    except FileNotFoundError as error:
        raise InputError(
            f"{run} is not finished; start its bin/train command again, it goes on"
        ) from error
    flags = read_config(run).flags
    for name, value in (("steps", metrics.steps), ("seed", metrics.seed)):
        if flags.get(name, value) != value:
            raise InputError(
                f"{file}: {name} is {value}, the run's {CONFIG} says {flags[name]!r}; {mend}"
            )
    return metrics


def read_looks(run: pathlib.Path) -> ValidationRecord | None:
    """Return the validation.json of a run, None where there is none.

    Raises:
        InputError: it cannot be read, or holds what cannot be true.
    """
    try:
        return records.read(run / VALIDATION, ValidationRecord, "restore it, or use another name")
    except FileNotFoundError:
        return None


def go_on_with(versions: Mapping[str, str]) -> str:
    """Return what can be done about what another version has written."""
    made_by = versions.get("cascade_keras")
    if made_by is None:
        return f"go on with the version that made it ({CONFIG} says which), or use another name"
    return f"use version {made_by} of cascade_keras, which made it, or another name"
