"""What is said of an embedding that no trained weight moves."""

import warnings

import keras
import pytest

from cascade_keras import AdversarialTrainer

L = keras.layers


@pytest.mark.parametrize(
    ("frozen", "embedding", "told"),
    [(True, "base", True), (True, None, False), (False, "base", False)],
)
def test_a_distance_that_moves_nothing_is_said(frozen, embedding, told):
    base = L.Dense(8, name="base", trainable=not frozen)
    network = keras.Sequential([L.Input((8, 8, 1)), L.Flatten(), base, L.Dense(10)])
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        AdversarialTrainer(network, "pivot", embedding=embedding).compile("sgd")
    assert any("the distance of a pair moves nothing" in str(w.message) for w in caught) == told
