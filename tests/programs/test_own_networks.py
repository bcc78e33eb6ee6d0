"""A user's own networks in bin/train: what is trained, what is kept, and one line for what is not.

Each network is a text: a module's function, a file, an application.
"""

import json
import pathlib
import runpy
import sys

import keras
import numpy as np
import pytest
from support.files import ROOT
from support.processes import check_refused

from cascade_keras import draws
from cascade_keras.cli.train import main
from cascade_keras.errors import InputError
from cascade_keras.layers import ConvBatchNorm
from cascade_keras.runs import build
from cascade_keras.sources import load_source

L = keras.layers
FLAGS = ["--dataset=digits", "--eval_attacks=step_ll", "--tensorboard=none", "--batch_size=32",
         "--adversarial_batch_size=16", "--log_steps=2", "--lr_boundaries=none", "--name=run",
         "--steps=4"]  # fmt: skip

MODULE = """
import keras
import tensorflow as tf
from keras import layers

class Noise(layers.Layer):
    def call(self, features, training=False):
        return features + keras.random.normal(keras.ops.shape(features)) if training else features

@keras.saving.register_keras_serializable("own")
class Scale(layers.Layer):
    def build(self, shape):
        self.scale = self.add_weight(shape=(), initializer="ones")

    def call(self, features):
        return features * self.scale

class Raw(layers.Layer):
    def __init__(self):
        super().__init__()
        self.scale = tf.Variable(1.0)

    def call(self, features):
        return features * self.scale

def net(input_shape, num_classes, *last):
    return keras.Sequential([keras.Input(input_shape), layers.Flatten(), layers.Dense(16, "relu"),
                             *last, layers.Dense(num_classes)])

def unit(input_shape, num_classes):
    inputs = keras.Input(input_shape)
    hidden = layers.Dense(16, "relu", name="hidden")(layers.Flatten()(inputs))
    return keras.Model(inputs, {"logits": layers.Dense(num_classes)(hidden), "embedding": hidden})

def bytes(input_shape, num_classes):
    inputs = keras.Input(input_shape)
    features = layers.Flatten()(layers.Rescaling(1 / 255)(inputs))
    hidden = layers.Dense(16, "relu", name="hidden")(features)
    classes = layers.Dense(num_classes, "softmax")(hidden)
    return keras.Model(inputs, {"classes": classes, "other": layers.Rescaling(2.0)(hidden)})

def drawing(input_shape, num_classes):
    return net(input_shape, num_classes, layers.Dropout(0.5), Noise())

def stateful(input_shape, num_classes):
    noise = layers.Lambda(lambda x: x + tf.random.normal(tf.shape(x)))
    return net(input_shape, num_classes, noise)

def raw(input_shape, num_classes):
    return net(input_shape, num_classes, Raw())

def seven(input_shape, num_classes):
    return net(input_shape, 7)

def larger(input_shape, num_classes):
    return net((9, 9, 1), num_classes)

def failing(input_shape, num_classes):
    return net(input_shape, num_classes[0])

def two(input_shape, num_classes):
    inputs = [keras.Input(input_shape), keras.Input(input_shape)]
    return keras.Model(inputs, layers.Flatten()(layers.add(inputs)))

def none(input_shape, num_classes):
    return "a network"
"""


@pytest.fixture(autouse=True)
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    pathlib.Path("own_nets.py").write_text(MODULE)
    pathlib.Path("own_broken.py").write_text("import keras\n\nkeras.nothing\n")
    yield tmp_path
    for name in ("own_nets", "own_broken"):
        sys.modules.pop(name, None)
    for name in [name for name in keras.saving.get_custom_objects() if name.startswith("own>")]:
        del keras.saving.get_custom_objects()[name]


def train(*flags):
    return main(["train", *FLAGS, *flags])


def network(path="runs/run/model.keras"):
    return keras.models.load_model(path, compile=False)


def same(one, other):
    assert len(one) == len(other)
    return all(np.array_equal(a, b) for a, b in zip(one, other, strict=True))


