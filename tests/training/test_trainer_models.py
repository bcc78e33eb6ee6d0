"""Any classifier in the trainer: it trains as an oracle says, or is refused with one line.

The comment of each row says what the case was before the border stood in front of the trainer:
a pass, a crash, or nonsense that was accepted.
"""

import subprocess
import sys
import warnings

import keras
import numpy as np
import pytest
import tensorflow as tf
from support import oracle

from cascade_keras import attacks
from cascade_keras.callbacks import RobustValidation
from cascade_keras.errors import InputError
from cascade_keras.training import AdversarialTrainer

layers = keras.layers
RATE = 0.05
OPTIONS = {"distance_weight": 0.01, "weight_decay": 1e-3, "seed": 3}
EYE = np.eye(10, dtype="float32")


@pytest.fixture
def batch(digits):
    return digits[0][:12].astype("float32"), digits[1][:12].astype("int32")


def dense(units, like, **options):
    """A dense layer with the weights of the oracle's network."""
    return layers.Dense(units, name=f"of_{like}", **options)


def with_weights(model):
    """Give a model's layers the weights of the oracle's network."""
    model(np.zeros((1, 8, 8, 1), "float32"))
    of = dict(zip(["hidden", "out"], np.split(np.array(oracle.mlp().get_weights(), object), 2)))
    for layer in model._flatten_layers():
        if layer.name.startswith("of_"):
            layer.set_weights(of[layer.name.removeprefix("of_")])
    return model


def hidden(first=()):
    return [*first, layers.Flatten(), dense(12, "hidden", activation="tanh")]


def sequential(*last, first=()):
    out = [dense(10, "out"), *last]
    return with_weights(keras.Sequential([keras.Input((8, 8, 1)), *hidden(first), *out]))


def functional(outputs):
    images = keras.Input((8, 8, 1))
    embedding = images
    for layer in hidden():
        embedding = layer(embedding)
    return with_weights(keras.Model(images, outputs(embedding, dense(10, "out")(embedding))))


class Subclassed(keras.Model):
    def __init__(self, end=lambda logits: logits):
        super().__init__()
        self.parts = [*hidden(), dense(10, "out")]
        self.end = end

    def call(self, images, training=False):
        for part in self.parts:
            images = part(images)
        return self.end(images)


class Draws(layers.Layer):
    """Draws by TensorFlow's own state, which no one can pair."""

    def call(self, images, training=False):
        return images + tf.random.normal(tf.shape(images)) if training else images


class DrawsByKeras(layers.Layer):
    def call(self, images, training=False):
        noise = keras.random.normal(keras.ops.shape(images), seed=self.seed)
        return images + noise if training else images

    def __init__(self):
        super().__init__()
        self.seed = keras.random.SeedGenerator(0)


# What a model is, and what the trainer is told.
SAME = {
    "sequential": (sequential, {}),  # passed
    "functional": (lambda: functional(lambda e, z: z), {}),  # passed
    "subclassed": (lambda: with_weights(Subclassed()), {}),  # passed
    "softmax layer": (lambda: sequential(layers.Softmax()), {}),  # trained 100 times worse
    "softmax activation": (lambda: sequential(layers.Activation("softmax")), {}),  # refused
    "nested softmax": (lambda: sequential(keras.Sequential([layers.Softmax()])), {}),  # nonsense
    "lambda softmax": (lambda: sequential(layers.Lambda(keras.ops.softmax)), {}),  # nonsense
    "softmax op": (lambda: functional(lambda e, z: keras.ops.softmax(z)), {}),  # nonsense
    "subclassed softmax": (
        lambda: with_weights(Subclassed(keras.ops.softmax)), {}),  # nonsense
    "log softmax": (lambda: sequential(layers.Activation("log_softmax")), {}),  # passed
    "sigmoid scores": (lambda: sequential(layers.Activation("sigmoid")),
                       {"from_logits": False}),  # nonsense
    "a dict of logits alone": (lambda: functional(lambda e, z: {"logits": z}), {}),  # KeyError
    "a dict of other names": (lambda: functional(lambda e, z: {"a": e, "b": z}),
                              {"logits": "b", "embedding": "b"}),  # KeyError
    "several outputs": (lambda: functional(lambda e, z: [e, z]),
                        {"logits": "of_out", "embedding": "of_out"}),  # crash
    "0..255 inside": (lambda: sequential(first=[layers.Rescaling(1 / 255)]),
                      {"value_range": (0, 255)}),  # images squashed to black
    "-1..1 inside": (lambda: sequential(first=[layers.Rescaling(0.5, 0.5)]),
                     {"value_range": (-1, 1)}),  # clipped
    "frozen noise": (lambda: sequential(first=[layers.GaussianNoise(0.0)]), {}),  # passed
}  # fmt: skip
IN_A_GRAPH = ("functional", "subclassed softmax", "0..255 inside")  # the others are run eagerly
REFUSED = {
    "sigmoids": (lambda: sequential(layers.Activation("sigmoid")), "from_logits"),  # nonsense
    "a mean of softmaxes": (lambda: functional(
        lambda e, z: (keras.ops.softmax(z) + keras.ops.softmax(-z)) / 2),
        "from_logits"),  # nonsense
    "a dict without logits": (lambda: functional(lambda e, z: {"a": e, "b": z}),
                              "logits"),  # KeyError
    "a function": (lambda: (lambda images: images), "Keras model"),  # AttributeError
    "random by TensorFlow": (lambda: sequential(first=[Draws()]), "random numbers"),  # nonsense
    "an image for an image": (lambda: keras.Sequential(
        [keras.Input((8, 8, 1)), layers.Conv2D(1, 3)]), "shape"),  # crash
}  # fmt: skip


