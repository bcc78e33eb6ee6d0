"""Adversarial training with a unified embedding (section 3.3), as one Keras model."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import inspect
import math
import os
import textwrap
import types
import warnings
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import keras
import numpy as np
import tensorflow as tf

from cascade_keras import attacks, cascade, draws, losses, replicas, weights
from cascade_keras.attacks import Chosen, specs
from cascade_keras.border import UNIT, Adapted, adapt, guard_images, takes, to_unit
from cascade_keras.data.batching import Batch
from cascade_keras.data.given import check_arguments, in_one_line, unpack
from cascade_keras.errors import InputError, about, shown
from cascade_keras.keras_private import (
    Directions,
    SteppedModel,
    directed_mean,
    draws_random_numbers,
    frozen_layers,
    gradients_are_sums,
    paired_draws,
    schedule_of,
    split_for_validation,
    statistics_of_all_replicas,
)
from cascade_keras.labels import Labels, guard_labels, smoothed, unsmoothed
from cascade_keras.metrics import OfBothHalves
from cascade_keras.options import TrainerOptions

# The metrics, and whether a higher or a lower value is the better one, where one is.
METRICS = {
    "loss": "down",
    "clean_loss": "down",
    "adversarial_loss": "down",
    "distance_loss": "down",
    "decay_loss": "down",
    "clean_accuracy": "up",
    "adversarial_accuracy": "up",
    "max_logit": None,
    "gradient_norm": None,
    "embedding_distance": "down",
}
_PROBED_PAIRS = 16  # on which a network with random layers of its own is tried


class Mixed(NamedTuple):
    """The images that the network is shown in a step.

    Attributes:
        images: (m, H, W, C) in [0, 1]: k adversarial ones, then clean ones.
        k: how many are adversarial.
        paired: whether the first k clean images are the partners of the adversarial ones.
        classes: int32 (m,), the class of each image, for accuracies; those of the labels if None.
        given: the labels (m, ...) as they were given, for metrics of ``compile``.
        step: of the training, from 0; None in validation.
    """

    images: tf.Tensor
    k: int | tf.Tensor
    paired: bool
    classes: tf.Tensor | None = None
    given: tf.Tensor | None = None
    step: tf.Tensor | None = None


class _Taken(NamedTuple):
    """A batch as a step takes it: images in [0, 1], labels checked."""

    batch: Batch
    labels: Labels
    given: tf.Tensor
    weights: tf.Tensor | None
    after: list  # what has to be there before anything is counted


@keras.saving.register_keras_serializable("cascade_keras")
class AdversarialTrainer(SteppedModel):
    """Trains a classifier on clean and adversarial images; ``compile`` and ``fit`` stay ordinary.

    ``loss`` says what becomes of a batch: standard, only clean images; kurakin, half of them
    replaced by adversarial ones; bidirectional, pivot and guided, adversarial ones joined, the
    distance between the embeddings of a pair added. What is None follows from the loss. The guide
    tells of losses, metrics, labels, weights, saving and replicas.

    Args:
        network: a Keras model, images -> logits or probabilities (m, classes), one logit (m, 1),
            or several outputs, of which ``logits`` and ``embedding`` name those meant (layers too).
        loss: "standard", "kurakin", "bidirectional", "pivot" or "guided".
        value_range: of the images that the network takes, and ``fit`` is given: (0, 255), (-1, 1).
        from_logits: whether the network gives logits; "auto" looks.
        logits, embedding: names of outputs or layers, see ``border.adapt``.
        cascade_sources, ensemble_sources: Keras models that take what the network takes, or
            functions of images in [0, 1], as of ``load_source``. Not saved, see ``set_sources``.
        **options: those of a Keras model, and
            {options}
    """

    # What is in the docstring is one screen of help(); docs/guide.md has the rest.

    def __init__(
        self,
        network: keras.Model,
        loss: str = "pivot",
        *,
        value_range: Sequence[float] = UNIT,
        from_logits: bool | str = "auto",
        logits: str | None = None,
        embedding: str | None = None,
        cascade_sources: Sequence[Callable] = (),
        ensemble_sources: Sequence[Callable] = (),
        **options,
    ):
        named = {f.name for f in dataclasses.fields(TrainerOptions)} & set(options)
        own = {name: options.pop(name) for name in named}
        super().__init__(**options)
        if not isinstance(network, keras.Layer):
            raise InputError(
                f"must be a Keras model, whose weights are trained; got {type(network).__name__}",
                "network",
            )
        _check_scope(network)
        self.network = network
        self.border = adapt(
            network, value_range=value_range, from_logits=from_logits, logits=logits,
            embedding=embedding,
        )  # fmt: skip
        chosen = own.pop("attack", None)
        if chosen is not None:
            chosen = Chosen.of(chosen)
            own["attack"] = chosen.name
        self.options = TrainerOptions(loss=loss, **own).resolved()
        self.spec = losses.LOSSES[loss]
        self.attack = chosen or Chosen(self.options.attack)
        self._refuse_of_guided()
        if 0 < self.options.max_epsilon < 1:
            warnings.warn(
                f"max_epsilon is in 0..255 units: {self.options.max_epsilon:g} is less than one "
                "pixel value; 8 of 255 is max_epsilon=8",
                stacklevel=2,
            )
        for note in specs.short_steps(self.attack.in_training(), [self.options.max_epsilon]):
            warnings.warn(note, stacklevel=2)
        self.steps = self.add_weight(
            shape=(),
            dtype="int64",
            initializer="zeros",
            trainable=False,
            aggregation="only_first_replica",
            name="steps",
        )
        self.trackers = {
            name: directed_mean(name, way, whole=True) for name, way in METRICS.items()
        }
        # What is no part of files: a namespace is not looked into.
        self._state = types.SimpleNamespace(
            regularization=directed_mean("regularization_loss", "down", whole=True),
            halves=OfBothHalves(),
            directions=[],
            compiled_metrics={},
            validation=None,
            draws=None,
            sources={},
            told=set(),
            xla_was_asked=False,
            graphs={},
        )
        self.set_sources(cascade_sources, ensemble_sources)
        self.built = True

    @property
    def _is_guided(self) -> bool:
        return specs.ATTACKS[self.attack.name].guided

    def _refuse_of_guided(self) -> None:
        """Refuse what a guided attack is told twice, and what replicas cannot compute in parts."""
        if self._is_guided and self.attack.options:
            raise InputError(
                f"{self.attack.name} takes its options from the trainer's start, guide, "
                "distance_weight and distance; name it alone",
                "attack",
            )
        if self.spec.distance and self.options.distance == "nuclear" and self._is_shared:
            raise InputError(
                "the nuclear norm is of a whole batch, of which each replica has a part; choose "
                "another distance, or train on one device",
                "distance",
            )

    def train_step(self, data):
        """Take one step of section 3.3, and return the metrics."""
        taken = self._take(data)
        self._refuse_lost_sources()
        batch, weights = taken.batch, taken.weights
        with tf.control_dependencies(taken.after), self._sharing(batch) as share:
            self.steps.assign(batch.step)
            mixed, labels = self._mix(taken, share)
            if weights is not None:
                first = 0 if self.spec.pairs else mixed.k
                weights = tf.concat([weights[: mixed.k], weights[first:]], axis=0)
            with tf.GradientTape() as tape:
                outputs = self._outputs(mixed)
                loss = self.compute_loss(mixed, labels, outputs, weights)
                scaled_loss = self.optimizer.scale_loss(loss)
            loss_scale = self.optimizer.scale_loss(1.0)  # applying the gradient may change it
            variables = self.network.trainable_variables
            gradients = tape.gradient(scaled_loss, variables)
            if share is not None:
                # Before the optimizer has them, so that each replica sees whether all are finite.
                gradients = _of_all(gradients)
            with gradients_are_sums(self.optimizer, share is not None):
                self.optimizer.apply(gradients, variables)
            self.steps.assign(batch.step + 1)
            norm = tf.linalg.global_norm(gradients) / loss_scale
            # In half precision a step whose gradient overflows is left out; so it is of the mean.
            finite = tf.math.is_finite(norm)
            norm, counted = tf.where(finite, norm, 0.0), tf.cast(finite, norm.dtype)
            self._track_part("gradient_norm", replicas.part(norm), counted)
            self._track_part("loss", loss, self._images(mixed))
            results = self.compute_metrics(mixed, labels, outputs, weights)
            return {**results, "gradient_norm": self.trackers["gradient_norm"].result()}

    def _sharing(self, batch: Batch):
        """Return within what a step knows its part of the whole batch."""
        return replicas.sharing(batch.images, batch.part)

    @staticmethod
    def _images(mixed: Mixed) -> tf.Tensor:
        """Return how many images the network is shown in a step, on all replicas."""
        share = replicas.current()
        if share is None:
            return tf.shape(mixed.images)[0]
        return share.total + share.attacked if mixed.paired else share.total

    def _take(self, data) -> _Taken:
        """Return a batch with its images in [0, 1]; a user's own are checked, ours are not."""
        given = unpack(data, self.steps.value, self.border.input_shape)
        images = given.batch.images
        self._learn(images)
        if given.ours:
            if replicas.count() > 1 and given.batch.part is None:
                raise InputError(
                    "a data.Batch does not say which rows of the batch it has; take "
                    "data.shared_batches, or give fit (images, labels)"
                )
            images = to_unit(images, UNIT)
        else:
            images = guard_images(images, self.border.value_range)
        batch, classes = given.batch._replace(images=images), self.border.num_classes
        if given.ours and given.labels.shape.rank == 1:
            labels, checks = Labels(tf.cast(given.labels, tf.int32), None), list[tf.Tensor]()
        else:
            labels, checks = guard_labels(
                given.labels, classes, count=tf.shape(images)[0], binary=bool(self.border.binary)
            )
        labels = smoothed(labels, classes, self.options.label_smoothing)
        # Where a dataset ends, what does not depend on its images would be counted once more.
        after = [images, *checks]
        if (given.ours and replicas.count() == 1) or tf.executing_eagerly():
            after = []
        return _Taken(batch, labels, given.labels, given.weights, after)

    def _learn(self, images: tf.Tensor) -> None:
        """Find out what is only known with the images' size: classes, variables, random layers."""
        self.border.learn(tf.cast(images, tf.float32))
        self._check_sources()
        if self.optimizer is not None and not self.optimizer.built:
            with tf.init_scope():
                self.optimizer.build(self.network.trainable_variables)
        if self._state.draws is None:
            self._try_pairs(images.shape[1:])

    def _mix(self, taken: _Taken, share: replicas.Share | None) -> tuple[Mixed, tf.Tensor]:
        """Return the k adversarial images of a batch, then its clean ones, and the labels."""
        batch, labels = taken.batch, taken.labels.target
        k = self._attacked(batch.images, share)
        adversarial = batch.images[:k]
        if self.spec.attacks:
            adversarial = self.make_adversarial(adversarial, labels[:k], batch.step, batch.cascade)
        first_clean = 0 if self.spec.pairs else k

        def mixed(part: tf.Tensor) -> tf.Tensor:
            return tf.concat([part[:k], part[first_clean:]], axis=0)

        images = tf.concat([adversarial, batch.images[first_clean:]], axis=0)
        labels = mixed(labels)
        classes = labels if taken.labels.soft is None else mixed(taken.labels.hard)
        given = mixed(taken.given) if self._state.halves else None
        return Mixed(images, k, self.spec.pairs, classes, given, batch.step), labels

    def images_of(self, data, attacked: bool = True) -> tf.Tensor:
        """Return the images that the network would be shown in a step on these data, in [0, 1].

        Args:
            data: as ``train_step`` is given them.
            attacked: with the adversarial ones; else the clean ones alone.
        """
        taken = self._take(data)
        with tf.control_dependencies(taken.after):
            images = self._mix(taken, None)[0].images if attacked else taken.batch.images
            return tf.identity(images)

    def graph(self, name: str, function: Callable) -> Callable:
        """Return a function as a graph, made once until ``compile`` or ``set_sources`` is called.

        What it reads of layers, such as whether they are frozen, is as it was when it was made.

        Args:
            name: the same for the same function.
            function: called with tensors.
        """
        graphs = self._state.graphs
        if name not in graphs:
            graphs[name] = tf.function(function, reduce_retracing=True)
        return graphs[name]

    def _attacked(self, images: tf.Tensor, share: replicas.Share | None) -> int | tf.Tensor:
        """Return k, how many images of a batch are attacked, of those that are here."""
        n, most = _count(images), self.options.adversarial_batch_size
        if not self.spec.attacks:
            return 0
        total = n if share is None else share.total
        if most is None:
            k = total if self.spec.pairs else total // 2
        else:
            k = min(most, total) if isinstance(total, int) else tf.minimum(most, total)
        if share is None:
            return k
        share.attacked = k
        return share.before(k)

    def make_adversarial(self, images, labels, step, crafted=None) -> tf.Tensor:
        """Return one adversarial image for each image: the network's own, then cascade images.

        Images are in [0, 1], labels classes (k,) or soft (k, classes). The passes run in inference
        mode, so batch-norm statistics stay untouched, and the result is a function of the weights
        and of (seed, step) alone. ``crafted`` are the cascade images, of the last images, where
        they were crafted before.
        """
        k = _count(images)
        share = replicas.current()
        if share is not None:
            share.own = share.attacked
            if crafted is not None:
                share.own -= share.crafted
            elif self.cascade_sources:
                share.own -= self._cascaded(share.attacked)
        if crafted is not None:
            own = k - _count(crafted)
        elif not self.cascade_sources:
            own = k
            crafted = images[own:]
        elif share is None:
            # All of any number is all, which is known before the number is.
            own = 0 if self.options.cascade_share == 1 else k - self._cascaded(k)
            crafted = self._cascade(images[own:], labels[own:], step)
        else:
            own = share.before(share.own)
            part = share.rows[own:k] - share.own, self._cascaded(share.attacked)
            crafted = self._cascade(images[own:], labels[own:], step, part)

        guide = self._guide(k if share is None else share.attacked, step)

        def attack() -> tf.Tensor:
            return self._own_images(images[:own], labels[:own], step, guide)

        # Of no images some layers have no gradient: max pooling would end the process.
        if isinstance(own, int):
            made = attack() if own else images[:0]
        else:
            made = tf.cond(own > 0, attack, lambda: images[:0])
        return tf.concat([made, crafted], axis=0)

    def _cascaded(self, attacked: int | tf.Tensor) -> int | tf.Tensor:
        """Return how many of the attacked images of a whole batch are cascade images."""
        return cascade.count_of(attacked, self.options.cascade_share)

    def _cascade(self, images, labels, step, part: tuple | None = None) -> tf.Tensor:
        """Return the iter_fgsm images of the sources (section 4.1)."""
        count, sources, options = tf.shape(images)[0], self.cascade_sources, self.options
        rows, total = (None, count) if part is None else part
        drawn = cascade.draw(
            options.seed, step, total, len(sources), options.max_epsilon, options.epsilon_sampling
        )
        if part is not None:
            source, epsilon = drawn
            drawn = tf.gather(source, rows), tf.gather(epsilon, rows)
        labels = unsmoothed(labels, options.label_smoothing)  # as those of a bank
        return cascade.craft(sources, images, labels, *drawn)

    def _own_images(self, images, labels, step: tf.Tensor, guide) -> tf.Tensor:
        """Return the images of the network itself, or of the step's ensemble source."""
        options, keys = self.options, draws.step_keys(self.options.seed, step)
        share, shape = replicas.current(), tf.shape(images)
        rows = None
        larger: contextlib.AbstractContextManager[None] = contextlib.nullcontext()
        if share is not None:
            rows = share.rows[: shape[0]]
            larger = draws.of_larger_batch(rows, share.own)
            shape = tf.concat([[share.own], shape[1:]], axis=0)
        epsilon = draws.sample_epsilon(
            options.epsilon_sampling, shape[0], options.max_epsilon, keys.epsilon
        )
        if options.per_pixel_epsilon:
            epsilon = draws.jitter_per_pixel(epsilon, shape, options.max_epsilon, keys.jitter)
        if share is not None:
            epsilon = tf.gather(epsilon, rows)

        def attack_with(logits_fn: attacks.LogitsFn) -> Callable[[], tf.Tensor]:
            return lambda: self._at_epsilon(logits_fn, images, labels, epsilon, keys.signs, guide)

        with larger:
            if not self.ensemble_sources:
                return attack_with(self._attacked_outputs)()
            attacker = draws.attacker(options.seed, step, len(self.ensemble_sources))
            attackers = (self._attacked_outputs, *self.ensemble_sources)
            return tf.switch_case(attacker, [attack_with(logits_fn) for logits_fn in attackers])

    def _at_epsilon(self, logits_fn, images, labels, epsilon, seed, guide) -> tf.Tensor:
        options = self.attack.in_training()
        if self.options.sparsity < 100:
            options["sparsity"] = self.options.sparsity
        if self._is_guided:
            options |= {"start": self.options.start, "guide": guide, "distance": self._apart}
        return attacks.at_epsilon(
            self.attack.name, logits_fn, images, labels, epsilon, seed=seed, **options
        )

    def attacked(self, images: tf.Tensor, labels: tf.Tensor, first=0) -> tf.Tensor:
        """Return images in [0, 1] under the training attack at ``max_epsilon``, as validated by.

        Args:
            images: (n, H, W, C).
            labels: classes (n,), or soft (n, classes).
            first: the number of the first one among all that are looked at: its draws' seed.
        """
        return self._at_epsilon(
            self._attacked_outputs,
            images,
            labels,
            self.options.max_epsilon,
            [self.options.seed, first],
            self._guide(_count(images)),
        )

    def _guide(self, pairs, step=None) -> float | tf.Tensor:
        """Return what weighs the distance in the objective of a guided attack: a lambda_2.

        An image's objective is its share of the loss's mean over k images: where the distance is a
        sum over the pairs, it is multiplied by k.

        Args:
            pairs: k, of the whole batch.
            step: from 0; None in validation, where nothing alternates.

        Returns:
            A number, or a scalar where it depends on the step; 0 on even steps where it alternates.
        """
        options = self.options
        if not self._is_guided:
            return 0.0
        guide = options.guide * self._weight_of_distance(step)
        if isinstance(guide, float) and not guide:
            return 0.0
        if not self.spec.averaged:
            guide *= tf.cast(pairs, tf.float32)
        if step is None or not options.guide_alternates:
            return guide
        return tf.where(losses.alternates(step), guide, 0.0)

    def _weight_of_distance(self, step=None) -> float | tf.Tensor:
        """Return lambda_2 at a step; without its ramp in validation, where the step is None."""
        weight, options = self.options.distance_weight, self.options
        if step is None or options.distance_ramp == "constant":
            return weight
        return weight * losses.ramp(options.distance_ramp, step, options.ramp_steps)

    def compute_loss(self, x=None, y=None, y_pred=None, sample_weight=None, training=True):
        """Return the loss of a ``Mixed`` batch x, its labels y and what the network made of them.

        A scalar; its parts become metrics. ``y`` are classes (m,), or soft (m, classes);
        ``y_pred`` has "logits", "embedding" and "raw", what the network itself returned. Weights
        (m,) multiply the cross entropies of images and, of clean ones, their pairs' distance; the
        divisor stays that of the counts, as Keras's sum_over_batch_size.
        """
        k, options = x.k, self.options
        per_image = losses.cross_entropy(y_pred["logits"], y)
        if sample_weight is not None:
            per_image *= sample_weight
        classification = losses.mixed_cross_entropy(
            per_image[k:],
            per_image[:k],
            options.adversarial_weight if self.spec.attacks else 0.0,
            paired=k if self.spec.pairs else 0,
            paired_weight=options.paired_weight,
            normalizer=None if replicas.current() is None else self._divisor(x.paired),
        )
        distance = 0.0
        if self.spec.distance is not None:
            embedding = y_pred["embedding"]
            pairs = [embedding[:k], embedding[k : 2 * k]]
            if sample_weight is not None:
                pairs.append(sample_weight[:k])
            distance = self._weight_of_distance(x.step) * self.distance(*pairs)
        decay = self.decay()
        own = self.network.losses
        regularization = replicas.part(sum(tf.cast(each, tf.float32) for each in own))
        images, decay = self._images(x), replicas.part(decay)
        self._track("clean_loss", per_image[k:])
        self._track("adversarial_loss", per_image[:k])
        self._track_part("distance_loss", distance, images)
        self._track_part("decay_loss", decay, images)
        if own:
            self._track_part("regularization_loss", regularization, images)
            self._tell_of_two_decays()
        return classification + distance + decay + regularization

    def _divisor(self, paired: bool) -> Callable[[tf.Tensor], tf.Tensor]:
        """Return what gives the weights of the whole batch's images in place of a part's."""
        share, options = replicas.current(), self.options
        k, total = (tf.cast(each, tf.float32) for each in (share.attacked, share.total))
        clean = total - k + (k * options.paired_weight if self.spec.pairs else 0.0)
        if paired and not self.spec.pairs:  # in validation
            clean = total
        adversarial = k * options.adversarial_weight if self.spec.attacks else 0.0
        return lambda _: clean + adversarial

    def distance(self, adversarial, clean, weights=None) -> tf.Tensor:
        """Return the distance of the embeddings (k, d) of adversarial images and their partners.

        A sum over the pairs, or their mean, as the loss's row says. ``weights`` (k,) multiply that
        of each pair, where the data has any; a mean is over the number of pairs all the same.
        """
        options, constant = self.options, self.options.clean_embedding == "constant"
        if constant:
            clean = tf.stop_gradient(clean)  # before the scale is taken of it
        guarded = constant and options.pivot_guard == "fixed_scale"
        total = self._apart(adversarial, clean, weights, guarded)
        if not self.spec.averaged:
            return total
        share = replicas.current()
        pairs = tf.shape(adversarial)[0] if share is None else share.attacked
        return tf.math.divide_no_nan(total, tf.cast(pairs, total.dtype))

    def _apart(self, adversarial, clean, weights=None, guarded: bool = False) -> tf.Tensor:
        """Return the sum over the pairs of the distances of embeddings (k, d)."""
        options = self.options
        normalization = options.embedding_normalization
        adversarial, clean = losses.normalize_pair(adversarial, clean, normalization)
        if guarded:
            adversarial = losses.fix_scale(adversarial, replicas.mean)
        function, more = self.spec.resolve(), {}
        if weights is not None:
            if "weights" not in inspect.signature(function).parameters:
                raise InputError(
                    f"the distance of {self.spec.name!r} takes no weights; add the argument to it, "
                    "or fit without sample and class weights",
                    "loss",
                )
            more["weights"] = weights
        return function(adversarial, clean, options.distance_norm or options.distance, **more)

    def decay(self) -> tf.Tensor:
        """Return the weight decay, d / 2 * sum(w^2) over convolution and dense kernels."""
        kernels = [v for v in self.network.trainable_variables if v.name.endswith("kernel")]
        kernels = [tf.cast(kernel, tf.float32) for kernel in kernels]  # of networks of any type
        return self.options.weight_decay * sum(map(tf.nn.l2_loss, kernels))

    def compute_metrics(self, x, y, y_pred, sample_weight=None):
        """Return all metrics of a ``Mixed`` batch, given what ``compute_loss`` is given."""
        k, logits = x.k, y_pred["logits"]
        classes = attacks.classes_of(y) if x.classes is None else x.classes
        found = tf.argmax(logits, axis=-1, output_type=classes.dtype)
        correct = tf.cast(found == classes, tf.float32)
        self._track("clean_accuracy", correct[k:])
        self._track("adversarial_accuracy", correct[:k])
        self._track_largest("max_logit", tf.reduce_max(tf.abs(logits)))
        absent = {"gradient_norm"}
        if x.paired:
            adversarial, clean = y_pred["embedding"][:k], y_pred["embedding"][k : 2 * k]
            self._track("embedding_distance", tf.norm(adversarial - clean, axis=-1))
        else:
            absent.add("embedding_distance")
        self._close_tally()
        results = {name: self.trackers[name].result() for name in METRICS if name not in absent}
        if self.network.losses:
            results["regularization_loss"] = self._state.regularization.result()
        if x.given is not None:
            self._state.halves.update(x.given, y_pred["raw"], k, sample_weight, correct)
        return {**results, **self._state.halves.results()}

    def test_step(self, data):
        """Measure the loss and the metrics of clean images and of all of them attacked."""
        taken = self._take(data)
        with tf.control_dependencies(taken.after), self._sharing(taken.batch) as share:
            images, labels = taken.batch.images, taken.labels
            larger: contextlib.AbstractContextManager[None] = contextlib.nullcontext()
            if share is not None:
                share.attacked = share.total
                larger = draws.of_larger_batch(share.rows, share.total)
            with larger:
                adversarial = self._at_epsilon(
                    self._attacked_outputs,
                    images,
                    labels.target,
                    self.options.max_epsilon,
                    [self.options.seed, 0],
                    self._guide(_count(images) if share is None else share.total),
                )

            def twice(part: tf.Tensor | None) -> tf.Tensor | None:
                return None if part is None else tf.concat([part, part], axis=0)

            target = twice(labels.target)
            mixed = Mixed(
                tf.concat([adversarial, images], axis=0),
                _count(images),
                paired=True,
                classes=target if labels.soft is None else twice(labels.hard),
                given=twice(taken.given) if self._state.halves else None,
            )
            outputs, weights = self._named(self.border(mixed.images)), twice(taken.weights)
            loss = self.compute_loss(mixed, target, outputs, weights, training=False)
            self._track_part("loss", loss, self._images(mixed))
            return self.compute_metrics(mixed, target, outputs, weights)

    def predict_step(self, data):
        """Return {"logits", "embedding"} of images in the network's range."""
        images, _, _ = keras.utils.unpack_x_y_sample_weight(data)
        return _public(self.border(guard_images(images, self.border.value_range)))

    @property
    def metrics(self) -> list[keras.metrics.Metric]:
        """The trackers of ``METRICS``, and a list of them for callbacks that ask for directions."""
        state = getattr(self, "_state", None)
        if state is None:
            return []
        trackers = [*self.trackers.values(), state.regularization, *state.halves.metrics]
        return [*trackers, Directions([*trackers, *state.directions])]

    @property
    def validation_data(self):
        """What ``fit`` was given to validate by, for callbacks; None without."""
        return self._state.validation

    def declare(self, metric: str, direction: str) -> None:
        """Tell callbacks which way is better of a number that another callback adds to the logs.

        Args:
            metric: its name without "val_".
            direction: "up" or "down".
        """
        if metric not in {each.name for each in self._state.directions}:
            self._state.directions.append(directed_mean(metric, direction))

    def _outputs(self, mixed: Mixed) -> dict:
        """Return what the network in training mode makes of a batch.

        Where it has random layers, both images of a pair are given the same random numbers.
        """
        share, k = replicas.current(), mixed.k if mixed.paired else 0
        if share is None:
            if not (mixed.paired and self._state.draws):
                return self._named(self.border(mixed.images, training=True))
            return self._named(self._with_paired_draws(mixed.images, k))
        with statistics_of_all_replicas():
            if not self._state.draws:
                return self._named(self.border(mixed.images, training=True))
            rows, total = share.rows, share.total
            if mixed.paired:
                k, total = share.attacked, share.attacked + share.total
                rows = tf.concat([rows[: mixed.k], k + rows], axis=0)
            return self._named(self._with_paired_draws(mixed.images, k, (rows, total)))

    def _with_paired_draws(self, images: tf.Tensor, k, part: tuple | None = None):
        def call(images: tf.Tensor):
            return self.border(images, training=True)

        with paired_draws(_count(images), k, part):
            if tf.executing_eagerly() and self.border.kind != "logits":
                # A graph that the border would keep has the pairs of this batch in it.
                return tf.function(call, autograph=False)(images)
            return call(images)

    def _try_pairs(self, image_shape) -> None:
        """Refuse a network whose random layers draw unlike for the images of a pair.

        One that draws by Keras's functions does not. Others are called once, with pairs of equal
        images, and what that changes is changed back.
        """
        state = self._state
        state.draws = (self.spec.pairs or self._is_shared) and draws_random_numbers(self.network)
        shape = tf.TensorShape(image_shape)
        looked = self.spec.pairs and shape.is_fully_defined() and replicas.count() == 1
        if not state.draws or not looked:
            return
        with tf.init_scope():
            kept = [(v, v.numpy()) for v in self.network.variables if not v.trainable]
            half = draws.probes(_PROBED_PAIRS, shape)
            try:
                outputs = self._with_paired_draws(tf.concat([half, half], axis=0), _PROBED_PAIRS)
                found = outputs.logits.numpy(), outputs.embedding.numpy()
            finally:
                for variable, value in kept:
                    variable.assign(value)
        for values in found:
            scale = np.abs(values).max() + 1e-6
            if not np.abs(values[:_PROBED_PAIRS] - values[_PROBED_PAIRS:]).max() <= 1e-2 * scale:
                raise InputError(
                    "the network has a layer that draws random numbers by itself, so that an "
                    "adversarial image would be transformed unlike its clean partner; let it draw "
                    "by keras.random (shape[0] the batch), augment before fit, or use "
                    "loss='standard' or 'kurakin'",
                    "network",
                )

    @staticmethod
    def _named(outputs) -> dict:
        return {**_public(outputs), "raw": outputs.raw}

    def call(self, images, training=False):
        """Return {"logits", "embedding"} of the network, given images of its range."""
        return _public(self.border(to_unit(images, self.border.value_range), training=training))

    @property
    def steps_done(self) -> int:
        """Where the clock stands: how many batches were trained on."""
        return int(self.steps.numpy())

    def inference_logits(self, images: tf.Tensor) -> tf.Tensor:
        """Return the logits of images in [0, 1] in inference mode: what attacks are given."""
        return self.border.logits(images)

    def _attacked_outputs(self, images: tf.Tensor) -> tf.Tensor:
        """Return ``inference_logits``, with the embedding beside them for a guided attack."""
        if not self._is_guided:
            return self.inference_logits(images)
        outputs = self.border(images)
        return attacks.with_embedding(outputs.logits, outputs.embedding)

    def compile(self, optimizer="sgd", **kwargs):
        """Configure as Keras does; the loss is the trainer's own.

        ``metrics`` and ``weighted_metrics`` are measured of clean and of adversarial images each,
        as ``clean_auc`` and ``adversarial_auc``, on what the network itself returns and on labels
        as they are given. "accuracy" is there in any case. A learning rate's schedule follows the
        trainer's clock from here on.

        Raises:
            InputError: a loss or its weights, which would otherwise be ignored; or ``jit_compile``
                where XLA cannot compile the step.
        """
        if optimizer is None:
            raise InputError("is None; name one, such as 'adam'", "optimizer")
        for name in ("loss", "loss_weights"):
            if kwargs.get(name):
                raise InputError(f"compile takes no {name}: AdversarialTrainer has its own")
        own = {name: kwargs.pop(name, None) or [] for name in ("metrics", "weighted_metrics")}
        self._state.halves = OfBothHalves(**own, gives_logits=self.border.kind == "logits")
        self._state.compiled_metrics = own
        asked = kwargs.get("jit_compile", "auto")
        self._state.xla_was_asked = asked is True
        if self._needs_no_xla():
            self._refuse_xla()
            kwargs["jit_compile"] = False
        super().compile(optimizer=optimizer, **kwargs)
        self._state.graphs.clear()
        inner = getattr(self.optimizer, "inner_optimizer", self.optimizer)
        schedule = schedule_of(inner)
        if schedule is not None:
            inner.learning_rate = ClockSchedule(schedule, self.steps)
        if getattr(inner, "weight_decay", None) and self.options.weight_decay:
            self._tell("optimizer's weight_decay")
        # Variables made within the first step would have it traced twice.
        if self.network.built and not self.optimizer.built:
            self.optimizer.build(self.network.trainable_variables)
        if self.network.built and self.border.input_shape is not None:
            self._try_pairs(self.border.input_shape)
            self._tell_of_a_frozen_embedding(self.border.input_shape)

    def _needs_no_xla(self) -> bool:
        """Whether a step crafts images of which some are done before others, or is shared.

        XLA needs shapes that are known in advance.
        """
        iterates = specs.ATTACKS[self.attack.name].kind != specs.ONE_STEP
        return bool(self.cascade_sources) or (iterates and self.spec.attacks) or self._is_shared

    @property
    def _is_shared(self) -> bool:
        """Whether several replicas share each batch."""
        return self.distribute_strategy.num_replicas_in_sync > 1

    def _refuse_xla(self) -> None:
        if self._state.xla_was_asked and self._is_shared:
            raise InputError(
                "XLA does not compile a step that several replicas share; leave it off",
                "jit_compile",
            )
        if self._state.xla_was_asked:
            made = "cascade images" if self.cascade_sources else f"the images of {self.attack.name}"
            raise InputError(
                f"XLA needs shapes that are known in advance, and a step that crafts {made} leaves "
                "out those that are done; leave it off, or have cascade images from a bank",
                "jit_compile",
            )

    def get_compile_config(self):
        config = super().get_compile_config()
        own = {name: each for name, each in self._state.compiled_metrics.items() if each}
        return {**(config or {}), **keras.saving.serialize_keras_object(own)} if own else config

    def compile_from_config(self, config):
        self.compile(**keras.saving.deserialize_keras_object(config))

    def _tell_of_a_frozen_embedding(self, image_shape) -> None:
        """Warn where the distance has no weight to move, so that it only adds to the loss."""
        shape, variables = tf.TensorShape(image_shape), self.network.trainable_variables
        # Of a network whose weights are all trained that cannot be.
        if not (self.spec.distance and frozen_layers(self.network) and shape.is_fully_defined()):
            return
        with tf.GradientTape() as tape:
            embedding = self.border(draws.probes(1, shape)).embedding
        if all(gradient is None for gradient in tape.gradient(embedding, variables)):
            warnings.warn(
                "no weight that is trained comes before the embedding, so the distance of a pair "
                "moves nothing; choose an embedding behind the frozen layers, or train some",
                stacklevel=3,
            )

    def _tell_of_two_decays(self) -> None:
        kernels = [v for v in self.network.trainable_variables if v.name.endswith("kernel")]
        if self.options.weight_decay and any(getattr(v, "regularizer", None) for v in kernels):
            self._tell("network's kernel regularizers")

    def _tell(self, other: str) -> None:
        if other not in self._state.told:
            self._state.told.add(other)
            warnings.warn(
                f"the trainer has weight_decay={self.options.weight_decay:g} beside the {other}; "
                "pass weight_decay=0 to have that alone",
                stacklevel=2,
            )

    # What Keras runs, with what a graph asserts of the data said in one line.

    def fit(self, x=None, y=None, *args, **kwargs):
        """Train as Keras does, on images in ``value_range``; see ``keras.Model.fit``."""
        bound = inspect.signature(super().fit).bind(x, y, *args, **kwargs).arguments
        self._refuse_unshared(bound.get("x"), "x")
        self._refuse_unshared(bound.get("validation_data"), "validation_data")
        check_arguments(**bound)
        share = bound.pop("validation_split", 0)
        if not 0 <= share < 1:
            raise InputError(f"must be in [0, 1), got {shown(share)}", "validation_split")
        if share and bound.get("validation_data") is None:
            given = (bound.pop("x"), bound.pop("y", None), bound.pop("sample_weight", None))
            (x, y, weights), held_out = split_for_validation(given, share)
            bound.update(x=x, y=y, sample_weight=weights, validation_data=held_out)
        self._state.validation = bound.get("validation_data")
        with in_one_line():
            return super().fit(**bound)

    def _refuse_unshared(self, data, setting: str) -> None:
        """Refuse data of which each worker would make its own order and take rows of that."""
        strategy, shared = self.distribute_strategy, tf.distribute.DistributedDataset
        over_workers = isinstance(strategy, tf.distribute.MultiWorkerMirroredStrategy)
        if over_workers and data is not None and not isinstance(data, shared) and self._is_shared:
            raise InputError(
                "over several workers a batch must be shared by all; give data.shared_batches("
                "strategy, images, labels, batch_size), and measure on one worker afterwards",
                setting,
            )

    def check_step(self, data):
        """Return data of which is asserted, if it is a user's own, what a step asserts."""
        return _once(self._take(data).after, data)

    def check_prediction(self, data):
        """Return data of whose images is asserted that they are in the network's range."""
        images, _, _ = keras.utils.unpack_x_y_sample_weight(data)
        return _once([guard_images(images, self.border.value_range)], data)

    @property
    def layers_are_built(self) -> bool:
        """Whether the network's variables are there; the trainer's own always are."""
        return self.network.built

    def evaluate(self, *args, **kwargs):
        """Measure as Keras does, on images in ``value_range``; see ``keras.Model.evaluate``."""
        self._refuse_unshared(args[0] if args else kwargs.get("x"), "x")
        with in_one_line():
            return super().evaluate(*args, **kwargs)

    def predict(self, *args, **kwargs):
        """Return {"logits", "embedding"} of images in ``value_range``, as Keras predicts."""
        with in_one_line():
            return super().predict(*args, **kwargs)

    def predict_on_batch(self, *args, **kwargs):
        """Predict one batch as Keras does, of images in ``value_range``."""
        with in_one_line():
            return super().predict_on_batch(*args, **kwargs)

    def train_on_batch(self, *args, **kwargs):
        """Take one step as Keras does, on images in ``value_range``."""
        with in_one_line():
            return super().train_on_batch(*args, **kwargs)

    def test_on_batch(self, *args, **kwargs):
        """Measure one batch as Keras does, of images in ``value_range``."""
        with in_one_line():
            return super().test_on_batch(*args, **kwargs)

    def set_sources(
        self, cascade_sources: Sequence[Callable] = (), ensemble_sources: Sequence[Callable] = ()
    ) -> None:
        """Replace the sources: also of a trainer that was loaded from a file, which keeps none.

        Raises:
            InputError: sources that the loss or the other options have no use for, of other images
                or classes than the network's, or that give probabilities.
        """
        k, epsilon = self.options.adversarial_batch_size, self.options.max_epsilon
        if (cascade_sources or ensemble_sources) and not self.spec.attacks:
            raise InputError(
                f"{self.spec.name!r} has no adversarial images, so it takes no sources", "loss"
            )
        share = self.options.cascade_share
        if cascade_sources and k is not None and not cascade.count_of(k, share):
            raise InputError(
                f"must be {math.ceil(1 / share)} or above with cascade sources, of whose images "
                f"it has a share of {share:g}",
                "adversarial_batch_size",
            )
        if cascade_sources and ensemble_sources and share == 1:
            raise InputError(
                "1 leaves no image to the ensemble sources; lower it or leave them out",
                "cascade_share",
            )
        if cascade_sources and epsilon < 1:
            raise InputError(
                f"must be 1 or above with cascade sources, got {epsilon}", "max_epsilon"
            )
        named = {"cascade_sources": cascade_sources, "ensemble_sources": ensemble_sources}
        adapted = {
            name: [self._source(each, name) for each in each_kind]
            for name, each_kind in named.items()
        }
        self._state.sources = adapted
        self._check_sources()
        # Bound methods, where Keras would make a model that is an attribute a part of the trainer.
        self.cascade_sources = tuple(each.logits for each in adapted["cascade_sources"])
        self.ensemble_sources = tuple(each.logits for each in adapted["ensemble_sources"])
        self._lost_sources: dict[str, int] = {}
        self.train_function = None  # a compiled step has the earlier ones in it
        self._state.graphs.clear()
        if self.compiled and self.cascade_sources:  # as in compile
            self._refuse_xla()
            self.jit_compile = False

    def _source(self, network: Callable, name: str) -> Adapted:
        """Return a source between the borders."""
        own = self.border.input_shape
        size = None if own is None or None in own else own
        # A trainer says itself what its network takes, a function takes [0, 1].
        own_range = isinstance(network, keras.Layer) and not isinstance(network, AdversarialTrainer)
        value_range = self.border.value_range if own_range else None
        taken = getattr(network, "input_shape", None)
        known = size and isinstance(taken, tuple) and len(taken) in (3, 4)
        if known and not takes(taken[-3:], size):
            raise InputError(
                f"a source takes images of shape {taken[-3:]}, the network of {size}", name
            )
        with about(name):
            return adapt(network, value_range=value_range, image_shape=size)

    def _check_sources(self) -> None:
        classes = self.border.num_classes
        for name, adapted in self._state.sources.items():
            for each in adapted:
                if classes and each.num_classes not in (None, classes):
                    raise InputError(
                        f"a source tells {each.num_classes} classes apart, the network {classes}",
                        name,
                    )

    def _refuse_lost_sources(self) -> None:
        for name, count in self._lost_sources.items():
            raise InputError(
                f"the file that the trainer was loaded from has none of its {count}; give them to "
                "set_sources, or call that without any",
                name,
            )

    def save(self, filepath, *args, **kwargs):
        """Save the trainer as Keras does, in a ``.keras`` file.

        Raises:
            InputError: a ``.h5`` file, from which Keras does not find the trainer's class again.
        """
        if str(filepath).endswith((".h5", ".hdf5")):
            raise InputError(
                "a trainer is saved as .keras; .h5 takes its weights (save_weights, .weights.h5), "
                "or trainer.network",
                "filepath",
            )
        super().save(filepath, *args, **kwargs)

    def export(self, filepath, format="tf_saved_model", **kwargs):
        """Export ``call``, images -> {"logits", "embedding"}, as Keras exports a model.

        A network saved for TF Serving, with preprocessing and provenance, is made of
        ``trainer.network`` by ``export_saved_model``.
        """
        if "input_signature" not in kwargs:
            size = self.border.input_shape
            if size is None:
                raise InputError(
                    "the network's image size is not known; pass input_signature="
                    "[keras.layers.InputSpec(shape=(None, H, W, C), dtype='float32')]"
                )
            spec = keras.layers.InputSpec(shape=(None, *size), dtype="float32", name="images")
            kwargs["input_signature"] = [spec]
        super().export(filepath, format=format, **kwargs)

    def get_config(self):
        sources = {
            "cascade_sources": self.cascade_sources,
            "ensemble_sources": self.ensemble_sources,
        }
        return {
            **super().get_config(),
            "network": keras.saving.serialize_keras_object(self.network),
            **dataclasses.asdict(self.options),
            "attack": self.attack.as_json(),
            "value_range": list(self.border.value_range),
            "from_logits": self.border.from_logits,
            "logits": self.border.logits_name,
            "embedding": self.border.embedding_name,
            "sources": {
                **self._lost_sources,
                **{name: len(own) for name, own in sources.items() if own},
            },
        }

    @classmethod
    def from_config(cls, config, custom_objects=None):
        network = keras.saving.deserialize_keras_object(config["network"], custom_objects)
        config = {**config, "network": network}
        lost = config.pop("sources", {})
        if "attack" in config:
            config["attack"] = Chosen.of_json(config["attack"])
        trainer = cls(**config)
        trainer._lost_sources = lost
        return trainer

    def save_weights(self, filepath, overwrite=True, max_shard_size=None):
        """Save the weights, which ``trainer.network.load_weights`` can load as well.

        Optimizer and clock are in the file too. One in several parts, or elsewhere than on this
        machine, is the trainer's alone.
        """
        if not weights.is_one_file(filepath) or max_shard_size is not None:
            return super().save_weights(filepath, overwrite, max_shard_size)
        if not overwrite and os.path.exists(filepath):
            raise InputError(f"{filepath} exists; pass overwrite=True to replace it")
        return weights.save(filepath, self.network, super().save_weights)

    def load_weights(self, filepath, skip_mismatch=False, **kwargs):
        """Load weights that a trainer or its bare network has saved.

        The latter leave optimizer and clock as they are.

        Raises:
            InputError: they are those of another network.
        """
        options = {"skip_mismatch": skip_mismatch, **kwargs}
        load_trainer = functools.partial(super().load_weights, **options)
        load_network = functools.partial(self.network.load_weights, **options)
        try:
            if weights.is_one_file(filepath):
                weights.load(filepath, load_network, load_trainer)
            else:
                load_trainer(filepath)
        except ValueError as error:
            hint = (
                ""
                if weights.is_one_file(filepath)
                else ("; trainer.network.load_weights takes what a network has saved alone")
            )
            raise InputError(
                f"{filepath} has not the weights of this trainer: {weights.reason(error)}{hint}"
            ) from error

    def load_own_variables(self, store):
        """Load the clock; files of version 0.1.0 have none and leave it as it is."""
        if store.keys():
            super().load_own_variables(store)

    def _track(self, name: str, value, weight=None) -> None:
        """Count values of images into the mean of a metric."""
        if replicas.current() is None:
            self.trackers[name].update_state(value, weight)
        else:
            self._tally(name).add_mean(value, weight)

    def _track_part(self, name: str, value, weight) -> None:
        """Count a number of a whole batch, of which each replica has a part that adds up to it."""
        if replicas.current() is None:
            self._metric_of(name).update_state(value, weight)
        else:
            self._tally(name).add_part(value, weight)

    def _track_largest(self, name: str, value) -> None:
        """Count a number of a batch, the largest of those of all replicas."""
        if replicas.current() is None:
            self._metric_of(name).update_state(value)
        else:
            self._tally(name).add_largest(value)

    def _metric_of(self, name: str) -> keras.metrics.Metric:
        return self.trackers.get(name) or self._state.regularization

    def _tally(self, name: str) -> replicas.Tally:
        share = replicas.current()
        share.tallied.append(name)
        return share.tally

    def _close_tally(self) -> None:
        """Count what all replicas have, so that each has the metrics of the whole batch."""
        share = replicas.current()
        if share is not None:
            for name, (value, weight) in zip(share.tallied, share.tally.close(), strict=True):
                self._metric_of(name).update_state(value, weight)


