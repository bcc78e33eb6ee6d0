"""Datasets as uint8 arrays: loaded by their rows' loaders and checked against the rows."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Sequence

import numpy as np

from cascade_keras import printed
from cascade_keras.attacks.arguments import PIXEL_LEVELS
from cascade_keras.data.decoded import Read, Splits, digest
from cascade_keras.data.forms import find
from cascade_keras.data.specs import Crop, DatasetSpec, Origin, sides_of
from cascade_keras.errors import InputError


@dataclasses.dataclass(frozen=True)
class Dataset:
    """One dataset, in memory, or mapped from disk where it does not fit.

    Attributes:
        name: of its row.
        preset: its row, what follows from the dataset alone.
        train, test: (images uint8 (N, H, W, C), labels int32 (N,)).
        notes: what a person should know of how the images were read, a sentence each.
        known: the fingerprint where it was computed before.
    """

    name: str
    preset: DatasetSpec
    train: tuple[np.ndarray, np.ndarray]
    test: tuple[np.ndarray, np.ndarray]
    notes: tuple[str, ...] = ()
    known: str | None = dataclasses.field(default=None, repr=False)

    @functools.cached_property
    def fingerprint(self) -> str:
        """SHA-256 of all images and labels, in order."""
        return self.known or digest((*self.train, *self.test))


def load(
    named: str | Origin | DatasetSpec,
    data_dir: str | None = None,
    *,
    cache_dir: str | None = None,
    say: Callable[[str], None] = printed.say,
) -> Dataset:
    """Load a dataset.

    Args:
        named: the name of a row of ``DATASETS``, anything else that ``find`` takes, or a row.
        data_dir: where TensorFlow Datasets keeps its datasets; its own default when None.
        cache_dir: where what does not fit into the memory is decoded to; "decoded" when None.
        say: told in a line each what a person should know, such as how large that is.

    Raises:
        InputError: unknown name, data that is not there and cannot be downloaded, or data that is
            not what the name promises (shape, label range, image values) or what was learned.
    """
    spec = named
    if not isinstance(spec, DatasetSpec):
        origin = Origin(named, data_dir=data_dir) if isinstance(named, str) else named
        spec = find(origin, cache_dir)
    if isinstance(spec.loader, Splits):
        found = spec.loader.read(cache_dir, say)
    else:
        train, test = spec.load(data_dir or (spec.origin and spec.origin.data_dir))
        found = Read(train, test)
    splits = {}
    for split in ("train", "test"):
        images, labels = map(np.asanyarray, getattr(found, split))
        check(images, labels, spec, f"{spec.name} ({split})")
        splits[split] = (images, labels.astype(np.int32))
    for note in found.notes:
        say(f"note: {note}")
    dataset = Dataset(spec.name, spec, **splits, notes=tuple(found.notes), known=found.fingerprint)
    _check_learned(dataset)
    return dataset


def _check_learned(dataset: Dataset) -> None:
    """Refuse data that are others than those that a network has learned."""
    spec = dataset.preset
    if spec.fingerprint is not None and dataset.fingerprint != spec.fingerprint:
        where = spec.origin.text if spec.origin else spec.name
        raise InputError(
            f"{where} is no longer what {spec.learned_by} learned: its fingerprint is "
            f"{dataset.fingerprint[:16]}, recorded is {spec.fingerprint[:16]}; restore it, or name "
            "the dataset yourself",
            "dataset",
        )


def load_digits(spec: DatasetSpec, data_dir: str | None) -> Sequence[tuple]:
    """Return scikit-learn's real handwritten digits, which are installed with the package.

    They are split once and for all: 1,437 to train, 360 to test.
    """
    from sklearn import datasets, model_selection

    digits = datasets.load_digits()
    # Values are 0..16; the stored image is the nearest whole pixel value of 0..255.
    images = np.round(digits.images * (PIXEL_LEVELS / 16)).astype(np.uint8)[..., None]
    labels = digits.target.astype(np.int32)
    parts = model_selection.train_test_split(
        images, labels, test_size=0.2, random_state=0, stratify=labels
    )
    train_images, test_images, train_labels, test_labels = parts
    return (train_images, train_labels), (test_images, test_labels)


def check(images: np.ndarray, labels: np.ndarray, preset: DatasetSpec, what: str) -> None:
    """Raise InputError unless the images and labels are what the preset promises."""
    if images.ndim != 4 or images.shape[1:] != preset.image_shape or images.dtype != np.uint8:
        raise InputError(
            f"{what}: images must be uint8 of shape (N, {preset.image_shape}), "
            f"got {images.dtype} {images.shape}"
        )
    if len(images) != len(labels):
        raise InputError(f"{what}: {len(images)} images but {len(labels)} labels")
    if not len(images):
        raise InputError(f"{what}: the dataset is empty; prepare it again")
    if labels.dtype.kind not in "iu":
        raise InputError(f"{what}: labels must be whole numbers, got {labels.dtype}")
    if labels.min() < 0 or labels.max() >= preset.num_classes:
        raise InputError(
            f"{what}: labels must be 0..{preset.num_classes - 1}, "
            f"got {labels.min()}..{labels.max()}"
        )


def mean_image(dataset: Dataset, crop: Crop, held_out: np.ndarray | None = None) -> np.ndarray:
    """Return the mean training image in [0, 1], (h, w, C), centre of the stored one.

    Args:
        dataset: in memory, or on disk.
        crop: what networks see of its images.
        held_out: which images do not count.
    """
    images = dataset.train[0]
    if held_out is None or not len(held_out):
        mean = images.mean(axis=0, dtype=np.float64) / PIXEL_LEVELS
    else:
        total = images.sum(axis=0, dtype=np.float64)
        total -= images[held_out].sum(axis=0, dtype=np.float64)
        mean = total / (len(images) - len(held_out)) / PIXEL_LEVELS
    return centre_crop(mean[None].astype(np.float32), crop)[0]


def centre_crop(images: np.ndarray, crop: Crop) -> np.ndarray:
    """Cut the centre out of each image, (N, H, W, C): a square's side, or (height, width)."""
    height, width = sides_of(crop)
    top, left = (images.shape[1] - height) // 2, (images.shape[2] - width) // 2
    return images[:, top : top + height, left : left + width]


class NetworkImages:
    """Stored images as networks see them, converted when they are asked for.

    Args:
        stored: uint8 (N, H, W, C), in memory or on disk.
        crop: what networks see of them.
    """

    def __init__(self, stored: np.ndarray, crop: Crop):
        self._stored, self._crop = stored, crop
        self.shape = (len(stored), *sides_of(crop), stored.shape[-1])

    def __len__(self) -> int:
        return len(self._stored)

    def __getitem__(self, which: slice | np.ndarray) -> NetworkImages | np.ndarray:
        """Return some of them as they are here, or float32 in [0, 1] where they are counted up."""
        if isinstance(which, slice):
            return NetworkImages(self._stored[which], self._crop)
        return as_network_input(self._stored[which], self._crop)


def test_images(dataset: Dataset, crop: Crop) -> tuple[np.ndarray, np.ndarray]:
    """Return the test split as networks see it: centre crops in [0, 1], float32, and labels."""
    images, labels = dataset.test
    return as_network_input(images, crop), labels


def as_network_input(images: np.ndarray, crop: Crop) -> np.ndarray:
    """Return stored images, uint8 (N, H, W, C), as centre crops in [0, 1], float32."""
    return centre_crop(images, crop).astype(np.float32) / np.float32(PIXEL_LEVELS)
