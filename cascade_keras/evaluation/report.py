"""A report's directory: what was asked, the predictions, and the report that follows from them.

    reports/NAME/config.json     networks with their weights' hashes, attacks, dataset, seed
                 predictions/    an array for each source and attack: the targets' predictions
                 seconds.json    spent on crafting and on classifying so far
                 report.json     accuracies, worst cases, transfer rates, minimal epsilons,
                                 diagnosis
                 report.md, report.csv, and pictures

The report is computed from the predictions, so it can be written again at any time, and is the same
to the last byte however often the evaluation was interrupted. Nothing here needs TensorFlow.
"""

from __future__ import annotations

import contextlib
import csv
import json
import os
import pathlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Annotated, Literal

import msgspec
from msgspec import Meta

from cascade_keras.attacks.specs import ATTACKS, in_words
from cascade_keras.errors import InputError, about
from cascade_keras.evaluation.settings import EvaluationSettings
from cascade_keras.evaluation.stores import DiskArrays
from cascade_keras.files import (
    check_replaceable,
    check_writable,
    clean,
    expand,
    hold,
    is_a_start,
    write_atomically,
    write_json,
    write_text,
)
from cascade_keras.recorded import DatasetRecord
from cascade_keras.records import (
    Count,
    Epsilon,
    Index,
    OpenRecord,
    Record,
    Text,
    Values,
    read,
    read_values,
)
from cascade_keras.workers import Crew, Worker

RESULT_FIELDS = (
    "target", "source", "attack", "epsilon", "correct", "examples", "accuracy", "options",
)  # fmt: skip
FORMAT = 1  # of config.json; 0.1.0 wrote none, which is 0
# What a configuration means that lacks a key: keys came and come with new settings. Those without
# a default have been there from the first.
_DEFAULTS = {
    "format": 0,
    "cw_search": None,
    "cw_images": None,
    "cw_iterations": None,
    "value_range": None,
    "from_logits": "auto",
    "logits": None,
    "embedding": None,
    "ensemble": None,
}
# What the attacks of a report meant whose configuration lacks the option: AutoAttack was ART's.
_OPTIONS_BEFORE = {"autoattack": {"version": None}}
# They may differ when a report goes on.
_FREE = ("format", "versions", "settings")
# What is said of networks; compared first, as it makes other networks of the targets.
_TOLD = ("value_range", "from_logits", "logits", "embedding", "ensemble")
FOLDERS = ("predictions", "examples", "confusion")
_FILES = (".json", ".md", ".csv", ".png")  # as they end that are written beside the folders


class Config(Record):
    """config.json: what the numbers follow from, each named as the setting it comes from."""

    dataset: DatasetRecord
    split: Literal["train", "test"]
    num_images: Count
    seed: Index
    batch_size: Count
    target: Annotated[dict[Text, Text], Meta(min_length=1)]
    source: dict[Text, Text]
    epsilon: Annotated[list[Epsilon], Meta(min_length=1)]
    # Text here would crash msgspec 0.22: a string with a limit beside a tuple of fixed length.
    attack: Annotated[list[str | tuple[str, Values]], Meta(min_length=1)]
    inference_noise: Epsilon
    diagnosis_images: Index
    versions: dict[str, str]
    cw_search: Literal["descent", "grid"] | None = _DEFAULTS["cw_search"]
    cw_images: Count | None = _DEFAULTS["cw_images"]
    cw_iterations: Count | None = _DEFAULTS["cw_iterations"]
    value_range: Annotated[list[float], Meta(min_length=2, max_length=2)] | None = None
    from_logits: bool | Literal["auto"] = "auto"
    logits: str | None = None
    embedding: str | None = None
    ensemble: str | None = None
    settings: Values | None = None
    format: Index = _DEFAULTS["format"]

    def __post_init__(self):
        if self.format > FORMAT:
            raise ValueError(f"format: is {self.format}, this version knows up to {FORMAT}")


