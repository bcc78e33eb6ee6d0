"""How alike networks' noises are, and how fast input gradients become others."""

from __future__ import annotations

import itertools
import math

import numpy as np
from matplotlib.lines import Line2D

from cascade_keras.attacks.specs import Attack
from cascade_keras.figures.captions import compare_initialisation, listed, numbers
from cascade_keras.figures.kept import Forms, finite, indices, whole
from cascade_keras.figures.layout import (
    EPSILON,
    NAME_ROOM,
    curve,
    finish_axes,
    finish_panels,
    panels,
    single_axes,
    text_width,
    wrap,
)
from cascade_keras.figures.measures import correlate, gradients, statistics, unit
from cascade_keras.figures.plot import Arrays, Plot
from cascade_keras.figures.style import DASHES, attack_style, line_style


def _gathered(batches: list) -> Arrays:
    """Put the batches' (correlations, undefined ones), each (lines, epsilons, batch), together.

    Returns:
        correlation: (lines, E, N); mean, deviation: (lines, E), over the images; undefined:
        (lines, E), how many images have a constant side and count as 0.
    """
    correlation = np.concatenate([found[0] for found in batches], axis=-1)
    undefined = np.concatenate([found[1] for found in batches], axis=-1)
    mean, deviation = statistics(correlation)
    return {
        "correlation": correlation,
        "mean": mean,
        "deviation": deviation,
        "undefined": undefined.sum(axis=-1),
    }


def _forms(*shape: int) -> Forms:
    """Return what the arrays of ``_gathered`` are, of this shape with N last."""
    mean = finite(*shape[:-1])
    undefined = whole(*shape[:-1])
    return {"correlation": finite(*shape), "mean": mean, "deviation": mean, "undefined": undefined}


def _undefined(arrays: Arrays, what: str) -> list[str]:
    """Say how many correlations count as 0 because one side is constant."""
    undefined = int(arrays["undefined"].sum())
    if not undefined:
        return []
    share = 100 * undefined / arrays["correlation"].size
    return [f"{undefined} correlations ({share:.1f} %) of a {what} that is zero count as 0."]


class NoiseCorrelation(Plot):
    """Correlation of the adversarial noises X_adv - X of pairs of networks (figures 1 and 6)."""

    band = 0.1  # half the height of the bands in deviations, as in the paper

    def compute(self, progress) -> Arrays:
        """Return the correlations over pixels of each of P pairs, see ``measures.correlate``.

        Returns:
            pairs: (P, 2) indices of the networks; and as ``_gathered``, a line a pair.
        """
        pairs = list(itertools.combinations(range(len(self.networks)), 2))
        crafters = [self.crafter(network, self.attacks[0]) for network in self.networks]
        found = []
        for first, batch, true in self.batches(len(self.epsilons)):
            noises = [unit(craft(batch, true, first) - batch) for craft in crafters]
            each = [correlate(noises[one], noises[other]) for one, other in pairs]
            found.append(tuple(np.stack(arrays) for arrays in zip(*each, strict=True)))
            progress((first + len(batch)) * len(self.networks))
        return {"pairs": np.array(pairs), **_gathered(found)}

    def forms(self):
        networks = len(self.networks)
        pairs = math.comb(networks, 2)
        shape = pairs, len(self.epsilons), len(self.images)
        return {"pairs": indices(networks, pairs, 2), **_forms(*shape)}

    def _pairs(self, arrays: Arrays) -> list[tuple[str, str, str]]:
        """Return of each pair both names, and whether they have the same initialisation."""
        return [
            (
                self.names[one],
                self.names[other],
                compare_initialisation(self.networks[one], self.networks[other]),
            )
            for one, other in arrays["pairs"].tolist()
        ]

    def draw(self, arrays):
        figure, axes = single_axes()
        pairs = self._pairs(arrays)
        kinds = dict.fromkeys(kind for *_, kind in pairs)
        dashes = dict(zip(kinds, itertools.cycle(DASHES), strict=False))
        spread = self.band * arrays["deviation"]
        handles, labels = [], []
        for index, (one, other, kind) in enumerate(pairs):
            style = line_style(index) | {"linestyle": dashes[kind]}
            mean = arrays["mean"][index]
            handles.append(
                curve(axes, np.array(self.epsilons), mean, spread[index], style, 3 * index)
            )
            # The two names below each other, where they do not fit beside each other.
            name = f"{one}, {other}"
            parts = [name] if text_width(name) <= NAME_ROOM else [one, other]
            labels.append(",\n".join(wrap(part, NAME_ROOM) for part in parts))
        for kind, dash in dashes.items():
            handles.append(Line2D([], [], color="0.35", linestyle=dash))
            labels.append(wrap(kind, NAME_ROOM))
        lowest, highest = axes.get_ylim()
        axes.set(
            ylim=(min(lowest, -0.02), max(highest, 0.1)),
            xlabel=EPSILON,
            ylabel="correlation of the noises",
        )
        finish_axes(axes, handles, labels)
        return figure

    def describe(self, arrays):
        paragraphs = [
            f"Pearson's correlation of the adversarial noises X_adv - X of {listed(self.attacks)} "
            f"between networks, over an image's pixels, against epsilon ({numbers(self.epsilons)} "
            "in pixel values of 0..255): mean over the images; bands: "
            f"± {self.band:g} standard deviations. As figures 1 and 6 of the paper."
        ]
        for (one, other, kind), mean in zip(self._pairs(arrays), arrays["mean"], strict=True):
            paragraphs.append(
                f"{one}, {other} ({kind}): {mean[0]:.3f} at epsilon {self.epsilons[0]:g}, "
                f"{mean[-1]:.3f} at {self.epsilons[-1]:g}."
            )
        return paragraphs + _undefined(arrays, "noise")


