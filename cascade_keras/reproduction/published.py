"""What the paper published: every number of its tables, and what its figures show. No TensorFlow.

Each table stands here as the paper prints it, a row a network, so that both can be read side by
side. Accuracies are in per cent, epsilons in 0..255 units. Networks go by the paper's names, with
R20_K2 for its second network of that kind.

``None`` is a number that is printed, but that the text of the paper we have does not give with
certainty: its extraction keeps the numbers of a table and loses which column they stand in. What
could be told nevertheless, such as the lowest of several columns, is told.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping

CLEAN = "clean"
ACCURACY = "accuracy"  # per cent of the images that are classified correctly
COUNT = "count"  # of 100 images, how many need a larger epsilon; Carlini and Wagner's attack

MNIST, CIFAR = 0.3 * 255, 16.0  # the largest epsilon of each, in training and in tests


@dataclasses.dataclass(frozen=True)
class Column:
    """One column of a table: what is done to a network.

    Attributes:
        attack: "clean" or an attack's name.
        epsilon: 0 for clean images.
        sources: whose images are shown: none for the network's own (white box), or one. Of several
            the lowest accuracy counts, as the paper's worst case does.
        kind: ``ACCURACY`` or ``COUNT``.
        each_image: of several sources, an image counts if it withstands all of them. The paper has
            no such column.
    """

    attack: str
    epsilon: float = 0.0
    sources: tuple[str, ...] = ()
    kind: str = ACCURACY
    each_image: bool = False


@dataclasses.dataclass(frozen=True)
class Cell:
    """One number of a table: a network, what is done to it, and what was published.

    Attributes:
        network: its name in the paper.
        attack, epsilon, sources, kind, each_image: as of a ``Column``.
        value: None where the paper has no such number, or it could not be read.
        published: whether the paper has such a number.
    """

    network: str
    attack: str
    epsilon: float
    value: float | None
    sources: tuple[str, ...] = ()
    kind: str = ACCURACY
    each_image: bool = False
    published: bool = True


@dataclasses.dataclass(frozen=True)
class Table:
    """One table.

    Attributes:
        number, title: as in the paper.
        dataset, depth: what its networks learn, and how many layers they have.
        columns: from left to right.
        rows: of each network its numbers, one a column.
        also: columns that the paper does not have and that stand beside them here.
        notes: what a reader of the numbers has to know, a sentence or two each.
    """

    number: int
    title: str
    dataset: str
    depth: int
    columns: tuple[Column, ...]
    rows: Mapping[str, tuple[float | None, ...]]
    also: tuple[Column, ...] = ()
    notes: tuple[str, ...] = ()

    def __post_init__(self):
        for network, values in self.rows.items():
            if len(values) != len(self.columns):
                raise ValueError(
                    f"table {self.number}: {network} has {len(values)} numbers in "
                    f"{len(self.columns)} columns"
                )

    @property
    def targets(self) -> tuple[str, ...]:
        """The networks that are measured."""
        return tuple(self.rows)

    @property
    def sources(self) -> tuple[str, ...]:
        """The networks whose images are shown to others."""
        columns = (*self.columns, *self.also)
        return tuple(dict.fromkeys(name for column in columns for name in column.sources))

    @property
    def networks(self) -> tuple[str, ...]:
        """All networks that the table needs."""
        return tuple(dict.fromkeys((*self.targets, *self.sources)))

    @property
    def cells(self) -> tuple[Cell, ...]:
        """Every number, row by row; after a row's own those of ``also``."""
        return tuple(
            Cell(network=network, value=value, published=published, **vars(column))
            for network, values in self.rows.items()
            for column, value, published in (
                *((c, v, True) for c, v in zip(self.columns, values, strict=True)),
                *((column, None, False) for column in self.also),
            )
        )


_TWO = ("R20_2", "R20_K2")
_THREE = ("R20", "R20_K", "R20_P")
_SEVEN = ("R110", "R110_K", "R110_E", "R110_P", "R110_K,C", "R110_P,E", "R110_P,C")
_SEVEN_2 = ("R110_2", "R110_K2", "R110_E2", "R110_P2", "R110_K,C2", "R110_P,E2", "R110_P,C2")

_P_ROWS = (
    "The released code has no stop gradient in its pivot loss, so that the published rows of pivot "
    "networks (P) were trained with what is called bidirectional here; see fidelity.md."
)
_ORDER = (
    "Of a target's numbers from R20_K and R20_P the paper's text does not tell which is which: the "
    "lower one of step_fgsm is certain, of iter_fgsm only what stands here."
)


