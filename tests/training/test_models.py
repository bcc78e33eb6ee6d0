"""The networks: sizes, names, normalisation, saving, and the folded batch normalisation."""

import functools

import keras
import numpy as np
import pytest
import tensorflow as tf

from cascade_keras import models
from cascade_keras.errors import InputError
from cascade_keras.layers import ConvBatchNorm
from cascade_keras.models import specs


def trainable(network):
    return sum(int(np.prod(variable.shape)) for variable in network.trainable_variables)


@pytest.fixture(scope="module")
def mean_image():
    return np.random.default_rng(0).uniform(0.2, 0.8, (8, 8, 3)).astype("float32")


@pytest.fixture(scope="module")
def colour_images():
    return tf.constant(np.random.default_rng(1).uniform(0, 1, (6, 8, 8, 3)).astype("float32"))


# Size.


BOTTLENECK = -650 + (64 * 2 + 2) + (2 * 10 + 10)  # instead of the one layer of the logits
HIDDEN = -650 + (64 * 10 + 10) + (10 * 2 + 2) + (2 * 10 + 10)
LENET = (25 * 32 + 32) + (25 * 32 * 64 + 64) + (2 * 2 * 64 * 1024 + 1024) + (1024 * 10 + 10)


@pytest.mark.parametrize(
    ("name", "input_shape", "parameters"),
    [
        ("resnet20", (32, 32, 3), 269_722),  # as He et al. say
        ("resnet56", (32, 32, 3), 853_018),
        ("resnet110", (32, 32, 3), 1_727_962),
        ("resnet20", (8, 8, 1), 269_434),  # one input channel: 2 * 3 * 3 * 16 values fewer
        ("plain20", (8, 8, 1), 269_434),
        ("resnet20_e2", (8, 8, 1), 269_434 + BOTTLENECK),
        ("resnet20_e10x2", (8, 8, 1), 269_434 + HIDDEN),
        ("lenet", (8, 8, 1), LENET),
    ],
)
def test_parameters_are_as_many_as_the_name_says(name, input_shape, parameters):
    assert trainable(models.build(name, input_shape=input_shape)) == parameters


def test_plain_has_not_the_function_of_resnet(randomize):
    resnet, plain = (
        randomize(models.resnet(8, (8, 8, 1), shortcut=shortcut)) for shortcut in (True, False)
    )
    images = np.random.default_rng(0).uniform(0, 1, (2, 8, 8, 1)).astype("float32")
    assert not np.allclose(plain(images)["logits"], resnet(images)["logits"], atol=1e-2)


def test_shortcut_averages_and_pads_with_zero_channels():
    """Option A of He et al.: with its convolutions silenced a block is its shortcut."""
    network = models.resnet(8, (8, 8, 1), embedding_at="stage3")
    stem, *convolutions = [layer for layer in network.layers if isinstance(layer, ConvBatchNorm)]
    for layer in convolutions:
        layer.gamma.assign(np.zeros(layer.filters))
    images = np.random.default_rng(0).uniform(0, 1, (2, 8, 8, 1)).astype("float32")
    actual = network(images)["embedding"]
    features = tf.nn.relu(stem(images)).numpy().reshape(2, 2, 4, 2, 4, 16).mean(axis=(2, 4))
    expected = np.pad(features, ((0, 0), (0, 0), (0, 0), (8 + 16, 8 + 16)))
    np.testing.assert_allclose(actual, expected.reshape(2, -1), rtol=1e-5, atol=1e-6)


# Outputs.


# Every stage that a row names, and its width.
STAGES = {"stem": 8 * 8 * 16, "stage1": 8 * 8 * 16, "stage2": 4 * 4 * 32, "stage3": 2 * 2 * 64}
RESNET = {**STAGES, "features": 64, "logits": 7}
OUTPUTS = {
    "resnet8": RESNET,
    "resnet8_e2": {**RESNET, "bottleneck": 2},
    "plain8": RESNET,
    "lenet": {"stage1": 4 * 4 * 32, "stage2": 2 * 2 * 64, "features": 1024, "logits": 7},
}


@pytest.mark.parametrize(("name", "spec"), zip(OUTPUTS, specs.MODELS, strict=True))
def test_stages_are_those_of_the_row(name, spec):
    assert specs.look_up(name)[0] is spec
    assert spec.stages == tuple(OUTPUTS[name])


