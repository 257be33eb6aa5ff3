"""Progress bars on a terminal, drawn by rich on standard error; where nobody watches, nothing."""

import contextlib
import sys
import time
from collections.abc import Iterator
from typing import TYPE_CHECKING

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Column

if TYPE_CHECKING:
    from edsr.training import Progress as TrainingProgress


class ImageProgress:
    """An image being enlarged: rows done, megapixels of input per second, time left."""

    def __init__(self, progress: Progress | None, name: str, width: int, height: int):
        self._progress, self._width = progress, width
        self._done, self._begun = 0, time.perf_counter()
        self._task = None if progress is None else progress.add_task(name, total=height, unit="rows", speed="")

    def advance(self, rows: int) -> None:
        if self._progress is None or self._task is None:
            return
        self._done += rows
        speed = self._done * self._width / 1e6 / (time.perf_counter() - self._begun)
        self._progress.update(self._task, advance=rows, speed=f"{speed:.2f} Mpx/s")

    def end(self) -> None:
        if self._progress is not None and self._task is not None:
            self._progress.refresh()  # a small image might not be seen at all
            self._progress.remove_task(self._task)


class BatchProgress:
    """A line for the batch, if it has more than one file, and one for each file that is worked on."""

    def __init__(self, progress: Progress | None, files: int):
        self._progress = progress
        several = progress is not None and files > 1
        self._batch = progress.add_task("all", total=files, unit="files", speed="") if progress and several else None

    @contextlib.contextmanager
    def file(self, name: str, width: int, height: int) -> Iterator[ImageProgress]:
        """The line of an image of width x height."""
        bar = ImageProgress(self._progress, name, width, height)
        try:
            yield bar
        finally:
            bar.end()

    def done(self) -> None:
        """A file of the batch has ended, well or not."""
        if self._progress is not None and self._batch is not None:
            self._progress.advance(self._batch)


class TrainingBar:
    """The run: steps done, loss, validation PSNR, patches per second, time left.

    The loss is the mean over about 20 reports: one batch differs from the next by more than a run gains in hours. After
    a rollback it begins anew, as what diverged is undone.
    """

    def __init__(self, progress: Progress | None):
        self._progress, self._validated = progress, ""
        self.loss, self._shown = 0.0, 0

    def show(self, report: "TrainingProgress") -> None:
        """Shows what a run reports."""
        if report.rolled_back:
            self._shown = 0
        else:
            self._shown = min(self._shown + 1, 20)
            self.loss = report.loss if self._shown == 1 else self.loss + (report.loss - self.loss) / self._shown
        if self._progress is None:
            return
        if not self._progress.task_ids:  # a resumed run's time left is reckoned from where it goes on
            self._progress.add_task("", total=report.steps, completed=report.step - 1, text="")
        self._validated = f"  {report.validated}" if report.validated else self._validated
        text = f"loss {self.loss:.5f}{self._validated}  {report.speed:.1f} patches/s"
        self._progress.update(self._progress.task_ids[0], completed=report.step, text=text)


@contextlib.contextmanager
def bars(quiet: bool, files: int) -> Iterator[BatchProgress]:
    """Bars for so many files; silent ones if `quiet` or where standard error is no terminal."""
    columns = (
        TextColumn("{task.description}", markup=False, table_column=Column(no_wrap=True, max_width=40)),
        BarColumn(),
        TextColumn("{task.completed:.0f}/{task.total:.0f} {task.fields[unit]}"),
        TextColumn("{task.fields[speed]}"),
        TimeRemainingColumn(compact=True),
    )
    with _drawn(quiet, columns, transient=True) as progress:
        yield BatchProgress(progress, files)


@contextlib.contextmanager
def training_bar(quiet: bool) -> Iterator[TrainingBar]:
    """A TrainingBar; a silent one if `quiet` or where standard error is no terminal."""
    columns = (
        TextColumn("step {task.completed:.0f}/{task.total:.0f}"),
        BarColumn(),
        TextColumn("{task.fields[text]}"),
        TimeRemainingColumn(compact=True),
    )
    with _drawn(quiet, columns, transient=False) as progress:
        yield TrainingBar(progress)


@contextlib.contextmanager
def _drawn(quiet: bool, columns: tuple, transient: bool) -> Iterator[Progress | None]:
    if quiet or not sys.stderr.isatty():
        yield None
        return
    console = Console(stderr=True)
    # Lines printed meanwhile go above the bars; where standard output is no terminal, they must stay as they are.
    shared = sys.stdout.isatty()
    with Progress(*columns, console=console, transient=transient, redirect_stdout=shared) as progress:
        yield progress
