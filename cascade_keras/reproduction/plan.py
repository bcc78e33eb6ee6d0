"""The plan of a reproduction: all jobs in an order in which they can be done. No TensorFlow.

    plan = Plan(ReproductionSettings(table=[2], seeds=[0, 1, 2]))
    for job in plan.left():
        print(" ".join(job.command))

A table needs its networks, those need the initialisation of their group and the networks whose
images they are trained with, and of these a bank where that is the cheaper way. What is there is
found by looking: a run by its configuration and results, as ``Training`` does, all else by a stamp
whose name is a hash of the job's flags and of those that it needs. So a plan can be made again at
any moment, on any machine that sees the folder, and says what is left; the workflow engine of
workflow/Snakefile does no more than that either.

A report or figure carries that hash in its folder's name, so that those of other images or of
networks of another schedule stand beside each other. Where a network could not be trained, what is
measured of several is measured of the others, in a folder of its own.
"""

from __future__ import annotations

import dataclasses
import math
import pathlib
from collections.abc import Callable, Collection, Sequence

from cascade_keras import recipes
from cascade_keras.attacks.specs import iteration_count, ladder_gradients
from cascade_keras.crafting import CraftSettings
from cascade_keras.data.specs import DatasetSpec, look_up
from cascade_keras.evaluation.settings import EvaluationSettings
from cascade_keras.figures.kinds import FIGURES
from cascade_keras.figures.settings import FigureSettings
from cascade_keras.losses import specs as losses
from cascade_keras.reproduction import jobs, outcomes
from cascade_keras.reproduction.jobs import Job
from cascade_keras.reproduction.measurements import (
    ANALYZE,
    Measurement,
    figure_measurements,
    measurements,
)
from cascade_keras.reproduction.outcomes import Outcome
from cascade_keras.reproduction.published import VARIANTS
from cascade_keras.reproduction.settings import ReproductionSettings
from cascade_keras.runs.settings import TrainingSettings, cascade_images
from cascade_keras.settings import Settings, of_flags

MEASURED = jobs.EVALUATION, jobs.FIGURE
# What the finished networks are measured by is the tables' own; these would only take time.
_UNMEASURED = {"eval_attacks": (), "tensorboard": "scalars", "export": False}


