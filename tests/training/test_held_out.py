"""Training images that are held back: never trained on, looked at, chosen by."""

import json
import pathlib

import keras
import numpy as np
import pytest
import tensorflow as tf

from cascade_keras import Training, TrainingSettings, attacks, data, draws
from cascade_keras.errors import InputError
from cascade_keras.runs import build

SMALL = {
    "dataset": "digits", "model": "lenet", "steps": 6, "batch_size": 32, "eval_examples": 20,
    "adversarial_batch_size": 16, "eval_attacks": ["step_ll"], "tensorboard": "none",
    "export": False, "name": "run", "validation_images": 40, "checkpoint_steps": 2,
    "lr_boundaries": [], "loss": "kurakin", "attack": "step_fgsm",
}  # fmt: skip


@pytest.fixture(autouse=True)
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


def train(say=lambda text: None, **changes):
    return Training(TrainingSettings(**{**SMALL, **changes}), say=say).run()


def content(name, run="runs/run"):
    return json.loads(pathlib.Path(run, name).read_text())


def weights(run="runs/run"):
    return keras.models.load_model(f"{run}/model.keras", compile=False).get_weights()


def forget(after, run="runs/run"):
    """Leave a run as one that was killed some steps after a checkpoint."""
    for path in (pathlib.Path(run, "metrics.json"), pathlib.Path(run, "model.keras")):
        path.unlink()
    for path in pathlib.Path(run).glob("checkpoints/step-*.keras"):
        if int(path.stem[5:]) > after:
            path.unlink()


def test_each_class_has_its_share_and_the_seed_decides():
    labels = np.repeat([0, 1, 2], [50, 30, 20])[np.random.default_rng(0).permutation(100)]
    for count, shares in ((10, [5, 3, 2]), (11, [6, 3, 2]), (1, [1, 0, 0]), (99, [50, 30, 19])):
        found = draws.held_out(labels, count, seed=3)
        assert list(found) == sorted({*found}) and len(found) == count
        if count != 99:  # where two fractions are as large
            assert list(np.bincount(labels[found], minlength=3)) == shares
    generator = np.random.default_rng([3, 8])
    expected = [
        generator.permutation(np.flatnonzero(labels == k))[:n] for k, n in enumerate([5, 3, 2])
    ]
    np.testing.assert_array_equal(draws.held_out(labels, 10, 3), np.sort(np.concatenate(expected)))
    assert {*draws.held_out(labels, 10, 4)} != {*draws.held_out(labels, 10, 3)}


class Numbered:
    """Partners that are nothing but the numbers of their images."""

    rows, examples = range(1, 4), 30

    def read(self, step, indices, taken=None):
        return tf.ones([1, 4, 4, 1], tf.uint8) * tf.cast(indices, tf.uint8)[:, None, None, None]


@pytest.mark.parametrize("partners", [None, Numbered()], ids=["alone", "bank"])
@pytest.mark.parametrize("parts", [1, 2])
def test_no_batch_has_an_image_that_is_held_out(partners, parts):
    """Not as a clean image, not as an adversarial one of a bank, which keeps its own numbers."""
    images = np.ones((50, 4, 4, 1), np.uint8) * np.arange(50, dtype=np.uint8)[:, None, None, None]
    held_out = np.array([0, 7, 21, 29, 30, 49])
    options = {"seed": 1, "partners": partners, "held_out": held_out, "stop": 22}
    if parts > 1:
        options |= {"replicas": range(2), "of_replicas": 2}
    seen, brought = [], []
    for batch, labels in data.batches(images, np.arange(50), 8, **options):
        numbers = np.round(batch.images[:, 0, 0, 0].numpy() * 255).astype(int)
        np.testing.assert_array_equal(numbers, labels)
        seen += list(numbers)
        if partners:
            brought += list(np.round(batch.cascade[:, 0, 0, 0].numpy() * 255).astype(int))
            if parts == 1:
                assert brought[-3:] == list(numbers[1:4])
    assert not {*seen, *brought} & {*held_out}
    if partners:
        assert max(brought) == 28 and len({*brought}) >= 20
    else:
        np.testing.assert_array_equal(
            np.bincount(seen, minlength=50), 4 * ~np.isin(np.arange(50), held_out)
        )


def test_a_bank_of_held_out_images_alone_is_refused():
    images = np.zeros((50, 4, 4, 1), np.uint8)
    with pytest.raises(InputError) as error:
        data.batches(images, np.arange(50), 4, seed=0, partners=Numbered(), held_out=np.arange(30))
    assert error.value.setting == "bank_examples"


def test_looks_are_recorded_and_repeated_by_a_run_that_goes_on(here):
    said = []
    train(said.append)
    assert content("config.json")["flags"]["validation_steps"] == 1
    expected = content("validation.json")
    assert [row["step"] for row in expected["rows"]] == [1, 2, 3, 4, 5, 6]
    assert sum("held-out" in line for line in said) == 6
    final = weights()
    before = (here / "runs/run/validation.json").read_bytes()
    forget(after=2)
    train()
    assert (here / "runs/run/validation.json").read_bytes() == before
    for one, other in zip(final, weights(), strict=True):
        np.testing.assert_array_equal(one, other)

    # The last row by other means: the network as it was saved, image by image.
    model = keras.models.load_model("runs/run/model.keras", compile=False)

    def network(images):
        return model(images)["logits"]

    dataset = data.load("digits")
    settings = TrainingSettings(**SMALL).resolved()
    held_out = build.held_out(settings, dataset)
    assert len(held_out) == 40 == expected["images"]
    images = dataset.train[0][held_out].astype(np.float32) / 255
    labels = dataset.train[1][held_out]
    found = {"clean": images, "attacked": attacks.step_fgsm(network, images, labels, 76.5)}
    found["pgd"] = attacks.pgd(network, images, labels, 76.5, steps=10, restarts=1, seed=[0, 0])
    for name, shown in found.items():
        right = np.argmax(network(shown), -1) == labels
        assert abs(right.sum() - expected["rows"][-1][name]) <= (name != "clean")

    # The mean image of the network is that of the images that it is trained on.
    trained = np.delete(dataset.train[0], held_out, axis=0).mean(0) / 255
    np.testing.assert_allclose(data.mean_image(dataset, 8, held_out), trained, atol=1e-6)

    forget(after=4)
    rows = expected["rows"]
    (here / "runs/run/validation.json").write_text(json.dumps({**expected, "rows": rows[1:]}))
    with pytest.raises(InputError, match="lacks the look of step 1"):
        train()


def test_the_steps_of_an_epoch_are_those_of_the_images_that_are_left():
    settings = TrainingSettings(
        dataset="digits", epochs=2, batch_size=50, adversarial_batch_size=25, loss="kurakin",
        validation_images=437,
    )  # fmt: skip
    resolved = settings.resolved()
    assert resolved.steps == 40 and resolved.validation_steps == 2
    assert resolved.validation_epsilon == resolved.max_epsilon and resolved.resolved() == resolved


REFUSED = [
    ({"validation_images": 0, "validation_steps": 5}, "validation_steps", "validation_images"),
    ({"validation_images": 0, "validation_epsilon": 5}, "validation_epsilon", "validation_images"),
    ({"validation_images": 1406}, "validation_images", "1437"),
]


@pytest.mark.parametrize(("changes", "name", "word"), REFUSED, ids=lambda value: str(value)[:40])
def test_what_contradicts_is_refused(changes, name, word):
    with pytest.raises(InputError) as error:
        train(**changes)
    assert error.value.setting == name and word in error.value.message
