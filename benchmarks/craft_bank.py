#!/usr/bin/env python
"""How fast banks are crafted, beside foolbox and ART; what limits it; online against a bank.

    python benchmarks/craft_bank.py --data_dir=DIR             crafting, some 5 minutes a round
    python benchmarks/craft_bank.py --data_dir=DIR --limits    what limits the ladder
    python benchmarks/craft_bank.py --data_dir=DIR --online    cascade images in a training step
    python benchmarks/craft_bank.py --data_dir=DIR --images=16 --batch=8 --epsilons=1..3 --rounds=2

Each command is one measurement, on CIFAR-10's training images and ResNet-20; the last one shows
whether it runs. What is compared takes turns in one process, A B C A B C, on TensorFlow's default
threads. Ratios are of the medians; their range is of the ratios within a round.

Crafting: iter_fgsm images at every epsilon of 1..16, alpha = 1, the paper's numbers of iterations.

    ours, ladder            what Bank.craft runs for each shard: compiled for any size, to uint8
    ours, each alone        iter_fgsm compiled for this batch, called once for each epsilon
    foolbox, ART            their basic iterative method, called once for each epsilon
      compiled network      the network they are given is a tf.function
      constant weights      the same with its weights made constants; see ``with_constant_weights``
      eager network         the Keras network as it is

All get the same images, labels, weights and batches, and are warmed up. Their images are compared:
the ladder's with those of each epsilon alone to the last bit, where both are compiled for the same
batch size, and all to within 1e-6. A gradient that is zero but for rounding has no sign to agree
on, and one sign that differs changes the rest of that image's iterations.

Limits: the ladder at several batch sizes; one gradient with other forms of the same network; its
GFLOP/s beside a matrix product's and the bare convolutions'; its time by kind of op.

Online: a pivot training step with one-step images alone, with half of them read from a bank, and
with half of them crafted within the step; the time of reading alone; peak memory. Without --bank, a
bank of random signs is made in the temporary directory: 1.4 GB unless --bank_images is smaller.
"""

from __future__ import annotations

import argparse
import collections
import contextlib
import dataclasses
import importlib.metadata
import importlib.util
import itertools
import json
import math
import os
import resource
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import keras
import numpy as np
import op_profile
import tensorflow as tf
from contenders import MATRIX_SIDE
from train_step import BUSY, PAUSE_SECONDS, processor

from cascade_keras import attacks, bank, cascade, data, models
from cascade_keras.cli.craft import parse_epsilons
from cascade_keras.errors import InputError
from cascade_keras.export import export_saved_model
from cascade_keras.layers import ConvBatchNorm
from cascade_keras.sources import load_source
from cascade_keras.training import AdversarialTrainer

PACKAGES = ("tensorflow", "keras", "numpy", "foolbox", "adversarial-robustness-toolbox")
CLOSE = 1e-6  # images in [0, 1] that differ by no more are equal
LARGEST_LOGIT_DIFFERENCE = 1e-3
READS = 10  # for each timed step of training
UNTIMED_STEPS = 3  # of a turn of training: more than the two batches that were prefetched
SAMPLING = "clipped_normal"
BANK_ALONE, FROM_DISK = "bank alone, in the page cache", "bank alone, from the disk"
CONV = "convolution"
REPEATS = 8  # of a bare convolution in one call, which takes some time itself

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
    """Print a Markdown table."""
    print(f"\n{title}\n")
    print("| " + " | ".join(columns) + " |")
    print("| --- |" + " ---: |" * (len(columns) - 1))
    for row in rows:
        print("| " + " | ".join(map(str, row)) + " |")


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
        model = keras.models.load_model(source.path, compile=False)
        model = getattr(model, "network", model)
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


# The first measurement: crafting.


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


@dataclasses.dataclass(frozen=True)
class Contender:
    """One way to craft.

    Attributes:
        craft: () -> (epsilons, N, H, W, C), float32 or uint8.
        warm_up: compiles what ``craft`` needs.
    """

    craft: Callable[[], np.ndarray]
    warm_up: Callable[[], Any]


