"""A training as one object: settings, data and networks in, a run that can be resumed out.

Needs no TensorFlow until it runs, so that wrong settings are refused at once.
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import pathlib
import re
import signal
import typing
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import msgspec

import cascade_keras
from cascade_keras import cluster, own_code, printed
from cascade_keras.data.specs import Crop, DatasetSpec, crop_of
from cascade_keras.errors import InputError, about, first_line, shown
from cascade_keras.export import check_output, export_saved_model, provenance_of_run
from cascade_keras.models.forms import APPLICATION, NAMED, form_of
from cascade_keras.provenance import package_versions
from cascade_keras.recorded import (
    FORMAT,
    CascadeRecord,
    DatasetRecord,
    EnsembleRecord,
    HeldOutRecord,
    Metrics,
    NetworkRecord,
    OriginRecord,
    ResultRecord,
    RunConfig,
    chosen_in_words,
    go_on_with,
)
from cascade_keras.runs.run import Run
from cascade_keras.runs.settings import TrainingSettings, clean_images, initialisation, row
from cascade_keras.startup import import_tensorflow

if typing.TYPE_CHECKING:
    import keras
    import numpy as np
    import tensorflow as tf

    from cascade_keras.data import Dataset
    from cascade_keras.runs.session import Session
    from cascade_keras.runs.supply import Supply
    from cascade_keras.sources import Source
    from cascade_keras.strategies import Workers
    from cascade_keras.training import AdversarialTrainer


@dataclasses.dataclass(frozen=True)
class TrainingResult:
    """What became of a training.

    Attributes:
        path: the run's directory.
        step: the number of steps done.
        results: accuracies of the finished network as in metrics.json: attack, epsilon, correct,
            examples, accuracy and, where an attack has any, its options. Empty where it was
            stopped.
        stopped_by: the signal that ended it before its last step, None where it is finished.
        saved: the folder of the saved network's version, None where nothing was exported now.
        was_finished: whether the run was finished before, so that nothing was done.
        told: what metrics.json holds, of a training that is finished: which network of the
            training the finished one is (``chosen``), where held-out images decided, collapses
            that were noticed by them, and where one ended it (``stopped_at``).
    """

    path: pathlib.Path
    step: int
    results: Sequence[Mapping] = ()
    stopped_by: signal.Signals | None = None
    saved: pathlib.Path | None = None
    was_finished: bool = False
    told: Mapping = dataclasses.field(default_factory=dict)

    @property
    def finished(self) -> bool:
        """Whether the schedule is done."""
        return self.stopped_by is None


class Training:
    """Trains a network and keeps everything about it in a directory, from which it is resumed.

        from cascade_keras import Training, TrainingSettings

        settings = TrainingSettings(dataset="digits", model="resnet8", loss="pivot", steps=200)
        result = Training(settings).run()
        print(result.path, result.results)

    ``run`` goes on where an earlier one, of this process or another, was stopped or killed; it
    can be called again. An own network starts from the weights that it has, and is trained in
    place; with a dataset of one's own, any Keras classifier can be hardened::

        Training(settings, dataset=dataset, network=network).run()

    Args:
        settings: what is trained, how, and where it is kept; the dataset's defaults are filled in.
        dataset: in place of what ``settings.dataset`` names.
        network: a classifier of images (batch, H, W, C), in place of what ``settings.model`` names;
            ``settings.value_range`` says which pixel values it takes, ``logits`` and ``embedding``
            which of several outputs are meant. Its architecture is recorded: a run goes on with
            that of its start only.
        cascade_sources, ensemble_sources: networks in place of those that the settings name: what
            ``sources.load_source`` takes or returns.
        say: told in one line each what a person might want to know.

    Attributes:
        settings: resolved.
        preset: the dataset's row.
        directory: the ``Run``.
        flags: the settings that decide what is computed, as config.json keeps them.

    Raises:
        InputError: settings that do not go together, or with the data and networks.
    """

    def __init__(
        self,
        settings: TrainingSettings,
        *,
        dataset: Dataset | None = None,
        network: keras.Model | None = None,
        cascade_sources: Sequence | None = None,
        ensemble_sources: Sequence | None = None,
        say: Callable[[str], None] = printed.say,
    ):
        self.say = say
        self.own_sources = {
            "cascade_source": _loaded(cascade_sources, "cascade_sources", settings),
            "ensemble_source": _loaded(ensemble_sources, "ensemble_sources", settings),
        }
        for name, sources in self.own_sources.items():
            if sources:
                settings = settings.replace(**{name: tuple(map(str, sources))})
        if dataset is not None and not dataset.preset.is_called(settings.dataset):
            raise InputError(
                f"is {settings.dataset!r}, the data given are {dataset.name!r}", "dataset"
            )
        if network is not None and settings.crop is None:
            settings = settings.replace(crop=_crop(network))
        self._own = {"own_network": None if network is None else re.sub(r"_\d+$", "", network.name)}
        self.preset = dataset.preset if dataset else self._row(settings)
        self.settings = settings.resolved(self.preset, **self._own)
        self.dataset = dataset
        self.network = network
        self.directory = Run(pathlib.Path(self.settings.runs_dir) / self.settings.name)
        self.flags = self._flags()

    def _row(self, settings: TrainingSettings) -> DatasetSpec:
        """Return the row of what the settings name, or else of what the first source learned."""
        given = {k: found or getattr(settings, k) for k, found in self.own_sources.items()}
        return row(settings, given)

    def _flags(self) -> dict:
        flags = self.settings.decisive()
        flags["dataset"] = self.preset.name
        if self.network is not None:
            from cascade_keras.runs.own import architecture

            flags["model"] = f"own-{architecture(self.network)[:16]}"
        return flags

    def run(self) -> TrainingResult:
        """Train what is left of the schedule, evaluate and save the network.

        In the main thread of a process, SIGTERM and Ctrl-C end it after the step under way, with a
        checkpoint.

        Raises:
            InputError: a directory, data or a source that cannot be used; a ``TrainingDiverged``
                where the loss is no longer finite.
            OSError: the disk is full or the like; checkpoints written before are intact.
        """
        directory = self.directory
        directory.check(self.flags, defaults=self._defaults)
        if directory.finished:
            return self._as_it_was()
        if self.settings.export:
            with about("saved_dir"):
                check_output(self._saved)
        if self.settings.init_from and not directory.has_checkpoints:
            initialisation(self.settings.init_from)
        found = cluster.of_environment() if self.settings.strategy == "multiworker" else None
        told = self.say
        if found and not found.is_chief:
            self.say = _say_nothing
        for note in self.settings.notes():
            self.say(f"note: {note}")
        import_tensorflow()
        # Where a program is interrupted while it imports, it ends at once: so before it makes
        # directories.
        from cascade_keras import strategies
        from cascade_keras.evaluation import networks  # noqa: F401
        from cascade_keras.runs import session, supply  # noqa: F401

        if found.is_chief if found else strategies.here().is_chief:
            directory.hold()
        try:
            # Another process may have been at it since it was looked at.
            directory.check(self.flags, defaults=self._defaults)
            return self._as_it_was() if directory.finished else self._trained(found, told)
        finally:
            directory.close()
            self.say = told

    def _as_it_was(self) -> TrainingResult:
        """Return what is kept of a finished run."""
        metrics = self.directory.read_metrics()
        self.directory.check_model()
        return _told(self.directory.path, metrics, was_finished=True)

    def _trained(self, found: cluster.Cluster | None, told: Callable) -> TrainingResult:
        from cascade_keras import strategies
        from cascade_keras.runs.build import precision

        self._session: Session | None = None
        try:
            with precision(self.settings.precision), strategies.telling_others(found):
                return self._run(found, told)
        except strategies.LOST as error:
            if not found and strategies.here().count == 1:
                raise
            if ended := strategies.told(error):
                raise InputError(ended) from error
            lost = cluster.WorkerLost(f"another worker is gone ({first_line(error)})")
            lost.stepped = self._session is not None and self._session.stepped
            raise lost from error
        except InputError as error:
            if error.setting == "network" and self.network is None:
                raise InputError(error.message, "model") from error
            raise

    def build_trainer(
        self,
        dataset: Dataset,
        cascade_sources: Sequence[Source],
        ensemble_sources: Sequence[Source],
    ) -> AdversarialTrainer:
        """Return the compiled trainer; a subclass may make another.

        Args:
            dataset: in memory.
            cascade_sources: those whose images are crafted within the step.
            ensemble_sources: those of one-step images.
        """
        from cascade_keras.runs import build, own

        network = self.network
        if network is not None and self.settings.strategy != "none":
            raise InputError(
                f"is made already, so it cannot go over the devices of strategy "
                f"{self.settings.strategy}; make it and call run within strategy.scope(), with "
                "strategy='none'",
                "network",
            )
        if network is None:
            network = build.build_network(self.settings, dataset)
        else:
            shape = build.image_shape(self.settings, self.preset)
            own.check(network, self.settings, shape, self.preset.num_classes)
        return build.build_trainer(
            self.settings,
            network,
            cascade_sources=cascade_sources,
            ensemble_sources=ensemble_sources,
        )

    def _run(self, found: cluster.Cluster | None, told: Callable) -> TrainingResult:
        import keras
        import tensorflow as tf

        from cascade_keras import data, strategies
        from cascade_keras.runs import build
        from cascade_keras.runs.session import Session
        from cascade_keras.runs.supply import record_sources

        settings = self.settings
        if settings.deterministic:
            tf.config.experimental.enable_op_determinism()
        strategy = strategies.strategy_of(
            settings.strategy, found=found, timeout=settings.worker_timeout, say=told
        )
        workers = strategies.Workers(strategy)
        before = self._before(workers)
        data.check_replicas(strategy.num_replicas_in_sync, clean_images(settings))
        self._say_of_replicas(strategy, before)
        # Each worker has its own sources; where they go over devices, each device has.
        with strategy.scope() if workers.count == 1 else contextlib.nullcontext():
            cascade, ensemble = (self._sources(name, before) for name in self.own_sources)
        self._compare_initialisations(cascade)
        dataset = self.dataset or data.load(
            self.preset, settings.data_dir, cache_dir=settings.cache_dir, say=self.say
        )
        data.check_batch_size(clean_images(settings), len(dataset.train[1]))
        held_out = build.held_out(settings, dataset)
        supply: Supply | None = None
        if cascade:
            supply = self._prepared(workers, cascade, dataset, before)
        own_code.import_all(settings.import_)
        if self.network is None:
            own_code.import_all(form_of(settings.model).modules, "model")
        # Last, as importing and loading may draw numbers too: the weights follow from the seed.
        keras.utils.set_random_seed(settings.seed)
        with strategy.scope():
            trainer = self.build_trainer(dataset, supply.online if supply else (), ensemble)
        self._say_what_cannot_be_repeated(trainer.network)
        config = RunConfig(
            format=FORMAT,
            flags=self.flags,
            seed=settings.seed,
            dataset=_dataset_record(dataset),
            versions={"cascade_keras": cascade_keras.__version__, **package_versions()},
            cascade=supply.record() if supply else None,
            ensemble=EnsembleRecord(sources=record_sources(ensemble)) if ensemble else None,
            network=self._network_record(trainer.network, before),
            replicas=strategy.num_replicas_in_sync,
            held_out=_held_out_record(held_out),
        )
        if before and before.held_out not in (None, config.held_out):
            raise InputError(
                f"{self.directory.path} was started with other images held out by this version; "
                f"{go_on_with(before.versions)}",
                "validation_images",
            )
        writes = workers.is_chief
        if settings.init_from and not self.directory.has_checkpoints and writes:
            build.load_initialisation(trainer.network, settings.init_from)
        self._compare_with_chief(workers, config)
        if writes:
            self.directory.open(config, self._defaults)
        partners = supply.partners if supply else None
        with self._saying_what_is_kept():
            session = Session(
                settings,
                self.directory,
                trainer,
                dataset,
                partners,
                self.say,
                random_layers=not self._is_ours,
                workers=workers,
            )
            self._session = session
            with session:
                stopped = session.fit()
                if stopped:
                    step = trainer.steps_done
                    return TrainingResult(self.directory.path, step, stopped_by=stopped)
                looked = session.choose() if writes else {}
                results = session.evaluate() if writes else []
            result = self._finish(trainer.network, results, looked) if writes else None
            # The others stay until all is done.
            fields = workers.from_chief(result and result.told)
            return result or _told(self.directory.path, msgspec.convert(fields, Metrics))

    def _before(self, workers: Workers) -> RunConfig | None:
        """Return what the run's config.json says to the chief, where the run goes on."""
        started = self.directory.started
        before = self.directory.read_config() if started and workers.is_chief else None
        if workers.count == 1:
            return before
        found = workers.from_chief(before and before.as_json())
        return found and msgspec.convert(found, RunConfig)

    def _prepared(
        self,
        workers: Workers,
        cascade: Sequence[Source],
        dataset: Dataset,
        before: RunConfig | None,
    ) -> Supply:
        """Return the cascade images; what is chosen and crafted the chief chooses and crafts."""
        from cascade_keras.runs.supply import prepare

        record = None if before is None else before.cascade
        supply = None
        if workers.is_chief:
            supply = prepare(cascade, self.settings, dataset, record, self.say)
        if workers.count == 1:
            return supply
        record = msgspec.convert(
            workers.from_chief(supply and msgspec.to_builtins(supply.record())), CascadeRecord
        )
        return supply or prepare(cascade, self.settings, dataset, record, self.say)

    def _compare_with_chief(self, workers: Workers, config: RunConfig) -> None:
        """Refuse to train something else than the chief does."""
        own = config.as_json()
        chief = workers.from_chief(own)
        for name in {**own["flags"], **chief["flags"]}:
            if own["flags"].get(name) != chief["flags"].get(name):
                raise InputError(
                    f"is {shown(own['flags'].get(name))} here, the chief has "
                    f"{shown(chief['flags'].get(name))}; start the same command on all workers",
                    name,
                )
        for name in ("dataset", "cascade", "ensemble", "network", "held_out"):
            if _without_places(own.get(name)) != _without_places(chief.get(name)):
                raise InputError(f"this worker's {name} is not the chief's; give all the same")

    def _say_of_replicas(self, strategy: tf.distribute.Strategy, before: RunConfig | None) -> None:
        from cascade_keras import strategies

        count, then = strategy.num_replicas_in_sync, before.replicas if before else None
        if self.settings.strategy != "none" or count > 1:
            self.say(f"strategy {self.settings.strategy}: {strategies.described(strategy)}")
        if then not in (None, count):
            self.say(
                f"note: the run was started with {then} of such replicas and goes on with {count}; "
                "its weights will be the same within rounding"
            )

    def _say_what_cannot_be_repeated(self, network: keras.Model) -> None:
        from cascade_keras.runs import build, own

        if self.network is None and form_of(self.settings.model).kind in (NAMED, APPLICATION):
            return
        setting = "model" if self.network is None else "network"
        shape = build.image_shape(self.settings, self.preset)
        note = own.check_state(network, shape, setting)
        if note:
            self.say(f"note: {note}")

    @property
    def _is_ours(self) -> bool:
        """Whether the network is one of ours, by its name."""
        return self.network is None and form_of(self.settings.model).kind == NAMED

    def _network_record(
        self, network: keras.Model, before: RunConfig | None
    ) -> NetworkRecord | None:
        """Return what tells an own network that a text names from another one of that text.

        Raises:
            InputError: it is not the one that the run was started with.
        """
        from cascade_keras.runs.own import architecture

        if self.network is not None or self._is_ours:
            return None
        record = NetworkRecord(architecture=architecture(network))
        if before and before.network not in (None, record):
            raise InputError(
                f"{self.settings.model} is no longer the network that {self.directory.path} was "
                "started with; restore it, or use another name",
                "model",
            )
        return record

    @contextlib.contextmanager
    def _saying_what_is_kept(self) -> Iterator[None]:
        """Add to what is said of a full disk and the like where the next start begins."""
        try:
            yield
        except OSError as error:
            said = f"{error.strerror or error}; {self.directory.kept}"
            raise OSError(error.errno, said, error.filename) from error

    def _finish(self, network: keras.Model, results: list, looked: Mapping) -> TrainingResult:
        from cascade_keras.runs.build import image_shape

        steps, saved = self.settings.steps, None
        metrics = Metrics(
            steps=steps,
            seed=self.settings.seed,
            results=[ResultRecord(**result) for result in results],
            **looked,
        )
        if self.settings.export:
            saved = export_saved_model(
                network,
                self._saved,
                provenance_of_run(self.directory.read_config().as_json(), metrics.as_json()),
                image_shape=self.preset.image_shape,
                input_shape=image_shape(self.settings, self.preset),
            )
        self.directory.finish(network, metrics)
        return _told(self.directory.path, metrics, saved=saved)

    @property
    def _saved(self) -> pathlib.Path:
        return pathlib.Path(self.settings.saved_dir) / self.settings.name

    def _defaults(self, names: Sequence[str]) -> dict:
        """Return what a run older than these settings was started with."""
        return self.settings.defaults(names, self.preset, **self._own)

    def _sources(self, setting: str, before: RunConfig | None) -> Sequence[Source]:
        """Return the sources that a setting names; a run that goes on gets those of its start."""
        from cascade_keras.evaluation.networks import load_networks
        from cascade_keras.runs.build import image_shape

        recorded = before.sources[setting] if before else ()
        # The paths of the start: a newer version in a source's folder does not slip in.
        paths = [source.path for source in recorded] or getattr(self.settings, setting)
        paths = self.own_sources[setting] or paths
        if not paths:
            return ()
        shape = image_shape(self.settings, self.preset)
        loaded = load_networks(
            paths,
            self.preset,
            setting=setting,
            shape=shape,
            trust=self.settings.trust_source,
            told=self.settings.told_of_sources(),
        )
        sources = loaded.sources
        for source, then in zip(sources, recorded, strict=False):
            if source.weights_hash != then.weights_hash:
                raise InputError(
                    f"{source} is no longer the network that {self.directory.path} was "
                    "started with; restore it, or use another name",
                    setting,
                )
        return sources

    def _compare_initialisations(self, sources: Sequence[Source]) -> None:
        """Say so if a cascade network does not start from its source's weights, as the paper's."""
        own = self.settings.init_from or ""
        for source in sources:
            theirs = source.provenance.get("recipe", {}).get("init_from")
            # Of a preset's only the name is known.
            if theirs and theirs not in (own, pathlib.PurePath(own).name):
                self.say(
                    f"note: {source.name} started from {theirs}; in the paper a cascade network "
                    f"starts from the same weights as its source (init_from {theirs})"
                )


