"""How an evaluation calls its programs: on which images, and what it makes of the results.

With NumPy alone. What a program is it does not know: it is given a function that calls one. Images
that are done are left out between two calls, by which a batch is filled up with others; the last
one is filled up with copies.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence

import numpy as np

STANDS, CLEAN = 0, 1  # instead of a stage of AutoAttack, the first of which is 2

# Name of a network, part of its programs, arguments -> results.
Call = Callable[..., Sequence[np.ndarray]]


class Attacks:
    """The attacks on one network.

    Args:
        plan: of evaluation.json, see ``lower_evaluation.Plan``.
        name: of the network.
        given: its test images, float32 (images, H, W, C) in [0, 1], with "labels" and "keys".
        stages: of AutoAttack, in turn.
        call: what calls a program.
        others: networks that images of this one are shown too, where the plan says so.
    """

    def __init__(
        self,
        plan: Mapping,
        name: str,
        given: Mapping[str, np.ndarray],
        stages: Sequence[str],
        call: Call,
        others: Sequence[str] = (),
    ):
        self.plan, self.name, self.stages, self.others = plan, name, stages, others
        self.images, self.labels, self.keys = (given[each] for each in ("images", "labels", "keys"))
        self._call = call

    def __call__(self, attack: str) -> dict[str, np.ndarray]:
        """Return of an attack "right", bool (epsilons, images), and what else there is to keep."""
        if attack == "clean":
            return {"right": self.clean()[None]}
        if attack == "pgd":
            return {"right": np.stack([self.pgd(each) for each in self.plan["epsilons"]])}
        if attack == "autoattack":
            stages = self.autoattack()
            return {"right": stages == STANDS, "stages": stages}
        return self.plain(attack)

    def clean(self) -> np.ndarray:
        """Return which clean images are classified correctly, bool (images,)."""
        return self.classes(self.images) == self.labels

    def classes(self, images: np.ndarray) -> np.ndarray:
        """Return what a network takes images for, int32 (images,)."""
        found = np.empty(len(images), np.int32)
        for rows, part in self._together(np.arange(len(images))):
            found[rows] = self._call(self.name, "predict", images[part])[0][: len(rows)]
        return found

    def plain(self, attack: str) -> dict[str, np.ndarray]:
        """Return of an attack that draws nothing what is right.

        Of one whose images others are shown too, also "right/NAME" of each of these.
        """
        shown = [self.name, *(self.others if attack in self.plan["transfer"] else ())]
        shape = len(self.plan["epsilons"]), len(self.labels)
        right = {target: np.empty(shape, bool) for target in shown}
        for rows, part in self._together(np.arange(shape[1])):
            (made,) = self._call(self.name, attack, self.images[part], self.labels[part])
            for target in shown:
                for number, versions in enumerate(made):
                    (found,) = self._call(target, "predict", versions)
                    right[target][number, rows] = (found == self.labels[part])[: len(rows)]
        return {
            "right" if target == self.name else f"right/{target}": found
            for target, found in right.items()
        }

    def pgd(self, epsilon: float) -> np.ndarray:
        """Return which images pgd leaves right, bool (images,): of all its starts the worst."""
        images, labels, size = self.images, self.labels, np.float32(epsilon)
        best, margins = images.copy(), np.full(len(images), np.finfo(np.float64).min)
        for number in range(self.plan["pgd_restarts"]):
            left = np.flatnonzero(margins <= 0)
            if not len(left):
                break
            starts = self._starts(left, number, size)
            for rows, part in self._together(left):
                start = starts[np.searchsorted(left, part)]
                made, reached = self._call(
                    self.name, "pgd_climb", images[part], labels[part], start, size
                )
                made, reached = made[: len(rows)], reached[: len(rows)]
                gains = reached > margins[rows]
                best[rows[gains]], margins[rows[gains]] = made[gains], reached[gains]
        return self.classes(best) == labels

    def _starts(self, left: np.ndarray, number: int, size: np.float32) -> np.ndarray:
        """Return the start of each image that is left, drawn for whole batches of the plan's."""
        images, count = self.images, self.plan["batch_size"]
        found = np.empty((len(left), *images.shape[1:]), np.float32)
        for first in np.unique(left // count) * count:
            own = (left >= first) & (left < first + count)
            batch = images[np.minimum(np.arange(first, first + count), len(images) - 1)]
            (drawn,) = self._call(
                self.name, "pgd_start", batch, np.int32(first), np.int32(number), size
            )
            found[own] = drawn[left[own] - first]
        return found

    def autoattack(self) -> np.ndarray:
        """Return which stage broke each image at each epsilon of the plan, int8; 0 for none.

        1 is the clean image, then come the stages in turn.
        """
        sizes = self.plan["sizes"]
        broken = np.where(self.clean(), STANDS, CLEAN).astype(np.int8)
        found: dict[float, np.ndarray] = {}
        near: np.ndarray | None = None  # which fab's images are near enough at each epsilon
        for row, size in enumerate(sizes):
            if near is not None:  # one search of all epsilons
                broken[(broken == STANDS) & near[row]] = CLEAN + 1 + self.stages.index("fab")
            for number, stage in enumerate(self.stages, CLEAN + 1):
                left = np.flatnonzero(broken == STANDS)
                if stage == "fab" and near is not None:
                    continue
                if stage == "fab":
                    near = np.zeros((len(sizes), len(broken)), bool)
                for rows, part in self._together(left):
                    given = self.images[part], self.labels[part], np.float32(size), self.keys[part]
                    (fell,) = self._call(self.name, stage, *given)
                    fell = fell[..., : len(rows)]
                    if stage == "fab":
                        near[:, rows], fell = fell, fell[row]
                    broken[rows[fell]] = number
            found[size] = broken.copy()
        return np.stack([found[size] for size in self.plan["epsilons"]])

    def _together(self, left: np.ndarray) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """Yield images that are attacked together, and these filled up to a whole batch."""
        count = self.plan["together"]
        for first in range(0, len(left), count):
            rows = left[first : first + count]
            yield rows, np.concatenate([rows, np.repeat(rows[-1:], count - len(rows))])
