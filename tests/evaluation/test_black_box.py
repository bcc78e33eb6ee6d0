"""Black box: ensembles of sources, what a target has seen of them, both ways of counting."""

import json
import pathlib
import types
import warnings

import keras
import numpy as np
import pytest
import tensorflow as tf
from support.networks import features, save_run

import cascade_keras as ck
from cascade_keras import InputError, attacks, data
from cascade_keras.cli import evaluate
from cascade_keras.data.specs import DATASETS
from cascade_keras.ensembles import ensemble
from cascade_keras.evaluation import black_box, diagnosis, load_networks
from cascade_keras.evaluation.black_box import (
    FAMILY,
    ITSELF,
    NO_SOURCE,
    SEEN,
    UNKNOWN,
    UNSEEN,
    Mark,
)
from cascade_keras.evaluation.cells import Cell
from cascade_keras.evaluation.networks import is_loaded, loaded_again
from cascade_keras.evaluation.verify import verify
from cascade_keras.provenance import learned_from, locate, members_of
from cascade_keras.sources import load_source

X, Y = (array[:40] for array in data.load("digits").test)
X = X.astype("float32") / np.float32(255)
WEIGHTS = np.random.default_rng(0).normal(size=(3, 64, 10)).astype("float32")


def linear(number, scale=1.0):
    """A network without layers between, whose gradients are known in closed form."""

    def logits(images):
        return scale * (tf.reshape(images, [-1, 64]) @ WEIGHTS[number])

    return load_source(logits, (8, 8, 1), name=f"net{number}", weights_hash=f"{number} {scale}")


def softmax(logits):
    exps = np.exp(logits - logits.max(-1, keepdims=True))
    return exps / exps.sum(-1, keepdims=True)


def slope(objective, logits, labels):
    """The gradient of an objective with respect to logits, (n, classes), written out."""
    rows = np.arange(len(labels))
    found = np.zeros_like(logits)
    if objective == "cross_entropy":
        found = softmax(logits)
    else:
        others = logits.copy()
        others[rows, labels] = -np.inf
        found[rows, others.argmax(-1)] = 1
    found[rows, labels] -= 1
    return found


# Networks of very different confidence: the mean of the logits is the loudest one's.
SCALES = (0.01, 1.0, 30.0)


@pytest.mark.parametrize("objective", ["cross_entropy", "margin"])
@pytest.mark.parametrize("mean", ["logits", "losses"])
def test_what_an_attack_on_an_ensemble_ascends(mean, objective):
    members = [linear(number, scale) for number, scale in enumerate(SCALES)]
    both = ensemble(members, mean)
    flat = X.reshape(-1, 64).astype("float64")
    each = [scale * flat @ WEIGHTS[number] for number, scale in enumerate(SCALES)]
    slopes = [slope(objective, np.mean(each, 0), Y)] * 3
    if mean == "losses":
        slopes = [slope(objective, logits, Y) for logits in each]
    gradient = sum(
        scale * own @ WEIGHTS[number].T
        for number, (scale, own) in enumerate(zip(SCALES, slopes, strict=True))
    )
    got = attacks.input_gradient(both.logits, tf.constant(X), attacks.OBJECTIVES[objective](Y))
    np.testing.assert_allclose(got.numpy().reshape(-1, 64), gradient / 3, rtol=1e-3, atol=1e-5)
    np.testing.assert_allclose(both.logits(X), np.mean(each, 0), rtol=1e-4, atol=1e-4)


# What names an ensemble.

DIGITS = DATASETS["digits"]


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """A folder of finished runs a, b, c, of which c was trained with images of a."""
    folder = tmp_path_factory.mktemp("saved")
    for seed, name in enumerate("abc"):
        save_run(folder / name, features(seed))
    config = json.loads((folder / "c" / "config.json").read_text())
    a = load_source(folder / "a")
    record = {"name": "a", "path": str(folder / "a"), "weights_hash": a.weights_hash}
    config["flags"]["cascade_source"] = [str(folder / "a")]
    config["cascade"] = {"mode": "online", "sources": [record]}
    (folder / "c" / "config.json").write_text(json.dumps(config))
    return folder


