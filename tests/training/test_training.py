"""The training step does what the paper's formula says, once for each batch."""

import inspect
import shutil
import subprocess
import sys

import h5py
import keras
import numpy as np
import pytest
import tensorflow as tf
from support import oracle

from cascade_keras import data, losses, models
from cascade_keras.callbacks import DivergenceError, StopOnDivergence
from cascade_keras.errors import InputError
from cascade_keras.options import TrainerOptions
from cascade_keras.training import AdversarialTrainer

ALL_LOSSES = ["standard", "kurakin", "bidirectional", "pivot"]
RATE = 0.05


def small_network(seed=0, pooling=False):
    """A network without batch normalisation or dropout: a pure function of its weights."""
    keras.utils.set_random_seed(seed)
    layers = [keras.layers.Conv2D(4, 3, activation="relu")]
    layers += [keras.layers.MaxPooling2D()] if pooling else []
    return keras.Sequential(
        [keras.Input((8, 8, 1)), *layers, keras.layers.Flatten(), keras.layers.Dense(10)]
    )


def compiled(network, loss="pivot", learning_rate=0.01, run_eagerly=False, **options):
    trainer = AdversarialTrainer(network, loss, **{"max_epsilon": 76.5, **options})
    sgd = keras.optimizers.SGD(learning_rate, momentum=0.9)
    trainer.compile(optimizer=sgd, run_eagerly=run_eagerly)
    return trainer


def one_step(trainer, images, labels):
    return trainer.train_on_batch(images, labels, return_dict=True)


class Watched(AdversarialTrainer):
    """Keeps the adversarial images of each step."""

    def make_adversarial(self, images, labels, step, crafted=None):
        self.made = super().make_adversarial(images, labels, step, crafted)
        return self.made


# One whole step, against one that is written down a second time (support/oracle.py).

VARIANTS = [
    {},
    {"adversarial_batch_size": 5, "adversarial_weight": 0.7, "paired_weight": 0.5},
    {"seed": 9, "epsilon_sampling": "uniform", "weight_decay": 1e-2},
    {"per_pixel_epsilon": True, "max_epsilon": 8.0},
    {"attack": "step_both", "epsilon_sampling": "max", "adversarial_batch_size": 7},
    {"attack": "step_both", "adversarial_batch_size": 1},
    {"attack": "step_rand", "epsilon_sampling": "reversed_normal"},
    {"attack": "step_fgsm", "sparsity": 25.0},
    {"cascade": 2, "epsilon_sampling": "uniform", "adversarial_batch_size": 7},
    {"ensemble": 2, "cascade": 1},
]
OF_PAIRS = [
    {"distance_norm": 1},
    {"embedding_normalization": "unit", "distance_weight": 0.3},
    {"embedding_normalization": "variance", "distance_weight": 0.3},
    {"pivot_guard": "none"},
]


@pytest.mark.parametrize(
    ("loss", "options"),
    [
        (loss, options)
        for loss in ALL_LOSSES
        for options in VARIANTS + (OF_PAIRS if loss in ("bidirectional", "pivot") else [])
        if loss != "standard" or not options.get("cascade", options.get("ensemble"))
    ],
    ids=str,
)
def test_a_step_is_the_papers(loss, options, digits):
    """Images, weights and metrics of some steps, each with other draws and, maybe, attackers."""
    images, labels = digits[0][:12].astype("float64"), digits[1][:12]
    settings = {"seed": 3, "distance_weight": 0.01, "weight_decay": 1e-3, **options}
    sources = {f"{kind}_sources": [oracle.mlp(9 - n) for n in range(settings.pop(kind, 0))]
               for kind in ("cascade", "ensemble")}  # fmt: skip
    theirs = {name.removesuffix("_sources"): [network.get_weights() for network in networks]
              for name, networks in sources.items()}  # fmt: skip
    network = oracle.mlp()
    trainer = Watched(network, loss, **settings, **sources)
    trainer.compile(keras.optimizers.SGD(RATE), run_eagerly=True)
    weights = network.get_weights()
    for step in range(3 if "ensemble" in options else 2):
        trainer.reset_metrics()
        got = one_step(trainer, images, labels)
        weights, attacked, expected = oracle.train_step(
            loss, weights, images, labels, step, RATE, **settings, **theirs
        )
        if loss != "standard":
            np.testing.assert_allclose(trainer.made, attacked, rtol=0, atol=1e-5)
            assert np.abs(attacked - images[: len(attacked)]).max() > 2 / 255
        for name, value in expected.items():
            assert got[name] == pytest.approx(value, rel=1e-3, abs=1e-6), name
        for own, right in zip(network.get_weights(), weights):
            np.testing.assert_allclose(own, right, rtol=0, atol=2e-5)
        assert ("embedding_distance" in got) == (loss in ("bidirectional", "pivot"))


