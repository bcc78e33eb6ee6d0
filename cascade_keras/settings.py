"""Settings: what a user chooses, declared once for Python and for flags.

A class of settings is a frozen dataclass whose fields are made by ``setting``. The field's type,
default, help text and rule are all there is to say about it: the class refuses values that the
rule forbids, whoever gives them, and a program's flags are the fields (cli/flags.py).
"""

from __future__ import annotations

import csv
import dataclasses
import functools
import os
import re
import types
import typing
import unicodedata
from collections.abc import Callable, Collection, Sequence
from typing import Any, NamedTuple, TypeVar

from cascade_keras.errors import InputError, shown
from cascade_keras.files import expand
from cascade_keras.records import LARGEST

ENSEMBLES = (
    "logits",
    "losses",
)  # what of several networks an attack on all of them takes the mean of

N = TypeVar("N", int, float)

# What TensorFlow computes with are 32-bit numbers; those closer to 0 it takes for 0.
LARGEST_FLOAT = (2 - 2**-23) * 2.0**127
SMALLEST_FLOAT = 2.0**-126
_BELOW_ONE = 1 - 2**-24  # the last before 1
_MOST_DIGITS = 300
_MOST_ITEMS = 100_000
# A file system takes no longer ones.
_MOST_BYTES_OF_PATH = 4095
_MOST_BYTES_OF_NAME = 255


class Rule(NamedTuple):
    """What a value must fulfil: a function, and words that complete "must be ..."."""

    holds: Callable[[Any], bool]
    expected: str


AUTO = "auto"
POSITIVE = Rule(lambda v: v > 0, "above 0")
NOT_NEGATIVE = Rule(lambda v: v >= 0, "0 or above")
FRACTION = Rule(lambda v: 0 <= v <= _BELOW_ONE, "in [0, 1)")
PER_CENT = Rule(lambda v: 0 < v <= 100, "above 0 and at most 100 per cent")
SHARE = Rule(lambda v: 0 < v <= 1, "above 0 and at most 1")
EPSILON = Rule(lambda v: 0 <= v <= 255, "in 0..255")
SEED = Rule(lambda v: 0 <= v <= LARGEST, f"in 0..{LARGEST}")
LAYER = Rule(lambda v: len(v) <= 200, "a layer's or output's name of at most 200 characters")
SOME = Rule(lambda v: len(v) > 0, "at least one")
VALUE_RANGE = Rule(
    lambda v: len(v) == 2 and v[0] < v[1],
    "the lowest and the highest value of a pixel such as 0,255",
)
EPSILONS = Rule(lambda v: bool(v) and all(0 <= e <= 255 for e in v), "numbers in 0..255")


def setting(
    default: Any,
    help: str | Callable[[], str],
    rule: Rule | None = None,
    *,
    choices: Callable[[], Collection] | Collection | None = None,
    path: bool = False,
    parse: Callable[[str], Any] | None = None,
    operational: bool = False,
    repeats: bool = False,
    auto: bool = False,
    why: Callable[[str], str | None] | None = None,
) -> Any:
    """Return a dataclass field.

    Args:
        default: its value where none is given.
        help: the flag's help text; a function is asked when needed, as for ``choices``.
        rule: what a value must fulfil beside its type, see ``Settings``; None, where the type
            allows it, always does. A whole number without a rule must be 0 or above.
        choices: what a value, or each of a tuple's, may be; a function is asked when needed, so
            that rows registered later count.
        path: a place on disk; ``~`` is the user's home, in each of a tuple's.
        parse: makes the value of a flag's text, where the type's own way is not the one.
        operational: it does not change what is computed, so it may differ when work goes on.
        repeats: a list may hold the same item again.
        auto: None is allowed, is written ``auto``, and stands for what is found out.
        why: what is said of some texts that are no choice, in place of what the choices are.
    """
    metadata = {
        "help": help,
        "rule": rule,
        "choices": choices,
        "path": path,
        "parse": parse,
        "operational": operational,
        "repeats": repeats,
        "auto": auto,
        "why": why,
    }
    return dataclasses.field(default=default, metadata=metadata)


def batch_size_setting(default: int, help: str) -> Any:
    """Return the field of every class of settings that says how many images are attacked at once.

    Args:
        help: without the word that all of them take.
    """
    return setting(
        default,
        f"{help}; {AUTO}: as many as a short measurement finds fastest, or as what is gone on with "
        "has.",
        POSITIVE,
        auto=True,
    )


def trust_setting() -> Any:
    """Return the field of every class of settings that names networks: see SECURITY.md."""
    return setting(
        False,
        "You trust whoever made the networks: run a SavedModel though it does more than compute.",
        operational=True,
    )


