"""A report as tables: Markdown, and the grid that programs print; from what report.json holds."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping, Sequence

from cascade_keras.attacks.specs import in_words
from cascade_keras.evaluation import black_box, checklist, stages
from cascade_keras.evaluation.cells import CLEAN
from cascade_keras.evaluation.summary import gives_images, needs_no_source
from cascade_keras.printed import print_table


def markdown(content: Mapping) -> str:
    """Return the report as Markdown, from what report.json holds."""
    parts = [*warnings(content), _heading(content), *content["notes"], _accuracy_table(content)]
    parts += [_worst_case_table(content), _stages(content), _cw_table(content)]
    parts += [_transfer_table(content)]
    parts += [_black_box(content), _diagnosis(content), _origin(content), _checklist(content)]
    return "\n\n".join(part for part in parts if part) + "\n"


def short_markdown(content: Mapping) -> str:
    """Return what matters most of a report as Markdown: its table and its diagnosis."""
    parts = [*warnings(content), *content["notes"], _accuracy_table(content)]
    parts += [_stages(content), _black_box(content), _cw_table(content), _diagnosis(content)]
    parts += [_checklist(content)]
    return "\n\n".join(part for part in parts if part) + "\n"


def print_report(content: Mapping, console, path: str | os.PathLike | None = None) -> None:
    """Print the tables of a report, from what report.json holds.

    Args:
        console: a rich console.
        path: where the report was written, None where it was not.
    """

    def say(text: str) -> None:
        console.print(text, markup=False)

    for sentence in content.get("warnings", ()):
        say(sentence)
    kind = "black box" if content["sources"] else "white box"
    named = f"{content['dataset']} {content['split']} images" if path else content["dataset"]
    say(
        ("" if path is None else f"{path}: ")
        + f"accuracy in % of {content['examples']:,} {named}, {kind}, epsilon in 0..255"
    )
    headings, rows = grid(content)
    numbers = headings.index("epsilon")
    print_table(headings, rows, text_columns=numbers, fixed_columns=numbers + 1, console=console)
    if content["worst_case"]:
        say(
            "* the strongest attack on the target at this epsilon; all of them: the images that "
            "are classified correctly under every one"
        )
    if options := options_used(content["results"]):
        say(options)
    if black_box.is_in(content):
        say(f"black box: {black_box.explained(content)}")
        headings, rows = black_box.worst_of_all(content)
        print_table(headings, rows, text_columns=1, fixed_columns=2, console=console)
        for line in _marks(content):
            say(line)
    headings, rows = stages.grid(content)
    if rows:
        say("what broke how many images, and the passes an image:")
        print_table(headings, rows, text_columns=2, fixed_columns=3, console=console)
    for sentence in filter(None, (*stages.sentences(content), stages.in_words(content))):
        say(sentence)
    for record in content["cw_linf"]:
        above = ", ".join(f"{a['count']} above {a['epsilon']:g}" for a in record["above"])
        median = "none found" if record["median"] is None else f"median {record['median']:.1f}"
        say(
            f"{record['target']}: minimal epsilon of {record['examples']} images: {above}; {median}"
        )
    for sentence in (content["diagnosis"] or {}).get("sentences", []):
        if sentence not in content.get("warnings", ()):  # they came first
            say(sentence)
    if items := content.get("checklist"):
        headings, rows = checklist.grid(items)
        print_table(headings, rows, text_columns=len(headings), fixed_columns=1, console=console)
        for sentence in checklist.sentences(items):
            say(sentence)
    if path is not None:
        say(f"written to {path}")


def warnings(content: Mapping) -> list[str]:
    """Return what puts all numbers in doubt, a quotation a sentence; before everything else."""
    return [f"> **{plain(sentence)}**" for sentence in content.get("warnings", ())]


def _heading(content: Mapping) -> str:
    noise = content["inference_noise"]
    return (
        f"# Robustness: {', '.join(plain(n['name']) for n in content['networks'] if n['target'])}"
        "\n\n"
        f"Accuracy in per cent of the first {content['examples']:,} images of the "
        f"{content['split']} split of {plain(content['dataset'])}, true labels, seed "
        f"{content['seed']}, epsilon in 0..255. "
        + ("Black box: crafted from the sources." if content["sources"] else "White box.")
        + (f" Random signs of {noise:g} are added before every network." if noise else "")
    )


def table(headings: Sequence[str], rows: Sequence[Sequence], left: int = 1) -> str:
    """Return a Markdown table; the headings and the first ``left`` columns are text."""
    marks = ["---"] * left + ["---:"] * (len(headings) - left)
    body = ([*map(plain, row[:left]), *map(str, row[left:])] for row in rows)
    lines = [list(map(plain, headings)), marks, *body]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


_HTML = {"&": "&amp;", "<": "&lt;", ">": "&gt;"}


def plain(text: str) -> str:
    """Return a text such that Markdown, GitHub's too, shows it as it is: a name may be anything."""
    text = "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)
    # Within a word an underscore is one.
    text = re.sub(r"[\\`*\[\]|~$]|(?<![^\W_])_|_(?![^\W_])", r"\\\g<0>", text)
    # What would begin a list, a heading or a line.
    text = re.sub(r"^(\d+(?=[.)])|(?=[-+#=]))", r"\1\\", text)
    return re.sub(r"[&<>]", lambda found: _HTML[found[0]], text)


