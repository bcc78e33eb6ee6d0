"""Where a saved network lies and where it comes from; needs no TensorFlow.

A network can be named by

    saved/NAME         a folder of versions in the TF Serving layout: the largest version is meant
    saved/NAME/3       one version, or any other SavedModel
    runs/NAME          a finished run
    PATH.keras, .h5    a Keras model
    zoo:NAME           a preset of this package; any other by its folder, see ``presets``
    app:NAME, module:function    a network that is made when it is loaded, see ``models.forms``

``assets.extra/cascade_keras.json`` in a version says what the network is: its provenance.
"""

from __future__ import annotations

import dataclasses
import hashlib
import os
import pathlib
import platform
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Literal

import msgspec
from msgspec import UNSET, UnsetType

from cascade_keras import presets, records
from cascade_keras.errors import InputError
from cascade_keras.files import expand, is_path, named_twice
from cascade_keras.models import forms
from cascade_keras.recorded import (
    CONFIG,
    METRICS,
    ChosenRecord,
    OriginRecord,
    read_config,
    read_metrics,
)
from cascade_keras.records import (
    Count,
    Epsilon,
    Index,
    NotNegative,
    OpenRecord,
    PerCent,
    Sha256,
    Text,
)

if TYPE_CHECKING:
    import numpy as np

PROVENANCE_FILE = pathlib.Path("assets.extra", "cascade_keras.json")
KERAS_FILES = (".keras", ".h5", ".hdf5")
_LARGEST_VERSION = 2**63 - 1  # TensorFlow Serving's


class Recipe(OpenRecord):
    """What is read of the settings that a network was trained with, none of which need be there.

    Attributes:
        distance_weight: lambda_2.
        max_epsilon: in 0..255 units.
        value_range: lowest and highest value of a pixel, as the network takes it.
        from_logits, logits, embedding: what it returns, see ``border.adapt``.
    """

    model: Text | None = None
    loss: Text | None = None
    dataset: Text | None = None
    steps: Count | None = None
    seed: Index | None = None
    init_from: Text | None = None
    cascade_source: list[Text] = msgspec.field(default_factory=list)
    ensemble_source: list[Text] = msgspec.field(default_factory=list)
    max_epsilon: Epsilon | None = None
    distance_weight: NotNegative | None = None
    value_range: list[float] | None = None
    from_logits: Literal["auto", "true", "false"] = "auto"
    logits: Text | None = None
    embedding: Text | None = None


class LearnedDataset(OpenRecord):
    """The data that a network learned."""

    name: Text
    fingerprint: Sha256 | UnsetType = UNSET
    origin: OriginRecord | UnsetType = UNSET
    class_names: list[str] | UnsetType = UNSET


class Accuracy(OpenRecord):
    """One of the accuracies of a network, in per cent."""

    attack: Text
    epsilon: Epsilon
    accuracy: PerCent
    correct: Index | UnsetType = UNSET
    examples: Count | UnsetType = UNSET


class LearnedFrom(OpenRecord):
    """A network whose images another one was trained with."""

    name: Text
    path: Text
    weights_hash: Text


class Provenance(OpenRecord):
    """What is recorded of a saved network, none of which need be there; others may add fields."""

    name: Text | UnsetType = UNSET
    recipe: Recipe = msgspec.field(default_factory=Recipe)
    dataset: LearnedDataset | Text | UnsetType = UNSET
    steps: Count | UnsetType = UNSET
    seed: Index | UnsetType = UNSET
    versions: dict[str, str] = msgspec.field(default_factory=dict)
    results: list[Accuracy] = msgspec.field(default_factory=list)
    weights_hash: Sha256 | UnsetType = UNSET
    input_shape: list[Count] | UnsetType = UNSET
    image_shape: list[Count] | UnsetType = UNSET
    num_classes: Count | UnsetType = UNSET
    embedding_size: Count | UnsetType = UNSET
    value_range: list[float] | UnsetType = UNSET
    class_names: list[str] | UnsetType = UNSET
    source_hash: Sha256 | UnsetType = UNSET
    learned_from: list[LearnedFrom] | UnsetType = UNSET
    chosen: ChosenRecord | UnsetType = UNSET


