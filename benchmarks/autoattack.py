"""AutoAttack beside that of ART and of torchattacks: the same network, images and epsilon, in turn.

    python benchmarks/autoattack.py --source=runs/resnet20 --dataset=mnist --epsilon=76.5 \\
        --output=autoattack.json
    python benchmarks/autoattack.py --quick

Without --source a ResNet-20 is trained for a moment. Ours and torchattacks' are the standard
version; torchattacks gets PyTorch's better memory format and weights that ask for no gradient. ART
has no FAB, and its own AutoAttack cannot be imported without a package that it does not name: its
auto-PGD on the cross entropy and on the difference of logits ratio and its square attack take turns
on what stands, which is less work than the others do; "ours_as_art" is ours with these three
stages. "Compiled" gives ART the network as a tf.function. A library that is not installed is left
out. All get all images in one batch and the same number of threads, and attack a few images before
any time is taken; ours is compiled then.

Then each of our stages alone, on the images that stand when its turn comes: gradients and forward
passes an image, seconds, and the share of these that the network's own passes take, at the batch
size at which they take least.

With --output every turn is kept when it ends: the same command goes on where an earlier one was
ended, and with more --rounds it measures more.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import keras
import numpy as np
import tensorflow as tf
from in_turn import (
    Network,
    Samples,
    as_text,
    build_network,
    inference,
    load_network,
    positive,
    print_table,
    run,
    summarize,
)
from train_step import PAUSE_SECONDS

from cascade_keras import attacks, data
from cascade_keras.attacks.autoattack import AutoAttack
from cascade_keras.attacks.specs import ATTACKS
from cascade_keras.attacks.versions import stages_of
from cascade_keras.machine import cores

CONTENDERS = {
    "ours": None,
    "ours_as_art": None,
    "art": "art",
    "art_compiled": "art",
    "torchattacks": "torchattacks",
}
AS_ART = ("apgd", "apgd_dlr", "square")
BATCHES = (25, 50, 100, 200)
CALLS = 5  # of a pass at each batch size, before a stage and after it
WARM = (2, 3)  # images that are attacked before any time is taken
STANDS, CLEAN = map(ATTACKS["autoattack"].stage_names.index, ("stands", "clean"))
# Of what was measured before, with which it can stand in one table.
SAME = ("source", "dataset", "epsilon", "images", "iterations", "queries", "epochs", "threads")

Attack = Callable[[np.ndarray, np.ndarray], np.ndarray]  # images and labels to images


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


def ours(
    network: Network, shape: tuple, classes: int, args: argparse.Namespace, stages=None
) -> Attack:
    """Return the standard version of this package, or other stages."""
    options = {"iterations": args.iterations, "queries": args.queries, "stages": stages}
    attack = AutoAttack(network.logits, shape, [args.epsilon], version="standard", **options)
    compile_stages(attack, shape)
    return lambda images, labels: attack(images, labels).images[0]


def compile_stages(attack: AutoAttack, shape: tuple) -> None:
    """Compile all stages: of few images some would never have their turn."""
    images, labels = np.zeros([1, *shape], np.float32), np.zeros(1, np.int32)
    for search in attack._searches.values():
        search(images, labels, np.float32(attack.epsilons[0]), np.zeros([1, 2], np.int32))


def art(logits_fn, shape: tuple, classes: int, args: argparse.Namespace) -> Attack:
    """Return ART's attacks in turn, each on the images that stand."""
    from art.attacks.evasion import AutoProjectedGradientDescent, SquareAttack
    from art.estimators.classification import TensorFlowV2Classifier

    radius = args.epsilon / attacks.PIXEL_LEVELS
    network = TensorFlowV2Classifier(
        model=lambda x, training=False: logits_fn(tf.convert_to_tensor(x)),
        nb_classes=classes,
        input_shape=shape,
        loss_object=tf.keras.losses.CategoricalCrossentropy(from_logits=True),
        clip_values=(0, 1),
    )
    once = {"batch_size": args.images, "verbose": False}
    ascent = {"eps": radius, "eps_step": 2 * radius, "max_iter": args.iterations}
    stages = [
        AutoProjectedGradientDescent(network, loss_type=loss, nb_random_init=1, **ascent, **once)
        for loss in ("cross_entropy", "difference_logits_ratio")
    ]
    stages += [SquareAttack(network, eps=radius, max_iter=args.queries, p_init=0.8, **once)]

    def attack(images: np.ndarray, labels: np.ndarray) -> np.ndarray:
        found, hot = images.copy(), np.eye(classes, dtype=np.float32)[labels]
        for stage in stages:
            predicted = network.predict(found, batch_size=args.images).argmax(axis=1)
            stand = np.flatnonzero(predicted == labels)
            if len(stand):
                found[stand] = stage.generate(images[stand], hot[stand])
        return found

    return attack


