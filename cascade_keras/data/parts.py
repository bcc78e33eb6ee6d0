"""A dataset of the user's own at its origin: its two parts, and how one is split off the other."""

from __future__ import annotations

import abc
import re
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:  # it takes as long as all else that --help needs
    import numpy as np

_LONGEST_NAME = 60


class Part(NamedTuple):
    """The images of one split as they lie at their origin.

    Attributes:
        labels: (n,) int32.
        images: yields them from the one with this index on, in order, some at a time: uint8
            (k, height, width, channels) of the size that is asked for.
    """

    labels: np.ndarray
    images: Callable[[int], Iterator[np.ndarray]]


class Form(abc.ABC):
    """A dataset at its origin.

    Attributes:
        name: what it is called in records.
        image_shape: (height, width, channels) of the images as ``Part.images`` yields them.
        class_names: in order; empty where they have none.
        num_classes: as the data say.
    """

    name: str
    image_shape: tuple[int, int, int]
    class_names: tuple[str, ...] = ()
    num_classes: int

    @abc.abstractmethod
    def parts(self) -> tuple[Part, Part | None]:
        """Return the training and the test images; None where there are no test images."""

    def look(self) -> Sequence[str]:
        """Look at the images where that takes a look at all; return what a person should know.

        Raises:
            InputError: they are no images.
        """
        return ()

    @abc.abstractmethod
    def key(self) -> Any:
        """Return what the images follow from, as JSON: names, sizes and times of files."""


def recorded_name(text: str) -> str:
    """Return a name as a folder can have it: other characters than letters, digits, . + - are _."""
    name = re.sub(r"[^\w.+-]+", "_", text)[:_LONGEST_NAME].strip("._")
    return name or "data"


def split(labels: np.ndarray, part: float) -> np.ndarray:
    """Return which images the test split takes, (n,) bool: of each class evenly spaced ones.

    Of the images of a class, in their order, the j-th (from 1) is taken if floor(j * part) is more
    than floor((j - 1) * part): of n images floor(n * part), whatever else is in the dataset.
    """
    import numpy as np

    taken = np.zeros(len(labels), bool)
    for label in np.unique(labels):
        own = np.flatnonzero(labels == label)
        # Of 10 images 0.3 takes 3, though 10 * 0.3 is less than that in binary.
        before = np.floor(np.arange(len(own) + 1) * part + 1e-9)
        taken[own] = np.diff(before) > 0
    return taken
