"""Whether XLA compiles the step is said, or refused in one line."""

import keras
import numpy as np
import pytest
import tensorflow as tf
from support import oracle

from cascade_keras import AdversarialTrainer, Training, TrainingSettings, cascade
from cascade_keras.errors import InputError
from cascade_keras.runs import build
from cascade_keras.runs.supply import _choose


class Uncompiled(keras.layers.Layer):
    """Leaves images as they are, by an operation that XLA does not know."""

    def call(self, images):
        same = tf.numpy_function(lambda values: values, [images], tf.float32)
        same.set_shape(images.shape)
        return same


def refusal(run):
    with pytest.raises(InputError) as error:
        run()
    assert error.value.setting == "jit_compile" and "\n" not in str(error.value)
    return str(error.value)


def pixels(images):
    return 3 * tf.reshape(images, [-1, 64])[:, :10] - 1


def test_xla_is_refused_where_cascade_images_are_crafted_in_the_step():
    trainer = AdversarialTrainer(oracle.mlp(), "pivot", cascade_sources=[pixels])
    said = refusal(lambda: trainer.compile("sgd", jit_compile=True))
    assert "bank" in said
    trainer.compile("sgd", jit_compile="auto")
    assert not trainer.jit_compile
    later = AdversarialTrainer(oracle.mlp(), "pivot")
    later.compile("sgd", jit_compile=True)
    refusal(lambda: later.set_sources([pixels]))


def test_xla_is_refused_for_an_attack_of_several_steps():
    trainer = AdversarialTrainer(oracle.mlp(), "pivot", attack="pgd")
    assert "pgd" in refusal(lambda: trainer.compile("sgd", jit_compile=True))


def test_what_xla_cannot_compile_is_named(digits):
    images = keras.Input((8, 8, 1))
    logits = keras.layers.Dense(10)(keras.layers.Flatten()(Uncompiled()(images)))
    trainer = AdversarialTrainer(keras.Model(images, logits), "standard")
    trainer.compile("sgd", jit_compile=True)
    fit = {"batch_size": 16, "verbose": 0}
    assert "PyFunc" in refusal(lambda: trainer.fit(digits[0][:16], digits[1][:16], **fit))


def settings(**given):
    return TrainingSettings(dataset="digits", model="resnet8", **given)


def test_the_setting_says_what_keras_is_told(tmp_path, monkeypatch):
    told = []
    monkeypatch.setattr(AdversarialTrainer, "compile", lambda self, **given: told.append(given))
    for said in ("auto", "on", "off"):
        training = Training(settings(jit_compile=said, runs_dir=str(tmp_path)))
        build.build_trainer(training.settings, oracle.mlp())
        assert training.flags["jit_compile"] == said
    assert [given["jit_compile"] for given in told] == ["auto", True, False]
    with pytest.raises(InputError, match="auto, on, off"):
        settings(jit_compile="yes")


def test_a_cascade_that_xla_compiles_reads_a_bank():
    given = {"loss": "pivot", "cascade_source": ("x",), "jit_compile": "on", "steps": 1}
    refusal(lambda: settings(**given, cascade_mode="online").resolved())

    class Banks:
        def missing_images(self):
            return 10**6

    resolved = settings(**given).resolved()
    said = []
    assert _choose(Banks(), resolved, said.append) == "bank"
    half = cascade.online_gradients(resolved.max_epsilon, "clipped_normal") * 32
    _choose(Banks(), resolved.replace(cascade_share=0.7), said.append)  # 44 of 64
    counts = [int(line.split("online ")[1].split()[0].replace(",", "")) for line in said]
    assert counts == [round(half), round(half / 32 * 44)]
    assert _choose(Banks(), resolved.replace(jit_compile="auto"), lambda line: None) == "online"


@pytest.mark.long
def test_a_run_that_xla_compiles_ends_near_one_that_it_does_not(tmp_path):
    weights = []
    for jit_compile in ("on", "off"):
        given = {"jit_compile": jit_compile, "epsilon_sampling": "max", "steps": 3, "loss": "pivot"}
        places = {"runs_dir": str(tmp_path), "export": False, "tensorboard": "none"}
        training = Training(settings(**given, **places, name=jit_compile, eval_examples=10))
        result = training.run()
        network = keras.models.load_model(result.path / "model.keras")
        weights.append(np.concatenate([w.numpy().ravel() for w in network.weights]))
        assert training.directory.read_config().flags["jit_compile"] == jit_compile
    apart = np.abs(weights[0] - weights[1]).max()
    assert 0 < apart < 1e-3
