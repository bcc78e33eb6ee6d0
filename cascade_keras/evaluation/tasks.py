"""The engine: networks, attacks and images as tasks whose results can survive a kill.

A task fills one array, an entry or a column of entries for each image, batch after batch. What is
there is not computed again. Each source's images are crafted once, at all epsilons, and shown to
all targets; nothing but the networks grows with the number of either.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Protocol

import numpy as np
import tensorflow as tf

from cascade_keras import attacks
from cascade_keras.attacks.carlini_wagner import CarliniWagner, Grid
from cascade_keras.attacks.specs import ATTACKS, FORWARD, Attack
from cascade_keras.errors import InputError
from cascade_keras.evaluation import crafting
from cascade_keras.evaluation.crafting import NOT_FINITE, Craft, Predict
from cascade_keras.evaluation.networks import is_loaded, loaded_again
from cascade_keras.evaluation.stores import (
    Amended,
    Arrays,
    Content,
    Through,
    is_missing,
    shown_to,
    told_by,
)
from cascade_keras.files import naming
from cascade_keras.progress import progress_within
from cascade_keras.sources import Source

# Indices of images -> the images and their labels.
Part = Callable[[np.ndarray], tuple[np.ndarray, np.ndarray]]
_VERSIONS = 4_096  # adversarial images in memory at a time, at most
_CW_BATCH = 50
LARGEST_EPSILON = 255.0  # from black to white


class Networks(Protocol):
    """What tasks ask of networks, by their names.

    Attributes:
        image_shape: (H, W, C).
    """

    image_shape: tuple[int, ...]

    def logits(self, name: str) -> attacks.LogitsFn:
        """Return a network's logits, which have a gradient."""

    def crafter(self, name: str, attack: Attack, *, seed: int, num_classes: int | None) -> Craft:
        """Return the function that makes an attack's images from a network."""

    def predict(self, name: str, versions: np.ndarray, first: int) -> np.ndarray:
        """Return the classes of images (versions, batch, H, W, C), int32 (versions, batch)."""


class SavedNetworks:
    """Networks from disk; those that were let go are loaded when needed, one at a time.

    Args:
        sources: of every network, by name; see ``networks.load_networks``.
        image_shape: (H, W, C).
        targets: which of them are targets, for error messages.
        noise, seed: see ``crafting.predictor``.
    """

    def __init__(
        self,
        sources: Mapping[str, Source],
        image_shape: Sequence[int],
        *,
        targets: Sequence[str] = (),
        noise: float = 0.0,
        seed: int = 0,
    ):
        self.image_shape = tuple(image_shape)
        self._sources = dict(sources)
        self._targets = tuple(targets)
        self._noise, self._seed = noise, seed
        self._visitor: tuple[str, Source] | None = None
        self._predictors: dict[str, Predict] = {}

    def source(self, name: str) -> Source:
        """Return a network; one that has to be loaded replaces the one before it."""
        if is_loaded(self._sources[name]):
            return self._sources[name]
        if self._visitor is None or self._visitor[0] != name:
            if self._visitor is not None:
                self._predictors.pop(self._visitor[0], None)
                self._visitor = None
            self._visitor = name, loaded_again(self._sources[name])
        return self._visitor[1]

    def logits(self, name: str) -> attacks.LogitsFn:
        """Return a network's logits; the gradient is zero where none can be had.

        One of zeros on random images may well be another on those that are measured.
        """
        source = self.source(name)
        without = source.why_not_differentiable(self.image_shape)
        return flat(source.logits) if without else source.logits

    def crafter(self, name: str, attack: Attack, *, seed: int, num_classes: int | None) -> Craft:
        """Return the function that makes an attack's images from a network."""
        # Clean images ask nothing of it, not even to be loaded.
        logits = self.logits(name) if attack.name != "clean" else None
        return crafter_of(logits, self.image_shape, attack, seed=seed, num_classes=num_classes)

    def predict(
        self, name: str, versions: np.ndarray, first: int, *, finite: bool = True
    ) -> np.ndarray:
        """Return the classes of images (versions, batch, H, W, C), int32 (versions, batch).

        Args:
            finite: refuse logits that are not finite; their class is ``NOT_FINITE`` otherwise.

        Raises:
            InputError: logits that are not finite.
        """
        source = self.source(name)
        if name not in self._predictors:
            self._predictors[name] = crafting.predictor(
                source.logits, self.image_shape, noise=self._noise, seed=self._seed
            )
        classes = self._predictors[name](versions, first)
        if finite and (classes == NOT_FINITE).any():
            worst = first + int(np.argwhere(classes == NOT_FINITE)[0, 1])
            raise InputError(
                f"{source} gives logits that are not finite numbers for image {worst}; its "
                "numbers would mean nothing",
                "target" if name in self._targets else "source",
            )
        return classes


