"""Settings: what a user chooses, declared once for Python and for flags.

A class of settings is a frozen dataclass whose fields are made by ``setting``. The field's type,
default, help text and rule are all there is to say about it: the class refuses values that the
rule forbids, whoever gives them, and a program's flags are the fields (cli/flags.py).
"""

from __future__ import annotations

import dataclasses
import functools
import math
import types
import typing
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from cascade_keras.errors import InputError
from cascade_keras.files import expand


class Rule(NamedTuple):
    """What a value must fulfil: a function, and words that complete "must be ..."."""

    holds: Callable[[Any], bool]
    expected: str


POSITIVE = Rule(lambda v: v > 0, "above 0")
NOT_NEGATIVE = Rule(lambda v: v >= 0, "0 or above")
FRACTION = Rule(lambda v: 0 <= v < 1, "in [0, 1)")
EPSILON = Rule(lambda v: 0 <= v <= 255, "in 0..255")
SEED = Rule(lambda v: 0 <= v < 2**31, "in 0..2147483647")
EPSILONS = Rule(lambda v: bool(v) and all(0 <= e <= 255 for e in v), "numbers in 0..255")


def setting(
    default: Any,
    help: str | Callable[[], str],
    rule: Rule | None = None,
    *,
    choices: Callable[[], Sequence] | Sequence | None = None,
    path: bool = False,
    parse: Callable[[str], Any] | None = None,
    operational: bool = False,
) -> Any:
    """Return a dataclass field.

    Args:
        default: its value where none is given.
        help: the flag's help text; a function is asked when needed, as for ``choices``.
        rule: what a value must fulfil; None, where the type allows it, always does, and a number
            that is not finite never.
        choices: what a value, or each of a tuple's, may be; a function is asked when needed, so
            that rows registered later count.
        path: a place on disk; ``~`` is the user's home, in each of a tuple's.
        parse: makes the value of a flag's text, where the type's own way is not the one.
        operational: it does not change what is computed, so it may differ when work goes on.
    """
    metadata = {
        "help": help,
        "rule": rule,
        "choices": choices,
        "path": path,
        "parse": parse,
        "operational": operational,
    }
    return dataclasses.field(default=default, metadata=metadata)


def trust_setting() -> Any:
    """Return the field of every class of settings that names networks: see SECURITY.md."""
    return setting(
        False,
        "You trust whoever made the networks: run a SavedModel though it does more than compute.",
        operational=True,
    )


def choices_of(field: dataclasses.Field) -> tuple | None:
    """Return what a field's value may be, None where it may be anything."""
    choices = field.metadata["choices"]
    return None if choices is None else tuple(choices() if callable(choices) else choices)


class Kind(NamedTuple):
    """A field's type: its class, whether it is a tuple of such, whether None is allowed."""

    item: type
    many: bool
    optional: bool

    @property
    def name(self) -> str:
        """In words, for a message or a help text."""
        return _NAMES[self.item][self.many]


_NAMES = {
    bool: ("true or false", "a list of true or false"),
    int: ("a whole number", "a list of whole numbers"),
    float: ("a number", "a list of numbers"),
    str: ("text", "a list"),
}


def kind_of(settings: type, name: str) -> Kind:
    """Return what type a field has: bool, int, float or str, or a tuple of them, or None too."""
    return _kinds(settings)[name]


@functools.cache
def _kinds(settings: type) -> dict[str, Kind]:
    hints = typing.get_type_hints(settings)
    return {field.name: _kind(hints[field.name]) for field in dataclasses.fields(settings)}


def _kind(hint) -> Kind:
    union = typing.get_origin(hint) in (types.UnionType, typing.Union)
    options = typing.get_args(hint) if union else (hint,)
    (kind,) = (option for option in options if option is not type(None))
    many = typing.get_origin(kind) is tuple
    return Kind(typing.get_args(kind)[0] if many else kind, many, type(None) in options)


@dataclasses.dataclass(frozen=True)
class Settings:
    """The base of settings: values are brought to their types and checked, field by field.

    Lists and arrays become tuples, whole numbers floats where floats are meant.

    Raises:
        InputError: naming the setting, what was wrong and what would be right.
    """

    def __post_init__(self):
        for field in dataclasses.fields(self):
            value = self._checked(field, getattr(self, field.name))
            object.__setattr__(self, field.name, value)

    def _checked(self, field: dataclasses.Field, value):
        kind = kind_of(type(self), field.name)
        if value is None and kind.optional:
            return None
        if hasattr(value, "tolist"):
            value = value.tolist()  # NumPy's numbers and arrays
        if kind.many:
            if isinstance(value, str) or not isinstance(value, Sequence):
                raise InputError(f"must be {kind.name}, got {value!r}", field.name)
            value = tuple(_typed(kind.item, item, field) for item in value)
        else:
            value = _typed(kind.item, value, field)
        choices = choices_of(field)
        if choices is not None:
            for item in value if kind.many else (value,):
                if item not in choices:
                    known = ", ".join(map(str, choices))
                    raise InputError(f"must be one of {known}, got {item!r}", field.name)
        rule = field.metadata["rule"]
        if rule is not None and not rule.holds(value):
            shown = list(value) if kind.many else value
            raise InputError(f"must be {rule.expected}, got {shown!r}", field.name)
        return value

    def replace(self, **changes) -> typing.Self:
        """Return a copy with other values, checked again."""
        return dataclasses.replace(self, **changes)

    def decisive(self) -> dict[str, Any]:
        """Return the settings that decide what is computed, by name, as JSON holds them."""
        values = {
            field.name: getattr(self, field.name)
            for field in dataclasses.fields(self)
            if not field.metadata["operational"]
        }
        return {k: list(v) if isinstance(v, tuple) else v for k, v in values.items()}


def _typed(item: type, value, field: dataclasses.Field):
    """Return one value as the type that its field, or each of a field's list, has."""
    wrong = InputError(f"must be {_NAMES[item][False]}, got {value!r}", field.name)
    if isinstance(value, bool) and item is not bool:
        raise wrong
    if item in (int, float) and isinstance(value, int | float):
        # Whole numbers are counts and positions, which TensorFlow holds in 64 bits.
        if not math.isfinite(value) or abs(value) >= 2**63:
            raise InputError(f"must be a finite number below 2^63, got {value!r}", field.name)
        if item is int and value != int(value):
            raise wrong
        return item(value)
    if item is str and hasattr(value, "__fspath__"):
        value = value.__fspath__()
    if not isinstance(value, item):
        raise wrong
    return _expanded(value, field.name) if field.metadata["path"] else value


def _expanded(path: str, name: str) -> str:
    if not path:
        raise InputError("must be a path, got ''", name)
    if not path.startswith("~"):
        return path  # as it was written, which is what a record compares
    try:
        return str(expand(path))
    except RuntimeError as error:
        raise InputError(f"there is no home directory for {path!r}", name) from error
