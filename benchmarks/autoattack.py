"""AutoAttack beside that of ART and of torchattacks: the same network, images and epsilon, in turn.

    python benchmarks/autoattack.py --source=saved/resnet20 --dataset=mnist --epsilon=76.5
    python benchmarks/autoattack.py --quick

Without --source a ResNet-20 is trained for a moment. Ours and torchattacks' are the standard
version. ART has no FAB, and its own AutoAttack cannot be imported without a package that it does
not name: its auto-PGD on the cross entropy and on the difference of logits ratio and its square
attack take turns on what stands, which is less work than the others do. "Compiled" gives ART the
network as a tf.function. A library that is not installed is left out.

Then each of our stages alone, on the images that stand when its turn comes: gradients and forward
passes an image, seconds, and the share of these that the network's own passes take, at the batch
size at which they take least.
"""

from __future__ import annotations

import argparse
import importlib.util
import time
from collections.abc import Callable

import keras
import numpy as np
import tensorflow as tf
from in_turn import (
    Network,
    as_text,
    build_network,
    inference,
    load_network,
    measure,
    print_table,
    summarize,
)

from cascade_keras import attacks, data
from cascade_keras.attacks.autoattack import AutoAttack
from cascade_keras.attacks.specs import ATTACKS

BATCHES = (25, 50, 100, 200)
STANDS = ATTACKS["autoattack"].stage_names.index("stands")


def trained(dataset: data.Dataset, epochs: int) -> Network:
    """Return a ResNet-20 that has learned a little."""
    model = build_network(dataset, dataset.preset.crop)
    images = data.centre_crop(dataset.train[0][:5000], dataset.preset.crop)
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    outputs = model.outputs[model.output_names.index("logits")] if len(model.outputs) > 1 else None
    network = keras.Model(model.inputs, outputs) if outputs is not None else model
    network.compile(keras.optimizers.Adam(3e-3), loss)
    network.fit(images / np.float32(255), dataset.train[1][:5000], 64, epochs, verbose=0)
    return Network("resnet20, trained for a moment", dataset.preset.crop, inference(model), model)


def ours(network: Network, images, labels, args: argparse.Namespace) -> Callable[[], np.ndarray]:
    """Return the standard version of this package."""
    options = {"iterations": args.iterations, "queries": args.queries}
    attack = AutoAttack(
        network.logits, images.shape[1:], [args.epsilon], version="standard", **options
    )
    return lambda: attack(images, labels).images[0]


def art(logits_fn, images, labels, args: argparse.Namespace) -> Callable[[], np.ndarray]:
    """Return ART's attacks in turn, each on the images that stand."""
    from art.attacks.evasion import AutoProjectedGradientDescent, SquareAttack
    from art.estimators.classification import TensorFlowV2Classifier

    radius, hot = args.epsilon / attacks.PIXEL_LEVELS, np.eye(10, dtype=np.float32)[labels]
    network = TensorFlowV2Classifier(
        model=lambda x, training=False: logits_fn(tf.convert_to_tensor(x)),
        nb_classes=10,
        input_shape=images.shape[1:],
        loss_object=tf.keras.losses.CategoricalCrossentropy(from_logits=True),
        clip_values=(0, 1),
    )
    ascent = {"eps": radius, "eps_step": 2 * radius, "max_iter": args.iterations}
    ascent |= {"nb_random_init": 1, "batch_size": len(images), "verbose": False}
    stages = [
        AutoProjectedGradientDescent(network, loss_type=loss, **ascent)
        for loss in ("cross_entropy", "difference_logits_ratio")
    ]
    stages += [SquareAttack(network, eps=radius, max_iter=args.queries, p_init=0.8, verbose=False)]

    def attack() -> np.ndarray:
        found = images.copy()
        for stage in stages:
            stand = np.flatnonzero(network.predict(found).argmax(axis=1) == labels)
            if len(stand):
                found[stand] = stage.generate(images[stand], hot[stand])
        return found

    return attack


def torch_attacks(network: Network, images, labels, args) -> Callable[[], np.ndarray]:
    """Return the standard version of torchattacks, on the same weights."""
    import torch
    import torch_resnet
    import torchattacks

    means = [
        np.asarray(layer.mean).reshape(images.shape[1:])
        for layer in network.model.layers
        if isinstance(layer, keras.layers.Normalization)
    ]
    # Networks of digits take the images as they are.
    mean = means[0] if means else np.zeros(images.shape[1:], np.float32)
    weights = [w for w in network.model.get_weights() if w.ndim > 0]
    peer = torch_resnet.ResNet20(mean)
    peer.stem = torch_resnet.ConvBatchNorm(images.shape[-1], torch_resnet.STAGE_CHANNELS[0])
    peer.eval()
    peer.load(weights)
    theirs = torch_resnet.from_images(images)
    with torch.no_grad():
        difference = np.abs(peer(theirs).numpy() - network.logits(images).numpy()).max()
    assert difference < 1e-3, f"the networks differ by {difference}"
    attack = torchattacks.AutoAttack(
        peer, norm="Linf", eps=args.epsilon / 255, version="standard", n_classes=10, seed=0
    )
    for member in attack._autoattack.attacks:
        member.steps = args.iterations
        if type(member).__name__ == "Square":
            member.n_queries = args.queries
    given = torch.from_numpy(np.asarray(labels, np.int64))
    return lambda: torch_resnet.to_images(attack(theirs, given))


