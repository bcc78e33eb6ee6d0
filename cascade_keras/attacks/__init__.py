"""Adversarial images: attacks on any function from images to logits.

``objectives.py``, ``steps.py`` and ``iterative.py`` are section 2.1 of the paper, to be read in
this order; ``specs.py`` has a row for each attack.
"""

from cascade_keras.lazy import exports

_HOMES = {
    "PIXEL_LEVELS": "objectives",
    "OBJECTIVES": "epsilons",
    "LogitsFn": "objectives",
    "Objective": "objectives",
    "cross_entropy": "objectives",
    "dlr": "objectives",
    "input_gradient": "objectives",
    "least_likely_labels": "objectives",
    "margin": "objectives",
    "to_unit_range": "objectives",
    "towards": "objectives",
    "largest_gradients_mask": "steps",
    "step_both": "steps",
    "step_fgsm": "steps",
    "step_ll": "steps",
    "step_rand": "steps",
    "iter_fgsm": "iterative",
    "iter_ll": "iterative",
    "iterations": "iterative",
    "ladder": "iterative",
    "pgd": "projected",
    "at_epsilons": "epsilons",
    "STEP_ATTACKS": "epsilons",
    "ITERATIVE_ATTACKS": "epsilons",
    "RANDOM_ATTACKS": "epsilons",
    "Attack": "specs",
    "AttackSpec": "specs",
    "ATTACKS": "epsilons",
    "register": "specs",
    "ladder_gradients": "specs",
    "CarliniWagner": "carlini_wagner",
    "autoattack": "",
    "carlini_wagner": "",
    "specs": "",
}
__getattr__, __dir__ = exports(__name__, _HOMES)
