"""A step on several devices that is the step of one: which images a replica has, and sums over all.

Under a ``tf.distribute`` strategy each replica is given a part of a batch, and gradients are
summed. So a replica draws for the whole batch and takes its rows, and what is divided by a number
of images is divided by that of the whole batch. With one replica nothing is added.
"""

from __future__ import annotations

import contextlib
import contextvars
import dataclasses
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import tensorflow as tf


class Part(NamedTuple):
    """Which part of a whole batch these images are.

    Attributes:
        rows: int32 (n,), the places in the whole batch of these images, ascending.
        total: int32, images of the whole batch.
        crafted: int32, how many of the whole batch bring adversarial images along.
    """

    rows: tf.Tensor
    total: tf.Tensor
    crafted: tf.Tensor


@dataclasses.dataclass
class Share:
    """The part of a step's batch that this replica has.

    Attributes:
        rows: int32 (n,), the places in the whole batch of its images, ascending.
        total: images of the whole batch.
        attacked: how many of the whole batch are attacked, its first ones.
        own: how many of these are images of the network itself, the first ones.
        crafted: how many are crafted before the step.
        tally, tallied: what is counted for metrics, and of which.
    """

    rows: tf.Tensor
    total: tf.Tensor
    attacked: tf.Tensor | int = 0
    own: tf.Tensor | int = 0
    crafted: tf.Tensor | int = 0
    tally: Tally = dataclasses.field(default_factory=lambda: Tally())
    tallied: list[str] = dataclasses.field(default_factory=list)

    def before(self, place: tf.Tensor | int) -> tf.Tensor:
        """Return how many of its images come before a place in the whole batch."""
        return tf.reduce_sum(tf.cast(self.rows < place, tf.int32))


_SHARE: contextvars.ContextVar[Share | None] = contextvars.ContextVar("share", default=None)


def count() -> int:
    """Return how many replicas there are; 1 outside of them."""
    context = tf.distribute.get_replica_context()
    return 1 if context is None else context.num_replicas_in_sync


def current() -> Share | None:
    """Return this replica's share of the step under way; None where it is the whole."""
    return _SHARE.get()


@contextlib.contextmanager
def sharing(images: tf.Tensor, part: Part | None = None) -> Iterator[Share | None]:
    """Within a step: these images (n, ...) are the share of this replica.

    Args:
        part: which; where None, the replicas' images follow each other.
    """
    if count() == 1:
        yield None
        return
    if part is not None:
        share = Share(part.rows, part.total, crafted=part.crafted)
    else:
        context = tf.distribute.get_replica_context()
        counts = context.all_gather(tf.shape(images)[:1], axis=0)
        first = tf.reduce_sum(counts[: context.replica_id_in_sync_group])
        share = Share(first + tf.range(tf.shape(images)[0]), tf.reduce_sum(counts))
    token = _SHARE.set(share)
    try:
        yield share
    finally:
        _SHARE.reset(token)


def variables_of(variable) -> tuple[tf.Variable, ...]:
    """Return the variables that each replica here has of one."""
    shared = isinstance(variable, tf.distribute.DistributedValues)
    return tuple(variable.values) if shared else (variable,)


def total(value):
    """Return the sum of a tensor, or of each of several, over all replicas; with a gradient."""
    if count() == 1:
        return value
    if not isinstance(value, list):
        value = tf.convert_to_tensor(value)
    context = tf.distribute.get_replica_context()
    return context.all_reduce(tf.distribute.ReduceOp.SUM, value)


def total_of_all(values: Sequence[tf.Tensor]) -> list[tf.Tensor]:
    """Return the sums of several tensors over all replicas, by one exchange for each type."""
    found: dict[int, tf.Tensor] = {}
    for dtype in dict.fromkeys(value.dtype for value in values):
        own = [i for i, value in enumerate(values) if value.dtype == dtype]
        sizes = [tf.size(values[i]) for i in own]
        summed = total(tf.concat([tf.reshape(values[i], [-1]) for i in own], axis=0))
        for i, part in zip(own, tf.split(summed, sizes, num=len(own)), strict=True):
            found[i] = tf.ensure_shape(tf.reshape(part, tf.shape(values[i])), values[i].shape)
    return [found[i] for i in range(len(values))]


