"""The zoo: presets are the networks they were made of, in order of what withstands AutoAttack."""

import json
import os
import pathlib
import shutil
import subprocess
import sys
import zipfile

import h5py
import keras
import msgspec
import numpy as np
import pytest
from support.files import ROOT, flip, tree

import cascade_keras as ck
from cascade_keras import data, presets, zoo
from cascade_keras.cli import evaluate, export, train
from cascade_keras.cli.zoo import main
from cascade_keras.errors import InputError
from cascade_keras.export import finished
from cascade_keras.models import resnet
from cascade_keras.provenance import PROVENANCE_FILE, locate, weights_hash
from cascade_keras.recorded import Metrics, RunConfig
from cascade_keras.runs.build import load_initialisation
from cascade_keras.runs.run import Run
from cascade_keras.runs.settings import TrainingSettings
from cascade_keras.sources import load_source
from cascade_keras.zoo import leaderboard, making, robustness
from cascade_keras.zoo.card import card, command

NAME = "digits-resnet8-pivot"
FEW = ["--attack=step_ll", "--epsilon=8", "--num_images=12", "--diagnosis_images=0"]
TRAINED_BY = {"steps": 20, "of": 30, "by": "an abacus", "seconds": 12.5}


def finished_run(path, network, seed=0):
    """What bin/train leaves of a finished run."""
    settings = TrainingSettings(dataset="digits", model="resnet8", steps=30, seed=seed)
    flags = {**settings.resolved().decisive(), "init_from": "/somewhere/else/start"}
    dataset = {"name": "digits", "fingerprint": data.load("digits").fingerprint}
    config = {"flags": flags, "seed": seed, "dataset": dataset, "versions": {"keras": "3.15.1"}}
    run = Run(path)
    run.open(msgspec.convert(config, RunConfig))
    run.finish(network, Metrics(steps=30, seed=seed, results=[]))
    run.close()
    return path


@pytest.fixture(scope="module")
def trained(randomize, tmp_path_factory):
    """Two runs, a report of each, and the zoo that was made of the first.

    The second one's report is the first one's with another name on it.
    """
    place = tmp_path_factory.mktemp("zoo")
    mean = np.linspace(0, 1, 64, dtype="float32").reshape(8, 8, 1) ** 2
    for seed, name in enumerate(("a", "b")):
        network = resnet(8, (8, 8, 1), normalization="pixel", mean=mean)
        finished_run(place / "runs" / name, randomize(network, seed), seed)
        (place / "runs" / name / "trained_by.json").write_text(json.dumps(TRAINED_BY))
    flags = [f"--target={place}/runs/a", f"--output={place}/reports/a", *FEW]
    assert evaluate.main(["evaluate", *flags]) == 0
    shutil.copytree(place / "reports/a", place / "reports/b")
    report = json.loads((place / "reports/a/report.json").read_text())
    digest = weights_hash(np.asarray(weight) for weight in network.weights)
    report["networks"][0]["weights_hash"] = digest
    (place / "reports/b/report.json").write_text(json.dumps(report))
    flags = [f"--run={place}/runs/a", f"--report={place}/reports/a", f"--output={place}/presets"]
    assert main(["zoo", *flags]) == 0
    return place


@pytest.fixture
def ours(place, monkeypatch):
    """The directory to work in, whose presets are the package's."""
    monkeypatch.setattr(presets, "FOLDER", place / "presets")
    return place


def one_line(capsys, program):
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"{program}: ")
    return line


