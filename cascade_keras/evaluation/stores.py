"""Where results and adversarial images are kept: in memory, or on disk so that a kill loses little.

Needs no TensorFlow.
"""

from __future__ import annotations

import hashlib
import json
import pathlib
import re
from collections.abc import Callable, Sequence
from typing import Protocol

import numpy as np

from cascade_keras.errors import InputError, about
from cascade_keras.files import alone, clean, reserve, write_json
from cascade_keras.records import map_array

# As in crafting.py: images, labels and the index of the first image -> their adversarial versions.
Craft = Callable[[np.ndarray, np.ndarray, int], np.ndarray]


def file_name(text: str) -> str:
    """Return a name as part of a file name, another one for every text."""
    plain = re.sub(r"[^\w.+-]", "_", text)
    return plain if plain == text else f"{plain}-{hashlib.sha256(text.encode()).hexdigest()[:8]}"


class Arrays(Protocol):
    """Arrays by name."""

    def open(self, key: str, shape: Sequence[int], dtype: str, missing: float) -> np.ndarray:
        """Return the array, full of ``missing`` where it is not there, to be filled in place."""


class MemoryArrays:
    """Arrays that end with this object."""

    def __init__(self):
        self._arrays: dict[str, np.ndarray] = {}

    def open(self, key: str, shape: Sequence[int], dtype: str, missing: float) -> np.ndarray:
        """Return the array, full of ``missing`` at first."""
        if key not in self._arrays:
            self._arrays[key] = np.full(shape, missing, dtype)
        return self._arrays[key]


class DiskArrays:
    """Arrays in a directory."""

    def __init__(self, path: pathlib.Path):
        self.path = path

    def open(self, key: str, shape: Sequence[int], dtype: str, missing: float) -> np.memmap:
        """Return a map of the array, which is created full of ``missing`` where it is not there.

        Raises:
            InputError: the file is of another shape or damaged.
        """
        file = self.path / f"{file_name(key)}.npy"
        if not file.exists():
            reserve(file, shape, dtype, missing)
        with about("output"):
            return map_array(file, shape, dtype, "remove it to compute it again", writable=True)


class ImageStore:
    """Adversarial images on disk, float32 (epsilons, n, H, W, C), filled batch after batch.

    Args:
        base: the directory of all stores.
        name: for the reader.
        identity: everything that the images follow from; images of another identity are others.
        shape: (epsilons, n, H, W, C).

    Nothing is written before the first batch is asked for.
    """

    def __init__(self, base: pathlib.Path, name: str, identity: dict, shape: Sequence[int]):
        text = json.dumps(identity, sort_keys=True)
        self.path = base / f"{name}-{hashlib.sha256(text.encode()).hexdigest()[:12]}"
        self._identity, self._shape = identity, shape
        self._file = self.path / "images.npy"
        self._json = self.path / "images.json"

    def through(self, craft: Craft) -> Craft:
        """Return the function that takes a batch from here, or crafts it and puts it here.

        Raises:
            InputError: what is there cannot be read.
        """
        kept, complete = self._open()

        def stored(images: np.ndarray, labels: np.ndarray, first: int) -> np.ndarray:
            part = kept[:, first : first + len(images)]
            if first not in complete:
                part[...] = craft(images, labels, first)
                kept.flush()
                with alone(self.path):
                    complete.update(self._read() | {first})
                    self._write(complete)
            return np.array(part)

        return stored

    def _open(self) -> tuple[np.memmap, set[int]]:
        """Return the images, room for all of them being taken, and which batches are there."""
        self.path.mkdir(parents=True, exist_ok=True)
        with alone(self.path):
            clean(self.path)
            if not self._json.exists():
                reserve(self._file, self._shape, "float32")
                self._write(set())
            try:
                return map_array(self._file, self._shape, "float32", writable=True), self._read()
            except (OSError, ValueError, KeyError, TypeError) as error:
                raise InputError(
                    f"{self.path} cannot be read ({error}); remove it", "images_dir"
                ) from error

    def _read(self) -> set[int]:
        return set(json.loads(self._json.read_text())["complete_batches"])

    def _write(self, complete: set[int]) -> None:
        write_json(self._json, {**self._identity, "complete_batches": sorted(complete)})
