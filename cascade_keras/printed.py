"""What is printed: a line at once; tables as wide as the terminal, whole in a log file."""

from __future__ import annotations

from collections.abc import Sequence

_NAME_WIDTH = 9  # characters of a network's name beside each other


def say(text: str) -> None:
    """Print a line that is seen at once, in a log file too."""
    print(text, flush=True)


def print_table(
    headings: Sequence[str],
    rows: Sequence[Sequence[str]],
    *,
    text_columns: int = 1,
    fixed_columns: int | None = None,
    title: str | None = None,
    console=None,
) -> None:
    """Print a table that fits; where the terminal is too narrow, several.

    Those have the fixed columns each. Where these leave no room for another one, the widest texts
    are folded; numbers are only on a terminal of which even so not one column has room.

    Args:
        headings: those of the columns that are not fixed may be folded.
        rows: texts; one that ends with a star is shown in bold red.
        text_columns: how many of the first are aligned to the left.
        fixed_columns: how many of the first every table has; all when None.
        title: printed above.
        console: a rich console; standard output when None.
    """
    import rich.console
    import rich.table

    console = rich.console.Console(highlight=False) if console is None else console
    fixed = len(headings) if fixed_columns is None else fixed_columns
    if title is not None:
        console.print(f"\n{title}", markup=False)
    widths = _Widths(headings, rows, text_columns, fixed)
    for columns in widths.groups(console.width):
        table = rich.table.Table()
        fitting = widths.fitting(columns, console.width)
        for place, width in zip(columns, fitting, strict=True):
            table.add_column(
                rich.text.Text(headings[place]),
                justify="left" if place < text_columns else "right",
                overflow="fold",
                width=width,
            )
        for row in rows:
            cells = [row[place] for place in columns]
            table.add_row(
                *(rich.text.Text(c, "bold red" if c.endswith("*") else "") for c in cells)
            )
        console.print(table)


class _Widths:
    """How wide the columns of a table are, and how wide they have to be.

    Args:
        headings, rows, text_columns: as of ``print_table``.
        fixed: how many of the first columns every table has.

    Attributes:
        natural: of headings and cells in one line.
        least: with headings folded of columns that are not fixed.
        narrowest: with cells folded too, of texts.
    """

    def __init__(
        self,
        headings: Sequence[str],
        rows: Sequence[Sequence[str]],
        text_columns: int,
        fixed: int,
    ):
        from rich.cells import cell_len

        self.fixed = fixed
        heads = [cell_len(heading) for heading in headings]
        folded = [n if place < fixed else min(n, _NAME_WIDTH) for place, n in enumerate(heads)]
        cells = [max([0, *(cell_len(row[place]) for row in rows)]) for place in range(len(heads))]
        self.natural = list(map(max, heads, cells))
        self.least = list(map(max, folded, cells))
        self.narrowest = [
            min(n, _NAME_WIDTH) if place < text_columns else n for place, n in enumerate(self.least)
        ]

    def groups(self, room: int) -> list[list[int]]:
        """Split the columns that are not fixed into tables that fit, each with those that are."""
        groups: list[list[int]] = [list(range(self.fixed))]
        for place in range(self.fixed, len(self.least)):
            shown = [*groups[-1], place]
            if len(groups[-1]) > self.fixed and self._width(self.least, shown) > room:
                groups.append([*range(self.fixed), place])
            else:
                groups[-1] = shown
        return groups

    def fitting(self, columns: Sequence[int], room: int) -> list[int]:
        """Return a width for each of some columns: the widest give way until all fit.

        Headings are folded before cells are.
        """
        widths = [self.natural[place] for place in columns]
        for smallest in (self.least, self.narrowest):
            bounds = [smallest[place] for place in columns]
            while _table_width(widths) > room:
                spare = [n if n > bound else 0 for n, bound in zip(widths, bounds, strict=True)]
                if not any(spare):
                    break
                widths[spare.index(max(spare))] -= 1
        return widths

    def _width(self, widths: Sequence[int], columns: Sequence[int]) -> int:
        return _table_width([widths[place] for place in columns])


def _table_width(widths: Sequence[int]) -> int:
    """Return the width of a table: columns, two spaces each, the lines between and around."""
    return 1 + sum(width + 3 for width in widths)
