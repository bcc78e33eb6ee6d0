"""Ctrl-C and SIGTERM: a program says so in one line and ends with 128 + the signal, at any moment.

In the middle of a program's work they are an exception, ``Interrupted``, so that ``finally`` blocks
clean up. Before and after it, and while a module is imported, the process ends at once: an import
may take the exception for a module that is missing, or Python may print and forget it.

Only a program's own process is told so, by ``handle``; for users of the library nothing changes.
"""

from __future__ import annotations

import contextlib
import os
import signal
import sys
from collections.abc import Iterator

WORDS = {signal.SIGINT: "interrupted", signal.SIGTERM: "terminated"}


class Interrupted(KeyboardInterrupt):
    """A signal asked the program to end.

    Attributes:
        number: the signal's.
    """

    def __init__(self, number: int):
        super().__init__(number)
        self.number = signal.Signals(number)


class _State:
    """What ``handle`` was told of this process, and what has happened since."""

    program = ""
    descriptor = 2  # of standard error, also while it is led elsewhere, see startup.py
    working = False
    asked: int | None = None


def handle(program: str) -> None:
    """Let this process end as a program of this name does; to be called first of all."""
    _State.program, _State.descriptor = program, os.dup(2)
    sys.unraisablehook = _on_forgotten
    for number in WORDS:
        signal.signal(number, _on_signal)


@contextlib.contextmanager
def working() -> Iterator[None]:
    """Make signals exceptions as long as the block runs.

    Raises:
        Interrupted: also where the block has taken one for something else.
    """
    _State.working, _State.asked = True, None
    try:
        yield
    finally:
        _State.working = False
        if _State.asked is not None:
            raise Interrupted(_State.asked)


def ended_by(error: KeyboardInterrupt) -> signal.Signals:
    """Return the signal that an exception stands for."""
    return getattr(error, "number", signal.SIGINT)


def end(number: int) -> None:
    """End the process, with the line that says why."""
    os.write(_State.descriptor, f"{_State.program}: {WORDS[number]}\n".encode())
    os._exit(128 + number)


def over(status: int) -> None:
    """Let nothing change a program's exit code any more, now that its work is done.

    One that was stopped ends here: it does not wait for threads that libraries have started.
    """
    for number in WORDS:
        signal.signal(number, signal.SIG_IGN)
    if status > 128:
        sys.stderr.flush()
        os._exit(status)


def _on_signal(number: int, frame) -> None:
    if not _State.working or _is_importing(frame):
        end(number)
    _State.asked = number
    raise Interrupted(number)


def _is_importing(frame) -> bool:
    while frame is not None:
        if frame.f_code.co_filename.startswith("<frozen importlib"):
            return True
        frame = frame.f_back
    return False


def _on_forgotten(unraisable) -> None:
    """End where Python would only print the exception: in destructors and weak references."""
    if isinstance(unraisable.exc_value, KeyboardInterrupt):
        end(ended_by(unraisable.exc_value))
    sys.__unraisablehook__(unraisable)