class Plan:
    """What has to be done for some tables and figures.

    Args:
        settings: which of them, and how.

    Attributes:
        settings: as given.
        jobs: in an order in which each comes after those that it needs.

    Raises:
        InputError: nothing is wanted, or settings do not go together.
    """

    def __init__(self, settings: ReproductionSettings):
        settings.check()
        self.settings = settings
        self._jobs: dict[str, Job] = {}
        for kind, numbers, calls in (
            ("table", settings.tables, measurements),
            ("figure", settings.figures, figure_measurements),
        ):
            for number in numbers:
                self._add_page(kind, number, calls)
        self.jobs = tuple(self._jobs.values())

    def job(self, name: str) -> Job:
        """Return a job by its name."""
        return self._jobs[name]

    def __contains__(self, name: str) -> bool:
        return name in self._jobs

    @property
    def output(self) -> pathlib.Path:
        """The folder that everything is kept in."""
        return pathlib.Path(self.settings.output)

    def left(self) -> list[Job]:
        """Return the jobs that are still to be done, in order.

        Pages are written anew each time. What a job needs that is done itself is not asked for.
        What failed before is tried again, what diverged only where the settings ask for it.

        Raises:
            InputError: there is a run of another network by a name that is needed.
        """
        counted = () if self.settings.retry_diverged else (outcomes.DIVERGED,)
        seen: dict[str, Job | Outcome] = {}
        left: dict[str, Job] = {}

        def visit(name: str) -> None:
            job = self.now(name, counted, seen)
            if name in left or isinstance(job, Outcome) or (job.kind != jobs.PAGE and job.done):
                return
            for need in job.needs:
                visit(need)
            left[name] = job

        for job in self.jobs:
            if job.kind == jobs.PAGE:
                visit(job.name)
        return [left[job.name] for job in self.jobs if job.name in left]

    def now(
        self,
        name: str,
        counted: Collection[str] = (outcomes.FAILED, outcomes.DIVERGED),
        seen: dict[str, Job | Outcome] | None = None,
    ) -> Job | Outcome:
        """Return a job as it can be done, or why it cannot.

        Of networks that failed or diverged, what is measured of several of them is left out; what
        needs them otherwise cannot be done.

        Args:
            name: of the job.
            counted: which outcomes are taken for such, see ``Outcome.state``.
            seen: of other jobs, by their names; this one and those that it needs are added.

        Raises:
            InputError: there is a run of another network by a name that is needed, or an outcome's
                file is damaged.
        """
        seen = {} if seen is None else seen
        if name not in seen:
            seen[name] = self._now(self._jobs[name], counted, seen)
        return seen[name]

    def _now(
        self, job: Job, counted: Collection[str], seen: dict[str, Job | Outcome]
    ) -> Job | Outcome:
        if job.kind == jobs.PAGE or job.done:
            return job
        needed = {need: self.now(need, counted, seen) for need in job.needs}
        lost = {need: found for need, found in needed.items() if isinstance(found, Outcome)}
        if lost:
            reduced = self._without(job, lost) if job.kind in MEASURED else None
            if reduced is None:
                return next(iter(lost.values())).for_one_that_needs_it(job)
            job = reduced
        own = outcomes.kept(job)
        return own if own is not None and own.state in counted else job

    def _without(self, job: Job, lost: Collection[str]) -> Job | None:
        """Return what measures the networks that are not lost; None where too few are left."""
        fewest = {"target": 1, "source": 1}
        if job.kind == jobs.FIGURE:
            fewest = {"model": FIGURES[job.settings.figure].networks}
        gone = {str(self.settings.folder("runs") / name) for name in lost}
        changes = {}
        for field, least in fewest.items():
            before = getattr(job.settings, field)
            after = tuple(path for path in before if path not in gone)
            if before and len(after) < least:
                return None
            changes[field] = after
        needs = tuple(need for need in job.needs if need not in lost)
        share = len(needs) / len(job.needs)
        return self._placed(
            dataclasses.replace(
                job,
                needs=needs,
                settings=job.settings.replace(**changes),
                digests={need: job.digests[need] for need in needs},
                gradients=job.gradients * share,
            )
        )

    @property
    def pages(self) -> list[Job]:
        """The jobs that write pages."""
        return [job for job in self.jobs if job.kind == jobs.PAGE]

    def lacks(self, page: Job) -> bool:
        """Whether a page will have more once what failed is done."""
        seen: dict[str, Job | Outcome] = {}
        for name in page.needs:
            self.now(name, seen=seen)
        return any(isinstance(found, Outcome) and not found.final for found in seen.values())

    def try_again(self) -> None:
        """Forget which trainings diverged, and that what needs them is done without them."""
        again = {job.name for job in self.jobs if _diverged(job)}
        for job in self.jobs:
            if again & {job.name, *job.needs}:
                again.add(job.name)
                job.stamp.unlink(missing_ok=True)  # by which a workflow engine goes
        outcomes.forget(self.output, again, outcomes.DIVERGED)

    def forget_failures(self, *names: str) -> None:
        """Forget which jobs failed, so that they are tried again; of some names, or all."""
        outcomes.forget(self.output, names or self._jobs, outcomes.FAILED)

    # Pages and what they are made of.

    def _add_page(self, kind: str, number: int, calls: Callable) -> None:
        settings = self.settings
        needs = [
            self._add_measurement(measurement, seed)
            for seed in settings.seeds
            for measurement in calls(number, seed, dataset=settings.dataset, images=settings.images)
        ]
        own = settings.replace(
            table=(number,) if kind == "table" else (),
            figure=(number,) if kind == "figure" else (),
            all=False,
            jobs=1,
            only=None,
            retry_diverged=False,
            dry_run=False,
        )
        self._add(
            name=f"{kind}{number}",
            kind=jobs.PAGE,
            needs=needs,
            settings=own,
            result=pathlib.Path(settings.output, f"{kind}{number}.json"),
            number=number,
        )

    def _add_measurement(self, measurement: Measurement, seed: int) -> str:
        needs = [self.network(name, seed) for name in measurement.networks]
        settings = self.settings
        targets = [str(self.run_of(name, seed)) for name in measurement.targets]
        if measurement.program == ANALYZE:
            kind, cls = jobs.FIGURE, FigureSettings
            others = {"model": tuple(targets)}
        else:
            kind, cls = jobs.EVALUATION, EvaluationSettings
            sources = [str(self.run_of(name, seed)) for name in measurement.sources]
            others = {"target": tuple(targets), "source": tuple(sources)}
        asked = of_flags(cls, measurement.flags)
        return self._add(
            name=measurement.name,
            kind=kind,
            needs=needs,
            settings=asked.replace(data_dir=settings.data_dir, **others),
            gradients=measurement.gradients,
        )

    def _placed(self, job: Job) -> Job:
        """Return a measurement with its folder, which no other one has."""
        folder, file = "reports", "report.json"
        if job.kind == jobs.FIGURE:
            folder, file = "figures", f"{job.settings.figure}.png"
        place = self.settings.folder(folder) / f"{job.name}-{job.digest}"
        return dataclasses.replace(
            job, settings=job.settings.replace(output=str(place)), result=place / file
        )

    # Networks.

    def run_of(self, name: str, seed: int) -> pathlib.Path:
        """Return the directory of the run of a network of the paper, or of a variant of one."""
        own = name if name in VARIANTS else self.settings.recipe(name).name
        return self.settings.folder("runs") / recipes.folder(own, seed)

    def network(self, name: str, seed: int) -> str:
        """Add a network and what it needs, and return the name of its job."""
        variant = VARIANTS.get(name)
        recipe = self.settings.recipe(variant.recipe if variant else name)
        job = self.run_of(name, seed).name
        if job in self._jobs:
            return job
        settings, said, beside = self._training(recipe, seed)
        if variant:
            settings = of_flags(TrainingSettings, variant.flags, settings).replace(
                name=job, model=settings.model + variant.model_suffix
            )
            if not variant.pretrained:
                # No flag takes a recipe's initialisation away.
                settings, said, beside = settings.replace(init_from=None), (), None
        needs = [
            self.network(need, seed)
            for need in recipe.needs
            if settings.init_from or need != recipe.initialisation
        ]
        row = look_up(settings.dataset)
        if recipe.cascade:
            settings, bank = self._with_cascade(settings, recipe.cascade, seed, row)
            needs += [bank] if bank else []
        resolved = settings.resolved(row)
        return self._add(
            name=job,
            kind=jobs.INITIALISATION if recipe.is_initialisation else jobs.NETWORK,
            needs=needs,
            settings=settings,
            said=said,
            beside=beside,
            result=self.run_of(name, seed) / "metrics.json",
            steps=resolved.steps,
            gradients=resolved.steps * training_gradients(resolved),
        )

    def _training(
        self, recipe: recipes.Recipe, seed: int
    ) -> tuple[TrainingSettings, tuple[str, ...], TrainingSettings]:
        """Return a network's settings, the flags that name its recipe, and what these mean."""
        chosen = self.settings
        runs = str(chosen.folder("runs"))
        values = recipes.settings_of(
            recipe,
            seed=seed,
            runs_dir=runs,
            dataset=chosen.dataset,
            depth=chosen.layers(recipe),
            scale=chosen.scale,
        )
        settings = TrainingSettings(**values, data_dir=chosen.data_dir, **_UNMEASURED)
        known = recipe.name in recipes.RECIPES or recipe.is_initialisation
        if not known:  # a network of 20 layers that the paper has with 110 only
            return settings, (), TrainingSettings()
        said = [f"--recipe={recipe.name}", *([f"--seed={seed}"] if seed else [])]
        said.append(f"--runs_dir={runs}")
        beside = recipes.settings_of(recipe, seed=seed, runs_dir=runs, dataset=chosen.dataset)
        if chosen.dataset not in (None, recipe.dataset):
            said.append(f"--dataset={chosen.dataset}")
        return settings, tuple(said), TrainingSettings(**beside)

    def _with_cascade(
        self, settings: TrainingSettings, source: str, seed: int, row: DatasetSpec
    ) -> tuple[TrainingSettings, str | None]:
        """Return settings that say where cascade images come from, and the job of their bank.

        The way that takes fewer gradients for this network alone: what else is planned must not
        make it another network.
        """
        resolved = settings.resolved(row)
        each = expected_iterations(resolved.max_epsilon)
        online = resolved.steps * cascade_images(resolved) * each
        epsilons = range(1, math.floor(resolved.max_epsilon) + 1)
        images = row.examples or 0
        banked = images * ladder_gradients(epsilons)
        if not images or online < banked:
            return settings.replace(cascade_mode="online"), None
        place = self.run_of(source, seed)
        output = self.settings.folder("banks") / place.name
        bank = self._add(
            name=f"bank-{place.name}",
            kind=jobs.BANK,
            needs=[self.network(source, seed)],
            settings=CraftSettings(
                source=str(place),
                output=str(output),
                dataset=row.name,
                data_dir=self.settings.data_dir,
            ),
            result=output / "bank.json",
            gradients=banked,
        )
        return settings.replace(cascade_mode="bank", cascade_bank=(str(output),)), bank

    def _add(self, *, name: str, needs: Sequence[str], settings: Settings, **others) -> str:
        if name in self._jobs:
            return name
        needs = tuple(dict.fromkeys(needs))
        job = Job(
            name=name,
            needs=needs,
            settings=settings,
            output=self.output,
            digests={need: self._jobs[need].digest for need in needs},
            **others,
        )
        self._jobs[name] = self._placed(job) if job.kind in MEASURED else job
        return name


