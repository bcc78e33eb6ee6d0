"""Which calls of bin/evaluate and bin/analyze a table or a figure needs. No TensorFlow.

The columns of a table that are counted on the same images are one call: clean images and one-step
attacks on all test images, the paper's iterative ones on fewer, Carlini and Wagner's on 100, 10 a
class, and what the paper lacks, pgd and AutoAttack, with the diagnosis of masked gradients. The
epsilons stay those of the paper whatever the dataset, in 0..255 units.

    for measurement in measurements(2, seed=0):
        print(" ".join(measurement.command(place, "reports/" + measurement.name)))
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Sequence

from cascade_keras.attacks.specs import ATTACKS, ITERATIVE, MINIMAL, ONE_STEP, Attack
from cascade_keras.errors import InputError
from cascade_keras.figures.settings import parse_epsilons
from cascade_keras.reproduction.published import (
    CLEAN,
    FIGURES,
    TABLES,
    Column,
    Part,
    PublishedFigure,
    Table,
)

EVALUATE, ANALYZE = "evaluate", "analyze"
# What is counted together.
ONE_STEP_CALL, ITERATIVE_CALL, CW_CALL, STRONG_CALL = "one_step", "iterative", "cw", "strong"

# How many test images the datasets have that tables are made of.
TEST_IMAGES = {"mnist": 10_000, "cifar10": 10_000, "digits": 360}


@dataclasses.dataclass(frozen=True)
class Images:
    """How many test images each call takes, at most as many as there are.

    Attributes:
        one_step: clean images too.
        iterative: the paper's iterative attacks.
        cw: as many of each class as can be; the paper counts of 100.
        strong: pgd and AutoAttack.
        diagnosis: of these.
        figure: None for what each figure takes.
    """

    one_step: int = 10_000
    iterative: int = 2_000
    cw: int = 100
    strong: int = 1_000
    diagnosis: int = 200
    figure: int | None = None


@dataclasses.dataclass(frozen=True)
class Measurement:
    """One call of bin/evaluate or bin/analyze.

    Attributes:
        name: of the folder of its report or picture; no other call's.
        program: ``EVALUATE`` or ``ANALYZE``.
        targets: the networks that classify, or that a figure shows in this order; names of recipes
            or of ``published.VARIANTS``, not paths.
        sources: the networks whose images they are shown; none for a white box.
        flags: all but those that name networks and the output.
        gradients: of all images together, about.
    """

    name: str
    program: str
    targets: tuple[str, ...]
    sources: tuple[str, ...]
    flags: tuple[str, ...]
    gradients: float

    @property
    def networks(self) -> tuple[str, ...]:
        """All networks that have to be there."""
        return tuple(dict.fromkeys((*self.targets, *self.sources)))

    def command(self, place: Callable[[str], str], output: str) -> tuple[str, ...]:
        """Return the program with its flags.

        Args:
            place: gives the path of a network by its name.
            output: a folder.
        """
        named = ",".join(map(place, self.targets))
        if self.program == ANALYZE:
            return "bin/analyze", *self.flags, f"--model={named}", f"--output={output}"
        sources = [f"--source={','.join(map(place, self.sources))}"] if self.sources else []
        return "bin/evaluate", f"--target={named}", *sources, *self.flags, f"--output={output}"


def call_name(table: int, call: str, seed: int) -> str:
    """Return the name of a table's call of one seed."""
    return f"table{table}-{call}-s{seed}"


def call_of(attack: str) -> str:
    """Return with which others an attack is counted."""
    if attack == CLEAN:
        return ONE_STEP_CALL
    kinds = {ONE_STEP: ONE_STEP_CALL, ITERATIVE: ITERATIVE_CALL, MINIMAL: CW_CALL}
    return kinds.get(ATTACKS[attack].kind, STRONG_CALL)


def table_of(number: int) -> Table:
    """Return a table.

    Raises:
        InputError: there is none of this number with results of networks.
    """
    return _known(TABLES, number, "table")


def figure_of(number: int) -> PublishedFigure:
    """Return a figure.

    Raises:
        InputError: there is none of this number with results of networks.
    """
    return _known(FIGURES, number, "figure")


