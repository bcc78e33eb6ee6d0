"""The core that evaluations on disk and in memory share: networks, images, what comes of them.

``Evaluation`` gives it arrays in a directory, ``measured.evaluate`` arrays in memory.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Protocol

import numpy as np

from cascade_keras.attacks.entry import fractions_said
from cascade_keras.attacks.specs import ATTACKS, NESTED, SUITE, Attack, short_steps
from cascade_keras.attacks.versions import left_out
from cascade_keras.ensembles import Ensemble
from cascade_keras.evaluation import (
    black_box,
    checklist,
    content,
    diagnosis,
    pictures,
    stages,
    tables,
    tasks,
)
from cascade_keras.evaluation.asked import Asked, Given
from cascade_keras.evaluation.cells import Cell
from cascade_keras.evaluation.content import Found
from cascade_keras.evaluation.diagnosis import Finding, Gradients
from cascade_keras.evaluation.following import Following
from cascade_keras.evaluation.networks import Loaded, is_loaded
from cascade_keras.evaluation.plan import Keep, Plan
from cascade_keras.evaluation.report import Report
from cascade_keras.evaluation.stores import Arrays, told_by
from cascade_keras.provenance import package_versions
from cascade_keras.recorded import chosen_in_words
from cascade_keras.sources import Source
from cascade_keras.speed import BatchSize, fastest_batch_size

# What a report says of a network's training.
_RECIPE = ("model", "loss", "steps", "seed", "init_from", "cascade_source", "ensemble_source")
# What networks usually take; (0, 1) is what is given to those that say nothing.
_RANGES = ((0.0, 1.0), (0.0, 255.0), (-1.0, 1.0))
_PROBED = 200  # images on which another range is tried


class Images(Protocol):
    """Images as networks see them, made when they are asked for."""

    def __getitem__(self, indices: np.ndarray) -> np.ndarray:
        """Return float32 (n, H, W, C) in [0, 1]."""


class Measuring:
    """Measures networks: the tasks, what they found, and what follows from it.

    Args:
        asked: what is measured.
        given: what is known of the images.
        images: of the whole split.
        targets, sources: the networks; without sources each target is its own.
        keep: what images that are made go through, see ``Plan``.

    Attributes:
        plan: the tasks.
        notes: what can be computed and is likely not what was meant, a sentence each.
        networks: as the tasks ask for them.
        randomised: targets that do not answer the same images the same twice, by their names.

    Raises:
        InputError: more images of each class than there are.
    """

    def __init__(
        self,
        asked: Asked,
        given: Given,
        images: Images,
        targets: Loaded,
        sources: Loaded,
        keep: Keep | None = None,
    ):
        means = [source.mean for source in sources.sources if isinstance(source, Ensemble)]
        if means:
            told = {**asked.told, "ensemble": ", ".join(dict.fromkeys(means))}
            asked = dataclasses.replace(asked, told=told)
        everyone = dict(zip(sources.names, sources.sources, strict=True))
        everyone = dict(zip(targets.names, targets.sources, strict=True)) | everyone
        self.networks = tasks.SavedNetworks(
            everyone,
            targets.shape,
            targets=targets.names,
            noise=asked.inference_noise,
            seed=asked.seed,
        )
        self._records = [
            _record(name, source, name in targets) for name, source in everyone.items()
        ]
        self.notes = _notes(asked, everyone.values(), given.num_classes)
        self.notes += _near(asked) if sources.names else []
        self.randomised = _randomised(targets)
        self.notes += [_of_randomised(name, asked) for name in self.randomised]
        self._images = images
        self._marks = {
            (target, source): black_box.mark_of(everyone[target], everyone[source])
            for target in targets.names
            for source in sources.names
        }
        hashes = {name: source.weights_hash for name, source in everyone.items()}
        self.plan = Plan(asked, given, targets.names, sources.names, hashes, keep, self.part)

    def run(self, arrays: Arrays, progress: Callable[[int], None] | None = None) -> Found:
        """Compute what is missing of the tasks' arrays, and return what they hold.

        Where the diagnosis says that a target's gradients mislead, a fast AutoAttack of it is gone
        on with.

        Args:
            progress: called with the gradients done of ``plan.work``, which grows by that.

        Raises:
            InputError: a network gives logits that are not finite.
        """
        plan = self.plan
        progress = progress or (lambda done: None)
        given = self.networks, arrays, *self.shown
        with fractions_said():  # by the notes
            tasks.run(plan.tasks, *given, progress)
            done, before = plan.work, list(plan.following)
            self.follow(arrays)
            if plan.following != before:
                tasks.run(plan.following, *given, lambda new: progress(done + new))
        return self._held(arrays)

    def found(self, arrays: Arrays) -> Found:
        """Return what the arrays of a finished evaluation hold."""
        self.follow(arrays)
        return self._held(arrays)

    @property
    def may_follow(self) -> bool:
        """Whether AutoAttacks are gone on with where the diagnosis says so."""
        asked = any(map(stages.goes_on, self.plan.asked.attacks.values()))
        return asked and self.plan.diagnosed > 0

    def follow(self, arrays: Arrays) -> None:
        """Plan what AutoAttacks are gone on with, where it was not yet.

        Args:
            arrays: in which all other tasks are complete.
        """
        plan = self.plan
        if self.may_follow and not plan.following:
            given = plan.targets, plan.given.num_classes, self._ran()
            findings = content.diagnose(self._held(arrays), *given)["findings"]
            plan.follow(stages.flagged(findings), arrays)

    def _ran(self) -> dict[str, Attack]:
        """Return all attacks that are run, by their labels."""
        return self.plan.asked.every | {task.label: task.attack for task in self.plan.extra}

    def _held(self, arrays: Arrays) -> Found:
        """Return what the tasks' arrays hold."""
        plan, labels = self.plan, self.plan.given.labels
        gradients = {}
        for task in plan.gradients:
            zero, zero_margin = tasks.open_array(task, arrays) == 1
            gradients[task.network] = Gradients(zero, zero_margin)
        predicted = dict(_predicted([*plan.main, *plan.following], arrays))
        return Found(
            labels,
            predicted,
            {
                task.network: self._bounded(task, tasks.open_array(task, arrays), predicted)
                for task in plan.minimal
            },
            plan.minimal[0].indices if plan.minimal else np.arange(0),
            dict(_predicted(plan.extra, arrays)),
            gradients,
            dict(_predicted(plan.short, arrays)),
            {task.network: task.probed(tasks.open_array(task, arrays)) for task in plan.indicators},
            dict(_told([*plan.main, *plan.following], arrays)),
        )

    def _bounded(
        self, task: tasks.MinimalEpsilons, minimal: np.ndarray, predicted: Mapping[Cell, np.ndarray]
    ) -> np.ndarray:
        """Return minimal epsilons, no larger than what AutoAttack and its members have needed.

        An AutoAttack that was gone on with has found images that were not there to start from.
        """
        minimal, own = np.array(minimal), task.indices < self.plan.count
        rows = task.indices[own]  # it may look at images that no other attack was given
        labels = self.plan.given.labels[rows]
        for cell, seen in predicted.items():
            attack = self.plan.asked.every.get(cell.attack)
            if cell.source == cell.target == task.network and attack and told_by(attack.name):
                wrong = (seen[rows] >= 0) & (seen[rows] != labels)
                minimal[own] = np.where(wrong, np.minimum(minimal[own], cell.epsilon), minimal[own])
        return minimal.astype(np.float32)

    @property
    def shown(self) -> tuple[Images, np.ndarray]:
        """Images as networks see them, of the whole split, and their true classes, (N,)."""
        return self._images, self.plan.given.labels

    def part(self, indices: Sequence[int]) -> tuple[np.ndarray, np.ndarray]:
        """Return images as networks see them, (n, H, W, C), and their true classes, (n,)."""
        indices = np.asarray(indices)
        return self._images[indices], self.plan.given.labels[indices]

    def again(self, task: tasks.Task) -> Callable[[slice], list[np.ndarray]]:
        """Return the function that computes a batch of a task's arrays, and keeps nothing."""
        step = task.start(self.networks)

        def compute(batch: slice) -> list[np.ndarray]:
            return tasks.parts_of(task, step(*self.part(task.indices[batch]), batch.start))

        return compute

    def content(self, found: Found) -> dict:
        """Return what report.json holds."""
        plan, asked, given = self.plan, self.plan.asked, self.plan.given
        thresholds = [t for attack in asked.minimal.values() for t in attack.epsilons]
        counted = content.results(found, plan.targets, plan.sources, thresholds, asked.every)
        chance = list(self._at_chance(found))
        trusted = None
        if plan.diagnosed:
            ran, trusted = self._ran(), {"examples": plan.diagnosed}
            trusted |= content.diagnose(found, plan.targets, given.num_classes, ran, chance)
        return {
            "dataset": given.name,
            "split": given.split,
            "examples": plan.count,
            "seed": asked.seed,
            "labels": "true",
            "inference_noise": asked.inference_noise,
            "warnings": [finding.sentence for finding in chance],
            "notes": self.notes,
            **counted,
            "black_box": black_box.black_box(found.correct(found.predicted), self._marks)
            if plan.sources
            else None,
            "diagnosis": trusted,
            "checklist": content.checked(found, plan.targets, given.num_classes),
            "sources": list(plan.sources),
            "networks": self._records,
            "attacks": [attack.record() for attack in asked.every.values()],
            "dataset_fingerprint": given.fingerprint,
            "batch_size": asked.batch_size,
            "versions": package_versions(),
        }

    def write(
        self, report: Report, found: Found, written: dict, *, confusion: bool, examples: int
    ) -> None:
        """Draw the pictures and write the tables, and last the report.

        Args:
            report: opened.
            written: what report.json holds.
            confusion: whether confusion matrices are wanted.
            examples: how many misclassified images of an attack.
        """
        plan = self.plan
        asked, given = plan.asked, plan.given
        pictures.draw_accuracies(
            report, written["results"], plan.targets, plan.sources, asked.attacks
        )
        for attack in asked.minimal.values():
            pictures.write_minimal(report, found, attack.epsilons)
        if confusion:
            pictures.write_confusion(report, found, plan.targets, given)
        if examples:
            self._draw_examples(report, found, examples)
        report.add_seconds(**plan.clock.take())
        report.write(written, tables.markdown(written))

    def _draw_examples(self, report: Report, found: Found, most: int) -> None:
        """Draw images that a target classifies correctly when clean and not when attacked."""
        followed = {task.base: task for task in self.plan.following}
        for task in (task for task in self.plan.main if task.source is not None):
            for target in (name for name in task.shown if name in self.plan.targets):
                cell = Cell(target, task.source, task.label, task.attack.epsilons[-1])
                chosen = pictures.fooled(found, cell, most)
                if len(chosen):
                    again = self._craft_again(followed.get(task, task), chosen)
                    clean, adversarial = self._images[chosen], again
                    pictures.draw_examples(
                        report, found, self.plan.given, cell, chosen, clean, adversarial
                    )

    def _craft_again(self, task: tasks.Predictions | Following, chosen: np.ndarray) -> np.ndarray:
        """Return the adversarial images with these indices at the largest epsilon.

        The whole batches are crafted, as they were: an image's noise depends on its batch.
        """
        craft, labels = task.crafter(self.networks), self.plan.given.labels
        found = []
        for first in np.unique(chosen // task.batch_size) * task.batch_size:
            indices = task.indices[first : first + task.batch_size]
            versions = craft(self._images[indices], labels[indices], int(first))
            found.append(versions[-1][np.isin(indices, chosen)])
        return np.concatenate(found)

    def _at_chance(self, found: Found) -> Iterator[Finding]:
        """Yield a finding for each target whose clean accuracy says that something is wrong."""
        classes = self.plan.given.num_classes
        for target in self.plan.targets:
            predicted = found.predicted[Cell.clean(target)]
            labels = found.labels[: len(predicted)]
            if diagnosis.is_poor(predicted == labels, classes):
                other = self._other_range(target, labels[:_PROBED], predicted[:_PROBED])
                yield from diagnosis.at_chance(target, predicted, labels, classes, other)

    def _other_range(self, target: str, labels: np.ndarray, predicted: np.ndarray):
        """Return the range in which a network is right most often, and where it is right.

        The images it is given are moved to what it would see were that range its own.
        """
        source = self.networks.source(target)
        low, high = getattr(source, "value_range", None) or _RANGES[0]
        images = self._images[np.arange(len(labels))]
        tried = []
        for new_low, new_high in (each for each in _RANGES if each != (low, high)):
            moved = (new_low - low + (new_high - new_low) * images) / np.float32(high - low)
            seen = self.networks.predict(target, moved[None].astype(np.float32), 0, finite=False)
            tried.append(((new_low, new_high), seen[0] == labels))
        return max(tried, key=lambda each: each[1].mean())


def _record(name: str, source: Source, target: bool) -> dict:
    """Return what a report says of a network."""
    recipe = source.provenance.get("recipe", {})
    record = {
        "name": name,
        "path": str(source),
        "weights_hash": source.weights_hash,
        "recipe": {key: recipe[key] for key in _RECIPE if recipe.get(key)},
        "target": target,
    }
    if isinstance(source, Ensemble):
        record["mean"] = source.mean
        record["members"] = [_record(member.name, member, False) for member in source.members]
    return record


def _notes(asked: Asked, sources: Iterable[Source], num_classes: int) -> list[str]:
    """Return what can be computed and is likely not what was meant, a sentence each."""
    trained = [source.provenance.get("recipe", {}).get("max_epsilon") for source in sources]
    notes = small_epsilon_note(asked.epsilons, max(filter(None, trained), default=None))
    notes += [
        f"{source.name} is its training's network of step "
        f"{chosen_in_words(source.provenance['chosen'])}."
        for source in sources
        if source.provenance.get("chosen")
    ]
    for attack in asked.every.values():
        notes += short_steps(attack.options, attack.epsilons)
        if attack.name == "autoattack":
            notes += left_out(attack.options["version"], num_classes)
        if stages.goes_on(attack) and not asked.diagnosis_images:
            notes.append(
                f"autoattack (fast) does not go on to {stages.AFTERWARDS}: with diagnosis_images 0 "
                "nothing says whether gradients mislead."
            )
    return list(dict.fromkeys(notes))


def _near(asked: Asked) -> list[str]:
    """Return what there is to say of images that are to fool other networks, a sentence or none."""
    near = [
        label
        for label, attack in asked.attacks.items()
        if ATTACKS[attack.name].kind in (NESTED, SUITE) and not ATTACKS[attack.name].gradient_free
    ]
    if not near or len(asked.epsilons) < 2:
        return []
    return [
        f"What falls to {', '.join(near)} at a small epsilon stands for larger ones too, and "
        "images as near as that fool other networks less; for a black box ask for one epsilon at a "
        "time, or for mi_fgsm."
    ]


def _randomised(networks: Loaded) -> list[str]:
    """Return the names of networks that are asked twice and do not answer the same."""
    found = []
    for name, source, before in zip(networks.names, networks.sources, networks.probed, strict=True):
        if not is_loaded(source):
            continue
        now = source.on_probes(networks.shape)
        if np.abs(now - before).max() > checklist.MOST_DIFFERENCE * np.abs(before).max():
            found.append(name)
    return found


def _of_randomised(name: str, asked: Asked) -> str:
    """Return what there is to say of a network that is randomised."""
    averaged = any(
        attack.options.get("version") == "rand" or attack.options.get("average", 1) > 1
        for attack in asked.every.values()
    )
    propose = "; ask for autoattack's version rand, which averages gradients"
    return (
        f"{name} is randomised: it answers the same images otherwise each time. Attacks are judged "
        "by other draws than they were made with, and single gradients mislead them"
        f"{'' if averaged else propose}."
    )


def small_epsilon_note(epsilons: Sequence[float], trained: float | None = None) -> list[str]:
    """Return what there is to say of epsilons below one pixel value, a sentence or none.

    Args:
        epsilons: in 0..255 units.
        trained: the largest one of the networks' training, where that is known.
    """
    small = min((epsilon for epsilon in epsilons if 0 < epsilon < 1), default=None)
    if small is None:
        return []
    return [
        f"Epsilon {small:g} is less than one pixel value: epsilon is in 0..255 units, so {small:g} "
        f"of the whole range is {255 * small:g}"
        + (f"; these networks were trained up to {trained:g}." if trained else ".")
    ]


def _told(planned: Sequence[tasks.Predictions | Following], arrays) -> Iterator:
    """Yield the cell of each source itself and what an attack told of its images there."""
    for task in planned:
        for part in task.further:
            array = np.array(tasks.open_array(part, arrays))
            for number, epsilon in enumerate(task.attack.epsilons):
                told = stages.Told(**dict(zip(part.names, array[:, number], strict=True)))
                if isinstance(task, Following):
                    told = dataclasses.replace(told, stood=int(task.stood[number]))
                yield Cell(task.source, task.source, task.label, epsilon), told


def _predicted(
    planned: Sequence[tasks.Predictions | Following], arrays
) -> Iterator[tuple[Cell, np.ndarray]]:
    """Yield each cell and the classes that its target took the images for, (n,)."""
    for task in planned:
        array = tasks.open_array(task, arrays)
        for target, versions in zip(task.shown, array, strict=True):
            for epsilon, classes in zip(task.attack.epsilons, versions, strict=True):
                yield Cell(target, task.source, task.label, epsilon), np.array(classes)


def measured_batch_size(
    targets: Loaded, sources: Loaded, images: Sequence, labels: np.ndarray, count: int
) -> BatchSize:
    """Return of how many images at a time the first network's gradients are fastest.

    Args:
        targets, sources: as for ``Measuring``; those of the sources are taken where there are any.
        images, labels, count: as for ``fastest_batch_size``.
    """
    taken = sources if sources.names else targets
    name = taken.names[0]
    networks = tasks.SavedNetworks({name: taken.sources[0]}, taken.shape)
    return fastest_batch_size(networks.logits(name), images, labels, count)
