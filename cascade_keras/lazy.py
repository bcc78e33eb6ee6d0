"""Packages whose names are imported on first use, so that ``--help`` needs no TensorFlow."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable, Mapping


def exports(package: str, homes: Mapping[str, str]) -> tuple[Callable, Callable]:
    """Return ``__getattr__`` and ``__dir__`` of a package that offers its modules' names lazily.

    Args:
        package: its ``__name__``.
        homes: for each name the module below the package that defines it; a module that is offered
            itself has an empty home.
    """

    def getattr_(name: str):
        if name not in homes:
            raise AttributeError(f"module {package!r} has no attribute {name!r}")
        module = importlib.import_module(f"{package}.{homes[name] or name}")
        found = getattr(module, name) if homes[name] else module
        setattr(sys.modules[package], name, found)
        return found

    return getattr_, lambda: sorted(homes)
