"""Start two processes on one output at once, again and again.

    python tests/sweeps/pairs.py             20 pairs of each kind, about 10 minutes on 2 cores

One works; the other says in one line that it cannot (exit code 2), or finds it done, or waits and
goes on. What is there in the end must be what a process on its own leaves.
"""

from __future__ import annotations

import argparse
import collections
import concurrent.futures
import pathlib
import random
import shutil
import sys
import tempfile
import time

from common import Pool, faults_of_refusal, report, said
from support.programs import PROGRAMS, TRAIN, canonical, differences, make_place

_TRAINING = (
    *TRAIN, "--steps=2", "--loss=pivot", "--adversarial_batch_size=8", "--tensorboard=none",
    "--name=run",
)  # fmt: skip
_BANK = (
    *PROGRAMS["cascade by bank"], "--steps=2", "--max_epsilon=2", "--bank_examples=70",
)  # fmt: skip
KINDS = {
    "train": (_TRAINING, _TRAINING),
    "own": (PROGRAMS["own"],) * 2,
    "two that decode": (
        PROGRAMS["own"],
        (*PROGRAMS["own"][:-2], "--tensorboard=none", "--name=other"),
    ),
    "craft": (PROGRAMS["craft"],) * 2,
    "evaluate": (PROGRAMS["evaluate"],) * 2,
    "analyze": (PROGRAMS["analyze"],) * 2,
    "export": (PROGRAMS["export"],) * 2,
    "prepare_data": (PROGRAMS["prepare_data"],) * 2,
    "train and craft": (_BANK, (*PROGRAMS["craft"], "--batch_size=256")),
}

# Two of these need what the other makes: a bank, decoded images.
AGAIN = ("train and craft", "two that decode")


def pair(pool: Pool, kind: str, number: int, start: pathlib.Path, base: pathlib.Path, wanted):
    """Return how the two ended, and what is wrong."""
    place = base / f"{kind} {number}"
    shutil.copytree(start, place)
    drawn = random.Random(f"{kind} {number}")
    delays = [0.0, drawn.choice([0, 0.01, 0.1, 0.5, 1.5]) * drawn.random()]
    drawn.shuffle(delays)
    with concurrent.futures.ThreadPoolExecutor(2) as both:
        runs = [
            both.submit(launcher.run, argv, place, delay=delay, name=str(n))
            for n, (launcher, argv, delay) in enumerate(
                zip(pool.launchers, KINDS[kind], delays, strict=True)
            )
        ]
        ran = [run.result() for run in runs]
    wrong = [fault for one in ran if one.status for fault in faults_of_refusal(one)]
    wrong += [f"{said(one)}" for one in ran if not one.status and said(one)]
    if all(one.status for one in ran):
        wrong.append("none worked")
    # Where a training was refused what another was making, it is started again.
    for argv, one in zip(KINDS[kind], ran, strict=True):
        if kind in AGAIN and one.status == 2 and argv[0] == "train":
            again = pool.launchers[0].run(argv, place)
            wrong += [f"not again: {said(again)}"] if again.status else []
    changed = differences(wanted, canonical(place))
    wrong += [f"another end: {changed[:5]}"] if changed else []
    shutil.rmtree(place)
    return sum(one.status == 2 for one in ran), wrong


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", default=",".join(KINDS), help="kinds, of: %(default)s")
    parser.add_argument("--pairs", type=int, default=20)
    options = parser.parse_args()
    base = pathlib.Path(tempfile.mkdtemp(prefix="pairs-"))
    wrong = {}
    with Pool(2) as pool:
        start = make_place(pool.launchers[0], base / "place")
        print("| kind | pairs | both end | one line | wrong | seconds |")
        print("|---|---:|---:|---:|---:|---:|", flush=True)
        for kind in options.only.split(","):
            started = time.monotonic()
            lone = base / f"{kind} alone"
            shutil.copytree(start, lone)
            for argv in dict.fromkeys(reversed(KINDS[kind])):
                ran = pool.run(argv, lone)
                assert ran.status == 0, ran.errors
            wanted = canonical(lone)
            counts: collections.Counter = collections.Counter()
            for number in range(options.pairs):
                refused, faults = pair(pool, kind, number, start, base, wanted)
                counts[refused] += 1
                wrong |= {f"{kind} {number}": faults} if faults else {}
            bad = sum(name.rpartition(" ")[0] == kind for name in wrong)
            print(f"| {kind} | {options.pairs} | {counts[0]} | {counts[1]} | {bad} | "
                  f"{time.monotonic() - started:.0f} |", flush=True)  # fmt: skip
    shutil.rmtree(base)
    return report(wrong)


if __name__ == "__main__":
    sys.exit(main())
