"""The plan of a reproduction: which networks in which order, what they cost, what is done."""

import itertools
import pathlib

import numpy as np
import pytest
from support.reproductions import write_run

from cascade_keras.cli.flags import define, given, read
from cascade_keras.cli.train import _settings
from cascade_keras.crafting import CraftSettings
from cascade_keras.errors import InputError
from cascade_keras.evaluation.settings import EvaluationSettings
from cascade_keras.figures.settings import FigureSettings
from cascade_keras.reproduction.jobs import TRAINED
from cascade_keras.reproduction.plan import Plan, expected_iterations, training_gradients
from cascade_keras.reproduction.settings import ReproductionSettings
from cascade_keras.runs import settings as training_settings
from cascade_keras.runs.settings import RecipeSettings, TrainingSettings
from cascade_keras.settings import as_flags, of_flags

# METHOD.md: what the rows and columns of each table are, what these need, and that before them.
NETWORKS = {
    1: "init-B R20 R20_K init-C R20_2 R20_K2",
    2: "init-A R20M R20M_K R20M_B R20M_P",
    3: "init-H R110_K R110_P init-J R110_3 R110_E R110_K,C R110_P,E R110_P,C",
    4: "init-H R110_K init-J R110_3 R110_E R110_P R110_K,C R110_P,E R110_P,C "
    "init-I R110_2 R110_K2 init-K R110_4 R110_E2 R110_P2 R110_K,C2 R110_P,E2 R110_P,C2",
    8: "init-B R20 R20_K R20_P",
    9: "init-C R20_2 R20_K2 R20_P2 init-B R20 R20_K R20_P",
    10: "init-I R110_K2 init-K R110_4 R110_E2 R110_P2 R110_K,C2 R110_P,E2 R110_P,C2 "
    "init-H R110 R110_K init-J R110_3 R110_E R110_P R110_K,C R110_P,E R110_P,C",
}
BANKS = {("table", 3): "R110_P", ("table", 4): "R110_P R110_P2", ("table", 10): "R110_P2 R110_P"}
FIGURES = {
    1: "init-B R20 R20_K init-C R20_2 R20_K2",
    7: "init-B R20 R20_K R20_P",
    8: "init-B R20 R20_K R20_P",
}


def plan_of(**options):
    return Plan(ReproductionSettings(**options))


def trained(plan):
    return [job for job in plan.jobs if job.kind in TRAINED]


@pytest.mark.parametrize(
    ("kind", "number"), [*(("table", n) for n in NETWORKS), *(("figure", n) for n in FIGURES)]
)
def test_a_table_is_planned_with_all_that_it_needs(kind, number):
    plan = plan_of(**{kind: [number]})
    expected = {"table": NETWORKS, "figure": FIGURES}[kind][number].split()
    names = [f"{name.replace(',', '-')}-s0" for name in expected]
    assert [job.name for job in trained(plan)] == names
    done = set()
    for job in plan.jobs:
        assert set(job.needs) <= done
        done.add(job.name)
    assert plan.jobs[-1].name == f"{kind}{number}"
    banks = [job.name for job in plan.jobs if job.kind == "bank"]
    assert banks == [f"bank-{name}-s0" for name in BANKS.get((kind, number), "").split()]


def test_everything_is_every_network_and_several_variants():
    plan = plan_of(all=True)
    names = {job.name.removesuffix("-s0") for job in trained(plan)}
    every = {name.replace(",", "-") for row in NETWORKS.values() for name in row.split()}
    assert every < names
    assert {"R20_B", "R20_P-C", "R56_K", "init-G", "R20M-2d", "R20_P-lambda0.3"} <= names
    pages = [job.name for job in plan.jobs if job.kind == "page"]
    assert pages == [*(f"table{n}" for n in NETWORKS), *(f"figure{n}" for n in (1, *range(4, 10)))]
    assert plan_of(all=True, dataset="digits").jobs[-1].settings.dataset == "digits"


