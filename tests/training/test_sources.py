"""Saved networks of every form as sources: the same outputs and gradients, or one line of error."""

import io
import json
import os
import shutil
import sys
import threading
import time
import zipfile

import h5py
import keras
import msgspec
import numpy as np
import pytest
import tensorflow as tf
from support.files import flip
from support.saved_models import HARMLESS, MALICIOUS, Initialised, endless, saved_model
from tensorflow.core.protobuf import saved_model_pb2

from cascade_keras import attacks, foreign, models
from cascade_keras.errors import InputError
from cascade_keras.export import export_saved_model
from cascade_keras.foreign import within
from cascade_keras.provenance import PROVENANCE_FILE, locate, version_of, weights_hash
from cascade_keras.recorded import Metrics, RunConfig
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


def flipped(path, forms):
    """Flip one bit in the middle of the weights, which Keras would not notice."""
    content = bytearray(forms["keras"].read_bytes())
    content[len(content) // 2] ^= 1
    path.with_suffix(".keras").write_bytes(content)
    return path.with_suffix(".keras")


CONFIG_MEMBER, DEEP = "config.json", b"[" * 99_999


def keras_file(change):
    """The network's .keras file after something happened to its members, name -> bytes."""

    def make(path, forms):
        path = path.with_suffix(".keras")
        with zipfile.ZipFile(forms["keras"]) as archive:
            members = {name: archive.read(name) for name in archive.namelist()}
        change(members)
        with zipfile.ZipFile(path, "w") as archive:
            for name, content in members.items():
                archive.writestr(name, content)
        return path

    return make


def with_lambda(path, _):
    path = path.with_suffix(".keras")
    code = keras.layers.Lambda(lambda images: images * 2)
    keras.Sequential([keras.Input(SHAPE), code, keras.layers.Flatten()]).save(path)
    return path


def of_another_architecture(members):
    """Weights of a network with other layers."""
    other = io.BytesIO()
    with h5py.File(other, "w") as file:
        file["layers/dense/vars/0"] = np.zeros((3, 3))
    members["model.weights.h5"] = other.getvalue()


def refuse_small(pixels):
    tf.debugging.assert_greater(tf.shape(pixels)[1], 20, "too small")
    return pooled(pixels)


def contrast(pixels):
    return tf.raw_ops.AdjustContrastv2(images=pixels, contrast_factor=2.0)


def hidden_size(pixels):
    return dense(tf.ensure_shape(pixels, (None, 12, 12, 1)))


def pipe(path):
    """Put in a file's place what nobody ever writes into."""
    path.unlink()
    os.mkfifo(path)


WEIGHTS = "variables/variables.data-00000-of-00001"
DAMAGED, NO_GRADIENT = r"cannot be loaded \(|is damaged: its weights are not", "has no gradient"
REFUSED = {
    "nothing": (lambda path, _: path, "does not exist; name a saved network"),
    "empty": (lambda path, _: path.mkdir() or path, "is not a saved network"),
    "h5": (file("net.h5"), "cannot be loaded: it is no HDF5 file"),
    "keras": (file("net.keras"), r"net.keras cannot be loaded: it is no .keras file"),
    "cut keras": (cut, r"cannot be loaded: it is no .keras file, or was cut short"),
    "text keras": (file("net.keras"), "it is no .keras file"),
    "other zip": (keras_file(lambda members: members.pop("config.json")), "not of a Keras model"),
    "no weights keras": (keras_file(lambda m: m.pop("model.weights.h5")), "not of a Keras model"),
    "flipped keras": (flipped, "model.weights.h5 in it is damaged"),
    "deep config": (keras_file(lambda m: m.update({CONFIG_MEMBER: DEEP})), "config.json is dam"),
    "no JSON": (keras_file(lambda m: m.update({CONFIG_MEMBER: b"{"})), "config.json is damaged"),
    "another h5": (keras_file(of_another_architecture), r"cannot be loaded \("),
    "lambda": (with_lambda, "Lambda layer, which is Python code and is never run"),
    "protobuf": (file("saved_model.pb"), r"cannot be loaded: saved_model.pb is damaged"),
    "fingerprint": (damaged("version", lambda p: os.truncate(p / "fingerprint.pb", 9)), "print.pb"),
    "no weights": (damaged("version", lambda p: shutil.rmtree(p / "variables")), "cannot be load"),
    "weights": (damaged("version", lambda path: flip(path / WEIGHTS)), DAMAGED),
    "a pipe": (damaged("version", lambda p: pipe(p / WEIGHTS)), "variables.data.* is not a file"),
    "other weights": (record(json.dumps({"weights_hash": "0" * 64})), "is damaged.*export again"),
    "provenance": (record("{"), "json: input data was truncated"),
    "no provenance": (record("[]"), "json: expected `object`"),
    "a count": (
        record('{"results": [{"attack": "a", "epsilon": 0, "accuracy": 1, "correct": {}}]}'),
        r"results\[0\].correct: expected `int",
    ),
    "unfinished run": (damaged("run", lambda p: (p / "model.keras").unlink()), "run .* finished"),
    "config of a run": (config("{"), "config.json: input data was truncated"),
    "config without flags": (config("{}"), "required field `flags`"),
    "versions of a run": (config(json.dumps({**CONFIG, "versions": 7})), "versions: expected `obj"),
    "steps of a run": (
        config(json.dumps({**CONFIG, "flags": {**FLAGS, "steps": "many"}})),
        "config.json: flags.steps: expected `int",
    ),
    "other signature": (function(dense, key="classify"), "neither a signature 'serve' nor"),
    "fixed batch": (function(dense, [(4, *SHAPE)]), "batches of 4 only"),
    "uint8": (function(lambda x: dense(tf.cast(x, tf.float32)), dtype=tf.uint8), "it takes uint8"),
    "two inputs": (function(lambda x, y: dense(x + y), 2 * [(None, *SHAPE)]), "one batch of imag"),
    "no input": (function(lambda: tf.ones([1, CLASSES]), []), "one batch of images"),
    "vectors": (vectors, "one batch of images"),
    "image shape": (function(dense, [(None, 8, 8, 3)]), r"\(8, 8, 3\), the dataset's .* 8, 1\)"),
    "hidden size": (
        function(hidden_size, [(None, None, None, 1)]),
        r"of shape \(8, 8, 1\) \(Shape of tensor pixels \[\S+,8,8,1\] is not compatible",
    ),
    "asserts": (
        function(refuse_small, [(None, None, None, 1)]),
        r"run on images of shape \(8, 8, 1\) \(assertion failed: \[too small\]",
    ),
    "classes": (function(lambda x: dense(x, classes=7)), "7 classes apart, the dataset has 10"),
    "outputs": (function(lambda x: {"b": dense(x), "a": dense(x)}), "returns '.', '.'; name the"),
    "a map": (function(lambda x: {"logits": x}), "must return floats of shape"),
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


# Provenance, and how networks are named.


def put(value, *path):
    """The text of a record in which one field has another value."""
    record = {"recipe": {"model": "lenet"}, "dataset": {"name": "digits"}, "steps": 3, "seed": 0}
    *folders, last = path
    place = record
    for name in folders:
        place = place.setdefault(name, {})
    place[last] = value
    return json.dumps(record)


DAMAGED_RECORDS = {
    "": "truncated", '{"a":' * 100_000: "nested", "null": "expected `object`", "\xff": "malformed",
    put(None, "recipe"): "recipe: expected `object`",
    put("16", "recipe", "max_epsilon"): "recipe.max_epsilon: expected `float",
    put(-1, "recipe", "max_epsilon"): "recipe.max_epsilon: expected `float` >= 0",
    put(5, "recipe", "model"): "recipe.model: expected `str",
    put(1e30, "recipe", "steps"): "recipe.steps: expected `int",
    put([3], "recipe", "cascade_source"): r"recipe.cascade_source\[0\]: expected `str",
    put({}, "recipe", "init_from"): "recipe.init_from: expected `str",
    put({"name": None}, "dataset"): "dataset.name: expected `str`",
    put({}, "dataset"): "dataset: object missing required field `name`",
    put("0", "weights_hash"): "weights_hash: expected `str` matching",
    put([8, -1], "input_shape"): r"input_shape\[1\]: expected `int` >= 1",
    put([{"attack": "pgd"}], "results"): r"results\[0\]: object missing required",
}  # fmt: skip


@pytest.mark.parametrize("text", DAMAGED_RECORDS, ids=DAMAGED_RECORDS.values())
def test_a_record_that_cannot_be_true_is_refused_with_its_field(text, tmp_path):
    file = tmp_path / "net" / "1" / PROVENANCE_FILE
    file.parent.mkdir(parents=True)
    (tmp_path / "net" / "1" / "saved_model.pb").touch()
    file.write_bytes(text.encode("latin-1"))
    with pytest.raises(InputError, match=f"cascade_keras.json: .*{DAMAGED_RECORDS[text]}") as error:
        locate(tmp_path / "net")
    assert "\n" not in str(error.value) and len(str(error.value)) < 400


def test_others_may_add_to_a_record_and_need_not_have_one(tmp_path):
    version = saved_model(tmp_path / "net" / "1", dense)
    assert locate(version).provenance == {}
    (version / "assets.extra").mkdir()
    file = version / PROVENANCE_FILE
    file.write_text(put([1, {"a": None}], "recipe", "own"))
    recipe = {"model": "lenet", "own": [1, {"a": None}]}
    assert locate(tmp_path / "net").provenance["recipe"] == recipe
    file.unlink()
    file.mkdir()
    with pytest.raises(InputError, match=r"cascade_keras\.json is not a file"):
        locate(version)


def test_the_newest_version_is_the_largest_number_that_a_server_would_take(tmp_path):
    (tmp_path / "2").mkdir()
    (tmp_path / "2" / "saved_model.pb").touch()
    names = ["1e3", "01", "\uff10\uff11", "\uff13", "\u00b2", "+7", "-1", "9" * 23, "3\n", "10"]
    for name in names[:-1]:
        shutil.copytree(tmp_path / "2", tmp_path / name)
    assert locate(tmp_path).path.name == "2" and [*map(version_of, names)] == [None] * 9 + [10]
    shutil.copytree(tmp_path / "2", tmp_path / "10")
    assert locate(tmp_path).path.name == "10"
    os.makedirs(tmp_path / "11" / "saved_model.pb")
    assert locate(tmp_path).path.name == "10"


def test_every_name_of_a_place_is_understood_or_refused_in_one_line(tmp_path, monkeypatch):
    net = saved_model(tmp_path / "a net\nof two lines" / "7", dense)
    monkeypatch.chdir(net)
    for name in (".", "../7", "..", str(net)):
        assert locate(name).name == "a net\nof two lines" and load_source(name).name
    (tmp_path / "loop").symlink_to("loop")
    loop = str(tmp_path / "loop" / "x")
    for name in ("/", "\0", "x" * 300, b"\xff".decode(errors="surrogateescape"), loop):
        with pytest.raises(InputError):
            locate(name)


# Networks of strangers.


@pytest.mark.parametrize("kind", MALICIOUS)
def test_what_does_more_than_compute_is_not_run(kind, tmp_path):
    make, message = MALICIOUS[kind]
    path, written = tmp_path / "foreign", tmp_path / "written"
    written.mkdir()
    make(path, str(written / "file"))
    shutil.rmtree(written)  # to save one can be to run it
    written.mkdir()
    with pytest.raises(InputError, match=f"more than compute: {message}.* pass trust_source") as e:
        load_source(path, SHAPE, CLASSES)
    assert "\n" not in str(e.value) and not any(written.iterdir())
    # That is what it would have done.
    assert load_source(path, SHAPE, CLASSES, trust=True).trust
    assert any(written.iterdir())


@pytest.mark.parametrize("kind", HARMLESS)
def test_networks_that_only_compute_are_run_whatever_their_operations(kind, digits, tmp_path):
    source = load_source(HARMLESS[kind](tmp_path / "foreign"), SHAPE, CLASSES)
    assert source.logits(tf.constant(digits[0][:2])).shape == (2, CLASSES)


def loops_at_load(path):
    def initialise():  # what nothing depends on would be left out
        tf.debugging.Assert(endless(tf.zeros(1)) < 1, [0])

    return saved_model(path, dense, resource=Initialised(initialise))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda path: saved_model(path, lambda x: dense(endless(x))), "8 images took more than"),
        (lambda path: saved_model(path, lambda x: dense(x) + endless(tf.ones(10))), "not answer"),
        (loops_at_load, "cannot be loaded: it took more than 2 s"),
    ],
)
def test_a_network_that_never_answers_is_given_up(make, message, tmp_path):
    path, began = make(tmp_path / "foreign"), time.perf_counter()
    with pytest.raises(InputError, match=message) as error:
        load_source(path, SHAPE, CLASSES, time_limit=0.2)
    assert time.perf_counter() - began < 20 and "\n" not in str(error.value)
    assert "network" not in {thread.name for thread in threading.enumerate()}  # it is not left


