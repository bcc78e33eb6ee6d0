"""The published numbers against the paper, and the calls that measure them. No TensorFlow."""

import dataclasses

import pytest

from cascade_keras.attacks.specs import ATTACKS
from cascade_keras.errors import InputError
from cascade_keras.evaluation.settings import EvaluationSettings
from cascade_keras.figures.kinds import FIGURES as KINDS
from cascade_keras.figures.settings import FigureSettings, check_options
from cascade_keras.recipes import RECIPES, folder
from cascade_keras.reproduction.measurements import (
    Images,
    figure_measurements,
    measurements,
)
from cascade_keras.reproduction.published import FIGURES, TABLES, VARIANTS
from cascade_keras.settings import of_text

# Typed from the paper's text again: network, attack, epsilon, sources -> value.
SEVEN = "R110_2 R110_K2 R110_E2 R110_P2 R110_K,C2 R110_P,E2 R110_P,C2"
SEVEN_BACK = "R110 R110_K R110_E R110_P R110_K,C R110_P,E R110_P,C"
TYPED = {
    1: {
        ("R20", "step_fgsm", 16, "R20_2"): 16.2,
        ("R20", "iter_fgsm", 16, "R20_2"): 2.7,
        ("R20_K", "step_fgsm", 16, "R20_K2"): 82.7,
        ("R20_K", "iter_fgsm", 16, "R20_K2"): 28.5,
    },
    2: {
        ("R20M", "clean", 0, ""): 99.6,
        ("R20M", "cw_linf", 76.5, ""): 0,
        ("R20M_K", "iter_fgsm", 76.5, ""): 60.2,
        ("R20M_B", "iter_ll", 76.5, ""): 97.2,
        ("R20M_P", "step_ll", 76.5, ""): 97.1,
        ("R20M_P", "step_fgsm", 76.5, ""): 95.7,
        ("R20M_P", "cw_linf", 76.5, ""): 82,
    },
    3: {
        ("R110_K", "step_fgsm", 16, ""): 95.2,
        ("R110_K", "cw_linf", 4, ""): 4,
        ("R110_E", "step_ll", 16, ""): 74.3,
        ("R110_K,C", "iter_fgsm", 4, ""): 33.4,
        ("R110_P,E", "clean", 0, ""): 91.3,
        ("R110_P,E", "cw_linf", 2, ""): 38,
        ("R110_P,C", "iter_fgsm", 2, ""): 73.5,
        ("R110_P,C", "iter_fgsm", 4, ""): 42.5,
    },
    4: {
        ("R110_K", "iter_fgsm", 16, SEVEN): 27.9,
        ("R110_P,C", "iter_fgsm", 16, SEVEN): 63.9,
        ("R110_P,E", "iter_fgsm", 16, SEVEN): 67.7,
        ("R110_K,C", "iter_fgsm", 16, "R110_2"): 56.4,
    },
    8: {
        ("R20_K", "step_fgsm", 16, "R20"): 65.7,
        ("R20_P", "iter_fgsm", 16, "R20_P"): 0.0,
        ("R20", "step_fgsm", 16, "R20_K R20_P"): 27.4,
    },
    9: {
        ("R20_2", "iter_fgsm", 16, "R20"): 4.1,
        ("R20_K2", "step_fgsm", 16, "R20"): 65.0,
        ("R20_P2", "step_fgsm", 16, "R20_K R20_P"): 87.2,
    },
    10: {
        ("R110_K2", "iter_fgsm", 16, SEVEN_BACK): 41.0,
        ("R110_K,C2", "iter_fgsm", 16, SEVEN_BACK): 39.0,
        ("R110_K,C2", "iter_fgsm", 16, "R110"): 62.1,
        ("R110_P,C2", "iter_fgsm", 16, "R110"): 72.2,
    },
}


@pytest.mark.parametrize("number", TYPED)
def test_published_numbers_are_the_papers(number):
    cells = {
        (cell.network, cell.attack, cell.epsilon, " ".join(cell.sources)): cell.value
        for cell in TABLES[number].cells
        if not cell.each_image
    }
    for key, value in TYPED[number].items():
        assert cells[key] == value, key


def test_every_table_is_there_with_a_number_for_each_of_its_cells():
    assert set(TABLES) == set(TYPED)
    published = {
        number: sum(cell.value is not None for cell in table.cells)
        for number, table in TABLES.items()
    }
    # 8, 9: what can be read; 4, 10: the worst case and one source.
    assert published == {1: 8, 2: 24, 3: 54, 4: 12, 8: 9, 9: 7, 10: 12}
    for table in TABLES.values():
        assert all(cell.value is None for cell in table.cells if not cell.published)


@pytest.mark.parametrize("number", [4, 10])
def test_a_worst_case_is_at_most_any_single_source(number):
    for values in TABLES[number].rows.values():
        *single, worst = values
        assert worst <= min(value for value in single if value is not None)


def settings_of(measurement, kind):
    """The settings that the flags of a call mean, checked as the program does."""
    fields = {field.name: field for field in dataclasses.fields(kind)}
    values = {}
    for flag in measurement.command(lambda name: f"runs/{folder(name, 0)}", "out")[1:]:
        name, _, text = flag.removeprefix("--").partition("=")
        values[name] = of_text(kind, fields[name], text)
    return kind(**values)


