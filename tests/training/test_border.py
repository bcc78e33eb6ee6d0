"""Any classifier as a function of [0, 1] images: the same logits as of its twin without softmax."""

import keras
import numpy as np
import pytest
import tensorflow as tf

from cascade_keras import attacks, border
from cascade_keras.border import adapt
from cascade_keras.errors import InputError
from cascade_keras.evaluation import crafter

L = keras.layers
SHAPE, CLASSES = (8, 8, 1), 5
BYTES, SYMMETRIC = (0, 255), (-1, 1)


@pytest.fixture(scope="module")
def images():
    return tf.constant(np.random.default_rng(0).uniform(0, 1, (6, *SHAPE)).astype("float32"))


def body(inputs, width=12):
    return L.Dense(width, "tanh", name="features")(L.Flatten()(inputs))


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
    weights = [np.asarray(w, np.float64) for w in network.get_weights()]
    (first, bias), at = weights[:2], 4 if len(weights) == 6 and weights[2].shape[1] == 3 else 2
    second, shift = weights[at : at + 2]
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
    np.testing.assert_allclose(outputs.raw, network(images), rtol=1e-6)
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


def test_pixels_come_back_exactly():
    pixels = np.arange(256, dtype=np.uint8).reshape(1, 16, 16, 1)
    expected = pixels / np.float32(255)

    def unit(pixels):
        return border.to_unit(pixels, BYTES)

    def back(images):
        return border.from_unit(images, BYTES)

    for function in (lambda f: f, tf.function, lambda f: tf.function(f, jit_compile=True)):
        np.testing.assert_array_equal(function(unit)(tf.constant(pixels)), expected)
        np.testing.assert_array_equal(function(back)(tf.constant(expected)), pixels)
    np.testing.assert_array_equal(border.check_images(pixels, BYTES), expected)
    np.testing.assert_array_equal(border.check_images(pixels.astype("float64"), BYTES), expected)
    np.testing.assert_array_equal(border.guard_images(pixels, BYTES), expected)


def test_unit_images_are_left_alone(images):
    assert border.from_unit(images, (0, 1)) is images
    with tf.Graph().as_default() as graph:
        given = tf.compat.v1.placeholder(tf.float32, [None, *SHAPE])
        before = len(graph.get_operations())
        assert border.from_unit(border.to_unit(given, (0, 1)), (0, 1)) is given
        assert len(graph.get_operations()) == before


@pytest.mark.parametrize(
    ("values", "value_range", "said"),
    [
        ([0, 255.0], (0, 1), "pass value_range=\\(0, 255\\) if the network takes such, or divide"),
        ([-1, 1.0], (0, 1), "pass value_range=\\(-1, 1\\)"),
        ([0, 255.0], SYMMETRIC, "pass value_range=\\(0, 255\\)"),
        ([0, 1.0], BYTES, "pass value_range=\\(0, 1\\)"),
        ([0.2, 0.9], SYMMETRIC, "upper half"),
        ([-300.0, 1], BYTES, "the range that they are in"),
        ([0, 1], (0, 1), "images are int64"),
        ([0, 255], BYTES, "give uint8 or floats"),
        ([np.nan, 1], (0, 1), "not finite"),
        ([np.inf, 1], (0, 1), "not finite"),
    ],
)
def test_images_outside_the_range_are_refused(values, value_range, said):
    batch = np.resize(values, (8, 2, 2, 1))
    with pytest.raises(InputError, match=said):
        border.check_images(batch, value_range)
    with pytest.raises(InputError, match=said):
        border.guard_images(batch, value_range)
    if batch.dtype.kind == "f" and "half" not in said:
        with pytest.raises(tf.errors.InvalidArgumentError, match=r"outside of|reach 255"):
            tf.function(lambda x: border.guard_images(x, value_range))(tf.constant(batch))


