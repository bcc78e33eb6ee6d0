"""Small runs of every program, each of seconds: what is killed, starved and raced."""

from __future__ import annotations

import io
import json
import pathlib
import re
import zipfile
from collections.abc import Iterator

import numpy as np
import PIL.Image

from support.archives import write_archives

TRAIN = (
    "train", "--dataset=digits", "--model=lenet", "--steps=4", "--checkpoint_steps=2",
    "--log_steps=2", "--batch_size=16", "--eval_attacks=step_ll", "--max_epsilon=4",
    "--deterministic",
)  # fmt: skip
# A user's own images, which are decoded for want of memory, and a network that draws.
_OWN = (
    "train", "--dataset=photos", "--import=own", "--model=own:make", "--value_range=0,255",
    *(flag for flag in TRAIN[1:] if not flag.startswith(("--dataset", "--model"))),
    "--loss=pivot", "--adversarial_batch_size=8", "--noexport", "--name=run",
)  # fmt: skip
OWN_MODULE = """
import keras
from cascade_keras.data import decoded, folders

decoded.MOST_IN_MEMORY, folders.CHUNK = 1000, 20


def make(input_shape, num_classes):
    layers = [keras.layers.Rescaling(1 / 255), keras.layers.Flatten(), keras.layers.Dropout(0.5)]
    return keras.Sequential([keras.Input(input_shape), *layers, keras.layers.Dense(num_classes)])
"""
_CASCADE = (
    *TRAIN, "--loss=pivot", "--adversarial_batch_size=8", "--cascade_source=saved/std",
    "--tensorboard=none", "--noexport",
)  # fmt: skip

_CRAFT = (
    "craft", "--source=saved/std", "--epsilons=1..2", "--examples=70", "--batch_size=32",
    "--output=banks/std",
)  # fmt: skip
_EVALUATE = (
    "evaluate", "--target=saved/std", "--attack=step_ll", "--epsilon=4", "--num_images=20",
    "--batch_size=10", "--diagnosis_images=0", "--confusion", "--examples=1",
    "--images_dir=images", "--output=reports/run",
)  # fmt: skip

PROGRAMS = {
    "train": (*TRAIN, "--loss=pivot", "--adversarial_batch_size=8", "--tensorboard=all",
              "--tensorboard_images=8", "--tensorboard_steps=2", "--name=run"),
    "own": (*_OWN, "--tensorboard=none"),
    "cascade by bank": (*_CASCADE, "--cascade_mode=bank", "--bank_examples=300", "--name=run"),
    "cascade online": (*_CASCADE, "--cascade_mode=online", "--name=run"),
    "craft": _CRAFT,
    "craft by a worker": (*_CRAFT, "--worker=0/1"),
    "evaluate": _EVALUATE,
    "evaluate by a worker": (*_EVALUATE, "--worker=0/1"),
    "evaluate cw_linf": ("evaluate", "--target=saved/std", "--attack=step_ll,cw_linf",
                         "--epsilon=4", "--num_images=20", "--batch_size=20",
                         "--diagnosis_images=5", "--cw_images=1", "--cw_iterations=2",
                         "--output=reports/run"),
    "analyze": ("analyze", "--figure=noise_correlation", "--model=saved/std,runs/piv",
                "--num_images=6", "--output=figures"),
    "export": ("export", "--run=runs/piv", "--output=saved/piv"),
    "prepare_data": ("prepare_data", "--dataset=mnist", "--archive_dir=archives",
                     "--data_dir=data"),
}  # fmt: skip


def make_place(launcher, place: pathlib.Path) -> pathlib.Path:
    """Put into a directory what the programs need.

    These are two runs, a saved network, archives, a folder of images and a module.
    """
    place.mkdir(parents=True)
    write_photos(place / "photos")
    (place / "own.py").write_text(OWN_MODULE)
    shared = (*TRAIN, "--tensorboard=none")
    for flags in (
        (*shared, "--loss=standard", "--name=std"),
        (*shared, "--loss=pivot", "--adversarial_batch_size=8", "--name=piv", "--noexport"),
    ):
        ran = launcher.run(flags, place)
        assert ran.status == 0, ran.output + ran.errors
    write_archives("mnist", place / "archives")
    return place


