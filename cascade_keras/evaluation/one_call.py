"""One call to measure any classifier with any images, and one for the images alone."""

from __future__ import annotations

import dataclasses
import hashlib
import os
import sys
import warnings
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, TypeAlias

import numpy as np
import tensorflow as tf

from cascade_keras import data
from cascade_keras.attacks.entry import fractions_said
from cascade_keras.attacks.specs import Attack, Chosen, short_steps, why_not_measured
from cascade_keras.data.specs import CIFAR_GRID, DatasetSpec
from cascade_keras.ensembles import check_mean
from cascade_keras.ensembles import ensemble as ensemble_of
from cascade_keras.errors import InputError, about, first_line, shown
from cascade_keras.evaluation import tasks
from cascade_keras.evaluation.asked import Asked, Given, gives_minimal, labelled
from cascade_keras.evaluation.cells import CLEAN
from cascade_keras.evaluation.crafting import Craft, slices
from cascade_keras.evaluation.measured import Measured
from cascade_keras.evaluation.measuring import Measuring, measured_batch_size, small_epsilon_note
from cascade_keras.evaluation.networks import Loaded, load_networks
from cascade_keras.evaluation.samples import collect
from cascade_keras.evaluation.settings import EvaluationSettings, possible
from cascade_keras.evaluation.stores import MemoryArrays, shown_to
from cascade_keras.files import is_path
from cascade_keras.labels import check_labels
from cascade_keras.progress import show_progress
from cascade_keras.provenance import networks_in
from cascade_keras.ranges import UNIT, check_images, check_value_range, scaled_from_unit
from cascade_keras.settings import ENSEMBLES
from cascade_keras.sources import Network, Source, load_source, made_for
from cascade_keras.speed import BatchSize

Networks: TypeAlias = Network | Sequence[Network] | Mapping[str, Network]
_IMAGES = "images"  # what data is called that has no name


