"""Evaluation as a Python user has it, its settings, and reports that 0.1.0 made."""

import dataclasses
import json
import pathlib

import keras
import numpy as np
import pytest
import tensorflow as tf
from support.release import unpack

from cascade_keras import Evaluation, EvaluationSettings, WhiteBox, attacks
from cascade_keras.attacks.specs import ATTACKS, Attack
from cascade_keras.data import Dataset
from cascade_keras.data.specs import DATASETS
from cascade_keras.errors import InputError
from cascade_keras.evaluation.report import RESULT_FIELDS
from cascade_keras.sources import Source

SHAPE, CLASSES, COUNT = (5, 5, 1), 3, 40
RNG = np.random.default_rng(1)
ROW = dataclasses.replace(
    DATASETS["digits"], name="own", image_shape=SHAPE, crops=(5,), num_classes=CLASSES
)
PIXELS = RNG.integers(0, 256, (50, *SHAPE), dtype=np.uint8)
WEIGHTS = RNG.normal(size=(25, CLASSES)).astype("float32")


def logits(images):
    return tf.reshape(images, [-1, 25]) @ WEIGHTS


LABELS = np.argmax(logits(PIXELS / np.float32(255)), -1).astype("int32")  # all right when clean
OWN = Dataset("own", ROW, (PIXELS[:0], LABELS[:0]), (PIXELS, LABELS))
NETWORK = Source("mine", pathlib.Path("mine"), SHAPE, "1f", {"recipe": {"max_epsilon": 16.0}},
                 lambda images: {"logits": logits(images)})  # fmt: skip


def settings(path, **changes):
    asked = {
        "attack": ["step_fgsm", "pgd"], "epsilon": [8, 2], "num_images": COUNT, "pgd_steps": 4,
        "diagnosis_images": 0, "output": path / "report",
    }  # fmt: skip
    return EvaluationSettings(**asked | changes)


def test_networks_and_data_in_memory_give_a_resumable_report(tmp_path):
    evaluation = Evaluation(settings(tmp_path), targets=[NETWORK], dataset=OWN)
    assert not list(tmp_path.iterdir())
    seen = []
    content = evaluation.run(seen.append)
    assert seen[0] == 0 and seen[-1] == evaluation.work
    written = json.loads((tmp_path / "report" / "report.json").read_text())
    assert written == content and content["dataset"] == "own"
    # The same engine counts the same in memory.
    pgd = {"steps": 4, "step_size": None, "restarts": 5, "objective": "margin"}
    asked = [Attack.clean(), Attack("step_fgsm", (2, 8)), Attack("pgd", (2, 8), pgd)]
    white_box = WhiteBox(logits, SHAPE, asked)(PIXELS[:COUNT] / np.float32(255), LABELS[:COUNT])
    keys = [field.name for field in dataclasses.fields(white_box[0])]
    assert [{key: r[key] for key in keys} for r in content["results"]] == [
        dataclasses.asdict(result) for result in white_box
    ]
    assert white_box[0].correct == COUNT > white_box[2].correct
    # Once more, nothing is left to compute and no file changes.
    seen.clear()
    again = Evaluation(settings(tmp_path), targets=[NETWORK], dataset=OWN)
    assert again.run(seen.append) == written and seen == [evaluation.work]
    with pytest.raises(InputError) as error:
        Evaluation(settings(tmp_path, seed=1), targets=[NETWORK], dataset=OWN).run()
    assert error.value.setting == "seed"


def test_every_number_says_its_options(tmp_path):
    content = Evaluation(
        settings(tmp_path, diagnosis_images=5), targets=[NETWORK], dataset=OWN
    ).run()
    pgd = {"steps": 4, "step_size": None, "restarts": 5, "objective": "margin"}
    records = [*content["results"], *content["diagnosis"]["results"],
               *(record["strongest"] for record in content["worst_case"])]  # fmt: skip
    assert all(r["options"] == (pgd if r["attack"] == "pgd" else {}) for r in records)
    assert {r.get("epsilon", 8.0) for r in records if r["attack"] == "pgd"} == {2.0, 8.0, 255.0}
    report = tmp_path / "report"
    assert (report / "report.csv").read_text().startswith(",".join(RESULT_FIELDS) + "\n")
    for name in ("report.md", "report.csv"):
        assert "steps 4, restarts 5, objective margin" in (report / name).read_text()


def test_a_diagnosis_with_other_options_has_other_arrays(tmp_path):
    asked = settings(tmp_path, attack=["step_fgsm"], diagnosis_images=5)
    before = Evaluation(asked, targets=[NETWORK], dataset=OWN).run()
    seen = []
    changed = Evaluation(asked.replace(pgd_steps=2), targets=[NETWORK], dataset=OWN)
    after = changed.run(seen.append)
    assert seen[0] < changed.work and before["results"] == after["results"]
    steps = {r["options"]["steps"] for r in after["diagnosis"]["results"] if r["options"]}
    assert steps == {2}


def test_sources_may_be_keras_models_in_memory(tmp_path):
    images = keras.Input(SHAPE)
    dense = keras.layers.Dense(CLASSES, use_bias=False)
    model = keras.Model(images, dense(keras.layers.Flatten()(images)), name="model")
    dense.set_weights([WEIGHTS])
    content = Evaluation(
        settings(tmp_path, attack=["step_fgsm"], epsilon=[8]),
        targets=[NETWORK], sources=[model], dataset=OWN,
    ).run()  # fmt: skip
    asked = [Attack("step_fgsm", (8,))]
    (alone,) = WhiteBox(logits, SHAPE, asked)(PIXELS[:COUNT] / np.float32(255), LABELS[:COUNT])
    assert [(r["source"], r["correct"]) for r in content["results"]] == [
        (None, COUNT), ("model", alone.correct)]  # fmt: skip
    with pytest.raises(InputError) as error:
        Evaluation(settings(tmp_path, dataset="mnist"), targets=[NETWORK], dataset=OWN)
    assert error.value.setting == "dataset"


