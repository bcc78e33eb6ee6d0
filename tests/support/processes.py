"""Programs as processes of their own."""

import subprocess
import sys
import time

import pytest

from support.files import ROOT


def start(program, *flags):
    command = [sys.executable, str(ROOT / "bin" / program), *flags]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def wait_until(process, true):
    for _ in range(12000):
        assert process.poll() is None, process.communicate()
        if true():
            return
        time.sleep(0.01)
    pytest.fail("it did not come to this")
