"""Training by guided attacks and others from a random start, against the oracle's formulas."""

import json
import pathlib

import keras
import numpy as np
import pytest
import tensorflow as tf
from support import oracle

from cascade_keras import AdversarialTrainer, Training, TrainingSettings, attacks, losses
from cascade_keras.errors import InputError
from cascade_keras.losses.specs import LOSSES, default_in_words
from cascade_keras.options import TrainerOptions

RATE = 0.05
# What the row of the loss says, written down again.
GUIDED = {
    "attack": "guided", "adversarial_weight": 0.0, "distance_weight": 10.0, "distance": "softmax",
    "epsilon_sampling": "max", "pivot_guard": "none",
}  # fmt: skip


class Watched(AdversarialTrainer):
    """Keeps the adversarial images of each step."""

    def make_adversarial(self, images, labels, step, crafted=None):
        self.made = super().make_adversarial(images, labels, step, crafted)
        return self.made


CASES = {
    "guided": ("guided", {"max_epsilon": 40.0}),
    "of others": (
        "guided",
        {"max_epsilon": 40.0, "ensemble": 2, "cascade": 1, "adversarial_batch_size": 7},
    ),
    "moving": (
        "guided",
        {"clean_embedding": "moves", "distance": "l2", "distance_weight": 0.5, "start": "uniform",
         "distance_ramp": "linear", "ramp_steps": 4, "max_epsilon": 40.0},
    ),
    "nuclear": (
        "guided",
        {"distance": "nuclear", "distance_weight": 1.5, "guide_alternates": False, "guide": 3.0,
         "distance_ramp": "late", "ramp_steps": 2, "max_epsilon": 40.0},
    ),
    "normalized": (
        "guided",
        {"distance": "l1", "embedding_normalization": "unit", "adversarial_weight": 0.5,
         "epsilon_sampling": "uniform", "guide_alternates": False, "per_pixel_epsilon": False},
    ),
    "guided pivot": ("pivot", {"attack": "guided", "guide": 300.0, "guide_alternates": False}),
    "softmax": ("bidirectional", {"distance": "softmax", "distance_weight": 0.2}),
    "rs_fgsm": ("kurakin", {"attack": "rs_fgsm", "max_epsilon": 40.0}),
    "n_fgsm": ("pivot", {"attack": "n_fgsm", "adversarial_batch_size": 5}),
}  # fmt: skip


@pytest.mark.parametrize(
    ("name", "weighted"), [*((name, False) for name in CASES), ("guided", True), ("moving", True)]
)
def test_a_step_is_the_formulas(name, weighted, digits):
    """Images, weights and metrics, of classes, or of soft labels and weights; an odd step too."""
    loss, options = CASES[name]
    images, labels = digits[0][:12].astype("float64"), digits[1][:12]
    options = {"seed": 3, "weight_decay": 1e-3, **options}
    sources = {f"{kind}_sources": [oracle.mlp(9 - n) for n in range(options.pop(kind, 0))]
               for kind in ("cascade", "ensemble")}  # fmt: skip
    theirs = {name.removesuffix("_sources"): [network.get_weights() for network in networks]
              for name, networks in sources.items()}  # fmt: skip
    network, given, more = oracle.mlp(), (), {}
    trainer = Watched(network, loss, **options, **sources)
    trainer.compile(keras.optimizers.SGD(RATE), run_eagerly=True)
    if weighted:
        labels = 0.8 * np.eye(10)[labels] + 0.2 * np.eye(10)[labels[::-1]]
        given = (np.linspace(0.2, 2, 12),)
        more = {"sample_weight": given[0]}
    told = {**(GUIDED if loss == "guided" else {}), **options}
    weights = network.get_weights()
    for step in range(3 if sources["ensemble_sources"] else 2):
        trainer.reset_metrics()
        got = trainer.train_on_batch(images, labels, *given, return_dict=True)
        weights, attacked, expected = oracle.train_step(
            loss, weights, images, labels, step, RATE, **told, **theirs, **more
        )
        np.testing.assert_allclose(trainer.made, attacked, rtol=0, atol=1e-5)
        for metric, value in expected.items():
            assert got[metric] == pytest.approx(value, rel=1e-3, abs=1e-6), metric
        for own, right in zip(network.get_weights(), weights):
            np.testing.assert_allclose(own, right, rtol=0, atol=5e-5)


