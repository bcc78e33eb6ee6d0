"""What follows from predictions, on arrays small enough to count by hand. No TensorFlow."""

import dataclasses
import json
import math

import markdown_it
import numpy as np
import pytest

from cascade_keras.evaluation import summary, tables
from cascade_keras.evaluation.cells import Cell


def images(text):
    """Images as letters: + is classified correctly, - is not."""
    return np.array([letter == "+" for letter in text], bool)


def cells(*rows):
    """Cells from rows such as "target<source: clean ++, pgd 8 +-"; white box without a source."""
    found = {}
    for names, versions in (row.split(": ") for row in rows):
        target, _, source = names.partition("<")
        for attack, *epsilon, text in (version.split() for version in versions.split(", ")):
            cell = Cell(target, source or target, attack, float(*epsilon))
            found[Cell.clean(target) if attack == "clean" else cell] = images(text)
    return found


OPTIONS = {"pgd": {"steps": 5, "step_size": None}}


def test_accuracies_count_each_cell():
    keys = ("target", "source", "attack", "epsilon", "correct", "examples", "accuracy", "options")
    found = summary.accuracies(cells("a: clean +++-", "a<b: pgd 8 +--"), OPTIONS)
    assert found == [
        dict(zip(keys, ("a", None, "clean", 0.0, 3, 4, 75.0, {}))),
        dict(zip(keys, ("a", "b", "pgd", 8.0, 1, 3, pytest.approx(100 / 3), OPTIONS["pgd"]))),
    ]


# Worst cases: cells, then (target, epsilon, source and attack that are strongest, its accuracy, how
# many images withstand all).
WORST = {
    "nothing but clean images": (["a: clean ++"], []),
    "one attack": (["a: pgd 8 +--+"], [("a", 8.0, "a", "pgd", 50.0, 2)]),
    "each fools others": (["a: step_ll 8 -+++, pgd 8 +--+"], [("a", 8.0, "a", "pgd", 50.0, 1)]),
    "a tie is the first one's": (
        ["a<b: step_ll 8 -+++", "a: pgd 8 +++-"],
        [("a", 8.0, "b", "step_ll", 75.0, 2)],
    ),
    "nothing is left": (["a<b: pgd 8 -+", "a<c: pgd 8 +-"], [("a", 8.0, "b", "pgd", 50.0, 0)]),
    "epsilons and targets apart": (
        ["a: pgd 8 ++--, pgd 4 +++-, clean ----", "b<a: pgd 8 +---"],
        [
            ("a", 8.0, "a", "pgd", 50.0, 2),
            ("a", 4.0, "a", "pgd", 75.0, 3),
            ("b", 8.0, "a", "pgd", 25.0, 1),
        ],
    ),
    "cw has fewer": (["a: pgd 8 ++-+, cw_linf 8 --"], [("a", 8.0, "a", "pgd", 75.0, 3)]),
    "cw alone": (["a: cw_linf 8 +-"], [("a", 8.0, "a", "cw_linf", 50.0, 1)]),
}


@pytest.mark.parametrize("rows, expected", WORST.values(), ids=WORST)
def test_worst_cases(rows, expected):
    records = summary.worst_cases(cells(*rows), OPTIONS)
    got = []
    for record in records:
        best = record["strongest"]
        named = best["source"], best["attack"], best["accuracy"], record["correct"]
        got.append((record["target"], record["epsilon"], *named))
        assert record["accuracy"] == 100 * record["correct"] / record["examples"]
        assert best["options"] == OPTIONS.get(best["attack"], {})
    assert got == expected


# Transfer: adversarial images on source and target, clean ones on source and target; then how many
# fool the source, how many of them the target too, and both among those that were right when clean.
TRANSFER = {
    "none fools the source": ("++++", "+--+", "++++", "++++", (0, 0, 0, 0), None, None),
    "all fool both": ("----", "----", "++++", "++++", (4, 4, 4, 4), 100.0, 100.0),
    "all fool the source alone": ("----", "++++", "++++", "++++", (4, 0, 4, 0), 0.0, 0.0),
    # What fools the target without fooling the source is nobody's transfer.
    "half": ("--++", "-+-+", "++++", "++++", (2, 1, 2, 1), 50.0, 50.0),
    "some were wrong before": ("---+", "--++", "-+++", "++++", (3, 2, 2, 1), 200 / 3, 50.0),
    "the target was wrong before": ("---+", "--++", "++++", "-+++", (3, 2, 2, 1), 200 / 3, 50.0),
    "all were wrong before": ("----", "--++", "--++", "++--", (4, 2, 0, 0), 50.0, None),
    "no images": ("", "", "", "", (0, 0, 0, 0), None, None),
}


