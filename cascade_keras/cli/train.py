"""Train a classifier that resists adversarial images.

    train --dataset=digits --loss=pivot                       a minute, nothing to download
    train --dataset=mnist --loss=standard --steps=938 --lr_boundaries=none --name=mnist-init
    train --dataset=mnist --model=resnet20 --loss=pivot --init_from=runs/mnist-init

The run is kept in runs/NAME. It can be stopped at any moment (Ctrl-C, SIGTERM, kill -9); the same
command goes on where it was. Epsilons are in 0..255 units.
"""

from __future__ import annotations

import dataclasses
import pathlib
import platform
import re
import warnings
from collections.abc import Sequence

from absl import flags

from cascade_keras.cli.common import check, comma_list, run_program
from cascade_keras.errors import InputError
from cascade_keras.presets import PRESETS, parse_model_name, scaled_boundaries
from cascade_keras.startup import import_tensorflow

# Flags that do not change what a run computes: they may differ when it is resumed.
OPERATIONAL = {"data_dir", "runs_dir", "name", "checkpoint_minutes", "checkpoint_steps", "flagfile"}
STEP_ATTACKS = ("step_ll", "step_fgsm", "step_both", "step_rand")
EVALUATION_ATTACKS = (*STEP_ATTACKS, "iter_ll", "iter_fgsm", "iter_margin")
PAIR_LOSSES = ("bidirectional", "pivot")


def build_flags() -> flags.FlagValues:
    """Return the program's flags with their validators."""
    values = flags.FlagValues()
    _define_what(values)
    _define_adversarial(values)
    _define_optimization(values)
    _define_running(values)
    return values


def _define_what(values: flags.FlagValues) -> None:
    on = {"flag_values": values}
    flags.DEFINE_enum("dataset", "digits", list(PRESETS), "What to learn.", **on)
    flags.DEFINE_string("data_dir", None, "TensorFlow Datasets' directory.", **on)
    flags.DEFINE_string(
        "model",
        "resnet20",
        "resnetD or plainD (D = 6n + 2), resnetD_e2, "
        "resnetD_e10x2 (2-D embeddings of figure 4), lenet.",
        **on,
    )
    flags.DEFINE_enum(
        "loss", "pivot", ["standard", "kurakin", *PAIR_LOSSES], "How the network is defended.", **on
    )
    flags.DEFINE_string(
        "init_from",
        None,
        "A run's directory, .keras or .weights.h5 file whose weights to start from.",
        **on,
    )
    flags.DEFINE_string(
        "embedding_at",
        "logits",
        "Where the distance is measured: logits, "
        "features, stem, stage1, stage2, stage3, or bottleneck.",
        **on,
    )
    flags.DEFINE_enum(
        "normalization",
        None,
        ["pixel", "channel", "none", "image"],
        "Input normalisation; default: pixel for CIFAR, none otherwise.",
        **on,
    )
    flags.DEFINE_integer(
        "crop",
        None,
        "Side of what the network sees; CIFAR: 24, a random crop, "
        "or 32, a random crop of the image padded to 40.",
        **on,
    )


