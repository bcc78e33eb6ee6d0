"""Reading the images of ``forms``: into the memory, or where they do not fit into a file, once.

    decoded/NAME-HASH/images.npy     (N, H, W, C) uint8: the training split, then the test split
                      decoded.json   what it follows from, and how many images are complete

The hash is one of all that the images follow from, such as the names, sizes and times of files and
the size asked for, so other images are another folder. Images are complete in the order in which
they are read; a process that was killed is gone on with after the last one that is.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import math
import os
import pathlib
import shutil
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import numpy as np
from rich.filesize import decimal

from cascade_keras import records
from cascade_keras.data.parts import Form, Part, recorded_name, split
from cascade_keras.data.specs import DatasetSpec, Origin
from cascade_keras.errors import InputError
from cascade_keras.files import (
    check_writable,
    clean,
    expand,
    hold,
    naming,
    nearest_existing,
    reserve,
    write_json,
)
from cascade_keras.progress import show_progress
from cascade_keras.records import Count, Index, Record, Sha256, Text

FORMAT = 1
MOST_IN_MEMORY = 2 * 2**30  # bytes of pixels: all splits together
DEFAULT_DIR = "decoded"


class DecodedRecord(Record):
    """decoded.json."""

    format: Count
    name: Text
    hash: Sha256
    shape: list[Count]
    complete: Index
    fingerprint: Sha256 | None = None

    def __post_init__(self):
        if self.format != FORMAT:
            raise ValueError(f"format: is {self.format}, this version reads {FORMAT}")
        if len(self.shape) != 4 or self.complete > self.shape[0]:
            raise ValueError(f"complete: is {self.complete} of the images {self.shape}")


class Read(NamedTuple):
    """Both splits, each (images uint8 (N, H, W, C), labels (N,)), and what is known of them."""

    train: tuple[np.ndarray, np.ndarray]
    test: tuple[np.ndarray, np.ndarray]
    notes: Sequence[str] = ()
    fingerprint: str | None = None


def read(splits: Splits, cache_dir: str | None, say: Callable[[str], None]) -> Read:
    """Return the images and labels of both splits.

    Args:
        splits: of a form.
        cache_dir: where they are decoded to if they are more than ``MOST_IN_MEMORY``.
        say: told in one line how large that is, and where.

    Raises:
        InputError: images that cannot be used, or there is no room for them.
        OSError: writing failed.
    """
    form, places = splits.form, splits.places
    labels = np.empty(len(places), np.int32)
    labels[places] = np.concatenate([part.labels for part in splits.parts])
    notes, shape = form.look(), (len(places), *form.image_shape)
    fingerprint = None
    if math.prod(shape) <= MOST_IN_MEMORY:
        images = np.empty(shape, np.uint8)
        done = largest = 0
        for chunk in splits.images():
            images[places[done : done + len(chunk)]] = chunk
            largest = max(largest, int(chunk.max()))
            done += len(chunk)
        _check_all(splits, done, len(places))
        if largest == 1:
            raise InputError(f"{form.name}: pixels are 0 and 1 only, of 0..255", "dataset")
    else:
        decoded = _Decoded(splits, shape, labels, expand(cache_dir or DEFAULT_DIR))
        images, fingerprint = decoded.ready(say)
    first = splits.examples
    return Read((images[:first], labels[:first]), (images[first:], labels[first:]), notes,
                fingerprint)  # fmt: skip


def digest(arrays: Sequence[np.ndarray]) -> str:
    """Return the SHA-256 of arrays, in order."""
    found = hashlib.sha256()
    for array in arrays:
        found.update(np.ascontiguousarray(array).data)
    return found.hexdigest()


def _check_all(splits: Splits, done: int, count: int) -> None:
    if done != count:
        raise InputError(
            f"{splits.form.name}: {done:,} of {count:,} images could be read; others have changed",
            "dataset",
        )


class _Decoded:
    """The file of one dataset's images."""

    def __init__(
        self, splits: Splits, shape: tuple[int, ...], labels: np.ndarray, cache_dir: pathlib.Path
    ):
        self._splits, self._shape, self._labels = splits, shape, labels
        follows = [splits.form.name, splits.form.key(), splits.origin.validation_split, FORMAT]
        self._hash = hashlib.sha256(json.dumps(follows).encode()).hexdigest()
        self._cache = cache_dir
        self.path = cache_dir / f"{splits.name}-{self._hash[:16]}"
        self._file, self._json = self.path / "images.npy", self.path / "decoded.json"
        self._again = f"remove {self.path} to decode it again"

    def ready(self, say: Callable[[str], None]) -> tuple[np.memmap, str]:
        """Return the images, mapped, and the dataset's fingerprint; decode what is missing."""
        record = self._record()
        if record is None or record.fingerprint is None:
            if record is None:
                self._check_room()
            say(
                f"{self.path}: {self._shape[0]:,} images of {self._splits.form.name} are decoded "
                f"once, {decimal(math.prod(self._shape))}"
            )
            record = self._decode()
        return self._map(), record.fingerprint

    def _record(self) -> DecodedRecord | None:
        try:
            record = records.read(self._json, DecodedRecord, self._again)
        except FileNotFoundError:
            return None
        if record.hash != self._hash or tuple(record.shape) != self._shape:
            raise InputError(f"{self._json} is of other images; {self._again}", "cache_dir")
        return record

    def _map(self) -> np.memmap:
        try:
            return records.map_array(self._file, self._shape, "uint8", self._again)
        except FileNotFoundError as error:
            raise InputError(f"{self._file} is not there; {self._again}", "cache_dir") from error

    def _check_room(self) -> None:
        check_writable(self.path, "cache_dir")
        needed = math.prod(self._shape)
        free = shutil.disk_usage(nearest_existing(self.path)).free
        if needed > free:
            raise InputError(
                f"{self.path} needs {decimal(needed)}, and {decimal(free)} are free there; free "
                "some, or name another directory",
                "cache_dir",
            )

    def _decode(self) -> DecodedRecord:
        made = [folder for folder in (self.path, *self.path.parents) if not folder.exists()]
        self.path.mkdir(parents=True, exist_ok=True)
        in_use = f"{self.path} is being decoded by another process; wait for it"
        with hold(self.path, in_use, "cache_dir", name=None):
            clean(self.path)
            record = self._record() or self._begin(made)
            if record.complete < self._shape[0]:
                record = self._fill(record)
            if record.fingerprint is None:
                images, first = self._map(), self._splits.examples
                parts = [images[:first], self._labels[:first], images[first:], self._labels[first:]]
                record.fingerprint = digest(parts)
                self._keep(record)
        return record

    def _begin(self, made: Sequence[pathlib.Path]) -> DecodedRecord:
        """Reserve the whole file now, so that the disk cannot be full half-way."""
        try:
            reserve(self._file, self._shape, "uint8")
            record = DecodedRecord(
                format=FORMAT,
                name=self._splits.form.name,
                hash=self._hash,
                shape=list(self._shape),
                complete=0,
            )
            self._keep(record)
        except OSError:
            self._file.unlink(missing_ok=True)
            with contextlib.suppress(OSError):  # a stranger's file is in it
                for folder in made:
                    folder.rmdir()
            raise
        return record

    def _keep(self, record: DecodedRecord) -> None:
        import msgspec

        write_json(self._json, msgspec.to_builtins(record))

    def _fill(self, record: DecodedRecord) -> DecodedRecord:
        places, row = self._splits.places, math.prod(self._shape[1:])
        offset = self._map().offset
        with (
            show_progress(f"decoding {self.path}", len(places)) as progress,
            open(self._file, "r+b") as file,
            naming(self._file),
        ):
            for chunk in self._splits.images(record.complete):
                own = places[record.complete : record.complete + len(chunk)]
                # The images of a chunk belong to few runs of the file.
                for run in np.split(np.arange(len(own)), np.flatnonzero(np.diff(own) != 1) + 1):
                    file.seek(offset + int(own[run[0]]) * row)
                    file.write(np.ascontiguousarray(chunk[run[0] : run[-1] + 1]).data)
                file.flush()
                os.fsync(file.fileno())
                record.complete += len(chunk)
                self._keep(record)
                progress(record.complete)
        _check_all(self._splits, record.complete, len(places))
        return record


