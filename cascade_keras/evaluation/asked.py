"""What is measured, whoever asks: a program's settings, or one call in Python; needs no TensorFlow.

An attack goes by its *label*: its name, or where the same attack is asked for again with other
options, its name and these options, such as ``pgd (steps 100)``.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from cascade_keras.attacks.specs import ATTACKS, MINIMAL, Attack, Grid


@dataclasses.dataclass(frozen=True)
class Given:
    """The images that networks are measured with, but for the images.

    Attributes:
        name: of the dataset.
        fingerprint: SHA-256 of it.
        split: "train" or "test".
        labels: true classes of the whole split, (N,).
        num_classes: of the labels.
        grid: what the published search of Carlini & Wagner goes through.
        class_names: one for each class, empty where there are none.
    """

    name: str
    fingerprint: str
    split: str
    labels: Any
    num_classes: int
    grid: Grid
    class_names: tuple[str, ...] = ()

    def class_name(self, number: int) -> str:
        """Return what a class is called, its number where it has no name."""
        return self.class_names[number] if self.class_names else str(number)


@dataclasses.dataclass(frozen=True)
class Asked:
    """What is measured.

    Attributes:
        attacks: by their labels, those whose images are made.
        minimal: by its label, the search for minimal epsilons, which are counted above its
            ``epsilons``; may be empty.
        epsilons: in 0..255 units, ascending; the diagnosis runs its own attacks at these.
        diagnosing: options of attacks that the diagnosis may run, by name; others' are their rows'.
        num_images: the first ones, at most as many as there are.
        diagnosis_images: how many of them the diagnosis looks at.
        batch_size: images at a time.
        seed: of the attacks that draw random numbers, and of ``inference_noise``.
        inference_noise: random signs of so many pixel values are added before every network.
        told: what was said of the networks that they do not say themselves, see ``load_source``;
            as JSON has it.
    """

    attacks: Mapping[str, Attack]
    minimal: Mapping[str, Attack]
    epsilons: tuple[float, ...]
    diagnosing: Mapping[str, Mapping[str, Any]] = dataclasses.field(default_factory=dict)
    num_images: int = 1000
    diagnosis_images: int = 200
    batch_size: int = 250
    seed: int = 0
    inference_noise: float = 0.0
    told: Mapping[str, Any] = dataclasses.field(default_factory=dict)

    @property
    def every(self) -> dict[str, Attack]:
        """All attacks that were asked for."""
        return {**self.attacks, **self.minimal}

    def diagnostic(self, name: str, epsilons: Sequence[float] | None = None) -> Attack:
        """Return an attack as the diagnosis runs it, at all epsilons when none are given."""
        options = self.diagnosing.get(name, {})
        return Attack(name, self.epsilons if epsilons is None else epsilons, options)


def labelled(attacks: Iterable[Attack]) -> dict[str, Attack]:
    """Return attacks by their labels.

    The only attack of its name goes by it, and so does the one with its row's options; of others
    the label also has the options that differ from the row's.
    """
    attacks = list(attacks)
    alone = {a.name for a in attacks if sum(b.name == a.name for b in attacks) == 1}
    found = {}
    for attack in attacks:
        usual = {} if attack.name not in ATTACKS else ATTACKS[attack.name].options
        other = {key: value for key, value in attack.options.items() if value != usual.get(key)}
        text = ", ".join(f"{name} {value}" for name, value in other.items())
        found[attack.name if attack.name in alone or not text else f"{attack.name} ({text})"] = (
            attack
        )
    return found


def name_of(label: str) -> str:
    """Return the name of the attack that a label stands for."""
    return label if label in ATTACKS else label.partition(" (")[0]


def gives_minimal(attack: Attack) -> bool:
    """Whether an attack looks for the smallest epsilon instead of images at given ones."""
    return attack.name in ATTACKS and ATTACKS[attack.name].kind == MINIMAL