def _define_adversarial(values: flags.FlagValues) -> None:
    on = {"flag_values": values}
    flags.DEFINE_integer("batch_size", 128, "m, clean and adversarial images.", **on)
    flags.DEFINE_integer("adversarial_batch_size", 64, "k, adversarial images among the m.", **on)
    flags.DEFINE_float(
        "max_epsilon",
        None,
        "Largest epsilon in training, 0..255; default: 16 for CIFAR, 76.5 otherwise.",
        **on,
    )
    flags.DEFINE_float("adversarial_weight", 0.3, "lambda.", **on)
    flags.DEFINE_float("distance_weight", 1e-4, "lambda_2.", **on)
    flags.DEFINE_enum("distance", "l2", ["l2", "l1"], "Distance between embeddings.", **on)
    flags.DEFINE_enum(
        "embedding_normalization",
        "none",
        ["none", "unit", "variance"],
        "Of both embeddings before the distance.",
        **on,
    )
    flags.DEFINE_enum(
        "pivot_guard",
        "fixed_scale",
        ["fixed_scale", "none"],
        "fixed_scale keeps the pivot loss from inflating all embeddings; none: as printed.",
        **on,
    )
    flags.DEFINE_float(
        "paired_weight",
        1.0,
        "Weight of the clean partners of adversarial images in the cross entropy.",
        **on,
    )
    flags.DEFINE_enum("attack", "step_ll", STEP_ATTACKS, "Makes the training images.", **on)
    flags.DEFINE_enum(
        "epsilon_sampling",
        "clipped_normal",
        ["clipped_normal", "uniform", "max", "reversed_normal"],
        "Distribution of the epsilon of a training image.",
        **on,
    )
    flags.DEFINE_bool("per_pixel_epsilon", False, "Jitter epsilon by N(0, 1) per pixel.", **on)
    flags.DEFINE_float("sparsity", 100.0, "Per cent of an image's values perturbed.", **on)
    positive = (lambda v: v > 0, "above 0")
    not_negative = (lambda v: v >= 0, "0 or above")
    check(values, "batch_size", *positive)
    check(values, "adversarial_batch_size", *positive)
    check(values, "max_epsilon", lambda v: 0 <= v <= 255, "in 0..255")
    for name in ("adversarial_weight", "distance_weight", "paired_weight"):
        check(values, name, *not_negative)
    check(values, "sparsity", lambda v: 0 < v <= 100, "above 0 and at most 100 per cent")


def _define_optimization(values: flags.FlagValues) -> None:
    on = {"flag_values": values}
    flags.DEFINE_integer(
        "steps",
        None,
        "Length of the schedule; default: the published one (8000 for MNIST, 94000 for CIFAR).",
        **on,
    )
    flags.DEFINE_float("learning_rate", 0.1, "At the start.", **on)
    flags.DEFINE_string(
        "lr_boundaries",
        None,
        "Steps after which the learning rate is divided by "
        "10, or none; default: the published ones in proportion to --steps.",
        **on,
    )
    flags.DEFINE_integer(
        "warmup_steps",
        None,
        "First steps at a tenth of the learning rate; "
        "default: 400 for CIFAR but at most a tenth of --steps, 0 otherwise.",
        **on,
    )
    flags.DEFINE_float("momentum", 0.9, "Of SGD.", **on)
    flags.DEFINE_float("weight_decay", 1e-4, "d in d/2 sum(w^2), on kernels only.", **on)
    flags.DEFINE_float("clip_norm", None, "Largest global norm of the gradient.", **on)
    flags.DEFINE_bool("use_ema", False, "Finish with the weights' moving average.", **on)
    flags.DEFINE_float("ema_momentum", 0.999, "Of that average.", **on)
    flags.DEFINE_enum(
        "precision",
        "float32",
        ["float32", "mixed_bfloat16", "mixed_float16"],
        "Of the convolutions.",
        **on,
    )
    flags.DEFINE_integer("seed", 0, "Of weights, batches and epsilons.", **on)
    flags.DEFINE_bool("deterministic", False, "Only deterministic operations.", **on)
    for name in ("steps", "learning_rate", "clip_norm"):
        check(values, name, lambda v: v > 0, "above 0")
    for name in ("warmup_steps", "weight_decay"):
        check(values, name, lambda v: v >= 0, "0 or above")
    for name in ("momentum", "ema_momentum"):
        check(values, name, lambda v: 0 <= v < 1, "in [0, 1)")
    check(values, "seed", lambda v: 0 <= v < 2**31, "in 0..2147483647")
    check(
        values,
        "lr_boundaries",
        lambda v: v == "none" or re.fullmatch(r"\d+(,\d+)*", v),
        "none or steps such as 4000,6000",
    )


