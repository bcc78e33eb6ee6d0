"""Starting a program: the entry points of bin/ and of the installed commands.

A checkout's dependencies may not be installed, and Ctrl-C may come while they are imported.
"""

from __future__ import annotations

import functools
import importlib
import sys

from cascade_keras import interrupts


def run(program: str) -> int:
    """Run a program of ``cli/`` and return its exit code.

    Without the environment, one line says how to make it.
    """
    interrupts.handle(program)
    try:
        status = importlib.import_module(f"cascade_keras.cli.{program}").main()
        interrupts.over(status)
        return status
    except ModuleNotFoundError as error:
        if (error.name or "").startswith("cascade_keras"):
            raise
        print(
            f"{program}: the module {error.name!r} is not installed; run `make demo`, which makes "
            "an environment in .venv, or `pip install .`",
            file=sys.stderr,
        )
        return 2
    except KeyboardInterrupt as error:  # between the program's work and here
        interrupts.end(interrupts.ended_by(error))


train = functools.partial(run, "train")
craft = functools.partial(run, "craft")
evaluate = functools.partial(run, "evaluate")
analyze = functools.partial(run, "analyze")
export = functools.partial(run, "export")
zoo = functools.partial(run, "zoo")
reproduce = functools.partial(run, "reproduce")
prepare_data = functools.partial(run, "prepare_data")