@pytest.mark.parametrize("epsilon", [(0.3, 8.0), (0.0, 8.0)])
def test_epsilons_below_one_pixel_value_are_noted(epsilon, tmp_path):
    asked = settings(tmp_path, epsilon=epsilon, attack=["iter_fgsm"], num_images=5)
    evaluation = Evaluation(asked, targets=[NETWORK], dataset=OWN)
    said = evaluation.notes
    assert evaluation.run()["notes"] == said and len(said) == (epsilon[0] == 0.3)
    for note in said:
        assert "0..255 units, so 0.3 of the whole range is 76.5" in note and "up to 16" in note
        assert note in (tmp_path / "report" / "report.md").read_text()


def test_settings_follow_from_rows():
    asked = EvaluationSettings(target=["a"])
    for name in ("pgd", "autoattack", "cw_linf"):
        assert Attack(name, (8,), asked.options(name)).options == ATTACKS[name].options
    assert set(attacks.OBJECTIVES) >= {
        choice
        for field in dataclasses.fields(asked)
        if field.name == "pgd_loss"
        for choice in field.metadata["choices"]
    }
    epsilons = EvaluationSettings(target=["a"], epsilon=[8, 2, 8]).resolved([NETWORK], None, ROW)
    assert epsilons.epsilon == epsilons.cw_threshold == (2.0, 8.0)
    assert asked.resolved([NETWORK], None, ROW).epsilon == (ROW.max_epsilon,)


REFUSED = [
    ("target", ["a", "./a"], "named twice"), ("source", ["a", "a"], "named twice"),
    ("attack", ["fgsm"], "one of step_ll"), ("attack", ["pgd", "pgd"], "each once"),
    ("attack", [], "at least one"), ("epsilon", [8, 256], "0..255"), ("epsilon", [-1], "0..255"),
    ("epsilon", [float("nan")], "finite"), ("epsilon", [], "0..255"),
    ("cw_threshold", [300], "0..255"), ("num_images", 0, "above 0"), ("batch_size", 0, "above 0"),
    ("pgd_restarts", 0, "above 0"), ("pgd_step_size", 0, "above 0"), ("pgd_loss", "hinge", "dlr"),
    ("diagnosis_images", -1, "0 or above"), ("inference_noise", 256, "0..255"),
    ("seed", -1, "2147483647"), ("split", "both", "test, train"), ("dataset", "svhn", "mnist"),
]  # fmt: skip


@pytest.mark.parametrize(("name", "value", "words"), REFUSED)
def test_settings_refuse_what_cannot_be(name, value, words):
    with pytest.raises(InputError, match=words) as error:
        EvaluationSettings(**{"target": ["a"], name: value})
    assert error.value.setting == name


def test_home_is_expanded_in_every_path(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    names = ("output", "images_dir", "data_dir")
    asked = EvaluationSettings(target=["a"], **dict.fromkeys(names, "~/here"))
    assert {getattr(asked, name) for name in names} == {str(tmp_path / "here")}
    asked = EvaluationSettings(target=["~/a"], source=["~/b"])
    assert (asked.target, asked.source) == ((f"{tmp_path}/a",), (f"{tmp_path}/b",))


# What 0.1.0 left.


def content_of(name):
    return json.loads(pathlib.Path("reports", name, "report.json").read_text())


def as_asked_then(name):
    return EvaluationSettings(
        target=["saved/finished"], attack=["step_ll", "iter_fgsm"], epsilon=[2, 8], num_images=20,
        diagnosis_images=10, output=f"reports/{name}",
    )  # fmt: skip


def test_reports_of_the_first_release_are_read_and_gone_on_with(tmp_path, monkeypatch):
    monkeypatch.chdir(unpack(tmp_path))
    before = content_of("finished")
    arrays = {path: path.read_bytes() for path in pathlib.Path("reports").glob("*/*/*.npy")}
    options = {"options": {}}
    results = [record | options for record in before["results"]]
    for name in ("finished", "half"):
        # The diagnosis' pgd was another one then: what is there of it is neither read nor changed.
        for path in pathlib.Path("reports", name, "predictions").glob("*--pgd--*.npy"):
            np.lib.format.open_memmap(path, mode="r+")[...] = 5
            arrays[path] = path.read_bytes()
        after = Evaluation(as_asked_then(name)).run()
        assert after == content_of(name) and after["results"] == results
        for key in ("worst_case", "networks", "attacks", "examples", "dataset_fingerprint"):
            then, now = json.loads(json.dumps(before[key])), json.loads(json.dumps(after[key]))
            for record in now if key == "worst_case" else ():
                assert record["strongest"].pop("options") == {}
            assert now == then
        found = [r for r in after["diagnosis"]["results"] if r["attack"] == "pgd"]
        assert all(r["options"] == ATTACKS["pgd"].options for r in found) and len(found) == 3
        assert max(r["correct"] for r in found) <= 1  # not what the spoilt arrays say
        plain = [r for r in after["diagnosis"]["results"] if r["attack"] != "pgd"]
        then = [r for r in before["diagnosis"]["results"] if r["attack"] != "pgd"]
        assert plain == [record | options for record in then]
    finished = [path for path in arrays if "finished" in path.parts or "pgd" in path.name]
    assert all(path.read_bytes() == arrays[path] for path in finished)
    with pytest.raises(InputError) as error:
        Evaluation(as_asked_then("half").replace(split="train")).run()
    assert error.value.setting == "split"
