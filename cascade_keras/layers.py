"""Convolution and batch normalisation as one layer, folded in inference mode."""

from __future__ import annotations

import keras
import tensorflow as tf

from cascade_keras import replicas


@keras.saving.register_keras_serializable("cascade_keras")
class ConvBatchNorm(keras.layers.Layer):
    """A 3x3 convolution without bias, followed by batch normalisation.

    In training it is exactly that, with TensorFlow's fused normalisation. In inference mode, which
    every attack and every served network uses, the normalisation is folded into the kernel:

        gamma (conv(x, K) - mean) / s + beta  =  conv(x, K gamma / s) + (beta - mean gamma / s)

    with s = sqrt(variance + epsilon): one pass over the feature map fewer, equal to float32
    rounding (about 1e-6 relative), and measurably faster (benchmarks/train_step.py).

    The moving statistics follow min(momentum, (1 + t) / (10 + t)) after t training passes, so
    that short trainings do not attack and evaluate with statistics still near their initial values.

    The variance kept is the unbiased one (N / (N - 1)), as TensorFlow's fused kernel returns it.

    Args:
        filters: the number of output channels.
        strides: 1 or 2.
        momentum: decay of the moving statistics (released code: 0.999).
        epsilon: added to the variance (released code: 0.001).
    """

    def __init__(
        self,
        filters: int,
        strides: int = 1,
        momentum: float = 0.999,
        epsilon: float = 1e-3,
        **kwargs,
    ):
        super().__init__(**kwargs)
        self.filters = filters
        self.strides = strides
        self.momentum = momentum
        self.epsilon = epsilon

    def build(self, input_shape):
        channels = (self.filters,)
        self.kernel = self.add_weight(
            shape=(3, 3, input_shape[-1], self.filters), initializer="glorot_uniform", name="kernel"
        )
        # Statistics, their scale and their shift stay in float32 under mixed precision.
        float32 = {"shape": channels, "dtype": "float32", "autocast": False}
        self.gamma = self.add_weight(initializer="ones", name="gamma", **float32)
        self.beta = self.add_weight(initializer="zeros", name="beta", **float32)
        fixed = {"trainable": False, **float32}
        self.moving_mean = self.add_weight(initializer="zeros", name="moving_mean", **fixed)
        self.moving_variance = self.add_weight(initializer="ones", name="moving_variance", **fixed)
        self.passes = self.add_weight(initializer="zeros", name="passes", **{**fixed, "shape": ()})

    def call(self, inputs, training=None):
        if training and self.trainable:  # frozen ones keep their statistics, as Keras's own do
            return self._normalize_by_batch(self._convolve(inputs, self.kernel))
        scale = self.gamma * tf.math.rsqrt(self.moving_variance + self.epsilon)
        kernel = tf.cast(self.kernel, scale.dtype) * scale
        bias = self.beta - self.moving_mean * scale
        features = self._convolve(inputs, tf.cast(kernel, inputs.dtype))
        return tf.nn.bias_add(features, tf.cast(bias, inputs.dtype))

    def _convolve(self, inputs, kernel):
        return tf.nn.conv2d(inputs, kernel, self.strides, "SAME")

    def _normalize_by_batch(self, features):
        if replicas.count() > 1:
            return self._normalize_by_whole_batch(features)
        outputs, mean, variance = tf.compat.v1.nn.fused_batch_norm(
            features, self.gamma, self.beta, epsilon=self.epsilon, is_training=True
        )
        self._move_statistics(mean, variance)
        return outputs

    def _normalize_by_whole_batch(self, features):
        """Normalise by the statistics of the images of all replicas."""
        values = tf.cast(features, tf.float32)
        mean, variance, count = replicas.moments(values, [0, 1, 2], self.moving_mean)
        outputs = tf.nn.batch_normalization(
            values, mean, variance, self.beta, self.gamma, self.epsilon
        )
        self._move_statistics(mean, variance * count / tf.maximum(count - 1, 1))
        return tf.cast(outputs, features.dtype)

    def _move_statistics(self, mean, variance):
        decay = tf.minimum(self.momentum, (1 + self.passes) / (10 + self.passes))
        self.moving_mean.assign(self.moving_mean * decay + mean * (1 - decay))
        self.moving_variance.assign(self.moving_variance * decay + variance * (1 - decay))
        self.passes.assign_add(1)

    def compute_output_shape(self, input_shape):
        sides = (None if side is None else -(-side // self.strides) for side in input_shape[1:3])
        return (input_shape[0], *sides, self.filters)

    def get_config(self):
        return {
            **super().get_config(),
            "filters": self.filters,
            "strides": self.strides,
            "momentum": self.momentum,
            "epsilon": self.epsilon,
        }
