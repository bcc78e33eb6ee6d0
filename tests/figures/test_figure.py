"""Figures as objects and from bin/analyze: what is computed, kept and written, and bad input."""

import json
import os
import pathlib
import re
import subprocess
import sys

import keras
import matplotlib.figure
import numpy as np
import pytest
from matplotlib.image import imread
from support.files import ROOT, tree
from support.networks import features, save_run

from cascade_keras import Figure, FigureSettings, attacks, data, figures
from cascade_keras.attacks import carlini_wagner
from cascade_keras.attacks.specs import ATTACKS, ONE_STEP, AttackSpec
from cascade_keras.cli import analyze
from cascade_keras.data.specs import DATASETS
from cascade_keras.errors import InputError
from cascade_keras.figures import FIGURES, FigureSpec, Plot
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
    """Count how often a figure's arrays are computed."""
    calls, plot = [], FIGURES[figure].resolve()
    compute = plot.compute

    def count(self, progress):
        calls.append(figure)
        return compute(self, progress)

    monkeypatch.setattr(plot, "compute", count)
    return calls


def without_drawing(monkeypatch):
    """Record what would be drawn: pictures take longer than the rest together."""
    drawn = []

    def draw(self, arrays):
        drawn.append(arrays)
        return matplotlib.figure.Figure(figsize=(1, 1))

    for spec in FIGURES.values():
        monkeypatch.setattr(spec.resolve(), "draw", draw)
    return drawn


# The program.

BOTH = "--model=runs/a,runs/b"
# Flags that make it small, and one flag that changes the numbers.
CASES = {
    "noise_correlation": (["--epsilons=4,8"], "--attack=step_ll"),
    "embedding_map": (["--epsilons=0,8"], "--num_images=20"),
    "distance_sweep": (["--epsilons=8", "--attack=step_ll"], "--seed=6"),
    "logits": (["--epsilons=-8,0,8"], "--epsilons=-8..8"),
    "gradient_correlation": (["--epsilons=0,8"], "--split=train"),
    "cw_distribution": (["--cw_iterations=50"], "--cw_iterations=25"),
    "accuracy_curve": (["--epsilons=0,8", "--attack=step_ll,pgd", "--pgd_steps=2",
                        "--pgd_restarts=1"], "--pgd_steps=3"),
    "loss_surface": (["--epsilons=-8..8", "--num_images=2"], "--model=runs/b,runs/a"),
}  # fmt: skip


@pytest.mark.parametrize("figure", CASES)
def test_a_figure_is_computed_once_and_drawn_again(figure, place, capfd, monkeypatch):
    flags, change = CASES[figure]
    calls = counted(monkeypatch, figure)
    assert analyze_here(figure, *FEW, BOTH, *flags) == 0
    out = pathlib.Path("out")
    assert sorted(path.name for path in out.iterdir()) == [
        f"{figure}.npz", f"{figure}.pdf", f"{figure}.png", f"{figure}.txt"
    ]  # fmt: skip
    assert imread(out / f"{figure}.png").shape[0] > 100
    assert (out / f"{figure}.pdf").read_bytes().startswith(b"%PDF")

    caption = caption_of(figure)
    count = 2 if figure == "loss_surface" else COUNT
    assert f"Images: {count} test images of digits" in caption and f"seed {SEED}" in caption
    assert data.load("digits").fingerprint in caption
    for name in "ab":
        digest = load_source(f"runs/{name}").weights_hash
        assert f"{name}: weights {digest}; lenet, pivot loss" in caption
    assert str(place) not in caption
    assert "computed" in capfd.readouterr().out

    kept = arrays_of(figure)
    drawn = without_drawing(monkeypatch)
    assert analyze_here(figure, *FEW, BOTH, *flags) == 0
    assert len(calls) == 1 and "drawn again" in capfd.readouterr().out
    for name, array in drawn[0].items():
        np.testing.assert_array_equal(array, kept[name])

    # Another split, seed, ...: nothing of before is taken.
    assert analyze_here(figure, *FEW, BOTH, *flags, change) == 0
    assert len(calls) == 2
    assert arrays_of(figure)["identity"] != kept["identity"]


