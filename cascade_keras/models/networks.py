"""Functional networks with two named outputs, the embedding and the logits.

    images (batch, H, W, C) in [0, 1]  ->  {"embedding": (batch, d), "logits": (batch, classes)}

The CIFAR ResNet of He et al. of depth 6n + 2, as in the paper (one 3x3 convolution to 16 channels;
three stages of n two-convolution blocks with 16, 32 and 64 channels; shortcuts without parameters;
global average pooling; one dense layer), the same without shortcuts ("plain"), and a
LeNet. The normalisation of the images is the first layer, so attacks and served networks see
plain pixels.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence

import keras
import numpy as np

from cascade_keras.errors import InputError
from cascade_keras.layers import ConvBatchNorm
from cascade_keras.models.specs import NORMALIZATIONS

# Of the three stages of a ResNet.
STAGE_CHANNELS = (16, 32, 64)

_relu = keras.layers.ReLU
# Logits and embeddings stay in float32 under a mixed-precision policy: losses are taken of them.
_float32 = functools.partial(keras.layers.Activation, "linear", dtype="float32")


def normalize(
    images: keras.KerasTensor, normalization: str, mean: np.ndarray | None
) -> keras.KerasTensor:
    """Apply the input normalisation that a network carries inside.

    Args:
        images: (batch, H, W, C) in [0, 1].
        normalization: "pixel" subtracts a mean image, "channel" a mean colour, "image" makes each
            image zero mean and unit variance, "none" leaves [0, 1].
        mean: the training images' mean in [0, 1]: (H, W, C), the channel mean is taken of it.

    Raises:
        InputError: unknown normalisation, or a mean that is missing or of the wrong shape.
    """
    if normalization == "none":
        return images
    if normalization == "image":
        axes = (1, 2, 3)
        deviation = keras.ops.std(images, axis=axes, keepdims=True)
        # The floor that tf.image.per_image_standardization uses, for uniform images.
        floor = 1 / np.sqrt(np.prod(images.shape[1:]))
        centred = images - keras.ops.mean(images, axis=axes, keepdims=True)
        return centred / keras.ops.maximum(deviation, floor)
    if normalization not in NORMALIZATIONS:
        raise InputError(f"normalization {normalization!r} is none of {', '.join(NORMALIZATIONS)}")
    if mean is None or tuple(mean.shape) != tuple(images.shape[1:]):
        raise InputError(
            f"normalization {normalization!r} needs a mean image of shape {images.shape[1:]}, "
            f"got {None if mean is None else mean.shape}"
        )
    mean = np.asarray(mean, "float32")
    axis: tuple[int, ...] = (1, 2, 3)
    if normalization == "channel":
        mean, axis = mean.mean(axis=(0, 1)), (3,)
    # Subtraction only, as in the paper: the variance is set to one.
    layer = keras.layers.Normalization(
        axis=axis, mean=mean, variance=np.ones_like(mean), dtype="float32", name="normalization"
    )
    return layer(images)


def _shortcut(features: keras.KerasTensor, channels: int, stride: int) -> keras.KerasTensor:
    """Option A of He et al.: no parameters; pooled, with zeros for the new channels."""
    if stride > 1:
        features = keras.layers.AveragePooling2D(stride)(features)
    missing = channels - features.shape[-1]
    if missing:
        sides = (missing // 2, missing - missing // 2)
        features = keras.ops.pad(features, ((0, 0), (0, 0), (0, 0), sides))
    return features


def _block(
    features: keras.KerasTensor, channels: int, stride: int, shortcut: bool
) -> keras.KerasTensor:
    """Two 3x3 convolutions, each with batch normalisation, and the shortcut around them."""
    residual = _relu()(ConvBatchNorm(channels, stride)(features))
    residual = ConvBatchNorm(channels)(residual)
    if shortcut:
        residual = keras.layers.add([residual, _shortcut(features, channels, stride)])
    return _relu()(residual)


def finish(
    name: str,
    inputs: keras.KerasTensor,
    stages: Mapping[str, keras.KerasTensor],
    features: keras.KerasTensor,
    num_classes: int,
    *,
    head: Sequence[int] = (),
    embedding_at: str = "logits",
) -> keras.Model:
    """Add the dense layers and name the outputs.

    Args:
        name: of the network.
        inputs: the images, (batch, H, W, C).
        stages: what can be the embedding, beside "features", "bottleneck" with a head, and
            "logits"; feature maps are flattened.
        features: (batch, d), which the dense layers take.
        num_classes: the number of logits.
        head: widths of hidden dense layers; the last one is the bottleneck.
        embedding_at: the stage that is the embedding.

    Raises:
        InputError: no such stage.
    """
    stages = {**stages, "features": features}
    for width in head:
        features = keras.layers.Dense(width)(features)
        stages["bottleneck"] = features
    logits = _float32(name="logits")(keras.layers.Dense(num_classes, dtype="float32")(features))
    stages["logits"] = logits
    if embedding_at not in stages:
        raise InputError(
            f"{embedding_at!r} is none of {', '.join(stages)}, which {name} has", "embedding_at"
        )
    embedding = stages[embedding_at]
    if len(embedding.shape) > 2:
        embedding = keras.layers.Flatten()(embedding)
    embedding = _float32(name="embedding")(embedding)
    return keras.Model(inputs, {"embedding": embedding, "logits": logits}, name=name)


def resnet(
    depth: int = 20,
    input_shape: tuple[int, int, int] = (24, 24, 3),
    num_classes: int = 10,
    *,
    embedding_at: str = "logits",
    normalization: str = "none",
    mean: np.ndarray | None = None,
    head: Sequence[int] = (),
    shortcut: bool = True,
) -> keras.Model:
    """Build the CIFAR ResNet of He et al. of depth 6n + 2.

    Args:
        depth: 20, 32, 44, 56, 110 or any other 6n + 2.
        input_shape: height, width, channels; the sides divisible by 4.
        num_classes: the number of logits.
        embedding_at: "logits", "stem", "stage1" to "stage3" (flattened feature maps), "features"
            (the pooled 64), or "bottleneck" (the last hidden dense layer, with a ``head``).
        normalization, mean: see ``normalize``.
        head: widths of dense layers between the features and the logits; (2,) and (10, 2) are the
            2-D embedding networks of figure 4.
        shortcut: False gives the plain network.

    Raises:
        InputError: depth not 6n + 2, sides not divisible by 4, unknown embedding.
    """
    if depth < 8 or (depth - 2) % 6:
        raise InputError(f"depth must be 6n + 2 (20, 32, 44, 56, 110, ...), got {depth}")
    if input_shape[0] % 4 or input_shape[1] % 4:
        raise InputError(f"image sides must be divisible by 4, got {input_shape}")
    inputs = keras.Input(input_shape, name="images")
    features = normalize(inputs, normalization, mean)
    features = _relu()(ConvBatchNorm(STAGE_CHANNELS[0])(features))
    stages = {"stem": features}
    for stage, channels in enumerate(STAGE_CHANNELS, start=1):
        for block in range((depth - 2) // 6):
            stride = 2 if stage > 1 and block == 0 else 1
            features = _block(features, channels, stride, shortcut)
        stages[f"stage{stage}"] = features
    features = keras.layers.GlobalAveragePooling2D()(features)
    name = f"{'resnet' if shortcut else 'plain'}{depth}"
    return finish(name, inputs, stages, features, num_classes, head=head, embedding_at=embedding_at)


def lenet(
    input_shape: tuple[int, int, int] = (28, 28, 1),
    num_classes: int = 10,
    *,
    embedding_at: str = "logits",
    normalization: str = "none",
    mean: np.ndarray | None = None,
) -> keras.Model:
    """Build a LeNet: two 5x5 convolutions (32, 64) with pooling, a dense layer of 1024.

    Args:
        embedding_at: "logits", "stage1", "stage2" (flattened) or "features" (the dense layer).
        others: as for ``resnet``.
    """
    inputs = keras.Input(input_shape, name="images")
    features = normalize(inputs, normalization, mean)
    stages = {}
    for stage, channels in enumerate((32, 64), start=1):
        convolution = keras.layers.Conv2D(channels, 5, padding="same", activation="relu")
        features = keras.layers.MaxPooling2D(2)(convolution(features))
        stages[f"stage{stage}"] = features
    features = keras.layers.Dense(1024, activation="relu")(keras.layers.Flatten()(features))
    return finish("lenet", inputs, stages, features, num_classes, embedding_at=embedding_at)
