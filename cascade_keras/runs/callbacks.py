"""Keras callbacks of a training run: divergence, checkpoints, scalars, looks, profile.

All of them go by the trainer's clock, ``AdversarialTrainer.steps``: the number of batches done,
whatever its optimizer made of them.
"""

from __future__ import annotations

import os
import pathlib
import signal
import threading
import time
from collections.abc import Callable

import keras
import numpy as np
import rich.console
import rich.progress
import tensorflow as tf

from cascade_keras import draws
from cascade_keras.callbacks import DivergenceError
from cascade_keras.keras_private import random_states
from cascade_keras.runs import events
from cascade_keras.runs.metrics import metric, progress_text
from cascade_keras.runs.run import Run
from cascade_keras.strategies import Watch, Workers

# The rest of a training is estimated by steps that took so long, and are so many.
_ESTIMATED_STEPS, _ESTIMATED_SECONDS = 3, 5


class RandomLayers(keras.callbacks.Callback):
    """Gives layers that draw, such as Dropout, a random state that follows from (seed, step).

    Their own goes on from step to step and is in no file, so that a run that goes on would draw
    what one that was not stopped has drawn at its start.

    Args:
        network: of the trainer.
        seed: of the run.
    """

    def __init__(self, network: keras.Model, seed: int):
        super().__init__()
        self.states = random_states(network)
        self.seed = seed

    def on_train_batch_begin(self, batch, logs=None):
        drawn = draws.layer_states(self.seed, self.model.steps.value, len(self.states))
        for state, value in zip(self.states, tf.unstack(drawn), strict=True):
            state.assign(tf.cast(value, state.dtype))


class Checkpoints(keras.callbacks.Callback):
    """Writes a checkpoint every few minutes or steps, at the end, and when asked to stop.

    SIGTERM and Ctrl-C end the training after the step under way, with a checkpoint; a second one
    ends it at once. Only the main thread of a process can be asked so.

    Args:
        run: where they are written.
        minutes: at most this long between two.
        steps: at multiples of this number of steps as well; 0 for none.
        last_step: always written.
        writes: whether this process writes them; it only stops where another one does.
    """

    def __init__(self, run: Run, minutes: float, steps: int, last_step: int, writes: bool = True):
        super().__init__()
        self.writes = writes
        self.run = run
        self.minutes = minutes
        self.steps = steps
        self.last_step = last_step
        self.stop_signal: signal.Signals | None = None
        self._written = time.monotonic()
        self._previous_handlers = {}

    def on_train_begin(self, logs=None):
        if threading.current_thread() is not threading.main_thread():
            return
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
        self.run.begun = True
        step = self.model.steps_done
        due = (
            time.monotonic() - self._written > 60 * self.minutes
            or (self.steps and step % self.steps == 0)
            or step == self.last_step
            or self.stop_signal
        )
        if not due:
            return
        if self.writes:
            self._write(step)
        if self.stop_signal:
            self.model.stop_training = True

    def _write(self, step: int) -> None:
        # An overflow in the update itself shows in the loss of the next step only.
        if not all(np.isfinite(v.numpy()).all() for v in self.model.trainable_variables):
            raise DivergenceError(
                f"the weights are no longer finite after step {step}; try a smaller "
                "learning_rate or a pretrained init_from",
                step,
            )
        self.run.save_checkpoint(self.model, step)
        self._written = time.monotonic()


class Together(keras.callbacks.Callback):
    """Lets all workers stop after the same step, whichever of them is asked to.

    Args:
        workers: all of them.
        checkpoints: is asked to stop; comes after this one.
        watch: told of each step.
    """

    def __init__(self, workers: Workers, checkpoints: Checkpoints, watch: Watch):
        super().__init__()
        self.workers = workers
        self.checkpoints = checkpoints
        self.watch = watch

    def on_train_batch_end(self, batch, logs=None):
        self.watch.stepped()
        self.checkpoints.stop_signal = self.workers.agreed(self.checkpoints.stop_signal)


