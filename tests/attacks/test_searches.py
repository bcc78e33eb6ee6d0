"""What all searches share, with one whose every number is known."""

import numpy as np
import pytest
import tensorflow as tf
from support.networks import smooth_network

from cascade_keras import attacks, draws
from cascade_keras.attacks import auto_pgd, boundary, squares
from cascade_keras.attacks.searches import Found, ascending, in_whole_batches, misclassified
from cascade_keras.attacks.specs import ATTACKS, NESTED, AttackSpec

EPSILONS = [30.0, 0.0, 10.0, 20.0]
# Images of one pixel whose logits are (x - 0.5, 0.5 - x): they fall where x reaches 0.5.
DISTANCES = np.array([5, 10, 12, 25, 40, -3], np.float32) / 255


def logits_fn(images):
    z = tf.reshape(images, [-1, 1]) - 0.5
    return tf.concat([z, -z], axis=-1)


IMAGES = (0.5 + DISTANCES - 0.5 / 255).reshape(-1, 1, 1, 1).astype(np.float32)
LABELS = np.zeros(len(DISTANCES), np.int32)
WALKED = []


def walk(logits_fn, images, labels, epsilon, keys, steps=1):
    """Go left by epsilon at once; count as many passes as images are given."""
    count = tf.shape(images)[0]
    tf.py_function(lambda n, e: WALKED.append((int(n), float(e))), [count, epsilon], [])
    moved = images - epsilon / 255
    passes = tf.fill([count], count)
    return Found(
        moved, misclassified(logits_fn(moved), labels), passes, steps * tf.ones_like(passes)
    )


def nested(logits_fn, images, labels, epsilons, keys, **options):
    return ascending(walk, logits_fn, images, labels, epsilons, keys, **options)


@pytest.fixture
def row(monkeypatch):
    monkeypatch.setitem(ATTACKS, "walk", AttackSpec("walk", NESTED, nested, options={"steps": 3}))
    WALKED.clear()


def test_what_falls_stands_for_larger_epsilons():
    WALKED.clear()
    found = ascending(walk, logits_fn, IMAGES, LABELS, EPSILONS, draws.image_keys(0, tf.range(6)))
    fell_at = np.array([10, 10, 20, 30, np.inf, 0])
    fooled = fell_at[None] <= np.array(EPSILONS)[:, None]
    np.testing.assert_array_equal(found.fooled, fooled)
    moved = np.where(fooled, fell_at[None], np.array(EPSILONS)[:, None])
    np.testing.assert_allclose(found.images[..., 0, 0, 0], IMAGES.ravel() - moved / 255, atol=1e-6)
    # Those that stand are searched for, at no epsilon above 0 the misclassified one.
    assert [pair for pair in WALKED if pair[0]] == [(5, 10), (3, 20), (2, 30)]
    expected = [[0, 0, 0, 2, 2, 0], [0] * 6, [5, 5, 5, 5, 5, 0], [0, 0, 3, 3, 3, 0]]
    np.testing.assert_array_equal(found.gradients, expected)
    expected = [[0, 0, 0, 1, 1, 0], [1] * 6, [1, 1, 1, 1, 1, 0], [0, 0, 1, 1, 1, 0]]
    np.testing.assert_array_equal(found.forwards, expected)


def test_as_a_row_it_gives_its_images(row):
    made = attacks.at_epsilons("walk", logits_fn, IMAGES, LABELS, EPSILONS, seed=1)
    alone = [attacks.at_epsilon("walk", logits_fn, IMAGES, LABELS, e, seed=1) for e in EPSILONS]
    fell = np.array([10, 10, 20, 30, np.inf, 0])
    for epsilon, together, one in zip(EPSILONS, made, alone, strict=True):
        still = fell >= epsilon
        np.testing.assert_array_equal(together[still], one[still])
        moved = np.minimum(fell, epsilon)
        np.testing.assert_allclose(together[:, 0, 0, 0], IMAGES.ravel() - moved / 255, atol=1e-6)


def test_each_image_has_numbers_of_its_own():
    def draw(keys):
        return draws.of_images(draws.uniform_of, keys, 4, [50]).numpy()

    everyone = draw(draws.image_keys(3, tf.range(7)))
    np.testing.assert_array_equal(draw(draws.image_keys(3, tf.constant([5, 2]))), everyone[[5, 2]])
    assert len(np.unique(everyone)) > 340 and -1 < everyone.min() < -0.9 < 0.9 < everyone.max() < 1
    assert not np.array_equal(draw(draws.image_keys(4, tf.range(7))), everyone)


def test_what_is_no_number_is_misclassified():
    logits = tf.constant([[2.0, 1.0], [1.0, 2.0], [np.nan, 1.0], [np.inf, 1.0]])
    np.testing.assert_array_equal(misclassified(logits, [0, 0, 0, 0]), [False, True, True, True])


@pytest.mark.parametrize(
    ("search", "options", "epsilon"),
    [
        (auto_pgd.search, {"iterations": 6, "restarts": 2}, 6.0),
        (auto_pgd.search_targeted, {"iterations": 5, "targets": 3}, 6.0),
        (boundary.search, {"iterations": 4, "targets": 3}, 6.0),
        (squares.search, {"queries": 260}, 16.0),  # more than are drawn together
    ],
    ids=["apgd", "apgd_targeted", "fab", "square"],
)
def test_what_falls_may_as_well_stay_in_its_batch(search, options, epsilon, digits):
    """All is the same to the last bit, the passes that each image is counted for too."""
    network = smooth_network(3)  # in float64: the same in a batch of any size
    labels = tf.argmax(network(digits[0][:24]), axis=-1, output_type=tf.int32)
    shapes = tf.TensorSpec([24, 8, 8, 1]), tf.TensorSpec([24], tf.int32)

    def function(images, labels):
        def logits(images):
            return tf.cast(network(tf.cast(images, tf.float64)), tf.float32)

        keys = draws.image_keys(3, tf.range(24))
        return search(logits, images, labels, tf.constant(epsilon), keys, **options)

    leaving = tf.function(function)(digits[0][:24], labels)
    with in_whole_batches():
        whole = tf.function(function).get_concrete_function(*shapes)
    assert 0 < np.mean(leaving.fooled) < 1
    for one, other in zip(leaving, whole(tf.constant(digits[0][:24]), labels), strict=True):
        np.testing.assert_array_equal(one, other)
    unknown = [op.type for op in whole.graph.get_operations() if op.type == "Where"]
    assert not unknown
