"""Files and directories: whole or not at all, and one process at a time.

The only places where the package writes a file atomically, reserves an array on disk, or locks a
directory. What is read is checked by records.py.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import fnmatch
import json
import math
import os
import pathlib
import re
import secrets
import shutil
from collections.abc import Callable, Iterator, Sequence
from typing import Any, TypeGuard

from cascade_keras.errors import InputError, shown

MOST_OF_A_NAME = 150  # bytes of a network's name in that of a file, which has 255 in all
PARTIAL = ".partial-"  # how a file's name begins while it is written


def is_path(given: Any) -> TypeGuard[str | os.PathLike]:
    """Whether something is named by a path or text, instead of being given itself."""
    return isinstance(given, str | os.PathLike)


def expand(path: str | os.PathLike) -> pathlib.Path:
    """Return a path that a user has written, ``~`` being the home directory."""
    return pathlib.Path(path).expanduser()


def folder_name(name: str, setting: str | None = None) -> str:
    """Return a network's name as that of a folder of its own, where nobody says which.

    Raises:
        InputError: there can be no such folder, or it would lie elsewhere, as for "..".
    """
    plain = name.isprintable() and "/" not in name and len(name.encode()) <= MOST_OF_A_NAME
    # Hidden files are our locks and what is half written.
    if not name or name.startswith(".") or not plain:
        raise InputError(
            f"there can be no folder by the network's name, {shown(name)}; name a directory",
            setting,
        )
    return name


def nearest_existing(path: pathlib.Path) -> pathlib.Path:
    """Return the path itself, or the closest above it that is there, be it a broken link."""
    return next(p for p in (path, *path.absolute().parents) if os.path.lexists(p))


def check_writable(path: pathlib.Path, setting: str | None = None) -> None:
    """Refuse a directory, there or to be made, that cannot be written.

    Raises:
        InputError: naming the setting that it comes from.
    """
    existing = nearest_existing(path)
    if not existing.is_dir():
        raise InputError(f"{existing} is not a directory; name a writable directory", setting)
    if not os.access(existing, os.R_OK | os.W_OK | os.X_OK):
        raise InputError(f"cannot write in {existing}; name a writable directory", setting)


def check_replaceable(path: pathlib.Path, setting: str | None = None) -> None:
    """Refuse a file, there or to be made, that cannot be written in place of what is there.

    Raises:
        InputError: a directory or a device is there, or its directory cannot be written.
    """
    if os.path.lexists(path) and not path.is_file():
        raise InputError(f"{path} is not a file; remove it, or name another place", setting)
    check_writable(path.parent, setting)


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


def write_atomically(
    path: pathlib.Path, write: Callable[[pathlib.Path], object], *, keep: bool = False
) -> None:
    """Let ``write`` fill a temporary sibling of the same suffix, then rename it to ``path``.

    Args:
        keep: what is there, or has come there meanwhile: of several processes that write the same
            at once, on a network's file system too, all end with the file of one.

    Raises:
        OSError: the disk is full or the like, with ``path`` as its file name; nothing is left.
    """
    temporary = partial_sibling(path)
    try:
        write(temporary)
        flush(temporary)
        if keep:
            _name(temporary, path)
        else:
            os.replace(temporary, path)
    except OSError as error:
        temporary.unlink(missing_ok=True)
        raise OSError(error.errno, error.strerror or str(error), str(path)) from error
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def _name(temporary: pathlib.Path, path: pathlib.Path) -> None:
    """Rename a file to a place where nothing is, else remove it."""
    try:
        os.link(temporary, path)  # renaming would replace what is there
    except FileExistsError:
        pass
    except OSError:  # a file system without second names
        if not os.path.lexists(path):
            os.replace(temporary, path)
            return
    temporary.unlink()


@contextlib.contextmanager
def naming(file: str | os.PathLike) -> Iterator[None]:
    """Say of an ``OSError`` inside that names no file that it is about this one."""
    try:
        yield
    except OSError as error:
        if error.filename is None:
            error.filename = str(file)
        raise


def partial_sibling(path: pathlib.Path) -> pathlib.Path:
    """Return a place beside a file or folder, no other process's, where it is written first."""
    # Its end is the file's own, by which some writers know the format.
    return path.with_name(f"{PARTIAL}{os.getpid()}-{secrets.token_hex(4)}-{path.name[-180:]}")


def clean(directory: pathlib.Path, names: str = "*") -> None:
    """Remove what killed processes were writing in a directory, which the caller has locked.

    Args:
        names: a pattern of the files' or folders' final names; all where others do not write here.
    """
    for partial in directory.glob(f"{PARTIAL}*"):
        # Earlier versions wrote under the final name alone.
        final = re.sub(r"^\d+-[0-9a-f]{8}-", "", partial.name.removeprefix(PARTIAL))
        if not fnmatch.fnmatchcase(final, names):
            continue
        if partial.is_dir() and not partial.is_symlink():
            shutil.rmtree(partial)
        else:
            partial.unlink(missing_ok=True)


def write_json(path: pathlib.Path, content: Any, *, keep: bool = False) -> None:
    """Write ``content`` as indented JSON, atomically.

    Args:
        keep: see ``write_atomically``.

    Raises:
        ValueError: a number in it is not finite, which JSON does not have.
    """
    write_text(path, json.dumps(content, indent=2, allow_nan=False) + "\n", keep=keep)


def write_text(path: pathlib.Path, text: str, *, keep: bool = False) -> None:
    """Write text as UTF-8, atomically; ``keep`` is that of ``write_atomically``."""
    write_atomically(
        path, lambda temporary: temporary.write_text(text, encoding="utf-8"), keep=keep
    )


