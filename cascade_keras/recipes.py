"""The networks of the paper as data: one row each of its table 5, with what was published of it.

    bin/train --recipe=R20_P,C                        from Python: TrainingSettings.from_recipe
    bin/reproduce --table=2                           all networks of a table, and the table

*Groups.* Networks of one group start from the same weights, those of a short standard training
that belongs to no row: ``init-B`` is that of group B, 2 epochs of MNIST or 10 of CIFAR-10. A
cascade network is of its source's group; networks that others are attacked from are of another
group than these. The letters are table 5's.

*Cascade and ensemble* (tables 7 and 6) name the networks that have to be trained before.

*Names.* R20 is a 20-layer network on CIFAR-10, R20M one on MNIST; _K is Kurakin's training, _B the
bidirectional loss, _P the pivot loss, E ensemble, C cascade, and a 2 at the end the other group.
In folders the comma is a hyphen and the seed follows: runs/R20_P-C-s0.

*Time.* A step of a 20-layer network takes about 0.27 s on two cores, so the published schedules are
40 minutes on MNIST and 7 hours on CIFAR-10; ``bin/reproduce --dry_run`` measures it where it runs.
"""

from __future__ import annotations

import dataclasses
import difflib
import pathlib
import re
from typing import Any

from cascade_keras.data.specs import DatasetSpec, look_up
from cascade_keras.errors import InputError, shown

GROUPS = "ABCDEFGHIJK"
INITIALISATION = "init-"  # how the names of the groups' initialisations begin
# Of an initialisation, by the recipe's own dataset.
_EPOCHS = {"mnist": 2, "cifar10": 10}
_BATCH = 128
_SEEDS_APART = 1000  # of two groups
_SMALL = {"digits": 8}  # layers on datasets that the paper does not have
_DEPTHS = (20, 56, 110)  # of the paper's networks
# At 20 layers networks of the deeper groups are those of these, which have the same recipes.
_SHALLOW_GROUP = {"F": "B", "G": "C", "H": "B", "I": "C", "J": "D", "K": "E"}


@dataclasses.dataclass(frozen=True)
class Recipe:
    """One network of the paper.

    Attributes:
        name: the paper's, such as "R20_P,C".
        dataset: that it learns.
        depth: layers of its ResNet.
        group: letter of the initialisation that it shares.
        loss: how it is defended.
        cascade: name of the network whose iterative images it is trained with.
        ensemble: names of the networks that one-step images come from beside itself.
        published: accuracies in per cent, white box unless it says otherwise; CW: of 100 images,
            how many need a larger epsilon.
    """

    name: str
    dataset: str
    depth: int
    group: str
    loss: str
    cascade: str | None = None
    ensemble: tuple[str, ...] = ()
    published: str = ""

    @property
    def is_initialisation(self) -> bool:
        """Whether it is what a group starts from instead of one of its networks."""
        return self.name.startswith(INITIALISATION)

    @property
    def initialisation(self) -> str | None:
        """The name of what it starts from; None for an initialisation."""
        return None if self.is_initialisation else INITIALISATION + self.group

    @property
    def needs(self) -> tuple[str, ...]:
        """The names of all that has to be trained before, in order."""
        before = (self.initialisation, self.cascade, *self.ensemble)
        return tuple(name for name in before if name is not None)


