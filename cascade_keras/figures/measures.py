"""The arrays behind the paper's figures; figures.py draws them, cli/analysis.py knows which.

Each function takes a network as a callable, images and true labels, and returns a dict of NumPy
arrays. Nothing is drawn or read from disk here. Networks are compiled once for every batch size.
Images are float32 in [0, 1], (N, H, W, C); epsilons are in 0..255 units, and one-step attacks take
negative ones too: the step to the other side.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping, Sequence

import numpy as np
import tensorflow as tf

from cascade_keras import attacks, draws, evaluation
from cascade_keras.attacks.carlini_wagner import CarliniWagner

Arrays = dict[str, np.ndarray]
Progress = Callable[[int], None]
# A noise or gradient whose values differ by less, relative to their size, is constant: the noise is
# a difference of float32 images, so equal steps come out with a few rounding errors.
_CONSTANT = 1e-4
_VERSIONS = 4096  # adversarial images held at a time
_BATCH = 128
GRADIENT_PAIRS = (
    ("clean", "step_ll"),
    ("clean", "step_fgsm"),
    ("clean", "step_rand"),
    ("step_ll", "step_fgsm"),
)


def _ignore(done: int) -> None:
    """The default of ``progress``: called with the number of images done."""


def _batches(images: np.ndarray, labels: np.ndarray, versions: int):
    """Yield batches of which so many versions of each image can be held at a time."""
    return evaluation.slices(images, labels, max(1, min(_BATCH, _VERSIONS // versions)))


def _statistics(values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return mean and standard deviation over the images, the last axis."""
    return values.mean(axis=-1), values.std(axis=-1)


# Correlations.


def _unit(values: np.ndarray) -> np.ndarray:
    """Return each image (..., H, W, C) as a vector of mean 0 and length 1; 0 where constant."""
    flat = np.asarray(values, np.float64).reshape(*values.shape[:-3], -1)
    centred = flat - flat.mean(axis=-1, keepdims=True)
    length = np.linalg.norm(centred, axis=-1, keepdims=True)
    varies = length > _CONSTANT * np.linalg.norm(flat, axis=-1, keepdims=True)
    return np.divide(centred, length, out=np.zeros_like(flat), where=varies)


