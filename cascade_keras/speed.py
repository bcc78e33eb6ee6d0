"""How fast a network's gradients are here, and of how many images at a time they are fastest."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
import tensorflow as tf

from cascade_keras import attacks
from cascade_keras.errors import InputError
from cascade_keras.settings import AUTO
from cascade_keras.workers import Worker

SIZES = (32, 64, 128, 256, 512, 1024, 2048)
_TIMES = 3  # that a gradient is taken; the fastest counts, as a machine may be busy with others
_LIKE_THE_BEST = 1.03  # times the best time: the smallest such batch is taken, it needs less memory
_WORTH_GOING_ON = 1.25  # times the best time: larger batches than such a one are not tried
_SECONDS = 20.0  # after which no larger batch is tried


class BatchSize(NamedTuple):
    """How many images at a time are fastest.

    Attributes:
        chosen: so many.
        seconds: by number of images, what a gradient of one of them takes.
    """

    chosen: int
    seconds: dict[int, float]

    def __str__(self) -> str:
        tried = ", ".join(f"{size} {1e3 * each:.3g}" for size, each in self.seconds.items())
        return f"batch_size {self.chosen}, by the ms of an image's gradient in batches of: {tried}"


def gradient_seconds(
    logits_fn: attacks.LogitsFn, images: Sequence, labels: Sequence, times: int = _TIMES
) -> float:
    """Return the seconds that the gradient of an image takes, once it is compiled.

    Args:
        logits_fn: images (batch, H, W, C) in [0, 1] -> logits.
        images, labels: of one batch.
        times: that it is taken; the fastest counts.
    """
    images, labels = tf.constant(images), tf.constant(labels, tf.int32)
    objective = attacks.cross_entropy(labels)
    function = tf.function(
        lambda given: attacks.input_gradient(logits_fn, given, objective), autograph=False
    )
    function(images)
    taken = []
    for _ in range(times):
        started = time.perf_counter()
        function(images).numpy()
        taken.append(time.perf_counter() - started)
    return min(taken) / len(images)


def settled(
    begun: int | None, place: object, worker: Worker | None, measure: Callable[[], BatchSize]
) -> tuple[int, str]:
    """Return what stands for a batch size that nobody says, and a sentence of it.

    Args:
        begun: the one of what is gone on with; None where nothing is begun.
        place: where that lies, for the sentence.
        worker: which of several processes this is, each of which would measure another one.
        measure: finds the fastest.

    Raises:
        InputError: nothing is begun, and there are several processes.
    """
    if begun is not None:
        return begun, f"batch_size {begun}, with which {place} was begun"
    if worker is not None:
        raise InputError(
            f"{AUTO} would be another number for each worker; give all of them one", "batch_size"
        )
    found = measure()
    return found.chosen, str(found)


def fastest_batch_size(
    logits_fn: attacks.LogitsFn, images: Sequence, labels: Sequence, count: int
) -> BatchSize:
    """Measure gradients in batches of several sizes, for some seconds.

    Args:
        logits_fn: images (batch, H, W, C) in [0, 1] -> logits.
        images: float32 in [0, 1] where they are counted up, such as ``data.NetworkImages``.
        labels: classes.
        count: how many of them are attacked.

    Returns:
        The smallest size that is as fast as any. One that does not fit into the memory of a device
        is none.
    """
    sizes = [size for size in SIZES if size < count]
    if count <= SIZES[-1]:
        sizes.append(count)
    seconds: dict[int, float] = {}
    started = time.perf_counter()
    for size in sizes:
        first = np.arange(size)
        try:
            seconds[size] = gradient_seconds(logits_fn, images[first], labels[first])
        except tf.errors.ResourceExhaustedError:
            break
        late = time.perf_counter() - started > _SECONDS
        if late or seconds[size] > _WORTH_GOING_ON * min(seconds.values()):
            break
    if not seconds:  # not even the smallest fits: what takes it will say so
        return BatchSize(sizes[0], {})
    best = min(seconds.values())
    chosen = next(size for size, each in seconds.items() if each <= _LIKE_THE_BEST * best)
    return BatchSize(chosen, seconds)
