"""One row a dataset: where its images come from, what they are, and what is published for it.

Needs no TensorFlow. The published values are those of appendix A of the paper. A dataset is added
by one row and one function, which returns both splits::

    def load_shapes(spec, data_dir):
        return (train_images, train_labels), (test_images, test_labels)  # uint8 (N, H, W, C), (N,)

    data.register(DatasetSpec("shapes", load_shapes, image_shape=(32, 32, 3), num_classes=4))

after which every program and object knows it by its name. Images that nobody has registered are
found by ``find``: a folder, an .npz file, a function, a name of TensorFlow Datasets.
"""

from __future__ import annotations

import dataclasses
import itertools
import os
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from cascade_keras.attacks.specs import Grid
from cascade_keras.errors import InputError, shown
from cascade_keras.files import expand
from cascade_keras.lazy import resolve

# The sides of what a network sees of an image: one number for squares, or (height, width).
Crop = int | tuple[int, int]


def crop_of(sides: Sequence[int]) -> Crop:
    """Return (height, width) as a crop is written: one number where they are equal."""
    height, width = map(int, sides)
    return height if height == width else (height, width)


def sides_of(crop: Crop | Sequence[int]) -> tuple[int, int]:
    """Return the (height, width) of a crop, see ``crop_of``; JSON has a list."""
    height, width = (crop, crop) if isinstance(crop, int) else crop
    return height, width


def crop_as_json(crop: Crop) -> int | list[int]:
    """Return a crop as records hold it."""
    return crop if isinstance(crop, int) else list(crop)


@dataclasses.dataclass(frozen=True)
class Augment:
    """One row of ``AUGMENTS``: what is done with a training image.

    Attributes:
        crop: cut it at a random place, padded with black on the sides that the cut keeps whole.
        flip: turn one image in two left to right.
    """

    crop: bool
    flip: bool


# What ``augment`` can say.
AUGMENTS = {
    "none": Augment(crop=False, flip=False),
    "flip": Augment(crop=False, flip=True),
    "crop": Augment(crop=True, flip=False),
    "crop_flip": Augment(crop=True, flip=True),
}


