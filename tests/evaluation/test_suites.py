"""AutoAttack in an evaluation: its stages, what it goes on to, and what a kill leaves of both."""

import dataclasses
import json
import pathlib

import numpy as np
import pytest
import tensorflow as tf

import cascade_keras as ck
from cascade_keras import Evaluation, EvaluationSettings, attacks
from cascade_keras.attacks import autoattack
from cascade_keras.attacks.specs import ATTACKS, Attack
from cascade_keras.data import Dataset
from cascade_keras.data.specs import DATASETS
from cascade_keras.errors import InputError
from cascade_keras.evaluation import following, stages
from cascade_keras.evaluation.cells import Cell
from cascade_keras.evaluation.plan import Plan
from cascade_keras.sources import Source

SHAPE, CLASSES, COUNT = (5, 5, 1), 4, 30
RNG = np.random.default_rng(1)
PIXELS = RNG.integers(0, 256, (COUNT, *SHAPE), dtype=np.uint8)
UNIT = PIXELS / np.float32(255)
WEIGHTS = RNG.normal(size=(25, CLASSES)).astype("float32")
NAMES = ATTACKS["autoattack"].stage_names
SMALL = {"iterations": 3, "queries": 40}


def plain(images):
    return tf.reshape(images, [-1, 25]) @ WEIGHTS


def rounded(images):
    """Without gradients: AutoAttack's first two attacks find nothing."""
    return plain(tf.round(8 * images) / 8 + 0 * images)


LABELS = np.argmax(rounded(UNIT), -1).astype("int32")
LABELS[0] = (LABELS[0] + 1) % CLASSES
ROW = dataclasses.replace(
    DATASETS["digits"], name="own", image_shape=SHAPE, crops=(5,), num_classes=CLASSES
)
OWN = Dataset("own", ROW, (PIXELS[:0], LABELS[:0]), (PIXELS, LABELS))