@pytest.mark.parametrize(("loss", "options", "climbed"), [
    ("guided", {"distance_ramp": "late", "ramp_steps": 1}, 10.0),
    ("pivot", {"attack": "guided", "guide": 50.0, "distance_weight": 0.01}, 50 * 0.01 * 30),
])  # fmt: skip
def test_validation_climbs_at_the_largest_epsilon_with_the_whole_weight(
    loss, options, climbed, digits
):
    images, labels = digits[0][:30].astype("float64"), digits[1][:30]
    network = oracle.mlp()
    trainer = AdversarialTrainer(network, loss, **options)
    trainer.compile(run_eagerly=True)
    got = trainer.evaluate(images, labels, batch_size=30, verbose=0, return_dict=True)
    told = {**(GUIDED if loss == "guided" else {}), **options}
    for unused in ("distance_ramp", "ramp_steps", "guide"):
        told.pop(unused, None)
    expected = oracle.validate(loss, network.get_weights(), images, labels, climbed=climbed, **told)
    for name, value in expected.items():
        assert got[name] == pytest.approx(value, rel=1e-4), name


def test_alternation_and_ramp_are_functions_of_the_step():
    """Whatever was done before; a step that is repeated has what it had."""
    trainer = AdversarialTrainer(oracle.mlp(), "guided", guide=2.0)
    assert [float(trainer._guide(4, tf.constant(n))) for n in (0, 1, 2, 7, 7)] == [0, 20, 0, 20, 20]
    steady = AdversarialTrainer(oracle.mlp(), "guided", guide_alternates=False)
    assert steady._guide(4, tf.constant(2)) == 10.0  # a number: no branch in the graph
    assert AdversarialTrainer(oracle.mlp(), "guided", guide=0)._guide(4, tf.constant(1)) == 0.0
    expected = {
        "constant": [1, 1, 1, 1, 1], "linear": [0, 0.1, 0.7, 0.8, 1], "late": [1, 1, 1, 2, 2],
    }  # fmt: skip
    for name, values in expected.items():
        found = [float(losses.ramp(name, tf.constant(n), 10)) for n in (0, 1, 7, 8, 10)]
        np.testing.assert_allclose(found, values, rtol=1e-6)
        own = {"distance_ramp": name, "ramp_steps": 10, "distance_weight": 0.5}
        trainer = AdversarialTrainer(oracle.mlp(), **own)
        np.testing.assert_allclose(float(trainer._weight_of_distance(7)), 0.5 * values[2])
        assert trainer._weight_of_distance() == 0.5
    assert set(expected) == set(losses.specs.RAMPS)
    with pytest.raises(ValueError, match="ramp must be"):
        losses.ramp("steep", 1, 10)


class TwoOutputs(keras.Model):
    """A network with an embedding of its own, and batch norm, in one pass."""

    def __init__(self):
        super().__init__()
        self.first = keras.Sequential(
            [keras.layers.Flatten(), keras.layers.Dense(9), keras.layers.BatchNormalization()]
        )
        self.last = keras.layers.Dense(10)
        self.calls = 0

    def call(self, images, training=False):
        self.calls += 1
        features = self.first(images, training=training)
        return {"logits": self.last(tf.tanh(features)), "embedding": features}