def _define_running(values: flags.FlagValues) -> None:
    on = {"flag_values": values}
    flags.DEFINE_string("name", None, "Of the run; default: DATASET-MODEL-LOSS-sSEED.", **on)
    flags.DEFINE_string("runs_dir", "runs", "Where runs are kept.", **on)
    flags.DEFINE_float("checkpoint_minutes", 3.0, "At most this long between checkpoints.", **on)
    flags.DEFINE_integer("checkpoint_steps", 0, "Also at multiples of this step; 0: no.", **on)
    flags.DEFINE_integer("log_steps", 50, "Steps between two reports.", **on)
    flags.DEFINE_list(
        "eval_attacks",
        ["step_ll", "step_fgsm", "iter_ll", "iter_fgsm"],
        "Attacks on the finished network: " + ", ".join(EVALUATION_ATTACKS),
        **on,
    )
    flags.DEFINE_float("eval_epsilon", None, "Of those; default: --max_epsilon.", **on)
    flags.DEFINE_integer(
        "eval_examples",
        1000,
        "Test images under iterative attacks; one-step attacks get all.",
        **on,
    )
    check(
        values,
        "name",
        lambda v: re.fullmatch(r"[\w.+-]+", v) and v.strip("."),
        "a folder name of letters, digits, . + - _",
    )
    check(values, "checkpoint_minutes", lambda v: v > 0, "above 0")
    check(values, "checkpoint_steps", lambda v: v >= 0, "0 or above")
    check(values, "log_steps", lambda v: v > 0, "above 0")
    check(
        values,
        "eval_attacks",
        lambda v: set(v) <= set(EVALUATION_ATTACKS),
        f"among {', '.join(EVALUATION_ATTACKS)}",
    )
    check(values, "eval_epsilon", lambda v: 0 <= v <= 255, "in 0..255")
    check(values, "eval_examples", lambda v: v > 0, "above 0")


