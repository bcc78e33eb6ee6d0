"""Whether a finished report holds: a share of it is computed again, from weights and seeds.

    bin/evaluate --verify=reports/x --verify_share=0.1

What report.json says has to follow from the predictions beside it, all of it; and these have to be
what the same networks, known by the hashes of their weights, give once more for the same images.
Nothing is written.
"""

from __future__ import annotations

import dataclasses
import itertools
import json
import os
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np

from cascade_keras import data, own_code
from cascade_keras.errors import InputError
from cascade_keras.evaluation import tasks
from cascade_keras.evaluation.evaluation import Evaluation
from cascade_keras.evaluation.report import Report
from cascade_keras.evaluation.settings import EvaluationSettings
from cascade_keras.evaluation.stores import DiskArrays, is_missing
from cascade_keras.provenance import members_of, version_of
from cascade_keras.sources import Network

# On another machine sums are rounded otherwise, which changes the class of an image on a boundary.
MOST_DIFFERENT = 0.01  # of what was computed again of an array
_RELATIVE, _ABSOLUTE = 1e-2, 1e-3  # of numbers that are no classes


@dataclasses.dataclass(frozen=True)
class Verified:
    """What came of computing a part of a report again.

    Attributes:
        path: of the report.
        share: how much was computed again, of all gradients.
        batches, of_batches: the same in batches.
        compared, different: predictions and other numbers that were, and those that are others now.
        problems: a sentence for each thing that does not hold.
    """

    path: str
    share: float
    batches: int
    of_batches: int
    compared: int
    different: int
    problems: tuple[str, ...]

    @property
    def holds(self) -> bool:
        """Whether there are no problems."""
        return not self.problems

    def __str__(self) -> str:
        found = (
            f"{self.path}: computed {100 * self.share:.1f} % of its gradients again "
            f"({self.batches} of {self.of_batches} batches): {self.different} of {self.compared} "
            "numbers differ"
        )
        verdict = "does not hold" if self.problems else "holds"
        return "\n".join([found, *self.problems, f"{self.path} {verdict}"])


def verify(
    path: str | os.PathLike,
    share: float = 0.1,
    *,
    targets: Sequence[Network] | None = None,
    sources: Sequence[Network | Sequence[Network]] | None = None,
    dataset: data.Dataset | None = None,
    trust_source: bool = False,
    progress: Callable[[int], None] = lambda per_cent: None,
    **settings: Any,
) -> Verified:
    """Compute a share of a finished report again and say whether it holds.

    Whole batches are computed, as an image's random numbers may depend on its place in one: those
    of the clean images first, then others at random until there is enough, at least one. An array
    holds if at most ``MOST_DIFFERENT`` of what was computed differs.

    Args:
        path: of the report, which stays as it is.
        share: how much is computed again, of all gradients, above 0 and at most 1.
        targets, sources, dataset: those that the report was made with, where they were in memory;
            as for ``Evaluation``.
        trust_source: run networks that do more than compute, and Python code that the report names.
        progress: called with the per cent of it that are done.
        **settings: other operational ones of ``EvaluationSettings``, such as ``data_dir``.

    Raises:
        InputError: there is no finished report, or its networks, data or settings are not there or
            are others by now: it cannot be said whether it holds.

    Example::

        found = verify("reports/cascade", share=0.2)
        print(found)
        assert found.holds
    """
    share = EvaluationSettings(verify_share=share).verify_share
    report = Report(path)
    config, content = report.read()
    told = _settings(report, config, content, trust_source, **settings)
    evaluation = Evaluation(told, targets=targets, sources=sources, dataset=dataset)
    measuring = evaluation.measuring
    report.compare(measuring.plan.config(), "it cannot be verified with these")
    if measuring.randomised:
        raise InputError(
            f"{', '.join(measuring.randomised)} draws random numbers and takes the same images for "
            "other classes each time, so that the report cannot be computed again",
            "verify",
        )
    arrays = DiskArrays(report.arrays.path, writable=False)
    problems: list[str] = []
    try:
        written = json.loads(json.dumps(measuring.content(measuring.found(arrays))))
        problems += _what_differs(content, written)
    except InputError as error:  # an array that is damaged or not there
        problems.append(f"predictions: {error.message}")
    plan = measuring.plan
    whole = [(task, batch) for task in plan.tasks for batch in tasks.batches(task)]
    chosen = _chosen(whole, share, plan.asked.seed)
    total = sum(itertools.starmap(tasks.cost, chosen))
    done = 0.0
    counts: dict[str, list[int]] = {}
    for task, batches in itertools.groupby(chosen, key=lambda pair: pair[0]):
        again = measuring.again(task)
        for _, batch in batches:
            progress(int(100 * done / total))
            done += tasks.cost(task, batch)
            for filled, now in zip(tasks.arrays_of(task), again(batch), strict=True):
                try:
                    then = tasks.open_array(filled, arrays)[..., batch]
                except InputError as error:  # said before
                    problems.append(f"predictions: {error.message}")
                    continue
                unlike = int(np.count_nonzero(_differ(now, then, filled.missing)))
                count = counts.setdefault(filled.key, [0, 0])
                count[0] += unlike
                count[1] += then.size
    progress(100)
    for key, (unlike, size) in counts.items():
        if unlike > MOST_DIFFERENT * size:
            problems.append(f"{key}: {unlike} of {size} numbers are others when computed again")
    different, compared = (sum(count[place] for count in counts.values()) for place in (0, 1))
    return Verified(
        str(path),
        total / sum(itertools.starmap(tasks.cost, whole)),
        len(chosen),
        len(whole),
        compared,
        different,
        tuple(dict.fromkeys(problems)),
    )


