"""``ck.evaluate`` and ``ck.craft``: any classifier, any images, one call."""

import json
import sys

import keras
import numpy as np
import pytest
import tensorflow as tf
from art.attacks.evasion import ProjectedGradientDescent
from support.networks import features
from support.peers import art_classifier, of_art, of_foolbox

import cascade_keras as ck
from cascade_keras import InputError, attacks, data
from cascade_keras.attacks.specs import Attack
from cascade_keras.evaluation import WhiteBox
from cascade_keras.evaluation.samples import collect
from cascade_keras.labels import check_labels

N, BATCH = 120, 50
PIXELS, LABELS = (array[:N] for array in data.load("digits").test)
UNIT = PIXELS.astype("float32") / np.float32(255)
RANGES = {"unit": (0, 1), "bytes": (0, 255), "signed": (-1, 1)}
QUIET = {"progress": False, "diagnosis_images": 0, "batch_size": BATCH}
FEW = attacks.PGD(steps=3, restarts=1)


@pytest.fixture(scope="module")
def network():
    return features(0)


@pytest.fixture(scope="module")
def expected(network):
    """Clean and step_fgsm at epsilon 8."""
    return ck.evaluate(network, UNIT, LABELS, ["step_fgsm"], 8, **QUIET).accuracy


ASKED = ["clean", "step_fgsm", FEW, "step_rand"]


@pytest.fixture(scope="module")
def by_the_engine(network):
    given = [Attack.clean(), *(Attack.at(each, (8, 30)) for each in ASKED[1:])]
    return WhiteBox(network, (8, 8, 1), given, seed=3, batch_size=BATCH)(UNIT, LABELS)


def in_range(value_range, images=UNIT):
    low, high = value_range
    return (low + (high - low) * images.astype("float64")).astype("float32")


def of_range(network, value_range, last=None):
    """The same network for images of another range, with something behind its logits."""
    low, high = value_range
    inputs = keras.Input((8, 8, 1))
    scale = 1 / (high - low)
    logits = network(keras.layers.Rescaling(scale, offset=-low * scale)(inputs))
    return keras.Model(inputs, logits if last is None else last(logits))


def right(network, images):
    return np.argmax(network(images, training=False), -1) == LABELS


@pytest.mark.parametrize("name", RANGES)
def test_numbers_are_those_of_the_engine_in_every_range(network, by_the_engine, name):
    value_range = RANGES[name]
    report = ck.evaluate(
        of_range(network, value_range), in_range(value_range), LABELS, ASKED, [8, 30],
        value_range=value_range, images=True, seed=3, **QUIET,
    )  # fmt: skip
    for result in by_the_engine:
        got = report.accuracy[result.attack, result.epsilon]
        # Rounding to another range may turn a pixel's step, an image at most.
        assert abs(got - result.accuracy) < (1e-9 if name == "unit" else 101 / N)
    assert report.accuracy["clean"] > 85 > report.accuracy["step_fgsm", 30] + 20
    low, high = value_range
    again = {
        each: ck.craft(
            of_range(network, value_range), in_range(value_range), LABELS,
            {"pgd": FEW}.get(each, each), [30, 8], value_range=value_range, seed=3,
            batch_size=BATCH,
        )
        for each in ("step_rand", "pgd")
        if name == "bytes"
    }  # fmt: skip
    for key in report.images:
        made = report.images[key]
        assert made.dtype == np.float32 and made.shape == PIXELS.shape
        away = made.astype("float64") - in_range(value_range)
        assert np.abs(away).max() * 255 / (high - low) == pytest.approx(key[-1], abs=1e-3)
        assert made.min() >= low and made.max() <= high
        unit = ((made - low) / (high - low)).astype("float32")
        seen = np.argmax(network(unit, training=False), -1)
        assert (seen == report.predictions[key]).mean() > 0.99
        if key[0] in again:
            alone = again[key[0]][[30, 8].index(key[1])]
            np.testing.assert_allclose(alone, made, atol=1e-5 * (high - low))


