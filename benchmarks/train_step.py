#!/usr/bin/env python
"""Time of one adversarial training step, beside PyTorch and ART, and what limits it.

    python benchmarks/train_step.py                      about six minutes on two cores
    python benchmarks/train_step.py --quick              does it run? the numbers mean little
    python benchmarks/train_step.py --json=result.json   also for programs
    python benchmarks/train_step.py --precision=mixed_bfloat16
    python benchmarks/train_step.py --model=resnet110 --contenders=ours,pytorch --rounds=5

One step is: ResNet-20, float32, 64 clean images of 24x24x3 and 64 adversarial ones made of them
inside the step (step_ll, epsilon clipped normal, at most 16), pivot loss with lambda 0.3 and
lambda_2 1e-4, weight decay 1e-4, SGD with momentum. Reading data is not part of it.

Every contender lives in a process of its own, all on the same number of threads. They take turns,
one at a time, for several rounds, so that whatever else the machine does meets all of them; a
ratio is of two medians of the same round. That PyTorch's step is the same step is checked first,
in float32. Under mixed_bfloat16 PyTorch computes under torch.autocast, and ART is left out.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib.util
import json
import math
import os
import re
import resource
import subprocess
import sys
import tempfile
import time
import traceback
from pathlib import Path
from typing import Any

import contenders
import numpy as np
from contenders import (
    ATTACK,
    BFLOAT16,
    FLOAT32,
    MATRIX_PRODUCT,
    MATRIX_SIDE,
    OURS,
    STEP,
    VARIANTS,
    Setup,
)
from rich.console import Console

from cascade_keras.machine import cores, processor
from cascade_keras.printed import print_table

REQUIRED_MODULE = {
    "pytorch": "torch",
    "torch_compile": "torch",
    "art": "art",
    "art_traced_once": "art",
}
ONLY_FLOAT32 = ("art", "art_traced_once")
TITLES = {
    ("ours", STEP): "cascade_keras",
    ("pytorch", "channels first"): "PyTorch channels first",
    ("pytorch", "channels last"): "PyTorch channels last",
    ("torch_compile", STEP): "torch.compile",
    ("art_traced_once", STEP): "ART, traced once",
    ("art", STEP): "ART as it comes",
}
# Threads of a process that has just finished spin for a moment before they sleep.
PAUSE_SECONDS = 0.2
# Load average for each thread above which the report warns.
BUSY = 0.25
LARGEST_LOGIT_DIFFERENCE = 1e-4
# Rounding of 1e-6 turns a few ReLUs over, which changes the gradients by some 0.3 % of a ResNet-20;
# a distance loss with another gradient changes them by 2 %. It adds up with the layers.
LARGEST_UPDATE_DIFFERENCE = 1e-2

# By worker and step: for each round (seconds, processor seconds) of each step.
Samples = dict[tuple[str, str], list[list[tuple[float, float]]]]


# The worker: one contender, driven by lines of JSON on its standard input.


def serve(name: str, setup: Setup) -> None:
    """Answer requests until the standard input is closed."""
    # Libraries print to the standard output; the answers get a descriptor of their own.
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    contender: contenders.Contender | None = None
    for line in sys.stdin:
        request = json.loads(line)
        try:
            if contender is None:
                contender = contenders.CONTENDERS[name](setup)
            answer = {"result": _answer(contender, **request)}
        except Exception:
            answer = {"error": traceback.format_exc()}
        print(json.dumps(answer), file=answers, flush=True)


def _answer(contender: contenders.Contender, command: str, **arguments) -> Any:
    if command == "time":
        return _time(contender.steps[arguments["step"]], arguments["count"])
    if command == "steps":
        return list(contender.steps)
    if command == "versions":
        return contender.versions()
    if command == "peak_memory":
        unit = 1 if sys.platform == "darwin" else 1024
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 2**20
    return contender.commands[command](**arguments)


def _time(step, count: int) -> list[tuple[float, float]]:
    """Return (seconds, processor seconds of all threads) of each step."""
    samples = []
    for _ in range(count):
        begin = time.perf_counter(), time.process_time()
        value = step()
        samples.append((time.perf_counter() - begin[0], time.process_time() - begin[1]))
        if not math.isfinite(value):
            raise ValueError(f"the step returned {value}; numbers of such a run are worthless")
    return samples


class Worker:
    """The driver's end of a worker process."""

    def __init__(self, name: str, setup: Setup, log: Path):
        root = Path(__file__).resolve().parent.parent
        path = os.pathsep.join(filter(None, [str(root), os.environ.get("PYTHONPATH")]))
        self.name = name
        self.log = log
        with open(log, "w", encoding="utf-8") as errors:
            self.process = subprocess.Popen(
                [
                    sys.executable, __file__, f"--worker={name}",
                    *(f"--{field}={value}" for field, value in setup._asdict().items()),
                ],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=errors,
                env={
                    **os.environ, "PYTHONPATH": path, "TF_CPP_MIN_LOG_LEVEL": "2",
                    # The first step is to find nothing that an earlier run has compiled.
                    "TORCHINDUCTOR_CACHE_DIR": f"{log}.compiled",
                },
                text=True,
            )  # fmt: skip

    def call(self, command: str, **arguments) -> Any:
        """Return the worker's answer.

        Raises:
            RuntimeError: the command failed there, or the process ended.
        """
        print(json.dumps({"command": command, **arguments}), file=self.process.stdin, flush=True)
        line = self.process.stdout.readline()
        if not line:
            raise RuntimeError(f"worker {self.name} ended:\n{self.log.read_text()[-2000:]}")
        answer = json.loads(line)
        if "error" in answer:
            raise RuntimeError(f"worker {self.name}: {answer['error']}")
        return answer["result"]

    def close(self) -> None:
        """Let the process end."""
        self.process.stdin.close()
        self.process.wait()


