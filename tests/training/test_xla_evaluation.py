"""What benchmarks/xla measures of networks is what bin/evaluate measures of them."""

import dataclasses
import importlib
import pathlib
import sys

import keras
import numpy as np
import pytest
import tensorflow as tf

from cascade_keras import draws
from cascade_keras.attacks.autoattack import AutoAttack
from cascade_keras.attacks.epsilons import at_epsilon
from cascade_keras.attacks.projected import start_in
from cascade_keras.attacks.searches import in_whole_batches
from cascade_keras.attacks.specs import ATTACKS
from cascade_keras.errors import InputError
from cascade_keras.evaluation import crafting
from cascade_keras.sources import load_source

FOLDER = pathlib.Path(__file__).parents[2] / "benchmarks" / "xla"
SHAPE, COUNT, BATCH = (6, 5, 1), 45, 20


def module(name):
    sys.path.insert(0, str(FOLDER))
    try:
        return importlib.import_module(name)
    finally:
        sys.path.remove(str(FOLDER))


lowering, evaluating, reading = map(module, ("lower_evaluation", "evaluating", "read_evaluation"))
PLAN = lowering.Plan(
    epsilons=(9.0, 4.0),
    attacks=("step_ll", "iter_fgsm", "pgd", "autoattack"),
    transfer=("iter_fgsm",),
    examples=COUNT,
    together=16,
    batch_size=BATCH,
    seed=3,
    pgd_steps=4,
    pgd_restarts=3,
    iterations=6,
    queries=40,
)


def network(seed):
    """Return one whose gradients are far from zero, so that rounding changes no sign."""
    keras.utils.set_random_seed(seed)
    layers = [keras.Input(SHAPE), keras.layers.Flatten(), keras.layers.Dense(9, activation="tanh")]
    return keras.Sequential([*layers, keras.layers.Dense(5)])


@pytest.fixture(scope="module")
def networks():
    return {name: network(seed) for seed, name in enumerate(("one", "other"))}


@pytest.fixture(scope="module")
def given(networks):
    """Images whose labels are what the first network takes nearly all of them for."""
    images = np.random.default_rng(1).integers(0, 256, (COUNT, *SHAPE)).astype(np.float32)
    images /= np.float32(255)
    labels = np.argmax(networks["one"](images), axis=-1).astype(np.int32)
    labels[:4] = (labels[:4] + 1) % 5
    keys = draws.image_keys(PLAN.seed, np.arange(COUNT)).numpy()
    return {"images": images, "labels": labels, "keys": keys}


def measured(networks, given, plan, *, compiled=False):
    """Return what is right under each attack on the first network, by the programs of a plan."""
    programs, stages = {}, ["apgd", "apgd_targeted", "fab", "square"]
    with lowering.draws_of_cpu(), in_whole_batches():
        for name, model in networks.items():
            for part, (function, arguments) in lowering.parts(model, plan, SHAPE, 5).items():
                if name == "one" or part == "predict":
                    program = tf.function(function, jit_compile=compiled, autograph=False)
                    programs[name, part] = program.get_concrete_function(*arguments)

    def call(name, part, *arguments):
        found = programs[name, part](*map(tf.constant, arguments))
        return [each.numpy() for each in tf.nest.flatten(found)]

    attack = evaluating.Attacks(
        {**vars(plan), "sizes": plan.sizes}, "one", given, stages, call, ["other"]
    )
    return {name: attack(name) for name in ("clean", *plan.attacks)}


def expected(networks, given, attack, shown="one", **options):
    """Return the same by the crafters and predictors of bin/evaluate."""
    images, labels = given["images"], given["labels"]
    logits, seer = (load_source(networks[name]).logits for name in ("one", shown))
    epsilons = (0.0,) if attack == "clean" else PLAN.epsilons
    craft = crafting.crafter(logits, SHAPE, attack, epsilons, seed=PLAN.seed, **options)
    predict = crafting.predictor(seer, SHAPE)
    parts = [slice(first, first + BATCH) for first in range(0, COUNT, BATCH)]
    found = [predict(craft(images[p], labels[p], p.start), p.start) for p in parts]
    return np.concatenate(found, axis=1) == labels


def check(found, networks, given):
    """Compare what programs have found with ``expected``; AutoAttack is looked at elsewhere."""
    pgd = {"steps": 4, "restarts": 3, "objective": "margin"}
    for name in set(found) - {"autoattack"}:
        right = expected(networks, given, name, **(pgd if name == "pgd" else {}))
        np.testing.assert_array_equal(found[name]["right"], right, err_msg=name)
        assert 0 < right.mean() < 1, name
    shown = expected(networks, given, "iter_fgsm", "other")
    np.testing.assert_array_equal(found["iter_fgsm"]["right/other"], shown)
    assert 0 < shown.mean() < 1


