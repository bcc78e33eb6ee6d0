"""Looks at training images that are held back: how a network does on what it does not learn."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence

import keras
import msgspec
import numpy as np
import tensorflow as tf

from cascade_keras import attacks, collapse
from cascade_keras.callbacks import PGD_OF_LOOKS
from cascade_keras.errors import InputError
from cascade_keras.recorded import ChosenRecord, CollapseRecord, LookRecord, ValidationRecord
from cascade_keras.runs import events
from cascade_keras.runs.run import Run
from cascade_keras.strategies import Workers

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
                PGD_OF_LOOKS, logits_fn, images, labels, self.epsilon, seed=[self.seed, first]
            ),
        )

        def count(images: tf.Tensor) -> tf.Tensor:
            logits = logits_fn(images)
            finite = tf.reduce_all(tf.math.is_finite(logits), axis=-1)
            right = finite & (tf.argmax(logits, axis=-1, output_type=tf.int32) == labels)
            return tf.math.count_nonzero(right)

        return tf.stack([count(each) for each in shown])


@dataclasses.dataclass(frozen=True)
class Policy:
    """What follows from looks at held-out images; each answer is a function of the rows alone.

    Attributes:
        keep_best: "none", or by which number the finished network is chosen, "pgd" or "clean".
        on_collapse: "warn", "stop" or "restore".
        images: how many are looked at.
        chance: the accuracy on them of a network that has learned nothing, in [0, 1].
        attacks: whether the training has a training attack.
    """

    keep_best: str
    on_collapse: str
    images: int
    chance: float
    attacks: bool = True

    def watched(self, rows: Sequence[LookRecord]) -> collapse.Watched:
        """Return what ``collapse.watch`` makes of rows; nothing without a training attack."""
        if not self.attacks:
            return collapse.Watched((), None, False, 0)
        return collapse.watch(rows, self.images, self.chance)

    def ends(self, rows: Sequence[LookRecord]) -> bool:
        """Whether the training ends with the last of these looks."""
        return self.on_collapse != "warn" and self.watched(rows).collapsed

    def restored(self, rows: Sequence[LookRecord]) -> int | None:
        """Return the step whose weights the training goes on with after the last of these looks."""
        watched = self.watched(rows)
        again = watched.restores < collapse.MOST_RESTORES
        if self.on_collapse == "restore" and watched.collapsed and again and watched.good:
            return watched.good.step
        return None

    def chosen(self, rows: Sequence[LookRecord]) -> ChosenRecord | None:
        """Return which look's network is the finished one; None for the last network."""
        by, row = self.keep_best, None
        if by != "none":
            row = collapse.best(rows, by)
        elif self.ends(rows):
            by, row = "collapse", self.watched(rows).good
        if row is None:
            return None
        correct = row.clean if by == "clean" else row.pgd
        share = 100.0 * correct / self.images
        return ChosenRecord(
            step=row.step, by=by, correct=correct, examples=self.images, accuracy=share
        )

    def collapses(self, rows: Sequence[LookRecord]) -> list[CollapseRecord]:
        """Return what metrics.json says of collapses."""
        restored = {row.step for row in rows if row.restored is not None}
        then = "stop" if self.on_collapse == "restore" else self.on_collapse
        return [
            CollapseRecord(
                step=each.seen.step,
                last_good=each.good.step,
                then="restore" if each.seen.step in restored else then,
            )
            for each in self.watched(rows).collapses
        ]

    def kept(self, rows: Sequence[LookRecord], steps: Sequence[int] = ()) -> set[int]:
        """Return the steps of the looks whose networks may still be needed.

        Args:
            rows: all there are.
            steps: from which the training may have to go on; those looks then are the last ones.
        """
        watched = self.watched(rows)
        found = {each.good.step for each in watched.collapses}
        ends = [[row for row in rows if row.step <= step] for step in steps]
        for known in filter(None, [*ends, rows]):
            if self.keep_best != "none":
                found.add(collapse.best(known, self.keep_best).step)
            good = self.watched(known).good
            if steps and good is not None:
                found.add(good.step)
        return found