@pytest.mark.parametrize("epsilon", [4, 16])
def test_accuracies_are_those_of_other_packages(network, epsilon):
    """FGSM image by image; PGD from other random starts, so within a few images."""
    report = ck.evaluate(
        of_range(network, (0, 255)), PIXELS, LABELS,
        ["step_fgsm", attacks.PGD(steps=40, step_size=1, restarts=1, objective="cross_entropy")],
        epsilon, value_range=(0, 255), **QUIET,
    )  # fmt: skip
    for independent in (of_foolbox, of_art):
        made = independent(network, tf.constant(UNIT), tf.constant(LABELS), epsilon)
        assert report.accuracy["step_fgsm", epsilon] == 100 * right(network, made).mean()
    attack = ProjectedGradientDescent(
        art_classifier(network, (8, 8, 1)), eps=epsilon / 255, eps_step=1 / 255, max_iter=40,
        num_random_init=1, batch_size=N, verbose=False,
    )  # fmt: skip
    np.random.seed(0)  # its starts are drawn by it
    made = attack.generate(UNIT, LABELS)
    assert abs(report.accuracy["pgd", epsilon] - 100 * right(network, made).mean()) < 301 / N


def test_it_counts_by_class_and_names_them(network):
    names = [f"digit {number}" for number in range(10)]
    report = ck.evaluate(
        network, UNIT, LABELS, ["step_fgsm"], [30], class_names=names, images=True, **QUIET
    )
    by_hand = right(network, report.images["step_fgsm", 30])
    found = report.per_class("step_fgsm", 30)
    assert list(found) == names
    for number, counted in enumerate(found.values()):
        mine = by_hand[np.equal(LABELS, number)]
        assert counted == (mine.sum(), len(mine), 100 * mine.mean())
    assert sum(counted.correct for counted in found.values()) == by_hand.sum()
    both = right(network, UNIT) & by_hand
    assert report.worst_case == {30: 100 * by_hand.mean()} and both.sum() <= by_hand.sum()
    plain = ck.evaluate(network, UNIT[:3], LABELS[:3], "clean", **QUIET)
    assert list(plain.per_class("clean")) == sorted(set(LABELS[:3].tolist()))


class Batches(keras.utils.PyDataset):
    num_batches = 3

    def __getitem__(self, index):
        part = slice(index * 40, (index + 1) * 40)
        return UNIT[part], LABELS[part, None]


def generator():
    for first in range(0, 10**6, 40):
        part = np.arange(first, first + 40) % N
        yield UNIT[part], np.eye(10)[LABELS[part]]


FORMS = {
    "column": lambda: (UNIT, LABELS[:, None]),
    "one-hot": lambda: (UNIT, np.eye(10)[LABELS]),
    "float labels": lambda: (UNIT.astype("float64"), LABELS.astype("float32")),
    "tensors": lambda: (tf.constant(UNIT), tf.constant(LABELS)),
    "tf.data": lambda: (tf.data.Dataset.from_tensor_slices((UNIT, LABELS)).batch(32),),
    "PyDataset": lambda: (Batches(),),
    "generator": lambda: (generator(),),
    "name": lambda: ("digits",),
}


@pytest.mark.parametrize("form", FORMS)
def test_images_and_labels_come_as_to_keras(network, expected, form):
    given = FORMS[form]()
    report = ck.evaluate(network, *given, attacks=["step_fgsm"], epsilons=8, num_images=N, **QUIET)
    assert dict(report.accuracy) == dict(expected)
    assert report.to_dict()["dataset"] == ("digits" if form == "name" else "images")
    np.testing.assert_array_equal(report.labels, LABELS)


@pytest.mark.parametrize("form", [form for form in FORMS if form != "name"])
def test_the_first_images_are_taken(form):
    images, labels = collect(*FORMS[form](), num_images=70)
    np.testing.assert_allclose(images, UNIT[:70])
    np.testing.assert_array_equal(check_labels(labels).hard, LABELS[:70])


class Subclassed(keras.Model):
    def __init__(self, network):
        super().__init__()
        self.inner = network

    def call(self, images):
        return {"other": images, "logits": self.inner(images)}


MODELS = {
    "function": lambda network: lambda images: network(images, training=False),
    "softmax": lambda network: of_range(network, (0, 1), keras.layers.Softmax()),
    "subclassed, several outputs": Subclassed,
    "half precision": lambda network: of_range(
        network, (0, 1), lambda logits: keras.ops.cast(logits, "float16")
    ),
    "trainer": lambda network: ck.AdversarialTrainer(network),
    "sequential": lambda network: keras.Sequential([keras.Input((8, 8, 1)), network]),
}