@pytest.mark.parametrize(
    ("figure", "flags", "expected"),
    [
        ("cw_distribution", ["--cw_iterations=25"], "selection"),
        ("embedding_map", ["--epsilons=0,4"], "selection"),
        ("accuracy_curve", ["--epsilons=0", "--attack=step_ll"], "first"),
        ("gradient_correlation", ["--epsilons=0"], "drawn"),
        ("loss_surface", ["--epsilons=0,1", "--image_index=7,3"], "named"),
    ],
)
def test_which_images(figure, flags, expected, place, monkeypatch):
    without_drawing(monkeypatch)
    few = [flag for flag in FEW if expected != "named" or "num_images" not in flag]
    assert analyze_here(figure, *few, "--model=runs/a", *flags) == 0
    labels = data.load("digits").test[1]
    images = {
        "selection": carlini_wagner.selection(labels, COUNT),
        "first": np.arange(COUNT),
        "drawn": np.sort(np.random.default_rng(SEED).choice(len(labels), COUNT, replace=False)),
        "named": np.array([7, 3]),
    }[expected]
    found = arrays_of(figure)
    assert found["images"].tolist() == images.tolist()
    assert found["labels"].tolist() == labels[images].tolist()


def test_thresholds_are_only_drawn(place, monkeypatch):
    without_drawing(monkeypatch)
    calls = counted(monkeypatch, "cw_distribution")
    flags = ["cw_distribution", *FEW, "--model=runs/a", "--cw_iterations=25"]
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
    for number, content in enumerate([before, b"", b"no zip", before[: len(before) // 2]]):
        file.write_bytes(content)
        assert analyze_here(*flags) == 0
        assert len(calls) == 1 + number and file.read_bytes() == before


# From Python.


def test_a_figure_from_python_needs_no_flags_and_no_files_of_networks(place):
    """A network and a data set that are in memory; the arrays are those of the program."""
    dataset, network = data.load("digits"), load_source("runs/a")
    settings = FigureSettings(
        figure="logits",
        num_images=COUNT,
        seed=SEED,
        output="out",
        epsilons=[8, 0],
        attack=["step_ll"],
    )
    figure = Figure(settings, networks=[network], dataset=dataset)
    done = []
    found = figure.arrays(done.append)
    assert figure.computed and figure.epsilons == (0, 8) and done[-1] == figure.work == COUNT
    picture = figure.picture()
    assert isinstance(picture, matplotlib.figure.Figure)
    assert [axes.get_title() for axes in picture.axes] == ["a"]
    assert sorted(os.listdir("out")) == ["logits.npz"]
    assert figure.draw() == pathlib.Path("out/logits.png")
    assert figure.caption() == pathlib.Path("out/logits.txt").read_text()

    flags = ["--epsilons=0,8", "--attack=step_ll", "--model=runs/a"]
    assert analyze_here("logits", *FEW, *flags, "--output=program") == 0
    before = tree("program")
    assert before == tree("out")
    pathlib.Path("program/logits.png").unlink()
    pathlib.Path("program/logits.txt").write_text("lost")
    assert analyze_here("logits", *FEW, *flags, "--output=program") == 0  # drawn again
    assert tree("program") == before
    kept = arrays_of("logits")
    for name, array in found.items():
        np.testing.assert_array_equal(array, kept[name])


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


def test_a_registered_figure_is_drawn_like_the_others(place, capfd, monkeypatch):
    class Confidence(Plot):
        """How sure a network is under attack."""

        def measure(self, network, progress):
            craft = self.crafter(network, self.attacks[0])
            logits = [network.logits(batch).numpy() for batch in craft(self.images, self.labels, 0)]
            progress(len(self.images))
            return {"confidence": np.max(logits, axis=-1).mean(axis=-1)}

        def draw(self, arrays):
            figure = matplotlib.figure.Figure(figsize=(2, 2))
            style = figures.attack_style(self.attacks[0].name)
            figure.add_subplot().plot(self.epsilons, arrays["confidence"].T, **style)
            return figure

        def describe(self, arrays):
            return [f"Largest logit under {self.attacks[0]}."]

    row = FigureSpec("confidence", Confidence, "how sure they are", attacks=("step_ll",))
    monkeypatch.setitem(FIGURES, row.name, row)
    settings = FigureSettings(figure="confidence", dataset="digits", output="out", epsilons=[0, 8])
    assert Figure(settings, networks=[features(0), features(1)]).draw().exists()
    assert caption_of("confidence").startswith("Largest logit under step_ll.")
    assert arrays_of("confidence")["confidence"].shape == (2, 2)
    assert analyze_here("confidence", *FEW, BOTH, "--epsilons=0,8") == 0
    capfd.readouterr()
    assert analyze.main(["analyze", "--help"]) == 0
    assert "how sure they are" in capfd.readouterr().out


def test_a_registered_attack_is_drawn_like_the_others(place, monkeypatch):
    def halved(logits_fn, images, labels, epsilon):
        return attacks.step_fgsm(logits_fn, images, labels, epsilon / 2)

    with pytest.raises(InputError, match="halved"):
        FigureSettings(figure="accuracy_curve", attack=["halved"])
    monkeypatch.setitem(ATTACKS, "halved", AttackSpec("halved", ONE_STEP, halved))
    assert analyze_here("logits", *FEW, BOTH, "--attack=halved,step_fgsm", "--epsilons=-8,4,8") == 0
    whole, half = arrays_of("logits")["true"][0, 1, 1], arrays_of("logits")["true"][0, 0, 2]
    np.testing.assert_allclose(half, whole, rtol=1e-5)
    assert analyze_here("accuracy_curve", *FEW, BOTH, "--attack=halved", "--epsilons=0,8") == 0
    assert "accuracy under halved against" in caption_of("accuracy_curve")


def test_a_name_is_taken_once():
    with pytest.raises(ValueError, match="logits"):
        figures.register(FigureSpec("logits", Plot))


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
    np.savez("out/accuracy_curve.npz", identity=json.dumps(identity), accuracy=[[[50.0, 12.5]]])
    settings = FigureSettings(
        figure="accuracy_curve", model=["runs/a"], attack=["pgd"], epsilons=[0, 8], num_images=2,
        output="out", pgd_steps=20, pgd_restarts=1,
    )  # fmt: skip
    figure = Figure(settings)
    assert figure.arrays()["accuracy"].tolist() == [[[50.0, 12.5]]] and not figure.computed
    # Its default was that; today's is another, and its numbers are not taken for it.
    figure = Figure(settings.replace(pgd_steps=None, pgd_restarts=None))
    assert figure.arrays()["accuracy"].shape == (1, 1, 2) and figure.computed


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
    "8,2,8": (2, 8),
    "-0": (0,),
    "255": (255,),
    **dict.fromkeys(["", "3..1", "256", "-255.5", "0..256", "nan", "inf", "a", "1..2.5"]),
}


@pytest.mark.parametrize("text", EPSILONS)
def test_epsilons_are_ranges_and_numbers(text):
    if EPSILONS[text] is not None:
        assert parse_epsilons(text) == EPSILONS[text]
        return
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
    "picture is a directory": ([*LOGITS, "--output=taken"], "--output: .*directory"),
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


def test_home_is_the_home_directory(place, monkeypatch):
    monkeypatch.setenv("HOME", str(place))
    settings = FigureSettings(figure="logits", model=["~/runs/a"], output="~/out")
    assert Figure(settings).file(".png") == place / "out" / "logits.png"


def test_help_needs_neither_tensorflow_nor_matplotlib():
    program = (
        "import sys; from cascade_keras.cli.analyze import main;"
        "assert main(['analyze', '--help']) == 0;"
        "assert not {'tensorflow', 'matplotlib'} & set(sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", program], check=True, capture_output=True)
    assert b"--figure" in done.stdout and b"loss_surface" in done.stdout
    assert (ROOT / "bin" / "analyze").stat().st_mode & 0o111
