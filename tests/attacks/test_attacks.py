"""The attacks against two independent implementations, and their properties."""

import inspect

import foolbox
import keras
import numpy as np
import pytest
import tensorflow as tf
from art.attacks.evasion import BasicIterativeMethod, FastGradientMethod
from support.networks import CLASSES, smooth
from support.peers import art_classifier

from cascade_keras import attacks, draws, models
from cascade_keras.attacks import AttackSpec, specs

PAPER_ITERATIONS = (1, 2, 3, 5, 6, 7, 8, 10, 11, 12, 13, 15, 16, 17, 18, 20)
STEP_ATTACKS = attacks.specs.names(attacks.specs.ONE_STEP)
ITERATIVE_ATTACKS = ("iter_fgsm", "iter_ll")
ATTACKS = (*STEP_ATTACKS, *ITERATIVE_ATTACKS, "pgd")

all_attacks = pytest.mark.parametrize("name", ATTACKS)


def craft(name, logits_fn, images, labels, epsilon, **options):
    if name == "pgd":
        options = {"steps": 3, "restarts": 1, **options}
    options.setdefault("seed", (3, 4))
    return attacks.at_epsilon(name, logits_fn, images, labels, epsilon, **options)


@pytest.fixture(scope="module")
def resnet(randomize):
    return randomize(models.resnet(8, (8, 8, 1)))


@pytest.fixture(scope="module")
def keras_batch_norm(randomize):
    layers = [
        keras.layers.Conv2D(8, 3, padding="same", use_bias=False),
        keras.layers.BatchNormalization(),
        keras.layers.ReLU(),
        keras.layers.GlobalAveragePooling2D(),
        keras.layers.Dense(CLASSES),
    ]
    return randomize(keras.Sequential([keras.Input((8, 8, 1)), *layers]))


@pytest.fixture(scope="module")
def logits_fns(resnet, keras_batch_norm):
    return {
        "smooth": smooth,
        "resnet": tf.function(lambda images: resnet(images, training=False)["logits"]),
        "keras_batch_norm": lambda images: keras_batch_norm(images, training=False),
    }


@pytest.fixture(scope="module")
def batch(digits):
    images, labels = digits
    return tf.constant(images[:16]), tf.constant(labels[:16])


@pytest.fixture(scope="module")
def interior(batch):
    """Images so far from 0 and 1 that the valid range clips nothing."""
    images, labels = batch
    return 0.2 + 0.6 * images, labels


def in_float64(images_and_labels):
    images, labels = images_and_labels
    return tf.cast(images, tf.float64), labels


def pixels(adversarial, images):
    """The perturbation in pixel units, in float64."""
    return 255 * (adversarial.numpy().astype("float64") - images.numpy().astype("float64"))


# Independent implementations.


def foolbox_attack(logits_fn, images, classes, epsilon, steps, targeted):
    network = foolbox.TensorFlowModel(logits_fn, bounds=(0, 1), device="/CPU:0")
    if steps is None and not targeted:
        attack = foolbox.attacks.FGSM()
    elif steps is None:  # its FGSM refuses targets; one step of epsilon is the same thing
        attack = foolbox.attacks.LinfBasicIterativeAttack(rel_stepsize=1.0, steps=1)
    else:
        attack = foolbox.attacks.LinfBasicIterativeAttack(
            abs_stepsize=1 / 255, steps=steps, random_start=False
        )
    kind = (
        foolbox.criteria.TargetedMisclassification
        if targeted
        else foolbox.criteria.Misclassification
    )
    # ``run`` is the attack; calling it also judges success, which eagerpy cannot under NumPy 2.
    return attack.run(network, images, kind(classes), epsilon=epsilon / 255)


def art_attack(logits_fn, images, classes, epsilon, steps, targeted):
    classifier = art_classifier(logits_fn, images.shape[1:], CLASSES)
    common = {"eps": epsilon / 255, "targeted": targeted, "batch_size": len(images)}
    if steps is None:
        attack = FastGradientMethod(classifier, **common)
    else:
        attack = BasicIterativeMethod(
            classifier, eps_step=1 / 255, max_iter=steps, verbose=False, **common
        )
    return tf.constant(attack.generate(images.numpy(), classes.numpy()))


STEP_EPSILONS = (0.5, 2, 8, 76.5)
ITER_EPSILONS = (1, 4, 16)


