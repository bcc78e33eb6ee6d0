"""Where a saved network lies and where it comes from; needs no TensorFlow.

A network can be named by

    saved/NAME         a folder of versions in the TF Serving layout: the largest version is meant
    saved/NAME/3       one version, or any other SavedModel
    runs/NAME          a finished run
    PATH.keras         a Keras model

``assets.extra/cascade_keras.json`` in a version says what the network is: its provenance.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import pathlib
import platform
from collections.abc import Iterable, Mapping, Sequence

import numpy as np

from cascade_keras.errors import InputError, about
from cascade_keras.files import expand

PROVENANCE_FILE = pathlib.Path("assets.extra", "cascade_keras.json")


@dataclasses.dataclass(frozen=True)
class Location:
    """A network on disk.

    Attributes:
        path: the SavedModel's folder or the .keras file.
        name: what people call it: the folder that holds its versions, the run, or the file.
        provenance: what is recorded of it; empty where nothing is.
    """

    path: pathlib.Path
    name: str
    provenance: dict

    @property
    def is_saved_model(self) -> bool:
        """Whether it is a SavedModel rather than a .keras file."""
        return self.path.is_dir()


def locate(path: str | pathlib.Path) -> Location:
    """Find the network that a path names.

    Raises:
        InputError: there is none, or its provenance cannot be read.
    """
    path = expand(path)
    if not path.exists():
        raise InputError(
            f"{path} does not exist; name a saved network's folder, a finished run or a .keras file"
        )
    if path.is_file():
        if path.suffix != ".keras":
            raise InputError(f"{path} is neither a .keras file nor a SavedModel's folder")
        return Location(path, path.stem, {})
    if (path / "saved_model.pb").is_file():
        name = path.resolve().parent.name if path.name.isdigit() else path.resolve().name
        return Location(path, name, read_json(path / PROVENANCE_FILE))
    if (path / "config.json").is_file():
        return _locate_run(path)
    versions = saved_versions(path)
    if not versions:
        raise InputError(
            f"{path} is not a saved network: it holds no saved_model.pb, no numbered version with "
            "one, and no finished run"
        )
    newest = path / str(versions[-1])
    return Location(newest, path.resolve().name, read_json(newest / PROVENANCE_FILE))


def saved_versions(base: pathlib.Path) -> list[int]:
    """Return the versions in a folder of the TF Serving layout, ascending."""
    if not base.is_dir():
        return []
    return sorted(
        int(folder.name)
        for folder in base.iterdir()
        if folder.name.isdecimal() and (folder / "saved_model.pb").is_file()
    )


def _locate_run(path: pathlib.Path) -> Location:
    config = read_json(path / "config.json")
    if not (path / "model.keras").is_file():
        raise InputError(f"{path} is a run that is not finished; start its bin/train command again")
    try:
        known = {"recipe": config["flags"], "dataset": config["dataset"], "seed": config["seed"]}
    except KeyError as error:
        raise InputError(f"{path / 'config.json'}: has no {error}; it is not a run's") from error
    return Location(path / "model.keras", path.resolve().name, known)


def dataset_name(provenance: Mapping) -> str | None:
    """Return the name of the dataset that a network learned, None where it is not recorded."""
    dataset = provenance.get("dataset")
    name = dataset.get("name") if isinstance(dataset, Mapping) else dataset
    return name if isinstance(name, str) else None


def recorded_dataset(networks: Mapping[str, Sequence]) -> str | None:
    """Return the dataset that the first network learned of which that is recorded.

    Args:
        networks: for each setting its networks: paths, or networks in memory, of which those say
            something that have a ``provenance``.

    Raises:
        InputError: one of the networks is not there.
    """
    for setting, paths in networks.items():
        for path in paths:
            with about(setting):
                known = locate(path) if isinstance(path, str | os.PathLike) else path
            name = dataset_name(getattr(known, "provenance", {}))
            if name:
                return name
    return None


def read_json(file: pathlib.Path) -> dict:
    """Return a JSON object that a file holds, an empty one where there is no file.

    Raises:
        InputError: it cannot be read, or holds something else.
    """
    if not file.exists():
        return {}
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise InputError(f"{file}: cannot be read ({error})") from error
    if not isinstance(content, dict):
        raise InputError(f"{file}: must hold a JSON object")
    return content


def weights_hash(arrays: Iterable[np.ndarray]) -> str:
    """Return a SHA-256 of a network's weights that does not depend on their order or names.

    A network has the same hash in a run, in a .keras file and in a SavedModel.
    """
    digests = []
    for array in map(np.asarray, arrays):
        digest = hashlib.sha256(f"{array.dtype} {array.shape}".encode())
        digest.update(np.ascontiguousarray(array).tobytes())
        digests.append(digest.digest())
    return hashlib.sha256(b"".join(sorted(digests))).hexdigest()


def package_versions() -> dict[str, str]:
    """Return what a record says the numbers were computed with; imports TensorFlow."""
    import keras
    import tensorflow as tf

    return {
        "python": platform.python_version(),
        "numpy": np.__version__,
        "tensorflow": tf.__version__,
        "keras": keras.__version__,
    }
