"""Figures as objects and from bin/analyze: what is computed, kept and written, and bad input."""

import dataclasses
import io
import json
import os
import pathlib
import re
import types
import zipfile

import keras
import numpy as np
import pytest
from matplotlib.figure import Figure as Picture
from matplotlib.image import imread
from support.files import tree
from support.networks import features, save_run

from cascade_keras import Figure, FigureSettings, attacks, data, figures, files, records
from cascade_keras.attacks import carlini_wagner
from cascade_keras.attacks.specs import ATTACKS, ONE_STEP, AttackSpec
from cascade_keras.cli import analyze
from cascade_keras.data.specs import DATASETS
from cascade_keras.errors import InputError
from cascade_keras.figures import FIGURES, captions, kept
from cascade_keras.figures.settings import parse_epsilons
from cascade_keras.sources import load_source

COUNT, SEED = 12, 5
FEW = ["--dataset=digits", f"--num_images={COUNT}", f"--seed={SEED}", "--output=out"]


@pytest.fixture(scope="session")
def trained(tmp_path_factory):
    directory = tmp_path_factory.mktemp("networks")
    save_run(directory / "runs" / "a", features(0), init_from="runs/start", distance_weight=1e-2)
    save_run(directory / "runs" / "b", features(1), init_from="elsewhere/start")
    save_run(directory / "runs" / "std", features(2), loss="standard")
    features(3).save(directory / "bare.keras")
    inputs = keras.Input((6, 6, 1))
    outputs = keras.layers.Dense(10)(keras.layers.Flatten()(inputs))
    keras.Model(inputs, outputs).save(directory / "small.keras")
    return directory


def analyze_here(figure, *flags):
    return analyze.main(["analyze", f"--figure={figure}", *flags])


def arrays_of(figure):
    with np.load(pathlib.Path("out", f"{figure}.npz"), allow_pickle=False) as stored:
        return {name: stored[name] for name in stored.files}


def caption_of(figure):
    return " ".join(pathlib.Path("out", f"{figure}.txt").read_text().split())


def counted(monkeypatch, figure):
    """Count how often a figure's arrays are computed; they are those of the first time."""
    calls, plot = [], FIGURES[figure].resolve()
    compute = plot.compute

    def count(self, progress):
        calls.append(calls[0] if calls else compute(self, progress))
        return dict(calls[0])

    monkeypatch.setattr(plot, "compute", count)
    return calls


def without_drawing(monkeypatch):
    """Record what would be drawn: pictures take longer than the rest together."""
    drawn = []

    def draw(self, arrays):
        drawn.append(arrays)
        return Picture(figsize=(1, 1))

    for spec in FIGURES.values():
        monkeypatch.setattr(spec.resolve(), "draw", draw)
    return drawn


# The program.

BOTH = "--model=runs/a,runs/b"
# Flags that make it small, one that changes the numbers, and which images.
CASES = {
    "noise_correlation": (["--epsilons=4,8"], "--attack=step_ll", "drawn"),
    "embedding_map": (["--epsilons=0,8"], "--num_images=20", "per class"),
    "distance_sweep": (["--epsilons=8", "--attack=step_ll"], "--seed=6", "first"),
    "logits": (["--epsilons=-8,0,8"], "--epsilons=-8..8", "drawn"),
    "gradient_correlation": (["--epsilons=0,8"], "--split=train", "drawn"),
    "cw_distribution": (["--cw_iterations=10"], "--cw_iterations=25", "per class"),
    "accuracy_curve": (["--epsilons=0,8", "--attack=step_ll,pgd", "--pgd_steps=2",
                        "--pgd_restarts=1"], "--pgd_steps=3", "first"),
    "loss_surface": (["--epsilons=-8,0,8", "--image_index=7,3"],
                     "--model=runs/b,runs/a", "named"),
}  # fmt: skip


