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
from typing import Annotated, Any, Literal, NamedTuple, Protocol, runtime_checkable

import numpy as np
from msgspec import Meta

from cascade_keras.attacks.specs import ATTACKS, NESTED, SUITE
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

# Images, labels and the index of the first image -> (epsilons, batch, H, W, C), float32.
Craft = Callable[[np.ndarray, np.ndarray, int], np.ndarray]


class Crafted(NamedTuple):
    """Adversarial versions, and what was counted on the way.

    Attributes:
        images: float32 (epsilons, batch, H, W, C).
        told: int32 (numbers, epsilons, batch), see ``told_by``.
    """

    images: np.ndarray
    told: np.ndarray


class Through(Protocol):
    """What adversarial images go through on their way from the attack to the networks."""

    def through(self, craft: Craft) -> Craft:
        """Return what is called instead of what crafts: ``Telling`` where that is."""


@runtime_checkable
class Amended(Through, Protocol):
    """What keeps images that may be replaced by others later."""

    def amend(self, versions: np.ndarray, first: int, places: np.ndarray) -> None:
        """Replace images of a batch where places, (epsilons, batch), are True."""


class Telling:
    """A ``Craft`` that also tells what it took.

    Args:
        tell: images, labels and the index of the first image -> ``Crafted``.
    """

    def __init__(self, tell: Callable[[np.ndarray, np.ndarray, int], Crafted]):
        self.tell = tell

    def __call__(self, images: np.ndarray, labels: np.ndarray, first: int) -> np.ndarray:
        """Return the images alone."""
        return self.tell(images, labels, first).images


def shown_to(look: Callable[[np.ndarray, int], None], craft: Craft) -> Craft:
    """Return a craft whose images, and the index of the first, are shown to ``look`` as well."""
    if isinstance(craft, Telling):

        def tell(images: np.ndarray, labels: np.ndarray, first: int) -> Crafted:
            crafted = craft.tell(images, labels, first)
            look(crafted.images, first)
            return crafted

        return Telling(tell)

    def shown_too(images: np.ndarray, labels: np.ndarray, first: int) -> np.ndarray:
        versions = craft(images, labels, first)
        look(versions, first)
        return versions

    return shown_too


