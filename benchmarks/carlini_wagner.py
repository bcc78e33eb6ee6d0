#!/usr/bin/env python
"""Minimal epsilons by Carlini & Wagner: the descent beside the published grid and beside ART.

    python benchmarks/carlini_wagner.py --network=RUN --data_dir=DIR --grid_images=2 --art_images=10
    python benchmarks/carlini_wagner.py --network=RUN --data_dir=DIR --images=20 --rounds=3 \\
        --art_images=3 --art_learning_rate=0.5 --art_iterations=100

Each search gets the first images of each class of the test split. The grid takes hours for a
hundred images and ART many minutes, so they may be given fewer of them; their seconds an image are
then those of the fewer, and the descent's epsilons of the very same images stand beside theirs. The
searches take turns in one process, on TensorFlow's default threads; all were compiled before, but
for the grid, whose minutes make that negligible.

ART's CarliniLInfMethod gets the network as a tf.function, and its default parameters unless others
are given. With those it finds nothing on MNIST: it starts in tanh space, where a pixel of 0 or 1
hardly moves, and its ten iterations from there are too few. What it returns is verified as ours is;
an image that the network still classifies counts as not found.
"""

from __future__ import annotations

import argparse
import dataclasses
import importlib.util
import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow as tf

from cascade_keras import attacks, data
from cascade_keras.attacks import carlini_wagner
from cascade_keras.data.specs import DATASETS
from cascade_keras.printed import print_table
from cascade_keras.sources import load_source

DESCENT, GRID, ART = "descent", "grid", "ART"
LARGE = 0.3 * attacks.PIXEL_LEVELS  # the epsilon of the paper's table 2


@dataclasses.dataclass(frozen=True)
class Contender:
    """A search and how many of the images it is given.

    Attributes:
        search: (images, labels) -> (epsilons in 0..255 units, inf where none was found, gradients
            or None where they cannot be counted).
    """

    images: int
    search: Callable[[np.ndarray, np.ndarray], tuple[np.ndarray, int | None]]


def ours(logits_fn: attacks.LogitsFn, shape, **options) -> Callable:
    """Return one of our searches."""
    attack = carlini_wagner.CarliniWagner(logits_fn, shape, **options)

    def search(images, labels):
        found = attack(images, labels)
        return found.epsilon, found.gradients

    return search


def art(logits_fn: attacks.LogitsFn, shape, classes: int, **options) -> Callable:
    """Return ART's search, whose result is verified; print its parameters."""
    from art.attacks.evasion import CarliniLInfMethod
    from art.estimators.classification import TensorFlowV2Classifier

    compiled = tf.function(logits_fn)
    classifier = TensorFlowV2Classifier(
        model=lambda images, training: compiled(images),
        nb_classes=classes,
        input_shape=shape,
        clip_values=(0, 1),
    )
    attack = CarliniLInfMethod(classifier, verbose=False, **options)
    settings = (f"{name}={getattr(attack, name)}" for name in attack.attack_params)
    print(f"{ART}: CarliniLInfMethod, {', '.join(settings)}")

    def search(images, labels):
        found = attack.generate(images, labels)
        size = attacks.PIXEL_LEVELS * np.abs(found - images).max(axis=(1, 2, 3))
        wrong = [np.argmax(compiled(batch), -1) for batch in (images, found)] != labels
        return np.where(wrong[0], 0, np.where(wrong[1], size, np.inf)), None

    return search


def measure(contenders: dict[str, Contender], images, labels, rounds: int) -> dict[str, Any]:
    """Return each contender's seconds an image, one a round, gradients an image and epsilons."""
    found: dict[str, Any] = {name: {"seconds": []} for name in contenders}
    for number in range(rounds):
        for name, contender in contenders.items():
            print(
                f"round {number + 1} of {rounds}: {name}, {contender.images} images ...", flush=True
            )
            part = slice(contender.images)
            begin = time.perf_counter()
            epsilon, gradients = contender.search(images[part], labels[part])
            seconds = time.perf_counter() - begin
            found[name]["seconds"].append(seconds / contender.images)
            found[name]["gradients"] = gradients and gradients / contender.images
            found[name]["epsilon"] = [float(e) for e in epsilon]
    return found


