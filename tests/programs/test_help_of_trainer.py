"""``help(ck.AdversarialTrainer)`` fits a screen before Keras's own part begins."""

import inspect
import pydoc
import re

import cascade_keras as ck
from cascade_keras.options import TrainerOptions

ROWS, COLUMNS = 60, 100  # of a screen, its longest line being the signature


def own_part():
    """The lines of the help before the methods, most of which are Keras's."""
    text = pydoc.plain(pydoc.render_doc(ck.AdversarialTrainer))
    return text.partition("\n |  Method resolution order")[0].splitlines()


def test_it_fits_a_screen():
    rows = [-(-len(line) // COLUMNS) or 1 for line in own_part()]
    assert sum(rows) <= ROWS
    assert sorted(rows)[-2] == 1  # none but the signature is broken


def test_it_says_what_each_argument_is_once():
    text = "\n".join(own_part())
    assert "{" not in re.sub(r'\{"\w+".*?\}', "", text)  # a place that nobody filled
    told = text.partition("Args:")[2]
    for name in inspect.signature(ck.AdversarialTrainer).parameters:
        if name != "kwargs":
            assert re.search(rf"\b{name}\b", told), name


def test_the_signature_is_that_of_the_options():
    parameters = inspect.signature(ck.AdversarialTrainer).parameters
    options = TrainerOptions()
    for name, parameter in parameters.items():
        if hasattr(options, name):
            assert parameter.default == getattr(options, name), name