def in_range(images, value_range):
    low, high = value_range
    return (images * (high - low) + low).astype("float32")


def trained(model, images, labels, loss="pivot", fit=None, eager=False, **options):
    trainer = AdversarialTrainer(model, loss, **{**OPTIONS, **options})
    trainer.compile(keras.optimizers.SGD(RATE), run_eagerly=eager)
    images = in_range(images, options.get("value_range", (0, 1)))
    fitting = {"batch_size": len(images), "shuffle": False, "verbose": 0, **(fit or {})}
    history = trainer.fit(images, labels, **fitting).history
    return trainer, {name: values[0] for name, values in history.items()}


def check(model, got, images, labels, loss="pivot", **options):
    weights, _, expected = oracle.train_step(
        loss, oracle.mlp().get_weights(), images, labels, 0, RATE, **{**OPTIONS, **options}
    )
    for name, value in expected.items():
        assert got[name] == pytest.approx(value, rel=2e-3, abs=1e-5), name
    for own, right in zip(model.trainable_variables, weights):
        np.testing.assert_allclose(own, right, rtol=0, atol=5e-5)


@pytest.mark.parametrize("name", SAME)
def test_the_first_update_of_any_model_is_the_papers(name, batch):
    make, options = SAME[name]
    model = make()
    options = {**options, "eager": name not in IN_A_GRAPH}
    # The sizes of logits before and after a log softmax differ, their softmax does not.
    _, got = trained(model, *batch, "standard" if name == "log softmax" else "pivot", **options)
    if name == "log softmax":
        got.pop("max_logit")
        weights, _, expected = oracle.train_step(
            "standard", oracle.mlp().get_weights(), *batch, 0, RATE, **OPTIONS
        )
        assert got["loss"] == pytest.approx(expected["loss"], rel=1e-3)
        np.testing.assert_allclose(model.trainable_variables[0], weights[0], atol=5e-5)
        return
    check(model, got, *batch)


@pytest.mark.parametrize("name", REFUSED)
def test_a_model_that_would_train_on_nonsense_is_refused(name, batch):
    make, message = REFUSED[name]
    with pytest.raises(InputError, match=message) as caught:
        trained(make(), *batch)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("compiled", [{}, {"jit_compile": True}, {"run_eagerly": True}], ids=str)
