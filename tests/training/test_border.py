"""Any classifier as a function of [0, 1] images: the same logits as of its twin without softmax."""

import keras
import numpy as np
import pytest
import tensorflow as tf

from cascade_keras import border
from cascade_keras.border import adapt
from cascade_keras.errors import InputError

L = keras.layers
SHAPE, CLASSES = (8, 8, 1), 5
BYTES, SYMMETRIC = (0, 255), (-1, 1)


@pytest.fixture(scope="module")
def images():
    return tf.constant(np.random.default_rng(0).uniform(0, 1, (6, *SHAPE)).astype("float32"))


def body(inputs, width=12):
    features = L.Dense(width, "tanh", name="features")(L.Flatten()(inputs))
    return features


class Subclassed(keras.Model):
    """Softmax is a line of its call."""

    def __init__(self, last=keras.ops.softmax, width=CLASSES):
        super().__init__()
        self.flatten, self.first = L.Flatten(), L.Dense(12, "tanh", name="features")
        self.dense, self.last = L.Dense(width, name="scores"), last

    def call(self, inputs):
        return self.last(self.dense(self.first(self.flatten(inputs))))


def functional(*last, width=CLASSES):
    inputs = keras.Input(SHAPE)
    outputs = L.Dense(width, name="scores")(body(inputs))
    for layer in last:
        outputs = layer(outputs)
    return keras.Model(inputs, outputs)


def sequential(*last, width=CLASSES, activation=None):
    layers = [L.Flatten(), L.Dense(12, "tanh", name="features")]
    return keras.Sequential(
        [keras.Input(SHAPE), *layers, L.Dense(width, activation, name="scores"), *last]
    )


def reference(network, images, value_range=(0, 1)):
    """The logits of the network's own weights, by NumPy."""
    low, high = value_range
    x = np.asarray(images, np.float64).reshape(len(images), -1) * (high - low) + low
    first, bias, second, shift = (np.asarray(w, np.float64) for w in network.get_weights()[:4])
    return np.tanh(x @ first + bias) @ second + shift


PROBABILITIES = {
    "layer": lambda: sequential(L.Softmax()),
    "activation argument": lambda: sequential(activation="softmax"),
    "activation layer": lambda: functional(L.Activation("softmax")),
    "nested": lambda: functional(keras.Sequential([L.Softmax()])),
    "twice nested": lambda: functional(keras.Sequential([keras.Sequential([L.Softmax()])])),
    "lambda": lambda: functional(L.Lambda(lambda x: keras.ops.softmax(x))),
    "reshaped": lambda: functional(L.Reshape((1, CLASSES)), L.Softmax(), L.Flatten()),
    "float32 after": lambda: functional(L.Softmax(), L.Activation("linear", dtype="float32")),
    "subclassed": Subclassed,
    "subclassed, TensorFlow's": lambda: Subclassed(tf.nn.softmax),
    "log-softmax": lambda: functional(L.Activation("log_softmax")),
    "logits": functional,
    "sequential logits": sequential,
    "subclassed logits": lambda: Subclassed(lambda x: x),
}


def gradients(function, variables, images):
    """Of a fixed weighting of the logits, with respect to images and weights."""
    with tf.GradientTape() as tape:
        tape.watch(images)
        logits = function(images)
        total = tf.reduce_sum(logits * tf.range(1.0, logits.shape[-1] + 1) / len(images))
    return [tf.convert_to_tensor(g) for g in tape.gradient(total, [images, *variables])]


@pytest.mark.parametrize("name", PROBABILITIES)
@pytest.mark.parametrize("mode", ["eager", "graph"])
def test_logits_are_those_before_the_softmax(name, mode, images):
    keras.utils.set_random_seed(1)
    network = PROBABILITIES[name]()
    adapted = adapt(network, image_shape=SHAPE)
    assert (adapted.num_classes, adapted.input_shape) == (CLASSES, SHAPE)

    def logits_fn(images):
        return adapted(images, training=True).logits

    run = tf.function(gradients) if mode == "graph" else gradients
    variables = network.trainable_variables
    expected = reference(network, images)
    if name == "log-softmax":
        expected -= np.log(np.exp(expected).sum(-1, keepdims=True))
    np.testing.assert_allclose(adapted.logits(images), expected, rtol=1e-4, atol=1e-5)
    if name == "log-softmax":
        return

    weights = [v.value for v in variables]

    def plain(images):
        first, bias, second, shift = weights
        return tf.tanh(tf.reshape(images, [-1, 64]) @ first + bias) @ second + shift

    for own, other in zip(
        run(logits_fn, weights, images), gradients(plain, weights, images), strict=True
    ):
        np.testing.assert_allclose(own, other, rtol=1e-4, atol=1e-5)


def test_logits_are_reached_where_probabilities_saturate(images):
    network = sequential(activation="softmax")
    network.set_weights([w * 100 for w in network.get_weights()])
    adapted = adapt(network)
    np.testing.assert_allclose(adapted.logits(images), reference(network, images), rtol=1e-4)
    assert np.any(gradients(adapted.logits, [], images)[0])
    outputs = adapted(images)
    np.testing.assert_array_equal(outputs.raw, network(images))
    assert outputs.raw.numpy().max() == 1


def test_within_loops_and_conditions(images):
    adapted = adapt(functional(keras.Sequential([L.Softmax()])))

    def attack(images):
        def body(n, x):
            gradient = tf.cond(n < 5, lambda: gradients(adapted.logits, [], x)[0], lambda: x)
            return n + 1, x + 0.01 * tf.sign(gradient)

        return tf.while_loop(lambda n, _: n < 3, body, (0, images))[1]

    graph = tf.function(attack)(images)
    np.testing.assert_allclose(graph, attack(images), atol=1e-6)
    compiled = tf.function(adapted.logits, jit_compile=True)(images)
    np.testing.assert_allclose(compiled, reference(adapted.network, images), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("value_range", [(0, 1), BYTES, SYMMETRIC])
@pytest.mark.parametrize("last", [(), (L.Softmax(),)], ids=["logits", "softmax"])
def test_the_network_is_given_its_own_range(value_range, last, images):
    network = sequential(*last)
    network.layers[1].kernel.assign(network.layers[1].kernel / max(map(abs, value_range)))
    adapted = adapt(network, value_range=value_range)
    expected = reference(network, images, value_range)
    np.testing.assert_allclose(adapted.logits(images), expected, rtol=1e-4, atol=1e-5)
