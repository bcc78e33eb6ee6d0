"""Prepare MNIST, CIFAR-10 and CIFAR-100 from the official archives on disk, without a network.

The archives' formats, all values unsigned bytes unless said otherwise:

    MNIST      four gzipped IDX files: a magic number (0x800 + the number of dimensions) and the
               dimensions as big-endian 32-bit integers, then the values
    CIFAR-10   a .tar.gz of records: label, 3072 pixels (channel, row, column)
    CIFAR-100  a .tar.gz of records: coarse label, fine label, 3072 pixels

Everything is checked before anything is written. What is written is what the builder of TensorFlow
Datasets writes from the same archives: its version, features, keys and order, so that
``tfds.load(name, data_dir=..., download=False)`` finds the dataset. The builder itself refuses an
archive that was packed again, whose checksum differs although its content is the same.
"""

from __future__ import annotations

import contextlib
import dataclasses
import gzip
import hashlib
import io
import logging
import math
import os
import pathlib
import posixpath
import re
import shutil
import tarfile
import time
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping

import numpy as np
import tensorflow_datasets as tfds

from cascade_keras.data.specs import look_up
from cascade_keras.errors import InputError
from cascade_keras.files import (
    LOCK_FILE,
    PARTIAL,
    check_writable,
    clean,
    expand,
    hold_output,
    partial_sibling,
    publish,
    write_error,
)
from cascade_keras.lazy import resolve
from cascade_keras.startup import import_tensorflow

MOST_BYTES = 512 * 2**20  # of an archive's content: the largest official one holds 184 MB


@dataclasses.dataclass(frozen=True)
class Split:
    """One split's images, (count, height, width, channels), and labels, (count,), all uint8.

    Attributes:
        labels: by feature name: "label" and, for CIFAR-100, "coarse_label".
    """

    images: np.ndarray
    labels: Mapping[str, np.ndarray]


@dataclasses.dataclass(frozen=True)
class Content:
    """What a dataset's archives hold.

    Attributes:
        splits: "train" and "test".
        class_names: by feature name; empty where the archives name no classes (MNIST).
    """

    splits: Mapping[str, Split]
    class_names: Mapping[str, list[str]]


@dataclasses.dataclass(frozen=True)
class MnistFormat:
    """Where MNIST's data is.

    Attributes:
        files: the files of images and of labels, by split.
        counts: the official number of images of each split.
    """

    files: Mapping[str, tuple[str, str]]
    counts: Mapping[str, int]
    side: int = 28
    num_classes: int = 10

    @property
    def archives(self) -> tuple[str, ...]:
        """The names of the files that are read."""
        return tuple(name for pair in self.files.values() for name in pair)

    def read(self, directory: pathlib.Path, counts: Mapping[str, int]) -> Content:
        """Read and check the archives in a directory, see ``read_archives``."""
        return _read_mnist(self, directory, counts)


@dataclasses.dataclass(frozen=True)
class CifarFormat:
    """Where the data of CIFAR-10 or CIFAR-100 is.

    Attributes:
        archive: the name of the .tar.gz.
        folder: that of its members.
        members: the files of records, by split, in order.
        labels: the label bytes of a record, in order: a feature's name, its number of classes and
            the member that names them.
        counts: the official number of images of each split.
    """

    archive: str
    folder: str
    members: Mapping[str, tuple[str, ...]]
    labels: tuple[tuple[str, int, str], ...]
    counts: Mapping[str, int]
    side: int = 32

    @property
    def archives(self) -> tuple[str, ...]:
        """The names of the files that are read."""
        return (self.archive,)

    def read(self, directory: pathlib.Path, counts: Mapping[str, int]) -> Content:
        """Read and check the archive in a directory, see ``read_archives``."""
        return _read_cifar(self, directory, counts)


def format_of(dataset: str) -> MnistFormat | CifarFormat:
    """Return where a dataset's data is in its official archives.

    Raises:
        InputError: no such dataset, or it has no archives.
    """
    spec = look_up(dataset)
    if spec.archives is None:
        raise InputError(f"{dataset} has no archives and needs no preparation", "dataset")
    return resolve(spec.archives, __package__)