def test_seeds_are_networks_of_their_own():
    plan = plan_of(table=[8], seeds=[0, 2])
    names = [job.name for job in trained(plan)]
    assert names == [f"{name}-s{seed}" for seed in (0, 2) for name in NETWORKS[8].split()]
    assert [job.settings.seed for job in trained(plan)] == [*[1000] * 4, *[1002] * 4]
    assert {"table8-iterative-s0", "table8-iterative-s2"} <= {*plan.job("table8").needs}


def test_20_layers_are_shared_with_the_networks_that_have_them():
    names = [job.name for job in trained(plan_of(table=[3], depth=20, scale=0.25))]
    expected = "init-B R20_K R20_P init-D R20_3 R20_E R20_K,C R20_P,E R20_P,C"
    assert " ".join(names) == expected.replace(",", "-").replace(" ", "-s0 ") + "-s0"
    plan = plan_of(table=[4], depth=20)
    assert all(job.settings.model == "resnet20" for job in trained(plan))
    job = plan.job("R20_P-C2-s0")
    assert "bank-R20_P2-s0" in job.needs and job.settings.seed == 2000


def test_a_command_says_what_its_job_does(monkeypatch):
    monkeypatch.setattr(training_settings, "_check_trained", lambda *given: None)
    plans = (
        plan_of(table=[2, 3], scale=0.1, seeds=[1], data_dir="data"),
        plan_of(table=[4], figure=[4, 5], depth=20),
        plan_of(table=[1], figure=[9], dataset="digits", scale=0.02, num_images=50),
    )
    classes = {"craft": CraftSettings, "evaluate": EvaluationSettings, "analyze": FigureSettings,
               "reproduce": ReproductionSettings}  # fmt: skip
    for job in itertools.chain.from_iterable(plan.jobs for plan in plans):
        program, *flags = job.command
        assert program == f"bin/{job.program}"
        if job.program == "train":
            values = define(TrainingSettings, define(RecipeSettings))
            found = _settings(values) if values([program, *flags]) else None
        else:
            values = define(classes[job.program])
            values([program, *flags])
            found = read(values, classes[job.program])
        assert found == job.settings, job.name


def test_a_recipe_is_named_where_there_is_one():
    plan = plan_of(table=[1], figure=[4], scale=0.5, seeds=[2])
    assert plan.job("R20_K2-s2").command == (
        "bin/train", "--recipe=R20_K2", "--seed=2", "--runs_dir=reproduction/runs",
        "--steps=47000", "--warmup_steps=200", "--noexport", "--eval_attacks=none",
        "--tensorboard=scalars",
    )  # fmt: skip
    flat = plan.job("R20M-2d-s2")
    assert flat.settings.model == "resnet20_e2" and flat.settings.embedding_at == "bottleneck"
    assert flat.settings.init_from is None and not flat.needs
    assert not any("--recipe" in flag for flag in flat.command)


def test_flags_and_settings_are_each_other():
    asked = EvaluationSettings(
        target=["a,b", 'c"d'], epsilon=[0.1, 2, 76.5], confusion=True, batch_size=None,
        diagnosis_images=0,
    )  # fmt: skip
    flags = as_flags(asked)
    values = define(EvaluationSettings)
    values(["evaluate", *flags])
    assert read(values, EvaluationSettings) == asked == of_flags(EvaluationSettings, flags)
    assert given(values, EvaluationSettings)["epsilon"] == (0.1, 2.0, 76.5)
    back = of_flags(EvaluationSettings, ["--noconfusion", "--batch_size=250"], asked)
    assert back == asked.replace(confusion=False, batch_size=250)
    with pytest.raises(InputError, match="there is no flag"):
        of_flags(EvaluationSettings, ["--nothing=1"])
    with pytest.raises(ValueError, match="leaves epsilon out"):
        as_flags(EvaluationSettings(), asked)


# Costs.


