"""Every way to do a piece of work, side by side: `python -m bench.compare [--rounds N] [--save]`.

All cases of a piece of work are checked against fp64 first; one that is wrong gets no figures. Then they are
timed in turns, round by round and starting with another one each time, together with the machine's
ceiling, so that what else the machine does meets all of them. Given are medians, and of ratios the median
over rounds. Tables go to standard error, one JSON document to standard output.

On a GPU there is more: the whole network at several sizes, then its single operations, what there is an aim for
first, and what takes long to compile last. `--minutes` ends it in time; a record that is saved is whole at any moment.
"""

import argparse
import gc
import json
import multiprocessing
import os
import statistics
import sys
import time
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch
from rich import box
from rich.console import Console
from rich.table import Table

from bench.cases import Run, Unavailable, Work, workloads
from bench.frames import frames
from bench.machine import Ceiling, clock, describe, machine_line, refused, repeats_for, slug, synchronize
from bench.ops import operations
from bench.report import columns, heading, targets_table
from bench.worker import At, each, one_line

RESULTS = Path(__file__).with_name("results")
SECONDS = 8.0  # on a GPU, for all rounds of one piece of work together
SLOW_LIMIT = 150.0  # seconds to make a slow case ready
Item = tuple[Work, tuple[str, ...], int]  # work, cases, rounds


def main() -> int:
    parser = argparse.ArgumentParser(
        prog="python -m bench.compare", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=7, help="at most; default: %(default)s")
    parser.add_argument("--device", choices=("cpu", "cuda"), help="default: cuda where there is one")
    parser.add_argument("--minutes", type=float, default=float("inf"), help="on a GPU, stop after; default: never")
    parser.add_argument("--only", metavar="TEXT", default="", help="work whose name has it")
    parser.add_argument("--save", action="store_true", help="write the document into bench/results, too")
    options = parser.parse_args()
    if options.only and options.save:
        parser.error("--save wants the whole: it takes the place of an earlier record")
    deadline = time.monotonic() + 60 * options.minutes
    device = options.device or ("cuda" if torch.cuda.is_available() else "cpu")
    if refused(device):
        return 2
    console = Console(stderr=True)
    record: dict[str, Any] = {"kind": "gpu" if device == "cuda" else "compare", "machine": describe(device)}
    record["workloads"] = []
    console.print(machine_line(record["machine"]), highlight=False)
    items = gpu_items(options.rounds, options.only) if device == "cuda" else cpu_items(options.rounds, options.only)
    done = each(gpu_step, items, deadline) if device == "cuda" else map(cpu_step, items)
    reached = 0
    for (work, _, _), entry in done:
        reached += 1
        if isinstance(entry, str):
            console.print(f"{work}: {entry}", style="red", markup=False)
            record.setdefault("failed", {})[str(work)] = entry
        else:
            console.print(table(entry))
            put(record["workloads"], entry)
        if options.save:
            save(record)
    if reached < len(items):
        # No time left: what has no entry at all is missing, the rest may lack slow cases.
        record["not_reached"] = sorted({f"{work}: {', '.join(names)}" for work, names, _ in items[reached:]})
        console.print(f"no time left for {len(items) - reached} of {len(items)} steps")
    print(json.dumps(record))
    if options.save:
        console.print(f"saved as {save(record)}")
    if device == "cuda":
        console.print(targets_table(record), markup=False, highlight=False, soft_wrap=True)
    return 1 if record.get("failed") or any(entry["wrong"] for entry in record["workloads"]) else 0


def cpu_items(rounds: int, only: str = "") -> list[Item]:
    """Large pictures take minutes in some cases: three rounds of them."""
    works = [work for work in workloads() if only in str(work)]
    return [(work, tuple(work.cases), rounds if work.width < 1024 else min(rounds, 3)) for work in works]


def gpu_items(rounds: int, only: str = "") -> list[Item]:
    """Everything there is to do on a GPU, the most telling first. Slow cases come as a second turn of their work."""
    networks, ops = frames(), operations()

    def quick(works: list) -> list[Item]:
        return [(work, tuple(name for name, case in work.cases.items() if not case.slow), rounds) for work in works]

    def whole(works: list) -> list[Item]:
        return [(work, tuple(work.cases), rounds) for work in works]

    aims, compared = networks[:4], [networks[0], networks[3]]
    small_ops = [op for op in ops if op.features == 64]
    items = quick(aims) + whole(compared) + quick(ops) + whole(small_ops[:3])
    items += quick(networks[4:]) + whole([work for work in networks + ops if work not in [*compared, *small_ops[:3]]])
    return [item for item in items if only in str(item[0])]


def cpu_step(item: Item) -> tuple[Item, dict]:
    work, names, rounds = item
    return item, compare(work, names, rounds, Console(stderr=True))


def gpu_step(item: Item, failed: dict[str, str], at: At) -> dict:
    work, names, rounds = item
    try:
        return compare(work, names, rounds, Console(stderr=True), failed, at)
    finally:
        gc.collect()  # this process goes on with other work
        torch.compiler.reset()
        torch.cuda.empty_cache()


def put(entries: list[dict], entry: dict) -> None:
    """Adds an entry, in the place of an earlier one about the same work."""
    for i, earlier in enumerate(entries):
        if earlier["work"] == entry["work"]:
            entries[i] = entry
            return
    entries.append(entry)