MNIST = MnistFormat(
    files={
        "train": ("train-images-idx3-ubyte.gz", "train-labels-idx1-ubyte.gz"),
        "test": ("t10k-images-idx3-ubyte.gz", "t10k-labels-idx1-ubyte.gz"),
    },
    counts={"train": 60_000, "test": 10_000},
)
CIFAR10 = CifarFormat(
    archive="cifar-10-binary.tar.gz",
    folder="cifar-10-batches-bin",
    members={
        "train": tuple(f"data_batch_{number}.bin" for number in range(1, 6)),
        "test": ("test_batch.bin",),
    },
    labels=(("label", 10, "batches.meta.txt"),),
    counts={"train": 50_000, "test": 10_000},
)
CIFAR100 = CifarFormat(
    archive="cifar-100-binary.tar.gz",
    folder="cifar-100-binary",
    members={"train": ("train.bin",), "test": ("test.bin",)},
    labels=(
        ("coarse_label", 20, "coarse_label_names.txt"),
        ("label", 100, "fine_label_names.txt"),
    ),
    counts={"train": 50_000, "test": 10_000},
)


class _Decompressed:
    """What a gzip file holds, read from its beginning and not beyond ``MOST_BYTES``."""

    def __init__(self, path: pathlib.Path, stream: gzip.GzipFile):
        self._path, self._stream, self._read = path, stream, 0

    def read(self, size: int = -1) -> bytes:
        """Return so many bytes, all that are left where negative.

        Raises:
            InputError: there are too many; a small file can hold more than the memory does.
        """
        left = MOST_BYTES - self._read
        content = self._stream.read(left + 1 if size < 0 else min(size, left + 1))
        self._read += len(content)
        if self._read > MOST_BYTES:
            raise InputError(
                f"{self._path}: holds more than {MOST_BYTES >> 20} MB; expected the official "
                "archive"
            )
        return content


@contextlib.contextmanager
def _decompressed(path: pathlib.Path) -> Iterator[_Decompressed]:
    """Open a gzip file; damage found while reading it, or after what was read, is an InputError."""
    with gzip.open(path) as opened:
        stream = _Decompressed(path, opened)
        try:
            yield stream
            # The checksum stands at the end, which a reader of the members need not have reached.
            while stream.read(1 << 20):
                pass
        except EOFError as error:
            raise InputError(
                f"{path}: the gzip data ends early after {path.stat().st_size:,} bytes; "
                "expected the complete archive"
            ) from error
        except (gzip.BadGzipFile, zlib.error) as error:
            raise InputError(
                f"{path}: not valid gzip data ({error}); expected the official gzipped archive"
            ) from error


def _check_count(where, split: str, found: int, counts: Mapping[str, int]) -> None:
    if found != counts[split]:
        raise InputError(f"{where}: {found:,} {split} images, expected {counts[split]:,}")


def _check_labels(where, feature: str, labels: np.ndarray, num_classes: int) -> None:
    wrong = np.flatnonzero(labels >= num_classes)
    if wrong.size:
        raise InputError(
            f"{where}: {feature} {labels[wrong[0]]} of image {wrong[0]:,}, "
            f"expected 0..{num_classes - 1}"
        )


def read_idx(path: pathlib.Path, rank: int) -> np.ndarray:
    """Return the uint8 array of a gzipped IDX file.

    Args:
        rank: the number of dimensions that the file must declare.

    Raises:
        InputError: damaged gzip data, another magic number, or more or fewer values than declared.
    """
    with _decompressed(path) as stream:
        data = stream.read()
    header = 4 + 4 * rank
    if len(data) < header:
        raise InputError(f"{path}: {len(data)} bytes, expected an IDX header of {header}")
    magic, *shape = (int(number) for number in np.frombuffer(data, ">u4", 1 + rank))
    if magic != 0x800 + rank:
        raise InputError(
            f"{path}: magic number {magic}, expected {0x800 + rank} "
            f"(unsigned bytes, dimensions: {rank})"
        )
    declared = math.prod(shape)
    if len(data) - header != declared:
        raise InputError(
            f"{path}: the header declares {' x '.join(map(str, shape))} = {declared:,} values, "
            f"{len(data) - header:,} bytes follow"
        )
    return np.frombuffer(data, np.uint8, offset=header).reshape(shape)


def _read_mnist(layout: MnistFormat, directory: pathlib.Path, counts: Mapping[str, int]) -> Content:
    splits = {}
    for split, (images_file, labels_file) in layout.files.items():
        images = read_idx(directory / images_file, 3)
        labels = read_idx(directory / labels_file, 1)
        side = layout.side
        if images.shape[1:] != (side, side):
            height, width = images.shape[1:]
            raise InputError(
                f"{directory / images_file}: images of {height} x {width} pixels, "
                f"expected {side} x {side}"
            )
        if len(images) != len(labels):
            raise InputError(
                f"{directory / labels_file}: {len(labels):,} labels, "
                f"but {images_file} has {len(images):,} images"
            )
        _check_count(directory / images_file, split, len(images), counts)
        _check_labels(directory / labels_file, "label", labels, layout.num_classes)
        splits[split] = Split(images[..., np.newaxis], {"label": labels})
    return Content(splits, {})


