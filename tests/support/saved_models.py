"""SavedModels that this package did not make."""

import keras
import tensorflow as tf


def saved_model(
    path,
    function,
    shapes=((None, 8, 8, 1),),
    dtype=tf.float32,
    key="serving_default",
    resource=None,
):
    """Save a function as the one signature of a bare SavedModel; return the path.

    Args:
        resource: what else the model holds: a table, or an ``Initialised``.
    """
    module = tf.Module()
    module.unused = tf.Variable(1.0)
    module.resource = resource
    specs = [tf.TensorSpec(shape, dtype) for shape in shapes]
    module.function = tf.function(function, input_signature=specs)
    tf.saved_model.save(module, str(path), signatures={key: module.function})
    return path


def linear(images):
    """Logits that have a gradient."""
    return tf.reshape(images, [-1, 64]) @ tf.reshape(tf.sin(tf.range(640.0)), [64, 10])


class Initialised(tf.saved_model.experimental.TrackableResource):
    """Something that a SavedModel initialises when it is loaded: by this function."""

    def __init__(self, initialise):
        super().__init__(device="")
        self._initialise = initialise

    def _create_resource(self):
        return tf.raw_ops.HashTableV2(key_dtype=tf.string, value_dtype=tf.float32)

    def _initialize(self):
        self._initialise()


def endless(images):
    """Return the images, after all time."""
    condition, body = (lambda i, _: i < 1), (lambda i, x: (i * 1, x * 1.0))
    return tf.while_loop(condition, body, (tf.constant(0), images))[1]


# What harms: kind -> (make a SavedModel at a path that would write a file, what names it).


def _and(effect):
    """Return a network that also does something."""

    def function(images):
        with tf.control_dependencies([effect(images)]):
            return linear(tf.identity(images))

    return function


def _at_load(path, file):
    saved_model(path, linear, resource=Initialised(lambda: tf.io.write_file(file, "x")))


def _in_a_branch(path, file):
    """Hide it in a function that a function calls, one that a condition chooses."""

    def effect(images):
        few = tf.reduce_sum(images) < 1e9
        return tf.cond(few, lambda: [tf.io.write_file(file, "x"), 0][1], lambda: 0)

    saved_model(path, _and(effect))


def _by_print(path, file):
    saved_model(path, _and(lambda images: tf.print("x", output_stream=f"file://{file}")))


def _by_python(path, file):
    def write(images):
        with open(file, "w") as opened:
            opened.write("x")
        return images

    def function(images):
        seen = tf.ensure_shape(tf.py_function(write, [images], tf.float32), (None, 8, 8, 1))
        return linear(images) + 0 * linear(seen)

    saved_model(path, function)


def _by_shapes(path, file):
    """Nothing asks for it: TensorFlow evaluates a shape where it only reads the graph."""

    def extra():
        shape = tf.raw_ops.DebugIdentity(
            input=tf.constant([4, 2]), device_name="/job:localhost/replica:0/task:0/device:CPU:0",
            tensor_name="x:0", debug_urls=[f"file://{file}"],
        )  # fmt: skip
        tf.reshape(tf.zeros([8]), shape)

    tensorflow_1(path, extra)


MALICIOUS = {
    "signature": (
        lambda path, file: saved_model(path, _and(lambda _: tf.io.write_file(file, "x"))),
        "WriteFile in function",
    ),
    "branch": (_in_a_branch, "WriteFile in function"),
    "initialiser": (_at_load, "WriteFile in function _initializer"),
    "print": (_by_print, "PrintV2 in function"),
    "python": (_by_python, "EagerPyFunc in function"),
    "shapes": (_by_shapes, "DebugIdentity in its graph"),
    "tensorflow 1": (
        lambda path, file: tensorflow_1(path, lambda: tf.io.write_file(file, "x"), run=True),
        "WriteFile in its graph",
    ),
}


# What does not.


