"""Banks: the images of the attacks, whatever interrupts the crafting, and read as they are."""

import errno
import itertools
import json
import os
import pathlib
import shutil

import numpy as np
import pytest
import tensorflow as tf
from support import release
from support.files import locked, tree
from support.networks import smooth

from cascade_keras import attacks, cascade, data
from cascade_keras.attacks.specs import ATTACKS, ONE_STEP, AttackSpec
from cascade_keras.bank import Bank, BankPartners, BankRecord, default_path, identity
from cascade_keras.crafting import Crafting, CraftSettings, bankable
from cascade_keras.errors import InputError
from cascade_keras.sources import load_source

EPSILONS = [1, 2, 5]
COUNT, SHARD = 10, 4
ENDS = [4, 8, 10]  # of the shards
WANTED = {
    "source_hash": "a" * 64,
    "dataset_hash": "b" * 64,
    "split": "train",
    "crop": 8,
    "attack": "step_fgsm",
    "epsilons": EPSILONS,
    "examples": COUNT,
}


def network(images):
    """Precise enough for a gradient to have the same sign in a batch of any size."""
    return tf.cast(smooth(tf.cast(images, tf.float64)), tf.float32)


def split(count=COUNT):
    """Whole-pixel images of all values, among them black and white ones, and classes."""
    rng = np.random.default_rng(1)
    images = rng.integers(-40, 296, (count, 8, 8, 1)).clip(0, 255).astype(np.uint8)
    return images, rng.integers(0, 10, count).astype(np.int32)


def wanted(**changes):
    return identity(**{**WANTED, **changes})


def craft(path, logits_fn=network, shard_size=SHARD, progress=None, **changes):
    """Craft a bank; return it, and what its progress was."""
    bank, told = Bank(path), []
    names = {"source_name": "r8p", "dataset_name": "digits", "shard_size": shard_size}
    bank.craft(
        wanted(**changes),
        logits_fn,
        *split(),
        **names,
        progress=lambda done: (told.append(done), progress and progress(done)),
    )
    return bank, told


def crafted_alone(attack, epsilon, seed=0):
    """The images that the attack makes of each shard, as they are stored."""
    images, labels = split()
    stored = []
    for first in range(0, COUNT, SHARD):
        shard = slice(first, first + SHARD)
        options = {"seed": [seed, first]} if attack == "step_rand" else {}
        floats = tf.constant(images[shard].astype(np.float32) / np.float32(255))
        given = floats, labels[shard], float(epsilon)
        adversarial = attacks.at_epsilon(attack, network, *given, **options)
        stored.append(np.round(255 * adversarial.numpy()).astype(np.uint8))
    return np.concatenate(stored)


