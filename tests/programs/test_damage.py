"""Damaged files are refused in a line that names them; all cases: tests/sweeps/damage.py."""

import shutil

import pytest
from support import damage
from support.killing import SUPPORTED

pytestmark = pytest.mark.skipif(not SUPPORTED, reason="needs seccomp of Linux on x86-64")

# For each reader, one of so many of its cases: those that need no network are quick.
SHARE = {"train": 13, "export": 23, "craft": 71}


@pytest.mark.long
def test_whatever_is_damaged_is_refused_or_does_not_matter(launcher, small, tmp_path):
    shutil.copytree(small, tmp_path / "place")
    place = damage.make_place(launcher, tmp_path / "place", ("craft", "export"))
    judge, wrong, count = damage.Judge(place, tmp_path), {}, 0
    for reader, share in SHARE.items():
        judge.learn(launcher, reader)
        cases = [case for case in damage.cases(place) if case.reader == reader]
        for case in cases[::share]:
            outcome, line = judge(launcher, case, "damaged")
            count += 1
            if outcome not in ("refused", "as if intact"):
                wrong[str(case)] = f"{outcome} | {line}"
    assert not wrong
    assert count > 30
