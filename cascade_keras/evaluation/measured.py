"""What one call of ``evaluate`` found: numbers by attack and epsilon, tables, files."""

from __future__ import annotations

import copy
import io
import os
import shutil
from collections.abc import Callable, Iterator, Mapping
from typing import Any, Generic, NamedTuple, TypeVar

import numpy as np

from cascade_keras.attacks.specs import ATTACKS, Attack, Chosen, in_words
from cascade_keras.evaluation import checklist, tables
from cascade_keras.evaluation.asked import name_of
from cascade_keras.evaluation.cells import CLEAN, Cell
from cascade_keras.evaluation.content import Found
from cascade_keras.evaluation.measuring import Measuring
from cascade_keras.evaluation.report import Report
from cascade_keras.evaluation.stages import Told
from cascade_keras.evaluation.stores import DiskArrays, MemoryArrays
from cascade_keras.evaluation.tasks import arrays_of, open_array
from cascade_keras.provenance import package_versions

T = TypeVar("T")


class Counted(NamedTuple):
    """Some images, and how many of them are classified correctly.

    Attributes:
        correct, examples: images.
        accuracy: the same in per cent.
    """

    correct: int
    examples: int
    accuracy: float


class Passes(NamedTuple):
    """Passes through the network that each image took, int32 (N,).

    Attributes:
        gradients: forward and backward.
        forwards: forward alone.
    """

    gradients: np.ndarray
    forwards: np.ndarray


def _passes(told: Told) -> Passes:
    return Passes(told.gradients, told.forwards)


def _names(told: Told, attack: Attack) -> np.ndarray:
    return np.array(ATTACKS[attack.name].stage_names)[told.stages]


class ByAttack(Mapping, Generic[T]):
    """What was found, by attack and epsilon: ``found["pgd", 8]``, ``found["clean"]``.

    A key is an attack and an epsilon, which may be left out where there is one only. The attack is
    its name, or what ``attacks.PGD(steps=100)`` returns. Where an attack was asked for several
    times, its name alone is the one with the usual options, and the others are called
    ``"pgd (steps 100)"``. With several networks, the key begins with the name of the one that
    classifies, and with ``sources`` the name of the one that the images were made with follows:
    ``found["network", "source", "pgd", 8]``.

    Args:
        cells: what there is.
        value: returns what was found of a cell.
        attacks: all that were asked for, by label.
    """

    def __init__(
        self, cells: list[Cell], value: Callable[[Cell], T], attacks: Mapping[str, Attack]
    ):
        self._cells, self._value, self._attacks = cells, value, attacks
        self._several = len({cell.target for cell in cells}) > 1
        self._black_box = any(cell.source not in (None, cell.target) for cell in cells)

    def __getitem__(self, key: Any) -> T:
        return self._value(self._find(key))

    def __iter__(self) -> Iterator[tuple]:
        return map(self._short, self._cells)

    def __len__(self) -> int:
        return len(self._cells)

    def __repr__(self) -> str:
        return f"<{len(self)} of {', '.join(map(str, self))}>"

    def _short(self, cell: Cell) -> tuple:
        """Return a key that tells a cell from the others."""
        source = (cell.source,) if self._black_box and cell.source is not None else ()
        return ((cell.target,) if self._several else ()) + (*source, cell.attack, cell.epsilon)

    def _find(self, key: Any) -> Cell:
        if isinstance(key, Cell):
            key = tuple(part for part in key if part is not None)
        parts = list(key) if isinstance(key, tuple) else [key]
        epsilon = None
        if parts and isinstance(parts[-1], int | float | np.number):
            epsilon = float(parts.pop())
        found = self._cells
        if parts:
            found = self._of_attack(parts.pop(), epsilon)
        if parts:
            found = self._of_networks(found, parts)
        if len(found) != 1:
            what = "is not one of" if not found else "may be each of"
            known = ", ".join(map(repr, map(self._short, found or self._cells)))
            raise KeyError(f"{key!r} {what} {known}")
        return found[0]

    def _of_attack(self, attack: str | Chosen, epsilon: float | None) -> list[Cell]:
        labels = [attack]
        if isinstance(attack, Chosen):
            options = {**ATTACKS[attack.name].options, **attack.options} if attack.options else None
            labels = [
                label
                for label, other in self._attacks.items()
                if other.name == attack.name and options in (None, dict(other.options))
            ]
            labels = [attack.name] if options is None and attack.name in labels else labels
        elif attack not in self._attacks:
            labels = [label for label in self._attacks if name_of(label) == attack]
        if attack == CLEAN:
            labels, epsilon = [CLEAN], None
        return [
            cell
            for cell in self._cells
            if cell.attack in labels and epsilon in (None, cell.epsilon)
        ]

    def _of_networks(self, cells: list[Cell], names: list[str]) -> list[Cell]:
        if len(names) == 1 and not self._several and self._black_box:
            return [cell for cell in cells if cell.source in (None, names[0])]
        target, *source = names
        return [
            cell
            for cell in cells
            if cell.target == target and (cell.source is None or source in ([], [cell.source]))
        ]


