"""Every table of numbers in README.md and docs/ is what its JSON says."""

import importlib.util
import json
import re
import sys

import pytest
from support.files import ROOT

from cascade_keras.reproduction import page_text, pages
from cascade_keras.reproduction.page_records import FigurePage, read_page

spec = importlib.util.spec_from_file_location("make_tables", ROOT / "docs" / "make_tables.py")
make_tables = importlib.util.module_from_spec(spec)
spec.loader.exec_module(make_tables)

PAGES = [str(page.relative_to(ROOT)) for page in make_tables.pages()]
FILES = sorted((ROOT / "docs/results/tables").glob("*.json"))
UNMARKED = re.compile(r"^\|[-:| ]+\|$", re.MULTILINE)
# Programs make these pages of JSON: bin/zoo, which tests/zoo compares, and bin/reproduce, below.
REPRODUCED = "docs/results/reproduction/"
MADE = ("docs/zoo.md", REPRODUCED)
FENCE = re.compile(r"^```.*?^```$", re.DOTALL | re.MULTILINE)


@pytest.mark.parametrize("page", PAGES)
def test_a_pages_tables_are_those_of_their_json(page):
    text = (ROOT / page).read_text("utf-8")
    assert make_tables.filled(text) == text, "make tables writes it again"
    assert text.count("<!-- table:") == len(make_tables.MARKED.findall(text))


@pytest.mark.parametrize("page", [page for page in PAGES if not page.startswith(MADE)])
def test_a_table_of_numbers_has_its_mark(page):
    """A number that no JSON has cannot be compared with anything."""
    text = make_tables.MARKED.sub("", (ROOT / page).read_text("utf-8"))
    rules = UNMARKED.findall(FENCE.sub("", text))
    measured = page.startswith("docs/results/") and page != "docs/results/README.md"
    assert not [rule for rule in rules if measured or "-:" in rule]


def other_than_their_json(folder):
    """The pages of a reproduction that are not what bin/reproduce makes of the JSON beside them."""
    for page in sorted(folder.glob("*.md")):
        if page.name.startswith("figure"):
            made = page_text.figure_markdown(read_page(page.with_suffix(".json"), FigurePage))
        else:
            made = page_text.markdown(read_page(page.with_suffix(".json")))
        if page.read_text("utf-8") != made:
            yield page.name


def test_pages_of_a_reproduction_are_those_of_their_json():
    assert not list(other_than_their_json(ROOT / REPRODUCED))


def test_a_page_of_a_reproduction_that_was_changed_by_hand_is_found(tmp_path):
    pages.write_page(pages.table_page(2, []), tmp_path)
    assert list(other_than_their_json(tmp_path)) == []
    page = tmp_path / "table2.md"
    page.write_text(page.read_text("utf-8").replace("99.5", "99.6"), "utf-8")
    assert list(other_than_their_json(tmp_path)) == ["table2.md"]


def test_every_table_of_a_file_is_shown():
    text = "".join((ROOT / page).read_text("utf-8") for page in PAGES)
    shown = {
        (found["file"], name)
        for found in make_tables.MARKED.finditer(text)
        for name in found["names"].split()
    }
    written = {
        (path.stem, name) for path in FILES for name in json.loads(path.read_text())["tables"]
    }
    assert shown == written | set(make_tables.COMPUTED)


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_a_file_says_what_made_its_numbers(path):
    content = json.loads(path.read_text("utf-8"))
    assert len(content["source"]) > 10
    for table in content["tables"].values():
        make_tables.texts(table)  # refuses rows that are longer or shorter than others


TABLE = {
    "columns": ["network", {"title": "loss", "format": ".2f"}, {"title": "share", "as": "{} %"},
                {"title": "seeds", "join": ", "}, "attack"],
    "rows": [["a", 0.5, 3, [1.25, None], "pgd"],
             ["b", {"value": 12345, "as": "{}*"}, None, 9.0, None]],
}  # fmt: skip


