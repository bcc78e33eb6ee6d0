"""Prepare a dataset for TensorFlow Datasets from its official archives, without a network.

    bin/prepare_data --dataset=cifar10 --archive_dir=DIR --data_dir=DIR

The archives keep their official names:

    mnist     train-images-idx3-ubyte.gz, train-labels-idx1-ubyte.gz,
              t10k-images-idx3-ubyte.gz, t10k-labels-idx1-ubyte.gz
    cifar10   cifar-10-binary.tar.gz
    cifar100  cifar-100-binary.tar.gz

They are checked first; an archive that was packed again is used with a warning. A dataset that is
prepared already is left alone.
"""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Sequence

from absl import flags

from cascade_keras.cli.common import run_program
from cascade_keras.cli.flags import define, read
from cascade_keras.data.specs import DATASETS, look_up
from cascade_keras.errors import InputError
from cascade_keras.progress import progress_bar
from cascade_keras.settings import Settings, setting


@dataclasses.dataclass(frozen=True)
class PrepareSettings(Settings):
    """Which dataset is prepared, from where and to where: ``data.archives.prepare``'s arguments."""

    dataset: str | None = setting(None, "The dataset.", choices=lambda: DATASETS)
    archive_dir: str | None = setting(None, "Directory with the official archives.", path=True)
    data_dir: str | None = setting(
        None,
        "Directory to prepare it in, that of TensorFlow Datasets; default: its own.",
        path=True,
    )


def prepare_data(values: flags.FlagValues) -> None:
    """Run the program with parsed flags."""
    chosen = read(values, PrepareSettings)
    if chosen.dataset is None:
        raise InputError(f"must be given, one of {', '.join(DATASETS)}", "dataset")
    if look_up(chosen.dataset).archives is None:
        print(f"{chosen.dataset} needs no preparation: it has no archives")
        return
    if chosen.archive_dir is None:
        raise InputError("must be given, the directory with the official archives", "archive_dir")

    import tensorflow_datasets as tfds

    from cascade_keras.data import archives

    tfds.disable_progress_bar()
    with progress_bar() as progress:
        builder, written = archives.prepare(
            chosen.dataset,
            chosen.archive_dir,
            chosen.data_dir,
            warn=lambda line: print(f"prepare_data: warning: {line}", file=sys.stderr),
            track=progress.track,
        )
    state = "prepared in" if written else "was already prepared, nothing done:"
    print(f"{chosen.dataset} {builder.version} {state} {builder.data_dir}")
    for split, info in builder.info.splits.items():
        print(f"  {split:5} {info.num_examples:6,} images")


def main(argv: Sequence[str] | None = None) -> int:
    """Run the program and return its exit code."""
    return run_program("prepare_data", __doc__, define(PrepareSettings), prepare_data, argv)


if __name__ == "__main__":
    sys.exit(main())
