"""Flags from settings, and settings from flags: every program's flags are its settings' fields."""

from __future__ import annotations

import dataclasses
from typing import TypeVar

from absl import flags

from cascade_keras.errors import InputError
from cascade_keras.settings import Settings, choices_of, kind_of

S = TypeVar("S", bound=Settings)


def define(settings: type[Settings], values: flags.FlagValues | None = None) -> flags.FlagValues:
    """Return flags for every field of a class of settings.

    A flag's own default is None and its help text names the setting's: what is not given is left
    to the class. Texts are brought to the field's type in ``read``, so that Python users and
    programs share all checks and messages.
    """
    values = flags.FlagValues() if values is None else values
    for field in dataclasses.fields(settings):
        kind, choices = kind_of(settings, field.name), choices_of(field)
        text = field.metadata["help"]
        if choices is not None and kind.many:
            text += f" Some of: {', '.join(map(str, choices))}."
        if field.default is not None and field.default != ():
            shown = ",".join(map(str, field.default)) if kind.many else field.default
            text += f" Default: {shown}."
        on = {"flag_values": values}
        if field.metadata["parse"] is not None:
            flags.DEFINE_string(field.name, None, text, **on)
        elif kind.many:
            flags.DEFINE_list(field.name, None, text, **on)
        elif kind.item is bool:
            flags.DEFINE_bool(field.name, None, text, **on)
        elif kind.item is int:
            flags.DEFINE_integer(field.name, None, text, **on)
        elif kind.item is float:
            flags.DEFINE_float(field.name, None, text, **on)
        elif choices is not None:
            flags.DEFINE_enum(field.name, None, list(choices), text, **on)
        else:
            flags.DEFINE_string(field.name, None, text, **on)
    return values


def read(values: flags.FlagValues, settings: type[S]) -> S:
    """Return the settings that flags mean.

    Raises:
        InputError: a value that its setting refuses.
    """
    given = {}
    for field in dataclasses.fields(settings):
        value = values[field.name].value
        if value is None:
            continue
        kind, parse = kind_of(settings, field.name), field.metadata["parse"]
        try:
            if parse is not None:
                value = parse(value)
            elif kind.many:
                value = tuple(kind.item(item.strip()) for item in value if item.strip())
        except InputError as error:
            raise InputError(error.message, field.name) from error
        except ValueError as error:
            shown = ",".join(value) if isinstance(value, list) else value
            rule = field.metadata["rule"]
            expected = rule.expected if rule else f"of type {kind.item.__name__}"
            raise InputError(f"must be {expected}, got {shown!r}", field.name) from error
        given[field.name] = value
    return settings(**given)
