"""What an ordinary user may do wrong from Python, and did without a word of it, or with pages."""

import keras
import numpy as np
import pytest
import tensorflow as tf

import cascade_keras as ck
from cascade_keras import attacks
from cascade_keras.attacks import outputs
from cascade_keras.border import adapt
from cascade_keras.errors import InputError, first_line
from cascade_keras.evaluation import one_call

RNG = np.random.default_rng(0)
IMAGES = RNG.random((12, 4, 4, 1)).astype("float32")
CLASSES = np.arange(12) % 3


def make_network(end=None, inputs=(4, 4, 1), dtype=None):
    layers = keras.layers
    flat = [layers.Flatten(dtype=dtype)] if len(inputs) > 1 else []
    dense = layers.Dense(3, activation=end, dtype=dtype)
    return keras.Sequential([keras.Input(inputs, dtype=dtype), *flat, dense])


def make_trainer(network=None, **compiled):
    trainer = ck.AdversarialTrainer(network or make_network(), "kurakin")
    trainer.compile(keras.optimizers.SGD(0.1), **compiled)
    return trainer


def refused(call, setting=None):
    """Return the one line with which something is refused."""
    with pytest.raises(InputError) as caught:
        call()
    assert "\n" not in str(caught.value)
    assert caught.value.setting == setting
    return str(caught.value)


def with_nan():
    images = IMAGES.copy()
    images[-1, 0, 0, 0] = np.nan
    return images


WRONG = {  # x, y, weights -> setting, words
    "NaN": ((with_nan(), CLASSES), None, "not finite numbers"),
    "a class too many": ((IMAGES, CLASSES + 1), "labels", "0..2"),
    "negative weights": ((IMAGES, CLASSES, -np.ones(12)), "sample_weight", "0 or above"),
    "weights of NaN": ((IMAGES, CLASSES, np.full(12, np.nan)), "sample_weight", "finite"),
}


@pytest.mark.parametrize("name", ["NaN", "negative weights"])
def test_values_that_would_spoil_the_weights_are_refused(name):
    data, setting, words = WRONG[name]
    weights = {"sample_weight": data[2]} if len(data) > 2 else {}
    trainer = make_trainer()
    assert words in refused(lambda: trainer.fit(*data[:2], verbose=0, **weights), setting)


@pytest.mark.parametrize("name", ["a class too many", "weights of NaN"])
def test_an_eager_step_says_it_in_one_line(name):
    data, setting, words = WRONG[name]
    trainer = make_trainer(run_eagerly=True)
    weights = data[2] if len(data) > 2 else None
    assert words in refused(lambda: trainer.fit(*data[:2], sample_weight=weights), setting)


