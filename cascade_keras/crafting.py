"""Crafting a bank: a network's adversarial images of a whole split, kept on disk.

    from cascade_keras import Crafting, CraftSettings

    bank = Crafting(CraftSettings(source="saved/r20p", attack="iter_fgsm")).run()
    bank.images[15]  # (N, H, W, C) uint8, at bank.record["epsilons"][15]

Several processes craft one bank where each is told which ``worker`` it is, such as "0/4".
``bin/craft`` is this and nothing else. TensorFlow is imported by what needs it, not before.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from typing import TYPE_CHECKING

from cascade_keras.attacks.specs import ATTACKS, why_not_measured
from cascade_keras.data.settings import DataSettings
from cascade_keras.data.specs import Crop, DatasetSpec, crop_of, sides_of
from cascade_keras.errors import InputError, about
from cascade_keras.learned import dataset_of
from cascade_keras.settings import (
    POSITIVE,
    SEED,
    NetworkSettings,
    Rule,
    batch_size_setting,
    check_apart,
    items_of,
    number,
    setting,
    trust_setting,
)
from cascade_keras.workers import Worker, of_text, worker_setting

if TYPE_CHECKING:
    from cascade_keras.bank import Bank
    from cascade_keras.data import Dataset
    from cascade_keras.sources import Network, Source

_WHOLE = Rule(
    lambda epsilons: bool(epsilons) and all(1 <= epsilon <= 255 for epsilon in epsilons),
    "whole numbers in 1..255, a range such as 1..16 or a list such as 2,4,8",
)


def bankable() -> list[str]:
    """Return the attacks whose images a bank can hold: whole pixel values."""
    return [name for name, spec in ATTACKS.items() if spec.whole_pixels]


def parse_epsilons(text: str) -> tuple[int, ...]:
    """Return the epsilons that 1..16 or 2,4,8 means.

    Raises:
        ValueError: it means none.
        InputError: an item is empty.
    """
    first, dots, last = text.partition("..")
    if not dots:
        return tuple(number(int, epsilon) for epsilon in items_of(text))
    least, most = number(int, first), number(int, last)
    # A long range would fill the memory before it is refused.
    if not 1 <= least <= most <= 255:
        raise ValueError(text)
    return tuple(range(least, most + 1))


@dataclasses.dataclass(frozen=True)
class CraftSettings(NetworkSettings, DataSettings):
    """Which images are crafted, and where they are kept: the flags of ``bin/craft``."""

    source: str | None = setting(None, "The network to attack.", path=True)
    trust_source: bool = trust_setting()
    split: str = setting("train", "Of the dataset.", choices=("train", "test"))
    attack: str = setting(
        "iter_fgsm", "How the images are made.", choices=bankable, why=why_not_measured
    )
    epsilons: tuple[int, ...] | None = setting(
        None,
        "Whole pixel values: 1..16, or 2,4,8; default: 1 to the dataset's largest in training.",
        _WHOLE,
        parse=parse_epsilons,
    )
    examples: int | None = setting(None, "First images of the split; default: all.", POSITIVE)
    output: str | None = setting(
        None,
        "Directory; default: banks/SOURCE, and banks/SOURCE-SPLIT-ATTACK for others than "
        "iter_fgsm images of the training split.",
        path=True,
    )
    batch_size: int | None = batch_size_setting(256, "Images a shard")
    seed: int = setting(0, "Of the attacks that draw random numbers.", SEED)
    worker: str | None = worker_setting("shards")

    def __post_init__(self) -> None:
        super().__post_init__()
        check_apart("output", self.output, source=self.source)


class Crafting:
    """A bank that is crafted, or gone on with where it was begun.

    Args:
        settings: what is crafted.
        source: a network in place of ``settings.source``: all that ``sources.load_source`` takes.
        dataset: one in memory, in place of ``settings.dataset``.
        say: told in one line what a person might want to know.

    Raises:
        InputError: naming the setting: a network that is not there, or a dataset that nobody names.
    """

    def __init__(
        self,
        settings: CraftSettings,
        *,
        source: Network | None = None,
        dataset: Dataset | None = None,
        say: Callable[[str], None] = print,
    ):
        self.settings = settings
        self.say = say
        self._network = settings.source if source is None else source
        if self._network is None:
            raise InputError("must be given, the network to attack", "source")
        self._given = dataset
        self.spec = self._spec()

    def _spec(self) -> DatasetSpec:
        given = self._given.preset if self._given else None
        networks = {"source": [self._network]}
        return dataset_of(self.settings, networks, given=given, trust=self.settings.trust_source)

    @functools.cached_property
    def source(self) -> Source:
        """The network to attack, loaded and checked on first use."""
        from cascade_keras.evaluation.networks import load_networks
        from cascade_keras.sources import load_source, made_for

        settings, network = self.settings, self._network
        with about("source"):
            shape = self.spec.network_shape((None, None, None))
            source = load_source(
                network,
                *made_for(network, shape, self.spec.num_classes),
                trust=settings.trust_source,
                **settings.told(),
            )
        crop = self._crop_of(source)
        # Training sees no other sizes, so no other bank is of use.
        crop = crop if self.spec.may_see(crop) else self.spec.crop
        shape = (*sides_of(crop), self.spec.image_shape[-1])
        return load_networks([source], self.spec, setting="source", shape=shape).sources[0]

    @functools.cached_property
    def dataset(self) -> Dataset:
        """The dataset, loaded on first use."""
        from cascade_keras import data

        settings = self.settings
        return self._given or data.load(self.spec, settings.data_dir, cache_dir=settings.cache_dir)

    def _crop_of(self, source: Source) -> Crop:
        sides = tuple(source.input_shape[:2])
        return crop_of(sides) if len(sides) == 2 and all(sides) else self.spec.crop

    @property
    def crop(self) -> Crop:
        """The centre of an image that the network is given: a square's side or (height, width)."""
        return self._crop_of(self.source)

    @property
    def examples(self) -> int:
        """How many images the bank holds, from the first of the split."""
        count = len(getattr(self.dataset, self.settings.split)[1])
        examples = self.settings.examples or count
        if examples > count:
            raise InputError(
                f"the {self.settings.split} split of {self.dataset.name} has {count} images, "
                f"got {examples}",
                "examples",
            )
        return examples

    @functools.cached_property
    def batch_size(self) -> int:
        """How many images a shard has: those of a bank that is gone on with, where nobody says."""
        if self.settings.batch_size is not None:
            return self.settings.batch_size
        from cascade_keras.data import NetworkImages
        from cascade_keras.speed import BatchSize, fastest_batch_size, settled

        def measure() -> BatchSize:
            stored, labels = getattr(self.dataset, self.settings.split)
            images = NetworkImages(stored, self.crop)
            return fastest_batch_size(self.source.logits, images, labels, self.examples)

        begun = self.bank.load().record["shard_size"] if self.bank.exists else None
        size, sentence = settled(begun, self.bank.path, self.worker, measure)
        self.say(sentence)
        return size

    @property
    def worker(self) -> Worker | None:
        """Which of several processes this is that craft one bank; None where it is the only one."""
        return of_text(self.settings.worker)

    @property
    def share(self) -> int:
        """How many images this process crafts, with those that it finds done."""
        worker, size, examples = self.worker, self.batch_size, self.examples
        if worker is None:
            return examples
        shards = range(worker.index, -(-examples // size), worker.count)
        return sum(min(size, examples - shard * size) for shard in shards)

    @property
    def bank(self) -> Bank:
        """The bank, which need not be there yet."""
        from cascade_keras import bank

        chosen = self.settings
        with about("output"):
            return bank.Bank(
                chosen.output or bank.default_path(self.source.name, chosen.split, chosen.attack)
            )

    def run(self, progress: Callable[[int], None] = lambda done: None) -> Bank:
        """Craft the bank, or what is missing of it.

        Args:
            progress: called with the number of images that are done, first with those found done.

        Raises:
            InputError: naming the setting: a network, data or a place that cannot be used, or
                another bank is there.
            OSError: writing failed.
        """
        from cascade_keras import cascade, data
        from cascade_keras.bank import identity

        chosen, examples = self.settings, self.examples
        images, labels = getattr(self.dataset, chosen.split)
        wanted = identity(
            source_hash=self.source.weights_hash,
            dataset_hash=self.dataset.fingerprint,
            split=chosen.split,
            crop=self.crop,
            attack=chosen.attack,
            epsilons=chosen.epsilons or cascade.bank_epsilons(self.spec.max_epsilon),
            examples=examples,
            seed=chosen.seed,
        )
        bank = self.bank
        with about("output"):
            bank.craft(
                wanted,
                self.source.logits,
                data.centre_crop(images[:examples], self.crop),
                labels[:examples],
                source_name=self.source.name,
                dataset_name=self.dataset.name,
                shard_size=self.batch_size,
                worker=self.worker,
                progress=progress,
            )
        return bank
