"""bin/evaluate: its numbers against ones computed by hand, kills at any moment, and bad input."""

import contextlib
import csv
import dataclasses
import errno
import functools
import itertools
import json
import os
import pathlib
import random
import re
import shutil
import textwrap

import keras
import numpy as np
import pytest
import tensorflow as tf
from support.files import tree
from support.processes import start, wait_until
from support.release import unpack
from support.saved_models import saved_model

from cascade_keras import attacks, data, printed
from cascade_keras.attacks import carlini_wagner
from cascade_keras.cli import evaluate
from cascade_keras.data.specs import MNIST_GRID
from cascade_keras.evaluation import crafting as crafting_module
from cascade_keras.evaluation import pictures, predictor, slices
from cascade_keras.evaluation import tasks as engine
from cascade_keras.evaluation.report import RESULT_FIELDS
from cascade_keras.evaluation.summary import transfer
from cascade_keras.evaluation.tables import markdown
from cascade_keras.sources import load_source

COUNT, BATCH, SEED = 60, 40, 5
EPSILONS = (8, 30)
FEW = [
    "--dataset=digits", f"--num_images={COUNT}", f"--batch_size={BATCH}", f"--seed={SEED}",
    "--epsilon=8,30", "--pgd_steps=5", "--pgd_restarts=2", "--diagnosis_images=0",
]  # fmt: skip
STEP = ["--attack=step_fgsm", *FEW]


def evaluate_here(*flags):
    """Run bin/evaluate in the current directory; a flag named twice has its last value."""
    return evaluate.main(["evaluate", *flags])


def read(output="out"):
    """Return report.json, read as strictly as any other program would."""
    text = (pathlib.Path(output) / "report.json").read_text()
    return json.loads(text, parse_constant=lambda name: pytest.fail(f"{name} is no JSON"))


def results(output="out"):
    """Every file but the seconds, which are the only thing that differs."""
    return {path: text for path, text in tree(output).items() if path.name != "seconds.json"}


def evaluated(*flags, output="out"):
    """Run the program and return its report."""
    assert evaluate_here(*flags, f"--output={output}") == 0
    return read(output)


def stored(name, output="out"):
    """Return predictions (shown, epsilons, images) as they lie on disk."""
    return np.load(pathlib.Path(output) / "predictions" / f"{name}.npy")


def table(path):
    with open(path, newline="") as file:
        return list(csv.DictReader(file))


@contextlib.contextmanager
def crafting():
    """Record every batch that is crafted: (source, attack, epsilons, first image)."""
    batches, crafter = [], crafting_module.crafter

    def counted(logits_fn, image_shape, attack, epsilons, **options):
        craft = crafter(logits_fn, image_shape, attack, epsilons, **options)

        def counting(images, labels, first):
            if attack != "clean":
                batches.append((logits_fn.__self__.name, attack, tuple(epsilons), int(first)))
            return craft(images, labels, first)

        return counting

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(crafting_module, "crafter", counted)
        yield batches


# Networks. Random features with a last layer that is fitted to the digits: right about 95 % of the
# time, known to the last weight, and there at once.


@functools.cache
def features(seed, width=120):
    """Return the weights of such a network."""
    images, labels = data.load("digits").train
    rng = np.random.default_rng(seed)
    first = rng.normal(0, 0.3, (64, width)).astype("float32")
    bias = rng.normal(0, 0.3, width).astype("float32")
    hidden = np.maximum(images.reshape(-1, 64) / np.float32(255) @ first + bias, 0)
    last = np.linalg.solve(hidden.T @ hidden + 0.3 * np.eye(width), hidden.T @ np.eye(10)[labels])
    return first, bias, (10 * last).astype("float32")


NAMES = {"a": 0, "b": 1, "c": 2}


def classes_of(images, name):
    """Return what a network takes images for, in NumPy."""
    first, bias, last = features(NAMES[name])
    hidden = np.maximum(np.reshape(images, (len(images), -1)) @ first + bias, 0)
    return (hidden @ last).argmax(-1)