def grid(content: Mapping) -> tuple[list[str], list[list[str]]]:
    """Return headings and rows: source, attack and epsilon of each row, then a cell a target.

    The lowest accuracy of a target at an epsilon is marked with a star; the last rows are the
    images that withstand all attacks. Without other sources there is no column of sources.
    """
    targets = [network["name"] for network in content["networks"] if network["target"]]
    from_others = bool(content["sources"])
    rows: dict[tuple, dict[str, Mapping]] = {}
    for record in content["results"]:
        source = record["source"]
        own = needs_no_source(record["attack"])
        if not from_others or own or not gives_images(record["attack"]):
            source = "" if record["attack"] == CLEAN else "itself"
        key = (source, record["attack"], record["epsilon"])
        rows.setdefault(key, {})[record["target"]] = record
    lowest: dict[tuple[str, float], float] = {}
    for record in content["results"]:
        if gives_images(record["attack"]):
            place = record["target"], record["epsilon"]
            lowest[place] = min(record["accuracy"], lowest.get(place, 100.0))
    lines = []
    for (source, attack, epsilon), cells in rows.items():
        shown = []
        for target in targets:
            record = cells.get(target)
            if record is None:
                shown.append("")
                continue
            worst = gives_images(attack) and record["accuracy"] == lowest[target, epsilon]
            few = "" if record["examples"] == content["examples"] else f" / {record['examples']}"
            shown.append(f"{record['accuracy']:.1f}{few}" + ("*" if worst else ""))
        head = [source] * from_others + [attack, "" if attack == CLEAN else f"{epsilon:g}"]
        lines.append([*head, *shown])
    for epsilon in sorted({record["epsilon"] for record in content["worst_case"]}):
        withstood = {
            record["target"]: f"{record['accuracy']:.1f}"
            for record in content["worst_case"]
            if record["epsilon"] == epsilon
        }
        head = [""] * from_others + ["all of them", f"{epsilon:g}"]
        lines.append([*head, *(withstood.get(target, "") for target in targets)])
    return ["crafted from"] * from_others + ["attack", "epsilon", *targets], lines


def _accuracy_table(content: Mapping) -> str:
    headings, rows = grid(content)
    text = table(headings, rows, left=headings.index("epsilon"))
    return (
        f"## Accuracy\n\n{text}\n\n\\* the strongest attack on the target at this epsilon. "
        "A number after a slash is the number of images where it is not that of the others."
        + _sentence(options_used(content["results"]))
    )


def options_used(records: Sequence[Mapping]) -> str:
    """Return the attacks with options among records, such as ``pgd: steps 40, restarts 5``."""
    used = {record["attack"]: in_words(record["options"]) for record in records}
    return "; ".join(f"{attack}: {options}" for attack, options in used.items() if options)


def _sentence(text: str) -> str:
    return f" {text}." if text else ""


def _worst_case_table(content: Mapping) -> str:
    if not content["worst_case"]:
        return ""
    rows = [
        [
            record["target"],
            _named(record["strongest"], record["target"]),
            f"{record['epsilon']:g}",
            f"{record['strongest']['accuracy']:.1f}",
            f"{record['accuracy']:.1f}",
        ]
        for record in content["worst_case"]
    ]
    headings = ["target", "strongest attack", "epsilon", "its accuracy", "withstand all"]
    return (
        "## Worst case\n\nAn image withstands all if it is classified correctly under every attack "
        f"above at its epsilon.\n\n{table(headings, rows, left=2)}"
    )


def _named(record: Mapping, target: str) -> str:
    source = "itself" if record["source"] == target else record["source"]
    return f"{record['attack']} from {source}"


def _stages(content: Mapping) -> str:
    headings, rows = stages.grid(content)
    parts = [plain(sentence) + "." for sentence in stages.sentences(content)]
    parts += [plain(text) + "." for text in filter(None, [stages.in_words(content)])]
    if rows:
        parts.insert(0, table(headings, rows, left=2))
        parts.insert(
            0,
            "Of each image the attack that broke it, in turn; clean: misclassified without any. "
            "Gradients and forward passes alone are means an image.",
        )
    return "\n\n".join(["## What broke the images, and what it took", *parts]) if parts else ""


