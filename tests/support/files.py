"""Directories as values."""

import pathlib

ROOT = pathlib.Path(__file__).parents[2]


def tree(directory):
    """Every file below a directory and what it holds; locks are not contents."""
    return {
        path.relative_to(directory): path.read_bytes()
        for path in sorted(pathlib.Path(directory).rglob("*"))
        if path.is_file() and path.name != ".lock"
    }
