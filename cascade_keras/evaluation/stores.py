"""Where results and adversarial images are kept: in memory, or on disk so that a kill loses little.

Needs no TensorFlow.
"""

from __future__ import annotations

import hashlib
import json
import os
import pathlib
import re
from collections.abc import Callable, Sequence
from typing import Annotated, Any, Literal, NamedTuple, Protocol

import numpy as np
from msgspec import Meta

from cascade_keras.errors import InputError, about, shown
from cascade_keras.files import (
    MOST_OF_A_NAME,
    PARTIAL,
    alone,
    check_writable,
    clean,
    naming,
    reserve,
    write_json,
)
from cascade_keras.records import (
    Count,
    Epsilon,
    Index,
    Record,
    Text,
    Values,
    map_array,
    read_values,
)

# As in crafting.py: images, labels and the index of the first image -> their adversarial versions.
Craft = Callable[[np.ndarray, np.ndarray, int], np.ndarray]


def file_name(text: str) -> str:
    """Return a name as part of a file name, another one for every text."""
    plain = re.sub(r"[^\w.+-]", "_", text)
    # What is half written, and what a folder is called for itself.
    usable = plain.strip(".") and not plain.startswith(PARTIAL)
    if plain == text and usable and len(plain.encode()) <= MOST_OF_A_NAME:
        return plain
    short = plain.encode()[:MOST_OF_A_NAME].decode(errors="ignore")
    digest = hashlib.sha256(text.encode(errors="surrogatepass")).hexdigest()[:8]
    return f"{short if usable else '_'}-{digest}"


class Content(NamedTuple):
    """What an array can hold beside what stands for nothing: values, and words for them.

    Attributes:
        holds: array -> where it can be, bool of the same shape.
        expected: completes "is none of".
        images: which image each entry of the last axis is of.
    """

    holds: Callable[[np.ndarray], np.ndarray]
    expected: str
    images: np.ndarray


class Arrays(Protocol):
    """Arrays by name."""

    def open(
        self,
        key: str,
        shape: Sequence[int],
        dtype: str,
        missing: float,
        content: Content | None = None,
    ) -> np.ndarray:
        """Return the array, full of ``missing`` where it is not there, to be filled in place."""


class MemoryArrays:
    """Arrays that end with this object."""

    def __init__(self):
        self._arrays: dict[str, np.ndarray] = {}

    def open(
        self,
        key: str,
        shape: Sequence[int],
        dtype: str,
        missing: float,
        content: Content | None = None,
    ) -> np.ndarray:
        """Return the array, full of ``missing`` at first."""
        if key not in self._arrays:
            self._arrays[key] = np.full(shape, missing, dtype)
        return self._arrays[key]


class DiskArrays:
    """Arrays in a directory."""

    def __init__(self, path: pathlib.Path):
        self.path = path

    def open(
        self,
        key: str,
        shape: Sequence[int],
        dtype: str,
        missing: float,
        content: Content | None = None,
    ) -> np.memmap:
        """Return a map of the array, which is created full of ``missing`` where it is not there.

        Args:
            content: what it can hold; None: anything.

        Raises:
            InputError: the file is of another shape or damaged.
        """
        file, again = self.path / f"{file_name(key)}.npy", "remove it to compute it again"
        with about("output"):
            if not os.path.lexists(file):
                check_writable(self.path)
                reserve(file, shape, dtype, missing)
            array = map_array(file, shape, dtype, again, writable=True)
            wrong = (
                ()
                if content is None
                else np.argwhere(~(content.holds(array) | is_missing(array, missing)))
            )
            if len(wrong):
                image = content.images[wrong[0][-1]]
                raise InputError(
                    f"{file} is damaged: {array[tuple(wrong[0])]} for image {image} is none of "
                    f"{content.expected}; {again}"
                )
        return array


def is_missing(part: np.ndarray, missing: float) -> np.ndarray:
    """Return where nothing has been computed yet."""
    return np.isnan(part) if np.isnan(missing) else part == missing


