"""A reproduction as one object: the jobs of a plan, one after the other or several at a time.

    from cascade_keras import Reproduction, ReproductionSettings

    settings = ReproductionSettings(table=[2], dataset="digits", scale=0.1)
    for page in Reproduction(settings).run().pages:
        print(page.read_text())

It can be stopped at any moment, be it by SIGKILL: trainings go on from their checkpoints, banks and
evaluations from their last batch, and what is finished is not done again.
"""

from __future__ import annotations

import collections
import contextlib
import ctypes
import dataclasses
import functools
import gc
import os
import pathlib
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Collection, Iterator, Mapping

from cascade_keras import printed
from cascade_keras.errors import InputError
from cascade_keras.files import check_writable, expand, hold
from cascade_keras.progress import show_progress
from cascade_keras.reproduction import jobs
from cascade_keras.reproduction.jobs import Job
from cascade_keras.reproduction.plan import Plan
from cascade_keras.reproduction.settings import ReproductionSettings
from cascade_keras.startup import import_tensorflow

_POLL_SECONDS = 0.2
# What a program says where one that was started by a killed reproduction has not ended yet.
_IN_USE = "by another process"
_TRIES = 10
_DIE_WITH_PARENT = 1  # prctl's PR_SET_PDEATHSIG
_PACKAGE = pathlib.Path(__file__).resolve().parents[1]


@dataclasses.dataclass(frozen=True)
class Reproduced:
    """What became of a reproduction.

    Attributes:
        pages: the written pages; those that are finished.
        stopped_by: the signal that ended it before its last job; None where it is finished.
        stopped_in: the job that it ended in.
    """

    pages: tuple[pathlib.Path, ...]
    stopped_by: signal.Signals | None = None
    stopped_in: str = ""


class Reproduction:
    """Trains and measures what tables and figures need, and writes their pages.

    Args:
        settings: which tables and figures, and how.
        say: told in one line each what a person might want to know.

    Attributes:
        settings: as given.
        plan: of all that has to be done, see ``Plan``.

    Raises:
        InputError: nothing is wanted, or settings do not go together.
    """

    def __init__(self, settings: ReproductionSettings, *, say: Callable[[str], None] = printed.say):
        self.settings, self.say = settings, say
        self.plan = Plan(settings)
        check_writable(expand(settings.output), "output")

    def run(self) -> Reproduced:
        """Do what is left of the plan.

        In the main thread of a process, SIGTERM and Ctrl-C end it after the step under way of a
        training, else at once; nothing is lost either way.

        Raises:
            InputError: a job cannot be done, as its data are not there or another run is in its
                place; or another process works in the same folder.
            OSError: the disk is full or the like.
        """
        left = self.plan.left()  # refuses what is in the way before anything is made
        output = pathlib.Path(self.settings.output)
        output.mkdir(parents=True, exist_ok=True)
        there = len(self.plan.jobs) - len(left)
        self.say(f"{output}: {len(left)} jobs to do, {there} done before or not needed")
        run = self._in_turn if self.settings.jobs == 1 else self._beside_each_other
        if all(job.kind == jobs.PAGE for job in left):  # several may be written at once
            return run(left)
        in_use = f"{output} is in use by another process; wait for it, or name another"
        with hold(output, in_use, "output"):
            return run(left)

    def _in_turn(self, left: list[Job]) -> Reproduced:
        pages = []
        for number, job in enumerate(left, start=1):
            if job.kind == jobs.PAGE:
                pages.append(self.write(job))
                continue
            self.say(f"[{number}/{len(left)}] {job.name}: {' '.join(job.command)}")
            stopped = RUNNERS[job.program](job, self.say)
            if stopped:
                return Reproduced(tuple(pages), stopped, job.name)
            job.mark()
            _forget_graphs()
        return Reproduced(tuple(pages))

    def write(self, job: Job) -> pathlib.Path:
        """Write the page of a table or figure, of which all is there, and return its path."""
        from cascade_keras.reproduction import pages

        path = pages.write(job, self.plan)
        job.mark()
        self.say(f"{job.name}: {path}")
        return path

    def _beside_each_other(self, left: list[Job]) -> Reproduced:
        waiting = {job.name: job for job in left}
        running: dict[str, subprocess.Popen] = {}
        tries: collections.Counter[str] = collections.Counter()
        pages = []
        logs = self.settings.folder("logs")
        logs.mkdir(exist_ok=True)
        with _ending(running):
            while waiting or running:
                while job := self._ready(waiting, running):
                    del waiting[job.name]
                    if job.kind == jobs.PAGE:
                        pages.append(self.write(job))
                        continue
                    self.say(f"{job.name}: {' '.join(job.command)}")
                    running[job.name] = _start(job, logs / f"{job.name}.log")
                time.sleep(_POLL_SECONDS if running else 0)
                for name in [name for name, child in running.items() if child.poll() is not None]:
                    why = _why_not(running.pop(name).returncode, logs / f"{name}.log")
                    tries[name] += 1
                    if why is None:
                        self.plan.job(name).mark()
                        done = len(left) - len(waiting) - len(running)
                        self.say(f"{name}: done, {done} of {len(left)}")
                    elif _IN_USE in why and tries[name] < _TRIES:
                        waiting[name] = self.plan.job(name)
                    else:
                        raise InputError(f"{name} {why}")
        return Reproduced(tuple(pages))

    def _ready(self, waiting: Mapping[str, Job], running: Collection[str]) -> Job | None:
        """Return a job that can be started now, None where there is none."""
        for job in waiting.values():
            free = job.kind == jobs.PAGE or len(running) < self.settings.jobs
            if free and not {*waiting, *running} & {*job.needs}:
                return job
        return None


