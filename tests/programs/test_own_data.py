"""A folder of images goes through all programs; killed while it is decoded: test_kills.py."""

import json
import os
import pathlib
import re
import shutil
import subprocess
import sys

import numpy as np
import PIL.Image
from sklearn.datasets import load_digits
from support.files import ROOT

from cascade_keras.cli import analyze, craft, evaluate, export, train

PROGRAMS = {
    f.__name__.rpartition(".")[2]: f.main for f in (analyze, craft, evaluate, export, train)
}
TRAIN = (
    "train", "--dataset=my digits", "--image_size=12,8", "--model=lenet", "--loss=pivot",
    "--steps=8", "--batch_size=32", "--adversarial_batch_size=16", "--eval_attacks=step_ll",
    "--tensorboard_images=2", "--tensorboard_epsilon=4", "--augment=crop_flip", "--crop=12,7",
)  # fmt: skip


def write_digits(place, train=200, test=50):
    """Real digits as PNG files; returns the test images and labels in a folder's order."""
    digits = load_digits()
    images, labels = np.round(digits.images * 255 / 16).astype(np.uint8), digits.target
    for number in range(train + test):
        split = "train" if number < train else "test"
        folder = place / "my digits" / split / f"digit {labels[number]}"
        folder.mkdir(parents=True, exist_ok=True)
        PIL.Image.fromarray(images[number]).save(folder / f"{number:04}.png")
    order = train + np.argsort(labels[train : train + test], kind="stable")
    return images[order], labels[order]


def run(program, *flags):
    assert PROGRAMS[program]([program, *flags]) == 0


def test_a_folder_goes_through_all_programs(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    images, labels = write_digits(tmp_path)
    run(*TRAIN)
    name = "my_digits-lenet-pivot-s0"
    config = json.loads(pathlib.Path("runs", name, "config.json").read_text())
    assert config["dataset"]["origin"] == {
        "text": str(tmp_path / "my digits"), "image_size": [12, 8],
    }  # fmt: skip
    assert config["flags"]["crop"] == [12, 7] and config["flags"]["dataset"] == "my_digits"
    assert config["dataset"]["class_names"] == [f"digit {n}" for n in range(10)]

    # From another directory, and without a flag that says which images.
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    monkeypatch.chdir(elsewhere)
    saved = f"../saved/{name}"
    run("evaluate", f"--target={saved}", "--attack=step_ll", "--num_images=50",
        "--diagnosis_images=0", "--output=report")  # fmt: skip
    report = json.loads(pathlib.Path("report/report.json").read_text())
    assert report["dataset"] == "my_digits"
    assert report["dataset_fingerprint"] == config["dataset"]["fingerprint"]
    run("craft", f"--source={saved}", "--epsilons=1..2", "--examples=20", "--output=bank")
    bank = np.load("bank/images.npy")
    assert bank.shape == (2, 20, 12, 7, 1)
    assert json.loads(pathlib.Path("bank/bank.json").read_text())["crop"] == [12, 7]
    run("analyze", "--figure=accuracy_curve", f"--model={saved}", "--num_images=4",
        "--attack=step_ll", "--epsilons=0,8")  # fmt: skip
    # The network that is served takes images as they are stored, and cuts their centre itself.
    run("export", f"--run=../runs/{name}", "--output=served")
    import tensorflow as tf

    raw = tf.saved_model.load("served/1").signatures["raw"]
    stored = np.round(tf.image.resize(images[..., None], (12, 8))).astype(np.uint8)
    found = raw(images=tf.constant(stored))["logits"].numpy().argmax(axis=1)
    clean = next(r for r in report["results"] if r["attack"] == "clean")
    assert int((found == labels).sum()) == clean["correct"]

    # Cascade training takes the bank's epsilons and the same images; the source says which.
    run(*TRAIN[:1], *TRAIN[3:5], "--steps=1", "--batch_size=16", "--adversarial_batch_size=8",
        f"--cascade_source={saved}", "--cascade_mode=bank", "--bank_examples=16", "--crop=12,7",
        "--max_epsilon=2", "--tensorboard=none", "--noexport")  # fmt: skip

    # Other images than the network has learned are not taken for them.
    next((tmp_path / "my digits" / "test" / "digit 3").glob("*.png")).unlink()
    capsys.readouterr()
    assert evaluate.main(["evaluate", f"--target={saved}", "--output=other"]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("evaluate: --dataset: ") and "no longer what" in line
    assert config["dataset"]["fingerprint"][:16] in line
    shutil.rmtree(tmp_path / "my digits")
    assert evaluate.main(["evaluate", f"--target={saved}", "--output=other"]) == 2
    assert re.search(r"--dataset: .*(my digits|\.\.\.).* is not there", capsys.readouterr().err)


WRONG = [
    ("--dataset=nowhere/at/all", "--dataset: "),
    ("--dataset=./empty", "--dataset: "),
    ("--dataset=bad.npz", "--dataset: "),
    ("--dataset=none_here:load", "--dataset: "),
    ("--import=none_here", "--import: "),
    ("--dataset=my digits", "--dataset: "),
]


def test_wrong_data_are_refused_before_tensorflow(tmp_path):
    """All in one process, which must not have imported TensorFlow at its end."""
    write_digits(tmp_path, 4, 2)
    (tmp_path / "my digits" / "train" / "nothing").mkdir()
    (tmp_path / "empty").mkdir()
    (tmp_path / "bad.npz").write_bytes(b"PK")
    code = (
        "import sys; from cascade_keras.cli.train import main\n"
        "for flag in sys.argv[1:]: assert main(['train', flag]) == 2\n"
        "sys.exit(3 if {'tensorflow', 'keras'} & {*sys.modules} else 0)"
    )
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-c", code, *(flag for flag, _ in WRONG)]
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    lines = done.stderr.splitlines()
    for line, (_, start) in zip(lines, WRONG, strict=True):
        assert line.startswith(f"train: {start}")