class Splits:
    """Reads both splits of a form, as the loader of a ``DatasetSpec`` does.

    Args:
        form, origin: of the dataset.
        cache_dir: where what does not fit into the memory is decoded to.

    Attributes:
        name: in records.
        examples: the number of training images.
    """

    def __init__(self, form: Form, origin: Origin, cache_dir: str | None):
        self.form, self.origin, self.cache_dir = form, origin, cache_dir
        self._train, self._test = form.parts()
        self._taken = self._choose()
        self.examples = len(self._train.labels)
        if self._taken is not None:
            self.examples -= int(self._taken.sum())
        self.name = recorded_name(form.name)

    def _choose(self) -> np.ndarray | None:
        """Return which training images are the test split, None where it has images of its own."""
        name, part = self.form.name, self.origin.validation_split
        if self._test is not None:
            if part is not None:
                raise InputError(f"{name} has test images; leave it out", "validation_split")
            return None
        if part is None:
            raise InputError(
                f"{name} has no test images; give a part of the training images, such as 0.1",
                "validation_split",
            )
        taken = split(self._train.labels, part)
        if not taken.any() or taken.all():
            raise InputError(
                f"{part:g} of the {len(taken)} images of {name} leaves none to "
                f"{'train' if taken.all() else 'test'} on",
                "validation_split",
            )
        return taken

    def __call__(self, spec: DatasetSpec, data_dir: str | None) -> Sequence[tuple]:
        """Return (train, test), each (images uint8 (N, H, W, C), labels (N,))."""
        found = self.read()
        return found.train, found.test

    def read(
        self, cache_dir: str | None = None, say: Callable[[str], None] = lambda text: None
    ) -> Read:
        """Return both splits, see ``read``."""
        return read(self, cache_dir or self.cache_dir, say)

    @property
    def parts(self) -> list[Part]:
        """What is read: the training images, and the test images where they are others."""
        return [self._train] if self._test is None else [self._train, self._test]

    @property
    def places(self) -> np.ndarray:
        """Where each image that is read belongs, (n,): the training split first, then the test."""
        if self._taken is None:
            return np.arange(sum(len(part.labels) for part in self.parts))
        order = np.concatenate([np.flatnonzero(~self._taken), np.flatnonzero(self._taken)])
        places = np.empty(len(order), np.int64)
        places[order] = np.arange(len(order))
        return places

    def images(self, start: int = 0) -> Iterator[np.ndarray]:
        """Yield the images that are read from this one on, uint8, some at a time."""
        for part in self.parts:
            if start < len(part.labels):
                yield from part.images(start)
            start = max(0, start - len(part.labels))
