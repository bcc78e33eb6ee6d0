"""Evaluation as a Python user has it, its settings, and reports that 0.1.0 made."""

import dataclasses
import json
import pathlib
import shutil
import types

import keras
import numpy as np
import pytest
import tensorflow as tf
from support.release import unpack

from cascade_keras import Evaluation, EvaluationSettings, WhiteBox, attacks, figures
from cascade_keras.attacks.specs import ATTACKS, Attack
from cascade_keras.data import Dataset
from cascade_keras.data.specs import DATASETS
from cascade_keras.errors import InputError
from cascade_keras.learned import learned_by
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
    asked = {"attack": ["step_fgsm"], "epsilon": [8, 2], "num_images": COUNT, "pgd_steps": 4,
             "diagnosis_images": 0, "output": path / "report"}  # fmt: skip
    return EvaluationSettings(**asked | changes)


def evaluation(path, sources=None, **changes):
    asked = settings(path, **changes)
    return Evaluation(asked, targets=[NETWORK], sources=sources, dataset=OWN)


def in_memory(*asked):
    """What the same engine finds without a directory."""
    return WhiteBox(logits, SHAPE, asked)(PIXELS[:COUNT] / np.float32(255), LABELS[:COUNT])


def test_networks_and_data_in_memory_give_a_resumable_report(tmp_path):
    first = evaluation(tmp_path, diagnosis_images=5)
    assert not list(tmp_path.iterdir())
    seen = []
    content = first.run(seen.append)
    assert seen[0] == 0 and seen == sorted(seen) and seen[-1] == first.work
    report = tmp_path / "report"
    assert json.loads((report / "report.json").read_text()) == content
    assert content["dataset"] == "own"
    found = in_memory(Attack.clean(), Attack("step_fgsm", (2, 8)))
    fields = dataclasses.asdict(found[0])
    assert [{key: r[key] for key in fields} for r in content["results"]] == [
        dataclasses.asdict(result) for result in found
    ]
    assert found[0].correct == COUNT > found[2].correct

    def options(content):
        records = content["diagnosis"]["results"]
        return {(r["attack"], r["epsilon"]): r["options"] for r in records if r["options"]}

    pgd = {"steps": 4, "step_size": None, "restarts": 5, "objective": "margin"}
    assert options(content) == {("pgd", epsilon): pgd for epsilon in (2.0, 8.0, 255.0)}
    assert "steps 4, restarts 5, objective margin" in (report / "report.md").read_text()
    # Once more, nothing is left to compute; and a diagnosis with other options has other arrays.
    seen.clear()
    assert evaluation(tmp_path, diagnosis_images=5).run(seen.append) == content
    assert seen == [first.work]
    seen.clear()
    changed = evaluation(tmp_path, diagnosis_images=5, pgd_steps=2)
    after = changed.run(seen.append)
    assert seen[0] < changed.work and after["results"] == content["results"]
    assert options(after) == {cell: pgd | {"steps": 2} for cell in options(content)}
    with pytest.raises(InputError) as error:
        evaluation(tmp_path, diagnosis_images=5, seed=1).run()
    assert error.value.setting == "seed"


def test_sources_may_be_keras_models_in_memory(tmp_path):
    images = keras.Input(SHAPE)
    dense = keras.layers.Dense(CLASSES, use_bias=False)
    model = keras.Model(images, dense(keras.layers.Flatten()(images)), name="model")
    dense.set_weights([WEIGHTS])
    content = evaluation(tmp_path, [model], epsilon=[8]).run()
    (alone,) = in_memory(Attack("step_fgsm", (8,)))
    shown = [(None, COUNT), ("model", alone.correct)]
    assert [(r["source"], r["correct"]) for r in content["results"]] == shown
    with pytest.raises(InputError) as error:
        evaluation(tmp_path, dataset="mnist")
    assert error.value.setting == "dataset"


def test_wide_images_and_names_of_classes(tmp_path, monkeypatch):
    shape, names = (3, 6, 1), ("cat", "dog", "a ship")
    rng = np.random.default_rng(0)
    pixels = rng.integers(0, 256, (20, *shape), dtype=np.uint8)
    weights = rng.normal(size=(18, CLASSES)).astype("float32")

    def wide(images):
        return {"logits": tf.reshape(images, [-1, 18]) @ weights}

    labels = np.argmax(wide(pixels / np.float32(255))["logits"], -1).astype("int32")
    row = dataclasses.replace(ROW, image_shape=shape, crops=(shape[:2],), class_names=names)
    given = Dataset("wide", row, (pixels[:0], labels[:0]), (pixels, labels))
    network = Source("mine", None, shape, "2f", {}, wide)
    drawn = {"confusion": [], "examples": []}
    for name in drawn:
        draw = getattr(figures, name)

        def drawing(*arguments, draw=draw, name=name, **others):
            drawn[name].append(arguments)
            return draw(*arguments, **others)

        monkeypatch.setattr(figures, name, drawing)
    asked = settings(tmp_path, epsilon=[60], num_images=20, confusion=True, examples=2)
    content = Evaluation(asked, targets=[network], dataset=given).run()
    assert content["results"][0]["correct"] == 20 > content["results"][1]["correct"]
    assert [tuple(classes) for _, classes in drawn["confusion"]] == [names, names]
    ((clean, adversarial, titles),) = drawn["examples"]
    assert clean.shape == adversarial.shape == (2, *shape)
    seen = np.argmax(wide(adversarial)["logits"], -1)
    chosen = [np.flatnonzero((pixels / np.float32(255) == image).all(axis=(1, 2, 3)))[0]
              for image in clean]  # fmt: skip
    assert titles == [
        (names[labels[i]], f"{names[labels[i]]} → {names[wrong]}")
        for i, wrong in zip(chosen, seen, strict=True)
    ]