def write_record(path, shape, **changes):
    """Say of a complete bank of images of this shape, (epsilons, N, H, W, C), what it is."""
    path.mkdir()
    record = wanted(examples=shape[1], **changes)
    shards = {"shard_size": SHARD, "complete_shards": -(-shape[1] // SHARD)}
    record.update(source="r8p", dataset="digits", shape=list(shape), **shards)
    (path / "bank.json").write_text(json.dumps(record))


def write_bank(path, images, **changes):
    write_record(path, images.shape, **changes)
    np.save(path / "images.npy", images)
    np.save(path / "labels.npy", np.zeros(images.shape[1], np.int32))
    return Bank(path).load()


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """The files of a bank whose crafting nothing interrupted."""
    path = tmp_path_factory.mktemp("banks") / "finished"
    craft(path)
    return tree(path)


@pytest.fixture
def path(finished, tmp_path):
    """A copy of that bank."""
    (tmp_path / "bank").mkdir()
    for name, content in finished.items():
        (tmp_path / "bank" / name).write_bytes(content)
    return tmp_path / "bank"


# Crafting.


@pytest.mark.parametrize("attack", bankable())
def test_a_bank_holds_the_images_crafted_alone(attack, tmp_path):
    path = tmp_path / "new" / "bank"
    bank, told = craft(path, attack=attack, seed=7)
    images, labels = (np.load(path / f"{name}.npy") for name in ("images", "labels"))
    assert (images.dtype, labels.dtype) == (np.uint8, np.int32)
    assert images.shape == (len(EPSILONS), COUNT, 8, 8, 1)
    for epsilon, rung in zip(EPSILONS, images):
        np.testing.assert_array_equal(rung, crafted_alone(attack, epsilon, seed=7))
        assert np.abs(rung.astype(int) - split()[0]).max() == epsilon
    np.testing.assert_array_equal(bank.images, images)
    np.testing.assert_array_equal(labels, split()[1])
    assert told == [0, *ENDS]


def test_the_images_attacked_are_those_that_evaluation_sees(tmp_path):
    """Divided by 255, where a compiled graph would multiply by 1/255, another number."""
    given = tf.Variable(tf.zeros([COUNT, 8, 8, 1]))

    def logits_fn(images):
        given.assign(images)
        return network(images)

    craft(tmp_path / "bank", logits_fn, shard_size=COUNT)
    np.testing.assert_array_equal(given, split()[0].astype(np.float32) / np.float32(255))


def test_bank_json_says_what_the_images_are(finished):
    assert [str(name) for name in finished] == ["bank.json", "images.npy", "labels.npy"]
    assert json.loads(finished[pathlib.Path("bank.json")]) == WANTED | {
        "seed": 0, "source": "r8p", "dataset": "digits",
        "shape": [3, 10, 8, 8, 1], "shard_size": 4, "complete_shards": 3,
    }  # fmt: skip


# Going on.


def interrupt(path, done):
    """Craft a bank until so many images are done."""

    def stop(now):
        if now == done:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        craft(path, progress=stop)


def counting():
    """The network, and a variable that counts the images given to it."""
    seen = tf.Variable(0)

    def logits_fn(images):
        seen.assign_add(tf.shape(images)[0])
        return network(images)

    return logits_fn, seen


@pytest.mark.parametrize("torn", [False, True])
@pytest.mark.parametrize("done", [0, *ENDS])
def test_an_interrupted_bank_goes_on_after_the_last_complete_shard(done, torn, finished, tmp_path):
    path = tmp_path / "bank"
    interrupt(path, done)
    before = Bank(path).load()
    assert (before.complete, before.complete_images) == (done == COUNT, done)
    if torn:  # as when the process dies while it writes a shard
        with open(path / "images.npy", "r+b") as file:
            for level in range(len(EPSILONS)):
                file.seek(before.images.offset + (level * COUNT + done) * 64)
                file.write(b"\x55" * 64 * (min(done + SHARD, COUNT) - done))
    logits_fn, seen = counting()
    bank, told = craft(path, logits_fn, shard_size=3)
    assert tree(path) == finished
    assert told == [done, *(end for end in ENDS if end > done)]
    assert int(seen) == COUNT - done  # step_fgsm takes one gradient for all epsilons
    assert bank.complete and bank.complete_images == COUNT


@pytest.mark.parametrize("left", [[], ["bank.json"], ["bank.json", "labels.npy"]], ids=str)
def test_a_bank_interrupted_before_it_had_a_file_of_images_goes_on(left, finished, tmp_path):
    path = tmp_path / "bank"
    interrupt(path, 0)
    for name in {"bank.json", "labels.npy", "images.npy"} - set(left):
        (path / name).unlink()
    for name in ("bank.json", "images.npy"):
        (path / f".partial-{name}").write_bytes(b"{half")
    assert not left or Bank(path).load().complete_images == 0
    craft(path)
    assert tree(path) == finished


# What is refused.


@pytest.mark.parametrize("attack", ["pgd", "autoattack", "cw_linf", "other"])
def test_a_bank_holds_no_images_between_pixel_values(attack, tmp_path):
    with pytest.raises(InputError, match="whole pixel values"):
        craft(tmp_path / "bank", attack=attack)
    assert not (tmp_path / "bank").exists()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"source_hash": "c" * 64}, "another bank: the weights of its source differs; name"),
        ({"dataset_hash": "c" * 64}, "another bank: the dataset differs; name"),
        ({"split": "test"}, r"the split differs \(train, wanted test\)"),
        ({"crop": 7}, r"the crop differs \(8, wanted 7\)"),
        ({"attack": "step_ll"}, r"the attack differs \(step_rand, wanted step_ll\)"),
        ({"epsilons": [1, 2, 3]}, r"the epsilons differs \(1,2,5, wanted 1..3\)"),
        ({"examples": 9}, r"the number of images differs \(10, wanted 9\)"),
        ({"seed": 2}, r"the seed differs \(1, wanted 2\)"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else None,
)
def test_another_bank_is_refused(change, message, tmp_path):
    base = {"attack": "step_rand", "seed": 1}
    bank = write_bank(tmp_path / "bank", np.zeros((3, COUNT, 8, 8, 1), np.uint8), **base)
    before = tree(bank.path)
    bank.check(wanted(**base))
    other = wanted(**{**base, **change})
    for refuse in (lambda: bank.check(other), lambda: bank.craft(other, network, *split())):
        with pytest.raises(InputError, match=message) as error:
            refuse()
        assert "\n" not in str(error.value)
    assert tree(bank.path) == before


