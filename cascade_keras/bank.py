"""Banks: adversarial images of a whole split, crafted once and kept on disk.

    banks/NAME/images.npy   (epsilons, N, H, W, C) uint8: images[e, i] is image i at epsilons[e]
               labels.npy   (N,) int32
               bank.json    what they are: source, dataset, split, crop, epsilons, attack, and how
                            many shards are complete

Image i is made of the i-th image of the split, cropped at its centre. A bank is crafted shard by
shard, a shard being the images of one batch at all epsilons, and goes on after the last complete
one. Iterates of whole steps and epsilons are whole pixel values, so uint8 loses nothing.

Several workers may craft one bank at once, each its shards; ``.workers`` beside the files says
which are complete, until all are (workers.py).
"""

from __future__ import annotations

import collections
import contextlib
import io
import math
import os
import shutil
from collections.abc import Callable, Sequence
from typing import Annotated, Any, Literal

import msgspec
import numpy as np
import tensorflow as tf
from rich.filesize import decimal

from cascade_keras import attacks, cascade, draws
from cascade_keras.attacks.specs import ATTACKS
from cascade_keras.data.specs import Crop, crop_as_json, sides_of
from cascade_keras.errors import InputError
from cascade_keras.files import (
    check_writable,
    clean,
    expand,
    folder_name,
    hold,
    naming,
    nearest_existing,
    reserve,
    write_atomically,
    write_json,
)
from cascade_keras.records import Count, Index, Record, Text, map_array, read_values
from cascade_keras.workers import Crew, Worker, left

FORMAT = 1  # of bank.json, which names it only where it is another
# Images a batch: larger ones are little faster, and a kill loses what was made of one.
SHARD_SIZE = 256
# What two banks must share to be the same, and what a difference is called.
IDENTITY = {
    "source_hash": "the weights of its source",
    "dataset_hash": "the dataset",
    "split": "the split",
    "crop": "the crop",
    "attack": "the attack",
    "epsilons": "the epsilons",
    "examples": "the number of images",
    "seed": "the seed",
}


