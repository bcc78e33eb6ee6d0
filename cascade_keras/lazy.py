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


def resolve(named, package: str):
    """Return what "module:name" below a package names, imported now; anything else is itself.

    Rows of tables name their functions so, as the tables are read without TensorFlow.
    """
    if not isinstance(named, str):
        return named
    module, _, name = named.partition(":")
    return getattr(importlib.import_module(f"{package}.{module}"), name)


def keras_finds(package: str, homes: Mapping[str, str]) -> None:
    """Let Keras find a package's registered classes in files, without importing them before.

    Keras is not imported for it either: the names are registered as soon as somebody does.

    Args:
        package: its ``__name__``, under which the classes are registered.
        homes: for each class the module below the package that defines and registers it.
    """

    def register() -> None:
        known = sys.modules["keras"].saving.get_custom_objects()
        for name, home in homes.items():
            known.setdefault(f"{package}>{name}", _Later(f"{package}.{home}", name))

    if "keras" in sys.modules:
        register()
    else:
        sys.meta_path.insert(0, _AfterImport("keras", register))


class _Later:
    """Stands for a class until Keras makes an instance of it from a file."""

    def __init__(self, module: str, name: str):
        self.module = module
        self.__name__ = name

    def from_config(self, *args, **kwargs):
        cls = getattr(importlib.import_module(self.module), self.__name__)
        return cls.from_config(*args, **kwargs)


class _AfterImport:
    """A finder that calls a function once, when a module has been imported.

    wrapt's ``when_imported`` does this too, but importing it takes half as long as ``--help``.
    """

    def __init__(self, name: str, act: Callable[[], None]):
        self.name = name
        self.act = act

    def find_spec(self, name: str, path=None, target=None):
        """Find the module as others do, and have the function called after it is executed."""
        if name != self.name:
            return None
        finders = (finder for finder in sys.meta_path if finder is not self)
        found = (finder.find_spec(name, path, target) for finder in finders)
        spec = next((spec for spec in found if spec is not None), None)
        if spec is not None and spec.loader is not None:
            execute = spec.loader.exec_module

            def exec_module(module) -> None:
                execute(module)
                if self in sys.meta_path:
                    sys.meta_path.remove(self)
                    self.act()

            spec.loader.exec_module = exec_module
        return spec
