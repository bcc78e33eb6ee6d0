"""How far a long piece of work is, on standard error."""

from __future__ import annotations

import contextlib
import contextvars
import time
from collections.abc import Callable, Iterator

_within = contextvars.ContextVar("within", default=lambda share: None)


@contextlib.contextmanager
def progress_within(report: Callable[[float], None]) -> Iterator[None]:
    """Within: what ``report_share`` is told, 0..1 of one long step of the work, goes to this."""
    token = _within.set(report)
    try:
        yield
    finally:
        _within.reset(token)


def report_share(share: float) -> None:
    """Say how much of a step is done, 0..1, to whoever wants to know."""
    _within.get()(share)


def progress_bar():
    """Return a rich progress bar on standard error that is nothing but on a terminal."""
    import rich.console
    import rich.progress

    console = rich.console.Console(stderr=True)
    _, *columns = rich.progress.Progress.get_default_columns()
    return rich.progress.Progress(
        # A path may hold what rich would take for its markup.
        rich.progress.TextColumn("{task.description}", markup=False),
        *columns,
        rich.progress.MofNCompleteColumn(),
        console=console,
        transient=True,
        # In a log file a bar is noise, and even an empty one a blank line.
        disable=not console.is_terminal,
    )


@contextlib.contextmanager
def show_progress(
    what: str, total: int | Callable[[], int], seconds: float = 15
) -> Iterator[Callable[[int], None]]:
    """Show how far a long piece of work is, and the time left, on standard error.

    Args:
        what: is done.
        total: how much there is to do; a function of work that may grow.
        seconds: between lines.

    A bar on a terminal; elsewhere a line, at most one in so many seconds.

    Yields:
        A function to be called with the number of images done, first with those done before.
    """
    bar = progress_bar()
    console = bar.console
    in_all = total if callable(total) else lambda: total
    task = bar.add_task(what, total=in_all())
    started = written = time.monotonic()
    before = None

    def show(done: int) -> None:
        nonlocal before, written
        bar.update(task, completed=done, total=in_all())
        before = done if before is None else before
        now = time.monotonic()
        if console.is_terminal or done == before or now - written < seconds:
            return
        left = (in_all() - done) * (now - started) / (done - before)
        print(f"{what} {done}/{in_all()}  {left / 60:.1f} min left", file=console.file, flush=True)
        written = now

    with bar:
        yield show