def crafter_of(
    logits_fn: attacks.LogitsFn, image_shape: Sequence[int], attack: Attack, **others
) -> Craft:
    """Return ``crafting.crafter`` of an attack with its epsilons and options."""
    return crafting.crafter(
        logits_fn, image_shape, attack.name, attack.epsilons, **attack.options, **others
    )


def flat(logits_fn: attacks.LogitsFn) -> attacks.LogitsFn:
    """Give a network that has no gradient one of zeros: attacks then do not move its images."""
    return lambda images: logits_fn(tf.stop_gradient(images)) + 0.0 * tf.reduce_sum(images)


class Filled(Protocol):
    """An array with an entry for each image on its last axis.

    Attributes:
        key: names the array.
        indices: of the images, (n,).
        shape, dtype, missing: of the array, without its last axis; what stands where nothing is.
        content: what else can stand there, by which an array on disk is checked; None: anything.
    """

    key: str
    indices: np.ndarray
    shape: tuple[int, ...]
    dtype: str
    content: Content | None

    @property
    def missing(self) -> float: ...


class Task(Filled, Protocol):
    """A piece of work whose result is an array.

    Attributes:
        batch_size: images at a time.
        cost: gradients an image takes, about.
        further: other arrays that are filled with it, none where a task has no such attribute.
        whole: whether workers cannot share its batches, False where it has no such attribute.
    """

    batch_size: int
    cost: float

    @property
    def further(self) -> Sequence[Filled]: ...

    @property
    def whole(self) -> bool: ...

    def start(self, networks: Networks) -> Craft:
        """Return the function of a batch: images, labels, its first index -> (*shape, batch).

        Where there are further arrays it returns a list, of the task's own and of theirs.
        """


def arrays_of(task: Task) -> list[Filled]:
    """Return what names the arrays that a task fills, its own first."""
    return [task, *getattr(task, "further", ())]


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
    missing = [(task, missing_batches(task, arrays)) for task in tasks]
    done = work(tasks) - sum(cost(task, batch) for task, absent in missing for batch in absent)

    def keeper(task: Task) -> Keep:
        filled = [open_array(each, arrays) for each in arrays_of(task)]

        return lambda batch, parts: lay(filled, batch, parts)

    compute(missing, networks, images, labels, keeper, progress, done)


def cost(task: Task, batch: slice) -> float:
    """Return how many gradients a batch of a task takes, about."""
    return task.cost * len(task.indices[batch])


def lay(filled: Sequence[np.ndarray], batch: slice, parts: Sequence[np.ndarray]) -> None:
    """Write a batch into its task's arrays, on the disk where they lie there.

    Args:
        filled: the arrays, in the order of ``arrays_of``.
        batch: which places of their last axis.
        parts: of each array.
    """
    # The task's own comes last: where it is there, all is.
    for array, part in reversed(list(zip(filled, parts, strict=True))):
        array[..., batch] = part
        if isinstance(array, np.memmap):
            with naming(array.filename):
                array.flush()