@pytest.mark.parametrize("value_range", [(0, 1), BYTES, SYMMETRIC, (-2.5, 3)])
def test_images_of_the_range_are_taken(value_range):
    low, high = value_range
    batch = np.linspace(low - 5e-4 * (high - low), high, 64).reshape(4, 4, 4, 1)
    expected = np.clip((batch - low) / (high - low), 0, 1)
    np.testing.assert_allclose(border.check_images(batch, value_range), expected, atol=1e-6)
    guarded = tf.function(lambda x: border.guard_images(x, value_range))(tf.constant(batch))
    np.testing.assert_allclose(guarded, expected, atol=1e-6)
    np.testing.assert_allclose(
        border.from_unit(expected, value_range), np.clip(batch, low, high), atol=1e-4
    )
    black = np.zeros((1, 4, 4, 1), "float32")
    assert border.check_images(black, BYTES).max() == 0


@pytest.mark.parametrize(
    "value", [(1, 0), (0, 0), (0, np.nan), (0, np.inf), "01", 3, (1, 2, 3), None]
)
def test_ranges_are_checked(value):
    with pytest.raises(InputError, match="value_range: must be two"):
        border.check_value_range(value)
    assert border.check_value_range([0, np.float32(255)]) == (0, 255)


# One number for each image.


SINGLE = {
    "one logit": lambda: sequential(width=1),
    "sigmoid": lambda: sequential(width=1, activation="sigmoid"),
    "sigmoid layer": lambda: functional(L.Activation("sigmoid"), width=1),
    "of rank 1": lambda: functional(L.Activation("sigmoid"), L.Reshape(()), width=1),
    "subclassed": lambda: Subclassed(keras.ops.sigmoid, 1),
}


@pytest.mark.parametrize("name", SINGLE)
def test_one_logit_is_that_of_the_second_class(name, images):
    network = SINGLE[name]()
    adapted = adapt(network, image_shape=SHAPE)
    assert adapted.num_classes == 2
    z = reference(network, images)[:, 0]
    for run in (adapted, tf.function(adapted)):
        outputs = run(images)
        np.testing.assert_allclose(outputs.logits, np.stack([0 * z, z], 1), rtol=1e-4, atol=1e-5)
        np.testing.assert_allclose(outputs.raw, network(images), rtol=1e-6)
        second = tf.nn.softmax(outputs.logits)[:, 1]
        np.testing.assert_allclose(second, 1 / (1 + np.exp(-z)), rtol=1e-5)


# Whether outputs are logits is said.


def test_what_is_said_of_outputs_counts(images):
    sigmoids = sequential(activation="sigmoid")
    with pytest.raises(InputError, match="from_logits=False if an image has one class"):
        adapt(sigmoids)
    scores = adapt(sigmoids, from_logits=False)
    np.testing.assert_allclose(
        scores.logits(images), reference(sigmoids, images), rtol=1e-4, atol=1e-5
    )
    softmax = sequential(activation="softmax")
    np.testing.assert_array_equal(adapt(softmax, from_logits=True).logits(images), softmax(images))
    exact = adapt(softmax, from_logits=False).logits(images)
    np.testing.assert_allclose(exact, reference(softmax, images), rtol=1e-4, atol=1e-5)
    with pytest.raises(InputError, match="cannot be reached"):
        adapt(sequential(), from_logits=False)
    with pytest.raises(InputError, match="from_logits: must be True, False or 'auto'"):
        adapt(softmax, from_logits="yes")


def mean_of_softmaxes():
    inputs = keras.Input(SHAPE)
    each = [L.Dense(CLASSES, "softmax")(L.Flatten()(inputs)) for _ in range(2)]
    return keras.Model(inputs, L.Average()(each))


