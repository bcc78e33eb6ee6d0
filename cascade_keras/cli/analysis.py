"""What bin/analyze does between its flags and its files: networks, images, arrays, captions."""

from __future__ import annotations

import abc
import json
import pathlib
import textwrap
import zipfile
from collections.abc import Callable, Mapping, Sequence

import numpy as np

from cascade_keras import data, figures
from cascade_keras.attacks import carlini_wagner
from cascade_keras.cli.analyze import SUFFIXES
from cascade_keras.data.specs import DATASETS
from cascade_keras.errors import InputError
from cascade_keras.figures import measures as analysis
from cascade_keras.files import write_atomically
from cascade_keras.sources import Source, load_source

Arrays = dict[str, np.ndarray]
_FORMAT = 1  # of the arrays; those of another one are computed again
SAME, OTHER, UNKNOWN = "same initialisation", "other initialisation", "initialisation not recorded"


class Plot(abc.ABC):
    """A figure of some networks; each figure is a subclass.

    Args:
        chosen: the flags' values, resolved.

    Attributes:
        work: how many images are to be gone through, all networks together.
        images, labels: float32 (N, H, W, C) in [0, 1], and (N,).
        indices: (N,), which images of the split they are.

    Raises:
        InputError: networks or data that cannot be used.
    """

    # What the numbers follow from beside networks, images, seed and epsilons.
    parameters: tuple[str, ...] = ()
    epsilons_are_computed = True
    how_chosen = "drawn at random"

    def __init__(self, chosen: Mapping):
        self.chosen = chosen
        self.preset = DATASETS[chosen["dataset"]]
        self._load_networks()
        dataset = data.load(chosen["dataset"], chosen["data_dir"])
        self.fingerprint = dataset.fingerprint
        images, labels = getattr(dataset, chosen["split"])
        self.indices = self._choose(labels)
        self.images = data.as_network_input(images[self.indices], self.shape[0])
        self.labels = np.asarray(labels[self.indices], np.int32)
        self.epsilons, self.seed = chosen["epsilons"], chosen["seed"]
        self.attacks = chosen["attack"]
        self.work = len(self.networks) * len(self.images)

    def _load_networks(self) -> None:
        """Load and check every network, and give each its name."""
        self.networks: list[Source] = []
        self.names: list[str] = []
        self.shape: tuple[int, ...] | None = None
        for path in self.chosen["model"]:
            try:
                network = load_source(path)
                self.shape = self.shape or self.preset.network_shape(network.input_shape)
                own = tuple(network.input_shape)
                if None not in own and own != self.shape and self.networks:
                    raise InputError(
                        f"{network.path} takes images of shape {own}, {self.networks[0].path} of "
                        f"shape {self.shape}; draw them apart"
                    )
                network.check(self.shape, self.preset.num_classes)
            except InputError as error:
                raise InputError(f"--model: {error}") from error
            for other in self.networks:
                if other.weights_hash == network.weights_hash:
                    raise InputError(
                        f"--model: {other.path} and {network.path} are the same network; name it "
                        "once"
                    )
            self.networks.append(network)
            self.names.append(network.name if network.name not in self.names else str(path))

    def _choose(self, labels: np.ndarray) -> np.ndarray:
        """Return the indices of the images, ascending."""
        split, there = f"{self.chosen['split']} split of {self.chosen['dataset']}", len(labels)
        named = self.chosen["image_index"]
        if named:
            indices = np.array(list(map(int, named)))
            if indices.max() >= there:
                raise InputError(
                    f"--image_index: the {split} has images 0 to {there - 1}, got {indices.max()}"
                )
            return indices
        count = self.chosen["num_images"]
        if count and count > there:
            raise InputError(f"--num_images: the {split} has {there} images, got {count}")
        return self.pick(labels, min(count or self.chosen["default_images"], there))

    def pick(self, labels: np.ndarray, count: int) -> np.ndarray:
        """Return ``count`` indices, ascending: drawn with the seed unless a figure says else."""
        rng = np.random.default_rng(self.chosen["seed"])
        return np.sort(rng.choice(len(labels), count, replace=False))

    # What a figure is.

    @abc.abstractmethod
    def compute(self, progress: Callable[[int], None]) -> Arrays:
        """Return the arrays; ``progress`` takes the number of images done of ``work``."""

    @abc.abstractmethod
    def draw(self, path: pathlib.Path, arrays: Arrays) -> None:
        """Draw the picture."""

    @abc.abstractmethod
    def describe(self, arrays: Arrays) -> list[str]:
        """Return paragraphs of the caption: what is drawn, and what should be known of it."""

    def parts(
        self,
        function: Callable[..., Arrays],
        progress: Callable[[int], None],
        *args,
        outputs: Callable[[Source], Callable] = lambda network: network.logits,
        **options,
    ) -> list[Arrays]:
        """Return what a function of ``analysis`` computes of each network.

        Args:
            function: called as function(outputs(network), images, labels, *args, progress=...,
                **options).
        """
        found = []
        for number, network in enumerate(self.networks):
            before = number * len(self.images)
            found.append(
                function(
                    outputs(network),
                    self.images,
                    self.labels,
                    *args,
                    progress=lambda done, before=before: progress(before + done),
                    **options,
                )
            )
        return found

    def stacked(self, function: Callable[..., Arrays], *args, **options) -> Arrays:
        """Return ``parts``, those of a name stacked, networks first."""
        parts = self.parts(function, *args, **options)
        return {name: np.stack([part[name] for part in parts]) for name in parts[0]}

    def options(self) -> dict[str, dict]:
        """Return what attacks are given beside epsilons and seed."""
        steps, restarts = self.chosen["pgd_steps"], self.chosen["pgd_restarts"]
        return {"pgd": {"steps": steps, "restarts": restarts, "objective": "margin"}}

    # Arrays and files.

    def identity(self) -> str:
        """Return what the arrays follow from, as JSON."""
        chosen = self.chosen
        hashes = [network.weights_hash for network in self.networks]
        content = {
            "format": _FORMAT,
            "figure": chosen["figure"],
            "networks": [list(pair) for pair in zip(self.names, hashes, strict=True)],
            "dataset": [chosen["dataset"], self.fingerprint, chosen["split"]],
            "images": self.indices.tolist(),
            "seed": self.seed,
            "epsilons": self.epsilons if self.epsilons_are_computed else None,
            "attacks": [[name, self.options().get(name, {})] for name in self.attacks],
            "parameters": {name: chosen[name] for name in self.parameters},
        }
        return json.dumps(content, sort_keys=True)

    def file(self, suffix: str) -> pathlib.Path:
        """Return one of the four files."""
        return self.chosen["output"] / f"{self.chosen['figure']}{suffix}"

    def arrays(self, progress: Callable[[int], None]) -> tuple[Arrays, bool]:
        """Return the arrays, and whether they had to be computed.

        Raises:
            OSError: they cannot be written.
        """
        file, identity = self.file(".npz"), self.identity()
        arrays = _read(file, identity)
        if arrays is not None:
            return arrays, False
        # Whoever cannot write here learns it before hours are spent.
        file.parent.mkdir(parents=True, exist_ok=True)
        progress(0)
        arrays = self.compute(progress)
        arrays |= {"images": self.indices, "labels": self.labels}
        if self.epsilons_are_computed:
            arrays["epsilons"] = np.array(self.epsilons)

        def write(temporary: pathlib.Path) -> None:
            with open(temporary, "wb") as opened:
                np.savez_compressed(opened, identity=np.array(identity), **arrays)

        write_atomically(file, write)
        return arrays, True

    def write(self, arrays: Arrays) -> pathlib.Path:
        """Write the picture and its caption; return the picture's path."""
        for suffix in SUFFIXES[2:]:
            self.draw(self.file(suffix), arrays)
        text = self.caption(arrays)
        write_atomically(
            self.file(".txt"), lambda temporary: temporary.write_text(text, encoding="utf-8")
        )
        return self.file(".png")

    def caption(self, arrays: Arrays) -> str:
        """Return the caption: what is drawn, of which networks and images, with which seed."""
        networks = [
            f"  {name}: weights {network.weights_hash}; {_training(network)}"
            for name, network in zip(self.names, self.networks, strict=True)
        ]
        count, split = len(self.images), self.chosen["split"]
        images = (
            f"Images: {count} {split} images of {self.chosen['dataset']}, {self.how_chosen}; seed "
            f"{self.seed}; true labels. Dataset fingerprint {self.fingerprint}. Their indices, and "
            f"all numbers, are in {self.file('.npz').name}."
        )
        paragraphs = [*self.describe(arrays), images]
        filled = [textwrap.fill(text, 100, break_on_hyphens=False) for text in paragraphs]
        return "\n\n".join([*filled, "\n".join(["Networks:", *networks])]) + "\n"


