import keras
import pytest


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
    return lambda images: model(images, training=False)