@pytest.mark.parametrize("largest", [16, 76.5, 8])
def test_the_mean_iterations_are_those_of_the_formula(largest):
    # METHOD.md, section 2: eps = min(floor(|N(0, 8)| clipped to 16), 15) + 1, here by drawing.
    drawn = np.abs(np.random.default_rng(0).normal(0, largest / 2, 1_000_000)).clip(max=largest)
    epsilons = np.minimum(np.floor(drawn), np.floor(largest) - 1) + 1
    steps = np.maximum(np.floor(np.minimum(epsilons + 4, 1.25 * epsilons)), 1)
    assert expected_iterations(largest) == pytest.approx(steps.mean(), abs=0.03)


def test_gradients_of_a_step():
    def of(**flags):
        return training_gradients(TrainingSettings(dataset="digits", **flags).resolved())

    assert of(loss="standard") == 128
    assert of(loss="kurakin") == of(loss="pivot") == 128 + 64
    cascade = {"loss": "pivot", "cascade_source": ["x"], "max_epsilon": 16}
    assert of(**cascade, cascade_mode="bank") == 128 + 32
    online = 32 * expected_iterations(16)
    assert of(**cascade, cascade_mode="online") == 128 + 32 + online


def test_a_bank_is_made_where_it_takes_fewer_gradients():
    # 50,000 images of 44 gradients, or 32 a step of about 8: from 8,300 steps on.
    assert "bank-R20_P-s0" in plan_of(table=[3], depth=20, scale=0.1).job("R20_P-C-s0").needs
    short = plan_of(table=[3], depth=20, scale=0.05).job("R20_P-C-s0")
    assert short.settings.cascade_mode == "online" and "bank-R20_P-s0" not in short.needs


# What is done.


@pytest.fixture
def output(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_runs_that_were_trained_elsewhere_are_taken(output):
    plan = plan_of(table=[2], scale=0.1)
    names = [job.name for job in plan.left()]
    assert names == [job.name for job in plan.jobs]
    job = plan.job("R20M_P-s0")
    write_run(job.settings, init_from="/gpu/start", jit_compile="on", eval_examples=77)
    assert [job.name for job in plan.left()] == [name for name in names if name != "R20M_P-s0"]
    write_run(job.settings.replace(distance_weight=0.3))
    with pytest.raises(InputError) as caught:
        plan.left()
    assert caught.value.setting == "output"
    assert caught.value.message == (
        "reproduction/runs/R20M_P-s0 was trained with distance_weight 0.3, here it is 0.0001; "
        "remove it, or name another output"
    )
    with pytest.raises(InputError, match="init_from"):
        write_run(job.settings, init_from=None)
        plan.left()
    with pytest.raises(InputError, match="trained with steps 800"):
        write_run(job.settings)
        plan_of(table=[2], scale=0.2).left()


def test_a_run_that_is_not_finished_or_damaged_is_not_done(output):
    plan = plan_of(table=[2], scale=0.1)
    job = plan.job("R20M_P-s0")
    write_run(job.settings, finished=False)
    assert job in plan.left()
    write_run(job.settings)
    assert job not in plan.left()
    pathlib.Path("reproduction/runs/R20M_P-s0/model.keras").write_bytes(b"PK")
    with pytest.raises(InputError, match=r"model\.keras is damaged"):
        plan.left()


def test_what_is_measured_needs_its_networks_no_longer(output):
    plan = plan_of(table=[8])
    for name in plan.job("table8").needs:
        job = plan.job(name)
        job.result.parent.mkdir(parents=True)
        job.result.touch()
        assert job in plan.left()
        job.mark()
    assert [job.name for job in plan.left()] == ["table8"]
    # Other images, or networks of another length, are another measurement.
    assert len(plan_of(table=[8], num_images=50).left()) == len(plan.jobs)
    assert len(plan_of(table=[8], scale=0.5).left()) == len(plan.jobs)
    # Where the folder lies, and the data, is not.
    pathlib.Path("reproduction").rename("other")
    moved = plan_of(table=[8], output="other", data_dir="data")
    assert [job.name for job in moved.left()] == ["table8"]


def test_nothing_wanted_is_refused():
    with pytest.raises(InputError, match="name a table, a figure or all"):
        plan_of()
