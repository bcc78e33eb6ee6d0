"""What is reached in Keras by private names, as there is no public way to it; all of it.

Tried with Keras 3.15; tests/training/test_training.py uses each.
"""

from __future__ import annotations

import keras

# EarlyStopping and its kind look for a metric's direction in such a list only.
from keras.src.trainers.compile_utils import MetricsList


class Directions(MetricsList):
    """Shows metrics to callbacks that ask for directions; has no result and no state of its own."""

    def result(self) -> dict:
        return {}


def directed_mean(name: str, direction: str | None) -> keras.metrics.Mean:
    """Return a mean of which callbacks know whether "up" or "down" is better."""
    metric = keras.metrics.Mean(name=name)
    if direction:
        metric._direction = direction
    return metric


def schedule_of(
    optimizer: keras.optimizers.Optimizer,
) -> keras.optimizers.schedules.LearningRateSchedule | None:
    """Return an optimizer's learning-rate schedule; ``learning_rate`` is its present value only."""
    schedule = getattr(optimizer, "_learning_rate", None)
    scheduled = isinstance(schedule, keras.optimizers.schedules.LearningRateSchedule)
    return schedule if scheduled else None
