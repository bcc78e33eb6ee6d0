"""The one loader of networks, with one meaning of "the same network".

Two networks are the same if their weights are and if they give the same logits for a few random
images: equal weights alone are not enough, as a layer without weights, such as a scale, makes
another network of them.
"""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType
from typing import Any

import numpy as np

from cascade_keras.data.specs import DatasetSpec
from cascade_keras.ensembles import Ensemble, ensemble, same_network
from cascade_keras.errors import InputError, about
from cascade_keras.files import is_path, named_twice
from cascade_keras.provenance import networks_in
from cascade_keras.sources import Network, Source, load_source, made_for


@dataclasses.dataclass(frozen=True)
class Loaded:
    """Networks that were loaded, checked and told apart.

    Attributes:
        names: of the networks, each another one.
        sources: the networks, in the order of ``names``.
        shape: (H, W, C) of the images that all of them are given.
        probed: of each, its logits of a few random images, by which it is known again.
    """

    names: tuple[str, ...]
    sources: tuple[Source, ...]
    shape: tuple[int, ...]
    probed: tuple[np.ndarray, ...] = dataclasses.field(repr=False)

    def name_of(self, source: Source, probed: np.ndarray) -> str | None:
        """Return the name of a network if it is one of these, else None."""
        for name, other, logits in zip(self.names, self.sources, self.probed, strict=True):
            if same_network(source, probed, other, logits):
                return name
        return None

    def __getitem__(self, name: str) -> Source:
        """Return the network of a name."""
        return self.sources[self.names.index(name)]

    def __contains__(self, name: str) -> bool:
        """Return whether there is a network of this name."""
        return name in self.names

    def extended(self, name: str, source: Source, probed: np.ndarray) -> Loaded:
        """Return these networks and one more."""
        return Loaded(
            (*self.names, name), (*self.sources, source), self.shape, (*self.probed, probed)
        )


def load_networks(
    paths: Sequence[Network | Sequence[Network]],
    dataset: DatasetSpec,
    *,
    setting: str,
    shape: Sequence[int] | None = None,
    differentiable: bool = True,
    known: Loaded | None = None,
    keep: bool = True,
    trust: bool = False,
    told: Mapping[str, Any] = MappingProxyType({}),
    ensembles: str | None = None,
) -> Loaded:
    """Load networks, check that each fits the dataset and the others, and give each its name.

    A network is called as its folder, run or file is; the second of a name by its path.

    Args:
        paths: of the networks, or networks in memory: whatever ``sources.load_source`` takes.
        dataset: whose images they are given.
        setting: what names the networks; every error carries it.
        shape: (H, W, C) of the images; None for what the first network takes.
        differentiable: refuse networks that have no gradient with respect to their images.
        known: networks that were loaded for another purpose. One of ``paths`` that is among them
            gets its name and is not loaded twice; the others get other names, and all must take
            images of one shape.
        keep: False lets each network go after it was checked: ``sources`` then only say what it
            is. Those that were given in memory stay.
        trust: as for ``load_source``.
        told: other arguments of ``load_source``, of the networks that it has to load.
        ensembles: what the mean is of in an ensemble, a text a+b or a list in ``paths``, see
            ``ensembles.ensemble``; None where there can be none.

    Raises:
        InputError: a network that is not there or does not fit, or one that is named twice.
    """
    with about(setting):
        paths = [_given(path, told, ensembles is not None) for path in paths]
        twice = named_twice(list(filter(is_path, paths)))
        if twice is not None:
            raise InputError(f"{twice} is named twice; name each network once")
        if known is not None:
            shape = known.shape
        found = Loaded((), (), () if shape is None else tuple(shape), ())
        for path in paths:
            seen = found.shape or dataset.network_shape((None, None, None))
            members = networks_in(path) if ensembles else (path,)
            loaders = [
                _loader(each, made_for(each, seen, dataset.num_classes), trust, told)
                for each in members
            ]
            load = _together(loaders, ensembles) if len(members) > 1 else loaders[0]
            found = _add(found, path, load, dataset, differentiable, known, keep)
    return found


def _given(network, told: Mapping[str, Any], ensembles: bool):
    """Return a network as a path or loaded where it is in memory; an ensemble as a tuple of them.

    Args:
        network: what ``load_networks`` takes.
        told: what ``load_source`` is told.
        ensembles: whether there can be any.
    """
    if ensembles and isinstance(network, list | tuple):
        members = tuple(_given(each, told, False) for each in network)
        if not members:
            raise InputError("an ensemble has two networks or more, got 0")
        return members if members[1:] else members[0]
    known = is_path(network) or isinstance(network, Source)
    return network if known else load_source(network, **told)


def _loader(
    network: Network, size: tuple, trust: bool, told: Mapping[str, Any]
) -> Callable[[], Source]:
    if isinstance(network, Source):
        return lambda: network
    return lambda: load_source(network, *size, trust=trust, **told)


def _together(loaders: Sequence[Callable[[], Source]], mean: str) -> Callable[[], Source]:
    return lambda: ensemble([load() for load in loaders], mean)


def _add(
    found: Loaded,
    path: str | os.PathLike | Source,
    load: Callable[[], Source],
    dataset: DatasetSpec,
    differentiable: bool,
    known: Loaded | None,
    keep: bool,
) -> Loaded:
    """Load and check one more network."""
    source = path if isinstance(path, Source) else load()
    shape = found.shape or dataset.network_shape(source.input_shape)
    others = [*(known.sources if known else ()), *found.sources]
    own = tuple(source.input_shape)
    if others and None not in own and own != shape:
        raise InputError(
            f"{source} takes images of shape {own}, {others[0]} of shape {shape}; use them apart"
        )
    check = source.check if differentiable else source.check_outputs
    check(shape, dataset.num_classes)
    probed = source.on_probes(shape)
    twin = found.name_of(source, probed)
    if twin is not None:
        raise InputError(f"{found[twin]} and {source} are the same network; name it once")
    same = known.name_of(source, probed) if known else None
    found = dataclasses.replace(found, shape=shape)
    if same is not None:
        return found.extended(same, known[same], probed)
    where = source if isinstance(source, Ensemble) else path
    name = _new_name(source, where, [*(known.names if known else ()), *found.names])
    # What is made anew would be another network if it were made again.
    members = getattr(source, "members", (source,))
    stays = keep or source is path or any(member.path is None for member in members)
    return found.extended(name, source if stays else _let_go(source, load), probed)


def _new_name(source: Source, path: str | os.PathLike | Source, taken: Sequence[str]) -> str:
    """Return the network's own name, its path, or its path and a number: the first not taken."""
    where = str(path)
    numbered = (f"{where} ({number})" for number in range(2, len(taken) + 3))
    return next(name for name in (source.name, where, *numbered) if name not in taken)


def _let_go(source: Source, load: Callable[[], Source]) -> Source:
    """Return what is known of a network without the network itself."""
    if isinstance(source, Ensemble):
        # Each is only loaded again with the others.
        members = tuple(_let_go(member, load) for member in source.members)
        source = dataclasses.replace(source, members=members)
    return dataclasses.replace(source, function=_Gone(load))


class _Gone:
    """Stands for a network that was let go: it is to be loaded again."""

    def __init__(self, load: Callable[[], Source]):
        self.load = load

    def __call__(self, images):
        raise RuntimeError("this network was let go; load it again")


def loaded_again(source: Source) -> Source:
    """Return a network that was let go, as it was loaded before."""
    return source.function.load()


def is_loaded(source: Source) -> bool:
    """Whether a network can be called, so was not let go."""
    return not isinstance(source.function, _Gone)
