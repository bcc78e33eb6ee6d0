"""AutoAttack on small networks: what its attacks find together, and what it tells of them."""

import functools

import numpy as np
import pytest
import tensorflow as tf

from cascade_keras import attacks, draws
from cascade_keras.attacks import boundary, versions
from cascade_keras.attacks.autoattack import AutoAttack, autoattack
from cascade_keras.attacks.specs import ATTACKS
from cascade_keras.errors import InputError
from cascade_keras.progress import progress_within

COUNT, SEED = 24, 7
EPSILONS = (24.0, 12.0)  # the larger first
SHORT = {"iterations": 5, "queries": 20}
NAMES = ATTACKS["autoattack"].stage_names
STANDS, CLEAN = 0, 1
FAST = [NAMES.index(name) for name in ("apgd", "apgd_targeted")]


@pytest.fixture(scope="module")
def logits_fn(learned):
    return tf.function(learned)


@pytest.fixture(scope="module")
def batch(digits):
    return digits[0][:COUNT], digits[1][:COUNT]


def made(logits_fn, epsilons=EPSILONS, version="standard", shape=(8, 8, 1), **options):
    options = {"seed": SEED, **SHORT, **options}
    return AutoAttack(logits_fn, shape, epsilons, version=version, **options)


@pytest.fixture(scope="module")
def attack(logits_fn):
    return made(logits_fn)


@pytest.fixture(scope="module")
def first(logits_fn):
    return made(logits_fn, [12, 0], stages=("apgd",))


@pytest.fixture(scope="module")
def found(attack, batch):
    shares = []
    with progress_within(shares.append):
        broken = attack(*batch)
    assert shares == sorted(shares) and len(shares) == 8 and shares[-1] == pytest.approx(1)
    return broken


def correct(logits_fn, images, labels):
    return np.argmax(logits_fn(tf.constant(images)), axis=-1) == labels


def test_images_lie_in_the_ball_and_the_valid_range(found, batch):
    assert found.images.shape == (2, *batch[0].shape) and found.images.dtype == np.float32
    assert found.images.min() >= 0 and found.images.max() <= 1
    reach = np.abs(found.images - batch[0]).max(axis=(2, 3, 4))
    assert (reach <= np.array(EPSILONS, np.float32)[:, None] / np.float32(255) + 1e-7).all()
    assert (reach[found.stages == STANDS] > 0.9 * 12 / 255).all()  # not the clean image


def test_stages_say_who_broke_what(found, batch, logits_fn):
    assert found.stages.dtype == np.int8
    assert 0 < np.sum(found.stages == STANDS) < np.sum(found.stages != CLEAN)
    for stages, images in zip(found.stages, found.images):
        np.testing.assert_array_equal(stages == STANDS, correct(logits_fn, images, batch[1]))
    wrong = ~correct(logits_fn, *batch)
    assert wrong.any()
    np.testing.assert_array_equal(found.stages == CLEAN, np.stack([wrong, wrong]))
    np.testing.assert_array_equal(found.images[:, wrong], np.stack([batch[0][wrong]] * 2))


def test_what_falls_falls_at_larger_epsilons_to_the_same(found):
    large, small = found.stages
    fell = small != STANDS
    np.testing.assert_array_equal(large[fell], small[fell])
    np.testing.assert_array_equal(found.images[0][fell], found.images[1][fell])
    assert not found.gradients[0][fell].any() and not found.forwards[0][fell].any()


def test_stages_are_the_attacks_alone(found, attack, batch, logits_fn):
    """Each of them finds what it finds without the others, of the images that these leave."""
    images, labels = batch
    standing = np.flatnonzero(found.stages[1] != CLEAN)
    gradients, forwards = np.zeros(COUNT, int), np.ones(COUNT, int)
    for name, options in (("apgd", {}), ("apgd_targeted", {}), ("fab", {}), ("square", {})):
        known = {"square": {"queries": 20}}.get(name, {"iterations": 5}) | options
        keys = draws.image_keys(SEED, standing)
        search = functools.partial(attacks.search, name, logits_fn, **known)
        search = tf.function(search, autograph=False)
        alone = search(images[standing], labels[standing], [12.0], seed=keys)
        fell = alone.fooled[0].numpy()
        np.testing.assert_array_equal(
            found.stages[1][standing] == NAMES.index(name), fell, err_msg=name
        )
        gradients[standing] += alone.gradients[0]
        # Alone, they look at the clean images first; FAB needs that.
        forwards[standing] += alone.forwards[0] - (name != "fab")
        standing = standing[~fell]
    np.testing.assert_array_equal(found.gradients[1], gradients)
    np.testing.assert_array_equal(found.forwards[1], forwards)