class Validation(keras.callbacks.Callback):
    """Looks at held-out images at multiples of so many steps and after the last one.

    It keeps the networks that may be come back to, tells of a collapse, and ends the training or
    takes its weights back where that is asked for. It has to come before checkpoints are written:
    a run that goes on from one has all looks up to its step then, and repeats later ones.

    Args:
        measure: step -> the row of a look; asked on the chief alone.
        record: of the looks up to the first step, see ``looks_before``; rows are added.
        policy: what follows from them.
        every: steps between two looks.
        last_step: of the schedule.
        run: where the chief writes validation.json and networks.
        writer: of TensorBoard's events.
        say: told of each look.
        workers: all of them; each knows all rows.
        share: gives all workers the chief's weights and optimizer, once it has loaded them.
    """

    def __init__(
        self,
        measure: Callable[[int], LookRecord],
        record: ValidationRecord,
        policy: Policy,
        every: int,
        last_step: int,
        *,
        run: Run,
        writer: tf.summary.SummaryWriter,
        say: Callable[[str], None],
        workers: Workers,
        share: Callable[[], None],
    ):
        super().__init__()
        self.measure, self.record, self.policy = measure, record, policy
        self.every, self.last_step = every, last_step
        self.run, self.writer, self.say = run, writer, say
        self.workers, self.share = workers, share

    @property
    def ended(self) -> bool:
        """Whether the looks so far have ended the training."""
        return self.policy.ends(self.record.rows)

    @property
    def ended_at(self) -> int | None:
        """The step at which they have."""
        return self.record.rows[-1].step if self.ended else None

    def on_train_batch_end(self, batch, logs=None):
        step = self.model.steps_done
        if step % self.every == 0 or step == self.last_step:
            self.look(step)
            if self.ended:
                self.model.stop_training = True

    def look(self, step: int) -> None:
        """Measure, record and show how the network does; all workers call it at once."""
        rows, fields = self.record.rows, None
        if self.workers.is_chief:
            fields = msgspec.to_builtins(self.measure(step))
        rows.append(msgspec.convert(self.workers.from_chief(fields), LookRecord))
        restored = self.policy.restored(rows)
        if self.workers.is_chief:
            self._keep(step)
            shown = self.policy.watched(rows).collapses
            rows[-1].restored = restored
            self.run.write_looks(self.record)
            self._show(rows[-1], shown[-1] if shown and shown[-1].seen.step == step else None)
        rows[-1].restored = restored
        if restored is not None:
            self._restore(restored, step)

    def _keep(self, step: int) -> None:
        """Save the network if it may be come back to, and remove those that no longer may."""
        kept = self.policy.kept(self.record.rows, [*self.run.checkpoint_steps, step])
        if step in kept:
            self.run.save_looked_at(self.model, step)
        self.run.keep_looked_at(kept)

    def _restore(self, step: int, now: int) -> None:
        """Take the weights and the optimizer of a look back; the clock, and so the draws, go on."""
        if self.workers.is_chief:
            self.run.load_looked_at(self.model, step)
            self.model.steps.assign(now)
        self.share()

    def _show(self, row: LookRecord, seen: collapse.Collapse | None) -> None:
        images, attack = self.record.images, self.record.attack
        counts = {"clean": row.clean, "training_attack": row.attacked, "pgd": row.pgd}
        shares = {name: 100 * count / images for name, count in counts.items()}
        clean, attacked, pgd = shares.values()
        self.say(
            f"step {row.step}/{self.last_step}  {images:,} held-out images: clean {clean:.1f}%, "
            f"{attack} {attacked:.1f}%, pgd {pgd:.1f}% at epsilon {self.record.epsilon:g}"
        )
        told = None
        if seen is not None:
            then = f"its network is kept in {self.run.looked_at(seen.good.step)}"
            if row.restored is not None:
                then = f"the training goes on with the weights of step {row.restored}"
            elif self.policy.on_collapse != "warn":
                then = "the training ends"
            told = f"warning: {seen.describe(images, attack)}; {then}"
            self.say(told)
        with events.writing(self.run.tensorboard):
            with self.writer.as_default(row.step):
                for name, share in shares.items():
                    tf.summary.scalar(f"validation/{name}", share)
                if self.policy.attacks:
                    collapsed = seen is not None or self.policy.watched(self.record.rows).collapsed
                    tf.summary.scalar("validation/collapsed", float(collapsed))
                if told:
                    tf.summary.text("validation/collapse", told)
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
    expected = {step for step in range(every, first_step + 1, every) if step >= run.looks_from}
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
