"""Pictures of results: arrays in, a matplotlib Figure out; ``style.save`` writes it.

Nothing is computed here about networks, and TensorFlow is not imported.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Rectangle
from matplotlib.patheffects import withStroke

from cascade_keras.figures.layout import (
    EPSILON,
    LINE,
    NAME_ROOM,
    finish_axes,
    fit,
    plain,
    single_axes,
    text_width,
    widest_word,
    wrap,
)
from cascade_keras.figures.style import COLOURS, line_style, styled


@styled()
def heat_map(
    values: np.ndarray,
    rows: Sequence[str],
    columns: Sequence[str],
    *,
    row_label: str,
    column_label: str,
    value_label: str = "accuracy, %",
) -> Figure:
    """Return a table as colours from 0 to 100, with the lowest value of each column outlined.

    Args:
        values: (rows, columns) float, in per cent; NaN was not evaluated and is hatched.
        rows: names, such as those of sources or attacks.
        columns: names, such as those of targets.
        row_label: what the rows are.
        column_label: what the columns are.
        value_label: quantity and unit, at the colour bar.

    Raises:
        ValueError: values are not (rows, columns).
    """
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


@styled()
def confusion(matrix: np.ndarray, classes: Sequence[str]) -> Figure:
    """Return what each class is taken for: colours are shares of a row, numbers are images.

    Args:
        matrix: (K, K) counts of true classes (rows) by predictions (columns). Up to 20 classes
            the counts are written into the cells; a class without images is hatched.
        classes: K names; of more than about 35, only some are written beside the cells.

    Raises:
        ValueError: the matrix is not (K, K) or has negative counts.
    """
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
        cell = max(0.3, 0.1 + max(map(text_width, texts.flat)))
    figure = Figure(layout="constrained")
    axes = _draw_cells(figure, shares, texts)
    cell = max(_name_rows(axes, classes, cell), _name_columns(axes, classes, cell))
    labels = ("true class", "predicted class", "share of the true class, %")
    _finish_cells(axes, labels, (cell, cell))
    return figure


def _cumulative(epsilons: np.ndarray, end: float) -> tuple[np.ndarray, np.ndarray]:
    """Return corners of the curve from 0 to ``end``: epsilons (n,) and shares (n,) in per cent."""
    found, counts = np.unique(epsilons[np.isfinite(epsilons)], return_counts=True)
    shares = 100 * np.cumsum(counts) / len(epsilons)
    last = shares[-1:] if len(shares) else [0]
    return np.concatenate([[0], found, [end]]), np.concatenate([[0], shares, last])


@styled()
def distribution(curves: Mapping[str, np.ndarray], *, thresholds: Sequence[float] = ()) -> Figure:
    """Return the share of images that an attack fools, over the epsilon it needs (figure 9).

    Args:
        curves: for each network the smallest epsilon of each image, (images,), in 0..255 units
            and any order; inf where none was found, so that the curve stays below 100 %.
        thresholds: epsilons marked by dotted lines.

    Raises:
        ValueError: no curves, or one that is not (images,), or epsilons negative or NaN.
    """
    curves = {name: np.asarray(epsilons, float) for name, epsilons in curves.items()}
    if not curves:
        raise ValueError("no curves")
    for name, epsilons in curves.items():
        if epsilons.ndim != 1 or not epsilons.size or not (epsilons >= 0).all():
            raise ValueError(f"{name}: one epsilon of 0 or more is needed for each image")
    known = np.concatenate([*curves.values(), np.asarray(thresholds, float)])
    end = 1.05 * known[np.isfinite(known)].max(initial=0) or 1.0
    figure, axes = single_axes()
    handles, labels = [], []
    for index, (name, epsilons) in enumerate(curves.items()):
        handles += axes.step(
            *_cumulative(epsilons, end),
            where="post",
            # A fraction of the way along the picture, different where curves lie on each other.
            markevery=(0.02 * (index % 7), 0.15),
            **line_style(index),
        )
        labels.append(wrap(name, NAME_ROOM))
    for threshold in thresholds:
        axes.axvline(threshold, color="0.35", linestyle=":", linewidth=1, zorder=1)
    if len(thresholds):
        handles.append(Line2D([], [], color="0.35", linestyle=":", linewidth=1))
        values = ", ".join(f"{threshold:g}" for threshold in thresholds)
        labels.append(wrap(f"epsilon {values}", NAME_ROOM))
    axes.set(xlim=(0, end), ylim=(-2, 102), xlabel=EPSILON, ylabel="images misclassified, %")
    finish_axes(axes, handles, labels)
    return figure


@styled()
def examples(
    clean: np.ndarray,
    adversarial: np.ndarray,
    titles: Sequence[tuple[str, str]],
    *,
    epsilon: float,
) -> Figure:
    """Return clean images, their adversarial images and the noise, amplified to the whole range.

    Args:
        clean: (N, H, W, C) float in [0, 1], C = 1 or 3.
        adversarial: the same of the attacked images.
        titles: for each image the texts below the clean and the adversarial one.
        epsilon: size of the attack, in 0..255 units; noise of this size is black or white.

    Raises:
        ValueError: shapes do not fit, images are not float, epsilon is not above 0.
    """
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
            axes.set_xlabel(wrap(text, width), labelpad=2)
            if index % columns == 0:
                axes.set_ylabel(wrap(kind, height))
    for axes in grid[2:-1:3, 0]:
        axes.set_xlabel(" ")  # sets the bands apart
    fit(figure, grid[0, 0], width, height, grid.shape)
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


# Cells and their names.


def _line_count(labels: Sequence[str]) -> int:
    return 1 + max(label.count("\n") for label in labels)


def _tick_labels(names: Sequence[str], cell: float) -> tuple[range, list[str], float]:
    """Return places and texts of labels beside cells of this size, and the size they need.

    Where a cell is smaller than a line of text, only every second, third, ... name is given.
    """
    step = int(np.ceil(LINE / cell - 1e-6))
    places = range(0, len(names), step)
    if step > 1:
        return places, [plain(" ".join(names[place].split())) for place in places], cell
    labels = [wrap(name, NAME_ROOM) for name in names]
    return places, labels, max(cell, 0.03 + LINE * _line_count(labels))


def _name_rows(axes: Axes, names: Sequence[str], cell: float) -> float:
    """Label the rows; return their height in inches, ``cell`` or what the names need."""
    places, labels, cell = _tick_labels(names, cell)
    axes.set_yticks(places, labels)
    return cell


def _name_columns(axes: Axes, names: Sequence[str], cell: float) -> float:
    """Label the columns, upright where words are cut otherwise; return their width in inches."""
    room = 0.92 * cell
    labels = [wrap(name, room) for name in names]
    if max(map(widest_word, names)) <= room and _line_count(labels) <= 3:
        axes.set_xticks(range(len(names)), labels)
        return cell
    places, labels, cell = _tick_labels(names, cell)
    axes.set_xticks(places, labels, rotation=90)
    return cell


def _draw_cells(figure: Figure, percent: np.ndarray, texts: np.ndarray | None) -> Axes:
    """Return cells coloured from 0 to 100 with texts (rows, columns) in them, hatched where NaN."""
    axes = figure.add_subplot()
    image = axes.imshow(
        percent, cmap=COLOURS, vmin=0, vmax=100, aspect="auto", interpolation="nearest"
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
    axes.set(ylabel=wrap(labels[0], height), xlabel=wrap(labels[1], width))
    bar_label = wrap(labels[2], height)
    axes.figure.colorbar(image, ax=axes, label=bar_label, pad=0.02, aspect=height / 0.13)
    fit(axes.figure, axes, width, height)


def _outline_lowest(axes: Axes, values: np.ndarray) -> None:
    """Put a frame around the lowest value of each column, visible on every colour."""
    halo = [withStroke(linewidth=2.8, foreground="white")]
    for column in np.flatnonzero(~np.isnan(values).all(axis=0)):
        for row in np.flatnonzero(values[:, column] == np.nanmin(values[:, column])):
            frame = Rectangle((column - 0.44, row - 0.42), 0.88, 0.84, fill=False)
            frame.set(edgecolor="black", linewidth=1.4, path_effects=halo, gid="lowest")
            axes.add_patch(frame)
