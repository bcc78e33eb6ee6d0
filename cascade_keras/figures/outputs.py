"""What networks return along attacks: logits, and embeddings in the plane."""

from __future__ import annotations

import itertools

import numpy as np
from matplotlib.axes import Axes
from matplotlib.patheffects import withStroke

from cascade_keras.figures.captions import listed, numbers
from cascade_keras.figures.kept import finite, shares
from cascade_keras.figures.layout import PANEL, curve, finish_panels, fit, panels, wrap
from cascade_keras.figures.measures import outputs, project, statistics
from cascade_keras.figures.plot import Arrays, Plot
from cascade_keras.figures.style import DASHES, PALETTE, colour, line_style


class Logits(Plot):
    """The argument to the softmax of the true and of the false classes (figure 7)."""

    band = 1.0  # half the height of the bands in deviations

    def measure(self, network, progress) -> Arrays:
        """Return the logits at the images of A attacks; a negative epsilon steps to the other side.

        Returns:
            true, false, largest: (A, E, N), the true logit, the mean and the largest of the others.
            true_mean, true_deviation and so on: (A, E), over the images.
        """
        crafters = [self.crafter(network, attack) for attack in self.attacks]
        logits_at = outputs(network.logits, self.image_shape)
        found = []
        for first, batch, true in self.batches(len(self.epsilons)):
            values = np.stack([logits_at(craft(batch, true, first)) for craft in crafters])
            found.append(_true_and_false(values, true))
            progress(first + len(batch))
        arrays = {}
        names = ("true", "false", "largest")
        for name, batches in zip(names, zip(*found, strict=True), strict=True):
            arrays[name] = np.concatenate(batches, axis=-1)
            arrays[f"{name}_mean"], arrays[f"{name}_deviation"] = statistics(arrays[name])
        return arrays

    def forms(self):
        shape = len(self.networks), len(self.attacks), len(self.epsilons)
        forms = {}
        for name in ("true", "false", "largest"):
            forms[name] = finite(*shape, len(self.images))
            forms[f"{name}_mean"] = forms[f"{name}_deviation"] = finite(*shape)
        return forms

    def draw(self, arrays):
        # One scale for a network, so that its attacks compare; other networks have other scales.
        figure, grid, _ = panels(self.names, len(self.attacks), sharex=True, sharey="col")
        epsilons = np.array(self.epsilons)
        lines = {"true": ("true class", 0), "false": ("mean of the false classes", 1)}
        for (row, column), axes in np.ndenumerate(grid):
            at = column, row
            handles = []
            for name, (_, index) in lines.items():
                mean, spread = (arrays[f"{name}_{kind}"][at] for kind in ("mean", "deviation"))
                style = line_style(index)
                handles.append(curve(axes, epsilons, mean, self.band * spread, style, 2 * index))
            handles += axes.plot(
                epsilons, arrays["largest_mean"][at], color="0.2", linestyle=DASHES[3], linewidth=1
            )
            if column == 0:
                axes.set_ylabel(wrap(f"logit, {self.attacks[row].name}", PANEL[1]))
            if epsilons[0] < 0 < epsilons[-1]:
                axes.axvline(0, color="0.8", linewidth=0.6, zorder=0)
        labels = [*(label for label, _ in lines.values()), "largest false class"]
        finish_panels(figure, grid, handles, labels)
        return figure

    def describe(self, arrays):
        return [
            "Argument to the softmax (logit) of the true class and mean of those of the false "
            "classes, at the images of one-step attacks of size epsilon (0..255 units; "
            f"{numbers(self.epsilons)}); a negative epsilon is the same step to the other side. "
            f"Mean over the images; bands: ± {self.band:g} standard deviation. Dotted: mean of the "
            "largest false logit. Each network has its own scale. As figure 7 of the paper."
        ]


def _true_and_false(values: np.ndarray, labels: np.ndarray) -> tuple[np.ndarray, ...]:
    """Return the true logit, the mean and the largest other, of logits (..., batch, classes)."""
    is_true = np.arange(values.shape[-1]) == labels[:, None]
    true = np.where(is_true, values, 0).sum(axis=-1)
    mean = np.where(is_true, 0, values).sum(axis=-1) / (values.shape[-1] - 1)
    return true, mean, np.where(is_true, -np.inf, values).max(axis=-1)


