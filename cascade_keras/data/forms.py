"""The forms that a dataset of the user's own can have, and what is known of each before it is read.

    flowers/                 train/CLASS/*.png and test/CLASS/*.png, or CLASS/*.png alone
    flowers.npz              x_train, y_train, x_test, y_test, or x, y
    my_module:load           a function that returns (train, test)
    tf_flowers               a name of TensorFlow Datasets, "name/config" too

Each form is a class of this package: ``folders``, ``arrays``, ``builders``. Where there are no test
images, ``validation_split`` takes them from the training images by a fixed rule (``split``).
Needs no TensorFlow where the form needs none.
"""

from __future__ import annotations

import abc
import contextlib
import dataclasses
import importlib
import os
import pathlib
import re
import sys
from collections.abc import Callable, Iterator, Sequence
from types import ModuleType
from typing import TYPE_CHECKING, Any, NamedTuple

from cascade_keras import own_code
from cascade_keras.data import specs
from cascade_keras.data.specs import DatasetSpec, Origin
from cascade_keras.errors import InputError, shown
from cascade_keras.files import expand

if TYPE_CHECKING:  # it takes as long as all else that --help needs
    import numpy as np

    from cascade_keras.data.decoded import Read

MAX_EPSILON, EPOCHS, NORMALIZATION = 8.0, 30.0, "channel"  # of data that nobody has registered
MOST_CLASSES = 1_000
_BUILDER = re.compile(r"[a-z]\w*(/[\w.+-]+)?(:[\w.]+)?", re.ASCII)
_LONGEST_NAME = 60
EXPECTED = "a folder of images, FILE.npz, module:function, a name of TensorFlow Datasets, or one of"


class Part(NamedTuple):
    """The images of one split as they lie at their origin.

    Attributes:
        labels: (n,) int32.
        images: yields them from the one with this index on, in order, some at a time: uint8
            (k, height, width, channels) of the size that is asked for.
    """

    labels: np.ndarray
    images: Callable[[int], Iterator[np.ndarray]]


class Form(abc.ABC):
    """A dataset at its origin.

    Attributes:
        name: what it is called in records.
        image_shape: (height, width, channels) of the images as ``Part.images`` yields them.
        class_names: in order; empty where they have none.
        num_classes: as the data say.
    """

    name: str
    image_shape: tuple[int, int, int]
    class_names: tuple[str, ...] = ()
    num_classes: int

    @abc.abstractmethod
    def parts(self) -> tuple[Part, Part | None]:
        """Return the training and the test images; None where there are no test images."""

    def look(self) -> Sequence[str]:
        """Look at the images where that takes a look at all; return what a person should know.

        Raises:
            InputError: they are no images.
        """
        return ()

    @abc.abstractmethod
    def key(self) -> Any:
        """Return what the images follow from, as JSON: names, sizes and times of files."""


def check_text(text: str) -> None:
    """Refuse a text that names no dataset in any form; needs no heavy import.

    Raises:
        InputError: naming the setting.
    """
    if "://" in text:
        raise InputError(f"must be a place on this machine, got {shown(text)}", "dataset")
    if _is_place(text):
        place = _expanded(text)
        if place.is_dir() and _is_prepared(place):
            raise InputError(
                f"{shown(text)} is a dataset that TensorFlow Datasets has prepared; name it by its "
                "name, and give its directory as data_dir",
                "dataset",
            )
        if place.is_dir() or (place.is_file() and place.suffix == ".npz"):
            return
        problem = (
            "is neither a folder nor an .npz file" if os.path.lexists(place) else "is not there"
        )
        raise InputError(f"{shown(text)} {problem}", "dataset")
    if own_code.names_function(text) or _BUILDER.fullmatch(text):
        return
    raise InputError(
        f"must be {EXPECTED} {', '.join(specs.DATASETS)}; got {shown(text)}", "dataset"
    )


def _is_place(text: str) -> bool:
    """Whether a text is a path rather than a name."""
    return (
        text.startswith(("/", "./", "../", "~"))
        or text in (".", "..")
        or text.endswith(".npz")
        or (os.path.exists(text) and not _is_prepared(pathlib.Path(text)))
    )


