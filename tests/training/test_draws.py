"""Every purpose has a key of its own: the table of draws.py, written down a second time."""

import numpy as np
import pytest
import tensorflow as tf
from support.oracle import PHILOX, cascade_draws, fold

from cascade_keras import cascade, data, draws

SEED = 3


def uniform(shape, key):
    return tf.random.stateless_uniform(shape, key, **PHILOX).numpy()


def batch_by_the_table(images, step, size, side):
    """The images of a step, one by one: which image, its crop, and whether it is flipped."""
    count, height = len(images), images.shape[1]
    corners = uniform([3, size, 1], fold(SEED, 1, step))[:2, :, 0]
    flips = uniform([size, 1], fold(SEED, 5, step))[:, 0] >= 0.5
    batch, order = [], []
    for place in range(size):
        epoch, position = divmod(step * size + place, count)
        key = tf.cast(fold(SEED, 0, epoch), tf.int64)
        order.append(int(tf.random.experimental.index_shuffle(position, key, count - 1)))
        top, left = (corners[:, place] * (height - side + 1)).astype(int)
        crop = images[order[-1], top : top + side, left : left + side]
        batch.append(crop[:, ::-1] if flips[place] else crop)
    return np.stack(batch), order


@pytest.mark.parametrize("step", [0, 1, 7])
def test_order_crop_and_flip_of_a_batch_have_a_key_each(step):
    images = np.random.default_rng(0).integers(0, 256, (23, 12, 12, 3), np.uint8)
    batches = data.batches(
        images, np.arange(23), 16, seed=SEED, start=step, stop=step + 1, crop=8, augment=True
    )
    ((batch, labels),) = batches
    expected, order = batch_by_the_table(images, step, 16, 8)
    assert int(batch.step) == step and batch.cascade.shape == (0, 8, 8, 3)
    np.testing.assert_array_equal(labels, order)
    np.testing.assert_array_equal(np.round(batch.images * 255), expected)


@pytest.mark.parametrize("step", [0, 5])
def test_source_and_epsilon_of_a_cascade_image_have_a_key_each(step):
    """Not one key: a source's images would then all have like epsilons."""
    source, epsilon = cascade.draw(SEED, tf.constant(step), 5000, 2, 16.0, "uniform")
    expected = cascade_draws(SEED, step, 5000, 2, 16.0, "uniform")
    np.testing.assert_array_equal(source, expected[0])
    np.testing.assert_array_equal(epsilon, expected[1])
    assert abs(np.corrcoef(source, epsilon)[0, 1]) < 4 / np.sqrt(5000)


def test_an_unknown_distribution_is_refused():
    with pytest.raises(ValueError, match="'normal' is none of"):
        draws.sample_epsilon("normal", 4, 16.0, (0, 0))


def test_no_two_purposes_share_a_key():
    keys = [
        *draws.step_keys(SEED, 2),
        *draws.cascade_keys(SEED, 2),
        draws.noise_seed(SEED, 2),
        draws.attack_seed(SEED, 2),
        *(fold(SEED, purpose, 2) for purpose in (0, 1, 3, 5)),
    ]
    assert len({tuple(np.asarray(key).tolist()) for key in keys}) == len(keys)
    noise = [uniform([1000], key) for key in keys]
    apart = np.corrcoef(noise) - np.eye(len(keys))
    assert np.abs(apart).max() < 5 / np.sqrt(1000)


def test_a_part_of_a_batch_draws_what_its_images_are_drawn_within_the_whole():
    whole, rows = tf.zeros([7, 4, 4, 1]), tf.constant([1, 3, 6])
    part = tf.gather(whole, rows)
    for draw in (draws.normal_like, lambda images, seed: draws.start(images, seed, 2)):
        expected = draw(whole, [1, 2]).numpy()[rows.numpy()]
        with draws.of_larger_batch(rows, 7):
            np.testing.assert_array_equal(draw(part, [1, 2]), expected)
    with draws.of_larger_batch(rows, 7):
        assert draws.in_first_half(tf.constant(3)).numpy().tolist() == [True, False, False]


def test_noise_starts_and_probes_are_those_of_the_table():
    images = tf.zeros([2, 4, 4, 1])
    noise = tf.random.stateless_normal([2, 4, 4, 1], [1, 2], **PHILOX)
    np.testing.assert_array_equal(draws.normal_like(images, [1, 2]), noise)
    key = tf.random.fold_in([1, 2], 3, **PHILOX)
    starts = tf.random.stateless_uniform([2, 4, 4, 1], key, -1.0, 1.0, **PHILOX)
    np.testing.assert_array_equal(draws.start(images, [1, 2], 3), starts)
    np.testing.assert_array_equal(draws.probes(2, (4, 4, 1)), uniform([2, 4, 4, 1], [0, 0]))