@pytest.mark.parametrize("loss", ALL_LOSSES)
def test_validation_is_the_training_objective_of_all_images_attacked(loss, digits):
    images, labels = digits[0][:40], digits[1][:40]
    options = {"distance_weight": 0.01, "adversarial_weight": 0.7, "paired_weight": 0.5}
    network = oracle.mlp()
    trainer = AdversarialTrainer(network, loss, **options)
    trainer.compile(run_eagerly=True)
    got = trainer.evaluate(images, labels, batch_size=40, verbose=0, return_dict=True)
    expected = oracle.validate(loss, network.get_weights(), images, labels, **options)
    for name, value in expected.items():
        assert got[name] == pytest.approx(value, rel=1e-4), name
    assert got["adversarial_accuracy"] < got["clean_accuracy"] or loss != "standard"
    assert got["embedding_distance"] > 0 and "gradient_norm" not in got
    # The mean over batches weighs images alike, not batches.
    uneven = trainer.evaluate(images, labels, batch_size=39, verbose=0, return_dict=True)
    assert uneven["clean_loss"] == pytest.approx(got["clean_loss"], rel=1e-4)
    if loss in ("standard", "kurakin"):
        assert uneven["loss"] == pytest.approx(got["loss"], rel=1e-4)


def test_a_registered_loss_trains_and_an_overridden_one_is_used(digits, monkeypatch):
    row = losses.LossSpec(
        "far", losses.specs.JOINED, lambda a, c, norm: tf.reduce_sum((a - c) ** 4)
    )
    monkeypatch.setitem(losses.LOSSES, "far", row)

    class Own(Watched):
        def compute_loss(self, x=None, y=None, y_pred=None, sample_weight=None, training=True):
            logits = tf.reduce_sum(y_pred["logits"][:, 0])
            return super().compute_loss(x, y, y_pred, sample_weight, training) + 0.1 * logits

    images, labels = digits[0][:8], digits[1][:8]
    before, *networks = (oracle.mlp() for _ in range(3))
    results = []
    for make, network in zip((Watched, Own), networks):
        trainer = make(network, "far", epsilon_sampling="max")
        trainer.compile(keras.optimizers.SGD(RATE), run_eagerly=True)
        results.append(one_step(trainer, images, labels))
    logits = before(np.concatenate([trainer.made, images])).numpy()
    distance, extra = ((logits[:8] - logits[8:]) ** 4).sum(), 0.1 * logits[:, 0].sum()
    assert results[0]["distance_loss"] == pytest.approx(1e-4 * distance, rel=1e-3)
    assert results[1]["loss"] - results[0]["loss"] == pytest.approx(extra, rel=1e-3)
    bias = [network.get_weights()[-1] for network in networks]
    np.testing.assert_allclose(bias[1] - bias[0], [-RATE * 1.6] + [0] * 9, atol=1e-5)