def test_a_preset_is_the_network_of_its_run_to_the_last_bit(ours, digits):
    images = digits[0][:20]
    of_run = keras.models.load_model(ours / "runs/a/model.keras", compile=False)
    for name in (NAME, f"zoo:{NAME}", ours / "presets" / NAME):
        network = ck.load(name)
        assert isinstance(network, keras.Model) and network.input_shape == (None, 8, 8, 1)
        for key, expected in of_run(images).items():
            np.testing.assert_array_equal(network(images)[key], expected)
    assert ck.zoo.names() == ck.zoo.names("digits") == [NAME] and ck.zoo.names("mnist") == []
    folder = ours / "presets" / NAME
    assert sorted(path.name for path in folder.iterdir()) == sorted(presets.FILES)
    stored = []
    with h5py.File(folder / presets.WEIGHTS) as file:
        file.visititems(lambda _, found: stored.append(found) if hasattr(found, "dtype") else None)
        assert {str(found.dtype) for found in stored} == {"float32"}
        assert sum(found.size for found in stored) == network.count_params()


def test_a_preset_says_what_it_is_and_nothing_of_the_machine(ours):
    folder = ours / "presets" / NAME
    metadata = json.loads((folder / presets.METADATA).read_text())
    arrays = [np.asarray(weight) for weight in ck.load(NAME).weights]
    assert metadata["weights_hash"] == weights_hash(arrays)
    assert (metadata["seconds"], metadata["note"]) == (12.5, "an abacus: 20 of 30 steps")
    assert metadata["recipe"]["init_from"] == "start" and metadata["steps"] == 30
    text = (folder / presets.CARD).read_text()
    assert "an abacus" in text and "--steps=30" in text and "@inproceedings" in text
    for path in folder.iterdir():
        assert str(ours).encode() not in path.read_bytes(), path.name
        assert b"/somewhere" not in path.read_bytes(), path.name
    found = robustness.read(folder)
    report = json.loads((ours / "reports/a/report.json").read_text())
    counted = {(r["attack"], r["epsilon"]): r["correct"] for r in report["results"]}
    assert {(r.attack, r.epsilon): r.correct for r in found.results} == counted


def test_a_preset_that_is_made_again_has_the_same_files(ours):
    before = tree("presets")
    again = ["zoo", f"--name={NAME}", "--run=runs/a", "--report=reports/a"]
    assert main([*again, "--output=again"]) == 0 and tree("again") == before
    assert main(again) == 0 and tree("presets") == before  # brought up to date
    assert main(["zoo", f"--run=zoo:{NAME}", "--report=reports/a"]) == 0
    assert tree("presets") == before


REFUSED = {
    "no run": ("--report=reports/a", "--report: has a meaning only with run"),
    "no report": ("--run=runs/a", "--report: must be given"),
    "unfinished": ("--run=reports/a --report=reports/a", "--run: "),
    "not a report": ("--run=runs/a --report=runs", "--report: runs is not a report"),
    "another network": ("--run=runs/b --report=reports/a", "--report: reports/a is of another"),
    "name taken": (f"--run=runs/b --report=reports/b --name={NAME}", "--name: "),
    "no name": ("--run=runs/a --report=reports/a --name=all", "--name: must be"),
    "of other data": (
        "--run=runs/a --report=other",
        "--report: other is of mnist; the run learned",
    ),
    "black box": ("--run=runs/a --report=black", "--report: black is black box"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_is_no_preset_is_refused_in_one_line_and_leaves_nothing(case, ours, capsys):
    for name, changes in (("other", {"dataset": "mnist"}), ("black", {"sources": ["b"]})):
        shutil.copytree("reports/a", name)
        report = json.loads(pathlib.Path(name, "report.json").read_text())
        pathlib.Path(name, "report.json").write_text(json.dumps(report | changes))
    before = tree(".")
    flags, message = REFUSED[case]
    assert main(["zoo", *flags.split()]) == 2 and tree(".") == before
    assert message in one_line(capsys, "zoo")


def test_a_full_disk_leaves_no_preset(ours, capsys, monkeypatch):
    def full(*_):
        raise OSError(28, "No space left on device", "x")

    monkeypatch.setattr(making, "card", full)
    before = sorted(pathlib.Path("presets").iterdir())
    assert main(["zoo", "--run=runs/a", "--report=reports/a", "--name=other"]) == 2
    assert one_line(capsys, "zoo") == "zoo: x: No space left on device"
    assert sorted(pathlib.Path("presets").iterdir()) == before


def test_a_damaged_file_of_weights_is_refused_wherever_it_is_named(ours, capsys):
    flip(ours / "presets" / NAME / presets.WEIGHTS)
    for use in (
        lambda: ck.load(NAME),
        lambda: load_source(f"zoo:{NAME}"),
        lambda: load_source(ours / "presets" / NAME),
        lambda: load_initialisation(resnet(8, (8, 8, 1)), f"zoo:{NAME}"),
    ):
        with pytest.raises(InputError, match=r"model\.weights\.h5 is damaged: its SHA-256 begins"):
            use()
    assert evaluate.main(["evaluate", f"--target=zoo:{NAME}"]) == 2
    assert "--target: " in (line := one_line(capsys, "evaluate")) and "damaged" in line


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("digits-resnet-pivot", f"near are {NAME}; it has {NAME}"),
        ("nothing", f"the zoo has no 'nothing'; it has {NAME}"),
        ("zoo:../x", "the zoo has no '../x'"),
    ],
)
def test_an_unknown_name_gives_the_known_ones(name, words, ours):
    with pytest.raises(InputError, match=words):
        ck.load(name)


