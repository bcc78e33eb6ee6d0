"""Whether outputs are logits: as the graph that makes them shows, and as their values do."""

from __future__ import annotations

import numpy as np
import tensorflow as tf

LOGITS, SOFTMAX, SIGMOID, UNKNOWN = "logits", "softmax", "sigmoid", "unknown"
# What hands values on: the same numbers, in the same order.
_PASSED_ON = ("Identity", "IdentityN", "Cast", "Reshape", "Squeeze", "ExpandDims", "EnsureShape")
_PRODUCTS = ("MatMul", "BatchMatMulV2", "Conv2D")
_PRECISION = {2: 2e-2, 4: 1e-4, 8: 1e-4}  # of a sum of probabilities, by the bytes of a number
_DECLARED = "_cascade_keras_logits"


def declared(output: tf.Tensor) -> tf.Tensor:
    """Mark an output as one whose user says that it is logits, whatever it looks like."""
    setattr(output, _DECLARED, True)
    return output


def is_declared(output: tf.Tensor) -> bool:
    """Whether ``declared`` has marked the output."""
    return getattr(output, _DECLARED, False)


def sum_to_one(values: np.ndarray) -> bool:
    """Whether all rows of (batch, classes) are probabilities: not negative, of sum 1."""
    if not values.size or values.shape[-1] == 1 or (values < 0).any():
        return False
    tolerance = _PRECISION[values.dtype.itemsize]
    return np.allclose(values.sum(-1, dtype=np.float64), 1, rtol=0, atol=tolerance)


def is_share(values: np.ndarray) -> bool:
    """Whether all rows of (batch, classes) are shares of one sum: probabilities, per cents."""
    if not values.size or values.shape[-1] == 1 or (values < 0).any():
        return False
    sums = values.sum(-1, dtype=np.float64)
    alike = np.allclose(sums, sums[0], rtol=_PRECISION[values.dtype.itemsize], atol=0)
    return bool(sums[0] > 0 and alike and (sum_to_one(values) or np.ptp(values, axis=0).any()))


def made_by(output: tf.Tensor) -> tuple[str, tf.Tensor]:
    """Return what has made an output, as its graph shows it, and what was before that.

    The output is followed back through operations that hand the same numbers on.

    Returns:
        "softmax" or "sigmoid" and the tensor that it was given, in the output's shape; else
        "logits", where the last operation is a product with weights, so no probability, or
        "unknown", and the output itself.
    """
    tensor = output
    while hasattr(tensor, "graph") and tensor.op.type in _PASSED_ON and _is_plain(tensor):
        tensor = tensor.op.inputs[tensor.value_index if tensor.op.type == "IdentityN" else 0]
    kind = tensor.op.type if hasattr(tensor, "graph") else None
    if kind == "Sigmoid" or (kind == "Softmax" and tensor.shape[-1] == output.shape[-1]):
        before = tensor.op.inputs[0]
        if before.shape.rank != output.shape.rank:
            before = tf.reshape(before, tf.shape(output))
        return kind.lower(), tf.ensure_shape(before, output.shape)
    return (LOGITS if _is_linear(tensor) else UNKNOWN), output


def _is_plain(tensor: tf.Tensor) -> bool:
    """Whether an operation that hands numbers on does so for gradients too, and to floats."""
    try:
        tensor.op.get_attr("_gradient_op_type")  # as tf.custom_gradient leaves it
    except ValueError:
        return tensor.op.inputs[0].dtype.is_floating
    return False


def _is_linear(tensor: tf.Tensor) -> bool:
    """Whether a tensor is a product with weights, or the logarithm of a softmax."""
    if not hasattr(tensor, "graph"):
        return False
    kind, inputs = tensor.op.type, tensor.op.inputs
    if kind == "LogSoftmax":
        return True
    if kind in ("BiasAdd", "AddV2"):
        return any(map(_is_variable, inputs)) and any(map(_is_linear, inputs))
    return kind in _PRODUCTS and _is_variable(inputs[1])


def _is_variable(tensor: tf.Tensor) -> bool:
    while tensor.op.type in ("Identity", "Cast"):
        tensor = tensor.op.inputs[0]
    return tensor.op.type == "ReadVariableOp"
