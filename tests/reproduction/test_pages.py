"""Pages from reports that were typed by hand, beside numbers computed by hand. No TensorFlow.

``report`` writes what bin/evaluate does, as far as pages read it.
"""

import csv
import json
import pathlib
import re
import types

import numpy as np
import pytest

from cascade_keras.errors import InputError
from cascade_keras.evaluation.checklist import CHECKS
from cascade_keras.recipes import folder
from cascade_keras.reproduction import page_text, pages
from cascade_keras.reproduction.outcomes import Outcome
from cascade_keras.reproduction.page_records import FigurePage, TablePage, read_page
from cascade_keras.reproduction.published import TABLES

SEVEN = TABLES[4].sources


def report(
    tmp_path,
    name,
    rows,
    *,
    dataset="mnist",
    models=None,
    sources=(),
    worst=(),
    failed=(),
    search="grid",
):
    """Write a report.

    Args:
        rows: "target<source attack epsilon correct/examples", white box without a source.
        models: of networks by name; else resnet20, 8000 steps.
        worst: "target attack epsilon correct/examples", of all sources.
        failed: "target: title: text".
        search: of cw_linf.
    """
    results, names = [], {}
    for row in rows:
        network, attack, epsilon, count = row.split()
        target, _, source = network.partition("<")
        correct, examples = map(int, count.split("/"))
        names |= {target: True} | ({source: False} if source and source not in names else {})
        results.append(
            {
                "target": target,
                "source": None if attack == "clean" else source or target,
                "attack": attack,
                "epsilon": float(epsilon),
                "correct": correct,
                "examples": examples,
                "accuracy": 100 * correct / examples,
                "options": {"pgd": {"steps": 40}, "cw_linf": {"search": search}}.get(attack, {}),
            }
        )
    marked = []
    for row in worst:
        target, attack, epsilon, count = row.split()
        correct, examples = map(int, count.split("/"))
        marked.append(
            {
                "target": target,
                "attack": attack,
                "epsilon": float(epsilon),
                "cells": len(set(sources) - {target}),
                "examples": examples,
                "accuracy": 100 * correct / examples,
            }
        )
    content = {
        "dataset": dataset,
        "results": results,
        "networks": [
            {
                "name": each,
                "weights_hash": f"hash of {each}",
                "recipe": (models or {}).get(each, {"model": "resnet20", "steps": 8000}),
                "target": target,
            }
            for each, target in names.items()
        ],
        "sources": list(sources),
        "black_box": {"worst": marked} if sources else None,
        "checklist": [
            dict(zip(("target", "title", "text"), line.split(": ")), verdict="FAIL")
            for line in failed
        ],
        "seed": 0,
    }
    (tmp_path / name).mkdir(parents=True)
    (tmp_path / name / "report.json").write_text(json.dumps(content))
    return tmp_path / name


def rows_of(seed, *lines):
    """Rows of table 2's networks: "R20M_K clean 9960 10000"."""
    found = []
    for line in lines:
        network, attack, correct, examples = line.split()
        epsilon = 0 if attack == "clean" else 76.5
        found.append(f"{network}-s{seed} {attack} {epsilon} {correct}/{examples}")
    return found


@pytest.fixture
def two_seeds(tmp_path):
    """Two networks of table 2, two seeds; the second seed lacks CW."""
    return [
        report(
            tmp_path,
            "table2-one_step-s0",
            rows_of(
                0,
                "R20M clean 9950 10000", "R20M step_ll 1000 10000", "R20M step_fgsm 900 10000",
                "R20M_K clean 9940 10000", "R20M_K step_ll 9700 10000",
                "R20M_K step_fgsm 9400 10000",
            ),
        ),
        report(
            tmp_path,
            "table2-one_step-s1",
            rows_of(
                1,
                "R20M clean 9970 10000", "R20M step_ll 800 10000", "R20M step_fgsm 1100 10000",
                "R20M_K clean 9960 10000", "R20M_K step_ll 9600 10000",
                "R20M_K step_fgsm 9200 10000",
            ),
        ),
        report(
            tmp_path,
            "table2-iterative-s0",
            rows_of(
                0,
                "R20M clean 1990 2000", "R20M iter_ll 0 2000", "R20M iter_fgsm 0 2000",
                "R20M_K clean 1980 2000", "R20M_K iter_ll 1700 2000",
                "R20M_K iter_fgsm 1100 2000",
            ),
        ),
        report(tmp_path, "table2-cw-s0", rows_of(0, "R20M cw_linf 1 100", "R20M_K cw_linf 40 100")),
        report(
            tmp_path,
            "table2-strong-s0",
            rows_of(0, "R20M pgd 0 1000", "R20M_K pgd 100 1000", "R20M_K autoattack 50 1000"),
            failed=["R20M_K-s0: pgd-10 minus pgd-50: 9 points more"],
        ),
    ]  # fmt: skip