_ROWS = (
    # MNIST, 20 layers. Table 2: iter is iter_fgsm of epsilon 76.5; CW at it too.
    ("R20M", "mnist", 20, "A", "standard", None, (), "clean 99.6, iter 0.0, CW 0"),
    ("R20M_K", "mnist", 20, "A", "kurakin", None, (), "clean 99.6, iter 60.2, CW 46"),
    ("R20M_B", "mnist", 20, "A", "bidirectional", None, (), "clean 99.5, iter 88.5, CW 81"),
    ("R20M_P", "mnist", 20, "A", "pivot", None, (), "clean 99.5, iter 88.9, CW 82"),
    # CIFAR-10, 20 layers. Tables 1, 8 and 9: black box, epsilon 16, from the network named.
    ("R20", "cifar10", 20, "B", "standard", None, (), "iter from R20_2 2.7, from R20_K2 60.1"),
    ("R20_K", "cifar10", 20, "B", "kurakin", None, (), "iter from R20_2 55.8, from R20_K2 28.5"),
    ("R20_E", "cifar10", 20, "B", "kurakin", None, ("R20_3",), "no number"),
    ("R20_B", "cifar10", 20, "B", "bidirectional", None, (), "no number"),
    ("R20_P", "cifar10", 20, "B", "pivot", None, (), "step_fgsm from R20 58.1"),
    ("R20_K,C", "cifar10", 20, "B", "kurakin", "R20_P", (), "no number"),
    ("R20_P,E", "cifar10", 20, "B", "pivot", None, ("R20_3",), "no number"),
    ("R20_P,C", "cifar10", 20, "B", "pivot", "R20_P", (), "no number"),
    ("R20_2", "cifar10", 20, "C", "standard", None, (), "step_fgsm from R20 17.9, iter 4.1"),
    ("R20_K2", "cifar10", 20, "C", "kurakin", None, (), "step_fgsm from R20 65.0"),
    ("R20_P2", "cifar10", 20, "C", "pivot", None, (), "step_fgsm from R20 66.4"),
    ("R20_3", "cifar10", 20, "D", "standard", None, (), "a source"),
    ("R20_4", "cifar10", 20, "E", "standard", None, (), "a source"),
    # CIFAR-10, 56 layers, for figure 6.
    ("R56_K", "cifar10", 56, "F", "kurakin", None, (), "no number"),
    ("R56_P", "cifar10", 56, "F", "pivot", None, (), "no number"),
    ("R56_K2", "cifar10", 56, "G", "kurakin", None, (), "no number"),
    # CIFAR-10, 110 layers. Table 3: clean, iter and CW at epsilon 4.
    ("R110", "cifar10", 110, "H", "standard", None, (), "a source"),
    ("R110_K", "cifar10", 110, "H", "kurakin", None, (), "clean 92.3, iter 9.2, CW 4"),
    ("R110_P", "cifar10", 110, "H", "pivot", None, (), "clean 92.3, iter 20.9, CW 7"),
    ("R110_E", "cifar10", 110, "H", "kurakin", None, ("R110_3",), "clean 92.3, iter 21.1, CW 6"),
    ("R110_K,C", "cifar10", 110, "H", "kurakin", "R110_P", (), "clean 92.3, iter 33.4, CW 5"),
    ("R110_P,E", "cifar10", 110, "H", "pivot", None, ("R110_3",), "clean 91.3, iter 38.3, CW 16"),
    ("R110_P,C", "cifar10", 110, "H", "pivot", "R110_P", (), "clean 91.5, iter 42.5, CW 15"),
    # The sources of table 4. Table 10: black box, the worst over the seven networks of group H.
    ("R110_2", "cifar10", 110, "I", "standard", None, (), "a source"),
    ("R110_K2", "cifar10", 110, "I", "kurakin", None, (), "worst iter 41.0"),
    ("R110_E2", "cifar10", 110, "I", "kurakin", None, ("R110_4",), "worst iter 39.5"),
    ("R110_P2", "cifar10", 110, "I", "pivot", None, (), "worst iter 44.3"),
    ("R110_K,C2", "cifar10", 110, "I", "kurakin", "R110_P2", (), "worst iter 39.0"),
    ("R110_P,E2", "cifar10", 110, "I", "pivot", None, ("R110_4",), "worst iter 45.5"),
    ("R110_P,C2", "cifar10", 110, "I", "pivot", "R110_P2", (), "worst iter 40.9"),
    ("R110_3", "cifar10", 110, "J", "standard", None, (), "a source"),
    ("R110_4", "cifar10", 110, "K", "standard", None, (), "a source"),
)  # fmt: skip
# The rows by their names.
RECIPES: dict[str, Recipe] = {row[0]: Recipe(*row) for row in _ROWS}
# What the groups start from, by names such as "init-B".
INITIALISATIONS: dict[str, Recipe] = {
    name: Recipe(name, row.dataset, row.depth, row.group, "standard")
    for name, row in ((INITIALISATION + row.group, row) for row in RECIPES.values())
}