def tensorflow_1(path, extra=lambda: None, run=False):
    """Save the network as TensorFlow 1 does.

    Args:
        extra: makes an operation that the network does not need.
        run: whether it is run when the SavedModel is loaded.
    """
    v1 = tf.compat.v1
    with tf.Graph().as_default(), v1.Session() as session:
        images = v1.placeholder(tf.float32, [None, 8, 8, 1])
        scale = v1.get_variable("scale", initializer=1.0)
        logits = scale * linear(images)
        made = extra()
        session.run(v1.global_variables_initializer())
        signature = v1.saved_model.predict_signature_def({"images": images}, {"logits": logits})
        builder = v1.saved_model.Builder(str(path))
        options = {"main_op": made if run else None, "saver": v1.train.Saver()}
        builder.add_meta_graph_and_variables(
            session, ["serve"], {"serving_default": signature}, **options
        )
        builder.save()
    return path


def keras_layers(path):
    """Export a Keras model with layers of image classifiers, preprocessing and augmentation."""
    layers = keras.layers
    images = values = keras.Input((8, 8, 1))
    for layer in (
        layers.Rescaling(2.0, -1.0), layers.Resizing(10, 10), layers.RandomFlip(),
        layers.RandomRotation(0.1), layers.RandomContrast(0.1), layers.GaussianNoise(0.1),
        layers.Conv2D(4, 3), layers.BatchNormalization(), layers.ReLU(6),
        layers.DepthwiseConv2D(3), layers.Dropout(0.5), layers.Flatten(), layers.Dense(10),
    ):  # fmt: skip
        values = layer(values)
    keras.Model(images, values).export(path, verbose=False)
    return path


def augmented(path):
    """Export one that augments its images when it is served too: it draws random numbers."""
    layers = [keras.layers.RandomTranslation(0.1, 0.1), keras.layers.RandomBrightness(0.1)]
    model = keras.Sequential([keras.Input((8, 8, 1)), *layers, keras.layers.Flatten()])
    model.add(keras.layers.Dense(10))
    archive = keras.export.ExportArchive()
    archive.track(model)
    specs = [tf.TensorSpec((None, 8, 8, 1))]
    archive.add_endpoint("serve", lambda images: model(images, training=True), specs)
    archive.write_out(str(path), verbose=False)
    return path


def table(path, kind):
    """Save one with a hash table, as text models and the labels of hubs' models are."""
    keys, values = tf.range(10), tf.range(10.0)
    if kind == "static":
        found = tf.lookup.StaticHashTable(tf.lookup.KeyValueTensorInitializer(keys, values), 0.0)
    else:
        found = tf.lookup.experimental.MutableHashTable(tf.int32, tf.float32, 0.0)
        found.insert(keys, values)
    return saved_model(path, lambda images: linear(images) + found.lookup(keys), resource=found)


def pipeline():
    """Make what a graph that trained a network reads its images with."""
    v1 = tf.compat.v1
    rows = v1.data.Dataset.range(9).map(lambda row: row + 1).batch(2)
    v1.summary.scalar("row", rows.make_one_shot_iterator().get_next()[0])


HARMLESS = {
    "keras": keras_layers,
    "augmented": augmented,
    "tensorflow 1": lambda path: tensorflow_1(path, pipeline),
    "tensorflow 1 tables": lambda path: tensorflow_1(path, _tables, run=True),
    "static table": lambda path: table(path, "static"),
    "mutable table": lambda path: table(path, "mutable"),
    "loop": lambda path: saved_model(
        path,
        lambda images: linear(tf.map_fn(lambda image: image + tf.cast(0, image.dtype), images)),
    ),
}


def _tables():
    initializer = tf.lookup.KeyValueTensorInitializer(tf.range(10), tf.range(10.0))
    tf.lookup.StaticHashTable(initializer, 0.0)
    return tf.compat.v1.tables_initializer()
