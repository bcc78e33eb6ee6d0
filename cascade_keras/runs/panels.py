"""Pictures that TensorBoard shows of a network under attack: one row a kind.

A kind is added by one function, whose pictures every run shows from then on::

    def confusion(views, step):
        '{View.name: (height, width, 3)}, uint8 or floats in [0, 1]'

    panels.register("confusion", confusion)

Plain grids, drawn in milliseconds; the figures for print are in figures/.
"""

from __future__ import annotations

import dataclasses
import io
import math
from collections.abc import Callable, Mapping, Sequence

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from cascade_keras.attacks.specs import Attack

# TensorBoard's cards are some 350 pixels wide: six images of this size, with legible text.
IMAGES = 6
_CELL = 54
_MARGIN = 4
_LINE = 14
_FONT_SIZE = 11
# Okabe and Ito's, as in figures/: safe for colour-blind readers.
_RIGHT_COLOUR, _WRONG_COLOUR, _TEXT_COLOUR = "#0072B2", "#D55E00", "#000000"


@dataclasses.dataclass(frozen=True)
class View:
    """The images of one attack at one epsilon, and what the network makes of them.

    Attributes:
        attack: with its options; ``Attack.clean()`` for clean images.
        epsilon: in 0..255 units; 0 for clean images.
        images: (N, H, W, C) in [0, 1].
        labels: true classes, (N,).
        embedding, logits: (N, d) and (N, classes).
    """

    attack: Attack
    epsilon: float
    images: np.ndarray
    labels: np.ndarray
    embedding: np.ndarray
    logits: np.ndarray

    @property
    def name(self) -> str:
        """As in tags: "clean" or "pgd_16"."""
        return result_name(self.attack.name, self.epsilon)

    @property
    def predicted(self) -> np.ndarray:
        """Classes, (N,); -1 where logits are not finite numbers."""
        finite = np.isfinite(self.logits).all(axis=-1)
        return np.where(finite, self.logits.argmax(axis=-1), -1)


def result_name(attack: str, epsilon: float) -> str:
    """Return "clean", or the attack's name and its epsilon."""
    return attack if attack == "clean" else f"{attack}_{epsilon:g}"


def strongest(views: Sequence[View]) -> list[View]:
    """Return the clean images and those of the largest epsilon."""
    largest = max(view.epsilon for view in views)
    return [view for view in views if view.attack.name == "clean" or view.epsilon == largest]


# (views, the clean one first; number of steps done) -> {name: picture}, or one picture.
Panel = Callable[[Sequence[View], int], Mapping[str, np.ndarray] | np.ndarray]
PANELS: dict[str, Panel] = {}


def register(name: str, function: Panel) -> None:
    """Add a kind of pictures, tagged NAME, or NAME/VIEW where there are several.

    Raises:
        ValueError: the name is taken.
    """
    if name in PANELS:
        raise ValueError(f"there is a panel {name!r} already")
    PANELS[name] = function


def pictures(views: Sequence[View], step: int) -> dict[str, np.ndarray]:
    """Return all pictures of a look by their tags."""
    found = {}
    for name, function in PANELS.items():
        drawn = function(views, step)
        if isinstance(drawn, Mapping):
            found.update({f"{name}/{part}": picture for part, picture in drawn.items()})
        else:
            found[name] = drawn
    return found


def adversarial_images(views: Sequence[View], step: int) -> dict[str, np.ndarray]:
    """Draw a few clean images and their adversarial ones for each attack at its strongest."""
    few, clean = slice(IMAGES), views[0]
    return {
        view.name: panel(
            clean.images[few],
            view.images[few],
            view.labels[few],
            clean.predicted[few],
            view.predicted[few],
            attack=str(view.attack),
            epsilon=view.epsilon,
        )
        for view in strongest(views)
        if view is not clean
    }


register("images", adversarial_images)


