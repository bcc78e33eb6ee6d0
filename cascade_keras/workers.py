"""One piece of work shared by several processes, which meet in a folder and nowhere else.

    bin/craft --source=saved/r20p --worker=0/4      one of four; 1/4, 2/4 and 3/4 are the others

Which parts are whose follows from the numbers alone, so there is nothing to be agreed on. A part is
done when a file of its name is in the folder ``.workers`` beside what is made; it is renamed into
its place, and what is there is not made again, by whichever worker of however many. Whoever finds
all parts done puts them together. Needs no TensorFlow.
"""

from __future__ import annotations

import contextlib
import os
import pathlib
import re
import shutil
from collections.abc import Callable, Collection, Iterator, Mapping
from typing import Any, NamedTuple

import msgspec

from cascade_keras.cluster import counts, place_of
from cascade_keras.errors import InputError
from cascade_keras.files import LOCK_FILE, Lock, hold, write_atomically
from cascade_keras.records import Index, OpenRecord, Values, in_words
from cascade_keras.settings import Rule, setting

_FOLDER = ".workers"
_MOST = 9_999  # workers; a cluster's array of jobs has fewer
_MOST_SHOWN = 5  # of them, in a sentence
_TEXT = re.compile(r"([0-9]{1,4})/([0-9]{1,4})")
_EXPECTED = (
    f"a worker's number from 0 on and how many there are, at most {_MOST}, such as 0/4, the first "
    "of four"
)


class Worker(NamedTuple):
    """One of several processes that share a piece of work.

    Attributes:
        index: its number, from 0 on.
        count: how many there are.
    """

    index: int
    count: int

    def __str__(self) -> str:
        return f"{self.index}/{self.count}"

    def takes(self, number: int) -> bool:
        """Whether a numbered part is its own."""
        return number % self.count == self.index


def of_text(text: str | None) -> Worker | None:
    """Return the worker that a text such as 0/4 means, None for None.

    Raises:
        ValueError: it means none.
    """
    if text is None:
        return None
    match = _TEXT.fullmatch(text)
    worker = Worker(*map(int, match.groups())) if match else Worker(0, 0)
    if worker.index >= worker.count:
        raise ValueError(f"not {_EXPECTED}: {text}")
    return worker


def _is_worker(text: str) -> bool:
    with contextlib.suppress(ValueError):
        return of_text(text) is not None
    return False


def worker_setting(what: str) -> Any:
    """Return the field of settings whose work can be shared.

    Args:
        what: a worker takes, for the help text.
    """
    return setting(
        None,
        f"Share the work with other processes on the same folder: 0/4 is the first of four and "
        f"takes a quarter of the {what}; default: what TF_CONFIG says of a cluster, else all.",
        Rule(_is_worker, _EXPECTED),
        operational=True,
    )


class _Task(OpenRecord):
    type: str
    index: Index = 0


class _Cluster(OpenRecord):
    """TF_CONFIG as TensorFlow has it: the addresses of each kind of task, and which this is."""

    cluster: dict[str, list[str] | Values] = {}  # noqa: RUF012  msgspec copies it
    task: _Task | None = None


def from_tf_config(text: str | None = None) -> Worker | None:
    """Return which worker a process is in a cluster of TensorFlow's; None outside of any.

    A chief is the first of the workers.

    Args:
        text: what ``TF_CONFIG`` holds; None looks into the environment.

    Raises:
        InputError: it cannot be read, or the process is none of the workers.
    """
    text = os.environ.get("TF_CONFIG", "") if text is None else text
    if not text.strip():
        return None
    try:
        told = msgspec.json.decode(text, type=_Cluster, strict=False)
    except (msgspec.DecodeError, ValueError, RecursionError) as error:
        raise InputError(f"TF_CONFIG: {in_words(error)}; mend it, or say --worker") from error
    sizes, task = {kind: len(each) for kind, each in told.cluster.items()}, told.task
    chiefs, count = counts(sizes)
    if count == 0 and task is None:
        return None
    if task is None or task.type not in ("chief", "master", "worker"):
        kind = "no task" if task is None else f"the task {task.type[:40]!r}"
        raise InputError(
            f"TF_CONFIG: has {kind}, and only a chief and workers share work; say --worker"
        )
    of_kind = count - chiefs if task.type == "worker" else chiefs
    if task.index >= of_kind or count > _MOST:
        raise InputError(
            f"TF_CONFIG: there is no {task.type} {task.index} among {of_kind} (at most {_MOST} "
            "workers in all); mend it, or say --worker"
        )
    return Worker(place_of(sizes, task.type, task.index), count)


# What lies in the folder.