def value_range_setting() -> Any:
    """Return the field of every class of settings that names networks which record no range."""
    return setting(
        None,
        "Pixel values that the network takes, such as 0,255 or -1,1; default: what is recorded of "
        "it, else 0,1. Epsilons are in 0..255 units of any range.",
        VALUE_RANGE,
    )


# What ``from_logits`` says on a flag, as ``border.adapt`` is told it.
_SAID_OF_LOGITS: dict[str, bool | str] = {"auto": "auto", "true": True, "false": False}


def from_logits_setting() -> Any:
    """Return the field that says what networks return, where nothing is recorded of it."""
    return setting(
        "auto",
        "Whether the network returns logits; auto looks, false takes what is before its softmax or "
        "sigmoids.",
        choices=tuple(_SAID_OF_LOGITS),
    )


def said_of_logits(text: str | None) -> bool | str:
    """Return what a ``from_logits`` setting means; "auto" where there is none."""
    return _SAID_OF_LOGITS[text or "auto"]


def logits_setting() -> Any:
    """Return the field that names the output that is meant, where a network has several."""
    return setting(
        None,
        "Of a network of several outputs, the output or layer that tells the classes apart.",
        LAYER,
    )


def flag_of(name: str) -> str:
    """Return the flag of a setting: Python's own words have an underscore after them."""
    return name.rstrip("_")


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


def _kind(hint: Any) -> Kind:
    union = typing.get_origin(hint) in (types.UnionType, typing.Union)
    options = typing.get_args(hint) if union else (hint,)
    (kind,) = (option for option in options if option is not type(None))
    many = typing.get_origin(kind) is tuple
    return Kind(typing.get_args(kind)[0] if many else kind, many, type(None) in options)


@dataclasses.dataclass(frozen=True)
class Settings:
    """The base of settings: values are brought to their types and checked, field by field.

    Lists and arrays become tuples, whole numbers floats where floats are meant. Numbers are finite
    and fit 32 bits; texts are not empty, are UTF-8 and have no control characters; paths are places
    on this machine; of a list's items each is there once.

    Raises:
        InputError: naming the setting, what was wrong and what would be right.
    """

    def __post_init__(self) -> None:
        for field in dataclasses.fields(self):
            value = self._checked(field, getattr(self, field.name))
            object.__setattr__(self, field.name, value)

    def _checked(self, field: dataclasses.Field, value: Any) -> Any:
        kind = kind_of(type(self), field.name)
        if field.metadata["auto"] and isinstance(value, str) and value == AUTO:
            value = None
        if value is None and kind.optional:
            return None
        value = _of_python(value)
        if kind.many:
            if isinstance(value, str | bytes) or not isinstance(value, Sequence):
                raise InputError(f"must be {kind.name}, got {shown(value)}", field.name)
            if value[_MOST_ITEMS:]:  # a range has a length that memory need not have
                raise InputError(f"must have at most {_MOST_ITEMS:,} items", field.name)
            value = tuple(_typed(kind, _of_python(item), field) for item in value)
            _check_once(value, field)
        else:
            value = _typed(kind, value, field)
        choices = choices_of(field)
        if choices is not None:
            for item in value if kind.many else (value,):
                if item not in choices:
                    why = field.metadata["why"]
                    if why is not None and why(item):
                        raise InputError(why(item), field.name)
                    known = ", ".join(map(str, choices))
                    raise InputError(f"must be one of {known}, got {shown(item)}", field.name)
        rule = field.metadata["rule"]
        if rule is None and kind.item is int:
            rule = _ALL_NOT_NEGATIVE if kind.many else NOT_NEGATIVE
        if rule is not None and not rule.holds(value):
            found = list(value) if kind.many else value
            raise InputError(f"must be {rule.expected}, got {shown(found)}", field.name)
        return value

    def replace(self, **changes: Any) -> typing.Self:
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


@dataclasses.dataclass(frozen=True)
class NetworkSettings(Settings):
    """What is said of networks that do not record which pixels they take and what they return."""

    value_range: tuple[float, ...] | None = value_range_setting()
    from_logits: str = from_logits_setting()
    logits: str | None = logits_setting()

    def told(self) -> dict[str, Any]:
        """Return what ``load_source`` is told beside the network, as JSON has it."""
        told = {
            "value_range": None if self.value_range is None else list(self.value_range),
            "from_logits": None if self.from_logits == "auto" else said_of_logits(self.from_logits),
            "logits": self.logits,
        }
        return {name: value for name, value in told.items() if value is not None}


