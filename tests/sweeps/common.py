"""What the sweeps share: launchers in parallel, and what a program may print."""

from __future__ import annotations

import concurrent.futures
import pathlib
import queue
import re
import sys

sys.path[:0] = [str(pathlib.Path(__file__).parents[1])]

from support.killing import Launcher, Ran  # noqa: E402


class Pool:
    """Launchers that work side by side; a context manager."""

    def __init__(self, jobs: int):
        self.launchers = [Launcher() for _ in range(jobs)]
        self._free: queue.Queue = queue.Queue()
        for launcher in self.launchers:
            self._free.put(launcher)
        self._threads = concurrent.futures.ThreadPoolExecutor(jobs)

    def __enter__(self) -> Pool:
        return self

    def __exit__(self, *error) -> None:
        self._threads.shutdown()
        for launcher in self.launchers:
            launcher.__exit__(*error)

    def run(self, argv, place, **options) -> Ran:
        """Run a program by a launcher that is free."""
        launcher = self._free.get()
        try:
            return launcher.run(argv, place, **options)
        finally:
            self._free.put(launcher)

    def map(self, work, *arguments) -> list:
        """Return what a function returns for each argument, several at a time."""
        return list(self._threads.map(work, *arguments))


def said(ran: Ran) -> list[str]:
    """Return the lines of standard error but for those that show how far a program is."""
    progress = r"step \d|\S.* min left$|prepare_data: warning: .* is not the official download"
    return [line for line in ran.errors.splitlines() if not re.match(progress, line)]


def faults_of_refusal(ran: Ran) -> list[str]:
    """Return what is wrong with the way in which a program said that it could not."""
    if "Traceback" in ran.errors:
        return [f"traceback: {said(ran)[-1]}"]
    if ran.status != 2:
        return [f"status {ran.status}: {said(ran)[-2:]}"]
    lines = said(ran)
    return [] if len(lines) == 1 else [f"{len(lines)} lines: {lines[:4]}"]


def report(wrong: dict[str, object]) -> bool:
    """Print what went wrong, by name, to standard error; return whether anything did."""
    for name, faults in wrong.items():
        print(f"WRONG {name}: {faults}", file=sys.stderr)
    return bool(wrong)
