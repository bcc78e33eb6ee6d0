"""Finished reports that hold and that do not, and what an evaluation would take."""

import json
import pathlib
import shutil

import numpy as np
import pytest
from support.files import tree
from support.networks import features

import cascade_keras as ck
from cascade_keras import Evaluation, EvaluationSettings, InputError
from cascade_keras.cli import evaluate as program
from cascade_keras.evaluation import pictures

COUNT, BATCH = 90, 20
PROBED = True  # see conftest.py
ASKED = {"dataset": "digits", "attack": ["step_rand", "iter_fgsm"], "epsilon": [8, 20],
         "num_images": COUNT, "batch_size": BATCH, "diagnosis_images": 0}  # fmt: skip
FLAGS = ["--dataset=digits", "--attack=step_rand,iter_fgsm", "--epsilon=8,20",
         f"--num_images={COUNT}", f"--batch_size={BATCH}", "--diagnosis_images=0"]  # fmt: skip


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """Two networks, and a report of one."""
    place = tmp_path_factory.mktemp("verify")
    for name, seed in (("net", 0), ("other", 1)):
        features(seed).save(place / f"{name}.keras")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(place)
        patch.setattr(pictures, "draw_accuracies", lambda *_: None)
        Evaluation(EvaluationSettings(target=["net.keras"], output="report", **ASKED)).run()
    return place


def run(*flags):
    return program.main(["evaluate", *flags])


def change(file, function):
    content = json.loads(pathlib.Path(file).read_text())
    function(content)
    pathlib.Path(file).write_text(json.dumps(content))


def test_a_report_holds_and_stays_as_it_is(place, capsys):
    before = tree("report")
    seen = []
    found = ck.verify("report", 1, progress=seen.append)
    assert found.holds and (found.share, found.different) == (1, 0)
    assert found.batches == found.of_batches == 3 * 5
    assert found.compared == COUNT * (1 + 2 + 2)
    assert seen[0] == 0 and seen == sorted(seen) and seen[-1] == 100
    assert tree("report") == before

    assert run("--verify=report", "--verify_share=0.3") == 0
    out = capsys.readouterr().out
    assert out.endswith("report holds\n") and "0 of " in out
    part = ck.verify("report", 0.3)
    assert 0.3 <= part.share < 0.7 and 2 <= part.batches < 9
    assert tree("report") == before


def flip_predictions(count):
    array = np.lib.format.open_memmap("report/predictions/net--iter_fgsm.npy", mode="r+")
    array[0, 0, :count] = (array[0, 0, :count] + 1) % 10


BROKEN = {
    "an accuracy that is no sum of predictions": (
        lambda: change("report/report.json", lambda c: c["results"][1].update(correct=1)),
        "report.json: results does not follow from its predictions",
    ),
    "a checklist that was made better": (
        lambda: change("report/report.json", lambda c: c["checklist"][0].update(number=99.0)),
        "report.json: checklist does not follow",
    ),
    "predictions that are others": (
        lambda: flip_predictions(9),
        "net--iter_fgsm: 9 of 180 numbers are others when computed again",
    ),
    "an array that is gone": (
        lambda: pathlib.Path("report/predictions/net--step_rand.npy").unlink(),
        "predictions: report/predictions/net--step_rand.npy is not there",
    ),
    "an array that is no array": (
        lambda: pathlib.Path("report/predictions/net--clean.npy").write_bytes(b"no"),
        "net--clean.npy is damaged",
    ),
}


@pytest.mark.parametrize("harm, words", BROKEN.values(), ids=BROKEN)
def test_a_report_that_was_changed_does_not_hold(place, capsys, harm, words):
    harm()
    assert run("--verify=report", "--verify_share=1") == 1
    out = capsys.readouterr().out
    assert words in out and out.endswith("report does not hold\n")


@pytest.mark.long
def test_what_attacks_told_is_computed_again(place):
    """Passes that a report is made to follow from are not those of the attack."""
    asked = ASKED | {"attack": ["square"], "num_images": 30, "queries": 9}
    settings = EvaluationSettings(target=["net.keras"], output="suite", **asked)
    Evaluation(settings).run()
    found = ck.verify("suite", 1)
    assert found.holds and found.compared == 30 + 2 * 30 + 2 * 2 * 30
    told = np.lib.format.open_memmap("suite/predictions/net--square--told.npy", mode="r+")
    told[1, 0] //= 2  # half as many forward passes at the smaller epsilon
    told.flush()
    Evaluation(settings).run()  # the report follows from these
    found = ck.verify("suite", 1)
    (problem,) = found.problems
    assert "net--square--told: " in problem and "numbers are others" in problem


