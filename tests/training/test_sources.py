"""Saved networks of every form as sources: the same outputs and gradients, or one line of error."""

import json
import shutil

import keras
import msgspec
import numpy as np
import pytest
import tensorflow as tf
from support.files import flip
from support.saved_models import saved_model

from cascade_keras import attacks, models
from cascade_keras.errors import InputError
from cascade_keras.export import export_saved_model
from cascade_keras.provenance import PROVENANCE_FILE, weights_hash
from cascade_keras.runs.records import Metrics, RunConfig
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
    run.open(msgspec.convert(CONFIG, RunConfig))
    run.finish(network, Metrics(steps=2, seed=3, results=[]))
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


RECORDED = {
    "folder": {"recipe": FLAGS, "name": "net"},
    "version": {"recipe": FLAGS, "name": "net"},
    "run": {"recipe": FLAGS, "dataset": DATASET, "seed": 3},
}
NAMES = {"foreign": "foreign", "run": "digits-pivot", "checkpoint": "step-00000002"}


@pytest.mark.parametrize("form", ["folder", "version", "foreign", "keras", "run", "checkpoint"])
def test_every_form_is_the_same_network(form, forms, network, digits):
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
    assert (source.name, source.input_shape) == (NAMES.get(form, "net"), SHAPE)
    assert RECORDED.get(form, {}).items() <= source.provenance.items()
    assert form == "foreign" or source.weights_hash == weights_hash(before)
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


@pytest.mark.parametrize("dtype", ["float16", "float32", "float64"])
@pytest.mark.parametrize(
    ("output", "key"),
    [("logits", "serve"), ("scores", "serving_default"), (None, "serving_default")],
)
def test_a_bare_saved_model_with_one_output_of_any_name(output, key, dtype, digits, tmp_path):
    def function(pixels):
        return dense(pixels) if output is None else {output: dense(pixels)}

    path = saved_model(tmp_path / "bare", function, dtype=tf.as_dtype(dtype), key=key)
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

    images = tf.constant(digits[0][:5])
    outputs = load_source(saved_model(tmp_path / "many", function), SHAPE, CLASSES)(images)
    np.testing.assert_allclose(outputs["logits"], dense(images), atol=1e-5)
    np.testing.assert_array_equal(outputs["embedding"], 2 * outputs["logits"])


def pooled(pixels):
    """Logits of images of any size."""
    return tf.reduce_mean(pixels, axis=(1, 2)) * tf.range(10.0)


def test_a_network_of_any_image_size_fits_every_dataset(tmp_path):
    source = load_source(saved_model(tmp_path / "any", pooled, [(None, None, None, 1)]))
    assert source.input_shape == (None, None, 1)
    for side in (8, 24):
        source.check((side, side, 1), CLASSES)
    with pytest.raises(InputError, match=r"takes images of shape \(None, None, 1\)"):
        source.check((24, 24, 3), CLASSES)


def test_a_very_confident_network_is_still_a_source(tmp_path):
    """Where the cross entropy of every image has underflowed, its gradient is zero."""
    path = saved_model(tmp_path / "sure", lambda pixels: 1e4 * dense(pixels))
    assert load_source(path, SHAPE, CLASSES).input_shape == SHAPE


def test_a_foreign_network_is_known_by_its_files(tmp_path):
    first = load_source(saved_model(tmp_path / "first", dense))
    copy = load_source(shutil.copytree(tmp_path / "first", tmp_path / "copy"))
    another = saved_model(tmp_path / "another", lambda pixels: dense(pixels, seed=1))
    another = load_source(another)
    assert first.weights_hash == copy.weights_hash != another.weights_hash


# Sources stay outside the network that is trained from them.


def test_sources_are_no_part_of_the_trainer(forms, network, digits, tmp_path):
    sources = [load_source(forms["version"]), load_source(forms["keras"]), network]
    layers = keras.layers.Flatten(), keras.layers.Dense(CLASSES)
    trained = keras.Sequential([keras.Input(SHAPE), *layers])
    trainer = AdversarialTrainer(
        trained, "pivot", cascade_sources=sources, ensemble_sources=sources
    )
    trainer.compile(optimizer=keras.optimizers.SGD(0.1, momentum=0.9))
    trainer.train_on_batch(digits[0][:8], digits[1][:8])

    own = [v.path for v in trained.variables]
    assert [v.path for v in trainer.trainable_variables] == own
    assert [v.path for v in trainer.variables if v is not trainer.steps] == own
    trainer.save(tmp_path / "trainer.keras")
    loaded = load_source(tmp_path / "trainer.keras", SHAPE, CLASSES)
    images = tf.constant(digits[0][:8])
    np.testing.assert_array_equal(loaded.logits(images), trained(images))
    again = keras.models.load_model(tmp_path / "trainer.keras")
    assert again.cascade_sources == again.ensemble_sources == ()
    np.testing.assert_array_equal(again.network.get_weights()[0], trained.get_weights()[0])


# What is refused.


def file(name):
    def make(path, _):
        path.mkdir()
        (path / name).write_bytes(b"no network at all")
        return path if name == "saved_model.pb" else path / name

    return make


