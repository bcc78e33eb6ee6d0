"""Networks by the texts that name them: those with an embedding output of ours, and any other."""

from cascade_keras.lazy import exports

_HOMES = {
    "APPLICATIONS": "forms",
    "Form": "forms",
    "MODELS": "specs",
    "ModelSpec": "specs",
    "NORMALIZATIONS": "specs",
    "STAGE_CHANNELS": "networks",
    "application": "applications",
    "build": "specs",
    "find": "found",
    "finish": "networks",
    "form_of": "forms",
    "forms": "",
    "lenet": "networks",
    "normalize": "networks",
    "register": "specs",
    "resnet": "networks",
    "specs": "",
}
__getattr__, __dir__ = exports(__name__, _HOMES)
