"""One row a dataset: where its images come from, what they are, and what is published for it.

Needs no TensorFlow. The published values are those of appendix A of the paper. A dataset is added
by one row and one function, which returns both splits::

    def load_shapes(spec, data_dir):
        return (train_images, train_labels), (test_images, test_labels)  # uint8 (N, H, W, C), (N,)

    data.register(DatasetSpec("shapes", load_shapes, image_shape=(32, 32, 3), num_classes=4))

after which every program and object knows it by its name.
"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Callable, Sequence

from cascade_keras.attacks.specs import Grid
from cascade_keras.errors import InputError, shown
from cascade_keras.lazy import resolve


def _taus(*thousandths: range) -> tuple[float, ...]:
    """Return taus in 0..255 units, given in thousandths of the pixel range."""
    return tuple(255 * i / 1000 for i in itertools.chain(*thousandths))


MNIST_GRID = Grid((0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0, 20.0), _taus(range(20, 601, 20)))
CIFAR_GRID = Grid(
    (0.1, 0.3, 1.0, 3.0, 10.0, 30.0, 100.0),
    _taus(range(1, 11), range(12, 21, 2), range(24, 41, 4), range(48, 81, 8)),
)


@dataclasses.dataclass(frozen=True)
class DatasetSpec:
    """What is known of a dataset beside its images, with defaults for small natural images.

    Attributes:
        name: on flags and in records.
        loader: (this row, data_dir) -> (train, test), each (images uint8 (N, H, W, C), labels
            (N,)); or "module:name" below this package, imported on first use.
        image_shape: height, width and channels of a stored image.
        num_classes: labels are 0..num_classes - 1.
        crops: sides of the centre squares that networks may see, the published one first; for
            CIFAR 24 is cut from the 32x32 image. The whole square where none is given.
        max_epsilon: largest epsilon in training, in 0..255 units.
        steps: length of the published schedule.
        boundaries: steps after which the learning rate is divided by 10.
        warmup_steps: first steps, at a tenth of the learning rate (released code).
        normalization: what the network's input layer does, see ``models.normalize``.
        augment: random crop and flip in training.
        grid: what the published search of Carlini & Wagner goes through.
        archives: the format of its official archives, "module:NAME" below this package, where
            bin/prepare_data can prepare it; None where it needs no preparation.
    """

    name: str
    loader: Callable[[DatasetSpec, str | None], Sequence] | str
    image_shape: tuple[int, int, int]
    num_classes: int
    crops: tuple[int, ...] = ()
    max_epsilon: float = 16.0
    steps: int = 10_000
    boundaries: tuple[int, ...] = (5_000, 7_500)
    warmup_steps: int = 0
    normalization: str = "none"
    augment: bool = False
    grid: Grid = CIFAR_GRID
    archives: str | None = None

    def __post_init__(self):
        largest = min(self.image_shape[:2])
        if not self.crops:
            object.__setattr__(self, "crops", (largest,))
        if len(self.image_shape) != 3 or max(self.crops) > largest:
            raise ValueError(
                f"image_shape must be (height, width, channels) with room for the crops "
                f"{self.crops}, got {self.image_shape}"
            )

    @property
    def crop(self) -> int:
        """The published side of the square that networks see."""
        return self.crops[0]

    def load(self, data_dir: str | None) -> Sequence:
        """Return what the loader does: (train, test)."""
        return resolve(self.loader, __package__)(self, data_dir)

    def network_shape(self, input_shape: Sequence[int | None]) -> tuple[int, ...]:
        """Return the shape of the images that a network of this input shape is given.

        Another size than the dataset's is cut out of the middle, as in training.
        """
        height, width, channels = self.image_shape
        side = input_shape[0] if len(input_shape) == 3 else None
        side = side if side and side <= min(height, width) else self.crop
        return (side, side, channels)


# The rows by their names; ``register`` adds one.
DATASETS: dict[str, DatasetSpec] = {}


def register(spec: DatasetSpec) -> DatasetSpec:
    """Add a dataset's row.

    Raises:
        ValueError: its name is taken.
    """
    if spec.name in DATASETS:
        raise ValueError(f"there is a dataset {spec.name!r} already")
    DATASETS[spec.name] = spec
    return spec


def look_up(name: str | None, learned_by: object = None) -> DatasetSpec:
    """Return a dataset's row.

    Args:
        learned_by: the network that has recorded the name, where the user has not given it.

    Raises:
        InputError: there is none of this name.
    """
    if name not in DATASETS:
        what = shown(name) if learned_by is None else f"{learned_by} learned {shown(name)}, which"
        raise InputError(f"{what} is none of {', '.join(DATASETS)}", "dataset")
    return DATASETS[name]


_MNIST = DatasetSpec(
    "mnist",
    "datasets:load_tfds",
    image_shape=(28, 28, 1),
    num_classes=10,
    max_epsilon=0.3 * 255,
    steps=8_000,
    boundaries=(4_000, 6_000),
    grid=MNIST_GRID,
    archives="archives:MNIST",
)
_CIFAR10 = DatasetSpec(
    "cifar10",
    "datasets:load_tfds",
    image_shape=(32, 32, 3),
    num_classes=10,
    crops=(24, 32),
    max_epsilon=16.0,
    steps=94_000,
    boundaries=(48_000, 72_000),
    warmup_steps=400,
    normalization="pixel",
    augment=True,
    archives="archives:CIFAR10",
)
for _row in (
    # scikit-learn's 8x8 digits are not in the paper: MNIST's settings, on a shorter schedule.
    dataclasses.replace(
        _MNIST,
        name="digits",
        loader="datasets:load_digits",
        image_shape=(8, 8, 1),
        crops=(8,),
        steps=1_000,
        boundaries=(500, 750),
        archives=None,
    ),
    _MNIST,
    _CIFAR10,
    dataclasses.replace(_CIFAR10, name="cifar100", num_classes=100, archives="archives:CIFAR100"),
):
    register(_row)


def scaled_boundaries(preset: DatasetSpec, steps: int) -> tuple[int, ...]:
    """Return the published boundaries, moved in proportion to a schedule of ``steps``, 1 or above.

    In a schedule of a few steps several may fall on one step.
    """
    moved = (round(boundary * steps / preset.steps) for boundary in preset.boundaries)
    return tuple(max(boundary, 1) for boundary in moved)
