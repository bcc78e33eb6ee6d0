"""Tasks, their arrays and a report's directory: what survives what, and what is kept in memory."""

import dataclasses
import errno
import json
import os
import pathlib
import re
import subprocess
import sys
import weakref

import numpy as np
import pytest
import tensorflow as tf
from support.saved_models import saved_model

from cascade_keras import attacks, evaluation
from cascade_keras.attacks.specs import Attack
from cascade_keras.data.specs import DATASETS
from cascade_keras.errors import InputError
from cascade_keras.evaluation import tasks as engine
from cascade_keras.evaluation.networks import load_networks
from cascade_keras.evaluation.report import Report
from cascade_keras.evaluation.stores import DiskArrays, ImageStore, MemoryArrays, file_name
from cascade_keras.files import reserve
from cascade_keras.sources import Source

SHAPE, N = (4, 4, 1), 23
IMAGES = np.random.default_rng(0).uniform(size=(N, *SHAPE)).astype("float32")
LABELS = (np.arange(N) % 3).astype("int32")


def linear(seed=0, scale=1.0):
    """Logits of a linear network of three classes."""
    weights = np.random.default_rng(seed).normal(0, scale, (16, 3)).astype("float32")
    return lambda images: tf.reshape(images, [-1, 16]) @ weights


def network(name, function):
    path = pathlib.Path(name)
    return Source(name, path, SHAPE, name, {}, lambda images: {"logits": function(images)})


def networks(functions, **options):
    sources = {name: network(name, function) for name, function in functions.items()}
    return engine.SavedNetworks(sources, SHAPE, **options)


def predictions(source, attack="step_fgsm", epsilons=(8.0,), shown=None, **options):
    return engine.Predictions(
        source,
        Attack(attack, epsilons, options.pop("attack_options", {})),
        shown or [source],
        np.arange(N),
        **{"seed": 0, "batch_size": 10, "clock": engine.Clock(), **options},
    )


class Squares:
    """A task whose result is known: index and square, an entry counted whenever it is computed."""

    dtype, shape, batch_size, cost = "float32", (2,), 5, 3.0

    def __init__(self, key="squares", missing=float("nan"), dies=None):
        self.key, self.missing, self.indices = key, missing, np.arange(N)[::-1]
        self.begun, self.batches, self.dies = 0, [], dies

    def start(self, networks):
        self.begun += 1

        def step(images, labels, first):
            if first == self.dies:
                raise KeyboardInterrupt
            self.batches.append(first)
            np.testing.assert_array_equal(images, IMAGES[self.indices[first : first + 5]])
            np.testing.assert_array_equal(labels, LABELS[self.indices[first : first + 5]])
            index = self.indices[first : first + 5].astype("float32")
            return np.stack([index, index**2])

        return step


def run(*tasks, path, progress=lambda done: None):
    engine.run(tasks, None, DiskArrays(path), IMAGES, LABELS, progress)


@pytest.mark.parametrize("missing", [float("nan"), -1])
@pytest.mark.parametrize("dies", [0, 5, 20])
def test_a_task_that_dies_goes_on_behind_its_last_batch(dies, missing, tmp_path):
    first = Squares(missing=missing, dies=dies)
    with pytest.raises(KeyboardInterrupt):
        run(first, path=tmp_path)
    again = Squares(missing=missing)
    run(again, path=tmp_path)
    assert first.batches + again.batches == [0, 5, 10, 15, 20]
    index = np.arange(N)[::-1]
    np.testing.assert_array_equal(np.load(tmp_path / "squares.npy"), [index, index**2])
    done = Squares(missing=missing)
    run(done, path=tmp_path)
    assert done.begun == 0  # loading and tracing take seconds


def test_progress_rises_to_the_work_that_was_announced(tmp_path):
    tasks = [Squares("one"), Squares("two")]
    assert engine.work(tasks) == 2 * 3 * N
    for _ in range(2):  # those that are done count as well
        seen = []
        run(*tasks, path=tmp_path, progress=seen.append)
        assert seen == sorted(seen) and seen[-1] == engine.work(tasks)


