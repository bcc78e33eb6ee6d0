"""What is reached in Keras by private names, as there is no public way to it; all of it.

Tried with Keras 3.15; tests/training/test_training.py and test_export.py use each.
"""

from __future__ import annotations

import contextlib
import functools
import threading
from collections.abc import Iterator

import keras
import tensorflow as tf

# The functions that layers draw by; they look them up whenever they are called.
from keras.src.backend.tensorflow import random as backend_random
from keras.src.random.seed_generator import global_seed_generator

# EarlyStopping and its kind look for a metric's direction in such a list only.
from keras.src.trainers.compile_utils import MetricsList
from keras.src.trainers.data_adapters import array_slicing, get_data_adapter


class Directions(MetricsList):
    """Shows metrics to callbacks that ask for directions; has no result and no state of its own."""

    def result(self) -> dict:
        return {}


class SteppedModel(keras.Model):
    """A model that is asked at three places where Keras asks only itself.

    A subclass may override ``check_step`` and ``check_prediction``.
    """

    _predicts = False

    def check_step(self, data):
        """Return the data of a training or validation step, checked where XLA does not assert."""
        return data

    def check_prediction(self, data):
        """Return the data of a step of ``predict``, checked where XLA does not assert."""
        return data

    def make_predict_function(self, force=False):
        self._predicts = True
        try:
            return super().make_predict_function(force)
        finally:
            self._predicts = False

    def _autoconvert_optionals(self, step_func):
        """Check a step's data in front of it, where XLA compiles it and leaves assertions out.

        What Keras makes of a step passes here, and is called with what it is given in any form.
        """
        if not self.jit_compile or self.run_eagerly:
            return super()._autoconvert_optionals(step_func)
        if self._predicts:
            return super()._autoconvert_optionals(
                lambda data: step_func(self.check_prediction(data))
            )

        def checked_step(data):
            return step_func(self.distribute_strategy.run(self.check_step, args=(data,)))

        return super()._autoconvert_optionals(checked_step)

    def _maybe_symbolic_build(self, iterator=None, data_batch=None):
        """Leave out, where there is nothing to build, that Keras adds the batches of replicas up.

        It does so to learn their shape, and fails where they are of unequal size.
        """
        if not (self.layers_are_built and self.optimizer is not None and self.optimizer.built):
            super()._maybe_symbolic_build(iterator=iterator, data_batch=data_batch)

    @property
    def layers_are_built(self) -> bool:
        """Whether the variables of everything that is trained are there."""
        return self.built

    def _get_metrics_result_or_logs(self, logs):
        """Read what all replicas have counted; a step's logs are the mean of what each has."""
        if self.distribute_strategy.num_replicas_in_sync == 1:
            return super()._get_metrics_result_or_logs(logs)
        found = {metric.name: metric for metric in self.metrics}
        return {name: found[name].result() if name in found else logs[name] for name in logs}


def directed_mean(name: str, direction: str | None) -> keras.metrics.Mean:
    """Return a mean of which callbacks know whether "up" or "down" is better."""
    metric = keras.metrics.Mean(name=name)
    if direction:
        metric._direction = direction
    return metric


def copy_of(metric: keras.metrics.Metric) -> keras.metrics.Metric:
    """Return a new metric like one, of which callbacks know as much."""
    copy = type(metric).from_config(metric.get_config())
    if getattr(metric, "_direction", None):
        copy._direction = metric._direction
    return copy


def is_of_probabilities(metric: keras.metrics.Metric) -> bool:
    """Whether a metric that could be told that it is given logits is not."""
    if hasattr(metric, "_from_logits"):
        return not metric._from_logits
    return getattr(metric, "_fn_kwargs", {}).get("from_logits") is False


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


def precisions(network: keras.Model) -> list[str]:
    """Return the dtype policies of a network's layers, without float32 where there are others."""
    layers = network._flatten_layers(include_self=False)
    found = {layer.dtype_policy.name for layer in layers if layer.weights}
    return sorted(found - {"float32"}) or ["float32"]


# Random numbers of layers, the same for both images of a pair.

_DRAWS = ("uniform", "normal", "truncated_normal", "randint", "gamma", "beta", "binomial",
          "categorical")  # fmt: skip
