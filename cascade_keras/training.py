"""Adversarial training with a unified embedding (section 3.3), as one Keras model."""

from __future__ import annotations

import dataclasses
import inspect
from collections.abc import Callable, Sequence
from typing import NamedTuple

import keras
import tensorflow as tf

from cascade_keras import attacks, cascade, draws, losses
from cascade_keras.data.batching import Batch
from cascade_keras.data.given import unpack
from cascade_keras.errors import InputError
from cascade_keras.keras_private import Directions, directed_mean, schedule_of
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


class Mixed(NamedTuple):
    """The images that the network is shown in a step.

    Attributes:
        images: (m, H, W, C): k adversarial ones, then clean ones.
        k: how many are adversarial.
        paired: whether the first k clean images are the partners of the adversarial ones.
    """

    images: tf.Tensor
    k: int | tf.Tensor
    paired: bool


@keras.saving.register_keras_serializable("cascade_keras")
class AdversarialTrainer(keras.Model):
    """Trains a classifier on clean and adversarial images; ``compile`` and ``fit`` stay ordinary.

    Every batch of (images, labels) is extended by adversarial images made inside the step from the
    network as it is. What becomes of a batch of n images, of which k are attacked, is said by the
    loss's row:

        standard        n clean images, no adversarial ones
        kurakin         k are replaced: k adversarial, n - k clean (section 2.2); a batch of one
                        image, half of which is none, is clean
        bidirectional   k are joined: k adversarial, n clean, and the distance between the
                        embeddings of each pair is added to the loss, moving both
        pivot           the same, moving the adversarial embedding only

    With cascade sources (section 4.1) the last k // 2 of the k adversarial images are not the
    network's own but iter_fgsm images of networks that are already trained, see ``cascade``. They
    are crafted within the step, or come with the batch where it is a ``data.Batch``.
    With ensemble sources the one-step images of each batch come from one of the sources or from
    the network itself, drawn anew (Tramer et al., 2018).

    The loss is ``losses.mixed_cross_entropy`` + distance_weight * distance + weight decay. In
    validation every image is attacked by the training attack at max_epsilon, without dropout:

        val_loss = ( sum_i L_i + lambda sum_i L_i^adv ) / ( n + lambda n )
                   + lambda_2 sum_i L_dist(E_i^adv, E_i) + weight decay

    with the weights and the distance of the training loss, so lambda = 0 for standard, and s L_i
    and s n with a paired_weight s.

    Beside the parts of the loss and the accuracies, a step reports the largest logit, the norm of
    the gradient of all weights (before it is clipped) and, where the batch has pairs, the mean
    L2 distance of their embeddings.

    ``steps``, an int64 variable, is the clock: the number of batches done, also of those whose
    gradients an optimizer accumulates or leaves out. All draws of a step follow from (seed, steps),
    and so does a learning rate's schedule. A ``data.Batch`` brings its own step and sets the clock.

    A subclass may override ``make_adversarial``, ``distance``, ``compute_loss`` and
    ``compute_metrics``; the last two are Keras's, given a ``Mixed`` batch as ``x``.

    Args:
        network: images (batch, H, W, C) in [0, 1] -> {"logits", "embedding"}, or logits alone,
            which then are the embedding too. It must not end in a softmax.
        loss: one of the above.
        cascade_sources, ensemble_sources: Keras models, or functions from images to logits or to
            {"logits", ...} such as ``sources.load_source`` returns. They are not part of the
            trainer's variables and are not saved with it: see ``set_sources``.
        **options: the fields of ``TrainerOptions``, and Keras's of a model.
            {options}

    Raises:
        InputError: an argument outside its range, sources that the loss has no use for, or a
            network that returns probabilities.
    """

    def __init__(
        self,
        network: keras.Model,
        loss: str = "pivot",
        *,
        cascade_sources: Sequence[Callable] = (),
        ensemble_sources: Sequence[Callable] = (),
        **options,
    ):
        named = {f.name for f in dataclasses.fields(TrainerOptions)} & set(options)
        own = {name: options.pop(name) for name in named}
        super().__init__(**options)
        self.network = network
        self.options = TrainerOptions(loss=loss, **own)
        self.spec = losses.LOSSES[loss]
        self.steps = self.add_weight(
            shape=(),
            dtype="int64",
            initializer="zeros",
            trainable=False,
            aggregation="only_first_replica",
            name="steps",
        )
        self.trackers = {name: directed_mean(name, way) for name, way in METRICS.items()}
        self.set_sources(cascade_sources, ensemble_sources)
        self._check()
        self.built = True

    def train_step(self, data):
        """Take one step of section 3.3, and return the metrics."""
        batch, labels = unpack(data, self.steps.value)
        self._refuse_lost_sources()
        self.steps.assign(batch.step)
        mixed, labels = self._mix(batch, labels)
        with tf.GradientTape() as tape:
            outputs = self(mixed.images, training=True)
            loss = self.compute_loss(mixed, labels, outputs)
            scaled_loss = self.optimizer.scale_loss(loss)
        loss_scale = self.optimizer.scale_loss(1.0)  # applying the gradient may change it
        variables = self.network.trainable_variables
        gradients = tape.gradient(scaled_loss, variables)
        self.optimizer.apply(gradients, variables)
        self.steps.assign(batch.step + 1)
        norm = tf.linalg.global_norm(gradients) / loss_scale
        # In half precision a step whose gradient overflows is left out; so it is of the mean.
        finite = tf.math.is_finite(norm)
        self._track("gradient_norm", tf.where(finite, norm, 0.0), tf.cast(finite, norm.dtype))
        self._track("loss", loss, tf.shape(labels)[0])
        results = self.compute_metrics(mixed, labels, outputs)
        return {**results, "gradient_norm": self.trackers["gradient_norm"].result()}

    def _mix(self, batch: Batch, labels: tf.Tensor) -> tuple[Mixed, tf.Tensor]:
        """Return the k adversarial images of a batch, then its clean ones, and the labels."""
        k = self._attacked(batch.images)
        adversarial = batch.images[:k]
        if self.spec.attacks:
            adversarial = self.make_adversarial(adversarial, labels[:k], batch.step, batch.cascade)
        first_clean = 0 if self.spec.pairs else k
        images = tf.concat([adversarial, batch.images[first_clean:]], axis=0)
        labels = tf.concat([labels[:k], labels[first_clean:]], axis=0)
        return Mixed(images, k, self.spec.pairs), labels

    def _attacked(self, images: tf.Tensor) -> int | tf.Tensor:
        """Return k, how many images of a batch are attacked."""
        n, most = _count(images), self.options.adversarial_batch_size
        if not self.spec.attacks:
            return 0
        if most is None:
            return n if self.spec.pairs else n // 2
        return min(most, n) if isinstance(n, int) else tf.minimum(most, n)

    def make_adversarial(self, images, labels, step, crafted=None) -> tf.Tensor:
        """Return one adversarial image for each image: one-step images first, then cascade images.

        The passes run in inference mode, so batch-norm statistics stay untouched, and the result
        is a function of the weights and of (seed, step) alone. ``crafted`` are the cascade images,
        of the last images, where they were crafted before.
        """
        k = _count(images)
        if crafted is not None:
            own = k - _count(crafted)
        else:
            own = k - k // 2 if self.cascade_sources else k
            crafted = self._cascade(images[own:], labels[own:], step)

        def attack() -> tf.Tensor:
            return self._one_step(images[:own], labels[:own], step)

        # Of no images some layers have no gradient: max pooling would end the process.
        if isinstance(own, int):
            one_step = attack() if own else images[:0]
        else:
            one_step = tf.cond(own > 0, attack, lambda: images[:0])
        return tf.concat([one_step, crafted], axis=0)

    def _cascade(self, images: tf.Tensor, labels: tf.Tensor, step: tf.Tensor) -> tf.Tensor:
        """Return the iter_fgsm images of the sources (section 4.1)."""
        count, sources, options = tf.shape(images)[0], self.cascade_sources, self.options
        if not sources:
            return images
        drawn = cascade.draw(
            options.seed, step, count, len(sources), options.max_epsilon, options.epsilon_sampling
        )
        return cascade.craft(sources, images, labels, *drawn)

    def _one_step(self, images: tf.Tensor, labels: tf.Tensor, step: tf.Tensor) -> tf.Tensor:
        """Return the one-step images of the network itself, or of the step's ensemble source."""
        options, keys = self.options, draws.step_keys(self.options.seed, step)
        epsilon = draws.sample_epsilon(
            options.epsilon_sampling, tf.shape(images)[0], options.max_epsilon, keys.epsilon
        )
        if options.per_pixel_epsilon:
            shape = tf.shape(images)
            epsilon = draws.jitter_per_pixel(epsilon, shape, options.max_epsilon, keys.jitter)

        def attack_with(logits_fn: attacks.LogitsFn) -> Callable[[], tf.Tensor]:
            sparsity = {"sparsity": options.sparsity} if options.sparsity < 100 else {}
            return lambda: attacks.at_epsilon(
                options.attack, logits_fn, images, labels, epsilon, seed=keys.signs, **sparsity
            )

        if not self.ensemble_sources:
            return attack_with(self.inference_logits)()
        attacker = draws.attacker(options.seed, step, len(self.ensemble_sources))
        attackers = (self.inference_logits, *self.ensemble_sources)
        return tf.switch_case(attacker, [attack_with(logits_fn) for logits_fn in attackers])

    def compute_loss(self, x=None, y=None, y_pred=None, sample_weight=None, training=True):
        """Return the loss of a ``Mixed`` batch x, its labels y and what ``call`` made of them.

        A scalar; its parts become metrics.
        """
        k, options = x.k, self.options
        per_image = losses.cross_entropy(y_pred["logits"], y)
        classification = losses.mixed_cross_entropy(
            per_image[k:],
            per_image[:k],
            options.adversarial_weight if self.spec.attacks else 0.0,
            paired=k if self.spec.pairs else 0,
            paired_weight=options.paired_weight,
        )
        distance = 0.0
        if self.spec.distance is not None:
            embedding = y_pred["embedding"]
            distance = options.distance_weight * self.distance(embedding[:k], embedding[k : 2 * k])
        decay = self.decay()
        self._track("clean_loss", per_image[k:])
        self._track("adversarial_loss", per_image[:k])
        self._track("distance_loss", distance, tf.shape(y)[0])
        self._track("decay_loss", decay, tf.shape(y)[0])
        return classification + distance + decay + sum(self.network.losses)

    def distance(self, adversarial: tf.Tensor, clean: tf.Tensor) -> tf.Tensor:
        """Return the distance of the embeddings (k, d) of adversarial images and their partners."""
        if self.spec.pivot:
            clean = tf.stop_gradient(clean)  # before the scale is taken of it
        normalization = self.options.embedding_normalization
        adversarial, clean = losses.normalize_pair(adversarial, clean, normalization)
        if self.spec.pivot and self.options.pivot_guard == "fixed_scale":
            adversarial = losses.fix_scale(adversarial)
        return self.spec.resolve()(adversarial, clean, self.options.distance_norm)

    def decay(self) -> tf.Tensor:
        """Return the weight decay, d / 2 * sum(w^2) over convolution and dense kernels."""
        kernels = [v for v in self.network.trainable_variables if v.name.endswith("kernel")]
        return self.options.weight_decay * sum(tf.nn.l2_loss(kernel) for kernel in kernels)

    def compute_metrics(self, x, y, y_pred, sample_weight=None):
        """Return all metrics of a ``Mixed`` batch, given what ``compute_loss`` is given."""
        k, logits = x.k, y_pred["logits"]
        correct = tf.cast(tf.argmax(logits, axis=-1, output_type=y.dtype) == y, tf.float32)
        self._track("clean_accuracy", correct[k:])
        self._track("adversarial_accuracy", correct[:k])
        self._track("max_logit", tf.reduce_max(tf.abs(logits)))
        absent = {"gradient_norm"}
        if x.paired:
            adversarial, clean = y_pred["embedding"][:k], y_pred["embedding"][k : 2 * k]
            self._track("embedding_distance", tf.norm(adversarial - clean, axis=-1))
        else:
            absent.add("embedding_distance")
        return {name: self.trackers[name].result() for name in METRICS if name not in absent}

    def test_step(self, data):
        """Measure the loss and the metrics of clean images and of all of them attacked."""
        batch, labels = unpack(data, self.steps.value)
        adversarial = attacks.at_epsilon(
            self.options.attack,
            self.inference_logits,
            batch.images,
            labels,
            self.options.max_epsilon,
            seed=[self.options.seed, 0],
        )
        images = tf.concat([adversarial, batch.images], axis=0)
        mixed = Mixed(images, _count(batch.images), paired=True)
        labels = tf.concat([labels, labels], axis=0)
        outputs = self(mixed.images, training=False)
        loss = self.compute_loss(mixed, labels, outputs, training=False)
        self._track("loss", loss, tf.shape(labels)[0])
        return self.compute_metrics(mixed, labels, outputs)

    @property
    def metrics(self) -> list[keras.metrics.Metric]:
        """The trackers of ``METRICS``, and a list of them for callbacks that ask for directions."""
        trackers = list(getattr(self, "trackers", {}).values())
        return [*trackers, Directions(trackers)]

    def call(self, images, training=False):
        """Return {"logits", "embedding"} of the network."""
        outputs = self.network(images, training=training)
        if not isinstance(outputs, dict):
            outputs = {"logits": outputs, "embedding": outputs}
        return {name: tf.cast(outputs[name], tf.float32) for name in ("logits", "embedding")}

    def inference_logits(self, images: tf.Tensor) -> tf.Tensor:
        """Return the network's logits in inference mode: what attacks are given."""
        return self(images, training=False)["logits"]

    def compile(self, optimizer="sgd", **kwargs):
        """Configure as Keras does; loss and metrics are the trainer's own.

        A learning rate's schedule follows the trainer's clock from here on.

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
        schedule = schedule_of(inner)
        if schedule is not None:
            inner.learning_rate = ClockSchedule(schedule, self.steps)
        # Variables made within the first step would have it traced twice.
        if self.network.built and not self.optimizer.built:
            self.optimizer.build(self.network.trainable_variables)

    def compile_from_config(self, config):
        self.compile(**keras.saving.deserialize_keras_object(config))

    def set_sources(
        self, cascade_sources: Sequence[Callable] = (), ensemble_sources: Sequence[Callable] = ()
    ) -> None:
        """Replace the sources: also of a trainer that was loaded from a file, which keeps none.

        Raises:
            InputError: sources that the loss or the other options have no use for.
        """
        k, epsilon = self.options.adversarial_batch_size, self.options.max_epsilon
        if (cascade_sources or ensemble_sources) and not self.spec.attacks:
            raise InputError(
                f"{self.spec.name!r} has no adversarial images, so it takes no sources", "loss"
            )
        if cascade_sources and k is not None and k < 2:
            raise InputError("must be 2 or above with cascade sources", "adversarial_batch_size")
        if cascade_sources and epsilon < 1:
            raise InputError(
                f"must be 1 or above with cascade sources, got {epsilon}", "max_epsilon"
            )
        self.cascade_sources = tuple(map(_inference_logits, cascade_sources))
        self.ensemble_sources = tuple(map(_inference_logits, ensemble_sources))
        self._lost_sources = {}
        self.train_function = None  # a compiled step has the earlier ones in it
        if self.compiled and self.cascade_sources:
            self.jit_compile = False  # as in compile

    def _refuse_lost_sources(self) -> None:
        for name, count in self._lost_sources.items():
            raise InputError(
                f"the file that the trainer was loaded from has none of its {count}; give them to "
                "set_sources, or call that without any",
                name,
            )

    def export(self, filepath, format="tf_saved_model", **kwargs):
        """Export ``call``, images -> {"logits", "embedding"}, as Keras exports a model.

        A network saved for TF Serving, with preprocessing and provenance, is made of
        ``trainer.network`` by ``export_saved_model``.
        """
        if "input_signature" not in kwargs:
            shape = (None, *self.network.input_shape[1:])
            spec = keras.layers.InputSpec(shape=shape, dtype="float32", name="images")
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
        trainer = cls(**config)
        trainer._lost_sources = lost
        return trainer

    def load_own_variables(self, store):
        """Load the clock; files of version 0.1.0 have none and leave it as it is."""
        if store.keys():
            super().load_own_variables(store)

    def _track(self, name: str, value, weight=None) -> None:
        self.trackers[name].update_state(value, weight)

    def _check(self) -> None:
        last = self.network.layers[-1] if getattr(self.network, "layers", None) else self.network
        if getattr(last, "activation", None) is keras.activations.softmax:
            raise InputError(
                f"the network's last layer {last.name!r} is a softmax; networks give logits, "
                "remove the activation"
            )


def _count(images: tf.Tensor) -> int | tf.Tensor:
    """Return the number of images, as an int where it is known when the step is traced."""
    return tf.shape(images)[0] if images.shape[0] is None else images.shape[0]


def _documented(trainer: type) -> None:
    """Give the trainer's help the options, which are declared in ``TrainerOptions`` alone."""
    own = list(inspect.signature(trainer.__init__).parameters.values())[1:-1]
    fields = [field for field in dataclasses.fields(TrainerOptions) if field.name != "loss"]
    options = [
        inspect.Parameter(
            field.name, inspect.Parameter.KEYWORD_ONLY, default=field.default, annotation=field.type
        )
        for field in fields
    ]
    rest = inspect.Parameter("kwargs", inspect.Parameter.VAR_KEYWORD)
    trainer.__signature__ = inspect.Signature([*own, *options, rest])
    told = [f"{field.name}: {field.metadata['help']}." for field in fields]
    trainer.__doc__ = trainer.__doc__.replace("{options}", "\n            ".join(told))


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