def evaluate(
    model: Networks,
    x: Any,
    y: Any = None,
    attacks: Sequence[str | Chosen] = (CLEAN, "step_fgsm", "iter_fgsm", "pgd"),
    epsilons: Sequence[float] | float | None = None,
    *,
    value_range: Sequence[float] | None = None,
    from_logits: bool | str = "auto",
    logits: str | None = None,
    embedding: str | None = None,
    sources: Networks | Sequence[Sequence[Network]] = (),
    ensemble: str = ENSEMBLES[0],
    batch_size: int | str = 250,
    seed: int = 0,
    num_images: int | None = None,
    diagnosis_images: int = 200,
    images: bool = False,
    progress: bool = True,
    class_names: Sequence[str] | None = None,
) -> Measured:
    """Measure how a classifier withstands attacks.

    Args:
        model: a Keras model, an ``AdversarialTrainer``, what ``load_source`` returns, a path, or a
            function from images to logits; or several, in a list or by their names in a dict.
        x, y: images (N, H, W, C) and true classes, (N,), (N, 1) or one-hot, as of
            ``keras.Model.evaluate``; or as x alone a ``tf.data.Dataset``, a ``PyDataset`` or a
            generator of batches (images, labels), or a dataset's name, whose test split is taken.
        attacks: names, such as "step_fgsm", "pgd", "cw_linf" or "autoattack", or with options
            ``attacks.PGD(steps=100, restarts=5)``. Clean images are always counted.
        epsilons: one or several, in 0..255 units whatever the range of the images: 8 is 8 of 255.
        value_range: what pixel values the images have and the network takes, such as (0, 255);
            None for what is recorded of the network, (0, 1) where nothing is.
        from_logits, logits, embedding: what the network's outputs are, see ``load_source``.
        sources: networks whose adversarial images are shown to the model (black box); without any
            each model is attacked by its own gradients (white box). A list among them is one
            source, an ensemble: ``sources=[a, [b, c]]``, or by name ``{"both": [b, c]}``.
        ensemble: what an attack on an ensemble ascends: the objective of the mean of the "logits",
            or the mean of the "losses".
        batch_size: images at a time; "auto" for as many as a short measurement finds fastest.
        seed: of the attacks that draw random numbers.
        num_images: the first ones only; all when None.
        diagnosis_images: as many are looked at for masked gradients; 0 for none.
        images: keep the adversarial images, float32.
        progress: show on standard error how far it is.
        class_names: of the classes.

    Returns:
        What was found, see ``Measured``: print it, ``.accuracy["pgd", 8]``, ``.save("reports/x")``.

    Raises:
        InputError: what cannot be measured: no epsilons, images outside of ``value_range``, soft
            labels, an unknown attack or option, a network that does not fit.

    Example::

        report = evaluate(model, x_test, y_test, ["step_fgsm", "pgd"], [2, 4, 8],
                          value_range=(0, 255))
        print(report)
        report.accuracy["pgd", 8]
    """
    _refuse_graphs("evaluate")
    chosen = _chosen(attacks)
    found = _check_numbers(
        _epsilons(epsilons) if any(c.name != CLEAN for c in chosen) else (0.0,),
        batch_size=batch_size,
        seed=seed,
        num_images=num_images,
        diagnosis_images=diagnosis_images,
    )
    told = {"from_logits": from_logits, "logits": logits, "embedding": embedding}
    subject = _Subject(
        model, x, y, sources, found["num_images"], value_range, told, class_names, ensemble
    )
    if found["batch_size"] is None:
        fastest = subject.batch_size()
        found["batch_size"] = fastest.chosen
        if progress:
            print(fastest, file=sys.stderr, flush=True)
    asked = _asked(chosen, found, len(subject.labels), subject.told)
    kept: dict[tuple[str, str], np.ndarray] = {}

    def keep(source: str, label: str, attack: Attack) -> _Kept:
        shape = (len(attack.epsilons), *subject.images.shape)
        kept[source, label] = np.empty(shape, np.float32)
        return _Kept(kept[source, label])

    measuring = Measuring(
        asked,
        subject.given,
        subject.images,
        subject.targets,
        subject.sources,
        keep if images else None,
    )
    for note in measuring.notes:
        warnings.warn(note, stacklevel=2)
    arrays = MemoryArrays()
    if progress:
        with show_progress("evaluating, gradients", lambda: measuring.plan.work) as show:
            results = measuring.run(arrays, show)
    else:
        results = measuring.run(arrays)
    return Measured(measuring, arrays, results, kept if images else None, subject.as_given)


def craft(
    model: Network,
    x: Any,
    y: Any = None,
    attack: str | Chosen = "pgd",
    epsilons: Sequence[float] | float | None = None,
    *,
    value_range: Sequence[float] | None = None,
    from_logits: bool | str = "auto",
    logits: str | None = None,
    embedding: str | None = None,
    batch_size: int | str = 250,
    seed: int = 0,
    num_images: int | None = None,
) -> np.ndarray:
    """Return adversarial images of a classifier.

    They are those that ``evaluate`` measures with the same ``batch_size`` and ``seed``.

    Args:
        model: as for ``evaluate``, but one; ``ensemble([a, b])`` is one of several.
        attack: a name, or ``attacks.PGD(steps=100)``; one that makes images at given epsilons.
        epsilons: a number, or several, in 0..255 units.
        others: as for ``evaluate``.

    Returns:
        float32 (N, H, W, C) of one number, (epsilons, N, H, W, C) of several in their order, in
        the range that the images came in.

    Raises:
        InputError: as ``evaluate``.
    """
    _refuse_graphs("craft")
    (chosen,) = _chosen([attack])
    if gives_minimal(Attack.at(chosen, ())):
        raise InputError(
            f"{chosen.name} has no images at given epsilons; attacks.CarliniWagner returns those "
            "at the smallest",
            "attack",
        )
    values = _epsilons(epsilons) if chosen.name != CLEAN else (0.0,)
    found = _check_numbers(values, batch_size=batch_size, seed=seed, num_images=num_images)
    told = {"from_logits": from_logits, "logits": logits, "embedding": embedding}
    subject = _Subject(model, x, y, (), found["num_images"], value_range, told, None)
    if len(subject.targets.names) > 1:
        raise InputError(
            "images are made from one network; ensemble([a, b]) makes one of several", "model"
        )
    attack_at = Attack.at(chosen, values)
    for note in small_epsilon_note(values) + short_steps(attack_at.options, attack_at.epsilons):
        warnings.warn(note, stacklevel=2)
    networks = tasks.SavedNetworks(
        dict(zip(subject.targets.names, subject.targets.sources, strict=True)),
        subject.targets.shape,
    )
    with fractions_said():  # above
        make = networks.crafter(
            subject.targets.names[0], attack_at, seed=seed, num_classes=subject.given.num_classes
        )
    made = np.empty((len(values), *subject.images.shape), np.float32)
    most = found["batch_size"] or subject.batch_size().chosen
    size = tasks.batch_of(attack_at, most)
    with fractions_said():
        for first, batch, labels in slices(subject.images, subject.labels, size):
            made[:, first : first + len(batch)] = make(batch, labels, first)
    made = subject.as_given(made)
    return made if _are_several(epsilons) and chosen.name != CLEAN else made[0]


