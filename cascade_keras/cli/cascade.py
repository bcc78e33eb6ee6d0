"""What programs do about sources: load them, choose bank or online, have the banks ready."""

from __future__ import annotations

import pathlib
from collections.abc import Sequence

from cascade_keras.data.specs import DatasetSpec
from cascade_keras.errors import InputError
from cascade_keras.progress import show_progress
from cascade_keras.provenance import locate


def default_bank(name: str, split: str = "train", attack: str = "iter_fgsm") -> str:
    """Return where the bank of a source of this name lies when nobody says where."""
    special = "" if (split, attack) == ("train", "iter_fgsm") else f"-{split}-{attack}"
    return f"banks/{name}{special}"


def recorded_dataset(networks: Sequence[tuple[str, str]]) -> str | None:
    """Return the dataset that the first network learned of which that is recorded.

    Args:
        networks: the flag that names it and the path of each.

    Raises:
        InputError: one of the networks is not there.
    """
    for flag, path in networks:
        try:
            name = locate(path).provenance.get("dataset", {}).get("name")
        except InputError as error:
            raise InputError(f"--{flag}: {error}") from error
        if name:
            return name
    return None


def load_sources(flag: str, paths: Sequence[str], image_shape: Sequence[int], preset: DatasetSpec):
    """Load the networks that a flag names and check that they fit the dataset.

    Args:
        flag: for the error message.
        paths: of the networks.
        image_shape: of the images they will be given, (H, W, C).

    Returns:
        A list of ``sources.Source``.

    Raises:
        InputError: one cannot be used, or is there twice.
    """
    from cascade_keras.sources import load_source

    found = {}
    for path in paths:
        try:
            source = load_source(path, image_shape, preset.num_classes)
        except InputError as error:
            raise InputError(f"--{flag}: {error}") from error
        twin = found.setdefault(source.weights_hash, source)
        if twin is not source:
            raise InputError(
                f"--{flag}: {twin.path} and {source.path} are the same network; name it once"
            )
    return list(found.values())


def record_sources(sources: Sequence) -> list[dict]:
    """Return what a run's config.json keeps of its sources."""
    return [
        {"name": source.name, "path": str(source.path), "weights_hash": source.weights_hash}
        for source in sources
    ]


def check_unchanged(flag: str, sources: Sequence, recorded: list[dict], run) -> None:
    """Refuse sources that are not those with which a run was started.

    Raises:
        InputError: saying which.
    """
    for source, before in zip(sources, recorded, strict=False):
        if source.weights_hash != before["weights_hash"]:
            raise InputError(
                f"--{flag}: {source.path} is no longer the network that {run.path} was started "
                "with; restore it, or use another --name"
            )