def flush(path: str | os.PathLike) -> None:
    """Return when a file or directory is on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def publish(partial: pathlib.Path, final: pathlib.Path) -> None:
    """Rename a folder to its final name when all that is in it is on the disk."""
    for folder, _, files in os.walk(partial):
        for name in (*files, "."):
            flush(os.path.join(folder, name))
    partial.rename(final)
    flush(final.parent)


def write_error(message: str, path: pathlib.Path) -> OSError:
    """Return what TensorFlow says of a file it could not write as Python's error about a path."""
    reason = (message.splitlines() or ["cannot be written"])[0].rpartition("; ")[2]
    reason = re.sub(r" \[Op:\w+\]$", "", reason)
    return OSError(errno.EIO, reason, str(path))


# Arrays.


def reserve(
    file: pathlib.Path, shape: Sequence[int], dtype: str, fill: float = 0, *, keep: bool = False
) -> None:
    """Create an .npy file of this shape, its place on the disk taken, with one value everywhere.

    Args:
        keep: see ``write_atomically``.

    Raises:
        OSError: the disk is full or the like; nothing is left.
    """
    import numpy as np

    def write(temporary: pathlib.Path) -> None:
        with open(temporary, "wb") as opened:
            header = {
                "descr": np.lib.format.dtype_to_descr(np.dtype(dtype)),
                "fortran_order": False,
                "shape": tuple(map(int, shape)),
            }
            np.lib.format.write_array_header_1_0(opened, header)
            size = math.prod(map(int, shape)) * np.dtype(dtype).itemsize
            if size:
                os.posix_fallocate(opened.fileno(), opened.tell(), size)
        if fill:
            array = np.lib.format.open_memmap(temporary, mode="r+")
            array[...] = fill
            array.flush()

    write_atomically(file, write, keep=keep)


# Locks. The kernel drops them with the process, however it ends.


class Lock:
    """Keeps other processes out of a directory until it is closed.

    Args:
        directory: it must exist.
        wait: until another process has left; otherwise it is refused.
        name: of a file in it that is locked; the directory itself where None, which leaves nothing
            behind. The file is never followed if it is a link, and never emptied.
        fleeting: take the file away again when the lock is closed.
        shared: let others hold it that share it too.

    Raises:
        BlockingIOError: another process holds it, and ``wait`` is False.
        FileNotFoundError: the directory is gone.
    """

    def __init__(
        self,
        directory: pathlib.Path,
        *,
        wait: bool = False,
        name: str | None = None,
        fleeting: bool = False,
        shared: bool = False,
    ):
        self._path = directory if name is None else directory / name
        self._fleeting = fleeting
        self._kind = fcntl.LOCK_SH if shared else fcntl.LOCK_EX
        self._descriptor: int | None = None
        while True:
            self._open(wait)
            # Whoever held it before may have taken the file away.
            if not fleeting or self.still_there:
                return
            os.close(self._descriptor)

    def _open(self, wait: bool) -> None:
        folder = self._path.is_dir()
        how = os.O_RDONLY if folder else os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW
        self._descriptor = os.open(self._path, how, 0o666)
        try:
            fcntl.flock(self._descriptor, self._kind | (0 if wait else fcntl.LOCK_NB))
        except BaseException as error:
            os.close(self._descriptor)
            self._descriptor = None
            if isinstance(error, OSError):
                error.filename = str(self._path)  # the kernel does not say it
            raise

    @property
    def still_there(self) -> bool:
        """Whether what is locked is what has its name now."""
        with contextlib.suppress(FileNotFoundError):
            return os.path.samestat(os.fstat(self._descriptor), self._path.stat())
        return False

    def close(self) -> None:
        """Let others in; safe to call twice."""
        if self._descriptor is None:
            return
        if self._fleeting:
            self._path.unlink(missing_ok=True)  # before others are let in
        os.close(self._descriptor)
        self._descriptor = None

    def __enter__(self) -> Lock:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


LOCK_FILE = ".lock"


def hold(
    directory: pathlib.Path,
    in_use: str,
    setting: str | None = None,
    *,
    name: str | None = LOCK_FILE,
    fleeting: bool = False,
    shared: bool = False,
) -> Lock:
    """Keep other processes out of a directory until the lock returned is closed.

    Args:
        name, fleeting, shared: as for ``Lock``.

    Raises:
        InputError: ``in_use``, where another process holds it.
    """
    try:
        return Lock(directory, name=name, fleeting=fleeting, shared=shared)
    except BlockingIOError as error:
        raise InputError(in_use, setting) from error


def hold_output(
    directory: pathlib.Path, name: str, in_use: str, setting: str | None = None
) -> Lock:
    """Keep others from writing one output of a directory that others write other outputs in.

    Args:
        directory: it must exist.
        name: of the output; ``.NAME.lock`` is there as long as it is held.

    Raises:
        InputError: ``in_use``, where another process holds it.
    """
    return hold(directory, in_use, setting, name=f".{name}{LOCK_FILE}", fleeting=True)


def is_a_start(directory: pathlib.Path, held: pathlib.Path) -> bool:
    """Whether there is nothing but what a process killed at its very start leaves.

    Args:
        directory: it must exist.
        held: the directory in it whose lock is held first of all.
    """
    own = [path for path in directory.iterdir() if path != held]
    if held.is_dir():
        own += [path for path in held.iterdir() if path.name != LOCK_FILE]
    return all(path.name.startswith(PARTIAL) for path in own)


@contextlib.contextmanager
def alone(directory: pathlib.Path) -> Iterator[None]:
    """Wait for a directory, and keep others that ask so out as long as the block runs."""
    with Lock(directory, wait=True, name=LOCK_FILE):
        yield