def test_what_is_not_of_the_range_is_refused_however_it_comes(compiled, batch):
    """XLA, which Keras turns on for a single GPU, leaves the assertions of a graph out."""
    images, labels = 255 * batch[0], batch[1]
    trainer = AdversarialTrainer(oracle.mlp(), "standard")
    trainer.compile("sgd", **compiled)
    data = tf.data.Dataset.from_tensor_slices((images, labels)).batch(4)

    class Sequence(keras.utils.PyDataset):
        def __len__(self):
            return 1

        def __getitem__(self, index):
            return images, labels

    for call in (
        lambda: trainer.fit(images, labels, verbose=0),
        lambda: trainer.fit(data, verbose=0),
        lambda: trainer.fit(((images, labels) for _ in range(1)), verbose=0),
        lambda: trainer.fit(Sequence(), verbose=0),
        lambda: trainer.train_on_batch(images, labels),
        lambda: trainer.test_on_batch(images, labels),
        lambda: trainer.evaluate(images, labels, verbose=0),
        lambda: trainer.predict(images, verbose=0),
        lambda: trainer.predict_on_batch(images),
        lambda: trainer.fit(images / 255, 2 * labels + 1, verbose=0),
        lambda: trainer.train_on_batch(images / 255, 2 * labels + 1),
        lambda: trainer.test_on_batch(images / 255, 2 * EYE[labels]),
        lambda: trainer.evaluate(images / 255, 2 * EYE[labels], verbose=0),
        lambda: trainer.fit(images[..., 0] / 255, labels, verbose=0),
    ):
        with pytest.raises(InputError) as caught:
            call()
        assert "\n" not in str(caught.value)
    assert int(trainer.steps) == 0  # none of them has come to a step
    with pytest.raises(InputError, match=r"value_range=\(0, 255\)"):
        trainer.train_on_batch(images, labels)
    # Labels are nothing to predict by.
    assert trainer.predict(tf.data.Dataset.from_tensors((images / 255, labels - 99)), verbose=0)


@pytest.mark.long
def test_uint8_is_what_floats_of_0_to_255_are(batch):
    whole = np.round(batch[0] * 255).astype("uint8")
    results = []
    for images in (whole, whole.astype("float32")):
        trainer = AdversarialTrainer(sequential(first=[layers.Rescaling(1 / 255)]),
                                     value_range=(0, 255))  # fmt: skip
        trainer.compile("sgd", run_eagerly=images is not whole)
        results.append(trainer.train_on_batch(images, batch[1]))
        made = trainer.make_adversarial(whole[:4] / np.float32(255), batch[1][:4], tf.constant(0))
        assert 0 < np.abs(made - whole[:4] / 255).max() <= 16 / 255 + 1e-6
    assert results[0] == pytest.approx(results[1], rel=1e-5)


# Labels and weights.

MIXED = 0.7 * EYE + 0.3 * np.roll(EYE, 1, 0)
GIVEN = {
    "one-hot": (lambda y: EYE[y], {}, {}),
    "mixup": (lambda y: MIXED[y], {}, {}),
    "mixup by fgsm": (lambda y: MIXED[y], {"attack": "step_fgsm"}, {}),
    "smoothed": (lambda y: y, {"label_smoothing": 0.2}, {}),
    "weights": (lambda y: y, {}, {"sample_weight": np.linspace(0, 3, 12).astype("float32")}),
    "class weights": (lambda y: y, {}, {"class_weight": {i: i / 4 for i in range(10)}}),
}


@pytest.mark.parametrize(
    ("name", "loss"), [*((name, "pivot") for name in GIVEN), ("weights", "kurakin")]
)
def test_labels_and_weights_enter_the_loss_as_the_oracle_says(name, loss, batch):
    (images, labels), (form, options, fit) = batch, GIVEN[name]
    options = {**options, "distance_norm": 1}
    given = form(labels)
    model = oracle.mlp()
    smoothing = options.get("label_smoothing", 0)
    rows = (1 - smoothing) * oracle.rows(given) + smoothing / 10
    weights = fit.get("sample_weight")
    if "class_weight" in fit:
        weights = labels / np.float32(4)
    order = {}
    if weights is not None:
        order = {"sample_weight": weights}
    in_a_graph = name in ("mixup", "weights") and loss == "pivot"
    _, got = trained(model, images, given, loss, fit=fit, eager=not in_a_graph, **options)
    check(model, got, images, rows, loss, **{**options, **order})


def test_val_loss_is_the_training_objective_of_the_validation_data(batch):
    """With weights, soft labels and regularisers."""
    images, labels = batch
    weights = np.linspace(0, 2, 12).astype("float32")
    model = oracle.mlp()
    model.layers[-1].kernel_regularizer = None
    trainer = AdversarialTrainer(model, **OPTIONS)
    trainer.compile(keras.optimizers.SGD(0.0), run_eagerly=True)
    held_out = (images, MIXED[labels], weights)
    history = trainer.fit(images, labels, verbose=0, validation_data=held_out).history
    attacked = oracle.one_step("step_ll", model.get_weights(), images, MIXED[labels], 16.0, [3, 0])
    variables = [tf.constant(w, tf.float64) for w in model.get_weights()]
    rows = MIXED[labels]
    _, expected = oracle.objective(
        "pivot", variables, attacked, images, (rows, rows), 12, sample_weight=weights, **OPTIONS
    )
    assert history["val_loss"][0] == pytest.approx(expected["loss"], rel=1e-4)