# By hand: published, ours, difference, seeds, n, spread (half the difference of two, times root 2).
TABLE_2 = {
    ("R20M", "clean"): (99.6, 99.6, 0.0, 2, 10_000, 0.2 / 2**0.5),
    ("R20M", "step_ll"): (9.7, 9.0, -0.7, 2, 10_000, 2 / 2**0.5),
    ("R20M", "step_fgsm"): (10.3, 10.0, -0.3, 2, 10_000, 2 / 2**0.5),
    ("R20M", "iter_fgsm"): (0.0, 0.0, 0.0, 1, 2_000, None),
    ("R20M", "cw_linf"): (0, 1, 1, 1, 100, None),
    ("R20M_K", "step_ll"): (96.7, 96.5, -0.2, 2, 10_000, 1 / 2**0.5),
    ("R20M_K", "step_fgsm"): (94.5, 93.0, -1.5, 2, 10_000, 2 / 2**0.5),
    ("R20M_K", "iter_ll"): (89.0, 85.0, -4.0, 1, 2_000, None),
    ("R20M_K", "iter_fgsm"): (60.2, 55.0, -5.2, 1, 2_000, None),
    ("R20M_K", "cw_linf"): (46, 40, -6, 1, 100, None),
    ("R20M_K", "pgd"): (None, 10.0, None, 1, 1_000, None),
    ("R20M_K", "autoattack"): (None, 5.0, None, 1, 1_000, None),
    ("R20M_B", "clean"): (99.5, None, None, 0, None, None),
    ("R20M_P", "cw_linf"): (82, None, None, 0, None, None),
}


def test_table_2_is_what_was_computed_by_hand(two_seeds):
    page = pages.table_page(2, two_seeds, seeds=(0, 1))
    numbers = {(number.network, number.attack): number for number in page.numbers}
    assert len(numbers) == 4 * 8
    for key, (published, ours, difference, seeds, examples, spread) in TABLE_2.items():
        number = numbers[key]
        assert number.published == published, key
        assert number.ours == (ours if ours is None else pytest.approx(ours)), key
        assert number.difference == (
            difference if difference is None else pytest.approx(difference, abs=1e-9)
        ), key
        assert number.spread == (spread if spread is None else pytest.approx(spread)), key
        assert len(number.values) == seeds, key
        assert {value.examples for value in number.values} == ({examples} if seeds else set())
        assert number.comparable == (ours is not None and published is not None), key


def test_the_markdown_says_what_was_computed_by_hand(two_seeds):
    text = page_text.markdown(
        pages.table_page(2, two_seeds, seeds=(0, 1), commands=["bin/x --a=1"])
    )
    lines = text.splitlines()
    assert lines[0] == "# Table 2: MNIST, white box, epsilon 0.3 * 255"
    assert "|  | R20M | R20M_K | R20M_B | R20M_P |" in lines
    assert "| step_fgsm 76.5 | 10.0 (10.3) | 93.0 (94.5) | - (96.2) | - (95.7) |" in lines
    assert "| cw_linf &gt; 76.5 | 1 (0) | 40 (46) | - (81) | - (82) |" in lines
    assert "| pgd 76.5 | 0.0 | 10.0 | - | - |" in lines
    # sqrt(.93 * .07 / 10000) = .26 points
    assert "| R20M_K | step_fgsm 76.5 | 94.5 | 93.0 | -1.5 | 1.4 | 0.3 | 2 | 10000 |" in lines
    assert "- R20M_K, iter_fgsm 76.5: -5.2 points" in lines
    assert "- R20M_K, cw_linf &gt; 76.5: -6.0 images" in lines
    assert not any(line.startswith("- R20M_K, step_fgsm") for line in lines)  # within 3 points
    assert (
        "Of 24 published numbers 12 have ours beside them, 12 of the same thing. 9 of these are "
        "within 3 points; the others are" in lines
    )
    assert "Not trained: R20M_B-s0, R20M_P-s0, R20M_B-s1, R20M_P-s1." in text
    assert "Not measured (cw) of seed 1: R20M, R20M_K." in text
    assert "- R20M_K, seed 0: pgd-10 minus pgd-50: 9 points more" in lines
    assert "| R20M | R20M | resnet20 | ? | 8000 | 8000 | 100 | 0, 1 |" in lines
    assert text.endswith("## Commands\n\n```\nbin/x --a=1\n```\n")
    assert "stand in" not in text and "share" not in text.split("## Networks")[0]


