"""Text, legends and panels: every one gets its place, however long the names are."""

from __future__ import annotations

import functools
import re
from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.figure import Figure
from matplotlib.font_manager import FontProperties, findfont, get_font
from matplotlib.textpath import TextToPath
from matplotlib.ticker import NullFormatter

from cascade_keras.figures.style import STYLE

EPSILON = "epsilon, pixel values of 0..255"
PANEL = (2.1, 1.7)  # width and height in inches
NAME_ROOM = 1.7  # inches
_COLUMNS = 3  # of panels
_POINT = 1 / 72  # inches
LINE = 1.25 * STYLE["font.size"] * _POINT  # height of a line of text in inches
_BAND = {"alpha": 0.16, "linewidth": 0}


def fit(figure: Figure, axes: Axes, width: float, height: float, grid=(1, 1)) -> None:
    """Resize the figure until ``axes``, one of a (rows, columns) grid, has this size in inches.

    So all text, however long, gets its place beside the axes.
    """
    figure.set_size_inches(grid[1] * width + 8, grid[0] * height + 8)
    for _ in range(10):
        figure.get_layout_engine().execute(figure)
        size = figure.get_size_inches()
        missing = (width, height) - axes.get_position(original=True).size * size
        if np.abs(missing).max() < 0.01:
            break
        figure.set_size_inches(size + missing * (grid[1], grid[0]))


# Text.


def plain(text: str) -> str:
    """Return what matplotlib shows as it is, instead of reading formulas between dollar signs."""
    return _in_font(text).replace("$", r"\$")


@functools.lru_cache(maxsize=10_000)
def text_width(text: str) -> float:
    """Return the width in inches at the size of all text."""
    width, *_ = TextToPath().get_text_width_height_descent(_in_font(text), _font(), ismath=False)
    return width * _POINT


def _font() -> FontProperties:
    return FontProperties(family="DejaVu Sans", size=STYLE["font.size"])


@functools.cache
def _letters() -> frozenset[int]:
    return frozenset(get_font(findfont(_font())).get_charmap())


def _in_font(text: str) -> str:
    """Return text with a mark for what the font lacks, such as control characters in names."""
    return "".join(letter if ord(letter) in _letters() else "\ufffd" for letter in text)


def _words(text: str) -> list[str]:
    """Return pieces between which a line may be broken: names of networks rarely have spaces."""
    separator = r"(?: (?:→|->) |[-_/.,\s])"  # an arrow ends its line
    return re.findall(rf"[^-_/.,\s]*{separator}|[^-_/.,\s]+", " ".join(text.split()))


def widest_word(text: str) -> float:
    """Return the width in inches of the widest piece that stays in one line."""
    return max((text_width(word.rstrip()) for word in _words(text)), default=0)


def wrap(text: str, room: float) -> str:
    """Return plain text in lines of about equal length, none wider than ``room`` inches."""
    lines = _lines(text, room)
    widest = widest_word(text)
    for narrower in (0.5 * room, 0.6 * room, 0.7 * room, 0.8 * room, 0.9 * room):
        balanced = _lines(text, narrower) if widest <= narrower else []
        if len(balanced) == len(lines):
            lines = balanced
            break
    return "\n".join(plain(line.rstrip()) for line in lines)


def _lines(text: str, room: float) -> list[str]:
    """Return words in as few lines as possible; only one wider than ``room`` is cut."""
    lines = [""]
    for word in _words(text):
        if text_width(lines[-1] + word.rstrip()) > room:
            lines.append("")
        for letter in word:
            if text_width((lines[-1] + letter).rstrip()) > room:
                lines.append("")
            lines[-1] += letter
    return [line for line in lines if line] or [""]


# Curves, panels and what stands beside them.


def curve(axes: Axes, x: np.ndarray, mean: np.ndarray, spread, style: dict, number: int = 0):
    """Draw a line, with a light band of mean ± spread below it where there is one; return it."""
    mean = np.asarray(mean, float)  # float32 would round the bands' edges
    if spread is not None:
        axes.fill_between(x, mean - spread, mean + spread, color=style["color"], **_BAND)
    # Markers of different lines at different places, as far as the points allow.
    every = max(1, len(x) // 8)
    (line,) = axes.plot(x, mean, markevery=(number % every, every), **style)
    return line


def single_axes() -> tuple[Figure, Axes]:
    """Return a figure of one picture, and its axes."""
    figure = Figure(layout="constrained")
    axes = figure.add_subplot()
    axes.spines[["top", "right"]].set_visible(False)
    return figure, axes


def finish_axes(axes: Axes, handles: list, labels: list[str]) -> None:
    """Put the legend beside ``single_axes`` and size them."""
    height = _legend_beside(axes.figure, handles, labels, 2.6)
    fit(axes.figure, axes, 3.6, height)


def panels(names: Sequence[str], rows: int = 0, **shared) -> tuple[Figure, np.ndarray, list[Axes]]:
    """Make a panel for each name, side by side, or ``rows`` of them with the names on top.

    Returns:
        The figure, its grid (rows, columns) of panels, and those that are used.
    """
    columns = len(names)
    if not rows:
        rows = max(1, -(-len(names) // _COLUMNS))
        columns = max(1, -(-len(names) // rows))  # four are two by two
    figure = Figure(layout="constrained")
    grid = figure.subplots(rows, columns, squeeze=False, **shared)
    used = list(grid.flat)
    if len(names) % columns:
        used = used[: len(names)]
    for axes in grid.flat[len(used) :]:
        axes.set_visible(False)
    for axes, name in zip(used, names, strict=False):
        axes.set_title(wrap(name, PANEL[0]), fontsize=STYLE["font.size"], pad=4)
    for axes in used:
        axes.spines[["top", "right"]].set_visible(False)
    return figure, grid, used


def finish_panels(
    figure: Figure, grid: np.ndarray, handles: list, labels: Sequence[str], y_label: str = ""
) -> None:
    """Label the axes for all panels at once, put the legend beside them, and size them."""
    figure.supxlabel(EPSILON, fontsize=STYLE["font.size"])
    if y_label:
        figure.supylabel(y_label, fontsize=STYLE["font.size"])
    labels = [wrap(label, NAME_ROOM) for label in labels]
    height = _legend_beside(figure, handles, labels, grid.shape[0] * PANEL[1]) / grid.shape[0]
    fit(figure, grid[0, 0], PANEL[0], height, grid.shape)


def _legend_beside(figure: Figure, handles: list, labels: list[str], height: float) -> float:
    """Put the legend right of the axes; return their height, enlarged where the legend needs it."""
    figure.legend(handles, labels, loc="outside right upper")
    lines = sum(1 + label.count("\n") for label in labels)
    return max(height, lines * LINE + len(labels) * 0.06)


def write_decades(axis: Axis) -> None:
    """Write 0.01 instead of powers, which are formulas."""
    axis.set_major_formatter(lambda value, _: f"{value:g}")
    axis.set_minor_formatter(NullFormatter())
