"""The examples do what their docstrings promise."""

import runpy
import subprocess
import sys
from pathlib import Path

EXAMPLES = Path(__file__).parent.parent / "examples"


def test_hardening_a_network_that_is_not_ours():
    example = runpy.run_path(str(EXAMPLES / "harden_your_model.py"))
    accuracies = example["main"](epochs=20)
    assert accuracies["standard"]["clean"] > 95
    assert accuracies["pivot"]["clean"] > 90
    for attack in ("step_fgsm", "iter_fgsm"):
        assert accuracies["pivot"][attack] > accuracies["standard"][attack] + 15


def test_comparing_runs_that_are_not_there():
    command = [sys.executable, str(EXAMPLES / "compare_runs.py"), "nowhere"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 1
    assert done.stderr == (
        "compare_runs: nowhere is not a finished run (no readable metrics.json)\n"
    )
