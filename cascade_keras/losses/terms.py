"""The losses of section 3.3: the mixed cross entropy and the distances between embeddings.

For a batch of m images, k of them adversarial, the paper minimises

    1 / ((m - k) + lambda k)
      ( sum_{i=1}^{m-k} L(X_i | y_i) + lambda sum_{i=1}^{k} L(X_i^adv | y_i) )
      + lambda_2 sum_{i=1}^{k} L_dist(E_i^adv, E_i)

where L is the cross entropy and E an embedding, by default the logits. Weight decay is added by
the trainer.

Later losses differ in three places (Sriramanan et al., 2020 and 2021): the distance is of softmax
outputs, or the nuclear norm of the batch's differences; it is the mean over the pairs, lambda_2 / k
in place of lambda_2; and lambda is 0, so that only clean images are learned. See ``distances.py``.
"""

from __future__ import annotations

from collections.abc import Callable

import tensorflow as tf

from cascade_keras.attacks import objectives
from cascade_keras.distances import DISTANCES
from cascade_keras.losses.specs import OF_NORMS


def cross_entropy(logits: tf.Tensor, labels: tf.Tensor) -> tf.Tensor:
    """Return L(X_i | y_i) of each image, (batch,), of logits (batch, classes).

    ``labels`` are classes, integers (batch,), or soft, floats (batch, classes) whose rows sum to 1.
    """
    return objectives.cross_entropy(labels)(logits)


def mixed_cross_entropy(
    clean: tf.Tensor,
    adversarial: tf.Tensor,
    adversarial_weight: float = 0.3,
    *,
    paired: int = 0,
    paired_weight: float = 1.0,
    normalizer: Callable[[tf.Tensor], tf.Tensor] | None = None,
) -> tf.Tensor:
    """Weighted mean of the cross entropies of clean and adversarial images, a scalar.

        ( sum_{i<=m-k} L_i + lambda sum_{i<=k} L_i^adv ) / ( (m - k) + lambda k )

    Args:
        clean: L(X_i | y_i) of the m - k clean images, (m - k,); partners first.
        adversarial: L(X_i^adv | y_i) of the k adversarial images, (k,).
        adversarial_weight: lambda.
        paired: how many of the clean images, from the first, have an adversarial partner.
        paired_weight: what these weigh instead of 1, in the sum and in the normaliser.
        normalizer: the sum of these images' weights -> what is divided by instead: that of the
            whole batch where this is a part of it.
    """
    weights = tf.concat(
        [
            tf.fill([paired], tf.cast(paired_weight, clean.dtype)),
            tf.ones([tf.shape(clean)[0] - paired], clean.dtype),
            tf.fill([tf.shape(adversarial)[0]], tf.cast(adversarial_weight, clean.dtype)),
        ],
        axis=0,
    )
    losses = tf.concat([clean, adversarial], axis=0)
    divisor = tf.reduce_sum(weights)
    if normalizer is not None:
        divisor = normalizer(divisor)
    return tf.math.divide_no_nan(tf.reduce_sum(weights * losses), divisor)


def bidirectional_distance(
    adversarial: tf.Tensor, clean: tf.Tensor, norm: int | str = 2, weights: tf.Tensor | None = None
) -> tf.Tensor:
    """sum_i ||E_i^adv - E_i||_N^N: both embeddings move towards each other.

    Args:
        adversarial, clean: embeddings, (k, d), row by row partners.
        norm: N, 1 (sum of magnitudes) or 2 (sum of squares), or another distance's name.
        weights: (k,), what each pair's distance is multiplied by; by 1 where None.

    Returns:
        A scalar, summed over the images as in the paper.

    Raises:
        ValueError: an unknown norm, or embeddings of different shapes.
    """
    # Broadcasting would turn a slip in the pairing into a number that looks right.
    adversarial, clean = tf.convert_to_tensor(adversarial), tf.convert_to_tensor(clean)
    adversarial.shape.assert_is_compatible_with(clean.shape)
    kind = norm if isinstance(norm, str) else OF_NORMS.get(norm)
    if kind not in DISTANCES:
        raise ValueError(f"norm must be 1 or 2, or one of {', '.join(DISTANCES)}; got {norm}")
    return DISTANCES[kind](adversarial, clean, weights)


def pivot_distance(
    adversarial: tf.Tensor, clean: tf.Tensor, norm: int | str = 2, weights: tf.Tensor | None = None
) -> tf.Tensor:
    """sum_i ||E_i^adv - E_i||_N^N with E_i constant: only the adversarial embedding moves.

    As ``bidirectional_distance``, but the clean embedding, the pivot, gets no gradient.
    """
    return bidirectional_distance(adversarial, tf.stop_gradient(clean), norm, weights)


def ramp(name: str, step: int | tf.Tensor, steps: int) -> float | tf.Tensor:
    """Return what lambda_2 is multiplied by at a step of a training of so many.

    Args:
        name: "constant", 1; "linear", from 0 to 1 with the steps; "late", 2 in the last fifth.
        step: from 0; a number or a scalar of whole numbers.
        steps: of the whole training.

    Returns:
        1.0, or a float32 scalar.
    """
    if name == "constant":
        return 1.0
    step = tf.cast(step, tf.int64)
    if name == "linear":
        return tf.minimum(tf.cast(step, tf.float32) / steps, 1.0)
    if name == "late":
        return tf.where(5 * step >= 4 * steps, 2.0, 1.0)
    raise ValueError(f"ramp must be constant, linear or late, got {name!r}")


def alternates(step: int | tf.Tensor) -> tf.Tensor:
    """Return whether a guided attack ascends the distance at a step: on odd ones, from 0."""
    return tf.cast(step, tf.int64) % 2 == 1


def fix_scale(
    embeddings: tf.Tensor, mean: Callable[[tf.Tensor], tf.Tensor] = tf.reduce_mean
) -> tf.Tensor:
    """Return the embeddings unchanged, but without the gradient that would only rescale them all.

        E / s * constant(s),    s = root mean square of E over the whole batch

    Of adversarial embeddings (k, d), it leaves the value of ``pivot_distance`` as it is and takes
    from its gradient g the part along E: g - <g, E> / <E, E> E. Without it the true pivot loss lets
    the scale of all embeddings grow without bound: with embeddings w f_a (adversarial) and w f_c
    (clean, constant), its gradient in w is 2 w f_a (f_a - f_c), negative whenever f_a < f_c,
    however large w already is. See docs/fidelity.md for the measurements.

    ``mean`` is that of all values, of which these are a part where a batch is on several devices.
    """
    scale = tf.sqrt(mean(tf.square(embeddings)) + 1e-12)
    return embeddings / scale * tf.stop_gradient(scale)


def normalize_pair(
    adversarial: tf.Tensor, clean: tf.Tensor, normalization: str
) -> tuple[tf.Tensor, tf.Tensor]:
    """Bring the embeddings of each pair to a common scale before their distance is taken.

    Args:
        adversarial, clean: (k, d), row by row partners.
        normalization: "none"; "unit", each embedding divided by its own length; "variance", both
            divided by the variance of the clean one's values, as the released code does.

    Raises:
        ValueError: an unknown normalization.
    """
    if normalization == "none":
        return adversarial, clean
    if normalization == "unit":
        return tf.math.l2_normalize(adversarial, axis=-1), tf.math.l2_normalize(clean, axis=-1)
    if normalization == "variance":
        variance = tf.math.reduce_variance(clean, axis=-1, keepdims=True) + 1e-12
        return adversarial / variance, clean / variance
    raise ValueError(f"normalization must be none, unit or variance, got {normalization!r}")
