"""Files and directories: whole or not at all, and one process at a time.

The only places where the package writes a file atomically, reserves an array on disk, or locks a
directory.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import pathlib
from collections.abc import Callable, Iterator, Sequence

import numpy as np

from cascade_keras.errors import InputError

PARTIAL = ".partial-"  # how a file's name begins while it is written


def expand(path: str | os.PathLike) -> pathlib.Path:
    """Return a path that a user has written, ``~`` being the home directory."""
    return pathlib.Path(path).expanduser()


def nearest_existing(path: pathlib.Path) -> pathlib.Path:
    """Return the path itself, or the closest directory above it that is there."""
    return next(p for p in (path, *path.absolute().parents) if p.exists())


def check_writable(path: pathlib.Path, setting: str) -> None:
    """Refuse a directory, there or to be made, that cannot be written.

    Raises:
        InputError: naming the setting that it comes from.
    """
    existing = nearest_existing(path)
    if not existing.is_dir() or not os.access(existing, os.W_OK):
        raise InputError(f"cannot write in {existing}; name a writable directory", setting)


def named_twice(paths: Sequence[str | os.PathLike]) -> str | os.PathLike | None:
    """Return the first path that is there twice, None where each is there once."""
    seen = set()
    for path in paths:
        place = expand(path).resolve()
        if place in seen:
            return path
        seen.add(place)
    return None


# Writing.


def write_atomically(path: pathlib.Path, write: Callable[[pathlib.Path], object]) -> None:
    """Let ``write`` fill a temporary sibling of the same suffix, then rename it to ``path``.

    Raises:
        OSError: the disk is full or the like, with ``path`` as its file name; nothing is left.
    """
    temporary = path.with_name(f"{PARTIAL}{path.name}")
    try:
        write(temporary)
        flush(temporary)
        os.replace(temporary, path)
    except OSError as error:
        temporary.unlink(missing_ok=True)
        raise OSError(error.errno, error.strerror or str(error), str(path)) from error
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def write_json(path: pathlib.Path, content) -> None:
    """Write ``content`` as indented JSON, atomically."""
    write_text(path, json.dumps(content, indent=2) + "\n")


def write_text(path: pathlib.Path, text: str) -> None:
    """Write text as UTF-8, atomically."""
    write_atomically(path, lambda temporary: temporary.write_text(text, encoding="utf-8"))


def flush(path: str | os.PathLike) -> None:
    """Return when a file or directory is on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


# Arrays.


def reserve(file: pathlib.Path, shape: Sequence[int], dtype: str, fill: float = 0) -> None:
    """Create an .npy file of this shape, its place on the disk taken, with one value everywhere.

    Raises:
        OSError: the disk is full or the like; nothing is left.
    """

    def write(temporary: pathlib.Path) -> None:
        with open(temporary, "wb") as opened:
            header = {
                "descr": np.lib.format.dtype_to_descr(np.dtype(dtype)),
                "fortran_order": False,
                "shape": tuple(map(int, shape)),
            }
            np.lib.format.write_array_header_1_0(opened, header)
            size = int(np.prod(shape)) * np.dtype(dtype).itemsize
            if size:
                os.posix_fallocate(opened.fileno(), opened.tell(), size)
        if fill:
            array = np.lib.format.open_memmap(temporary, mode="r+")
            array[...] = fill
            array.flush()

    write_atomically(file, write)


def open_map(file: pathlib.Path) -> np.memmap:
    """Map an .npy file for reading and writing.

    Raises:
        OSError, ValueError: it cannot be read, or was cut short.
    """
    # Mapped for writing, a file that was cut short would be filled up with zeros.
    np.lib.format.open_memmap(file, mode="r")
    return np.lib.format.open_memmap(file, mode="r+")


# Locks. The kernel drops them with the process, however it ends.


class Lock:
    """Keeps other processes out of a directory until it is closed.

    Args:
        directory: it must exist.
        wait: until another process has left; otherwise it is refused.
        name: of a file in it that is locked; the directory itself where None, which leaves nothing
            behind.

    Raises:
        BlockingIOError: another process holds it, and ``wait`` is False.
        FileNotFoundError: the directory is gone.
    """

    def __init__(self, directory: pathlib.Path, *, wait: bool = False, name: str | None = None):
        self.directory = directory
        if name is None:
            self._descriptor = os.open(directory, os.O_RDONLY)
        else:
            self._descriptor = os.open(directory / name, os.O_RDWR | os.O_CREAT, 0o666)
        try:
            fcntl.flock(self._descriptor, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
        except BaseException:
            self.close()
            raise

    @property
    def still_there(self) -> bool:
        """Whether the directory that is locked is the one that has its name now."""
        with contextlib.suppress(FileNotFoundError):
            return os.path.samestat(os.fstat(self._descriptor), self.directory.stat())
        return False

    def close(self) -> None:
        """Let others in; safe to call twice."""
        if self._descriptor is not None:
            os.close(self._descriptor)
            self._descriptor = None

    def __enter__(self) -> Lock:
        return self

    def __exit__(self, *_) -> None:
        self.close()


LOCK_FILE = ".lock"


def hold(directory: pathlib.Path, in_use: str, setting: str | None = None) -> Lock:
    """Keep other processes out of a directory until the lock returned is closed.

    Raises:
        InputError: ``in_use``, where another process holds it.
    """
    try:
        return Lock(directory, name=LOCK_FILE)
    except BlockingIOError as error:
        raise InputError(in_use, setting) from error


@contextlib.contextmanager
def alone(directory: pathlib.Path) -> Iterator[None]:
    """Wait for a directory, and keep others that ask so out as long as the block runs."""
    with Lock(directory, wait=True, name=LOCK_FILE):
        yield
