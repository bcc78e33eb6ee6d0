"""Plots of networks that are functions, and of arrays alone."""

import pathlib

import numpy as np

from cascade_keras.attacks.specs import Attack
from cascade_keras.data.specs import DATASETS
from cascade_keras.figures import FIGURES, FigureSettings
from cascade_keras.figures.style import styled
from cascade_keras.sources import Source


def source(function, name="network", **recipe):
    """Make a network of a function that returns logits, or logits and embeddings."""

    def outputs(images):
        found = function(images)
        return found if isinstance(found, dict) else {"logits": found, "embedding": found}

    provenance = {"recipe": recipe} if recipe else {}
    return Source(name, pathlib.Path(name), (None, None, None), name, provenance, outputs)


def plot(figure, networks, epsilons, attacks=(), *, images=(), labels=(), dataset=None, **options):
    """Make a plot; networks are functions, names or sources, attacks are names or ``Attack``s."""
    fields = {"names", "indices", "batch_size"} & options.keys()
    own = {name: options.pop(name) for name in fields}
    networks = [n if isinstance(n, Source) else source(n, str(n)) for n in networks]
    epsilons = tuple(map(float, epsilons))
    return FIGURES[figure].resolve()(
        settings=FigureSettings(figure=figure, **options),
        dataset=dataset or DATASETS["digits"],
        networks=networks,
        images=np.asarray(images),
        labels=np.asarray(labels),
        epsilons=epsilons,
        attacks=[a if isinstance(a, Attack) else Attack(a, epsilons) for a in attacks],
        **{"names": [n.name for n in networks], "indices": np.arange(len(images))} | own,
    )


def drawn(figure, networks, epsilons, arrays, attacks=(), **options):
    """Return the picture of arrays."""
    with styled():
        return plot(figure, networks, epsilons, attacks, **options).draw(arrays)