def test_files_hold_the_page(two_seeds, tmp_path):
    page = pages.table_page(2, two_seeds, seeds=(0, 1))
    shown = pages.write_page(page, tmp_path / "out")
    assert shown.read_text() == page_text.markdown(page)
    assert read_page(tmp_path / "out" / "table2.json") == page
    with open(tmp_path / "out" / "table2.csv", newline="") as file:
        rows = {(row["network"], row["attack"]): row for row in csv.DictReader(file)}
    row = rows["R20M_K", "iter_fgsm"]
    assert float(row["difference"]) == pytest.approx(-5.2)
    assert (row["published"], row["seeds"], row["examples"]) == ("60.2", "0", "2000")
    assert rows["R20M_P", "clean"]["ours"] == ""
    before = {path: path.read_bytes() for path in (tmp_path / "out").iterdir()}
    pages.write_page(pages.table_page(2, two_seeds, seeds=(0, 1)), tmp_path / "out")
    assert {path: path.read_bytes() for path in (tmp_path / "out").iterdir()} == before


def test_mean_and_spread_are_numpys(tmp_path):
    rng = np.random.default_rng(0)
    counts = rng.integers(9_000, 10_000, 5)
    found = [
        report(tmp_path, f"r{seed}", rows_of(seed, f"R20M_P clean {count} 10000"))
        for seed, count in enumerate(counts)
    ]
    page = pages.table_page(2, found, seeds=range(5))
    (number,) = (n for n in page.numbers if (n.network, n.attack) == ("R20M_P", "clean"))
    assert number.ours == pytest.approx(np.mean(counts / 100))
    assert number.spread == pytest.approx(np.std(counts / 100, ddof=1))
    assert number.difference == pytest.approx(np.mean(counts / 100) - 99.5)


def black_box(tmp_path, models=None, dataset="cifar10"):
    """Table 4's report of one target: from each source another accuracy, 60 to 66 of 100."""
    sources = [folder(source, 0) for source in SEVEN]
    rows = [f"R110_K-s0<{source} iter_fgsm 16 {60 + i}/100" for i, source in enumerate(sources)]
    names = ["R110_K-s0", *sources]
    return report(
        tmp_path,
        "table4-iterative-s0",
        rows,
        dataset=dataset,
        models={name: {"model": "resnet110", "steps": 94_000} | (models or {}) for name in names},
        sources=sources,
        worst=["R110_K-s0 iter_fgsm 16 41/100"],
    )


def test_the_worst_case_of_the_paper_is_the_lowest_of_the_sources(tmp_path):
    page = pages.table_page(4, [black_box(tmp_path)])
    lowest, single, each = (
        next(n for n in page.numbers if n.network == "R110_K" and test(n))
        for test in (
            lambda n: len(n.sources) == 7 and not n.each_image,
            lambda n: n.sources == ["R110_E2"],
            lambda n: n.each_image,
        )
    )
    assert (lowest.published, lowest.ours) == (27.9, 60.0)
    assert lowest.difference == pytest.approx(32.1)
    assert (single.published, single.ours, single.difference) == (None, 62.0, None)
    assert single.in_paper and not each.in_paper
    assert each.ours == 41.0
    text = page_text.markdown(page)
    assert "| iter_fgsm 16 from R110_2 | 60.0 (70.5) |" in text
    assert "| iter_fgsm 16 from R110_E2 | 62.0 (?) |" in text
    assert "| iter_fgsm 16, lowest of 7 | 60.0 (27.9) |" in text
    assert "| iter_fgsm 16, each image's worst of 7 | 41.0 |" in text


