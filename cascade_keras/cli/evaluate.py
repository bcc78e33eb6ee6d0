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

import contextlib
import pathlib
from collections.abc import Iterable, Sequence

from absl import flags

from cascade_keras.cli.cascade import named_twice, recorded_dataset
from cascade_keras.cli.common import check, run_program
from cascade_keras.cli.train_flags import are_epsilons
from cascade_keras.data.specs import DATASETS
from cascade_keras.errors import InputError
from cascade_keras.progress import show_progress
from cascade_keras.startup import import_tensorflow

STEP_ATTACKS = ("step_ll", "step_fgsm", "step_both", "step_rand")
ITERATIVE_ATTACKS = ("iter_ll", "iter_fgsm", "iter_margin", "pgd")
ATTACKS = (*STEP_ATTACKS, *ITERATIVE_ATTACKS, "autoattack", "cw_linf")
# What the diagnosis looks at beside the attacks that were asked for.
DIAGNOSIS = ("step_rand", "step_fgsm", "iter_fgsm", "iter_margin", "pgd")
LARGEST_EPSILON = 255.0
_NAME_WIDTH = 9  # characters of a target's name beside each other


def build_flags() -> flags.FlagValues:
    """Return the program's flags with their validators."""
    values = flags.FlagValues()
    _define_what(values)
    _define_attacks(values)
    _define_output(values)
    return values


def _define_what(values: flags.FlagValues) -> None:
    on = {"flag_values": values}
    flags.DEFINE_list("target", None, "Networks that classify.", required=True, **on)
    flags.DEFINE_list(
        "source",
        [],
        "Networks whose adversarial images are shown to every target (black box); default: each "
        "target is its own source (white box).",
        **on,
    )
    flags.DEFINE_enum(
        "dataset",
        None,
        list(DATASETS),
        "Whose images; default: what the first target learned.",
        **on,
    )
    flags.DEFINE_string("data_dir", None, "TensorFlow Datasets' directory.", **on)
    flags.DEFINE_enum("split", "test", ["test", "train"], "Of the dataset.", **on)
    flags.DEFINE_integer(
        "num_images", 1000, "First images of the split, at most as many as it has.", **on
    )
    flags.DEFINE_float(
        "inference_noise", 0.0, "Add random signs of so many pixel values before a network.", **on
    )
    flags.DEFINE_integer("seed", 0, "Of step_rand, pgd, autoattack and --inference_noise.", **on)
    flags.DEFINE_integer("batch_size", 250, "Images at a time.", **on)
    check(values, "target", bool, "at least one network")
    check(values, "num_images", lambda v: v > 0, "above 0")
    check(values, "batch_size", lambda v: v > 0, "above 0")
    check(values, "inference_noise", lambda v: 0 <= v <= LARGEST_EPSILON, "in 0..255")
    check(values, "seed", lambda v: 0 <= v < 2**31, "in 0..2147483647")


def _define_attacks(values: flags.FlagValues) -> None:
    on = {"flag_values": values}
    flags.DEFINE_list(
        "attack",
        ["step_ll", "step_fgsm", "iter_fgsm", "pgd"],
        f"Some of {', '.join(ATTACKS)}.",
        **on,
    )
    flags.DEFINE_list("epsilon", None, "One or several; default: the dataset's largest.", **on)
    flags.DEFINE_integer("pgd_steps", 40, "Of each start.", **on)
    flags.DEFINE_float("pgd_step_size", None, "Default: 2.5 epsilon / steps.", **on)
    flags.DEFINE_integer("pgd_restarts", 5, "Random starts; the worst counts.", **on)
    flags.DEFINE_enum(
        "pgd_loss", "margin", ["cross_entropy", "margin", "dlr"], "What is ascended.", **on
    )
    flags.DEFINE_enum(
        "cw_search",
        "descent",
        ["descent", "grid"],
        "descent: down from the best so far; grid: the published one, hours.",
        **on,
    )
    flags.DEFINE_integer("cw_images", 100, "As many of each class as can be.", **on)
    flags.DEFINE_list(
        "cw_threshold", None, "Epsilons that are counted above; default: --epsilon.", **on
    )
    flags.DEFINE_integer("cw_iterations", 2000, "At most, for each constant and tau.", **on)
    flags.DEFINE_integer("autoattack_iterations", 100, "Of each gradient attack in it.", **on)
    flags.DEFINE_integer("autoattack_queries", 5000, "Of the square attack in it.", **on)
    flags.DEFINE_integer(
        "diagnosis_images", 200, "Of the search for masked gradients; 0: none.", **on
    )
    check(
        values,
        "attack",
        lambda v: v and set(v) <= set(ATTACKS) and len(set(v)) == len(v),
        f"among {', '.join(ATTACKS)}, each once",
    )
    for name in ("epsilon", "cw_threshold"):
        check(values, name, are_epsilons, "numbers in 0..255 such as 2,4,8")
    positive = ("pgd_steps", "pgd_restarts", "pgd_step_size", "cw_images", "cw_iterations",
                "autoattack_iterations", "autoattack_queries")  # fmt: skip
    for name in positive:
        check(values, name, lambda v: v > 0, "above 0")
    check(values, "diagnosis_images", lambda v: v >= 0, "0 or above")


def _define_output(values: flags.FlagValues) -> None:
    on = {"flag_values": values}
    flags.DEFINE_string(
        "output", None, "Directory; default: reports/NAME of the first target.", **on
    )
    flags.DEFINE_string(
        "images_dir", None, "Keep adversarial images here, and take those that are there.", **on
    )
    flags.DEFINE_bool("confusion", False, "Write confusion matrices.", **on)
    flags.DEFINE_integer("examples", 0, "Draw so many misclassified images an attack.", **on)
    check(values, "examples", lambda v: v >= 0, "0 or above")


