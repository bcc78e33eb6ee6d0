#!/usr/bin/env python
"""What half precision gains and costs: steps a second beside accuracy, on MNIST or CIFAR-10.

    python benchmarks/precisions.py --data_dir=DIR                  ten minutes on two idle cores
    python benchmarks/precisions.py --dataset=digits --quick        does it run?

Three trainings of the same seed take turns, each in a process of its own: in float32; in float32
where oneDNN may compute convolutions in bfloat16 (TF_SET_ONEDNN_FPMATH_MODE=BF16, which TensorFlow
reads as it starts); and with --precision=mixed_bfloat16. A ratio is of two medians of the same
round. Then each network is measured in float32. Last, the images that the float32 network is
attacked with are crafted in each precision and shown to it in float32: how many verdicts differ?
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import sys
import time
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from cascade_keras import machine
from cascade_keras.attacks.specs import Attack
from cascade_keras.printed import print_table
from cascade_keras.runs.settings import TrainingSettings, clean_images

FPMATH = "TF_SET_ONEDNN_FPMATH_MODE"
FLOAT32 = "float32"


class Kind(NamedTuple):
    """One way to compute: a policy of Keras and what oneDNN is told by the environment."""

    precision: str
    fpmath: str | None


KINDS = {
    FLOAT32: Kind(FLOAT32, None),
    "float32, bf16 math": Kind(FLOAT32, "BF16"),
    "mixed_bfloat16": Kind("mixed_bfloat16", None),
}


# A process: one training, asked by its parent.


def serve(asked: Connection, settings: TrainingSettings, images: int) -> None:
    """Answer (command, arguments) until the other end is closed."""
    training = _Training(settings, images)
    while True:
        try:
            command, arguments = asked.recv()
        except EOFError:
            return
        asked.send(getattr(training, command)(*arguments))


class _Training:
    def __init__(self, settings: TrainingSettings, images: int):
        import keras

        from cascade_keras import data
        from cascade_keras.runs import build

        self.dataset = data.load(settings.dataset, settings.data_dir)
        self.settings = settings.resolved(self.dataset.preset)
        test = data.test_images(self.dataset, self.settings.crop)
        self.images, self.labels = (part[:images] for part in test)
        keras.utils.set_random_seed(settings.seed)
        with build.precision(settings.precision):
            network = build.build_network(self.settings, self.dataset)
            self.trainer = build.build_trainer(self.settings, network)

    def train(self, first: int, last: int) -> list[float]:
        """Take steps; return the seconds of each."""
        import keras

        from cascade_keras import data

        class Clock(keras.callbacks.Callback):
            seconds: list[float] = []  # noqa: RUF012  of this call

            def on_train_batch_begin(self, batch, logs=None):
                self.begin = time.perf_counter()

            def on_train_batch_end(self, batch, logs=None):
                self.seconds.append(time.perf_counter() - self.begin)

        settings = self.settings
        batches = data.batches(
            *self.dataset.train, clean_images(settings), seed=settings.seed, start=first,
            stop=last, crop=settings.crop, augment=settings.augment,
        )  # fmt: skip
        self.trainer.fit(batches, callbacks=[Clock()], shuffle=False, verbose=0)
        return Clock.seconds

    def weights(self) -> list[np.ndarray]:
        return self.trainer.network.get_weights()

    def crafted(self, weights: list[np.ndarray], attack: str) -> np.ndarray:
        """Return the images that the network of these weights is attacked with."""
        found = []
        self._attack(weights, [attack], lambda attack, first, versions: found.append(versions[0]))
        return np.concatenate(found)

    def accuracies(self, weights: list[np.ndarray], attacks: list[str]) -> dict[str, float]:
        """Return what these weights get right in this process's precision, in per cent."""
        return {found.attack: found.accuracy for found in self._attack(weights, attacks)}

    def _attack(self, weights, names, show=lambda attack, first, versions: None):
        from cascade_keras.evaluation.white_box import WhiteBox

        self.trainer.network.set_weights(weights)
        epsilon = (self.settings.max_epsilon,)
        asked = [Attack.clean() if name == "clean" else Attack(name, epsilon) for name in names]
        shape = self.images.shape[1:]
        measure = WhiteBox(self.trainer.inference_logits, shape, asked)
        return measure(self.images, self.labels, show=show)

    def classes(self, weights: list[np.ndarray], images: np.ndarray) -> np.ndarray:
        """Return the classes of images, the weights being these."""
        self.trainer.network.set_weights(weights)
        outputs = self.trainer.predict(images, batch_size=250, verbose=0)
        return outputs["logits"].argmax(-1)


# The parent, which imports no TensorFlow.


def start(kind: Kind, settings: TrainingSettings, images: int) -> Connection:
    """Start a process for one way to compute, and return the end to ask it by."""
    context = multiprocessing.get_context("spawn")
    here, there = context.Pipe()
    # What TensorFlow reads as it starts is inherited.
    os.environ.pop(FPMATH, None)
    if kind.fpmath:
        os.environ[FPMATH] = kind.fpmath
    settings = settings.replace(precision=kind.precision)
    process = context.Process(target=serve, args=(there, settings, images), daemon=True)
    process.start()
    there.close()
    return here


