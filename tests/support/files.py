"""Directories as values, and what happens to files."""

import contextlib
import fcntl
import os
import pathlib

ROOT = pathlib.Path(__file__).parents[2]


def tree(directory):
    """Every file below a directory and what it holds; locks are not contents."""
    return {
        path.relative_to(directory): path.read_bytes()
        for path in sorted(pathlib.Path(directory).rglob("*"))
        if path.is_file() and path.name != ".lock"
    }


def flip(path):
    """Change one byte in the middle of a file."""
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 0xFF
    path.write_bytes(content)


@contextlib.contextmanager
def locked(folder):
    """Hold a folder as another process does that writes in it."""
    descriptor = os.open(folder, os.O_RDONLY)
    fcntl.flock(descriptor, fcntl.LOCK_EX)
    yield
    os.close(descriptor)
