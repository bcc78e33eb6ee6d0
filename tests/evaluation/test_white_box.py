"""One network under its own attacks, against closed forms and the attacks' own functions."""

import numpy as np
import pytest
import tensorflow as tf

from cascade_keras import attacks
from cascade_keras.attacks.specs import ATTACKS, Attack
from cascade_keras.evaluation import Result, WhiteBox

SHAPE, N, BATCH, SEED = (4, 4, 1), 90, 40, 3
RNG = np.random.default_rng(0)
IMAGES = RNG.uniform(size=(N, *SHAPE)).astype("float32")
LABELS = (np.arange(N) % 2).astype("int32")
WEIGHTS = RNG.normal(size=(16, 2)).astype("float32")


def linear(images):
    return tf.reshape(images, [-1, 16]) @ WEIGHTS


def right(images):
    """Which images a linear network of two classes takes for their true class, in NumPy."""
    return np.argmax(images.reshape(-1, 16) @ WEIGHTS, -1) == LABELS[: len(images)]


def closed_form(epsilon):
    """FGSM's images: with two classes the gradient points along the other class's weights."""
    away = np.sign(WEIGHTS[:, 1 - LABELS] - WEIGHTS[:, LABELS]).T.reshape(-1, *SHAPE)
    return np.clip(IMAGES + np.float32(epsilon / 255) * away, 0, 1).astype("float32")


def test_counts_are_those_of_closed_forms_at_all_epsilons():
    options = {"steps": 3, "restarts": 2}
    asked = [Attack.clean(), Attack("step_fgsm", (4, 30)), Attack("pgd", (10,), options)]
    found = WhiteBox(linear, SHAPE, asked, batch_size=BATCH)(IMAGES, LABELS)
    # On a linear network three steps of 2.5 / 3 epsilon end in the same corner of the ball.
    images = [IMAGES, closed_form(4), closed_form(30), closed_form(10)]
    counts = [int(right(version).sum()) for version in images]
    given = [{}, {}, {}, {**options, "step_size": None, "objective": "margin"}]
    names = [("clean", 0.0), ("step_fgsm", 4.0), ("step_fgsm", 30.0), ("pgd", 10.0)]
    assert found == [
        Result(*name, count, N, 100 * count / N, options)
        for name, count, options in zip(names, counts, given)
    ]
    assert len(set(counts)) == 4
    assert Attack("pgd", (1,)).options == ATTACKS["pgd"].options  # the one default


def test_images_are_shown_and_noise_follows_from_seed_and_batch():
    shown = []
    white_box = WhiteBox(linear, SHAPE, [Attack("step_rand", (60,))], seed=SEED, batch_size=BATCH)
    (found,) = white_box(IMAGES, LABELS, show=lambda *batch: shown.append(batch))
    assert [(attack.name, first) for attack, first, _ in shown] == [
        ("step_rand", first) for first in range(0, N, BATCH)
    ]
    for _, first, made in shown:
        part = IMAGES[first : first + BATCH]
        by_hand = attacks.step_rand(linear, tf.constant(part), None, 60, seed=(SEED, first))
        np.testing.assert_allclose(made, by_hand[None], atol=1e-6)
    made = np.concatenate([versions[0] for *_, versions in shown])
    assert found.correct == right(made).sum()


def test_it_compiles_once_and_attacks_the_network_as_it_is_then():
    scale, traced = tf.Variable(1.0), []

    def function(images):
        traced.append(images)
        return scale * linear(images)

    white_box = WhiteBox(function, SHAPE, [Attack("step_fgsm", (10,)), Attack.clean()])
    before = [result.correct for result in white_box(IMAGES, LABELS)]
    count = len(traced)
    scale.assign(-1.0)
    after = [result.correct for result in white_box(IMAGES[:50], LABELS[:50])]
    assert len(traced) == count
    assert before[1] == right(IMAGES).sum()
    assert after[1] == (~right(IMAGES[:50])).sum()


def test_logits_that_are_no_numbers_count_as_wrong():
    def broken(images):
        return tf.where(images[:, 0, 0] > 0.5, np.nan, linear(images))

    (found,) = WhiteBox(broken, SHAPE, [Attack.clean()])(IMAGES, LABELS)
    assert found.correct == (right(IMAGES) & (IMAGES[:, 0, 0, 0] <= 0.5)).sum() < N


@pytest.mark.parametrize(("name", "options"), [("fgsm", {}), ("cw_linf", {}), ("pgd", {"k": 1})])
def test_what_is_no_attack_at_given_epsilons_is_refused(name, options):
    with pytest.raises(ValueError, match=f"'{name}'"):
        WhiteBox(linear, SHAPE, [Attack(name, (8,), options)])(IMAGES, LABELS)


@pytest.mark.parametrize("epsilon", [-1, float("nan"), float("inf")])
def test_an_epsilon_out_of_range_is_refused(epsilon):
    with pytest.raises(ValueError, match=r"^epsilons must be finite"):
        WhiteBox(linear, SHAPE, [Attack("iter_fgsm", (epsilon,))])(IMAGES, LABELS)