class BankRecord(Record):
    """bank.json; what is the matter with its images is in ``identity``."""

    source: str
    dataset: str
    source_hash: str  # both are whatever ``identity`` was given
    dataset_hash: str
    split: Literal["train", "test"]
    crop: Count | Annotated[list[Count], msgspec.Meta(min_length=2, max_length=2)]
    attack: Text
    epsilons: Annotated[
        list[Annotated[int, msgspec.Meta(ge=1, le=255)]], msgspec.Meta(min_length=1)
    ]
    examples: Count
    seed: Index
    shape: Annotated[list[Count], msgspec.Meta(min_length=5, max_length=5)]
    shard_size: Count
    complete_shards: Index
    format: Count = FORMAT

    def __post_init__(self):
        if self.format != FORMAT:
            raise ValueError(f"format: is {self.format}, this version reads {FORMAT}")
        if len(set(self.epsilons)) != len(self.epsilons):
            raise ValueError(f"epsilons: one is there twice in {as_range(self.epsilons)}")
        expected = [len(self.epsilons), self.examples, *sides_of(self.crop)]
        if self.shape[:4] != expected:
            raise ValueError(f"shape: is {self.shape}, other fields say {expected} and channels")
        shards = -(-self.examples // self.shard_size)
        if self.complete_shards > shards:
            raise ValueError(f"complete_shards: is {self.complete_shards} of {shards}")


def default_path(source_name: str, split: str = "train", attack: str = "iter_fgsm") -> str:
    """Return where the bank of a source of this name lies when nobody says where.

    Raises:
        InputError: no folder can have that name.
    """
    special = "" if (split, attack) == ("train", "iter_fgsm") else f"-{split}-{attack}"
    return f"banks/{folder_name(source_name)}{special}"


def identity(
    *,
    source_hash: str,
    dataset_hash: str,
    split: str,
    crop: Crop,
    attack: str,
    epsilons: Sequence[int],
    examples: int,
    seed: int = 0,
) -> dict:
    """Return what determines the images of a bank, as it stands in bank.json.

    Args:
        source_hash: of the weights of the network attacked, ``sources.Source.weights_hash``.
        dataset_hash: ``data.Dataset.fingerprint``.
        split: "train" or "test".
        crop: side of the centre square that is cut out of each image, or (height, width).
        attack: one whose row says that its images are whole pixel values.
        epsilons: whole numbers in 0..255 units.
        examples: how many images, from the first of the split.
        seed: of the attacks that draw random numbers; 0 is recorded for the others.

    Raises:
        InputError: another attack, epsilons that are not whole pixel values, or given twice.
    """
    spec = ATTACKS.get(attack)
    if spec is None or not spec.whole_pixels:
        known = ", ".join(name for name, spec in ATTACKS.items() if spec.whole_pixels)
        raise InputError(f"{attack!r} is none of {known}, which give whole pixel values", "attack")
    epsilons = list(epsilons)
    whole = all(float(e).is_integer() and 1 <= e <= 255 for e in epsilons)
    if not epsilons or not whole or len(set(epsilons)) != len(epsilons):
        raise InputError(
            f"a bank stores whole pixel values, so its epsilons are different whole numbers in "
            f"1..255, got {', '.join(f'{e:g}' for e in epsilons) or 'none'}",
            "epsilons",
        )
    return {
        "source_hash": source_hash,
        "dataset_hash": dataset_hash,
        "split": split,
        "crop": crop_as_json(crop),
        "attack": attack,
        "epsilons": [int(e) for e in epsilons],
        "examples": examples,
        "seed": seed if spec.seeded else 0,
    }


class Bank:
    """A bank on disk.

    Args:
        path: its directory, which need not exist.
    """

    def __init__(self, path: str | os.PathLike):
        self.path = expand(path)
        self.images_file = self.path / "images.npy"
        self._labels_file = self.path / "labels.npy"
        self._json_file = self.path / "bank.json"
        self.record: dict[str, Any] = {}
        self._images: np.memmap | None = None
        self._labels: np.memmap | None = None
        self._file: io.BufferedReader | None = None
        self._done: set[int] = set()  # shards that are complete

    @property
    def exists(self) -> bool:
        """Whether there is a bank, complete or not."""
        return self._json_file.exists()

    @property
    def shards(self) -> int:
        """The number of shards that a complete bank has."""
        return -(-self.record["examples"] // self.record["shard_size"])

    @property
    def complete(self) -> bool:
        """Whether every shard is there."""
        return self.record["complete_shards"] == self.shards

    @property
    def complete_images(self) -> int:
        """How many images the complete shards hold."""
        return sum(map(self._images_in, self._done))

    def _images_in(self, shard: int) -> int:
        size = self.record["shard_size"]
        return min(size, self.record["examples"] - shard * size)

    @property
    def images(self) -> np.memmap:
        """The images, (epsilons, N, H, W, C) uint8, mapped from disk."""
        return self._images

    def load(self) -> Bank:
        """Read bank.json and map the images; a bank may be incomplete.

        Raises:
            InputError: there is no bank, or its files are damaged.
        """
        if not self.exists:
            raise InputError(f"{self.path} is not a bank (it has no bank.json)")
        marked = Crew(self.path).done()  # before the record, which is complete before they go
        self.record = read_values(self._json_file, BankRecord, self._again)
        self._done = set(range(self.record["complete_shards"]))
        if marked:  # a damaged record may tell of any number of shards
            self._done |= {shard for shard in range(self.shards) if _mark(shard) in marked}
        files = self.images_file, self._labels_file
        absent = [file for file in files if not file.exists()]
        if absent and not self._done:
            self._images = self._labels = None  # killed before there was room for them
            return self
        if absent:
            raise InputError(f"{absent[0]} is not there; {self._again}")
        self._images = map_array(self.images_file, self.record["shape"], "uint8", self._again)
        count = self.record["examples"]
        self._labels = map_array(self._labels_file, (count,), "int32", self._again)
        if (self._labels < 0).any():
            raise InputError(
                f"{self._labels_file} is damaged: image {np.argmax(self._labels < 0)} is of class "
                f"{self._labels.min()}; {self._again}"
            )
        self._file = open(self.images_file, "rb")  # noqa: SIM115  kept open as long as the bank
        return self

    @property
    def _again(self) -> str:
        return f"remove {self.path} to craft it again"

    def check(
        self, wanted: dict, labels: np.ndarray | None = None, *, exactly: bool = False
    ) -> None:
        """Refuse a bank that is not the one wanted.

        Args:
            wanted: ``identity``'s, or a part of it. Of the epsilons, those that are needed.
            labels: those of the dataset, of which the bank has the first; None: not compared.
            exactly: whether it may have no other epsilons.

        Raises:
            InputError: saying what differs.
        """
        for key, value in wanted.items():
            found = self.record[key]
            serves = key == "epsilons" and set(value) <= set(found) and not exactly
            if found == value or serves:
                continue
            shown = (
                "" if key.endswith("_hash") else f" ({as_range(found)}, wanted {as_range(value)})"
            )
            raise InputError(
                f"{self.path} is another bank: {IDENTITY[key]} differs{shown}; name another "
                f"directory, or remove it to craft anew"
            )
        if labels is not None:
            self._check_labels(labels)

    def _check_labels(self, labels: np.ndarray) -> None:
        """Refuse a bank of more images than the dataset has, or of other classes."""
        count = self.record["examples"]
        if count > len(labels):
            raise InputError(
                f"{self._json_file}: examples: is {count}, the split has {len(labels)} images; "
                f"{self._again}"
            )
        if self._labels is not None:
            differ = self._labels != labels[:count]
            if differ.any():
                image = int(np.argmax(differ))
                raise InputError(
                    f"{self._labels_file} is damaged: image {image} is of class "
                    f"{self._labels[image]}, in the dataset of {labels[image]}; {self._again}"
                )

    def craft(
        self,
        wanted: dict,
        logits_fn: attacks.LogitsFn,
        images: np.ndarray,
        labels: np.ndarray,
        *,
        source_name: str = "",
        dataset_name: str = "",
        shard_size: int = SHARD_SIZE,
        worker: Worker | None = None,
        progress: Callable[[int], None] = lambda done: None,
    ) -> None:
        """Craft the bank, or what is missing of it; load it when complete.

        Args:
            wanted: the ``identity`` of the bank.
            logits_fn: the source, images (batch, H, W, C) -> logits, in inference mode.
            images, labels: as many as ``wanted`` says, uint8 (N, H, W, C), cropped, and (N,).
            source_name, dataset_name: for the reader of bank.json.
            shard_size: images a batch; a bank that is gone on with keeps its own.
            worker: craft the shards of this one alone; the bank is loaded and may be incomplete,
                see ``left``. None: all shards.
            progress: called with the number of images that are done, first with those found done;
                a worker's own.

        Raises:
            InputError: another bank or another process is there, or the disk has no room.
            OSError: writing failed.
        """
        if not self.exists:
            self._check_place()
            self._check_room([len(wanted["epsilons"]), *images.shape])
        self.path.mkdir(parents=True, exist_ok=True)
        in_use = f"{self.path} is being crafted by another process"
        crew = Crew(self.path, worker)
        try:
            with (
                hold(self.path, in_use, name=None, shared=worker is not None),
                crew.joined(self.path),
            ):
                if worker is None:
                    clean(self.path)
                with crew.alone():
                    names = {"source": source_name, "dataset": dataset_name}
                    self._begin(wanted, images, labels, names, shard_size, crew)
                self._craft_shards(logits_fn, images, labels, crew, progress)
                self._complete(crew)
        except OSError:
            if not self.exists:  # there was no room
                self._leave_nothing()
            raise

    def left(self, worker: Worker) -> str:
        """Return a sentence of the shards that other workers have not crafted; empty where none."""
        missing = collections.Counter(
            shard % worker.count for shard in range(self.shards) if shard not in self._done
        )
        if self.complete or not missing:
            return ""
        return left(missing, worker, ("shard", "shards"), Crew(self.path, worker).at_work())

    def _begin(self, wanted, images, labels, names, shard_size, crew: Crew) -> None:
        """Load the bank; make room for it where there is none, and refuse another one."""
        several = crew.worker is not None
        shape = [len(wanted["epsilons"]), *images.shape]
        if not self.exists:
            crew.forget_done()  # by workers on a bank that was removed
            state = {"shape": shape, "shard_size": shard_size, "complete_shards": 0}
            write_json(self._json_file, {**names, **wanted, **state}, keep=several)
        self.load()
        self.check(wanted, labels, exactly=several)
        if several and self.record["shard_size"] != shard_size:
            raise InputError(
                f"{self.path} is made in shards of {self.record['shard_size']} images, got "
                f"{shard_size}; give all workers the same",
                "batch_size",
            )
        shape[0] = len(self.record["epsilons"])
        if self.record["shape"] != shape:
            raise InputError(
                f"{self._json_file}: shape: is {self.record['shape']}, that of these images is "
                f"{shape}; {self._again}"
            )
        if self._images is None:
            self._check_room(shape)
            self._allocate(labels, keep=several)
            self.load()

    def _check_place(self) -> None:
        """Refuse a place where a bank cannot be begun."""
        check_writable(self.path)
        if self.path.is_dir() and not all(p.name.startswith(".") for p in self.path.iterdir()):
            raise InputError(f"{self.path} exists and is not a bank; name another directory")

    def _check_room(self, shape: Sequence[int]) -> None:
        needed = math.prod(shape)
        free = shutil.disk_usage(nearest_existing(self.path)).free
        if needed > free:
            raise InputError(
                f"{self.path} needs {decimal(needed)}, and {decimal(free)} are free there; "
                "free some, name another directory, or take fewer images or epsilons"
            )

    def _allocate(self, labels: np.ndarray, keep: bool) -> None:
        """Reserve the whole file now, so that the disk cannot be full half-way."""
        try:
            stored = labels.astype(np.int32)
            write_atomically(self._labels_file, lambda path: np.save(path, stored), keep=keep)
            reserve(self.images_file, self.record["shape"], "uint8", keep=keep)
        except OSError:
            # Nothing is crafted yet: leave nothing behind.
            for file in (self._labels_file, self._json_file):
                file.unlink(missing_ok=True)
            self._leave_nothing()
            raise

    def _leave_nothing(self) -> None:
        with contextlib.suppress(OSError):  # a stranger's file is in it, or another worker's
            self.path.rmdir()

    def _craft_shards(self, logits_fn, images, labels, crew: Crew, progress) -> None:
        size, worker = self.record["shard_size"], crew.worker
        own = [shard for shard in range(self.shards) if worker is None or worker.takes(shard)]
        missing = [shard for shard in own if shard not in self._done]
        done = sum(self._images_in(shard) for shard in own if shard in self._done)
        progress(done)
        if not missing:
            return
        make = crafter(
            logits_fn, self.record["attack"], self.record["epsilons"], self.record["seed"]
        )
        with open(self.images_file, "r+b", opener=None if worker is None else _synchronous) as file:
            for shard in missing:
                first = shard * size
                part = slice(first, first + size)
                # Divided here: graph optimisers make of it a product with 1/255, another number.
                crafted = make(
                    tf.constant(images[part].astype(np.float32) / np.float32(attacks.PIXEL_LEVELS)),
                    tf.constant(labels[part], tf.int32),
                    tf.constant(first),
                ).numpy()
                with naming(self.images_file):
                    for level, block in enumerate(crafted):
                        file.seek(self._offset(level, first))
                        file.write(block.tobytes())
                    file.flush()
                    os.fsync(file.fileno())
                self._done.add(shard)
                if worker is None:
                    self._record_shards()
                else:
                    crew.put(_mark(shard))
                done += self._images_in(shard)
                progress(done)

    def _record_shards(self) -> None:
        """Write how many shards are complete from the first on."""
        absent = (shard for shard in range(self.shards) if shard not in self._done)
        self.record["complete_shards"] = next(absent, self.shards)
        write_json(self._json_file, self.record)

    def _complete(self, crew: Crew) -> None:
        """Say so where all shards are complete, whoever has crafted them."""
        if crew.worker is not None:
            self.load()  # what others have done
        if len(self._done) < self.shards:
            return
        if not self.complete:
            with crew.alone():
                self._record_shards()
                clean(self.path)
        crew.forget()

    def _offset(self, level: int, index: int) -> int:
        """Return where in the file the image with this index at epsilons[level] begins."""
        _, count, *shape = self.record["shape"]
        return self._images.offset + (level * count + index) * math.prod(shape)

    def read(self, epsilons: np.ndarray, indices: np.ndarray) -> np.ndarray:
        """Read one image for each pair of an epsilon and an index.

        From the open file rather than the map: memory does not grow with what was read, a bank
        that is deleted can still be read to the end of the training, and one that is cut short
        raises an error where a map would end the process.

        Args:
            epsilons: those of the bank, (n,).
            indices: of the images, (n,).

        Returns:
            (n, H, W, C) uint8.

        Raises:
            InputError: the file has been changed and is too short.
        """
        levels = {epsilon: level for level, epsilon in enumerate(self.record["epsilons"])}
        images = np.empty((len(indices), *self.record["shape"][2:]), np.uint8)
        for image, epsilon, index in zip(images, epsilons, indices, strict=True):
            offset = self._offset(levels[int(epsilon)], int(index))
            if os.preadv(self._file.fileno(), [image], offset) != image.nbytes:
                raise InputError(
                    f"{self.images_file} has become shorter while it was read; {self._again}"
                )
        return images


def _mark(shard: int) -> str:
    """Return the name of the file that says that a worker has completed a shard."""
    return f"shard-{shard}"


def _synchronous(path: str, flags: int) -> int:
    """Open a file that other machines write other parts of.

    Each write goes to the disk as it is. A network's file system may gather them to whole pages
    otherwise, and write what it believes to be beside them, which is somebody else's by then.
    """
    return os.open(path, os.O_WRONLY | os.O_DSYNC | flags & os.O_CLOEXEC)


def as_range(value) -> str:
    """Return a value as text: 1..16 for a list of consecutive whole numbers, 2,4,8 for another."""
    if not isinstance(value, list):
        return str(value)
    if len(value) > 2 and value == list(range(value[0], value[-1] + 1)):
        return f"{value[0]}..{value[-1]}"
    return ",".join(map(str, value))


def crafter(logits_fn: attacks.LogitsFn, attack: str, epsilons: Sequence[int], seed: int = 0):
    """Return the compiled function of one shard.

    It is traced for the size of a full shard, which is faster than for any size, and once more for
    the last shard where that is shorter.

    Returns:
        (images float32 (n, H, W, C) in [0, 1], labels int32 (n,), index of the first image) ->
        uint8 (epsilons, n, H, W, C).
    """

    @tf.function(autograph=False)
    def make(images: tf.Tensor, labels: tf.Tensor, first: tf.Tensor) -> tf.Tensor:
        key = draws.attack_seed(seed, first)
        crafted = attacks.at_epsilons(attack, logits_fn, images, labels, epsilons, seed=key)
        return tf.cast(tf.round(crafted * attacks.PIXEL_LEVELS), tf.uint8)

    return make


class BankPartners:
    """The adversarial partners that banks give to some images of every training batch.

    Args:
        banks: one a cascade source, loaded and complete, with the epsilons 1..max_epsilon.
        rows: the places of the images in a batch.
        seed, max_epsilon, sampling: of the draws, see ``cascade.draw``.

    Attributes:
        examples: the images that every bank has.
        error: what went wrong in a read, which TensorFlow reports as text only.
    """

    def __init__(
        self, banks: Sequence[Bank], rows: range, *, seed: int, max_epsilon: float, sampling: str
    ):
        self.banks = banks
        self.rows = rows
        self.examples = min(bank.record["examples"] for bank in banks)
        self.error: InputError | None = None
        self._draws: dict[str, Any] = {
            "count": len(rows),
            "num_sources": len(banks),
            "seed": seed,
            "max_epsilon": max_epsilon,
            "sampling": sampling,
        }

    def read(
        self, step: tf.Tensor, indices: tf.Tensor, taken: tf.Tensor | None = None
    ) -> tf.Tensor:
        """Return the partners of a step, (n, H, W, C) uint8, see ``data.batching.Partners``."""
        source, epsilon = cascade.draw(step=step, **self._draws)
        if taken is not None:
            source, epsilon = tf.gather(source, taken), tf.gather(epsilon, taken)
        return tf.numpy_function(self._read, [source, epsilon, indices], tf.uint8)

    def _read(self, source: np.ndarray, epsilon: np.ndarray, indices: np.ndarray) -> np.ndarray:
        images = np.empty((len(indices), *self.banks[0].record["shape"][2:]), np.uint8)
        try:
            for number, bank in enumerate(self.banks):
                own = source == number
                images[own] = bank.read(epsilon[own], indices[own])
        except InputError as error:
            self.error = error
            raise
        return images
