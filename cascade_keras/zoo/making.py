"""Making a preset of a finished run and its reports, whole or not at all."""

from __future__ import annotations

import json
import os
import pathlib
import shutil
from collections.abc import Mapping
from typing import Any, NamedTuple

import cascade_keras
from cascade_keras import presets, records
from cascade_keras.errors import InputError, about, shown
from cascade_keras.evaluation.report import Report
from cascade_keras.export import finished
from cascade_keras.files import (
    Lock,
    check_writable,
    clean,
    expand,
    partial_sibling,
    publish,
    write_json,
    write_text,
)
from cascade_keras.records import Count, OpenRecord, Values
from cascade_keras.settings import said_of_logits
from cascade_keras.startup import import_tensorflow
from cascade_keras.zoo import robustness
from cascade_keras.zoo.card import card
from cascade_keras.zoo.settings import ZooSettings

TRAINED_BY = "trained_by.json"


class TrainedBy(OpenRecord):
    """trained_by.json: what a run that was trained elsewhere has beside it.

    Attributes:
        by: such as the device.
        steps: done there, ``of`` all of the run's.
        seconds: that they took.
    """

    by: str = ""
    steps: Count | None = None
    of: Count | None = None
    seconds: float | None = None


class Made(NamedTuple):
    """A preset that is there now: its folder, and whether it was not there before."""

    folder: pathlib.Path
    new: bool


def make(settings: ZooSettings) -> Made:
    """Make a preset of a run and its reports.

    A preset of the same network that is there already is brought up to date. TensorFlow is
    imported once run and reports are known to be good.

    Raises:
        InputError: naming the setting: no finished run, no report, one of another network or other
            data, a name that another network has, or a directory that cannot be written.
        OSError: the disk is full or the like; nothing is left behind.

    Example::

        from cascade_keras import zoo

        zoo.make(zoo.ZooSettings(run="runs/a", report=["reports/a"], name="digits-mine"))
    """
    if settings.run is None:
        raise InputError("must be given, a finished run's folder such as runs/NAME", "run")
    if not settings.report:
        raise InputError("must be given, a report of the run's network", "report")
    with about("run"):
        file, provenance = finished(settings.run)
        trained = _trained_by(file.parent)
        folder = presets.folder_at(file)
    read = [_read(path) for path in settings.report]
    for path, (content, _) in zip(settings.report, read, strict=True):
        _check_dataset(path, content, provenance["dataset"])
    name = settings.name or (folder.name if folder else _default_name(provenance["recipe"]))
    output = presets.FOLDER if settings.output is None else expand(settings.output)
    check_writable(output, "output")
    folder = output / name
    if os.path.lexists(folder) and not presets.is_preset(folder):
        raise InputError(f"{folder} is there and no preset; choose another name", "name")
    import_tensorflow()
    import keras

    from cascade_keras.model_files import load_network
    from cascade_keras.provenance import weights_hash
    from cascade_keras.sources import load_source

    with about("run"):
        network = load_network(file)
        digest = load_source(network, **_told(provenance["recipe"])).weights_hash
    measured = [
        _measured(path, content, digest, seconds)
        for path, (content, seconds) in zip(settings.report, read, strict=True)
    ]
    found = robustness.merged(measured, provenance["results"])
    note, seconds = settings.note, settings.seconds
    outputs = network.output
    metadata = {
        "format": presets.FORMAT,
        "name": name,
        "cascade_keras_version": cascade_keras.__version__,
        "keras_version": keras.__version__,
        "parameter_count": network.count_params(),
        "input_shape": list(network.input_shape[1:]),
        "num_classes": _width(outputs, "logits"),
        "embedding_size": _width(outputs, "embedding"),
        "seconds": trained.seconds if seconds is None else seconds,
        "note": (_words(trained) if note is None else note) or None,
        **_without_places(provenance),
        "weights_hash": weights_hash(weight.numpy() for weight in network.weights),
    }
    output.mkdir(parents=True, exist_ok=True)
    with Lock(output, wait=True):
        clean(output, name)
        return _write(network, folder, metadata, found)


def _write(network, folder: pathlib.Path, metadata: dict, found: robustness.Robustness) -> Made:
    """Write the folder, or what may have changed of it."""
    if presets.is_preset(folder):
        before = presets.read(folder, Values)
        if before.get("weights_hash") != metadata["weights_hash"]:
            raise InputError(f"{folder} is another network; choose another name", "name")
        presets.weights(folder)
        metadata["weights_file"] = before["weights_file"]
        _describe(folder, metadata, found)
        return Made(folder, False)
    partial = partial_sibling(folder)
    try:
        partial.mkdir()
        _save(network, partial, metadata)
        _describe(partial, metadata, found)
        publish(partial, folder)
    except BaseException:
        shutil.rmtree(partial, ignore_errors=True)
        raise
    return Made(folder, True)