def _read(file: pathlib.Path, identity: str) -> Arrays | None:
    """Return the arrays in a file if they are those of this identity."""
    try:
        with np.load(file, allow_pickle=False) as stored:
            if str(stored["identity"]) == identity:
                return {name: stored[name] for name in stored.files if name != "identity"}
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile):
        pass  # absent, another program's, or cut short: it is computed again
    return None


def _training(network: Source) -> str:
    """Say what is recorded of a network's training."""
    recipe = network.provenance.get("recipe")
    if not recipe:
        return "its training is not recorded"
    parts = [
        recipe.get("model"),
        f"{recipe.get('loss')} loss",
        recipe.get("loss") in ("pivot", "bidirectional")
        and f"lambda_2 {recipe.get('distance_weight')}",
        f"{recipe.get('steps')} steps",
        f"seed {recipe.get('seed')}",
    ]
    for name in ("cascade_source", "ensemble_source"):
        if recipe.get(name):
            kept = ", ".join(map(_place_name, recipe[name]))
            parts.append(f"{name.removesuffix('_source')} from {kept}")
    start = recipe.get("init_from")
    parts.append(f"initialised from {_place_name(start)}" if start else "initialised at random")
    return ", ".join(str(part) for part in parts if part)


def _place_name(path: str) -> str:
    """Return what people call the network at a path, which need not exist any more."""
    place = pathlib.PurePath(path)
    if place.name == "model.keras" or place.name.isdecimal():
        place = place.parent
    return place.name.removesuffix(".keras")


