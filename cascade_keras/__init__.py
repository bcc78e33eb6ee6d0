"""Cascade adversarial training regularised with a unified embedding, for Keras 3.

The modules import downwards only, see docs/architecture.md.
Names a user needs most are offered here and imported on first use, so that programs can answer
``--help`` before TensorFlow is loaded. For the same reason Keras is told where the classes are that
it finds in saved files, not the classes.
"""

from cascade_keras.lazy import exports, keras_finds

_HOMES = {
    "AdversarialTrainer": "training",
    "CraftSettings": "crafting",
    "Crafting": "crafting",
    "ExportSettings": "export",
    "Evaluation": "evaluation.evaluation",
    "EvaluationSettings": "evaluation.settings",
    "Figure": "figures.figure",
    "FigureSettings": "figures.settings",
    "InputError": "errors",
    "Measured": "evaluation.measured",
    "WhiteBox": "evaluation.white_box",
    "Reproduction": "reproduction.reproduction",
    "ReproductionSettings": "reproduction.settings",
    "StopOnDivergence": "callbacks",
    "Training": "runs.training_run",
    "TrainingSettings": "runs.settings",
    "craft": "evaluation.one_call",
    "ensemble": "ensembles",
    "evaluate": "evaluation.one_call",
    "export_run": "export",
    "export_saved_model": "export",
    "lenet": "models.networks",
    "load": "zoo.loading",
    "load_source": "sources",
    "resnet": "models.networks",
    "verify": "evaluation.verify",
    "attacks": "",
    "averages": "",
    "bank": "",
    "callbacks": "",
    "cascade": "",
    "collapse": "",
    "data": "",
    "draws": "",
    "ensembles": "",
    "evaluation": "",
    "export": "",
    "figures": "",
    "files": "",
    "losses": "",
    "models": "",
    "recipes": "",
    "reproduction": "",
    "runs": "",
    "schedules": "",
    "sources": "",
    "training": "",
    "zoo": "",
}
__all__ = sorted(_HOMES)
__version__ = "0.6.0"
__getattr__, __dir__ = exports(__name__, _HOMES)
keras_finds(
    __name__,
    {
        "AdversarialTrainer": "training",
        "ClockSchedule": "training",
        "ConvBatchNorm": "layers",
        "Triangular": "schedules",
    },
)