def test_a_source_that_is_not_there_leaves_the_worst_case_out(tmp_path):
    found = black_box(tmp_path)
    content = json.loads((found / "report.json").read_text())
    content["results"] = content["results"][1:]
    (found / "report.json").write_text(json.dumps(content))
    page = pages.table_page(4, [found])
    assert [n.ours for n in page.numbers if n.network == "R110_K" and len(n.sources) == 7] == [
        None,
        41.0,
    ]


@pytest.mark.parametrize(
    "table, model, dataset, why, said",
    [
        (4, {"model": "resnet20"}, "cifar10", "20 layers for 110", "20 layers stand in for 110"),
        (4, {}, "digits", "digits for CIFAR-10", "digits stand in for CIFAR-10"),
        (4, {"model": None}, "cifar10", "R110_K: its layers are not recorded", "not recorded"),
    ],
)
def test_what_stands_in_is_said_first_and_not_compared(tmp_path, table, model, dataset, why, said):
    page = pages.table_page(table, [black_box(tmp_path, model, dataset)], dataset=dataset)
    number = next(n for n in page.numbers if n.sources == ["R110_2"])
    assert why in number.why_not
    assert not number.comparable
    assert number.difference == pytest.approx(-10.5)
    text = page_text.markdown(page)
    assert said in text
    assert "-10.5 \\*" in text
    assert "none can be compared" in text


def test_a_count_of_other_images_is_not_compared(tmp_path):
    page = pages.table_page(2, [report(tmp_path, "r", rows_of(0, "R20M_P cw_linf 30 50"))])
    (number,) = (n for n in page.numbers if (n.network, n.attack) == ("R20M_P", "cw_linf"))
    assert (number.ours, number.difference) == (60.0, -22.0)  # per 100
    assert number.why_not == ["50 images for 100"]


def test_a_count_by_another_search_is_not_compared(tmp_path):
    found = report(tmp_path, "r", rows_of(0, "R20M_P cw_linf 60 100"), search="descent")
    page = pages.table_page(2, [found])
    (number,) = (n for n in page.numbers if (n.network, n.attack) == ("R20M_P", "cw_linf"))
    assert (number.difference, number.comparable) == (-22.0, False)
    assert number.why_not == [
        "minimal epsilons by descent, which finds smaller ones, for the grid search"
    ]


def test_the_page_about_reports_tells_of_every_item_of_a_checklist():
    page = pathlib.Path(__file__).parents[2] / "docs" / "reading_a_report.md"
    told = [line.split(" | ")[0] for line in page.read_text().splitlines()]
    assert [line for line in told if line[2:] in {check.title for check in CHECKS}] == [
        f"| {check.title}" for check in CHECKS
    ]


def test_the_share_of_the_schedule(tmp_path):
    models = {"R20M-s0": {"model": "resnet20", "steps": 2000}}
    found = report(tmp_path, "r", rows_of(0, "R20M clean 99 100"), models=models)
    page = pages.table_page(2, [found])
    assert page.networks[0].share == 25.0
    text = page_text.markdown(page)
    assert "> **Trained for 25 % of the schedule**" in text
    assert "1 of the same thing, after 25 % of the schedule. 1 of these are within 3" in text


def test_of_one_number_in_several_reports_the_one_of_more_images_counts(tmp_path):
    found = [
        report(tmp_path, f"r{count}", rows_of(0, f"R20M clean {count - 1} {count}"))
        for count in (100, 1000, 10)
    ]
    page = pages.table_page(2, found)
    assert page.numbers[0].values[0].examples == 1000
    assert page.numbers[0].values[0].report == "r1000"


def test_another_network_of_a_name_and_other_data_are_refused(tmp_path):
    one = report(tmp_path, "one", rows_of(0, "R20M clean 9 10"))
    other = report(tmp_path, "other", rows_of(0, "R20M clean 8 10"))
    content = json.loads((other / "report.json").read_text())
    content["networks"][0]["weights_hash"] = "another"
    (other / "report.json").write_text(json.dumps(content))
    with pytest.raises(InputError, match="other has another network of the name R20M-s0"):
        pages.table_page(2, [one, other])
    with pytest.raises(InputError, match="is of mnist, not of digits"):
        pages.table_page(2, [one], dataset="digits")
    (one / "report.json").write_text('{"dataset": "mnist"}')
    with pytest.raises(InputError, match="missing required field `results`"):
        pages.table_page(2, [one])