def test_a_text_names_members_unless_it_is_a_place(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert members_of("saved/a+b+saved/c") == ("saved/a", "b", "saved/c")
    assert members_of("a") == ("a",)
    pathlib.Path("c++").mkdir()
    assert members_of("c++") == ("c++",)
    for text, words in {
        "a++b": "a++b does not exist, and names no ensemble",
        "+": "does not exist, and names no ensemble",
        "a+b+./a": "names ./a twice",
    }.items():
        with pytest.raises(InputError, match=words.replace("+", r"\+")):
            members_of(text)


def test_a_target_is_no_ensemble(saved):
    with pytest.raises(InputError, match="would be an ensemble, which only a source can") as error:
        ck.EvaluationSettings(target=[f"{saved}/a+{saved}/b"]).resolved()
    assert error.value.setting == "target"


def test_an_ensemble_is_one_network_let_go_and_loaded_whole(saved):
    text = f"{saved}/a+{saved}/b"
    load = {"setting": "source", "keep": False}
    found = load_networks([text], DIGITS, ensembles="losses", **load)
    (both,) = found.sources
    assert found.names == ("a+b",) and str(both).endswith(f"/a/model.keras+{saved}/b/model.keras")
    assert not is_loaded(both) and not any(map(is_loaded, both.members))
    again = loaded_again(both)
    expected = (features(0)(X) + features(1)(X)) / 2
    np.testing.assert_allclose(again.logits(X), expected, atol=1e-4)
    # In whatever order, in memory or not, and another one of another mean.
    other = ensemble([saved / "b", saved / "a"], "losses")
    assert other.weights_hash == both.weights_hash == again.weights_hash
    assert ensemble([saved / "a", saved / "b"]).weights_hash != both.weights_hash
    with pytest.raises(InputError, match="are the same network; name it once"):
        load_networks([text, [saved / "b", saved / "a"]], DIGITS, ensembles="losses", **load)
    # Targets are no ensembles.
    with pytest.raises(InputError, match="does not exist"):
        load_networks([text], DIGITS, setting="target")


BAD = {
    "alone": (lambda a: [a], "two networks or more, got 1"),
    "nobody": (lambda a: [], "two networks or more, got 0"),
    "no list": (lambda a: a, "is made of a list of networks"),
    "a path": (lambda a: "saved/a", "is made of a list of networks"),
    "twice": (lambda a: [a, linear(2)], "are the same network; name each member"),
    "size": (lambda a: [a, load_source(lambda x: tf.reshape(x, [-1, 36])[:, :10], (6, 6, 1),
             name="small", weights_hash="x")], "small of shape"),
    "classes": (lambda a: [a, load_source(lambda x: linear(0).logits(x)[:, :7], (8, 8, 1),
                name="few", weights_hash="x")], "few tells 7 classes apart"),
    "no gradient": (lambda a: [a, load_source(lambda x: linear(0).logits(tf.round(x)),
                    (8, 8, 1), name="flat", weights_hash="x")], "flat has no gradient"),
}  # fmt: skip


@pytest.mark.parametrize("case", BAD)
def test_members_that_do_not_fit_are_refused(case):
    make, words = BAD[case]
    with pytest.raises(InputError, match=words):
        ensemble(make(linear(2))).check((8, 8, 1), 10)


def test_means_that_there_are_not_and_classes_that_differ_are_refused():
    few = load_source(lambda x: linear(0).logits(x)[:, :7], (8, 8, 1), name="few", weights_hash="x")
    with pytest.raises(InputError, match="10 classes apart, few 7; an ensemble takes"):
        ensemble([linear(0), few]).logits(X[:1])
    with pytest.raises(InputError, match="must be one of logits, losses, got 'mean'"):
        ensemble([linear(0), linear(1)], "mean")
    with pytest.raises(InputError, match="must be one of logits, losses") as error:
        ck.evaluate(linear(0), X, Y, "clean", sources=[linear(1)], ensemble="max")
    assert error.value.setting == "ensemble"
    with pytest.raises(InputError, match="images are made from one network"):
        ck.craft([linear(0), linear(1)], X, Y, "step_fgsm", 8)


# What a source is to a target.


def kin(name="source", digest="1" * 64, shapes="small", path=None, members=None, **provenance):
    found = types.SimpleNamespace(
        name=name, weights_hash=digest, shapes=shapes, path=path, provenance=provenance,
        weights=shapes and digest,
    )  # fmt: skip
    if members:
        found.members = members
    return found


PLAIN = {"recipe": {"model": "lenet"}}
SOURCE = kin(path=pathlib.Path("/saved/source/3"))
HASHES = [{"name": "x", "path": "elsewhere/y", "weights_hash": "1" * 64}]
OTHERS = [{"name": "source", "path": "saved/source", "weights_hash": "2" * 64}]
MARKED = {
    "its own weights": (kin("t", "1" * 64), SOURCE, Mark(ITSELF)),
    "functions of one name": (
        kin("t", "f", None, **PLAIN), kin("s", "f", None), Mark(UNSEEN)),
    "its images, by their weights": (
        kin("t", "t", "large", learned_from=HASHES, **PLAIN), SOURCE, Mark(SEEN)),
    "others of the same name": (
        kin("t", "t", "large", learned_from=OTHERS, **PLAIN), SOURCE, Mark(UNSEEN)),
    "others of the same name and family": (
        kin("t", "t", learned_from=OTHERS, **PLAIN), SOURCE, Mark(FAMILY)),
    "its weights, by the place": (
        kin("t", "t", "large", recipe={"init_from": "/saved/source"}), SOURCE, Mark(SEEN)),
    "its weights, under another name": (
        kin("t", "t", "large", recipe={"init_from": "/saved/source"}),
        kin("renamed", path=pathlib.Path("/saved/source/3")), Mark(SEEN)),
    "of another machine, by the name": (
        kin("t", "t", "large", recipe={"cascade_source": ["x/source/2"]}), SOURCE, Mark(SEEN)),
    "a file of this name": (
        kin("t", "t", "large", recipe={"ensemble_source": ["x/source.keras"]}), SOURCE, Mark(SEEN)),
    "another name": (
        kin("t", "t", "large", recipe={"cascade_source": ["x/source2"]}), SOURCE, Mark(UNSEEN)),
    "architecture": (kin("t", "t", **PLAIN), SOURCE, Mark(FAMILY)),
    "nothing known": (kin("t", "t", None), SOURCE, Mark(UNKNOWN)),
    "neither's shapes": (kin("t", "t", None), kin(shapes=None), Mark(UNKNOWN)),
    "unseen": (kin("t", "t", "large", **PLAIN), SOURCE, Mark(UNSEEN)),
    "the nearest member": (
        kin("t", "t", learned_from=HASHES, **PLAIN),
        kin("a+b", members=(kin("a", "a"), SOURCE, kin("c", "c", "other"))),
        Mark(SEEN, "source")),
    "itself among members": (
        kin("t", "1" * 64, **PLAIN), kin("a+b", members=(kin("a", "a"), SOURCE)),
        Mark(ITSELF, "source")),
}  # fmt: skip


@pytest.mark.parametrize(("target", "source", "mark"), MARKED.values(), ids=MARKED)
def test_what_a_source_is_to_a_target(target, source, mark):
    assert black_box.mark_of(target, source) == mark


def test_runs_and_what_is_exported_of_them_say_what_they_learned_from(saved):
    config = json.loads((saved / "c" / "config.json").read_text())
    expected = config["cascade"]["sources"]
    assert locate(saved / "c").provenance["learned_from"] == expected
    assert learned_from(config) == {"learned_from": expected}
    assert learned_from({}) == learned_from({"cascade": None}) == {}
    c, a, b = (load_source(saved / name) for name in "cab")
    assert black_box.mark_of(c, a).mark == SEEN and black_box.mark_of(a, c).mark == FAMILY
    assert black_box.mark_of(c, b).mark == FAMILY
    assert black_box.mark_of(load_source(features(5, width=30)), a).mark == UNKNOWN


@keras.saving.register_keras_serializable("test_black_box")
class Drawing(keras.layers.Layer):
    """Holds the state of a generator, which is none of a network's weights."""

    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self.seeds = keras.random.SeedGenerator(0)

    def call(self, images):
        return images + 0 * keras.random.uniform(tf.shape(images), seed=self.seeds)


def test_whoever_saved_a_network_it_stays_itself(tmp_path, saved):
    def network(seed):
        inner = features(seed)
        return keras.Model(inner.inputs, inner(Drawing()(inner.inputs[0])))

    own, other = (network(seed) for seed in (0, 1))
    own.save(tmp_path / "own.keras")
    for name, exported in (("own", own), ("other", other)):
        exported.export(tmp_path / name, format="tf_saved_model", verbose=False)
    file, export, unlike = (load_source(tmp_path / n) for n in ("own.keras", "own", "other"))
    assert file.weights_hash != export.weights_hash  # of its files
    for target, source in ((file, export), (export, file), (load_source(saved / "a"), export)):
        assert black_box.mark_of(target, source).mark == ITSELF
    assert black_box.mark_of(file, unlike).mark == FAMILY
    same = {"setting": "source", "ensembles": "logits"}
    for networks in ([file, export], [[file, export]]):
        with pytest.raises(InputError, match="are the same network; name"):
            load_networks(networks, DIGITS, **same)
    assert load_networks([file, unlike], DIGITS, **same).names == ("own", "other")
    # What was trained with images of the file has seen those of the export too.
    seen = [{"name": "x", "path": "elsewhere", "weights_hash": file.weights_hash}]
    assert black_box.mark_of(kin("t", "t", "large", learned_from=seen), export).mark == SEEN


# Counting.


def images(text):
    return np.array([letter == "+" for letter in text], bool)


def test_both_conventions_and_the_worst_of_the_sources_are_counted_by_hand():
    correct = {
        Cell.clean("t"): images("+++++-"),
        Cell.clean("s"): images("++++-+"),
        Cell.clean("u+v"): images("+++-++"),
        Cell("t", "s", "pgd", 8.0): images("+-++--"),
        Cell("t", "u+v", "pgd", 8.0): images("++-+++"),
        Cell("t", "t", "pgd", 8.0): images("------"),  # its own gradients count for none
        Cell("t", "s", "step_ll", 8.0): images("++++++"),
        Cell("t", "t", "square", 8.0): images("-+++++"),
        Cell("s", "s", "pgd", 8.0): images("------"),  # of a source that is no target
        Cell("t", "s", "pgd", 4.0): images("++++++"),
    }
    marks = {("t", "s"): Mark(UNSEEN), ("t", "u+v"): Mark(SEEN, "v"), ("t", "t"): Mark(ITSELF)}
    found = black_box.black_box(correct, marks)
    assert found["all_correct"] == 3  # the first three
    results = {(r["source"], r["attack"], r["epsilon"]): r for r in found["results"]}
    assert len(results) == 6 and {r["target"] for r in found["results"]} == {"t"}
    assert {key: r["mark"] for key, r in results.items()} == {
        ("s", "pgd", 8): UNSEEN, ("u+v", "pgd", 8): SEEN, ("t", "pgd", 8): ITSELF,
        ("s", "step_ll", 8): UNSEEN, ("t", "square", 8): NO_SOURCE, ("s", "pgd", 4): UNSEEN,
    }  # fmt: skip
    one = results["s", "pgd", 8.0]
    assert (one["correct"], one["examples"], one["accuracy"]) == (3, 6, 50)
    assert one["all_correct"] == {"correct": 2, "examples": 3, "accuracy": pytest.approx(200 / 3)}
    worst = {(r["attack"], r["epsilon"]): r for r in found["worst"]}
    counted = {k: (r["cells"], r["correct"], r["all_correct"]["correct"]) for k, r in worst.items()}
    assert counted == {
        ("pgd", 8): (2, 2, 1), ("step_ll", 8): (1, 6, 3), ("square", 8): (1, 5, 2),
        (None, 8): (4, 1, 0), ("pgd", 4): (1, 6, 3), (None, 4): (1, 6, 3),
    }  # fmt: skip
    json.dumps(found, allow_nan=False)
    # Where no image is classified correctly by all, there is nothing to count.
    none = {Cell.clean("s"): images("------"), **correct, Cell.clean("t"): images("------")}
    found = black_box.black_box(none, marks)
    assert found["results"][0]["all_correct"]["accuracy"] is None
    headings, rows = black_box.of_target({"black_box": found}, "t")
    assert headings[2:] == ["s (unseen)", "u+v (seen)", "t (itself)", "worst of them"]
    assert rows[0][2:] == ["50.0 / none", "83.3 / none", "(0.0 / none)", "33.3 / none"]


def test_a_transfer_from_an_ensemble_that_beats_the_white_box_is_flagged():
    right = np.arange(200) < 150
    correct = {
        Cell.clean("t"): right,
        Cell("t", "t", "iter_fgsm", 8.0): right,
        Cell("t", "a+b", "iter_fgsm", 8.0): np.arange(200) < 60,
    }
    (finding,) = diagnosis.diagnose(correct, {}, 10)
    assert finding.kind == "black_box_stronger" and "those of a+b 30.0 %" in finding.sentence


# The program, and one call.


def run(*flags):
    return evaluate.main(["evaluate", "--dataset=digits", "--num_images=40", "--batch_size=25",
                          "--epsilon=16", "--diagnosis_images=0", *flags])  # fmt: skip


def read(output):
    return json.loads((pathlib.Path(output) / "report.json").read_text())


def test_the_program_crafts_from_ensembles_and_marks_what_was_seen(saved, tmp_path, capsys):
    a, b, c = (f"{saved}/{name}" for name in "abc")
    out = tmp_path / "out"
    flags = [f"--target={c},{b}", f"--source={a},{a}+{b}", "--attack=step_fgsm,square",
             "--queries=30", "--ensemble=losses", f"--output={out}"]  # fmt: skip
    assert run(*flags) == 0
    shown = capsys.readouterr().out
    assert "c: seen: a, a+b (a)" in shown and "b: itself: a+b (b); same family: a" in shown
    found = read(out)
    record = next(n for n in found["networks"] if n["name"] == "a+b")
    assert record["mean"] == "losses" and [m["name"] for m in record["members"]] == ["a", "b"]
    got = {(r["target"], r["source"], r["attack"]): r["correct"] for r in found["results"]}
    # The square attack asks each target; nothing of it comes from a source.
    assert {s for _, s, attack in got if attack == "square"} == {"b", "c"}
    made = ck.craft(ensemble([a, b], "losses"), X, Y, "step_fgsm", 16)
    for target, seed in (("b", 1), ("c", 2)):
        expected = (np.argmax(features(seed)(made), -1) == Y).sum()
        assert got[target, "a+b", "step_fgsm"] == expected
    asked = ck.craft(features(2), X, Y, attacks.Square(queries=30), 16, batch_size=25)
    assert got["c", "c", "square"] == (np.argmax(features(2)(asked), -1) == Y).sum()
    text = (out / "report.md").read_text()
    assert "## Black box" in text and "| a (seen) | a+b (seen) | worst of them |" in text
    assert (out / "step_fgsm-16.png").exists() and (out / "square-16.png").exists()
    # It can be computed again; another mean is another evaluation.
    assert verify(out, 0.01).holds
    assert run(*flags, "--ensemble=logits") == 2
    assert 'made with "losses", now it is "logits"' in capsys.readouterr().err
    assert run(f"--target={c}", f"--source={a}+") == 2
    assert "--source" in capsys.readouterr().err.splitlines()[-1]


def test_one_call_takes_lists_and_names_of_ensembles(saved):
    quiet = {"progress": False, "diagnosis_images": 0}
    report = ck.evaluate(
        features(3), X, Y, ["step_fgsm"], 16, ensemble="losses",
        sources={"one": features(0), "two": [saved / "a", features(1)]}, **quiet,
    )  # fmt: skip
    made = ck.craft(ensemble([saved / "a", features(1)], "losses"), X, Y, "step_fgsm", 16)
    expected = 100 * (np.argmax(features(3)(made), -1) == Y).mean()
    assert report.accuracy["two", "step_fgsm", 16] == expected
    found = report.black_box
    assert [(m["source"], m["mark"]) for m in found["marks"]] == [("one", FAMILY), ("two", FAMILY)]
    seen = [report.predictions[s, "step_fgsm", 16] == Y for s in ("one", "two")]
    assert found["worst"][0]["correct"] == np.logical_and(*seen).sum()
    assert "worst" in str(report).lower() and "## Black box" in report._repr_markdown_()
    text = ck.evaluate(features(3), X, Y, "clean", sources=f"{saved}/a+{saved}/b", **quiet)
    assert text.to_dict()["sources"] == ["a+b"] and "## Black box" not in text._repr_markdown_()


@pytest.mark.parametrize(
    ("attack", "epsilons", "said"),
    [
        (attacks.APGD(iterations=2), [8, 16], True),
        (attacks.APGD(iterations=2), 16, False),
        (attacks.Square(queries=2), [8, 16], False),
        ("step_fgsm", [8, 16], False),
    ],
)
def test_that_images_near_their_own_fool_others_less_is_said(attack, epsilons, said):
    others = {"sources": linear(1), "progress": False, "diagnosis_images": 0}
    context = pytest.warns(UserWarning, match="one epsilon at a time") if said else warnings_are()
    with context:
        report = ck.evaluate(linear(0), X, Y, attack, epsilons, **others)
    assert any("mi_fgsm" in note for note in report.to_dict()["notes"]) == said


def warnings_are():
    """A context in which every warning is an error."""
    return warnings.catch_warnings(action="error")