def _is_prepared(folder: pathlib.Path) -> bool:
    """Whether a folder is TensorFlow Datasets' own of a dataset, whose name it has."""
    below = ("dataset_info.json", "*/dataset_info.json", "*/*/dataset_info.json")
    return any(found for pattern in below for found in folder.glob(pattern))


def _expanded(text: str):
    try:
        return expand(text)
    except RuntimeError as error:
        raise InputError(f"there is no home directory for {shown(text)}", "dataset") from error


def find(origin: Origin, cache_dir: str | None = None) -> DatasetSpec:
    """See ``specs.find``."""
    if origin.text not in specs.DATASETS:
        with _found_in(origin.folders):
            for name in origin.imports:
                origin = _searched(origin, own_code.import_module(name, "import_"))
    if origin.text in specs.DATASETS:
        return _of_row(origin)
    check_text(origin.text)
    form, origin = _form_of(origin)
    return _described(form, origin, cache_dir)


@contextlib.contextmanager
def _found_in(folders: Sequence[str]) -> Iterator[None]:
    """Let modules be found in these folders too, if Python finds them nowhere else."""
    added = [folder for folder in folders if folder not in sys.path]
    sys.path += added
    importlib.invalidate_caches()
    try:
        yield
    finally:
        sys.path[:] = [place for place in sys.path if place not in added]


def _searched(origin: Origin, module: ModuleType) -> Origin:
    """Return the origin with the folder in which a module was found, if it is the user's own."""
    file = getattr(module, "__file__", None)
    if file is None:
        return origin
    levels = module.__name__.count(".") + os.path.basename(file).startswith("__init__.")
    folder = str(pathlib.Path(file).absolute().parents[levels])
    if folder in origin.folders or os.path.basename(folder).endswith("-packages"):
        return origin
    return dataclasses.replace(origin, folders=(*origin.folders, folder))


def _of_row(origin: Origin) -> DatasetSpec:
    """Return a row of the table, its images brought to another size where that is asked for."""
    row = specs.DATASETS[origin.text]
    if origin.validation_split is not None:
        raise InputError(f"{row.name} has test images; leave it out", "validation_split")
    changes: dict[str, Any] = {}
    if origin.num_classes not in (None, row.num_classes):
        _check_classes(origin.num_classes, row.num_classes, row.name)
        changes["num_classes"] = origin.num_classes
    if origin.image_size not in (None, row.image_shape[:2]):
        from cascade_keras.data.arrays import resized_row

        shape = (*origin.image_size, row.image_shape[-1])
        changes |= {"image_shape": shape, "crops": (), "loader": resized_row(row)}
    if not changes and not origin.imports:
        return row
    return dataclasses.replace(row, **changes, origin=origin)


def _form_of(origin: Origin) -> tuple[Form, Origin]:
    if _is_place(origin.text):
        place = _expanded(origin.text)
        origin = dataclasses.replace(origin, text=os.path.abspath(place))
        if place.is_dir():
            from cascade_keras.data.folders import Folder

            return Folder(origin), origin
        from cascade_keras.data.arrays import Npz

        return Npz(origin), origin
    if own_code.names_function(origin.text):
        from cascade_keras.data.arrays import Function

        with _found_in(origin.folders):
            function = own_code.function(origin.text, "dataset")
            module = sys.modules[origin.text.partition(":")[0]]
            return Function(origin, function), _searched(origin, module)
    from cascade_keras.data.builders import Builder

    return Builder(origin), origin


def _described(form: Form, origin: Origin, cache_dir: str | None) -> DatasetSpec:
    classes = max(form.num_classes, 2)  # of one class there is nothing to tell apart
    if origin.num_classes is not None:
        _check_classes(origin.num_classes, form.num_classes, form.name)
        classes = max(origin.num_classes, 2)
    if classes > MOST_CLASSES:
        raise InputError(
            f"{form.name} has {classes:,} classes, at most {MOST_CLASSES:,} work", "dataset"
        )
    splits = Splits(form, origin, cache_dir)
    return DatasetSpec(
        splits.name,
        splits,
        image_shape=form.image_shape,
        num_classes=classes,
        max_epsilon=MAX_EPSILON,
        normalization=NORMALIZATION,
        epochs=EPOCHS,
        class_names=_names(form.class_names, classes),
        examples=splits.examples,
        origin=origin,
    )


