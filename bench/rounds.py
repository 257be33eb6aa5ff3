"""Rows of pytest-benchmark's table whose rounds were timed in turns.

pytest-benchmark times one test after the other, so what else the machine does meets one way to do a piece of work and
spares the next. Here the first test of a group makes all its ways ready, finds each right, and times them in turns,
round by round and starting with another one each time. Every test then plays its own rounds back to pytest-benchmark,
on a clock that goes on by the seconds that were measured: table, comparison and JSON are pytest-benchmark's own.
"""

import gc
import statistics
import sys
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from io import StringIO
from typing import Any, NamedTuple

import pytest
import torch
from rich import box
from rich.console import Console
from rich.table import Table

from bench.compare import Compared, make_ready, rotated
from bench.isolate import Heartbeat, one_line
from bench.machine import Ceiling, clock
from bench.workloads import Unavailable, Workload


class Turns(NamedTuple):
    """How long all rounds of a group may take together, and how many there are."""

    seconds: float
    least: int
    most: int


class Implementation(NamedTuple):
    """A way found right. time: does it once, and gives the seconds. gflop: 10⁹ operations, where they say something.
    facts: what else there is to know about it."""

    title: str
    time: Callable[[], float]
    gflop: float | None = None
    facts: dict[str, Any] = {}  # noqa: RUF012  never changed


@dataclass
class Group:
    """A piece of work and what was found about the ways to do it, by name.

    seconds: round by round. info: of a row, pytest-benchmark's extra_info. incorrect, skipped: why there is no row.
    """

    name: str
    base: str  # the way that ratios are taken to
    seconds: dict[str, list[float]] = field(default_factory=dict)
    info: dict[str, dict[str, Any]] = field(default_factory=dict)
    incorrect: dict[str, str] = field(default_factory=dict)
    skipped: dict[str, str] = field(default_factory=dict)


def measured(
    name: str,
    base: str,
    names: Iterable[str],
    make: Callable[[str], Implementation],
    turns: Turns,
    ceiling: Ceiling | None = None,
) -> Group:
    """make: gives a way of that name, found right. Raises AssertionError if it is wrong, Unavailable if it cannot run.

    A way that fails otherwise costs its own row alone.
    """
    group, ways = Group(name, base), {}
    for each in names:
        try:
            ways[each] = make(each)
        except Unavailable as reason:
            group.skipped[each] = str(reason)
        except torch.cuda.OutOfMemoryError as reason:
            group.skipped[each] = one_line(reason)
        except AssertionError as reason:
            group.incorrect[each] = str(reason)
        except Exception as reason:
            group.incorrect[each] = one_line(reason)
    group.seconds = in_turns({each: way.time for each, way in ways.items()}, turns, ceiling)
    for each, way in ways.items():
        group.info[each] = _info(way, group.seconds[each], group.seconds.get(base), ceiling)
    return group


def in_turns(
    ways: dict[str, Callable[[], float]], turns: Turns, ceiling: Ceiling | None = None
) -> dict[str, list[float]]:
    """Seconds of each, round by round. What would end after `turns.seconds` is only begun to have the least rounds."""
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    started = time.monotonic()
    for i in range(turns.most if ways else 0):
        if i >= turns.least and (time.monotonic() - started) * (i + 1) / max(i, 1) > turns.seconds:
            break
        if ceiling is not None:
            ceiling.measure()
        for name in rotated(list(ways), i):
            seconds[name].append(ways[name]())
    return seconds


def _info(
    way: Implementation, seconds: list[float], base: list[float] | None, ceiling: Ceiling | None
) -> dict[str, Any]:
    median = statistics.median(seconds)
    info: dict[str, Any] = {"case": way.title, "ms": 1e3 * median}
    if base is not None:
        info["ratio"] = statistics.median(b / t for b, t in zip(base, seconds, strict=True))
    if way.gflop is not None:
        info |= {"gflop": way.gflop, "gflops": way.gflop / median}
        if ceiling is not None:
            info["ceiling_percent"] = 100 * info["gflops"] / ceiling.gflops
            info |= {"ceiling_gflops": ceiling.gflops, "ceiling_gbs": ceiling.gbs}
    return info | way.facts


