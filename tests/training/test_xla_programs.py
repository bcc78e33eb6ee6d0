"""What benchmarks/xla trains by XLA alone is what bin/train trains."""

import importlib.util
import json
import pathlib
import sys

import keras
import numpy as np
import pytest
import tensorflow as tf

from cascade_keras import bank, data, draws
from cascade_keras.attacks.searches import in_whole_batches
from cascade_keras.data.batching import _order
from cascade_keras.data.specs import DATASETS
from cascade_keras.errors import InputError
from cascade_keras.runs import build
from cascade_keras.runs.settings import TrainingSettings
from cascade_keras.runs.training_run import Training
from cascade_keras.sources import load_source

FOLDER = pathlib.Path(__file__).parents[2] / "benchmarks" / "xla"


def module(name):
    spec = importlib.util.spec_from_file_location(f"xla_{name}", FOLDER / f"{name}.py")
    found = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(found)
    return found


order, lowering = module("order"), module("lower_training")


class StoredBank:
    """A bank whose images are random."""

    def __init__(self, seed, shape):
        self.images = np.random.default_rng(seed).integers(0, 256, shape, np.uint8)
        self.record = {"examples": shape[1], "shape": list(shape)}

    @property
    def rows(self):
        levels, examples, *shape = self.images.shape
        return self.images.reshape(levels * examples, np.prod(shape))

    def read(self, epsilons, indices):
        return self.images[epsilons - 1, indices]


def partners_of(settings, banks):
    attacked = settings.adversarial_batch_size
    return bank.BankPartners(
        banks,
        range(attacked - lowering.cascade_images(settings), attacked),
        seed=settings.seed,
        max_epsilon=settings.max_epsilon,
        sampling=settings.epsilon_sampling,
    )


def chosen_of(settings, size, steps, held_out=()):
    """Return order, source and place of all steps, as run_training.py works them out."""
    batch_size = lowering.clean_images(settings)
    keys = [draws.order_key(settings.seed, epoch).numpy() for epoch in range(9)]
    first = lowering.places_of_partners(settings).start
    examples = lowering.bank_examples(settings, size)
    trained = np.setdiff1d(np.arange(size), held_out)
    drawn = lowering.cascade_draws(settings)
    partners = order.Partners(*drawn, first, examples, trained)
    return partners(0, order.Order(keys, trained, batch_size)(0, steps))


@pytest.mark.parametrize("size", [2, 3, 23, 1_437, 60_000, 70_001])
@pytest.mark.parametrize("epoch", [0, 3])
def test_a_permutation_is_tensorflows(size, epoch):
    expected = draws.shuffled(tf.range(size, dtype=tf.int64), size, 5, tf.constant(epoch, tf.int64))
    found = order.permutation(draws.order_key(5, epoch).numpy(), size)
    np.testing.assert_array_equal(found, expected)


def test_batches_are_those_of_the_data_across_epochs():
    keys = [draws.order_key(2, epoch).numpy() for epoch in range(4)]
    batches = order.Order(keys, np.arange(23), 16)
    expected = [_order(tf.constant(step, tf.int64), 16, 23, 2) for step in range(5)]
    np.testing.assert_array_equal(batches(0, 5), expected)
    np.testing.assert_array_equal(batches(3, 2), expected[3:])


def test_draws_under_xla_are_those_of_the_cpu():
    def drawn(step):
        keys = draws.step_keys(7, step)
        jitter = draws.jitter_per_pixel(tf.zeros([3]), [3, 3, 3, 1], 16.0, keys.jitter)
        epsilon = draws.sample_epsilon("clipped_normal", 63, 16.0, keys.epsilon)
        return [epsilon, jitter, *draws.crops(7, step, 63, 9, 9), draws.flips(7, step, 63)]

    step = tf.constant(12_345, tf.int64)
    expected = drawn(step)
    with lowering.draws_of_cpu():
        found = tf.function(drawn, jit_compile=True, autograph=False)(step)
    for one, other in zip(found[:2], expected[:2]):
        np.testing.assert_allclose(one, other, atol=2e-5)
    for one, other in zip(found[2:], expected[2:]):
        np.testing.assert_array_equal(one, other)


