"""What is reached in Keras and TensorFlow by private names, for want of a public way; all of it.

Tried with Keras 3.15; tests/training/test_training.py and test_export.py use each.
"""

from __future__ import annotations

import contextlib
import functools
import inspect
import threading
import types
from collections.abc import Callable, Iterator
from typing import NamedTuple

import keras
import tensorflow as tf

# The functions that layers draw by; they look them up whenever they are called.
from keras.src.backend.tensorflow import random as backend_random
from keras.src.backend.tensorflow import trainer
from keras.src.random.seed_generator import global_seed_generator

# EarlyStopping and its kind look for a metric's direction in such a list only.
from keras.src.trainers.compile_utils import MetricsList
from keras.src.trainers.data_adapters import array_slicing, get_data_adapter
from tensorflow.python.autograph.core import ag_ctx, converter
from tensorflow.python.eager import context

from cascade_keras import replicas
from cascade_keras.errors import InputError

_OLDEST = (3, 15)
_AS_THEY_ARE = "cascade_keras", "keras", "tensorflow"  # packages that need no AutoGraph


def converted(function: Callable) -> Callable:
    """Return a function that AutoGraph brings into a graph, whose own graph may do without it.

    Ours say ``tf.while_loop`` and ``tf.cond`` themselves, and reading their source took a third of
    the time that a graph takes to make. A user's function may have an ``if`` of a tensor. What
    Keras calls itself, as ``call`` of a layer, it does not let AutoGraph see either.
    """
    package = (getattr(function, "__module__", None) or "").partition(".")[0]
    if isinstance(function, keras.Layer) or package in _AS_THEY_ARE:
        return function
    options = converter.ConversionOptions(recursive=True)
    context = ag_ctx.ControlStatusCtx(ag_ctx.Status.ENABLED, options)
    in_graph = tf.__internal__.autograph.tf_convert(function, context)

    def called(*args, **options):
        return (function if tf.executing_eagerly() else in_graph)(*args, **options)

    return called


def check_version(version: str) -> None:
    """Refuse a Keras that nobody would see computing something else.

    Raises:
        InputError: it is older than those that the package was tried with.
    """
    if tuple(map(int, version.split(".")[:2])) < _OLDEST:
        needed = ".".join(map(str, _OLDEST))
        raise InputError(
            f"needs Keras {needed}, this is {version}; older ones count a network's regularisers "
            f"several times, or cannot read its files: pip install 'keras>={needed}'"
        )


check_version(keras.__version__)


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

    def _make_function(self, step_function):
        """Leave what a step returns as it is where Keras would reduce it over several workers."""
        function = super()._make_function(step_function)
        if not isinstance(self.distribute_strategy, tf.distribute.MultiWorkerMirroredStrategy):
            return function

        def of_this_worker(iterator):
            with _exchanged(trainer, "reduce_per_replica", lambda own: _of_this_worker):
                return function(iterator)

        return of_this_worker

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


class _WholeMean(keras.metrics.Mean):
    """A mean that each replica has the whole of; Keras would add up what replicas have."""

    def add_variable(self, shape, initializer, dtype=None, aggregation="none", name=None):
        del aggregation
        with keras.name_scope(self.name):
            variable = keras.Variable(
                initializer, shape, dtype, trainable=False, aggregation="none", name=name
            )
        self._tracker.add_to_store("variables", variable)
        return variable


def directed_mean(name: str, direction: str | None, *, whole: bool = False) -> keras.metrics.Mean:
    """Return a mean of which callbacks know whether "up" or "down" is better.

    With ``whole`` every replica counts the whole batch, else its own part of it.
    """
    metric = (_WholeMean if whole else keras.metrics.Mean)(name=name)
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
    """Return the numbers of a network's layers that are not trainable, among ``all_layers``."""
    return [number for number, layer in enumerate(all_layers(network)) if not layer.trainable]


def all_layers(network: keras.Model) -> list[keras.Layer]:
    """Return a network's layers, those inside of others too.

    ``layers`` of a model by subclassing does not have those that its layers hold.
    """
    return network._flatten_layers(include_self=False)


def has_own_statistics(layer: keras.Layer) -> bool:
    """Whether a layer itself, not one inside of it, has variables that are not trained.

    Seeds are none, and neither is what the data were adapted to before.
    """
    inside = {id(each) for part in layer._layers for each in part.variables}
    own = [each for each in layer.non_trainable_variables if id(each) not in inside]
    own = [each for each in own if "seed_generator" not in each.path]
    return bool(own) and not isinstance(layer, keras.layers.Normalization | keras.Model)


