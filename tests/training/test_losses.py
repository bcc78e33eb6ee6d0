"""The losses against NumPy, and where their gradients go."""

import numpy as np
import pytest
import tensorflow as tf

from cascade_keras import losses

CLASSES = 10


def numpy_cross_entropy(logits, labels):
    logits = np.asarray(logits, "float64")
    log_sum = np.log(np.exp(logits).sum(axis=1))
    return log_sum - logits[np.arange(len(labels)), labels]


def numpy_paper(clean, adversarial, weight):
    """Section 3.3, for losses of m - k clean and k adversarial images, as two sums."""
    m, k = len(clean) + len(adversarial), len(adversarial)
    total = sum(float(loss) for loss in clean) + weight * sum(float(loss) for loss in adversarial)
    return total / ((m - k) + weight * k)


def random_embeddings(count, width=CLASSES):
    rng = np.random.default_rng(count + width)
    return rng.normal(0, 2, (2, count, width)).astype("float32")


def random_logits(m, seed=0):
    rng = np.random.default_rng(seed)
    logits = rng.normal(0, 3, (m, CLASSES)).astype("float32")
    return logits, rng.integers(0, CLASSES, m).astype("int32")


# Cross entropy.


def test_cross_entropy_is_the_negative_log_probability():
    logits, labels = random_logits(32)
    actual = losses.cross_entropy(logits, labels)
    assert actual.shape == (32,)
    np.testing.assert_allclose(actual, numpy_cross_entropy(logits, labels), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    ("m", "k", "weight"),
    [
        (128, 64, 0.3),  # the paper's
        (128, 64, 1.0),
        (128, 64, 0.0),
        (128, 32, 0.3),
        (9, 4, 2.5),
        (7, 0, 0.3),  # standard: a plain mean
        (5, 5, 0.3),  # adversarial images only: a plain mean too
        (2, 1, 0.3),
    ],
)
def test_mixed_cross_entropy_is_the_papers_formula(m, k, weight):
    logits, labels = random_logits(m, seed=k)
    per_image = losses.cross_entropy(logits, labels)
    adversarial, clean = np.split(numpy_cross_entropy(logits, labels), [k])

    actual = losses.mixed_cross_entropy(per_image[k:], per_image[:k], weight)

    assert actual.shape == ()
    np.testing.assert_allclose(actual, numpy_paper(clean, adversarial, weight), rtol=1e-5)


def test_default_weight_is_the_papers():
    clean, adversarial = np.float32([1.0, 2.0]), np.float32([5.0])
    np.testing.assert_allclose(
        losses.mixed_cross_entropy(clean, adversarial), (1 + 2 + 0.3 * 5) / 2.3, rtol=1e-6
    )


@pytest.mark.parametrize("paired_weight", [0.0, 0.5, 1.0, 3.0])
@pytest.mark.parametrize(("clean_count", "k", "paired"), [(8, 8, 8), (12, 4, 4), (6, 3, 0)])
def test_paired_weight_counts_in_sum_and_normaliser(clean_count, k, paired, paired_weight):
    rng = np.random.default_rng(1)
    clean = rng.uniform(0, 3, clean_count).astype("float32")
    adversarial = rng.uniform(0, 3, k).astype("float32")

    actual = losses.mixed_cross_entropy(
        clean, adversarial, 0.3, paired=paired, paired_weight=paired_weight
    )

    weights = [paired_weight] * paired + [1.0] * (clean_count - paired) + [0.3] * k
    expected = np.average([*clean, *adversarial], weights=weights)
    np.testing.assert_allclose(actual, expected, rtol=1e-5)


def test_mixed_cross_entropy_of_a_traced_number_of_pairs():
    """k is a tensor inside a training step of unknown batch size."""
    compiled = tf.function(
        lambda clean, adversarial: losses.mixed_cross_entropy(
            clean, adversarial, 0.3, paired=tf.shape(adversarial)[0], paired_weight=0.5
        ),
        input_signature=[tf.TensorSpec([None]), tf.TensorSpec([None])],
    )
    actual = compiled(tf.constant([1.0, 2.0, 4.0]), tf.constant([5.0]))
    np.testing.assert_allclose(actual, (0.5 + 2 + 4 + 1.5) / (0.5 + 2 + 0.3), rtol=1e-6)


# Distances.


DISTANCES = {"bidirectional": losses.bidirectional_distance, "pivot": losses.pivot_distance}
all_distances = pytest.mark.parametrize("distance", DISTANCES.values(), ids=DISTANCES)


@all_distances
@pytest.mark.parametrize(
    ("norm", "numpy_norm"), [(1, lambda d: np.abs(d).sum()), (2, lambda d: (d**2).sum())]
)
@pytest.mark.parametrize(("k", "width"), [(1, 10), (64, 10), (8, 2), (0, 10)])
def test_distance_is_summed_over_images_and_coordinates(distance, norm, numpy_norm, k, width):
    adversarial, clean = random_embeddings(k, width)
    expected = numpy_norm(adversarial.astype("float64") - clean)
    np.testing.assert_allclose(distance(adversarial, clean, norm), expected, rtol=1e-5)


@all_distances
def test_default_norm_is_the_sum_of_squares(distance):
    """The paper's ||.||_2^2, not the released code's half of it."""
    assert distance(tf.constant([[3.0, 1.0]]), tf.constant([[1.0, 0.0]])) == 5


@all_distances
@pytest.mark.parametrize("norm", [0, 3, -1, 1.5, "2", None, np.inf])
def test_other_norms_are_refused(distance, norm):
    with pytest.raises(ValueError, match="norm must be 1 or 2"):
        distance(*random_embeddings(2), norm)


def gradients(distance, norm, adversarial, clean):
    adversarial, clean = tf.constant(adversarial), tf.constant(clean)
    with tf.GradientTape() as tape:
        tape.watch([adversarial, clean])
        value = distance(adversarial, clean, norm)
    return tape.gradient(value, [adversarial, clean])


def derivative(difference, norm):
    return np.sign(difference) if norm == 1 else 2 * difference


@pytest.mark.parametrize("norm", [1, 2])
def test_bidirectional_moves_both_embeddings_and_pivot_the_adversarial_one(norm):
    adversarial, clean = random_embeddings(16)
    expected = derivative(adversarial - clean, norm)
    for name, distance in DISTANCES.items():
        to_adversarial, to_clean = gradients(distance, norm, adversarial, clean)
        np.testing.assert_allclose(to_adversarial, expected, rtol=1e-6)
        if name == "pivot":
            assert to_clean is None
        else:
            np.testing.assert_array_equal(to_clean, -to_adversarial)


@all_distances
def test_embeddings_that_are_no_pairs_are_refused(distance):
    with pytest.raises(ValueError, match="incompatible"):
        distance(np.zeros((3, 4), "float32"), np.zeros((1, 4), "float32"))


def test_whole_numbers_are_weights_too():
    clean, adversarial = tf.constant([1.0, 3.0]), tf.constant([5.0])
    loss = losses.mixed_cross_entropy(clean, adversarial, 1, paired=1, paired_weight=2)
    assert float(loss) == pytest.approx((2 * 1 + 3 + 5) / 4)