def _once(operations: list, data):
    """Return tensors, in any structure, that are there once operations have run."""
    if not operations or tf.executing_eagerly():
        return data
    with tf.control_dependencies(operations):
        return tf.nest.map_structure(lambda each: each if each is None else tf.identity(each), data)


def _public(outputs) -> dict:
    return {"logits": outputs.logits, "embedding": outputs.embedding}


def _of_all(gradients: list) -> list:
    """Return the sum over all replicas of each gradient that there is."""
    present = [g for g in gradients if g is not None]
    summed = iter(replicas.total_of_all(present))
    return [None if g is None else next(summed) for g in gradients]


def _check_scope(network: keras.Model) -> None:
    """Refuse a network whose variables are not where this strategy's replicas have theirs."""
    several = tf.distribute.get_strategy().num_replicas_in_sync > 1
    shared = [isinstance(v.value, tf.distribute.DistributedValues) for v in network.variables]
    if several and not all(shared):
        raise InputError(
            "was not made within strategy.scope(), where the trainer is; make it there", "network"
        )
    if not tf.distribute.has_strategy() and any(shared):
        raise InputError(
            "was made within a strategy's scope; make the trainer there too, and compile it",
            "network",
        )


def _count(images: tf.Tensor) -> int | tf.Tensor:
    """Return the number of images, as an int where it is known when the step is traced."""
    return tf.shape(images)[0] if images.shape[0] is None else images.shape[0]


