"""What bin/evaluate does between its flags and its report: networks, tasks, pictures."""

from __future__ import annotations

import pathlib
from collections.abc import Callable, Iterator, Mapping, Sequence

import numpy as np

from cascade_keras import data, figures
from cascade_keras.attacks import carlini_wagner
from cascade_keras.attacks.specs import Attack
from cascade_keras.cli.evaluate import DIAGNOSIS, LARGEST_EPSILON
from cascade_keras.data.specs import DATASETS
from cascade_keras.errors import InputError
from cascade_keras.evaluation import diagnosis, summary
from cascade_keras.evaluation import tasks as matrix
from cascade_keras.evaluation.diagnosis import Cell
from cascade_keras.evaluation.networks import load_networks
from cascade_keras.evaluation.report import Report
from cascade_keras.evaluation.stores import ImageStore, file_name
from cascade_keras.provenance import package_versions
from cascade_keras.sources import Source

_DIAGNOSIS_PGD = {"steps": 40, "restarts": 1, "objective": "margin"}


class Evaluation:
    """One evaluation, ready to run.

    Args:
        chosen: the flags' values, resolved.
        report: where the results are kept; it is opened.

    Raises:
        InputError: networks or data that cannot be used, or a report of another configuration.
    """

    def __init__(self, chosen: Mapping, report: Report):
        self.chosen, self.report = chosen, report
        self.preset = DATASETS[chosen["dataset"]]
        self._load_networks()
        dataset = data.load(chosen["dataset"], chosen["data_dir"])
        images, labels = getattr(dataset, chosen["split"])
        count = min(chosen["num_images"], len(images))
        self._stored, self.labels = images, labels
        self.count = count
        self.fingerprint = dataset.fingerprint
        self.clock = matrix.Clock()
        self.minimal: list[matrix.MinimalEpsilons] = []
        self._plan()
        report.open(self._config())

    # The networks.

    def _load_networks(self) -> None:
        """Load every network once and check it, keep the targets, and give each its name."""
        chosen = self.chosen
        targets = load_networks(
            chosen["target"], self.preset, setting="target", differentiable=False
        )
        sources = load_networks(
            chosen["source"], self.preset, setting="source", known=targets, keep=False
        )
        self.shape = targets.shape
        self.targets, self.sources = list(targets.names), list(sources.names)
        self.records: list[dict] = []
        loaded = dict(zip(targets.names, targets.sources, strict=True))
        loaded |= {name: sources[name] for name in sources.names if name not in targets}
        for name, network in loaded.items():
            self._record(name, network)
            self.records[-1]["target"] = name in targets
        self.networks = matrix.SavedNetworks(
            loaded,
            self.shape,
            targets=targets.names,
            noise=chosen["inference_noise"],
            seed=chosen["seed"],
        )

    def _record(self, name: str, network: Source) -> None:
        recipe = network.provenance.get("recipe", {})
        told = ("model", "loss", "steps", "seed", "init_from", "cascade_source", "ensemble_source")
        self.records.append(
            {
                "name": name,
                "path": str(network.path),
                "weights_hash": network.weights_hash,
                "recipe": {key: recipe[key] for key in told if recipe.get(key)},
            }
        )

    # The tasks.

    def _plan(self) -> None:
        chosen = self.chosen
        epsilons = tuple(chosen["epsilon"])
        everything = [*self.targets, *(s for s in self.sources if s not in self.targets)]
        self.attacks = [
            Attack(name, epsilons, self._options(name))
            for name in chosen["attack"]
            if name != "cw_linf"
        ]
        clean = Attack("clean", (0.0,))
        self.main = [self._predictions(None, clean, [name]) for name in everything]
        for source in self.sources or self.targets:
            shown = self.targets if self.sources else [source]
            # A source classifies its own images as well: transfer rates count what fools it.
            shown = [*shown, *([source] if source not in shown else [])]
            self.main += [self._predictions(source, attack, shown) for attack in self.attacks]
        if "cw_linf" in chosen["attack"]:
            self.minimal = [self._minimal(target) for target in self.targets]
        self.diagnosed = min(chosen["diagnosis_images"], self.count)
        self.gradients, self.extra = [], []
        if self.diagnosed:
            self._plan_diagnosis(epsilons)
        self.tasks = [*self.main, *self.minimal, *self.gradients, *self.extra]
        self.work = matrix.work(self.tasks)

    def _options(self, attack: str) -> dict:
        chosen = self.chosen
        if attack == "pgd":
            return {
                "steps": chosen["pgd_steps"],
                "step_size": chosen["pgd_step_size"],
                "restarts": chosen["pgd_restarts"],
                "objective": chosen["pgd_loss"],
            }
        if attack == "autoattack":
            return {
                "iterations": chosen["autoattack_iterations"],
                "queries": chosen["autoattack_queries"],
            }
        return {}

    def _predictions(
        self, source, attack: Attack, shown: Sequence[str], count=None, purpose=""
    ) -> matrix.Predictions:
        return matrix.Predictions(
            source,
            attack,
            shown,
            np.arange(count or self.count),
            seed=self.chosen["seed"],
            batch_size=self.chosen["batch_size"],
            num_classes=self.preset.num_classes,
            clock=self.clock,
            # Those of the diagnosis are of no use to others.
            through=lambda task, craft: craft if purpose else self._kept(task, craft),
            key="--".join(part for part in (source or shown[0], attack.name, purpose) if part),
        )

    def _minimal(self, target: str) -> matrix.MinimalEpsilons:
        try:
            indices = carlini_wagner.selection(self.labels, self.chosen["cw_images"])
        except ValueError as error:
            raise InputError(f"--cw_images: {error}") from error
        return matrix.MinimalEpsilons(
            target,
            indices,
            grid=self.preset.grid,
            search=self.chosen["cw_search"],
            iterations=self.chosen["cw_iterations"],
            clock=self.clock,
        )

    def _plan_diagnosis(self, epsilons: tuple[float, ...]) -> None:
        """Plan the white-box attacks that show masked gradients and that nobody asked for."""
        asked = [attack for attack in self.attacks if attack.name != "autoattack"]
        planned = {attack.name: attack for attack in asked}
        for name in DIAGNOSIS:
            options = _DIAGNOSIS_PGD if name == "pgd" else {}
            planned.setdefault(name, Attack(name, epsilons, options))
        unbounded = Attack("pgd", (LARGEST_EPSILON,), _DIAGNOSIS_PGD)
        white_boxes = {(t.source, t.attack.name) for t in self.main if t.source in t.shown}
        for target in self.targets:
            self.gradients.append(
                matrix.ZeroGradients(target, np.arange(self.diagnosed), self.chosen["batch_size"])
            )
            for attack in planned.values():
                if (target, attack.name) not in white_boxes:
                    self.extra.append(self._diagnostic(target, attack, "diagnosis"))
            if LARGEST_EPSILON not in planned["pgd"].epsilons:
                self.extra.append(self._diagnostic(target, unbounded, "unbounded"))

    def _diagnostic(self, target: str, attack: Attack, purpose: str) -> matrix.Predictions:
        return self._predictions(target, attack, [target], self.diagnosed, purpose)

    def _kept(self, task: matrix.Predictions, craft):
        store = task.source and self._image_store(task)
        return store.through(craft) if store else craft

    def _image_store(self, task: matrix.Predictions) -> ImageStore | None:
        if not self.chosen["images_dir"]:
            return None
        hashes = {record["name"]: record["weights_hash"] for record in self.records}
        shape = (len(task.attack.epsilons), len(task.indices), *self.shape)
        identity = {
            "source": task.source,
            "source_hash": hashes[task.source],
            "dataset": self.chosen["dataset"],
            "dataset_hash": self.fingerprint,
            "split": self.chosen["split"],
            "attack": task.attack.name,
            "options": dict(task.attack.options),
            "epsilons": list(task.attack.epsilons),
            "seed": self.chosen["seed"],
            "batch_size": task.batch_size,
            "shape": list(shape),
        }
        return ImageStore(
            pathlib.Path(self.chosen["images_dir"]).expanduser(),
            file_name(f"{task.source}-{task.attack.name}"),
            identity,
            shape,
        )

    def _config(self) -> dict:
        """Return what the numbers follow from; keys are named as the flags that they come from."""
        chosen = self.chosen
        hashes = {record["name"]: record["weights_hash"] for record in self.records}
        cw = ("cw_search", "cw_images", "cw_iterations") if self.minimal else ()
        return {
            "dataset": {"name": chosen["dataset"], "fingerprint": self.fingerprint},
            "split": chosen["split"],
            "num_images": self.count,
            "seed": chosen["seed"],
            "batch_size": chosen["batch_size"],
            "target": {name: hashes[name] for name in self.targets},
            "source": {name: hashes[name] for name in self.sources},
            "epsilon": chosen["epsilon"],
            "attack": [[attack.name, dict(attack.options)] for attack in self.attacks]
            + ["cw_linf"] * bool(self.minimal),
            "inference_noise": chosen["inference_noise"],
            "diagnosis_images": self.diagnosed,
            **{name: chosen[name] for name in cw},
            "versions": package_versions(),
        }

    # Running, and what follows from it.

    def run(self, progress: Callable[[int], None]) -> None:
        """Compute what is missing."""
        images = _Images(self._stored, self.shape[0])
        matrix.run(self.tasks, self.networks, self.report.arrays, images, self.labels, progress)

    def write(self) -> dict:
        """Write the report and its pictures; return what report.json holds."""
        predicted = dict(self._predicted(self.main))
        correct = self._correct(predicted)
        found = {
            task.network: np.array(matrix.open_array(task, self.report.arrays))
            for task in self.minimal
        }
        content = self._content(correct, found)
        self._draw_accuracies(content)
        if found:
            self._write_minimal(found)
        if self.chosen["confusion"]:
            self._write_confusion(predicted)
        if self.chosen["examples"]:
            self._draw_examples(correct, predicted)
        self.report.write(content, summary.markdown(content))
        return content

    def _predicted(self, tasks: Sequence[matrix.Predictions]) -> Iterator[tuple[Cell, np.ndarray]]:
        """Yield each cell and the classes that its target took the images for, (n,)."""
        for task in tasks:
            array = matrix.open_array(task, self.report.arrays)
            for target, versions in zip(task.shown, array, strict=True):
                for epsilon, classes in zip(task.attack.epsilons, versions, strict=True):
                    cell = Cell(target, task.source, task.attack.name, float(epsilon))
                    yield cell, np.array(classes)

    def _correct(self, predicted: Mapping[Cell, np.ndarray]) -> dict[Cell, np.ndarray]:
        return {cell: classes == self.labels[: len(classes)] for cell, classes in predicted.items()}

    def _content(self, correct: Mapping, found: Mapping) -> dict:
        chosen = self.chosen
        shown = {cell: right for cell, right in correct.items() if cell.target in self.targets}
        for name, epsilon in found.items():
            for threshold in chosen["cw_threshold"]:
                shown[Cell(name, name, summary.CW, threshold)] = epsilon > threshold
        attacks = [*self.attacks]
        if self.minimal:
            options = {name: chosen[f"cw_{name}"] for name in ("search", "images", "iterations")}
            attacks.append(Attack("cw_linf", tuple(chosen["cw_threshold"]), options))
        return {
            "dataset": chosen["dataset"],
            "split": chosen["split"],
            "examples": self.count,
            "seed": chosen["seed"],
            "labels": "true",
            "inference_noise": chosen["inference_noise"],
            "results": summary.accuracies(shown),
            "worst_case": summary.worst_cases(shown),
            "transfer": summary.transfers(correct) if self.sources else [],
            "cw_linf": summary.minimal_epsilons(found, chosen["cw_threshold"]),
            "diagnosis": self._diagnose(correct) if self.diagnosed else None,
            "sources": self.sources,
            "networks": self.records,
            "attacks": [
                {"name": a.name, "epsilons": list(a.epsilons), "options": dict(a.options)}
                for a in attacks
            ],
            "dataset_fingerprint": self.fingerprint,
            "batch_size": chosen["batch_size"],
            "seconds": self.report.add_seconds(self.clock.seconds),
            "versions": package_versions(),
        }

    def _diagnose(self, correct: Mapping) -> dict:
        """Return the findings, their sentences, and the accuracies that were measured for them."""
        extra = self._correct(dict(self._predicted(self.extra)))
        gradients = {}
        for task in self.gradients:
            zero, zero_margin = matrix.open_array(task, self.report.arrays) == 1
            gradients[task.network] = diagnosis.Gradients(zero, zero_margin)
        # What was asked for has more images, and stronger attacks.
        every = {**extra, **correct}
        every = {cell: right for cell, right in every.items() if cell.target in self.targets}
        findings = diagnosis.diagnose(every, gradients, self.preset.num_classes)
        return {
            "examples": self.diagnosed,
            "sentences": diagnosis.summary(findings, self.targets),
            "findings": [
                {
                    "target": finding.target,
                    "kind": finding.kind,
                    "sentence": finding.sentence,
                    "first": finding.first,
                    "second": finding.second,
                    "examples": finding.examples,
                }
                for finding in findings
            ],
            "results": summary.accuracies(extra),
        }

    # Pictures and tables beside the report.

    def _draw_accuracies(self, content: Mapping) -> None:
        """Draw a heat map for each attack and epsilon; white box, one an epsilon."""
        cells = {
            (r["target"], r["source"], r["attack"], r["epsilon"]): r["accuracy"]
            for r in content["results"]
        }
        for epsilon in self.chosen["epsilon"]:
            if not self.sources:
                rows = [attack.name for attack in self.attacks]
                values = [[cells[t, t, name, epsilon] for t in self.targets] for name in rows]
                self._heat_map(f"white_box-{epsilon:g}", values, rows, "attack")
                continue
            for attack in self.attacks:
                values = [
                    [cells[target, source, attack.name, epsilon] for target in self.targets]
                    for source in self.sources
                ]
                self._heat_map(f"{attack.name}-{epsilon:g}", values, self.sources, "crafted from")

    def _heat_map(self, name: str, values: Sequence, rows: Sequence[str], row_label: str) -> None:
        if rows:
            picture = figures.heat_map(
                np.array(values), rows, self.targets, row_label=row_label, column_label="target"
            )
            figures.save(picture, self.report.path / f"{name}.png")

    def _write_minimal(self, found: Mapping[str, np.ndarray]) -> None:
        rows = [
            {"target": name, "image": int(i), "label": int(self.labels[i]), "epsilon": float(e)}
            for task, (name, epsilon) in zip(self.minimal, found.items(), strict=True)
            for i, e in zip(task.indices, epsilon, strict=True)
        ]
        self.report.write_csv("cw_linf.csv", ["target", "image", "label", "epsilon"], rows)
        shares = [
            {"target": name, "epsilon": float(e), "misclassified": float(share)}
            for name, epsilon in found.items()
            for e, share in zip(*carlini_wagner.distribution(epsilon), strict=True)
        ]
        fields = ["target", "epsilon", "misclassified"]
        self.report.write_csv("cw_linf_distribution.csv", fields, shares)
        picture = figures.distribution(found, thresholds=self.chosen["cw_threshold"])
        figures.save(picture, self.report.path / "cw_linf.png")

    def _write_confusion(self, predicted: Mapping[Cell, np.ndarray]) -> None:
        classes = [str(number) for number in range(self.preset.num_classes)]
        rows = []
        for cell, found in predicted.items():
            if cell.target not in self.targets:
                continue
            counts = summary.confusion_matrix(
                found, self.labels[: len(found)], self.preset.num_classes
            )
            named = cell._asdict()
            rows += [
                {
                    **named,
                    "true": int(true),
                    "predicted": int(wrong),
                    "count": int(counts[true, wrong]),
                }
                for true, wrong in np.argwhere(counts)
            ]
            figures.save(figures.confusion(counts, classes), self._picture("confusion", cell))
        fields = [*Cell._fields, "true", "predicted", "count"]
        self.report.write_csv("confusion.csv", fields, rows)

    def _picture(self, kind: str, cell: Cell) -> pathlib.Path:
        source = None if cell.source == cell.target else cell.source
        parts = [cell.target, source, cell.attack, cell.epsilon and f"{cell.epsilon:g}"]
        folder = self.report.path / kind
        folder.mkdir(exist_ok=True)
        return folder / (file_name("-".join(str(part) for part in parts if part)) + ".png")

    def _draw_examples(self, correct: Mapping, predicted: Mapping) -> None:
        """Draw images that a target classifies correctly when clean and not when attacked."""
        images = _Images(self._stored, self.shape[0])
        epsilon = max(self.chosen["epsilon"])
        for task in self.main:
            if task.source is None:
                continue
            for target in (name for name in task.shown if name in self.targets):
                cell = Cell(target, task.source, task.attack.name, epsilon)
                fooled = correct[Cell(target, None, "clean", 0.0)] & ~correct[cell]
                chosen = np.flatnonzero(fooled)[: self.chosen["examples"]]
                if not len(chosen):
                    continue
                adversarial = self._craft_again(task, chosen, images)
                titles = [
                    (str(self.labels[i]), f"{self.labels[i]} → {predicted[cell][i]}")
                    for i in chosen
                ]
                picture = figures.examples(images[chosen], adversarial, titles, epsilon=epsilon)
                figures.save(picture, self._picture("examples", cell))

    def _craft_again(
        self, task: matrix.Predictions, chosen: np.ndarray, images: _Images
    ) -> np.ndarray:
        """Return the adversarial images with these indices at the largest epsilon.

        The whole batches are crafted, as they were: an image's noise depends on its batch.
        """
        craft = task.crafter(self.networks)
        found = []
        for first in np.unique(chosen // task.batch_size) * task.batch_size:
            indices = task.indices[first : first + task.batch_size]
            versions = craft(images[indices], self.labels[indices], int(first))
            found.append(versions[-1][np.isin(indices, chosen)])
        return np.concatenate(found)


class _Images:
    """Stored images as networks see them, converted when they are asked for."""

    def __init__(self, stored: np.ndarray, crop: int):
        self._stored, self._crop = stored, crop

    def __getitem__(self, indices: np.ndarray) -> np.ndarray:
        return data.as_network_input(self._stored[indices], self._crop)