class Crew:
    """The workers on one directory: who is at work, and which parts are done.

        .workers/NAME         a part that is done
                 0-of-4.lock  there as long as worker 0/4 is at work
                 .lock        there for the moments that only one of them may have

    Locks only spare work and waiting: without any, as on a network's file system that does not
    share them, the same files come out.

    Args:
        directory: what is made lies there.
        worker: which of them this process is; None for one that is none of them.
    """

    def __init__(self, directory: pathlib.Path, worker: Worker | None = None):
        self.worker = worker
        self._path = directory / _FOLDER

    @contextlib.contextmanager
    def joined(self, place: str | os.PathLike, setting: str | None = None) -> Iterator[None]:
        """Be at work as long as the block runs; one that is no worker only has the block run.

        Args:
            place: what is worked on, for messages.
            setting: that names it.

        Raises:
            InputError: a worker of the same number, or of another count, is at work.
        """
        if self.worker is None:
            yield
            return
        twice = (
            f"{place}: worker {self.worker} is at work already; wait for it, or take another number"
        )
        with self.alone():
            for other in self._at_work():
                if other.count != self.worker.count:
                    raise InputError(
                        f"{place}: worker {other} is at work, one of {other.count}, got "
                        f"{self.worker}; wait for it, or divide by the same number",
                        setting,
                    )
            own = hold(self._path, twice, setting, name=_lock_of(self.worker), fleeting=True)
        try:
            yield
        finally:
            own.close()
            with contextlib.suppress(OSError):  # what is done, or others who are at work
                self._path.rmdir()

    def alone(self) -> contextlib.AbstractContextManager:
        """Wait for the lock that keeps the other workers from what one may do at a time.

        One that is no worker has nobody to wait for.
        """
        if self.worker is None:
            return contextlib.nullcontext()
        while True:
            self._path.mkdir(exist_ok=True)
            # Whoever has put all together takes the folder away.
            with contextlib.suppress(FileNotFoundError):
                return self._wait()

    def _wait(self) -> Lock:
        return Lock(self._path, wait=True, name=LOCK_FILE, fleeting=True)

    def claimed(self, name: str) -> Lock | None:
        """Return the lock of a part that anyone may make, None where another worker has it."""
        with contextlib.suppress(BlockingIOError, FileNotFoundError):
            return Lock(self._path, name=f"{name}.lock", fleeting=True)
        return None

    def at_work(self) -> set[int]:
        """Return the numbers of the workers, of as many as these, that are at work."""
        with contextlib.suppress(FileNotFoundError), self._wait():
            return {other.index for other in self._at_work() if other.count == self.worker.count}
        return set()

    def _at_work(self) -> Iterator[Worker]:
        """Yield the workers whose locks are held; the caller is alone."""
        for file in sorted(self._path.glob("*-of-*.lock")):
            worker = file.name.removesuffix(".lock").replace("-of-", "/")
            if not _is_worker(worker):
                continue
            try:
                Lock(self._path, name=file.name, fleeting=True).close()
            except BlockingIOError:
                yield of_text(worker)

    def done(self) -> set[str]:
        """Return the names of the parts that are done."""
        with contextlib.suppress(FileNotFoundError):
            return {
                name
                for name in os.listdir(self._path)
                if not name.startswith(".") and not name.endswith(".lock")
            }
        return set()

    def file(self, name: str) -> pathlib.Path:
        """Return where the part of this name is once it is done."""
        return self._path / name

    def put(self, name: str, write: Callable[[pathlib.Path], object] = pathlib.Path.touch) -> None:
        """Say that a part is done, whose file ``write`` fills.

        Raises:
            OSError: the disk is full or the like.
        """
        self._path.mkdir(exist_ok=True)
        write_atomically(self.file(name), write)

    def forget_done(self) -> None:
        """Take away what is done, as what it is part of is gone."""
        for name in self.done():
            self.file(name).unlink(missing_ok=True)

    def forget(self) -> None:
        """Take away the folder, as all that is done has been put together."""
        shutil.rmtree(self._path, ignore_errors=True)


def _lock_of(worker: Worker) -> str:
    return f"{worker.index}-of-{worker.count}.lock"


def counted(number: int, one: str, several: str) -> str:
    """Return how many of something are, by what one and several are called."""
    return f"{number} {one} is" if number == 1 else f"{number} {several} are"


def left(
    missing: Mapping[int, int], worker: Worker, unit: tuple[str, str], at_work: Collection[int]
) -> str:
    """Return a sentence of what other workers have not done yet.

    Args:
        missing: how many parts, by the worker's number.
        worker: who says it.
        unit: what a part is called, see ``counted``.
        at_work: who is making them now.
    """
    total = sum(missing.values())
    owners = [
        f"{index}/{worker.count} ({count}{', at work' if index in at_work else ''})"
        for index, count in sorted(missing.items())
    ]
    more = [f"{len(owners) - _MOST_SHOWN} others"] if owners[_MOST_SHOWN:] else []
    absent = [index for index in sorted(missing) if index not in at_work]
    mend = ""
    if absent:
        others = " and so on" if absent[1:] else ""
        mend = (
            f"; the same command with --worker={absent[0]}/{worker.count}{others}, or without "
            "--worker, makes what nobody is at work on"
        )
    return (
        f"{counted(total, *unit)} missing, of "
        f"worker{'s' if owners[1:] else ''} {', '.join([*owners[:_MOST_SHOWN], *more])}{mend}"
    )
