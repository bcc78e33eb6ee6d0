"""What benchmarks/train_step.py times. Each function here runs in a process of its own.

A contender is a dict of timed callables, each doing one step and returning a number that proves
that the step was finished, and a dict of commands that are called once.
"""

from __future__ import annotations

import dataclasses
import importlib.metadata
import os
from collections.abc import Callable
from typing import Any, NamedTuple
from unittest import mock

import numpy as np

IMAGE_SHAPE = (24, 24, 3)
CLEAN = 64  # and as many adversarial ones
SETTINGS = {
    "learning_rate": 0.001,  # so that 110 layers stay finite on images of noise
    "momentum": 0.9,
    "weight_decay": 1e-4,
    "max_epsilon": 16.0,
    "adversarial_weight": 0.3,
    "distance_weight": 1e-4,
}
MATRIX_SIDE = 2048
# Names of the timed callables that the report looks for.
STEP = "step"
ATTACK = "attack"
MATRIX_PRODUCT = "matrix product"
OURS = "ConvBatchNorm: fused, folded in inference mode"
UNFOLDED = "fused, not folded"
KERAS_LAYERS = "keras Conv2D + keras BatchNormalization"
VARIANTS = (OURS, UNFOLDED, KERAS_LAYERS)
FLOAT32, BFLOAT16 = "float32", "mixed_bfloat16"


class Setup(NamedTuple):
    """What all contenders are given.

    Attributes:
        threads: of their libraries.
        model: "resnet20", or another depth.
        precision: of Keras's policies; PyTorch's autocast does the same for "mixed_bfloat16".
    """

    threads: int
    model: str = "resnet20"
    precision: str = FLOAT32

    @property
    def depth(self) -> int:
        """The number in the model's name."""
        return int(self.model.removeprefix("resnet"))


@dataclasses.dataclass
class Contender:
    """What a worker process offers.

    Attributes:
        steps: name -> one step; returns a finite number.
        commands: name -> function of keyword arguments that JSON can hold, as can its result.
        packages: whose versions are reported.
    """

    steps: dict[str, Callable[[], float]]
    commands: dict[str, Callable[..., Any]] = dataclasses.field(default_factory=dict)
    packages: tuple[str, ...] = ("tensorflow", "keras")

    def versions(self) -> dict[str, str]:
        """Return the installed version of each package."""
        return {name: importlib.metadata.version(name) for name in self.packages}


