"""What ``AdversarialTrainer`` is told, declared once: its arguments, checks, config and help."""

from __future__ import annotations

import dataclasses
from typing import Self

from cascade_keras import draws, losses
from cascade_keras.attacks import specs
from cascade_keras.errors import InputError
from cascade_keras.losses import specs as loss_specs
from cascade_keras.settings import (
    EPSILON,
    FRACTION,
    NOT_NEGATIVE,
    PER_CENT,
    POSITIVE,
    SEED,
    SHARE,
    Settings,
    setting,
)


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
    attack: str | None = setting(
        None,
        "a name, or attacks.PGD(steps=7); step_ll, or guided for guided, when None",
        choices=lambda: specs.training_attacks(),
    )
    adversarial_batch_size: int | None = setting(
        None, "k; when None all, or half where they are replaced", POSITIVE
    )
    cascade_share: float = setting(0.5, "of the k images, those of cascade_sources", SHARE)
    adversarial_weight: float | None = setting(
        None, "lambda; 0.3, and 0 for guided, when None", NOT_NEGATIVE
    )
    distance_weight: float | None = setting(
        None, "lambda_2; 1e-4, and 10 for guided, when None", NOT_NEGATIVE
    )
    distance: str | None = setting(
        None,
        "of embeddings: l2, l1, softmax (of guided, when None) or nuclear",
        choices=loss_specs.DISTANCES,
    )
    distance_norm: int | None = setting(None, "N, 1 or 2: other words for l1, l2", choices=(1, 2))
    distance_ramp: str = setting(
        "constant",
        "of lambda_2: constant, linear (from 0), late (twice in the last fifth)",
        choices=loss_specs.RAMPS,
    )
    ramp_steps: int | None = setting(None, "of the whole training, which a ramp needs", POSITIVE)
    clean_embedding: str | None = setting(
        None,
        "constant or moves: whether the distance moves it",
        choices=(loss_specs.CONSTANT, loss_specs.MOVES),
    )
    embedding_normalization: str = setting(
        "none",
        "none, unit or variance, see losses.normalize_pair",
        choices=("none", "unit", "variance"),
    )
    pivot_guard: str | None = setting(
        None,
        "fixed_scale keeps embeddings from growing, see losses.fix_scale; or none",
        choices=(loss_specs.UNGUARDED, loss_specs.GUARDED),
    )
    start: str | None = setting(
        None,
        "of attack guided: none, bernoulli (when None) or uniform",
        choices=specs.STARTS,
    )
    guide: float = setting(
        1.0, "a: a times lambda_2 weighs the distance that attack guided ascends", NOT_NEGATIVE
    )
    guide_alternates: bool = setting(True, "a is 0 on every other step, the even ones")
    paired_weight: float = setting(
        1.0, "of clean images with a partner, in the cross entropy", NOT_NEGATIVE
    )
    label_smoothing: float = setting(0.0, "s: labels are (1 - s) labels + s / classes", FRACTION)
    epsilon_sampling: str | None = setting(
        None,
        "a name of draws.EPSILON_SAMPLINGS; clipped_normal, or max for guided, when None",
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

    def resolved(self) -> Self:
        """Return them with those that are None as the loss's row has them.

        Raises:
            InputError: options that do not go together.
        """
        of_norm = loss_specs.OF_NORMS.get(self.distance_norm or 0)
        named = self.distance or of_norm
        if of_norm and named != of_norm:
            raise InputError(
                f"{self.distance_norm} is {of_norm}, distance says {named}; give one of them",
                "distance_norm",
            )
        given = {**dataclasses.asdict(self), "distance": named}
        options = self.replace(**{"distance": named, **loss_specs.settled(self.loss, given)})
        if options.distance_ramp != loss_specs.RAMPS[0] and options.ramp_steps is None:
            raise InputError(
                f"must be given with distance_ramp {options.distance_ramp}: the steps of the whole "
                "training",
                "ramp_steps",
            )
        norms = {name: number for number, name in loss_specs.OF_NORMS.items()}
        norm = norms.get(options.distance or "")
        return options.replace(distance_norm=norm)