def torch_attacks(network: Network, shape: tuple, classes: int, args: argparse.Namespace) -> Attack:
    """Return the standard version of torchattacks, on the same weights."""
    import torch
    import torch_resnet
    import torchattacks

    torch.set_num_threads(args.threads)
    means = [
        np.asarray(layer.mean).reshape(shape)
        for layer in network.model.layers
        if isinstance(layer, keras.layers.Normalization)
    ]
    # Networks of digits take the images as they are.
    mean = means[0] if means else np.zeros(shape, np.float32)
    weights = [w for w in network.model.get_weights() if w.ndim > 0]
    peer = torch_resnet.ResNet(mean, classes)
    peer.stem = torch_resnet.ConvBatchNorm(shape[-1], torch_resnet.STAGE_CHANNELS[0])
    peer.load(weights)
    peer.eval().requires_grad_(False).to(memory_format=torch.channels_last)
    probes = np.random.default_rng(0).random((32, *shape), np.float32)
    own = network.logits(tf.constant(probes)).numpy()
    difference = np.abs(peer(torch_resnet.from_images(probes)).numpy() - own).max()
    if difference > 1e-4 * max(1.0, np.abs(own).max()):
        sys.exit(f"autoattack: the networks' logits differ by {difference:g}")
    attack = torchattacks.AutoAttack(
        peer, norm="Linf", eps=args.epsilon / 255, version="standard", n_classes=classes, seed=0
    )
    for member in attack._autoattack.attacks:
        member.steps = args.iterations
        if type(member).__name__ == "Square":
            member.n_queries = args.queries

    def attacked(images: np.ndarray, labels: np.ndarray) -> np.ndarray:
        given = torch_resnet.from_images(images).contiguous(memory_format=torch.channels_last)
        return torch_resnet.to_images(attack(given, torch.from_numpy(labels.astype(np.int64))))

    return attacked


class Floor:
    """The least seconds an image that a network's own passes take."""

    def __init__(self, network: Network, images: np.ndarray, labels: np.ndarray):
        # Compiled for each size: what is compiled for any size is no faster.
        def gradient(x, y):
            return attacks.input_gradient(network.logits, x, attacks.cross_entropy(y))

        self._calls = {}
        for size in BATCHES:
            x = tf.constant(np.resize(images, (size, *images.shape[1:])))
            y = tf.constant(np.resize(labels, size))
            passes = tf.function(gradient), tf.function(network.logits)
            self._calls[size, "gradient"] = lambda f=passes[0], x=x, y=y: f(x, y)
            self._calls[size, "forward"] = lambda f=passes[1], x=x: f(x)
        for call in self._calls.values():
            call()
        self.forget()

    def forget(self) -> None:
        """Begin anew."""
        self._seconds = {key: [] for key in self._calls}

    def measure(self) -> None:
        """Take the time of all passes a few times."""
        for key, call in self._calls.items():
            for _ in range(CALLS):
                begin = time.perf_counter()
                call()
                self._seconds[key].append(time.perf_counter() - begin)

    def least(self, name: str) -> float:
        """Return the seconds an image of "gradient" or "forward", at their best batch size."""
        return min(
            float(np.median(seconds)) / size
            for (size, kind), seconds in self._seconds.items()
            if kind == name
        )


