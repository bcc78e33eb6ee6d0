"""Pictures of results: arrays in, one .png or .pdf out.

Nothing is computed here about networks, and TensorFlow is not imported. Figures are drawn through
matplotlib's objects, never through pyplot, so no display is needed and the caller's own figures
and settings stay as they are. Each picture takes three steps: ``_draw_...`` builds the Figure,
``_fit`` sizes it around its contents, ``_save`` writes it, whole or not at all.

Colours are safe for colour-blind readers, and lines also differ in dashes and markers. No figure
has a title: that is the caption's. Epsilons are in 0..255 units, accuracies in per cent.
"""

from __future__ import annotations

import functools
import itertools
import os
import pathlib
import re
from collections.abc import Mapping, Sequence

import matplotlib
import matplotlib.style
import numpy as np
from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.colors import LogNorm
from matplotlib.figure import Figure
from matplotlib.font_manager import FontProperties
from matplotlib.lines import Line2D
from matplotlib.patches import Rectangle
from matplotlib.patheffects import withStroke
from matplotlib.textpath import TextToPath
from matplotlib.ticker import NullFormatter

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
_DASHES = ("-", (0, (5, 1.5)), (0, (3, 1, 1, 1)), (0, (1.5, 1)), (0, (7, 1, 1, 1, 1, 1)))
_MARKERS = "os^Dv*P"

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
# One look an attack, in every figure; the last ones are rare, and yellow is faint.
ATTACKS = (
    "step_ll",
    "step_fgsm",
    "step_rand",
    "iter_fgsm",
    "pgd",
    "iter_ll",
    "clean",
    "step_both",
    "iter_margin",
)
_COLOURS = "cividis"
_POINT = 1 / 72  # inches
_LINE = 1.25 * STYLE["font.size"] * _POINT
_NAME_ROOM = 1.7  # inches
_EPSILON = "epsilon, pixel values of 0..255"
_PANEL = (2.1, 1.7)  # width and height in inches
_COLUMNS = 3  # of panels
_BAND = {"alpha": 0.16, "linewidth": 0}
_UNATTACKED = {"color": "0.35", "linestyle": ":", "linewidth": 1}


def colour(index: int) -> str:
    """The colour of the network or attack of this index, the same in every figure."""
    return PALETTE[index % len(PALETTE)]


def line_style(index: int) -> dict[str, object]:
    """Keywords of ``Axes.plot`` that tell line ``index`` from others, in print without colour too.

    Returns:
        color, linestyle, marker, markeredgecolor and markeredgewidth.
    """
    return {
        "color": colour(index),
        "linestyle": _DASHES[index % len(_DASHES)],
        "marker": _MARKERS[index % len(_MARKERS)],
        "markeredgecolor": "white",
        "markeredgewidth": 0.4,
    }


def attack_style(name: str) -> dict[str, object]:
    """As ``line_style``, the same for this attack in every figure.

    Raises:
        ValueError: none of ``ATTACKS``.
    """
    return line_style(ATTACKS.index(name))


def heat_map(
    path: str | os.PathLike,
    values: np.ndarray,
    rows: Sequence[str],
    columns: Sequence[str],
    *,
    row_label: str,
    column_label: str,
    value_label: str = "accuracy, %",
) -> None:
    """Draw a table as colours from 0 to 100, with the lowest value of each column outlined.

    Args:
        path: what to write, .png or .pdf.
        values: (rows, columns) float, in per cent; NaN was not evaluated and is hatched.
        rows: names, such as those of sources or attacks.
        columns: names, such as those of targets.
        row_label: what the rows are.
        column_label: what the columns are.
        value_label: quantity and unit, at the colour bar.

    Raises:
        ValueError: values are not (rows, columns), or the suffix is another.
        OSError: the file cannot be written; what was there before still is.
    """
    figure = _draw_heat_map(values, rows, columns, row_label, column_label, value_label)
    _save(figure, path)


def distribution(
    path: str | os.PathLike,
    curves: Mapping[str, np.ndarray],
    *,
    thresholds: Sequence[float] = (),
) -> None:
    """Draw the share of images that an attack fools, over the epsilon it needs (figure 9).

    Args:
        path: what to write, .png or .pdf.
        curves: for each network the smallest epsilon of each image, (images,), in 0..255 units
            and any order; inf where none was found, so that the curve stays below 100 %.
        thresholds: epsilons marked by dotted lines.

    Raises:
        ValueError: no curves, or one that is not (images,), or epsilons negative or NaN, or the
            suffix is another.
        OSError: the file cannot be written; what was there before still is.
    """
    _save(_draw_distribution(curves, thresholds), path)


def examples(
    path: str | os.PathLike,
    clean: np.ndarray,
    adversarial: np.ndarray,
    titles: Sequence[tuple[str, str]],
    *,
    epsilon: float,
) -> None:
    """Draw clean images, their adversarial images and the noise, amplified to the whole range.

    Args:
        path: what to write, .png or .pdf.
        clean: (N, H, W, C) float in [0, 1], C = 1 or 3.
        adversarial: the same of the attacked images.
        titles: for each image the texts below the clean and the adversarial one.
        epsilon: size of the attack, in 0..255 units; noise of this size is black or white.

    Raises:
        ValueError: shapes do not fit, images are not float, epsilon is not above 0, or the
            suffix is another.
        OSError: the file cannot be written; what was there before still is.
    """
    _save(_draw_examples(clean, adversarial, titles, epsilon), path)


