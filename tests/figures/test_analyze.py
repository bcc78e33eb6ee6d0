"""bin/analyze: what it writes, when it computes, and bad input."""

import json
import os
import pathlib
import re
import subprocess
import sys

import keras
import numpy as np
import pytest
from matplotlib.image import imread

from cascade_keras import attacks, data, figures
from cascade_keras.attacks import carlini_wagner
from cascade_keras.cli import analyze
from cascade_keras.cli.analysis import OTHER, PLOTS, SAME, UNKNOWN, compare_initialisation
from cascade_keras.figures import measures as analysis
from cascade_keras.sources import Source, load_source

ROOT = pathlib.Path(__file__).parents[2]
COUNT, SEED = 12, 5
FEW = ["--dataset=digits", f"--num_images={COUNT}", f"--seed={SEED}", "--output=out"]


def features(seed, width=40):
    """Return a network of random features and a last layer that is fitted to the digits."""
    images, labels = data.load("digits").train
    rng = np.random.default_rng(seed)
    first = rng.normal(0, 0.3, (64, width)).astype("float32")
    bias = rng.normal(0, 0.3, width).astype("float32")
    hidden = np.tanh(images.reshape(-1, 64) / np.float32(255) @ first + bias)
    last = np.linalg.lstsq(hidden, 10 * np.eye(10)[labels], rcond=None)[0]
    inputs = keras.Input((8, 8, 1))
    values = keras.layers.Flatten()(inputs)
    values = keras.layers.Dense(width, "tanh", name="hidden")(values)
    network = keras.Model(inputs, keras.layers.Dense(10, name="logits")(values))
    network.get_layer("hidden").set_weights([first, bias])
    network.get_layer("logits").set_weights([last, np.zeros(10)])
    return network


def save_run(path, network, **flags):
    """Write what is read of a finished run."""
    path.mkdir(parents=True)
    recipe = {"model": "lenet", "loss": "pivot", "steps": 7, "seed": 0, "dataset": "digits"}
    recipe |= {"init_from": None, "distance_weight": 1e-4} | flags
    dataset = {"name": "digits"}
    config = {"flags": recipe, "dataset": dataset, "seed": recipe["seed"]}
    (path / "config.json").write_text(json.dumps(config))
    network.save(path / "model.keras")


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


def tree():
    return {path: path.read_bytes() for path in pathlib.Path().rglob("*") if path.is_file()}


BOTH = "--model=runs/a,runs/b"
# Flags that make it small, the function that computes, and one flag that changes the numbers.
FIGURES = {
    "noise_correlation": ([BOTH, "--epsilons=4,8"], "noise_correlation", "--attack=step_ll"),
    "embedding_map": ([BOTH, "--epsilons=0,8"], "embedding_map", "--num_images=20"),
    "distance_sweep": ([BOTH, "--epsilons=8", "--attack=step_ll"], "distance_sweep", "--seed=6"),
    "logits": ([BOTH, "--epsilons=-8,0,8"], "logits", "--epsilons=-8..8"),
    "gradient_correlation": ([BOTH, "--epsilons=0,8"], "gradient_correlation", "--split=train"),
    "cw_distribution": ([BOTH, "--cw_iterations=50"], "cw_distribution", "--cw_iterations=25"),
    "accuracy_curve": ([BOTH, "--epsilons=0,8", "--attack=step_ll,pgd", "--pgd_steps=2"],
                       "accuracy_curve", "--pgd_steps=3"),
    "loss_surface": ([BOTH, "--epsilons=-8..8", "--num_images=2"], "loss_surface",
                     "--model=runs/b,runs/a"),
}  # fmt: skip


def counted(monkeypatch, name):
    calls, compute = [], getattr(analysis, name)

    def count(*args, **options):
        calls.append(name)
        return compute(*args, **options)

    monkeypatch.setattr(analysis, name, count)
    return calls


