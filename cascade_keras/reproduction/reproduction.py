"""A reproduction as one object: the jobs of a plan, one after the other or several at a time.

    from cascade_keras import Reproduction, ReproductionSettings

    settings = ReproductionSettings(table=[2], dataset="digits", scale=0.1)
    for page in Reproduction(settings).run().pages:
        print(page.read_text())

It can be stopped at any moment, be it by SIGKILL: trainings go on from their checkpoints, banks and
evaluations from their last batch, and what is finished is not done again. A job that fails, or a
training that diverges, leaves the others as they are: what does not need it is done, and the pages
say what is not there and why.
"""

from __future__ import annotations

import collections
import contextlib
import ctypes
import dataclasses
import errno
import functools
import gc
import os
import pathlib
import signal
import subprocess
import sys
import time
import traceback
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence

from cascade_keras import printed
from cascade_keras.errors import InputError, TrainingDiverged, first_line
from cascade_keras.files import check_writable, expand, hold
from cascade_keras.progress import show_progress
from cascade_keras.reproduction import jobs, outcomes
from cascade_keras.reproduction.jobs import Job
from cascade_keras.reproduction.outcomes import Outcome
from cascade_keras.reproduction.plan import Plan
from cascade_keras.reproduction.settings import ReproductionSettings
from cascade_keras.startup import import_tensorflow

_POLL_SECONDS = 0.2
# What a program says where one that was started by a killed reproduction has not ended yet.
_IN_USE = "by another process"
_TRIES = 10
_DIE_WITH_PARENT = 1  # prctl's PR_SET_PDEATHSIG
_BAD_INPUT = 2  # what a program ends with that no other job could do without
# What is wrong with the machine and not with one job: settings, and errors of the system.
_PLACES = "data_dir", "cache_dir"
_FULL = errno.ENOSPC, errno.EDQUOT, errno.EROFS
_PACKAGE = pathlib.Path(__file__).resolve().parents[1]


