"""Trained networks as SavedModels, in the layout that TensorFlow Serving reads.

    saved/NAME/1/    saved_model.pb, variables/
                     assets.extra/tf_serving_warmup_requests   run by a server before it answers
                     assets.extra/cascade_keras.json           what the network is: its provenance
               2/    a later network of the same name; a server switches to it by itself

A version needs TensorFlow alone, without this package. All its signatures run in inference mode:

    serving_default  images float32 (batch, H, W, C) in [0, 1] -> logits, embedding, probabilities
    raw              images uint8 (batch, height, width, C) as stored; the centre is cut out inside
    serve            differentiable, also as the loaded object's method: images -> logits, embedding

Whatever pixel range and outputs a network has itself, such as a softmax, is inside them.
A version appears in its folder whole or not at all, however the export ends.
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import json
import os
import pathlib
import shutil
import typing
from collections.abc import Callable, Iterator, Sequence

from cascade_keras import presets
from cascade_keras.data.specs import DATASETS, sides_of
from cascade_keras.errors import InputError, about, shown
from cascade_keras.files import (
    Lock,
    check_writable,
    clean,
    expand,
    folder_name,
    partial_sibling,
    publish,
    write_error,
)
from cascade_keras.provenance import (
    PROVENANCE_FILE,
    learned_from,
    locate,
    saved_versions,
    version_of,
    weights_hash,
)
from cascade_keras.recorded import read_config, read_metrics
from cascade_keras.settings import Settings, said_of_logits, setting
from cascade_keras.startup import import_tensorflow

if typing.TYPE_CHECKING:
    import keras
    import tensorflow as tf

    from cascade_keras.border import Adapted

    Function = Callable[[tf.Tensor], dict[str, tf.Tensor]]

SIGNATURES = ("serving_default", "raw", "serve")
WARMUP_FILE = PROVENANCE_FILE.with_name("tf_serving_warmup_requests")
WARMUP_BATCHES = (1, 32)
_PIXEL_VALUES = 256
# What other folders of ours are known by.
_OTHERS = {
    "report.json": "a report",
    "predictions": "a report",
    "config.json": "a run",
    "bank.json": "a bank",
    "images.json": "one of kept images",
}
# Versions that agree in these are the same network: exporting it again adds nothing.
_IDENTITY = (
    "weights_hash",
    "source_hash",
    "recipe",
    "dataset",
    "input_shape",
    "image_shape",
    "num_classes",
    "embedding_size",
)


# What a preset records as a run does.
_OF_RUNS = ("recipe", "dataset", "steps", "seed", "versions", "results", "chosen", "learned_from")


def provenance_of_run(config: dict, metrics: dict) -> dict:
    """Return what is worth knowing of a network that a run has trained.

    Args:
        config: content of the run's config.json.
        metrics: content of its metrics.json: its steps, its final accuracies, and which network
            of the training it is where that is not the last.
    """
    return {
        "recipe": config["flags"],
        "dataset": config["dataset"],
        "steps": metrics["steps"],
        "seed": config["seed"],
        "versions": config["versions"],
        "results": metrics["results"],
        **({"chosen": metrics["chosen"]} if metrics.get("chosen") else {}),
        **learned_from(config),
    }


@dataclasses.dataclass(frozen=True)
class ExportSettings(Settings):
    """Which network is saved, and where: the flags of ``bin/export``."""

    run: str | None = setting(None, "A finished run's folder, runs/NAME, or zoo:NAME.", path=True)
    output: str | None = setting(
        None,
        "Folder of the network's versions; its name is the one to be served by; default: "
        "saved/NAME.",
        path=True,
    )
    import_: tuple[str, ...] = setting(
        (), "Modules to import first, which register the network's layers.", operational=True
    )


class Exported(typing.NamedTuple):
    """What an export has left: the version's folder, and whether it was not there before."""

    version: pathlib.Path
    written: bool