class _Kept:
    """Keeps adversarial images on their way to the networks."""

    def __init__(self, images: np.ndarray):
        self._images = images

    def through(self, craft: Craft) -> Craft:
        """See ``stores.Through``."""

        def keep(versions: np.ndarray, first: int) -> None:
            self._images[:, first : first + versions.shape[1]] = versions

        return shown_to(keep, craft)

    def amend(self, versions: np.ndarray, first: int, places: np.ndarray) -> None:
        """See ``stores.Amended``."""
        self._images[:, first : first + versions.shape[1]][places] = versions[places]


# What is asked.


def _refuse_graphs(function: str) -> None:
    if not tf.executing_eagerly():
        raise InputError(f"{function} reads the values of images; call it outside of tf.function")


def _chosen(attacks: Sequence[str | Chosen] | str | Chosen) -> list[Chosen]:
    """Return attacks that can be measured, each once."""
    if isinstance(attacks, str | Chosen) or not isinstance(attacks, Iterable):
        attacks = [attacks]
    chosen = [Chosen.of(attack) for attack in attacks]
    if not chosen:
        raise InputError("name at least one", "attacks")
    for attack in chosen:
        if attack.name not in (CLEAN, *possible()):
            raise InputError(
                why_not_measured(attack.name)
                or f"{attack.name} cannot be measured; name one of {', '.join(possible())}",
                "attacks",
            )
    return chosen


def _epsilons(epsilons: Sequence[float] | float | None) -> tuple[float, ...]:
    given: Any = np.asarray(epsilons) if tf.is_tensor(epsilons) else epsilons
    found = tuple(given) if _are_several(given) else (given,)
    if not found or given is None:
        raise InputError("name one or several, in 0..255 units, such as [2, 4, 8]", "epsilons")
    return found


def _are_several(epsilons: Any) -> bool:
    if isinstance(epsilons, str) or not isinstance(epsilons, Iterable):
        return False
    return np.ndim(epsilons) > 0 or not hasattr(epsilons, "shape")


def _check_numbers(epsilons: tuple[float, ...], **numbers: Any) -> dict[str, Any]:
    """Return numbers as the settings of ``bin/evaluate`` have them, whose rules they must obey."""
    given = {name: value for name, value in numbers.items() if value is not None}
    try:
        settings = EvaluationSettings(epsilon=epsilons, **given)
    except InputError as error:
        setting = "epsilons" if error.setting == "epsilon" else error.setting
        raise InputError(error.message, setting) from error
    found = {name: getattr(settings, name) for name in numbers}
    found |= {name: None for name, value in numbers.items() if value is None}
    return {"epsilons": tuple(sorted(settings.epsilon)), **found}