@pytest.mark.parametrize("network", ["smooth", "resnet"])
@pytest.mark.parametrize("independent", [foolbox_attack, art_attack])
@pytest.mark.parametrize(
    ("name", "epsilon"),
    [(name, eps) for name in ("step_fgsm", "step_ll") for eps in STEP_EPSILONS]
    + [(name, eps) for name in ("iter_fgsm", "iter_ll") for eps in ITER_EPSILONS],
)
def test_same_images_as_an_independent_implementation(
    name, epsilon, independent, network, logits_fns, batch
):
    images, labels = batch
    if network == "smooth" and independent is foolbox_attack:  # the one pair that can
        images = tf.cast(images, tf.float64)
    logits_fn = logits_fns[network]
    targeted = name.endswith("_ll")
    classes = tf.argmin(logits_fn(images), -1, tf.int32) if targeted else labels
    steps = PAPER_ITERATIONS[epsilon - 1] if name.startswith("iter") else None
    expected = independent(logits_fn, images, classes, epsilon, steps, targeted)

    actual = craft(name, logits_fn, images, labels, epsilon)

    assert np.abs(pixels(expected, images)).max() > 0.9 * epsilon  # it did attack
    np.testing.assert_allclose(actual, expected, rtol=0, atol=1e-6)


# What every attack keeps.


@all_attacks
@pytest.mark.parametrize("per_image", [False, True])
@pytest.mark.parametrize("epsilon", [0.7, 16, 300])
def test_stays_in_the_ball_and_in_the_valid_range(name, epsilon, per_image, batch):
    images, labels = batch
    if per_image:
        epsilon = np.linspace(0, epsilon, len(images)).astype("float32")

    adversarial = craft(name, smooth, images, labels, epsilon, **shorter(name, epsilon))

    assert adversarial.shape == images.shape
    assert adversarial.numpy().min() >= 0
    assert adversarial.numpy().max() <= 1
    radius = np.reshape(epsilon, (-1, 1, 1, 1)) / 255 + 1e-7
    assert (np.abs(adversarial - images) <= radius).all()


def shorter(name, epsilon):
    """Cap the 304 iterations of epsilon 300: they prove no more than 40 of a larger step."""
    too_long = name.startswith("iter") and np.max(epsilon) > 100
    return {"steps": 40, "step_size": 10.0} if too_long else {}


@all_attacks
def test_epsilon_of_each_image_is_its_own(name, batch):
    images, labels = batch
    images, labels = images[:6], labels[:6]
    epsilon = np.array([0, 1, 2.5, 4, 7, 16], "float32")

    adversarial = craft(name, smooth, images, labels, epsilon)

    for i, eps in enumerate(epsilon):
        all_with_this = craft(name, smooth, images, labels, float(eps))
        np.testing.assert_array_equal(adversarial[i], all_with_this[i])


@all_attacks
@pytest.mark.parametrize("network", ["smooth", "keras_batch_norm"])
def test_does_not_depend_on_the_other_images(name, network, logits_fns, batch, digits):
    images, labels = batch
    kept = np.arange(len(images)) % 3 == 0
    other_images = tf.where(kept[:, None, None, None], images, digits[0][100:116])
    other_labels = tf.where(kept, labels, digits[1][100:116])

    first = craft(name, logits_fns[network], images, labels, 4.0)
    second = craft(name, logits_fns[network], other_images, other_labels, 4.0)

    np.testing.assert_array_equal(first[kept], second[kept])
    assert not np.array_equal(first[~kept], second[~kept])


@all_attacks
@pytest.mark.parametrize("epsilon", [0, 0.0, np.zeros(16, "float32")])
def test_epsilon_zero_returns_the_images(name, epsilon, batch):
    np.testing.assert_array_equal(craft(name, smooth, *batch, epsilon), batch[0])


@all_attacks
def test_epsilon_of_each_pixel(name, interior):
    images, labels = interior
    epsilon = np.random.default_rng(1).integers(0, 9, images.shape).astype("float32")

    perturbation = np.abs(pixels(craft(name, smooth, images, labels, epsilon), images))

    if name.startswith("step"):
        np.testing.assert_allclose(perturbation, epsilon, atol=1e-4)
    else:
        assert (perturbation <= epsilon + 1e-4).all()
        for radius in range(9):  # each is reached somewhere
            np.testing.assert_allclose(perturbation[epsilon == radius].max(), radius, atol=1e-4)


