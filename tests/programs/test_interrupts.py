"""Ctrl-C and SIGTERM end a program in one line; see tests/sweeps/interrupts.py for more moments."""

import signal
import subprocess
import sys
import time

import pytest
from support.processes import awaits_signals, start, wait_until

WORDS = {signal.SIGINT: "interrupted", signal.SIGTERM: "terminated"}
# A program that is sent the signal in the middle of what its name says.
PROGRAM = """
import os, sys, types
sys.path.insert(0, {place!r})
from cascade_keras import interrupts
from cascade_keras.cli import launch

def ask():
    os.kill(os.getpid(), {number})

def work():
    try:
        ask()
    finally:
        print("cleaned", flush=True)

def swallow():
    try:
        ask()
    except BaseException:
        print("cleaned", flush=True)

def destroy():
    class Asking:
        def __del__(self):
            ask()
    Asking()

def load():
    import asking

def elsewhere():
    standard_error = os.dup(2)
    os.dup2(os.open(os.devnull, os.O_WRONLY), 2)
    load()

def early():
    pass

def main():
    if {moment} is early:
        ask()
    with interrupts.working():
        {moment}()
    print("went on")

sys.modules["cascade_keras.cli.fake"] = types.SimpleNamespace(main=main)
sys.exit(launch.run("fake"))
"""
CLEANS = {
    "early": False, "work": True, "swallow": True, "destroy": False, "load": False,
    "elsewhere": False,
}  # fmt: skip


@pytest.mark.parametrize("number", WORDS, ids=lambda number: number.name)
@pytest.mark.parametrize("moment", CLEANS)
def test_a_program_ends_in_one_line_wherever_it_is(moment, number, tmp_path):
    swallowing = "import __main__\ntry:\n    __main__.ask()\nexcept BaseException:\n    pass\n"
    (tmp_path / "asking.py").write_text(swallowing)
    code = PROGRAM.format(place=str(tmp_path), number=int(number), moment=moment)
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.stderr == f"fake: {WORDS[number]}\n"
    assert (done.returncode, done.stdout) == (128 + number, "cleaned\n" * CLEANS[moment])


@pytest.mark.parametrize("number", WORDS, ids=lambda number: number.name)
def test_a_program_that_imports_ends_in_one_line(number, tmp_path):
    process = start("train", "--dataset=digits", f"--runs_dir={tmp_path}", "--export=false")
    wait_until(process, lambda: awaits_signals(process))
    time.sleep(0.2)  # importing TensorFlow takes seconds
    process.send_signal(number)
    said, errors = process.communicate()
    assert (process.returncode, said, errors) == (128 + number, "", f"train: {WORDS[number]}\n")