def without_drawing(monkeypatch):
    """Record what would be drawn, and where: pictures take longer than the rest together."""
    drawn = []
    for plot in PLOTS.values():
        monkeypatch.setattr(plot, "draw", lambda self, *arguments: drawn.append(arguments))
    return drawn


@pytest.mark.parametrize("figure", FIGURES)
def test_a_figure_is_computed_once_and_drawn_again(figure, place, capfd, monkeypatch):
    flags, function, change = FIGURES[figure]
    calls = counted(monkeypatch, function)
    assert analyze_here(figure, *FEW, *flags) == 0
    first_calls = len(calls)
    assert first_calls > 0
    out = pathlib.Path("out")
    assert sorted(path.name for path in out.iterdir()) == [
        f"{figure}.npz", f"{figure}.pdf", f"{figure}.png", f"{figure}.txt"
    ]  # fmt: skip
    assert imread(out / f"{figure}.png").shape[0] > 100
    assert (out / f"{figure}.pdf").read_bytes().startswith(b"%PDF")

    caption = " ".join((out / f"{figure}.txt").read_text().split())
    count = 2 if figure == "loss_surface" else COUNT
    assert f"Images: {count} test images of digits" in caption and f"seed {SEED}" in caption
    assert data.load("digits").fingerprint in caption
    for name in "ab":
        digest = load_source(f"runs/{name}").weights_hash
        assert f"{name}: weights {digest}; lenet, pivot loss" in caption
    assert str(place) not in caption
    assert "computed; also .pdf" in capfd.readouterr().out

    before, kept = tree(), arrays_of(figure)
    (out / f"{figure}.txt").write_text("lost")
    drawn = without_drawing(monkeypatch)
    assert analyze_here(figure, *FEW, *flags) == 0
    assert len(calls) == first_calls and tree() == before
    assert "drawn again" in capfd.readouterr().out
    assert [path.name for path, _ in drawn] == [f"{figure}.png", f"{figure}.pdf"]
    for name, array in drawn[0][1].items():
        np.testing.assert_array_equal(array, kept[name])

    # Another split, seed, ...: nothing of before is taken.
    assert analyze_here(figure, *FEW, *flags, change) == 0
    assert len(calls) == 2 * first_calls
    assert arrays_of(figure)["identity"] != kept["identity"]


def test_a_picture_drawn_again_is_the_same(place):
    flags = ["accuracy_curve", *FEW, "--model=runs/a", "--epsilons=0,8", "--attack=step_ll"]
    assert analyze_here(*flags) == 0
    before = tree()
    pathlib.Path("out/accuracy_curve.png").unlink()
    assert analyze_here(*flags) == 0
    assert tree() == before


def test_arrays_are_those_of_analysis(place, monkeypatch):
    without_drawing(monkeypatch)
    images, labels = data.test_images(data.load("digits"), 8)
    assert analyze_here("logits", *FEW, BOTH, "--epsilons=0,8", "--attack=step_rand") == 0
    found = arrays_of("logits")
    drawn = np.sort(np.random.default_rng(SEED).choice(len(labels), COUNT, replace=False))
    assert found["images"].tolist() == drawn.tolist()
    assert found["labels"].tolist() == labels[drawn].tolist()
    assert found["epsilons"].tolist() == [0, 8]
    for index, name in enumerate("ab"):
        expected = analysis.logits(
            load_source(f"runs/{name}").logits, images[drawn], labels[drawn], (0.0, 8.0),
            attack_names=["step_rand"], seed=SEED,
        )  # fmt: skip
        np.testing.assert_array_equal(found["true"][index], expected["true"])


