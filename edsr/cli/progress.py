"""Progress bars, drawn by rich on standard error where that is a terminal.

Lines that are printed meanwhile, those of the log too, go above the bars.
"""

import contextlib
import sys
import time
from collections.abc import Iterator

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Column

from edsr.errors import printable
from edsr.progress import BatchProgress, Silent


class ImageBar:
    """An image that is upscaled: rows done, megapixels of input per second, time left."""

    def __init__(self, progress: Progress, name: str, width: int, height: int):
        self._progress, self._width = progress, width
        self._done, self._start = 0, time.perf_counter()
        self._task = progress.add_task(name, total=height, unit="rows", speed="")

    def advance(self, rows: int) -> None:
        self._done += rows
        speed = self._done * self._width / 1e6 / (time.perf_counter() - self._start)
        self._progress.update(self._task, advance=rows, speed=f"{speed:.2f} Mpx/s")

    def end(self) -> None:
        self._progress.refresh()  # a small image might not be seen at all
        self._progress.remove_task(self._task)


class BatchBars:
    """A bar for the batch, if it has more than one file, and one for each file that is worked on."""

    def __init__(self, progress: Progress, files: int):
        self._progress = progress
        self._batch = progress.add_task("all", total=files, unit="files", speed="") if files > 1 else None

    @contextlib.contextmanager
    def file(self, name: str, width: int, height: int) -> Iterator[ImageBar]:
        """The bar of an image of width x height."""
        bar = ImageBar(self._progress, printable(name), width, height)
        try:
            yield bar
        finally:
            bar.end()

    def done(self) -> None:
        """A file of the batch has ended, well or not."""
        if self._batch is not None:
            self._progress.advance(self._batch)


@contextlib.contextmanager
def bars(quiet: bool, files: int) -> Iterator[BatchProgress]:
    """Bars for so many files; nothing is shown if `quiet` or where standard error is no terminal."""
    columns = (
        TextColumn("{task.description}", markup=False, table_column=Column(no_wrap=True, max_width=40)),
        BarColumn(),
        TextColumn("{task.completed:.0f}/{task.total:.0f} {task.fields[unit]}"),
        TextColumn("{task.fields[speed]}"),
        TimeRemainingColumn(compact=True),
    )
    with drawn(quiet, columns, transient=True) as progress:
        yield Silent() if progress is None else BatchBars(progress, files)


@contextlib.contextmanager
def drawn(quiet: bool, columns: tuple, transient: bool) -> Iterator[Progress | None]:
    """Bars of such columns; None if `quiet` or where standard error is no terminal."""
    if quiet or not sys.stderr.isatty():
        yield None
        return
    console = Console(stderr=True)
    # What goes to standard error is put above the bars by default; what goes to standard output only where that is a
    # terminal, too: elsewhere it must stay as it is.
    shared = sys.stdout.isatty()
    with Progress(*columns, console=console, transient=transient, redirect_stdout=shared) as progress:
        yield progress
