"""FAB against closed forms, a plain NumPy version of the published rule, and its properties."""

import functools

import numpy as np
import pytest
import tensorflow as tf
from support.linear import images_and_network, minimal_epsilons, step_to_plane
from support.networks import smooth

from cascade_keras import attacks, draws
from cascade_keras.attacks import boundary
from cascade_keras.errors import InputError

CHEAP = {"iterations": 8, "targets": 3}


@functools.cache
def traced(logits_fn, shape, dtype, epsilons, iterations, targets):
    signature = [tf.TensorSpec([None, *shape], dtype), tf.TensorSpec([None], tf.int32)]

    @tf.function(input_signature=signature, autograph=False)
    def search(images, labels):
        keys = draws.image_keys(0, tf.range(tf.shape(images)[0]))
        options = {"iterations": iterations, "targets": targets}
        return boundary.several(logits_fn, images, labels, epsilons, keys, **options)

    return search


def compiled(logits_fn, images, labels, epsilons, **options):
    """Search as programs do: compiled for batches of any size."""
    given = logits_fn, images.shape[1:], images.dtype, tuple(epsilons)
    search = traced(*given, **{**CHEAP, **options})
    return boundary.Found(*(part.numpy() for part in search(images, labels)))


@pytest.fixture(scope="module")
def batch(learned, digits):
    """Images of which a network of ten classes has learned to tell most."""
    return digits[0][:40], digits[1][:40].astype(np.int32)


EPSILONS = [30.0, 0.0, 12.0, 20.0]


@pytest.fixture(scope="module")
def found(learned, batch):
    return compiled(learned, *batch, EPSILONS)


# Closed forms.


def test_projections_are_the_smallest_steps_to_planes():
    rng = np.random.default_rng(0)
    points = rng.uniform(0, 1, (200, 30))
    points[rng.random(points.shape) < 0.4] = 0
    points[rng.random(points.shape) < 0.2] = 1
    normals = rng.normal(size=points.shape) * (rng.random(points.shape) < 0.8)
    values = rng.normal(0, 4, 200)
    values[:3] = 0
    steps = boundary.to_plane(*map(tf.constant, (points, normals, values))).numpy()

    expected = np.array([*map(step_to_plane, points, normals, values)])
    np.testing.assert_allclose(steps, expected, atol=1e-12)
    missed = np.abs(values + (normals * steps).sum(1)) > 1e-9
    assert 5 < missed.sum() < 100  # corners that are nearest to a plane outside
    single = boundary.to_plane(*(tf.constant(part[7:8]) for part in (points, normals, values)))
    np.testing.assert_array_equal(single[0], steps[7])


@pytest.mark.parametrize(("classes", "value_range"), [(2, (0, 1)), (6, (0, 255))])
def test_the_nearest_plane_of_a_linear_network(classes, value_range):
    """Within a per cent, with pixels at the limits and without: an independent bisection."""
    images, weights, bias = images_and_network(classes)
    labels = (images.reshape(-1, 64) @ weights + bias).argmax(1)
    labels[0] = (labels[0] + 1) % classes
    expected = minimal_epsilons(images, labels, weights, bias)

    def linear(images):
        return tf.reshape(images / value_range[1], [-1, 64]) @ weights + bias

    given = images * np.float32(value_range[1])
    result = boundary.minimal(
        linear, given, labels, value_range=value_range, iterations=40, batch_size=13
    )
    assert (result.epsilon[1:] <= 1.01 * expected[1:]).all()
    assert (result.epsilon >= expected - 1e-4).all() and np.isfinite(result.epsilon).all()
    np.testing.assert_array_equal(result.images[0], given[0])
    apart = np.abs(result.images - given).max(axis=(1, 2, 3)) * 255 / value_range[1]
    np.testing.assert_allclose(apart, result.epsilon, atol=1e-4)
    assert (np.argmax(linear(result.images), -1) != labels).all()
    assert result.gradients == 29 * 40 * (classes - 1)