@pytest.mark.parametrize("figure", CASES)
def test_a_figure_is_computed_once_and_drawn_again(figure, place, capfd, monkeypatch):
    flags, change, chosen = CASES[figure]
    few = [flag for flag in FEW if chosen != "named" or "num_images" not in flag]
    calls = counted(monkeypatch, figure)
    assert analyze_here(figure, *few, BOTH, *flags) == 0
    assert "computed" in capfd.readouterr().out
    out = pathlib.Path("out")
    suffixes = ("npz", "pdf", "png", "txt")
    assert sorted(os.listdir(out)) == [f"{figure}.{suffix}" for suffix in suffixes]
    assert not list(out.glob(".*"))
    assert imread(out / f"{figure}.png").shape[0] > 100
    assert (out / f"{figure}.pdf").read_bytes().startswith(b"%PDF")

    stored, caption, digits = arrays_of(figure), caption_of(figure), data.load("digits")
    labels = digits.test[1]
    images = {
        "per class": lambda: carlini_wagner.selection(labels, COUNT),
        "first": lambda: np.arange(COUNT),
        "drawn": lambda: np.sort(np.random.default_rng(SEED).choice(360, COUNT, replace=False)),
        "named": lambda: np.array([7, 3]),
    }[chosen]()
    assert stored["images"].tolist() == images.tolist()
    assert stored["labels"].tolist() == labels[images].tolist()
    assert f"Images: {len(images)} test images of digits" in caption and f"seed {SEED}" in caption
    assert digits.fingerprint in caption and str(place) not in caption
    for name in "ab":
        digest = load_source(f"runs/{name}").weights_hash
        assert f"{name}: weights {digest}; lenet, pivot loss" in caption

    drawn = without_drawing(monkeypatch)
    assert analyze_here(figure, *few, BOTH, *flags) == 0
    assert len(calls) == 1 and "drawn again" in capfd.readouterr().out
    for name, array in drawn[0].items():
        np.testing.assert_array_equal(array, stored[name])

    # As 0.2.0 kept it, without a checksum: what each array must be says that it is whole.
    assert "sha256" in stored
    without = {name: array for name, array in stored.items() if name != "sha256"}
    np.savez(out / f"{figure}.npz", **without)
    assert analyze_here(figure, *few, BOTH, *flags) == 0
    assert len(calls) == 1 and "drawn again" in capfd.readouterr().out

    # Another split, seed, ...: nothing of before is taken.
    assert analyze_here(figure, *few, BOTH, *flags, change) == 0
    assert len(calls) == 2
    assert arrays_of(figure)["identity"] != stored["identity"]


def test_thresholds_are_only_drawn(place, monkeypatch):
    without_drawing(monkeypatch)
    calls = counted(monkeypatch, "cw_distribution")
    flags = ["cw_distribution", *FEW, "--model=runs/a", "--cw_iterations=10"]
    assert analyze_here(*flags) == 0 and "above 76.5; " in caption_of("cw_distribution")
    assert analyze_here(*flags, "--epsilons=5,9") == 0
    assert len(calls) == 1 and "above 5, " in caption_of("cw_distribution")


def test_captions_tell_what_a_number_follows_from(place, monkeypatch):
    without_drawing(monkeypatch)
    flags = [*FEW, "--epsilons=0,8"]
    assert analyze_here("embedding_map", *flags, "--model=runs/a") == 0
    caption, found = caption_of("embedding_map"), arrays_of("embedding_map")
    shares = " and ".join(f"{100 * share:.1f} %" for share in found["explained"][0])
    assert "a: projection of the 10 embedding dimensions" in caption and "PCA" in caption
    assert f"which explain {shares} of their variance" in caption
    three = "--model=runs/a,runs/b,bare.keras"
    flags = [*FEW, "--epsilons=8", "--attack=pgd", "--pgd_steps=2"]
    assert analyze_here("noise_correlation", *flags, three) == 0
    caption = caption_of("noise_correlation")
    assert "a, b (same initialisation): " in caption
    assert "a, bare (initialisation not recorded): " in caption
    assert "initialised from start" in caption and "its training is not recorded" in caption
    assert "pgd (steps 2, restarts 5, objective margin)" in caption  # what is not given is pgd's


def test_names_of_any_characters_do_no_harm(place, recwarn):
    """In the picture none is read as a formula; in the caption each network has one line."""
    odd = "a\n$b^2$ \\$c <i>\x07日"
    settings = FigureSettings(
        figure="noise_correlation", epsilons=[8], attack=["step_ll"], num_images=2, output="out",
    )  # fmt: skip
    networks = [dataclasses.replace(load_source("runs/a"), name=odd), load_source("runs/b")]
    Figure(settings, networks=networks).draw()
    assert not recwarn.list  # such as of letters that the font lacks
    lines = pathlib.Path("out/noise_correlation.txt").read_text().splitlines()
    name = "a $b^2$ \\$c <i>\ufffd日"
    (line,) = (line for line in lines if line.startswith("  a"))
    assert line.startswith(f"  {name}: weights ")


