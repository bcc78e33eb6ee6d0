"""Networks whose gradients mislead, end to end: what APGD does not break others do, as published.

And what reports say of AutoAttack's versions, and of options, once.
"""

import json
import warnings

import keras
import numpy as np
import pytest
import tensorflow as tf
from support.networks import features

import cascade_keras as ck
from cascade_keras import attacks, data
from cascade_keras.attacks.autoattack import AutoAttack
from cascade_keras.attacks.specs import ATTACKS, Attack, in_words
from cascade_keras.cli import evaluate as program
from cascade_keras.evaluation import pictures, stages
from cascade_keras.evaluation.asked import labelled

STORED, LABELS = (part[:60] for part in data.load("digits").test)
IMAGES = STORED.astype("float32") / np.float32(255)
FIRST, BIAS, LAST, _ = features(0).get_weights()
NAMES = np.array(ATTACKS["autoattack"].stage_names)
NOISE = 0.4


def plain(images):
    return tf.tanh(tf.reshape(images, [-1, 64]) @ FIRST + BIAS) @ LAST


def written_out(images):
    """The same in NumPy, in float64."""
    return np.tanh(images.reshape(-1, 64).astype("float64") @ FIRST + BIAS) @ LAST


def coarse(levels, images):
    return np.round(levels * images.astype("float64")) / levels


MASKED = {
    # The softmax is saturated: the gradient of the cross entropy is zero.
    "logits times 1e4": (
        lambda images: 1e4 * plain(images), written_out, ("fab", "square")),
    # Rounded to eight levels, whose gradient is zero: neither loss leads anywhere.
    "rounded": (
        lambda images: plain(tf.round(8 * images) / 8 + 0 * images),
        lambda images: written_out(coarse(8, images)), ("square",)),
}  # fmt: skip


@pytest.mark.long
@pytest.mark.parametrize(("network", "independent", "breaking"), MASKED.values(), ids=MASKED)
def test_fab_or_square_breaks_what_apgd_does_not(network, independent, breaking):
    given = network, (8, 8, 1), [24.0]
    right = independent(IMAGES).argmax(axis=1) == LABELS
    left = {}
    for name in ("apgd", *breaking):
        attack = AutoAttack(*given, stages=(name,), iterations=20, queries=800)
        found = attack(IMAGES, LABELS)
        assert np.abs(found.images[0] - IMAGES).max() <= 24 / 255 + 1e-6
        fooled = independent(found.images[0]).argmax(axis=1) != LABELS
        stands = NAMES[found.stages[0]] == "stands"
        # On a step of the rounding float32 and float64 differ.
        assert np.mean(fooled == stands) <= 0.05
        left[name] = np.mean(right & ~fooled)
    sound = AutoAttack(plain, *given[1:], stages=("apgd",), iterations=20)(IMAGES, LABELS)
    honest = np.mean(sound.stages[0] == 0)
    assert left["apgd"] > honest + 0.2
    assert max(left[name] for name in breaking) < left["apgd"] - 0.2


@keras.saving.register_keras_serializable("test_masked")
class Noisy(keras.layers.Layer):
    """Adds noise whether or not it is trained: a defence by randomness."""

    def __init__(self, scale=NOISE, **kwargs):
        super().__init__(**kwargs)
        self.scale = scale
        self.seeds = keras.random.SeedGenerator(0)

    def get_config(self):
        return {**super().get_config(), "scale": self.scale}

    def call(self, images):
        noise = keras.random.normal(tf.shape(images), stddev=self.scale, seed=self.seeds)
        return images + noise


def expected_accuracy(images, draws=200):
    """The mean over draws of the noise, in NumPy."""
    rng = np.random.default_rng(0)
    return np.mean(
        [
            written_out(images + rng.normal(0, NOISE, images.shape)).argmax(axis=1) == LABELS
            for _ in range(draws)
        ]
    )


@pytest.mark.long
def test_the_mean_of_passes_breaks_a_random_network_that_one_pass_does_not():
    inputs = keras.Input((8, 8, 1))
    network = keras.Model(inputs, features(0)(Noisy()(inputs)))
    left = {}
    for version in ("fast", "rand"):
        attack = AutoAttack(network, (8, 8, 1), [20.0], version=version, iterations=20)
        left[version] = expected_accuracy(attack(IMAGES, LABELS).images[0])
    assert left["rand"] < left["fast"] - 0.02 < expected_accuracy(IMAGES)


