"""The leaderboard: networks of a dataset side by side, those first that AutoAttack leaves most of.

docs/zoo.md is that of the package's presets; ``bin/evaluate --target=zoo:all`` measures them again
and writes its own. Needs no TensorFlow.
"""

from __future__ import annotations

import dataclasses
import os
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

from cascade_keras import presets
from cascade_keras.attacks.specs import in_words
from cascade_keras.evaluation.cells import CLEAN
from cascade_keras.evaluation.tables import plain, table
from cascade_keras.files import write_text
from cascade_keras.printed import print_table
from cascade_keras.records import Values
from cascade_keras.zoo import robustness
from cascade_keras.zoo.robustness import Robustness

FILE = "leaderboard.md"
# Beside clean: the paper's attack, and two that are stronger.
ATTACKS = ("iter_fgsm", "pgd", "autoattack")
_RANKED = ("autoattack", "pgd", "iter_fgsm")
_HEADINGS = ("network", "clean", "iter_fgsm (the paper's)", "pgd", "AutoAttack", "strongest",
             "n", "steps", "seed", "training, s")  # fmt: skip
_EXPLAINED = """\
Accuracy in per cent of the first n test images, white box, true labels, epsilon in 0..255. A number
after a slash is the number of images where it is another. *iter_fgsm* is the paper's attack,
*strongest* the single attack of those measured that leaves least. Sorted by AutoAttack: the paper's
attack overstates what these networks withstand."""
_PAGE = f"""\
# The zoo: networks that come with the package

```python
import cascade_keras as ck

network = ck.load("mnist-resnet20-pivot")  # a Keras model of images in [0, 1]
ck.zoo.names("mnist")
```

`zoo:NAME` stands wherever a network is named by a path: `--target`, `--source`, `--cascade_source`,
`--ensemble_source`, `--init_from`, `bin/analyze --model`, `bin/export --run`, and `load_source` in
Python. A preset is a folder as keras-hub has them, with `robustness.json`; the SHA-256 of its
weights is compared whenever it is used. `bin/zoo --run=runs/NAME --report=reports/NAME` makes one
of a run.

```
bin/evaluate --target=zoo:all --dataset=digits --attack=iter_fgsm,pgd,autoattack
```

measures all of a dataset and ends with this leaderboard; `bin/zoo --leaderboard=docs/zoo.md` makes
this page of what is recorded of them.

{_EXPLAINED}

"""


@dataclasses.dataclass(frozen=True)
class Entry:
    """A network of the leaderboard.

    Attributes:
        name: what it is called.
        robustness: what is known of it.
        steps, seed, seconds: of its training; None where that is not recorded.
        link: to its model card, for a page.
    """

    name: str
    robustness: Robustness
    steps: int | None = None
    seed: int | None = None
    seconds: float | None = None
    link: str | None = None

    @classmethod
    def of_metadata(cls, name: str, metadata: Mapping, found: Robustness, **rest) -> Entry:
        """Return the entry of a network with such a metadata.json."""
        known = {key: metadata.get(key) for key in ("steps", "seed", "seconds")}
        return cls(name, found, **known, **rest)


def entries(dataset: str | None = None) -> list[Entry]:
    """Return what is recorded of the package's presets.

    Args:
        dataset: of those that learned it alone.

    Raises:
        InputError: a file cannot be read.
    """
    found = []
    for name in presets.names(dataset):
        folder = presets.folder_of(name)
        metadata = presets.read(folder, Values)
        link = f"../cascade_keras/zoo/presets/{name}/{presets.CARD}"
        measured = robustness.read(folder)
        found.append(Entry.of_metadata(name, metadata, measured, link=link))
    return found


def of_report(content: Mapping[str, Any]) -> list[Entry]:
    """Return the entries of the targets of a report.

    Args:
        content: of report.json.

    Raises:
        InputError: see ``robustness.of_report``.
    """
    found = []
    for network in (network for network in content["networks"] if network["target"]):
        measured = robustness.of_report(content, network["name"])
        path = network["path"]
        recipe = network.get("recipe") or {}
        known = {key: recipe.get(key) for key in ("steps", "seed")}
        if presets.is_named(path):
            known = presets.read(presets.folder_of(path), Values)
        found.append(Entry.of_metadata(network["name"], known, measured))
    return found


