"""The square attack against a plain version of the published search, and its properties."""

import functools

import numpy as np
import pytest
import tensorflow as tf
from support.networks import smooth

from cascade_keras import attacks, draws
from cascade_keras.attacks import squares
from cascade_keras.errors import InputError

SEED = 5
# The published schedule of 10,000 queries: the share that a square covers, up to this query.
SCHEDULE = [
    (10, 0.8), (50, 0.4), (200, 0.2), (500, 0.1), (1000, 0.05), (2000, 0.025), (4000, 0.0125),
    (6000, 0.00625), (8000, 0.003125), (10000, 0.0015625),
]  # fmt: skip


def share(number):
    return next(share for until, share in SCHEDULE if number <= until)


@pytest.fixture(scope="module")
def batch(digits):
    """Images, float64, and the classes that the smooth network takes them for."""
    images = tf.constant(digits[0][:12], tf.float64)
    return images, tf.argmax(smooth(images), -1, tf.int32)


@functools.cache
def compiled(logits_fn, epsilon, queries, shape, dtype):
    """The search as programs compile it: for batches of any size."""

    @tf.function(
        input_signature=[
            tf.TensorSpec([None, *shape], dtype),
            tf.TensorSpec([None], tf.int32),
            tf.TensorSpec([None, 2], tf.int32),
        ]
    )
    def search(images, labels, keys):
        return squares.nested(logits_fn, images, labels, [epsilon], keys, queries=queries)

    return search


def found_by(logits_fn, images, labels, epsilon, queries, keys=None):
    images = tf.convert_to_tensor(images)
    keys = draws.image_keys(SEED, tf.range(len(images))) if keys is None else keys
    search = compiled(logits_fn, epsilon, queries, tuple(images.shape[1:]), images.dtype)
    return squares.Found(*(part[0].numpy() for part in search(images, labels, keys)))


def stripes(image, numbers, radius):
    return np.clip(image + radius * np.where(numbers >= 0.5, 1, -1), 0, 1)


def published(margin, image, radius, queries, first, numbers):
    """The search of one image, as published; (image, margin, queries taken).

    Signs that would change nothing are turned, where the authors' own program draws them again.

    Args:
        margin: of the true class, of an image (H, W, C).
        first: uniform numbers of the stripes, (1, W, C).
        numbers: of the squares, (queries, 2 + C): top, left and the sign of each channel.
    """
    best = stripes(image, first, radius)
    least, height, width = margin(best), *image.shape[:2]
    for number in range(queries - 1):
        if least <= 0:
            return best, least, number + 1
        side = max(round(np.sqrt(share(number) * height * width)), 1)
        top = int(numbers[number, 0] * (height - side + 1))
        left = int(numbers[number, 1] * (width - side + 1))
        for sign in (1, -1):
            change = np.zeros_like(image)
            signs = np.where(numbers[number, 2:] >= 0.5, 1, -1)
            change[top : top + side, left : left + side] = sign * 2 * radius * signs
            made = np.clip(np.clip(best + change, image - radius, image + radius), 0, 1)
            if np.abs(made - best).max() > 1e-7:
                break
        if margin(made) < least:
            best, least = made, margin(made)
    return best, least, queries


def test_follows_the_published_search(batch):
    channels = 2
    images = np.concatenate([np.roll(batch[0][:5], i, axis=1) for i in range(channels)], axis=-1)
    mixing = np.linspace(0.5, 1, channels)[:, None]

    def logits_fn(images):
        return smooth(images @ tf.constant(mixing / mixing.sum()))

    labels = np.argmax(logits_fn(images), -1).astype(np.int32)
    network = tf.function(logits_fn)
    queries, epsilon = 330, 10  # more than one block of draws
    keys = draws.image_keys(SEED, tf.range(len(images)))
    found = found_by(logits_fn, images, labels, epsilon, queries, keys)
    numbers = [
        draws.of_images(draws.uniform_of, keys, number, [250, 2 + channels], 0.0, 1.0).numpy()
        for number in (1, 2)
    ]
    numbers = np.concatenate(numbers, axis=1)
    first = draws.of_images(draws.uniform_of, keys, 0, [1, 8, channels], 0.0, 1.0).numpy()
    for i, (image, label) in enumerate(zip(images, labels, strict=True)):

        def margin(some, label=label):
            logits = network(tf.constant(some[None]))[0].numpy()
            return logits[label] - np.delete(logits, label).max()

        best, least, taken = published(margin, image, epsilon / 255, queries, first[i], numbers[i])
        np.testing.assert_allclose(found.images[i], best, rtol=0, atol=1e-12)
        assert found.fooled[i] == (least < 0)
        assert found.forwards[i] == taken + 1  # one of the clean image
    assert not found.gradients.any() and 0 < found.fooled.sum() < 5
    assert len(np.unique(found.forwards)) > 1


@pytest.mark.parametrize("size", [(8, 8), (28, 28), (32, 32), (24, 30), (4, 60)])
def test_sides_follow_the_published_schedule(size):
    for until, _ in SCHEDULE:
        for number in (until - 1, until, until + 1):
            if number < 10000:
                side = max(round(np.sqrt(share(number) * np.prod(size))), 1)
                assert squares.side_of(tf.constant(number), *size) == min(side, *size)


