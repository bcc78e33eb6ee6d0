"""What helps a training: learning rates with a peak, smoothed labels, Nesterov's momentum."""

import keras
import numpy as np
import pytest
import tensorflow as tf

from cascade_keras.errors import InputError
from cascade_keras.labels import Labels, smoothed, unsmoothed
from cascade_keras.runs import build
from cascade_keras.runs.settings import TrainingSettings

DIGITS = {"dataset": "digits", "model": "lenet", "steps": 100}


def rates(**changes):
    settings = TrainingSettings(**{**DIGITS, **changes}).resolved()
    schedule = build.learning_rate_schedule(settings)
    again = type(schedule).from_config(schedule.get_config())
    steps = np.arange(101)
    found = [np.array([float(each(tf.constant(t, tf.int64))) for t in steps])
             for each in (schedule, again)]  # fmt: skip
    np.testing.assert_array_equal(*found)
    return steps, found[0]


@pytest.mark.parametrize("peak", [0.4, 0.07, 0.0])
def test_rates_rise_to_their_peak_and_fall_to_0(peak):
    top = round(100 * peak)
    steps, found = rates(lr_schedule="triangular", lr_peak=peak, learning_rate=0.2)
    shape = ([0, top, 100], [0, 0.2, 0]) if top else ([0, 100], [0.2, 0])
    np.testing.assert_allclose(found, np.interp(steps, *shape), atol=1e-7)
    steps, found = rates(lr_schedule="cosine", lr_peak=peak, learning_rate=0.2)
    falling = 0.1 * (1 + np.cos(np.pi * (steps - top) / (100 - top)))
    rising = 0.2 * steps / max(top, 1)
    np.testing.assert_allclose(found, np.where(steps < top, rising, falling), atol=1e-7)


REFUSED = [
    ({"lr_schedule": "cosine", "lr_boundaries": [50]}, "lr_boundaries", "lr_schedule steps"),
    ({"lr_schedule": "triangular", "warmup_steps": 5}, "warmup_steps", "lr_peak"),
    ({"lr_peak": 0.3}, "lr_peak", "triangular or cosine"),
    ({"nesterov": True, "momentum": 0}, "nesterov", "momentum"),
]


@pytest.mark.parametrize(("changes", "name", "word"), REFUSED, ids=lambda value: str(value)[:40])
def test_what_contradicts_is_refused(changes, name, word):
    with pytest.raises(InputError) as error:
        TrainingSettings(**{**DIGITS, **changes}).resolved()
    assert error.value.setting == name and word in error.value.message


def test_settings_reach_optimizer_and_trainer_and_resolve_to_themselves():
    settings = TrainingSettings(**DIGITS, lr_schedule="cosine", nesterov=True, label_smoothing=0.1)
    settings = settings.resolved()
    assert settings.lr_boundaries == () and settings.warmup_steps == 0
    assert settings.resolved() == settings
    network = keras.Sequential([keras.Input((8, 8, 1)), keras.layers.Flatten(),
                                keras.layers.Dense(10)])  # fmt: skip
    trainer = build.build_trainer(settings, network)
    assert trainer.optimizer.nesterov and trainer.options.label_smoothing == 0.1


def test_cascade_images_of_a_step_are_made_of_the_labels_before_smoothing():
    rows = np.random.default_rng(0).dirichlet(np.ones(7), 5).astype("float32")
    classes = tf.constant([0, 6, 3, 3, 1])
    for labels, exact in ((Labels(classes, None), True), (Labels(classes, rows), False)):
        found = unsmoothed(tf.constant(smoothed(labels, 7, 0.3).target), 0.3).numpy()
        expected = np.eye(7, dtype="float32")[classes] if exact else rows
        np.testing.assert_allclose(found, expected, atol=0 if exact else 2e-6)
    np.testing.assert_array_equal(unsmoothed(classes, 0.3), classes)
