"""Networks by any text: applications with their preprocessing, files, a user's own functions."""

import functools
import sys
import types

import h5py
import keras
import numpy as np
import pytest
from keras.src.applications import efficientnet

from cascade_keras import models
from cascade_keras.errors import InputError
from cascade_keras.models import forms
from cascade_keras.runs import TrainingSettings, own

L = keras.layers
IMAGES = np.random.default_rng(0).uniform(0, 1, (2, 32, 36, 3)).astype("float32")
SMALL = "app:MobileNetV2(alpha=0.35)"

MODULE = """
import keras

def make(input_shape, num_classes):
    inputs = keras.Input(input_shape)
    return keras.Model(inputs, keras.layers.Dense(num_classes)(keras.layers.Flatten()(inputs)))

def turned(num_classes, input_shape):
    return make(input_shape, num_classes)

def unnamed(shape, *rest):
    return make(shape, *rest)

class Own(keras.Model):
    def __init__(self, input_shape, num_classes):
        super().__init__()
        self.dense = keras.layers.Dense(num_classes)

    def call(self, images):
        return self.dense(keras.ops.mean(images, axis=(1, 2)))

model = make((8, 8, 1), 10)

def nothing(input_shape, num_classes):
    pass

def one(input_shape):
    return make(input_shape, 3)

def broken(input_shape, num_classes):
    return make(input_shape, num_classes / 0)

def two(input_shape, num_classes):
    inputs = [keras.Input(input_shape), keras.Input(input_shape)]
    return keras.Model(inputs, keras.layers.Concatenate()(inputs))

def flat(input_shape, num_classes):
    return keras.Sequential([keras.Input((64,)), keras.layers.Dense(num_classes)])
"""


@pytest.fixture(autouse=True)
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [str(tmp_path), *sys.path])
    (tmp_path / "own_networks.py").write_text(MODULE)
    yield tmp_path
    sys.modules.pop("own_networks", None)


def found(text, shape=(8, 8, 1), classes=10, **options):
    return models.find(text, input_shape=shape, num_classes=classes, **options)


# keras.applications.


def test_all_applications_of_keras_are_known():
    public = {name for name in dir(keras.applications) if name[0].isupper()}
    assert set(forms.APPLICATIONS) == public


@pytest.mark.parametrize(
    ("name", "module"),
    [
        (SMALL[4:], "mobilenet_v2"),  # tf
        ("DenseNet121", "densenet"),  # torch
        ("VGG16", "vgg16"),  # caffe
        ("MobileNetV3Small", "mobilenet_v3"),  # inside
    ],
)
def test_an_application_takes_unit_images_as_its_own_preprocessing_would(name, module, monkeypatch):
    def base(include_top, weights, input_shape, pooling, **arguments):
        assert (include_top, weights, pooling) == (False, None, "avg")
        return keras.Sequential([keras.Input(input_shape), L.GlobalAveragePooling2D()])

    own = getattr(keras.applications, module).preprocess_input
    monkeypatch.setattr(keras.applications, name.partition("(")[0], base)
    network, taken = found(f"app:{name}", (32, 36, 3), embedding_at="features")
    assert taken == (0, 1)
    expected = own(IMAGES * 255).mean(axis=(1, 2))
    np.testing.assert_allclose(network(IMAGES)["embedding"], expected, rtol=1e-5, atol=1e-5)
    grey, _ = found(f"app:{name}", (32, 36, 1), embedding_at="features")
    expected = own(np.repeat(IMAGES[..., :1], 3, -1) * 255).mean(axis=(1, 2))
    np.testing.assert_allclose(grey(IMAGES[..., :1])["embedding"], expected, rtol=1e-5, atol=1e-5)


def small_base(include_top=False, weights=None, input_shape=(32, 32, 3), pooling="avg", width=4):
    """In place of an application, whose building takes a second each."""
    inputs = keras.Input(input_shape)
    features = L.GlobalAveragePooling2D()(L.Conv2D(width, 3)(inputs))
    return keras.Model(inputs, features)


