"""Every random draw of training, attacks and evaluation: one key a purpose.

All draws are stateless, so that a step's numbers follow from (seed, step) alone: a run that goes on
after a kill draws what it would have drawn. TensorFlow's own state is never used.

    purpose               key                              draws
    batch order           fold_in([seed, 0], epoch)        a permutation of the dataset
    crop                  fold_in([seed, 1], step)         top and left, (batch, 1), uniform
    flip                  fold_in([seed, 5], step)         (batch, 1), one in two
    epsilon               split([seed, step], 3)[0]        (k,), see ``sample_epsilon``
    jitter of epsilon     split([seed, step], 3)[1]        (k, H, W, C), N(0, 1)
    a training attack     split([seed, step], 3)[2]        the attack's own: step_rand, starts
    cascade source        split(fold_in([seed, 2], step), 2)[0]    (c,), uniform
    cascade epsilon       split(fold_in([seed, 2], step), 2)[1]    (c,), see ``sample_epsilon``
    ensemble attacker     fold_in([seed, 3], step)         one number, uniform
    layers' own draws     fold_in([seed, 6], step)         (layers, 2), whole numbers: their states
    noise at evaluation   fold_in([seed, 4], first image)  (batch, H, W, C), N(0, 1)
    attack at evaluation  [seed, first image]              the attack's own: the next two
    step_rand             the attack's seed                (batch, H, W, C), N(0, 1)
    pgd's starts          fold_in(the attack's seed, number of the start)    uniform on (-1, 1)
    starts of one step    fold_in(the attack's seed, 0)    uniform on (-1, 1), or signs of these
    searches              fold_in(fold_in([seed, 7], image), number)    the search's own, an image
    probes of networks    [0, 0]                           (count, H, W, C), uniform on (0, 1)
    held-out images       NumPy's default_rng([seed, 8])   a permutation of each class, by class
    images of a figure    NumPy's default_rng(seed)        which images of a split are drawn

k and c are the numbers of adversarial and of cascade images of a batch. A validation step attacks
with [seed, 0].
"""

from __future__ import annotations

import contextlib
import contextvars
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import numpy as np
import tensorflow as tf

# Of stateless draws; left to itself, TensorFlow would choose another one on another kind of device.
GENERATOR = "philox"

# What a seed is used for, where it is folded in.
_BATCH_ORDER, _CROP, _CASCADE, _ENSEMBLE, _NOISE, _FLIP, _LAYERS, _SEARCH = range(8)


def _key(seed: int, purpose: int, number) -> tf.Tensor:
    return tf.random.fold_in([seed, purpose], tf.cast(number, tf.int32), alg=GENERATOR)


def _uniform(shape, key) -> tf.Tensor:
    return tf.random.stateless_uniform(shape, key, alg=GENERATOR)


# Batches.


def order_key(seed: int, epoch) -> tf.Tensor:
    """Return the key of an epoch's permutation, int32 (2,)."""
    return _key(seed, _BATCH_ORDER, epoch)


def shuffled(places: tf.Tensor, size: int, seed: int, epoch) -> tf.Tensor:
    """Return which image is at each place of an epoch, int64, of the permutation of ``size``."""
    key = tf.cast(order_key(seed, epoch), tf.int64)
    return tf.random.experimental.index_shuffle(places, key, tf.constant(size - 1, tf.int64))


def crops(seed: int, step, count: int, rows: int, columns: int) -> tuple[tf.Tensor, tf.Tensor]:
    """Return the top (one of ``rows``) and the left of each image's crop, int32 (count, 1)."""
    drawn = _uniform([2, count, 1], _key(seed, _CROP, step))
    return tf.cast(drawn[0] * rows, tf.int32), tf.cast(drawn[1] * columns, tf.int32)


def held_out(labels: np.ndarray, count: int, seed: int) -> np.ndarray:
    """Return which training images are held back for validation, (count,) indices, ascending.

    Each class has its share, the fractions that are left going to the largest ones first.
    """
    draw = np.random.default_rng([seed, 8])
    classes, sizes = np.unique(labels, return_counts=True)
    shares = count * sizes.astype(np.int64) / len(labels)
    each = np.floor(shares).astype(np.int64)
    more = np.argsort(each - shares, kind="stable")[: count - each.sum()]
    each[more] += 1
    chosen = [
        draw.permutation(np.flatnonzero(labels == label))[:number]
        for label, number in zip(classes, each, strict=True)
    ]
    return np.sort(np.concatenate(chosen))