def ladder(task: Task) -> Contender:
    """As ``bank.Bank`` crafts a shard: compiled for its size, to be stored as uint8."""

    @tf.function
    def shard(images, labels):
        crafted = attacks.ladder(task.network.logits, images, labels, task.epsilons)
        return tf.cast(tf.round(crafted * attacks.PIXEL_LEVELS), tf.uint8)

    def craft(parts: Sequence[slice]) -> np.ndarray:
        images = task.images
        crafted = [shard(images[part], task.labels[part]).numpy() for part in parts]
        return np.concatenate(crafted, axis=1)

    return Contender(lambda: craft(task.batches), lambda: craft(task.batches[:1]))


def each_alone(task: Task, craft_one: Callable[[int, np.ndarray, np.ndarray], Any]) -> Contender:
    """Call ``craft_one(epsilon, images, labels)`` for each epsilon and batch."""

    def craft(epsilons: Sequence[int]) -> np.ndarray:
        images = task.images
        parts = [[craft_one(e, images[p], task.labels[p]) for p in task.batches] for e in epsilons]
        return np.stack([np.concatenate([np.asarray(a) for a in row]) for row in parts])

    return Contender(lambda: craft(task.epsilons), lambda: craft(task.epsilons[:1]))


def ours_alone(task: Task) -> Contender:
    """``iter_fgsm``, compiled for this batch, one trace for all epsilons."""
    shape = [task.batch, *task.stored.shape[1:]]
    signature = [tf.TensorSpec(shape), tf.TensorSpec(shape[:1], tf.int32), tf.TensorSpec([])]

    @tf.function(input_signature=signature)
    def attack(images, labels, epsilon):
        return attacks.iter_fgsm(task.network.logits, images, labels, epsilon)

    return each_alone(task, lambda epsilon, *batch: attack(*batch, float(epsilon)))


def foolbox_alone(task: Task, logits_fn: attacks.LogitsFn) -> Contender:
    """Foolbox's attack, whose number of steps is fixed when it is made."""
    import foolbox

    network = foolbox.TensorFlowModel(logits_fn, bounds=(0, 1), device="/CPU:0")

    def craft_one(epsilon, images, labels):
        attack = foolbox.attacks.LinfBasicIterativeAttack(
            abs_stepsize=1 / 255, steps=int(attacks.iterations(epsilon)), random_start=False
        )
        criterion = foolbox.criteria.Misclassification(tf.constant(labels))
        # ``run`` is the attack; calling it also judges success, which eagerpy cannot under NumPy 2.
        return attack.run(network, tf.constant(images), criterion, epsilon=epsilon / 255)

    return each_alone(task, craft_one)


def art_alone(task: Task, logits_fn: attacks.LogitsFn) -> Contender:
    """ART's attack on its TensorFlow classifier, whose loops stay in TensorFlow.

    The rest of its gradient is eager; it offers no way to have that compiled. One-hot labels and
    the loss of them, because with a sparse loss it goes through NumPy at every step. Its own
    measurement of success, two forward passes an epsilon, cannot be switched off.
    """
    from art.attacks.evasion import BasicIterativeMethod
    from art.estimators.classification import TensorFlowV2Classifier

    classifier = TensorFlowV2Classifier(
        model=lambda images, training: logits_fn(images),
        nb_classes=10,
        input_shape=task.stored.shape[1:],
        loss_object=keras.losses.CategoricalCrossentropy(from_logits=True, reduction="sum"),
        clip_values=(0, 1),
    )

    def craft_one(epsilon, images, labels):
        attack = BasicIterativeMethod(
            classifier,
            eps=epsilon / 255,
            eps_step=1 / 255,
            max_iter=int(attacks.iterations(epsilon)),
            batch_size=task.batch,
            verbose=False,
        )
        return attack.generate(images, labels)

    return each_alone(task, craft_one)