def test_reports_that_are_not_finished_are_missing(tmp_path):
    (tmp_path / "started").mkdir()
    (tmp_path / "run").mkdir()
    page = pages.table_page(2, [tmp_path / "started"], runs={"R20M-s0": tmp_path / "run"})
    assert page.missing == [
        "Training is not finished: R20M-s0.",
        "Not trained: R20M_K-s0, R20M_B-s0, R20M_P-s0.",
    ]
    assert "Of 24 published numbers 0 have ours beside them." in page_text.markdown(page)
    assert "Each of our numbers" not in page_text.markdown(page)


def test_a_plan_may_let_another_network_stand_for_one(tmp_path):
    models = {"R20_P-s0": {"model": "resnet20", "steps": 94_000}}
    rows = ["R20_P-s0 clean 0 90/100", "R20_P-s0 step_ll 16 80/100"]
    found = report(tmp_path, "r", rows, dataset="cifar10", models=models)

    def name_of(network, seed):
        return folder(network.replace("R110", "R20"), seed)

    page = pages.table_page(3, [found], name_of=name_of)
    number = next(n for n in page.numbers if n.network == "R110_P" and n.epsilon == 16)
    assert number.ours == 80.0
    assert number.why_not == ["20 layers for 110"]
    assert "| R110_P | R20_P | resnet20 | ? | 94000 | 94000 | 100 | 0 |" in page_text.markdown(page)


def test_a_figure_shows_what_is_drawn_and_says_what_is_not(tmp_path):
    drawn = tmp_path / "figures" / "figure9-a-s0"
    drawn.mkdir(parents=True)
    (drawn / "cw_distribution.png").touch()
    (drawn / "cw_distribution.txt").write_text("Minimal epsilons.\n")
    page = pages.figure_page(9, {"figure9-a-s0": drawn}, output=tmp_path, dataset="digits")
    assert [picture.file for picture in page.pictures] == [
        "figures/figure9-a-s0/cw_distribution.png",
        None,
        None,
    ]
    assert "Not drawn: figure9-b-s0, figure9-c-s0." in page.missing
    text = pages.write_page(page, tmp_path).read_text()
    assert "digits stand in for CIFAR-10" in text and "digits stand in for MNIST" in text
    assert "(figures/figure9-a-s0/cw_distribution.png)" in text
    assert "Minimal epsilons." in text
    assert text.count("\n## R20") == 1  # that of the picture that is there
    assert read_page(tmp_path / "figure9.json", FigurePage) == page


def outcome(job, **fields):
    return Outcome(
        **{"job": job, "state": "failed", "reason": "no memory", "command": ["x"], **fields}
    )


def test_cells_of_a_network_that_failed_or_diverged_say_so(tmp_path):
    """Beside the numbers of the others; of several seeds those that are there count."""
    found = report(tmp_path, "r", rows_of(0, "R20M clean 98 100", "R20M_B clean 97 100"))
    lost = {
        each.job: each
        for each in (
            outcome("R20M_K-s0", reason="no <memory> " + 90 * "x"),
            outcome("R20M_P-s0", state="diverged", reason="nan", step=12),
            outcome("R20M_B-s1", needed="init-A-s1"),
            outcome("table2-cw-s0", reason="no room"),
        )
    }
    page = pages.table_page(2, [found], lost=lost)
    cells = {(number.network, number.attack): number for number in page.numbers}
    assert cells["R20M", "clean"].state is None and cells["R20M", "step_ll"].state is None
    assert cells["R20M_K", "clean"].state.startswith("failed: no <memory> xxx")
    assert cells["R20M_K", "clean"].ours is None and not cells["R20M_K", "clean"].values
    assert cells["R20M_P", "pgd"].state == "diverged at step 12"
    assert cells["R20M", "cw_linf"].state == "failed: no room"
    text = pages.write_page(page, tmp_path).read_text()
    (clean,) = (line for line in text.splitlines() if line.startswith("| clean |"))
    first = [cell.strip() for cell in clean.split("|")[2:-1]]
    assert first[0] == "98.0 (99.6)" and first[3] == "diverged at step 12 (99.5)"
    assert re.fullmatch(r"failed: no &lt;memory&gt; x+ \.\.\. x+ \(99\.6\)", first[1])
    assert "Diverged at step 12: R20M_P-s0." in text and "table2-cw-s0: failed: no room." in text
    assert "| R20M_P |  |  |  | diverged at step 12 | 8000 |  |  |" in text
    with open(tmp_path / "table2.csv", newline="") as file:
        rows = {(row["network"], row["attack"]): row for row in csv.DictReader(file)}
    row = rows["R20M_P", "clean"]
    assert (row["ours"], row["state"]) == ("", "diverged at step 12")
    assert read_page(tmp_path / "table2.json") == page
    # One seed of two: the number is there, and the page says what of it is not.
    both = pages.table_page(2, [found], seeds=(0, 1), lost=lost)
    number = next(n for n in both.numbers if (n.network, n.attack) == ("R20M_B", "clean"))
    assert number.ours == 97.0 and number.state is None
    assert "Needs init-A-s1, which failed: no memory: R20M_B-s1." in both.missing