class ImagesRecord(Record):
    """images.json: all that the images follow from, and the batches that are complete."""

    source: str
    source_hash: str
    dataset: str
    dataset_hash: str
    split: Literal["train", "test"]
    attack: Text
    options: Values
    epsilons: Annotated[list[Epsilon], Meta(min_length=1)]
    seed: Index
    batch_size: Count
    shape: Annotated[list[Count], Meta(min_length=5, max_length=5)]
    complete_batches: list[Index]

    def __post_init__(self):
        batches = range(0, self.shape[1], self.batch_size)
        for first in self.complete_batches:
            if first not in batches:
                raise ValueError(
                    f"complete_batches: {first} is the first of no batch of {self.batch_size} of "
                    f"{self.shape[1]} images"
                )


class ImageStore:
    """Adversarial images on disk, float32 (epsilons, n, H, W, C), filled batch after batch.

    Args:
        base: the directory of all stores.
        name: for the reader.
        identity: everything that the images follow from, see ``ImagesRecord``; images of another
            identity are others.

    Nothing is written before the first batch is asked for.
    """

    def __init__(self, base: pathlib.Path, name: str, identity: dict[str, Any]):
        text = json.dumps(identity, sort_keys=True)
        self.path = base / f"{name}-{hashlib.sha256(text.encode()).hexdigest()[:12]}"
        self._identity = json.loads(json.dumps(identity))  # as it will be read again
        self._file = self.path / "images.npy"
        self._json = self.path / "images.json"
        self._again = f"remove {self.path} to craft its images again"

    def through(self, craft: Craft) -> Craft:
        """Return the function that takes a batch from here, or crafts it and puts it here.

        Raises:
            InputError: what is there cannot be read, or cannot be what it should be.
        """
        kept, complete = self._open()

        def stored(images: np.ndarray, labels: np.ndarray, first: int) -> np.ndarray:
            part = kept[:, first : first + len(images)]
            if first not in complete:
                complete.update(self._complete())  # another process may have been here
            if first in complete:
                return self._checked(np.array(part), first)
            part[...] = craft(images, labels, first)
            with naming(self._file):
                kept.flush()
            with alone(self.path):
                complete.update(self._complete() | {first})
                self._write(complete)
            return np.array(part)

        return stored

    def check(self) -> None:
        """Refuse a place that cannot be written, or what is there where it cannot be used.

        Raises:
            InputError: naming the file and the field.
        """
        check_writable(self.path, "images_dir")
        if os.path.lexists(self._json):
            kept, complete = self._map(writable=False)
            size = self._identity["batch_size"]
            for first in sorted(complete):
                self._checked(kept[:, first : first + size], first)

    def _open(self) -> tuple[np.memmap, set[int]]:
        """Return the images, room for all of them being taken, and which batches are there."""
        check_writable(self.path, "images_dir")
        self.path.mkdir(parents=True, exist_ok=True)
        with alone(self.path):
            clean(self.path)
            if not os.path.lexists(self._json):
                reserve(self._file, self._identity["shape"], "float32")
                self._write(set())
            return self._map(writable=True)

    def _map(self, writable: bool) -> tuple[np.memmap, set[int]]:
        complete = self._complete()
        with about("images_dir"):
            if not self._file.exists():
                raise InputError(f"{self._file} is not there; {self._again}")
            given = self._identity["shape"], "float32", self._again
            return map_array(self._file, *given, writable=writable), complete

    def _complete(self) -> set[int]:
        """Return the first images of the batches that are there."""
        with about("images_dir"):
            record = read_values(self._json, ImagesRecord, self._again)
            for key, value in self._identity.items():
                if record[key] != value:
                    raise InputError(
                        f"{self._json}: {key}: is {shown(record[key])}, not {shown(value)}; "
                        f"{self._again}"
                    )
        return set(record["complete_batches"])

    def _write(self, complete: set[int]) -> None:
        write_json(self._json, {**self._identity, "complete_batches": sorted(complete)})

    def _checked(self, part: np.ndarray, first: int) -> np.ndarray:
        """Return kept images, which lie in [0, 1] but for rounding."""
        wrong = np.argwhere(~((part > -1e-3) & (part < 1 + 1e-3)))
        if len(wrong):
            raise InputError(
                f"{self._file} is damaged: image {first + wrong[0][1]} has a pixel of "
                f"{part[tuple(wrong[0])]:g}, they are in 0..1; {self._again}",
                "images_dir",
            )
        return part
