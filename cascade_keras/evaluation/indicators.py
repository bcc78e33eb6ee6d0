"""What the checklist asks of a target beside the attacks: short ones, in one compiled function.

As ``pgd`` does from a single start: the same starts, steps and images.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import tensorflow as tf

from cascade_keras import attacks, draws
from cascade_keras.attacks.arguments import PIXEL_LEVELS, as_seed
from cascade_keras.attacks.iterative import climb, perturbed
from cascade_keras.attacks.objectives import full_precision
from cascade_keras.attacks.projected import start_in
from cascade_keras.attacks.specs import FORWARD, Attack
from cascade_keras.evaluation.checklist import FEW_STEPS, INDICATORS, MANY_STEPS, Probed
from cascade_keras.evaluation.crafting import Craft, predicted
from cascade_keras.evaluation.stores import Content
from cascade_keras.evaluation.tasks import Clock, Networks

_LARGEST = float(np.finfo(np.float32).max)
_PASSES = 6  # forward passes beside the attacks'


class Indicators:
    """What a target is probed with: float32 (len(INDICATORS), n), see ``checklist.INDICATORS``.

    Args:
        network: the target's name.
        pgd: the report's pgd, whose steps are doubled; its largest epsilon is that of everything.
        indices: of the images.
        seed: of the starts.
        batch_size: images at a time.
        clock: where the time is added.
    """

    dtype, missing, shape = "float32", float("nan"), (len(INDICATORS),)

    def __init__(
        self,
        network: str,
        pgd: Attack,
        indices: np.ndarray,
        *,
        seed: int,
        batch_size: int,
        clock: Clock,
    ):
        self.network, self.indices, self.batch_size = network, indices, batch_size
        self.epsilon, self.steps = pgd.epsilons[-1], pgd.options["steps"]
        self.objective, self.seed = pgd.options["objective"], seed
        self.key = f"{network}--checklist--{self.steps}-{self.objective}"
        self.content = Content(np.isfinite, "finite numbers", indices)
        self.cost = FEW_STEPS + MANY_STEPS + 2 * self.steps + FORWARD * _PASSES
        self.clock = clock

    def start(self, networks: Networks) -> Craft:
        """See ``Task``."""
        probe = indicators(
            networks.logits(self.network),
            networks.image_shape,
            self.epsilon,
            self.steps,
            self.objective,
            self.seed,
        )
        return lambda images, labels, first: self.clock.measure(
            "crafting", probe, images, labels, first
        )

    def probed(self, values: np.ndarray) -> Probed:
        """Return what the array (len(INDICATORS), n) holds."""
        named = dict(zip(INDICATORS, np.array(values), strict=True))
        return Probed(self.epsilon, self.steps, named)


def indicators(
    logits_fn: attacks.LogitsFn,
    image_shape: Sequence[int],
    epsilon: float,
    steps: int,
    objective: str,
    seed: int,
) -> Craft:
    """Return the compiled function of a batch: images, labels, the first one's index -> the rows.

    Args:
        logits_fn: images (batch, H, W, C) -> logits (batch, classes), in inference mode.
        image_shape: (H, W, C).
        epsilon: in 0..255 units, of every attack.
        steps, objective: of the report's pgd.
        seed: of the random starts.
    """

    @tf.function(autograph=False)
    def probe(images: tf.Tensor, labels: tf.Tensor, first: tf.Tensor) -> tf.Tensor:
        key = as_seed(draws.attack_seed(seed, first))
        start = start_in(images, epsilon, key, tf.constant(0))
        radius = tf.fill([tf.shape(images)[0]], float(epsilon))

        def attack(number: int | tf.Tensor, ascended) -> tf.Tensor:
            stride = 2.5 * radius / tf.cast(number, tf.float32)
            return climb(logits_fn, images, labels, radius, ascended, stride, number, start)

        def loss(logits: tf.Tensor) -> tf.Tensor:
            return attacks.cross_entropy(labels)(full_precision(logits))

        # One trace for both numbers of steps.
        (few, many) = tf.unstack(
            tf.map_fn(
                lambda number: attack(number, attacks.cross_entropy),
                tf.constant([FEW_STEPS, MANY_STEPS]),
                fn_output_signature=images.dtype,
            )
        )
        ascended = logits_fn(many)
        rounded = tf.round(many * PIXEL_LEVELS) / PIXEL_LEVELS
        once, again = full_precision(logits_fn(images)), full_precision(logits_fn(images))
        largest = tf.reduce_max(tf.abs(once), axis=-1)
        rows = {
            "pgd_10": predicted(logits_fn(few)),
            "pgd_50": predicted(ascended),
            "rounded": predicted(logits_fn(rounded)),
            "doubled": predicted(logits_fn(attack(2 * steps, attacks.OBJECTIVES[objective]))),
            "loss_before": loss(logits_fn(perturbed(images, start))),
            "loss_after": loss(ascended),
            "difference": tf.reduce_max(tf.abs(once - again), axis=-1) / tf.maximum(largest, 1e-12),
        }
        found = tf.stack([tf.cast(rows[name], tf.float32) for name in INDICATORS])
        # A loss that is no number is the largest; on disk NaN stands for what is missing.
        found = tf.where(tf.math.is_nan(found), _LARGEST, found)
        return tf.clip_by_value(found, -_LARGEST, _LARGEST)

    probe = probe.get_concrete_function(
        tf.TensorSpec([None, *image_shape], tf.float32),
        tf.TensorSpec([None], tf.int32),
        tf.TensorSpec([], tf.int32),
    )
    return lambda images, labels, first: probe(
        tf.constant(images), tf.constant(labels, tf.int32), tf.constant(first, tf.int32)
    ).numpy()
