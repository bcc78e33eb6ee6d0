"""Starting a program: its dependencies are there or one line says so; TensorFlow comes quietly."""

from __future__ import annotations

import importlib
import os
import signal
import sys
import tempfile


def run(program: str) -> int:
    """Run a program of ``cli/`` from a checkout and return its exit code.

    Without the environment, one line says how to make it.
    """
    try:
        main = importlib.import_module(f"cascade_keras.cli.{program}").main
    except ModuleNotFoundError as error:
        if (error.name or "").startswith("cascade_keras"):
            raise
        print(
            f"{program}: the module {error.name!r} is not installed; run `make demo`, which makes "
            "an environment in .venv, or `pip install .`",
            file=sys.stderr,
        )
        return 2
    except KeyboardInterrupt:
        print(f"{program}: interrupted", file=sys.stderr)
        return 128 + signal.SIGINT
    return main()


def import_tensorflow() -> None:
    """Import TensorFlow and look for devices without the log lines of its start.

    They are written to the file descriptor by C++ code that no setting of TensorFlow 2.21 reaches,
    and would bury a program's own lines. They are shown after all if the import fails.
    """
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
    sys.stderr.flush()
    kept = os.dup(2)
    with tempfile.TemporaryFile() as log:
        os.dup2(log.fileno(), 2)
        try:
            import tensorflow as tf

            tf.config.list_physical_devices()
        except BaseException:
            log.seek(0)
            os.write(kept, log.read())
            raise
        finally:
            os.dup2(kept, 2)
            os.close(kept)
