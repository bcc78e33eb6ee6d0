"""SavedModels that this package did not make."""

import tensorflow as tf


def saved_model(path, function, shapes=((None, 8, 8, 1),), dtype=tf.float32, key="serving_default"):
    """Save a function as the one signature of a bare SavedModel; return the path."""
    module = tf.Module()
    module.unused = tf.Variable(1.0)
    specs = [tf.TensorSpec(shape, dtype) for shape in shapes]
    module.function = tf.function(function, input_signature=specs)
    tf.saved_model.save(module, str(path), signatures={key: module.function})
    return path
