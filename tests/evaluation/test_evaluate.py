"""bin/evaluate: its numbers against ones computed by hand, kills at any moment, and bad input."""

import contextlib
import csv
import json
import os
import pathlib
import random
import re
import shutil

import numpy as np
import pytest
import tensorflow as tf
from support.files import tree
from support.processes import start, wait_until
from support.release import unpack
from support.saved_models import saved_model

from cascade_keras import attacks, data
from cascade_keras.attacks import carlini_wagner
from cascade_keras.cli import evaluate, tables
from cascade_keras.data.specs import MNIST_GRID
from cascade_keras.evaluation import crafting as crafting_module
from cascade_keras.evaluation import pictures
from cascade_keras.evaluation import tasks as engine
from cascade_keras.evaluation.report import RESULT_FIELDS
from cascade_keras.evaluation.tables import markdown
from cascade_keras.sources import load_source

ROOT = pathlib.Path(__file__).parents[2]
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


def not_json(constant):
    pytest.fail(f"{constant} is no JSON")


def read(output="out"):
    """Return report.json, read as strictly as any other program would."""
    text = (pathlib.Path(output) / "report.json").read_text()
    return json.loads(text, parse_constant=not_json)


def timeless(output="out"):
    return {key: value for key, value in read(output).items() if key != "seconds"}


def evaluated(*flags, output="out"):
    """Run the program and return its report."""
    assert evaluate_here(*flags, f"--output={output}") == 0
    return read(output)


def stored(name, output="out"):
    """Return predictions (shown, epsilons, images) as they lie on disk."""
    return np.load(pathlib.Path(output) / "predictions" / f"{name}.npy")


@contextlib.contextmanager
def crafting():
    """Record every batch that is crafted: (source, attack, epsilons, first image)."""
    batches, crafter = [], crafting_module.crafter

    def counted(logits_fn, image_shape, attack, epsilons, **options):
        craft = crafter(logits_fn, image_shape, attack, epsilons, **options)
        if attack == "clean":
            return craft

        def counting(images, labels, first):
            name = logits_fn.__self__.name
            batches.append((name, attack, tuple(epsilons), int(first)))
            return craft(images, labels, first)

        return counting

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(crafting_module, "crafter", counted)
        yield batches


# Networks. Random features with a last layer that is fitted to the digits: right about 95 % of the
# time, known to the last weight, and there at once.


def features(seed, width=120):
    """Return the weights of such a network."""
    images, labels = data.load("digits").train
    rng = np.random.default_rng(seed)
    first = rng.normal(0, 0.3, (64, width)).astype("float32")
    bias = rng.normal(0, 0.3, width).astype("float32")
    hidden = np.maximum(images.reshape(-1, 64) / np.float32(255) @ first + bias, 0)
    last = np.linalg.solve(hidden.T @ hidden + 0.3 * np.eye(width), hidden.T @ np.eye(10)[labels])
    return first, bias, (10 * last).astype("float32")


def logits_of(images, weights):
    """Return its logits in NumPy."""
    first, bias, last = weights
    return np.maximum(np.reshape(images, (len(images), -1)) @ first + bias, 0) @ last


def save_features(path, seed, change=lambda images: images, scale=1):
    """Save it as anybody would."""
    first, bias, last = (tf.constant(array) for array in features(seed))

    def function(images):
        flat = tf.reshape(change(images), [-1, 64])
        return {"scores": scale * (tf.nn.relu(flat @ first + bias) @ last)}

    saved_model(path, function)


NAMES = {"a": 0, "b": 1, "c": 2}


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
def place(trained, tmp_path, monkeypatch):
    """A copy of that directory to work in. Heat maps, which take longest, are not drawn."""
    for name in ("runs", "saved", "done", *NAMES):
        shutil.copytree(trained / name, tmp_path / "place" / name)
    monkeypatch.chdir(tmp_path / "place")
    monkeypatch.setattr(pictures, "draw_accuracies", lambda *_: None)
    return tmp_path / "place"