@pytest.mark.long
def test_a_random_layer_is_noted_before_attacks_and_rand_is_proposed(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(pictures, "draw_accuracies", lambda *_: None)
    inputs = keras.Input((8, 8, 1))
    keras.Model(inputs, features(0)(Noisy()(inputs))).save("noisy.keras")
    common = ["evaluate", "--target=noisy.keras", "--dataset=digits", "--attack=autoattack",
              "--epsilon=20", "--num_images=12", "--autoattack_iterations=2",
              "--queries=5"]  # fmt: skip
    found = {}
    for version in ("fast", "standard", "rand"):
        flags = [f"--autoattack={version}", f"--output={version}", "--diagnosis_images=0"]
        assert program.main([*common, *flags]) == 0
        out = capsys.readouterr().out
        before = " ".join(out[: out.index("accuracy")].split())
        assert "note: noisy is randomised: it answers the same images otherwise each" in before
        proposed = "ask for autoattack's version rand, which averages gradients" in before
        assert proposed == (version != "rand")
        assert f"autoattack ({version})" in out and f"({version}) ({version})" not in out
        assert ("does not go on to square" in before) == (version == "fast")
        found[version] = json.loads((tmp_path / version / "report.json").read_text())
    (passes,) = found["rand"]["passes"]
    (record,) = found["rand"]["stages"]
    # Twenty passes of the clean image, and for two steps of both attacks at most.
    assert 20 < passes["forwards"] <= 20 * 3 and passes["gradients"] <= 20 * 2 * 2
    assert not record["broken"]["apgd_targeted"] + record["broken"]["square"]
    assert "queries" not in (tmp_path / "rand" / "report.md").read_text()
    assert "queries 5" in (tmp_path / "standard" / "report.md").read_text()
    assert program.main(["evaluate", "--verify=rand"]) == 2
    assert "noisy draws random numbers" in capsys.readouterr().err


def suite(label, **options):
    options = {**ATTACKS["autoattack"].options, **options}
    place = {"source": "a", "attack": label, "epsilon": 8.0}
    record = {**place, "options": options, "examples": 4, "stands": 1, "broken": {"square": 1}}
    return {
        "stages": [record | {"went_on": {"to": "square", "stood": 2}}],
        "passes": [place | {"gradients": 1.0, "forwards": 2.0}],
    }


@pytest.mark.parametrize(
    ("label", "version", "shown"),
    [
        ("autoattack", "fast", "autoattack (fast, then square)"),
        ("autoattack (version standard)", "standard", "autoattack (standard, then square)"),
        ("autoattack (iterations 5)", "fast", "autoattack (fast, iterations 5, then square)"),
        ("autoattack (version rand, iterations 5)", "rand",
         "autoattack (rand, iterations 5, then square)"),
    ],
)  # fmt: skip
def test_a_version_is_shown_once(label, version, shown):
    content = suite(label, version=version)
    _, ((_, attack, *_),) = stages.grid(content)
    assert attack == shown
    (sentence,) = stages.sentences(content)
    assert f"{shown.replace(', then square', '')} at epsilon 8 went on to square" in sentence


def test_options_that_play_no_part_are_not_shown():
    options = {"version": "rand", "iterations": 5, "queries": 7}
    assert in_words(options) == "version rand, iterations 5"
    assert in_words({**options, "version": "fast"}) == "version fast, iterations 5, queries 7"
    # They tell one attack from another all the same.
    both = [Attack("autoattack", (8,), {**options, "queries": count}) for count in (7, 8)]
    assert len(labelled(both)) == 2


def test_the_start_of_pgd_is_an_option_that_is_recorded_where_it_is_set():
    usual, still = attacks.PGD(steps=3), attacks.PGD(steps=3, random_start=False)
    assert attacks.PGD(steps=3, random_start=True) == usual and usual != still
    assert "random_start" not in Attack.at(usual, (8,)).options
    assert Attack.at(still, (8,)).options["random_start"] is False
    assert Attack("pgd", (8,), {"random_start": True}) == Attack("pgd", (8,))
    costs = [Attack.at(each, (8, 9)).gradients for each in (usual, still)]
    assert costs == [2 * 3 * 5, 2 * 3]
    with pytest.raises(ck.InputError, match="random_start must be True or False, got 1"):
        attacks.PGD(random_start=1)


def test_an_epsilon_below_one_is_warned_of_once():
    asked = attacks.PGD(steps=1, random_start=False)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        found = ck.evaluate(
            plain, IMAGES, LABELS, asked, [0.5], diagnosis_images=0, progress=False, images=True
        )
        images = ck.craft(plain, IMAGES, LABELS, asked, 0.5)
    said = [str(warning.message) for warning in caught]
    assert len(said) == 2 and said[0] == said[1] and "less than one pixel value" in said[0]
    # From the image itself, by the sign of the gradient: a step of 2.5 epsilon, clipped to one.
    x = tf.constant(IMAGES)
    with tf.GradientTape() as tape:
        tape.watch(x)
        logits = plain(x)
        own = tf.gather(logits, LABELS, axis=1, batch_dims=1)
        margin = tf.reduce_max(logits - 1e9 * tf.one_hot(LABELS, 10), axis=1) - own
    step = np.sign(tape.gradient(margin, x)) * np.float32(0.5 / 255)
    expected = np.clip(IMAGES + step, 0, 1)
    wrong = margin.numpy() > 0
    np.testing.assert_allclose(images[~wrong], expected[~wrong], atol=1e-6)
    np.testing.assert_array_equal(found.images["pgd", 0.5], images)
    # The block is over.
    with pytest.warns(UserWarning, match="in 0..255 units"):
        attacks.step_fgsm(plain, x, LABELS, 0.5)
