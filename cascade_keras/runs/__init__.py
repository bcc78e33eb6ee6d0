"""Trainings that are kept in a directory and go on after a stop or a kill."""

from cascade_keras.lazy import exports

_HOMES = {
    "Run": "run",
    "Training": "training_run",
    "TrainingResult": "training_run",
    "TrainingSettings": "settings",
    "callbacks": "",
    "dashboard": "",
    "metrics": "",
    "panels": "",
    "run": "",
    "settings": "",
}
__getattr__, __dir__ = exports(__name__, _HOMES)
