"""A package of somebody else's that adds one of each: a row and, where it computes, a function."""

import dataclasses

import keras
import numpy as np
import tensorflow as tf
from matplotlib.figure import Figure as Drawing

from cascade_keras import attacks, data, figures, losses, models
from cascade_keras.attacks.specs import ONE_STEP, AttackSpec
from cascade_keras.attacks.steps import step_along
from cascade_keras.data.specs import DatasetSpec
from cascade_keras.figures.kinds import FigureSpec
from cascade_keras.figures.plot import Plot
from cascade_keras.losses.specs import JOINED, LossSpec
from cascade_keras.models.specs import ModelSpec
from cascade_keras.runs import TrainingSettings, panels
from cascade_keras.settings import POSITIVE, setting

# An attack: one row, one function.


def step_dark(logits_fn, images, labels, epsilon):
    """Every pixel as dark as epsilon allows: no gradient at all."""
    return step_along(-tf.ones_like(images), images, epsilon)


attacks.register(AttackSpec("step_dark", ONE_STEP, step_dark, whole_pixels=True))


# A loss: one row; its distance is a function of embeddings.


def cosine(adversarial, clean, norm):
    """One minus the cosine of each pair, summed."""
    products = tf.math.l2_normalize(adversarial, -1) * tf.math.l2_normalize(clean, -1)
    return tf.reduce_sum(1 - tf.reduce_sum(products, -1))


losses.register(LossSpec("cosine", JOINED, cosine, help="embeddings of pairs turn to each other"))


# A network: one row, one function.


def mlp(input_shape, num_classes, *, embedding_at, normalization, mean, width):
    inputs = keras.Input(input_shape, name="images")
    features = keras.layers.Flatten()(models.normalize(inputs, normalization, mean))
    features = keras.layers.Dense(width, activation="relu")(features)
    return models.finish("mlp", inputs, {}, features, num_classes, embedding_at=embedding_at)


models.register(
    ModelSpec("mlpW", r"mlp(?P<width>\d+)", mlp, lambda match: {"width": int(match["width"])})
)


# A dataset: one row, one function.


def load_bars(spec, data_dir):
    """Bars at one of four angles, on noise: uint8 (N, 8, 8, 1)."""
    rng = np.random.default_rng(0)
    labels = np.tile(np.arange(4, dtype=np.int32), 60)
    images = rng.integers(0, 60, (len(labels), 8, 8, 1), np.uint8)
    for image, label in zip(images, labels, strict=True):
        line = rng.integers(1, 7)
        steps = np.arange(8)
        rows, columns = [
            (np.full(8, line), steps), (steps, np.full(8, line)), (steps, steps), (steps, 7 - steps)
        ][label]  # fmt: skip
        image[rows, columns] += 180
    return (images[:160], labels[:160]), (images[160:], labels[160:])


data.register(
    DatasetSpec("bars", load_bars, (8, 8, 1), 4, max_epsilon=32, steps=60, boundaries=(30, 45))
)


# A figure: one row, one class with its arrays, its drawing and its caption.


class Confidence(Plot):
    """How sure networks are of the clean images."""

    def measure(self, network, progress):
        logits = network(tf.constant(self.images))["logits"]
        progress(len(self.images))
        return {"confidence": tf.reduce_max(tf.nn.softmax(logits), -1).numpy()}

    def draw(self, arrays):
        figure = Drawing()
        figure.add_subplot().hist(arrays["confidence"].T)
        return figure

    def describe(self, arrays):
        return [f"How sure networks are: {arrays['confidence'].mean():.3f} on average."]


figures.register(FigureSpec("confidence", Confidence, "how sure networks are", images=20))


# A panel in TensorBoard: one function.


def brightness(views, step):
    return {view.name: view.images[:1].repeat(8, 1).repeat(8, 2)[0] for view in views}


panels.register("brightness", brightness)


# A flag: one field of a class of settings.


@dataclasses.dataclass(frozen=True)
class Settings(TrainingSettings):
    temperature: float = setting(2.0, "Of nothing yet.", POSITIVE)
