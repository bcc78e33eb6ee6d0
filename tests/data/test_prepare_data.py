"""Archives with a few random images instead of the official ones: formats, checks, clean-up."""

import functools
import gzip
import hashlib
import inspect
import os
import re
import subprocess
import sys
import tarfile

import numpy as np
import pytest
import tensorflow as tf
import tensorflow_datasets as tfds
from support.archives import (
    CIFAR10,
    CIFAR100,
    COUNTS,
    DATASETS,
    FINE_NAMES,
    TRAIN_IMAGES,
    TRAIN_LABELS,
    idx,
    random_split,
    write_archives,
    write_tar,
)
from support.files import tree

from cascade_keras import files
from cascade_keras.cli import prepare_data
from cascade_keras.data import archives
from cascade_keras.errors import InputError


@pytest.fixture
def run(tmp_path, monkeypatch):
    """Return a function that runs the program on the tiny archives of tmp_path/archives."""
    prepare = functools.partial(archives.prepare, counts=dict(COUNTS))
    monkeypatch.setattr(archives, "prepare", prepare)

    def run(dataset, data_dir="data"):
        flags = [f"--archive_dir={tmp_path}/archives", f"--data_dir={tmp_path / data_dir}"]
        return prepare_data.main(["prepare_data", f"--dataset={dataset}", *flags])

    return run


def read_back(dataset, data_dir):
    """Return what tfds.load gives, arrays by "split/feature", in TFDS's order."""
    loaded, info = tfds.load(dataset, data_dir=data_dir, download=False, with_info=True)
    found = {}
    for split, examples in loaded.items():
        examples = list(examples.as_numpy_iterator())
        assert info.splits[split].num_examples == len(examples)
        found |= {f"{split}/{name}": [e[name] for e in examples] for name in examples[0]}
    return found


def read_back_elsewhere(dataset, data_dir, output):
    """As read_back, in a process that knows nothing of the package."""
    script = [
        "import sys, numpy as np, tensorflow_datasets as tfds",
        inspect.getsource(read_back),
        "np.savez(sys.argv[3], **read_back(*sys.argv[1:3]))",
        "assert 'cascade_keras' not in sys.modules",
    ]
    command = [sys.executable, "-c", "\n".join(script), dataset, str(data_dir), str(output)]
    subprocess.run(command, check=True)
    return dict(np.load(output))


def assert_warnings(lines, dataset, directory):
    """Every archive that is not the official one is told, with both checksums."""
    warnings = sorted(line for line in lines if line.startswith("prepare_data: warning: "))
    official = {info.filename: info for info in tfds.builder_cls(dataset).url_infos.values()}
    for warning, (name, info) in zip(warnings, sorted(official.items()), strict=True):
        assert f"{directory / name} " in warning and info.checksum in warning
        assert hashlib.sha256((directory / name).read_bytes()).hexdigest() in warning


@pytest.mark.parametrize("dataset", DATASETS)
def test_round_trip(dataset, run, tmp_path, capsys):
    write_archives(dataset, tmp_path / "archives")
    assert run(dataset) == 0
    told = capsys.readouterr()
    data_dir = tmp_path / "data"
    version = str(tfds.builder_cls(dataset).VERSION)
    for word in (str(data_dir / dataset / version), "35 images", "9 images"):
        assert word in told.out
    assert_warnings(told.err.splitlines(), dataset, tmp_path / "archives")
    # Nothing else was written, not the member with a path that points outside either.
    assert {path.name for path in tmp_path.iterdir()} == {"archives", "data"}
    assert list(data_dir.glob("*/*")) == [data_dir / dataset / version]

    if dataset == "cifar10":
        found = read_back_elsewhere(dataset, data_dir, tmp_path / "found.npz")
    else:
        found = read_back(dataset, data_dir)
    for split, count in COUNTS.items():
        images, labels = random_split(dataset, split)
        order = [image.tobytes() for image in images]
        numbers = [order.index(np.asarray(image).tobytes()) for image in found[f"{split}/image"]]
        assert sorted(numbers) == list(range(count))
        for name, column in labels.items():
            np.testing.assert_array_equal(found[f"{split}/{name}"], column[numbers])
        features = {"image", *labels} | ({"id"} if dataset != "mnist" else set())
        assert {name.split("/")[1] for name in found if name.startswith(split)} == features
        if "id" in features:
            ids = [f"{split}_{number:05d}".encode() for number in numbers]
            np.testing.assert_array_equal(found[f"{split}/id"], ids)

    # Pinned to a version, TFDS reads the features and their names from the files alone.
    info = tfds.builder(f"{dataset}:{version}", data_dir=data_dir).info
    assert info.supervised_keys == ("image", "label")
    assert info.features["label"].int2str(3) == ("3" if dataset == "mnist" else "class 3")

    # Once prepared it is left alone, without a look at the archives.
    next((tmp_path / "archives").iterdir()).unlink()
    before = tree(tmp_path)
    assert run(dataset) == 0
    assert "already prepared" in capsys.readouterr().out
    assert tree(tmp_path) == before


