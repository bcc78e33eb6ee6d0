"""Networks as other packages want them."""

import keras
from art.estimators.classification import TensorFlowV2Classifier


def art_classifier(logits_fn, image_shape, classes):
    return TensorFlowV2Classifier(
        model=lambda x, training: logits_fn(x),
        nb_classes=classes,
        input_shape=image_shape,
        loss_object=keras.losses.SparseCategoricalCrossentropy(from_logits=True),
        clip_values=(0, 1),
    )