def test_squares_lie_anywhere_that_they_fit():
    numbers = tf.constant([[0.0, 0.0], [0.999999, 0.5], [0.5, 0.999999]])
    masks = squares._square_at(numbers, tf.constant(400), 8, 20).numpy()[..., 0]  # sides of 4
    corners = [np.argwhere(mask)[[0, -1]].tolist() for mask in masks]
    assert corners == [[[0, 0], [3, 3]], [[4, 8], [7, 11]], [[2, 16], [5, 19]]]
    assert (masks.sum(axis=(1, 2)) == 16).all()


def test_finds_the_worst_corner_of_a_linear_network(batch):
    """When squares have become single pixels each is tried in both directions many times."""
    weights = np.random.default_rng(0).normal(size=(64, 1)) * [[-1, 1, 0]]

    def linear(images):
        return tf.reshape(images, [-1, 64]) @ weights + [[1e3, 0, 0]]

    images = batch[0][:3]
    found = found_by(linear, images, np.zeros(3, np.int32), 8, 3000)
    corner = np.clip(images + 8 / 255 * np.sign(weights[:, 1].reshape(8, 8, 1)), 0, 1)
    np.testing.assert_allclose(found.images, corner, atol=1e-6)
    assert not found.fooled.any() and (found.forwards == 3001).all()


def test_images_lie_in_the_ball_and_depend_on_no_other(batch):
    images, labels = tf.cast(batch[0], tf.float32), batch[1]
    keys = draws.image_keys(SEED, tf.range(12))
    found = found_by(smooth, images, labels, 10, 80, keys)
    radius = np.float32(10) / np.float32(255)
    low, high = np.maximum(images - radius, 0), np.minimum(images + radius, 1)
    assert found.images.dtype == np.float32
    np.testing.assert_array_equal(found.images, np.clip(found.images, low, high))
    seen = np.argmax(smooth(found.images), -1) != labels
    np.testing.assert_array_equal(found.fooled, seen)
    for rows in ([3], [11, 0, 5], range(12)):
        rows = tf.constant(list(rows))
        some = found_by(smooth, *(tf.gather(part, rows) for part in (images, labels)), 10, 80,
                        tf.gather(keys, rows))  # fmt: skip
        for part, whole in zip(some, found, strict=True):
            np.testing.assert_array_equal(part, whole[rows.numpy()])
    # As a function it is the same, and fewer queries end where more go on.
    few, other = (
        attacks.square(smooth, images, labels, 10, seed=seed, queries=20).numpy()
        for seed in (SEED, SEED + 1)
    )
    fell = np.argmax(smooth(few), -1) != labels.numpy()
    assert 0 < fell.sum() < found.fooled.sum() and found.fooled[fell].all()
    np.testing.assert_array_equal(few[fell], found.images[fell])
    assert np.any(few != other)


@tf.custom_gradient
def never_differentiated(images):
    def backward(upstream):
        raise AssertionError("a gradient was taken")

    return tf.round(8 * images) / 8, backward


def test_needs_no_gradient(batch, tmp_path):
    """A rounded input hides its gradient from pgd; a SavedModel of it has none at all."""
    images = tf.cast(np.round(8 * batch[0]) / 8, tf.float32)
    images = tf.clip_by_value(images + tf.where(images > 0.5, -0.05, 0.05), 0, 1)  # near the edges

    class Module(tf.Module):
        @tf.function(input_signature=[tf.TensorSpec([None, 8, 8, 1])])
        def serve(self, images):
            return {"logits": smooth(never_differentiated(images))}

    without = tf.saved_model.SaveOptions(experimental_custom_gradients=False)
    tf.saved_model.save(Module(), str(tmp_path), options=without)
    loaded = tf.saved_model.load(str(tmp_path))
    labels = np.argmax(loaded.serve(images)["logits"], -1).astype(np.int32)
    rounded = tf.function(lambda x: smooth(tf.round(8 * x) / 8 + 0 * x))
    stuck = attacks.pgd(rounded, images, labels, 10, seed=1, steps=10)
    found = found_by(lambda x: loaded.serve(x)["logits"], images, labels, 10, 200)
    left = [
        np.sum(np.argmax(loaded.serve(made)["logits"], -1) == labels)
        for made in (stuck, found.images)
    ]
    assert left[1] <= left[0] - 3 and left[1] == 12 - found.fooled.sum()


def test_what_is_no_number_is_never_robust(batch):
    images, labels = batch
    keys = draws.image_keys(SEED, tf.range(12))

    def breaks(images):  # at the first square: stripes are the same from top to bottom
        uneven = tf.reduce_any(images[:, 1:] != images[:, :-1], axis=[1, 2, 3])[:, None]
        return tf.where(uneven, tf.constant(np.nan, tf.float64), 1.0) * [[2.0, 1.0, 0.0]]

    found = found_by(breaks, 0 * images + 0.5, tf.zeros_like(labels), 4, 20, keys)
    assert found.fooled.all() and (found.forwards == 3).all()
    assert np.isnan(breaks(tf.constant(found.images))).all()


def test_saturated_logits_hide_nothing(batch):
    """Of logits times 1e4 the softmax is 0 or 1; the search sees the margins of the logits."""
    images, labels = tf.cast(batch[0], tf.float32), batch[1]
    plain, large = (
        found_by(network, images, labels, 10, 80) for network in (smooth, lambda x: 1e4 * smooth(x))
    )
    assert plain.fooled.sum() > 2 and np.abs(plain.fooled.sum() - large.fooled.sum()) <= 1


@pytest.mark.parametrize("queries", [0, 2.5, float("nan"), "many"])
def test_no_queries_are_refused(queries, batch):
    with pytest.raises(InputError, match="square's queries must be a whole number of at least 1"):
        attacks.square(smooth, *batch, 8, seed=1, queries=queries)
