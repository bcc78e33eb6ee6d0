"""Your own recipe: mixup in tf.data, AdamW, averaged weights, half precision, early stopping.

    python examples/own_recipe.py --data_dir=DIR            # CIFAR-10 of TensorFlow Datasets
    python examples/own_recipe.py --dataset=digits

All of it is Keras's and TensorFlow's own; ``AdversarialTrainer`` takes it as ``keras.Model`` does.
Training stops when the validation accuracy has not risen for a while: that under pgd, but for the
network that is trained as usual, whose accuracy under pgd is largest while it knows nothing yet.
"""

from __future__ import annotations

import argparse
import time

import keras
import tensorflow as tf

import cascade_keras as ck

BATCH_SIZE = 64
MIXUP = 0.2  # of the Beta distribution
MONITORED = {"standard": "val_clean_accuracy", "pivot": "val_pgd_accuracy"}
AVERAGED = 100  # steps, about; an average of fewer is mostly of the weights before training
ATTACKS = ["step_fgsm", "pgd"]


def build(input_shape: tuple[int, int, int], num_classes: int) -> keras.Model:
    """A small residual network with its own augmentation: images in [0, 1] -> logits."""
    layers = keras.layers

    def block(x, filters: int, stride: int):
        shortcut = layers.Conv2D(filters, 1, stride, use_bias=False)(x)
        for step in (stride, 1):
            x = layers.ReLU()(layers.BatchNormalization()(x))
            x = layers.Conv2D(filters, 3, step, padding="same", use_bias=False)(x)
        return layers.Add()([x, shortcut])

    images = keras.Input(input_shape)
    x = layers.Conv2D(16, 3, padding="same", use_bias=False)(images)
    for filters, stride in ((16, 1), (32, 2), (64, 2)):
        x = block(x, filters, stride)
    x = layers.ReLU()(layers.BatchNormalization()(x))
    x = layers.GlobalAveragePooling2D(name="features")(x)
    # Half precision is for what is large; logits stay float32.
    return keras.Model(images, layers.Dense(num_classes, dtype="float32")(x))


def mixup(images: tf.Tensor, labels: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
    """Mix each image of a batch with another one, and their one-hot labels alike."""
    gammas = tf.random.gamma([2, tf.shape(images)[0], 1], MIXUP)
    share = tf.reduce_max(gammas, axis=0) / tf.reduce_sum(gammas, axis=0)
    of_image = share[:, :, tf.newaxis, tf.newaxis]
    mixed = of_image * images + (1 - of_image) * tf.reverse(images, axis=[0])
    return mixed, share * labels + (1 - share) * tf.reverse(labels, axis=[0])


def batches(images, labels, num_classes: int, train: bool) -> tf.data.Dataset:
    """Return batches of images in [0, 1] and one-hot labels, mixed for training."""
    dataset = tf.data.Dataset.from_tensor_slices((images, labels))
    if train:
        dataset = dataset.shuffle(len(images), seed=0).repeat()
    dataset = dataset.batch(BATCH_SIZE, drop_remainder=train)
    dataset = dataset.map(lambda x, y: (tf.cast(x, tf.float32) / 255, tf.one_hot(y, num_classes)))
    return dataset.map(mixup).prefetch(2) if train else dataset.prefetch(2)


def main(
    dataset: str = "cifar10",
    data_dir: str | None = None,
    epsilon: float = 8,
    epochs: int = 20,
    steps_per_epoch: int = 150,
    images: int = 1000,
):
    """Train as usual and with the pivot loss; return what each withstands.

    Args:
        dataset, data_dir: any that ``ck.data.load`` finds.
        epsilon: how far an attack may change a pixel, of 255.
        epochs: of each training, at most.
        steps_per_epoch: how often it is validated.
        images: how many test images are attacked.
    """
    found = ck.data.load(dataset, data_dir)
    (x_train, y_train), (x_test, y_test) = found.train, found.test
    num_classes = int(y_train.max()) + 1
    # The images that decide when to stop are none of those that are reported.
    held = len(x_train) // 50
    train = batches(x_train[held:], y_train[held:], num_classes, train=True)
    validation = batches(x_train[:held], y_train[:held], num_classes, train=False)

    before = keras.config.dtype_policy()
    keras.config.set_dtype_policy("mixed_bfloat16")
    networks = {}
    try:
        for loss, monitored in MONITORED.items():
            keras.utils.set_random_seed(0)
            network = build(x_train.shape[1:], num_classes)
            trainer = ck.AdversarialTrainer(
                network, loss, embedding="features", max_epsilon=epsilon, weight_decay=0
            )
            trainer.compile(
                keras.optimizers.AdamW(
                    2e-3, weight_decay=0.01, use_ema=True, ema_momentum=1 - 1 / AVERAGED
                ),
                metrics=["accuracy"],
            )
            start = time.time()
            history = trainer.fit(
                train,
                steps_per_epoch=steps_per_epoch,
                validation_data=validation,
                epochs=epochs,
                verbose=0,
                callbacks=[
                    keras.callbacks.SwapEMAWeights(swap_on_epoch=True),
                    ck.callbacks.RobustValidation(
                        attack=ck.attacks.PGD(steps=10, restarts=1), epsilon=epsilon
                    ),
                    keras.callbacks.EarlyStopping(
                        monitored,
                        patience=3,
                        restore_best_weights=True,
                        start_from_epoch=min(2 * AVERAGED // steps_per_epoch, epochs - 1),
                    ),
                ],
            ).history
            print(f"\n{loss}: {trainer.optimizer.iterations.numpy()} steps, ", end="")
            print(f"{time.time() - start:.0f} s")
            for name in MONITORED.values():
                print(f"  {name} {[round(value, 3) for value in history[name]]}")
            networks[loss] = network
    finally:
        keras.config.set_dtype_policy(before)

    measured = ck.evaluate(
        networks,
        x_test.astype("float32") / 255,
        y_test,
        attacks=ATTACKS,
        epsilons=[epsilon],
        sources=networks,  # the images of each are shown to both
        num_images=images,
    )
    print(measured)
    return measured


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--dataset", default="cifar10")
    parser.add_argument("--data_dir", help="where TensorFlow Datasets keeps its datasets")
    parser.add_argument("--epsilon", type=float, default=8)
    parser.add_argument("--epochs", type=int, default=20, help="at most")
    parser.add_argument("--steps_per_epoch", type=int, default=150)
    parser.add_argument("--images", type=int, default=1000, help="test images that are attacked")
    main(**vars(parser.parse_args()))
