"""An evaluation that several workers share: who computes which batches, and all of them together.

A worker keeps each batch in a file of its own, in ``.workers`` beside the arrays (workers.py), so
that no two write into one array. Whoever finds all batches there lays them into the arrays and
writes the report, as one process would.
"""

from __future__ import annotations

import itertools
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Annotated, Any, Literal

import msgspec
import numpy as np
from msgspec import Meta

from cascade_keras.errors import InputError
from cascade_keras.evaluation import tasks
from cascade_keras.evaluation.measuring import Measuring
from cascade_keras.evaluation.stores import DiskArrays, file_name
from cascade_keras.evaluation.tasks import Clock, Task
from cascade_keras.records import Count, Index, NotNegative, Record, Text, read_arrays
from cascade_keras.workers import Crew, Worker, counted, left

# Gradients of an image that loading a network and tracing an attack take, about: some seconds, for
# which one worker rather computes a short task alone.
_START = 5_000
_SECONDS = 1.0  # between two looks at what others have done
_HEADER = "header"

# Batches of tasks, in the order in which they are computed.
Batches = list[tuple[Task, list[slice]]]


def owners(planned: Sequence[Task], count: int) -> dict[tuple[str, int], int]:
    """Return which worker computes each batch, by the task's key and the batch's first place.

    It follows from the tasks alone, so that all workers know it: the longest first, each to whoever
    has least to do then. Batches that take less than starting with their task stay together.

    Args:
        planned: the tasks.
        count: of the workers.
    """
    units = []
    for task in planned:
        batches = tasks.batches(task)
        parts = int(sum(tasks.cost(task, batch) for batch in batches) // _START)
        if getattr(task, "whole", False) or parts == 0:
            parts = 1
        size = -(-len(batches) // parts)
        for first in range(0, len(batches), size):
            unit = batches[first : first + size]
            units.append((task, unit, sum(tasks.cost(task, batch) for batch in unit)))
    units.sort(key=lambda unit: -unit[2])  # those that are alike stay in their order
    loads = [0.0] * min(count, len(units))
    begun: set[tuple[int, str]] = set()
    found = {}
    for task, unit, cost in units:
        costs = [
            load + cost + (0 if (index, task.key) in begun else _START)
            for index, load in enumerate(loads)
        ]
        index = int(np.argmin(costs))
        loads[index] = costs[index]
        begun.add((index, task.key))
        found |= {(task.key, batch.start): index for batch in unit}
    return found


class _Array(Record):
    """The array that a part of a batch belongs into."""

    key: Text
    shape: Annotated[list[Count], Meta(min_length=1)]
    dtype: Literal["int8", "int16", "int32", "float32"]
    missing: float | None  # None for NaN, which JSON does not have


class _Header(Record):
    """What a batch in a file says of itself."""

    first: Index
    arrays: list[_Array]
    crafting: NotNegative
    classifying: NotNegative


class Parts:
    """Batches that workers have computed, each in a file of its own.

    Args:
        arrays: where they are put together.
        crew: of the arrays' directory.
    """

    def __init__(self, arrays: DiskArrays, crew: Crew):
        self._arrays, self._crew = arrays, crew

    def missing(self, planned: Sequence[Task]) -> Batches:
        """Return the tasks of which batches are neither in the arrays nor beside them."""
        done = self._crew.done()  # before the arrays, which have them before they go
        arrays = DiskArrays(self._arrays.path, writable=False, absent=True)
        found = []
        for task in planned:
            absent = [
                batch
                for batch in tasks.missing_batches(task, arrays)
                if _name(task, batch) not in done
            ]
            if absent:
                found.append((task, absent))
        return found

    def keeper(self, clock: Clock) -> tasks.Keeper:
        """Return what keeps batches here, with the time that each took."""

        def of_task(task: Task) -> Callable[[slice, Sequence[np.ndarray]], None]:
            described = [
                _Array(
                    key=each.key,
                    shape=[*each.shape, len(each.indices)],
                    dtype=each.dtype,
                    missing=None if np.isnan(each.missing) else each.missing,
                )
                for each in tasks.arrays_of(task)
            ]

            def keep(batch: slice, parts: Sequence[np.ndarray]) -> None:
                header = _Header(first=batch.start, arrays=described, **clock.take())
                held = {
                    str(number): np.asarray(part, each.dtype)
                    for number, (part, each) in enumerate(zip(parts, described, strict=True))
                }
                held[_HEADER] = np.array(msgspec.json.encode(header).decode())
                self._crew.put(_name(task, batch), lambda file: np.savez(file, **held))

            return keep

        return of_task

    def claimed(self, task: Task, batches: Sequence[slice]) -> Iterator[slice]:
        """Yield the batches that nobody else computes; each is this worker's until the next."""
        for batch in batches:
            name = _name(task, batch)
            lock = self._crew.claimed(name)
            if lock is not None:
                with lock:
                    if name not in self._crew.done():
                        yield batch

    def view(self) -> _View:
        """Return the arrays with all batches in them, in memory."""
        return _View(self._arrays.path, list(self._read()))

    def collect(self) -> dict[str, float]:
        """Lay the batches into the arrays, and return the seconds that they took.

        Raises:
            InputError: a file is damaged.
        """
        spent = {"crafting": 0.0, "classifying": 0.0}
        for header, parts in self._read():
            filled = [self._arrays.open(*_described(each)) for each in header.arrays]
            tasks.lay(filled, _places(header, parts), parts)
            for name in spent:
                spent[name] += getattr(header, name)
        return spent

    def _read(self) -> Iterator[tuple[_Header, list[np.ndarray]]]:
        for name in sorted(self._crew.done()):
            file = self._crew.file(name)
            held = read_arrays(file)
            if held is None and not file.exists():
                continue  # whoever has put all together was here
            try:
                header = msgspec.json.decode(str(held[_HEADER]), type=_Header)
                parts = [held[str(number)] for number in range(len(header.arrays))]
                for part, each in zip(parts, header.arrays, strict=True):
                    if part.shape[:-1] != tuple(each.shape[:-1]) or part.dtype != each.dtype:
                        raise ValueError(each.key)
                yield header, parts
            except (TypeError, KeyError, ValueError) as error:
                raise InputError(
                    f"{file} is damaged; remove it to compute it again", "output"
                ) from error


def _places(header: _Header, parts: Sequence[np.ndarray]) -> slice:
    return slice(header.first, header.first + parts[0].shape[-1])


def _described(each: _Array) -> tuple[str, list[int], str, float]:
    return each.key, each.shape, each.dtype, np.nan if each.missing is None else each.missing


def _name(task: Task, batch: slice) -> str:
    return f"part-{file_name(task.key)}--{batch.start}.npz"


class _View:
    """Arrays on disk with batches laid over them, in memory: see ``stores.Arrays``."""

    def __init__(self, path, parts: Sequence[tuple[_Header, list[np.ndarray]]]):
        self._below, self._parts = DiskArrays(path, writable=False, absent=True), parts

    def open(self, key: str, *described: Any) -> np.ndarray:
        """Return a copy of the array."""
        array = np.array(self._below.open(key, *described))
        for header, parts in self._parts:
            for each, part in zip(header.arrays, parts, strict=True):
                if each.key == key:
                    tasks.lay([array], _places(header, parts), [part])
        return array


class Sharing:
    """One worker's share of an evaluation.

    First come the batches that are its own. Where attacks may follow that depend on what all of
    these found, it waits for workers that are computing theirs, as long as every batch that is
    missing has such a worker; then any worker takes what nobody else does.

    Args:
        measuring: the evaluation.
        worker: which share.
    """

    def __init__(self, measuring: Measuring, worker: Worker):
        self._measuring, self.worker = measuring, worker
        self._tasks = measuring.plan.tasks
        self._owners = owners(self._tasks, worker.count)
        whole = self._each((task, tasks.batches(task)) for task in self._tasks)
        self._own = sum(tasks.cost(*each) for each in whole if self._is_own(*each))
        self._more = 0.0

    @property
    def work(self) -> int:
        """How many gradients this worker takes, about, with those that were taken before."""
        return round(self._own + self._more)

    @staticmethod
    def _each(batches: Iterable[tuple[Task, list[slice]]]) -> Iterator[tuple[Task, slice]]:
        return ((task, batch) for task, some in batches for batch in some)

    def _is_own(self, task: Task, batch: slice) -> bool:
        return self._owners[task.key, batch.start] == self.worker.index

    def run(
        self,
        parts: Parts,
        crew: Crew,
        progress: Callable[[int], None],
        say: Callable[[str], None],
    ) -> str:
        """Compute what is missing of the share; return what others have not computed, "" for all.

        Args:
            parts, crew: where all workers keep their batches.
            progress: called with the gradients done of ``work``.
            say: called with a sentence before it waits.
        """
        measuring = self._measuring
        own = [
            (task, [batch for batch in absent if self._is_own(task, batch)])
            for task, absent in parts.missing(self._tasks)
        ]
        done = self._own - sum(itertools.starmap(tasks.cost, self._each(own)))
        self._compute(own, parts, progress, done)
        if sentence := self._waited(parts, crew, say):
            return sentence
        measuring.follow(parts.view())
        following = parts.missing(measuring.plan.following)
        self._more = sum(itertools.starmap(tasks.cost, self._each(following)))
        turned = _turned(following, self.worker)
        lazily = [(task, parts.claimed(task, _turned(some, self.worker))) for task, some in turned]
        self._compute(lazily, parts, progress, self._own)
        absent = sum(len(some) for _, some in parts.missing(measuring.plan.following))
        if not absent:
            return ""
        return (
            f"of attacks that follow {counted(absent, 'batch', 'batches')} missing; "
            "other workers are at work on what is missing, or the same command again makes it"
        )

    def _compute(self, batches, parts: Parts, progress, done: float) -> None:
        measuring = self._measuring
        tasks.compute(
            batches,
            measuring.networks,
            *measuring.shown,
            parts.keeper(measuring.plan.clock),
            progress,
            done,
        )

    def _waited(self, parts: Parts, crew: Crew, say: Callable[[str], None]) -> str:
        """Return what is missing of the workers' own batches, "" where all are there."""
        told: set[int] = set()
        while missing := Counter(
            self._owners[task.key, batch.start]
            for task, batch in self._each(parts.missing(self._tasks))
        ):
            at_work = crew.at_work()
            if not self._measuring.may_follow or not missing.keys() <= at_work:
                return left(missing, self.worker, ("batch", "batches"), at_work)
            if missing.keys() != told:
                told = set(missing)
                names = ", ".join(f"{index}/{self.worker.count}" for index in sorted(told))
                say(f"waits for what workers are computing, as attacks may follow: {names}")
            time.sleep(_SECONDS)
        return ""


def _turned(items: Sequence, worker: Worker) -> list:
    """Return items in an order of the worker's own, so that workers meet late."""
    first = worker.index * len(items) // worker.count
    return [*items[first:], *items[:first]]