def export_run(
    run: str | os.PathLike | None,
    output: str | os.PathLike | None = None,
    *,
    image_shape: Sequence[int] | None = None,
) -> Exported:
    """Save a finished run's network as the next version of a saved network.

    TensorFlow is imported once run and folder are known to be good.

    Args:
        run: its folder, runs/NAME, or zoo:NAME.
        output: the folder of the versions; saved/NAME where None.
        image_shape: of stored images, see ``export_saved_model``; that of the row of the dataset
            that the run learned where None.

    Raises:
        InputError: naming the setting: no finished run, damaged files, or a folder that cannot be
            used (``check_output``).
        OSError: as ``export_saved_model``.

    Example::

        export_run("runs/digits-pivot", "saved/digits").version  # saved/digits/1
    """
    if run is None:
        raise InputError("must be given, a finished run's folder such as runs/NAME", "run")
    called = presets.plain(expand(run).resolve().name)
    base = expand(output or pathlib.Path("saved", folder_name(called, "output")))
    with about("run"):
        file, provenance = finished(run)
        if image_shape is None:
            name = provenance["recipe"].get("dataset")
            image_shape = provenance["dataset"].get("image_shape")
        if image_shape is None:
            if name not in DATASETS:
                raise InputError(
                    f"{run} learned {name!r}, which is no dataset here; register its row, or give "
                    "image_shape"
                )
            image_shape = DATASETS[name].image_shape
    with about("output"):
        check_output(base)
    before = saved_versions(base)
    import_tensorflow()
    from cascade_keras.model_files import load_network

    with about("run"):
        network = load_network(file)
        crop = provenance["recipe"].get("crop")
        version = export_saved_model(
            network,
            base,
            provenance,
            image_shape=image_shape,
            # A network by subclassing does not say what it takes.
            input_shape=None if crop is None else (*sides_of(crop), image_shape[-1]),
        )
    return Exported(version, int(version.name) not in before)


def finished(run: str | os.PathLike) -> tuple[pathlib.Path, dict]:
    """Return the file of the network of a finished run, or of a preset, and its provenance.

    Raises:
        InputError: it is none, or its files cannot be read.
    """
    found = expand(run)
    if (presets.is_named(run) and not os.path.lexists(found)) or presets.folder_at(found):
        location = locate(run)
        known = location.provenance
        return location.path, {key: known[key] for key in _OF_RUNS if key in known}
    return found / "model.keras", _read_run(found)


def _read_run(run: pathlib.Path) -> dict:
    if not (run / "config.json").exists():
        problem = "is not a run (no config.json)" if run.exists() else "does not exist"
        raise InputError(f"{run} {problem}; name a finished run's folder")
    config, metrics = read_config(run), read_metrics(run)
    if not (run / "model.keras").is_file():
        raise InputError(f"{run} is not finished; start its bin/train command again, it goes on")
    return provenance_of_run(config.as_json(), metrics.as_json())


def check_output(output: str | os.PathLike) -> None:
    """Refuse a folder that cannot hold a network's versions; needs no TensorFlow.

    Raises:
        InputError: it has no name of its own, is a file, a version, or another thing's folder, or
            cannot be written in.
    """
    base = expand(output)
    if base.name in ("", ".."):
        raise InputError(f"{base} has no name to be served by; name a folder such as saved/NAME")
    if os.path.lexists(base) and not base.is_dir():
        raise InputError(f"{base} is a file; name a folder, the versions are made inside it")
    for folder in (base, *base.absolute().parents):
        if (folder / "saved_model.pb").exists():
            raise InputError(f"{folder} is itself a saved network; name the folder that holds it")
    if version_of(base.resolve().name) is not None:
        raise InputError(f"{base}: a number names one version; name the folder that holds them")
    for file, kind in _OTHERS.items():
        if (base / file).exists():
            raise InputError(
                f"{base} is {kind} ({file}); name a folder of its own, such as saved/{base.name}"
            )
    check_writable(base)


