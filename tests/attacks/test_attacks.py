"""The attacks against two independent implementations, and their properties."""

import inspect

import keras
import numpy as np
import pytest
import tensorflow as tf
from support.networks import CLASSES, smooth
from support.peers import of_art, of_foolbox

from cascade_keras import attacks, draws, models
from cascade_keras.attacks import AttackSpec, specs

PAPER_ITERATIONS = (1, 2, 3, 5, 6, 7, 8, 10, 11, 12, 13, 15, 16, 17, 18, 20)
ONE_STEP = [attacks.ATTACKS[name] for name in specs.names(specs.ONE_STEP)]
STEP_ATTACKS = [row.name for row in ONE_STEP if not row.started]
STARTED = [row.name for row in ONE_STEP if row.started and not row.leaves_ball]
ITERATIVE_ATTACKS = ("iter_fgsm", "iter_ll")
ATTACKS = (*STEP_ATTACKS, *STARTED, *ITERATIVE_ATTACKS, "pgd")

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


def pixels(adversarial, images):
    """The perturbation in pixel units, in float64."""
    return 255 * (adversarial.numpy().astype("float64") - images.numpy().astype("float64"))


# Independent implementations.


STEP_EPSILONS = (0.5, 2, 8, 76.5)
ITER_EPSILONS = (1, 4, 16)


@pytest.mark.parametrize("network", ["smooth", "resnet"])
@pytest.mark.parametrize("independent", [of_foolbox, of_art])
@pytest.mark.parametrize(
    ("name", "epsilon"),
    [(name, eps) for name in ("step_fgsm", "step_ll") for eps in STEP_EPSILONS]
    + [(name, eps) for name in ("iter_fgsm", "iter_ll") for eps in ITER_EPSILONS],
)
def test_same_images_as_an_independent_implementation(
    name, epsilon, independent, network, logits_fns, batch
):
    images, labels = batch
    if network == "smooth" and independent is of_foolbox:  # the one pair that can
        images = tf.cast(images, tf.float64)
    logits_fn = logits_fns[network]
    targeted = name.endswith("_ll")
    classes = tf.argmin(logits_fn(images), -1, tf.int32) if targeted else labels
    steps = PAPER_ITERATIONS[epsilon - 1] if name.startswith("iter") else None
    expected = independent(logits_fn, images, classes, epsilon, steps, targeted=targeted)

    actual = craft(name, logits_fn, images, labels, epsilon)

    assert np.abs(pixels(expected, images)).max() > 0.9 * epsilon  # it did attack
    np.testing.assert_allclose(actual, expected, rtol=0, atol=1e-6)
    if targeted and epsilon == 16:  # the class sought is the clean image's, whatever is now least
        assert np.any(tf.argmin(logits_fn(actual), -1, tf.int32) != classes)


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
    for zero in (0, np.zeros(6, "float32")):
        np.testing.assert_array_equal(craft(name, smooth, images, labels, zero), images)


@all_attacks
def test_does_not_depend_on_the_other_images(name, logits_fns, batch, digits):
    (images, labels), network = batch, logits_fns["keras_batch_norm"]
    kept = np.arange(len(images)) % 3 == 0
    other_images = tf.where(kept[:, None, None, None], images, digits[0][100:116])
    other_labels = tf.where(kept, labels, digits[1][100:116])

    first = craft(name, network, images, labels, 4.0)
    second = craft(name, network, other_images, other_labels, 4.0)

    np.testing.assert_array_equal(first[kept], second[kept])
    assert not np.array_equal(first[~kept], second[~kept])


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
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_keeps_the_type_of_the_images_also_of_numpy(name, dtype, batch):
    images, labels = tf.cast(batch[0], dtype), batch[1]
    adversarial = craft(name, smooth, images, labels, 4)
    assert adversarial.dtype == images.dtype
    assert np.any(adversarial != images)
    again = craft(name, smooth, images.numpy(), labels.numpy(), 4.0)
    np.testing.assert_array_equal(again, adversarial)


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


@pytest.mark.parametrize(("name", "options"), [("step_fgsm", {}), ("iter_fgsm", {"steps": 1})])
def test_direction_to_first_order(name, options, interior):
    """A small step changes the margin by epsilon ||gradient||_1, the most there is."""
    images, labels = tf.cast(interior[0], tf.float64), interior[1]
    with tf.GradientTape() as tape:
        tape.watch(images)
        before = attacks.margin(labels)(smooth(images))
    slope = np.abs(tape.gradient(before, images)).sum(axis=(1, 2, 3))

    crafted = craft(name, smooth, images, labels, 1e-3, objective=attacks.margin, **options)

    after = attacks.margin(labels)(smooth(crafted))
    np.testing.assert_allclose(after - before, 1e-3 / 255 * slope, rtol=1e-3)


