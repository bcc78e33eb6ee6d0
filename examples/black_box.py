"""Attack saved networks with each other's adversarial images.

python examples/black_box.py saved/demo-standard saved/demo-pivot [--attack=iter_fgsm]

Rows are the networks that the images are crafted from, columns those that have to classify them; on
the diagonal a network is attacked with its own gradients (white box).
"""

from __future__ import annotations

import argparse
import sys

from cascade_keras.startup import import_tensorflow

import_tensorflow()

import numpy as np  # noqa: E402
import rich.console  # noqa: E402
import rich.table  # noqa: E402
import tensorflow as tf  # noqa: E402

from cascade_keras import InputError, attacks, data, evaluation, sources  # noqa: E402

BATCH = 250


def accuracies(
    paths: list[str], attack: str, epsilon: float, examples: int, data_dir: str | None
) -> tuple[str, dict[str, dict[str, float]]]:
    """Return a title, and by source, then by target, the accuracy in per cent."""
    networks = [sources.load_source(path) for path in paths]
    recorded = networks[0].provenance.get("dataset")
    if not recorded:
        raise InputError(f"{paths[0]} does not record what it learned; it is not one of ours")
    dataset = data.load(recorded["name"], data_dir)
    shape = networks[0].input_shape
    for network in networks:
        network.check(shape, dataset.preset.num_classes)
    images, labels = data.test_images(dataset, shape[0])
    images, labels = images[:examples], labels[:examples]
    rows = {}
    for source in networks:
        adversarial = craft(source, images, labels, attack, epsilon)
        rows[source.name] = {
            target.name: evaluation.evaluate(target.logits, adversarial, labels, "clean").accuracy
            for target in networks
        }
    title = (
        f"accuracy in % of {len(images)} {dataset.name} test images; {attack}, epsilon {epsilon:g}"
    )
    return title, rows


def craft(source: sources.Source, images, labels, attack: str, epsilon: float) -> np.ndarray:
    """Return the adversarial images of a source, made once for all that have to classify them."""

    @tf.function
    def make(batch: tf.Tensor, true: tf.Tensor) -> tf.Tensor:
        return attacks.at_epsilons(attack, source.logits, batch, true, [epsilon], seed=(0, 0))[0]

    # One trace serves every batch, the shorter last one too.
    make = make.get_concrete_function(
        tf.TensorSpec([None, *images.shape[1:]], tf.float32), tf.TensorSpec([None], tf.int32)
    )
    batches = tf.data.Dataset.from_tensor_slices((images, labels)).batch(BATCH)
    return np.concatenate([make(batch, true).numpy() for batch, true in batches])


def main() -> None:
    """Run the program."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("networks", nargs="+", help="saved networks or runs")
    parser.add_argument("--attack", default="iter_fgsm", choices=list(attacks.ATTACKS))
    parser.add_argument("--epsilon", type=float, default=76.5, help="in 0..255 units")
    parser.add_argument("--examples", type=int, default=1000)
    parser.add_argument("--data_dir", help="TensorFlow Datasets' directory")
    given = parser.parse_args()
    try:
        title, rows = accuracies(
            given.networks, given.attack, given.epsilon, given.examples, given.data_dir
        )
    except InputError as error:
        sys.exit(f"black_box: {error}")
    table = rich.table.Table(title=title)
    table.add_column("crafted from", no_wrap=True)
    for target in rows:
        table.add_column(target, justify="right", overflow="fold")
    for source, row in rows.items():
        table.add_row(source, *(f"{accuracy:.1f}" for accuracy in row.values()))
    rich.console.Console().print(table)


if __name__ == "__main__":
    main()
