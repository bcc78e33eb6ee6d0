"""Every program says what it can do at once: without TensorFlow and matplotlib, from a checkout."""

import importlib
import os
import subprocess
import sys

import pytest
from support.files import ROOT

PROGRAMS = ("train", "export", "craft", "evaluate", "analyze", "zoo", "prepare_data",
            "reproduce")  # fmt: skip
HELP = (
    "import sys; from cascade_keras.cli import launch; program = sys.argv.pop(1);"
    "status = launch.run(program);"
    "sys.exit(3 if {'tensorflow', 'keras', 'matplotlib'} & {*sys.modules} else status)"
)


@pytest.mark.parametrize("program", PROGRAMS)
def test_help_needs_no_heavy_import(program, tmp_path):
    command = [sys.executable, "-c", HELP, program, "--help"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    module = importlib.import_module(f"cascade_keras.cli.{program}")
    assert done.stdout.startswith(module.__doc__.splitlines()[0]) and "--flagfile" in done.stdout
    assert os.access(ROOT / "bin" / program, os.X_OK)


REFUSED = {
    "train": ["--embedding_at=stage9", "--init_from=nowhere", "--saved_dir=runs",
              "--recipe=R20_X", "--recipe=R20_P"],
    "export": ["--run=nowhere"],
    "craft": ["--source=nowhere"],
    "evaluate": ["--target=nowhere"],
    "analyze": ["--figure=logits --model=nowhere"],
    "zoo": ["--report=nowhere --run=nowhere"],
    "prepare_data": ["--dataset=svhn"],
    "reproduce": ["--figure=2", "--seeds=0 --table=5", "--table=1 --depth=21",
                  "--table=2 --dataset=x", "--all --scale=0"],
}  # fmt: skip
ROWS = [(program, flags) for program, several in REFUSED.items() for flags in several]


@pytest.mark.parametrize(("program", "flags"), ROWS)
def test_what_cannot_be_is_refused_before_a_heavy_import(program, flags, tmp_path):
    command = [sys.executable, "-c", HELP, program, *flags.split()]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert done.returncode == 2 and not os.listdir(tmp_path)
    (line,) = done.stderr.splitlines()
    assert line.startswith(f"{program}: {flags.split()[-1].partition('=')[0]}: ")


@pytest.mark.parametrize("program", PROGRAMS)
def test_without_the_environment_one_line_says_how_to_make_it(program, tmp_path):
    # -S leaves out the environment's packages, -E what else leads to them.
    command = [sys.executable, "-S", "-E", ROOT / "bin" / program, "--help"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 2 and done.stdout == ""
    (line,) = done.stderr.splitlines()
    assert line.startswith(f"{program}: ") and "make demo" in line and "pip install ." in line


def test_output_that_cannot_be_written_gives_one_line():
    with open("/dev/full", "w") as full:
        command = [sys.executable, ROOT / "bin" / "train", "--help"]
        done = subprocess.run(command, stdout=full, stderr=subprocess.PIPE, text=True)
    assert done.returncode == 2
    assert done.stderr == "train: [Errno 28] No space left on device\n"
