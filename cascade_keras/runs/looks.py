"""Looks at training images that are held back: how a network does on what it does not learn."""

from __future__ import annotations

from collections.abc import Callable

import keras
import numpy as np
import tensorflow as tf

from cascade_keras import attacks
from cascade_keras.errors import InputError
from cascade_keras.recorded import LookRecord, ValidationRecord
from cascade_keras.runs import events
from cascade_keras.runs.run import Run
from cascade_keras.strategies import Workers

PGD = attacks.PGD(steps=10, restarts=1)
_BATCH = 250  # images at a time, at most


class HeldOut:
    """Counts how many held-out images a trainer's network classifies correctly as it is now.

    It compiles once for all looks. Logits that are not finite count as wrong.

    Args:
        trainer: an ``AdversarialTrainer``, whose training attack is the second of the three.
        images, labels: of the training split, as networks see them (``data.NetworkImages``).
        which: the indices of those that are looked at, (N,).
        epsilon: of pgd, in 0..255 units.
        seed: of pgd's starts.
    """

    def __init__(
        self,
        trainer,
        images,
        labels: np.ndarray,
        which: np.ndarray,
        *,
        epsilon: float,
        seed: int = 0,
    ):
        self.trainer, self.images, self.labels, self.which = trainer, images, labels, which
        self.epsilon, self.seed = float(epsilon), seed
        signature = [
            tf.TensorSpec([None, *images.shape[1:]], tf.float32),
            tf.TensorSpec([None], tf.int32),
            tf.TensorSpec([], tf.int32),
        ]
        self._count = tf.function(self._right, input_signature=signature)

    def __call__(self, step: int) -> LookRecord:
        """Return the row of a look after so many steps."""
        right = np.zeros(3, np.int64)
        for first in range(0, len(self.which), _BATCH):
            part = self.which[first : first + _BATCH]
            right += self._count(self.images[part], self.labels[part], first).numpy()
        clean, attacked, pgd = map(int, right)
        return LookRecord(step=step, clean=clean, attacked=attacked, pgd=pgd)

    def _right(self, images: tf.Tensor, labels: tf.Tensor, first: tf.Tensor) -> tf.Tensor:
        logits_fn = self.trainer.inference_logits
        shown = (
            images,
            self.trainer.attacked(images, labels, first),
            attacks.at_epsilon(
                PGD, logits_fn, images, labels, self.epsilon, seed=[self.seed, first]
            ),
        )

        def count(images: tf.Tensor) -> tf.Tensor:
            logits = logits_fn(images)
            finite = tf.reduce_all(tf.math.is_finite(logits), axis=-1)
            right = finite & (tf.argmax(logits, axis=-1, output_type=tf.int32) == labels)
            return tf.math.count_nonzero(right)

        return tf.stack([count(each) for each in shown])


class Validation(keras.callbacks.Callback):
    """Looks at held-out images at multiples of so many steps and after the last one.

    It has to come before checkpoints are written: a run that goes on from one has all looks up to
    its step then, and repeats later ones.

    Args:
        measure: step -> the row of a look; asked on the chief alone.
        record: of the looks up to the first step, see ``looks_before``; rows are added.
        every: steps between two looks.
        last_step: of the schedule.
        run: where the chief writes validation.json.
        writer: of TensorBoard's events.
        say: told of each look.
        workers: all of them; each knows all rows.
    """

    def __init__(
        self,
        measure: Callable[[int], LookRecord],
        record: ValidationRecord,
        every: int,
        last_step: int,
        *,
        run: Run,
        writer: tf.summary.SummaryWriter,
        say: Callable[[str], None],
        workers: Workers,
    ):
        super().__init__()
        self.measure, self.record, self.every, self.last_step = measure, record, every, last_step
        self.run, self.writer, self.say, self.workers = run, writer, say, workers

    def on_train_batch_end(self, batch, logs=None):
        step = self.model.steps_done
        if step % self.every == 0 or step == self.last_step:
            self.look(step)

    def look(self, step: int) -> LookRecord:
        """Measure, record and show how the network does; all workers call it at once."""
        fields = None
        if self.workers.is_chief:
            row = self.measure(step)
            fields = {name: getattr(row, name) for name in row.__struct_fields__}
        row = LookRecord(**self.workers.from_chief(fields))
        self.record.rows.append(row)
        if self.workers.is_chief:
            self.run.write_looks(self.record)
            self._show(row)
        return row

    def _show(self, row: LookRecord) -> None:
        shares = {
            name: 100 * getattr(row, name) / self.record.images
            for name in ("clean", "attacked", "pgd")
        }
        clean, attacked, pgd = shares.values()
        self.say(
            f"step {row.step}/{self.last_step}  {self.record.images:,} held-out images: clean "
            f"{clean:.1f}%, {self.record.attack} {attacked:.1f}%, pgd {pgd:.1f}% at epsilon "
            f"{self.record.epsilon:g}"
        )
        with events.writing(self.run.tensorboard):
            with self.writer.as_default(row.step):
                for name, value in shares.items():
                    tag = "training_attack" if name == "attacked" else name
                    tf.summary.scalar(f"validation/{tag}", value)
            self.writer.flush()


def looks_before(
    run: Run, first_step: int, every: int, empty: ValidationRecord
) -> ValidationRecord:
    """Return the looks of a run up to the step from which it goes on; later ones are repeated.

    Args:
        run: its directory.
        first_step: 0 at its start.
        every: steps between two looks.
        empty: what is known without any.

    Raises:
        InputError: they are not those of the run, or one is missing.
    """
    found = run.read_looks() if first_step else None
    rows = [] if found is None else [row for row in found.rows if row.step <= first_step]
    expected = {*range(every, first_step + 1, every)}
    missing = sorted(expected - {row.step for row in rows})
    if missing or (found is not None and found.images != empty.images):
        what = f"the look of step {missing[0]}" if missing else f"looks at {empty.images} images"
        raise InputError(
            f"{run.looks_file} lacks {what}; restore it, or start anew under another name", "name"
        )
    return ValidationRecord(
        images=empty.images,
        attack=empty.attack,
        max_epsilon=empty.max_epsilon,
        epsilon=empty.epsilon,
        rows=rows,
    )