def test_the_time_limit_is_each_calls_own_and_errors_pass_it(monkeypatch):
    assert within(5, lambda: 7) == 7
    with pytest.raises(ZeroDivisionError):
        within(5, lambda: 1 / 0)
    monkeypatch.setattr(foreign, "_PATIENCE", 0.1)
    with pytest.raises(TimeoutError):  # what cannot be cancelled is left alone
        within(0.1, lambda: time.sleep(1))
    assert within(5, lambda: float(tf.reduce_sum(tf.ones(3)))) == 3


def retold(change):
    """A SavedModel's graph, after something was changed in it."""

    def make(path, forms):
        path = saved_model(path, dense)
        graph = saved_model_pb2.SavedModel.FromString((path / "saved_model.pb").read_bytes())
        change(graph)
        (path / "saved_model.pb").write_bytes(graph.SerializeToString())
        return path

    return make


def first_function(graph):
    return graph.meta_graphs[0].graph_def.library.function[0]


def unknown_operation(graph):
    first_function(graph).node_def.add(name="x", op="Evil\nOperation")


def two_functions_of_a_name(graph):
    graph.meta_graphs[0].graph_def.library.function.append(first_function(graph))


def a_function_named_as_an_operation(graph):
    graph.meta_graphs[0].graph_def.library.function.add().signature.name = "MatMul"


