"""A network under attack from its own gradients: what training, looks and curves report."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from cascade_keras import attacks
from cascade_keras.attacks.specs import Attack
from cascade_keras.evaluation import crafting, tasks
from cascade_keras.evaluation.crafting import Craft, Predict
from cascade_keras.evaluation.stores import MemoryArrays, shown_to

_NAME = "network"
Show = Callable[[Attack, int, np.ndarray], None]


def _show_nothing(attack: Attack, first: int, versions: np.ndarray) -> None:
    """The default of ``show``."""


@dataclasses.dataclass(frozen=True)
class Result:
    """Accuracy of one network under one attack; attack "clean" has epsilon 0.

    Attributes:
        attack: its name.
        epsilon: in 0..255 units.
        correct: images that are classified correctly, of ``examples``.
        accuracy: the same in per cent.
        options: all that the attack was given beside epsilon and seed.
    """

    attack: str
    epsilon: float
    correct: int
    examples: int
    accuracy: float
    options: Mapping[str, Any] = dataclasses.field(default_factory=dict)


class WhiteBox:
    """Attacks a network with itself as the source and counts what it still gets right.

    It compiles once for all calls: a network that is trained in between is attacked as it is then.
    Logits that are not finite are counted as wrong.

    Args:
        logits_fn: images (batch, H, W, C) -> logits (batch, classes), in inference mode.
        image_shape: (H, W, C).
        attacks: in the order of the results; ``Attack.clean()`` is one of them.
        num_classes: of the logits; None finds out, where an attack asks.
        seed: of the attacks that draw random numbers.
        batch_size: images at a time, at most.

    Raises:
        ValueError: an attack that gives no images.

    Example::

        white_box = WhiteBox(network, (8, 8, 1), [Attack.clean(), Attack("pgd", (8, 16))])
        for result in white_box(images, labels):
            print(result.attack, result.epsilon, result.accuracy, result.options)
    """

    def __init__(
        self,
        logits_fn: attacks.LogitsFn,
        image_shape: Sequence[int],
        attacks: Sequence[Attack],
        *,
        num_classes: int | None = None,
        seed: int = 0,
        batch_size: int = 250,
    ):
        self.attacks = tuple(attacks)
        self._network = _Network(logits_fn, image_shape)
        self._num_classes, self._seed, self._batch_size = num_classes, seed, batch_size

    def __call__(
        self,
        images: np.ndarray,
        labels: np.ndarray,
        *,
        progress: Callable[[int], None] = lambda done: None,
        show: Show = _show_nothing,
    ) -> list[Result]:
        """Return a ``Result`` for each attack and epsilon.

        Args:
            images, labels: float32 in [0, 1], (N, H, W, C), and true classes, (N,).
            progress: called with the gradients done, of ``work(N)``.
            show: called with each attack, the index of the first image of each batch and its
                adversarial images, (epsilons, batch, H, W, C).
        """
        labels, arrays = np.asarray(labels), MemoryArrays()
        planned = self._plan(len(images), show)
        tasks.run(planned, self._network, arrays, images, labels, progress)
        return [
            _result(task.attack, epsilon, classes == labels)
            for task in planned
            for epsilon, classes in zip(
                task.attack.epsilons, tasks.open_array(task, arrays)[0], strict=True
            )
        ]

    def work(self, examples: int) -> int:
        """Return how many gradients so many images take, about."""
        return tasks.work(self._plan(examples, _show_nothing))

    def _plan(self, examples: int, show: Show) -> list[tasks.Predictions]:
        return [
            tasks.Predictions(
                _NAME,
                attack,
                [_NAME],
                np.arange(examples),
                seed=self._seed,
                batch_size=self._batch_size,
                num_classes=self._num_classes,
                clock=tasks.Clock(),
                through=_Shown(attack, show),
                key=str(number),
            )
            for number, attack in enumerate(self.attacks)
        ]


class _Shown:
    """Shows adversarial images on their way to the network."""

    def __init__(self, attack: Attack, show: Show):
        self._attack, self._show = attack, show

    def through(self, craft: Craft) -> Craft:
        return shown_to(lambda versions, first: self._show(self._attack, first, versions), craft)


def _result(attack: Attack, epsilon: float, right: np.ndarray) -> Result:
    correct, examples = int(np.count_nonzero(right)), len(right)
    return Result(
        attack.name, epsilon, correct, examples, 100.0 * correct / examples, attack.options
    )


class _Network:
    """The one network, as tasks ask for it; what is compiled of it is kept."""

    def __init__(self, logits_fn: attacks.LogitsFn, image_shape: Sequence[int]):
        self.image_shape = tuple(image_shape)
        self._logits = logits_fn
        self._crafters: dict[str, Craft] = {}
        self._predict: Predict | None = None

    def logits(self, name: str) -> attacks.LogitsFn:
        """See ``tasks.Networks``."""
        return self._logits

    def crafter(self, name: str, attack: Attack, *, seed: int, num_classes: int | None) -> Craft:
        """See ``tasks.Networks``."""
        key = repr(attack)
        if key not in self._crafters:
            self._crafters[key] = tasks.crafter_of(
                self._logits, self.image_shape, attack, seed=seed, num_classes=num_classes
            )
        return self._crafters[key]

    def predict(self, name: str, versions: np.ndarray, first: int) -> np.ndarray:
        """See ``tasks.Networks``."""
        if self._predict is None:
            self._predict = crafting.predictor(self._logits, self.image_shape)
        return self._predict(versions, first)
