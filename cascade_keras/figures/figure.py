"""A figure as one object: what computes, draws, keeps and describes it."""

from __future__ import annotations

import contextlib
import functools
import json
import pathlib
import textwrap
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING

import numpy as np

from cascade_keras.data.specs import DatasetSpec, crop_of
from cascade_keras.errors import InputError
from cascade_keras.figures import kept
from cascade_keras.figures.kinds import (
    DRAWN,
    FIGURES,
    FIRST,
    PER_CLASS,
)
from cascade_keras.figures.settings import (
    FigureSettings,
    attacks_of,
    check_options,
    epsilons_of,
    set_options,
)
from cascade_keras.files import check_replaceable, clean, hold_output, named_twice, write_text
from cascade_keras.learned import dataset_of, learned_by

if TYPE_CHECKING:  # they import TensorFlow or matplotlib
    import matplotlib.figure

    from cascade_keras.data import Dataset
    from cascade_keras.figures.kept import Arrays
    from cascade_keras.figures.plot import Plot
    from cascade_keras.sources import Network

_FORMAT = 1  # of the arrays; those of another one are computed again
SUFFIXES = (".npz", ".txt", ".png", ".pdf")


class Figure:
    """A figure of networks: its arrays, its picture, its caption, and the files they are kept in.

    OUTPUT/NAME.npz holds the arrays: while they follow from the same networks, images and
    settings, they are read and not computed again.

    Args:
        settings: what is drawn.
        networks: those in memory, in place of ``settings.model``; see ``sources.load_source``.
        dataset: one in memory, in place of ``settings.dataset``.

    Attributes:
        spec: the figure's row.
        attacks: those that are shown, with all their options.
        epsilons: ascending, in 0..255 units.
        computed: whether the arrays were computed; None before they are there.

    Raises:
        InputError: settings that do not go together, networks or data that cannot be used.

    Example::

        figure = Figure(FigureSettings(figure="accuracy_curve", model=["runs/a", "runs/b"]))
        figure.draw()               # figures/accuracy_curve.png, .pdf, .txt and .npz
        figure.picture()            # matplotlib's Figure
        figure.arrays()["accuracy"] # (networks, attacks, epsilons), in per cent
    """

    def __init__(
        self,
        settings: FigureSettings,
        *,
        networks: Sequence[Network] | None = None,
        dataset: Dataset | None = None,
    ):
        if settings.figure is None:
            raise InputError(f"must be one of {', '.join(FIGURES)}", "figure")
        self.settings, self.spec = settings, FIGURES[settings.figure]
        self._given, self._dataset = networks, dataset
        self.computed: bool | None = None
        self._held = False
        check_options(settings, self.spec)
        self._check_networks()
        self.dataset = self._choose_dataset()
        self.epsilons = epsilons_of(settings, self.spec, self.dataset)
        self.attacks = attacks_of(settings, self.spec, self.epsilons)
        self._check_output()

    # Settings.

    @property
    def _models(self) -> Sequence:
        """The networks as they were named, or given."""
        return self.settings.model if self._given is None else self._given

    def _check_networks(self) -> None:
        if self._given is not None and self.settings.model:
            raise InputError("networks are given; leave it out", "model")
        count = len(self._models)
        if not count:
            raise InputError("names no network; name at least one network", "model")
        twice = named_twice(self.settings.model)
        if twice is not None:
            raise InputError(f"{twice} is named twice; name each network once", "model")
        if count < self.spec.networks:
            raise InputError(
                f"{self.spec.name} compares networks; name at least {self.spec.networks}", "model"
            )

    def _choose_dataset(self) -> DatasetSpec:
        given, networks = self._dataset and self._dataset.preset, {"model": self._models}
        # That they are there is to be said before anything is loaded.
        learned_by(networks)
        return dataset_of(self.settings, networks, given=given, trust=self.settings.trust_source)

    def _check_output(self) -> None:
        """Refuse a place that cannot be written before hours are spent."""
        for suffix in SUFFIXES:
            check_replaceable(self.file(suffix), "output")

    def file(self, suffix: str) -> pathlib.Path:
        """Return one of the four files, see ``SUFFIXES``."""
        return pathlib.Path(self.settings.output, f"{self.spec.name}{suffix}")

    # Networks and images.

    @functools.cached_property
    def plot(self) -> Plot:
        """The figure's class with its networks and images, loaded at first use."""
        from cascade_keras import data
        from cascade_keras.evaluation.networks import load_networks

        loaded = load_networks(
            self._models,
            self.dataset,
            setting="model",
            trust=self.settings.trust_source,
            told=self.settings.told(),
        )
        if self._dataset is None:
            settings = self.settings
            self._dataset = data.load(self.dataset, settings.data_dir, cache_dir=settings.cache_dir)
        images, labels = getattr(self._dataset, self.settings.split)
        indices = self._choose_images(labels)
        return self.spec.resolve()(
            settings=self.settings,
            dataset=self.dataset,
            networks=loaded.sources,
            names=loaded.names,
            images=data.as_network_input(images[indices], crop_of(loaded.shape[:2])),
            labels=np.asarray(labels[indices], np.int32),
            indices=indices,
            epsilons=self.epsilons,
            attacks=self.attacks,
        )

    def _choose_images(self, labels: np.ndarray) -> np.ndarray:
        """Return the indices of the images."""
        settings, there = self.settings, len(labels)
        split = f"{settings.split} split of {self.dataset.name}"
        if settings.image_index is not None:
            indices = np.array(settings.image_index)
            if indices.max() >= there:
                raise InputError(
                    f"the {split} has images 0 to {there - 1}, got {indices.max()}", "image_index"
                )
            return indices
        count = settings.num_images
        if count is not None and count > there:
            raise InputError(f"the {split} has {there} images, got {count}", "num_images")
        return _PICKS[self.spec.chosen](
            labels, min(count or self.spec.images, there), settings.seed
        )

    @property
    def work(self) -> int:
        """How many images are to be gone through, all networks together."""
        return len(self.plot.networks) * len(self.plot.images)

    # Arrays, picture and caption.

    def arrays(self, progress: Callable[[int], None] = lambda done: None) -> Arrays:
        """Return the numbers behind the picture: read, or computed and kept.

        Args:
            progress: called with the number of images done, of ``work``, where it computes.

        Raises:
            InputError: another process works on this figure in this directory.
            OSError: they cannot be written.
        """
        if self.computed is None:
            with self._alone():
                file, identity = self.file(".npz"), self._identity
                self._arrays = kept.read(file, identity, self._forms())
                self.computed = self._arrays is None
                if self.computed:
                    self._arrays = self._compute(progress)
                    kept.write(file, identity, self._arrays)
        return self._arrays

    def _compute(self, progress: Callable[[int], None]) -> Arrays:
        plot = self.plot
        progress(0)
        arrays = plot.compute(progress)
        arrays |= {"images": plot.indices, "labels": plot.labels}
        if plot.epsilons_are_computed:
            arrays["epsilons"] = np.array(self.epsilons)
        return arrays

    def _forms(self) -> kept.Forms | None:
        """Return what the arrays must be, None where the plot does not say it."""
        plot = self.plot
        forms, count = plot.forms(), len(plot.images)
        if forms is None:
            return None
        beside = {"images": kept.whole(count), "labels": kept.whole(count)}
        if plot.epsilons_are_computed:
            beside["epsilons"] = kept.finite(len(self.epsilons))
        return {**forms, **beside}

    @contextlib.contextmanager
    def _alone(self) -> Iterator[None]:
        """Keep other processes from this figure in this directory as long as the block runs."""
        if self._held:
            yield
            return
        _ = self._identity  # networks or images that cannot be used leave no directory
        directory = pathlib.Path(self.settings.output)
        # Whoever cannot write here learns it before hours are spent.
        directory.mkdir(parents=True, exist_ok=True)
        in_use = f"another process draws {self.spec.name} in {directory}; wait for it"
        with hold_output(directory, self.spec.name, in_use, "output"):
            self._held = True
            try:
                for suffix in SUFFIXES:
                    clean(directory, self.file(suffix).name)
                yield
            finally:
                self._held = False

    def picture(
        self, progress: Callable[[int], None] = lambda done: None
    ) -> matplotlib.figure.Figure:
        """Return the picture, see ``arrays``."""
        from cascade_keras.figures.style import styled

        arrays = self.arrays(progress)
        with styled():
            return self.plot.draw(arrays)

    def draw(self, progress: Callable[[int], None] = lambda done: None) -> pathlib.Path:
        """Write the picture as .png and .pdf, the caption, and the arrays if they are not there.

        Returns:
            The path of the .png.
        """
        from cascade_keras.figures.style import save

        with self._alone():
            picture = self.picture(progress)
            for suffix in SUFFIXES[2:]:
                save(picture, self.file(suffix))
            write_text(self.file(".txt"), self.caption())
        return self.file(".png")

    def caption(self) -> str:
        """Return the caption: what is drawn, of which networks and images, with which seed."""
        from cascade_keras.figures.captions import on_one_line, training

        plot, settings = self.plot, self.settings
        networks = [
            "  " + on_one_line(f"{name}: weights {network.weights_hash}; {training(network)}")
            for name, network in zip(plot.names, plot.networks, strict=True)
        ]
        chosen = self.spec.chosen if settings.image_index is None else "named by image_index"
        images = (
            f"Images: {len(plot.images)} {settings.split} images of {self.dataset.name}, {chosen}; "
            f"seed {settings.seed}; true labels. Dataset fingerprint {self._dataset.fingerprint}. "
            f"Their indices, and all numbers, are in {self.file('.npz').name}."
        )
        paragraphs = [*plot.describe(self.arrays()), images]
        filled = [
            textwrap.fill(on_one_line(text), 100, break_on_hyphens=False) for text in paragraphs
        ]
        return "\n\n".join([*filled, "\n".join(["Networks:", *networks])]) + "\n"

    @functools.cached_property
    def _identity(self) -> str:
        """Return what the arrays follow from, as JSON."""
        plot = self.plot
        hashes = [network.weights_hash for network in plot.networks]
        content = {
            "format": _FORMAT,
            "figure": self.spec.name,
            "networks": [list(pair) for pair in zip(plot.names, hashes, strict=True)],
            "dataset": [self.dataset.name, self._dataset.fingerprint, self.settings.split],
            "images": plot.indices.tolist(),
            "seed": self.settings.seed,
            "epsilons": self.epsilons if plot.epsilons_are_computed else None,
            "attacks": [[attack.name, set_options(attack)] for attack in self.attacks],
            "parameters": plot.parameters(),
        }
        return json.dumps(content, sort_keys=True)


def _drawn(labels: np.ndarray, count: int, seed: int) -> np.ndarray:
    from cascade_keras import draws

    return draws.subset(seed, count, len(labels))


def _first(labels: np.ndarray, count: int, seed: int) -> np.ndarray:
    return np.arange(count)


def _per_class(labels: np.ndarray, count: int, seed: int) -> np.ndarray:
    from cascade_keras.attacks.carlini_wagner import selection

    return selection(labels, count)


_PICKS = {DRAWN: _drawn, FIRST: _first, PER_CLASS: _per_class}
