import pytest
from support.killing import Launcher
from support.programs import make_place


@pytest.fixture(scope="session")
def launcher():
    """A process that forks one for each run of a program."""
    with Launcher() as launcher:
        yield launcher


@pytest.fixture(scope="session")
def small(launcher, tmp_path_factory):
    """A directory with two small runs, a saved network and archives."""
    return make_place(launcher, tmp_path_factory.mktemp("small") / "place")