def test_an_application_is_saved_and_has_the_weights_of_a_local_file(here, monkeypatch):
    monkeypatch.setattr(keras.applications, "VGG16", small_base)
    monkeypatch.setattr(keras.applications, "VGG19", lambda **options: small_base(width=5))
    own, images = small_base(), IMAGES[:, :, :32]
    own.save_weights(here / "own.weights.h5"), own.save(here / "own.h5")
    expected = own(keras.applications.vgg16.preprocess_input(images * 255))
    for name in ("own.weights.h5", "own.h5"):
        network, _ = found("app:VGG16", (32, 32, 3), 7, weights=name, embedding_at="features")
        outputs = network(images)
        np.testing.assert_allclose(outputs["embedding"], expected, rtol=1e-4, atol=1e-4)
        assert outputs["logits"].shape == (2, 7)
        with pytest.raises(InputError, match="does not hold the weights of VGG19") as error:
            found("app:VGG19", (32, 32, 3), weights=name)
        assert error.value.setting == "model_weights"
    network.save(here / "whole.keras")
    loaded = keras.models.load_model(here / "whole.keras")
    np.testing.assert_array_equal(loaded(images)["logits"], outputs["logits"])


def test_efficientnets_published_weights_compute_what_they_do_in_keras(here, monkeypatch):
    """Their deviations stand for variances, which Keras mends by a layer if it downloads them."""
    tiny = functools.partial(
        efficientnet.EfficientNet, 0.1, 0.1, 224, 0.2, name="b0", weights_name="b0"
    )
    monkeypatch.setattr(keras.applications, "EfficientNetB0", tiny)
    options = {"include_top": False, "input_shape": (32, 32, 3), "pooling": "avg"}
    keras.utils.set_random_seed(2)
    published, images = tiny(weights=None, **options), IMAGES[:, :, :32]
    for mean, deviation, mended in (
        ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225), True),
        ((0.0, 0.0, 0.0), (1.0, 1.0, 1.0), False),  # weights of a training without ImageNet's
    ):
        layer = next(each for each in published.layers if isinstance(each, L.Normalization))
        layer.set_weights([np.array(mean), np.array(deviation), np.array(0)])
        layer.finalize_state()
        published.save(here / "notop.h5")
        download = {"get_file": lambda *args, **kwargs: str(here / "notop.h5")}
        monkeypatch.setattr(efficientnet, "file_utils", types.SimpleNamespace(
            exists=lambda path: True, **download))  # fmt: skip
        own = tiny(weights="imagenet" if mended else None, **options)
        own.load_weights(here / "notop.h5")
        network, _ = found("app:EfficientNetB0", (32, 32, 3), weights="notop.h5",
                           embedding_at="features")  # fmt: skip
        expected, actual = own(images * 255), network(images)["embedding"]
        scale = np.std(expected)
        np.testing.assert_allclose(actual / scale, expected / scale, rtol=1e-3, atol=1e-3)


# Files.


def test_a_files_model_keeps_weights_and_frozen_layers_and_not_its_compilation(here):
    model = keras.Sequential([keras.Input((8, 8, 1)), L.Flatten(), L.Dense(9), L.Dense(10)])
    model.layers[1].trainable = False
    model.compile("adam", "mse")
    for name in ("own.keras", "own.h5"):
        model.save(here / name)
        loaded, taken = models.find(name)
        assert taken is None and not loaded.compiled
        assert len(loaded.trainable_variables) == 2 and not loaded.layers[1].trainable
        for one, other in zip(model.get_weights(), loaded.get_weights(), strict=True):
            np.testing.assert_array_equal(one, other)


# A user's functions.


@pytest.mark.parametrize("name", ["make", "turned", "unnamed", "Own", "model"])
def test_a_function_makes_the_network(name):
    network, taken = found(f"own_networks:{name}")
    assert taken is None and network.built
    assert network(np.zeros((3, 8, 8, 1), "float32")).shape == (3, 10)