@dataclasses.dataclass(frozen=True)
class Location:
    """A network on disk.

    Attributes:
        path: the SavedModel's folder, the .keras file, or a preset's weights file.
        name: what people call it: the folder that holds its versions, the run, or the file.
        provenance: what is recorded of it; empty where nothing is.
        made: the text of a network that is not on disk but is made when it is loaded.
        preset: the text zoo:NAME of one that the package brings along, wherever that lies.
    """

    path: pathlib.Path
    name: str
    provenance: dict
    made: str | None = None
    preset: str | None = None

    @property
    def is_saved_model(self) -> bool:
        """Whether it is a SavedModel rather than a .keras file."""
        return self.path.is_dir()

    @property
    def named(self) -> pathlib.Path:
        """By what it is found again: on any machine, where the package brings it along."""
        return self.path if self.preset is None else pathlib.Path(self.preset)


def locate(path: str | os.PathLike) -> Location:
    """Find the network that a path names.

    Raises:
        InputError: there is none, or its provenance cannot be read.
    """
    text, path = os.fspath(path), expand(path)
    try:
        there = os.path.lexists(path)
        if presets.is_named(text) and not there:
            return _locate_preset(presets.folder_of(text), text)
        form = None if there else forms.form_of(text)
        if form is not None and form.kind in (forms.APPLICATION, forms.FUNCTION):
            return Location(pathlib.Path(text), form.label, {}, text)
        os.fsencode(path).decode("utf-8")
        return _locate(path)
    except UnicodeError as error:
        raise InputError(f"{path!r} is not UTF-8, as TensorFlow needs it; rename it") from error
    except OSError as error:
        raise InputError(f"{path} cannot be looked into ({error.strerror})") from error


def _locate(path: pathlib.Path) -> Location:
    if not path.exists():
        raise InputError(
            f"{path} does not exist; name a saved network's folder, a finished run, a .keras or .h5"
            " file, zoo:NAME, app:NAME or module:function"
        )
    preset = presets.folder_at(path)
    if preset is not None:
        return _locate_preset(preset)
    if path.is_file():
        if path.suffix.lower() not in KERAS_FILES:
            raise InputError(f"{path} is neither a .keras or .h5 file nor a SavedModel's folder")
        return Location(path, path.stem, {})
    place = path.resolve()
    if (path / "saved_model.pb").is_file():
        own = place.parent.name if version_of(place.name) is not None else place.name
        return Location(path, own or str(place), _recorded(path))
    if (path / "config.json").exists():
        return _locate_run(path)
    versions = saved_versions(path)
    if not versions:
        raise InputError(
            f"{path} is not a saved network: it holds no saved_model.pb, no numbered version with "
            "one, and no finished run"
        )
    newest = path / str(versions[-1])
    return Location(newest, place.name or str(place), _recorded(newest))


def version_of(name: str) -> int | None:
    """Return the version that a folder's name is, None where it is none: "01", "1e3", "²"."""
    if not re.fullmatch(r"0|[1-9][0-9]{0,18}", name) or int(name) > _LARGEST_VERSION:
        return None
    return int(name)


def saved_versions(base: pathlib.Path) -> list[int]:
    """Return the versions in a folder of the TF Serving layout, ascending."""
    if not base.is_dir():
        return []
    versions = {version_of(folder.name): folder for folder in base.iterdir()}
    return sorted(
        version
        for version, folder in versions.items()
        if version is not None and (folder / "saved_model.pb").is_file()
    )


def _recorded(version: pathlib.Path) -> dict:
    """Return what is recorded of a SavedModel, nothing where it is not ours."""
    try:
        return records.read_values(version / PROVENANCE_FILE, Provenance, "restore or remove it")
    except FileNotFoundError:
        return {}


