"""Saved networks of every form as sources: the same outputs and gradients, or one line of error."""

import json
import shutil

import keras
import numpy as np
import pytest
import tensorflow as tf

from cascade_keras import attacks, models
from cascade_keras.errors import InputError
from cascade_keras.export import export_saved_model
from cascade_keras.provenance import PROVENANCE_FILE, weights_hash
from cascade_keras.runs.run import Run
from cascade_keras.sources import load_source
from cascade_keras.training import AdversarialTrainer

SHAPE, CLASSES = (8, 8, 1), 10
FLAGS = {"model": "resnet8", "loss": "pivot"}
DATASET = {"name": "digits", "fingerprint": "f" * 64}
CONFIG = {"flags": FLAGS, "dataset": DATASET, "seed": 3, "versions": {}}


def outputs_and_gradient(network, images, labels):
    with tf.GradientTape() as tape:
        tape.watch(images)
        outputs = network(images)
        objective = attacks.cross_entropy(labels)(outputs["logits"])
    return outputs, tape.gradient(objective, images)


@pytest.fixture(scope="module")
def network(randomize):
    """A network whose embedding is not its logits."""
    return randomize(models.resnet(8, SHAPE, embedding_at="features"))


@pytest.fixture(scope="module")
def other(randomize):
    return randomize(models.resnet(8, SHAPE, embedding_at="features"), seed=1)


@pytest.fixture(scope="module")
def forms(network, other, tmp_path_factory):
    """The network in every form that can be named: form -> path."""
    place = tmp_path_factory.mktemp("forms")
    exported = export_saved_model(network, place / "once" / "net", {"recipe": FLAGS})
    earlier = export_saved_model(other, place / "before" / "net")
    for version, made in {2: earlier, 9: earlier, 10: exported}.items():
        shutil.copytree(made, place / "net" / str(version))
    (place / "net" / "11").mkdir()
    shutil.copytree(earlier, place / "net" / ".partial-12")
    shutil.copytree(earlier, place / "net" / "best")
    network.export(place / "foreign", verbose=False)
    network.save(place / "net.keras")
    run = Run(place / "digits-pivot")
    run.open(CONFIG)
    run.finish(network, {"steps": 2, "seed": 3, "results": []})
    trainer = AdversarialTrainer(network, "pivot")
    trainer.compile(optimizer=keras.optimizers.SGD(0.1, momentum=0.9))
    run.save_checkpoint(trainer, 2)
    return {
        "folder": place / "net",
        "version": place / "net" / "10",
        "foreign": place / "foreign",
        "keras": place / "net.keras",
        "run": run.path,
        "checkpoint": run.checkpoints / "step-00000002.keras",
    }


@pytest.mark.parametrize(
    ("form", "name", "recorded"),
    [
        ("folder", "net", {"recipe": FLAGS, "name": "net"}),
        ("version", "net", {"recipe": FLAGS, "name": "net"}),
        ("foreign", "foreign", {}),
        ("keras", "net", {}),
        ("run", "digits-pivot", {"recipe": FLAGS, "dataset": DATASET, "seed": 3}),
        ("checkpoint", "step-00000002", {}),
    ],
)
def test_every_form_is_the_same_network(form, name, recorded, forms, network, digits):
    images, labels = tf.constant(digits[0][:6]), digits[1][:6]
    before = [variable.numpy() for variable in network.variables]
    expected, expected_gradient = outputs_and_gradient(network, images, labels)

    source = load_source(forms[form], SHAPE, CLASSES)
    outputs, gradient = outputs_and_gradient(source, images, labels)

    for output, width in {"logits": CLASSES, "embedding": 64}.items():
        assert outputs[output].shape == (6, width)
        np.testing.assert_allclose(outputs[output], expected[output], rtol=1e-5, atol=1e-5)
    assert np.abs(gradient).max() > 1e-3
    np.testing.assert_allclose(gradient, expected_gradient, rtol=1e-4, atol=1e-5)
    np.testing.assert_array_equal(source.logits(images), outputs["logits"])
    assert source.name == name
    assert source.input_shape == SHAPE
    assert recorded.items() <= source.provenance.items()
    if form != "foreign":
        assert source.weights_hash == weights_hash(before)
    for variable, value in zip(network.variables, before):
        np.testing.assert_array_equal(variable, value, err_msg=variable.path)


