"""What benchmarks/xla trains by XLA alone is what bin/train trains."""

import importlib.util
import pathlib

import keras
import numpy as np
import pytest
import tensorflow as tf

from cascade_keras import data, draws
from cascade_keras.data.batching import _order
from cascade_keras.data.specs import DATASETS
from cascade_keras.errors import InputError
from cascade_keras.runs import build
from cascade_keras.runs.settings import TrainingSettings

FOLDER = pathlib.Path(__file__).parents[2] / "benchmarks" / "xla"


def module(name):
    spec = importlib.util.spec_from_file_location(f"xla_{name}", FOLDER / f"{name}.py")
    found = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(found)
    return found


order, lowering = module("order"), module("lower_training")


@pytest.mark.parametrize("size", [2, 3, 23, 1_437, 60_000, 70_001])
@pytest.mark.parametrize("epoch", [0, 3])
def test_a_permutation_is_tensorflows(size, epoch):
    expected = draws.shuffled(tf.range(size, dtype=tf.int64), size, 5, tf.constant(epoch, tf.int64))
    found = order.permutation(draws.order_key(5, epoch).numpy(), size)
    np.testing.assert_array_equal(found, expected)


def test_batches_are_those_of_the_data_across_epochs():
    keys = [draws.order_key(2, epoch).numpy() for epoch in range(4)]
    batches = order.Order(keys, 23, 16)
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


@pytest.mark.parametrize("boundaries", [(), (3,), (3, 5)])
@pytest.mark.parametrize("warmup", [0, 2])
def test_a_given_rate_is_the_runs(boundaries, warmup):
    settings = TrainingSettings(dataset="digits", lr_boundaries=boundaries, warmup_steps=warmup)
    settings = settings.replace(steps=9).resolved(DATASETS["digits"])
    expected = build.learning_rate_schedule(settings)
    given = lowering.GivenRate()
    for variable, value in zip((given.boundaries, given.values), lowering.schedule(settings)):
        variable.assign(value)
    for step in range(9):
        rate = expected if isinstance(expected, float) else expected(step)
        assert float(given(step)) == pytest.approx(float(rate), rel=1e-6), step


@pytest.mark.parametrize("change", [{"use_ema": True}, {"precision": "mixed_float16"}])
def test_what_is_not_lowered_is_refused(change):
    settings = TrainingSettings(dataset="digits", **change).resolved(DATASETS["digits"])
    with pytest.raises(InputError) as caught:
        lowering.check(settings)
    assert caught.value.setting in change


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
    rate, names = lowered.given_rate, lowering.schedule(settings)
    for variable, value in zip((rate.boundaries, rate.values, lowered.given_seed), (*names, 3)):
        variable.assign(value)
    batches = np.zeros((lowering.CHUNK, 64), np.int32)
    batches[:2] = [_order(tf.constant(n, tf.int64), 64, len(labels), 3) for n in range(2)]
    program = lowering.make_program(lowered, settings, images.shape[1:])
    step = tf.function(plain.train_step, jit_compile=True)
    with lowering.draws_of_cpu():
        for batch in data.batches(images, labels, 64, seed=3, stop=2):
            step(batch)
        program(images.reshape(-1, 1), labels.astype(np.int32), batches, np.int64(0), np.int32(2))
    assert int(lowered.steps) == 2
    for one, other in zip(plain.network.variables, lowered.network.variables):
        np.testing.assert_allclose(one, other, rtol=1e-4, atol=1e-5, err_msg=one.path)
