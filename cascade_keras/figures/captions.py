"""What captions say of numbers and of networks."""

from __future__ import annotations

import pathlib
from collections.abc import Sequence

import msgspec
import numpy as np

from cascade_keras.attacks.specs import Attack
from cascade_keras.errors import InputError
from cascade_keras.losses.specs import LOSSES
from cascade_keras.provenance import Recipe, version_of
from cascade_keras.sources import Source

SAME, OTHER, UNKNOWN = "same initialisation", "other initialisation", "initialisation not recorded"


def recipe_of(network: Source) -> Recipe | None:
    """Return what is recorded of a network's training, None where nothing is.

    Raises:
        InputError: what is recorded cannot be true.
    """
    recipe = network.provenance.get("recipe")
    if not recipe:
        return None
    try:
        return msgspec.convert(recipe, Recipe)
    except msgspec.ValidationError as error:
        raise InputError(f"{network} records a recipe that cannot be ({error})", "model") from error


def on_one_line(text: str) -> str:
    """Return text as a caption shows it: names may have line ends and control characters."""
    return "".join(c if c.isprintable() else "\ufffd" for c in " ".join(text.split()))


def numbers(values: Sequence[float]) -> str:
    """Return "2, 4, 8", or "-16 to 16 in steps of 4"."""
    steps = set(np.diff(values))
    if len(values) > 4 and len(steps) == 1:
        return f"{values[0]:g} to {values[-1]:g} in steps of {steps.pop():g}"
    return ", ".join(f"{value:g}" for value in values)


def listed(attacks: Sequence[Attack]) -> str:
    """Return the attacks with their options: "step_ll, pgd (steps 40, restarts 5, ...)"."""
    return ", ".join(map(str, attacks))


def standard_error(count: int) -> str:
    """Say how far accuracies of so few images may be off."""
    return f"The standard error of an accuracy is at most {50 / count**0.5:.1f} percentage points."


def has_distance(loss: str | None) -> bool:
    """Whether a loss has a distance, and so a lambda_2 that matters."""
    return loss in LOSSES and LOSSES[loss].distance is not None


def training(network: Source) -> str:
    """Say what is recorded of a network's training."""
    recipe = recipe_of(network)
    if recipe is None:
        return "its training is not recorded"
    parts = [
        recipe.model,
        f"{recipe.loss} loss",
        has_distance(recipe.loss) and f"lambda_2 {recipe.distance_weight}",
        f"{recipe.steps} steps",
        f"seed {recipe.seed}",
    ]
    for name in ("cascade", "ensemble"):
        sources = getattr(recipe, f"{name}_source")
        if sources:
            parts.append(f"{name} from {', '.join(map(_place_name, sources))}")
    start = recipe.init_from
    parts.append(f"initialised from {_place_name(start)}" if start else "initialised at random")
    return ", ".join(part for part in parts if part)


def _place_name(path: str) -> str:
    """Return what people call the network at a path, which need not exist any more."""
    place = pathlib.PurePath(path)
    if place.name == "model.keras" or version_of(place.name) is not None:
        place = place.parent
    return place.name.removesuffix(".keras")


def _initialisation(network: Source) -> tuple | None:
    """Return what a network's first weights were, None where it is not recorded."""
    recipe = recipe_of(network)
    if recipe is None:
        return None
    if recipe.init_from:
        return ("network", _place_name(recipe.init_from))
    return ("seed", recipe.seed, recipe.model, recipe.dataset)


def compare_initialisation(first: Source, second: Source) -> str:
    """Return ``SAME``, ``OTHER`` or ``UNKNOWN``; a network and its own start are the same."""
    one, other = _initialisation(first), _initialisation(second)
    if one is None or other is None:
        return UNKNOWN
    same = one == other or one == ("network", second.name) or other == ("network", first.name)
    return SAME if same else OTHER
