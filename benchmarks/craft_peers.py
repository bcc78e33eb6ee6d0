#!/usr/bin/env python
"""How fast banks are crafted, beside foolbox and ART.

    python benchmarks/craft_peers.py --data_dir=DIR            some 5 minutes a round
    python benchmarks/craft_peers.py --dataset=digits --images=8 --batch=8 --epsilons=1..3

iter_fgsm images of CIFAR-10's training images by ResNet-20 at every epsilon of 1..16, alpha = 1,
the paper's numbers of iterations; the last command shows whether it runs. What is compared takes
turns in one process, A B C A B C, on TensorFlow's default threads. Ratios are of the medians; their
range is of the ratios within a round.

    ours, ladder            ``bank.crafter``: what a bank's shards are crafted by, to uint8
    ours, each alone        iter_fgsm compiled for this batch, called once for each epsilon
    foolbox, ART            their basic iterative method, called once for each epsilon
      compiled network      the network they are given is a tf.function
      constant weights      the same with its weights made constants; see ``with_constant_weights``
      eager network         the Keras network as it is

All get the same images, labels, weights and batches, and are warmed up. Their images are compared:
the ladder's with those of each epsilon alone to the last bit, where both are compiled for the same
batch size, and all to within 1e-6. A gradient that is zero but for rounding has no sign to agree
on, and one sign that differs changes the rest of that image's iterations.
"""

from __future__ import annotations

import dataclasses
import importlib.util
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import in_turn
import keras
import numpy as np
import tensorflow as tf
from in_turn import ATTACK, Task, as_text, inference, measure, summarize, with_constant_weights

from cascade_keras import attacks, bank

CLOSE = 1e-6  # images in [0, 1] that differ by no more are equal


@dataclasses.dataclass(frozen=True)
class Contender:
    """One way to craft.

    Attributes:
        craft: () -> (epsilons, N, H, W, C), float32 or uint8.
        warm_up: compiles what ``craft`` needs.
    """

    craft: Callable[[], np.ndarray]
    warm_up: Callable[[], Any]


def ladder(task: Task) -> Contender:
    """As ``bank.Bank`` crafts a shard, by the very function."""
    shard = bank.crafter(task.network.logits, ATTACK, task.epsilons)

    def craft(parts: Sequence[slice]) -> np.ndarray:
        images = task.images
        crafted = [
            shard(tf.constant(images[part]), tf.constant(task.labels[part]), tf.constant(0)).numpy()
            for part in parts
        ]
        return np.concatenate(crafted, axis=1)

    return Contender(lambda: craft(task.batches), lambda: craft(task.batches[:1]))


def each_alone(task: Task, craft_one: Callable[[int, np.ndarray, np.ndarray], Any]) -> Contender:
    """Call ``craft_one(epsilon, images, labels)`` for each epsilon and batch."""

    def craft(epsilons: Sequence[int]) -> np.ndarray:
        images = task.images
        parts = [[craft_one(e, images[p], task.labels[p]) for p in task.batches] for e in epsilons]
        return np.stack([np.concatenate([np.asarray(a) for a in row]) for row in parts])

    return Contender(lambda: craft(task.epsilons), lambda: craft(task.epsilons[:1]))


def ours_alone(task: Task) -> Contender:
    """``iter_fgsm``, compiled for this batch, one trace for all epsilons."""
    shape = [task.batch, *task.stored.shape[1:]]
    signature = [tf.TensorSpec(shape), tf.TensorSpec(shape[:1], tf.int32), tf.TensorSpec([])]

    @tf.function(input_signature=signature)
    def attack(images, labels, epsilon):
        return attacks.iter_fgsm(task.network.logits, images, labels, epsilon)

    return each_alone(task, lambda epsilon, *batch: attack(*batch, float(epsilon)))


def foolbox_alone(task: Task, logits_fn: attacks.LogitsFn) -> Contender:
    """Foolbox's attack, whose number of steps is fixed when it is made."""
    import foolbox

    network = foolbox.TensorFlowModel(logits_fn, bounds=(0, 1), device="/CPU:0")

    def craft_one(epsilon, images, labels):
        attack = foolbox.attacks.LinfBasicIterativeAttack(
            abs_stepsize=1 / 255, steps=int(attacks.iterations(epsilon)), random_start=False
        )
        criterion = foolbox.criteria.Misclassification(tf.constant(labels))
        # ``run`` is the attack; calling it also judges success, which eagerpy cannot under NumPy 2.
        return attack.run(network, tf.constant(images), criterion, epsilon=epsilon / 255)

    return each_alone(task, craft_one)


def art_alone(task: Task, logits_fn: attacks.LogitsFn) -> Contender:
    """ART's attack on its TensorFlow classifier, whose loops stay in TensorFlow.

    The rest of its gradient is eager; it offers no way to have that compiled. One-hot labels and
    the loss of them, because with a sparse loss it goes through NumPy at every step. Its own
    measurement of success, two forward passes an epsilon, cannot be switched off.
    """
    from art.attacks.evasion import BasicIterativeMethod
    from art.estimators.classification import TensorFlowV2Classifier

    classifier = TensorFlowV2Classifier(
        model=lambda images, training: logits_fn(images),
        nb_classes=10,
        input_shape=task.stored.shape[1:],
        loss_object=keras.losses.CategoricalCrossentropy(from_logits=True, reduction="sum"),
        clip_values=(0, 1),
    )

    def craft_one(epsilon, images, labels):
        attack = BasicIterativeMethod(
            classifier,
            eps=epsilon / 255,
            eps_step=1 / 255,
            max_iter=int(attacks.iterations(epsilon)),
            batch_size=task.batch,
            verbose=False,
        )
        return attack.generate(images, labels)

    return each_alone(task, craft_one)


