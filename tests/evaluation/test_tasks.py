"""Tasks, their arrays and a report's directory: what survives what, and what is kept in memory."""

import dataclasses
import json
import os
import pathlib
import re
import shutil
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
from cascade_keras.evaluation import networks as loader
from cascade_keras.evaluation import tasks as engine
from cascade_keras.evaluation.networks import load_networks
from cascade_keras.evaluation.report import Report, Seconds, check_places
from cascade_keras.evaluation.settings import EvaluationSettings
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

    dtype, shape, batch_size, cost, content = "float32", (2,), 5, 3.0, None

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
    record, load, alive = [], loader.load_source, weakref.WeakValueDictionary()

    def loading(path, **options):
        record.append((path.name, sorted(alive)))
        alive[path.name] = source = load(path, **options)
        return source

    monkeypatch.setattr(loader, "load_source", loading)
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
    "a folder": (lambda file: (file.unlink(), file.mkdir()), "a.npy is not a file"),
    "a pipe": (lambda file: (file.unlink(), os.mkfifo(file)), "a.npy is not a file"),
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
    names += ["", ".", "..", "...", "n" * 150, "n" * 151, "n" * 400, "日" * 200, "日" * 201]
    names += [".partial-net", "\udcff", "\udcfe"]
    files = [file_name(name) for name in names]
    assert len(set(files)) == len(names) and max(len(file.encode()) for file in files) <= 160
    assert not any(file.startswith(".partial") or not file.strip(".") for file in files)
    assert file_name("net-1.0_b") == "net-1.0_b"
    assert all(re.fullmatch(r"[\w.+%-]+", file) for file in files)


# Adversarial images that are kept.


class Crafted:
    """A function that crafts, and the batches it was called for."""

    def __init__(self, divide=2.0):
        self.divide, self.batches = divide, []

    def __call__(self, images, labels, first):
        self.batches.append(first)
        return np.stack([images / self.divide, images / (self.divide + first)])


IDENTITY = {
    "source": "net", "source_hash": "1f", "dataset": "digits", "dataset_hash": "2e",
    "split": "test", "attack": "pgd", "options": {"steps": 40, "step_size": None},
    "epsilons": [2.0, 4.0], "seed": 0, "batch_size": 10, "shape": [2, N, *SHAPE],
}  # fmt: skip


def store(base, **identity):
    return ImageStore(base, "net-pgd", {**IDENTITY, **identity})


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
    assert recorded == IDENTITY | {"complete_batches": [0, 10, 20]}
    # One of another identity is another.
    for number, identity in enumerate(({"seed": 1}, {"epsilons": [1]}, {"source_hash": "x"}), 2):
        other = Crafted(divide=3.0)
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
    np.testing.assert_array_equal(full[0], IMAGES / np.float32(2))


def test_two_processes_that_share_a_store_take_each_others_images(tmp_path):
    first, second, parts = Crafted(), Crafted(), list(evaluation.slices(IMAGES, LABELS, 10))
    one, other = (store(tmp_path).through(craft) for craft in (first, second))
    (store(tmp_path).path / ".partial-1-00000000-images.json").write_text("{half")  # of a third
    taken = [one, other, other, one, one, other]
    found = [
        through(*part, at) for through, (at, *part) in zip(taken, [p for p in parts for _ in "12"])
    ]
    assert (first.batches, second.batches) == ([0, 20], [10])
    for mine, theirs in zip(found[::2], found[1::2], strict=True):
        np.testing.assert_array_equal(mine, theirs)
    np.testing.assert_array_equal(np.concatenate(found[::2], axis=1)[0], IMAGES / np.float32(2))
    fill(store(tmp_path), Crafted())
    assert sorted(map(str, tree(store(tmp_path).path))) == ["images.json", "images.npy"]


def write_image(store, value):
    np.lib.format.open_memmap(store / "images.npy", mode="r+")[1, 13, 2, 2, 0] = value


def record(**changes):
    """Change what images.json says; DEL takes a field out."""

    def damage(store):
        content = json.loads((store / "images.json").read_text()) | changes
        content = {key: value for key, value in content.items() if value is not DEL}
        (store / "images.json").write_text(json.dumps(content))

    return damage


