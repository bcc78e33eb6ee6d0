"""Make runs of bin/train of what run_training.py has trained.

    python benchmarks/xla/restore.py --runs=FILE --data_dir=DATA --trained=FOLDER --note=TEXT

FILE is what lower_training.py was given, FOLDER the output of run_training.py. Each network is
evaluated as at the end of bin/train and kept where that would have kept it; trained_by.json beside
it has the note. A run that is under way there goes on here, by TensorFlow, to its end. Runs
that are finished here, or have not begun there, are left out. Sources have to be finished here
before the runs that they are sources of: FILE has them above. Banks that a run was trained with
there are recorded as bin/train does; only a run that goes on here has them crafted again. With
``--use_ema`` the finished network is the average, with batch-norm statistics that are estimated
here. Held-out images are looked at from here on, which a run that was trained to its end is not.
"""

from __future__ import annotations

import argparse
import json
import pathlib
import re
import sys
from collections.abc import Sequence

import numpy as np
import tensorflow as tf
from lower_training import bank_examples, numbered, read_runs

from cascade_keras import cascade
from cascade_keras.attacks.arguments import PIXEL_LEVELS
from cascade_keras.bank import BankPartners
from cascade_keras.data import Dataset, as_network_input
from cascade_keras.errors import InputError
from cascade_keras.runs.run import Run
from cascade_keras.runs.settings import TrainingSettings, cascade_images
from cascade_keras.runs.supply import Supply
from cascade_keras.runs.training_run import Training
from cascade_keras.sources import Source

KINDS = ("_momentum", "_average")  # of what the optimizer keeps of each weight


class Elsewhere(Run):
    """The directory of a run that was trained elsewhere, at first or to its end.

    Args:
        path: the directory.
        file: of ``run_training.py``.
    """

    def __init__(self, path: pathlib.Path, file: pathlib.Path):
        super().__init__(path)
        self.file = file
        with np.load(file) as kept:
            self.steps = int(kept["steps"])
        self.looks_from = self.steps + 1  # nothing has looked at held-out images there

    def restore(self, trainer) -> int:
        """Take over all that is trained, unless there is a checkpoint; return the step."""
        if self.has_checkpoints:
            return super().restore(trainer)
        with np.load(self.file) as kept:
            for name, variable in numbered(trainer.network.variables).items():
                variable.assign(kept[f"network/{name}"])
            # Each weight's, in the same order: the rate is a variable in one of the two only.
            for kind in KINDS:
                slots = [v for v in trainer.optimizer.variables if v.path.endswith(kind)]
                names = [name for name in kept.files if name.endswith(kind)]
                for slot, name in zip(slots, sorted(names, key=number_of), strict=True):
                    slot.assign(kept[name])
            trainer.optimizer.iterations.assign(kept["steps"])
            trainer.steps.assign(kept["steps"])
        return int(trainer.steps)


def number_of(name: str) -> int:
    """Return the place that a name such as optimizer/003-momentum says."""
    return int(re.findall(r"/(\d+)", name)[-1])


class Banks(BankPartners):
    """Stands for banks with whose images a run was trained elsewhere.

    What statistics of averaged weights are estimated by needs some of them, and crafts these.

    Args:
        sources: of the run.
        settings: resolved.
        dataset: whose images are attacked.
        examples: how many images each bank has.
    """

    def __init__(
        self, sources: Sequence[Source], settings: TrainingSettings, dataset: Dataset, examples: int
    ):
        self.sources, self.dataset, self.crop = sources, dataset, settings.crop
        k = settings.adversarial_batch_size
        self.record = {"examples": examples}
        super().__init__(
            [self] * len(sources),
            range(k - cascade_images(settings), k),
            seed=settings.seed,
            max_epsilon=settings.max_epsilon,
            sampling=settings.epsilon_sampling,
        )
        self._craft = tf.function(self._crafted, reduce_retracing=True)

    def _read(self, source: np.ndarray, epsilon: np.ndarray, indices: np.ndarray) -> np.ndarray:
        images, labels = (np.asarray(part[indices]) for part in self.dataset.train)
        given = as_network_input(images, self.crop), labels.astype(np.int32), source, epsilon
        return self._craft(*map(tf.constant, given)).numpy()

    def _crafted(self, *given) -> tf.Tensor:
        made = cascade.craft([source.logits for source in self.sources], *given)
        return tf.cast(tf.round(made * PIXEL_LEVELS), tf.uint8)


class TrainedElsewhere(Training):
    """A training whose directory is ``Elsewhere``."""

    def _prepared(self, workers, cascade, dataset, before):
        """Return the cascade images; of a run that is trained to its end, what to record of them.

        Crafting a bank here takes longer than the training there.
        """
        if before or self.directory.steps < self.settings.steps:
            return super()._prepared(workers, cascade, dataset, before)
        examples = bank_examples(self.settings, len(dataset.train[1]))
        banks = Banks(cascade, self.settings, dataset, examples)
        return Supply(tuple(cascade), banks, (examples,) * len(cascade))


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--runs", required=True)
    parser.add_argument("--data_dir", required=True)
    parser.add_argument("--trained", required=True, type=pathlib.Path)
    parser.add_argument("--note", default="", help="such as the device and its precision")
    options = parser.parse_args()
    try:
        for training in read_runs(options.runs, options.data_dir, TrainedElsewhere):
            name = training.settings.name
            files = [options.trained / f"{name}{kind}.npz" for kind in ("", ".state")]
            file = next((file for file in files if file.exists()), None)
            if file is None or training.directory.finished:
                continue
            training.directory = Elsewhere(training.directory.path, file)
            result = training.run()
            note = {"steps": training.directory.steps, "of": result.step, "by": options.note}
            (result.path / "trained_by.json").write_text(json.dumps(note, indent=1) + "\n")
            for found in result.results:
                print(f"{name}: {found['attack']} {found['accuracy']:.2f} %", flush=True)
    except InputError as error:
        sys.exit(f"restore: {error.setting or ''} {error.message}")


if __name__ == "__main__":
    main()