def confusion(path: str | os.PathLike, matrix: np.ndarray, classes: Sequence[str]) -> None:
    """Draw what each class is taken for: colours are shares of a row, numbers are images.

    Args:
        path: what to write, .png or .pdf.
        matrix: (K, K) counts of true classes (rows) by predictions (columns). Up to 20 classes
            the counts are written into the cells; a class without images is hatched.
        classes: K names; of more than about 35, only some are written beside the cells.

    Raises:
        ValueError: the matrix is not (K, K) or has negative counts, or the suffix is another.
        OSError: the file cannot be written; what was there before still is.
    """
    _save(_draw_confusion(matrix, classes), path)


def noise_correlation(
    path: str | os.PathLike,
    epsilons: Sequence[float],
    mean: np.ndarray,
    deviation: np.ndarray,
    pairs: Sequence[str],
    kinds: Sequence[str],
    *,
    band: float,
) -> None:
    """Draw how alike the noises of two networks are, over epsilon (figures 1 and 6).

    Args:
        path: what to write, .png or .pdf.
        epsilons: (E,), ascending, in 0..255 units.
        mean, deviation: (P, E), of the correlations of each pair.
        pairs: P names.
        kinds: of each pair, such as whether both start from the same weights; each has its dashes.
        band: half the height of the bands, in deviations.

    Raises:
        ValueError: shapes that do not fit, or the suffix is another.
        OSError: the file cannot be written; what was there before still is.
    """
    _save(_draw_noise_correlation(epsilons, mean, deviation, pairs, kinds, band), path)


def gradient_correlation(
    path: str | os.PathLike,
    epsilons: Sequence[float],
    mean: np.ndarray,
    deviation: np.ndarray,
    networks: Sequence[str],
    *,
    band: float,
) -> None:
    """Draw how fast input gradients become others as epsilon grows (figure 8).

    Args:
        path: what to write, .png or .pdf.
        epsilons: (E,), ascending, in 0..255 units.
        mean, deviation: (networks, 4, E): clean and step_ll, clean and step_fgsm, clean and
            step_rand, step_ll and step_fgsm.
        networks: names, a panel each.
        band: half the height of the bands, in deviations.

    Raises:
        ValueError: shapes that do not fit, or the suffix is another.
        OSError: the file cannot be written; what was there before still is.
    """
    _save(_draw_gradient_correlation(epsilons, mean, deviation, networks, band), path)


def logits(
    path: str | os.PathLike,
    epsilons: Sequence[float],
    true: tuple[np.ndarray, np.ndarray],
    false: tuple[np.ndarray, np.ndarray],
    largest: np.ndarray,
    networks: Sequence[str],
    attacks: Sequence[str],
    *,
    band: float,
) -> None:
    """Draw the argument to the softmax over epsilon: attacks by networks (figure 7).

    Args:
        path: what to write, .png or .pdf.
        epsilons: (E,), ascending, in 0..255 units.
        true: mean and deviation of the true class's, (networks, attacks, E) each.
        false: the same of the mean over the false classes.
        largest: mean of the largest false one, (networks, attacks, E).
        networks, attacks: names.
        band: half the height of the bands, in deviations.

    Raises:
        ValueError: shapes that do not fit, or the suffix is another.
        OSError: the file cannot be written; what was there before still is.
    """
    _save(_draw_logits(epsilons, true, false, largest, networks, attacks, band), path)


def accuracy_curves(
    path: str | os.PathLike,
    epsilons: Sequence[float],
    accuracy: np.ndarray,
    networks: Sequence[str],
    attacks: Sequence[str],
) -> None:
    """Draw accuracy over epsilon, a panel a network, a line an attack.

    Epsilon is on a square root scale, which leaves small ones room and shows 0.

    Args:
        path: what to write, .png or .pdf.
        epsilons: (E,), ascending, 0 or above, in 0..255 units.
        accuracy: (networks, attacks, E), in per cent.
        networks: names.
        attacks: names of ``ATTACKS``.

    Raises:
        ValueError: shapes that do not fit, an unknown attack, or the suffix is another.
        OSError: the file cannot be written; what was there before still is.
    """
    _save(_draw_accuracy_curves(epsilons, accuracy, networks, attacks), path)


def distance_sweep(
    path: str | os.PathLike,
    weights: np.ndarray,
    clean: np.ndarray,
    accuracy: np.ndarray,
    epsilons: Sequence[float],
    attacks: Sequence[str],
    *,
    levels: tuple[np.ndarray, np.ndarray, np.ndarray],
) -> None:
    """Draw accuracy over lambda_2, a dot a run, lines through their means (figure 5).

    Args:
        path: what to write, .png or .pdf.
        weights: (runs,), lambda_2 of each, 0 or above.
        clean: (runs,), in per cent.
        accuracy: (attacks, E, runs), in per cent.
        epsilons: (E,), in 0..255 units.
        attacks: names of ``ATTACKS``.
        levels: the different lambda_2, (L,), ascending, and the means there, as ``clean`` and
            ``accuracy``.

    Raises:
        ValueError: shapes that do not fit, an unknown attack, or the suffix is another.
        OSError: the file cannot be written; what was there before still is.
    """
    _save(_draw_distance_sweep(weights, clean, accuracy, epsilons, attacks, levels), path)


