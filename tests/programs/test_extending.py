"""One of each thing is added from outside the package, as docs/extending.md says, and works."""

import json
import os
import pathlib
import re
import subprocess
import sys

import numpy as np
import pytest
from support.files import ROOT
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

# The programs, with the outside package imported first, and the outside settings for flags.
PROGRAM = """
import sys
from support import outside
from cascade_keras.cli import analyze, common, craft, evaluate, flags
from cascade_keras.runs import Training

def train(values):
    settings = flags.read(values, outside.Settings)
    Training(settings).run()
    print("temperature", settings.temperature)

for command in " ".join(sys.argv[1:]).split(" then "):
    program, *rest = command.split()
    if program == "train":
        values = flags.define(outside.Settings)
        sys.exit(common.run_program("train", "", values, train, ["train", *rest]))
    main = {"evaluate": evaluate, "craft": craft, "analyze": analyze}[program].main
    status = main([program, *rest])
    if status:
        sys.exit(status)
"""
RUN = ["--dataset=bars", "--model=mlp24", "--loss=cosine", "--attack=step_dark", "--name=bars",
       "--temperature=3", "--batch_size=32", "--adversarial_batch_size=16", "--log_steps=20",
       "--eval_attacks=step_dark,step_fgsm", "--tensorboard_attacks=step_dark",
       "--distance_weight=0.01", "--seed=2"]  # fmt: skip


def run(program, *flags, expected=0):
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, program, *flags],
        env={**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), str(ROOT / "tests")])},
        capture_output=True,
        text=True,
    )
    assert done.returncode == expected, done.stderr
    return done


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    before, directory = os.getcwd(), tmp_path_factory.mktemp("outside")
    os.chdir(directory)
    yield directory
    os.chdir(before)


@pytest.fixture(scope="module")
def trained(place):
    return run("train", *RUN)


def test_training_takes_an_outside_dataset_network_loss_attack_and_flag(trained, place):
    assert "temperature 3.0" in trained.stdout
    flags = json.loads(pathlib.Path("runs/bars/config.json").read_text())["flags"]
    chosen = [flags[name] for name in ("dataset", "model", "loss", "attack", "temperature")]
    assert chosen == ["bars", "mlp24", "cosine", "step_dark", 3.0]
    results = json.loads(pathlib.Path("runs/bars/metrics.json").read_text())["results"]
    accuracy = {result["attack"]: result["accuracy"] for result in results}
    # Four classes: it has learnt, and the attack it was trained with does little.
    assert accuracy["clean"] > 60 and accuracy["step_dark"] > 50
    assert accuracy["step_fgsm"] < accuracy["step_dark"]


def test_an_outside_panel_is_shown(trained, place):
    events = EventAccumulator("runs/bars/tensorboard")
    events.Reload()
    shown = [tag for tag in events.Tags()["tensors"] if "brightness" in tag]
    assert any("clean" in tag for tag in shown) and any("step_dark" in tag for tag in shown)


@pytest.mark.long
def test_an_outside_attack_is_evaluated_banked_and_drawn(trained, place):
    run("evaluate", "--target=saved/bars", "--attack=step_dark,step_fgsm", "--epsilon=8,32",
        "--output=report", "--diagnosis_images=20",
        "then", "craft", "--source=saved/bars", "--attack=step_dark", "--epsilons=8,32",
        "--split=test", "--output=bank",
        "then", "analyze", "--figure=accuracy_curve", "--model=saved/bars", "--attack=step_dark",
        "--epsilons=0,32", "--num_images=40")  # fmt: skip
    report = json.loads(pathlib.Path("report/report.json").read_text())
    assert {result["attack"] for result in report["results"]} >= {"step_dark", "step_fgsm"}
    images = np.load("bank/images.npy").astype(int)
    from support import outside  # in this process for its numbers only

    _, (clean, _) = outside.load_bars(None, None)
    for level, epsilon in enumerate((8, 32)):
        np.testing.assert_array_equal(images[level], np.maximum(clean.astype(int) - epsilon, 0))
    assert pathlib.Path("figures/accuracy_curve.png").exists()


def test_an_outside_figure_is_drawn_and_an_outside_flag_checked(trained, place):
    wrong = [*RUN[:-1], "--temperature=0"]
    done = run("analyze", "--figure=confidence", "--model=saved/bars", "then", "train", *wrong,
               expected=2)  # fmt: skip
    assert "--temperature: must be above 0" in done.stderr
    with np.load("figures/confidence.npz") as arrays:
        assert arrays["confidence"].shape == (1, 20)
        assert (arrays["confidence"] > 0.25).all()
    assert "How sure networks are" in pathlib.Path("figures/confidence.txt").read_text()


def test_the_page_shows_the_code_that_runs_here():
    code = (ROOT / "tests" / "support" / "outside.py").read_text()
    page = (ROOT / "docs" / "extending.md").read_text()
    blocks = re.findall(r"```python\n(.*?)```", page, re.DOTALL)
    assert len(blocks) == 8
    for block in blocks:
        assert block.strip() in code
