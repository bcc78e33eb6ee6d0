"""Small archives in the official formats."""

import gzip
import io
import tarfile

import numpy as np

COUNTS = {"train": 35, "test": 9}
DATASETS = ("mnist", "cifar10", "cifar100")
CIFAR10, CIFAR100 = "cifar-10-binary.tar.gz", "cifar-100-binary.tar.gz"
FINE_NAMES = "cifar-100-binary/fine_label_names.txt"
TRAIN_IMAGES, TRAIN_LABELS = "train-images-idx3-ubyte.gz", "train-labels-idx1-ubyte.gz"


def random_split(dataset, split):
    """Images and {name: labels} of a split."""
    rng = np.random.default_rng([DATASETS.index(dataset), len(split)])
    shape = (28, 28, 1) if dataset == "mnist" else (32, 32, 3)
    classes = {"cifar100": {"label": 100, "coarse_label": 20}}.get(dataset, {"label": 10})
    images = rng.integers(0, 256, (COUNTS[split], *shape), np.uint8)
    return images, {name: rng.integers(0, n, len(images), np.uint8) for name, n in classes.items()}


def idx(values):
    header = np.array([0x800 + values.ndim, *values.shape], ">u4").tobytes()
    return header + np.ascontiguousarray(values).tobytes()


def write_tar(path, members):
    with tarfile.open(path, "w:gz") as tar:
        for name, content in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))


def write_archives(dataset, directory):
    directory.mkdir()
    if dataset == "mnist":
        for split, prefix in (("train", "train"), ("test", "t10k")):
            images, labels = random_split(dataset, split)
            parts = {"images-idx3": images[..., 0], "labels-idx1": labels["label"]}
            for name, values in parts.items():
                (directory / f"{prefix}-{name}-ubyte.gz").write_bytes(gzip.compress(idx(values)))
        return
    members = {"../escaped.txt": b"a path that points outside"}
    for split in COUNTS:
        images, labels = random_split(dataset, split)
        columns = [labels[name] for name in ("coarse_label", "label") if name in labels]
        pixels = images.transpose(0, 3, 1, 2).reshape(len(images), -1)
        records = np.concatenate([np.stack(columns, 1), pixels], axis=1)
        if dataset == "cifar100":
            members[f"cifar-100-binary/{split}.bin"] = records.tobytes()
        elif split == "test":
            members["./cifar-10-batches-bin/test_batch.bin"] = records.tobytes()
        else:
            for number, batch in enumerate(np.split(records, 5), 1):
                members[f"./cifar-10-batches-bin/data_batch_{number}.bin"] = batch.tobytes()
    names = {"./cifar-10-batches-bin/batches.meta.txt": 10}
    if dataset == "cifar100":
        names = {"cifar-100-binary/coarse_label_names.txt": 20, FINE_NAMES: 100}
    for member, number in names.items():
        members[member] = "".join(f"class {i}\n" for i in range(number)).encode() + b"\n"
    write_tar(directory / (CIFAR10 if dataset == "cifar10" else CIFAR100), members)
