"""Fills in the tables of README.md and docs/ from JSON: `make tables`.

    python docs/make_tables.py            write every table again
    python docs/make_tables.py --check    say which pages differ from their JSON; change nothing

A page says where a table is to be by two marks, each alone on its line, which no reader sees:

    <!-- table: mnist 2000-steps -->
    <!-- end of table -->

What is between them is the table `2000-steps` of docs/results/tables/mnist.json:

    {"source": "what made the numbers",
     "tables": {"2000-steps": {"columns": ["run", "clean", {"title": "loss", "format": ".2f"}],
                               "rows": [["mnist-standard", 99.6, 0.31], ...]}}}

or, of the files that a benchmark writes to docs/results, what a function of COMPUTED makes of it.

A column is its title, or has with it `format`, how Python is to write its floats (".1f" where
nothing is said), `as`, the text around a number such as "{} %", and `join`, what stands between the
numbers of a list (" / "). A cell is a number, a text, a list of numbers, null for nothing, or
{"value": 15.3, "as": "**{}**"}. A table with "terminal": true is shown as programs print it.
"""

from __future__ import annotations

import argparse
import json
import pathlib
import re
import sys
from collections.abc import Callable, Iterator

ROOT = pathlib.Path(__file__).resolve().parent.parent
RESULTS = ROOT / "docs" / "results"
MARKED = re.compile(
    r"^(?P<mark><!-- table: (?P<file>\S+) (?P<names>\S.*?) -->)\n"
    r"(?P<table>.*?)"
    r"^(?P<end><!-- end of table -->)$",
    re.DOTALL | re.MULTILINE,
)


def pages() -> Iterator[pathlib.Path]:
    """Yield the files that may have tables."""
    yield ROOT / "README.md"
    yield from sorted((ROOT / "docs").rglob("*.md"))


def filled(text: str) -> str:
    """Return a page with every marked table as its JSON says.

    Raises:
        LookupError: there is no such file or table.
        ValueError: a row has more or fewer cells than there are columns.
    """

    def write(found: re.Match) -> str:
        tables = [table_of(found["file"], name) for name in found["names"].split()]
        if all(table.get("terminal") for table in tables):
            shown = "```\n" + "\n\n".join(map(terminal, tables)) + "\n```"
        else:
            shown = "\n\n".join(map(markdown, tables))
        return f"{found['mark']}\n\n{shown}\n\n{found['end']}"

    return MARKED.sub(write, text)


def table_of(file: str, name: str) -> dict:
    """Return a table: its ``columns`` and ``rows``."""
    compute = COMPUTED.get((file, name))
    if compute is not None:
        return compute()
    try:
        return read(f"tables/{file}")["tables"][name]
    except (OSError, KeyError) as error:
        raise LookupError(f"there is no table {name} in docs/results/tables/{file}.json") from error


def read(file: str) -> dict:
    """Return what a JSON file of docs/results holds."""
    return json.loads((RESULTS / f"{file}.json").read_text("utf-8"))


def markdown(table: dict) -> str:
    """Return a table as Markdown: columns with numbers to the right."""
    titles, rows = texts(table)
    rules = [("---" if left else "---:") for left in left_columns(table)]
    lines = [f"| {' | '.join(titles)} |", f"|{'|'.join(rules)}|"]
    lines += [f"| {' | '.join(row)} |" for row in rows]
    return "\n".join(re.sub(r"(?<=\|)  (?=\|)", " ", line) for line in lines)


def terminal(table: dict) -> str:
    """Return a table as the programs print theirs."""
    titles, rows = texts(table)
    left = left_columns(table)
    widths = [max(map(len, column)) for column in zip(titles, *rows, strict=True)]

    def line(cells: list[str], bar: str) -> str:
        padded = [
            cell.ljust(width) if is_left else cell.rjust(width)
            for cell, width, is_left in zip(cells, widths, left, strict=True)
        ]
        return f"{bar} {f' {bar} '.join(padded)} {bar}"

    return "\n".join([line(titles, "┃"), *(line(row, "│") for row in rows)])