def test_a_preset_is_a_network_like_any_other(ours, capsys):
    run = locate("runs/a")
    found = locate(f"zoo:{NAME}")
    assert (found.name, str(found.named)) == (NAME, f"zoo:{NAME}")
    assert found.provenance["dataset"] == run.provenance["dataset"]
    # What it learned is known, and its numbers are those of the run.
    assert evaluate.main(["evaluate", "--target=zoo:all", "--dataset=digits", *FEW]) == 0
    output = ours / "reports" / NAME
    found, other = (
        json.loads((place / "report.json").read_text()) for place in (output, ours / "reports/a")
    )
    (record,) = found["networks"]
    assert record["path"] == f"zoo:{NAME}"
    assert record["weights_hash"] == other["networks"][0]["weights_hash"]
    counted = ([r["correct"] for r in report["results"]] for report in (found, other))
    assert next(counted) == next(counted)
    text = (output / leaderboard.FILE).read_text()
    assert f"| {NAME} | " in text and "## digits, epsilon 8" in text
    capsys.readouterr()
    assert evaluate.main(["evaluate", "--target=zoo:all", *FEW]) == 2
    assert one_line(capsys, "evaluate").startswith("evaluate: --dataset: must be named beside zoo:")
    assert evaluate.main(["evaluate", "--target=zoo:all", "--dataset=mnist", *FEW]) == 2
    assert "--target: zoo:all has no networks of 'mnist'" in one_line(capsys, "evaluate")


def test_a_training_can_begin_with_a_preset(ours):
    network = resnet(8, (8, 8, 1), normalization="pixel", mean=np.zeros((8, 8, 1)))
    load_initialisation(network, f"zoo:{NAME}")
    for weight, expected in zip(network.weights, ck.load(NAME).weights, strict=True):
        np.testing.assert_array_equal(weight, expected)
    with pytest.raises(InputError, match="does not hold the weights of this network"):
        load_initialisation(resnet(14, (8, 8, 1)), f"zoo:{NAME}")
    with pytest.raises(InputError, match="init_from: the zoo has no 'x'"):
        load_initialisation(network, "zoo:x")


def test_of_a_preset_is_known_what_is_known_of_its_run(ours):
    (_, of_preset), (file, of_run) = finished(f"zoo:{NAME}"), finished("runs/a")
    assert file == pathlib.Path("runs/a/model.keras")
    assert of_preset["recipe"].pop("init_from") == "start"
    assert of_run["recipe"].pop("init_from") == "/somewhere/else/start"
    assert of_preset == of_run


