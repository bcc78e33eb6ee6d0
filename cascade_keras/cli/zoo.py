"""Make a preset of the model zoo from a finished run and its reports, or show what the zoo has.

    zoo                                                        the leaderboard of the presets
    zoo --run=runs/a --report=reports/a --name=digits-mine     into the package itself
    zoo --run=runs/a --report=reports/a,reports/a-autoattack --output=my_zoo
    zoo --leaderboard=docs/zoo.md

A preset is a folder of config.json, model.weights.h5, metadata.json, robustness.json and a model
card, README.md. One of the package is zoo:NAME in every program, and ck.load("NAME") in Python; one
elsewhere is named by its folder.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence

from absl import flags

from cascade_keras.cli.common import run_program
from cascade_keras.cli.flags import define, read
from cascade_keras.files import check_replaceable, expand
from cascade_keras.zoo.settings import ZooSettings


def zoo(values: flags.FlagValues) -> None:
    """Run the program with parsed flags."""
    from cascade_keras.zoo import leaderboard
    from cascade_keras.zoo.making import make

    settings = read(values, ZooSettings)
    page = None if settings.leaderboard is None else expand(settings.leaderboard)
    if page is not None:
        check_replaceable(page, "leaderboard")
    if settings.run is not None:
        made = make(settings)
        print(f"{made.folder}: {'made' if made.new else 'brought up to date'}")
    if page is not None:
        leaderboard.write_page(page)
        print(f"{page}: the leaderboard")
    elif settings.run is None:
        leaderboard.show(leaderboard.entries())


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point of ``bin/zoo`` and ``cascade-zoo``."""
    return run_program("zoo", __doc__, define(ZooSettings), zoo, argv)


if __name__ == "__main__":
    sys.exit(main())
