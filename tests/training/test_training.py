"""The training step does what the paper's formula says, once for each batch."""

import keras
import numpy as np
import pytest
import tensorflow as tf

from cascade_keras import losses, models
from cascade_keras.errors import InputError
from cascade_keras.runs.callbacks import DivergenceError, StopOnDivergence
from cascade_keras.training import OPTIONS, AdversarialTrainer

ALL_LOSSES = ["standard", "kurakin", "bidirectional", "pivot"]


def small_network(seed=0):
    """A network without batch normalisation or dropout: a pure function of its weights."""
    keras.utils.set_random_seed(seed)
    return keras.Sequential(
        [
            keras.Input((8, 8, 1)),
            keras.layers.Conv2D(4, 3, activation="relu"),
            keras.layers.Flatten(),
            keras.layers.Dense(10),
        ]
    )


def compiled(network, loss, learning_rate=0.01, **options):
    trainer = AdversarialTrainer(network, loss, max_epsilon=76.5, **options)
    trainer.compile(optimizer=keras.optimizers.SGD(learning_rate, momentum=0.9))
    return trainer


def one_step(trainer, images, labels):
    return trainer.train_on_batch(images, labels, return_dict=True)


@pytest.mark.parametrize("loss", ALL_LOSSES)
@pytest.mark.parametrize("k", [None, 4])
def test_the_loss_of_a_step_is_the_papers_formula(digits, loss, k):
    images, labels = digits[0][:16], digits[1][:16]
    network = small_network()
    trainer = compiled(
        network,
        loss,
        adversarial_batch_size=k,
        adversarial_weight=0.3,
        distance_weight=0.01,
        weight_decay=1e-3,
        paired_weight=0.5,
        seed=3,
    )
    attacked = {"standard": 0, "kurakin": k or 8}.get(loss, k or 16)
    adversarial = images[:0]
    if attacked:
        adversarial = trainer.make_adversarial(
            tf.constant(images[:attacked]), tf.constant(labels[:attacked]), tf.constant(0)
        ).numpy()
        assert np.abs(adversarial - images[:attacked]).max() > 0.05
    kept = slice(attacked, None) if loss == "kurakin" else slice(None)
    logits = network(np.concatenate([adversarial, images[kept]])).numpy().astype("float64")
    targets = np.concatenate([labels[:attacked], labels[kept]])
    each = np.log(np.exp(logits).sum(1)) - logits[np.arange(len(logits)), targets]
    weights = np.ones(len(each))
    weights[:attacked] = 0.3
    paired = loss in ("bidirectional", "pivot")
    if paired:
        weights[attacked : 2 * attacked] = 0.5
    expected = (weights * each).sum() / weights.sum()
    distance = 0.0
    if paired:
        distance = 0.01 * ((logits[:attacked] - logits[attacked : 2 * attacked]) ** 2).sum()
    kernels = [layer.kernel.numpy() for layer in network.layers if hasattr(layer, "kernel")]
    decay = 1e-3 / 2 * sum((kernel**2).sum() for kernel in kernels)

    before = [variable.numpy() for variable in network.trainable_variables]
    got = one_step(trainer, images, labels)
    assert got["loss"] == pytest.approx(expected + distance + decay, rel=1e-5)
    assert got["distance_loss"] == pytest.approx(distance, rel=1e-4)
    assert got["decay_loss"] == pytest.approx(decay, rel=1e-5)
    assert got["clean_loss"] == pytest.approx(each[attacked:].mean(), rel=1e-5)
    accuracy = (logits.argmax(1) == targets)[attacked:].mean()
    assert got["clean_accuracy"] == pytest.approx(accuracy)
    # The first step of gradient descent, of momentum too, is the learning rate times the gradient.
    steps = [(b - a.numpy()) / 0.01 for b, a in zip(before, network.trainable_variables)]
    norm = sum((step.astype("float64") ** 2).sum() for step in steps) ** 0.5
    assert got["gradient_norm"] == pytest.approx(norm, rel=1e-3)
    assert ("embedding_distance" in got) == paired
    if paired:
        pairs = logits[:attacked] - logits[attacked : 2 * attacked]
        expected = np.linalg.norm(pairs, axis=1).mean()
        assert got["embedding_distance"] == pytest.approx(expected, rel=1e-4)


