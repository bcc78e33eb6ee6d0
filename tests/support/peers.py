"""Attacks of other packages: Foolbox and the Adversarial Robustness Toolbox."""

import foolbox
import keras
import tensorflow as tf
from art.attacks.evasion import BasicIterativeMethod, FastGradientMethod
from art.estimators.classification import TensorFlowV2Classifier


def art_classifier(logits_fn, image_shape, classes=10):
    return TensorFlowV2Classifier(
        model=lambda x, training: logits_fn(x),
        nb_classes=classes,
        input_shape=image_shape,
        loss_object=keras.losses.SparseCategoricalCrossentropy(from_logits=True),
        clip_values=(0, 1),
    )


def of_foolbox(logits_fn, images, classes, epsilon, steps=None, step_size=1, targeted=False):
    """Images of one step when ``steps`` is None, else of an iterative attack from the image."""
    network = foolbox.TensorFlowModel(logits_fn, bounds=(0, 1), device="/CPU:0")
    if steps is None and not targeted:
        attack = foolbox.attacks.FGSM()
    elif steps is None:  # its FGSM refuses targets; one step of epsilon is the same thing
        attack = foolbox.attacks.LinfBasicIterativeAttack(rel_stepsize=1.0, steps=1)
    else:
        attack = foolbox.attacks.LinfBasicIterativeAttack(
            abs_stepsize=step_size / 255, steps=steps, random_start=False
        )
    kinds = foolbox.criteria.Misclassification, foolbox.criteria.TargetedMisclassification
    # ``run`` is the attack; calling it also judges success, which eagerpy cannot under NumPy 2.
    return attack.run(network, images, kinds[targeted](classes), epsilon=epsilon / 255)


def of_art(logits_fn, images, classes, epsilon, steps=None, step_size=1, targeted=False):
    classifier = art_classifier(logits_fn, images.shape[1:])
    options = {"eps": epsilon / 255, "targeted": targeted, "batch_size": len(images)}
    if steps is None:
        attack = FastGradientMethod(classifier, **options)
    else:
        options |= {"eps_step": step_size / 255, "max_iter": steps, "verbose": False}
        attack = BasicIterativeMethod(classifier, **options)
    return tf.constant(attack.generate(images.numpy(), classes.numpy()))