def _save(network, folder: pathlib.Path, metadata: dict) -> None:
    """Write the network and its weights, and see to it that they can be read again."""
    import keras

    from cascade_keras import model_files
    from cascade_keras.provenance import weights_hash

    config = keras.saving.serialize_keras_object(network)
    write_text(folder / presets.CONFIG, json.dumps(config, allow_nan=False) + "\n")
    weights = folder / presets.WEIGHTS
    network.save_weights(weights)
    metadata["weights_file"] = presets.digest_of(weights)
    write_json(folder / presets.METADATA, metadata)
    again = model_files.load(weights)
    if weights_hash(weight.numpy() for weight in again.weights) != metadata["weights_hash"]:
        raise InputError("its weights cannot be kept in a file of weights alone", "run")


def _describe(folder: pathlib.Path, metadata: dict, found: robustness.Robustness) -> None:
    write_json(folder / presets.ROBUSTNESS, found.as_json())
    write_text(folder / presets.CARD, card(metadata, found))
    write_json(folder / presets.METADATA, metadata)


def _read(path: str) -> tuple[Values, float]:
    """Return a finished report's content, and the seconds that it took."""
    report = Report(path)
    try:
        _, content = report.read()
        spent = report.seconds()
    except InputError as error:
        raise InputError(error.message, "report") from error
    return content, spent.crafting + spent.classifying


def _check_dataset(path: str, content: Mapping, dataset: Mapping) -> None:
    there = content["dataset"], content["dataset_fingerprint"]
    if there != (dataset["name"], dataset["fingerprint"]):
        other = "" if there[0] != dataset["name"] else ", of another SHA-256"
        raise InputError(
            f"{path} is of {there[0]}{other}; the run learned {dataset['name']}", "report"
        )


def _measured(
    path: str, content: Mapping, weights_hash: str, seconds: float
) -> robustness.Robustness:
    """Return what a report says of the run's network, which must be one of its targets."""
    targets = [network for network in content["networks"] if network["target"]]
    own = [each["name"] for each in targets if each["weights_hash"] == weights_hash]
    if not own:
        names = ", ".join(each["name"] for each in targets)
        raise InputError(f"{path} is of another network ({names}), by its weights", "report")
    with about("report"):
        robustness.check(content, path)
        return robustness.of_report(content, own[0], seconds, where=path)


def _told(recipe: Mapping[str, Any]) -> dict[str, Any]:
    """Return what ``load_source`` is told of a network, by which reports know it."""
    told = {name: recipe.get(name) for name in ("value_range", "logits", "embedding")}
    return {**told, "from_logits": said_of_logits(recipe.get("from_logits"))}


def _trained_by(run: pathlib.Path) -> TrainedBy:
    """Return what is known of the training of a run, or of that of a preset."""
    if presets.is_preset(run):
        known = presets.read(run, Values)
        return TrainedBy(by=known.get("note") or "", seconds=known.get("seconds"))
    try:
        return records.read(run / TRAINED_BY, TrainedBy)
    except FileNotFoundError:
        return TrainedBy()


def _words(trained: TrainedBy) -> str:
    """Return what trained_by.json says, in words."""
    part = trained.steps not in (None, trained.of)
    return f"{trained.by}: {trained.steps:,} of {trained.of:,} steps" if part else trained.by


def _default_name(recipe: Mapping[str, Any]) -> str:
    kinds = [kind for kind in ("cascade", "ensemble") if recipe.get(f"{kind}_source")]
    name = "-".join([recipe["dataset"], recipe["model"], recipe["loss"], *kinds]).lower()
    if not presets.is_name(name):
        raise InputError(f"must be given, as {shown(name)} can be none", "name")
    return name


def _without_places(provenance: Mapping[str, Any]) -> dict[str, Any]:
    """Return a provenance with names for paths of this machine, which mean nothing elsewhere."""
    recipe = dict(provenance["recipe"])
    for key in ("init_from", "model_weights"):
        if recipe.get(key):
            recipe[key] = _named(recipe[key])
    for key in ("cascade_source", "ensemble_source"):
        if recipe.get(key):
            recipe[key] = list(map(_named, recipe[key]))
    learned = [
        {**source, "path": _named(source["path"])} for source in provenance.get("learned_from", ())
    ]
    return {**provenance, "recipe": recipe, **({"learned_from": learned} if learned else {})}


def _named(path: str) -> str:
    """Return the last name of a path; a preset's as it is."""
    return path if presets.is_named(path) else pathlib.PurePath(path).name


def _width(outputs: Mapping | Any, name: str) -> int:
    return int((outputs[name] if isinstance(outputs, Mapping) else outputs).shape[-1])
