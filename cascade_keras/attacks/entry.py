"""What every attack does with what it is given, before it is called: one decorator.

Images of any range, in which they come back too; a network whose outputs are seen to be no logits;
names, seeds and epsilons.
"""

from __future__ import annotations

import contextlib
import contextvars
import functools
import inspect
import numbers
import sys
import warnings
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import tensorflow as tf

from cascade_keras import ranges
from cascade_keras.attacks.arguments import as_images
from cascade_keras.attacks.margins import OBJECTIVES
from cascade_keras.attacks.objectives import LogitsFn, Objective
from cascade_keras.attacks.outputs import SIGMOID, SOFTMAX, is_declared, made_by, sum_to_one
from cascade_keras.errors import InputError, shown
from cascade_keras.keras_private import converted
from cascade_keras.ranges import UNIT, ValueRange

_within = contextvars.ContextVar("within an attack", default=False)
_said = contextvars.ContextVar("epsilons below 1 were warned of", default=False)


def entry(attack: Callable) -> Callable:
    """Let an attack take images of any range, and check and bring in order what it is given.

    The attack gets ``value_range``, a keyword: the lowest and the highest value of a pixel. Its
    images come and go in that range, and ``logits_fn`` takes them in it; epsilon stays in units of
    0..255 of the range. Where the range is (0, 1) nothing is added to what the attack computes.

    ``objective`` may be a name of ``OBJECTIVES`` or a function of labels, and labels (batch, 1).
    Images of half precision are attacked, and come back, in float32.

    Refused with InputError are images outside the range, labels that are none, and outputs of
    ``logits_fn`` that are probabilities: by their values in eager mode, in a graph by the operation
    that makes them. An attack that calls another one is one entry.
    """
    signature = inspect.signature(attack)

    @functools.wraps(attack)
    def entered(*args, value_range: ValueRange = UNIT, **options):
        if _within.get() and value_range is UNIT:
            return attack(*args, **options)
        bound, back = _prepared(signature, args, options, value_range)
        with _one_entry():
            return back(attack(*bound.args, **bound.kwargs))

    parameters = [*signature.parameters.values()]
    place = next((i for i, p in enumerate(parameters) if p.kind is p.VAR_KEYWORD), len(parameters))
    kind = inspect.Parameter.KEYWORD_ONLY
    own = inspect.Parameter("value_range", kind, default=UNIT, annotation="ValueRange")
    parameters.insert(place, own)
    told = signature.replace(parameters=parameters)
    entered.__signature__ = told  # type: ignore[attr-defined]  # as inspect reads it
    return entered


@contextlib.contextmanager
def _one_entry():
    token = _within.set(True)
    try:
        yield
    finally:
        _within.reset(token)


@tf.autograph.experimental.do_not_convert  # nothing here depends on tensors of a graph
def _prepared(signature: inspect.Signature, args, options: dict, value_range) -> tuple:
    """Return what the attack is called with, and what brings its images back into their range."""
    bound = signature.bind(*args, **options)
    given = bound.arguments
    value_range = ranges.check_value_range(value_range)
    given["images"] = given_images(given["images"], value_range)
    if given.get("labels") is not None:
        given["labels"] = given_labels(given["labels"], len_of(given["images"]))
    if given.get("logits_fn") is not None:
        given["logits_fn"] = as_logits_fn(given["logits_fn"], value_range, given.get("labels"))
    warn_of_fractions(given.get("epsilon", given.get("epsilons")))
    rest = given.get("options", given)  # those of at_epsilon lie within its **options
    if "objective" in rest:
        rest["objective"] = as_objective(rest["objective"])

    def back(images):
        return ranges.scaled_from_unit(images, value_range)

    return bound, back


def given_images(images, value_range: ValueRange) -> tf.Tensor:
    """Return images of a range as floats in [0, 1]; refuse those whose values are seen outside.

    Raises:
        InputError: whole numbers, another shape, or values outside the range.
    """
    images = tf.convert_to_tensor(images)
    if images.shape.rank not in (4, None):
        raise InputError(
            f"images must have the shape (batch, height, width, channels), got {images.shape}"
        )
    unit = as_images(images, value_range)
    if tf.executing_eagerly() and tf.size(images):
        lowest, highest = (float(f(images)) for f in (tf.reduce_min, tf.reduce_max))
        refused = ranges.why_refused(lowest, highest, len(images), value_range)
        if refused:
            raise InputError(refused)
    return unit


def len_of(images: tf.Tensor) -> int | None:
    """Return the number of images, None where it is not known."""
    return images.shape[0] if images.shape.rank else None


def given_labels(labels, count: int | None):
    """Return labels as attacks take them: classes (batch,), or soft, floats (batch, classes).

    Raises:
        InputError: of another shape or number, fractions, negative ones, or rows of another sum
            than 1, where they are seen.
    """
    if not tf.is_tensor(labels):
        labels = np.asarray(labels)
    rank = labels.shape.rank if tf.is_tensor(labels) else labels.ndim
    if rank == 2 and labels.shape[-1] == 1:
        labels, rank = (tf.reshape if tf.is_tensor(labels) else np.reshape)(labels, [-1]), 1
    if rank not in (1, 2, None):
        raise InputError(f"must be (batch,) or (batch, classes), got {labels.shape}", "labels")
    own = labels.shape[0] if rank else None
    if None not in (count, own) and own != count:
        raise InputError(f"there are {own} for {count} images", "labels")
    floats = tf.as_dtype(labels.dtype).is_floating
    if rank == 1 and floats:
        raise InputError(f"must be whole numbers, got {labels.dtype}", "labels")
    if rank == 2 and not floats:
        labels = tf.cast(labels, tf.float32)
    elif rank == 1 and tf.as_dtype(labels.dtype) not in (tf.int32, tf.int64):
        labels = tf.cast(labels, tf.int32)
    if not tf.is_tensor(labels) or tf.executing_eagerly():
        _check_values(np.asarray(labels), rank)
    return labels