@pytest.mark.parametrize("dataset", [None, "digits"])
@pytest.mark.parametrize("number", TABLES)
def test_the_calls_of_a_table_measure_each_of_its_cells(number, dataset):
    table = TABLES[number]
    told = [settings_of(one, EvaluationSettings) for one in measurements(number, dataset=dataset)]
    runs = {name: f"runs/{folder(name, 0)}" for name in table.networks}
    for cell in table.cells:
        assert any(
            runs[cell.network] in one.target
            and {runs[source] for source in cell.sources} <= set(one.source)
            and bool(cell.sources) == bool(one.source)
            and (
                cell.attack == "clean"
                or (
                    cell.attack in one.attack
                    and cell.epsilon in (one.cw_threshold if cell.kind == "count" else one.epsilon)
                )
            )
            for one in told
        ), cell
    assert {one.dataset for one in told} == {dataset or table.dataset}


def test_how_many_images():
    counts = {
        one.name: (settings_of(one, EvaluationSettings).num_images, one.gradients)
        for one in measurements(2, seed=3)
    }
    # One gradient serves both one-step attacks' epsilons each; N = floor(76.5 + 4) = 80 each.
    assert counts["table2-one_step-s3"] == (10_000, 2 * 10_000 * 4)
    assert counts["table2-iterative-s3"] == (2_000, 2 * 80 * 2_000 * 4)
    assert counts["table2-cw-s3"][0] == 100
    assert counts["table2-strong-s3"][0] == 1_000
    (few,) = {
        settings_of(one, EvaluationSettings).num_images
        for one in measurements(2, dataset="digits", images=Images(360, 360, 360, 360))
    }
    assert few == 360


def test_sources_are_attacked_for_all_targets_at_once():
    (call,) = measurements(4)
    assert call.sources == tuple(SEVEN.split())
    assert call.command(lambda name: f"r/{folder(name, 1)}", "out") == (
        "bin/evaluate",
        "--target=r/R110_K-s1,r/R110_E-s1,r/R110_P-s1,r/R110_K-C-s1,r/R110_P-E-s1,r/R110_P-C-s1",
        "--source=r/R110_2-s1,r/R110_K2-s1,r/R110_E2-s1,r/R110_P2-s1,r/R110_K-C2-s1,"
        "r/R110_P-E2-s1,r/R110_P-C2-s1",
        "--dataset=cifar10",
        "--attack=iter_fgsm",
        "--epsilon=16",
        "--num_images=2000",
        "--diagnosis_images=0",
        "--output=out",
    )


@pytest.mark.parametrize("number", FIGURES)
def test_the_calls_of_a_figure_are_ones_that_bin_analyze_takes(number):
    calls = figure_measurements(number, seed=0)
    assert len({one.name for one in calls}) == len(calls)
    for one in calls:
        settings = settings_of(one, FigureSettings)
        kind = KINDS[settings.figure]
        check_options(settings, kind)
        assert len(settings.model) >= kind.networks
        assert min(settings.epsilons) >= kind.lowest
        assert one.gradients > 0


def test_networks_of_tables_and_figures_are_recipes_or_variants_of_them():
    for figure in FIGURES.values():
        assert set(figure.networks) <= set(RECIPES) | set(VARIANTS)
    assert {variant.recipe for variant in VARIANTS.values()} <= set(RECIPES)
    for table in TABLES.values():
        assert set(table.networks) <= set(RECIPES)
        assert {RECIPES[name].dataset for name in table.networks} == {table.dataset}
        assert {RECIPES[name].depth for name in table.networks} == {table.depth}
    assert all(name.replace("-", "").isascii() for name in VARIANTS)


def test_numbers_that_are_no_tables_are_refused():
    with pytest.raises(InputError, match="table: must be one of 1, 2, 3, 4, 8, 9, 10, got 5"):
        measurements(5)
    with pytest.raises(InputError, match="figure: must be one of 1, 4, 5, 6, 7, 8, 9, got 2"):
        figure_measurements(2)


def test_attacks_of_tables_are_known():
    for table in TABLES.values():
        assert {cell.attack for cell in table.cells} <= {"clean", *ATTACKS}


def test_what_recipes_say_was_published_is_what_the_tables_say():
    """The same numbers stand in both: there for whoever trains, here for whoever compares."""
    named = {"clean": ("clean", 0), "iter": ("iter_fgsm", None), "CW": ("cw_linf", None)}
    compared = 0
    for name, recipe in RECIPES.items():
        for number in (2, 3, 10):
            cells = [cell for cell in TABLES[number].cells if cell.network == name]
            for said in recipe.published.split(", ") if cells else ():
                *_, what, value = said.split()
                attack, epsilon = named[what]
                largest = 76.5 if number == 2 else 4 if number == 3 else 16
                found = [
                    cell.value
                    for cell in cells
                    if (cell.attack, cell.epsilon)
                    == (attack, largest if epsilon is None else epsilon)
                    and len(cell.sources) == (7 if said.startswith("worst") else 0)
                    and cell.published
                ]
                assert found == [float(value)], (name, said)
                compared += 1
    assert compared == 3 * 4 + 3 * 6 + 6
