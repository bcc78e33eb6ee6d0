"""Measure the robustness of saved networks: white box, or black box from other networks' images.

    evaluate --target=saved/a,saved/b                                 white box, and a diagnosis
    evaluate --target=saved/a,saved/b --source=saved/c,saved/d --attack=step_fgsm,iter_fgsm \\
             --epsilon=2,4,8,16 --num_images=10000 --output=reports/matrix
    evaluate --target=saved/a --attack=iter_fgsm,pgd,cw_linf

A network is a saved network, a run, a .keras file or anybody's SavedModel from images in [0, 1] to
logits. The report is kept in reports/NAME: report.json, report.md, report.csv and pictures. It can
be stopped at any moment; the same command goes on where it was. Epsilons are in 0..255 units.
"""

from __future__ import annotations

from collections.abc import Sequence

from absl import flags

from cascade_keras.cli.common import run_program
from cascade_keras.cli.flags import define, read
from cascade_keras.evaluation.settings import EvaluationSettings
from cascade_keras.progress import show_progress
from cascade_keras.startup import import_tensorflow


def build_flags() -> flags.FlagValues:
    """Return the program's flags: its settings' fields."""
    return define(EvaluationSettings)


def evaluate(values: flags.FlagValues) -> None:
    """Run the program with parsed flags."""
    settings = read(values, EvaluationSettings)
    preset = settings.row()  # once: it may take a look at all files of a folder
    settings = settings.resolved(dataset=preset)
    from cascade_keras.evaluation.report import check_places

    check_places(settings)  # before TensorFlow, which takes seconds, is imported
    import_tensorflow()
    import rich.console

    from cascade_keras.evaluation import Evaluation, tables

    evaluation = Evaluation(settings, preset=preset)
    for note in evaluation.notes:  # before hours are spent
        print(f"note: {note}", flush=True)
    with show_progress("evaluating, gradients", evaluation.work) as progress:
        content = evaluation.run(progress)
    console = rich.console.Console(highlight=False)
    tables.print_report(content, console, evaluation.report.path)
    seconds = evaluation.seconds
    print(f"crafting took {seconds.crafting:.0f} s, classifying {seconds.classifying:.0f} s")


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point of ``bin/evaluate`` and ``cascade-evaluate``."""
    return run_program("evaluate", __doc__, build_flags(), evaluate, argv)