def test_depends_on_no_other_image_and_no_other_epsilon(found, attack, batch, first):
    images, labels = batch
    parts = [attack(images[i : i + 5], labels[i : i + 5], i) for i in range(0, COUNT, 5)]
    again = [np.concatenate(part, axis=1) for part in zip(*parts)]
    np.testing.assert_array_equal(again[1], found.stages)
    np.testing.assert_allclose(again[0], found.images, atol=1e-5)
    alone = first(*batch)
    same = found.stages[1] == NAMES.index("apgd")
    np.testing.assert_array_equal(alone.stages[0][same], found.stages[1][same])
    np.testing.assert_array_equal(alone.images[0][same], found.images[1][same])
    assert set(alone.stages[0][~same]) == {STANDS, CLEAN}
    np.testing.assert_array_equal(alone.stages[1] == STANDS, found.stages[1] != CLEAN)
    np.testing.assert_array_equal(alone.images[1], images)
    np.testing.assert_array_equal(alone.forwards[1], np.ones(COUNT))


def test_one_search_of_fab_serves_all_epsilons(batch, logits_fn):
    attack = made(logits_fn, (6, 12, 24), stages=("fab",))
    broken = attack(*batch)
    stood = broken.stages[0] != CLEAN
    assert (broken.gradients[0] > 0).tolist() == stood.tolist()
    assert not broken.gradients[1:].any() and not broken.forwards[1:].any()
    alone = boundary.minimal(logits_fn, *batch, iterations=5).epsilon
    for epsilon, stages in zip((6, 12, 24), broken.stages):
        np.testing.assert_array_equal(stages != STANDS, alone <= epsilon)
    assert (np.diff(np.sum(broken.stages == STANDS, axis=1)) < 0).all()


def test_what_is_known_to_fall_is_not_attacked(found, attack, batch):
    known = np.where(np.isin(found.stages, [CLEAN, *FAST]), found.stages, STANDS)
    then = attack(*batch, fallen=known)
    assert not (then.gradients + then.forwards)[known != STANDS].any()
    assert (then.gradients + then.forwards)[1][known[1] == STANDS].all()
    np.testing.assert_array_equal(then.stages, found.stages)
    assert 0 < np.sum(found.stages == STANDS) < np.sum(known == STANDS)


def test_the_function_attacks_in_batches(batch, logits_fn):
    def two(images):
        return logits_fn(images)[:, :2]

    batch = batch[0], batch[1] % 2
    options = {"seed": SEED, "version": "rand", "iterations": 2}
    made_in_parts = autoattack(two, *batch, [12], batch_size=9, **options)
    found = made(two, [12], "rand", iterations=2)(*batch)
    np.testing.assert_allclose(made_in_parts, found.images, atol=1e-5)
    stood = found.stages[0] == STANDS
    assert stood.any() and (found.gradients[0][stood] == 2 * versions.AVERAGE).all()


# Few classes.


@pytest.mark.parametrize("classes", [2, 3])
def test_few_classes(classes):
    """A linear network falls where the corner of the ball in its direction is across the border."""
    rng = np.random.default_rng(0)
    weights = tf.constant(rng.normal(size=(16, classes)), tf.float32)
    images = rng.uniform(0.3, 0.7, (30, 4, 4, 1)).astype("float32")

    def linear(x):
        return tf.reshape(x - 0.5, [-1, 16]) @ weights

    logits = linear(images).numpy()
    labels = logits.argmax(axis=1)
    reach = np.abs(weights - weights.numpy()[:, labels].T[:, :, None]).sum(axis=1)
    gaps = logits - logits.max(axis=1, keepdims=True) + 12 / 255 * reach
    gaps[np.arange(30), labels] = -np.inf
    falls = gaps.max(axis=1) > 0
    assert 0 < falls.sum() < 30

    attack = made(linear, [12], "fast", (4, 4, 1), iterations=20)
    np.testing.assert_array_equal(attack(images, labels).stages[0] != STANDS, falls)
    assert len(attack.left_out) == 1


