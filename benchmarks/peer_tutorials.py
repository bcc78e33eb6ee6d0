#!/usr/bin/env python
"""Two networks of keras.io's tutorials as they stand: in our trainer, measured by us and by ART.

    python benchmarks/peer_tutorials.py --data_dir=DIR
    python benchmarks/peer_tutorials.py --network=xception --images=100 --epochs=1

    convnet    "Simple MNIST convnet": layer by layer, with its dropout and its softmax; MNIST,
               images in [0, 1], one-hot labels
    xception   "Image classification from scratch": cats and dogs in pixels of 0..255; its
               augmentation, Rescaling, dropout and sigmoid inside the network. Its sequence of
               layers, at 32x32 instead of 180x180 and with an eighth of the filters; the two
               classes are CIFAR-10's

Each is trained with our standard and our pivot loss. Then the same weights are measured by
``ck.evaluate`` and by the Adversarial Robustness Toolbox, which is given the network's output as it
is, probabilities (of the two classes where the output is one), and their categorical cross entropy:

    step_fgsm   FastGradientMethod
    iter_fgsm   ProjectedGradientDescent without random start: steps of one pixel value, as many as
                the paper's
    pgd         ProjectedGradientDescent from one random start, which each library draws its own
                way: steps of 2.5 epsilon / steps, cross entropy

Epsilons, steps, clipping and images are equal.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

import keras
import numpy as np
import tensorflow as tf
from art.attacks.evasion import FastGradientMethod, ProjectedGradientDescent
from art.estimators.classification import TensorFlowV2Classifier

import cascade_keras as ck
from cascade_keras.printed import print_table

PGD_STEPS = 20
SEED = 0
CAT, DOG = 3, 5  # of CIFAR-10


def convnet() -> keras.Model:
    """The network of "Simple MNIST convnet"."""
    layers = keras.layers
    return keras.Sequential(
        [
            keras.Input((28, 28, 1)),
            layers.Conv2D(32, kernel_size=(3, 3), activation="relu"),
            layers.MaxPooling2D(pool_size=(2, 2)),
            layers.Conv2D(64, kernel_size=(3, 3), activation="relu"),
            layers.MaxPooling2D(pool_size=(2, 2)),
            layers.Flatten(),
            layers.Dropout(0.5),
            layers.Dense(10, activation="softmax"),
        ]
    )


def xception(narrower: int = 8) -> keras.Model:
    """The network of "Image classification from scratch", its augmentation inside, narrower."""
    layers = keras.layers

    def separable(x, filters: int):
        x = layers.SeparableConv2D(filters // narrower, 3, padding="same")(x)
        return layers.BatchNormalization()(x)

    def convolution(x, filters: int, strides: int):
        x = layers.Conv2D(filters // narrower, 3, strides=strides, padding="same")(x)
        return layers.ReLU()(layers.BatchNormalization()(x))

    images = keras.Input((32, 32, 3))
    x = layers.RandomRotation(0.1)(layers.RandomFlip("horizontal")(images))
    x = layers.Rescaling(1 / 255)(x)
    x = convolution(convolution(x, 32, 2), 64, 1)
    for filters in (128, 256, 512, 728):
        residual = layers.Conv2D(filters // narrower, 1, strides=2, padding="same")(x)
        x = separable(layers.ReLU()(x), filters)
        x = separable(layers.ReLU()(x), filters)
        x = layers.MaxPooling2D(3, strides=2, padding="same")(x)
        x = layers.add([x, residual])
    x = layers.ReLU()(separable(x, 1024))
    x = layers.GlobalAveragePooling2D()(x)
    x = layers.Dropout(0.5)(x)
    return keras.Model(images, layers.Dense(1, activation="sigmoid")(x))


@dataclasses.dataclass(frozen=True)
class Tutorial:
    """One of the two.

    Attributes:
        build: -> the network.
        load: data_dir -> training images and labels as the tutorial gives them to ``fit``, test
            images and classes.
        value_range: of the images.
        epsilon: in 0..255 units.
        batch_size: the tutorial's.
        epochs: fewer than the tutorial's.
        embedding: what the pivot loss compares: a layer whose output is no single number.
    """

    build: Callable[[], keras.Model]
    load: Callable[[str | None], tuple[np.ndarray, ...]]
    value_range: tuple[float, float]
    epsilon: float
    batch_size: int
    epochs: int
    embedding: str | None = None


def load_mnist(data_dir: str | None) -> tuple[np.ndarray, ...]:
    mnist = ck.data.load("mnist", data_dir)
    (x, y), (x_test, y_test) = mnist.train, mnist.test
    scaled = (images.astype("float32") / 255 for images in (x, x_test))
    x, x_test = scaled
    return x, keras.utils.to_categorical(y, 10), x_test, y_test


def load_cats_and_dogs(data_dir: str | None) -> tuple[np.ndarray, ...]:
    cifar10 = ck.data.load("cifar10", data_dir)
    parts = []
    for images, labels in (cifar10.train, cifar10.test):
        chosen = np.isin(labels, (CAT, DOG))
        parts += [images[chosen].astype("float32"), (labels[chosen] == DOG).astype("int32")]
    return tuple(parts)


TUTORIALS = {
    "convnet": Tutorial(convnet, load_mnist, (0, 1), 25.5, 128, 2),
    "xception": Tutorial(
        xception, load_cats_and_dogs, (0, 255), 4, 128, 12, "global_average_pooling2d"
    ),
}


def train(tutorial: Tutorial, loss: str, x, y, epochs: int) -> keras.Model:
    """Return the network, trained by our trainer."""
    keras.backend.clear_session()  # names of layers start anew
    keras.utils.set_random_seed(SEED)
    network = tutorial.build()
    trainer = ck.AdversarialTrainer(
        network,
        loss,
        value_range=tutorial.value_range,
        embedding=tutorial.embedding,
        max_epsilon=tutorial.epsilon,
    )
    trainer.compile("adam", metrics=["accuracy"])
    trainer.fit(x, y, batch_size=tutorial.batch_size, epochs=epochs, verbose=0)
    return network


def by_us(tutorial: Tutorial, network: keras.Model, images, labels, batch: int) -> dict[str, float]:
    """Return accuracies in per cent by attack."""
    pgd = ck.attacks.PGD(steps=PGD_STEPS, restarts=1, objective="cross_entropy")
    measured = ck.evaluate(
        network,
        images,
        labels,
        attacks=["step_fgsm", "iter_fgsm", pgd],
        epsilons=[tutorial.epsilon],
        value_range=tutorial.value_range,
        batch_size=batch,
        seed=SEED,
        progress=False,
    )
    accuracies = {"clean": measured.accuracy["clean"]}
    for attack in ("step_fgsm", "iter_fgsm", "pgd"):
        accuracies[attack] = measured.accuracy[attack, tutorial.epsilon]
    return accuracies


def by_art(tutorial: Tutorial, network: keras.Model, images, labels, batch: int):
    """Return accuracies in per cent by attack, and how many images have no gradient at all."""
    binary = network.output_shape[-1] == 1

    def probabilities(x, training=False):
        y = network(x, training=False)
        return tf.concat([1 - y, y], axis=-1) if binary else y

    classes = 2 if binary else network.output_shape[-1]
    low, high = tutorial.value_range
    classifier = TensorFlowV2Classifier(
        model=probabilities,
        nb_classes=classes,
        input_shape=images.shape[1:],
        # The mean, which is the default, would have small gradients underflow.
        loss_object=keras.losses.CategoricalCrossentropy(reduction="sum"),
        clip_values=tutorial.value_range,
    )
    pixel = (high - low) / 255
    eps = tutorial.epsilon * pixel
    steps = {"eps": eps, "batch_size": batch, "verbose": False}
    methods = {
        "step_fgsm": FastGradientMethod(classifier, eps=eps, batch_size=batch),
        "iter_fgsm": ProjectedGradientDescent(
            classifier,
            eps_step=pixel,
            max_iter=int(ck.attacks.iterations(tutorial.epsilon)),
            num_random_init=0,
            **steps,
        ),
        "pgd": ProjectedGradientDescent(
            classifier, eps_step=2.5 * eps / PGD_STEPS, max_iter=PGD_STEPS, num_random_init=1,
            **steps,
        ),
    }  # fmt: skip
    rows = np.eye(classes, dtype=np.float32)[labels]

    def accuracy(shown) -> float:
        return 100 * float((classifier.predict(shown, batch).argmax(1) == labels).mean())

    np.random.seed(SEED)
    accuracies = {"clean": accuracy(images)}
    for name, method in methods.items():
        accuracies[name] = accuracy(method.generate(images, rows))
    gradients = [
        classifier.loss_gradient(images[i : i + batch], rows[i : i + batch])
        for i in range(0, len(images), batch)
    ]
    still = int((np.abs(np.concatenate(gradients)).max(axis=(1, 2, 3)) == 0).sum())
    return accuracies, still


def report(results: Sequence[dict[str, Any]]) -> None:
    """Print the accuracies of each network, measured by us and by ART."""
    rows = []
    for r in results:
        pairs = {attack: (r["ours"][attack], r["ART"][attack]) for attack in r["ours"]}
        cells = [f"{a:.1f} / {b:.1f}" for a, b in pairs.values()]
        apart = max(abs(a - b) for a, b in pairs.values())
        head = r["network"], r["loss"], f"{r['epsilon']:g}", str(r["images"])
        rows.append([*head, *cells, f"{apart:.2f}"])
    columns = ("network", "loss", "epsilon", "images", *results[0]["ours"], "most apart")
    title = "accuracy in %, ours / ART"
    print_table(columns, rows, text_columns=2, fixed_columns=3, title=title)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--network", choices=TUTORIALS, help="both by default")
    parser.add_argument("--data_dir", help="where TensorFlow Datasets keeps its datasets")
    parser.add_argument("--images", type=int, default=1000, help="test images")
    parser.add_argument("--batch", type=int, default=250)
    parser.add_argument("--epochs", type=int, help="of each training")
    parser.add_argument("--json", type=Path, help="where the numbers are kept")
    args = parser.parse_args()
    results: list[dict[str, Any]] = []
    for name, tutorial in TUTORIALS.items():
        if args.network not in (None, name):
            continue
        x, y, x_test, y_test = tutorial.load(args.data_dir)
        x_test, y_test = x_test[: args.images], y_test[: args.images]
        for loss in ("standard", "pivot"):
            start = time.time()
            network = train(tutorial, loss, x, y, args.epochs or tutorial.epochs)
            seconds = time.time() - start
            ours = by_us(tutorial, network, x_test, y_test, args.batch)
            art, still = by_art(tutorial, network, x_test, y_test, args.batch)
            results.append(
                {"network": name, "loss": loss, "epsilon": tutorial.epsilon, "seconds": seconds,
                 "images": len(x_test), "ours": ours, "ART": art, "no gradient in ART": still}
            )  # fmt: skip
            print(json.dumps(results[-1]), flush=True)
    report(results)
    if args.json:
        args.json.write_text(json.dumps(results, indent=1))


if __name__ == "__main__":
    main()
