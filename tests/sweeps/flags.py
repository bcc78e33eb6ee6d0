"""Every flag of every program with all that its type forbids: one line, exit code 2, nothing left.

    python tests/sweeps/flags.py

The values are made from the settings classes, see tests/support/hostile.py. Prints a table, and
exits with 1 where anything is accepted, ends in a traceback, says more than a line, leaves a file,
or needs TensorFlow.
"""

from __future__ import annotations

import os
import pathlib
import sys
import tempfile
import time

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent.parent))

from support import hostile


def main() -> int:
    """Run all cases and print the table."""
    wrong: list[str] = []
    print(f"{'program':13} flags  cases  refused in a line  seconds")
    with tempfile.TemporaryDirectory() as folder:
        os.chdir(folder)
        for program in hostile.PROGRAMS:
            started = time.monotonic()
            cases = list(hostile.cases(program))
            found = {case: hostile.run(case, pathlib.Path(folder)) for case in cases}
            bad = [f"{case.name}: {problem}" for case, problem in found.items() if problem]
            wrong += bad
            flags, seconds = len({case.flag for case in cases}), time.monotonic() - started
            refused = len(cases) - len(bad)
            print(f"{program:13} {flags:5} {len(cases):6} {refused:18} {seconds:8.1f}", flush=True)
        os.chdir("/")
    print(*wrong, sep="\n")
    if hostile.imported_tensorflow():
        wrong.append("TensorFlow was imported")
        print(wrong[-1])
    return bool(wrong)


if __name__ == "__main__":
    sys.exit(main())