GRADIENTS = [
    ("clean", (0.0,), {}, 0),
    ("step_fgsm", (2.0, 4.0, 8.0), {}, 1),  # one gradient for all
    ("iter_fgsm", (4.0,), {}, 5),
    ("iter_margin", (2.0, 4.0), {}, attacks.ladder_gradients((2.0, 4.0))),
    ("pgd", (2.0, 4.0), {"steps": 7, "restarts": 3}, 42),
]


@pytest.mark.parametrize(("name", "epsilons", "options", "count"), GRADIENTS)
def test_gradients_of_an_image(name, epsilons, options, count):
    assert Attack(name, epsilons, options).gradients == count
    task = predictions("a", name, epsilons, shown=["a", "b"], attack_options=options)
    assert task.cost == pytest.approx(count + 2 * len(epsilons) / 3)


def test_descent_is_announced_as_cheaper_than_the_grid():
    grid = DATASETS["mnist"].grid
    descent, exhaustive = (
        engine.MinimalEpsilons(
            "a", np.arange(3), grid=grid, search=search, iterations=2000, clock=engine.Clock()
        )
        for search in ("descent", "grid")
    )
    assert exhaustive.cost == 480_000  # the paper's search
    assert 0 < 10 * descent.cost < exhaustive.cost


@pytest.mark.parametrize("epsilons", [1, 2, 16, 17, 100, 4096, 5000])
@pytest.mark.parametrize("batch_size", [1, 250, 4000, 100_000])
def test_images_in_memory_do_not_grow_with_epsilons(epsilons, batch_size):
    task = predictions("a", epsilons=tuple(range(epsilons)), batch_size=batch_size)
    assert 1 <= task.batch_size <= batch_size
    assert task.batch_size * epsilons <= max(4096, epsilons)


@pytest.mark.parametrize("where", ["disk", "memory"])
def test_predictions_are_those_of_each_network_on_the_sources_images(where, tmp_path):
    functions = {"a": linear(0), "b": linear(1)}
    task = predictions("a", "iter_fgsm", (2.0, 40.0), shown=["b", "a"])
    arrays = DiskArrays(tmp_path) if where == "disk" else MemoryArrays()
    engine.run([task], networks(functions), arrays, IMAGES, LABELS)
    found = engine.open_array(task, arrays)
    assert found.shape == (2, 2, N) and found.dtype == np.int16
    for level, epsilon in enumerate((2, 40)):
        made = attacks.iter_fgsm(functions["a"], tf.constant(IMAGES), LABELS, epsilon)
        for row, name in enumerate("ba"):
            classes = np.argmax(functions[name](made), -1)
            np.testing.assert_array_equal(found[row, level], classes)
    assert (found[0] != found[1]).any() and (found[:, 0] != found[:, 1]).any()
    assert all(seconds > 0 for seconds in task.clock.seconds.values())


def test_a_network_without_gradient_keeps_its_images():
    function = linear(2)
    quantised = networks({"a": lambda images: function(tf.round(images * 3) / 3)})
    logits = quantised.logits("a")
    images = tf.constant(IMAGES)
    np.testing.assert_array_equal(logits(images), function(tf.round(images * 3) / 3))
    for attack in ("step_fgsm", "iter_fgsm"):
        craft = evaluation.crafter(logits, SHAPE, attack, [40.0])
        np.testing.assert_array_equal(craft(IMAGES, LABELS, 0)[0], IMAGES)
    assert networks({"a": function}).logits("a")(images).shape == (N, 3)


ZERO = {
    "plain": (linear(0), (0, 0)),
    "saturated": (linear(0, scale=1e6), (N, 0)),
    "quantised": (lambda images: linear(0)(tf.round(images * 3)), (N, N)),
}


@pytest.mark.parametrize("case", ZERO)
def test_zero_gradients_are_counted_for_both_losses(case):
    function, expected = ZERO[case]
    right = np.argmax(function(IMAGES), -1).astype("int32")  # what it is sure of
    task, arrays = engine.ZeroGradients("a", np.arange(N), 10), MemoryArrays()
    engine.run([task], networks({"a": function}), arrays, IMAGES, right)
    zero = engine.open_array(task, arrays) == 1
    assert tuple(zero.sum(axis=1)) == expected


