"""Cascade and ensemble training through the programs: results, kills at any moment, bad input."""

import contextlib
import json
import os
import pathlib
import random
import re
import shutil
import signal
import time

import keras
import numpy as np
import pytest
import tensorflow as tf
from support.files import tree
from support.processes import check_refused, kill, start, start_trainings, wait_until

from cascade_keras import attacks, bank, cascade, data
from cascade_keras.cli import craft, train
from cascade_keras.runs.run import Run
from cascade_keras.sources import load_source

SMALL = [
    "--model=resnet8", "--eval_attacks=step_ll", "--log_steps=10", "--max_epsilon=6",
    "--tensorboard=scalars",
]  # fmt: skip


def train_here(*flags):
    """Run bin/train in the current directory."""
    return train.main(["train", *SMALL, *flags])


def weights(run):
    return keras.models.load_model(pathlib.Path(run) / "model.keras").get_weights()


def content(file):
    return json.loads(pathlib.Path(file).read_text())


def cascade_of(run):
    return content(f"runs/{run}/config.json")["cascade"]


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A directory in which a standard and, from it, a pivot network were trained and exported."""
    directory = tmp_path_factory.mktemp("trained")
    with contextlib.chdir(directory):
        assert train_here("--loss=standard", "--steps=30", "--name=std") == 0
        assert train_here("--loss=pivot", "--steps=30", "--name=piv", "--init_from=runs/std") == 0
    return directory


def test_a_finished_run_is_exported_and_the_export_is_the_run(place):
    for name in ("std", "piv"):
        saved, run = load_source(f"saved/{name}"), load_source(f"runs/{name}")
        assert saved.path == pathlib.Path(f"saved/{name}/1")
        assert saved.weights_hash == run.weights_hash
        assert saved.provenance["dataset"]["name"] == "digits"
        images = tf.constant(data.test_images(data.load("digits"), 8)[0][:32])
        np.testing.assert_array_equal(saved.logits(images), run.logits(images))


def test_cascade_and_ensemble_sources_go_together(place):
    """With each loss: tests/training/test_cascade.py."""
    flags = ["--cascade_source=saved/piv,runs/std", "--ensemble_source=saved/std"]
    assert train_here(*flags, "--loss=kurakin", "--bank_examples=64", "--steps=2") == 0
    name = "digits-resnet8-kurakin-cascade-ensemble-s0"
    assert content(f"runs/{name}/metrics.json")["steps"] == 2
    recorded = content(f"runs/{name}/config.json")
    sources = [[s["name"] for s in recorded[kind]["sources"]] for kind in ("cascade", "ensemble")]
    assert sources == [["piv", "std"], ["std"]]
    assert load_source(f"saved/{name}").provenance["recipe"]["loss"] == "kurakin"


@pytest.mark.long
def test_bank_and_online_show_the_network_the_same_images(place):
    """Without random crops the two modes differ by float rounding only."""
    common = ["--steps=1", "--learning_rate=0.01", "--max_epsilon=3", "--noexport"]
    for mode in ("bank", "online"):
        flags = ["--cascade_source=saved/piv", f"--cascade_mode={mode}", f"--name={mode}"]
        assert train_here(*common, *flags) == 0
        assert cascade_of(mode)["mode"] == mode
    assert train_here(*common, "--name=none") == 0
    moved = 0
    runs = (weights(f"runs/{name}") for name in ("bank", "online", "none"))
    for one, other, without in zip(*runs, strict=True):
        np.testing.assert_allclose(one, other, atol=1e-6)
        moved = max(moved, np.abs(one - without).max())
    assert moved > 1e-4  # the cascade images do make a difference


@pytest.mark.long
def test_auto_takes_fewer_gradients_says_so_and_stays_with_it(place, capsys):
    def mode(*flags):
        assert train_here("--cascade_source=saved/piv", "--noexport", *flags) == 0
        return re.search(
            r"cascade images: (\w+), the cheaper way; online ([\d,]+) gradients over ([\d,]+) "
            r"steps, bank ([\d,]+) for ([\d,]+) images", capsys.readouterr().out
        ).groups()  # fmt: skip

    chosen, online, steps, banked, images = mode("--steps=2", "--name=short")
    assert (chosen, steps, images) == ("online", "2", "1,437")
    assert int(banked.replace(",", "")) == 1437 * attacks.ladder_gradients(range(1, 7))
    each = cascade.online_gradients(6, "clipped_normal")
    assert int(online.replace(",", "")) == round(2 * 32 * each)
    assert not pathlib.Path("banks").exists()

    crafted_bank(150)
    chosen, _, _, banked, images = mode("--steps=3", "--name=free")
    assert (chosen, banked, images) == ("bank", "0", "0")
    assert cascade_of("free")["bank_examples"] == [150]

    # Nor does it take a larger bank where its own is gone.
    os.remove("runs/free/metrics.json")
    shutil.rmtree("banks")
    assert train_here("--cascade_source=saved/piv", "--steps=3", "--name=free", "--noexport") == 0
    assert bank.Bank("banks/piv").load().record["examples"] == 150

    # A run that goes on online does not choose again, though a bank would be free by now.
    os.remove("runs/short/metrics.json")
    assert train_here("--cascade_source=saved/piv", "--steps=2", "--name=short", "--noexport") == 0
    assert cascade_of("short")["mode"] == "online"


@pytest.mark.long
def test_a_run_goes_on_with_the_sources_and_images_it_started_with(place, capfd):
    flags = ["--cascade_source=saved/piv", "--ensemble_source=saved/std", "--cascade_mode=online",
             "--loss=kurakin", "--steps=4", "--checkpoint_steps=2", "--name=c",
             "--noexport"]  # fmt: skip
    assert train_here(*flags) == 0
    first = weights("runs/c")
    shutil.copytree("saved/std/1", "saved/piv/2")
    for gone in ("metrics.json", "model.keras", "checkpoints/step-00000004.keras"):
        os.remove(f"runs/c/{gone}")
    assert train_here(*flags) == 0
    for expected, got in zip(first, weights("runs/c"), strict=True):
        np.testing.assert_allclose(expected, got, atol=1e-6)
    # A source that has changed since is refused.
    os.remove("runs/c/metrics.json")
    changed = ("cascade_source", "piv", "saved/piv/2"), ("ensemble_source", "std", "saved/piv/1")
    for flag, name, other in changed:
        os.rename(f"saved/{name}/1", "kept")
        shutil.copytree(other, f"saved/{name}/1")
        message = f"train: --{flag}: saved/{name}/1 is no longer the network"
        check_refused(capfd, place, message, train_here, *flags)
        shutil.rmtree(f"saved/{name}/1")
        os.rename("kept", f"saved/{name}/1")


def crafted(path, images=1):
    """Whether a bank has at least so many images."""
    try:
        return bank.Bank(path).load().complete_images >= images
    except Exception:
        return False


def checkpoint(run):
    names = [int(path.stem[5:]) for path in pathlib.Path(run).glob("checkpoints/step-*.keras")]
    return max(names, default=0)


@pytest.mark.long
def test_killed_stopped_and_damaged_a_run_ends_with_the_same_weights(place):
    """kill -9 while crafting and while training, SIGTERM, lost banks and a cut checkpoint."""
    flags = [*SMALL, "--deterministic", "--checkpoint_steps=4", "--steps=44",
             "--loss=pivot", "--bank_examples=320", "--cascade_source=saved/piv,saved/std",
             "--cascade_mode=bank", "--name=run", "--noexport"]  # fmt: skip
    process = start("train", *flags)
    wait_until(process, lambda: crafted("banks/std"))
    kill(process)
    assert bank.Bank("banks/piv").load().complete and not checkpoint("runs/run")

    process = start("train", *flags)
    step = random.randint(1, 17)
    wait_until(process, lambda: checkpoint("runs/run") >= step)
    os.rename("banks", "first_banks")
    wait_until(process, lambda: checkpoint("runs/run") > step + 4)  # it does not need them on disk
    time.sleep(random.random() / 20)
    kill(process)
    newest = pathlib.Path("runs/run/checkpoints", f"step-{checkpoint('runs/run'):08d}.keras")
    newest.write_bytes(newest.read_bytes()[:-1000])

    process = start("train", *flags)
    wait_until(process, lambda: checkpoint("runs/run") >= int(newest.stem[5:]) + 4)
    process.send_signal(signal.SIGTERM)
    output, errors = process.communicate()
    assert process.returncode == 128 + signal.SIGTERM, errors
    assert f"{newest.name} cannot be used" in errors and "trying the one before" in errors
    stopped = re.search(r"stopped at step (\d+) of 44", output)
    assert stopped and checkpoint("runs/run") == int(stopped[1]), output

    reference = ["--runs_dir=reference", "--cascade_bank=reference_banks/piv,reference_banks/std"]
    process = start_trainings(flags, [*flags, *reference])
    output, errors = process.communicate()
    assert process.returncode == 0, errors
    assert f"going on from step {stopped[1]} of 44" in output
    assert output.count("cascade images:") == 1  # the reference's: a run does not choose again
    assert tree("banks") == tree("first_banks") == tree("reference_banks")
    assert content("runs/run/metrics.json") == content("reference/run/metrics.json")
    for expected, got in zip(weights("reference/run"), weights("runs/run"), strict=True):
        np.testing.assert_array_equal(expected, got)


# Bad input. Each row: what is wrong, what spoils the place, flags, part of the message. What else
# is wrong with a source or a bank: tests/training.


def crafted_bank(examples=64):
    flags = ["--source=saved/piv", "--epsilons=1..6", f"--examples={examples}"]
    assert craft.main(["craft", *flags, "--output=banks/piv"]) == 0


def spoil_images():
    crafted_bank()
    os.truncate("banks/piv/images.npy", 1000)


def spoil_labels():
    crafted_bank()
    labels = np.lib.format.open_memmap("banks/piv/labels.npy", mode="r+")
    labels[7] = (labels[7] + 1) % 10


def nothing():
    pass


SOURCE, BANK = ["--cascade_source=saved/piv"], ["--cascade_source=saved/piv", "--cascade_mode=bank"]
TRAIN = [
    ("not a saved network", lambda: os.mkdir("empty"), ["--ensemble_source=empty"],
     "--ensemble_source: empty is not a saved network"),
    ("other images", nothing, [*SOURCE, "--dataset=mnist"],
     r"takes images of shape \(8, 8, 1\), the dataset's are \(28, 28, 1\)"),
    ("the same network twice", nothing, ["--ensemble_source=saved/piv,runs/piv"],
     "--ensemble_source: .* are the same network"),
    ("two sources of one name", lambda: shutil.copytree("saved/std/1", "other/piv/1"),
     ["--cascade_source=saved/piv,other/piv", "--cascade_mode=bank"],
     "--cascade_bank: two sources would share banks/piv"),
    ("too many bank examples", nothing, [*BANK, "--bank_examples=2000"],
     "--bank_examples: .* 1437 training images, got 2000"),
    ("bank of another source", crafted_bank, ["--cascade_source=saved/std", "--cascade_mode=bank",
     "--cascade_bank=banks/piv"], "--cascade_bank: banks/piv is another bank: the weights"),
    ("bank of other labels", spoil_labels, BANK,
     "--cascade_bank: banks/piv/labels.npy is damaged: image 7 is of class"),
    ("bank cut short", spoil_images, BANK, "--cascade_bank: banks/piv/images.npy is damaged"),
]  # fmt: skip


@pytest.mark.parametrize(("wrong", "spoil", "flags", "message"), TRAIN)
def test_a_bad_source_or_bank_gives_one_line_and_leaves_nothing(
    wrong, spoil, flags, message, place, capfd
):
    spoil()
    check_refused(capfd, place, f"train: .*{message}", train_here, "--steps=2", *flags)


def test_a_bank_cut_short_in_training_is_one_line_and_keeps_the_checkpoint(
    place, capfd, monkeypatch
):
    crafted_bank()
    save = Run.save_checkpoint

    def save_and_cut(self, *arguments):
        save(self, *arguments)
        os.truncate("banks/piv/images.npy", 1000)

    monkeypatch.setattr(Run, "save_checkpoint", save_and_cut)
    capfd.readouterr()
    assert train_here(*BANK, "--steps=40", "--checkpoint_steps=3", "--name=cut", "--noexport") == 2
    (error,) = (x for x in capfd.readouterr().err.splitlines() if x.startswith("train:"))
    assert "--cascade_bank: banks/piv/images.npy has become shorter" in error
    assert checkpoint("runs/cut") == 3