@pytest.mark.parametrize("case", TRANSFER)
def test_transfer_rates_are_those_of_the_definition(case):
    *texts, counts, rate, both_correct_rate = TRANSFER[case]
    counted = summary.transfer(*map(images, texts))
    assert dataclasses.astuple(counted) == counts
    for got, wanted in ((counted.rate, rate), (counted.both_correct_rate, both_correct_rate)):
        assert math.isnan(got) if wanted is None else got == pytest.approx(wanted)
    if not texts[0]:
        return
    source, target, source_clean, target_clean = texts
    rows = f"s: clean {source_clean}, pgd 4 {source}", f"t: clean {target_clean}"
    records = summary.transfers(cells(*rows, f"t<s: pgd 4 {target}"), OPTIONS)
    # One, of no network to itself, of no clean images.
    assert json.loads(json.dumps(records, allow_nan=False)) == [
        {
            "source": "s",
            "target": "t",
            "attack": "pgd",
            "epsilon": 4.0,
            "fooled_source": counts[0],
            "fooled_both": counts[1],
            "rate": rate if rate is None else pytest.approx(rate),
            "both_correct_fooled_source": counts[2],
            "both_correct_fooled_both": counts[3],
            "both_correct_rate": both_correct_rate,
            "options": OPTIONS["pgd"],
        }
    ]


def test_transfers_compare_with_the_sources_own_images_and_as_many_clean_ones():
    others = "t: clean ++--", "t<s: pgd 4 -+"
    assert summary.transfers(cells("s: clean +-++", *others), OPTIONS) == []
    (record,) = summary.transfers(cells("s: clean +-++, pgd 4 --", *others), OPTIONS)
    assert (record["both_correct_fooled_source"], record["both_correct_fooled_both"]) == (1, 1)


MINIMAL = {
    # above 2 and above 10, wrong when clean, not found, mean, median
    "usual": ([1, 3, 8, 20], [3, 1], 0, 0, 8.0, 5.5),
    "on the threshold": ([2, 10], [1, 0], 0, 0, 6.0, 6.0),
    "wrong when clean": ([0, 0, 4], [1, 0], 2, 0, 4.0, 4.0),
    "not found": ([np.inf, 4], [2, 1], 0, 1, 4.0, 4.0),
    "none at all": ([0, np.inf], [1, 1], 1, 1, None, None),
}


@pytest.mark.parametrize("case", MINIMAL)
def test_minimal_epsilons_are_counted_above_thresholds(case):
    epsilon, above, wrong, missing, mean, median = MINIMAL[case]
    (record,) = summary.minimal_epsilons({"net": np.array(epsilon, np.float32)}, [2, 10.0])
    assert json.loads(json.dumps(record, allow_nan=False)) == {
        "target": "net",
        "examples": len(epsilon),
        "above": [{"epsilon": 2.0, "count": above[0]}, {"epsilon": 10.0, "count": above[1]}],
        "misclassified_clean": wrong,
        "not_found": missing,
        "mean": mean,
        "median": median,
    }


def test_confusion_has_true_classes_in_rows():
    predicted, labels = np.array([1, 1, 0, 2, 1]), np.array([0, 1, 0, 1, 0])
    matrix = summary.confusion_matrix(predicted, labels, 3)
    assert matrix.tolist() == [[1, 2, 0], [0, 1, 1], [0, 0, 0]]


# The tables.


def content(correct, sources=(), **changes):
    """What report.json would hold."""
    targets = dict.fromkeys(cell.target for cell in correct)
    names = dict.fromkeys([*targets, *sources])
    return {
        "dataset": "digits",
        "split": "test",
        "examples": max(map(len, correct.values())),
        "seed": 7,
        "inference_noise": 0,
        "notes": [],
        "results": summary.accuracies(correct, OPTIONS),
        "worst_case": summary.worst_cases(correct, OPTIONS),
        "transfer": [],
        "cw_linf": [],
        "diagnosis": None,
        "sources": list(sources),
        "networks": [
            {"name": name, "path": f"saved/{name}/1", "weights_hash": name * 64,
             "target": name in targets}
            for name in names
        ],
        "attacks": [{"name": "pgd", "epsilons": [8], "options": OPTIONS["pgd"]}],
        "dataset_fingerprint": "f" * 64,
        "versions": {"tensorflow": "2.21"},
        **changes,
    }  # fmt: skip


WHITE = cells(
    "a: clean ++++, step_ll 4 +++-, step_ll 8 ++--, pgd 4 -+++, pgd 8 +---",
    "b: clean +++-, step_ll 4 ++--, step_ll 8 ----, pgd 4 +++-, pgd 8 ----",
)
FEWER = cells("a: clean ++++, pgd 8 +---, cw_linf 8 --", "b: clean ++++")
BLACK = cells(
    "a: clean ++++, pgd 2.5 +---", "b: clean ++++", "b<a: pgd 2.5 ++++",
    "a<c: pgd 2.5 ++--", "b<c: pgd 2.5 +++-",
)  # fmt: skip
# What the grid of which cells is, the sources' column being there in a black box only.
GRIDS = {
    "the strongest of each column is marked": (WHITE, [], """
        clean,       ,    100.0, 75.0
        step_ll,     4,   75.0*, 50.0*
        step_ll,     8,   50.0,  0.0*
        pgd,         4,   75.0*, 75.0
        pgd,         8,   25.0*, 0.0*
        all of them, 4,   50.0,  50.0
        all of them, 8,   25.0,  0.0"""),
    "sources are named": (BLACK, ["a", "c"], """
        ,  clean,       ,    100.0, 100.0
        a, pgd,         2.5, 25.0*, 100.0
        c, pgd,         2.5, 50.0,  75.0*
        ,  all of them, 2.5, 25.0,  75.0"""),
    "fewer images and gaps": (FEWER, [], """
        clean,       ,    100.0, 100.0
        pgd,         8,   25.0*,
        cw_linf,     8,   0.0 / 2,
        all of them, 8,   25.0,"""),
    "cw_linf asks the target itself": (FEWER, ["a"], """
        ,       clean,       , 100.0, 100.0
        a,      pgd,         8, 25.0*,
        itself, cw_linf,     8, 0.0 / 2,
        ,       all of them, 8, 25.0,"""),
}  # fmt: skip