@pytest.mark.parametrize("attack", ["step_ll", attacks.PGD(steps=3)], ids=str)
def test_regularisers_are_counted_once_and_said(attack, batch):
    """However many passes the attack makes."""
    model = keras.Sequential(
        [
            keras.Input((8, 8, 1)),
            layers.ActivityRegularization(l1=0.01),
            layers.Flatten(),
            layers.Dense(10, kernel_regularizer=keras.regularizers.L2(0.1)),
        ]
    )
    kernel = model.layers[-1].kernel.numpy()
    with pytest.warns(UserWarning, match="weight_decay=0.001 beside"):
        _, got = trained(model, *batch, epsilon_sampling="max", max_epsilon=0.0, attack=attack,
                         eager=attack == "step_ll")  # fmt: skip
    expected = 0.1 * (kernel**2).sum() + 0.01 * batch[0].sum() / len(batch[0])
    assert got["regularization_loss"] == pytest.approx(expected, rel=1e-4)
    parts = got["decay_loss"] + got["distance_loss"] + got["regularization_loss"]
    both = (got["clean_loss"] + 0.3 * got["adversarial_loss"]) / 1.3
    assert got["loss"] == pytest.approx(both + parts, rel=1e-4)


def test_pgd_makes_the_training_images(batch):
    images, labels = batch
    model = oracle.mlp()
    trainer = AdversarialTrainer(model, attack=attacks.PGD(steps=5), epsilon_sampling="max")
    made = trainer.make_adversarial(images, labels, tf.constant(2, tf.int64)).numpy()
    key = tf.random.split([0, 2], 3, alg="philox")[2]
    own = attacks.pgd(lambda x: model(x), images, labels, 16, seed=key, steps=5, restarts=1,
                      objective=attacks.cross_entropy)  # fmt: skip
    np.testing.assert_array_equal(made, own)
    assert np.abs(made - images).max() == pytest.approx(16 / 255, abs=1e-6)
    again = AdversarialTrainer.from_config(trainer.get_config())
    assert again.attack == attacks.PGD(steps=5) and again.options == trainer.options


# One logit.


@pytest.mark.parametrize("end", [None, "sigmoid"])
def test_one_logit_is_a_network_of_two_classes(end, batch):
    """[0, z] has the softmax (1 - s(z), s(z)); a network that says so itself trains the same."""
    images, labels = batch[0], batch[1] % 2
    keras.utils.set_random_seed(0)
    one = keras.Sequential([keras.Input((8, 8, 1)), layers.Flatten(), layers.Dense(1)])
    two = keras.Sequential([keras.Input((8, 8, 1)), layers.Flatten(), layers.Dense(2)])
    kernel = one.get_weights()[0]
    two.set_weights([np.concatenate([0 * kernel, kernel], 1), np.zeros(2)])
    if end:
        one.add(layers.Activation(end))
    results = []
    for model in (one, two):
        trainer = AdversarialTrainer(model, "kurakin", attack="step_fgsm", weight_decay=0.0)
        trainer.compile(keras.optimizers.SGD(RATE), metrics=["acc"], run_eagerly=model is two)
        results.append(trainer.train_on_batch(images, labels[:, None].astype("float32"),
                                              return_dict=True))  # fmt: skip
    for name in ("loss", "clean_loss", "adversarial_loss", "adversarial_accuracy"):
        assert results[0][name] == pytest.approx(results[1][name], rel=1e-5), name
    assert results[0]["clean_acc"] == results[0]["clean_accuracy"]
    moved = one.get_weights()[0][:, 0] - kernel[:, 0]
    expected = two.get_weights()[0][:, 1] - kernel[:, 0]
    np.testing.assert_allclose(moved, expected, atol=1e-6)


# Layers that draw.

RANDOM = {
    "flip": lambda: [layers.RandomFlip()],
    "translate": lambda: [layers.RandomTranslation(0.2, 0.2)],
    "rotate, zoom": lambda: [layers.RandomRotation(0.1), layers.RandomZoom(0.2)],
    "noise": lambda: [layers.GaussianNoise(0.3), layers.GaussianDropout(0.3)],
    "dropout": lambda: [layers.Conv2D(4, 3), layers.SpatialDropout2D(0.4), layers.Dropout(0.5)],
    "own layer": lambda: [DrawsByKeras()],
    "nested": lambda: [keras.Sequential([layers.RandomBrightness(0.3, (0, 1)),
                                         layers.AlphaDropout(0.3)])],
}  # fmt: skip


