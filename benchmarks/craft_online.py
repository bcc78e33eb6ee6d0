#!/usr/bin/env python
"""Cascade images in a training step: read from a bank, or crafted within the step.

    python benchmarks/craft_online.py --data_dir=DIR --network=RUN --rounds=3
    python benchmarks/craft_online.py --dataset=digits --batch=16 --epsilons=1..3 --rounds=1

A pivot training step with one-step images alone, with half of them read from a bank, and with half
of them crafted within the step; the time of reading alone; peak memory. Without --bank, a bank of
random signs is made in the temporary directory: 1.4 GB of CIFAR-10 unless --bank_images is smaller.
The second command shows whether it runs. What is compared takes turns in one process.
"""

from __future__ import annotations

import contextlib
import dataclasses
import itertools
import os
import resource
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import in_turn
import keras
import numpy as np
import tensorflow as tf
from in_turn import Network, as_text, build_network, measure, print_table, summarize

from cascade_keras import bank, cascade, data
from cascade_keras.errors import InputError
from cascade_keras.training import AdversarialTrainer

READS = 10  # for each timed step of training
UNTIMED_STEPS = 3  # of a turn of training: more than the two batches that were prefetched
SAMPLING = "clipped_normal"
BANK_ALONE, FROM_DISK = "bank alone, in the page cache", "bank alone, from the disk"


