"""Cascade and ensemble training through the programs: results, kills at any moment, bad input."""

import errno
import fcntl
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
from support.saved_models import saved_model

from cascade_keras import attacks, bank, cascade, data, runs
from cascade_keras.cli import craft, train
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


def test_a_run_that_goes_on_keeps_the_version_it_started_with(place):
    flags = ["--cascade_source=saved/piv", "--cascade_mode=online", "--steps=4", "--name=c"]
    assert train_here(*flags, "--checkpoint_steps=2") == 0
    first = weights("runs/c")
    shutil.copytree("saved/std/1", "saved/piv/2")
    for gone in ("metrics.json", "model.keras", "checkpoints/step-00000004.keras"):
        os.remove(f"runs/c/{gone}")
    assert train_here(*flags, "--checkpoint_steps=2") == 0
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


def test_killed_online_with_an_ensemble_it_ends_with_the_same_weights(place):
    flags = [*SMALL, "--deterministic", "--checkpoint_steps=4", "--steps=20", "--loss=kurakin",
             "--cascade_source=runs/piv,saved/std", "--cascade_mode=online",
             "--ensemble_source=saved/std", "--max_epsilon=3", "--name=run"]  # fmt: skip
    process = start("train", *flags)
    assert process.wait() == 0, process.communicate()
    os.rename("runs/run", "runs/reference")
    shutil.rmtree("saved/run")

    process = start("train", *flags)
    wait_until(process, lambda: checkpoint("runs/run"))
    process.kill()
    process.communicate()
    process = start("train", *flags)
    output, errors = process.communicate()
    assert process.returncode == 0, errors
    assert "going on from step" in output
    assert_same_weights("runs/run", "runs/reference")


def test_craft_killed_goes_on_and_its_images_are_the_attacks(place):
    flags = ["--source=saved/piv", "--epsilons=1..20", "--batch_size=64", "--output=banks/b",
             "--examples=640"]  # fmt: skip
    process = start("craft", *flags)
    wait_until(process, lambda: crafted("banks/b"))
    process.kill()
    process.communicate()
    done = bank.Bank("banks/b").load().complete_images
    assert 0 < done < 640

    assert craft_here(*flags) == 0
    found = bank.Bank("banks/b").load()
    assert found.complete
    images, labels = data.load("digits").train
    assert (np.load("banks/b/labels.npy") == labels[:640]).all()
    source = load_source("saved/piv")
    first = slice(done, done + 64)  # a shard crafted after the kill
    stored = tf.constant(images[first].astype("float32") / 255)
    for level, epsilon in ((0, 1), (11, 12), (19, 20)):
        alone = attacks.iter_fgsm(source.logits, stored, labels[first], epsilon)
        np.testing.assert_array_equal(found.images[level, first], np.round(alone * 255))


def test_craft_makes_test_images_of_any_attack(place, capsys):
    for attack in ("step_rand", "step_fgsm", "iter_ll"):
        assert craft_here("--source=saved/std", "--split=test", f"--attack={attack}",
                          "--epsilons=2,8") == 0  # fmt: skip
        found = bank.Bank(f"banks/std-test-{attack}").load()
        assert found.images.shape == (2, 360, 8, 8, 1)
        clean = data.load("digits").test[0].astype(int)
        assert np.abs(found.images - clean).max(axis=(1, 2, 3, 4)).tolist() == [2, 8]
    assert "iter_ll images of 360 digits test images by std" in capsys.readouterr().out


# Bad input. Each row: what is wrong, what spoils the place, flags, part of the message. Every row
# must give that one line, exit code 2, and leave every file as it was.


def classes(images, count=10):
    """A linear classifier."""
    flat = tf.reshape(images, [-1, int(np.prod(images.shape[1:]))])
    weights = np.random.default_rng(0).normal(size=(flat.shape[1], count)).astype("float32")
    return {"scores": flat @ weights}


def crafted_bank(place, name="piv", examples=64):
    assert craft_here("--source=saved/piv", "--epsilons=1..6", f"--examples={examples}",
                      f"--output=banks/{name}") == 0  # fmt: skip


def spoil_record(place, **changes):
    crafted_bank(place)
    file = place / "banks" / "piv" / "bank.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), **changes}))


def spoil_images(place):
    crafted_bank(place)
    os.truncate(place / "banks" / "piv" / "images.npy", 1000)


def half_json(place):
    crafted_bank(place)
    (place / "banks" / "piv" / "bank.json").write_text('{"source": ')


def nothing(place):
    pass