@pytest.mark.parametrize("epsilons", [[1], [5, 2], EPSILONS])
def test_a_bank_serves_for_some_of_its_epsilons(epsilons, path, finished):
    logits_fn, seen = counting()
    bank, told = craft(path, logits_fn, epsilons=epsilons, seed=9)  # step_fgsm draws nothing
    some = wanted(epsilons=epsilons)
    del some["examples"]
    bank.check(some)
    assert (told, int(seen)) == ([COUNT], 0)
    assert tree(path) == finished


def recorded(**changes):
    """Change what bank.json says."""

    def damage(path):
        record = json.loads((path / "bank.json").read_text()) | changes
        (path / "bank.json").write_text(json.dumps(record))

    return damage


def without(key):
    """Take a field out of bank.json."""

    def damage(path):
        record = json.loads((path / "bank.json").read_text())
        del record[key]
        (path / "bank.json").write_text(json.dumps(record))

    return damage


def holding(name, content):
    return lambda path: (path / name).write_bytes(content)


def cut(length):
    return lambda path: os.truncate(path / "images.npy", length)


def saved(*shape, dtype=np.uint8):
    return lambda path: np.save(path / "images.npy", np.zeros(shape, dtype))


def labelled(labels, dtype=np.int32):
    return lambda path: np.save(path / "labels.npy", np.asarray(labels, dtype))


LABELS = split()[1]
# What a field of bank.json cannot be; the other fields contradict a value of the right type.
IMPOSSIBLE = {
    "source": [None, 7],
    "source_hash": [None, []],
    "dataset_hash": [None, 7],
    "split": [None, "valid", 1],
    "crop": [None, 0, -8, 8.5, "8", 9],
    "attack": [None, "", {}],
    "epsilons": [None, [], [1, 2, 2], [0, 1, 2], [1, 2, 256], [1, 2.5, 5], "1..3", [[1]]],
    "examples": [None, 0, -1, 9, 1e300, True],
    "seed": [None, -1, 2**31],
    "shape": [None, [], [3, 10, 8, 8], [3, 10, 8, 8, 0], [3, 10, 8, -8, 1], [4, 10, 8, 8, 1]],
    "shard_size": [None, 0, -4, 2**63, {}],
    "complete_shards": [None, 4, 999, -1, 0.5],
    "format": [None, 0, 2, "1"],
    "later": ["a field of a later version"],
}


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        *(
            (holding("bank.json", content), "bank.json: ")
            for content in (b"", b'{"split": "tr', b"\xff\xfe", b"[]", b"7", b"[" * 100_000)
        ),
        *(
            (without(key), f"bank.json: .*`{key}`")
            for key in (*BankRecord.__struct_fields__,) if key != "format"
        ),
        *(
            (recorded(**{key: value}), f"bank.json: .*{'shape' if value == 9 else key}")
            for key, values in IMPOSSIBLE.items() for value in values
        ),
        *((cut(length), "images.npy is damaged") for length in (0, 50, 128 + 3 * 10 * 64 - 1)),
        (holding("images.npy", b"no array at all"), "images.npy is damaged"),
        (lambda path: (path / "images.npy").unlink(), "images.npy is not there"),
        (lambda path: (path / "labels.npy").unlink(), "labels.npy is not there"),
        (saved(3, 10, 8, 8, 1, dtype=np.float32), "it holds float32"),
        (saved(3, 9, 8, 8, 1), r"it holds .* not uint8 \(3, 10, 8, 8, 1\)"),
        (recorded(shape=[3, 10, 8, 8, 3]), r"it holds .* not uint8 \(3, 10, 8, 8, 3\)"),
        (holding("labels.npy", b""), "labels.npy is damaged"),
        (labelled(LABELS, np.int64), "labels.npy is damaged: it holds int64"),
        (labelled(LABELS[1:]), "labels.npy is damaged: it holds"),
        (labelled(LABELS - 10), "labels.npy is damaged: image 0 is of class -"),
    ],
)  # fmt: skip
def test_a_damaged_bank_is_refused(damage, message, path):
    damage(path)
    damaged = tree(path)
    for use in (lambda: Bank(path).load(), lambda: craft(path)):
        with pytest.raises(InputError, match=message) as error:
            use()
        assert f"remove {path} to craft it again" in str(error.value)
        assert "\n" not in str(error.value)
    assert tree(path) == damaged


