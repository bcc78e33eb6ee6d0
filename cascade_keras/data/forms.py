"""The forms that a dataset of the user's own can have, and what is known of each before it is read.

    flowers/                 train/CLASS/*.png and test/CLASS/*.png, or CLASS/*.png alone
    flowers.npz              x_train, y_train, x_test, y_test, or x, y
    my_module:load           a function that returns (train, test)
    tf_flowers               a name of TensorFlow Datasets, "name/config" too

Each form is a class of this package: ``folders``, ``arrays``, ``builders``. Where there are no test
images, ``validation_split`` takes them from the training images by a fixed rule (``parts.split``).
Needs no TensorFlow where the form needs none.
"""

from __future__ import annotations

import contextlib
import dataclasses
import importlib
import os
import pathlib
import re
import sys
from collections.abc import Iterator, Sequence
from types import ModuleType
from typing import Any

from cascade_keras import own_code
from cascade_keras.data import specs
from cascade_keras.data.parts import Form
from cascade_keras.data.specs import DatasetSpec, Origin
from cascade_keras.errors import InputError, shown
from cascade_keras.files import expand

MAX_EPSILON, EPOCHS, NORMALIZATION = 8.0, 30.0, "channel"  # of data that nobody has registered
MOST_CLASSES = 1_000
_BUILDER = re.compile(r"[a-z]\w*(/[\w.+-]+)?(:[\w.]+)?", re.ASCII)
EXPECTED = "a folder of images, FILE.npz, module:function, a name of TensorFlow Datasets, or one of"


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


def find(origin: Origin | str, cache_dir: str | None = None) -> DatasetSpec:
    """Return what is known of a dataset before its images are read: ``data.load`` reads them.

    Args:
        origin: or its text alone: the name of a row of ``DATASETS``, a folder of images, an .npz
            file, "module:function", or a name of TensorFlow Datasets.
        cache_dir: where what does not fit into the memory is decoded to.

    Raises:
        InputError: there is no such dataset, or it cannot be used; names the setting.
    """
    origin = Origin(origin) if isinstance(origin, str) else origin
    plain = Origin(origin.text, data_dir=origin.data_dir)
    if origin.text in specs.DATASETS and origin == plain:
        return specs.DATASETS[origin.text]
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
    from cascade_keras.data.decoded import Splits  # NumPy takes as long as all else for --help

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