# A plain version of the published rule.


def plain(logits_fn, image, label, iterations, targets):
    """The nearest image that is seen to be misclassified, its distance, and of which target."""
    x = image.ravel()
    nearest, best, aimed = x, np.inf, 0
    logits = logits_fn(tf.constant(image[None])).numpy()[0]
    others = [k for k in np.argsort(-logits) if k != label]
    for number, target in enumerate(others[:targets]):
        z = x
        for _ in range(iterations):
            point = tf.constant(z.reshape(1, *image.shape))
            with tf.GradientTape() as tape:
                tape.watch(point)
                logits = logits_fn(point)[0]
                f = logits[target] - logits[label]
            w, f = tape.gradient(f, point).numpy().ravel(), f.numpy()
            d, own = step_to_plane(z, w, f), step_to_plane(x, w, f + w @ (x - z))
            share = np.abs(d).max() / (np.abs(d).max() + np.abs(own).max())
            share = min(share, 0.1)
            z = np.clip((1 - share) * (z + 1.05 * d) + share * (x + 1.05 * own), 0, 1)
            if logits_fn(tf.constant(z.reshape(1, *image.shape))).numpy().argmax() != label:
                if np.abs(z - x).max() < best:
                    nearest, best, aimed = z, np.abs(z - x).max(), number
                z = x + 0.9 * (z - x)
    return nearest.reshape(image.shape), best, aimed


def test_the_published_rule(digits):
    scales = np.array([1.0, 9.0] * 5)  # so that the next class by its logit is not the nearest

    def network(images):
        return scales * smooth(images)

    images = digits[0][:5].astype(np.float64)
    labels = np.argmax(network(tf.constant(images)), -1).astype(np.int32)
    # Nothing is so near, so that every iteration is taken.
    options = {"iterations": 4, "targets": 3}
    result = compiled(network, images, labels, [1e-6, 255.0], **options)

    number = []
    for i in range(len(images)):
        expected, best, aimed = plain(network, images[i], labels[i], **options)
        number.append(aimed)
        assert 0 < best < 0.5
        np.testing.assert_allclose(result.images[1, i], expected, atol=1e-9)
    assert result.fooled[1].all() and not result.fooled[0].any()
    assert max(number) > 0  # each target begins at the image


# Properties.


def test_images_are_inside_the_ball_and_misclassified_where_they_count(learned, batch, found):
    images, labels = batch
    wrong = np.argmax(learned(images), -1) != labels
    for epsilon, made, fooled in zip(EPSILONS, found.images, found.fooled, strict=True):
        assert made.dtype == np.float32 and made.min() >= 0 and made.max() <= 1
        assert np.abs(made - images).max() <= np.float32(epsilon) / np.float32(255)
        np.testing.assert_array_equal(np.argmax(learned(made), -1) != labels, fooled)
        untouched = wrong | ~fooled
        np.testing.assert_array_equal(made[untouched], images[untouched])
    np.testing.assert_array_equal(found.fooled[1], wrong)
    counts = found.fooled.sum(axis=1)
    assert wrong.sum() < counts[2] < counts[3] < counts[0] < len(images)


def test_a_search_of_several_epsilons_is_that_of_each(learned, batch, found):
    images, labels = batch

    @functools.partial(tf.function, autograph=False)
    def otherwise():
        return {
            "one": boundary.search(learned, images, labels, 12.0, **CHEAP),
            "each": attacks.fab(learned, images, labels, tf.fill([40], 12.0), **CHEAP),
        }

    other = otherwise()
    # 12 is the smallest above 0, which the search ends at.
    for images in (other["one"].images, other["each"]):
        np.testing.assert_array_equal(images, found.images[2])
    np.testing.assert_array_equal(other["one"].fooled, found.fooled[2])
    np.testing.assert_array_equal(other["one"].gradients, found.gradients[1])
    np.testing.assert_array_equal(other["one"].forwards, found.forwards[1])