def find(name: str, depth: int | None = None) -> Recipe:
    """Return a network, or what a group starts from, by its name.

    Args:
        depth: of the network that is to stand for it. The 20-layer networks of deeper ones are
            those that the paper has too, where it has them: R20_P stands for R110_P; where not,
            such as R20_P,C2 for R110_P,C2, one of the same recipe.

    Raises:
        InputError: there is none; the message names those that are meant most likely.
    """
    known = {**RECIPES, **INITIALISATIONS}
    if name not in known:
        near = difflib.get_close_matches(name, known, 3, 0.5)
        mean = f"did you mean {' or '.join(near)}? There are " if near else "must be one of "
        raise InputError(f"{shown(name)} is no network of the paper; {mean}{', '.join(known)}",
                         "recipe")  # fmt: skip
    return _shallow(known[name]) if depth == _DEPTHS[0] else known[name]


def _shallow(recipe: Recipe) -> Recipe:
    """Return what stands for a network at 20 layers."""
    if recipe.group not in _SHALLOW_GROUP:
        return recipe
    group = _SHALLOW_GROUP[recipe.group]
    if recipe.is_initialisation:
        return INITIALISATIONS[INITIALISATION + group]
    name = _shallow_name(recipe.name)
    if name in RECIPES:
        return RECIPES[name]
    return dataclasses.replace(
        recipe,
        name=name,
        depth=_DEPTHS[0],
        group=group,
        cascade=recipe.cascade and _shallow_name(recipe.cascade),
        ensemble=tuple(map(_shallow_name, recipe.ensemble)),
        published=f"that of {recipe.name} at {recipe.depth} layers: {recipe.published}",
    )


def _shallow_name(name: str) -> str:
    return re.sub(r"^R\d+", f"R{_DEPTHS[0]}", name)


def folder(name: str, seed: int = 0) -> str:
    """Return the name of a network's run."""
    return f"{name.replace(',', '-')}-s{seed}"


def settings_of(
    recipe: str | Recipe,
    *,
    seed: int = 0,
    runs_dir: str = "runs",
    dataset: str | None = None,
    depth: int | None = None,
    scale: float = 1.0,
) -> dict[str, Any]:
    """Return the fields of ``TrainingSettings`` that a network is trained with, by their names.

    Args:
        recipe: a network, or its name.
        seed: which repetition; networks of other groups are another 1000 apart.
        runs_dir: where the run and those that it needs are.
        dataset: in place of the paper's. On digits networks have 8 layers.
        depth: of the network, in place of the paper's.
        scale: the schedule is shortened to this share: steps, boundaries and warm-up.

    Raises:
        InputError: there is no such recipe or dataset.
    """
    recipe = find(recipe, depth) if isinstance(recipe, str) else recipe
    row = look_up(dataset or recipe.dataset)
    layers = depth or _SMALL.get(row.name, recipe.depth)
    runs = pathlib.PurePath(runs_dir)
    values: dict[str, Any] = {
        "dataset": row.name,
        "model": f"resnet{layers}",
        "loss": recipe.loss,
        "seed": seed + _SEEDS_APART * GROUPS.index(recipe.group),
        "name": folder(recipe.name, seed),
        "runs_dir": runs_dir,
        **_schedule(recipe, row, scale),
    }
    if recipe.initialisation:
        values["init_from"] = str(runs / folder(recipe.initialisation, seed))
    for setting, names in (
        ("cascade_source", (recipe.cascade,) if recipe.cascade else ()),
        ("ensemble_source", recipe.ensemble),
    ):
        if names:
            values[setting] = tuple(str(runs / folder(name, seed)) for name in names)
    return values


def _schedule(recipe: Recipe, row: DatasetSpec, scale: float) -> dict[str, Any]:
    """Return the fields that say how long, as far as they are not the dataset's own."""
    if scale == 1 and not recipe.is_initialisation:
        return {}
    whole, rates = row.steps, {}
    if recipe.is_initialisation:
        whole, rates = _EPOCHS[recipe.dataset] * row.examples / _BATCH, {"lr_boundaries": ()}
    steps = max(1, round(whole * scale))
    if row.warmup_steps and scale != 1:
        # Boundaries follow from the steps; a warm-up would not be shortened with them.
        rates["warmup_steps"] = min(round(row.warmup_steps * scale), steps // 5)
    return {"steps": steps, **rates}
