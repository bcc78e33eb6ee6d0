"""Tasks, their arrays and a report's directory: what survives what, and what is kept in memory."""

import errno
import json
import os
import re
import subprocess
import sys
import weakref

import numpy as np
import pytest
import tensorflow as tf

from cascade_keras import attacks, evaluation
from cascade_keras.data.specs import MNIST_GRID
from cascade_keras.errors import InputError
from cascade_keras.evaluation import tasks as matrix
from cascade_keras.evaluation.report import Arrays, Report, file_name, open_map, reserve
from cascade_keras.sources import Source

SHAPE, N = (4, 4, 1), 23
IMAGES = np.random.default_rng(0).uniform(size=(N, *SHAPE)).astype("float32")
LABELS = (np.arange(N) % 3).astype("int32")


def linear(seed=0, scale=1.0):
    """Logits of a linear network of three classes."""
    weights = np.random.default_rng(seed).normal(0, scale, (16, 3)).astype("float32")
    return lambda images: tf.reshape(images, [-1, 16]) @ weights


def network(name, function):
    return Source(name, name, SHAPE, name, {}, lambda images: {"logits": function(images)})


def networks(functions, kept=None, **options):
    sources = {name: network(name, function) for name, function in functions.items()}
    kept = {name: sources[name] for name in (sources if kept is None else kept)}
    return matrix.Networks({name: name for name in sources}, kept, SHAPE, **options)


def predictions(source, attack="step_fgsm", epsilons=(8.0,), shown=None, **options):
    return matrix.Predictions(
        source,
        matrix.Attack(attack, epsilons, options.pop("attack_options", {})),
        shown or [source],
        np.arange(N),
        **{"seed": 0, "batch_size": 10, "num_classes": 3, "clock": matrix.Clock(), **options},
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
    matrix.run(tasks, None, Arrays(path), IMAGES, LABELS, progress)


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
    assert matrix.work(tasks) == 2 * 3 * N
    for _ in range(2):  # those that are done count as well
        seen = []
        run(*tasks, path=tmp_path, progress=seen.append)
        assert seen == sorted(seen) and seen[-1] == matrix.work(tasks)


GRADIENTS = [
    ("clean", (0.0,), {}, 0),
    ("step_fgsm", (2.0, 4.0, 8.0), {}, 1),  # one gradient for all
    ("iter_fgsm", (4.0,), {}, 5),
    ("iter_margin", (2.0, 4.0), {}, attacks.ladder_gradients((2.0, 4.0))),
    ("pgd", (2.0, 4.0), {"steps": 7, "restarts": 3}, 42),
]


@pytest.mark.parametrize(("name", "epsilons", "options", "count"), GRADIENTS)
def test_gradients_of_an_image(name, epsilons, options, count):
    assert matrix.Attack(name, epsilons, options).gradients == count
    task = predictions("a", name, epsilons, shown=["a", "b"], attack_options=options)
    assert task.cost == pytest.approx(count + 2 * len(epsilons) / 3)


def test_descent_is_announced_as_cheaper_than_the_grid():
    grid = MNIST_GRID
    descent, exhaustive = (
        matrix.MinimalEpsilons(
            "a", np.arange(3), grid=grid, search=search, iterations=2000, clock=matrix.Clock()
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


def test_predictions_are_those_of_each_network_on_the_sources_images(tmp_path):
    functions = {"a": linear(0), "b": linear(1)}
    task = predictions("a", "iter_fgsm", (2.0, 40.0), shown=["b", "a"])
    arrays = Arrays(tmp_path)
    matrix.run([task], networks(functions), arrays, IMAGES, LABELS)
    found = matrix.open_array(task, arrays)
    assert found.shape == (2, 2, N) and found.dtype == np.int16
    for level, epsilon in enumerate((2, 40)):
        made = attacks.iter_fgsm(functions["a"], tf.constant(IMAGES), LABELS, epsilon)
        for row, name in enumerate("ba"):
            classes = np.argmax(functions[name](made), -1)
            np.testing.assert_array_equal(found[row, level], classes)
    assert (found[0] != found[1]).any() and (found[:, 0] != found[:, 1]).any()
    assert all(seconds > 0 for seconds in task.clock.seconds.values())


def test_a_network_without_gradient_keeps_its_images(tmp_path):
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
def test_zero_gradients_are_counted_for_both_losses(case, tmp_path):
    function, expected = ZERO[case]
    right = np.argmax(function(IMAGES), -1).astype("int32")  # what it is sure of
    task = matrix.ZeroGradients("a", np.arange(N), 10)
    matrix.run([task], networks({"a": function}), Arrays(tmp_path), IMAGES, right)
    zero = matrix.open_array(task, Arrays(tmp_path)) == 1
    assert tuple(zero.sum(axis=1)) == expected


# Networks: which are loaded, and which are let go.


@pytest.fixture
def loaded(monkeypatch):
    """How each network is loaded: its name, and which others were there at that moment."""
    alive, record = {}, []

    def load(path):
        record.append((path, sorted(name for name, network in alive.items() if network())))
        made = network(path, linear(len(path)))
        alive[path] = weakref.ref(made)
        return made

    monkeypatch.setattr(matrix, "load_source", load)
    return record


def test_a_source_makes_room_before_the_next_is_loaded(loaded, tmp_path):
    functions = {name: linear(seed) for seed, name in enumerate(("a", "s", "ss", "sss"))}
    among = networks(functions, kept="a")
    tasks = [
        predictions(source, attack, shown=["a", source])
        for source in ("s", "ss", "sss") for attack in ("step_fgsm", "step_ll")
    ]  # fmt: skip
    matrix.run(tasks, among, Arrays(tmp_path), IMAGES, LABELS)
    assert loaded == [("s", []), ("ss", []), ("sss", [])]
    matrix.run(tasks, among, Arrays(tmp_path), IMAGES, LABELS)
    assert len(loaded) == 3  # nothing is to be done, so nothing is loaded


@pytest.mark.parametrize(("name", "flag"), [("a", "target"), ("s", "source")])
@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_logits_that_are_no_numbers_are_refused_with_the_image(
    name, flag, value, monkeypatch, tmp_path
):
    def function(images):
        odd = tf.reduce_all(images == IMAGES[17], axis=[1, 2, 3])
        return tf.where(odd[:, None], value, linear(0)(images))

    monkeypatch.setattr(matrix, "load_source", lambda path: network(path, function))
    among = networks({"a": function, "s": function}, kept="a")
    task = predictions(None, "clean", (0.0,), shown=[name])
    with pytest.raises(InputError, match=f"--{flag}: {name} gives logits that .* for image 17;"):
        matrix.run([task], among, Arrays(tmp_path), IMAGES, LABELS)
    found = matrix.open_array(task, Arrays(tmp_path))[0, 0]
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
        Arrays(tmp_path).open("a", (3,), "int16", -1)
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
    Arrays(tmp_path).open("a", (2, 60), "int16", -1)[...] = 1
    file = tmp_path / "a.npy"
    damage(file)
    before = file.is_file() and file.read_bytes()
    with pytest.raises(InputError, match=f"--output: .*a.npy .*{message}.*remove it to compute"):
        Arrays(tmp_path).open("a", (2, 60), "int16", -1)
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
    return matrix.ImageStore(base, "net-pgd", {"seed": 0, **identity}, (2, N, *SHAPE))


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


@pytest.mark.parametrize("size", [0, 100, 2000])
def test_a_store_that_was_cut_short_is_refused(size, tmp_path):
    fill(store(tmp_path), Crafted())
    os.truncate(store(tmp_path).path / "images.npy", size)
    with pytest.raises(
        InputError, match=r"--images_dir: .*net-pgd-.* cannot be read .*; remove it"
    ):
        store(tmp_path)


# A report's directory.

CONFIG = {"dataset": {"name": "digits"}, "seed": 1, "epsilon": [2.0, 4.0], "versions": {"a": "1"}}


def test_a_report_is_held_by_one_process_until_it_is_closed(tmp_path):
    report = Report(tmp_path / "deep" / "er")
    report.open(CONFIG)
    with pytest.raises(InputError, match=r"--output: .*er is in use by another process"):
        Report(tmp_path / "deep" / "er").open(CONFIG)
    code = (
        "import sys; "
        "from cascade_keras.evaluation.report import Report; from cascade_keras.errors import *\n"
        f"try: Report({str(report.path)!r}).open({CONFIG!r})\n"
        "except InputError: sys.exit('tensorflow' in sys.modules or 7)"
    )
    assert subprocess.run([sys.executable, "-c", code]).returncode == 7
    report.close()
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0
    Report(tmp_path / "never").close()
    assert not (tmp_path / "never").exists()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"seed": 2}, "--seed: .* was made with 1, now it is 2; name another --output"),
        ({"epsilon": [2.0]}, r"--epsilon: .* was made with \[2.0, 4.0\], now it is \[2.0\]"),
        ({"split": "test"}, '--split: .* was made with null, now it is "test"'),
        ({"dataset": {"name": "x" * 200}}, r'--dataset: .* now it is {"name": "x+\.\.\.;'),
        ({"versions": {"a": "2"}}, None),
        ({"epsilon": (2, 4)}, None),
    ],
)
def test_another_configuration_is_refused_by_the_flag_that_differs(change, message, tmp_path):
    report = Report(tmp_path / "r")
    report.open(CONFIG)
    report.close()
    before = (report.path / "config.json").read_bytes()
    if message is None:
        report.open({**CONFIG, **change})
    else:
        with pytest.raises(InputError, match=message):
            report.open({**CONFIG, **change})
    assert (report.path / "config.json").read_bytes() == before


