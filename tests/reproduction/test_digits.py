"""Everything on digits, each network a few steps: no part of a reproduction is left out."""

import dataclasses
import json

import pytest

from cascade_keras import Reproduction, ReproductionSettings
from cascade_keras.recipes import RECIPES
from cascade_keras.reproduction.published import FIGURES, TABLES


def test_a_table_and_a_figure_of_networks_one_of_which_diverges(tmp_path, monkeypatch):
    """All of it for real: trainings, evaluations, a drawing, pages."""
    monkeypatch.chdir(tmp_path)
    settings = ReproductionSettings(
        table=[8], figure=[8], dataset="digits", scale=0.003, num_images=10
    )
    one = Reproduction(settings)
    job = one.plan.job("R20_K-s0")
    wild = job.settings.replace(learning_rate=1e38, warmup_steps=0)
    monkeypatch.setitem(one.plan._jobs, job.name, dataclasses.replace(job, settings=wild))
    found = one.run()
    (diverged,) = found.diverged
    assert (diverged.job, found.failed, found.left_out) == ("R20_K-s0", (), ())
    page = json.loads((tmp_path / "reproduction/table8.json").read_text())
    states = {number["network"]: number["state"] for number in page["numbers"]}
    assert states["R20"] is states["R20_P"] is None
    assert states["R20_K"] == f"diverged at step {diverged.step}" and diverged.step < 4
    ours = [number["ours"] is not None for number in page["numbers"]
            if "R20_K" not in (number["network"], *number["sources"])]  # fmt: skip
    assert ours and all(ours)
    (picture,) = json.loads((tmp_path / "reproduction/figure8.json").read_text())["pictures"]
    assert picture["networks"] == ["R20", "R20_P"] and picture["without"]
    assert (tmp_path / "reproduction" / picture["file"]).exists()


@pytest.mark.long
def test_a_table_and_a_figure_of_networks_with_all_kinds_of_sources(tmp_path, monkeypatch):
    """Cascades online and by a bank, ensembles, Carlini and Wagner's attack, AutoAttack."""
    monkeypatch.chdir(tmp_path)
    settings = ReproductionSettings(
        table=[3], figure=[4], dataset="digits", scale=0.003, num_images=10
    )
    found = Reproduction(settings).run()
    assert [path.stem for path in found.pages] == ["table3", "figure4"]
    page = json.loads((tmp_path / "reproduction/table3.json").read_text())
    assert not page["missing"]
    assert all(number["ours"] is not None for number in page["numbers"])
    assert len([*(tmp_path / "reproduction/figures").glob("figure4-s0-*/embedding_map.png")]) == 1


@pytest.mark.long
def test_all_tables_and_figures(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    settings = ReproductionSettings(all=True, dataset="digits", scale=0.003, num_images=10)
    one = Reproduction(settings)
    found = one.run()
    assert len(found.pages) == len(TABLES) + len(FIGURES)
    for number in TABLES:
        page = json.loads((tmp_path / f"reproduction/table{number}.json").read_text())
        assert not page["missing"], number
    assert {job.kind for job in one.plan.left()} == {"page"}
    trained = {path.name for path in (tmp_path / "reproduction/runs").iterdir()}
    networks = {f"{name.replace(',', '-')}-s0" for name in RECIPES}
    assert networks - trained == {"R20_4-s0"}  # of which the paper shows nothing