@pytest.mark.parametrize(
    ("name", "embedding_at", "width"),
    [(name, *stage) for name, stages in OUTPUTS.items() for stage in stages.items()]
    + [("resnet8_e10x2", "bottleneck", 2)],
)
def test_outputs_have_names_and_shapes(name, embedding_at, width):
    options = {"input_shape": (8, 8, 1), "embedding_at": embedding_at, "num_classes": 7}
    network = models.build(name, **options)
    outputs = network(np.zeros((3, 8, 8, 1), "float32"))
    assert network.output_names == ["embedding", "logits"]
    for batch, found in ((3, outputs), (None, network.output)):
        shapes = {key: tuple(value.shape) for key, value in found.items()}
        assert shapes == {"logits": (batch, 7), "embedding": (batch, width)}


@pytest.mark.parametrize(
    ("name", "embedding_at"), [("resnet8", "features"), ("resnet8_e2", "bottleneck")]
)
def test_logits_are_a_dense_layer_of_the_last_embedding(name, embedding_at, randomize):
    """Which the pivot and bidirectional losses rely on: the embedding is what classifies."""
    network = randomize(models.build(name, input_shape=(8, 8, 1), embedding_at=embedding_at))
    outputs = network(np.random.default_rng(0).uniform(0, 1, (4, 8, 8, 1)).astype("float32"))
    kernel, bias = (weight.numpy() for weight in network.trainable_variables[-2:])
    assert kernel.shape[1] == 10
    np.testing.assert_allclose(
        outputs["logits"], outputs["embedding"] @ kernel + bias, rtol=1e-5, atol=1e-5
    )


# Names and options.


def wrong_resnet(depth=8, input_shape=(8, 8, 1), **options):
    return lambda: models.resnet(depth, input_shape, **options)


def wrong_lenet(**options):
    return lambda: models.lenet((8, 8, 1), **options)


NAMES = [
    *((name, "not 6n") for name in ("resnet21", "resnet2", "plain21")),
    *((name, "unknown") for name in ("vgg", "plain20_e2", "resnet20_e3", "resnet-20", "lenet5")),
    *((name, "unknown") for name in ("resnet20\n", "")),
]
OPTIONS = [
    (wrong_resnet(21), "6n"),
    (wrong_resnet(-4), "6n"),
    (wrong_resnet(8, (10, 8, 1)), "divisible by 4"),
    (wrong_resnet(8, (8, 9, 1)), "divisible by 4"),
    (wrong_resnet(embedding_at="stage4"), "'stage4' is none"),
    (wrong_resnet(embedding_at="bottleneck"), "'bottleneck' is none"),
    (wrong_lenet(embedding_at="stage3"), "'stage3' is none"),
    (wrong_lenet(normalization="z"), "'z' is none of pixel"),
    (wrong_lenet(normalization="pixel"), "mean image"),
    (wrong_lenet(normalization="channel"), "mean image"),
    (wrong_lenet(normalization="pixel", mean=np.zeros((8, 8, 3))), r"\(8, 8, 3\)"),
]


@pytest.mark.parametrize(
    ("make", "message"),
    [(functools.partial(models.build, name), message) for name, message in NAMES] + OPTIONS,
)
def test_wrong_names_and_options_are_refused(make, message):
    with pytest.raises(InputError, match=message):
        make()


def stripes(input_shape, num_classes, *, embedding_at, normalization, mean, width):
    """A user's network: the sums of the rows, and one hidden layer."""
    inputs = keras.Input(input_shape, name="images")
    features = models.normalize(inputs, normalization, mean)
    features = keras.ops.sum(features, axis=(2, 3))
    stages = {"rows": features}
    features = keras.layers.Dense(width, activation="relu")(features)
    return models.finish(
        "stripes", inputs, stages, features, num_classes, embedding_at=embedding_at
    )


