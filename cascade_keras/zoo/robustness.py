"""What is kept of a network's reports in its preset: robustness.json. Needs no TensorFlow."""

from __future__ import annotations

import itertools
import pathlib
from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Literal

import msgspec
from msgspec import Meta

from cascade_keras import presets, records
from cascade_keras.attacks.specs import ATTACKS, MINIMAL
from cascade_keras.errors import InputError
from cascade_keras.evaluation.asked import name_of
from cascade_keras.evaluation.cells import CLEAN
from cascade_keras.evaluation.checklist import FAIL, NOT_TRIED, PASS
from cascade_keras.recorded import ResultRecord
from cascade_keras.records import Count, Epsilon, Index, NotNegative, PerCent, Record, Sha256, Text

FORMAT = 1


class WorstRecord(Record):
    """How many images withstand every attack of a report at an epsilon."""

    epsilon: Epsilon
    correct: Index
    examples: Count
    accuracy: PerCent


class CheckRecord(Record):
    """An item of the checklist, see ``evaluation.checklist.Item``."""

    check: Text
    title: Text
    verdict: Literal[PASS, FAIL, NOT_TRIED]
    number: float | None
    unit: str
    examples: Index
    text: str


class ReportRecord(Record):
    """A report that the numbers are of.

    Attributes:
        examples: the first so many images of the split.
        seed: of its attacks.
        seconds: what it took, of all of its networks.
        versions: of the packages.
    """

    examples: Count
    seed: Index
    seconds: NotNegative | None
    versions: dict[str, str]


class Robustness(Record, kw_only=True):
    """robustness.json: accuracies of a network under attack, white box, and what to think of them.

    Attributes:
        format: of the file.
        dataset, fingerprint, split: of the images.
        weights_hash: by which reports know the network.
        results: of each attack and epsilon, of the reports and of the end of the training.
        worst: of each epsilon.
        diagnosis: a sentence for each finding; None where nobody has looked.
        checklist: of each check the item that says most.
        reports: that all this is of.
    """

    format: Annotated[int, Meta(ge=1, le=FORMAT)] = FORMAT
    dataset: Text
    fingerprint: Sha256
    split: Literal["test", "train"]
    weights_hash: Sha256
    results: Annotated[list[ResultRecord], Meta(min_length=1)]
    worst: list[WorstRecord]
    diagnosis: list[Text] | None
    checklist: list[CheckRecord]
    reports: Annotated[list[ReportRecord], Meta(min_length=1)]

    def find(self, attack: str, epsilon: float = 0.0) -> ResultRecord | None:
        """Return the result of an attack, None where it was not measured."""
        cells = (r for r in self.results if (r.attack, r.epsilon) == (attack, epsilon))
        return next(cells, None)

    def strongest(self, epsilon: float) -> ResultRecord | None:
        """Return the result of the single attack that leaves least, None where there is none.

        Of several that leave the same the first counts. Attacks that look for minimal epsilons, of
        fewer images, count where there is no other.
        """
        there = [r for r in self.results if r.epsilon == epsilon and r.attack != CLEAN]
        whole = [r for r in there if not _is_minimal(r.attack)]
        return min(whole or there, key=lambda r: r.accuracy, default=None)

    @property
    def epsilons(self) -> list[float]:
        """Of the attacks, ascending."""
        return sorted({r.epsilon for r in self.results if r.attack != CLEAN})

    def as_json(self) -> records.Values:
        """Return the fields as robustness.json has them."""
        return msgspec.to_builtins(self)


def read(folder: pathlib.Path) -> Robustness:
    """Return the robustness.json of a preset.

    Raises:
        InputError: it is not there, or cannot be read.
    """
    file = folder / presets.ROBUSTNESS
    try:
        return records.read(file, Robustness)
    except FileNotFoundError as error:
        raise InputError(f"{file} does not exist; restore it") from error


