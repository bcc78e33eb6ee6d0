"""Any registered attack, at one epsilon or at several."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import tensorflow as tf

from cascade_keras.attacks import specs
from cascade_keras.attacks.arguments import Signed, as_images, as_keys, check_range
from cascade_keras.attacks.entry import entry
from cascade_keras.attacks.iterative import iter_fgsm, iter_ll
from cascade_keras.attacks.ladders import ladder
from cascade_keras.attacks.margins import OBJECTIVES
from cascade_keras.attacks.objectives import LogitsFn, classes_of
from cascade_keras.attacks.searches import Found
from cascade_keras.keras_private import converted

_LADDERS = {iter_fgsm: "iter_fgsm", iter_ll: "iter_ll"}


@entry
def at_epsilon(
    attack: str | specs.Chosen,
    logits_fn: LogitsFn,
    images: tf.Tensor,
    labels: tf.Tensor,
    epsilon,
    *,
    seed=None,
    **options,
) -> tf.Tensor:
    """Return the images of any attack, as its own function returns them.

    Args:
        attack: the name of a row of ``specs.ATTACKS`` whose function takes tensors: one step,
            iterative or a search; or what ``attacks.PGD(steps=100)`` returns.
        logits_fn, images, labels, epsilon: as for ``step_fgsm``.
        seed: one integer or two, given to the attacks that draw random numbers. Members of
            AutoAttack also take a key for each image, (batch, 2), see ``draws.image_keys``.
        **options: of the attack; those not given are the row's.

    Raises:
        ValueError: another attack, or what the attack itself refuses.
    """
    attack, options = _named(attack, options)
    spec = specs.look_up(attack, specs.graph_attacks())
    if spec.kind == specs.NESTED:
        return at_epsilons(attack, logits_fn, images, labels, [epsilon], seed=seed, **options)[0]
    return _function(spec)(logits_fn, images, labels, epsilon, **_arguments(spec, seed, options))


@entry
def at_epsilons(
    attack: str | specs.Chosen,
    logits_fn: LogitsFn,
    images: tf.Tensor,
    labels: tf.Tensor,
    epsilons: Sequence[float],
    *,
    seed=None,
    signed: bool = False,
    **options,
) -> tf.Tensor:
    """Return the images of any attack for several epsilons, computing what they share once.

    One-step attacks from the image take a single gradient and ``iter_fgsm`` and ``iter_ll`` climb
    the ``ladder``. Of the members of AutoAttack an image that falls at an epsilon stands for larger
    ones. Others, such as pgd, share nothing, as their steps and starts depend on epsilon.

    Args:
        epsilons: in 0..255 units, in any order.
        signed: whether such one-step attacks may be given negative epsilons, which are steps to the
            other side.
        others: as for ``at_epsilon``.

    Returns:
        (len(epsilons), batch, H, W, C), in the order of ``epsilons``.

    Raises:
        ValueError: no epsilon, one outside its range, or what ``at_epsilon`` refuses.
    """
    attack, options = _named(attack, options)
    spec = specs.look_up(attack, specs.graph_attacks())
    images, values = as_images(images), list(epsilons)
    if not values:
        raise ValueError("epsilons must name at least one epsilon")
    one_gradient = spec.kind == specs.ONE_STEP and not spec.started
    check_range(values, "epsilons", signed=signed and one_gradient)
    if one_gradient:
        versions = tf.reshape(tf.constant(values, tf.float32), [-1, 1, 1, 1, 1])
        versions = Signed(versions) if min(values) < 0 else versions
        return at_epsilon(attack, logits_fn, images, labels, versions, seed=seed, **options)
    if spec.kind == specs.NESTED:
        found = search(attack, logits_fn, images, labels, values, seed=seed, **options)
        return tf.stop_gradient(found.images)
    if _function(spec) in _LADDERS:
        name = _LADDERS[_function(spec)]
        arguments = _arguments(spec, seed, options)
        return ladder(logits_fn, images, labels, values, attack=name, **arguments)
    return tf.map_fn(
        lambda epsilon: at_epsilon(
            attack, logits_fn, images, labels, epsilon, seed=seed, **options
        ),
        tf.constant(values, images.dtype),
    )


@entry
def search(
    attack: str,
    logits_fn: LogitsFn,
    images: tf.Tensor,
    labels: tf.Tensor,
    epsilons: Sequence[float],
    *,
    seed,
    **options,
) -> Found:
    """Return all that a member of AutoAttack finds of images in [0, 1], a row an epsilon.

    Args:
        attack: the name of a row whose kind is ``specs.NESTED``.
        others: as for ``at_epsilons``.
    """
    spec = specs.look_up(attack, specs.names(specs.NESTED))
    images = as_images(images)
    keys = as_keys(seed, tf.shape(images)[0])
    labels = tf.cast(classes_of(labels), tf.int32)
    arguments = {**spec.options, **options, **spec.fixed}
    return _function(spec)(logits_fn, images, labels, list(epsilons), keys, **arguments)


def _named(attack: str | specs.Chosen, options: dict) -> tuple[str, dict]:
    """Return an attack's name and the options that are set, those beside it last."""
    if isinstance(attack, specs.Chosen):
        return attack.name, {**attack.options, **options}
    return attack, options


# AutoGraph would warn that it cannot convert the import of a module.
@tf.autograph.experimental.do_not_convert
def _function(spec: specs.AttackSpec) -> Callable:
    return converted(spec.resolve())  # one of a user's own may need it


def _arguments(spec: specs.AttackSpec, seed, options: dict) -> dict:
    """Return what a row's function is called with beside the images, labels and epsilon."""
    arguments = {**spec.options, **options, **spec.fixed}
    if isinstance(arguments.get("objective"), str):
        arguments["objective"] = OBJECTIVES[arguments["objective"]]
    return {**arguments, "seed": seed} if spec.seeded else arguments
