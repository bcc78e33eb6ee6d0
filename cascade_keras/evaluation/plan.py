"""What an evaluation computes: its settings as tasks."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from cascade_keras.attacks.carlini_wagner import selection
from cascade_keras.attacks.specs import ATTACKS, SUITE, Attack, in_words
from cascade_keras.data import Dataset
from cascade_keras.errors import InputError
from cascade_keras.evaluation import diagnosis
from cascade_keras.evaluation.settings import EvaluationSettings
from cascade_keras.evaluation.stores import ImageStore, file_name
from cascade_keras.evaluation.tasks import (
    Clock,
    MinimalEpsilons,
    Predictions,
    Task,
    ZeroGradients,
    batch_of,
    work,
)
from cascade_keras.files import expand

CW = "cw_linf"


class Plan:
    """The tasks of an evaluation.

    Args:
        settings: resolved.
        dataset: whose images are attacked.
        shape: (H, W, C) of the images.
        targets, sources: names of networks; without sources each target is its own.
        hashes: of every network's weights, by name.

    Attributes:
        targets, sources: as given.
        count: how many images of the split.
        diagnosed: how many of them the diagnosis looks at.
        attacks: those whose images are made, as they were asked for.
        main: tasks of the predictions that were asked for: clean images first.
        minimal: tasks of the minimal epsilons.
        gradients, extra: tasks of the diagnosis: zero gradients, and the attacks that nobody asked
            for.
        clock: the time that all of them take.
        stores: of the images that are kept.

    Raises:
        InputError: more images of each class than there are.
    """

    def __init__(
        self,
        settings: EvaluationSettings,
        dataset: Dataset,
        shape: Sequence[int],
        targets: Sequence[str],
        sources: Sequence[str],
        hashes: Mapping[str, str],
    ):
        self._settings, self._dataset, self._shape = settings, dataset, tuple(shape)
        self._hashes = hashes
        labels = getattr(dataset, settings.split)[1]
        self.targets, self.sources = tuple(targets), tuple(sources)
        self.clock = Clock()
        self.stores: list[ImageStore] = []
        self.count = min(settings.num_images, len(labels))
        self.diagnosed = min(settings.diagnosis_images, self.count)
        self.attacks = [settings.attack_at(name) for name in settings.attack if name != CW]
        self.main = [*self._clean(), *self._attacked()]
        self.minimal = self._minimal(labels) if CW in settings.attack else []
        self.gradients = self._gradients() if self.diagnosed else []
        self.extra = self._extra() if self.diagnosed else []

    @property
    def tasks(self) -> list[Task]:
        """All tasks, in the order in which they are run."""
        return [*self.main, *self.minimal, *self.gradients, *self.extra]

    @property
    def work(self) -> int:
        """How many gradients all tasks take, about."""
        return work(self.tasks)

    def _clean(self) -> list[Predictions]:
        names = dict.fromkeys([*self.targets, *self.sources])
        return [self._predictions(None, Attack.clean(), [name]) for name in names]

    def _attacked(self) -> list[Predictions]:
        planned = []
        for source in self.sources or self.targets:
            shown = self.targets if self.sources else (source,)
            # A source classifies its own images as well: transfer rates count what fools it.
            shown = [*shown, *([source] if source not in shown else [])]
            planned += [self._predictions(source, attack, shown) for attack in self.attacks]
        return planned

    def _minimal(self, labels: np.ndarray) -> list[MinimalEpsilons]:
        options = self._settings.options(CW)
        try:
            indices = selection(labels, options["images"])
        except ValueError as error:
            raise InputError(str(error), "cw_images") from error
        return [
            MinimalEpsilons(
                target,
                indices,
                grid=self._dataset.preset.grid,
                search=options["search"],
                iterations=options["iterations"],
                clock=self.clock,
            )
            for target in self.targets
        ]

    def _gradients(self) -> list[ZeroGradients]:
        indices = np.arange(self.diagnosed)
        return [ZeroGradients(t, indices, self._settings.batch_size) for t in self.targets]

    def _extra(self) -> list[Predictions]:
        """Return the white-box attacks that show masked gradients and that nobody asked for."""
        there = {(task.source, task.attack.name) for task in self.main if task.source in task.shown}
        # Black-box attacks are compared with the same ones in the white box, unless that is a suite
        # which takes hours.
        asked = [a.name for a in self.attacks if ATTACKS[a.name].kind != SUITE]
        names = dict.fromkeys([*asked, *diagnosis.LOOKS_AT])
        unbounded = self._settings.attack_at(diagnosis.UNBOUNDED, (diagnosis.LARGEST_EPSILON,))
        planned = []
        for target in self.targets:
            planned += [
                self._diagnostic(target, self._settings.attack_at(name), "diagnosis")
                for name in names
                if (target, name) not in there
            ]
            if unbounded.epsilons[0] not in self._settings.epsilon:
                planned.append(self._diagnostic(target, unbounded, "unbounded"))
        return planned

    def _diagnostic(self, target: str, attack: Attack, purpose: str) -> Predictions:
        """Return a task of the diagnosis; attacks of other options have other arrays."""
        options = in_words(attack.options).replace(", ", "-").replace(" ", "-")
        parts = filter(None, (target, attack.name, purpose, options))
        return Predictions(
            target,
            attack,
            [target],
            np.arange(self.diagnosed),
            seed=self._settings.seed,
            batch_size=self._settings.batch_size,
            num_classes=self._dataset.preset.num_classes,
            clock=self.clock,
            key="--".join(parts),
        )

    def _predictions(self, source: str | None, attack: Attack, shown: Sequence[str]) -> Predictions:
        return Predictions(
            source,
            attack,
            shown,
            np.arange(self.count),
            seed=self._settings.seed,
            batch_size=self._settings.batch_size,
            num_classes=self._dataset.preset.num_classes,
            clock=self.clock,
            through=None if source is None else self._image_store(source, attack),
        )

    def _image_store(self, source: str, attack: Attack) -> ImageStore | None:
        settings = self._settings
        if settings.images_dir is None:
            return None
        shape = (len(attack.epsilons), self.count, *self._shape)
        identity = {
            "source": source,
            "source_hash": self._hashes[source],
            "dataset": self._dataset.name,
            "dataset_hash": self._dataset.fingerprint,
            "split": settings.split,
            "attack": attack.name,
            "options": dict(attack.options),
            "epsilons": list(attack.epsilons),
            "seed": settings.seed,
            "batch_size": batch_of(attack, settings.batch_size),
            "shape": list(shape),
        }
        name = file_name(f"{source}-{attack.name}")
        self.stores.append(ImageStore(expand(settings.images_dir), name, identity))
        return self.stores[-1]

    def config(self) -> dict:
        """Return what the numbers follow from; keys are named as the settings they come from."""
        settings = self._settings
        cw = ("cw_search", "cw_images", "cw_iterations") if self.minimal else ()
        return {
            "dataset": {"name": self._dataset.name, "fingerprint": self._dataset.fingerprint},
            "split": settings.split,
            "num_images": self.count,
            "seed": settings.seed,
            "batch_size": settings.batch_size,
            "target": {name: self._hashes[name] for name in self.targets},
            "source": {name: self._hashes[name] for name in self.sources},
            "epsilon": list(settings.epsilon),
            "attack": [
                *([attack.name, dict(attack.options)] for attack in self.attacks),
                *([CW] if self.minimal else []),
            ],
            "inference_noise": settings.inference_noise,
            "diagnosis_images": self.diagnosed,
            **{name: getattr(settings, name) for name in cw},
        }