S = TypeVar("S", bound=Settings)
_ALL_NOT_NEGATIVE = Rule(lambda v: all(item >= 0 for item in v), "numbers of 0 or above")


def _check_once(items: tuple, field: dataclasses.Field) -> None:
    """Refuse a list that holds an item again, be it as 2 and 2.0."""
    seen = set()
    for item in () if field.metadata["repeats"] else items:
        if item in seen:
            raise InputError(f"{shown(item)} is named twice; name each once", field.name)
        seen.add(item)


def _of_python(value: Any) -> Any:
    """Return what NumPy's numbers and arrays are in Python; anything else as it is."""
    return value.tolist() if hasattr(value, "tolist") else value


def _typed(kind: Kind, value: Any, field: dataclasses.Field) -> Any:
    """Return one value as the type that its field, or each of a field's list, has."""
    item: Any = kind.item
    or_auto = f" or {AUTO}" if field.metadata["auto"] else ""
    wrong = InputError(f"must be {_NAMES[item][False]}{or_auto}, got {shown(value)}", field.name)
    if isinstance(value, bool) and item is not bool:
        raise wrong
    if item in (int, float) and isinstance(value, int | float):
        _check_number(item, value, field.name)
        if item is int and value != int(value):
            raise wrong
        return item(value)
    if item is str and hasattr(value, "__fspath__"):
        value = value.__fspath__()
    if not isinstance(value, item):
        raise wrong
    if item is str:
        _check_text(value, kind, field.name)
    return _place(value, field.name) if field.metadata["path"] else value


def _check_number(item: type, value: float, name: str) -> None:
    """Refuse a number that is not finite, or that 32 bits cannot hold."""
    if item is int and not -LARGEST <= value <= LARGEST:
        bound = f"at least {-LARGEST}" if value < 0 else f"at most {LARGEST}"
        raise InputError(f"must be {bound}, got {shown(value)}", name)
    if not -LARGEST_FLOAT <= value <= LARGEST_FLOAT:
        raise InputError(
            f"must be a finite number of at most {LARGEST_FLOAT:.2g}, got {shown(value)}", name
        )
    if value and abs(value) < SMALLEST_FLOAT:
        raise InputError(
            f"must be 0, or at least {SMALLEST_FLOAT:.2g} as 32 bits hold no less, got "
            f"{shown(value)}",
            name,
        )


def _check_text(value: str, kind: Kind, name: str) -> None:
    """Refuse a text that is empty, or that could not be written into a file or shown."""
    if not value:
        problem = "has an empty item" if kind.many else "must not be empty"
        raise InputError(f"{problem}; leave it out{'' if kind.many else ' for its default'}", name)
    categories = {unicodedata.category(character) for character in value}
    if "Cs" in categories:  # how Python holds the bytes of a command line that are no text
        raise InputError(f"must be text in UTF-8, got {shown(value)}", name)
    if "Cc" in categories:
        raise InputError(f"must have no control characters, got {shown(value)}", name)


def _place(path: str, name: str) -> str:
    """Return a path, ``~`` being the user's home; refuse what can be no place here."""
    if "://" in path:
        raise InputError(f"must be a place on this machine, got {shown(path)}", name)
    if path.startswith("~"):  # others stay as they were written, which is what a record compares
        try:
            path = str(expand(path))
        except RuntimeError as error:
            raise InputError(f"there is no home directory for {shown(path)}", name) from error
    longest = max(len(part.encode()) for part in path.split("/"))
    if longest > _MOST_BYTES_OF_NAME or len(path.encode()) > _MOST_BYTES_OF_PATH:
        raise InputError(
            f"must be a path of names of at most {_MOST_BYTES_OF_NAME} bytes, and "
            f"{_MOST_BYTES_OF_PATH} in all; got {len(path.encode())}: {shown(path)}",
            name,
        )
    return path


def check_apart(
    name: str, place: str | None, **others: str | Sequence[str | os.PathLike] | None
) -> None:
    """Refuse a place of a program's output that is also another setting's, or inside of it.

    Args:
        name: of the setting that names the place.
        place: a path; None, which is nowhere, is fine, in ``others`` too.
        others: by their settings' names, each a path or several.

    Raises:
        InputError: naming both settings.
    """
    if place is None:
        return
    resolved = expand(place).resolve()
    for other, paths in others.items():
        for path in (paths,) if isinstance(paths, str) else paths or ():
            if resolved.is_relative_to(expand(path).resolve()):
                raise InputError(f"must be a place of its own, {shown(path)} is {other}'s", name)


# Texts.