def floor_of(network: Network, images: np.ndarray, labels: np.ndarray) -> tuple[float, float]:
    """Return the least seconds an image that a gradient and a forward pass take."""

    @tf.function(reduce_retracing=True)
    def gradient(x, y):
        return attacks.input_gradient(network.logits, x, attacks.cross_entropy(y))

    forward = tf.function(network.logits, reduce_retracing=True)
    least = [np.inf, np.inf]
    for size in BATCHES:
        x = tf.constant(np.resize(images, (size, *images.shape[1:])))
        y = tf.constant(np.resize(labels, size))
        for number, call in enumerate((lambda x=x, y=y: gradient(x, y), lambda x=x: forward(x))):
            call()
            begin = time.perf_counter()
            for _ in range(5):
                call()
            least[number] = min(least[number], (time.perf_counter() - begin) / 5 / size)
    return least[0], least[1]


def by_stage(network: Network, images, labels, args: argparse.Namespace) -> list[list]:
    """Return a row of each of our stages: passes, seconds, and the share of the floor."""
    rows, stand = [], np.arange(len(images))
    options = {"iterations": args.iterations, "queries": args.queries}
    for name in ("apgd", "apgd_targeted", "fab", "square"):
        attack = AutoAttack(
            network.logits, images.shape[1:], [args.epsilon], stages=(name,), **options
        )
        given = images[stand], labels[stand], stand
        attack(*given)  # traced
        per_gradient, per_forward = floor_of(network, images, labels)
        begin = time.perf_counter()
        found = attack(*given)
        seconds = time.perf_counter() - begin
        gradients, forwards = found.gradients.sum(), found.forwards.sum()
        floor = gradients * per_gradient + forwards * per_forward
        rows.append(
            [name, len(stand), np.sum(found.stages[0] > 1), f"{gradients / len(stand):.0f}",
             f"{forwards / len(stand):.0f}", f"{seconds:.1f}", f"{100 * floor / seconds:.0f} %"]
        )  # fmt: skip
        stand = stand[found.stages[0] == STANDS]
        if not len(stand):
            break
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--source", help="a saved ResNet-20")
    parser.add_argument("--dataset", default="digits")
    parser.add_argument("--data_dir")
    parser.add_argument("--epsilon", type=float, default=16.0)
    parser.add_argument("--images", type=int, default=200)
    parser.add_argument("--iterations", type=int, default=100)
    parser.add_argument("--queries", type=int, default=5000)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--epochs", type=int, default=5, help="without --source")
    parser.add_argument("--without", default="", help="contenders that are left out: art,...")
    parser.add_argument("--quick", action="store_true", help="see that it runs")
    args = parser.parse_args()
    if args.quick:
        args.images, args.iterations, args.queries, args.rounds = 20, 3, 20, 1
    dataset = data.load(args.dataset, args.data_dir)
    network = load_network(args.source, dataset) if args.source else trained(dataset, args.epochs)
    stored, labels = (part[: args.images] for part in dataset.test)
    images = data.centre_crop(stored, network.side).astype(np.float32) / np.float32(255)
    given = images, np.asarray(labels, np.int32), args
    turns = {"ours": ours(network, *given)}
    there = {name for name in ("art", "torchattacks") if importlib.util.find_spec(name)}
    there -= set(args.without.split(","))
    if "art" in there:
        turns["art"] = art(network.logits, *given)
        turns["art, compiled network"] = art(tf.function(network.logits), *given)
    if "torchattacks" in there and network.model is not None:
        turns["torchattacks"] = torch_attacks(network, *given)

    def accuracy(found: np.ndarray) -> str:
        classes = np.argmax(network.logits(tf.constant(np.ascontiguousarray(found))), axis=1)
        return f"{100 * np.mean(classes == given[1]):.1f}"

    right = {name: accuracy(call()) for name, call in turns.items()}  # and all is traced
    found = summarize(measure(turns, args.rounds), "ours")
    print(
        f"{network.name}, {args.dataset}, {args.images} images, clean {accuracy(images)} %, "
        f"epsilon {args.epsilon:g}, {args.iterations} iterations, {args.queries} queries"
    )
    rows = [
        [name, right[name], as_text(found[name]["seconds"]), as_text(found[name]["ratio"])]
        for name in turns
    ]
    columns = ["", "withstand, %", "seconds", "times ours"]
    print_table(f"medians of {args.rounds} rounds (least - most)", columns, rows)
    columns = ["stage", "images", "broken", "gradients", "forward passes", "seconds", "floor"]
    print_table("ours, stage by stage", columns, by_stage(network, *given))


if __name__ == "__main__":
    main()