def embedding_map(
    path: str | os.PathLike,
    points: np.ndarray,
    labels: np.ndarray,
    traces: np.ndarray,
    trace_labels: np.ndarray,
    centres: np.ndarray,
    networks: Sequence[str],
    axis_labels: Sequence[tuple[str, str]],
) -> None:
    """Draw embeddings as dots in the colour of their class, and the ways of some (figure 4).

    Args:
        path: what to write, .png or .pdf.
        points: (networks, N, 2).
        labels: (N,), classes.
        traces: (networks, T, E, 2), an arrow from each to the next.
        trace_labels: (T,), classes.
        centres: (networks, classes, 2), where the class is written, in the order of
            np.unique(labels).
        networks: names, a panel each.
        axis_labels: of each panel, for x and y.

    Raises:
        ValueError: shapes that do not fit, or the suffix is another.
        OSError: the file cannot be written; what was there before still is.
    """
    figure = _draw_embedding_map(
        points, labels, traces, trace_labels, centres, networks, axis_labels
    )
    _save(figure, path)


def loss_surface(
    path: str | os.PathLike,
    offsets: Sequence[float],
    loss: np.ndarray,
    margin: np.ndarray,
    networks: Sequence[str],
    images: Sequence[str],
) -> None:
    """Draw the loss around images as colours, a row an image, a column a network.

    Args:
        path: what to write, .png or .pdf.
        offsets: (P,), ascending, of both axes, in 0..255 units.
        loss: (networks, images, P, P); rows along random signs, columns along the gradient's.
        margin: as ``loss``; a line is drawn where it is 0, the border of the true class.
        networks, images: names.

    Raises:
        ValueError: shapes that do not fit, or the suffix is another.
        OSError: the file cannot be written; what was there before still is.
    """
    _save(_draw_loss_surface(offsets, loss, margin, networks, images), path)


def _styled():
    """The settings of every figure, whatever a matplotlibrc says; undone at the end."""
    return matplotlib.style.context(["default", STYLE])


def _save(figure: Figure, path: str | os.PathLike) -> None:
    path = pathlib.Path(path)
    kind = path.suffix.lower().removeprefix(".")
    if kind not in ("png", "pdf"):
        raise ValueError(f"a figure is a .png or a .pdf, not {path.name}")
    # Without its date, a PDF of the same numbers is the same file.
    metadata = {"CreationDate": None} if kind == "pdf" else {}
    with _styled():
        write_atomically(
            path, lambda partial: figure.savefig(partial, format=kind, metadata=metadata)
        )


def _fit(figure: Figure, axes: Axes, width: float, height: float, grid=(1, 1)) -> None:
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


def _plain(text: str) -> str:
    """Text that matplotlib shows as it is, instead of reading formulas between dollar signs."""
    return text.replace("$", r"\$")


@functools.lru_cache(maxsize=10_000)
def _text_width(text: str) -> float:
    """Width in inches at the size of all text."""
    font = FontProperties(size=STYLE["font.size"])
    return TextToPath().get_text_width_height_descent(text, font, ismath=False)[0] * _POINT


def _words(text: str) -> list[str]:
    """Pieces between which a line may be broken: names of networks rarely have spaces."""
    separator = r"(?: (?:→|->) |[-_/.,\s])"  # an arrow ends its line
    return re.findall(rf"[^-_/.,\s]*{separator}|[^-_/.,\s]+", " ".join(text.split()))


def _widest_word(text: str) -> float:
    return max((_text_width(word.rstrip()) for word in _words(text)), default=0)


def _wrap(text: str, room: float) -> str:
    """Plain text in lines of about equal length, none of them wider than ``room`` inches."""
    lines = _lines(text, room)
    widest = _widest_word(text)
    for narrower in (0.5 * room, 0.6 * room, 0.7 * room, 0.8 * room, 0.9 * room):
        balanced = _lines(text, narrower) if widest <= narrower else []
        if len(balanced) == len(lines):
            lines = balanced
            break
    return "\n".join(_plain(line.rstrip()) for line in lines)


def _lines(text: str, room: float) -> list[str]:
    """Words in as few lines as possible; only one wider than ``room`` is cut."""
    lines = [""]
    for word in _words(text):
        if _text_width(lines[-1] + word.rstrip()) > room:
            lines.append("")
        for letter in word:
            if _text_width((lines[-1] + letter).rstrip()) > room:
                lines.append("")
            lines[-1] += letter
    return [line for line in lines if line] or [""]


def _line_count(labels: Sequence[str]) -> int:
    return 1 + max(label.count("\n") for label in labels)


