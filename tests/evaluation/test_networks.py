"""The one loader: what is the same network, what fits, and what everything is called."""

import pathlib

import numpy as np
import pytest
import tensorflow as tf
from support.saved_models import MALICIOUS, saved_model

from cascade_keras.attacks.specs import Attack
from cascade_keras.cli.evaluate import main
from cascade_keras.data.specs import DATASETS
from cascade_keras.errors import InputError
from cascade_keras.evaluation import load_networks
from cascade_keras.evaluation.networks import is_loaded
from cascade_keras.evaluation.tasks import SavedNetworks
from cascade_keras.sources import Source

DIGITS = DATASETS["digits"]
SHAPE = (8, 8, 1)


def linear(seed=0, classes=10):
    def logits(images):
        size = int(np.prod(images.shape[1:]))
        weights = np.random.default_rng(seed).normal(size=(size, classes)).astype("float32")
        return tf.reshape(images, [-1, size]) @ weights

    return logits


def network(path, function, shape=SHAPE, digest=None):
    """One in memory; its weights are those of its path unless they are said to be others."""
    path = pathlib.Path(path)
    return Source(
        path.name, path, shape, digest or str(path), {}, lambda x: {"logits": function(x)}
    )


A = network("a", linear(0))


def load(*networks, setting="model", **options):
    return load_networks(networks, DIGITS, setting=setting, **options)


def test_equal_weights_and_equal_logits_are_the_same_network(tmp_path):
    twin = network("b", linear(0), digest="a")
    with pytest.raises(InputError, match="a and b are the same network; name it once") as error:
        load(A, twin, setting="source")
    assert error.value.setting == "source"
    # A layer without weights makes another network of the same ones; so do other weights.
    scaled = network("b", lambda images: 1e4 * linear(0)(images), digest="a")
    assert load(A, scaled).names == ("a", "b")
    assert load(A, network("b", linear(0))).names == ("a", "b")

    with pytest.raises(InputError, match="named twice"):
        load(tmp_path / "a", tmp_path / ".." / tmp_path.name / "a")


def test_names_are_unique_and_stay_with_known_networks():
    others = [network(path, linear(seed)) for seed, path in enumerate(("x/c", "y/c", "d"), 1)]
    found = load(*others)
    assert found.names == ("c", "y/c", "d")
    assert found["y/c"] is others[1] and "e" not in found and found.shape == SHAPE
    # One that is a target already keeps its name and is not loaded twice; others get new ones.
    again = network("renamed", linear(3), digest="d")
    sources = load(network("z/c", linear(4)), again, known=found)
    assert sources.names == ("z/c", "d") and sources["d"] is others[2]


def test_networks_are_let_go_unless_they_are_in_memory_only(tmp_path):
    saved_model(tmp_path / "saved", linear(1))
    kept, gone = (load(tmp_path / "saved", A, keep=keep) for keep in (True, False))
    assert [is_loaded(source) for source in kept.sources] == [True, True]
    assert [is_loaded(source) for source in gone.sources] == [False, True]
    assert gone["saved"].weights_hash == kept["saved"].weights_hash
    with pytest.raises(RuntimeError, match="let go"):
        gone["saved"].logits(tf.zeros([1, *SHAPE]))


def test_any_size_is_given_the_datasets_and_small_ones_the_middle():
    anything = network("any", lambda x: linear(1)(x[:, 2:4, 2:4]), (None, None, 1))
    assert load(anything).shape == SHAPE
    small = network("small", linear(1), (6, 6, 1))
    assert load(small).shape == (6, 6, 1)
    assert load(anything, known=load(small)).shape == (6, 6, 1)
    assert load(small, shape=(6, 6, 1)).shape == (6, 6, 1)


FIXED = {"no gradient": lambda x: linear()(tf.round(x)),
         "a zero gradient": lambda x: linear()(0 * x) + tf.range(10.0)}  # fmt: skip
REFUSED = {
    "nobody": (["nowhere/nobody"], "nobody does not exist"),
    "two shapes": ([A, network("b", linear(), (6, 6, 1))], r"\(6, 6, 1\), a of shape \(8, 8, 1"),
    "colours": ([network("b", linear(), (8, 8, 3))], r"shape \(8, 8, 3\), the dataset's"),
    "classes": ([network("b", linear(0, 7))], "b tells 7 classes apart, the dataset has 10"),
    **{case: ([network("b", function)], "b has no gradient") for case, function in FIXED.items()},
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_does_not_fit_is_refused_with_its_setting(case):
    networks, words = REFUSED[case]
    with pytest.raises(InputError, match=words) as error:
        load(*networks, setting="target")
    assert error.value.setting == "target"
    if case in FIXED:
        assert load(*networks, differentiable=False).names == ("b",)


def test_what_is_silent_on_random_images_is_attacked_by_its_gradient():
    """Its units are on for dark images only, as those of a trained network may be off for noise."""

    def dark(level):
        def on(x):
            return tf.nn.relu(level - tf.reduce_mean(x, [1, 2, 3], keepdims=True)) * x

        return network("dark", lambda x: linear()(on(x)))

    assert load(dark(0.2)).names == ("dark",)  # as a source, too
    images = np.random.default_rng(0).uniform(0, 1e-5, (4, *SHAPE)).astype("float32")
    for level in (0.2, 1e-4):
        networks = SavedNetworks({"net": dark(level)}, SHAPE)
        step = networks.crafter("net", Attack("step_fgsm", (8,)), seed=0, num_classes=10)
        assert np.abs(step(images, np.arange(4), 0)[0] - images).max() > 7 / 255


# Networks of strangers.


def test_a_network_that_was_let_go_is_trusted_again_if_it_was_trusted(tmp_path):
    written = tmp_path / "written"
    MALICIOUS["signature"][0](tmp_path / "foreign", str(written))
    with pytest.raises(InputError, match="foreign does more than compute") as error:
        load(tmp_path / "foreign", setting="source", keep=False)
    assert error.value.setting == "source" and not written.exists()
    found = load(tmp_path / "foreign", keep=False, trust=True)
    written.unlink()
    networks = SavedNetworks(dict(zip(found.names, found.sources, strict=True)), SHAPE)
    networks.logits("foreign")(tf.zeros([1, *SHAPE]))
    assert written.exists()


def test_the_program_runs_a_network_that_writes_files_only_if_it_is_trusted(
    tmp_path, monkeypatch, capfd
):
    monkeypatch.chdir(tmp_path)
    MALICIOUS["initialiser"][0]("foreign", "written")
    before = sorted(tmp_path.rglob("*"))
    command = ["evaluate", "--target=foreign", "--dataset=digits", "--num_images=4"]
    command += ["--attack=step_ll", "--epsilon=2", "--diagnosis_images=0", "--output=report"]
    capfd.readouterr()
    assert main(command) == 2
    told = capfd.readouterr()
    assert told.err.startswith("evaluate: --target: foreign does more than compute: WriteFile in")
    assert told.err.count("\n") == 1 and not told.out
    assert sorted(tmp_path.rglob("*")) == before
    assert main([*command, "--trust_source"]) == 0
    assert (tmp_path / "written").exists() and (tmp_path / "report" / "report.json").exists()