LADDER, ALONE = "ours, ladder", "ours, each alone"
CONTENDERS: dict[str, Callable[[Task], Contender]] = {
    LADDER: ladder,
    ALONE: ours_alone,
    "foolbox, compiled network": lambda task: foolbox_alone(task, compiled(task)),
    "foolbox, eager network": lambda task: foolbox_alone(task, inference(task.network.model)),
    "foolbox, constant weights": lambda task: foolbox_alone(task, constant(task)),
    "ART, compiled network": lambda task: art_alone(task, compiled(task)),
    "ART, constant weights": lambda task: art_alone(task, constant(task)),
    "ART, eager network": lambda task: art_alone(task, inference(task.network.model)),
}


def compiled(task: Task) -> attacks.LogitsFn:
    """Return the network as a tf.function, what a user of either library would give it."""
    return tf.function(task.network.logits)


def constant(task: Task) -> attacks.LogitsFn:
    """Return the network with constant weights, the fastest form found."""
    return with_constant_weights(task.network.logits, task.stored.shape[1:])


def available(task: Task) -> Iterator[str]:
    """Yield the contenders that can be had here."""
    for name in CONTENDERS:
        library = name.split(",")[0].lower()
        if library != "ours" and importlib.util.find_spec(library) is None:
            print(f"{name} left out: {library} is not installed")
        elif "eager" in name and task.network.model is None:
            print(f"{name} left out: a SavedModel is compiled")
        else:
            yield name


def compare_crafting(task: Task, rounds: int) -> dict[str, Any]:
    """Measure all contenders in turn, compare their images, and print the table."""
    images: dict[str, np.ndarray] = {}

    def keeping(name: str, craft: Callable[[], np.ndarray]) -> Callable[[], None]:
        return lambda: images.__setitem__(name, craft())

    turns = {}
    for name in available(task):
        contender = CONTENDERS[name](task)
        contender.warm_up()
        turns[name] = keeping(name, contender.craft)
    found = summarize(measure(turns, rounds), LADDER)
    all_alone = sum(int(attacks.iterations(epsilon)) for epsilon in task.epsilons)
    for name, result in found.items():
        shared = name == LADDER
        result["gradients"] = attacks.ladder_gradients(task.epsilons) if shared else all_alone
        result["images_per_second"] = len(task.stored) / result["seconds"]["value"]
        result["agreement"] = agreement(images[name], images[ALONE])
    same_bits = ladder_equals_alone(task, images[ALONE])
    print_table(
        f"Crafting {len(task.stored)} images at epsilon {bank.as_range(task.epsilons)}, batches of "
        f"{task.batch}, {task.network.name}; rounds: {rounds}",
        CRAFT_COLUMNS,
        [craft_cells(name, result, len(task.stored)) for name, result in found.items()],
    )
    print(
        f"\nEqual: within {CLOSE:g}, to {ALONE!r}; of the images, one at one epsilon, and of their "
        "values. images/s: each at all epsilons.\nThe ladder compiled for this batch size, as each "
        f"epsilon alone is: {'equal to the last bit' if same_bits else 'NOT EQUAL'} (first batch)."
    )
    return {"contenders": found, "same_bits": same_bits}


CRAFT_COLUMNS = (
    "",
    "gradients an image",
    "seconds (range)",
    "images/s",
    "ms a gradient",
    "time, ladder = 1 (range)",
    "equal images",
    "equal values",
)


def craft_cells(name: str, result: dict[str, Any], images: int) -> tuple[Any, ...]:
    """Return the cells below ``CRAFT_COLUMNS``."""
    return (
        name,
        result["gradients"],
        as_text(result["seconds"]),
        f"{result['images_per_second']:.2f}",
        f"{1e3 * result['seconds']['value'] / result['gradients'] / images:.3f}",
        as_text(result["ratio"]),
        f"{result['agreement']['images']:.2%}",
        f"{result['agreement']['values']:.4%}",
    )


def agreement(crafted: np.ndarray, expected: np.ndarray) -> dict[str, float]:
    """Return the shares of images, one at one epsilon, and of values that are equal."""
    if crafted.dtype == np.uint8:
        crafted = crafted.astype(np.float32) / np.float32(attacks.PIXEL_LEVELS)
    equal = np.abs(crafted - expected) <= CLOSE
    return {"images": float(equal.all(axis=(2, 3, 4)).mean()), "values": float(equal.mean())}