class Cascade:
    """The cascade images of one run: whether they come from banks, and those banks.

    Args:
        sources: ``sources.Source``s.
        chosen: the run's flags.
        dataset: the ``data.Dataset``.
        before: what the run's config.json says of its cascade if the run goes on.

    Attributes:
        partners: what gives the images of a batch their partners from the banks, once they are
            ready; None with online crafting.
    """

    def __init__(self, sources: Sequence, chosen: dict, dataset, before: dict | None):
        from cascade_keras import bank, cascade

        self.sources = sources
        self.chosen = chosen
        self.dataset = dataset
        self.before = before
        self.partners = None
        # How many images each bank must have, where that is settled.
        self.examples = [chosen["bank_examples"]] * len(sources)
        if before and before["mode"] == "bank":
            self.examples = before["bank_examples"]
        self.epsilons = cascade.bank_epsilons(chosen["max_epsilon"])
        paths = chosen["cascade_bank"] or [default_bank(source.name) for source in sources]
        self.banks = [bank.Bank(path) for path in paths]
        count, most = chosen["bank_examples"], len(dataset.train[1])
        if count and count > most:
            raise InputError(
                f"--bank_examples: {dataset.name} has {most} training images, got {count}"
            )

    def ready(self) -> dict:
        """Choose the mode, have the banks ready, and return what config.json keeps of it all.

        Raises:
            InputError: a bank that is there is another one or damaged, or there is no room.
        """
        mode = self.before["mode"] if self.before else self._choose()
        record = {"mode": mode, "sources": record_sources(self.sources)}
        if mode == "bank":
            shared = named_twice([bank.path for bank in self.banks])
            if shared:
                raise InputError(
                    f"--cascade_bank: two sources would share {shared}; name a bank for each"
                )
            for number, bank in enumerate(self.banks):
                self._check_bank(number, bank)
            for number, bank in enumerate(self.banks):
                self._fill_bank(number, bank)
            self.partners = self._partners()
            record["bank_examples"] = [bank.record["examples"] for bank in self.banks]
        return record

    @property
    def images_per_step(self) -> int:
        """c, the cascade images of a batch: half of the adversarial ones."""
        return self.chosen["adversarial_batch_size"] // 2

    def _choose(self) -> str:
        """Return the mode that was asked for, or the one with fewer gradients still to be taken."""
        from cascade_keras import cascade

        max_epsilon, steps = self.chosen["max_epsilon"], self.chosen["steps"]
        each = cascade.online_gradients(max_epsilon, self.chosen["epsilon_sampling"])
        online = round(steps * self.images_per_step * each)
        missing = sum(map(self._missing_images, range(len(self.banks))))
        banked = missing * cascade.bank_gradients(max_epsilon)
        mode, why = self.chosen["cascade_mode"], "as asked for"
        if mode == "auto":
            mode, why = ("bank" if banked <= online else "online"), "the cheaper way"
        print(
            f"cascade images: {mode}, {why}; online {online:,} gradients over {steps:,} steps, "
            f"bank {banked:,} for {missing:,} images not yet there",
            flush=True,
        )
        return mode

    def _missing_images(self, number: int) -> int:
        """Return how many images a bank still has to be given; all where it cannot be used."""
        bank = self.banks[number]
        try:
            bank.load()
            bank.check(self._wanted(number))
        except InputError:
            return self.examples[number] or len(self.dataset.train[1])
        return bank.record["examples"] - bank.complete_images

    def _wanted(self, number: int) -> dict:
        from cascade_keras.bank import identity

        wanted = identity(
            source_hash=self.sources[number].weights_hash,
            dataset_hash=self.dataset.fingerprint,
            split="train",
            crop=self.chosen["crop"],
            attack="iter_fgsm",
            epsilons=self.epsilons,
            examples=self.examples[number],
        )
        if self.examples[number] is None:
            # A bank that was crafted beforehand may hold as many images as its maker chose.
            del wanted["examples"]
        return wanted

    def _check_bank(self, number: int, bank) -> None:
        try:
            if bank.exists:
                bank.load()
                bank.check(self._wanted(number))
        except InputError as error:
            raise InputError(f"--cascade_bank: {error}") from error

    def _fill_bank(self, number: int, bank) -> None:
        """Craft what the bank lacks."""
        from cascade_keras import data

        source, (images, labels) = self.sources[number], self.dataset.train
        count = self.examples[number] or len(images)
        if bank.exists:
            count = bank.record["examples"]
        if not (bank.exists and bank.complete):
            with show_progress(f"crafting {bank.path}", count) as progress:
                try:
                    bank.craft(
                        {**self._wanted(number), "examples": count},
                        source.logits,
                        data.centre_crop(images[:count], self.chosen["crop"]),
                        labels[:count],
                        source_name=source.name,
                        dataset_name=self.dataset.name,
                        progress=progress,
                    )
                except InputError as error:
                    raise InputError(f"--cascade_bank: {error}") from error
        print(
            f"{bank.path}: iter_fgsm images of the first {count:,} of {len(images):,} training "
            f"images by {source.name}",
            flush=True,
        )

    def _partners(self):
        from cascade_keras.bank import BankPartners

        k = self.chosen["adversarial_batch_size"]
        return BankPartners(
            self.banks,
            range(k - self.images_per_step, k),
            seed=self.chosen["seed"],
            max_epsilon=self.chosen["max_epsilon"],
            sampling=self.chosen["epsilon_sampling"],
        )


def named_twice(paths: Sequence) -> str | None:
    """Return the first path that is there twice, None where each is there once."""
    seen = set()
    for path in paths:
        place = pathlib.Path(path).expanduser().resolve()
        if place in seen:
            return path
        seen.add(place)
    return None
