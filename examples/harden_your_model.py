"""Harden a Keras classifier of your own: build it, wrap it, compile, fit.

    python examples/harden_your_model.py

Trains the same small network twice on scikit-learn's digits, as usual and with the pivot loss, and
prints the accuracy on clean and adversarial test images. About half a minute on two cores.
"""

import keras

from cascade_keras import AdversarialTrainer, data, evaluate

EPSILON = 0.2 * 255  # of 255: how far an attack may change each pixel


def build_classifier() -> keras.Model:
    """Any Keras model from images in [0, 1] to logits will do; this one is ten lines."""
    return keras.Sequential(
        [
            keras.Input((8, 8, 1)),
            keras.layers.Conv2D(32, 3, padding="same", activation="relu"),
            keras.layers.Conv2D(64, 3, padding="same", activation="relu"),
            keras.layers.MaxPooling2D(),
            keras.layers.Flatten(),
            keras.layers.Dense(64, activation="relu"),
            keras.layers.Dense(10),  # logits: no softmax
        ]
    )


def main(epochs: int = 40) -> dict[str, dict[str, float]]:
    """Train both networks and return their accuracies in per cent, by loss and attack."""
    digits = data.load("digits")
    train_images, train_labels = digits.train
    test_images, test_labels = data.test_images(digits, crop=8)

    accuracies: dict[str, dict[str, float]] = {}
    for loss in ("standard", "pivot"):
        keras.utils.set_random_seed(0)
        trainer = AdversarialTrainer(build_classifier(), loss, max_epsilon=EPSILON)
        trainer.compile(optimizer=keras.optimizers.SGD(0.05, momentum=0.9))
        trainer.fit(
            train_images.astype("float32") / 255,
            train_labels,
            batch_size=64,
            epochs=epochs,
            verbose=0,
        )
        attacks = ["step_fgsm", "iter_fgsm"]
        report = evaluate(
            trainer, test_images, test_labels, attacks, EPSILON, diagnosis_images=0, progress=False
        )
        attacks = "clean", *attacks
        accuracies[loss] = {attack: report.accuracy[attack] for attack in attacks}
        print(loss, {attack: round(value, 1) for attack, value in accuracies[loss].items()})
    return accuracies


if __name__ == "__main__":
    main()