@pytest.fixture(scope="module", autouse=True)
def _zero_gradients_are_all_of_the_diagnosis():
    """They alone raise a flag here; what else is looked at would be compiled for each target."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Plan, "_extra", lambda self: [])  # the checklist's: see conftest.py
        yield


@pytest.fixture(scope="module")
def measured():
    return ck.evaluate(
        {"plain": plain, "rounded": rounded},
        UNIT,
        LABELS,
        [attacks.AutoAttack(**SMALL)],
        [4, 12],
        images=True,
        batch_size=12,
        diagnosis_images=20,
        progress=False,
    )


def test_each_image_has_the_stage_that_broke_it(measured):
    for network, logits in (("plain", plain), ("rounded", rounded)):
        for epsilon in (4, 12):
            key = network, "autoattack", epsilon
            found = measured.stages[key]
            right = measured.predictions[key] == LABELS
            np.testing.assert_array_equal(found == "stands", right)
            seen = np.argmax(logits(measured.images[key]), -1)
            np.testing.assert_array_equal(seen, measured.predictions[key])
            assert np.abs(measured.images[key] - UNIT).max() <= epsilon / 255 + 1e-6
    clean = measured.stages["plain", "autoattack", 12] == "clean"
    np.testing.assert_array_equal(clean, np.argmax(plain(UNIT), -1) != LABELS)
    assert {"stands", "clean", "apgd"} <= set(measured.stages["plain", "autoattack", 12])


def test_it_goes_on_to_square_where_gradients_mislead(measured):
    first, second = (measured.stages["rounded", "autoattack", e] for e in (4, 12))
    assert "square" in second and "stands" in second
    assert set(second[first == "square"]) == {"square"}
    assert not {"square"} & set(measured.stages["plain", "autoattack", 12])
    found = {(r["source"], r["epsilon"]): r for r in measured.to_dict()["stages"]}
    record = found["rounded", 12.0]
    assert record["went_on"] == {
        "to": "square",
        "stood": record["stands"] + sum(second == "square"),
    }
    assert "went_on" not in found["plain", 12.0]
    words = f"which broke {sum(second == 'square')} of the {record['went_on']['stood']} images"
    assert words in " ".join(str(measured).split())
    assert "autoattack (fast, then square)" in measured._repr_markdown_()


def test_passes_are_of_both(measured):
    passes = measured.passes["rounded", "autoattack", 4]
    stood = measured.stages["rounded", "autoattack", 4] == "stands"
    assert (passes.gradients[stood] == 3 + 3 * 3).all()
    # Clean, the last iterate of each start, the ranking of the classes, and 40 queries.
    assert (passes.forwards[stood] == 1 + 1 + 3 + 1 + 40).all()
    records = measured.to_dict()["passes"]
    mean = next(r for r in records if r["source"] == "rounded" and r["epsilon"] == 4)
    assert mean["forwards"] == pytest.approx(passes.forwards.mean())


class Killed(BaseException):
    """Nothing of the package catches it."""


@pytest.fixture(scope="module")
def compiled_once():
    """Of one network: each AutoAttack that it is asked for is made, and traced, a single time."""
    made, make = {}, autoattack.AutoAttack

    def attack(logits_fn, image_shape, epsilons, **options):
        options["stages"] = options.get("stages")
        key = (*epsilons, *sorted(options.items()))
        if key not in made:
            made[key] = make(logits_fn, image_shape, epsilons, **options)
        return made[key]

    with pytest.MonkeyPatch.context() as patch:
        for module in (autoattack, following):
            patch.setattr(module, "AutoAttack", attack)
        yield


@pytest.mark.parametrize("kept", [False, True])
def test_what_a_kill_leaves_is_gone_on_with(kept, tmp_path, compiled_once):
    network = Source("rounded", pathlib.Path("rounded"), SHAPE, "1f", {},
                     lambda images: {"logits": rounded(images)})  # fmt: skip

    def evaluation(name, **changes):
        asked = {"attack": ["autoattack"], "epsilon": [4, 12], "num_images": COUNT, "queries": 40,
                 "batch_size": 12, "diagnosis_images": 10, "pgd_steps": 3, "pgd_restarts": 1,
                 "autoattack_iterations": 3, "output": tmp_path / name}  # fmt: skip
        asked |= {"images_dir": tmp_path / f"{name}-images"} if kept else {}
        asked = EvaluationSettings(**asked | changes)
        return Evaluation(asked, targets=[network], dataset=OWN)

    def result(name):
        return [(tmp_path / name / f"report.{end}").read_bytes() for end in ("json", "md", "csv")]

    whole = evaluation("whole")
    steps = []
    whole.run(steps.append)
    assert steps == sorted(steps) and steps[-1] == whole.work
    suite = Attack("autoattack", (4, 12), {"iterations": 3, "queries": 40}).gradients * COUNT
    for share in (0.8,) if kept else (0.5, 1.01):  # in its second batch, its third, and after
        killed_at = steps[0] + share * suite if share < 1 else whole.work - 1

        def kill(done, killed_at=killed_at):
            if done >= killed_at:
                raise Killed

        with pytest.raises(Killed):
            evaluation("half").run(kill)
    seen = []
    evaluation("half").run(seen.append)
    assert seen[0] > 0
    assert result("half") == result("whole")
    # Of ART, as before, or with other options, it is another evaluation.
    config = tmp_path / "half" / "config.json"
    old = json.loads(config.read_text())
    del old["attack"][0][1]["version"]
    config.write_text(json.dumps(old))
    with pytest.raises(InputError, match="was made with") as error:
        evaluation("half").run()
    assert error.value.setting == "attack"
    with pytest.raises(InputError, match="was made with"):
        evaluation("whole", autoattack="standard").run()


def test_broken_is_what_the_network_takes_for_another_class():
    cell, attack = Cell("a", "a", "autoattack", 8.0), Attack("autoattack", (8,))
    numbers = np.array([0, 0, 1, 2, 2, 6])
    right = np.array([True, False, False, False, True, False])
    told = stages.Told(np.arange(6), np.ones(6), numbers)
    found = stages.records({cell: told}, {cell: right}, {"autoattack": attack})
    (record,) = found["stages"]
    assert record["stands"] == 2 and record["broken_by_rounding"] == 1
    broken = {name: count for name, count in record["broken"].items() if count}
    assert broken == {"clean": 1, "apgd": 1, "square": 1}
    assert found["passes"] == [
        {"source": "a", "attack": "autoattack", "epsilon": 8.0, "gradients": 2.5, "forwards": 1.0}
    ]


def test_what_few_classes_leave_out_is_noted():
    two = Source("two", pathlib.Path("two"), SHAPE, "2f", {},
                 lambda images: {"logits": plain(images)[:, :2]})  # fmt: skip
    row = dataclasses.replace(ROW, num_classes=2)
    labels = np.zeros(COUNT, np.int32)
    dataset = Dataset("own", row, (PIXELS[:0], labels[:0]), (PIXELS, labels))
    asked = EvaluationSettings(attack=["autoattack"], epsilon=[4], num_images=5, output="unused")
    (note,) = Evaluation(asked, targets=[two], dataset=dataset).notes
    assert "leaves out apgd_targeted, which needs 4 classes and is given 2" in note