@pytest.fixture(scope="module")
def images_and_labels():
    images, labels = data.test_images(data.load("digits"), 8)
    return images[:COUNT], labels[:COUNT]


WHITE_ATTACKS = ("step_ll", "step_fgsm", "step_both", "step_rand", "iter_ll", "iter_fgsm",
                 "iter_margin", "pgd")  # fmt: skip
BLACK_ATTACKS = ("step_fgsm", "iter_fgsm")


@pytest.fixture(scope="module")
def white(trained):
    """Every attack, white box: the report's directory and the batches that were crafted."""
    output = trained / "white"
    with crafting() as batches:
        evaluated(f"--target={trained / 'a'}", f"--attack={','.join(WHITE_ATTACKS)}", *FEW,
                  output=output)  # fmt: skip
    return output, batches


@pytest.fixture(scope="module")
def black(trained):
    """Two targets, of which one is a source as well, three sources, and epsilon 0."""
    output = trained / "black"
    paths = {name: str(trained / name) for name in NAMES}
    with crafting() as batches:
        evaluated(f"--target={paths['a']},{paths['b']}", f"--source={','.join(paths.values())}",
                  f"--attack={','.join(BLACK_ATTACKS)}", *FEW, "--epsilon=0,30",
                  output=output)  # fmt: skip
    return output, batches


def by_hand(attack, epsilon, network, images, labels):
    """Return an attack's images, batch by batch, from the functions of ``attacks`` alone."""
    made = []
    for first in range(0, len(images), BATCH):
        part = slice(first, first + BATCH)
        options = {"steps": 5, "restarts": 2} if attack == "pgd" else {}
        batch = tf.constant(images[part]), labels[part], epsilon
        made.append(
            attacks.at_epsilon(attack, network.logits, *batch, seed=(SEED, first), **options)
        )
    return np.concatenate(made)


def cells(report):
    """Return its results by (target, source, attack, epsilon); each is there once."""
    found = {
        (r["target"], r["source"], r["attack"], r["epsilon"]): r["correct"]
        for r in report["results"]
    }
    assert len(found) == len(report["results"])
    return found


# White box.


def test_white_box_numbers_are_those_computed_by_hand(white, trained, images_and_labels):
    images, labels = images_and_labels
    found = cells(read(white[0]))
    network, weights = load_source(trained / "a"), features(0)
    right = logits_of(images, weights).argmax(-1) == labels
    wanted = {("a", None, "clean", 0.0): right.sum()}
    for attack in WHITE_ATTACKS:
        for epsilon in EPSILONS:
            made = by_hand(attack, epsilon, network, images, labels)
            right = logits_of(made, weights).argmax(-1) == labels
            wanted["a", "a", attack, float(epsilon)] = right.sum()
    assert found == wanted
    assert min(wanted.values()) < 10 and max(wanted.values()) > 50  # there is something to confuse


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
    assert all(report["seconds"][what] > 0 for what in ("crafting", "classifying"))
    for result in report["results"]:
        assert tuple(result) == RESULT_FIELDS and result["examples"] == COUNT
        assert result["accuracy"] == pytest.approx(100 * result["correct"] / COUNT)


