"""Saved networks: equal to the Keras ones, served by others, whole at any moment."""

import contextlib
import fcntl
import importlib.util
import itertools
import json
import os
import pathlib
import re
import resource
import shutil
import subprocess
import sys
import threading
import types

import keras
import numpy as np
import openvino
import pytest
import tensorflow as tf
from support import model_server, release
from support.files import ROOT, tree
from tensorflow.core.protobuf import saved_model_pb2
from tensorflow_serving.apis import prediction_log_pb2

from cascade_keras import data, export, files, losses, models
from cascade_keras.cli.export import main
from cascade_keras.errors import InputError
from cascade_keras.export import export_run, export_saved_model, provenance_of_run
from cascade_keras.files import write_json
from cascade_keras.provenance import PROVENANCE_FILE, locate, saved_versions, weights_hash
from cascade_keras.runs.run import Run
from cascade_keras.training import AdversarialTrainer

SERVING = ROOT / "examples" / "serving"
OUTPUTS = {
    "serving_default": {"logits", "embedding", "probabilities"},
    "raw": {"logits", "embedding", "probabilities"},
    "serve": {"logits", "embedding"},
}
CONFIG = {
    "flags": {"dataset": "digits", "model": "resnet8", "steps": 30},
    "seed": 3,
    "dataset": {"name": "digits", "fingerprint": "f" * 64},
    "versions": {"python": "3.11", "tensorflow": "2.21"},
}
METRICS = {"steps": 30, "seed": 3, "results": [{"attack": "clean", "accuracy": 98.0}]}
# What each network sees, and what its dataset stores.
SHAPES = {
    "digits": ((8, 8, 1), (8, 8, 1)),
    "cifar": ((24, 24, 3), (32, 32, 3)),
    "sequential": ((8, 8, 1), (8, 8, 1)),
}


def build_sequential():
    """A network that is not ours: logits alone, and a layer that keeps a random state."""
    return keras.Sequential(
        [
            keras.Input((8, 8, 1)),
            keras.layers.Conv2D(4, 3),
            keras.layers.BatchNormalization(),
            keras.layers.Flatten(),
            keras.layers.Dropout(0.5, seed=0),
            keras.layers.Dense(10),
        ]
    )


@pytest.fixture(scope="module")
def networks(randomize):
    mean = np.random.default_rng(0).uniform(size=(24, 24, 3))
    built = {
        "digits": models.resnet(8, (8, 8, 1), embedding_at="features"),
        "cifar": models.resnet(8, (24, 24, 3), normalization="pixel", mean=mean),
        "sequential": build_sequential(),
    }
    return {name: randomize(network, seed) for seed, (name, network) in enumerate(built.items())}


@pytest.fixture(scope="module")
def base(networks, tmp_path_factory):
    """A folder with every network, exported once."""
    folder = tmp_path_factory.mktemp("saved")
    provenance = provenance_of_run(CONFIG, METRICS["steps"], METRICS["results"])
    for name, network in networks.items():
        version = export_saved_model(
            network, folder / name, provenance, image_shape=SHAPES[name][1]
        )
        assert version == folder / name / "1"
    return folder


@pytest.fixture(scope="module")
def finished(networks, tmp_path_factory):
    """A finished run."""
    run = Run(tmp_path_factory.mktemp("runs") / "done")
    run.path.mkdir()
    write_json(run.path / "config.json", CONFIG)
    run.finish(networks["digits"], METRICS)
    return run.path


@pytest.fixture
def network(networks):
    return networks["digits"]


def draw(shape, count=5, seed=1):
    """Images as a dataset stores them."""
    return np.random.default_rng(seed).integers(0, 256, (count, *shape), dtype=np.uint8)


def as_seen(stored, name):
    """What the network sees of them."""
    return data.centre_crop(stored, SHAPES[name][0][0]).astype("float32") / np.float32(255)


def everything(directory):
    """The files and what they hold, and the folders, empty ones too."""
    return tree(directory), sorted(directory.rglob("*"))


