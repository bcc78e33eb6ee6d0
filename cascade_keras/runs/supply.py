"""Where a run's cascade images come from: banks that were crafted before, or the step itself."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence

from cascade_keras import cascade, data
from cascade_keras.bank import Bank, BankPartners, default_path, identity
from cascade_keras.data.batching import Partners
from cascade_keras.errors import InputError, about
from cascade_keras.files import named_twice
from cascade_keras.progress import show_progress
from cascade_keras.recorded import CascadeRecord, SourceRecord
from cascade_keras.runs.settings import TrainingSettings, cascade_images
from cascade_keras.sources import Source

ATTACK = "iter_fgsm"  # the paper's


@dataclasses.dataclass(frozen=True)
class Supply:
    """The cascade images of one run, ready to be trained with.

    Attributes:
        sources: the networks that they are made by.
        partners: what gives the images of a batch their partners from the banks; None where they
            are crafted within the step.
        bank_examples: how many images each bank has; empty without banks.
    """

    sources: tuple[Source, ...]
    partners: Partners | None = None
    bank_examples: tuple[int, ...] = ()

    @property
    def online(self) -> tuple[Source, ...]:
        """The sources whose images are crafted within the step."""
        return () if self.partners else self.sources

    def record(self) -> CascadeRecord:
        """Return what config.json keeps of it."""
        found = record_sources(self.sources)
        if not self.partners:
            return CascadeRecord(mode="online", sources=found)
        return CascadeRecord(mode="bank", sources=found, bank_examples=list(self.bank_examples))


def record_sources(sources: Sequence[Source]) -> list[SourceRecord]:
    """Return what a run's config.json keeps of its sources."""
    return [
        SourceRecord(name=source.name, path=str(source), weights_hash=source.weights_hash)
        for source in sources
    ]


def prepare(
    sources: Sequence[Source],
    settings: TrainingSettings,
    dataset: data.Dataset,
    before: CascadeRecord | None = None,
    say: Callable[[str], None] = print,
) -> Supply:
    """Choose between banks and crafting within the step, and have the banks ready.

    Args:
        sources: one or more networks.
        settings: resolved.
        dataset: whose training images are attacked.
        before: what the run's config.json says of its cascade if the run goes on, which it does in
            the same way.
        say: told what was chosen and which banks there are.

    Raises:
        InputError: a bank that is there is another one or damaged, or there is no room.
    """
    banks = _Banks(sources, settings, dataset, before and before.bank_examples)
    mode = before.mode if before else _choose(banks, settings, say)
    if mode == "online":
        return Supply(tuple(sources))
    banks.complete(say)
    return Supply(tuple(sources), banks.partners(), banks.counts)


def _choose(banks: _Banks, settings: TrainingSettings, say: Callable[[str], None]) -> str:
    """Return the mode that was asked for, or the one with fewer gradients still to be taken."""
    each = cascade.online_gradients(settings.max_epsilon, settings.epsilon_sampling)
    online = round(settings.steps * cascade_images(settings) * each)
    missing = banks.missing_images()
    banked = missing * cascade.bank_gradients(settings.max_epsilon)
    mode, why = settings.cascade_mode, "as asked for"
    if mode == "auto" and settings.jit_compile == "on":
        mode, why = "bank", "as XLA compiles the step"
    elif mode == "auto":
        mode, why = ("bank" if banked <= online else "online"), "the cheaper way"
    say(
        f"cascade images: {mode}, {why}; online {online:,} gradients over {settings.steps:,} "
        f"steps, bank {banked:,} for {missing:,} images not yet there"
    )
    return mode


class _Banks:
    """One bank a source.

    Args:
        sources, settings, dataset: as for ``prepare``.
        examples: how many images each bank has where the run began with them.
    """

    def __init__(
        self,
        sources: Sequence[Source],
        settings: TrainingSettings,
        dataset: data.Dataset,
        examples: Sequence[int] | None,
    ):
        count, most = settings.bank_examples, len(dataset.train[1])
        if count and count > most:
            raise InputError(
                f"{dataset.name} has {most} training images, got {count}", "bank_examples"
            )
        self.sources = sources
        self.settings = settings
        self.dataset = dataset
        # How many images each bank must have, where that is settled.
        self.examples = list(examples or [count] * len(sources))
        with about("cascade_bank"):
            paths = settings.cascade_bank or [default_path(source.name) for source in sources]
        self.banks = [Bank(path) for path in paths]

    @property
    def counts(self) -> tuple[int, ...]:
        """How many images each bank has, once it is there."""
        return tuple(bank.record["examples"] for bank in self.banks)

    def missing_images(self) -> int:
        """Return how many images the banks still have to be given; all where one is of no use."""
        missing = 0
        for bank, source, examples in self._each():
            try:
                bank.load()
                bank.check(self._wanted(source, examples), self.dataset.train[1])
            except InputError:
                missing += examples or len(self.dataset.train[1])
            else:
                missing += bank.record["examples"] - bank.complete_images
        return missing

    def complete(self, say: Callable[[str], None]) -> None:
        """Craft what the banks lack, after all of them were checked.

        Raises:
            InputError: a bank is another one or damaged, or there is no room.
        """
        with about("cascade_bank"):
            shared = named_twice([bank.path for bank in self.banks])
            if shared:
                raise InputError(f"two sources would share {shared}; name a bank for each")
            for bank, source, examples in self._each():
                if bank.exists:
                    bank.load()
                    bank.check(self._wanted(source, examples), self.dataset.train[1])
            for bank, source, examples in self._each():
                self._fill(bank, source, examples)
                say(
                    f"{bank.path}: {ATTACK} images of the first {bank.record['examples']:,} of "
                    f"{len(self.dataset.train[1]):,} training images by {source.name}"
                )

    def partners(self) -> BankPartners:
        """Return what gives the last of the attacked images of a batch their partners."""
        k = self.settings.adversarial_batch_size
        return BankPartners(
            self.banks,
            range(k - cascade_images(self.settings), k),
            seed=self.settings.seed,
            max_epsilon=self.settings.max_epsilon,
            sampling=self.settings.epsilon_sampling,
        )

    def _each(self):
        return zip(self.banks, self.sources, self.examples, strict=True)

    def _wanted(self, source: Source, examples: int | None) -> dict:
        wanted = identity(
            source_hash=source.weights_hash,
            dataset_hash=self.dataset.fingerprint,
            split="train",
            crop=self.settings.crop,
            attack=ATTACK,
            epsilons=cascade.bank_epsilons(self.settings.max_epsilon),
            examples=examples,
        )
        if examples is None:
            # A bank that was crafted beforehand may hold as many images as its maker chose.
            del wanted["examples"]
        return wanted

    def _fill(self, bank: Bank, source: Source, examples: int | None) -> None:
        if bank.exists and bank.complete:
            return
        images, labels = self.dataset.train
        count = bank.record["examples"] if bank.exists else examples or len(images)
        with show_progress(f"crafting {bank.path}", count) as progress:
            bank.craft(
                {**self._wanted(source, examples), "examples": count},
                source.logits,
                data.centre_crop(images[:count], self.settings.crop),
                labels[:count],
                source_name=source.name,
                dataset_name=self.dataset.name,
                progress=progress,
            )