# Ways to damage an archive: functions of the directory that it is in.


def replaced(name, change):
    """Change the bytes of a file; None removes it."""

    def damage(directory):
        content = change((directory / name).read_bytes())
        (directory / name).unlink()
        if content is not None:
            (directory / name).write_bytes(content)

    return damage


def unpacked(name, change):
    """Change what a .gz holds."""
    return replaced(name, lambda content: gzip.compress(change(gzip.decompress(content))))


def member(archive, name, change):
    """Change the bytes of a member of a .tar.gz; None removes it."""

    def damage(directory):
        with tarfile.open(directory / archive) as tar:
            members = {info.name: tar.extractfile(info).read() for info in tar}
        [key] = [key for key in members if key.endswith(name)]
        members[key] = change(members[key])
        kept = {key: content for key, content in members.items() if content is not None}
        write_tar(directory / archive, kept)

    return damage


def tar_of(*members):
    """A .tar.gz of members as they are given, and none of what they say that they hold."""

    def damage(directory):
        with tarfile.open(directory / CIFAR10, "w:gz", format=tarfile.PAX_FORMAT) as tar:
            for name, kind, fields in members:
                info = tarfile.TarInfo(f"cifar-10-batches-bin/{name}")
                info.type = kind
                for field, value in fields.items():
                    setattr(info, field, value)
                tar.addfile(info)

    return damage


META = "batches.meta.txt"
SPARSE = {"GNU.sparse.major": "0", "GNU.sparse.minor": "1", "GNU.sparse.map": "0,0",
          "GNU.sparse.size": str(2**60)}  # fmt: skip
ZEROS = gzip.compress(bytes(3 * 2**20))


def with_byte(offset, value):
    return lambda content: content[:offset] + bytes([value]) + content[offset + 1 :]


def with_shape(*shape):
    return lambda content: idx(np.zeros(shape, np.uint8))


