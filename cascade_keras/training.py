"""Adversarial training with a unified embedding (section 3.3), as one Keras model."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import keras
import tensorflow as tf

from cascade_keras import attacks, cascade, draws, losses
from cascade_keras.attacks import specs
from cascade_keras.data.batching import Batch
from cascade_keras.errors import InputError

# What an argument given by name can be; numbers are checked in _check.
CHOICES = {
    "loss": ("standard", "kurakin", "bidirectional", "pivot"),
    "attack": specs.names(specs.ONE_STEP),
    "epsilon_sampling": draws.EPSILON_SAMPLINGS,
    "distance_norm": (1, 2),
    "embedding_normalization": ("none", "unit", "variance"),
    "pivot_guard": ("none", "fixed_scale"),
}
OPTIONS = (
    "max_epsilon",
    "adversarial_batch_size",
    "adversarial_weight",
    "distance_weight",
    "distance_norm",
    "embedding_normalization",
    "pivot_guard",
    "paired_weight",
    "attack",
    "epsilon_sampling",
    "per_pixel_epsilon",
    "sparsity",
    "weight_decay",
    "seed",
)
METRICS = (
    "loss",
    "clean_loss",
    "adversarial_loss",
    "distance_loss",
    "decay_loss",
    "clean_accuracy",
    "adversarial_accuracy",
    "max_logit",
    "gradient_norm",
    "embedding_distance",
)


@keras.saving.register_keras_serializable("cascade_keras")
class AdversarialTrainer(keras.Model):
    """Trains a classifier on clean and adversarial images; ``compile`` and ``fit`` stay ordinary.

    Every batch of (images, labels) is extended by adversarial images made inside the step from the
    network as it is. What becomes of a batch of n images, of which k are attacked:

        standard        n clean images, no adversarial ones
        kurakin         k are replaced: k adversarial, n - k clean (section 2.2)
        bidirectional   k are joined: k adversarial, n clean, and the distance between the
                        embeddings of each pair is added to the loss, moving both
        pivot           the same, moving the adversarial embedding only

    With cascade sources (section 4.1) the last k // 2 of the k adversarial images are not the
    network's own but iter_fgsm images of networks that are already trained, see ``cascade``. They
    are crafted within the step, or come with the batch where it is a ``data.Batch``.
    With ensemble sources the one-step images of each batch come from one of the sources or from
    the network itself, drawn anew (Tramer et al., 2018).

    The loss is ``losses.mixed_cross_entropy`` + distance_weight * distance + weight decay.

    Beside the parts of the loss and the accuracies, a step reports the largest logit, the norm of
    the gradient of all weights (before it is clipped) and, where the batch has pairs, the mean
    L2 distance of their embeddings.

    ``steps``, an int64 variable, is the clock: the number of batches done, also of those whose
    gradients an optimizer accumulates or leaves out. All draws of a step follow from (seed, steps),
    and so does a learning rate's schedule. A ``data.Batch`` brings its own step and sets the clock.

    Args:
        network: images (batch, H, W, C) in [0, 1] -> {"logits", "embedding"}, or logits alone,
            which then are the embedding too. It must not end in a softmax.
        loss: one of the four above.
        max_epsilon: largest epsilon of a training image, in 0..255 units.
        adversarial_batch_size: k; all images of a batch for the pair losses and half of them for
            kurakin when None.
        adversarial_weight: lambda.
        distance_weight: lambda_2.
        distance_norm: N, 1 or 2.
        embedding_normalization: see ``losses.normalize_pair``.
        pivot_guard: "fixed_scale" takes from the pivot loss the gradient that makes all embeddings
            grow without bound, see ``losses.fix_scale``; "none" is the formula as printed.
        paired_weight: weight of clean images that have an adversarial partner in the cross entropy.
        attack: name of a one-step attack of ``attacks.ATTACKS``.
        epsilon_sampling: see ``draws.sample_epsilon``.
        per_pixel_epsilon: jitter epsilon by N(0, 1) in every value of an image.
        sparsity: per cent of the values of an image that the attack perturbs.
        weight_decay: d in d / 2 * sum(w^2), over convolution and dense kernels only.
        seed: with the step number, determines every random draw.
        cascade_sources, ensemble_sources: Keras models, or functions from images to logits or to
            {"logits", ...} such as ``sources.load_source`` returns. They are not part of the
            trainer's variables and are not saved with it.

    Raises:
        InputError: an argument outside its range, sources that the loss has no use for, or a
            network that returns probabilities.
    """

    def __init__(
        self,
        network: keras.Model,
        loss: str = "pivot",
        *,
        max_epsilon: float = 16.0,
        adversarial_batch_size: int | None = None,
        adversarial_weight: float = 0.3,
        distance_weight: float = 1e-4,
        distance_norm: int = 2,
        embedding_normalization: str = "none",
        pivot_guard: str = "fixed_scale",
        paired_weight: float = 1.0,
        attack: str = "step_ll",
        epsilon_sampling: str = "clipped_normal",
        per_pixel_epsilon: bool = False,
        sparsity: float = 100,
        weight_decay: float = 1e-4,
        seed: int = 0,
        cascade_sources: Sequence[Callable] = (),
        ensemble_sources: Sequence[Callable] = (),
        **kwargs,
    ):
        super().__init__(**kwargs)
        self.network = network
        self.loss_name = loss  # Keras keeps the compiled loss under the plain name
        self.max_epsilon = max_epsilon
        self.adversarial_batch_size = adversarial_batch_size
        self.adversarial_weight = adversarial_weight
        self.distance_weight = distance_weight
        self.distance_norm = distance_norm
        self.embedding_normalization = embedding_normalization
        self.pivot_guard = pivot_guard
        self.paired_weight = paired_weight
        self.attack = attack
        self.epsilon_sampling = epsilon_sampling
        self.per_pixel_epsilon = per_pixel_epsilon
        self.sparsity = sparsity
        self.weight_decay = weight_decay
        self.seed = seed
        self.cascade_sources = tuple(map(_inference_logits, cascade_sources))
        self.ensemble_sources = tuple(map(_inference_logits, ensemble_sources))
        self._check()
        self.trackers = {name: keras.metrics.Mean(name=name) for name in METRICS}
        self.steps = self.add_weight(
            shape=(),
            dtype="int64",
            initializer="zeros",
            trainable=False,
            aggregation="only_first_replica",
            name="steps",
        )
        self.built = True

    def get_config(self):
        return {
            **super().get_config(),
            "network": keras.saving.serialize_keras_object(self.network),
            "loss": self.loss_name,
            **{name: getattr(self, name) for name in OPTIONS},
        }

    @classmethod
    def from_config(cls, config, custom_objects=None):
        network = keras.saving.deserialize_keras_object(config["network"], custom_objects)
        return cls(**{**config, "network": network})

    def _check(self) -> None:
        for name, choices in CHOICES.items():
            value = self.loss_name if name == "loss" else getattr(self, name)
            if value not in choices:
                raise InputError(f"{name} {value!r} is none of {', '.join(map(str, choices))}")
        if not 0 <= self.max_epsilon <= 255:
            raise InputError(f"max_epsilon must be in 0..255, got {self.max_epsilon}")
        if not 0 < self.sparsity <= 100:
            raise InputError(f"sparsity must be above 0 and at most 100, got {self.sparsity}")
        for name in ("adversarial_weight", "distance_weight", "paired_weight", "weight_decay"):
            if getattr(self, name) < 0:
                raise InputError(f"{name} must be 0 or above, got {getattr(self, name)}")
        k = self.adversarial_batch_size
        if k is not None and k < 1:
            raise InputError(f"adversarial_batch_size must be 1 or above, got {k}")
        if (self.cascade_sources or self.ensemble_sources) and self.loss_name == "standard":
            raise InputError("loss 'standard' has no adversarial images, so it takes no sources")
        if self.cascade_sources:
            if k is not None and k < 2:
                raise InputError("adversarial_batch_size must be 2 or above with cascade sources")
            if self.max_epsilon < 1:
                raise InputError(
                    f"max_epsilon must be 1 or above with cascade sources, got {self.max_epsilon}"
                )
        last = self.network.layers[-1] if getattr(self.network, "layers", None) else self.network
        if getattr(last, "activation", None) is keras.activations.softmax:
            raise InputError(
                f"the network's last layer {last.name!r} is a softmax; networks give logits, "
                "remove the activation"
            )

    @property
    def pairs(self) -> bool:
        """Whether the clean partners of the adversarial images stay in the batch."""
        return self.loss_name in ("bidirectional", "pivot")

    def compile(self, optimizer="sgd", **kwargs):
        """Configure as Keras does; loss and metrics are the trainer's own.

        Raises:
            InputError: a loss or metrics are given, which would otherwise be ignored.
        """
        for name in ("loss", "metrics", "weighted_metrics"):
            if kwargs.get(name):
                raise InputError(f"compile takes no {name}: AdversarialTrainer has its own")
        if self.cascade_sources and kwargs.get("jit_compile", "auto") == "auto":
            # XLA needs shapes that are known in advance; crafting leaves out what is done.
            kwargs["jit_compile"] = False
        super().compile(optimizer=optimizer, **kwargs)
        inner = getattr(self.optimizer, "inner_optimizer", self.optimizer)
        # Keras has no public way to read a schedule back.
        schedule = getattr(inner, "_learning_rate", None)
        if isinstance(schedule, keras.optimizers.schedules.LearningRateSchedule):
            inner.learning_rate = ClockSchedule(schedule, self.steps)
        # Variables made within the first step would have it traced twice.
        if self.network.built and not self.optimizer.built:
            self.optimizer.build(self.network.trainable_variables)

    def load_own_variables(self, store):
        """Load the clock; files of version 0.1.0 have none and leave it as it is."""
        if store.keys():
            super().load_own_variables(store)

    def compile_from_config(self, config):
        self.compile(**keras.saving.deserialize_keras_object(config))

    def call(self, images, training=False):
        """Return {"logits", "embedding"} of the network."""
        outputs = self.network(images, training=training)
        if not isinstance(outputs, dict):
            outputs = {"logits": outputs, "embedding": outputs}
        return {name: tf.cast(outputs[name], tf.float32) for name in ("logits", "embedding")}

    def make_adversarial(
        self,
        images: tf.Tensor,
        labels: tf.Tensor,
        step: tf.Tensor,
        crafted: tf.Tensor | None = None,
    ) -> tf.Tensor:
        """Return one adversarial image for each image: one-step images first, then cascade images.

        The passes run in inference mode, so batch-norm statistics stay untouched, and the result
        is a function of the weights and of (seed, step) alone.

        Args:
            images, labels: (k, H, W, C) and (k,).
            step: the number of batches done.
            crafted: the cascade images, of the last images, where they were crafted before.
        """
        k = tf.shape(images)[0]
        if crafted is None and not self.cascade_sources:
            return self._one_step(images, labels, step)
        own = k - (k // 2 if crafted is None else tf.shape(crafted)[0])
        if crafted is None:
            source, epsilon = cascade.draw(
                self.seed,
                step,
                k - own,
                len(self.cascade_sources),
                self.max_epsilon,
                self.epsilon_sampling,
            )
            crafted = cascade.craft(
                self.cascade_sources, images[own:], labels[own:], source, epsilon
            )
        return tf.concat([self._one_step(images[:own], labels[:own], step), crafted], axis=0)

    def _one_step(self, images: tf.Tensor, labels: tf.Tensor, step: tf.Tensor) -> tf.Tensor:
        keys = draws.step_keys(self.seed, step)
        epsilon = draws.sample_epsilon(
            self.epsilon_sampling, tf.shape(images)[0], self.max_epsilon, keys.epsilon
        )
        if self.per_pixel_epsilon:
            epsilon = draws.jitter_per_pixel(
                epsilon, tf.shape(images), self.max_epsilon, keys.jitter
            )

        def attack_with(logits_fn: attacks.LogitsFn) -> Callable[[], tf.Tensor]:
            return lambda: self._attack(
                images, labels, epsilon, keys.signs, logits_fn, sparsity=self.sparsity
            )

        if not self.ensemble_sources:
            return attack_with(self.inference_logits)()
        attacker = draws.attacker(self.seed, step, len(self.ensemble_sources))
        attackers = (self.inference_logits, *self.ensemble_sources)
        return tf.switch_case(attacker, [attack_with(logits_fn) for logits_fn in attackers])

    def _attack(self, images, labels, epsilon, seed, logits_fn, **options):
        return attacks.at_epsilon(
            self.attack, logits_fn, images, labels, epsilon, seed=seed, **options
        )

    def inference_logits(self, images: tf.Tensor) -> tf.Tensor:
        return self(images, training=False)["logits"]

    def distance(self, adversarial: tf.Tensor, clean: tf.Tensor) -> tf.Tensor:
        """Return the distance of the embeddings (k, d) of adversarial images and their partners."""
        if self.loss_name == "pivot":
            clean = tf.stop_gradient(clean)
        adversarial, clean = losses.normalize_pair(adversarial, clean, self.embedding_normalization)
        if self.loss_name == "pivot":
            if self.pivot_guard == "fixed_scale":
                adversarial = losses.fix_scale(adversarial)
            return losses.pivot_distance(adversarial, clean, self.distance_norm)
        return losses.bidirectional_distance(adversarial, clean, self.distance_norm)

    def train_step(self, data):
        batch, labels = self._unpack(data)
        images, step = batch.images, batch.step
        self.steps.assign(step)
        n = tf.shape(images)[0]
        k = self._attacked(n)
        adversarial = images[:0]
        if self.loss_name != "standard":
            adversarial = self.make_adversarial(images[:k], labels[:k], step, batch.cascade)
        first_clean = 0 if self.pairs else k
        mixed_images = tf.concat([adversarial, images[first_clean:]], axis=0)
        mixed_labels = tf.concat([labels[:k], labels[first_clean:]], axis=0)

        with tf.GradientTape() as tape:
            outputs = self(mixed_images, training=True)
            per_image = losses.cross_entropy(outputs["logits"], mixed_labels)
            classification = losses.mixed_cross_entropy(
                per_image[k:],
                per_image[:k],
                self.adversarial_weight,
                paired=k if self.pairs else 0,
                paired_weight=self.paired_weight,
            )
            distance = 0.0
            if self.pairs:
                embedding = outputs["embedding"]
                distance = self.distance_weight * self.distance(embedding[:k], embedding[k : 2 * k])
            decay = self._decay()
            loss = classification + distance + decay + sum(self.network.losses)
            scaled_loss = self.optimizer.scale_loss(loss)
        loss_scale = self.optimizer.scale_loss(1.0)  # applying the gradient may change it
        variables = self.network.trainable_variables
        gradients = tape.gradient(scaled_loss, variables)
        self.optimizer.apply(gradients, variables)
        self.steps.assign(step + 1)
        self._track_gradient(gradients, loss_scale)
        if self.pairs:
            self._track_distance(embedding[:k], embedding[k : 2 * k])
        self._track(loss, distance, decay, per_image, outputs["logits"], mixed_labels, k)
        return self._results(*([] if self.pairs else ["embedding_distance"]))

    def test_step(self, data):
        """Measure clean images, and the training attack at max_epsilon on each of them."""
        batch, labels = self._unpack(data)
        images = batch.images
        adversarial = self._attack(
            images, labels, self.max_epsilon, [self.seed, 0], self.inference_logits
        )
        k = tf.shape(images)[0]
        outputs = self(tf.concat([adversarial, images], axis=0), training=False)
        logits, embedding = outputs["logits"], outputs["embedding"]
        labels = tf.concat([labels, labels], axis=0)
        per_image = losses.cross_entropy(logits, labels)
        decay = self._decay()
        loss = tf.reduce_mean(per_image[k:]) + decay + sum(self.network.losses)
        self._track_distance(embedding[:k], embedding[k:])
        self._track(loss, 0.0, decay, per_image, logits, labels, k)
        return self._results("gradient_norm")

    def _unpack(self, data) -> tuple[Batch, tf.Tensor]:
        """Return the batch, with the clock's step where it has none, and integer labels (batch,).

        Labels may have any usual form.
        """
        images, labels, weights = keras.utils.unpack_x_y_sample_weight(data)
        if labels is None or weights is not None:
            raise ValueError("AdversarialTrainer needs data as (images, labels), without weights")
        if not isinstance(images, Batch):
            images = Batch(images, tf.identity(self.steps.value), None)
        images, step, crafted = images
        if crafted is not None and crafted.shape[0] == 0:
            crafted = None
        images, labels = tf.convert_to_tensor(images), tf.convert_to_tensor(labels)
        if images.dtype.is_integer:
            raise ValueError("images must be floats in [0, 1]; divide whole pixel values by 255")
        if labels.shape.rank == 2:
            one_hot = labels.shape[-1] > 1
            labels = tf.argmax(labels, axis=-1) if one_hot else tf.squeeze(labels, axis=-1)
        return Batch(tf.cast(images, tf.float32), step, crafted), tf.cast(labels, tf.int32)

    def _attacked(self, n):
        if self.loss_name == "standard":
            return 0
        if self.adversarial_batch_size is not None:
            return tf.minimum(self.adversarial_batch_size, n)
        return n if self.pairs else n // 2

    def _decay(self):
        kernels = [v for v in self.network.trainable_variables if v.name.endswith("kernel")]
        return self.weight_decay * sum(tf.nn.l2_loss(kernel) for kernel in kernels)

    def _track(self, loss, distance, decay, per_image, logits, labels, k):
        correct = tf.cast(
            tf.argmax(logits, axis=-1, output_type=labels.dtype) == labels, tf.float32
        )
        self.trackers["loss"].update_state(loss)
        self.trackers["distance_loss"].update_state(distance)
        self.trackers["decay_loss"].update_state(decay)
        self.trackers["clean_loss"].update_state(per_image[k:])
        self.trackers["clean_accuracy"].update_state(correct[k:])
        self.trackers["adversarial_loss"].update_state(per_image[:k])
        self.trackers["adversarial_accuracy"].update_state(correct[:k])
        self.trackers["max_logit"].update_state(tf.reduce_max(tf.abs(logits)))

    def _track_gradient(self, gradients, loss_scale):
        norm = tf.linalg.global_norm(gradients) / loss_scale
        # In half precision a step whose gradient overflows is left out; so it is of the mean.
        finite = tf.math.is_finite(norm)
        self.trackers["gradient_norm"].update_state(
            tf.where(finite, norm, 0.0), sample_weight=tf.cast(finite, norm.dtype)
        )

    def _track_distance(self, adversarial, clean):
        self.trackers["embedding_distance"].update_state(tf.norm(adversarial - clean, axis=-1))

    def _results(self, *absent):
        """Return the metrics but for those that this kind of step does not measure."""
        return {name: self.trackers[name].result() for name in METRICS if name not in absent}


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
        self.schedule = schedule.schedule if isinstance(schedule, ClockSchedule) else schedule
        self.steps = steps

    def __call__(self, step):
        return self.schedule(step if self.steps is None else self.steps)

    def get_config(self):
        return {"schedule": keras.saving.serialize_keras_object(self.schedule)}

    @classmethod
    def from_config(cls, config):
        return cls(keras.saving.deserialize_keras_object(config["schedule"]))


def _inference_logits(network: Callable) -> attacks.LogitsFn:
    """Return images -> logits of a network in inference mode.

    A function, where Keras would make a model that is an attribute a part of the trainer.
    """
    options = {"training": False} if isinstance(network, keras.Model) else {}

    def logits_fn(images: tf.Tensor) -> tf.Tensor:
        outputs = network(images, **options)
        return tf.cast(outputs["logits"] if isinstance(outputs, dict) else outputs, tf.float32)

    return logits_fn