def test_the_distance_that_is_climbed_is_of_the_trainers_embedding(digits):
    """In inference mode, by one pass for logits and embedding."""
    images, labels = digits[0][:8], digits[1][:8]
    keras.utils.set_random_seed(0)
    network = TwoOutputs()
    network(images)
    for _ in range(30):  # statistics unlike the batch's
        network(digits[0][100:130], training=True)
    trainer = Watched(network, "guided", distance="l2", distance_weight=3.0, max_epsilon=30.0)
    trainer.compile(keras.optimizers.SGD(0.0), run_eagerly=True)
    before = [v.numpy() for v in network.non_trainable_variables]
    key = tf.random.split([0, 1], 3, alg="philox")[2]

    def both(images):
        outputs = network(images, training=False)
        return attacks.with_embedding(outputs["logits"], outputs["embedding"])

    expected = attacks.guided(both, images, labels, 30.0, seed=key, guide=3.0, distance="l2")
    trainer.inference_logits(images)  # the first time what the outputs are is looked at
    network.calls = 0
    made = trainer.make_adversarial(tf.constant(images), tf.constant(labels), tf.constant(1))
    assert network.calls == 2
    np.testing.assert_array_equal(made, expected)
    plain = attacks.guided(
        lambda x: network(x)["logits"], images, labels, 30.0, seed=key, guide=3.0, distance="l2"
    )
    assert np.abs(plain - expected).max() > 0.05
    for variable, value in zip(network.non_trainable_variables, before):
        np.testing.assert_array_equal(variable, value)
    network.calls = 0
    trainer.make_adversarial(tf.constant(images), tf.constant(labels), tf.constant(2))
    assert network.calls == 1  # a is 0 there, so the clean images are not asked for


@pytest.mark.parametrize(
    ("policy", "jit_compile"),
    [
        ("float32", False),
        ("mixed_float16", False),
        pytest.param("float32", True, marks=pytest.mark.long),
    ],
)
def test_a_compiled_step_is_the_eager_one(policy, jit_compile, digits):
    """In a graph, by XLA, and of half precision; of batches whose last one is smaller."""
    keras.config.set_dtype_policy(policy)
    try:
        networks = [oracle.mlp() for _ in range(2)]
    finally:
        keras.config.set_dtype_policy("float32")
    images, labels = digits[0][:20], digits[1][:20]
    found = []
    for network, options in zip(networks, ({"run_eagerly": True}, {"jit_compile": jit_compile})):
        # Draws under XLA are others, so there are none: the start is the image.
        trainer = AdversarialTrainer(network, "guided", start="none", max_epsilon=30.0, guide=2.0)
        trainer.compile(keras.optimizers.SGD(RATE), **options)
        history = trainer.fit(images, labels, batch_size=8, epochs=2, shuffle=False, verbose=0)
        found.append((network.get_weights(), history.history["distance_loss"]))
    tolerance = 1e-4 if policy == "float32" else 0.05
    np.testing.assert_allclose(found[1][1], found[0][1], rtol=10 * tolerance)
    for one, other in zip(found[1][0], found[0][0]):
        np.testing.assert_allclose(one, other, rtol=0, atol=tolerance)


def test_networks_of_probabilities_and_of_one_logit_are_guided(digits):
    images, labels = digits[0][:16], digits[1][:16] % 2
    layers = keras.layers
    for last in (layers.Dense(2, "softmax"), layers.Dense(1, "sigmoid"), layers.Dense(1)):
        keras.utils.set_random_seed(0)
        network = keras.Sequential([keras.Input((8, 8, 1)), layers.Flatten(), last])
        trainer = AdversarialTrainer(network, "guided", guide_alternates=False, max_epsilon=30)
        trainer.compile("sgd")
        history = trainer.fit(images, labels, batch_size=16, verbose=0).history
        kernel = network.get_weights()[0]
        assert history["distance_loss"][0] > 1e-3 and np.isfinite(kernel).all()


