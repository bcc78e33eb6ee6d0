"""The layer ``ConvBatchNorm`` taken apart: what folding saves is measured against these."""

from __future__ import annotations

import keras
import tensorflow as tf

from cascade_keras.layers import ConvBatchNorm


class UnfoldedConvBatchNorm(ConvBatchNorm):
    """TensorFlow's fused normalisation after the convolution, in inference mode too."""

    def call(self, inputs, training=None):
        if training:
            return super().call(inputs, training=True)
        return tf.compat.v1.nn.fused_batch_norm(
            self._convolve(inputs, self.kernel),
            self.gamma,
            self.beta,
            mean=self.moving_mean,
            variance=self.moving_variance,
            epsilon=self.epsilon,
            is_training=False,
        )[0]


def keras_layers(filters: int, strides: int = 1, name: str | None = None) -> keras.Sequential:
    """Return the same out of Keras's own layers."""
    convolution = keras.layers.Conv2D(filters, 3, strides, padding="same", use_bias=False)
    normalization = keras.layers.BatchNormalization(momentum=0.999, epsilon=1e-3)
    return keras.Sequential([convolution, normalization], name=name)
