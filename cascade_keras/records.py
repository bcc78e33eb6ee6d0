"""What is read from disk: every JSON file and every array, through one reader that checks it.

A file is described by a ``Record``: its fields, their types and what they may be. What cannot be
true is refused in one line that names the file and the field, be it damage, another program's
file, or a later version's. Needs no TensorFlow.

    class Seconds(Record):
        crafting: NotNegative
        classifying: NotNegative

    read(path, Seconds, "remove it").crafting
"""

from __future__ import annotations

import os
import pathlib
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Annotated, Any, TypeVar

import msgspec
from msgspec import Meta

from cascade_keras.errors import InputError, first_line

if TYPE_CHECKING:  # it takes as long as all else that --help needs
    import numpy as np

LARGEST = 2**31 - 1  # counts and steps are 32-bit numbers in TensorFlow
MOST_BYTES = 64 * 2**20  # of a JSON file: none of ours is near it
MOST_ARRAY_BYTES = 8 * 2**30  # of an .npz file's arrays, which are read into memory

# What fields are made of.
Count = Annotated[int, Meta(ge=1, le=LARGEST)]
Index = Annotated[int, Meta(ge=0, le=LARGEST)]
NotNegative = Annotated[float, Meta(ge=0)]
Epsilon = Annotated[float, Meta(ge=0, le=255)]
PerCent = Annotated[float, Meta(ge=0, le=100)]
Text = Annotated[str, Meta(min_length=1)]
Sha256 = Annotated[str, Meta(pattern="^[0-9a-f]{64}$")]
Values = dict[str, Any]  # JSON whose fields belong to somebody else


class Record(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    """The base of descriptions of JSON objects; ``__post_init__`` may raise ValueError."""


class OpenRecord(msgspec.Struct, kw_only=True):
    """As ``Record``, of an object to which others may add fields."""


T = TypeVar("T")


def read(file: pathlib.Path, kind: type[T], mend: str = "restore it") -> T:
    """Return what a JSON file holds.

    Args:
        file: it must be there.
        kind: a ``Record``, or another type that msgspec knows.
        mend: what the user can do about a file that cannot be used.

    Raises:
        FileNotFoundError: there is none.
        InputError: it cannot be read, or holds what cannot be true; names file and field.
    """
    return _decoded(file, _content(file, mend), kind, mend)


def read_values(file: pathlib.Path, kind: type, mend: str = "restore it") -> Values:
    """Return a JSON object as a dict with all its fields, once it is known to be a ``kind``.

    Raises:
        FileNotFoundError: there is none.
        InputError: as ``read``.
    """
    content = _content(file, mend)
    _decoded(file, content, kind, mend)
    return _decoded(file, content, Values, mend)


def _content(file: pathlib.Path, mend: str) -> bytes:
    if os.path.lexists(file) and not file.is_file():
        raise InputError(f"{file} is not a file; {mend}")
    try:
        if file.stat().st_size > MOST_BYTES:
            raise InputError(f"{file} is larger than {MOST_BYTES >> 20} MB; {mend}")
        return file.read_bytes()
    except FileNotFoundError:
        raise
    except OSError as error:
        raise InputError(f"{file} cannot be read ({error.strerror}); {mend}") from error


def _decoded(file: pathlib.Path, content: bytes, kind: type[T], mend: str) -> T:
    try:
        return msgspec.json.decode(content, type=kind)
    except (msgspec.DecodeError, ValueError, RecursionError) as error:
        raise InputError(f"{file}: {in_words(error)}; {mend}") from error


def in_words(error: Exception) -> str:
    """Return what is wrong, the field first: "dataset.name: expected `str`, got `null`"."""
    if isinstance(error, RecursionError):
        return "it is nested too deeply"
    problem, _, place = str(error).partition(" - at `$")
    field = place.removesuffix("`").lstrip(".")
    problem = problem[:1].lower() + problem[1:]
    return f"{field}: {problem}" if field else problem


# Arrays.


def map_array(
    file: pathlib.Path,
    shape: Sequence[int] | None = None,
    dtype: str | None = None,
    mend: str = "remove it",
    *,
    writable: bool = False,
) -> np.memmap:
    """Map an .npy file.

    Args:
        file: it must be there.
        shape, dtype: what it must be; None takes any.
        mend: what the user can do about a file that cannot be used.
        writable: what is assigned to the array goes to the file.

    Raises:
        FileNotFoundError: there is none.
        InputError: it cannot be read, was cut short, or is another array.
    """
    import numpy as np

    if os.path.lexists(file) and not file.is_file():
        raise InputError(f"{file} is not a file; {mend}")  # a pipe would never be read to its end
    try:
        # Mapped for writing, a file that was cut short would be filled up with zeros.
        array = np.lib.format.open_memmap(file, mode="r")
    except FileNotFoundError:
        raise
    except Exception as error:  # a damaged header raises whatever Python's own parser does
        raise InputError(f"{file} is damaged ({first_line(error)[:120]}); {mend}") from error
    wanted = (shape is None or array.shape == tuple(shape)) and (
        dtype is None or array.dtype == np.dtype(dtype)
    )
    if not wanted or (array.flags.f_contiguous and not array.flags.c_contiguous):
        raise InputError(
            f"{file} is damaged: it holds {array.dtype} {array.shape}, not "
            f"{dtype or array.dtype} {tuple(array.shape if shape is None else shape)}; {mend}"
        )
    if file.stat().st_size != array.offset + array.nbytes:
        raise InputError(f"{file} is damaged: it is longer than its array; {mend}")
    return np.lib.format.open_memmap(file, mode="r+") if writable else array


def read_arrays(file: pathlib.Path) -> Mapping[str, np.ndarray] | None:
    """Return the arrays of an .npz file, None where it is not there or damaged.

    For what can be computed again.
    """
    import numpy as np

    try:
        with np.load(file, allow_pickle=False) as stored:
            if sum(member.file_size for member in stored.zip.infolist()) > MOST_ARRAY_BYTES:
                return None
            return {name: stored[name] for name in stored.files}
    except Exception:  # zipfile, zlib and NumPy's header parser each raise their own
        return None
