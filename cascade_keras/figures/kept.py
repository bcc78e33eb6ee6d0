"""A figure's arrays on disk: what they follow from beside them, and a checksum of it all.

A file that is not whole, or of something else, counts as none: arrays can be computed again, and
a wrong picture is worse than a late one. TensorFlow is not imported.
"""

from __future__ import annotations

import hashlib
import pathlib
from collections.abc import Callable, Mapping
from typing import NamedTuple

import numpy as np

from cascade_keras.files import write_atomically
from cascade_keras.records import read_arrays

Arrays = dict[str, np.ndarray]
_IDENTITY, _CHECKSUM = "identity", "sha256"


class Form(NamedTuple):
    """What an array must be: a shape, where None is any size, and values, see the functions."""

    shape: tuple[int | None, ...]
    holds: Callable[[np.ndarray], bool]

    def fits(self, array: np.ndarray) -> bool:
        """Whether an array is of this form."""
        return (
            array.ndim == len(self.shape)
            and all(
                want in (None, size) for want, size in zip(self.shape, array.shape, strict=True)
            )
            and self.holds(array)
        )


def whole(*shape: int | None) -> Form:
    """Of whole numbers."""
    return Form(shape, lambda array: array.dtype.kind in "iu")


def indices(end: int, *shape: int | None) -> Form:
    """Of whole numbers from 0 to below ``end``."""
    return Form(
        shape,
        lambda array: array.dtype.kind in "iu" and bool(((array >= 0) & (array < end)).all()),
    )


def finite(*shape: int | None) -> Form:
    """Of numbers with a fraction."""
    return Form(shape, lambda array: array.dtype.kind == "f" and bool(np.isfinite(array).all()))


def distances(*shape: int | None) -> Form:
    """Of numbers that are 0 or above; infinite where there is none."""
    return Form(shape, lambda array: array.dtype.kind == "f" and bool((array >= 0).all()))


def shares(*shape: int | None) -> Form:
    """Of numbers in 0..1; NaN where there is none."""
    return Form(
        shape,
        lambda array: array.dtype.kind == "f" and not ((array < 0) | (array > 1)).any(),
    )


Forms = Mapping[str, Form]


def write(file: pathlib.Path, identity: str, arrays: Arrays) -> None:
    """Keep arrays and what they follow from.

    Raises:
        OSError: the disk is full or the like; nothing is left.
    """
    checksum = np.array(_checksum(identity, arrays))
    contents = {_IDENTITY: np.array(identity), _CHECKSUM: checksum, **arrays}

    def fill(temporary: pathlib.Path) -> None:
        with open(temporary, "wb") as opened:
            np.savez_compressed(opened, **contents)

    write_atomically(file, fill)


def read(file: pathlib.Path, identity: str, forms: Forms | None) -> Arrays | None:
    """Return the arrays that a file holds if they follow from this and are as they were written.

    Args:
        forms: of all arrays. They tell whether a file is whole that was written before there were
            checksums; where None, only a checksum does.
    """
    arrays = dict(read_arrays(file) or {})
    if str(arrays.pop(_IDENTITY, None)) != identity:
        return None
    checksum = arrays.pop(_CHECKSUM, None)
    if checksum is not None:
        intact = str(checksum) == _checksum(identity, arrays)
    else:
        intact = forms is not None and all(
            name in arrays and form.fits(arrays[name]) for name, form in forms.items()
        )
    return arrays if intact else None


def _checksum(identity: str, arrays: Arrays) -> str:
    digest = hashlib.sha256(identity.encode())
    for name, array in sorted(arrays.items()):
        array = np.asarray(array)
        digest.update(f"\n{name} {array.dtype.str} {array.shape}\n".encode())
        digest.update(array.tobytes())
    return digest.hexdigest()
