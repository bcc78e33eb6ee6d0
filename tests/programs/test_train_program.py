"""bin/train as a user meets it: results, resuming after any end, and one line for bad input."""

import fcntl
import json
import pathlib
import re
import resource
import shutil

import keras
import numpy as np
import pytest
import requests
from support.archives import COUNTS, write_archives
from support.files import flip, tree
from support.processes import check_refused

from cascade_keras.cli.train import main
from cascade_keras.data import archives

SMALL = [
    "--dataset=digits", "--model=resnet8", "--eval_attacks=step_ll", "--log_steps=10", "--noexport",
    "--tensorboard=scalars",
]  # fmt: skip


def train_here(directory, *flags):
    return main(["train", *SMALL, f"--runs_dir={directory}", *flags])


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A finished run of 30 steps: (runs directory, run directory)."""
    runs = tmp_path_factory.mktemp("runs")
    assert train_here(runs, "--steps=30", "--name=done", "--checkpoint_steps=10") == 0
    return runs, runs / "done"


def test_a_run_leaves_what_others_build_on(finished):
    _, run = finished
    config = json.loads((run / "config.json").read_text())
    assert config["flags"]["model"] == "resnet8" and config["flags"]["max_epsilon"] == 76.5
    assert config["seed"] == 0 and config["dataset"]["name"] == "digits" and config["format"] == 2
    assert len(config["dataset"]["fingerprint"]) == 64
    assert set(config["versions"]) == {"cascade_keras", "python", "numpy", "tensorflow", "keras"}

    metrics = json.loads((run / "metrics.json").read_text())
    assert metrics["steps"] == 30
    assert [r["attack"] for r in metrics["results"]] == ["clean", "step_ll"]
    for result in metrics["results"]:
        assert result["examples"] == 360
        assert result["accuracy"] == pytest.approx(100 * result["correct"] / 360)

    names = sorted(path.name for path in (run / "checkpoints").glob("*.keras"))
    assert names == ["step-00000010.keras", "step-00000020.keras", "step-00000030.keras"]
    (events,) = (run / "tensorboard").iterdir()
    assert events.name.startswith("events.out.tfevents")
    network = keras.models.load_model(run / "model.keras")
    assert set(network.output) == {"embedding", "logits"}


def test_a_finished_run_says_so_and_does_nothing(finished, capsys):
    before = tree(finished[0])
    assert train_here(finished[0], "--steps=30", "--name=done") == 0
    assert "is finished" in capsys.readouterr().out
    assert tree(finished[0]) == before


def test_a_run_starts_from_its_initialisation_and_needs_it_no_longer_when_under_way(
    finished, tmp_path
):
    weights, run = tmp_path / "w.keras", tmp_path / "next"
    shutil.copy(finished[1] / "model.keras", weights)
    flags = ("--steps=2", "--learning_rate=1e-12", f"--init_from={weights}", "--loss=kurakin",
             "--name=next", "--checkpoint_steps=1")  # fmt: skip
    assert train_here(tmp_path, *flags) == 0
    networks = [keras.models.load_model(file) for file in (weights, run / "model.keras")]
    for a, b in zip(*(network.trainable_weights for network in networks)):
        np.testing.assert_allclose(a.numpy(), b.numpy(), atol=1e-7)
    for gone in (weights, *run.glob("m*"), run / "checkpoints" / "step-00000002.keras"):
        gone.unlink()
    assert train_here(tmp_path, *flags) == 0
    assert (run / "metrics.json").exists()


@pytest.mark.parametrize(
    ("dataset", "flags", "input_shape", "embedding"),
    [
        ("mnist", "--model=lenet --loss=bidirectional", (28, 28, 1), 10),
        ("cifar10", "--distance=l1 --embedding_at=stage3", (24, 24, 3), 6 * 6 * 64),
        ("cifar100", "--model=lenet --crop=32 --normalization=image --use_ema "
         "--precision=mixed_bfloat16 --batch_size=8 --adversarial_batch_size=4", (32, 32, 3), 100),
    ],
)  # fmt: skip
def test_every_dataset_trains(dataset, flags, input_shape, embedding, tmp_path):
    """From archives of a few random images through prepare_data's function to a finished run."""
    write_archives(dataset, tmp_path / "archives")
    archives.prepare(dataset, tmp_path / "archives", tmp_path / "data", counts=COUNTS)
    options = [f"--dataset={dataset}", f"--data_dir={tmp_path / 'data'}", "--name=run"]
    batch = ["--batch_size=32", "--adversarial_batch_size=16", "--steps=6", "--checkpoint_steps=4"]
    assert train_here(tmp_path, *options, *batch, *flags.split()) == 0
    network = keras.models.load_model(tmp_path / "run" / "model.keras")
    assert network.input_shape == (None, *input_shape)
    assert network.output["embedding"].shape == (None, embedding)
    config = json.loads((tmp_path / "run" / "config.json").read_text())
    assert config["flags"]["max_epsilon"] == (76.5 if dataset == "mnist" else 16)
    results = json.loads((tmp_path / "run" / "metrics.json").read_text())["results"]
    assert results[0]["examples"] == COUNTS["test"]