@pytest.mark.parametrize("kind", MODELS)
def test_any_classifier_is_measured(network, expected, kind):
    model = MODELS[kind](network)
    report = ck.evaluate(model, UNIT, LABELS, ["step_fgsm"], 8, **QUIET)
    near = 100 / N if kind == "half precision" else 0
    for key, accuracy in expected.items():
        assert abs(report.accuracy[key] - accuracy) <= near, key


def test_one_logit_is_two_classes():
    inputs = keras.Input((8, 8, 1))
    model = keras.Model(inputs, keras.layers.Dense(1)(keras.layers.Flatten()(inputs)))
    even = (LABELS % 2)[:, None]
    report = ck.evaluate(model, UNIT, even, ["step_fgsm"], 8, images=True, **QUIET)
    for key, images in [(("clean",), UNIT), (("step_fgsm", 8), report.images["step_fgsm", 8])]:
        seen = np.asarray(model(images))[:, 0] > 0
        np.testing.assert_array_equal(report.predictions[key], seen)
        assert report.accuracy[key] == 100 * (seen == even[:, 0]).mean()


def test_attacks_of_one_name_stand_side_by_side(network):
    strong = attacks.PGD(steps=4, restarts=1)
    report = ck.evaluate(network, UNIT[:40], LABELS[:40], [FEW, strong], [8, 30], **QUIET)
    label = "pgd (steps 4, restarts 1)"
    assert report.accuracy[strong, 8] == report.accuracy[label, 8]
    assert [key[:-1] for key in report.accuracy][1::2] == [("pgd (steps 3, restarts 1)",), (label,)]
    with pytest.raises(KeyError, match="may be each of"):
        report.accuracy["pgd", 8]
    with pytest.raises(KeyError, match="may be each of"):
        report.accuracy[strong]
    with pytest.raises(KeyError, match="is not one of"):
        report.accuracy["pgd (steps 3)", 8]
    assert label in str(report) and label in report._repr_markdown_()
    # The only one of its name goes by it.
    alone = ck.evaluate(network, UNIT[:40], LABELS[:40], [strong], 8, **QUIET)
    assert alone.accuracy["pgd"] == alone.accuracy[strong, 8] == alone.accuracy["pgd", 8.0]
    assert alone.accuracy["pgd"] == report.accuracy[strong, 8]
    assert list(alone.accuracy) == [("clean", 0.0), ("pgd", 8.0)]
    assert alone.to_dict()["attacks"][0]["options"]["steps"] == 4


def test_several_networks_and_their_sources_are_named(network):
    other = features(1)
    report = ck.evaluate(
        {"first": network, "second": other}, UNIT, LABELS, ["step_fgsm"], 30, sources=[network],
        images=True, **QUIET,
    )  # fmt: skip
    made = ck.craft(network, UNIT, LABELS, "step_fgsm", 30, batch_size=BATCH)
    np.testing.assert_array_equal(report.images["step_fgsm", 30], made)
    for name, model in (("first", network), ("second", other)):
        own = report.accuracy[name, "first", "step_fgsm", 30]
        assert own == report.accuracy[name, "step_fgsm"] == 100 * right(model, made).mean()
        assert report.accuracy[name, "clean"] == 100 * right(model, UNIT).mean()
    with pytest.raises(KeyError, match="may be each of"):
        report.accuracy["step_fgsm", 30]
    assert report.to_dict()["transfer"] and "black box" in str(report)


def test_minimal_epsilons_of_any_data(network):
    report = ck.evaluate(network, UNIT[:20], LABELS[:20], ["cw_linf"], [2, 30], **QUIET)
    (found,) = report.minimal.values()
    assert len(found) == len(report.minimal_indices) == 20
    assert report.accuracy["cw_linf", 30] == 100 * (found > 30).mean()
    assert ((found == 0) == ~right(network, UNIT)[:20]).all()