def test_each_image_survives_what_it_survives_in_bin_evaluate(networks, given):
    few = dataclasses.replace(PLAN, attacks=("iter_fgsm", "pgd"))
    check(measured(networks, given, few), networks, given)


def test_starts_and_steps_of_pgd_are_those_of_bin_evaluate(networks, given):
    few = dataclasses.replace(PLAN, attacks=("pgd",), transfer=())
    parts = lowering.parts(networks["one"], few, SHAPE, 5)
    (start, _), (climb, _) = parts["pgd_start"], parts["pgd_climb"]

    def call(name, part, *arguments):
        return [start(*map(tf.constant, arguments)).numpy()]

    attack = evaluating.Attacks(vars(few), "one", given, [], call)
    left = np.array([3, 19, 20, 44])  # of three batches, the last of five images
    found = attack._starts(left, 2, np.float32(9))
    for place, own in zip(left, found):
        first = place // BATCH * BATCH
        batch = given["images"][first : first + BATCH]
        expected = start_in(batch, 9.0, [PLAN.seed, first], 2)[place - first]
        np.testing.assert_allclose(own, expected, atol=1e-5)
    some = tf.constant(given["images"][:16]), tf.constant(given["labels"][:16])
    made, _ = climb(*some, start_in(some[0], 9.0, [PLAN.seed, 0], 0), tf.constant(9.0))
    options = {"steps": 4, "restarts": 1, "objective": "margin", "seed": [PLAN.seed, 0]}
    expected = at_epsilon("pgd", load_source(networks["one"]).logits, *some, 9.0, **options)
    np.testing.assert_allclose(made, expected, atol=1e-6)


@pytest.mark.long
def test_each_image_survives_the_same_under_xla(networks, given):
    found = measured(networks, given, PLAN, compiled=True)
    check(found, networks, given)
    suite = AutoAttack(
        load_source(networks["one"]).logits,
        SHAPE,
        PLAN.epsilons,
        seed=PLAN.seed,
        version="standard",
        iterations=6,
        queries=40,
    )
    stages = suite(given["images"], given["labels"]).stages
    np.testing.assert_array_equal(found["autoattack"]["right"], stages == 0)
    names = np.array(["stands", "clean", "apgd", "apgd_targeted", "fab", "square"])
    theirs = np.array(["stands", "clean", *ATTACKS["autoattack"].stages])
    np.testing.assert_array_equal(names[found["autoattack"]["stages"]], theirs[stages])
    assert len(np.unique(stages)) > 2


@pytest.mark.parametrize(
    ("change", "setting"),
    [
        ({"epsilons": ()}, "epsilon"),
        ({"epsilons": (0.0,)}, "epsilon"),
        ({"attacks": ("cw_linf",)}, "attacks"),
        ({"transfer": ("pgd",)}, "transfer"),
        ({"pgd_objective": "none"}, "pgd_objective"),
    ],
)
def test_what_is_not_lowered_is_refused(change, setting):
    with pytest.raises(InputError) as error:
        lowering.Plan(**{"epsilons": (4.0,), **change})
    assert error.value.setting == setting and "\n" not in str(error.value)


def test_what_was_measured_is_counted(tmp_path):
    right = {
        "clean": [[1, 1, 1, 0]],
        "iter_fgsm": [[1, 0, 1, 0], [1, 0, 0, 0]],
        "pgd": [[0, 1, 1, 0], [0, 0, 0, 1]],
    }
    for attack, rows in right.items():
        np.savez(tmp_path / f"a--{attack}.npz", right=np.array(rows, bool))
    shown = np.array([[1, 1, 1, 1], [0, 1, 1, 0]], bool)
    np.savez(tmp_path / "b--iter_fgsm.npz", right=shown, **{"right/a": ~shown})
    names = [{"name": name} for name in ("a", "b", "c")]
    plan = {**vars(PLAN), "transfer": ["iter_fgsm"], "networks": names}
    found = reading.cells(plan, tmp_path)
    assert set(found) == {"a", "b"}  # nothing is known of c
    expected = {
        ("clean", 0.0): 3,
        ("iter_fgsm", 9.0): 2,
        ("iter_fgsm", 4.0): 1,
        ("pgd", 9.0): 2,
        ("pgd", 4.0): 1,
        ("worst", 9.0): 1,
        ("worst", 4.0): 0,
        ("iter_fgsm", 9.0, "b"): 0,
        ("iter_fgsm", 4.0, "b"): 2,
    }
    keys = ("attack", "epsilon", "source")
    counted = {tuple(c[k] for k in keys if k in c): c["correct"] for c in found["a"]}
    assert counted == expected
    assert all(c["accuracy"] == 100 * c["correct"] / 4 for c in found["a"])
    (options,) = {tuple(c["options"].items()) for c in found["a"] if c["attack"] == "pgd"}
    assert dict(options) == {"steps": 4, "restarts": 3, "objective": "margin"}
    assert ["options" in c for c in found["b"]] == [False] * 4
