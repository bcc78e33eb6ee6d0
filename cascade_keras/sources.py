"""Networks, on disk or in memory, as differentiable functions from images to outputs.

They are the sources of cascade and ensemble images, and what evaluations attack. A source is only
asked for its outputs and for gradients with respect to images. It runs in inference mode, and none
of its variables become variables of the network that is trained from it.
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import json
import os
import pathlib
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple, TypeAlias, TypeVar

import keras
import numpy as np
import tensorflow as tf

from cascade_keras import attacks, draws, model_files
from cascade_keras.border import Adapted, adapt, takes
from cascade_keras.errors import InputError, first_line
from cascade_keras.files import is_path
from cascade_keras.foreign import check_harmless, check_whole, within
from cascade_keras.provenance import Location, locate, shapes_hash, weights_hash
from cascade_keras.ranges import UNIT, ValueRange, as_text, check_value_range
from cascade_keras.settings import said_of_logits

Outputs = dict[str, tf.Tensor]
T = TypeVar("T")
_PROBES = 8  # images on which a source is tried out
_COARSE_PROBES = 32  # more of them where these have no gradient
TIME_LIMIT = 60.0  # seconds for these images; a network of 200 layers takes a few on a slow machine
_LOADING = 10  # times as long may loading take, which reads all weights


@dataclasses.dataclass(frozen=True)
class Source:
    """A trained network: images float32 (batch, H, W, C) in [0, 1] -> {"logits", "embedding"}.

    Attributes:
        name: of its folder, run or file; of one in memory, its own.
        path: the SavedModel's folder, the .keras file or zoo:NAME; None where it is in memory only.
        input_shape: (H, W, C), None where any size is taken.
        weights_hash: SHA-256 of the weights, the same for every form of the same network; and of
            what is said of its pixels and outputs, where that is anything, see ``source_hash``.
        provenance: what is recorded of its training; empty where nothing is.
        function: images to outputs.
        trust: whether it may do more than compute.
        time_limit: seconds in which it must answer when it is tried out; None for whatever it
            takes. Only a SavedModel from disk has one.
        value_range: the lowest and the highest value of a pixel, as the network itself takes it;
            this function is given [0, 1].
        shapes: a hash of the shapes of its weights, which networks of one architecture share; None
            where it is not known.
        weights: a hash of its weights alone, which the same network has in whatever form it was
            saved, by whomever; None where it is not known.
    """

    name: str
    path: pathlib.Path | None
    input_shape: tuple[int | None, ...]
    weights_hash: str
    provenance: dict
    function: Callable[[tf.Tensor], Outputs]
    trust: bool = False
    time_limit: float | None = None
    value_range: ValueRange = UNIT
    shapes: str | None = None
    weights: str | None = None

    def __str__(self) -> str:
        return str(self.path or self.name)

    def __call__(self, images: tf.Tensor) -> Outputs:
        return self.function(images)

    def logits(self, images: tf.Tensor) -> tf.Tensor:
        """Return the logits alone, (batch, classes): what attacks take."""
        return self.function(images)["logits"]

    def check(self, image_shape: Sequence[int], num_classes: int) -> None:
        """Refuse a network that cannot make adversarial images for such a dataset.

        Args:
            image_shape: (H, W, C) of the images.
            num_classes: number of classes.

        Raises:
            InputError: as ``check_outputs``, or no gradient with respect to the images.
        """
        self.check_outputs(image_shape, num_classes)
        reason = self.why_no_gradient(image_shape)
        if reason:
            raise InputError(
                f"{self} has no gradient with respect to its images ({reason}); a source must "
                "be differentiable"
            )

    def check_outputs(self, image_shape: Sequence[int], num_classes: int) -> None:
        """Refuse a network that cannot classify the images of such a dataset.

        Raises:
            InputError: other images or classes, outputs of which no logits can be had, numbers that
                are not finite, or no answer within the time limit.
        """
        expected = tuple(image_shape)
        if not takes(self.input_shape, expected):
            raise InputError(
                f"{self} takes images of shape {self.input_shape}, the dataset's are "
                f"{expected}; name a network trained on such images"
            )
        try:
            logits = self._tried(lambda: self.logits(draws.probes(_PROBES, expected)))
        except InputError:
            raise
        except (ValueError, TypeError, tf.errors.OpError) as error:
            raise InputError(
                f"{self} cannot be run on images of shape {expected} ({first_line(error)})"
            ) from error
        if logits.shape[-1] != num_classes:
            raise InputError(
                f"{self} tells {logits.shape[-1]} classes apart, the dataset has "
                f"{num_classes}; name a network with {num_classes} logits"
            )
        values = logits.numpy()
        if not np.isfinite(values).all():
            raise InputError(f"{self} gives logits that are not finite numbers")

    def why_no_gradient(self, image_shape: Sequence[int]) -> str | None:
        """Return why random images have no gradient that is not zero, None where they have one."""
        for draw, count in ((draws.probes, _PROBES), (draws.coarse_probes, _COARSE_PROBES)):
            gradient = self._gradient(draw(count, image_shape))
            if isinstance(gradient, str):
                return gradient
            if np.any(gradient):
                return None
        return "it is zero everywhere"

    def why_not_differentiable(self, image_shape: Sequence[int]) -> str | None:
        """Return why no gradient can be had, None where one can, be it of zeros."""
        gradient = self._gradient(draws.probes(_PROBES, image_shape))
        return gradient if isinstance(gradient, str) else None

    def _gradient(self, images: tf.Tensor) -> tf.Tensor | str:
        """Return the gradient of the margins with respect to images, or why there is none."""

        def differentiate() -> tf.Tensor | None:
            with tf.GradientTape(watch_accessed_variables=False) as tape:
                tape.watch(images)
                logits = self.logits(images)
                # Not the cross entropy: it vanishes for networks that are merely confident.
                objective = attacks.margin(tf.argmax(logits, -1))(logits)
            return tape.gradient(objective, images)

        try:
            gradient = self._tried(differentiate)
        except (LookupError, tf.errors.OpError) as error:
            return first_line(error)
        if gradient is None:
            return "its output does not depend on them differentiably"
        return gradient

    def on_probes(self, image_shape: Sequence[int]) -> np.ndarray:
        """Return the logits of a few random images: what tells networks of equal weights apart."""
        return self._tried(lambda: self.logits(draws.probes(_PROBES, image_shape)).numpy())

    def _tried(self, call: Callable[[], T]) -> T:
        """Return what a call of the network on a few images returns, within the time limit."""
        if self.time_limit is None:
            return call()
        try:
            return within(self.time_limit, call)
        except TimeoutError as error:
            raise InputError(
                f"{self} does not answer: {_PROBES} images took more than {self.time_limit:g} s; "
                "its graph may never end"
            ) from error


Network: TypeAlias = (
    str | os.PathLike | Source | keras.Model | Callable[[tf.Tensor], tf.Tensor | Outputs]
)


def load_source(
    network: Network,
    image_shape: Sequence[int] | None = None,
    num_classes: int | None = None,
    *,
    name: str | None = None,
    weights_hash: str | None = None,
    trust: bool = False,
    time_limit: float | None = None,
    value_range: Sequence[float] | None = None,
    from_logits: bool | str = "auto",
    logits: str | None = None,
    embedding: str | None = None,
) -> Source:
    """Load a network by its path, or take one that is in memory.

    A path names a SavedModel (the largest version), a .keras or .h5 file, a run, or as zoo:NAME a
    network that the package brings along. Any SavedModel
    will do whose signature "serve" or "serving_default" takes one float image batch and returns
    "logits", or one output (batch, classes); it has an "embedding" where it returns one, else the
    logits are its embedding. Of a Keras model and of a function the same is asked. Networks of any
    pixel range, that end in a softmax or a sigmoid or have one logit, become functions of [0, 1]
    images to logits, see ``border.adapt``.

    Args:
        network: a path, see ``provenance.locate``, or a text of ``models.forms``; a Keras model or
            an ``AdversarialTrainer``, whose network is meant, as it is now; a function from images
            (batch, H, W, C) to logits or a dict with "logits"; or a ``Source``, which is returned.
        image_shape, num_classes: of the dataset; given both, the network is checked against them.
            A network that is made anew, app:NAME or module:function, needs both.
        name: of a network in memory; a model's or a function's own where None.
        weights_hash: of a function, any text that changes when the function does: banks, reports
            and runs know a network by it.
        trust: run a SavedModel though it does more than compute, such as write files.
        time_limit: seconds in which a SavedModel must answer for a few images; ``TIME_LIMIT``
            where None. Loading it may take ten times as long.
        value_range: the lowest and the highest value of a pixel, as the network takes it; where
            None what is recorded of it, else (0, 1).
        from_logits, logits, embedding: what its outputs are, see ``border.adapt``; where they are
            not said, what is recorded of it.

    Raises:
        InputError: no network there, one that cannot be loaded, or one that does not fit.
    """
    told = _Told(value_range, from_logits, logits, embedding)
    if isinstance(network, Source):
        if told != _Told():
            raise InputError(f"{network} is loaded already; say what it is where it is loaded")
        source = network
    elif is_path(network):
        source = _located(
            locate(network), image_shape, num_classes, told, trust, time_limit or TIME_LIMIT
        )
    elif isinstance(network, keras.Model):
        own = name or getattr(network, "network", network).name
        source = _of_keras(network, own, None, {}, told, image_shape)
    elif callable(network):
        source = _of_function(network, name, weights_hash, told, image_shape)
    else:
        raise InputError(
            f"a network is a path, a Keras model or a function from images to logits, "
            f"got {type(network).__name__}"
        )
    if image_shape is not None and num_classes is not None:
        source.check(image_shape, num_classes)
    return source


def made_for(network: Network, image_shape: Sequence[int], num_classes: int) -> tuple:
    """Return what ``load_source`` is given of images beside a network: both if it is made anew.

    Of others they are left out, as it would be checked against them.
    """
    anew = is_path(network) and locate(network).made is not None
    return (image_shape, num_classes) if anew else ()


class _Told(NamedTuple):
    """What is said of a network that is loaded, as for ``border.adapt``; None is not said."""

    value_range: Sequence[float] | None = None
    from_logits: bool | str = "auto"
    logits: str | None = None
    embedding: str | None = None

    def or_recorded(self, recorded: dict) -> _Told:
        """Return it with what a record says of the rest."""
        kept: dict[str, Any] = {
            name: recorded.get(name)
            for name in ("value_range", "logits", "embedding")
            if getattr(self, name) is None
        }
        if self.from_logits == "auto":
            kept["from_logits"] = said_of_logits(recorded.get("from_logits"))
        return self._replace(**kept)


def _located(
    location: Location, image_shape, num_classes, told: _Told, trust: bool, time_limit: float
) -> Source:
    if location.made is not None:
        from cascade_keras.models import find, forms

        if forms.form_of(location.made).kind == forms.APPLICATION:
            raise InputError(
                f"{location.made} would be a network of new weights; name one that was trained: a "
                "run, a saved network, a .keras or .h5 file"
            )
        with _no_setting():
            model, known = find(
                location.made, input_shape=image_shape, num_classes=num_classes, setting="network"
            )
        told = told.or_recorded({"value_range": known})
        return _of_keras(model, location.name, None, {}, told, image_shape)
    if location.is_saved_model:
        return _load_saved_model(location, told, trust, time_limit)
    model = model_files.load(location.path)
    recorded = location.provenance.get("recipe", {})
    provenance = location.provenance
    told = told.or_recorded(recorded)
    return _of_keras(model, location.name, location.named, provenance, told, image_shape)


@contextlib.contextmanager
def _no_setting() -> Iterator[None]:
    """Leave it to others to say which of their settings an error is about."""
    try:
        yield
    except InputError as error:
        raise InputError(error.message) from error


def _of_function(
    function: Callable, name: str | None, digest: str | None, told: _Told, image_shape
) -> Source:
    name = name or getattr(function, "__name__", type(function).__name__)
    if digest is None:
        raise InputError(
            f"the function {name} has no weights by which it could be known again; give "
            "load_source(function, weights_hash=...) a text that changes when it does"
        )
    adapted = _adapted(function, name, told)
    shape = (None, None, None) if image_shape is None else tuple(image_shape)
    return _source(adapted, name, None, shape, digest, {})


def _adapted(network: Callable, where, told: _Told, image_shape=None) -> Adapted:
    try:
        return adapt(network, image_shape=image_shape, **told._asdict())
    except InputError as error:
        raise InputError(f"{where}: {error}") from error


def _source(
    adapted: Adapted, name: str, path, shape, digest: str, provenance: dict, *rest: Any, arrays=()
) -> Source:
    """Return a source of what ``adapt`` returned; ``arrays`` are its weights, if it has any."""
    where = path or name
    # The states of generators, whole numbers, are no weights, and not everybody saves them.
    learned = [array for array in arrays if array.dtype.kind not in "biuO"]

    def function(images: tf.Tensor) -> Outputs:
        try:
            outputs = adapted(images)
        except InputError as error:
            raise InputError(f"{where}: {error.message}") from error
        return {"logits": outputs.logits, "embedding": outputs.embedding}

    return Source(  # type: ignore[misc]  # the rest are trust and time_limit
        name,
        path,
        shape,
        digest,
        provenance,
        function,
        *rest,
        value_range=adapted.value_range,
        shapes=shapes_hash(learned),
        weights=weights_hash(learned) if learned else None,
    )


def _load_saved_model(location: Location, told: _Told, trust: bool, time_limit: float) -> Source:
    path = location.path
    check_whole(path)
    if not trust:
        check_harmless(path)
    limit = _LOADING * time_limit
    try:
        loaded = within(limit, lambda: tf.saved_model.load(str(path)))
    except TimeoutError as error:
        raise InputError(
            f"{path} cannot be loaded: it took more than {limit:g} s; its graph may never end"
        ) from error
    except Exception as error:  # damaged files raise whatever protobuf or TensorFlow do
        raise InputError(
            f"{path} cannot be loaded ({first_line(error)}); copy it, or save it, again"
        ) from error
    signatures = getattr(loaded, "signatures", {})
    name = next((n for n in ("serve", "serving_default") if n in signatures), None)
    if name is None:
        raise InputError(f"{path} has neither a signature 'serve' nor 'serving_default'")
    signature = signatures[name]
    specs = signature.structured_input_signature[1]
    key, spec = next(iter(specs.items()), (None, None))
    if len(specs) != 1 or spec.shape.rank != 4 or not spec.dtype.is_floating:
        taken = ", ".join(f"{s.dtype.name} {s.shape}" for s in specs.values())
        raise InputError(
            f"{path}: signature {name!r} must take one batch of images, floats of shape "
            f"(batch, height, width, channels); it takes {taken or 'nothing'}"
        )
    if spec.shape[0] is not None:
        raise InputError(
            f"{path}: signature {name!r} takes batches of {spec.shape[0]} only; save it with an "
            "unknown batch size"
        )
    recorded = location.provenance.get("weights_hash")
    arrays = [variable.numpy() for variable in getattr(loaded, "variables", ())]
    if recorded is None:
        digest = source_hash(_files_hash(path), told)
    else:
        own = tuple(location.provenance.get("value_range", UNIT))
        if told.value_range is not None and check_value_range(told.value_range) not in (UNIT, own):
            raise InputError(
                f"{path} was saved with a network of value_range={as_text(own)}, which is inside "
                "it; leave value_range out"
            )
        told = told._replace(value_range=None)  # the signatures take [0, 1]
        digest = weights_hash(arrays)
        if digest != recorded:
            raise InputError(f"{path} is damaged: its weights are not those recorded; export again")
        digest = location.provenance.get("source_hash", digest)

    def function(images: tf.Tensor, keep_alive=loaded) -> Outputs:
        return signature(**{key: tf.cast(images, spec.dtype)})

    shape = tuple(spec.shape[1:])
    adapted = _adapted(function, path, told)
    known = location.name, path, shape, digest, location.provenance, trust, time_limit
    source = _source(adapted, *known, arrays=arrays)
    return source if recorded is None else dataclasses.replace(source, value_range=own)


def source_hash(weights: str, told: _Told | Adapted) -> str:
    """Return by what a network is known: the hash of its weights, where nothing else is said of it.

    What is said of its pixels and outputs makes another function of the same weights. A source and
    its exported network are the same.
    """
    if isinstance(told, Adapted):
        told = _Told(told.value_range, told.from_logits, told.logits_name)
    value_range = UNIT if told.value_range is None else tuple(map(float, told.value_range))
    said = [list(value_range), told.from_logits is True, told.logits]
    if said == [list(UNIT), False, None]:
        return weights
    return hashlib.sha256(json.dumps([weights, *said]).encode()).hexdigest()


def _of_keras(
    model: keras.Model, name: str, path, provenance: dict, told: _Told, image_shape
) -> Source:
    where = path or name
    trainer = isinstance(getattr(model, "border", None), Adapted)
    network = getattr(model, "network", model)
    shape = _own_shape(network)
    if shape is None:
        if image_shape is None and isinstance(network, keras.Sequential):
            raise InputError(
                f"{where} must take one batch of images (batch, height, width, channels) of a size "
                "that it says; build it from keras.Input((height, width, channels))"
            )
        told_shape = image_shape
        shape = (None, None, None) if image_shape is None else tuple(image_shape)
    elif not isinstance(shape, tuple) or len(shape) != 4:
        raise InputError(f"{where} must take one batch of images (batch, height, width, channels)")
    else:
        told_shape, shape = None, shape[1:]
    adapted = _adapted(model if trainer else network, where, told, told_shape)
    if not network.built:
        raise InputError(f"{where} is not built yet; call it on images, or give image_shape")
    arrays = [np.asarray(weight) for weight in network.weights]
    digest = source_hash(weights_hash(arrays), adapted)
    return _source(adapted, name, path, shape, digest, provenance, arrays=arrays)


def _own_shape(network: keras.Model):
    """Return a model's input shape; None where it says none, as one by subclassing need not."""
    try:
        return network.input_shape
    except (AttributeError, ValueError):
        return None


def _files_hash(folder: pathlib.Path) -> str:
    """Return the SHA-256 of a SavedModel's graph and variables, as they lie on disk."""
    digest = hashlib.sha256()
    for file in (folder / "saved_model.pb", *sorted((folder / "variables").glob("*"))):
        with open(file, "rb") as opened:
            digest.update(hashlib.file_digest(opened, "sha256").digest())
    return digest.hexdigest()
