"""The networks: sizes, names, normalisation, saving, and the folded batch normalisation."""

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


@pytest.mark.parametrize(("depth", "parameters"), [(20, 269_722), (56, 853_018), (110, 1_727_962)])
def test_parameters_are_the_papers(depth, parameters):
    assert trainable(models.resnet(depth)) == parameters


@pytest.mark.parametrize("depth", [8, 20])
def test_plain_has_the_parameters_but_not_the_function_of_resnet(depth, randomize):
    resnet, plain = (
        randomize(models.resnet(depth, (8, 8, 1), shortcut=shortcut)) for shortcut in (True, False)
    )
    assert trainable(plain) == trainable(resnet)
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
OUTPUTS = {
    "resnet8": {**STAGES, "features": 64, "logits": 10},
    "resnet8_e2": {**STAGES, "features": 64, "logits": 10, "bottleneck": 2},
    "plain8": {**STAGES, "features": 64, "logits": 10},
    "lenet": {"stage1": 4 * 4 * 32, "stage2": 2 * 2 * 64, "features": 1024, "logits": 10},
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
    network = models.build(name, input_shape=(8, 8, 1), embedding_at=embedding_at)

    outputs = network(np.zeros((3, 8, 8, 1), "float32"))

    assert {key: tuple(value.shape) for key, value in outputs.items()} == {
        "logits": (3, 10),
        "embedding": (3, width),
    }
    assert network.output_names == ["embedding", "logits"]
    assert {key: tuple(value.shape) for key, value in network.output.items()} == {
        "logits": (None, 10),
        "embedding": (None, width),
    }


@pytest.mark.parametrize("name", ["resnet8", "lenet"])
@pytest.mark.parametrize("num_classes", [2, 100])
def test_number_of_classes(name, num_classes):
    network = models.build(name, input_shape=(8, 8, 1), num_classes=num_classes)
    assert network.output["logits"].shape == (None, num_classes)


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


@pytest.mark.parametrize(
    ("name", "parameters"),
    [
        ("resnet20", 269_434),  # one input channel: 2 * 3 * 3 * 16 kernel values fewer
        ("plain20", 269_434),
        ("resnet20_e2", 269_434 - 650 + (64 * 2 + 2) + (2 * 10 + 10)),
        ("resnet20_e10x2", 269_434 - 650 + (64 * 10 + 10) + (10 * 2 + 2) + (2 * 10 + 10)),
        (
            "lenet",
            (25 * 32 + 32) + (25 * 32 * 64 + 64) + (2 * 2 * 64 * 1024 + 1024) + (1024 * 10 + 10),
        ),
    ],
)
def test_names_build_what_they_say(name, parameters):
    assert trainable(models.build(name, input_shape=(8, 8, 1))) == parameters


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("resnet21", "not 6n"),
        ("resnet2", "not 6n"),
        ("plain21", "not 6n"),
        ("vgg", "unknown model 'vgg'"),
        ("plain20_e2", "unknown model"),
        ("resnet20_e3", "unknown model"),
        ("resnet-20", "unknown model"),
        ("resnet20\n", "unknown model"),
        ("lenet5", "unknown model"),
        ("", "unknown model"),
    ],
)
def test_wrong_names_are_refused(name, message):
    with pytest.raises(InputError, match=message):
        models.build(name)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: models.resnet(21), "depth must be 6n"),
        (lambda: models.resnet(-4), "depth must be 6n"),
        (lambda: models.resnet(8, (10, 8, 1)), "divisible by 4"),
        (lambda: models.resnet(8, (8, 9, 1)), "divisible by 4"),
        (lambda: models.resnet(8, (8, 8, 1), embedding_at="stage4"), "'stage4' is none"),
        (lambda: models.resnet(8, (8, 8, 1), embedding_at="bottleneck"), "'bottleneck' is none"),
        (lambda: models.lenet((8, 8, 1), embedding_at="stage3"), "'stage3' is none"),
        (lambda: models.lenet((8, 8, 1), normalization="z"), "normalization 'z' is none of pixel"),
        (lambda: models.lenet((8, 8, 1), normalization="pixel"), "needs a mean image"),
        (lambda: models.lenet((8, 8, 1), normalization="channel"), "needs a mean image"),
        (
            lambda: models.lenet((8, 8, 1), normalization="pixel", mean=np.zeros((8, 8, 3))),
            r"\(8, 8, 3\)",
        ),
    ],
)
def test_wrong_options_are_refused(make, message):
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