def test_a_trainer_is_saved_with_its_options(digits, tmp_path):
    options = {"distance": "nuclear", "start": "uniform", "guide": 0.5, "guide_alternates": False,
               "clean_embedding": "moves", "distance_ramp": "linear", "ramp_steps": 6,
               "max_epsilon": 30.0}  # fmt: skip
    images, labels = digits[0][:16], digits[1][:16]
    trainer = AdversarialTrainer(oracle.mlp(), "guided", **options)
    trainer.compile(keras.optimizers.SGD(RATE))
    trainer.fit(images, labels, batch_size=8, verbose=0, shuffle=False)
    trainer.save(tmp_path / "trainer.keras")
    again = keras.models.load_model(tmp_path / "trainer.keras")
    assert again.options == trainer.options
    for each in (trainer, again):
        each.fit(images, labels, batch_size=8, verbose=0, shuffle=False)
    for one, other in zip(trainer.network.get_weights(), again.network.get_weights()):
        np.testing.assert_array_equal(one, other)
    # One of before: no such options, and the norm by its number.
    config = AdversarialTrainer(oracle.mlp(), "pivot", distance_norm=1).get_config()
    new = ("distance", "distance_ramp", "ramp_steps", "clean_embedding", "start", "guide",
           "guide_alternates")  # fmt: skip
    for name in new:
        config.pop(name)
    old = AdversarialTrainer.from_config(config)
    assert (old.options.distance, old.options.distance_norm) == ("l1", 1)
    assert old.options.pivot_guard == "fixed_scale" and old.options.clean_embedding == "constant"


def test_what_is_not_said_follows_from_the_loss():
    for loss in LOSSES:
        options = TrainerOptions(loss=loss).resolved()
        assert options.resolved() == options
        expected = GUIDED if loss == "guided" else {
            "attack": "step_ll", "adversarial_weight": 0.3, "distance_weight": 1e-4,
            "distance": "l2", "epsilon_sampling": "clipped_normal", "pivot_guard": "fixed_scale",
        }  # fmt: skip
        clean = {"pivot": "constant", "guided": "constant", "bidirectional": "moves"}.get(loss)
        start = "bernoulli" if loss == "guided" else None
        for name, value in {**expected, "clean_embedding": clean, "start": start}.items():
            assert getattr(options, name) == value, (loss, name)
        settings = TrainingSettings(dataset="digits", loss=loss).resolved()
        for name, value in {**expected, "clean_embedding": clean, "start": start}.items():
            assert getattr(settings, name) == value, (loss, name)
        assert settings.resolved() == settings
    assert default_in_words("adversarial_weight") == "0.3; 0 for loss guided"
    said = TrainingSettings(distance="auto", clean_embedding="auto", start="auto", loss="guided")
    assert said == TrainingSettings(loss="guided")
    assert TrainerOptions(loss="pivot", distance="softmax").resolved().pivot_guard == "none"


@pytest.mark.parametrize(("options", "setting", "word"), [
    ({"loss": "kurakin", "attack": "guided"}, "attack", "kurakin has none"),
    ({"attack": attacks.Guided(guide=2)}, "attack", "name it alone"),
    ({"start": "uniform"}, "start", "only with attack guided"),
    ({"guide": 2}, "guide", "only with attack guided"),
    ({"attack": "pgd", "guide_alternates": False}, "guide_alternates", "only with attack guided"),
    ({"loss": "pivot", "clean_embedding": "moves"}, "clean_embedding", "the loss bidirectional"),
    ({"loss": "bidirectional", "clean_embedding": "constant"}, "clean_embedding", "loss pivot"),
    ({"loss": "standard", "clean_embedding": "moves"}, "clean_embedding", "no distance"),
    ({"distance": "softmax", "distance_norm": 1}, "distance_norm", "give one of them"),
    ({"distance": "softmax", "pivot_guard": "fixed_scale"}, "pivot_guard", "bounded"),
    ({"distance_ramp": "linear"}, "ramp_steps", "steps of the whole"),
    ({"loss": "kurakin", "distance_ramp": "late", "ramp_steps": 3}, "distance_ramp", "no distance"),
    ({"loss": "kurakin", "distance": "nuclear"}, "distance", "none"),
    ({"attack": "n_fgsm", "sparsity": 50.0}, "sparsity", "n_fgsm"),
    ({"loss": "guided", "guide": -1}, "guide", "0 or above"),
])  # fmt: skip
def test_what_does_not_go_together_is_refused(options, setting, word):
    with pytest.raises(InputError, match=word) as error:
        AdversarialTrainer(oracle.mlp(), **options)
    assert error.value.setting == setting and "\n" not in str(error.value)


