"""What the figures' arrays are made of: compiled gradients and outputs, correlations, projections.

Networks are callables, images float32 (batch, H, W, C) in [0, 1]. Each is compiled once for every
batch size, and versions of a batch go through it one after the other, so memory does not grow with
them.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import tensorflow as tf

from cascade_keras import attacks

# A noise or gradient whose values differ by less, relative to their size, is constant: the noise is
# a difference of float32 images, so equal steps come out with a few rounding errors.
_CONSTANT = 1e-4


def statistics(values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return mean and standard deviation over the images, the last axis."""
    return values.mean(axis=-1), values.std(axis=-1)


def unit(values: np.ndarray) -> np.ndarray:
    """Return each image (..., H, W, C) as a vector of mean 0 and length 1; 0 where constant."""
    flat = np.asarray(values, np.float64).reshape(*values.shape[:-3], -1)
    centred = flat - flat.mean(axis=-1, keepdims=True)
    length = np.linalg.norm(centred, axis=-1, keepdims=True)
    varies = length > _CONSTANT * np.linalg.norm(flat, axis=-1, keepdims=True)
    return np.divide(centred, length, out=np.zeros_like(flat), where=varies)


def correlate(first: np.ndarray, second: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return Pearson's correlation of two ``unit`` vectors (..., n), and where it is undefined.

    It is 0 where one of the two is constant, as a noise of zero is: it has no direction.
    """
    undefined = ~(first.any(axis=-1) & second.any(axis=-1))
    return np.einsum("...n,...n->...", first, second), undefined


def project(clean: np.ndarray, others: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Bring embeddings into the plane, by the principal components of the clean ones.

    Args:
        clean: (N, d), two or more of them.
        others: (..., d), on which the components do not depend.

    Returns:
        The clean ones, (N, 2); the others, (..., 2); and the share of the clean ones' variance that
        each axis explains, (2,). Embeddings of 2 dimensions are returned as they are and both
        shares are NaN, one dimension gets a second that is 0.
    """
    d = clean.shape[-1]
    if d <= 2:
        pad = [(0, 0)] * (others.ndim - 1) + [(0, 2 - d)]
        return np.pad(clean, [(0, 0), (0, 2 - d)]), np.pad(others, pad), np.full(2, np.nan)
    from sklearn.decomposition import PCA  # it takes a second to import

    pca = PCA(2, svd_solver="full").fit(clean.astype(np.float64))
    flat = pca.transform(others.reshape(-1, d).astype(np.float64))
    plane = pca.transform(clean.astype(np.float64))
    return plane, flat.reshape(*others.shape[:-1], 2), pca.explained_variance_ratio_


def gradients(logits_fn: attacks.LogitsFn, image_shape: Sequence[int]) -> Callable:
    """Return (versions, batch, H, W, C), labels (batch,) -> the gradients of J, as the images."""

    @tf.function(autograph=False)
    def compiled(versions: tf.Tensor, labels: tf.Tensor) -> tf.Tensor:
        loss = attacks.cross_entropy(labels)
        return tf.map_fn(lambda images: attacks.input_gradient(logits_fn, images, loss), versions)

    compiled = compiled.get_concrete_function(
        tf.TensorSpec([None, None, *image_shape], tf.float32), tf.TensorSpec([None], tf.int32)
    )
    return lambda versions, labels: compiled(
        tf.constant(versions), tf.constant(labels, tf.int32)
    ).numpy()


def outputs(function: Callable, image_shape: Sequence[int]) -> Callable:
    """Return (versions, batch, H, W, C) -> (versions, batch, d), a function's outputs."""

    @tf.function(autograph=False)
    def compiled(versions: tf.Tensor) -> tf.Tensor:
        return tf.map_fn(function, versions)

    compiled = compiled.get_concrete_function(
        tf.TensorSpec([None, None, *image_shape], tf.float32),
    )
    return lambda versions: compiled(tf.constant(versions)).numpy()