@pytest.mark.parametrize("complete", [1, 3])
def test_labels_that_are_not_the_datasets_are_refused(complete, path):
    """Of a bank that is used as of one that is gone on with."""
    recorded(complete_shards=complete)(path)
    labelled([*LABELS[:6], (LABELS[6] + 1) % 10, *LABELS[7:]])(path)
    damaged = tree(path)
    with pytest.raises(InputError, match="is damaged: image 6 is of class") as error:
        craft(path)
    assert f"remove {path}" in str(error.value) and tree(path) == damaged


def test_nothing_is_reserved_for_images_that_are_not_those_of_the_dataset(tmp_path):
    path, huge = tmp_path / "bank", 2**31 - 1
    interrupt(path, 0)
    for name in ("images.npy", "labels.npy"):
        (path / name).unlink()
    for change, message in (
        ({"examples": huge, "shape": [3, huge, 8, 8, 1]}, "the number of images differs"),
        ({"crop": huge, "shape": [3, 10, huge, huge, 1]}, "the crop differs"),
        ({"shape": [3, 10, 8, 8, huge]}, "bank.json: shape: is .* that of these images is"),
    ):
        before = (path / "bank.json").read_bytes()
        recorded(**change)(path)
        with pytest.raises(InputError, match=message):
            craft(path)
        (path / "bank.json").write_bytes(before)
        assert [file.name for file in path.iterdir()] == ["bank.json"]


@pytest.mark.parametrize(
    "name", ["thesis.tex", "config.json", "report.json", "1/saved_model.pb", "checkpoints/.lock"]
)
def test_a_directory_of_something_else_is_refused(name, tmp_path):
    """Of a stranger, a run, a report, a saved network, a run that was killed in its start."""
    (tmp_path / name).parent.mkdir(exist_ok=True)
    (tmp_path / name).write_text("years of work")
    for path in (tmp_path, tmp_path / "none", tmp_path / name):
        assert not Bank(path).exists
        with pytest.raises(InputError, match="is not a bank"):
            Bank(path).load()
    with pytest.raises(InputError, match="exists and is not a bank; name another directory"):
        craft(tmp_path)
    for path in (tmp_path / name, tmp_path / name / "bank"):
        with pytest.raises(InputError, match="is not a directory; name a writable directory"):
            craft(path)
    assert (tmp_path / name).read_text() == "years of work" and len(list(tmp_path.iterdir())) == 1


@pytest.mark.parametrize(
    "name", [".", "..", ".lock", "a/b", "/", "../x", "a\nb", "a\x00b", "\udcff", "n" * 151]
)
def test_no_default_place_lies_outside_the_banks(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InputError, match=r"^output: there can be no folder .* name a directory$"):
        source = load_source(network, name=name, weights_hash="1")
        Crafting(CraftSettings(), source=source, dataset=dataset()).run()
    assert default_path("net-1.0 (b)", "test") == "banks/net-1.0 (b)-test-iter_fgsm"
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("epsilons", [[1.5, 2], [1, 2, 1], [0, 1], [255, 256], [-1], []])
def test_epsilons_that_uint8_cannot_hold_are_refused(epsilons):
    shown = ", ".join(map(str, epsilons)) or "none"
    with pytest.raises(InputError, match=f"^epsilons: .* got {shown}$"):
        wanted(epsilons=epsilons)