def test_networks_in_memory_are_those_on_disk(forms, network, digits):
    images, saved = tf.constant(digits[0][:6]), load_source(forms["keras"])
    trainer = AdversarialTrainer(network, "pivot")

    def function(images):
        return network(images, training=False)["logits"]

    named = {"name": "net", "weights_hash": saved.weights_hash}
    for source in (
        load_source(network, SHAPE, CLASSES, name="net"),
        load_source(trainer, SHAPE, CLASSES, name="net"),
        load_source(function, SHAPE, CLASSES, **named),
    ):
        np.testing.assert_allclose(source.logits(images), saved.logits(images), atol=1e-5)
        assert (source.name, source.weights_hash) == (saved.name, saved.weights_hash)
        assert source.path is None and str(source) == "net" and source.input_shape == SHAPE
        assert load_source(source) is source


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (lambda images: images, r"<lambda> has no weights .*weights_hash="),
        (7, "got int"),
        (keras.Sequential([keras.layers.Flatten()]), "must take one batch of images"),
    ],
)
def test_what_is_no_network_in_memory_is_refused(given, message):
    with pytest.raises(InputError, match=message):
        load_source(given)


def test_the_hash_tells_networks_apart_and_nothing_else(network, other):
    arrays = [variable.numpy() for variable in network.variables]
    digest = weights_hash(arrays)
    assert weights_hash(reversed(arrays)) == digest
    assert weights_hash(variable.numpy() for variable in other.variables) != digest
    arrays[0] = np.nextafter(arrays[0], 1)
    assert weights_hash(arrays) != digest
    assert weights_hash([np.zeros((2, 3))]) != weights_hash([np.zeros((3, 2))])
    assert weights_hash([np.zeros(2, "int32")]) != weights_hash([np.zeros(2, "float32")])


# Networks that are not ours.


def dense(images, classes=CLASSES, seed=0):
    """Logits of a linear network of images of any one size."""
    flat = tf.reshape(images, [-1, int(np.prod(images.shape[1:]))])
    weights = np.random.default_rng(seed).normal(0, 0.3, (flat.shape[-1], classes))
    return flat @ tf.cast(weights, images.dtype)


def save(path, function, *shapes, dtype=tf.float32, key="serving_default"):
    """Save a function as the one signature of a bare SavedModel."""
    module = tf.Module()
    module.unused = tf.Variable(1.0)
    names = ["pixels", "more"]
    specs = [tf.TensorSpec(shape, dtype, name) for shape, name in zip(shapes, names)]
    module.function = tf.function(function, input_signature=specs)
    tf.saved_model.save(module, str(path), signatures={key: module.function})
    return path


@pytest.mark.parametrize("dtype", ["float16", "float32", "float64"])
@pytest.mark.parametrize("key", ["serve", "serving_default"])
@pytest.mark.parametrize("output", ["logits", "scores", None])
def test_a_bare_saved_model_with_one_output_of_any_name(output, key, dtype, digits, tmp_path):
    def function(pixels):
        return dense(pixels) if output is None else {output: dense(pixels)}

    path = save(tmp_path / "bare", function, (None, *SHAPE), dtype=tf.as_dtype(dtype), key=key)
    images, labels = tf.constant(digits[0][:5]), digits[1][:5]

    source = load_source(path, SHAPE, CLASSES)
    outputs, gradient = outputs_and_gradient(source, images, labels)

    def expected(pixels):
        return {"logits": tf.cast(dense(tf.cast(pixels, dtype)), tf.float32)}

    expected_outputs, expected_gradient = outputs_and_gradient(expected, images, labels)
    tolerance = 1e-2 if dtype == "float16" else 1e-5
    assert {outputs[name].dtype for name in ("logits", "embedding")} == {tf.float32}
    np.testing.assert_allclose(outputs["logits"], expected_outputs["logits"], atol=tolerance)
    np.testing.assert_array_equal(outputs["embedding"], outputs["logits"])
    np.testing.assert_allclose(gradient, expected_gradient, atol=tolerance)
    assert (source.name, source.provenance) == ("bare", {})


def test_logits_are_taken_from_several_outputs(digits, tmp_path):
    def function(pixels):
        logits = dense(pixels)
        return {"probabilities": tf.nn.softmax(logits), "logits": logits, "embedding": 2 * logits}

    source = load_source(save(tmp_path / "many", function, (None, *SHAPE)), SHAPE, CLASSES)
    outputs = source(tf.constant(digits[0][:5]))
    np.testing.assert_allclose(outputs["logits"], dense(tf.constant(digits[0][:5])), atol=1e-5)
    np.testing.assert_array_equal(outputs["embedding"], 2 * outputs["logits"])


