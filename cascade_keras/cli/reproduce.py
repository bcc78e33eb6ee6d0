"""Reproduce the paper: its networks, tables and figures, ours beside the published numbers.

    reproduce --table=2 --dry_run            what it would take: networks, steps, gradients, hours
    reproduce --table=2 --seeds=0,1,2        MNIST; tables 1, 8, 9 are CIFAR-10, 3, 4, 10 deep
    reproduce --table=1,3,4 --depth=20 --scale=0.25        20 layers, a quarter of the schedule
    reproduce --all --dataset=digits         every network and table, no download

Networks are kept in reproduction/runs, their banks, reports and figures beside them, and each table
as reproduction/table2.md, .csv and .json. It can be stopped at any moment; the same command goes
on. A job that fails leaves the others as they are and is listed at the end, with exit code 1; the
same command tries it again. Runs that were trained elsewhere with the same settings are taken as
they are. On several machines workflow/Snakefile does the same plan, see docs/reproduce.md. Epsilons
are in 0..255 units.
"""

from __future__ import annotations

from collections.abc import Sequence

from absl import flags

from cascade_keras.cli.common import run_program
from cascade_keras.cli.flags import define, read
from cascade_keras.printed import print_table
from cascade_keras.reproduction.reproduction import Reproduced, Reproduction
from cascade_keras.reproduction.settings import ReproductionSettings
from cascade_keras.startup import import_tensorflow

FAILED = 1  # the exit code where jobs failed


def reproduce(values: flags.FlagValues) -> int:
    """Run the program with parsed flags; returns the exit code."""
    settings = read(values, ReproductionSettings)
    reproduction = Reproduction(settings)
    if settings.dry_run:
        return _dry_run(reproduction)
    found = reproduction.run()
    if found.stopped_by:
        print(f"stopped in {found.stopped_in}; the same command goes on from there")
        return 128 + found.stopped_by
    _say_what_is_not_there(found, settings.output)
    return FAILED if found.failed else 0


def _say_what_is_not_there(found: Reproduced, output: str) -> None:
    for each in found.diverged:
        print(f"{each.job} {each.words()}; --retry_diverged trains it once more")
    for each in found.failed:
        print(f"{each.job} {each.words()}\n  {' '.join(each.command)}")
        if each.log:
            print(f"  log: {output}/{each.log}")
    if found.left_out:
        print(f"not done without these: {', '.join(found.left_out)}")
    if found.failed:
        print(f"failed: {len(found.failed)} jobs; the same command tries them again")


def _dry_run(reproduction: Reproduction) -> int:
    reproduction.plan.left()  # before TensorFlow, which takes seconds, is imported
    import_tensorflow()
    from cascade_keras.reproduction.estimate import estimate

    found = estimate(reproduction.plan)
    print_table(*found.grid(), text_columns=2, fixed_columns=2)
    print("\n".join(found.sentences()))
    return 0


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point of ``bin/reproduce`` and ``cascade-reproduce``."""
    return run_program("reproduce", __doc__, define(ReproductionSettings), reproduce, argv)
