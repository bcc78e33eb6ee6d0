"""Saved networks: equal to the Keras ones, served by others, whole at any moment."""

import fcntl
import itertools
import json
import os
import pathlib
import re
import resource
import runpy
import shutil
import subprocess
import sys
import threading
import types

import keras
import msgspec
import numpy as np
import openvino
import pytest
import tensorflow as tf
from support import model_server, release
from support.files import ROOT, flip, locked, tree
from tensorflow.core.protobuf import saved_model_pb2
from tensorflow_serving.apis import prediction_log_pb2

from cascade_keras import data, export, files, losses, models
from cascade_keras.cli.export import main
from cascade_keras.errors import InputError
from cascade_keras.export import export_run, export_saved_model, provenance_of_run
from cascade_keras.files import write_json
from cascade_keras.provenance import PROVENANCE_FILE, locate, saved_versions, weights_hash
from cascade_keras.recorded import Metrics
from cascade_keras.runs.run import Run
from cascade_keras.sources import load_source
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
CLEAN = {"attack": "clean", "epsilon": 0, "correct": 49, "examples": 50, "accuracy": 98.0}
METRICS = {"steps": 30, "seed": 3, "results": [CLEAN]}
# What each network sees, and what its dataset stores.
SHAPES = {
    "digits": ((8, 8, 1), (8, 8, 1)),
    "cifar": ((24, 24, 3), (32, 32, 3)),
    "sequential": ((8, 8, 1), (8, 8, 1)),
}


def build_sequential():
    """A network that is not ours: logits alone, and a layer that keeps a random state."""
    layers = keras.layers
    norm, dropout = layers.BatchNormalization(), layers.Dropout(0.5, seed=0)
    rows = [layers.Conv2D(4, 3), norm, layers.Flatten(), dropout, layers.Dense(10)]
    return keras.Sequential([keras.Input((8, 8, 1)), *rows])


def outputs_of(network, images):
    """Its logits, which are the embedding where it has no other, and its embedding."""
    outputs = network(images, training=False)
    return outputs if isinstance(outputs, dict) else {"logits": outputs, "embedding": outputs}


def loaded(version):
    return tf.saved_model.load(str(version))


def hash_of(version):
    return locate(version).provenance["weights_hash"]


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
    provenance = provenance_of_run(CONFIG, METRICS)
    for name, network in networks.items():
        shape = SHAPES[name][1]
        version = export_saved_model(network, folder / name, provenance, image_shape=shape)
        assert version == folder / name / "1"
    return folder


@pytest.fixture(scope="module")
def finished(networks, tmp_path_factory):
    """A finished run."""
    run = Run(tmp_path_factory.mktemp("runs") / "done")
    run.path.mkdir()
    write_json(run.path / "config.json", CONFIG)
    run.finish(networks["digits"], msgspec.convert(METRICS, Metrics))
    return run.path


@pytest.fixture
def network(networks):
    """The one that is exported soonest."""
    return networks["sequential"]


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
    command = [sys.executable, "-I", "-c", STRANGER, str(base), "given.npy", "results.npz"]
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
            outputs = outputs_of(networks[name], images)
            loss = losses.cross_entropy(outputs["logits"], labels)
        return outputs, tape.gradient(loss, images)

    images, labels = tf.constant(given[name]["seen"]), tf.constant(given[name]["labels"])
    expected, gradient = reference(images, labels)
    expected = {**expected, "probabilities": tf.nn.softmax(expected["logits"])}
    expected = {f"{s} {key}": expected[key] for s, keys in OUTPUTS.items() for key in keys}
    expected["serve()"] = expected["serve logits"]
    largest = np.abs(gradient).max()
    assert largest > 0
    error = np.abs(results[f"{name} gradient"] - gradient).max()
    assert error <= 1e-6 * largest
    found = {key.partition(" ")[2] for key in results if key.startswith(name)}
    assert found == {*expected, "gradient"}
    for key, value in expected.items():
        np.testing.assert_allclose(results[f"{name} {key}"], value, atol=1e-6, err_msg=key)