def _correlate(first: np.ndarray, second: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the correlation of unit vectors (..., n), and where it is undefined."""
    undefined = ~(first.any(axis=-1) & second.any(axis=-1))
    return np.einsum("...n,...n->...", first, second), undefined


def pearson(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """Return Pearson's correlation over the pixels of images (..., H, W, C), (...,) float64.

    0 where one of the two is constant, as a noise of zero is: it has no direction.
    """
    return _correlate(_unit(first), _unit(second))[0]


def _summary(parts: Sequence[tuple[np.ndarray, np.ndarray]]) -> Arrays:
    """Put the batches' correlations and undefined ones together, (lines, epsilons, images)."""
    correlation = np.concatenate([part[0] for part in parts], axis=-1)
    undefined = np.concatenate([part[1] for part in parts], axis=-1)
    mean, deviation = _statistics(correlation)
    return {
        "correlation": correlation,
        "mean": mean,
        "deviation": deviation,
        "undefined": undefined.sum(axis=-1),
    }


def noise_correlation(
    networks: Sequence[attacks.LogitsFn],
    images: np.ndarray,
    labels: np.ndarray,
    epsilons: Sequence[float],
    *,
    attack: str = "iter_fgsm",
    seed: int = 0,
    progress: Progress = _ignore,
    **options,
) -> Arrays:
    """Correlate the adversarial noises X_adv - X of each pair of networks (figures 1 and 6).

    Args:
        networks: two or more, images (batch, H, W, C) -> logits, in inference mode.
        images, labels: (N, H, W, C) and (N,).
        epsilons: (E,), above 0: without noise there is nothing to correlate.
        attack, seed, **options: see ``evaluation.crafter``.

    Returns:
        pairs: (P, 2) indices of the networks.
        correlation: (P, E, N), see ``pearson``.
        mean, deviation: (P, E), over the images.
        undefined: (P, E), how many of the images have a constant noise and count as 0.

    Raises:
        ValueError: fewer than two networks, or an unknown attack.
    """
    pairs = list(itertools.combinations(range(len(networks)), 2))
    if not pairs:
        raise ValueError("noises are correlated between two networks or more")
    crafters = [
        evaluation.crafter(network, images.shape[1:], attack, epsilons, seed=seed, **options)
        for network in networks
    ]
    parts = []
    for first, batch, true in _batches(images, labels, len(epsilons)):
        noises = [_unit(craft(batch, true, first) - batch) for craft in crafters]
        found = [_correlate(noises[one], noises[other]) for one, other in pairs]
        parts.append(tuple(np.stack(arrays) for arrays in zip(*found, strict=True)))
        progress(first + len(batch))
    return {"pairs": np.array(pairs), **_summary(parts)}


def gradient_correlation(
    logits_fn: attacks.LogitsFn,
    images: np.ndarray,
    labels: np.ndarray,
    epsilons: Sequence[float],
    *,
    seed: int = 0,
    progress: Progress = _ignore,
) -> Arrays:
    """Correlate the input gradients of J(X, y_true) at pairs of images (figure 8, appendix D).

    Where the correlation between the clean image and one an attack's step away falls fast, the
    gradient of the clean image says little about the way from there on.

    Args:
        logits_fn: images (batch, H, W, C) -> logits, in inference mode.
        images, labels: (N, H, W, C) and (N,).
        epsilons: (E,), of any sign.
        seed: of step_rand.

    Returns:
        correlation: (4, E, N), of ``GRADIENT_PAIRS``; see ``pearson``.
        mean, deviation: (4, E), over the images.
        undefined: (4, E), how many images have a gradient of zero and count as 0.
    """
    shape = images.shape[1:]
    crafters = {
        attack: evaluation.crafter(logits_fn, shape, attack, epsilons, seed=seed)
        for attack in ("step_ll", "step_fgsm", "step_rand")
    }
    gradients = _compiled_gradients(logits_fn, shape)
    parts = []
    for first, batch, true in _batches(images, labels, 3 * len(epsilons)):
        at = {"clean": _unit(gradients(batch[None], true))}
        for attack, craft in crafters.items():
            at[attack] = _unit(gradients(craft(batch, true, first), true))
        found = [_correlate(at[one], at[other]) for one, other in GRADIENT_PAIRS]
        parts.append(tuple(np.stack(arrays) for arrays in zip(*found, strict=True)))
        progress(first + len(batch))
    return _summary(parts)


def _compiled_gradients(logits_fn: attacks.LogitsFn, image_shape: Sequence[int]) -> Callable:
    """Return (versions, batch, H, W, C), labels (batch,) -> the gradients of J, as the images."""

    @tf.function
    def gradients(versions: tf.Tensor, labels: tf.Tensor) -> tf.Tensor:
        loss = attacks.cross_entropy(labels)
        return tf.map_fn(lambda images: attacks.input_gradient(logits_fn, images, loss), versions)

    gradients = gradients.get_concrete_function(
        tf.TensorSpec([None, None, *image_shape], tf.float32), tf.TensorSpec([None], tf.int32)
    )
    return lambda versions, labels: gradients(
        tf.constant(versions), tf.constant(labels, tf.int32)
    ).numpy()


# Outputs of networks.


def _compiled_outputs(function: Callable, image_shape: Sequence[int]) -> Callable:
    """Return (versions, batch, H, W, C) -> (versions, batch, d), what ``function`` gives of each.

    The versions go through the network one after the other, so memory does not grow with them.
    """

    @tf.function
    def outputs(versions: tf.Tensor) -> tf.Tensor:
        return tf.map_fn(function, versions)

    outputs = outputs.get_concrete_function(
        tf.TensorSpec([None, None, *image_shape], tf.float32),
    )
    return lambda versions: outputs(tf.constant(versions)).numpy()


def logits(
    logits_fn: attacks.LogitsFn,
    images: np.ndarray,
    labels: np.ndarray,
    epsilons: Sequence[float],
    *,
    attack_names: Sequence[str] = ("step_ll", "step_fgsm", "step_rand"),
    seed: int = 0,
    progress: Progress = _ignore,
) -> Arrays:
    """Follow the argument to the softmax of the true and of the false classes (figure 7).

    Args:
        logits_fn: images (batch, H, W, C) -> logits (batch, classes), in inference mode.
        images, labels: (N, H, W, C) and (N,).
        epsilons: (E,), of any sign with one-step attacks.
        attack_names: A attacks.
        seed: of step_rand.

    Returns:
        true, false, largest: (A, E, N), the true logit, the mean and the largest of the others.
        true_mean, true_deviation and so on: (A, E), over the images.
    """
    shape = images.shape[1:]
    crafters = [
        evaluation.crafter(logits_fn, shape, name, epsilons, seed=seed) for name in attack_names
    ]
    outputs = _compiled_outputs(logits_fn, shape)
    parts = []
    for first, batch, true in _batches(images, labels, len(epsilons)):
        found = np.stack([outputs(craft(batch, true, first)) for craft in crafters])
        parts.append(_true_and_false(found, true))
        progress(first + len(batch))
    arrays = {}
    for name, batches in zip(("true", "false", "largest"), zip(*parts, strict=True), strict=True):
        arrays[name] = np.concatenate(batches, axis=-1)
        arrays[f"{name}_mean"], arrays[f"{name}_deviation"] = _statistics(arrays[name])
    return arrays


def _true_and_false(values: np.ndarray, labels: np.ndarray) -> tuple[np.ndarray, ...]:
    """Return the true logit, the mean and the largest other, of logits (..., batch, classes)."""
    is_true = np.arange(values.shape[-1]) == labels[:, None]
    true = np.where(is_true, values, 0).sum(axis=-1)
    mean = np.where(is_true, 0, values).sum(axis=-1) / (values.shape[-1] - 1)
    return true, mean, np.where(is_true, -np.inf, values).max(axis=-1)


def embedding_map(
    function: Callable[[tf.Tensor], Mapping[str, tf.Tensor]],
    images: np.ndarray,
    labels: np.ndarray,
    epsilons: Sequence[float],
    *,
    traced: np.ndarray,
    attack: str = "iter_fgsm",
    seed: int = 0,
    progress: Progress = _ignore,
    **options,
) -> Arrays:
    """Follow embeddings through the plane as epsilon grows (figure 4).

    Args:
        function: images (batch, H, W, C) -> {"logits", "embedding"}, in inference mode.
        images, labels: (N, H, W, C) and (N,); embedded clean.
        epsilons: (E,), ascending.
        traced: (T,) indices of the images that are attacked.
        attack, seed, **options: see ``evaluation.crafter``.

    Returns:
        embedding: (N, d) of the clean images; attacked: (T, E, d).
        points: (N, 2) and traces: (T, E, 2), the same in the plane, see ``project``.
        explained: (2,), see ``project``.
        centres: (classes, 2), the median of each class's points, in the order of np.unique(labels).
    """
    shape = images.shape[1:]
    outputs = _compiled_outputs(lambda batch: function(batch)["embedding"], shape)
    parts = []
    for first, batch, _ in _batches(images, labels, 1):
        parts.append(outputs(batch[None])[0])
        progress(first + len(batch))
    embedding = np.concatenate(parts)
    craft = evaluation.crafter(
        lambda batch: function(batch)["logits"], shape, attack, epsilons, seed=seed, **options
    )
    attacked = outputs(craft(images[traced], labels[traced], 0)).swapaxes(0, 1)
    points, traces, explained = project(embedding, attacked)
    centres = [np.median(points[labels == label], axis=0) for label in np.unique(labels)]
    return {
        "embedding": embedding,
        "attacked": attacked,
        "points": points,
        "traces": traces,
        "explained": explained,
        "centres": np.array(centres),
    }


def project(clean: np.ndarray, others: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Bring embeddings into the plane, by the principal components of the clean ones.

    Args:
        clean: (N, d), two or more of them.
        others: (..., d), on which the components do not depend.

    Returns:
        The clean ones, (N, 2); the others, (..., 2); and the share of the clean ones' variance that
        each axis explains, (2,). Embeddings of 2 dimensions are returned as they are and both
        shares are NaN, one dimension gets a second that is 0.
    """
    d = clean.shape[-1]
    if d <= 2:
        pad = [(0, 0)] * (others.ndim - 1) + [(0, 2 - d)]
        return np.pad(clean, [(0, 0), (0, 2 - d)]), np.pad(others, pad), np.full(2, np.nan)
    from sklearn.decomposition import PCA  # it takes a second to import

    pca = PCA(2, svd_solver="full").fit(clean.astype(np.float64))
    flat = pca.transform(others.reshape(-1, d).astype(np.float64))
    plane = pca.transform(clean.astype(np.float64))
    return plane, flat.reshape(*others.shape[:-1], 2), pca.explained_variance_ratio_


# Accuracies.


def accuracy_curve(
    logits_fn: attacks.LogitsFn,
    images: np.ndarray,
    labels: np.ndarray,
    epsilons: Sequence[float],
    *,
    attack_names: Sequence[str],
    options: Mapping[str, Mapping] | None = None,
    seed: int = 0,
    progress: Progress = _ignore,
) -> Arrays:
    """Count what a network still gets right under attacks of all sizes, white box.

    A curve that does not come down to zero at 255, where any image can be made into any other, or
    one of an iterative attack above that of a one-step attack, is a sign of masked gradients.

    Args:
        logits_fn: images (batch, H, W, C) -> logits, in inference mode.
        images, labels: (N, H, W, C) and (N,).
        epsilons: (E,), 0 or above.
        attack_names: A names of ``evaluation.ATTACKS``.
        options: of each attack by its name, see ``evaluation.crafter``.
        seed: of step_rand and pgd.
        progress: called with the number of images done of N.

    Returns:
        correct: (A, E) counts; accuracy: (A, E) in per cent.
    """
    rows = []
    for number, name in enumerate(attack_names):
        before = number * len(images)
        results = evaluation.sweep(
            logits_fn,
            images,
            labels,
            name,
            epsilons,
            seed=seed,
            batch_size=max(1, min(_BATCH, _VERSIONS // len(epsilons))),
            progress=lambda done, before=before: progress((before + done) // len(attack_names)),
            **(options or {}).get(name, {}),
        )
        rows.append([result.correct for result in results])
    correct = np.array(rows)
    return {"correct": correct, "accuracy": 100 * correct / len(images)}


def distance_sweep(
    networks: Sequence[attacks.LogitsFn],
    distance_weights: Sequence[float],
    images: np.ndarray,
    labels: np.ndarray,
    epsilons: Sequence[float],
    *,
    attack_names: Sequence[str],
    options: Mapping[str, Mapping] | None = None,
    seed: int = 0,
    progress: Progress = _ignore,
) -> Arrays:
    """Compare networks that were trained with different lambda_2 (figure 5).

    Args:
        networks: R of them, images -> logits, in inference mode.
        distance_weights: lambda_2 of each.
        images, labels, epsilons, attack_names, options, seed: as for ``accuracy_curve``.
        progress: called with the number of images done of R N.

    Returns:
        order: (R,), indices of the networks with ascending lambda_2, as given where it is equal.
        distance_weight: (R,), ascending; clean: (R,) and accuracy: (A, E, R), in per cent, in that
            order.
        level: (L,), the different values of lambda_2; level_clean: (L,) and level_accuracy:
            (A, E, L), means over the networks of each.
    """
    order = np.argsort(distance_weights, kind="stable")
    weights = np.asarray(distance_weights, float)[order]
    clean, accuracy = [], []
    for number, index in enumerate(order):
        before = number * len(images)
        unattacked = evaluation.evaluate(networks[index], images, labels, "clean")
        clean.append(unattacked.accuracy)
        found = accuracy_curve(
            networks[index],
            images,
            labels,
            epsilons,
            attack_names=attack_names,
            options=options,
            seed=seed,
            progress=lambda done, before=before: progress(before + done),
        )
        accuracy.append(found["accuracy"])
    clean, accuracy = np.array(clean), np.stack(accuracy, axis=-1)
    levels = np.unique(weights)
    members = [weights == level for level in levels]
    return {
        "order": order,
        "distance_weight": weights,
        "clean": clean,
        "accuracy": accuracy,
        "level": levels,
        "level_clean": np.array([clean[own].mean() for own in members]),
        "level_accuracy": np.stack([accuracy[..., own].mean(axis=-1) for own in members], axis=-1),
    }


def cw_distribution(
    logits_fn: attacks.LogitsFn,
    images: np.ndarray,
    labels: np.ndarray,
    *,
    progress: Progress = _ignore,
    **options,
) -> Arrays:
    """Find the smallest epsilon that fools each image (figure 9).

    Args:
        logits_fn: images (batch, H, W, C) -> logits, in inference mode.
        images, labels: (N, H, W, C) and (N,).
        **options: of ``carlini_wagner.CarliniWagner``: grid, search, iterations.

    Returns:
        epsilon: (N,), 0 where the clean image is misclassified, inf where nothing was found.
    """
    search = CarliniWagner(logits_fn, images.shape[1:], **options)
    return {"epsilon": search(images, labels, progress).epsilon}


# The loss around an image.


def loss_surface(
    logits_fn: attacks.LogitsFn,
    images: np.ndarray,
    labels: np.ndarray,
    offsets: Sequence[float],
    *,
    seed: int = 0,
    progress: Progress = _ignore,
) -> Arrays:
    """Return the loss over the plane of the gradient's signs and of random signs at each image.

    X + a sign(grad_X J(X, y_true)) + b sign(noise), noise ~ N(0, 1) for each value, clipped to the
    valid range: with b = 0 the images of ``step_fgsm``, with a = 0 those of ``step_rand``.

    Args:
        logits_fn: images (batch, H, W, C) -> logits, in inference mode.
        images, labels: (N, H, W, C) and (N,).
        offsets: (P,), the values of a and of b, in 0..255 units.
        seed: of the random signs.

    Returns:
        loss: (N, P, P), the cross entropy of the true class; axes: images, b, a.
        margin: (N, P, P), largest other logit minus the true one: above 0 where misclassified.
    """
    shape = images.shape[1:]

    @tf.function
    def plane(image, label, gradient, noise):
        steps = attacks.to_unit_range(tf.constant(list(offsets), tf.float32))
        along = image + tf.reshape(steps, [-1, 1, 1, 1]) * gradient
        true = tf.fill([len(offsets)], label)

        def row(step: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
            values = logits_fn(tf.clip_by_value(along + step * noise, 0.0, 1.0))
            return attacks.cross_entropy(true)(values), attacks.margin(true)(values)

        return tf.map_fn(row, steps, fn_output_signature=(tf.float32, tf.float32))

    spec = tf.TensorSpec(shape, tf.float32)
    plane = plane.get_concrete_function(spec, tf.TensorSpec([], tf.int32), spec, spec)
    gradients = np.sign(_compiled_gradients(logits_fn, shape)(images[None], labels)[0])
    noise = np.sign(
        tf.random.stateless_normal(images.shape, [seed, 0], alg=draws.GENERATOR).numpy()
    )
    losses, margins = [], []
    for index, label in enumerate(labels):
        loss, margin = plane(
            tf.constant(images[index]),
            tf.constant(label, tf.int32),
            tf.constant(gradients[index]),
            tf.constant(noise[index]),
        )
        losses.append(loss.numpy())
        margins.append(margin.numpy())
        progress(index + 1)
    return {"loss": np.stack(losses), "margin": np.stack(margins)}
