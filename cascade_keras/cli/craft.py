"""Craft adversarial images of a whole split by a saved network, and keep them as a bank.

    craft --source=saved/r20p                                 the bank of a cascade training
    craft --source=saved/r20p --split=test --attack=step_ll --epsilons=2,4,8,16
    craft --source=saved/r20p --worker=0/4                    a quarter of it, beside 1/4, 2/4, 3/4

The source is a saved network, a run or a .keras file. A bank is a directory of images.npy, uint8
(epsilons, N, H, W, C), labels.npy and bank.json. Crafting can be stopped at any moment; the same
command goes on after the last complete shard. Epsilons are in 0..255 units.
"""

from __future__ import annotations

from collections.abc import Sequence

from absl import flags

from cascade_keras.cli.common import of_cluster, run_program
from cascade_keras.cli.flags import define, read
from cascade_keras.crafting import Crafting, CraftSettings
from cascade_keras.progress import show_progress
from cascade_keras.startup import import_tensorflow


def craft(values: flags.FlagValues) -> None:
    """Run the program with parsed flags."""
    crafting = Crafting(of_cluster(read(values, CraftSettings)))
    import_tensorflow()
    from cascade_keras.bank import as_range

    path, worker = crafting.bank.path, crafting.worker
    what = f"crafting {path}" + (f", worker {worker}" if worker else "")
    with show_progress(what, crafting.share) as progress:
        bank = crafting.run(progress)
    if worker and not bank.complete:
        print(f"{path}: worker {worker} has crafted its shards; {bank.left(worker)}")
        return
    record = bank.record
    print(
        f"{path}: {record['attack']} images of {record['examples']} {record['dataset']} "
        f"{record['split']} images by {record['source']}, epsilon {as_range(record['epsilons'])}, "
        f"{bank.images.nbytes / 1e6:,.1f} MB"
    )


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point of ``bin/craft`` and ``cascade-craft``."""
    return run_program("craft", __doc__, define(CraftSettings), craft, argv)
