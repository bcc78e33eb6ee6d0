"""Settings: what a user chooses, declared once for Python and for flags.

A class of settings is a frozen dataclass whose fields are made by ``setting``. The field's type,
default, help text and rule are all there is to say about it: the class refuses values that the
rule forbids, whoever gives them, and a program's flags are the fields (cli/flags.py).
"""

from __future__ import annotations

import dataclasses
import math
import types
import typing
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from cascade_keras.errors import InputError


class Rule(NamedTuple):
    """What a value must fulfil: a function, and words that complete "must be ..."."""

    holds: Callable[[Any], bool]
    expected: str


def _finite(value) -> bool:
    return math.isfinite(value)


POSITIVE = Rule(lambda v: _finite(v) and v > 0, "above 0")
NOT_NEGATIVE = Rule(lambda v: _finite(v) and v >= 0, "0 or above")
FRACTION = Rule(lambda v: 0 <= v < 1, "in [0, 1)")
EPSILON = Rule(lambda v: 0 <= v <= 255, "in 0..255")
SEED = Rule(lambda v: 0 <= v < 2**31, "in 0..2147483647")
EPSILONS = Rule(lambda v: bool(v) and all(0 <= e <= 255 for e in v), "numbers in 0..255")


def setting(
    default: Any,
    help: str,
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
        help: the flag's help text.
        rule: what a value must fulfil; None, where the type allows it, always does.
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


def choices_of(field: dataclasses.Field) -> tuple | None:
    """Return what a field's value may be, None where it may be anything."""
    choices = field.metadata["choices"]
    return None if choices is None else tuple(choices() if callable(choices) else choices)


class Kind(NamedTuple):
    """A field's type: its class, whether it is a tuple of such, whether None is allowed."""

    item: type
    many: bool
    optional: bool


def kind_of(settings: type, name: str) -> Kind:
    """Return what type a field has: bool, int, float or str, or a tuple of them, or None too."""
    hint = typing.get_type_hints(settings)[name]
    options = typing.get_args(hint) if isinstance(hint, types.UnionType) else (hint,)
    (kind,) = (option for option in options if option is not type(None))
    many = typing.get_origin(kind) is tuple
    return Kind(typing.get_args(kind)[0] if many else kind, many, type(None) in options)


@dataclasses.dataclass(frozen=True)
class Settings:
    """The base of settings: values are brought to their types and checked, field by field.

    Lists become tuples, whole numbers floats where floats are meant.

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
        if kind.many:
            if isinstance(value, str) or not isinstance(value, Sequence):
                raise InputError(f"must be a list, got {value!r}", field.name)
            value = tuple(_typed(kind.item, item, field) for item in value)
        else:
            value = _typed(kind.item, value, field)
        choices = choices_of(field)
        if choices is not None:
            for item in value if kind.many else (value,):
                if item not in choices:
                    raise InputError(
                        f"must be one of {', '.join(map(str, choices))}, got {item!r}", field.name
                    )
        rule = field.metadata["rule"]
        if rule is not None and not rule.holds(value):
            shown = list(value) if kind.many else value
            raise InputError(f"must be {rule.expected}, got {shown!r}", field.name)
        return value

    def replace(self, **changes) -> typing.Self:
        """Return a copy with other values, checked again."""
        return dataclasses.replace(self, **changes)


def _typed(item: type, value, field: dataclasses.Field):
    if isinstance(value, bool) and item is not bool:
        raise InputError(f"must be {_NAMES[item]}, got {value!r}", field.name)
    if item is float and isinstance(value, int):
        return float(value)
    if item is int and isinstance(value, float) and value.is_integer():
        return int(value)
    if item is str and hasattr(value, "__fspath__"):
        value = value.__fspath__()
    if not isinstance(value, item):
        raise InputError(f"must be {_NAMES.get(item, item.__name__)}, got {value!r}", field.name)
    if field.metadata["path"]:
        from cascade_keras.files import expand

        return str(expand(value))
    return value


_NAMES = {bool: "true or false", int: "a whole number", float: "a number", str: "text"}
