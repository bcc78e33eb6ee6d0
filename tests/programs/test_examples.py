"""The examples do what their docstrings promise."""

import base64
import contextlib
import html
import io
import json
import runpy
import subprocess
import sys
from pathlib import Path

import pytest
import tensorflow  # noqa: F401  its import starts processes, which a test below replaces
from support.files import ROOT

from cascade_keras.cli import analyze, evaluate, train

EXAMPLES = ROOT / "examples"
PROGRAMS = {"train": train, "evaluate": evaluate, "analyze": analyze}


def example(name, *arguments):
    """Run it as a program."""
    command = [sys.executable, str(EXAMPLES / name), *arguments]
    return subprocess.run(command, capture_output=True, text=True)


@pytest.mark.long
def test_hardening_a_network_that_is_not_ours():
    accuracies = runpy.run_path(str(EXAMPLES / "harden_your_model.py"))["main"](epochs=9)
    assert accuracies["standard"]["clean"] > 95 and accuracies["pivot"]["clean"] > 90
    for attack in ("step_fgsm", "iter_fgsm"):
        assert accuracies["pivot"][attack] > accuracies["standard"][attack] + 10


@pytest.mark.long
def test_from_python_leaves_what_the_programs_leave(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    main = runpy.run_path(str(EXAMPLES / "from_python.py"))["main"]
    report = main(steps=2, model="lenet", images=10, banked=64)
    cells = {(r["target"], r["source"], r["attack"], r["epsilon"]) for r in report["results"]}
    assert {("pivot", "cascade", "step_ll", 8), ("cascade", "pivot", "iter_fgsm", 16)} <= cells
    kept = "banks/pivot/bank.json", "reports/cascade/report.json", "figures/noise_correlation.png"
    assert all((tmp_path / file).exists() for file in kept)


def test_comparing_runs(tmp_path):
    results = [
        {"attack": "clean", "epsilon": 0.0, "accuracy": 99.25, "examples": 400},
        {"attack": "pgd", "epsilon": 76.5, "accuracy": 65.6, "examples": 360,
         "options": {"steps": 40, "step_size": None}},
    ]  # fmt: skip
    for name, kept in (("a", results), ("b", results[:1])):
        (tmp_path / name).mkdir()
        (tmp_path / name / "metrics.json").write_text(json.dumps({"results": kept}))
    runs = [str(tmp_path / "a"), str(tmp_path / "b")]
    assert example("compare_runs.py", *runs, "--markdown").stdout.splitlines() == [
        "| run | clean | pgd 76.5 (steps 40) |",
        "| --- | ---: | ---: |",
        "| a | 99.2 / 400 | 65.6 / 360 |",
        "| b | 99.2 / 400 |  |",
    ]
    table = example("compare_runs.py", *runs).stdout
    assert max(map(len, table.splitlines())) <= 80 and "65.6 / 360" in table
    done = example("compare_runs.py", "nowhere")
    assert done.returncode == 1 and done.stderr.startswith("compare_runs: nowhere is not a fin")


@pytest.mark.long
def test_the_tour_goes_from_training_to_figures(tmp_path, monkeypatch, capsys):
    ran = []

    def run_here(command, cwd, **options):
        """In this process, which has imported TensorFlow already."""
        program, flags = Path(command[1]).name, command[2:]
        printed = io.StringIO()
        with contextlib.chdir(cwd), contextlib.redirect_stdout(printed):
            status = PROGRAMS[program].main([program, *flags])
        ran.append((" ".join([f"bin/{program}", *flags]), printed.getvalue()))
        return subprocess.CompletedProcess(command, status, printed.getvalue())

    monkeypatch.setattr(subprocess, "run", run_here)
    flags = ["--steps=2", "--model=lenet", "--images=20", "--figures", "loss_surface"]
    monkeypatch.setattr(sys, "argv", ["tour.py", f"--output={tmp_path}", *flags])
    runpy.run_path(str(EXAMPLES / "tour.py"), run_name="__main__")

    page = (tmp_path / "index.html").read_text("utf-8")
    assert capsys.readouterr().out.splitlines()[:-1] == [command for command, _ in ran]
    assert [command.split()[0][4:] for command, _ in ran] == ["train"] * 2 + ["evaluate", "analyze"]
    for command, printed in ran:
        assert printed.count("\n") > 0 and f"<pre>$ {command}\n{html.escape(printed)}</pre>" in page
    for place in ("reports/tour/white_box-76.5", "figures/loss_surface"):
        content = base64.b64encode((tmp_path / f"{place}.png").read_bytes()).decode()
        assert f'<img alt="{Path(place).name}" src="data:image/png;base64,{content}">' in page
    caption = (tmp_path / "figures" / "loss_surface.txt").read_text("utf-8")
    assert html.escape(caption) in page


def test_the_tour_stops_where_a_program_fails(tmp_path):
    done = example("tour.py", f"--output={tmp_path}", "--steps=0")
    assert done.returncode == 1 and not (tmp_path / "index.html").exists()
    assert done.stderr.splitlines()[-1].startswith("tour: bin/train --dataset=digits")