def save_features(path, seed, change=lambda images: images, scale=1):
    """Save it as anybody would."""
    first, bias, last = (tf.constant(array) for array in features(seed))

    def function(images):
        flat = tf.reshape(change(images), [-1, 64])
        return {"scores": scale * (tf.nn.relu(flat @ first + bias) @ last)}

    saved_model(path, function)


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A directory: runs and saved of an earlier release, a, b and c from elsewhere, a report."""
    directory = unpack(tmp_path_factory.mktemp("trained"))
    for name, seed in NAMES.items():
        save_features(directory / name, seed)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(directory)
        evaluated("--target=a", *STEP, output="done")
    return directory


@pytest.fixture
def place(place, monkeypatch):
    """The copy to work in. Heat maps, which take longest, are not drawn."""
    monkeypatch.setattr(pictures, "draw_accuracies", lambda *_: None)
    return place


@pytest.fixture(scope="module")
def images_and_labels():
    images, labels = data.test_images(data.load("digits"), 8)
    return images[:COUNT], labels[:COUNT]


WHITE_ATTACKS = ("step_ll", "step_fgsm", "step_rand", "iter_fgsm", "iter_margin", "pgd")
BLACK_ATTACKS = ("step_fgsm", "iter_fgsm")


@pytest.fixture(scope="module")
def white(trained, tmp_path_factory):
    """Every attack, white box: the report's directory and the batches that were crafted."""
    output = tmp_path_factory.mktemp("white")
    with crafting() as batches:
        evaluated(f"--target={trained / 'a'}", f"--attack={','.join(WHITE_ATTACKS)}", *FEW,
                  output=output)  # fmt: skip
    return output, batches


@pytest.fixture(scope="module")
def black(trained, tmp_path_factory):
    """Two targets, of which one is a source as well, three sources, and epsilon 0."""
    output = tmp_path_factory.mktemp("black")
    a, b, c = (str(trained / name) for name in NAMES)
    with crafting() as batches:
        evaluated(f"--target={a},{b}", f"--source={a},{b},{c}", *FEW, "--epsilon=0,30",
                  f"--attack={','.join(BLACK_ATTACKS)}", output=output)  # fmt: skip
    return output, batches


def right_by_hand(trained, sources, targets, attacked, epsilons, images, labels):
    """Return which images are right in each cell, from the functions of ``attacks`` alone.

    The sources classify their own images as well.
    """
    right = {}
    for source in sources:
        logits = load_source(trained / source).logits
        right[source, None, "clean", 0.0] = classes_of(images, source) == labels
        for attack, epsilon in itertools.product(attacked, epsilons):
            options = {"steps": 5, "restarts": 2} if attack == "pgd" else {}
            batches = [
                attacks.at_epsilon(attack, logits, *part, epsilon, seed=(SEED, first), **options)
                for first, *part in slices(tf.constant(images), labels, BATCH)
            ]
            for target in {*targets, source}:
                classes = classes_of(np.concatenate(batches), target)
                right[target, source, attack, float(epsilon)] = classes == labels
    return right


def cells(report):
    """Return its results by (target, source, attack, epsilon); each is there once."""
    keys = "target", "source", "attack", "epsilon"
    found = {tuple(r[key] for key in keys): r["correct"] for r in report["results"]}
    assert len(found) == len(report["results"])
    return found


def test_white_box_numbers_are_those_computed_by_hand(white, trained, images_and_labels):
    right = right_by_hand(trained, "a", "a", WHITE_ATTACKS, EPSILONS, *images_and_labels)
    wanted = {cell: images.sum() for cell, images in right.items()}
    assert cells(read(white[0])) == wanted
    assert min(wanted.values()) < 10 and max(wanted.values()) > 50  # there is something to confuse


def test_every_cell_of_the_matrix_is_the_sources_images_on_the_target(
    black, trained, images_and_labels
):
    right = right_by_hand(trained, "abc", "ab", BLACK_ATTACKS, (0, 30), *images_and_labels)
    report = read(black[0])
    assert cells(report) == {cell: each.sum() for cell, each in right.items() if cell[0] in "ab"}
    assert [n["target"] for n in report["networks"]] == [True, True, False]
    assert report["sources"] == ["a", "b", "c"]

    # Kurakin et al.'s transfer rates, from the same images; how they count is in test_summary.
    assert len(report["transfer"]) == 4 * len(BLACK_ATTACKS) * 2
    for record in report["transfer"]:
        source, target = record["source"], record["target"]
        cell = source, record["attack"], record["epsilon"]
        clean = [right[name, None, "clean", 0.0] for name in (source, target)]
        counted = transfer(right[source, *cell], right[target, *cell], *clean)
        assert {**record, **dataclasses.asdict(counted)} == record


