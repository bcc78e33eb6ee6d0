import compileall
import functools
import gc
import os
import pathlib
import shutil
import sys

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
# Folders are compared file by file: modules of a test's own leave nothing beside them.
os.environ["PYTHONDONTWRITEBYTECODE"] = "1"
# Every worker of pytest has a processor: a second thread would only take it from another worker.
os.environ.setdefault("TF_NUM_INTRAOP_THREADS", "1")

import numpy as np
import pytest

sys.dont_write_bytecode = True
# Thousands of graphs are made here: what TensorFlow is made of need not be gone through each time
# that one is thrown away.
gc.freeze()
gc.set_threshold(10_000, 20, 20)
# But not every process is to compile the package again.
compileall.compile_dir(pathlib.Path(__file__).parents[1] / "cascade_keras", quiet=2)


@pytest.fixture(autouse=True)
def _determinism_ends():
    """A test that makes TensorFlow deterministic does so for itself alone."""
    yield
    if "tensorflow" in sys.modules:  # pytest's own process, which has workers, does without it
        from tensorflow.python.util import _pywrap_determinism

        if _pywrap_determinism.is_enabled():
            _pywrap_determinism.enable(False)


PROBES = "_indicators", "_short"


@pytest.fixture(scope="module", autouse=True)
def _without_probes(request):
    """What a checklist compiles for each network is left out where nobody looks at checklists.

    A module that does says PROBED = True; a test asks for ``probes``.
    """
    with pytest.MonkeyPatch.context() as patch:
        for name in () if getattr(request.module, "PROBED", False) else PROBES:
            _of_plan(name)
            patch.setattr(_plan(), name, lambda self: [])
        yield


def _plan():
    from cascade_keras.evaluation.plan import Plan

    return Plan


@functools.cache
def _of_plan(name):
    """Return what a plan has of its own, which has to be asked for before it is replaced."""
    return getattr(_plan(), name)


@pytest.fixture
def probes(monkeypatch):
    """Checklists are made in this test."""
    for name in PROBES:
        monkeypatch.setattr(_plan(), name, _of_plan(name))


@pytest.fixture(scope="session")
def digits():
    """Real images without a download: (1797, 8, 8, 1) in [0, 1], and their classes."""
    from sklearn.datasets import load_digits

    data = load_digits()
    return data.images[..., np.newaxis].astype("float32") / 16, data.target.astype("int32")


@pytest.fixture(scope="session")
def randomize():
    """Give a network generic weights and moving statistics, as if it had been trained."""
    draw = {
        "gamma": lambda rng, shape: rng.uniform(0.5, 1.5, shape),
        "beta": lambda rng, shape: rng.normal(0, 0.5, shape),
        "bias": lambda rng, shape: rng.normal(0, 0.5, shape),
        "moving_mean": lambda rng, shape: rng.normal(0, 0.3, shape),
        "moving_variance": lambda rng, shape: rng.uniform(0.5, 2.0, shape),
        "kernel": lambda rng, shape: rng.normal(0, (2 / np.prod(shape[:-1])) ** 0.5, shape),
    }

    def assign(network, seed=0):
        rng = np.random.default_rng(seed)
        for variable in network.variables:
            if variable.name in draw:
                variable.assign(draw[variable.name](rng, tuple(variable.shape)))
        return network

    return assign


@pytest.fixture
def place(trained, tmp_path, monkeypatch):
    """A copy to work in of the directory ``trained``, which each module that asks for it makes."""
    shutil.copytree(trained, tmp_path / "place")
    monkeypatch.chdir(tmp_path / "place")
    return tmp_path / "place"
