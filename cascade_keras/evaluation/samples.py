"""Images and labels as ``keras.Model.evaluate`` takes them, in arrays."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from cascade_keras.errors import InputError

_FORMS = (
    "give arrays x and y, a tf.data.Dataset, PyDataset or generator of batches (images, labels), "
    "or a dataset's name"
)


def collect(x: Any, y: Any = None, num_images: int | None = None) -> tuple[np.ndarray, np.ndarray]:
    """Return images (N, H, W, C) and their labels as they were given, the first ``num_images``.

    Args:
        x: images, an array or a tensor; or what gives batches of (images, labels): a
            ``tf.data.Dataset``, a ``keras.utils.PyDataset``, a loader or a generator.
        y: the labels of an array.
        num_images: at most so many; all when None, which a generator has no end of.

    Raises:
        InputError: several inputs, sample weights, no labels, no images, or data without an end.
    """
    if _is_array(x):
        if y is None:
            raise InputError(f"the images have no labels; {_FORMS}", "y")
        images, labels = np.asarray(x), np.asarray(y)
        if not (images.ndim and labels.ndim) or len(images) != len(labels):
            raise InputError(
                f"one label an image is needed: images {images.shape}, labels {labels.shape}", "y"
            )
        images, labels = images[:num_images], labels[:num_images]
    else:
        if y is not None:
            raise InputError(f"{type(x).__name__} brings its labels along; leave y out", "y")
        images, labels = _gathered(_batches(x, num_images), num_images)
    if not len(images):
        raise InputError("there are no images", "x")
    return images, labels


def _is_array(x: Any) -> bool:
    if isinstance(x, tuple | dict) or (isinstance(x, list) and len(x) and _is_array(x[0])):
        raise InputError(f"one input of images is attacked, got a {type(x).__name__}; {_FORMS}",
                         "x")  # fmt: skip
    return hasattr(x, "__array__") and not isinstance(x, keras.utils.PyDataset)


def _batches(x: Any, num_images: int | None) -> Iterable:
    """Return what yields batches; refuse what would yield them for ever."""
    endless = False
    if isinstance(x, tf.data.Dataset):
        endless = int(x.cardinality()) == tf.data.INFINITE_CARDINALITY
        batches: Iterable = x
    elif isinstance(x, keras.utils.PyDataset):
        endless = x.num_batches is None
        count = itertools.count() if endless else range(x.num_batches)
        batches = (x[number] for number in count)
    elif isinstance(x, Iterable):
        # Of a generator nobody knows whether it ends.
        endless = isinstance(x, Iterator)
        batches = x
    else:
        raise InputError(f"got {type(x).__name__}; {_FORMS}", "x")
    if endless and num_images is None:
        raise InputError("say how many images: this data may have no end", "num_images")
    return batches


def _gathered(batches: Iterable, num_images: int | None) -> tuple[np.ndarray, np.ndarray]:
    images, labels, count = [], [], 0
    for batch in batches:
        some, theirs = _pair(batch)
        images.append(some)
        labels.append(theirs)
        count += len(some)
        if num_images is not None and count >= num_images:
            break
    if not images:
        raise InputError("there are no images", "x")
    try:
        return np.concatenate(images)[:num_images], np.concatenate(labels)[:num_images]
    except ValueError as error:
        raise InputError(f"all batches must be of one shape: {error}", "x") from error


def _pair(batch: Any) -> tuple[np.ndarray, np.ndarray]:
    if not isinstance(batch, tuple | list) or len(batch) < 2:
        raise InputError(f"batches of (images, labels) are needed; {_FORMS}", "x")
    images, labels, *weights = batch
    if isinstance(images, dict) and len(images) == 1:
        (images,) = images.values()
    if any(weight is not None for weight in weights):
        raise InputError(
            "accuracy counts every image once; leave the sample weights out, as in "
            "dataset.map(lambda x, y, weight: (x, y))",
            "x",
        )
    if isinstance(images, dict | tuple | list):
        raise InputError(f"one input of images is attacked, got {len(images)}; {_FORMS}", "x")
    images, labels = np.asarray(images), np.asarray(labels)
    if images.ndim != 4 or not labels.ndim or len(labels) != len(images):
        raise InputError(
            "batches must be images (batch, H, W, C) with a label each, got "
            f"{images.shape} and {labels.shape}; a dataset of single images needs .batch(250)",
            "x",
        )
    return images, labels