def test_a_dataset_that_is_not_of_pixels_is_refused(tmp_path):
    """Floats would be divided by 255 once more."""
    floats = dataclasses.replace(OWN, test=(PIXELS / np.float32(255), LABELS))
    with pytest.raises(InputError, match=r"own \(test\): images must be uint8 of shape"):
        Evaluation(settings(tmp_path), targets=[NETWORK], dataset=floats)
    assert not list(tmp_path.iterdir())


def test_epsilons_below_one_pixel_value_are_noted(tmp_path):
    assert evaluation(tmp_path, epsilon=[0, 8]).notes == []
    small = evaluation(tmp_path, epsilon=[0.3, 8], num_images=5)
    assert small.run()["notes"] == small.notes
    (note,) = small.notes
    assert "0..255 units, so 0.3 of the whole range is 76.5" in note and "up to 16" in note
    assert note in (tmp_path / "report" / "report.md").read_text()


def test_settings_follow_from_rows():
    asked = EvaluationSettings(target=["a"])
    for name in ("pgd", "mi_fgsm", "autoattack", "square", "cw_linf"):
        assert Attack(name, (8,), asked.options(name)).options == ATTACKS[name].options
    fields = {field.name: field.metadata for field in dataclasses.fields(asked)}
    assert set(attacks.OBJECTIVES) >= set(fields["pgd_loss"]["choices"])
    epsilons = EvaluationSettings(target=["a"], epsilon=[8, 2]).resolved([NETWORK], None, ROW)
    assert epsilons.epsilon == epsilons.cw_threshold == (2.0, 8.0)
    assert asked.resolved([NETWORK], None, ROW).epsilon == (ROW.max_epsilon,)


REFUSED = [
    ("target", ["a", "./a"], "named twice"), ("source", ["a", "a"], "named twice"),
    ("attack", ["fgsm"], "one of step_ll"), ("attack", ["pgd", "pgd"], "each once"),
    ("attack", [], "at least one"), ("epsilon", [8, 256], "0..255"), ("epsilon", [-1], "0..255"),
    ("epsilon", [float("nan")], "finite"), ("epsilon", [], "0..255"),
    ("cw_threshold", [300], "0..255"), ("num_images", 0, "above 0"), ("batch_size", 0, "above 0"),
    ("pgd_restarts", 0, "above 0"), ("pgd_step_size", 0, "above 0"), ("pgd_loss", "hinge", "dlr"),
    ("mi_fgsm_diversity", 1.1, r"in \[0, 1\]"), ("mi_fgsm_translation", 4, "odd"),
    ("diagnosis_images", -1, "0 or above"), ("inference_noise", 256, "0..255"),
    ("seed", -1, "2147483647"), ("split", "both", "test, train"), ("dataset", "Svhn", "mnist"),
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


def pgd_arrays(name):
    return list(pathlib.Path("reports", name, "predictions").glob("*--pgd--*.npy"))


def test_every_network_is_looked_for_before_one_is_loaded():
    known = types.SimpleNamespace(provenance={"dataset": "digits"})
    assert learned_by({"target": [object(), known]}) == (known, {"name": "digits"})
    with pytest.raises(InputError, match="source: nobody does not exist"):
        learned_by({"target": [known], "source": [known, "nobody"]})


@pytest.mark.long
def test_reports_of_the_first_release_are_read_and_gone_on_with(tmp_path, monkeypatch):
    monkeypatch.chdir(unpack(tmp_path))
    asked = EvaluationSettings(target=["saved/finished"], attack=["step_ll", "iter_fgsm"],
                               epsilon=[2, 8], num_images=20, diagnosis_images=10)  # fmt: skip
    before = content_of("finished")
    # The diagnosis' pgd was another one then: what is there of it is neither read nor changed.
    for path in (*pgd_arrays("finished"), *pgd_arrays("half")):
        np.lib.format.open_memmap(path, mode="r+")[...] = 5
    arrays = {path: path.read_bytes() for path in pathlib.Path("reports").glob("*/*/*.npy")}
    kept = {path for path in arrays if "finished" in path.parts or "--pgd--" in path.name}
    for name in ("finished", "half"):
        evaluation = Evaluation(asked.replace(output=f"reports/{name}"))
        spent = evaluation.seconds.crafting
        after = evaluation.run()
        assert evaluation.seconds.crafting > spent > 1.7  # as predictions/seconds.json said
        assert after == content_of(name)
        assert after["results"] == [record | {"options": {}} for record in before["results"]]
        for key in ("networks", "attacks", "examples", "dataset_fingerprint"):
            assert after[key] == before[key]
        for then, now in zip(before["worst_case"], after["worst_case"], strict=True):
            assert now == then | {"strongest": then["strongest"] | {"options": {}}}
        found, then = (content["diagnosis"]["results"] for content in (after, before))
        plain = [record | {"options": {}} for record in then if record["attack"] != "pgd"]
        assert [record for record in found if record["attack"] != "pgd"] == plain
        found = [record for record in found if record["attack"] == "pgd"]
        assert [record["options"] for record in found] == [ATTACKS["pgd"].options] * 3
        assert max(record["correct"] for record in found) <= 1  # not what the spoilt arrays say
        for path in set(pgd_arrays("finished")) - kept:  # which takes longest
            shutil.copy(path, "reports/half/predictions")
    assert all(path.read_bytes() == arrays[path] for path in kept)
    with pytest.raises(InputError) as error:
        Evaluation(asked.replace(output="reports/half", split="train")).run()
    assert error.value.setting == "split"