# What a stranger does with a saved network: TensorFlow, and neither this package nor Keras.
STRANGER = """
import sys

sys.modules["cascade_keras"] = sys.modules["keras"] = None
import numpy as np
import tensorflow as tf

for forbidden in ("cascade_keras", "keras"):
    try:
        __import__(forbidden)
    except ImportError:
        continue
    sys.exit(forbidden + " can be imported")
folder, given, results = sys.argv[1:]
found = {}
for key, arrays in np.load(given, allow_pickle=True).item().items():
    loaded = tf.saved_model.load(f"{folder}/{key}/1")
    for name, signature in loaded.signatures.items():
        images = arrays["stored"] if name == "raw" else arrays["seen"]
        for output, value in signature(images=tf.constant(images)).items():
            found[f"{key} {name} {output}"] = value.numpy()
    images = tf.constant(arrays["seen"])
    with tf.GradientTape() as tape:
        tape.watch(images)
        logits = loaded.serve(images)["logits"]
        loss = tf.nn.sparse_softmax_cross_entropy_with_logits(arrays["labels"], logits)
    found[f"{key} gradient"] = tape.gradient(loss, images).numpy()
    found[f"{key} serve()"] = logits.numpy()
np.savez(results, **found)
"""


@pytest.fixture(scope="module")
def strangers(base, tmp_path_factory):
    """What a process without this package gets from the saved networks, and what it gave them."""
    folder = tmp_path_factory.mktemp("stranger")
    given = {}
    for name, (_, stored_shape) in SHAPES.items():
        stored = draw(stored_shape)
        given[name] = {"stored": stored, "seen": as_seen(stored, name), "labels": np.arange(5)}
    np.save(folder / "given.npy", given)
    files = [str(base), str(folder / "given.npy"), str(folder / "results.npz")]
    command = [sys.executable, "-I", "-c", STRANGER, *files]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return given, np.load(folder / "results.npz")


@pytest.mark.parametrize("name", SHAPES)
def test_with_tensorflow_alone_it_is_the_keras_network(name, networks, strangers):
    given, results = strangers

    @tf.function
    def reference(images, labels):
        with tf.GradientTape() as tape:
            tape.watch(images)
            outputs = networks[name](images, training=False)
            logits = outputs["logits"] if isinstance(outputs, dict) else outputs
            loss = losses.cross_entropy(logits, labels)
        embedding = outputs["embedding"] if isinstance(outputs, dict) else outputs
        return logits, embedding, tape.gradient(loss, images)

    images, labels = tf.constant(given[name]["seen"]), tf.constant(given[name]["labels"])
    logits, embedding, gradient = (x.numpy() for x in reference(images, labels))
    for signature, outputs in OUTPUTS.items():
        assert {x.split()[2] for x in results if x.startswith(f"{name} {signature} ")} == outputs
        np.testing.assert_allclose(results[f"{name} {signature} logits"], logits, atol=1e-6)
        np.testing.assert_allclose(results[f"{name} {signature} embedding"], embedding, atol=1e-6)
    np.testing.assert_allclose(results[f"{name} serve()"], logits, atol=1e-6)
    probabilities = tf.nn.softmax(logits).numpy()
    for signature in ("serving_default", "raw"):
        found = results[f"{name} {signature} probabilities"]
        np.testing.assert_allclose(found, probabilities, atol=1e-6)
    assert np.abs(gradient).max() > 0
    error = np.abs(results[f"{name} gradient"] - gradient).max()
    assert error <= 1e-6 * np.abs(gradient).max()


@pytest.mark.parametrize("name", SHAPES)
def test_servers_read_named_batches_of_any_size(name, base):
    """From the file that a server reads, not from what TensorFlow makes of it."""
    content = (base / name / "1" / "saved_model.pb").read_bytes()
    signatures = saved_model_pb2.SavedModel.FromString(content).meta_graphs[0].signature_def
    seen, stored = SHAPES[name]
    for signature, outputs in OUTPUTS.items():
        (key, images), *others = signatures[signature].inputs.items()
        assert key == "images" and not others
        raw = signature == "raw"
        assert images.dtype == (tf.uint8 if raw else tf.float32).as_datatype_enum
        assert sizes(images) == [-1, *(stored if raw else seen)]
        assert set(signatures[signature].outputs) == outputs
        for output in signatures[signature].outputs.values():
            assert output.dtype == tf.float32.as_datatype_enum
            assert sizes(output)[0] == -1 and sizes(output)[1] > 0


@pytest.mark.parametrize("side", [4, 12])
def test_images_of_another_size_are_refused_by_every_signature(side, base):
    for name, signature in tf.saved_model.load(str(base / "digits" / "1")).signatures.items():
        dtype = tf.uint8 if name == "raw" else tf.float32
        with pytest.raises(tf.errors.InvalidArgumentError):
            signature(images=tf.zeros((2, side, side, 1), dtype))