def test_what_a_kill_at_the_start_leaves_is_no_strangers(tmp_path):
    (tmp_path / "predictions").mkdir()
    (tmp_path / "predictions" / ".lock").touch()
    (tmp_path / ".partial-config.json").write_text("{")
    Report(tmp_path).open(CONFIG)
    assert not (tmp_path / ".partial-config.json").exists()


@pytest.mark.parametrize("name", ["notes.txt", "saved_model.pb", "model.keras"])
def test_a_directory_that_is_no_report_is_refused(name, tmp_path):
    (tmp_path / name).write_text("mine")
    with pytest.raises(InputError, match=r"exists and is not a report .no config.json."):
        Report(tmp_path).open(CONFIG)
    assert [path.name for path in tmp_path.iterdir()] == [name]


def test_seconds_add_up_over_runs_and_report_json_is_written_last(tmp_path, monkeypatch):
    report = Report(tmp_path)
    report.open(CONFIG)
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
    report.write({"results": [{**row, "accuracy": 5.0, "more": 1}]}, "# Ä\n")
    assert written == ["report.csv", "report.md", "report.json"] and report.finished
    assert (tmp_path / "report.md").read_text("utf-8") == "# Ä\n"
    assert (tmp_path / "report.csv").read_text().splitlines() == [
        "target,source,attack,epsilon,correct,examples,accuracy", "x,x,x,x,x,x,5.0",
    ]  # fmt: skip


def test_a_map_is_written_through(tmp_path):
    np.save(tmp_path / "a.npy", np.zeros(3))
    opened = open_map(tmp_path / "a.npy")
    opened[1] = 5
    opened.flush()
    assert np.load(tmp_path / "a.npy").tolist() == [0, 5, 0]
