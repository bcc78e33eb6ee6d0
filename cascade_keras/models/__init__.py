"""Functional networks with an embedding output, and their names."""

from cascade_keras.lazy import exports

_HOMES = {
    "MODELS": "specs",
    "ModelSpec": "specs",
    "NORMALIZATIONS": "specs",
    "STAGE_CHANNELS": "networks",
    "build": "specs",
    "finish": "networks",
    "lenet": "networks",
    "normalize": "networks",
    "register": "specs",
    "resnet": "networks",
    "specs": "",
}
__getattr__, __dir__ = exports(__name__, _HOMES)
