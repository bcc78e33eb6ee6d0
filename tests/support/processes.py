"""Programs: in processes of their own, and what they refuse."""

import json
import os
import pathlib
import re
import signal
import subprocess
import sys
import time

import pytest

from support.files import ROOT, tree

TRAININGS = (
    "import json, sys; from cascade_keras.cli.train import main;"
    "assert not any(main(['train', *flags]) for flags in json.loads(sys.argv[1]))"
)


def _start(*command):
    options = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    return subprocess.Popen([sys.executable, *map(str, command)], env=environment, **options)


def start(program, *flags):
    return _start(ROOT / "bin" / program, *flags)


def start_trainings(*trainings):
    """Start bin/train with one list of flags after the other, in one process."""
    return _start("-c", TRAININGS, json.dumps(trainings))


def wait_until(process, true):
    for _ in range(12000):
        assert process.poll() is None, process.communicate()
        if true():
            return
        time.sleep(0.01)
    pytest.fail("it did not come to this")


def awaits_signals(process):
    """Whether a program has come so far that SIGTERM is not the end of it without a word."""
    status = pathlib.Path(f"/proc/{process.pid}/status").read_text()
    (caught,) = re.findall(r"^SigCgt:\s*(\w+)", status, re.MULTILINE)
    return bool(int(caught, 16) >> (signal.SIGTERM - 1) & 1)


def kill(process):
    """kill -9."""
    process.kill()
    process.communicate()


def check_refused(capfd, place, message, program, *flags):
    """Let a function refuse flags: status 2, one line that matches, and every file as it was."""
    before = tree(place)
    capfd.readouterr()
    assert program(*flags) == 2
    (error,) = capfd.readouterr().err.splitlines()
    assert re.search(message, error), error
    assert tree(place) == before
