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

import os
from collections.abc import Mapping, Sequence

from absl import flags

from cascade_keras.cli.common import run_program
from cascade_keras.cli.flags import define, read
from cascade_keras.cli.tables import print_table
from cascade_keras.evaluation.settings import EvaluationSettings
from cascade_keras.progress import show_progress
from cascade_keras.startup import import_tensorflow


def build_flags() -> flags.FlagValues:
    """Return the program's flags: its settings' fields."""
    return define(EvaluationSettings)


def evaluate(values: flags.FlagValues) -> None:
    """Run the program with parsed flags."""
    settings = read(values, EvaluationSettings).resolved()
    from cascade_keras.evaluation.report import check_places

    check_places(settings)  # before TensorFlow, which takes seconds, is imported
    import_tensorflow()
    from cascade_keras.evaluation import Evaluation

    evaluation = Evaluation(settings)
    for note in evaluation.notes:  # before hours are spent
        print(f"note: {note}", flush=True)
    with show_progress("evaluating, gradients", evaluation.work) as progress:
        content = evaluation.run(progress)
    print_report(content, evaluation.report.path)
    seconds = evaluation.seconds
    print(f"crafting took {seconds.crafting:.0f} s, classifying {seconds.classifying:.0f} s")


def print_report(content: Mapping, path: str | os.PathLike) -> None:
    """Print the tables of a report, from what report.json holds."""
    import rich.console

    from cascade_keras.evaluation.tables import grid, options_used

    console = rich.console.Console(highlight=False)

    def say(text: str) -> None:
        console.print(text, markup=False)

    for sentence in content.get("warnings", ()):
        say(sentence)
    kind = "black box" if content["sources"] else "white box"
    say(
        f"{path}: accuracy in % of {content['examples']:,} {content['dataset']} "
        f"{content['split']} images, {kind}, epsilon in 0..255"
    )
    headings, rows = grid(content)
    numbers = headings.index("epsilon")
    print_table(headings, rows, text_columns=numbers, fixed_columns=numbers + 1, console=console)
    if content["worst_case"]:
        say(
            "* the strongest attack on the target at this epsilon; all of them: the images that "
            "are classified correctly under every one"
        )
    if options := options_used(content["results"]):
        say(options)
    for record in content["cw_linf"]:
        above = ", ".join(f"{a['count']} above {a['epsilon']:g}" for a in record["above"])
        median = "none found" if record["median"] is None else f"median {record['median']:.1f}"
        say(
            f"{record['target']}: minimal epsilon of {record['examples']} images: {above}; {median}"
        )
    for sentence in (content["diagnosis"] or {}).get("sentences", []):
        say(sentence)
    say(f"written to {path}")


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point of ``bin/evaluate`` and ``cascade-evaluate``."""
    return run_program("evaluate", __doc__, build_flags(), evaluate, argv)
