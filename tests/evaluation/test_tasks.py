"""Tasks, their arrays and a report's directory: what survives what, and what is kept in memory."""

import dataclasses
import json
import os
import pathlib
import re
import weakref

import numpy as np
import pytest
import tensorflow as tf
from support.files import tree
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
            index = self.indices[first : first + 5]
            np.testing.assert_array_equal(images, IMAGES[index])
            np.testing.assert_array_equal(labels, LABELS[index])
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
    options = {"grid": DATASETS["mnist"].grid, "iterations": 2000, "clock": engine.Clock()}
    descent, exhaustive = (
        engine.MinimalEpsilons("a", np.arange(3), search=search, **options).cost
        for search in ("descent", "grid")
    )
    assert exhaustive == 480_000  # the paper's search
    assert 0 < 10 * descent < exhaustive


@pytest.mark.parametrize("batch_size", [1, 250, 4000, 100_000])
def test_images_in_memory_do_not_grow_with_epsilons(batch_size):
    for epsilons in (1, 2, 16, 17, 100, 4096, 5000):
        task = predictions("a", epsilons=tuple(range(epsilons)), batch_size=batch_size)
        assert 1 <= task.batch_size <= batch_size
        assert task.batch_size * epsilons <= max(4096, epsilons)


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
    paths = [tmp_path / name for name in "st"]
    for seed, path in enumerate(paths):
        saved_model(path, linear(seed), [(None, *SHAPE)])
    row = {"image_shape": SHAPE, "crops": (SHAPE[0],), "num_classes": 3}
    row = dataclasses.replace(DATASETS["digits"], **row)
    found = load_networks(paths, row, setting="source", keep=False)
    record, load, alive = [], engine.load_source, weakref.WeakValueDictionary()

    def loading(path, **options):
        record.append((path.name, sorted(alive)))
        alive[path.name] = source = load(path, **options)
        return source

    monkeypatch.setattr(engine, "load_source", loading)
    sources = {"a": network("a", linear(9)), **dict(zip(found.names, found.sources))}
    among = engine.SavedNetworks(sources, SHAPE)
    tasks = [
        predictions(source, attack, shown=["a", source])
        for source in "st" for attack in ("step_fgsm", "step_ll")
    ]  # fmt: skip
    for _ in range(2):  # the second time nothing is to be done, so nothing is loaded
        engine.run(tasks, among, DiskArrays(tmp_path), IMAGES, LABELS)
        assert record == [("s", []), ("t", [])]


@pytest.mark.parametrize(
    ("name", "setting", "value"), [("a", "target", np.nan), ("s", "source", np.inf)]
)
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


def test_noise_before_the_network_has_its_size_and_both_signs_and_follows_from_seed_and_batch():
    def seen(images):  # class 1 where the image is a quarter of the range from mid-grey everywhere
        off = tf.abs(tf.abs(images - 0.5) - 0.25) < 1e-5
        both = tf.reduce_any(images > 0.5, [1, 2, 3]) & tf.reduce_any(images < 0.5, [1, 2, 3])
        return tf.one_hot(tf.cast(tf.reduce_all(off, [1, 2, 3]) & both, tf.int32), 2)

    grey = np.full((2, 100, *SHAPE), 0.5, np.float32)
    for noise, expected in ((255 / 4, 1), (0.0, 0), (30.0, 0)):
        classes = evaluation.predictor(seen, SHAPE, noise=noise)(grey, 0)
        assert (classes == expected).all() and classes.shape == (2, 100)

    def classes(seed, first):  # of one pixel or another, by the sign of their noise
        predict = evaluation.predictor(lambda x: x[:, 0, :2, 0], SHAPE, noise=9.0, seed=seed)
        return predict(grey, first)

    np.testing.assert_array_equal(classes(0, 0), classes(0, 0))
    np.testing.assert_array_equal(*classes(0, 0))  # every version of an image has the same
    assert (classes(0, 0) != classes(1, 0)).any() and (classes(0, 0) != classes(0, 100)).any()


# Arrays on disk.


@pytest.mark.parametrize(("dtype", "fill"), [("int16", -1), ("float32", np.nan), ("float32", 0)])
@pytest.mark.parametrize("shape", [(5,), (2, 3, 4), (3, 0)])
def test_a_reserved_file_is_an_array_of_one_value(shape, dtype, fill, tmp_path):
    reserve(tmp_path / "a.npy", shape, dtype, fill)
    np.testing.assert_array_equal(np.load(tmp_path / "a.npy"), np.full(shape, fill, dtype))
    assert [path.name for path in tmp_path.iterdir()] == ["a.npy"]


