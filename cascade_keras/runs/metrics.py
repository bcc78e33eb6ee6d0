"""One row a metric of a training step: where TensorBoard shows it, and a progress line."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping


@dataclasses.dataclass(frozen=True)
class Metric:
    """How a number is shown.

    Attributes:
        tag: in TensorBoard, its group before the slash.
        factor: what it is multiplied by; accuracies are shown in per cent.
        progress: its place in a progress line, a format of the shown number; None for none.
        needs: it is a measurement only where the metric of this name is not 0; without adversarial
            images a flat line at 0 would look like one.
    """

    tag: str
    factor: float = 1
    progress: str | None = None
    needs: str | None = None

    def measured(self, values: Mapping[str, float]) -> bool:
        """Whether its number among all these means something."""
        return self.needs is None or bool(values.get(self.needs))


METRICS = {
    "loss": Metric("loss/total", progress="loss {:.3g}"),
    "clean_loss": Metric("loss/clean", progress="clean {:.3g}"),
    "adversarial_loss": Metric("loss/adversarial", progress="adv {:.3g}", needs="adversarial_loss"),
    "distance_loss": Metric("loss/distance", progress="dist {:.3g}"),
    "decay_loss": Metric("loss/decay", progress="decay {:.3g}"),
    "clean_accuracy": Metric("accuracy/clean", 100, progress=" accuracy clean {:.1f}%"),
    "adversarial_accuracy": Metric(
        "accuracy/adversarial", 100, progress="adv {:.1f}%", needs="adversarial_loss"
    ),
    "embedding_distance": Metric("embedding_distance/training"),
    "max_logit": Metric("network/max_logit"),
    "gradient_norm": Metric("optimizer/gradient_norm"),
    "learning_rate": Metric("optimizer/learning_rate", progress=" lr {:g}"),
    "images_per_second": Metric("speed/images_per_second", progress=" {:.0f} images/s"),
}


def metric(name: str) -> Metric:
    """Return a metric's row; one that has none is shown in the group "training"."""
    return METRICS.get(name) or Metric(f"training/{name}")


def progress_text(values: Mapping[str, float]) -> str:
    """Return the metrics of a progress line, in the order of their rows."""
    return " ".join(
        row.progress.format(row.factor * values[name])
        for name, row in METRICS.items()
        if row.progress and name in values and row.measured(values)
    )