_Spent = Annotated[float, Meta(ge=0, le=1e9)]  # less than 32 years


class Seconds(Record):
    """seconds.json: what an evaluation took, all its runs together."""

    crafting: _Spent
    classifying: _Spent


class Written(OpenRecord):
    """report.json: what is read of it again."""

    results: list[Values]
    networks: list[Values]


def check_places(settings: EvaluationSettings) -> None:
    """Refuse places that an evaluation cannot write in, before it does any work.

    Args:
        settings: resolved.

    Raises:
        InputError: naming the setting.
    """
    Report(settings.output).check()
    if settings.images_dir is not None:
        check_writable(expand(settings.images_dir), "images_dir")


class Report:
    """The directory of a report.

    Args:
        path: it need not exist.
    """

    def __init__(self, path: str | os.PathLike):
        self.path = expand(path)
        self.arrays = DiskArrays(self.path / "predictions")
        self._config_file = self.path / "config.json"
        self._seconds_file = self.path / "seconds.json"
        self._seconds_before = self.arrays.path / "seconds.json"  # up to 0.2.0

    @property
    def finished(self) -> bool:
        """Whether the report was written."""
        return (self.path / "report.json").exists()

    def check(self) -> None:
        """Refuse a place that cannot be written, or is there and not a report's.

        Raises:
            InputError: saying which.
        """
        check_writable(self.path, "output")
        if not self.path.exists():
            return
        with about("output"):
            if self._config_file.exists():
                self._read_config()
            elif not is_a_start(self.path, self.arrays.path):
                raise InputError(
                    f"{self.path} exists and is not a report (no config.json); name another "
                    "directory"
                )
            for path in self.path.iterdir():
                if path.name in FOLDERS:
                    check_writable(path)
                elif path.suffix in _FILES:
                    check_replaceable(path)
            self.seconds()

    @contextlib.contextmanager
    def opened(self, config: Mapping, worker: Worker | None = None) -> Iterator[Crew]:
        """Create the directory where needed, and hold it as long as the block runs.

        Args:
            config: what the numbers follow from; a key is named as the setting it comes from.
            worker: hold it with others that are workers too.

        Yields:
            Who works on the predictions.

        Raises:
            InputError: another process is using it, or it was made with another configuration.
        """
        self.check()
        config = json.loads(json.dumps({"format": FORMAT, **config}))  # as it will be read again
        if self._config_file.exists():
            self.compare(config)
        self.arrays.path.mkdir(parents=True, exist_ok=True)
        in_use = f"{self.path} is in use by another process; wait for it, or name another"
        with hold(self.arrays.path, in_use, "output", shared=worker is not None):
            if self._config_file.exists():
                self.compare(config)  # whoever held it may have made another
                before = self._read_config()
                if config.get("settings") not in (None, before.get("settings")):
                    write_json(self._config_file, {**before, "settings": config["settings"]})
            elif worker is None:
                write_json(self._config_file, config)
            else:
                write_json(self._config_file, config, keep=True)
                self.compare(config)  # another may have been first
            if worker is None:
                self.clean()
            crew = Crew(self.arrays.path, worker)
            with crew.joined(self.path, "output"):
                yield crew

    def clean(self) -> None:
        """Remove what killed processes were writing; nobody else may be writing."""
        for folder in (self.path, *(self.path / name for name in FOLDERS)):
            clean(folder)

    def _read_config(self) -> Values:
        if "flags" in read(self._config_file, Values, "name another directory"):
            raise InputError(f"{self.path} is a run; name another directory")
        mend = "restore it, go on with the version that made it, or name another directory"
        return read_values(self._config_file, Config, mend)

    @property
    def batch_size(self) -> int | None:
        """How many images at a time what is there was computed with, None where nothing is.

        Raises:
            InputError: config.json cannot be read.
        """
        if not self._config_file.exists():
            return None
        with about("output"):
            return self._read_config()["batch_size"]

    def read(self) -> tuple[Values, Values]:
        """Return what config.json and report.json of a finished report hold.

        Raises:
            InputError: there is none, or it cannot be read.
        """
        if not self._config_file.exists():
            raise InputError(f"{self.path} is not a report (no config.json)", "verify")
        if not self.finished:
            raise InputError(f"{self.path} is not finished; run its command again", "verify")
        with about("verify"):
            content = read_values(self.path / "report.json", Written, "run its command again")
            return self._read_config(), content

    def compare(self, config: Mapping, mend: str = "name another output") -> None:
        """Refuse a configuration that this report was not made with.

        Raises:
            InputError: naming the first setting that differs.
        """
        config = json.loads(json.dumps(config))
        with about("output"):
            before = self._read_config()
        keys = (key for key in Config.__struct_fields__ if key not in (*_FREE, *_TOLD))
        for key in (*_TOLD, *keys):
            old, new = (each.get(key, _DEFAULTS.get(key)) for each in (before, config))
            if key == "attack":
                old, new = _with_options(old), _with_options(new)
            if old != new:
                raise InputError(
                    f"{self.path} was made with {_short(old)}, now it is {_short(new)}; {mend}", key
                )

    def seconds(self) -> Seconds:
        """Return the time spent in this directory so far.

        Raises:
            InputError: it cannot be read.
        """
        for file in (self._seconds_file, self._seconds_before):
            if file.exists():
                return read(file, Seconds, "remove it")
        return Seconds(crafting=0.0, classifying=0.0)

    def add_seconds(self, crafting: float, classifying: float) -> Seconds:
        """Add to the time spent in this directory so far, and return the sum."""
        before = self.seconds()
        total = Seconds(
            crafting=before.crafting + crafting, classifying=before.classifying + classifying
        )
        write_json(self._seconds_file, msgspec.structs.asdict(total))
        self._seconds_before.unlink(missing_ok=True)
        return total

    def write(self, content: Mapping, markdown: str) -> None:
        """Write report.csv, report.md and, last, report.json."""
        rows = [{**row, "options": in_words(row["options"])} for row in content["results"]]
        self.write_csv("report.csv", RESULT_FIELDS, rows)
        self.write_text("report.md", markdown)
        write_json(self.path / "report.json", content)

    def write_csv(self, name: str, fields: Sequence[str], rows: Sequence[Mapping]) -> None:
        """Write rows as a table."""

        def write(temporary: pathlib.Path) -> None:
            # Of a name that is not Unicode, what can be written.
            kind = {"newline": "", "encoding": "utf-8", "errors": "backslashreplace"}
            with open(temporary, "w", **kind) as file:
                writer = csv.DictWriter(file, fields, extrasaction="ignore")
                writer.writeheader()
                writer.writerows(
                    {key: _no_formula(cell) for key, cell in row.items()} for row in rows
                )

        write_atomically(self.path / name, write)

    def write_text(self, name: str, text: str) -> None:
        """Write a text file."""
        write_text(self.path / name, text)


def _no_formula(cell):
    """Return a text as no spreadsheet takes it for a formula; a number as it is."""
    return f"'{cell}" if isinstance(cell, str) and cell.startswith(tuple("=+-@")) else cell


def _with_options(attacks):
    """Return a configuration's attacks with the options that they lack; nonsense as it is."""
    try:
        pairs = [[attack, {}] if isinstance(attack, str) else attack for attack in attacks]
        rows = {name: ATTACKS[name].options for name, _ in pairs if name in ATTACKS}
        rows = {name: {**rows[name], **_OPTIONS_BEFORE.get(name, {})} for name in rows}
        return [[name, {**rows.get(name, {}), **options}] for name, options in pairs]
    except (TypeError, ValueError):
        return attacks


def _short(value) -> str:
    text = json.dumps(value)
    return text if len(text) <= 120 else f"{text[:117]}..."