def export_saved_model(
    network: keras.Model,
    output: str | os.PathLike,
    provenance: dict | None = None,
    *,
    image_shape: Sequence[int] | None = None,
    value_range: Sequence[float] | None = None,
    from_logits: bool | str = "auto",
    logits: str | None = None,
    embedding: str | None = None,
    class_names: Sequence[str] | None = None,
    input_shape: Sequence[int] | None = None,
) -> pathlib.Path:
    """Save a network as the next version in a folder of the TF Serving layout.

    Nothing is written if the newest version is this network already. Whatever pixels and outputs
    the network itself has, the signatures are those above: what is between is inside.

    Args:
        network: any classifier that ``border.adapt`` takes; of an ``AdversarialTrainer``, its
            network is meant, with what the trainer was told of it.
        output: the folder, which need not exist; its name is the one the network is served by.
        provenance: what else to record, such as ``provenance_of_run``; JSON values.
        image_shape: (height, width, C) of stored images, at least as large as what the network
            sees; its own input's shape when None.
        value_range: the lowest and the highest value of a pixel, as the network takes it; when None
            what the provenance's recipe says, else (0, 1).
        from_logits, logits, embedding: what its outputs are, see ``border.adapt``.
        class_names: in order, to be recorded; those of the provenance's dataset when None.
        input_shape: (H, W, C) that the network sees, where it does not say it itself.

    Returns:
        The version's folder, ``output/1`` for the first.

    Raises:
        InputError: a folder that cannot be used (``check_output``), or a network that takes or
            returns something else.
        OSError: the disk is full or the like; nothing is left behind.
    """
    base = expand(output)
    check_output(base)
    from cascade_keras.border import adapt
    from cascade_keras.sources import source_hash

    provenance = provenance or {}
    recorded = provenance.get("recipe", {})
    value_range = recorded.get("value_range") if value_range is None else value_range
    input_shape = _input_shape(network, input_shape)
    adapted = adapt(
        network,
        value_range=value_range,
        from_logits=said_of_logits(recorded.get("from_logits"))
        if from_logits == "auto"
        else from_logits,
        logits=recorded.get("logits") if logits is None else logits,
        embedding=recorded.get("embedding") if embedding is None else embedding,
        image_shape=input_shape,
    )
    network = adapted.network
    image_shape = _image_shape(image_shape, input_shape)
    archive, widths = _trace(adapted, input_shape, image_shape)
    weights = weights_hash(weight.numpy() for weight in network.weights)
    known_by = source_hash(weights, adapted)
    record = {
        **provenance,
        "name": base.resolve().name,
        "weights_hash": weights,
        **({} if known_by == weights else {"source_hash": known_by}),
        "value_range": adapted.value_range,
        **_class_names(class_names, provenance, widths["logits"]),
        "input_shape": input_shape,
        "image_shape": image_shape,
        "num_classes": widths["logits"],
        "embedding_size": widths["embedding"],
    }
    with _exclusive(base):
        numbers = [version_of(entry.name) or 0 for entry in base.iterdir()]
        newest = base / str(max(numbers, default=0))
        if _holds(newest, record):
            return newest
        version = base / str(int(newest.name) + 1)
        if version_of(version.name) is None:
            raise InputError(f"{newest} is the last version that there can be; name another folder")
        with _published(version) as partial:
            archive.write_out(str(partial), verbose=False)
            _settle_fingerprint(partial / "fingerprint.pb")
            (partial / PROVENANCE_FILE).parent.mkdir()
            text = json.dumps(record, indent=2, allow_nan=False) + "\n"
            (partial / PROVENANCE_FILE).write_text(text, encoding="utf-8")
            _write_warmup(partial / WARMUP_FILE, record)
    return version


def _input_shape(network: keras.Model, given: Sequence[int] | None) -> tuple[int, ...]:
    """Return the (H, W, C) that a network sees: its own, else what was given."""
    border = getattr(network, "border", None)
    network = getattr(network, "network", network)
    try:
        shape = network.input_shape
    except (AttributeError, ValueError):  # by subclassing, which need not say it
        shape = getattr(border, "input_shape", None)
        shape = (None, *(shape or (None, None, None)))
    several = not isinstance(shape, tuple) or len(shape) != 4
    if not several and given is not None:
        from cascade_keras.border import takes

        given = tuple(given)
        if not takes(shape[1:], given):
            raise InputError(f"is {given}, the network takes {shape[1:]}", "input_shape")
        shape = (None, *given)
    if several or None in shape[1:]:
        raise InputError(
            "the network must take one batch of images (batch, height, width, channels) of known "
            f"size, it takes {shape}; build it from keras.Input((height, width, channels)), or "
            "give input_shape"
        )
    return shape[1:]


