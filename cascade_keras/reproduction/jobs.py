"""Jobs: one call of a program each, as settings and as a command; no TensorFlow."""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import json
import pathlib
from collections.abc import Mapping
from typing import Any

from cascade_keras.data.specs import look_up
from cascade_keras.errors import InputError, shown
from cascade_keras.runs.run import Run
from cascade_keras.runs.settings import TrainingSettings
from cascade_keras.settings import Settings, as_flags

INITIALISATION, NETWORK = "initialisation", "network"
BANK, EVALUATION, FIGURE, PAGE = "bank", "evaluation", "figure", "page"
TRAINED = INITIALISATION, NETWORK
PROGRAMS = {
    INITIALISATION: "train",
    NETWORK: "train",
    BANK: "craft",
    EVALUATION: "evaluate",
    FIGURE: "analyze",
    PAGE: "reproduce",
}
# What may differ in a run that is taken for the one that is wanted: how it was measured, on which
# kind of device it was computed, and where its cascade images came from.
_MAY_DIFFER = (
    "log_steps", "eval_attacks", "eval_epsilon", "eval_examples", "jit_compile", "deterministic",
    "cascade_mode", "bank_examples",
)  # fmt: skip
_SOURCES = ("cascade_source", "ensemble_source")
_PLACES = ("data_dir", "cache_dir", "output")  # on this machine, which do not change a result


@dataclasses.dataclass(frozen=True)
class Job:
    """One step of a reproduction.

    Attributes:
        name: no other job's.
        kind: a key of ``PROGRAMS``.
        needs: names of the jobs that have to be done before.
        settings: of the program.
        beside: what its command says without a flag, by ``said``; the defaults where None.
        said: the flags that say it, such as a recipe's.
        output: the folder of a reproduction that everything is kept in.
        result: what is there once it is done, the last of its files to be written; of
            measurements it follows from ``digest``.
        digests: of the jobs that it needs, by their names.
        steps: of training.
        gradients: about how many are taken of an image, in all.
        number: of a page: its table or figure.
    """

    name: str
    kind: str
    needs: tuple[str, ...]
    settings: Any  # of the program's own class
    output: pathlib.Path
    result: pathlib.Path = pathlib.Path()
    said: tuple[str, ...] = ()
    beside: Settings | None = None
    digests: Mapping[str, str] = dataclasses.field(default_factory=dict)
    steps: int = 0
    gradients: float = 0.0
    number: int = 0

    @property
    def program(self) -> str:
        """The program that does it, without its folder."""
        return PROGRAMS[self.kind]

    @functools.cached_property
    def flags(self) -> tuple[str, ...]:
        """The program's flags."""
        return (*self.said, *as_flags(self.settings, self.beside))

    @property
    def command(self) -> tuple[str, ...]:
        """The program with its flags, as it is called in a checkout."""
        return (f"bin/{self.program}", *self.flags)

    @functools.cached_property
    def digest(self) -> str:
        """A hash of all that its result follows from, but not of where things lie."""
        places = tuple(f"--{name}=" for name in _PLACES)
        flags = [
            flag.replace(f"{self.output}/", "")
            for flag in self.flags
            if not flag.startswith(places)
        ]
        content = [self.name, self.program, flags, sorted(self.digests.items())]
        return hashlib.sha256(json.dumps(content).encode()).hexdigest()[:10]

    @property
    def stamp(self) -> pathlib.Path:
        """An empty file that says that it is done; another one for other flags."""
        return self.output / "stamps" / f"{self.name}-{self.digest}.done"

    @property
    def done(self) -> bool:
        """Whether nothing is left to do: of a network its run says so, else the stamp.

        Raises:
            InputError: there is a run of this name, of another network.
        """
        if self.kind in TRAINED:
            return finished(self.settings)
        return self.stamp.exists() and self.result.exists()

    def mark(self) -> None:
        """Write the stamp."""
        self.stamp.parent.mkdir(parents=True, exist_ok=True)
        self.stamp.touch()


def finished(settings: TrainingSettings) -> bool:
    """Whether a network has been trained as these settings say, be it elsewhere.

    How it was measured and on which device may differ, and the folder that its runs lay in.

    Raises:
        InputError: a run of this name is there, and it is another one.
    """
    run = Run(pathlib.Path(settings.runs_dir) / settings.name)
    if not run.started:
        return False
    row = look_up(settings.dataset)
    wanted = settings.resolved(row).decisive()
    config = run.read_config()
    missing = [name for name in wanted if name not in config.flags]
    there = {**config.flags, **(settings.defaults(missing, row) if missing else {})}
    for name, value in wanted.items():
        if name not in _MAY_DIFFER and _alike(name, there[name]) != _alike(name, value):
            raise InputError(
                f"{run.path} was trained with {name} {shown(there[name])}, here it is "
                f"{shown(value)}; remove it, or name another output",
                "output",
            )
    if not run.finished:
        return False
    run.read_metrics()
    run.check_model()
    return True


def _alike(name: str, value):
    """Return a setting's value as far as it counts: sources by the names of their folders.

    Of initialisations that there is one: elsewhere its folder may have had another name.
    """
    if name == "init_from":
        return value is not None
    return [pathlib.PurePath(each).name for each in value] if name in _SOURCES else value
