"""Every random draw of the package: one key a purpose, from (seed, step)."""

from __future__ import annotations

import tensorflow as tf

# Of stateless draws; left to itself, TensorFlow would choose another one on another kind of device.
GENERATOR = "philox"


# How far a training image is perturbed (appendix A): epsilon drawn for each image.


def sample_epsilon(sampling: str, count: int, max_epsilon: float, seed) -> tf.Tensor:
    """Draw an epsilon for each image, (count,) float32 in [0, max_epsilon], in 0..255 units.

    Args:
        sampling: "clipped_normal", |N(0, max_epsilon / 2)| clipped to max_epsilon (the paper's);
            "uniform" on [0, max_epsilon]; "max", always max_epsilon; "reversed_normal",
            max_epsilon minus a clipped normal.
        seed: two integers; the same seed gives the same draws.

    Raises:
        ValueError: an unknown sampling.
    """
    if sampling == "max":
        return tf.fill([count], float(max_epsilon))
    if sampling == "uniform":
        return tf.random.stateless_uniform([count], seed, 0.0, max_epsilon, alg=GENERATOR)
    if sampling not in ("clipped_normal", "reversed_normal"):
        raise ValueError(f"epsilon sampling {sampling!r} is none of {', '.join(EPSILON_SAMPLINGS)}")
    normal = tf.abs(tf.random.stateless_normal([count], seed, 0.0, max_epsilon / 2, alg=GENERATOR))
    clipped = tf.minimum(normal, max_epsilon)
    return clipped if sampling == "clipped_normal" else max_epsilon - clipped


EPSILON_SAMPLINGS = ("clipped_normal", "uniform", "max", "reversed_normal")


def jitter_per_pixel(epsilon: tf.Tensor, shape, max_epsilon: float, seed) -> tf.Tensor:
    """Return |epsilon + N(0, 1)| clipped to max_epsilon for every value of every image.

    Args:
        epsilon: (batch,), in 0..255 units.
        shape: of the images, (batch, H, W, C), which is also the result's.
    """
    per_image = tf.reshape(epsilon, [-1, 1, 1, 1])
    noise = tf.random.stateless_normal(shape, seed, alg=GENERATOR)
    return tf.minimum(tf.abs(per_image + noise), max_epsilon)
