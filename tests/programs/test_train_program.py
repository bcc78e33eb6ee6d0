"""bin/train as a user meets it: results, resuming after any end, and one line for bad input."""

import fcntl
import json
import pathlib
import random
import re
import resource
import signal
import time

import keras
import numpy as np
import pytest
import requests
from support.archives import COUNTS, write_archives
from support.files import tree
from support.processes import start, wait_until

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
    assert set(config["versions"]) == {"python", "numpy", "tensorflow", "keras"}

    metrics = json.loads((run / "metrics.json").read_text())
    assert metrics["steps"] == 30
    assert [r["attack"] for r in metrics["results"]] == ["clean", "step_ll"]
    for result in metrics["results"]:
        assert result["examples"] == 360
        assert result["accuracy"] == pytest.approx(100 * result["correct"] / 360)

    names = sorted(path.name for path in (run / "checkpoints").glob("*.keras"))
    assert names == ["step-00000010.keras", "step-00000020.keras", "step-00000030.keras"]
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
    weights = tmp_path / "w.keras"
    weights.write_bytes((finished[1] / "model.keras").read_bytes())
    flags = ("--steps=2", "--learning_rate=1e-12", f"--init_from={weights}", "--loss=kurakin",
             "--name=next", "--checkpoint_steps=1")  # fmt: skip
    assert train_here(tmp_path, *flags) == 0
    networks = [keras.models.load_model(file) for file in (weights, tmp_path / "next/model.keras")]
    for a, b in zip(*(network.trainable_weights for network in networks)):
        np.testing.assert_allclose(a.numpy(), b.numpy(), atol=1e-7)
    for gone in (weights, *(tmp_path / "next").glob("m*")):
        gone.unlink()
    (tmp_path / "next" / "checkpoints" / "step-00000002.keras").unlink()
    assert train_here(tmp_path, *flags) == 0
    assert (tmp_path / "next" / "metrics.json").exists()


def begin(runs, *flags):
    return start("train", *SMALL, f"--runs_dir={runs}", "--deterministic", *flags)


def newest_step(run):
    return max((int(p.stem[5:]) for p in run.glob("checkpoints/step-*.keras")), default=0)


def test_killed_stopped_and_damaged_a_run_ends_with_the_same_weights(tmp_path):
    """kill -9 at a random step, SIGTERM and a truncated checkpoint do not show in the result."""
    flags = ("--steps=160", "--checkpoint_steps=7", "--name=run")
    reference, interrupted = tmp_path / "reference", tmp_path / "interrupted"
    process = begin(reference, *flags)
    assert process.wait() == 0, process.communicate()
    run = interrupted / "run"

    killed_at = random.randint(7, 40)
    process = begin(interrupted, *flags)
    wait_until(process, lambda: newest_step(run) >= killed_at)
    time.sleep(random.random() / 20)
    process.kill()
    process.communicate()
    newest = sorted(run.glob("checkpoints/step-*.keras"))[-1]
    newest.write_bytes(newest.read_bytes()[:-1000])

    process = begin(interrupted, *flags)
    wait_until(process, lambda: newest_step(run) >= int(newest.stem[5:]) + 14)
    process.send_signal(signal.SIGTERM)
    output, errors = process.communicate()
    assert process.returncode == 128 + signal.SIGTERM, errors
    assert f"{newest.name} is damaged" in errors and "trying the one before" in errors
    stopped = re.search(r"stopped at step (\d+) of 160; the same command goes on", output)
    assert stopped, output
    assert (run / "checkpoints" / f"step-{int(stopped[1]):08d}.keras").exists()

    process = begin(interrupted, *flags)
    output, errors = process.communicate()
    assert process.returncode == 0, errors
    assert f"going on from step {stopped[1]} of 160" in output
    weights = [
        keras.models.load_model(runs / "run" / "model.keras").get_weights()
        for runs in (reference, interrupted)
    ]
    for expected, got in zip(*weights):
        np.testing.assert_array_equal(expected, got)
    results = [
        json.loads((r / "run" / "metrics.json").read_text()) for r in (reference, interrupted)
    ]
    assert results[0] == results[1]