@pytest.mark.parametrize(
    ("figure", "flags", "expected"),
    [
        ("cw_distribution", ["--cw_iterations=25"], "selection"),
        ("embedding_map", ["--epsilons=0,4"], "selection"),
        ("accuracy_curve", ["--epsilons=0", "--attack=step_ll"], "first"),
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
        "named": [7, 3],
    }
    assert arrays_of(figure)["images"].tolist() == list(images[expected])


def test_thresholds_are_only_drawn(place, monkeypatch):
    calls = counted(monkeypatch, "cw_distribution")
    marked = []
    monkeypatch.setattr(figures, "distribution", lambda *_, thresholds: marked.append(thresholds))
    flags = ["cw_distribution", *FEW, "--model=runs/a", "--cw_iterations=25"]
    assert analyze_here(*flags) == analyze_here(*flags, "--epsilons=5,9") == 0
    assert len(calls) == 1 and marked[0] == [76.5] and marked[-1] == [5, 9]
    assert "above 5, " in pathlib.Path("out/cw_distribution.txt").read_text()


def test_distance_sweep_has_each_runs_lambda(place, monkeypatch):
    without_drawing(monkeypatch)
    flags = [*FEW, BOTH, "--epsilons=8", "--attack=step_fgsm"]
    assert analyze_here("distance_sweep", *flags) == 0
    found = arrays_of("distance_sweep")
    assert found["order"].tolist() == [1, 0]
    assert found["distance_weight"].tolist() == [1e-4, 1e-2]


def test_a_projection_is_told(place, monkeypatch):
    without_drawing(monkeypatch)
    assert analyze_here("embedding_map", *FEW, "--model=runs/a", "--epsilons=0,8") == 0
    caption = " ".join(pathlib.Path("out/embedding_map.txt").read_text().split())
    found = arrays_of("embedding_map")
    shares = " and ".join(f"{100 * share:.1f} %" for share in found["explained"][0])
    assert "a: projection of the 10 embedding dimensions" in caption and "PCA" in caption
    assert f"which explain {shares} of their variance" in caption


def test_the_initialisation_is_told(place, monkeypatch):
    without_drawing(monkeypatch)
    assert analyze_here("noise_correlation", *FEW, "--model=runs/a,runs/b,bare.keras",
                        "--epsilons=8", "--attack=step_ll") == 0  # fmt: skip
    caption = " ".join(pathlib.Path("out/noise_correlation.txt").read_text().split())
    assert "a, b (same initialisation): " in caption
    assert "a, bare (initialisation not recorded): " in caption
    assert "initialised from start" in caption and "its training is not recorded" in caption


def network(name, **recipe):
    provenance = {"recipe": recipe} if recipe else {}
    return Source(name, pathlib.Path(name), (8, 8, 1), name, provenance, None)


SEEDED = {"seed": 0, "model": "resnet20", "dataset": "mnist", "init_from": None}
INITIALISATIONS = {
    "the same file": (
        network("a", init_from="runs/i"),
        network("b", init_from="/x/i/model.keras"),
        SAME,
    ),
    "other files": (network("a", init_from="runs/i"), network("b", init_from="runs/j"), OTHER),
    "the start itself": (network("a", init_from="saved/i/2"), network("i", **SEEDED), SAME),
    "the same seed": (network("a", **SEEDED), network("b", **SEEDED), SAME),
    "other seeds": (network("a", **SEEDED), network("b", **(SEEDED | {"seed": 1})), OTHER),
    "seed and file": (network("a", **SEEDED), network("b", init_from="runs/i"), OTHER),
    "unknown": (network("a", **SEEDED), network("b"), UNKNOWN),
}


@pytest.mark.parametrize("case", INITIALISATIONS)
def test_initialisations_are_compared(case):
    first, second, expected = INITIALISATIONS[case]
    assert compare_initialisation(first, second) == expected
    assert compare_initialisation(second, first) == expected


@pytest.mark.parametrize("spoiled", [b"", b"no zip", None])
def test_arrays_that_cannot_be_read_are_computed_again(spoiled, place, monkeypatch):
    without_drawing(monkeypatch)
    calls = counted(monkeypatch, "loss_surface")
    flags = ["loss_surface", *FEW, "--model=runs/a", "--epsilons=0,1"]
    assert analyze_here(*flags) == 0
    file = pathlib.Path("out/loss_surface.npz")
    before = file.read_bytes()
    file.write_bytes(before[: len(before) // 2] if spoiled is None else spoiled)
    assert analyze_here(*flags) == 0
    assert len(calls) == 2 and file.read_bytes() == before


def test_a_picture_that_fails_leaves_the_arrays(place, capfd, monkeypatch):
    def full(*_):
        raise OSError(28, "No space left on device", "out/loss_surface.png")

    calls = counted(monkeypatch, "loss_surface")
    flags = ["loss_surface", *FEW, "--model=runs/a", "--epsilons=0,1"]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(figures, "loss_surface", full)
        assert analyze_here(*flags) == 2
    assert capfd.readouterr().err == "analyze: out/loss_surface.png: No space left on device\n"
    without_drawing(monkeypatch)
    assert analyze_here(*flags) == 0
    assert len(calls) == 1


@pytest.mark.parametrize("dataset", ["mnist", "cifar10"])
@pytest.mark.parametrize("figure", FIGURES)
def test_defaults_suit_the_dataset(figure, dataset, place):
    values = analyze.build_flags()
    values(["analyze", f"--figure={figure}", BOTH, f"--dataset={dataset}"])
    epsilons = analyze.resolve(values)["epsilons"]
    assert epsilons == sorted(set(epsilons)) and len(epsilons) <= 41
    largest = {"mnist": 76.5, "cifar10": 16}[dataset]
    if figure == "accuracy_curve":
        assert (epsilons[0], epsilons[-1]) == (0, 255)
    elif figure != "cw_distribution":
        assert int(largest) <= epsilons[-1] <= largest
    if figure in ("logits", "loss_surface"):
        assert epsilons == [-epsilon for epsilon in reversed(epsilons)]
    if figure == "noise_correlation":
        assert attacks.ladder_gradients(epsilons) < 160


EPSILONS = {
    "0..3": [0, 1, 2, 3],
    "-2..1,0.5": [-2, -1, 0, 0.5, 1],
    "8,2,8": [2, 8],
    "-0": [0],
    "255": [255],
    **dict.fromkeys(["", "3..1", "256", "-255.5", "0..256", "nan", "inf", "a", "1..2.5"]),
}


@pytest.mark.parametrize("text", EPSILONS)
def test_epsilons_are_ranges_and_numbers(text):
    assert analyze.parse_epsilons(text) == EPSILONS[text]


LOGITS = ["logits", "--model=runs/a", "--epsilons=0"]
BAD = {
    "unknown figure": (["histogram", BOTH], "--figure=histogram: value should be one of"),
    "no model": (["logits"], "--model"),
    "empty model": (["logits", "--model="], "--model=.*at least one network"),
    "no such model": (["logits", "--model=nobody"], "--model: nobody does not exist"),
    "one network": (["noise_correlation", "--model=runs/a"], "--model: noise_correlation compares"),
    "one run": (["distance_sweep", "--model=runs/a"], "--model: .*name at least 2"),
    "named twice": (["logits", "--model=runs/a,runs/../runs/a"], "--model: .* is named twice"),
    "the same network": (["logits", "--model=runs/a,runs/a/model.keras"],
                         "--model: .* are the same network; name it once"),
    "other shape": (["logits", "--model=runs/a,small.keras"],
                    r"--model: small.keras takes images of shape \(6, 6, 1\), .* draw them apart"),
    "other dataset": ([*LOGITS, "--dataset=cifar10"], "--model: .*takes images of shape"),
    "no dataset recorded": (["logits", "--model=bare.keras"], "--dataset: bare.keras does not rec"),
    "no lambda": (["distance_sweep", "--model=runs/a,bare.keras"],
                  "--model: bare.keras does not record its lambda_2"),
    "no distance": (["distance_sweep", "--model=runs/a,runs/std"],
                    "--model: runs/std was trained with --loss=standard, which has no distance"),
    "output is a file": ([*LOGITS, "--output=bare.keras/out"], "--output: cannot write in .*bare"),
    "picture is a directory": ([*LOGITS, "--output=taken"], "--output: .*logits.png is a dir"),
    "too many images": ([*LOGITS, "--num_images=361"], "--num_images: .* has 360 images, got 361"),
    "no images": ([*LOGITS, "--num_images=0"], "--num_images=0: .*above 0"),
    "image beyond": (["loss_surface", "--model=runs/a", "--image_index=360"],
                     "--image_index: .*images 0 to 359, got 360"),
    "image twice": (["loss_surface", "--model=runs/a", "--image_index=1,01"], "--image_index=.*on"),
    "image -1": (["loss_surface", "--model=runs/a", "--image_index=-1"], "--image_index=.*whole"),
    "images twice": (["loss_surface", "--model=runs/a", "--image_index=1", "--num_images=2"],
                     "--image_index: .*leave out --num_images"),
    "image of another figure": ([*LOGITS, "--image_index=1"], "--image_index: logits does not use"),
    "epsilon 256": ([*LOGITS, "--epsilons=256"], "--epsilons=256: .*numbers in -255..255"),
    "epsilon nan": ([*LOGITS, "--epsilons=nan"], "--epsilons=nan: "),
    "epsilon 0": (["noise_correlation", BOTH, "--epsilons=0..4"],
                  "--epsilons: noise_correlation needs them above 0, got 0"),
    "epsilon below 0": (["accuracy_curve", BOTH, "--epsilons=-1"], "--epsilons: .*0 or above, got"),
    "unknown attack": ([*LOGITS, "--attack=fgsm"], "--attack=.*among step_ll"),
    "iterative attack": ([*LOGITS, "--attack=pgd"], "--attack: logits shows one-step attacks, not"),
    "two attacks": (["embedding_map", "--model=runs/a", "--attack=pgd,iter_ll"],
                    "--attack: embedding_map shows one attack; name one"),
    "attack without a choice": (["loss_surface", "--model=runs/a", "--attack=pgd"],
                                "--attack: loss_surface does not use it"),
    "no step": (["accuracy_curve", "--model=runs/a", "--pgd_steps=0"], "--pgd_steps=.*above 0"),
    "seed": ([*LOGITS, "--seed=-1"], "--seed=.*0..2147483647"),
    "argument": ([*LOGITS, "runs/b"], "unexpected argument 'runs/b'"),
}  # fmt: skip


@pytest.mark.parametrize("case", BAD)
def test_bad_input_is_one_line_and_leaves_every_file(case, place, capfd):
    (place / "taken" / "logits.png").mkdir(parents=True)
    flags, message = BAD[case]
    before = tree()
    assert analyze_here(*flags) == 2
    captured = capfd.readouterr()
    assert re.fullmatch(rf"analyze: .*{message}.*\n", captured.err), captured.err
    assert captured.out == "" and tree() == before
    assert not pathlib.Path("out").exists() and not pathlib.Path("figures").exists()


def test_a_directory_without_permission(place, capfd, monkeypatch):
    monkeypatch.setattr(os, "access", lambda path, mode: False)
    assert analyze_here(*LOGITS, "--output=out") == 2
    assert "--output: cannot write in" in capfd.readouterr().err


def test_help_needs_no_tensorflow():
    program = (
        "import sys; from cascade_keras.cli.analyze import main;"
        "assert main(['analyze', '--help']) == 0; assert 'tensorflow' not in sys.modules"
    )
    done = subprocess.run([sys.executable, "-c", program], check=True, capture_output=True)
    assert b"--figure" in done.stdout and b"loss_surface" in done.stdout
    assert (ROOT / "bin" / "analyze").stat().st_mode & 0o111