def initialisation(network: Source) -> tuple | None:
    """Return what a network's first weights were, None where it is not recorded."""
    recipe = network.provenance.get("recipe")
    if not recipe:
        return None
    if recipe.get("init_from"):
        return ("network", _place_name(recipe["init_from"]))
    return ("seed", recipe.get("seed"), recipe.get("model"), recipe.get("dataset"))


def compare_initialisation(first: Source, second: Source) -> str:
    """Return ``SAME``, ``OTHER`` or ``UNKNOWN``; a network and its own start are the same."""
    one, other = initialisation(first), initialisation(second)
    if one is None or other is None:
        return UNKNOWN
    same = one == other or one == ("network", second.name) or other == ("network", first.name)
    return SAME if same else OTHER


def _numbers(values: Sequence[float]) -> str:
    """Return 2, 4, 8, or -16 to 16 in steps of 4."""
    steps = set(np.diff(values))
    if len(values) > 4 and len(steps) == 1:
        return f"{values[0]:g} to {values[-1]:g} in steps of {steps.pop():g}"
    return ", ".join(f"{value:g}" for value in values)


class _PerClass(Plot):
    """Of the first images of each class."""

    how_chosen = "the first of each class, as many of each as there are"

    def pick(self, labels: np.ndarray, count: int) -> np.ndarray:
        return carlini_wagner.selection(labels, count)