def _known(rows: dict, number: int, setting: str):
    if number not in rows:
        known = ", ".join(map(str, rows))
        raise InputError(f"must be one of {known}, got {number}", setting)
    return rows[number]


def measurements(
    number: int, seed: int = 0, *, dataset: str | None = None, images: Images = Images()
) -> list[Measurement]:
    """Return the calls that a table needs, of the networks of one seed.

    Args:
        number: of the table.
        seed: of the networks; in the names only.
        dataset: what they learned, where that is not the table's own.
        images: how many of them.

    Raises:
        InputError: there is no such table.
    """
    table = table_of(number)
    dataset = dataset or table.dataset
    calls: dict[str, list[Column]] = {}
    for column in (*table.columns, *table.also):
        calls.setdefault(call_of(column.attack), []).append(column)
    return [
        _measurement(table, call, columns, seed, dataset, images) for call, columns in calls.items()
    ]


def _measurement(
    table: Table, call: str, columns: Sequence[Column], seed: int, dataset: str, images: Images
) -> Measurement:
    attacks = _each(column.attack for column in columns if column.attack != CLEAN)
    epsilons = tuple(sorted({column.epsilon for column in columns if column.attack != CLEAN}))
    sources = _each(name for column in columns for name in column.sources)
    numbers = ",".join(f"{epsilon:g}" for epsilon in epsilons)
    count = min(getattr(images, call), TEST_IMAGES.get(dataset, getattr(images, call)))
    flags = [
        f"--dataset={dataset}",
        f"--attack={','.join(attacks)}",
        f"--{'cw_threshold' if call == CW_CALL else 'epsilon'}={numbers}",
        f"--num_images={count}",
        f"--diagnosis_images={images.diagnosis if call == STRONG_CALL else 0}",
    ]
    if call == CW_CALL:
        flags.append(f"--cw_images={count}")
    each = sum(Attack(name, epsilons).gradients for name in attacks)
    return Measurement(
        call_name(table.number, call, seed),
        EVALUATE,
        table.targets,
        sources,
        tuple(flags),
        each * count * len(sources or table.targets),
    )


def _each(names: Iterable[str]) -> tuple[str, ...]:
    return tuple(dict.fromkeys(names))


def figure_measurements(
    number: int, seed: int = 0, *, dataset: str | None = None, images: Images = Images()
) -> list[Measurement]:
    """Return the calls that a figure needs, one a part, of the networks of one seed.

    Args:
        number, seed, dataset, images: as of ``measurements``; the dataset stands in for all parts.

    Raises:
        InputError: there is no such figure.
    """
    figure = figure_of(number)
    return [_drawing(figure, part, seed, dataset, images) for part in figure.parts]


def _drawing(
    figure: PublishedFigure, part: Part, seed: int, dataset: str | None, images: Images
) -> Measurement:
    flags = [f"--figure={figure.kind}", f"--dataset={dataset or part.dataset}", *part.flags]
    flags += [f"--epsilons={part.epsilons}"]
    if images.figure is not None:
        flags.append(f"--num_images={images.figure}")
    name = f"figure{figure.number}{part.name and '-'}{part.name}-s{seed}"
    # As many images as the figures take; embedding_map attacks one of each class.
    count = images.figure or (100 if figure.kind == "cw_distribution" else 128)
    count = min(count, 10) if figure.kind == "embedding_map" else count
    each = _GRADIENTS[figure.kind](parse_epsilons(part.epsilons))
    return Measurement(
        name, ANALYZE, part.networks, (), tuple(flags), each * count * len(part.networks)
    )


def _of(*attacks: str) -> Callable[[Sequence[float]], float]:
    return lambda epsilons: sum(Attack(name, tuple(epsilons)).gradients for name in attacks)


# About how many gradients an image takes in a figure.
_GRADIENTS: dict[str, Callable[[Sequence[float]], float]] = {
    "noise_correlation": _of("iter_fgsm"),
    "embedding_map": _of("iter_fgsm"),
    "distance_sweep": _of("step_ll", "step_fgsm", "iter_fgsm"),
    "logits": _of("step_ll", "step_fgsm", "step_rand"),
    "gradient_correlation": lambda epsilons: 3 * len(epsilons),
    "cw_distribution": _of("cw_linf"),
}
