"""Settings and their flags: one declaration, the same values, checks and messages for both."""

import dataclasses
import pathlib

import numpy as np
import pytest
from absl import flags

from cascade_keras.cli.common import run_program
from cascade_keras.cli.flags import define, read, with_files
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
    "--steps= 7 ": {"steps": 7},
    "--noexport": {"export": False},
    "--export=false": {"export": False},
    "--export": {"export": True},
    "--colour=blue": {"colour": "blue"},
    "--colours=blue, red": {"colours": ("blue", "red")},
    "--colours=none": {"colours": ()},
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
    (tmp_path / "flags").write_text("--steps=7\n\n# a comment\n  // one\n--noexport\n--rate=0.1\n")
    (tmp_path / "outer").write_text(f"--flagfile={tmp_path / 'flags'}\n--name=x y\n")
    argv = with_files(["--steps=1", "--flagfile", str(tmp_path / "outer"), "--rate=0.2"])
    got = flags_to_settings(*argv)
    assert got == Chosen(steps=7, export=False, rate=0.2, name="x y")


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        (b"\x7fELF\xff\xfe", "is no file of flags"),
        (b"--steps=7\0", "is no file of flags"),
        (b"--flagfile=flags", "includes itself"),
        (b"#" * 2**20, "is no file of flags"),
        (b"--flagfile=gone", "cannot read gone"),
        (b"steps=7", "unexpected argument 'steps=7'"),
        (None, "cannot read"),
    ],
)
def test_a_bad_file_of_flags_gives_one_line(content, problem, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    if content is not None:
        (tmp_path / "flags").write_bytes(content)
    for argv in (["--flagfile=flags"], ["--flagfile", "flags"]):
        assert problem in printed(capsys, *argv)
    for name in ("", ".", "a\0b", "~nobody-here/x"):
        assert printed(capsys, f"--flagfile={name}").startswith("train: --flagfile: ")
    assert "--flagfile: must name" in printed(capsys, "--flagfile")


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
    values = define(More)
    assert run_program("train", "", values, lambda v: read(v, More), ["train", *argv]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    return line


@pytest.mark.parametrize(
    ("name", "text", "value", "expected", "shown"),
    [
        ("steps", "0", 0, "above 0", "0"),
        ("steps", "ten", "ten", "a whole number", "'ten'"),
        ("steps", "2.5", 2.5, "a whole number", "2.5"),
        ("steps", "2147483648", 2**31, "at most 2147483647", "2147483648"),
        ("steps", "9" * 100, 10**100 - 1, "at most 2147483647", "..."),
        ("depth", "-1", -1, "0 or above", "-1"),
        ("rate", "1e400", np.inf, "finite", "inf"),
        ("rate", "3.5e38", 3.5e38, "at most 3.4e+38", "3.5e+38"),
        ("rate", "1e-39", 1e-39, "at least 1.2e-38", "1e-39"),
        ("rate", "0.99999999", 0.99999999, "in [0, 1)", "0.99999999"),
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
        ("colours", "red,blue,red", ["red", "blue", "red"], "named twice", "'red'"),
        ("epsilons", "2,4,2.0", [2, 4, 2.0], "named twice", "2.0"),
        ("epsilons", "none", [], "numbers in 0..255", "[]"),
        ("name", "a\x1b[1m", "a\x1b[1m", "control", r"'a\x1b[1m'"),
        ("name", "a\nb", "a\nb", "control", r"'a\nb'"),
        ("name", "\udcff", "\udcff", "UTF-8", r"'\udcff'"),
        ("folder", "gs://a/b", "gs://a/b", "on this machine", "'gs://a/b'"),
        ("folders", "a,file:///b", ["a", "file:///b"], "on this machine", "'file:///b'"),
        ("folder", "x" * 256, "x" * 256, "255 bytes", "256"),
        ("folder", "x/" * 2100, "x/" * 2100, "4095", "4200"),
        ("folder", "~nobody-here/x", "~nobody-here/x", "home", "~no"),
    ],
)
def test_a_bad_value_is_refused_alike_from_python_and_from_a_flag(
    name, text, value, expected, shown, capsys
):
    flag = f"--{name}={text}"
    for refused in (lambda: More(**{name: value}), lambda: flags_to_settings(flag, settings=More)):
        with pytest.raises(InputError) as error:
            refused()
        assert error.value.setting == name
        assert expected in error.value.message and shown in error.value.message
        assert len(error.value.message) < 200
    assert printed(capsys, flag) == f"train: --{name}: {error.value.message}"


@pytest.mark.parametrize("name", [field.name for field in dataclasses.fields(Chosen)])
def test_an_empty_text_is_no_default(name, capsys):
    for text in ("", " "):
        assert name in printed(capsys, f"--{name}={text}")


@pytest.mark.parametrize("value", [{"name": ""}, {"folder": ""}, {"folders": ["a", ""]}])
def test_an_empty_text_is_refused_from_python(value):
    with pytest.raises(InputError, match="empty"):
        Chosen(**value)


@pytest.mark.parametrize("text", ["2,,4", "2,", ",2", "2, ,4"])
def test_an_empty_item_is_refused(text, capsys):
    for name in ("epsilons", "colours", "folders"):
        assert f"--{name}: has an empty item" in printed(capsys, f"--{name}={text}")


NO_NUMBERS = {
    "steps": ["1_0", "0x10", "1e3", "1.0", "\uff11\uff12", "\u22125", "1 0", "\u00a01", "--1", "+"],
    "rate": ["0_1", "0x1p-2", "\uff10.1", "\u22120.1", ".", "1e", "e1", "0,1", "1e-3f"],
}


def test_a_number_that_python_cannot_write_is_refused():
    for name in ("steps", "rate", "name", "epsilons"):
        value = 10**5000
        with pytest.raises(InputError, match="number of thousands of digits"):
            Chosen(**{name: [value] if name == "epsilons" else value})


def test_a_list_without_end_is_refused():
    for value in (range(10**30), range(100_001), ["2"] * 100_001):
        with pytest.raises(InputError, match="epsilons: must have at most 100,000 items"):
            Chosen(epsilons=value)


@pytest.mark.parametrize("name", NO_NUMBERS)
def test_numbers_are_plain_ascii(name, capsys):
    for text in NO_NUMBERS[name]:
        assert f"--{name}: must be a " in printed(capsys, f"--{name}={text}")
    for text in ("1", "+1"):
        assert flags_to_settings(f"--crop={text}").crop == 1
    for text in (".5", "5.e-1", "+0.5", "5E-1"):
        assert flags_to_settings(f"--rate={text}").rate == 0.5


@pytest.mark.parametrize("text", ["x" * 100_000, "9" * 100_000, "1," * 50_000 + "1"], ids=len)
def test_a_long_text_gives_a_short_line(text, capsys):
    for name in (
        "steps",
        "rate",
        "colour",
        "colours",
        "epsilons",
        "sizes",
        "folder",
        text,
        "export",
    ):
        assert len(printed(capsys, f"--{name}={text}")) < 1100


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