@pytest.mark.parametrize("crop", [24, 32])
def test_crops_are_those_of_the_data(crop):
    settings = TrainingSettings(dataset="cifar10", crop=crop).resolved(DATASETS["cifar10"])
    images = np.random.default_rng(0).integers(0, 256, (40, 32, 32, 3), np.uint8)
    batches = data.batches(
        images, np.arange(40), 16, seed=4, start=2, stop=3, crop=crop, augment=settings.augment
    )
    ((batch, labels),) = batches
    packed = lowering.prepared(images, settings)
    pixels = lowering.pixels_of_crops(settings, packed.shape[1:], 4, tf.constant(2), 16)
    for image, own, pixel in zip(batch.images, packed[labels.numpy()], pixels):
        np.testing.assert_allclose(image, own.reshape(-1, 3)[pixel] / np.float32(255), atol=1e-7)


def test_partners_and_their_images_are_those_of_the_data():
    settings = TrainingSettings(
        dataset="cifar10",
        batch_size=24,
        adversarial_batch_size=9,
        max_epsilon=5.5,
        cascade_source=("one", "other"),
        cascade_mode="bank",
        bank_examples=30,
        steps=5,
        seed=6,
    )
    settings = settings.resolved(DATASETS["cifar10"])
    images = np.random.default_rng(0).integers(0, 256, (40, 32, 32, 3), np.uint8)
    banks = [StoredBank(number, (5, 30, 24, 24, 3)) for number in range(2)]
    packed = lowering.prepared(images, settings)
    orders, sources, places = chosen_of(settings, 40, 5)
    batches = data.batches(
        images,
        np.arange(40),
        15,
        seed=6,
        stop=5,
        crop=24,
        augment=settings.augment,
        partners=partners_of(settings, banks),
    )
    rows, shape = lowering.places_of_partners(settings), packed.shape[1:]
    for batch, labels in batches:
        step = int(batch.step)
        np.testing.assert_array_equal(orders[step], labels)
        found = lowering.from_banks(
            [each.rows for each in banks], sources[step], places[step], (24, 24, 3)
        )
        np.testing.assert_allclose(batch.cascade, found, atol=1e-7)
        pixels = lowering.pixels_of_crops(settings, shape, 6, batch.step, 15, rows)
        own = packed[labels.numpy()].reshape(15, -1, 3) / np.float32(255)
        found = np.stack([image[pixel] for image, pixel in zip(own, pixels.numpy())])
        np.testing.assert_allclose(batch.images, found, atol=1e-7)
    assert step == 4


PEAKED = {"learning_rate": 0.2, "lr_peak": 0.25, "steps": 8}


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ({"lr_boundaries": (), "steps": 3}, [0.1, 0.1, 0.1]),
        ({"lr_boundaries": (2,), "steps": 4}, [0.1, 0.1, 0.01, 0.01]),
        ({"lr_boundaries": (2, 3), "warmup_steps": 1, "steps": 4}, [0.01, 0.1, 0.01, 0.001]),
        (
            {"lr_schedule": "triangular", **PEAKED},
            [0, 0.1, 0.2, 0.2 * 5 / 6, 0.2 * 4 / 6, 0.1, 0.2 * 2 / 6, 0.2 / 6],
        ),
        (
            {"lr_schedule": "cosine", **PEAKED},
            [0, 0.1, *(0.1 + 0.1 * np.cos(np.pi * np.arange(6) / 6))],
        ),
    ],
)
def test_each_step_is_given_the_rate_of_the_runs(change, expected):
    settings = TrainingSettings(dataset="digits", **change).resolved(DATASETS["digits"])
    np.testing.assert_allclose(lowering.rates(settings), expected, rtol=1e-5, atol=1e-8)


def test_what_a_network_subtracts_is_given():
    """Of another seed other images are held out, whose mean is another."""
    settings = TrainingSettings(dataset="digits", model="resnet8", normalization="pixel")
    dataset, found = data.load(DATASETS["digits"]), []
    for seed in (0, 1):
        changed = settings.replace(validation_images=300, seed=seed).resolved(dataset.preset)
        network = build.build_network(changed, dataset)
        found.append(lowering.means(network)["mean-0"])
        held_out = build.held_out(changed, dataset)
        rest = np.delete(dataset.train[0], held_out, axis=0).mean(axis=0) / 255
        np.testing.assert_allclose(found[-1][0], rest, atol=1e-6)
    assert np.abs(found[0] - found[1]).max() > 1e-3
    trained = tf.function(lambda images: network(images)).get_concrete_function(
        tf.TensorSpec([2, 8, 8, 1])
    )
    assert any(each is found[-1] for each in trained.captured_inputs)