def test_what_draws_in_its_layers_ends_the_same_when_it_was_stopped(here, capsys):
    """Dropout keeps a state that no file holds, and Noise draws by the one of the process."""
    flags = ("--model=own_nets:drawing", "--checkpoint_steps=2", "--noexport", "--deterministic")
    assert train(*flags) == 0
    run = here / "runs" / "run"
    names = {"Noise": sys.modules["own_nets"].Noise}
    kept = run / "checkpoints" / "step-00000004.keras"
    first = keras.models.load_model(kept, compile=False, custom_objects=names).get_weights()
    for path in (run / "metrics.json", run / "model.keras", kept):
        path.unlink()
    keras.utils.set_random_seed(77)  # another process's state
    assert train(*flags) == 0 and "going on from step 2" in capsys.readouterr().out
    assert same(
        first, keras.models.load_model(kept, compile=False, custom_objects=names).get_weights()
    )
    config = json.loads((run / "config.json").read_text())
    assert config["flags"]["model"] == "own_nets:drawing" and config["flags"]["embedding"] is None
    # And goes on with this network only.
    for name in ("metrics.json", "model.keras"):
        (run / name).unlink()
    text = (here / "own_nets.py").read_text()
    (here / "own_nets.py").write_text(text.replace('Dense(16, "relu")', 'Dense(16, "tanh")'))
    sys.modules.pop("own_nets")
    assert train(*flags) == 2


def test_each_step_and_each_layer_draws_anew():
    states = [draws.layer_states(seed, step, 2) for seed in (0, 1) for step in (3, 4)]
    assert len({tuple(row) for state in states for row in state.numpy().tolist()}) == 8


def test_pixels_and_outputs_are_what_the_network_has(here):
    """A network of bytes that ends in a softmax is trained as its twin of [0, 1] with logits."""
    assert train("--model=own_nets:unit", "--name=unit", "--noexport") == 0
    flags = ("--value_range=0,255", "--logits=classes", "--embedding=hidden", "--name=bytes")
    assert train("--model=own_nets:bytes", *flags, "--tensorboard=all") == 0
    twins = [network(f"runs/{name}/model.keras") for name in ("unit", "bytes")]
    assert set(twins[1].output) == {"classes", "other"}  # as the user has made it
    for one, other in zip(*(twin.get_weights() for twin in twins), strict=True):
        np.testing.assert_allclose(one, other, atol=1e-5)
    results = [json.loads(pathlib.Path(f"runs/{name}/metrics.json").read_text())["results"]
               for name in ("unit", "bytes")]  # fmt: skip
    assert results[0] == results[1]
    images = np.random.default_rng(0).uniform(0, 1, (5, 8, 8, 1)).astype("float32")
    for place in ("runs/bytes", "saved/bytes"):
        outputs = load_source(place)(images)
        for name, value in twins[0](images).items():
            np.testing.assert_allclose(outputs[name], value, atol=1e-4)


def test_what_is_frozen_stays_as_it_was_bit_for_bit(here):
    keras.utils.set_random_seed(3)
    base = keras.Sequential([L.Conv2D(4, 3), L.BatchNormalization(), ConvBatchNorm(4)])
    base.trainable = False
    model = keras.Sequential([keras.Input((8, 8, 1)), base, L.Flatten(), L.Dense(10)])
    model.compile("adam", "mse")  # which is ignored
    for name in ("start.keras", "start.h5"):
        model.save(name)
    flags = ("--model=start.keras", "--weight_decay=0.1", "--learning_rate=0.001", "--steps=2")
    assert train(*flags) == 0
    trained = network()
    assert same(base.get_weights(), trained.layers[0].get_weights())
    # The rest went on from the weights that it had.
    for before, after in zip(model.get_weights()[-2:], trained.get_weights()[-2:], strict=True):
        assert 0 < abs(before - after).max() < 0.02
    # A saved network, an .h5 file and a run hold weights of this network as well.
    for start, expected in (("start.h5", model), ("saved/run", trained), ("saved/run/1", trained),
                            ("runs/run", trained)):  # fmt: skip
        fresh = keras.models.clone_model(model)
        build.load_initialisation(fresh, start)
        assert same(fresh.get_weights(), expected.get_weights())
    with pytest.raises(InputError, match="does not hold the weights of this network") as error:
        build.load_initialisation(keras.Sequential([keras.Input((3,)), L.Dense(4)]), "saved/run")
    assert error.value.setting == "init_from"


