"""One row a figure: what it takes and which class draws it; no TensorFlow, no matplotlib.

A figure is added by one class, a ``plot.Plot``, and one row::

    figures.register(FigureSpec("confidence", Confidence, "how sure networks are", images=500))

after which ``Figure`` and bin/analyze draw it like the others.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Sequence

from cascade_keras.attacks.specs import ITERATIVE, ONE_STEP, SEARCH
from cascade_keras.data.specs import DatasetSpec
from cascade_keras.lazy import resolve

LARGEST_EPSILON = 255.0
# Which images of a split are shown.
DRAWN = "drawn at random"
FIRST = "the first ones"
PER_CLASS = "the first of each class, as many of each as there are"
CHOICES = (DRAWN, FIRST, PER_CLASS)

_SMALL = 20  # pixel values; what is largest in CIFAR is below, in MNIST above


def ladder(spec: DatasetSpec) -> tuple[float, ...]:
    """Return about 16 whole epsilons up to the dataset's largest."""
    step = 1 if spec.max_epsilon <= _SMALL else 4
    return tuple(range(step, int(spec.max_epsilon) + 1, step))


def _from_zero(spec: DatasetSpec) -> tuple[float, ...]:
    return (0, *ladder(spec))


def both_sides(spec: DatasetSpec) -> tuple[float, ...]:
    """Return the ladder, 0 and the same steps to the other side."""
    upwards = ladder(spec)
    return (*(-epsilon for epsilon in reversed(upwards)), 0, *upwards)


def _trace(spec: DatasetSpec) -> tuple[float, ...]:
    """Return the paper's 0, 8, ..., 76 of MNIST, 0, 2, ..., 16 of CIFAR."""
    largest = int(spec.max_epsilon)
    return (*range(0, largest, 2 if largest <= _SMALL else 8), largest)


def _small_and_large(spec: DatasetSpec) -> tuple[float, ...]:
    return (4 if spec.max_epsilon <= _SMALL else 32, spec.max_epsilon)


def _all_sizes(spec: DatasetSpec) -> tuple[float, ...]:
    """Return 0 to 255, close to each other where networks begin to fail."""
    return (0, 1, 2, 4, 8, 12, 16, 24, 32, 48, 64, 96, 128, 192, 255)


def _thresholds(spec: DatasetSpec) -> tuple[float, ...]:
    """Return the epsilons above which the paper counts images."""
    return (2, 4) if spec.max_epsilon <= _SMALL else (spec.max_epsilon,)


@dataclasses.dataclass(frozen=True)
class FigureSpec:
    """What is known of a figure beside the class that computes and draws it.

    Attributes:
        name: as settings and files name it.
        plot: the class, or "module:name" below this package, imported on first use.
        summary: what it shows, for lists.
        epsilons: of a dataset, where none are given.
        lowest: the smallest epsilon that makes sense; ``above_zero`` excludes 0 itself.
        images: how many, where nothing is said.
        chosen: which ones, one of ``CHOICES``.
        attacks: where none are given; empty for a figure without a choice of attacks.
        attack_kinds: of the attacks that may be named.
        single: whether it shows one attack only.
        networks: the fewest that it compares.
        options: settings that it takes beside those of every figure.
    """

    name: str
    plot: type | str
    summary: str = ""
    epsilons: Callable[[DatasetSpec], Sequence[float]] = ladder
    lowest: float = 0.0
    above_zero: bool = False
    images: int = 128
    chosen: str = DRAWN
    attacks: tuple[str, ...] = ()
    attack_kinds: tuple[str, ...] = (ONE_STEP, ITERATIVE, SEARCH)
    single: bool = False
    networks: int = 1
    options: tuple[str, ...] = ()

    def __post_init__(self):
        if self.chosen not in CHOICES:
            raise ValueError(f"chosen {self.chosen!r} is none of {', '.join(CHOICES)}")

    @property
    def takes(self) -> tuple[str, ...]:
        """The settings that not every figure takes and this one does."""
        if not self.attacks:
            return self.options
        pgd = ("pgd_steps", "pgd_restarts") if SEARCH in self.attack_kinds else ()
        return ("attack", *pgd, *self.options)

    def resolve(self) -> type:
        """Return the class, importing it where the row only names it."""
        return resolve(self.plot, __package__)