_WHOLE_NUMBER = re.compile(r"[+-]?[0-9]+")
_NUMBER = re.compile(
    r"[+-]?(([0-9]+\.?[0-9]*|\.[0-9]+)(e[+-]?[0-9]+)?|inf|infinity|nan)", re.IGNORECASE
)


def number(item: type[N], text: str) -> N:
    """Return the number that a text means, in plain ASCII digits; spaces around it do not count.

    Args:
        item: int or float.

    Raises:
        ValueError: it means none.
    """
    pattern = _WHOLE_NUMBER if item is int else _NUMBER
    text = text.strip(" ")
    if len(text) > _MOST_DIGITS or not pattern.fullmatch(text):
        raise ValueError(f"not {_NAMES[item][False]}: {shown(text)}")
    return item(text)


def of_text(settings: type, field: dataclasses.Field, text: str) -> Any:
    """Return what a text, such as a flag's, means as the value of a setting.

    A list's items are separated by commas; ``none`` is a list without any.

    Raises:
        InputError: it means nothing.
    """
    kind, parse = kind_of(settings, field.name), field.metadata["parse"]
    if not text.strip(" "):
        raise InputError("must not be empty; leave it out for its default", field.name)
    if field.metadata["auto"] and text.strip(" ") == AUTO:
        return AUTO
    try:
        if parse is not None:
            return parse(text)
        if not kind.many:
            return _item(kind, text)
        return () if text == "none" else tuple(_item(kind, item) for item in items_of(text))
    except InputError as error:
        raise InputError(error.message, field.name) from error
    except ValueError as error:
        rule = field.metadata["rule"]
        expected = rule.expected if rule is not None and parse is not None else kind.name
        expected += f" or {AUTO}" if field.metadata["auto"] else ""
        raise InputError(f"must be {expected}, got {shown(text)}", field.name) from error


def _item(kind: Kind, text: str) -> Any:
    return text if kind.item is str else number(kind.item, text)


def items_of(text: str) -> list[str]:
    """Return the items that commas separate, without the spaces around them.

    An item that holds a comma itself stands in double quotes.

    Raises:
        InputError: one is empty.
        ValueError: a quote is not closed.
    """
    try:
        (row,) = csv.reader([text], strict=True)
    except csv.Error as error:
        raise ValueError(str(error)) from error
    items = [item.strip(" ") for item in row]
    if not all(items):
        raise InputError(f"has an empty item, got {shown(text)}")
    return items


def of_flags(settings: type[S], flags: Sequence[str], beside: S | None = None) -> S:
    """Return the settings that flags such as ``--epsilon=2,4`` or ``--noexport`` mean.

    Args:
        beside: what is not said is as here; the defaults when None.

    Raises:
        InputError: a flag is no setting's, or its value is refused.
    """
    fields = {flag_of(field.name): field for field in dataclasses.fields(settings)}
    found: dict[str, Any] = {}
    for flag in flags:
        name, equals, text = flag.removeprefix("--").partition("=")
        switched = not equals and name not in fields
        field = fields.get(name.removeprefix("no") if switched else name)
        if field is None:
            raise InputError(f"there is no flag {shown(flag)}")
        is_switch = kind_of(settings, field.name) == Kind(bool, many=False, optional=False)
        if is_switch and text in ("", "true", "false"):
            found[field.name] = not switched and text != "false"
        else:
            found[field.name] = of_text(settings, field, text)
    return (settings() if beside is None else beside).replace(**found)


def as_flags(settings: Settings, beside: Settings | None = None) -> tuple[str, ...]:
    """Return the flags by which a program is given these settings.

    Args:
        beside: what is said without them; the defaults when None.

    Raises:
        ValueError: no flag says it, as of a setting that is None here and something in ``beside``.
    """
    beside = type(settings)() if beside is None else beside
    found = []
    for field in dataclasses.fields(settings):
        value, name = getattr(settings, field.name), flag_of(field.name)
        if value == getattr(beside, field.name):
            continue
        if isinstance(value, bool):
            found.append(f"--{name}" if value else f"--no{name}")
        elif isinstance(value, tuple):
            found.append(f"--{name}={','.join(map(_quoted, value)) or 'none'}")
        elif value is not None or field.metadata["auto"]:
            found.append(f"--{name}={AUTO if value is None else _as_text(value)}")
        else:
            raise ValueError(f"no flag leaves {field.name} out")
    return tuple(found)


def _as_text(value: Any) -> str:
    short = f"{value:g}" if isinstance(value, float) else str(value)
    return short if not isinstance(value, float) or float(short) == value else repr(value)


def _quoted(item: Any) -> str:
    text = _as_text(item)
    return '"' + text.replace('"', '""') + '"' if set(text) & set(',"') else text
