"""Settings and their flags: one declaration, the same values, checks and messages for both."""

import dataclasses
import pathlib

import numpy as np
import pytest
from absl import flags

from cascade_keras.cli.common import run_program
from cascade_keras.cli.flags import define, read
from cascade_keras.errors import InputError
from cascade_keras.settings import EPSILONS, FRACTION, POSITIVE, Rule, Settings, setting

COLOURS = ["red", "blue"]


def numbers(text):
    first, last = text.split("..")
    return tuple(range(int(first), int(last) + 1))


@dataclasses.dataclass(frozen=True)
class Chosen(Settings):
    steps: int = setting(10, "How many.", POSITIVE)
    rate: float = setting(0.1, "How fast.", FRACTION)
    name: str | None = setting(None, "Of it.")
    export: bool = setting(True, "Keep it.")
    crop: int | None = setting(None, "A side.", POSITIVE)
    colour: str = setting("red", "Of it.", choices=lambda: COLOURS)
    colours: tuple[str, ...] = setting((), "Of them.", choices=lambda: COLOURS)
    epsilons: tuple[float, ...] | None = setting(None, "In 0..255.", EPSILONS)
    sizes: tuple[int, ...] = setting(
        (1, 2), "From..to.", Rule(lambda v: len(v) < 5, "such as 1..4"), parse=numbers
    )
    folder: str = setting("runs", "Where.", path=True, operational=True)
    folders: tuple[str, ...] = setting((), "Where.", path=True, operational=True)


@dataclasses.dataclass(frozen=True)
class More(Chosen):
    depth: int = setting(3, "Of it.")


def flags_to_settings(*argv, settings=Chosen):
    values = define(settings)
    values(["program", *argv])
    return read(values, settings)


FLAGS = {
    "--steps=3": {"steps": 3},
    "--rate=0": {"rate": 0.0},
    "--rate=5e-1": {"rate": 0.5},
    "--name=x": {"name": "x"},
    "--name=": {"name": None},
    "--crop=": {"crop": None},
    "--noexport": {"export": False},
    "--export=false": {"export": False},
    "--export": {"export": True},
    "--colour=blue": {"colour": "blue"},
    "--colours=blue, red": {"colours": ("blue", "red")},
    "--colours=": {"colours": ()},
    "--epsilons=2,4.5": {"epsilons": (2.0, 4.5)},
    "--sizes=2..4": {"sizes": (2, 3, 4)},
    "--folder=a/b/": {"folder": "a/b/"},
    '--folders="a,b",c': {"folders": ("a,b", "c")},
    "--folder=~/runs": {"folder": "/home/me/runs"},
    "--folders=~/a,b~": {"folders": ("/home/me/a", "b~")},
    "--name=~/x": {"name": "~/x"},
}


@pytest.mark.parametrize("flag", FLAGS)
def test_a_flag_is_its_field(flag, monkeypatch):
    monkeypatch.setenv("HOME", "/home/me")
    got = flags_to_settings(flag)
    for name, value in FLAGS[flag].items():
        assert getattr(got, name) == value and type(getattr(got, name)) is type(value)
    assert got == Chosen(**FLAGS[flag])


def test_what_is_not_given_is_left_to_the_class():
    assert flags_to_settings() == Chosen()
    assert flags_to_settings("--depth=4", settings=More) == More(depth=4)


def test_flags_may_come_from_a_file(tmp_path):
    (tmp_path / "flags").write_text("--steps=7\n# a comment\n--noexport\n")
    got = flags_to_settings(f"--flagfile={tmp_path / 'flags'}", "--rate=0.2")
    assert got == Chosen(steps=7, export=False, rate=0.2)


def test_python_gives_what_comes_to_hand():
    got = Chosen(
        steps=np.int64(3), rate=np.float64(0.5), epsilons=np.arange(3), sizes=[1, 2.0],
        folder=pathlib.Path("a"), crop=4.0, export=np.bool_(False),
    )  # fmt: skip
    same = Chosen(
        steps=3, rate=0.5, epsilons=(0.0, 1.0, 2.0), sizes=(1, 2), folder="a", crop=4, export=False
    )
    assert got == same and type(got.crop) is int and type(got.epsilons[0]) is float