def test_a_bank_in_use_is_refused(path, finished):
    with locked(path), pytest.raises(InputError, match="another process"):
        craft(path)
    craft(path)
    assert tree(path) == finished


def test_without_room_nothing_is_left(tmp_path, monkeypatch):
    """Whether it is known before anything is written, or the disk is full after all."""

    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    usage, needed = shutil.disk_usage(tmp_path), len(EPSILONS) * COUNT * 64
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage._replace(free=needed - 1))
    with pytest.raises(InputError, match="kB are free there; free some, name another"):
        craft(tmp_path / "bank")
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage._replace(free=needed))
    with monkeypatch.context() as patch, pytest.raises(OSError, match="No space") as error:
        patch.setattr(os, "posix_fallocate", full)
        craft(tmp_path / "bank")
    assert error.value.errno == errno.ENOSPC and list(tmp_path.iterdir()) == []
    assert craft(tmp_path / "bank")[0].complete


@pytest.mark.parametrize("writes", range(9))
def test_a_disk_that_is_full_is_said_of_the_file_and_the_same_command_goes_on(
    writes, finished, tmp_path, monkeypatch
):
    """Before bank.json, labels and images, in each shard, and before bank.json says so."""
    path, fsync = tmp_path / "bank", os.fsync
    left = iter([None] * writes)

    def full(descriptor):
        if next(left, "full") == "full":
            raise OSError(errno.ENOSPC, "No space left on device")
        fsync(descriptor)

    with monkeypatch.context() as patch, pytest.raises(OSError, match="No space") as error:
        patch.setattr(os, "fsync", full)
        craft(path)
    name = ["bank.json", "labels.npy", "images.npy", *["images.npy", "bank.json"] * 3][writes]
    assert error.value.filename == str(path / name)
    assert not list(path.glob(".partial*"))
    craft(path)
    assert tree(path) == finished


# Reading.


def coded(source, epsilons, count, side=8):
    """Images whose first pixels say of which source, epsilon and index they are."""
    images = np.zeros((len(epsilons), count, side, side, 1), np.uint8)
    images[..., 0, 0, 0] = source
    images[..., 0, 1, 0] = np.array(epsilons)[:, None]
    images[..., 0, 2, 0], images[..., 0, 3, 0] = np.divmod(np.arange(count), 256)
    return images


def decoded(images):
    """The sources, epsilons and indices of coded images."""
    source, epsilon, high, low = np.moveaxis(np.round(255 * images[:, 0, :4, 0]).astype(int), 1, 0)
    return source, epsilon, 256 * high + low


def test_reads_the_image_of_each_epsilon_and_index(tmp_path):
    rng, epsilons = np.random.default_rng(2), [7, 2, 30, 1]
    bank = write_bank(tmp_path / "bank", coded(9, epsilons, 300), epsilons=epsilons)
    chosen, indices = rng.choice(epsilons, 200), rng.integers(0, 300, 200)
    images = bank.read(chosen, indices)
    assert images.dtype == np.uint8 and images.shape == (200, 8, 8, 1)
    levels = [epsilons.index(epsilon) for epsilon in chosen]
    np.testing.assert_array_equal(images, bank.images[levels, indices])
    np.testing.assert_array_equal(decoded(images / 255), [[9] * 200, chosen, indices])


def test_a_bank_that_is_deleted_can_be_read_and_one_cut_short_is_an_error(path):
    bank, cut_short = Bank(path).load(), Bank(shutil.copytree(path, path.with_name("cut"))).load()
    expected = bank.read([1, 5], [0, 9])
    shutil.rmtree(path)
    np.testing.assert_array_equal(bank.read([1, 5], [0, 9]), expected)
    os.truncate(cut_short.images_file, 128 + 3 * 10 * 64 - 1)
    np.testing.assert_array_equal(cut_short.read([1], [0]), expected[:1])
    with pytest.raises(InputError, match="shorter while it was read; remove"):
        cut_short.read([1, 5], [0, 9])