# Networks: which are loaded, and which are let go.


def test_a_source_makes_room_before_the_next_is_loaded(monkeypatch, tmp_path):
    paths = [tmp_path / name for name in "stu"]
    for seed, path in enumerate(paths):
        saved_model(path, linear(seed), [(None, *SHAPE)])
    row = dataclasses.replace(
        DATASETS["digits"], image_shape=SHAPE, crops=(SHAPE[0],), num_classes=3
    )
    found = load_networks(paths, row, setting="source", keep=False)
    record, load, alive = [], engine.load_source, weakref.WeakValueDictionary()

    def loading(path):
        record.append((path.name, sorted(alive)))
        alive[path.name] = source = load(path)
        return source

    monkeypatch.setattr(engine, "load_source", loading)
    sources = {"a": network("a", linear(9)), **dict(zip(found.names, found.sources))}
    among = engine.SavedNetworks(sources, SHAPE)
    tasks = [
        predictions(source, attack, shown=["a", source])
        for source in "stu" for attack in ("step_fgsm", "step_ll")
    ]  # fmt: skip
    for _ in range(2):  # the second time nothing is to be done, so nothing is loaded
        engine.run(tasks, among, DiskArrays(tmp_path), IMAGES, LABELS)
        assert record == [("s", []), ("t", []), ("u", [])]


@pytest.mark.parametrize(("name", "setting"), [("a", "target"), ("s", "source")])
@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_logits_that_are_no_numbers_are_refused_with_the_image(name, setting, value):
    def function(images):
        odd = tf.reduce_all(images == IMAGES[17], axis=[1, 2, 3])
        return tf.where(odd[:, None], value, linear(0)(images))

    among = networks({"a": function, "s": function}, targets="a")
    task, arrays = predictions(None, "clean", (0.0,), shown=[name]), MemoryArrays()
    with pytest.raises(InputError, match=f"{name} gives logits that .* image 17") as error:
        engine.run([task], among, arrays, IMAGES, LABELS)
    assert error.value.setting == setting
    found = engine.open_array(task, arrays)[0, 0]
    assert (found[:10] >= 0).all() and (found[10:] == -1).all()  # never as a class


def test_noise_before_the_network_has_its_size_and_both_signs():
    def seen(images):  # class 1 where the image is a quarter of the range from mid-grey everywhere
        off = tf.abs(tf.abs(images - 0.5) - 0.25) < 1e-5
        both = tf.reduce_any(images > 0.5, [1, 2, 3]) & tf.reduce_any(images < 0.5, [1, 2, 3])
        return tf.one_hot(tf.cast(tf.reduce_all(off, [1, 2, 3]) & both, tf.int32), 2)

    grey = np.full((2, 5, *SHAPE), 0.5, np.float32)
    for noise, expected in ((255 / 4, 1), (0.0, 0), (30.0, 0)):
        classes = evaluation.predictor(seen, SHAPE, noise=noise)(grey, 0)
        assert (classes == expected).all() and classes.shape == (2, 5)


def test_noise_follows_from_the_seed_and_the_batch():
    def first_sign(images):
        return tf.stack([images[:, 0, 0, 0], images[:, 0, 1, 0]], -1)

    grey = np.full((2, 200, *SHAPE), 0.5, np.float32)

    def classes(seed, first):
        return evaluation.predictor(first_sign, SHAPE, noise=9.0, seed=seed)(grey, first)

    np.testing.assert_array_equal(classes(0, 0), classes(0, 0))
    np.testing.assert_array_equal(*classes(0, 0))  # every version of an image has the same
    assert (classes(0, 0) != classes(1, 0)).any() and (classes(0, 0) != classes(0, 200)).any()


# Arrays on disk.


@pytest.mark.parametrize(("dtype", "fill"), [("int16", -1), ("float32", float("nan")),
                                             ("float32", 0), ("int8", -1)])  # fmt: skip