def test_weight_decay_alone_shrinks_kernels_and_nothing_else():
    network = models.resnet(8, (8, 8, 1))
    trainer = AdversarialTrainer(network, "standard", weight_decay=0.1)
    with tf.GradientTape() as tape:
        decay = trainer.decay()
    for variable, gradient in zip(
        network.trainable_variables, tape.gradient(decay, network.trainable_variables)
    ):
        if variable.name == "kernel":
            np.testing.assert_allclose(gradient, 0.1 * variable.numpy(), rtol=1e-5)
        else:
            assert gradient is None, variable.path


def test_one_pass_a_step_moves_the_statistics_and_the_attack_does_not(digits):
    images, labels = digits[0][:16], digits[1][:16]
    network = models.resnet(8, (8, 8, 1))
    trainer = compiled(network)
    passes = [v for v in network.non_trainable_variables if v.name == "passes"]
    for step in range(1, 4):
        one_step(trainer, images, labels)
        assert {float(v.value) for v in passes} == {step}
    statistics = [v.numpy() for v in network.non_trainable_variables]
    trainer.make_adversarial(tf.constant(images), tf.constant(labels), tf.constant(9))
    trainer.evaluate(images, labels, verbose=0)
    for before, after in zip(statistics, network.non_trainable_variables):
        np.testing.assert_array_equal(before, after.numpy())


# The clock.


class Traced(AdversarialTrainer):
    """Says what happens at each step, and how often a step is traced."""

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self.seen, self.traces = [], 0

    def make_adversarial(self, images, labels, step, crafted=None):
        self.traces += 1
        made = super().make_adversarial(images, labels, step, crafted)
        reach = tf.reduce_max(tf.abs(made - images), axis=[1, 2, 3])
        tf.py_function(
            lambda *given: self.seen.append([v.numpy() for v in given]), [step, reach], []
        )
        return made


def optimizers():
    rate = keras.optimizers.schedules.PiecewiseConstantDecay([1, 2], [0.4, 0.2, 0.1])
    sgd = keras.optimizers.SGD
    return {
        "plain": lambda: sgd(rate),
        "accumulation": lambda: sgd(rate, gradient_accumulation_steps=4),
        "overflow": lambda: keras.optimizers.LossScaleOptimizer(sgd(rate), initial_scale=3e38),
    }


@pytest.mark.parametrize("kind", optimizers())
@pytest.mark.parametrize("loss", ["kurakin", "pivot"])
def test_every_batch_counts_and_has_its_own_draws(kind, loss, digits):
    """Also those whose gradient is accumulated, or overflows and is left out."""
    optimizer = optimizers()[kind]()
    trainer = Traced(small_network(), loss)
    trainer.compile(optimizer)
    batches = tf.data.Dataset.from_tensor_slices((digits[0][:96], digits[1][:96]))
    trainer.fit(batches.batch(16, drop_remainder=True), verbose=0, shuffle=False)
    assert [int(step) for step, _ in trainer.seen] == list(range(6)) and int(trainer.steps) == 6
    assert trainer.traces == 1
    assert len({reach.tobytes() for _, reach in trainer.seen}) == 6
    inner = getattr(optimizer, "inner_optimizer", optimizer)
    assert float(inner.learning_rate) == pytest.approx(0.1)  # that of step 6


def test_a_batch_brings_its_step_and_sets_the_clock(digits):
    images, labels = (digits[0][:40] * 255).astype("uint8"), digits[1][:40]
    weights = []
    for start in (0, 5):
        trainer = Traced(small_network(), seed=2)
        trainer.compile("sgd")
        trainer.fit(data.batches(images, labels, 8, seed=2, start=start, stop=7), verbose=0)
        assert [int(step) for step, _ in trainer.seen] == list(range(start, 7))
        assert int(trainer.steps) == 7
        weights.append(trainer.seen[-1][1])
    # The last step's epsilons are the same whether or not there were others before it.
    np.testing.assert_allclose(*weights, atol=1e-6)


# Batches and labels of unusual form.