def a_function_of_no_one(graph):
    function = graph.meta_graphs[0].graph_def.library.function.add()
    function.signature.name = "nobody"
    function.node_def.add(name="x", op="WriteFile")


def calls_without_end(*, of_itself):
    """Functions that each call the one before twice, or one that calls itself."""

    def change(graph):
        library = graph.meta_graphs[0].graph_def.library
        for number in range(40):
            function = library.function.add()
            function.signature.name = f"f{number}"
            for name in "ab":
                call = function.node_def.add(name=name, op="PartitionedCall")
                call.attr["f"].func.name = f"f{number if of_itself else number - 1}"

    return change


def hidden_by_the_saver(graph):
    """Write a file in a function that the saver calls, and the network too."""
    meta = graph.meta_graphs[0]
    name = meta.saver_def.restore_op_name
    (node,) = (node for node in meta.graph_def.node if node.name == name)
    function = node.attr["f"].func.name
    (body,) = (f for f in meta.graph_def.library.function if f.signature.name == function)
    body.node_def.add(name="x", op="WriteFile")
    own = next(name for name in meta.object_graph_def.concrete_functions if "wrapper" in name)
    (caller,) = (f for f in meta.graph_def.library.function if f.signature.name == own)
    call = caller.node_def.add(name="x", op="StatefulPartitionedCall")
    call.attr["f"].func.name = function


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda graph: graph.Clear(), "saved_model.pb holds no graph"),
        (unknown_operation, "needs the operation Evil.Operation, which this TensorFlow"),
        (two_functions_of_a_name, "a name in its graph has two meanings"),
        (a_function_named_as_an_operation, "a name in its graph has two meanings"),
        (a_function_of_no_one, "compute: WriteFile in function nobody;"),
        (calls_without_end(of_itself=True), "would fill the memory"),
        (calls_without_end(of_itself=False), "would fill the memory"),
        (hidden_by_the_saver, "compute: RestoreV2 in function .*, WriteFile in function"),
    ],
)
def test_graphs_that_nobody_has_saved_are_refused(change, message, tmp_path):
    path = retold(change)(tmp_path / "foreign", None)
    with pytest.raises(InputError, match=message) as error:
        load_source(path)
    assert "\n" not in str(error.value)


