"""Networks under attack: predictions, what follows from them, and whether they can be trusted."""

from cascade_keras.lazy import exports

_HOMES = {
    "ATTACKS": "crafting",
    "NOT_FINITE": "crafting",
    "Craft": "crafting",
    "Predict": "crafting",
    "Result": "crafting",
    "crafter": "crafting",
    "evaluate": "crafting",
    "predictor": "crafting",
    "slices": "crafting",
    "sweep": "crafting",
    "zero_gradients": "crafting",
    "diagnosis": "",
    "report": "",
    "summary": "",
    "tasks": "",
}
__getattr__, __dir__ = exports(__name__, _HOMES)
