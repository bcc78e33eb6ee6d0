"""Datasets, and batches that are a pure function of (seed, step).

mnist, cifar10 and cifar100 come from TensorFlow Datasets; digits is scikit-learn's real
handwritten digits, which are installed with the package. Everything stays uint8 in memory;
cropping, flipping and the conversion to [0, 1] are done for a whole batch at a time in the graph.
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import os
from typing import Protocol

import numpy as np
import tensorflow as tf

from cascade_keras.attacks import GENERATOR, PIXEL_LEVELS
from cascade_keras.errors import InputError
from cascade_keras.presets import PRESETS, Preset

CIFAR_PADDING = 4  # He et al.: 32x32 crops of the image padded to 40x40
_BATCH_ORDER, _CROP = 0, 1  # what a seed is used for


@dataclasses.dataclass(frozen=True)
class Dataset:
    """One dataset in memory.

    Attributes:
        name: digits, mnist, cifar10 or cifar100.
        preset: what follows from the dataset alone.
        train, test: (images uint8 (N, H, W, C), labels int32 (N,)).
    """

    name: str
    preset: Preset
    train: tuple[np.ndarray, np.ndarray]
    test: tuple[np.ndarray, np.ndarray]

    @functools.cached_property
    def fingerprint(self) -> str:
        """SHA-256 of all images and labels, in order."""
        digest = hashlib.sha256()
        for array in (*self.train, *self.test):
            digest.update(np.ascontiguousarray(array).data)
        return digest.hexdigest()


def load(name: str, data_dir: str | None = None) -> Dataset:
    """Load a dataset by name.

    Args:
        name: digits, mnist, cifar10 or cifar100.
        data_dir: where TensorFlow Datasets keeps its datasets; its own default when None.

    Raises:
        InputError: unknown name, data that is not there and cannot be downloaded, or data that is
            not what the name promises (shape, label range, image values).
    """
    if name not in PRESETS:
        raise InputError(f"--dataset: unknown dataset {name!r}; known: {', '.join(PRESETS)}")
    train, test = _load_digits() if name == "digits" else _load_tfds(name, data_dir)
    dataset = Dataset(name, PRESETS[name], train, test)
    for split in ("train", "test"):
        check(*getattr(dataset, split), dataset.preset, f"{name} ({split})")
    return dataset


def _load_digits() -> tuple[tuple[np.ndarray, np.ndarray], ...]:
    """Return scikit-learn's digits, split once and for all: 1,437 to train, 360 to test."""
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


def _load_tfds(name: str, data_dir: str | None) -> list[tuple[np.ndarray, np.ndarray]]:
    import tensorflow_datasets as tfds

    tfds.disable_progress_bar()
    data_dir = data_dir and os.path.expanduser(data_dir)
    try:
        builder = tfds.builder(name, data_dir=data_dir)
        if not builder.is_prepared():
            _reach(builder)
            builder.download_and_prepare()
        # One read of each whole split, in the order on disk: the same order at every load.
        splits = builder.as_dataset(split=["train", "test"], batch_size=-1)
    except Exception as error:  # TFDS raises whatever its downloader, reader or parser meets
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise InputError(
            f"--data_dir: {name} is not ready in {data_dir or tfds.core.constants.DATA_DIR} "
            f"({reason[:160]}); connect to a network, or use the official archives: "
            f"prepare_data --dataset={name}"
        ) from error
    return [(split["image"].numpy(), split["label"].numpy().astype(np.int32)) for split in splits]


def _reach(builder) -> None:
    """Ask for the first of a dataset's files: TFDS itself would retry for minutes if offline."""
    import requests

    for url in list(builder.url_infos)[:1]:
        try:
            requests.head(url, timeout=10, allow_redirects=True)
        except requests.RequestException as error:
            raise ConnectionError("not prepared, and its server cannot be reached") from error


def check(images: np.ndarray, labels: np.ndarray, preset: Preset, what: str) -> None:
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
    if labels.min() < 0 or labels.max() >= preset.num_classes:
        raise InputError(
            f"{what}: labels must be 0..{preset.num_classes - 1}, "
            f"got {labels.min()}..{labels.max()}"
        )


def mean_image(dataset: Dataset, crop: int) -> np.ndarray:
    """Return the mean training image in [0, 1], (crop, crop, C), centre of the stored one."""
    mean = dataset.train[0].mean(axis=0, dtype=np.float64) / PIXEL_LEVELS
    return centre_crop(mean[None].astype(np.float32), crop)[0]