@dataclasses.dataclass(frozen=True)
class Training:
    """What the training steps share: m images a step, k of them adversarial, k // 2 of the bank."""

    dataset: data.Dataset
    network: Network
    batch: int
    max_epsilon: int

    @property
    def adversarial(self) -> int:
        return self.batch // 2

    def partners(self, banked: bank.Bank) -> bank.BankPartners:
        """Return what reads the cascade images of a step."""
        k = self.adversarial
        return bank.BankPartners(
            [banked],
            range(k - k // 2, k),
            seed=0,
            max_epsilon=self.max_epsilon,
            sampling=SAMPLING,
        )

    def batches(self, partners: bank.BankPartners | None = None) -> Iterator:
        """Return the batches as ``bin/train`` makes them."""
        clean = self.batch - self.adversarial
        return iter(
            data.batches(
                *self.dataset.train,
                clean,
                seed=0,
                crop=self.network.side,
                augment=self.dataset.preset.augment,
                partners=partners,
            )
        )

    def step(
        self, partners: bank.BankPartners | None = None, sources: Sequence[Callable] = ()
    ) -> Callable[[], float]:
        """Return one call of what ``fit`` calls for every batch."""
        trainer = AdversarialTrainer(
            build_network(self.dataset, self.network.side),
            "pivot",
            adversarial_batch_size=self.adversarial,
            max_epsilon=self.max_epsilon,
            epsilon_sampling=SAMPLING,
            cascade_sources=sources,
        )
        trainer.compile(optimizer=keras.optimizers.SGD(0.1, momentum=0.9))
        trainer.make_train_function()
        batches = self.batches(partners)
        return lambda: float(trainer.train_function(batches)["loss"])


def random_bank(path: Path, training: Training, images: int) -> bank.Bank:
    """Make a bank of random signs, which reads like any other."""
    stored, labels = training.dataset.train
    wanted = bank.identity(
        source_hash="",
        dataset_hash=training.dataset.fingerprint,
        split="train",
        crop=training.network.side,
        attack="step_rand",
        epsilons=cascade.bank_epsilons(training.max_epsilon),
        examples=images,
    )
    cropped = data.centre_crop(stored[:images], training.network.side)
    made = bank.Bank(path)
    made.craft(wanted, lambda images: None, cropped, labels[:images], shard_size=1000)
    return made


def load_bank(path: str, training: Training) -> bank.Bank:
    """Load a bank of these images.

    Raises:
        InputError: it is not complete, or of others.
    """
    loaded = bank.Bank(path).load()
    if not loaded.complete:
        raise InputError(f"{path} is not complete", "bank")
    loaded.check(
        {
            "dataset_hash": training.dataset.fingerprint,
            "split": "train",
            "crop": training.network.side,
            "epsilons": cascade.bank_epsilons(training.max_epsilon),
        }
    )
    return loaded


def readers(training: Training, banked: bank.Bank) -> dict[str, Callable[[], Any]]:
    """Return the reading of a step's batch with and without a bank, and of the bank alone."""
    plain, joined = training.batches(), training.batches(training.partners(banked))
    partners = training.partners(banked)
    steps = itertools.count()

    @tf.function(input_signature=[tf.TensorSpec([], tf.int64)])
    def read(step):
        seed = tf.stack([0, tf.cast(step, tf.int32)])
        shape, last = [len(partners.rows)], partners.examples
        indices = tf.random.stateless_uniform(shape, seed, 0, last, tf.int32)
        return partners.read(step, indices)

    return {
        "batch without a bank": lambda: next(plain),
        "batch with a bank": lambda: next(joined),
        BANK_ALONE: lambda: read(tf.constant(next(steps), tf.int64)),
    }


def into_page_cache(file: Path) -> None:
    """Read a file once, as the first epoch of a training would."""
    with open(file, "rb") as opened:
        while opened.read(1 << 24):
            pass


def out_of_page_cache(file: Path) -> None:
    """Have the kernel forget a file, none of whose pages wait to be written."""
    with open(file, "rb") as opened:
        os.posix_fadvise(opened.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def peak_memory() -> float:
    """Return the largest resident memory of this process so far, in MiB."""
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 2**20


def compare_training(
    training: Training, banked: bank.Bank, rounds: int, calls: int
) -> dict[str, Any]:
    """Measure training steps in turn, and reading alone, and print the table."""
    makers = {
        "pivot": training.step,
        "pivot, bank": lambda: training.step(training.partners(banked)),
        "pivot, online": lambda: training.step(sources=[training.network.logits]),
    }
    into_page_cache(banked.images_file)
    memory = {"data": peak_memory()}
    steps = {}
    for name, make in makers.items():
        steps[name] = make()
        for _ in range(UNTIMED_STEPS):
            steps[name]()
        memory[name] = peak_memory()
    found = summarize(measure(steps, rounds, calls, untimed=UNTIMED_STEPS), "pivot")
    memory["all steps"] = peak_memory()
    reading = readers(training, banked)
    for read in reading.values():
        read()
    memory["readers"] = peak_memory()
    samples = measure(reading, rounds, READS * calls, untimed=UNTIMED_STEPS)
    out_of_page_cache(banked.images_file)
    samples |= measure({FROM_DISK: reading[BANK_ALONE]}, rounds, calls, untimed=UNTIMED_STEPS)
    memory["reading"] = peak_memory()
    # Most calls find a batch that was prefetched by one that was slower: the mean, not the median.
    found_reading = summarize(samples, next(iter(reading)), np.mean)
    print_training(training, found, found_reading, memory, rounds)
    return {"steps": found, "reading": found_reading, "peak_memory": memory}


def print_training(training: Training, steps, reading, memory, rounds: int) -> None:
    """Print what ``compare_training`` found."""
    pivot = steps["pivot"]["seconds"]["value"]
    rows = [
        (name, as_text(r["seconds"], 1e3), as_text(r["ratio"]), f"{memory[name]:.0f}")
        for name, r in steps.items()
    ]
    rows += [
        (name, as_text(r["seconds"], 1e3), f"{r['seconds']['value'] / pivot:.2%}", "")
        for name, r in reading.items()
    ]
    k = training.adversarial
    print_table(
        f"A training step of {training.batch - k} clean and {k} adversarial images, {k // 2} of "
        f"them cascade images, and the reading of its batch; rounds: {rounds}",
        ("", "ms (range)", "time, pivot = 1 (range)", "peak MiB by then"),
        rows,
    )
    gradients = cascade.online_gradients(training.max_epsilon, SAMPLING)
    print(
        f"\nOnline: {gradients:.1f} gradients of each cascade image on average. In training, "
        f"batches are read while the step before them runs.\nPeak memory in MiB: "
        f"{memory['data']:.0f} before the first step, {memory['all steps']:.0f} after all; "
        f"{memory['readers']:.0f} before what reads alone, {memory['reading']:.0f} after."
    )


def main() -> None:
    parser = in_turn.parser(__doc__)
    parser.add_argument("--calls", type=in_turn.positive, default=10, help="a turn, of a step")
    parser.add_argument("--bank", help="that is read; default: a temporary one")
    parser.add_argument("--bank_images", type=in_turn.positive, default=50_000, help="of that one")
    args = parser.parse_args()

    def measurement() -> dict[str, Any]:
        dataset = data.load(args.dataset, args.data_dir)
        network = in_turn.load_network(args.network, dataset)
        training = Training(dataset, network, args.batch, max(args.epsilons))
        with contextlib.ExitStack() as stack:
            if args.bank:
                banked = load_bank(args.bank, training)
            else:
                directory = stack.enter_context(tempfile.TemporaryDirectory())
                images = min(args.bank_images, len(dataset.train[1]))
                banked = random_bank(Path(directory) / "bank", training, images)
            return {"online": compare_training(training, banked, args.rounds, args.calls)}

    in_turn.run(args, measurement)


if __name__ == "__main__":
    main()
