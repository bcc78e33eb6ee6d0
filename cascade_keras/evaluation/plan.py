"""What an evaluation computes: what was asked for as tasks."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence

import numpy as np

from cascade_keras.attacks.carlini_wagner import selection
from cascade_keras.attacks.specs import ATTACKS, SUITE, Attack, in_words
from cascade_keras.errors import InputError
from cascade_keras.evaluation import checklist, diagnosis, stages, summary
from cascade_keras.evaluation.asked import Asked, Given
from cascade_keras.evaluation.following import Following
from cascade_keras.evaluation.indicators import Indicators
from cascade_keras.evaluation.stores import Arrays, Through, told_by
from cascade_keras.evaluation.tasks import (
    Clock,
    MinimalEpsilons,
    Part,
    Predictions,
    Task,
    ZeroGradients,
    arrays_of,
    open_array,
    work,
)

# What the images of a source and of an attack, by its label, go through.
Keep = Callable[[str, str, Attack], Through | None]


class Plan:
    """The tasks of an evaluation.

    Args:
        asked: what is measured.
        given: whose images are attacked.
        targets, sources: names of networks; without sources each target is its own.
        hashes: of every network's weights, by name.
        keep: what the images that are made go through; None for nothing.
        part: gives images and labels of indices, for the tasks that look at others' images.

    Attributes:
        asked, given, targets, sources: as given.
        count: how many images of the split.
        diagnosed: how many of them the diagnosis looks at.
        main: tasks of the predictions that were asked for: clean images first.
        minimal: tasks of the minimal epsilons.
        gradients, extra: tasks of the diagnosis: zero gradients, and the attacks that nobody asked
            for.
        indicators, short: tasks of the checklist: what targets are probed with, and short attacks
            that nobody asked for.
        following: tasks of what an AutoAttack is gone on with, once ``follow`` has been called.
        clock: the time that all of them take.

    Raises:
        InputError: more images of each class than there are.
    """

    def __init__(
        self,
        asked: Asked,
        given: Given,
        targets: Sequence[str],
        sources: Sequence[str],
        hashes: Mapping[str, str],
        keep: Keep | None = None,
        part: Part | None = None,
    ):
        self.asked, self.given = asked, given
        self._hashes, self._keep, self._part = hashes, keep, part
        self.targets, self.sources = tuple(targets), tuple(sources)
        self.clock = Clock()
        self.count = min(asked.num_images, len(given.labels))
        self.diagnosed = min(asked.diagnosis_images, self.count)
        self.main = [*self._clean(), *self._attacked()]
        self.minimal = self._minimal()
        self.gradients = self._gradients() if self.diagnosed else []
        self.extra = self._extra() if self.diagnosed else []
        probed = self.diagnosed and max(asked.epsilons) > 0
        self.indicators = self._indicators() if probed else []
        self.short = self._short() if probed else []
        self.following: list[Following] = []

    @property
    def tasks(self) -> list[Task]:
        """All tasks, in the order in which they are run."""
        return [
            *self.main,
            *self.minimal,
            *self.gradients,
            *self.extra,
            *self.indicators,
            *self.short,
            *self.following,
        ]

    @property
    def work(self) -> int:
        """How many gradients all tasks take, about."""
        return work(self.tasks)

    def _clean(self) -> list[Predictions]:
        names = dict.fromkeys([*self.targets, *self.sources])
        return [self._predictions(None, "clean", Attack.clean(), [name]) for name in names]

    def _attacked(self) -> list[Predictions]:
        planned = []
        for source in self.sources or self.targets:
            shown = self.targets if self.sources else (source,)
            # A source classifies its own images as well: transfer rates count what fools it.
            shown = [*shown, *([source] if source not in shown else [])]
            planned += [
                self._predictions(source, label, attack, shown)
                for label, attack in self.asked.attacks.items()
                if not (self.sources and summary.needs_no_source(label))
            ]
        if self.sources:
            planned += [
                self._predictions(target, label, attack, (target,))
                for target in self.targets
                for label, attack in self.asked.attacks.items()
                if summary.needs_no_source(label)
            ]
        return planned

    def _minimal(self) -> list[MinimalEpsilons]:
        planned = []
        for attack in self.asked.minimal.values():
            options = attack.options
            try:
                indices = selection(self.given.labels, options["images"])
            except ValueError as error:
                raise InputError(str(error), "cw_images") from error
            planned += [
                MinimalEpsilons(
                    target,
                    indices,
                    grid=self.given.grid,
                    search=options["search"],
                    iterations=options["iterations"],
                    starts=[
                        task
                        for task in self.main
                        if task.source == target and told_by(task.attack.name)
                    ],
                    part=self._part,
                    clock=self.clock,
                )
                for target in self.targets
            ]
        return planned

    def _gradients(self) -> list[ZeroGradients]:
        indices = np.arange(self.diagnosed)
        return [ZeroGradients(t, indices, self.asked.batch_size) for t in self.targets]

    def _extra(self) -> list[Predictions]:
        """Return the white-box attacks that show masked gradients and that nobody asked for."""
        there = {(task.source, task.label) for task in self.main if task.source in task.shown}
        # Black-box attacks are compared with the same ones in the white box, unless that is a suite
        # which takes hours.
        asked = self.asked
        run = {k: a for k, a in asked.attacks.items() if ATTACKS[a.name].kind != SUITE}
        run |= {name: asked.diagnostic(name) for name in diagnosis.LOOKS_AT if name not in run}
        unbounded = asked.diagnostic(diagnosis.UNBOUNDED, (diagnosis.LARGEST_EPSILON,))
        planned = []
        for target in self.targets:
            planned += [
                self._diagnostic(target, label, attack, "diagnosis")
                for label, attack in run.items()
                if (target, label) not in there
            ]
            if unbounded.epsilons[0] not in asked.epsilons:
                planned.append(self._diagnostic(target, unbounded.name, unbounded, "unbounded"))
        return planned

    def _indicators(self) -> list[Indicators]:
        largest = (max(self.asked.epsilons),)
        pgd = self.asked.attacks.get("pgd", self.asked.diagnostic("pgd"))
        pgd = Attack("pgd", largest, pgd.options)
        return [
            Indicators(
                target,
                pgd,
                np.arange(self.diagnosed),
                seed=self.asked.seed,
                batch_size=self.asked.batch_size,
                clock=self.clock,
            )
            for target in self.targets
        ]

    def _short(self) -> list[Predictions]:
        """Return a few queries of the square attack, where nobody asked for it."""
        there = {(task.source, task.label) for task in self.main if task.source in task.shown}
        if checklist.SHORT not in ATTACKS:
            return []
        short = Attack(checklist.SHORT, (max(self.asked.epsilons),), checklist.SHORT_OPTIONS)
        label = f"{short.name} ({in_words(short.options)})"
        return [
            self._diagnostic(target, label, short, "checklist")
            for target in self.targets
            if (target, short.name) not in there
        ]

    def follow(self, targets: Collection[str], arrays: Arrays) -> None:
        """Plan what AutoAttacks are gone on with of targets whose gradients mislead.

        Args:
            arrays: in which the main tasks are complete.
        """
        self.following = []
        for task in self.main:
            if task.source in targets and stages.goes_on(task.attack):
                parts = (np.array(open_array(each, arrays)) for each in arrays_of(task))
                following = Following(task, *parts)
                if following.stood.any():
                    self.following.append(following)

    def _diagnostic(self, target: str, label: str, attack: Attack, purpose: str) -> Predictions:
        """Return a task of the diagnosis; attacks of other options have other arrays."""
        options = in_words(attack.options).replace(", ", "-").replace(" ", "-")
        parts = filter(None, (target, attack.name, purpose, options))
        return self._task(target, label, attack, [target], self.diagnosed, key="--".join(parts))

    def _predictions(
        self, source: str | None, label: str, attack: Attack, shown: Sequence[str]
    ) -> Predictions:
        kept = self._keep(source, label, attack) if self._keep and source is not None else None
        return self._task(source, label, attack, shown, self.count, through=kept)

    def _task(self, source, label, attack, shown, count: int, **others) -> Predictions:
        return Predictions(
            source,
            attack,
            shown,
            np.arange(count),
            label=label,
            seed=self.asked.seed,
            batch_size=self.asked.batch_size,
            num_classes=self.given.num_classes,
            clock=self.clock,
            **others,
        )

    def config(self) -> dict:
        """Return what the numbers follow from; keys are named as the settings they come from."""
        asked, given = self.asked, self.given
        searches = [attack.options for attack in asked.minimal.values()]
        return {
            "dataset": {"name": given.name, "fingerprint": given.fingerprint},
            "split": given.split,
            "num_images": self.count,
            "seed": asked.seed,
            "batch_size": asked.batch_size,
            "target": {name: self._hashes[name] for name in self.targets},
            "source": {name: self._hashes[name] for name in self.sources},
            "epsilon": list(asked.epsilons),
            "attack": [
                *([attack.name, dict(attack.options)] for attack in asked.attacks.values()),
                *(attack.name for attack in asked.minimal.values()),
            ],
            "inference_noise": asked.inference_noise,
            "diagnosis_images": self.diagnosed,
            **asked.told,
            **{f"cw_{key}": value for options in searches for key, value in options.items()},
        }
