import keras
import pytest
import tensorflow as tf


@pytest.fixture(scope="package")
def learned(digits):
    """The logits of a small network that has learned the digits but the first 300."""
    images, labels = digits
    keras.utils.set_random_seed(0)
    convolution = {"padding": "same", "activation": "relu"}
    model = keras.Sequential(
        [
            keras.Input((8, 8, 1)),
            keras.layers.Conv2D(8, 3, **convolution),
            keras.layers.Conv2D(16, 3, strides=2, **convolution),
            keras.layers.Flatten(),
            keras.layers.Dense(10),
        ]
    )
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(keras.optimizers.Adam(3e-3), loss)
    model.fit(images[300:], labels[300:], batch_size=64, epochs=4, verbose=0)
    first, first_bias, second, second_bias, dense, bias = map(tf.constant, model.get_weights())

    def logits_fn(images):
        """Written out: attacks trace a network many times, and Keras takes longer for it."""
        features = tf.nn.relu(tf.nn.conv2d(images, first, 1, "SAME") + first_bias)
        features = tf.nn.relu(tf.nn.conv2d(features, second, 2, "SAME") + second_bias)
        return tf.reshape(features, [-1, 256]) @ dense + bias

    return logits_fn