def _class_names(given: Sequence[str] | None, provenance: dict, num_classes: int) -> dict:
    """Return the record of the classes' names, empty where they have none."""
    dataset = provenance.get("dataset")
    if given is None:
        given = dataset.get("class_names") if isinstance(dataset, dict) else None
        given = given or provenance.get("class_names")
    if not given:
        return {}
    if len(given) != num_classes:
        raise InputError(f"are {len(given)}, the network has {num_classes} classes", "class_names")
    if len(set(map(str, given))) != num_classes:
        raise InputError(f"must be different names, got {shown(list(given))}", "class_names")
    return {"class_names": list(map(str, given))}


def _image_shape(image_shape: Sequence[int] | None, input_shape: tuple[int, ...]) -> tuple:
    if image_shape is None:
        return input_shape
    image_shape = tuple(image_shape)
    larger = len(image_shape) == 3 and all(
        stored >= seen for stored, seen in zip(image_shape, input_shape, strict=True)
    )
    if not larger or image_shape[-1] != input_shape[-1]:
        raise InputError(
            f"image_shape must be at least the {input_shape} that the network sees, with as many "
            f"channels; got {image_shape}"
        )
    return image_shape


def _trace(
    adapted: Adapted, input_shape: tuple[int, ...], image_shape: tuple[int, ...]
) -> tuple[keras.export.ExportArchive, dict[str, int]]:
    """Return the signatures, ready to be written, and the width of each output."""
    # Here and below, not above: bin/export checks its flags before it waits for TensorFlow.
    import keras
    import tensorflow as tf

    from cascade_keras.keras_private import list_in_order

    floats = [tf.TensorSpec((None, *input_shape), tf.float32, name="images")]
    stored = [tf.TensorSpec((None, *image_shape), tf.uint8, name="images")]
    network: keras.Model = adapted.network  # only such have weights to be saved
    archive = keras.export.ExportArchive()
    # Not archive.track(): it would save the state of dropout layers too, and the weights twice,
    # because TensorFlow does not see a Keras variable and its value as one.
    archive.add_variable_collection("variables", [w.value for w in network.weights])
    list_in_order(archive, "variables")
    # Each signature calls the one before, so the network is traced and saved once.
    serve = archive.add_endpoint("serve", _inference(adapted, input_shape), floats)
    served = archive.add_endpoint("serving_default", _with_probabilities(serve), floats)
    archive.add_endpoint("raw", _from_stored(served, input_shape, image_shape), stored)
    return archive, _output_widths(serve.get_concrete_function())


def _inference(adapted: Adapted, input_shape: tuple[int, ...]) -> Function:
    import tensorflow as tf

    def serve(images: tf.Tensor) -> dict[str, tf.Tensor]:
        # A signature's own shape is not enforced: images of another size would be cut or stretched.
        images = tf.ensure_shape(images, (None, *input_shape))
        outputs = adapted(images)
        return {"logits": outputs.logits, "embedding": outputs.embedding}

    return serve


def _with_probabilities(serve: Function) -> Function:
    import tensorflow as tf

    def serving_default(images: tf.Tensor) -> dict[str, tf.Tensor]:
        outputs = serve(images)
        return {**outputs, "probabilities": tf.nn.softmax(outputs["logits"])}

    return serving_default


def _from_stored(
    serving_default: Function, input_shape: tuple[int, ...], image_shape: tuple[int, ...]
) -> Function:
    import numpy as np
    import tensorflow as tf

    (height, width, _), (stored_height, stored_width, _) = input_shape, image_shape
    top, left = (stored_height - height) // 2, (stored_width - width) // 2
    # A table, because graph optimisers turn a division by 255 into a product with 1/255, which
    # gives half of the pixel values another float32 than the division that evaluation uses.
    unit_range = np.arange(_PIXEL_VALUES, dtype=np.float32) / np.float32(_PIXEL_VALUES - 1)

    def raw(images: tf.Tensor) -> dict[str, tf.Tensor]:
        images = tf.ensure_shape(images, (None, *image_shape))
        seen = images[:, top : top + height, left : left + width]
        return serving_default(tf.gather(tf.constant(unit_range), tf.cast(seen, tf.int32)))

    return raw


def _output_widths(serve: tf.types.experimental.ConcreteFunction) -> dict[str, int]:
    """Return the width of each output; refuse what a server could not batch."""
    widths = {}
    for name, output in serve.structured_outputs.items():
        shape = output.shape.as_list() if output.shape.rank == 2 else [output.shape]
        if len(shape) != 2 or shape[0] is not None or shape[1] is None:
            raise InputError(
                f"the network's {name} must have the shape (batch, width), for batches of any "
                f"size; it has {output.shape}"
            )
        widths[name] = shape[1]
    return widths


