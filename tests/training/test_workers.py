"""Workers that share a bank: whose shards, what lies there meanwhile, the same files at the end."""

import errno
import fcntl
import json
import os

import numpy as np
import pytest
from support.files import tree

from cascade_keras import bank as bank_module
from cascade_keras.bank import Bank, identity
from cascade_keras.crafting import CraftSettings
from cascade_keras.errors import InputError
from cascade_keras.files import write_atomically
from cascade_keras.workers import Crew, Worker, counted, from_tf_config, left, of_text

COUNT, SHARD = 11, 2  # six shards, the last of one image
WANTED = {
    "source_hash": "a" * 64,
    "dataset_hash": "b" * 64,
    "split": "train",
    "crop": 8,
    "attack": "step_rand",
    "epsilons": [1, 4],
    "examples": COUNT,
    "seed": 3,
}


@pytest.fixture(autouse=True)
def crafted(monkeypatch):
    """The first image of every shard that is crafted; not by TensorFlow, which has to compile."""
    seen = []

    class Array:
        def __init__(self, array):
            self.numpy = lambda: array

    def crafter(logits_fn, attack, epsilons, seed):
        def make(images, labels, first):
            seen.append(int(first))
            stored = np.round(255 * np.asarray(images)).astype(int)
            moved = np.asarray(labels)[:, None, None, None] + int(first) + seed
            return Array(np.stack([(stored + e * moved) % 256 for e in epsilons]).astype("uint8"))

        return make

    monkeypatch.setattr(bank_module, "crafter", crafter)
    return seen


def craft(path, worker=None, progress=lambda done: None, shard_size=SHARD, **changes):
    rng = np.random.default_rng(1)
    images = rng.integers(0, 256, (COUNT, 8, 8, 1)).astype(np.uint8)
    bank = Bank(path)
    bank.craft(
        identity(**{**WANTED, **changes}),
        None,
        images,
        rng.integers(0, 10, COUNT).astype(np.int32),
        shard_size=shard_size,
        worker=of_text(worker),
        progress=progress,
    )
    return bank


@pytest.fixture
def alone(tmp_path, crafted):
    """The files of a bank that one process has crafted."""
    craft(tmp_path / "alone")
    crafted.clear()
    return tree(tmp_path / "alone")


class Killed(BaseException):
    """As SIGKILL, but for the locks."""


def killed(path, worker, images):
    """Let a worker end when it has crafted so many images."""

    def stop(done):
        if done >= images:
            raise Killed

    with pytest.raises(Killed):
        craft(path, worker, stop)


# Which worker.


def test_a_worker_is_a_number_of_how_many():
    assert of_text("0/4") == (0, 4) and of_text("0012/0013") == (12, 13) and of_text(None) is None
    assert str(Worker(3, 4)) == "3/4"
    assert [n for n in range(9) if Worker(1, 4).takes(n)] == [1, 5]


@pytest.mark.parametrize(
    "text", ["4/4", "0/0", "a/b", "-1/4", "1", "/", "1/4/2", " 1/4", "1/4\u0660", "0/10000", "1/-4"]
)
def test_what_is_no_worker_is_refused_in_one_line(text):
    for settings in (CraftSettings,):
        with pytest.raises(InputError, match=r"^worker: must be .* such as 0/4, .* got '") as error:
            settings(worker=text)
        assert "\n" not in str(error.value)
    with pytest.raises(ValueError):
        of_text(text)


CLUSTER = {"chief": ["a:1"], "worker": ["b:1", "c:1"], "ps": ["d:1"]}


@pytest.mark.parametrize(
    ("told", "expected"),
    [
        (None, None),
        ("", None),
        ("{}", None),
        ({"cluster": {}}, None),
        ({"cluster": CLUSTER, "task": {"type": "chief", "index": 0}}, (0, 3)),
        ({"cluster": CLUSTER, "task": {"type": "worker", "index": 0}}, (1, 3)),
        ({"cluster": CLUSTER, "task": {"type": "worker", "index": "1"}}, (2, 3)),
        ({"cluster": {"worker": ["b", "c"]}, "task": {"type": "worker", "index": 1}}, (1, 2)),
        ({"cluster": {"worker": {"0": "b"}}, "task": {"type": "worker", "index": 0}}, (0, 1)),
    ],
    ids=str,
)
def test_tf_config_says_which_worker(told, expected, monkeypatch):
    monkeypatch.delenv("TF_CONFIG", raising=False)
    if told is not None:
        monkeypatch.setenv("TF_CONFIG", told if isinstance(told, str) else json.dumps(told))
    assert from_tf_config() == expected


