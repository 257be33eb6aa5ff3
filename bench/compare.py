"""Every way to do a piece of work, side by side: `python -m bench.compare [--rounds N] [--save]`.

All cases of a piece of work are checked against fp64 first; one that is wrong gets no figures. Then they are
timed in turns, round by round and starting with another one each time, together with the machine's
ceiling, so that what else the machine does meets all of them. Given are medians, and of ratios the median
over rounds. Tables go to standard error, one JSON document to standard output.

On a GPU there is more: the whole network at several sizes, then its single operations, what there is an aim for
first, and what takes long to compile last. Each case is timed once as soon as it is found right. `--minutes` counts
from the start of the process and ends it in time.

`--save` merges what is found into the record of the day, after every round, so that it is whole at any moment.
"""

import argparse
import gc
import json
import multiprocessing
import statistics
import sys
import time
from collections.abc import Iterable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import torch
from rich import box
from rich.console import Console
from rich.table import Table

from bench.frames import frames
from bench.isolate import Heartbeat, command, ending_on_sigterm, here, one_line, run_isolated, time_limit
from bench.machine import Ceiling, clock, describe, machine_line, refused, repeats_for, synchronize
from bench.ops import operations
from bench.records import Measured, Record
from bench.records import write_whole as write_whole
from bench.report import columns, heading, rounds_of, targets_table
from bench.windows import largest
from bench.workloads import Run, Unavailable, Workload, workloads

SECONDS = 8.0  # on a GPU, for all rounds of one piece of work together
# Seconds that a part of the work may take on a GPU.
QUICK_LIMIT = 25.0  # to make a case ready; more where the work is large
SLOW_LIMIT = 150.0  # the same for a slow one
LIMIT = 20.0  # for anything else
Item = tuple[Workload, tuple[str, ...], int]  # work, cases, rounds


def main(began: float | None = None) -> int:
    """began: when the process did, by time.monotonic(); None for now."""
    parser = argparse.ArgumentParser(
        prog="python -m bench.compare", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=7, help="at most; default: %(default)s")
    parser.add_argument("--device", choices=("cpu", "cuda"), help="default: cuda where there is one")
    parser.add_argument("--minutes", type=float, default=float("inf"), help="on a GPU, stop after; default: never")
    parser.add_argument(
        "--only", nargs="+", metavar="TEXT", default=[], help="work of that name, or whose name has it; in this order"
    )
    parser.add_argument("--cases", nargs="+", metavar="NAME", default=[], help="these ways alone; default: all")
    parser.add_argument("--save", action="store_true", help="merge the document into the day's in bench/results, too")
    options = parser.parse_args()
    deadline = time_limit(60 * options.minutes, began)
    device = options.device or ("cuda" if torch.cuda.is_available() else "cpu")
    try:
        items = (gpu_items if device == "cuda" else cpu_items)(options.rounds, options.only, options.cases)
    except ValueError as error:
        parser.error(str(error))
    if refused(device):
        return 2
    console = Console(stderr=True)

    def so_far(item: Item, entry: dict) -> None:
        record.put(entry)

    done = run_isolated(step, items, deadline, so_far) if device == "cuda" else here(step, items, so_far)
    record = Record("gpu" if device == "cuda" else "compare", describe(device), options.save)
    console.print(machine_line(record.content["machine"]), highlight=False)
    left = list(items)
    try:
        with ending_on_sigterm():
            for (work, _, _), entry in done:
                del left[0]
                if isinstance(entry, str):
                    console.print(f"{work}: {entry}", style="red", markup=False)
                    record.fail(str(work), entry)
                else:
                    console.print(table(entry))
                    record.put(entry)
    finally:
        for work, names, _ in left:
            record.missed(str(work), names)
        path = record.keep()
    begun = {str(work) for work, _, _ in left[:1]}
    for entry in record.content["workloads"]:
        if entry["work"] in begun:
            console.print(table(entry))
    for line in record.content.get("not_reached", []):
        console.print(f"no time left for {line}", markup=False)
    print(json.dumps(record.content))
    if path is not None:
        console.print(f"saved as {path}")
    if device == "cuda":
        console.print(targets_table(record.content), markup=False, highlight=False, soft_wrap=True)
    return 1 if record.bad else 0


# --- what is done


def chosen(works: Iterable[Workload], texts: list[str]) -> list[Workload]:
    """Work of which a text is the name or, where there is none, part of the name, in the order of the texts; without
    texts all. Raises ValueError for a text that chooses nothing."""
    named = {str(work): work for work in works}
    found: dict[str, Workload] = {} if texts else named
    for text in texts:
        hits = {text: named[text]} if text in named else {name: work for name, work in named.items() if text in name}
        if not hits:
            raise ValueError(f"--only {text}: there is no such work; there is {', '.join(named)}")
        found |= {name: work for name, work in hits.items() if name not in found}
    return list(found.values())