def batch(count: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Return random images in [0, 1] and labels: what they show does not change the time."""
    generator = np.random.default_rng(seed)
    images = generator.random((count, *IMAGE_SHAPE), "float32")
    return images, generator.integers(0, 10, count).astype("int32")


def mean_image() -> np.ndarray:
    """Return a mean image that no symmetry leaves unchanged, so that a mix-up would show."""
    return np.random.default_rng(1).random(IMAGE_SHAPE, "float32")


def _set_up_tensorflow(setup: Setup) -> None:
    import keras
    import tensorflow as tf

    tf.config.set_visible_devices([], "GPU")
    tf.config.threading.set_intra_op_parallelism_threads(setup.threads)
    tf.config.threading.set_inter_op_parallelism_threads(setup.threads)
    keras.config.set_dtype_policy(setup.precision)


def _network(model: str):
    import keras

    from cascade_keras import models

    keras.utils.set_random_seed(0)
    return models.build(model, normalization="pixel", mean=mean_image())


def _trainer(network):
    import keras

    from cascade_keras import training

    trainer = training.AdversarialTrainer(
        network,
        "pivot",
        pivot_guard="none",  # the loss as printed, which is what PyTorch computes
        attack="step_ll",
        epsilon_sampling="clipped_normal",
        max_epsilon=SETTINGS["max_epsilon"],
        adversarial_weight=SETTINGS["adversarial_weight"],
        distance_weight=SETTINGS["distance_weight"],
        weight_decay=SETTINGS["weight_decay"],
    )
    trainer.compile(optimizer=keras.optimizers.SGD(SETTINGS["learning_rate"], SETTINGS["momentum"]))
    return trainer


def _train_function(trainer) -> Callable[[], float]:
    """Return one call of the function that ``fit`` calls for every batch, on a fixed batch."""
    import tensorflow as tf

    iterator = iter(tf.data.Dataset.from_tensors(batch(CLEAN)).repeat())
    trainer.make_train_function()
    return lambda: float(trainer.train_function(iterator)["loss"])


def ours(setup: Setup) -> Contender:
    """``AdversarialTrainer``, compiled as by ``fit``."""
    _set_up_tensorflow(setup)
    trainer = _trainer(_network(setup.model))

    def write_reference(path: str) -> dict[str, int]:
        return _write_reference(setup.model, path)

    return Contender({STEP: _train_function(trainer)}, {"reference": write_reference})


def _write_reference(model: str, path: str) -> dict[str, int]:
    """Write one step of ours to a file: the weights before it, its images, and what came of it."""
    import tensorflow as tf

    from cascade_keras import layers

    network = _network(model)
    trainer = _trainer(network)
    images, labels = batch(CLEAN)
    for seed in range(3):
        # Moves the statistics of batch normalisation away from 0 and 1; equal results in inference
        # mode would prove little with those.
        network(batch(CLEAN, seed)[0], training=True)
    units = [layer for layer in network.layers if isinstance(layer, layers.ConvBatchNorm)]
    weights = [
        variable.numpy()
        for unit in units
        for variable in (
            unit.kernel,
            unit.gamma,
            unit.beta,
            unit.moving_mean,
            unit.moving_variance,
        )
    ]
    dense = next(layer for layer in reversed(network.layers) if hasattr(layer, "kernel"))
    weights += [dense.kernel.numpy(), dense.bias.numpy()]
    inference_logits = trainer(images, training=False)["logits"].numpy()
    adversarial = trainer.make_adversarial(
        tf.convert_to_tensor(images), tf.convert_to_tensor(labels), trainer.steps
    ).numpy()
    logs = trainer.train_on_batch(images, labels, return_dict=True)
    np.savez(
        path,
        images=images,
        labels=labels,
        inference_logits=inference_logits,
        adversarial=adversarial,
        # Some value of every image moves by all of its epsilon, unclipped.
        epsilon=255 * np.abs(adversarial - images).max(axis=(1, 2, 3)),
        loss=logs["loss"] - logs["decay_loss"],
        **{f"weight_{i:03d}": weight for i, weight in enumerate(weights)},
        **{f"updated_{i:03d}": layer.kernel.numpy() for i, layer in enumerate([*units, dense])},
    )
    return {"parameters": sum(int(np.prod(v.shape)) for v in network.trainable_variables)}


def pytorch(setup: Setup) -> Contender:
    """The same step in PyTorch eager, in both memory formats."""
    import torch
    import torch_resnet

    def compare(path: str) -> dict[str, float]:
        """Make the step of a reference file and return how far the results are apart."""
        with np.load(path) as file:
            reference = dict(file)
        network = torch_resnet.ResNet(mean_image(), depth=setup.depth)
        network.load([reference[key] for key in sorted(reference) if key.startswith("weight_")])
        before = [kernel.copy() for kernel in network.kernels()]
        step = torch_resnet.Step(network, SETTINGS, torch.contiguous_format)
        prepared = step.prepare(reference["images"])
        labels = torch.from_numpy(reference["labels"].astype("int64"))
        epsilon = torch.from_numpy(reference["epsilon"])
        with torch.no_grad():
            logits = network.eval()(prepared).numpy()
        adversarial = torch_resnet.to_images(step.make_adversarial(prepared, epsilon))
        # Rounding turns a few signs of tiny gradients over; from here on with the same images.
        same_images = step.prepare(reference["adversarial"])
        with mock.patch.object(step, "make_adversarial", lambda *_: same_images):
            loss = step(prepared, labels, epsilon)
        updated = [reference[key] for key in sorted(reference) if key.startswith("updated_")]
        # Of the update, not of the weights, which one step hardly moves.
        apart = sum(np.square(a - b).sum() for a, b in zip(network.kernels(), updated, strict=True))
        moved = sum(np.square(a - b).sum() for a, b in zip(before, updated, strict=True))
        return {
            "parameters": sum(p.numel() for p in network.parameters()),
            "largest_logit_difference": float(np.abs(logits - reference["inference_logits"]).max()),
            "equal_adversarial_values": float(
                np.isclose(adversarial, reference["adversarial"], atol=1e-5).mean()
            ),
            "relative_loss_difference": abs(loss / float(reference["loss"]) - 1),
            "relative_update_difference": float(np.sqrt(apart / moved)),
        }

    steps = {
        "channels first": _torch_step(setup, torch.contiguous_format),
        "channels last": _torch_step(setup, torch.channels_last),
    }
    return Contender(steps, {"compare": compare}, ("torch",))


def torch_compile(setup: Setup) -> Contender:
    """PyTorch's step in its faster memory format, compiled by inductor, which needs a compiler.

    Raises:
        Exception: that inductor cannot work here.
    """
    import torch

    double = torch.compile(lambda values: 2 * values.sin())
    double(torch.ones(4))
    step = _torch_step(setup, torch.channels_last, compiled=True)
    return Contender({STEP: step}, packages=("torch",))


def _torch_step(setup: Setup, memory_format, compiled: bool = False) -> Callable[[], float]:
    import torch
    import torch_resnet

    torch.set_num_threads(setup.threads)
    images, labels = batch(CLEAN)
    targets = torch.from_numpy(labels.astype("int64"))
    torch.manual_seed(0)
    network = torch_resnet.ResNet(mean_image(), depth=setup.depth)
    step = torch_resnet.Step(
        network, SETTINGS, memory_format, compiled, half=setup.precision == BFLOAT16
    )
    prepared = step.prepare(images)
    return lambda: step(prepared, targets)


def art(setup: Setup, traced_once: bool) -> Contender:
    """ART's AdversarialTrainer on the same Keras network, one batch per call of ``fit``.

    128 images, half of them replaced by untargeted FGSM images of a fixed epsilon (its trainer
    refuses targeted attacks), cross entropy, SGD. Left out: the least likely class, the random
    epsilon, the distance, lambda and the weight decay.

    Args:
        setup: of all contenders; in float32.
        traced_once: give ART a compiled train step. Its own is a ``tf.function`` defined inside
            ``fit`` and therefore traced anew for every batch.
    """
    _set_up_tensorflow(setup)
    os.environ["TQDM_DISABLE"] = "1"
    import keras
    import tensorflow as tf
    from art.attacks.evasion import FastGradientMethod
    from art.defences.trainer import AdversarialTrainer
    from art.estimators.classification import TensorFlowV2Classifier

    network = _network(setup.model)
    model = keras.Model(network.input, network.output["logits"])
    optimizer = keras.optimizers.SGD(SETTINGS["learning_rate"], SETTINGS["momentum"])
    optimizer.build(model.trainable_variables)
    loss_object = keras.losses.SparseCategoricalCrossentropy(from_logits=True)

    @tf.function
    def train_step(model, images, labels):
        with tf.GradientTape() as tape:
            loss = loss_object(labels, model(images, training=True))
        gradients = tape.gradient(loss, model.trainable_variables)
        optimizer.apply_gradients(zip(gradients, model.trainable_variables, strict=True))

    classifier = TensorFlowV2Classifier(
        model,
        nb_classes=10,
        input_shape=IMAGE_SHAPE,
        loss_object=loss_object,
        optimizer=optimizer,
        train_step=train_step if traced_once else None,
        clip_values=(0.0, 1.0),
    )
    # By default it attacks 32 images at a time; all 64 at once are faster.
    attack = FastGradientMethod(classifier, eps=8 / 255, batch_size=CLEAN)
    trainer = AdversarialTrainer(classifier, attack, ratio=0.5)
    images, labels = batch(2 * CLEAN)

    def step() -> float:
        trainer.fit(images, labels, batch_size=2 * CLEAN, nb_epochs=1)
        return float(model.trainable_variables[-1].numpy().sum())

    return Contender({STEP: step}, packages=("adversarial-robustness-toolbox", "tensorflow"))


def art_default(setup: Setup) -> Contender:
    """ART as documented."""
    return art(setup, traced_once=False)


def art_traced_once(setup: Setup) -> Contender:
    """ART with a train step of the user's, compiled."""
    return art(setup, traced_once=True)


def anatomy(setup: Setup) -> Contender:
    """What our step consists of: a matrix product, and the step with parts of it exchanged."""
    _set_up_tensorflow(setup)
    import op_profile
    from unfolded import UnfoldedConvBatchNorm, keras_layers

    from cascade_keras import layers
    from cascade_keras.models import networks as builder

    steps: dict[str, Callable[[], float]] = {MATRIX_PRODUCT: _matrix_product(setup.precision)}
    layer_of = {
        OURS: layers.ConvBatchNorm,
        UNFOLDED: UnfoldedConvBatchNorm,
        KERAS_LAYERS: keras_layers,
    }
    networks = {}
    for name in VARIANTS:
        # The same builder with another layer, so that nothing else can differ.
        with mock.patch.object(builder, "ConvBatchNorm", layer_of[name]):
            network = _network(setup.model)
        networks[name] = network
        trainer = _trainer(network)
        steps[f"{STEP}, {name}"] = _train_function(trainer)
        steps[f"{ATTACK}, {name}"] = _attack_function(trainer)

    def profile(steps_profiled: int) -> dict[str, float]:
        return op_profile.profile(steps[f"{STEP}, {OURS}"], steps_profiled)

    def gflop() -> dict[str, float]:
        return op_profile.gflop_by_kind(networks[OURS], CLEAN, CLEAN)

    return Contender(steps, {"profile": profile, "gflop": gflop})


def _matrix_product(precision: str) -> Callable[[], float]:
    import tensorflow as tf

    matrix = tf.constant(np.random.default_rng(0).random((MATRIX_SIDE, MATRIX_SIDE), "float32"))
    matrix = tf.cast(matrix, precision.removeprefix("mixed_"))
    product = tf.function(lambda: tf.matmul(matrix, matrix))
    return lambda: float(product()[0, 0])


def _attack_function(trainer) -> Callable[[], float]:
    import tensorflow as tf

    images, labels = (tf.constant(array) for array in batch(CLEAN))
    attack = tf.function(lambda step: trainer.make_adversarial(images, labels, step))
    step = tf.constant(0)
    return lambda: float(attack(step)[0, 0, 0, 0])


CONTENDERS: dict[str, Callable[[Setup], Contender]] = {
    "ours": ours,
    "pytorch": pytorch,
    "torch_compile": torch_compile,
    "art": art_default,
    "art_traced_once": art_traced_once,
    "anatomy": anatomy,
}
