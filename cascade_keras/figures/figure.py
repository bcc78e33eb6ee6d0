"""Figures as objects: what is chosen, and what computes, draws, keeps and describes it."""

from __future__ import annotations

import dataclasses
import functools
import json
import math
import pathlib
import re
import textwrap
import zipfile
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import numpy as np

from cascade_keras.attacks import specs as attack_specs
from cascade_keras.attacks.specs import ATTACKS, Attack
from cascade_keras.data.specs import DATASETS, DatasetSpec
from cascade_keras.errors import InputError
from cascade_keras.figures.kinds import (
    DRAWN,
    FIGURES,
    FIRST,
    LARGEST_EPSILON,
    PER_CLASS,
    FigureSpec,
    defaults_in_words,
    particular,
    takers,
)
from cascade_keras.files import check_writable, named_twice, write_atomically, write_text
from cascade_keras.provenance import recorded_dataset
from cascade_keras.settings import POSITIVE, SEED, Rule, Settings, setting

if TYPE_CHECKING:  # they import TensorFlow or matplotlib
    import matplotlib.figure

    from cascade_keras.data import Dataset
    from cascade_keras.figures.plot import Arrays, Plot
    from cascade_keras.sources import Network

_FORMAT = 1  # of the arrays; those of another one are computed again
SUFFIXES = (".npz", ".txt", ".png", ".pdf")


def parse_epsilons(text: str) -> tuple[float, ...]:
    """Return the epsilons that 1..16 or -2,0.5,4..8 means, ascending.

    Raises:
        ValueError: it means none.
    """
    found: list[float] = []
    for part in filter(None, map(str.strip, text.split(","))):
        ends = re.fullmatch(r"(-?\d+)\.\.(-?\d+)", part)
        if ends:
            first, last = map(int, ends.groups())
            # A long range would fill the memory before it is refused.
            if not -LARGEST_EPSILON <= first <= last <= LARGEST_EPSILON:
                raise ValueError(part)
            found += map(float, range(first, last + 1))
        else:
            found.append(float(part))
    if not _are_epsilons(found):
        raise ValueError(text)
    return _ascending(found)


def _are_epsilons(values: Sequence[float]) -> bool:
    return bool(values) and all(math.isfinite(e) and abs(e) <= LARGEST_EPSILON for e in values)


def _ascending(epsilons: Sequence[float]) -> tuple[float, ...]:
    return tuple(sorted({float(epsilon) + 0.0 for epsilon in epsilons}))  # -0.0 is 0


def _each_once(values: Sequence) -> bool:
    return bool(values) and len(set(values)) == len(values)


_EPSILONS = Rule(_are_epsilons, "a range such as 0..16 or numbers in -255..255 such as 2,4,8")
_INDICES = Rule(lambda v: _each_once(v) and min(v) >= 0, "whole numbers from 0, each once")
_ONCE = Rule(_each_once, "names, each once")


def _default(attack: str, option: str) -> str:
    return f"Default: {ATTACKS[attack].options[option]}."