def sizes(tensor):
    return [dimension.size for dimension in tensor.tensor_shape.dim]


@pytest.mark.parametrize("stored_shape", [(16, 16, 1), (19, 17, 1)])
def test_raw_pixels_are_bit_equal_to_those_of_evaluation(stored_shape, tmp_path):
    """A network that returns its pixels; every value 0..255, crops at odd offsets."""
    pixels = keras.Sequential([keras.Input((16, 16, 1)), keras.layers.Flatten()])
    version = export_saved_model(pixels, tmp_path / "pixels", image_shape=stored_shape)
    stored = draw(stored_shape)
    stored[0, -16:, -16:, 0] = np.arange(256).reshape(16, 16)
    stored[1, :16, :16, 0] = np.arange(256).reshape(16, 16)
    found = tf.saved_model.load(str(version)).signatures["raw"](images=tf.constant(stored))
    expected = data.centre_crop(stored, 16).astype(np.float32) / np.float32(255)
    np.testing.assert_array_equal(found["logits"], expected.reshape(5, 256))


@pytest.mark.parametrize("name", SHAPES)
def test_another_runtime_gives_the_same_logits(name, base, networks):
    core = openvino.Core()
    network = core.compile_model(
        core.read_model(base / name / "1"), "CPU", {"INFERENCE_PRECISION_HINT": "f32"}
    )
    images = as_seen(draw(SHAPES[name][1]), name)
    outputs = networks[name](images, training=False)
    logits = outputs["logits"] if isinstance(outputs, dict) else outputs
    np.testing.assert_allclose(network(images)["logits"], logits, atol=1e-4, rtol=0)


@pytest.mark.parametrize("name", SHAPES)
def test_warm_up_requests_run_against_the_signature_they_name(name, base):
    signatures = tf.saved_model.load(str(base / name / "1")).signatures
    file = base / name / "1" / "assets.extra" / "tf_serving_warmup_requests"
    covered = []
    for record in tf.data.TFRecordDataset(str(file)):
        log = prediction_log_pb2.PredictionLog.FromString(record.numpy())
        assert log.WhichOneof("log_type") == "predict_log"
        request = log.predict_log.request
        assert request.model_spec.name == name
        inputs = {key: tf.make_ndarray(value) for key, value in request.inputs.items()}
        assert inputs["images"].std() > 0.2 * inputs["images"].max()
        outputs = signatures[request.model_spec.signature_name](
            **{key: tf.constant(value) for key, value in inputs.items()}
        )
        assert np.isfinite(outputs["logits"]).all()
        covered.append((request.model_spec.signature_name, len(inputs["images"])))
    assert len(covered) == 6 and len({batch for _, batch in covered}) == 2
    assert set(covered) == {(name, batch) for name in OUTPUTS for batch in (1, covered[1][1])}


@pytest.mark.parametrize("name", SHAPES)
def test_it_says_what_it_is(name, base, networks):
    known = locate(base / name).provenance
    assert known["name"] == name
    assert known["recipe"] == CONFIG["flags"] and known["dataset"] == CONFIG["dataset"]
    assert known["steps"] == 30 and known["seed"] == 3
    assert known["versions"] == CONFIG["versions"] and known["results"] == METRICS["results"]
    assert (tuple(known["input_shape"]), tuple(known["image_shape"])) == SHAPES[name]
    assert known["num_classes"] == 10
    assert known["embedding_size"] == (64 if name == "digits" else 10)
    version = str(base / name / "1")
    loaded = tf.saved_model.load(version)
    expected = weights_hash(weight.numpy() for weight in networks[name].weights)
    assert known["weights_hash"] == expected
    assert weights_hash(variable.numpy() for variable in loaded.variables) == expected
    # Each weight is saved once, where Keras's own export saves two copies, and is the one in use.
    saved = tf.train.list_variables(f"{version}/variables/variables")
    assert len(saved) == len(networks[name].weights) + 1  # the graph of objects
    images = tf.constant(as_seen(draw(SHAPES[name][1]), name))
    before = loaded.serve(images)["logits"]
    loaded.variables[-1].assign_add(tf.ones(10))
    np.testing.assert_allclose(loaded.serve(images)["logits"], before + 1, atol=1e-4)


