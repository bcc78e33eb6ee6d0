"""A preset as a Keras model."""

from __future__ import annotations

import os
import typing

from cascade_keras import presets
from cascade_keras.files import expand
from cascade_keras.presets import names  # noqa: F401  offered as zoo.names
from cascade_keras.provenance import locate

if typing.TYPE_CHECKING:
    import keras


def load(name: str | os.PathLike) -> keras.Model:
    """Load a trained network of the zoo.

    Args:
        name: such as "mnist-resnet20-pivot", with or without zoo: in front, see ``zoo.names``; or
            the folder of a preset that ``bin/zoo --output`` has made.

    Returns:
        A functional Keras model from images (batch, H, W, C) in [0, 1] to {"embedding", "logits"},
        its weights the trained ones.

    Raises:
        InputError: there is none of this name, or its files are damaged.

    Example::

        network = ck.load("mnist-resnet20-pivot")
        ck.evaluate(network, x_test, y_test, attacks=["pgd"], epsilons=76.5)
    """
    own = presets.is_named(name) or presets.folder_at(name) is not None
    location = locate(name if own or expand(name).exists() else f"{presets.PREFIX}{name}")
    from cascade_keras import model_files

    return model_files.load_network(location.path)