def function(function, *shapes, **options):
    return lambda path, _: saved_model(path, function, *shapes, **options)


def vectors(path, _):
    path = path.with_suffix(".keras")
    keras.Sequential([keras.Input((64,)), keras.layers.Dense(CLASSES)]).save(path)
    return path


def damaged(form, damage):
    """One of the forms of the network, after something happened to its files."""

    def make(path, forms):
        copy = shutil.copytree if forms[form].is_dir() else shutil.copy
        copy(forms[form], path)
        damage(path)
        return path

    return make


def record(content):
    return damaged("version", lambda path: (path / PROVENANCE_FILE).write_text(content))


def config(content):
    return damaged("run", lambda path: (path / "config.json").write_text(content))


def cut(path, forms):
    content = forms["keras"].read_bytes()
    path.with_suffix(".keras").write_bytes(content[:-100])
    return path.with_suffix(".keras")


def contrast(pixels):
    return tf.raw_ops.AdjustContrastv2(images=pixels, contrast_factor=2.0)


def hidden_size(pixels):
    return dense(tf.ensure_shape(pixels, (None, 12, 12, 1)))


WEIGHTS = "variables/variables.data-00000-of-00001"
DAMAGED, NO_GRADIENT = r"cannot be loaded \(|is damaged: its weights are not", "has no gradient"
REFUSED = {
    "nothing": (lambda path, _: path, "does not exist; name a saved network"),
    "empty": (lambda path, _: path.mkdir() or path, "is not a saved network"),
    "h5": (file("net.h5"), "is neither a .keras file nor a SavedModel"),
    "keras": (file("net.keras"), r"net.keras cannot be loaded: it is no .keras file"),
    "cut keras": (cut, r"cannot be loaded: it is no .keras file, or was cut short"),
    "protobuf": (file("saved_model.pb"), r"cannot be loaded: saved_model.pb is damaged"),
    "no weights": (damaged("version", lambda p: shutil.rmtree(p / "variables")), "cannot be load"),
    "weights": (damaged("version", lambda path: flip(path / WEIGHTS)), DAMAGED),
    "other weights": (record(json.dumps({"weights_hash": "0" * 64})), "is damaged.*export again"),
    "provenance": (record("{"), "json: input data was truncated"),
    "no provenance": (record("[]"), "json: expected `object`"),
    "unfinished run": (damaged("run", lambda p: (p / "model.keras").unlink()), "run .* finished"),
    "config of a run": (config("{"), "config.json: input data was truncated"),
    "config without flags": (config("{}"), "required field `flags`"),
    "other signature": (function(dense, key="classify"), "neither a signature 'serve' nor"),
    "fixed batch": (function(dense, [(4, *SHAPE)]), "batches of 4 only"),
    "uint8": (function(lambda x: dense(tf.cast(x, tf.float32)), dtype=tf.uint8), "it takes uint8"),
    "two inputs": (function(lambda x, y: dense(x + y), 2 * [(None, *SHAPE)]), "one batch of imag"),
    "no input": (function(lambda: tf.ones([1, CLASSES]), []), "one batch of images"),
    "vectors": (vectors, "one batch of images"),
    "image shape": (function(dense, [(None, 8, 8, 3)]), r"\(8, 8, 3\), the dataset's .* 8, 1\)"),
    "hidden size": (function(hidden_size, [(None, None, None, 1)]), r"of shape \(8, 8, 1\)"),
    "classes": (function(lambda x: dense(x, classes=7)), "7 classes apart, the dataset has 10"),
    "outputs": (function(lambda x: {"b": dense(x), "a": dense(x)}), "'logits'.* returns a, b"),
    "writes": (function(lambda x: [tf.io.write_file("written", "x"), dense(x)][1]), "WriteFile"),
    "a map": (function(lambda x: {"logits": x}), "must return 'logits'"),
    "softmax": (function(lambda x: tf.nn.softmax(dense(x))), "gives probabilities"),
    "nan": (function(lambda x: dense(x) * np.nan), "not finite"),
    "infinite": (function(lambda x: dense(x) / 0.0), "not finite"),
    "round": (function(lambda x: dense(tf.round(x))), NO_GRADIENT),
    "stop": (function(lambda x: dense(tf.stop_gradient(x))), NO_GRADIENT),
    "no rule": (function(lambda x: dense(contrast(x))), NO_GRADIENT),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_cannot_be_a_source_is_refused_in_one_line(case, forms, tmp_path):
    make, message = REFUSED[case]
    path = make(tmp_path / "refused", forms)
    with pytest.raises(InputError, match=message) as error:
        load_source(path, SHAPE, CLASSES)
    assert "\n" not in str(error.value)
    assert str(tmp_path / "refused") in str(error.value)


def test_a_network_is_not_judged_by_a_dataset_that_is_not_named(tmp_path):
    seven = saved_model(tmp_path / "seven", lambda x: dense(x, classes=7), [(None, 4, 4, 2)])
    source = load_source(seven)
    assert source.input_shape == (4, 4, 2)
    with pytest.raises(InputError, match="tells 7 classes apart"):
        source.check((4, 4, 2), CLASSES)
    source.check((4, 4, 2), 7)
