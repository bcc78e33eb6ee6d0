"""The loss around images, along the gradient's signs and along random ones."""

from __future__ import annotations

import numpy as np
import tensorflow as tf
from matplotlib.colors import LogNorm
from matplotlib.patheffects import withStroke

from cascade_keras import attacks, draws
from cascade_keras.figures.kept import finite
from cascade_keras.figures.layout import EPSILON, PANEL, fit, panels, wrap, write_decades
from cascade_keras.figures.measures import gradients
from cascade_keras.figures.plot import Arrays, Plot
from cascade_keras.figures.style import COLOURS, STYLE

_FAINTEST_LOSS = 1e-3  # anything below is as good as none


class LossSurface(Plot):
    """Loss over the plane of the gradient's signs and of random signs; not in the paper."""

    def measure(self, network, progress) -> Arrays:
        """Return the loss at X + a sign(grad_X J(X, y_true)) + b sign(noise).

        noise ~ N(0, 1) for each value; images are clipped to the valid range. With b = 0 they are
        those of ``step_fgsm``, with a = 0 those of ``step_rand``; the P epsilons are the values of
        a and of b.

        Returns:
            loss: (N, P, P), the cross entropy of the true class; axes: images, b, a.
            margin: (N, P, P), largest other logit minus the true one: above 0 where misclassified.
        """
        plane = _compiled_plane(network.logits, self.image_shape, self.epsilons)
        ascent = gradients(network.logits, self.image_shape)(self.images[None], self.labels)[0]
        seed = draws.attack_seed(self.settings.seed, 0)
        noise = draws.normal_like(tf.constant(self.images), seed).numpy()
        found = []
        for index, (image, label) in enumerate(zip(self.images, self.labels, strict=True)):
            found.append(plane(image, label, np.sign(ascent[index]), np.sign(noise[index])))
            progress(index + 1)
        losses, margins = zip(*found, strict=True)
        return {"loss": np.stack(losses), "margin": np.stack(margins)}

    def forms(self):
        count = len(self.epsilons)
        values = finite(len(self.networks), len(self.images), count, count)
        return {"loss": values, "margin": values}

    def draw(self, arrays):
        """Draw the loss as colours, margin 0 as a line; a row an image, a column a network."""
        epsilons, images = np.array(self.epsilons), self._images()
        figure, grid, used = panels(self.names, len(images), sharex=True, sharey=True)
        loss, margins = (arrays[name].astype(float) for name in ("loss", "margin"))
        norm = LogNorm(_FAINTEST_LOSS, max(1.0, loss.max()))
        halo = [withStroke(linewidth=2.6, foreground="black")]
        for (row, column), axes in np.ndenumerate(grid):
            mesh = axes.pcolormesh(
                epsilons,
                epsilons,
                np.maximum(loss[column, row], _FAINTEST_LOSS),
                cmap=COLOURS,
                norm=norm,
                shading="nearest",
                rasterized=True,
            )
            margin = margins[column, row]
            if len(epsilons) > 1 and margin.min() < 0 < margin.max():
                border = axes.contour(
                    epsilons, epsilons, margin, levels=[0], colors="white", linewidths=1.2
                )
                border.set(path_effects=halo)
            axes.plot(0, 0, "+", color="white", markersize=6, mew=1.2, path_effects=halo)
            axes.set_aspect("equal")
            if column == 0:
                axes.set_ylabel(wrap(images[row], PANEL[1]))
        self._finish(figure, grid, used, mesh)
        return figure

    def _finish(self, figure, grid, used, mesh) -> None:
        """Add the colour bar and the axes' labels, and size the panels."""
        rows, columns = grid.shape
        side, norm = PANEL[1], mesh.norm
        bar = figure.colorbar(mesh, ax=used, pad=0.02, extend="min", aspect=rows * side / 0.13)
        bar.set_label("cross entropy of the true class")
        bar.set_ticks(10.0 ** np.arange(np.log10(norm.vmin), np.log10(norm.vmax) + 1e-9))
        write_decades(bar.ax.yaxis)
        size = {"fontsize": STYLE["font.size"]}
        figure.supxlabel(wrap(f"along the gradient's signs, {EPSILON}", columns * side), **size)
        figure.supylabel(wrap(f"along random signs, {EPSILON}", rows * side), **size)
        fit(figure, grid[0, 0], side, side, grid.shape)

    def describe(self, arrays):
        return [
            "Cross entropy of the true class at X + a sign(grad J(X, y_true)) + b sign(noise), "
            f"clipped to the valid range, a and b from {self.epsilons[0]:g} to "
            f"{self.epsilons[-1]:g} (0..255 units, {len(self.epsilons)} values each), around the "
            "clean image (cross). Line: the border of the true class. Where the loss hardly rises "
            "along the gradient, or rises more elsewhere, the gradient is masked.",
            f"Rows: {'; '.join(self._images())}.",
        ]

    def _images(self) -> list[str]:
        return [
            f"image {index}, class {label}"
            for index, label in zip(self.indices, self.labels, strict=True)
        ]


def _compiled_plane(logits_fn: attacks.LogitsFn, image_shape, offsets):
    """Return image, label, gradient's signs, noise's signs -> loss and margin, (P, P) each."""

    @tf.function(autograph=False)
    def plane(image, label, gradient, noise):
        steps = attacks.to_unit_range(tf.constant(list(offsets), tf.float32))
        along = image + tf.reshape(steps, [-1, 1, 1, 1]) * gradient
        true = tf.fill([len(offsets)], label)

        def row(step: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
            values = logits_fn(tf.clip_by_value(along + step * noise, 0.0, 1.0))
            return attacks.cross_entropy(true)(values), attacks.margin(true)(values)

        return tf.map_fn(row, steps, fn_output_signature=(tf.float32, tf.float32))

    spec = tf.TensorSpec(image_shape, tf.float32)
    plane = plane.get_concrete_function(spec, tf.TensorSpec([], tf.int32), spec, spec)

    def at(image, label, gradient, noise) -> tuple[np.ndarray, np.ndarray]:
        found = plane(
            tf.constant(image),
            tf.constant(label, tf.int32),
            tf.constant(gradient),
            tf.constant(noise),
        )
        return tuple(values.numpy() for values in found)

    return at