def test_what_is_left_out_is_said():
    def stages(version, classes):
        return versions.stages_of(version, classes, 5000)

    for classes, second in ((2, ()), (3, ("apgd_dlr",)), (4, ("apgd_targeted",))):
        assert stages("standard", classes) == ("apgd", *second, "fab", "square")
        assert stages("fast", classes) == ("apgd", *(second or ("fab",)))
        assert stages("rand", classes) == ("apgd", *(second and ("apgd_dlr",)))
    assert versions.left_out("standard", 10) == versions.left_out("rand", 3) == []
    (sentence,) = versions.left_out("fast", 2)
    assert sentence == (
        "autoattack (fast) leaves out apgd_targeted, which needs 4 classes and is given 2; fab "
        "stands in for it."
    )
    assert "square" not in versions.stages_of("standard", 10, 0)


# Networks whose gradients mislead.


def broken_by(network, images, **options):
    labels = np.argmax(network(tf.constant(images)), axis=1)
    return {NAMES[number] for number in made(network, [16], **options)(images, labels).stages[0]}


def test_square_breaks_what_has_no_gradient(batch, logits_fn):
    def rounded(images):
        return logits_fn(tf.round(4 * images) / 4 + 0 * images)

    images = np.round(4 * batch[0]) / 4 + 0.12 - 0.24 * (batch[0] > 0.5)  # near the edges
    images = np.clip(images, 0, 1).astype("float32")
    stages = ("apgd", "square")
    assert "square" in broken_by(rounded, images, stages=stages, queries=100)


def test_fab_breaks_what_saturates(batch, logits_fn):
    """Of logits times 1e4 the cross entropy has no gradient; those of the logits are as before."""

    def saturated(images):
        return 1e4 * logits_fn(images)

    assert "fab" in broken_by(saturated, batch[0], stages=("apgd", "fab"))


# What cannot be.


def test_numbers_that_are_none_are_never_robust(batch, logits_fn):
    def failing(images):
        logits = logits_fn(images)
        return tf.where(tf.range(tf.shape(logits)[0])[:, None] % 2 == 0, float("nan"), logits)

    found = made(failing, [12], stages=("apgd",))(*batch)
    np.testing.assert_array_equal(found.stages[0][::2], CLEAN)


REFUSED = [
    ("classes up to 10", {"labels": np.full(COUNT, 10)}),
    ("0 or above", {"labels": -np.ones(COUNT, int)}),
    ("outside of", {"images": 2.0}), ("one of fast, standard, rand", {"version": "slow"}),
    ("iterations: must be a whole", {"iterations": 0}), ("queries: ", {"queries": -1}),
    ("num_classes: is 9", {"num_classes": 9}), ("epsilons: name", {"epsilons": []}),
    ("gives probabilities", {"network": tf.nn.softmax}),
]  # fmt: skip


@pytest.mark.parametrize(("words", "wrong"), REFUSED)
def test_what_cannot_be_is_refused(words, wrong, batch, logits_fn):
    images, labels = batch
    wrong = dict(wrong)
    given = images * wrong.pop("images", 1.0), wrong.pop("labels", labels)
    last = wrong.pop("network", lambda logits: logits)
    with pytest.raises(InputError, match=words):
        made(lambda x: last(logits_fn(x)), **{"version": "fast", **wrong})(*given)


def test_epsilons_that_cannot_be_are_refused(logits_fn):
    for epsilon in (-1, float("nan"), float("inf")):
        with pytest.raises(ValueError, match="0 or above"):
            made(logits_fn, [epsilon])


def test_labels_of_few_bits_are_taken(batch, first):
    expected = first(*batch).images
    np.testing.assert_array_equal(first(batch[0], batch[1].astype(np.uint8)).images, expected)
    hot = tf.one_hot(batch[1], 10)
    np.testing.assert_array_equal(first(batch[0], hot).images, expected)
    assert first(batch[0][:0], batch[1][:0]).images.shape == (2, 0, 8, 8, 1)