DEL = object()
SPOILT = {
    "cut": (lambda store: os.truncate(store / "images.npy", 100), "images.npy is damaged"),
    "gone": (lambda store: os.remove(store / "images.npy"), "images.npy is not there"),
    "other": (lambda store: np.save(store / "images.npy", IMAGES), "images.npy is damaged: it h"),
    "NaN": (lambda store: write_image(store, np.nan), "damaged: image 13 has a pixel of nan, they"),
    "large": (lambda store: write_image(store, 255), "damaged: image 13 has a pixel of 255, they"),
    "no JSON": (lambda store: (store / "images.json").write_text("{"), "images.json: "),
    "no object": (lambda store: (store / "images.json").write_text("[]"), "images.json: "),
    **{
        f"{key} gone": (record(**{key: DEL}), f"images.json: .*`{key}`")
        for key in (*IDENTITY, "complete_batches")
    },
    **{
        f"other {key}": (record(**{key: value}), f"images.json: {key}: is .*, not .*")
        for key, value in {
            "source": "other", "source_hash": "3d", "dataset": "mnist", "dataset_hash": "3d",
            "split": "train", "attack": "step_ll", "options": {}, "epsilons": [2.0], "seed": 1,
            "batch_size": 5, "shape": [3, N, *SHAPE],
        }.items()
    },
    **{
        f"batches {value}": (record(complete_batches=value), "images.json: .*complete_batches")
        for value in (None, {}, [-10], [5], [30], [0, 1e9], ["0"], 0)
    },
    "later": (record(patches=1), "images.json: .*`patches`"),
}  # fmt: skip


@pytest.mark.parametrize("spoil, message", SPOILT.values(), ids=SPOILT)
def test_a_store_that_is_damaged_is_refused(spoil, message, tmp_path):
    fill(store(tmp_path), Crafted())
    spoil(store(tmp_path).path)
    damaged, words = tree(tmp_path), rf"^images_dir: .*{message}.*emove \S*net-pgd-\w* to craft"
    # The second is what is done before a report is begun.
    for use in (lambda: fill(store(tmp_path), Crafted()), store(tmp_path).check):
        with pytest.raises(InputError, match=words):
            use()
    assert tree(tmp_path) == damaged


# A report's directory.

