"""What a training's settings describe: network, trainer, schedule, initial weights."""

from __future__ import annotations

import contextlib
import dataclasses
import pathlib
import warnings
from collections.abc import Callable, Iterator, Sequence

import keras
import numpy as np
import tensorflow as tf

from cascade_keras import data, draws, models
from cascade_keras.errors import InputError, first_line
from cascade_keras.options import TrainerOptions
from cascade_keras.runs import own
from cascade_keras.runs.settings import (
    XLA,
    TrainingSettings,
    check_held_out,
    initialisation,
)
from cascade_keras.schedules import peaked
from cascade_keras.training import AdversarialTrainer


def build_network(settings: TrainingSettings, dataset: data.Dataset) -> keras.Model:
    """Return the network that ``settings.model`` names, with new weights or those of its file.

    Raises:
        InputError: it cannot be built or loaded, or does not fit the dataset.
    """
    shape, num_classes = image_shape(settings, dataset.preset), dataset.preset.num_classes
    kind = models.form_of(settings.model).kind
    network, _ = models.find(
        settings.model,
        input_shape=shape,
        num_classes=num_classes,
        embedding_at=settings.embedding_at,
        normalization=settings.normalization,
        mean=_mean_image(settings, dataset) if kind == models.forms.NAMED else None,
        weights=settings.model_weights,
        imports=settings.import_,
    )
    if kind in (models.forms.FILE, models.forms.FUNCTION):
        own.check(network, settings, shape, num_classes, "model")
    return network


def held_out(settings: TrainingSettings, dataset: data.Dataset) -> np.ndarray:
    """Return which training images are not trained on, ascending indices; they are none often."""
    labels, count = dataset.train[1], settings.validation_images
    check_held_out(settings, dataset.name, len(labels))
    return draws.held_out(labels, count, settings.seed) if count else np.zeros(0, np.int64)


def _mean_image(settings: TrainingSettings, dataset: data.Dataset) -> np.ndarray:
    return data.mean_image(dataset, settings.crop, held_out(settings, dataset))


def image_shape(settings: TrainingSettings, preset: data.DatasetSpec) -> tuple[int, int, int]:
    """Return (H, W, C) of what the network sees."""
    return (*data.sides_of(settings.crop), preset.image_shape[-1])


def build_trainer(
    settings: TrainingSettings,
    network: keras.Model,
    *,
    cascade_sources: Sequence[Callable] = (),
    ensemble_sources: Sequence[Callable] = (),
    make: type[AdversarialTrainer] = AdversarialTrainer,
) -> AdversarialTrainer:
    """Return the compiled trainer of a network.

    Args:
        settings: resolved.
        network: any classifier; ``settings`` say which pixels it takes, and which of several
            outputs are meant.
        cascade_sources: those whose images are crafted within the step.
        ensemble_sources: those of one-step images.
        make: the trainer's class.
    """
    # A setting that is named as one of the trainer's options is that option.
    options = {
        field.name: getattr(settings, field.name)
        for field in dataclasses.fields(TrainerOptions)
        if hasattr(settings, field.name)
    }
    trainer = make(
        network,
        **settings.told(),
        ramp_steps=settings.steps if settings.distance_ramp != "constant" else None,
        cascade_sources=cascade_sources,
        ensemble_sources=ensemble_sources,
        **options,
    )
    optimizer = keras.optimizers.SGD(
        learning_rate_schedule(settings),
        momentum=settings.momentum,
        nesterov=settings.nesterov,
        global_clipnorm=settings.clip_norm,
        use_ema=settings.use_ema,
        ema_momentum=settings.ema_momentum,
    )
    trainer.compile(optimizer=optimizer, jit_compile=XLA[settings.jit_compile])
    return trainer


def learning_rate_schedule(settings: TrainingSettings):
    """Return the learning rate: a warm-up, then divided by 10 after each boundary, or a peak."""
    if settings.lr_schedule != "steps":
        return peaked(
            settings.lr_schedule, settings.learning_rate, settings.steps, settings.lr_peak
        )
    rate, boundaries = settings.learning_rate, list(settings.lr_boundaries)
    rates = [rate * 0.1**times for times in range(len(boundaries) + 1)]
    if settings.warmup_steps:
        boundaries, rates = [settings.warmup_steps, *boundaries], [rate * 0.1, *rates]
    if not boundaries:
        return rate
    # Keras keeps the earlier value at a boundary itself; step numbers count from 0.
    return keras.optimizers.schedules.PiecewiseConstantDecay([b - 1 for b in boundaries], rates)


def load_initialisation(network: keras.Model, path: str) -> None:
    """Load weights from a run's directory, a saved network, a .keras, .h5 or .weights.h5 file.

    Raises:
        InputError: nothing there, or weights of another network.
    """
    file = initialisation(path)
    try:
        with warnings.catch_warnings():
            # Keras warns of every layer that the file lacks before it gives up.
            warnings.simplefilter("ignore")
            if file.is_dir():
                network.set_weights(_saved_weights(file))
            else:
                network.load_weights(file)
    except Exception as error:  # Keras, TensorFlow, h5py and zipfile each raise their own
        raise InputError(
            f"{file} does not hold the weights of this network ({first_line(error)}); give a file "
            "of the same model and dataset",
            "init_from",
        ) from error


def _saved_weights(version: pathlib.Path) -> list[np.ndarray]:
    """Return the weights of a SavedModel of ours, in the order of its network's."""
    saved = tf.train.load_checkpoint(str(version / "variables" / "variables"))
    numbers = sorted(
        int(key.split("/")[1])
        for key in saved.get_variable_to_shape_map()
        if key.startswith("variables/")
    )
    if not numbers:
        raise ValueError("it is no saved network of this package")
    return [saved.get_tensor(f"variables/{n}/.ATTRIBUTES/VARIABLE_VALUE") for n in numbers]


@contextlib.contextmanager
def precision(policy: str) -> Iterator[None]:
    """Make networks and optimizers inside under a Keras dtype policy, and leave others alone."""
    before = keras.config.dtype_policy()
    keras.config.set_dtype_policy(policy)
    try:
        yield
    finally:
        keras.config.set_dtype_policy(before)
