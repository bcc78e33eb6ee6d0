"""How figures look: colours, lines, a look for each attack; and how one is written.

Figures are drawn through matplotlib's objects, never through pyplot, so no display is needed and
the caller's own figures and settings stay as they are. Colours are safe for colour-blind readers,
and lines also differ in dashes and markers. No figure has a title: that is the caption's. Epsilons
are in 0..255 units, accuracies in per cent. TensorFlow is not imported.
"""

from __future__ import annotations

import itertools
import os
import pathlib

import matplotlib
import matplotlib.style
from matplotlib.figure import Figure

from cascade_keras.attacks.specs import ATTACKS, CLEAN_STYLE, look_up
from cascade_keras.files import write_atomically

# Okabe and Ito's palette, those that stand out most on white paper first.
PALETTE = (
    "#0072B2",
    "#D55E00",
    "#009E73",
    "#E69F00",
    "#CC79A7",
    "#56B4E9",
    "#000000",
    "#F0E442",
)
# 8 colours, 5 kinds of dashes and 7 markers: 280 lines before two of them look the same.
DASHES = ("-", (0, (5, 1.5)), (0, (3, 1, 1, 1)), (0, (1.5, 1)), (0, (7, 1, 1, 1, 1, 1)))
_MARKERS = "os^Dv*P"
COLOURS = "cividis"  # of cells and surfaces

STYLE = {
    "figure.dpi": 150,
    "savefig.dpi": "figure",
    "font.size": 8,
    "axes.labelsize": 8,
    "xtick.labelsize": 8,
    "ytick.labelsize": 8,
    "legend.fontsize": 8,
    "legend.frameon": False,
    "axes.linewidth": 0.6,
    "axes.grid": False,
    "hatch.linewidth": 0.5,
    "lines.linewidth": 1.3,
    "lines.markersize": 4,
    "pdf.fonttype": 42,  # text stays text; conferences refuse Type 3
}
FORMATS = ("png", "pdf")


def styled():
    """Return the settings of every figure, whatever a matplotlibrc says; undone at the end.

    A context, or a decorator of a function that makes a figure.
    """
    return matplotlib.style.context(["default", STYLE])


def save(figure: Figure, path: str | os.PathLike) -> None:
    """Write a figure, whole or not at all.

    Raises:
        ValueError: the path is neither a .png nor a .pdf.
        OSError: the file cannot be written; what was there before still is.
    """
    path = pathlib.Path(path)
    kind = path.suffix.lower().removeprefix(".")
    if kind not in FORMATS:
        raise ValueError(f"a figure is a .png or a .pdf, not {path.name}")
    # Without its date, a PDF of the same numbers is the same file.
    metadata = {"CreationDate": None} if kind == "pdf" else {}
    with styled():
        write_atomically(
            path, lambda partial: figure.savefig(partial, format=kind, metadata=metadata)
        )


def colour(index: int) -> str:
    """Return the colour of the network or attack of this index, the same in every figure."""
    return PALETTE[index % len(PALETTE)]


def line_style(index: int) -> dict[str, object]:
    """Return keywords of ``Axes.plot`` that tell line ``index`` from others, without colour too.

    Returns:
        color, linestyle, marker, markeredgecolor and markeredgewidth.
    """
    return {
        "color": colour(index),
        "linestyle": DASHES[index % len(DASHES)],
        "marker": _MARKERS[index % len(_MARKERS)],
        "markeredgecolor": "white",
        "markeredgewidth": 0.4,
    }


def attack_style(name: str) -> dict[str, object]:
    """Return as ``line_style`` what an attack, or "clean", looks like in every figure.

    An attack whose row names no style has the next look that is free, as long as the process lives.

    Raises:
        ValueError: there is no such attack.
    """
    if name == "clean":
        return line_style(CLEAN_STYLE)
    own = look_up(name).style
    return line_style(_looks_without_style()[name] if own is None else own)


_given: dict[str, int] = {}


def _looks_without_style() -> dict[str, int]:
    """Return the place of each attack without one of its own, in the order they were registered."""
    taken = {CLEAN_STYLE, *_given.values(), *(spec.style for spec in ATTACKS.values())}
    free = (place for place in itertools.count() if place not in taken)
    for name, spec in ATTACKS.items():
        if spec.style is None and name not in _given:
            _given[name] = next(free)
    return _given
