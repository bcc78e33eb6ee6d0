"""Cascade and ensemble training through the programs: results, kills at any moment, bad input."""

import json
import os
import pathlib
import re
import shutil

import keras
import numpy as np
import pytest
import tensorflow as tf
from support.files import tree
from support.processes import start, wait_until

from cascade_keras import attacks, bank, cascade, data
from cascade_keras.cli import craft, train
from cascade_keras.runs.run import Run
from cascade_keras.sources import load_source

ROOT = pathlib.Path(__file__).parents[2]
SMALL = [
    "--model=resnet8", "--eval_attacks=step_ll", "--log_steps=10", "--max_epsilon=6",
    "--tensorboard=scalars",
]  # fmt: skip
FEW = ["--bank_examples=200", "--steps=12"]


def train_here(*flags):
    """Run bin/train in the current directory."""
    return train.main(["train", *SMALL, *flags])


def craft_here(*flags):
    """Run bin/craft in the current directory."""
    return craft.main(["craft", *flags])


def weights(run):
    return keras.models.load_model(pathlib.Path(run) / "model.keras").get_weights()


def assert_same_weights(one, other):
    for expected, got in zip(weights(one), weights(other), strict=True):
        np.testing.assert_array_equal(expected, got)


def config(run):
    return json.loads((pathlib.Path(run) / "config.json").read_text())


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A directory in which a standard and, from it, a pivot network were trained and exported."""
    directory = tmp_path_factory.mktemp("trained")
    before = os.getcwd()
    os.chdir(directory)
    try:
        assert train_here("--loss=standard", "--steps=30", "--name=std") == 0
        assert train_here("--loss=pivot", "--steps=30", "--name=piv", "--init_from=runs/std") == 0
    finally:
        os.chdir(before)
    return directory


def test_a_finished_run_is_exported_and_the_export_is_the_run(place):
    for name in ("std", "piv"):
        saved, run = load_source(f"saved/{name}"), load_source(f"runs/{name}")
        assert saved.path == pathlib.Path(f"saved/{name}/1")
        assert saved.weights_hash == run.weights_hash
        assert saved.provenance["dataset"]["name"] == "digits"
        images = tf.constant(data.test_images(data.load("digits"), 8)[0][:32])
        np.testing.assert_array_equal(saved.logits(images), run.logits(images))


def test_another_run_of_the_same_name_becomes_the_next_version(place):
    shutil.rmtree("runs/piv")
    assert train_here("--loss=pivot", "--steps=4", "--name=piv") == 0
    assert load_source("saved/piv").path.name == "2"


@pytest.mark.parametrize("loss", ["kurakin", "bidirectional", "pivot"])
def test_every_loss_takes_cascade_and_ensemble_sources_together(loss, place, capsys):
    flags = ["--cascade_source=saved/piv,runs/std", "--ensemble_source=saved/std", f"--loss={loss}"]
    assert train_here(*flags, *FEW) == 0
    name = f"digits-resnet8-{loss}-cascade-ensemble-s0"
    metrics = json.loads(pathlib.Path(f"runs/{name}/metrics.json").read_text())
    assert metrics["steps"] == 12
    recorded = config(f"runs/{name}")
    assert [source["name"] for source in recorded["cascade"]["sources"]] == ["piv", "std"]
    assert [source["name"] for source in recorded["ensemble"]["sources"]] == ["std"]
    assert load_source(f"saved/{name}").provenance["recipe"]["loss"] == loss


def test_bank_and_online_show_the_network_the_same_images(place):
    """Without random crops the two modes differ by float rounding only."""
    common = ["--steps=1", "--learning_rate=0.01", "--max_epsilon=3"]
    flags = ["--cascade_source=saved/piv", *common]
    assert train_here(*flags, "--cascade_mode=bank", "--name=bank") == 0
    assert train_here(*flags, "--cascade_mode=online", "--name=online") == 0
    assert config("runs/bank")["cascade"]["mode"] == "bank"
    assert config("runs/online")["cascade"]["mode"] == "online"
    assert train_here("--loss=pivot", *common, "--name=none") == 0
    moved = 0
    for one, other, without in zip(weights("runs/bank"), weights("runs/online"),
                                   weights("runs/none"), strict=True):  # fmt: skip
        np.testing.assert_allclose(one, other, atol=1e-6)
        moved = max(moved, np.abs(one - without).max())
    assert moved > 1e-4  # the cascade images do make a difference


def test_auto_takes_fewer_gradients_says_so_and_stays_with_it(place, capsys):
    def mode(*flags):
        assert train_here("--cascade_source=saved/piv", *flags) == 0
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

    assert craft_here("--source=saved/piv", "--epsilons=1..6", "--examples=150") == 0
    chosen, _, _, banked, images = mode("--steps=3", "--name=free")
    assert (chosen, banked, images) == ("bank", "0", "0")
    assert config("runs/free")["cascade"]["bank_examples"] == [150]

    # Nor does it take a larger bank where its own is gone.
    os.remove("runs/free/metrics.json")
    shutil.rmtree("banks")
    assert train_here("--cascade_source=saved/piv", "--steps=3", "--name=free") == 0
    assert bank.Bank("banks/piv").load().record["examples"] == 150

    # A run that goes on online does not choose again, though a bank would be free by now.
    os.remove("runs/short/metrics.json")
    assert train_here("--cascade_source=saved/piv", "--steps=2", "--name=short") == 0
    assert config("runs/short")["cascade"]["mode"] == "online"


def test_a_run_that_goes_on_takes_the_same_images_of_the_version_it_started_with(place):
    flags = ["--cascade_source=saved/piv", "--ensemble_source=saved/std", "--cascade_mode=online",
             "--loss=kurakin", "--steps=4", "--checkpoint_steps=2", "--name=c"]  # fmt: skip
    assert train_here(*flags) == 0
    first = weights("runs/c")
    shutil.copytree("saved/std/1", "saved/piv/2")
    for gone in ("metrics.json", "model.keras", "checkpoints/step-00000004.keras"):
        os.remove(f"runs/c/{gone}")
    assert train_here(*flags) == 0
    for expected, got in zip(first, weights("runs/c"), strict=True):
        np.testing.assert_allclose(expected, got, atol=1e-6)


def crafted(path, images=1):
    """Whether a bank has at least so many images."""
    try:
        return bank.Bank(path).load().complete_images >= images
    except Exception:
        return False


def checkpoint(run):
    names = [int(path.stem[5:]) for path in pathlib.Path(run).glob("checkpoints/step-*.keras")]
    return max(names, default=0)


def test_killed_while_crafting_and_training_it_ends_with_the_same_weights(place):
    """Bank mode, two sources: kill -9 while crafting, a bank deleted in training, kill -9 again."""
    flags = [*SMALL, "--deterministic", "--checkpoint_steps=5", "--steps=60", "--bank_examples=640",
             "--loss=pivot", "--cascade_source=saved/piv,saved/std", "--cascade_mode=bank",
             "--name=run"]  # fmt: skip
    process = start("train", *flags)
    assert process.wait() == 0, process.communicate()
    os.rename("runs/run", "runs/reference")
    os.rename("banks", "reference_banks")
    shutil.rmtree("saved/run")

    process = start("train", *flags)
    wait_until(process, lambda: crafted("banks/std"))
    process.kill()
    process.communicate()
    assert bank.Bank("banks/piv").load().complete and not checkpoint("runs/run")

    process = start("train", *flags)
    wait_until(process, lambda: checkpoint("runs/run"))
    assert tree("banks") == tree("reference_banks")
    shutil.rmtree("banks")
    step = checkpoint("runs/run")
    wait_until(process, lambda: checkpoint("runs/run") > step)  # it does not need them on disk
    process.kill()
    process.communicate()

    process = start("train", *flags)
    output, errors = process.communicate()
    assert process.returncode == 0, errors
    assert "going on from step" in output and "cascade images:" not in output
    assert tree("banks") == tree("reference_banks")
    assert_same_weights("runs/run", "runs/reference")


# Bad input. Each row: what is wrong, what spoils the place, flags, part of the message. Every row
# must give that one line, exit code 2, and leave every file as it was.


def crafted_bank(place, name="piv", examples=64):
    assert craft_here("--source=saved/piv", "--epsilons=1..6", f"--examples={examples}",
                      f"--output=banks/{name}") == 0  # fmt: skip


def spoil_images(place):
    crafted_bank(place)
    os.truncate(place / "banks" / "piv" / "images.npy", 1000)


def nothing(place):
    pass


SOURCE, BANK = ["--cascade_source=saved/piv"], ["--cascade_source=saved/piv", "--cascade_mode=bank"]
TRAIN = [
    ("no such source", nothing, ["--cascade_source=saved/nobody"],
     "--cascade_source: saved/nobody does not exist"),
    ("not a saved network", lambda p: (p / "empty").mkdir(), ["--ensemble_source=empty"],
     "--ensemble_source: empty is not a saved network"),
    ("other images", nothing, [*SOURCE, "--dataset=mnist"],
     r"takes images of shape \(8, 8, 1\), the dataset's are \(28, 28, 1\)"),
    ("the same network twice", nothing, ["--ensemble_source=saved/piv,runs/piv"],
     "--ensemble_source: .* are the same network; name it once"),
    ("two sources of one name",
     lambda p: shutil.copytree(p / "saved/std/1", p / "other/piv/1"),
     ["--cascade_source=saved/piv,other/piv", "--cascade_mode=bank"],
     "--cascade_bank: two sources would share banks/piv; name a bank for each"),
    ("too many bank examples", nothing, [*BANK, "--bank_examples=2000"],
     "--bank_examples: digits has 1437 training images, got 2000"),
    ("bank of another source", crafted_bank, ["--cascade_source=saved/std", "--cascade_mode=bank",
     "--cascade_bank=banks/piv"], "banks/piv is another bank: the weights of its source differs"),
    ("bank of fewer epsilons", crafted_bank, [*BANK, "--max_epsilon=9"],
     r"the epsilons differs \(1..6, wanted 1..9\)"),
    ("bank of other size", crafted_bank, [*BANK, "--bank_examples=99"], "number of images differs"),
    ("bank cut short", spoil_images, BANK, "banks/piv/images.npy is damaged .*to craft it again"),
    ("a stranger's folder", lambda p: ((p / "banks/piv").mkdir(parents=True),
     (p / "banks/piv/notes").write_text("x")), BANK, "banks/piv exists and is not a bank"),
]  # fmt: skip


def check_refused(capfd, place, message, flags):
    before = tree(place)
    capfd.readouterr()
    assert train_here(*flags) == 2
    errors = capfd.readouterr().err.splitlines()
    assert len(errors) == 1, errors
    assert errors[0].startswith("train: ") and re.search(message, errors[0]), errors[0]
    assert tree(place) == before


@pytest.mark.parametrize(("spoil", "flags", "message"), [row[1:] for row in TRAIN],
                         ids=[row[0] for row in TRAIN])  # fmt: skip
def test_a_bad_source_or_bank_gives_one_line_and_leaves_nothing(
    spoil, flags, message, place, capfd
):
    spoil(place)
    check_refused(capfd, place, message, ["--steps=2", *flags])


def test_a_bank_cut_short_in_training_is_one_line_and_keeps_the_checkpoint(
    place, capfd, monkeypatch
):
    crafted_bank(place)
    save = Run.save_checkpoint

    def save_and_cut(self, *arguments):
        save(self, *arguments)
        os.truncate("banks/piv/images.npy", 1000)

    monkeypatch.setattr(Run, "save_checkpoint", save_and_cut)
    capfd.readouterr()
    assert train_here(*BANK, "--steps=40", "--checkpoint_steps=3", "--name=cut") == 2
    (error,) = (x for x in capfd.readouterr().err.splitlines() if x.startswith("train:"))
    assert "--cascade_bank: banks/piv/images.npy has become shorter while it was read" in error
    assert checkpoint("runs/cut") == 3


@pytest.mark.parametrize("flag", ["cascade_source", "ensemble_source"])
def test_a_source_that_changed_since_the_start_is_refused(flag, place, capfd):
    flags = [f"--{flag}=saved/piv", "--steps=2", "--name=c"]
    assert train_here(*flags) == 0
    os.remove("runs/c/metrics.json")
    shutil.rmtree("saved/piv/1")
    shutil.copytree("saved/std/1", "saved/piv/1")
    message = f"--{flag}: saved/piv/1 is no longer the network that runs/c was started with"
    check_refused(capfd, place, message, flags)
