"""Presets: trained networks in a folder each, which the package brings along; no TensorFlow.

    NAME/config.json         the network, as Keras serializes it
         model.weights.h5    its weights, float32, without an optimizer's state
         metadata.json       what it is: its provenance, and the SHA-256 of the weights file
         robustness.json     how it withstands attacks, see ``zoo.robustness``
         README.md           the model card, which is made of these

The first three and the card are where keras-hub has them. A preset of the package is named
``zoo:NAME`` wherever a network is named by a path, any other by its folder.
"""

from __future__ import annotations

import difflib
import hashlib
import os
import pathlib
import re
from collections.abc import Sequence

from cascade_keras import records
from cascade_keras.errors import InputError, shown
from cascade_keras.files import expand
from cascade_keras.records import Count, OpenRecord, Sha256, Text

PREFIX = "zoo:"
ALL = f"{PREFIX}all"
# Where the package's own are.
FOLDER = pathlib.Path(__file__).with_name("zoo") / "presets"
CONFIG, WEIGHTS, METADATA, ROBUSTNESS, CARD = FILES = (
    "config.json",
    "model.weights.h5",
    "metadata.json",
    "robustness.json",
    "README.md",
)
FORMAT = 1
_NAME = re.compile(r"[a-z0-9][a-z0-9._-]*")


class Metadata(OpenRecord):
    """metadata.json: what is read of it here; the rest is a provenance's, or Keras's.

    Attributes:
        format: of the folder.
        weights_file: the SHA-256 of the weights file.
    """

    format: Count
    name: Text
    weights_file: Sha256


def is_named(text: object) -> bool:
    """Whether a text names a preset of the package, which need not be there."""
    return isinstance(text, str | os.PathLike) and os.fspath(text).startswith(PREFIX)


def is_preset(folder: pathlib.Path) -> bool:
    """Whether a folder is a preset's."""
    return (folder / METADATA).is_file() and (folder / CONFIG).is_file()


def is_name(name: str) -> bool:
    """Whether a preset may be called so."""
    return name != "all" and len(name) <= 100 and _NAME.fullmatch(name) is not None


def names(dataset: str | None = None) -> list[str]:
    """Return the names of the package's presets, in order of the alphabet.

    Args:
        dataset: only of those that learned it.

    Example::

        names("mnist")  # ["mnist-resnet20-kurakin", "mnist-resnet20-pivot", ...]
    """
    found = [folder.name for folder in sorted(FOLDER.glob("*")) if is_preset(folder)]
    return [name for name in found if dataset in (None, _dataset(name))]


def plain(text: str | os.PathLike) -> str:
    """Return a preset's name without the prefix; any other text as it is."""
    return os.fspath(text).removeprefix(PREFIX)


def folder_of(text: str | os.PathLike) -> pathlib.Path:
    """Return the folder of a preset of the package.

    Args:
        text: its name, with the prefix or without.

    Raises:
        InputError: there is none of this name.
    """
    name, known = plain(text), names()
    if name in known:
        return FOLDER / name
    near = difflib.get_close_matches(name, known, n=3, cutoff=0.5)
    words = f"near are {', '.join(near)}; " if near else ""
    raise InputError(f"the zoo has no {shown(name)}; {words}it has {', '.join(known) or 'none'}")


def read(folder: pathlib.Path, kind: type) -> records.Values:
    """Return metadata.json as a dict, once it is known to be a ``kind`` too.

    Raises:
        InputError: it cannot be read, or only a later version knows it.
    """
    file = folder / METADATA
    try:
        found = records.read(file, Metadata)
        if found.format > FORMAT:
            raise InputError(f"{file}: is of format {found.format}, this version knows {FORMAT}")
        return records.read_values(file, kind)
    except FileNotFoundError as error:
        raise InputError(f"{folder} is no preset (no {METADATA})") from error


def weights(folder: pathlib.Path) -> pathlib.Path:
    """Return the weights file, once its SHA-256 is known to be the recorded one.

    Raises:
        InputError: it is not there, or damaged.
    """
    file, recorded = folder / WEIGHTS, records.read(folder / METADATA, Metadata).weights_file
    try:
        digest = digest_of(file)
    except OSError as error:
        raise InputError(f"{file} cannot be read ({error.strerror}); restore it") from error
    if digest != recorded:
        raise InputError(
            f"{file} is damaged: its SHA-256 begins with {digest[:8]}, that in {METADATA} with "
            f"{recorded[:8]}; restore it, or install the package again"
        )
    return file


def digest_of(file: pathlib.Path) -> str:
    """Return the SHA-256 of a file."""
    with open(file, "rb") as opened:
        return hashlib.file_digest(opened, "sha256").hexdigest()


def expanded(paths: Sequence, dataset: str | None) -> tuple:
    """Return networks with the presets of a dataset in the place of ``zoo:all``.

    Raises:
        InputError: there is none, or no dataset is named.
    """
    if ALL not in paths:
        return tuple(paths)
    known = sorted(filter(None, {_dataset(name) for name in names()}))
    if dataset is None:
        raise InputError(f"must be named beside {ALL}: {', '.join(known)}", "dataset")
    found = [f"{PREFIX}{name}" for name in names(dataset)]
    if not found:
        raise InputError(
            f"{ALL} has no networks of {shown(dataset)}; it has those of {', '.join(known)}"
        )
    place = paths.index(ALL)
    return (*paths[:place], *found, *paths[place + 1 :])


def _dataset(name: str) -> str | None:
    """Return what a preset of the package learned, None where nothing is recorded."""
    recorded = records.read(FOLDER / name / METADATA, records.Values).get("dataset")
    return recorded.get("name") if isinstance(recorded, dict) else recorded


def folder_at(path: str | os.PathLike) -> pathlib.Path | None:
    """Return the preset's folder that a path is, or in which it is the weights file, else None."""
    place = expand(path)
    if place.name == WEIGHTS and place.is_file():
        place = place.parent
    return place if place.is_dir() and is_preset(place) else None
