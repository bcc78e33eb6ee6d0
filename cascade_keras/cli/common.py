"""What every program shares: parsing, help, and errors as one line with exit code 2."""

from __future__ import annotations

import contextlib
import platform
import signal
import sys
import time
from collections.abc import Callable, Iterator, Sequence

from absl import flags

from cascade_keras.errors import InputError

BAD_INPUT = 2


def comma_list(text: str) -> list[str]:
    """Split a comma-separated flag value, dropping blanks."""
    return [part.strip() for part in text.split(",") if part.strip()]


def check(values: flags.FlagValues, name: str, valid: Callable, expected: str) -> None:
    """Add a validator to a flag whose message says what would be right."""

    def validator(value) -> bool:
        if value is None or valid(value):
            return True
        raise flags.ValidationError(f"must be {expected}, got {value!r}")

    flags.register_validator(name, validator, flag_values=values)


def progress_bar():
    """Return a rich progress bar on standard error that is nothing but on a terminal."""
    import rich.console
    import rich.progress

    console = rich.console.Console(stderr=True)
    return rich.progress.Progress(
        *rich.progress.Progress.get_default_columns(),
        rich.progress.MofNCompleteColumn(),
        console=console,
        transient=True,
        # In a log file a bar is noise, and even an empty one a blank line.
        disable=not console.is_terminal,
    )


@contextlib.contextmanager
def show_progress(what: str, total: int, seconds: float = 15) -> Iterator[Callable[[int], None]]:
    """Show how far a long piece of work is, and the time left, on standard error.

    A bar on a terminal; elsewhere a line, at most one in so many seconds.

    Yields:
        A function to be called with the number of images done, first with those done before.
    """
    bar = progress_bar()
    console = bar.console
    task = bar.add_task(what, total=total)
    started = written = time.monotonic()
    before = None

    def show(done: int) -> None:
        nonlocal before, written
        bar.update(task, completed=done)
        before = done if before is None else before
        now = time.monotonic()
        if console.is_terminal or done == before or now - written < seconds:
            return
        left = (total - done) * (now - started) / (done - before)
        print(f"{what} {done}/{total}  {left / 60:.1f} min left", file=console.file, flush=True)
        written = now

    with bar:
        yield show


def run_program(
    name: str,
    description: str,
    values: flags.FlagValues,
    program: Callable[[flags.FlagValues], int | None],
    argv: Sequence[str] | None = None,
) -> int:
    """Parse the flags, run the program and return its exit code.

    TensorFlow is imported by ``program``, after the flags are known to be good: ``--help`` and bad
    flags answer at once.

    Args:
        name: of the program, which begins every error line.
        description: printed above the flags by ``--help``.
        values: the program's own flags; ``--flagfile`` works with them.
        program: the rest; may raise ``InputError``.
        argv: with the program's path first; ``sys.argv`` when None.
    """
    argv = list(sys.argv if argv is None else argv)
    if {"--help", "-help", "-h"} & set(argv[1:]):
        print(f"{description.strip()}\n\nFlags:\n{values.get_help()}")
        return 0
    try:
        rest = values(argv)[1:]
        if rest:
            raise InputError(f"unexpected argument {rest[0]!r}; flags are written --name=value")
        return program(values) or 0
    except InputError as error:
        # A library names its settings; here they are flags.
        flag = f"--{error.setting}: " if error.setting else ""
        message = " ".join(f"{flag}{error.message}".split())
    except flags.Error as error:
        message = " ".join(str(error).replace("flag --", "--", 1).split())
    except KeyboardInterrupt:
        print(f"{name}: interrupted", file=sys.stderr)
        return 128 + signal.SIGINT
    except OSError as error:
        # A full disk, a directory without permission: nothing that a traceback would explain.
        message = f"{error.filename}: {error.strerror}" if error.filename else str(error)
    print(f"{name}: {message}", file=sys.stderr)
    return BAD_INPUT


def package_versions() -> dict[str, str]:
    """Return what a record says the numbers were computed with; imports TensorFlow."""
    import keras
    import numpy as np
    import tensorflow as tf

    return {
        "python": platform.python_version(),
        "numpy": np.__version__,
        "tensorflow": tf.__version__,
        "keras": keras.__version__,
    }
