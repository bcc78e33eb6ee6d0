"""What became of jobs that have no result: those that failed, and trainings that diverged.

    reproduction/outcomes/R20_P-lambda10-s0-0123456789.json

A failure is tried again by the next start; that a training diverges is a result, which stays until
it is asked for again. No TensorFlow.
"""

from __future__ import annotations

import pathlib
from collections.abc import Collection
from typing import Literal

import msgspec

from cascade_keras.errors import one_line
from cascade_keras.files import write_json
from cascade_keras.records import Count, Record, Text, read
from cascade_keras.reproduction.jobs import Job

FAILED, DIVERGED = "failed", "diverged"
_LONGEST = 300  # of a reason


class Outcome(Record, omit_defaults=True):
    """Why a job has no result.

    Attributes:
        job: its name.
        state: ``FAILED`` or ``DIVERGED``.
        reason: in one line.
        step: that a training diverged at.
        command: that does it.
        log: what was printed, from the folder of the reproduction.
        needed: the job whose outcome this is, of one that needs it and cannot be done without.
    """

    job: Text
    state: Literal["failed", "diverged"]
    reason: Text
    command: list[Text]
    step: Count | None = None
    log: Text | None = None
    needed: Text | None = None

    @property
    def final(self) -> bool:
        """Whether it stays as it is until somebody asks for another try."""
        return self.state == DIVERGED

    def words(self) -> str:
        """Return it as a page says it: "failed: reason"."""
        itself = f"failed: {self.reason}"
        if self.state == DIVERGED:
            itself = f"diverged at step {self.step}"
        return f"needs {self.needed}, which {itself}" if self.needed else itself

    def for_one_that_needs_it(self, job: Job) -> Outcome:
        """Return the outcome of a job that cannot be done without this one."""
        needed = self.needed or self.job
        return msgspec.structs.replace(
            self, job=job.name, needed=needed, command=list(job.command), log=None
        )


def file_of(job: Job) -> pathlib.Path:
    """Return where the outcome of a job is kept."""
    return job.output / "outcomes" / f"{job.name}-{job.digest}.json"


def keep(job: Job, outcome: Outcome) -> Outcome:
    """Write a job's outcome, and return it."""
    file = file_of(job)
    file.parent.mkdir(parents=True, exist_ok=True)
    write_json(file, msgspec.to_builtins(outcome))
    return outcome


def forget(output: pathlib.Path, names: Collection[str], *states: str) -> None:
    """Remove the outcomes of jobs, whatever they were done without.

    Args:
        output: of the reproduction.
        names: of the jobs.
        states: ``FAILED``, ``DIVERGED`` or both.

    Raises:
        InputError: a file is damaged.
    """
    for file in sorted((output / "outcomes").glob("*.json")):
        found = _read(file)
        if found and found.job in names and found.state in states:
            file.unlink(missing_ok=True)


def kept(job: Job) -> Outcome | None:
    """Return a job's own outcome, None where there is none.

    Raises:
        InputError: its file is damaged.
    """
    return _read(file_of(job))


def _read(file: pathlib.Path) -> Outcome | None:
    try:
        return read(file, Outcome, "remove it and start the command again")
    except FileNotFoundError:
        return None


def failed(job: Job, reason: str, log: pathlib.Path | None = None) -> Outcome:
    """Keep that a job failed, and return it."""
    reason = one_line(reason, _LONGEST) or "without a word"
    place = None if log is None else str(log.relative_to(job.output))
    return keep(
        job,
        Outcome(job=job.name, state=FAILED, reason=reason, command=list(job.command), log=place),
    )


def diverged(job: Job, reason: str, step: int) -> Outcome:
    """Keep that a training diverged, and return it."""
    reason = one_line(reason, _LONGEST)
    return keep(
        job,
        Outcome(
            job=job.name,
            state=DIVERGED,
            reason=reason,
            step=max(step, 1),
            command=list(job.command),
        ),
    )