def test_each_sources_images_are_crafted_once_for_all_targets_and_epsilons(black, white):
    firsts = range(0, COUNT, BATCH)
    expected = itertools.product("abc", BLACK_ATTACKS, [(0, 30)], firsts)
    assert sorted(black[1]) == sorted(expected)
    assert len(white[1]) == len(WHITE_ATTACKS) * len(firsts)


def test_a_report_says_what_it_measured(white, trained):
    report = read(white[0])
    said = {
        "dataset": "digits", "split": "test", "examples": COUNT, "seed": SEED, "labels": "true",
        "inference_noise": 0, "notes": [], "diagnosis": None, "sources": [], "batch_size": BATCH,
        "dataset_fingerprint": data.load("digits").fingerprint, "transfer": [], "cw_linf": [],
    }  # fmt: skip
    assert {key: report[key] for key in said} == said
    digest = load_source(trained / "a").weights_hash
    assert report["networks"] == [
        {"name": "a", "path": str(trained / "a"), "weights_hash": digest, "recipe": {},
         "target": True}
    ]  # fmt: skip
    pgd = {"steps": 5, "step_size": None, "restarts": 2, "objective": "margin"}
    assert report["attacks"] == [
        {"name": name, "epsilons": list(EPSILONS), "options": pgd if name == "pgd" else {}}
        for name in WHITE_ATTACKS
    ]
    assert set(report["versions"]) == {"python", "numpy", "tensorflow", "keras"}
    seconds = json.loads((white[0] / "seconds.json").read_text())
    assert all(seconds[what] > 0 for what in ("crafting", "classifying"))
    for result in report["results"]:
        assert tuple(result) == RESULT_FIELDS and result["examples"] == COUNT
        assert result["accuracy"] == pytest.approx(100 * result["correct"] / COUNT)
    for result in (*report["results"], *(case["strongest"] for case in report["worst_case"])):
        assert result["options"] == (pgd if result["attack"] == "pgd" else {})


@pytest.mark.parametrize("kind", ["white", "black"])
def test_tables_and_pictures_are_those_of_the_report(kind, request):
    output = request.getfixturevalue(kind)[0]
    report = read(output)
    for row, result in zip(table(output / "report.csv"), report["results"], strict=True):
        shown = {key: "" if value is None else str(value) for key, value in result.items()}
        options = "steps 5, restarts 2, objective margin" if result["attack"] == "pgd" else ""
        assert row == {**shown, "options": options}
    assert (output / "report.md").read_text() == markdown(report)
    names = ["white_box"] if kind == "white" else BLACK_ATTACKS
    epsilons = EPSILONS if kind == "white" else (0, 30)
    wanted = {f"{name}-{epsilon}.png" for name in names for epsilon in epsilons}
    assert {path.name for path in output.glob("*.png")} == wanted
    assert all(path.read_bytes().startswith(b"\x89PNG") for path in output.glob("*.png"))


def test_a_trained_network_is_evaluated_on_what_it_learned(place, capsys):
    shutil.rmtree("reports")
    flags = ["--num_images=40", "--attack=step_fgsm", "--epsilon=0.3", "--diagnosis_images=0"]
    assert evaluate_here(*flags, "--target=saved/finished") == 0
    out = capsys.readouterr().out
    assert re.search(r"^crafting took \d+ s, classifying \d+ s$", out, re.MULTILINE)
    assert "reports/finished: accuracy in % of 40 digits test images, white box" in out
    assert "note: Epsilon 0.3 is less than one pixel value" in out
    report = read("reports/finished")
    assert report["dataset"] == "digits" and report["networks"][0]["recipe"]["model"] == "resnet8"


