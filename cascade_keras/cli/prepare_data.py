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

import sys
from collections.abc import Sequence

from absl import flags

from cascade_keras.cli.common import run_program
from cascade_keras.data.specs import DATASETS
from cascade_keras.errors import InputError
from cascade_keras.progress import progress_bar

NAME = "prepare_data"


def build_flags() -> flags.FlagValues:
    """Return the program's flags."""
    values = flags.FlagValues()
    flags.DEFINE_enum(
        "dataset", None, list(DATASETS), "The dataset.", required=True, flag_values=values
    )
    flags.DEFINE_string(
        "archive_dir", None, "Directory with the official archives.", flag_values=values
    )
    flags.DEFINE_string(
        "data_dir",
        "",
        "Directory to prepare it in, that of TensorFlow Datasets; empty means its own default.",
        flag_values=values,
    )
    return values


def _program(values: flags.FlagValues) -> None:
    if DATASETS[values.dataset].archives is None:
        print(f"{values.dataset} needs no preparation: it has no archives")
        return
    if not values.archive_dir:
        raise InputError("--archive_dir must be given, the directory with the official archives")

    import tensorflow_datasets as tfds

    from cascade_keras.data import archives

    tfds.disable_progress_bar()
    with progress_bar() as progress:
        builder, written = archives.prepare(
            values.dataset,
            values.archive_dir,
            values.data_dir or None,
            warn=lambda line: print(f"{NAME}: warning: {line}", file=sys.stderr),
            track=progress.track,
        )
    state = "prepared in" if written else "was already prepared, nothing done:"
    print(f"{values.dataset} {builder.version} {state} {builder.data_dir}")
    for split, info in builder.info.splits.items():
        print(f"  {split:5} {info.num_examples:6,} images")


def main(argv: Sequence[str] | None = None) -> int:
    """Run the program and return its exit code."""
    return run_program(NAME, __doc__, build_flags(), _program, argv)


if __name__ == "__main__":
    sys.exit(main())
