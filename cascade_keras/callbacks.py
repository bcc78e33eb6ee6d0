"""Keras callbacks of a training run: divergence, checkpoints, scalars and progress."""

from __future__ import annotations

import math
import signal
import time

import keras
import numpy as np
import rich.console
import rich.progress
import tensorflow as tf

from cascade_keras.runs import Run


class DivergenceError(RuntimeError):
    """The loss is no longer a finite number."""


class StopOnDivergence(keras.callbacks.Callback):
    """Raises ``DivergenceError`` in the step whose loss is not finite.

    Has to come before any callback that resets metrics or writes checkpoints.
    """

    def on_train_batch_end(self, batch, logs=None):
        if not math.isfinite(logs["loss"]):
            raise DivergenceError(
                f"the loss is {logs['loss']} at step {int(self.model.optimizer.iterations)}; try a "
                "smaller --learning_rate, a pretrained --init_from, or, with the pivot loss, "
                "--pivot_guard=fixed_scale"
            )


class Checkpoints(keras.callbacks.Callback):
    """Writes a checkpoint every few minutes or steps, at the end, and when asked to stop.

    SIGTERM and Ctrl-C end the training after the step under way, with a checkpoint; a second one
    ends it at once.

    Args:
        run: where they are written.
        minutes: at most this long between two.
        steps: at multiples of this number of steps as well; 0 for none.
        last_step: always written.
    """

    def __init__(self, run: Run, minutes: float, steps: int, last_step: int):
        super().__init__()
        self.run = run
        self.minutes = minutes
        self.steps = steps
        self.last_step = last_step
        self.stop_signal: signal.Signals | None = None
        self._written = time.monotonic()
        self._previous_handlers = {}

    def on_train_begin(self, logs=None):
        for number in (signal.SIGTERM, signal.SIGINT):
            self._previous_handlers[number] = signal.signal(number, self._ask_to_stop)

    def on_train_end(self, logs=None):
        self.restore_handlers()

    def restore_handlers(self) -> None:
        """Give SIGTERM and Ctrl-C back their earlier meaning."""
        while self._previous_handlers:
            signal.signal(*self._previous_handlers.popitem())

    def _ask_to_stop(self, number, frame):
        self.stop_signal = signal.Signals(number)
        self.restore_handlers()

    def on_train_batch_end(self, batch, logs=None):
        step = int(self.model.optimizer.iterations)
        due = (
            time.monotonic() - self._written > 60 * self.minutes
            or (self.steps and step % self.steps == 0)
            or step == self.last_step
            or self.stop_signal
        )
        if not due:
            return
        # An overflow in the update itself shows in the loss of the next step only.
        if not all(np.isfinite(v.numpy()).all() for v in self.model.trainable_variables):
            raise DivergenceError(
                f"the weights are no longer finite after step {step}; try a smaller "
                "--learning_rate or a pretrained --init_from"
            )
        self.run.save_checkpoint(self.model, step)
        self._written = time.monotonic()
        if self.stop_signal:
            self.model.stop_training = True


# The loss parts of a progress line and what they are called there.
_SHOWN_LOSSES = (
    ("loss", "loss"),
    ("clean_loss", "clean"),
    ("adversarial_loss", "adv"),
    ("distance_loss", "dist"),
    ("decay_loss", "decay"),
)


class Report(keras.callbacks.Callback):
    """Shows and records the metrics, averaged over every ``every`` steps.

    On a terminal a progress bar with the time left and the newest metrics; elsewhere a line each
    time. TensorBoard gets each metric, the learning rate and the images a second.

    Args:
        directory: of the event files.
        first_step: steps done before, by a run that is resumed.
        last_step: of the schedule.
        images_per_step: clean and adversarial.
        every: steps between two reports.
    """

    def __init__(
        self, directory, first_step: int, last_step: int, images_per_step: int, every: int
    ):
        super().__init__()
        self.directory = directory
        self.first_step = first_step
        self.last_step = last_step
        self.images_per_step = images_per_step
        self.every = every
        self._writer = None
        self.console = rich.console.Console(stderr=True)
        self._progress = rich.progress.Progress(
            rich.progress.TextColumn("step"),
            rich.progress.MofNCompleteColumn(),
            rich.progress.BarColumn(bar_width=20),
            rich.progress.TimeRemainingColumn(),
            rich.progress.TextColumn("{task.description}"),
            console=self.console,
            disable=not self.console.is_terminal,
        )

    def on_train_begin(self, logs=None):
        self._writer = tf.summary.create_file_writer(str(self.directory))
        self._task = self._progress.add_task(
            "tracing the training step", total=self.last_step, completed=self.first_step
        )
        self._progress.start()
        self._since, self._steps = time.monotonic(), 0

    def on_train_end(self, logs=None):
        self.close()

    def close(self) -> None:
        """End the display and write out the events; safe to call twice."""
        self._progress.stop()
        if self._writer:
            self._writer.close()

    def on_train_batch_end(self, batch, logs=None):
        step = int(self.model.optimizer.iterations)
        self._steps += 1
        self._progress.update(self._task, completed=step)
        if step % self.every and step != self.last_step:
            return
        now = time.monotonic()
        speed = self._steps * self.images_per_step / (now - self._since)
        scalars = {
            **logs,
            "learning_rate": float(self.model.optimizer.learning_rate),
            "images_per_second": speed,
        }
        with self._writer.as_default(step):
            for name, value in scalars.items():
                tf.summary.scalar(name, value)
        text = self._text(scalars)
        self._progress.update(self._task, description=text)
        if not self.console.is_terminal:
            left = (self.last_step - step) * (now - self._since) / self._steps
            print(
                f"step {step}/{self.last_step}  {text}  {left / 60:.1f} min left",
                file=self.console.file,
                flush=True,
            )
        self._since, self._steps = now, 0
        self.model.reset_metrics()

    def _text(self, scalars: dict[str, float]) -> str:
        parts = " ".join(f"{short} {scalars[name]:.3g}" for name, short in _SHOWN_LOSSES)
        accuracy = f"accuracy clean {100 * scalars['clean_accuracy']:.1f}%"
        if scalars["adversarial_loss"]:
            accuracy += f" adv {100 * scalars['adversarial_accuracy']:.1f}%"
        return f"{parts}  {accuracy}  lr {scalars['learning_rate']:g}  " + (
            f"{scalars['images_per_second']:.0f} images/s"
        )