def _asked(
    chosen: Sequence[Chosen], numbers: Mapping[str, Any], count: int, told: Mapping[str, Any]
) -> Asked:
    attacks = []
    for each in (each for each in chosen if each.name != CLEAN):
        attack = Attack.at(each, numbers["epsilons"])
        if gives_minimal(attack) and "images" not in each.options:
            # Of a hundred images, or of as many as there are.
            images = min(attack.options["images"], count)
            attack = Attack(attack.name, attack.epsilons, {**attack.options, "images": images})
        if attack in attacks:
            raise InputError(f"{each} is named twice; name each once", "attacks")
        attacks.append(attack)
    minimal = labelled(filter(gives_minimal, attacks))
    if len(minimal) > 1:
        raise InputError(f"name one of {', '.join(minimal)} at a time", "attacks")
    images = labelled(attack for attack in attacks if not gives_minimal(attack))
    return Asked(
        images,
        minimal,
        numbers["epsilons"],
        {label: attack.options for label, attack in images.items() if label == attack.name},
        num_images=count,
        diagnosis_images=numbers["diagnosis_images"],
        batch_size=numbers["batch_size"],
        seed=numbers["seed"],
        told=told,
    )


# Of what.


class _Subject:
    """Networks and images that were given, checked and brought together.

    Attributes:
        targets, sources: the networks.
        images, labels: float32 (N, H, W, C) in [0, 1] and int32 (N,).
        given: what else is known of them.
        value_range: of the images as they came.
        told: what was said of the networks.
    """

    def __init__(
        self,
        model: Networks,
        x: Any,
        y: Any,
        sources: Networks,
        num_images: int | None,
        value_range: Sequence[float] | None,
        told: Mapping[str, Any],
        class_names: Sequence[str] | None,
        mean: str = ENSEMBLES[0],
    ):
        check_mean(mean)
        if value_range is not None:
            told = {**told, "value_range": check_value_range(value_range)}
        told = {key: value for key, value in told.items() if value not in (None, "auto")}
        self.told = {k: list(v) if isinstance(v, tuple) else v for k, v in told.items()}
        dataset = data.load(os.fspath(x)) if is_path(x) else None
        if dataset is not None:
            if y is not None:
                raise InputError("a dataset brings its labels along; leave y out", "y")
            shape = dataset.preset.network_shape((None, None, None))
            stored, raw_labels = (array[:num_images] for array in dataset.test)
        else:
            stored, raw_labels = collect(x, y, num_images)
            if stored.ndim != 4:
                raise InputError(
                    f"images must have the shape (N, height, width, channels), got {stored.shape}",
                    "x",
                )
            shape = stored.shape[1:]
        # What is made anew, app:NAME or module:function, is made for as many classes.
        classes = dataset.preset.num_classes if dataset else _classes_of(raw_labels)
        networks = _sources(model, "model", (shape, classes), told)
        others = _sources(sources, "sources", (shape, classes), told, mean)
        if dataset is not None:
            shape = dataset.preset.network_shape(networks[0].input_shape)
        self.value_range = _range_of(networks, value_range)
        if dataset is not None:
            self.images = data.as_network_input(stored, data.crop_of(shape[:2]))
        else:
            with about("x"):
                self.images = check_images(stored, self.value_range, "images")
        classes = _num_classes(networks[0], shape)
        labels = check_labels(raw_labels, classes)
        if labels.soft is not None:
            raise InputError(
                "soft labels name no class by which accuracy could be counted; give classes "
                "or one-hot rows",
                "y",
            )
        self.labels = labels.hard
        spec = dataset.preset if dataset else DatasetSpec(_IMAGES, "", tuple(shape), classes)
        self.targets = load_networks(
            networks, spec, setting="model", shape=shape, differentiable=False
        )
        self.sources: Loaded = load_networks(
            others, spec, setting="sources", shape=shape, known=self.targets
        )
        self.given = Given(
            spec.name,
            dataset.fingerprint if dataset else _fingerprint(self.images, self.labels),
            "test",
            self.labels,
            classes,
            spec.grid if dataset else CIFAR_GRID,
            _class_names(class_names or (dataset and dataset.preset.class_names), classes),
        )

    def batch_size(self) -> BatchSize:
        """Return how many images at a time are fastest."""
        count = len(self.labels)
        return measured_batch_size(self.targets, self.sources, self.images, self.labels, count)

    def as_given(self, images: np.ndarray) -> np.ndarray:
        """Return images of [0, 1] in the range that they came in, float32."""
        return np.asarray(scaled_from_unit(images, self.value_range), np.float32)


