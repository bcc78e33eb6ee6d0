"""AutoAttack (Croce & Hein, 2020): several strong attacks in turn, none with a step size to choose.

A network's robustness is easily overestimated by one attack that is badly tuned. AutoAttack has
nothing to tune: each of its attacks is tried on the images that are still classified correctly, and
an image counts as robust if all of them fail. The attacks are those of the Adversarial Robustness
Toolbox (ART), an optional extra; what departs from the published ones is said at ``autoattack``.
"""

from __future__ import annotations

import collections
import contextlib
from collections.abc import Callable, Iterator, Sequence

import numpy as np
import tensorflow as tf

from cascade_keras import attacks
from cascade_keras.attacks.arguments import as_images, check_range
from cascade_keras.attacks.entry import entry
from cascade_keras.attacks.margins import targeted_dlr
from cascade_keras.attacks.searches import Broken
from cascade_keras.errors import InputError
from cascade_keras.ranges import UNIT

TARGETS = 9  # classes that the published attack aims at
BATCH_SIZE = 250
_MISSING = (
    "autoattack needs the Adversarial Robustness Toolbox; pip install cascade_keras[autoattack]"
)


@entry
def autoattack(
    logits_fn: attacks.LogitsFn,
    images: np.ndarray,
    labels: np.ndarray,
    epsilons: Sequence[float],
    *,
    seed: int | Sequence[int],
    num_classes: int | None = None,
    iterations: int = 100,
    queries: int = 5000,
    batch_size: int | None = None,
) -> np.ndarray:
    """Return the images of AutoAttack for several epsilons; white box, L-infinity, true labels.

    In turn, each on the images that are still classified correctly: auto-PGD on the cross entropy;
    auto-PGD on the targeted difference of logits ratio, towards each of the nine classes that the
    network takes for the most likely after the true one; the square attack, which uses no gradient.
    All start once and at random, auto-PGD with a step of 2 epsilon. With three classes auto-PGD
    ascends ``attacks.dlr`` instead; with two that is not defined either and is left out.

    What departs from the standard version of the paper:

    - FAB is missing: ART does not have it. ART's DeepFool, which it offers in FAB's place, looks
      for the nearest misclassified image in L2 without regard to epsilon.
    - ART's auto-PGD returns its last iterate, which it has moved to the best one where it halved
      its step; the published one returns any iterate that is misclassified.
    - ART's square attack draws one square and one colour a query for all of its images, not for
      each, and fits the shrinking of its squares to ``queries``; the published one shrinks them as
      for 10,000 and stops at 5,000.

    Args:
        logits_fn: images (batch, H, W, C) -> logits (batch, classes), in inference mode.
        images: in ``value_range``, (N, H, W, C).
        labels: the true classes, (N,), or soft ones, of which the largest is meant.
        epsilons: in 0..255 units.
        seed: of all random numbers; each epsilon begins with it anew, so its images are the same
            alone as in a list.
        num_classes: number of logits; looked up where None.
        iterations: of auto-PGD, for each of its objectives.
        queries: of the square attack; 0 leaves it out.
        batch_size: images given to the network at once; ``BATCH_SIZE`` when None.
        value_range: the lowest and the highest value of a pixel, which ``logits_fn`` takes.

    Returns:
        float32 (len(epsilons), N, H, W, C), in ``value_range``. Images that no attack fools, or
        that are misclassified already, are returned as they are.

    Raises:
        InputError: ART is not installed.
        ValueError: images that are not floats, or an epsilon that is negative, NaN or infinite.
    """
    check_range(list(epsilons), "epsilons")
    images = as_images(images).numpy().astype(np.float32)
    labels = np.asarray(attacks.classes_of(labels))
    try:
        from art.attacks.evasion import AutoProjectedGradientDescent, SquareAttack
    except ImportError as error:
        raise InputError(_MISSING, "attack") from error
    # Not in a graph: what gives no logits is refused here.
    classes = int(logits_fn(tf.constant(images[:1])).shape[-1])
    if num_classes not in (None, classes):
        raise InputError(f"is {num_classes}, the network tells {classes} apart", "num_classes")
    num_classes = classes
    network = _estimator(logits_fn, images.shape[1:], num_classes, batch_size or BATCH_SIZE)
    logits = network.predict(images)
    correct = logits.argmax(axis=1) == labels
    ranking = np.argsort(-logits, axis=1)  # of images classified correctly, the true class first
    stages = [("cross_entropy", 1)]
    if num_classes == 3:
        stages += [("dlr", 1)]
    if num_classes > 3:
        stages += [("targeted_dlr", rank) for rank in range(1, min(TARGETS, num_classes - 1) + 1)]
    if queries:
        stages += [("square", 1)]

    def generate(stage: str, radius: float, *batch: np.ndarray) -> np.ndarray:
        if stage == "square":
            return SquareAttack(
                network, eps=radius, max_iter=queries, p_init=0.8, verbose=False
            ).generate(*batch)
        network.objective = stage
        return AutoProjectedGradientDescent(
            network,
            eps=radius,
            eps_step=2 * radius,
            max_iter=iterations,
            nb_random_init=1,
            batch_size=network.batch_size,
            verbose=False,
        ).generate(*batch)

    def attack(radius: float) -> np.ndarray:
        # ART's own AutoAttack would give all of its attacks the same targets, and it imports a
        # package that installing ART does not bring.
        found, robust = images.copy(), correct & (radius > 0)
        for stage, rank in stages:
            rows = np.flatnonzero(robust)
            if not len(rows):
                break
            clean = images[rows]
            # To ART the largest mark is the true class; it hands all of them to the estimator.
            marks = np.zeros([len(rows), num_classes], np.float32)
            marks[np.arange(len(rows)), ranking[rows, rank]] = 0.5
            marks[np.arange(len(rows)), labels[rows]] = 1
            crafted = generate(stage, radius, clean, marks)
            crafted = np.clip(crafted, np.maximum(clean - radius, 0), np.minimum(clean + radius, 1))
            fooled = network.predict(crafted).argmax(axis=1) != labels[rows]
            found[rows[fooled]] = crafted[fooled]
            robust[rows[fooled]] = False
        return found

    results = []
    for epsilon in epsilons:
        with _seeded(seed):
            results.append(attack(float(epsilon) / attacks.PIXEL_LEVELS))
    return np.stack(results)


