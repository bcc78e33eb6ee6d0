"""The attack of Carlini & Wagner in the L-infinity norm: how far an image is from being fooled.

The other attacks ask whether an image within a given epsilon is misclassified. This one looks for
the smallest such epsilon (appendix F of the paper). For an image X of class y it minimises

    c f(X + d) + sum_i max(|d_i| - tau, 0)      with X + d in [0, 1]^n
    f(X) = logit of y - largest other logit     negative where X is misclassified

by Adam from d = 0; whenever f < 0 and max|d| is below the best so far, the best is updated.

Two searches share that iteration:

``grid``: the published one. Each constant c with each tau, 2,000 iterations at the rate 0.01 / c:
    480,000 gradients of an MNIST image, of which most go to a tau that is far from the answer.

``descent``: a tau that follows the best. The largest constants of the grid make a lane each, which
    run side by side; when one succeeds, the tau of all becomes a little less than what it has
    reached, and they go on from where they are, in a box: |d_i| below the best. The box takes
    nothing away, as f < 0 outside of it is no improvement, and it adds what the sum alone does not
    do: the sum leaves a few pixels beyond tau, but the largest one counts. The step by which the
    box shrinks is halved where no lane succeeds any more; an image for which the smallest step
    fails is done. Half of the lanes aim at one class, the nearest or the second.
    Where another attack has found a nearer image, the lanes go on from that, see ``starts``.

The grid's result is where an iterate happened to pass on its way to one of the taus; the descent
goes on until no lane gets any lower. Its epsilons are the smaller ones on average, though neither
search proves a minimum (benchmarks/carlini_wagner.py compares the two image by image), and it takes
less than a hundredth of the gradients.
"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Callable, Sequence

import numpy as np
import tensorflow as tf

from cascade_keras.attacks import PIXEL_LEVELS, LogitsFn, classes_of, margin
from cascade_keras.attacks.entry import as_logits_fn, given_images, given_labels
from cascade_keras.attacks.specs import Grid
from cascade_keras.errors import shown
from cascade_keras.ranges import UNIT, ValueRange, check_value_range, scaled_from_unit

BETA_1, BETA_2, STABILITY = 0.9, 0.999, 1e-8  # Adam's, as published
# f has to be below 0 by this share of the largest logit, lest it be rounding, which is another one
# in a batch of another size, and coarse in TF32. What does not stand is searched with the next one.
ROUNDING = (1e-5, 1e-3, 1e-1)

# The lanes of an image in the descent. As published, a larger constant goes with a smaller learning
# rate; but here that is in proportion to the box, which is then crossed in as many steps however
# small it is. Lanes that differ end in different places: four alike found 2 % larger epsilons.
# Two of them have another f, the logit of y less that of one class: the largest other logit leads
# to the first class that is met, which need not be the nearest.
RATES = (5.0, 10.0, 20.0, 50.0)  # in radii of the box and ``learning_rate``; largest constant first
LARGEST = -1
TARGETS = (LARGEST, 0, LARGEST, 1)  # which class of f: the largest other, the nearest, the second
BELOW = 0.9  # tau, in radii of the box
SHRINK, LEAST_SHRINK = 0.04, 0.0025  # by which share the box is smaller than the best
CHUNK = 20  # iterations without an improvement after which that share is halved

# What is gone through where no other is given: the constants span those of the published grids, and
# the taus are as close as theirs where they are small.
GRID = Grid(
    (0.1, 0.3, 1.0, 3.0, 10.0, 30.0, 100.0),
    (*range(1, 11), *range(12, 21, 2), *range(24, 41, 4), *range(48, 81, 8), *range(100, 241, 20)),
)

# One row of each array is one run of Adam: what it changes, and what it is given.
Lanes = dict[str, np.ndarray]
IMAGES = ("clean", "best_image", "perturbation", "mean", "variance")
NUMBERS = ("target", "constant", "tolerance", "tau", "rate", "shrink", "age", "best")
CHANGED = ("perturbation", "mean", "variance", "age", "best", "best_image")
# Whether anything was found, (N,); the adversarial images; the number of gradients.
Found = tuple[np.ndarray, np.ndarray, int]


@dataclasses.dataclass(frozen=True)
class Minimal:
    """The smallest perturbations found of N images.

    Attributes:
        epsilon: (N,) float32, max|X_adv - X| in 0..255 units, measured on ``images``; 0 where the
            clean image is misclassified already; inf where nothing was found.
        images: (N, H, W, C) float32 in the range of those that were given, the adversarial images;
            the clean ones where epsilon is 0 or inf.
        gradients: image gradients that were computed, of all images and lanes together.
    """

    epsilon: np.ndarray
    images: np.ndarray
    gradients: int


class CarliniWagner:
    """The minimal-epsilon search on one network, compiled once.

    Args:
        logits_fn: images (batch, H, W, C) -> logits (batch, classes), in inference mode.
        image_shape: (H, W, C).
        grid: constants and taus, a ``Grid`` or the two; the descent takes the largest constants and
            no tau. ``GRID``, which suits images in colour and of digits, where None.
        value_range: the lowest and the highest value of a pixel, which ``logits_fn`` takes; epsilon
            and tau stay in 0..255 units of it.
        search: "descent" or "grid", see above.
        iterations: of each (X, c, tau) of the grid; in the descent the most of an image, rounded up
            to ``CHUNK``, which only those reach that nothing is found of.
        learning_rate: of Adam; divided by c in the grid, multiplied by ``RATES`` in the descent.
        lanes: the most images in one batch of the network, which bounds memory.

    Raises:
        ValueError: an unknown search, or numbers out of range.
    """

    def __init__(
        self,
        logits_fn: LogitsFn,
        image_shape: Sequence[int],
        *,
        grid: Grid | Sequence[Sequence[float]] | None = None,
        value_range: ValueRange = UNIT,
        search: str = "descent",
        iterations: int = 2000,
        learning_rate: float = 0.01,
        lanes: int = 256,
    ):
        grid = as_grid(grid)
        searches = {
            "descent": (self._descend, self._following),
            "grid": (self._exhaust, self._as_given),
        }
        if search not in searches:
            raise ValueError(f"search {search!r} is none of {', '.join(searches)}")
        if len(image_shape) != 3 or any(side < 1 for side in image_shape):
            raise ValueError(f"image_shape must be (height, width, channels), got {image_shape}")
        for name, values in (("constants", grid.constants), ("taus", grid.taus)):
            if not values or min(values) <= 0 or list(values) != sorted(values):
                raise ValueError(f"the grid's {name} must be above 0 and ascending, got {values}")
        for name, value in (("iterations", iterations), ("lanes", lanes)):
            if value != int(value) or value < 1:
                raise ValueError(f"{name} must be a whole number of at least 1, got {value}")
        if not 0 < learning_rate < float("inf"):
            raise ValueError(f"learning_rate must be above 0, got {learning_rate}")
        self._shape = tuple(image_shape)
        self._grid = grid
        self._search, self._schedule = searches[search]
        self._iterations = int(iterations)
        self._learning_rate = learning_rate
        self._lanes = int(lanes)
        self._value_range = check_value_range(value_range)
        logits_fn = self._logits_fn = as_logits_fn(logits_fn, self._value_range)
        logits_fn(tf.fill([1, *self._shape], 0.5))  # is refused here where it gives no logits

        image, number = tf.TensorSpec([None, *self._shape]), tf.TensorSpec([None])
        label = tf.TensorSpec([None], tf.int32)
        state = {"label": label, **dict.fromkeys(IMAGES, image), **dict.fromkeys(NUMBERS, number)}
        self._fooled = _compiled(
            lambda images, labels: margin(labels)(logits_fn(images)) > 0, image, label
        )
        self._distances = _compiled(self._first_order, image, label)
        self._advance = _compiled(self._iterate, state, tf.TensorSpec([], tf.int32))

    def __call__(
        self,
        images: np.ndarray,
        labels: np.ndarray,
        progress: Callable[[int], None] = lambda done: None,
        *,
        starts: np.ndarray | None = None,
    ) -> Minimal:
        """Search the smallest perturbation of each image; the same at every call.

        Args:
            images: in ``value_range``, (N, H, W, C).
            labels: the true classes, (N,), or soft ones, of which the largest is meant.
            progress: called with the number of images done, as it grows.
            starts: what other attacks have made of the images, (N, H, W, C) or several of each,
                (count, N, H, W, C), in ``value_range``. Where one is misclassified and nearer than
                what the search finds, the descent goes on from there; the grid takes it as it is.
                So no epsilon is above that of a start.

        Raises:
            ValueError: images of another shape or range, or not one label an image.
            RuntimeError: the network is not a function: the same image gets other logits each time.
        """
        given = np.asarray(images)
        images = given_images(images, self._value_range).numpy().astype(np.float32)
        labels = np.asarray(classes_of(given_labels(labels, None)), np.int32)
        if images.shape[1:] != self._shape or labels.shape != images.shape[:1]:
            raise ValueError(
                f"images of shape (N, {self._shape}) and one label each expected, got "
                f"{images.shape} and {labels.shape}"
            )
        adversarial = images.copy()
        wrong = self._misclassified(images, labels)
        epsilon = np.where(wrong, 0, np.inf).astype(np.float32)
        left = np.flatnonzero(~wrong)
        finished = gradients = 0

        def report(done: int) -> None:
            nonlocal finished
            if done > finished:
                finished = done
                progress(done)

        report(len(images) - len(left))
        for tolerance in ROUNDING:
            if not len(left):
                break
            before = len(images) - len(left)
            found, candidates, spent = self._search(
                images[left], labels[left], tolerance, lambda done, n=before: report(n + done)
            )
            gradients += spent
            verified = found & self._misclassified(candidates, labels[left])
            rows = left[verified]
            adversarial[rows] = candidates[verified]
            epsilon[rows] = PIXEL_LEVELS * _apart(adversarial[rows], images[rows])
            left = left[found & ~verified]
        if len(left):
            raise RuntimeError(
                "the network gives an image other logits each time; it must be in inference mode"
            )
        if starts is not None and len(images):
            gradients += self._start_over(images, labels, epsilon, adversarial, starts)
        found = scaled_from_unit(adversarial, self._value_range)
        attacked = np.isfinite(epsilon) & (epsilon > 0)
        # Images that are left alone are left as they are, to the last bit.
        found[~attacked] = given[~attacked]
        return Minimal(epsilon, found, gradients)

    def _start_over(self, images, labels, epsilon, adversarial, starts) -> int:
        """Improve epsilons and adversarial images, in place, from starts; return the gradients."""
        nearest, from_ = epsilon.copy(), adversarial.copy()
        for given in np.reshape(starts, (-1, *np.shape(starts)[-4:])):
            start = given_images(given, self._value_range).numpy().astype(np.float32)
            if start.shape != images.shape:
                raise ValueError(f"starts of {images.shape} expected, got {start.shape}")
            size = PIXEL_LEVELS * _apart(start, images)
            rows = np.flatnonzero(size < nearest)
            rows = rows[self._misclassified(start[rows], labels[rows])]
            nearest[rows], from_[rows] = size[rows], start[rows]
        rows = np.flatnonzero(nearest < epsilon)
        epsilon[rows], adversarial[rows] = nearest[rows], from_[rows]
        if self._search != self._descend or not len(rows):
            return 0
        _, candidates, gradients = self._descend(
            images[rows], labels[rows], ROUNDING[0], lambda done: None, from_[rows]
        )
        size = PIXEL_LEVELS * _apart(candidates, images[rows])
        better = (size < epsilon[rows]) & self._misclassified(candidates, labels[rows])
        epsilon[rows[better]], adversarial[rows[better]] = size[better], candidates[better]
        return gradients

    def _misclassified(self, images: np.ndarray, labels: np.ndarray) -> np.ndarray:
        """Return where f(X) < 0, (N,) bool."""
        return np.concatenate([np.zeros(0, bool), *self._batched(self._fooled, images, labels)])

    def _batched(self, function: Callable, *arrays: np.ndarray) -> list[np.ndarray]:
        """Return the function's values batch by batch."""
        parts = [slice(i, i + self._lanes) for i in range(0, len(arrays[0]), self._lanes)]
        return [function(*(array[part] for array in arrays)).numpy() for part in parts]

    # The iteration of both searches.

    def _iterate(self, lanes: dict[str, tf.Tensor], steps: tf.Tensor) -> dict[str, tf.Tensor]:
        """Return the lanes after so many iterations of Adam; the best is updated in each.

        X + d is kept in [0, 1] by clipping. Carlini and Wagner substitute X + d = (tanh(w) + 1) / 2
        instead, but where a pixel is exactly 0 or 1, as most of MNIST's are, w is infinite and has
        no gradient.

        f is not clamped at 0 as theirs is: an iterate that goes on beyond the boundary is still
        beyond it when the box shrinks.
        """

        def every_pixel(numbers: tf.Tensor) -> tf.Tensor:
            return numbers[:, None, None, None]

        clean, constant = lanes["clean"], every_pixel(lanes["constant"])
        objective, target = margin(lanes["label"]), tf.cast(lanes["target"], tf.int32)

        def body(step, state):
            d = state["perturbation"]
            # Only the images are watched: recording the weights would cost memory and time.
            with tf.GradientTape(watch_accessed_variables=False) as tape:
                images = tf.clip_by_value(clean + d, 0.0, 1.0)
                tape.watch(images)
                logits = self._logits_fn(images)
                f = -objective(logits)
                aim = tf.where(
                    target == LARGEST,
                    f,
                    tf.gather(logits, lanes["label"], batch_dims=1)
                    - tf.gather(logits, tf.maximum(target, 0), batch_dims=1),
                )
            gradient = tape.gradient(aim, images, unconnected_gradients="zero")
            size = tf.reduce_max(tf.abs(images - clean), axis=[1, 2, 3])
            needed = -lanes["tolerance"] * tf.reduce_max(tf.abs(logits), axis=-1)
            better = (f < needed) & (size < state["best"])
            best = tf.where(better, size, state["best"])
            best_image = tf.where(every_pixel(better), images, state["best_image"])
            box, tau, rate = self._schedule(lanes, best)
            excess = tf.where(tf.abs(d) > every_pixel(tau), tf.sign(d), 0.0)
            gradient = constant * gradient + excess
            age = state["age"] + 1
            mean = BETA_1 * state["mean"] + (1 - BETA_1) * gradient
            variance = BETA_2 * state["variance"] + (1 - BETA_2) * gradient**2
            direction = (mean / every_pixel(1 - BETA_1**age)) / (
                tf.sqrt(variance / every_pixel(1 - BETA_2**age)) + STABILITY
            )
            moved = d - every_pixel(rate) * direction
            lowest = tf.maximum(-every_pixel(box), -clean)
            highest = tf.minimum(every_pixel(box), 1 - clean)
            return step + 1, {
                "perturbation": tf.clip_by_value(moved, lowest, highest),
                "mean": mean,
                "variance": variance,
                "age": age,
                "best": best,
                "best_image": best_image,
            }

        state = {name: lanes[name] for name in CHANGED}
        _, state = tf.while_loop(lambda step, _: step < steps, body, (tf.constant(0), state))
        return state

    @staticmethod
    def _start(images: np.ndarray, labels: np.ndarray, **numbers) -> Lanes:
        """Return lanes at d = 0, with these of their ``NUMBERS``."""
        zeros = np.zeros_like(images)
        lanes = {"clean": images, "label": labels, "best_image": images}
        lanes |= dict.fromkeys(("perturbation", "mean", "variance"), zeros)
        numbers = dict.fromkeys(NUMBERS, 0.0) | {"best": np.inf, "target": LARGEST} | numbers
        return lanes | {k: np.full(len(images), v, np.float32) for k, v in numbers.items()}

    # The searches. ``progress`` is called with the number of images done.

    def _as_given(self, lanes: dict[str, tf.Tensor], best: tf.Tensor) -> tuple[tf.Tensor, ...]:
        """Return box, tau and learning rate of the grid's lanes; no |d_i| exceeds 1 anyway."""
        return tf.ones_like(best), lanes["tau"], lanes["rate"]

    def _exhaust(self, images, labels, tolerance: float, progress: Callable) -> Found:
        """Go through the grid: a lane is one (X, c, tau), from d = 0 to the last iteration."""
        pairs = np.array(list(itertools.product(self._grid.constants, self._grid.taus)))
        best, adversarial = np.full(len(images), np.inf, np.float32), images.copy()
        total = len(images) * len(pairs)
        for start in range(0, total, self._lanes):
            rows, which = np.divmod(np.arange(start, min(start + self._lanes, total)), len(pairs))
            constant, tau = pairs[which].T
            lanes = self._start(
                images[rows],
                labels[rows],
                tolerance=tolerance,
                constant=constant,
                tau=tau / PIXEL_LEVELS,
                rate=self._learning_rate / constant,
            )
            reached = self._advance(lanes, self._iterations)
            size, candidates = reached["best"].numpy(), reached["best_image"].numpy()
            for lane in np.flatnonzero(size < best[rows]):
                if size[lane] < best[rows[lane]]:  # no earlier lane was smaller still
                    best[rows[lane]], adversarial[rows[lane]] = size[lane], candidates[lane]
            progress((start + len(rows)) // len(pairs))
        return np.isfinite(best), adversarial, total * self._iterations

    def _first_order(self, images: tf.Tensor, labels: tf.Tensor) -> tf.Tensor:
        """Return how far away each class would be were the network linear, (classes, N).

        Infinitely far for y itself. A perturbation of size e changes a difference of two logits by
        up to e times the sum of its gradient's magnitudes (Moosavi-Dezfooli et al., 2016).
        """

        def distance(other: tf.Tensor) -> tf.Tensor:
            with tf.GradientTape(watch_accessed_variables=False) as tape:
                tape.watch(images)
                logits = self._logits_fn(images)
                f = tf.gather(logits, labels, batch_dims=1) - logits[:, other]
            gradient = tape.gradient(f, images, unconnected_gradients="zero")
            slope = tf.reduce_sum(tf.abs(gradient), axis=[1, 2, 3])
            return tf.where((labels == other) | (slope == 0), np.inf, f / slope)

        classes = tf.range(tf.shape(self._logits_fn(images))[1])
        return tf.map_fn(distance, classes, fn_output_signature=tf.float32, parallel_iterations=1)

    def _following(self, lanes: dict[str, tf.Tensor], best: tf.Tensor) -> tuple[tf.Tensor, ...]:
        """Return box, tau and learning rate of the descent's lanes: all follow the best."""
        box = tf.minimum(1.0, best * (1 - lanes["shrink"]))
        return box, BELOW * box, lanes["rate"] * box

    def _descend(self, images, labels, tolerance: float, progress: Callable, starts=None) -> Found:
        """Let tau follow the best of each image; an image that is done makes room for another.

        From d = 0, or from misclassified images, which then are the best from the beginning.
        """
        rates = self._learning_rate * np.array(RATES[: self._lanes])
        count = len(rates)
        constants = np.resize(self._grid.constants[::-1][:count], count)
        distances = np.concatenate(self._batched(self._distances, images, labels), axis=1)
        nearest = distances.argsort(axis=0)
        # Of two classes only one is another.
        ranks = np.minimum(TARGETS[:count], len(nearest) - 2)
        targets = np.where(ranks == LARGEST, LARGEST, nearest[ranks].T)
        gradients = distances.size
        best, adversarial = np.full(len(images), np.inf, np.float32), images.copy()
        if starts is not None:
            best, adversarial = _apart(starts, images), starts.copy()
        under_way, begun = np.zeros(0, int), 0
        lanes = self._start(images[:0], labels[:0])
        while begun < len(images) or len(under_way):
            new = np.arange(begun, min(begun + self._lanes // count - len(under_way), len(images)))
            rows = np.repeat(new, count)
            fresh = self._start(
                images[rows],
                labels[rows],
                tolerance=tolerance,
                constant=np.tile(constants, len(new)),
                rate=np.tile(rates, len(new)),
                target=targets[new].ravel(),
                shrink=SHRINK,
                best=best[rows],
            )
            fresh |= {
                "best_image": adversarial[rows],
                "perturbation": adversarial[rows] - images[rows],
            }
            lanes = {name: np.concatenate([lanes[name], fresh[name]]) for name in lanes}
            under_way, begun = np.concatenate([under_way, new]), begun + len(new)

            lanes |= {k: v.numpy() for k, v in self._advance(lanes, CHUNK).items()}
            gradients += CHUNK * len(lanes["best"])
            # What one lane has reached is what the others have to undercut.
            sizes = lanes["best"].reshape(-1, count)
            winner = np.arange(len(sizes)) * count + sizes.argmin(axis=1)
            size = lanes["best"][winner]
            improved = size < best[under_way]
            rows, winner = under_way[improved], winner[improved]
            best[rows], adversarial[rows] = lanes["best"][winner], lanes["best_image"][winner]
            lanes["best"] = np.repeat(size, count)
            shrink = lanes["shrink"][::count]
            shrink = np.where(improved | np.isinf(size), shrink, shrink / 2)
            lanes["shrink"] = np.repeat(shrink, count)
            going_on = (shrink >= LEAST_SHRINK) & (lanes["age"][::count] < self._iterations)
            # Where there is no gradient, nothing will ever move.
            going_on &= lanes["perturbation"].reshape(len(size), -1).any(axis=1)
            if not going_on.all():
                lanes = {name: value[np.repeat(going_on, count)] for name, value in lanes.items()}
                under_way = under_way[going_on]
                progress(begun - len(under_way))
        return np.isfinite(best), adversarial, gradients


def _apart(adversarial: np.ndarray, images: np.ndarray) -> np.ndarray:
    """Return the largest difference of each pair, (N,), in the range of [0, 1]."""
    return np.abs(adversarial - images).max(axis=(1, 2, 3), initial=0)


def as_grid(grid: Grid | Sequence[Sequence[float]] | None) -> Grid:
    """Return a grid that may be given as its constants and its taus, or not at all.

    Raises:
        ValueError: neither.
    """
    if grid is None or isinstance(grid, Grid):
        return grid or GRID
    try:
        constants, taus = grid
        return Grid(tuple(map(float, constants)), tuple(map(float, taus)))
    except (TypeError, ValueError) as error:
        raise ValueError(
            f"grid must be a Grid, or its constants and its taus, got {shown(grid)}"
        ) from error


def _compiled(function: Callable, *signature) -> Callable:
    """Return the function, traced; TensorFlow would warn of a tf.function for each network."""
    return tf.function(function, autograph=False).get_concrete_function(*signature)


def selection(labels: np.ndarray, count: int) -> np.ndarray:
    """Return which images are attacked: the first of each class, as equally many as there are.

    Args:
        labels: (N,).
        count: how many images in all; 100 of ten classes are the first 10 of each.

    Returns:
        (count,) indices, ascending.

    Raises:
        ValueError: fewer images than ``count``, or a negative count.
    """
    labels = np.asarray(labels)
    if not 0 <= count <= len(labels):
        raise ValueError(f"cannot select {count} of {len(labels)} images")
    # How many images of its class come before each: all the first ones come first, then all the
    # second ones, ...
    before = np.zeros(len(labels), int)
    for label in np.unique(labels):
        of_class = np.flatnonzero(labels == label)
        before[of_class] = np.arange(len(of_class))
    return np.sort(np.lexsort((labels, before))[:count])


def distribution(epsilon: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the cumulative distribution of minimal epsilons (figure 9 of the paper).

    Returns:
        The finite epsilons, ascending, and the share of all images in per cent that need no more.
    """
    epsilon = np.asarray(epsilon)
    ascending = np.sort(epsilon[np.isfinite(epsilon)])
    return ascending, 100 * np.arange(1, len(ascending) + 1) / max(1, len(epsilon))