def with_random_layers(*names, last=()):
    keras.utils.set_random_seed(0)
    drawing = [layer for name in names for layer in RANDOM[name]()]
    return keras.Sequential(
        [keras.Input((8, 8, 1)), *drawing, layers.Flatten(), layers.Dense(10), *last]
    )


@pytest.mark.parametrize("name", RANDOM)
def test_both_images_of_a_pair_get_the_same_draws(name, digits):
    """Though no two images of a batch are treated alike, whether its size is known or not."""
    model = with_random_layers(name)
    trainer = AdversarialTrainer(model)
    images = np.repeat(digits[0][:1], 8, 0)

    @tf.function(input_signature=[tf.TensorSpec([None, 8, 8, 1])], autograph=False)
    def of_unknown_size(images):
        return trainer._with_paired_draws(images, tf.shape(images)[0] // 2).embedding

    for rows in (of_unknown_size(images), trainer._with_paired_draws(images, 4).embedding):
        rows = rows.numpy()
        # Rows of one product may be rounded unlike, as on AMD's processors.
        np.testing.assert_allclose(rows[:4], rows[4:], atol=1e-5)
        if name not in ("translate", "flip"):
            assert len(np.unique(rows.round(5), axis=0)) > 1
    # Outside of the trainer the layers draw as they always do.
    free = model(images, training=True).numpy()
    assert len(np.unique(free.round(5), axis=0)) > 4 or name in ("flip", "translate", "nested")


@pytest.mark.parametrize("form", ["unknown batch", "graph", "eager"])
def test_at_epsilon_0_the_images_of_a_pair_are_one(form, digits):
    last = [layers.Softmax()] if form == "eager" else []
    names = {"graph": ["dropout"], "eager": ["flip", "dropout"]}.get(form, RANDOM)
    model = with_random_layers(*names, last=last)
    trainer = AdversarialTrainer(model, max_epsilon=0.0, adversarial_batch_size=12)
    trainer.compile(keras.optimizers.SGD(0.0), run_eagerly=form == "eager")
    data = tf.data.Dataset.from_tensor_slices((digits[0][:16], digits[1][:16]))
    data = data.batch(16, drop_remainder=form == "graph").repeat(2)
    got = trainer.fit(data, verbose=0).history
    assert got["embedding_distance"] == [0.0] and got["max_logit"][0] > 0
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=form != "eager")
    fixed = float(loss(digits[1][:16], model(digits[0][:16])))
    assert abs(got["clean_loss"][0] - fixed) > 0.01  # something was drawn


# Metrics of compile, and callbacks.


def test_metrics_of_compile_are_of_clean_and_of_adversarial_images(batch):
    images, labels = batch
    model = sequential(layers.Softmax())
    weights = np.linspace(0, 3, 12).astype("float32")
    trainer = AdversarialTrainer(model, "kurakin", adversarial_batch_size=5)
    trainer.compile(
        keras.optimizers.SGD(0.0),
        metrics=["accuracy", "mse", keras.metrics.AUC(name="auc")],
        weighted_metrics=["accuracy"],
        run_eagerly=True,
    )
    got = trainer.train_on_batch(images, EYE[labels], sample_weight=weights, return_dict=True)
    made = trainer.make_adversarial(images[:5], EYE[labels[:5]], tf.constant(0, tf.int64))
    for half, rows, shown in (("adversarial", slice(0, 5), made), ("clean", slice(5, 12), images)):
        shown = shown if half == "adversarial" else images[5:]
        chances = model(shown).numpy()
        auc = keras.metrics.AUC()
        auc.update_state(EYE[labels[rows]], chances)
        right = chances.argmax(1) == labels[rows]
        assert got[f"{half}_auc"] == pytest.approx(float(auc.result()), rel=1e-5)
        assert got[f"{half}_mse"] == pytest.approx(
            ((chances - EYE[labels[rows]]) ** 2).mean(), rel=1e-4
        )
        assert got[f"{half}_accuracy"] == pytest.approx(right.mean())
        assert got[f"{half}_weighted_accuracy"] == pytest.approx(
            np.average(right, weights=weights[rows])
        )
    trainer.reset_metrics()
    stop = keras.callbacks.EarlyStopping("val_adversarial_auc", patience=0)
    split = images, EYE[labels]
    trainer.fit(*split, epochs=4, verbose=0, validation_data=split, callbacks=[stop])
    assert stop.stopped_epoch == 1 and stop.monitor_op is keras.ops.greater
    again = AdversarialTrainer.from_config(trainer.get_config())
    again.compile_from_config(trainer.get_compile_config())
    assert "clean_auc" in again.train_on_batch(images, EYE[labels], return_dict=True)