class _First(Plot):
    """Of the first images, as in bin/evaluate."""

    how_chosen = "the first ones"

    def pick(self, labels: np.ndarray, count: int) -> np.ndarray:
        return np.arange(count)

    def uncertainty(self) -> str:
        """Say how far accuracies of so few images may be off."""
        error = 50 / np.sqrt(len(self.images))
        return f"The standard error of an accuracy is at most {error:.1f} percentage points."


class NoiseCorrelation(Plot):
    """Figures 1 and 6."""

    band = 0.1  # as in the paper

    def compute(self, progress):
        return analysis.noise_correlation(
            [network.logits for network in self.networks],
            self.images,
            self.labels,
            self.epsilons,
            attack=self.attacks[0],
            seed=self.seed,
            progress=lambda done: progress(done * len(self.networks)),
            **self.options().get(self.attacks[0], {}),
        )

    def _pairs(self, arrays: Arrays) -> tuple[list[str], list[str]]:
        """Return names of the pairs, and whether each has the same initialisation."""
        pairs = arrays["pairs"].tolist()
        names = [f"{self.names[one]}, {self.names[other]}" for one, other in pairs]
        networks = self.networks
        kinds = [compare_initialisation(networks[one], networks[other]) for one, other in pairs]
        return names, kinds

    def draw(self, path, arrays):
        figures.noise_correlation(
            path,
            self.epsilons,
            arrays["mean"],
            arrays["deviation"],
            *self._pairs(arrays),
            band=self.band,
        )

    def describe(self, arrays):
        paragraphs = [
            f"Pearson's correlation of the adversarial noises X_adv - X of {self.attacks[0]} "
            f"between networks, over an image's pixels, against epsilon ({_numbers(self.epsilons)} "
            "in pixel values of 0..255): mean over the images; bands: "
            f"± {self.band:g} standard deviations. As figures 1 and 6 of the paper."
        ]
        for name, kind, mean in zip(*self._pairs(arrays), arrays["mean"], strict=True):
            paragraphs.append(
                f"{name} ({kind}): {mean[0]:.3f} at epsilon {self.epsilons[0]:g}, {mean[-1]:.3f} "
                f"at {self.epsilons[-1]:g}."
            )
        return paragraphs + _undefined(arrays, "noise")


def _undefined(arrays: Arrays, what: str) -> list[str]:
    """Say how many correlations count as 0 because one side is constant."""
    undefined = int(arrays["undefined"].sum())
    if not undefined:
        return []
    share = 100 * undefined / arrays["correlation"].size
    return [f"{undefined} correlations ({share:.1f} %) of a {what} that is zero count as 0."]


class GradientCorrelation(Plot):
    """Figure 8."""

    band = 0.5

    def compute(self, progress):
        return self.stacked(
            analysis.gradient_correlation,
            progress,
            self.epsilons,
            seed=self.seed,
        )

    def draw(self, path, arrays):
        figures.gradient_correlation(
            path, self.epsilons, arrays["mean"], arrays["deviation"], self.names, band=self.band
        )

    def describe(self, arrays):
        return [
            "Pearson's correlation of the gradients of J(X, y_true) with respect to two images, "
            "over their pixels: the clean image and the one of an attack of size epsilon (0..255 "
            f"units; {_numbers(self.epsilons)}), or the images of two attacks; step_rand adds "
            f"random signs. Mean over the images; bands: ± {self.band:g} standard deviations. As "
            "figure 8 of the paper.",
            *_undefined(arrays, "gradient"),
        ]


class Logits(Plot):
    """Figure 7."""

    band = 1.0

    def compute(self, progress):
        return self.stacked(
            analysis.logits,
            progress,
            self.epsilons,
            attack_names=self.attacks,
            seed=self.seed,
        )

    def draw(self, path, arrays):
        figures.logits(
            path,
            self.epsilons,
            (arrays["true_mean"], arrays["true_deviation"]),
            (arrays["false_mean"], arrays["false_deviation"]),
            arrays["largest_mean"],
            self.names,
            self.attacks,
            band=self.band,
        )

    def describe(self, arrays):
        return [
            "Argument to the softmax (logit) of the true class and mean of those of the false "
            "classes, at the images of one-step attacks of size epsilon (0..255 units; "
            f"{_numbers(self.epsilons)}); a negative epsilon is the same step to the other side. "
            f"Mean over the images; bands: ± {self.band:g} standard deviation. Dotted: mean of the "
            "largest false logit. Each network has its own scale. As figure 7 of the paper."
        ]


