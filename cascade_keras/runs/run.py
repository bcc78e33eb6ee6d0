"""A run's directory: configuration, checkpoints and results that survive a kill at any moment.

    runs/NAME/config.json    format, every flag, package versions, seed, dataset fingerprint
              checkpoints/   step-00001000.keras: weights, statistics, optimizer; the last three
                             look-00000500.keras: the same, of looks that may be come back to
              tensorboard/   event files; see dashboard.py
              validation.json    looks at held-out images, where there are any
              model.keras    the finished network
              metrics.json   the final accuracies; its presence means that the run is finished

Files are written beside their place and renamed into it, so none is ever half there. As long as
there is no checkpoint, nothing is lost by other flags: such a run is started anew.
"""

from __future__ import annotations

import contextlib
import os
import pathlib
import shutil
import sys
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any

from cascade_keras import files, recorded
from cascade_keras.errors import InputError, first_line, shown
from cascade_keras.recorded import (
    CONFIG,
    METRICS,
    VALIDATION,
    Metrics,
    RunConfig,
    ValidationRecord,
)
from cascade_keras.runs import checkpoints

KEPT_CHECKPOINTS = 3
FINAL = "final"  # folders in tensorboard/, and a file
PROJECTOR = "projector"
PROJECTOR_CONFIG = "projector_config.pbtxt"
_RETRIES = 100  # of a start beside another process that takes its directory away again