def texts(table: dict) -> tuple[list[str], list[list[str]]]:
    """Return a table's titles and the texts of its cells."""
    columns = [{"title": c} if isinstance(c, str) else c for c in table["columns"]]
    rows = []
    for row in table["rows"]:
        if len(row) != len(columns):
            raise ValueError(f"{len(row)} cells for {len(columns)} columns: {row}")
        rows.append([cell_text(cell, column) for cell, column in zip(row, columns, strict=True)])
    return [column["title"] for column in columns], rows


def left_columns(table: dict) -> list[bool]:
    """Return of each column whether it is the first, or has no numbers."""

    def counts(cell) -> bool:
        return cell[:1].isdigit() if isinstance(cell, str) else cell is not None

    columns = enumerate(zip(*table["rows"], strict=True))
    return [place == 0 or not any(map(counts, column)) for place, column in columns]


def cell_text(cell, column: dict) -> str:
    """Return what is written into a cell of a column."""
    if cell is None or isinstance(cell, str):
        return cell or ""
    around = column.get("as", "{}")
    if isinstance(cell, dict):
        around, cell = cell.get("as", around), cell["value"]
    items = cell if isinstance(cell, list) else [cell]
    written = [number(item, column.get("format", ".1f")) for item in items]
    return around.format(column.get("join", " / ").join(written))


def number(value: float | None, form: str) -> str:
    """Return a number as text; one of a list may be missing."""
    if value is None:
        return "-"
    return f"{value:,}" if isinstance(value, int) else format(value, form)


# The tables of README.md and docs/choosing.md that repeat some rows and columns of others.


def _row(file: str, name: str, first: str) -> dict:
    """Return the row that begins with a text, by the titles of its columns."""
    table = table_of(file, name)
    titles = [c if isinstance(c, str) else c["title"] for c in table["columns"]]
    (row,) = [row for row in table["rows"] if row[0] == first]
    return dict(zip(titles, row, strict=True))


def _headline_mnist() -> dict:
    shown = ["clean", "step_ll", "step_fgsm", "iter_ll", "iter_fgsm", "pgd", "CW"]
    standard = {
        "standard": "mnist-standard (2,000 steps, [gpu](gpu.md))",
        "kurakin": "mnist-kurakin",
        "pivot": "mnist-pivot",
    }
    rows = []
    for title, network in {
        "standard": "mnist-standard",
        "kurakin": "mnist-kurakin",
        "bidirectional": "mnist-bidirectional",
        "pivot": "mnist-pivot",
        "pivot, the full 8,000 steps": "mnist-pivot-8k (the full schedule)",
    }.items():
        white = _row("robustness", "mnist-white-box", network)
        if title in standard:
            auto = _row("robustness", "mnist-autoattack", standard[title])["**standard**"]
        else:
            art = _row("robustness", "mnist-autoattack-art", network.partition(" ")[0])
            auto = {"value": art["ART's AutoAttack"], "as": "{}*"}
        rows.append([title, *(white[name] for name in shown), auto])
    return {"columns": ["network", *shown, "AutoAttack"], "rows": rows}


def _headline_cascade() -> dict:
    def of(*runs: str) -> list:
        found = [_row("cascade", "cifar10", run) for run in runs]
        ll, iter_fgsm = "step_ll 2 / 4 / 16", "iter_fgsm 2 / 4 / 16"
        columns = [
            [row["clean"] for row in found],
            [row[ll][1] for row in found],
            *([row[iter_fgsm][place] for row in found] for place in range(3)),
        ]
        return [column if len(runs) > 1 else column[0] for column in columns]

    titles = ["clean", "step_ll 4", "iter_fgsm 2", "iter_fgsm 4", "iter_fgsm 16"]
    both = "cascade, {}, seed 0", "cascade, {}, seed 1"
    return {
        "columns": ["network", *({"title": title, "join": ", "} for title in titles)],
        "rows": [
            ["pivot, the source", *of("cifar-pivot-1000 (the source, seed 0)")],
            ["cascade from a bank", *of(*(run.format("bank") for run in both))],
            ["cascade online", *of(*(run.format("online") for run in both))],
        ],
    }


