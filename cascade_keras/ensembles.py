"""Several networks as one source of adversarial images.

Images that fool several networks at once fool others that nobody has looked into more often than
those of one network do (Liu et al., 2017; Dong et al., 2018). An attack ascends either

    "logits"    the objective of the mean of the logits, or
    "losses"    the mean of the members' own objectives.

Either way the ensemble's own class of an image is that of the mean of the logits.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Iterable, Sequence

import numpy as np
import tensorflow as tf

from cascade_keras.attacks.objectives import full_precision, with_members
from cascade_keras.errors import InputError, shown
from cascade_keras.files import is_path
from cascade_keras.settings import ENSEMBLES
from cascade_keras.sources import Network, Outputs, Source, load_source


@dataclasses.dataclass(frozen=True)
class Ensemble(Source):
    """Networks that are attacked together; see ``ensemble``.

    Attributes:
        members: the networks.
        mean: of their "logits" or their "losses".
    """

    members: tuple[Source, ...] = ()
    mean: str = ENSEMBLES[0]

    def __str__(self) -> str:
        return "+".join(map(str, self.members))

    def check(self, image_shape: Sequence[int], num_classes: int) -> None:
        """Refuse members of which one is no source, see ``Source.check``."""
        for member in self.members:
            member.check(image_shape, num_classes)
        self._check_others(image_shape)

    def check_outputs(self, image_shape: Sequence[int], num_classes: int) -> None:
        """Refuse members of which one does not fit, see ``Source.check_outputs``."""
        for member in self.members:
            member.check_outputs(image_shape, num_classes)
        self._check_others(image_shape)

    def _check_others(self, image_shape: Sequence[int]) -> None:
        """Refuse a network that is there twice: it would count twice in every mean."""
        probed = [member.on_probes(image_shape) for member in self.members]
        for number, member in enumerate(self.members):
            for other in range(number):
                if same_network(member, probed[number], self.members[other], probed[other]):
                    raise InputError(
                        f"{self.members[other]} and {member} are the same network; name each "
                        "member of an ensemble once"
                    )


def same_network(one: Source, probed: np.ndarray, other: Source, their: np.ndarray) -> bool:
    """Whether two networks have the same weights, and the same logits of a few random images.

    Whoever saved them: a SavedModel by others has a hash of its files, and weights all the same.
    """
    same = one.weights_hash == other.weights_hash
    same |= one.weights is not None and one.weights == other.weights
    return same and np.allclose(probed, their, rtol=1e-3, atol=1e-3)


def check_mean(mean: str) -> None:
    """Refuse what is none of ``ENSEMBLES``."""
    if mean not in ENSEMBLES:
        raise InputError(f"must be one of {', '.join(ENSEMBLES)}, got {shown(mean)}", "ensemble")


def ensemble(
    networks: Sequence[Network], mean: str = ENSEMBLES[0], *, name: str | None = None
) -> Ensemble:
    """Return networks as one source, whatever takes a ``Source`` takes it.

    Args:
        networks: two or more of what ``load_source`` takes, or returns.
        mean: what an attack ascends: the objective of the mean of the "logits", or the mean of the
            "losses", which is that of the attack's own objective for each member.
        name: of the whole; the members' names joined by + where None.

    Returns:
        A function of images to the mean of the logits, which is its embedding too.

    Raises:
        InputError: no list or fewer than two networks, an unknown mean, or members that take
            images of different shapes; where it is called, members of different classes.

    Example::

        surrogate = ensemble(["saved/a", "saved/b", "saved/c"], "losses")
        images = craft(surrogate, x, y, attacks.MIFGSM(), 8)
    """
    check_mean(mean)
    if is_path(networks) or not isinstance(networks, Iterable):
        raise InputError(
            f"an ensemble is made of a list of networks, got {shown(networks)}", "networks"
        )
    members = tuple(map(load_source, networks))
    if len(members) < 2:
        raise InputError(f"an ensemble has two networks or more, got {len(members)}")
    shapes = {tuple(member.input_shape): member for member in members}
    fixed = [shape for shape in shapes if None not in shape]
    if len(fixed) > 1:
        one, other = fixed[:2]
        raise InputError(
            f"{shapes[one]} takes images of shape {one}, {shapes[other]} of shape {other}; an "
            "ensemble takes one"
        )

    def function(images: tf.Tensor) -> Outputs:
        each = [full_precision(member.logits(images)) for member in members]
        for member, own in zip(members, each, strict=True):
            if own.shape[-1] != each[0].shape[-1]:
                raise InputError(
                    f"{members[0]} tells {each[0].shape[-1]} classes apart, {member} "
                    f"{own.shape[-1]}; an ensemble takes networks of the same classes"
                )
        logits = tf.add_n(each) / len(each)
        if mean == "losses":
            logits = with_members(logits, each)
        return {"logits": logits, "embedding": logits}

    # In whatever order they are named, they are one network.
    parts = [mean, *sorted(member.weights_hash for member in members)]
    limits = [member.time_limit for member in members if member.time_limit is not None]
    return Ensemble(
        name or "+".join(member.name for member in members),
        None,
        fixed[0] if fixed else members[0].input_shape,
        hashlib.sha256(json.dumps(parts).encode()).hexdigest(),
        {},
        function,
        all(member.trust for member in members),
        sum(limits) or None,
        members=members,
        mean=mean,
    )