def ladder_equals_alone(task: Task, alone: np.ndarray) -> bool:
    """Whether the ladder gives the floats of the first batch that each epsilon alone gives.

    Compiled alike: for batches of any size TensorFlow's graph is another, which rounds otherwise.
    """
    part = task.batches[0]
    climb = tf.function(
        lambda images, labels: attacks.ladder(task.network.logits, images, labels, task.epsilons)
    )
    return np.array_equal(climb(task.images[part], task.labels[part]), alone[:, part])


# The second measurement: limits.


def describe_limits(task: Task, sizes: Sequence[int], rounds: int, calls: int) -> dict[str, Any]:
    """Measure what the ladder's speed depends on, and print the tables.

    Args:
        task: with as many images as the largest of the sizes.
    """
    if task.network.model is None:
        raise InputError("--network: --limits takes layers apart; name a run or a .keras file")
    return {
        "ladder": ladder_by_batch(task, sizes, rounds),
        "forms": network_forms(task, rounds, calls),
        "speeds": speeds(task, rounds, calls),
        "seconds_by_kind": time_by_kind(task, calls),
    }


def ladder_by_batch(task: Task, sizes: Sequence[int], rounds: int) -> dict[str, Any]:
    """Measure the ladder on one batch of each size."""
    turns = {}
    for size in sizes:
        one = dataclasses.replace(
            task, stored=task.stored[:size], labels=task.labels[:size], batch=size
        )
        contender = ladder(one)
        contender.warm_up()
        turns[str(size)] = contender.craft
    samples = measure(turns, rounds)
    per_image = {n: [[t / int(n) for t in turn] for turn in s] for n, s in samples.items()}
    found = summarize(per_image, str(task.batch) if task.batch in sizes else next(iter(turns)))
    gradients = attacks.ladder_gradients(task.epsilons)
    rows = [
        (
            name,
            f"{1 / result['seconds']['value']:.2f}",
            as_text(result["seconds"], 1e3 / gradients, 3),
            as_text(result["ratio"]),
        )
        for name, result in found.items()
    ]
    print_table(
        f"The ladder to epsilon {bank.as_range(task.epsilons)} by batch size; rounds: {rounds}",
        ("batch", "images/s", "ms a gradient and image (range)", "time an image, relative (range)"),
        rows,
    )
    return found


class UnfoldedConvBatchNorm(ConvBatchNorm):
    """TensorFlow's fused normalisation after the convolution."""

    def call(self, inputs, training=None):
        return tf.compat.v1.nn.fused_batch_norm(
            self._convolve(inputs, self.kernel),
            self.gamma,
            self.beta,
            mean=self.moving_mean,
            variance=self.moving_variance,
            epsilon=self.epsilon,
            is_training=False,
        )[0]


def keras_layers(layer: ConvBatchNorm) -> keras.Sequential:
    """Return the same out of Keras's own layers."""
    convolution = keras.layers.Conv2D(
        layer.filters, 3, layer.strides, padding="same", use_bias=False
    )
    normalization = keras.layers.BatchNormalization(epsilon=layer.epsilon)
    return keras.Sequential([convolution, normalization], name=layer.name)


def unfolded(model: keras.Model, make: Callable[[ConvBatchNorm], keras.Layer]) -> keras.Model:
    """Return a copy with other layers in the place of ``ConvBatchNorm``, of the same weights."""

    def exchange(layer: keras.Layer) -> keras.Layer:
        if isinstance(layer, ConvBatchNorm):
            return make(layer)
        return type(layer).from_config(layer.get_config())

    copy = keras.models.clone_model(model, clone_function=exchange)
    for old, new in zip(model.layers, copy.layers, strict=True):
        # Keras's layers do not count the training passes, which comes last.
        new.set_weights(old.get_weights()[: len(new.get_weights())])
    return copy


