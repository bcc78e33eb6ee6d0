"""An evaluation as one object: networks, data, attacks -> a resumable report."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import numpy as np

from cascade_keras import data
from cascade_keras.data.specs import look_up
from cascade_keras.evaluation import content, pictures, tables, tasks
from cascade_keras.evaluation.cells import Cell
from cascade_keras.evaluation.content import Found
from cascade_keras.evaluation.diagnosis import Gradients
from cascade_keras.evaluation.networks import load_networks
from cascade_keras.evaluation.plan import CW, Plan
from cascade_keras.evaluation.report import Report, Seconds, check_places
from cascade_keras.evaluation.settings import EvaluationSettings
from cascade_keras.provenance import package_versions
from cascade_keras.sources import Network, Source

# What a report says of a network's training.
_RECIPE = ("model", "loss", "steps", "seed", "init_from", "cascade_source", "ensemble_source")


class Evaluation:
    """Measures how networks withstand attacks, and keeps a report that a kill cannot harm.

    Args:
        settings: see ``EvaluationSettings``.
        targets, sources: networks instead of those that the settings name: paths, Keras models,
            whatever ``load_source`` takes or returns.
        dataset: instead of the one that the settings name.

    Attributes:
        settings: with everything filled in that follows from the networks.
        report: its directory; nothing is written before ``run``.
        notes: what can be computed and is likely not what was meant, a sentence each.
        work: how many gradients it takes, about, with those that were taken before.
        seconds: what crafting and classifying took, all runs with this output together.

    Raises:
        InputError: settings, networks or data that cannot be used.

    Example::

        from cascade_keras import Evaluation, EvaluationSettings

        settings = EvaluationSettings(
            target=["saved/cascade"], attack=["iter_fgsm", "pgd"], epsilon=[8, 16],
            num_images=500, output="reports/cascade",
        )
        found = Evaluation(settings).run()
        for record in found["results"]:
            print(record["attack"], record["epsilon"], record["accuracy"], record["options"])

    The same settings with the same output go on where a run was interrupted.
    """

    def __init__(
        self,
        settings: EvaluationSettings,
        *,
        targets: Sequence[Network] | None = None,
        sources: Sequence[Network] | None = None,
        dataset: data.Dataset | None = None,
    ):
        self.settings = settings = settings.resolved(
            targets, sources, dataset.preset if dataset else None
        )
        self.report = Report(settings.output)
        check_places(settings)
        self._preset = dataset.preset if dataset else look_up(settings.dataset)
        trust = settings.trust_source
        targets = load_networks(
            targets or settings.target,
            self._preset,
            setting="target",
            differentiable=False,
            trust=trust,
        )
        sources = load_networks(
            sources or settings.source,
            self._preset,
            setting="source",
            known=targets,
            keep=False,
            trust=trust,
        )
        everyone = dict(zip(sources.names, sources.sources, strict=True))
        everyone = dict(zip(targets.names, targets.sources, strict=True)) | everyone
        self._networks = tasks.SavedNetworks(
            everyone,
            targets.shape,
            targets=targets.names,
            noise=settings.inference_noise,
            seed=settings.seed,
        )
        self._records = [
            _record(name, source, name in targets) for name, source in everyone.items()
        ]
        self.notes = _notes(settings, everyone.values())
        self._dataset = dataset or data.load(settings.dataset, settings.data_dir)
        self._plan = Plan(
            settings,
            self._dataset,
            targets.shape,
            targets.names,
            sources.names,
            {name: source.weights_hash for name, source in everyone.items()},
        )
        for store in self._plan.stores:
            store.check()
        images, self._labels = getattr(self._dataset, settings.split)
        self._images = _Images(images, targets.shape[0])

    @property
    def work(self) -> int:
        """How many gradients it takes, about, with those that were taken before."""
        return self._plan.work

    @property
    def seconds(self) -> Seconds:
        """The ``crafting`` and ``classifying`` seconds that the output's runs took so far."""
        return self.report.seconds()

    def run(self, progress: Callable[[int], None] | None = None) -> dict:
        """Compute what is missing, write the report, and return what report.json holds.

        Args:
            progress: called with the gradients done of ``work``.

        Raises:
            InputError: the output is in use, or of another evaluation; or a network gives logits
                that are not finite.
        """
        plan, arrays = self._plan, self.report.arrays
        with self.report.opened({**plan.config(), "versions": package_versions()}):
            tasks.run(
                plan.tasks,
                self._networks,
                arrays,
                self._images,
                self._labels,
                progress or (lambda done: None),
            )
            found = _found(plan, arrays, self._labels)
            written = self._content(found)
            self._draw(found, written)
            self.report.add_seconds(**plan.clock.take())
            self.report.write(written, tables.markdown(written))
        return written

    def _content(self, found: Found) -> dict:
        """Return what report.json holds."""
        settings, plan = self.settings, self._plan
        asked = [settings.attack_at(CW, settings.cw_threshold)] if plan.minimal else []
        asked = [*plan.attacks, *asked]
        counted = content.results(found, plan.targets, plan.sources, settings.cw_threshold, asked)
        trusted = None
        if plan.diagnosed:
            ran = [*asked, *(task.attack for task in plan.extra)]
            trusted = {"examples": plan.diagnosed}
            trusted |= content.diagnose(found, plan.targets, self._preset.num_classes, ran)
        return {
            "dataset": self._dataset.name,
            "split": settings.split,
            "examples": plan.count,
            "seed": settings.seed,
            "labels": "true",
            "inference_noise": settings.inference_noise,
            "notes": self.notes,
            **counted,
            "diagnosis": trusted,
            "sources": list(plan.sources),
            "networks": self._records,
            "attacks": [attack.record() for attack in asked],
            "dataset_fingerprint": self._dataset.fingerprint,
            "batch_size": settings.batch_size,
            "versions": package_versions(),
        }

    def _draw(self, found: Found, written: dict) -> None:
        """Draw the pictures and write the tables beside the report."""
        report, plan, settings = self.report, self._plan, self.settings
        pictures.draw_accuracies(
            report, written["results"], plan.targets, plan.sources, plan.attacks
        )
        if plan.minimal:
            pictures.write_minimal(report, found, settings.cw_threshold)
        if settings.confusion:
            pictures.write_confusion(report, found, plan.targets, self._preset.num_classes)
        if settings.examples:
            self._draw_examples(found)

    def _draw_examples(self, found: Found) -> None:
        """Draw images that a target classifies correctly when clean and not when attacked."""
        epsilon = max(self.settings.epsilon)
        for task in (task for task in self._plan.main if task.source is not None):
            for target in (name for name in task.shown if name in self._plan.targets):
                cell = Cell(target, task.source, task.attack.name, epsilon)
                chosen = pictures.fooled(found, cell, self.settings.examples)
                if len(chosen):
                    clean, adversarial = self._images[chosen], self._craft_again(task, chosen)
                    pictures.draw_examples(self.report, found, cell, chosen, clean, adversarial)

    def _craft_again(self, task: tasks.Predictions, chosen: np.ndarray) -> np.ndarray:
        """Return the adversarial images with these indices at the largest epsilon.

        The whole batches are crafted, as they were: an image's noise depends on its batch.
        """
        craft = task.crafter(self._networks)
        found = []
        for first in np.unique(chosen // task.batch_size) * task.batch_size:
            indices = task.indices[first : first + task.batch_size]
            versions = craft(self._images[indices], self._labels[indices], int(first))
            found.append(versions[-1][np.isin(indices, chosen)])
        return np.concatenate(found)


class _Images:
    """Stored images as networks see them, converted when they are asked for."""

    def __init__(self, stored: np.ndarray, crop: int):
        self._stored, self._crop = stored, crop

    def __getitem__(self, indices: np.ndarray) -> np.ndarray:
        return data.as_network_input(self._stored[indices], self._crop)


def _record(name: str, source: Source, target: bool) -> dict:
    """Return what a report says of a network."""
    recipe = source.provenance.get("recipe", {})
    return {
        "name": name,
        "path": str(source),
        "weights_hash": source.weights_hash,
        "recipe": {key: recipe[key] for key in _RECIPE if recipe.get(key)},
        "target": target,
    }


def _notes(settings: EvaluationSettings, sources: Sequence[Source]) -> list[str]:
    """Return what can be computed and is likely not what was meant, a sentence each."""
    small = settings.small_epsilon()
    if small is None:
        return []
    trained = [source.provenance.get("recipe", {}).get("max_epsilon") for source in sources]
    largest = max(filter(None, trained), default=None)
    return [
        f"Epsilon {small:g} is less than one pixel value: epsilon is in 0..255 units, so {small:g} "
        f"of the whole range is {255 * small:g}"
        + (f"; these networks were trained up to {largest:g}." if largest else ".")
    ]


def _found(plan: Plan, arrays, labels: np.ndarray) -> Found:
    """Read what the tasks found."""
    gradients = {}
    for task in plan.gradients:
        zero, zero_margin = tasks.open_array(task, arrays) == 1
        gradients[task.network] = Gradients(zero, zero_margin)
    return Found(
        labels,
        dict(_predicted(plan.main, arrays)),
        {task.network: np.array(tasks.open_array(task, arrays)) for task in plan.minimal},
        plan.minimal[0].indices if plan.minimal else np.arange(0),
        dict(_predicted(plan.extra, arrays)),
        gradients,
    )


def _predicted(planned: Sequence[tasks.Predictions], arrays) -> Iterator[tuple[Cell, np.ndarray]]:
    """Yield each cell and the classes that its target took the images for, (n,)."""
    for task in planned:
        array = tasks.open_array(task, arrays)
        for target, versions in zip(task.shown, array, strict=True):
            for epsilon, classes in zip(task.attack.epsilons, versions, strict=True):
                yield Cell(target, task.source, task.attack.name, epsilon), np.array(classes)
