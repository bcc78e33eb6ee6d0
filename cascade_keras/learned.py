"""Which dataset a program works with: the one its settings name, or the one a network has learned.

A saved network records where its images came from, so whoever uses it need not say it again. Only
a person makes Python code run: where the images come from code, who made the network is to be
trusted, or the code is to be named. Needs no TensorFlow where the dataset needs none.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

from cascade_keras import own_code
from cascade_keras.data import specs
from cascade_keras.data.forms import EXPECTED, find
from cascade_keras.data.settings import DataSettings
from cascade_keras.data.specs import DatasetSpec, Origin, look_up
from cascade_keras.errors import InputError, about
from cascade_keras.files import is_path
from cascade_keras.provenance import locate


def dataset_of(
    settings: DataSettings,
    networks: Mapping[str, Sequence],
    *,
    given: DatasetSpec | None = None,
    default: str | None = None,
    trust: bool = False,
) -> DatasetSpec:
    """Return the row of the dataset that settings name, or else that a network has learned.

    Args:
        settings: parts of it count for what a network has learned too, such as ``image_size``.
        networks: for each setting that names networks its networks: paths, or networks in memory,
            of which those say something that have a ``provenance``.
        given: the row of a dataset that the caller has, which settings may only name.
        default: the dataset where neither says one.
        trust: import the modules that a network's record names.

    Raises:
        InputError: there is no dataset, one of the networks is not there, the data are not there,
            or others are given than are named.
    """
    if given is not None:
        if not given.is_called(settings.dataset):
            raise InputError(
                f"is {settings.dataset!r}, the data given are {given.name!r}", "dataset"
            )
        return given
    if settings.dataset is not None:
        return find(settings.origin(), settings.cache_dir)
    learned = learned_by(networks)
    if learned is None and default is not None:
        return find(settings.origin(Origin(default)), settings.cache_dir)
    if learned is None:
        first = next(network for several in networks.values() for network in several)
        named = first if is_path(first) else getattr(first, "name", first)
        raise InputError(
            f"{named} does not record what it learned; name {EXPECTED} {', '.join(specs.DATASETS)}",
            "dataset",
        )
    network, record = learned
    if "origin" not in record:
        row = look_up(record["name"], network)
        return find(settings.origin(Origin(row.name)), settings.cache_dir)
    recorded = Origin.of_json(record["origin"])
    origin = settings.origin(recorded)
    _check_code(origin, settings, network, trust)
    spec = find(origin, settings.cache_dir)
    if dataclasses.replace(origin, data_dir=None) != dataclasses.replace(recorded, data_dir=None):
        return spec
    return dataclasses.replace(spec, fingerprint=record.get("fingerprint"), learned_by=str(network))


def learned_by(networks: Mapping[str, Sequence]) -> tuple[Any, Mapping[str, Any]] | None:
    """Return the first network that says what it learned, and what it says.

    Args:
        networks: as for ``dataset_of``.

    Raises:
        InputError: one of the networks is not there.
    """
    found = None
    for setting, several in networks.items():
        for network in several:
            with about(setting):
                known = locate(network) if is_path(network) else network
            record = getattr(known, "provenance", {}).get("dataset")
            record = {"name": record} if isinstance(record, str) else record
            if found is None and isinstance(record, Mapping) and record.get("name"):
                found = network, record
    return found


def _check_code(origin: Origin, settings: DataSettings, network, trust: bool) -> None:
    """Refuse code that nobody but a file has named."""
    named = set(origin.imports) <= set(settings.import_) or origin.text in specs.DATASETS
    if trust or (named and not own_code.names_function(origin.text)):
        return
    code = origin.text if own_code.names_function(origin.text) else ", ".join(origin.imports)
    raise InputError(
        f"{network} learned what the Python code {code} gives; name the dataset to have it run, or "
        "say trust_source",
        "dataset",
    )
