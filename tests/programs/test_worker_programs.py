"""Programs as workers: in processes at once, killed at random and started again."""

import concurrent.futures
import json
import random
import shutil

import pytest
from support.killing import SUPPORTED, Launcher
from support.programs import PROGRAMS, canonical, differences

pytestmark = [
    pytest.mark.long,
    pytest.mark.skipif(not SUPPORTED, reason="needs seccomp of Linux on x86-64"),
]
KILLS = 10


@pytest.fixture(scope="module")
def launchers(launcher):
    with Launcher() as other:
        yield launcher, other


def at_once(launchers, place, argv, count, seconds=(120, 120)):
    """Run the workers 0 and 1 of so many at the same time."""
    with concurrent.futures.ThreadPoolExecutor() as pool:
        ran = [
            pool.submit(
                launchers[n].run, [*argv, f"--worker={n}/{count}"], place, name=n, seconds=most
            )
            for n, most in enumerate(seconds)
        ]
    return [each.result() for each in ran]


def check_equal(whole, place):
    assert differences(canonical(whole), canonical(place)) == []


@pytest.mark.parametrize("program", ["craft", "evaluate"])
def test_two_at_once_killed_at_random_make_the_files_of_one(program, launchers, small, tmp_path):
    whole, place = (shutil.copytree(small, tmp_path / name) for name in ("whole", "workers"))
    smaller = "--batch_size=8" if program == "craft" else "--batch_size=5"
    argv = [*(f for f in PROGRAMS[program] if not f.startswith("--batch_size")), smaller]
    alone = launchers[0].run(argv, whole)
    assert alone.status == 0, alone.errors
    draw, killed = random.Random(0), 0
    while killed < KILLS:
        # From when there is nothing to when all is nearly there.
        ran = at_once(launchers, place, argv, 2, [alone.seconds * draw.uniform(0.2, 1)] * 2)
        assert {each.status for each in ran} <= {0, -9}, ran
        killed += sum(each.status == -9 for each in ran)
        if all(each.status == 0 for each in ran):
            break
    ran = at_once(launchers, place, argv, 2)
    assert [each.status for each in ran] == [0, 0], ran
    check_equal(whole, place)


def test_tf_config_makes_a_worker(launchers, small, tmp_path, monkeypatch):
    told = {"cluster": {"worker": ["a:1", "b:1"]}, "task": {"type": "worker", "index": 1}}
    monkeypatch.setenv("TF_CONFIG", json.dumps(told))
    place = shutil.copytree(small, tmp_path / "place")
    with Launcher() as launcher:
        ran = launcher.run(PROGRAMS["craft"], place)
    assert ran.status == 0 and ran.output.splitlines() == [
        "worker 1/2, as TF_CONFIG says; --worker=0/1 for all of the work",
        "banks/std: worker 1/2 has crafted its shards; 2 shards are missing, of worker 0/2 (2); "
        "the same command with --worker=0/2, or without --worker, makes what nobody is at work on",
    ]
