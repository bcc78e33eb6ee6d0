"""Train a classifier that resists adversarial images.

    train --dataset=digits --loss=pivot                       a minute, nothing to download
    train --dataset=mnist --loss=standard --steps=938 --lr_boundaries=none --name=mnist-init
    train --dataset=mnist --model=resnet20 --loss=pivot --init_from=runs/mnist-init
    train --loss=pivot --cascade_source=saved/mnist-resnet20-pivot-s0 --init_from=runs/mnist-init

The run is kept in runs/NAME, and the finished network in saved/NAME, ready to be served and to be
the source of another training. A training can be stopped at any moment (Ctrl-C, SIGTERM, kill -9);
the same command goes on where it was. Epsilons are in 0..255 units.
"""

from __future__ import annotations

import contextlib
import dataclasses
import errno
import functools
import pathlib
import warnings
from collections.abc import Iterator, Sequence

from absl import flags

from cascade_keras.cli.cascade import Cascade, check_unchanged, load_sources, record_sources
from cascade_keras.cli.common import run_program
from cascade_keras.cli.train_flags import (
    OPERATIONAL,
    PAIR_LOSSES,
    SOURCE_FLAGS,
    STEP_ATTACKS,
    build_flags,
    resolve,
)
from cascade_keras.data.specs import DATASETS
from cascade_keras.errors import InputError
from cascade_keras.export import check_output, export_saved_model, provenance_of_run
from cascade_keras.provenance import package_versions
from cascade_keras.startup import import_tensorflow


def train(values: flags.FlagValues) -> int:
    """Run the program with parsed flags; returns the exit code."""
    from cascade_keras.runs.run import Run

    chosen = resolve(values)
    run = Run(pathlib.Path(chosen["runs_dir"]) / chosen["name"])
    decisive = {name: value for name, value in chosen.items() if name not in OPERATIONAL}
    run.check(decisive)
    if run.finished:
        print(f"{run.path} is finished; use another --name to train again")
        return 0
    if chosen["export"]:
        try:
            check_output(pathlib.Path(chosen["saved_dir"]) / chosen["name"])
        except InputError as error:
            raise InputError(f"--saved_dir: {error}") from error
    import_tensorflow()
    return _train(run, chosen, decisive)


def _train(run, chosen: dict, decisive: dict) -> int:
    import keras
    import tensorflow as tf

    from cascade_keras import data

    keras.config.set_dtype_policy(chosen["precision"])
    if chosen["deterministic"]:
        tf.config.experimental.enable_op_determinism()

    before = run.read_config() if run.exists else {}
    sources = _load_sources(run, chosen, before)
    _compare_initialisations(sources["cascade_source"], chosen["init_from"])
    dataset = data.load(chosen["dataset"], chosen["data_dir"])
    data.check_batch_size(clean_images(chosen), len(dataset.train[1]))
    config = {
        "flags": decisive,
        "seed": chosen["seed"],
        "dataset": {"name": dataset.name, "fingerprint": dataset.fingerprint},
        "versions": package_versions(),
    }
    cascade = None
    if sources["cascade_source"]:
        cascade = Cascade(sources["cascade_source"], chosen, dataset, before.get("cascade"))
        config["cascade"] = cascade.ready()
    if sources["ensemble_source"]:
        config["ensemble"] = {"sources": record_sources(sources["ensemble_source"])}
    # Last, as loading a source may draw numbers too: the weights follow from the seed alone.
    keras.utils.set_random_seed(chosen["seed"])
    trainer = build_trainer(
        chosen,
        dataset,
        cascade_sources=sources["cascade_source"] if cascade and not cascade.partners else (),
        ensemble_sources=sources["ensemble_source"],
    )
    if chosen["init_from"] and not run.has_checkpoints:
        load_initialisation(trainer.network, chosen["init_from"])
    run.open(config)
    first_step = run.restore(trainer)
    trainer.steps.assign(first_step)  # checkpoints of version 0.1.0 have no clock
    with (
        _event_writer(run, chosen) as writer,
        _dashboard(writer, run, chosen, trainer, dataset) as dashboard,
    ):
        if dashboard:
            dashboard.open(chosen["name"], decisive)
        partners = cascade and cascade.partners
        stopped = _fit(run, chosen, trainer, dataset, partners, first_step, writer, dashboard)
        if stopped:
            return stopped
        # Keras does this at the end of fit; a run resumed after its last step has no fit.
        trainer.optimizer.finalize_variable_values(trainer.network.trainable_variables)
        results = evaluate_network(trainer, dataset, chosen, dashboard)
        if dashboard:
            dashboard.look(chosen["steps"], craft=_is_long(chosen))
            dashboard.finish(chosen["steps"], results)
    saved = _export(run, chosen, trainer.network, results) if chosen["export"] else None
    run.finish(
        trainer.network, {"steps": chosen["steps"], "seed": chosen["seed"], "results": results}
    )
    print_results(run, chosen, results)
    if saved:
        print(f"saved as {saved}")
    return 0