def mean(values: tf.Tensor) -> tf.Tensor:
    """Return the mean of a tensor's values over all replicas; with a gradient."""
    if count() == 1:
        return tf.reduce_mean(values)
    sums = tf.stack([tf.reduce_sum(values), tf.cast(tf.size(values), values.dtype)])
    summed = total(sums)
    return summed[0] / summed[1]


def moments(values: tf.Tensor, axes: Sequence[int], near: tf.Tensor, weights=None):
    """Return mean and variance over all replicas, and of how many values; with a gradient.

    One exchange gives all three. Replicas compare their means with ``near``, so that nothing
    cancels where it is about the mean, as the moving mean of a batch norm is.

    Args:
        values: of any shape.
        axes: over which they are taken.
        near: of the remaining shape; no gradient flows through it.
        weights: of the values, as ``tf.nn.weighted_moments`` takes them; 1 where None.

    Returns:
        Mean, variance and number, or sum of the weights, each of the remaining shape.
    """
    near = tf.stop_gradient(near)
    if weights is None:
        mean, variance = tf.nn.moments(values, axes)
        number = tf.cast(tf.size(values) // tf.size(mean), values.dtype) + tf.zeros_like(near)
    else:
        mean, variance = tf.nn.weighted_moments(values, axes, weights)
        number = tf.reduce_sum(tf.broadcast_to(weights, tf.shape(values)), axes)
    some = number > 0  # a replica may have no image
    apart = tf.where(some, mean - near, 0.0)
    variance = tf.where(some, variance, 0.0)
    sums = [number * apart, number * (variance + tf.square(apart)), number]
    first, second, number = tf.unstack(total(tf.stack(sums)))
    apart = tf.math.divide_no_nan(first, number)
    variance = tf.maximum(tf.math.divide_no_nan(second, number) - tf.square(apart), 0.0)
    return near + apart, variance, number


def part(value):
    """Return a replica's part of what every replica adds: sums over replicas are the whole."""
    replicas = count()
    return value if replicas == 1 else value / replicas


class Tally:
    """Numbers of a step that are summed over all replicas by one exchange.

    Add them on every replica in the same order; ``close`` returns those of the whole batch.
    """

    def __init__(self):
        self._sums: list[tf.Tensor] = []
        self._largest: list[tf.Tensor] = []
        self._rows: list[tuple[str, int]] = []

    def add_mean(self, values, weights=None) -> None:
        """Add values of this replica's images, of which the weighted mean is wanted."""
        values = tf.cast(values, tf.float32)
        weights = tf.ones_like(values) if weights is None else tf.cast(weights, tf.float32)
        weights = tf.broadcast_to(weights, tf.shape(values))
        self._rows.append(("mean", len(self._sums)))
        self._sums += [tf.reduce_sum(values * weights), tf.reduce_sum(weights)]

    def add_part(self, value, weight) -> None:
        """Add this replica's part of a number of the whole batch, and what the whole weighs."""
        self._rows.append(("part", len(self._sums)))
        weight = tf.cast(weight, tf.float32)
        self._sums += [tf.cast(value, tf.float32), part(weight)]

    def add_largest(self, value) -> None:
        """Add a number of which the largest is wanted."""
        self._rows.append(("largest", len(self._largest)))
        self._largest.append(tf.cast(value, tf.float32))

    def close(self) -> list[tuple[tf.Tensor, tf.Tensor]]:
        """Return (value, weight) of each, in the order in which they were added."""
        replicas = count()
        context = tf.distribute.get_replica_context()
        place = [[context.replica_id_in_sync_group]]
        each = [tf.scatter_nd(place, value[None], [replicas]) for value in self._largest]
        summed = total(tf.concat([tf.stack(self._sums), *each], axis=0))
        sums, largest = summed[: len(self._sums)], summed[len(self._sums) :]
        found = []
        for kind, number in self._rows:
            if kind == "largest":
                own = largest[number * replicas : (number + 1) * replicas]
                found.append((tf.reduce_max(own), tf.constant(1.0)))
            else:
                value, weight = sums[number], sums[number + 1]
                mean = value if kind == "part" else tf.math.divide_no_nan(value, weight)
                found.append((mean, weight))
        return found
