"""Networks that are there at once: smooth functions, and ones fitted to the digits."""

import functools
import json

import keras
import numpy as np
import tensorflow as tf

from cascade_keras import data

CLASSES = 10


@functools.cache
def smooth_network(seed=0):
    """A convolution without kinks: generic gradients in any float type."""
    rng = np.random.default_rng(seed)
    kernel, dense = rng.normal(0, 0.5, (3, 3, 1, 6)), rng.normal(0, 0.2, (96, CLASSES))

    def logits_fn(images):
        features = tf.nn.conv2d(images - 0.3, tf.cast(kernel, images.dtype), 2, "SAME")
        return tf.reshape(tf.tanh(features), [-1, 96]) @ tf.cast(dense, images.dtype)

    return logits_fn


smooth = smooth_network()


def features(seed, width=40):
    """Random features and a fitted last layer: right about nine times in ten."""
    images, labels = data.load("digits").train
    rng = np.random.default_rng(seed)
    first = rng.normal(0, 0.3, (64, width)).astype("float32")
    bias = rng.normal(0, 0.3, width).astype("float32")
    hidden = np.tanh(images.reshape(-1, 64) / np.float32(255) @ first + bias)
    last = np.linalg.lstsq(hidden, 10 * np.eye(10)[labels], rcond=None)[0]
    inputs = keras.Input((8, 8, 1))
    values = keras.layers.Flatten()(inputs)
    values = keras.layers.Dense(width, "tanh", name="hidden")(values)
    network = keras.Model(inputs, keras.layers.Dense(10, name="logits")(values))
    network.get_layer("hidden").set_weights([first, bias])
    network.get_layer("logits").set_weights([last, np.zeros(10)])
    return network


def save_run(path, network, **flags):
    """Write what is read of a finished run."""
    path.mkdir(parents=True)
    recipe = {"model": "lenet", "loss": "pivot", "steps": 7, "seed": 0, "dataset": "digits"}
    recipe |= {"init_from": None, "distance_weight": 1e-4} | flags
    dataset = {"name": recipe["dataset"], "fingerprint": "f" * 64}
    config = {"flags": recipe, "seed": recipe["seed"], "dataset": dataset, "versions": {}}
    (path / "config.json").write_text(json.dumps(config))
    network.save(path / "model.keras")