def by_stage(
    network: Network, images, labels, classes: int, args: argparse.Namespace
) -> list[dict[str, Any]]:
    """Return of each of our stages: passes, seconds, and the share of the floor."""
    rows, stand = [], np.arange(len(images))
    options = {"iterations": args.iterations, "queries": args.queries}
    floor = Floor(network, images, labels)
    for name in stages_of("standard", classes, args.queries):
        attack = AutoAttack(
            network.logits, images.shape[1:], [args.epsilon], stages=(name,), **options
        )
        compile_stages(attack, images.shape[1:])
        progress(f"stage {name}, {len(stand)} images")
        floor.forget()
        floor.measure()
        begin = time.perf_counter()
        found = attack(images[stand], labels[stand], stand)
        seconds = time.perf_counter() - begin
        floor.measure()
        gradients, forwards = int(found.gradients.sum()), int(found.forwards.sum())
        least = {kind: floor.least(kind) for kind in ("gradient", "forward")}
        own = gradients * least["gradient"] + forwards * least["forward"]
        attacked = int(np.sum(found.stages[0] != CLEAN))
        broken = int(np.sum(found.stages[0] > CLEAN))
        row = {"stage": name, "images": attacked, "broken": broken, "gradients": gradients}
        row |= {"forwards": forwards, "seconds": seconds, "share": own / seconds, "floor": least}
        rows.append(row)
        stand = stand[found.stages[0] == STANDS]
        if not len(stand):
            break
    return rows


def progress(line: str) -> None:
    """Say what is done, for whoever waits."""
    print(f"{time.strftime('%H:%M:%S')} {line}", file=sys.stderr, flush=True)


class Kept:
    """What was measured, in a file that the same command goes on with."""

    def __init__(self, args: argparse.Namespace):
        self._path: Path | None = args.output
        self._settings = {name: getattr(args, name) for name in SAME}
        self.seconds: dict[str, list[float]] = {}
        self.withstand: dict[str, float] = {}
        self.stages: list[dict[str, Any]] = []
        if self._path and self._path.exists():
            before = json.loads(self._path.read_text(encoding="utf-8"))
            for name, value in self._settings.items():
                if before["settings"].get(name) != value:
                    sys.exit(
                        f"autoattack: --output={self._path} was measured with "
                        f"{name}={before['settings'].get(name)}, not {value}; name another file"
                    )
            self.seconds, self.withstand = before["seconds"], before["withstand"]
            self.stages = before["stages"]

    def result(self) -> dict[str, Any]:
        """Return all of it."""
        return {"seconds": self.seconds, "withstand": self.withstand, "stages": self.stages}

    def write(self) -> None:
        """Write it, at once or not at all."""
        if self._path:
            beside = self._path.with_name(self._path.name + ".part")
            whole = {"settings": self._settings, **self.result()}
            beside.write_text(json.dumps(whole, indent=2) + "\n", encoding="utf-8")
            beside.replace(self._path)