@pytest.mark.parametrize("name", SHAPES)
def test_servers_read_named_batches_of_any_size(name, base):
    """From the file that a server reads, not from what TensorFlow makes of it."""
    content = (base / name / "1" / "saved_model.pb").read_bytes()
    signatures = saved_model_pb2.SavedModel.FromString(content).meta_graphs[0].signature_def
    seen, stored = SHAPES[name]
    for signature, outputs in OUTPUTS.items():
        dtype, shape = (tf.uint8, stored) if signature == "raw" else (tf.float32, seen)
        inputs = {key: (x.dtype, sizes(x)) for key, x in signatures[signature].inputs.items()}
        assert inputs == {"images": (dtype.as_datatype_enum, [-1, *shape])}
        assert set(signatures[signature].outputs) == outputs
        for output in signatures[signature].outputs.values():
            assert output.dtype == tf.float32.as_datatype_enum
            assert sizes(output)[0] == -1 and sizes(output)[1] > 0


@pytest.mark.parametrize("side", [4, 12])
def test_images_of_another_size_are_refused_by_every_signature(side, base):
    for name, signature in loaded(base / "digits" / "1").signatures.items():
        dtype = tf.uint8 if name == "raw" else tf.float32
        with pytest.raises(tf.errors.InvalidArgumentError):
            signature(images=tf.zeros((2, side, side, 1), dtype))


def sizes(tensor):
    return [dimension.size for dimension in tensor.tensor_shape.dim]


@pytest.mark.parametrize("stored_shape", [(16, 16, 1), (19, 17, 1)])
def test_raw_pixels_are_bit_equal_to_those_of_evaluation(stored_shape, tmp_path):
    """A network that returns its pixels; every value 0..255, crops at odd offsets."""
    pixels = keras.Sequential([keras.Input((16, 16, 1)), keras.layers.Flatten()])
    told = {"from_logits": True, "image_shape": stored_shape}
    version = export_saved_model(pixels, tmp_path / "pixels", **told)
    stored = draw(stored_shape)
    stored[0, -16:, -16:, 0] = stored[1, :16, :16, 0] = np.arange(256).reshape(16, 16)
    found = loaded(version).signatures["raw"](images=tf.constant(stored))
    expected = data.centre_crop(stored, 16).astype(np.float32) / np.float32(255)
    np.testing.assert_array_equal(found["logits"], expected.reshape(5, 256))