SOURCE, BANK = ["--cascade_source=saved/piv"], ["--cascade_source=saved/piv", "--cascade_mode=bank"]
FOREIGN = ["--cascade_source=foreign", "--dataset=digits"]
TRAIN = [
    ("no such source", nothing, ["--cascade_source=saved/nobody"],
     "--cascade_source: saved/nobody does not exist"),
    ("not a saved network", lambda p: (p / "empty").mkdir(), ["--ensemble_source=empty"],
     "--ensemble_source: empty is not a saved network"),
    ("garbage", lambda p: ((p / "foreign").mkdir(), (p / "foreign/saved_model.pb").write_text("x")),
     FOREIGN, "--cascade_source: foreign cannot be loaded"),
    ("other images", nothing, [*SOURCE, "--dataset=mnist"],
     r"takes images of shape \(8, 8, 1\), the dataset's are \(28, 28, 1\)"),
    ("other classes", lambda p: saved_model(p / "foreign", lambda x: classes(x, 7)), FOREIGN,
     "tells 7 classes apart, the dataset has 10"),
    ("no gradient", lambda p: saved_model(p / "foreign", lambda x: classes(tf.round(x))), FOREIGN,
     "has no gradient with respect to its images"),
    ("probabilities",
     lambda p: saved_model(p / "foreign", lambda x: tf.nn.softmax(classes(x)["scores"])), FOREIGN,
     "gives probabilities"),
    ("whole pixels only",
     lambda p: saved_model(p / "foreign", lambda x: classes(tf.cast(x, tf.float32)),
                           dtype=tf.uint8), FOREIGN, "must take one batch of images, floats"),
    ("one image only", lambda p: saved_model(p / "foreign", classes, (1, 8, 8, 1)), FOREIGN,
     "takes batches of 1 only"),
    ("the same path twice", nothing, ["--cascade_source=saved/piv,saved/../saved/piv"],
     "--cascade_source: saved/../saved/piv is named twice"),
    ("the same network twice", nothing, ["--ensemble_source=saved/piv,runs/piv"],
     "--ensemble_source: .* are the same network; name it once"),
    ("standard loss", nothing, [*SOURCE, "--loss=standard"], "standard training has no advers"),
    ("k of one", nothing, [*SOURCE, "--adversarial_batch_size=1"], "must be 2 or above, got 1"),
    ("epsilon below 1", nothing, [*SOURCE, "--max_epsilon=0.5"], "--max_epsilon: .*1 or above"),
    ("mode without source", nothing, ["--cascade_mode=bank"], "only with cascade_source"),
    ("bank without source", nothing, ["--cascade_bank=banks/x"], "only with cascade_source"),
    ("unknown mode", nothing, [*SOURCE, "--cascade_mode=disk"], "--cascade_mode: .*online.*disk"),
    ("bank for online", nothing, [*SOURCE, "--cascade_mode=online", "--bank_examples=9"],
     "online crafting uses no bank"),
    ("one bank for two", nothing, ["--cascade_source=saved/piv,saved/std", "--cascade_bank=b"],
     "--cascade_bank: name one bank for each source .2., got 1"),
    ("two sources of one name",
     lambda p: shutil.copytree(p / "saved/std/1", p / "other/piv/1"),
     ["--cascade_source=saved/piv,other/piv", "--cascade_mode=bank"],
     "--cascade_bank: two sources would share banks/piv; name a bank for each"),
    ("too many bank examples", nothing, [*BANK, "--bank_examples=2000"],
     "--bank_examples: digits has 1437 training images, got 2000"),
    ("bank of another source", crafted_bank, ["--cascade_source=saved/std", "--cascade_mode=bank",
     "--cascade_bank=banks/piv"], "banks/piv is another bank: the weights of its source differs"),
    ("bank of another crop", lambda p: spoil_record(p, crop=6), BANK,
     r"banks/piv is another bank: the crop differs \(6, wanted 8\)"),
    ("bank of other data", lambda p: spoil_record(p, dataset_hash="0"), BANK, "the dataset diff"),
    ("bank of fewer epsilons", crafted_bank, [*BANK, "--max_epsilon=9"],
     r"the epsilons differs \(1..6, wanted 1..9\)"),
    ("bank of other size", crafted_bank, [*BANK, "--bank_examples=99"], "number of images differs"),
    ("bank cut short", spoil_images, BANK, "banks/piv/images.npy is damaged .*to craft it again"),
    ("bank's record damaged", half_json, BANK, "banks/piv/bank.json: cannot be read"),
    ("a stranger's folder", lambda p: ((p / "banks/piv").mkdir(parents=True),
     (p / "banks/piv/notes").write_text("x")), BANK, "banks/piv exists and is not a bank"),
]  # fmt: skip


def check_refused(capfd, place, main, message, flags, program="train"):
    before = tree(place)
    capfd.readouterr()
    assert main(*flags) == 2
    errors = capfd.readouterr().err.splitlines()
    assert len(errors) == 1, errors
    assert errors[0].startswith(f"{program}: ") and re.search(message, errors[0]), errors[0]
    assert tree(place) == before