@dataclasses.dataclass(frozen=True)
class FigureSettings(Settings):
    """What is drawn, of which networks and images; None is what the figure or the attack has."""

    figure: str | None = setting(None, "What to draw.", choices=lambda: FIGURES)
    model: tuple[str, ...] = setting(
        (),
        "The networks, in the order they are drawn: saved networks, runs or .keras files.",
        path=True,
    )
    dataset: str | None = setting(
        None, "Whose images; default: what the first model learned.", choices=lambda: DATASETS
    )
    data_dir: str | None = setting(None, "TensorFlow Datasets' directory.", path=True)
    split: str = setting("test", "Of the dataset.", choices=("test", "train"))
    output: str = setting("figures", "Directory of NAME.png, .pdf, .txt and .npz.", path=True)
    num_images: int | None = setting(
        None, f"Default: {defaults_in_words(lambda spec: spec.images)}.", POSITIVE
    )
    image_index: tuple[int, ...] | None = setting(
        None,
        f"{', '.join(takers('image_index'))}: which images of the split, instead of some.",
        _INDICES,
    )
    seed: int = setting(0, "Of the choice of images, step_rand and pgd.", SEED)
    epsilons: tuple[float, ...] | None = setting(
        None,
        "Such as 0..16, -16..16 or 0,0.5,1..4; default: some up to the dataset's largest, or 255 "
        "for accuracy_curve. loss_surface: along both axes; cw_distribution: what is marked.",
        _EPSILONS,
        parse=parse_epsilons,
    )
    attack: tuple[str, ...] | None = setting(
        None,
        f"Default: {defaults_in_words(lambda spec: spec.attacks)}.",
        _ONCE,
        choices=attack_specs.image_attacks,
    )
    pgd_steps: int | None = setting(
        None, f"Of each start of pgd. {_default('pgd', 'steps')}", POSITIVE
    )
    pgd_restarts: int | None = setting(
        None, f"Random starts; the worst counts. {_default('pgd', 'restarts')}", POSITIVE
    )
    cw_search: str | None = setting(
        None,
        "descent: down from the best so far; grid: the published one, hours. "
        f"{_default('cw_linf', 'search')}",
        choices=("descent", "grid"),
    )
    cw_iterations: int | None = setting(
        None, f"At most, for each constant and tau. {_default('cw_linf', 'iterations')}", POSITIVE
    )


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
        _check_options(settings, self.spec)
        self._check_networks()
        self.dataset = self._choose_dataset()
        self.epsilons = _epsilons(settings, self.spec, self.dataset)
        self.attacks = _attacks(settings, self.spec, self.epsilons)
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
        named = self.settings.dataset
        if self._dataset is not None:
            if named not in (None, self._dataset.name):
                raise InputError(f"is {named}, but {self._dataset.name} is given", "dataset")
            return self._dataset.preset
        # That they are there is to be said before anything is loaded.
        recorded = [recorded_dataset({"model": [network]}) for network in self._models]
        name = named or next(filter(None, recorded), None)
        if name not in DATASETS:
            first = self._models[0]
            raise InputError(
                f"{getattr(first, 'name', first)} does not record what it learned; name one of "
                f"{', '.join(DATASETS)}",
                "dataset",
            )
        return DATASETS[name]

    def _check_output(self) -> None:
        """Refuse a place that cannot be written before hours are spent."""
        check_writable(pathlib.Path(self.settings.output), "output")
        for suffix in SUFFIXES:
            if self.file(suffix).is_dir():
                raise InputError(f"{self.file(suffix)} is a directory", "output")

    def file(self, suffix: str) -> pathlib.Path:
        """Return one of the four files, see ``SUFFIXES``."""
        return pathlib.Path(self.settings.output, f"{self.spec.name}{suffix}")

    # Networks and images.

    @functools.cached_property
    def plot(self) -> Plot:
        """The figure's class with its networks and images, loaded at first use."""
        from cascade_keras import data
        from cascade_keras.evaluation.networks import load_networks

        loaded = load_networks(self._models, self.dataset, setting="model")
        if self._dataset is None:
            self._dataset = data.load(self.dataset.name, self.settings.data_dir)
        images, labels = getattr(self._dataset, self.settings.split)
        indices = self._choose_images(labels)
        return self.spec.resolve()(
            settings=self.settings,
            dataset=self.dataset,
            networks=loaded.sources,
            names=loaded.names,
            images=data.as_network_input(images[indices], loaded.shape[0]),
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
            OSError: they cannot be written.
        """
        if self.computed is None:
            identity = self._identity()
            self._arrays = _read(self.file(".npz"), identity)
            self.computed = self._arrays is None
            if self.computed:
                self._arrays = self._compute(identity, progress)
        return self._arrays

    def _compute(self, identity: str, progress: Callable[[int], None]) -> Arrays:
        # Whoever cannot write here learns it before hours are spent.
        self.file(".npz").parent.mkdir(parents=True, exist_ok=True)
        plot = self.plot
        progress(0)
        arrays = plot.compute(progress)
        arrays |= {"images": plot.indices, "labels": plot.labels}
        if plot.epsilons_are_computed:
            arrays["epsilons"] = np.array(self.epsilons)

        def write(temporary: pathlib.Path) -> None:
            with open(temporary, "wb") as opened:
                np.savez_compressed(opened, identity=np.array(identity), **arrays)

        write_atomically(self.file(".npz"), write)
        return arrays

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

        picture = self.picture(progress)
        for suffix in SUFFIXES[2:]:
            save(picture, self.file(suffix))
        write_text(self.file(".txt"), self.caption())
        return self.file(".png")

    def caption(self) -> str:
        """Return the caption: what is drawn, of which networks and images, with which seed."""
        from cascade_keras.figures.captions import training

        plot, settings = self.plot, self.settings
        networks = [
            f"  {name}: weights {network.weights_hash}; {training(network)}"
            for name, network in zip(plot.names, plot.networks, strict=True)
        ]
        chosen = self.spec.chosen if settings.image_index is None else "named by image_index"
        images = (
            f"Images: {len(plot.images)} {settings.split} images of {self.dataset.name}, {chosen}; "
            f"seed {settings.seed}; true labels. Dataset fingerprint {self._dataset.fingerprint}. "
            f"Their indices, and all numbers, are in {self.file('.npz').name}."
        )
        paragraphs = [*plot.describe(self.arrays()), images]
        filled = [textwrap.fill(text, 100, break_on_hyphens=False) for text in paragraphs]
        return "\n\n".join([*filled, "\n".join(["Networks:", *networks])]) + "\n"

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
            "attacks": [[attack.name, _set_options(attack)] for attack in self.attacks],
            "parameters": plot.parameters(),
        }
        return json.dumps(content, sort_keys=True)


def _check_options(settings: FigureSettings, spec: FigureSpec) -> None:
    """Refuse what was chosen and the figure does not use."""
    for name in particular():
        if getattr(settings, name, None) is not None and name not in spec.takes:
            raise InputError(f"{spec.name} does not use it; {', '.join(takers(name))} does", name)
    if settings.image_index is not None and settings.num_images is not None:
        raise InputError("names the images itself; leave out num_images", "image_index")


def _epsilons(
    settings: FigureSettings, spec: FigureSpec, dataset: DatasetSpec
) -> tuple[float, ...]:
    epsilons = _ascending(settings.epsilons or spec.epsilons(dataset))
    if epsilons[0] < spec.lowest or (spec.above_zero and epsilons[0] <= 0):
        least = "above 0" if spec.above_zero else f"{spec.lowest:g} or above"
        raise InputError(f"{spec.name} needs them {least}, got {epsilons[0]:g}", "epsilons")
    return epsilons


def _attacks(
    settings: FigureSettings, spec: FigureSpec, epsilons: tuple[float, ...]
) -> tuple[Attack, ...]:
    """Return the attacks that are shown; a setting ATTACK_OPTION is an attack's option."""
    names = settings.attack or spec.attacks
    if spec.single and len(names) > 1:
        raise InputError(f"{spec.name} shows one attack; name one", "attack")
    possible = attack_specs.names(*spec.attack_kinds)
    attacks = []
    for name in names:
        if name not in possible:
            raise InputError(
                f"{spec.name} does not show {name}; name some of {', '.join(possible)}", "attack"
            )
        given = {
            option: getattr(settings, f"{name}_{option}", None)
            for option in attack_specs.look_up(name).options
        }
        chosen = {option: value for option, value in given.items() if value is not None}
        attacks.append(Attack(name, epsilons, chosen))
    return tuple(attacks)


def _set_options(attack: Attack) -> dict:
    """Return the options but those that are left to the attack's own rule."""
    return {name: value for name, value in attack.options.items() if value is not None}


def _drawn(labels: np.ndarray, count: int, seed: int) -> np.ndarray:
    from cascade_keras import draws

    return draws.subset(seed, count, len(labels))


def _first(labels: np.ndarray, count: int, seed: int) -> np.ndarray:
    return np.arange(count)


def _per_class(labels: np.ndarray, count: int, seed: int) -> np.ndarray:
    from cascade_keras.attacks.carlini_wagner import selection

    return selection(labels, count)


_PICKS = {DRAWN: _drawn, FIRST: _first, PER_CLASS: _per_class}


def _read(file: pathlib.Path, identity: str) -> Arrays | None:
    """Return the arrays in a file if they are those of this identity."""
    try:
        with np.load(file, allow_pickle=False) as stored:
            if str(stored["identity"]) == identity:
                return {name: stored[name] for name in stored.files if name != "identity"}
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile):
        pass  # absent, another program's, or cut short: it is computed again
    return None