def flips(seed: int, step, count: int) -> tf.Tensor:
    """Return whether each image is flipped, one in two, bool (count, 1)."""
    return _uniform([count, 1], _key(seed, _FLIP, step)) >= 0.5


def layer_states(seed: int, step, count: int) -> tf.Tensor:
    """Return the random state of each layer that draws, such as Dropout, int32 (count, 2)."""
    key = _key(seed, _LAYERS, step)
    return tf.random.stateless_uniform([count, 2], key, 0, tf.int32.max, tf.int32, alg=GENERATOR)


# How far a training image is perturbed (appendix A): epsilon drawn for each image.


class StepKeys(NamedTuple):
    """Keys of a step's own images: each image's epsilon, its jitter, the attack's own draws."""

    epsilon: tf.Tensor
    jitter: tf.Tensor
    signs: tf.Tensor


def step_keys(seed: int, step) -> StepKeys:
    """Return the keys of the one-step images of a training step."""
    return StepKeys(*tf.unstack(tf.random.split([seed, tf.cast(step, tf.int32)], 3, alg=GENERATOR)))


def sample_epsilon(sampling: str, count: int, max_epsilon: float, seed) -> tf.Tensor:
    """Draw an epsilon for each image, (count,) float32 in [0, max_epsilon], in 0..255 units.

    Args:
        sampling: "clipped_normal", |N(0, max_epsilon / 2)| clipped to max_epsilon (the paper's);
            "uniform" on [0, max_epsilon]; "max", always max_epsilon; "reversed_normal",
            max_epsilon minus a clipped normal.
        seed: two integers; the same seed gives the same draws.

    Raises:
        ValueError: an unknown sampling.
    """
    if sampling == "max":
        return tf.fill([count], float(max_epsilon))
    if sampling == "uniform":
        return tf.random.stateless_uniform([count], seed, 0.0, max_epsilon, alg=GENERATOR)
    if sampling not in ("clipped_normal", "reversed_normal"):
        raise ValueError(f"epsilon sampling {sampling!r} is none of {', '.join(EPSILON_SAMPLINGS)}")
    normal = tf.abs(tf.random.stateless_normal([count], seed, 0.0, max_epsilon / 2, alg=GENERATOR))
    clipped = tf.minimum(normal, max_epsilon)
    return clipped if sampling == "clipped_normal" else max_epsilon - clipped


EPSILON_SAMPLINGS = ("clipped_normal", "uniform", "max", "reversed_normal")


def jitter_per_pixel(epsilon: tf.Tensor, shape, max_epsilon: float, seed) -> tf.Tensor:
    """Return |epsilon + N(0, 1)| clipped to max_epsilon for every value of every image.

    Args:
        epsilon: (batch,), in 0..255 units.
        shape: of the images, (batch, H, W, C), which is also the result's.
    """
    per_image = tf.reshape(epsilon, [-1, 1, 1, 1])
    noise = tf.random.stateless_normal(shape, seed, alg=GENERATOR)
    return tf.minimum(tf.abs(per_image + noise), max_epsilon)


# Cascade and ensemble training.


class CascadeKeys(NamedTuple):
    """Keys of a step's cascade images: the source of each and its epsilon."""

    source: tf.Tensor
    epsilon: tf.Tensor


def cascade_keys(seed: int, step) -> CascadeKeys:
    """Return the keys of the cascade images of a training step."""
    key = _key(seed, _CASCADE, step)
    return CascadeKeys(*tf.unstack(tf.random.split(key, 2, alg=GENERATOR)))


def choices(shape: Sequence[int], key, count: int) -> tf.Tensor:
    """Return numbers of 0..count - 1, int32, uniform."""
    return tf.random.stateless_uniform(shape, key, 0, count, tf.int32, alg=GENERATOR)


def attacker(seed: int, step, num_sources: int) -> tf.Tensor:
    """Draw which network a step's one-step images come from: 0, itself, or 1..num_sources."""
    return choices([], _key(seed, _ENSEMBLE, step), num_sources + 1)


# Attacks and evaluation.


@contextlib.contextmanager
def of_larger_batch(rows, total) -> Iterator[None]:
    """Within: what is drawn for images is drawn for ``total`` of them, of which they are a part.

    Args:
        rows: the place of each among them, int32.
        total: how many there are, of which attacks are given some.
    """
    token = _PART.set((rows, total))
    try:
        yield
    finally:
        _PART.reset(token)


_PART: contextvars.ContextVar[tuple | None] = contextvars.ContextVar("part", default=None)