def test_what_gives_the_images_is_asked_once(place, monkeypatch):
    code = """
        from cascade_keras import data

        def load():
            with open("calls", "a") as calls:
                calls.write("x")
            digits = data.load("digits")
            return digits.train, digits.test
    """
    pathlib.Path("asked_once.py").write_text(textwrap.dedent(code))
    monkeypatch.syspath_prepend(".")
    flags = ["--num_images=10", "--attack=step_fgsm", "--epsilon=8", "--diagnosis_images=0"]
    flags += ["--target=saved/finished", "--dataset=asked_once:load", "--output=once"]
    assert evaluate_here(*flags) == 0
    assert pathlib.Path("calls").read_text() == "x"


@pytest.mark.parametrize("width", [80, 200])
def test_tables_of_many_networks_fit_the_terminal(width, monkeypatch, capsys):
    monkeypatch.setenv("COLUMNS", str(width))
    names = [f"cifar10-cascade-online-{number}" for number in range(7)]
    wanted = [[f"{10.0 * row + column:.1f}" for column in range(7)] for row in range(7)]
    filled = [[name, "iter_fgsm", "16", *cells] for name, cells in zip(names, wanted)]
    headings = ["crafted from", "attack", "epsilon", *names]
    printed.print_table(headings, filled, text_columns=2, fixed_columns=3)
    lines = capsys.readouterr().out.splitlines()
    assert max(map(len, lines)) <= width
    rows = [[cell.strip() for cell in line.split("│")[1:-1]] for line in lines if "│" in line]
    parts = [rows[first : first + 7] for first in range(0, len(rows), 7)]
    assert all([row[:3] for row in part] == [row[:3] for row in filled] for part in parts)
    assert np.hstack([[row[3:] for row in part] for part in parts]).tolist() == wanted
    assert len(parts) > 1 or width == 200
    # The names stand above, from the top of the first table to its double line.
    rule = next(number for number, line in enumerate(lines) if line.startswith("┡"))
    head = [line.strip("┃").split("┃")[3:] for line in lines[:rule] if "┃" in line]
    for name, parts in zip(names, zip(*head)):
        assert "".join(part.strip() for part in parts) == name


# Kills and what is there already.


def complete(name, output="out"):
    """Return how many images of an array have their predictions."""
    try:
        return int((stored(name, output)[0, 0] != -1).sum())
    except (OSError, ValueError):
        return 0


@pytest.mark.long
def test_killed_at_a_random_moment_it_ends_with_the_same_report(place):
    flags = ["--target=a", *FEW, "--attack=pgd,step_rand", "--batch_size=5", "--pgd_steps=60"]
    moment = random.Random(os.getpid()).randrange(5, 45)
    process = start("evaluate", *flags, "--output=out")
    wait_until(process, lambda: complete("a--pgd") >= moment)
    process.kill()
    process.communicate()
    assert not pathlib.Path("out/report.json").exists()
    left = COUNT - complete("a--pgd")
    assert left < COUNT

    with crafting() as batches:
        evaluated(*flags)
    assert sum(attack == "pgd" for _, attack, *_ in batches) == left // 5
    evaluated(*flags, output="uninterrupted")
    assert results("uninterrupted") == results()
    before = tree("out")

    # Once it is finished, the same command computes nothing and leaves every file as it is.
    with crafting() as batches:
        evaluated(*flags)
    assert not batches and tree("out") == before


def test_killed_before_any_file_gets_its_name_it_goes_on(place, monkeypatch):
    """Run k dies at its k-th rename, as by kill -9: what was half written stays where it is."""

    class Killed(BaseException):
        pass

    flags = ["--target=a", *STEP, "--images_dir=images"]
    evaluated(*flags, "--images_dir=reference", output="uninterrupted")
    replace, unlink = os.replace, pathlib.Path.unlink
    left = 0

    def replacing(source, target):
        nonlocal left
        left -= 1
        if left < 0:
            raise Killed
        replace(source, target)

    def unlinking(self, missing_ok=False):
        if left >= 0 or not self.name.startswith(".partial"):  # the dead clean nothing
            unlink(self, missing_ok)

    for deaths in range(30):
        left = deaths
        with monkeypatch.context() as patch, contextlib.suppress(Killed):
            patch.setattr(os, "replace", replacing)
            patch.setattr(pathlib.Path, "unlink", unlinking)
            evaluated(*flags)
            break
    assert deaths > 4
    assert results() == results("uninterrupted")
    for name in ("images", "out"):
        assert not list(pathlib.Path(name).rglob(".partial*"))