@pytest.mark.parametrize(
    "change",
    [
        {"precision": "mixed_float16"},
        {"cascade_source": ("runs/there",)},
        {"cascade_source": ("runs/below",), "cascade_mode": "bank"},
        {"ensemble_source": ("runs/there", "runs/below")},
    ],
)
def test_what_is_not_lowered_is_refused(change):
    settings = TrainingSettings(dataset="digits", **change).resolved(DATASETS["digits"])
    with pytest.raises(InputError) as caught:
        lowering.check(settings, ["there"])
    assert caught.value.setting in {"cascade_mode", *change}


def test_runs_that_differ_in_weights_only_share_a_program():
    def training(**change):
        return Training(TrainingSettings(**{"dataset": "digits", "loss": "kurakin", **change}))

    def program(**change):
        return lowering.program_name(training(**change), runs)

    runs = {name: training(name=name) for name in ("one", "other")}
    runs["longer"] = training(name="longer", steps=7, seed=2, loss="pivot")
    runs["deeper"] = training(name="deeper", model="resnet32")
    banked = {"cascade_mode": "bank"}
    plain = program()
    by_bank = program(cascade_source=("one",), **banked)
    ensemble = program(ensemble_source=("runs/one",))
    assert program(cascade_source=("saved/deeper",), seed=3, init_from="a", **banked) == by_bank
    assert program(ensemble_source=("longer",), steps=9) == ensemble
    different = [plain, by_bank, ensemble]
    different.append(program(cascade_source=("one", "other"), **banked))
    different.append(program(cascade_source=("one",), bank_examples=9, **banked))
    different.append(program(ensemble_source=("deeper",)))
    different.append(program(ensemble_source=("one", "other")))
    assert len(set(different)) == len(different)
    run = training(cascade_source=("one",), **banked)
    crafters = [lowering.crafter_name(run, runs[name]) for name in ("one", "longer", "deeper")]
    assert crafters[0] == crafters[1] != crafters[2]


def small_network(seed):
    """Return one whose gradients are far from zero, so that rounding changes no sign."""
    keras.utils.set_random_seed(seed)
    layers = [keras.Input((8, 8, 1)), keras.layers.Flatten(), keras.layers.Dense(10)]
    network = keras.Sequential([*layers, keras.layers.Activation("linear", dtype="float32")])
    bias = network.layers[1].bias
    bias.assign(np.random.default_rng(seed).normal(size=10))
    return network


def test_centres_are_those_of_the_data():
    images = np.random.default_rng(0).integers(0, 256, (3, 9, 12, 3), np.uint8)
    expected = data.centre_crop(images, (4, 7))
    np.testing.assert_array_equal(order.centres(images, 4, 7), expected)


def test_a_crafter_makes_the_shards_of_a_bank():
    images, labels = (part[:40] for part in data.load(DATASETS["digits"]).train)
    network = small_network(4)
    given = images.astype(np.float32) / np.float32(255), labels.astype(np.int32)
    found = lowering.make_crafter(network, 5.5)(*given)
    expected = bank.crafter(load_source(network).logits, "iter_fgsm", range(1, 6))(*given, 0)
    assert found.shape == (5, 40, 8, 8, 1)
    np.testing.assert_array_equal(found, expected)


