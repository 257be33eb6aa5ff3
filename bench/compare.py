"""Every way to run the network, side by side: `python -m bench.compare [--rounds N] [--save]`.

All cases of a workload are checked against fp64 first; one that is wrong gets no figures. Then they are
timed in turns, round by round and starting with another one each time, together with the machine's
ceiling, so that what else the machine does meets all of them. Given are medians, and of ratios the median
over rounds. A table goes to standard error, one JSON document to standard output.
"""

import argparse
import gc
import json
import multiprocessing
import statistics
import sys
from concurrent.futures import ProcessPoolExecutor
from importlib.metadata import version
from pathlib import Path

import torch
from rich import box
from rich.console import Console
from rich.table import Table

from bench.cases import BASE, CASES, Run, Unavailable, Workload, workloads
from bench.machine import Ceiling, describe, machine_line, slug, stopwatch

RESULTS = Path(__file__).with_name("results")


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m bench.compare", description=__doc__)
    parser.add_argument("--rounds", type=int, default=7, help="default: %(default)s")
    parser.add_argument("--device", choices=("cpu", "cuda"), help="default: cuda where there is one")
    parser.add_argument("--save", action="store_true", help="write the document into bench/results, too")
    options = parser.parse_args()
    device = options.device or ("cuda" if torch.cuda.is_available() else "cpu")
    console = Console(stderr=True)
    record = {"kind": "compare", "machine": describe(device), "workloads": []}
    console.print(machine_line(record["machine"]))
    for work in workloads(device):
        entry = compare(work, options.rounds, console)
        console.print(table(entry))
        record["workloads"].append(entry)
    print(json.dumps(record))
    if options.save:
        console.print(f"saved as {save(record)}")
    return 1 if any(entry["wrong"] for entry in record["workloads"]) else 0


def compare(work: Workload, rounds: int, console: Console) -> dict:
    """The part of the record about one workload."""
    kind = work.model.config
    entry: dict = {"scale": kind.scale, "blocks": kind.blocks, "features": kind.features}
    entry |= {"width": work.width, "height": work.height, "precision": str(work.dtype).removeprefix("torch.")}
    runs, errors, wrong, skipped = ready(work, console)
    ceiling = Ceiling(work.device, work.dtype)
    seconds: dict[str, list[float]] = {name: [] for name in runs}
    for i in range(rounds):
        console.print(f"{work}: round {i + 1} of {rounds}")
        ceiling.measure()
        for name in turned(list(runs), i):
            seconds[name].append(stopwatch(runs[name], work.device))
    runs.clear()
    gc.collect()
    cases = {}
    for name, times in seconds.items():
        median, gflop = statistics.median(times), CASES[name].gflop(work)
        cases[name] = {
            "title": CASES[name].title,
            "version": version(CASES[name].package),
            "seconds": [round(t, 5) for t in times],
            "median": round(median, 5),
            "ratio": round(statistics.median(b / t for b, t in zip(seconds[BASE], times, strict=True)), 3),
            "gflop": round(gflop, 2),
            "gflops": round(gflop / median, 1),
            "ceiling_percent": round(100 * gflop / median / ceiling.gflops, 1),
            "error": float(f"{errors[name]:.2e}"),
            "peak_mib": peak_memory(work, name),
        }
    entry["ceiling"] = {"gflops": round(ceiling.gflops, 1), "gbs": round(ceiling.gbs, 1)}
    return entry | {"rounds": rounds, "cases": cases, "skipped": skipped, "wrong": wrong}


def ready(work: Workload, console: Console) -> tuple[dict[str, Run], dict[str, float], dict, dict]:
    """Every case that can run and is right, its error, why others are wrong, why others cannot run."""
    runs, errors, wrong, skipped = {}, {}, {}, {}
    for name, case in CASES.items():
        console.print(f"{work}: checking {case.title}")
        try:
            run = case.run(work)
            errors[name] = work.check(run)
            runs[name] = run
        except Unavailable as error:
            skipped[name] = str(error)
        except AssertionError as error:
            wrong[name] = str(error)
    if BASE in wrong:
        raise SystemExit(f"{CASES[BASE].title}: {wrong[BASE]}")  # there is nothing to compare with
    return runs, errors, wrong, skipped


def turned(names: list[str], by: int) -> list[str]:
    by %= len(names)
    return names[by:] + names[:by]


def peak_memory(work: Workload, name: str) -> float | None:
    """The most memory, in MiB, that one run of a case holds; None where the system does not tell.

    CPU: resident memory of a process of its own, interpreter and libraries included, the work before the
    first run left out. CUDA: memory of tensors.
    """
    if work.device == "cuda":
        run = CASES[name].run(work)
        run()
        torch.cuda.reset_peak_memory_stats()
        run()
        return round(torch.cuda.max_memory_allocated() / 2**20, 1)
    spawn = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(1, mp_context=spawn) as pool:
        return pool.submit(resident_peak, work, name).result()


def resident_peak(work: Workload, name: str) -> float | None:
    run = CASES[name].run(work)
    gc.collect()
    status = Path("/proc/self/status")
    try:
        Path("/proc/self/clear_refs").write_text("5")  # makes the peak what is resident now
        run()
        (line,) = (line for line in status.read_text().splitlines() if line.startswith("VmHWM:"))
    except OSError:  # not Linux
        return None
    return round(int(line.split()[1]) / 2**10, 1)


def table(entry: dict) -> Table:
    size = f"{entry['width']} x {entry['height']}"
    best = entry["ceiling"]
    grid = Table(
        box=box.SIMPLE,
        title=f"x{entry['scale']} of {size}, {entry['precision']}, median of {entry['rounds']} rounds",
        caption=f"ceiling: {best['gflops']} GFLOP/s matrix product, {best['gbs']} GB/s copy",
    )
    grid.add_column("case", no_wrap=True)
    for column in ("ms", "speed-up", "GFLOP/s", "% ceiling", "MiB", "error"):
        grid.add_column(column, justify="right")
    for case in entry["cases"].values():
        numbers = f"{1e3 * case['median']:.1f}", f"{case['ratio']:.2f}", f"{case['gflops']:.0f}"
        peak = "-" if case["peak_mib"] is None else f"{case['peak_mib']:.0f}"
        grid.add_row(case["title"], *numbers, f"{case['ceiling_percent']:.0f}", peak, f"{case['error']:.0e}")
    for name, why in (entry["wrong"] | entry["skipped"]).items():
        grid.add_row(CASES[name].title, why)
    return grid


def save(record: dict) -> Path:
    """Writes a record under its machine, date and kind; a later one of the same day takes its place."""
    machine = record["machine"]
    path = RESULTS / f"{slug(machine['name'])}-{machine['date']}-{record['kind']}.json"
    RESULTS.mkdir(exist_ok=True)
    path.write_text(json.dumps(record, indent=1) + "\n")
    return path


if __name__ == "__main__":
    sys.exit(main())