def _headline_cost() -> dict:
    """Return what a step takes on two cores and on a GPU, and what follows for a schedule."""
    cpu, cascade = read("train_step"), read("craft_bank")["online"]["online"]["steps"]
    gpu = {(step["precision"], step["kernels"]): step["median"] for step in read("gpu")["steps"]}
    together = "launched together"
    steps = {
        "two CPU cores, pivot": 1000 * cpu["steps"]["ours/step"]["seconds"]["median"],
        "two CPU cores, cascade from a bank": 1000 * cascade["pivot, bank"]["seconds"]["value"],
        "two CPU cores, cascade online": 1000 * cascade["pivot, online"]["seconds"]["value"],
        "one H100, pivot, float32": gpu["float32", together],
        "one H100, pivot, TF32": gpu["tf32", together],
    }
    hours = [milliseconds * 94_000 / 3_600_000 for milliseconds in steps.values()]
    return {
        "columns": ["where, and what", "ms a step", "94,000 steps"],
        "rows": [
            [
                name,
                milliseconds,
                {"value": hour, "as": "{} h"} if hour > 1 else {"value": 60 * hour, "as": "{} min"},
            ]
            for (name, milliseconds), hour in zip(steps.items(), hours, strict=True)
        ],
    }


def _standard_errors() -> dict:
    """Return the standard error of a share of n images, in per cent."""
    shares = (50, 90, 99)
    return {
        "columns": ["n", *(f"at {share} %" for share in shares)],
        "rows": [
            [n, *((share * (100 - share) / n) ** 0.5 for share in shares)]
            for n in (100, 360, 1000, 2000, 10_000)
        ],
    }


# What benchmarks write.


def _range(of: dict, least: str, most: str, decimals: int = 2) -> str:
    return f"{of[least]:.{decimals}f} - {of[most]:.{decimals}f}"


def _relative(ratio: dict) -> str:
    """Return a ratio with its range, which the contender that all are compared with has not."""
    if ratio["min"] == ratio["max"] == 1:
        return "1"
    return f"{ratio['value']:.2f} ({_range(ratio, 'min', 'max')})"


def _autoattack_speed() -> dict:
    found = read("autoattack")
    contenders = {
        "ours": "ours, standard",
        "torchattacks": "torchattacks, standard",
        "art": "ART as it comes: auto-PGD on two objectives and square",
        "ours_as_art": "ours, these three",
    }
    ours = found["seconds"]["ours"][0]
    rows = []
    for name, title in contenders.items():
        seconds = found["seconds"][name][0]
        times = 1 if name == "ours" else seconds / ours
        rows.append([title, round(seconds), times, found["withstand"][name]])
    return {
        "columns": ["", "seconds", {"title": "times ours", "format": ".2f"}, "withstand, %"],
        "rows": rows,
    }


def _autoattack_stages() -> dict:
    return {
        "columns": ["stage", "images", "broken", "gradients an image", "forward passes an image",
                    "seconds", {"title": "in the network's own passes", "as": "{} %"}],
        "rows": [
            [
                stage["stage"],
                stage["images"],
                stage["broken"],
                round(stage["gradients"] / stage["images"]),
                round(stage["forwards"] / stage["images"]),
                stage["seconds"],
                round(100 * stage["share"]),
            ]
            for stage in read("autoattack")["stages"]
        ],
    }  # fmt: skip


PRECISIONS = {"tf32": "TF32"}
KERNELS = {
    "one launch a kernel": "one launch each",
    "the whole loop one launch": "the whole loop in one launch",
}


def _gpu_speed() -> dict:
    return {
        "columns": [
            "precision",
            "kernels",
            {"title": "ms", "format": ".2f"},
            {"title": "94,000 steps", "as": "{} min"},
            {"title": "compiling", "as": "{} s"},
        ],
        "rows": [
            [
                PRECISIONS.get(step["precision"], step["precision"]),
                KERNELS.get(step["kernels"], step["kernels"]),
                step["median"],
                step["seconds_of_94000_steps"] / 60,
                round(step["compile_seconds"]),
            ]
            for step in read("gpu")["steps"]
        ],
    }  # fmt: skip


def _gpu_networks() -> dict:
    names = ["name", "loss", "steps", "seed", "precision", "clean_accuracy"]
    rows = [[network[name] for name in names] for network in read("gpu")["networks"]]
    for row in rows:
        row[4] = PRECISIONS.get(row[4], row[4])
    return {
        "columns": ["run", "loss", "steps", "seed", "precision",
                    {"title": "clean %", "format": ".2f"}],
        "rows": rows,
    }  # fmt: skip


