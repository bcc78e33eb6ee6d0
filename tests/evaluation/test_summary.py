"""What follows from predictions, on arrays small enough to count by hand. No TensorFlow."""

import json
import math

import numpy as np
import pytest

from cascade_keras.evaluation import summary, tables
from cascade_keras.evaluation.cells import Cell


def images(text):
    """Images as letters: + is classified correctly, - is not."""
    return np.array([letter == "+" for letter in text], bool)


def cells(*rows):
    """Cells from (target, source, attack, epsilon, images)."""
    return {Cell(*row[:4]): images(row[4]) for row in rows}


OPTIONS = {"pgd": {"steps": 5, "step_size": None}}


def test_accuracies_count_each_cell():
    correct = cells(("a", None, "clean", 0.0, "+++-"), ("a", "b", "pgd", 8.0, "+--"))
    assert summary.accuracies(correct, OPTIONS) == [
        {"target": "a", "source": None, "attack": "clean", "epsilon": 0.0,
         "correct": 3, "examples": 4, "accuracy": 75.0, "options": {}},
        {"target": "a", "source": "b", "attack": "pgd", "epsilon": 8.0,
         "correct": 1, "examples": 3, "accuracy": pytest.approx(100 / 3),
         "options": OPTIONS["pgd"]},
    ]  # fmt: skip


# Worst cases: cells, then (target, epsilon, source and attack that are strongest, its accuracy, how
# many images withstand all).
WORST = {
    "nothing but clean images": ([("a", None, "clean", 0.0, "++")], []),
    "one attack": ([("a", "a", "pgd", 8.0, "+--+")], [("a", 8.0, "a", "pgd", 50.0, 2)]),
    "each fools other images": (
        [("a", "a", "step_ll", 8.0, "-+++"), ("a", "a", "pgd", 8.0, "+--+")],
        [("a", 8.0, "a", "pgd", 50.0, 1)],
    ),
    "a tie is the first one's": (
        [("a", "b", "step_ll", 8.0, "-+++"), ("a", "a", "pgd", 8.0, "+++-")],
        [("a", 8.0, "b", "step_ll", 75.0, 2)],
    ),
    "nothing is left": (
        [("a", "b", "pgd", 8.0, "-+"), ("a", "c", "pgd", 8.0, "+-")],
        [("a", 8.0, "b", "pgd", 50.0, 0)],
    ),
    "epsilons and targets apart": (
        [
            ("a", "a", "pgd", 8.0, "++--"),
            ("a", "a", "pgd", 4.0, "+++-"),
            ("b", "a", "pgd", 8.0, "+---"),
            ("a", None, "clean", 0.0, "----"),
        ],
        [
            ("a", 8.0, "a", "pgd", 50.0, 2),
            ("a", 4.0, "a", "pgd", 75.0, 3),
            ("b", 8.0, "a", "pgd", 25.0, 1),
        ],
    ),
    "cw has fewer images": (
        [("a", "a", "pgd", 8.0, "++-+"), ("a", "a", "cw_linf", 8.0, "--")],
        [("a", 8.0, "a", "pgd", 75.0, 3)],
    ),
    "cw alone": (
        [("a", "a", "cw_linf", 8.0, "+-")],
        [("a", 8.0, "a", "cw_linf", 50.0, 1)],
    ),
}


@pytest.mark.parametrize("case", WORST)
def test_worst_cases(case):
    rows, expected = WORST[case]
    correct = cells(*rows)
    records = summary.worst_cases(correct, OPTIONS)
    got = [
        (r["target"], r["epsilon"], r["strongest"]["source"], r["strongest"]["attack"],
         r["strongest"]["accuracy"], r["correct"])
        for r in records
    ]  # fmt: skip
    assert got == expected
    for record in records:
        assert record["accuracy"] == 100 * record["correct"] / record["examples"]
        assert record["accuracy"] <= record["strongest"]["accuracy"]
        assert record["strongest"]["options"] == OPTIONS.get(record["strongest"]["attack"], {})


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
    *arrays, counts, rate, both_correct_rate = TRANSFER[case]
    source, target, source_clean, target_clean = map(images, arrays)
    counted = summary.transfer(source, target, source_clean, target_clean)
    assert (
        counted.fooled_source,
        counted.fooled_both,
        counted.both_correct_fooled_source,
        counted.both_correct_fooled_both,
    ) == counts
    for got, wanted in ((counted.rate, rate), (counted.both_correct_rate, both_correct_rate)):
        assert math.isnan(got) if wanted is None else got == pytest.approx(wanted)
    if not arrays[0]:
        return
    records = summary.transfers(cells(
        ("s", None, "clean", 0.0, arrays[2]), ("t", None, "clean", 0.0, arrays[3]),
        ("s", "s", "pgd", 4.0, arrays[0]), ("t", "s", "pgd", 4.0, arrays[1]),
    ), OPTIONS)  # fmt: skip
    assert len(records) == 1  # of no network to itself, of no clean images
    record = json.loads(json.dumps(records[0], allow_nan=False))
    assert (record["source"], record["target"]) == ("s", "t")
    assert (record["attack"], record["epsilon"]) == ("pgd", 4.0)
    assert record["options"] == OPTIONS["pgd"]
    assert record["rate"] == (rate if rate is None else pytest.approx(rate))
    assert record["both_correct_rate"] == both_correct_rate
    assert (record["fooled_source"], record["fooled_both"]) == counts[:2]