def panel(
    clean: np.ndarray,
    adversarial: np.ndarray,
    true: Sequence[int],
    seen_clean: Sequence[int],
    seen_adversarial: Sequence[int],
    *,
    attack: str,
    epsilon: float,
) -> np.ndarray:
    """Draw clean images, adversarial ones below them, and their difference, amplified.

    Below each image stands its true class and what the network takes it for: blue where that is
    right, red where it is wrong.

    Args:
        clean, adversarial: (N, H, W, C) float in [0, 1], C = 1 or 3.
        true, seen_clean, seen_adversarial: classes, (N,).
        attack: its name and options.
        epsilon: in 0..255 units; a difference of this size is black or white.

    Returns:
        uint8 (height, width, 3).
    """
    gain = 127.5 / epsilon if epsilon else 0.0
    difference = np.clip(0.5 + (adversarial - clean) * gain, 0, 1)
    true_names = [(f"true {label}", _TEXT_COLOUR) for label in true]
    rows = (
        ("clean", clean, [true_names, _seen(seen_clean, true)]),
        (f"{attack}, epsilon {epsilon:g}", adversarial, [_seen(seen_adversarial, true)]),
        (f"difference, times {gain:.3g}", difference, []),
    )
    zoom = max(1, round(_CELL / clean.shape[2]))
    height, width = clean.shape[1] * zoom, max(clean.shape[2] * zoom, _CELL)
    heights = [_LINE * (1 + len(texts)) + height + 2 * _MARGIN for _, _, texts in rows]
    size = (_MARGIN + len(clean) * (width + _MARGIN), sum(heights))
    picture = Image.new("RGB", size, "white")
    draw, font = ImageDraw.Draw(picture), ImageFont.load_default(_FONT_SIZE)
    top = 0
    for (heading, images, texts), row_height in zip(rows, heights, strict=True):
        draw.text((_MARGIN, top), heading, _TEXT_COLOUR, font)
        for index, image in enumerate(images):
            left = _MARGIN + index * (width + _MARGIN)
            picture.paste(_zoomed(image, zoom), (left, top + _LINE))
            for line, row in enumerate(texts, start=1):
                text, colour = row[index]
                draw.text((left, top + height + line * _LINE), text, colour, font)
        top += row_height
    return np.asarray(picture)


def _seen(predicted: Sequence[int], true: Sequence[int]) -> list[tuple[str, str]]:
    """Return what is written below each image, and in which colour."""
    return [
        (f"seen as {seen}", _RIGHT_COLOUR if seen == label else _WRONG_COLOUR)
        for seen, label in zip(predicted, true, strict=True)
    ]


def sprite(images: np.ndarray) -> np.ndarray:
    """Tile images row by row into a square, as the embedding projector wants its thumbnails.

    Args:
        images: (N, H, W, C) float in [0, 1], C = 1 or 3.

    Returns:
        uint8 (side * H, side * W, 3), side being the root of N, rounded up; unused tiles are white.
    """
    count, height, width, _ = images.shape
    side = math.ceil(math.sqrt(count))
    tiles = np.full((side * side, height, width, 3), 255, np.uint8)
    tiles[:count] = _pixels(images)
    rows = tiles.reshape(side, side, height, width, 3).swapaxes(1, 2)
    return rows.reshape(side * height, side * width, 3)


def png(pixels: np.ndarray) -> bytes:
    """Return uint8 (height, width, 3) as the contents of a PNG file."""
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, format="png")
    return file.getvalue()


def _pixels(images: np.ndarray) -> np.ndarray:
    """Return (..., C) in [0, 1] as uint8 (..., 3)."""
    whole = np.round(np.clip(images, 0, 1) * 255).astype(np.uint8)
    return np.broadcast_to(whole, (*whole.shape[:-1], 3))


def _zoomed(image: np.ndarray, zoom: int) -> Image.Image:
    return Image.fromarray(_pixels(image).repeat(zoom, axis=0).repeat(zoom, axis=1))