@all_attacks
def test_no_gradient_flows_through(name, batch):
    images, labels = batch
    weight, epsilon = tf.Variable(1.0), tf.constant(2.0)
    with tf.GradientTape() as tape:
        tape.watch([images, epsilon])
        adversarial = craft(name, lambda x: weight * smooth(x), images, labels, epsilon)
        total = tf.reduce_sum(adversarial)
    assert tape.gradient(total, [images, epsilon, weight]) == [None, None, None]


@all_attacks
@pytest.mark.parametrize("epsilon", [3.0, np.linspace(1, 8, 16).astype("float32")])
def test_inside_a_function_of_unknown_batch_size(name, epsilon, batch):
    signature = [tf.TensorSpec([None, 8, 8, 1]), tf.TensorSpec([None], tf.int32)]
    compiled = tf.function(
        lambda images, labels: craft(name, smooth, images, labels, epsilon),
        input_signature=signature,
    )
    np.testing.assert_allclose(
        compiled(*batch), craft(name, smooth, *batch, epsilon), rtol=0, atol=1e-6
    )


@all_attacks
@pytest.mark.parametrize("dtype", ["bfloat16", "float16", "float32", "float64"])
def test_keeps_the_type_of_the_images(name, dtype, batch):
    images, labels = tf.cast(batch[0], dtype), batch[1]
    adversarial = craft(name, smooth, images, labels, 4)
    assert adversarial.dtype == images.dtype
    assert np.any(adversarial != images)


@all_attacks
@pytest.mark.parametrize("shape", [(16, 1), (16, 8, 8), (1, 16, 8, 8, 1)])
def test_epsilon_of_a_wrong_shape_is_refused(name, shape, batch):
    with pytest.raises(ValueError, match="epsilon must be"):
        craft(name, smooth, *batch, np.ones(shape, "float32"))


@all_attacks
@pytest.mark.parametrize("network", ["resnet", "keras_batch_norm"])
def test_leaves_every_variable_of_the_network_alone(name, network, logits_fns, batch, request):
    variables = request.getfixturevalue(network).variables
    before = [variable.numpy() for variable in variables]
    assert any("moving_variance" in variable.path for variable in variables)

    craft(name, logits_fns[network], *batch, 4)

    for variable, value in zip(variables, before, strict=True):
        np.testing.assert_array_equal(variable, value, err_msg=variable.path)


# The direction.


def first_order(logits_fn, images, objective):
    """The objective of each image, and the sum of its gradient's magnitudes."""
    with tf.GradientTape() as tape:
        tape.watch(images)
        value = objective(logits_fn(images))
    return value.numpy(), np.abs(tape.gradient(value, images)).sum(axis=(1, 2, 3))


@pytest.mark.parametrize(
    ("name", "options", "make_objective", "sign"),
    [
        ("step_fgsm", {}, lambda labels, _: attacks.cross_entropy(labels), 1),
        ("step_ll", {}, lambda _, least: attacks.cross_entropy(least), -1),
        (
            "step_fgsm",
            {"objective": attacks.margin},
            lambda labels, _: attacks.margin(labels),
            1,
        ),
        ("iter_fgsm", {"steps": 1}, lambda labels, _: attacks.cross_entropy(labels), 1),
        (
            "iter_fgsm",
            {"steps": 1, "objective": attacks.margin},
            lambda labels, _: attacks.margin(labels),
            1,
        ),
        ("iter_ll", {"steps": 1}, lambda _, least: attacks.cross_entropy(least), -1),
    ],
)
def test_direction_to_first_order(name, options, make_objective, sign, interior):
    """A small step changes the objective by epsilon ||gradient||_1, the most there is."""
    images, labels = in_float64(interior)
    epsilon = 1e-3
    objective = make_objective(labels, np.argmin(smooth(images), axis=-1))
    before, slope = first_order(smooth, images, objective)

    after = objective(smooth(craft(name, smooth, images, labels, epsilon, **options)))

    np.testing.assert_allclose(after - before, sign * epsilon / 255 * slope, rtol=1e-3)


def test_margin_is_the_largest_other_logit_minus_the_labelled_one():
    logits = tf.constant([[3.0, 1.0, 2.0], [-5.0, -9.0, -4.0], [2.0, 2.0, 0.0]])
    np.testing.assert_array_equal(attacks.margin(tf.constant([0, 1, 1]))(logits), [-1, 5, 0])