def check(content: Mapping[str, Any], where: str) -> None:
    """Refuse a report that a preset cannot have.

    Args:
        content: of report.json.
        where: what the report is called in messages.

    Raises:
        InputError: one of other networks' images, of noisy inputs, or of training images.
    """
    for wrong, what in (
        (content["sources"], "black box, of other networks' images"),
        (content["inference_noise"], "of images with random signs"),
        (content["split"] != "test", f"of the {content['split']} split"),
    ):
        if wrong:
            raise InputError(f"{where} is {what}; name one white box of the test split")


def of_report(
    content: Mapping[str, Any], target: str, seconds: float | None = None, where: str = "the report"
) -> Robustness:
    """Return what a report says of one of its targets.

    Args:
        content: of report.json.
        target: its name in the report.
        seconds: that the report took.
        where: what the report is called in messages.

    Raises:
        InputError: it holds what cannot be true.
    """

    def own(found: Sequence[Mapping]) -> list[Mapping]:
        return [record for record in found if record["target"] == target]

    (network,) = (each for each in content["networks"] if each["name"] == target)
    found = {
        "dataset": content["dataset"],
        "fingerprint": content["dataset_fingerprint"],
        "split": content["split"],
        "weights_hash": network["weights_hash"],
        "results": [_taken(record, ResultRecord) for record in own(content["results"])],
        "worst": [_taken(record, WorstRecord) for record in own(content["worst_case"])],
        "diagnosis": content["diagnosis"]
        and [r["sentence"].partition(": ")[2] for r in own(content["diagnosis"]["findings"])],
        "checklist": [_taken(record, CheckRecord) for record in own(content.get("checklist", ()))],
        "reports": [
            {
                "examples": content["examples"],
                "seed": content["seed"],
                "seconds": seconds,
                "versions": content["versions"],
            }
        ],
    }
    try:
        return msgspec.convert(found, Robustness)
    except msgspec.ValidationError as error:
        raise InputError(f"{where}: {records.in_words(error)}; run its command again") from error


def merged(several: Sequence[Robustness], own: Sequence[Mapping] = ()) -> Robustness:
    """Return what reports of one network say together.

    Args:
        several: a report each.
        own: the results of the network's run, as metrics.json has them: of more images than
            reports, of the attacks of its settings.

    Of each attack and epsilon the result of the most images counts, of the images that withstand
    all attacks the smallest share, of a check the item that was tried on the most images.
    """
    results: dict[tuple, ResultRecord] = {}
    worst: dict[float, WorstRecord] = {}
    checks: dict[str, CheckRecord] = {}
    of_run = [msgspec.convert(record, ResultRecord) for record in own]
    for result in itertools.chain(*(each.results for each in several), of_run):
        place = (result.attack, result.epsilon)
        results[place] = max(results.get(place, result), result, key=lambda r: r.examples)
    for each in several:
        for record in each.worst:
            place = record.epsilon
            worst[place] = min(worst.get(place, record), record, key=lambda r: r.accuracy)
        for item in each.checklist:
            before = checks.get(item.check, item)
            checks[item.check] = max(before, item, key=_says)
    said = [each.diagnosis for each in several if each.diagnosis is not None]
    return msgspec.structs.replace(
        several[0],
        results=sorted(results.values(), key=_place),
        worst=[worst[epsilon] for epsilon in sorted(worst)],
        diagnosis=list(dict.fromkeys(itertools.chain(*said))) if said else None,
        checklist=list(checks.values()),
        reports=[report for each in several for report in each.reports],
    )


def _place(result: ResultRecord) -> tuple[float, int]:
    """Return what results are sorted by: clean images first, then by epsilon as the table is."""
    order = [CLEAN, *ATTACKS, name_of(result.attack)]
    return result.epsilon, order.index(name_of(result.attack))


def _says(item: CheckRecord) -> tuple[bool, int, bool]:
    return item.verdict != NOT_TRIED, item.examples, item.verdict == FAIL


def _taken(record: Mapping, kind: type[msgspec.Struct]) -> dict[str, Any]:
    """Return the fields of a report's record that are kept."""
    values = {name: record[name] for name in kind.__struct_fields__ if name in record}
    return {name: value for name, value in values.items() if (name, value) != ("options", {})}


def _is_minimal(attack: str) -> bool:
    row = ATTACKS.get(name_of(attack))
    return row is not None and row.kind == MINIMAL