def _load_sources(run, chosen: dict, before: dict) -> dict[str, list]:
    """Load the sources of each flag; a run that goes on gets those it was started with."""
    preset = DATASETS[chosen["dataset"]]
    shape = (chosen["crop"], chosen["crop"], preset.image_shape[-1])
    sources = {}
    for flag in SOURCE_FLAGS:
        recorded = before.get(flag.removesuffix("_source"), {}).get("sources", [])
        # The paths of the start: a newer version in a source's folder does not slip in.
        paths = [source["path"] for source in recorded] or chosen[flag]
        sources[flag] = load_sources(flag, paths, shape, preset)
        check_unchanged(flag, sources[flag], recorded, run)
    return sources


def _compare_initialisations(sources: list, init_from: str | None) -> None:
    """Say so if a cascade network does not start from its source's weights, as the paper's do."""
    for source in sources:
        theirs = source.provenance.get("recipe", {}).get("init_from")
        if theirs and theirs != init_from:
            print(
                f"note: {source.name} started from {theirs}; in the paper a cascade network starts "
                f"from the same weights as its source (--init_from={theirs})"
            )


@contextlib.contextmanager
def _event_writer(run, chosen: dict) -> Iterator:
    """Yield the writer of the run's event files and close it in the end."""
    import tensorflow as tf

    if chosen["tensorboard"] == "none":
        writer = tf.summary.create_noop_writer()
    else:
        writer = tf.summary.create_file_writer(str(run.tensorboard))
    try:
        with contextlib.closing(writer):
            yield writer
    except tf.errors.OpError as error:
        if "tfevents" not in str(error):
            raise
        reason = "events cannot be written; is the disk full?"
        raise OSError(errno.EIO, reason, str(run.tensorboard)) from error


def _dashboard(writer, run, chosen: dict, trainer, dataset) -> contextlib.AbstractContextManager:
    """Return what TensorBoard shows beside scalars, closed on leaving; None where not wanted."""
    if chosen["tensorboard"] != "all":
        return contextlib.nullcontext()

    from cascade_keras import data
    from cascade_keras.runs.dashboard import Dashboard

    images, labels = (part[: chosen["tensorboard_images"]] for part in dataset.test)
    return contextlib.closing(
        Dashboard(
            writer,
            run.tensorboard,
            trainer,
            data.as_network_input(images, chosen["crop"]),
            labels,
            chosen["tensorboard_attacks"],
            chosen["tensorboard_epsilon"],
            chosen["seed"],
        )
    )


def _expected_steps(chosen: dict) -> float:
    """Return how many training steps take as long as a look at the test images, roughly."""
    from cascade_keras.runs.dashboard import expected_steps

    return expected_steps(
        chosen["tensorboard_images"],
        chosen["tensorboard_attacks"],
        chosen["tensorboard_epsilon"],
        chosen["batch_size"],
    )


def _is_long(chosen: dict) -> bool:
    """Whether the schedule is long enough for attacks that are made for TensorBoard only."""
    from cascade_keras.runs.callbacks import Looks

    asked = chosen["tensorboard_steps"] > 0
    return asked or _expected_steps(chosen) <= Looks.SHARE * chosen["steps"]


