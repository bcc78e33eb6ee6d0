"""A run's directory: configuration, checkpoints and results that survive a kill at any moment.

    runs/NAME/config.json    format, every flag, package versions, seed, dataset fingerprint
              checkpoints/   step-00001000.keras: weights, statistics, optimizer; the last three
              tensorboard/   event files
              model.keras    the finished network
              metrics.json   the final accuracies; its presence means that the run is finished

Files are written beside their place and renamed into it, so none is ever half there.
"""

from __future__ import annotations

import os
import pathlib
import sys
import zipfile
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import cascade_keras
from cascade_keras import records
from cascade_keras.errors import InputError
from cascade_keras.files import (
    PARTIAL,
    check_writable,
    expand,
    hold,
    write_atomically,
    write_json,
)
from cascade_keras.runs.records import FORMAT, Metrics, RunConfig, RunOrigin

CONFIG = "config.json"
KEPT_CHECKPOINTS = 3


class Run:
    """One run's directory.

    Args:
        path: the directory, which need not exist; ``~`` is the home directory.
    """

    def __init__(self, path: str | os.PathLike):
        self.path = expand(path)
        self.checkpoints = self.path / "checkpoints"
        self.tensorboard = self.path / "tensorboard"
        self.model_file = self.path / "model.keras"
        self._config_file = self.path / CONFIG
        self._metrics_file = self.path / "metrics.json"
        self._lock = None

    @property
    def finished(self) -> bool:
        """Whether the run has written its results."""
        return self._metrics_file.exists()

    @property
    def exists(self) -> bool:
        """Whether the run was started before."""
        return self._config_file.exists()

    @property
    def has_checkpoints(self) -> bool:
        """Whether there is anything to resume from."""
        return bool(self._checkpoint_files())

    def check(
        self,
        flags: Mapping[str, Any],
        fingerprint: str | None = None,
        defaults: Callable[[Sequence[str]], Mapping[str, Any]] | None = None,
    ) -> None:
        """Refuse a directory that cannot serve the run that these flags describe.

        Args:
            flags: those that determine the run's result, as config.json has them.
            fingerprint: of the dataset, compared where given.
            defaults: gives the values of flags that a run older than them was started with.

        Raises:
            InputError: a flag differs from the existing run's, the data are other data, or the
                directory cannot be written or read.
        """
        check_writable(self.path, "runs_dir")
        if not self.exists:
            # A process killed at its very start leaves a file that was never renamed behind.
            if self.path.exists() and any(map(self._is_strange, self.path.iterdir())):
                raise InputError(
                    f"{self.path} exists and is not a run (no config.json); choose another name",
                    "name",
                )
            return
        config = self.read_config()
        before = config.flags
        unknown = sorted(set(before) - set(flags))
        if unknown:
            raise InputError(
                f"{self.path} was started with {', '.join(unknown)}, which this version does not "
                f"know; go on with the version that made it ({CONFIG} says which), or use another "
                "name"
            )
        missing = [name for name in flags if name not in before]
        if missing:
            before = {**before, **(defaults(missing) if defaults else {})}
        for name, value in flags.items():
            if _expanded(before.get(name)) != _expanded(value):
                raise InputError(
                    f"is {value!r} but {self.path} was started with {before.get(name)!r}; use "
                    "that, or another name",
                    name,
                )
        if fingerprint and config.dataset.fingerprint != fingerprint:
            raise InputError(
                f"the {config.dataset.name} found is not the one that {self.path} was "
                "started with; use that data, or another name",
                "data_dir",
            )

    def _is_strange(self, path: pathlib.Path) -> bool:
        return path != self.checkpoints and not path.name.startswith(PARTIAL)

    def read_config(self) -> RunConfig:
        """Return config.json.

        Raises:
            InputError: there is none, it cannot be read, holds what cannot be true, or what only
                the later version knows that made it.
        """
        file, own = self._config_file, cascade_keras.__version__
        mend = "restore it, or use another name"
        try:
            origin = records.read(file, RunOrigin, mend)
            made_by = origin.versions.get("cascade_keras", own)
            if made_by != own:
                mend = f"use version {made_by} of cascade_keras, which made it, or another name"
            if origin.format > FORMAT:
                raise InputError(
                    f"{file}: is of format {origin.format}, version {own} knows up to {FORMAT}; "
                    f"{mend}"
                )
            return records.read(file, RunConfig, mend)
        except FileNotFoundError as error:
            raise InputError(
                f"{self.path} is not a run (no {CONFIG}); name a run's directory"
            ) from error

    def open(self, config: RunConfig, defaults: Callable | None = None) -> None:
        """Create the directory where needed and hold it until ``close`` or this process's end.

        Args:
            config: what config.json will say if the run is new.
            defaults: as for ``check``.

        Raises:
            InputError: another process is using it, or ``check`` fails.
        """
        self.checkpoints.mkdir(parents=True, exist_ok=True)
        self._lock = hold(
            self.checkpoints,
            f"{self.path} is in use by another process; wait for it, or choose another",
            "name",
        )
        if self.exists:
            self.check(config.flags, config.dataset.fingerprint, defaults)
        else:
            write_json(self._config_file, config.as_json())
        for partial in self.checkpoints.glob(f"{PARTIAL}*"):
            partial.unlink()

    def close(self) -> None:
        """Let other processes in; safe to call twice."""
        if self._lock is not None:
            self._lock.close()
            self._lock = None

    def save_checkpoint(self, trainer, step: int) -> None:
        """Save weights, statistics and optimizer of a Keras model; drop all but the last three.

        Raises:
            OSError: the disk is full or the like; earlier checkpoints are untouched.
        """
        path = self.checkpoints / f"step-{step:08d}.keras"
        write_atomically(path, trainer.save)
        for old in self._checkpoint_files()[:-KEPT_CHECKPOINTS]:
            old.unlink()

    def restore(self, trainer) -> int:
        """Load the newest checkpoint that is intact and return its step, 0 where there is none.

        The trainer's clock stands at that step then, whatever the file knows of it. A damaged file
        is passed over with a warning on standard error.

        Args:
            trainer: a compiled ``AdversarialTrainer`` of the run's configuration, its optimizer
                built.

        Raises:
            InputError: there are checkpoints, and none can be read.
        """
        files = self._checkpoint_files()
        for path in reversed(files):
            try:
                with zipfile.ZipFile(path) as archive:
                    damaged = archive.testzip()
                if damaged:
                    raise zipfile.BadZipFile(f"checksum of {damaged} differs")
                trainer.load_weights(path)
            except (zipfile.BadZipFile, OSError, ValueError, KeyError) as error:
                reason = str(error).splitlines()[0]
                print(
                    f"warning: {path} is damaged ({reason}); trying the one before it",
                    file=sys.stderr,
                )
                continue
            step = int(path.stem.removeprefix("step-"))
            trainer.steps.assign(step)
            return step
        if files:
            raise InputError(
                f"{self.checkpoints}: none of the {len(files)} checkpoints can be read; "
                "remove them to start the run anew"
            )
        return 0

    def read_metrics(self) -> Metrics:
        """Return metrics.json of a finished run.

        Raises:
            InputError: there is none, it cannot be read, or holds what cannot be true of the run.
        """
        file, mend = self._metrics_file, "remove it and start the run's bin/train command again"
        try:
            metrics = records.read(file, Metrics, mend)
        except FileNotFoundError as error:
            raise InputError(
                f"{self.path} is not finished; start its bin/train command again, it goes on"
            ) from error
        flags = self.read_config().flags
        for name, value in (("steps", metrics.steps), ("seed", metrics.seed)):
            if flags.get(name, value) != value:
                raise InputError(
                    f"{file}: {name} is {value}, the run's {CONFIG} says {flags[name]!r}; {mend}"
                )
        return metrics

    def finish(self, network, metrics: Metrics) -> None:
        """Write the network and, last, the results that mark the run as finished."""
        write_atomically(self.model_file, network.save)
        write_json(self._metrics_file, metrics.as_json())

    def _checkpoint_files(self) -> list[pathlib.Path]:
        return sorted(self.checkpoints.glob("step-*.keras"))


def _expanded(value):
    """Return a flag's value with the home directory where it was written as ``~``."""
    if isinstance(value, list):
        return list(map(_expanded, value))
    return str(expand(value)) if isinstance(value, str) and value.startswith("~") else value