def ranked(several: Sequence[Entry], epsilon: float) -> list[Entry]:
    """Return entries in their order at an epsilon: AutoAttack decides, then the weaker attacks."""

    def key(entry: Entry) -> tuple:
        found = [entry.robustness.find(attack, epsilon) for attack in _RANKED]
        found.append(entry.robustness.find(CLEAN))
        return (*(-1.0 if r is None else r.accuracy for r in found),)

    there = [entry for entry in several if entry.robustness.strongest(epsilon) is not None]
    return sorted(sorted(there, key=lambda entry: entry.name), key=key, reverse=True)


def grids(several: Sequence[Entry]) -> list[tuple[str, list[str], list[list[str]]]]:
    """Return a title, headings and rows for each dataset and epsilon."""
    found = []
    for dataset in dict.fromkeys(entry.robustness.dataset for entry in several):
        these = [entry for entry in several if entry.robustness.dataset == dataset]
        for epsilon in _epsilons(these):
            rows = [_row(entry, epsilon) for entry in ranked(these, epsilon)]
            found.append((f"{dataset}, epsilon {epsilon:g}", list(_HEADINGS), rows))
    return found


def _epsilons(several: Sequence[Entry]) -> list[float]:
    """Return those at which an attack was measured that has a column; all where none was."""
    known = [(entry.robustness, e) for entry in several for e in entry.robustness.epsilons]
    told = {e for found, e in known if any(found.find(attack, e) for attack in ATTACKS)}
    return sorted(told or {e for _, e in known})


def _row(entry: Entry, epsilon: float) -> list[str]:
    known = entry.robustness
    clean, strongest = known.find(CLEAN), known.strongest(epsilon)
    count = clean.examples if clean else known.reports[0].examples

    def cell(result) -> str:
        if result is None:
            return ""
        few = "" if result.examples == count else f" / {result.examples:,}"
        return f"{result.accuracy:.1f}{few}"

    return [
        entry.name,
        cell(clean),
        *(cell(known.find(attack, epsilon)) for attack in ATTACKS),
        f"{strongest.attack} {cell(strongest)}",
        f"{count:,}",
        "" if entry.steps is None else f"{entry.steps:,}",
        "" if entry.seed is None else str(entry.seed),
        "" if entry.seconds is None else f"{entry.seconds:,.0f}",
    ]


def options(several: Sequence[Entry]) -> str:
    """Return the options of the attacks, such as ``pgd: steps 40, restarts 5``."""
    used: dict[str, dict[str, None]] = {}
    for entry in several:
        for result in entry.robustness.results:
            if result.attack in ATTACKS and result.options:
                used.setdefault(result.attack, {})[in_words(result.options)] = None
    said = ((attack, used[attack]) for attack in ATTACKS if attack in used)
    return "; ".join(f"{attack}: {' or '.join(words)}" for attack, words in said)


def markdown(several: Sequence[Entry]) -> str:
    """Return the tables as Markdown, and the options of the attacks."""
    links = {plain(entry.name): entry.link for entry in several if entry.link}
    parts = []
    for title, headings, rows in grids(several):
        text = table(headings, rows)
        for name, link in links.items():
            text = text.replace(f"| {name} |", f"| [{name}]({link}) |")
        parts.append(f"## {plain(title)}\n\n{text}")
    told = options(several)
    return "\n\n".join([*parts, *([plain(told) + "."] if told else [])]) + "\n"


def page() -> str:
    """Return docs/zoo.md: the leaderboard of the package's presets."""
    return _PAGE + markdown(entries())


def write(several: Sequence[Entry], report: pathlib.Path) -> pathlib.Path:
    """Write the leaderboard of a report's targets into its directory, and return the file.

    Args:
        several: of the report, see ``of_report``.
        report: the directory.
    """
    file = report / FILE
    write_text(file, f"# Leaderboard\n\n{_EXPLAINED}\n\n{markdown(several)}")
    return file


def show(several: Sequence[Entry], console=None) -> None:
    """Print the tables."""
    for title, headings, rows in grids(several):
        print_table(headings, rows, fixed_columns=1, title=title, console=console)
    if told := options(several):
        print(told)


def write_page(file: str | os.PathLike) -> None:
    """Write ``page`` to a file."""
    write_text(pathlib.Path(file), page())
