"""Make what own_folder.py learns from, out of CIFAR-10, where nothing can be downloaded.

    python examples/make_folder.py --folder=pictures --base=base.weights.h5 --data_dir=DIR

Four classes become PNGs, train/CLASS/*.png and test/CLASS/*.png. On the other six a MobileNetV2 is
trained for some minutes, whose weights stand in for those of ImageNet; it has never seen the four.
"""

from __future__ import annotations

import argparse
import time

import keras
import numpy as np
import tensorflow as tf

import cascade_keras as ck

CLASSES = "airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck"
CHOSEN = ("airplane", "cat", "horse", "truck")
SIZE = (96, 96)


def write_pictures(folder: str, images: np.ndarray) -> None:
    """Write images, uint8 (N, H, W, C), as PNGs."""
    for number, image in enumerate(images):
        tf.io.write_file(f"{folder}/{number:04d}.png", tf.io.encode_png(image))


def pretrain(base_file: str, images, labels, steps: int, size=SIZE) -> None:
    """Train a MobileNetV2 as usual and save its weights without a head."""
    keras.utils.set_random_seed(0)
    base = keras.applications.MobileNetV2(
        (*size, 3), alpha=0.35, include_top=False, pooling="avg", weights=None
    )
    for layer in base.layers:
        if isinstance(layer, keras.layers.BatchNormalization):
            layer.momentum = 0.99  # its 0.999 is for trainings a hundred times as long
    network = keras.Sequential(
        [
            keras.Input(images.shape[1:]),
            keras.layers.Resizing(*size),
            keras.layers.RandomFlip("horizontal"),
            keras.layers.Rescaling(1 / 127.5, offset=-1),
            base,
            keras.layers.Dense(int(labels.max()) + 1, activation="softmax"),
        ]
    )
    rate = keras.optimizers.schedules.CosineDecay(3e-3, steps)
    network.compile(
        keras.optimizers.Adam(rate), "sparse_categorical_crossentropy", metrics=["accuracy"]
    )
    batches = tf.data.Dataset.from_tensor_slices((images, labels)).shuffle(len(images), seed=0)
    start = time.time()
    history = network.fit(batches.batch(64).repeat(), steps_per_epoch=steps, verbose=0).history
    accuracy = 100 * history["accuracy"][-1]
    print(f"base: {steps} steps, {time.time() - start:.0f} s, accuracy on the way {accuracy:.1f} %")
    base.save_weights(base_file)


def main(folder: str, base: str, data_dir: str | None, per_class: int, steps: int) -> None:
    """Write the pictures and the weights."""
    cifar10 = ck.data.load("cifar10", data_dir)
    for split, (images, labels) in (("train", cifar10.train), ("test", cifar10.test)):
        for name in CHOSEN:
            of_class = images[labels == CLASSES.index(name)]
            write_pictures(f"{folder}/{split}/{name}", of_class[:per_class])
    images, labels = cifar10.train
    others = [CLASSES.index(name) for name in CLASSES if name not in CHOSEN]
    kept = np.isin(labels, others)
    pretrain(base, images[kept], np.searchsorted(others, labels[kept]), steps)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--folder", required=True, help="where the pictures go")
    parser.add_argument("--base", required=True, help="the .weights.h5 that is written")
    parser.add_argument("--data_dir", help="where TensorFlow Datasets keeps CIFAR-10")
    parser.add_argument("--per_class", type=int, default=1000, help="pictures, at most")
    parser.add_argument("--steps", type=int, default=1500, help="of training the base")
    main(**vars(parser.parse_args()))
