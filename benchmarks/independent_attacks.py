#!/usr/bin/env python
"""The attacks on a saved network beside foolbox's and ART's: accuracies, and whether images agree.

    python benchmarks/independent_attacks.py --network=saved/NAME --data_dir=DIR --epsilon=16
    python benchmarks/independent_attacks.py --network=saved/NAME --epsilon=8 --images=100

The network is any that bin/craft takes for a source; the images are the first of the test split of
the dataset that it learned. All three attack the same network in the same batches with the true
labels, or with the class that is least likely for the clean image.

    step_fgsm, step_ll   foolbox: LinfFastGradientAttack, one LinfBasicIterativeAttack step for the
                         target, which it does not take; ART: FastGradientMethod
    iter_fgsm, iter_ll   LinfBasicIterativeAttack; BasicIterativeMethod; the paper's number of steps
    pgd                  LinfPGD; ProjectedGradientDescent; --steps of 2.5 epsilon / steps
    pgd, random start    the same; each draws its own starts, so only accuracies can be compared:
                         their means and ranges of --starts repetitions

An image is equal if all of its values are within 1e-6. All three round differently: ours keeps the
perturbation, the others add to the image. Where a gradient is zero but for rounding it has no sign
to agree on, and a network of ReLUs has gradients that jump: two iterates that are a rounding apart
may lie on either side of a jump. One value that goes the other way changes all later steps. Whether
that is the only reason is measured on the first batch:

    where they part   of the images that are not equal, those of which our iterates and the other's
                      part at some step; how far they are apart at most just before; and how many
                      of them our gradient would send, from the other's iterate, where the other
                      went. Ours are made once more for this, not compiled; an image that does not
                      part then is equal until compiling rounds it otherwise
    ours, half batch  our images of the batch against our own of its first half alone: convolutions
                      of another batch size round differently too
"""

from __future__ import annotations

import argparse
import dataclasses
import itertools
import json
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

import foolbox
import keras
import numpy as np
import tensorflow as tf
from art.attacks.evasion import BasicIterativeMethod, FastGradientMethod, ProjectedGradientDescent
from art.estimators.classification import TensorFlowV2Classifier

from cascade_keras import attacks, data, evaluation, printed
from cascade_keras.data.specs import DATASETS
from cascade_keras.errors import InputError
from cascade_keras.sources import load_source

CLOSE = 1e-6  # images in [0, 1] that differ by no more are equal
SEED = 0
OURS, FOOLBOX, ART = "ours", "foolbox", "ART"


@dataclasses.dataclass(frozen=True)
class Attack:
    """One attack as all three are told to make it; steps and epsilon in 0..255 units.

    Attributes:
        name: in ``attacks.ATTACKS``.
        steps: number of steps.
        step_size: of each.
        random_start: start at random in the ball.
    """

    name: str
    epsilon: float
    steps: int
    step_size: float
    random_start: bool = False

    @property
    def title(self) -> str:
        """What the table calls it."""
        return f"{self.name}, random start" if self.random_start else self.name

    @property
    def targeted(self) -> bool:
        """Whether it goes towards the least likely class."""
        return self.name.endswith("_ll")

    @property
    def one_step(self) -> bool:
        """Whether it is one step as large as epsilon."""
        return attacks.ATTACKS[self.name].trains


def attacks_to_compare(epsilon: float, steps: int) -> list[Attack]:
    """Return the attacks that the three have in common."""
    papers = int(attacks.iterations(epsilon))
    stride = 2.5 * epsilon / steps
    return [
        Attack("step_fgsm", epsilon, 1, epsilon),
        Attack("step_ll", epsilon, 1, epsilon),
        Attack("iter_fgsm", epsilon, papers, 1.0),
        Attack("iter_ll", epsilon, papers, 1.0),
        Attack("pgd", epsilon, steps, stride),
        Attack("pgd", epsilon, steps, stride, random_start=True),
    ]


class Recorder:
    """A network as a user would give it to a library, that keeps what it is asked for.

    Only eager calls are kept, which is how gradients are asked for.
    """

    def __init__(self, logits_fn: Callable):
        self.logits_fn = logits_fn
        self.iterates: list[np.ndarray] = []

    def __call__(self, images: tf.Tensor, training: bool = False) -> tf.Tensor:
        if tf.executing_eagerly():
            self.iterates.append(np.asarray(images))
        return self.logits_fn(images)