@pytest.mark.parametrize(
    ("dataset", "flags", "input_shape", "embedding"),
    [
        ("mnist", ["--model=lenet", "--loss=bidirectional"], (28, 28, 1), 10),
        ("cifar10", ["--distance=l1", "--embedding_at=stage3"], (24, 24, 3), 6 * 6 * 64),
        (
            "cifar100",
            [
                "--model=lenet",
                "--crop=32",
                "--normalization=image",
                "--use_ema",
                "--precision=mixed_bfloat16",
            ],
            (32, 32, 3),
            100,
        ),
    ],
    ids=["mnist", "cifar10", "cifar100"],
)
def test_every_dataset_trains(dataset, flags, input_shape, embedding, tmp_path):
    """From archives of a few random images through prepare_data's function to a finished run."""
    write_archives(dataset, tmp_path / "archives")
    archives.prepare(dataset, tmp_path / "archives", tmp_path / "data", counts=COUNTS)
    options = [f"--dataset={dataset}", f"--data_dir={tmp_path / 'data'}", "--name=run", *flags]
    batch = ["--batch_size=32", "--adversarial_batch_size=16", "--steps=6", "--checkpoint_steps=4"]
    assert train_here(tmp_path, *options, *batch) == 0
    network = keras.models.load_model(tmp_path / "run" / "model.keras")
    assert network.input_shape == (None, *input_shape)
    assert network.output["embedding"].shape == (None, embedding)
    config = json.loads((tmp_path / "run" / "config.json").read_text())
    assert config["flags"]["max_epsilon"] == (76.5 if dataset == "mnist" else 16)
    results = json.loads((tmp_path / "run" / "metrics.json").read_text())["results"]
    assert results[0]["examples"] == COUNTS["test"]


# Bad input. Each row: what is wrong, flags that differ from SMALL, part of the message. Every row
# must give that one line, exit code 2, and leave every file as it was. What else settings refuse is
# in tests/training/test_training_run.py.
FLAGS = [
    ("unknown flag", ["--epochs=3"], "'epochs'"),
    ("not a flag", ["resnet20"], "'resnet20'"),
    ("unknown dataset", ["--dataset=svhn"], "--dataset: .*digits.*svhn"),
    ("unknown model", ["--model=vgg16"], "--model: .*vgg16.*resnetD"),
    ("steps not a number", ["--steps=ten"], "--steps: .*'ten'"),
    ("epsilon above 255", ["--max_epsilon=300"], "--max_epsilon: .*0..255, got 300"),
    ("k above m/2", ["--adversarial_batch_size=65"], "--adversarial_batch_size: .*batch_size .64."),
    ("batch above the data", ["--batch_size=4000"], "--batch_size: 3936 clean .* exceed the 1437"),
    ("name with a folder", ["--name=../x"], "--name: must be a folder name.*'../x'"),
    ("unknown embedding", ["--embedding_at=stage9"], "--embedding_at: 'stage9' .*stage3"),
    ("no flag file", ["--flagfile=nowhere.txt"], "nowhere.txt"),
    ("init_from missing", ["--init_from=nowhere"], "--init_from: nowhere does not exist"),
    ("no data, no network", ["--dataset=mnist", "--data_dir={data}"],
     "--data_dir: mnist is not ready in .*data .not prepared.*prepare_data"),
]  # fmt: skip


def check_refused(capfd, directory, message, *flags):
    before = tree(directory)
    capfd.readouterr()
    assert train_here(directory / "runs", *flags) == 2
    errors = capfd.readouterr().err.splitlines()
    assert len(errors) == 1, errors
    assert errors[0].startswith("train: ") and re.search(message, errors[0]), errors[0]
    assert tree(directory) == before


@pytest.mark.parametrize(("flags", "message"), [row[1:] for row in FLAGS],
                         ids=[row[0] for row in FLAGS])  # fmt: skip
def test_a_bad_flag_gives_one_line_and_leaves_nothing(flags, message, tmp_path, capfd, monkeypatch):
    def unreachable(*args, **kwargs):
        raise requests.ConnectionError("network is unreachable")

    monkeypatch.setattr(requests, "head", unreachable)
    monkeypatch.chdir(tmp_path)
    flags = [flag.format(data=tmp_path / "data") for flag in flags]
    check_refused(capfd, tmp_path, message, *flags)
    assert not list(tmp_path.iterdir())


def copy_run(finished, tmp_path):
    """An unfinished copy of the finished run, to be spoilt."""
    run = tmp_path / "runs" / "done"
    for path, content in tree(finished[1]).items():
        if path.name not in ("metrics.json", "model.keras"):
            (run / path).parent.mkdir(parents=True, exist_ok=True)
            (run / path).write_bytes(content)
    return run


def other_contents(run):
    (run / "config.json").unlink()


def broken_config(run):
    (run / "config.json").write_text('{"flags": ')


def other(**fields):
    """Change a run's config.json; of a dictionary what is given."""

    def spoil(run):
        config = json.loads((run / "config.json").read_text())
        for name, value in fields.items():
            config[name] = {**config[name], **value} if isinstance(value, dict) and value else value
        (run / "config.json").write_text(json.dumps(config))

    return spoil