def averages_of(
    optimizer: keras.optimizers.Optimizer,
) -> list[tuple[keras.Variable, keras.Variable]] | None:
    """Return each variable that an optimizer moves, and its moving average; None without."""
    inner = getattr(optimizer, "inner_optimizer", optimizer)
    if not getattr(inner, "use_ema", False) or not inner.built:
        return None
    pairs = zip(inner._trainable_variables, inner._model_variables_moving_average, strict=True)
    return [(variable, average) for variable, average in pairs if average is not None]


def precisions(network: keras.Model) -> list[str]:
    """Return the dtype policies of a network's layers, without float32 where there are others."""
    found = {layer.dtype_policy.name for layer in all_layers(network) if layer.weights}
    return sorted(found - {"float32"}) or ["float32"]


# A step that several replicas share.


def configure_coordination(
    resolver: tf.distribute.cluster_resolver.ClusterResolver, timeout: float
) -> None:
    """Let TensorFlow's workers not wait for each other longer than so many seconds.

    ``MultiWorkerMirroredStrategy`` itself waits for an hour, and has no argument for it.

    Raises:
        RuntimeError: TensorFlow was used before.
    """
    jobs = resolver.cluster_spec().as_dict()
    named = [name for name in ("chief", "worker") if name in jobs]
    if context.context()._context_handle:
        raise RuntimeError("its devices are in use")
    config = tf.compat.v1.ConfigProto().experimental.coordination_config
    for name in named:
        config.coordinated_job_list.add(name=name, num_tasks=len(jobs[name]))
    context.context().configure_coordination_service(
        service_type="standalone",
        service_leader=f"/job:{named[0]}/task:0",
        cluster_register_timeout_in_ms=round(1000 * timeout),
        heartbeat_timeout_in_ms=round(1000 * min(timeout, _SILENCE)),
        coordinated_jobs=list(config.coordinated_job_list),
    )


def end_other_workers(text: str) -> None:
    """Let what the other workers wait in fail with this text, as TensorFlow's AbortedError.

    Where workers are not connected, nothing happens.
    """
    with contextlib.suppress(ValueError, tf.errors.OpError):
        context.context().report_error_to_cluster(tf.errors.ABORTED, text)


_SILENCE = 60.0  # seconds after which a process that sends nothing is taken for dead


def _of_this_worker(values, strategy: tf.distribute.Strategy, reduction: str):
    """Return the first replica's values: each has those of the whole batch.

    Keras would reduce numbers along an axis that they do not have.
    """
    del reduction
    return tf.nest.map_structure(lambda each: strategy.experimental_local_results(each)[0], values)


@contextlib.contextmanager
def gradients_are_sums(optimizer: keras.optimizers.Optimizer, summed: bool) -> Iterator[None]:
    """Within: an optimizer takes the gradients as they are; it would sum them once more."""
    inner = getattr(optimizer, "inner_optimizer", optimizer)
    if not summed:
        yield
        return
    with _exchanged(inner, "_all_reduce_sum_gradients", lambda own: lambda pairs: pairs):
        yield


@contextlib.contextmanager
def statistics_of_all_replicas() -> Iterator[None]:
    """Within: batch norms of Keras take their statistics of the images of all replicas.

    ``synchronized=True`` does so too, but is a part of the layer, takes the variance as a
    difference that cancels, and leaves masks out.
    """

    def synchronised(own):
        @functools.wraps(own)
        def moments(layer, inputs, mask):
            if replicas.current() is None:
                return own(layer, inputs, mask)
            weights = None if mask is None else tf.cast(mask, inputs.dtype)[..., None]
            near = tf.cast(layer.moving_mean.value, inputs.dtype)
            return replicas.moments(inputs, layer._reduction_axes, near, weights)[:2]

        return moments

    with _exchanged(keras.layers.BatchNormalization, "_moments", synchronised):
        yield


@contextlib.contextmanager
def _exchanged(holder, name: str, make) -> Iterator[None]:
    """Within: an attribute is what ``make`` makes of it, until the last replica is out again."""
    key = id(holder), name
    with _LOCK:
        users, own = _EXCHANGED.get(key, (0, vars(holder).get(name)))
        if not users:
            _set(holder, name, make(getattr(holder, name)))
        _EXCHANGED[key] = users + 1, own
    try:
        yield
    finally:
        with _LOCK:
            users, own = _EXCHANGED.pop(key)
            if users > 1:
                _EXCHANGED[key] = users - 1, own
            else:
                _set(holder, name, own)


_EXCHANGED: dict[tuple[int, str], tuple] = {}  # how many are within, and what was there before


def _set(holder, name: str, value) -> None:
    """Set an attribute of a class, a module or, past what Keras does about it, an object."""
    if isinstance(holder, type | types.ModuleType):
        setattr(holder, name, value)
    elif value is None:
        object.__delattr__(holder, name)
    else:
        object.__setattr__(holder, name, value)


