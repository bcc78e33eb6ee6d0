#!/usr/bin/env python
"""Training over workers: two processes of one thread each against one process of one and of two.

    python benchmarks/workers.py --dataset=cifar10 --data_dir=DIR --model=resnet20 --rounds=3
    python benchmarks/workers.py --dataset=digits --model=resnet8 --steps=20 --every=10 --rounds=1

Each round starts bin/train three times, one after the other, of the same seed and the same global
batch: on the first core, on the first two, and as two workers of TF_CONFIG, one on each of these.
What counts are the images a second that the chief reports, without the first report, which has the
tracing in it. Beside it: how much of a step is reading and cutting a worker's rows of the batch,
alone on one core, and how far apart the final weights are, which also a second thread changes: the
sign of a gradient near 0 is decided by rounding. The second command shows whether it runs. It needs
Linux, two idle cores and nothing else.
"""

from __future__ import annotations

import json
import os
import re
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import in_turn
import keras
import numpy as np
from in_turn import as_text, positive, print_table, ranged

from cascade_keras import data

ROOT = Path(__file__).resolve().parent.parent
ONE, TWO, WORKERS = "1 process, 1 thread", "1 process, 2 threads", "2 workers, 1 thread each"
SPEED = re.compile(r"(\d+) images/s")


def command(args, folder: Path, name: str) -> list[str]:
    """Return bin/train of one run, which writes as little as it can."""
    given = [f"--data_dir={args.data_dir}"] if args.data_dir else []
    return [
        sys.executable, "-W", "ignore", str(ROOT / "bin" / "train"), f"--dataset={args.dataset}",
        f"--model={args.model}", f"--steps={args.steps}", f"--log_steps={args.every}",
        f"--batch_size={args.batch}", f"--adversarial_batch_size={args.batch // 2}",
        "--tensorboard=none", "--export=False", "--eval_attacks=step_ll", "--lr_boundaries=none",
        "--checkpoint_minutes=1000", f"--runs_dir={folder}", f"--name={name}", *given,
    ]  # fmt: skip


def start(arguments: list[str], cores: list[int], **environment: str) -> subprocess.Popen:
    """Start a process on some cores, of which TensorFlow takes as many threads."""
    return subprocess.Popen(
        ["taskset", "-c", ",".join(map(str, cores)), *arguments],
        env={**os.environ, "TF_CPP_MIN_LOG_LEVEL": "3", "PYTHONPATH": str(ROOT), **environment},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def train(args, folder: Path, name: str, kind: str, cores: list[int]) -> list[float]:
    """Train a run and return the images a second of each report but the first."""
    arguments = command(args, folder, name)
    if kind != WORKERS:
        processes = [start(arguments, cores[: 1 if kind == ONE else 2])]
    else:
        addresses = [f"127.0.0.1:{_free_port()}" for _ in cores]
        processes = [
            start(
                [*arguments, "--strategy=multiworker"],
                [core],
                TF_CONFIG=json.dumps(
                    {
                        "cluster": {"worker": addresses},
                        "task": {"type": "worker", "index": index},
                    }
                ),
            )
            for index, core in enumerate(cores)
        ]
    said = [process.communicate()[0] for process in processes]
    if any(process.returncode for process in processes):
        sys.exit("\n".join(said))
    return [float(speed) for speed in SPEED.findall(said[0])][1:]


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def input_seconds(args, cores: list[int]) -> float:
    """Return the seconds that a worker's rows of a batch take, on one core, without training."""
    dataset = data.load(args.dataset, args.data_dir)
    clean = args.batch // 2
    batches = data.batches(
        *dataset.train, clean, seed=0, crop=dataset.preset.crop, augment=dataset.preset.augment,
        replicas=range(1), of_replicas=len(cores),
    )  # fmt: skip
    allowed = os.sched_getaffinity(0)
    os.sched_setaffinity(0, cores[:1])
    try:
        taken = iter(batches)
        for _ in range(10):  # those that were made beforehand
            next(taken)
        begin = time.perf_counter()
        for _ in range(args.steps):
            next(taken)
        return (time.perf_counter() - begin) / args.steps
    finally:
        os.sched_setaffinity(0, allowed)


def weights(folder: Path, name: str) -> list[np.ndarray]:
    """Return what a run has trained; moving variances are of any size."""
    variables = keras.models.load_model(folder / name / "model.keras").trainable_variables
    return [variable.numpy() for variable in variables]


def compare(args) -> dict[str, Any]:
    """Measure all in turn, print the table, and return what was measured."""
    cores = sorted(os.sched_getaffinity(0))[:2]
    if len(cores) < 2:
        sys.exit("workers: needs two cores")
    kinds = {ONE: "one", TWO: "two", WORKERS: "workers"}
    speeds: dict[str, list[float]] = {kind: [] for kind in kinds}
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        for number in range(args.rounds):
            for kind, name in kinds.items():
                in_turn.show(f"round {number + 1}/{args.rounds}: {kind}")
                own = train(args, folder, f"{name}-{number}", kind, cores)
                speeds[kind].append(float(np.median(own)))
        in_turn.show("")
        one = weights(folder, "one-0")
        apart = {
            kind: max(
                float(np.abs(a - b).max())
                for a, b in zip(one, weights(folder, f"{kinds[kind]}-0"), strict=True)
            )
            for kind in (TWO, WORKERS)
        }
    found = {
        kind: {
            "images_per_second": ranged(float(np.median(own)), np.array(own)),
            "ratio": ranged(
                float(np.median(own) / np.median(speeds[ONE])), np.array(own) / speeds[ONE]
            ),
            "turns": own,
        }
        for kind, own in speeds.items()
    }
    rows = [
        [kind, as_text(each["images_per_second"], digits=0), as_text(each["ratio"])]
        for kind, each in found.items()
    ]
    title = f"{args.model}, {args.dataset}, {args.batch} images a step, median (range)"
    print_table(title, ["", "images/s", f"times {ONE}"], rows)
    step = args.batch / found[WORKERS]["images_per_second"]["value"]
    read = input_seconds(args, cores)
    print(f"a worker's rows of a batch: {1000 * read:.2f} ms, {100 * read / step:.1f} % of a step")
    told = ", ".join(f"{kind} {value:.1e}" for kind, value in apart.items())
    print(f"weights after {args.steps} steps, at most apart from those of {ONE}: {told}")
    return {"speeds": found, "input_seconds": read, "step_seconds": step, "apart": apart}


def main() -> None:
    """Run the benchmark."""
    parser = in_turn.parser(__doc__)
    parser.add_argument("--model", default="resnet20", help="as in bin/train")
    parser.add_argument("--steps", type=positive, default=200, help="of each training")
    parser.add_argument("--every", type=positive, default=25, help="steps between two reports")
    args = parser.parse_args()
    if args.steps < 2 * args.every:
        parser.error("--steps must be twice --every or more: the first report does not count")
    in_turn.run(args, lambda: compare(args))


if __name__ == "__main__":
    main()