def test_a_single_image_on_a_boundary_does_not_matter(place):
    flip_predictions(1)
    found = ck.verify("report", 1)
    # What is counted is another matter: the report follows from its predictions to the image.
    assert found.different == 1 and len(found.problems) > 0
    assert all("does not follow" in problem for problem in found.problems)


def other_weights():
    shutil.copy("other.keras", "net.keras")


REFUSED = {
    "other weights": (other_weights, [], "--target: report was made with"),
    "no network": (lambda: pathlib.Path("net.keras").unlink(), [], "net.keras does not exist"),
    "not finished": (lambda: pathlib.Path("report/report.json").unlink(), [], "is not finished"),
    "no report": (lambda: shutil.rmtree("report"), [], "--verify: report is not a report"),
    "of an earlier version": (
        lambda: change("report/config.json", lambda c: c.pop("settings")),
        [],
        "--verify: report does not say all that it was told",
    ),
    "of a later version": (
        lambda: change("report/config.json", lambda c: c["settings"].update(luck=7)),
        [],
        "was told what this version does not know",
    ),
    "settings that cannot be": (
        lambda: change("report/config.json", lambda c: c["settings"].update(target=5)),
        [],
        "--target: must be a list, got 5",
    ),
    "code of the report": (
        lambda: change("report/config.json", lambda c: c["settings"].update(dataset="os:getcwd")),
        [],
        "names the Python code os:getcwd; say trust_source",
    ),
    "a setting": (lambda: None, ["--seed=4"], "--seed: is the report's own; leave it out"),
    "no share": (lambda: None, ["--verify_share=0"], "--verify_share: must be above 0"),
}


@pytest.mark.parametrize("harm, flags, words", REFUSED.values(), ids=REFUSED)
def test_what_cannot_be_verified_is_refused_in_a_line(place, capsys, harm, flags, words):
    harm()
    before = tree(".")
    assert run("--verify=report", *flags) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1 and words in error
    assert tree(".") == before


def test_networks_and_data_in_memory_are_given_again(place):
    digits, network = ck.data.load("digits"), features(0)
    asked = {key: value for key, value in ASKED.items() if key != "dataset"}
    settings = EvaluationSettings(output="memory", **asked)
    given = {"targets": [network], "dataset": digits}
    Evaluation(settings, **given).run()
    assert ck.verify("memory", 0.1, **given).holds
    with pytest.raises(InputError, match="name at least one network"):
        ck.verify("memory", 0.1)
    with pytest.raises(InputError, match="made with"):
        ck.verify("memory", 0.1, targets=[features(1)], dataset=digits)


def test_an_earlier_report_is_completed_by_its_own_command(place):
    change("report/config.json", lambda c: c.pop("settings"))
    assert run("--target=net.keras", *FLAGS, "--output=report") == 0
    assert ck.verify("report", 0.01).holds


def test_a_dry_run_says_what_it_would_take_and_writes_nothing(place, capsys):
    before = tree(".")
    flags = ["--target=other.keras", *FLAGS, "--output=new", "--dry_run"]
    assert run(*flags) == 0
    out = capsys.readouterr().out
    for name in ("other--clean", "other--step_rand", "other--iter_fgsm"):
        assert name in out
    assert "a gradient of other takes" in out and "gradients are left, about" in out
    assert tree(".") == before and not pathlib.Path("new").exists()

    settings = EvaluationSettings(target=["net.keras"], **ASKED)
    evaluation = Evaluation(settings.replace(output="new"))
    found = evaluation.estimate()
    assert round(found.passes) == evaluation.work
    assert {(t.images, t.left) for t in found.tasks} == {(COUNT, COUNT)}
    assert found.seconds == pytest.approx(found.passes * found.gradient["net"])
    assert found.further == [] and "up to" not in "\n".join(found.sentences())
    # A square of 300 queries at both epsilons above 0 may follow, where gradients mislead.
    suite = settings.replace(attack=["autoattack"], epsilon=[0, 8, 20], queries=300, output="new")
    assert Evaluation(suite).estimate().further == []  # nothing is diagnosed
    found = Evaluation(suite.replace(diagnosis_images=5)).estimate()
    (square,) = found.further
    assert (square.images, square.left, square.passes) == (COUNT, COUNT, 300 / 3 * 2)
    assert f"up to {200 * COUNT:,} more, about" in found.sentences()[-1]
    (row,) = (row for row in found.grid()[1] if row[0] == "net--autoattack--square")
    assert row[2:4] == ["up to 200.0", f"up to {COUNT}"]
    assert round(found.passes) == Evaluation(suite.replace(diagnosis_images=5)).work
    # Of what is there nothing is left.
    done = Evaluation(settings.replace(output="report")).estimate()
    assert done.passes == done.seconds == 0 and tree(".") == before