@pytest.mark.parametrize("shape", [(5,), (2, 3, 4), (3, 0)])
def test_a_reserved_file_is_an_array_of_one_value(shape, dtype, fill, tmp_path):
    reserve(tmp_path / "a.npy", shape, dtype, fill)
    np.testing.assert_array_equal(np.load(tmp_path / "a.npy"), np.full(shape, fill, dtype))
    assert [path.name for path in tmp_path.iterdir()] == ["a.npy"]


def test_a_full_disk_leaves_no_file(tmp_path, monkeypatch):
    def refuse(*arguments):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "posix_fallocate", refuse)
    with pytest.raises(OSError, match="No space left") as error:
        DiskArrays(tmp_path).open("a", (3,), "int16", -1)
    assert error.value.filename == str(tmp_path / "a.npy")
    assert not list(tmp_path.iterdir())


def cut(size):
    return lambda file: os.truncate(file, size)


DAMAGE = {
    "empty": (cut(0), "cannot be read"),
    "header cut": (cut(40), "cannot be read"),
    "cut": (cut(200), "cannot be read"),
    "by one byte": (lambda file: os.truncate(file, file.stat().st_size - 1), "cannot be read"),
    "text": (lambda file: file.write_text("x" * 500), "cannot be read"),
    "objects": (lambda file: np.save(file, np.array([{}])), "cannot be read"),
    "a folder": (lambda file: (file.unlink(), file.mkdir()), "cannot be read"),
    "other shape": (lambda file: np.save(file, np.zeros((2, 59), "int16")), r"wanted int16 .2, 60"),
    "other type": (lambda file: np.save(file, np.zeros((2, 60), "int32")), "is int32 .*wanted"),
}


@pytest.mark.parametrize("case", DAMAGE)
def test_a_damaged_array_is_refused_and_left_as_it_is(case, tmp_path):
    damage, message = DAMAGE[case]
    DiskArrays(tmp_path).open("a", (2, 60), "int16", -1)[...] = 1
    file = tmp_path / "a.npy"
    damage(file)
    before = file.is_file() and file.read_bytes()
    with pytest.raises(InputError, match=f"a.npy .*{message}.*remove it") as error:
        DiskArrays(tmp_path).open("a", (2, 60), "int16", -1)
    assert error.value.setting == "output"
    # NumPy's own map would fill up what was cut off, with zeros: everything of class 0.
    assert (file.is_file() and file.read_bytes()) == before


def test_names_of_files_differ_as_the_names_do():
    names = ["net", "net 1", "net_1", "net/1", "net:1", "../net", "a--b", "ä", "日本", "a\nb", "%"]
    files = [file_name(name) for name in names]
    assert len(set(files)) == len(names)
    assert file_name("net-1.0_b") == "net-1.0_b"
    for file in files:
        assert re.fullmatch(r"[\w.+%-]+", file)


# Adversarial images that are kept.


class Crafted:
    """A function that crafts, and the batches it was called for."""

    def __init__(self, add=1.0):
        self.add, self.batches = add, []

    def __call__(self, images, labels, first):
        self.batches.append(first)
        return np.stack([images + self.add, images + self.add + first])


def fill(store, craft, batch=10):
    through = store.through(craft)
    return np.concatenate(
        [through(*part[1:], part[0]) for part in evaluation.slices(IMAGES, LABELS, batch)], axis=1
    )


def store(base, **identity):
    return ImageStore(base, "net-pgd", {"seed": 0, **identity}, (2, N, *SHAPE))


def test_a_store_crafts_each_batch_once(tmp_path):
    craft = Crafted()
    first = fill(store(tmp_path), craft)
    assert craft.batches == [0, 10, 20]
    np.testing.assert_array_equal(fill(store(tmp_path), craft), first)
    assert craft.batches == [0, 10, 20]
    np.testing.assert_array_equal(np.load(store(tmp_path).path / "images.npy"), first)
    assert first.dtype == np.float32
    recorded = json.loads((store(tmp_path).path / "images.json").read_text())
    assert recorded == {"seed": 0, "complete_batches": [0, 10, 20]}


