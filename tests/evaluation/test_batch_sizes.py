"""The batch size that is fastest: found by a measurement, remembered, without other results."""

import itertools
import types

import keras
import numpy as np
import pytest
import tensorflow as tf

from cascade_keras import Crafting, CraftSettings, Evaluation, EvaluationSettings, data, speed
from cascade_keras.errors import InputError
from cascade_keras.evaluation import craft, evaluate, measuring
from cascade_keras.provenance import package_versions


@pytest.fixture(autouse=True)
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def timed(monkeypatch):
    """Seconds of an image's gradient by batch size, in place of a measurement."""
    seconds, asked = {}, []

    def gradient_seconds(logits_fn, images, labels):
        assert len(images) == len(labels) and images.dtype == np.float32
        asked.append(len(images))
        found = seconds.get(len(images), 1.0)
        if isinstance(found, Exception):
            raise found
        return found

    monkeypatch.setattr(speed, "gradient_seconds", gradient_seconds)
    return types.SimpleNamespace(seconds=seconds, asked=asked)


IMAGES = np.zeros((3000, 1, 1, 1), np.float32), np.zeros(3000, np.int32)
OUT_OF_MEMORY = tf.errors.ResourceExhaustedError(None, None, "no room")


@pytest.mark.parametrize(
    "seconds, count, chosen, asked",
    [
        ({512: 0.5}, 3000, 512, speed.SIZES[:6]),
        # As fast as any is enough: a smaller one needs less memory.
        ({128: 0.51, 256: 0.505, 512: 0.5}, 3000, 128, speed.SIZES[:6]),
        ({size: 1 / size for size in speed.SIZES}, 3000, 2048, speed.SIZES),
        ({size: 1 / size for size in (*speed.SIZES, 300)}, 300, 300, (32, 64, 128, 256, 300)),
        ({20: 3.0}, 20, 20, (20,)),
        ({64: 0.5}, 64, 64, (32, 64)),
        ({64: 2.0}, 3000, 32, (32, 64)),
        ({64: 0.5, 128: OUT_OF_MEMORY}, 3000, 64, (32, 64, 128)),
        ({32: OUT_OF_MEMORY}, 3000, 32, (32,)),
    ],
)
def test_the_smallest_batch_that_is_as_fast_as_any(timed, seconds, count, chosen, asked):
    timed.seconds.update(seconds)
    found = speed.fastest_batch_size(None, *IMAGES, count)
    assert found.chosen == chosen and timed.asked == list(asked)
    assert f"batch_size {chosen}" in str(found) and "\n" not in str(found)


def test_no_larger_batch_is_tried_once_it_has_taken_long(timed, monkeypatch):
    now = itertools.count(step=speed._SECONDS / 2)
    monkeypatch.setattr(speed.time, "perf_counter", lambda: next(now))
    speed.fastest_batch_size(None, *IMAGES, 3000)
    assert timed.asked == [32, 64, 128]


@pytest.fixture(scope="module")
def network(tmp_path_factory):
    file = tmp_path_factory.mktemp("network") / "net.keras"
    keras.utils.set_random_seed(0)
    images = keras.Input((8, 8, 1))
    logits = keras.layers.Dense(10)(keras.layers.Flatten()(images))
    keras.Model(images, logits).save(file)
    return str(file)


def evaluation(network, batch_size):
    settings = EvaluationSettings(
        target=[network], dataset="digits", attack=["step_fgsm"], epsilon=[8], num_images=100,
        diagnosis_images=0, batch_size=batch_size, output="report",
    )  # fmt: skip
    return Evaluation(settings)


def begin(evaluation):
    """Do what comes before anything is computed."""
    config = evaluation.measuring.plan.config()
    with evaluation.report.opened({**config, "versions": package_versions()}):
        pass


def test_an_evaluation_says_it_and_keeps_it(network, timed):
    timed.seconds[64] = 0.5
    first = evaluation(network, "auto")
    assert any(note.startswith("batch_size 64,") for note in first.notes)
    assert first.settings.batch_size == 64 and "batch_size 64" not in str(first.measuring.notes)
    begin(first)
    # Gone on with where another size is fastest by now; and by one who says so himself.
    timed.seconds[32], timed.asked[:] = 0.1, []
    again = evaluation(network, "auto")
    assert again.settings.batch_size == 64 and not timed.asked
    assert "batch_size 64, with which report was begun" in again.notes
    begin(again)
    with pytest.raises(InputError) as error:
        begin(evaluation(network, 32))
    assert error.value.setting == "batch_size"


def test_a_bank_keeps_the_shards_that_it_was_begun_with(network, timed):
    timed.seconds[64] = 0.5
    said = []

    def crafting(**others):
        settings = CraftSettings(
            source=network, dataset="digits", split="test", epsilons=[4, 8], examples=100,
            batch_size="auto", output="bank", **others,
        )  # fmt: skip
        return Crafting(settings, say=said.append)

    with pytest.raises(InputError, match="each worker"):  # of which one would be faster
        crafting(worker="0/2").run()
    assert crafting().run().record["shard_size"] == 64
    assert crafting(worker="1/2").share == 36
    timed.asked.clear()
    assert crafting().run().record["shard_size"] == 64
    assert len(said) == 3 and not timed.asked
    assert all(line.startswith("batch_size 64, ") for line in said)


def test_one_call_from_python(network, timed, capsys):
    timed.seconds[64] = 0.5
    stored, labels = data.load("digits").test
    images = stored[:100].astype(np.float32) / np.float32(255)
    model = keras.models.load_model(network)
    given = (model, images, labels[:100])
    found = evaluate(*given, "step_fgsm", 8, batch_size="auto", diagnosis_images=0)
    assert "batch_size 64" in capsys.readouterr().err
    fixed = evaluate(*given, "step_fgsm", 8, diagnosis_images=0, progress=False)
    assert found.accuracy["step_fgsm", 8] == fixed.accuracy["step_fgsm", 8]
    np.testing.assert_array_equal(
        craft(*given, "step_fgsm", 8, batch_size="auto"), craft(*given, "step_fgsm", 8)
    )


def test_measured_are_the_gradients_that_are_taken(network, timed, monkeypatch):
    taken = []
    monkeypatch.setattr(
        measuring, "fastest_batch_size",
        lambda logits, images, labels, count: taken.append(count) or speed.BatchSize(50, {}),
    )  # fmt: skip
    assert evaluation(network, "auto").settings.batch_size == 50
    assert taken == [100]


def test_what_is_no_number_and_not_auto_is_refused():
    for wrong in ("fast", 0, -1, 2.5, "AUTO"):
        with pytest.raises(InputError) as error:
            EvaluationSettings(batch_size=wrong)
        assert error.value.setting == "batch_size" and "\n" not in str(error.value)
    with pytest.raises(InputError, match="or auto"):
        CraftSettings(batch_size="fast")
