#!/usr/bin/env python
"""How much faster several processes craft one bank than one does.

    python benchmarks/craft_workers.py --data_dir=DIR                     CIFAR-10, minutes a round
    python benchmarks/craft_workers.py --dataset=digits --images=512 --batch=64 --epsilons=1..4

Each process has a core of its own, so one thread, and crafts with ``Crafting``, as bin/craft does:

    1 x 1 thread     one process on one core
    2 x 1 thread     two on a core each: --worker=0/2 and 1/2
    1 x 2 threads    one process on both cores

They take turns, A B C A B C. A turn begins when all its processes have loaded network and images,
and ends with the last one: compiling is part of it, importing TensorFlow is not. The machine has to
be idle. All banks of one number of threads have to be equal to the last byte.
"""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import in_turn

ONE, TWO, BOTH = "1 x 1 thread", "2 x 1 thread", "1 x 2 threads"


def cores() -> list[int]:
    """Return two cores that this process may use."""
    found = sorted(os.sched_getaffinity(0))
    if len(found) < 2:
        sys.exit("craft_workers: needs two cores, and may use one; see taskset")
    return found[:2]


def contenders() -> dict[str, list[tuple[str | None, list[int]]]]:
    """Return of each contender its processes: which worker, on which cores."""
    first, second = cores()
    return {
        ONE: [(None, [first])],
        TWO: [("0/2", [first]), ("1/2", [second])],
        BOTH: [(None, [first, second])],
    }


@contextlib.contextmanager
def started(settings: dict[str, Any], own: list[int]):
    """Start a process that crafts when it is told, once it has loaded what it needs."""
    process = subprocess.Popen(
        [sys.executable, __file__, "--process", json.dumps(settings)],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
        preexec_fn=lambda: os.sched_setaffinity(0, own),
    )  # fmt: skip
    try:
        expect(process, "ready")
        yield process
    finally:
        process.kill()
        process.wait()


def expect(process: subprocess.Popen, word: str) -> None:
    line = process.stdout.readline().strip()
    if line != word:
        sys.exit(f"craft_workers: a process said {line!r} instead of {word!r}")


def be_process(settings: dict[str, Any]) -> None:
    """Load, say so, craft when a line comes, and say so."""
    from cascade_keras import Crafting, CraftSettings

    crafting = Crafting(CraftSettings(**settings))
    crafting.source, crafting.dataset  # noqa: B018  loaded on first use
    print("ready", flush=True)
    sys.stdin.readline()
    crafting.run()
    print("done", flush=True)


def turn(settings: dict[str, Any], processes: list, place: Path) -> tuple[float, str]:
    """Craft a bank; return the seconds, and a hash of its files."""
    with contextlib.ExitStack() as stack, tempfile.TemporaryDirectory(dir=place) as folder:
        running = [
            stack.enter_context(
                started({**settings, "worker": worker, "output": f"{folder}/bank"}, own)
            )
            for worker, own in processes
        ]
        time.sleep(in_turn.PAUSE_SECONDS)
        begin = time.perf_counter()
        for process in running:
            print("go", file=process.stdin, flush=True)
        for process in running:
            expect(process, "done")
        seconds = time.perf_counter() - begin
        files = sorted((Path(folder) / "bank").iterdir())
        names = [file.name for file in files]
        if names != ["bank.json", "images.npy", "labels.npy"]:
            sys.exit(f"craft_workers: the bank is not complete: {names}")
        return seconds, hashlib.sha256(b"".join(file.read_bytes() for file in files)).hexdigest()


def compare(args: argparse.Namespace) -> dict[str, Any]:
    """Let the contenders take turns, and print what came of it."""
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder)
        settings = {
            "source": args.network or save_network(args, place), "dataset": args.dataset,
            "data_dir": args.data_dir, "examples": args.images, "batch_size": args.batch,
            "epsilons": list(args.epsilons),
        }  # fmt: skip
        samples: in_turn.Samples = {name: [] for name in contenders()}
        hashes: dict[str, set[str]] = {name: set() for name in samples}
        for number in range(args.rounds):
            for name, processes in contenders().items():
                in_turn.show(f"round {number + 1}/{args.rounds}: {name}")
                seconds, found = turn(settings, processes, place)
                samples[name].append([seconds])
                hashes[name].add(found)
        in_turn.show("")
    found = in_turn.summarize(samples, ONE)
    rows = [
        [
            name,
            in_turn.as_text(each["seconds"], digits=1),
            f"{args.images / each['seconds']['value']:.0f}",
            f"{1 / each['ratio']['value']:.2f} ({1 / each['ratio']['max']:.2f} - "
            f"{1 / each['ratio']['min']:.2f})",
        ]
        for name, each in found.items()
    ]
    title = f"{args.images} images at {len(args.epsilons)} epsilons, {args.batch} a shard"
    in_turn.print_table(title, ["processes", "seconds", "images/s", "times as fast"], rows)
    equal = len(hashes[ONE] | hashes[TWO]) == 1
    print(f"\nbanks of one and of two processes are {'' if equal else 'NOT '}equal, byte for byte")
    both = hashes[BOTH] == hashes[ONE]
    print(f"those of one thread and of two threads are {'equal too' if both else 'not equal'}")
    return {"contenders": found, "equal": equal, "equal_for_two_threads": both}


def save_network(args: argparse.Namespace, place: Path) -> str:
    """Save the untrained network, for other processes to load."""
    from cascade_keras import data

    network = in_turn.load_network(None, data.load(args.dataset, args.data_dir))
    network.model.save(place / "untrained.keras")
    return str(place / "untrained.keras")


def main() -> None:
    if sys.argv[1:2] == ["--process"]:
        be_process(json.loads(sys.argv[2]))
        return
    parser = in_turn.parser(__doc__)
    parser.add_argument("--images", type=in_turn.positive, default=2048, help="of the split")
    args = parser.parse_args()
    in_turn.run(args, lambda: {"workers": compare(args)})


if __name__ == "__main__":
    main()