class Measured:
    """What ``evaluate`` found of one or several networks. It prints as a table.

    Attributes:
        accuracy: in per cent, ``.accuracy["pgd", 8]``; see ``ByAttack`` for the keys.
        predictions: the classes the images were taken for, int32 (N,).
        images: the adversarial images, float32 (N, H, W, C) in the range that the images came in,
            where ``images=True`` was said.
        labels: true classes, int32 (N,).
        class_names: of the classes; empty where there are none.
        stages: of each image the attack of AutoAttack that broke it, ``.stages["autoattack", 8]``:
            "apgd", "apgd_targeted", "fab", "square"; "clean" where it is wrong without any,
            "stands" where all fail; strings (N,).
        passes: that each image took, ``.passes["autoattack", 8].gradients``, of AutoAttack and of
            its members; see ``Passes``.
        minimal: by network, the smallest epsilon that fools each image that ``cw_linf`` attacked,
            float32 (n,); 0 where it is wrong already, inf where none was found.
        minimal_indices: which images these are, (n,).
    """

    def __init__(
        self,
        measuring: Measuring,
        arrays: MemoryArrays,
        found: Found,
        images: Mapping[tuple[str, str], Any] | None = None,
        as_given: Callable[[np.ndarray], np.ndarray] = lambda images: images,
    ):
        self._measuring, self._arrays, self._found = measuring, arrays, found
        self._content = measuring.content(found)
        plan = measuring.plan
        every = {CLEAN: Attack.clean(), **plan.asked.every}
        self.labels = found.labels[: plan.count]
        self.class_names = plan.given.class_names
        self.minimal, self.minimal_indices = dict(found.minimal), found.minimal_indices
        accuracies = {
            Cell(r["target"], r["source"], r["attack"], r["epsilon"]): r["accuracy"]
            for r in self._content["results"]
        }
        predicted = {c: seen for c, seen in found.predicted.items() if c.target in plan.targets}
        self.accuracy: ByAttack[float] = ByAttack(list(accuracies), accuracies.__getitem__, every)
        self.predictions: ByAttack[np.ndarray] = ByAttack(
            list(predicted), lambda cell: predicted[cell].astype(np.int32), every
        )
        self.passes: ByAttack[Passes] = ByAttack(
            list(found.told), lambda cell: _passes(found.told[cell]), every
        )
        broken = {cell: told for cell, told in found.told.items() if told.stages is not None}
        self.stages: ByAttack[np.ndarray] = ByAttack(
            list(broken), lambda cell: _names(broken[cell], every[cell.attack]), every
        )
        self._every, self._images, self._as_given = every, images, as_given

    @property
    def images(self) -> ByAttack[np.ndarray]:
        """The adversarial images, where ``images=True`` was said."""
        if self._images is None:
            raise AttributeError("the images were not kept; say evaluate(..., images=True)")
        made = dict.fromkeys(
            cell._replace(target=cell.source) for cell in self._found.predicted if cell.source
        )

        def of(cell: Cell) -> np.ndarray:
            versions = self._images[cell.source, cell.attack]
            place = self._every[cell.attack].epsilons.index(cell.epsilon)
            return self._as_given(versions[place])

        return ByAttack(list(made), of, self._every)

    @property
    def worst_case(self) -> dict:
        """Accuracy in per cent under all attacks together, by epsilon.

        An image counts if it is classified correctly under every one. With several networks the
        keys are (network, epsilon).
        """
        several = len(self._measuring.plan.targets) > 1
        return {
            (r["target"], r["epsilon"]) if several else r["epsilon"]: r["accuracy"]
            for r in self._content["worst_case"]
        }

    @property
    def black_box(self) -> dict | None:
        """What the sources leave of each model, and what they are to it; None without sources.

        As report.json has it: ``marks`` (is a source seen in a model's training, of the same
        family, unseen), ``results`` and, for each image by the worst of the sources, ``worst``;
        each also counted, in ``all_correct``, among the images that every network classifies
        correctly when clean.
        """
        return copy.deepcopy(self._content["black_box"])

    @property
    def diagnosis(self) -> list[str]:
        """Whether the numbers can be trusted: a sentence for each finding, or that there is none.

        What puts all numbers in doubt is there though ``diagnosis_images`` is 0.
        """
        found = self._content["diagnosis"]
        return list(found["sentences"] if found else self._content["warnings"])

    @property
    def checklist(self) -> list[checklist.Item]:
        """What the numbers have to stand: PASS, FAIL or NOT TRIED, each with its number."""
        return [checklist.Item(**record) for record in self._content["checklist"]]

    def per_class(self, *key: Any) -> dict[Any, Counted]:
        """Return the counts of each class that there are images of, by its name or number.

        Args:
            *key: as of ``accuracy``: ``per_class("pgd", 8)``, ``per_class("clean")``.
        """
        seen = self.predictions[key]
        names = self.class_names
        counted = {}
        for number in np.unique(self.labels):
            right = seen[self.labels == number] == number
            name = names[number] if names else int(number)
            counted[name] = Counted(int(right.sum()), len(right), 100.0 * float(right.mean()))
        return counted

    def to_dict(self) -> dict:
        """Return what report.json holds."""
        return copy.deepcopy(self._content)

    def to_dataframe(self) -> Any:
        """Return a ``pandas.DataFrame``, a row for each network, attack and epsilon.

        Raises:
            ImportError: pandas is not installed.
        """
        try:
            import pandas
        except ImportError as error:
            raise ImportError("to_dataframe needs pandas: pip install pandas") from error
        rows = [{**row, "options": in_words(row["options"])} for row in self._content["results"]]
        return pandas.DataFrame(rows)

    def save(self, path: str | os.PathLike, *, confusion: bool = False, examples: int = 0) -> None:
        """Write a report as ``bin/evaluate`` does: tables, pictures and predictions.

        Args:
            path: a directory that is not there, or has a report of the same evaluation.
            confusion: draw a confusion matrix of each network, attack and epsilon.
            examples: draw so many misclassified images of each attack.

        Raises:
            InputError: something else is there, or it cannot be written.
        """
        report, measuring = Report(path), self._measuring
        with report.opened({**measuring.plan.config(), "versions": package_versions()}):
            disk = DiskArrays(report.arrays.path)
            for task in measuring.plan.tasks:
                for each in arrays_of(task):
                    array: Any = open_array(each, disk)  # a map
                    array[...] = open_array(each, self._arrays)
                    array.flush()
            measuring.write(
                report, self._found, self._content, confusion=confusion, examples=examples
            )

    def __str__(self) -> str:
        import rich.console

        width = shutil.get_terminal_size((100, 24)).columns
        # In a notebook rich would show the table instead, and leave the text empty.
        text = io.StringIO()
        console = rich.console.Console(
            file=text, width=width, highlight=False, color_system=None, force_jupyter=False
        )
        tables.print_report(self._content, console)
        return text.getvalue().rstrip("\n")

    def __repr__(self) -> str:
        plan = self._measuring.plan
        return f"<Measured {', '.join(plan.targets)}: {plan.count} images; print it for its table>"

    def _repr_markdown_(self) -> str:
        return tables.short_markdown(self._content)