def _from_each(attack: str, sources: tuple[str, ...]) -> tuple[Column, ...]:
    return tuple(Column(attack, CIFAR, (source,)) for source in sources)


TABLES: dict[int, Table] = {
    table.number: table
    for table in (
        Table(
            1,
            "black box, epsilon 16",
            "cifar10",
            20,
            (*_from_each("step_fgsm", _TWO), *_from_each("iter_fgsm", _TWO)),
            {
                "R20":   (16.2, 31.6,  2.7, 60.1),
                "R20_K": (66.7, 82.7, 55.8, 28.5),
            },
            also=(Column("iter_fgsm", CIFAR, _TWO, each_image=True),),
        ),
        Table(
            2,
            "white box, epsilon 0.3 * 255",
            "mnist",
            20,
            (
                Column(CLEAN),
                Column("step_ll", MNIST),
                Column("step_fgsm", MNIST),
                Column("iter_ll", MNIST),
                Column("iter_fgsm", MNIST),
                Column("cw_linf", MNIST, kind=COUNT),
            ),
            {
                "R20M":   (99.6,  9.7, 10.3,  0.0,  0.0,  0),
                "R20M_K": (99.6, 96.7, 94.5, 89.0, 60.2, 46),
                "R20M_B": (99.5, 97.3, 96.2, 97.2, 88.5, 81),
                "R20M_P": (99.5, 97.1, 95.7, 96.9, 88.9, 82),
            },
            also=(Column("pgd", MNIST), Column("autoattack", MNIST)),
            notes=(_P_ROWS,),
        ),
        Table(
            3,
            "white box",
            "cifar10",
            110,
            (
                Column(CLEAN),
                Column("step_ll", 2.0), Column("step_ll", CIFAR),
                Column("step_fgsm", 2.0), Column("step_fgsm", CIFAR),
                Column("iter_fgsm", 2.0), Column("iter_fgsm", 4.0),
                Column("cw_linf", 2.0, kind=COUNT), Column("cw_linf", 4.0, kind=COUNT),
            ),
            {
                "R110_K":   (92.3, 88.3, 90.7, 86.0, 95.2, 59.4,  9.2, 25,  4),
                "R110_P":   (92.3, 86.0, 89.4, 81.6, 91.6, 64.1, 20.9, 32,  7),
                "R110_E":   (92.3, 86.3, 74.3, 84.1, 72.9, 63.5, 21.1, 24,  6),
                "R110_K,C": (92.3, 86.2, 72.8, 82.6, 66.7, 69.3, 33.4, 20,  5),
                "R110_P,E": (91.3, 84.0, 65.7, 77.6, 54.5, 66.8, 38.3, 38, 16),
                "R110_P,C": (91.5, 85.7, 76.4, 82.4, 69.1, 73.5, 42.5, 27, 15),
            },
            also=(Column("pgd", 2.0), Column("pgd", 4.0), Column("autoattack", 4.0)),
            notes=(
                _P_ROWS,
                "Athalye, Carlini and Wagner (ICML 2018, table 1) leave this defence 15 % at "
                "epsilon 3.8, where the paper's iter_fgsm leaves 42.5 % at 4: iter_fgsm is a weak "
                "attack, so pgd and AutoAttack stand beside it.",
            ),
        ),
        Table(
            4,
            "black box, epsilon 16",
            "cifar10",
            110,
            (*_from_each("iter_fgsm", _SEVEN_2), Column("iter_fgsm", CIFAR, _SEVEN_2)),
            {
                "R110_K":   (70.5, None, None, None, None, None, None, 27.9),
                "R110_E":   (77.9, None, None, None, None, None, None, 54.7),
                "R110_P":   (75.9, None, None, None, None, None, None, 39.6),
                "R110_K,C": (56.4, None, None, None, None, None, None, 56.4),
                "R110_P,E": (78.2, None, None, None, None, None, None, 67.7),
                "R110_P,C": (71.9, None, None, None, None, None, None, 63.9),
            },
            also=(Column("iter_fgsm", CIFAR, _SEVEN_2, each_image=True),),
            notes=(
                _P_ROWS,
                "The worst cases are certain. Of the single sources only R110_2 is: section 5.3 "
                "says that it is the worst of R110_K,C, whose lowest number stands in that column. "
                "The other six columns are printed, but the paper's text does not tell which "
                "is whose.",
            ),
        ),
        Table(
            8,
            "black box between networks of one initialisation, epsilon 16",
            "cifar10",
            20,
            (
                *_from_each("step_fgsm", _THREE), Column("step_fgsm", CIFAR, _THREE[1:]),
                *_from_each("iter_fgsm", _THREE),
            ),
            {
                "R20":   (12.2, None, None, 27.4,  0.0, None, None),
                "R20_K": (65.7, None, None, 81.5, None,  0.0, None),
                "R20_P": (58.1, None, None, 89.3, None, None,  0.0),
            },
            notes=(_P_ROWS, _ORDER, "A network's own images are a white box."),
        ),
        Table(
            9,
            "black box, epsilon 16, targets and sources of table 1 changed over",
            "cifar10",
            20,
            (
                *_from_each("step_fgsm", _THREE), Column("step_fgsm", CIFAR, _THREE[1:]),
                *_from_each("iter_fgsm", _THREE),
            ),
            {
                "R20_2":  (17.9, None, None, 33.9,  4.1, None, None),
                "R20_K2": (65.0, None, None, 84.5, None, None, None),
                "R20_P2": (66.4, None, None, 87.2, None, None, None),
            },
            also=(Column("iter_fgsm", CIFAR, _THREE, each_image=True),),
            notes=(_P_ROWS, _ORDER),
        ),
        Table(
            10,
            "black box, epsilon 16, targets and sources of table 4 changed over",
            "cifar10",
            110,
            (*_from_each("iter_fgsm", _SEVEN), Column("iter_fgsm", CIFAR, _SEVEN)),
            {
                "R110_K2":   (80.5, None, None, None, None, None, None, 41.0),
                "R110_E2":   (82.7, None, None, None, None, None, None, 39.5),
                "R110_P2":   (80.3, None, None, None, None, None, None, 44.3),
                "R110_K,C2": (62.1, None, None, None, None, None, None, 39.0),
                "R110_P,E2": (81.5, None, None, None, None, None, None, 45.5),
                "R110_P,C2": (72.2, None, None, None, None, None, None, 40.9),
            },
            also=(Column("iter_fgsm", CIFAR, _SEVEN, each_image=True),),
            notes=(
                _P_ROWS,
                "The worst cases and the column of R110 are certain. The other six columns are "
                "printed, but the paper's text does not tell which is whose.",
            ),
        ),
    )
}  # fmt: skip


