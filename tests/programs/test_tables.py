"""What is printed as a table fits the terminal, whatever it holds."""

import argparse
import io
import json
import pathlib

import rich.console
from hypothesis import example, given, settings
from hypothesis import strategies as st
from support import peers  # noqa: F401  imported within a test ART closes what is captured

from cascade_keras.printed import print_table

ROOT = pathlib.Path(__file__).parents[2]
BENCHMARKS = ROOT / "benchmarks"
NAMES = st.text("abcdefgh-_ 0123456789", min_size=1, max_size=60)
NUMBERS = st.sampled_from(["1.0", "100.0*", "12,345", "0.123 - 0.456", "", "1234.5 (1.2 - 9.9)"])


def console(width: int) -> rich.console.Console:
    return rich.console.Console(file=io.StringIO(), width=width, highlight=False)


def lines_of(shown: rich.console.Console) -> list[str]:
    return shown.file.getvalue().splitlines()


@st.composite
def tables(draw):
    texts, numbers = draw(st.integers(1, 3)), draw(st.integers(0, 8))
    fixed = draw(st.integers(1, texts))
    headings = draw(st.lists(NAMES, min_size=texts + numbers, max_size=texts + numbers))
    row = st.tuples(*[NAMES] * texts, *[NUMBERS] * numbers)
    return headings, draw(st.lists(row, max_size=4)), texts, fixed


@settings(max_examples=40, deadline=None)
@given(tables(), st.sampled_from([80, 100, 160]))
@example((["network", "seconds"], [("n" * 78, "0.123 - 0.456")], 1, 1), 80)
def test_any_table_fits_and_no_number_is_folded(table, width):
    headings, rows, texts, fixed = table
    shown = console(width)
    # A fixed heading is not folded where it is a number's, so these are texts here.
    print_table(headings, rows, text_columns=texts, fixed_columns=fixed, console=shown)
    lines = lines_of(shown)
    assert all(len(line) <= width for line in lines)
    cells = [cell.strip() for line in lines for cell in line.split("│")[1:-1]]
    for row in rows:
        assert all(number in cells for number in row[texts:])


def test_what_is_left_out_of_a_narrow_table_is_in_another():
    names = [f"cifar10-cascade-online-{number}" for number in range(5)]
    rows = [[name, "iter_fgsm", "16", *"12345"] for name in names]
    shown = console(60)
    headings = ["crafted from", "attack", "epsilon", *names]
    print_table(headings, rows, text_columns=2, fixed_columns=3, console=shown)
    lines = lines_of(shown)
    assert max(map(len, lines)) == 60
    cells = [[cell.strip() for cell in line.split("│")[1:-1]] for line in lines if "│" in line]
    # Sources that are folded go on in the next line, in each of five tables.
    sources = [first for first, *_ in cells]
    assert ["".join(pair) for pair in zip(sources[::2], sources[1::2])] == names * 5
    assert [row[3] for row in cells[::2]] == [digit for digit in "12345" for _ in names]


def test_the_table_of_the_step_fits(monkeypatch):
    """The one of docs/results, whose cells were cut before."""
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    import train_step

    result = json.loads((ROOT / "docs" / "results" / "train_step.json").read_text())
    shown = console(80)
    train_step.report(result, shown)
    lines, text = lines_of(shown), shown.file.getvalue()
    assert max(map(len, lines)) <= 80
    assert "…" not in text
    measured = {
        turn: title
        for turn, title in train_step.TITLES.items()
        if "/".join(turn) in result["steps"]
    }
    assert len(measured) >= 5
    for turn, title in measured.items():
        (*_, first, second) = [line for line in lines if line.startswith(f"│ {title} ")]
        assert "-" in first and second
        cells = train_step.columns(result["steps"]["/".join(turn)])
        line = next(line for line in lines if line.startswith(f"│ {title} "))
        assert [cell.strip() for cell in line.split("│")[2:6]] == cells[:4]


def test_benchmarks_print_their_tables_by_the_one_function_that_fits():
    for file in BENCHMARKS.glob("*.py"):
        text = file.read_text()
        assert "rich.table" not in text and '"| ' not in text, file.name


def test_the_tables_of_the_other_benchmarks_fit(monkeypatch, capsys):
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    monkeypatch.setenv("COLUMNS", "80")
    import carlini_wagner
    import craft_online
    import craft_peers
    import independent_attacks
    import peer_tutorials
    import precisions

    ranged = {"value": 1234.5678, "min": 1111.1, "max": 9999.9}
    timed = {"seconds": ranged, "ratio": ranged, "samples": []}
    crafted = {
        **timed,
        "gradients": 164,
        "images_per_second": 12.3,
        "agreement": {"images": 0.999, "values": 0.99999},
    }
    names = ("foolbox, compiled network, constant weights", "ladder")
    cells = [craft_peers.craft_cells(name, crafted, 128) for name in names]
    craft_peers.in_turn.print_table("Crafting", craft_peers.CRAFT_COLUMNS, cells)
    memory = dict.fromkeys(("pivot", "data", "all steps", "readers", "reading"), 1234.5)
    training = craft_online.Training(None, None, 128, 16)
    craft_online.print_training(training, {"pivot": timed}, {"bank": timed}, memory, 5)
    found = {"seconds": [12.345], "gradients": 12_345.0, "epsilon": [1.0, 2.0, float("inf")]}
    carlini_wagner.report(dict.fromkeys(("descent", "grid", "ART"), found), "searches", 3)
    accuracies = dict.fromkeys(("clean", "fgsm", "pgd", "bim"), 99.9)
    result = {"network": "simple MNIST convnet", "loss": "standard", "epsilon": 76.5,
              "images": 10_000, "ours": accuracies, "ART": accuracies}  # fmt: skip
    peer_tutorials.report([result])
    parted = {"parted": 123, "unequal": 1234, "apart": 1e-8, "agree": 123}
    compared = {
        "title": "pgd, 40 steps of 1, random start",
        "accuracy": {name: [99.9, 98.7, 97.6] for name in ("ours", "foolbox", "ART")},
        "equal": dict.fromkeys(("foolbox", "ART", "ours, half batch"), 0.999),
        "parted": {"foolbox": parted, "ART": parted},
    }
    independent_attacks.print_table("compared", [compared])
    accuracies = dict.fromkeys(("clean", "step_ll", "iter_fgsm"), 99.99)
    verdicts = {"step_ll": 123, "iter_fgsm": 1234}
    kinds = precisions.KINDS
    result = {
        "seconds": dict.fromkeys(kinds, [[1.2345, 1.3]] * 3),
        "accuracy": dict.fromkeys(kinds, accuracies),
        "verdicts": dict.fromkeys(kinds, verdicts),
    }
    told = {"dataset": "cifar10", "model": "resnet20", "loss": "pivot", "seed": 0, "steps": 600,
            "images": 1000, "attacks": list(verdicts)}  # fmt: skip
    precisions.report(result, argparse.Namespace(**told))
    lines = capsys.readouterr().out.splitlines()
    tables = [line for line in lines if line[:1] in "┏┃┡│└"]
    assert len(tables) > 40 and max(map(len, tables)) <= 80