@pytest.mark.parametrize("correct, sources, wanted", GRIDS.values(), ids=GRIDS)
def test_grid(correct, sources, wanted):
    headings, rows = tables.grid(content(correct, sources=sources))
    assert headings == ["crafted from"] * bool(sources) + ["attack", "epsilon", "a", "b"]
    lines = wanted.strip("\n").splitlines()
    assert rows == [[part.strip() for part in line.split(",")] for line in lines]


def test_markdown_has_every_part():
    found = {"a": np.array([3, 20, 0, np.inf])}
    text = tables.markdown(content(
        WHITE,
        sources=["c"],
        transfer=[{"source": "c", "target": "a", "attack": "pgd", "epsilon": 8.0,
                   "fooled_source": 3, "fooled_both": 1, "rate": 100 / 3,
                   "both_correct_fooled_source": 0, "both_correct_fooled_both": 0,
                   "both_correct_rate": None}],
        cw_linf=summary.minimal_epsilons(found, [8.0]),
        diagnosis={"examples": 4, "sentences": ["a: something", "b: nothing"],
                   "results": [{"attack": "pgd", "options": {"steps": 9}}]},
        notes=["Epsilon is small."],
        inference_noise=2.5,
    ))  # fmt: skip
    lines = {
        "# Robustness: a, b",
        "| c | a | pgd | 8 | 1 / 3 | 33.33 | 0 / 0 |  |",
        "| a | 4 | 2 | 11.50 | 11.50 | 1 | 1 |",
        "| b | step_ll from itself | 8 | 0.0 | 0.0 |",
        "Epsilon is small.",
        "- a: something",
        "- b: nothing",
        "- pgd, steps 5",
        f"| c | saved/c/1 | {'c' * 16} |",
    }
    assert lines <= set(text.splitlines())
    for words in (
        "first 4 images of the test split of digits, true labels, seed 7",
        "4 images. pgd: steps 9.",
        "others. pgd: steps 5.",
        "Random signs of 2.5 are added",
        "tensorflow 2.21",
    ):
        assert words in text
    # A table's rows all have as many columns as its heading.
    for block in text.split("\n\n"):
        rows = [line for line in block.splitlines() if line.startswith("|")]
        assert len({row.count("|") for row in rows}) <= 1


ODD = [
    "a|b", "a\\|b", "<img src=x onerror=alert(1)>", "<b>", "a&amp;b", "`x`", "``", "[/b]",
    "[l](http://x)", "![p](q)", "*s*", "**", "_i_", "__init__", "a_b", "~~x~~", "$x$", "\\", "# h",
    "a\nb", "12. x", "7)", "- x", "---", "+", "===", "> q", "日本",
]  # fmt: skip


@pytest.mark.parametrize("name", ODD)
def test_a_name_is_shown_as_it_is(name):
    """By a reader of Markdown: no HTML, no other column, nothing that is set in another way."""
    network = {"name": name, "path": f"saved/{name}", "weights_hash": "c" * 64, "target": True}
    text = tables.markdown(content(
        {Cell(name, *cell[1:]): right for cell, right in cells("a: clean ++, pgd 8 +-").items()},
        networks=[network],
        diagnosis={"examples": 4, "sentences": [f"{name}: nothing"], "results": []},
    ))  # fmt: skip
    reader = markdown_it.MarkdownIt("commonmark").enable(["table", "strikethrough"])
    shown = []
    for token in reader.parse(text):
        assert not token.type.startswith("html")
        if token.type == "inline":
            assert {each.type for each in token.children} <= {"text", "softbreak"}, token.content
            shown.append("".join(each.content for each in token.children))
    name = name.replace("\n", "\\n")
    assert shown[0] == f"Robustness: {name}"
    assert {f"{name}: nothing", f"saved/{name}"} <= set(shown)
    assert shown.count(name) == 3  # a heading, the worst case, the networks


def test_markdown_leaves_out_what_was_not_measured_and_a_bar_adds_no_column():
    text = tables.markdown(content(cells("a|b: clean ++")))
    for part in ("Worst case", "Minimal epsilon", "Transfer", "trusted", "Random signs"):
        assert part not in text
    assert "White box." in text
    heading, _, clean = [line for line in text.splitlines() if line.startswith("|")][:3]
    assert heading.replace(r"\|", "").count("|") == clean.count("|")
