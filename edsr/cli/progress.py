"""How far the work is: bars on a terminal, drawn by rich on standard error, and elsewhere a line now and then.

Lines that are printed meanwhile, those of the log too, go above the bars.
"""

import contextlib
import sys
import threading
import time
from collections.abc import Callable, Hashable, Iterator, Sequence
from pathlib import Path
from typing import Any

import rich.console
from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn
from rich.table import Column
from rich.text import Text

from edsr.errors import ImageError, printable
from edsr.progress import describe_seconds

from .console import print_line

LINE_SECONDS = 30.0
"""Between lines, where no bar is drawn."""
PACE_SECONDS = 2.0
"""For which the pace of work is looked at before it tells how long the rest takes."""


class BatchWork:
    """How far a batch of files is, by the pixels of its images; safe to use from several threads.

    An image whose size is not known yet counts as the mean of those that are. What ends before its last row, or is
    skipped, is no work any more. sources: None if they are found meanwhile, so that nobody knows how many there are.
    """

    def __init__(self, sources: Sequence[Hashable] | None):
        self.files, self.ended, self.pixels = None if sources is None else len(sources), 0, 0
        self._lock = threading.Lock()
        self._unknown = set(sources or ())
        self._sizes: dict[Hashable, int] = {}  # of images that were measured and have not ended
        self._left, self._begun = 0, 0  # pixels of these, and those of them that are done
        self._known, self._measured = 0, 0  # pixels of all images that were measured, and how many these are

    def measured(self, source: Hashable, pixels: int) -> None:
        """An image has so many pixels."""
        with self._lock:
            if source in self._unknown:
                self._unknown.remove(source)
                self._sizes[source] = pixels
                self._left, self._known, self._measured = self._left + pixels, self._known + pixels, self._measured + 1

    def advance(self, pixels: int) -> None:
        """So many more pixels are done."""
        with self._lock:
            self.pixels, self._begun = self.pixels + pixels, self._begun + pixels

    def end(self, source: Hashable, pixels: int) -> None:
        """Nothing is left to do for a file, of which so many pixels were done."""
        with self._lock:
            self.ended, self._begun = self.ended + 1, self._begun - pixels
            self._unknown.discard(source)
            self._left -= self._sizes.pop(source, 0)

    @property
    def fraction(self) -> float:
        """How much of the work is done, in 0..1; 0 if nobody knows."""
        if self.files is None:
            return 0.0
        with self._lock:
            mean = self._known / self._measured if self._measured else 0.0
            left = max(0.0, self._left + len(self._unknown) * mean - self._begun)
            return self.pixels / (self.pixels + left) if self.pixels else 0.0


class TimeLeft:
    """How long work goes on, by its pace since it first moved: what comes before that, such as the warming up of a
    network, tells nothing.
    """

    def __init__(self) -> None:
        self._first: tuple[float, float] | None = None

    def __call__(self, now: float, fraction: float) -> str:
        """What is left, for people; "" until the pace has been seen for PACE_SECONDS."""
        if fraction <= 0:
            return ""
        if self._first is None:
            self._first = now, fraction
        seconds, done = now - self._first[0], fraction - self._first[1]
        if done <= 0 or (seconds < PACE_SECONDS and fraction < 1):
            return ""
        return f"{describe_seconds(seconds * (1 - fraction) / done)} left"


class ImageReport:
    """The progress of an image, a part of a batch's."""

    def __init__(self, batch: "BatchReport", name: str, width: int, height: int):
        self._batch, self._width, self._height = batch, width, height
        self._rows, self._time_left = 0, TimeLeft()
        self._bar = batch.bars and batch.bars.add_task(printable(name), total=height, left="")

    @property
    def pixels(self) -> int:
        """Those that are done."""
        return self._rows * self._width

    def advance(self, rows: int) -> None:
        """So many more rows are done."""
        self._rows += rows
        if self._batch.bars is not None and self._bar is not None:
            left = self._time_left(self._batch.clock(), self._rows / self._height)
            self._batch.bars.update(self._bar, completed=self._rows, left=left)
        self._batch.advance(rows * self._width)

    def end(self) -> None:
        """Takes the bar away."""
        if self._batch.bars is not None and self._bar is not None:
            self._batch.bars.refresh()  # a small image might not be seen at all
            self._batch.bars.remove_task(self._bar)


