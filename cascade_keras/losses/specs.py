"""One row a loss: what becomes of a batch, and which distance is added; needs no TensorFlow.

A loss is added by one row::

    losses.register(LossSpec("my_loss", JOINED, distance=my_distance))

What a training is not told follows from the row of its loss: see ``settled``.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Mapping
from typing import Any

from cascade_keras.attacks import specs as attacks
from cascade_keras.errors import InputError
from cascade_keras.lazy import resolve

# What becomes of the k images of a batch that are attacked.
NONE = "none"  # there are none: clean images only
REPLACED = "replaced"  # adversarial images take their place
JOINED = "joined"  # adversarial images join them, so that every pair is in the batch
IMAGES = (NONE, REPLACED, JOINED)

# Of a pair's embeddings; the functions are distances.DISTANCES.
DISTANCES = ("l2", "l1", "softmax", "nuclear")
OF_NORMS = {1: "l1", 2: "l2"}  # what the paper's N, its norm, is among these
CONSTANT, MOVES = "constant", "moves"  # what the clean embedding is for the distance
RAMPS = ("constant", "linear", "late")  # of lambda_2 over a training; see terms.ramp
GUARDED, UNGUARDED = "fixed_scale", "none"

# What a training is where neither it nor its loss's row says otherwise: the paper's.
DEFAULTS: Mapping[str, Any] = {
    "attack": "step_ll",
    "adversarial_weight": 0.3,
    "distance_weight": 1e-4,
    "distance": "l2",
    "pivot_guard": GUARDED,
    "epsilon_sampling": "clipped_normal",
}


@dataclasses.dataclass(frozen=True)
class LossSpec:
    """How a network is defended.

    Attributes:
        name: on flags and in records.
        images: one of ``IMAGES``.
        distance: (adversarial, clean, norm) -> scalar, of the embeddings of the pairs, or
            "module:name" below this package, imported on first use; None without one. To be trained
            with sample or class weights, it takes ``weights`` (k,) too: one for each pair.
        pivot: whether the clean embedding is a constant for the distance.
        averaged: whether the distance is the mean over the pairs instead of the sum.
        distances: the names of ``DISTANCES`` that its function takes as ``norm``: 2 and 1 for l2
            and l1, the others as they are.
        opposite: a loss that differs in ``pivot`` alone, so that this one is never that.
        defaults: of options that are not given, what differs from ``DEFAULTS``.
        help: what happens to a batch, for flags and tables.
    """

    name: str
    images: str
    distance: Callable | str | None = None
    pivot: bool = False
    averaged: bool = False
    distances: tuple[str, ...] = ("l2", "l1")
    opposite: str | None = None
    defaults: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    help: str = ""

    def __post_init__(self) -> None:
        if self.images not in IMAGES:
            raise ValueError(f"images {self.images!r} is none of {', '.join(IMAGES)}")
        if self.distance is not None and self.images != JOINED:
            raise ValueError(f"loss {self.name!r}: a distance needs pairs, images={JOINED!r}")
        unknown = sorted(set(self.defaults) - set(DEFAULTS))
        if unknown:
            raise ValueError(f"loss {self.name!r}: {unknown[0]!r} is not of {', '.join(DEFAULTS)}")

    @property
    def attacks(self) -> bool:
        """Whether a batch has adversarial images."""
        return self.images != NONE

    @property
    def pairs(self) -> bool:
        """Whether the clean partners of the adversarial images stay in the batch."""
        return self.images == JOINED

    @property
    def clean_embedding(self) -> str | None:
        """What the clean embedding is where nothing is said; None without a distance."""
        if self.distance is None:
            return None
        return CONSTANT if self.pivot else MOVES

    def default(self, option: str) -> Any:
        """Return what an option of ``DEFAULTS`` is where it is not given."""
        return {**DEFAULTS, **self.defaults}[option]

    def resolve(self) -> Callable | None:
        """Return the distance's function, importing it where the row only names it."""
        return resolve(self.distance, __package__)


ROUNDING = 1e-6  # 0.29 of 100 images are 29, in binary fractions too


def cascade_count(attacked: int, share: float) -> int:
    """Return how many of a batch's adversarial images are cascade images: whole ones, no more.

    Args:
        attacked: k, the adversarial images of the batch.
        share: of these, above 0 and at most 1.
    """
    return math.floor(attacked * share + ROUNDING)


# The rows by their names; ``register`` adds one.
LOSSES: dict[str, LossSpec] = {}


def register(spec: LossSpec) -> LossSpec:
    """Add a loss's row.

    Raises:
        ValueError: its name is taken.
    """
    if spec.name in LOSSES:
        raise ValueError(f"there is a loss {spec.name!r} already")
    LOSSES[spec.name] = spec
    return spec