def test_a_distance_of_ones_own_is_climbed_and_takes_what_its_row_says(digits, monkeypatch):
    def cubed(adversarial, clean, norm):
        assert norm in (1, 2)
        return tf.reduce_sum(tf.abs(adversarial - clean) ** 3)

    row = losses.LossSpec("cubed", losses.specs.JOINED, cubed)
    monkeypatch.setitem(losses.LOSSES, "cubed", row)
    options = {"attack": "guided", "guide_alternates": False, "distance_weight": 5.0,
               "epsilon_sampling": "max", "max_epsilon": 30.0}  # fmt: skip
    trainer = Watched(oracle.mlp(), "cubed", **options)
    trainer.compile(keras.optimizers.SGD(0.0), run_eagerly=True)
    images, labels = digits[0][:6], digits[1][:6]
    trainer.train_on_batch(images, labels)
    expected = attacks.guided(
        trainer.network, images, labels, 30.0, guide=5.0 * 6,
        seed=tf.random.split([0, 0], 3, alg="philox")[2],
        distance=lambda a, c: tf.reduce_sum(tf.abs(a - c) ** 3),
    )  # fmt: skip
    np.testing.assert_allclose(trainer.made, expected, atol=1e-6)
    with pytest.raises(InputError, match="cubed measures l2 or l1"):
        AdversarialTrainer(oracle.mlp(), "cubed", distance="softmax")


# Runs.

SMALL = {
    "dataset": "digits", "model": "lenet", "batch_size": 24, "adversarial_batch_size": 12,
    "steps": 5, "checkpoint_steps": 2, "eval_examples": 20, "eval_attacks": ["guided"],
    "tensorboard": "none", "export": False, "deterministic": True,
}  # fmt: skip


def run(name, **changes):
    return Training(
        TrainingSettings(**{**SMALL, "name": name, **changes}), say=lambda _: None
    ).run()


def weights_of(place):
    return keras.models.load_model(place / "model.keras", compile=False).get_weights()


def test_a_run_goes_on_to_the_last_bit_and_records_what_it_is(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    place = pathlib.Path("runs/run")
    own = {"loss": "guided", "distance_ramp": "linear", "start": "uniform"}
    done = run("run", **own)
    assert [result["attack"] for result in done.results] == ["clean", "guided"]
    assert done.results[1]["options"] == {
        "start": "bernoulli",
        "guide": 10.0,
        "distance": "softmax",
    }
    flags = json.loads((place / "config.json").read_text())["flags"]
    for name, value in {**GUIDED, "start": "uniform", "clean_embedding": "constant"}.items():
        assert flags[name] == value, name
    expected = weights_of(place)
    for name in (
        "metrics.json",
        "model.keras",
        *(f"checkpoints/step-0000000{n}.keras" for n in (4, 5)),
    ):
        (place / name).unlink(missing_ok=True)
    assert run("run", **own).finished
    for one, other in zip(weights_of(place), expected, strict=True):
        np.testing.assert_array_equal(one, other)


def test_a_run_of_before_these_settings_goes_on(tmp_path, monkeypatch):
    """What it is taken to have been started with is what it is started with now."""
    monkeypatch.chdir(tmp_path)
    new = ("distance_ramp", "clean_embedding", "start", "guide", "guide_alternates")
    for loss in ("standard", "kurakin", "bidirectional", "pivot"):
        training = Training(TrainingSettings(dataset="digits", loss=loss))
        before = training.settings.defaults(new, training.preset)
        assert before == {name: training.flags[name] for name in new}
        kept = {name: training.flags[name] for name in ("attack", "distance", "distance_weight")}
        assert kept == {"attack": "step_ll", "distance": "l2", "distance_weight": 1e-4}
        # Said beside a run that began without: refused, as it would be another training.
        other = training.settings.replace(attack="n_fgsm").defaults(("attack",), training.preset)
        assert other == {"attack": "step_ll"}
