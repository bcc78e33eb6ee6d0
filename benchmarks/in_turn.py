"""What the programs that time banks share: measuring in turn, tables, and what is attacked."""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import importlib.metadata
import json
import os
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import keras
import numpy as np
import tensorflow as tf
from train_step import BUSY, PAUSE_SECONDS

from cascade_keras import attacks, data, model_files, models, printed
from cascade_keras.crafting import parse_epsilons
from cascade_keras.errors import InputError
from cascade_keras.machine import processor
from cascade_keras.sources import load_source

PACKAGES = ("tensorflow", "keras", "numpy", "foolbox", "adversarial-robustness-toolbox")
PACKAGES += ("torch", "torchattacks")
ATTACK = "iter_fgsm"

# By name, for each round the seconds of each call.
Samples = dict[str, list[list[float]]]


# Measuring in turn.


def measure(
    turns: dict[str, Callable[[], Any]], rounds: int, calls: int = 1, untimed: int = 0
) -> Samples:
    """Return the seconds of every call; all take turns of so many calls."""
    samples: Samples = {name: [] for name in turns}
    for number in range(rounds):
        for name, call in turns.items():
            show(f"round {number + 1}/{rounds}: {name}")
            time.sleep(PAUSE_SECONDS)
            for _ in range(untimed):
                call()
            seconds = []
            for _ in range(calls):
                begin = time.perf_counter()
                call()
                seconds.append(time.perf_counter() - begin)
            samples[name].append(seconds)
    show("")
    return samples


def show(progress: str) -> None:
    """Show on a terminal what is being measured, in the place of what was shown before."""
    if sys.stderr.isatty():
        print(f"\r\033[K{progress}", end="", file=sys.stderr, flush=True)


def summarize(samples: Samples, reference: str, centre=np.median) -> dict[str, dict[str, Any]]:
    """Return the seconds of one call, and the ratio to the reference, with their ranges.

    Args:
        centre: of the calls of a turn; the mean where some calls do the work of others.
    """
    turns = {name: np.array([centre(calls) for calls in s]) for name, s in samples.items()}
    return {
        name: {
            "seconds": ranged(np.median(turn), turn),
            "ratio": ranged(np.median(turn) / np.median(turns[reference]), turn / turns[reference]),
            "samples": samples[name],
        }
        for name, turn in turns.items()
    }


def ranged(value: float, values: np.ndarray) -> dict[str, float]:
    """Return a value with the smallest and the largest of those that it stands for."""
    return {"value": float(value), "min": float(values.min()), "max": float(values.max())}


def as_text(found: dict[str, float], factor: float = 1.0, digits: int = 2) -> str:
    """Return what ``ranged`` returned as "1.20 (1.10 - 1.30)"."""
    value, least, most = (f"{factor * found[k]:.{digits}f}" for k in ("value", "min", "max"))
    return f"{value} ({least} - {most})"


def print_table(title: str, columns: Sequence[str], rows: Sequence[Sequence[Any]]) -> None:
    """Print a table below its title, in several parts where it is wider than the terminal."""
    texts = [list(map(str, row)) for row in rows]
    printed.print_table(columns, texts, fixed_columns=1, title=title)


# What is attacked.


@dataclasses.dataclass(frozen=True)
class Network:
    """A network to be attacked.

    Attributes:
        logits: images -> logits, in inference mode; what all contenders get.
        model: the Keras network; None where it is a SavedModel.
    """

    name: str
    side: int
    logits: attacks.LogitsFn
    model: keras.Model | None


def inference(model: keras.Model) -> attacks.LogitsFn:
    """Return images -> logits of a Keras network in inference mode."""

    def logits_fn(images: tf.Tensor) -> tf.Tensor:
        outputs = model(images, training=False)
        return outputs["logits"] if isinstance(outputs, dict) else outputs

    return logits_fn


def build_network(dataset: data.Dataset, side: int) -> keras.Model:
    """Return an untrained ResNet-20 for images of this side, the same at every call."""
    keras.utils.set_random_seed(0)
    shape = (side, side, dataset.preset.image_shape[-1])
    mean = data.mean_image(dataset, side)
    return models.build("resnet20", input_shape=shape, normalization="pixel", mean=mean)