def with_cases(items: list[Item], cases: list[str], works: Iterable[Workload]) -> list[Item]:
    """The same with no other cases than these, in their order. Raises ValueError for one that no work has."""
    if not cases:
        return items
    known = {name for work in works for name in work.cases}
    for name in cases:
        if name not in known:
            raise ValueError(f"--cases {name}: there is no such case; there is {', '.join(sorted(known))}")
    return [(work, names, rounds) for work, has, rounds in items if (names := tuple(n for n in cases if n in has))]


def cpu_items(rounds: int, only: list[str] | None = None, cases: list[str] | None = None) -> list[Item]:
    """Large images take minutes in some cases: three rounds of them."""
    works = chosen(workloads(), only or [])
    items = [(work, tuple(work.cases), rounds if work.height < 1024 else min(rounds, 3)) for work in works]
    return with_cases(items, cases or [], workloads())


def gpu_items(rounds: int, only: list[str] | None = None, cases: list[str] | None = None) -> list[Item]:
    """Everything there is to do on a GPU, the most telling first, or what is asked for in the order of `only`. Slow
    cases come as a second turn of their work, unless cases are asked for by name."""
    networks, ops = frames(), operations()

    def quick(works: list) -> list[Item]:
        return [(work, tuple(name for name, case in work.cases.items() if not case.slow), rounds) for work in works]

    def whole(works: list) -> list[Item]:
        return [(work, tuple(work.cases), rounds) for work in works]

    if cases:
        return with_cases(whole(chosen(networks + ops, only or [])), cases, networks + ops)
    if only:
        works = chosen(networks + ops, only)
        return quick(works) + whole(works)
    aims, compared = networks[:4], [networks[0], networks[3]]
    small_ops = [op for op in ops if op.features == 64]
    items = quick(aims) + whole(compared) + quick(ops) + whole(small_ops[:3])
    return (
        items
        + quick(networks[4:])
        + whole([work for work in networks + ops if work not in [*compared, *small_ops[:3]]])
    )


def step(item: Item, failed: dict[str, str], at: Heartbeat) -> dict:
    work, names, rounds = item
    try:
        return compare(work, names, rounds, Console(stderr=True), failed, at)
    finally:
        if work.device == "cuda":  # this process goes on with other work
            gc.collect()
            if "torch._dynamo" in sys.modules:  # seconds to import, only to be reset
                torch.compiler.reset()
            torch.cuda.empty_cache()


def compare(
    work: Workload,
    names: tuple[str, ...],
    rounds: int,
    console: Console,
    failed: dict[str, str] | None = None,
    at: Heartbeat | None = None,
) -> dict:
    """The part of the record about one piece of work, told so far whenever there is more. failed, at: see
    `bench.isolate.run_isolated`."""
    on_gpu, at = work.device == "cuda", at or Heartbeat()
    found = Compared(work, failed or {})
    try:
        at("the ceiling", LIMIT)
        ceiling = found.ceiling = Ceiling(work.device, work.dtype)
        if on_gpu:
            ceiling.measure()
        at("the result in fp64", 2 * LIMIT)
        _ = work.reference_error
    except torch.cuda.OutOfMemoryError as reason:
        found.skipped |= dict.fromkeys(names, one_line(reason))
        return found.entry()
    make_ready(found, names, console, at)
    started = time.monotonic()
    for i in range(rounds if found.runs else 0):
        if on_gpu and i >= 3 and (time.monotonic() - started) * (i + 1) / i > SECONDS:
            break
        console.print(f"{work}: round {i + 1} of {rounds}", end="\r" if on_gpu else "\n")
        at("the ceiling", LIMIT)
        ceiling.measure()
        times = {}
        for name in rotated(list(found.runs), i):
            at(name, LIMIT)
            times[name] = clock(found.runs[name].run, work.device, found.runs[name].repeats)
        for name, seconds in times.items():
            found.rounds.setdefault(name, []).append(seconds)
        at.so_far(found.entry())
    for checked in found.runs.values():
        checked.run = None
    gc.collect()
    if not on_gpu:
        for name, checked in found.runs.items():
            checked.peak_mib = resident_peak_apart(work, name)
    return found.entry()


@dataclass
class Checked:
    """A case found right. repeats: see `bench.machine.clock`. peak_mib: of GPU memory. sample: seconds, on a GPU."""

    run: Run | None
    error: float
    repeats: int
    peak_mib: float | None = None
    sample: float | None = None