def pooled(pixels):
    """Logits of images of any size."""
    return tf.reduce_mean(pixels, axis=(1, 2)) * tf.range(10.0)


def test_a_network_of_any_image_size_fits_every_dataset(tmp_path):
    source = load_source(save(tmp_path / "any", pooled, (None, None, None, 1)))
    assert source.input_shape == (None, None, 1)
    for side in (8, 24):
        source.check((side, side, 1), CLASSES)
    with pytest.raises(InputError, match=r"takes images of shape \(None, None, 1\)"):
        source.check((24, 24, 3), CLASSES)


def test_a_very_confident_network_is_still_a_source(tmp_path):
    """Where the cross entropy of every image has underflowed, its gradient is zero."""
    path = save(tmp_path / "sure", lambda pixels: 1e4 * dense(pixels), (None, *SHAPE))
    assert load_source(path, SHAPE, CLASSES).input_shape == SHAPE


def test_a_foreign_network_is_known_by_its_files(tmp_path):
    first = load_source(save(tmp_path / "first", dense, (None, *SHAPE)))
    copy = load_source(shutil.copytree(tmp_path / "first", tmp_path / "copy"))
    another = load_source(
        save(tmp_path / "another", lambda pixels: dense(pixels, seed=1), (None, *SHAPE))
    )
    assert first.weights_hash == copy.weights_hash != another.weights_hash


# Sources stay outside the network that is trained from them.


@pytest.mark.parametrize("form", ["version", "keras", "model"])
def test_sources_are_no_part_of_the_trainer(form, forms, network, digits, tmp_path):
    source = network if form == "model" else load_source(forms[form])
    trained = keras.Sequential(
        [keras.Input(SHAPE), keras.layers.Flatten(), keras.layers.Dense(CLASSES)]
    )
    trainer = AdversarialTrainer(
        trained, "pivot", cascade_sources=[source], ensemble_sources=[source]
    )
    trainer.compile(optimizer=keras.optimizers.SGD(0.1, momentum=0.9))
    trainer.train_on_batch(digits[0][:8], digits[1][:8])

    assert [v.path for v in trainer.trainable_variables] == [v.path for v in trained.variables]
    assert [v.path for v in trainer.variables if v is not trainer.steps] == [
        v.path for v in trained.variables
    ]
    trainer.save(tmp_path / "trainer.keras")
    loaded = load_source(tmp_path / "trainer.keras", SHAPE, CLASSES)
    images = tf.constant(digits[0][:8])
    np.testing.assert_array_equal(loaded.logits(images), trained(images))
    again = keras.models.load_model(tmp_path / "trainer.keras")
    assert again.cascade_sources == again.ensemble_sources == ()
    np.testing.assert_array_equal(again.network.get_weights()[0], trained.get_weights()[0])


# What is refused.


def file(name, content=b"no network at all"):
    def make(path, _):
        path.mkdir()
        (path / name).write_bytes(content)
        return path if name in ("saved_model.pb", "config.json") else path / name

    return make


def function(function, *shapes, **options):
    return lambda path, _: save(path, function, *(shapes or [(None, *SHAPE)]), **options)


def sequential(input_shape, *layers, name="own.keras"):
    def make(path, _):
        path.mkdir()
        model = keras.Sequential([keras.Input(input_shape), *layers])
        model.save(path / name)
        return path / name

    return make


def damaged(form, damage):
    """One of the forms of the network, after something happened to its files."""

    def make(path, forms):
        copy = shutil.copytree if forms[form].is_dir() else shutil.copy
        copy(forms[form], path)
        damage(path)
        return path

    return make


def flip(path):
    """Change one byte in the middle of the weights."""
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def record(path, content):
    (path / PROVENANCE_FILE).write_text(content)


def rename_key(path, key):
    config = json.loads((path / "config.json").read_text())
    config[key + "s"] = config.pop(key)
    (path / "config.json").write_text(json.dumps(config))


def cut(path):
    path.write_bytes(path.read_bytes()[:-100])