REFUSED = {
    "mean of softmaxes": (mean_of_softmaxes, "rows sum to 1.* cannot be reached"),
    "clipped": (
        lambda: functional(L.Softmax(), L.Lambda(lambda x: tf.clip_by_value(x, 1e-7, 1))),
        "reached",
    ),
    "by hand": (
        lambda: Subclassed(lambda x: tf.exp(x) / tf.reduce_sum(tf.exp(x), -1, keepdims=True)),
        "reached",
    ),
    "a sigmoid by hand": (lambda: Subclassed(lambda x: 1 / (1 + tf.exp(-x)), 1), r"\[0, 1\] only"),
    "sigmoids by hand": (lambda: Subclassed(lambda x: 1 / (1 + tf.exp(-x))), r"\[0, 1\] only"),
    "own gradient": (lambda: Subclassed(straight_through), "reached"),
    "rows torn apart": (
        lambda: Subclassed(lambda x: tf.reshape(tf.nn.softmax(x), [-1, CLASSES]), 2 * CLASSES),
        "reached",
    ),
    "softmax of one": (lambda: sequential(L.Softmax(), width=1), "always 1"),
    "softmax over places": (
        lambda: functional(L.Reshape((CLASSES, 1)), L.Softmax(1), L.Flatten()),
        "reached",
    ),
    "feature maps": (
        lambda: keras.Sequential([keras.Input(SHAPE), L.Conv2D(3, 3)]),
        "must return floats",
    ),
    "classes": (lambda: functional(L.Lambda(lambda x: tf.argmax(x, -1))), "must return floats"),
    "two outputs": (lambda: several(list), "name the output that"),
}


@tf.custom_gradient
def straight_through(x):
    return tf.nn.softmax(x), lambda gradient: gradient


@pytest.mark.parametrize("name", REFUSED)
def test_what_has_no_logits_is_refused(name, images):
    make, said = REFUSED[name]
    with pytest.raises(InputError, match=said):
        adapt(make(), image_shape=SHAPE)
    with pytest.raises(InputError, match=said):
        adapt(make().__call__)(images)  # a function, whose images' size is known only now


# Several outputs.


def several(form):
    inputs = keras.Input(SHAPE)
    features = body(inputs)
    scores, other = (
        L.Dense(CLASSES, "softmax", name="scores")(features),
        L.Dense(3, name="other")(features),
    )
    outputs = {"scores": scores, "other": other} if form is dict else [other, scores]
    return keras.Model(inputs, outputs)


@pytest.mark.parametrize(
    ("make", "names"),
    [
        (lambda: several(dict), {"logits": "scores", "embedding": "features"}),
        (lambda: several(list), {"logits": "scores", "embedding": "features"}),
        (lambda: functional(keras.Sequential([L.Softmax()])), {"embedding": "features"}),
        (lambda: Subclassed(), {"embedding": "features"}),
        (
            lambda: keras.Sequential([keras.Input(SHAPE), sequential(), L.Softmax()]),
            {"embedding": "features"},
        ),
        (
            lambda: functional(L.Softmax(), L.Lambda(lambda x: x**2)),
            {"logits": "scores", "embedding": "features"},
        ),
    ],
)
@pytest.mark.parametrize("mode", ["eager", "graph"])
def test_outputs_and_layers_by_name(make, names, mode, images):
    network = make()
    adapted = adapt(network, **names, image_shape=SHAPE)
    outputs = (tf.function(adapted) if mode == "graph" else adapted)(images)
    np.testing.assert_allclose(outputs.logits, reference(network, images), rtol=1e-4, atol=1e-5)
    first, bias = network.get_weights()[:2]
    features = np.tanh(images.numpy().reshape(6, -1) @ first + bias)
    np.testing.assert_allclose(outputs.embedding, features, rtol=1e-4, atol=1e-5)
    assert not any("call" in vars(layer) for layer in network.layers)


