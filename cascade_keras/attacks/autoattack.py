"""AutoAttack (Croce & Hein, 2020): several strong attacks in turn, none with a step size to choose.

A network's robustness is easily overestimated by one attack that is badly tuned. AutoAttack has
nothing to tune: each of its attacks is tried on the images that are still classified correctly, and
an image counts as robust if all of them fail.

    standard   apgd on the cross entropy; apgd_targeted, on the difference of logits ratio towards
               nine classes; fab towards nine classes; square, 5,000 queries: the published one
    fast       its first two
    rand       apgd on the cross entropy and on the untargeted ratio, for networks that draw random
               numbers: each step takes the mean of 20 gradients. The published one decides by one
               pass whether an image is fooled, here most of the 20 have to be wrong, and those that
               are misclassified without an attack are attacked too unless all 20 are wrong

Each attack is compiled once. An image that has fallen is given to the network no more: not to a
later attack, and not at a larger epsilon, at which its image stands too.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence

import numpy as np
import tensorflow as tf

from cascade_keras import draws
from cascade_keras.attacks import auto_pgd, boundary, squares
from cascade_keras.attacks.arguments import check_counts, check_range
from cascade_keras.attacks.entry import as_logits_fn, entry, given_images, given_labels
from cascade_keras.attacks.objectives import LogitsFn, classes_of
from cascade_keras.attacks.searches import Broken, Found, untouched
from cascade_keras.attacks.specs import ATTACKS, stage_gradients
from cascade_keras.attacks.versions import VERSIONS, attack_of, left_out, options_of, stages_of
from cascade_keras.errors import InputError, shown
from cascade_keras.progress import report_share
from cascade_keras.ranges import UNIT, ValueRange, check_value_range, scaled_from_unit

BATCH_SIZE = 250
_NAMES = ATTACKS["autoattack"].stage_names
_STANDS = 0


@entry
def autoattack(
    logits_fn: LogitsFn,
    images: np.ndarray,
    labels: np.ndarray,
    epsilons: Sequence[float],
    *,
    seed: int,
    num_classes: int | None = None,
    version: str = "fast",
    iterations: int = 100,
    queries: int = 5000,
    batch_size: int | None = None,
) -> np.ndarray:
    """Return the images of AutoAttack for several epsilons; white box, L-infinity, true labels.

    What ``AutoAttack`` gives, of all images at once and without what it tells of them.

    Args:
        images: in ``value_range``, (N, H, W, C).
        labels: the true classes, (N,), or soft ones, of which the largest is meant.
        batch_size: images attacked together; ``BATCH_SIZE`` when None.
        value_range: the lowest and the highest value of a pixel, which ``logits_fn`` takes.
        others: as for ``AutoAttack``.

    Returns:
        float32 (len(epsilons), N, H, W, C), in ``value_range``. Images that no attack fools are
        those of its first attack with the largest cross entropy.
    """
    attack = AutoAttack(
        logits_fn,
        images.shape[1:],
        epsilons,
        num_classes=num_classes,
        seed=seed,
        version=version,
        iterations=iterations,
        queries=queries,
    )
    size = batch_size or BATCH_SIZE
    parts = [slice(first, first + size) for first in range(0, max(len(images), 1), size)]
    found = [attack(images[part], labels[part], part.start).images for part in parts]
    return np.concatenate(found, axis=1)


class AutoAttack:
    """AutoAttack of one network; what is compiled of it is kept.

    With fewer than four classes some attacks are not defined and are left out, see ``left_out``.
    Logits that are no finite numbers count as misclassified.

    Args:
        logits_fn: images (batch, H, W, C) -> logits (batch, classes), in inference mode.
        image_shape: (H, W, C).
        epsilons: in 0..255 units, in any order.
        num_classes: number of logits; looked up where None.
        seed: of all random numbers. An image's follow from it and its place alone: what is found
            depends neither on the batch nor on the other epsilons' order.
        version: "fast", "standard" or "rand", see above.
        iterations: of each start of apgd and of each target of fab.
        queries: of the square attack; 0 leaves it out.
        stages: other attacks than those of the version, in turn.
        value_range: the lowest and the highest value of a pixel, which ``logits_fn`` takes.

    Attributes:
        stages: its attacks, in turn.
        left_out: what few classes leave out, a sentence each.

    Raises:
        InputError: an unknown version, numbers that cannot be, or outputs that are no logits.
        ValueError: an epsilon that is negative, NaN or infinite.

    Example::

        attack = AutoAttack(logits_fn, (28, 28, 1), [76.5], version="standard")
        found = attack(images, labels)
        (found.stages[0] == 0).mean()  # robust accuracy
    """

    def __init__(
        self,
        logits_fn: LogitsFn,
        image_shape: Sequence[int],
        epsilons: Sequence[float],
        *,
        num_classes: int | None = None,
        seed: int = 0,
        version: str = "fast",
        iterations: int = 100,
        queries: int = 5000,
        stages: Sequence[str] | None = None,
        value_range: ValueRange = UNIT,
    ):
        if version not in VERSIONS:
            expected = f"must be one of {', '.join(VERSIONS)}, got {shown(version)}"
            raise InputError(expected, "version")
        given = check_counts(iterations=iterations) | check_counts(0, queries=queries, seed=seed)
        if not len(epsilons):
            raise InputError("name one or several, in 0..255 units", "epsilons")
        check_range(list(epsilons), "epsilons")
        self.epsilons = tuple(map(float, epsilons))
        self._range = check_value_range(value_range)
        self._shape, self._seed = tuple(image_shape), given["seed"]
        self._network = as_logits_fn(logits_fn, self._range)
        # Not in a graph: what gives no logits is refused here.
        classes = self._network(tf.fill([1, *self._shape], 0.5)).shape[-1]
        if num_classes not in (None, classes):
            raise InputError(f"is {num_classes}, the network tells {classes} apart", "num_classes")
        self.num_classes = int(classes)
        self.stages = tuple(stages or stages_of(version, self.num_classes, queries))
        self.left_out = [] if stages else left_out(version, self.num_classes)
        self._sizes = sorted(set(self.epsilons))
        counts = given["iterations"], given["queries"]
        options = {
            name: options_of(name, version, self.num_classes, *counts) for name in self.stages
        }
        self._costs = {name: stage_gradients(name, [1.0], options[name]) for name in options}
        self._searches = {name: self._search_of(name, options[name]) for name in options}
        passes = max(int(option.get("average", 1)) for option in options.values())
        self._searches["clean"] = self._compiled(
            lambda logits_fn, images, labels, *_: untouched(logits_fn, images, labels, passes)
        )

    def _search_of(self, stage: str, options: Mapping) -> Callable[..., Found]:
        """Return the compiled search of a stage."""
        sizes = [size for size in self._sizes if size > 0]

        def fab(logits_fn, images, labels, epsilon, keys, **options) -> Found:
            return boundary.several(logits_fn, images, labels, sizes, keys, **options)

        searches: dict[str, Callable[..., Found]] = {
            "apgd": auto_pgd.search,
            "apgd_targeted": auto_pgd.search_targeted,
            "fab": fab,
            "square": squares.search,
        }
        return self._compiled(functools.partial(searches[attack_of(stage)], **options))

    def _compiled(self, search: Callable[..., Found]) -> Callable[..., Found]:
        """Return a function of arrays; it is traced when it is first called."""
        signature = [
            tf.TensorSpec([None, *self._shape], tf.float32),
            tf.TensorSpec([None], tf.int32),
            tf.TensorSpec([], tf.float32),
            tf.TensorSpec([None, 2], tf.int32),
        ]

        @tf.function(input_signature=signature, autograph=False)
        def found(images, labels, epsilon, keys):
            return search(self._network, images, labels, epsilon, keys)

        traced = functools.cache(found.get_concrete_function)
        return lambda *given: Found(*(part.numpy() for part in traced()(*map(tf.constant, given))))

    def __call__(
        self,
        images: np.ndarray,
        labels: np.ndarray,
        first: int | np.ndarray = 0,
        *,
        fallen: np.ndarray | None = None,
    ) -> Broken:
        """Attack a batch.

        Args:
            images: in ``value_range``, (batch, H, W, C).
            labels: the true classes, (batch,), or soft ones, of which the largest is meant.
            first: the place of the first image among all, or those of all, (batch,).
            fallen: the numbers of the stages that are known to break images, (epsilons, batch),
                0 of those that are to be attacked; what is returned of the others means nothing.
                None: nothing is known.

        Returns:
            ``Broken``, in the order of ``epsilons``, images in ``value_range``.

        Raises:
            InputError: images outside of the range, or labels of other classes.
        """
        images = given_images(images, self._range).numpy().astype(np.float32)
        labels = np.asarray(classes_of(given_labels(labels, len(images))), np.int32)
        if labels.size and labels.max() >= self.num_classes:
            raise InputError(
                f"classes up to {labels.max()} for logits of {self.num_classes} classes", "labels"
            )
        keys = draws.image_keys(self._seed, draws.places(first, len(images))).numpy()
        batch = _Batch((images, labels, keys), self._searches, self._sizes, self.stages[0])
        work = len(self._sizes) * sum(self._costs.values()) or 1
        found, done = {}, 0.0
        for size in self._sizes:
            batch.begin(size)
            if fallen is not None:
                batch.know(np.asarray(fallen)[self.epsilons.index(size)])
            elif size == self._sizes[0]:
                batch.attack("clean")
            for name in self.stages:
                batch.attack(name)
                done += self._costs[name]
                report_share(done / work)
            found[size] = batch.found()
        versions, *rest = map(np.stack, zip(*(found[size] for size in self.epsilons), strict=True))
        return Broken(scaled_from_unit(versions, self._range), *rest)


class _Batch:
    """The images of one call, and what is known of them from one attack and epsilon to the next.

    Args:
        given: images, labels and keys.
        searches: of each stage, compiled.
        sizes: epsilons, ascending.
        first: the first stage.
    """

    def __init__(self, given: tuple, searches: Mapping, sizes: Sequence[float], first: str):
        self._given, self._searches, self._first = given, searches, first
        self._sizes = [size for size in sizes if size > 0]
        self._images = given[0].copy()
        self._stages = np.zeros(len(self._images), np.int8)
        self._near: tuple[np.ndarray, Found] | None = None  # what FAB found, of whom

    def begin(self, size: float) -> None:
        """Go on to the next epsilon; its passes are counted anew."""
        self._passes = np.zeros([2, len(self._images)], np.int32)
        self._size = size
        if self._near is not None:
            rows, found = self._near
            number = self._sizes.index(size)
            still = self._stages[rows] == _STANDS
            none = np.zeros_like(rows[still])
            images, fooled = found.images[number][still], found.fooled[number][still]
            self._take("fab", rows[still], Found(images, fooled, none, none), fooled)

    def know(self, stages: np.ndarray) -> None:
        """Leave out images of which it is known what breaks them."""
        self._stages = np.where(stages == _STANDS, self._stages, stages).astype(np.int8)

    def attack(self, name: str) -> None:
        """Attack what stands, where there is anything to do."""
        if name == "clean" or (self._size > 0 and not (name == "fab" and self._near is not None)):
            self._search(name)

    def found(self) -> tuple[np.ndarray, ...]:
        """Return what there is at this epsilon, as ``Broken`` has it."""
        return self._images.copy(), self._stages.copy(), *self._passes

    def _search(self, name: str) -> None:
        rows = np.flatnonzero(self._stages == _STANDS)
        if not len(rows):
            return
        images, labels, keys = (part[rows] for part in self._given)
        found = self._searches[name](images, labels, np.float32(self._size), keys)
        if name == "fab":  # one search of all epsilons, the smallest of which counts its passes
            self._near = rows, found
            found = Found(*(part[0] for part in found))
        # Where all fail the images of the first attack stay.
        self._take(name, rows, found, found.fooled | (name == self._first))

    def _take(self, name: str, rows: np.ndarray, found: Found, taken: np.ndarray) -> None:
        """Note what an attack found of images, and take some of these."""
        self._passes[:, rows] += found.gradients, found.forwards
        self._images[rows[taken]] = found.images[taken]
        self._stages[rows[found.fooled]] = _NAMES.index(name)
