"""The average of weights, and batch-norm statistics that belong to it."""

import json
import pathlib

import keras
import numpy as np
import pytest
import tensorflow as tf

from cascade_keras import AdversarialTrainer, Training, TrainingSettings, attacks, averages, data
from cascade_keras.errors import InputError
from cascade_keras.layers import ConvBatchNorm
from cascade_keras.runs import build

EMA = {"use_ema": True, "ema_momentum": 0.8}


def network(**norm):
    """A dense layer, its batch norm inside of another model, and logits."""
    inner = keras.Sequential([keras.Input((6,)), keras.layers.BatchNormalization(**norm)])
    layers = [keras.layers.Flatten(), keras.layers.Dense(6, use_bias=False), inner]
    return keras.Sequential([keras.Input((8, 8, 1)), *layers, keras.layers.Dense(10)])


def trained(digits, loss="standard", made=None, steps=3, **options):
    keras.utils.set_random_seed(0)
    images, labels = digits[0][:96], digits[1][:96]
    trainer = AdversarialTrainer(made or network(), loss, weight_decay=0, **options)
    trainer.compile(keras.optimizers.SGD(0.5, momentum=0.9, **EMA), jit_compile=False)
    for step in range(steps):
        part = slice(32 * step, 32 * step + 32)
        trainer.train_on_batch(images[part], labels[part])
    return trainer, images, labels


def moments(values):
    """The mean over batches of each batch's mean and variance."""
    values = [np.asarray(each, np.float64) for each in values]
    return np.mean([v.mean(0) for v in values], 0), np.mean([v.var(0) for v in values], 0)


def norm_of(trainer):
    (layer,) = averages.batch_norms(trainer.network)
    return layer