@pytest.mark.long
def test_a_full_disk_is_one_line_that_names_the_file_and_the_same_command_goes_on(
    place, monkeypatch, capfd
):
    """At any of its writes: where room is taken, and where it is made sure of."""
    flags = ["--target=a", *STEP, "--images_dir=images", "--output=out"]
    expected, named = None, []
    for writes in range(60):
        left = iter(range(writes))

        def full(*given, write, left=left):
            if next(left, None) is None:
                raise OSError(errno.ENOSPC, "No space left on device")
            write(*given)

        capfd.readouterr()
        with monkeypatch.context() as patch:
            for name in ("fsync", "posix_fallocate"):
                patch.setattr(os, name, functools.partial(full, write=getattr(os, name)))
            status = evaluate_here(*flags)
        if status == 0:
            break
        (error,) = capfd.readouterr().err.splitlines()
        (file,) = re.fullmatch("evaluate: (.*): No space left on device", error).groups()
        assert status == 2 and not list(place.rglob(".partial*"))
        named.append(pathlib.Path(file).name)
        assert evaluate_here(*flags) == 0
        expected = expected or (results("out"), results("images"))
        assert expected == (results("out"), results("images"))
        shutil.rmtree("out")
        shutil.rmtree("images")
    assert named == [
        "config.json", *["a--clean.npy"] * 2, *["a--step_fgsm.npy"] * 2, *["images.npy"] * 2,
        *["images.json"] * 3, "seconds.json", "report.csv", "report.md", "report.json",
    ]  # fmt: skip


# Adversarial images that are kept, and examples of them.


def test_a_network_of_bytes_is_recognised_and_measured(place, capsys):
    """A .keras file with Rescaling(1/255) inside was at chance, and nothing was suspicious."""
    first, bias, last = features(NAMES["a"])
    inputs = keras.Input((8, 8, 1))
    flat = keras.layers.Flatten()(keras.layers.Rescaling(1 / 255)(inputs))
    hidden, logits = keras.layers.Dense(len(bias), "relu"), keras.layers.Dense(10, "softmax")
    model = keras.Model(inputs, logits(hidden(flat)))
    hidden.set_weights([first, bias])
    logits.set_weights([last, np.zeros(10)])
    model.save("bytes.keras")
    squashed = evaluated("--target=bytes.keras", *STEP, output="squashed")
    lines = " ".join(capsys.readouterr().out.split())
    (sentence,) = squashed["warnings"]
    assert lines.startswith(sentence) and "is value_range (0, 255) meant?" in sentence
    assert (
        (place / "squashed/report.md")
        .read_text()
        .startswith("> **bytes: the network is right about")
    )
    right = evaluated("--target=bytes.keras", "--value_range=0,255", *STEP, output="right")
    found = [
        [record["accuracy"] for record in report["results"]] for report in (right, read("done"))
    ]
    assert found[0] == found[1] and not right["warnings"]
    assert evaluate_here("--target=bytes.keras", *STEP, "--output=right") == 2
    assert "--value_range: right was made with [0.0, 255.0], now it is null" in (
        capsys.readouterr().err
    )


