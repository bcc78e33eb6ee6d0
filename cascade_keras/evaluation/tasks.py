"""The source x target matrix: long evaluations as tasks whose results survive a kill.

A task fills one array on disk, an entry or a column of entries for each image, batch after batch.
What is there is not computed again. Each source's images are crafted once, at all epsilons, and
shown to all targets; nothing but the networks grows with the number of either.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import pathlib
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Protocol

import numpy as np
import tensorflow as tf

from cascade_keras import attacks, evaluation
from cascade_keras.attacks.carlini_wagner import CarliniWagner, Grid
from cascade_keras.errors import InputError
from cascade_keras.evaluation.report import Arrays
from cascade_keras.files import alone, open_map, reserve, write_json
from cascade_keras.sources import Source, load_source

_FORWARD = 1 / 3  # of the time of a gradient
_VERSIONS = 4_096  # adversarial images in memory at a time, at most
_CW_BATCH = 50
_CW_GRADIENTS = 1_000  # an image takes about so many by descent; for the time left only
_AUTOATTACK_STAGES = 10  # that take gradients


@dataclasses.dataclass(frozen=True)
class Attack:
    """An attack as a report records it: epsilons in 0..255 units, options as for ``crafter``."""

    name: str
    epsilons: tuple[float, ...]
    options: Mapping[str, Any] = dataclasses.field(default_factory=dict)

    @property
    def gradients(self) -> float:
        """How many gradients an image takes, about."""
        if self.name == "clean":
            return 0
        if self.name == "autoattack":
            gradients = _AUTOATTACK_STAGES * self.options["iterations"]
            return len(self.epsilons) * (gradients + _FORWARD * self.options["queries"])
        if self.name == "pgd":
            return len(self.epsilons) * self.options["steps"] * self.options["restarts"]
        if self.name.startswith("iter"):
            return attacks.ladder_gradients(self.epsilons)
        return 1


class Networks:
    """The networks of a report by name; those that are not targets are loaded when needed.

    Args:
        paths: of every network.
        kept: those that stay loaded.
        image_shape: (H, W, C).
    """

    def __init__(
        self,
        paths: Mapping[str, pathlib.Path],
        kept: Mapping[str, Source],
        image_shape: Sequence[int],
        *,
        noise: float = 0.0,
        seed: int = 0,
    ):
        self.image_shape = tuple(image_shape)
        self._paths = paths
        self._kept = dict(kept)
        self._visitor: tuple[str, Source] | None = None
        self._predictors: dict[str, evaluation.Predict] = {}
        self._noise = noise
        self._seed = seed

    def source(self, name: str) -> Source:
        """Return a network; one that is no target replaces the one before it."""
        if name in self._kept:
            return self._kept[name]
        if self._visitor is None or self._visitor[0] != name:
            if self._visitor is not None:
                self._predictors.pop(self._visitor[0], None)
                self._visitor = None
            self._visitor = name, load_source(self._paths[name])
        return self._visitor[1]

    def logits(self, name: str) -> attacks.LogitsFn:
        """Return a network's logits; the gradient is zero where it has none."""
        source = self.source(name)
        return flat(source.logits) if source.why_no_gradient(self.image_shape) else source.logits

    def predict(self, name: str, versions: np.ndarray, first: int) -> np.ndarray:
        """Return the classes of images (versions, batch, H, W, C), int32 (versions, batch).

        Raises:
            InputError: logits that are not finite.
        """
        source = self.source(name)
        if name not in self._predictors:
            self._predictors[name] = evaluation.predictor(
                source.logits, self.image_shape, noise=self._noise, seed=self._seed
            )
        classes = self._predictors[name](versions, first)
        if (classes == evaluation.NOT_FINITE).any():
            worst = first + int(np.argwhere(classes == evaluation.NOT_FINITE)[0, 1])
            flag = "target" if name in self._kept else "source"
            raise InputError(
                f"--{flag}: {source.path} gives logits that are not finite numbers for image "
                f"{worst}; its numbers would mean nothing"
            )
        return classes


def flat(logits_fn: attacks.LogitsFn) -> attacks.LogitsFn:
    """Give a network that has no gradient one of zeros: attacks then do not move its images."""
    return lambda images: logits_fn(tf.stop_gradient(images)) + 0.0 * tf.reduce_sum(images)