def gradient_function(
    logits_fn: attacks.LogitsFn, task: Task, batch: int | None = None
) -> Callable[[], tf.Tensor]:
    """Return one gradient of a batch, with the sign step that makes it an attack's step.

    Args:
        batch: the number of images that it is compiled for; any when None, as in a bank.
    """
    signature = [
        tf.TensorSpec([batch, *task.stored.shape[1:]]),
        tf.TensorSpec([batch], tf.int32),
    ]

    @tf.function(input_signature=signature)
    def step(images, labels):
        return attacks.step_fgsm(logits_fn, images, labels, 1.0)

    images = tf.constant(task.images[: task.batch])
    labels = tf.constant(task.labels[: task.batch])
    return lambda: step(images, labels).numpy()


def network_forms(task: Task, rounds: int, calls: int) -> dict[str, Any]:
    """Measure one gradient with other forms of the same network."""
    network = task.network
    with tempfile.TemporaryDirectory() as directory:
        exported = export_saved_model(network.model, Path(directory) / "network")
        served = load_source(exported).logits
    keras_network = "Keras network, folded"
    forms = {
        keras_network: network.logits,
        "SavedModel, serve": served,
        "constant weights": with_constant_weights(network.logits, task.stored.shape[1:]),
        "not folded: convolution, fused batch norm": inference(
            unfolded(network.model, lambda old: UnfoldedConvBatchNorm.from_config(old.get_config()))
        ),
        "not folded: keras Conv2D, BatchNormalization": inference(
            unfolded(network.model, keras_layers)
        ),
    }
    images = tf.constant(task.images[: task.batch])
    expected = network.logits(images)
    for name, logits_fn in forms.items():
        apart = float(tf.reduce_max(tf.abs(logits_fn(images) - expected)))
        if apart > LARGEST_LOGIT_DIFFERENCE * max(1.0, float(tf.reduce_max(tf.abs(expected)))):
            raise RuntimeError(f"{name} is another network: a logit differs by {apart}")
    turns = {name: gradient_function(logits_fn, task) for name, logits_fn in forms.items()}
    turns["folded, compiled for this batch size"] = gradient_function(
        network.logits, task, task.batch
    )
    for step in turns.values():
        step()
    found = summarize(measure(turns, rounds, calls, untimed=1), keras_network)
    print_table(
        f"One gradient of {task.batch} images with other forms of the network; rounds: {rounds}",
        ("", "ms (range)", "time, relative (range)"),
        [
            (name, as_text(r["seconds"], 1e3, 1), as_text(r["ratio"], 1, 3))
            for name, r in found.items()
        ],
    )
    return found


@dataclasses.dataclass(frozen=True)
class Convolution:
    """A convolution as the network has it."""

    input_shape: tuple[int, ...]
    filters: int
    strides: int

    @property
    def name(self) -> str:
        stride = f", stride {self.strides}" if self.strides > 1 else ""
        return f"{CONV} {'x'.join(map(str, self.input_shape))} to {self.filters}{stride}"

    def gflop(self, batch: int) -> float:
        sides = [math.ceil(side / self.strides) for side in self.input_shape[:2]]
        return 2e-9 * batch * math.prod(sides) * 9 * self.input_shape[-1] * self.filters

    def functions(self, batch: int) -> dict[str, Callable[[], Any]]:
        """Return ``REPEATS`` forward passes and as many gradients of the input, compiled."""
        strides = [1, self.strides, self.strides, 1]
        sides = [math.ceil(side / self.strides) for side in self.input_shape[:2]]
        inputs = tf.random.stateless_uniform([batch, *self.input_shape], (0, 0))
        outputs = tf.random.stateless_normal([batch, *sides, self.filters], (0, 1))
        # Weights are arguments, each time others: constants would be laid out beforehand, and equal
        # ones be used once.
        shape = [REPEATS, 3, 3, self.input_shape[-1], self.filters]
        kernels = tf.random.stateless_normal(shape, (0, 2))

        def forward(kernel: tf.Tensor) -> tf.Tensor:
            return tf.nn.conv2d(inputs, kernel, strides, "SAME")

        def backward(kernel: tf.Tensor) -> tf.Tensor:
            return tf.raw_ops.Conv2DBackpropInput(
                input_sizes=inputs.shape,
                filter=kernel,
                out_backprop=outputs,
                strides=strides,
                padding="SAME",
            )

        run_forward, run_backward = one_by_one(forward), one_by_one(backward)
        return {
            "forward": lambda: run_forward(kernels).numpy(),
            "gradient of the input": lambda: run_backward(kernels).numpy(),
        }