PGD = {"steps": 40, "step_size": None, "restarts": 5, "objective": "margin"}
CONFIG = {
    "dataset": {"name": "digits", "fingerprint": "0" * 64}, "split": "test",
    "num_images": 9, "seed": 1, "batch_size": 5,
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
    (
        {"dataset": {"name": "x" * 200}},
        r'with {"name": "digits", .*}, now it is {"name": "x+\.\.\.;',
    ),
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


# What a key of config.json cannot be.
IMPOSSIBLE = {
    "dataset": [None, "digits", {"name": "digits"}, {"name": "", "fingerprint": "0" * 64}],
    "split": [None, "valid"],
    "num_images": [None, 0, -9, 9.5, "9", 2**31],
    "seed": [None, -1, 2**31],
    "batch_size": [None, 0],
    "target": [None, {}, ["a"], {"a": 1}, {"a": ""}],
    "source": [None, [], {"": "1f"}],
    "epsilon": [None, [], [-1], [256], ["2"], 2],
    "attack": [None, [], ["cw_linf", 1], [["pgd"]], [["pgd", []]], [["pgd", {}, {}]]],
    "inference_noise": [None, -1, 256, "0"],
    "diagnosis_images": [None, -1],
    "versions": [None, {"keras": 3}],
    "cw_search": ["binary", 1],
    "cw_images": [0, "x"],
    "cw_iterations": [-1],
    "format": [None, 2, "x", -1],
    "patches": [3],
}


@pytest.mark.parametrize(
    ("content", "words"),
    [
        *((content, "") for content in ("", "{", "[1]", "7", '{"a":' * 10_000, "null")),
        *(
            (json.dumps({k: v for k, v in CONFIG.items() if k != key}), f"`{key}`")
            for key in CONFIG
        ),
        *(
            (json.dumps({**CONFIG, key: value}), key)
            for key, values in IMPOSSIBLE.items() for value in values
        ),
    ],
)  # fmt: skip
def test_a_configuration_that_is_not_understood_is_refused(content, words, tmp_path):
    (tmp_path / "config.json").write_text(content)
    before = tree(tmp_path)
    for use in (lambda: begin(tmp_path), Report(tmp_path).check):  # which nothing else needs
        with pytest.raises(InputError, match=f"config.json: .*{words}.*name another dir") as error:
            use()
        assert error.value.setting == "output" and tree(tmp_path) == before


CW_TASK = {"grid": DATASETS["mnist"].grid, "search": "descent", "iterations": 1}
TASKS = {
    "classes": lambda: predictions("a", num_classes=3),
    "zero": lambda: engine.ZeroGradients("a", np.arange(N), 10),
    "minimal": lambda: engine.MinimalEpsilons(
        "a", np.arange(N)[::-1], clock=engine.Clock(), **CW_TASK
    ),
}
POSSIBLE = {"classes": [0, 2, -1], "zero": [0, 1, -1], "minimal": [0, 0.5, 255, np.inf, np.nan]}
IMPOSSIBLE_VALUES = {
    "classes": [3, 99, -2, -5],
    "zero": [2, -2, 127],
    "minimal": [-1, 255.5, 1e30, -np.inf],
}


@pytest.mark.parametrize("kind", TASKS)
def test_an_array_whose_values_cannot_be_is_refused_with_the_image(kind, tmp_path):
    task, arrays = TASKS[kind](), DiskArrays(tmp_path)
    (file,) = (tmp_path / f"{file_name(task.key)}.npy",)
    for value in POSSIBLE[kind]:
        engine.open_array(task, arrays)[..., 7] = value
        engine.open_array(task, arrays)
    for value in IMPOSSIBLE_VALUES[kind]:
        engine.open_array(task, arrays)[..., 7] = value
        image = 15 if kind == "minimal" else 7
        before = tree(tmp_path)
        with pytest.raises(InputError, match=f"^output: .* for image {image} is none of") as error:
            engine.open_array(task, arrays)
        assert str(file) in str(error.value) and tree(tmp_path) == before
        np.lib.format.open_memmap(file, mode="r+")[..., 7] = 0


def spoil_with_a_file(*names):
    def spoil(path):
        for name in names:
            (path / name).parent.mkdir(exist_ok=True)
            (path / name).write_text("mine")

    return spoil


PLACES = {
    "output a file": (lambda path: (path.rmdir(), path.write_text("x")), "out is not a directory"),
    "a stranger's": (spoil_with_a_file("notes"), "out exists and is not a report"),
    "a bank": (spoil_with_a_file("bank.json", "images.npy"), "out exists and is not a report"),
    "a saved network": (lambda path: (path / "1").mkdir(), "out exists and is not a report"),
    "arrays alone": (
        spoil_with_a_file("predictions/a--step_ll.npy"),
        "out exists and is not a report",
    ),
    "a run": (lambda path: (path / "config.json").write_text('{"flags": {}}'), "out is a run"),
    "config.json a folder": (lambda path: (path / "config.json").mkdir(), "is not a file"),
    **{
        f"{name} a folder": (
            lambda path, name=name: (begin(path), (path / name).mkdir()),
            f"{name} is not a file; remove it",
        )
        for name in ("report.json", "report.md", "report.csv", "white_box-8.png", "seconds.json")
    },
    **{
        f"{name} a file": (
            lambda path, name=name: (begin(path), spoil_folder(path / name)),
            f"{name} is not a directory",
        )
        for name in ("predictions", "examples", "confusion")
    },
    "seconds": (
        lambda path: (begin(path), (path / "seconds.json").write_text('{"crafting": -1}')),
        r"seconds.json: crafting: .*; remove it",
    ),
    "old seconds": (
        lambda path: (begin(path), (path / "predictions/seconds.json").write_text("{")),
        r"predictions/seconds.json: .*; remove it",
    ),
}


def spoil_folder(path):
    if path.exists():
        shutil.rmtree(path)
    path.write_text("mine")


@pytest.mark.parametrize("spoil, message", PLACES.values(), ids=PLACES)
def test_a_place_that_cannot_be_a_reports_is_refused_before_any_work(spoil, message, tmp_path):
    path = tmp_path / "out"
    path.mkdir()
    spoil(path)
    before = tree(tmp_path)
    settings = EvaluationSettings(target=("a",), output=path)
    with pytest.raises(InputError, match=f"^output: .*{message}") as error:
        check_places(settings)
    assert "\n" not in str(error.value) and tree(tmp_path) == before


@pytest.mark.parametrize("place", ["file", "file/deep", "/etc/passwd", "/proc/1"])
def test_a_place_for_images_is_refused_before_any_work(place, tmp_path):
    (tmp_path / "file").write_text("mine")
    settings = EvaluationSettings(
        target=("a",), output=tmp_path / "out", images_dir=tmp_path / place
    )
    with pytest.raises(InputError, match=r"^images_dir: .* name a writable directory"):
        check_places(settings)
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_the_lock_of_a_report_is_never_a_link(tmp_path):
    begin(tmp_path / "out")
    victim, lock = tmp_path / "victim", tmp_path / "out" / "predictions" / ".lock"
    victim.write_text("mine")
    lock.unlink()
    lock.symlink_to(victim)
    with pytest.raises(OSError, match="symbolic link") as error:
        begin(tmp_path / "out")
    assert error.value.filename == str(lock) and victim.read_text() == "mine"


def test_seconds_add_up_over_runs_and_report_json_is_written_last(tmp_path, monkeypatch):
    begin(tmp_path)
    report, before = Report(tmp_path), tmp_path / "predictions" / "seconds.json"
    before.write_text('{"crafting": 1.5, "classifying": 1.0}')  # where 0.1.0 kept them
    assert report.seconds() == Seconds(crafting=1.5, classifying=1.0)
    report.add_seconds(2.0, 0.0)
    total = report.add_seconds(crafting=0.5, classifying=1.0)
    assert total == report.seconds() == Seconds(crafting=4.0, classifying=2.0)
    assert not before.exists() and not report.finished
    written, replace = [], os.replace

    def replacing(source, target):
        written.append(os.path.basename(target))
        replace(source, target)

    monkeypatch.setattr(os, "replace", replacing)
    report.write({"results": []}, "# Ä\n")
    assert written == ["report.csv", "report.md", "report.json"] and report.finished
    assert (tmp_path / "report.md").read_text("utf-8") == "# Ä\n"
