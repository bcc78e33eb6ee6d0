"""A run's directory: configuration, checkpoints and results that survive a kill at any moment.

    runs/NAME/config.json    every flag, package versions, seed, dataset fingerprint
              checkpoints/   step-00001000.keras: weights, statistics, optimizer; the last three
              tensorboard/   event files
              model.keras    the finished network
              metrics.json   the final accuracies; its presence means that the run is finished

Files are written beside their place and renamed into it, so none is ever half there.
"""

from __future__ import annotations

import json
import os
import pathlib
import sys
import zipfile

from cascade_keras.errors import InputError
from cascade_keras.files import check_writable, hold, write_atomically, write_json

KEPT_CHECKPOINTS = 3



class Run:
    """One run's directory.

    Args:
        path: the directory, which need not exist.
    """

    def __init__(self, path: str | os.PathLike):
        self.path = pathlib.Path(path)
        self.checkpoints = self.path / "checkpoints"
        self.tensorboard = self.path / "tensorboard"
        self.model_file = self.path / "model.keras"
        self._config_file = self.path / "config.json"
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

    def check(self, flags: dict, fingerprint: str | None = None) -> None:
        """Refuse a directory that cannot serve the run that these flags describe.

        Args:
            flags: those that determine the run's result.
            fingerprint: of the dataset, compared where given.

        Raises:
            InputError: a flag differs from the existing run's, the data are other data, or the
                directory cannot be written or read.
        """
        check_writable(self.path, "runs_dir")
        if not self._config_file.exists():
            # A process killed at its very start leaves an empty checkpoints/ behind.
            if self.path.exists() and any(p != self.checkpoints for p in self.path.iterdir()):
                raise InputError(
                    f"--name: {self.path} exists and is not a run (no config.json); "
                    "choose another name"
                )
            return
        config = self.read_config()
        for name, value in flags.items():
            if config["flags"].get(name) != value:
                raise InputError(
                    f"--{name}: is {value!r} but {self.path} was started with "
                    f"{config['flags'].get(name)!r}; use that, or another --name"
                )
        if fingerprint and config["dataset"]["fingerprint"] != fingerprint:
            raise InputError(
                f"--data_dir: the {config['dataset']['name']} found is not the one that "
                f"{self.path} was started with; use that data, or another --name"
            )

    def read_config(self) -> dict:
        """Return config.json.

        Raises:
            InputError: it is not there or cannot be understood.
        """
        try:
            config = json.loads(self._config_file.read_text(encoding="utf-8"))
            config["flags"], config["dataset"]["fingerprint"]
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise InputError(
                f"{self._config_file}: cannot be read ({error}); restore it or use another --name"
            ) from error
        return config

    def open(self, config: dict) -> None:
        """Create the directory where needed and hold it until this process ends.

        Raises:
            InputError: another process is using it, or ``check`` fails.
        """
        self.checkpoints.mkdir(parents=True, exist_ok=True)
        self._lock = hold(
            self.checkpoints,
            f"--name: {self.path} is in use by another process; wait for it, or choose another",
        )
        if self._config_file.exists():
            self.check(config["flags"], config["dataset"]["fingerprint"])
        else:
            write_json(self._config_file, config)
        for partial in self.checkpoints.glob(".partial-*"):
            partial.unlink()

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

        A damaged file is passed over with a warning on standard error.

        Args:
            trainer: a compiled Keras model of the run's configuration, its optimizer built.

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
            return int(path.stem.removeprefix("step-"))
        if files:
            raise InputError(
                f"{self.checkpoints}: none of the {len(files)} checkpoints can be read; "
                "remove them to start the run anew"
            )
        return 0

    def finish(self, network, metrics: dict) -> None:
        """Write the network and, last, the results that mark the run as finished."""
        write_atomically(self.model_file, network.save)
        write_json(self._metrics_file, metrics)

    def _checkpoint_files(self) -> list[pathlib.Path]:
        return sorted(self.checkpoints.glob("step-*.keras"))