def one_by_one(function: Callable[[tf.Tensor], tf.Tensor]):
    """Return kernels -> a number, which calls the function with each, one after the other."""

    @tf.function
    def run(kernels: tf.Tensor) -> tf.Tensor:
        total = tf.constant(0.0)
        for kernel in tf.unstack(kernels):
            with tf.control_dependencies([total]):
                # One value of the result stands for all, so that nothing is copied.
                total += function(kernel)[0, 0, 0, 0]
        return total

    return run


def speeds(task: Task, rounds: int, calls: int) -> dict[str, Any]:
    """Measure the GFLOP/s of a gradient, of a matrix product, and of the convolutions alone."""
    matrix = tf.random.stateless_uniform([MATRIX_SIDE] * 2, (0, 0))
    multiply = tf.function(lambda a: tf.matmul(a, a)[0, 0])
    product, gradient = f"matrix product of side {MATRIX_SIDE}", f"gradient of {task.batch} images"
    turns = {
        gradient: gradient_function(task.network.logits, task),
        product: lambda: multiply(matrix).numpy(),
    }
    # No clean images in the training pass, and no training pass.
    by_kind = op_profile.gflop_by_kind(task.network.model, -task.batch, task.batch)
    gflop = {gradient: sum(by_kind.values()), product: 2e-9 * MATRIX_SIDE**3}
    times = {}  # that a convolution comes in a gradient
    for convolution, count in convolutions_of(task.network.model).items():
        for kind, function in convolution.functions(task.batch).items():
            name = f"{convolution.name}, {kind}"
            turns[name], times[name] = function, count
            gflop[name] = REPEATS * convolution.gflop(task.batch)
    for call in turns.values():
        call()
    found = summarize(measure(turns, rounds, calls, untimed=1), gradient)
    seconds = {name: result["seconds"]["value"] for name, result in found.items()}
    for name, result in found.items():
        result["gflop_per_second"] = gflop[name] / seconds[name]
    print_table(
        f"Speed of a gradient and of its convolutions, {REPEATS} of a kind alone; rounds: {rounds}",
        ("", "in a gradient", "GFLOP", "ms (range)", "GFLOP/s"),
        [
            (
                name,
                times.get(name, ""),
                f"{gflop[name]:.3f}",
                as_text(result["seconds"], 1e3),
                f"{result['gflop_per_second']:.0f}",
            )
            for name, result in found.items()
        ],
    )
    bare = sum(count * seconds[name] / REPEATS for name, count in times.items())
    floor = gflop[gradient] / found[product]["gflop_per_second"]
    total = seconds[gradient]
    print(
        f"\nAll convolutions of a gradient, each at its speed alone: {1e3 * bare:.1f} ms, "
        f"{bare / total:.0%} of the gradient's {1e3 * total:.1f} ms; at the matrix product's: "
        f"{1e3 * floor:.1f} ms, {floor / total:.0%}."
    )
    return {"measured": found, "convolutions_alone": bare, "at_the_products_speed": floor}


def convolutions_of(model: keras.Model) -> dict[Convolution, int]:
    """Return how often each convolution comes in a network."""
    return collections.Counter(
        Convolution(layer.input.shape[1:], layer.filters, layer.strides)
        for layer in model.layers
        if isinstance(layer, ConvBatchNorm)
    )


