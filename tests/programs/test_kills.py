"""Programs killed at the worst of their writes and started again; all: tests/sweeps/kills.py."""

import shutil

import pytest
from support.killing import SUPPORTED
from support.programs import PROGRAMS, TRAIN, canonical, differences

pytestmark = pytest.mark.skipif(not SUPPORTED, reason="needs seccomp of Linux on x86-64")


TRAINING = (*TRAIN, "--loss=standard", "--tensorboard=none", "--name=run")

# For each program, kills one after the other: how, what the call does, to which path's end, and
# the how manieth such call it is.
KILLS = {
    "a training": [
        ("in", "create", ".partial-config.json", 0),
        ("in", "create", ".partial-step-00000002.keras", 0),
        ("in", "create", ".partial-metrics.json", 0),
    ],
    "own": [  # images that are decoded, then a network that draws
        ("in", "create", ".partial-images.npy", 0),
        ("in", "open", "images.npy", 0),
        ("in", "create", ".partial-decoded.json", 2),
        ("in", "create", ".partial-step-00000002.keras", 0),
    ],
    "craft": [("in", "create", ".partial-bank.json", 0), ("in", "open", "images.npy", 0)],
    "export": [("in", "create", ".temporary", 0), ("before", "rename", "piv/1", 0)],
    "prepare_data": [("in", "create", "features.json", 0), ("after", "rename", "3.0.1", 0)],
}


LONG = ("a training", "own", "craft")


@pytest.mark.parametrize(
    "program",
    [pytest.param(name, marks=pytest.mark.long) if name in LONG else name for name in KILLS],
)
def test_killed_at_a_write_it_goes_on_to_the_same_end(program, launcher, small, tmp_path):
    argv = PROGRAMS.get(program, TRAINING)
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    shutil.copytree(small, whole)
    shutil.copytree(small, killed)
    first = launcher.run(argv, whole)
    assert first.status == 0, first.errors
    for how, kind, end, nth in KILLS[program]:
        event = next(
            e for e in first.events if (e.kind, e.nth) == (kind, nth) and e.path.endswith(end)
        )
        ran = launcher.run(argv, killed, kill=(how, event), sizes=first.sizes)
        assert ran.status == -9, (event, ran.errors)
    ran = launcher.run(argv, killed)
    assert ran.status == 0, ran.errors
    assert differences(canonical(whole), canonical(killed)) == []
