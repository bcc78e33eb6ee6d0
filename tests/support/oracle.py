"""A training step written down a second time, from the paper and the docstrings alone.

Images in float64 NumPy with gradients by hand, the loss and its gradient by automatic
differentiation of the formulas as printed. Nothing of the package is used. The network is one
hidden layer of tanh: logits = tanh(x A + a) B + b.
"""

import keras
import numpy as np
import tensorflow as tf

CLASSES = 10
PHILOX = {"alg": "philox"}


def mlp(seed=0, units=12):
    """The network as Keras has it, with weights so large that attacks matter."""
    layers = [
        keras.layers.Flatten(),
        keras.layers.Dense(units, "tanh"),
        keras.layers.Dense(CLASSES),
    ]
    network = keras.Sequential([keras.Input((8, 8, 1)), *layers])
    rng = np.random.default_rng(seed)
    network.set_weights([rng.normal(0, 0.5, w.shape) for w in network.get_weights()])
    return network


def logits_of(weights, images):
    a, b, c, d = (np.asarray(w, np.float64) for w in weights)
    return np.tanh(np.reshape(images, (len(images), -1)) @ a + b) @ c + d


def rows(labels):
    """Labels as rows of CLASSES numbers: those that are soft are such already."""
    return np.eye(CLASSES)[labels] if np.ndim(labels) == 1 else np.asarray(labels)


def input_gradient(weights, images, labels):
    """The gradient of the cross entropy of each image."""
    a, b, c, d = (np.asarray(w, np.float64) for w in weights)
    hidden = np.tanh(np.reshape(images, (len(images), -1)) @ a + b)
    logits = hidden @ c + d
    chances = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    upstream = (chances - rows(labels)) @ c.T * (1 - hidden**2)
    return np.reshape(upstream @ a.T, np.shape(images))


# The draws, by the table in draws.py.


def fold(seed, purpose, number):
    return tf.random.fold_in([seed, purpose], tf.constant(number, tf.int32), **PHILOX)


def normal(shape, key, deviation=1.0):
    return tf.random.stateless_normal(shape, key, 0.0, deviation, **PHILOX).numpy()


def epsilons(sampling, count, largest, key):
    if sampling == "max":
        return np.full(count, largest)
    if sampling == "uniform":
        return tf.random.stateless_uniform([count], key, 0.0, largest, **PHILOX).numpy()
    clipped = np.minimum(np.abs(normal([count], key, largest / 2)), largest)
    return clipped if sampling == "clipped_normal" else largest - clipped


# The images of section 2.1 and 4.1.


def moved(images, direction, epsilon):
    epsilon = np.reshape(epsilon, (-1, 1, 1, 1)) if np.ndim(epsilon) == 1 else epsilon
    return np.clip(images + np.asarray(epsilon, np.float64) / 255 * np.sign(direction), 0, 1)


def start_of(start, images, epsilon, key):
    """Where an attack from a random start begins."""
    uniform = tf.random.stateless_uniform(
        np.shape(images), tf.random.fold_in(key, 0, **PHILOX), -1, 1, **PHILOX
    ).numpy()
    noise = {
        "none": 0 * uniform,
        "uniform": uniform,
        "twice": 2 * uniform,
        "bernoulli": np.where(uniform < 0, -0.5, 0.5),
    }[start]
    return np.clip(images + epsilon * noise, 0, 1)


def from_start(attack, weights, images, labels, epsilon, key, guide, start="bernoulli", **options):
    """rs_fgsm, n_fgsm and guided."""
    radius = np.reshape(np.asarray(epsilon, np.float64) / 255, (-1, 1, 1, 1))
    start = {"rs_fgsm": "uniform", "n_fgsm": "twice", "guided": start}[attack]
    begun = start_of(start, images, radius, key)
    up = input_gradient(weights, begun, labels)
    if attack == "guided" and guide:
        a, b, c, d = (tf.constant(w, tf.float64) for w in weights)

        def outputs(images):
            return tf.tanh(tf.reshape(images, (len(images), -1)) @ a + b) @ c + d

        with tf.GradientTape() as tape:
            at = tf.constant(begun)
            tape.watch(at)
            options = options | {"pivot_guard": "none"}
            far = distance(None, outputs(at), outputs(tf.constant(images, tf.float64)), **options)
        up = up + guide * tape.gradient(far, at).numpy()
    stepped = begun + (1.25 if attack == "rs_fgsm" else 1) * radius * np.sign(up)
    if attack != "n_fgsm":
        stepped = np.clip(stepped, images - radius, images + radius)
    return np.clip(stepped, 0, 1)