def _settle_fingerprint(file: pathlib.Path) -> None:
    """Make a number of a fingerprint's hashes that TensorFlow draws at random.

    So the same network has the same files, whichever process exports it.
    """
    from tensorflow.core.protobuf import fingerprint_pb2

    fingerprint = fingerprint_pb2.FingerprintDef.FromString(file.read_bytes())
    fingerprint.ClearField("uuid")
    hashes = fingerprint.SerializeToString(deterministic=True)
    fingerprint.uuid = str(int.from_bytes(hashlib.sha256(hashes).digest()[:16]))
    file.write_bytes(fingerprint.SerializeToString(deterministic=True))


def _write_warmup(file: pathlib.Path, record: dict) -> None:
    """Write requests that a server runs when it loads a version, so that no user waits for that."""
    import numpy as np
    import tensorflow as tf
    from tensorflow_serving.apis import prediction_log_pb2

    rng = np.random.default_rng(0)
    with tf.io.TFRecordWriter(str(file)) as writer:
        for signature in SIGNATURES:
            shape = record["image_shape"] if signature == "raw" else record["input_shape"]
            for batch in WARMUP_BATCHES:
                images: np.ndarray
                images = rng.integers(0, _PIXEL_VALUES, (batch, *shape), dtype=np.uint8)
                if signature != "raw":
                    images = images.astype(np.float32) / np.float32(_PIXEL_VALUES - 1)
                log = prediction_log_pb2.PredictionLog()
                request = log.predict_log.request
                request.model_spec.name = record["name"]
                request.model_spec.signature_name = signature
                request.inputs["images"].CopyFrom(tf.make_tensor_proto(images))
                writer.write(log.SerializeToString())


def _holds(version: pathlib.Path, record: dict) -> bool:
    """Whether a version is the network that the record describes, and its weights are intact."""
    import tensorflow as tf

    record = json.loads(json.dumps(record))  # tuples are lists in a file
    try:
        existing = locate(version).provenance
        if any(existing.get(key) != record.get(key) for key in _IDENTITY):
            return False
        saved = tf.train.load_checkpoint(str(version / "variables" / "variables"))
        keys = (key for key in saved.get_variable_to_shape_map() if key.startswith("variables/"))
        return weights_hash(map(saved.get_tensor, keys)) == record["weights_hash"]
    except (InputError, ValueError, tf.errors.OpError):
        return False


@contextlib.contextmanager
def _exclusive(base: pathlib.Path) -> Iterator[None]:
    """Keep other exports out of the folder; make it, and unmake it where the export fails."""
    made, lock = _lock(base)
    try:
        clean(base)
        yield
    except BaseException:
        with contextlib.suppress(OSError):  # another export may have put something there
            for folder in made:
                folder.rmdir()
        raise
    finally:
        lock.close()


def _lock(base: pathlib.Path) -> tuple[list[pathlib.Path], Lock]:
    """Wait for the folder's lock; return the folders made for it, and what holds the lock."""
    while True:
        made = [folder for folder in (base, *base.parents) if not folder.exists()]
        try:
            base.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            where = (made or [base])[-1].parent
            raise InputError(f"cannot write in {where}; name a writable directory") from error
        try:
            lock = Lock(base, wait=True)
        except FileNotFoundError:
            continue  # an export that failed took away the folder that it had made
        if lock.still_there:
            return made, lock
        lock.close()


@contextlib.contextmanager
def _published(version: pathlib.Path) -> Iterator[pathlib.Path]:
    """Give a folder to write in, which becomes the version when all of it is on the disk."""
    import tensorflow as tf

    partial = partial_sibling(version)
    try:
        yield partial
        publish(partial, version)
    except BaseException as error:
        shutil.rmtree(partial, ignore_errors=True)
        if isinstance(error, OSError):
            raise OSError(error.errno, error.strerror or str(error), str(version)) from error
        if isinstance(error, tf.errors.OpError):  # what TensorFlow makes of a full disk
            raise write_error(error.message, version) from error
        raise
