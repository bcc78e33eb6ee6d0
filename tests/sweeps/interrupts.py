"""Ctrl-C and SIGTERM at many moments of a program's life: one line, and 128 + the signal.

    python tests/sweeps/interrupts.py [MOMENTS] [SECONDS]

The moments lie between the program's first line and SECONDS later, 20 of them within 6 s where
nothing is said. A training under way ends with a checkpoint and says so on
standard output; a program that is finished when the signal comes says nothing.
"""

from __future__ import annotations

import pathlib
import signal
import subprocess
import sys
import tempfile
import time

ROOT = pathlib.Path(__file__).resolve().parent.parent.parent
sys.path.insert(0, str(ROOT / "tests"))

from support.processes import awaits_signals, wait_until  # noqa: E402

DEFAULTS = ("20", "6")
TRAIN = ["--dataset=digits", "--model=lenet", "--tensorboard=none", "--log_steps=100000"]
WORDS = {signal.SIGINT: "interrupted", signal.SIGTERM: "terminated"}


def commands(place: pathlib.Path) -> dict[str, list[str]]:
    """Return the programs' flags; a first training makes what the others need."""
    once = ["--steps=20", "--name=once", "--eval_attacks=step_ll"]
    subprocess.run([ROOT / "bin" / "train", *TRAIN, *once], cwd=place, check=True)
    return {
        "train": [*TRAIN, "--name=again", "--steps=100000"],
        "evaluate": ["--target=runs/once", "--output=report", "--pgd_steps=400"],
        "craft": ["--source=runs/once", "--output=bank"],
        "analyze": ["--figure=accuracy_curve", "--model=runs/once"],
        "export": ["--run=runs/once", "--output=exported"],
    }


def interrupt(
    place: pathlib.Path, program: str, flags: list[str], number: int, after: float
) -> str | None:
    """Return what is wrong with a program's end, None where it is as it should be."""
    command = [sys.executable, str(ROOT / "bin" / program), *flags]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    process = subprocess.Popen(command, cwd=place, **pipes)
    wait_until(process, lambda: awaits_signals(process))
    time.sleep(after)
    process.send_signal(number)
    said, errors = process.communicate()
    lines = errors.splitlines()
    if process.returncode == 0 and not lines:
        return None  # it was finished
    if process.returncode == 128 + number:
        if lines == [f"{program}: {WORDS[number]}"]:
            return None
        if program == "train" and said.startswith("stopped at step") and not lines:
            return None
    return f"exit {process.returncode}, {len(lines)} lines: {' | '.join(lines)[:300]}"


def main() -> int:
    """Print a table of program, signal, moments and failures."""
    given = [*sys.argv[1:], *DEFAULTS[len(sys.argv) - 1 :]]
    moments, seconds = int(given[0]), float(given[1])
    failures = 0
    with tempfile.TemporaryDirectory() as folder:
        place = pathlib.Path(folder)
        for program, flags in commands(place).items():
            for number in WORDS:
                wrong = []
                for moment in range(moments):
                    after = seconds * moment / max(moments - 1, 1)
                    problem = interrupt(place, program, flags, number, after)
                    wrong += [f"  after {after:.2f} s: {problem}"] if problem else []
                print(f"{program:9} {number.name} {moments} moments, {len(wrong)} wrong")
                print(*wrong, sep="\n", end="\n" if wrong else "", flush=True)
                failures += len(wrong)
    return bool(failures)


if __name__ == "__main__":
    sys.exit(main())