def test_kept_images_are_taken_by_other_reports_and_drawn(place, images_and_labels, monkeypatch):
    (images, labels), drawn, draw = images_and_labels, [], pictures.draw_examples

    def drawing(report, found, given, *shown):
        drawn.append(shown)
        if len(drawn) <= 2:  # they take long
            draw(report, found, given, *shown)

    monkeypatch.setattr(pictures, "draw_examples", drawing)
    flags = ["--source=a,b", *FEW, "--attack=step_rand,step_ll", "--images_dir=images"]
    with crafting() as batches:
        evaluated("--target=a", *flags, output="first")
        assert len(batches) == 2 * 2 * 2
        batches.clear()
        evaluated("--target=b,c", *flags, "--examples=3", output="second")
        assert not batches
    evaluated("--target=b,c", *flags[:-1], "--examples=3", output="without")
    assert read("second") == read("without")

    # Whatever the images follow from is their identity: others of it are others, see test_tasks.
    records = [json.loads(path.read_text()) for path in sorted(place.glob("images/*/*.json"))]
    everyone = {
        "dataset": "digits", "dataset_hash": data.load("digits").fingerprint, "split": "test",
        "options": {}, "epsilons": [8, 30], "seed": SEED, "batch_size": BATCH,
        "shape": [2, COUNT, 8, 8, 1], "complete_batches": [0, BATCH],
    }  # fmt: skip
    assert records == [
        {"source": name, "source_hash": load_source(name).weights_hash, "attack": attack} | everyone
        for name in "ab" for attack in ("step_ll", "step_rand")
    ]  # fmt: skip

    # Examples are right when clean and wrong when attacked, and crafted again as they were kept.
    for cell, chosen, clean, adversarial in drawn:
        attacked = stored(f"{cell.source}--{cell.attack}", "second")["bc".index(cell.target), -1]
        before = stored(f"{cell.target}--clean", "second")[0, 0]
        expected = np.flatnonzero((before == labels) & (attacked != labels))[:3]
        np.testing.assert_array_equal(chosen, expected)
        np.testing.assert_array_equal(clean, images[expected])
        assert cell.epsilon == 30 and np.abs(adversarial - clean).max() <= 30 / 255 + 1e-6
        np.testing.assert_array_equal(classes_of(adversarial, cell.target), attacked[expected])
    half = len(drawn) // 2
    assert half >= 5
    for kept, again in zip(drawn[:half], drawn[half:], strict=True):
        assert kept[0] == again[0]
        np.testing.assert_array_equal(kept[-1], again[-1])
    wanted = {f"{c.target}-{c.source}-{c.attack}-30.png" for c, *_ in drawn[:2]}
    assert {path.name for path in place.glob("*/examples/*")} == wanted


# Minimal epsilons.


def test_minimal_epsilons_are_counted_listed_drawn_and_resumed(
    place, images_and_labels, monkeypatch
):
    images, labels = images_and_labels
    sizes, attack = [], carlini_wagner.CarliniWagner.__call__

    def counted(self, images, *rest, **starts):
        sizes.append(len(images))
        return attack(self, images, *rest, **starts)

    monkeypatch.setattr(carlini_wagner.CarliniWagner, "__call__", counted)
    monkeypatch.setattr(engine.MinimalEpsilons, "batch_size", 15)
    flags = ["--target=a,b", *FEW, "--attack=cw_linf", "--cw_images=20", "--cw_iterations=30",
             "--cw_threshold=10,20"]  # fmt: skip
    report = evaluated(*flags)
    assert sizes == [15, 5, 15, 5]
    chosen = carlini_wagner.selection(labels, 20)
    rows = table("out/cw_linf.csv")
    assert [int(row["image"]) for row in rows] == [*chosen, *chosen]
    assert [int(row["label"]) for row in rows] == [*labels[chosen], *labels[chosen]]
    for record, name in zip(report["cw_linf"], "ab", strict=True):
        epsilon = np.array([float(row["epsilon"]) for row in rows if row["target"] == name])
        np.testing.assert_allclose(epsilon, stored(f"{name}--cw_linf"), rtol=1e-6)
        right = classes_of(images[chosen], name) == labels[chosen]
        np.testing.assert_array_equal(epsilon > 0, right)
        above = [{"epsilon": t, "count": int((epsilon > t).sum())} for t in (10, 20)]
        assert record["above"] == above and record["examples"] == 20
        assert 0 < above[1]["count"] < above[0]["count"] < 20
    by_hand = carlini_wagner.CarliniWagner(
        load_source("b").logits, (8, 8, 1), grid=MNIST_GRID, iterations=30
    )(images[chosen[:15]], labels[chosen[:15]])
    np.testing.assert_allclose(epsilon[:15], by_hand.epsilon, rtol=1e-6)
    options = {"search": "descent", "images": 20, "iterations": 30}
    assert report["attacks"] == [{"name": "cw_linf", "epsilons": [10, 20], "options": options}]
    assert [
        (r["attack"], r["epsilon"], r["options"]) for r in report["results"] if r["target"] == "a"
    ] == [("clean", 0.0, {}), ("cw_linf", 10.0, options), ("cw_linf", 20.0, options)]
    assert pathlib.Path("out/cw_linf.png").read_bytes().startswith(b"\x89PNG")

    before = results()
    np.lib.format.open_memmap("out/predictions/b--cw_linf.npy", mode="r+")[15:] = np.nan
    sizes.clear()
    evaluated(*flags)
    assert sizes == [5] and results() == before

    # Other thresholds are counted in what is there.
    report = evaluated(*flags, "--cw_threshold=5")
    assert sizes == [5] and [len(r["above"]) for r in report["cw_linf"]] == [1, 1]