class Task(Protocol):
    """A piece of work whose result is an array with an entry for each image on its last axis.

    Attributes:
        key: names the array.
        indices: of the images it takes, (n,).
        batch_size: images at a time.
        shape, dtype, missing: of the array, without its last axis; what stands where nothing is.
        cost: gradients an image takes, about.
    """

    key: str
    indices: np.ndarray
    batch_size: int
    shape: tuple[int, ...]
    dtype: str
    missing: float
    cost: float

    def start(self, networks: Networks) -> Callable[[np.ndarray, np.ndarray, int], np.ndarray]:
        """Return the function of a batch: images, labels, its first index -> (*shape, batch)."""


def run(
    tasks: Sequence[Task],
    networks: Networks,
    arrays: Arrays,
    images: np.ndarray,
    labels: np.ndarray,
    progress: Callable[[int], None] = lambda done: None,
) -> None:
    """Compute what is missing of the tasks' arrays.

    Args:
        images, labels: float32 (N, H, W, C) in [0, 1] and (N,); each task takes its indices.
        progress: called with the gradients done, see ``work``.
    """
    missing = [(task, _missing_batches(task, arrays)) for task in tasks]
    done = work(tasks) - sum(
        task.cost * len(task.indices[batch]) for task, batches in missing for batch in batches
    )
    progress(round(done))
    for task, batches in missing:
        if not batches:
            # Loading and tracing take seconds: only for what has to be computed.
            continue
        array, step = open_array(task, arrays), task.start(networks)
        for batch in batches:
            indices = task.indices[batch]
            array[..., batch] = step(images[indices], labels[indices], batch.start)
            array.flush()
            done += task.cost * len(indices)
            progress(round(done))


def _missing_batches(task: Task, arrays: Arrays) -> list[slice]:
    """Return the batches of which something has not been computed."""
    absent = is_missing(open_array(task, arrays), task.missing)
    absent = absent.reshape(-1, len(task.indices)).any(axis=0)
    starts = range(0, len(task.indices), task.batch_size)
    batches = [slice(first, first + task.batch_size) for first in starts]
    return [batch for batch in batches if absent[batch].any()]


def open_array(task: Task, arrays: Arrays) -> np.ndarray:
    """Return a task's array, a map of its file."""
    return arrays.open(task.key, (*task.shape, len(task.indices)), task.dtype, task.missing)


def is_missing(part: np.ndarray, missing: float) -> np.ndarray:
    """Return where nothing has been computed yet."""
    return np.isnan(part) if np.isnan(missing) else part == missing


def work(tasks: Iterable[Task]) -> int:
    """Return how many gradients tasks take, about."""
    return round(sum(task.cost * len(task.indices) for task in tasks))


class Clock:
    """Seconds spent on crafting images and on classifying them."""

    def __init__(self):
        self.seconds = {"crafting": 0.0, "classifying": 0.0}

    def measure(self, what: str, function: Callable, *args):
        """Call the function and add its time."""
        started = time.perf_counter()
        try:
            return function(*args)
        finally:
            self.seconds[what] += time.perf_counter() - started


def keep_nothing(task: Predictions) -> None:
    """Keep no adversarial images of a task."""


