"""Progress bars on a terminal, drawn by rich on standard error; where nobody watches, nothing."""

import contextlib
import sys
import time
from collections.abc import Iterator

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn


class Bar:
    """The picture being enlarged: rows done, megapixels of input per second, time left."""

    def __init__(self, progress: Progress | None):
        self._progress = progress

    def start(self, name: str, width: int, height: int) -> None:
        if self._progress is None:
            return
        for old in self._progress.task_ids:
            self._progress.remove_task(old)
        self._width, self._done, self._begun = width, 0, time.perf_counter()
        self._task = self._progress.add_task(name, total=height, speed="")

    def advance(self, rows: int) -> None:
        if self._progress is None:
            return
        self._done += rows
        speed = self._done * self._width / 1e6 / (time.perf_counter() - self._begun)
        self._progress.update(self._task, advance=rows, speed=f"{speed:.2f} Mpx/s")


class TrainingBar:
    """The run: steps done, loss, validation PSNR, patches per second, time left.

    loss: its mean over about 20 of what was shown; one batch differs from the next by more than a run gains in hours.
    """

    def __init__(self, progress: Progress | None, steps: int):
        self._progress, self._steps, self._psnr = progress, steps, ""
        self.loss, self._shown = 0.0, 0

    def show(self, step: int, loss: float, speed: float, psnr: float | None) -> None:
        self._shown = min(self._shown + 1, 20)
        self.loss += (loss - self.loss) / self._shown
        if self._progress is None:
            return
        if not self._progress.task_ids:  # a resumed run's time left is reckoned from where it goes on
            self._progress.add_task("", total=self._steps, completed=step - 1, text="")
        self._psnr = self._psnr if psnr is None else f"  {psnr:.2f} dB"
        text = f"loss {self.loss:.5f}{self._psnr}  {speed:.1f} images/s"
        self._progress.update(self._progress.task_ids[0], completed=step, text=text)


@contextlib.contextmanager
def bar(quiet: bool) -> Iterator[Bar]:
    """A Bar for pictures, one after the other; a silent one if `quiet` or where standard error is no terminal."""
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        TextColumn("{task.completed:.0f}/{task.total:.0f} rows"),
        TextColumn("{task.fields[speed]}"),
        TimeRemainingColumn(compact=True),
    )
    with _drawn(quiet, columns, transient=True) as progress:
        yield Bar(progress)


@contextlib.contextmanager
def training_bar(quiet: bool, steps: int) -> Iterator[TrainingBar]:
    """A TrainingBar over `steps`; a silent one if `quiet` or where standard error is no terminal."""
    columns = (
        TextColumn("step {task.completed:.0f}/{task.total:.0f}"),
        BarColumn(),
        TextColumn("{task.fields[text]}"),
        TimeRemainingColumn(compact=True),
    )
    with _drawn(quiet, columns, transient=False) as progress:
        yield TrainingBar(progress, steps)


@contextlib.contextmanager
def _drawn(quiet: bool, columns: tuple, transient: bool) -> Iterator[Progress | None]:
    if quiet or not sys.stderr.isatty():
        yield None
        return
    console = Console(stderr=True)
    with Progress(*columns, console=console, transient=transient, redirect_stdout=False) as progress:
        yield progress
