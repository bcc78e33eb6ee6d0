"""Flags from settings, and settings from flags: every program's flags are its settings' fields."""

from __future__ import annotations

import dataclasses
import pathlib
from collections.abc import Sequence
from typing import Any, TypeVar

from absl import flags

from cascade_keras.errors import InputError, about, shown
from cascade_keras.files import expand
from cascade_keras.settings import AUTO, Kind, Settings, choices_of, flag_of, kind_of, of_text

S = TypeVar("S", bound=Settings)
_MOST_BYTES = 2**20  # of a file of flags
_LONGEST_NAME = 200


def define(settings: type[Settings], values: flags.FlagValues | None = None) -> flags.FlagValues:
    """Return flags for every field of a class of settings.

    A flag's own default is None and its help text names the setting's: what is not given is left
    to the class. All but booleans are texts, which ``read`` brings to the field's type, so that
    Python users and programs share all checks and messages.
    """
    values = flags.FlagValues() if values is None else values
    for field in dataclasses.fields(settings):
        kind = kind_of(settings, field.name)
        is_switch = kind.item is bool and not kind.many
        define_one = flags.DEFINE_bool if is_switch else flags.DEFINE_string
        define_one(flag_of(field.name), None, _help(field, kind), flag_values=values)
    return values


def _help(field: dataclasses.Field, kind: Kind) -> str:
    text, choices = field.metadata["help"], choices_of(field)
    text = text() if callable(text) else text
    if choices is not None:
        text += f" {'Some' if kind.many else 'One'} of: {', '.join(map(str, choices))}."
    elif kind.item is not str and kind.item is not bool and field.metadata["parse"] is None:
        text += f" {kind.name[0].upper()}{kind.name[1:]}."
    if field.metadata["auto"]:
        text += f" Or {AUTO}."
    if kind.many and field.default and _may_be_empty(field):
        text += " Or none."
    if field.default is None or field.default == ():
        return text
    default = field.default
    if kind.item is bool:
        default = str(default).lower()
    elif kind.many:
        default = ",".join(f"{item:g}" if kind.item is float else str(item) for item in default)
    elif kind.item is float:
        default = f"{default:g}"
    return f"{text} Default: {default}."


def _may_be_empty(field: dataclasses.Field) -> bool:
    rule = field.metadata["rule"]
    return rule is None or rule.holds(())


def read(values: flags.FlagValues, settings: type[S]) -> S:
    """Return the settings that flags mean, those that are not given being left to the class.

    Raises:
        InputError: a value that its setting refuses.
    """
    return settings(**given(values, settings))


def given(values: flags.FlagValues, settings: type[Settings]) -> dict[str, Any]:
    """Return the values of the flags that are given, by their settings' names.

    Raises:
        InputError: a text that means no value of its setting's type.
    """
    found: dict[str, Any] = {}
    for field in dataclasses.fields(settings):
        value = values[flag_of(field.name)].value
        if value is not None:
            is_text = isinstance(value, str)
            found[field.name] = of_text(settings, field, value) if is_text else value
    return found


def parse(values: flags.FlagValues, argv: Sequence[str]) -> list[str]:
    """Take a program's arguments, ``argv`` without its first, and return those that are no flags.

    Raises:
        InputError, flags.Error: what is no flag, or a flag without or with a value too many.
    """
    try:
        return values([*argv[:1], *with_files(argv[1:])])[1:]
    except InputError:
        raise
    except ValueError as error:  # absl's, of --noexport=5
        raise InputError(str(error)) from error


def with_files(arguments: Sequence[str], above: tuple[pathlib.Path, ...] = ()) -> list[str]:
    """Return a program's arguments, with the lines of the file in place of each ``--flagfile``.

    Empty lines and those that begin with # or // say nothing; a file may name others. absl's own
    way ends in a traceback for a file that is no text.

    Args:
        above: the files that have named this one's arguments.

    Raises:
        InputError: a file that cannot be read, is no text, or names itself, or a flag of a name
            that none can have.
    """
    found, rest = [], list(arguments)
    while rest:
        argument = rest.pop(0)
        name, equals, file = argument.partition("=")
        if name.startswith("-") and len(name) > _LONGEST_NAME:
            # absl would look for similar names by recursion
            raise InputError(f"unknown flag {shown(name)}; --help shows those that there are")
        if name not in ("--flagfile", "-flagfile"):
            found.append(argument)
            continue
        if not equals:
            file = rest.pop(0) if rest else ""
        with about("flagfile"):
            found += _flags_in(file.strip(), above)
    return found


def _flags_in(file: str, above: tuple[pathlib.Path, ...]) -> list[str]:
    if not file:
        raise InputError("must name a file of flags, one a line")
    try:
        place = expand(file).resolve()
        with open(place, "rb") as opened:
            content = opened.read(_MOST_BYTES)
    except OSError as error:
        raise InputError(f"cannot read {file} ({error.strerror})") from error
    except (ValueError, RuntimeError) as error:  # NUL in the name; no such user
        raise InputError(f"cannot read {shown(file)} ({error})") from error
    if place in above:
        raise InputError(f"{file} includes itself")
    lines = [line.strip() for line in _text(content, file).splitlines()]
    flags_in = [line for line in lines if line and not line.startswith(("#", "//"))]
    return with_files(flags_in, (*above, place))


def _text(content: bytes, file: str) -> str:
    try:
        text = content.decode("utf-8")
    except UnicodeDecodeError:
        text = "\0"
    if "\0" in text or len(content) == _MOST_BYTES:
        raise InputError(f"{file} is no file of flags: it must be text, one flag a line")
    return text