def _names(own: tuple[str, ...], classes: int) -> tuple[str, ...]:
    """Return a name for each class, where there are any; those without images have their number."""
    return (*own, *(f"class {n}" for n in range(len(own), classes))) if own else ()


def _check_classes(said: int, found: int, name: str) -> None:
    if said < found:
        raise InputError(f"{name} has {found} classes, got {said}", "num_classes")


def recorded_name(text: str) -> str:
    """Return a name as a folder can have it: other characters than letters, digits, . + - are _."""
    name = re.sub(r"[^\w.+-]+", "_", text)[:_LONGEST_NAME].strip("._")
    return name or "data"


def split(labels: np.ndarray, part: float) -> np.ndarray:
    """Return which images the test split takes, (n,) bool: of each class evenly spaced ones.

    Of the images of a class, in their order, the j-th (from 1) is taken if floor(j * part) is more
    than floor((j - 1) * part): of n images floor(n * part), whatever else is in the dataset.
    """
    import numpy as np

    taken = np.zeros(len(labels), bool)
    for label in np.unique(labels):
        own = np.flatnonzero(labels == label)
        # Of 10 images 0.3 takes 3, though 10 * 0.3 is less than that in binary.
        before = np.floor(np.arange(len(own) + 1) * part + 1e-9)
        taken[own] = np.diff(before) > 0
    return taken


class Splits:
    """Reads both splits of a form, as the loader of a ``DatasetSpec`` does.

    Args:
        form, origin: of the dataset.
        cache_dir: where what does not fit into the memory is decoded to.

    Attributes:
        name: in records.
        examples: the number of training images.
    """

    def __init__(self, form: Form, origin: Origin, cache_dir: str | None):
        self.form, self.origin, self.cache_dir = form, origin, cache_dir
        self._train, self._test = form.parts()
        self._taken = self._choose()
        self.examples = len(self._train.labels)
        if self._taken is not None:
            self.examples -= int(self._taken.sum())
        self.name = recorded_name(form.name)

    def _choose(self) -> np.ndarray | None:
        """Return which training images are the test split, None where it has images of its own."""
        name, part = self.form.name, self.origin.validation_split
        if self._test is not None:
            if part is not None:
                raise InputError(f"{name} has test images; leave it out", "validation_split")
            return None
        if part is None:
            raise InputError(
                f"{name} has no test images; give a part of the training images, such as 0.1",
                "validation_split",
            )
        taken = split(self._train.labels, part)
        if not taken.any() or taken.all():
            raise InputError(
                f"{part:g} of the {len(taken)} images of {name} leaves none to "
                f"{'train' if taken.all() else 'test'} on",
                "validation_split",
            )
        return taken

    def __call__(self, spec: DatasetSpec, data_dir: str | None) -> Sequence[tuple]:
        """Return (train, test), each (images uint8 (N, H, W, C), labels (N,))."""
        found = self.read()
        return found.train, found.test

    def read(
        self, cache_dir: str | None = None, say: Callable[[str], None] = lambda text: None
    ) -> Read:
        """Return both splits, see ``decoded.read``."""
        from cascade_keras.data import decoded

        return decoded.read(self, cache_dir or self.cache_dir, say)

    @property
    def parts(self) -> list[Part]:
        """What is read: the training images, and the test images where they are others."""
        return [self._train] if self._test is None else [self._train, self._test]

    @property
    def places(self) -> np.ndarray:
        """Where each image that is read belongs, (n,): the training split first, then the test."""
        import numpy as np

        if self._taken is None:
            return np.arange(sum(len(part.labels) for part in self.parts))
        order = np.concatenate([np.flatnonzero(~self._taken), np.flatnonzero(self._taken)])
        places = np.empty(len(order), np.int64)
        places[order] = np.arange(len(order))
        return places

    def images(self, start: int = 0) -> Iterator[np.ndarray]:
        """Yield the images that are read from this one on, uint8, some at a time."""
        for part in self.parts:
            if start < len(part.labels):
                yield from part.images(start)
            start = max(0, start - len(part.labels))