# Networks of other pixels and outputs.


def own_logits(network, images, value_range=(0, 1)):
    """The logits of a Flatten-Dense network, by NumPy."""
    kernel, bias = (np.asarray(w, np.float64) for w in network.get_weights())
    low, high = value_range
    x = np.asarray(images, np.float64).reshape(len(images), -1) * (high - low) + low
    return x @ kernel + bias


def flat_network(activation=None, width=CLASSES):
    keras.utils.set_random_seed(7)
    layers = [keras.layers.Flatten(name="flatten")]
    layers += [keras.layers.Dense(width, activation, name="scores")]
    return keras.Sequential([keras.Input(SHAPE), *layers], name="flat")


def softmax_network(input_shape, num_classes):
    """What test_sources:softmax_network names."""
    return flat_network("softmax", num_classes)


@pytest.mark.parametrize("suffix", [".keras", ".h5"])
def test_files_of_any_range_and_ending(suffix, digits, tmp_path):
    images = tf.constant(digits[0][:6])
    network = flat_network("softmax")
    network.layers[-1].kernel.assign(network.layers[-1].kernel / 255)
    path = tmp_path / f"own{suffix}"
    network.save(path)
    source = load_source(path, SHAPE, CLASSES, value_range=(0, 255))
    assert (source.name, source.value_range) == ("own", (0, 255))
    expected = own_logits(network, images, (0, 255))
    np.testing.assert_allclose(source.logits(images), expected, rtol=1e-4, atol=1e-5)
    plain = load_source(path, SHAPE, CLASSES)
    assert plain.weights_hash == weights_hash(network.get_weights()) != source.weights_hash
    with pytest.raises(InputError, match="is loaded already"):
        load_source(source, value_range=(0, 1))


