"""The key of everything that is counted: which target saw which images."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

import numpy as np

CLEAN = "clean"  # no attack


class Cell(NamedTuple):
    """One evaluation.

    Attributes:
        target: the network that classifies.
        source: the network the images were made with; the target itself is a white box. None for
            clean images.
        attack: "clean" or an attack's label, which is its name unless the same attack was asked
            for with other options too.
        epsilon: in 0..255 units; 0 for clean images.
    """

    target: str
    source: str | None
    attack: str
    epsilon: float

    @classmethod
    def clean(cls, target: str) -> Cell:
        """Return that of a target's clean images."""
        return cls(target, None, CLEAN, 0.0)


# (n,) bool: whether the target classifies image i correctly. In all cells i counts the same test
# images; cells of different lengths are compared on the images they share, the first ones.
Correct = Mapping[Cell, np.ndarray]