# Diagnosis.


def test_masked_gradients_are_found_and_a_plain_network_is_not_accused(trained, probes, tmp_path):
    save_features(tmp_path / "scaled", 0, scale=1e4)
    save_features(tmp_path / "quantised", 0, change=lambda images: tf.round(images * 3) / 3)
    paths = f"{trained / 'a'},{tmp_path / 'scaled'},{tmp_path / 'quantised'}"
    report = evaluated(f"--target={paths}", *STEP, "--num_images=60", "--epsilon=30",
                       "--diagnosis_images=60", "--pgd_steps=10", "--pgd_restarts=1",
                       output=tmp_path / "out")  # fmt: skip
    diagnosis = report["diagnosis"]
    found = {name: set() for name in ("a", "scaled", "quantised")}
    for finding in diagnosis["findings"]:
        found[finding["target"]].add(finding["kind"])
        assert finding["sentence"] in diagnosis["sentences"]
    assert found["a"] == set() and diagnosis["sentences"][0].startswith("a: nothing suspicious")
    assert found["scaled"] >= {"zero_gradients", "iterative_overstates"}
    assert found["quantised"] == {"zero_gradients", "survives_any_epsilon"}
    failed = {name: set() for name in found}
    for item in report["checklist"]:
        if item["verdict"] == "FAIL":
            failed[item["target"]].add(item["check"])
    assert failed["a"] == set()
    assert failed["scaled"] == {"gradients", "loss_rises"}
    assert failed["quantised"] == {"gradients", "loss_rises", "reaches_all", "gradient_free"}
    text = (tmp_path / "out" / "report.md").read_text()
    assert "\n- ".join(["", *diagnosis["sentences"]]) in text
    # It does not change what was asked for, where each target is its own source.
    correct = cells(report)
    asked = {(t, s) for t in found for s in ((None, "clean", 0.0), (t, "step_fgsm", 30.0))}
    assert {(t, tuple(rest)) for t, *rest in correct} == asked and diagnosis["examples"] == 60
    extra = [(attack, 30.0) for attack in ("step_rand", "iter_fgsm", "iter_margin", "pgd")]
    left = {(r["target"], r["attack"], r["epsilon"]): r["accuracy"] for r in diagnosis["results"]}
    assert set(left) == {(name, *each) for name in found for each in (*extra, ("pgd", 255.0))}
    assert left["a", "pgd", 255.0] == 0 and left["quantised", "pgd", 255.0] > 10
    # Without a gradient an image stays as it is.
    clean = correct["quantised", None, "clean", 0]
    assert correct["quantised", "quantised", "step_fgsm", 30] == clean
    assert left["quantised", "iter_fgsm", 30.0] == 100 * clean / 60


