"""What programs are told of networks that record nothing, by what it must not change.

A network of (0, 256) that divides by 256 is, in numbers of base 2, the network of [0, 1]: what is
made of the two is equal to the last bit.
"""

import warnings

import keras
import numpy as np
import pytest

import cascade_keras as ck
from cascade_keras import (
    Crafting,
    CraftSettings,
    Figure,
    FigureSettings,
    Training,
    TrainingSettings,
    border,
    load_source,
)
from cascade_keras.errors import InputError
from cascade_keras.model_files import load_network

RANGE = (0, 256)
L = keras.layers


@pytest.fixture(scope="module")
def twins(tmp_path_factory):
    """Two files of one network: of [0, 1], and of pixels of 0..256."""
    place = tmp_path_factory.mktemp("twins")
    rng = np.random.default_rng(0)
    weights = [rng.normal(0, 1, (64, 10)), rng.normal(0, 1, 10)]
    for name, first in (("unit", []), ("bytes", [L.Rescaling(1 / 256)])):
        network = keras.Sequential([L.Input((8, 8, 1)), *first, L.Flatten(), L.Dense(10)])
        network.set_weights(weights)
        network.save(place / f"{name}.keras")
    return place


@pytest.fixture(autouse=True)
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def test_a_bank_is_of_the_range_that_is_said(twins):
    def bank(name, **told):
        settings = CraftSettings(
            source=twins / f"{name}.keras", dataset="digits", split="test", epsilons=(3, 8),
            examples=40, output=f"banks/{name}", **told,
        )  # fmt: skip
        return np.array(Crafting(settings).run().images)

    unit = bank("unit")
    np.testing.assert_array_equal(bank("bytes", value_range=RANGE), unit)
    assert np.abs(unit[1].astype(int) - unit[0]).max() > 3  # they are attacked


def test_a_figure_is_of_the_range_that_is_said(twins):
    def accuracies(name, **told):
        settings = FigureSettings(
            figure="accuracy_curve", model=(twins / f"{name}.keras",), dataset="digits",
            epsilons=(0, 4), num_images=40, attack=("step_fgsm",), output=f"figures/{name}", **told,
        )  # fmt: skip
        Figure(settings).draw()
        with np.load(f"figures/{name}/accuracy_curve.npz") as arrays:
            return {key: arrays[key] for key in arrays.files if key not in ("identity", "sha256")}

    unit, other = accuracies("unit"), accuracies("bytes", value_range=RANGE)
    assert unit
    for key, values in unit.items():
        np.testing.assert_array_equal(other[key], values, key)


def test_cascade_images_are_of_the_range_that_is_said(twins):
    def weights(name, **told):
        settings = TrainingSettings(
            dataset="digits", model="lenet", cascade_source=(twins / f"{name}.keras",), steps=2,
            cascade_mode="online", batch_size=16,
            adversarial_batch_size=8, max_epsilon=4, tensorboard="none", eval_attacks=(),
            name=name, export=False, **told,
        )  # fmt: skip
        return load_network(Training(settings).run().path / "model.keras").get_weights()

    for own, other in zip(weights("unit"), weights("bytes", source_value_range=RANGE)):
        np.testing.assert_allclose(other, own, atol=1e-6)


def test_outputs_that_are_told_are_trained_exported_and_loaded_again(tmp_path):
    keras.utils.set_random_seed(0)
    layers = [L.Input((8, 8, 1)), L.Flatten(), L.Dense(10, "sigmoid")]
    settings = TrainingSettings(
        dataset="digits", steps=2, batch_size=16, adversarial_batch_size=8, tensorboard="none",
        eval_attacks=(), name="s",
    )  # fmt: skip
    network = keras.Sequential(layers)
    with pytest.raises(InputError, match="sigmoid for each class"):
        Training(settings, network=network).run()
    result = Training(settings.replace(from_logits="false"), network=network).run()
    images = np.random.default_rng(0).uniform(size=(3, 8, 8, 1)).astype("float32")
    chances = network.predict(images, verbose=0)
    for place in (result.path, result.saved):
        logits = load_source(place).logits(images).numpy()
        np.testing.assert_allclose(1 / (1 + np.exp(-logits)), chances, atol=1e-6)


def test_a_trainer_knows_its_range_and_takes_no_other(twins):
    network = keras.Sequential([keras.Input((8, 8, 1)), keras.layers.Flatten(),
                                keras.layers.Dense(10)])  # fmt: skip
    own = ck.AdversarialTrainer(network, value_range=(0, 255))
    assert border.adapt(own) is border.adapt(own, value_range=(0, 255)) is own.border
    with pytest.raises(
        InputError, match=r"value_range: is \(0.0, 1.0\) here, but .* \(0.0, 255.0\)"
    ):
        ck.evaluate(own, np.zeros((4, 8, 8, 1)), np.zeros(4, int), "step_fgsm", 8,
                    value_range=(0, 1), progress=False)  # fmt: skip
    # As a source of others it keeps its range, whatever theirs is.
    for value_range in ((0, 1), (-1, 1)):
        other = keras.models.clone_model(network)
        trainer = ck.AdversarialTrainer(other, value_range=value_range, ensemble_sources=[own])
        (source,) = trainer._state.sources["ensemble_sources"]
        assert source.value_range == (0, 255)


@pytest.mark.parametrize("make", [
    lambda attack: ck.callbacks.RobustValidation(attack, epsilon=8),
    lambda attack: ck.AdversarialTrainer(keras.Sequential([keras.Input((8, 8, 1)),
        keras.layers.Flatten(), keras.layers.Dense(2)]), attack=attack),
])  # fmt: skip
def test_steps_of_another_unit_are_warned_of(make):
    with pytest.warns(UserWarning, match="7 steps of 0.01 do not reach epsilon"):
        make(ck.attacks.PGD(steps=7, step_size=0.01))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        make(ck.attacks.PGD(steps=7, step_size=2))


def test_an_application_without_weights_is_no_network_to_measure():
    with pytest.raises(InputError, match="app:MobileNetV2 would be a network of new weights"):
        load_source("app:MobileNetV2", (32, 32, 3), 10)
