"""One sitting of a training: from the newest checkpoint to the end, or to a signal."""

from __future__ import annotations

import contextlib
import dataclasses
import signal
from collections.abc import Callable, Mapping
from typing import Any

import msgspec
import numpy as np
import tensorflow as tf

from cascade_keras import averages, data, machine
from cascade_keras.attacks.specs import ATTACKS, Attack
from cascade_keras.callbacks import DivergenceError, StopOnDivergence
from cascade_keras.data.batching import Partners
from cascade_keras.errors import InputError, TrainingDiverged
from cascade_keras.evaluation.white_box import Result, WhiteBox
from cascade_keras.keras_private import precisions
from cascade_keras.progress import progress_bar
from cascade_keras.recorded import LookRecord, ValidationRecord
from cascade_keras.runs import build, callbacks
from cascade_keras.runs.dashboard import Dashboard, expected_steps
from cascade_keras.runs.events import open_writer, writing
from cascade_keras.runs.looks import HeldOut, Policy, Validation, looks_before
from cascade_keras.runs.run import Run
from cascade_keras.runs.settings import TrainingSettings, clean_images
from cascade_keras.strategies import Watch, Workers
from cascade_keras.training import AdversarialTrainer


class Session:
    """Restores a trainer, fits it, evaluates it, and shows all of it in TensorBoard.

    A context manager, which closes the event files.

    Args:
        settings: resolved.
        run: the directory, held by this process.
        trainer: as at the start of the run.
        dataset: in memory.
        partners: of cascade images that lie in banks.
        say: told in one line each what a person might want to know.
        random_layers: whether the network may draw random numbers, as Dropout does; ours do not.
        workers: that train together; the chief alone restores, writes, reports and evaluates.
    """

    def __init__(
        self,
        settings: TrainingSettings,
        run: Run,
        trainer: AdversarialTrainer,
        dataset: data.Dataset,
        partners: Partners | None = None,
        say: Callable[[str], None] = print,
        *,
        random_layers: bool = False,
        workers: Workers | None = None,
    ):
        self.workers = workers or Workers(trainer.distribute_strategy)
        self.settings = settings
        self.run = run
        self.trainer = trainer
        self.dataset = dataset
        self.partners = partners
        self.random_layers = random_layers
        self.say = say
        self.held_out = build.held_out(settings, dataset)
        self.first_step = run.restore(trainer) if self.workers.is_chief else 0
        self._share()
        if self.first_step:
            say(f"{run.path}: going on from step {self.first_step} of {settings.steps}")
        with contextlib.ExitStack() as stack:
            stack.enter_context(_enough_memory())
            self.writer = self._open_writer()
            stack.callback(self._close_writer)
            self.dashboard = self._open_dashboard()
            if self.dashboard:
                stack.enter_context(contextlib.closing(self.dashboard))
                self.dashboard.open(settings.name, run.read_config().flags)
            self.validation = self._validation()
            self._opened = stack.pop_all()

    def __enter__(self) -> Session:
        return self

    def __exit__(self, *error) -> bool:
        return self._opened.__exit__(*error)

    def _share(self) -> None:
        """Go on where the chief does, with its weights."""
        self._share_weights()
        self.first_step = self.workers.from_chief(self.first_step)

    def _share_weights(self) -> None:
        trainer = self.trainer
        self.workers.share_variables(
            [*trainer.network.weights, *trainer.optimizer.variables, trainer.steps]
        )

    @property
    def stepped(self) -> bool:
        """Whether a step was done in this sitting."""
        return self.trainer.steps_done > self.first_step

    def _open_writer(self) -> tf.summary.SummaryWriter:
        if self.settings.tensorboard == "none" or not self.workers.is_chief:
            return tf.summary.create_noop_writer()
        return open_writer(self.run.tensorboard, self.first_step)

    def _close_writer(self) -> None:
        with writing(self.run.tensorboard):
            self.writer.close()

    def _open_dashboard(self) -> Dashboard | None:
        """Return what TensorBoard shows beside scalars, None where that is not wanted."""
        settings = self.settings
        if settings.tensorboard != "all" or not self.workers.is_chief:
            return None
        images, labels = (part[: settings.tensorboard_images] for part in self.dataset.test)
        return Dashboard(
            self.writer,
            self.run.tensorboard,
            self.trainer,
            data.as_network_input(images, settings.crop),
            labels,
            self._looked_at,
            seed=settings.seed,
            first_step=self.first_step,
        )

    @property
    def _looked_at(self) -> list[Attack]:
        epsilons = tuple(sorted(set(self.settings.tensorboard_epsilon)))
        return [Attack(name, epsilons) for name in dict.fromkeys(self.settings.tensorboard_attacks)]

    @property
    def _expected_steps(self) -> float:
        """How many training steps take as long as a look at the test images, roughly."""
        settings = self.settings
        return expected_steps(settings.tensorboard_images, self._looked_at, settings.batch_size)

    def fit(self) -> signal.Signals | None:
        """Train what is left of the schedule; return the signal that ended it before that, if any.

        Raises:
            TrainingDiverged: the loss or a weight is no longer a finite number.
            InputError: a bank was damaged.
        """
        settings, last_step = self.settings, self.settings.steps
        validation = self.validation
        if self.first_step >= last_step or (validation and validation.ended):
            return None
        self.say(self._runs_on)
        kept = averages.left_alone(self.trainer.network) if settings.use_ema else ()
        if kept:
            self.say(
                f"note: {', '.join(kept)} keeps statistics of the last weights beside the average "
                "of the weights"
            )
        checkpoints = callbacks.Checkpoints(
            self.run,
            settings.checkpoint_minutes,
            settings.checkpoint_steps,
            last_step,
            writes=self.workers.is_chief,
        )
        watch = Watch(settings.worker_timeout)
        several = self.workers.count > 1
        report = callbacks.Report(
            self.writer,
            self.first_step,
            last_step,
            settings.batch_size,
            settings.log_steps,
            self.run.tensorboard,
        )
        batches = data.shared_batches(
            self.trainer.distribute_strategy, **self._batches(self.first_step, last_step)
        )
        # The report before the checkpoint, so that a run killed in between lacks no point.
        called = [
            StopOnDivergence(),
            *self._random_layers(),
            *([report] if self.workers.is_chief else ()),
            *([validation] if validation else ()),
            *([callbacks.Together(self.workers, checkpoints, watch)] if several else ()),
            checkpoints,
            *(self._extras() if self.workers.is_chief else ()),
        ]
        try:
            with watch if several else contextlib.nullcontext():
                self.trainer.fit(batches, callbacks=called, shuffle=False, verbose=0)
        except DivergenceError as error:
            raise TrainingDiverged(f"{error}; {self._last_good}", error.step) from error
        except tf.errors.OpError as error:
            # TensorFlow passes on the text of an error in a bank only, buried in its own.
            if self.partners is None or self.partners.error is None:
                raise
            raise InputError(str(self.partners.error), "cascade_bank") from error
        finally:
            checkpoints.restore_handlers()
            report.close()
        ended = checkpoints.stop_signal or (validation and validation.ended)
        if self.trainer.steps_done < last_step and not ended:
            # Keras takes some errors of TensorFlow for the end of the data.
            step = self.trainer.steps_done
            raise InputError(f"there were no data after step {step} of {last_step}")
        return checkpoints.stop_signal

    def _batches(self, start: int, stop: int) -> dict[str, Any]:
        """Return what ``data.batches`` is told of the run's batches of some steps."""
        settings = self.settings
        images, labels = self.dataset.train
        return {
            "images": images,
            "labels": labels,
            "batch_size": clean_images(settings),
            "seed": settings.seed,
            "start": start,
            "stop": stop,
            "crop": settings.crop,
            "augment": settings.augment,
            "partners": self.partners,
            "held_out": self.held_out,
        }

    def _next_batches(self) -> tf.data.Dataset:
        """Return the batches by which statistics of averaged weights are estimated.

        They are those of the steps that would come next, whole also where devices share steps.
        """
        step = self.trainer.steps_done
        return data.batches(**self._batches(step, step + averages.BATCHES))

    def _averaged(self) -> contextlib.AbstractContextManager[None]:
        """Within: the network is its weights' average, where that is what the run ends with."""
        if not self.settings.use_ema:
            return contextlib.nullcontext()
        return averages.averaged(self.trainer, self._next_batches())

    def _validation(self) -> Validation | None:
        """Return what looks at held-out images in the course of the training, where there are."""
        settings, workers, trainer = self.settings, self.workers, self.trainer
        if not len(self.held_out):
            return None
        record = ValidationRecord(
            images=len(self.held_out),
            attack=trainer.attack.name,
            max_epsilon=settings.max_epsilon,
            epsilon=settings.validation_epsilon,
            rows=[],
        )
        every = settings.validation_steps
        counts = np.bincount(self.dataset.train[1][self.held_out])
        policy = Policy(
            settings.keep_best,
            settings.on_collapse,
            images=len(self.held_out),
            chance=float(counts.max() / counts.sum()),
            attacks=trainer.spec.attacks,
        )
        if workers.is_chief:
            record = looks_before(self.run, self.first_step, every, record)
        found = workers.from_chief(record.as_json())
        images, labels = self.dataset.train
        held_out = HeldOut(
            trainer,
            data.NetworkImages(images, settings.crop),
            labels,
            self.held_out,
            epsilon=settings.validation_epsilon,
            seed=settings.seed,
        )

        def measure(step: int) -> LookRecord:
            with self._averaged():
                return held_out(step)

        return Validation(
            measure,
            msgspec.convert(found, ValidationRecord),
            policy,
            every,
            settings.steps,
            run=self.run,
            writer=self.writer,
            say=self.say,
            workers=workers,
            share=self._share_weights,
        )

    @property
    def _runs_on(self) -> str:
        """What a person who wonders how long it takes wants to know."""
        precision = " and ".join(precisions(self.trainer.network))
        if precision == "mixed_bfloat16" and machine.lacks_bfloat16():
            precision += ", slower than float32 on this processor"
        xla = "with XLA" if self.trainer.jit_compile else "without XLA"
        with self.trainer.distribute_strategy.scope():
            devices = machine.devices()
        return f"training on {devices}: {machine.threads()}, {precision}, {xla}"

    @property
    def _last_good(self) -> str:
        if self.run.has_checkpoints:
            return f"the last good checkpoint is kept in {self.run.path}"
        return "there is no checkpoint yet, so the name is free for other flags"

    def _random_layers(self) -> list:
        if not self.random_layers:
            return []
        return [callbacks.RandomLayers(self.trainer.network, self.settings.seed)]

    def _extras(self) -> list:
        settings, extras = self.settings, []
        dashboard = self.dashboard
        if dashboard:

            def look(step: int) -> None:
                with self._averaged():
                    dashboard.look(step)

            extras.append(
                callbacks.Looks(
                    look,
                    settings.steps,
                    every=settings.tensorboard_steps,
                    window=settings.log_steps,
                    expected_steps=self._expected_steps,
                )
            )
        if settings.profile_steps:
            # Not the first steps, which trace the graph, unless there are no others.
            left = settings.steps - self.first_step - settings.profile_steps
            skipped = min(5, max(0, left))
            extras.append(callbacks.Profile(self.run.tensorboard, settings.profile_steps, skipped))
        return extras

    def choose(self) -> Mapping[str, Any]:
        """Take the network with which the training finishes, and return what is said of it.

        That is the last one, unless the looks at held-out images say another.

        Returns:
            Fields of metrics.json: ``stopped_at``, ``chosen`` and ``collapses``.

        Raises:
            InputError: the file of that network is damaged.
        """
        validation = self.validation
        if validation is None:
            return {}
        rows, policy = validation.record.rows, validation.policy
        chosen = policy.chosen(rows)
        if chosen is not None and (chosen.step, None) != (
            self.trainer.steps_done,
            rows[-1].restored,
        ):
            self.run.load_looked_at(self.trainer, chosen.step)
        self.run.keep_looked_at(policy.kept(rows))
        return {
            "stopped_at": validation.ended_at,
            "chosen": chosen,
            "collapses": policy.collapses(rows),
        }

    def evaluate(self) -> list[dict]:
        """Return the finished network's accuracies as metrics.json keeps them."""
        if self.settings.use_ema:
            # Behind what Keras does at the end of fit; a run resumed after its last step has none.
            averages.settle(self.trainer, self._next_batches())
        results = [_record(result) for result in self._accuracies()]
        if self.dashboard:
            steps = self.settings.steps
            self.dashboard.look(steps, craft=self._is_long)
            self.dashboard.finish(steps, results)
        return results

    @property
    def _is_long(self) -> bool:
        """Whether the schedule is long enough for attacks that are made for TensorBoard only."""
        asked = self.settings.tensorboard_steps > 0
        return asked or self._expected_steps <= callbacks.Looks.SHARE * self.settings.steps

    def _accuracies(self) -> list[Result]:
        """Attack the finished network; the dashboard, if any, is shown the images."""
        settings = self.settings
        stored, labels = self.dataset.test
        images = data.NetworkImages(stored, settings.crop)
        epsilons = tuple(dict.fromkeys(settings.eval_epsilon))
        asked = [Attack(name, epsilons) for name in dict.fromkeys(settings.eval_attacks)]
        quick = [Attack.clean(), *(attack for attack in asked if ATTACKS[attack.name].trains)]
        long = [attack for attack in asked if not ATTACKS[attack.name].trains]
        found = {}
        for attacks, count in ((quick, len(images)), (long, settings.eval_examples)):
            if attacks:
                for result in self._attack(attacks, images[:count], labels[:count]):
                    found.setdefault(result.attack, []).append(result)
        return [result for attack in [Attack.clean(), *asked] for result in found[attack.name]]

    def _attack(self, attacks: list[Attack], images, labels) -> list[Result]:
        white_box = WhiteBox(
            self.trainer.inference_logits,
            images.shape[1:],
            attacks,
            num_classes=self.dataset.preset.num_classes,
            seed=self.settings.seed,
        )
        shown = {"show": self.dashboard.keep} if self.dashboard else {}
        with progress_bar() as bar:
            task = bar.add_task("evaluating, gradients", total=white_box.work(len(images)))
            return white_box(
                images, labels, progress=lambda done: bar.update(task, completed=done), **shown
            )


def _record(result: Result) -> dict:
    record = dataclasses.asdict(result)
    if not record["options"]:
        del record["options"]
    return record


@contextlib.contextmanager
def _enough_memory():
    """Say in one line that there is no memory for a step."""
    try:
        yield
    except tf.errors.ResourceExhaustedError as error:
        raise InputError("the device has no memory for it; lower it", "batch_size") from error
