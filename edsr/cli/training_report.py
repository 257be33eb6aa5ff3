"""What is shown of a training run: a bar on a terminal, and lines that stay."""

import contextlib
import time
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Column

from edsr.progress import describe_seconds

from .console import print_line
from .progress import drawn

if TYPE_CHECKING:
    from edsr.training import Progress as TrainingProgress

WIDE, NARROW = 90, 72  # columns of a terminal that suffice for all with a bar, and for all but that
LINE_SECONDS = 30.0  # between lines, where no bar is drawn, or nothing is validated


class TrainingReport:
    """Shows a run: steps done, loss, validation PSNR, patches per second, time left.

    A line is printed of each validation, and of the end. Every LINE_SECONDS there is one if no bar is drawn, or if
    there are no validation images. Losses are the means that metrics.jsonl has, over the steps between its lines.

    Args:
        bar: What is drawn on a terminal; None elsewhere.
        quiet: Whether no lines are printed.
        clock: Gives seconds.
        narrow: Whether the terminal is: beside the steps there is the validation PSNR alone, or before that the loss.
    """

    def __init__(
        self, bar: Progress | None, quiet: bool, clock: Callable[[], float] = time.monotonic, narrow: bool = False
    ):
        self._bar, self._quiet, self._clock, self._narrow = bar, quiet, clock, narrow
        self._loss: float | None = None
        self._validated = ""
        self._first = -1
        self._begun = self._lined = self._measured = clock()

    def show(self, report: "TrainingProgress") -> None:
        """Shows what a run reports after some steps."""
        now = self._clock()
        self._measured = now
        if report.rolled_back:
            self._loss = None
            return
        if self._first < 0 or report.step <= self._first:  # what is left is reckoned from where a run goes on
            self._first, self._begun = report.step, now
        if report.logged:
            self._loss = report.mean_loss
        self._validated = report.validated or self._validated
        due = now - self._lined >= LINE_SECONDS and (self._bar is None or not self._validated)
        if report.validated or report.finished or due:
            self._lined = now
            self._print(self._line(report, now))
        if self._bar is not None:
            validated = f"  {self._validated}" if self._validated else ""
            loss = report.mean_loss if self._loss is None else self._loss
            text = f"loss {loss:.5f}{validated}  {report.speed:.1f} patches/s"
            if self._narrow:
                text = self._validated or f"loss {loss:.5f}"
            if not self._bar.task_ids:
                self._bar.add_task("", total=report.steps, completed=report.step - 1, text="")
            self._bar.update(self._bar.task_ids[0], completed=report.step, text=text)

    def show_validation(self, done: int, total: int) -> None:
        """Shows that so many of the validation images are measured."""
        now = self._clock()
        left = describe_seconds((now - self._measured) / done * (total - done))
        text = f"validating, {done} of {total} images, {left} left"
        if self._bar is None and now - self._lined >= LINE_SECONDS:
            self._lined = now
            self._print(text)
        if self._bar is not None and self._bar.task_ids:
            short = f"validating {done}/{total}"
            self._bar.update(self._bar.task_ids[0], text=short if self._narrow else text)

    def _line(self, report: "TrainingProgress", now: float) -> str:
        line = f"step {report.step:,} of {report.steps:,}: loss {report.mean_loss:.5f}"
        if report.validated:
            line += f", validation {report.validated}"
        if report.step > self._first and not report.finished:
            left = (now - self._begun) / (report.step - self._first) * (report.steps - report.step)
            line += f", about {describe_seconds(left)} left"
        return line

    def _print(self, line: str) -> None:
        if not self._quiet:
            print_line(line)


@contextlib.contextmanager
def training_report(quiet: bool) -> Iterator[TrainingReport]:
    """A TrainingReport, with a bar where standard error is a terminal, or one that shows nothing if `quiet`."""
    width = Console(stderr=True).width
    narrow = width < NARROW
    columns = (
        TextColumn("step {task.completed:.0f}/{task.total:.0f}"),
        BarColumn(bar_width=20),
        TextColumn("{task.fields[text]}", table_column=Column(no_wrap=True)),
        TimeRemainingColumn(compact=True),
    )
    if narrow:
        steps = TextColumn("{task.completed:.0f}/{task.total:.0f}", table_column=Column(no_wrap=True))
        columns = (steps, *columns[1:])
    if width < WIDE:
        columns = (columns[0], *columns[2:])
    bars = contextlib.ExitStack()
    bar = bars.enter_context(drawn(quiet, columns, transient=False))
    try:
        yield TrainingReport(bar, quiet, narrow=narrow)
    finally:
        with contextlib.suppress(OSError):  # the terminal is gone, and nobody is left to tell
            bars.close()
