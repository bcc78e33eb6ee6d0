"""The same plan under Snakemake, the extra `reproduce`: two jobs at a time, on digits."""

import importlib.util
import json
import os
import pathlib
import subprocess
import sys

import pytest
from support.files import ROOT

from cascade_keras.reproduction import outcomes
from cascade_keras.reproduction.plan import Plan
from cascade_keras.reproduction.settings import ReproductionSettings

pytestmark = pytest.mark.skipif(
    not importlib.util.find_spec("snakemake"), reason="needs the extra reproduce"
)
TINY = {"table": [8], "dataset": "digits", "scale": 0.003, "num_images": 10}


def snakemake(place, *flags, **config):
    """Run Snakemake in a folder and return what it said."""
    config = {**TINY, **config}
    given = [f"{name}={','.join(map(str, value)) if isinstance(value, list) else value}"
             for name, value in config.items()]  # fmt: skip
    command = [sys.executable, "-m", "snakemake", f"--snakefile={ROOT / 'workflow' / 'Snakefile'}"]
    return subprocess.run(
        [*command, "--jobs=2", *flags, "--config", *given],
        cwd=place, env={**os.environ, "PYTHONPATH": str(ROOT)}, capture_output=True, text=True,
    )  # fmt: skip


def test_its_jobs_are_those_of_the_plan(tmp_path):
    done = snakemake(tmp_path, "--dry-run")
    assert done.returncode == 0, done.stderr
    said = done.stdout + done.stderr
    plan = Plan(ReproductionSettings(**TINY))
    for job in plan.jobs:
        assert f"output: {job.stamp}\n" in said, job.name
    assert all(f"\n{rule} " in said for rule in ("train", "evaluate", "page"))


def test_what_the_plan_refuses_is_said(tmp_path):
    done = snakemake(tmp_path, "--dry-run", table=5)
    assert done.returncode != 0
    assert "table: must be one of 1, 2, 3, 4, 8, 9, 10, got 5" in done.stdout + done.stderr


@pytest.mark.long
def test_two_jobs_at_a_time_make_the_table(tmp_path):
    done = snakemake(tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr
    page = json.loads((tmp_path / "reproduction" / "table8.json").read_text())
    assert not page["missing"] and all(number["values"] for number in page["numbers"])
    os.chdir(tmp_path)
    plan = Plan(ReproductionSettings(**TINY))
    assert [job.kind for job in plan.left()] == ["page"]
    # What is deleted, and only that, is made again, from what the programs keep.
    evaluation = plan.job("table8-one_step-s0")
    evaluation.stamp.unlink()
    plan.pages[0].stamp.unlink()
    model = pathlib.Path("reproduction/runs/R20-s0/model.keras").stat().st_mtime_ns
    done = snakemake(tmp_path)
    assert done.returncode == 0 and evaluation.stamp.exists()
    assert pathlib.Path("reproduction/runs/R20-s0/model.keras").stat().st_mtime_ns == model


@pytest.mark.long
def test_what_fails_leaves_the_others_and_what_diverges_is_a_result(tmp_path):
    os.chdir(tmp_path)
    plan = Plan(ReproductionSettings(**TINY))
    in_the_way = plan.run_of("R20_K", 0)
    in_the_way.mkdir(parents=True)
    (in_the_way / "notes").touch()
    outcomes.diverged(plan.job("R20_P-s0"), "the loss is nan", 5)
    done = snakemake(tmp_path, "--keep-going")
    assert done.returncode != 0
    # Snakemake does not measure without it, but the page says what there is.
    page = json.loads(pathlib.Path("reproduction/table8.json").read_text())
    states = {number["network"]: number["state"] for number in page["numbers"]}
    assert "exists and is not a run" in states["R20_K"] and not plan.pages[0].stamp.exists()
    assert states["R20_P"] == "diverged at step 5"
    assert plan.job("R20-s0").done and not pathlib.Path("reproduction/runs/R20_P-s0").exists()
    (in_the_way / "notes").unlink()
    done = snakemake(tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr
    page = json.loads(pathlib.Path("reproduction/table8.json").read_text())
    states = {number["network"]: number["state"] for number in page["numbers"] if number["values"]}
    assert states == {"R20": None, "R20_K": None}
    assert plan.pages[0].stamp.exists() and [job.kind for job in plan.left()] == ["page"]
    # All of it is done, also where it is without what diverged.
    assert "Nothing to be done" in "".join(snakemake(tmp_path).stderr)
