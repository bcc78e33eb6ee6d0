"""Damage every file that is read, in every way, and run the program that reads it.

    python tests/sweeps/damage.py                       all cases, about 15 minutes on 2 cores
    python tests/sweeps/damage.py --only=bank.json      those whose name has it

See ``support.damage``. Prints a table, and every outcome that should not be on standard error.
"""

from __future__ import annotations

import argparse
import collections
import concurrent.futures
import json
import pathlib
import queue
import shutil
import sys
import tempfile
import time

sys.path[:0] = [str(pathlib.Path(__file__).parents[1])]

from support import damage  # noqa: E402
from support.killing import Launcher  # noqa: E402
from support.programs import make_place  # noqa: E402


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", default="", help="of cases, a part of the name")
    parser.add_argument("--every", type=int, default=1, help="take one case of so many")
    parser.add_argument("--jobs", type=int, default=2)
    parser.add_argument("--json", type=pathlib.Path, help="outcomes")
    options = parser.parse_args()
    base = pathlib.Path(tempfile.mkdtemp(prefix="damage-"))
    launchers: queue.Queue = queue.Queue()
    everyone = [Launcher() for _ in range(options.jobs)]
    for launcher in everyone:
        launchers.put(launcher)
    place = damage.make_place(everyone[0], make_place(everyone[0], base / "place"))
    judge = damage.Judge(place, base)
    found = [case for case in damage.cases(place) if options.only in str(case)][:: options.every]
    for reader in {case.reader for case in found}:
        judge.learn(everyone[0], reader)

    def run(number: int, case: damage.Case):
        launcher = launchers.get()
        started = time.monotonic()
        try:
            return *judge(launcher, case, f"case {number}"), time.monotonic() - started
        finally:
            launchers.put(launcher)

    with concurrent.futures.ThreadPoolExecutor(options.jobs) as pool:
        outcomes = dict(zip(map(str, found), pool.map(run, range(len(found)), found), strict=True))
    table: dict = collections.defaultdict(collections.Counter)
    wrong = {}
    for case in found:
        outcome, line, seconds = outcomes[str(case)]
        good = outcome in ("refused", "as if intact")
        row = table[case.file.replace("std-*", "NAME"), case.reader]
        row["cases"] += 1
        row[outcome if good else "wrong"] += 1
        row["seconds"] += seconds
        if not good:
            wrong[str(case)] = f"{outcome} | {line[:160]}"
    print("| file | read by | cases | refused | as if intact | wrong | seconds |")
    print("|---|---|---:|---:|---:|---:|---:|")
    for (file, reader), row in table.items():
        numbers = [row[x] for x in ("cases", "refused", "as if intact", "wrong")]
        print(f"| {file} | {reader} | {' | '.join(map(str, numbers))} | {row['seconds']:.0f} |")
    for case, outcome in wrong.items():
        print(f"WRONG {case}: {outcome}", file=sys.stderr)
    if options.json:
        options.json.write_text(json.dumps(outcomes, indent=1))
    for launcher in everyone:
        launcher.__exit__()
    shutil.rmtree(base)
    return bool(wrong)


if __name__ == "__main__":
    sys.exit(main())
