"""Folders of image files, read as ``keras.utils.image_dataset_from_directory`` reads them.

Class names are those of the folders, sorted as text; files are sorted by their paths. Images are
grey if all of them are, else coloured; palettes become colours. Of an animation the first frame is
read. What would be read as something else is refused, naming the file: 16 bits a channel, pixels
that are transparent, and what cannot be read. What is known from names and headers is said before
TensorFlow is imported.
"""

from __future__ import annotations

import os
import pathlib
import struct
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np

from cascade_keras.data.parts import Form, Part
from cascade_keras.data.specs import Origin
from cascade_keras.errors import InputError, first_line

SUFFIXES = (".bmp", ".gif", ".jpeg", ".jpg", ".png")  # Keras's
_NOT_READ = (".webp", ".tif", ".tiff", ".heic", ".heif", ".avif", ".jfif", ".jp2", ".npy", ".dcm")
CHUNK = 128  # images at a time
_PNG = b"\x89PNG\r\n\x1a\n"


class Header(NamedTuple):
    """What an image file says of itself.

    Attributes:
        grey: it has no colours.
        alpha: its pixels may be transparent.
    """

    height: int
    width: int
    grey: bool
    alpha: bool


class Folder(Form):
    """A folder of ``train/CLASS`` and ``test/CLASS``, or of ``CLASS`` alone.

    Raises:
        InputError: naming the folder or file.
    """

    def __init__(self, origin: Origin):
        self.root = pathlib.Path(origin.text)
        self.name = self.root.name
        self._size = origin.image_size
        train = self.root / "train"
        has_splits = train.is_dir() and bool(_folders(train))
        self.class_names = tuple(_folders(train if has_splits else self.root))
        self.num_classes = len(self.class_names)
        if not self.class_names:
            raise InputError(
                f"{train if has_splits else self.root} has no folders of images, one a class",
                "dataset",
            )
        self._train = _files(train if has_splits else self.root, self.class_names)
        self._test = None
        test = self.root / "test"
        if has_splits and test.is_dir():
            names = _folders(test)
            unknown = sorted(set(names) - set(self.class_names))
            if unknown:
                raise InputError(
                    f"{test / unknown[0]}: there is no {train / unknown[0]}", "dataset"
                )
            if not names:
                raise InputError(f"{test} has no folders of images, one a class", "dataset")
            self._test = _files(test, self.class_names, names)
        self._headers = [header(file) for file, _ in self._files]
        self.image_shape = (*self._common_size(), 1 if all(h.grey for h in self._headers) else 3)

    @property
    def _files(self) -> list[tuple[str, int]]:
        return [*self._train, *(self._test or ())]

    def _common_size(self) -> tuple[int, int]:
        if self._size is not None:
            return self._size
        first = self._headers[0]
        for (file, _), other in zip(self._files, self._headers, strict=True):
            if other[:2] != first[:2]:
                raise InputError(
                    f"its images are of several sizes: {self._files[0][0]} has "
                    f"{first.height}x{first.width} pixels, {file} {other.height}x{other.width}; "
                    "give image_size",
                    "dataset",
                )
        return first.height, first.width

    def parts(self) -> tuple[Part, Part | None]:
        """Return the training and the test images."""
        return self._part(self._train, 0), self._test and self._part(self._test, len(self._train))

    def _part(self, files: list[tuple[str, int]], before: int) -> Part:
        labels = np.array([label for _, label in files], np.int32)
        return Part(labels, lambda start: self._read(before + start, before + len(files)))

    def _read(self, start: int, stop: int) -> Iterator[np.ndarray]:
        """Yield the images of the files from ``start`` to ``stop`` - 1."""
        import tensorflow as tf

        files = [file for file, _ in self._files[start:stop]]
        for file, found in zip(files, self._headers[start:stop], strict=True):
            if found.alpha:
                _check_opaque(file)
        height, width, channels = self.image_shape

        def decode(file: tf.Tensor) -> tf.Tensor:
            # As Keras does it.
            content = tf.io.read_file(file)
            image = tf.io.decode_image(content, channels=channels, expand_animations=False)
            image.set_shape([None, None, channels])
            if self._size is not None:
                image = tf.image.resize(image, self._size)
                image = tf.cast(tf.round(image), tf.uint8)
            return tf.ensure_shape(image, [height, width, channels])

        batches = tf.data.Dataset.from_tensor_slices(files)
        batches = batches.map(decode, num_parallel_calls=tf.data.AUTOTUNE).batch(CHUNK).prefetch(1)
        done = 0
        try:
            for batch in batches.as_numpy_iterator():
                done += len(batch)
                yield batch
        except tf.errors.OpError as error:
            raise _unreadable(files[done:], decode) from error

    def key(self) -> list:
        """Return the name, size and time of every file, its class, and how it is read."""
        stats = [(file, label, os.stat(file)) for file, label in self._files]
        listed = [
            [os.path.relpath(file, self.root), label, stat.st_size, stat.st_mtime_ns]
            for file, label, stat in stats
        ]
        return [listed, list(self.image_shape)]


