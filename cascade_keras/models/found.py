"""A network by any text that names one, see ``forms``."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence

import keras
import numpy as np

from cascade_keras import model_files, own_code
from cascade_keras.errors import InputError, about
from cascade_keras.files import expand
from cascade_keras.models import forms, specs
from cascade_keras.models.applications import application


def find(
    text: str,
    *,
    input_shape: Sequence[int] | None = None,
    num_classes: int | None = None,
    embedding_at: str = "logits",
    normalization: str = "none",
    mean: np.ndarray | None = None,
    weights: str | None = None,
    imports: Sequence[str] = (),
    setting: str = "model",
) -> tuple[keras.Model, tuple[float, float] | None]:
    """Return the network that a text names, and the range of pixels that it takes.

    New weights are drawn from Keras's global seed; a file's model keeps its weights, and which of
    its layers are trainable.

    Args:
        text: see ``forms``.
        input_shape, num_classes: (H, W, C) of the images and the number of classes; a file's model
            needs neither.
        embedding_at: the stage of a network of ours, or of an application, that is the embedding.
        normalization, mean: of a network of ours, see ``networks.normalize``.
        weights: a local file of an application's weights without its top.
        imports: modules to import first, for the classes and networks that they register.
        setting: that has the text, for messages.

    Returns:
        The model, and (0, 1) where it is one of ours or an application; None for the user's own.

    Raises:
        InputError: no such network, or one that cannot be built or loaded.
    """
    form = forms.check(
        text, embedding_at=embedding_at, weights=weights, imports=imports, setting=setting
    )
    own_code.import_all(imports)
    if form.kind == forms.FILE:
        with about(setting):
            model = model_files.load_network(expand(form.text))
        return _taking_images(model, form.text, setting), None
    if input_shape is None or num_classes is None:
        raise InputError(
            f"{text} is built for images of a known shape and a number of classes; give both",
            setting,
        )
    shape, classes = tuple(map(int, input_shape)), int(num_classes)
    if form.kind == forms.FUNCTION:
        return _made(form.text, shape, classes, setting), None
    if form.kind == forms.APPLICATION:
        network = application(
            form.name,
            shape,
            classes,
            embedding_at=embedding_at,
            weights=weights,
            arguments=form.arguments,
        )
    else:
        network = specs.build(
            text,
            input_shape=shape,
            num_classes=classes,
            embedding_at=embedding_at,
            normalization=normalization,
            mean=mean,
        )
    return network, (0.0, 1.0)


def _made(text: str, shape: tuple, num_classes: int, setting: str) -> keras.Model:
    """Return what the user's function makes of (input_shape, num_classes)."""
    make = own_code.function(text, setting)
    if isinstance(make, keras.Model):
        model = make
    else:
        call = _call(make, text, setting)
        with own_code.running(f"{text} fails", setting):
            model = call(shape, num_classes)
    if not isinstance(model, keras.Model):
        raise InputError(f"{text} returns {type(model).__name__}, no Keras model", setting)
    model = getattr(model, "network", model)
    if not model.built:
        with own_code.running(f"{text} gives a model that cannot be run on images", setting):
            model(keras.ops.zeros((1, *shape)), training=False)
    return _taking_images(model, text, setting)


def _call(make: Callable, text: str, setting: str) -> Callable:
    """Return (shape, classes) -> what the function returns, by the names of its parameters."""
    names = ("input_shape", "num_classes")
    try:
        parameters = inspect.signature(make).parameters
        if set(names) <= set(parameters):
            return lambda *given: make(**dict(zip(names, given, strict=True)))
        inspect.signature(make).bind(None, None)
        return make
    except (TypeError, ValueError) as error:
        raise InputError(
            f"{text} must take (input_shape, num_classes); it takes {inspect.signature(make)}",
            setting,
        ) from error


def _taking_images(model: keras.Model, where: str, setting: str) -> keras.Model:
    """Refuse a model that takes something else than one batch of images."""
    try:
        taken = model.input_shape
    except (AttributeError, ValueError):  # by subclassing: whatever it was called with
        return model
    if not isinstance(taken, tuple) or len(taken) != 4:
        several = isinstance(taken, list | dict) and len(taken) > 1
        what = f"{len(taken)} inputs" if several else f"{taken}"
        raise InputError(
            f"{where} must take one batch of images (batch, height, width, channels); it takes "
            f"{what}",
            setting,
        )
    return model