def _settings(
    report: Report, config: dict, content: dict, trust: bool, **others: Any
) -> EvaluationSettings:
    """Return what the report was told, as far as it does not have Python code run by itself."""
    told = config.get("settings")
    if told is None:
        raise InputError(
            f"{report.path} does not say all that it was told, as earlier versions and evaluate() "
            "in Python leave it; run its bin/evaluate command again, which adds that",
            "verify",
        )
    try:
        told = {**told, **others, "output": str(report.path)}
        settings = EvaluationSettings(**told, trust_source=trust)
    except TypeError as error:
        raise InputError(
            f"{report.path} was told what this version does not know ({error}); use the version "
            "that made it",
            "verify",
        ) from error
    sources = (member for source in settings.source for member in members_of(source))
    named = [settings.dataset or "", *settings.target, *sources]
    code = [text for text in named if own_code.names_function(text)]
    if code and not trust and others.get("dataset") not in code:
        raise InputError(
            f"{report.path} names the Python code {code[0]}; say trust_source to have it run",
            "verify",
        )
    paths = {record.get("name"): record.get("path") for record in content["networks"]}
    targets = [
        _version(given, paths.get(name) or given)
        for given, name in zip(settings.target, config["target"], strict=False)
    ]
    return settings.replace(target=targets)


def _version(given: str, recorded: str) -> str:
    """Return the version of a saved network that was measured, where only the network is named."""
    folder, version = os.path.split(recorded)
    is_version = folder == given.rstrip("/") and version_of(version) is not None
    return recorded if is_version else given  # a run is measured by its name, not by its file


def _chosen(pairs: Sequence[tuple], share: float, seed: int) -> list[tuple]:
    """Return those pairs of a task and a batch that make up a share of the gradients, or more."""
    order = np.random.default_rng(seed).permutation(len(pairs))
    clean: dict[str, int] = {}
    for place in order:
        if getattr(pairs[place][0], "source", "") is None:
            clean.setdefault(pairs[place][0].key, int(place))
    first = list(clean.values())
    rest = [int(place) for place in order if int(place) not in first]
    wanted = share * sum(itertools.starmap(tasks.cost, pairs))
    chosen, spent = first, sum(tasks.cost(*pairs[place]) for place in first)
    for number, place in enumerate(rest):
        if number and spent >= wanted:
            break
        chosen.append(place)
        spent += tasks.cost(*pairs[place])
    return [pairs[place] for place in sorted(chosen)]


def _differ(now: np.ndarray, then: np.ndarray, missing: float) -> np.ndarray:
    """Return which numbers are others now; what was not computed is."""
    if np.issubdtype(then.dtype, np.floating):
        same = np.isclose(now, then, rtol=_RELATIVE, atol=_ABSOLUTE)
    else:
        same = now == then
    return ~same | is_missing(then, missing)


def _what_differs(content: dict, written: dict) -> Iterator[str]:
    """Yield a sentence for each key of report.json that does not follow from the predictions."""
    for key, value in content.items():
        if key not in ("versions", "networks") and written.get(key) != value:
            yield f"report.json: {key} does not follow from its predictions"
