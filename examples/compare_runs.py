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


def read_runs(paths: list[pathlib.Path]) -> tuple[list[str], list[list[str]]]:
    """Return the table's headings and one row a run.

    Raises:
        SystemExit: a path that is not a finished run.
    """
    headings, rows = ["run"], []
    for path in paths:
        try:
            results = json.loads((path / "metrics.json").read_text(encoding="utf-8"))["results"]
        except (OSError, ValueError, KeyError):
            sys.exit(f"compare_runs: {path} is not a finished run (no readable metrics.json)")
        cells = {
            f"{r['attack']} {r['epsilon']:g}".replace("clean 0", "clean"): (
                f"{r['accuracy']:.1f} / {r['examples']}"
            )
            for r in results
        }
        headings += [name for name in cells if name not in headings]
        rows.append((path.name, cells))
    return headings, [[name, *(cells.get(h, "") for h in headings[1:])] for name, cells in rows]


def main() -> None:
    """Run the program."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("runs", nargs="+", type=pathlib.Path)
    parser.add_argument("--markdown", action="store_true", help="for a report, not a terminal")
    arguments = parser.parse_args()
    headings, rows = read_runs(arguments.runs)
    if arguments.markdown:
        for row in [headings, ["---"] + ["---:"] * (len(headings) - 1), *rows]:
            print("| " + " | ".join(row) + " |")
        return
    table = rich.table.Table(
        title="accuracy in % / test images; white box, epsilon in 0..255",
    )
    for heading in headings:
        table.add_column(heading, justify="left" if heading == "run" else "right", no_wrap=True)
    for row in rows:
        table.add_row(*row)
    rich.console.Console().print(table)


if __name__ == "__main__":
    main()
