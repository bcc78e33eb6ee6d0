"""How much longer a training takes with all that TensorBoard shows than without.

    python benchmarks/tensorboard_cost.py                               digits, its 1000 steps
    python benchmarks/tensorboard_cost.py --rounds=1 -- --dataset=mnist --data_dir=DIR

Both take turns (without, with, without, with, ...) in one process; everything after ``--`` goes to
bin/train. Two numbers: the ratio of the seconds, which suffers from whatever else the machine
does, and the share of its own time that a training spends on the pictures.
"""

from __future__ import annotations

import argparse
import os
import statistics
import tempfile
import time

from cascade_keras.cli.train import main as train
from cascade_keras.startup import import_tensorflow


class Timer:
    """Counts the seconds spent in functions."""

    def __init__(self):
        self.seconds: dict[str, float] = {}

    def wrap(self, owner: type, name: str) -> None:
        original = getattr(owner, name)

        def timed(*args, **kwargs):
            started = time.perf_counter()
            try:
                return original(*args, **kwargs)
            finally:
                spent = time.perf_counter() - started
                self.seconds[name] = self.seconds.get(name, 0.0) + spent

        setattr(owner, name, timed)


def run(directory: str, kind: str, number: int, flags: list[str]) -> float:
    """Train once and return the seconds."""
    started = time.perf_counter()
    own = (f"--runs_dir={directory}", f"--name={kind}-{number}", f"--tensorboard={kind}")
    status = train(["train", *own, "--noexport", "--log_steps=100", *flags])
    if status:
        raise SystemExit(status)
    return time.perf_counter() - started


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=2, help="trainings of each kind")
    parser.add_argument("flags", nargs="*", help="flags of bin/train")
    args = parser.parse_args()
    import_tensorflow()
    from cascade_keras.runs.dashboard import Dashboard

    timer = Timer()
    for name in ("__init__", "open", "look", "finish", "close"):
        timer.wrap(Dashboard, name)
    seconds: dict[str, list[float]] = {"none": [], "all": []}
    shares = []
    with tempfile.TemporaryDirectory() as directory:
        run(directory, "none", 0, [*args.flags, "--steps=2"])  # what only the first one pays
        for number in range(1, args.rounds + 1):
            for kind, found in seconds.items():
                timer.seconds.clear()
                load = os.getloadavg()[0]
                found.append(run(directory, kind, number, args.flags))
                spent = sum(timer.seconds.values())
                if kind == "all":
                    shares.append(spent / (found[-1] - spent))
                parts = ", ".join(f"{name} {value:.2f}" for name, value in timer.seconds.items())
                print(
                    f"{kind:>4}: {found[-1]:7.1f} s, load {load:.1f}; pictures: {parts or 'none'}"
                )
    ratio = statistics.median(b / a for a, b in zip(*seconds.values(), strict=True))
    print(f"with / without: {ratio:.3f}; spent on pictures: {statistics.median(shares):.2%}")


if __name__ == "__main__":
    main()