def resolve(values: flags.FlagValues) -> dict:
    """Return every flag's value with defaults filled in, checked together.

    Raises:
        InputError: flags that do not go together, or a network that is not there.
    """
    chosen = {name: values[name].value for name in values if name != "flagfile"}
    for flag in ("target", "source"):
        twice = named_twice(chosen[flag])
        if twice:
            raise InputError(f"--{flag}: {twice} is named twice; name each network once")
    networks = [(flag, path) for flag in ("target", "source") for path in chosen[flag]]
    recorded = recorded_dataset(networks)
    chosen["dataset"] = chosen["dataset"] or recorded
    if chosen["dataset"] not in DATASETS:
        raise InputError(
            f"--dataset: {chosen['target'][0]} does not record what it learned; "
            f"name one of {', '.join(DATASETS)}"
        )
    preset = DATASETS[chosen["dataset"]]
    chosen["epsilon"] = _numbers(chosen["epsilon"] or [preset.max_epsilon])
    chosen["cw_threshold"] = _numbers(chosen["cw_threshold"] or chosen["epsilon"])
    if chosen["output"] is None:
        name = pathlib.Path(chosen["target"][0]).expanduser().resolve().name
        chosen["output"] = f"reports/{name}"
    return chosen


def _numbers(texts: Sequence) -> list[float]:
    return sorted({float(text) for text in texts})


def evaluate(values: flags.FlagValues) -> None:
    """Run the program with parsed flags."""
    from cascade_keras.evaluation.report import Report

    chosen = resolve(values)
    report = Report(chosen["output"])
    report.check()
    import_tensorflow()
    from cascade_keras.cli.evaluation import Evaluation

    with contextlib.closing(report):
        evaluation = Evaluation(chosen, report)
        with show_progress("evaluating, gradients", evaluation.work) as progress:
            evaluation.run(progress)
        content = evaluation.write()
    print_report(content, report)


def print_report(content: dict, report) -> None:
    """Print the tables of a report."""
    import rich.console
    import rich.table

    from cascade_keras.evaluation.summary import grid

    console = rich.console.Console(highlight=False)
    headings, rows = grid(content)
    kind = "black box" if content["sources"] else "white box"
    console.print(
        f"{report.path}: accuracy in % of {content['examples']:,} {content['dataset']} "
        f"{content['split']} images, {kind}, epsilon in 0..255",
        markup=False,
    )
    numbers = headings.index("epsilon")
    widths = _column_widths(headings, rows, numbers)
    for targets in _column_groups(widths, numbers + 1, console.width):
        table = rich.table.Table()
        shown = [*range(numbers + 1), *targets]
        for place in shown:
            # Only the targets' names may be folded where a terminal is narrow.
            table.add_column(
                rich.text.Text(headings[place]),
                justify="left" if place < numbers else "right",
                overflow="fold",
                no_wrap=place <= numbers,
                min_width=widths[place],
            )
        for row in rows:
            cells = [row[place] for place in shown]
            table.add_row(
                *(rich.text.Text(c, "bold red" if c.endswith("*") else "") for c in cells)
            )
        # Where not even one target fits, lines are broken by the terminal rather than cut.
        console.print(table, width=max(console.width, _table_width(widths[p] for p in shown)),
                      crop=False)  # fmt: skip
    if content["worst_case"]:
        console.print(
            "* the strongest attack on the target at this epsilon; all of them: the images that "
            "are classified correctly under every one"
        )
    for record in content["cw_linf"]:
        above = ", ".join(f"{a['count']} above {a['epsilon']:g}" for a in record["above"])
        median = "none found" if record["median"] is None else f"median {record['median']:.1f}"
        line = (
            f"{record['target']}: minimal epsilon of {record['examples']} images: {above}; {median}"
        )
        console.print(line, markup=False)
    for sentence in (content["diagnosis"] or {}).get("sentences", []):
        console.print(sentence, markup=False)
    console.print(f"written to {report.path}", markup=False)


def _column_widths(
    headings: Sequence[str], rows: Sequence[Sequence[str]], numbers: int
) -> list[int]:
    """Return the least width of each column: a target's name is folded at ``_NAME_WIDTH``."""
    names = [
        len(heading) if place <= numbers else min(len(heading), _NAME_WIDTH)
        for place, heading in enumerate(headings)
    ]
    return [max(name, *(len(row[place]) for row in rows)) for place, name in enumerate(names)]


def _table_width(widths: Iterable[int]) -> int:
    """Return the width of a table: columns, two spaces each, the lines between and around."""
    return 1 + sum(width + 3 for width in widths)


def _column_groups(widths: Sequence[int], first: int, room: int) -> list[list[int]]:
    """Split the columns from ``first`` on into tables that fit, each with those before it too.

    Args:
        widths: of every column's text.
        first: the first target's column.
        room: width of the terminal.
    """
    groups: list[list[int]] = [[]]
    for place in range(first, len(widths)):
        shown = [*range(first), *groups[-1], place]
        if groups[-1] and _table_width(widths[p] for p in shown) > room:
            groups.append([])
        groups[-1].append(place)
    return groups


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point of ``bin/evaluate`` and ``cascade-evaluate``."""
    return run_program("evaluate", __doc__, build_flags(), evaluate, argv)