# Bad input. Each row: flags that differ from SMALL, part of the message. What else settings refuse
# is in tests/training/test_training_run.py, what flags refuse in test_flags.py.
FLAGS = [
    (["--steps=ten"], "--steps: .*'ten'"),
    (["--adversarial_batch_size=65"], "--adversarial_batch_size: .*batch_size .64."),
    (["--batch_size=4000"], "--batch_size: 3936 clean .* exceed the 1437"),
    (["--name=../x"], "--name: must be a folder name.*'../x'"),
    (["--flagfile=nowhere.txt"], "nowhere.txt"),
    (["--init_from=nowhere"], "--init_from: nowhere does not exist"),
    (["--dataset=mnist", "--data_dir=data"],
     "--data_dir: mnist is not ready in data .not prepared.*prepare_data"),
    (["--runs_dir=taken"], "--runs_dir: .*taken is not a directory"),
]  # fmt: skip


@pytest.mark.parametrize(("flags", "message"), FLAGS)
def test_a_bad_flag_gives_one_line_and_leaves_nothing(flags, message, tmp_path, capfd, monkeypatch):
    def unreachable(*args, **kwargs):
        raise requests.ConnectionError("network is unreachable")

    monkeypatch.setattr(requests, "head", unreachable)
    monkeypatch.chdir(tmp_path)
    pathlib.Path("taken").write_text("a file, not a directory")
    check_refused(capfd, tmp_path, f"train: .*{message}", train_here, "runs", *flags)
    assert list(pathlib.Path().rglob("*")) == [pathlib.Path("taken")]


@pytest.fixture
def begun(finished, tmp_path):
    """An unfinished copy of the finished run, to be spoilt."""
    run = tmp_path / "runs" / "done"
    ignored = shutil.ignore_patterns("metrics.json", "model.keras", ".lock")
    shutil.copytree(finished[1], run, ignore=ignored)
    return run


def other(**fields):
    def spoil(run):
        config = json.loads((run / "config.json").read_text())
        (run / "config.json").write_text(json.dumps(config | fields))

    return spoil


def begun_with(**flags):
    def spoil(run):
        before = json.loads((run / "config.json").read_text())["flags"]
        other(flags=before | flags)(run)

    return spoil


RUNS = [
    ("a stranger's home", begun_with(init_from="~nobody-here/w.keras"), [],
     "--init_from: is None but .* was started with '~nobody-here/w.keras'"),
    ("other flag", lambda run: None, ["--steps=40"], "--steps: is 40 but .* was started with 30"),
    ("not a run", lambda run: (run / "config.json").unlink(), [], "--name: .*done .*is not a run"),
    ("a later flag", other(flags={"pruning": 1}, versions={"cascade_keras": "9.1"}), [],
     "started with pruning, which is no setting here; use version 9.1 of cascade_keras"),
    ("a later format", other(format=3, versions={"cascade_keras": "9.1"}), [],
     "config.json: is of format 3, .* knows up to 2; use version 9.1 of cascade_keras"),
    ("a later field", other(pruned=True, versions={"cascade_keras": "9.1"}), [],
     "config.json: object contains unknown field `pruned`; use version 9.1 of cascade_keras"),
]  # fmt: skip


