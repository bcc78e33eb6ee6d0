"""The range of pixel values that a network takes, and images brought to it; needs no TensorFlow.

Inside this package images are in [0, 1]. A network may take others, [0, 255] or [-1, 1]: such is
its ``value_range``. What is between the two is one affine map, so an epsilon of 0..255 units is the
same share of either range.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from cascade_keras.errors import InputError, shown

ValueRange = tuple[float, float]
UNIT: ValueRange = (0.0, 1.0)
BYTES: ValueRange = (0.0, 255.0)
# Epsilons count in levels of a pixel; the range of an image has so many.
PIXEL_LEVELS = 255.0
_COMMON = (UNIT, BYTES, (-1.0, 1.0))
TOLERANCE = 1e-3  # of the range's width, by which images may be outside: resizing leaves as much
_TELLING = 8  # so many images that use half of a range only are no accident


def check_value_range(value: Sequence[float], setting: str = "value_range") -> ValueRange:
    """Return a range of pixel values as a pair of floats.

    Args:
        value: the lowest and the highest value of a pixel, such as (0, 255).
        setting: what names it in the error.

    Raises:
        InputError: it is no pair of finite numbers, the lower one first.
    """
    try:
        if isinstance(value, str):
            raise TypeError
        low, high = (float(number) for number in value)
    except (TypeError, ValueError) as error:
        raise InputError(
            f"must be two numbers (lowest, highest) such as (0, 255), got {shown(value)}", setting
        ) from error
    if not (math.isfinite(low) and math.isfinite(high) and low < high):
        raise InputError(
            f"must be two finite numbers, lowest first, such as (0, 255), got {shown(value)}",
            setting,
        )
    return low, high


def as_text(value_range: ValueRange) -> str:
    """Return a range as a call has it: ``(0, 255)``."""
    return "({:g}, {:g})".format(*value_range)


def scaled_to_unit(images, value_range: ValueRange):
    """Return an array or a tensor of floats in [0, 1] of one in the range."""
    low, high = value_range
    if value_range == UNIT:
        return images
    return images / high if low == 0 else (images - low) / (high - low)


def scaled_from_unit(images, value_range: ValueRange):
    """Return an array or a tensor of floats in the range of one in [0, 1]."""
    low, high = value_range
    if value_range == UNIT:
        return images
    return images * high if low == 0 else images * (high - low) + low


def outside(lowest: float, highest: float, value_range: ValueRange, what: str = "images") -> str:
    """Return the sentence that refuses images of these lowest and highest values."""
    where = f"{what} lie in {lowest:.4g}..{highest:.4g}, outside of {as_text(value_range)}"
    others = (other for other in _COMMON if other != value_range and _holds(other, lowest, highest))
    found = next(others, None)
    if found is None:
        return f"{where}; pass the range that they are in as value_range, if the network takes such"
    mend = f"pass value_range={as_text(found)} if the network takes such"
    if found == BYTES and value_range == UNIT:
        return f"{where}; {mend}, or divide by 255"
    return f"{where}; {mend}, or bring them to {as_text(value_range)}"


def advice(value_range: ValueRange, what: str = "images") -> str:
    """Return the sentence that refuses images of which a graph finds that they are outside."""
    lowest, highest = BYTES if value_range == UNIT else UNIT
    mend = f"pass value_range=({lowest:g}, {highest:g}) if the network takes such, or bring them in"
    return (
        f"{what} lie outside of {as_text(value_range)}; {mend}; the lowest and the highest value:"
    )


def squeezed(highest: float, value_range: ValueRange, what: str = "images") -> str:
    """Return the sentence that refuses images of [0, 1] where far larger values are meant."""
    return (
        f"{what} lie in 0..{highest:.4g} where value_range={as_text(value_range)} says that they "
        f"reach {value_range[1]:g}; pass value_range=(0, 1) if the network takes such, or multiply "
        f"them by {value_range[1]:g}"
    )


def whole_numbers(dtype: str, value_range: ValueRange, what: str = "images") -> str:
    """Return the sentence that refuses images of whole numbers."""
    if value_range == BYTES:
        return f"{what} are {dtype}; give uint8 or floats in 0..255"
    return (
        f"{what} are {dtype}, value_range is {as_text(value_range)}; pass value_range=(0, 255) "
        "if the network takes pixel values of 0..255, or bring them to that range as floats"
    )


def reaches_far(value_range: ValueRange) -> bool:
    """Whether images of [0, 1] would be all but black in the range."""
    return value_range[0] >= 0 and value_range[1] > 2


def why_refused(
    lowest: float, highest: float, count: int, value_range: ValueRange, what: str = "images"
) -> str | None:
    """Return why so many images of these lowest and highest values are not of the range."""
    if not (math.isfinite(lowest) and math.isfinite(highest)):
        return f"{what} have values that are not finite numbers"
    if not _holds(value_range, lowest, highest):
        return outside(lowest, highest, value_range, what)
    if reaches_far(value_range) and lowest >= 0 and 0 < highest <= 1:
        return squeezed(highest, value_range, what)
    if value_range[0] < 0 and lowest >= 0 and highest > 0 and count >= _TELLING:
        return (
            f"{what} lie in {lowest:.4g}..{highest:.4g}, the upper half of "
            f"{as_text(value_range)}; pass value_range=(0, 1) if the network takes such, or bring "
            f"them to {as_text(value_range)}"
        )
    return None


def check_images(images, value_range: Sequence[float] = UNIT, what: str = "images") -> np.ndarray:
    """Return images as float32 in [0, 1]; refuse those that are not in the range.

    Args:
        images: (N, H, W, C), floats in the range, or uint8 where that is (0, 255).
        value_range: the lowest and the highest value that a pixel can have.
        what: names them in the error.

    Raises:
        InputError: another shape, whole numbers, values that are not finite or outside the range by
            more than a thousandth of it, or that use so little of it that another one was meant.
    """
    value_range = check_value_range(value_range)
    images = np.asarray(images)
    if images.ndim != 4:
        raise InputError(
            f"{what} must have the shape (N, height, width, channels), got {images.shape}"
        )
    if images.dtype.kind in "iub" and not (images.dtype == np.uint8 and value_range == BYTES):
        raise InputError(whole_numbers(images.dtype.name, value_range, what))
    try:
        images = images.astype(np.float32)
    except (TypeError, ValueError) as error:
        raise InputError(f"{what} must be floats, got {images.dtype.name}") from error
    if not images.size:
        return images
    refused = why_refused(float(images.min()), float(images.max()), len(images), value_range, what)
    if refused:
        raise InputError(refused)
    images = scaled_to_unit(images, value_range)
    return images if images.min() >= 0 and images.max() <= 1 else np.clip(images, 0, 1)


def _holds(value_range: ValueRange, lowest: float, highest: float) -> bool:
    low, high = value_range
    slack = TOLERANCE * (high - low)
    return low - slack <= lowest and highest <= high + slack