def _unreadable(files: list[str], decode) -> InputError:
    """Return what is said of the first of the files that cannot be decoded."""
    import tensorflow as tf

    for file in files:
        try:
            decode(tf.constant(file))
        except (tf.errors.OpError, ValueError) as error:
            return InputError(f"{file} cannot be read ({first_line(error)})", "dataset")
    return InputError(f"{files[0]} or a later file has changed while it was read", "dataset")


def _folders(directory: pathlib.Path) -> list[str]:
    """Return the names of the folders in a directory as Keras takes them for classes."""
    try:
        entries = sorted(os.listdir(directory))
    except OSError as error:
        raise InputError(f"{directory} cannot be looked into ({error.strerror})", "dataset") from (
            error
        )
    return [name for name in entries if not name.startswith(".") and (directory / name).is_dir()]


def _files(
    directory: pathlib.Path, classes: tuple[str, ...], names: list[str] | None = None
) -> list[tuple[str, int]]:
    """Return each image file with its class, in Keras's order.

    Args:
        directory: of the folders.
        classes: their names, in the order of the labels.
        names: of those that are there; all where None.
    """
    found = []
    for label, name in enumerate(classes):
        if names is not None and name not in names:
            continue
        own = [(file, label) for file in _files_of(directory / name)]
        if not own:
            raise InputError(
                f"{directory / name} has no images ({', '.join(s[1:] for s in SUFFIXES)})",
                "dataset",
            )
        found += own
    return found


def _files_of(folder: pathlib.Path) -> list[str]:
    def refuse(error: OSError) -> None:
        raise InputError(f"{error.filename} cannot be looked into ({error.strerror})", "dataset")

    found = []
    for place, folders, files in sorted(os.walk(folder, onerror=refuse), key=lambda x: x[0]):
        for name in sorted(folders):
            if os.path.islink(os.path.join(place, name)):
                raise InputError(
                    f"{os.path.join(place, name)} is a link to a folder, which is not followed",
                    "dataset",
                )
        for name in sorted(files):
            if name.lower().endswith(SUFFIXES):
                found.append(os.path.join(place, name))
            elif name.lower().endswith(_NOT_READ):
                raise InputError(
                    f"{os.path.join(place, name)} is none of "
                    f"{', '.join(s[1:] for s in SUFFIXES)}; convert it, or take it away",
                    "dataset",
                )
    return found


def header(file: str) -> Header:
    """Return what an image file says of itself.

    Raises:
        InputError: it is not an image, or one that would be read as another.
    """
    try:
        with open(file, "rb") as opened:
            start = opened.read(26)
            if start.startswith(_PNG) and len(start) == 26:
                width, height, depth, kind = struct.unpack(">IIBB", start[16:26])
                found = Header(height, width, kind in (0, 4), kind in (4, 6) or _has_trns(opened))
                problem = "has 16 bits a channel; save it with 8" if depth == 16 else None
            else:
                found, problem = _header_of_others(file)
    except OSError as error:
        raise InputError(f"{file} cannot be read ({error.strerror or error})", "dataset") from error
    if problem is None and 0 in found[:2]:
        problem = "has no pixels"
    if problem is not None:
        raise InputError(f"{file} {problem}", "dataset")
    return found


def _has_trns(opened) -> bool:
    """Whether a PNG file says of some colours that they are transparent, before its pixels."""
    opened.seek(len(_PNG))
    while len(chunk := opened.read(8)) == 8:
        size, kind = struct.unpack(">I4s", chunk)
        if kind in (b"tRNS", b"IDAT", b"IEND"):
            return kind == b"tRNS"
        opened.seek(size + 4, os.SEEK_CUR)
    return False


def _header_of_others(file: str) -> tuple[Header, str | None]:
    import PIL.Image

    try:
        with PIL.Image.open(file) as image:
            width, height = image.size
            kind, mode = image.format, image.mode
            # What TensorFlow makes colours of whatever it is, and what has no transparency.
            grey = mode in ("1", "L", "LA") and kind != "GIF"
            found = Header(height, width, grey, "transparency" in image.info)
    except (PIL.UnidentifiedImageError, PIL.Image.DecompressionBombError, ValueError, SyntaxError):
        return Header(0, 0, False, False), "is not an image that can be read"
    if kind not in ("JPEG", "MPO", "GIF", "BMP"):
        return found, f"is a {kind} file; save it as PNG or JPEG"
    if kind == "BMP" and mode != "RGB":
        return found, "is a BMP file that is not of 24 bits; save it as PNG"
    if mode not in ("L", "RGB", "P"):
        return found, f"has pixels of the kind {mode}; save it in grey or RGB"
    return found, None


def _check_opaque(file: str) -> None:
    """Refuse an image with transparent pixels, under which any colours may lie."""
    import PIL.Image

    try:
        with PIL.Image.open(file) as image:
            opaque = image.convert("RGBA").getextrema()[3][0] == 255
    except (OSError, ValueError, SyntaxError) as error:
        raise InputError(f"{file} cannot be read ({first_line(error)})", "dataset") from error
    if not opaque:
        raise InputError(
            f"{file} has transparent pixels; put it on a background and save it without alpha",
            "dataset",
        )