def report(found: dict[str, Any], title: str, count: int) -> None:
    """Print the table: a row for each search, and one for the descent on the same images."""
    rows = []
    descent = found[DESCENT]
    for name, result in found.items():
        own = np.array(result["epsilon"])
        same = np.array(descent["epsilon"][: len(own)])
        seconds = np.median(result["seconds"])
        gradients = result["gradients"]
        effort = f"{seconds:.3f}", f"{seconds / np.median(descent['seconds']):.1f}"
        spent = "" if gradients is None else f"{gradients:,.0f}"
        worst = excess(same, own) if name != DESCENT else ""
        rows.append([name, str(len(own)), *statistics(own), worst, *effort, spent])
        if name != DESCENT:
            rows.append([f"  {DESCENT}", "", *statistics(same), "", "", "", ""])
    columns = ("", "images", "mean", "median", "none", f"> {LARGE:g}", "worst", "s/image", "time")
    print_table((*columns, "gradients"), rows, fixed_columns=1, title=title)
    print(
        "s/image and gradients are of one image, mean and median of the epsilons that were found,\n"
        "in 0..255; none: no epsilon found. Below each other search: the descent on the same\n"
        "images. worst: the descent's epsilon less the other, of the image where that is largest."
    )
    for name, result in found.items():
        if len(result["epsilon"]) < count:
            hours = count * np.median(result["seconds"]) / 3600
            print(f"{name}: extrapolated in proportion, {hours:.2f} hours for {count} images.")


def statistics(epsilon: np.ndarray) -> tuple[str, ...]:
    """Return the cells of mean, median, how many were not found, and how many are large."""
    finite = epsilon[np.isfinite(epsilon)]
    centres = (f"{centre(finite):.3f}" if len(finite) else "" for centre in (np.mean, np.median))
    return *centres, str(len(epsilon) - len(finite)), str(np.sum(epsilon > LARGE))


def excess(descent: np.ndarray, other: np.ndarray) -> str:
    """Return how much larger the descent's epsilon is, of the image where it compares worst."""
    both = np.isfinite(other)
    return f"{np.max(descent[both] - other[both]):+.3f}" if both.any() else ""


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--network", required=True, help="saved network, run or .keras file")
    parser.add_argument("--dataset", default="mnist")
    parser.add_argument("--data_dir", help="of TensorFlow Datasets")
    parser.add_argument("--images", type=int, default=100)
    parser.add_argument("--grid_images", type=int, default=0, help="for the grid: hours for 100")
    parser.add_argument("--art_images", type=int, default=0, help="for ART")
    parser.add_argument("--art_learning_rate", type=float, help="default: ART's own, 0.01")
    parser.add_argument("--art_iterations", type=int, help="default: ART's own, 10")
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--lanes", type=int, default=256)
    parser.add_argument("--json", type=Path, help="write everything that was measured")
    arguments = parser.parse_args()

    dataset = data.load(arguments.dataset, arguments.data_dir)
    images, labels = data.test_images(dataset, dataset.preset.crop)
    source = load_source(arguments.network)
    shape, classes = images.shape[1:], dataset.preset.num_classes
    source.check(shape, classes)
    chosen = carlini_wagner.selection(labels, arguments.images)
    # One image of each class after another, so that a few of them are of different classes.
    chosen = chosen[np.argsort(occurrences(labels[chosen]), kind="stable")]
    images, labels = images[chosen], labels[chosen]

    options = {"grid": DATASETS[arguments.dataset].grid, "lanes": arguments.lanes}
    contenders = {DESCENT: Contender(len(images), ours(source.logits, shape, **options))}
    if arguments.art_images and importlib.util.find_spec("art") is None:
        print("ART left out: it is not installed")
    elif arguments.art_images:
        given = {"learning_rate": arguments.art_learning_rate, "max_iter": arguments.art_iterations}
        given = {name: value for name, value in given.items() if value is not None}
        contenders[ART] = Contender(
            arguments.art_images, art(source.logits, shape, classes, **given)
        )
    for contender in contenders.values():
        contender.search(images[:1], labels[:1])
    if arguments.grid_images:
        search = ours(source.logits, shape, search="grid", **options)
        contenders[GRID] = Contender(arguments.grid_images, search)
    found = measure(contenders, images, labels, arguments.rounds)
    title = f"{source.name}, {arguments.dataset}, rounds: {arguments.rounds}; time: descent = 1"
    report(found, title, len(images))
    if arguments.json:
        record = {"network": source.name, "dataset": arguments.dataset, "found": found}
        arguments.json.write_text(json.dumps(record, indent=1) + "\n")


def occurrences(labels: np.ndarray) -> np.ndarray:
    """Return how many images of its class come before each."""
    return np.array([np.sum(labels[:i] == label) for i, label in enumerate(labels)])


if __name__ == "__main__":
    main()