@pytest.mark.parametrize("name", SHAPES)
def test_another_runtime_gives_the_same_logits(name, base, networks):
    core = openvino.Core()
    network = core.read_model(base / name / "1")
    network = core.compile_model(network, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    images = as_seen(draw(SHAPES[name][1]), name)
    expected = outputs_of(networks[name], images)["logits"]
    np.testing.assert_allclose(network(images)["logits"], expected, atol=1e-4, rtol=0)


@pytest.mark.parametrize("name", SHAPES)
def test_warm_up_requests_run_against_the_signature_they_name(name, base):
    version = base / name / "1"
    signatures = loaded(version).signatures
    covered = []
    for record in tf.data.TFRecordDataset(str(version / export.WARMUP_FILE)):
        log = prediction_log_pb2.PredictionLog.FromString(record.numpy())
        assert log.WhichOneof("log_type") == "predict_log"
        request = log.predict_log.request
        assert request.model_spec.name == name
        inputs = {key: tf.make_ndarray(value) for key, value in request.inputs.items()}
        assert inputs["images"].std() > 0.2 * inputs["images"].max()
        signature = signatures[request.model_spec.signature_name]
        outputs = signature(**{key: tf.constant(value) for key, value in inputs.items()})
        assert np.isfinite(outputs["logits"]).all()
        covered.append((request.model_spec.signature_name, len(inputs["images"])))
    assert sorted(covered) == sorted(itertools.product(OUTPUTS, export.WARMUP_BATCHES))
    assert export.WARMUP_BATCHES[0] == 1 < export.WARMUP_BATCHES[1]


@pytest.mark.parametrize("name", SHAPES)
def test_it_says_what_it_is(name, base, networks):
    version = base / name / "1"
    digest = weights_hash(weight.numpy() for weight in networks[name].weights)
    assert locate(base / name).provenance == {
        "name": name,
        "recipe": CONFIG["flags"],
        "steps": 30,
        **{key: CONFIG[key] for key in ("dataset", "seed", "versions")},
        "results": METRICS["results"],
        "weights_hash": digest,
        "input_shape": list(SHAPES[name][0]),
        "image_shape": list(SHAPES[name][1]),
        "num_classes": 10,
        "embedding_size": 64 if name == "digits" else 10,
        "value_range": [0, 1],
    }
    served = loaded(version)
    assert weights_hash(variable.numpy() for variable in served.variables) == digest
    # Each weight is saved once, where Keras's own export saves two copies, and is the one in use.
    saved = tf.train.list_variables(f"{version}/variables/variables")
    assert len(saved) == len(networks[name].weights) + 1  # the graph of objects
    images = tf.constant(as_seen(draw(SHAPES[name][1]), name))
    before = served.serve(images)["logits"]
    served.variables[-1].assign_add(tf.ones(10))
    np.testing.assert_allclose(served.serve(images)["logits"], before + 1, atol=1e-4)


def test_a_network_of_half_precision_answers_in_float32(tmp_path, randomize):
    keras.config.set_dtype_policy("mixed_bfloat16")
    try:
        network = randomize(models.resnet(8, (8, 8, 1), embedding_at="features"))
    finally:
        keras.config.set_dtype_policy("float32")
    version = export_saved_model(network, tmp_path / "half")
    served = loaded(version)
    images = tf.constant(as_seen(draw((8, 8, 1)), "digits"))
    outputs = served.signatures["serving_default"](images=images)
    expected = network(images, training=False)
    assert {output.dtype for output in outputs.values()} == {tf.float32}
    np.testing.assert_allclose(outputs["logits"], expected["logits"], atol=0.02)
    assert weights_hash(variable.numpy() for variable in served.variables) == hash_of(version)


# Serving.


@pytest.fixture(scope="module")
def client():
    return types.SimpleNamespace(**runpy.run_path(str(SERVING / "client.py")))


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
        outputs = client.predict_grpc(images, servers["cifar"]["grpc"], "cifar", signature)
    else:
        target = (servers["cifar"]["rest"], "cifar", signature)
        outputs = client.predict_rest(images, *target, rows=way == "rows")
    assert set(outputs) == OUTPUTS[signature]
    expected = outputs_of(networks["cifar"], seen)
    for name in ("logits", "embedding"):
        assert outputs[name].dtype == np.float32
        np.testing.assert_allclose(outputs[name], expected[name], atol=1e-5)
    if signature != "serve":
        own = client.probabilities(outputs["logits"])
        np.testing.assert_allclose(own, outputs["probabilities"], atol=1e-6)


@pytest.mark.parametrize(
    ("protocol", "flags", "name"),
    [
        ("grpc", ["--signature=raw"], "digits"),
        ("rest", ["--signature=serve", "--rows"], "digits"),
        ("rest", ["--signature=raw", "--images=images.npy"], "cifar"),
    ],
)
def test_the_client_prints_classes(
    protocol, flags, name, client, servers, networks, tmp_path, monkeypatch, capsys
):
    monkeypatch.chdir(tmp_path)
    stored, labels = data.load("digits").test
    if name == "cifar":
        stored, labels = draw((32, 32, 3)), None
        np.save("images.npy", stored)
    host = f"--host={servers[name][protocol]}"
    client.main([f"--protocol={protocol}", host, f"--name={name}", "--count=4", *flags])
    logits = outputs_of(networks[name], as_seen(stored[:4], name))["logits"]
    for n, (line, row) in enumerate(
        zip(capsys.readouterr().out.splitlines(), tf.nn.softmax(logits).numpy(), strict=True)
    ):
        true = "" if labels is None else f", true {labels[n]}"
        expected = f"image {n}: class {row.argmax()}, probability {row.max():.3f}{true}"
        assert line == expected


@pytest.mark.parametrize("protocol", ["grpc", "rest"])
@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--host=localhost:1"], "client: localhost:1: "),
        (["--host={0}", "--name=other"], "client: .*Servable not found: other"),
        (["--host={0}", "--signature=raw", "--images=images.npy"], "client: .*shape"),
        (["--host={0}", "--signature=raw", "--images=floats.npy"], "uint8"),
        (["--images=nowhere.npy"], "--images: nowhere.npy"),
    ],
    ids=lambda value: value[-1] if isinstance(value, list) else "",
)
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
    lines = (SERVING / "batching.config").read_text().splitlines()
    text = "\n".join(line for line in lines if line and not line.startswith("#"))
    wrapped = re.findall(r"^(\w+) \{ value: (\d+) \}$", text, re.M)
    allowed = [int(n) for n in re.findall(r"^allowed_batch_sizes: (\d+)$", text, re.M)]
    assert len(wrapped) + len(allowed) == text.count("\n") + 1
    assert sorted(name for name, _ in wrapped) == [
        "batch_timeout_micros", "max_batch_size", "max_enqueued_batches", "num_batch_threads"
    ]  # fmt: skip
    wrapped = {name: int(value) for name, value in wrapped}
    assert allowed == sorted(set(allowed)) and allowed[-1] == wrapped["max_batch_size"]
    assert wrapped["num_batch_threads"] >= 1 and wrapped["max_enqueued_batches"] >= 1
    # The warm-up's larger batch is one that the server would make.
    assert set(export.WARMUP_BATCHES) <= set(allowed)