LADDER, ALONE = "ours, ladder", "ours, each alone"
CONTENDERS: dict[str, Callable[[Task], Contender]] = {
    LADDER: ladder,
    ALONE: ours_alone,
    "foolbox, compiled network": lambda task: foolbox_alone(task, compiled(task)),
    "foolbox, eager network": lambda task: foolbox_alone(task, inference(task.network.model)),
    "foolbox, constant weights": lambda task: foolbox_alone(task, constant(task)),
    "ART, compiled network": lambda task: art_alone(task, compiled(task)),
    "ART, constant weights": lambda task: art_alone(task, constant(task)),
    "ART, eager network": lambda task: art_alone(task, inference(task.network.model)),
}


def compiled(task: Task) -> attacks.LogitsFn:
    """Return the network as a tf.function, what a user of either library would give it."""
    return tf.function(task.network.logits)


def constant(task: Task) -> attacks.LogitsFn:
    """Return the network with constant weights, the fastest form found."""
    return with_constant_weights(task.network.logits, task.stored.shape[1:])


def available(task: Task) -> Iterator[str]:
    """Yield the contenders that can be had here."""
    for name in CONTENDERS:
        library = name.split(",")[0].lower()
        if library != "ours" and importlib.util.find_spec(library) is None:
            print(f"{name} left out: {library} is not installed")
        elif "eager" in name and task.network.model is None:
            print(f"{name} left out: a SavedModel is compiled")
        else:
            yield name


def compare_crafting(task: Task, rounds: int) -> dict[str, Any]:
    """Measure all contenders in turn, compare their images, and print the table."""
    images: dict[str, np.ndarray] = {}

    def keeping(name: str, craft: Callable[[], np.ndarray]) -> Callable[[], None]:
        return lambda: images.__setitem__(name, craft())

    turns = {}
    for name in available(task):
        contender = CONTENDERS[name](task)
        contender.warm_up()
        turns[name] = keeping(name, contender.craft)
    found = summarize(measure(turns, rounds), LADDER)
    all_alone = sum(int(attacks.iterations(epsilon)) for epsilon in task.epsilons)
    for name, result in found.items():
        shared = name == LADDER
        result["gradients"] = attacks.ladder_gradients(task.epsilons) if shared else all_alone
        result["images_per_second"] = len(task.stored) / result["seconds"]["value"]
        result["agreement"] = agreement(images[name], images[ALONE])
    same_bits = ladder_equals_alone(task, images[ALONE])
    in_turn.print_table(
        f"Crafting {len(task.stored)} images at epsilon {bank.as_range(task.epsilons)}, batches of "
        f"{task.batch}, {task.network.name}; rounds: {rounds}",
        CRAFT_COLUMNS,
        [craft_cells(name, result, len(task.stored)) for name, result in found.items()],
    )
    print(
        f"\nEqual: within {CLOSE:g}, to {ALONE!r}; of the images, one at one epsilon, and of their "
        "values. images/s: each at all epsilons.\nThe ladder compiled for this batch size, as each "
        f"epsilon alone is: {'equal to the last bit' if same_bits else 'NOT EQUAL'} (first batch)."
    )
    return {"contenders": found, "same_bits": same_bits}


CRAFT_COLUMNS = (
    "",
    "gradients an image",
    "seconds (range)",
    "images/s",
    "ms a gradient",
    "time, ladder = 1 (range)",
    "equal images",
    "equal values",
)


def craft_cells(name: str, result: dict[str, Any], images: int) -> tuple[Any, ...]:
    """Return the cells below ``CRAFT_COLUMNS``."""
    return (
        name,
        result["gradients"],
        as_text(result["seconds"]),
        f"{result['images_per_second']:.2f}",
        f"{1e3 * result['seconds']['value'] / result['gradients'] / images:.3f}",
        as_text(result["ratio"]),
        f"{result['agreement']['images']:.2%}",
        f"{result['agreement']['values']:.4%}",
    )


def agreement(crafted: np.ndarray, expected: np.ndarray) -> dict[str, float]:
    """Return the shares of images, one at one epsilon, and of values that are equal."""
    if crafted.dtype == np.uint8:
        crafted = crafted.astype(np.float32) / np.float32(attacks.PIXEL_LEVELS)
    equal = np.abs(crafted - expected) <= CLOSE
    return {"images": float(equal.all(axis=(2, 3, 4)).mean()), "values": float(equal.mean())}


def ladder_equals_alone(task: Task, alone: np.ndarray) -> bool:
    """Whether the ladder gives the floats of the first batch that each epsilon alone gives.

    Compiled alike: for batches of any size TensorFlow's graph is another, which rounds otherwise.
    """
    part = task.batches[0]
    climb = tf.function(
        lambda images, labels: attacks.ladder(task.network.logits, images, labels, task.epsilons)
    )
    return np.array_equal(climb(task.images[part], task.labels[part]), alone[:, part])


def main() -> None:
    parser = in_turn.parser(__doc__)
    parser.add_argument("--images", type=in_turn.positive, default=128, help="whole batches")
    args = parser.parse_args()
    if args.images % args.batch:
        parser.error(f"--images: must be a multiple of --batch ({args.batch})")
    in_turn.run(
        args, lambda: {"craft": compare_crafting(in_turn.load_task(args, args.images), args.rounds)}
    )


if __name__ == "__main__":
    main()
