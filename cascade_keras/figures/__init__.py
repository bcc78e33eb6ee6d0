"""The paper's figures, and some more: ``Figure`` draws them, ``kinds`` has a row for each."""

from cascade_keras.lazy import exports

_HOMES = {
    "FIGURES": "kinds",
    "Figure": "figure",
    "FigureSettings": "settings",
    "FigureSpec": "kinds",
    "Plot": "plot",
    "attack_style": "style",
    "confusion": "results",
    "distribution": "results",
    "examples": "results",
    "heat_map": "results",
    "line_style": "style",
    "register": "kinds",
    "save": "style",
    "kinds": "",
    "results": "",
    "settings": "",
    "style": "",
}
__getattr__, __dir__ = exports(__name__, _HOMES)