# The three implementations: (images, labels or targets) of a batch -> adversarial images.


def ours(
    attack: Attack, logits_fn: attacks.LogitsFn, image_shape: Sequence[int], seed: int
) -> Callable:
    """As bin/evaluate makes them: compiled for batches of any size."""
    options: dict[str, Any] = {}
    if attack.name == "pgd":
        # As the others do: one start, and the loss that is trained with.
        options = {"steps": attack.steps, "random_start": attack.random_start}
        options |= {"restarts": 1, "objective": "cross_entropy"}
    craft = evaluation.crafter(
        logits_fn, image_shape, attack.name, [attack.epsilon], seed=seed, **options
    )
    return lambda images, labels, first: craft(images, labels, first)[0]


def by_foolbox(attack: Attack, network: Recorder, images, classes) -> np.ndarray:
    """Craft a batch by foolbox."""
    model = foolbox.TensorFlowModel(network, bounds=(0, 1), device="/CPU:0")
    steps = {"abs_stepsize": attack.step_size / attacks.PIXEL_LEVELS, "steps": attack.steps}
    if attack.one_step and not attack.targeted:
        method = foolbox.attacks.LinfFastGradientAttack(random_start=False)
    elif attack.name == "pgd":
        method = foolbox.attacks.LinfPGD(random_start=attack.random_start, **steps)
    else:
        method = foolbox.attacks.LinfBasicIterativeAttack(random_start=False, **steps)
    criterion = foolbox.criteria.Misclassification
    if attack.targeted:
        criterion = foolbox.criteria.TargetedMisclassification
    # ``run`` is the attack; calling it also judges success, which eagerpy cannot under NumPy 2.
    return method.run(
        model,
        tf.constant(images),
        criterion(tf.constant(classes)),
        epsilon=attack.epsilon / attacks.PIXEL_LEVELS,
    ).numpy()


def by_art(attack: Attack, network: Recorder, images, classes, num_classes: int) -> np.ndarray:
    """Craft a batch by the Adversarial Robustness Toolbox."""
    classifier = TensorFlowV2Classifier(
        model=network,
        nb_classes=num_classes,
        input_shape=images.shape[1:],
        # The mean, which is the default, would have small gradients underflow.
        loss_object=keras.losses.CategoricalCrossentropy(from_logits=True, reduction="sum"),
        clip_values=(0, 1),
    )
    common = {
        "eps": attack.epsilon / attacks.PIXEL_LEVELS,
        "targeted": attack.targeted,
        "batch_size": len(images),
    }
    if attack.one_step:
        method = FastGradientMethod(classifier, **common)
    else:
        common["eps_step"] = attack.step_size / attacks.PIXEL_LEVELS
        common |= {"max_iter": attack.steps, "verbose": False}
        if attack.name == "pgd":
            method = ProjectedGradientDescent(
                classifier, num_random_init=int(attack.random_start), **common
            )
        else:
            method = BasicIterativeMethod(classifier, **common)
    return method.generate(images, np.eye(num_classes, dtype=np.float32)[classes])


# The comparison.


def make_gradient(logits_fn: attacks.LogitsFn, image_shape: Sequence[int]) -> Callable:
    """Return our gradient of the cross entropy, compiled: (images, classes) -> as images."""
    signature = [tf.TensorSpec([None, *image_shape]), tf.TensorSpec([None], tf.int32)]

    @tf.function(input_signature=signature)
    def gradient(images, classes):
        return attacks.input_gradient(logits_fn, images, attacks.cross_entropy(classes))

    return lambda images, classes: gradient(tf.constant(images), tf.constant(classes)).numpy()


def own_iterates(attack: Attack, logits_fn: attacks.LogitsFn, images, labels) -> list[np.ndarray]:
    """Return what our attack asks a gradient of, and last its result, each (batch, H, W, C)."""
    options: dict[str, Any] = {} if attack.one_step else {"steps": attack.steps}
    if attack.name == "pgd":
        options |= {"seed": (SEED, 0), "random_start": False, "objective": "cross_entropy"}
    network = Recorder(logits_fn)
    batch = tf.constant(images), tf.constant(labels, tf.int32)
    result = attacks.at_epsilon(attack.name, network, *batch, attack.epsilon, **options)
    before = int(attack.name == "iter_ll")  # it asks for the target first
    return [*network.iterates[before : before + attack.steps], result.numpy()]


