"""The examples with networks and images of one's own: each at a small size."""

import functools
import runpy
import sys

import keras
import numpy as np
import pytest
import tensorflow as tf
from support.files import ROOT

import cascade_keras as ck
from cascade_keras import data
from cascade_keras.cli import train

EXAMPLES = ROOT / "examples"


@pytest.fixture
def example(monkeypatch):
    """Returns what an example defines, its attacks and what is made of their numbers shortened."""

    def defined(name, **constants):
        story = runpy.run_path(str(EXAMPLES / name))
        pgd = ck.attacks.PGD(steps=5, restarts=1)
        names = story["main"].__globals__
        for constant, value in {"ATTACKS": ["step_fgsm", pgd], **constants}.items():
            monkeypatch.setitem(names, constant, value)
        monkeypatch.setattr(
            ck, "evaluate", functools.partial(measure, diagnosis_images=0, progress=False)
        )
        return names

    measure = ck.evaluate
    return defined


@pytest.fixture
def npz(tmp_path):
    """The digits as an .npz, whose grey images have no axis of channels."""
    digits = data.load("digits")
    (x_train, y_train), (x_test, y_test) = digits.train, digits.test
    arrays = {"x_train": x_train[..., 0], "x_test": x_test[..., 0]}
    np.savez(tmp_path / "digits.npz", y_train=y_train, y_test=y_test, **arrays)
    return tmp_path / "digits.npz"


def test_a_cnn_of_pixels_is_hardened(example, npz):
    story = example("own_cnn.py", TRAININGS={"pivot": {"loss": "pivot"}})
    accuracy = story["main"](str(npz), epsilon=51, epochs=8, images=100).accuracy
    assert accuracy["clean"] > 85
    assert accuracy["pgd"] <= accuracy["step_fgsm"] < accuracy["clean"] - 20


def test_the_same_cnn_by_the_programs(npz, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(EXAMPLES)
    monkeypatch.delitem(sys.modules, "own_cnn", raising=False)
    flags = (f"--dataset={npz}", "--model=own_cnn:build", "--value_range=0,255", "--steps=60",
             "--eval_attacks=step_fgsm", "--eval_examples=100", "--tensorboard=none", "--noexport",
             "--name=cnn")  # fmt: skip
    assert train.main(["train", *flags]) == 0
    assert (tmp_path / "runs/cnn/metrics.json").exists()


@pytest.mark.long
def test_a_network_of_one_probability_stays_one(example):
    accuracy = example("own_binary.py", LOSSES=["pivot"])["main"](epochs=10, images=150).accuracy
    assert accuracy["clean"] > 90
    assert accuracy["pgd"] <= accuracy["step_fgsm"] < accuracy["clean"]


@pytest.mark.long
def test_a_recipe_of_keras_stops_early_and_keeps_its_precision(example):
    policy = keras.config.dtype_policy()
    changed = {"MONITORED": {"pivot": "val_pgd_accuracy"}, "ATTACKS": ["step_fgsm"]}
    main = example("own_recipe.py", **changed)["main"]
    accuracy = main("digits", epsilon=8, epochs=2, steps_per_epoch=8, images=40).accuracy
    assert keras.config.dtype_policy() == policy
    assert accuracy["step_fgsm"] <= accuracy["clean"]


def test_mixup_mixes_images_and_labels_alike(example):
    images = tf.reshape(tf.eye(4), [4, 2, 2, 1])
    mixed, labels = example("own_recipe.py")["mixup"](images, tf.eye(4))
    np.testing.assert_allclose(mixed.numpy().reshape(4, 4), labels, atol=1e-6)
    np.testing.assert_allclose(tf.reduce_sum(labels, axis=1), 1, atol=1e-6)
    assert (np.diag(labels) >= 0.5).all()


@pytest.fixture
def pictures(example, tmp_path):
    """A folder as make_folder.py writes it: dark and bright pictures of 32x32."""
    write = example("make_folder.py")["write_pictures"]
    rng = np.random.default_rng(0)
    for split, count in (("train", 64), ("test", 20)):
        for name, low in (("bright", 180), ("dark", 0)):
            noise = rng.integers(low, low + 70, (count, 32, 32, 3), dtype=np.uint8)
            write(f"{tmp_path}/{split}/{name}", noise)
    return tmp_path


def small_base(shape, *, alpha, include_top, pooling, weights, name):
    """In place of a MobileNetV2, which takes longer to trace than to train."""
    images = keras.Input(shape)
    x = keras.layers.BatchNormalization()(keras.layers.Conv2D(4, 3, 2)(images))
    x = keras.layers.GlobalAveragePooling2D()(keras.layers.ReLU()(x))
    base = keras.Model(images, x, name=name)
    if weights:
        base.load_weights(weights)
    return base


def test_a_head_is_trained_and_then_all_layers(example, pictures, monkeypatch):
    kept = str(pictures / "base.weights.h5")
    options = {"alpha": 1, "include_top": False, "pooling": "avg", "name": "base"}
    small_base((32, 32, 3), weights=None, **options).save_weights(kept)
    built = []

    def base(*arguments, **options):
        built.append(small_base(*arguments, **options))
        return built[-1]

    monkeypatch.setattr(keras.applications, "MobileNetV2", base)
    story = example("own_folder.py", LOSSES=["pivot"], RATES={"head": 0.1, "all layers": 1e-4})

    trained = []
    train = story["train"]

    def training(network, *arguments):
        before = [w.numpy() for w in built[-1].weights]
        train(network, *arguments)
        trained.append(any((w.numpy() != b).any() for w, b in zip(built[-1].weights, before)))

    monkeypatch.setitem(story, "train", training)
    measured = story["main"](str(pictures), kept, head_epochs=5, all_epochs=1, size=(32, 32))
    assert trained == [False, True], "a frozen base moved, or one that was not did not"
    for report in measured.values():
        assert report.accuracy["clean"] > 90
        assert report.class_names == ("bright", "dark")
