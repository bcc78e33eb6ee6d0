"""One row a family of networks: the pattern of its names, and the function that builds them.

Needs no TensorFlow. A network is added by one row and one function::

    def mlp(input_shape, num_classes, *, embedding_at, normalization, mean, width):
        inputs = keras.Input(input_shape, name="images")
        features = models.normalize(inputs, normalization, mean)
        ...
        return models.finish("mlp", inputs, {}, features, num_classes, embedding_at=embedding_at)

    models.register(
        ModelSpec("mlpW", r"mlp(?P<width>\\d+)", mlp, lambda match: {"width": int(match["width"])})
    )

after which ``models.build("mlp64", ...)`` and ``bin/train --model=mlp64`` build it.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from cascade_keras.errors import InputError, shown
from cascade_keras.lazy import resolve

if TYPE_CHECKING:
    import keras

# How a network normalises its images, see ``normalize``.
NORMALIZATIONS = ("pixel", "channel", "none", "image")
# Hidden dense layers of the 2-D embedding networks of figure 4: 64x2, 2x10 and 64x10, 10x2, 2x10.
HEADS = {"e2": (2,), "e10x2": (10, 2)}


def _nothing(match: re.Match) -> dict[str, Any]:
    return {}


@dataclasses.dataclass(frozen=True)
class ModelSpec:
    """What is known of a family of networks beside the function that builds them.

    Attributes:
        names: how its names look, for people.
        pattern: a regular expression that matches the whole of each of its names.
        builder: (input_shape, num_classes, embedding_at, normalization, mean, all by name, and
            what ``arguments`` makes of the name) -> a network with the outputs "embedding" and
            "logits"; or "module:name" below this package, imported on first use.
        arguments: what the name means to the builder; raises InputError where there is no such
            network, without TensorFlow.
        stages: what can be the embedding; the logits always can.
    """

    names: str
    pattern: str
    builder: Callable[..., keras.Model] | str
    arguments: Callable[[re.Match], dict[str, Any]] = _nothing
    stages: tuple[str, ...] = ("features", "logits")

    def resolve(self) -> Callable[..., keras.Model]:
        """Return the builder, importing it where the row only names it."""
        return resolve(self.builder, __package__)


# The rows, the first whose pattern a name fits is taken; ``register`` adds one.
MODELS: list[ModelSpec] = []


def register(spec: ModelSpec) -> ModelSpec:
    """Add a family's row; of two whose patterns match a name, the first is meant.

    Raises:
        ValueError: there is a family of such names already.
    """
    if any(spec.names == other.names or spec.pattern == other.pattern for other in MODELS):
        raise ValueError(f"there are networks {spec.names!r} already")
    MODELS.append(spec)
    return spec


def known_names() -> str:
    """Return how the names of all networks look, for help texts and errors."""
    return ", ".join(spec.names for spec in MODELS)


def look_up(name: str, embedding_at: str = "logits") -> tuple[ModelSpec, dict[str, Any]]:
    """Return the row of a network's name, and what the name means to its builder.

    Raises:
        InputError: no such network, or it has no such stage.
    """
    for spec in MODELS:
        match = re.fullmatch(spec.pattern, name)
        if match:
            break
    else:
        raise InputError(f"unknown model {shown(name)}; known: {known_names()}", "model")
    arguments = spec.arguments(match)
    if embedding_at not in (*spec.stages, "logits"):
        raise InputError(
            f"{shown(embedding_at)} is none of {', '.join(spec.stages)}, which {name} has",
            "embedding_at",
        )
    return spec, arguments


def build(name: str, **options: Any) -> keras.Model:
    """Build a network by its name: resnet20, plain20, resnet20_e2, resnet20_e10x2, lenet, ...

    Args:
        options: ``input_shape``, ``num_classes``, ``embedding_at``, ``normalization``, ``mean``,
            as for ``resnet``.

    Raises:
        InputError: a name, a depth or a stage that does not exist.
    """
    spec, arguments = look_up(name, options.get("embedding_at", "logits"))
    return spec.resolve()(**arguments, **options)


def _depth(match: re.Match) -> int:
    digits = match["depth"]
    if len(digits) > len(str(_DEEPEST)) or int(digits) > _DEEPEST:
        raise InputError(
            f"the depth of {shown(match[0])} is above {_DEEPEST}; take 20, 32, 44, 56 or 110",
            "model",
        )
    depth = int(digits)
    if depth < 8 or (depth - 2) % 6:
        raise InputError(
            f"depth {depth} of {match[0]!r} is not 6n + 2; take 20, 32, 44, 56 or 110", "model"
        )
    return depth


_DEEPEST = 1202  # of the published ones
_DEPTH = "(?P<depth>[1-9][0-9]*)"
_STAGES = ("stem", "stage1", "stage2", "stage3", "features", "logits")
for _row in (
    ModelSpec(
        "resnetD (D = 6n + 2: 20, 32, 44, ...)",
        rf"resnet{_DEPTH}",
        "networks:resnet",
        lambda match: {"depth": _depth(match)},
        _STAGES,
    ),
    ModelSpec(
        "resnetD_e2, resnetD_e10x2",
        rf"resnet{_DEPTH}_(?P<head>{'|'.join(HEADS)})",
        "networks:resnet",
        lambda match: {"depth": _depth(match), "head": HEADS[match["head"]]},
        (*_STAGES, "bottleneck"),
    ),
    ModelSpec(
        "plainD",
        rf"plain{_DEPTH}",
        "networks:resnet",
        lambda match: {"depth": _depth(match), "shortcut": False},
        _STAGES,
    ),
    ModelSpec(
        "lenet", "lenet", "networks:lenet", stages=("stage1", "stage2", "features", "logits")
    ),
):
    register(_row)