def test_a_black_box_has_a_diagnosis_and_confusions(place, white, images_and_labels):
    labels = images_and_labels[1]
    report = evaluated("--target=a", "--source=b", *STEP, "--epsilon=30", "--confusion",
                       "--diagnosis_images=30")  # fmt: skip
    # The diagnosis is of the white box.
    results = report["diagnosis"]["results"]
    assert {(r["target"], r["source"], r["examples"]) for r in results} == {("a", "a", 30)}
    left = {(r["attack"], r["epsilon"]): r["correct"] for r in results}
    assert {attack for attack, _ in left} >= {"step_fgsm", "iter_fgsm", "pgd"}
    own = stored("a--step_fgsm", white[0])[0, EPSILONS.index(30)] == labels
    assert left["step_fgsm", 30] == own[:30].sum()

    counts = {}
    for row in table("out/confusion.csv"):
        cell = (row["target"], row["source"] or None, row["attack"], float(row["epsilon"]))
        counts.setdefault(cell, np.zeros((10, 10), int))
        counts[cell][int(row["true"]), int(row["predicted"])] += int(row["count"])
    assert {cell: np.trace(matrix) for cell, matrix in counts.items()} == cells(report)
    for matrix in counts.values():
        assert matrix.sum(axis=1).tolist() == np.bincount(labels, minlength=10).tolist()
    wanted = {"a-b-step_fgsm-30.png", "a-clean.png"}
    assert {path.name for path in place.glob("out/confusion/*.png")} == wanted


def test_noise_before_the_network_follows_from_the_seed(place, images_and_labels):
    report = evaluated("--target=a", *STEP, "--inference_noise=30")
    assert report["inference_noise"] == 30
    predict = predictor(load_source("a").logits, (8, 8, 1), noise=30, seed=SEED)
    parts = slices(*images_and_labels, BATCH)
    classes = [predict(images[None], first)[0] for first, images, _ in parts]
    np.testing.assert_array_equal(stored("a--clean")[0, 0], np.concatenate(classes))
    for array in ("a--clean", "a--step_fgsm"):
        assert (stored(array) != stored(array, "done")).any()


# Bad input: one line, exit code 2, every file as it was.


def changed_weights(place):
    os.rename("done", "out")
    shutil.rmtree("a")
    shutil.copytree("b", "a")


def stranger(place):
    (place / "out").mkdir()
    (place / "out" / "notes").write_text("mine")


def spoilt_images(place):
    assert evaluate_here("--target=a", *STEP, "--images_dir=images", "--output=gone") == 0
    shutil.rmtree("gone")
    (record,) = place.glob("images/*/images.json")
    record.write_text(record.read_text().replace('"seed": 5', '"seed": -5'))


BAD = {  # one of each kind: what is refused is in test_networks, test_evaluation and test_tasks
    "no target": (None, ["--target=none"], "--target: name at least one"),
    "no such source": (None, ["--source=nobody"], "--source: nobody does not ex"),
    "the same network twice": (lambda place: shutil.copytree("a", "copy"), ["--target=a,copy"],
                               "--target: a and copy are the same network; name it once"),
    "empty dataset": (None, ["--dataset="], "--dataset: must not be empty"),
    "too many for cw": (None, ["--attack=cw_linf", "--cw_images=361"], "--cw_images: .*361 of 360"),
    "another seed": (lambda place: os.rename("done", "out"), ["--seed=6"],
                     "--seed: out was made with 5, now it is 6; name"),
    "other weights": (changed_weights, [], "--target: out was made with .*; name another"),
    "a stranger's folder": (stranger, [], "--output: out exists and is not a report"),
    "a run's folder": (None, ["--output=runs/half"], "--output: runs/half is a run"),
    "output in a network": (None, ["--output=a/report"], "--output: .*'a' is target's"),
    "images in the report": (None, ["--images_dir=out/x"], "--images_dir: .*'out' is output's"),
    "spoilt images": (spoilt_images, ["--images_dir=images"],
                      "--images_dir: images/a-step_fgsm-.*/images.json: seed: .*; remove images/a"),
    "images in a file": (None, ["--images_dir=/etc/passwd"],
                         "--images_dir: /etc/passwd is not a directory; name a writable"),
    "below a file": (lambda place: (place / "file").write_text("x"), ["--output=file/out"],
                     "--output: .*/file is not a directory;"),
}  # fmt: skip


@pytest.mark.parametrize("spoil, flags, message", BAD.values(), ids=BAD)
def test_bad_input_is_one_line_and_leaves_every_file(spoil, flags, message, place, capfd):
    if spoil:
        spoil(place)
    before = tree(place)
    capfd.readouterr()
    assert evaluate_here("--target=a", *STEP, "--output=out", *flags) == 2
    (error,) = capfd.readouterr().err.splitlines()
    assert error.startswith("evaluate: ") and re.search(message, error), error
    assert tree(place) == before
