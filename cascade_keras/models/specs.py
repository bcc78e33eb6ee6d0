"""Names of networks; needs no TensorFlow."""

from __future__ import annotations

import re

from cascade_keras.errors import InputError

MODEL_NAMES = "resnetD, plainD, resnetD_e2, resnetD_e10x2 (D = 6n + 2: 20, 32, 44, ...) or lenet"


def parse_model_name(name: str) -> tuple[str, int, str]:
    """Split a network's name into family, depth and head: ("resnet", 20, "_e2"), ("lenet", 5, "").

    Raises:
        InputError: not a name of this package, or a depth that is not 6n + 2.
    """
    if name == "lenet":
        return "lenet", 5, ""
    match = re.fullmatch(r"(?:(resnet)(\d+)(_e2|_e10x2|)|(plain)(\d+))", name)
    if not match:
        raise InputError(f"unknown model {name!r}; known: {MODEL_NAMES}")
    family, depth = match[1] or match[4], int(match[2] or match[5])
    if depth < 8 or (depth - 2) % 6:
        raise InputError(f"depth {depth} of {name!r} is not 6n + 2; try {family}20 or 32, 44, 56")
    return family, depth, match[3] or ""