def one_step(attack, weights, images, labels, epsilon, key, sparsity=100, guide=0.0, **options):
    if attack in ("rs_fgsm", "n_fgsm", "guided"):
        return from_start(attack, weights, images, labels, epsilon, key, guide, **options)
    least = logits_of(weights, images).argmin(1)
    towards = -input_gradient(weights, images, least)
    away = input_gradient(weights, images, labels)
    half = len(images) // 2
    direction = {
        "step_ll": lambda: towards,
        "step_fgsm": lambda: away,
        "step_both": lambda: np.concatenate([towards[:half], away[half:]]),
        "step_rand": lambda: normal(np.shape(images), key),
    }[attack]()
    if sparsity < 100:
        sizes = np.sort(np.abs(direction).reshape(len(images), -1), axis=1)[:, ::-1]
        last = sizes[:, max(round(sizes.shape[1] * sparsity / 100), 1) - 1]
        direction = np.where(np.abs(direction) >= last[:, None, None, None], direction, 0)
    return moved(images, direction, epsilon)


def iterated(weights, image, label, epsilon):
    """iter_fgsm of one image; epsilon is a whole number."""
    current = image
    for _ in range(int(min(epsilon + 4, 1.25 * epsilon))):
        step = current + np.sign(input_gradient(weights, current[None], [label])[0]) / 255
        current = np.clip(
            step, np.maximum(image - epsilon / 255, 0), np.minimum(image + epsilon / 255, 1)
        )
    return current


def cascade_draws(seed, step, count, sources, largest, sampling="clipped_normal"):
    key = tf.random.split(fold(seed, 2, step), 2, **PHILOX)
    source = tf.random.stateless_uniform([count], key[0], 0, sources, tf.int32, **PHILOX).numpy()
    drawn = np.floor(epsilons(sampling, count, largest, key[1]))
    return source, np.minimum(drawn, np.floor(largest) - 1) + 1


def adversarial(weights, images, labels, step, *, seed=0, max_epsilon=16.0, attack="step_ll",
                epsilon_sampling="clipped_normal", per_pixel_epsilon=False, sparsity=100,
                cascade=(), ensemble=(), climbed=0.0, distance="l2", start="bernoulli",
                embedding_normalization="none", **_):  # fmt: skip
    """The adversarial images of a step: one-step images, then those of the cascade sources."""
    crafted = len(images) // 2 if cascade else 0
    own = len(images) - crafted
    keys = tf.random.split([seed, step], 3, **PHILOX)
    epsilon = epsilons(epsilon_sampling, own, max_epsilon, keys[0])
    if per_pixel_epsilon:
        noise = normal((own, *images.shape[1:]), keys[1])
        epsilon = np.minimum(np.abs(epsilon[:, None, None, None] + noise), max_epsilon)
    attackers = [weights, *ensemble]
    drawn = tf.random.stateless_uniform(
        [], fold(seed, 3, step), 0, len(attackers), tf.int32, **PHILOX
    )
    parts = [
        one_step(
            attack,
            attackers[int(drawn)],
            images[:own],
            labels[:own],
            epsilon,
            keys[2],
            sparsity,
            climbed,
            start=start,
            kind=distance,
            embedding_normalization=embedding_normalization,
        )
    ]
    if crafted:
        source, epsilon = cascade_draws(
            seed, step, crafted, len(cascade), max_epsilon, epsilon_sampling
        )
        parts += [
            iterated(cascade[s], image, label, e)[None]
            for s, e, image, label in zip(source, epsilon, images[own:], labels[own:])
        ]
    return np.concatenate(parts)


# Section 3.3.


def distance(loss, attacked, clean, *, distance_norm=2, embedding_normalization="none",
             pivot_guard="fixed_scale", pair_weight=1.0, kind="l2", clean_embedding=None,
             **_):  # fmt: skip
    if loss == "pivot" or (loss == "guided" and clean_embedding != "moves"):
        clean = tf.stop_gradient(clean)
    if embedding_normalization == "unit":
        attacked, clean = (e / tf.norm(e, axis=1, keepdims=True) for e in (attacked, clean))
    if embedding_normalization == "variance":
        spread = tf.reduce_mean((clean - tf.reduce_mean(clean, 1, True)) ** 2, 1, True)
        attacked, clean = attacked / spread, clean / spread
    if loss == "pivot" and pivot_guard == "fixed_scale":
        scale = tf.sqrt(tf.reduce_mean(attacked**2))
        attacked = attacked / scale * tf.stop_gradient(scale)
    pairs = len(attacked) if loss == "guided" else 1
    if kind == "softmax":
        attacked, clean = tf.nn.softmax(attacked), tf.nn.softmax(clean)
    if kind == "nuclear":
        gram = tf.transpose(attacked - clean) @ (attacked - clean)
        return tf.reduce_sum(tf.sqrt(tf.abs(tf.linalg.eigvalsh(gram)) + 1e-12)) / pairs
    norm = 1 if kind == "l1" else distance_norm
    apart = tf.reduce_sum(tf.abs(attacked - clean) ** norm, 1)
    return tf.reduce_sum(pair_weight * apart) / pairs