class Predictions:
    """What networks take one source's images of one attack for: int16 (shown, epsilons, n).

    Args:
        source: the network they are crafted from; None for clean images.
        attack: which images.
        shown: the networks that classify them.
        indices: of the images.
        kept_images: returns where the task's images are kept and taken from, None for nowhere.
        clock: where the time is added.
        purpose: part of the key, so that one attack can be there for two purposes.
    """

    dtype, missing = "int16", -1

    def __init__(
        self,
        source: str | None,
        attack: Attack,
        shown: Sequence[str],
        indices: np.ndarray,
        *,
        seed: int,
        batch_size: int,
        num_classes: int,
        clock: Clock,
        kept_images: Callable[[Predictions], ImageStore | None] = keep_nothing,
        purpose: str = "",
    ):
        self.source, self.attack, self.shown, self.indices = source, attack, tuple(shown), indices
        parts = [source or shown[0], attack.name, purpose]
        self.key = "--".join(part for part in parts if part)
        self.seed, self.num_classes = seed, num_classes
        self.batch_size = max(1, min(batch_size, _VERSIONS // len(attack.epsilons)))
        self.shape = (len(shown), len(attack.epsilons))
        self.cost = attack.gradients + _FORWARD * len(shown) * len(attack.epsilons)
        self.clock = clock
        self._kept_images = kept_images

    def start(self, networks: Networks):
        craft = self.crafter(networks)

        def step(images: np.ndarray, labels: np.ndarray, first: int) -> np.ndarray:
            versions = self.clock.measure("crafting", craft, images, labels, first)
            return self.clock.measure("classifying", self._classify, networks, versions, first)

        return step

    def crafter(self, networks: Networks) -> evaluation.Craft:
        """Return the function that makes the images of a batch, or takes those that were kept."""
        name, options = self.attack.name, dict(self.attack.options)
        if name == "clean":
            return lambda images, labels, first: images[None]
        logits = networks.logits(self.source)
        if name == "autoattack":
            from cascade_keras.attacks.autoattack import autoattack

            def craft(images: np.ndarray, labels: np.ndarray, first: int) -> np.ndarray:
                return autoattack(
                    logits,
                    images,
                    labels,
                    self.attack.epsilons,
                    seed=self.seed + first,
                    num_classes=self.num_classes,
                    **options,
                )

        else:
            craft = evaluation.crafter(
                logits,
                networks.image_shape,
                name,
                self.attack.epsilons,
                seed=self.seed,
                **options,
            )
        store = self._kept_images(self)
        return store.through(craft) if store else craft

    def _classify(self, networks: Networks, versions: np.ndarray, first: int) -> np.ndarray:
        return np.stack([networks.predict(name, versions, first) for name in self.shown])


class ZeroGradients:
    """Whose input gradients are exactly zero, of the cross entropy and of the margin: (2, n)."""

    dtype, missing, shape, cost = "int8", -1, (2,), 2

    def __init__(self, network: str, indices: np.ndarray, batch_size: int):
        self.key = f"{network}--zero_gradients"
        self.network, self.indices, self.batch_size = network, indices, batch_size

    def start(self, networks: Networks):
        find = evaluation.zero_gradients(networks.logits(self.network), networks.image_shape)
        return lambda images, labels, first: find(images, labels)


class MinimalEpsilons:
    """The minimal epsilon of each image by Carlini and Wagner's attack, float32 (n,)."""

    dtype, missing, shape, batch_size = "float32", float("nan"), (), _CW_BATCH

    def __init__(
        self,
        network: str,
        indices: np.ndarray,
        *,
        grid: Grid,
        search: str,
        iterations: int,
        clock: Clock,
    ):
        self.key = f"{network}--cw_linf"
        self.clock = clock
        self.network, self.indices = network, indices
        self.grid, self.search, self.iterations = grid, search, iterations
        pairs = len(grid.constants) * len(grid.taus) * iterations
        self.cost = pairs if search == "grid" else _CW_GRADIENTS

    def start(self, networks: Networks):
        attack = CarliniWagner(
            networks.logits(self.network),
            networks.image_shape,
            grid=self.grid,
            search=self.search,
            iterations=self.iterations,
        )
        return lambda images, labels, first: (
            self.clock.measure("crafting", attack, images, labels).epsilon
        )


class ImageStore:
    """Adversarial images on disk, float32 (epsilons, n, H, W, C), filled batch after batch.

    Args:
        base: the directory of all stores.
        name: for the reader.
        identity: everything that the images follow from; images of another identity are others.
        shape: (epsilons, n, H, W, C).
    """

    def __init__(self, base: pathlib.Path, name: str, identity: dict, shape: Sequence[int]):
        text = json.dumps(identity, sort_keys=True)
        self.path = base / f"{name}-{hashlib.sha256(text.encode()).hexdigest()[:12]}"
        self._identity = identity
        self._file = self.path / "images.npy"
        self._json = self.path / "images.json"
        self._complete: set[int] = set()
        self.path.mkdir(parents=True, exist_ok=True)
        with alone(self.path):
            if not self._json.exists():
                reserve(self._file, shape, "float32")
                self._write()
            try:
                self._complete = self._read()
                self._images = open_map(self._file)
            except (OSError, ValueError, KeyError, TypeError) as error:
                raise InputError(
                    f"--images_dir: {self.path} cannot be read ({error}); remove it"
                ) from error

    def _read(self) -> set[int]:
        return set(json.loads(self._json.read_text())["complete_batches"])

    def _write(self) -> None:
        write_json(self._json, {**self._identity, "complete_batches": sorted(self._complete)})

    def through(self, craft: evaluation.Craft) -> evaluation.Craft:
        """Return the function that takes a batch from here, or crafts it and puts it here."""

        def stored(images: np.ndarray, labels: np.ndarray, first: int) -> np.ndarray:
            part = self._images[:, first : first + len(images)]
            if first not in self._complete:
                part[...] = craft(images, labels, first)
                self._images.flush()
                with alone(self.path):
                    self._complete = self._read() | {first}
                    self._write()
            return np.array(part)

        return stored
