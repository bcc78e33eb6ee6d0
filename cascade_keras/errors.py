"""What a user got wrong, said in one line."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterator

# What TensorFlow and Keras put around what went wrong.
_NOISE = re.compile(
    r"Graph execution error|Detected at node|<stack traces|File \"|Exception encountered when"
)
_PLACE = re.compile(r"\{\{function_node [^}]*\}\}\s*|\x1b\[\d*m")


class InputError(ValueError):
    """An argument, setting, file or dataset that cannot be used; its text is one line for the user.

    It says what was wrong and what would be right. Programs print it after their own name, with
    the setting written as its flag, and exit with code 2.

    Attributes:
        message: without the setting's name.
        setting: the setting or argument that it is about, None where it is about none.
    """

    # TensorFlow's AutoGraph makes other errors of those that are raised where a graph is built.
    ag_pass_through = True

    def __init__(self, message: str, setting: str | None = None):
        super().__init__(message)
        self.message = message
        self.setting = setting

    def __str__(self) -> str:
        return f"{self.setting}: {self.message}" if self.setting else self.message


class TrainingDiverged(InputError):
    """A training whose loss or weights are no longer finite numbers.

    Attributes:
        step: the one after which they were found not to be.
    """

    def __init__(self, message: str, step: int):
        super().__init__(message)
        self.step = step


def shown(value: object, most: int = 80) -> str:
    """Return a value as a message shows it: on one line, and not longer than a line."""
    try:
        text = repr(value)
    except ValueError:  # Python writes no whole number of more than 4,300 digits
        text = "a number of thousands of digits"
    return text if len(text) <= most else f"{text[: most - 3]}..."


def one_line(message: str, most: int = 1000) -> str:
    """Return a message as a program prints it: on one line, with control characters escaped."""
    line = "".join(
        character if character.isprintable() else character.encode("unicode_escape").decode()
        for character in " ".join(message.split())
    )
    return line if len(line) <= most else f"{line[: most // 2]} ... {line[-most // 2 + 5 :]}"


def first_line(error: Exception) -> str:
    """Return the first line that says something, of libraries that explain at length."""
    lines = (_PLACE.sub("", line).strip() for line in str(error).splitlines())
    telling = (line for line in lines if line and not _NOISE.match(line))
    return next(telling, type(error).__name__)[:160]


@contextlib.contextmanager
def about(setting: str) -> Iterator[None]:
    """Say of every ``InputError`` inside that names no setting that it is about this one."""
    try:
        yield
    except InputError as error:
        if error.setting is not None:
            raise
        raise InputError(error.message, setting) from error