def _cw_table(content: Mapping) -> str:
    if not content["cw_linf"]:
        return ""
    thresholds = [f"> {above['epsilon']:g}" for above in content["cw_linf"][0]["above"]]
    rows = [
        [
            record["target"],
            record["examples"],
            *(above["count"] for above in record["above"]),
            _rounded(record["mean"]),
            _rounded(record["median"]),
            record["misclassified_clean"],
            record["not_found"],
        ]
        for record in content["cw_linf"]
    ]
    headings = ["target", "images", *thresholds, "mean", "median", "wrong when clean", "not found"]
    return (
        "## Minimal epsilon (Carlini and Wagner, L-infinity)\n\nImages whose minimal epsilon is "
        f"above a threshold; mean and median of those found.\n\n{table(headings, rows)}"
    )


def _rounded(value: float | None) -> str:
    return "" if value is None else f"{value:.2f}"


def _transfer_table(content: Mapping) -> str:
    if not content["transfer"]:
        return ""
    rows = [
        [
            record["source"],
            record["target"],
            record["attack"],
            f"{record['epsilon']:g}",
            f"{record['fooled_both']} / {record['fooled_source']}",
            _rounded(record["rate"]),
            f"{record['both_correct_fooled_both']} / {record['both_correct_fooled_source']}",
            _rounded(record["both_correct_rate"]),
        ]
        for record in content["transfer"]
    ]
    headings = ["crafted from", "target", "attack", "epsilon", "fool both / source", "rate, %",
                "both right when clean", "rate, %"]  # fmt: skip
    return (
        "## Transfer\n\nOf the images that fool their source, those that also fool the target; "
        "then only of the images that both networks classify correctly when clean.\n\n"
        + table(headings, rows, left=3)
    )


def _black_box(content: Mapping) -> str:
    if not black_box.is_in(content):
        return ""
    parts = ["## Black box", black_box.explained(content)]
    for network in (network for network in content["networks"] if network["target"]):
        headings, rows = black_box.of_target(content, network["name"])
        parts += [f"### {plain(network['name'])}", table(headings, rows, left=1)]
    used = {record["mark"] for record in content["black_box"]["results"]}
    meanings = (item for item in black_box.MARKS.items() if item[0] in used)
    parts.append("\n".join(f"- *{mark}*: {meaning}." for mark, meaning in meanings))
    parts.append("\n".join(f"- {plain(line)}" for line in _marks(content)))
    return "\n\n".join(parts)


def _marks(content: Mapping) -> list[str]:
    """Return a line for each target: what its sources are to it."""
    found = []
    for network in (network for network in content["networks"] if network["target"]):
        marked = black_box.marked(content, network["name"])
        said = "; ".join(f"{mark}: {', '.join(names)}" for mark, names in marked.items())
        found.append(f"{network['name']}: {said}")
    return found


def _diagnosis(content: Mapping) -> str:
    found = content["diagnosis"]
    if not found:
        return ""
    lines = "\n".join(f"- {plain(sentence)}" for sentence in found["sentences"])
    options = _sentence(options_used(found["results"]))
    return (
        f"## Can these numbers be trusted?\n\nWhite box, {found['examples']} images.{options}"
        f"\n\n{lines}"
    )


def _checklist(content: Mapping) -> str:
    items = content.get("checklist")
    if not items:
        return ""
    headings, rows = checklist.grid(items)
    lines = [f"- {plain(sentence)}" for sentence in checklist.sentences(items)]
    text = f"## Checklist\n\n{table(headings, rows, left=len(headings))}"
    return "\n\n".join([text, "\n".join(lines)] if lines else [text])


def _path(network: Mapping) -> str:
    mean = network.get("mean")
    return network["path"] + (f" (mean of the {mean})" if mean else "")


def _origin(content: Mapping) -> str:
    networks = [
        [network["name"], _path(network), network["weights_hash"][:16]]
        for network in content["networks"]
    ]
    attacks = [
        "- " + ", ".join(filter(None, (plain(attack["name"]), in_words(attack["options"]))))
        for attack in content["attacks"]
    ]
    return (
        "## What was measured\n\n"
        + table(["network", "path", "SHA-256 of its weights"], networks, left=3)
        + "\n\n"
        + "\n".join(attacks)
        + f"\n\nSHA-256 of the dataset: {content['dataset_fingerprint'][:16]}. "
        "Versions: "
        + ", ".join(f"{name} {version}" for name, version in content["versions"].items())
        + "."
    )
