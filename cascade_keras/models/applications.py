"""The networks of keras.applications as classifiers of images in [0, 1].

    images -> colours, where they are grey -> what the application's preprocess_input makes of
    0..255 -> the application without its top -> pooled features -> logits

All of it is layers of Keras, so the network is saved, served and loaded as any other. Nothing is
ever downloaded: weights are new, or a local file's.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from typing import Any

import keras
import numpy as np

from cascade_keras.errors import InputError, first_line
from cascade_keras.files import expand
from cascade_keras.models.forms import APPLICATIONS
from cascade_keras.models.networks import finish

# ImageNet's mean colour and deviations, RGB in [0, 1], and its mean in 0..255, BGR.
_MEAN, _DEVIATION = np.array([0.485, 0.456, 0.406]), np.array([0.229, 0.224, 0.225])
_MEAN_BGR = np.array([103.939, 116.779, 123.68])


def application(
    name: str,
    input_shape: tuple[int, ...],
    num_classes: int,
    *,
    embedding_at: str = "logits",
    weights: str | None = None,
    arguments: Mapping[str, Any] | None = None,
) -> keras.Model:
    """Build a network of keras.applications, images in [0, 1] -> {"embedding", "logits"}.

    Args:
        name: such as "MobileNetV2", a row of ``forms.APPLICATIONS``.
        input_shape: height, width, channels. Of grey images (one channel) all three colours are
            made.
        num_classes: the number of logits.
        embedding_at: "features", the pooled ones, or "logits".
        weights: a local .weights.h5 or .h5 file of the application without its top; new weights
            where None.
        arguments: of the application's function, such as {"alpha": 0.35}.

    Raises:
        InputError: images that are too small or of other channels, or a file of other weights.
    """
    row = APPLICATIONS[name]
    *sides, channels = input_shape
    if min(sides) < row.smallest:
        raise InputError(
            f"{name} takes images of at least {row.smallest}x{row.smallest}, these are "
            f"{sides[0]}x{sides[1]}; enlarge them by image_size",
            "model",
        )
    if channels not in (1, 3):
        raise InputError(f"{name} takes 1 or 3 channels, the images have {channels}", "model")
    base = _base(name, (*sides, 3), dict(arguments or {}))
    if weights is not None:
        _load(base, weights, name)
    images = keras.Input(input_shape, name="images")
    colours = keras.layers.Concatenate()([images] * 3) if channels == 1 else images
    prepared = _preprocessed(colours, row.preprocessing, _repaired(name, base))
    return finish(name, images, {}, base(prepared), num_classes, embedding_at=embedding_at)


def _base(name: str, shape: tuple[int, ...], arguments: dict) -> keras.Model:
    build = getattr(keras.applications, name)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # that weights for 224 pixels are none
            return build(
                include_top=False, weights=None, input_shape=shape, pooling="avg", **arguments
            )
    except (ValueError, TypeError, ZeroDivisionError, OverflowError) as error:
        raise InputError(f"{name} cannot be built ({first_line(error)})", "model") from error


def _load(base: keras.Model, weights: str, name: str) -> None:
    file = expand(weights)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            base.load_weights(file)
    except Exception as error:  # Keras and h5py each raise their own
        raise InputError(
            f"{file} does not hold the weights of {name} without its top ({first_line(error)})",
            "model_weights",
        ) from error


def _repaired(name: str, base: keras.Model) -> tuple[np.ndarray, np.ndarray] | None:
    """Return a factor and a shift in [0, 1] that EfficientNet's published weights need.

    They keep deviations where the layer expects variances, which keras.applications mends by one
    more layer, but only where it downloads them itself.
    """
    if not name.startswith("EfficientNetB"):
        return None
    (layer,) = (each for each in base.layers if isinstance(each, keras.layers.Normalization))
    if not np.allclose(np.ravel(layer.variance), _DEVIATION, atol=1e-3):
        return None
    factor = 1 / np.sqrt(_DEVIATION)
    return factor, np.ravel(layer.mean) * (1 - factor)


def _preprocessed(
    colours: keras.KerasTensor, preprocessing: str, repaired: tuple | None
) -> keras.KerasTensor:
    """Return what the application's preprocess_input makes of images in [0, 1] times 255."""
    if preprocessing == "tf":
        scale, offset = 2.0, -1.0
    elif preprocessing == "torch":
        scale, offset = (1 / _DEVIATION).tolist(), (-_MEAN / _DEVIATION).tolist()
    elif preprocessing == "caffe":
        colours = keras.ops.flip(colours, axis=-1)  # RGB to BGR
        scale, offset = 255.0, (-_MEAN_BGR).tolist()
    else:
        scale, offset = 255.0, 0.0
        if repaired is not None:
            scale, offset = ((255 * part).tolist() for part in repaired)
    rescaling = keras.layers.Rescaling(scale, offset, dtype="float32", name="preprocessing")
    return rescaling(colours)
