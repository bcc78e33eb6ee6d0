"""Datasets of TensorFlow Datasets by any name, "name/config" and "name:version" too.

Which of a dataset's features are images and labels its ``supervised_keys`` say.
"""

from __future__ import annotations

import os
from collections.abc import Iterator

import numpy as np

from cascade_keras.data import specs
from cascade_keras.data.arrays import CHUNK, count_classes, resized
from cascade_keras.data.parts import Form, Part
from cascade_keras.data.prepared import prepared_builder
from cascade_keras.data.specs import Origin
from cascade_keras.errors import InputError, first_line


class Builder(Form):
    """A dataset of TensorFlow Datasets, downloaded where it is not prepared yet.

    Raises:
        InputError: there is none of this name, it is not there and cannot be downloaded, or it
            does not classify images.
    """

    def __init__(self, origin: Origin):
        self.name = origin.text
        self._refuse_unknown(origin)
        self._builder = builder = prepared_builder(origin.text, origin.data_dir)
        keys = builder.info.supervised_keys
        if not keys or len(keys) != 2 or not all(isinstance(key, str) for key in keys):
            raise InputError(
                f"{self.name} does not say which of {', '.join(builder.info.features)} are images "
                "and labels (supervised_keys); give a module:function that does",
                "dataset",
            )
        self._image, self._label = keys
        image, label = (builder.info.features[key] for key in keys)
        shape = tuple(getattr(image, "shape", ()))
        if len(shape) != 3 or image.dtype != np.uint8 or shape[-1] not in (1, 3):
            raise InputError(
                f"{self.name}: {self._image} must be images of 8 bits in grey or RGB, it is of "
                f"shape {shape}",
                "dataset",
            )
        if getattr(label, "num_classes", None) is None and np.dtype(label.dtype).kind not in "ui":
            raise InputError(f"{self.name}: {self._label} must be classes", "dataset")
        self._splits = [name for name in ("train", "test") if name in builder.info.splits]
        if "train" not in self._splits:
            there = ", ".join(builder.info.splits) or "none"
            raise InputError(f"{self.name} has no split train; it has {there}", "dataset")
        self._labels = [self._read_labels(name) for name in self._splits]
        said = getattr(label, "num_classes", None)
        self.num_classes = said or count_classes(self._labels, origin.num_classes, self.name)
        names = tuple(getattr(label, "names", None) or ())
        named = names and names != tuple(map(str, range(len(names))))
        self.class_names = names if named else ()
        self._size = origin.image_size
        if self._size is None and None in shape:
            shape = next(self._examples("train", 0)).shape
        self.image_shape = (*(self._size or shape[:2]), shape[-1])

    def _refuse_unknown(self, origin: Origin) -> None:
        import tensorflow_datasets as tfds

        own = origin.text.partition(":")[0].partition("/")[0]
        folder = os.path.join(origin.data_dir or tfds.core.constants.DATA_DIR, own)
        if own not in tfds.list_builders() and not os.path.isdir(folder):
            raise InputError(
                f"{origin.text!r} is none of {', '.join(specs.DATASETS)}, there is no folder of "
                "this name, and TensorFlow Datasets has none such",
                "dataset",
            )

    def _dataset(self, split: str, decode: bool):
        import tensorflow_datasets as tfds

        skipped = None if decode else {self._image: tfds.decode.SkipDecoding()}
        # One file after the other: the same order at every load.
        read = tfds.ReadConfig(interleave_cycle_length=1, try_autocache=False)
        return self._builder.as_dataset(
            split=split, decoders=skipped, read_config=read, shuffle_files=False
        )

    def _read_labels(self, split: str) -> np.ndarray:
        examples = self._dataset(split, decode=False).map(lambda example: example[self._label])
        labels = list(self._reading(examples.batch(4096).as_numpy_iterator()))
        if not labels:
            raise InputError(f"{self.name} has no {split} images", "dataset")
        labels = np.concatenate(labels)
        if labels.ndim != 1 or labels.min() < 0:
            raise InputError(
                f"{self.name}: one of the labels is {labels.min()}; they must be 0 or above, one "
                "an image",
                "dataset",
            )
        return labels.astype(np.int32)

    def _examples(self, split: str, start: int) -> Iterator[np.ndarray]:
        examples = self._dataset(split, decode=True).skip(start)
        yield from self._reading(
            examples.map(lambda example: example[self._image]).prefetch(CHUNK).as_numpy_iterator()
        )

    def _reading(self, iterator: Iterator) -> Iterator[np.ndarray]:
        try:
            yield from iterator
        except Exception as error:  # TFDS raises whatever its reader or parser meets
            raise InputError(f"{self.name} cannot be read ({first_line(error)})", "dataset") from (
                error
            )

    def parts(self) -> tuple[Part, Part | None]:
        """Return the training and the test images."""
        parts = [
            Part(labels, lambda start, split=split: self._read(split, start))
            for split, labels in zip(self._splits, self._labels, strict=True)
        ]
        return parts[0], parts[1] if len(parts) > 1 else None

    def _read(self, split: str, start: int) -> Iterator[np.ndarray]:
        chunk: list[np.ndarray] = []
        for image in self._examples(split, start):
            if self._size is None and image.shape != self.image_shape:
                raise InputError(
                    f"{self.name} has images of several sizes, {self.image_shape} and "
                    f"{image.shape}; give image_size",
                    "dataset",
                )
            chunk.append(image if self._size is None else resized(image[None], self._size)[0])
            if len(chunk) == CHUNK:
                yield np.stack(chunk)
                chunk = []
        if chunk:
            yield np.stack(chunk)

    def key(self) -> list:
        """Return what the dataset says of itself: its name, version and the files' sizes."""
        info = self._builder.info
        splits = [
            [name, info.splits[name].num_examples, info.splits[name].num_bytes,
             list(info.splits[name].shard_lengths or ())]
            for name in self._splits
        ]  # fmt: skip
        files = sorted(
            [file.name, file.stat().st_size, file.stat().st_mtime_ns]
            for file in os.scandir(self._builder.data_dir)
            if file.is_file()
        )
        return [info.full_name, splits, files, list(self.image_shape)]
