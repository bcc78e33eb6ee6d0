"""Learning rates that rise to a peak and fall to 0, as one-step training is done in few epochs."""

from __future__ import annotations

import keras


@keras.saving.register_keras_serializable("cascade_keras")
class Triangular(keras.optimizers.schedules.LearningRateSchedule):
    """Rises linearly from 0 to the peak, then falls linearly to 0 (Wong et al. 2020).

    Args:
        learning_rate: at the peak.
        steps: of the whole training, where the rate is 0 again.
        peak_step: where it is highest; 0 for no rise.
    """

    def __init__(self, learning_rate: float, steps: int, peak_step: int):
        super().__init__()
        self.learning_rate, self.steps, self.peak_step = learning_rate, steps, peak_step

    def __call__(self, step):
        step = keras.ops.cast(step, "float32")
        falling = (self.steps - step) / max(1, self.steps - self.peak_step)
        share = keras.ops.minimum(step / self.peak_step, falling) if self.peak_step else falling
        return self.learning_rate * keras.ops.maximum(share, 0.0)

    def get_config(self):
        return {
            "learning_rate": self.learning_rate, "steps": self.steps, "peak_step": self.peak_step,
        }  # fmt: skip


def peaked(
    kind: str, learning_rate: float, steps: int, peak: float
) -> keras.optimizers.schedules.LearningRateSchedule:
    """Return the schedule of a whole training; the first step, counted as 0, has the rate 0.

    Args:
        kind: "triangular", linearly down from the peak, or "cosine", half a cosine (Loshchilov
            and Hutter 2017).
        learning_rate: at the peak, ``round(peak * steps)`` steps after the start.
        steps: after which it is 0.
        peak: a share in [0, 1); 0 begins at ``learning_rate``.

    Raises:
        ValueError: another kind.
    """
    peak_step = min(round(peak * steps), steps - 1)
    if kind == "triangular":
        return Triangular(learning_rate, steps, peak_step)
    if kind != "cosine":
        raise ValueError(f"{kind!r} is neither triangular nor cosine")
    decay = keras.optimizers.schedules.CosineDecay
    if not peak_step:
        return decay(learning_rate, steps)
    return decay(0.0, steps - peak_step, warmup_target=learning_rate, warmup_steps=peak_step)