# Versions.


def test_another_network_is_the_next_version_and_the_same_is_none(
    network, base, tmp_path, randomize
):
    output = tmp_path / "name"
    provenance = provenance_of_run(CONFIG, {"steps": 30, "results": []})
    shutil.copytree(base / "sequential", output)
    before = tree(tmp_path)
    # Later results of the same network do not make it another; a trainer's network is meant.
    changed = {**provenance, "steps": 31}
    for same in (network, AdversarialTrainer(network)):
        assert export_saved_model(same, output, changed) == output / "1"
    assert tree(tmp_path) == before

    other = randomize(build_sequential(), seed=9)
    assert export_saved_model(other, output, provenance) == output / "2"
    # Not the newest any more: a server that was given version 2 must get the first network back.
    assert export_saved_model(network, output, provenance) == output / "3"
    # Equal weights, of another recipe, or for other stored images.
    changed = {**provenance, "recipe": {**CONFIG["flags"], "loss": "kurakin"}}
    assert export_saved_model(network, output, changed) == output / "4"
    version = export_saved_model(network, output, changed, image_shape=(9, 9, 1))
    assert version == output / "5" == locate(output).path
    assert saved_versions(output) == [1, 2, 3, 4, 5] and len(list(output.iterdir())) == 5
    digests = [hash_of(output / str(n)) for n in range(1, 6)]
    assert len(set(digests)) == 2 and digests.count(digests[1]) == 1


STRANGE = ("01", "０７", "1e3", "²", "-4", "99999999999999999999", "2.keras")


def test_folders_that_are_no_versions_are_left_alone(network, base, tmp_path):
    """And a file that has a version's name is not replaced."""
    output = shutil.copytree(base / "sequential", tmp_path / "name")
    provenance = locate(output).provenance
    for name in STRANGE:
        shutil.copytree(output / "1", output / name)
    before = tree(output)
    assert export_saved_model(network, output, provenance) == output / "1" == locate(output).path
    (output / "2").write_text("a file")
    assert export_saved_model(network, output, provenance) == output / "3" == locate(output).path
    after = tree(output)
    assert {name: after[name] for name in before} == before and saved_versions(output) == [1, 3]


EXPORT = """
import sys
sys.path.insert(0, sys.argv[1])
from cascade_keras.export import export_run
export_run(*sys.argv[2:])
"""


@pytest.mark.long
def test_processes_export_the_same_bytes(finished, tmp_path):
    """Each lays the network out at other addresses, and names would be drawn at random."""
    started = [
        subprocess.Popen([sys.executable, "-c", EXPORT, ROOT, finished, tmp_path / output / "name"])
        for output in ("first", "second")
    ]
    assert [process.wait() for process in started] == [0, 0]
    assert len(tree(tmp_path / "first")) == 6
    assert tree(tmp_path / "first") == tree(tmp_path / "second")


SPOILS = {
    "weights": lambda version: flip(version / "variables/variables.data-00000-of-00001"),
    "index": lambda version: flip(version / "variables/variables.index"),
    "no weights": lambda version: shutil.rmtree(version / "variables"),
    "no graph": lambda version: (version / "saved_model.pb").unlink(),
    "no record": lambda version: (version / PROVENANCE_FILE).unlink(),
    "bad record": lambda version: (version / PROVENANCE_FILE).write_text("{"),
    "nothing": lambda version: [path.unlink() for path in version.rglob("*") if path.is_file()],
}


