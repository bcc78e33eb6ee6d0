"""Starting a program from a checkout, whose dependencies may not be installed."""

from __future__ import annotations

import importlib
import signal
import sys


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
