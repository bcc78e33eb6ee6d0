"""Catastrophic overfitting, noticed by looks at images that are not trained on; no TensorFlow.

A network that is trained on images of one step can learn, within a few hundred steps, to make that
step miss: accuracy under the training attack rises while pgd finds ever more (Wong et al. 2020).
Nothing that is measured of the training shows it, as all of that is of the training attack.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from typing import Protocol

# By how many standard errors a number must have changed: pgd's is compared with the best of all
# looks before, which is a lucky one, the training attack's with a single one.
_FALLEN, _RISEN = 4.0, 2.0
_ABOVE = 3.0  # by how many pgd's accuracy must have been above chance
_LOST = 1 / 3  # which share of pgd's accuracy must be lost; slow overfitting loses less at a look
MOST_RESTORES = 3  # of a training that collapses again and again


class Look(Protocol):
    """One look at the held-out images: how many are classified correctly.

    Attributes:
        step: steps done.
        clean, attacked, pgd: as they are, under the training attack, under pgd.
        restored: the step whose weights the training went on with; None for those looked at.
    """

    step: int
    clean: int
    attacked: int
    pgd: int
    restored: int | None


@dataclasses.dataclass(frozen=True)
class Collapse:
    """One catastrophic overfitting: the look that shows it, and the last one before it."""

    seen: Look
    good: Look

    def describe(self, images: int, attack: str) -> str:
        """Return what happened, in a sentence of numbers."""
        before, after = self.good, self.seen
        pgd = f"{_per_cent(after.pgd, images)} withstand pgd after {_per_cent(before.pgd, images)}"
        attacked = f"{_per_cent(after.attacked, images)} {attack}, the training attack, after"
        return (
            f"catastrophic overfitting between the steps {before.step} and {after.step}: of "
            f"{images:,} held-out images {pgd}, and {attacked} {_per_cent(before.attacked, images)}"
        )


@dataclasses.dataclass(frozen=True)
class Watched:
    """What looks tell.

    Attributes:
        collapses: in order.
        good: the last look at a network that had not collapsed; None without one.
        collapsed: whether the network of the last look has.
        restores: how often the training went on with earlier weights.
    """

    collapses: tuple[Collapse, ...]
    good: Look | None
    collapsed: bool
    restores: int


def watch(looks: Sequence[Look], images: int, chance: float) -> Watched:
    """Return what looks at a training tell; a function of them alone.

    A look shows a collapse where pgd finds far more than at the best look before, the training
    attack less than there, both beyond what so few images leave to chance; and where pgd's accuracy
    was above chance at all. Where both fall the training is bad in another way.

    Args:
        looks: in order.
        images: how many are looked at.
        chance: the accuracy of a network that has learned nothing, in [0, 1].
    """
    line: list[Look] = []  # looks at what had not collapsed, on the way to the weights of now
    collapses: list[Collapse] = []
    good: Look | None = None
    before: Look | None = None  # the best of the line, if it is better than chance
    collapsed, restores = False, 0

    def add(look: Look) -> None:
        nonlocal before
        line.append(look)
        if _above(look.pgd, images, chance) and (before is None or look.pgd >= before.pgd):
            before = look

    for look in looks:
        if before is None or good is None or not _has_fallen(before.pgd, look.pgd, images):
            collapsed, good = False, look
            add(look)
        elif not collapsed and _risen(before.attacked, look.attacked, images, _RISEN):
            collapsed = True
            collapses.append(Collapse(look, good))
        elif not collapsed:
            add(look)
        if look.restored is not None:
            restores += 1
            kept = [each for each in line if each.step <= look.restored]
            line, before = [], None
            for each in kept:
                add(each)
            good, collapsed = line[-1] if line else None, False
    return Watched(tuple(collapses), good, collapsed, restores)


def best(looks: Sequence[Look], by: str) -> Look:
    """Return the look at which most images were correct, the latest of several.

    Args:
        looks: one or more.
        by: "pgd" or "clean".
    """
    return max(looks, key=lambda look: (getattr(look, by), look.step))


def _per_cent(count: int, images: int) -> str:
    return f"{100 * count / images:.1f}%"


def _variance(count: int, images: int) -> float:
    """Return that of a count; of none or all it is not taken for 0."""
    share = (count + 1) / (images + 2)
    return images * share * (1 - share)


def _risen(before: int, after: int, images: int, errors: float) -> bool:
    """Whether a count has risen by more than so many standard errors."""
    variance = _variance(before, images) + _variance(after, images)
    return after - before > errors * math.sqrt(variance)


def _has_fallen(before: int, after: int, images: int) -> bool:
    return after <= (1 - _LOST) * before and _risen(after, before, images, _FALLEN)


def _above(count: int, images: int, chance: float) -> bool:
    return count - chance * images > _ABOVE * math.sqrt(images * chance * (1 - chance))
