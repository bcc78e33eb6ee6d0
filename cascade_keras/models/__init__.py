"""Functional networks with an embedding output, and their names."""

from cascade_keras.lazy import exports

_HOMES = {
    "NORMALIZATIONS": "networks",
    "STAGE_CHANNELS": "networks",
    "build": "networks",
    "lenet": "networks",
    "normalize": "networks",
    "resnet": "networks",
    "specs": "",
}
__getattr__, __dir__ = exports(__name__, _HOMES)