@pytest.mark.parametrize(
    "loss",
    ["pivot", *(pytest.param(name, marks=pytest.mark.long) for name in ("kurakin", "guided"))],
)
def test_a_program_trains_with_sources_as_the_trainer_does(loss):
    seed = next(
        n for n in range(9) if {int(draws.attacker(n, step, 2)) for step in range(4)} > {1, 2}
    )
    settings = TrainingSettings(
        dataset="digits",
        loss=loss,
        attack="pgd" if loss == "kurakin" else None,
        batch_size=24,
        adversarial_batch_size=8,
        augment="crop_flip",
        cascade_source=("one", "other"),
        cascade_mode="bank",
        bank_examples=900,
        ensemble_source=("third", "fourth"),
        cascade_share=0.75,
        lr_schedule="cosine",
        learning_rate=0.01,
        nesterov=True,
        use_ema=True,
        ema_momentum=0.6,
        label_smoothing=0.1,
        validation_images=200,
        steps=4,
        seed=seed,
    )
    settings = settings.resolved(DATASETS["digits"])
    dataset = data.load(DATASETS["digits"])
    (images, labels), held_out = dataset.train, build.held_out(settings, dataset)
    banks = [StoredBank(number, (76, 900, 8, 8, 1)) for number in range(2)]
    ensemble = [small_network(seed) for seed in (1, 2)]
    sources = list(map(load_source, ensemble))
    plain, lowered = (
        build.build_trainer(settings, small_network(3), ensemble_sources=sources, **more)
        for more in ({}, {"make": lowering.Lowered})
    )
    lowered.given_seed.assign(seed)
    batches = data.batches(
        images,
        labels,
        lowering.clean_images(settings),
        seed=seed,
        stop=4,
        augment="crop_flip",
        partners=partners_of(settings, banks),
        held_out=held_out,
    )
    step = tf.function(plain.train_step)  # fit would end with the averages as weights
    for batch in batches:
        step(batch)
    packed = lowering.prepared(images, settings)
    unused = (0, lowering.CHUNK - 4), (0, 0)
    chosen = chosen_of(settings, len(labels), 4, held_out)
    assert not np.isin(held_out, chosen[0]).any()
    chosen = [np.pad(each, unused) for each in chosen]
    rates = np.pad(lowering.rates(settings), unused[:1])
    program = lowering.make_program(lowered, settings, packed.shape[1:])
    with lowering.draws_of_cpu(), in_whole_batches():
        program(
            packed.reshape(-1, 1),
            labels.astype(np.int32),
            chosen[0],
            np.int64(0),
            np.int32(4),
            rates,
            *chosen[1:],
            *(each.rows for each in banks),
        )
    assert int(lowered.steps) == 4
    for one, other in zip(plain.network.variables, lowered.network.variables):
        np.testing.assert_allclose(one, other, rtol=1e-4, atol=1e-5, err_msg=one.path)
    kept = [
        [v.numpy() for v in trainer.optimizer.variables if v.path.endswith("_average")]
        for trainer in (plain, lowered)
    ]
    assert kept[0] and np.abs(kept[0][0] - plain.network.variables[0]).max() > 1e-3
    for one, other in zip(*kept, strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-4, atol=1e-5)
    one, other = (trainer.trackers["adversarial_loss"].result() for trainer in (plain, lowered))
    np.testing.assert_allclose(one, other, rtol=1e-5)


@pytest.mark.long
def test_a_program_trains_as_the_step_does_under_xla():
    settings = TrainingSettings(dataset="digits", model="resnet8", loss="pivot", steps=2, seed=3)
    settings = settings.resolved(DATASETS["digits"])
    dataset = data.load(DATASETS["digits"])
    trainers = []
    for more in ({}, {"make": lowering.Lowered}):
        keras.utils.set_random_seed(3)
        network = build.build_network(settings, dataset)
        trainers.append(build.build_trainer(settings, network, **more))
    images, labels = dataset.train
    plain, lowered = trainers
    lowered.given_seed.assign(3)
    batches = np.zeros((lowering.CHUNK, 64), np.int32)
    batches[:2] = [_order(tf.constant(n, tf.int64), 64, len(labels), 3) for n in range(2)]
    program = lowering.make_program(lowered, settings, images.shape[1:])
    step = tf.function(plain.train_step, jit_compile=True)
    with lowering.draws_of_cpu():
        for batch in data.batches(images, labels, 64, seed=3, stop=2):
            step(batch)
        program(
            images.reshape(-1, 1),
            labels.astype(np.int32),
            batches,
            np.int64(0),
            np.int32(2),
            np.pad(lowering.rates(settings), (0, lowering.CHUNK - 2)),
        )
    assert int(lowered.steps) == 2
    for one, other in zip(plain.network.variables, lowered.network.variables):
        np.testing.assert_allclose(one, other, rtol=1e-4, atol=1e-5, err_msg=one.path)


