"""Cascade adversarial training regularised with a unified embedding, for Keras 3.

The modules import downwards only, see docs/architecture.md.
Names a user needs most are offered here and imported on first use, so that programs can answer
``--help`` before TensorFlow is loaded.
"""

from __future__ import annotations

import importlib

_HOME = {
    "AdversarialTrainer": "training",
    "InputError": "errors",
    "StopOnDivergence": "callbacks",
    "evaluate": "evaluation",
    "export_saved_model": "export",
    "lenet": "models",
    "load_source": "sources",
    "resnet": "models",
}
_MODULES = (
    "analysis",
    "attacks",
    "bank",
    "carlini_wagner",
    "cascade",
    "data",
    "diagnosis",
    "evaluation",
    "export",
    "figures",
    "losses",
    "matrix",
    "models",
    "sources",
    "training",
)
__all__ = sorted([*_HOME, *_MODULES])
__version__ = "0.1.0"


def __getattr__(name: str):
    if name in _HOME:
        return getattr(importlib.import_module(f"{__name__}.{_HOME[name]}"), name)
    if name in _MODULES:
        return importlib.import_module(f"{__name__}.{name}")
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return __all__
