"""An evaluation as one object: networks, data, attacks -> a resumable report."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from cascade_keras import data
from cascade_keras.attacks.entry import fractions_said
from cascade_keras.attacks.specs import Attack
from cascade_keras.data.datasets import check
from cascade_keras.data.specs import DatasetSpec
from cascade_keras.evaluation.asked import Given
from cascade_keras.evaluation.estimate import Estimate, estimate
from cascade_keras.evaluation.measuring import Measuring, measured_batch_size
from cascade_keras.evaluation.networks import Loaded, load_networks
from cascade_keras.evaluation.report import Report, Seconds, check_places
from cascade_keras.evaluation.settings import EvaluationSettings
from cascade_keras.evaluation.sharing import Parts, Sharing
from cascade_keras.evaluation.stores import ImageStore, file_name
from cascade_keras.evaluation.tasks import batch_of
from cascade_keras.files import expand
from cascade_keras.provenance import package_versions
from cascade_keras.sources import Network
from cascade_keras.speed import settled
from cascade_keras.workers import Crew, of_text


class Evaluation:
    """Measures how networks withstand attacks, and keeps a report that a kill cannot harm.

    Args:
        settings: see ``EvaluationSettings``.
        targets, sources: networks instead of those that the settings name: paths, Keras models,
            whatever ``load_source`` takes or returns; a list among the sources is an ensemble.
        dataset: instead of the one that the settings name.
        preset: its row alone, where ``settings.row`` has looked it up before.

    Attributes:
        settings: with everything filled in that follows from the networks.
        report: its directory; nothing is written before ``run``.
        measuring: the networks, the images and the tasks.
        notes: what can be computed and is likely not what was meant, a sentence each.
        work: how many gradients it takes, about, with those that were taken before.
        seconds: what crafting and classifying took, all runs with this output together.
        worker: which of several processes this is that share the work; None for the only one.
        left: once a worker has run, a sentence of what others have not computed yet; "" where the
            report is written.

    Raises:
        InputError: settings, networks or data that cannot be used.

    Example::

        from cascade_keras import Evaluation, EvaluationSettings

        settings = EvaluationSettings(
            target=["saved/cascade"], attack=["iter_fgsm", "pgd"], epsilon=[8, 16],
            num_images=500, output="reports/cascade",
        )
        found = Evaluation(settings).run()
        for record in found["results"]:
            print(record["attack"], record["epsilon"], record["accuracy"], record["options"])

    The same settings with the same output go on where a run was interrupted. With ``worker`` "0/4",
    "1/4", ... in four processes they share it, and whoever finds all computed writes the report.
    """

    def __init__(
        self,
        settings: EvaluationSettings,
        *,
        targets: Sequence[Network] | None = None,
        sources: Sequence[Network | Sequence[Network]] | None = None,
        dataset: data.Dataset | None = None,
        preset: DatasetSpec | None = None,
    ):
        preset = dataset.preset if dataset else preset
        preset = settings.row(targets, sources, preset)
        self.settings = settings = settings.resolved(targets, sources, preset)
        self.report = Report(settings.output)
        check_places(settings)
        trust, told = settings.trust_source, settings.told()
        shown = load_networks(
            targets or settings.target,
            preset,
            setting="target",
            differentiable=False,
            trust=trust,
            told=told,
        )
        crafting = load_networks(
            sources or settings.source,
            preset,
            setting="source",
            known=shown,
            keep=False,
            trust=trust,
            told=told,
            ensembles=settings.ensemble,
        )
        dataset = dataset or data.load(preset, settings.data_dir, cache_dir=settings.cache_dir)
        images, labels = getattr(dataset, settings.split)
        check(images, labels, preset, f"{dataset.name} ({settings.split})")
        given = Given(
            dataset.name,
            dataset.fingerprint,
            settings.split,
            labels,
            preset.num_classes,
            preset.grid,
            preset.class_names,
        )
        self.worker, self.left = of_text(settings.worker), ""
        seen = data.NetworkImages(images, data.crop_of(shown.shape[:2]))
        noted = []
        if settings.batch_size is None:
            count = min(settings.num_images, len(labels))
            size, sentence = settled(
                self.report.batch_size,
                self.report.path,
                self.worker,
                lambda: measured_batch_size(shown, crafting, seen, labels, count),
            )
            self.settings, noted = settings.replace(batch_size=size), [sentence]
            settings = self.settings
        stores = _Stores(settings, given, shown, crafting)
        self.measuring = Measuring(
            settings.asked(),
            given,
            seen,
            shown,
            crafting,
            stores.keep if settings.images_dir is not None else None,
        )
        self.notes = [*self.measuring.notes, *noted]
        self._sharing = Sharing(self.measuring, self.worker) if self.worker else None
        for store in stores.all:
            store.check()

    @property
    def work(self) -> int:
        """How many gradients it takes, about, with those that were taken before; a worker's own."""
        return self._sharing.work if self._sharing else self.measuring.plan.work

    @property
    def seconds(self) -> Seconds:
        """The ``crafting`` and ``classifying`` seconds that the output's runs took so far."""
        return self.report.seconds()

    def estimate(self) -> Estimate:
        """Return the tasks, their passes and the time by a gradient that is measured now.

        Nothing is written; what was computed before is not counted.
        """
        arrays = self.report.arrays
        return estimate(self.measuring, Parts(arrays, Crew(arrays.path)).view())

    def run(
        self,
        progress: Callable[[int], None] = lambda done: None,
        say: Callable[[str], None] = lambda sentence: None,
    ) -> dict | None:
        """Compute what is missing, write the report, and return what report.json holds.

        Args:
            progress: called with the gradients done of ``work``.
            say: called by a worker with a sentence before it waits for others.

        Returns:
            None where ``left`` says what other workers have not computed yet.

        Raises:
            InputError: the output is in use, or of another evaluation; or a network gives logits
                that are not finite.
        """
        told = {"settings": self.settings.decisive(), "versions": package_versions()}
        config = {**self.measuring.plan.config(), **told}
        with self.report.opened(config, self.worker) as crew:
            parts = Parts(self.report.arrays, crew)
            if self._sharing is None:
                return self._whole(parts, crew, progress)
            with fractions_said():  # by the notes
                self.left = self._sharing.run(parts, crew, progress, say)
            if self.left:
                return None
            with crew.alone():
                self.report.clean()
                return self._whole(parts, crew)

    def _whole(
        self, parts: Parts, crew: Crew, progress: Callable[[int], None] | None = None
    ) -> dict:
        """Compute what no worker has computed, and write the report."""
        measuring, settings = self.measuring, self.settings
        spent = parts.collect()
        found = measuring.run(self.report.arrays, progress)
        written = measuring.content(found)
        measuring.write(
            self.report,
            found,
            written,
            confusion=settings.confusion,
            examples=settings.examples,
        )
        if any(spent.values()):
            self.report.add_seconds(**spent)
        crew.forget()
        return written


class _Stores:
    """Where the images are kept that attacks make."""

    def __init__(self, settings: EvaluationSettings, given: Given, *networks: Loaded):
        self.all: list[ImageStore] = []
        self._settings, self._given, self._shape = settings, given, networks[0].shape
        self._count = min(settings.num_images, len(given.labels))
        self._hashes = {
            name: source.weights_hash
            for loaded in networks
            for name, source in zip(loaded.names, loaded.sources, strict=True)
        }

    def keep(self, source: str, label: str, attack: Attack) -> ImageStore:
        """See ``plan.Keep``."""
        settings, given = self._settings, self._given
        shape = (len(attack.epsilons), self._count, *self._shape)
        identity = {
            "source": source,
            "source_hash": self._hashes[source],
            "dataset": given.name,
            "dataset_hash": given.fingerprint,
            "split": given.split,
            "attack": attack.name,
            "options": dict(attack.options),
            "epsilons": list(attack.epsilons),
            "seed": settings.seed,
            "batch_size": batch_of(attack, settings.batch_size),
            "shape": list(shape),
        }
        name = file_name(f"{source}-{label}")
        self.all.append(ImageStore(expand(settings.images_dir), name, identity))
        return self.all[-1]