def weight_at(step, weight, ramp="constant", steps=None):
    """lambda_2 at a step."""
    return weight * {
        "constant": lambda: 1, "linear": lambda: step / steps,
        "late": lambda: 2 if step >= 0.8 * steps else 1,
    }[ramp]()  # fmt: skip


def objective(loss, variables, attacked, clean, labels, partners, *, adversarial_weight=0.3,
              distance_weight=1e-4, paired_weight=1.0, weight_decay=1e-4, sample_weight=None,
              **options):  # fmt: skip
    """The loss of k adversarial images and of clean ones, and what is reported of them.

    labels are (of the adversarial, of the clean); the first ``partners`` clean images are partners.
    sample_weight multiplies the cross entropy of each image and the distance of each pair.
    """
    k = len(attacked)
    images = np.concatenate([attacked, clean]).reshape(k + len(clean), -1)
    a, b, c, d = variables
    logits = tf.tanh(images @ a + b) @ c + d
    soft = rows(np.concatenate(labels))
    classes = soft.argmax(1)
    each = tf.reduce_logsumexp(logits, 1) - tf.reduce_sum(soft * logits, 1)
    if sample_weight is not None:
        each *= np.concatenate([sample_weight[:k], sample_weight[-len(clean) :]])
        options["pair_weight"] = sample_weight[:k]
    weights = [adversarial_weight] * k + [paired_weight] * partners
    weights = np.array(weights + [1.0] * (len(classes) - len(weights)))
    apart = 0.0
    if partners and distance_weight:
        apart = distance_weight * distance(loss, logits[:k], logits[k : 2 * k], **options)
    decay = weight_decay / 2 * (tf.reduce_sum(a**2) + tf.reduce_sum(c**2))
    right = tf.argmax(logits, 1).numpy() == classes
    report = {
        "clean_loss": each[k:].numpy().mean() if len(clean) else 0,
        "adversarial_loss": each[:k].numpy().mean() if k else 0,
        "distance_loss": float(apart),
        "decay_loss": float(decay),
        "clean_accuracy": right[k:].mean() if len(clean) else 0,
        "adversarial_accuracy": right[:k].mean() if k else 0,
        "max_logit": np.abs(logits).max(),
    }
    total = tf.reduce_sum(weights * each) / weights.sum() + apart + decay
    return total, {"loss": float(total), **report}


def train_step(
    loss, weights, images, labels, step, rate, *, adversarial_batch_size=None, **options
):
    """The weights after one step of gradient descent, the adversarial images, and the metrics."""
    n = len(images)
    k = {"standard": 0, "kurakin": n // 2}.get(loss, n)
    if k and adversarial_batch_size:
        k = min(adversarial_batch_size, n)
    attacked = images[:0]
    weight = weight_at(
        step,
        options.get("distance_weight", 1e-4),
        options.pop("distance_ramp", "constant"),
        options.pop("ramp_steps", None),
    )
    options["distance_weight"] = weight
    climbs = step % 2 or not options.pop("guide_alternates", True)
    climbed = climbs * options.pop("guide", 1.0) * weight * (1 if loss == "guided" else k)
    if k:
        attacked = adversarial(weights, images[:k], labels[:k], step, climbed=climbed, **options)
    options["kind"] = options.pop("distance", "l2")
    joined = loss not in ("standard", "kurakin")
    kept = slice(0 if joined else k, n)
    variables = [tf.Variable(w, dtype=tf.float64) for w in weights]
    given = (labels[:k], labels[kept]), k if joined else 0
    with tf.GradientTape() as tape:
        total, report = objective(loss, variables, attacked, images[kept], *given, **options)
    gradients = [g.numpy() for g in tape.gradient(total, variables)]
    report["gradient_norm"] = np.sqrt(sum((g**2).sum() for g in gradients))
    return [w - rate * g for w, g in zip(weights, gradients)], attacked, report


def validate(
    loss,
    weights,
    images,
    labels,
    *,
    max_epsilon=16.0,
    attack="step_ll",
    seed=0,
    climbed=0.0,
    distance="l2",
    **options,
):
    """What validation reports: every image clean and attacked at the largest epsilon."""
    options["kind"] = distance
    attacked = one_step(
        attack, weights, images, labels, max_epsilon, [seed, 0], guide=climbed, kind=distance
    )
    joined = loss not in ("standard", "kurakin")
    if loss == "standard":
        options["adversarial_weight"] = 0.0
    variables = [tf.constant(w, tf.float64) for w in weights]
    partners = len(images) if joined else 0
    return objective(loss, variables, attacked, images, (labels, labels), partners, **options)[1]
