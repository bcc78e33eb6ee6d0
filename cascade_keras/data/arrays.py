"""Datasets that are arrays: .npz files, functions of the user's own, rows in another size.

Images are (N, height, width, channels), or (N, height, width) where they are grey. Whole pixel
values of any integer type are taken as they are; floats are brought to whole pixel values: those in
[0, 1] are multiplied by 255, those that are whole numbers in 0..255 are taken as they are, and all
else is refused. Labels are whole numbers, (N,) or (N, 1), or one-hot rows.
"""

from __future__ import annotations

import os
import pathlib
import zipfile
from collections.abc import Callable, Iterator, Sequence

import numpy as np

from cascade_keras import own_code
from cascade_keras.data.parts import Form, Part
from cascade_keras.data.specs import DatasetSpec, Origin
from cascade_keras.errors import InputError, first_line, shown
from cascade_keras.ranges import PIXEL_LEVELS

CHUNK = 256  # images at a time
_NAMES = (("x_train", "y_train", "x_test", "y_test"), ("x", "y"))


def resized(images: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Return images, uint8 (n, H, W, C), in another size: bilinear, as Keras reads folders."""
    import tensorflow as tf

    return tf.cast(tf.round(tf.image.resize(images, size)), tf.uint8).numpy()


class Pixels:
    """What makes whole pixel values of images of another type.

    Args:
        what: names the images in messages.
        dtype: theirs.

    ``look`` at all of them, then ask for ``notes`` and call it with some.
    """

    def __init__(self, what: str, dtype: np.dtype):
        self.what, self.dtype = what, dtype
        if dtype.kind not in "uif" or (dtype.kind == "f" and dtype.itemsize > 8):
            self._refuse(f"are of type {dtype}; they must be whole pixel values or floats")
        self._low, self._high, self._whole, self._rounds = np.inf, -np.inf, True, False

    def look(self, images: np.ndarray) -> None:
        """Take notice of some images."""
        if not images.size:
            return
        low, high = float(images.min()), float(images.max())
        if not (np.isfinite(low) and np.isfinite(high)):
            self._refuse("have values that are not finite")
        self._low, self._high = min(low, self._low), max(high, self._high)
        if self.dtype.kind == "f":
            self._whole &= bool((images == np.round(images)).all())
            scaled = images * self.dtype.type(PIXEL_LEVELS)
            # A whole pixel value divided by 255 comes back within half a thousandth.
            self._rounds |= bool((np.abs(scaled - np.round(scaled)) > 1e-3).any())

    @property
    def _is_unit(self) -> bool:
        return self.dtype.kind == "f" and self._low >= 0 and self._high <= 1

    @property
    def notes(self) -> list[str]:
        """What a person should know; refuses what are no pixel values."""
        if self._is_unit:
            rounds = "rounded to whole pixel values" if self._rounds else "whole pixel values"
            return [f"{self.what} lie in [0, 1]; times 255 they are {rounds}"]
        if not (self._low >= 0 and self._high <= PIXEL_LEVELS):
            self._refuse(
                f"lie in {self._low:g}..{self._high:g}; they must be 0..255, or floats in [0, 1]"
            )
        if not self._whole:
            self._refuse(
                f"lie in {self._low:g}..{self._high:g} and are no whole numbers; round them, or "
                "divide them by 255"
            )
        if self._high == 1:
            self._refuse("are 0 and 1 only, which is black of 255; multiply them by 255")
        return []

    def __call__(self, images: np.ndarray) -> np.ndarray:
        """Return some of the images as uint8."""
        if self._is_unit:
            images = np.round(images.astype(np.float64) * PIXEL_LEVELS)
        return images.astype(np.uint8, copy=False)

    def _refuse(self, problem: str) -> None:
        raise InputError(f"{self.what} {problem}", "dataset")


def whole_labels(labels: np.ndarray, count: int, what: str) -> np.ndarray:
    """Return labels as int32 (N,): of whole numbers, (N,) or (N, 1), or of one-hot rows.

    Raises:
        InputError: they are something else, or not as many as the images.
    """

    def refuse(problem: str) -> None:
        raise InputError(f"{what} {problem}", "dataset")

    if labels.ndim not in (1, 2):
        refuse(f"are of shape {labels.shape}; they must be (N,) or one-hot rows")
    if len(labels) != count:
        refuse(f"are {len(labels):,}, the images {count:,}")
    if labels.ndim == 2 and labels.shape[1] > 1:
        if labels.dtype.kind not in "uifb":
            refuse(f"are of type {labels.dtype}; they must be whole numbers")
        one_hot = ((labels == 0) | (labels == 1)).all() and (labels.sum(axis=1) == 1).all()
        if not one_hot:
            refuse("are rows that are not one-hot; they must be classes")
        return labels.argmax(axis=1).astype(np.int32)
    labels = labels.reshape(-1)
    if labels.dtype.kind not in "ui":
        refuse(f"are of type {labels.dtype}; they must be whole numbers")
    if labels.size and not (labels.min() >= 0 and labels.max() < 2**31):
        refuse(f"must be 0 or above, one is {labels.min()}")
    return labels.astype(np.int32)


def count_classes(splits: Sequence[np.ndarray], said: int | None, name: str) -> int:
    """Return the number of classes that labels have, training labels first.

    Raises:
        InputError: a class below the largest has no training image, which labels from 1 on look
            like, unless ``said`` is the number of classes.
    """
    classes = 1 + max(int(labels.max()) for labels in splits if len(labels))
    if said is None:
        missing = np.setdiff1d(np.arange(classes), splits[0])
        if len(missing):
            raise InputError(
                f"{name}: no training image is of class {missing[0]}, though there are classes up "
                f"to {classes - 1}; classes are counted from 0; give num_classes if it is so",
                "dataset",
            )
    return classes


def _shape_of_images(shape: Sequence[int], what: str) -> tuple[int, int, int]:
    if len(shape) == 3:
        shape = (*shape, 1)
    if len(shape) != 4 or shape[3] not in (1, 3) or 0 in shape[1:]:
        raise InputError(
            f"{what} are of shape {tuple(shape)}; they must be (N, height, width), or "
            "(N, height, width, channels) with 1 or 3 channels",
            "dataset",
        )
    if not shape[0]:
        raise InputError(f"{what} are none", "dataset")
    return tuple(shape[1:])


class _Arrays(Form):
    """The base of forms whose images are known by their arrays.

    A subclass sets ``_size``, and gives to ``_take`` what it has.
    """

    _size: tuple[int, int] | None
    num_classes: int

    def _take(
        self,
        shapes: Sequence[tuple[int, ...]],
        labels: Sequence[np.ndarray],
        chunks: Sequence[Callable[[int], Iterator[np.ndarray]]],
        dtypes: Sequence[np.dtype],
        whats: Sequence[str],
        said: int | None,
    ) -> None:
        """Describe the splits: of each its images' shape, labels, chunks from an index on, type."""
        seen = [_shape_of_images(*pair) for pair in zip(shapes, whats, strict=True)]
        if len(set(seen)) > 1:
            raise InputError(
                f"{whats[0]} are {seen[0]} each, {whats[1]} {seen[1]}; give all one size", "dataset"
            )
        self._labels = [
            whole_labels(found, shape[0], f"the labels of {what}")
            for found, shape, what in zip(labels, shapes, whats, strict=True)
        ]
        self.num_classes = count_classes(self._labels, said, self.name)
        self._chunks, self._pixels = list(chunks), []
        for dtype, what in zip(dtypes, whats, strict=True):
            self._pixels.append(Pixels(what, np.dtype(dtype)))
        self._stored = seen[0]
        self.image_shape = (*(self._size or seen[0][:2]), seen[0][2])
        self._looked = False

    def parts(self) -> tuple[Part, Part | None]:
        """Return the training and the test images."""
        parts = [
            Part(labels, lambda start, number=number: self._read(number, start))
            for number, labels in enumerate(self._labels)
        ]
        return parts[0], parts[1] if len(parts) > 1 else None

    def look(self) -> list[str]:
        """Look at all images once; return what should be known of them.

        Raises:
            InputError: they are no pixel values.
        """
        notes = []
        for pixels, chunks in zip(self._pixels, self._chunks, strict=True):
            if pixels.dtype != np.uint8:
                for images in chunks(0):
                    pixels.look(images)
                notes += pixels.notes
        self._looked = True
        return notes

    def _read(self, number: int, start: int) -> Iterator[np.ndarray]:
        if not self._looked:
            self.look()
        for images in self._chunks[number](start):
            whole = self._pixels[number](images).reshape(len(images), *self._stored)
            yield whole if self._size is None else resized(whole, self._size)


class Npz(_Arrays):
    """An .npz file, of which headers and labels are read at first. It is never unpickled.

    Raises:
        InputError: naming the file.
    """

    def __init__(self, origin: Origin):
        self._file = pathlib.Path(origin.text)
        self.name, self._size = self._file.stem, origin.image_size
        headers = self._headers()
        names = next((n for n in _NAMES if set(n) <= set(headers)), _NAMES[0][:2])
        if not set(names) <= set(headers):
            raise InputError(
                f"{self._file} holds {shown(', '.join(headers) or 'nothing')}; it must hold "
                "x_train, y_train, x_test, y_test, or x_train, y_train, or x, y",
                "dataset",
            )
        if {"x_test", "y_test"} & set(headers) and len(names) == 2:
            raise InputError(f"{self._file} has only one of x_test and y_test", "dataset")
        x, y = names[::2], names[1::2]
        self._take(
            [headers[name][0] for name in x],
            [self._array(name) for name in y],
            [lambda start, name=name: self._chunk(name, headers[name], start) for name in x],
            [headers[name][1] for name in x],
            [f"{self._file}: {name}" for name in x],
            origin.num_classes,
        )

    def _headers(self) -> dict[str, tuple[tuple[int, ...], np.dtype]]:
        """Return shape and type of every array."""
        found = {}
        try:
            with zipfile.ZipFile(self._file) as archive:
                for member in archive.namelist():
                    if member.endswith(".npy"):
                        with archive.open(member) as opened:
                            shape, fortran, dtype = _read_header(opened)
                        if dtype.hasobject:
                            raise InputError(
                                f"{self._file}: {member[:-4]} holds Python objects, which are not "
                                "read; save arrays of numbers",
                                "dataset",
                            )
                        if fortran and len(shape) > 1:
                            raise InputError(
                                f"{self._file}: {member[:-4]} is in Fortran's order; save "
                                "numpy.ascontiguousarray of it",
                                "dataset",
                            )
                        found[member[:-4]] = shape, dtype
        except InputError:
            raise
        except Exception as error:  # zipfile, zlib and NumPy's parser each raise their own
            raise self._damaged(error) from error
        return found

    def _array(self, name: str) -> np.ndarray:
        try:
            with np.load(self._file, allow_pickle=False) as stored:
                return stored[name]
        except Exception as error:  # as above
            raise self._damaged(error) from error

    def _chunk(self, name: str, header: tuple, start: int) -> Iterator[np.ndarray]:
        """Yield the images of an array from one on, as they are stored."""
        (count, *shape), dtype = header
        size = int(np.prod(shape)) * dtype.itemsize
        try:
            with zipfile.ZipFile(self._file) as archive, archive.open(f"{name}.npy") as opened:
                _read_header(opened)
                opened.seek(start * size, os.SEEK_CUR)
                for first in range(start, count, CHUNK):
                    some = min(CHUNK, count - first)
                    content = opened.read(some * size)
                    if len(content) != some * size:
                        raise EOFError(f"{name} ends at image {first + len(content) // size:,}")
                    yield np.frombuffer(content, dtype).reshape(some, *shape)
        except (OSError, EOFError, ValueError, zipfile.BadZipFile) as error:
            raise self._damaged(error) from error

    def _damaged(self, error: Exception) -> InputError:
        return InputError(f"{self._file} cannot be read ({first_line(error)})", "dataset")

    def key(self) -> list:
        """Return the file's size and time, and how it is read."""
        stat = self._file.stat()
        return [str(self._file), stat.st_size, stat.st_mtime_ns, list(self.image_shape)]


def _read_header(opened) -> tuple[tuple[int, ...], bool, np.dtype]:
    version = np.lib.format.read_magic(opened)
    read = np.lib.format.read_array_header_1_0
    if version != (1, 0):
        read = np.lib.format.read_array_header_2_0
    return read(opened)


class Function(_Arrays):
    """What a function of the user's own returns: (train, test), of arrays or tf.data.Datasets.

    Args:
        function: called without arguments, once.

    Raises:
        InputError: it ends in an error, or returns something else.
    """

    def __init__(self, origin: Origin, function: Callable):
        self.name, self._size = origin.text.partition(":")[2], origin.image_size
        self._text = origin.text
        with own_code.running(f"{origin.text} fails", "dataset"):
            found = function()
        if not isinstance(found, tuple | list) or len(found) != 2:
            self._refuse(found)
        splits = [self._pair(split) for split in found if split is not None]
        if not splits or found[0] is None:
            self._refuse(found)
        whats = [f"{origin.text}: the {w} images" for w in ("training", "test")[: len(splits)]]
        self._take(
            [images.shape for images, _ in splits],
            [labels for _, labels in splits],
            [lambda start, images=images: _chunks_of(images, start) for images, _ in splits],
            [images.dtype for images, _ in splits],
            whats,
            origin.num_classes,
        )
        self._splits = splits

    def _pair(self, split) -> tuple[np.ndarray, np.ndarray]:
        if hasattr(split, "element_spec"):
            split = self._gathered(split)
        if not isinstance(split, tuple | list) or len(split) != 2:
            self._refuse(split)
        try:
            images, labels = (np.asanyarray(part) for part in split)
        except ValueError as error:
            raise InputError(
                f"{self._text} returns images of several sizes; give all one size", "dataset"
            ) from error
        return images, labels

    def _gathered(self, dataset) -> tuple[np.ndarray, np.ndarray]:
        """Return the images and labels of a tf.data.Dataset, of batches or of single ones."""
        spec = dataset.element_spec
        if not isinstance(spec, tuple) or len(spec) != 2:
            self._refuse(spec)
        if dataset.cardinality() == -1:  # tf.data.INFINITE_CARDINALITY
            raise InputError(f"{self._text} returns a dataset without an end", "dataset")
        single = spec[0].shape.rank == 3
        images, labels = [], []
        try:
            for image, label in dataset.as_numpy_iterator():
                images.append(image[None] if single else image)
                labels.append(np.asarray(label)[None] if single else label)
        except Exception as error:  # TensorFlow's, or the user's own within
            raise InputError(f"{self._text}: {first_line(error)}", "dataset") from error
        if not images:
            raise InputError(f"{self._text} returns a dataset without images", "dataset")
        sizes = {image.shape[1:] for image in images}
        if len(sizes) > 1:
            if self._size is None or len({size[2:] for size in sizes}) > 1:
                one, other = sorted(sizes)[:2]
                raise InputError(
                    f"{self._text} returns images of several sizes, {one} and {other}; give "
                    "image_size",
                    "dataset",
                )
            images = [resized(_as_pixels(image, self._text), self._size) for image in images]
        return np.concatenate(images), np.concatenate(labels)

    def _refuse(self, found) -> None:
        raise InputError(
            f"{self._text} must return (train, test), each (images, labels) or a tf.data.Dataset "
            f"of such pairs; it returns {_in_words(found)}",
            "dataset",
        )

    def key(self) -> list:
        """Return the hashes of the arrays."""
        import hashlib

        hashes = []
        for array in (array for split in self._splits for array in split):
            hashes.append(hashlib.sha256(np.ascontiguousarray(array).data).hexdigest())
        return [hashes, list(self.image_shape)]


def _as_pixels(images: np.ndarray, what: str) -> np.ndarray:
    """Return images as uint8 where they are whole pixel values."""
    if images.dtype != np.uint8:
        raise InputError(f"{what}: images of several sizes must be uint8, got {images.dtype}")
    return images


def _in_words(found) -> str:
    if isinstance(found, tuple | list):
        return f"{len(found)} items: {', '.join(type(item).__name__ for item in found[:5])}"
    return type(found).__name__


def _chunks_of(images: np.ndarray, start: int) -> Iterator[np.ndarray]:
    for first in range(start, len(images), CHUNK):
        yield images[first : first + CHUNK]


def resized_row(row: DatasetSpec) -> Callable:
    """Return a loader of a row's images in another size, that of the row that it is given."""

    def load(spec: DatasetSpec, data_dir: str | None) -> list[tuple]:
        size = spec.image_shape[:2]
        return [
            (np.concatenate([resized(part, size) for part in _chunks_of(images, 0)]), labels)
            for images, labels in row.load(data_dir)
        ]

    return load
