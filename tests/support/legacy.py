"""What 0.1.0 left on disk: runs, a bank, reports and a saved network."""

import pathlib
import tarfile

ARCHIVE = pathlib.Path(__file__).parents[1] / "fixtures" / "version-0.1.0.tar.xz"


def unpack(directory):
    """Write the files of 0.1.0 into a directory and return it."""
    with tarfile.open(ARCHIVE) as archive:
        archive.extractall(directory, filter="data")
    return pathlib.Path(directory)