# The rows by their names; ``register`` adds one.
FIGURES: dict[str, FigureSpec] = {}


def register(spec: FigureSpec) -> FigureSpec:
    """Add a figure's row.

    Raises:
        ValueError: its name is taken.
    """
    if spec.name in FIGURES:
        raise ValueError(f"there is a figure {spec.name!r} already")
    FIGURES[spec.name] = spec
    return spec


def particular() -> tuple[str, ...]:
    """Return the settings that only some figures take."""
    return tuple(dict.fromkeys(name for spec in FIGURES.values() for name in spec.takes))


def takers(setting: str) -> tuple[str, ...]:
    """Return the figures that take a setting of ``particular``."""
    return tuple(name for name, spec in FIGURES.items() if setting in spec.takes)


def defaults_in_words(value: Callable[[FigureSpec], object]) -> str:
    """Return "128; 1000 for embedding_map": what most rows have, and those that differ."""
    found: dict[object, list[str]] = {}
    for name, spec in FIGURES.items():
        if value(spec):
            found.setdefault(value(spec), []).append(name)
    usual, *others = sorted(found, key=lambda one: -len(found[one]))
    rest = [f"{_words(one)} for {', '.join(found[one])}" for one in others]
    return "; ".join([_words(usual), *rest])


def _words(value: object) -> str:
    many = isinstance(value, Iterable) and not isinstance(value, str)
    return ", ".join(value) if many else str(value)


_ONE_STEP_THREE = ("step_ll", "step_fgsm", "step_rand")
for _row in (
    FigureSpec(
        "noise_correlation",
        "correlations:NoiseCorrelation",
        "how alike the adversarial noises of two networks are (figures 1, 6)",
        above_zero=True,
        attacks=("iter_fgsm",),
        single=True,
        networks=2,
    ),
    FigureSpec(
        "embedding_map",
        "outputs:EmbeddingMap",
        "embeddings in the plane, and where attacks move them (figure 4)",
        epsilons=_trace,
        images=1000,
        chosen=PER_CLASS,
        attacks=("iter_fgsm",),
        single=True,
    ),
    FigureSpec(
        "distance_sweep",
        "accuracies:DistanceSweep",
        "accuracy against lambda_2, of several finished runs (figure 5)",
        epsilons=_small_and_large,
        chosen=FIRST,
        attacks=("step_ll", "step_fgsm", "iter_fgsm"),
        networks=2,
    ),
    FigureSpec(
        "logits",
        "outputs:Logits",
        "true and false logits against epsilon (figure 7)",
        epsilons=both_sides,
        lowest=-LARGEST_EPSILON,
        attacks=_ONE_STEP_THREE,
        attack_kinds=(ONE_STEP,),
    ),
    FigureSpec(
        "gradient_correlation",
        "correlations:GradientCorrelation",
        "how fast input gradients become others (figure 8)",
        epsilons=_from_zero,
        lowest=-LARGEST_EPSILON,
    ),
    FigureSpec(
        "cw_distribution",
        "accuracies:CWDistribution",
        "the smallest epsilons that fool (figure 9)",
        epsilons=_thresholds,
        images=100,
        chosen=PER_CLASS,
        options=("cw_search", "cw_iterations"),
    ),
    FigureSpec(
        "accuracy_curve",
        "accuracies:AccuracyCurve",
        "accuracy against epsilon up to 255, where masked gradients show",
        epsilons=_all_sizes,
        chosen=FIRST,
        attacks=("step_fgsm", "step_rand", "iter_fgsm", "pgd"),
    ),
    FigureSpec(
        "loss_surface",
        "surface:LossSurface",
        "the loss in the plane of the gradient and a random direction",
        epsilons=both_sides,
        lowest=-LARGEST_EPSILON,
        images=3,
        options=("image_index",),
    ),
):
    register(_row)