def part_of(draw: Callable, shape, *args, **kwargs) -> tf.Tensor:
    """Return ``draw(shape, ...)``, or the rows of these images where others are elsewhere."""
    larger = _PART.get()
    if larger is None:
        return draw(shape, *args, **kwargs)
    rows, total = larger
    whole = draw(tf.concat([[total], shape[1:]], axis=0), *args, **kwargs)
    return tf.gather(whole, rows)


def in_first_half(count: tf.Tensor) -> tf.Tensor:
    """Return whether each of ``count`` images is in the first half of its batch, bool (count,)."""
    larger = _PART.get()
    rows, total = (tf.range(count), count) if larger is None else larger
    return rows < total // 2


def normal_like(images: tf.Tensor, seed) -> tf.Tensor:
    """Return N(0, 1) for each value of the images, in their type: step_rand's noise."""
    return part_of(
        tf.random.stateless_normal, tf.shape(images), seed, dtype=images.dtype, alg=GENERATOR
    )


def start(images: tf.Tensor, seed, number) -> tf.Tensor:
    """Return uniform numbers of (-1, 1) for each value of the images: a start of an attack."""
    key = tf.random.fold_in(seed, number, alg=GENERATOR)
    return part_of(
        tf.random.stateless_uniform,
        tf.shape(images), key, -1.0, 1.0, images.dtype, alg=GENERATOR,
    )  # fmt: skip


def start_signs(images: tf.Tensor, seed) -> tf.Tensor:
    """Return 1 or -1 for each value of the images, one in two: a start of a one-step attack."""
    return tf.where(start(images, seed, 0) < 0, -tf.ones_like(images), tf.ones_like(images))


def attack_seed(seed: int, first) -> tf.Tensor | list:
    """Return the seed of an attack on an evaluation's batch, given the index of its first image."""
    return [seed, first]


def places(first, count: int) -> np.ndarray:
    """Return the place of each of ``count`` images among all, (count,), of that of the first.

    Args:
        first: the place of the first one, or those of all, which are returned.
    """
    return (
        np.asarray(first, np.int32) if np.ndim(first) else first + np.arange(count, dtype=np.int32)
    )


def image_keys(seed: int, images: tf.Tensor) -> tf.Tensor:
    """Return a key for each image of a search, int32 (n, 2), of their places among all, (n,)."""

    def fold(image: tf.Tensor) -> tf.Tensor:
        return tf.random.fold_in([seed, _SEARCH], image, alg=GENERATOR)

    return tf.map_fn(fold, tf.cast(images, tf.int32))


def of_images(draw: Callable, keys: tf.Tensor, number, *args, dtype=tf.float32) -> tf.Tensor:
    """Return what ``draw(key, *args)`` draws for each image, of its own key alone: (n, ...).

    Args:
        draw: such as ``uniform_of``, of a key and ``args``.
        keys: of the images, see ``image_keys``.
        number: of the draw; each has other numbers.
        dtype: of what is drawn.
    """

    def one(key: tf.Tensor) -> tf.Tensor:
        return draw(tf.random.fold_in(key, number, alg=GENERATOR), *args)

    return tf.map_fn(one, keys, fn_output_signature=dtype)


def uniform_of(key, shape, low=-1.0, high=1.0) -> tf.Tensor:
    """Return float32 numbers of (low, high), for ``of_images``."""
    return tf.random.stateless_uniform(shape, key, low, high, alg=GENERATOR)


def noise_seed(seed: int, first) -> tf.Tensor:
    """Return step_rand's seed where noise is added before a network at evaluation."""
    return _key(seed, _NOISE, first)


def probes(count: int, image_shape: Sequence[int]) -> tf.Tensor:
    """Return the images on which networks are compared, (count, H, W, C) in [0, 1)."""
    return _uniform([count, *image_shape], [0, 0])


def coarse_probes(count: int, image_shape: Sequence[int]) -> tf.Tensor:
    """Return images of 5x5 blocks of colour, from dark to bright ones, (count, H, W, C) in [0, 1].

    A trained network's units may all be silent on ``probes``, which are grey from afar.
    """
    height, width, channels = image_shape
    blocks = tf.clip_by_value(2 * _uniform([count, 5, 5, channels], [0, 1]) - 0.5, 0.0, 1.0)
    blocks *= tf.linspace(0.0, 1.0, count + 1)[1:, None, None, None]
    dark = tf.image.resize(blocks, [height, width], "nearest")
    return tf.concat([dark[::2], 1 - dark[1::2]], axis=0)


def subset(seed: int, count: int, size: int) -> np.ndarray:
    """Return which of ``size`` images a figure shows, (count,) indices, ascending."""
    return np.sort(np.random.default_rng(seed).choice(size, count, replace=False))
