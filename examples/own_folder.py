"""Your own folder of pictures, and a network that was trained before: transfer learning, hardened.

    python examples/own_folder.py --folder=pictures                   # weights of ImageNet
    python examples/own_folder.py --folder=pictures --base=base.weights.h5

The folder has train/CLASS/*.png (or .jpg) and test/CLASS/*.png. The network is Keras's MobileNetV2
at 96x96. First only a new head is trained while the base is frozen, then all layers, more slowly;
both as usual and with the pivot loss. A frozen base that is easily fooled stays so: the numbers
show what a head alone can do about it.

``make_folder.py`` makes a folder of pictures and weights of a base where nothing can be downloaded.
"""

from __future__ import annotations

import argparse
import pathlib
import time

import keras
import tensorflow as tf

import cascade_keras as ck

SIZE = (96, 96)
PIXELS = (0, 255)  # what the network takes, and what image_dataset_from_directory gives
BATCH_SIZE = 32
RATES = {"head": 1e-3, "all layers": 1e-4}
LOSSES = ["standard", "pivot"]
ATTACKS = ["step_fgsm", "pgd"]


def build(num_classes: int, weights: str | None = "imagenet", size=SIZE) -> keras.Model:
    """Pixels in 0..255 -> logits: a new head on a MobileNetV2, which is its layer "base".

    Args:
        weights: of the base, as ``keras.applications`` takes them.
    """
    shape = (*size, 3)
    base = keras.applications.MobileNetV2(
        shape, alpha=0.35, include_top=False, pooling="avg", weights=weights, name="base"
    )
    base.trainable = False
    images = keras.Input(shape)
    x = keras.layers.Rescaling(1 / 127.5, offset=-1)(images)
    x = base(x, training=False)  # its batch norm stays as it is, also when its weights are trained
    return keras.Model(images, keras.layers.Dense(num_classes, name="head")(x))


def read(folder: str, split: str, size=SIZE) -> tf.data.Dataset:
    """Return batches of pixels and labels."""
    return keras.utils.image_dataset_from_directory(
        pathlib.Path(folder) / split,
        image_size=size,
        batch_size=BATCH_SIZE,
        shuffle=split == "train",
        seed=0,
        verbose=False,
    )


def train(network, loss: str, pictures, rate: float, epochs: int, epsilon: float) -> None:
    """Train what is not frozen."""
    trainer = ck.AdversarialTrainer(
        network, loss, value_range=PIXELS, embedding="base", max_epsilon=epsilon
    )
    trainer.compile(keras.optimizers.Adam(rate), metrics=["accuracy"])
    start = time.time()
    trainer.fit(pictures, epochs=epochs, verbose=0)
    steps, seconds = int(trainer.optimizer.iterations), time.time() - start
    print(f"{loss}: {steps} steps of {len(network.trainable_weights)} weights, {seconds:.0f} s")


def main(
    folder: str,
    base: str = "imagenet",
    epsilon: float = 4,
    head_epochs: int = 2,
    all_epochs: int = 2,
    images: int = 500,
    size: tuple[int, int] = SIZE,
) -> dict:
    """Train and attack; return by loss and stage what each withstands.

    Args:
        folder: with train/ and test/.
        base: weights of the base.
        epsilon: how far an attack may change a pixel, of 255.
        head_epochs, all_epochs: of the head alone, then of all layers.
        images: how many test images are attacked.
        size: height and width of what the network sees.
    """
    pictures, test = read(folder, "train", size), read(folder, "test", size)
    names, measured = pictures.class_names, {}
    for loss in LOSSES:
        keras.utils.set_random_seed(0)
        network = build(len(names), base, size)
        for stage, epochs in (("head", head_epochs), ("all layers", all_epochs)):
            network.get_layer("base").trainable = stage == "all layers"
            train(network, loss, pictures, RATES[stage], epochs, epsilon)
            measured[loss, stage] = ck.evaluate(
                network,
                test,
                attacks=ATTACKS,
                epsilons=[epsilon],
                value_range=PIXELS,
                num_images=images,
                class_names=names,
            )
            print(f"\n{loss}, {stage}\n{measured[loss, stage]}")
    return measured


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--folder", required=True, help="with train/CLASS/* and test/CLASS/*")
    parser.add_argument("--base", default="imagenet", help="a .weights.h5 of the base")
    parser.add_argument("--epsilon", type=float, default=4)
    parser.add_argument("--head_epochs", type=int, default=2)
    parser.add_argument("--all_epochs", type=int, default=2)
    parser.add_argument("--images", type=int, default=500, help="test images that are attacked")
    main(**vars(parser.parse_args()))