@pytest.mark.parametrize(
    ("loss", "count", "k"),
    [("kurakin", 1, None), ("standard", 17, None)]
    + [(loss, 17, k) for loss in ALL_LOSSES[1:] for k in (None, 8)],
)
def test_a_batch_of_one_image_is_trained_on(loss, count, k, digits):
    """Of no images max pooling has no gradient: it would end the process."""
    trainer = compiled(small_network(pooling=True), loss, adversarial_batch_size=k)
    images, labels = digits[0][:count], digits[1][:count]
    before = trainer.network.get_weights()
    history = trainer.fit(images, labels, batch_size=16, verbose=0, shuffle=False).history
    assert int(trainer.steps) == -(-count // 16)
    assert all(np.isfinite(values).all() for values in history.values())
    assert history["loss"][0] > 1 and not np.array_equal(before[0], trainer.get_weights()[0])
    attacked = history["adversarial_loss"][0] > 0
    assert attacked == (loss != "standard" and count > 1)  # kurakin's half of one is none


def test_labels_may_have_any_usual_form(digits):
    images, labels = digits[0][:16], digits[1][:16]
    forms = labels[:, None], keras.utils.to_categorical(labels, 10), labels.astype("int64")
    expected, *found = (
        one_step(compiled(small_network(), run_eagerly=True), images, given)
        for given in (labels, *forms)
    )
    assert found == [expected] * 3


# The pivot's guard.


def test_fixed_scale_keeps_the_value_and_drops_the_radial_gradient():
    rng = np.random.default_rng(0)
    adversarial = tf.Variable(rng.normal(size=(6, 10)))
    clean = rng.normal(size=(6, 10))
    with tf.GradientTape(persistent=True) as tape:
        printed = losses.pivot_distance(adversarial, clean)
        fixed = losses.pivot_distance(losses.fix_scale(adversarial), clean)
    np.testing.assert_allclose(printed, fixed, rtol=1e-9)
    g, h = tape.gradient(printed, adversarial), tape.gradient(fixed, adversarial)
    e = adversarial.numpy()
    np.testing.assert_allclose(h, g - (g * e).numpy().sum() / (e * e).sum() * e, rtol=1e-6)
    assert abs((h * e).numpy().sum()) < 1e-6 * abs((g * e).numpy().sum())


# Files.


def test_a_trainer_survives_its_keras_file(digits, tmp_path):
    images, labels = digits[0][:32], digits[1][:32]
    network = models.resnet(8, (8, 8, 1))
    trainer = compiled(network, run_eagerly=True, distance_weight=1e-3, seed=4)
    for _ in range(2):
        one_step(trainer, images, labels)
    trainer.save(tmp_path / "trainer.keras")
    loaded = keras.models.load_model(tmp_path / "trainer.keras")
    assert loaded.options == trainer.options and int(loaded.steps) == 2
    assert one_step(trainer, images, labels)["loss"] == one_step(loaded, images, labels)["loss"]
    for a, b in zip(trainer.get_weights(), loaded.get_weights()):
        np.testing.assert_array_equal(a, b)


def test_weights_go_from_a_trainer_to_its_bare_network_and_back(digits, tmp_path):
    images, labels = digits[0][:12], digits[1][:12]
    file = tmp_path / "trainer.weights.h5"

    def of(network):
        trainer = AdversarialTrainer(network)
        trainer.compile(keras.optimizers.Adam(0.01), run_eagerly=True)
        return trainer

    def assert_equal(one, other):
        for a, b in zip(one, other, strict=True):
            np.testing.assert_array_equal(a, b)

    trainer = of(oracle.mlp())
    keep = keras.callbacks.ModelCheckpoint(file, save_weights_only=True)
    trainer.fit(images, labels, batch_size=4, verbose=0, callbacks=[keep])
    keras.Model.save_weights(trainer, tmp_path / "earlier.weights.h5")  # without the network's own
    shutil.copy(tmp_path / "earlier.weights.h5", tmp_path / "first.weights.h5")
    with h5py.File(tmp_path / "first.weights.h5", "a") as first:  # as of version 0.1.0
        del first["vars"]

    bare, loaded = oracle.mlp(1), {name: of(oracle.mlp(1)) for name in ("trainer", "earlier")}
    bare.load_weights(file)
    assert_equal(bare.get_weights(), trainer.network.get_weights())
    for name, again in loaded.items():
        again.load_weights(tmp_path / f"{name}.weights.h5")
        assert int(again.steps) == 3
        assert_equal(again.optimizer.variables, trainer.optimizer.variables)
        assert_equal(again.get_weights(), trainer.get_weights())
    assert one_step(loaded["trainer"], images, labels) == one_step(trainer, images, labels)

    bare.save_weights(tmp_path / "bare.weights.h5")
    for name in ("bare", "first"):
        again = of(oracle.mlp(2))
        again.steps.assign(7)
        again.load_weights(tmp_path / f"{name}.weights.h5")
        assert int(again.steps) == 7  # which such files do not tell
        assert_equal(again.network.get_weights(), bare.get_weights())

    small_network().save_weights(tmp_path / "other.weights.h5")
    bare.save(tmp_path / "bare.keras")
    for call, message in (
        (lambda: again.load_weights(tmp_path / "other.weights.h5"), "other.weights.h5 has not the"),
        (lambda: again.load_weights(tmp_path / "bare.keras"), r"trainer\.network\.load_weights"),
        (lambda: again.save_weights(file, overwrite=False), "overwrite=True"),
    ):
        with pytest.raises(InputError, match=message) as error:
            call()
        assert "\n" not in str(error.value)


def test_an_interrupted_fit_goes_on_bit_equal(digits, tmp_path):
    """By Keras's BackupAndRestore, with momentum, a schedule by the clock and the clock's draws."""

    class Stop(keras.callbacks.Callback):
        def on_epoch_begin(self, epoch, logs=None):
            if epoch == 2:
                raise KeyboardInterrupt

    def fitted(*callbacks):
        rate = keras.optimizers.schedules.PiecewiseConstantDecay([3, 5], [0.1, 0.02, 0.3])
        trainer = AdversarialTrainer(oracle.mlp())
        trainer.compile(keras.optimizers.SGD(rate, momentum=0.9), run_eagerly=True)
        fitting = {"batch_size": 6, "epochs": 4, "shuffle": False, "verbose": 0}
        trainer.fit(digits[0][:12], digits[1][:12], callbacks=[*callbacks], **fitting)
        return trainer

    def backup():
        return keras.callbacks.BackupAndRestore(tmp_path / "backup")

    whole = fitted()
    with pytest.raises(KeyboardInterrupt):
        fitted(backup(), Stop())
    again = fitted(backup())
    assert int(whole.steps) == int(again.steps) == 8
    for a, b in zip(whole.variables, again.variables, strict=True):
        np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize(
    "first", ["cascade_keras", pytest.param("keras, cascade_keras", marks=pytest.mark.long)]
)
def test_keras_finds_the_classes_in_files_and_help_needs_neither(first, tmp_path):
    compiled(small_network()).save(tmp_path / "trainer.keras")
    models.resnet(8, (8, 8, 1)).save(tmp_path / "network.keras")
    program = (
        f"import sys, {first}\n"
        "light = not {'keras', 'tensorflow'} & set(sys.modules)\n"
        "import tensorflow, keras\n"
        "for name in ('trainer', 'network'):\n"
        "    print(type(keras.models.load_model(name + '.keras')).__name__, light)"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    light = str(first == "cascade_keras")
    expected = ["AdversarialTrainer", light, "Functional", light]
    assert done.stdout.split() == expected, done.stderr[-500:]


@pytest.mark.parametrize("kind", ["cascade_sources", "ensemble_sources"])
def test_a_loaded_trainer_asks_for_its_sources(kind, digits, tmp_path):
    images, labels = digits[0][:8], digits[1][:8]
    trainer = compiled(small_network(), run_eagerly=True, **{kind: [small_network(1)]})
    trainer.save(tmp_path / "trainer.keras")
    keras.models.load_model(tmp_path / "trainer.keras").save(tmp_path / "again.keras")
    loaded = keras.models.load_model(tmp_path / "again.keras")
    assert loaded.predict(images, verbose=0)["logits"].shape == (8, 10)
    loaded.evaluate(images, labels, verbose=0)
    with pytest.raises(InputError, match=kind):
        loaded.fit(images, labels, verbose=0)
    loaded.set_sources(**{kind: [small_network(1)]})
    assert one_step(loaded, images, labels) == one_step(trainer, images, labels)


def test_an_exported_trainer_gives_the_same_logits(digits, tmp_path):
    trainer = compiled(small_network())
    trainer.fit(digits[0][:32], digits[1][:32], verbose=0)
    trainer.export(tmp_path / "exported", verbose=False)
    served = tf.saved_model.load(str(tmp_path / "exported"))
    for images in (digits[0][:5], digits[0][:1]):
        expected = trainer.predict(images, verbose=0)
        for name, values in served.signatures["serving_default"](
            images=tf.constant(images)
        ).items():
            np.testing.assert_allclose(values, expected[name], rtol=1e-5, atol=1e-6)


# As Keras has it.


@pytest.mark.parametrize(
    ("monitor", "better"), [("val_adversarial_accuracy", "up"), ("val_clean_loss", "down")]
)
def test_early_stopping_knows_which_way_is_better(monitor, better, digits):
    stop = keras.callbacks.EarlyStopping(monitor, patience=0)
    trainer = compiled(oracle.mlp(), "standard", learning_rate=0.0)
    split = digits[0][:32], digits[1][:32]
    trainer.fit(*split, epochs=4, verbose=0, validation_data=split, callbacks=[stop])
    assert stop.stopped_epoch == 1  # no better than the first
    assert stop.monitor_op is (keras.ops.greater if better == "up" else keras.ops.less)


def test_help_shows_every_option():
    parameters = inspect.signature(AdversarialTrainer).parameters
    for name, default in vars(TrainerOptions()).items():
        assert parameters[name].default == default
        assert f"{name}: " in AdversarialTrainer.__doc__


@pytest.fixture
def policy():
    """Sets Keras's policy for the time of a test."""
    yield keras.config.set_dtype_policy
    keras.config.set_dtype_policy("float32")


def test_the_gradients_norm_does_not_know_of_the_loss_scale(digits, policy):
    norms = {}
    for name in ("float32", "mixed_float16"):
        policy(name)
        trainer = compiled(small_network())
        norms[name] = [
            one_step(trainer, digits[0][:32], digits[1][:32])["gradient_norm"] for _ in range(2)
        ]
    assert norms["mixed_float16"] == pytest.approx(norms["float32"], rel=0.05)
    # A step whose scaled gradient overflows is not made, and is no part of the mean.
    trainer.optimizer.dynamic_scale.assign(3e38)
    trainer.reset_metrics()
    assert one_step(trainer, digits[0][:32], digits[1][:32])["gradient_norm"] == 0


@pytest.mark.parametrize("name", ["mixed_bfloat16", "mixed_float16"])
def test_half_precision_trains_with_losses_in_float32(name, digits, policy):
    policy(name)
    trainer = compiled(models.lenet((8, 8, 1)), learning_rate=0.05)
    assert trainer.network.output["logits"].dtype == "float32"
    images, labels = digits[0][:96], digits[1][:96]
    trainer.fit(images, labels, batch_size=32, epochs=8, verbose=0)
    last = trainer.evaluate(images, labels, verbose=0, return_dict=True)
    assert last["clean_accuracy"] > 0.4 and np.isfinite(list(last.values())).all()


def test_weight_averaging_ends_with_the_average(digits):
    network = small_network()
    trainer = AdversarialTrainer(network, "standard")
    trainer.compile(optimizer=keras.optimizers.SGD(0.1, use_ema=True, ema_momentum=0.5))
    average = []

    class Follow(keras.callbacks.Callback):
        def on_train_batch_end(self, batch, logs=None):
            values = [v.numpy() for v in network.trainable_variables]
            # Keras's average begins with the first step's weights.
            average[:] = [0.5 * a + 0.5 * v for a, v in zip(average or values, values)]

    trainer.fit(digits[0][:64], digits[1][:64], batch_size=16, verbose=0, callbacks=[Follow()])
    for expected, variable in zip(average, network.trainable_variables):
        np.testing.assert_allclose(variable.numpy(), expected, rtol=1e-4, atol=1e-6)


def test_a_loss_that_is_not_finite_stops_the_training_and_says_where(digits):
    rate = keras.optimizers.schedules.PiecewiseConstantDecay([0], [0.1, 3e38])
    trainer = AdversarialTrainer(oracle.mlp(), "standard")
    trainer.compile(keras.optimizers.SGD(rate))
    with pytest.raises(DivergenceError, match="step 3"):
        fitting = {"batch_size": 16, "shuffle": False, "verbose": 0}
        trainer.fit(digits[0][:64], digits[1][:64], callbacks=[StopOnDivergence()], **fitting)


@pytest.mark.parametrize("loss", ["kurakin", "pivot"])
def test_the_step_compiles_with_xla_to_the_same_result(digits, loss):
    """Keras turns XLA on by itself on a single GPU. It draws other epsilons, so none is drawn."""
    results = []
    for jit_compile in (False, True):
        trainer = AdversarialTrainer(small_network(), loss, epsilon_sampling="max")
        trainer.compile(optimizer=keras.optimizers.SGD(0.01), jit_compile=jit_compile)
        results.append(one_step(trainer, digits[0][:16], digits[1][:16]))
    assert results[0] == pytest.approx(results[1], rel=1e-3)


# What is refused, in one line.


REFUSED = {
    "loss": ["trades"],
    "attack": ["autoattack", "pdg", 3],
    "label_smoothing": [1.0, -0.1],
    "epsilon_sampling": ["normal"],
    "max_epsilon": [-1, float("nan")],
    "sparsity": [0],
    "distance_norm": [3],
    "distance_weight": [-1],
    "adversarial_batch_size": [0],
    "pivot_guard": ["clip"],
    "seed": [0.5],
}


@pytest.mark.parametrize("setting", REFUSED)
def test_an_option_outside_its_range_is_refused(setting):
    for value in REFUSED[setting]:
        with pytest.raises(InputError) as error:
            AdversarialTrainer(oracle.mlp(), **{setting: value})
        assert error.value.setting == setting and "\n" not in str(error.value)


def test_a_loss_of_keras_is_refused_rather_than_ignored():
    for given in ({"loss": "mse"}, {"loss_weights": [0.5]}):
        with pytest.raises(InputError, match=next(iter(given))):
            AdversarialTrainer(small_network()).compile(optimizer="sgd", **given)


@pytest.mark.parametrize(
    ("change", "word"),
    [
        (lambda x: (255 * x).astype("uint8"), "255"),
        (lambda x: (x, x), "2 inputs"),
        (lambda x: [x, x], "2 inputs"),
        (lambda x: {"a": x, "b": x}, "2 inputs"),
    ],
    ids=["whole pixels", "tuple", "list", "dict"],
)
def test_other_inputs_than_images_in_the_unit_range_are_refused(change, word, digits):
    with pytest.raises(InputError, match=word) as error:
        compiled(small_network()).fit(change(digits[0][:16]), digits[1][:16], verbose=0)
    assert "\n" not in str(error.value)