@pytest.mark.long
def test_an_exported_preset_is_the_exported_run(ours):
    for run in (f"zoo:{NAME}", "runs/a"):
        assert export.main(["export", f"--run={run}"]) == 0
    records = [
        json.loads((ours / "saved" / name / "1" / PROVENANCE_FILE).read_text())
        for name in (NAME, "a")
    ]
    names = [record.pop("name") for record in records]
    inits = [record["recipe"].pop("init_from") for record in records]
    assert records[0] == records[1]
    assert names == [NAME, "a"] and inits == ["start", "/somewhere/else/start"]


# The leaderboard.


def made_up(name, dataset="mnist", epsilon=8.0, **accuracies):
    """An entry with such accuracies of 200 images."""
    results = [
        {"attack": a, "epsilon": epsilon if a != "clean" else 0, "correct": int(2 * v),
         "examples": 200, "accuracy": v} for a, v in accuracies.items()
    ]  # fmt: skip
    report = {"examples": 200, "seed": 0, "seconds": 1.0, "versions": {}}
    found = {"dataset": dataset, "fingerprint": "f" * 64, "split": "test", "worst": []}
    found |= {"weights_hash": "0" * 64, "results": results, "diagnosis": None, "checklist": []}
    measured = msgspec.convert({**found, "reports": [report]}, robustness.Robustness)
    return leaderboard.Entry(name, measured, steps=8000, seed=1, seconds=61.4)


BOARD = [
    made_up("unmeasured", clean=99.0, iter_fgsm=95.0, pgd=90.0),
    made_up("c", clean=99.5, iter_fgsm=80.0, pgd=50.0, autoattack=10.0),
    made_up("b", clean=90.0, iter_fgsm=20.0, pgd=12.0, autoattack=11.5),
    made_up("b-more", clean=91.0, iter_fgsm=20.0, pgd=12.5, autoattack=11.5),
    made_up("another epsilon", epsilon=16.0, clean=99.0, autoattack=99.0),
    made_up("other data", "digits", clean=99.0, autoattack=99.0),
    made_up("one step alone", epsilon=4.0, clean=99.0, step_ll=99.0),
]


def test_the_leaderboard_is_sorted_by_autoattack():
    ranked = leaderboard.ranked(BOARD[:5], 8.0)
    assert [entry.name for entry in ranked] == ["b-more", "b", "c", "unmeasured"]
    titles = [title for title, _, _ in leaderboard.grids(BOARD)]
    assert titles == ["mnist, epsilon 8", "mnist, epsilon 16", "digits, epsilon 8"]
    assert len(leaderboard.grids(BOARD[-1:])) == 1
    _, headings, rows = leaderboard.grids(BOARD)[0]
    row = dict(zip(headings, rows[2]))
    assert list(row.values()) == [
        "c", "99.5", "80.0", "50.0", "10.0", "autoattack 10.0", "200", "8,000", "1", "61",
    ]  # fmt: skip
    assert dict(zip(headings, rows[3]))["strongest"] == "pgd 90.0"


