"""Metrics that a user gives to ``compile``: each for clean and for adversarial images."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import keras
import tensorflow as tf

from cascade_keras.errors import InputError, first_line, shown
from cascade_keras.keras_private import copy_of, directed_mean, is_of_probabilities

_ACCURACY = ("accuracy", "acc")


class OfBothHalves:
    """A copy of each metric for the clean and for the adversarial images of a batch.

    It is no Keras object, so that models do not save its state.

    Args:
        metrics, weighted_metrics: as Keras's ``compile`` takes them, for one output.
        gives_logits: whether what metrics are given are logits.

    Raises:
        InputError: no metrics, or metrics of probabilities where there are logits.
    """

    def __init__(
        self,
        metrics: Sequence = (),
        weighted_metrics: Sequence = (),
        gives_logits: bool = False,
    ):
        self._rows: list[tuple[str, keras.metrics.Metric, bool, bool]] = []
        taken = {"accuracy"}  # the trainer's own
        for weighted, name, given in (
            (False, "metrics", metrics),
            (True, "weighted_metrics", weighted_metrics),
        ):
            if isinstance(given, dict):
                raise InputError("are of one output: give a list", name)
            for one in given if isinstance(given, list | tuple) else [given]:
                if one in _ACCURACY[:1] and not weighted:
                    continue
                self._add(one, weighted, name, taken, gives_logits)

    def _add(self, given, weighted: bool, setting: str, taken: set, gives_logits: bool) -> None:
        counts = isinstance(given, str) and given in _ACCURACY
        label = given if counts else _made(given, setting).name
        if label in taken:
            label = f"weighted_{label}" if weighted else label
        if label in taken:
            raise InputError(f"there is a metric {label!r} already; name one of them", setting)
        taken.add(label)
        for half in ("clean", "adversarial"):
            if counts:
                metric = directed_mean(label, "up")
            else:
                metric = _made(given, setting)
                if gives_logits and is_of_probabilities(metric):
                    raise InputError(
                        f"{type(metric).__name__} {metric.name!r} takes probabilities, the network "
                        "gives logits; pass it from_logits=True",
                        setting,
                    )
            metric.name = f"{half}_{label}"
            self._rows.append((half, metric, weighted, counts))

    def __bool__(self) -> bool:
        return bool(self._rows)

    @property
    def metrics(self) -> list[keras.metrics.Metric]:
        """All of them, clean_... and adversarial_..."""
        return [metric for _, metric, _, _ in self._rows]

    def update(
        self,
        labels: tf.Tensor,
        outputs: tf.Tensor,
        k: int | tf.Tensor,
        weights: tf.Tensor | None,
        correct: tf.Tensor,
    ) -> None:
        """Count a batch.

        Args:
            labels: (m, ...) as they were given; k adversarial images, then clean ones.
            outputs: what the network itself returned for them.
            k: how many are adversarial.
            weights: (m,), of the data, or None.
            correct: (m,), 1 where an image is classified as its label says.
        """
        for half, metric, weighted, counts in self._rows:
            rows = slice(None, k) if half == "adversarial" else slice(k, None)
            own = weights[rows] if weighted and weights is not None else None
            if counts:
                metric.update_state(correct[rows], own)
                continue
            try:
                metric.update_state(labels[rows], outputs[rows], own)
            except (ValueError, TypeError, IndexError, tf.errors.InvalidArgumentError) as error:
                raise InputError(
                    f"{metric.name} cannot be taken of labels {labels.shape} and outputs "
                    f"{outputs.shape} ({first_line(error)})",
                    "metrics",
                ) from error

    def results(self) -> dict[str, tf.Tensor]:
        """Return the value of each metric by its name."""
        return {metric.name: metric.result() for metric in self.metrics}


def _made(given: str | keras.metrics.Metric | Callable, setting: str) -> keras.metrics.Metric:
    """Return a new metric like the one that is given."""
    if isinstance(given, keras.metrics.Metric):
        return copy_of(given)
    try:
        found = keras.metrics.get(given)
    except (ValueError, TypeError) as error:
        raise InputError(f"Keras knows no metric {shown(given)}", setting) from error
    if isinstance(found, keras.metrics.Metric):
        found.name = given if isinstance(given, str) else found.name  # as Keras names it
        return found
    if not callable(found):
        raise InputError(f"must be Keras metrics, got {shown(given)}", setting)
    name = given if isinstance(given, str) else getattr(found, "__name__", type(found).__name__)
    return keras.metrics.MeanMetricWrapper(found, name=name)
