"""What no type allows: values made from the settings classes, for every flag of a program."""

import contextlib
import dataclasses
import importlib
import io
import os
import pathlib
import sys
from collections.abc import Iterator
from typing import NamedTuple

from cascade_keras.settings import Settings, choices_of, flag_of, kind_of

# The class of a program's settings, as "module:name".
PROGRAMS = {
    "train": "runs.settings:TrainingSettings",
    "craft": "crafting:CraftSettings",
    "evaluate": "evaluation.settings:EvaluationSettings",
    "analyze": "figures.settings:FigureSettings",
    "export": "export:ExportSettings",
    "zoo": "zoo.settings:ZooSettings",
    "reproduce": "reproduction.settings:ReproductionSettings",
    "prepare_data": "cli.prepare_data:PrepareSettings",
}
LONG = 100_000
LONGEST_LINE = 1_100

# Nothing that any flag takes.
TEXTS = ["", " ", "a\x1b[1mb", "a\nb", "a\0b", "\udcff", "x" * LONG]
NO_NUMBERS = [
    *TEXTS, "ten", "nan", "inf", "-inf", "1e400", "-1e20", "9" * 5000, "1_0", "0x10", "1 2",
    "\uff11\uff12", "\u22125", "None", "true", "[/b]", "../x",
]  # fmt: skip
NO_WHOLE_NUMBERS = [*NO_NUMBERS, "-1", "2147483648", "99999999999999999999", "1e20", "1e3", "2.5"]
NO_FLOATS = [*NO_NUMBERS, "3.5e38", "1e-60", "-0x1p-2", "1e", ".", "\uff11.5"]
NO_SWITCHES = [*TEXTS, "maybe", "2", "nan", "-1", "None", "[/b]"]
NO_CHOICES = [*TEXTS, "nothing", "../x", "[/b]", "0", "-1", "None", "gs://a/b"]
NO_PLACES = [
    *TEXTS, "gs://a/b", "s3://a", "file:///tmp/x", "x" * 256, "x/" * 2100, "~nobody-here/x",
]  # fmt: skip
NO_NAMES = [*NO_CHOICES[: len(TEXTS)], "..", ".", "../x", "/x", "a/b", "a b", "[/b]", "x" * 101]
NO_MODELS = [
    *TEXTS, "resnet", "resnet21", "resnet2", "resnet60002", "resnet0020", "resnet-20", "plain20_e2",
    "resnet\uff12\uff10", "resnet" + "9" * 5000, "lenet5", "../lenet", "[/b]",
]  # fmt: skip
NO_STAGES = [*TEXTS, "stage9", "logit", "[/b]", "../x"]
NO_DATASETS = [
    *TEXTS[:-1], "X" * LONG, "../x", "./x", "~nobody-here/x", "nowhere.npz", "[/b]", "0", "-1",
    "None", "gs://a/b", "a b", "module:", ":load", "a/b/c", "Mnist",
]  # fmt: skip
# Texts whose rule is their own.
OWN = {"name": NO_NAMES, "model": NO_MODELS, "embedding_at": NO_STAGES, "dataset": NO_DATASETS}
OWN |= {"embedding": TEXTS, "logits": TEXTS}  # any other text can be a layer's name


class Case(NamedTuple):
    """A flag of a program, and the text that it must refuse."""

    program: str
    flag: str
    text: str

    @property
    def name(self) -> str:
        """In ASCII, and short."""
        return f"{self.program} --{self.flag}={ascii(self.text)[1:-1][:30]}"


def settings_of(program: str) -> type[Settings]:
    """Return the class of a program's settings."""
    module, _, name = PROGRAMS[program].partition(":")
    return getattr(importlib.import_module(f"cascade_keras.{module}"), name)


def cases(program: str) -> Iterator[Case]:
    """Yield each of a program's flags with all that its type forbids."""
    settings = settings_of(program)
    for field in dataclasses.fields(settings):
        for text in dict.fromkeys(_forbidden(settings, field)):
            yield Case(program, flag_of(field.name), text)
        if kind_of(settings, field.name).item is bool:
            yield from (Case(program, f"no{field.name}", text) for text in ("5", "true", ""))


def _forbidden(settings: type[Settings], field: dataclasses.Field) -> Iterator[str]:
    kind, choices = kind_of(settings, field.name), choices_of(field)
    if not kind.many and field.name in OWN and choices is None:
        yield from OWN[field.name]
        return
    values = {
        bool: NO_SWITCHES,
        int: NO_WHOLE_NUMBERS,
        float: NO_FLOATS,
        str: NO_PLACES if field.metadata["path"] else NO_CHOICES,
    }[kind.item]
    yield from values
    if not kind.many:
        if kind.item is float:
            yield "-1"
        rule = field.metadata["rule"]
        if kind.item in (int, float) and rule is not None:
            yield from (str(value) for value in (0, 1, 256) if not rule.holds(value))
        return
    good = choices[0] if choices else "x" if kind.item is str else "2"
    yield from (f"{good},,{good}", f"{good},", f",{good}", f'"{good}', f"{good}," * LONG)
    if not field.metadata["repeats"]:
        yield f"{good},{good}"
    if kind.item is float:
        yield f"{good},{good}.0"
    yield from (f"{good},{value}" for value in values if value.strip())


def run(case: Case, place: pathlib.Path) -> str | None:
    """Run a program in process; return what is wrong with its answer, None where it is right.

    Args:
        place: an empty directory, the current one.
    """
    main = importlib.import_module(f"cascade_keras.cli.{case.program}").main
    said = io.StringIO()
    with contextlib.redirect_stderr(said):
        try:
            status = main([case.program, f"--{case.flag}={case.text}"])
        except BaseException as error:
            return f"{type(error).__name__}: {ascii(error)[:200]}"
    lines = said.getvalue().splitlines()
    if status != 2 or len(lines) != 1:
        return f"exit {status}, {len(lines)} lines: {ascii(' | '.join(lines))[:300]}"
    (line,) = lines
    if not line.startswith(f"{case.program}: --{case.flag}"):
        return f"of another flag: {ascii(line)[:200]}"
    if len(line) > LONGEST_LINE or not line.isprintable():
        return f"a line of {len(line)} characters: {ascii(line)[:200]}"
    if os.listdir(place):
        return f"left {os.listdir(place)}"
    return None


def imported_tensorflow() -> bool:
    """Whether it was imported in this process."""
    return "tensorflow" in sys.modules
