"""Kill every program at each of its writes, start it again, and compare with an unkilled run.

    python tests/sweeps/kills.py                        every program, about 15 minutes on 2 cores
    python tests/sweeps/kills.py --only=craft --json=kills.json

A program is run twice, which must do the same, call by call. The second time it is halted before
each creation, renaming, removal, cutting and flushing of a file or folder, and in the middle of
what is written into each file, and what lies on the disk then is copied: what a kill leaves there.
From each state that differs from the others the same command is started again, and must end with
what the unkilled run has, see ``support.programs.canonical``. A few of the states are also made by
SIGKILL itself, and must be those that were copied.
"""

from __future__ import annotations

import argparse
import concurrent.futures
import json
import pathlib
import queue
import re
import shutil
import sys
import tempfile
import time

sys.path[:0] = [str(pathlib.Path(__file__).parents[1])]

from support.killing import Launcher  # noqa: E402
from support.programs import (  # noqa: E402
    PROGRAMS,
    canonical,
    differences,
    make_place,
    without_places,
)

KILLED = 6  # states of a program that are made by SIGKILL, too


class Sweep:
    """The work of one program after the other, by several launchers."""

    def __init__(self, place: pathlib.Path, base: pathlib.Path, launchers: queue.Queue, jobs: int):
        self.place, self.base, self.launchers = place, base, launchers
        self.pool = concurrent.futures.ThreadPoolExecutor(jobs)

    def run(self, argv, place: pathlib.Path, start: pathlib.Path, **options):
        """Run a program in a copy of a directory."""
        shutil.copytree(start, place, symlinks=True)
        launcher = self.launchers.get()
        try:
            return launcher.run(argv, place, **options)
        finally:
            self.launchers.put(launcher)

    def program(self, name: str, done: dict) -> dict:
        """Return what became of a program's kill points; ``done`` has those of an earlier sweep."""
        started = time.monotonic()
        argv, work = PROGRAMS[name], self.base / name.replace(" ", "-")
        shutil.rmtree(work, ignore_errors=True)
        work.mkdir()
        first = self.run(argv, work / "first", self.place)
        (work / "states").mkdir()
        options = {"copies": work / "states", "sizes": first.sizes, "seconds": 600}
        second = self.run(argv, work / "second", self.place, **options)
        wanted = canonical(work / "first")
        found = {"points": len(second.points), "events": len(first.events), "failures": {}}
        found["failures"] |= self._check_traces(first, second, wanted, work)
        states = {}
        for how, event, state in second.points:
            states.setdefault(
                state, f"{how} {event.kind} {event.path} {event.nth}" if event else how
            )
        found["states"], found["survived"] = len(states), 0
        left = {state: point for state, point in states.items() if point not in done}
        restarts = {
            point: self.pool.submit(self._restart, argv, work, state, wanted)
            for state, point in left.items()
        }
        results = {point: future.result() for point, future in restarts.items()}
        found["results"] = {point: done.get(point, results.get(point)) for point in states.values()}
        found["failures"] |= {p: r for p, r in found["results"].items() if r}
        found["survived"] = sum(
            not found["results"][states[state]] for _, _, state in second.points
        )
        kills = [
            self.pool.submit(self._kill, argv, work, point, first.sizes)
            for point in second.points[:: max(1, len(second.points) // KILLED)]
            if point[1]
        ]
        wrong = filter(None, (kill.result() for kill in kills))
        found["failures"] |= {point: ["SIGKILL left another state"] for point in wrong}
        found["kills"], found["seconds"] = len(kills), round(time.monotonic() - started)
        if not found["failures"]:
            shutil.rmtree(work)
        return found

    def _check_traces(self, first, second, wanted, work) -> dict:
        failures = {}
        for ran in (first, second):
            if ran.status:
                failures["unkilled"] = [f"status {ran.status}: {ran.errors[-2000:]}"]
        if first.events != second.events:
            other = set(first.events) ^ set(second.events)
            failures["trace"] = [f"not the same calls: {sorted(map(str, other))[:6]}"]
        changed = differences(wanted, canonical(work / "second"))
        if changed:
            failures["two unkilled runs"] = changed
        before = {p.relative_to(self.place) for p in self.place.rglob("*")}
        seen = {event.path for event in first.events if event.kind in ("create", "rename", "link")}
        files = (p for p in (work / "first").rglob("*") if p.is_file())
        unseen = [str(p) for p in (p.relative_to(work / "first") for p in files)
                  if p not in before and not _seen(str(p), seen)]  # fmt: skip
        if unseen:
            failures["files that came unseen"] = unseen
        return failures

    def _restart(self, argv, work: pathlib.Path, state: int, wanted: dict) -> list[str]:
        """Return what is wrong after a program was started again from a state."""
        place = work / f"restarted-{state}"
        ran = self.run(argv, place, work / "states" / str(state))
        wrong = differences(wanted, canonical(place))
        if ran.status:
            wrong = [f"status {ran.status}: {ran.errors[-1500:]}"]
        if not wrong:
            shutil.rmtree(place)
        return wrong

    def _kill(self, argv, work: pathlib.Path, point, sizes: dict) -> str | None:
        """Return the point where SIGKILL leaves something else than was copied."""
        how, event, state = point
        place = work / f"killed-{how}-{event.nth}-{abs(hash(event))}"
        ran = self.run(argv, place, self.place, kill=(how, event), sizes=sizes)
        left, copied = _steady(place), _steady(work / "states" / str(state))
        shutil.rmtree(place)
        if ran.status == -9 and left == copied:
            return None
        return (
            f"{how} {event.kind} {event.path}: {ran.status}, {dict(left.items() ^ copied.items())}"
        )


def _steady(place: pathlib.Path) -> dict:
    """Return names and sizes; contents have times in them."""
    from support.killing import normal

    return {
        normal(str(path.relative_to(place))): path.is_dir() or len(without_places(path))
        for path in place.rglob("*") if not re.search("tfevents|seconds|[.]pb$", path.name)
    }  # fmt: skip


def _seen(path: str, seen: set[str]) -> bool:
    """Whether a file, or a folder that it is in, was seen made."""
    from support.killing import normal

    parts = pathlib.PurePath(normal(path))
    return any(str(part) in seen for part in (parts, *parts.parents))


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", default=",".join(PROGRAMS), help="programs, of: %(default)s")
    parser.add_argument("--jobs", type=int, default=2)
    parser.add_argument("--json", type=pathlib.Path, help="results; a sweep goes on from it")
    parser.add_argument("--keep", type=pathlib.Path, help="directory for what failed")
    options = parser.parse_args()
    results = {}
    if options.json and options.json.exists():
        results = json.loads(options.json.read_text())
    base = pathlib.Path(options.keep or tempfile.mkdtemp(prefix="kills-"))
    shutil.rmtree(base / "place", ignore_errors=True)
    launchers: queue.Queue = queue.Queue()
    everyone = [Launcher() for _ in range(options.jobs)]
    for launcher in everyone:
        launchers.put(launcher)
    place = make_place(everyone[0], base / "place")
    sweep = Sweep(place, base, launchers, options.jobs)
    print("| program | calls | kill points | states | survived | by SIGKILL | seconds |")
    print("|---|---:|---:|---:|---:|---:|---:|", flush=True)
    for name in options.only.split(","):
        done = results.get(name, {}).get("results", {})
        found = results[name] = sweep.program(name, done)
        print(
            f"| {name} | {found['events']} | {found['points']} | {found['states']} | "
            f"{found['survived']} | {found['kills']} | {found['seconds']} |", flush=True,
        )  # fmt: skip
        for point, wrong in found["failures"].items():
            print(
                f"  FAILED {name}: {point}: {', '.join(wrong)[:300]}", file=sys.stderr, flush=True
            )
        if options.json:
            options.json.write_text(json.dumps(results, indent=1))
    for launcher in everyone:
        launcher.__exit__()
    failures = sum(len(found["failures"]) for found in results.values())
    if not failures and not options.keep:
        shutil.rmtree(base)
    return bool(failures)


if __name__ == "__main__":
    sys.exit(main())
