"""Save a finished run's network for use without this package: TensorFlow Serving, OpenVINO, ...

    export --run=runs/NAME                          into saved/NAME
    export --run=runs/NAME --output=saved/digits

Every export of another network into the same folder becomes its next version; a server that watches
the folder switches to it. A network that is the newest version already is not written again.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence

from absl import flags

from cascade_keras.cli.common import run_program
from cascade_keras.cli.flags import define, read
from cascade_keras.export import ExportSettings, export_run
from cascade_keras.own_code import import_all


def export(values: flags.FlagValues) -> None:
    """Run the program with parsed flags."""
    chosen = read(values, ExportSettings)
    import_all(chosen.import_)
    version, written = export_run(chosen.run, chosen.output)
    if written:
        name = version.parent.resolve().name
        print(f"{version}: serving_default, raw and serve; served as {name}")
    else:
        print(f"{version} is this network already, nothing done")


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point of ``bin/export`` and ``cascade-export``."""
    return run_program("export", __doc__, define(ExportSettings), export, argv)


if __name__ == "__main__":
    sys.exit(main())