def test_one_row_makes_a_network(monkeypatch):
    monkeypatch.setattr(specs, "MODELS", [*specs.MODELS])
    row = models.ModelSpec(
        "stripesW",
        r"stripes(?P<width>\d+)",
        stripes,
        lambda match: {"width": int(match["width"])},
        ("rows", "features"),
    )
    models.register(row)
    options = {"input_shape": (8, 4, 3), "normalization": "none", "mean": None, "num_classes": 5}
    network = models.build("stripes7", embedding_at="rows", **options)
    assert network.output["embedding"].shape == (None, 8)
    assert trainable(network) == (8 * 7 + 7) + (7 * 5 + 5)
    assert "stripesW" in specs.known_names()
    with pytest.raises(InputError, match="embedding_at: 'stem' is none of rows"):
        models.build("stripes7", embedding_at="stem", **options)
    with pytest.raises(ValueError, match="already"):
        models.register(row)


# Normalisation, the first layer.


def numpy_normalize(normalization, images, mean):
    if normalization == "pixel":
        return images - mean
    if normalization == "channel":
        return images - mean.mean(axis=(0, 1))
    if normalization == "image":
        return tf.image.per_image_standardization(images).numpy()
    return images


@pytest.mark.parametrize("make", [models.resnet, models.lenet])
@pytest.mark.parametrize("normalization", models.NORMALIZATIONS)
def test_normalization_is_the_first_layer(
    make, normalization, colour_images, mean_image, randomize
):
    uniform = np.full((1, 8, 8, 3), 0.3, "float32")  # without a floor, a division by zero
    nearly = uniform + np.float32(1e-3) * (np.arange(8) % 2)[:, None, None]
    images = np.concatenate([colour_images, uniform, nearly])
    inputs = keras.Input((8, 8, 3))
    layer = keras.Model(inputs, models.normalize(inputs, normalization, mean_image))
    expected = numpy_normalize(normalization, images, mean_image)
    np.testing.assert_allclose(layer(images), expected, rtol=1e-5, atol=1e-5)

    options = {"input_shape": (8, 8, 3)}
    bare = randomize(make(**options))
    network = randomize(make(normalization=normalization, mean=mean_image, **options))
    assert trainable(network) == trainable(bare)
    np.testing.assert_allclose(
        network(images)["logits"], bare(expected)["logits"], rtol=1e-4, atol=1e-4
    )


# Saving.


@pytest.mark.parametrize(
    ("name", "normalization"),
    [("resnet8", kind) for kind in models.NORMALIZATIONS]
    + [("lenet", "pixel"), ("plain8", "none"), ("resnet8_e10x2", "channel")],
)
def test_saving_keeps_every_bit(
    name, normalization, colour_images, mean_image, randomize, tmp_path
):
    options = {"input_shape": (8, 8, 3), "normalization": normalization, "mean": mean_image}
    network = randomize(models.build(name, embedding_at="features", **options))
    network.save(tmp_path / "network.keras")
    loaded = keras.models.load_model(tmp_path / "network.keras")
    assert loaded.name == network.name
    expected, actual = network(colour_images), loaded(colour_images)
    for output in ("logits", "embedding"):
        np.testing.assert_array_equal(actual[output], expected[output])
    for variable, value in zip(loaded.variables, network.variables, strict=True):
        np.testing.assert_array_equal(variable, value, err_msg=variable.path)


# Convolution and batch normalisation in one layer.


def output_and_gradients(layer, images, training):
    """The outputs, and the gradients by the images and the weights of an unequal sum of them."""
    with tf.GradientTape() as tape:
        tape.watch(images)
        outputs = layer(images, training=training)
        weights = np.random.default_rng(1).normal(0, 1, outputs.shape)
        total = tf.reduce_sum(weights.astype("float32") * outputs)
    return outputs, tape.gradient(total, [images, *layer.trainable_variables])