@dataclasses.dataclass(frozen=True)
class Origin:
    """All by which a dataset is found again, see ``find``.

    Attributes:
        text: what ``--dataset`` says; a folder or a file by its absolute path.
        image_size: (height, width) that its images are brought to; None keeps theirs.
        validation_split: the part of the training images that is the test split.
        num_classes: where it is not what the data say.
        imports: modules to import first.
        data_dir: TensorFlow Datasets' directory, where it was named.
        folders: where modules are looked for beside Python's own places.
    """

    text: str
    image_size: tuple[int, int] | None = None
    validation_split: float | None = None
    num_classes: int | None = None
    imports: tuple[str, ...] = ()
    data_dir: str | None = None
    folders: tuple[str, ...] = ()

    def as_json(self) -> dict[str, Any]:
        """Return what is set, as records hold it."""
        values = dataclasses.asdict(self)
        lists = {k: list(v) if isinstance(v, tuple) else v for k, v in values.items()}
        return {key: value for key, value in lists.items() if value not in (None, [])}

    @classmethod
    def of_json(cls, values: Mapping[str, Any]) -> Origin:
        """Return what ``as_json`` has written."""
        return cls(**{k: tuple(v) if isinstance(v, list) else v for k, v in values.items()})


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
        crops: sides of the centres that networks may see, the published one first, each a
            number for a square or (height, width); for CIFAR 24 is cut from the 32x32 image. The
            whole image where none is given.
        max_epsilon: largest epsilon in training, in 0..255 units.
        steps: length of the published schedule.
        boundaries: steps after which the learning rate is divided by 10.
        warmup_steps: first steps, at a tenth of the learning rate (released code).
        normalization: what the network's input layer does, see ``models.normalize``.
        augment: what is done with training images, a row of ``AUGMENTS``; True is crop_flip.
        grid: what the published search of Carlini & Wagner goes through.
        archives: the format of its official archives, "module:NAME" below this package, where
            bin/prepare_data can prepare it; None where it needs no preparation.
        class_names: of the classes, in order; empty where they have none.
        examples: how many training images there are, where that is known before they are read.
        epochs: length of the schedule in place of ``steps``.
        origin: by which the data are found again; None for a row of ``DATASETS`` as it is.
        fingerprint: what the data must have to be the ones meant, None where any are.
        learned_by: the network that has recorded the fingerprint.
    """

    name: str
    loader: Callable[[DatasetSpec, str | None], Sequence] | str
    image_shape: tuple[int, int, int]
    num_classes: int
    crops: tuple[Crop, ...] = ()
    max_epsilon: float = 16.0
    steps: int = 10_000
    boundaries: tuple[int, ...] = (5_000, 7_500)
    warmup_steps: int = 0
    normalization: str = "none"
    augment: str | bool = "none"
    grid: Grid = CIFAR_GRID
    archives: str | None = None
    class_names: tuple[str, ...] = ()
    examples: int | None = None
    epochs: float | None = None
    origin: Origin | None = None
    fingerprint: str | None = None
    learned_by: str = ""

    def __post_init__(self):
        augment = {True: "crop_flip", False: "none"}.get(self.augment, self.augment)
        object.__setattr__(self, "augment", augment)
        if len(self.image_shape) == 3 and not self.crops:
            object.__setattr__(self, "crops", (crop_of(self.image_shape[:2]),))
        if len(self.image_shape) != 3 or not all(map(self.has_room, self.crops)):
            raise ValueError(
                f"image_shape must be (height, width, channels) with room for the crops "
                f"{self.crops}, got {self.image_shape}"
            )
        if augment not in AUGMENTS:
            raise ValueError(f"augment must be one of {', '.join(AUGMENTS)}, got {augment!r}")

    def has_room(self, crop: Crop) -> bool:
        """Whether a crop fits into the images."""
        sides = zip(sides_of(crop), self.image_shape[:2], strict=True)
        return all(1 <= side <= there for side, there in sides)

    def may_see(self, crop: Crop) -> bool:
        """Whether networks may be given this crop: one of the row's, of own data any that fits."""
        return crop in self.crops or (self.origin is not None and self.has_room(crop))

    def is_called(self, text: str | None) -> bool:
        """Whether a setting that names a dataset, or None, can mean this one."""
        if text is None or text == self.name:
            return True
        return self.origin is not None and self.origin.text in (text, os.path.abspath(expand(text)))

    @property
    def crop(self) -> Crop:
        """The published one, else the whole image."""
        return self.crops[0]

    def load(self, data_dir: str | None) -> Sequence:
        """Return what the loader does: (train, test)."""
        return resolve(self.loader, __package__)(self, data_dir)

    def network_shape(self, input_shape: Sequence[int | None]) -> tuple[int, ...]:
        """Return the shape of the images that a network of this input shape is given.

        Another size than the dataset's is cut out of the middle, as in training.
        """
        own = tuple(input_shape[:2]) if len(input_shape) == 3 else ()
        fits = len(own) == 2 and all(own) and self.has_room(own)
        return (*(own if fits else sides_of(self.crop)), self.image_shape[-1])


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
    "prepared:load_tfds",
    image_shape=(28, 28, 1),
    num_classes=10,
    max_epsilon=0.3 * 255,
    steps=8_000,
    boundaries=(4_000, 6_000),
    grid=MNIST_GRID,
    archives="archives:MNIST",
    examples=60_000,
)
_CIFAR10 = DatasetSpec(
    "cifar10",
    "prepared:load_tfds",
    image_shape=(32, 32, 3),
    num_classes=10,
    crops=(24, 32),
    max_epsilon=16.0,
    steps=94_000,
    boundaries=(48_000, 72_000),
    warmup_steps=400,
    normalization="pixel",
    augment="crop_flip",
    examples=50_000,
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
        examples=1_437,
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