def _read_members(path: pathlib.Path, folder: str, names: Iterable[str]) -> dict[str, bytes]:
    """Return the contents of the named files of a folder in a .tar.gz.

    They are read in memory: a path in an archive may point anywhere, so none is written to.

    Raises:
        InputError: damaged data, or a file is missing.
    """
    wanted = {posixpath.join(folder, name): name for name in names}
    found = {}
    with _decompressed(path) as stream:
        try:
            with tarfile.open(fileobj=stream, mode="r|") as tar:
                for member in tar:
                    # Archives packed again often prefix "./".
                    name = wanted.get(posixpath.normpath(member.name))
                    # A sparse file's size need not be in the archive.
                    if name and member.isreg() and not member.issparse():
                        found[name] = tar.extractfile(member).read()
        except InputError:
            raise
        except (tarfile.TarError, ValueError, ArithmeticError, LookupError) as error:
            raise InputError(
                f"{path}: not a valid tar archive ({error}); expected a .tar.gz of {folder}"
            ) from error
    missing = [member for member, name in wanted.items() if name not in found]
    if missing:
        raise InputError(f"{path}: no file {', '.join(missing)} in the archive")
    return found


def _parse_class_names(where: str, text: bytes, expected: int) -> list[str]:
    try:
        names = [line.strip() for line in text.decode().splitlines() if line.strip()]
    except UnicodeDecodeError as error:
        raise InputError(f"{where}: not text; expected one class name a line") from error
    if len(set(names)) != expected or len(names) != expected:
        raise InputError(
            f"{where}: {len(names)} class names, {len(set(names))} different, expected {expected}"
        )
    return names


def _read_cifar(layout: CifarFormat, directory: pathlib.Path, counts: Mapping[str, int]) -> Content:
    path = directory / layout.archive
    names_files = [names_file for _, _, names_file in layout.labels]
    records_files = [name for names in layout.members.values() for name in names]
    members = _read_members(path, layout.folder, [*names_files, *records_files])

    record_size = len(layout.labels) + 3 * layout.side**2
    splits = {}
    for split, files in layout.members.items():
        batches = []
        for file in files:
            where = f"{path}: {file}"
            if len(members[file]) % record_size:
                raise InputError(
                    f"{where}: {len(members[file]):,} bytes, "
                    f"expected a multiple of the record size {record_size}"
                )
            batch = np.frombuffer(members[file], np.uint8).reshape(-1, record_size)
            for column, (feature, num_classes, _) in enumerate(layout.labels):
                _check_labels(where, feature, batch[:, column], num_classes)
            batches.append(batch)
        records = np.concatenate(batches)
        _check_count(f"{path}: {', '.join(files)}", split, len(records), counts)
        pixels = records[:, len(layout.labels) :].reshape(-1, 3, layout.side, layout.side)
        labels = {feature: records[:, i] for i, (feature, _, _) in enumerate(layout.labels)}
        splits[split] = Split(pixels.transpose(0, 2, 3, 1), labels)
    class_names = {
        feature: _parse_class_names(f"{path}: {names_file}", members[names_file], num_classes)
        for feature, num_classes, names_file in layout.labels
    }
    return Content(splits, class_names)


def read_archives(
    dataset: str, archive_dir: pathlib.Path, *, counts: Mapping[str, int] | None = None
) -> Content:
    """Read and check the official archives of a dataset.

    Args:
        dataset: the name of a row that has archives.
        archive_dir: the directory with the archives, under their official names.
        counts: the number of images that each split must have; the official ones when None.

    Raises:
        InputError: an archive is missing or malformed; the message names it, what is wrong, and
            what would be right.
    """
    layout = format_of(dataset)
    if not archive_dir.is_dir():
        raise InputError(f"{archive_dir}: not a directory; expected one with the archives")
    missing = [name for name in layout.archives if not (archive_dir / name).is_file()]
    if missing:
        raise InputError(f"{archive_dir}: no file {', '.join(missing)}, needed for {dataset}")
    return layout.read(archive_dir, counts or layout.counts)