@pytest.mark.parametrize(("spoil", "flags", "message"), [row[1:] for row in TRAIN],
                         ids=[row[0] for row in TRAIN])  # fmt: skip
def test_a_bad_source_or_bank_gives_one_line_and_leaves_nothing(
    spoil, flags, message, place, capfd
):
    spoil(place)
    check_refused(capfd, place, train_here, message, ["--steps=2", *flags])


CRAFT = [
    ("no source", [], "--source"),
    ("source missing", ["--source=nowhere"], "--source: nowhere does not exist"),
    ("dataset unknown", ["--source=runs/piv/model.keras"], "--dataset: .* does not record"),
    ("other dataset", ["--source=saved/piv", "--dataset=mnist"], "--source: .*28, 28, 1"),
    ("empty range", ["--source=saved/piv", "--epsilons=5..2"], "--epsilons: must be .*, got .5..2"),
    ("fraction", ["--source=saved/piv", "--epsilons=1.5"], "--epsilons: must be .* range"),
    ("zero", ["--source=saved/piv", "--epsilons=0,1"], "whole numbers in 1..255.*got .0, 1"),
    ("twice", ["--source=saved/piv", "--epsilons=2,2"], "different whole numbers"),
    ("above 255", ["--source=saved/piv", "--epsilons=256"], "in 1..255"),
    ("too many images", ["--source=saved/piv", "--split=test", "--examples=361"],
     "--examples: the test split of digits has 360 images, got 361"),
    ("unknown attack", ["--source=saved/piv", "--attack=pgd"], "--attack: .*step_ll.*pgd"),
    ("output is a run", ["--source=saved/piv", "--output=runs/piv"], "runs/piv exists and is not"),
]  # fmt: skip


@pytest.mark.parametrize(("flags", "message"), [row[1:] for row in CRAFT],
                         ids=[row[0] for row in CRAFT])  # fmt: skip
def test_bad_input_for_craft(flags, message, place, capfd):
    check_refused(capfd, place, craft_here, message, flags, "craft")


def test_a_bank_that_another_process_crafts_is_refused(place, capfd):
    spoil_record(place, complete_shards=0)
    directory = os.open("banks/piv", os.O_RDONLY)
    try:
        fcntl.flock(directory, fcntl.LOCK_EX)
        message = "--cascade_bank: banks/piv is being crafted by another process"
        check_refused(capfd, place, train_here, message, [*BANK, "--steps=2"])
    finally:
        os.close(directory)


@pytest.mark.parametrize("full", ["known", "sudden"])
def test_no_room_for_a_bank_is_one_line_and_leaves_nothing(full, place, capfd, monkeypatch):
    if full == "known":
        usage = shutil.disk_usage(place)._replace(free=1000)
        monkeypatch.setattr(shutil, "disk_usage", lambda path: usage)
        message = "--cascade_bank: banks/piv needs 0.00 GB, and 0.00 GB are free there"
    else:

        def refuse(*arguments):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

        monkeypatch.setattr(os, "posix_fallocate", refuse)
        message = "banks/piv/images.npy: No space left on device"
    (place / "banks").mkdir()
    check_refused(capfd, place, train_here, message, [*BANK, *FEW])
    assert not list((place / "banks").iterdir())


def test_a_bank_cut_short_in_training_is_one_line_and_keeps_the_checkpoint(
    place, capfd, monkeypatch
):
    crafted_bank(place)
    save = runs.Run.save_checkpoint

    def save_and_cut(self, *arguments):
        save(self, *arguments)
        os.truncate("banks/piv/images.npy", 1000)

    monkeypatch.setattr(runs.Run, "save_checkpoint", save_and_cut)
    capfd.readouterr()
    assert train_here(*BANK, "--steps=40", "--checkpoint_steps=3", "--name=cut") == 2
    errors = [x for x in capfd.readouterr().err.splitlines() if x.startswith("train:")]
    assert len(errors) == 1
    assert "--cascade_bank: banks/piv/images.npy has become shorter while it was read" in errors[0]
    assert checkpoint("runs/cut") == 3


@pytest.mark.parametrize("flag", ["cascade_source", "ensemble_source"])
def test_a_source_that_changed_since_the_start_is_refused(flag, place, capfd):
    flags = [f"--{flag}=saved/piv", "--steps=2", "--name=c"]
    assert train_here(*flags) == 0
    os.remove("runs/c/metrics.json")
    shutil.rmtree("saved/piv/1")
    shutil.copytree("saved/std/1", "saved/piv/1")
    message = f"--{flag}: saved/piv/1 is no longer the network that runs/c was started with"
    check_refused(capfd, place, train_here, message, flags)
