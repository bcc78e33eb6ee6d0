"""What networks still get right: against epsilon, against lambda_2, and the epsilons that fool."""

from __future__ import annotations

import functools
from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.lines import Line2D

from cascade_keras.attacks.carlini_wagner import CarliniWagner
from cascade_keras.attacks.specs import ATTACKS, Attack
from cascade_keras.errors import InputError
from cascade_keras.evaluation.white_box import WhiteBox
from cascade_keras.figures.captions import (
    has_distance,
    listed,
    numbers,
    recipe_of,
    standard_error,
)
from cascade_keras.figures.kept import distances, finite, indices, whole
from cascade_keras.figures.layout import (
    NAME_ROOM,
    curve,
    finish_axes,
    finish_panels,
    panels,
    single_axes,
    wrap,
    write_decades,
)
from cascade_keras.figures.plot import Arrays, Plot, Progress
from cascade_keras.figures.results import distribution
from cascade_keras.figures.style import DASHES, attack_style
from cascade_keras.losses.specs import LOSSES
from cascade_keras.sources import Source


class _Accuracies(Plot):
    """Of white-box accuracies."""

    def results(self, network: Source, attacks: Sequence[Attack], progress: Progress) -> list:
        """Return the ``Result`` of each attack and epsilon."""
        white_box = WhiteBox(
            network.logits,
            self.image_shape,
            attacks,
            num_classes=self.dataset.num_classes,
            seed=self.settings.seed,
            batch_size=self.batch_size,
        )
        count, work = len(self.images), max(white_box.work(len(self.images)), 1)
        # It tells the gradients done.
        return white_box(
            self.images, self.labels, progress=lambda done: progress(count * done // work)
        )


class AccuracyCurve(_Accuracies):
    """Accuracy against epsilon, white box; not in the paper.

    A curve that does not come down to zero at 255, where any image can be made into any other, or
    one of an iterative attack above that of a one-step attack, is a sign of masked gradients.
    """

    def measure(self, network, progress) -> Arrays:
        """Return correct: (A, E) counts; accuracy: (A, E) in per cent."""
        results = self.results(network, self.attacks, progress)
        correct = np.reshape([result.correct for result in results], (len(self.attacks), -1))
        return {"correct": correct, "accuracy": 100 * correct / len(self.images)}

    def forms(self):
        shape = len(self.networks), len(self.attacks), len(self.epsilons)
        return {"correct": whole(*shape), "accuracy": finite(*shape)}

    def draw(self, arrays):
        figure, grid, used = panels(self.names, sharey=True)
        epsilons = np.array(self.epsilons)
        end = epsilons[-1] or 1.0
        names = [attack.name for attack in self.attacks]
        for axes, lines in zip(used, arrays["accuracy"], strict=True):
            handles = [
                curve(axes, epsilons, values, None, attack_style(name), index)
                for index, (name, values) in enumerate(zip(names, lines, strict=True))
            ]
            # A square root leaves small epsilons room and shows 0.
            axes.set_xscale("function", functions=(_signed_root, _signed_square))
            ticks = [tick for tick in _root_ticks(end) if tick <= end]
            axes.set_xticks(ticks, [f"{tick:g}" for tick in ticks])
            axes.set(xlim=(0, end), ylim=(-2, 102))
        finish_panels(figure, grid, handles, names, "accuracy, %")
        return figure

    def describe(self, arrays):
        return [
            f"White-box accuracy under {listed(self.attacks)} against epsilon "
            f"({numbers(self.epsilons)}; 0..255 units, on a square root scale). Gradients are "
            "masked where an iterative attack finds less than a one-step attack or random signs, "
            "or where accuracy stays above zero at 255.",
            standard_error(len(self.images)),
        ]


def _signed_root(values):
    return np.sign(values) * np.sqrt(np.abs(values))


def _signed_square(values):
    return np.sign(values) * np.square(values)


def _root_ticks(end: float) -> tuple[float, ...]:
    """Return ticks whose numbers do not touch on a square root scale up to ``end``."""
    if end > 40:
        return (0, 4, 16, 32, 64, 128, 192, 255)
    return (0, 1, 2, 4, 8, 12, 16, 24, 32) if end > 3 else (0, 0.25, 0.5, 1, 1.5, 2, 3)


class DistanceSweep(_Accuracies):
    """Accuracy against the weight lambda_2 of the distance in training (figure 5).

    Raises:
        InputError: a network whose lambda_2 is not recorded, or whose loss has no distance.
    """

    @functools.cached_property
    def weights(self) -> list[float]:
        """lambda_2 of each network."""
        return [_distance_weight(network) for network in self.networks]

    def parameters(self):
        return {"distance_weight": self.weights}

    def measure(self, network, progress) -> Arrays:
        """Return clean: () and accuracy: (A, E), in per cent."""
        clean, *attacked = self.results(network, [Attack.clean(), *self.attacks], progress)
        accuracy = [result.accuracy for result in attacked]
        return {
            "clean": np.array(clean.accuracy),
            "accuracy": np.reshape(accuracy, (len(self.attacks), -1)),
        }

    def compute(self, progress) -> Arrays:
        """Return the accuracies of R networks, and the means of those of each lambda_2.

        Returns:
            order: (R,), indices of the networks with ascending lambda_2, as given where it is
                equal.
            distance_weight: (R,), ascending; clean: (R,) and accuracy: (A, E, R), in per cent, in
                that order.
            level: (L,), the different values of lambda_2; level_clean: (L,) and level_accuracy:
                (A, E, L), means over the networks of each.
        """
        parts = self.parts(progress)
        order = np.argsort(self.weights, kind="stable")
        weights = np.asarray(self.weights, float)[order]
        clean = np.array([parts[place]["clean"] for place in order])
        accuracy = np.stack([parts[place]["accuracy"] for place in order], axis=-1)
        levels = np.unique(weights)
        members = [weights == level for level in levels]
        means = [accuracy[..., own].mean(axis=-1) for own in members]
        return {
            "order": order,
            "distance_weight": weights,
            "clean": clean,
            "accuracy": accuracy,
            "level": levels,
            "level_clean": np.array([clean[own].mean() for own in members]),
            "level_accuracy": np.stack(means, axis=-1),
        }

    def forms(self):
        networks, levels = len(self.networks), len(set(self.weights))
        shape = len(self.attacks), len(self.epsilons)
        return {
            "order": indices(networks, networks),
            "distance_weight": finite(networks),
            "clean": finite(networks),
            "accuracy": finite(*shape, networks),
            "level": finite(levels),
            "level_clean": finite(levels),
            "level_accuracy": finite(*shape, levels),
        }

    def draw(self, arrays):
        """Draw a dot a network, lines through their means."""
        figure, axes = single_axes()
        lines = [("clean", attack_style("clean"), arrays["clean"], arrays["level_clean"])]
        for row, attack in enumerate(self.attacks):
            # The attack's colour and marker, the epsilon's dashes.
            for column, epsilon in enumerate(self.epsilons):
                style = attack_style(attack.name) | {"linestyle": DASHES[column % len(DASHES)]}
                found = (arrays[name][row, column] for name in ("accuracy", "level_accuracy"))
                lines.append((f"{attack.name}, epsilon {epsilon:g}", style, *found))
        handles, labels = [], []
        for name, style, dots, means in lines:
            axes.plot(arrays["level"], means, **style | {"marker": ""})
            axes.plot(arrays["distance_weight"], dots, **style | {"linestyle": ""})
            handles.append(Line2D([], [], **style))
            labels.append(wrap(name, NAME_ROOM))
        _scale_by_decades(axes, arrays["level"])
        axes.set(ylim=(-2, 102), xlabel="lambda_2", ylabel="accuracy, %")
        finish_axes(axes, handles, labels)
        return figure

    def describe(self, arrays):
        return [
            "White-box accuracy against the weight lambda_2 of the distance of embeddings in "
            f"training: a dot a network, lines through their means; clean, and under "
            f"{listed(self.attacks)} at epsilon {numbers(self.epsilons)} (0..255 units). As "
            "figure 5 of the paper.",
            standard_error(len(self.images)),
        ]


def _distance_weight(network: Source) -> float:
    """Return lambda_2 of a network's training."""
    recipe = recipe_of(network)
    if recipe is None or recipe.distance_weight is None:
        raise InputError(
            f"{network} does not record its lambda_2 (distance_weight); name finished runs, "
            "or networks saved from them",
            "model",
        )
    if not has_distance(recipe.loss):
        raise InputError(
            f"{network} was trained with the loss {recipe.loss}, which has no distance "
            f"for lambda_2 to weigh; name runs of {' or '.join(filter(has_distance, LOSSES))}",
            "model",
        )
    if recipe.distance_weight and not 1e-100 < recipe.distance_weight < 1e100:
        raise InputError(
            f"{network} records the lambda_2 {recipe.distance_weight:g}, which no axis can show; "
            "leave it out",
            "model",
        )
    return recipe.distance_weight


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
    write_decades(axes.xaxis)


class CWDistribution(Plot):
    """The smallest epsilons at which Carlini and Wagner's attack fools each image (figure 9)."""

    epsilons_are_computed = False

    def parameters(self):
        usual = ATTACKS["cw_linf"].options
        settings = self.settings
        return {
            "cw_search": settings.cw_search or usual["search"],
            "cw_iterations": settings.cw_iterations or usual["iterations"],
        }

    def measure(self, network, progress) -> Arrays:
        """Return epsilon: (N,), 0 where the clean image is misclassified, inf where none is."""
        search = CarliniWagner(
            network.logits,
            self.image_shape,
            grid=self.dataset.grid,
            search=self.parameters()["cw_search"],
            iterations=self.parameters()["cw_iterations"],
        )
        return {"epsilon": search(self.images, self.labels, progress).epsilon}

    def forms(self):
        return {"epsilon": distances(len(self.networks), len(self.images))}

    def draw(self, arrays):
        curves = dict(zip(self.names, arrays["epsilon"], strict=True))
        return distribution(curves, thresholds=self.epsilons)

    def describe(self, arrays):
        options = self.parameters()
        paragraphs = [
            "Cumulative distribution of the smallest epsilon (0..255 units) at which Carlini and "
            f"Wagner's L-infinity attack fools each image, by the {options['cw_search']} "
            f"search of at most {options['cw_iterations']} iterations; 0 where the clean image "
            "is misclassified. Lower is more robust. As figure 9 of the paper."
        ]
        for name, epsilon in zip(self.names, arrays["epsilon"], strict=True):
            above = ", ".join(f"{np.sum(epsilon > e)} above {e:g}" for e in self.epsilons)
            paragraphs.append(
                f"{name}: of {len(epsilon)} images {above}; median {np.median(epsilon):.2f}."
            )
        return paragraphs