# One job in this process.


def _train(job: Job, say: Callable) -> signal.Signals | None:
    from cascade_keras.runs.training_run import Training

    return Training(job.settings, say=say).run().stopped_by


def _craft(job: Job, say: Callable) -> None:
    from cascade_keras.crafting import Crafting

    crafting = Crafting(job.settings, say=say)
    import_tensorflow()
    with show_progress(f"crafting {job.name}", crafting.share) as progress:
        crafting.run(progress)


def _evaluate(job: Job, say: Callable) -> None:
    import_tensorflow()
    from cascade_keras.evaluation import Evaluation

    evaluation = Evaluation(job.settings)
    for note in evaluation.notes:
        say(f"note: {note}")
    with show_progress(f"{job.name}, gradients", lambda: evaluation.work) as progress:
        evaluation.run(progress)


def _analyze(job: Job, say: Callable) -> None:
    from cascade_keras.figures import Figure

    figure = Figure(job.settings)
    import_tensorflow()
    with show_progress(f"{job.name}, images", figure.work) as progress:
        figure.draw(progress)


RUNNERS: Mapping[str, Callable[[Job, Callable], signal.Signals | None]] = {
    "train": _train,
    "craft": _craft,
    "evaluate": _evaluate,
    "analyze": _analyze,
}


def _forget_graphs() -> None:
    """Free what a job has compiled: dozens follow each other in one process."""
    keras = sys.modules.get("keras")
    if keras is not None:
        keras.backend.clear_session()
        gc.collect()


# Several jobs, each a process.


def _start(job: Job, log: pathlib.Path) -> subprocess.Popen:
    """Start a program that writes into a log and ends with this process, however that ends."""
    code = "import sys; from cascade_keras.cli import launch; sys.exit(launch.run(sys.argv.pop(1)))"
    path = os.pathsep.join(filter(None, [str(_PACKAGE.parent), os.environ.get("PYTHONPATH")]))
    with open(log, "ab") as file:
        return subprocess.Popen(
            [sys.executable, "-c", code, job.program, *job.flags],
            stdin=subprocess.DEVNULL,
            stdout=file,
            stderr=subprocess.STDOUT,
            env={**os.environ, "PYTHONPATH": path},
            start_new_session=True,  # Ctrl-C is passed on by this process, once
            preexec_fn=_dying_with_parent(),
        )


def _why_not(status: int, log: pathlib.Path) -> str | None:
    """Return why a program has not done its job, None where it has."""
    if status == 0:
        return None
    lines = [line for line in log.read_text("utf-8", "replace").splitlines() if line.strip()]
    return f"ended with {status}, see {log}: {lines[-1] if lines else 'without a word'}"


def _dying_with_parent() -> Callable[[], None] | None:
    """Return what lets a child of this process be terminated when it is killed; Linux only."""
    if not sys.platform.startswith("linux"):
        return None
    prctl = ctypes.CDLL(None).prctl  # here: a child must not load anything
    return functools.partial(prctl, _DIE_WITH_PARENT, signal.SIGTERM)


@contextlib.contextmanager
def _ending(running: Mapping[str, subprocess.Popen]) -> Iterator[None]:
    """Let the programs that run write what they keep, if the block ends before them."""
    try:
        yield
    finally:
        for child in running.values():
            child.terminate()
        for child in running.values():
            child.wait()
