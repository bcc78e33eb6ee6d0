"""What every program shares: parsing, help, and errors as one line with exit code 2."""

from __future__ import annotations

import logging
import os
import signal
import sys
from collections.abc import Callable, Sequence
from typing import TypeVar

from absl import flags

from cascade_keras import interrupts
from cascade_keras.cli.flags import parse
from cascade_keras.errors import InputError, one_line, shown
from cascade_keras.settings import Settings, flag_of
from cascade_keras.workers import from_tf_config

S = TypeVar("S", bound=Settings)

BAD_INPUT = 2


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
    # Where /tmp is full TensorFlow says of each function that it is not converted; none need be.
    logging.getLogger("tensorflow").setLevel(logging.ERROR)
    try:
        if {"--help", "-help", "-h"} & set(argv[1:]):
            print(f"{description.strip()}\n\nFlags:\n{values.get_help()}", flush=True)
            return 0
        rest = parse(values, argv)
        if rest:
            raise InputError(
                f"unexpected argument {shown(rest[0])}; flags are written --name=value"
            )
        with interrupts.working():
            status = program(values) or 0
            sys.stdout.flush()
        return status
    except InputError as error:
        # A library names its settings; here they are flags.
        message = f"--{flag_of(error.setting)}: {error.message}" if error.setting else error.message
    except flags.Error as error:
        message = str(error).replace("flag --", "--", 1)
    except KeyboardInterrupt as error:
        number = interrupts.ended_by(error)
        print(f"{name}: {interrupts.WORDS[number]}", file=sys.stderr)
        return 128 + number
    except BrokenPipeError:
        # Who reads the output has seen enough: `bin/train --help | head`.
        _drop_output()
        return 128 + signal.SIGPIPE
    except OSError as error:
        # A full disk, a directory without permission: nothing that a traceback would explain.
        message = f"{error.filename}: {error.strerror}" if error.filename else str(error)
        _drop_output()
    print(f"{name}: {one_line(message)}", file=sys.stderr)
    return BAD_INPUT


def of_cluster(settings: S) -> S:
    """Return settings with the worker that ``TF_CONFIG`` makes of this process, if none is said.

    Raises:
        InputError: ``TF_CONFIG`` cannot be read.
    """
    worker = from_tf_config() if settings.worker is None else None
    if worker is None:
        return settings
    print(f"worker {worker}, as TF_CONFIG says; --worker=0/1 for all of the work", flush=True)
    return settings.replace(worker=str(worker))


def _drop_output() -> None:
    """Let Python not complain at its end of output that cannot be written."""
    try:
        sys.stdout.flush()
    except OSError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