@dataclass
class Compared(Measured):
    """What is known about a piece of work whose cases are `Checked`."""

    def entry(self) -> dict:
        gflops = self.ceiling.gflops if self.ceiling else 0.0
        cases = {name: self._case(name, times, gflops) for name, times in self._seconds().items()}
        return self.logged({"work": str(self.work), **self.work.description(), "ceiling": self.ceilings}, cases)

    def _seconds(self) -> dict[str, list[float]]:
        """Of the rounds or, before there are any, the samples."""
        samples = {name: [checked.sample] for name, checked in self.runs.items() if checked.sample is not None}
        return self.rounds or samples

    def _case(self, name: str, times: list[float], ceiling: float) -> dict:
        case, checked, median = self.work.cases[name], self.runs[name], statistics.median(times)
        gflop, base = self.work.gflop(case.collapsed), self.rounds.get(self.work.base)
        return {
            "title": case.title,
            "version": package_version(case.package),
            "turns": self.turns if self.rounds else None,
            "seconds": [float(f"{t:.4g}") for t in times],
            "median": float(f"{median:.4g}"),
            "ratio": round(statistics.median(b / t for b, t in zip(base, times, strict=True)), 3) if base else None,
            "gflop": round(gflop, 2),
            "gflops": round(gflop / median, 1),
            "ceiling_percent": round(100 * gflop / median / ceiling, 1),
            "error": float(f"{checked.error:.2e}"),
            "peak_mib": checked.peak_mib,
        }


def make_ready(found: Compared, names: tuple[str, ...], console: Console, at: Heartbeat) -> None:
    """Finds every case that can run and is right; why others are wrong; why others cannot run."""
    work, on_gpu = found.work, found.work.device == "cuda"
    for name in names:
        if name in found.failed:
            continue
        case = work.cases[name]
        # Some six runs of it, at 100 TFLOP/s.
        at(name, SLOW_LIMIT if case.slow else QUICK_LIMIT + 6e-5 * work.gflop(case.collapsed))
        console.print(f"{work}: checking {case.title}")
        try:
            before = allocated_bytes() if on_gpu else 0
            run = case.run(work)
            error = work.check(run, poison=case.ours)
            if on_gpu:
                # What is timed may be a graph, which the second run records: without the filling of poisoned memory.
                error = largest([error, work.check(run)])
            checked = Checked(run, error, repeats_for(run, work.device))
            if on_gpu:
                checked.peak_mib = round((gpu_peak(run) - before) / 2**20, 1)
                checked.sample = clock(run, work.device, checked.repeats)
            found.runs[name] = checked
        except Unavailable as reason:
            found.skipped[name] = str(reason)
        except AssertionError as reason:
            found.incorrect[name] = str(reason)
        except torch.cuda.OutOfMemoryError as reason:
            found.skipped[name] = one_line(reason)
        if on_gpu:
            at.so_far(found.entry())


def rotated(names: list[str], by: int) -> list[str]:
    by %= len(names) or 1
    return names[by:] + names[:by]


def allocated_bytes() -> int:
    """Bytes of GPU memory that this process holds for good."""
    gc.collect()
    torch.cuda.synchronize()
    torch.cuda.empty_cache()
    return torch.cuda.memory_reserved()


def gpu_peak(run: Run) -> int:
    """The most GPU memory that PyTorch holds for a run, in bytes, what it held before included. The run is warmed up.

    Reserved memory, not `max_memory_allocated`: that of a CUDA graph was allocated when the graph was recorded, and
    does not count as allocated while it runs.
    """
    allocated_bytes()
    torch.cuda.reset_peak_memory_stats()
    run()
    synchronize("cuda")
    return torch.cuda.max_memory_reserved()


def resident_peak_apart(work: Workload, name: str) -> float | None:
    """The most memory, in MiB, of a process of its own; None where the system does not tell.

    Interpreter and libraries included, the work before the first run left out.
    """
    spawn = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(1, mp_context=spawn) as pool:
        return pool.submit(_case_peak, work, name).result()


def _case_peak(work: Workload, name: str) -> float | None:
    return resident_peak(work.cases[name].run(work))


def resident_peak(run: Run) -> float | None:
    """The most memory of this process, in MiB, during a run."""
    gc.collect()
    status = Path("/proc/self/status")
    try:
        Path("/proc/self/clear_refs").write_text("5")  # makes the peak what is resident now
        run()
        (line,) = (line for line in status.read_text().splitlines() if line.startswith("VmHWM:"))
    except OSError:  # not Linux
        return None
    return round(int(line.split()[1]) / 2**10, 1)


def package_version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "?"


def table(entry: dict) -> Table:
    best = entry["ceiling"]
    grid = Table(
        box=box.SIMPLE,
        title=f"{heading(entry)}, median of {rounds_of(entry)}",
        caption=f"ceiling: {best['gflops']:.0f} GFLOP/s matrix product, {best['gbs']:.0f} GB/s copy",
    )
    grid.add_column("case", no_wrap=True)
    for column, _ in columns(entry):
        grid.add_column(column, justify="right")
    for case in entry["cases"].values():
        grid.add_row(case["title"], *(show(case) for _, show in columns(entry)))
    for name, why in (entry["incorrect"] | entry["skipped"]).items():
        grid.add_row(name, why)
    return grid


if __name__ == "__main__":
    command(main)