def default_in_words(option: str) -> str:
    """Return an option's default, and that of each loss with another: "0.3; 0 for loss guided"."""

    def said(value: Any) -> str:
        return f"{value:g}" if isinstance(value, float) else str(value)

    usual = DEFAULTS[option]
    others = {name: row.default(option) for name, row in LOSSES.items()}
    own = [f"{said(value)} for loss {name}" for name, value in others.items() if value != usual]
    return "; ".join([said(usual), *own])


def settled(loss: str, given: Mapping[str, Any]) -> dict[str, Any]:
    """Return the options of a training that are None, as the rows of its loss and attack have them.

    Args:
        loss: the name of a row.
        given: by their names the options of ``DEFAULTS``, and clean_embedding, start, guide,
            guide_alternates, distance_ramp and sparsity.

    Raises:
        InputError: options that do not go together.
    """
    row = LOSSES[loss]
    found = {option: row.default(option) for option in DEFAULTS if given[option] is None}
    distance = given["distance"] or found["distance"]
    if distance == "softmax" and given["pivot_guard"] is None:
        found["pivot_guard"] = UNGUARDED
    if given["clean_embedding"] is None:
        found["clean_embedding"] = row.clean_embedding
    attack = attacks.ATTACKS[given["attack"] or found["attack"]]
    if given["start"] is None:
        found["start"] = attack.options["start"] if attack.guided else None
    _check_distance(row, distance, given)
    _check_attack(row, attack, given)
    return found


def _check_distance(row: LossSpec, distance: str, given: Mapping[str, Any]) -> None:
    clean, guard = given["clean_embedding"], given["pivot_guard"]
    if distance not in row.distances:
        measured = f"measures {' or '.join(row.distances)}" if row.distance else "measures none"
        raise InputError(f"{row.name} {measured}, got {distance}", "distance")
    if row.distance is None and clean is not None:
        raise InputError(f"{row.name} has no distance, so it has no meaning", "clean_embedding")
    if row.distance is None and given["distance_ramp"] != RAMPS[0]:
        raise InputError(f"{row.name} has no distance to weigh", "distance_ramp")
    if row.opposite and clean not in (None, row.clean_embedding):
        raise InputError(f"{clean} is the loss {row.opposite}; choose that", "clean_embedding")
    if guard == GUARDED and row.distance and distance == "softmax":
        raise InputError(
            "the softmax distance is bounded, so that embeddings need no guard; leave it out",
            "pivot_guard",
        )
    moving = (clean or row.clean_embedding) == MOVES
    if guard == GUARDED and moving and row.default("pivot_guard") == UNGUARDED:
        raise InputError("has a meaning only with clean_embedding constant", "pivot_guard")


def _check_attack(row: LossSpec, attack: attacks.AttackSpec, given: Mapping[str, Any]) -> None:
    if attack.guided and row.distance is None:
        raise InputError(
            f"{attack.name} ascends the distance of the loss, and {row.name} has none; choose "
            "another attack such as rs_fgsm, or another loss",
            "attack",
        )
    for option, unset in (("start", None), ("guide", 1.0), ("guide_alternates", True)):
        if not attack.guided and given[option] != unset:
            guided = [name for name, each in attacks.ATTACKS.items() if each.guided]
            raise InputError(f"has a meaning only with attack {' or '.join(guided)}", option)
    if given["sparsity"] < 100 and (attack.kind != attacks.ONE_STEP or attack.started):
        raise InputError(
            f"must be 100 with {attack.name}: one-step attacks from the image alone are sparse",
            "sparsity",
        )


for _row in (
    LossSpec("standard", NONE, help="nothing: clean images only"),
    LossSpec("kurakin", REPLACED, help="half of the images are replaced by adversarial ones"),
    LossSpec(
        "bidirectional",
        JOINED,
        "terms:bidirectional_distance",
        distances=DISTANCES,
        opposite="pivot",
        help="adversarial images join their clean ones; their embeddings are pulled together",
    ),
    LossSpec(
        "pivot",
        JOINED,
        "terms:pivot_distance",
        pivot=True,
        distances=DISTANCES,
        opposite="bidirectional",
        help="the same, but only the adversarial embedding moves",
    ),
    LossSpec(
        "guided",
        JOINED,
        "terms:bidirectional_distance",
        pivot=True,
        averaged=True,
        distances=DISTANCES,
        defaults={
            "attack": "guided",
            "adversarial_weight": 0.0,
            "distance_weight": 10.0,
            "distance": "softmax",
            "pivot_guard": UNGUARDED,
            "epsilon_sampling": "max",
        },
        help="as pivot, but the attack ascends the distance too, and only clean images are learned",
    ),
):
    register(_row)
