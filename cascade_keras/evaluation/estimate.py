"""What an evaluation would take: its tasks, their passes, and the time by a gradient measured here.

bin/evaluate --dry_run --target=saved/a --attack=autoattack
"""

from __future__ import annotations

import dataclasses
from typing import NamedTuple

from cascade_keras.attacks.specs import FORWARD
from cascade_keras.evaluation import stages, tasks
from cascade_keras.evaluation.measuring import Measuring
from cascade_keras.evaluation.stores import Arrays
from cascade_keras.speed import gradient_seconds


class Estimated(NamedTuple):
    """What one task would take.

    Attributes:
        task: its name, that of its array.
        network: whose gradients it takes.
        images: that it takes.
        passes: an image, in gradients: a forward pass alone is a third of one.
        left: images that have not been computed yet.
        seconds: for these, about.
        at_most: whether there may be less of it, or nothing: what the square takes that a fast
            AutoAttack goes on to where the diagnosis finds that gradients mislead.
    """

    task: str
    network: str
    images: int
    passes: float
    left: int
    seconds: float
    at_most: bool = False


@dataclasses.dataclass(frozen=True)
class Estimate:
    """What an evaluation would take.

    Attributes:
        tasks: in their order.
        gradient: by network, the seconds of an image's gradient.
        batch_size: of how many images at a time it was measured.
    """

    tasks: tuple[Estimated, ...]
    gradient: dict[str, float]
    batch_size: int

    @property
    def seconds(self) -> float:
        """How long all of it takes that is certain, about."""
        return sum(task.seconds for task in self._certain)

    @property
    def passes(self) -> float:
        """How many gradients are left, of what is certain."""
        return sum(task.passes * task.left for task in self._certain)

    @property
    def _certain(self) -> list[Estimated]:
        return [task for task in self.tasks if not task.at_most]

    @property
    def further(self) -> list[Estimated]:
        """What may come beside it."""
        return [task for task in self.tasks if task.at_most]

    def grid(self) -> tuple[list[str], list[list[str]]]:
        """Return headings and rows of a table."""
        headings = ["task", "images", "passes an image", "images left", "about"]
        rows = []
        for task in self.tasks:
            most = "up to " if task.at_most else ""
            numbers = f"{task.passes:.1f}", str(task.left), in_time(task.seconds)
            rows.append([task.task, str(task.images), *(most + number for number in numbers)])
        return headings, rows

    def sentences(self) -> list[str]:
        """Return what there is to say below the table."""
        lines = [
            f"a gradient of {name} takes {1000 * seconds:.2g} ms an image, {self.batch_size} at a "
            "time"
            for name, seconds in self.gradient.items()
        ]
        lines.append(
            f"{self.passes:,.0f} gradients are left, about {in_time(self.seconds)}; less where "
            "images fall early, and some seconds for the compilation of each task"
        )
        if self.further:
            passes = sum(task.passes * task.left for task in self.further)
            seconds = sum(task.seconds for task in self.further)
            lines.append(
                f"up to {passes:,.0f} more, about {in_time(seconds)}, where the diagnosis finds "
                f"that gradients mislead: autoattack (fast) then goes on to {stages.AFTERWARDS}"
            )
        return lines


def in_time(seconds: float) -> str:
    """Return a time in a unit that suits it."""
    if seconds < 120:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"


def estimate(measuring: Measuring, arrays: Arrays) -> Estimate:
    """Return what the tasks of an evaluation would take from where their arrays are.

    Args:
        measuring: of the evaluation.
        arrays: what is there of it, see ``stores.DiskArrays``.
    """
    found, gradient = [], {}
    size = min(measuring.plan.asked.batch_size, measuring.plan.count)
    images, labels = measuring.part(range(size))
    plan = measuring.plan

    def add(task: tasks.Task) -> int:
        # A task of clean images has no source; it is one of the network that sees them.
        network = getattr(task, "network", None) or task.source or task.shown[0]
        if network not in gradient:
            gradient[network] = gradient_seconds(measuring.networks.logits(network), images, labels)
        left = sum(len(task.indices[batch]) for batch in tasks.missing_batches(task, arrays))
        seconds = left * task.cost * gradient[network]
        found.append(Estimated(task.key, network, len(task.indices), task.cost, left, seconds))
        return left

    if sum(map(add, plan.tasks)):
        following = [task for task in plan.main if task.source in plan.targets and plan.diagnosed]
        for task in (task for task in following if stages.goes_on(task.attack)):
            images, epsilons = len(task.indices), sum(map(bool, task.attack.epsilons))
            passes = FORWARD * task.attack.options["queries"] * epsilons
            seconds = images * passes * gradient[task.source]
            key = f"{task.key}--{stages.AFTERWARDS}"
            found.append(Estimated(key, task.source, images, passes, images, seconds, at_most=True))
    else:  # it is known what an AutoAttack goes on to
        measuring.found(arrays)
        list(map(add, plan.following))
    return Estimate(tuple(found), gradient, size)