@pytest.mark.parametrize("spoil", SPOILS)
def test_a_damaged_version_is_neither_kept_nor_overwritten(spoil, network, base, tmp_path):
    version = shutil.copytree(base / "sequential" / "1", tmp_path / "sequential" / "6")
    provenance = locate(version).provenance
    SPOILS[spoil](version)
    before = tree(version)
    assert export_saved_model(network, tmp_path / "sequential", provenance).name == "7"
    assert tree(version) == before


def test_a_server_that_polls_never_meets_half_a_version(network, tmp_path, monkeypatch):
    """What a server would see whenever a file has come to the disk: no version, then all of it.

    What a killed export has left is gone by then.
    """
    folder, seen, flush = tmp_path / "polled", [], os.fsync
    (folder / ".partial-1" / "variables").mkdir(parents=True)
    (folder / ".partial-1" / "variables" / "half").write_text("half")
    (folder / ".partial-12-0123abcd-9").mkdir()

    def polled(file):
        flush(file)
        seen.append(os.listdir(folder))

    monkeypatch.setattr(os, "fsync", polled)
    version = export_saved_model(network, folder)
    written = sum(1 for _ in version.rglob("*"))
    assert seen[-1] == ["1"] and len(seen) == written + 2  # each file and folder, the rename
    (partial,) = {name for names in seen[:-1] for name in names}
    assert re.fullmatch(r"\.partial-\d+-[0-9a-f]{8}-1", partial)
    assert not (version / "variables" / "half").exists()


def fails(*arguments):
    raise OSError(28, "No space left on device", "somewhere")


@pytest.mark.parametrize(
    ("module", "name"),
    [(os, "fsync"), (json, "dumps"), (tf.io, "TFRecordWriter"), (pathlib.Path, "rename")],
)
def test_a_failure_leaves_nothing(module, name, network, base, tmp_path, monkeypatch):
    shutil.copytree(base / "sequential", tmp_path / "there")
    shutil.rmtree(tmp_path / "there" / "1" / "assets.extra")
    before = everything(tmp_path)
    monkeypatch.setattr(module, name, fails)
    for output in ("there", "deep/er/new"):
        with pytest.raises(OSError, match="No space left on device"):
            export_saved_model(network, tmp_path / output)
        assert everything(tmp_path) == before


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


def test_exports_at_once_do_not_clash(network, tmp_path, randomize, arrivals):
    """Three, two of them of one network; the folder that they wait for goes away."""
    output = tmp_path / "name"
    (output / ".partial-1").mkdir(parents=True)
    other = randomize(build_sequential(), seed=9)
    threads = [
        threading.Thread(target=export_saved_model, args=(exported, output))
        for exported in (network, other, network)
    ]
    with locked(output):
        for thread in threads:
            thread.start()
        assert all(arrivals.acquire(timeout=60) for _ in threads)
        threads[0].join(timeout=0.5)
        assert all(t.is_alive() for t in threads) and os.listdir(output) == [".partial-1"]
        shutil.rmtree(output)
    for thread in threads:
        thread.join()
    versions = saved_versions(output)
    digests = [hash_of(output / str(n)) for n in versions]
    assert len(os.listdir(output)) == len(versions)
    # Two; three where the other network came between the two exports of one.
    assert len(set(digests)) == 2 and all(a != b for a, b in itertools.pairwise(digests))


# Networks of other pixels and outputs.


def classifier(activation, width, scale=1.0, shape=(8, 8, 1)):
    keras.utils.set_random_seed(5)
    layers = [keras.layers.Flatten(), keras.layers.Dense(width, activation)]
    network = keras.Sequential([keras.Input(shape), *layers])
    network.layers[-1].kernel.assign(network.layers[-1].kernel / scale)
    return network


