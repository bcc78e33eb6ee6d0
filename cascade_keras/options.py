"""What ``AdversarialTrainer`` is told, declared once: its arguments, checks, config and help."""

from __future__ import annotations

import dataclasses

from cascade_keras import draws, losses
from cascade_keras.attacks import specs
from cascade_keras.errors import InputError
from cascade_keras.settings import (
    EPSILON,
    FRACTION,
    NOT_NEGATIVE,
    POSITIVE,
    SEED,
    SHARE,
    Rule,
    Settings,
    setting,
)

PER_CENT = Rule(lambda value: 0 < value <= 100, "above 0 and at most 100 per cent")


@dataclasses.dataclass(frozen=True)
class TrainerOptions(Settings):
    """What ``AdversarialTrainer`` is told beside its network and sources.

    The help of each is one line, so that that of the trainer is one screen.
    """

    loss: str = setting(
        "pivot", "what becomes of a batch, a row of losses.LOSSES", choices=lambda: losses.LOSSES
    )
    max_epsilon: float = setting(
        16.0, "largest epsilon of a training image, in 0..255 units", EPSILON
    )
    attack: str = setting(
        "step_ll",
        "makes the training images: a name, or attacks.PGD(steps=7)",
        choices=lambda: specs.training_attacks(),
    )
    adversarial_batch_size: int | None = setting(
        None, "k; all images, or half of them where they are replaced, when None", POSITIVE
    )
    cascade_share: float = setting(0.5, "of the k images, those of cascade_sources", SHARE)
    adversarial_weight: float = setting(0.3, "lambda", NOT_NEGATIVE)
    distance_weight: float = setting(1e-4, "lambda_2", NOT_NEGATIVE)
    distance_norm: int = setting(2, "N of the distance between embeddings", choices=(1, 2))
    embedding_normalization: str = setting(
        "none",
        "before the distance: none, unit, variance; see losses.normalize_pair",
        choices=("none", "unit", "variance"),
    )
    pivot_guard: str = setting(
        "fixed_scale",
        "keeps embeddings from growing, see losses.fix_scale; none is as printed",
        choices=("none", "fixed_scale"),
    )
    paired_weight: float = setting(
        1.0, "of clean images with a partner, in the cross entropy", NOT_NEGATIVE
    )
    label_smoothing: float = setting(0.0, "s: labels are (1 - s) labels + s / classes", FRACTION)
    epsilon_sampling: str = setting(
        "clipped_normal",
        "of a training image's epsilon, see draws.sample_epsilon",
        choices=draws.EPSILON_SAMPLINGS,
    )
    per_pixel_epsilon: bool = setting(False, "jitter epsilon by N(0, 1) in every value of an image")
    sparsity: float = setting(
        100.0, "per cent of an image's values that a one-step attack perturbs", PER_CENT
    )
    weight_decay: float = setting(
        1e-4, "d in d / 2 * sum(w^2), over convolution and dense kernels only", NOT_NEGATIVE
    )
    seed: int = setting(0, "with the step, determines every random draw", SEED)

    def __post_init__(self):
        super().__post_init__()
        if self.sparsity < 100 and specs.ATTACKS[self.attack].kind != specs.ONE_STEP:
            raise InputError(
                f"must be 100 with {self.attack}: one-step attacks alone are sparse", "sparsity"
            )