def test_weight_decay_alone_shrinks_kernels_and_nothing_else(digits):
    network = models.resnet(8, (8, 8, 1))
    trainer = AdversarialTrainer(network, "standard", weight_decay=0.1)
    with tf.GradientTape() as tape:
        decay = trainer._decay()
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
    trainer = compiled(network, "pivot")
    passes = [v for v in network.non_trainable_variables if v.name == "passes"]
    for step in range(1, 4):
        one_step(trainer, images, labels)
        assert {float(v.value) for v in passes} == {step}
    statistics = [v.numpy() for v in network.non_trainable_variables]
    trainer.make_adversarial(tf.constant(images), tf.constant(labels), tf.constant(9))
    trainer.evaluate(images, labels, verbose=0)
    for before, after in zip(statistics, network.non_trainable_variables):
        np.testing.assert_array_equal(before, after.numpy())


@pytest.mark.parametrize("loss", ALL_LOSSES)
def test_the_step_is_traced_once(digits, loss):
    images, labels = digits[0][:96], digits[1][:96]
    trainer = compiled(small_network(), loss)
    traces = []
    original = trainer.distance
    trainer.distance = lambda *pair: traces.append(1) or original(*pair)
    data = tf.data.Dataset.from_tensor_slices((images, labels)).batch(16)
    trainer.fit(data.repeat(2), verbose=0, shuffle=False)
    assert trainer.train_function is not None
    assert len(traces) == (1 if trainer.pairs else 0)
    assert int(trainer.steps) == 12


def test_adversarial_images_are_a_function_of_seed_and_step(digits):
    images, labels = tf.constant(digits[0][:8]), tf.constant(digits[1][:8])
    trainer = compiled(small_network(), "pivot", seed=5)
    again = trainer.make_adversarial(images, labels, tf.constant(2))
    np.testing.assert_array_equal(trainer.make_adversarial(images, labels, tf.constant(2)), again)
    assert not np.array_equal(trainer.make_adversarial(images, labels, tf.constant(3)), again)


def test_the_last_short_batch_may_be_smaller_than_k(digits):
    trainer = compiled(small_network(), "pivot", adversarial_batch_size=8)
    trainer.fit(digits[0][:20], digits[1][:20], batch_size=16, verbose=0, shuffle=False)
    assert int(trainer.steps) == 2


@pytest.mark.parametrize("form", ["column", "one_hot", "int64"])
def test_labels_may_have_any_usual_form(digits, form):
    images, labels = digits[0][:16], digits[1][:16]
    forms = {
        "column": labels[:, None],
        "one_hot": keras.utils.to_categorical(labels, 10),
        "int64": labels.astype("int64"),
    }
    expected = one_step(compiled(small_network(), "pivot"), images, labels)
    assert one_step(compiled(small_network(), "pivot"), images, forms[form]) == expected


@pytest.mark.parametrize(
    "options",
    [
        {"attack": "step_fgsm"},
        {"attack": "step_both"},
        {"attack": "step_rand"},
        {"epsilon_sampling": "uniform"},
        {"epsilon_sampling": "max"},
        {"epsilon_sampling": "reversed_normal"},
        {"per_pixel_epsilon": True},
        {"sparsity": 25.0},
        {"distance_norm": 1},
        {"embedding_normalization": "unit"},
        {"embedding_normalization": "variance"},
        {"pivot_guard": "none"},
    ],
    ids=str,
)
def test_every_option_changes_the_step_and_trains(digits, options):
    images, labels = digits[0][:32], digits[1][:32]
    plain = compiled(small_network(), "pivot")
    changed = compiled(small_network(), "pivot", **options)
    for _ in range(2):
        one_step(plain, images, labels)
        result = one_step(changed, images, labels)
    assert np.isfinite(result["loss"])
    weights = [trainer.network.get_weights() for trainer in (plain, changed)]
    assert any(not np.array_equal(a, b) for a, b in zip(*weights))