def test_a_text_that_makes_a_network(digits, monkeypatch, tmp_path):
    images = tf.constant(digits[0][:6])
    monkeypatch.syspath_prepend(str(tmp_path))
    (tmp_path / "made_here.py").write_text("from test_sources import softmax_network as make\n")
    monkeypatch.setitem(sys.modules, "test_sources", sys.modules[__name__])
    source = load_source("made_here:make", SHAPE, CLASSES)
    assert (source.name, source.path) == ("make", None)
    np.testing.assert_allclose(source.logits(images), own_logits(flat_network(), images), rtol=1e-4)
    with pytest.raises(InputError, match="give both"):
        load_source("made_here:make")
    with pytest.raises(InputError, match="no module"):
        load_source("nowhere_at_all:make", SHAPE, CLASSES)


def test_the_outputs_of_a_network_in_memory(digits):
    images = tf.constant(digits[0][:6])
    single = flat_network("sigmoid", 1)
    source = load_source(single, SHAPE, 2)
    z = own_logits(single, images)[:, 0]
    np.testing.assert_allclose(source.logits(images), np.stack([0 * z, z], 1), rtol=1e-4, atol=1e-6)
    with pytest.raises(InputError, match="flat tells 2 classes apart, the dataset has 10"):
        load_source(single, SHAPE, CLASSES)
    with pytest.raises(InputError, match=r"flat: .*from_logits=False"):
        load_source(flat_network("sigmoid"), SHAPE, CLASSES)
    softmax = flat_network("softmax")
    named = load_source(softmax, SHAPE, CLASSES, embedding="flatten")
    assert named(images)["embedding"].shape == (6, 64)
    raw = load_source(softmax, SHAPE, CLASSES, from_logits=True)
    np.testing.assert_allclose(raw.logits(images), softmax(images), rtol=1e-6)
    assert raw.weights_hash != named.weights_hash == weights_hash(softmax.get_weights())

    class Subclassed(keras.Model):
        def __init__(self):
            super().__init__()
            self.inner = flat_network("softmax")

        def call(self, images):
            return self.inner(images)

    unbuilt = Subclassed()
    with pytest.raises(InputError, match="not built yet"):
        load_source(unbuilt)
    found = load_source(unbuilt, SHAPE, CLASSES)
    np.testing.assert_allclose(found.logits(images), own_logits(softmax, images), rtol=1e-4)
    with pytest.raises(InputError, match=r"cannot be run|takes images of shape"):
        load_source(softmax, (9, 9, 1), CLASSES)
