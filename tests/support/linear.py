"""Linear networks: how near the nearest misclassified image is, by bisection."""

import numpy as np


def step_to_plane(point, normal, value):
    """The smallest step in L-infinity within [0, 1], (n,), to where value + normal @ step is 0."""
    direction = -np.sign(value) * np.sign(normal)
    limit = np.where(direction > 0, 1 - point, point)
    low, high = 0.0, 1.0
    for _ in range(100):
        middle = (low + high) / 2
        reached = np.abs(normal) @ np.minimum(limit, middle)
        low, high = (middle, high) if reached < abs(value) else (low, middle)
    return direction * np.minimum(limit, high)


def images_and_network(classes, count=30, seed=0):
    """Images, a third of them without pixels at the limits, and a network (weights, bias)."""
    rng = np.random.default_rng((seed, classes))
    weights = rng.normal(size=(64, classes)).astype("float32")
    images = rng.uniform(0, 1, (count, 8, 8, 1)).astype("float32")
    images[count // 3 :] = np.clip(3 * images[count // 3 :] - 1, 0, 1)
    return images, weights, (-0.5 * weights.sum(0)).astype("float32")


def minimal_epsilons(images, labels, weights, bias):
    """The least epsilon of each image, in 0..255 units; 0 where it is misclassified already."""
    flat = images.reshape(len(images), -1).astype(float)
    logits = flat @ weights.astype(float) + bias
    found = np.where(logits.argmax(1) != labels, 0, np.inf)
    for i, y in enumerate(labels):
        for other in {*range(len(bias))} - {y}:
            normal, value = weights[:, other] - weights[:, y], logits[i, other] - logits[i, y]
            step = step_to_plane(flat[i], normal, value)
            if abs(value + normal @ step) < 1e-6:
                found[i] = min(found[i], 255 * np.abs(step).max())
    return found