@pytest.mark.parametrize("loss", ["standard", "kurakin"])
def test_statistics_are_those_of_the_average(loss, digits):
    options = {"attack": "step_fgsm", "epsilon_sampling": "max", "max_epsilon": 40}
    trainer, images, labels = trained(digits, loss, **(options if loss == "kurakin" else {}))
    last = trainer.network.get_weights()
    averages.averaged_network(trainer, images, labels, batches=2, batch_size=40)
    net = trainer.network
    kernel = net.trainable_variables[0].numpy()
    # The average itself, of the weights after each step: the first counts whole.
    again, *_ = trained(digits, loss, steps=1, **(options if loss == "kurakin" else {}))
    expected = again.network.trainable_variables[0].numpy()
    for steps in (2, 3):
        again, *_ = trained(digits, loss, steps=steps, **(options if loss == "kurakin" else {}))
        expected = 0.8 * expected + 0.2 * again.network.trainable_variables[0].numpy()
    np.testing.assert_allclose(kernel, expected, atol=1e-5)

    parts = [images[:40], images[40:80]]
    mean, variance = moments([np.reshape(p, (40, -1)) @ kernel for p in parts])
    if loss == "kurakin":  # half of the images are attacked, with the statistics of the clean ones
        layer = norm_of(trainer)
        found = layer.moving_mean.numpy(), layer.moving_variance.numpy()
        layer.moving_mean.assign(mean), layer.moving_variance.assign(variance)
        shown = []
        for part, classes in ((parts[0], labels[:40]), (parts[1], labels[40:80])):
            made = attacks.step_fgsm(lambda x: net(x), part[:20], classes[:20], 40)
            shown.append(np.concatenate([made, part[20:]]))
        mean, variance = moments([np.reshape(p, (40, -1)) @ kernel for p in shown])
        layer.moving_mean.assign(found[0]), layer.moving_variance.assign(found[1])
    layer = norm_of(trainer)
    np.testing.assert_allclose(layer.moving_mean, mean, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(layer.moving_variance, variance, rtol=1e-4, atol=1e-5)
    assert any((a != b).any() for a, b in zip(last, net.get_weights()))
    assert layer.momentum == 0.99 and int(trainer.steps) == 3


def test_our_own_layer_and_its_counter(digits):
    inputs = keras.Input((8, 8, 1))
    features = keras.layers.GlobalAveragePooling2D()(ConvBatchNorm(4, name="conv")(inputs))
    made = keras.Model(inputs, keras.layers.Dense(10)(features))
    trainer, images, labels = trained(digits, made=made)
    averages.averaged_network(trainer, images, labels, batches=3, batch_size=32)
    layer = made.get_layer("conv")
    maps = [
        tf.nn.conv2d(images[32 * i : 32 * i + 32], layer.kernel.value, 1, "SAME") for i in range(3)
    ]
    maps = [np.reshape(each, (-1, 4)) for each in maps]
    mean, variance = moments(maps)
    np.testing.assert_allclose(layer.moving_mean, mean, rtol=1e-4, atol=1e-5)
    count = len(maps[0])
    np.testing.assert_allclose(layer.moving_variance, variance * count / (count - 1), rtol=1e-4)
    assert float(layer.passes) == 3 and layer.momentum == 0.999


def test_the_weights_come_back_bit_for_bit(digits):
    trainer, images, labels = trained(digits, "pivot")
    variables = [*trainer.network.variables, *trainer.optimizer.variables, trainer.steps]
    before = [v.numpy() for v in variables]
    given = tf.data.Dataset.from_tensor_slices((images, labels)).batch(32)
    with averages.averaged(trainer, given):
        inside = trainer.network.get_weights()
    after = [v.numpy() for v in variables]
    for one, other in zip(before, after, strict=True):
        np.testing.assert_array_equal(one, other)
    averages.settle(trainer, given)
    for one, other in zip(inside, trainer.network.get_weights(), strict=True):
        np.testing.assert_array_equal(one, other)


def test_what_has_no_batch_norm_or_another_kind_stays(digits):
    plain = keras.Sequential([keras.Input((8, 8, 1)), keras.layers.Flatten(),
                              keras.layers.Dense(10)])  # fmt: skip
    trainer, images, labels = trained(digits, made=plain)
    averages.settle(trainer, [])  # there is nothing to estimate
    assert averages.left_alone(plain) == []
    frozen = network()
    frozen.layers[2].trainable = False
    assert averages.batch_norms(frozen) == [] == averages.left_alone(frozen)
    renormed = network(renorm=True, name="again")
    assert averages.batch_norms(renormed) == [] and averages.left_alone(renormed) == ["again"]
    normed = keras.Sequential([
        keras.Input((4,)), keras.layers.Dropout(0.5),
        keras.layers.SpectralNormalization(keras.layers.Dense(3), name="spectral"),
    ])  # fmt: skip
    assert averages.left_alone(normed) == ["spectral"]
    with pytest.raises(InputError, match="no batches"):
        averages.settle(trained(digits)[0], [])
    trainer.compile("sgd")
    with pytest.raises(InputError, match="averages no weights"):
        averages.averaged_network(trainer, images, labels)


# A run.

SMALL = {
    "dataset": "digits", "steps": 6, "batch_size": 32, "eval_examples": 20,
    "adversarial_batch_size": 16, "eval_attacks": ["step_ll"], "tensorboard": "none",
    "export": False, "name": "run", "validation_images": 100, "validation_steps": 2,
    "checkpoint_steps": 2, "lr_boundaries": [], "keep_best": "pgd", **EMA,
}  # fmt: skip


@pytest.mark.parametrize(
    "precision", ["float32", pytest.param("mixed_float16", marks=pytest.mark.long)]
)
def test_a_run_that_goes_on_ends_with_the_same_average(precision, tmp_path, monkeypatch):
    """Killed and gone on with: the looks, the chosen network and its statistics are the same."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(averages, "BATCHES", 2)

    def train():
        with build.precision(precision):
            keras.utils.set_random_seed(0)
            made = network()
        settings = TrainingSettings(**SMALL, precision=precision)
        Training(settings, network=made, say=lambda text: None).run()
        model = keras.models.load_model("runs/run/model.keras", compile=False)
        return model, json.loads(pathlib.Path("runs/run/validation.json").read_text())

    model, looks = train()
    for name in ("metrics.json", "model.keras", "checkpoints/step-00000006.keras"):
        pathlib.Path("runs/run", name).unlink()
    again, repeated = train()
    assert repeated == looks
    for one, other in zip(model.get_weights(), again.get_weights(), strict=True):
        np.testing.assert_array_equal(one, other)
    # What was looked at is what is kept.
    settings = TrainingSettings(**SMALL).resolved()
    digits = data.load("digits")
    held_out = build.held_out(settings, digits)
    images = digits.train[0][held_out].astype(np.float32) / 255
    right = np.argmax(model(images), -1) == digits.train[1][held_out]
    chosen = json.loads(pathlib.Path("runs/run/metrics.json").read_text())["chosen"]
    (row,) = [row for row in looks["rows"] if row["step"] == chosen["step"]]
    assert abs(int(right.sum()) - row["clean"]) <= 1


def test_a_decay_of_1_is_refused():
    with pytest.raises(InputError) as error:
        TrainingSettings(use_ema=True, ema_momentum=1)
    assert error.value.setting == "ema_momentum"


def test_graphs_are_made_once_and_see_the_weights_of_now(digits):
    trainer, images, labels = trained(digits, "kurakin")
    batches = [(images[:40], labels[:40]), (images[40:80], labels[40:80])]
    norm = norm_of(trainer)
    for _ in range(2):
        trainer.network.trainable_variables[0].assign_add(
            np.full((64, 6), 0.1, np.float32) * np.arange(6)
        )
        averages.estimate_statistics(trainer, batches, mixed=False)
        hidden = [
            images.reshape(len(images), -1) @ trainer.network.trainable_variables[0].numpy()
            for images, _ in batches
        ]
        mean, variance = moments(hidden)
        np.testing.assert_allclose(norm.moving_mean.numpy(), mean, rtol=1e-4)
        np.testing.assert_allclose(norm.moving_variance.numpy(), variance, rtol=1e-3)
    counts = [each.experimental_get_tracing_count() for each in trainer._state.graphs.values()]
    assert counts == [1, 1]
    trainer.compile(keras.optimizers.SGD(0.5, **EMA))
    assert not trainer._state.graphs
