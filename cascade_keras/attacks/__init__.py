"""Adversarial images: attacks on any function from images to logits.

``objectives.py``, ``steps.py`` and ``iterative.py`` are section 2.1 of the paper, to be read in
this order; ``specs.py`` has a row for each attack.
"""

from cascade_keras.lazy import exports

_HOMES = {
    "PIXEL_LEVELS": "arguments",
    "Signed": "arguments",
    "per_image": "arguments",
    "to_unit_range": "arguments",
    "LogitsFn": "objectives",
    "Objective": "objectives",
    "classes_of": "objectives",
    "cross_entropy": "objectives",
    "input_gradient": "objectives",
    "least_likely_labels": "objectives",
    "objective_gradient": "objectives",
    "towards": "objectives",
    "OBJECTIVES": "margins",
    "dlr": "margins",
    "margin": "margins",
    "largest_gradients_mask": "arguments",
    "step_along": "steps",
    "step_both": "steps",
    "step_fgsm": "steps",
    "step_ll": "steps",
    "step_rand": "steps",
    "climb": "iterative",
    "iter_fgsm": "iterative",
    "iter_ll": "iterative",
    "iterations": "iterative",
    "ladder": "ladders",
    "pgd": "projected",
    "square": "squares",
    "at_epsilon": "epsilons",
    "at_epsilons": "epsilons",
    "ATTACKS": "specs",
    "Attack": "specs",
    "AttackSpec": "specs",
    "AutoAttack": "specs",
    "CWLinf": "specs",
    "Chosen": "specs",
    "FAB": "specs",
    "PGD": "specs",
    "Square": "specs",
    "ladder_gradients": "specs",
    "register": "specs",
    "CarliniWagner": "carlini_wagner",
    "fab": "boundary",
    "minimal": "boundary",
    "autoattack": "",
    "carlini_wagner": "",
    "specs": "",
}
__getattr__, __dir__ = exports(__name__, _HOMES)