def test_reports_of_more_images_count_and_others_are_told():
    many, few = made_up("x", clean=99.0, pgd=50.0), made_up("x", clean=98.0, autoattack=20.0)
    result = few.robustness.results
    shorter = [msgspec.structs.replace(r, examples=100, correct=r.correct // 2) for r in result]
    few = msgspec.structs.replace(few.robustness, results=shorter)
    for order in ([many.robustness, few], [few, many.robustness]):
        found = robustness.merged(order)
        assert found.find("clean").accuracy == 99.0 and len(found.reports) == 2
        _, _, ((_, clean, _, pgd, autoattack, strongest, *_),) = leaderboard.grids(
            [leaderboard.Entry("x", found)]
        )[0]
        assert (clean, pgd, autoattack) == ("99.0", "50.0", "20.0 / 100")
        assert strongest == "autoattack 20.0 / 100"
    own = {"attack": "clean", "epsilon": 0.0, "correct": 9950, "examples": 10000, "accuracy": 99.5}
    assert robustness.merged(order, [own]).find("clean").examples == 10000


# What the package brings along.


def test_docs_have_the_leaderboard_of_the_package():
    assert (ROOT / "docs" / "zoo.md").read_text("utf-8") == leaderboard.page(), (
        "make it again: bin/zoo --leaderboard=docs/zoo.md"
    )


@pytest.mark.parametrize("name", zoo.names())
def test_a_preset_of_the_package_is_whole(name):
    folder = presets.folder_of(name)
    assert sorted(path.name for path in folder.iterdir()) == sorted(presets.FILES)
    metadata, found = presets.read(folder, dict), robustness.read(folder)
    assert presets.weights(folder).stat().st_size < 1.5e6 and metadata["name"] == name
    assert (folder / presets.CARD).read_text("utf-8") == card(metadata, found)
    assert metadata["dataset"]["fingerprint"] == found.fingerprint
    assert found.weights_hash == metadata["weights_hash"]
    for path in folder.iterdir():
        assert path.suffix == ".h5" or b'"/' not in path.read_bytes(), f"{path} names a place"


def test_a_recipe_is_a_command_of_what_is_unusual():
    recipe = TrainingSettings(dataset="mnist", loss="pivot", distance="l1").resolved().decisive()
    assert command({**recipe, "name": "x"}).split() == [
        "bin/train", "\\", "--dataset=mnist", "\\", "--model=resnet20", "\\", "--loss=pivot", "\\",
        "--steps=8000", "\\", "--seed=0", "\\", "--distance=l1",
    ]  # fmt: skip


@pytest.mark.long
def test_a_cascade_is_trained_from_a_preset_and_goes_on(ours, capsys):
    flags = [
        "--model=resnet8", f"--cascade_source=zoo:{NAME}", f"--init_from=zoo:{NAME}",
        "--cascade_mode=online", "--steps=2", "--batch_size=16", "--adversarial_batch_size=8",
        "--max_epsilon=4", "--tensorboard=none", "--eval_attacks=step_ll", "--noexport", "--name=c",
    ]  # fmt: skip
    assert train.main(["train", *flags]) == 0
    config = json.loads(pathlib.Path("runs/c/config.json").read_text())
    digest = presets.read(presets.folder_of(NAME), dict)["weights_hash"]
    source = {"name": NAME, "path": f"zoo:{NAME}", "weights_hash": digest}
    assert config["cascade"]["sources"] == [source] and config["dataset"]["name"] == "digits"
    assert train.main(["train", *flags]) == 0 and "is finished" in capsys.readouterr().out


@pytest.mark.long
def test_keras_loads_a_run_after_the_import_alone(trained):
    program = (
        "import sys, cascade_keras, keras, numpy as np\n"
        "network = keras.models.load_model(sys.argv[1])\n"
        "np.save(sys.argv[2], network(np.full((2, 8, 8, 1), 0.3, 'float32'))['logits'])\n"
    )
    command = [sys.executable, "-c", program, trained / "runs/a/model.keras", trained / "out.npy"]
    subprocess.run(command, check=True, env={**os.environ, "PYTHONPATH": str(ROOT)})
    expected = keras.models.load_model(trained / "runs/a/model.keras", compile=False)(
        np.full((2, 8, 8, 1), 0.3, "float32")
    )
    np.testing.assert_array_equal(np.load(trained / "out.npy"), expected["logits"])


@pytest.mark.long
def test_a_wheel_has_the_presets_and_is_small(tmp_path):
    source = tmp_path / "source"
    shutil.copytree(ROOT / "cascade_keras", source / "cascade_keras")
    for name in ("setup.py", "pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source)
    command = [sys.executable, "-m", "pip", "wheel", "--no-deps", "--quiet", "-w", tmp_path, source]
    subprocess.run(command, check=True)
    (wheel,) = tmp_path.glob("*.whl")
    assert wheel.stat().st_size < 20e6
    with zipfile.ZipFile(wheel) as archive:
        names = set(archive.namelist())
    for name in zoo.names():
        for file in presets.FILES:
            assert f"cascade_keras/zoo/presets/{name}/{file}" in names