def _diverged(job: Job) -> bool:
    found = outcomes.kept(job)
    return found is not None and found.final


def training_gradients(settings: TrainingSettings) -> float:
    """Return about how many gradients a step takes: of its images, and to make adversarial ones.

    Args:
        settings: resolved.
    """
    loss = losses.LOSSES[settings.loss]
    if not loss.attacks:
        return settings.batch_size
    adversarial = settings.adversarial_batch_size
    cascade = cascade_images(settings) if settings.cascade_source else 0
    crafted = cascade * expected_iterations(settings.max_epsilon)
    online = crafted if settings.cascade_mode == "online" else 0
    return settings.batch_size + adversarial - cascade + online


def expected_iterations(max_epsilon: float) -> float:
    """Return the mean number of gradients of a cascade image that is crafted within a step.

    Of an epsilon min(floor(|N(0, max / 2)| clipped to max), max - 1) + 1, in closed form.
    """
    largest = math.floor(max_epsilon)

    def below(epsilon: float) -> float:
        return math.erf(epsilon / (max_epsilon / 2) / math.sqrt(2))

    shares = [below(e) - below(e - 1) for e in range(1, largest)]
    shares.append(1 - sum(shares))
    return sum(share * iteration_count(epsilon) for epsilon, share in enumerate(shares, start=1))
