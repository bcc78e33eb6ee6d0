"""Whole Keras models from .keras and .h5 files, whose Python code is never run, trusted or not.

Those of presets, which are a file of the network and one of its weights, too.
"""

from __future__ import annotations

import json
import os
import pathlib
import warnings
import zipfile

import h5py
import keras

# Importing the layers makes them known to Keras's loader.
from cascade_keras import layers, own_code, presets, records  # noqa: F401
from cascade_keras.errors import InputError, first_line
from cascade_keras.records import MOST_BYTES


def load(path: str | os.PathLike) -> keras.Model:
    """Load what a .keras file holds, which may be a trainer, or the network of a .h5 file.

    Of a preset it is the weights file that is named, see ``provenance.locate``.

    What it was compiled with is left out.

    Raises:
        InputError: it is no such file, is damaged, or holds Python code, such as that of a Lambda
            layer.
    """
    from cascade_keras import training  # noqa: F401  checkpoints hold the whole trainer

    if str(path).lower().endswith(".keras"):
        _check_keras_file(path)
        return _loaded(path)
    preset = presets.folder_at(path)
    if preset is not None:
        return _of_preset(preset)
    _check_h5_file(path)
    return _network(_loaded(path))


def load_network(path: str | os.PathLike) -> keras.Model:
    """Load a network as ``load`` does; of a whole trainer, its network."""
    return _network(load(path))


def _network(model: keras.Model) -> keras.Model:
    return getattr(model, "network", model)


def _loaded(path: str | os.PathLike) -> keras.Model:
    try:
        with warnings.catch_warnings():
            # Keras warns of every layer that the file lacks before it gives up.
            warnings.simplefilter("ignore")
            return keras.models.load_model(path, compile=False, safe_mode=True)
    except Exception as error:  # Keras, h5py and zipfile each raise their own
        reason = own_code.unknown_class(error) or first_line(error)
        raise InputError(f"{path} cannot be loaded ({reason})") from error


def _of_preset(folder: pathlib.Path) -> keras.Model:
    """Return the network of a preset's two files, of which the weights were compared before."""
    file = folder / presets.CONFIG
    config = records.read(file, records.Values)
    if _has_lambda(config):
        raise _code_in(file)
    try:
        network = keras.saving.deserialize_keras_object(config, safe_mode=True)
        network.load_weights(folder / presets.WEIGHTS)
    except Exception as error:  # Keras and h5py each raise their own
        reason = own_code.unknown_class(error) or first_line(error)
        raise InputError(f"{folder} cannot be loaded ({reason})") from error
    return network


def _check_keras_file(path: str | os.PathLike) -> None:
    """Refuse a file that is no whole .keras file, or that holds Python code."""
    try:
        with zipfile.ZipFile(path) as archive:
            names = archive.namelist()
            damaged = archive.testzip()
            described = "config.json" in names
            if described and archive.getinfo("config.json").file_size > MOST_BYTES:
                raise InputError(f"{path}: its config.json is larger than {MOST_BYTES >> 20} MB")
            config = archive.read("config.json") if described else b""
    except InputError:
        raise
    except Exception as error:  # zipfile and zlib each raise their own
        raise InputError(
            f"{path} cannot be loaded: it is no .keras file, or was cut short "
            f"({first_line(error)}); copy it, or save it, again"
        ) from error
    if not described or not any(name.startswith("model.weights") for name in names):
        raise InputError(f"{path} cannot be loaded: it is a zip archive, but not of a Keras model")
    if damaged:
        raise InputError(
            f"{path} cannot be loaded: {damaged} in it is damaged; copy it, or save it, again"
        )
    try:
        json.loads(config)
    except (ValueError, RecursionError) as error:
        raise InputError(
            f"{path} cannot be loaded: its config.json is damaged ({first_line(error)})"
        ) from error
    if b"__lambda__" in config:
        raise _code_in(path)


def _check_h5_file(path: str | os.PathLike) -> None:
    """Refuse a file that is no .h5 file of a whole model, or that holds Python code."""
    try:
        with h5py.File(path, "r") as opened:
            config = opened.attrs.get("model_config")
    except OSError as error:
        raise InputError(
            f"{path} cannot be loaded: it is no HDF5 file, or was cut short ({first_line(error)})"
        ) from error
    if config is None:
        raise InputError(
            f"{path} holds no whole model; save it by model.save, or name a network and the file "
            "by init_from"
        )
    config = config.decode() if isinstance(config, bytes) else str(config)
    try:
        has_lambda = _has_lambda(json.loads(config))
    except (ValueError, RecursionError) as error:
        raise InputError(f"{path} cannot be loaded ({first_line(error)})") from error
    if has_lambda:
        raise _code_in(path)


def _has_lambda(content) -> bool:
    """Whether a model's configuration has a Lambda layer, however deep."""
    if isinstance(content, list):
        return any(map(_has_lambda, content))
    if not isinstance(content, dict):
        return False
    own = content.get("class_name") in ("Lambda", "__lambda__")
    return own or any(map(_has_lambda, content.values()))


def _code_in(path: str | os.PathLike) -> InputError:
    return InputError(
        f"{path} has a Lambda layer, which is Python code and is never run from a file; save "
        "the network without it"
    )