def compare(args: argparse.Namespace) -> dict[str, Any]:
    """Measure what is not measured yet, and print it."""
    kept = Kept(args)
    dataset = data.load(args.dataset, args.data_dir)
    network = load_network(args.source, dataset) if args.source else trained(dataset, args.epochs)
    stored, labels = (part[: args.images] for part in dataset.test)
    images = data.centre_crop(stored, network.side).astype(np.float32) / np.float32(255)
    labels, classes = np.asarray(labels, np.int32), dataset.preset.num_classes
    compiled = tf.function(network.logits, reduce_retracing=True)
    makers = {
        "ours": lambda *given: ours(network, *given),
        "ours_as_art": lambda *given: ours(network, *given, stages=AS_ART),
        "art": lambda *given: art(network.logits, *given),
        "art_compiled": lambda *given: art(compiled, *given),
        "torchattacks": lambda *given: torch_attacks(network, *given),
    }

    def withstand(found: np.ndarray) -> float:
        apart = np.abs(found - images).max() * attacks.PIXEL_LEVELS
        if apart > args.epsilon * (1 + 1e-5) or found.min() < 0 or found.max() > 1:
            sys.exit(f"autoattack: images of {name} are outside of the ball or of [0, 1]")
        logits = network.logits(tf.constant(np.ascontiguousarray(found)))
        return 100 * float(np.mean(np.argmax(logits, axis=1) == labels))

    name = "no attack"
    clean = withstand(images)
    title = f"{network.name}, {args.dataset}, {args.images} images, clean {clean:.1f} %, epsilon "
    title += f"{args.epsilon:g}, {args.iterations} iterations, {args.queries} queries, "
    print(title + f"{args.threads} threads")
    turns: dict[str, Attack] = {}
    for number in range(args.rounds):
        for name in args.contenders:
            if len(kept.seconds.get(name, [])) > number:
                continue
            if name not in turns:
                turns[name] = makers[name](images.shape[1:], classes, args)
                for count in WARM:
                    turns[name](images[:count], labels[:count])
            time.sleep(PAUSE_SECONDS)
            begin = time.perf_counter()
            found = turns[name](images, labels)
            seconds = time.perf_counter() - begin
            kept.seconds.setdefault(name, []).append(seconds)
            kept.withstand[name] = withstand(found)
            progress(f"round {number + 1}/{args.rounds}: {name} {seconds:.1f} s")
            kept.write()
    # Ratios are taken within a round.
    rounds = min((len(kept.seconds[name]) for name in args.contenders), default=0)
    samples: Samples = {n: [[s] for s in kept.seconds[n][:rounds]] for n in args.contenders}
    summary = summarize(samples, args.contenders[0]) if rounds else {}
    rows = [
        [name, f"{kept.withstand[name]:.1f}", as_text(one["seconds"], 1, 1), as_text(one["ratio"])]
        for name, one in summary.items()
    ]
    columns = ["", "withstand, %", "seconds", f"times {args.contenders[0]}"]
    print_table(f"medians of {rounds} rounds (least - most)", columns, rows)
    if not args.no_stages:
        if not kept.stages:
            kept.stages = by_stage(network, images, labels, classes, args)
            kept.write()
        columns = ["stage", "images", "broken", "gradients", "forward passes", "seconds", "floor"]
        rows = [
            [row["stage"], row["images"], row["broken"]]
            + [f"{row[kind] / row['images']:.0f}" for kind in ("gradients", "forwards")]
            + [f"{row['seconds']:.1f}", f"{100 * row['share']:.0f} %"]
            for row in kept.stages
        ]
        print_table("ours, stage by stage; passes of an image", columns, rows)
    return {**kept.result(), "summary": summary, "clean": clean}


def contenders(text: str) -> list[str]:
    """Return the names in a list with commas."""
    names = text.split(",")
    for name in names:
        if name not in CONTENDERS:
            raise argparse.ArgumentTypeError(f"{name!r}; there are {', '.join(CONTENDERS)}")
    return names


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--source", help="a run or a .keras file of a ResNet-20")
    parser.add_argument("--dataset", default="digits")
    parser.add_argument("--data_dir")
    parser.add_argument("--epsilon", type=float, default=16.0)
    parser.add_argument("--images", type=positive, default=200)
    parser.add_argument("--iterations", type=positive, default=100)
    parser.add_argument("--queries", type=positive, default=5000)
    parser.add_argument("--rounds", type=int, default=3, help="0: the stages alone")
    parser.add_argument("--epochs", type=int, default=5, help="without --source")
    parser.add_argument("--threads", type=positive, default=cores())
    installed = [n for n, of in CONTENDERS.items() if of is None or importlib.util.find_spec(of)]
    parser.add_argument(
        "--contenders",
        type=contenders,
        default=installed,
        help=f"of {', '.join(CONTENDERS)}; ratios are to the first; default: all that are there",
    )
    parser.add_argument("--no_stages", action="store_true", help="only the contenders")
    parser.add_argument("--output", type=Path, help="a JSON file that holds every turn")
    parser.add_argument("--quick", action="store_true", help="see that it runs")
    args = parser.parse_args()
    if args.quick:
        args.images, args.iterations, args.queries, args.rounds = 20, 3, 20, 1
    missing = [name for name in args.contenders if name not in installed]
    if missing:
        sys.exit(f"autoattack: not installed: {', '.join(missing)}")
    tf.config.threading.set_intra_op_parallelism_threads(args.threads)
    tf.config.threading.set_inter_op_parallelism_threads(args.threads)
    run(args, lambda: compare(args))


if __name__ == "__main__":
    main()
