"""Everything on digits, each network a few steps: no part of a reproduction is left out."""

import json

import pytest

from cascade_keras import Reproduction, ReproductionSettings
from cascade_keras.recipes import RECIPES
from cascade_keras.reproduction.published import FIGURES, TABLES


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
