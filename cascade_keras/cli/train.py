"""Train a classifier that resists adversarial images.

    train --dataset=digits --loss=pivot                       a minute, nothing to download
    train --dataset=mnist --loss=standard --steps=938 --lr_boundaries=none --name=mnist-init
    train --dataset=mnist --model=resnet20 --loss=pivot --init_from=runs/mnist-init
    train --loss=pivot --cascade_source=saved/mnist-resnet20-pivot-s0 --init_from=runs/mnist-init
    train --recipe=R20_P,C --seed=1          a network of the paper: says which it needs before

The run is kept in runs/NAME, and the finished network in saved/NAME, ready to be served and to be
the source of another training. A training can be stopped at any moment (Ctrl-C, SIGTERM, kill -9);
the same command goes on where it was. Epsilons are in 0..255 units.
"""

from __future__ import annotations

from collections.abc import Sequence

from absl import flags

from cascade_keras.attacks.specs import Attack
from cascade_keras.cli.common import run_program
from cascade_keras.cli.flags import define, given, read
from cascade_keras.cluster import WorkerLost
from cascade_keras.printed import print_table
from cascade_keras.runs.settings import RecipeSettings, TrainingSettings
from cascade_keras.runs.training_run import Training, TrainingResult, of_looks


def train(values: flags.FlagValues) -> int:
    """Run the program with parsed flags; returns the exit code."""
    training = Training(_settings(values))
    try:
        result = training.run()
    except WorkerLost as lost:
        from cascade_keras.strategies import start_again

        start_again(lost, training.settings.worker_timeout)
    if result.was_finished:
        print(f"{result.path} is finished; use another --name to train again")
    elif result.stopped_by:
        print(
            f"stopped at step {result.step} of {training.settings.steps}; the same command goes on "
            "from there"
        )
        return 128 + result.stopped_by
    else:
        print_results(result, training.preset.name)
    return 0


def _settings(values: flags.FlagValues) -> TrainingSettings:
    recipe = read(values, RecipeSettings).recipe
    if recipe is None:
        return read(values, TrainingSettings)
    return TrainingSettings.from_recipe(recipe, **given(values, TrainingSettings))


def print_results(result: TrainingResult, dataset: str) -> None:
    """Print the final accuracies as a table, and where the network is saved."""
    rows = [
        [
            str(Attack(found["attack"], (found["epsilon"],), found.get("options", {}))),
            f"{found['epsilon']:g}",
            f"{found['accuracy']:.1f}",
            str(found["examples"]),
        ]
        for found in result.results
    ]
    for line in of_looks(result.told):
        print(line)
    print(f"{result.path}: {dataset} test images, white box, epsilon in 0..255")
    print_table(("attack", "epsilon", "accuracy %", "images"), rows)
    if result.saved:
        print(f"saved as {result.saved}")


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point of ``bin/train`` and ``cascade-train``."""
    values = define(TrainingSettings, define(RecipeSettings))
    return run_program("train", __doc__, values, train, argv)
