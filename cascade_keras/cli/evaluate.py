"""Measure the robustness of saved networks: white box, or black box from other networks' images.

    evaluate --target=saved/a,saved/b                                 white box, and a diagnosis
    evaluate --target=saved/a,saved/b --source=saved/c,saved/d --attack=step_fgsm,iter_fgsm \\
             --epsilon=2,4,8,16 --num_images=10000 --output=reports/matrix
    evaluate --target=saved/a --attack=iter_fgsm,pgd,cw_linf
    evaluate --target=saved/a --attack=autoattack --dry_run           what it would take
    evaluate --target=saved/a --attack=autoattack --worker=0/4        a share, beside 1/4, 2/4, 3/4
    evaluate --target=zoo:all --dataset=mnist --attack=pgd,autoattack      the zoo's leaderboard
    evaluate --verify=reports/matrix --verify_share=0.05              whether a report holds: 0 or 1

A network is a saved network, a run, a .keras file or anybody's SavedModel from images in [0, 1] to
logits. The report is kept in reports/NAME: report.json, report.md, report.csv and pictures. It can
be stopped at any moment; the same command goes on where it was. Epsilons are in 0..255 units.
"""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Sequence

from absl import flags

from cascade_keras import presets
from cascade_keras.cli.common import of_cluster, run_program
from cascade_keras.cli.flags import define, read
from cascade_keras.errors import InputError
from cascade_keras.evaluation.settings import EvaluationSettings
from cascade_keras.printed import print_table
from cascade_keras.progress import show_progress
from cascade_keras.startup import import_tensorflow


def build_flags() -> flags.FlagValues:
    """Return the program's flags: its settings' fields."""
    return define(EvaluationSettings)


def evaluate(values: flags.FlagValues) -> int:
    """Run the program with parsed flags."""
    settings = read(values, EvaluationSettings)
    if settings.verify is not None:
        return _verify(settings)
    preset = settings.row()  # once: it may take a look at all files of a folder
    settings = of_cluster(settings).resolved(dataset=preset)
    from cascade_keras.evaluation.report import check_places

    check_places(settings)  # before TensorFlow, which takes seconds, is imported
    import_tensorflow()
    import rich.console

    from cascade_keras.evaluation import Evaluation, tables

    evaluation = Evaluation(settings, preset=preset)
    for note in evaluation.notes:  # before hours are spent
        print(f"note: {note}", flush=True)
    if settings.dry_run:
        found = evaluation.estimate()
        print_table(*found.grid(), text_columns=1, fixed_columns=1)
        print("\n".join(found.sentences()))
        return 0
    worker, path = evaluation.worker, evaluation.report.path
    what = "evaluating, gradients" + (f", worker {worker}" if worker else "")

    def say(sentence: str) -> None:
        print(f"{path}: worker {worker} {sentence}", file=sys.stderr, flush=True)

    with show_progress(what, lambda: evaluation.work) as progress:
        content = evaluation.run(progress, say)
    if content is None:
        print(f"{path}: worker {worker} has computed its batches; {evaluation.left}")
        return 0
    console = rich.console.Console(highlight=False)
    tables.print_report(content, console, path)
    if any(map(presets.is_named, settings.target)) and not content["sources"]:
        from cascade_keras.zoo import leaderboard

        entries = leaderboard.of_report(content)
        leaderboard.show(entries, console)
        leaderboard.write(entries, path)
    seconds = evaluation.seconds
    print(f"crafting took {seconds.crafting:.0f} s, classifying {seconds.classifying:.0f} s")
    return 0


# What says where the data of a report are, and that its code may be run; the rest is the report's.
_BESIDE_VERIFY = ("verify", "verify_share", "trust_source", "dataset", "data_dir", "cache_dir",
                  "import_")  # fmt: skip


def _verify(settings: EvaluationSettings) -> int:
    """Compute a share of a report again; 0 where it holds, else 1."""
    usual = EvaluationSettings()
    for field in dataclasses.fields(settings):
        value = getattr(settings, field.name)
        if field.name not in _BESIDE_VERIFY and value != getattr(usual, field.name):
            raise InputError("is the report's own; leave it out beside --verify", field.name)
    from cascade_keras.evaluation.report import Report

    Report(settings.verify).read()  # before TensorFlow, which takes seconds, is imported
    import_tensorflow()
    from cascade_keras.evaluation.verify import verify

    beside = {name: getattr(settings, name) for name in _BESIDE_VERIFY[2:]}
    if beside["dataset"] is None:  # the report's
        del beside["dataset"]
    with show_progress("verifying, per cent", 100) as show:
        found = verify(settings.verify, settings.verify_share, progress=show, **beside)
    print(found)
    return 0 if found.holds else 1


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point of ``bin/evaluate`` and ``cascade-evaluate``."""
    return run_program("evaluate", __doc__, build_flags(), evaluate, argv)