UNREADABLE = "a.npy is damaged"
DAMAGE = {
    "empty": (lambda file: os.truncate(file, 0), UNREADABLE),
    "header cut": (lambda file: os.truncate(file, 40), UNREADABLE),
    "by one byte": (lambda file: os.truncate(file, file.stat().st_size - 1), UNREADABLE),
    "text": (lambda file: file.write_text("x" * 500), UNREADABLE),
    "objects": (lambda file: np.save(file, np.array([{}])), UNREADABLE),
    "a folder": (lambda file: (file.unlink(), file.mkdir()), UNREADABLE),
    "other shape": (
        lambda file: np.save(file, np.zeros((2, 59), "int16")),
        r"holds int16 .2, 59., not int16 .2, 60",
    ),
    "other type": (
        lambda file: np.save(file, np.zeros((2, 60), "int32")),
        "holds int32 .*not int16",
    ),
}


@pytest.mark.parametrize("damage, message", DAMAGE.values(), ids=DAMAGE)
def test_a_damaged_array_is_refused_and_left_as_it_is(damage, message, tmp_path):
    def opened():
        return DiskArrays(tmp_path).open("a", (2, 60), "int16", -1)

    opened()[...] = 1
    damage(tmp_path / "a.npy")
    before = tree(tmp_path)
    with pytest.raises(InputError, match=f"{message}.*remove it") as error:
        opened()
    assert error.value.setting == "output"
    # NumPy's own map would fill up what was cut off, with zeros: everything of class 0.
    assert tree(tmp_path) == before


def test_names_of_files_differ_as_the_names_do():
    names = ["net", "net 1", "net_1", "net/1", "net:1", "../net", "a--b", "ä", "日本", "a\nb", "%"]
    files = [file_name(name) for name in names]
    assert len(set(files)) == len(names)
    assert file_name("net-1.0_b") == "net-1.0_b"
    assert all(re.fullmatch(r"[\w.+%-]+", file) for file in files)


# Adversarial images that are kept.


class Crafted:
    """A function that crafts, and the batches it was called for."""

    def __init__(self, add=1.0):
        self.add, self.batches = add, []

    def __call__(self, images, labels, first):
        self.batches.append(first)
        return np.stack([images + self.add, images + self.add + first])


def store(base, **identity):
    return ImageStore(base, "net-pgd", {"seed": 0, **identity}, (2, N, *SHAPE))


def fill(store, craft):
    parts, through = evaluation.slices(IMAGES, LABELS, 10), store.through(craft)
    return np.concatenate([through(*part, first) for first, *part in parts], axis=1)


def test_a_store_crafts_each_batch_once(tmp_path):
    craft, kept = Crafted(), store(tmp_path)
    assert not list(tmp_path.iterdir())  # nothing is written before it is used
    first = fill(kept, craft)
    assert craft.batches == [0, 10, 20] and first.dtype == np.float32
    np.testing.assert_array_equal(fill(store(tmp_path), craft), first)
    assert craft.batches == [0, 10, 20]
    np.testing.assert_array_equal(np.load(kept.path / "images.npy"), first)
    recorded = json.loads((kept.path / "images.json").read_text())
    assert recorded == {"seed": 0, "complete_batches": [0, 10, 20]}
    # One of another identity is another.
    for number, identity in enumerate(({"seed": 1}, {"epsilons": [1]}, {"source_hash": "x"}), 2):
        other = Crafted(add=2.0)
        fill(store(tmp_path, **identity), other)
        assert other.batches == [0, 10, 20] and len(list(tmp_path.iterdir())) == number
    np.testing.assert_array_equal(fill(store(tmp_path), craft), first)


def test_a_store_that_is_killed_does_not_give_what_was_not_crafted(tmp_path):
    half, craft = store(tmp_path), Crafted()
    half.through(craft)(IMAGES[:10], LABELS[:10], 0)
    # Killed before its record was written at all: nothing counts as there.
    (half.path / "images.json").unlink()
    full = fill(store(tmp_path), craft)
    assert craft.batches == [0, 0, 10, 20]
    np.testing.assert_array_equal(full[0], IMAGES + np.float32(1))


SPOILT = {
    "cut": lambda file, record: os.truncate(file, 100),
    "gone": lambda file, record: os.remove(file),
    "no JSON": lambda file, record: record.write_text("{"),
    "no object": lambda file, record: record.write_text("[]"),
}


