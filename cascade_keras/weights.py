"""Weights files of a trainer: those of its network, which that alone can load, and its own beside.

/layers, /vars          as ``trainer.network.save_weights`` writes them
/adversarial_trainer    as Keras writes those of the trainer: network, optimizer and clock
"""

from __future__ import annotations

import os
import pathlib
import tempfile
from collections.abc import Callable

import h5py
import keras

from cascade_keras import files
from cascade_keras.errors import one_line

_GROUP = "adversarial_trainer"
_SUFFIX = ".weights.h5"

Path = str | os.PathLike


def is_one_file(path: Path) -> bool:
    """Whether a path is that of a whole ``.weights.h5`` file of this machine."""
    return str(path).endswith(_SUFFIX) and "://" not in str(path)


def save(path: Path, network: keras.Model, save_trainer: Callable[[Path], None]) -> None:
    """Write a file of both, as ``save_trainer`` writes that of the trainer alone."""

    def write(temporary: pathlib.Path) -> None:
        network.save_weights(temporary)
        with tempfile.TemporaryDirectory() as folder:
            own = pathlib.Path(folder) / f"own{_SUFFIX}"
            save_trainer(own)
            with h5py.File(own, "r") as source, h5py.File(temporary, "a") as file:
                source.copy(source["/"], file, name=_GROUP)

    files.write_atomically(pathlib.Path(path), write)


def load(
    path: Path, load_network: Callable[[Path], None], load_trainer: Callable[[Path], None]
) -> None:
    """Load a file of ``save``, of a network, or of a trainer of an earlier version.

    Raises:
        OSError: there is none, or it is damaged.
        ValueError: of Keras, where the weights are not those of the network.
    """
    with h5py.File(path, "r") as file:
        if _GROUP in file:
            with tempfile.TemporaryDirectory() as folder:
                own = pathlib.Path(folder) / f"own{_SUFFIX}"
                with h5py.File(own, "w") as target:
                    for name in file[_GROUP]:
                        file.copy(file[_GROUP][name], target, name=name)
                    target.attrs.update(file[_GROUP].attrs)
                return load_trainer(own)
    try:
        return load_network(path)
    except ValueError:
        try:
            return load_trainer(path)
        except ValueError:
            pass
        raise


def reason(error: ValueError) -> str:
    """Return why Keras has not loaded weights, which it tells in paragraphs."""
    _, *example = str(error).split("\n\n")
    text, _, _ = (example[0] if example else str(error)).partition(" Target variable")
    return one_line(text)
