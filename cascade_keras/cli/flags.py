"""Flags from settings, and settings from flags: every program's flags are its settings' fields."""

from __future__ import annotations

import dataclasses
from typing import TypeVar

from absl import flags

from cascade_keras.errors import InputError
from cascade_keras.settings import Kind, Settings, choices_of, kind_of

S = TypeVar("S", bound=Settings)


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
        define_one(field.name, None, _help(field, kind), flag_values=values)
    return values


def _help(field: dataclasses.Field, kind: Kind) -> str:
    text, choices = field.metadata["help"], choices_of(field)
    text = text() if callable(text) else text
    if choices is not None:
        text += f" {'Some' if kind.many else 'One'} of: {', '.join(map(str, choices))}."
    elif kind.item is not str and kind.item is not bool and field.metadata["parse"] is None:
        text += f" {kind.name[0].upper()}{kind.name[1:]}."
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


def read(values: flags.FlagValues, settings: type[S]) -> S:
    """Return the settings that flags mean.

    An empty text (``--init_from=``) means None where there may be none, and an empty list.

    Raises:
        InputError: a value that its setting refuses.
    """
    given = {}
    for field in dataclasses.fields(settings):
        value = values[field.name].value
        if value is None:
            continue
        kind = kind_of(settings, field.name)
        if value == "" and kind.optional:
            given[field.name] = None
        elif isinstance(value, str):
            given[field.name] = _value(value, field, kind)
        else:
            given[field.name] = value
    return settings(**given)


def _value(text: str, field: dataclasses.Field, kind: Kind):
    """Return what a flag's text means."""
    try:
        if field.metadata["parse"] is not None:
            return field.metadata["parse"](text)
        if kind.many:
            return tuple(kind.item(item) for item in flags.ListParser().parse(text) if item)
        return kind.item(text)
    except InputError as error:
        raise InputError(error.message, field.name) from error
    except ValueError as error:
        rule = field.metadata["rule"]
        parsed = rule is not None and field.metadata["parse"] is not None
        expected = rule.expected if parsed else kind.name
        raise InputError(f"must be {expected}, got {text!r}", field.name) from error