def test_margin_does_not_saturate(batch):
    """Where the cross entropy's gradient underflows to zero the margin's is unchanged."""
    images = batch[0]
    labels = tf.argmax(smooth(images), -1, tf.int32)

    def confident(x):
        return 1e3 * smooth(x)

    stuck = craft("step_fgsm", confident, images, labels, 2)
    moved = craft("step_fgsm", confident, images, labels, 2, objective=attacks.margin)

    assert np.array_equal(stuck[0], images[0])
    np.testing.assert_array_equal(
        moved, craft("step_fgsm", smooth, images, labels, 2, objective=attacks.margin)
    )


@pytest.mark.parametrize("count", [16, 7, 2, 1])
def test_step_both_is_half_step_ll_and_half_step_fgsm(count, batch):
    images, labels = batch[0][:count], batch[1][:count]
    both, towards, away = (
        craft(name, smooth, images, labels, 4) for name in ("step_both", "step_ll", "step_fgsm")
    )
    half = count // 2
    np.testing.assert_array_equal(both[:half], towards[:half])
    np.testing.assert_array_equal(both[half:], away[half:])
    assert not np.array_equal(towards, away)


def test_step_rand_depends_on_the_seed_only(interior):
    images, labels = interior
    first = np.sign(pixels(craft("step_rand", smooth, images, labels, 3), images))
    others = 1.0 - images
    second = np.sign(pixels(craft("step_rand", None, others, labels + 1, 7), others))
    np.testing.assert_array_equal(first, second)

    reseeded = np.sign(pixels(craft("step_rand", smooth, images, labels, 3, seed=(3, 5)), images))
    # Of n = 1024 fair coins 512 differ, with a standard deviation of 16.
    assert abs(np.sum(reseeded != first) - 512) < 4 * 16
    assert abs(first.sum()) < 4 * 32


@pytest.mark.parametrize("epsilon", [0.3, 0.79, 1])
@pytest.mark.parametrize("name", ITERATIVE_ATTACKS)
def test_iter_of_epsilon_one_or_less_is_one_step(name, epsilon, batch):
    """Below 0.8 the paper's number of steps is 0, but a clean image is no attacked one."""
    expected = craft(name.replace("iter", "step"), smooth, *batch, epsilon)
    np.testing.assert_allclose(craft(name, smooth, *batch, epsilon), expected, rtol=0, atol=1e-7)
    (rung, _) = attacks.at_epsilons(name, smooth, *batch, [epsilon, 3])
    np.testing.assert_allclose(rung, expected, rtol=0, atol=1e-7)
    assert attacks.ladder_gradients([epsilon]) == 1


def test_iter_ll_keeps_the_least_likely_class_of_the_clean_image(batch):
    """Far enough that another class becomes the least likely one on the way."""
    images, labels = batch
    clean = tf.argmin(smooth(images), -1, tf.int32)
    adversarial = craft("iter_ll", smooth, images, labels, 32)
    assert np.any(tf.argmin(smooth(adversarial), -1, tf.int32) != clean)

    toward_clean_target = images
    for _ in range(36):
        pulled = craft_targeted(toward_clean_target, clean)
        toward_clean_target = tf.clip_by_value(
            pulled, tf.maximum(images - 32 / 255, 0), tf.minimum(images + 32 / 255, 1)
        )
    np.testing.assert_allclose(adversarial, toward_clean_target, rtol=0, atol=1e-6)


def craft_targeted(images, target):
    with tf.GradientTape() as tape:
        tape.watch(images)
        loss = tf.nn.sparse_softmax_cross_entropy_with_logits(target, smooth(images))
    return images - tf.sign(tape.gradient(loss, images)) / 255


# Sparsity.


@pytest.mark.parametrize("name", STEP_ATTACKS)
@pytest.mark.parametrize(
    ("sparsity", "perturbed"), [(0.1, 1), (5, 3), (25, 16), (50, 32), (99, 63), (100, 64)]
)
def test_sparsity_is_the_share_of_perturbed_values(name, sparsity, perturbed, interior):
    images, labels = interior
    change = np.abs(pixels(craft(name, smooth, images, labels, 5, sparsity=sparsity), images))

    assert (np.count_nonzero(change, axis=(1, 2, 3)) == perturbed).all()
    np.testing.assert_allclose(change[change != 0], 5, atol=1e-4)


