"""Print the final accuracies of finished runs side by side.

python examples/compare_runs.py runs/digits-standard runs/digits-pivot [--markdown]
"""

from __future__ import annotations

import argparse
import json
import pathlib
import sys

import rich.console
import rich.table


def read_runs(paths: list[pathlib.Path]) -> dict[str, dict[str, str]]:
    """Return by run, then by attack, "accuracy / images".

    Raises:
        SystemExit: a path that is not a finished run.
    """
    runs = {}
    for path in paths:
        try:
            results = json.loads((path / "metrics.json").read_text(encoding="utf-8"))["results"]
        except (OSError, ValueError, KeyError):
            sys.exit(f"compare_runs: {path} is not a finished run (no readable metrics.json)")
        runs[path.name] = {attack_of(r): f"{r['accuracy']:.1f} / {r['examples']}" for r in results}
    return runs


def attack_of(result: dict) -> str:
    """Return what a number was measured under: "pgd 16 (steps 40, restarts 5)"."""
    name = result["attack"] + (f" {result['epsilon']:g}" if result["epsilon"] else "")
    options = [f"{k} {v}" for k, v in result.get("options", {}).items() if v is not None]
    return f"{name} ({', '.join(options)})" if options else name


def main() -> None:
    """Run the program."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("runs", nargs="+", type=pathlib.Path)
    parser.add_argument("--markdown", action="store_true", help="for a report, not a terminal")
    arguments = parser.parse_args()
    runs = read_runs(arguments.runs)
    attacks = list(dict.fromkeys(attack for cells in runs.values() for attack in cells))
    if arguments.markdown:
        rows = [["run", *attacks], ["---"] + ["---:"] * len(attacks)]
        rows += [[run, *(cells.get(a, "") for a in attacks)] for run, cells in runs.items()]
        for row in rows:
            print("| " + " | ".join(row) + " |")
        return
    table = rich.table.Table("attack, epsilon", title="accuracy in % / test images; white box")
    for run in runs:
        table.add_column(run, justify="right", no_wrap=True)
    for attack in attacks:
        table.add_row(attack, *(cells.get(attack, "") for cells in runs.values()))
    rich.console.Console().print(table)


if __name__ == "__main__":
    main()