def test_a_source_that_failed_is_named_in_its_cells(tmp_path):
    lost = {"R110_2-s0": outcome("R110_2-s0")}
    page = pages.table_page(4, [], lost=lost)
    states = {n.state for n in page.numbers if n.sources == ["R110_2"]}
    assert states == {"R110_2-s0 failed: no memory"}
    assert {n.state for n in page.numbers if n.sources == ["R110_E2"]} == {None}


def test_a_figure_says_which_network_it_lacks(tmp_path):
    drawn = tmp_path / "figure5-s0-0"
    drawn.mkdir()
    (drawn / "distance_sweep.png").touch()
    (drawn / "distance_sweep.txt").write_text("A sweep.\n")
    name = "R20_P-lambda0.3"
    lost = {f"{name}-s0": outcome(f"{name}-s0", state="diverged", reason="nan", step=7)}
    page = pages.figure_page(5, {"figure5-s0": drawn}, output=tmp_path, lost=lost)
    (picture,) = page.pictures
    assert name not in picture.networks and "R20_P" in picture.networks
    text = pages.write_page(page, tmp_path).read_text()
    assert f"Without {name}: diverged at step 7." in text
    assert f"Diverged at step 7: {name}-s0." in text
    assert read_page(tmp_path / "figure5.json", FigurePage) == page
    lost = {"figure5-s0": outcome("figure5-s0")}
    page = pages.figure_page(5, {}, output=tmp_path, lost=lost)
    assert page.missing[-2:] == ["Not drawn: figure5-s0.", "figure5-s0: failed: no memory."]


def test_a_plans_job_becomes_a_page(two_seeds, tmp_path):
    """As ``Plan`` and ``Job`` have it."""

    def job(name, needs=(), result=None, **others):
        command = ("bin/x", f"--name={name}")
        others = {"number": 2, "settings": types.SimpleNamespace(figure=(), table=(2,)), **others}
        return types.SimpleNamespace(
            name=name, needs=needs, result=result, command=command, **others
        )

    measured = [job(path.name, ("R20M-s0",), path / "report.json") for path in two_seeds]
    made = [job("R20M-s0"), job("other"), *measured]
    made.append(job("table2", tuple(each.name for each in measured)))
    plan = types.SimpleNamespace(
        settings=types.SimpleNamespace(seeds=(0, 1), dataset=None, output=str(tmp_path / "out")),
        jobs=made,
        job={each.name: each for each in made}.get,
        now=lambda name, seen: {each.name: each for each in made}[name],
        run_of=lambda name, seed: pathlib.Path(tmp_path, "runs", folder(name, seed)),
    )
    shown = pages.write(made[-1], plan)
    page = read_page(shown.with_suffix(".json"))
    assert page.commands == [
        "bin/x --name=table2",
        "bin/x --name=R20M-s0",
        *(f"bin/x --name={each.name}" for each in measured),
    ]
    expected = pages.table_page(2, two_seeds, seeds=(0, 1), commands=page.commands)
    assert page == expected


def test_committed_pages_are_what_their_json_says():
    results = pathlib.Path(__file__).parents[2] / "docs" / "results"
    for path in results.rglob("*.json"):
        for stem, kind, text in (
            ("table", TablePage, page_text.markdown),
            ("figure", FigurePage, page_text.figure_markdown),
        ):
            if re.fullmatch(rf"{stem}\d+", path.stem):
                shown = text(read_page(path, kind))
                assert path.with_suffix(".md").read_text(encoding="utf-8") == shown, path