@pytest.mark.parametrize("name", STEP_ATTACKS)
@pytest.mark.parametrize("sparsity", [0, -1, 100.5])
def test_sparsity_out_of_range_is_refused(name, sparsity, batch):
    with pytest.raises(ValueError, match="sparsity"):
        craft(name, smooth, *batch, 5, sparsity=sparsity)


# The ladder of iterations.


@pytest.mark.parametrize(
    ("epsilon", "expected"),
    [
        *enumerate(PAPER_ITERATIONS, start=1),
        (0, 0),
        (0.5, 1),
        (76.5, 80),
        (np.array([1, 4, 16, 76.5], "float32"), [1, 5, 20, 80]),
        (np.array([1, 4, 16]), [1, 5, 20]),
    ],
)
def test_iterations_are_the_papers(epsilon, expected):
    steps = attacks.iterations(epsilon)
    assert steps.dtype == tf.int32
    np.testing.assert_array_equal(steps, expected)


# How far a training image is perturbed; tests/support/oracle.py has the other distributions.


def test_epsilons_of_training_are_the_papers_and_follow_from_the_seed():
    count, largest = 20_000, 16.0
    drawn, again, other = (
        draws.sample_epsilon("clipped_normal", count, largest, seed).numpy()
        for seed in ((1, 2), (1, 2), (1, 3))
    )
    np.testing.assert_array_equal(drawn, again)
    assert not np.array_equal(drawn, other)
    assert drawn.min() >= 0 and drawn.max() <= largest
    for share, chance in [
        (np.mean(drawn == largest), 0.0455003),  # P(|Z| > 2)
        (np.mean(drawn < largest / 2), 0.6826895),  # P(|Z| < 1)
        (np.mean(drawn < largest / 4), 0.3829249),  # P(|Z| < 1/2)
    ]:
        assert abs(share - chance) < 3 * np.sqrt(chance * (1 - chance) / count)
    with pytest.raises(ValueError, match="'normal' is none of"):
        draws.sample_epsilon("normal", 4, largest, (0, 0))


# What attacks are given.


@all_attacks
def test_numpy_images_are_images(name, batch):
    images, labels = batch
    expected = craft(name, smooth, images, labels, 8.0)
    np.testing.assert_array_equal(craft(name, smooth, images.numpy(), labels.numpy(), 8), expected)


@pytest.mark.parametrize("steps", [3, 3.0, np.int64(3)])
def test_the_number_of_steps_may_be_any_number(steps, batch):
    got = craft("iter_fgsm", smooth, *batch, 8.0, steps=steps)
    np.testing.assert_array_equal(got, craft("iter_fgsm", smooth, *batch, 8.0, steps=3))


@all_attacks
@pytest.mark.parametrize("network", ["float64 images", "float16", "bfloat16"])
def test_other_float_types_give_the_images_of_float32(name, network, interior):
    """Float64 images to a network of float32; logits of half precision, as of a mixed policy."""
    images, labels = interior
    epsilon = 3.0

    def half(images):
        return tf.cast(smooth(images), network)

    expected = craft(name, smooth, images, labels, epsilon)
    if network == "float64 images":
        given = tf.cast(images, tf.float64)
        found = craft(name, lambda x: smooth(tf.cast(x, tf.float32)), given, labels, epsilon)
        assert found.dtype == tf.float64
    else:
        found = craft(name, half, images, labels, epsilon)
        assert found.dtype == tf.float32
    if attacks.ATTACKS[name].seeded and network == "float64 images":
        return  # what is drawn in float64 is something else
    same = np.abs(found.numpy() - expected.numpy()) < 1e-5
    assert same.mean() > (0.999 if network == "float64 images" else 0.9)


@all_attacks
def test_a_network_under_a_mixed_policy_is_attacked(name, batch):
    keras.config.set_dtype_policy("mixed_float16")
    try:
        network = keras.Sequential([keras.Input((8, 8, 1)), keras.layers.Flatten(),
                                    keras.layers.Dense(CLASSES)])  # fmt: skip
    finally:
        keras.config.set_dtype_policy("float32")
    for dtype in ("float32", "float64"):
        found = craft(name, network, tf.cast(batch[0], dtype), batch[1], 8)
        assert found.dtype == dtype and np.abs(found.numpy() - batch[0].numpy()).max() > 7 / 255


