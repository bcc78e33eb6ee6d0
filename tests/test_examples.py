"""The examples do what their docstrings promise."""

import json
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


def test_comparing_runs(tmp_path):
    results = [
        {"attack": "clean", "epsilon": 0.0, "accuracy": 99.25, "examples": 400},
        {"attack": "step_ll", "epsilon": 76.5, "accuracy": 65.6, "examples": 360},
    ]
    for name, kept in (("a", results), ("b", results[:1])):
        (tmp_path / name).mkdir()
        (tmp_path / name / "metrics.json").write_text(json.dumps({"results": kept}))
    runs = [str(tmp_path / "a"), str(tmp_path / "b")]
    assert compare(*runs, "--markdown").stdout.splitlines() == [
        "| run | clean | step_ll 76.5 |",
        "| --- | ---: | ---: |",
        "| a | 99.2 / 400 | 65.6 / 360 |",
        "| b | 99.2 / 400 |  |",
    ]
    table = compare(*runs).stdout
    assert max(map(len, table.splitlines())) <= 80 and "65.6 / 360" in table


def compare(*arguments):
    command = [sys.executable, str(EXAMPLES / "compare_runs.py"), *arguments]
    return subprocess.run(command, capture_output=True, text=True)


def test_comparing_runs_that_are_not_there():
    done = compare("nowhere")
    assert done.returncode == 1
    assert done.stderr == (
        "compare_runs: nowhere is not a finished run (no readable metrics.json)\n"
    )