def test_an_image_is_searched_as_if_alone(learned, batch, found):
    images, labels = batch
    for part in (slice(3, 4), slice(1, 40, 3)):
        some = compiled(learned, images[part], labels[part], EPSILONS)
        for one, all_ in zip(some, found, strict=True):
            np.testing.assert_array_equal(one, all_[:, part])


def test_what_is_found_leaves_and_passes_are_counted(learned, batch, found):
    images, labels = batch
    given = []

    def watched(images):
        tf.py_function(lambda n: given.append(int(n)), [tf.shape(images)[0]], [])
        return learned(images)

    compiled(watched, images, labels, EPSILONS)
    # One pass of the clean images, and of each iteration one with a gradient and one without.
    assert given[0] == 40 and given[1::2] == given[2::2]
    assert given == sorted(given, reverse=True) and given[-1] == 40 - found.fooled[2].sum()
    gradients, forwards = found.gradients[1], found.forwards[1]
    assert sum(given) == gradients.sum() + forwards.sum()
    np.testing.assert_array_equal(forwards, gradients + 1)
    np.testing.assert_array_equal(gradients[~found.fooled[2]], 24)
    np.testing.assert_array_equal(gradients[found.fooled[1]], 0)
    assert not found.gradients[[0, 2, 3]].any() and not found.forwards[[0, 2, 3]].any()


def test_whichever_class_is_seen_counts_and_more_targets_find_no_less(learned, batch):
    images, labels = batch
    few, all_ = (
        boundary.minimal(learned, images, labels, iterations=8, targets=count) for count in (1, 20)
    )
    assert (all_.epsilon <= few.epsilon).all() and (all_.epsilon < few.epsilon).any()
    right = all_.epsilon > 0
    assert few.gradients == 8 * right.sum() and all_.gradients == 9 * few.gradients


# Networks that are none, and what is refused.


def test_a_network_without_gradients_is_left_alone_and_no_number_is_a_success():
    images, labels = np.full((3, 8, 8, 1), 0.5, "float32"), np.zeros(3, "int32")

    def unmoved(images):
        return tf.repeat([[2.0, 1.0]], tf.shape(images)[0], axis=0)

    result = boundary.several(unmoved, images, labels, [255.0], **CHEAP)
    assert not result.fooled.numpy().any()
    np.testing.assert_array_equal(result.images[0], images)

    def breaks(images):
        """Has no finite logits and no finite gradient beyond half of the way."""
        mean = tf.reduce_mean(images, [1, 2, 3])
        return tf.stack([tf.sqrt(0.75 - mean), tf.zeros_like(mean)], -1)

    result = compiled(breaks, images, labels, [255.0])
    assert result.fooled.all() and np.isfinite(result.images).all()
    broken = boundary.several(lambda x: breaks(x + 0.5), images, labels, [255.0], **CHEAP)
    assert broken.fooled.numpy().all() and not broken.gradients.numpy().any()


def test_saturated_outputs_and_large_logits_hide_nothing(learned, batch, found):
    result = compiled(lambda images: 1e4 * learned(images), *batch, EPSILONS)
    np.testing.assert_array_equal(result.fooled, found.fooled)


@pytest.mark.parametrize("option", ["iterations", "targets"])
def test_none_of_a_thing_is_refused(option, batch):
    for search in (attacks.fab, boundary.minimal):
        arguments = (8.0,) if search is attacks.fab else ()
        with pytest.raises(InputError, match="whole number of 1 or above"):
            search(smooth, *batch, *arguments, **{option: 0})
    with pytest.raises(InputError, match="iterations"):
        attacks.FAB(iterations=0)
    with pytest.raises(ValueError, match=r"a scalar or \(batch,\)"):
        attacks.fab(smooth, *batch, np.ones(batch[0].shape))
