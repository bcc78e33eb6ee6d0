"""Keras callbacks for any ``fit`` of an ``AdversarialTrainer``: robust validation, divergence.

Those of a run, with its checkpoints and reports, are in ``runs/callbacks.py``.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Sequence

import keras
import numpy as np
import tensorflow as tf

from cascade_keras import attacks, collapse
from cascade_keras.attacks import Chosen
from cascade_keras.attacks.specs import Attack, image_attacks, short_steps, why_not_measured
from cascade_keras.border import Adapted, adapt, guard_images
from cascade_keras.data.given import in_one_line
from cascade_keras.errors import InputError, shown
from cascade_keras.keras_private import as_dataset
from cascade_keras.labels import guard_labels
from cascade_keras.recorded import LookRecord

# By which looks at held-out images tell whether a training collapses.
PGD_OF_LOOKS = attacks.PGD(steps=10, restarts=1)


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
        self._count = tf.function(self._correct, reduce_retracing=True, autograph=False)
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
        right, seen = self._counted()
        return int(right) / seen

    def _counted(self) -> tuple[np.ndarray, int]:
        """Return what ``_correct`` counts of all images, and how many they are."""
        right, seen = np.zeros((), np.int64), 0
        for images, labels in self._batches():
            if self.num_images is not None:
                left = self.num_images - seen
                images, labels = images[:left], labels[:left]
            if not len(images):
                break
            with in_one_line():
                right = right + self._count(images, labels, tf.constant(seen)).numpy()
            seen += len(images)
        if not seen:
            raise InputError("RobustValidation was given no images", "data")
        return right, seen

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
        images, classes = self._checked(images, labels)
        return self._right(self._attacked(images, classes, first), classes)

    def _checked(self, images: tf.Tensor, labels: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        border = self._border
        images = guard_images(images, border.value_range)
        border.learn(images)
        labels, checks = guard_labels(
            labels, border.num_classes, count=tf.shape(images)[0], binary=bool(border.binary)
        )
        with tf.control_dependencies(checks):
            return images, tf.identity(labels.hard)

    def _attacked(self, images: tf.Tensor, classes: tf.Tensor, first: tf.Tensor) -> tf.Tensor:
        seed = [self.seed, first]
        logits_fn = self._border.logits
        return attacks.at_epsilon(self.attack, logits_fn, images, classes, self.epsilon, seed=seed)

    def _right(self, images: tf.Tensor, classes: tf.Tensor) -> tf.Tensor:
        answers = tf.argmax(self._border.logits(images), axis=-1, output_type=tf.int32)
        return tf.reduce_sum(tf.cast(answers == classes, tf.int32))


class CollapseWatch(RobustValidation):
    """Notices catastrophic overfitting at the end of epochs, see ``collapse.watch``.

    It measures images that are not trained on as they are, under the training attack at
    ``max_epsilon`` and under pgd (10 steps, one start), as ``val_pgd_accuracy``. Where pgd finds
    far more than before and the training attack less, it warns, and ``collapses`` has it.

    Args:
        epsilon: of pgd, in 0..255 units.
        on_collapse: "warn"; or "stop", which ends ``fit`` with the weights of the last good epoch.
        data, every, num_images, batch_size, seed: as of ``RobustValidation``.

    Attributes:
        looks: one a measurement; its ``step`` counts epochs from 1 on.
        collapses: what was noticed, see ``collapse.Collapse``.

    Raises:
        InputError: as ``RobustValidation``; or a model that is no ``AdversarialTrainer``, or has no
            training attack.
    """

    def __init__(
        self,
        epsilon: float = 8,
        data=None,
        every: int = 1,
        *,
        on_collapse: str = "warn",
        num_images: int | None = None,
        batch_size: int = 250,
        seed: int = 0,
    ):
        super().__init__(
            PGD_OF_LOOKS, epsilon, data, every,
            num_images=num_images, batch_size=batch_size, seed=seed,
        )  # fmt: skip
        if on_collapse not in ("warn", "stop"):
            raise InputError(f"must be warn or stop, got {shown(on_collapse)}", "on_collapse")
        self.on_collapse = on_collapse
        self.looks: list[LookRecord] = []
        self.collapses: tuple[collapse.Collapse, ...] = ()
        self._good: list[np.ndarray] | None = None

    def set_model(self, model):
        if not getattr(getattr(model, "spec", None), "attacks", None):
            raise InputError("CollapseWatch is of an AdversarialTrainer with a training attack")
        super().set_model(model)

    def on_train_begin(self, logs=None):
        super().on_train_begin(logs)
        self.looks, self.collapses, self._good = [], (), None

    def on_epoch_end(self, epoch, logs=None):
        before = len(self.looks)
        self._epoch = epoch + 1
        super().on_epoch_end(epoch, logs)
        if len(self.looks) > before:
            self._tell()

    def accuracy(self) -> float:
        """Look at the network as it is, and return its accuracy under pgd."""
        (clean, attacked, pgd), images = self._counted()
        self.looks.append(
            LookRecord(step=self._epoch, clean=int(clean), attacked=int(attacked), pgd=int(pgd))
        )
        self._images = images
        return int(pgd) / images

    def _tell(self) -> None:
        model, images = self.model, self._images
        watched = collapse.watch(self.looks, images, 1 / self._border.num_classes)
        new = watched.collapses[len(self.collapses) :]
        self.collapses = watched.collapses
        if watched.good is self.looks[-1]:
            self._good = model.network.get_weights() if self.on_collapse == "stop" else None
        for each in new:
            text = each.describe(images, model.attack.name).replace("steps", "epochs")
            warnings.warn(text, stacklevel=2)
            if self.on_collapse == "stop":
                model.network.set_weights(self._good)
                model.stop_training = True

    def _correct(self, images: tf.Tensor, labels: tf.Tensor, first: tf.Tensor) -> tf.Tensor:
        images, classes = self._checked(images, labels)
        shown = (
            images, self.model.attacked(images, classes, first),
            self._attacked(images, classes, first),
        )  # fmt: skip
        return tf.stack([self._right(each, classes) for each in shown])