@pytest.mark.parametrize("spoil", SPOILT.values(), ids=SPOILT)
def test_a_store_that_is_damaged_is_refused(spoil, tmp_path):
    fill(store(tmp_path), Crafted())
    spoil(*(store(tmp_path).path / name for name in ("images.npy", "images.json")))
    with pytest.raises(InputError, match=r"net-pgd-.* cannot be read .*; remove it") as error:
        store(tmp_path).through(Crafted())
    assert error.value.setting == "images_dir"


# A report's directory.

PGD = {"steps": 40, "step_size": None, "restarts": 5, "objective": "margin"}
CONFIG = {
    "dataset": {"name": "digits"}, "split": "test", "num_images": 9, "seed": 1, "batch_size": 5,
    "target": {"a": "1f"}, "source": {}, "epsilon": [2.0, 4.0], "inference_noise": 0.0,
    "attack": [["step_ll", {}], ["pgd", PGD], "cw_linf"], "diagnosis_images": 0,
    "versions": {"a": "1"},
}  # fmt: skip


def begin(path, **changes):
    """Open a report, with a configuration that 0.1.0 could have written."""
    with Report(path).opened({**CONFIG, **changes}):
        pass


def test_a_report_is_held_until_it_is_closed(tmp_path):
    place = tmp_path / "deep" / "er"
    with Report(place).opened(CONFIG), pytest.raises(InputError, match="er is in use") as error:
        begin(place)
    assert error.value.setting == "output"
    begin(place)


STEP_LL, _, CW = CONFIG["attack"]
OTHERS = [
    *(
        ({key: 7}, "was made with .*, now it is 7; name another")
        for key in sorted({*CONFIG} - {"versions"})
    ),
    ({"cw_images": 5}, "with null, now it is 5"),
    ({"epsilon": [2.0]}, r"with \[2.0, 4.0\], now it is \[2.0\]"),
    ({"dataset": {"name": "x" * 200}}, r'with {"name": "digits"}, now it is {"name": "x+\.\.\.;'),
    ({"target": {"a": "2e"}}, "was made with"),  # other weights
    ({"target": {"a": "1f", "b": "2e"}}, "was made with"),
    ({"attack": [STEP_LL]}, "was made with"),
    ({"attack": [STEP_LL, ["pgd", {**PGD, "steps": 41}], CW]}, '"steps": 40.*now .*"steps": 41'),
]
SAME = [
    {"versions": {"a": "2"}},
    {"epsilon": (2, 4)},
    {"attack": [STEP_LL, ["pgd", {"steps": 40}], CW]},  # what lacks are the defaults
]


@pytest.mark.parametrize("changes, words", [*OTHERS, *((changes, None) for changes in SAME)])
def test_another_configuration_is_refused_by_the_setting_that_differs(changes, words, tmp_path):
    begin(tmp_path)
    before = tree(tmp_path)
    if words is None:
        begin(tmp_path, **changes)
    else:
        with pytest.raises(InputError, match=words) as error:
            begin(tmp_path, **changes)
        assert [error.value.setting] == list(changes)
    assert tree(tmp_path) == before


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("{", "cannot be read"),
        ("[1]", "cannot be read"),
        (json.dumps({**CONFIG, "patches": 3}), "has the setting 'patches', which this version"),
        (json.dumps({**CONFIG, "format": 2}), "is of another format"),
        (json.dumps({**CONFIG, "format": "x"}), "is of another format"),
    ],
)
def test_a_configuration_that_is_not_understood_is_refused(content, words, tmp_path):
    (tmp_path / "config.json").write_text(content)
    before = tree(tmp_path)
    with pytest.raises(InputError, match=words) as error:
        begin(tmp_path)
    assert error.value.setting == "output" and tree(tmp_path) == before


def test_seconds_add_up_over_runs_and_report_json_is_written_last(tmp_path, monkeypatch):
    begin(tmp_path)
    report = Report(tmp_path)
    report.add_seconds({"crafting": 1.5, "classifying": 1.0})
    total = report.add_seconds({"crafting": 2.0, "classifying": 0.0})
    assert total == {"crafting": 3.5, "classifying": 1.0} and not report.finished
    written, replace = [], os.replace

    def replacing(source, target):
        written.append(os.path.basename(target))
        replace(source, target)

    monkeypatch.setattr(os, "replace", replacing)
    report.write({"results": []}, "# Ä\n")
    assert written == ["report.csv", "report.md", "report.json"] and report.finished
    assert (tmp_path / "report.md").read_text("utf-8") == "# Ä\n"