def _fit(run, chosen: dict, trainer, dataset, partners, first_step: int, writer, dashboard) -> int:
    """Train what is left of the schedule; return the exit code if a signal ended it, else 0."""
    import tensorflow as tf

    from cascade_keras import data
    from cascade_keras.runs import callbacks

    last_step = chosen["steps"]
    if first_step:
        print(f"{run.path}: going on from step {first_step} of {last_step}")
    if first_step >= last_step:
        return 0
    checkpoints = callbacks.Checkpoints(
        run, chosen["checkpoint_minutes"], chosen["checkpoint_steps"], last_step
    )
    report = callbacks.Report(
        writer, first_step, last_step, chosen["batch_size"], chosen["log_steps"]
    )
    extras = []
    if dashboard:
        extras.append(
            callbacks.Looks(
                dashboard.look,
                last_step,
                every=chosen["tensorboard_steps"],
                window=chosen["log_steps"],
                expected_steps=_expected_steps(chosen),
            )
        )
    if chosen["profile_steps"]:
        # Not the first steps, which trace the graph, unless there are no others.
        skipped = min(5, max(0, last_step - first_step - chosen["profile_steps"]))
        extras.append(callbacks.Profile(run.tensorboard, chosen["profile_steps"], skipped))
    batches = data.batches(
        *dataset.train,
        clean_images(chosen),
        seed=chosen["seed"],
        start=first_step,
        stop=last_step,
        crop=chosen["crop"],
        augment=dataset.preset.augment,
        partners=partners,
    )
    try:
        trainer.fit(
            batches,
            # The report before the checkpoint, so that a run killed in between lacks no point.
            callbacks=[callbacks.StopOnDivergence(), report, checkpoints, *extras],
            shuffle=False,
            verbose=0,
        )
    except callbacks.DivergenceError as error:
        raise InputError(f"{error}; the last good checkpoint is kept in {run.path}") from error
    except tf.errors.OpError as error:
        # TensorFlow passes on the text of an error in a bank only, buried in its own.
        if partners is None or partners.error is None:
            raise
        raise InputError(f"--cascade_bank: {partners.error}") from error
    finally:
        checkpoints.restore_handlers()
        report.close()
    if checkpoints.stop_signal:
        step = int(trainer.steps)
        print(f"stopped at step {step} of {last_step}; the same command goes on from there")
        return 128 + checkpoints.stop_signal
    return 0


def _export(run, chosen: dict, network, results: list[dict]) -> pathlib.Path:
    """Save the finished network in the TF Serving layout; return the folder of the version."""
    return export_saved_model(
        network,
        pathlib.Path(chosen["saved_dir"]) / chosen["name"],
        provenance_of_run(run.read_config(), chosen["steps"], results),
        image_shape=DATASETS[chosen["dataset"]].image_shape,
    )


def build_trainer(chosen: dict, dataset, cascade_sources=(), ensemble_sources=()):
    """Return the compiled AdversarialTrainer that the flags describe.

    Args:
        cascade_sources: those whose images are crafted within the step.
        ensemble_sources: those of one-step images.
    """
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
        cascade_sources=cascade_sources,
        ensemble_sources=ensemble_sources,
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


def evaluate_network(trainer, dataset, chosen: dict, dashboard=None) -> list[dict]:
    """Return accuracy records of the trained network on the test split, clean and attacked.

    The dashboard, if any, is shown the adversarial images.
    """
    import rich.console
    import rich.progress

    from cascade_keras import data
    from cascade_keras.evaluation import sweep

    images, labels = data.test_images(dataset, chosen["crop"])
    results = []
    console = rich.console.Console(stderr=True)
    with rich.progress.Progress(
        console=console, transient=True, disable=not console.is_terminal
    ) as bar:
        for attack in ("clean", *chosen["eval_attacks"]):
            iterative = attack not in ("clean", *STEP_ATTACKS)
            examples = min(len(images), chosen["eval_examples"]) if iterative else len(images)
            epsilons = [0.0] if attack == "clean" else chosen["eval_epsilon"]
            task = bar.add_task(f"evaluating {attack}", total=examples)
            options = {}
            if dashboard:
                options["show"] = functools.partial(dashboard.keep, attack, epsilons)
            found = sweep(
                trainer.inference_logits,
                images[:examples],
                labels[:examples],
                attack,
                epsilons,
                seed=chosen["seed"],
                progress=lambda done, task=task: bar.update(task, completed=done),
                **options,
            )
            results += map(dataclasses.asdict, found)
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