@pytest.mark.parametrize(
    ("metrics", "message"),
    [
        ([keras.metrics.AUC()], "from_logits=True"),
        (["no such"], "no metric"),
        (["mse", "mse"], "already"),
        ({"a": "mse"}, "give a list"),
    ],
)
def test_metrics_that_would_mislead_are_refused(metrics, message):
    with pytest.raises(InputError, match=message):
        AdversarialTrainer(oracle.mlp()).compile("sgd", metrics=metrics)


def test_robust_validation_is_the_attacks_accuracy(digits, tmp_path):
    images, labels = digits[0][:80], digits[1][:80]
    model = oracle.mlp()
    trainer = AdversarialTrainer(model, "standard")
    trainer.compile(keras.optimizers.Adam(0.03), run_eagerly=True)
    robust = RobustValidation(attacks.PGD(steps=2, restarts=1), epsilon=4, batch_size=20, every=3)
    watched = "val_pgd_accuracy"
    stop = keras.callbacks.EarlyStopping(watched, patience=9)
    best = keras.callbacks.ModelCheckpoint(
        tmp_path / "best.weights.h5", watched, save_best_only=True, save_weights_only=True
    )
    taken = []

    class Weights(keras.callbacks.Callback):
        def on_epoch_end(self, epoch, logs=None):
            taken.append(model.get_weights())

    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        history = trainer.fit(images, labels, 40, 5, verbose=0, validation_split=0.5,
                              callbacks=[robust, best, stop, Weights()]).history  # fmt: skip
    assert not [each for each in said if watched in str(each.message)]  # as if it were not there
    assert best.monitor_op is stop.monitor_op is keras.ops.greater
    expected, logits = [], tf.function(model)
    for epoch in (0, 4):
        model.set_weights(taken[epoch])
        right = 0
        for first in (0, 20):
            own = images[40 + first :][:20], labels[40 + first :][:20]
            made = attacks.pgd(logits, *own, 4, seed=[0, first], steps=2, restarts=1)
            right += (model(made).numpy().argmax(1) == own[1]).sum()
        expected.append(right / 40)
    first, *middle, last = history[watched]  # the first epoch is measured, the third and the last
    assert [first, last] == pytest.approx(expected)
    assert middle == [first, middle[1], middle[1]] and len({*history[watched]}) == 3
    best_epoch = int(np.argmax([first, middle[1], last])) * 2
    for again in (oracle.mlp(1), AdversarialTrainer(oracle.mlp(1))):
        again.load_weights(best.filepath)
        network = getattr(again, "network", again)
        for a, b in zip(network.get_weights(), taken[best_epoch]):
            np.testing.assert_array_equal(a, b)
    with pytest.raises(InputError, match="no data"):
        trainer.fit(images, labels, verbose=0, callbacks=[RobustValidation()])
    for wrong in ({"attack": "autoattack"}, {"epsilon": -1}, {"every": 0}):
        with pytest.raises(InputError):
            RobustValidation(**wrong)


# Several devices.