def test_a_store_of_another_identity_is_another(tmp_path):
    fill(store(tmp_path), Crafted())
    for identity in ({"seed": 1}, {"epsilons": [1]}, {"source_hash": "x"}):
        craft = Crafted(add=2.0)
        fill(store(tmp_path, **identity), craft)
        assert craft.batches == [0, 10, 20]
    assert len(list(tmp_path.iterdir())) == 4
    again = Crafted()
    fill(store(tmp_path), again)
    assert not again.batches


def test_a_store_that_is_killed_does_not_give_what_was_not_crafted(tmp_path):
    half, craft = store(tmp_path), Crafted()
    half.through(craft)(IMAGES[:10], LABELS[:10], 0)
    del half
    # Killed before its record was written at all: nothing counts as there.
    (store(tmp_path).path / "images.json").unlink()
    full = fill(store(tmp_path), craft)
    assert craft.batches == [0, 0, 10, 20]
    np.testing.assert_array_equal(full[0], IMAGES + np.float32(1))


SPOILT = {
    "cut": lambda file, record: os.truncate(file, 100),
    "gone": lambda file, record: os.remove(file),
    "no JSON": lambda file, record: record.write_text("{"),
    "no object": lambda file, record: record.write_text("[]"),
}


@pytest.mark.parametrize("case", SPOILT)
def test_a_store_that_is_damaged_is_refused(case, tmp_path):
    fill(store(tmp_path), Crafted())
    SPOILT[case](*(store(tmp_path).path / name for name in ("images.npy", "images.json")))
    with pytest.raises(InputError, match=r"net-pgd-.* cannot be read .*; remove it") as error:
        store(tmp_path).through(Crafted())
    assert error.value.setting == "images_dir"


def test_a_store_writes_nothing_before_it_is_used(tmp_path):
    store(tmp_path)
    assert not list(tmp_path.iterdir())


# A report's directory.

CONFIG = {
    "dataset": {"name": "digits"}, "split": "test", "num_images": 9, "seed": 1, "batch_size": 5,
    "target": {"a": "1f"}, "source": {}, "epsilon": [2.0, 4.0], "inference_noise": 0.0,
    "attack": [["step_ll", {}], ["pgd", {"steps": 40, "step_size": None, "restarts": 5,
                                         "objective": "margin"}], "cw_linf"],
    "diagnosis_images": 0, "versions": {"a": "1"},
}  # fmt: skip


def begin(path, **changes):
    """Open a report, with a configuration that 0.1.0 could have written."""
    with Report(path).opened({**CONFIG, **changes}):
        pass


def test_a_report_is_held_by_one_process_until_it_is_closed(tmp_path):
    code = (
        "import sys; "
        "from cascade_keras.evaluation.report import Report; from cascade_keras.errors import *\n"
        f"try:\n  with Report({str(tmp_path / 'deep' / 'er')!r}).opened({CONFIG!r}): pass\n"
        "except InputError: sys.exit(7)"
    )
    with Report(tmp_path / "deep" / "er").opened(CONFIG):
        with pytest.raises(InputError, match="er is in use by another process") as error:
            begin(tmp_path / "deep" / "er")
        assert error.value.setting == "output"
        assert subprocess.run([sys.executable, "-c", code]).returncode == 7
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0


PGD = {"steps": 40, "step_size": None, "restarts": 5, "objective": "margin"}