def write_photos(place: pathlib.Path) -> None:
    """Write 30 PNG files of 6x5 pixels to train on, and 12 to test on, of 3 classes."""
    pixels = np.random.default_rng(0).integers(0, 256, (42, 6, 5), np.uint8)
    for number, image in enumerate(pixels):
        folder = place / ("train" if number < 30 else "test") / "abc"[number % 3]
        folder.mkdir(parents=True, exist_ok=True)
        PIL.Image.fromarray(image).save(folder / f"{number:02}.png")


def canonical(place: pathlib.Path) -> dict[str, object]:
    """Return what must be equal after a kill and a restart: every file by what it holds.

    All bytes count, and every folder, but for what says when, how long or by which process
    something was done:

    - lock files, and TensorBoard's event files, which say when;
    - in JSON, where on this machine a user's own images and modules lie;
    - how many seconds it took: ``seconds.json``;
    - of a .keras file, whose members are compared one by one, the date in ``metadata.json`` and
      the ``shared_object_id`` of ``config.json``, an address in memory;
    - the order of an example's features in a prepared dataset, which follows from the process's
      hash seed.
    """
    found = {}
    for path in sorted(pathlib.Path(place).rglob("*")):
        name = str(path.relative_to(place))
        if path.is_dir():
            found[f"{name}/"] = None
        elif path.name in (".lock", "seconds.json"):
            found[name] = None
        elif "tfevents" in path.name or "/plugins/" in name:
            continue
        elif path.suffix == ".keras":
            found[name] = _members(path)
        elif ".tfrecord-" in path.name:
            found[name] = list(_examples(path.read_bytes()))
        else:
            found[name] = without_places(path)
    return found


def without_places(path: pathlib.Path) -> bytes:
    """Return what a file holds, absolute paths in JSON aside."""
    content = path.read_bytes()
    return re.sub(rb'"/[^"]*"', b'"/"', content) if path.suffix == ".json" else content


def _members(path: pathlib.Path) -> dict[str, object]:
    try:
        with zipfile.ZipFile(io.BytesIO(path.read_bytes())) as archive:
            members = {name: archive.read(name) for name in archive.namelist()}
    except zipfile.BadZipFile:
        return {"half of it": path.read_bytes()}
    metadata = json.loads(members["metadata.json"])
    metadata.pop("date_saved", None)
    config = re.sub(rb'"shared_object_id": \d+', b"", members["config.json"])
    return members | {"metadata.json": metadata, "config.json": config}


def _examples(content: bytes) -> Iterator[dict[str, bytes]]:
    """Yield the features of each example: a record is its length, a checksum, data, another one."""
    from tensorflow.core.example import example_pb2

    start = 0
    while start < len(content):
        data = start + 12
        start = data + int.from_bytes(content[start : start + 8], "little") + 4
        example = example_pb2.Example.FromString(content[data : start - 4])
        yield {k: v.SerializeToString() for k, v in example.features.feature.items()}


def differences(one: dict, other: dict) -> list[str]:
    """Return the names of what differs between two canonical trees.

    Of a SavedModel's graph the numbers in the names of functions and variables are not compared:
    they count what the process has traced, which is more where a training went on. Its fingerprint
    follows from it.
    """
    names = [name for name in sorted(one.keys() | other.keys())
             if name not in one or name not in other or one[name] != other[name]]  # fmt: skip
    graphs = [name for name in names if name.endswith("/saved_model.pb")]
    for name in graphs:
        if name in one and name in other and _graph(one[name]) == _graph(other[name]):
            alike = (name, name.replace("saved_model.pb", "fingerprint.pb"))
            names = [name for name in names if name not in alike]
    return names


def _graph(content: bytes) -> list[str]:
    """Return the lines of a SavedModel's graph, in order of the alphabet, without those numbers."""
    from google.protobuf import text_format
    from tensorflow.core.protobuf import saved_model_pb2

    text = text_format.MessageToString(saved_model_pb2.SavedModel.FromString(content))
    return sorted(
        re.sub(r"(?<=__inference_)(\w*?)_\d+\b|(?<=\")\d+(?=\")", r"\1", text).splitlines()
    )