def parting(
    attack: Attack,
    gradient: Callable,
    own: Sequence[np.ndarray],
    others: Sequence[np.ndarray],
    classes: np.ndarray,
    unequal: np.ndarray,
) -> dict[str, Any]:
    """Find where the iterates of unequal images part, and what our gradient says there.

    Args:
        gradient: ours, (images, classes) -> as images.
        own, others: the iterates of both, each (batch, H, W, C).
        classes: labels or targets, (batch,).
        unequal: the images that are looked at, bool (batch,).

    Returns:
        "unequal" images; how many of them "parted"; how far the iterates were "apart" at most
        before, in [0, 1]; and how many "agree": values that go another way do so at the other's
        iterate by our gradient too.
    """
    together, apart, agree = unequal.copy(), 0.0, 0
    steps = itertools.pairwise(zip(own, others, strict=True))
    for (before, other_before), (after, other_after) in steps:
        differs = (np.abs(after - other_after) > CLOSE) & together[:, None, None, None]
        parted = differs.any(axis=(1, 2, 3))
        if parted.any():
            apart = max(apart, float(np.abs(before - other_before)[parted].max()))
            slope = gradient(other_before, classes) * (-1 if attack.targeted else 1)
            same_way = np.sign(other_after - other_before) * np.sign(slope) >= 0
            agree += int((same_way | ~differs).all(axis=(1, 2, 3))[parted].sum())
            together &= ~parted
    found = int((unequal & ~together).sum())
    return {"unequal": int(unequal.sum()), "parted": found, "apart": apart, "agree": agree}


