"""Datasets of TensorFlow Datasets: on the disk already, or downloaded."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Iterator, Sequence

from cascade_keras.data.specs import DatasetSpec
from cascade_keras.errors import InputError, first_line
from cascade_keras.files import expand


def load_tfds(spec: DatasetSpec, data_dir: str | None) -> Sequence[tuple]:
    """Return a dataset of TensorFlow Datasets, downloaded where it is not prepared yet.

    Raises:
        InputError: it is not there and cannot be downloaded.
    """
    builder = prepared_builder(spec.name, data_dir, spec.archives is not None)
    with _saying_not_ready(spec.name, data_dir, spec.archives is not None), without_warnings():
        # One read of each whole split, in the order on disk: the same order at every load.
        splits = builder.as_dataset(split=["train", "test"], batch_size=-1)
    return [(split["image"].numpy(), split["label"].numpy()) for split in splits]


def prepared_builder(name: str, data_dir: str | None, has_archives: bool = False):
    """Return the builder of a dataset of TensorFlow Datasets, which is on the disk then.

    Raises:
        InputError: it is not there and cannot be downloaded.
    """
    import tensorflow_datasets as tfds

    tfds.disable_progress_bar()
    with _saying_not_ready(name, data_dir, has_archives), without_warnings():
        builder = tfds.builder(name, data_dir=data_dir and str(expand(data_dir)))
        if not builder.is_prepared():
            _reach(builder)
            builder.download_and_prepare()
    return builder


@contextlib.contextmanager
def _saying_not_ready(name: str, data_dir: str | None, has_archives: bool) -> Iterator[None]:
    import tensorflow_datasets as tfds

    try:
        yield
    except Exception as error:  # TFDS raises whatever its downloader, reader or parser meets
        where = data_dir and str(expand(data_dir))
        raise InputError(
            f"{name} is not ready in {where or tfds.core.constants.DATA_DIR} "
            f"({first_line(error)}); connect to a network"
            + (", or use its official archives: bin/prepare_data" if has_archives else ""),
            "data_dir",
        ) from error


@contextlib.contextmanager
def without_warnings() -> Iterator[None]:
    """Keep TensorFlow Datasets from warning of what is not there yet, or else raises an error."""
    logger = logging.getLogger("absl")
    before = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(before)


def _reach(builder) -> None:
    """Ask for the first of a dataset's files: TFDS itself would retry for minutes if offline."""
    import requests

    for url in list(builder.url_infos)[:1]:
        try:
            requests.head(url, timeout=10, allow_redirects=True)
        except requests.RequestException as error:
            raise ConnectionError("not prepared, and its server cannot be reached") from error
