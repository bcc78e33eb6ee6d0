#!/usr/bin/env python
"""What limits the crafting of banks.

    python benchmarks/craft_limits.py --data_dir=DIR --network=RUN --rounds=3
    python benchmarks/craft_limits.py --dataset=digits --batch=8 --batches=4,8 --epsilons=1..2 \\
        --rounds=1 --calls=1

The bank's crafter at several batch sizes; one gradient with other forms of the same network; its
GFLOP/s beside a matrix product's and the bare convolutions'; its time by kind of op. The second
command shows whether it runs. What is compared takes turns in one process.
"""

from __future__ import annotations

import collections
import dataclasses
import math
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import craft_peers
import in_turn
import keras
import op_profile
import tensorflow as tf
from contenders import MATRIX_SIDE
from in_turn import Task, as_text, inference, measure, print_table, summarize
from unfolded import UnfoldedConvBatchNorm, keras_layers

from cascade_keras import attacks, bank
from cascade_keras.errors import InputError
from cascade_keras.export import export_saved_model
from cascade_keras.layers import ConvBatchNorm
from cascade_keras.sources import load_source

LARGEST_LOGIT_DIFFERENCE = 1e-3
CONV = "convolution"
REPEATS = 8  # of a bare convolution in one call, which takes some time itself


def describe_limits(task: Task, sizes: Sequence[int], rounds: int, calls: int) -> dict[str, Any]:
    """Measure what the ladder's speed depends on, and print the tables.

    Args:
        task: with as many images as the largest of the sizes.
    """
    if task.network.model is None:
        raise InputError("takes layers apart: name a run or a .keras file", "network")
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
        contender = craft_peers.ladder(one)
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


def exchanged(model: keras.Model, make: Callable[[ConvBatchNorm], keras.Layer]) -> keras.Model:
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
        "constant weights": in_turn.with_constant_weights(network.logits, task.stored.shape[1:]),
        "not folded: convolution, fused batch norm": inference(
            exchanged(
                network.model, lambda old: UnfoldedConvBatchNorm.from_config(old.get_config())
            )
        ),
        "not folded: keras Conv2D, BatchNormalization": inference(
            exchanged(network.model, lambda old: keras_layers(old.filters, old.strides, old.name))
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


def main() -> None:
    parser = in_turn.parser(__doc__)
    parser.add_argument("--calls", type=in_turn.positive, default=10, help="a turn, of a gradient")
    parser.add_argument("--batches", default="32,64,128,256,512", help="sizes that are tried")
    args = parser.parse_args()
    sizes = [in_turn.positive(size) for size in args.batches.split(",")]

    def measurement() -> dict[str, Any]:
        task = in_turn.load_task(args, max(args.batch, *sizes))
        return {"limits": describe_limits(task, sizes, args.rounds, args.calls)}

    in_turn.run(args, measurement)


if __name__ == "__main__":
    main()