def test_it_is_saved_as_the_program_saves(network, tmp_path):
    asked = {"diagnosis_images": 0, "batch_size": BATCH, "seed": 1}
    with pytest.warns(UserWarning, match="0..255 units, so 0.5 of the whole range is 127.5"):
        report = ck.evaluate(
            network, "digits", attacks=["step_fgsm", FEW], epsilons=[30, 0.5], num_images=N,
            progress=False, **asked,
        )  # fmt: skip
    report.save(tmp_path / "mine")
    report.save(tmp_path / "mine", examples=1)
    settings = ck.EvaluationSettings(
        attack=["step_fgsm", "pgd"], epsilon=[0.5, 30], num_images=N, dataset="digits",
        pgd_steps=3, pgd_restarts=1, output=tmp_path / "programs", **asked,
    )  # fmt: skip
    expected = ck.Evaluation(settings, targets=[network]).run()
    assert report.to_dict() == expected == json.loads((tmp_path / "mine/report.json").read_text())
    files = {
        name: {p.relative_to(tmp_path / name) for p in (tmp_path / name).rglob("*.*")}
        for name in ("mine", "programs")
    }
    assert files["mine"] > files["programs"]
    for name in ("report.md", "report.csv"):
        texts = [(tmp_path / place / name).read_bytes() for place in files]
        assert texts[0] == texts[1], name
    configs = [json.loads((tmp_path / place / "config.json").read_text()) for place in files]
    assert configs[1].pop("settings") == settings.resolved([network]).decisive()
    assert configs[0] == configs[1]
    kept = np.load(next((tmp_path / "mine/predictions").glob("*--step_fgsm.npy")))
    np.testing.assert_array_equal(kept[0, 1], report.predictions["step_fgsm", 30])
    with pytest.raises(InputError, match="with"):
        ck.evaluate(network, UNIT, LABELS, "clean", **QUIET).save(tmp_path / "mine")


def test_a_network_at_chance_is_said_first(network, tmp_path):
    model = of_range(network, (0, 255))
    report = ck.evaluate(model, UNIT, LABELS, ["step_fgsm"], 8, **QUIET)
    first = str(report).splitlines()[0]
    correct = right(model, UNIT)
    assert f"right about {100 * correct.mean():.1f} % of clean images, chance is 10 %" in first
    assert report.diagnosis == report.to_dict()["warnings"]
    (sentence,) = report.diagnosis
    better = 100 * right(network, UNIT).mean()
    assert f"is value_range (0, 255) meant? With it, {better:.1f} % of {N} are right" in sentence
    report.save(tmp_path / "report")
    assert (tmp_path / "report/report.md").read_text().startswith("> **")
    assert "of clean images" in report._repr_markdown_().splitlines()[0]
    signed = ck.evaluate(model, in_range((-1, 1)), LABELS, "clean", value_range=(-1, 1), **QUIET)
    assert f"is value_range (0, 255) meant? With it, {better:.1f} %" in signed.diagnosis[0]
    # Labels in another order: no range is to blame, and nothing that attacks do matters.
    moved = ck.evaluate(
        network, UNIT[:40], (LABELS[:40] + 1) % 10, [FEW], 8, **QUIET | {"diagnosis_images": 10}
    )
    assert "check value_range, the order of the classes" in moved.diagnosis[0]
    assert moved.to_dict()["diagnosis"]["findings"][0]["kind"] == "at_chance"
    assert str(moved).count("of clean images") == 1
    ran = {r["attack"]: r["options"] for r in moved.to_dict()["diagnosis"]["results"]}
    assert ran["pgd"]["steps"] == FEW.options["steps"] and "iter_margin" in ran
    fine = ck.evaluate(network, UNIT, LABELS, "clean", **QUIET)
    assert not fine.diagnosis and not fine.to_dict()["warnings"]


def test_tables_need_pandas_only_where_it_is_asked_for(network, monkeypatch):
    report = ck.evaluate(network, UNIT, LABELS, "clean", **QUIET)
    monkeypatch.setitem(sys.modules, "pandas", None)
    with pytest.raises(ImportError, match=r"^to_dataframe needs pandas: pip install pandas$"):
        report.to_dataframe()
    with pytest.raises(AttributeError, match="images=True"):
        _ = report.images