REPLICAS = """
import keras, numpy as np, tensorflow as tf, sys
cpu = tf.config.list_physical_devices("CPU")[0]
tf.config.set_logical_device_configuration(cpu, [tf.config.LogicalDeviceConfiguration()] * 2)
from cascade_keras import AdversarialTrainer, data
from cascade_keras.errors import InputError
from cascade_keras.layers import ConvBatchNorm
rng = np.random.default_rng(0)
batch = rng.random((13, 6, 6, 1), "float32"), np.arange(13) % 5, rng.random(13, "float32")
layers, strategy = keras.layers, tf.distribute.MirroredStrategy(["CPU:0", "CPU:1"])
one = tf.distribute.get_strategy()

def trained(scope, loss, random=list, rate=0.1, eager=False, **options):
    with scope.scope():
        keras.utils.set_random_seed(1)
        model = keras.Sequential([layers.Input((6, 6, 1)), *random(), layers.Flatten(),
                                  layers.Dense(5, kernel_regularizer="l2")])
        trainer = AdversarialTrainer(model, loss, weight_decay=0.1, **options)
        trainer.compile(keras.optimizers.SGD(rate), run_eagerly=eager or scope is one)
    before = model.get_weights()[0]
    history = trainer.fit(tf.data.Dataset.from_tensors(batch), verbose=0).history
    return model.get_weights()[0] - before, {name: values[0] for name, values in history.items()}

guided = {"guide_alternates": False, "max_epsilon": 40.0, "distance_ramp": "late", "ramp_steps": 1}
for loss, options in (("pivot", {"distance_weight": 0.1}), ("guided", guided),
                      ("pivot", {"attack": "guided", "guide": 300.0, "guide_alternates": False}),
                      ("kurakin", {"attack": "step_rand"})):
    (moved, numbers), (moved_by_two, of_two) = (
        trained(scope, loss, eager=loss == "kurakin", **options) for scope in (one, strategy)
    )
    np.testing.assert_allclose(moved, moved_by_two, atol=1e-6)
    assert numbers.keys() == of_two.keys()
    for name in numbers:
        np.testing.assert_allclose(numbers[name], of_two[name], rtol=1e-4, atol=1e-6)
    assert abs(moved).max() > 1e-3
def random():
    return layers.GaussianNoise(0.5), layers.Dropout(0.5), layers.RandomFlip()
_, noisy = trained(strategy, "pivot", random, rate=0.0, max_epsilon=0.0)
assert noisy["embedding_distance"] < 1e-6  # rows of a product may be rounded unlike
assert abs(noisy["clean_loss"] - numbers["clean_loss"]) > 0.01
shapes = rng.integers(0, 255, (31, 6, 6, 1), "uint8"), np.arange(31) % 5

def of_ours(scope, loss):
    with scope.scope():
        keras.utils.set_random_seed(1)
        model = keras.Sequential([
            layers.Input((6, 6, 1)), ConvBatchNorm(4), layers.Conv2D(4, 3, activation="relu"),
            layers.BatchNormalization(momentum=0.5), layers.Dropout(0.4), layers.Flatten(),
            layers.Dense(5, activation="softmax")])
        trainer = AdversarialTrainer(model, loss, attack="step_both", adversarial_batch_size=6,
            per_pixel_epsilon=True, cascade_sources=[lambda x: 9 * x[:, 0, :5, 0] - 4])
        trainer.compile(keras.optimizers.SGD(0.1, momentum=0.9))
    given = data.shared_batches(scope, *shapes, 11, seed=3, stop=3, augment="crop_flip")
    history = trainer.fit(given, verbose=0).history
    return [*model.get_weights(), *(values[0] for values in history.values())]

for one_has, two_have in zip(of_ours(one, "pivot"), of_ours(strategy, "pivot")):
    np.testing.assert_allclose(one_has, two_have, rtol=1e-4, atol=2e-5)
with strategy.scope():
    model = keras.Sequential([layers.Input((6, 6, 1)), layers.Flatten(), layers.Dense(5)])
    try:
        AdversarialTrainer(model, "guided", distance="nuclear")
    except InputError as error:
        assert error.setting == "distance"
    else:
        raise AssertionError("not refused")
    try:
        AdversarialTrainer(model).compile("sgd", jit_compile=True)
    except InputError as error:
        assert error.setting == "jit_compile"
    else:
        raise AssertionError("not refused")
for scope, other in ((one, strategy), (strategy, one)):
    try:
        with scope.scope():
            model = keras.Sequential([layers.Input((6, 6, 1)), layers.Flatten(), layers.Dense(5)])
        with other.scope():
            AdversarialTrainer(model)
    except InputError as error:
        assert "scope" in error.message
    else:
        raise AssertionError("not refused")
print("equal")
"""


def test_a_step_of_two_replicas_is_that_of_one_device():
    """Of unequal parts of a batch, with weights, a regulariser and weight decay.

    So are several steps of a run's batches, with statistics of the whole batch, layers that draw
    for it, and cascade images.

    And layers draw the same for both images of a pair, on the device that both are on.
    """
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", REPLICAS],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.stdout.strip().endswith("equal"), done.stderr[-2000:]


# Optimizers and precision.