def _check_values(labels: np.ndarray, rank: int) -> None:
    if labels.size and not (labels >= 0).all():
        raise InputError(f"must be 0 or above, got {labels.min():g}", "labels")
    if rank == 2 and not np.allclose(labels.sum(-1, dtype=np.float64), 1, atol=1e-3):
        raise InputError("rows of soft labels must sum to 1", "labels")


def _classes_in(labels) -> range:
    """Return the numbers of classes that go with labels, as far as these are seen."""
    known = tf.get_static_value(labels) if tf.is_tensor(labels) else labels
    if labels is not None and len(labels.shape or ()) == 2 and labels.shape[1] is not None:
        return range(labels.shape[1], labels.shape[1] + 1)
    least = 0 if known is None or not known.size else int(known.max()) + 1
    return range(least, sys.maxsize)


def as_logits_fn(
    logits_fn: LogitsFn, value_range: ValueRange = UNIT, labels: Any = None
) -> LogitsFn:
    """Return a function of [0, 1] images of one of a range; it refuses what is no logits.

    Where labels are given it refuses logits of other classes than these, if that is seen.
    """
    looked_at: list[bool] = []
    classes = _classes_in(labels)

    written = converted(logits_fn)

    def network(images):
        logits = written(ranges.scaled_from_unit(images, value_range))
        refuse_no_logits(logits, looked_at)
        width = logits.shape[-1] if logits.shape.rank else None
        if width is not None and width not in classes:
            found = f"classes up to {classes[0] - 1}" if classes[1:] else f"rows of {classes[0]}"
            raise InputError(f"{found} for logits of {width} classes", "labels")
        return logits

    return network


@tf.autograph.experimental.do_not_convert
def refuse_no_logits(logits: tf.Tensor, looked_at: list[bool]) -> None:
    """Refuse outputs that are seen to be no logits.

    Args:
        logits: the outputs.
        looked_at: not empty where eager outputs have been looked at before, which is not repeated.

    Raises:
        InputError: no tensor (batch, classes) of two classes or more, or probabilities.
    """
    if not tf.is_tensor(logits):
        raise InputError(
            f"logits_fn must return logits (batch, classes), it returns a {type(logits).__name__}; "
            "border.adapt(network).logits makes a function of logits of most networks"
        )
    if logits.shape.rank not in (2, None) or (logits.shape.rank == 2 and logits.shape[-1] == 1):
        raise InputError(
            f"logits_fn must return logits (batch, classes) of two classes or more, it returns "
            f"{logits.shape}; border.adapt(network).logits makes two of one logit"
        )
    if is_declared(logits):
        return
    if hasattr(logits, "graph"):
        seen = made_by(logits)[0] in (SOFTMAX, SIGMOID)
    else:
        seen = not looked_at and sum_to_one(logits.numpy())
        looked_at.append(True)
    if seen:
        raise InputError(
            "logits_fn gives probabilities, whose gradients vanish; give the function of its "
            "logits: border.adapt(network).logits, or the network without its last activation"
        )


def as_objective(objective: str | Callable[[Any], Objective]) -> Callable[[Any], Objective]:
    """Return labels -> objective, which a name of ``OBJECTIVES`` may stand for.

    Raises:
        InputError: an unknown name.
    """
    if callable(objective):
        return objective
    if objective not in OBJECTIVES:
        raise InputError(
            f"must be one of {', '.join(OBJECTIVES)} or a function of labels, got "
            f"{shown(objective)}",
            "objective",
        )
    return OBJECTIVES[objective]


@contextlib.contextmanager
def fractions_said() -> Iterator[None]:
    """Warn of no epsilon below 1 as long as the block runs: the caller has said it."""
    token = _said.set(True)
    try:
        yield
    finally:
        _said.reset(token)


def warn_of_fractions(epsilon) -> None:
    """Warn of an epsilon, or of epsilons, that are numbers between 0 and 1: of another unit."""
    if _said.get():
        return
    number = isinstance(epsilon, numbers.Real)
    if not number and not isinstance(epsilon, list | tuple | range):
        return
    values = [epsilon] if number else [e for e in epsilon if isinstance(e, numbers.Real)]
    positive = [value for value in map(float, values) if value > 0]
    if positive and max(positive) < 1:
        warnings.warn(
            f"epsilon is in 0..255 units: {max(positive):g} is less than one pixel value; "
            "multiply by 255 if it is meant in units of [0, 1]",
            stacklevel=_outside(),
        )


def _outside() -> int:
    """Return how many frames lie between this module's caller and the user of the package."""
    package = __name__.partition(".")[0]
    frame, level = inspect.currentframe(), 0
    while frame is not None and frame.f_globals.get("__name__", "").partition(".")[0] == package:
        frame, level = frame.f_back, level + 1
    return level
