"""Save a finished run's network for use without this package: TensorFlow Serving, OpenVINO, ...

    export --run=runs/NAME                          into saved/NAME
    export --run=runs/NAME --output=saved/digits

Every export of another network into the same folder becomes its next version; a server that watches
the folder switches to it. A network that is the newest version already is not written again.
"""

from __future__ import annotations

import json
import pathlib
import sys
from collections.abc import Sequence

from absl import flags

from cascade_keras.cli.common import run_program
from cascade_keras.data.specs import DATASETS
from cascade_keras.errors import InputError
from cascade_keras.export import check_output, export_saved_model, provenance_of_run
from cascade_keras.provenance import saved_versions
from cascade_keras.runs.run import Run
from cascade_keras.startup import import_tensorflow

NAME = "export"


def build_flags() -> flags.FlagValues:
    """Return the program's flags."""
    values = flags.FlagValues()
    flags.DEFINE_string("run", None, "A finished run's folder, runs/NAME.", flag_values=values)
    flags.DEFINE_string(
        "output",
        None,
        "Folder of the network's versions; its name is the one to be served by; default: "
        "saved/NAME.",
        flag_values=values,
    )
    return values


def _program(values: flags.FlagValues) -> None:
    if not values.run:
        raise InputError("--run must be given, a finished run's folder such as runs/NAME")
    run = Run(pathlib.Path(values.run).expanduser())
    provenance, image_shape = read_run(run)
    output = pathlib.Path(values.output or pathlib.Path("saved", run.path.resolve().name))
    try:
        check_output(output)
    except InputError as error:
        raise InputError(f"--output: {error}") from error

    import_tensorflow()
    network = load_network(run.model_file)
    before = saved_versions(output.expanduser())
    try:
        version = export_saved_model(network, output, provenance, image_shape=image_shape)
    except InputError as error:
        raise InputError(f"--run={run.path} --output={output}: {error}") from error
    if int(version.name) in before:
        print(f"{version} is this network already, nothing done")
    else:
        name = version.parent.resolve().name
        print(f"{version}: serving_default, raw and serve; served as {name}")


def read_run(run: Run) -> tuple[dict, tuple[int, int, int]]:
    """Return a finished run's provenance and the shape of its dataset's stored images.

    Raises:
        InputError: no run there, not finished, or files that cannot be understood.
    """
    if not (run.path / "config.json").is_file():
        problem = "is not a run (no config.json)" if run.path.exists() else "does not exist"
        raise InputError(f"--run: {run.path} {problem}; name a finished run's folder")
    if not run.finished or not run.model_file.is_file():
        raise InputError(
            f"--run: {run.path} is not finished; start its bin/train command again, it goes on"
        )
    config, metrics = (_read(run.path / name) for name in ("config.json", "metrics.json"))
    try:
        provenance = provenance_of_run(config, metrics["steps"], metrics["results"])
        return provenance, DATASETS[config["flags"]["dataset"]].image_shape
    except (KeyError, TypeError) as error:
        raise InputError(
            f"--run: {run.path}: config.json or metrics.json is not bin/train's "
            f"(missing or unknown: {error}); restore it"
        ) from error


def _read(file: pathlib.Path) -> dict:
    try:
        return json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise InputError(f"--run: {file} cannot be read ({error}); restore it") from error


def load_network(file: pathlib.Path):
    """Load the Keras model that a run has left.

    Raises:
        InputError: the file is damaged or holds something else.
    """
    import keras

    from cascade_keras import layers  # noqa: F401  makes them known to Keras's loader

    try:
        return keras.models.load_model(file, compile=False)
    except Exception as error:  # Keras, h5py and zipfile each raise their own
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise InputError(f"--run: {file} cannot be loaded ({reason[:160]}); train again") from error


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point of ``bin/export`` and ``cascade-export``."""
    return run_program(NAME, __doc__, build_flags(), _program, argv)


if __name__ == "__main__":
    sys.exit(main())