@pytest.mark.parametrize("strides", [1, 2])
@pytest.mark.parametrize("training", [False, True])
def test_folded_layer_is_convolution_and_batch_normalization(training, strides, randomize):
    folded = ConvBatchNorm(8, strides)
    convolution = keras.layers.Conv2D(8, 3, strides, padding="same", use_bias=False)
    normalization = keras.layers.BatchNormalization(momentum=0.999, epsilon=1e-3)
    separate = keras.Sequential([keras.Input((6, 6, 5)), convolution, normalization])
    folded.build((None, 6, 6, 5))
    randomize(folded)
    convolution.kernel.assign(folded.kernel)
    for name in ("gamma", "beta", "moving_mean", "moving_variance"):
        getattr(normalization, name).assign(getattr(folded, name))
    rng = np.random.default_rng(0)
    images = tf.constant(rng.normal(0.5, 2, (16, 6, 6, 5)).astype("float32"))
    before, default = [variable.numpy() for variable in folded.variables], folded(images)
    outputs, gradients = output_and_gradients(folded, images, training)
    moved = [not np.array_equal(v, value) for v, value in zip(folded.variables, before)]
    expected, expected_gradients = output_and_gradients(separate, images, training)
    assert outputs.shape == folded.compute_output_shape(images.shape) == expected.shape
    np.testing.assert_allclose(outputs, expected, rtol=1e-5, atol=1e-5)
    assert [v.name for v in folded.trainable_variables] == ["kernel", "gamma", "beta"]
    for actual, gradient in zip(gradients, expected_gradients, strict=True):
        scale = np.abs(gradient).max()
        np.testing.assert_allclose(actual, gradient, rtol=1e-4, atol=1e-5 * scale)
    # Inference, which is the default, takes the moving statistics and moves none.
    assert any(moved) == training == (np.abs(outputs - default).max() > 0.1)


@pytest.mark.parametrize("momentum", [0.999, 0.3])
def test_moving_statistics_start_fast_and_end_at_the_momentum(momentum):
    """The decay after t passes is min(momentum, (1 + t) / (10 + t))."""
    layer = ConvBatchNorm(4, momentum=momentum)
    rng = np.random.default_rng(0)
    expected_mean, expected_variance = np.zeros(4), np.ones(4)
    for t in range(12):
        images = tf.constant(rng.normal(t, 1 + t, (8, 4, 4, 3)).astype("float32"))
        layer(images, training=True)
        features = tf.nn.conv2d(images, layer.kernel, 1, "SAME").numpy().reshape(-1, 4)
        decay = min(momentum, (1 + t) / (10 + t))
        expected_mean += (1 - decay) * (features.mean(axis=0) - expected_mean)
        expected_variance += (1 - decay) * (features.var(axis=0, ddof=1) - expected_variance)

        assert layer.passes == t + 1
        np.testing.assert_allclose(layer.moving_mean, expected_mean, rtol=1e-4, atol=1e-4)
        np.testing.assert_allclose(layer.moving_variance, expected_variance, rtol=1e-4)


# Mixed precision.


@pytest.fixture
def mixed_bfloat16():
    before = keras.config.dtype_policy()
    keras.config.set_dtype_policy("mixed_bfloat16")
    yield
    keras.config.set_dtype_policy(before)


@pytest.mark.parametrize(
    ("name", "normalization"),
    [*(("resnet8", kind) for kind in models.NORMALIZATIONS), ("resnet8_e2", "none"),
     ("lenet", "pixel")],
)  # fmt: skip
@pytest.mark.parametrize("training", [False, True])
def test_mixed_precision_keeps_outputs_and_variables_in_float32(
    name, normalization, training, mixed_bfloat16, colour_images, mean_image, randomize
):
    options = {"input_shape": (8, 8, 3), "normalization": normalization, "mean": mean_image}
    network = randomize(models.build(name, embedding_at="features", **options))
    convolutions = (ConvBatchNorm, keras.layers.Conv2D)
    hidden = [layer for layer in network.layers if isinstance(layer, convolutions)]
    assert {layer.compute_dtype for layer in hidden} == {"bfloat16"}
    outputs = network(colour_images, training=training)
    assert {value.dtype for value in outputs.values()} == {tf.float32}
    assert {variable.dtype for variable in network.variables} == {"float32"}
    rounded = tf.cast(tf.cast(outputs["logits"], tf.bfloat16), tf.float32)
    assert np.mean(rounded != outputs["logits"]) > 0.9  # computed, not just cast, in float32
    keras.config.set_dtype_policy("float32")
    exact = randomize(models.build(name, embedding_at="features", **options))
    expected = exact(colour_images, training=training)["embedding"].numpy()
    error = np.abs(outputs["embedding"] - expected).max()
    assert 0 < error < 0.1 * np.abs(expected).max()  # bfloat16 has 8 bits
