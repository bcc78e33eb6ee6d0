"""The paper by one command: its networks, tables and figures, ours beside the published numbers."""

from cascade_keras.lazy import exports

_HOMES = {
    "Job": "jobs",
    "Plan": "plan",
    "Reproduced": "reproduction",
    "Reproduction": "reproduction",
    "ReproductionSettings": "settings",
    "jobs": "",
    "measurements": "",
    "pages": "",
    "plan": "",
    "published": "",
}
__getattr__, __dir__ = exports(__name__, _HOMES)