REFUSED = {
    "channels first": (
        lambda: make_trainer().fit(np.moveaxis(IMAGES, -1, 1), CLASSES, verbose=0),
        None,
        "np.moveaxis(images, 1, -1)",
    ),
    "a list": (lambda: make_trainer().fit(IMAGES.tolist(), CLASSES), "x", "np.asarray"),
    "no images": (lambda: make_trainer().fit(IMAGES[:0], CLASSES[:0]), "x", "no images"),
    "names": (lambda: make_trainer().fit(IMAGES, CLASSES.astype(str)), "y", "np.unique"),
    "one image": (
        lambda: make_trainer().fit(tf.data.Dataset.from_tensor_slices((IMAGES, CLASSES))),
        None,
        "dataset.batch(64)",
    ),
    "weights in a list": (
        lambda: make_trainer().fit(IMAGES, CLASSES, class_weight=[1, 2, 3]),
        "class_weight",
        "dict",
    ),
    "a negative class weight": (
        lambda: make_trainer().fit(IMAGES, CLASSES, class_weight={0: -1.0}),
        "class_weight",
        "0 or above, got -1.0",
    ),
    "half a split": (
        lambda: make_trainer().fit(IMAGES, CLASSES, validation_split=-0.5),
        "validation_split",
        "got -0.5",
    ),
    "no optimizer": (
        lambda: ck.AdversarialTrainer(make_network()).compile(None),
        "optimizer",
        "adam",
    ),
    "val_accuracy": (
        lambda: make_trainer().fit(
            IMAGES, CLASSES, callbacks=[keras.callbacks.EarlyStopping("val_accuracy")]
        ),
        "monitor",
        "val_adversarial_accuracy",
    ),
    "two inputs": (
        lambda: ck.AdversarialTrainer(
            keras.Model(
                two := [keras.Input((4, 4, 1)), keras.Input((4, 4, 1))],
                make_network()(keras.layers.add(two)),
            )
        ),
        None,
        "takes 2 inputs",
    ),
    "rows for images": (
        lambda: ck.AdversarialTrainer(make_network(inputs=(16,))),
        None,
        "keras.layers.Flatten",
    ),
    "per cents": (
        lambda: adapt(keras.Sequential([make_network("softmax"), keras.layers.Rescaling(100.0)])),
        "from_logits",
        "rows sum to 100",
    ),
    "arrays for tensors": (
        lambda: adapt(lambda images: np.zeros((len(images), 3)), image_shape=(4, 4, 1)),
        None,
        "with TensorFlow's tensors",
    ),
    "maps for rows": (
        lambda: adapt(keras.Sequential([make_network(), keras.layers.Reshape((1, 1, 3))])),
        None,
        "Flatten",
    ),
    "a class that the network has not": (
        lambda: attacks.iter_fgsm(make_network(), IMAGES, CLASSES + 1, 8, objective="margin"),
        "labels",
        "classes up to 3 for logits of 3",
    ),
    "rows of other classes": (
        lambda: attacks.step_fgsm(make_network(), IMAGES, np.eye(4)[CLASSES], 8),
        "labels",
        "rows of 4 for logits of 3",
    ),
    "an old file": (lambda: make_trainer().save("nowhere/trainer.h5"), "filepath", ".keras"),
    "no attacks": (lambda: ck.evaluate(make_network(), IMAGES, CLASSES, None, 8), "attack", "None"),
    "an ignored class": (
        lambda: ck.evaluate(make_network(), IMAGES, CLASSES - 1, epsilons=8, progress=False),
        "labels",
        "must be 0..2, got -1",
    ),
    "a name twice": (
        lambda: ck.export_saved_model(make_network(), "nowhere", class_names=["a", "b", "a"]),
        "class_names",
        "different",
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_a_mistake_is_told_in_one_line(name):
    call, setting, words = REFUSED[name]
    assert words in refused(call, setting)


def test_positive_numbers_that_share_no_sum_are_logits():
    logits = np.array([[20, 30, 49], [20, 30, 50]], "float32")
    assert not outputs.is_share(logits)
    assert outputs.is_share(np.array([[20, 30, 50], [21, 30, 49]], "float32"))
    assert not outputs.is_share(np.full((2, 3), 7.0, "float32"))  # of an untrained last layer


def test_measuring_in_a_graph_is_told():
    measure = tf.function(lambda images: ck.evaluate(make_network(), images, CLASSES))
    with pytest.raises(Exception, match=r"call it outside of tf[.]function"):
        measure(IMAGES)


def test_a_network_of_another_precision_trains():
    networks = [make_network(dtype="float64"), make_network()]
    networks[1].set_weights([np.asarray(w, "float32") for w in networks[0].get_weights()])
    losses = [
        make_trainer(each).fit(IMAGES, CLASSES, verbose=0, shuffle=False).history["loss"][0]
        for each in networks
    ]
    np.testing.assert_allclose(*losses, rtol=1e-5)


def test_a_dict_of_one_part_is_that_part():
    dataset = tf.data.Dataset.from_tensor_slices((IMAGES, CLASSES)).batch(12)
    named = dataset.map(lambda images, labels: ({"image": images}, {"class": labels}))
    seen = []
    for data in (dataset, named):
        network = make_network()
        network.set_weights([np.full(w.shape, 0.1) for w in network.get_weights()])
        seen.append(make_trainer(network).fit(data, verbose=0).history["loss"])
    assert seen[0] == seen[1]


def test_epsilons_are_any_numbers():
    several = np.array([8, 4]), (e for e in (8, 4)), tf.constant([8.0, 4.0])
    for epsilons in (*several, [np.float32(8), np.int64(4)]):
        assert one_call._epsilons(epsilons) == (8, 4)
        assert one_call._are_several(epsilons)
    found = ck.craft(make_network(), IMAGES, CLASSES, "step_rand", np.array([8, 4]))
    reached = np.abs(found - IMAGES).max(axis=(1, 2, 3, 4)) * 255
    np.testing.assert_allclose(reached, [8, 4], rtol=1e-4)


def test_one_epsilon_of_numpy_is_one():
    for epsilon in (8, np.float32(8), np.array(8), tf.constant(8.0)):
        assert not one_call._are_several(epsilon)
        assert one_call._check_numbers(one_call._epsilons(epsilon))["epsilons"] == (8.0,)


def test_steps_in_the_unit_range_are_warned_of():
    small = attacks.PGD(steps=np.int64(3), step_size=2 / 255, restarts=1)
    assert type(small.options["steps"]) is int
    with pytest.warns(UserWarning, match="3 steps of 0.00784314 do not reach epsilon 8.* is 2[.]"):
        ck.craft(make_network(), IMAGES, CLASSES, small, 8)
    assert not attacks.specs.short_steps({"steps": 40, "step_size": 0.5}, [8])  # 20 pixel values


def test_the_line_that_says_something_is_found():
    error = ValueError(
        "Exception encountered when calling Dense.call().\n\n\x1b[1mToo wide.\x1b[0m"
    )
    assert first_line(error) == "Too wide."
