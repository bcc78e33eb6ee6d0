"""The moving average of a network's weights, with batch-norm statistics that belong to it.

An optimizer with ``use_ema`` averages the weights that it moves; the moving statistics of batch
norms belong to the weights of each step. Under averaged weights the activations are others, so the
statistics are estimated anew: as stochastic weight averaging does (Izmailov et al. 2018), the mean
over some training batches of each batch's mean and variance, in training mode.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator, Sequence

import keras
import numpy as np
import tensorflow as tf

from cascade_keras import draws
from cascade_keras.data.given import in_one_line
from cascade_keras.errors import InputError
from cascade_keras.keras_private import (
    all_layers,
    as_dataset,
    averages_of,
    has_own_statistics,
    random_states,
)
from cascade_keras.layers import ConvBatchNorm

BATCHES = 50


def averaged_network(trainer, x, y=None, *, batches: int = BATCHES, batch_size: int = 128):
    """Give a trainer's network its weights' average for good, and statistics that belong to it.

    ``fit`` itself ends with the average, but leaves the statistics of the last weights.

        trainer.compile(keras.optimizers.SGD(0.1, use_ema=True, ema_momentum=0.999))
        trainer.fit(x_train, y_train, epochs=30)
        network = ck.averages.averaged_network(trainer, x_train, y_train)

    Args:
        trainer: an ``AdversarialTrainer`` whose optimizer averages.
        x, y: training data as ``fit`` takes them, in the network's range; the first ``batches``
            batches are shown, as they are trained on: adversarial images among them.
        batches: how many, at most.
        batch_size: of arrays.

    Returns:
        ``trainer.network``, changed in place.

    Raises:
        InputError: the optimizer averages nothing, or there are no data.
    """
    if averages_of(trainer.optimizer) is None:
        raise InputError("averages no weights; compile with one that is told use_ema", "optimizer")
    _check_batches(batches)
    given = as_dataset(x, y, batch_size).take(batches)
    with in_one_line():
        settle(trainer, given)
    return trainer.network


@contextlib.contextmanager
def averaged(trainer, given: Iterable) -> Iterator[None]:
    """Within: the network is the average, statistics included; behind it, it is bit-equal again.

    Where the optimizer averages nothing, nothing happens.

    Args:
        trainer: an ``AdversarialTrainer``.
        given: batches as ``fit`` is given them, for the statistics.
    """
    if averages_of(trainer.optimizer) is None:
        yield
        return
    kept = [(variable, variable.numpy()) for variable in trainer.network.variables]
    try:
        settle(trainer, given)
        yield
    finally:
        for variable, value in kept:
            variable.assign(value)


def settle(trainer, given: Iterable) -> None:
    """Give the network the average and its statistics; nothing where the optimizer averages none.

    Args:
        trainer: an ``AdversarialTrainer``.
        given: batches as ``fit`` is given them; with none the statistics stay.
    """
    pairs = averages_of(trainer.optimizer)
    if pairs is None:
        return
    for variable, average in pairs:
        variable.assign(average.numpy())
    estimate_statistics(trainer, given)


def estimate_statistics(trainer, given: Iterable, *, mixed: bool = True) -> None:
    """Set each batch norm's statistics to the mean of those of some batches.

    First of the clean images; then, of a training with adversarial images, of the batches as a step
    would show them, whose adversarial images are made of the network with the first statistics.
    Everything else that a network changes in training mode, such as counters and the vectors of a
    spectral normalisation, is as it was. Layers that are frozen keep their statistics, and so do
    those of ``left_alone``.

    Args:
        trainer: an ``AdversarialTrainer``, its network as it is to be.
        given: batches as ``fit`` is given them; it is gone through twice.
        mixed: whether the adversarial images count; else those of the clean ones alone do.

    Raises:
        InputError: no batches, of a network with batch norms.
    """
    layers = batch_norms(trainer.network)
    if not layers:
        return
    statistics = [each for layer in layers for each in (layer.moving_mean, layer.moving_variance)]
    for attacked in (False, True) if mixed and trainer.spec.attacks else (False,):
        found = _means(trainer, layers, statistics, given, attacked)
        for variable, value in zip(statistics, found, strict=True):
            variable.assign(value)


def _means(trainer, layers: list, statistics: list, given: Iterable, attacked: bool) -> list:
    """Return the mean over batches of each of the statistics; the network is as it was then."""
    states = random_states(trainer.network)
    held = [variable for variable in trainer.network.variables if not variable.trainable]
    kept = [(variable, variable.numpy()) for variable in [*held, *states, trainer.steps]]
    momenta = [layer.momentum for layer in layers]
    sums, count = [np.zeros(each.shape) for each in statistics], 0

    # Two graphs, as the momenta are a part of one: it is only ever traced below, where they are 0.
    made = trainer.graph(f"images {attacked}", lambda data: trainer.images_of(data, attacked))
    show = trainer.graph("shown", lambda images: trainer.border(images, training=True).logits)

    def back() -> None:
        for variable, value in kept:
            variable.assign(value)

    try:
        for layer in layers:  # the moving statistics are then those of the last batch alone
            layer.momentum = 0.0
        for data in given:
            drawn = draws.layer_states(trainer.options.seed, count, len(states))
            for state, value in zip(states, tf.unstack(drawn), strict=True):
                state.assign(tf.cast(value, state.dtype))
            show(made(data))
            for total, each in zip(sums, statistics, strict=True):
                total += each.numpy()
            count += 1
            back()
    finally:
        for layer, momentum in zip(layers, momenta, strict=True):
            layer.momentum = momentum
        back()
    if not count:
        raise InputError("there are no batches to estimate the statistics of batch norms by", "x")
    return [(total / count).astype(np.float32) for total in sums]


def batch_norms(network: keras.Model) -> list:
    """Return the batch norms that move their statistics in training, those inside of others too."""
    kinds = (keras.layers.BatchNormalization, ConvBatchNorm)
    found = [each for each in all_layers(network) if isinstance(each, kinds) and each.trainable]
    return [each for each in found if not getattr(each, "renorm", False)]


def left_alone(network: keras.Model) -> Sequence[str]:
    """Return the layers with statistics of their own that stay those of the last weights.

    Batch renormalisation corrects by its statistics in training as well, so they cannot be had from
    single batches; what other layers keep is theirs to say.
    """
    names = {each.name for each in batch_norms(network)}
    return [
        layer.name
        for layer in all_layers(network)
        if layer.name not in names and layer.trainable and has_own_statistics(layer)
    ]


def _check_batches(batches: int) -> None:
    if batches != int(batches) or batches < 1:
        raise InputError(f"must be a whole number above 0, got {batches}", "batches")