@pytest.mark.parametrize(
    ("told", "message"),
    [
        ("{", "truncated"),
        ("[]", "expected `object`"),
        ({"cluster": 5}, "cluster: expected `object`"),
        ({"cluster": CLUSTER}, "has no task"),
        ({"cluster": CLUSTER, "task": {"type": "ps", "index": 0}}, "the task 'ps', and only"),
        ({"cluster": CLUSTER, "task": {"type": "worker", "index": 2}}, "no worker 2 among 2"),
        ({"cluster": CLUSTER, "task": {"type": "worker", "index": -1}}, "task.index: expected"),
        ({"cluster": {"worker": ["b"]}, "task": {"type": "chief"}}, "no chief 0 among 0"),
    ],
    ids=str,
)
def test_a_tf_config_that_names_no_worker_is_refused(told, message):
    with pytest.raises(InputError, match=rf"^TF_CONFIG: .*{message}.*say --worker$"):
        from_tf_config(told if isinstance(told, str) else json.dumps(told))


# One bank by several.


@pytest.mark.parametrize("order", [[0, 1], [1, 0, 2], [7, 3, 0, 6, 2, 1, 5, 4]], ids=len)
def test_workers_make_the_files_of_one_process_and_nothing_twice(order, alone, crafted, tmp_path):
    path, count = tmp_path / "bank", len(order)
    for number, index in enumerate(order):
        before, told = len(crafted), []
        bank = craft(path, f"{index}/{count}", told.append)
        own = [first for first in range(0, COUNT, SHARD) if first // SHARD % count == index]
        assert crafted[before:] == own
        assert told == [sum(min(SHARD, COUNT - f) for f in own[:n]) for n in range(len(own) + 1)]
        assert bank.complete_images == sum(min(SHARD, COUNT - first) for first in crafted)
        assert bank.complete == (sorted(crafted) == list(range(0, COUNT, SHARD)))
        missing = [n for n in order[number + 1 :] if n < 6]
        assert bank.left(Worker(index, count)).startswith(
            counted(6 - len(crafted), "shard", "shards") + " missing, of worker" if missing else ""
        )
    assert tree(path) == alone and sorted(p.name for p in path.iterdir()) == [
        "bank.json", "images.npy", "labels.npy",
    ]  # fmt: skip


def test_killed_workers_are_gone_on_with_by_any_number_of_others(alone, crafted, tmp_path):
    path = tmp_path / "bank"
    killed(path, "1/2", 2)  # shard 1
    killed(path, "0/4", 0)
    (path / ".workers" / ".partial-1-00000000-shard-0").touch()
    (path / ".partial-1-00000000-bank.json").write_text("{half")
    craft(path, "2/3")  # shards 2, 5
    bank = craft(path, "0/1")
    assert sorted(crafted) == list(range(0, COUNT, SHARD))
    assert bank.complete and tree(path) == alone and not (path / ".workers").exists()


def test_one_process_ends_what_workers_have_begun_and_they_what_it_has(alone, crafted, tmp_path):
    path = tmp_path / "bank"
    killed(path, "2/3", 2)  # shard 2
    killed(path, None, 4)  # shards 0 (2 is there)
    assert json.loads((path / "bank.json").read_text())["complete_shards"] == 1
    craft(path, "1/3")
    bank = Bank(path).load()
    assert bank.complete_images == 2 * 4 and not bank.complete
    told = []
    craft(path, progress=told.append)
    assert told == [8, 10, 11] and tree(path) == alone and not (path / ".workers").exists()
    assert sorted(crafted) == list(range(0, COUNT, SHARD))


@pytest.mark.parametrize("again", [None, "1/2", "2/3"])
def test_killed_when_all_shards_are_done_the_next_call_says_so(again, alone, tmp_path, monkeypatch):
    path = tmp_path / "bank"
    craft(path, "0/2")
    with monkeypatch.context() as patch, pytest.raises(Killed):
        patch.setattr(Bank, "_record_shards", lambda self: (_ for _ in ()).throw(Killed))
        craft(path, "1/2")
    bank = Bank(path).load()
    assert bank.complete_images == COUNT and not bank.complete and not bank.left(Worker(0, 2))
    craft(path, again)
    assert tree(path) == alone and not (path / ".workers").exists()


def test_another_may_put_all_together_between_two_looks(alone, tmp_path, monkeypatch):
    path, done, others = tmp_path / "bank", Crew.done, ["1/2"]

    def done_before(self):
        found = done(self)
        if found and others:
            craft(path, others.pop())
        return found

    killed(path, "0/2", 6)
    monkeypatch.setattr(Crew, "done", done_before)
    bank = Bank(path).load()
    assert not others and bank.complete and bank.complete_images == COUNT and tree(path) == alone


def test_a_worker_writes_what_it_is_given_and_nothing_beside(tmp_path, monkeypatch):
    """No pages of a file that other machines write too."""
    flags, opened = [], os.open
    monkeypatch.setattr(os, "open", lambda f, how, *a: flags.append(how) or opened(f, how, *a))
    for worker in (None, "0/1"):
        flags.clear()
        craft(tmp_path / str(worker), worker)
        synchronous = [how for how in flags if how & os.O_DSYNC]
        assert len(synchronous) == (worker is not None)
        assert all(how & os.O_ACCMODE == os.O_WRONLY for how in synchronous)


@pytest.mark.parametrize("at", ["write_json", "write_atomically", "reserve", "crafter"])
@pytest.mark.parametrize("other", ["1/2", "0/1"])
def test_without_locks_the_same_files_come_out(at, other, alone, tmp_path, monkeypatch):
    """As where machines share a file system but not its locks: another comes by in between."""
    monkeypatch.setattr(fcntl, "flock", lambda *_: None)
    path, others, function = tmp_path / "bank", [other], getattr(bank_module, at)

    def after_another(*args, **options):
        if others:
            craft(path, others.pop())
        return function(*args, **options)

    monkeypatch.setattr(bank_module, at, after_another)
    craft(path, "0/2")
    assert not others and tree(path) == alone and not (path / ".workers").exists()


@pytest.mark.parametrize(
    ("first", "second", "message"),
    [
        ("0/2", "0/2", "worker 0/2 is at work already; wait for it, or take another number"),
        ("0/2", "1/3", "worker 0/2 is at work, one of 2, got 1/3; wait for it, or divide"),
        ("0/2", None, "is being crafted by another process"),
        (None, "0/2", "is being crafted by another process"),
        (None, None, "is being crafted by another process"),
    ],
)
def test_who_cannot_work_at_once_is_refused(first, second, message, tmp_path, crafted):
    path, refused = tmp_path / "bank", []

    def meanwhile(done):
        with pytest.raises(InputError, match=message) as error:
            craft(path, second)
        refused.append(error)

    craft(path, first, meanwhile)
    assert len(refused) == len(crafted) + 1 and len(set(crafted)) == len(crafted)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"shard_size": 3}, "batch_size: .* is made in shards of 2 images, got 3; give all"),
        ({"epsilons": [1]}, r"the epsilons differs \(1,4, wanted 1\)"),
        ({"seed": 4}, r"the seed differs \(3, wanted 4\)"),
        ({"attack": "step_ll"}, "the attack differs"),
        ({"source_hash": "c" * 64}, "the weights of its source differs"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else None,
)
def test_a_worker_of_other_settings_is_refused(changes, message, tmp_path):
    craft(tmp_path / "bank", "0/2")
    before = tree(tmp_path / "bank")
    with pytest.raises(InputError, match=message) as error:
        craft(tmp_path / "bank", "1/2", **changes)
    assert "\n" not in str(error.value) and tree(tmp_path / "bank") == before


