"""What a compiled step spends its time on: floating point operations, and time by kind of op."""

from __future__ import annotations

import glob
import math
import re
import tempfile
from collections import defaultdict
from collections.abc import Callable

import keras
import tensorflow as tf

FORWARD = "convolution, forward"
INPUT_GRADIENT = "convolution, gradient of the input"
KERNEL_GRADIENT = "convolution, gradient of the kernel"
BATCH_NORM = "batch normalisation"
ELEMENTWISE = "ReLU, add, bias, other elementwise"
POOLING = "pooling and padding (shortcuts)"
OTHER = "other ops"
NO_OP = "no op running (scheduling, Python)"

# The first expression that is found in the type of an op decides.
_KINDS = (
    (r"Conv2DBackpropInput", INPUT_GRADIENT),
    (r"Conv2DBackpropFilter", KERNEL_GRADIENT),
    (r"Conv2D", FORWARD),
    (r"BatchNorm", BATCH_NORM),
    (r"Pool|^Pad$|^Slice$|^Tile$|^Mean$", POOLING),
    (r"^(Relu|ReluGrad|AddN?|AddV2|BiasAdd|BiasAddGrad|Mul|Sub|RealDiv|Neg|Square)$", ELEMENTWISE),
)
# Calls contain the ops that they run; counting both would count twice.
_OP_EVENT = re.compile(r"[\w./-]+:(?!\w*PartitionedCall)(\w+)")


def kind_of(op_type: str) -> str:
    """Return the kind of an op by its type, e.g. "_MklNativeFusedConv2D"."""
    return next((kind for pattern, kind in _KINDS if re.search(pattern, op_type)), OTHER)


def gflop_by_kind(network: keras.Model, clean: int, adversarial: int) -> dict[str, float]:
    """Return 1e9 operations of the convolutions and dense layers of one step, by kind.

    A multiplication and an addition count as two. The attack takes a forward pass and the gradient
    of the input, the training pass a forward pass and both gradients, but for the gradient of the
    images. Dense layers, under a thousandth, are counted as convolutions; taps that fall on the
    padding are counted; everything that is not a product of matrices is not.

    Args:
        network: a functional network of 2-D convolutions and dense layers.
        clean, adversarial: images of either kind in a step.
    """
    layers = [
        2.0 * math.prod(layer.kernel.shape) * math.prod(layer.output.shape[1:-1])
        for layer in network.layers
        if hasattr(layer, "kernel")
    ]
    total, first, images = sum(layers), layers[0], clean + adversarial
    operations = {
        FORWARD: total * (adversarial + images),
        INPUT_GRADIENT: total * adversarial + (total - first) * images,
        KERNEL_GRADIENT: total * images,
    }
    return {kind: count / 1e9 for kind, count in operations.items()}


def profile(step: Callable[[], float], steps: int) -> dict[str, float]:
    """Return the seconds of each kind of op in one step, by TensorFlow's profiler.

    Several ops run at once on different threads. Each instant is divided equally among the ops
    that are running, so that the seconds add up to the duration of the step.
    """
    step()  # the first one after something else has run is slower
    with tempfile.TemporaryDirectory() as directory:
        tf.profiler.experimental.start(directory)
        try:
            for number in range(steps):
                with tf.profiler.experimental.Trace("benchmark_step", step_num=number):
                    step()
        finally:
            tf.profiler.experimental.stop()
        (path,) = glob.glob(f"{directory}/**/*.xplane.pb", recursive=True)
        with open(path, "rb") as file:
            ops, wall = _read_events(file.read())
    seconds = _divide_among(ops)
    seconds[NO_OP] = max(wall - sum(seconds.values()), 0.0)
    return {kind: value / steps for kind, value in seconds.items()}


def _read_events(content: bytes) -> tuple[list[tuple[int, int, str]], float]:
    """Return (begin, end, kind) of every op, in picoseconds, and the seconds of all steps."""
    # The only reader of the format that needs no further package.
    from tensorflow.tsl.profiler.protobuf import xplane_pb2

    ops, wall = [], 0.0
    for plane in xplane_pb2.XSpace.FromString(content).planes:
        for line in plane.lines:
            for event in line.events:
                name = plane.event_metadata[event.metadata_id].name
                if name.startswith("benchmark_step"):
                    wall += event.duration_ps * 1e-12
                elif (match := _OP_EVENT.fullmatch(name)) and event.duration_ps:
                    begin = line.timestamp_ns * 1000 + event.offset_ps
                    ops.append((begin, begin + event.duration_ps, kind_of(match[1])))
    return ops, wall


def _divide_among(ops: list[tuple[int, int, str]]) -> dict[str, float]:
    """Return the seconds of each kind, every instant divided among the ops that are running."""
    edges = sorted(
        [(begin, 1, kind) for begin, _, kind in ops] + [(end, -1, kind) for _, end, kind in ops]
    )
    seconds: dict[str, float] = defaultdict(float)
    running: dict[str, int] = defaultdict(int)
    previous = 0
    for time, change, kind in edges:
        count = sum(running.values())
        for other, number in running.items():
            if number:
                seconds[other] += (time - previous) * 1e-12 * number / count
        running[kind] += change
        previous = time
    return dict(seconds)