class Report(keras.callbacks.Callback):
    """Shows and records the metrics, averaged over every ``every`` steps.

    On a terminal a progress bar with the time left and the newest metrics; elsewhere a line each
    time, and one of the time left as soon as a few steps have been measured. TensorBoard gets each
    metric, the learning rate and the images a second. What other callbacks do between two reports'
    windows does not count as time of the steps.

    Args:
        writer: of the event files; its owner closes it.
        first_step: steps done before, by a run that is resumed.
        last_step: of the schedule.
        images_per_step: clean and adversarial.
        every: steps between two reports.
        directory: of the event files, for what is said if they cannot be written.
    """

    def __init__(
        self,
        writer: tf.summary.SummaryWriter,
        first_step: int,
        last_step: int,
        images_per_step: int,
        every: int,
        directory: str | os.PathLike = "tensorboard",
    ):
        super().__init__()
        self.writer = writer
        self.directory = pathlib.Path(directory)
        self.first_step = first_step
        self.last_step = last_step
        self.images_per_step = images_per_step
        self.every = every
        self.console = rich.console.Console(stderr=True)
        self._progress = rich.progress.Progress(
            rich.progress.TextColumn("step"),
            rich.progress.MofNCompleteColumn(),
            rich.progress.BarColumn(bar_width=20),
            rich.progress.TimeRemainingColumn(),
            rich.progress.TextColumn("{task.description}", markup=False),
            console=self.console,
            disable=not self.console.is_terminal,
        )

    def on_train_begin(self, logs=None):
        self._task = self._progress.add_task(
            "tracing the training step", total=self.last_step, completed=self.first_step
        )
        self._progress.start()
        self._since, self._steps = None, 0
        self._traced: tuple[int, float] | None = None
        self._estimated = self.console.is_terminal  # where the bar does it all the time

    def on_train_end(self, logs=None):
        self.close()

    def close(self) -> None:
        """End the display and write out the events; safe to call twice."""
        self._progress.stop()
        with events.writing(self.directory):
            self.writer.flush()

    def on_train_batch_begin(self, batch, logs=None):
        self._since = time.monotonic() if self._since is None else self._since

    def on_train_batch_end(self, batch, logs=None):
        step = self.model.steps_done
        self._steps += 1
        self._progress.update(self._task, completed=step)
        self._estimate(step)
        if step % self.every and step != self.last_step:
            return
        now = time.monotonic()
        speed = self._steps * self.images_per_step / (now - self._since)
        scalars = {
            **logs,
            "learning_rate": float(keras.ops.convert_to_numpy(self.model.optimizer.learning_rate)),
            "images_per_second": speed,
        }
        self._write(scalars, step)
        text = progress_text(scalars)
        self._progress.update(self._task, description=text)
        if not self.console.is_terminal:
            left = (self.last_step - step) * (now - self._since) / self._steps
            print(
                f"step {step}/{self.last_step}  {text}  {left / 60:.1f} min left",
                file=self.console.file,
                flush=True,
            )
        self._since, self._steps = None, 0
        self.model.reset_metrics()

    def _estimate(self, step: int) -> None:
        """Say once how long the rest will take, where that is before the first report.

        The first step does not count: it traced the graph.
        """
        now = time.monotonic()
        if self._estimated or self._traced is None:
            self._traced = self._traced or (step, now)
            return
        steps, seconds = step - self._traced[0], now - self._traced[1]
        if steps < _ESTIMATED_STEPS or seconds < _ESTIMATED_SECONDS:
            return
        self._estimated = True
        left = (self.last_step - step) * seconds / steps
        if left > 60 and step % self.every:
            print(
                f"step {step}/{self.last_step}  {seconds / steps:.3g} s a step, measured on "
                f"{steps}  {left / 60:.1f} min left",
                file=self.console.file,
                flush=True,
            )

    def _write(self, scalars: dict[str, float], step: int) -> None:
        with events.writing(self.directory):
            with self.writer.as_default(step):
                for name, value in scalars.items():
                    row = metric(name)
                    if row.measured(scalars):
                        tf.summary.scalar(row.tag, row.factor * value)
            self.writer.flush()


class Looks(keras.callbacks.Callback):
    """Takes a closer look at the network now and then, which is not part of the training.

    With ``every`` it does so at multiples of so many steps. Without, as often as takes ``SHARE`` of
    the training's time: a look is expected to take what the last one took, the first as long as
    ``expected_steps``. So the cost has a bound on any machine, and only the steps at which there
    are pictures depend on the clock. There is none after the last step, when the network is final.

    Args:
        look: what to do, given the number of steps done.
        last_step: of the schedule.
        every: steps between two looks; 0 for as often as is cheap.
        window: without ``every``, looks are at multiples of so many steps.
        expected_steps: how many training steps take as long as the first look, roughly.
    """

    SHARE = 0.015

    def __init__(
        self,
        look: Callable[[int], None],
        last_step: int,
        *,
        every: int = 0,
        window: int = 1,
        expected_steps: float = 1.0,
    ):
        super().__init__()
        self.look = look
        self.last_step = last_step
        self.every = every
        self.window = window
        self.expected_steps = expected_steps

    def on_train_begin(self, logs=None):
        self._started = self._cost = None
        self._steps = self._looked = 0
        self._looking = 0.0

    def on_train_batch_end(self, batch, logs=None):
        now = time.monotonic()
        if self._started is not None:
            self._steps += 1
        else:
            self._started = now  # the first step took longer, it traced the graph
        step = self.model.steps_done
        stopping = step == self.last_step or self.model.stop_training
        if stopping or not self._is_due(step, now):
            return
        self.look(step)
        self._cost = time.monotonic() - now
        self._looking += self._cost
        self._looked = self._steps

    def _is_due(self, step: int, now: float) -> bool:
        if self.every:
            return step % self.every == 0
        if step % self.window or not self._steps:
            return False
        step_seconds = (now - self._started - self._looking) / self._steps
        cost = self.expected_steps * step_seconds if self._cost is None else self._cost
        return cost <= self.SHARE * (self._steps - self._looked) * step_seconds


class Profile(keras.callbacks.Callback):
    """Writes a profile of a few steps, for TensorBoard's plugin of that name.

    Args:
        directory: of the event files; the profile goes into plugins/profile below it.
        steps: how many.
        skipped: steps before them, the first of which traces the graph.
    """

    def __init__(self, directory, steps: int, skipped: int):
        super().__init__()
        self.directory = directory
        self.steps = range(skipped, skipped + steps)
        self._trace = None
        self._running = False

    def on_train_batch_begin(self, batch, logs=None):
        if batch == self.steps.start:
            with events.writing(self.directory):
                tf.profiler.experimental.start(str(self.directory))
            self._running = True
        if batch in self.steps:
            self._trace = tf.profiler.experimental.Trace("train", step_num=batch, _r=1)
            self._trace.__enter__()

    def on_train_batch_end(self, batch, logs=None):
        if self._trace:
            self._trace.__exit__(None, None, None)
            self._trace = None
        if batch + 1 == self.steps.stop:
            self.on_train_end()

    def on_train_end(self, logs=None):
        if self._running:
            self._running = False
            with events.writing(self.directory):
                tf.profiler.experimental.stop()