class EmbeddingMap(_PerClass):
    """Figure 4."""

    def _traced(self) -> np.ndarray:
        """Return the place of each class's first image."""
        return np.unique(self.labels, return_index=True)[1]

    def compute(self, progress):
        parts = self.parts(
            analysis.embedding_map,
            progress,
            self.epsilons,
            outputs=lambda network: network,
            traced=self._traced(),
            attack=self.attacks[0],
            seed=self.seed,
            **self.options().get(self.attacks[0], {}),
        )
        arrays = {name: [part[name] for part in parts] for name in parts[0]}
        # Embeddings of networks can have different dimensions.
        apart = {
            f"{name}_{number}": array
            for name in ("embedding", "attacked")
            for number, array in enumerate(arrays.pop(name))
        }
        return {name: np.stack(each) for name, each in arrays.items()} | apart

    def draw(self, path, arrays):
        figures.embedding_map(
            path,
            arrays["points"],
            self.labels,
            arrays["traces"],
            self.labels[self._traced()],
            arrays["centres"],
            self.names,
            [self._axis_labels(explained) for explained in arrays["explained"]],
        )

    @staticmethod
    def _axis_labels(explained: np.ndarray) -> tuple[str, str]:
        if np.isnan(explained).any():
            return "embedding 1", "embedding 2"
        first, second = 100 * explained
        return f"component 1 ({first:.0f} %)", f"component 2 ({second:.0f} %)"

    def describe(self, arrays):
        paragraphs = [
            "Embeddings of clean images, coloured by class, the number at each class's median; and "
            f"where {self.attacks[0]} moves the first image of each class, from the large marker "
            f"(clean) by an arrow for each epsilon of {_numbers(self.epsilons)} (0..255 units). As "
            "figure 4 of the paper."
        ]
        for number, name in enumerate(self.names):
            explained = arrays["explained"][number]
            dimensions = arrays[f"embedding_{number}"].shape[-1]
            if np.isnan(explained).any():
                paragraphs.append(f"{name}: the {dimensions} embedding dimensions themselves.")
                continue
            paragraphs.append(
                f"{name}: projection of the {dimensions} embedding dimensions onto the first two "
                "principal components of the clean embeddings shown (scikit-learn PCA), which "
                f"explain {100 * explained[0]:.1f} % and {100 * explained[1]:.1f} % of their "
                "variance."
            )
        return paragraphs


class DistanceSweep(_First):
    """Figure 5."""

    parameters = ("distance_weight",)

    def compute(self, progress):
        return analysis.distance_sweep(
            [network.logits for network in self.networks],
            self.chosen["distance_weight"],
            self.images,
            self.labels,
            self.epsilons,
            attack_names=self.attacks,
            options=self.options(),
            seed=self.seed,
            progress=progress,
        )

    def draw(self, path, arrays):
        figures.distance_sweep(
            path,
            arrays["distance_weight"],
            arrays["clean"],
            arrays["accuracy"],
            self.epsilons,
            self.attacks,
            levels=(arrays["level"], arrays["level_clean"], arrays["level_accuracy"]),
        )

    def describe(self, arrays):
        return [
            "White-box accuracy against the weight lambda_2 of the distance of embeddings in "
            f"training: a dot a network, lines through their means; clean, and under "
            f"{', '.join(self.attacks)} at epsilon {_numbers(self.epsilons)} (0..255 units). As "
            "figure 5 of the paper.",
            self.uncertainty(),
        ]