MALFORMED = [
    ("mnist", replaced(TRAIN_LABELS, lambda _: None), f"no file {TRAIN_LABELS}, needed for mnist"),
    ("cifar10", replaced(CIFAR10, lambda _: None), f"no file {CIFAR10}, needed for cifar10"),
    ("mnist", replaced(TRAIN_IMAGES, lambda b: b[: len(b) // 2]), "gzip data ends early"),
    ("cifar10", replaced(CIFAR10, lambda b: b[: len(b) // 2]), "gzip data ends early"),
    ("cifar10", replaced(CIFAR10, lambda b: b[:-9]), "gzip data ends early"),
    ("mnist", replaced(TRAIN_IMAGES, gzip.decompress), "not valid gzip data"),
    ("cifar10", replaced(CIFAR10, lambda b: b"<html>"), "not valid gzip data"),
    ("cifar10", replaced(CIFAR10, lambda b: b[:-8] + bytes(8)), "not valid gzip data (CRC check"),
    ("mnist", replaced(TRAIN_IMAGES, lambda b: b""), "0 bytes, expected an IDX header of 16"),
    ("mnist", unpacked(TRAIN_IMAGES, with_byte(2, 13)), "magic number 3331, expected 2051"),
    ("mnist", unpacked(TRAIN_LABELS, with_byte(3, 3)), "magic number 2051, expected 2049"),
    ("mnist", unpacked(TRAIN_IMAGES, lambda b: b[:-1]), "27,440 values, 27,439 bytes follow"),
    ("mnist", unpacked(TRAIN_LABELS, lambda b: b + b"0"), "35 values, 36 bytes follow"),
    ("mnist", unpacked(TRAIN_IMAGES, with_byte(4, 255)), "bytes follow"),
    ("mnist", unpacked(TRAIN_IMAGES, with_shape(35, 27, 28)), "27 x 28 pixels, expected 28 x 28"),
    ("mnist", unpacked(TRAIN_LABELS, with_shape(34)), "34 labels, but train-images-idx3-ubyte.gz"),
    ("mnist", unpacked(TRAIN_LABELS, with_byte(8 + 5, 10)), "label 10 of image 5, expected 0..9"),
    ("mnist", replaced(TRAIN_IMAGES, lambda b: ZEROS), "holds more than 2 MB"),
    ("mnist", unpacked(TRAIN_LABELS, lambda b: b[:8] + bytes(3 * 2**20)), "more than 2 MB"),
    ("cifar10", unpacked(CIFAR10, lambda b: b + bytes(3 * 2**20)), "holds more than 2 MB"),
    ("cifar10", tar_of((META, tarfile.REGTYPE, {"size": 2**40})), "not a valid tar archive"),
    ("cifar10", tar_of((META, tarfile.REGTYPE, {"pax_headers": {"size": "-9"}})), "no file"),
    ("cifar10", tar_of((META, tarfile.REGTYPE, {"pax_headers": SPARSE})), f"no file .*{META}"),
    ("cifar10", tar_of((META, tarfile.SYMTYPE, {"linkname": "/etc/passwd"})), f"no file .*{META}"),
    ("cifar10", tar_of((META, tarfile.LNKTYPE, {"linkname": "../../x"})), f"no file .*{META}"),
    ("cifar10", tar_of((META, tarfile.CHRTYPE, {"devmajor": 1})), f"no file .*{META}"),
    ("cifar10", tar_of((META, tarfile.FIFOTYPE, {})), f"no file .*{META}"),
    ("cifar10", unpacked(CIFAR10, lambda b: b"x" * 2000), "not a valid tar archive"),
    ("cifar10", unpacked(CIFAR10, lambda b: b[:2000]), "not a valid tar archive"),
    ("cifar10", member(CIFAR10, "batch_3.bin", lambda _: None), "no file cifar-10-batches-bin"),
    ("cifar10", member(CIFAR10, "test_batch.bin", lambda b: b[:-1]), "multiple of the record size"),
    ("cifar10", member(CIFAR10, "batch_1.bin", lambda b: b[:3073]), "29 train images, expected"),
    ("cifar10", member(CIFAR10, "data_batch_2.bin", with_byte(3073, 11)), "label 11 of image 1,"),
    ("cifar10", member(CIFAR10, "meta.txt", lambda b: b"cat\n" * 10), "names, 1 different"),
    ("cifar10", member(CIFAR10, "meta.txt", lambda b: b"\xff"), "not text"),
    ("cifar100", member(CIFAR100, "test.bin", lambda b: b[:3073]), "the record size 3074"),
    ("cifar100", member(CIFAR100, "test.bin", with_byte(0, 20)), "coarse_label 20 of image 0"),
    ("cifar100", member(CIFAR100, "train.bin", with_byte(1, 100)), "label 100 of image 0"),
    ("cifar100", member(CIFAR100, FINE_NAMES, lambda _: None), "no file cifar-100-binary/fine"),
    ("cifar100", member(CIFAR100, FINE_NAMES, lambda b: b"a\nb"), "2 class names"),
]


@pytest.mark.parametrize("number", range(len(MALFORMED)), ids=lambda n: f"{n}-{MALFORMED[n][0]}")
def test_malformed(number, run, tmp_path, monkeypatch, capsys):
    dataset, damage, message = MALFORMED[number]
    monkeypatch.setattr(archives, "MOST_BYTES", 2 * 2**20)
    write_archives(dataset, tmp_path / "archives")
    damage(tmp_path / "archives")
    if number % 2:  # a data_dir that holds something already
        (tmp_path / "data" / dataset / "1.0.0").mkdir(parents=True)
        (tmp_path / "data" / "note.txt").write_text("kept")
    before = tree(tmp_path)
    assert run(dataset) == 2
    output, error = capsys.readouterr()
    assert error.startswith(f"prepare_data: {tmp_path}/archives") and error.count("\n") == 1
    assert message in error or re.search(message, error)
    assert output == ""
    assert tree(tmp_path) == before


def test_any_byte_of_an_archive_may_be_another(tmp_path):
    """What is read is what was written, or refused by one kind of error."""
    for dataset in ("mnist", "cifar10"):
        directory = tmp_path / dataset
        write_archives(dataset, directory)
        read = functools.partial(archives.read_archives, dataset, directory, counts=COUNTS)
        expected = read().splits["test"].images.tobytes()
        rng = np.random.default_rng(0)
        for name in archives.format_of(dataset).archives:
            content = (directory / name).read_bytes()
            unpacked = gzip.decompress(content)
            for number in range(60):
                # Of a tar archive, headers are what matters.
                held = bytearray(unpacked if number % 2 else content)
                end = len(held) if number % 4 else min(len(held), 1024)
                held[rng.integers(end)] ^= 1 << rng.integers(8)
                (directory / name).write_bytes(gzip.compress(held, 1) if number % 2 else held)
                try:
                    found = read().splits["test"].images
                except InputError as error:
                    assert str(directory) in str(error) and "\n" not in str(error)
                else:
                    assert number % 2 or found.tobytes() == expected
            (directory / name).write_bytes(content)


def test_two_processes_do_not_prepare_one_dataset(run, tmp_path, capsys):
    write_archives("mnist", tmp_path / "archives")
    data_dir = tmp_path / "data"
    data_dir.mkdir()
    with files.hold_output(data_dir, "mnist-3.0.1", "in use"):
        assert run("mnist") == 2
        error = capsys.readouterr().err.splitlines()[-1]
        assert error == (
            f"prepare_data: --data_dir: another process prepares mnist 3.0.1 in {data_dir}; "
            "wait for it"
        )
    assert not list(data_dir.iterdir())


@pytest.mark.parametrize(
    ("file", "content"),
    [("dataset_info.json", b"{"), ("dataset_info.json", b"\xff"),
     ("dataset_info.json", b"[" * 10**5), ("mnist-test.tfrecord-00000-of-00001", None)],
)  # fmt: skip
def test_a_damaged_dataset_is_said(file, content, run, tmp_path, capsys):
    write_archives("mnist", tmp_path / "archives")
    assert run("mnist") == 0
    capsys.readouterr()
    place = tmp_path / "data" / "mnist"
    (place / "3.0.1" / file).unlink()
    if content:
        (place / "3.0.1" / file).write_bytes(content)
    before = tree(tmp_path)
    assert run("mnist") == 2
    error = capsys.readouterr().err
    assert re.fullmatch(rf"prepare_data: --data_dir: {place}.* remove .* start again\n", error)
    assert tree(tmp_path) == before


def test_what_killed_processes_left_is_taken_away(run, tmp_path):
    """This dataset's, and those of 0.2.0 that are surely not in use; again once it is there."""
    write_archives("mnist", tmp_path / "archives")
    data_dir = tmp_path / "data"
    ours = [".partial-1-0123abcd-mnist-3.0.1/mnist/3.0.1", "incomplete.ab_d0123/mnist/incomplete.X"]
    others = [
        ".partial-1-0123abcd-cifar10-3.0.2/cifar10",  # another dataset's
        "incomplete.new00000/mnist",  # may be in use
        "incomplete.ab_d0124/cifar10",
        "incomplete.ABC123_3.0.1/mnist",  # not the name of ours
        "mnist/incomplete.ABC123_3.0.1",  # TensorFlow Datasets' own
    ]
    for before in ({"mnist"}, {"mnist"}):
        for name in (*ours, *others):
            (data_dir / name).mkdir(parents=True, exist_ok=True)
            if "new" not in name:
                for folder in (data_dir / name, *(data_dir / name).parents):
                    os.utime(folder, (0, 0))
        (data_dir / ".mnist-3.0.1.lock").touch()
        assert run("mnist") == 0
        left = {path.name for path in data_dir.iterdir()}
        assert left == before | {name.partition("/")[0] for name in others}
        assert (data_dir / others[-1]).exists()


@pytest.mark.parametrize("interruption", [KeyboardInterrupt, OSError])
def test_interrupted_writing_leaves_nothing(interruption, tmp_path):
    write_archives("cifar10", tmp_path / "archives")
    before = tree(tmp_path)

    def track(numbers, description):
        yield 0
        raise interruption

    where = tmp_path / "archives", tmp_path / "new" / "data"
    with pytest.raises(interruption):
        archives.prepare("cifar10", *where, track=track, counts=COUNTS)
    assert tree(tmp_path) == before


def test_full_disk(run, tmp_path, monkeypatch, capsys):
    def no_space(path):
        raise tf.errors.ResourceExhaustedError(None, None, "No space left on device")

    write_archives("cifar10", tmp_path / "archives")
    before = tree(tmp_path)
    monkeypatch.setattr(tf.io, "TFRecordWriter", no_space)
    assert run("cifar10", "new/data") == 2
    error = capsys.readouterr().err.splitlines()[-1]
    assert error == f"prepare_data: {tmp_path}/new/data/cifar10/3.0.2: No space left on device"
    assert tree(tmp_path) == before


@pytest.mark.parametrize(
    ("in_the_way", "message"),
    [("data", "a file, expected a directory"), ("data/mnist/3.0.1", "not a prepared dataset")],
)
def test_unusable_data_dir(in_the_way, message, run, tmp_path, capsys):
    write_archives("mnist", tmp_path / "archives")
    (tmp_path / in_the_way).parent.mkdir(parents=True, exist_ok=True)
    (tmp_path / in_the_way).write_text("in the way")
    before = tree(tmp_path)
    assert run("mnist") == 2
    assert message in capsys.readouterr().err
    assert tree(tmp_path) == before


def test_official_counts_are_the_default(tmp_path):
    write_archives("mnist", tmp_path / "archives")
    with pytest.raises(archives.InputError, match="35 train images, expected 60,000"):
        archives.read_archives("mnist", tmp_path / "archives")


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ([], "--dataset"),
        (["--dataset=svhn"], "digits, mnist, cifar10, cifar100"),
        (["--dataset=mnist"], "--archive_dir: must be given"),
        (["--dataset=mnist", "--archive_dir=/does/not/exist"], "not a directory"),
        (["--dataset=mnist", "--archive_dir=.", "--data_dir=gs://bucket"], "on this machine"),
        (["--dataset=mnist", "archives"], "unexpected argument"),
    ],
)
def test_bad_flags(flags, message, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    if not any(flag.startswith("--data_dir") for flag in flags):
        flags = [*flags, "--data_dir=data"]
    assert prepare_data.main(["prepare_data", *flags]) == 2
    error = capsys.readouterr().err
    assert error.startswith("prepare_data: ") and error.count("\n") == 1 and message in error
    assert tree(tmp_path) == {}


def test_digits(capsys):
    assert prepare_data.main(["prepare_data", "--dataset=digits"]) == 0
    assert capsys.readouterr().out.count("\n") == 1