_PAIRS = threading.local()  # replicas are traced in threads
_LOCK = threading.Lock()
_OWN: dict = {}  # Keras's own functions while there are pairs anywhere
_USERS = [0]


@contextlib.contextmanager
def paired_draws(count: int | tf.Tensor, k: int | tf.Tensor) -> Iterator[None]:
    """Within: layers draw the same for the i-th image of a batch as for the (k + i)-th, i < k.

    What is drawn for each image has as many rows as there are images, or several for each; those
    of the first k images are exchanged for their partners'. Nothing else of the draws changes, and
    a network that draws nothing gets no operation more.

    Args:
        count: images of the batch.
        k: pairs.
    """
    with _LOCK:
        _USERS[0] += 1
        if _USERS[0] == 1:
            _replace_draws()
    before = getattr(_PAIRS, "now", None)
    _PAIRS.now = (count, k)
    try:
        yield
    finally:
        _PAIRS.now = before
        with _LOCK:
            _USERS[0] -= 1
            if not _USERS[0]:
                for name in list(_OWN):
                    setattr(backend_random, name, _OWN.pop(name))


def _replace_draws() -> None:
    for name in (*_DRAWS, "dropout"):
        _OWN[name] = getattr(backend_random, name)
    for name in _DRAWS:
        setattr(backend_random, name, _paired(_OWN[name]))
    own_dropout = _OWN["dropout"]

    @functools.wraps(own_dropout)
    def dropout(inputs, rate, noise_shape=None, seed=None):
        if getattr(_PAIRS, "now", None) is None or rate in (0, 1):
            return own_dropout(inputs, rate, noise_shape, seed)
        given = tf.shape(inputs)
        if noise_shape is not None:
            given = [given[i] if side is None else side for i, side in enumerate(noise_shape)]
        kept = own_dropout(tf.ones(given, inputs.dtype), rate, None, seed)  # 0, or 1 / (1 - rate)
        return tf.ensure_shape(inputs * _of_partners(kept), inputs.shape)

    backend_random.dropout = dropout


def _paired(draw):
    @functools.wraps(draw)
    def drawn(*args, **kwargs):
        values = draw(*args, **kwargs)
        return values if getattr(_PAIRS, "now", None) is None else _of_partners(values)

    return drawn


def _of_partners(values: tf.Tensor) -> tf.Tensor:
    """Return what was drawn, with the rows of the first k images those of their partners."""
    count, k = _PAIRS.now
    if values.shape.rank == 0:
        return values
    rows = values.shape[0]
    known = isinstance(rows, int) and isinstance(count, int) and isinstance(k, int)
    if known and (k == 0 or rows % count):
        return values
    rows = tf.shape(values)[0] if rows is None else rows
    each = tf.maximum(rows // count, 1)  # rows of an image
    place = tf.range(rows)
    image = place // each
    partner = tf.where(image < k, place + k * each, place)
    if not known:
        partner = tf.where(rows % count == 0, partner, place)
    return tf.ensure_shape(tf.gather(values, partner), values.shape)


def draws_random_numbers(network: keras.Model) -> bool:
    """Whether a network may draw: a layer of it holds a seed, or is not Keras's nor ours."""
    ours = {"keras", "cascade_keras"}
    layers = [network, *network._flatten_layers(include_self=False)]
    return any("seed_generator_state" in v.path for v in network.variables) or any(
        type(layer).__module__.partition(".")[0] not in ours
        or isinstance(layer, keras.layers.Lambda)
        for layer in layers
    )


# Data as fit takes it.


def split_for_validation(arrays: tuple, share: float) -> tuple[tuple, tuple]:
    """Return (x, y, weights) without the last share of it, and that share, as ``fit`` does."""
    return array_slicing.train_validation_split(arrays, validation_split=share)


def as_dataset(x, y=None, batch_size: int = 32) -> tf.data.Dataset:
    """Return data in any form that ``evaluate`` takes, in its order, as batches."""
    adapter = get_data_adapter(x=x, y=y, batch_size=batch_size, shuffle=False)
    return adapter.get_tf_dataset()
