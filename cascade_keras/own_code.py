"""Modules and functions of the user's own, named by texts such as ``my_module:make``.

Python code of the user's is imported because the user names it, never because a file does. What
goes wrong inside it is said in one line with the place where it went wrong. Needs no TensorFlow.
"""

from __future__ import annotations

import contextlib
import importlib
import importlib.util
import os
import re
import sys
import traceback
from collections.abc import Callable, Iterator, Sequence
from types import ModuleType

from cascade_keras.errors import InputError, first_line, shown

_NAME = r"[^\W\d]\w*"
_MODULE = rf"{_NAME}(\.{_NAME})*"


def names_function(text: str) -> bool:
    """Whether a text has the form ``module:function``."""
    return re.fullmatch(rf"{_MODULE}:{_MODULE}", text) is not None


def check_module(name: str, setting: str) -> None:
    """Refuse a module that is not there, without importing it.

    Modules are found as ``python -m`` finds them: the current directory counts.

    Raises:
        InputError: it is no module's name, or there is no such module.
    """
    if not re.fullmatch(_MODULE, name):
        raise InputError(f"must be a module's name such as my_module, got {shown(name)}", setting)
    _find_here()
    first = name.partition(".")[0]
    try:
        found = first in sys.modules or importlib.util.find_spec(first) is not None
    except (ImportError, ValueError):
        found = False
    if not found:
        raise InputError(
            f"there is no module {shown(first)} in the current directory or among the installed "
            "ones",
            setting,
        )


def import_module(name: str, setting: str) -> ModuleType:
    """Import a module by its name.

    Raises:
        InputError: it is not there, or its code raises an exception.
    """
    check_module(name, setting)
    with running(f"the module {name} cannot be imported", setting):
        return importlib.import_module(name)


def import_all(names: Sequence[str], setting: str = "import_") -> None:
    """Import modules, for the classes, datasets or networks that they register.

    Raises:
        InputError: as ``import_module``.
    """
    for name in names:
        import_module(name, setting)


def function(text: str, setting: str) -> Callable:
    """Return the function that ``module:function`` names, importing the module.

    Raises:
        InputError: the module cannot be imported, or has no such function.
    """
    if not names_function(text):
        raise InputError(f"must have the form module:function, got {shown(text)}", setting)
    module_name, _, names = text.partition(":")
    module = found = import_module(module_name, setting)
    where = getattr(module, "__file__", None) or module_name
    for name in names.split("."):
        if not hasattr(found, name):
            raise InputError(f"{where} has no {names}", setting)
        found = getattr(found, name)
    if not callable(found):
        raise InputError(f"{names} in {where} is no function", setting)
    return found


@contextlib.contextmanager
def running(what: str, setting: str) -> Iterator[None]:
    """Say of what the user's own code raises inside where it did, in one line.

    Args:
        what: what cannot be done then, in words.
        setting: that named the code.

    Raises:
        InputError: with the error, file and line.
    """
    try:
        yield
    except InputError as error:
        raise InputError(error.message, error.setting or setting) from error
    except (Exception, SystemExit) as error:
        said = f"{type(error).__name__}: {first_line(error)}"
        raise InputError(f"{what} ({said}{_place(error)})", setting) from error


def unknown_class(error: BaseException) -> str | None:
    """Return what Keras says of a class of the user's that it does not know, in words, else None.

    Args:
        error: raised by Keras when it loads a model's file.
    """
    found = re.search(
        r"Could not locate (?:class|function) '(\w+)'|Unknown layer: '(?:\w+>)?(\w+)'", str(error)
    )
    if found is None:
        return None
    name = found[1] or found[2]
    return f"it has the class {name}, which is not known; name the module that has it by import"


def _place(error: BaseException) -> str:
    """Return the last place in the user's code that an error has passed, in words."""
    if isinstance(error, SyntaxError) and error.filename:
        return f", {error.filename} line {error.lineno}"
    frames = [frame for frame in traceback.extract_tb(error.__traceback__) if _is_own(frame)]
    return f", {frames[-1].filename} line {frames[-1].lineno}" if frames else ""


def _is_own(frame: traceback.FrameSummary) -> bool:
    library = f"{os.sep}site-packages{os.sep}"
    here = os.path.dirname(os.path.abspath(__file__)) + os.sep
    standard = os.path.dirname(os.path.abspath(os.__file__)) + os.sep
    file = frame.filename
    return not (file.startswith(("<", here, standard)) or library in file)


def _find_here() -> None:
    """Let modules in the current directory be found, which a program's own folder hides."""
    if not {"", os.getcwd()} & set(sys.path):
        sys.path.insert(0, os.getcwd())
        importlib.invalidate_caches()
