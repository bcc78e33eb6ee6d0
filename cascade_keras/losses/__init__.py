"""The losses of section 3.3 and later ones: ``terms.py`` has their terms, ``specs.py`` the rows."""

from cascade_keras.lazy import exports

_HOMES = {
    "alternates": "terms",
    "bidirectional_distance": "terms",
    "cross_entropy": "terms",
    "fix_scale": "terms",
    "mixed_cross_entropy": "terms",
    "normalize_pair": "terms",
    "pivot_distance": "terms",
    "ramp": "terms",
    "LOSSES": "specs",
    "LossSpec": "specs",
    "register": "specs",
    "specs": "",
}
__getattr__, __dir__ = exports(__name__, _HOMES)