@pytest.mark.parametrize(("wrong", "spoil", "flags", "message"), RUNS)
def test_an_existing_run_is_not_mixed_up(wrong, spoil, flags, message, begun, capfd):
    spoil(begun)
    flags = [begun.parent, "--steps=30", "--name=done", *flags]
    check_refused(capfd, begun.parent, f"train: .*{message}", train_here, *flags)


def test_a_run_without_a_readable_checkpoint_is_refused(begun, capfd):
    for path in begun.glob("checkpoints/*.keras"):
        flip(path)  # the file opens, its checksum differs
    before = tree(begun)
    assert train_here(begun.parent, "--steps=30", "--name=done") == 2
    *warnings, error = capfd.readouterr().err.splitlines()
    assert [line.split()[0] for line in warnings] == ["warning:"] * 3
    assert re.search("train: .*none of the 3 checkpoints can be used", error)
    assert tree(begun) == before


def test_a_run_in_use_is_refused(begun, capfd):
    flags = [begun.parent, "--steps=30", "--name=done"]
    with open(begun / "checkpoints" / ".lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        check_refused(capfd, begun, "train: .*in use by another process", train_here, *flags)


@pytest.mark.parametrize(
    ("name", "make", "message"),
    [
        ("w.keras", lambda path: path.write_bytes(b"not a zip"), "does not hold the weights"),
        ("w.bin", lambda path: path.write_bytes(b""), "neither a .keras nor a .h5"),
        ("w.weights.h5", lambda path: keras.Sequential(
            [keras.Input((3,)), keras.layers.Dense(2)]).save_weights(path), "does not hold the"),
    ],
)  # fmt: skip
def test_weights_that_do_not_fit_are_refused(name, make, message, tmp_path, capfd):
    make(tmp_path / name)
    flags = [tmp_path / "runs", "--steps=5", f"--init_from={tmp_path / name}"]
    check_refused(capfd, tmp_path, f"train: .*{message}", train_here, *flags)


def test_divergence_is_one_line_and_keeps_the_last_good_checkpoint(tmp_path, capfd):
    flags = ("--steps=50", "--learning_rate=1e6", "--checkpoint_steps=1", "--name=wild")
    assert train_here(tmp_path, *flags) == 2
    (line,) = (x for x in capfd.readouterr().err.splitlines() if not x.startswith("step "))
    told = r"train: the (loss is|weights are) .*step \d+.*try a smaller .*kept in .*wild"
    assert re.fullmatch(told, line)
    for path in (tmp_path / "wild" / "checkpoints").glob("*.keras"):
        trainer = keras.models.load_model(path)
        assert all(np.isfinite(weight).all() for weight in trainer.network.get_weights())
    assert not (tmp_path / "wild" / "metrics.json").exists()


# The kernel refuses to let any file grow above so many bytes, as a full disk would.
FULL = [
    (1000, "full/config.json: File too large", []),
    (8000, "full/tensorboard: events cannot be written .File too large.; there is no checkpoint "
     "yet, the same command starts anew", [".lock", "config.json"]),
    (100_000, "checkpoints/step-00000020.keras: File too large; there is no checkpoint yet, .*",
     [".lock", "config.json"]),
]  # fmt: skip


@pytest.mark.parametrize(("most", "message", "left"), FULL)
def test_a_full_disk_is_one_line_and_nothing_is_half_written(most, message, left, tmp_path, capfd):
    flags = [tmp_path / "runs", "--model=lenet", "--steps=20", "--log_steps=1", "--name=full"]
    _, hard = limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (most, hard))
    try:
        assert train_here(*flags) == 2
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    (line,) = (x for x in capfd.readouterr().err.splitlines() if not x.startswith("step "))
    assert re.fullmatch(f"train: .*{message}", line)
    files = [path for path in tmp_path.rglob("*") if path.is_file() and path.suffix != ".v2"]
    assert sorted(path.name for path in files) == left
    assert bool(left) or not list(tmp_path.iterdir())
    if most == FULL[-1][0]:
        assert train_here(*flags) == 0 and (tmp_path / "runs/full/metrics.json").exists()
