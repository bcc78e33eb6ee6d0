"""One row a loss: what becomes of a batch, and which distance is added; needs no TensorFlow.

A loss is added by one row::

    losses.register(LossSpec("my_loss", JOINED, distance=my_distance))
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable

from cascade_keras.lazy import resolve

# What becomes of the k images of a batch that are attacked.
NONE = "none"  # there are none: clean images only
REPLACED = "replaced"  # adversarial images take their place
JOINED = "joined"  # adversarial images join them, so that every pair is in the batch
IMAGES = (NONE, REPLACED, JOINED)


@dataclasses.dataclass(frozen=True)
class LossSpec:
    """How a network is defended.

    Attributes:
        name: on flags and in records.
        images: one of ``IMAGES``.
        distance: (adversarial, clean, norm) -> scalar, of the embeddings of the pairs, or
            "module:name" below this package, imported on first use; None without one. To be trained
            with sample or class weights, it takes ``weights`` (k,) too: one for each pair.
        pivot: whether the clean embedding is a constant for the distance, so that the guard that
            keeps embeddings from growing is needed.
        help: what happens to a batch, for flags and tables.
    """

    name: str
    images: str
    distance: Callable | str | None = None
    pivot: bool = False
    help: str = ""

    def __post_init__(self) -> None:
        if self.images not in IMAGES:
            raise ValueError(f"images {self.images!r} is none of {', '.join(IMAGES)}")
        if self.distance is not None and self.images != JOINED:
            raise ValueError(f"loss {self.name!r}: a distance needs pairs, images={JOINED!r}")

    @property
    def attacks(self) -> bool:
        """Whether a batch has adversarial images."""
        return self.images != NONE

    @property
    def pairs(self) -> bool:
        """Whether the clean partners of the adversarial images stay in the batch."""
        return self.images == JOINED

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


for _row in (
    LossSpec("standard", NONE, help="nothing: clean images only"),
    LossSpec("kurakin", REPLACED, help="half of the images are replaced by adversarial ones"),
    LossSpec(
        "bidirectional",
        JOINED,
        "terms:bidirectional_distance",
        help="adversarial images join their clean ones; their embeddings are pulled together",
    ),
    LossSpec(
        "pivot",
        JOINED,
        "terms:pivot_distance",
        pivot=True,
        help="the same, but only the adversarial embedding moves",
    ),
):
    register(_row)
