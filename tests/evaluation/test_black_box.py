"""Black box: ensembles of sources, what a target has seen of them, both ways of counting."""

import numpy as np
import pytest
import tensorflow as tf

import cascade_keras as ck
from cascade_keras import attacks, data
from cascade_keras.ensembles import ensemble
from cascade_keras.sources import load_source

X, Y = (array[:40] for array in data.load("digits").test)
X = X.astype("float32") / np.float32(255)
WEIGHTS = np.random.default_rng(0).normal(size=(3, 64, 10)).astype("float32")


def linear(number, scale=1.0):
    """A network without layers between, whose gradients are known in closed form."""

    def logits(images):
        return scale * (tf.reshape(images, [-1, 64]) @ WEIGHTS[number])

    return load_source(logits, (8, 8, 1), name=f"net{number}", weights_hash=f"{number} {scale}")


def softmax(logits):
    exps = np.exp(logits - logits.max(-1, keepdims=True))
    return exps / exps.sum(-1, keepdims=True)


def slope(objective, logits, labels):
    """The gradient of an objective with respect to logits, (n, classes), written out."""
    rows = np.arange(len(labels))
    found = np.zeros_like(logits)
    if objective == "cross_entropy":
        found = softmax(logits)
    else:
        others = logits.copy()
        others[rows, labels] = -np.inf
        found[rows, others.argmax(-1)] = 1
    found[rows, labels] -= 1
    return found


# Networks of very different confidence: the mean of the logits is the loudest one's.
SCALES = (0.01, 1.0, 30.0)


@pytest.mark.parametrize("objective", ["cross_entropy", "margin"])
@pytest.mark.parametrize("mean", ["logits", "losses"])
def test_what_an_attack_on_an_ensemble_ascends(mean, objective):
    members = [linear(number, scale) for number, scale in enumerate(SCALES)]
    both = ensemble(members, mean)
    flat = X.reshape(-1, 64).astype("float64")
    each = [scale * flat @ WEIGHTS[number] for number, scale in enumerate(SCALES)]
    slopes = [slope(objective, np.mean(each, 0), Y)] * 3
    if mean == "losses":
        slopes = [slope(objective, logits, Y) for logits in each]
    gradient = sum(
        scale * own @ WEIGHTS[number].T
        for number, (scale, own) in enumerate(zip(SCALES, slopes, strict=True))
    )
    got = attacks.input_gradient(both.logits, tf.constant(X), attacks.OBJECTIVES[objective](Y))
    np.testing.assert_allclose(got.numpy().reshape(-1, 64), gradient / 3, rtol=1e-3, atol=1e-5)
    # Compiled, and from its own class on, it is what every attack is given.
    made = ck.craft(both, X, Y, attacks.PGD(steps=1, restarts=1), 4)
    assert np.abs(made - X).max() <= np.float32(4 / 255)
    np.testing.assert_allclose(both.logits(X), np.mean(each, 0), rtol=1e-4, atol=1e-4)


def test_both_means_are_the_same_of_one_network_and_differ_of_several():
    steps = {}
    for mean in ("logits", "losses"):
        quiet, loud = linear(0, 0.01), linear(1, 30.0)
        steps[mean] = np.sign(ck.craft(ensemble([quiet, loud], mean), X, Y, "step_fgsm", 8) - X)
        alone = np.sign(ck.craft(loud, X, Y, "step_fgsm", 8) - X)
        if mean == "logits":
            assert (steps[mean] == alone).mean() > 0.95
    assert (steps["logits"] != steps["losses"]).any()
