"""What a reproduction is told: which tables and figures, on which data, how long. No TensorFlow."""

from __future__ import annotations

import dataclasses
import pathlib

from cascade_keras import recipes
from cascade_keras.data import specs as data
from cascade_keras.errors import InputError
from cascade_keras.reproduction.measurements import Images
from cascade_keras.reproduction.published import FIGURES, TABLES
from cascade_keras.settings import POSITIVE, SEED, Rule, Settings, as_flags, setting

# Of digits, which show that all of it works: AutoAttack alone would take hours else.
FEW = Images(one_step=360, iterative=100, cw=30, strong=30, diagnosis=30, figure=30)
_SEEDS = Rule(
    lambda seeds: bool(seeds) and all(map(SEED.holds, seeds)), "one or more whole numbers from 0"
)
_DEPTH = Rule(lambda depth: depth >= 8 and depth % 6 == 2, "6n + 2, such as 8 or 20")


@dataclasses.dataclass(frozen=True)
class ReproductionSettings(Settings):
    """Which numbers of the paper are reproduced; each field is a flag of ``bin/reproduce`` too."""

    table: tuple[int, ...] = setting((), "Tables of the paper.", choices=lambda: TABLES)
    figure: tuple[int, ...] = setting((), "Figures of the paper.", choices=lambda: FIGURES)
    all: bool = setting(False, "All of these tables and figures.")
    dataset: str | None = setting(
        None,
        "What all networks learn, instead of what they do in the paper; on digits they have 8 "
        "layers, and all of it takes minutes.",
        choices=lambda: data.DATASETS,
    )
    scale: float = setting(
        1.0, "The share of the published schedules that networks are trained for.", POSITIVE
    )
    seeds: tuple[int, ...] = setting(
        (0,), "Every network is trained once with each; the tables have mean and spread.", _SEEDS
    )
    depth: int | None = setting(
        None,
        "Layers of all networks that have more of them in the paper, of all on digits; with 20, "
        "R20_P stands for R110_P.",
        _DEPTH,
    )
    num_images: int | None = setting(
        None,
        "At most so many test images in each evaluation, CW's and figures' too; default: 10000 for "
        "one-step attacks, 2000 for iterative ones, 1000 for pgd and AutoAttack, 100 for CW; of "
        "digits 360, 100, 30 and 30.",
        POSITIVE,
    )
    jobs: int = setting(
        1, "So many programs at a time; each takes all cores that it finds.", POSITIVE
    )
    output: str = setting(
        "reproduction", "Directory of runs, banks, reports, figures and pages.", path=True
    )
    data_dir: str | None = setting(None, "TensorFlow Datasets' directory.", path=True)
    retry_diverged: bool = setting(
        False,
        "Train networks once more whose training diverged before; what failed otherwise is always "
        "tried again.",
    )
    only: str | None = setting(
        None,
        "Do this one job, which --dry_run lists, or a table's or figure's page such as table2, of "
        "what is there, and end: what a workflow engine calls.",
    )
    dry_run: bool = setting(
        False, "Print what would be done, how long it would take and what is there, and end."
    )

    @property
    def tables(self) -> tuple[int, ...]:
        """The numbers of the tables that are wanted."""
        return tuple(TABLES) if self.all else self.table

    @property
    def figures(self) -> tuple[int, ...]:
        """The numbers of the figures that are wanted."""
        return tuple(FIGURES) if self.all else self.figure

    def check(self) -> None:
        """Refuse settings that want nothing, or do not go together.

        Raises:
            InputError: there is neither a table nor a figure; or one job alone is wanted, and
                trainings again that diverged.
        """
        if not self.tables and not self.figures:
            if self.only is not None:
                raise InputError("is one of what a table, a figure or all takes; name that", "only")
            raise InputError("name a table, a figure or all", "table")
        if self.only is not None and self.retry_diverged:
            raise InputError("is of all jobs; leave only out", "retry_diverged")

    def doing(self, job: str) -> tuple[str, ...]:
        """Return the program, without its folder, that does one job of these settings' plan."""
        own = self.replace(only=job, jobs=1, retry_diverged=False, dry_run=False)
        return "reproduce", *as_flags(own, ReproductionSettings())

    @property
    def images(self) -> Images:
        """How many test images the evaluations take."""
        usual, most = FEW if self.dataset == "digits" else Images(), self.num_images
        if most is None:
            return usual
        counts = {
            field.name: min(getattr(usual, field.name) or most, most)
            for field in dataclasses.fields(Images)
        }
        return Images(**counts)

    def recipe(self, name: str) -> recipes.Recipe:
        """Return the network that stands for one of the paper, which ``depth`` may change."""
        return recipes.find(name, self.depth)

    def layers(self, recipe: recipes.Recipe) -> int | None:
        """Return how many layers a network has, None for as many as its recipe says."""
        if self.depth is None or self.dataset == "digits":
            return self.depth
        return min(self.depth, recipe.depth)

    def folder(self, kind: str) -> pathlib.Path:
        """Return the directory of runs, banks, reports, figures, stamps or logs."""
        return pathlib.Path(self.output) / kind
