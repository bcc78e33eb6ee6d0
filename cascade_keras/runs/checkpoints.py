"""Checkpoint files: whole, of this network, and of the step that their name says."""

from __future__ import annotations

import pathlib
import warnings
import zipfile


def load(trainer, path: pathlib.Path, step: int) -> None:
    """Load a checkpoint into a trainer, once the file is known to be intact.

    Args:
        trainer: a compiled ``AdversarialTrainer``, its optimizer built.
        step: that the file's name says; the trainer's clock stands there then.

    Raises:
        Exception: of any kind: it is damaged, another network's, or of another step. The trainer
            may have taken over a part of it.
    """
    check_archive(path)
    trainer.steps.assign(-1)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of each layer that a file lacks, before Keras gives up
        trainer.load_weights(path)
    clock = trainer.steps_done
    if clock == -1:
        clock = _clock_of_old(trainer, step)
    if clock != step:
        raise ValueError(f"it is of step {clock}")
    trainer.steps.assign(step)


def _clock_of_old(trainer, step: int) -> int:
    """Return the step of a checkpoint of version 0.1.0, which had no clock."""
    optimizer = getattr(trainer.optimizer, "inner_optimizer", trainer.optimizer)
    moves = int(optimizer.iterations)
    # In half precision an optimizer leaves out the steps whose gradient overflows.
    left_out = optimizer is not trainer.optimizer and moves < step
    return step if left_out else moves


def check_archive(path: pathlib.Path) -> None:
    """Raise an exception, of any kind, if a .keras file is not whole."""
    with zipfile.ZipFile(path) as archive:
        damaged = archive.testzip()
    if damaged:
        raise zipfile.BadZipFile(f"the checksum of {damaged} differs")
