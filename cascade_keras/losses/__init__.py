"""The losses of section 3.3: ``terms.py`` has their terms, ``specs.py`` a row for each loss."""

from cascade_keras.lazy import exports

_HOMES = {
    "bidirectional_distance": "terms",
    "cross_entropy": "terms",
    "fix_scale": "terms",
    "mixed_cross_entropy": "terms",
    "normalize_pair": "terms",
    "pivot_distance": "terms",
    "LOSSES": "specs",
    "LossSpec": "specs",
    "register": "specs",
    "specs": "",
}
__getattr__, __dir__ = exports(__name__, _HOMES)