def parts_of(task: Task, found: np.ndarray | Sequence[np.ndarray]) -> Sequence[np.ndarray]:
    """Return what a task's function returned as one array for each of ``arrays_of``."""
    return found if len(arrays_of(task)) > 1 else [found]


# Keeps the parts of a batch, in the order of ``arrays_of``.
Keep = Callable[[slice, Sequence[np.ndarray]], None]
Keeper = Callable[[Task], Keep]


def compute(
    batches: Iterable[tuple[Task, Iterable[slice]]],
    networks: Networks,
    images: np.ndarray,
    labels: np.ndarray,
    keeper: Keeper,
    progress: Callable[[int], None],
    done: float,
) -> None:
    """Compute batches of tasks.

    Args:
        batches: of each task, taken one by one.
        images, labels: see ``run``.
        keeper: of a task -> what keeps its batches.
        progress: called with the gradients done.
        done: how many of them before.
    """
    progress(round(done))
    for task, some in batches:
        step = None
        for batch in some:
            if step is None:
                # Loading and tracing take seconds: only for what has to be computed.
                keep, step = keeper(task), task.start(networks)
            indices, passes = task.indices[batch], cost(task, batch)

            def within(share: float, done: float = done, passes: float = passes) -> None:
                progress(round(done + share * passes))

            with progress_within(within):
                found = step(images[indices], labels[indices], batch.start)
            keep(batch, parts_of(task, found))
            done += passes
            progress(round(done))


def missing_batches(task: Task, arrays: Arrays) -> list[slice]:
    """Return the batches of which something has not been computed."""
    absent = is_missing(open_array(task, arrays), task.missing)
    absent = absent.reshape(-1, len(task.indices)).any(axis=0)
    return [batch for batch in batches(task) if absent[batch].any()]


def batches(task: Task) -> list[slice]:
    """Return the batches in which a task's images are taken."""
    starts = range(0, len(task.indices), task.batch_size)
    return [slice(first, first + task.batch_size) for first in starts]


def open_array(filled: Filled, arrays: Arrays) -> np.ndarray:
    """Return a task's array, or a further one."""
    shape = (*filled.shape, len(filled.indices))
    return arrays.open(filled.key, shape, filled.dtype, filled.missing, filled.content)


def work(tasks: Iterable[Task]) -> int:
    """Return how many gradients tasks take, about."""
    return round(sum(task.cost * len(task.indices) for task in tasks))


class Clock:
    """Seconds spent on crafting images and on classifying them."""

    def __init__(self):
        self.seconds = self._nothing()

    @staticmethod
    def _nothing() -> dict[str, float]:
        return {"crafting": 0.0, "classifying": 0.0}

    def take(self) -> dict[str, float]:
        """Return what was measured and begin again at 0."""
        taken, self.seconds = self.seconds, self._nothing()
        return taken

    def measure(self, what: str, function: Callable, *args):
        """Call the function and add its time."""
        started = time.perf_counter()
        try:
            return function(*args)
        finally:
            self.seconds[what] += time.perf_counter() - started


