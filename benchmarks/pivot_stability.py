#!/usr/bin/env python
"""Which remedies keep the true pivot loss from running away: short trainings on MNIST.

    bin/train --dataset=mnist --loss=standard --steps=938 --lr_boundaries=none --name=mnist-init
    python benchmarks/pivot_stability.py --init_from=runs/mnist-init/model.keras

ResNet-20 at learning rate 0.1, 64 clean and 64 step_ll images a step, lambda_2 1e-4, seed 0. Prints
for each remedy the loss, its distance part, the adversarial accuracy and the largest magnitude of a
logit, averaged over the 50 steps before each mark. About 80 seconds a remedy on two cores.
"""

from __future__ import annotations

import argparse
import dataclasses
import math
import sys
from collections.abc import Callable

import keras
import tensorflow as tf

from cascade_keras import data, losses, models
from cascade_keras.printed import print_table
from cascade_keras.training import AdversarialTrainer

MAX_EPSILON = 76.5
LEARNING_RATE = 0.1
WINDOW = 50
SHOWN = ("loss", "distance_loss", "decay_loss", "adversarial_accuracy", "max_logit")

Distance = Callable[[tf.Tensor, tf.Tensor], tf.Tensor]


def root_mean_square(embeddings: tf.Tensor, axis=None) -> tf.Tensor:
    return tf.sqrt(tf.reduce_mean(tf.square(embeddings), axis=axis, keepdims=True) + 1e-12)


def fixed_scale(axis) -> Distance:
    """Drop the gradient that rescales the embeddings of an image (1) or a coordinate (0)."""

    def distance(adversarial, clean):
        scale = root_mean_square(adversarial, axis)
        return losses.pivot_distance(adversarial / scale * tf.stop_gradient(scale), clean)

    return distance


def constant_up_to_scale(adversarial, clean):
    """The clean embedding's direction is constant, its scale over the batch is not."""
    scale = root_mean_square(clean)
    return losses.bidirectional_distance(adversarial, tf.stop_gradient(clean / scale) * scale)


def bounded(adversarial, clean):
    """Divided by max(mean square, 25), a constant, times 25."""
    mean_square = tf.stop_gradient(tf.reduce_mean(tf.square(clean)))
    return 25 / tf.maximum(mean_square, 25.0) * losses.pivot_distance(adversarial, clean)


@dataclasses.dataclass(frozen=True)
class Remedy:
    """A way to train; the defaults are the loss as printed.

    Attributes:
        distance: in place of the pivot distance.
        pretrained: start from the initialisation.
        warmup: first steps at a tenth of the learning rate.
        ramp: steps over which lambda_2 rises to its value.
        clip_norm: largest global norm of the gradient.
    """

    name: str
    distance: Distance = losses.pivot_distance
    pretrained: bool = True
    warmup: int = 0
    ramp: int = 0
    clip_norm: float | None = None


def default_guard(adversarial, clean):
    return losses.pivot_distance(losses.fix_scale(adversarial), clean)


REMEDIES = (
    Remedy("as printed"),
    Remedy("fixed scale, batch (default)", default_guard),
    Remedy("divided by max(mean square, 25), times 25", bounded),
    Remedy("gradient clipped to norm 1", clip_norm=1.0),
    Remedy("200 steps at a tenth of the learning rate", warmup=200),
    Remedy("lambda_2 rising over 400 steps", ramp=400),
    Remedy("mean for sum", lambda a, c: losses.pivot_distance(a, c) / 64),
    Remedy("as printed, from scratch", pretrained=False),
    Remedy("fixed scale, batch, from scratch", default_guard, pretrained=False),
    Remedy("fixed scale, each image", fixed_scale(1)),
    Remedy("fixed scale, each coordinate", fixed_scale(0)),
    Remedy("clean constant up to its scale", constant_up_to_scale),
    Remedy("bidirectional", losses.bidirectional_distance),
)


class Trainer(AdversarialTrainer):
    """The trainer with another distance."""

    remedy: Remedy

    def distance(self, adversarial, clean):
        distance = self.remedy.distance(adversarial, clean)
        if self.remedy.ramp:
            distance *= tf.minimum(tf.cast(self.steps, tf.float32) / self.remedy.ramp, 1)
        return distance


class Windows(keras.callbacks.Callback):
    """Keeps the metrics of every window of steps; stops where the loss is not finite."""

    def __init__(self):
        super().__init__()
        self.rows: list[tuple[int, dict[str, float]]] = []
        self.diverged_at: int | None = None

    def on_train_batch_end(self, batch, logs=None):
        if not math.isfinite(logs["loss"]):
            self.diverged_at = batch + 1
            self.model.stop_training = True
        elif (batch + 1) % WINDOW == 0:
            self.rows.append((batch + 1, dict(logs)))
            self.model.reset_metrics()


def run(remedy: Remedy, mnist: data.Dataset, init_from: str, steps: int, seed: int) -> Windows:
    """Train with a remedy and return what was seen."""
    keras.utils.set_random_seed(seed)
    network = models.resnet(20, (28, 28, 1))
    if remedy.pretrained:
        network.load_weights(init_from)
    trainer = Trainer(network, "pivot", max_epsilon=MAX_EPSILON, seed=seed)
    trainer.remedy = remedy
    rate = LEARNING_RATE
    if remedy.warmup:
        rate = keras.optimizers.schedules.PiecewiseConstantDecay(
            [remedy.warmup - 1], [LEARNING_RATE / 10, LEARNING_RATE]
        )
    sgd = keras.optimizers.SGD(rate, momentum=0.9, global_clipnorm=remedy.clip_norm)
    trainer.compile(optimizer=sgd)
    windows = Windows()
    batches = data.batches(*mnist.train, 64, seed=seed, stop=steps)
    trainer.fit(batches, callbacks=[windows], shuffle=False, verbose=0)
    return windows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--init_from", required=True, help="weights after standard pretraining")
    parser.add_argument("--data_dir", help="TensorFlow Datasets' directory")
    parser.add_argument("--steps", type=int, default=400)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    mnist = data.load("mnist", arguments.data_dir)
    rows = []
    for remedy in REMEDIES:
        print(f"{remedy.name} ...", file=sys.stderr, flush=True)
        windows = run(remedy, mnist, arguments.init_from, arguments.steps, arguments.seed)
        for step, metrics in windows.rows:
            if step in (100, 250, arguments.steps):
                values = [f"{metrics[name]:.3g}" for name in SHOWN]
                rows.append([remedy.name, str(step), *values])
        if windows.diverged_at:
            nothing = [""] * (len(SHOWN) - 1)
            rows.append([remedy.name, str(windows.diverged_at), "not finite", *nothing])
    print_table(("remedy", "step", *SHOWN), rows, fixed_columns=2)


if __name__ == "__main__":
    main()
