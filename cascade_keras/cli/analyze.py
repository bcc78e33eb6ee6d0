"""Draw the figures of the paper, and two more, for networks of your own.

    analyze --figure=noise_correlation --model=saved/a,saved/b --output=figures
    analyze --figure=embedding_map --model=runs/standard_e2,runs/pivot_e2 --dataset=mnist
    analyze --figure=distance_sweep --model=runs/l1e-4,runs/l1e-3,runs/l1e-2
    analyze --figure=logits --model=saved/a --epsilons=-20..20

{figures}

embedding_map projects embeddings of more than 2 dimensions by their principal components; a network
that was trained by bin/train --model=resnet20_e2 --embedding_at=bottleneck, as the paper's, has 2.

A network is a saved network, a run or a .keras file. OUTPUT/NAME.png and .pdf are the picture, .txt
its caption, .npz the arrays: the same command draws them again without computing them. Epsilons are
in 0..255 units.
"""

from __future__ import annotations

from collections.abc import Sequence

from absl import flags

from cascade_keras.cli.common import run_program
from cascade_keras.cli.flags import define, read
from cascade_keras.figures import FIGURES, FigureSettings
from cascade_keras.progress import show_progress
from cascade_keras.startup import import_tensorflow


def analyze(values: flags.FlagValues) -> None:
    """Run the program with parsed flags."""
    from cascade_keras.figures import Figure

    figure = Figure(read(values, FigureSettings))
    import_tensorflow()
    with show_progress(f"{figure.spec.name}, images", figure.work) as progress:
        path = figure.draw(progress)
    how = "computed" if figure.computed else "drawn again from its arrays"
    print(f"{path}: {how}; also .pdf, .txt, .npz")


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point of ``bin/analyze`` and ``cascade-analyze``."""
    width = max(map(len, FIGURES))
    rows = [f"    {spec.name:{width}}  {spec.summary}" for spec in FIGURES.values()]
    description = __doc__.format(figures="\n".join(rows))
    return run_program("analyze", description, define(FigureSettings), analyze, argv)