class EmbeddingMap(Plot):
    """Embeddings as dots in the colour of their class, and the ways of some (figure 4)."""

    def _traced(self) -> np.ndarray:
        """Return the place of each class's first image: T of them are attacked."""
        return np.unique(self.labels, return_index=True)[1]

    def measure(self, network, progress) -> Arrays:
        """Return where embeddings are and where an attack moves them.

        Returns:
            embedding: (N, d) of the clean images; attacked: (T, E, d).
            points: (N, 2) and traces: (T, E, 2), the same in the plane, see ``project``.
            explained: (2,), see ``project``.
            centres: (classes, 2), the median of each class's points, in the order of
                np.unique(labels).
        """
        embedding_at = outputs(lambda batch: network(batch)["embedding"], self.image_shape)
        found = []
        for first, batch, _ in self.batches(1):
            found.append(embedding_at(batch[None])[0])
            progress(first + len(batch))
        embedding, traced = np.concatenate(found), self._traced()
        craft = self.crafter(network, self.attacks[0])
        attacked = embedding_at(craft(self.images[traced], self.labels[traced], 0)).swapaxes(0, 1)
        points, traces, explained = project(embedding, attacked)
        classes = np.unique(self.labels)
        centres = [np.median(points[self.labels == label], axis=0) for label in classes]
        return {
            "embedding": embedding,
            "attacked": attacked,
            "points": points,
            "traces": traces,
            "explained": explained,
            "centres": np.array(centres),
        }

    def compute(self, progress) -> Arrays:
        """Return the networks' arrays, stacked; embeddings, whose d may differ, by themselves.

        Those are embedding_0, attacked_0, embedding_1, ...
        """
        parts = self.parts(progress)
        apart = {
            f"{name}_{number}": part.pop(name)
            for name in ("embedding", "attacked")
            for number, part in enumerate(parts)
        }
        return {name: np.stack([part[name] for part in parts]) for name in parts[0]} | apart

    def forms(self):
        networks, images, epsilons = len(self.networks), len(self.images), len(self.epsilons)
        classes = len(np.unique(self.labels))
        forms = {
            "points": finite(networks, images, 2),
            "traces": finite(networks, classes, epsilons, 2),
            "explained": shares(networks, 2),
            "centres": finite(networks, classes, 2),
        }
        for number in range(networks):  # their dimensions are each network's own
            forms[f"embedding_{number}"] = finite(images, None)
            forms[f"attacked_{number}"] = finite(classes, epsilons, None)
        return forms

    def draw(self, arrays):
        figure, grid, used = panels(self.names)
        classes = np.unique(self.labels)
        for panel, axes in enumerate(used):
            for index, label in enumerate(classes):
                own = arrays["points"][panel, self.labels == label]
                axes.scatter(*own.T, s=3, linewidths=0, alpha=0.55, **_class_style(index))
            for trace, label in zip(
                arrays["traces"][panel], self.labels[self._traced()], strict=True
            ):
                _draw_trace(axes, trace, _class_style(int(np.searchsorted(classes, label))))
            for centre, label in zip(arrays["centres"][panel], classes, strict=True):
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
            axis_labels = _axis_labels(arrays["explained"][panel])
            x_label, y_label = (wrap(text, PANEL[0]) for text in axis_labels)
            axes.set(xlabel=x_label, ylabel=y_label)
        fit(figure, grid[0, 0], PANEL[0], PANEL[0], grid.shape)
        return figure

    def describe(self, arrays):
        paragraphs = [
            "Embeddings of clean images, coloured by class, the number at each class's median; and "
            f"where {listed(self.attacks)} moves the first image of each class, from the large "
            f"marker (clean) by an arrow for each epsilon of {numbers(self.epsilons)} (0..255 "
            "units). As figure 4 of the paper."
        ]
        for number, name in enumerate(self.names):
            explained = arrays["explained"][number]
            dimensions = arrays[f"embedding_{number}"].shape[-1]
            if np.isnan(explained).any():
                paragraphs.append(f"{name}: the {dimensions} embedding dimensions themselves.")
                continue
            paragraphs.append(
                f"{name}: projection of the {dimensions} embedding dimensions onto the first two "
                "principal components of the clean embeddings shown (scikit-learn PCA), which "
                f"explain {100 * explained[0]:.1f} % and {100 * explained[1]:.1f} % of their "
                "variance."
            )
        return paragraphs


def _axis_labels(explained: np.ndarray) -> tuple[str, str]:
    if np.isnan(explained).any():
        return "embedding 1", "embedding 2"
    first, second = 100 * explained
    return f"component 1 ({first:.0f} %)", f"component 2 ({second:.0f} %)"


def _class_style(index: int) -> dict[str, str]:
    """Return the colour of a class, and the marker that tells those of the same colour apart."""
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