@pytest.mark.parametrize("kind", ["white", "black"])
def test_csv_and_markdown_hold_the_same_numbers(kind, request):
    output = request.getfixturevalue(kind)[0]
    report = read(output)
    with open(output / "report.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    for row, result in zip(rows, report["results"], strict=True):
        shown = {key: "" if value is None else str(value) for key, value in result.items()}
        options = "steps 5, restarts 2, objective margin" if result["attack"] == "pgd" else ""
        assert row == {**shown, "options": options}

    text = (output / "report.md").read_text()
    assert text == markdown(report)
    assert f"{COUNT} images" in text and f"seed {SEED}" in text and "digits" in text


def test_heat_maps_are_there(white, black):
    def pictures(output):
        return sorted(path.name for path in output.glob("*.png"))

    assert pictures(white[0]) == ["white_box-30.png", "white_box-8.png"]
    assert pictures(black[0]) == sorted(
        f"{attack}-{epsilon}.png" for attack in BLACK_ATTACKS for epsilon in (0, 30)
    )
    for path in (*white[0].glob("*.png"), *black[0].glob("*.png")):
        assert path.read_bytes().startswith(b"\x89PNG")


def test_without_source_and_dataset_a_trained_network_is_evaluated_on_what_it_learned(
    place, capsys
):
    flags = ["--num_images=40", "--attack=step_fgsm", "--diagnosis_images=0"]
    assert evaluate_here(*flags, "--target=saved/finished") == 0
    out = capsys.readouterr().out
    assert "reports/finished: accuracy in % of 40 digits test images, white box" in out
    report = read("reports/finished")
    assert report["attacks"][0]["epsilons"] == [76.5]  # the dataset's largest
    assert report["networks"][0]["recipe"]["model"] == "resnet8"
    assert "note:" not in out
    other = evaluated(*flags, "--target=runs/finished", output="other")
    assert other["results"] == report["results"]
    assert other["networks"][0]["weights_hash"] == report["networks"][0]["weights_hash"]
    evaluated(*flags, "--target=saved/finished", "--epsilon=0.3", output="small")
    assert "note: Epsilon 0.3 is less than one pixel value" in capsys.readouterr().out


# The matrix.


def test_every_cell_of_the_matrix_is_the_sources_images_on_the_target(
    black, trained, images_and_labels
):
    images, labels = images_and_labels
    report = read(black[0])
    weights = {name: features(seed) for name, seed in NAMES.items()}
    right = {}
    for name in "abc":
        right[name, None, "clean", 0.0] = logits_of(images, weights[name]).argmax(-1) == labels
    for source in NAMES:
        for attack in BLACK_ATTACKS:
            for epsilon in (0, 30):
                made = by_hand(attack, epsilon, load_source(trained / source), images, labels)
                for target in {"a", "b", source}:
                    classes = logits_of(made, weights[target]).argmax(-1)
                    right[target, source, attack, float(epsilon)] = classes == labels
    shown = {cell: values.sum() for cell, values in right.items() if cell[0] in "ab"}
    assert cells(report) == shown
    assert [n["target"] for n in report["networks"]] == [True, True, False]
    assert report["sources"] == ["a", "b", "c"]

    # Kurakin et al.'s transfer rates, from the same images; how they count is in test_summary.
    assert len(report["transfer"]) == 4 * len(BLACK_ATTACKS) * 2
    for record in report["transfer"]:
        source, target = record["source"], record["target"]
        cell = source, record["attack"], record["epsilon"]
        fooled = ~right[source, *cell]
        both, clean = fooled & ~right[target, *cell], right[source, None, "clean", 0.0]
        clean = clean & right[target, None, "clean", 0.0]
        assert record["fooled_source"] == fooled.sum() and record["fooled_both"] == both.sum()
        assert record["both_correct_fooled_both"] == (both & clean).sum()


def test_each_sources_images_are_crafted_once_for_all_targets_and_epsilons(black, white):
    firsts = range(0, COUNT, BATCH)
    expected = {
        (source, attack, (0, 30), first)
        for source in "abc" for attack in BLACK_ATTACKS for first in firsts
    }  # fmt: skip
    assert len(black[1]) == len(expected) and set(black[1]) == expected
    assert len(white[1]) == len(WHITE_ATTACKS) * len(firsts)


@pytest.mark.parametrize("width", [60, 80, 200])
def test_tables_of_many_networks_fit_the_terminal(width, monkeypatch, capsys):
    monkeypatch.setenv("COLUMNS", str(width))
    names = [f"cifar10-cascade-online-{number}" for number in range(7)]
    wanted = [[f"{10.0 * row + column:.1f}" for column in range(7)] for row in range(7)]
    filled = [[name, "iter_fgsm", "16", *cells] for name, cells in zip(names, wanted)]
    headings = ["crafted from", "attack", "epsilon", *names]
    tables.print_table(headings, filled, text_columns=2, fixed_columns=3)
    lines = capsys.readouterr().out.splitlines()
    # Of 60 characters the sources, attacks and epsilons alone take 50.
    assert max(map(len, lines)) <= max(width, 65)
    rows = [[cell.strip() for cell in line.split("│")[1:-1]] for line in lines if "│" in line]
    parts = [rows[first : first + 7] for first in range(0, len(rows), 7)]
    assert all(row[:3] == [name, "iter_fgsm", "16"] for part in parts
               for row, name in zip(part, names))  # fmt: skip
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


def test_killed_at_a_random_moment_it_ends_with_the_same_report(place):
    flags = ["--target=a,b", *FEW, "--attack=pgd,step_rand", "--batch_size=5", "--pgd_steps=60"]
    moment = random.Random(os.getpid()).randrange(5, 45)
    process = start("evaluate", *flags, "--output=out")
    wait_until(process, lambda: complete("a--pgd") >= moment)
    process.kill()
    process.communicate()
    assert not pathlib.Path("out/report.json").exists()
    left = sum(COUNT - complete(name) for name in ("a--pgd", "b--pgd"))
    assert 0 < left < 2 * COUNT

    with crafting() as batches:
        evaluated(*flags)
    assert sum(attack == "pgd" for _, attack, *_ in batches) == left // 5
    before = (tree("out"), timeless())
    evaluated(*flags, output="uninterrupted")
    assert timeless("uninterrupted") == before[1]
    assert not [path for path in before[0] if path.name.startswith(".partial")]
    for path, content in before[0].items():
        if path.name not in ("report.json", "report.md", "seconds.json"):
            assert (pathlib.Path("uninterrupted") / path).read_bytes() == content, path

    # Without --source each target is its own.
    pairs = {(r["target"], r["source"]) for r in before[1]["results"] if r["attack"] != "clean"}
    assert pairs == {("a", "a"), ("b", "b")}

    # Once it is finished, the same command computes nothing and leaves every file as it is.
    with crafting() as batches:
        evaluated(*flags)
    assert not batches
    assert tree("out") == before[0]


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
        if not self.name.startswith(".partial"):
            unlink(self, missing_ok)

    for deaths in range(30):
        left = deaths
        with monkeypatch.context() as patch:
            patch.setattr(os, "replace", replacing)
            patch.setattr(pathlib.Path, "unlink", unlinking)
            try:
                evaluated(*flags)
                break
            except Killed:
                continue
    assert deaths > 4
    assert timeless() == timeless("uninterrupted")
    for name in ("images", "out"):
        assert not list(pathlib.Path(name).rglob(".partial*"))


# Adversarial images that are kept.


def test_kept_images_are_taken_by_other_reports(place):
    common = ["--source=a,b", *FEW, "--attack=step_rand,step_ll", "--images_dir=images"]
    with crafting() as batches:
        evaluated("--target=a", *common, output="first")
        assert len(batches) == 2 * 2 * 2
        batches.clear()
        evaluated("--target=b,c", *common, output="second")
        assert not batches
        folders = sorted(pathlib.Path("images").iterdir())
        assert len(folders) == 4
        for folder in folders:
            assert np.load(folder / "images.npy").shape == (2, COUNT, 8, 8, 1)
            assert json.loads((folder / "images.json").read_text())["seed"] == SEED
        # Whatever the images follow from makes others of them.
        for flag in ("--seed=6", "--epsilon=8,31", "--batch_size=20", "--num_images=50"):
            batches.clear()
            evaluated("--target=a", *common, "--source=a", "--attack=step_rand", flag,
                      output=f"out{flag}")  # fmt: skip
            assert batches
    common.remove("--images_dir=images")
    evaluated("--target=b,c", *common, output="without")
    assert timeless("second") == timeless("without")


# Minimal epsilons.


def test_minimal_epsilons_are_counted_listed_drawn_and_resumed(
    place, trained, images_and_labels, monkeypatch
):
    images, labels = images_and_labels
    sizes, attack = [], carlini_wagner.CarliniWagner.__call__

    def counted(self, images, *rest):
        sizes.append(len(images))
        return attack(self, images, *rest)

    monkeypatch.setattr(carlini_wagner.CarliniWagner, "__call__", counted)
    monkeypatch.setattr(engine.MinimalEpsilons, "batch_size", 15)
    flags = ["--target=a,b", *FEW, "--attack=cw_linf", "--cw_images=20", "--cw_iterations=100",
             "--cw_threshold=10,20"]  # fmt: skip
    report = evaluated(*flags)
    assert sizes == [15, 5, 15, 5]
    chosen = carlini_wagner.selection(labels, 20)
    with open("out/cw_linf.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert [int(row["image"]) for row in rows] == [*chosen, *chosen]
    assert [int(row["label"]) for row in rows] == [*labels[chosen], *labels[chosen]]
    for record, name in zip(report["cw_linf"], "ab", strict=True):
        epsilon = np.array([float(row["epsilon"]) for row in rows if row["target"] == name])
        np.testing.assert_allclose(epsilon, stored(f"{name}--cw_linf"), rtol=1e-6)
        right = logits_of(images[chosen], features(NAMES[name])).argmax(-1) == labels[chosen]
        np.testing.assert_array_equal(epsilon > 0, right)
        above = [{"epsilon": t, "count": int((epsilon > t).sum())} for t in (10, 20)]
        assert record["above"] == above and record["examples"] == 20
        assert 0 < above[1]["count"] < above[0]["count"] < 20
        by_hand = carlini_wagner.CarliniWagner(
            load_source(trained / name).logits, (8, 8, 1), grid=MNIST_GRID, iterations=100
        )(images[chosen[:15]], labels[chosen[:15]])
        np.testing.assert_allclose(epsilon[:15], by_hand.epsilon, rtol=1e-6)
    options = {"search": "descent", "images": 20, "iterations": 100}
    assert report["attacks"] == [{"name": "cw_linf", "epsilons": [10, 20], "options": options}]
    assert [
        (r["attack"], r["epsilon"], r["options"]) for r in report["results"] if r["target"] == "a"
    ] == [("clean", 0.0, {}), ("cw_linf", 10.0, options), ("cw_linf", 20.0, options)]
    assert pathlib.Path("out/cw_linf.png").read_bytes().startswith(b"\x89PNG")

    before = timeless()
    array = np.lib.format.open_memmap("out/predictions/b--cw_linf.npy", mode="r+")
    array[15:] = np.nan
    array.flush()
    sizes.clear()
    evaluated(*flags)
    assert sizes == [5] and timeless() == before

    # Other thresholds are counted in what is there.
    sizes.clear()
    report = evaluated(*flags, "--cw_threshold=5")
    assert not sizes and [len(r["above"]) for r in report["cw_linf"]] == [1, 1]


# Diagnosis.


@pytest.fixture(scope="module")
def diagnosed(trained):
    """The report of a network, and of two others whose logits or input are spoilt."""
    save_features(trained / "scaled", 0, scale=1e4)
    save_features(trained / "quantised", 0, change=lambda images: tf.round(images * 3) / 3)
    paths = ",".join(str(trained / name) for name in ("a", "scaled", "quantised"))
    return evaluated(f"--target={paths}", *STEP, "--num_images=150", "--epsilon=30",
                     "--diagnosis_images=150", "--pgd_steps=20", "--pgd_restarts=1",
                     output=trained / "diagnosed")  # fmt: skip


def test_masked_gradients_are_found_and_a_plain_network_is_not_accused(diagnosed, trained):
    diagnosis = diagnosed["diagnosis"]
    found = {name: set() for name in ("a", "scaled", "quantised")}
    for finding in diagnosis["findings"]:
        found[finding["target"]].add(finding["kind"])
        assert finding["sentence"] in diagnosis["sentences"]
        assert f"{finding['first']:.1f}" in finding["sentence"]
        assert f"{finding['second']:.1f}" in finding["sentence"]
    assert found["a"] == set()
    assert diagnosis["sentences"][0].startswith("a: nothing suspicious")
    assert found["scaled"] >= {"zero_gradients", "iterative_overstates"}
    assert found["quantised"] == {"zero_gradients", "survives_any_epsilon"}
    text = "\n".join(diagnosis["sentences"])
    assert "the softmax is saturated" in text and "the network is not differentiable" in text
    assert text.replace("\n", "\n- ") in (trained / "diagnosed" / "report.md").read_text()


def test_the_diagnosis_does_not_change_what_was_asked_for(diagnosed):
    assert diagnosed["diagnosis"]["examples"] == 150
    asked = {(r["attack"], r["epsilon"]) for r in diagnosed["results"]}
    assert asked == {("clean", 0.0), ("step_fgsm", 30.0)}
    extra = {(r["attack"], r["epsilon"]) for r in diagnosed["diagnosis"]["results"]}
    assert extra == {("step_rand", 30.0), ("iter_fgsm", 30.0), ("iter_margin", 30.0),
                     ("pgd", 30.0), ("pgd", 255.0)}  # fmt: skip
    left = {(r["target"], r["attack"], r["epsilon"]): r["accuracy"]
            for r in diagnosed["diagnosis"]["results"]}  # fmt: skip
    assert left["a", "pgd", 255.0] == 0 and left["quantised", "pgd", 255.0] > 10


def test_black_box_reports_are_diagnosed_in_the_white_box(place):
    report = evaluated("--target=a", "--source=b", *STEP, "--diagnosis_images=30")
    results = report["diagnosis"]["results"]
    assert {(r["target"], r["source"], r["examples"]) for r in results} == {("a", "a", 30)}
    assert {r["attack"] for r in results} >= {"step_fgsm", "iter_fgsm", "pgd"}
    own = evaluated("--target=a", *FEW, "--attack=step_fgsm", output="own")
    for result in results:
        if result["attack"] == "step_fgsm":
            cell = "a", "a", "step_fgsm", result["epsilon"]
            right = stored("a--step_fgsm", "own")[0, EPSILONS.index(result["epsilon"])]
            labels = data.load("digits").test[1][:COUNT]
            assert (right == labels).sum() == cells(own)[cell]
            assert (right == labels)[:30].sum() == result["correct"]


# Pictures, and noise before the network.


def test_confusion_matrices_hold_every_image(place, images_and_labels):
    labels = images_and_labels[1]
    report = evaluated("--target=a", "--source=b", *STEP, "--confusion")
    with open("out/confusion.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    counts = {}
    for row in rows:
        cell = (row["target"], row["source"] or None, row["attack"], float(row["epsilon"]))
        counts.setdefault(cell, np.zeros((10, 10), int))
        counts[cell][int(row["true"]), int(row["predicted"])] += int(row["count"])
    wanted = cells(report)
    assert counts.keys() == wanted.keys()
    for cell, table in counts.items():
        assert table.sum(axis=1).tolist() == np.bincount(labels, minlength=10).tolist()
        assert np.trace(table) == wanted[cell]
    pictures = sorted(path.name for path in pathlib.Path("out/confusion").glob("*.png"))
    assert pictures == ["a-b-step_fgsm-30.png", "a-b-step_fgsm-8.png", "a-clean.png"]


@pytest.mark.parametrize("where", ["crafted again", "kept"])
def test_examples_are_right_when_clean_and_wrong_when_attacked(
    where, place, images_and_labels, monkeypatch
):
    images, labels = images_and_labels
    drawn, draw = [], pictures.draw_examples

    def drawing(report, found, cell, chosen, clean, adversarial):
        drawn.append((cell, chosen, clean, adversarial))
        draw(report, found, cell, chosen, clean, adversarial)

    monkeypatch.setattr(pictures, "draw_examples", drawing)
    kept = ["--images_dir=images"] * (where == "kept")
    evaluated(
        "--target=a,b", "--source=b", *FEW, "--attack=step_rand,step_fgsm", "--examples=3", *kept
    )
    assert len(drawn) >= 3
    for cell, chosen, clean, adversarial in drawn:
        assert cell.epsilon == 30 and cell.source == "b"
        attacked = stored(f"b--{cell.attack}")[("a", "b").index(cell.target), -1]
        before = stored(f"{cell.target}--clean")[0, 0]
        expected = np.flatnonzero((before == labels) & (attacked != labels))[:3]
        np.testing.assert_array_equal(chosen, expected)
        np.testing.assert_array_equal(clean, images[expected])
        assert np.abs(adversarial - clean).max() <= 30 / 255 + 1e-6
        classes = logits_of(adversarial, features(NAMES[cell.target])).argmax(-1)
        np.testing.assert_array_equal(classes, attacked[expected])
    pictures_there = [path.name for path in pathlib.Path("out/examples").glob("*.png")]
    assert len(pictures_there) == len(drawn) and "a-b-step_fgsm-30.png" in pictures_there


def test_noise_before_the_network_is_recorded_and_repeatable(place):
    noise = ["--target=a", *STEP, "--inference_noise=30"]
    evaluated("--target=a", *STEP, output="without")
    reports = {name: evaluated(*noise, f"--seed={seed}", output=name)
               for name, seed in (("one", SEED), ("same", SEED), ("other", 6))}  # fmt: skip
    assert timeless("one") == timeless("same")
    assert reports["one"]["inference_noise"] == 30
    assert "Random signs of 30 are added" in pathlib.Path("one/report.md").read_text()
    for array in ("a--clean", "a--step_fgsm"):
        assert (stored(array, "one") != stored(array, "without")).any()
        assert (stored(array, "one") != stored(array, "other")).any()


# Bad input: one line, exit code 2, every file as it was.


def nothing(place):
    pass


def done(place):
    """A report that is there."""
    os.rename("done", "out")


def changed_weights(place):
    done(place)
    shutil.rmtree("a")
    shutil.copytree("b", "a")


def stranger(place):
    (place / "out").mkdir()
    (place / "out" / "notes").write_text("mine")


OUT = ["--target=a"]
BAD = {  # one of each kind: what is refused is in test_networks, test_evaluation and test_tasks
    "no target": (nothing, [], "--target: name at least one"),
    "no such source": (nothing, ["--target=a", "--source=nobody"], "--source: nobody does not ex"),
    "the same network twice": (lambda p: shutil.copytree("a", "copy"), ["--target=a,copy"],
                               "--target: a and copy are the same network; name it once"),
    "no dataset": (nothing, ["--target=a", "--dataset="], "--dataset: a does not record"),
    "unknown attack": (nothing, [*OUT, "--attack=fgsm"], "--attack: .*one of step_ll, step_fgsm"),
    "epsilon no number": (nothing, [*OUT, "--epsilon=large"], "--epsilon: .* numbers, got 'large'"),
    "too many for cw": (nothing, [*OUT, "--attack=cw_linf", "--cw_images=361"],
                        "--cw_images: cannot select 361 of 360 images"),
    "argument": (nothing, [*OUT, "b"], "unexpected argument 'b'"),
    "another seed": (done, [*OUT, "--seed=6"], "--seed: out was made with 5, now it is 6; name"),
    "other weights": (changed_weights, OUT, "--target: out was made with .*; name another"),
    "a stranger's folder": (stranger, OUT, "--output: out exists and is not a report"),
    "a run's folder": (nothing, [*OUT, "--output=runs/half"], "--output: runs/half is a run"),
    "below a file": (lambda p: (p / "file").write_text("x"), [*OUT, "--output=file/out"],
                     "--output: cannot write in .*/file;"),
}  # fmt: skip


@pytest.mark.parametrize("case", BAD)
def test_bad_input_is_one_line_and_leaves_every_file(case, place, capfd):
    spoil, flags, message = BAD[case]
    spoil(place)
    before = tree(place)
    capfd.readouterr()
    assert evaluate_here(*STEP, "--output=out", *flags) == 2
    errors = capfd.readouterr().err.splitlines()
    assert len(errors) == 1, errors
    assert errors[0].startswith("evaluate: ") and re.search(message, errors[0]), errors[0]
    assert tree(place) == before