class BatchReport:
    """The progress of a batch: a bar for it, if it has more than one file, and one for each file that is worked on.

    Without bars a line every LINE_SECONDS, if not `quiet`.
    """

    def __init__(
        self,
        bars: Progress | None,
        sources: Sequence[Hashable] | None,
        quiet: bool = False,
        clock: Callable[[], float] = time.monotonic,
    ):
        self.bars, self.clock, self.work = bars, clock, BatchWork(sources)
        self._quiet, self._time_left, self._lined = quiet, TimeLeft(), clock()
        self._sources = sources
        self._done: dict[Hashable, int] = {}
        self._bar = None
        if bars is not None and (sources is None or len(sources) > 1):
            self._bar = bars.add_task(self._count(), total=None if sources is None else 1.0, left="")

    @contextlib.contextmanager
    def file(self, name: str, width: int, height: int, source: Hashable = None) -> Iterator[ImageReport]:
        """The progress of an image of width x height in the file `source`, by default the only one."""
        source = source or (self._sources or [name])[0]
        self.work.measured(source, width * height)
        report = ImageReport(self, name, width, height)
        try:
            yield report
        finally:
            self._done[source] = report.pixels
            report.end()

    def advance(self, pixels: int) -> None:
        """So many more pixels are done."""
        self.work.advance(pixels)
        self._show()

    def done(self, source: Hashable) -> None:
        """A file of the batch has ended, well or not."""
        self.work.end(source, self._done.pop(source, 0))
        self._show()

    def _count(self) -> str:
        count = self.work.ended if self.work.files is None else self.work.files
        of = "" if self.work.files is None else f"of {self.work.files} "
        return f"{self.work.ended} {of}image{'s' * (count != 1)}"

    def _show(self) -> None:
        now, fraction = self.clock(), self.work.fraction
        left = self._time_left(now, fraction)
        if self.bars is not None and self._bar is not None:
            self.bars.update(self._bar, completed=fraction, description=self._count(), left=left)
        if self.bars is None and not self._quiet and now - self._lined >= LINE_SECONDS:
            self._lined = now
            if self.work.files is None:
                print_line(f"{self._count()} done")
                return
            count = f"{self._count()}, " if self.work.files > 1 else ""
            print_line(f"{count}{fraction:.0%} done" + (f", about {left}" if left else ""))


@contextlib.contextmanager
def bars(quiet: bool, sources: Sequence[Hashable] | None) -> Iterator[BatchReport]:
    """The progress of such files, None if they are found meanwhile; nothing is shown if `quiet`."""
    width = Console(stderr=True).width
    narrow = width < 60
    name = 16 if narrow else width // 3
    columns = [
        TextColumn("{task.description}", markup=False, table_column=Column(no_wrap=True, max_width=name)),
        BarColumn(bar_width=None if narrow else 40),
        TextColumn("{task.percentage:>3.0f} %", table_column=Column(no_wrap=True)),
        TextColumn("{task.fields[left]}", table_column=Column(no_wrap=True)),
    ]
    with drawn(quiet, tuple(columns), transient=True) as progress:
        report, stopped = BatchReport(progress, sources, quiet), threading.Event()
        thread = threading.Thread(target=_measure, args=(report.work, sources or (), stopped), daemon=True)
        if sources is not None and len(sources) > 1 and not quiet:
            thread.start()
        try:
            yield report
        finally:
            stopped.set()
            if thread.is_alive():
                thread.join()


@contextlib.contextmanager
def counted(quiet: bool, unit: str) -> Iterator[Callable[[int, int, str], None]]:
    """The progress of work that is counted: called with how much is done, of how much, and what is worked on.

    Without bars a line every LINE_SECONDS, if not `quiet`.
    """
    columns = (TextColumn("{task.description}", markup=False), BarColumn(), TextColumn("{task.fields[count]}"))
    with drawn(quiet, columns, transient=True) as progress:
        bar = None if progress is None else progress.add_task("", total=1.0, count="")
        time_left, lined = TimeLeft(), time.monotonic()

        def show(done: int, total: int, name: str) -> None:
            nonlocal lined
            now = time.monotonic()
            left = time_left(now, done / max(1, total))
            text = f"{done:,} of {total:,} {unit}" + (f", about {left}" if left else "")
            if progress is not None and bar is not None:
                progress.update(bar, completed=done / max(1, total), description=printable(name), count=text)
            elif not quiet and now - lined >= LINE_SECONDS:
                lined = now
                print_line(f"{name}: {text}")

        yield show


def _measure(work: BatchWork, sources: Sequence[Hashable], stopped: threading.Event) -> None:
    """Reads the sizes of images from their headers, while the first ones are worked on."""
    from edsr.images import ImageReader

    for source in sources:
        if stopped.is_set():
            return
        if not isinstance(source, Path):  # at a URL, and to be fetched first
            continue
        with contextlib.suppress(ImageError, OSError), ImageReader(source) as reader:
            work.measured(source, reader.width * reader.height)


@contextlib.contextmanager
def starting(quiet: bool, what: str = "loading the network") -> Iterator[None]:
    """Shows on a terminal, while the block runs, that something is going on; imports of torch take seconds."""
    with drawn(quiet, (SpinnerColumn(), TextColumn("{task.description}")), transient=True) as progress:
        if progress is not None:
            progress.add_task(what, total=None)
        yield


class Console(rich.console.Console):
    """Leaves long lines whole, for the terminal to break: no path and no JSON may get line ends of ours."""

    def print(self, *objects: Any, **options: Any) -> None:
        if all(isinstance(part, Text) for part in objects):  # what was printed; not the bars
            options.setdefault("soft_wrap", True)
        super().print(*objects, **options)


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