def load_network(path: str | None, dataset: data.Dataset) -> Network:
    """Load a network by its path; the untrained one when None."""
    if path is None:
        side = dataset.preset.crop
        model = build_network(dataset, side)
        images = data.centre_crop(dataset.train[0][:384], side)
        for part in np.split(images / np.float32(255), 3):
            # Folding is nothing but copying where the moving statistics are still 0 and 1.
            model(part, training=True)
        return Network("untrained resnet20", side, inference(model), model)
    source = load_source(path)
    side = source.input_shape[0] or dataset.preset.crop
    channels = dataset.preset.image_shape[-1]
    source.check((side, side, channels), dataset.preset.num_classes)
    model = None
    if source.path.suffix == ".keras":
        model = model_files.load_network(source.path)
    return Network(source.name, side, source.logits, model)


def with_constant_weights(logits_fn: attacks.LogitsFn, image_shape: Sequence[int]):
    """Return the same function with its weights as constants.

    A tape around a tf.function has it compute the gradients of all its inputs, those of the weights
    too, whether or not anybody watches them. Constants have no gradients. Ours has no need of it:
    its tape is inside of the compiled function, from which what is not asked for is pruned.
    """
    from tensorflow.python.framework.convert_to_constants import convert_variables_to_constants_v2

    spec = tf.TensorSpec([None, *image_shape], tf.float32)
    concrete = tf.function(logits_fn).get_concrete_function(spec)
    constant = convert_variables_to_constants_v2(concrete)
    return lambda images: constant(images)[0]


@dataclasses.dataclass(frozen=True)
class Task:
    """What all contenders craft: the images at every epsilon, batch by batch."""

    network: Network
    stored: np.ndarray  # uint8 (N, H, W, C)
    labels: np.ndarray
    epsilons: list[int]
    batch: int

    @property
    def images(self) -> np.ndarray:
        """The images in [0, 1]."""
        return self.stored.astype(np.float32) / np.float32(attacks.PIXEL_LEVELS)

    @property
    def batches(self) -> list[slice]:
        """Where each batch lies."""
        starts = range(0, len(self.stored), self.batch)
        return [slice(start, start + self.batch) for start in starts]


# The program.


def parser(description: str) -> argparse.ArgumentParser:
    """Return a parser of the flags that all have."""
    made = argparse.ArgumentParser(
        description=description, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    made.add_argument("--network", help="saved network, run or .keras file; default: untrained")
    made.add_argument("--dataset", default="cifar10", help="whose training images; small: digits")
    made.add_argument("--data_dir", help="TensorFlow Datasets' directory")
    made.add_argument("--batch", type=positive, default=128, help="images a batch or training step")
    made.add_argument("--epsilons", type=parse_epsilons, default="1..16", help="as in bin/craft")
    made.add_argument("--rounds", type=positive, default=5, help="turns of each contender")
    made.add_argument("--output", type=Path, help="also write the result to this JSON file")
    return made


def positive(text: str) -> int:
    """Return a whole number of 1 or above."""
    number = int(text)
    if number < 1:
        raise ValueError(text)
    return number


def load_task(args: argparse.Namespace, count: int) -> Task:
    """Return the network and the first images of the training split."""
    dataset = data.load(args.dataset, args.data_dir)
    network = load_network(args.network, dataset)
    stored, labels = (array[:count] for array in dataset.train)
    cropped = data.centre_crop(stored, network.side)
    return Task(network, cropped, labels, list(args.epsilons), args.batch)


def run(args: argparse.Namespace, measurement: Callable[[], dict[str, Any]]) -> None:
    """Say what machine this is, measure, and keep the result."""
    load, cores = os.getloadavg()[0], os.cpu_count()
    versions = {}
    for name in PACKAGES:
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            versions[name] = importlib.metadata.version(name)
    print(f"{processor()}, {cores} cores; load average at the start: {load:.1f}")
    print(", ".join(f"{name} {version}" for name, version in versions.items()))
    if load > BUSY * cores:
        print("Something else was running: measure again on an idle machine.")
    try:
        result = measurement()
    except InputError as error:
        sys.exit(f"{Path(sys.argv[0]).stem}: {error}")
    settings = {**vars(args), "processor": processor(), "cores": cores, "load": load}
    result = {"settings": settings, "versions": versions, **result}
    if args.output:
        args.output.write_text(json.dumps(result, indent=2, default=str) + "\n", encoding="utf-8")