def test_a_table_as_markdown():
    assert make_tables.markdown(TABLE).splitlines() == [
        "| network | loss | share | seeds | attack |",
        "|---|---:|---:|---:|---|",
        "| a | 0.50 | 3 % | 1.2, - | pgd |",
        "| b | 12,345* | | 9.0 | |",
    ]


def test_a_table_as_programs_print_it():
    assert make_tables.terminal(TABLE).splitlines() == [
        "┃ network ┃    loss ┃ share ┃  seeds ┃ attack ┃",
        "│ a       │    0.50 │   3 % │ 1.2, - │ pgd    │",
        "│ b       │ 12,345* │       │    9.0 │        │",
    ]


@pytest.mark.parametrize("row", [["a"], ["a", 1, 2, 3, "pgd", 4]])
def test_a_row_of_other_length_is_refused(row):
    with pytest.raises(ValueError, match="cells for 5 columns"):
        make_tables.markdown({**TABLE, "rows": [row]})


@pytest.mark.parametrize("mark", ["nothing mnist", "mnist nothing"])
def test_a_mark_of_no_table_is_refused(mark):
    with pytest.raises(LookupError, match="no table"):
        make_tables.filled(f"<!-- table: {mark} -->\n<!-- end of table -->")


def test_a_number_that_was_changed_by_hand_is_told_and_written_again(tmp_path, monkeypatch, capsys):
    page = (ROOT / "README.md").read_text("utf-8")
    changed = page.replace("| 98.7 |", "| 99.7 |")
    assert changed != page
    (tmp_path / "docs").mkdir()
    (tmp_path / "README.md").write_text(changed, "utf-8")
    monkeypatch.setattr(make_tables, "ROOT", tmp_path)
    monkeypatch.setattr(sys, "argv", ["make_tables.py", "--check"])
    assert make_tables.main() == 1
    assert "README.md: differs from its JSON" in capsys.readouterr().out
    assert (tmp_path / "README.md").read_text("utf-8") == changed
    monkeypatch.setattr(sys, "argv", ["make_tables.py"])
    assert make_tables.main() == 0
    assert (tmp_path / "README.md").read_text("utf-8") == page


def cell(file, name, first, title):
    """A number of a table, by the beginning of its row and the title of its column."""
    table = make_tables.table_of(file, name)
    titles = [c if isinstance(c, str) else c["title"] for c in table["columns"]]
    (row,) = [row for row in table["rows"] if row[0] == first]
    value = row[titles.index(title)]
    return value["value"] if isinstance(value, dict) else value


def sentences():
    """What README says in words, with the numbers of its tables."""

    def white(network, attack):
        return cell("robustness", "mnist-white-box", network, attack)

    defended = "kurakin", "bidirectional", "pivot", "pivot-8k (the full schedule)"
    lost = [white(f"mnist-{n}", "iter_fgsm") - white(f"mnist-{n}", "pgd") for n in defended]
    runs = "mnist-pivot-cascade, seed 0", "mnist-pivot-cascade, seed 1", "mnist-pivot"
    cascade = [cell("cascade", "mnist", run, "iter_fgsm") for run in runs]
    of_the_pivot = {
        name: cell("demo", "black-box", "demo-pivot", f"demo-{name}")
        for name in ("cascade", "standard")
    }
    return [
        f"recognises {of_the_pivot['cascade']} % of them, "
        f"the standard one {of_the_pivot['standard']} %.",
        f"leaves {min(lost):.0f} to {max(lost):.0f} points less of every defended network above",
        "iter_fgsm {:.0f} and {:.0f} % against {:.0f} %.".format(*cascade),
    ]


@pytest.mark.parametrize("sentence", sentences())
def test_readme_says_it_in_words_too(sentence):
    assert sentence in " ".join((ROOT / "README.md").read_text("utf-8").split())
