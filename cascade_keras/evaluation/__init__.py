"""Networks under attack: predictions, what follows from them, and whether they can be trusted."""

from cascade_keras.lazy import exports

_HOMES = {
    "NOT_FINITE": "crafting",
    "Craft": "stores",
    "Predict": "crafting",
    "Result": "white_box",
    "WhiteBox": "white_box",
    "Cell": "cells",
    "Evaluation": "evaluation",
    "EvaluationSettings": "settings",
    "Loaded": "networks",
    "crafter": "crafting",
    "Measured": "measured",
    "craft": "one_call",
    "evaluate": "one_call",
    "load_networks": "networks",
    "predictor": "crafting",
    "slices": "crafting",
    "zero_gradients": "crafting",
    "diagnosis": "",
    "report": "",
    "summary": "",
    "tasks": "",
}
__getattr__, __dir__ = exports(__name__, _HOMES)
