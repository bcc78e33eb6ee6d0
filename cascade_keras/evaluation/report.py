"""A report's directory: what was asked, the predictions, and the report that follows from them.

    reports/NAME/config.json     networks with their weights' hashes, attacks, dataset, seed
                 predictions/    an array for each source and attack: the targets' predictions
                 report.json     accuracies, worst cases, transfer rates, minimal epsilons,
                                 diagnosis
                 report.md, report.csv, and pictures

The report is computed from the predictions, so it can be written again at any time. Nothing here
needs TensorFlow.
"""

from __future__ import annotations

import contextlib
import csv
import json
import os
import pathlib
from collections.abc import Iterator, Mapping, Sequence

from cascade_keras.attacks.specs import ATTACKS, in_words
from cascade_keras.errors import InputError
from cascade_keras.evaluation.stores import DiskArrays
from cascade_keras.files import (
    PARTIAL,
    check_writable,
    clean,
    hold,
    write_atomically,
    write_json,
    write_text,
)

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
}
_KEYS = (
    *_DEFAULTS, "dataset", "split", "num_images", "seed", "batch_size", "target", "source",
    "epsilon", "attack", "inference_noise", "diagnosis_images", "versions",
)  # fmt: skip
# They may differ when a report goes on.
_FREE = ("format", "versions")


class Report:
    """The directory of a report.

    Args:
        path: it need not exist.
    """

    def __init__(self, path: str | os.PathLike):
        self.path = pathlib.Path(path)
        self.arrays = DiskArrays(self.path / "predictions")
        self._config_file = self.path / "config.json"
        self._seconds_file = self.arrays.path / "seconds.json"

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
        if self._config_file.exists() or not self.path.exists():
            return
        # A process killed at its very start leaves this behind.
        if any(
            path != self.arrays.path and not path.name.startswith(PARTIAL)
            for path in self.path.iterdir()
        ):
            raise InputError(
                f"{self.path} exists and is not a report (no config.json); name another directory",
                "output",
            )

    @contextlib.contextmanager
    def opened(self, config: Mapping) -> Iterator[None]:
        """Create the directory where needed, and hold it as long as the block runs.

        Args:
            config: what the numbers follow from; a key is named as the setting it comes from.

        Raises:
            InputError: another process is using it, or it was made with another configuration.
        """
        self.check()
        config = json.loads(json.dumps({"format": FORMAT, **config}))  # as it will be read again
        if self._config_file.exists():
            self._compare(config)
        self.arrays.path.mkdir(parents=True, exist_ok=True)
        in_use = f"{self.path} is in use by another process; wait for it, or name another"
        with hold(self.arrays.path, in_use, "output"):
            if not self._config_file.exists():
                write_json(self._config_file, config)
            for directory in (self.path, *(p for p in self.path.iterdir() if p.is_dir())):
                clean(directory)
            yield

    def _compare(self, config: Mapping) -> None:
        try:
            before = dict(json.loads(self._config_file.read_text(encoding="utf-8")))
        except (OSError, TypeError, ValueError) as error:
            raise InputError(f"{self._config_file} cannot be read ({error})", "output") from error
        if "flags" in before:
            raise InputError(f"{self.path} is a run; name another directory", "output")
        unknown = [key for key in before if key not in _KEYS]
        if unknown or before.get("format", 0) not in range(FORMAT + 1):
            reason = f"has the setting {unknown[0]!r}" if unknown else "is of another format"
            raise InputError(
                f"{self._config_file} {reason}, which this version does not know; go on with the "
                "version that made it, or name another directory",
                "output",
            )
        for key in (key for key in _KEYS if key not in _FREE):
            old, new = (each.get(key, _DEFAULTS.get(key)) for each in (before, config))
            if key == "attack":
                old, new = _with_options(old), _with_options(new)
            if old != new:
                raise InputError(
                    f"{self.path} was made with {_short(old)}, now it is {_short(new)}; name "
                    "another output",
                    key,
                )

    def add_seconds(self, seconds: Mapping[str, float]) -> dict[str, float]:
        """Add to the time spent in this directory so far, and return the sum."""
        total = dict.fromkeys(seconds, 0.0)
        try:
            if self._seconds_file.exists():
                total |= json.loads(self._seconds_file.read_text(encoding="utf-8"))
            total = {name: total[name] + spent for name, spent in seconds.items()}
        except (TypeError, ValueError) as error:
            raise InputError(
                f"{self._seconds_file} cannot be read ({error}); remove it", "output"
            ) from error
        write_json(self._seconds_file, total)
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
            with open(temporary, "w", newline="", encoding="utf-8") as file:
                writer = csv.DictWriter(file, fields, extrasaction="ignore")
                writer.writeheader()
                writer.writerows(rows)

        write_atomically(self.path / name, write)

    def write_text(self, name: str, text: str) -> None:
        """Write a text file."""
        write_text(self.path / name, text)


def _with_options(attacks):
    """Return a configuration's attacks with the options that they lack; nonsense as it is."""
    try:
        pairs = [[attack, {}] if isinstance(attack, str) else attack for attack in attacks]
        rows = {name: ATTACKS[name].options for name, _ in pairs if name in ATTACKS}
        return [[name, {**rows.get(name, {}), **options}] for name, options in pairs]
    except (TypeError, ValueError):
        return attacks


def _short(value) -> str:
    text = json.dumps(value)
    return text if len(text) <= 120 else f"{text[:117]}..."