def _without_places(record: dict | None) -> dict | None:
    """Return a record without the paths in it, which workers may have elsewhere."""
    if not record or "sources" not in record:
        return record
    return {**record, "sources": [source["weights_hash"] for source in record["sources"]]}


def _say_nothing(text: str) -> None:
    """Leave it to the chief."""


def _loaded(sources: Sequence | None, setting: str, settings: TrainingSettings) -> list[Source]:
    if not sources:
        return []

    from cascade_keras.sources import Source, load_source

    with about(setting):
        told = {"trust": settings.trust_source, **settings.told_of_sources()}
        return [s if isinstance(s, Source) else load_source(s, **told) for s in sources]


def of_looks(told: Mapping) -> list[str]:
    """Return what held-out images have decided in a training, a sentence each.

    Args:
        told: what metrics.json holds.
    """
    said, chosen = [], told.get("chosen")
    if told.get("stopped_at"):
        said.append(
            f"the training ended at step {told['stopped_at']} of {told['steps']}: catastrophic "
            "overfitting"
        )
    if chosen:
        said.append(f"the network is that of step {chosen_in_words(chosen)}")
    return said


def _told(path: pathlib.Path, metrics: Metrics, **more: Any) -> TrainingResult:
    """Return what has become of a training that is finished."""
    told = metrics.as_json()
    step = metrics.stopped_at or metrics.steps
    return TrainingResult(path, step, told["results"], told=told, **more)


def _held_out_record(indices: np.ndarray) -> HeldOutRecord | None:
    if not len(indices):
        return None
    digest = hashlib.sha256(indices.astype("<i8").tobytes()).hexdigest()
    return HeldOutRecord(images=len(indices), hash=digest)


def _dataset_record(dataset: Dataset) -> DatasetRecord:
    """Return what config.json keeps of a dataset; of a row as it is, name and fingerprint."""
    spec = dataset.preset
    found = DatasetRecord(name=dataset.name, fingerprint=dataset.fingerprint)
    if spec.origin is not None:
        found.origin = OriginRecord(**spec.origin.as_json())
        found.class_names = list(spec.class_names)
        found.image_shape = list(spec.image_shape)
    return found


def _crop(network: keras.Model) -> Crop | None:
    """Return the sides of the images that a network takes, None where it takes any."""
    shape = getattr(network, "input_shape", None)
    known = isinstance(shape, tuple) and len(shape) == 4 and None not in shape[1:3]
    return crop_of(shape[1:3]) if known else None