@pytest.mark.parametrize("normalization", ["none", "unit", "variance"])
def test_pivot_sends_no_gradient_to_the_clean_embedding(normalization):
    trainer = AdversarialTrainer(
        small_network(), "pivot", embedding_normalization=normalization, pivot_guard="fixed_scale"
    )
    adversarial = tf.Variable(np.random.default_rng(0).normal(size=(6, 10)).astype("float32"))
    clean = tf.Variable(np.random.default_rng(1).normal(size=(6, 10)).astype("float32"))
    with tf.GradientTape() as tape:
        distance = trainer.distance(adversarial, clean)
    to_adversarial, to_clean = tape.gradient(distance, [adversarial, clean])
    assert to_clean is None
    assert np.abs(to_adversarial).max() > 0


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


@pytest.mark.parametrize(("guard", "grows"), [("none", True), ("fixed_scale", False)])
def test_the_one_weight_model_of_the_runaway(guard, grows):
    """With embeddings w f_a and w f_c, f_a < f_c, the printed pivot loss inflates w."""
    trainer = AdversarialTrainer(small_network(), "pivot", pivot_guard=guard)
    features_adversarial, features_clean = tf.constant([[0.5]]), tf.constant([[1.0]])
    weight = tf.Variable(1.0)
    for _ in range(100):
        with tf.GradientTape() as tape:
            distance = trainer.distance(weight * features_adversarial, weight * features_clean)
        weight.assign_sub(0.1 * tape.gradient(distance, weight))
    assert (weight.numpy() > 100) if grows else (weight.numpy() == pytest.approx(1, abs=1e-4))


def test_evaluate_attacks_at_the_largest_epsilon(digits):
    trainer = compiled(small_network(), "pivot", learning_rate=0.05)
    trainer.fit(digits[0], digits[1], batch_size=64, epochs=5, verbose=0)
    result = trainer.evaluate(digits[0], digits[1], verbose=0, return_dict=True)
    assert "gradient_norm" not in result and result["embedding_distance"] > 0
    predicted = trainer.predict(digits[0], verbose=0)["logits"].argmax(1)
    assert result["clean_accuracy"] == pytest.approx((predicted == digits[1]).mean(), abs=1e-6)
    assert result["adversarial_accuracy"] < result["clean_accuracy"]


def test_a_trainer_survives_its_keras_file(digits, tmp_path):
    images, labels = digits[0][:32], digits[1][:32]
    trainer = compiled(models.resnet(8, (8, 8, 1)), "pivot", distance_weight=1e-3, seed=4)
    for _ in range(2):
        one_step(trainer, images, labels)
    trainer.save(tmp_path / "trainer.keras")
    loaded = keras.models.load_model(tmp_path / "trainer.keras")
    for option in OPTIONS:
        assert getattr(loaded, option) == getattr(trainer, option), option
    assert one_step(trainer, images, labels)["loss"] == one_step(loaded, images, labels)["loss"]
    for a, b in zip(trainer.get_weights(), loaded.get_weights()):
        np.testing.assert_array_equal(a, b)


def test_the_gradients_norm_does_not_know_of_the_loss_scale(digits):
    norms = {}
    for policy in ("float32", "mixed_float16"):
        keras.config.set_dtype_policy(policy)
        try:
            trainer = compiled(small_network(), "pivot")
            norms[policy] = [
                one_step(trainer, digits[0][:32], digits[1][:32])["gradient_norm"] for _ in range(2)
            ]
        finally:
            keras.config.set_dtype_policy("float32")
    assert norms["mixed_float16"] == pytest.approx(norms["float32"], rel=0.05)
    # A step whose scaled gradient overflows is not made, and is no part of the mean.
    trainer.optimizer.dynamic_scale.assign(3e38)
    trainer.reset_metrics()
    assert one_step(trainer, digits[0][:32], digits[1][:32])["gradient_norm"] == 0