def checksum_warnings(dataset: str, archive_dir: pathlib.Path) -> list[str]:
    """Return a line for each archive that is not the official download, byte for byte.

    An archive that was packed again has another checksum and may hold the same data.
    """
    official = {info.filename: info for info in tfds.builder_cls(dataset).url_infos.values()}
    warnings = []
    for name in format_of(dataset).archives:
        with (archive_dir / name).open("rb") as file:
            found = hashlib.file_digest(file, "sha256").hexdigest()
        if found != official[name].checksum:
            warnings.append(
                f"{archive_dir / name} is not the official download: sha256 {found}, "
                f"official {official[name].checksum}"
            )
    return warnings


def _make_builder(
    dataset: str, content: Content, data_dir: pathlib.Path, track: Callable
) -> tfds.core.DatasetBuilder:
    """Return TFDS's builder of the dataset, made to read ``content`` in place of a download."""
    official = tfds.builder_cls(dataset)

    class Builder(official, skip_registration=True):
        name = official.name

        def _split_generators(self, dl_manager):
            for feature, names in content.class_names.items():
                self.info.features[feature].names = names
            return {
                name: self._generate_examples(name, split) for name, split in content.splits.items()
            }

        def _generate_examples(self, split_name: str, split: Split):
            has_id = "id" in self.info.features
            numbers = range(len(split.images))
            for i in track(numbers, description=f"{dataset} {split_name}"):
                example = {"image": split.images[i]}
                example |= {feature: int(labels[i]) for feature, labels in split.labels.items()}
                if has_id:
                    example["id"] = f"{split_name}_{i:05d}"
                yield i, example

    return Builder(data_dir=data_dir)


@contextlib.contextmanager
def _alone(destination: pathlib.Path) -> Iterator[None]:
    """Keep other processes from a dataset, .../NAME/VERSION, and clean what killed ones have left.

    After an error no directory remains that was made for it.

    Raises:
        InputError: another process prepares it.
    """
    made = [path for path in destination.parents if not path.exists()]
    name, version = destination.parent.name, destination.name
    try:
        data_dir = destination.parent.parent
        data_dir.mkdir(parents=True, exist_ok=True)
        in_use = f"another process prepares {name} {version} in {data_dir}; wait for it"
        with hold_output(data_dir, f"{name}-{version}", in_use, "data_dir"):
            clean(data_dir, f"{name}-{version}")
            for folder in _left_by_0_2_0(data_dir, name):
                shutil.rmtree(folder)
            yield
    except BaseException:
        for path in made:
            with contextlib.suppress(OSError):
                path.rmdir()
        raise


def _clean_up(destination: pathlib.Path) -> None:
    """Remove what a process left that was killed when all but this was done, where that is allowed.

    It may be a directory that this user only reads.
    """
    data_dir, name = destination.parent.parent, destination.parent.name
    lock = data_dir / f".{name}-{destination.name}{LOCK_FILE}"
    if lock.exists() or any(data_dir.glob(f"{PARTIAL}*")) or _left_by_0_2_0(data_dir, name):
        with contextlib.suppress(InputError, OSError), _alone(destination):
            pass


def _left_by_0_2_0(data_dir: pathlib.Path, name: str) -> list[pathlib.Path]:
    """Return the folders of this dataset that killed processes of versions 0.1.0 and 0.2.0 left.

    Those knew no lock: a folder that may be in use, changed within a day, is not among them.
    """
    long_ago = time.time() - 24 * 3600
    return [
        folder
        for folder in data_dir.glob("incomplete.*")
        # TensorFlow Datasets' own folders have other names, and lie in that of a dataset.
        if re.fullmatch(r"incomplete\.[a-z0-9_]{8}", folder.name)
        and folder.is_dir()
        and not folder.is_symlink()
        and {path.name for path in folder.iterdir()} <= {name}
        and all(path.lstat().st_mtime < long_ago for path in (folder, *folder.rglob("*")))
    ]


