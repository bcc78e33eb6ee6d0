"""Datasets, and batches that are a pure function of (seed, step)."""

from cascade_keras.lazy import exports

_HOMES = {
    "CIFAR_PADDING": "batching",
    "Batch": "batching",
    "batches": "batching",
    "Dataset": "datasets",
    "NetworkImages": "datasets",
    "as_network_input": "datasets",
    "centre_crop": "datasets",
    "check": "datasets",
    "check_batch_size": "batching",
    "check_replicas": "batching",
    "shared_batches": "batching",
    "load": "datasets",
    "mean_image": "datasets",
    "test_images": "datasets",
    "AUGMENTS": "specs",
    "Crop": "specs",
    "DATASETS": "specs",
    "DatasetSpec": "specs",
    "Origin": "specs",
    "crop_of": "specs",
    "find": "forms",
    "register": "specs",
    "sides_of": "specs",
    "DataSettings": "settings",
    "archives": "",
    "datasets": "",
    "specs": "",
}
__getattr__, __dir__ = exports(__name__, _HOMES)
