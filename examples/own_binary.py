"""A yes-or-no network of your own: one output that ends in a sigmoid. Is this digit odd?

    python examples/own_binary.py

Trains it on scikit-learn's digits as usual and with the pivot loss, with Keras's own metrics for
clean and for adversarial images, and attacks both. The network stays as it was built: its output is
a probability before and after. Half a minute on two cores.
"""

from __future__ import annotations

import argparse
import time

import keras

import cascade_keras as ck

EPSILON = 51  # of 255: how far an attack may change a pixel
LOSSES = ["standard", "pivot"]
ATTACKS = ["step_fgsm", "pgd"]


def build() -> keras.Model:
    """Images in [0, 1] -> the probability of "odd", (batch, 1)."""
    return keras.Sequential(
        [
            keras.Input((8, 8, 1)),
            keras.layers.Conv2D(32, 3, padding="same", activation="relu"),
            keras.layers.Conv2D(64, 3, padding="same", activation="relu"),
            keras.layers.MaxPooling2D(),
            keras.layers.Flatten(),
            keras.layers.Dense(64, activation="relu", name="features"),
            keras.layers.Dense(1, activation="sigmoid"),
        ]
    )


def main(epochs: int = 40, images: int | None = None):
    """Train both networks and return what each withstands.

    Args:
        epochs: of each training.
        images: how many test images are attacked; all when None.
    """
    digits = ck.data.load("digits")
    (x_train, y_train), (x_test, y_test) = digits.train, digits.test
    x_train, x_test = x_train / 255, x_test / 255
    odd_train, odd_test = y_train % 2, y_test % 2

    networks = {}
    for loss in LOSSES:
        keras.utils.set_random_seed(0)
        network = build()
        # The distance that the pivot loss adds is taken where there is more to compare than one
        # number: in the layer before the output.
        trainer = ck.AdversarialTrainer(network, loss, embedding="features", max_epsilon=EPSILON)
        trainer.compile(
            keras.optimizers.Adam(1e-3), metrics=["accuracy", keras.metrics.AUC(name="auc")]
        )
        start = time.time()
        history = trainer.fit(
            x_train,
            odd_train,
            validation_data=(x_test, odd_test),
            batch_size=64,
            epochs=epochs,
            verbose=0,
        ).history
        print(
            f"\n{loss}: {trainer.optimizer.iterations.numpy()} steps, {time.time() - start:.0f} s"
        )
        print({name: round(values[-1], 3) for name, values in history.items() if "val_" in name})
        networks[loss] = network

    measured = ck.evaluate(
        networks,
        x_test,
        odd_test,
        attacks=ATTACKS,
        epsilons=[EPSILON],
        num_images=images,
        class_names=["even", "odd"],
    )
    print(measured)
    return measured


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--epochs", type=int, default=40)
    parser.add_argument("--images", type=int, help="test images that are attacked; all by default")
    main(**vars(parser.parse_args()))