# The driver.


def measure(workers: dict[str, Worker], rounds: int, steps: int, console: Console) -> Samples:
    """Return what every step took, measured in turn."""
    turns = [(name, step) for name, worker in workers.items() for step in worker.call("steps")]
    samples: Samples = {turn: [] for turn in turns}
    for number in range(rounds):
        with console.status(f"round {number + 1} of {rounds}"):
            for name, step in turns:
                time.sleep(PAUSE_SECONDS)
                count = max(1, steps // 3) if name == "art" else steps
                samples[name, step].append(workers[name].call("time", step=step, count=count))
    return samples


def warm_up(
    workers: dict[str, Worker], steps: int, console: Console
) -> tuple[dict[str, float], dict[tuple[str, str], float]]:
    """Build and compile everything.

    A contender that cannot work here is taken out, and the console told why.

    Returns:
        The peak memory of each worker before its first step, and the seconds of each first step.
    """
    memory, first = {}, {}
    for name, worker in list(workers.items()):
        with console.status(f"starting {name}"):
            try:
                names = worker.call("steps")
                memory[name] = worker.call("peak_memory")
                for step in names:
                    found = worker.call("time", step=step, count=1 if name == "art" else steps)
                    first[name, step] = found[0][0]
            except RuntimeError as error:
                if name != "torch_compile":
                    raise
                del workers[name]
                (*_, why) = str(error).strip().splitlines()
                console.print(f"{name} left out, inductor cannot work here: {why}", markup=False)
    return memory, first


def compare_steps(setup: Setup, directory: Path) -> dict[str, float]:
    """Return how far one step of PyTorch's is from the same step of ours.

    In processes of their own, so that the memory it takes is not counted in the measurement; in
    float32, as half precision hides what would differ.

    Raises:
        RuntimeError: too far to be the same step.
    """
    path = str(directory / "reference.npz")
    found = {}
    for name, command in (("ours", "reference"), ("pytorch", "compare")):
        exact = setup._replace(precision=FLOAT32)
        with contextlib.closing(Worker(name, exact, directory / f"{name}.check")) as worker:
            found[name] = worker.call(command, path=path)
    same = found["pytorch"]
    largest = LARGEST_UPDATE_DIFFERENCE * math.sqrt(setup.depth / 20)
    if (
        same["parameters"] != found["ours"]["parameters"]
        or same["largest_logit_difference"] > LARGEST_LOGIT_DIFFERENCE
        or same["relative_update_difference"] > largest
    ):
        raise RuntimeError(f"PyTorch's step is another one: {found}")
    return same


def spread(values: list[float]) -> dict[str, float]:
    """Return the smallest value, the quartiles and the median."""
    first, median, third = np.percentile(values, (25, 50, 75)).tolist()
    return {"min": min(values), "first_quartile": first, "median": median, "third_quartile": third}


def spread_of(rounds: list[list[tuple[float, float]]], column: int = 0) -> dict[str, float]:
    """Return the spread over all steps of the seconds (column 0) or the processor seconds (1)."""
    return spread([sample[column] for samples in rounds for sample in samples])


def summarize(samples: Samples, reference: tuple[str, str]) -> dict[tuple[str, str], dict]:
    """Return spreads of seconds, processor seconds, and the ratio to the reference by round."""

    def medians(rounds) -> list[float]:
        return [float(np.median([wall for wall, _ in values])) for values in rounds]

    base = medians(samples[reference])
    return {
        turn: {
            "seconds": spread_of(rounds),
            "processor_seconds": spread_of(rounds, 1),
            "ratio": spread([a / b for a, b in zip(medians(rounds), base, strict=True)]),
        }
        for turn, rounds in samples.items()
    }


def describe_limits(workers: dict[str, Worker], samples: Samples, profiled: int) -> dict[str, Any]:
    """Return what the step computes, how fast, and where its time goes."""
    gflop = workers["anatomy"].call("gflop")
    kinds = workers["anatomy"].call("profile", steps_profiled=profiled)
    product = spread_of(samples["anatomy", MATRIX_PRODUCT])["median"]
    step = spread_of(samples["ours", STEP])["median"]
    return {
        "gflop": gflop,
        "gflop_per_second": sum(gflop.values()) / step,
        "matrix_product_gflop_per_second": 2 * MATRIX_SIDE**3 / 1e9 / product,
        "seconds_by_kind": kinds,
    }


def compare_variants(samples: Samples) -> dict[str, dict]:
    """Return what the step and the attack take with other layers, see ``summarize``."""
    variants = {}
    for part in (STEP, ATTACK):
        rounds = {turn: samples[turn] for turn in samples if turn[1].startswith(f"{part}, ")}
        summary = summarize(rounds, ("anatomy", f"{part}, {OURS}"))
        variants |= {step: found for (_, step), found in summary.items()}
    return variants


# The report.

COLUMNS = ("ms", "quartiles", "ratio", "quartiles", "best", "CPU ms")


def columns(found: dict[str, dict[str, float]]) -> list[str]:
    """Return the cells below ``COLUMNS``."""
    seconds, ratio = found["seconds"], found["ratio"]
    return [
        f"{seconds['median'] * 1e3:.1f}",
        f"{seconds['first_quartile'] * 1e3:.1f} - {seconds['third_quartile'] * 1e3:.1f}",
        f"{ratio['median']:.2f}",
        f"{ratio['first_quartile']:.2f} - {ratio['third_quartile']:.2f}",
        f"{seconds['min'] * 1e3:.1f}",
        f"{found['processor_seconds']['median'] * 1e3:.0f}",
    ]


def report(result: dict[str, Any], console: Console) -> None:
    settings = result["settings"]
    model, precision = settings.get("model", "resnet20"), settings.get("precision", FLOAT32)
    console.print(
        f"\n{model}, {precision}\n"
        f"{settings['processor']}, threads: {settings['threads']}; rounds: {settings['rounds']}; "
        f"steps a round: {settings['steps']}; load average at the start: {settings['load']:.1f}\n"
        + ", ".join(f"{name} {version}" for name, version in result["versions"].items())
    )
    if settings["load"] > BUSY * settings["threads"]:
        console.print(
            "[bold]Something else was running.[/bold] PyTorch's threads wait for each other after "
            "every op, so that a busy core slows it several times: its ratio is unfair. Repeat on "
            "an idle machine, or with --threads=1."
        )
    if same := result["same_step"]:
        console.print(
            f"\nPyTorch's step against ours in float32, from the same weights, images and epsilon: "
            f"{same['parameters']:,} parameters in both; largest difference of a logit "
            f"{same['largest_logit_difference']:.1e}; {same['equal_adversarial_values']:.3%} of "
            f"the adversarial images' values equal; loss apart by "
            f"{same['relative_loss_difference']:.1e}, the update of the kernels by "
            f"{same['relative_update_difference']:.1e} of its size\n"
        )
    rows = []
    for turn, title in TITLES.items():
        if found := result["steps"].get("/".join(turn)):
            memory = [f"{result[when][turn[0]]:.0f}" for when in ("peak_memory", "start_memory")]
            first = result.get("first_seconds", {}).get("/".join(turn))
            first = "" if first is None else f"{first:.1f}"  # older results lack it
            rows.append([title, *columns(found), first, *memory])
    print_table(
        ("", *COLUMNS, "first s", "peak MiB", "at start"),
        rows,
        fixed_columns=1,
        title="One training step, 64 + 64 images",
        console=console,
    )
    console.print(
        "ms: median. CPU ms: of all threads, waiting for each other included. ratio: to "
        "cascade_keras in the same round. First s: seconds of the first step, with tracing and "
        "compiling. Peak MiB: of the process, libraries included; at start: before its first "
        "step.\n"
        "PyTorch's channels first and last run eagerly, torch.compile has channels last. ART as "
        "it comes has its default train step, traced once one of its "
        "own that is compiled; it computes less: untargeted FGSM of a fixed epsilon, cross entropy "
        "alone; no distance, no lambda, no weight decay.\n"
    )
    if "limits" not in result:
        return
    _report_limits(result, console)
    for part, images in ((STEP, "64 + 64 images"), (ATTACK, "64 images")):
        rows = []
        for variant in VARIANTS:
            ms, _, *ratio = columns(result["variants"][f"{part}, {variant}"])[:4]
            rows.append([variant, ms, *ratio])
        title = f"The {part} with other layers, {images}"
        headings = ("", COLUMNS[0], *COLUMNS[2:4])
        print_table(headings, rows, fixed_columns=1, title=title, console=console)


def _report_limits(result: dict[str, Any], console: Console) -> None:
    limits = result["limits"]
    total = sum(limits["gflop"].values())
    product, reached = limits["matrix_product_gflop_per_second"], limits["gflop_per_second"]
    console.print(
        f"The step is {total:.1f} GFLOP of convolutions. A matrix product of side {MATRIX_SIDE} in "
        f"the same precision reaches {product:.0f} GFLOP/s here, the step {reached:.0f}, "
        f"{reached / product:.0%} of it. At the product's rate the convolutions alone would take "
        f"{total / product * 1e3:.0f} ms.\n"
    )
    kinds = limits["seconds_by_kind"]
    wall = sum(kinds.values())
    rows = []
    for kind, seconds in sorted(kinds.items(), key=lambda item: -item[1]):
        work = limits["gflop"].get(kind)
        speed = (f"{work:.1f}", f"{work / seconds:.0f}") if work else ("", "")
        rows.append([kind, f"{seconds * 1e3:.1f}", f"{seconds / wall:.1%}", *speed])
    print_table(
        ("kind of op", "ms", "share", "GFLOP", "GFLOP/s"),
        rows,
        fixed_columns=1,
        title=f"Where the time goes, under the profiler ({wall * 1e3:.1f} ms a step)",
        console=console,
    )
    console.print(
        "Ops that run at once share the time. In the attack bias and ReLU are part of the "
        "convolution, in training ReLU partly of the batch normalisation.\n"
    )


def run(args: argparse.Namespace, console: Console) -> dict[str, Any]:
    load = os.getloadavg()[0]
    setup = Setup(args.threads, args.model, args.precision)
    names = []
    for name in args.contenders:
        if name in REQUIRED_MODULE and not importlib.util.find_spec(REQUIRED_MODULE[name]):
            console.print(f"{name} left out: {REQUIRED_MODULE[name]} is not installed")
        elif name in ONLY_FLOAT32 and args.precision != FLOAT32:
            console.print(f"{name} left out: it is measured in float32 only")
        else:
            names.append(name)
    same, more = None, {}
    with tempfile.TemporaryDirectory() as name, contextlib.ExitStack() as stack:
        directory = Path(name)
        if "pytorch" in names:
            with console.status("comparing PyTorch's step with ours"):
                same = compare_steps(setup, directory)
        workers = {name: Worker(name, setup, directory / name) for name in names}
        for worker in workers.values():
            stack.callback(worker.close)
        start_memory, first_seconds = warm_up(workers, args.warmup, console)
        samples = measure(workers, args.rounds, args.steps, console)
        # Before the limits, whose measurement needs memory of its own.
        memory = {name: worker.call("peak_memory") for name, worker in workers.items()}
        if "anatomy" in workers:
            more = {"limits": describe_limits(workers, samples, args.steps)}
            more["variants"] = compare_variants(samples)
        versions: dict[str, str] = {}
        for worker in workers.values():
            versions |= worker.call("versions")
    steps = {turn: rounds for turn, rounds in samples.items() if turn in TITLES}
    names = ("threads", "model", "precision", "rounds", "steps", "warmup")
    return {
        "settings": {
            "processor": processor(),
            "load": load,
            **{name: getattr(args, name) for name in names},
        },
        "versions": versions,
        "same_step": same,
        "steps": {
            "/".join(turn): found for turn, found in summarize(steps, ("ours", STEP)).items()
        },
        "first_seconds": {"/".join(turn): found for turn, found in first_seconds.items()},
        "start_memory": start_memory,
        "peak_memory": memory,
        **more,
        "samples": {"/".join(turn): rounds for turn, rounds in samples.items()},
    }


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=11, help="turns of each contender")
    parser.add_argument(
        "--steps", type=int, default=6, help="steps of a turn; ART's default: a third"
    )
    parser.add_argument("--warmup", type=int, default=3, help="steps before the first round")
    parser.add_argument("--threads", type=int, default=cores(), help="all cores by default")
    parser.add_argument("--model", default="resnet20", help="resnet20, resnet32 ... resnet110")
    parser.add_argument("--precision", choices=(FLOAT32, BFLOAT16), default=FLOAT32)
    parser.add_argument(
        "--contenders", type=_names, default=",".join(contenders.CONTENDERS), help="%(default)s"
    )
    parser.add_argument("--json", type=Path, help="also write the result to this file")
    parser.add_argument("--quick", action="store_true", help="two rounds of one step, for a check")
    parser.add_argument("--worker", choices=contenders.CONTENDERS, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.quick:
        args.rounds, args.steps, args.warmup = 2, 1, 1
    if min(args.rounds, args.steps, args.warmup, args.threads) < 1:
        parser.error("--rounds, --steps, --warmup and --threads must be at least 1")
    if not re.fullmatch("resnet[0-9]{1,4}", args.model) or Setup(1, args.model).depth % 6 != 2:
        parser.error("--model must be a ResNet of a depth of 6n + 2, such as resnet110")
    return args


def _names(text: str) -> list[str]:
    names = text.split(",")
    if not set(names) <= set(contenders.CONTENDERS) or "ours" not in names:
        raise argparse.ArgumentTypeError(f"must have ours, of {', '.join(contenders.CONTENDERS)}")
    return [name for name in contenders.CONTENDERS if name in names]


def main() -> None:
    args = parse_arguments()
    if args.worker:
        serve(args.worker, Setup(args.threads, args.model, args.precision))
        return
    console = Console()
    try:
        result = run(args, console)
    except RuntimeError as error:
        sys.exit(f"train_step: {error}")
    if args.json:
        args.json.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")
    report(result, console)


if __name__ == "__main__":
    main()