@pytest.mark.parametrize("policy", ["mixed_bfloat16", "mixed_float16"])
def test_half_precision_trains_with_losses_in_float32(digits, policy):
    keras.config.set_dtype_policy(policy)
    try:
        trainer = compiled(models.resnet(8, (8, 8, 1)), "pivot", learning_rate=0.05)
        assert trainer.network.output["logits"].dtype == "float32"
        # Few images: processors have no fast convolutions of float16.
        images, labels = digits[0][:96], digits[1][:96]
        first = one_step(trainer, images[:32], labels[:32])["clean_loss"]
        trainer.fit(images, labels, batch_size=32, epochs=5, verbose=0)
        last = trainer.evaluate(images, labels, verbose=0, return_dict=True)
    finally:
        keras.config.set_dtype_policy("float32")
    assert last["clean_accuracy"] > 0.5 and np.isfinite(first)


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


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_a_loss_that_is_not_finite_stops_the_training_and_says_where(digits, bad):
    images = digits[0][:64].copy()
    images[40] = bad
    linear = keras.Sequential(
        [keras.Input((8, 8, 1)), keras.layers.Flatten(), keras.layers.Dense(10)]
    )
    with pytest.raises(DivergenceError, match=r"at step 3; try a smaller --learning_rate"):
        compiled(linear, "standard").fit(
            images,
            digits[1][:64],
            batch_size=16,
            shuffle=False,
            verbose=0,
            callbacks=[StopOnDivergence()],
        )


def softmax_network():
    return keras.Sequential(
        [
            keras.Input((8, 8, 1)),
            keras.layers.Flatten(),
            keras.layers.Dense(10, activation="softmax"),
        ]
    )


@pytest.mark.parametrize(
    ("make", "options", "message"),
    [
        (softmax_network, {}, "softmax; networks give logits"),
        (small_network, {"loss": "trades"}, "loss 'trades' is none of standard, kurakin"),
        (small_network, {"attack": "pgd"}, "attack 'pgd' is none of"),
        (small_network, {"epsilon_sampling": "normal"}, "epsilon_sampling 'normal' is none"),
        (small_network, {"max_epsilon": -1}, r"max_epsilon must be in 0..255, got -1"),
        (small_network, {"max_epsilon": 256}, r"max_epsilon must be in 0..255, got 256"),
        (small_network, {"sparsity": 0}, "sparsity must be above 0"),
        (small_network, {"distance_norm": 3}, "distance_norm 3 is none of 1, 2"),
        (small_network, {"distance_weight": -1}, "distance_weight must be 0 or above"),
        (small_network, {"adversarial_batch_size": 0}, "adversarial_batch_size must be 1"),
        (small_network, {"pivot_guard": "clip"}, "pivot_guard 'clip' is none of"),
    ],
    ids=lambda value: str(value) if isinstance(value, dict) else None,
)
def test_bad_arguments_are_refused_in_one_line(make, options, message):
    with pytest.raises(InputError, match=message) as error:
        AdversarialTrainer(make(), **options)
    assert "\n" not in str(error.value)


def test_whole_pixel_values_are_refused_rather_than_clipped(digits):
    images = (digits[0][:16] * 255).astype("uint8")
    with pytest.raises(ValueError, match=r"floats in \[0, 1\]; divide"):
        compiled(small_network(), "pivot").fit(images, digits[1][:16], verbose=0)


@pytest.mark.parametrize("given", [{"loss": "mse"}, {"metrics": ["accuracy"]}])
def test_a_loss_given_to_compile_is_refused_rather_than_ignored(given):
    with pytest.raises(InputError, match=r"compile takes no (loss|metrics)"):
        AdversarialTrainer(small_network()).compile(optimizer="sgd", **given)


@pytest.mark.parametrize("loss", ["kurakin", "pivot"])
def test_the_step_compiles_with_xla_to_the_same_result(digits, loss):
    """Keras turns XLA on by itself on a single GPU. It draws other epsilons, so none is drawn."""
    results = []
    for jit_compile in (False, True):
        trainer = AdversarialTrainer(small_network(), loss, epsilon_sampling="max")
        trainer.compile(optimizer=keras.optimizers.SGD(0.01), jit_compile=jit_compile)
        results.append(one_step(trainer, digits[0][:16], digits[1][:16]))
    assert results[0] == pytest.approx(results[1], rel=1e-3)


def test_sample_weights_are_refused_rather_than_ignored(digits):
    trainer = compiled(small_network(), "pivot")
    with pytest.raises(ValueError, match="without weights"):
        trainer.fit(digits[0][:16], digits[1][:16], sample_weight=np.ones(16), verbose=0)