def test_the_example_of_fine_tuning_does_what_it_says(here):
    """That what is frozen stays as it was it checks itself."""
    main_of = runpy.run_path(str(ROOT / "examples" / "fine_tune.py"))["main"]
    found = main_of(steps=2, epochs=1, attacks=["step_fgsm"], max_epsilon=16)
    assert set(found) == {"standard", "pivot"}
    assert set(found["pivot"]) == {"clean", "step_fgsm"}
    assert network("runs/digits-fine_tune-pivot-s0/model.keras").input_shape == (None, 8, 8, 1)


def test_layers_of_the_users_own_are_known_after_their_import(here, capfd, monkeypatch):
    monkeypatch.syspath_prepend(here)
    import own_nets

    scaled = own_nets.net((8, 8, 1), 10, own_nets.Scale())
    for name in ("scale.keras", "scale.h5"):
        scaled.save(name)
    del keras.saving.get_custom_objects()["own>Scale"], sys.modules["own_nets"]
    for name in ("scale.keras", "scale.h5"):
        message = f"train: --model: {name} .*class Scale, which is not known; .*by import"
        check_refused(capfd, here, message, train, f"--model={name}")
    assert train("--model=scale.keras", "--import=own_nets", "--noexport", "--steps=1") == 0
    assert sys.modules["own_nets"].Scale is type(network().layers[2])


def test_what_tensorflow_draws_is_said_to_be_lost(here, capsys):
    flags = ("--model=own_nets:stateful", "--noexport", "--steps=1")
    assert train(*flags, "--loss=kurakin") == 0
    assert "note: the network draws by tf.random (RandomStandardNormal)" in capsys.readouterr().out
    assert train(*flags, "--name=pairs") == 2  # each of a pair would be given its own noise
    assert "train: --model: the network has a layer that draws" in capsys.readouterr().err


# Flags, and part of the one line.
REFUSED = [
    (["--model=own_nets:seven"], "--model: tells 7 classes apart, the dataset has 10"),
    (["--model=own_nets:larger"], r"--model: takes .None, 9, 9, 1., the dataset's images are"),
    (["--model=own_nets:failing"], "--model: .*TypeError: .*own_nets.py line 59"),
    (["--model=own_nets:two"], "--model: .*it takes 2 inputs"),
    (["--model=own_nets:none"], "--model: own_nets:none returns str, no Keras model"),
    (["--model=own_nets:raw"], "--model: .*1 variables that Keras does not know"),
    (["--model=own_broken:net"], "--model: .*AttributeError: .*own_broken.py line 3"),
    (["--model=own_nets:nothing"], "--model: .*has no nothing"),
    (["--model=nowhere.keras"], "--model: nowhere.keras does not exist"),
    (["--model=own_nets.py"], "--model: unknown model"),
    (["--model=app:MobileNetV4"], "--model: .*near are MobileNetV2"),
    (["--model=app:MobileNetV2"], "--model: MobileNetV2 takes images of at least 32x32"),
    (["--model=lenet", "--value_range=0,255"], "--value_range: is of own networks; lenet takes"),
    (["--model=own_nets:net", "--value_range=255,0"], "--value_range: must be the lowest and"),
    (["--model=own_nets:net", "--value_range=1"], "--value_range: must be the lowest and"),
    (["--model=own_nets:net", "--embedding_at=stage1"], "--embedding_at: .*by embedding"),
    (["--model=own_nets:net", "--normalization=pixel"], "--normalization: is of networks of ours"),
    (["--model=own_nets:net", "--model_weights=a.h5"], "--model_weights: is of applications"),
    (["--model=lenet", "--logits=x"], "--logits: is of own networks"),
    (["--model=lenet", "--embedding=x", "--embedding_at=stage1"], "--embedding_at: has no meaning"),
    (["--model=own_nets:bytes"], "--logits: the network returns 'classes', 'other'"),
    (["--model=own_nets:net", "--embedding=nix"], "--embedding: .*no layer 'nix'"),
    (["--model=lenet", "--embedding=nix"], "--embedding: .*no layer 'nix'"),
    (["--import=own_broken"], "--import: .*own_broken.py line 3"),
    (["--import=own_nothing"], "--import: there is no module 'own_nothing'"),
]  # fmt: skip


@pytest.mark.parametrize(("flags", "message"), REFUSED, ids=lambda value: str(value)[:40])
def test_what_is_no_network_of_these_images_is_one_line(flags, message, here, capfd):
    check_refused(capfd, here, f"train: .*{message}", train, *flags)