def test_margin_is_the_largest_other_logit_minus_the_labelled_one():
    logits = tf.constant([[3.0, 1.0, 2.0], [-5.0, -9.0, -4.0], [2.0, 2.0, 0.0]])
    np.testing.assert_array_equal(attacks.margin(tf.constant([0, 1, 1]))(logits), [-1, 5, 0])


@pytest.mark.parametrize("epsilon", [0.3, 0.79, 1])
@pytest.mark.parametrize("name", ITERATIVE_ATTACKS)
def test_iter_of_epsilon_one_or_less_is_one_step(name, epsilon, batch):
    """Below 0.8 the paper's number of steps is 0, but a clean image is no attacked one."""
    expected = craft(name.replace("iter", "step"), smooth, *batch, epsilon)
    np.testing.assert_allclose(craft(name, smooth, *batch, epsilon), expected, rtol=0, atol=1e-7)
    (rung, _) = attacks.at_epsilons(name, smooth, *batch, [epsilon, 3])
    np.testing.assert_allclose(rung, expected, rtol=0, atol=1e-7)
    assert attacks.ladder_gradients([epsilon]) == 1


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


# The ladder of iterations.


def test_iterations_are_the_papers():
    for epsilon, expected in [
        *enumerate(PAPER_ITERATIONS, start=1),
        (0, 0),
        (0.5, 1),
        (np.array([1, 4, 16, 76.5], "float32"), [1, 5, 20, 80]),
        (np.array([1, 4, 16]), [1, 5, 20]),
    ]:
        steps = attacks.iterations(epsilon)
        assert steps.dtype == tf.int32
        np.testing.assert_array_equal(steps, expected)


# What attacks are given.


@pytest.mark.parametrize("steps", [3, 3.0, np.int64(3)])
def test_the_number_of_steps_may_be_any_number(steps, batch):
    got = craft("iter_fgsm", smooth, *batch, 8.0, steps=steps)
    np.testing.assert_array_equal(got, craft("iter_fgsm", smooth, *batch, 8.0, steps=3))


@all_attacks
@pytest.mark.parametrize(
    ("given", "logits"), [("float64", "float32"), ("float32", "float16"), ("float32", "bfloat16")]
)
def test_other_float_types_give_the_images_of_float32(name, given, logits, interior):
    """Float64 images to a network of float32; logits of half precision, as of a mixed policy."""
    images, labels = interior
    expected = craft(name, smooth, images, labels, 3.0)

    def network(images):
        return tf.cast(smooth(tf.cast(images, "float32")), logits)

    found = craft(name, network, tf.cast(images, given), labels, 3.0)

    assert found.dtype == given
    if given == "float32" or not attacks.ATTACKS[name].seeded:  # other draws in float64
        same = np.abs(found.numpy() - expected.numpy()) < 1e-5
        assert same.mean() > (0.999 if given == "float64" else 0.9)


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
def test_what_is_no_epsilon_option_or_image_is_refused(name, batch):
    bad = [-1.0, np.nan, np.inf]
    given = {
        "epsilon must be": [np.ones(shape) for shape in [(16, 1), (16, 8, 8), (1, 16, 8, 8, 1)]],
        "epsilon must be finite": [
            make(number)
            for make in (float, np.float32, tf.constant, lambda number: np.full(16, number))
            for number in bad
        ],
    }
    for message, epsilons in given.items():
        for epsilon in epsilons:
            with pytest.raises(ValueError, match=message):
                craft(name, smooth, *batch, epsilon)
    for number in bad:
        with pytest.raises(ValueError, match="epsilons must be finite"):
            tf.function(attacks.at_epsilons)(name, smooth, *batch, [2.0, number])
    with pytest.raises(ValueError, match="at least one epsilon"):
        attacks.at_epsilons(name, smooth, *batch, [], seed=(3, 4))
    option, values = ("sparsity", [0, -1, 100.5]) if name in STEP_ATTACKS else ("step_size", bad)
    for value in () if name in STARTED else values:
        with pytest.raises(ValueError, match=option):
            craft(name, smooth, *batch, 4.0, **{option: value})
    with pytest.raises(ValueError, match="uint8"):
        craft(name, smooth, np.zeros((16, 8, 8, 1), "uint8"), batch[1], 4)


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
        function = getattr(attacks, name) if row.kind == specs.NESTED else row.resolve()
        parameters = inspect.signature(function).parameters
        assert ("seed" in parameters) == row.seeded
        for option, value in {**row.options, **row.fixed}.items():
            default = parameters[option].default
            value = attacks.OBJECTIVES.get(value, value)
            assert option in row.fixed or default == value, (name, option)


@pytest.mark.parametrize("name", ["bim", "autoattack", "cw_linf"])
def test_an_attack_that_is_none_of_images_at_epsilons_is_refused(name, batch):
    with pytest.raises(ValueError, match=f"'{name}' is none of step_ll"):
        attacks.at_epsilons(name, smooth, *batch, [1])
