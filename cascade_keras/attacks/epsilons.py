"""Any attack at several epsilons, and the attacks by their names."""

from __future__ import annotations

from collections.abc import Sequence

import tensorflow as tf

from cascade_keras.attacks.iterative import iter_fgsm, iter_ll, ladder
from cascade_keras.attacks.objectives import LogitsFn, cross_entropy, dlr, margin
from cascade_keras.attacks.projected import pgd
from cascade_keras.attacks.steps import step_both, step_fgsm, step_ll, step_rand


def at_epsilons(
    attack: str,
    logits_fn: LogitsFn,
    images: tf.Tensor,
    labels: tf.Tensor,
    epsilons: Sequence[float],
    *,
    seed=None,
    **options,
) -> tf.Tensor:
    """Return the images of any attack for several epsilons, computing what they share once.

    The iterative attacks climb the ``ladder``; the one-step attacks take a single gradient; pgd
    shares nothing, as its step and its starts depend on epsilon.

    Args:
        attack: a name of ``ATTACKS``.
        logits_fn, images, labels: as for ``step_fgsm``.
        epsilons: in 0..255 units, in any order.
        seed: of step_rand and pgd, two integers; the others do not use it.
        **options: of the attack, such as ``objective`` or ``restarts``.

    Returns:
        (len(epsilons), batch, H, W, C), in the order of ``epsilons``.

    Raises:
        ValueError: no epsilon, or an unknown attack.
    """
    if not len(epsilons):
        raise ValueError("epsilons must name at least one epsilon")
    if attack not in ATTACKS:
        raise ValueError(f"attack {attack!r} is none of {', '.join(ATTACKS)}")
    if attack in ITERATIVE_ATTACKS:
        return ladder(logits_fn, images, labels, epsilons, attack=attack, **options)
    if attack in RANDOM_ATTACKS:
        options["seed"] = seed
    if attack in STEP_ATTACKS:
        versions = tf.reshape(tf.constant(list(epsilons), tf.float32), [-1, 1, 1, 1, 1])
        return STEP_ATTACKS[attack](logits_fn, images, labels, versions, **options)
    return tf.map_fn(
        lambda epsilon: ATTACKS[attack](logits_fn, images, labels, epsilon, **options),
        tf.constant(list(epsilons), images.dtype),
    )


STEP_ATTACKS = {
    "step_ll": step_ll,
    "step_fgsm": step_fgsm,
    "step_both": step_both,
    "step_rand": step_rand,
}
ITERATIVE_ATTACKS = {"iter_ll": iter_ll, "iter_fgsm": iter_fgsm}
ATTACKS = {**STEP_ATTACKS, **ITERATIVE_ATTACKS, "pgd": pgd}
RANDOM_ATTACKS = ("step_rand", "pgd")  # those that take a seed
OBJECTIVES = {"cross_entropy": cross_entropy, "margin": margin, "dlr": dlr}