class AutoAttack:
    """``autoattack`` of a network, as suites are called."""

    def __init__(self, logits_fn, image_shape, epsilons, *, value_range=UNIT, version, **options):
        self._options = {**options, "value_range": value_range}
        self._given = logits_fn, list(epsilons)

    def __call__(self, images: np.ndarray, labels: np.ndarray, first: int = 0) -> Broken:
        logits_fn, epsilons = self._given
        options = {**self._options, "seed": self._options["seed"] + first}
        found = np.asarray(autoattack(logits_fn, images, labels, epsilons, **options))
        nothing = np.zeros(found.shape[:2], np.int32)
        return Broken(found, nothing.astype(np.int8), nothing, nothing)


def _estimator(
    logits_fn: attacks.LogitsFn, image_shape: Sequence[int], num_classes: int, batch_size: int
):
    """Return the network as ART wants it, compiled; ART's own calls of it are not.

    ART's auto-PGD asks for the loss of each new iterate and then for the gradient there: both are
    computed together, and kept until other images come. Its square attack asks three times for the
    logits of nearly every image: those of the last calls are kept.
    """
    from art.estimators.classification import TensorFlowV2Classifier

    batch = tf.TensorSpec([None, *image_shape], tf.float32)
    predict = tf.function(logits_fn, input_signature=[batch])
    objectives = {
        "cross_entropy": lambda labels, targets: attacks.cross_entropy(labels),
        "dlr": lambda labels, targets: attacks.dlr(labels),
        "targeted_dlr": targeted_dlr,
    }

    def compiled(make_objective: Callable) -> Callable:
        @tf.function(input_signature=[batch, tf.TensorSpec([None, num_classes], tf.float32)])
        def loss_and_gradient(images, marks):
            labels, targets = tf.unstack(tf.math.top_k(marks, 2).indices, axis=1)
            with tf.GradientTape(watch_accessed_variables=False) as tape:
                tape.watch(images)
                loss = make_objective(labels, targets)(logits_fn(images))
            return loss, tape.gradient(loss, images)

        return loss_and_gradient

    class Estimator(TensorFlowV2Classifier):
        def __init__(self):
            super().__init__(
                model=lambda images, training: logits_fn(images),
                nb_classes=num_classes,
                input_shape=tuple(image_shape),
                clip_values=(0, 1),
            )
            self.batch_size = batch_size
            self.objective = "cross_entropy"
            self._functions = {name: compiled(make) for name, make in objectives.items()}
            self._known = None
            self._logits = collections.deque(maxlen=3)  # of an image's bytes, for each call

        def predict(self, x, *args, **kwargs):
            x = np.asarray(x, np.float32)
            keys = [image.tobytes() for image in x]
            known = collections.ChainMap(*self._logits)
            new = [i for i, key in enumerate(keys) if key not in known]
            for first in range(0, len(new), batch_size):
                rows = new[first : first + batch_size]
                found = predict(tf.constant(x[rows])).numpy()
                known = known.new_child({keys[i]: row for i, row in zip(rows, found, strict=True)})
            self._logits.append({key: known[key] for key in keys})
            return np.stack([known[key] for key in keys])

        def compute_loss(self, x, y, *args, **kwargs):
            return self._loss_and_gradient(x, y)[0]

        def loss_gradient(self, x, y, *args, **kwargs):
            return self._loss_and_gradient(x, y)[1]

        def _loss_and_gradient(self, x, y):
            asked = (self.objective, np.array(x, np.float32), np.array(y, np.float32))
            if self._known is None or not all(map(np.array_equal, asked, self._known[0])):
                found = self._functions[self.objective](*asked[1:])
                self._known = asked, [value.numpy() for value in found]
            return self._known[1]

    return Estimator()


@contextlib.contextmanager
def _seeded(seed: int | Sequence[int]) -> Iterator[None]:
    """Seed NumPy's global generator, which ART draws from, and put it back as it was."""
    state = np.random.get_state()
    np.random.seed(seed)
    try:
        yield
    finally:
        np.random.set_state(state)
