"""Tables as they are printed: as wide as the terminal, whole in a log file."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

_NAME_WIDTH = 9  # characters of a network's name beside each other


def print_table(
    headings: Sequence[str],
    rows: Sequence[Sequence[str]],
    *,
    text_columns: int = 1,
    fixed_columns: int | None = None,
    console=None,
) -> None:
    """Print a table; where the terminal is too narrow, several with the fixed columns each.

    Args:
        headings: those of the columns that are not fixed may be folded.
        rows: texts; one that ends with a star is shown in bold red.
        text_columns: how many of the first are aligned to the left.
        fixed_columns: how many of the first every table has; all when None.
        console: a rich console; standard output when None.
    """
    import rich.console
    import rich.table

    console = rich.console.Console(highlight=False) if console is None else console
    fixed = len(headings) if fixed_columns is None else fixed_columns
    widths = _column_widths(headings, rows, fixed)
    for columns in _column_groups(widths, fixed, console.width):
        table = rich.table.Table()
        for place in columns:
            table.add_column(
                rich.text.Text(headings[place]),
                justify="left" if place < text_columns else "right",
                overflow="fold",
                no_wrap=place < fixed,
                min_width=widths[place],
            )
        for row in rows:
            cells = [row[place] for place in columns]
            table.add_row(
                *(rich.text.Text(c, "bold red" if c.endswith("*") else "") for c in cells)
            )
        # Where not even one column fits, lines are broken by the terminal rather than cut.
        width = max(console.width, _table_width(widths[place] for place in columns))
        console.print(table, width=width, crop=False)


def _column_widths(headings: Sequence[str], rows: Sequence[Sequence[str]], fixed: int) -> list[int]:
    """Return the least width of each column: a name is folded at ``_NAME_WIDTH``."""
    names = [
        len(heading) if place < fixed else min(len(heading), _NAME_WIDTH)
        for place, heading in enumerate(headings)
    ]
    return [max(name, *(len(row[place]) for row in rows), 0) for place, name in enumerate(names)]


def _table_width(widths: Iterable[int]) -> int:
    """Return the width of a table: columns, two spaces each, the lines between and around."""
    return 1 + sum(width + 3 for width in widths)


def _column_groups(widths: Sequence[int], fixed: int, room: int) -> list[list[int]]:
    """Split the columns that are not fixed into tables that fit, each with those that are.

    Args:
        widths: of every column's text.
        fixed: how many of the first every table has.
        room: width of the terminal.
    """
    groups: list[list[int]] = [list(range(fixed))]
    for place in range(fixed, len(widths)):
        shown = [*groups[-1], place]
        if len(groups[-1]) > fixed and _table_width(widths[p] for p in shown) > room:
            groups.append([*range(fixed), place])
        else:
            groups[-1] = shown
    return groups