def centre_crop(images: np.ndarray, crop: int) -> np.ndarray:
    """Cut the central (crop, crop) square out of each image, (N, H, W, C)."""
    top, left = ((side - crop) // 2 for side in images.shape[1:3])
    return images[:, top : top + crop, left : left + crop]


def test_images(dataset: Dataset, crop: int) -> tuple[np.ndarray, np.ndarray]:
    """Return the test split as networks see it: centre crops in [0, 1], float32, and labels."""
    images, labels = dataset.test
    return as_network_input(images, crop), labels


def as_network_input(images: np.ndarray, crop: int) -> np.ndarray:
    """Return stored images, uint8 (N, H, W, C), as centre crops in [0, 1], float32."""
    return centre_crop(images, crop).astype(np.float32) / np.float32(PIXEL_LEVELS)


def check_batch_size(batch_size: int, size: int) -> None:
    """Raise InputError if a batch needs more images than there are in an epoch."""
    if batch_size > size:
        raise InputError(
            f"--batch_size: {batch_size} clean images a batch exceed the {size} training images"
        )


class Partners(Protocol):
    """Adversarial images made beforehand, which some images of every batch bring along.

    Attributes:
        rows: the places in a batch of the images that have one.
        examples: only the first so many images of the dataset have any.
    """

    rows: range
    examples: int

    def read(self, step: tf.Tensor, indices: tf.Tensor) -> tf.Tensor:
        """Return those of the centre crops of these images, (len(rows), crop, crop, C) uint8."""


def batches(
    images: np.ndarray,
    labels: np.ndarray,
    batch_size: int,
    *,
    seed: int,
    start: int = 0,
    stop: int | None = None,
    crop: int | None = None,
    augment: bool = False,
    partners: Partners | None = None,
) -> tf.data.Dataset:
    """Yield the training batches of the steps ``start`` to ``stop`` - 1.

    The batch of a step depends on nothing but the data, the seed and the step. Every epoch is a
    new permutation of the images; where it ends within a batch, the next one begins.

    Args:
        images, labels: uint8 (N, H, W, C) and (N,).
        batch_size: images a batch, at most N.
        seed: of the order and of the crops.
        start, stop: the range of steps; without end when ``stop`` is None.
        crop: side of the square that is cut out of each image; its own side when None.
        augment: cut at a random place, the image padded with black where ``crop`` is its own side,
            and flip one image in two; otherwise the centre is cut.
        partners: adversarial images that some images of each batch bring along.

    Returns:
        A dataset of (images float32 (batch, crop, crop, C) in [0, 1], labels int32 (batch,)); of
        ((images, adversarial float32 (c, crop, crop, C)), labels) with ``partners``.

    Raises:
        InputError: a batch larger than the dataset, or a crop larger than the images.
    """
    size, height, width, channels = images.shape
    crop = crop or height
    check_batch_size(batch_size, size)
    if crop > min(height, width):
        raise InputError(f"--crop: {crop} exceeds the images' {height}x{width}")
    if augment and crop == height:
        margins = ((0, 0), (CIFAR_PADDING,) * 2, (CIFAR_PADDING,) * 2, (0, 0))
        images = np.pad(images, margins)
    elif not augment:
        images = centre_crop(images, crop)
    height, width = images.shape[1:3]
    # One row a pixel: a crop of each image is then a single gather.
    pixels = tf.constant(images.reshape(-1, channels))
    labels = tf.constant(labels, tf.int32)

    places = range(batch_size)
    with_partner = tf.constant([partners is not None and i in partners.rows for i in places])

    def crop_indices(step: tf.Tensor) -> tf.Tensor:
        if not augment:
            rows = columns = tf.range(crop)[None]
        else:
            draws = tf.random.stateless_uniform(
                [3, batch_size, 1], _seeds(seed, step, _CROP), alg=GENERATOR
            )
            top = tf.cast(draws[0] * (height - crop + 1), tf.int32)
            left = tf.cast(draws[1] * (width - crop + 1), tf.int32)
            flip = draws[2] >= 0.5
            # Partners were crafted from centre crops, so their clean images are centre crops too.
            centred = with_partner[:, None]
            top = tf.where(centred, (height - crop) // 2, top)
            left = tf.where(centred, (width - crop) // 2, left)
            across = tf.range(crop)[None]
            across = tf.where(flip & ~centred, across[:, ::-1], across)
            rows, columns = top + tf.range(crop)[None], left + across
        return rows[:, :, None] * width + columns[:, None, :]

    def batch(step: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        order = _order(step, batch_size, size, seed)
        if partners is not None:
            order = tf.where(with_partner, order % partners.examples, order)
        first_pixel = order[:, None, None] * (height * width)
        chosen = tf.gather(pixels, first_pixel + tf.cast(crop_indices(step), tf.int64))
        chosen.set_shape([batch_size, crop, crop, channels])
        chosen = tf.cast(chosen, tf.float32) / PIXEL_LEVELS
        if partners is None:
            return chosen, tf.gather(labels, order)
        adversarial = partners.read(step, order[partners.rows.start : partners.rows.stop])
        adversarial.set_shape([len(partners.rows), crop, crop, channels])
        adversarial = tf.cast(adversarial, tf.float32) / PIXEL_LEVELS
        return (chosen, adversarial), tf.gather(labels, order)

    steps = tf.data.Dataset.range(start, np.iinfo(np.int64).max if stop is None else stop)
    return steps.map(batch).prefetch(2)


def _order(step: tf.Tensor, batch_size: int, size: int, seed: int) -> tf.Tensor:
    """Return which images the batch of a step consists of, (batch,) int64."""
    positions = step * batch_size + tf.range(batch_size, dtype=tf.int64)
    epochs, places = positions // size, positions % size

    def shuffled(epoch: tf.Tensor) -> tf.Tensor:
        key = tf.cast(_seeds(seed, epoch, _BATCH_ORDER), tf.int64)
        return tf.random.experimental.index_shuffle(places, key, tf.constant(size - 1, tf.int64))

    # A batch is no longer than an epoch, so it meets two permutations at most.
    return tf.where(epochs == epochs[0], shuffled(epochs[0]), shuffled(epochs[0] + 1))


def _seeds(seed: int, number: tf.Tensor, purpose: int) -> tf.Tensor:
    """Return the two integers of a stateless draw; purposes do not share their draws."""
    return tf.random.fold_in([seed, purpose], tf.cast(number, tf.int32), alg=GENERATOR)