def test_transfers_of_a_source_that_was_not_shown_its_own_images_are_left_out():
    correct = cells(("s", None, "clean", 0.0, "+"), ("t", None, "clean", 0.0, "+"),
                    ("t", "s", "pgd", 4.0, "-"))  # fmt: skip
    assert summary.transfers(correct, OPTIONS) == []


def test_transfers_of_fewer_images_take_the_clean_ones_of_the_same():
    correct = cells(("s", None, "clean", 0.0, "+-++"), ("t", None, "clean", 0.0, "++--"),
                    ("s", "s", "pgd", 4.0, "--"), ("t", "s", "pgd", 4.0, "-+"))  # fmt: skip
    (record,) = summary.transfers(correct, OPTIONS)
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
    assert matrix.sum(axis=1).tolist() == [3, 2, 0]
    assert np.trace(matrix) == (predicted == labels).sum()


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
        "seconds": {"crafting": 12.4, "classifying": 3.0},
        "versions": {"tensorflow": "2.21"},
        **changes,
    }  # fmt: skip


WHITE = cells(
    ("a", None, "clean", 0.0, "++++"),
    ("b", None, "clean", 0.0, "+++-"),
    ("a", "a", "step_ll", 4.0, "+++-"),
    ("a", "a", "step_ll", 8.0, "++--"),
    ("b", "b", "step_ll", 4.0, "++--"),
    ("b", "b", "step_ll", 8.0, "----"),
    ("a", "a", "pgd", 4.0, "-+++"),
    ("a", "a", "pgd", 8.0, "+---"),
    ("b", "b", "pgd", 4.0, "+++-"),
    ("b", "b", "pgd", 8.0, "----"),
)


def test_the_grid_of_a_white_box_marks_the_strongest_attack_of_each_column():
    headings, rows = tables.grid(content(WHITE))
    assert headings == ["attack", "epsilon", "a", "b"]
    assert rows == [
        ["clean", "", "100.0", "75.0"],
        ["step_ll", "4", "75.0*", "50.0*"],
        ["step_ll", "8", "50.0", "0.0*"],
        ["pgd", "4", "75.0*", "75.0"],
        ["pgd", "8", "25.0*", "0.0*"],
        ["all of them", "4", "50.0", "50.0"],
        ["all of them", "8", "25.0", "0.0"],
    ]


def test_the_grid_of_a_black_box_names_sources():
    correct = cells(
        ("a", None, "clean", 0.0, "++++"),
        ("b", None, "clean", 0.0, "++++"),
        ("a", "a", "pgd", 2.5, "+---"),
        ("b", "a", "pgd", 2.5, "++++"),
        ("a", "c", "pgd", 2.5, "++--"),
        ("b", "c", "pgd", 2.5, "+++-"),
    )
    headings, rows = tables.grid(content(correct, sources=["a", "c"]))
    assert headings == ["crafted from", "attack", "epsilon", "a", "b"]
    assert rows == [
        ["", "clean", "", "100.0", "100.0"],
        ["a", "pgd", "2.5", "25.0*", "100.0"],
        ["c", "pgd", "2.5", "50.0", "75.0*"],
        ["", "all of them", "2.5", "25.0", "75.0"],
    ]


def test_the_grid_tells_where_there_were_fewer_images_and_leaves_gaps():
    correct = cells(
        ("a", None, "clean", 0.0, "++++"),
        ("b", None, "clean", 0.0, "++++"),
        ("a", "a", "pgd", 8.0, "+---"),
        ("a", "a", "cw_linf", 8.0, "--"),
    )
    assert tables.grid(content(correct))[1] == [
        ["clean", "", "100.0", "100.0"],
        ["pgd", "8", "25.0*", ""],
        ["cw_linf", "8", "0.0 / 2", ""],
        ["all of them", "8", "25.0", ""],
    ]
    # In a black box cw_linf, which asks the target itself, has no source's row.
    rows = tables.grid(content(correct, sources=["a"]))[1]
    assert ["itself", "cw_linf", "8", "0.0 / 2", ""] in rows


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
    lines = text.splitlines()
    assert lines[0] == "# Robustness: a, b"
    assert "4 images. pgd: steps 9." in text and "others. pgd: steps 5." in text
    for line in (
        "| c | a | pgd | 8 | 1 / 3 | 33.33 | 0 / 0 |  |",
        "| a | 4 | 2 | 11.50 | 11.50 | 1 | 1 |",
        "| b | step_ll from itself | 8 | 0.0 | 0.0 |",
        "Epsilon is small.",
        "- a: something",
        "- b: nothing",
        "- pgd, steps 5",
        f"| c | saved/c/1 | {'c' * 16} |",
    ):
        assert line in lines
    assert "first 4 images of the test split of digits, true labels, seed 7" in text
    assert "Random signs of 2.5 are added" in text
    assert "Crafting took 12 s, classifying 3 s" in text and "tensorflow 2.21" in text
    # A table's rows all have as many columns as its heading.
    for block in text.split("\n\n"):
        rows = [line for line in block.splitlines() if line.startswith("|")]
        assert len({row.count("|") for row in rows}) <= 1


def test_markdown_leaves_out_what_was_not_measured():
    text = tables.markdown(content(cells(("a", None, "clean", 0.0, "++"))))
    for part in ("Worst case", "Minimal epsilon", "Transfer", "trusted", "Random signs"):
        assert part not in text
    assert "White box." in text


def test_a_name_with_a_bar_does_not_add_a_column():
    text = tables.markdown(content(cells(("a|b", None, "clean", 0.0, "++"))))
    heading, _, clean = [line for line in text.splitlines() if line.startswith("|")][:3]
    assert heading.replace(r"\|", "").count("|") == clean.count("|")