@pytest.mark.parametrize(
    ("changes", "setting", "words"),
    [
        ({"seed": 2}, "seed", "was made with 1, now it is 2; name another"),
        ({"epsilon": [2.0]}, "epsilon", r"was made with \[2.0, 4.0\], now it is \[2.0\]"),
        ({"split": "train"}, "split", 'with "test", now it is "train"'),
        ({"inference_noise": 4.0}, "inference_noise", "with 0.0, now it is 4.0"),
        ({"dataset": {"name": "x" * 200}}, "dataset", r'now it is {"name": "x+\.\.\.;'),
        ({"target": {"a": "2e"}}, "target", "was made with"),  # other weights
        ({"target": {"a": "1f", "b": "2e"}}, "target", "was made with"),
        ({"source": {"b": "2e"}}, "source", "was made with {}, now it is"),
        ({"attack": [["step_ll", {}]]}, "attack", "was made with"),
        ({"attack": [["step_ll", {}], ["pgd", {**PGD, "steps": 41}], "cw_linf"]}, "attack",
         '"steps": 40.*now it is .*"steps": 41'),
        ({"attack": 5}, "attack", "was made with .*, now it is 5"),
        ({"cw_images": 5}, "cw_images", "with null, now it is 5"),
        ({"diagnosis_images": 5}, "diagnosis_images", "with 0, now it is 5"),
        ({"versions": {"a": "2"}}, None, None),
        ({"epsilon": (2, 4)}, None, None),
        # Options that a report lacks are those that are the default now.
        ({"attack": [["step_ll", {}], ["pgd", {"steps": 40}], "cw_linf"]}, None, None),
    ],
)  # fmt: skip
def test_another_configuration_is_refused_by_the_setting_that_differs(
    changes, setting, words, tmp_path
):
    begin(tmp_path / "r")
    before = (tmp_path / "r" / "config.json").read_bytes()
    if setting is None:
        begin(tmp_path / "r", **changes)
    else:
        with pytest.raises(InputError, match=words) as error:
            begin(tmp_path / "r", **changes)
        assert error.value.setting == setting
    assert (tmp_path / "r" / "config.json").read_bytes() == before


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("{", "cannot be read"),
        ("[1]", "cannot be read"),
        (json.dumps({"flags": {}}), "is a run"),
        (json.dumps({**CONFIG, "patches": 3}), "has the setting 'patches', which this version"),
        (json.dumps({**CONFIG, "format": 2}), "is of another format"),
        (json.dumps({**CONFIG, "format": "x"}), "is of another format"),
    ],
)
def test_a_configuration_that_is_not_understood_is_refused(content, words, tmp_path):
    (tmp_path / "config.json").write_text(content)
    with pytest.raises(InputError, match=words) as error:
        begin(tmp_path)
    assert error.value.setting == "output"
    assert [path.name for path in tmp_path.iterdir()] == ["config.json"]


def test_what_a_kill_at_the_start_leaves_is_no_strangers(tmp_path):
    (tmp_path / "predictions").mkdir()
    (tmp_path / "predictions" / ".lock").touch()
    (tmp_path / ".partial-config.json").write_text("{")
    begin(tmp_path)
    assert not (tmp_path / ".partial-config.json").exists()


def test_a_directory_that_is_no_report_is_refused(tmp_path):
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(InputError, match="exists and is not a report"):
        begin(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["notes.txt"]


def test_seconds_add_up_over_runs_and_report_json_is_written_last(tmp_path, monkeypatch):
    begin(tmp_path)
    report = Report(tmp_path)
    assert report.add_seconds({"crafting": 1.5, "classifying": 1.0})["crafting"] == 1.5
    assert report.add_seconds({"crafting": 2.0, "classifying": 0.0}) == {
        "crafting": 3.5,
        "classifying": 1.0,
    }
    assert not report.finished
    written, replace = [], os.replace

    def replacing(source, target):
        written.append(os.path.basename(target))
        replace(source, target)

    monkeypatch.setattr(os, "replace", replacing)
    row = dict.fromkeys(("target", "source", "attack", "epsilon", "correct", "examples"), "x")
    row |= {"accuracy": 5.0, "options": {"steps": 5, "step_size": None, "restarts": 2}, "more": 1}
    report.write({"results": [row]}, "# Ä\n")
    assert written == ["report.csv", "report.md", "report.json"] and report.finished
    assert (tmp_path / "report.md").read_text("utf-8") == "# Ä\n"
    assert (tmp_path / "report.csv").read_text().splitlines() == [
        "target,source,attack,epsilon,correct,examples,accuracy,options",
        'x,x,x,x,x,x,5.0,"steps 5, restarts 2"',
    ]
