"""Images, epsilons and step sizes as attacks are given them: units, shapes, what is refused."""

from __future__ import annotations

import dataclasses
import numbers
from collections.abc import Sequence
from typing import Any

import numpy as np
import tensorflow as tf

from cascade_keras import draws, ranges
from cascade_keras.errors import InputError, shown

# Of users of the attacks, who need no more of ranges.py.
PIXEL_LEVELS = ranges.PIXEL_LEVELS
_UNIT_PIXELS = np.arange(256, dtype=np.float32) / np.float32(PIXEL_LEVELS)


@dataclasses.dataclass(frozen=True)
class Signed:
    """An epsilon that may be negative: a one-step attack then steps to the other side.

    It is scaled like a number and becomes a tensor where one is needed, so that an attack's
    function may work with its epsilon before it hands it to a step.
    """

    epsilon: Any

    def __mul__(self, factor) -> Signed:
        return Signed(self.epsilon * factor)

    __rmul__ = __mul__

    def __truediv__(self, divisor) -> Signed:
        return Signed(self.epsilon / divisor)

    def __tf_tensor__(self, dtype=None, name=None) -> tf.Tensor:
        return tf.convert_to_tensor(self.epsilon, dtype, name=name)


def as_images(images, value_range: ranges.ValueRange = ranges.UNIT) -> tf.Tensor:
    """Return images of a range as floats in [0, 1]: of half precision in float32.

    Half precision has no room for epsilons: its numbers near 1 are up to a pixel value apart.

    Args:
        images: floats in the range, or uint8 where that is (0, 255).
        value_range: the lowest and the highest value of a pixel.

    Raises:
        InputError: other whole numbers.
    """
    images = tf.convert_to_tensor(images)
    if images.dtype == tf.uint8 and value_range == ranges.BYTES:
        # A table: optimisers of graphs make a product with 1/255 of a division by 255, which gives
        # half of the pixel values another float32.
        return tf.gather(tf.constant(_UNIT_PIXELS), tf.cast(images, tf.int32))
    if not images.dtype.is_floating:
        raise InputError(ranges.whole_numbers(images.dtype.name, value_range))
    if images.dtype.size < 4:
        images = tf.cast(images, tf.float32)
    return ranges.scaled_to_unit(images, value_range)


def as_float(number) -> tf.Tensor:
    """Return numbers as a tensor of floats: whole ones in float32, others in their own type."""
    number = tf.convert_to_tensor(number, dtype_hint=tf.float32)
    return tf.cast(number, tf.float32) if number.dtype.is_integer else number


def to_unit_range(epsilon) -> tf.Tensor:
    """Convert epsilon or a step size from pixel units of 0..255 to the [0, 1] range of images."""
    return as_float(epsilon) / PIXEL_LEVELS


def as_seed(seed):
    """Return the two integers that a seed is; of one, it and 0.

    Raises:
        InputError: neither.
    """
    if seed is None or tf.is_tensor(seed):
        return seed
    if isinstance(seed, numbers.Integral) and not isinstance(seed, bool):
        return [int(seed), 0]
    pair = isinstance(seed, np.ndarray | Sequence) and not isinstance(seed, str) and len(seed) == 2
    if not pair:
        raise InputError(f"must be a whole number or two, got {shown(seed)}", "seed")
    return seed


def as_keys(seed, count) -> tf.Tensor:
    """Return the key of each of ``count`` images, int32 (count, 2), of a seed or of the keys.

    Args:
        seed: one integer or two, or the keys.
    """
    if tf.is_tensor(seed) and seed.shape.rank == 2:
        return seed
    first, second = tf.unstack(tf.cast(as_seed(seed), tf.int32))
    return draws.image_keys(first, second + tf.range(count))


def check_counts(least: int = 1, **counts) -> dict[str, int]:
    """Return counts, by the names of their arguments, as Python's whole numbers.

    Raises:
        InputError: one that is no whole number of ``least`` or above.
    """
    for name, count in counts.items():
        number = isinstance(count, numbers.Real) and not isinstance(count, bool)
        if not (number and float(count).is_integer() and count >= least):
            expected = f"must be a whole number of {least} or above, got {shown(count)}"
            raise InputError(expected, name)
    return {name: int(count) for name, count in counts.items()}


def check_range(value, name: str, *, signed: bool = False) -> None:
    """Raise ValueError if an epsilon or step size is negative, NaN or infinite.

    Only a value that is known is checked: a number, an array, an eager or a constant tensor. What
    an attack makes of such an epsilon in another tensor of a graph is not defined.

    Args:
        signed: whether it may be negative.
    """
    known = tf.get_static_value(value) if tf.is_tensor(value) else value
    if known is None:
        return
    known = np.asarray(known, np.float64)
    bad = known[~np.isfinite(known) | ((known < 0) & (not signed))]
    if bad.size:
        expected = "finite" if signed else "finite and 0 or above"
        raise ValueError(f"{name} must be {expected}, in 0..255 units, got {bad.flat[0]:g}")


def per_image(epsilon, images: tf.Tensor, name: str = "epsilon", *, signed: bool = False):
    """Return an epsilon or step size in a shape that broadcasts against the images.

    Args:
        epsilon: a scalar, (batch,), (batch, H, W, C), or (count, 1, 1, 1, 1), which makes ``count``
            versions of each image.
        signed: whether it may be ``Signed``.

    Raises:
        ValueError: another shape, or ``check_range`` refuses it.
    """
    if isinstance(epsilon, Signed):
        if not signed:
            raise ValueError(f"{name} must not be Signed: only a single step has another side")
        epsilon = epsilon.epsilon
        check_range(epsilon, name, signed=True)
    else:
        check_range(epsilon, name)
    epsilon = tf.cast(tf.convert_to_tensor(epsilon), images.dtype)
    shape, rank = epsilon.shape, images.shape.rank
    if shape.rank == 1 and shape.is_compatible_with(images.shape[:1]):
        return tf.reshape(epsilon, [-1, *([1] * (rank - 1))])
    each_pixel = shape.rank == rank and shape.is_compatible_with(images.shape)
    versions = shape.rank == rank + 1 and shape[1:].num_elements() == 1
    if shape.rank == 0 or each_pixel or versions:
        return epsilon
    raise ValueError(
        f"{name} must be a scalar, have one number an image (batch,), or one a pixel "
        f"(batch, height, width, channels); got shape {shape} for images {images.shape}"
    )


def largest_gradients_mask(gradient: tf.Tensor, sparsity: float) -> tf.Tensor:
    """Return 1 at the share of each image's values with the largest gradients, 0 elsewhere."""
    if not 0 < sparsity <= 100:
        raise ValueError(f"sparsity must be above 0 and at most 100 per cent, got {sparsity}")
    magnitude = tf.reshape(tf.abs(gradient), [tf.shape(gradient)[0], -1])
    size = tf.cast(tf.shape(magnitude)[1], tf.float32)
    kept = tf.cast(tf.maximum(tf.round(size * sparsity / 100), 1), tf.int32)
    threshold = tf.sort(magnitude, axis=-1, direction="DESCENDING")[:, kept - 1 : kept]
    return tf.reshape(tf.cast(magnitude >= threshold, gradient.dtype), tf.shape(gradient))