def _tick_labels(names: Sequence[str], cell: float) -> tuple[range, list[str], float]:
    """Places and texts of labels beside cells of this size, and the size that the texts need.

    Where a cell is smaller than a line of text, only every second, third, ... name is given.
    """
    step = int(np.ceil(_LINE / cell - 1e-6))
    places = range(0, len(names), step)
    if step > 1:
        return places, [_plain(names[place]) for place in places], cell
    labels = [_wrap(name, _NAME_ROOM) for name in names]
    return places, labels, max(cell, 0.03 + _LINE * _line_count(labels))


def _name_rows(axes: Axes, names: Sequence[str], cell: float) -> float:
    """Label the rows; return their height in inches, ``cell`` or what the names need."""
    places, labels, cell = _tick_labels(names, cell)
    axes.set_yticks(places, labels)
    return cell


def _name_columns(axes: Axes, names: Sequence[str], cell: float) -> float:
    """Label the columns, upright where words are cut otherwise; return their width in inches."""
    room = 0.92 * cell
    labels = [_wrap(name, room) for name in names]
    if max(map(_widest_word, names)) <= room and _line_count(labels) <= 3:
        axes.set_xticks(range(len(names)), labels)
        return cell
    places, labels, cell = _tick_labels(names, cell)
    axes.set_xticks(places, labels, rotation=90)
    return cell


def _draw_cells(figure: Figure, percent: np.ndarray, texts: np.ndarray | None) -> Axes:
    """Cells coloured from 0 to 100 with texts (rows, columns) in them, hatched where NaN."""
    axes = figure.add_subplot()
    image = axes.imshow(
        percent, cmap=_COLOURS, vmin=0, vmax=100, aspect="auto", interpolation="nearest"
    )
    axes.tick_params(length=0)
    rgb = image.to_rgba(percent)[..., :3]
    linear = np.where(rgb <= 0.04045, rgb / 12.92, ((rgb + 0.055) / 1.055) ** 2.4)
    luminance = linear @ (0.2126, 0.7152, 0.0722)
    for (row, column), value in np.ndenumerate(percent):
        if np.isnan(value):
            corner = (column - 0.5, row - 0.5)
            axes.add_patch(Rectangle(corner, 1, 1, facecolor="0.82", ec="0.5", lw=0, hatch="////"))
        elif texts is not None:
            # 0.179: where black and white have the same contrast (WCAG 2).
            ink = "black" if luminance[row, column] > 0.179 else "white"
            text = axes.text(column, row, texts[row, column], ha="center", va="center", color=ink)
            text.set_in_layout(False)  # it lies in its cell; measuring it takes time
    return axes


def _finish_cells(axes: Axes, labels: tuple[str, str, str], cell: tuple[float, float]) -> None:
    """Label rows, columns and colours; give each (height, width) of cells in inches its room."""
    image = axes.images[0]
    rows, columns = image.get_array().shape
    height, width = max(rows * cell[0], 0.8), max(columns * cell[1], 0.9)
    axes.set(ylabel=_wrap(labels[0], height), xlabel=_wrap(labels[1], width))
    bar_label = _wrap(labels[2], height)
    axes.figure.colorbar(image, ax=axes, label=bar_label, pad=0.02, aspect=height / 0.13)
    _fit(axes.figure, axes, width, height)


def _outline_lowest(axes: Axes, values: np.ndarray) -> None:
    """A frame around the lowest value of each column, visible on every colour."""
    halo = [withStroke(linewidth=2.8, foreground="white")]
    for column in np.flatnonzero(~np.isnan(values).all(axis=0)):
        for row in np.flatnonzero(values[:, column] == np.nanmin(values[:, column])):
            frame = Rectangle((column - 0.44, row - 0.42), 0.88, 0.84, fill=False)
            frame.set(edgecolor="black", linewidth=1.4, path_effects=halo, gid="lowest")
            axes.add_patch(frame)


@_styled()
def _draw_heat_map(values, rows, columns, row_label, column_label, value_label) -> Figure:
    values = np.asarray(values, float)
    if not values.size or values.shape != (len(rows), len(columns)):
        raise ValueError(
            f"values {values.shape} are not those of {len(rows)} rows and {len(columns)} columns"
        )
    figure = Figure(layout="constrained")
    axes = _draw_cells(figure, values, np.vectorize("{:z.1f}".format, otypes=[object])(values))
    _outline_lowest(axes, values)
    cell = _name_rows(axes, rows, 0.32), _name_columns(axes, columns, 0.55)
    _finish_cells(axes, (row_label, column_label, value_label), cell)
    return figure


@_styled()
def _draw_confusion(matrix, classes) -> Figure:
    matrix = np.asarray(matrix)
    count = len(classes)
    if not count or matrix.shape != (count, count):
        raise ValueError(f"a matrix {matrix.shape} is not that of {count} classes")
    if not (matrix >= 0).all():
        raise ValueError("counts of images must be 0 or more")
    totals = matrix.sum(axis=1, keepdims=True)
    shares = np.divide(100 * matrix, totals, out=np.full(matrix.shape, np.nan), where=totals > 0)
    texts, cell = None, 5 / count
    if count <= 20:
        texts = np.vectorize("{:g}".format, otypes=[object])(matrix)
        cell = max(0.3, 0.1 + max(map(_text_width, texts.flat)))
    figure = Figure(layout="constrained")
    axes = _draw_cells(figure, shares, texts)
    cell = max(_name_rows(axes, classes, cell), _name_columns(axes, classes, cell))
    labels = ("true class", "predicted class", "share of the true class, %")
    _finish_cells(axes, labels, (cell, cell))
    return figure


