"""Functions from images to logits."""

import functools

import numpy as np
import tensorflow as tf

CLASSES = 10


@functools.cache
def smooth_network(seed=0):
    """A convolution without kinks: generic gradients in any float type."""
    rng = np.random.default_rng(seed)
    kernel, dense = rng.normal(0, 0.5, (3, 3, 1, 6)), rng.normal(0, 0.2, (96, CLASSES))

    def logits_fn(images):
        features = tf.nn.conv2d(images - 0.3, tf.cast(kernel, images.dtype), 2, "SAME")
        return tf.reshape(tf.tanh(features), [-1, 96]) @ tf.cast(dense, images.dtype)

    return logits_fn


smooth = smooth_network()
