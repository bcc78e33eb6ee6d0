"""What is published for each dataset (appendix A), and what follows from the dataset alone."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence


@dataclasses.dataclass(frozen=True)
class DatasetSpec:
    """Defaults of one dataset.

    Attributes:
        image_shape: height, width and channels of a stored image.
        crop: side of the square that networks see; for CIFAR 24 is cut from the 32x32 image.
        max_epsilon: largest epsilon in training, in 0..255 units.
        steps: length of the published schedule.
        boundaries: steps after which the learning rate is divided by 10.
        warmup_steps: first steps, at a tenth of the learning rate (released code).
        normalization: what the network's input layer does, see ``models.normalize``.
        augment: random crop and flip in training.
    """

    image_shape: tuple[int, int, int]
    num_classes: int
    crop: int
    max_epsilon: float
    steps: int
    boundaries: tuple[int, ...]
    warmup_steps: int
    normalization: str
    augment: bool

    def network_shape(self, input_shape: Sequence[int | None]) -> tuple[int, ...]:
        """Return the shape of the images that a network of this input shape is given.

        Another size than the dataset's is cut out of the middle, as in training.
        """
        height, width, channels = self.image_shape
        side = input_shape[0] if len(input_shape) == 3 else None
        side = side if side and side <= min(height, width) else self.crop
        return (side, side, channels)


_CIFAR = DatasetSpec(
    image_shape=(32, 32, 3),
    num_classes=10,
    crop=24,
    max_epsilon=16.0,
    steps=94_000,
    boundaries=(48_000, 72_000),
    warmup_steps=400,
    normalization="pixel",
    augment=True,
)
_MNIST = DatasetSpec(
    image_shape=(28, 28, 1),
    num_classes=10,
    crop=28,
    max_epsilon=0.3 * 255,
    steps=8_000,
    boundaries=(4_000, 6_000),
    warmup_steps=0,
    normalization="none",
    augment=False,
)

DATASETS = {
    # scikit-learn's 8x8 digits are not in the paper: MNIST's settings, on a shorter schedule.
    "digits": dataclasses.replace(
        _MNIST, image_shape=(8, 8, 1), crop=8, steps=1_000, boundaries=(500, 750)
    ),
    "mnist": _MNIST,
    "cifar10": _CIFAR,
    "cifar100": dataclasses.replace(_CIFAR, num_classes=100),
}


def scaled_boundaries(preset: DatasetSpec, steps: int) -> tuple[int, ...]:
    """Return the published boundaries, moved in proportion to a schedule of ``steps``."""
    return tuple(round(boundary * steps / preset.steps) for boundary in preset.boundaries)