# Random numbers of layers, the same for both images of a pair.

_DRAWS = ("uniform", "normal", "truncated_normal", "randint", "gamma", "beta", "binomial",
          "categorical")  # fmt: skip


class _Pairs(NamedTuple):
    """What ``paired_draws`` is given: of the whole batch, and of the images that are here."""

    count: int | tf.Tensor
    k: int | tf.Tensor
    here: int | tf.Tensor | None = None
    rows: tf.Tensor | None = None


_PAIRS = threading.local()  # replicas are traced in threads
_LOCK = threading.Lock()
_OWN: dict = {}  # Keras's own functions while there are pairs anywhere
_USERS = [0]


@contextlib.contextmanager
def paired_draws(
    count: int | tf.Tensor, k: int | tf.Tensor, part: tuple | None = None
) -> Iterator[None]:
    """Within: layers draw the same for the i-th image of a batch as for the (k + i)-th, i < k.

    What is drawn for each image has as many rows as there are images, or several for each; those
    of the first k images are exchanged for their partners'. Nothing else of the draws changes, and
    a network that draws nothing gets no operation more.

    Args:
        count: images of the batch.
        k: pairs; of the whole batch, where these images are a part of it.
        part: the places of the images in the whole batch, int32 (count,), and how many it has:
            what is drawn for images is drawn for those.
    """
    with _LOCK:
        _USERS[0] += 1
        if _USERS[0] == 1:
            _replace_draws()
    before = getattr(_PAIRS, "now", None)
    _PAIRS.now = _Pairs(count, k) if part is None else _Pairs(part[1], k, count, part[0])
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
        pairs = getattr(_PAIRS, "now", None)
        if pairs is None or rate in (0, 1):
            return own_dropout(inputs, rate, noise_shape, seed)
        given = tf.shape(inputs)
        if noise_shape is not None:
            given = [given[i] if side is None else side for i, side in enumerate(noise_shape)]

        def draw(shape):
            return own_dropout(
                tf.ones(shape, inputs.dtype), rate, None, seed
            )  # 0, or 1 / (1 - rate)

        if pairs.rows is None:
            kept = _of_partners(draw(given), pairs)
        else:
            kept = _of_part(draw, given, pairs)
        return tf.ensure_shape(inputs * kept, inputs.shape)

    backend_random.dropout = dropout


def _paired(draw):
    bind = inspect.signature(draw).bind

    @functools.wraps(draw)
    def drawn(*args, **kwargs):
        pairs = getattr(_PAIRS, "now", None)
        if pairs is None:
            return draw(*args, **kwargs)
        if pairs.rows is None:
            return _of_partners(draw(*args, **kwargs), pairs)
        # The first argument is the shape of what is drawn, or has a row of logits for each image.
        (_, given), *rest = bind(*args, **kwargs).arguments.items()
        return _of_part(lambda first: draw(first, **dict(rest)), given, pairs)

    return drawn


def _of_part(draw, given, pairs: _Pairs) -> tf.Tensor:
    """Return what is drawn for these images, of what is drawn for the whole batch.

    Args:
        draw: (shape, or logits of images) -> values.
        given: that, for these images.
    """
    logits = tf.is_tensor(given) and given.shape.rank == 2
    shape = tf.shape(given) if logits else tf.convert_to_tensor(given, tf.int32)
    known = tf.TensorShape(tf.get_static_value(shape, partial=True))
    if shape.shape[0] == 0:
        return draw(given)
    # What has no row for each image, or several for each, is the same for all.
    of_images = (shape[0] % pairs.here == 0) & (shape[0] > 0)
    each = tf.maximum(shape[0] // pairs.here, 1)
    first = pairs.rows[:, None] * each + tf.range(each)
    rows = tf.cond(of_images, lambda: tf.reshape(first, [-1]), lambda: tf.range(shape[0]))
    count = tf.where(of_images, pairs.count * each, shape[0])
    whole = tf.concat([[count], shape[1:]], axis=0)
    _PAIRS.now = None  # some draw by others
    try:
        values = draw(tf.scatter_nd(rows[:, None], given, whole) if logits else whole)
    finally:
        _PAIRS.now = pairs
    values = tf.gather(_of_partners(values, pairs), rows)
    return values if logits or known.rank is None else tf.ensure_shape(values, known)


def _of_partners(values: tf.Tensor, pairs: _Pairs) -> tf.Tensor:
    """Return what was drawn, with the rows of the first k images those of their partners."""
    count, k = pairs.count, pairs.k
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
    layers = [network, *all_layers(network)]
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