def _locate_run(path: pathlib.Path) -> Location:
    config = read_config(path)
    try:
        msgspec.convert(config.flags, Recipe)
    except msgspec.ValidationError as error:
        raise InputError(f"{path / CONFIG}: flags.{records.in_words(error)}; restore it") from error
    if not (path / "model.keras").is_file():
        raise InputError(f"{path} is a run that is not finished; start its bin/train command again")
    known = {key: config.as_json()[key] for key in ("dataset", "seed")}
    known = {"recipe": config.flags, **known, **learned_from(config.as_json())}
    if config.held_out and (path / METRICS).is_file():
        chosen = read_metrics(path).as_json().get("chosen")
        known |= {"chosen": chosen} if chosen else {}
    return Location(path / "model.keras", path.resolve().name, known)


def _locate_preset(folder: pathlib.Path, text: str | None = None) -> Location:
    known = presets.read(folder, Provenance)
    return Location(presets.weights(folder), folder.resolve().name, known, preset=text)


def learned_from(config: Mapping) -> dict[str, list]:
    """Return what a network's provenance says of the networks whose images it was trained with.

    Args:
        config: content of the run's config.json.

    Returns:
        {"learned_from": records of name, path and weights hash}; {} where there is none.
    """
    kinds = (config.get(kind) or {} for kind in ("cascade", "ensemble"))
    found = [source for kind in kinds for source in kind.get("sources", ())]
    return {"learned_from": found} if found else {}


def networks_in(network) -> Sequence:
    """Return the members of what may be an ensemble, a list or a text a+b, or the network alone."""
    if isinstance(network, list | tuple):
        return network
    return members_of(network) if is_path(network) else (network,)


def members_of(text: str | os.PathLike) -> tuple[str, ...]:
    """Return the networks that a text such as a+b+c names: an ensemble's members, or one.

    Where there is a file or folder of that very name, it is meant.

    Raises:
        InputError: a member is missing, or named twice.
    """
    text = os.fspath(text)
    if "+" not in text or os.path.lexists(expand(text)):
        return (text,)
    members = tuple(member.strip() for member in text.split("+"))
    if not all(members):
        raise InputError(
            f"{text} does not exist, and names no ensemble, in which a network stands on each "
            "side of every +, as in saved/a+saved/b"
        )
    twice = named_twice(members)
    if twice is not None:
        raise InputError(f"{text} names {twice} twice; name each member of an ensemble once")
    return members


def dataset_name(provenance: Mapping) -> str | None:
    """Return the name of the dataset that a network learned, None where it is not recorded."""
    dataset = provenance.get("dataset")
    name = dataset.get("name") if isinstance(dataset, Mapping) else dataset
    return name if isinstance(name, str) else None


def weights_hash(arrays: Iterable[np.ndarray]) -> str:
    """Return a SHA-256 of a network's weights that does not depend on their order or names.

    A network has the same hash in a run, in a .keras file and in a SavedModel.
    """
    import numpy as np

    digests = []
    for array in map(np.asarray, arrays):
        digest = hashlib.sha256(f"{array.dtype} {array.shape}".encode())
        digest.update(np.ascontiguousarray(array).tobytes())
        digests.append(digest.digest())
    return hashlib.sha256(b"".join(sorted(digests))).hexdigest()


def shapes_hash(arrays: Iterable) -> str | None:
    """Return a SHA-256 of the shapes of a network's weights, None where it has none.

    Networks of one architecture share it, in whatever form they are, and have learned whatever.
    """
    shapes = sorted(tuple(map(int, array.shape)) for array in arrays)
    return hashlib.sha256(str(shapes).encode()).hexdigest() if shapes else None


def package_versions() -> dict[str, str]:
    """Return what a record says the numbers were computed with; imports TensorFlow."""
    import keras
    import numpy as np
    import tensorflow as tf

    return {
        "python": platform.python_version(),
        "numpy": np.__version__,
        "tensorflow": tf.__version__,
        "keras": keras.__version__,
    }
