"""Auto-PGD (Croce & Hein, 2020, algorithm 1): steps whose size follows from how the ascent goes.

From a random start in the ball, with u = 0.75 (1 at the first step) and eta = 2 eps at first:

    Z_{n+1} = Clip(X_n + eta sign(grad f(X_n)))
    X_{n+1} = Clip(X_n + u (Z_{n+1} - X_n) + (1 - u) (X_n - X_{n-1}))

At checkpoints, ever closer to each other, eta is halved and X_n becomes the best image so far, if f
rose in fewer than 0.75 of the steps since the last one, or if neither eta nor the largest f has
changed since. An image is done as soon as one of its iterates is misclassified.

Of a network that draws random numbers each step takes the mean of the gradients of several passes
(expectation over transformation; Athalye et al., 2018). What one of these misclassifies may be
classified correctly by the next, so an image is done as soon as all passes of an iterate are wrong,
and else becomes the iterate that most of them got wrong. The published ``rand`` version of
AutoAttack looks at the last pass alone and keeps the last iterate that this one got wrong.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import tensorflow as tf

from cascade_keras import draws
from cascade_keras.attacks.arguments import check_counts
from cascade_keras.attacks.entry import as_objective, entry
from cascade_keras.attacks.epsilons import at_epsilon
from cascade_keras.attacks.margins import others, targeted_dlr
from cascade_keras.attacks.objectives import (
    LogitsFn,
    Objective,
    cross_entropy,
    full_precision,
    over_members,
)
from cascade_keras.attacks.searches import (
    Found,
    Masked,
    Rows,
    are_some,
    ascending,
    bounds,
    each_pixel,
    misclassified,
    put,
    radius,
    rows_among,
    rows_of,
    rows_where,
)
from cascade_keras.errors import InputError

_MOMENTUM = 0.75  # u
_LEAST_CLASSES = 4  # of the targeted ratio


@entry
def apgd(
    logits_fn: LogitsFn,
    images: tf.Tensor,
    labels: tf.Tensor,
    epsilon: float,
    *,
    seed,
    iterations: int = 100,
    restarts: int = 1,
    objective: str | Callable[[tf.Tensor], Objective] = cross_entropy,
    average: int = 1,
) -> tf.Tensor:
    """Auto-PGD away from the true class: no step size to choose.

    An image that is misclassified already is returned as it is. Of one that no iterate fools the
    iterate with the largest objective is returned.

    Args:
        logits_fn, images, labels: as for ``step_fgsm``.
        epsilon: a number, in 0..255 units.
        seed: one integer or two, or a key for each image; see ``draws.image_keys``.
        iterations: of each start: so many gradients, and a forward pass of the last iterate.
        restarts: number of starts; those that stand after one are started again.
        objective: what is ascended: "cross_entropy", "dlr", "margin", or a function of labels.
        average: how many passes through a network that draws random numbers make a step; gradients
            and objectives are means of these. An image is returned as soon as all of an iterate's
            are wrong, else the iterate that most got wrong, see above.

    Raises:
        InputError: an option that is no whole number of 1 or above, or "dlr" of two classes.
    """
    options = {"iterations": iterations, "restarts": restarts, "average": average}
    return at_epsilon(
        "apgd", logits_fn, images, labels, epsilon, seed=seed, objective=objective, **options
    )


@entry
def apgd_targeted(
    logits_fn: LogitsFn,
    images: tf.Tensor,
    labels: tf.Tensor,
    epsilon: float,
    *,
    seed,
    iterations: int = 100,
    targets: int = 9,
    average: int = 1,
) -> tf.Tensor:
    """Auto-PGD towards each of the most likely other classes in turn, from the likeliest on.

    It ascends the targeted difference of logits ratio; see ``margins.targeted_dlr``.

    Args:
        targets: number of classes, each with a start of its own; of fewer others, all.
        others: as for ``apgd``.

    Raises:
        InputError: an option that is no whole number of 1 or above, or fewer than four classes.
    """
    options = {"iterations": iterations, "targets": targets, "average": average}
    return at_epsilon("apgd_targeted", logits_fn, images, labels, epsilon, seed=seed, **options)


def nested(logits_fn, images, labels, epsilons: Sequence[float], keys, **options) -> Found:
    """Search at several epsilons by ``search``; see ``searches.ascending``."""
    return ascending(search, logits_fn, images, labels, epsilons, keys, **options)


def nested_targeted(logits_fn, images, labels, epsilons: Sequence[float], keys, **options) -> Found:
    """Search at several epsilons by ``search_targeted``; see ``searches.ascending``."""
    return ascending(search_targeted, logits_fn, images, labels, epsilons, keys, **options)


def search(
    logits_fn: LogitsFn,
    images: tf.Tensor,
    labels: tf.Tensor,
    epsilon,
    keys: tf.Tensor,
    *,
    iterations: int = 100,
    restarts: int = 1,
    objective: str | Callable[[tf.Tensor], Objective] = cross_entropy,
    average: int = 1,
) -> Found:
    """Search by ``apgd`` for images that stand; see ``searches.ascending``.

    Args:
        images: float (batch, H, W, C) in [0, 1], at least one.
        labels: int32 (batch,).
        epsilon: a scalar, in 0..255 units.
        keys: of the images, int32 (batch, 2).
        others: as for ``apgd``.
    """
    check_counts(iterations=iterations, restarts=restarts, average=average)
    make = as_objective(objective)
    ascent = _Ascent(logits_fn, lambda aims: make(aims[0]), iterations, average)
    return _in_turn(ascent, images, epsilon, keys, restarts, lambda number: (labels,))


def search_targeted(
    logits_fn: LogitsFn,
    images: tf.Tensor,
    labels: tf.Tensor,
    epsilon,
    keys: tf.Tensor,
    *,
    iterations: int = 100,
    targets: int = 9,
    average: int = 1,
) -> Found:
    """Search by ``apgd_targeted`` for images that stand, as ``search``.

    The classes are ranked once, by one forward pass of the images.
    """
    check_counts(iterations=iterations, targets=targets, average=average)
    logits = full_precision(logits_fn(images))
    classes = _classes(logits)
    ranking = tf.math.top_k(others(logits, labels), min(targets, classes - 1)).indices

    def aims(number: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        return labels, tf.gather(ranking, number, axis=1)

    ascent = _Ascent(logits_fn, lambda aims: targeted_dlr(*aims), iterations, average)
    found = _in_turn(ascent, images, epsilon, keys, ranking.shape[1], aims)
    return found._replace(forwards=found.forwards + 1)


def checkpoints(iterations: int) -> list[int]:
    """Return after how many steps the step size is looked at, ascending.

    They are ceil(p_j N), p_1 = 0.22, p_{j+1} = p_j + max(p_j - p_{j-1} - 0.03, 0.06), below N.
    """
    # In hundredths, which are whole numbers: sums of fractions would be rounded upwards wrongly.
    found, last, place = [], 0, 22
    while place < 100:
        steps = -(-place * iterations // 100)
        if steps < iterations and steps not in found:
            found.append(steps)
        last, place = place, place + max(place - last - 3, 6)
    return found


def _classes(logits: tf.Tensor) -> int:
    classes = logits.shape[-1]
    if classes is None:
        raise InputError(
            "must give logits whose number of classes is known where a graph is built: "
            "tf.ensure_shape(logits, [None, classes])",
            "logits_fn",
        )
    if classes < _LEAST_CLASSES:
        instead = "apgd with the objective dlr" if classes == 3 else "apgd"
        raise InputError(
            f"apgd_targeted needs {_LEAST_CLASSES} classes, the network tells {classes} apart; "
            f"choose {instead}",
            "attack",
        )
    return classes


def _in_turn(
    ascent: _Ascent,
    images: tf.Tensor,
    epsilon,
    keys: tf.Tensor,
    runs: int,
    aims_of: Callable[[tf.Tensor], tuple[tf.Tensor, ...]],
) -> Found:
    """Ascend in several runs, each from a start of its own, those that still stand.

    Args:
        aims_of: the number of a run -> what the objectives of its images are made of.
    """
    reach = radius(epsilon, images.dtype)

    def run(number, found, most, best):
        rows = rows_where(~found.fooled)
        clean, own, aims = rows_of(rows, (images, keys, aims_of(number)))
        noise = draws.of_images(draws.uniform_of, own, number, tf.shape(images)[1:])
        # As published: each image's largest value is as far from it as epsilon allows.
        noise = tf.cast(noise, images.dtype)
        noise = tf.math.divide_no_nan(
            noise, tf.reduce_max(tf.abs(noise), axis=[1, 2, 3], keepdims=True)
        )
        lowest, highest = bounds(clean, epsilon)
        start = tf.clip_by_value(clean + reach * noise, lowest, highest)
        new, wrong, values = ascent(start, lowest, highest, aims, reach)
        better = _better((wrong, values), rows_of(rows, (most, best)))
        chosen, places = rows_where(better), rows_among(rows, better)
        spent = Found(
            put(found.images, places, rows_of(chosen, new.images)),
            put(found.fooled, rows, new.fooled),
            put(found.gradients, rows, rows_of(rows, found.gradients) + new.gradients),
            put(found.forwards, rows, rows_of(rows, found.forwards) + new.forwards),
        )
        most = put(most, places, rows_of(chosen, wrong))
        best = put(best, places, rows_of(chosen, values))
        return number + 1, spent, most, best

    none = tf.zeros([tf.shape(images)[0]], tf.int32)
    found = Found(images, none > 0, none, none)
    lowest_value = tf.fill([tf.shape(images)[0]], -tf.constant(float("inf"), tf.float64))
    _, found, *_ = tf.while_loop(
        lambda number, found, *_: (number < runs) & ~tf.reduce_all(found.fooled),
        run,
        (tf.constant(0), found, none, lowest_value),
    )
    return found


def _better(found: tuple[tf.Tensor, tf.Tensor], before: tuple[tf.Tensor, tf.Tensor]) -> tf.Tensor:
    """Whether more passes of an image are wrong than of another, or as many and it has the larger
    objective; both as pairs of numbers an image, (n,).
    """
    return (found[0] > before[0]) | ((found[0] == before[0]) & (found[1] > before[1]))


class _Standing(NamedTuple):
    """What the images that stand take from one iterate to the next, (n, ...).

    Attributes:
        places: in the batch.
        aims: what their objectives are made of.
        lowest, highest: bounds of the image.
        images, before: this iterate and the one before.
        best, best_gradient, best_value: the iterate with the largest objective, what is there.
        value: the objective at the iterate before.
        rises: steps since the last checkpoint at which the objective rose.
        stride: the step size, in units of [0, 1], (n, 1, 1, 1).
        halved: whether the last checkpoint halved it.
        then: the largest objective at the last checkpoint.
        worst: where several passes make a step, of the iterate that most of them got wrong: the
            image, how many, and its objective; else empty.
    """

    places: Rows
    aims: tuple[tf.Tensor, ...]
    lowest: tf.Tensor
    highest: tf.Tensor
    images: tf.Tensor
    before: tf.Tensor
    best: tf.Tensor
    best_gradient: tf.Tensor
    best_value: tf.Tensor
    value: tf.Tensor
    rises: tf.Tensor
    stride: tf.Tensor
    halved: tf.Tensor
    then: tf.Tensor
    worst: tuple[tf.Tensor, ...]


class _Ascent:
    """One run of algorithm 1.

    Args:
        logits_fn: images in [0, 1] -> logits.
        make: what an image aims at -> its objective.
        iterations: steps.
        average: passes that make one step.
    """

    def __init__(self, logits_fn: LogitsFn, make: Callable, iterations: int, average: int):
        self.logits_fn, self.make = logits_fn, make
        self.iterations, self.average = int(iterations), int(average)
        # How many steps since the last checkpoint; 0 where there is none.
        self.widths = [0] * self.iterations
        last = 0
        for place in checkpoints(self.iterations):
            self.widths[place], last = place - last, place

    def __call__(self, start, lowest, highest, aims, reach) -> tuple[Found, tf.Tensor, tf.Tensor]:
        """Ascend from a start, (n, H, W, C), n at least 1.

        Returns:
            ``Found``, of each image that stands the best iterate; how many of its passes got that
            wrong, (n,) int32; and its objective, (n,) float64.
        """
        count = tf.shape(start)[0]
        none = tf.zeros([count], tf.int32)
        least = tf.fill([count], -tf.constant(float("inf"), tf.float64))
        standing = _Standing(
            places=rows_where(none == 0),
            aims=aims,
            lowest=lowest,
            highest=highest,
            images=start,
            before=start,
            best=start,
            best_gradient=tf.zeros_like(start),
            best_value=least,
            value=-least,  # at the start nothing rises
            rises=tf.zeros([count], tf.int32),
            stride=tf.fill([count, 1, 1, 1], 2 * reach),
            halved=tf.zeros([count], tf.bool),
            then=least,
            worst=(start, none - 1, least) if self.average > 1 else (),
        )
        found = Found(start, none > 0, none, none)
        variables = (tf.constant(0), standing, found)
        shapes = tf.nest.map_structure(lambda part: part.shape, variables)
        if not isinstance(standing.places, Masked):
            # Images leave, so the number of those that stand is no constant of the loop.
            leaving = tf.nest.map_structure(
                lambda part: tf.TensorShape([None, *part.shape[1:]]), standing
            )
            shapes = shapes[0], leaving, shapes[2]
        _, standing, found = tf.while_loop(
            lambda number, standing, _: (number < self.iterations) & are_some(standing.places),
            self._step,
            variables,
            shape_invariants=shapes,
        )
        # No network is given nothing.
        all_wrong = self.average * tf.cast(found.fooled, tf.int32)
        return tf.cond(
            are_some(standing.places),
            lambda: self._finished(standing, found),
            lambda: (found, all_wrong, least),
        )

    def _step(self, number, standing: _Standing, found: Found):
        wrong, values, gradients = self._look(standing.images, standing.aims, gradient=True)
        surely = wrong == self.average
        fallen, places = rows_where(surely), rows_among(standing.places, surely)
        passes = tf.fill(tf.shape(surely), self.average * (number + 1))
        found = found._replace(
            images=put(found.images, places, rows_of(fallen, standing.images)),
            fooled=put(found.fooled, places, rows_of(fallen, surely)),
            gradients=put(found.gradients, places, rows_of(fallen, passes)),
        )
        left, places = rows_where(~surely), rows_among(standing.places, ~surely)
        standing, wrong, values, gradients = rows_of(left, (standing, wrong, values, gradients))
        standing = standing._replace(places=places)
        standing = self._noted(standing, wrong, values)
        standing, gradients = self._judged(number, standing, values, gradients)
        return number + 1, _moved(number, standing, gradients), found

    def _noted(self, standing: _Standing, wrong, values) -> _Standing:
        """Keep the iterates that most passes got wrong, where there are several."""
        if self.average == 1:  # what is wrong has left
            return standing
        image, before = standing.worst[0], standing.worst[1:]
        better = _better((wrong, values), before)
        image = tf.where(each_pixel(better), standing.images, image)
        wrong, values = tf.where(better, wrong, before[0]), tf.where(better, values, before[1])
        return standing._replace(worst=(image, wrong, values))

    def _judged(self, number, standing: _Standing, values, gradients):
        """Keep the best iterates; at a checkpoint halve the steps of those that go on badly."""
        better = values > standing.best_value
        standing = standing._replace(
            best=tf.where(each_pixel(better), standing.images, standing.best),
            best_gradient=tf.where(each_pixel(better), gradients, standing.best_gradient),
            best_value=tf.where(better, values, standing.best_value),
            rises=standing.rises + tf.cast(values > standing.value, tf.int32),
            value=values,
            # The start counts as a checkpoint.
            then=tf.where(number == 0, values, standing.then),
        )
        width = tf.gather(self.widths, number)

        def halved():
            few = 4 * standing.rises < 3 * width
            stuck = ~standing.halved & (standing.best_value <= standing.then)
            bad = few | stuck
            after = standing._replace(
                images=tf.where(each_pixel(bad), standing.best, standing.images),
                value=tf.where(bad, standing.best_value, standing.value),
                rises=tf.zeros_like(standing.rises),
                stride=tf.where(each_pixel(bad), standing.stride / 2, standing.stride),
                halved=bad,
                then=standing.best_value,
            )
            return after, tf.where(each_pixel(bad), standing.best_gradient, gradients)

        return tf.cond(width > 0, halved, lambda: (standing, gradients))

    def _finished(self, standing: _Standing, found: Found) -> tuple[Found, tf.Tensor, tf.Tensor]:
        """Look at the last iterates, and give of those that stand the best."""
        wrong, values, _ = self._look(standing.images, standing.aims, gradient=False)
        before = standing.worst or (standing.best, tf.zeros_like(wrong), standing.best_value)
        last = _better((wrong, values), before[1:])
        passes = tf.fill(tf.shape(wrong), self.average)
        best = tf.where(each_pixel(last), standing.images, before[0])
        wrong, values = tf.where(last, wrong, before[1]), tf.where(last, values, before[2])
        found = Found(
            put(found.images, standing.places, best),
            put(found.fooled, standing.places, 2 * wrong > self.average),
            put(found.gradients, standing.places, self.iterations * passes),
            put(found.forwards, standing.places, passes),
        )
        many = self.average * tf.cast(found.fooled, tf.int32)
        least = tf.zeros([tf.shape(found.fooled)[0]], tf.float64)
        return found, put(many, standing.places, wrong), put(least, standing.places, values)

    def _look(self, images, aims, *, gradient: bool):
        """Return how many passes misclassify each, objectives in float64, and their gradients.

        Of several passes the objectives and gradients are means.
        """
        objective = over_members(self.make(aims))

        def once():
            with tf.GradientTape(watch_accessed_variables=False) as tape:
                tape.watch(images)
                logits = full_precision(self.logits_fn(images))
                values = objective(logits)
            slope = tf.zeros_like(images)
            if gradient:
                # A network without gradients does not move its images.
                slope = tape.gradient(values, images, unconnected_gradients="zero")
            wrong = tf.cast(misclassified(logits, aims[0]), tf.int32)
            return wrong, tf.cast(values, tf.float64), slope

        if self.average == 1:
            return once()

        def again(number, *sums):
            return number + 1, *map(tf.add, sums, once())

        none = tf.zeros([tf.shape(images)[0]], tf.int32)
        _, wrong, values, slope = tf.while_loop(
            lambda number, *_: number < self.average,
            again,
            (tf.constant(0), none, tf.cast(none, tf.float64), tf.zeros_like(images)),
        )
        return wrong, values / self.average, slope / self.average


def _moved(number, standing: _Standing, gradients: tf.Tensor) -> _Standing:
    """Take one step, with the momentum of the one before."""
    # What is no number says nothing of a direction.
    signs = tf.sign(tf.where(tf.math.is_nan(gradients), tf.zeros_like(gradients), gradients))
    own = tf.cast(tf.where(number == 0, 1.0, _MOMENTUM), gradients.dtype)
    images, limits = standing.images, (standing.lowest, standing.highest)
    aim = tf.clip_by_value(images + standing.stride * signs, *limits)
    moved = images + own * (aim - images) + (1 - own) * (images - standing.before)
    return standing._replace(images=tf.clip_by_value(moved, *limits), before=images)