# What is refused: the text, other arguments, the setting, words.
REFUSED = [
    ("app:MobileNetV4", {}, "model", "near are MobileNetV2"),
    ("app:mobilenetv2", {}, "model", "near are MobileNetV2"),
    ("app:Foo", {}, "model", "such as MobileNetV2"),
    ("app:VGG16(alpha=1)", {}, "model", "takes no argument, got alpha"),
    ("app:MobileNetV2(depth=1)", {}, "model", "takes alpha alone, got depth"),
    ("app:MobileNetV2(alpha=f())", {}, "model", "written as"),
    ("app:MobileNetV2(alpha='x')", {"shape": (32, 32, 3)}, "model", "cannot be built"),
    ("app:VGG16", {"embedding_at": "stage1"}, "embedding_at", "features, logits"),
    ("app:Xception", {"shape": (70, 99, 3)}, "model", "at least 71x71, these are 70x99"),
    ("app:VGG16", {"shape": (32, 32, 2)}, "model", "1 or 3 channels, the images have 2"),
    ("app:VGG16", {"weights": "nowhere.h5"}, "model_weights", "nothing is ever downloaded"),
    ("app:VGG16", {"weights": "own.keras"}, "model_weights", "neither"),
    ("lenet", {"weights": "own.h5"}, "model_weights", "applications"),
    ("nowhere.keras", {}, "model", "does not exist"),
    ("w.weights.h5", {}, "model", "weights alone"),
    ("text.keras", {}, "model", "no .keras file"),
    ("text.h5", {}, "model", "no HDF5 file"),
    ("weights.h5", {}, "model", "no whole model"),
    ("lambda.h5", {}, "model", "Lambda layer"),
    ("lambda.keras", {}, "model", "Lambda layer"),
    ("own_networks:nothing", {}, "model", "returns NoneType, no Keras model"),
    ("own_networks:one", {}, "model", "must take (input_shape, num_classes)"),
    ("own_networks:broken", {}, "model", "own_networks.py line 31"),
    ("own_networks:two", {}, "model", "it takes 2 inputs"),
    ("own_networks:flat", {}, "model", "it takes (None, 64)"),
    ("own_networks:none", {}, "model", "has no none"),
    ("own_networks:make", {"embedding_at": "stage1"}, "embedding_at", "by embedding"),
    ("own_networks:make", {"classes": None}, "model", "give both"),
    ("own_nothing:make", {}, "model", "no module"),
    ("lenet", {"imports": ["own_nothing"]}, "import_", "no module"),
    ("resnet21", {}, "model", "6n + 2"),
    ("unheard", {}, "model", "known: resnetD"),
]


@pytest.mark.parametrize(("text", "options", "setting", "words"), REFUSED)
def test_what_is_no_network_is_one_line(text, options, setting, words, here):
    for name in ("text.keras", "text.h5"):
        (here / name).write_text("a text")
    model = keras.Sequential([keras.Input((8, 8, 1)), L.Lambda(lambda x: x), L.Flatten()])
    if text.startswith("lambda"):
        model.save(here / text)
    with h5py.File(here / "weights.h5", "w") as file:
        file["kernel"] = np.zeros(3)
    with pytest.raises(InputError) as error:
        found(text, **options)
    assert error.value.setting == setting and words in error.value.message
    assert len(str(error.value).splitlines()) == 1


# What a training makes of the texts.


@pytest.mark.parametrize(
    ("text", "label"),
    [
        ("app:VGG16", "vgg16"),
        (SMALL, "mobilenetv2-alpha-0.35"),
        ("nets/My best (2).keras", "My-best-2"),
        ("own_networks:make", "make"),
        ("resnet20", "resnet20"),
    ],
)
def test_a_run_is_called_by_a_part_of_the_text(text, label, here):
    (here / "nets").mkdir()
    (here / "nets" / "My best (2).keras").touch()
    settings = TrainingSettings(dataset="cifar10", model=text).resolved()
    assert settings.name == f"cifar10-{label}-pivot-s0"
    # Networks of others bring their normalisation, and may take other pixels than ours.
    assert settings.normalization == ("pixel" if text == "resnet20" else "none")
    assert settings.resolved() == settings


def test_the_range_that_all_networks_take_is_no_setting():
    settings = TrainingSettings(dataset="digits", model="own_networks:make", value_range=(0, 1))
    assert settings.resolved().value_range is None
    assert settings.replace(value_range=(-1, 1)).resolved().value_range == (-1, 1)


def test_a_network_in_memory_has_no_use_for_what_builds_one():
    for name, value in (("embedding_at", "stage1"), ("model_weights", "w.h5")):
        with pytest.raises(InputError) as error:
            TrainingSettings(**{name: value}).resolved(own_network="mine")
        assert error.value.setting == name


def test_precision_is_said_not_to_be_of_layers_in_files():
    noted = TrainingSettings(model="own.keras", precision="mixed_bfloat16").notes()
    assert any("precision is of new layers" in note for note in noted)
    assert not TrainingSettings(precision="mixed_bfloat16").notes()


class Plain(keras.Model):
    """Says nothing of how it is made."""

    def __init__(self, frozen=False):
        super().__init__()
        self.dense = L.Dense(3, trainable=not frozen)

    def call(self, images):
        return self.dense(L.Flatten()(images))

    def get_config(self):
        raise NotImplementedError


def test_an_architecture_has_its_frozen_layers():
    def sequential(trainable):
        return keras.Sequential(
            [keras.Input((8, 8, 1)), L.Flatten(), L.Dense(3, trainable=trainable)]
        )

    def plain(frozen):
        model = Plain(frozen)
        model(np.zeros((1, 8, 8, 1), "float32"))
        return model

    for make in (sequential, plain):
        assert own.architecture(make(True)) == own.architecture(make(True))
        assert own.architecture(make(True)) != own.architecture(make(False))
