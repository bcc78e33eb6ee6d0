"""Kill a reproduction at random moments, start it again, and compare with an unkilled one.

    python tests/sweeps/reproductions.py                          table 1 on digits, five kills
    python tests/sweeps/reproductions.py --kills=5 --all          every table and figure: an hour
    python tests/sweeps/reproductions.py --jobs=2 --table=8 --seed=1

The unkilled one does one job at a time, whatever --jobs says. The other is killed by SIGKILL at
moments that are drawn, so that about all of the work is met; then it is started once more and left
alone. All files of its pages must be equal to the last byte, and so must the predictions that they
are made of.
"""

from __future__ import annotations

import argparse
import pathlib
import random
import signal
import subprocess
import sys
import tempfile
import time

ROOT = pathlib.Path(__file__).resolve().parents[2]
COMPARED = ("*.md", "*.csv", "*.json", "reports/*/report.json", "reports/*/predictions/*.npy",
            "figures/*/*.txt")  # fmt: skip


def command(flags: list[str]) -> list[str]:
    """Return the program with its flags."""
    return [sys.executable, str(ROOT / "bin" / "reproduce"), *flags]


def whole(flags: list[str], place: pathlib.Path) -> float:
    """Run it to its end and return the seconds that it took."""
    started = time.monotonic()
    place.mkdir()
    with open(place / "log", "ab") as log:
        subprocess.run(command(flags), cwd=place, stdout=log, stderr=log, check=True)
    return time.monotonic() - started


def killed(flags: list[str], place: pathlib.Path, moments: list[float]) -> int:
    """Kill it after so many seconds each time, run it to its end; return how many kills met it."""
    place.mkdir()
    met = 0
    with open(place / "log", "ab") as log:
        for seconds in moments:
            child = subprocess.Popen(command(flags), cwd=place, stdout=log, stderr=log)
            try:
                child.wait(seconds)
            except subprocess.TimeoutExpired:
                child.send_signal(signal.SIGKILL)
                child.wait()
                met += 1
            time.sleep(1 if "--jobs=1" in flags else 5)  # programs of its own end with it
        subprocess.run(command(flags), cwd=place, stdout=log, stderr=log, check=True)
    return met


def contents(place: pathlib.Path) -> dict[str, bytes]:
    """Return what is compared, by its place."""
    folder = place / "reproduction"
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for pattern in COMPARED
        for path in sorted(folder.glob(pattern))
    }


def main() -> int:
    """Print the moments and what differs; 0 where nothing does."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--table", default="1")
    parser.add_argument("--all", action="store_true")
    parser.add_argument("--kills", type=int, default=5)
    parser.add_argument("--jobs", type=int, default=1)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--scale", type=float, default=0.02)
    parser.add_argument("--num_images", type=int, default=30)
    chosen = parser.parse_args()
    wanted = "--all" if chosen.all else f"--table={chosen.table}"
    flags = [wanted, "--dataset=digits", f"--scale={chosen.scale}",
             f"--num_images={chosen.num_images}"]  # fmt: skip
    with tempfile.TemporaryDirectory() as folder:
        seconds = whole(flags, pathlib.Path(folder, "whole"))
        draw = random.Random(chosen.seed)
        moments = [draw.uniform(0, 1.5 * seconds / chosen.kills) for _ in range(chosen.kills)]
        flags.append(f"--jobs={chosen.jobs}")
        met = killed(flags, pathlib.Path(folder, "killed"), moments)
        one, other = (contents(pathlib.Path(folder, name)) for name in ("whole", "killed"))
    differ = sorted(name for name in one.keys() | other.keys() if one.get(name) != other.get(name))
    at = ", ".join(f"{moment:.1f}" for moment in moments)
    print(f"{' '.join(flags)}: {seconds:.0f} s unkilled; killed after {at} s, {met} met it")
    print(f"{len(one)} files compared, {len(differ)} differ", *differ)
    return 1 if differ or not one else 0


if __name__ == "__main__":
    sys.exit(main())