def _crafting() -> dict:
    contenders = {
        "ours, ladder": "ours, ladder",
        "ours, each alone": "ours, each epsilon alone",
        "foolbox, eager network": "foolbox, Keras network as it is",
        "foolbox, compiled network": "foolbox, network compiled",
        "foolbox, constant weights": "foolbox, compiled with constant weights",
        "ART, eager network": "ART, Keras network as it is",
        "ART, compiled network": "ART, network compiled",
        "ART, constant weights": "ART, compiled with constant weights",
    }
    found = read("craft_bank")["crafting"]["craft"]["contenders"]
    rows = []
    for name, title in contenders.items():
        one = found[name]
        milliseconds = 1000 / one["images_per_second"] / one["gradients"]
        equal = {"value": 100 * one["agreement"]["images"], "as": "{} %"}
        if name == "ours, ladder":
            ratio, equal["value"] = "1", 100
        elif name == "ours, each alone":
            ratio, equal = _relative(one["ratio"]), None
        else:
            ratio = f"{one['ratio']['value']:.1f} ({_range(one['ratio'], 'min', 'max', 1)})"
        rows.append([title, one["gradients"], one["images_per_second"], milliseconds, ratio, equal])
    return {
        "columns": [
            "",
            "gradients an image",
            "images/s",
            {"title": "ms a gradient", "format": ".2f"},
            "time, ladder = 1",
            "equal images",
        ],
        "rows": rows,
    }  # fmt: skip


def _forms() -> dict:
    titles = {
        "Keras network, folded": "Keras network, batch norm folded in inference mode",
        "SavedModel, serve": "the exported SavedModel",
        "constant weights": "the same with constant weights",
        "folded, compiled for this batch size": "compiled for this batch size",
        "not folded: convolution, fused batch norm": "not folded: convolution, fused batch norm",
        "not folded: keras Conv2D, BatchNormalization":
            "not folded: Keras Conv2D, BatchNormalization",
    }  # fmt: skip
    found = read("craft_bank")["limits"]["limits"]["forms"]
    return {
        "columns": ["form of the network", "ms", "relative"],
        "rows": [
            [title, 1000 * found[name]["seconds"]["value"], _relative(found[name]["ratio"])]
            for name, title in titles.items()
        ],
    }


def _cascade_step() -> dict:
    found = read("craft_bank")["online"]["online"]
    steps = {
        "pivot": "pivot step, no cascade",
        "pivot, bank": "cascade from a bank",
        "pivot, online": "cascade online",
    }
    rows = []
    for name, title in steps.items():
        step = found["steps"][name]
        milliseconds = round(1000 * step["seconds"]["value"])
        rows.append([title, milliseconds, _relative(step["ratio"])])
    reading = {
        "batch without a bank": "reading a batch without a bank",
        "batch with a bank": "reading a batch with its bank images, in the page cache",
        "bank alone, from the disk": "reading the bank images alone, from the disk",
    }
    for name, title in reading.items():
        seconds = found["reading"][name]["seconds"]["value"]
        share = 100 * seconds / found["steps"]["pivot"]["seconds"]["value"]
        of_a_step = " of a step" if name == "batch without a bank" else ""
        rows.append([title, 1000 * seconds, f"{share:.1f} %{of_a_step}"])
    return {"columns": ["", "ms", "relative"], "rows": rows}


# The two machines on which training steps were measured, by the file of docs/results.
STEP_ON = {"train_step": "Xeon", "train_step_epyc": "EPYC"}


def _train_step() -> dict:
    contenders = {
        "ours/step": "cascade_keras",
        "pytorch/channels first": "PyTorch eager, channels first (its default)",
        "pytorch/channels last": "PyTorch eager, channels last",
        "torch_compile/step": "PyTorch compiled by inductor, channels last",
        "art/step": "ART, as it comes: traced anew each batch",
        "art_traced_once/step": "ART, given a compiled train step",
    }
    columns, rows = [""], {title: [title] for title in contenders.values()}
    for file, machine in STEP_ON.items():
        found = read(file)
        columns += [f"{machine}: ms", {"title": "ratio", "format": ".2f"}, "quartiles", "peak MiB"]
        for name, title in contenders.items():
            step, process = found["steps"].get(name), name.partition("/")[0]
            if step is None:
                rows[title] += [None] * 4
                continue
            quartiles = _range(step["ratio"], "first_quartile", "third_quartile")
            rows[title] += [
                1000 * step["seconds"]["median"],
                {"value": step["ratio"]["median"]},
                None if process == "ours" else quartiles,
                round(found["peak_memory"][process]),
            ]
    measured = [row for row in rows.values() if any(cell is not None for cell in row[1:])]
    return {"columns": columns, "rows": measured}