@pytest.fixture
def two_runs(tmp_path, monkeypatch):
    """Write runs.txt, of a run and of one whose sources are that one, where the test is run."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(FOLDER)
    few = "--dataset=digits --model=resnet8 --steps=2 --max_epsilon=2 --eval_examples=8"
    few += " --tensorboard=none --noexport"
    cascade = "--cascade_source=runs/one --cascade_mode=bank --bank_examples=70 --use_ema"
    cascade += " --validation_images=100 --validation_steps=1"
    lines = [f"--name=one {few}", f"--name=two {few} {cascade} --ensemble_source=runs/one --seed=1"]
    pathlib.Path("runs.txt").write_text("\n".join(lines))


@pytest.mark.parametrize("file", sorted((FOLDER / "runs").glob("*.txt")), ids=lambda f: f.stem)
def test_runs_that_come_along_can_be_lowered(file):
    trainings = lowering.read_runs(file, None)
    names = [training.settings.name for training in trainings]
    assert len(set(names)) == len(names) > 8


@pytest.mark.long
def test_what_is_written_says_what_each_program_reads(two_runs):
    lowering.Writer(lowering.read_runs("runs.txt", None), pathlib.Path("programs")).write()
    one, two = json.loads(pathlib.Path("programs/runs.json").read_text())
    assert (one["ensemble"], one["cascade"]["sources"]) == ([], [])
    assert (two["ensemble"], two["cascade"]["sources"]) == (["one"], ["one"])
    assert (two["cascade"]["examples"], two["cascade"]["first_place"]) == (70, 32)
    for run in (one, two):
        record = json.loads(pathlib.Path(f"programs/{run['program']}.json").read_text())
        with np.load("programs/one.start.npz") as start:
            weights = {name.removeprefix("network/") for name in start.files}
        # A layer counts the passes of its training, which a source does not read.
        weights = {name for name in weights if not name.endswith("-passes")}
        sources = {f"ensemble/0/{name}" for name in weights} if run is two else set()
        assert set(record["inputs"]) - set(record["variables"]) == sources
        assert {f"network/{name}" for name in weights} <= set(record["inputs"])
    (crafter,) = two["cascade"]["crafters"]
    record = json.loads(pathlib.Path(f"programs/{crafter}.json").read_text())
    assert set(record["inputs"]) == {f"network/{name}" for name in weights}
    assert (record["batch"], record["epsilons"]) == (70, [1, 2])
    with np.load("programs/two.cascade.npz") as drawn:
        assert drawn["source"].shape == drawn["epsilon"].shape == (2, 32)


def test_images_that_no_bank_here_has_are_those_of_a_bank(monkeypatch):
    monkeypatch.syspath_prepend(FOLDER)
    settings = TrainingSettings(
        dataset="digits",
        adversarial_batch_size=9,
        max_epsilon=5.5,
        cascade_source=("one", "other"),
        cascade_mode="bank",
    )
    settings, dataset = settings.resolved(DATASETS["digits"]), data.load(DATASETS["digits"])
    sources = [load_source(small_network(seed)) for seed in (4, 5)]
    found = module("restore").Banks(sources, settings, dataset, 40)
    assert (found.rows, found.examples) == (range(5, 9), 40)
    images, labels = (part[:40] for part in dataset.train)
    given = images.astype(np.float32) / np.float32(255), labels.astype(np.int32), 0
    stored = [bank.crafter(each.logits, "iter_fgsm", range(1, 6))(*given) for each in sources]
    asked = np.array([0, 1, 1, 0]), np.array([1, 5, 3, 4]), np.array([3, 7, 7, 39])
    expected = [stored[source][epsilon - 1, place] for source, epsilon, place in zip(*asked)]
    np.testing.assert_array_equal(found._read(*asked), expected)


@pytest.mark.long
def test_a_restored_run_records_what_bin_train_does(two_runs, monkeypatch):
    restore = module("restore")
    for training in restore.read_runs("runs.txt", None):
        network = build.build_network(training.settings, data.load(training.preset))
        found = {k: v.numpy() for k, v in lowering.prefixed("network", network).items()}
        for number, variable in enumerate(network.trainable_variables):
            found[f"optimizer/{number:03d}_momentum"] = np.zeros(variable.shape, np.float32)
            if training.settings.use_ema:
                found[f"optimizer/{number + 99:03d}_average"] = 2 * variable.numpy()
        np.savez(f"{training.settings.name}.npz", steps=2, **found)
    arguments = ["restore", "--runs=runs.txt", "--data_dir=none", "--trained=."]
    monkeypatch.setattr(sys, "argv", arguments)
    restore.main()
    assert not pathlib.Path("banks").exists()
    Training(training.settings.replace(runs_dir="by_bin_train")).run()
    restored, expected = (
        json.loads(pathlib.Path(folder, "two", "config.json").read_text())
        for folder in ("runs", "by_bin_train")
    )
    assert restored == expected
    assert restored["cascade"]["mode"] == "bank"
    finished = keras.models.load_model("runs/two/model.keras", compile=False)
    with np.load("two.npz") as kept:
        np.testing.assert_allclose(finished.variables[0], 2 * kept["network/000-kernel"], rtol=1e-6)
    assert json.loads(pathlib.Path("runs/two/metrics.json").read_text())["steps"] == 2
    assert restored["cascade"]["sources"] == restored["ensemble"]["sources"]