def test_the_decisive_settings_are_json():
    got = Chosen(epsilons=[2]).decisive()
    assert got["epsilons"] == [2.0] and got["sizes"] == [1, 2] and got["name"] is None
    assert "folder" not in got and "folders" not in got


def test_choices_are_asked_when_needed():
    with pytest.raises(InputError):
        Chosen(colour="green")
    COLOURS.append("green")
    try:
        assert flags_to_settings("--colour=green").colour == "green"
        assert "red, blue, green" in define(Chosen).get_help()
    finally:
        COLOURS.remove("green")


def printed(capsys, *argv):
    """What a program writes to standard error where it refuses its flags."""
    values = define(Chosen)
    assert run_program("train", "", values, lambda v: read(v, Chosen), ["train", *argv]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    return line


@pytest.mark.parametrize(
    ("name", "text", "value", "expected", "shown"),
    [
        ("steps", "0", 0, "above 0", "0"),
        ("steps", "ten", "ten", "a whole number", "'ten'"),
        ("steps", "2.5", 2.5, "a whole number", "2.5"),
        ("steps", "", None, "a whole number", ""),
        ("steps", "99999999999999999999", 99999999999999999999, "2^63", "9999999999"),
        ("crop", "-1", -1, "above 0", "-1"),
        ("rate", "1", 1, "in [0, 1)", "1.0"),
        ("rate", "nan", float("nan"), "finite", "nan"),
        ("rate", "-inf", -np.inf, "finite", "-inf"),
        ("epsilons", "2,inf", [2, np.inf], "finite", "inf"),
        ("epsilons", "2,256", [2, 256], "in 0..255", "256"),
        ("epsilons", "2,x", [2, "x"], "number", "x"),
        ("colour", "grey", "grey", "red, blue", "'grey'"),
        ("colours", "red,grey", ["red", "grey"], "red, blue", "'grey'"),
        ("sizes", "0..8", range(9), "such as 1..4", "[0, 1, 2"),
        ("sizes", "many", "many", "", "'many'"),
        ("folder", "", "", "a path", "''"),
        ("folder", "~nobody-here/x", "~nobody-here/x", "home", "~no"),
    ],
)
def test_a_bad_value_is_refused_alike_from_python_and_from_a_flag(
    name, text, value, expected, shown, capsys
):
    flag = f"--{name}={text}"
    for refused in (lambda: Chosen(**{name: value}), lambda: flags_to_settings(flag)):
        with pytest.raises(InputError) as error:
            refused()
        assert error.value.setting == name
        assert expected in error.value.message and shown in error.value.message
    assert printed(capsys, flag) == f"train: --{name}: {error.value.message}"


@pytest.mark.parametrize(
    "value",
    [{"steps": True}, {"export": 1}, {"name": 3}, {"sizes": 3}, {"epsilons": "2"}, {"rate": None}],
)
def test_values_of_another_type_are_refused(value):
    with pytest.raises(InputError, match=next(iter(value))):
        Chosen(**value)


@pytest.mark.parametrize("flag", ["export=maybe", "export=", "colour", "unknown=1", "stray"])
def test_a_bad_switch_and_an_unknown_flag_give_one_line(flag, capsys):
    line = printed(capsys, flag if flag == "stray" else f"--{flag}")
    assert line.startswith("train: ") and flag.split("=")[0] in line


def test_replacing_a_value_checks_it():
    assert Chosen().replace(steps=5) == Chosen(steps=5)
    with pytest.raises(InputError, match="steps"):
        Chosen().replace(steps=-5)


def test_help_shows_choices_defaults_and_types():
    text = " ".join(define(Chosen, flags.FlagValues()).get_help().split())
    shown = "One of: red, blue", "Some of: red, blue", "A whole number."
    for words in (*shown, "Default: 10", "Default: true", "Default: 1,2"):
        assert words in text
