"""What a figure is made of: its settings, and what they are with the figure's own defaults."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence

from cascade_keras.attacks import specs as attack_specs
from cascade_keras.attacks.specs import ATTACKS, Attack
from cascade_keras.data.settings import DataSettings
from cascade_keras.data.specs import DatasetSpec
from cascade_keras.errors import InputError
from cascade_keras.figures.kinds import (
    FIGURES,
    LARGEST_EPSILON,
    FigureSpec,
    defaults_in_words,
    particular,
    takers,
)
from cascade_keras.settings import (
    POSITIVE,
    SEED,
    SOME,
    NetworkSettings,
    Rule,
    check_apart,
    items_of,
    number,
    setting,
    trust_setting,
)


def parse_epsilons(text: str) -> tuple[float, ...]:
    """Return the epsilons that 1..16 or -2,0.5,4..8 means, ascending.

    Raises:
        ValueError: it means none.
        InputError: an item is empty.
    """
    found: list[float] = []
    for part in items_of(text):
        first, dots, last = part.partition("..")
        if not dots:
            found.append(number(float, part))
            continue
        least, most = number(int, first), number(int, last)
        # A long range would fill the memory before it is refused.
        if not -LARGEST_EPSILON <= least <= most <= LARGEST_EPSILON:
            raise ValueError(part)
        found += map(float, range(least, most + 1))
    if not _are_epsilons(found):
        raise ValueError(text)
    return tuple(sorted(found))


def _are_epsilons(values: Sequence[float]) -> bool:
    return bool(values) and all(math.isfinite(e) and abs(e) <= LARGEST_EPSILON for e in values)


def _ascending(epsilons: Sequence[float]) -> tuple[float, ...]:
    return tuple(sorted({float(epsilon) + 0.0 for epsilon in epsilons}))  # -0.0 is 0


_EPSILONS = Rule(_are_epsilons, "a range such as 0..16 or numbers in -255..255 such as 2,4,8")
_INDICES = Rule(lambda v: bool(v) and min(v) >= 0, "whole numbers from 0")


def _default(attack: str, option: str) -> str:
    return f"Default: {ATTACKS[attack].options[option]}."


@dataclasses.dataclass(frozen=True)
class FigureSettings(NetworkSettings, DataSettings):
    """What is drawn, of which networks and images; None is what the figure or the attack has."""

    figure: str | None = setting(None, "What to draw.", choices=lambda: FIGURES)
    model: tuple[str, ...] = setting(
        (),
        "The networks, in the order they are drawn: saved networks, runs or .keras files.",
        path=True,
    )
    trust_source: bool = trust_setting()
    split: str = setting("test", "Of the dataset.", choices=("test", "train"))
    output: str = setting("figures", "Directory of NAME.png, .pdf, .txt and .npz.", path=True)
    num_images: int | None = setting(
        None, f"Default: {defaults_in_words(lambda spec: spec.images)}.", POSITIVE
    )
    image_index: tuple[int, ...] | None = setting(
        None,
        f"{', '.join(takers('image_index'))}: which images of the split, instead of some.",
        _INDICES,
    )
    seed: int = setting(0, "Of the choice of images, step_rand and pgd.", SEED)
    epsilons: tuple[float, ...] | None = setting(
        None,
        "Such as 0..16, -16..16 or 0,0.5,1..4; default: some up to the dataset's largest, or 255 "
        "for accuracy_curve. loss_surface: along both axes; cw_distribution: what is marked.",
        _EPSILONS,
        parse=parse_epsilons,
    )
    attack: tuple[str, ...] | None = setting(
        None,
        f"Default: {defaults_in_words(lambda spec: spec.attacks)}.",
        SOME,
        choices=attack_specs.image_attacks,
        why=attack_specs.why_not_measured,
    )
    pgd_steps: int | None = setting(
        None, f"Of each start of pgd. {_default('pgd', 'steps')}", POSITIVE
    )
    pgd_restarts: int | None = setting(
        None, f"Random starts; the worst counts. {_default('pgd', 'restarts')}", POSITIVE
    )
    cw_search: str | None = setting(
        None,
        "descent: down from the best so far; grid: the published one, hours. "
        f"{_default('cw_linf', 'search')}",
        choices=("descent", "grid"),
    )
    cw_iterations: int | None = setting(
        None, f"At most, for each constant and tau. {_default('cw_linf', 'iterations')}", POSITIVE
    )


def check_options(settings: FigureSettings, spec: FigureSpec) -> None:
    """Refuse what was chosen and the figure does not use."""
    for name in particular():
        if getattr(settings, name, None) is not None and name not in spec.takes:
            raise InputError(f"{spec.name} does not use it; {', '.join(takers(name))} does", name)
    if settings.image_index is not None and settings.num_images is not None:
        raise InputError("names the images itself; leave out num_images", "image_index")
    check_apart("output", settings.output, model=settings.model)


def epsilons_of(
    settings: FigureSettings, spec: FigureSpec, dataset: DatasetSpec
) -> tuple[float, ...]:
    """Return the epsilons that are shown, ascending, the figure's own where none are given."""
    epsilons = _ascending(settings.epsilons or spec.epsilons(dataset))
    if epsilons[0] < spec.lowest or (spec.above_zero and epsilons[0] <= 0):
        least = "above 0" if spec.above_zero else f"{spec.lowest:g} or above"
        raise InputError(f"{spec.name} needs them {least}, got {epsilons[0]:g}", "epsilons")
    return epsilons


def attacks_of(
    settings: FigureSettings, spec: FigureSpec, epsilons: tuple[float, ...]
) -> tuple[Attack, ...]:
    """Return the attacks that are shown; a setting ATTACK_OPTION is an attack's option."""
    names = settings.attack or spec.attacks
    if spec.single and len(names) > 1:
        raise InputError(f"{spec.name} shows one attack; name one", "attack")
    rows = map(attack_specs.look_up, attack_specs.names(*spec.attack_kinds))
    both_sides = epsilons[0] < 0
    possible = [row.name for row in rows if not (row.leaves_ball or (row.started and both_sides))]
    attacks = []
    for name in names:
        if name not in possible:
            raise InputError(
                f"{spec.name} does not show {name}; name some of {', '.join(possible)}", "attack"
            )
        given = {
            option: getattr(settings, f"{name}_{option}", None)
            for option in attack_specs.look_up(name).options
        }
        chosen = {option: value for option, value in given.items() if value is not None}
        attacks.append(Attack(name, epsilons, chosen))
    return tuple(attacks)


def set_options(attack: Attack) -> dict:
    """Return the options but those that are left to the attack's own rule."""
    return {name: value for name, value in attack.options.items() if value is not None}
