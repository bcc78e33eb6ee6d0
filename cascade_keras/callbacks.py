"""Keras callbacks for any ``fit`` of an ``AdversarialTrainer``: robust validation, divergence.

Those of a run, with its checkpoints and reports, are in ``runs/callbacks.py``.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Sequence

import keras
import tensorflow as tf

from cascade_keras import attacks
from cascade_keras.attacks import Chosen
from cascade_keras.attacks.specs import Attack, image_attacks, short_steps, why_not_measured
from cascade_keras.border import Adapted, adapt, guard_images
from cascade_keras.data.given import in_one_line
from cascade_keras.errors import InputError, shown
from cascade_keras.keras_private import as_dataset
from cascade_keras.labels import guard_labels


class DivergenceError(RuntimeError):
    """The loss, or a weight, is no longer a finite number.

    Attributes:
        step: the one after which it was found not to be.
    """

    def __init__(self, message: str, step: int):
        super().__init__(message)
        self.step = step


class StopOnDivergence(keras.callbacks.Callback):
    """Raises ``DivergenceError`` in the step whose loss is not finite.

    Has to come before any callback that resets metrics or writes checkpoints.
    """

    def on_train_batch_end(self, batch, logs=None):
        if not math.isfinite(logs["loss"]):
            step = self.model.steps_done
            raise DivergenceError(
                f"the loss is {logs['loss']} at step {step}; try a smaller learning_rate, a "
                "pretrained init_from, or, with the pivot loss, the pivot_guard fixed_scale",
                step,
            )


class RobustValidation(keras.callbacks.Callback):
    """Measures accuracy under an attack at the end of epochs, as ``val_pgd_accuracy``.

    What ``fit`` reports itself is the accuracy under the training attack, by which a network that
    hides its gradients looks robust. Callbacks that come after it, such as ``EarlyStopping`` and
    ``ModelCheckpoint``, may monitor the number, and know that more is better; it is in the history
    and in TensorBoard like others. Epochs without a measurement repeat the last number, which is no
    improvement: a ``patience`` counts epochs, so give it in multiples of ``every``.

    The cost is that of the attack: pgd takes 200 gradients of each image where it is not told
    otherwise, so give ``attacks.PGD(steps=10, restarts=1)``, or ``num_images``, for large data.

    Args:
        attack: a name, or ``attacks.PGD(steps=10)``.
        epsilon: in 0..255 units.
        data: (images, labels), or a dataset of such, in the network's range; the validation data of
            ``fit`` where None.
        every: epochs from one measurement to the next; the first and the last one of ``fit`` are
            measured too.
        num_images: at most so many, the first ones; all where None.
        batch_size: of arrays.
        seed: of the attack's random starts.
        name: in the logs, after ``val_``; "pgd_accuracy" for pgd.
        value_range: of the images, where the model is not an ``AdversarialTrainer``; (0, 1) where
            None.

    Raises:
        InputError: another attack, numbers outside their range, or no data.
    """

    def __init__(
        self,
        attack: str | Chosen = "pgd",
        epsilon: float = 8,
        data=None,
        every: int = 1,
        *,
        num_images: int | None = None,
        batch_size: int = 250,
        seed: int = 0,
        name: str | None = None,
        value_range: Sequence[float] | None = None,
    ):
        super().__init__()
        self.attack = Chosen.of(attack)
        if self.attack.name not in image_attacks():
            raise InputError(
                why_not_measured(self.attack.name)
                or f"{self.attack.name} gives no images in a graph; choose one of "
                f"{', '.join(image_attacks())}",
                "attack",
            )
        for setting, value in (("every", every), ("num_images", num_images)):
            if value is not None and (value != int(value) or value < 1):
                raise InputError(f"must be a whole number above 0, got {shown(value)}", setting)
        if isinstance(epsilon, bool) or not 0 <= epsilon <= 255:
            raise InputError(f"must be in 0..255, got {shown(epsilon)}", "epsilon")
        self.epsilon, self.data, self.every = float(epsilon), data, int(every)
        self.num_images, self.batch_size, self.seed = num_images, batch_size, seed
        self.name = name or f"{self.attack.name}_accuracy"
        self.value_range = value_range
        for note in short_steps(Attack.at(self.attack, [epsilon]).options, [epsilon]):
            warnings.warn(note, stacklevel=2)
        self._border: Adapted | None = None
        self._count: Callable | None = None
        self._last: float | None = None

    def set_model(self, model):
        super().set_model(model)
        self._border = adapt(model, value_range=self.value_range)
        self._count = tf.function(self._correct, reduce_retracing=True)
        if hasattr(model, "declare"):
            model.declare(self.name, "up")

    def on_train_begin(self, logs=None):
        self._last = None
        if self._validation() is None:
            raise InputError(
                "RobustValidation has no data; give it data=(images, labels), or fit "
                "validation_data",
                "data",
            )

    def on_epoch_end(self, epoch, logs=None):
        last = epoch + 1 == self.params.get("epochs") or self.model.stop_training
        if self._last is None or (epoch + 1) % self.every == 0 or last:
            self._last = self.accuracy()
        if logs is not None:
            logs[f"val_{self.name}"] = self._last

    def accuracy(self) -> float:
        """Return the accuracy of the network as it is."""
        right = seen = 0
        for images, labels in self._batches():
            if self.num_images is not None:
                left = self.num_images - seen
                images, labels = images[:left], labels[:left]
            if not len(images):
                break
            with in_one_line():
                right += int(self._count(images, labels, tf.constant(seen)))
            seen += len(images)
        if not seen:
            raise InputError("RobustValidation was given no images", "data")
        return right / seen

    def _validation(self):
        return self.data if self.data is not None else getattr(self.model, "validation_data", None)

    def _batches(self):
        data = self._validation()
        x, y, _ = keras.utils.unpack_x_y_sample_weight(data)
        for batch in as_dataset(x, y, self.batch_size):
            images, labels, _ = keras.utils.unpack_x_y_sample_weight(batch)
            yield images, labels

    def _correct(self, images: tf.Tensor, labels: tf.Tensor, first: tf.Tensor) -> tf.Tensor:
        """Return how many attacked images are classified correctly."""
        border = self._border
        images = guard_images(images, border.value_range)
        border.learn(images)
        labels, checks = guard_labels(
            labels, border.num_classes, count=tf.shape(images)[0], binary=bool(border.binary)
        )
        with tf.control_dependencies(checks):
            classes = tf.identity(labels.hard)
        found = attacks.at_epsilon(
            self.attack,
            border.logits,
            images,
            classes,
            self.epsilon,
            seed=[self.seed, first],
        )
        answers = tf.argmax(border.logits(found), axis=-1, output_type=tf.int32)
        return tf.reduce_sum(tf.cast(answers == classes, tf.int32))