def time_by_kind(task: Task, calls: int) -> dict[str, float]:
    """Return the seconds of each kind of op in a gradient, by TensorFlow's profiler."""
    step = gradient_function(task.network.logits, task)
    step()
    kinds = op_profile.profile(step, calls)
    wall = sum(kinds.values())
    ordered = sorted(kinds.items(), key=lambda item: -item[1])
    convolutions = sum(seconds for kind, seconds in ordered if kind.startswith(CONV))
    print_table(
        f"A gradient of {task.batch} images by kind of op, under the profiler "
        f"({1e3 * wall:.1f} ms); convolutions, with bias and ReLU: {convolutions / wall:.0%}",
        ("kind of op", "ms", "share"),
        [(kind, f"{1e3 * s:.1f}", f"{s / wall:.1%}") for kind, s in ordered],
    )
    return kinds


# The third measurement: training.


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
                augment=True,
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
        raise InputError(f"--bank: {path} is not complete")
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


# The program.


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    which = parser.add_mutually_exclusive_group()
    which.add_argument("--limits", action="store_true", help="what limits the ladder")
    which.add_argument("--online", action="store_true", help="training with cascade images")
    parser.add_argument("--network", help="saved network, run or .keras file; default: untrained")
    parser.add_argument("--data_dir", help="TensorFlow Datasets' directory, with cifar10")
    parser.add_argument("--images", type=int, default=128, help="that are crafted; whole batches")
    parser.add_argument("--batch", type=int, default=128, help="images a batch or training step")
    parser.add_argument("--epsilons", default="1..16", help="whole pixel values, as in bin/craft")
    parser.add_argument("--rounds", type=int, default=5, help="turns of each contender")
    parser.add_argument("--calls", type=int, default=10, help="a turn, of a gradient or step")
    parser.add_argument("--batches", default="32,64,128,256,512", help="sizes that --limits tries")
    parser.add_argument("--bank", help="that --online reads; default: a temporary one")
    parser.add_argument("--bank_images", type=int, default=50_000, help="of the temporary bank")
    parser.add_argument("--output", type=Path, help="also write the result to this JSON file")
    args = parser.parse_args()
    try:
        args.epsilons = parse_epsilons(args.epsilons)
        args.batches = [int(size) for size in args.batches.split(",")]
    except (InputError, ValueError) as error:
        parser.error(f"--epsilons, --batches: {error}")
    numbers = (args.images, args.batch, args.rounds, args.calls, args.bank_images, *args.batches)
    if min(numbers) < 1:
        parser.error("numbers must be at least 1")
    if not (args.limits or args.online) and args.images % args.batch:
        parser.error(f"--images: must be a multiple of --batch ({args.batch})")
    return args


def run(args: argparse.Namespace) -> dict[str, Any]:
    """Make the measurement that was asked for."""
    dataset = data.load("cifar10", args.data_dir)
    network = load_network(args.network, dataset)
    if args.online:
        training = Training(dataset, network, args.batch, max(args.epsilons))
        with contextlib.ExitStack() as stack:
            if args.bank:
                banked = load_bank(args.bank, training)
            else:
                directory = stack.enter_context(tempfile.TemporaryDirectory())
                images = min(args.bank_images, len(dataset.train[1]))
                banked = random_bank(Path(directory) / "bank", training, images)
            return {"online": compare_training(training, banked, args.rounds, args.calls)}
    count = max(args.batch, *args.batches) if args.limits else args.images
    stored, labels = (array[:count] for array in dataset.train)
    cropped = data.centre_crop(stored, network.side)
    task = Task(network, cropped, labels, args.epsilons, args.batch)
    if args.limits:
        return {"limits": describe_limits(task, args.batches, args.rounds, args.calls)}
    return {"craft": compare_crafting(task, args.rounds)}


def main() -> None:
    args = parse_arguments()
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
        result = run(args)
    except InputError as error:
        sys.exit(f"craft_bank: {error}")
    settings = {**vars(args), "processor": processor(), "cores": cores, "load": load}
    result = {"settings": settings, "versions": versions, **result}
    if args.output:
        args.output.write_text(json.dumps(result, indent=2, default=str) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
