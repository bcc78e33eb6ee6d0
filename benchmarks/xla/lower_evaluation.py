"""Lower the evaluation of networks to XLA programs, which a machine with JAX alone can run.

    python benchmarks/xla/lower_evaluation.py --networks=runs/a,runs/b --data_dir=DATA \\
        --epsilon=4,8,16 --output=FOLDER

``--networks`` are finished runs of bin/train; ``--runs=FILE`` names those that ``run_training.py``
trains from the same file, so that one lease of a machine trains and evaluates. FOLDER is then all
that ``run_evaluation.py`` needs:

    KIND-PART.hlo.gz, .json, .npz  one attack, or a part of it, on any network of a kind: their
                                   weights are arguments, so all runs of one network share it
    NAME.npz                       the weights of a finished run
    DATA.npz                       test images as networks see them, labels, keys of their searches
    evaluation.json                what is to be measured

The attacks are the package's own, with the draws of ``bin/evaluate``: an image's fate is the same
within rounding. Shapes are fixed: ``--together`` images are attacked at a time, and what falls
leaves between two calls. pgd's starts are drawn for ``--batch_size`` images, as bin/evaluate does.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import pathlib
import sys
from collections.abc import Callable, Sequence

import keras
import numpy as np
import tensorflow as tf
from lower_training import (
    OF_NETWORKS,
    digest,
    draws_of_cpu,
    network_of,
    prefixed,
    read_runs,
    save_program,
)

from cascade_keras import attacks, data, draws
from cascade_keras.attacks import auto_pgd, boundary, specs, squares
from cascade_keras.attacks.arguments import per_image
from cascade_keras.attacks.iterative import climb
from cascade_keras.attacks.margins import OBJECTIVES, margin
from cascade_keras.attacks.objectives import full_precision
from cascade_keras.attacks.projected import start_in
from cascade_keras.attacks.searches import in_whole_batches
from cascade_keras.attacks.versions import attack_of, options_of, stages_of
from cascade_keras.data.specs import sides_of
from cascade_keras.errors import InputError
from cascade_keras.evaluation.crafting import predicted
from cascade_keras.runs import build
from cascade_keras.runs.run import Run
from cascade_keras.sources import load_source

PLAIN = ("step_ll", "step_fgsm", "iter_ll", "iter_fgsm")  # that draw nothing
ATTACKS = (*PLAIN, "pgd", "autoattack")
SEARCHES = {
    "apgd": auto_pgd.search,
    "apgd_targeted": auto_pgd.search_targeted,
    "square": squares.search,
}


@dataclasses.dataclass(frozen=True)
class Plan:
    """What is to be measured of every network.

    Attributes:
        epsilons: in 0..255 units, above 0.
        attacks: of ``ATTACKS``; clean images are always there.
        transfer: attacks of ``PLAIN`` whose images all other networks are shown too.
        examples: the first so many test images.
        together: images that a program takes.
        batch_size: of pgd's draws.
        seed: of the draws.
        pgd_steps, pgd_restarts, pgd_objective: as of ``attacks.PGD``.
        version, iterations, queries: of AutoAttack.
    """

    epsilons: tuple[float, ...]
    attacks: tuple[str, ...] = ATTACKS
    transfer: tuple[str, ...] = ()
    examples: int = 10_000
    together: int = 1_000
    batch_size: int = 250
    seed: int = 0
    pgd_steps: int = 50
    pgd_restarts: int = 10
    pgd_objective: str = "margin"
    version: str = "standard"
    iterations: int = 100
    queries: int = 5_000

    def __post_init__(self):
        for name, known in (("attacks", ATTACKS), ("transfer", PLAIN)):
            unknown = [each for each in getattr(self, name) if each not in known]
            if unknown:
                raise InputError(f"{unknown[0]} is not lowered; choose {', '.join(known)}", name)
        if not self.epsilons or not all(0 < epsilon <= 255 for epsilon in self.epsilons):
            raise InputError("must be numbers above 0 and at most 255", "epsilon")
        if self.pgd_objective not in OBJECTIVES:
            raise InputError(f"must be one of {', '.join(OBJECTIVES)}", "pgd_objective")

    @property
    def sizes(self) -> list[float]:
        """The epsilons, ascending."""
        return sorted(set(self.epsilons))


@dataclasses.dataclass(frozen=True)
class Network:
    """A network that is evaluated.

    Attributes:
        name: of its run.
        kind: a name that all networks share whose programs are the same.
        data: the name of the file of the images that it sees.
        model: it, or one like it where its weights are not there yet.
        is_there: whether these are its weights.
    """

    name: str
    kind: str
    data: str
    model: keras.Model
    is_there: bool


class Loaded:
    """Networks, and the test images that they see, by the names of their files.

    Args:
        data_dir: as of bin/evaluate.
        examples: the first so many images.
    """

    def __init__(self, data_dir: str, examples: int):
        self.data_dir, self.examples = data_dir, examples
        self.networks: list[Network] = []
        self.images: dict[str, np.ndarray] = {}
        self.labels: dict[str, np.ndarray] = {}
        self._datasets: dict[str, data.Dataset] = {}

    def add_finished(self, path: str) -> None:
        """Add a finished run.

        Raises:
            InputError: it is none, or of a dataset that has no name.
        """
        run = Run(pathlib.Path(path))
        if not run.finished:
            raise InputError(f"{path} is no finished run", "networks")
        flags = run.read_config().flags
        if flags["dataset"] not in data.DATASETS:
            raise InputError(f"{path} has learned other data than the package's own", "networks")
        model = keras.models.load_model(run.model_file, compile=False)
        crop = tuple(flags["crop"]) if isinstance(flags["crop"], list) else flags["crop"]
        told = {name: flags.get(name) for name in OF_NETWORKS}
        self._add(run.path.name, told, flags["dataset"], crop, model, is_there=True)

    def add_runs(self, file: str) -> None:
        """Add the trainings of a file, see ``lower_training.read_runs``, with no weights yet.

        Raises:
            InputError: one that finishes with averages, which have to be brought back first.
        """
        for training in read_runs(file, self.data_dir):
            settings = training.settings
            if settings.use_ema:
                raise InputError(
                    f"{settings.name} finishes with averages: restore it first, and name it in "
                    "networks",
                    "runs",
                )
            dataset = self._dataset(training.preset.name)
            with build.precision(settings.precision):
                model = build.build_network(settings, dataset)
            named = settings.name, network_of(training), training.preset.name
            self._add(*named, settings.crop, model, is_there=False)

    def _dataset(self, name: str) -> data.Dataset:
        if name not in self._datasets:
            self._datasets[name] = data.load(data.DATASETS[name], self.data_dir)
        return self._datasets[name]

    def _add(self, name: str, told: dict, dataset: str, crop, model, *, is_there: bool) -> None:
        if name in [network.name for network in self.networks]:
            raise InputError(f"{name} is named twice", "networks")
        file = "-".join([dataset, "test", *map(str, sides_of(crop))])
        if file not in self.images:
            images, labels = (part[: self.examples] for part in self._dataset(dataset).test)
            self.images[file] = data.centre_crop(np.asarray(images), crop)
            self.labels[file] = np.asarray(labels, np.int32)
        kind = f"{dataset}-{digest(told)}"
        self.networks.append(Network(name, kind, file, model, is_there))


# What a program is: a function of tensors, and what it takes.
Part = tuple[Callable, list[tf.TensorSpec]]


def parts(model: keras.Model, plan: Plan, shape: Sequence[int], classes: int) -> dict[str, Part]:
    """Return the parts of an evaluation by their names.

    Args:
        model: whose weights are read.
        plan: of the evaluation.
        shape: (H, W, C) of the images.
        classes: that the network tells apart.
    """
    logits = load_source(model).logits
    many, own = [plan.together, *shape], [plan.batch_size, *shape]
    images, labels = tf.TensorSpec(many), tf.TensorSpec([plan.together], tf.int32)
    number, epsilon = tf.TensorSpec([], tf.int32), tf.TensorSpec([])
    found: dict[str, Part] = {"predict": (lambda images: predicted(logits(images)), [images])}

    def plain(name: str) -> Callable:
        return lambda images, labels: attacks.at_epsilons(
            name, logits, images, labels, plan.epsilons
        )

    for name in dict.fromkeys((*plan.attacks, *plan.transfer)):
        if name in PLAIN:
            found[name] = plain(name), [images, labels]
    if "pgd" in plan.attacks:
        found["pgd_start"] = pgd_start(plan), [tf.TensorSpec(own), number, number, epsilon]
        found["pgd_climb"] = pgd_climb(plan, logits), [images, labels, images, epsilon]
    if "autoattack" in plan.attacks:
        keys = tf.TensorSpec([plan.together, 2], tf.int32)
        for stage in stages_of(plan.version, classes, plan.queries):
            options = options_of(stage, plan.version, classes, plan.iterations, plan.queries)
            found[stage] = search(stage, plan, logits, options), [images, labels, epsilon, keys]
    return found


def pgd_start(plan: Plan) -> Callable:
    """Return (images, place of the first, number of the start, epsilon) -> a perturbation."""

    def start(images, first, number, epsilon):
        radius = per_image(epsilon, images) * tf.ones_like(images)
        return start_in(images, radius, draws.attack_seed(plan.seed, first), number)

    return start


def pgd_climb(plan: Plan, logits: attacks.LogitsFn) -> Callable:
    """Return (images, labels, start, epsilon) -> images and margins of one start of pgd."""
    objective = OBJECTIVES[plan.pgd_objective]

    def climbed(images, labels, start, epsilon):
        radius = per_image(epsilon, images) * tf.ones_like(images)
        stride = 2.5 * radius / plan.pgd_steps
        found = climb(logits, images, labels, radius, objective, stride, plan.pgd_steps, start)
        return found, tf.cast(margin(labels)(full_precision(logits(found))), tf.float64)

    return climbed


def search(stage: str, plan: Plan, logits: attacks.LogitsFn, options: dict) -> Callable:
    """Return (images, labels, epsilon, keys) -> which fall, of a stage of AutoAttack.

    That of fab has a row for each epsilon of the plan.
    """

    def nearest(images, labels, epsilon, keys):
        return boundary.several(logits, images, labels, plan.sizes, keys, **options).fooled

    def searched(images, labels, epsilon, keys):
        find = SEARCHES[attack_of(stage)]
        return find(logits, images, labels, epsilon, keys, **options).fooled

    return nearest if stage == "fab" else searched


def lower(part: Part, model: keras.Model, path: pathlib.Path) -> None:
    """Write the program of a part: PATH.hlo.gz, PATH.json and PATH.npz.

    Args:
        part: of ``parts``.
        model: whose weights it takes.
        path: without suffix.
    """
    function, arguments = part
    program = tf.function(function, jit_compile=True, autograph=False)
    with draws_of_cpu(), in_whole_batches():
        save_program(program, arguments, prefixed("network", model), {}, path)


def write(loaded: Loaded, plan: Plan, output: pathlib.Path) -> None:
    """Write all that ``run_evaluation.py`` needs into a folder."""
    output.mkdir(parents=True, exist_ok=True)
    for name, images in loaded.images.items():
        keys = draws.image_keys(plan.seed, np.arange(len(images), dtype=np.int32)).numpy()
        labels = loaded.labels[name]
        np.savez_compressed(output / f"{name}.npz", images=images, labels=labels, keys=keys)
    kinds: dict[str, list[str]] = {}
    stages: dict[str, list[str]] = {}
    for network in loaded.networks:
        shape = loaded.images[network.data].shape[1:]
        if network.kind not in kinds:
            classes = int(load_source(network.model).logits(tf.zeros([1, *shape])).shape[-1])
            found = parts(network.model, plan, shape, classes)
            for name, part in found.items():
                lower(part, network.model, output / f"{network.kind}-{name}")
            kinds[network.kind] = list(found)
            stages[network.kind] = [
                stage for stage in specs.ATTACKS["autoattack"].stages if stage in found
            ]
            print(f"{network.kind}: {', '.join(found)}", flush=True)
        if network.is_there:
            weights = prefixed("network", network.model)
            np.savez(output / f"{network.name}.npz", **{k: v.numpy() for k, v in weights.items()})
    networks = [
        {"name": each.name, "kind": each.kind, "data": each.data} for each in loaded.networks
    ]
    record = {
        **dataclasses.asdict(plan),
        "sizes": plan.sizes,
        "stages": stages,
        "kinds": kinds,
        "networks": networks,
    }
    (output / "evaluation.json").write_text(json.dumps(record, indent=1))


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--networks", default="", help="finished runs, with commas between")
    parser.add_argument("--runs", help="file with the flags of one run a line")
    parser.add_argument("--data_dir", required=True, help="as of bin/evaluate")
    parser.add_argument("--output", required=True, type=pathlib.Path, help="folder")
    parser.add_argument("--epsilon", default="4,8,16", help="in 0..255 units")
    for field in dataclasses.fields(Plan):
        if field.name in ("attacks", "transfer"):
            parser.add_argument(f"--{field.name}", default=",".join(field.default))
        elif field.name != "epsilons":
            parser.add_argument(f"--{field.name}", type=type(field.default), default=field.default)
    options = vars(parser.parse_args())
    listed = {name: _listed(options.pop(name)) for name in ("attacks", "transfer", "networks")}
    try:
        networks, runs = listed.pop("networks"), options.pop("runs")
        loaded = Loaded(options.pop("data_dir"), options["examples"])
        epsilons = tuple(map(float, _listed(options.pop("epsilon"))))
        output = options.pop("output")
        plan = Plan(epsilons=epsilons, **listed, **options)
        for path in networks:
            loaded.add_finished(path)
        if runs:
            loaded.add_runs(runs)
        write(loaded, plan, output)
    except InputError as error:
        sys.exit(f"lower_evaluation: {error.setting or ''} {error.message}")


def _listed(text: str) -> tuple[str, ...]:
    return tuple(filter(None, text.split(",")))


if __name__ == "__main__":
    main()