def test_a_network_of_half_precision_answers_in_float32(tmp_path, randomize):
    keras.config.set_dtype_policy("mixed_bfloat16")
    try:
        network = randomize(models.resnet(8, (8, 8, 1), embedding_at="features"))
    finally:
        keras.config.set_dtype_policy("float32")
    version = export_saved_model(network, tmp_path / "half")
    loaded = tf.saved_model.load(str(version))
    images = tf.constant(as_seen(draw((8, 8, 1)), "digits"))
    outputs = loaded.signatures["serving_default"](images=images)
    expected = network(images, training=False)
    assert {output.dtype for output in outputs.values()} == {tf.float32}
    np.testing.assert_allclose(outputs["logits"], expected["logits"], atol=0.02)
    digest = locate(version).provenance["weights_hash"]
    assert weights_hash(variable.numpy() for variable in loaded.variables) == digest


def test_a_trainers_network_is_meant(network, base, tmp_path):
    trainer = AdversarialTrainer(network)
    version = export_saved_model(trainer, tmp_path / "trained")
    assert (
        locate(version).provenance["weights_hash"]
        == (locate(base / "digits").provenance["weights_hash"])
    )


# Serving.


@pytest.fixture(scope="module")
def client():
    spec = importlib.util.spec_from_file_location("serving_client", SERVING / "client.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def servers(base):
    with model_server.serve(base / "cifar") as cifar, model_server.serve(base / "digits") as digits:
        yield {"cifar": cifar, "digits": digits}


@pytest.mark.parametrize("signature", OUTPUTS)
@pytest.mark.parametrize("way", ["grpc", "columns", "rows"])
def test_the_client_gets_what_the_network_says(way, signature, client, servers, networks):
    stored = draw((32, 32, 3), count=3)
    seen = as_seen(stored, "cifar")
    images = client.prepare(stored if signature == "raw" else seen, signature)
    if way == "grpc":
        target = (servers["cifar"]["grpc"], "cifar", signature)
        outputs = client.predict_grpc(images, *target)
    else:
        target = (servers["cifar"]["rest"], "cifar", signature)
        outputs = client.predict_rest(images, *target, rows=way == "rows")
    assert set(outputs) == OUTPUTS[signature]
    expected = networks["cifar"](seen, training=False)
    for name in ("logits", "embedding"):
        assert outputs[name].dtype == np.float32
        np.testing.assert_allclose(outputs[name], expected[name], atol=1e-5)
    if signature != "serve":
        own = client.probabilities(outputs["logits"])
        np.testing.assert_allclose(own, outputs["probabilities"], atol=1e-6)


@pytest.mark.parametrize(
    ("protocol", "flags"),
    [("grpc", ["--signature=raw"]), ("rest", ["--signature=serve", "--rows"])],
)
def test_the_client_prints_classes(protocol, flags, client, servers, networks, capsys):
    host = f"--host={servers['digits'][protocol]}"
    client.main([f"--protocol={protocol}", host, "--name=digits", "--count=4", *flags])
    images, labels = data.test_images(data.load("digits"), crop=8)
    found = tf.nn.softmax(networks["digits"](images[:4], training=False)["logits"]).numpy()
    assert capsys.readouterr().out.splitlines() == [
        f"image {n}: class {row.argmax()}, probability {row.max():.3f}, true {labels[n]}"
        for n, row in enumerate(found)
    ]


def test_the_client_sends_images_of_a_file(client, servers, tmp_path, capsys):
    np.save(tmp_path / "images.npy", draw((32, 32, 3), count=2))
    host = f"--host={servers['cifar']['rest']}"
    flags = ["--protocol=rest", "--name=cifar", "--signature=raw", host]
    client.main([*flags, f"--images={tmp_path / 'images.npy'}"])
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 2 and all(re.fullmatch(r"image \d: class \d, .*\d\.\d+", x) for x in lines)


CLIENT_ERRORS = [
    ("no server", ["--host=localhost:1"], "client: localhost:1: "),
    ("other name", ["--host={0}", "--name=other"], "client: .*Servable not found: other"),
    ("other size", ["--host={0}", "--signature=raw", "--images=images.npy"], "client: .*shape"),
    ("not raw", ["--host={0}", "--signature=raw", "--images=floats.npy"], "whole numbers .uint8"),
    ("no file", ["--images=nowhere.npy"], "--images: nowhere.npy cannot be read"),
]


@pytest.mark.parametrize("protocol", ["grpc", "rest"])
@pytest.mark.parametrize(("flags", "message"), [row[1:] for row in CLIENT_ERRORS],
                         ids=[row[0] for row in CLIENT_ERRORS])  # fmt: skip
def test_what_the_client_cannot_do_is_one_line(
    protocol, flags, message, client, servers, tmp_path, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    np.save("images.npy", draw((32, 32, 3)))
    np.save("floats.npy", np.zeros((1, 8, 8, 1)))
    flags = [flag.format(servers["digits"][protocol]) for flag in flags]
    with pytest.raises(SystemExit) as stopped:
        client.main([f"--protocol={protocol}", *flags])
    assert re.search(message, stopped.value.code) and "\n" not in stopped.value.code


def test_the_batching_parameters_are_consistent():
    """Against the fields of BatchingParameters in TensorFlow Serving's session_bundle_config."""
    text = (SERVING / "batching.config").read_text()
    lines = [line for line in text.splitlines() if line and not line.startswith("#")]
    wrapped, allowed = {}, []
    for line in lines:
        single = re.fullmatch(r"(\w+) \{ value: (\d+) \}", line)
        if single:
            assert single[1] not in wrapped
            wrapped[single[1]] = int(single[2])
        else:
            allowed.append(int(re.fullmatch(r"allowed_batch_sizes: (\d+)", line)[1]))
    assert set(wrapped) == {
        "max_batch_size", "batch_timeout_micros", "max_enqueued_batches", "num_batch_threads"
    }  # fmt: skip
    assert allowed == sorted(set(allowed)) and allowed[-1] == wrapped["max_batch_size"]
    assert wrapped["num_batch_threads"] >= 1 and wrapped["max_enqueued_batches"] >= 1
    # The warm-up's larger batch is one that the server would make.
    assert set(export.WARMUP_BATCHES) <= set(allowed)


# Versions.


def test_another_network_is_the_next_version_and_the_same_is_none(
    networks, base, tmp_path, randomize
):
    output = tmp_path / "name"
    provenance = provenance_of_run(CONFIG, 30, [])
    shutil.copytree(base / "digits", output)
    before = tree(tmp_path)
    # Later results of the same network do not make it another.
    changed = {**provenance, "steps": 31}
    assert export_saved_model(networks["digits"], output, changed) == output / "1"
    assert tree(tmp_path) == before

    other = randomize(models.resnet(8, (8, 8, 1), embedding_at="features"), seed=9)
    assert export_saved_model(other, output, provenance) == output / "2"
    # Not the newest any more: a server that was given version 2 must get the first network back.
    assert export_saved_model(networks["digits"], output, provenance) == output / "3"
    # Equal weights, of another recipe, or for other stored images.
    changed = {**provenance, "recipe": {**CONFIG["flags"], "loss": "kurakin"}}
    assert export_saved_model(networks["digits"], output, changed) == output / "4"
    version = export_saved_model(networks["digits"], output, changed, image_shape=(9, 9, 1))
    assert version == output / "5" == locate(output).path
    assert saved_versions(output) == [1, 2, 3, 4, 5] and len(list(output.iterdir())) == 5
    digests = [locate(output / str(n)).provenance["weights_hash"] for n in range(1, 6)]
    assert len(set(digests)) == 2 and digests.count(digests[1]) == 1


def damage(version, file):
    content = bytearray((version / file).read_bytes())
    content[len(content) // 2] ^= 0xFF
    (version / file).write_bytes(content)


@pytest.mark.parametrize(
    "spoil",
    [
        lambda version: damage(version, "variables/variables.data-00000-of-00001"),
        lambda version: damage(version, "variables/variables.index"),
        lambda version: shutil.rmtree(version / "variables"),
        lambda version: (version / "saved_model.pb").unlink(),
        lambda version: (version / PROVENANCE_FILE).unlink(),
        lambda version: (version / PROVENANCE_FILE).write_text("{"),
        lambda version: [path.unlink() for path in version.rglob("*") if path.is_file()],
    ],
    ids=["weights", "index", "no weights", "no graph", "no record", "bad record", "nothing"],
)
def test_a_damaged_version_is_neither_kept_nor_overwritten(spoil, network, base, tmp_path):
    shutil.copytree(base / "digits" / "1", tmp_path / "digits" / "6")
    provenance = locate(base / "digits").provenance
    assert export_saved_model(network, tmp_path / "digits", provenance).name == "6"
    spoil(tmp_path / "digits" / "6")
    before = tree(tmp_path / "digits" / "6")
    assert export_saved_model(network, tmp_path / "digits", provenance).name == "7"
    assert tree(tmp_path / "digits" / "6") == before


def test_a_server_that_polls_never_meets_half_a_version(network, tmp_path, monkeypatch):
    """What a server would see whenever a file has come to the disk: no version, then all of it."""
    seen, flush = [], os.fsync

    def polled(file):
        flush(file)
        seen.append(os.listdir(tmp_path / "polled"))

    monkeypatch.setattr(os, "fsync", polled)
    version = export_saved_model(network, tmp_path / "polled")
    written = sum(1 for _ in version.rglob("*"))
    assert seen == [[".partial-1"]] * (written + 1) + [["1"]]  # each file and folder, the rename


def fails(*arguments):
    raise OSError(28, "No space left on device", "somewhere")


@pytest.mark.parametrize(
    ("module", "name"),
    [(os, "fsync"), (json, "dumps"), (tf.io, "TFRecordWriter"), (pathlib.Path, "rename")],
)
def test_a_failure_leaves_nothing(module, name, network, base, tmp_path, monkeypatch):
    shutil.copytree(base / "digits", tmp_path / "there")
    shutil.rmtree(tmp_path / "there" / "1" / "assets.extra")
    before = everything(tmp_path)
    monkeypatch.setattr(module, name, fails)
    for output in ("there", "deep/er/new"):
        with pytest.raises(OSError, match="No space left on device"):
            export_saved_model(network, tmp_path / output)
        assert everything(tmp_path) == before


def test_what_a_killed_export_left_is_removed(network, tmp_path):
    (tmp_path / "name" / ".partial-1" / "variables").mkdir(parents=True)
    (tmp_path / "name" / ".partial-1" / "variables" / "half").write_text("half")
    (tmp_path / "name" / ".partial-9").mkdir()
    assert export_saved_model(network, tmp_path / "name").name == "1"
    assert os.listdir(tmp_path / "name") == ["1"]
    assert not (tmp_path / "name" / "1" / "variables" / "half").exists()


@contextlib.contextmanager
def locked(folder):
    """Hold a folder as an export under way does."""
    descriptor = os.open(folder, os.O_RDONLY)
    fcntl.flock(descriptor, fcntl.LOCK_EX)
    yield
    os.close(descriptor)


@pytest.fixture
def arrivals(monkeypatch):
    """Counts the exports that have come to a folder's lock."""
    counter, original = threading.Semaphore(0), fcntl.flock

    def flock(*arguments):
        counter.release()
        original(*arguments)

    # The module's own name, so that the test's locks are not counted.
    numbers = {"LOCK_EX": fcntl.LOCK_EX, "LOCK_NB": fcntl.LOCK_NB}
    monkeypatch.setattr(files, "fcntl", types.SimpleNamespace(flock=flock, **numbers))
    return counter


def test_a_folder_that_goes_away_while_an_export_waits_is_made_again(network, tmp_path, arrivals):
    folder = tmp_path / "name"
    (folder / ".partial-1").mkdir(parents=True)
    waiting = threading.Thread(target=export_saved_model, args=(network, folder))
    with locked(folder):
        waiting.start()
        assert arrivals.acquire(timeout=60)
        waiting.join(timeout=0.5)
        assert waiting.is_alive() and os.listdir(folder) == [".partial-1"]
        shutil.rmtree(folder)
    waiting.join()
    assert os.listdir(folder) == ["1"]


def test_exports_at_once_do_not_clash(networks, tmp_path, randomize, arrivals):
    """Three, two of them of one network."""
    output = tmp_path / "name"
    output.mkdir()
    other = randomize(models.resnet(8, (8, 8, 1)), seed=9)
    threads = [
        threading.Thread(target=export_saved_model, args=(exported, output))
        for exported in (networks["digits"], other, networks["digits"])
    ]
    with locked(output):
        for thread in threads:
            thread.start()
        assert all(arrivals.acquire(timeout=60) for _ in threads)
        assert not os.listdir(output)
    for thread in threads:
        thread.join()
    versions = saved_versions(output)
    digests = [locate(output / str(n)).provenance["weights_hash"] for n in versions]
    assert len(os.listdir(output)) == len(versions)
    # Two; three where the other network came between the two exports of one.
    assert len(set(digests)) == 2 and all(a != b for a, b in itertools.pairwise(digests))


# Bad networks.


def two_inputs():
    first, second = keras.Input((8, 8, 1)), keras.Input((8, 8, 1))
    return keras.Model([first, second], keras.layers.Flatten()(first + second))


def no_logits():
    inputs = keras.Input((8, 8, 1))
    return keras.Model(inputs, {"scores": keras.layers.Flatten()(inputs)})


def any_size():
    inputs = keras.Input((None, None, 1))
    return keras.Model(inputs, keras.layers.GlobalAveragePooling2D()(inputs))


def fixed_batch():
    inputs = keras.Input((8, 8, 1), batch_size=4)
    return keras.Model(inputs, keras.layers.Reshape((64,))(inputs) + np.ones((4, 64), "float32"))


NETWORKS = [
    ("two inputs", two_inputs, None, "must take one batch of images"),
    ("no logits", no_logits, None, "must return logits, .* it returns scores"),
    ("any size", any_size, None, r"of known size, it takes \(None, None, None, 1\)"),
    ("fixed batch", fixed_batch, None, "logits must have the shape .batch, width."),
    ("maps", lambda: keras.Sequential([keras.Input((8, 8, 1)), keras.layers.ReLU()]), None,
     "logits must have the shape .batch, width.*8, 8, 1"),
    ("smaller", build_sequential, (7, 8, 1), r"image_shape must be at least the \(8, 8, 1\)"),
    ("colours", build_sequential, (8, 8, 3), r"as many channels; got \(8, 8, 3\)"),
]  # fmt: skip


@pytest.mark.parametrize(("build", "image_shape", "message"), [row[1:] for row in NETWORKS],
                         ids=[row[0] for row in NETWORKS])  # fmt: skip
def test_a_network_that_cannot_be_served_is_refused(build, image_shape, message, tmp_path):
    with pytest.raises(InputError, match=message):
        export_saved_model(build(), tmp_path / "saved" / "name", image_shape=image_shape)
    assert not list(tmp_path.iterdir())


# The program.


def test_the_program_exports_a_run_once(finished, tmp_path, monkeypatch, capfd):
    monkeypatch.chdir(tmp_path)
    assert main(["export", f"--run={finished}"]) == 0
    told = capfd.readouterr()
    assert told.out == "saved/done/1: serving_default, raw and serve; served as done\n"
    assert told.err == ""
    before = tree(tmp_path)
    assert main(["export", f"--run={finished}/", "--output=saved/done"]) == 0
    assert capfd.readouterr().out == "saved/done/1 is this network already, nothing done\n"
    assert tree(tmp_path) == before
    known = locate("saved/done").provenance
    assert known["recipe"] == CONFIG["flags"] and known["image_shape"] == [8, 8, 1]


def test_a_run_of_0_1_0_is_exported(tmp_path):
    place = release.unpack(tmp_path)
    version, written = export_run(place / "runs" / "finished", place / "exported")
    before, after = (locate(path).provenance for path in (place / "saved" / "finished", version))
    assert written and version == place / "exported" / "1"
    for key in ("weights_hash", "recipe", "dataset", "results", "image_shape"):
        assert after[key] == before[key]


def test_the_run_of_a_dataset_without_a_row_needs_the_images_shape(finished, tmp_path):
    run = shutil.copytree(finished, tmp_path / "run")
    edit(run / "config.json", flags={"dataset": "own"})
    with pytest.raises(InputError, match=r"^run: .*register its row, or give image_shape"):
        export_run(run, tmp_path / "saved")
    version, _ = export_run(run, tmp_path / "saved", image_shape=(10, 9, 1))
    assert locate(version).provenance["image_shape"] == [10, 9, 1]


def test_a_full_disk_is_one_line_and_nothing_is_half_written(finished, tmp_path, capfd):
    """The kernel refuses to let any file grow above 200 kB, as a full disk would."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (200_000, before[1]))
    try:
        assert main(["export", f"--run={finished}", f"--output={tmp_path / 'saved' / 'full'}"]) == 2
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    error = capfd.readouterr().err
    assert re.fullmatch(r"export: .*/saved/full/1: File too large.*\n", error), error
    assert not list(tmp_path.iterdir())


def edit(file, **changes):
    content = json.loads(file.read_text())
    file.write_text(json.dumps({**content, **changes}))


def small_images(folder):
    """A run whose network sees more than its dataset stores."""
    network = models.resnet(8, (24, 24, 1))
    network.save(folder / "run" / "model.keras")


# Bad input. Each row: what is wrong, what makes it so, flags, part of the message. Every row must
# give that one line, exit code 2, and leave every file as it was.
GOOD = "--run={0}/run"
ROWS = [
    ("no run", None, [], "--run: must be given"),
    ("empty run", None, ["--run="], "--run: must be"),
    ("unknown flag", None, [GOOD, "--version=3"], "Unknown command line flag 'version'"),
    ("not a flag", None, [GOOD, "saved/x"], "unexpected argument 'saved/x'"),
    ("run missing", None, ["--run={0}/other"], "--run: .*other does not exist; name a finished"),
    ("run is a file", None, ["--run={0}/run/model.keras"], "model.keras is not a run"),
    ("not a run", lambda d: (d / "run" / "config.json").unlink(), [GOOD], "not a run .no config"),
    ("not finished", lambda d: (d / "run" / "metrics.json").unlink(), [GOOD], "run is not finish"),
    ("no network", lambda d: (d / "run" / "model.keras").unlink(), [GOOD], "run is not finished"),
    ("other contents", lambda d: (d / "run" / "model.keras").write_bytes(b"not a zip"), [GOOD],
     "--run: .*model.keras cannot be loaded"),
    ("truncated", lambda d: os.truncate(d / "run" / "model.keras", 5000), [GOOD],
     "--run: .*model.keras cannot be loaded"),
    ("broken config", lambda d: (d / "run" / "config.json").write_text("{"), [GOOD],
     "config.json: cannot be read"),
    ("broken metrics", lambda d: (d / "run" / "metrics.json").write_text("{"), [GOOD],
     "metrics.json: cannot be read"),
    ("metrics of others", lambda d: (d / "run" / "metrics.json").write_text("{}"), [GOOD],
     "not a run's .missing: 'steps'"),
    ("config of others", lambda d: (d / "run" / "config.json").write_text("[1]"), [GOOD],
     "must hold a JSON object"),
    ("unknown dataset", lambda d: edit(d / "run" / "config.json", flags={"dataset": "svhn"}),
     [GOOD], "--run: .*'svhn'.*register"),
    ("other dataset", small_images, [GOOD], "--run: image_shape must be .*24"),
    ("output is a file", lambda d: (d / "x").write_text(""), [GOOD, "--output={0}/x"],
     "--output: .*x is a file; name a folder"),
    ("output below a file", lambda d: (d / "x").write_text(""), [GOOD, "--output={0}/x/y"],
     "--output: cannot write in .*x; name"),
    ("output is a version", lambda d: shutil.copytree(d / "saved" / "1", d / "v"),
     [GOOD, "--output={0}/v"], "--output: .*v is itself a saved network; name the folder that"),
    ("output is a number", None, [GOOD, "--output={0}/saved/2"], "--output: .*2: a number names"),
    ("output is a run", None, [GOOD, "--output={0}/run"], "--output: .*run is a run; name a"),
    ("output not writable", None, [GOOD, "--output=/proc/saved"], "cannot write in /proc; name"),
]  # fmt: skip


@pytest.mark.parametrize(("make", "flags", "message"), [row[1:] for row in ROWS],
                         ids=[row[0] for row in ROWS])  # fmt: skip
def test_bad_input_is_one_line_and_leaves_nothing(
    make, flags, message, finished, base, tmp_path, monkeypatch, capfd
):
    monkeypatch.chdir(tmp_path)
    shutil.copytree(finished, tmp_path / "run")
    shutil.copytree(base / "digits", tmp_path / "saved")
    if make:
        make(tmp_path)
    before = everything(tmp_path)
    capfd.readouterr()
    assert main(["export", *(flag.format(tmp_path) for flag in flags)]) == 2
    told = capfd.readouterr()
    lines = told.err.splitlines()
    assert len(lines) == 1 and not told.out, told
    assert lines[0].startswith("export: ") and re.search(message, lines[0]), lines[0]
    assert everything(tmp_path) == before