def resolve(values: flags.FlagValues) -> dict:
    """Return every flag's value with the dataset's defaults filled in, checked together.

    Raises:
        InputError: flags that do not go together.
    """
    chosen = {name: values[name].value for name in values if name != "flagfile"}
    preset = PRESETS[chosen["dataset"]]
    for name in ("max_epsilon", "steps", "normalization", "crop"):
        if chosen[name] is None:
            chosen[name] = getattr(preset, name)
    if chosen["warmup_steps"] is None:
        chosen["warmup_steps"] = min(preset.warmup_steps, chosen["steps"] // 10)
    if chosen["eval_epsilon"] is None:
        chosen["eval_epsilon"] = chosen["max_epsilon"]
    if chosen["name"] is None:
        chosen["name"] = "{dataset}-{model}-{loss}-s{seed}".format(**chosen)
    if chosen["lr_boundaries"] is None:
        chosen["lr_boundaries"] = list(scaled_boundaries(preset, chosen["steps"]))
    elif chosen["lr_boundaries"] == "none":
        chosen["lr_boundaries"] = []
    else:
        chosen["lr_boundaries"] = [int(step) for step in comma_list(chosen["lr_boundaries"])]
        if chosen["lr_boundaries"] != sorted(set(chosen["lr_boundaries"])):
            raise InputError(f"--lr_boundaries: must increase, got {chosen['lr_boundaries']}")
    _check_together(chosen, preset)
    return chosen


def _check_together(chosen: dict, preset) -> None:
    m, k, loss = chosen["batch_size"], chosen["adversarial_batch_size"], chosen["loss"]
    if loss in PAIR_LOSSES and 2 * k > m:
        raise InputError(
            f"--adversarial_batch_size: {loss} pairs each adversarial image with its clean one, so "
            f"it can be at most half of --batch_size ({m // 2}), got {k}"
        )
    if loss == "kurakin" and k == m and chosen["adversarial_weight"] == 0:
        raise InputError(
            "--adversarial_weight: 0 leaves no image with a weight; raise it or lower k"
        )
    if loss == "kurakin" and k > m:
        raise InputError(f"--adversarial_batch_size: at most --batch_size ({m}), got {k}")
    sizes = (24, 32) if preset.augment else (preset.crop,)
    if chosen["crop"] not in sizes:
        raise InputError(
            f"--crop: {chosen['dataset']} networks see {' or '.join(map(str, sizes))} pixels, "
            f"got {chosen['crop']}"
        )
    first = min(chosen["lr_boundaries"], default=None)
    if first is not None and chosen["warmup_steps"] and chosen["warmup_steps"] >= first:
        raise InputError(
            f"--warmup_steps: must end before the first of --lr_boundaries ({first}), "
            f"got {chosen['warmup_steps']}"
        )
    try:
        parse_model_name(chosen["model"])
    except InputError as error:
        raise InputError(f"--model: {error}") from error


def train(values: flags.FlagValues) -> int:
    """Run the program with parsed flags; returns the exit code."""
    from cascade_keras.runs import Run

    chosen = resolve(values)
    run = Run(pathlib.Path(chosen["runs_dir"]) / chosen["name"])
    decisive = {name: value for name, value in chosen.items() if name not in OPERATIONAL}
    run.check(decisive)
    if run.finished:
        print(f"{run.path} is finished; use another --name to train again")
        return 0
    return _train(run, chosen, decisive)


def _train(run, chosen: dict, decisive: dict) -> int:
    import_tensorflow()
    import keras
    import numpy as np
    import tensorflow as tf

    from cascade_keras import callbacks, data

    keras.utils.set_random_seed(chosen["seed"])
    keras.config.set_dtype_policy(chosen["precision"])
    if chosen["deterministic"]:
        tf.config.experimental.enable_op_determinism()

    dataset = data.load(chosen["dataset"], chosen["data_dir"])
    data.check_batch_size(clean_images(chosen), len(dataset.train[1]))
    trainer = build_trainer(chosen, dataset)
    if chosen["init_from"] and not run.has_checkpoints:
        load_initialisation(trainer.network, chosen["init_from"])
    versions = {
        "python": platform.python_version(),
        "numpy": np.__version__,
        "tensorflow": tf.__version__,
        "keras": keras.__version__,
    }
    run.open(
        {
            "flags": decisive,
            "seed": chosen["seed"],
            "dataset": {"name": dataset.name, "fingerprint": dataset.fingerprint},
            "versions": versions,
        }
    )
    first_step, last_step = run.restore(trainer), chosen["steps"]
    if first_step:
        print(f"{run.path}: going on from step {first_step} of {last_step}")

    if first_step < last_step:
        checkpoints = callbacks.Checkpoints(
            run, chosen["checkpoint_minutes"], chosen["checkpoint_steps"], last_step
        )
        report = callbacks.Report(
            run.tensorboard, first_step, last_step, chosen["batch_size"], chosen["log_steps"]
        )
        batches = data.batches(
            *dataset.train,
            clean_images(chosen),
            seed=chosen["seed"],
            start=first_step,
            stop=last_step,
            crop=chosen["crop"],
            augment=dataset.preset.augment,
        )
        try:
            trainer.fit(
                batches,
                callbacks=[callbacks.StopOnDivergence(), checkpoints, report],
                shuffle=False,
                verbose=0,
            )
        except callbacks.DivergenceError as error:
            raise InputError(f"{error}; the last good checkpoint is kept in {run.path}") from error
        finally:
            checkpoints.restore_handlers()
            report.close()
        if checkpoints.stop_signal:
            step = int(trainer.optimizer.iterations)
            print(f"stopped at step {step} of {last_step}; the same command goes on from there")
            return 128 + checkpoints.stop_signal
    # Keras does this at the end of fit; a run resumed after its last step has no fit.
    trainer.optimizer.finalize_variable_values(trainer.network.trainable_variables)
    results = evaluate_network(trainer, dataset, chosen)
    run.finish(trainer.network, {"steps": last_step, "seed": chosen["seed"], "results": results})
    print_results(run, chosen, results)
    return 0


def build_trainer(chosen: dict, dataset):
    """Return the compiled AdversarialTrainer that the flags describe."""
    import keras

    from cascade_keras import data, models
    from cascade_keras.training import AdversarialTrainer

    crop, channels = chosen["crop"], dataset.preset.image_shape[-1]
    network = models.build(
        chosen["model"],
        input_shape=(crop, crop, channels),
        num_classes=dataset.preset.num_classes,
        embedding_at=chosen["embedding_at"],
        normalization=chosen["normalization"],
        mean=data.mean_image(dataset, crop),
    )
    trainer = AdversarialTrainer(
        network,
        chosen["loss"],
        max_epsilon=chosen["max_epsilon"],
        adversarial_batch_size=chosen["adversarial_batch_size"],
        adversarial_weight=chosen["adversarial_weight"],
        distance_weight=chosen["distance_weight"],
        distance_norm={"l1": 1, "l2": 2}[chosen["distance"]],
        embedding_normalization=chosen["embedding_normalization"],
        pivot_guard=chosen["pivot_guard"],
        paired_weight=chosen["paired_weight"],
        attack=chosen["attack"],
        epsilon_sampling=chosen["epsilon_sampling"],
        per_pixel_epsilon=chosen["per_pixel_epsilon"],
        sparsity=chosen["sparsity"],
        weight_decay=chosen["weight_decay"],
        seed=chosen["seed"],
    )
    optimizer = keras.optimizers.SGD(
        learning_rate_schedule(chosen),
        momentum=chosen["momentum"],
        global_clipnorm=chosen["clip_norm"],
        use_ema=chosen["use_ema"],
        ema_momentum=chosen["ema_momentum"],
    )
    trainer.compile(optimizer=optimizer)
    return trainer


def learning_rate_schedule(chosen: dict):
    """Return the learning rate: a warm-up, then divided by 10 after each boundary."""
    import keras

    rate, boundaries = chosen["learning_rate"], list(chosen["lr_boundaries"])
    rates = [rate * 0.1**times for times in range(len(boundaries) + 1)]
    if chosen["warmup_steps"]:
        boundaries, rates = [chosen["warmup_steps"], *boundaries], [rate * 0.1, *rates]
    if not boundaries:
        return rate
    # Keras keeps the earlier value at a boundary itself; step numbers count from 0.
    return keras.optimizers.schedules.PiecewiseConstantDecay([b - 1 for b in boundaries], rates)


def clean_images(chosen: dict) -> int:
    """Return how many images of the dataset a step takes.

    The pair losses add an adversarial image to its clean one, the others replace it.
    """
    paired = chosen["adversarial_batch_size"] if chosen["loss"] in PAIR_LOSSES else 0
    return chosen["batch_size"] - paired


def load_initialisation(network, path: str) -> None:
    """Load weights from a run's directory, a .keras or a .weights.h5 file.

    Raises:
        InputError: nothing there, or weights of another network.
    """
    file = pathlib.Path(path)
    if file.is_dir():
        file = file / "model.keras"
    if not file.is_file():
        raise InputError(
            f"--init_from: {file} does not exist; name a finished run's directory, a .keras or a "
            ".weights.h5 file"
        )
    if not file.name.endswith((".keras", ".weights.h5")):
        raise InputError(f"--init_from: {file} is neither a .keras nor a .weights.h5 file")
    try:
        with warnings.catch_warnings():
            # Keras warns of every layer that the file lacks before it gives up.
            warnings.simplefilter("ignore")
            network.load_weights(file)
    except Exception as error:  # Keras, h5py and zipfile each raise their own
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise InputError(
            f"--init_from: {file} does not hold the weights of this network ({reason[:160]}); "
            "give a file of the same --model and --dataset"
        ) from error


def evaluate_network(trainer, dataset, chosen: dict) -> list[dict]:
    """Return accuracy records of the trained network on the test split, clean and attacked."""
    import rich.console
    import rich.progress

    from cascade_keras import data
    from cascade_keras.evaluation import evaluate

    images, labels = data.test_images(dataset, chosen["crop"])
    results = []
    console = rich.console.Console(stderr=True)
    with rich.progress.Progress(
        console=console, transient=True, disable=not console.is_terminal
    ) as bar:
        for attack in ("clean", *chosen["eval_attacks"]):
            iterative = attack.startswith("iter")
            examples = min(len(images), chosen["eval_examples"]) if iterative else len(images)
            task = bar.add_task(f"evaluating {attack}", total=examples)
            result = evaluate(
                trainer.inference_logits,
                images[:examples],
                labels[:examples],
                attack,
                0.0 if attack == "clean" else chosen["eval_epsilon"],
                seed=chosen["seed"],
                progress=lambda done, task=task: bar.update(task, completed=done),
            )
            results.append(dataclasses.asdict(result))
    return results


def print_results(run, chosen: dict, results: list[dict]) -> None:
    """Print the final accuracies as a table."""
    import rich.console
    import rich.table

    table = rich.table.Table(
        title=f"{run.path}: {chosen['dataset']} test images, white box, epsilon in 0..255"
    )
    for heading in ("attack", "epsilon", "accuracy %", "images"):
        table.add_column(heading, justify="left" if heading == "attack" else "right")
    for result in results:
        table.add_row(
            result["attack"],
            f"{result['epsilon']:g}",
            f"{result['accuracy']:.1f}",
            str(result["examples"]),
        )
    rich.console.Console().print(table)


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point of ``bin/train`` and ``cascade-train``."""
    return run_program("train", __doc__, build_flags(), train, argv)