def corrupt_checkpoints(run):
    for path in run.glob("checkpoints/*.keras"):
        content = bytearray(path.read_bytes())
        content[len(content) // 2] ^= 0xFF  # one flipped byte: the file opens, its checksum differs
        path.write_bytes(content)


RUNS = [
    ("other flag", lambda run: None, ["--steps=40"], "--steps: is 40 but .* was started with 30"),
    ("not a run", other_contents, [], "--name: .*done exists and is not a run"),
    ("broken config", broken_config, [], "config.json: cannot be read"),
    ("no flags", other(flags=[]), [], "config.json: flags"),
    ("no dataset", other(dataset={}), [], "config.json: dataset"),
    ("damaged sources", other(ensemble=5), [], "config.json: ensemble"),
    ("a later version's flag", other(flags={"curvature": 1}), [], "with curvature, .* not know"),
    ("a later format", other(format=3), [], "config.json: .*format 3"),
    ("other data", other(dataset={"fingerprint": "0" * 64}), [], "--data_dir: the digits found"),
]


@pytest.mark.parametrize(("spoil", "flags", "message"), [row[1:] for row in RUNS],
                         ids=[row[0] for row in RUNS])  # fmt: skip
def test_an_existing_run_is_not_mixed_up(spoil, flags, message, finished, tmp_path, capfd):
    spoil(copy_run(finished, tmp_path))
    check_refused(capfd, tmp_path, message, "--steps=30", "--name=done", *flags)


def test_a_run_without_a_readable_checkpoint_is_refused(finished, tmp_path, capfd):
    run = copy_run(finished, tmp_path)
    corrupt_checkpoints(run)
    before = tree(tmp_path)
    assert train_here(tmp_path / "runs", "--steps=30", "--name=done") == 2
    *warnings, error = capfd.readouterr().err.splitlines()
    assert [re.sub(r"\(.*\)", "", line).split()[0] for line in warnings] == ["warning:"] * 3
    assert re.search("train: .*none of the 3 checkpoints can be read", error)
    assert tree(tmp_path) == before


def test_a_run_in_use_is_refused(finished, tmp_path, capfd):
    run = copy_run(finished, tmp_path)
    with open(run / "checkpoints" / ".lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        check_refused(capfd, tmp_path, "is in use by another process", "--steps=30", "--name=done")


def test_a_directory_that_cannot_be_written_is_refused(tmp_path, capfd):
    (tmp_path / "runs").write_text("a file, not a directory")
    check_refused(capfd, tmp_path, "--runs_dir: cannot write in .*runs", "--steps=5")


@pytest.mark.parametrize(
    ("name", "make", "message"),
    [
        ("w.keras", lambda path, run: path.write_bytes(b"not a zip"), "does not hold the weights"),
        ("w.bin", lambda path, run: path.write_bytes(b""), "neither a .keras nor a .weights.h5"),
        ("w.weights.h5", lambda path, run: keras.Sequential(
            [keras.Input((3,)), keras.layers.Dense(2)]).save_weights(path), "does not hold the"),
    ],
)  # fmt: skip
def test_weights_that_do_not_fit_are_refused(name, make, message, finished, tmp_path, capfd):
    make(tmp_path / name, finished[1])
    check_refused(capfd, tmp_path, message, "--steps=5", f"--init_from={tmp_path / name}")


def test_divergence_is_one_line_and_keeps_the_last_good_checkpoint(tmp_path, capfd):
    flags = ("--steps=50", "--learning_rate=1e6", "--checkpoint_steps=1", "--name=wild")
    assert train_here(tmp_path, *flags) == 2
    lines = [x for x in capfd.readouterr().err.splitlines() if not x.startswith("step ")]
    assert len(lines) == 1
    told = r"train: the (loss is|weights are) .*step \d+.*try a smaller .*kept in .*wild"
    assert re.fullmatch(told, lines[0])
    for path in (tmp_path / "wild" / "checkpoints").glob("*.keras"):
        trainer = keras.models.load_model(path)
        assert all(np.isfinite(weight).all() for weight in trainer.network.get_weights())
    assert not (tmp_path / "wild" / "metrics.json").exists()


def test_a_full_disk_is_one_line_and_nothing_is_half_written(tmp_path, capfd):
    """The kernel refuses to let any file grow above 100 kB, as a full disk would."""
    _, hard = limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, hard))
    try:
        assert train_here(tmp_path, "--steps=20", "--name=full") == 2
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    lines = [x for x in capfd.readouterr().err.splitlines() if not x.startswith("step ")]
    assert len(lines) == 1, lines
    assert re.fullmatch(
        r"train: .*full/checkpoints/step-00000020.keras: File too large.*", lines[0]
    )
    files = [path for path in tree(tmp_path) if path.suffix != ".v2"]
    assert files == [pathlib.Path("full/config.json")]