def ask(of: Connection, command: str, *arguments) -> Any:
    of.send((command, arguments))
    return of.recv()


def show(text: str) -> None:
    print(f"{text} ...", file=sys.stderr, flush=True)


def measure(args: argparse.Namespace, settings: TrainingSettings) -> dict[str, Any]:
    """Train in turn, then measure and compare."""
    kinds = {name: kind for name, kind in KINDS.items() if not kind.fpmath or machine.bfloat16()}
    of = {name: start(kind, settings, args.images) for name, kind in kinds.items()}
    seconds: dict[str, list[list[float]]] = {name: [] for name in kinds}
    each = args.steps // args.rounds
    for number in range(args.rounds):
        for name in kinds:
            show(f"round {number + 1} of {args.rounds}: {name}, {each} steps")
            found = ask(of[name], "train", number * each, (number + 1) * each)
            # The first steps of a call read ahead, those of the first trace the graph.
            seconds[name].append(found[min(3, each - 1) :])
    result: dict[str, Any] = {"seconds": seconds, "accuracy": {}, "verdicts": {}}
    attacks = ["clean", *args.attacks]
    for name in kinds:
        show(f"measuring {name} in float32")
        weights = ask(of[name], "weights")
        result["accuracy"][name] = ask(of[FLOAT32], "accuracies", weights, attacks)
        if name == FLOAT32:
            reference = weights
    expected = _verdicts(of[FLOAT32], of[FLOAT32], reference, args.attacks)
    for name in kinds:
        show(f"crafting in {name}")
        found = _verdicts(of[name], of[FLOAT32], reference, args.attacks)
        result["verdicts"][name] = {
            attack: int(np.sum(found[attack] != expected[attack])) for attack in args.attacks
        }
    for end in of.values():
        end.close()
    return result


def _verdicts(crafter, judge, weights, attacks) -> dict[str, np.ndarray]:
    """Return the classes in float32 of what is crafted in the precision of another process."""
    return {
        attack: ask(judge, "classes", weights, ask(crafter, "crafted", weights, attack))
        for attack in attacks
    }


def report(result: dict[str, Any], args: argparse.Namespace) -> None:
    """Print speed, accuracies and verdicts of each precision."""
    instructions = ", ".join(machine.bfloat16()) or "none"
    print(f"{machine.processor()}, {machine.cores()} cores; bfloat16 instructions: {instructions}")
    if not machine.bfloat16():
        print("bf16 math left out: without such instructions oneDNN computes in float32")
    medians = {
        name: np.array([np.median(turn) for turn in turns])
        for name, turns in result["seconds"].items()
    }
    rows = []
    for name, found in medians.items():
        ratio = medians[FLOAT32] / found
        accuracies = [f"{value:.2f}" for value in result["accuracy"][name].values()]
        spread = f"{ratio.min():.2f} - {ratio.max():.2f}"
        speed = f"{1e3 * np.median(found):.1f}", f"{np.median(ratio):.2f}"
        rows.append([name, *speed, *accuracies, spread])
    names = list(result["accuracy"][FLOAT32])
    headings = ("precision", "ms a step", "times float32", *names, "of a round")
    title = (
        f"{args.dataset}, {args.model}, {args.loss}, seed {args.seed}: {args.steps} steps, then "
        f"accuracy in % of {args.images} test images in float32, white box"
    )
    print_table(headings, rows, fixed_columns=1, title=title)
    rows = [[name, *map(str, found.values())] for name, found in result["verdicts"].items()]
    title = "The float32 network, attacked in each precision: verdicts in float32 that differ"
    print_table(("crafted in", *args.attacks), rows, fixed_columns=1, title=title)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--dataset", default="mnist", help="mnist, cifar10, digits")
    parser.add_argument("--data_dir", help="of TensorFlow Datasets")
    parser.add_argument("--model", default="resnet20")
    parser.add_argument("--loss", default="pivot")
    parser.add_argument("--learning_rate", type=float, default=0.03, help="of so short a training")
    parser.add_argument("--steps", type=int, default=600, help="of each training")
    parser.add_argument("--rounds", type=int, default=6, help="turns of each training")
    parser.add_argument("--images", type=int, default=1000, help="test images")
    parser.add_argument("--attacks", default="step_ll,iter_fgsm", help="at max_epsilon")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--quick", action="store_true", help="a few steps; the numbers mean little")
    parser.add_argument("--json", type=Path, help="also write the result to this file")
    args = parser.parse_args()
    if args.quick:
        args.steps, args.rounds, args.images = 16, 2, 50
    if not 1 <= args.rounds <= args.steps:
        parser.error("--steps must be at least --rounds, which must be at least 1")
    args.attacks = args.attacks.split(",")
    settings = TrainingSettings(
        dataset=args.dataset, data_dir=args.data_dir, model=args.model, loss=args.loss,
        learning_rate=args.learning_rate, steps=args.steps, lr_boundaries=(), seed=args.seed,
    )  # fmt: skip
    result = measure(args, settings)
    report(result, args)
    if args.json:
        settings = {**vars(args), "processor": machine.processor(), "cores": machine.cores(),
                    "bfloat16": machine.bfloat16()}  # fmt: skip
        text = json.dumps({"settings": settings, **result}, indent=1, default=str)
        args.json.write_text(text + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
