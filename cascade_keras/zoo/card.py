"""The model card of a preset, made of its metadata and robustness. Needs no TensorFlow."""

from __future__ import annotations

import contextlib
import shlex
from collections.abc import Mapping, Sequence
from typing import Any

from cascade_keras.attacks.specs import in_words
from cascade_keras.data.specs import DATASETS
from cascade_keras.errors import InputError
from cascade_keras.evaluation.cells import CLEAN
from cascade_keras.evaluation.tables import plain, table
from cascade_keras.runs.settings import TrainingSettings
from cascade_keras.settings import as_flags
from cascade_keras.zoo.robustness import Robustness

_NOTHING = "nothing suspicious in these numbers, which does not prove robustness"
# How settings begin that do not say how a network was trained.
_NOT_THE_RECIPE = ("name", "recipe", "eval_")
CITATION = """\
@inproceedings{na2018cascade,
  title     = {Cascade Adversarial Machine Learning Regularized with a Unified Embedding},
  author    = {Na, Taesik and Ko, Jong Hwan and Mukhopadhyay, Saibal},
  booktitle = {International Conference on Learning Representations (ICLR)},
  year      = {2018}
}"""


def card(metadata: Mapping[str, Any], measured: Robustness) -> str:
    """Return the README.md of a preset.

    Args:
        metadata: what its metadata.json holds.
        measured: what its robustness.json holds.
    """
    name, recipe = metadata["name"], metadata["recipe"]
    parts = [
        f"# {plain(name)}",
        f"{plain(recipe['model'])} for {plain(measured.dataset)}, trained by the loss "
        f"{plain(recipe['loss'])}.",
        f'```python\nimport cascade_keras as ck\n\nnetwork = ck.load("{name}")\n```',
        f"A Keras model from images {_shape(metadata['input_shape'])}, float32 in [0, 1], to "
        f"`embedding` ({metadata['embedding_size']}) and `logits` ({metadata['num_classes']}); "
        f"`zoo:{name}` is its name in programs." + _crop(metadata["input_shape"], measured.dataset),
        "## Training",
        table(["", ""], _training(metadata), left=2),
        f"```\n{command(recipe)}\n```",
        "## Robustness",
        f"White box, first test images, true labels, epsilon in 0..255, seed of the attacks "
        f"{', '.join(sorted({str(report.seed) for report in measured.reports}))}.",
        table(["attack", "epsilon", "accuracy, %", "images", "options"], _results(measured)),
        *_worst(measured),
        "## Can these numbers be trusted?",
        *_trust(measured),
        "## How to cite",
        f"```bibtex\n{CITATION}\n```",
        "The network is one of cascade_keras, "
        f"version {metadata['cascade_keras_version']}, licence Apache-2.0.",
    ]
    return "\n\n".join(parts) + "\n"


def command(recipe: Mapping[str, Any]) -> str:
    """Return the command that trains a network of this recipe, but for its name and places."""
    given = {key: recipe[key] for key in ("dataset", "model", "loss", "steps", "seed")}
    usual = TrainingSettings(**given)
    with contextlib.suppress(InputError):  # of data that are not here
        usual = usual.resolved()
    known = {key for key in usual.decisive() if not key.startswith(_NOT_THE_RECIPE)}
    told = usual.replace(**{k: v for k, v in recipe.items() if k in known and v is not None})
    flags = [*(f"--{key}={value}" for key, value in given.items()), *as_flags(told, usual)]
    return " \\\n    ".join(["bin/train", *map(shlex.quote, flags)])


def _training(metadata: Mapping[str, Any]) -> list[list[str]]:
    recipe, dataset = metadata["recipe"], metadata["dataset"]
    began = recipe.get("init_from")
    learned = [source["name"] for source in metadata.get("learned_from", ())]
    rows = {
        "data": f"{dataset['name']}, SHA-256 {dataset['fingerprint'][:16]}",
        "steps": _steps(metadata["steps"], dataset["name"]),
        "seed": metadata["seed"],
        "epsilon": recipe.get("max_epsilon") and f"up to {recipe['max_epsilon']:g} of 255",
        "began with": began and f"the weights of {began}",
        "images of": ", ".join(learned),
        "seconds": None if metadata.get("seconds") is None else f"{metadata['seconds']:,.0f}",
        "how": metadata.get("note"),
        "parameters": f"{metadata['parameter_count']:,}",
        "packages": ", ".join(f"{k} {v}" for k, v in metadata["versions"].items()),
    }
    return [[key, str(value)] for key, value in rows.items() if value not in (None, "")]


def _steps(steps: int, dataset: str) -> str:
    if dataset not in DATASETS:
        return f"{steps:,}"
    published = DATASETS[dataset].steps
    share = "" if steps == published else f", {steps / published:.0%} of the schedule"
    return f"{steps:,}{share}"


def _results(measured: Robustness) -> list[list[str]]:
    return [
        [
            result.attack,
            "" if result.attack == CLEAN else f"{result.epsilon:g}",
            f"{result.accuracy:.1f}",
            f"{result.examples:,}",
            plain(in_words(result.options or {})),
        ]
        for result in measured.results
    ]


def _worst(measured: Robustness) -> list[str]:
    return [
        f"{record.accuracy:.1f} % of {record.examples:,} images withstand all attacks at epsilon "
        f"{record.epsilon:g} that were measured together."
        for record in measured.worst
    ]


def _trust(measured: Robustness) -> list[str]:
    said = measured.diagnosis
    parts = []
    if said is None:
        parts.append("No diagnosis was made.")
    else:
        parts.append("\n".join(f"- {plain(sentence)}" for sentence in said or [_NOTHING]))
    if measured.checklist:
        rows = [
            [
                item.title,
                item.verdict,
                "" if item.number is None else f"{item.number:.3g} {item.unit}".strip(),
                f"{item.examples:,}" if item.examples else "",
            ]
            for item in measured.checklist
        ]
        parts.append(table(["check", "verdict", "number", "images"], rows, left=2))
    return parts


def _crop(seen: Sequence[int], dataset: str) -> str:
    """Return a sentence of what a network sees of its dataset's images, where not all."""
    stored = DATASETS[dataset].image_shape if dataset in DATASETS else tuple(seen)
    if stored == tuple(seen):
        return ""
    sizes = (f"{shape[0]}x{shape[1]}" for shape in (seen, stored))
    return " It sees the centre, {}, of the dataset's {} images.".format(*sizes)


def _shape(shape) -> str:
    return "(batch, " + ", ".join(map(str, shape)) + ")"