def _documented(trainer: type) -> None:
    """Give the trainer's help the options, which are declared in ``TrainerOptions`` alone."""
    init = trainer.__init__  # type: ignore[misc]  # this class's own
    own = list(inspect.signature(init).parameters.values())[1:-1]
    fields = [field for field in dataclasses.fields(TrainerOptions) if field.name != "loss"]
    options = [
        inspect.Parameter(
            field.name, inspect.Parameter.KEYWORD_ONLY, default=field.default, annotation=field.type
        )
        for field in fields
    ]
    rest = inspect.Parameter("kwargs", inspect.Parameter.VAR_KEYWORD)
    signature = inspect.Signature([*own, *options, rest])
    trainer.__signature__ = signature  # type: ignore[attr-defined]  # as inspect reads it
    told = [
        textwrap.fill(
            f"{field.name}: {field.metadata['help']}.",
            100,  # with what pydoc writes before a line
            initial_indent=" " * 12,
            subsequent_indent=" " * 16,
        )
        for field in fields
    ]
    trainer.__doc__ = trainer.__doc__.replace("{options}", "\n".join(told).lstrip())


_documented(AdversarialTrainer)


@keras.saving.register_keras_serializable("cascade_keras")
class ClockSchedule(keras.optimizers.schedules.LearningRateSchedule):
    """Follows a schedule by the trainer's clock instead of the optimizer's count of its updates.

    ``AdversarialTrainer.compile`` makes one of every schedule that it is given, so that a step
    whose gradient overflows in half precision counts as well.

    Args:
        schedule: step -> learning rate.
        steps: the clock, ``AdversarialTrainer.steps``; the optimizer's count when None.
    """

    def __init__(self, schedule, steps: keras.Variable | None = None):
        super().__init__()
        self.schedule: Any = schedule.schedule if isinstance(schedule, ClockSchedule) else schedule
        self.steps = steps

    def __call__(self, step):
        return self.schedule(step if self.steps is None else self.steps)

    def get_config(self):
        return {"schedule": keras.saving.serialize_keras_object(self.schedule)}

    @classmethod
    def from_config(cls, config):
        return cls(keras.saving.deserialize_keras_object(config["schedule"]))