@all_attacks
@pytest.mark.parametrize("bad", [-1.0, np.nan, np.inf])
def test_an_epsilon_that_is_none_is_refused(name, bad, batch):
    for epsilon in (bad, np.float32(bad), tf.constant(bad), np.full(16, bad)):
        with pytest.raises(ValueError, match="epsilon must be finite"):
            craft(name, smooth, *batch, epsilon)
    with pytest.raises(ValueError, match="epsilons must be finite"):
        tf.function(lambda: attacks.at_epsilons(name, smooth, *batch, [2.0, bad], seed=(3, 4)))()


@pytest.mark.parametrize("name", [*ITERATIVE_ATTACKS, "pgd"])
@pytest.mark.parametrize("bad", [-1, np.nan, np.inf])
def test_a_step_size_that_is_none_is_refused(name, bad, batch):
    with pytest.raises(ValueError, match="step_size must be"):
        craft(name, smooth, *batch, 4.0, step_size=bad)


@pytest.mark.parametrize("name", STEP_ATTACKS)
def test_a_signed_epsilon_steps_to_the_other_side(name, interior):
    images, labels = interior
    ahead, back = (attacks.at_epsilons(name, smooth, *interior, epsilons, seed=(3, 4), signed=True)
                   for epsilons in ([3, 0], [-3, 0]))  # fmt: skip
    np.testing.assert_allclose(ahead[0] - images, images - back[0], atol=1e-6)
    np.testing.assert_array_equal(craft(name, smooth, *interior, attacks.Signed(-3)), back[0])
    with pytest.raises(ValueError, match="Signed"):
        attacks.iter_fgsm(smooth, images, labels, attacks.Signed(3))
    with pytest.raises(ValueError, match="0 or above"):
        attacks.at_epsilons("iter_fgsm", smooth, *interior, [-3], signed=True)


@all_attacks
def test_whole_pixel_values_are_refused(name, batch):
    with pytest.raises(ValueError, match="uint8"):
        craft(name, smooth, np.zeros((16, 8, 8, 1), "uint8"), batch[1], 4)


@pytest.mark.parametrize("epsilon", [8, np.int64(8), 8.0, np.array([8, 16])])
def test_any_number_is_brought_to_the_unit_range(epsilon):
    np.testing.assert_allclose(attacks.to_unit_range(epsilon), np.asarray(epsilon) / 255)


# Rows.


@pytest.mark.parametrize("kind", [specs.ONE_STEP, specs.ITERATIVE, specs.SEARCH])
def test_a_registered_attack_works_at_any_epsilons(kind, batch, monkeypatch):
    def mine(logits_fn, images, labels, epsilon, *, seed, shift, objective):
        assert objective is attacks.margin  # of the row's fixed arguments, by name
        direction = draws.normal_like(images, seed) + shift
        return attacks.step_along(direction, images, epsilon)

    row = AttackSpec("mine", kind, mine, seeded=True, options={"shift": 0.0},
                     fixed={"objective": "margin"})  # fmt: skip
    monkeypatch.setitem(attacks.ATTACKS, "mine", row)
    versions = attacks.at_epsilons("mine", smooth, *batch, [2.0, 5.0], seed=(1, 2))
    for epsilon, version in zip((2.0, 5.0), versions):
        expected = attacks.step_rand(None, *batch, epsilon, seed=(1, 2))
        np.testing.assert_allclose(version, expected, atol=1e-7)
    shifted = attacks.at_epsilons("mine", smooth, *batch, [2.0], seed=(1, 2), shift=9.0)
    np.testing.assert_allclose(shifted[0], np.clip(batch[0] + 2 / 255, 0, 1), atol=1e-6)


def test_what_a_row_says_of_an_attack_is_its_functions():
    """pgd is one thing: the defaults of its function are those of its row, recorded everywhere."""
    for name in attacks.specs.image_attacks():
        row = attacks.ATTACKS[name]
        parameters = inspect.signature(row.resolve()).parameters
        assert ("seed" in parameters) == row.seeded
        for option, value in {**row.options, **row.fixed}.items():
            default = parameters[option].default
            value = attacks.OBJECTIVES.get(value, value)
            assert option in row.fixed or default == value, (name, option)


@pytest.mark.parametrize("name", ["bim", "autoattack", "cw_linf"])
def test_an_attack_that_is_none_of_images_at_epsilons_is_refused(name, batch):
    with pytest.raises(ValueError, match=f"'{name}' is none of step_ll"):
        attacks.at_epsilons(name, smooth, *batch, [1])