def _train_step_kinds() -> dict:
    kinds = {
        "convolution, forward": "convolutions, forward",
        "convolution, gradient of the input": "convolutions, gradient of the input",
        "convolution, gradient of the kernel": "convolutions, gradient of the kernel",
        "batch normalisation": "batch norm (bound by memory)",
        "ReLU, add, bias, other elementwise": "ReLU, add, bias (bound by memory)",
        "no op running (scheduling, Python)": "no operation running",
    }
    columns: list = [""]
    rows = {title: [title] for title in (*kinds.values(), "pooling, padding, rest", "the step")}
    rows["a matrix product of side 2048"] = ["a matrix product of side 2048"]
    for file, machine in STEP_ON.items():
        limits = read(file)["limits"]
        seconds = limits["seconds_by_kind"]
        whole = sum(seconds.values())
        columns += [{"title": f"{machine}: share", "as": "{} %"}, "GFLOP/s"]
        for name, title in kinds.items():
            gflop = limits["gflop"].get(name)
            speed = None if gflop is None else round(gflop / seconds[name])
            rows[title] += [round(100 * seconds[name] / whole), speed]
        rest = sum(value for name, value in seconds.items() if name not in kinds)
        rows["pooling, padding, rest"] += [round(100 * rest / whole), None]
        rows["the step"] += [None, round(limits["gflop_per_second"])]
        product = round(limits["matrix_product_gflop_per_second"])
        rows["a matrix product of side 2048"] += [None, product]
    return {"columns": columns, "rows": list(rows.values())}


def _train_step_variants() -> dict:
    titles = {
        "ConvBatchNorm: fused, folded in inference mode":
            "`ConvBatchNorm`: fused kernel in training, folded in inference mode",
        "fused, not folded": "fused, not folded",
        "keras Conv2D + keras BatchNormalization": "Keras's Conv2D and BatchNormalization",
    }  # fmt: skip
    columns, rows = [""], [[title] for title in titles.values()]
    for file, machine in STEP_ON.items():
        found = read(file)["variants"]
        for what, shown in (("step", "step"), ("attack", "attack alone")):
            columns.append({"title": f"{machine}: {shown}", "format": ".2f"})
            for row, name in zip(rows, titles, strict=True):
                row.append(found[f"{what}, {name}"]["ratio"]["median"])
    return {"columns": columns, "rows": rows}


COMPUTED: dict[tuple[str, str], Callable[[], dict]] = {
    ("headline", "mnist"): _headline_mnist,
    ("headline", "cascade"): _headline_cascade,
    ("headline", "cost"): _headline_cost,
    ("reading_a_report", "standard-errors"): _standard_errors,
    ("autoattack", "speed"): _autoattack_speed,
    ("autoattack", "stages"): _autoattack_stages,
    ("gpu", "speed"): _gpu_speed,
    ("gpu", "networks"): _gpu_networks,
    ("craft_bank", "crafting"): _crafting,
    ("craft_bank", "forms"): _forms,
    ("craft_bank", "step"): _cascade_step,
    ("train_step", "contenders"): _train_step,
    ("train_step", "kinds"): _train_step_kinds,
    ("train_step", "variants"): _train_step_variants,
}


def main() -> int:
    """Write the tables, or look whether they are written."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument(
        "--check", action="store_true", help="change nothing; 1 where tables differ"
    )
    check = parser.parse_args().check
    different = 0
    for page in pages():
        before = page.read_text("utf-8")
        after = filled(before)
        if before == after:
            continue
        different += 1
        print(f"{page.relative_to(ROOT)}: {'differs from its JSON' if check else 'written'}")
        if not check:
            page.write_text(after, "utf-8")
    if check and different:
        print("make tables writes them again", file=sys.stderr)
    return 1 if check and different else 0


if __name__ == "__main__":
    sys.exit(main())
