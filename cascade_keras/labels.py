"""Labels as users have them: classes, one-hot rows, soft rows; all else is refused.

    (N,), (N, 1)   whole numbers 0..K - 1: classes
    (N, K)         rows of one 1 and zeros: classes; rows of numbers of 0 or above that sum to 1:
                   soft labels, such as smoothed ones and those of mixup
    (N,), (N, 1)   of a network of one logit, fractions: the probability of class 1

Rows that name several classes (multi-hot) sum to more than 1. Nothing of the kind is guessed at.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import tensorflow as tf

from cascade_keras.errors import InputError, shown

TOLERANCE = 1e-3  # by which the sum of a soft row may miss 1: rows in half precision do
_FORMS = (
    "must be classes (N,) or (N, 1), or rows (N, classes) that are one-hot or soft (0 or above, "
    "sum 1)"
)
_ROWS = f"{_FORMS}; rows with several 1s are multi-label data, which is not classified here"


class Labels(NamedTuple):
    """The labels of N images.

    Attributes:
        hard: int32 (N,), the class, or that of the largest label of a soft row.
        soft: float32 (N, K) where the rows are soft, None where each image has one class.
    """

    hard: np.ndarray | tf.Tensor
    soft: np.ndarray | tf.Tensor | None

    @property
    def target(self) -> np.ndarray | tf.Tensor:
        """What losses and attacks are given: the soft rows where there are any."""
        return self.hard if self.soft is None else self.soft


def check_labels(labels, num_classes: int | None = None, *, binary: bool = False) -> Labels:
    """Return labels as arrays.

    Args:
        labels: in one of the forms above, of NumPy or a tensor with values.
        num_classes: K of the network; None where it is not known, then no class is too large.
        binary: whether the network has one logit, so that fractions are probabilities of class 1.

    Raises:
        InputError: multi-hot rows, rows of another width, classes outside of 0..K - 1, fractions,
            NaN, or no numbers.
    """
    given = np.asarray(labels)
    if given.dtype.kind not in "iufb" and given.dtype != tf.bfloat16.as_numpy_dtype:
        raise InputError(f"{_FORMS}; got {given.dtype.name}", "labels")
    if given.ndim not in (1, 2):
        raise InputError(f"{_FORMS}; got shape {given.shape}", "labels")
    if given.ndim == 2 and given.shape[1] != 1:
        return _check_rows(given, num_classes)
    values = given.reshape(-1).astype(np.float64)
    whole = np.isfinite(values) & (values == np.floor(values))
    if binary and not whole.all():
        if not ((values >= 0) & (values <= 1)).all():
            raise InputError("probabilities of class 1 lie in [0, 1]", "labels")
        rows = np.stack([1 - values, values], axis=1).astype(np.float32)
        return Labels((values > 0.5).astype(np.int32), rows)
    if not whole.all():
        bad = given.reshape(-1)[~whole][0]
        raise InputError(f"classes must be whole numbers, got {shown(float(bad))}", "labels")
    most = np.iinfo(np.int32).max if num_classes is None else num_classes - 1
    outside = values[(values < 0) | (values > most)]
    if outside.size:
        bad = int(outside[0])
        two = binary or num_classes == 2
        hint = "; give 0 and 1 for two classes" if two and bad == -1 else ""
        raise InputError(f"classes must be 0..{most}, got {bad}{hint}", "labels")
    return Labels(values.astype(np.int32), None)


def _check_rows(given: np.ndarray, num_classes: int | None) -> Labels:
    _check_width(given.shape[1], num_classes)
    rows = given.astype(np.float64)
    fine = np.isfinite(rows).all() and (rows >= 0).all()
    if not fine or not (np.abs(rows.sum(axis=1) - 1) <= TOLERANCE).all():
        raise InputError(_ROWS, "labels")
    hard = rows.argmax(axis=1).astype(np.int32)
    one_hot = ((rows == 0) | (rows == 1)).all()
    return Labels(hard, None if one_hot else rows.astype(np.float32))


def _check_width(width: int, num_classes: int | None) -> None:
    if num_classes is not None and width != num_classes:
        raise InputError(
            f"rows of {width} labels for a network of {num_classes} classes; {_FORMS}", "labels"
        )


def guard_labels(
    labels: tf.Tensor, num_classes: int, *, count=None, binary: bool = False
) -> tuple[Labels, list[tf.Operation]]:
    """Return labels as tensors, and the assertions of what only their values tell.

    Outside of a graph it is ``check_labels``. In one the values are not known: rows of floats are
    soft labels there, be they one-hot or not, which makes no difference to a loss; the last
    dimension, or the rank, may be unknown.

    Args:
        labels: of any usual form.
        num_classes: K.
        count: N, where the labels' rank is unknown.
        binary: as for ``check_labels``.

    Returns:
        The labels, and operations on which what is made of them has to depend.

    Raises:
        InputError: of what the shape or type tells, and outside of a graph the values.
    """
    labels = tf.convert_to_tensor(labels)
    if tf.executing_eagerly():
        found = check_labels(labels, num_classes, binary=binary)
        soft = None if found.soft is None else tf.constant(found.soft)
        return Labels(tf.constant(found.hard), soft), []
    if labels.dtype == tf.string or labels.dtype.is_complex:
        raise InputError(f"{_FORMS}; got {labels.dtype.name}", "labels")
    if labels.shape.rank is None:
        labels = tf.reshape(labels, [tf.shape(labels)[0] if count is None else count, -1])
    if labels.shape.rank not in (1, 2):
        raise InputError(f"{_FORMS}; got shape {labels.shape}", "labels")
    width = labels.shape[1] if labels.shape.rank == 2 else 1
    if width == 1:
        return _guard_classes(tf.reshape(labels, [-1]), num_classes, binary)
    if width is not None:
        _check_width(width, num_classes)
        return _guard_rows(labels)
    # Either form may come: classes become rows.
    narrow = tf.shape(labels)[1] == 1
    fits = tf.debugging.Assert(
        narrow | (tf.shape(labels)[1] == num_classes),
        [f"labels: rows of another width than the network's {num_classes} classes; {_FORMS}"],
    )
    classes = tf.cond(narrow, lambda: labels[:, 0], lambda: tf.zeros_like(labels[:, 0]))
    found, checks = _guard_classes(classes, num_classes, binary)
    of_classes = tf.one_hot(found.hard, num_classes) if found.soft is None else found.soft
    rows = tf.cond(narrow, lambda: of_classes, lambda: tf.cast(labels, tf.float32))
    rows = tf.ensure_shape(rows, [None, num_classes])
    found, more = _guard_rows(rows)
    return found, [fits, *checks, *more]


def _guard_classes(values: tf.Tensor, num_classes: int, binary: bool):
    if values.dtype.is_floating and binary:
        inside = tf.reduce_all((values >= 0) & (values <= 1))
        check = tf.debugging.Assert(
            inside, ["labels: a network of one logit takes classes 0 and 1, or probabilities"]
        )
        chance = tf.cast(values, tf.float32)
        rows = tf.stack([1 - chance, chance], axis=1)
        return Labels(tf.cast(chance > 0.5, tf.int32), rows), [check]
    inside = tf.ones_like(values, tf.bool)
    if values.dtype.is_floating:
        inside = tf.equal(values, tf.floor(values))  # not where it is NaN
    elif values.dtype == tf.bool:
        values = tf.cast(values, tf.int32)
    elif values.dtype.is_unsigned:
        values = tf.cast(values, tf.int64)
    inside &= (values >= 0) & (values < tf.cast(num_classes, values.dtype))
    check = tf.debugging.Assert(
        tf.reduce_all(inside),
        [f"labels: classes must be whole numbers of 0..{num_classes - 1}"],
    )
    return Labels(tf.cast(values, tf.int32), None), [check]


def _guard_rows(rows: tf.Tensor) -> tuple[Labels, list[tf.Operation]]:
    hard = tf.argmax(tf.cast(rows, tf.float32), axis=-1, output_type=tf.int32)
    soft = tf.cast(rows, tf.float32)
    sums = tf.reduce_sum(soft, axis=-1)
    fine = tf.reduce_all(soft >= 0) & tf.reduce_all(tf.abs(sums - 1) <= TOLERANCE)
    check = tf.debugging.Assert(fine, [f"labels: {_ROWS}"])
    return Labels(hard, None if rows.dtype.is_integer else soft), [check]


def unsmoothed(labels: tf.Tensor, smoothing: float) -> tf.Tensor:
    """Return the labels (n, K) that ``smoothed`` was given, within 1e-6; exactly, of classes.

    Cascade images from a bank are made of the labels as they are, so those of a step are too.
    """
    if not smoothing or labels.shape.rank == 1:
        return labels
    rows = (labels - smoothing / labels.shape[-1]) / (1 - smoothing)
    return tf.round(rows * 1e6) / 1e6


def smoothed(labels: Labels, num_classes: int, smoothing: float) -> Labels:
    """Return (1 - s) times the labels + s / K, as Keras's ``label_smoothing`` does."""
    if not smoothing:
        return labels
    rows = tf.one_hot(labels.hard, num_classes) if labels.soft is None else labels.soft
    return Labels(labels.hard, (1 - smoothing) * rows + smoothing / num_classes)