ENDLESS = tf.data.Dataset.from_tensors((UNIT, LABELS)).repeat()
WEIGHTED = tf.data.Dataset.from_tensors((UNIT, LABELS, np.ones(N)))
REFUSED = {
    "no epsilons": ({"epsilons": None}, "epsilons: name one or several"),
    "empty epsilons": ({"epsilons": []}, "epsilons: name one or several"),
    "negative": ({"epsilons": [-1]}, "epsilons: must be numbers in 0..255"),
    "NaN": ({"epsilons": float("nan")}, "epsilons: must be a finite number"),
    "text": ({"epsilons": "8"}, "epsilons: must be a number"),
    "unknown attack": ({"attacks": ["fgsm"]}, "'fgsm' is none of clean, step_ll"),
    "unknown option": ({"attacks": [lambda: attacks.PGD(k=1)]}, "pgd has no option 'k'"),
    "twice": ({"attacks": ["pgd", "pgd"]}, "attacks: pgd is named twice"),
    "no attack": ({"attacks": []}, "attacks: name at least one"),
    "bytes": ({"x": PIXELS.astype("float32")}, "x: images lie in 0..255, outside of (0, 1); pass"),
    "whole numbers": ({"x": PIXELS}, "x: images are uint8, value_range is (0, 1)"),
    "not finite": ({"x": UNIT * np.nan}, "x: images have values that are not finite"),
    "other range": ({"value_range": (0, 255)}, "pass value_range=(0, 1)"),
    "one image": ({"x": UNIT[0]}, "y: one label an image is needed"),
    "no channels": ({"x": UNIT[..., 0]}, "must have the shape (N, height, width, channels)"),
    "no labels": ({"y": None}, "y: the images have no labels"),
    "two inputs": ({"x": (UNIT, UNIT)}, "x: one input of images is attacked, got a tuple"),
    "soft labels": ({"y": np.full((N, 10), 0.1)}, "y: soft labels name no class"),
    "labels too large": ({"y": LABELS + 1}, "classes must be 0..9, got 10"),
    "fewer labels": ({"y": LABELS[1:]}, "y: one label an image is needed"),
    "labels twice": ({"x": Batches()}, "y: Batches brings its labels along"),
    "weights": ({"x": WEIGHTED, "y": None}, "x: accuracy counts every image once"),
    "single images": ({"x": WEIGHTED.unbatch().map(lambda x, y, w: (x, y)), "y": None}, ".batch("),
    "no end": ({"x": ENDLESS, "y": None}, "num_images: say how many images"),
    "a generator": ({"x": generator(), "y": None}, "num_images: say how many images"),
    "nothing": ({"x": UNIT[:0], "y": LABELS[:0]}, "x: there are no images"),
    "names": ({"class_names": ["a"]}, "class_names: must be 10 different names"),
    "no such dataset": ({"x": "nowhere", "y": None}, "nowhere"),
    "no network": ({"model": []}, "model: name at least one network"),
    "larger images": (
        {"x": np.repeat(UNIT, 2, axis=1)},
        "cannot be run on images of shape (16, 8, 1)",
    ),
    "batch size": ({"batch_size": 0}, "batch_size: must be above 0"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_cannot_be_measured_is_refused_in_one_line(network, case):
    changes, words = REFUSED[case]
    given = {"model": network, "x": UNIT, "y": LABELS, "attacks": ["step_fgsm"], "epsilons": 8}
    given |= QUIET | changes
    with pytest.raises(InputError) as error:
        given["attacks"] = [each() if callable(each) else each for each in given["attacks"]]
        ck.evaluate(**given)
    assert words in str(error.value) and "\n" not in str(error.value)


def test_crafting_refuses_what_gives_no_images(network):
    with pytest.raises(InputError, match="attack: cw_linf has no images at given epsilons"):
        ck.craft(network, UNIT, LABELS, "cw_linf", 8)
    with pytest.raises(InputError, match="epsilons: name one or several"):
        ck.craft(network, UNIT, LABELS, "step_fgsm")
    with pytest.warns(UserWarning, match="less than one pixel value"):
        made = ck.craft(network, UNIT[:4], LABELS[:4], "step_fgsm", [16, 8 / 255])
    assert made.shape == (2, 4, 8, 8, 1)
    away = np.abs(made - UNIT[:4]).max(axis=(1, 2, 3, 4)) * 255
    assert away == pytest.approx([16, 8 / 255], rel=1e-3)