@pytest.mark.parametrize(
    "recipe",
    [[1], "a", {"loss": 1}, {"steps": []}, {"init_from": 3}, {"cascade_source": 4},
     {"ensemble_source": [None]}, {"loss": "pivot", "distance_weight": "x"}, {"seed": {}}],
)  # fmt: skip
def test_a_recipe_that_cannot_be_is_refused(recipe):
    network = types.SimpleNamespace(provenance={"recipe": recipe})
    with pytest.raises(InputError, match=r"^model: .* records a recipe that cannot be \(Expected"):
        captions.training(network)


def test_only_arrays_that_cannot_be_read_are_computed_again(place, capfd, monkeypatch):
    def full(*_):
        raise OSError(28, "No space left on device", "out/loss_surface.png")

    calls = counted(monkeypatch, "loss_surface")
    flags = ["loss_surface", *FEW, "--model=runs/a", "--epsilons=0,1"]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(FIGURES["loss_surface"].resolve(), "draw", full)
        assert analyze_here(*flags) == 2
    assert capfd.readouterr().err == "analyze: out/loss_surface.png: No space left on device\n"
    without_drawing(monkeypatch)
    file = pathlib.Path("out/loss_surface.npz")
    before = file.read_bytes()
    only = {"identity": arrays_of("loss_surface")["identity"]}
    np.savez("only.npz", **only)
    contents = [before, b"", b"no zip", before[: len(before) // 2], pathlib.Path("only.npz")]
    for number, content in enumerate(contents):
        file.write_bytes(content if isinstance(content, bytes) else content.read_bytes())
        assert analyze_here(*flags) == 0
        assert len(calls) == 1 + number and file.read_bytes() == before


# From Python.


def test_a_figure_from_python_needs_no_flags_and_no_files_of_networks(place, monkeypatch):
    """A network and a data set that are in memory; the arrays are those of the program."""
    dataset, network = data.load("digits"), load_source("runs/a")
    settings = FigureSettings(
        figure="logits", num_images=COUNT, seed=SEED, output="out", epsilons=[8, 0],
        attack=["step_ll"],
    )  # fmt: skip
    figure = Figure(settings, networks=[network], dataset=dataset)
    done = []
    found = figure.arrays(done.append)
    assert figure.computed and figure.epsilons == (0, 8) and done[-1] == figure.work == COUNT
    picture = figure.picture()
    assert isinstance(picture, Picture)
    assert [axes.get_title() for axes in picture.axes] == ["a"]
    assert sorted(os.listdir("out")) == ["logits.npz"]
    assert figure.draw() == pathlib.Path("out/logits.png")
    assert figure.caption() == pathlib.Path("out/logits.txt").read_text()

    monkeypatch.setenv("HOME", str(place))
    flags = ["--epsilons=0,8", "--attack=step_ll", "--model=~/runs/a", "--output=~/program"]
    assert analyze_here("logits", *FEW, *flags) == 0
    before = tree("program")
    assert before == tree("out")
    pathlib.Path("program/logits.png").unlink()
    pathlib.Path("program/logits.txt").write_text("lost")
    assert analyze_here("logits", *FEW, *flags) == 0  # drawn again
    assert tree("program") == before
    stored = arrays_of("logits")
    for name, array in found.items():
        np.testing.assert_array_equal(array, stored[name])


def test_settings_are_refused_by_name(place):
    logits = {"figure": "logits", "model": ["runs/a"]}
    for settings, given, about in (
        ({"model": ["runs/a"]}, {}, "figure"),
        (logits, {"networks": [load_source("runs/a")]}, "model"),
        (logits | {"dataset": "mnist"}, {"dataset": data.load("digits")}, "dataset"),
    ):
        with pytest.raises(InputError) as refused:
            Figure(FigureSettings(**settings), **given)
        assert refused.value.setting == about


def test_a_registered_figure_is_in_the_help_and_its_name_is_taken(capfd, monkeypatch):
    row = dataclasses.replace(FIGURES["logits"], name="mine", summary="how sure they are")
    monkeypatch.setitem(FIGURES, row.name, row)
    assert analyze.main(["analyze", "--help"]) == 0
    assert "how sure they are" in capfd.readouterr().out
    with pytest.raises(ValueError, match="mine"):
        figures.register(row)


def test_a_registered_attack_is_measured_like_the_others(place, monkeypatch):
    def halved(logits_fn, images, labels, epsilon):
        return attacks.step_fgsm(logits_fn, images, labels, epsilon / 2)

    monkeypatch.setitem(ATTACKS, "halved", AttackSpec("halved", ONE_STEP, halved))
    assert analyze_here("logits", *FEW, BOTH, "--attack=halved,step_fgsm", "--epsilons=-8,4,8") == 0
    halved_at_8, whole_at_4 = arrays_of("logits")["true"][0, [0, 1], [2, 1]]
    np.testing.assert_allclose(halved_at_8, whole_at_4, rtol=1e-5)


def test_arrays_of_version_0_1_0_are_drawn_again(place):
    """What they follow from is written as then: of pgd the steps, starts and objective."""
    dataset = data.load("digits")
    found = load_source("runs/a").weights_hash
    identity = {
        "attacks": [["pgd", {"objective": "margin", "restarts": 1, "steps": 20}]],
        "dataset": ["digits", dataset.fingerprint, "test"],
        "epsilons": [0.0, 8.0], "figure": "accuracy_curve", "format": 1, "images": [0, 1],
        "networks": [["a", found]], "parameters": {}, "seed": 0,
    }  # fmt: skip
    os.mkdir("out")
    np.savez(
        "out/accuracy_curve.npz", identity=json.dumps(identity), correct=[[[1, 0]]],
        accuracy=[[[50.0, 12.5]]], images=[0, 1], labels=dataset.test[1][:2], epsilons=[0.0, 8.0],
    )  # fmt: skip
    settings = FigureSettings(
        figure="accuracy_curve", model=["runs/a"], attack=["pgd"], epsilons=[0, 8], num_images=2,
        output="out", pgd_steps=20, pgd_restarts=1,
    )  # fmt: skip
    figure = Figure(settings)
    assert figure.arrays()["accuracy"].tolist() == [[[50.0, 12.5]]] and not figure.computed
    # Its default was that; today's is another, and its numbers are not taken for it.
    figure = Figure(settings.replace(pgd_steps=None, pgd_restarts=None))
    assert figure.arrays()["accuracy"].shape == (1, 1, 2) and figure.computed


# Kept arrays.

KEPT = {
    "mean": np.arange(6.0).reshape(2, 3),
    "pairs": np.array([[0, 1]]),
    "found": np.array([np.inf, 1]),
}
FORMS = {"mean": kept.finite(2, None), "pairs": kept.indices(2, 1, 2), "found": kept.distances(2)}
CHANGES = {
    "an array is missing": lambda arrays: arrays.pop("mean"),
    "another shape": lambda arrays: arrays.update(mean=np.zeros((3, 3))),
    "another number of dimensions": lambda arrays: arrays.update(mean=np.zeros(2)),
    "numbers with a fraction": lambda arrays: arrays.update(pairs=np.array([[0.0, 1.0]])),
    "an index beyond": lambda arrays: arrays["pairs"].__setitem__((0, 1), 2),
    "text": lambda arrays: arrays.update(mean=np.full((2, 3), "0.5")),
    "not a number": lambda arrays: arrays["mean"].__setitem__((0, 0), np.nan),
    "infinite": lambda arrays: arrays["mean"].__setitem__((0, 0), np.inf),
    "negative": lambda arrays: arrays["found"].__setitem__(1, -1),
    "another identity": lambda arrays: arrays.update(identity=np.array("{}")),
    "no identity": lambda arrays: arrays.pop("identity"),
    "objects": lambda arrays: arrays.update(mean=np.array([{}, None], object)),
}


@pytest.mark.parametrize("change", CHANGES)
def test_kept_arrays_that_are_not_those_are_none(change, tmp_path):
    """With a checksum and, as earlier versions wrote them, without."""
    file = tmp_path / "kept.npz"
    kept.write(file, "{1}", KEPT)
    for checksum in (True, False):
        arrays = {name: array.copy() for name, array in np.load(file).items()}
        if not checksum:
            del arrays["sha256"]
        np.savez(tmp_path / "as.npz", **arrays)
        found = kept.read(tmp_path / "as.npz", "{1}", FORMS)
        assert set(found) == set(KEPT)
        assert all((found[name] == KEPT[name]).all() for name in KEPT)
        assert (kept.read(tmp_path / "as.npz", "{1}", None) is None) is not checksum
        CHANGES[change](arrays)
        np.savez(tmp_path / "as.npz", **arrays)
        assert kept.read(tmp_path / "as.npz", "{1}", FORMS) is None


def test_of_a_damaged_file_nothing_is_taken(tmp_path, monkeypatch):
    """Each byte changed, each length it can be cut to; a size in a header that is not there."""
    file = tmp_path / "kept.npz"
    kept.write(file, "{1}", KEPT)
    whole = file.read_bytes()
    for place in range(0, len(whole), 3):
        for content in (
            whole[:place],
            whole[:place] + bytes([whole[place] ^ 0x41]) + whole[place + 1 :],
        ):
            file.write_bytes(content)
            found = kept.read(file, "{1}", FORMS)
            # Some of a zip file's bytes, such as dates, mean nothing.
            assert found is None or all((found[name] == KEPT[name]).all() for name in KEPT)
    header = io.BytesIO()
    np.lib.format.write_array_header_1_0(
        header, {"descr": "<f8", "fortran_order": False, "shape": (10**15,)}
    )
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr("identity.npy", header.getvalue())
    assert kept.read(file, "{1}", FORMS) is None
    monkeypatch.setattr(records, "MOST_ARRAY_BYTES", 999)
    kept.write(file, "{1}", {"zeros": np.zeros(1000)})  # a small file that would fill the memory
    assert kept.read(file, "{1}", {}) is None
    file.unlink()
    assert kept.read(file, "{1}", FORMS) is None
    file.mkdir()
    assert kept.read(file, "{1}", FORMS) is None


def test_two_processes_do_not_draw_one_figure(place, capfd, monkeypatch):
    without_drawing(monkeypatch)
    flags = [*FEW, "--model=runs/a", "--epsilons=0,8"]
    out = pathlib.Path("out")
    out.mkdir()
    left = [out / f".partial-1-0123abcd-{name}" for name in ("logits.png", "my-logits.png")]
    for file in left:
        file.write_text("half")
    with files.hold_output(out, "logits", "in use"):
        assert analyze_here("logits", *flags) == 2
        assert capfd.readouterr().err == (
            "analyze: --output: another process draws logits in out; wait for it\n"
        )
        # Another one in the same directory.
        assert analyze_here("embedding_map", *flags) == 0
        assert all(file.exists() for file in left)
    assert analyze_here("logits", *flags) == 0
    assert sorted(out.glob(".*")) == left[1:]  # what a killed process left, but of another figure


@pytest.mark.parametrize("dataset", ["mnist", "cifar10"])
@pytest.mark.parametrize("figure", CASES)
def test_defaults_suit_the_dataset(figure, dataset, place):
    settings = FigureSettings(figure=figure, model=["runs/a", "runs/b"], dataset=dataset)
    epsilons = Figure(settings).epsilons
    assert list(epsilons) == sorted(set(epsilons)) and len(epsilons) <= 41
    largest = DATASETS[dataset].max_epsilon
    if figure == "accuracy_curve":
        assert (epsilons[0], epsilons[-1]) == (0, 255)
    elif figure != "cw_distribution":
        assert int(largest) <= epsilons[-1] <= largest
    if figure in ("logits", "loss_surface"):
        assert epsilons == tuple(-epsilon for epsilon in reversed(epsilons))
    if figure == "noise_correlation":
        assert attacks.ladder_gradients(epsilons) < 160


EPSILONS = {
    "0..3": (0, 1, 2, 3),
    "-2..1,0.5": (-2, -1, 0, 0.5, 1),
    "8,2": (2, 8),
    "-0": (0,),
    "255": (255,),
    **dict.fromkeys(
        [
            "",
            "3..1",
            "1,,2",
            "256",
            "１..4",
            "0x1",
            "1_0",
            "-255.5",
            "0..256",
            "nan",
            "inf",
            "a",
            "1..2.5",
        ]
    ),
}


@pytest.mark.parametrize("text", EPSILONS)
def test_epsilons_are_ranges_and_numbers(text):
    if EPSILONS[text] is not None:
        assert parse_epsilons(text) == EPSILONS[text]
    else:
        with pytest.raises(ValueError):
            parse_epsilons(text)


LOGITS = ["logits", "--model=runs/a", "--epsilons=0"]
BAD = {
    "unknown figure": (["histogram", BOTH], "--figure: .*histogram"),
    "no model": (["logits"], "--model: .*at least one"),
    "no such model": (["logits", "--model=nobody"], "--model: nobody does not exist"),
    "one network": (["noise_correlation", "--model=runs/a"], "--model: .*at least 2"),
    "named twice": (["logits", "--model=runs/a,runs/../runs/a"], "--model: .* twice"),
    "the same network": (["logits", "--model=runs/a,runs/a/model.keras"], "--model: .* same"),
    "other shape": (["logits", "--model=runs/a,small.keras"], r"--model: small.keras .*\(6, 6, 1"),
    "no dataset recorded": (["logits", "--model=bare.keras"], "--dataset: bare.keras .*record"),
    "no lambda": (["distance_sweep", "--model=runs/a,bare.keras"], "--model: bare.*lambda_2"),
    "no distance": (["distance_sweep", "--model=runs/a,runs/std"], "--model: .*std.*no distance"),
    "output is a file": ([*LOGITS, "--output=bare.keras/out"], "--output: .*bare"),
    "picture is a directory": ([*LOGITS, "--output=taken"], "--output: .*logits.png is not a file"),
    "too many images": ([*LOGITS, "--num_images=361"], "--num_images: .*360"),
    "image beyond": (["loss_surface", BOTH, "--image_index=360"], "--image_index: .*359"),
    "image twice": (["loss_surface", BOTH, "--image_index=1,01"], "--image_index: .*once"),
    "images twice": (["loss_surface", BOTH, "--image_index=1", "--num_images=2"],
                     "--image_index: .*num_images"),
    "image of another figure": ([*LOGITS, "--image_index=1"], "--image_index: .*loss_surface"),
    "option of another figure": ([*LOGITS, "--pgd_steps=9"], "--pgd_steps: .*accuracy_curve"),
    "epsilon 0": (["noise_correlation", BOTH, "--epsilons=0..4"], "--epsilons: .*above 0"),
    "epsilon below 0": (["accuracy_curve", BOTH, "--epsilons=-1"], "--epsilons: .*0 or above"),
    "unknown attack": ([*LOGITS, "--attack=fgsm"], "--attack: .*step_ll"),
    "iterative attack": ([*LOGITS, "--attack=pgd"], "--attack: .*step_ll"),
    "epsilon twice": (["logits", "--model=runs/a", "--epsilons=1..4,4"],
                      "--epsilons: 4.0 is named twice"),
    "output in a network": ([*LOGITS, "--output=runs/a/figures"], "--output: .*model"),
    "attack twice": ([*LOGITS, "--attack=step_ll,step_ll"], "--attack: .*once"),
    "two attacks": (["embedding_map", BOTH, "--attack=pgd,iter_ll"], "--attack: .*one"),
    "attack without a choice": (["loss_surface", BOTH, "--attack=pgd"], "--attack: .*not use"),
    "seed": ([*LOGITS, "--seed=-1"], "--seed: .*2147483647"),
}  # fmt: skip


@pytest.mark.parametrize("case", BAD)
def test_bad_input_is_one_line_and_leaves_every_file(case, place, capfd):
    (place / "taken" / "logits.png").mkdir(parents=True)
    flags, message = BAD[case]
    before = tree(place)
    assert analyze_here(*flags) == 2
    captured = capfd.readouterr()
    assert re.fullmatch(rf"analyze: .*{message}.*\n", captured.err), captured.err
    assert captured.out == "" and tree(place) == before
    assert not pathlib.Path("out").exists() and not pathlib.Path("figures").exists()