def _cumulative(epsilons: np.ndarray, end: float) -> tuple[np.ndarray, np.ndarray]:
    """Corners of the curve from 0 to ``end``: epsilons (n,) and shares (n,) in per cent."""
    found, counts = np.unique(epsilons[np.isfinite(epsilons)], return_counts=True)
    shares = 100 * np.cumsum(counts) / len(epsilons)
    last = shares[-1:] if len(shares) else [0]
    return np.concatenate([[0], found, [end]]), np.concatenate([[0], shares, last])


@_styled()
def _draw_distribution(curves, thresholds) -> Figure:
    curves = {name: np.asarray(epsilons, float) for name, epsilons in curves.items()}
    if not curves:
        raise ValueError("no curves")
    for name, epsilons in curves.items():
        if epsilons.ndim != 1 or not epsilons.size or not (epsilons >= 0).all():
            raise ValueError(f"{name}: one epsilon of 0 or more is needed for each image")
    known = np.concatenate([*curves.values(), np.asarray(thresholds, float)])
    end = 1.05 * known[np.isfinite(known)].max(initial=0) or 1.0
    figure = Figure(layout="constrained")
    axes = figure.add_subplot()
    handles, labels = [], []
    for index, (name, epsilons) in enumerate(curves.items()):
        handles += axes.step(
            *_cumulative(epsilons, end),
            where="post",
            # A fraction of the way along the picture, different where curves lie on each other.
            markevery=(0.02 * (index % 7), 0.15),
            **line_style(index),
        )
        labels.append(_wrap(name, _NAME_ROOM))
    for threshold in thresholds:
        axes.axvline(threshold, color="0.35", linestyle=":", linewidth=1, zorder=1)
    if len(thresholds):
        handles.append(Line2D([], [], color="0.35", linestyle=":", linewidth=1))
        values = ", ".join(f"{threshold:g}" for threshold in thresholds)
        labels.append(_wrap(f"epsilon {values}", _NAME_ROOM))
    axes.set(xlim=(0, end), ylim=(-2, 102), xlabel=_EPSILON, ylabel="images misclassified, %")
    axes.spines[["top", "right"]].set_visible(False)
    _fit(figure, axes, 3.6, _legend_beside(figure, handles, labels, 2.6))
    return figure


def _legend_beside(figure: Figure, handles: list, labels: list[str], height: float) -> float:
    """Put the legend right of the axes; return their height, enlarged where the legend needs it."""
    figure.legend(handles, labels, loc="outside right upper")
    lines = sum(1 + label.count("\n") for label in labels)
    return max(height, lines * _LINE + len(labels) * 0.06)