def equal_images(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """Return which images are equal, bool (batch,)."""
    return (np.abs(first - second) <= CLOSE).all(axis=(1, 2, 3))


def compare(
    attack: Attack,
    logits_fn: attacks.LogitsFn,
    images: np.ndarray,
    labels: np.ndarray,
    num_classes: int,
    batch_size: int,
    seed: int,
) -> dict[str, Any]:
    """Craft all images by all three and return what the table shows of one attack."""
    shape = images.shape[1:]
    craft = ours(attack, logits_fn, shape, seed)
    predict = evaluation.predictor(logits_fn, shape)
    gradient = make_gradient(logits_fn, shape)
    compiled = tf.function(logits_fn, input_signature=[tf.TensorSpec([None, *shape])])
    correct = dict.fromkeys((OURS, FOOLBOX, ART), 0)
    equal = dict.fromkeys((FOOLBOX, ART), 0)
    parted: dict[str, dict] = {FOOLBOX: {}, ART: {}}
    equal_half = 1.0
    for first, batch, true in evaluation.slices(images, labels, batch_size):
        crafted = {OURS: craft(batch, true, first)}
        classes = true.astype(np.int32)
        if attack.targeted:
            classes = attacks.least_likely_labels(compiled(tf.constant(batch))).numpy()
        own = None
        for name in (FOOLBOX, ART):
            network = Recorder(compiled)
            if name == FOOLBOX:
                crafted[name] = by_foolbox(attack, network, batch, classes)
            else:
                crafted[name] = by_art(attack, network, batch, classes, num_classes)
            if attack.random_start:
                continue
            same = equal_images(crafted[OURS], crafted[name])
            equal[name] += int(same.sum())
            if not (same.all() or first):
                own = own or own_iterates(attack, compiled, batch, true)
                others = [*network.iterates[: attack.steps], crafted[name]]
                parted[name] = parting(attack, gradient, own, others, classes, ~same)
        if not (first or attack.random_start):
            half = max(len(batch) // 2, 1)
            alone = craft(batch[:half], true[:half], first)
            equal_half = float(equal_images(crafted[OURS][:half], alone).mean())
        for name, found in crafted.items():
            correct[name] += int(np.count_nonzero(predict(found[None], first)[0] == true))
    count = len(images)
    result: dict[str, Any] = {**dataclasses.asdict(attack), "title": attack.title, "images": count}
    result["accuracy"] = {name: [100 * right / count] for name, right in correct.items()}
    if not attack.random_start:
        result["equal"] = {name: equal[name] / count for name in (FOOLBOX, ART)}
        result["equal"]["ours, half batch"] = equal_half
        result["parted"] = parted
    return result


def print_table(title: str, results: Sequence[dict[str, Any]]) -> None:
    """Print what ``compare`` returned of each attack."""
    rows = []
    for result in results:
        accuracy = {name: np.mean(found) for name, found in result["accuracy"].items()}
        apart = max(abs(accuracy[OURS] - accuracy[name]) for name in (FOOLBOX, ART))
        cells = []
        for name, found in result["accuracy"].items():
            spread = f" ({min(found):.1f}-{max(found):.1f})" if len(found) > 1 else ""
            cells.append(f"{accuracy[name]:.2f}{spread}")
        cells.append(f"{apart:.2f}")
        equal, parted = ["", "", ""], ["", ""]
        if "equal" in result:
            equal = [f"{share:.1%}" for share in result["equal"].values()]
            parted = [
                "{parted}/{unequal}, {apart:.0e}, {agree}".format(**p) if p else ""
                for p in result["parted"].values()
            ]
        rows.append([result["title"], *cells, *equal, *parted])
    columns = (
        "attack",
        "ours %",
        "foolbox %",
        "ART %",
        "apart, points",
        "equal to foolbox",
        "equal to ART",
        "ours, half batch",
        "parted from foolbox, apart before, agree",
        "from ART",
    )
    printed.print_table(columns, rows, fixed_columns=1, title=title)


def run(args: argparse.Namespace) -> dict[str, Any]:
    """Load the network and its images and compare each attack."""
    source = load_source(args.network)
    name = args.dataset or source.provenance.get("dataset", {}).get("name")
    if name not in DATASETS:
        raise InputError(
            f"--dataset: {source.name} does not record it; one of {', '.join(DATASETS)}"
        )
    dataset = data.load(name, args.data_dir)
    side = source.input_shape[0] or dataset.preset.crop
    images, labels = (part[: args.images] for part in data.test_images(dataset, side))
    classes = dataset.preset.num_classes
    source.check(images.shape[1:], classes)
    results = []
    for attack in attacks_to_compare(args.epsilon, args.steps):
        print(f"{attack.title} ...", file=sys.stderr, flush=True)
        repetitions = [
            compare(attack, source.logits, images, labels, classes, args.batch, seed)
            for seed in range(args.starts if attack.random_start else 1)
        ]
        result = repetitions[0]
        for other in repetitions[1:]:
            for by, accuracy in other["accuracy"].items():
                result["accuracy"][by] += accuracy
        results.append(result)
    title = f"{source.name}, epsilon {args.epsilon:g}, {len(images)} images of {name}"
    print_table(title, results)
    return {
        "network": source.name,
        "weights_hash": source.weights_hash,
        "dataset": name,
        "batch": args.batch,
        "results": results,
    }


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--network", required=True, help="saved network, run or .keras file")
    parser.add_argument("--data_dir", help="TensorFlow Datasets' directory")
    parser.add_argument("--dataset", help="default: what the network learned")
    parser.add_argument("--images", type=int, default=1000, help="the first of the test split")
    parser.add_argument("--epsilon", type=float, required=True, help="in 0..255 units")
    parser.add_argument("--steps", type=int, default=40, help="of pgd")
    parser.add_argument("--starts", type=int, default=3, help="repetitions of random starts")
    parser.add_argument("--batch", type=int, default=250, help="images a batch")
    parser.add_argument("--json", type=Path, help="also write the result to this file")
    args = parser.parse_args()
    if min(args.images, args.steps, args.starts, args.batch, args.epsilon) < 1:
        parser.error("--images, --steps, --starts, --batch and --epsilon must be at least 1")
    # ART makes a function for each batch.
    tf.get_logger().setLevel("ERROR")
    np.random.seed(SEED)  # ART's starts
    tf.random.set_seed(SEED)  # foolbox's
    try:
        result = run(args)
    except InputError as error:
        sys.exit(f"independent_attacks: {error}")
    if args.json:
        args.json.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
