"""A step on several devices that is the step of one: which images a replica has, and sums over all.

Under a ``tf.distribute`` strategy each replica is given a part of a batch, in order, and gradients
are summed. So a replica draws for the whole batch and takes its part, and what is divided by a
number of images is divided by that of the whole batch. With one replica nothing is added.
"""

from __future__ import annotations

import contextlib
import contextvars
import dataclasses
from collections.abc import Iterator

import tensorflow as tf


@dataclasses.dataclass
class Share:
    """The part of a step's batch that this replica has.

    Attributes:
        first: the place in the whole batch of its first image.
        total: images of the whole batch.
        attacked: how many of the whole batch are attacked, its first ones.
    """

    first: tf.Tensor
    total: tf.Tensor
    attacked: tf.Tensor | int = 0


_SHARE: contextvars.ContextVar[Share | None] = contextvars.ContextVar("share", default=None)


def count() -> int:
    """Return how many replicas there are; 1 outside of them."""
    context = tf.distribute.get_replica_context()
    return 1 if context is None else context.num_replicas_in_sync


def current() -> Share | None:
    """Return this replica's share of the step under way; None where it is the whole."""
    return _SHARE.get()


@contextlib.contextmanager
def sharing(images: tf.Tensor) -> Iterator[Share | None]:
    """Within a step: find the share that these images (n, ...) are of all replicas' images."""
    if count() == 1:
        yield None
        return
    context = tf.distribute.get_replica_context()
    counts = context.all_gather(tf.shape(images)[:1], axis=0)
    number = context.replica_id_in_sync_group
    share = Share(tf.reduce_sum(counts[:number]), tf.reduce_sum(counts))
    token = _SHARE.set(share)
    try:
        yield share
    finally:
        _SHARE.reset(token)


def total(value):
    """Return the sum of a tensor, or of each of several, over all replicas; with a gradient."""
    if count() == 1:
        return value
    if not isinstance(value, list):
        value = tf.convert_to_tensor(value)
    context = tf.distribute.get_replica_context()
    return context.all_reduce(tf.distribute.ReduceOp.SUM, value)


def largest(value: tf.Tensor) -> tf.Tensor:
    """Return the largest of a scalar over all replicas."""
    if count() == 1:
        return value
    return tf.reduce_max(tf.distribute.get_replica_context().all_gather(value[None], axis=0))


def mean(values: tf.Tensor) -> tf.Tensor:
    """Return the mean of a tensor's values over all replicas; with a gradient."""
    if count() == 1:
        return tf.reduce_mean(values)
    sums = tf.stack([tf.reduce_sum(values), tf.cast(tf.size(values), values.dtype)])
    summed = total(sums)
    return summed[0] / summed[1]


def part(value):
    """Return a replica's part of what every replica adds: sums over replicas are the whole."""
    replicas = count()
    return value if replicas == 1 else value / replicas