def resident():
    """The memory of this process that is in use, in MB."""
    status = pathlib.Path("/proc/self/status").read_text()
    return int(status.split("VmRSS:")[1].split()[0]) / 1024


def test_memory_does_not_grow_with_what_is_read(tmp_path):
    path, shape = tmp_path / "bank", (16, 8000, 32, 32, 3)  # 393 MB that take no room
    write_record(path, shape, epsilons=range(1, 17), crop=32)
    np.lib.format.open_memmap(path / "images.npy", "w+", np.uint8, shape)
    np.save(path / "labels.npy", np.zeros(shape[1], np.int32))
    bank = Bank(path).load()
    rng = np.random.default_rng(3)
    bank.read([1], [0])
    before = resident()
    for _ in range(100):
        bank.read(rng.integers(1, 17, 500), rng.integers(0, 8000, 500))  # 154 MB in all
    assert resident() - before < 30


# From Python: settings, or networks and data in memory.


def in_memory(function=network):
    return load_source(function, name="r8p", weights_hash="1")


def dataset():
    """The images of ``split`` twice, as a dataset that no row names."""
    spec = data.DatasetSpec("own", lambda spec, data_dir: (), (8, 8, 1), 10, max_epsilon=3.7)
    return data.Dataset("own", spec, split(), split(6))


def test_crafting_takes_a_network_and_data_in_memory(tmp_path):
    told = []
    settings = CraftSettings(output=tmp_path / "bank", batch_size=SHARD, attack="step_fgsm")
    crafting = Crafting(settings, source=in_memory(), dataset=dataset())
    bank = crafting.run(told.append)
    assert told == [0, *ENDS] and bank.record["epsilons"] == [1, 2, 3]
    for epsilon, rung in zip((1, 2, 3), bank.images):
        np.testing.assert_array_equal(rung, crafted_alone("step_fgsm", epsilon))
    assert bank.record["source"] == "r8p" and bank.record["dataset"] == "own"
    assert Crafting(settings, source=in_memory(), dataset=dataset()).run(told.append).complete
    assert told[-1] == COUNT


def test_crafting_says_which_setting_is_wrong(tmp_path):
    (tmp_path / "thesis.tex").touch()
    for settings, message in (
        ({"examples": 7}, "examples: the test split of own has 6"),
        ({"output": tmp_path}, "output: .*not a bank"),
        ({"epsilons": (1, 1)}, "epsilons: 1 is named twice"),
        ({"attack": "pgd"}, "attack: must be one of"),
        ({"split": "valid"}, "split: must be one of"),
    ):
        with pytest.raises(InputError, match=f"^{message}"):
            settings = CraftSettings(**{"output": tmp_path / "bank", "split": "test", **settings})
            Crafting(settings, source=in_memory(), dataset=dataset()).run()
    with pytest.raises(InputError, match="source: must be given"):
        Crafting(CraftSettings())
    with pytest.raises(InputError, match=r"^dataset: .*does not record"):
        Crafting(CraftSettings(), source=in_memory())
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.tex"]


def test_an_attack_registered_as_whole_pixels_can_be_banked(tmp_path, monkeypatch):
    def brighter(logits_fn, images, labels, epsilon):
        return tf.minimum(images + epsilon / 255, 1.0)

    row = AttackSpec("brighter", ONE_STEP, brighter, whole_pixels=True)
    monkeypatch.setitem(ATTACKS, "brighter", row)
    settings = CraftSettings(output=tmp_path / "bank", attack="brighter", epsilons=[2, 7])
    bank = Crafting(settings, source=in_memory(), dataset=dataset()).run()
    images = split()[0].astype(int)
    for epsilon, rung in zip((2, 7), bank.images):
        np.testing.assert_array_equal(rung, np.minimum(images + epsilon, 255))


