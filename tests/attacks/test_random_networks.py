"""Attacks on networks that draw random numbers: several passes decide, as written out here."""

import numpy as np
import tensorflow as tf

from cascade_keras import draws
from cascade_keras.attacks import auto_pgd
from cascade_keras.attacks.searches import untouched

PASSES = 4
RADIUS = 10 / 255
BASES = np.array([0.3, 0.48, 0.5, 0.6], np.float32)  # of the images, all of whose pixels are alike
IMAGES = np.tile(BASES[:, None, None, None], (1, 2, 2, 1))
LABELS = tf.zeros([4], tf.int32)


def found_by(wrong, calls, iterations=4):
    """Search for images that pass number k takes for another class where ``wrong(mean, k)``."""

    def network(images):
        mean = tf.reduce_mean(images, axis=[1, 2, 3])
        number = len(calls) % PASSES
        calls.append(len(images))
        other = tf.where(wrong(mean, number), 1.0, -1.0)
        return tf.stack([0 * mean, other, mean - 9], axis=1)

    keys = draws.image_keys(0, draws.places(0, 4))
    # The third logit is ascended, which has nothing to do with who is misclassified.
    return auto_pgd.search(
        network, tf.constant(IMAGES), LABELS, 10.0, keys, iterations=iterations, average=PASSES,
        objective=lambda _: lambda z: z[:, 2],
    )  # fmt: skip


def test_most_passes_decide_and_an_image_is_done_when_all_are_wrong():
    thresholds, calls = [0.41, 0.51, 0.53, 0.56], []
    found = found_by(lambda mean, number: mean > thresholds[number], calls)
    corners = BASES + RADIUS
    wrong = (corners[:, None] > thresholds).sum(axis=1)
    np.testing.assert_array_equal(wrong, [0, 2, 3, 4])
    np.testing.assert_array_equal(found.fooled, 2 * wrong > PASSES)
    # The last is all wrong from its start on; of the others 4 steps are made.
    np.testing.assert_array_equal(found.gradients, PASSES * np.array([4, 4, 4, 1]))
    np.testing.assert_array_equal(found.forwards, PASSES * np.array([1, 1, 1, 0]))
    np.testing.assert_allclose(
        found.images[:3].numpy().mean(axis=(1, 2, 3)), corners[:3], atol=1e-6
    )
    assert calls == [4] * PASSES + [3] * PASSES * 4


def test_an_image_becomes_what_most_passes_get_wrong_not_what_has_the_largest_loss():
    edge = BASES[0] + 0.9 * RADIUS

    def wrong(mean, number):
        """Three passes in four until the corner is near, where one is."""
        return (number == 0) | ((number < 3) & (mean < edge))

    found = found_by(wrong, [])
    means = found.images.numpy().mean(axis=(1, 2, 3))
    assert found.fooled.numpy().tolist() == [True, False, False, False]
    assert means[0] < edge
    np.testing.assert_allclose(means[1:], BASES[1:] + RADIUS, atol=1e-6)


def test_what_one_pass_in_two_misclassifies_clean_is_attacked():
    """All twenty have to be wrong; that the first is says nothing."""
    images = tf.fill([40, 2, 2, 1], 0.5)
    labels = tf.repeat([0, 1], 20)

    def network(images):
        # The first class or the third, whichever comes up.
        coin = tf.cast(tf.random.uniform([tf.shape(images)[0]]) < 0.5, tf.float32)
        return tf.stack([coin, 0 * coin - 9, 1 - coin], axis=1)

    found = untouched(network, images, labels, 20)
    np.testing.assert_array_equal(found.fooled, [False] * 20 + [True] * 20)
    np.testing.assert_array_equal(found.forwards, [20] * 40)
    once = untouched(network, images, labels).fooled[:20]
    assert once.numpy().any() and not once.numpy().all()