class GradientCorrelation(Plot):
    """Correlation of input gradients of J(X, y_true) at pairs of images (figure 8, appendix D).

    Where the correlation between the clean image and one an attack's step away falls fast, the
    gradient of the clean image says little about the way from there on.
    """

    band = 0.5
    # Each line's pair of images, and the attack whose look it has.
    pairs = (
        ("clean", "step_ll", "step_ll"),
        ("clean", "step_fgsm", "step_fgsm"),
        ("clean", "step_rand", "step_rand"),
        ("step_ll", "step_fgsm", "clean"),
    )

    def measure(self, network, progress) -> Arrays:
        """Return as ``_gathered``, a line for each of ``pairs``."""
        crafters = {
            name: self.crafter(network, Attack(name, self.epsilons))
            for name in ("step_ll", "step_fgsm", "step_rand")
        }
        gradients_at = gradients(network.logits, self.image_shape)
        found = []
        for first, batch, true in self.batches(3 * len(self.epsilons)):
            at = {"clean": unit(gradients_at(batch[None], true))}
            for attack, craft in crafters.items():
                at[attack] = unit(gradients_at(craft(batch, true, first), true))
            each = [correlate(at[one], at[other]) for one, other, _ in self.pairs]
            found.append(tuple(np.stack(arrays) for arrays in zip(*each, strict=True)))
            progress(first + len(batch))
        return _gathered(found)

    def forms(self):
        sizes = len(self.pairs), len(self.epsilons), len(self.images)
        return _forms(len(self.networks), *sizes)

    def draw(self, arrays):
        figure, grid, used = panels(self.names, sharey=True)
        spread = self.band * arrays["deviation"]
        for axes, means, spreads in zip(used, arrays["mean"], spread, strict=True):
            handles = [
                curve(
                    axes,
                    np.array(self.epsilons),
                    means[index],
                    spreads[index],
                    attack_style(name),
                    index,
                )
                for index, (*_, name) in enumerate(self.pairs)
            ]
        lowest, highest = used[0].get_ylim()
        used[0].set_ylim(min(lowest, -0.02), max(highest, 1.02))
        labels = [f"{one}, {other}" for one, other, _ in self.pairs]
        finish_panels(figure, grid, handles, labels, "correlation of the gradients")
        return figure

    def describe(self, arrays):
        return [
            "Pearson's correlation of the gradients of J(X, y_true) with respect to two images, "
            "over their pixels: the clean image and the one of an attack of size epsilon (0..255 "
            f"units; {numbers(self.epsilons)}), or the images of two attacks; step_rand adds "
            f"random signs. Mean over the images; bands: ± {self.band:g} standard deviations. As "
            "figure 8 of the paper.",
            *_undefined(arrays, "gradient"),
        ]