def test_a_bank_of_0_1_0_is_read_and_used(tmp_path, monkeypatch):
    monkeypatch.chdir(release.unpack(tmp_path))
    before, told = tree(tmp_path / "banks" / "legacy"), []
    settings = CraftSettings(
        source="saved/finished", epsilons=range(1, 7), examples=64, output="banks/legacy"
    )
    bank = Crafting(settings).run(told.append)
    assert told == [64] and tree(bank.path) == before
    images, labels = data.load("digits").train
    source = load_source("saved/finished")
    alone = attacks.iter_fgsm(source.logits, images[:64].astype("float32") / 255, labels[:64], 5.0)
    close = np.abs(bank.read([5] * 64, range(64)) - 255 * alone.numpy()) < 0.5
    assert close.mean() > 0.99  # all but signs of gradients of 0 and rounding


# Partners.

SEED, BATCH, ROWS = 3, 12, range(3, 9)
MAX_EPSILON = 4.0


def partners(tmp_path, examples=(40, 40)):
    """The partners of banks that hold so many examples."""
    epsilons = [4, 3, 2, 1, 9]  # in any order, and more than are drawn
    banks = [
        write_bank(tmp_path / f"bank{source}", coded(source, epsilons, count), epsilons=epsilons)
        for source, count in enumerate(examples)
    ]
    return BankPartners(banks, ROWS, seed=SEED, max_epsilon=MAX_EPSILON, sampling="uniform")


def training_images(side):
    """40 images that no two crops confuse; the label of each is its index."""
    images = np.random.default_rng(4).integers(0, 256, (40, side, side, 1)).astype(np.uint8)
    return images, np.arange(40, dtype=np.int32)


def batches(images, labels, partners, stop=20, **options):
    chosen = {"seed": SEED, "stop": stop, "crop": 8, "partners": partners, **options}
    return list(data.batches(images, labels, BATCH, **chosen).as_numpy_iterator())


@pytest.mark.parametrize(("examples", "side"), [((40,), 8), ((40, 40), 12), ((40, 17), 12)])
def test_partners_are_those_of_the_very_images(examples, side, tmp_path):
    """Which are cropped at their centre, while those without partners are cropped anywhere."""
    given = partners(tmp_path, examples)
    assert given.examples == min(examples)
    images, labels = training_images(side)
    centres = data.centre_crop(images, 8)
    margin = 4 if side == 8 else 0
    padded = np.pad(images[..., 0], ((0, 0), (margin, margin), (margin, margin)))
    windows = np.lib.stride_tricks.sliding_window_view(padded, (8, 8), axis=(1, 2))
    seen, others, moved, mirrored = set(), set(), [], []
    for step, (batch, places) in enumerate(batches(images, labels, given, augment=True)):
        clean, adversarial = batch.images, batch.cascade
        assert clean.shape == (BATCH, 8, 8, 1) and adversarial.shape == (len(ROWS), 8, 8, 1)
        clean, own = np.round(255 * clean).astype(np.uint8), places[ROWS.start : ROWS.stop]
        source, epsilon, index = decoded(adversarial)
        drawn = cascade.draw(SEED, step, len(ROWS), len(examples), MAX_EPSILON, "uniform")
        np.testing.assert_array_equal([source, epsilon, index], [*drawn, own])
        np.testing.assert_array_equal(clean[ROWS.start : ROWS.stop], centres[own])
        seen |= set(zip(source, epsilon))
        for place in set(range(BATCH)) - set(ROWS):
            number, image = places[place], clean[place, ..., 0]
            others.add(number)
            straight, flipped = (
                (windows[number] == shown).all(axis=(-1, -2)).any()
                for shown in (image, image[:, ::-1])
            )
            assert straight or flipped
            moved.append(not np.array_equal(image, centres[number, ..., 0]))
            mirrored.append(flipped)
    assert seen == set(itertools.product(range(len(examples)), [1, 2, 3, 4]))
    assert max(others) == 39  # images without a partner are still learned from
    assert np.mean(moved) > 0.8 and 0.3 < np.mean(mirrored) < 0.7


def test_a_bank_that_fails_in_training_says_why(tmp_path):
    given = partners(tmp_path)
    assert given.error is None
    os.truncate(tmp_path / "bank1" / "images.npy", 200)
    with pytest.raises(tf.errors.OpError):
        batches(*training_images(12), given)
    assert isinstance(given.error, InputError)
    assert "bank1/images.npy has become shorter" in str(given.error)
