"""The base of every figure: its arrays, its drawing and its caption side by side in one class.

``Figure`` loads networks and images, gives them to a plot, and keeps what comes back in files.
"""

from __future__ import annotations

import abc
import dataclasses
from collections.abc import Callable, Iterator, Sequence
from typing import ClassVar

import matplotlib.figure
import numpy as np

from cascade_keras import evaluation
from cascade_keras.attacks.specs import Attack
from cascade_keras.data.specs import DatasetSpec
from cascade_keras.figures.kept import Arrays, Forms
from cascade_keras.figures.settings import FigureSettings
from cascade_keras.sources import Source

Progress = Callable[[int], None]
_VERSIONS = 4096  # adversarial images held at a time


@dataclasses.dataclass
class Plot(abc.ABC):
    """A figure of some networks; each figure is a subclass, and a row of ``kinds``.

    A subclass has ``measure``, or ``compute`` where networks are not measured one by one, ``draw``
    and ``describe``. Epsilons are in 0..255 units.

    Attributes:
        settings: what was chosen, such as ``seed``.
        dataset: the row of the images' dataset.
        networks: images float32 (batch, H, W, C) in [0, 1] -> {"logits", "embedding"}.
        names: of the networks.
        images, labels: float32 (N, H, W, C) in [0, 1], and (N,).
        indices: (N,), which images of the split they are.
        epsilons: ascending.
        attacks: at these epsilons, with all their options.
        batch_size: images at a time, at most.
    """

    settings: FigureSettings
    dataset: DatasetSpec
    networks: Sequence[Source]
    names: Sequence[str]
    images: np.ndarray
    labels: np.ndarray
    indices: np.ndarray
    epsilons: Sequence[float]
    attacks: Sequence[Attack] = ()
    batch_size: int = 128

    # Whether other epsilons make other arrays; otherwise they are only marked.
    epsilons_are_computed: ClassVar[bool] = True

    # What a figure is.

    def measure(self, network: Source, progress: Progress) -> Arrays:
        """Return the arrays of one network.

        Args:
            progress: takes the number of images done of N.
        """
        raise NotImplementedError

    def compute(self, progress: Progress) -> Arrays:
        """Return the arrays of all networks; those of ``measure``, stacked, networks first.

        Args:
            progress: takes the number of images done of N times the networks.
        """
        parts = self.parts(progress)
        return {name: np.stack([part[name] for part in parts]) for name in parts[0]}

    @abc.abstractmethod
    def draw(self, arrays: Arrays) -> matplotlib.figure.Figure:
        """Return the picture; TensorFlow is not needed for it."""

    @abc.abstractmethod
    def describe(self, arrays: Arrays) -> list[str]:
        """Return paragraphs of the caption: what is drawn, and what should be known of it."""

    def parameters(self) -> dict:
        """Return what the arrays follow from beside networks, images, seed, epsilons, attacks."""
        return {}

    def forms(self) -> Forms | None:
        """Return what each array of ``compute`` is, None where that is not said.

        Only for files of versions 0.1.0 and 0.2.0, which have no checksum: see ``kept.read``.
        """
        return None

    # What figures share.

    @property
    def image_shape(self) -> tuple[int, ...]:
        """(H, W, C) of the images."""
        return self.images.shape[1:]

    def parts(self, progress: Progress) -> list[Arrays]:
        """Return what ``measure`` finds of each network."""

        def of(place: int, network: Source) -> Arrays:
            before = place * len(self.images)
            return self.measure(network, lambda done: progress(before + done))

        return [of(place, network) for place, network in enumerate(self.networks)]

    def crafter(self, network: Source, attack: Attack) -> evaluation.Craft:
        """Return the function that makes a network's images of a batch at every epsilon."""
        return evaluation.crafter(
            network.logits,
            self.image_shape,
            attack.name,
            attack.epsilons,
            seed=self.settings.seed,
            signed=True,  # a negative epsilon is a step to the other side
            **attack.options,
        )

    def batches(self, versions: int) -> Iterator[tuple[int, np.ndarray, np.ndarray]]:
        """Yield batches of which so many versions of each image can be held at a time."""
        size = max(1, min(self.batch_size, _VERSIONS // versions))
        return evaluation.slices(self.images, self.labels, size)
