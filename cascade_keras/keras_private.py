"""What is reached in Keras by private names, as there is no public way to it; all of it.

Tried with Keras 3.15; tests/training/test_training.py and test_export.py use each.
"""

from __future__ import annotations

import keras

# EarlyStopping and its kind look for a metric's direction in such a list only.
from keras.src.random.seed_generator import global_seed_generator
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


def made_by_layer(
    tensor: keras.KerasTensor,
) -> tuple[keras.Operation, list[keras.KerasTensor]]:
    """Return the layer or operation that has made a functional model's tensor, and of what."""
    operation, node, _ = tensor._keras_history
    return operation, operation._inbound_nodes[node].input_tensors


def list_in_order(archive: keras.export.ExportArchive, name: str) -> None:
    """Let an archive list its variables as the collection of this name does.

    Keras lists them by their addresses, so that each process writes another file.
    """
    track = archive._filter_and_track_resources

    def track_in_order() -> None:
        track()
        held = archive._tf_trackable
        used = {id(variable) for variable in held._all_variables}
        held._all_variables = [each for each in getattr(held, name) if id(each) in used]

    archive._filter_and_track_resources = track_in_order


def random_states(network: keras.Model) -> list[keras.Variable]:
    """Return what a network draws its random numbers by, such as those of Dropout.

    That is the state of each of its layers, which files do not hold, and the one of the process,
    by which layers draw that have none.
    """
    held = {id(weight) for weight in network.weights}
    metrics = {id(variable) for variable in getattr(network, "metrics_variables", ())}
    own = [each for each in network.variables if id(each) not in held | metrics]
    return [*own, global_seed_generator().state]


def frozen_layers(network: keras.Model) -> list[int]:
    """Return the numbers of a network's layers that are not trainable, those inside of others too.

    ``layers`` of a model by subclassing does not have those that its layers hold.
    """
    layers = network._flatten_layers(include_self=False)
    return [number for number, layer in enumerate(layers) if not layer.trainable]
