"""The losses against NumPy, and where their gradients go."""

import numpy as np
import pytest
import tensorflow as tf

from cascade_keras import losses

DISTANCES = {"bidirectional": losses.bidirectional_distance, "pivot": losses.pivot_distance}
all_distances = pytest.mark.parametrize("distance", DISTANCES.values(), ids=DISTANCES)


def random_embeddings(count, width=10):
    return np.random.default_rng(count + width).normal(0, 2, (2, count, width)).astype("float32")


def test_cross_entropy_is_the_negative_log_probability():
    rng = np.random.default_rng(0)
    logits, labels = rng.normal(0, 3, (32, 10)).astype("float32"), rng.integers(0, 10, 32)
    actual = losses.cross_entropy(logits, labels.astype("int32"))
    expected = np.log(np.exp(logits.astype("float64")).sum(axis=1)) - logits[range(32), labels]
    np.testing.assert_allclose(actual, expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    ("clean", "k", "weight", "paired", "paired_weight"),
    [
        (64, 64, 0.3, 0, 1.0),  # the paper's
        (64, 64, 0.0, 0, 1.0),
        (5, 4, 2.5, 0, 1.0),
        (7, 0, 0.3, 0, 1.0),  # standard: a plain mean
        (0, 5, 0.3, 0, 1.0),  # adversarial images only: a plain mean too
        (8, 8, 0.3, 8, 0.0),
        (12, 4, 0.3, 4, 0.5),
        (6, 3, 0.3, 0, 3.0),
        (2, 1, 1, 1, 2),  # whole numbers are weights too
    ],
)
def test_mixed_cross_entropy_is_the_papers_formula(clean, k, weight, paired, paired_weight):
    """In a training step of unknown batch size, too, where the number of pairs is a tensor."""
    rng = np.random.default_rng(1)
    given = rng.uniform(0, 3, clean).astype("float32"), rng.uniform(0, 3, k).astype("float32")
    weights = [paired_weight] * paired + [1.0] * (clean - paired) + [weight] * k
    expected = np.average(np.concatenate(given), weights=weights)

    def mixed(clean, adversarial, paired):
        return losses.mixed_cross_entropy(
            clean, adversarial, weight, paired=paired, paired_weight=paired_weight
        )

    unknown = [tf.TensorSpec([None]), tf.TensorSpec([None]), tf.TensorSpec([], tf.int32)]
    for actual in (mixed(*given, paired), tf.function(mixed, unknown)(*given, paired)):
        assert actual.shape == ()
        np.testing.assert_allclose(actual, expected, rtol=1e-5)
    if (weight, paired) == (0.3, 0):  # the defaults
        np.testing.assert_allclose(losses.mixed_cross_entropy(*given), expected, rtol=1e-5)


@pytest.mark.parametrize("norm", [1, 2])
@pytest.mark.parametrize(("k", "width"), [(1, 10), (64, 10), (8, 2), (0, 10)])
def test_distances_are_sums_that_move_both_embeddings_or_the_adversarial_one(k, width, norm):
    """Over images and coordinates; ||.||_2^2 as printed, not the released code's half of it."""
    adversarial, clean = map(tf.constant, random_embeddings(k, width))
    difference = (adversarial - clean).numpy().astype("float64")
    slope = np.sign(difference) if norm == 1 else 2 * difference
    for name, distance in DISTANCES.items():
        with tf.GradientTape() as tape:
            tape.watch([adversarial, clean])
            value = distance(adversarial, clean, norm)
        np.testing.assert_allclose(value, (np.abs(difference) ** norm).sum(), rtol=1e-5)
        to_adversarial, to_clean = tape.gradient(value, [adversarial, clean])
        np.testing.assert_allclose(to_adversarial, slope, rtol=1e-6)
        if name == "pivot":
            assert to_clean is None
        else:
            np.testing.assert_array_equal(to_clean, -to_adversarial)
        if norm == 2:  # the default
            assert distance(adversarial, clean) == value


@all_distances
def test_other_norms_and_embeddings_that_are_no_pairs_are_refused(distance):
    for norm in (0, 3, -1, 1.5, "2", None, np.inf):
        with pytest.raises(ValueError, match="norm"):
            distance(*random_embeddings(2), norm)
    with pytest.raises(ValueError, match="incompatible"):
        distance(np.zeros((3, 4), "float32"), np.zeros((1, 4), "float32"))