@pytest.mark.parametrize(
    ("activation", "width", "value_range"),
    [
        ("softmax", 10, (0, 1)),
        ("softmax", 10, (0, 255)),
        ("sigmoid", 1, (-1, 1)),
        (None, 10, (-1, 1)),
        (None, 1, (0, 255)),
    ],
)
def test_probabilities_are_the_networks_own(activation, width, value_range, tmp_path):
    """Softmax once: the network's own outputs at every signature, of its own pixels."""
    low, high = value_range
    network = classifier(activation, width, max(-low, high))
    names = {"class_names": [str(i) for i in range(10)]} if width == 10 else {}
    version = export_saved_model(network, tmp_path / "own", value_range=value_range, **names)
    stored = np.random.default_rng(0).integers(0, 256, (5, 8, 8, 1), dtype=np.uint8)
    images = stored / np.float32(255)
    own = network(images * np.float32(high - low) + np.float32(low)).numpy()
    if activation is None and width > 1:
        own = np.exp(own) / np.exp(own).sum(-1, keepdims=True)
    elif activation is None:
        own = 1 / (1 + np.exp(-own))
    expected = own if width > 1 else np.concatenate([1 - own, own], axis=1)
    signatures = loaded(version).signatures
    for name, given in (("serving_default", images), ("raw", stored)):
        outputs = signatures[name](images=tf.constant(given))
        np.testing.assert_allclose(outputs["probabilities"], expected, rtol=1e-5, atol=1e-6)
        np.testing.assert_allclose(tf.nn.softmax(outputs["logits"]), expected, rtol=1e-5, atol=1e-6)
    known = locate(version).provenance
    assert known["value_range"] == list(value_range) and known["num_classes"] == len(expected[0])
    assert known.get("class_names") == names.get("class_names")
    # It is the same source as the network that it was made of.
    source = load_source(network, (8, 8, 1), len(expected[0]), value_range=value_range)
    saved = load_source(version, (8, 8, 1), len(expected[0]))
    assert saved.weights_hash == source.weights_hash
    np.testing.assert_allclose(saved.logits(images), source.logits(images), rtol=1e-5, atol=1e-5)
    assert export_saved_model(network, tmp_path / "own", value_range=value_range) == version
    other = export_saved_model(network, tmp_path / "own", value_range=(-2, 2))
    assert other.name == "2" and locate(other).provenance["source_hash"] != source.weights_hash


def test_a_trainer_is_exported_by_what_it_was_told(tmp_path):
    network = classifier("softmax", 4, 255.0, (8, 6, 1))
    trainer = AdversarialTrainer(network, "standard", value_range=(0, 255))
    version = export_saved_model(trainer, tmp_path / "own", image_shape=(11, 9, 1))
    stored = np.random.default_rng(1).integers(0, 256, (3, 11, 9, 1), dtype=np.uint8)
    served = loaded(version).signatures["raw"](images=tf.constant(stored))["probabilities"]
    expected = network(stored[:, 1:9, 1:7].astype("float32"))
    np.testing.assert_allclose(served, expected, rtol=1e-4, atol=1e-6)
    for wrong in ((8, 6, 1), (12, 9, 1), (11, 10, 1)):
        with pytest.raises(tf.errors.InvalidArgumentError):
            loaded(version).signatures["raw"](images=tf.zeros((2, *wrong), tf.uint8))
    with pytest.raises(InputError, match=r"value_range: is \(-1.0, 1.0\) here"):
        export_saved_model(trainer, tmp_path / "own", value_range=(-1, 1))
    with pytest.raises(InputError, match="class_names: are 3, the network has 4 classes"):
        export_saved_model(trainer, tmp_path / "own", class_names=list("abc"))
    for said in (None, (0, 1), (0, 255)):
        assert load_source(version, value_range=said).value_range == (0, 255)
    with pytest.raises(InputError, match=r"saved with a network of value_range=\(0, 255\)"):
        load_source(version, value_range=(-1, 1))


# Bad networks.


def returning(function, shape=(8, 8, 1), **options):
    """A network that computes so."""
    inputs = keras.Input(shape, **options)
    return keras.Model(inputs, function(inputs))


def two_inputs():
    first, second = keras.Input((8, 8, 1)), keras.Input((8, 8, 1))
    return keras.Model([first, second], keras.layers.Flatten()(first + second))


def of_four(images):
    return keras.ops.reshape(images, (4, 64)) + np.ones((4, 64), "float32")


pool, flatten = keras.layers.GlobalAveragePooling2D(), keras.layers.Flatten()
NETWORKS = [
    (two_inputs, None, "one batch of images"),
    (lambda: returning(lambda x: {"a": flatten(x), "b": pool(x)}), None, "returns 'a', 'b'"),
    (lambda: returning(pool, (None, None, 1)), None, r"\(None, None, None, 1\)"),
    (lambda: returning(of_four, batch_size=4), None, "shape .batch, width."),
    (lambda: returning(keras.layers.ReLU()), None, "shape .batch, classes.*8, 8, 1"),
    (lambda: returning(lambda x: keras.ops.sigmoid(flatten(x))), None, "from_logits=False"),
    (lambda: returning(lambda x: keras.ops.softmax(flatten(x)) ** 1), None, "cannot be reached"),
    (build_sequential, (7, 8, 1), r"at least the \(8, 8, 1\)"),
    (build_sequential, (8, 8, 3), r"channels; got \(8, 8, 3\)"),
]