@pytest.mark.parametrize("normalization", models.NORMALIZATIONS)
def test_normalization(normalization, colour_images, mean_image):
    uniform = np.full((1, 8, 8, 3), 0.3, "float32")  # without a floor, a division by zero
    nearly = uniform + np.float32(1e-3) * (np.arange(8) % 2)[:, None, None]
    images = np.concatenate([colour_images, uniform, nearly])
    inputs = keras.Input((8, 8, 3))
    network = keras.Model(inputs, models.normalize(inputs, normalization, mean_image))

    expected = numpy_normalize(normalization, images, mean_image)

    np.testing.assert_allclose(network(images), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("make", [models.resnet, models.lenet])
@pytest.mark.parametrize("normalization", ["pixel", "channel", "image"])
def test_normalization_is_inside_the_network(
    make, normalization, colour_images, mean_image, randomize
):
    options = {"input_shape": (8, 8, 3)}
    bare = randomize(make(**options))
    network = make(normalization=normalization, mean=mean_image, **options)
    assert trainable(network) == trainable(bare)
    for variable, value in zip(network.trainable_variables, bare.trainable_variables, strict=True):
        variable.assign(value)
    statistics = ("moving_mean", "moving_variance")
    pairs = ([v for v in n.variables if v.name in statistics] for n in (network, bare))
    for variable, value in zip(*pairs, strict=True):
        variable.assign(value)

    expected = bare(numpy_normalize(normalization, colour_images.numpy(), mean_image))

    np.testing.assert_allclose(
        network(colour_images)["logits"], expected["logits"], rtol=1e-4, atol=1e-4
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
    network = randomize(
        models.build(
            name,
            input_shape=(8, 8, 3),
            embedding_at="features",
            normalization=normalization,
            mean=mean_image,
        )
    )
    network.save(tmp_path / "network.keras")

    loaded = keras.models.load_model(tmp_path / "network.keras")

    assert loaded.name == network.name
    expected, actual = network(colour_images), loaded(colour_images)
    for output in ("logits", "embedding"):
        np.testing.assert_array_equal(actual[output], expected[output])
    for variable, value in zip(loaded.variables, network.variables, strict=True):
        np.testing.assert_array_equal(variable, value, err_msg=variable.path)


# Convolution and batch normalisation in one layer.


@pytest.fixture(params=[1, 2], ids=lambda strides: f"strides{strides}")
def both(request, randomize):
    """A ConvBatchNorm, and Keras' two layers with the same variables."""
    rng = np.random.default_rng(0)
    folded = ConvBatchNorm(8, request.param)
    convolution = keras.layers.Conv2D(8, 3, request.param, padding="same", use_bias=False)
    normalization = keras.layers.BatchNormalization(momentum=0.999, epsilon=1e-3)
    separate = keras.Sequential([keras.Input((6, 6, 5)), convolution, normalization])
    folded.build((None, 6, 6, 5))
    randomize(folded)
    convolution.kernel.assign(folded.kernel)
    for name in ("gamma", "beta", "moving_mean", "moving_variance"):
        getattr(normalization, name).assign(getattr(folded, name))
    images = tf.constant(rng.normal(0.5, 2, (16, 6, 6, 5)).astype("float32"))
    return folded, separate, images


def output_and_gradient(layer, images, training):
    with tf.GradientTape() as tape:
        tape.watch(images)
        outputs = layer(images, training=training)
    upstream = np.random.default_rng(1).normal(0, 1, outputs.shape).astype("float32")
    return outputs, tape.gradient(outputs, images, output_gradients=tf.constant(upstream))


@pytest.mark.parametrize("training", [False, True])
def test_folded_layer_is_convolution_and_batch_normalization(training, both):
    folded, separate, images = both
    outputs, gradient = output_and_gradient(folded, images, training)
    expected, expected_gradient = output_and_gradient(separate, images, training)

    assert outputs.shape == folded.compute_output_shape(images.shape) == expected.shape
    np.testing.assert_allclose(outputs, expected, rtol=1e-5, atol=1e-5)
    scale = np.abs(expected_gradient).max()
    np.testing.assert_allclose(gradient, expected_gradient, rtol=1e-5, atol=1e-5 * scale)


def test_training_and_inference_differ(both):
    """Or the two cases above would not tell the batch's statistics from the moving ones."""
    folded, _, images = both
    training, inference = (folded(images, training=mode) for mode in (True, False))
    assert np.abs(training - inference).max() > 0.1


def test_training_gradients_of_the_weights_are_those_of_keras(both):
    folded, separate, images = both
    found = []
    for layer in (folded, separate):
        with tf.GradientTape() as tape:
            total = tf.reduce_sum(layer(images, training=True) ** 3)
        found.append(tape.gradient(total, layer.trainable_variables))
    assert [v.name for v in folded.trainable_variables] == ["kernel", "gamma", "beta"]
    for actual, expected in zip(*found, strict=True):
        scale = np.abs(expected).max()
        np.testing.assert_allclose(actual, expected, rtol=1e-4, atol=1e-4 * scale)


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


def test_inference_moves_no_statistics(both):
    folded, _, images = both
    before = [variable.numpy() for variable in folded.variables]
    folded(images, training=False)
    folded(images)
    for variable, value in zip(folded.variables, before, strict=True):
        np.testing.assert_array_equal(variable, value)


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
