"""Harden a network that was trained before: freeze its first layers, train on by the pivot loss.

    python examples/fine_tune.py                                   digits, half a minute
    python examples/fine_tune.py --dataset=mnist --data_dir=data --steps=1500

A Keras model learns the first half of the classes as usual; its file stands for whatever network
you have. Its convolutions get a new head for all classes. The first convolution is frozen, and
what is left is trained from those weights, once as usual and once by the pivot loss. bin/train
does the same with your file:

    bin/train --model=start.keras --loss=pivot --dataset=digits
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence

import keras
import numpy as np

from cascade_keras import Training, TrainingSettings, data

L = keras.layers


def pretrain(dataset: data.Dataset, epochs: int) -> keras.Model:
    """Train a classifier on the first half of the classes, by nothing but Keras."""
    spec = dataset.preset
    classes = spec.num_classes // 2
    images, labels = dataset.train
    chosen = labels < classes
    network = keras.Sequential(
        [
            keras.Input(spec.image_shape),
            L.Conv2D(32, 3, padding="same", use_bias=False),
            L.BatchNormalization(),
            L.ReLU(),
            L.MaxPooling2D(),
            L.Conv2D(64, 3, padding="same", use_bias=False),
            L.BatchNormalization(),
            L.ReLU(),
            L.MaxPooling2D(),
            L.Flatten(),
            L.Dropout(0.2),
            L.Dense(64, activation="relu", name="features"),
            L.Dense(classes, name="head"),
        ]
    )
    network.compile(
        "adam", keras.losses.SparseCategoricalCrossentropy(from_logits=True), metrics=["accuracy"]
    )
    network.fit(
        images[chosen].astype("float32") / 255,
        labels[chosen],
        batch_size=128,
        epochs=epochs,
        verbose=0,
    )
    return network


def with_new_head(network: keras.Model, num_classes: int, frozen: int = 3) -> keras.Model:
    """Return the network for all classes, its first layers frozen: its other weights are kept."""
    for layer in network.layers[:frozen]:
        layer.trainable = False
    features = network.get_layer("features").output
    return keras.Model(network.inputs, L.Dense(num_classes, name="new_head")(features))


def main(
    dataset: str = "digits",
    steps: int = 400,
    *,
    data_dir: str | None = None,
    epochs: int = 5,
    max_epsilon: float | None = None,
    attacks: Sequence[str] = ("step_fgsm", "iter_fgsm", "pgd"),
    examples: int = 1000,
    seed: int = 0,
) -> dict[str, dict[str, float]]:
    """Return the accuracies in per cent, by loss and attack.

    Args:
        dataset, data_dir: a preset, and where it lies.
        steps: of each of the two trainings that start from the pretrained network.
        epochs: of the pretraining.
        max_epsilon: of training and attacks, 0..255; the dataset's default when None.
        attacks: that each of them is measured by.
        examples: how many test images are attacked by iter_fgsm and pgd.
        seed: of everything.
    """
    keras.utils.set_random_seed(seed)
    known = data.load(dataset, data_dir)
    start = with_new_head(pretrain(known, epochs), known.preset.num_classes)
    start.save("start.keras")
    crop = min(known.preset.image_shape[:2])
    accuracies = {}
    for loss in ("standard", "pivot"):
        settings = TrainingSettings(
            dataset=dataset,
            data_dir=data_dir,
            model="start.keras",
            embedding="features",
            loss=loss,
            crop=crop,
            steps=steps,
            learning_rate=0.02,
            max_epsilon=max_epsilon,
            eval_attacks=attacks,
            eval_examples=examples,
            tensorboard="none",
            seed=seed,
            name=f"{dataset}-fine_tune-{loss}-s{seed}",
        )
        result = Training(settings).run()
        trained = keras.models.load_model(result.path / "model.keras")
        for layer, before in zip(trained.layers, start.layers, strict=True):
            if not before.trainable:
                same = zip(layer.get_weights(), before.get_weights(), strict=True)
                assert all(np.array_equal(one, other) for one, other in same)
        accuracies[loss] = {found["attack"]: found["accuracy"] for found in result.results}
        print(loss, {attack: round(value, 1) for attack, value in accuracies[loss].items()})
    return accuracies


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--dataset", default="digits")
    parser.add_argument("--data_dir")
    parser.add_argument("--steps", type=int, default=400)
    parser.add_argument("--max_epsilon", type=float)
    parser.add_argument("--seed", type=int, default=0)
    main(**vars(parser.parse_args()))
