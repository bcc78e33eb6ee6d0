"""Your own CNN on your own images: a Sequential network that takes pixels of 0..255, and an .npz.

    python examples/own_cnn.py                      # scikit-learn's digits: a minute
    python examples/own_cnn.py --data=mnist.npz --epsilon=76.5

The .npz has x_train, y_train, x_test and y_test, as those that Keras downloads. The network is
trained as usual, with the pivot loss, and with the pivot loss on images of pgd instead of one step.
Then the images that are made with each of them are shown to all: with its own, a network is
attacked by its own gradients (white box), with the others' by somebody else's (black box).

The same from the shell; ``build`` is called with the shape of an image and the number of classes:

    export PYTHONPATH=examples
    bin/train --dataset=mnist.npz --model=own_cnn:build --value_range=0,255 --loss=pivot --name=cnn
    bin/evaluate --target=saved/cnn --attack=step_fgsm,pgd
"""

from __future__ import annotations

import argparse
import time

import keras
import numpy as np

import cascade_keras as ck

PIXELS = (0, 255)  # what the network takes
ATTACKS = ["step_fgsm", "pgd"]


def build(input_shape: tuple[int, int, int], num_classes: int) -> keras.Model:
    """Any Keras network will do; this one scales its pixels itself and ends in a softmax."""
    return keras.Sequential(
        [
            keras.Input(input_shape),
            keras.layers.Rescaling(1 / 255),
            keras.layers.Conv2D(32, 3, padding="same", activation="relu"),
            keras.layers.MaxPooling2D(),
            keras.layers.Conv2D(64, 3, padding="same", activation="relu"),
            keras.layers.MaxPooling2D(),
            keras.layers.Flatten(),
            keras.layers.Dense(128, activation="relu", name="features"),
            keras.layers.Dense(num_classes, activation="softmax"),
        ]
    )


TRAININGS = {
    "standard": {"loss": "standard"},
    "pivot": {"loss": "pivot"},
    "pivot by pgd": {"loss": "pivot", "attack": "pgd"},  # takes three times as long
}


def read(path: str | None) -> tuple[np.ndarray, ...]:
    """Return training images, their labels, test images and theirs, uint8 and int."""
    if path is None:
        digits = ck.data.load("digits")
        return *digits.train, *digits.test
    arrays = np.load(path)
    images = [arrays[name] for name in ("x_train", "x_test")]
    # Grey images often come without an axis for their one channel.
    train, test = (x if x.ndim == 4 else x[..., np.newaxis] for x in images)
    return train, arrays["y_train"], test, arrays["y_test"]


def main(data: str | None = None, epsilon: float = 51, epochs: int = 20, images: int = 1000):
    """Train the networks and return what each withstands of its own images and the others'.

    Args:
        data: the .npz; scikit-learn's digits when None.
        epsilon: how far an attack may change a pixel, of 255.
        epochs: of each training.
        images: how many test images are attacked.
    """
    x_train, y_train, x_test, y_test = read(data)
    networks = {}
    for name, options in TRAININGS.items():
        keras.utils.set_random_seed(0)
        network = build(x_train.shape[1:], num_classes=int(y_train.max()) + 1)
        trainer = ck.AdversarialTrainer(
            network, value_range=PIXELS, embedding="features", max_epsilon=epsilon, **options
        )
        trainer.compile(keras.optimizers.Adam(1e-3), metrics=["accuracy"])
        start = time.time()
        trainer.fit(x_train, y_train, batch_size=64, epochs=epochs, verbose=0)
        print(f"{name}: {trainer.optimizer.iterations.numpy()} steps, {time.time() - start:.0f} s")
        networks[name] = network

    measured = ck.evaluate(
        networks,
        x_test,
        y_test,
        attacks=ATTACKS,
        epsilons=[epsilon],
        value_range=PIXELS,
        sources=networks,  # the images of each are shown to all
        num_images=images,
    )
    print(measured)
    return measured


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", help="an .npz; scikit-learn's digits by default")
    parser.add_argument("--epsilon", type=float, default=51)
    parser.add_argument("--epochs", type=int, default=20)
    parser.add_argument("--images", type=int, default=1000, help="test images that are attacked")
    main(**vars(parser.parse_args()))
