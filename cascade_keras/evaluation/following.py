"""A fast AutoAttack that goes on to the square attack, where a network's gradients mislead."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from cascade_keras.attacks.autoattack import AutoAttack
from cascade_keras.attacks.specs import FORWARD
from cascade_keras.evaluation.stages import AFTERWARDS
from cascade_keras.evaluation.stores import Craft
from cascade_keras.evaluation.tasks import Networks, Predictions, Told


class Following:
    """A task that attacks what another has left standing, and whose arrays stand for both.

    The images that are broken by it are not in the store of the other's images; those that are
    kept in memory are replaced there.

    Args:
        base: the predictions of an AutoAttack.
        predicted, told: its arrays, complete.
    """

    def __init__(self, base: Predictions, predicted: np.ndarray, told: np.ndarray):
        self.base = base
        self.source, self.attack, self.shown = base.source, base.attack, base.shown
        self.label, self.indices, self.batch_size = base.label, base.indices, base.batch_size
        self.dtype, self.missing, self.shape = base.dtype, base.missing, base.shape
        self.content, self.key = base.content, f"{base.key}--{AFTERWARDS}"
        self.further = (Told(self.key, base.attack, base.indices),)
        self._predicted, self._told = predicted, told
        self._numbers = self.further[0].names
        self.stood = np.sum(self._stages == 0, axis=1)  # at each epsilon
        share = self.stood.sum() / max(len(self.indices), 1)
        self.cost = FORWARD * self.attack.options["queries"] * share

    @property
    def _stages(self) -> np.ndarray:
        return self._told[self._numbers.index("stages")]

    def start(self, networks: Networks) -> Callable:
        """See ``tasks.Task``."""
        attack, clock = self._attack(networks), self.base.clock

        def step(images: np.ndarray, labels: np.ndarray, first: int) -> list[np.ndarray]:
            batch = slice(first, first + len(images))
            fallen = self._stages[:, batch]
            found = clock.measure("crafting", lambda: attack(images, labels, first, fallen=fallen))
            new = found.stages != fallen
            self.base.amend(found.images, first, new)
            seen = clock.measure("classifying", self.base.classify, networks, found.images, first)
            told = self._told[..., batch].copy()
            for number, name in enumerate(self._numbers):
                more = getattr(found, name).astype(np.int32)
                told[number] = more if name == "stages" else told[number] + more
            return [np.where(new, seen, self._predicted[..., batch]), told]

        return step

    def crafter(self, networks: Networks) -> Craft:
        """Return the function that makes the images of a batch again, those of both attacks."""
        before, attack = self.base.crafter(networks), self._attack(networks)

        def craft(images: np.ndarray, labels: np.ndarray, first: int) -> np.ndarray:
            fallen = self._stages[:, first : first + len(images)]
            found = attack(images, labels, first, fallen=fallen)
            new = (found.stages != fallen)[..., None, None, None]
            return np.where(new, found.images, before(images, labels, first))

        return craft

    def _attack(self, networks: Networks) -> AutoAttack:
        return AutoAttack(
            networks.logits(self.source),
            networks.image_shape,
            self.attack.epsilons,
            seed=self.base.seed,
            queries=self.attack.options["queries"],
            stages=(AFTERWARDS,),
        )