def compare(
    work: Work,
    names: tuple[str, ...],
    rounds: int,
    console: Console,
    failed: dict[str, str] | None = None,
    at: At = lambda part, seconds=0.0: None,
) -> dict:
    """The part of the record about one piece of work. failed, at: see `bench.worker.each`."""
    entry = {"work": str(work), **work.described()}
    at("the ceiling")
    ceiling = Ceiling(work.device, work.dtype)
    runs, wrong, skipped = ready(work, names, console, failed or {}, at)
    seconds: dict[str, list[float]] = {name: [] for name in runs}
    started = time.monotonic()
    for i in range(rounds):
        if work.device == "cuda" and i >= 3 and (time.monotonic() - started) * (i + 1) / i > SECONDS:
            break
        console.print(f"{work}: round {i + 1} of {rounds}", end="\r" if work.device == "cuda" else "\n")
        ceiling.measure()
        for name in turned(list(runs), i):
            at(name)
            seconds[name].append(clock(runs[name].run, work.device, runs[name].repeats))
    entry["rounds"] = max(map(len, seconds.values()), default=0)
    for checked in runs.values():
        checked.run = None
    gc.collect()
    cases = {}
    for name, times in seconds.items():
        case, median = work.cases[name], statistics.median(times)
        gflop = work.gflop(case.collapsed)
        base = seconds.get(work.base)
        cases[name] = {
            "title": case.title,
            "version": package_version(case.package),
            "seconds": [float(f"{t:.4g}") for t in times],
            "median": float(f"{median:.4g}"),
            "ratio": round(statistics.median(b / t for b, t in zip(base, times, strict=True)), 3) if base else None,
            "gflop": round(gflop, 2),
            "gflops": round(gflop / median, 1),
            "ceiling_percent": round(100 * gflop / median / ceiling.gflops, 1),
            "error": float(f"{runs[name].error:.2e}"),
            "peak_mib": runs[name].peak_mib if work.device == "cuda" else resident_peak_apart(work, name),
        }
    entry["ceiling"] = {"gflops": round(ceiling.gflops, 1), "gbs": round(ceiling.gbs, 1)}
    return entry | {"cases": cases, "skipped": skipped, "wrong": wrong}


@dataclass
class Checked:
    """A case found right. repeats: see `bench.machine.clock`. peak_mib: of GPU memory."""

    run: Run | None
    error: float
    repeats: int
    peak_mib: float | None


def ready(
    work: Work, names: tuple[str, ...], console: Console, failed: dict[str, str], at: At
) -> tuple[dict[str, Checked], dict[str, str], dict[str, str]]:
    """Every case that can run and is right; why others are wrong; why others cannot run."""
    runs, wrong, skipped = {}, dict(failed), {}
    at("the result in fp64", SLOW_LIMIT)
    _ = work.yardstick
    for name in names:
        if name in failed:
            continue
        case = work.cases[name]
        at(name, SLOW_LIMIT if case.slow else 60.0)
        console.print(f"{work}: checking {case.title}")
        try:
            before = settled() if work.device == "cuda" else 0
            run = case.run(work)
            error = work.check(run, poison=case.ours)
            repeats = repeats_for(run, work.device)  # the first runs may record a graph, too
            peak = (gpu_peak(run) - before) / 2**20 if work.device == "cuda" else None
            runs[name] = Checked(run, error, repeats, peak and round(peak, 1))
        except Unavailable as reason:
            skipped[name] = str(reason)
        except AssertionError as reason:
            wrong[name] = str(reason)
        except torch.cuda.OutOfMemoryError as reason:
            skipped[name] = one_line(reason)
    return runs, wrong, skipped


def turned(names: list[str], by: int) -> list[str]:
    by %= len(names) or 1
    return names[by:] + names[:by]


def settled() -> int:
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
    settled()
    torch.cuda.reset_peak_memory_stats()
    run()
    synchronize("cuda")
    return torch.cuda.max_memory_reserved()


def resident_peak_apart(work: Work, name: str) -> float | None:
    """The most memory, in MiB, of a process of its own; None where the system does not tell.

    Interpreter and libraries included, the work before the first run left out.
    """
    spawn = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(1, mp_context=spawn) as pool:
        return pool.submit(resident_peak, work, name).result()


def resident_peak(work: Work, name: str) -> float | None:
    run = work.cases[name].run(work)
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
        title=f"{heading(entry)}, median of {entry['rounds']} rounds",
        caption=f"ceiling: {best['gflops']:.0f} GFLOP/s matrix product, {best['gbs']:.0f} GB/s copy",
    )
    grid.add_column("case", no_wrap=True)
    for column, _ in columns(entry):
        grid.add_column(column, justify="right")
    for case in entry["cases"].values():
        grid.add_row(case["title"], *(show(case) for _, show in columns(entry)))
    for name, why in (entry["wrong"] | entry["skipped"]).items():
        grid.add_row(name, why)
    return grid


def save(record: dict) -> Path:
    """Writes a record under its machine, date and, unless of a GPU, kind; a later one of a day takes its place."""
    machine = record["machine"]
    kind = "" if record["kind"] == "gpu" else f"-{record['kind']}"
    path = RESULTS / f"{slug(machine['name'])}-{machine['date']}{kind}.json"
    RESULTS.mkdir(exist_ok=True)
    write_whole(path, json.dumps(record, indent=1) + "\n")
    return path


def write_whole(path: Path, text: str) -> None:
    """Writes a file that at any moment is the old one or the new one."""
    part = path.with_name(path.name + ".part")
    part.write_text(text, encoding="utf-8")
    os.replace(part, path)


if __name__ == "__main__":
    sys.exit(main())