class AccuracyCurve(_First):
    """Not in the paper."""

    def compute(self, progress):
        return self.stacked(
            analysis.accuracy_curve,
            progress,
            self.epsilons,
            attack_names=self.attacks,
            options=self.options(),
            seed=self.seed,
        )

    def draw(self, path, arrays):
        figures.accuracy_curves(path, self.epsilons, arrays["accuracy"], self.names, self.attacks)

    def describe(self, arrays):
        paragraphs = [
            f"White-box accuracy under {', '.join(self.attacks)} against epsilon "
            f"({_numbers(self.epsilons)}; 0..255 units, on a square root scale). Gradients are "
            "masked where an iterative attack finds less than a one-step attack or random signs, "
            "or where accuracy stays above zero at 255.",
            self.uncertainty(),
        ]
        if "pgd" in self.attacks:
            options = self.options()["pgd"]
            paragraphs.insert(
                1,
                f"pgd: {options['steps']} steps, {options['restarts']} random start(s), on the "
                "margin of the logits.",
            )
        return paragraphs


class CWDistribution(_PerClass):
    """Figure 9."""

    parameters = ("cw_search", "cw_iterations")
    epsilons_are_computed = False  # they are only marked

    def compute(self, progress):
        return self.stacked(
            analysis.cw_distribution,
            progress,
            grid=DATASETS[self.chosen["dataset"]].grid,
            search=self.chosen["cw_search"],
            iterations=self.chosen["cw_iterations"],
        )

    def draw(self, path, arrays):
        curves = dict(zip(self.names, arrays["epsilon"], strict=True))
        figures.distribution(path, curves, thresholds=self.epsilons)

    def describe(self, arrays):
        paragraphs = [
            "Cumulative distribution of the smallest epsilon (0..255 units) at which Carlini and "
            f"Wagner's L-infinity attack fools each image, by the {self.chosen['cw_search']} "
            f"search of at most {self.chosen['cw_iterations']} iterations; 0 where the clean image "
            "is misclassified. Lower is more robust. As figure 9 of the paper."
        ]
        for name, epsilon in zip(self.names, arrays["epsilon"], strict=True):
            above = ", ".join(f"{np.sum(epsilon > e)} above {e:g}" for e in self.epsilons)
            paragraphs.append(
                f"{name}: of {len(epsilon)} images {above}; median {np.median(epsilon):.2f}."
            )
        return paragraphs


class LossSurface(Plot):
    """Not in the paper."""

    @property
    def how_chosen(self) -> str:
        return "named by --image_index" if self.chosen["image_index"] else "drawn at random"

    def compute(self, progress):
        return self.stacked(
            analysis.loss_surface,
            progress,
            self.epsilons,
            seed=self.seed,
        )

    def draw(self, path, arrays):
        names = [
            f"image {index}, class {label}"
            for index, label in zip(self.indices, self.labels, strict=True)
        ]
        figures.loss_surface(
            path, self.epsilons, arrays["loss"], arrays["margin"], self.names, names
        )

    def describe(self, arrays):
        return [
            "Cross entropy of the true class at X + a sign(grad J(X, y_true)) + b sign(noise), "
            f"clipped to the valid range, a and b from {self.epsilons[0]:g} to "
            f"{self.epsilons[-1]:g} (0..255 units, {len(self.epsilons)} values each), around the "
            "clean image (cross). Line: the border of the true class. Where the loss hardly rises "
            "along the gradient, or rises more elsewhere, the gradient is masked.",
            "Rows: " + "; ".join(
                f"image {index}, class {label}"
                for index, label in zip(self.indices, self.labels, strict=True)
            ) + ".",
        ]  # fmt: skip


PLOTS = {
    "noise_correlation": NoiseCorrelation,
    "embedding_map": EmbeddingMap,
    "distance_sweep": DistanceSweep,
    "logits": Logits,
    "gradient_correlation": GradientCorrelation,
    "cw_distribution": CWDistribution,
    "accuracy_curve": AccuracyCurve,
    "loss_surface": LossSurface,
}