@pytest.mark.parametrize(("build", "image_shape", "message"), NETWORKS)
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
    another_dataset(tmp_path, "own")
    for given, message in ((None, "must be given"), (run, "register its row, or give image_shape")):
        with pytest.raises(InputError, match=f"^run: .*{message}"):
            export_run(given, tmp_path / "saved")
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


def put(name, content):
    return lambda folder: (folder / name).write_bytes(content)


def remove(name):
    return lambda folder: (folder / name).unlink()


def another_dataset(folder, name="svhn"):
    data = {"name": name, "fingerprint": "0" * 64}
    edit(folder / "run" / "config.json", flags={"dataset": name}, dataset=data)


def last_version(folder):
    (folder / "last" / str(2**63 - 1)).mkdir(parents=True)


def larger_images(folder):
    """A network that sees more than its dataset stores."""
    models.resnet(8, (24, 24, 1)).save(folder / "run" / "model.keras")


# Bad input: what makes it so, the flags beside --run, part of the message. Every row must give
# that one line, exit code 2, and leave every file as it was.
ROWS = {
    "no run": (None, ["--run="], "--run: must not be empty"),
    "not a flag": (None, ["saved/x"], "unexpected argument 'saved/x'"),
    "run missing": (None, ["--run=other"], "--run: other does not exist; name a"),
    "run is a file": (None, ["--run=run/model.keras"], "model.keras is not a run"),
    "not a run": (remove("run/config.json"), [], "--run: .*not a run"),
    "not finished": (remove("run/metrics.json"), [], "--run: .*not finished"),
    "no network": (remove("run/model.keras"), [], "--run: .*not finished"),
    "other network": (put("run/model.keras", b"no zip"), [], "--run: .*model.keras cannot"),
    "cut": (lambda d: os.truncate(d / "run/model.keras", 5000), [], "--run: .*model.keras cannot"),
    "broken config": (put("run/config.json", b"{"), [], "config.json: input data was truncated"),
    "broken metrics": (put("run/metrics.json", b"{"), [], "metrics.json: input data was truncated"),
    "metrics of others": (put("run/metrics.json", b"{}"), [], "missing required field `steps`"),
    "config of others": (put("run/config.json", b"[1]"), [], "expected `object`, got `array`"),
    "unknown dataset": (another_dataset, [], "--run: .*'svhn'.*register"),
    "larger images": (larger_images, [], "--run: image_shape must be .*24"),
    "output is a file": (None, ["--output=run/config.json"], "--output: .* is a file; name a"),
    "below a file": (None, ["--output=run/config.json/y"], "config.json is not a directory; name"),
    "a version": (None, ["--output=saved/1"], "--output: saved/1 is itself a saved network; name"),
    "a number": (None, ["--output=saved/2"], "--output: saved/2: a number"),
    "output is a run": (None, ["--output=run"], "--output: run is a run .config.json.; name a"),
    "a bank": (put("saved/bank.json", b"{}"), ["--output=saved"], "saved is a bank"),
    "a report": (put("saved/report.json", b"{}"), ["--output=saved"], "saved is a report"),
    "in a version": (None, ["--output=saved/1/variables/x"], "saved/1 is itself a saved network"),
    "here": (None, ["--output=."], "--output: .* has no name"),
    "above": (None, ["--output=saved/.."], "--output: .* has no name"),
    "the root": (None, ["--output=/"], "--output: / has no name"),
    "last version": (last_version, ["--output=last"], "last/9223372036854775807 is the last"),
    "output not writable": (None, ["--output=/proc/saved"], "cannot write in /proc; name"),
}


@pytest.mark.parametrize(("make", "flags", "message"), ROWS.values(), ids=ROWS)
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
    assert main(["export", "--run=run", *flags]) == 2
    told = capfd.readouterr()
    (line,) = told.err.splitlines()
    assert line.startswith("export: ") and re.search(message, line) and not told.out
    assert everything(tmp_path) == before