@dataclasses.dataclass(frozen=True)
class Reproduced:
    """What became of a reproduction.

    Attributes:
        pages: the written pages; those that are finished.
        failed: the jobs that failed, not those that need them.
        diverged: the trainings that did, now or before.
        left_out: names of the jobs that were not done, as they need one of these.
        stopped_by: the signal that ended it before its last job; None where it is finished.
        stopped_in: the job that it ended in.
    """

    pages: tuple[pathlib.Path, ...]
    failed: tuple[Outcome, ...] = ()
    diverged: tuple[Outcome, ...] = ()
    left_out: tuple[str, ...] = ()
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

        A job that fails is kept as failed, and those that need it are left out; the next call tries
        it again. That a training diverged is kept until ``retry_diverged`` asks for another try.

        Raises:
            InputError: the data are not there, another run is in a network's place, or another
                process works in the same folder; or, of ``only``, there is no such job, or one that
                it needs is not done.
            OSError: the disk is full or the like.
        """
        if self.settings.only is not None:
            return self._one(self.settings.only)
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
            if self.settings.retry_diverged:
                self.plan.try_again()
            self.plan.forget_failures()
            return run(left)

    def _one(self, name: str) -> Reproduced:
        """Do one job, or write one page; those that it needs are there."""
        if name not in self.plan:
            raise InputError(f"there is no job {name}; --dry_run lists them", "only")
        job = self.plan.job(name)
        if job.kind == jobs.PAGE:
            return self._ended([self.write(job)], *job.needs)
        self.plan.forget_failures(name)
        found = self._possible(name)
        if found is not None:
            for need in found.needs:
                if not self.plan.job(need).done:
                    raise InputError(f"{name} needs {need}, which is not done", "only")
            stopped = self._do(found)
            if stopped:
                return Reproduced((), stopped_by=stopped, stopped_in=name)
        return self._ended([], name)

    def _in_turn(self, left: list[Job]) -> Reproduced:
        pages = []
        for number, planned in enumerate(left, start=1):
            if planned.kind == jobs.PAGE:
                pages.append(self.write(planned))
                continue
            job = self._possible(planned.name)
            if job is None:
                continue
            self.say(f"[{number}/{len(left)}] {job.name}: {' '.join(job.command)}")
            stopped = self._do(job)
            if stopped:
                return Reproduced(tuple(pages), stopped_by=stopped, stopped_in=job.name)
            _forget_graphs()
        return self._ended(pages)

    def _possible(self, name: str) -> Job | None:
        """Return a job as it can be done by now, None where nothing is left of it."""
        job = self.plan.now(name)
        if isinstance(job, Outcome):
            self.say(f"{name} is not done: {job.words()}")
            return None
        return None if job.done else job

    def _do(self, job: Job) -> signal.Signals | None:
        """Do a job in this process and mark it, or keep why it has no result."""
        try:
            stopped = RUNNERS[job.program](job, self.say)
        except TrainingDiverged as error:
            found = outcomes.diverged(job, error.message, error.step)
            self.say(f"{job.name}: {found.words()}: {error.message}")
        except Exception as error:
            if isinstance(error, InputError) and error.setting in _PLACES:
                raise
            if isinstance(error, OSError) and error.errno in _FULL:
                raise
            reason = str(error) if isinstance(error, InputError) else first_line(error)
            log = self._log(job)
            with open(log, "a", encoding="utf-8") as file:
                traceback.print_exception(error, file=file)
            self.say(f"{job.name}: {outcomes.failed(job, reason, log).words()}")
        else:
            if not stopped:
                job.mark()
            return stopped
        return None

    def _log(self, job: Job) -> pathlib.Path:
        folder = self.settings.folder("logs")
        folder.mkdir(parents=True, exist_ok=True)
        return folder / f"{job.name}.log"

    def _ended(self, pages: Sequence[pathlib.Path], *names: str) -> Reproduced:
        """Return what became of it all, or of some jobs."""
        seen: dict[str, Job | Outcome] = {}
        needed = names or [name for page in self.plan.pages for name in page.needs]
        for name in needed:
            self.plan.now(name, seen=seen)
        lost = [found for found in seen.values() if isinstance(found, Outcome)]
        own = [found for found in lost if found.needed is None]
        return Reproduced(
            tuple(pages),
            failed=tuple(found for found in own if not found.final),
            diverged=tuple(found for found in own if found.final),
            left_out=tuple(found.job for found in lost if found.needed is not None),
        )

    def write(self, job: Job) -> pathlib.Path:
        """Write the page of a table or figure of what is there, and return its path."""
        from cascade_keras.reproduction import pages

        path = pages.write(job, self.plan)
        if not self.plan.lacks(job):
            job.mark()
        self.say(f"{job.name}: {path}")
        return path

    def _beside_each_other(self, left: list[Job]) -> Reproduced:
        waiting = {job.name: job for job in left}
        running: dict[str, subprocess.Popen] = {}
        started: dict[str, Job] = {}
        tries: collections.Counter[str] = collections.Counter()
        pages = []
        with _ending(running):
            while waiting or running:
                while ready := self._ready(waiting, running):
                    del waiting[ready.name]
                    if ready.kind == jobs.PAGE:
                        pages.append(self.write(ready))
                        continue
                    job = self._possible(ready.name)
                    if job is not None:
                        self.say(f"{job.name}: {' '.join(job.command)}")
                        started[job.name] = job
                        running[job.name] = _start(job, self.settings, self._log(job))
                time.sleep(_POLL_SECONDS if running else 0)
                for name in [name for name, child in running.items() if child.poll() is not None]:
                    tries[name] += 1
                    if self._again(started[name], running.pop(name).returncode, tries[name]):
                        waiting[name] = self.plan.job(name)
                        continue
                    done = len(left) - len(waiting) - len(running)
                    found = self.plan.now(name)
                    became = found.words() if isinstance(found, Outcome) else "done"
                    self.say(f"{name}: {became}, {done} of {len(left)}")
        return self._ended(pages)

    def _again(self, job: Job, status: int, tries: int) -> bool:
        """Whether a program that has ended is to be started again; what became of it is kept.

        Raises:
            InputError: it could not begin, for a reason that other jobs would meet too.
        """
        log, kept = self._log(job), outcomes.kept(job)
        why = _why_not(status, log)
        if why is None:
            if kept is None:
                job.mark()
            return False
        if _IN_USE in (kept.reason if kept else why) and tries < _TRIES:
            self.plan.forget_failures(job.name)
            return True
        if status == _BAD_INPUT:
            raise InputError(f"{job.name} {why}")
        if kept is None:  # it was killed before it could say so
            outcomes.failed(job, why, log)
        return False

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


def _start(job: Job, settings: ReproductionSettings, log: pathlib.Path) -> subprocess.Popen:
    """Start a program that does a job, writes into a log and ends with this process."""
    code = "import sys; from cascade_keras.cli import launch; sys.exit(launch.run(sys.argv.pop(1)))"
    path = os.pathsep.join(filter(None, [str(_PACKAGE.parent), os.environ.get("PYTHONPATH")]))
    with open(log, "ab") as file:
        return subprocess.Popen(
            [sys.executable, "-c", code, *settings.doing(job.name)],
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