@dataclasses.dataclass(frozen=True)
class Variant:
    """A network of a figure that is none of the 28: one of them, trained otherwise.

    Attributes:
        name: as ``Part.networks`` has it.
        recipe: the network that it is otherwise.
        flags: of ``bin/train``, beside the recipe's.
        model_suffix: what the name of the recipe's model ends with.
        pretrained: whether it starts from the initialisation of the recipe's group. Other layers
            cannot: networks of one such model and seed start from the same random weights.
    """

    name: str
    recipe: str
    flags: tuple[str, ...] = ()
    model_suffix: str = ""
    pretrained: bool = True


# Above 0.3 the paper's training diverges; its text does not tell which weights it tried.
WEIGHTS_OF_DISTANCE = ("0.001", "0.01", "0.1", "0.3")

VARIANTS: dict[str, Variant] = {
    variant.name: variant
    for variant in (
        *(
            Variant(
                f"{recipe}-2d",
                recipe,
                ("--embedding_at=bottleneck",),
                model_suffix="_e2",
                pretrained=False,
            )
            for recipe in ("R20M", "R20M_K", "R20M_P")
        ),
        *(
            Variant(f"R20_P-lambda{weight}", "R20_P", (f"--distance_weight={weight}",))
            for weight in WEIGHTS_OF_DISTANCE
        ),
    )
}


@dataclasses.dataclass(frozen=True)
class Part:
    """One picture of a figure: a call of ``bin/analyze``.

    Attributes:
        name: after the figure's number; empty where there is one only.
        networks: names of recipes or of ``VARIANTS``, in the order they are drawn.
        epsilons: as ``bin/analyze --epsilons`` takes them.
        dataset: what the networks learned.
        flags: beside the figure's kind.
    """

    name: str
    networks: tuple[str, ...]
    epsilons: str
    dataset: str = "cifar10"
    flags: tuple[str, ...] = ()