REFUSED = {
    "nothing": (lambda path, _: path, "does not exist; name a saved network"),
    "empty": (lambda path, _: path.mkdir() or path, "is not a saved network"),
    "h5": (file("net.h5"), "is neither a .keras file nor a SavedModel"),
    "keras": (file("net.keras"), r"net.keras cannot be loaded \("),
    "cut keras": (lambda path, forms: damaged("keras", cut)(path.with_suffix(".keras"), forms),
                  r"cannot be loaded \("),
    "protobuf": (file("saved_model.pb"), r"cannot be loaded \("),
    "variables": (damaged("version", lambda path: shutil.rmtree(path / "variables")),
                  r"cannot be loaded \("),
    "unfinished run": (damaged("run", lambda path: (path / "model.keras").unlink()),
                       "is a run that is not finished; start its bin/train"),
    "config of a run": (damaged("run", lambda path: (path / "config.json").write_text("{")),
                        "config.json: cannot be read"),
    "config without flags": (damaged("run", lambda path: rename_key(path, "flags")),
                             "has no 'flags'"),
    "weights": (
        damaged("version", lambda path: flip(path / "variables/variables.data-00000-of-00001")),
        r"cannot be loaded \(|is damaged: its weights are not",
    ),
    "other weights": (
        damaged("version", lambda path: record(path, json.dumps({"weights_hash": "0" * 64}))),
        "is damaged: its weights are not .*export again",
    ),
    "provenance": (damaged("version", lambda path: record(path, "{")), "json: cannot be read"),
    "no provenance": (damaged("version", lambda path: record(path, "[]")), "hold a JSON object"),
    "other signature": (function(dense, key="classify"), "neither a signature 'serve' nor"),
    "fixed batch": (function(dense, (4, *SHAPE)), "takes batches of 4 only; save it"),
    "uint8": (function(lambda pixels: dense(tf.cast(pixels, tf.float32)), dtype=tf.uint8),
              r"one batch of images.*it takes uint8 \(None, 8, 8, 1\)"),
    "two inputs": (
        function(lambda pixels, more: dense(pixels + more), (None, *SHAPE), (None, *SHAPE)),
        r"one batch of images.*it takes float32 \S+ 8, 8, 1\), float32",
    ),
    "no input": (lambda path, _: save(path, lambda: tf.ones([1, CLASSES])), "one batch of images"),
    "keras vectors": (sequential((64,), keras.layers.Dense(CLASSES)), "one batch of images"),
    "image shape": (function(dense, (None, 8, 8, 3)),
                    r"takes images of shape \(8, 8, 3\), the dataset's are \(8, 8, 1\); name"),
    "hidden image size": (
        function(
            lambda pixels: dense(tf.ensure_shape(pixels, (None, 12, 12, 1))), (None, None, None, 1)
        ),
        r"images of shape \(8, 8, 1\)",
    ),
    "classes": (function(lambda pixels: dense(pixels, classes=7)),
                "tells 7 classes apart, the dataset has 10"),
    "outputs": (function(lambda pixels: {"b": dense(pixels), "a": dense(pixels)}),
                "must return 'logits', or one output .* it returns a, b"),
    "writes files": (function(lambda pixels: [tf.io.write_file("written", "x"), dense(pixels)][1]),
                     "does more than compute .WriteFile"),
    "a map": (function(lambda pixels: {"logits": pixels}), "must return 'logits'"),
    "softmax": (function(lambda pixels: tf.nn.softmax(dense(pixels))), "gives probabilities"),
    "nan": (function(lambda pixels: dense(pixels) * np.nan), "not finite"),
    "infinite": (function(lambda pixels: dense(pixels) / 0.0), "not finite"),
    "round": (function(lambda pixels: dense(tf.round(pixels))), "has no gradient"),
    "stop": (function(lambda pixels: dense(tf.stop_gradient(pixels))), "has no gradient"),
    "no rule": (
        function(
            lambda pixels: dense(tf.raw_ops.AdjustContrastv2(images=pixels, contrast_factor=2.0))
        ),
        "has no gradient",
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", REFUSED)
def test_what_cannot_be_a_source_is_refused_in_one_line(case, forms, tmp_path):
    make, message = REFUSED[case]
    path = make(tmp_path / "refused", forms)
    with pytest.raises(InputError, match=message) as error:
        load_source(path, SHAPE, CLASSES)
    assert "\n" not in str(error.value)
    assert str(tmp_path / "refused") in str(error.value)


def test_a_network_is_not_judged_by_a_dataset_that_is_not_named(tmp_path):
    path = save(tmp_path / "seven", lambda pixels: dense(pixels, classes=7), (None, 4, 4, 2))
    source = load_source(path)
    assert source.input_shape == (4, 4, 2)
    with pytest.raises(InputError, match="tells 7 classes apart"):
        source.check((4, 4, 2), CLASSES)
    source.check((4, 4, 2), 7)