def _write(dataset: str, content: Content, destination: pathlib.Path, track: Callable) -> None:
    """Write the dataset to ``destination``, .../NAME/VERSION, which appears complete or not at all.

    It is written in data_dir because what lies beside may be read-only or another file system,
    from which nothing can be renamed.

    Raises:
        OSError: it cannot be written; nothing is left.
    """
    # Not needed before: a bad archive is answered at once.
    import_tensorflow()
    import tensorflow as tf

    name, version = destination.parent.name, destination.name
    staging = partial_sibling(destination.parent.parent / f"{name}-{version}")
    try:
        builder = _make_builder(dataset, content, staging, track)
        # TFDS would print that it downloads.
        with contextlib.redirect_stdout(io.StringIO()):
            builder.download_and_prepare(
                download_config=tfds.download.DownloadConfig(try_download_gcs=False)
            )
        # One that was refused meanwhile may have taken away what it had made.
        destination.parent.mkdir(parents=True, exist_ok=True)
        publish(pathlib.Path(builder.data_path), destination)
    except (RuntimeError, tf.errors.OpError) as error:
        # What TFDS makes of TensorFlow's errors, a full disk among them.
        cause = error if isinstance(error, tf.errors.OpError) else error.__cause__
        if not isinstance(cause, tf.errors.OpError):
            raise
        raise write_error(cause.message, destination) from error
    finally:
        shutil.rmtree(staging, ignore_errors=True)


def prepare(
    dataset: str,
    archive_dir: str | pathlib.Path,
    data_dir: str | pathlib.Path | None = None,
    *,
    warn: Callable[[str], None] = logging.warning,
    track: Callable[..., Iterable[int]] | None = None,
    counts: Mapping[str, int] | None = None,
) -> tuple[tfds.core.DatasetBuilder, bool]:
    """Prepare a dataset for ``tfds.load(dataset, data_dir=data_dir, download=False)``.

    A dataset that is there already is left alone, and the archives are not looked at. On an error
    or an interruption nothing new remains in ``data_dir``.

    Args:
        dataset: the name of a row that has archives.
        archive_dir: the directory with the official archives, under their official names.
        data_dir: that of TensorFlow Datasets; its own default when None.
        warn: called with a line for each archive whose checksum is not the official one.
        track: wraps the loop over a split's images to show progress, with the keyword arguments
            of ``rich.progress.track``.
        counts: the number of images that each split must have; the official ones when None.

    Returns:
        The dataset's builder, and whether this call wrote it.

    Raises:
        InputError: an archive is missing or malformed, or ``data_dir`` cannot be used.
        OSError: ``data_dir`` cannot be written.
    """
    if data_dir is not None:
        if "://" in str(data_dir):
            raise InputError(f"{data_dir}: expected a directory on this machine", "data_dir")
        data_dir = expand(data_dir)
        if data_dir.exists() and not data_dir.is_dir():
            raise InputError(f"{data_dir}: a file, expected a directory", "data_dir")
    builder = _builder(dataset, data_dir)
    destination = pathlib.Path(builder.data_path)
    if _is_prepared(destination):
        _clean_up(destination)
        return builder, False
    for directory in (destination.parent.parent, destination.parent):
        check_writable(directory, "data_dir")
    archive_dir = expand(archive_dir)
    content = read_archives(dataset, archive_dir, counts=counts)
    for warning in checksum_warnings(dataset, archive_dir):
        warn(warning)
    with _alone(destination):
        written = not _is_prepared(destination)  # another process may just have done it
        if written:
            _write(dataset, content, destination, track or (lambda numbers, **_: numbers))
    return _builder(dataset, builder.data_dir_root), written


def _builder(dataset: str, data_dir: str | os.PathLike | None) -> tfds.core.DatasetBuilder:
    """Return TFDS's builder of a dataset, which is prepared in ``data_dir`` or not.

    Raises:
        InputError: something is there in its place that cannot be read.
    """
    try:
        builder = tfds.builder(dataset, data_dir=data_dir)
        files = [file for split in builder.info.splits.values() for file in split.filepaths]
    except OSError:
        raise
    except Exception as error:  # whatever the parsers of its files raise
        place = pathlib.Path(data_dir or tfds.core.constants.DATA_DIR, dataset)
        raise InputError(
            f"{place}: cannot be read; remove it and start again", "data_dir"
        ) from error
    missing = next((file for file in files if not os.path.exists(file)), None)
    if missing:
        place = pathlib.Path(builder.data_path)
        raise InputError(f"{missing} is missing; remove {place} and start again", "data_dir")
    return builder


def _is_prepared(destination: pathlib.Path) -> bool:
    """Whether the dataset is there.

    Raises:
        InputError: something else is.
    """
    if not os.path.lexists(destination):
        return False
    if not (destination / "dataset_info.json").is_file():
        raise InputError(
            f"{destination}: not a prepared dataset; remove it or use another directory",
            "data_dir",
        )
    return True
