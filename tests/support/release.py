"""What an earlier release left: runs, banks, reports and networks on disk."""

import tarfile

from support.files import ROOT


def unpack(directory, version="0.1.0"):
    """Put it all into a directory and return the directory."""
    with tarfile.open(ROOT / "tests" / "fixtures" / f"version-{version}.tar.xz") as archive:
        # Python 3.11 has filters since 3.11.4.
        safely = {"filter": "data"} if hasattr(tarfile, "data_filter") else {}
        archive.extractall(directory, **safely)
    return directory