def told_by(attack: str) -> tuple[str, ...]:
    """Return what an attack's ``Telling`` counts for each image and epsilon, in its order."""
    kind = ATTACKS[attack].kind if attack in ATTACKS else None
    passes = ("gradients", "forwards")
    return {NESTED: passes, SUITE: (*passes, "stages")}.get(kind, ())


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
    """Arrays in a directory.

    Args:
        path: of the directory.
        writable: whether they are filled; otherwise nothing is written, and what is not there is
            refused, or an array of this process where ``absent`` is true.
    """

    def __init__(self, path: pathlib.Path, *, writable: bool = True, absent: bool = False):
        self.path = path
        self._writable, self._absent = writable, absent

    def open(
        self,
        key: str,
        shape: Sequence[int],
        dtype: str,
        missing: float,
        content: Content | None = None,
    ) -> np.ndarray:
        """Return a map of the array, which is created full of ``missing`` where it is not there.

        Args:
            content: what it can hold; None: anything.

        Raises:
            InputError: the file is of another shape or damaged.
        """
        file, again = self.path / f"{file_name(key)}.npy", "remove it to compute it again"
        with about("output"):
            if not os.path.lexists(file):
                if self._absent:
                    return np.full(shape, missing, dtype)
                if not self._writable:
                    raise InputError(f"{file} is not there")
                check_writable(self.path)
                reserve(file, shape, dtype, missing)
            array = map_array(file, shape, dtype, again, writable=self._writable)
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

    Nothing is written before the first batch is asked for. What a ``Telling`` tells is kept beside
    the images.
    """

    def __init__(self, base: pathlib.Path, name: str, identity: dict[str, Any]):
        text = json.dumps(identity, sort_keys=True)
        self.path = base / f"{name}-{hashlib.sha256(text.encode()).hexdigest()[:12]}"
        self._identity = json.loads(json.dumps(identity))  # as it will be read again
        self._file = self.path / "images.npy"
        self._told_file = self.path / "told.npy"
        self._numbers = len(told_by(identity["attack"]))
        self._told_shape = (self._numbers, *identity["shape"][:2])
        self._json = self.path / "images.json"
        self._again = f"remove {self.path} to craft its images again"

    def through(self, craft: Craft) -> Craft:
        """Return the function that takes a batch from here, or crafts it and puts it here.

        Raises:
            InputError: what is there cannot be read, or cannot be what it should be.
        """
        files, complete = self._open()
        tells = isinstance(craft, Telling)

        def parts(first: int, count: int) -> Crafted:
            batch = slice(first, first + count)
            return Crafted(files.images[:, batch], files.told[..., batch])

        def stored(images: np.ndarray, labels: np.ndarray, first: int) -> Crafted:
            kept = parts(first, len(images))
            if first not in complete:
                complete.update(self._complete())  # another process may have been here
            if first in complete:
                return self._checked(kept, first)
            made = craft.tell if tells else lambda *batch: Crafted(craft(*batch), kept.told)
            for part, new in zip(kept, made(images, labels, first), strict=True):
                part[...] = new
            self._flush(files)
            with alone(self.path):
                complete.update(self._complete() | {first})
                self._write(complete)
            return Crafted(*map(np.array, kept))

        telling = Telling(stored)
        return telling if tells else telling.__call__

    def check(self) -> None:
        """Refuse a place that cannot be written, or what is there where it cannot be used.

        Raises:
            InputError: naming the file and the field.
        """
        check_writable(self.path, "images_dir")
        if os.path.lexists(self._json):
            files, complete = self._map(writable=False)
            size = self._identity["batch_size"]
            for first in sorted(complete):
                batch = slice(first, first + size)
                self._checked(Crafted(files.images[:, batch], files.told[..., batch]), first)

    def _open(self) -> tuple[Crafted, set[int]]:
        """Return the images, room for all of them being taken, and which batches are there."""
        check_writable(self.path, "images_dir")
        self.path.mkdir(parents=True, exist_ok=True)
        with alone(self.path):
            clean(self.path)
            if not os.path.lexists(self._json):
                reserve(self._file, self._identity["shape"], "float32")
                if self._numbers:
                    reserve(self._told_file, self._told_shape, "int32")
                self._write(set())
            return self._map(writable=True)

    def _map(self, writable: bool) -> tuple[Crafted, set[int]]:
        complete = self._complete()

        def there(file: pathlib.Path, shape: Sequence[int], dtype: str) -> np.memmap:
            if not file.exists():
                raise InputError(f"{file} is not there; {self._again}")
            return map_array(file, shape, dtype, self._again, writable=writable)

        with about("images_dir"):
            images = there(self._file, self._identity["shape"], "float32")
            told = np.empty(self._told_shape, "int32")
            if self._numbers:
                told = there(self._told_file, self._told_shape, "int32")
            return Crafted(images, told), complete

    def _flush(self, files: Crafted) -> None:
        with naming(self._file):
            files.images.flush()
        if self._numbers:
            with naming(self._told_file):
                files.told.flush()

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

    def _checked(self, kept: Crafted, first: int) -> Crafted:
        """Return kept images, which lie in [0, 1] but for rounding, and what was told of them."""
        part, told = map(np.array, kept)
        wrong = np.argwhere(told < 0)
        if len(wrong):
            raise InputError(
                f"{self._told_file} is damaged: {told[tuple(wrong[0])]} for image "
                f"{first + wrong[0][-1]} is below 0; {self._again}",
                "images_dir",
            )
        wrong = np.argwhere(~((part > -1e-3) & (part < 1 + 1e-3)))
        if len(wrong):
            raise InputError(
                f"{self._file} is damaged: image {first + wrong[0][1]} has a pixel of "
                f"{part[tuple(wrong[0])]:g}, they are in 0..1; {self._again}",
                "images_dir",
            )
        return Crafted(part, told)
