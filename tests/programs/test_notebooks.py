"""The notebooks' code runs, with fewer epochs, images and steps of attacks; no Jupyter needed.

The outputs inside the notebooks are those of the full sizes: see examples/README.md.
"""

import functools
import json
import re

import matplotlib
import matplotlib.pyplot as plt
import pytest
import rich.console
from support.files import ROOT

import cascade_keras as ck

NOTEBOOKS = {
    path.stem: json.loads(path.read_text("utf-8")) for path in (ROOT / "examples").glob("*.ipynb")
}
SMALLER = (
    (r"EPOCHS = \d+", "EPOCHS = 1"),
    (r"IMAGES = \d+", "IMAGES = 8"),
    # One step is compiled in a fifth of the time that pgd takes, which the guide's test runs.
    (r'"(step_rand|step_fgsm|iter_fgsm)", ', ""),
    (r"""(["'])pgd\1""", r"\1step_fgsm\1"),
    (r"ck\.attacks\.PGD\(steps=5\)", '"step_ll"'),
    (r"= digits\.train, digits\.test", "= [(x[:64], y[:64]) for x, y in"
     " (digits.train, digits.test)]"),
)  # fmt: skip


def run(notebook):
    """Run the code cells one after another, and return the names that they leave."""
    names = {}
    for cell in notebook["cells"]:
        if cell["cell_type"] == "code":
            code = "".join(cell["source"])
            for pattern, text in SMALLER:
                code = re.sub(pattern, text, code)
            exec(compile(code, "cell", "exec"), names)
    return names


@pytest.mark.parametrize("name", NOTEBOOKS)
def test_its_code_runs(name, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(plt, "show", lambda: plt.close("all"))
    # The diagnosis runs attacks of its own, which have tests of their own.
    monkeypatch.setattr(ck, "evaluate", functools.partial(ck.evaluate, diagnosis_images=0))
    monkeypatch.setattr(rich.console, "_is_jupyter", lambda: True)
    before = matplotlib.get_backend()
    matplotlib.use("agg")
    try:
        names = run(NOTEBOOKS[name])
    finally:
        matplotlib.use(before)
    assert names["EPOCHS"] == 1 and names["IMAGES"] == 8
    printed = capsys.readouterr().out
    assert printed.count("┃ attack") >= 2  # a report is text in a notebook too
    assert any(tmp_path.iterdir())


@pytest.mark.parametrize("name", NOTEBOOKS)
def test_it_was_run_from_the_first_cell_to_the_last(name):
    cells = [cell for cell in NOTEBOOKS[name]["cells"] if cell["cell_type"] == "code"]
    assert [cell["execution_count"] for cell in cells] == list(range(1, len(cells) + 1))
    outputs = [output for cell in cells for output in cell["outputs"]]
    assert not any(o["output_type"] == "error" or o.get("name") == "stderr" for o in outputs)
    assert any("image/png" in output.get("data", {}) for output in outputs)


@pytest.mark.parametrize("name", NOTEBOOKS)
def test_it_is_small_and_says_nothing_of_a_machine(name):
    text = json.dumps(NOTEBOOKS[name])
    assert len(text) < 200_000
    assert not re.search(r"/(home|tmp|root|work|usr|opt|Users)/|\\\\Users|site-packages", text)