def batch_of(attack: Attack, most: int) -> int:
    """Return how many images are attacked at a time: all their versions must be held."""
    return max(1, min(most, _VERSIONS // len(attack.epsilons)))


class Told:
    """What attacks tell of each image, see ``stores.told_by``: int32 (numbers, epsilons, n).

    Args:
        key: of the predictions that they go with.
        attack: which.
        indices: of the images.
    """

    dtype, missing = "int32", -1

    def __init__(self, key: str, attack: Attack, indices: np.ndarray):
        self.key, self.indices = f"{key}--told", indices
        self.names = told_by(attack.name)
        self.shape: tuple[int, ...] = (len(self.names), len(attack.epsilons))
        self.content: Content | None = Content(
            lambda told: told >= 0, "numbers of 0 and above", indices
        )


class Predictions:
    """What networks take one source's images of one attack for: int16 (shown, epsilons, n).

    Args:
        source: the network they are crafted from; None for clean images.
        attack: which images.
        shown: the networks that classify them.
        indices: of the images.
        num_classes: see ``crafting.crafter``.
        clock: where the time is added.
        through: what the images go through, to be kept or looked at; None for nothing.
        label: which attack this is among those of its name; the name when None.
        key: names the array; the source and the label when None.
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
        clock: Clock,
        num_classes: int | None = None,
        through: Through | None = None,
        label: str | None = None,
        key: str | None = None,
    ):
        self.source, self.attack, self.shown, self.indices = source, attack, tuple(shown), indices
        self.label = label or attack.name
        self.key = key or f"{source or shown[0]}--{self.label}"
        self.seed, self.num_classes = seed, num_classes
        self.batch_size = batch_of(attack, batch_size)
        self.shape: tuple[int, ...] = (len(shown), len(attack.epsilons))
        self.cost = attack.gradients + FORWARD * len(shown) * len(attack.epsilons)
        classes = np.iinfo(self.dtype).max if num_classes is None else num_classes
        self.content: Content | None = Content(
            lambda seen: (seen >= 0) & (seen < classes), f"the classes 0..{classes - 1}", indices
        )
        told = Told(self.key, attack, indices)
        self.further: Sequence[Filled] = (told,) if told.names else ()
        self.clock = clock
        self._through = through
        self._remembered: dict[int, np.ndarray | None] = {}

    @property
    def whole(self) -> bool:
        """Whether one process is to make all batches: their images are kept in the same files."""
        return self._through is not None

    def start(self, networks: Networks) -> Craft:
        """See ``Task``."""
        craft = self.crafter(networks)

        def classified(versions: np.ndarray, first: int) -> np.ndarray:
            return self.clock.measure("classifying", self.classify, networks, versions, first)

        def step(images: np.ndarray, labels: np.ndarray, first: int) -> np.ndarray:
            return classified(self.clock.measure("crafting", craft, images, labels, first), first)

        def telling(images: np.ndarray, labels: np.ndarray, first: int) -> list[np.ndarray]:
            versions, told = self.clock.measure("crafting", craft.tell, images, labels, first)
            return [classified(versions, first), told]

        return telling if self.further else step

    def crafter(self, networks: Networks) -> Craft:
        """Return the function that makes the images of a batch, or takes those that were kept."""
        name = self.source or self.shown[0]
        craft = networks.crafter(name, self.attack, seed=self.seed, num_classes=self.num_classes)
        craft = self._through.through(craft) if self._through else craft
        return shown_to(self._remember, craft) if self._remembered else craft

    def remember(self, places: Iterable[int]) -> None:
        """Keep the images at these places of ``indices`` that it makes, for ``made``."""
        self._remembered |= dict.fromkeys(map(int, places))

    def _remember(self, versions: np.ndarray, first: int) -> None:
        for number in range(versions.shape[1]):
            if first + number in self._remembered:
                self._remembered[first + number] = versions[:, number].copy()

    def made(self, places: Sequence[int], networks: Networks, part: Part) -> np.ndarray:
        """Return images at places that were to be remembered, (epsilons, len(places), H, W, C).

        Those that are not there are made again, in whole batches: they are what they were to the
        last bit, which an image of a batch of another size need not be.

        Args:
            part: gives images and labels of indices.
        """
        craft = None
        for first in np.unique(np.asarray(places) // self.batch_size) * self.batch_size:
            batch = slice(int(first), int(first) + self.batch_size)
            inside = (place for place in places if batch.start <= place < batch.stop)
            if any(self._remembered[place] is None for place in inside):
                craft = craft or self.crafter(networks)
                craft(*part(self.indices[batch]), batch.start)
        return np.stack([self._remembered[place] for place in places], axis=1)

    def amend(self, versions: np.ndarray, first: int, places: np.ndarray) -> None:
        """Replace images that are kept in memory, where places, (epsilons, batch), are True."""
        if isinstance(self._through, Amended):
            self._through.amend(versions, first, places)

    def classify(self, networks: Networks, versions: np.ndarray, first: int) -> np.ndarray:
        """Return what each network that is shown takes images for, (shown, epsilons, batch)."""
        return np.stack([networks.predict(name, versions, first) for name in self.shown])


class ZeroGradients:
    """Whose input gradients are exactly zero, of the cross entropy and of the margin: (2, n)."""

    dtype, missing, shape, cost = "int8", -1, (2,), 2

    def __init__(self, network: str, indices: np.ndarray, batch_size: int):
        self.key = f"{network}--zero_gradients"
        self.network, self.indices, self.batch_size = network, indices, batch_size
        self.content = Content(lambda zero: (zero == 0) | (zero == 1), "0 and 1", indices)

    def start(self, networks: Networks) -> Craft:
        """See ``Task``."""
        find = crafting.zero_gradients(networks.logits(self.network), networks.image_shape)
        return lambda images, labels, first: find(images, labels)


class MinimalEpsilons:
    """The minimal epsilon of each image by Carlini and Wagner's attack, float32 (n,).

    Args:
        network: that is attacked.
        indices: of the images.
        grid, search, iterations: of the attack, see ``CarliniWagner``.
        starts: tasks of AutoAttack and its members on the network, of the first images, from whose
            images the search goes on where they are nearer.
        part: gives images and labels of indices, for what ``starts`` have to make again.
        clock: seconds.
    """

    dtype, missing, shape, batch_size = "float32", float("nan"), (), _CW_BATCH

    def __init__(
        self,
        network: str,
        indices: np.ndarray,
        *,
        grid: Grid,
        search: str,
        iterations: int,
        starts: Sequence[Predictions] = (),
        part: Part | None = None,
        clock: Clock,
    ):
        self.key = f"{network}--cw_linf"
        self.clock = clock
        self.network, self.indices = network, indices
        self.content = Content(
            lambda found: np.isposinf(found) | (found >= 0) & (found <= LARGEST_EPSILON),
            f"0..{LARGEST_EPSILON:g} and inf, where there is none",
            indices,
        )
        self.grid, self.search, self.iterations = grid, search, iterations
        self.starts, self._part = tuple(starts), part
        for task in self.starts:
            task.remember(indices)
        pairs = len(grid.constants) * len(grid.taus) * iterations
        self.cost = pairs if search == "grid" else ATTACKS["cw_linf"].gradients((), {})

    def start(self, networks: Networks) -> Craft:
        """See ``Task``."""
        attack = CarliniWagner(
            networks.logits(self.network),
            networks.image_shape,
            grid=self.grid,
            search=self.search,
            iterations=self.iterations,
        )

        def search(images: np.ndarray, labels: np.ndarray, first: int) -> np.ndarray:
            places = self.indices[first : first + len(images)]
            made = [self._made(task, places, networks, images, labels) for task in self.starts]
            starts = np.concatenate(made) if made else None
            return attack(images, labels, starts=starts).epsilon

        return lambda *batch: self.clock.measure("crafting", search, *batch)

    def _made(
        self, task: Predictions, places: np.ndarray, networks: Networks, *given
    ) -> np.ndarray:
        """Return what a task makes of images, (epsilons, len(places), H, W, C).

        Args:
            given: the images and labels at these places, of which some may not be the task's.
        """
        own = places < len(task.indices)
        shape = (len(task.attack.epsilons), *given[0].shape)
        made = np.empty(shape, np.float32)
        if own.any():
            made[:, own] = task.made(places[own], networks, self._part)
        if not own.all():
            craft = networks.crafter(
                self.network, task.attack, seed=task.seed, num_classes=task.num_classes
            )
            # Their random numbers are those of the images' places in the split.
            made[:, ~own] = craft(*(part[~own] for part in given), places[~own])
        return made