@dataclasses.dataclass(frozen=True)
class PublishedFigure:
    """One figure.

    Attributes:
        number: as in the paper.
        kind: the row of ``figures.kinds`` that draws it.
        parts: the calls that make it.
        shows: what is to be seen in the published one.
        note: what is certain of it and what is ours.
    """

    number: int
    kind: str
    parts: tuple[Part, ...]
    shows: str
    note: str = ""

    @property
    def networks(self) -> tuple[str, ...]:
        """All networks that it needs."""
        return tuple(dict.fromkeys(name for part in self.parts for name in part.networks))


_MNIST_FOUR = ("R20M", "R20M_K", "R20M_B", "R20M_P")
_SMALL_EIGHT = ("R20", "R20_K", "R20_E", "R20_B", "R20_P", "R20_K,C", "R20_P,E", "R20_P,C")
_LARGE_SIX = ("R110_K", "R110_P", "R110_E", "R110_K,C", "R110_P,E", "R110_P,C")

FIGURES: dict[int, PublishedFigure] = {
    figure.number: figure
    for figure in (
        PublishedFigure(
            1,
            "noise_correlation",
            (Part("", ("R20", "R20_K", "R20_2", "R20_K2"), "1..16"),),
            "iter_fgsm noises of two defended networks of different initialisations (R20_K, "
            "R20_K2) are more alike than those of other pairs, at every epsilon from 1 to 16.",
            "Bands of 0.1 standard deviations.",
        ),
        PublishedFigure(
            4,
            "embedding_map",
            (
                Part(
                    "",
                    ("R20M-2d", "R20M_K-2d", "R20M_P-2d"),
                    "0,8,16,24,32,40,48,56,64,72,76",
                    "mnist",
                ),
            ),
            "iter_fgsm moves the standard network's images across the borders of classes as "
            "epsilon grows from 0 to 76; the embeddings of Kurakin's network move less, those of "
            "the pivot network least, whose classes are narrowest too.",
            "Two-dimensional embeddings: the last layer, 64x10, is replaced by 64x2 and 2x10. The "
            "first 100 test images a class.",
        ),
        PublishedFigure(
            5,
            "distance_sweep",
            (
                Part(
                    "",
                    ("R20_P", *(f"R20_P-lambda{each}" for each in WEIGHTS_OF_DISTANCE)),
                    "4,16",
                ),
            ),
            "A larger lambda_2 raises the accuracy under iterative attacks and lowers the clean "
            "one; above 0.3 training diverges.",
            "Which lambda_2 the paper tried cannot be read from its text: 0.0001 is its default, "
            "the others are ours.",
        ),
        PublishedFigure(
            6,
            "noise_correlation",
            (
                Part("20", ("R20_K", "R20_P", "R20_K2"), "1..16"),
                Part("56", ("R56_K", "R56_P", "R56_K2"), "1..16"),
                Part("110", ("R110_K", "R110_P", "R110_K2"), "1..16"),
            ),
            "(a) The noises of a Kurakin and a pivot network of one initialisation are alike, "
            "whatever the depth. (b) Those of two Kurakin networks of different initialisations "
            "are less alike the deeper the networks are.",
            "The text names 56 and 110 layers; 20 layers stand beside them here.",
        ),
        PublishedFigure(
            7,
            "logits",
            (Part("", _THREE, "-16..16"),),
            "The standard network's true logit falls at once along step_ll and step_fgsm. "
            "Kurakin's falls less; the pivot network's rises up to epsilon 10, is smaller and "
            "varies less.",
            "128 test images, bands of one standard deviation.",
        ),
        PublishedFigure(
            8,
            "gradient_correlation",
            (Part("", _THREE, "0..16"),),
            "The gradients at the clean image and at its one-step image become unlike at a smaller "
            "epsilon in defended networks, and are slightly negative for step_fgsm at 1 to 3 "
            "(Kurakin) and 1 to 4 (pivot); those at step_ll and step_fgsm images stay alike.",
            "128 test images, bands of half a standard deviation.",
        ),
        PublishedFigure(
            9,
            "cw_distribution",
            (
                Part("a", _MNIST_FOUR, "76.5", "mnist"),
                Part("b", _SMALL_EIGHT, "2,4"),
                Part("c", _LARGE_SIX, "2,4"),
            ),
            "Share of 100 test images that Carlini and Wagner's attack fools within epsilon: lower "
            "is better, and the paper's own networks are the lowest.",
            "The counts are those of tables 2 and 3. Which 20-layer networks part (b) shows cannot "
            "be read from the paper's text: all eight of its group are drawn.",
        ),
    )
}