ADAMW = {"learning_rate": 0.02, "weight_decay": 0.5, "epsilon": 1e-2}
# What is compiled, and by how much of the update it may miss the oracle's.
OPTIMIZERS = {
    "adamw": (lambda: keras.optimizers.AdamW(**ADAMW), 1e-3),
    "accumulation": (lambda: keras.optimizers.SGD(RATE, gradient_accumulation_steps=2), 1e-3),
    "loss scale": (lambda: keras.optimizers.LossScaleOptimizer(
        keras.optimizers.SGD(RATE), initial_scale=64.0), 1e-3),
    "mixed_bfloat16": (lambda: keras.optimizers.SGD(RATE), 0.03),
}  # fmt: skip


def updated(name, weights, gradients, state):
    """The weights after a step, by the optimizer's formulas."""
    step = state["step"] = state.get("step", 0) + 1
    if name == "accumulation":
        state["sum"] = [a + g for a, g in zip(state.get("sum", [0] * 4), gradients)]
        if step % 2:
            return weights
        gradients = [each / 2 for each in state.pop("sum")]
    if name != "adamw":
        return [w - RATE * g for w, g in zip(weights, gradients)]
    state["m"] = [0.9 * m + 0.1 * g for m, g in zip(state.get("m", [0] * 4), gradients)]
    state["v"] = [0.999 * v + 0.001 * g**2 for v, g in zip(state.get("v", [0] * 4), gradients)]
    size = ADAMW["learning_rate"] * np.sqrt(1 - 0.999**step) / (1 - 0.9**step)
    kept = 1 - ADAMW["learning_rate"] * ADAMW["weight_decay"]
    return [kept * w - size * m / (np.sqrt(v) + ADAMW["epsilon"])
            for w, m, v in zip(weights, state["m"], state["v"])]  # fmt: skip


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_an_optimizer_is_given_the_papers_gradient(name, batch):
    make, tolerance = OPTIMIZERS[name]
    options = {**OPTIONS, "weight_decay": 0.0}  # AdamW has its own
    policy = name if "mixed" in name else "float32"
    keras.config.set_dtype_policy(policy)
    try:
        model = oracle.mlp()
    finally:
        keras.config.set_dtype_policy("float32")
    trainer = AdversarialTrainer(model, **options)
    trainer.compile(make(), run_eagerly=True)
    weights, state = model.get_weights(), {}
    start = weights
    for step in range(2 if policy == "float32" else 1):
        trainer.train_on_batch(*batch)
        moved, _, _ = oracle.train_step("pivot", weights, *batch, step, 1.0, **options)
        weights = updated(name, weights, [w - m for w, m in zip(weights, moved)], state)
        for own, right, first in zip(model.get_weights(), weights, start):
            assert own.dtype == "float32"
            missed, size = np.linalg.norm(own - right), np.linalg.norm(right - first)
            assert missed <= tolerance * size + 1e-6, (step, missed / size)


# A dataset's end, sources, and what is only said.


def test_a_dataset_of_unknown_length_counts_no_batch_more(digits):
    data = tf.data.Dataset.from_tensor_slices((digits[0][:64], digits[1][:64])).batch(16)
    results = []
    for given in (data, data.filter(lambda *_: True)):
        trainer = AdversarialTrainer(oracle.mlp())
        # Eagerly no batch is counted twice; that is what a graph has to give.
        trainer.compile(keras.optimizers.SGD(0.0), run_eagerly=given is data)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            history = trainer.fit(given, verbose=0).history
        assert int(trainer.steps) == 4
        results.append({name: values[0] for name, values in history.items()})
    assert results[0] == pytest.approx(results[1], rel=1e-6)


def test_sources_that_do_not_fit_are_refused():
    other = keras.Sequential([keras.Input((8, 8, 1)), layers.Flatten(), layers.Dense(7)])
    larger = keras.Sequential([keras.Input((9, 9, 1)), layers.Flatten(), layers.Dense(10)])
    for kind in ("cascade_sources", "ensemble_sources"):
        for source, message in ((other, "7 classes"), (larger, "shape")):
            with pytest.raises(InputError, match=message) as caught:
                AdversarialTrainer(oracle.mlp(), **{kind: [source]})
            assert caught.value.setting == kind


def test_an_epsilon_of_the_unit_range_is_warned_of():
    with pytest.warns(UserWarning, match="max_epsilon=8"):
        AdversarialTrainer(oracle.mlp(), max_epsilon=8 / 255)
