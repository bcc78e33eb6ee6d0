"""What a plan would take here: steps, gradients and hours, by steps that are measured now."""

from __future__ import annotations

import dataclasses
import time
from typing import NamedTuple

import keras
import numpy as np

from cascade_keras import data
from cascade_keras.data.specs import look_up
from cascade_keras.evaluation.estimate import in_time
from cascade_keras.reproduction import jobs
from cascade_keras.reproduction.jobs import Job
from cascade_keras.reproduction.outcomes import DIVERGED, Outcome
from cascade_keras.reproduction.plan import Plan, training_gradients
from cascade_keras.runs import build
from cascade_keras.runs.run import Run
from cascade_keras.runs.settings import TrainingSettings, clean_images
from cascade_keras.speed import gradient_seconds

_STEPS = 5  # that are measured; the fastest counts, as a machine may be busy with others
_IMAGES = 256  # random ones: what a step takes does not depend on what they show
DONE, BEGUN, LEFT, NOT_NEEDED = "done", "begun", "to do", "not needed"


class Speed(NamedTuple):
    """How fast a network is here.

    Attributes:
        step: seconds of a training step with adversarial images.
        gradients: that such a step takes, see ``training_gradients``.
        gradient: seconds of an image's gradient.
    """

    step: float
    gradients: float
    gradient: float

    def seconds(self, gradients: float) -> float:
        """Return the seconds of a step of so many gradients."""
        return max(self.step + (gradients - self.gradients) * self.gradient, 0.0)


class Estimated(NamedTuple):
    """What one job would take.

    Attributes:
        job: which.
        state: ``DONE``, ``BEGUN``, ``LEFT``, or ``NOT_NEEDED``, as all that needs it is done; of a
            training that diverged, that it did.
        seconds: that are left, of a network from its last checkpoint on, else from the beginning.
    """

    job: Job
    state: str
    seconds: float


@dataclasses.dataclass(frozen=True)
class Estimate:
    """What a plan would take.

    Attributes:
        jobs: all of the plan, in order, but for pages.
        speeds: of networks, by dataset and model.
    """

    jobs: tuple[Estimated, ...]
    speeds: dict[tuple[str, str], Speed]

    @property
    def seconds(self) -> float:
        """How long all of it takes that is left, one job after the other."""
        return sum(each.seconds for each in self.jobs)

    def grid(self) -> tuple[list[str], list[list[str]]]:
        """Return headings and rows of a table."""
        rows = [
            [
                each.job.name,
                each.job.kind,
                f"{each.job.steps:,}" if each.job.steps else "",
                f"{each.job.gradients:,.0f}",
                in_time(each.seconds) if each.seconds else "",
                each.state,
            ]
            for each in self.jobs
        ]
        return ["job", "kind", "steps", "gradients", "about", "state"], rows

    def sentences(self) -> list[str]:
        """Return what there is to say below the table."""
        lines = [
            f"{model} on {dataset}: a step takes {1000 * speed.step:.3g} ms, an image's gradient "
            f"{1000 * speed.gradient:.3g} ms here"
            for (dataset, model), speed in self.speeds.items()
        ]
        left = [each for each in self.jobs if each.state in (BEGUN, LEFT)]
        networks = [each.job for each in left if each.job.kind in jobs.TRAINED]
        steps = sum(job.steps for job in networks)
        gradients = sum(each.job.gradients for each in left)
        lines.append(
            f"{len(networks)} networks of {steps:,} steps and {len(left) - len(networks)} other "
            f"jobs are left: {gradients:,.0f} gradients, about {in_time(self.seconds)} one after "
            "the other, and some seconds for the compilation of each"
        )
        return lines


def estimate(plan: Plan) -> Estimate:
    """Return what the jobs of a plan would take that are not done.

    Raises:
        InputError: there is a run of another network by a name that is needed.
    """
    left = {job.name: job for job in plan.left()}
    speeds: dict[tuple[str, str], Speed] = {}
    found = []
    for job in plan.jobs:
        if job.kind == jobs.PAGE:
            continue
        if job.name not in left:
            found.append(Estimated(job, _settled(job, plan), 0.0))
            continue
        job = left[job.name]
        network = _network_of(job, plan)
        key = network.dataset, network.model
        if key not in speeds:
            speeds[key] = measured(network)
        there = _steps_there(job)
        seconds = _seconds(job, speeds[key], job.steps - there)
        found.append(Estimated(job, BEGUN if there else LEFT, seconds))
    return Estimate(tuple(found), speeds)


def _settled(job: Job, plan: Plan) -> str:
    now = plan.now(job.name, (DIVERGED,))
    if isinstance(now, Outcome):
        return now.words()
    return DONE if now.done else NOT_NEEDED


def _network_of(job: Job, plan: Plan) -> TrainingSettings:
    """Return the settings of the network whose gradients a job takes, of several the last one."""
    while job.kind not in jobs.TRAINED:
        job = plan.job(job.needs[-1])
    return job.settings


def _steps_there(job: Job) -> int:
    """Return the step of a network's last checkpoint, 0 where there is none."""
    if job.kind not in jobs.TRAINED:
        return 0
    return Run(f"{job.settings.runs_dir}/{job.settings.name}").last_step


def _seconds(job: Job, speed: Speed, steps: int) -> float:
    if job.kind not in jobs.TRAINED:
        return job.gradients * speed.gradient
    return steps * speed.seconds(job.gradients / job.steps)


def measured(settings: TrainingSettings) -> Speed:
    """Measure a network of these settings' model on random images of their dataset's shape."""
    row = look_up(settings.dataset)
    settings = TrainingSettings(dataset=row.name, model=settings.model, steps=_STEPS).resolved(row)
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (_IMAGES, *row.image_shape), np.uint8)
    labels = rng.integers(0, row.num_classes, _IMAGES, np.int32)
    dataset = data.Dataset(row.name, row, (images, labels), (images, labels))
    trainer = build.build_trainer(settings, build.build_network(settings, dataset))
    batches = data.batches(
        images, labels, clean_images(settings), seed=0, stop=_STEPS, crop=settings.crop,
        augment=settings.augment,
    )  # fmt: skip
    clock = _Clock()
    trainer.fit(batches, callbacks=[clock], shuffle=False, verbose=0)
    count = settings.adversarial_batch_size
    seen = data.as_network_input(images[:count], settings.crop)
    gradient = gradient_seconds(trainer.inference_logits, seen, labels[:count])
    return Speed(min(clock.seconds), training_gradients(settings), gradient)


class _Clock(keras.callbacks.Callback):
    """Seconds of each step but the first, which is compiled."""

    def __init__(self):
        super().__init__()
        self._times: list[float] = []

    def on_train_batch_end(self, batch, logs=None):
        self._times.append(time.perf_counter())

    @property
    def seconds(self) -> list[float]:
        return np.diff(self._times).tolist()