@_styled()
def _draw_examples(clean, adversarial, titles, epsilon) -> Figure:
    clean, adversarial = np.asarray(clean), np.asarray(adversarial)
    _check_examples(clean, adversarial, titles, epsilon)
    noise = np.clip(0.5 + (adversarial - clean) * (255 / (2 * epsilon)), 0, 1)
    kinds = {
        "clean": (clean, [pair[0] for pair in titles]),
        "adversarial": (adversarial, [pair[1] for pair in titles]),
        f"difference, ±{epsilon:g}": (noise, [""] * len(titles)),
    }
    columns = min(len(clean), 6)
    bands = -(-len(clean) // columns)  # of three rows each
    figure = Figure(layout="constrained")
    grid = figure.subplots(3 * bands, columns, squeeze=False)
    for axes in grid.flat:
        axes.set(xticks=[], yticks=[])
        axes.spines[:].set_visible(False)
    height, width = 0.95 * clean.shape[1] / clean.shape[2], 0.95
    for number, (kind, (images, texts)) in enumerate(kinds.items()):
        for index, (image, text) in enumerate(zip(images, texts, strict=True)):
            axes = grid[3 * (index // columns) + number, index % columns]
            axes.imshow(np.clip(image, 0, 1), cmap="gray", vmin=0, vmax=1, interpolation="nearest")
            axes.set_xlabel(_wrap(text, width), labelpad=2)
            if index % columns == 0:
                axes.set_ylabel(_wrap(kind, height))
    for axes in grid[2:-1:3, 0]:
        axes.set_xlabel(" ")  # sets the bands apart
    _fit(figure, grid[0, 0], width, height, grid.shape)
    return figure


def _check_examples(clean, adversarial, titles, epsilon) -> None:
    if clean.ndim != 4 or not clean.size or clean.shape[-1] not in (1, 3):
        raise ValueError(f"images {clean.shape} are not (N, H, W, 1) or (N, H, W, 3)")
    if adversarial.shape != clean.shape:
        raise ValueError(f"adversarial images {adversarial.shape}, clean images {clean.shape}")
    if len(titles) != len(clean) or any(len(pair) != 2 for pair in titles):
        raise ValueError(f"{len(clean)} images need as many pairs of titles")
    if {clean.dtype.kind, adversarial.dtype.kind} != {"f"}:
        raise ValueError("images must be float, in [0, 1]")
    if not epsilon > 0:
        raise ValueError(f"epsilon is {epsilon}, not above 0")


# Curves and panels of analysis.py.


def _ascending(values: Sequence[float]) -> np.ndarray:
    values = np.asarray(values, float)
    if values.ndim != 1 or not values.size or not (np.diff(values) > 0).all():
        raise ValueError(f"epsilons must ascend, got {values}")
    return values


def _shaped(what: str, values: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    values = np.asarray(values, float)
    if values.shape != shape or not values.size:
        raise ValueError(f"{what} is {values.shape}, wanted {shape}")
    return values


def _panels(names: Sequence[str], rows: int = 0, **shared) -> tuple[Figure, np.ndarray, list[Axes]]:
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
        axes.set_title(_wrap(name, _PANEL[0]), fontsize=STYLE["font.size"], pad=4)
    for axes in used:
        axes.spines[["top", "right"]].set_visible(False)
    return figure, grid, used


def _curve(axes: Axes, x: np.ndarray, mean: np.ndarray, spread, style: dict, number: int = 0):
    """Draw a line, with a light band of mean ± spread below it where there is one."""
    if spread is not None:
        axes.fill_between(x, mean - spread, mean + spread, color=style["color"], **_BAND)
    # Markers of different lines at different places, as far as the points allow.
    every = max(1, len(x) // 8)
    (line,) = axes.plot(x, mean, markevery=(number % every, every), **style)
    return line


@_styled()
def _draw_noise_correlation(epsilons, mean, deviation, pairs, kinds, band) -> Figure:
    epsilons = _ascending(epsilons)
    shape = len(pairs), len(epsilons)
    mean, deviation = _shaped("mean", mean, shape), _shaped("deviation", deviation, shape)
    if len(kinds) != len(pairs):
        raise ValueError(f"{len(pairs)} pairs have {len(kinds)} kinds")
    figure = Figure(layout="constrained")
    axes = figure.add_subplot()
    dashes = dict(zip(dict.fromkeys(kinds), itertools.cycle(_DASHES), strict=False))
    handles, labels = [], []
    for index, (name, kind) in enumerate(zip(pairs, kinds, strict=True)):
        style = line_style(index) | {"linestyle": dashes[kind]}
        handles.append(
            _curve(axes, epsilons, mean[index], band * deviation[index], style, 3 * index)
        )
        # The two names below each other, where they do not fit beside each other.
        parts = [name] if _text_width(name) <= _NAME_ROOM else name.split(", ")
        labels.append(",\n".join(_wrap(part, _NAME_ROOM) for part in parts))
    for kind, dash in dashes.items():
        handles.append(Line2D([], [], color="0.35", linestyle=dash))
        labels.append(_wrap(kind, _NAME_ROOM))
    lowest, highest = axes.get_ylim()
    axes.set(
        ylim=(min(lowest, -0.02), max(highest, 0.1)),
        xlabel=_EPSILON,
        ylabel="correlation of the noises",
    )
    axes.spines[["top", "right"]].set_visible(False)
    _fit(figure, axes, 3.6, _legend_beside(figure, handles, labels, 2.6))
    return figure


_GRADIENTS = {
    "clean, step_ll": "step_ll",
    "clean, step_fgsm": "step_fgsm",
    "clean, step_rand": "step_rand",
    "step_ll, step_fgsm": "clean",
}


@_styled()
def _draw_gradient_correlation(epsilons, mean, deviation, networks, band) -> Figure:
    epsilons = _ascending(epsilons)
    shape = len(networks), len(_GRADIENTS), len(epsilons)
    mean, deviation = _shaped("mean", mean, shape), _shaped("deviation", deviation, shape)
    figure, grid, used = _panels(networks, sharey=True)
    for axes, means, spreads in zip(used, mean, band * deviation, strict=True):
        handles = [
            _curve(axes, epsilons, means[index], spreads[index], attack_style(name), index)
            for index, name in enumerate(_GRADIENTS.values())
        ]
    lowest, highest = used[0].get_ylim()
    used[0].set_ylim(min(lowest, -0.02), max(highest, 1.02))
    _finish_panels(figure, grid, handles, list(_GRADIENTS), "correlation of the gradients")
    return figure


def _finish_panels(
    figure: Figure, grid: np.ndarray, handles: list, labels: Sequence[str], y_label: str = ""
) -> None:
    """Label the axes for all panels at once, put the legend beside them, and size them."""
    figure.supxlabel(_EPSILON, fontsize=STYLE["font.size"])
    if y_label:
        figure.supylabel(y_label, fontsize=STYLE["font.size"])
    labels = [_wrap(label, _NAME_ROOM) for label in labels]
    height = _legend_beside(figure, handles, labels, grid.shape[0] * _PANEL[1]) / grid.shape[0]
    _fit(figure, grid[0, 0], _PANEL[0], height, grid.shape)


@_styled()
def _draw_logits(epsilons, true, false, largest, networks, attacks, band) -> Figure:
    epsilons = _ascending(epsilons)
    shape = len(networks), len(attacks), len(epsilons)
    true, false = ([_shaped("logits", part, shape) for part in pair] for pair in (true, false))
    largest = _shaped("largest", largest, shape)
    # One scale for a network, so that its attacks compare; other networks have other scales.
    figure, grid, _ = _panels(networks, len(attacks), sharex=True, sharey="col")
    lines = {"true class": (true, 0), "mean of the false classes": (false, 1)}
    for (row, column), axes in np.ndenumerate(grid):
        at = column, row
        handles = []
        for (mean, deviation), index in lines.values():
            style = line_style(index)
            handles.append(_curve(axes, epsilons, mean[at], band * deviation[at], style, 2 * index))
        handles += axes.plot(epsilons, largest[at], color="0.2", linestyle=_DASHES[3], linewidth=1)
        if column == 0:
            axes.set_ylabel(_wrap(f"logit, {attacks[row]}", _PANEL[1]))
        if epsilons[0] < 0 < epsilons[-1]:
            axes.axvline(0, color="0.8", linewidth=0.6, zorder=0)
    _finish_panels(figure, grid, handles, [*lines, "largest false class"])
    return figure


@_styled()
def _draw_accuracy_curves(epsilons, accuracy, networks, attacks) -> Figure:
    epsilons = _ascending(epsilons)
    if epsilons[0] < 0:
        raise ValueError("epsilons of an accuracy curve must not be negative")
    accuracy = _shaped("accuracy", accuracy, (len(networks), len(attacks), len(epsilons)))
    figure, grid, used = _panels(networks, sharey=True)
    end = epsilons[-1] or 1.0
    for axes, lines in zip(used, accuracy, strict=True):
        handles = [
            _curve(axes, epsilons, values, None, attack_style(name), index)
            for index, (name, values) in enumerate(zip(attacks, lines, strict=True))
        ]
        axes.set_xscale("function", functions=(_signed_root, _signed_square))
        ticks = [tick for tick in _root_ticks(end) if tick <= end]
        axes.set_xticks(ticks, [f"{tick:g}" for tick in ticks])
        axes.set(xlim=(0, end), ylim=(-2, 102))
    _finish_panels(figure, grid, handles, attacks, "accuracy, %")
    return figure


def _signed_root(values):
    return np.sign(values) * np.sqrt(np.abs(values))


def _signed_square(values):
    return np.sign(values) * np.square(values)


def _root_ticks(end: float) -> tuple[float, ...]:
    """Return ticks whose numbers do not touch on a square root scale up to ``end``."""
    if end > 40:
        return (0, 4, 16, 32, 64, 128, 192, 255)
    return (0, 1, 2, 4, 8, 12, 16, 24, 32) if end > 3 else (0, 0.25, 0.5, 1, 1.5, 2, 3)


@_styled()
def _draw_distance_sweep(weights, clean, accuracy, epsilons, attacks, levels) -> Figure:
    weights = np.asarray(weights, float)
    shape = len(attacks), len(epsilons), len(weights)
    clean, accuracy = _shaped("clean", clean, shape[2:]), _shaped("accuracy", accuracy, shape)
    level, level_clean, level_accuracy = levels
    level = _ascending(level)
    level_clean = _shaped("levels", level_clean, level.shape)
    level_accuracy = _shaped("levels", level_accuracy, (*shape[:2], len(level)))
    if level[0] < 0:
        raise ValueError("lambda_2 must not be negative")
    figure = Figure(layout="constrained")
    axes = figure.add_subplot()
    lines = [("clean", attack_style("clean"), clean, level_clean)]
    for (row, column), style in _attack_styles(attacks, len(epsilons)):
        name = f"{attacks[row]}, epsilon {epsilons[column]:g}"
        lines.append((name, style, accuracy[row, column], level_accuracy[row, column]))
    handles, labels = [], []
    for name, style, dots, means in lines:
        axes.plot(level, means, **style | {"marker": ""})
        axes.plot(weights, dots, **style | {"linestyle": ""})
        handles.append(Line2D([], [], **style))
        labels.append(_wrap(name, _NAME_ROOM))
    _scale_by_decades(axes, level)
    axes.set(ylim=(-2, 102), xlabel="lambda_2", ylabel="accuracy, %")
    axes.spines[["top", "right"]].set_visible(False)
    _fit(figure, axes, 3.6, _legend_beside(figure, handles, labels, 2.6))
    return figure


def _scale_by_decades(axes: Axes, ascending: np.ndarray) -> None:
    """Make x logarithmic over whole decades, so that two of them at least are written; 0 too."""
    above_zero = np.log10(ascending[ascending > 0])
    if not above_zero.size:
        return
    first, last = np.floor(above_zero[0] + 1e-9), np.ceil(above_zero[-1] - 1e-9)
    last = max(last, first + 1)
    if ascending[0] > 0:
        axes.set_xscale("log")
        axes.set_xlim(0.8 * 10**first, 1.25 * 10**last)
    else:
        axes.set_xscale("symlog", linthresh=10**first)
        axes.set_xlim(-0.2 * 10**first, 1.25 * 10**last)
    _write_decades(axes.xaxis)


def _write_decades(axis: Axis) -> None:
    """Write 0.01 instead of powers, which are formulas."""
    axis.set_major_formatter(lambda value, _: f"{value:g}")
    axis.set_minor_formatter(NullFormatter())


def _attack_styles(attacks: Sequence[str], epsilons: int):
    """Yield (attack, epsilon) and a style: the attack's colour and marker, the epsilon's dashes."""
    for row, name in enumerate(attacks):
        for column in range(epsilons):
            yield (row, column), attack_style(name) | {"linestyle": _DASHES[column % len(_DASHES)]}


@_styled()
def _draw_embedding_map(points, labels, traces, trace_labels, centres, networks, axis_labels):
    points, traces, labels = np.asarray(points), np.asarray(traces), np.asarray(labels)
    _shaped("points", points, (len(networks), len(labels), 2))
    _shaped("traces", traces, (len(networks), len(trace_labels), *traces.shape[2:3], 2))
    classes = np.unique(labels)
    _shaped("centres", centres, (len(networks), len(classes), 2))
    if len(axis_labels) != len(networks):
        raise ValueError(f"{len(networks)} panels have {len(axis_labels)} pairs of axis labels")
    figure, grid, used = _panels(networks)
    for panel, axes in enumerate(used):
        for index, label in enumerate(classes):
            own = points[panel, labels == label]
            axes.scatter(*own.T, s=3, linewidths=0, alpha=0.55, **_class_style(index))
        for trace, label in zip(traces[panel], trace_labels, strict=True):
            _draw_trace(axes, trace, _class_style(int(np.searchsorted(classes, label))))
        for centre, label in zip(centres[panel], classes, strict=True):
            axes.text(
                *centre,
                str(label),
                ha="center",
                va="center",
                weight="bold",
                path_effects=[withStroke(linewidth=2, foreground="white")],
                zorder=5,
                clip_on=True,
            ).set_in_layout(False)
        x_label, y_label = (_wrap(text, _PANEL[0]) for text in axis_labels[panel])
        axes.set(xlabel=x_label, ylabel=y_label)
    _fit(figure, grid[0, 0], _PANEL[0], _PANEL[0], grid.shape)
    return figure


def _class_style(index: int) -> dict[str, str]:
    """Colour of a class, and the marker that tells those of the same colour apart."""
    return {"color": colour(index), "marker": "o^sDv"[index // len(PALETTE) % 5]}


def _draw_trace(axes: Axes, trace: np.ndarray, style: dict[str, str]) -> None:
    """Draw arrows from each place (E, 2) to the next, from a large marker where it begins."""
    axes.plot(*trace[0], markersize=5.5, mec="black", mew=0.8, zorder=4, **style)
    for start, end in itertools.pairwise(trace):
        axes.annotate(
            "",
            end,
            start,
            arrowprops={
                "arrowstyle": "-|>,head_length=0.25,head_width=0.12",
                "shrinkA": 0,
                "shrinkB": 0,
                "color": style["color"],
                "linewidth": 0.8,
                "path_effects": [withStroke(linewidth=1.8, foreground="0.15")],
            },
            zorder=3,
            annotation_clip=False,
        ).set_in_layout(False)
    # Arrows do not widen the axes by themselves.
    axes.update_datalim(trace)


_FAINTEST_LOSS = 1e-3  # anything below is as good as none


@_styled()
def _draw_loss_surface(offsets, loss, margin, networks, images) -> Figure:
    offsets = _ascending(offsets)
    shape = len(networks), len(images), len(offsets), len(offsets)
    loss, margin = _shaped("loss", loss, shape), _shaped("margin", margin, shape)
    figure, grid, used = _panels(networks, len(images), sharex=True, sharey=True)
    norm = LogNorm(_FAINTEST_LOSS, max(1.0, loss.max()))
    halo = [withStroke(linewidth=2.6, foreground="black")]
    for (row, column), axes in np.ndenumerate(grid):
        mesh = axes.pcolormesh(
            offsets,
            offsets,
            np.maximum(loss[column, row], _FAINTEST_LOSS),
            cmap=_COLOURS,
            norm=norm,
            shading="nearest",
            rasterized=True,
        )
        own = margin[column, row]
        if len(offsets) > 1 and own.min() < 0 < own.max():
            border = axes.contour(offsets, offsets, own, levels=[0], colors="white", linewidths=1.2)
            border.set(path_effects=halo)
        axes.plot(0, 0, "+", color="white", markersize=6, mew=1.2, path_effects=halo)
        axes.set_aspect("equal")
        if column == 0:
            axes.set_ylabel(_wrap(images[row], _PANEL[1]))
    side = _PANEL[1]
    bar = figure.colorbar(mesh, ax=used, pad=0.02, extend="min", aspect=len(images) * side / 0.13)
    bar.set_label("cross entropy of the true class")
    bar.set_ticks(10.0 ** np.arange(np.log10(norm.vmin), np.log10(norm.vmax) + 1e-9))
    _write_decades(bar.ax.yaxis)
    size = {"fontsize": STYLE["font.size"]}
    figure.supxlabel(_wrap(f"along the gradient's signs, {_EPSILON}", len(networks) * side), **size)
    figure.supylabel(_wrap(f"along random signs, {_EPSILON}", len(images) * side), **size)
    _fit(figure, grid[0, 0], side, side, grid.shape)
    return figure