def test_what_is_left_of_a_bank_that_was_removed_does_not_count(alone, tmp_path, crafted):
    path = tmp_path / "bank"
    craft(path, "0/2")
    for file in path.glob("*.*"):  # hidden files stay, as with rm
        file.unlink() if file.is_file() else None
    crafted.clear()
    craft(path)
    assert len(crafted) == 6 and tree(path) == alone


def test_without_room_workers_leave_nothing(tmp_path, monkeypatch):
    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "posix_fallocate", full)
    with pytest.raises(OSError, match="No space"):
        craft(tmp_path / "bank", "1/2")
    assert not list(tmp_path.iterdir())


def test_files_that_all_write_are_one_ones(tmp_path, monkeypatch):
    """Also on a file system where no file has two names."""
    for number in range(2):
        path = tmp_path / f"{number}.json"

        def write(partial, path=path):
            partial.write_text("mine")
            path.write_text("another's")

        write_atomically(path, write, keep=True)
        assert path.read_text() == "another's"
        write_atomically(path.with_suffix(".x"), lambda partial: partial.touch(), keep=True)
        monkeypatch.setattr(os, "link", lambda *_: (_ for _ in ()).throw(PermissionError()))
    assert sorted(p.name for p in tmp_path.iterdir()) == ["0.json", "0.x", "1.json", "1.x"]


def test_a_sentence_says_whose_is_missing():
    found = left({1: 3, 12: 1}, Worker(0, 20), ("shard", "shards"), {12})
    assert found == (
        "4 shards are missing, of workers 1/20 (3), 12/20 (1, at work); the same command with "
        "--worker=1/20, or without --worker, makes what nobody is at work on"
    )
    many = left(dict.fromkeys(range(1, 20), 1), Worker(0, 20), ("shard", "shards"), ())
    assert "5/20 (1), 14 others; the same command with --worker=1/20 and so on, or" in many
    assert left({1: 1}, Worker(0, 2), ("shard", "shards"), {1}) == (
        "1 shard is missing, of worker 1/2 (1, at work)"
    )


def test_a_crew_knows_who_is_at_work(tmp_path):
    crew, other = Crew(tmp_path, Worker(0, 3)), Crew(tmp_path, Worker(2, 3))
    assert crew.at_work() == set() and not list(tmp_path.iterdir())
    with crew.joined("it"):
        with other.joined("it"):
            (tmp_path / ".workers" / "1-of-3.lock").touch()  # of one that was killed
            assert other.at_work() == {0, 2}
        assert crew.at_work() == {0}
    assert not list(tmp_path.iterdir())