def measured_work(work: Workload, names: Iterable[str], turns: Turns) -> Group:
    """The cases of a piece of work, each checked as `bench.compare` does. On a GPU seconds are of its events."""
    found, console = Compared(work, {}), Console(stderr=True)
    found.ceiling = ceiling = Ceiling(work.device, work.dtype)
    ceiling.measure()  # what is told while ways are made ready has shares of it

    def make(name: str) -> Implementation:
        make_ready(found, (name,), console, Heartbeat())
        if name in found.skipped:
            raise Unavailable(found.skipped[name])
        if name in found.incorrect:
            raise AssertionError(found.incorrect[name])
        case, checked = work.cases[name], found.runs[name]
        facts = {"error": checked.error} | ({} if checked.peak_mib is None else {"peak_mib": checked.peak_mib})
        gflop = work.gflop(case.collapsed)
        return Implementation(case.title, lambda: clock(checked.run, work.device, checked.repeats), gflop, facts)

    try:
        return measured(f"{work} {work.device}", work.base, names, make, turns, ceiling)
    finally:
        found.runs.clear()
        tidy()


def tidy() -> None:
    """Gives back what a group held, for the next one."""
    gc.collect()
    if "torch._dynamo" in sys.modules:  # seconds to import, only to be reset
        torch.compiler.reset()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


# --- rows


class _Hand:
    seconds = 0.0


def played() -> float:
    """The clock of all rows, which stands still but for what is played back."""
    return _Hand.seconds


in_rows = pytest.mark.benchmark(timer=played)  # what a test of a row has to be marked with


def row_of(work: str, name: str, case: Any, marks: Any) -> Any:
    """The parameters (work, name) of a test, whose name says which ways are ours. case: has a title."""
    ours = "ours-" if case.title.startswith("ours") and name != "ours" else ""
    return pytest.param(work, name, marks=marks, id=f"{work}-{ours}{name}")


def play(benchmark: Any, seconds: list[float]) -> None:
    """Gives rounds that were measured before to pytest-benchmark as the rounds of its test."""
    left = iter(seconds)

    def rewind() -> None:
        _Hand.seconds = 0.0  # so that the difference is what was measured, to the last digit

    def pass_by() -> None:
        _Hand.seconds = next(left, 0.0)  # a profiler asks for more rounds than there are

    benchmark.pedantic(pass_by, setup=rewind, rounds=len(seconds))


COLUMNS = {
    "ms": ("ms", "{:.4g}"),
    "ratio": ("ratio", "{:.2f}"),
    "gflops": ("GFLOP/s", "{:.1f}"),
    "ceiling_percent": ("% of ceiling", "{:.0f}"),
    "patches_per_second": ("patches/s", "{:.1f}"),
    "price_percent": ("price, %", "{:+.1f}"),
    "compute_percent": ("computing, %", "{:.0f}"),
    "megapixels_per_second": ("Mpx/s", "{:.3f}"),
    "error": ("error", "{:.1e}"),
    "gradient_error": ("gradient error", "{:.1e}"),
    "peak_mib": ("peak MiB", "{:.0f}"),
}


def summary(group: Group) -> str:
    """The ratios, GFLOP/s and shares of the ceiling, for which pytest-benchmark's table has no columns."""
    rows = sorted(group.info.values(), key=lambda row: row["ms"])
    message = [f"ratio: times as fast as {group.info[group.base]['case']}"] if group.base in group.info else []
    message += [f"ceiling: {row['ceiling_gflops']:.0f} GFLOP/s" for row in rows[:1] if "ceiling_gflops" in row]
    shown = [key for key in COLUMNS if any(key in row for row in rows)]
    grid = Table("case", *(COLUMNS[key][0] for key in shown), box=box.SIMPLE)
    for column in grid.columns[1:]:
        column.justify = "right"
    for row in rows:
        grid.add_row(row["case"], *(COLUMNS[key][1].format(row[key]) if key in row else "" for key in shown))
    text = StringIO()
    Console(file=text, width=160, markup=False, highlight=False, no_color=True).print(grid)
    lines = [line.rstrip() for line in text.getvalue().splitlines() if line.strip()] if rows else []
    lines += [f"  {name} failed: {why}" for name, why in group.incorrect.items()]
    lines += [f"  {name} left out: {why}" for name, why in group.skipped.items()]
    return "\n".join(["", "; ".join([group.name, *message]), *lines])