def test_an_embedding_is_flattened_and_unknown_names_are_refused(images):
    inputs = keras.Input(SHAPE)
    maps = L.Conv2D(3, 3, name="maps")(inputs)
    network = keras.Model(inputs, L.Dense(CLASSES)(L.Flatten()(maps)))
    adapted = adapt(network, embedding="maps")
    expected = keras.Model(inputs, maps)(images).numpy().reshape(6, -1)
    np.testing.assert_allclose(adapted(images).embedding, expected, rtol=1e-5)
    for setting in ("embedding", "logits"):
        with pytest.raises(
            InputError, match=f"{setting}: the network has no output and no layer 'x'"
        ):
            adapt(network, **{setting: "x"})
    assert adapt(functional()).logits(images).shape == (6, CLASSES)
    twice = keras.Sequential(
        [keras.Sequential([L.Flatten(name="a")]), keras.Sequential([L.Dense(3, name="a")])]
    )
    with pytest.raises(InputError, match="2 layers of the network are called 'a'"):
        adapt(twice, embedding="a", image_shape=SHAPE)


def test_outputs_in_half_precision(images):
    keras.utils.set_random_seed(3)
    policy = keras.config.dtype_policy()
    keras.config.set_dtype_policy("mixed_bfloat16")
    try:
        networks = [
            sequential(L.Softmax()),
            sequential(activation="softmax"),
            sequential(L.Softmax(dtype="float32")),
        ]
    finally:
        keras.config.set_dtype_policy(policy)
    for network in networks:
        adapted = adapt(network)
        assert adapted.kind == "softmax"
        logits = adapted.logits(images)
        assert logits.dtype == tf.float32
        np.testing.assert_allclose(logits, reference(network, images), atol=0.05)


def test_training_moves_what_training_moves(images):
    network = functional(L.BatchNormalization(), L.Dropout(0.5), L.Softmax())
    adapted = adapt(network)
    before = network.get_weights()
    adapted.logits(images)
    for a, b in zip(before, network.get_weights(), strict=True):
        np.testing.assert_array_equal(a, b)
    for run in (adapted, tf.function(adapted)):
        assert (run(images, training=True).logits.numpy() == 0).any()  # dropped
    norm = network.layers[-3]
    assert np.any(norm.moving_mean != before[-2])


def test_a_function_may_ask_for_values_wherever_it_is_traced(images):
    """Our graphs do without AutoGraph; what a user wrote, and what that calls, does not."""
    network = sequential()

    def brighter(batch):
        if tf.reduce_max(batch) > 0.9:  # a tensor in a graph
            batch = batch / 2
        return batch

    def function(batch):
        for _ in tf.range(2):
            batch = brighter(batch)
        return network(batch)

    given = tf.concat([images[:3], tf.ones_like(images[:1])], 0)
    expected = network(given / 2)
    graph = tf.function(adapt(function).logits, autograph=False)
    np.testing.assert_allclose(graph(given), expected, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(adapt(function).logits(given), expected, rtol=1e-4, atol=1e-5)
    labels = np.arange(4) % CLASSES
    made = crafter(function, given.shape[1:], "step_fgsm", [8])(given, labels, 0)
    alone = attacks.step_fgsm(lambda batch: network(batch / 2), given, labels, 8)
    np.testing.assert_allclose(made[0], alone, atol=1e-6)


def test_any_function_and_any_size(images):
    network = sequential(activation="softmax")
    adapted = adapt(lambda images: {"logits": network(images), "other": images})
    assert adapted.num_classes is None and adapted.kind is None
    np.testing.assert_allclose(
        tf.function(adapted.logits)(images), reference(network, images), rtol=1e-4, atol=1e-5
    )
    assert (adapted.num_classes, adapted.kind) == (CLASSES, "softmax")
    pooled = keras.Sequential(
        [
            keras.Input((None, None, 1)),
            L.Conv2D(4, 3),
            L.GlobalAveragePooling2D(),
            L.Dense(3, "softmax"),
        ]
    )
    adapted = adapt(pooled)
    signature = [tf.TensorSpec([None, None, None, 1])]
    graph = tf.function(adapted.logits, input_signature=signature)(images)
    np.testing.assert_allclose(tf.nn.softmax(graph), pooled(images), rtol=1e-5)
    with pytest.raises(InputError, match="a network is a Keras model or a function"):
        adapt(3)
    with pytest.raises(InputError, match="takes images of shape"):
        adapt(network, image_shape=(9, 9, 1))