def _sources(
    networks: Networks,
    setting: str,
    size: tuple,
    told: Mapping[str, Any],
    mean: str | None = None,
) -> list[Source]:
    """Return the networks that were given in any form; lists are ensembles where a mean is said."""
    if isinstance(networks, Mapping):
        pairs = list(networks.items())
    elif isinstance(networks, list | tuple):
        pairs = [(None, network) for network in networks]
    else:
        pairs = [(None, networks)]
    if not pairs and setting == "model":
        raise InputError("name at least one network", setting)
    with about(setting):
        return [_source(network, name, size, told, mean) for name, network in pairs]


def _source(
    network: Network | Sequence[Network],
    name: str | None,
    size: tuple,
    told: Mapping[str, Any],
    mean: str | None,
) -> Source:
    """Return a network as a source, made for images and classes of this size if it is made anew."""
    members = (network,) if mean is None else networks_in(network)
    if len(members) > 1 or (mean is not None and isinstance(network, list | tuple)):
        return ensemble_of(
            [_source(member, None, size, told, None) for member in members], mean, name=name
        )
    if is_path(network):
        network = load_source(network, *made_for(network, *size), **told)
    elif not isinstance(network, Source):
        # By what else would a function be known again than by its name.
        digest = f"function {name or getattr(network, '__name__', type(network).__name__)}"
        network = load_source(network, size[0], name=name, weights_hash=digest, **told)
    return network if name is None else dataclasses.replace(network, name=str(name))


def _range_of(
    networks: Sequence[Source], value_range: Sequence[float] | None
) -> tuple[float, float]:
    """Return the range that the images are in: what was said, else that of the networks."""
    if value_range is not None:
        return check_value_range(value_range)
    own = list(dict.fromkeys(getattr(n, "value_range", None) or UNIT for n in networks))
    if len(own) > 1:
        raise InputError(
            f"the networks take {' and '.join(map(str, own))}; say which the images are in",
            "value_range",
        )
    return own[0]


def _num_classes(network: Source, shape: Sequence[int]) -> int:
    try:
        return network.on_probes(shape).shape[-1]
    except InputError:
        raise
    except (ValueError, TypeError, tf.errors.OpError) as error:
        raise InputError(
            f"{network} cannot be run on images of shape {tuple(shape)} ({first_line(error)})",
            "model",
        ) from error


def _classes_of(labels: np.ndarray) -> int:
    """Return how many classes labels tell apart, at least."""
    if labels.ndim == 2 and labels.shape[1] > 1:
        return labels.shape[1]
    if np.issubdtype(labels.dtype, np.signedinteger):
        return max(int(labels.max()), 0) + 1  # negative ones are refused where classes are known
    return int(check_labels(labels).hard.max()) + 1


def _class_names(given: Sequence[str] | None, classes: int) -> tuple[str, ...]:
    names = tuple(map(str, given or ()))
    if names and (len(names) != classes or len(set(names)) != classes):
        raise InputError(
            f"must be {classes} different names, got {shown(list(names))}", "class_names"
        )
    return names


def _fingerprint(images: np.ndarray, labels: np.ndarray) -> str:
    digest = hashlib.sha256()
    for array in (images, labels):
        digest.update(np.ascontiguousarray(array).data)
    return digest.hexdigest()