class Run:
    """One run's directory.

    Args:
        path: the directory, which need not exist; ``~`` is the home directory.

    Attributes:
        begun: whether a step was done since it is held; what is there is kept then.
        looks_from: the first step whose look at held-out images must be there when it goes on; a
            run that began elsewhere has none of before.
    """

    def __init__(self, path: str | os.PathLike):
        self.path = files.expand(path)
        self.checkpoints = self.path / "checkpoints"
        self.tensorboard = self.path / "tensorboard"
        self.model_file = self.path / "model.keras"
        self.looks_file = self.path / VALIDATION
        self.looks_from = 0
        self.begun = False
        self._config_file = self.path / CONFIG
        self._metrics_file = self.path / METRICS
        self._lock: files.Lock | None = None
        self._made: list[pathlib.Path] = []
        self._configured = False  # by this process

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

    @property
    def last_step(self) -> int:
        """The step of the newest checkpoint; 0 where there is none."""
        return max(self._checkpoint_files(), default=0)

    @property
    def started(self) -> bool:
        """Whether there is anything that other flags would spoil."""
        return self.has_checkpoints or self.model_file.exists() or self.finished

    @property
    def kept(self) -> str:
        """What the next start makes of what is there, in words."""
        step = self.last_step
        if not step:
            return "there is no checkpoint yet, the same command starts anew"
        return f"the checkpoint of step {step} is kept, the same command goes on from there"

    # Before anything is computed.

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
            InputError: a flag differs from those of a run that has a checkpoint, or the data do;
                the directory is something else, or cannot be written or read.
        """
        self._check_places()
        if not self.exists:
            if self.path.exists() and not files.is_a_start(self.path, self.checkpoints):
                raise InputError(
                    f"{self.path} exists and is not a run (no {CONFIG}); choose another name",
                    "name",
                )
            return
        config = self.read_config()
        unknown = sorted(set(config.flags) - set(flags))
        if unknown:
            raise InputError(
                f"{self.path} was started with {', '.join(unknown)}, which is no setting "
                f"here; {recorded.go_on_with(config.versions)}"
            )
        if self.started:
            self._compare(config, flags, fingerprint, defaults)

    def _check_places(self) -> None:
        """Refuse a directory in which something stands in the way of what will be written."""
        files.check_writable(self.path, "runs_dir")
        below = (self.tensorboard, self.tensorboard / FINAL, self.tensorboard / PROJECTOR)
        for folder in (self.checkpoints, *below):
            if os.path.lexists(folder) and not folder.is_dir():
                raise self._in_the_way(folder, "is not a directory")
            if folder.is_dir() and not os.access(folder, os.R_OK | os.W_OK | os.X_OK):
                raise self._in_the_way(folder, "cannot be written in")
        names = (self._config_file, self.model_file, self._metrics_file, self.looks_file)
        lock = self.checkpoints / files.LOCK_FILE
        for file in (*names, lock, *self.checkpoints.glob("step-*.keras")):
            followed = file is not lock or not file.is_symlink()
            if os.path.lexists(file) and not (file.is_file() and followed):
                raise self._in_the_way(file, "is not a file")

    def _in_the_way(self, path: pathlib.Path, problem: str) -> InputError:
        return InputError(f"{path} {problem}; remove it, or choose another name", "name")

    def _compare(
        self,
        config: RunConfig,
        flags: Mapping[str, Any],
        fingerprint: str | None,
        defaults: Callable | None,
    ) -> None:
        """Refuse flags and data that are not those of the run."""
        before = config.flags
        missing = [name for name in flags if name not in before]
        if missing:
            before = {**before, **(defaults(missing) if defaults else {})}
        for name, value in flags.items():
            if _expanded(before.get(name)) != _expanded(value):
                raise InputError(
                    f"is {shown(value)} but {self.path} was started with "
                    f"{shown(before.get(name))}; use that, or another name",
                    name,
                )
        if fingerprint and config.dataset.fingerprint != fingerprint:
            raise InputError(
                f"the {config.dataset.name} found is not the one that {self.path} was "
                "started with; use that data, or another name",
                "dataset" if config.dataset.origin else "data_dir",
            )
        last, steps = self.last_step, flags.get("steps")
        if steps and last > steps:
            raise InputError(
                f"{self._checkpoint(last)} is of a step beyond the run's {steps}; remove it"
            )

    def check_model(self) -> None:
        """Refuse a finished run whose network is not there or damaged; needs no TensorFlow.

        Raises:
            InputError: saying what is wrong.
        """
        try:
            checkpoints.check_archive(self.model_file)
        except FileNotFoundError:
            problem = "does not exist"
        except Exception as error:  # zipfile, zlib and struct each raise their own
            problem = f"is damaged ({first_line(error)})"
        else:
            return
        raise InputError(
            f"{self.model_file} {problem}; restore it, or remove {self._metrics_file.name} and "
            "start the run's bin/train command again, which makes it anew"
        )

    # What is read.

    def read_config(self) -> RunConfig:
        """Return config.json, see ``recorded.read_config``."""
        return recorded.read_config(self.path)

    def read_metrics(self) -> Metrics:
        """Return metrics.json of a finished run, see ``recorded.read_metrics``."""
        return recorded.read_metrics(self.path)

    def read_looks(self) -> ValidationRecord | None:
        """Return validation.json, None where there is none, see ``recorded.read_looks``."""
        return recorded.read_looks(self.path)

    # Holding it.

    def hold(self) -> None:
        """Make the directory where needed and keep others out until ``close`` or the process ends.

        Raises:
            InputError: another process is using it.
        """
        in_use = f"{self.path} is in use by another process; wait for it, or choose another"
        for attempt in range(_RETRIES):
            wanted = (self.checkpoints, self.path, *self.path.parents)
            left = (self.checkpoints / files.LOCK_FILE).exists()  # by a process that was killed
            made = [folder for folder in wanted if not folder.exists()]
            try:
                self.checkpoints.mkdir(parents=True, exist_ok=True)
                lock = files.hold(self.checkpoints, in_use, "name")
            except (FileNotFoundError, FileExistsError):
                # One that did not start takes away what it has made.
                if attempt == _RETRIES - 1:
                    raise
                continue
            if lock.still_there:
                break
            lock.close()
        self._lock, self._made, self.begun, self._configured = lock, made, False, False
        below = (self.tensorboard, self.tensorboard / FINAL, self.tensorboard / PROJECTOR)
        for folder in (self.path, self.checkpoints, *below):
            files.clean(folder)
        if left and files.is_a_start(self.path, self.checkpoints):
            self._made = [self.checkpoints, self.path]

    def open(self, config: RunConfig, defaults: Callable | None = None) -> None:
        """Write config.json, unless the run goes on; the directory is held from here on.

        Args:
            config: what config.json will say of a run without a checkpoint.
            defaults: as for ``check``.

        Raises:
            InputError: another process is using it, it was removed, or ``check`` fails.
        """
        if self._lock is None:
            self.hold()
        self._check_held()
        self.check(config.flags, config.dataset.fingerprint, defaults)
        if not self.started:
            self._forget_events()
            self.looks_file.unlink(missing_ok=True)
            self.keep_looked_at([])
            files.write_json(self._config_file, config.as_json())
            self._configured = True

    def close(self) -> None:
        """Let other processes in; safe to call twice.

        Of a run that came to no step, what this process has made is taken away again, or the
        process before it that was killed.
        """
        if self._lock is None:
            return
        if not self.begun and not self.started:
            self._unmake()
        self._lock.close()
        self._lock = None

    def _unmake(self) -> None:
        if self._configured:
            self._forget_events()
            # Where somebody has put something into tensorboard/, this stays a run's directory.
            if not self.tensorboard.exists():
                self._config_file.unlink(missing_ok=True)
        if self.checkpoints in self._made:
            (self.checkpoints / files.LOCK_FILE).unlink(missing_ok=True)
        with contextlib.suppress(OSError):  # others may have put something there
            for folder in self._made:
                folder.rmdir()

    def _forget_events(self) -> None:
        """Remove what TensorBoard would show of a start that came to no checkpoint."""
        shutil.rmtree(self.tensorboard / "plugins" / "profile", ignore_errors=True)
        for pattern in ("events.out.tfevents.*", f"{FINAL}/events.out.tfevents.*",
                        f"{PROJECTOR}/*.tsv", f"{PROJECTOR}/*.png", PROJECTOR_CONFIG):  # fmt: skip
            for path in filter(pathlib.Path.is_file, self.tensorboard.glob(pattern)):
                path.unlink()
        for folder in ("plugins", FINAL, PROJECTOR, "."):
            with contextlib.suppress(OSError):
                (self.tensorboard / folder).rmdir()

    def _check_held(self) -> None:
        """Refuse to go on in a directory that is not the one of the start."""
        if self._lock is not None and not self._lock.still_there:
            raise InputError(
                f"{self.path} was removed while the run was under way; start the command again"
            )

    # Checkpoints and results.

    def save_checkpoint(self, trainer, step: int) -> None:
        """Save weights, statistics and optimizer of a Keras model; drop all but the last three.

        Raises:
            InputError: the directory was removed.
            OSError: the disk is full or the like; earlier checkpoints are untouched.
        """
        self._check_held()
        files.write_atomically(self._checkpoint(step), trainer.save)
        # Those of later steps, which were passed over, will be replaced in their turn.
        before = [path for of, path in self._checkpoint_files().items() if of <= step]
        for old in before[:-KEPT_CHECKPOINTS]:
            old.unlink(missing_ok=True)

    def write_looks(self, looks: ValidationRecord) -> None:
        """Write the looks at held-out images up to now.

        Raises:
            InputError: the directory was removed.
            OSError: the disk is full or the like.
        """
        self._check_held()
        files.write_json(self.looks_file, looks.as_json())

    def save_looked_at(self, trainer, step: int) -> None:
        """Save what a look was at, as ``save_checkpoint`` does; it is kept as long as it is said.

        Raises:
            InputError, OSError: as ``save_checkpoint``.
        """
        self._check_held()
        files.write_atomically(self.looked_at(step), trainer.save)

    def keep_looked_at(self, steps: Collection[int]) -> None:
        """Remove what looks at other steps than these were at."""
        kept = {self.looked_at(step) for step in steps}
        for path in self.checkpoints.glob("look-*.keras"):
            if path not in kept:
                path.unlink(missing_ok=True)

    def load_looked_at(self, trainer, step: int) -> None:
        """Load what a look was at, clock included.

        Raises:
            InputError: it is not there, damaged, or another network's.
        """
        path = self.looked_at(step)
        try:
            checkpoints.load(trainer, path, step)
        except Exception as error:  # Keras, h5py, zipfile and zlib each raise their own
            raise InputError(
                f"{path} cannot be used ({first_line(error)}); restore it, or train again under "
                "another name",
                "name",
            ) from error

    def looked_at(self, step: int) -> pathlib.Path:
        """Return the file of what a look was at."""
        return self.checkpoints / f"look-{step:08d}.keras"

    @property
    def checkpoint_steps(self) -> list[int]:
        """The steps of the checkpoints that there are, ascending."""
        return list(self._checkpoint_files())

    def restore(self, trainer) -> int:
        """Load the newest checkpoint that is intact and return its step, 0 where there is none.

        The trainer's clock stands at that step then. A file that is damaged, another network's or
        of another step than its name says is passed over with a warning on standard error.

        Args:
            trainer: a compiled ``AdversarialTrainer`` of the run's configuration, its optimizer
                built.

        Raises:
            InputError: there are checkpoints, and none can be used.
        """
        found = self._checkpoint_files()
        for path in sorted(set(self.checkpoints.glob("step-*.keras")) - set(found.values())):
            print(f"warning: {path} is no checkpoint's name; it is left alone", file=sys.stderr)
        for step, path in reversed(found.items()):
            try:
                checkpoints.load(trainer, path, step)
            except Exception as error:  # Keras, h5py, zipfile and zlib each raise their own
                reason = first_line(error)
                print(
                    f"warning: {path} cannot be used ({reason}); trying the one before it",
                    file=sys.stderr,
                )
                continue
            return step
        if found:
            raise InputError(
                f"{self.checkpoints}: none of the {len(found)} checkpoints can be used; "
                "remove them to start the run anew"
            )
        return 0

    def finish(self, network, metrics: Metrics) -> None:
        """Write the network and, last, the results that mark the run as finished.

        Raises:
            InputError: the directory was removed.
            OSError: the disk is full or the like; the checkpoints are untouched.
        """
        self._check_held()
        files.write_atomically(self.model_file, network.save)
        files.write_json(self._metrics_file, metrics.as_json())

    def _checkpoint(self, step: int) -> pathlib.Path:
        return self.checkpoints / f"step-{step:08d}.keras"

    def _checkpoint_files(self) -> dict[int, pathlib.Path]:
        """Return the files that have a checkpoint's name by their steps, ascending."""
        found = {}
        for path in self.checkpoints.glob("step-*.keras"):
            number = path.stem.removeprefix("step-")
            step = int(number) if number.isdecimal() else 0
            if step and path == self._checkpoint(step):
                found[step] = path
        return dict(sorted(found.items()))


def _expanded(value):
    """Return a flag's value with the home directory where it was written as ``~``."""
    if isinstance(value, list):
        return list(map(_expanded, value))
    if not isinstance(value, str) or not value.startswith("~"):
        return value
    try:
        return str(files.expand(value))
    except RuntimeError:  # the home of somebody who is unknown here
        return value
