"""A step of training, ours beside its peers: `python -m bench.training [--model NAME ...] [--save] [--choose]`.

The ways to do it are those of `bench.training_steps`. What is timed is steps one after another, with all they need:
patches, forward, backward, optimizer, learning the losses. Timed are only ways found right, in turns, round by round
and starting with another one each time, together with the machine's ceiling.

Right means: the loss of the first step, on the same patches and weights, is off from fp64 by at most twice the mean
error of what the network gives in eager PyTorch in the same precision, which bounds what that error does to the loss;
the gradient's direction by at most twice as much as eager PyTorch's; some steps later the loss has fallen; and the
first step, done once more, by now as a graph where there is one, is right again.
"""

import argparse
import json
import multiprocessing
import statistics
import time
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import torch
from rich.console import Console

from bench.compare import allocated_bytes, resident_peak, rotated
from bench.isolate import Heartbeat, command, ending_on_sigterm, here, one_line, run_isolated, time_limit
from bench.machine import Ceiling, describe, machine_line, refused, stopwatch
from bench.records import Measured, Record
from bench.report import targets_table, training_table
from bench.training_steps import BASELINE, IMPLEMENTATIONS, Loop, Ours, Training, budget
from bench.workloads import Unavailable
from edsr.models.edsr import PRESETS, SCALES

TRAINED = 20  # steps after which the loss must have fallen
PROFILED = 20  # steps at least that the GPU's share is taken from
PROFILER = "the profiler"
LIMIT = 20.0  # seconds on a GPU for anything but making a way ready


def check(work: Training, way: Loop | Ours) -> tuple[float, float]:
    """The largest errors of loss and direction. Raises AssertionError if they are more than rounding."""
    errors = [_first_errors(work, way)]
    way.run(TRAINED)
    before, after = work.target.loss, work.loss_of(way.model)
    if not after < before - budget(work, torch.float32)[0]:  # by more than rounding
        raise AssertionError(f"{TRAINED} steps took the loss from {before:.4f} to {after:.4f}")
    errors.append(_first_errors(work, way))
    return max(loss for loss, _ in errors), max(gradient for _, gradient in errors)


def _first_errors(work: Training, way: Loop | Ours) -> tuple[float, float]:
    loss, gradient = way.first()
    errors = abs(loss - work.target.loss), (gradient - work.target.direction).norm().item()
    for what, error, limit in zip(("loss", "gradient"), errors, budget(work, way.dtype), strict=True):
        if not error <= limit:
            raise AssertionError(f"wrong {what}: off by {error:.1e}, at most {limit:.1e} is rounding")
    return errors


@dataclass
class Checked:
    """A way found right. errors: of loss and gradient. steps: timed in each round. peak_mib: of GPU memory.

    sample: seconds of a step, before there are rounds.
    """

    way: Loop | Ours
    errors: tuple[float, float]
    steps: int
    peak_mib: float | None
    sample: float = float("nan")
    busy_percent: float | None = None

    def run(self) -> None:
        self.way.run(self.steps)

    def step_seconds(self, device: str) -> float:
        """What a step takes, in one go of `steps`."""
        self.way.run(self.way.lead)
        return stopwatch(self.run, device) / self.steps


def ready(work: Training, name: str, seconds: float) -> Checked:
    """Raises Unavailable, AssertionError if it is wrong, or torch.cuda.OutOfMemoryError."""
    on_gpu, peak = work.device == "cuda", None
    before = allocated_bytes() if on_gpu else 0
    way = IMPLEMENTATIONS[name].build(work)
    errors = check(work, way)
    if on_gpu:  # as in bench.compare.gpu_peak
        allocated_bytes()
        torch.cuda.reset_peak_memory_stats()
    way.run(way.lead)
    if on_gpu:
        peak = round((torch.cuda.max_memory_reserved() - before) / 2**20, 1)
    portions = seconds / stopwatch(lambda: way.run(way.portion), work.device)
    return Checked(way, errors, max(1, round(portions)) * way.portion, peak)


class Item(NamedTuple):
    work: Training
    names: tuple[str, ...]
    rounds: int
    seconds: float


def compare(item: Item, failed: dict[str, str], at: Heartbeat) -> dict[str, Any]:
    """The part of the record about one piece of work, told so far whenever there is more. failed, at: see
    `bench.isolate.run_isolated`."""
    work, device = item.work, item.work.device
    console = Console(stderr=True)
    if PROFILER in failed and at.before is not None:  # it comes last, so all else is known
        return at.before | {"skipped": at.before["skipped"] | {PROFILER: failed[PROFILER]}}
    found = Compared(work, failed)
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = True
    try:
        at("the ceiling", LIMIT)
        ceiling = found.ceiling = Ceiling(device, work.dtype)
        ceiling.measure()
        at("the step in fp64", LIMIT)
        _ = work.target
    except torch.cuda.OutOfMemoryError as reason:
        found.skipped |= dict.fromkeys(item.names, one_line(reason))
        return found.entry()
    for name in [name for name in item.names if name not in failed]:
        at(name, IMPLEMENTATIONS[name].limit)
        console.print(f"{work}: checking {IMPLEMENTATIONS[name].title}")
        try:
            checked = ready(work, name, item.seconds)
            checked.sample = checked.step_seconds(device)
            found.runs[name] = checked
        except Unavailable as reason:
            found.skipped[name] = str(reason)
        except AssertionError as reason:
            found.incorrect[name] = str(reason)
        except torch.cuda.OutOfMemoryError as reason:
            found.skipped[name] = one_line(reason)
        at.so_far(found.entry())
    for i in range(item.rounds if found.runs else 0):
        console.print(f"{work}: round {i + 1} of {item.rounds}")
        at("the ceiling", LIMIT)
        ceiling.measure()
        times = {}
        for name in rotated(list(found.runs), i):
            at(name, LIMIT)
            times[name] = found.runs[name].step_seconds(device)
        for name, seconds in times.items():
            found.rounds.setdefault(name, []).append(seconds)
        at.so_far(found.entry())
    if device == "cpu":
        for name, checked in found.runs.items():
            checked.peak_mib = resident_peak_apart(work, name)
    if device == "cuda":
        at(PROFILER, LIMIT)
        try:
            for name, times in found.rounds.items():
                checked = found.runs[name]
                if isinstance(checked.way, Ours):
                    checked.busy_percent = busy_percent(checked.way, statistics.median(times))
                    at.so_far(found.entry())
        except RuntimeError as reason:
            found.skipped[PROFILER] = one_line(reason)
    return found.entry()


@dataclass
class Compared(Measured):
    """What is known about a step of training; rounds are of seconds a step."""

    def entry(self) -> dict[str, Any]:
        work, kind, gflops = self.work, self.work.config, self.ceiling.gflops if self.ceiling else 0.0
        times = self.rounds or {name: [checked.sample] for name, checked in self.runs.items()}
        entry = {"work": str(work), "model": work.name, "scale": kind.scale, "blocks": kind.blocks}
        entry |= {"features": kind.features, "batch": work.batch, "patch": work.patch, "workers": work.workers}
        entry |= {"gflop": round(work.gflop, 2), "ceiling": self.ceilings}
        return self.logged(entry, {name: self._case(name, values, gflops) for name, values in times.items()})

    def _case(self, name: str, times: list[float], ceiling: float) -> dict[str, Any]:
        work, checked, median, base = self.work, self.runs[name], statistics.median(times), self.rounds.get(BASELINE)
        loss, gradient = checked.errors
        return {
            "title": IMPLEMENTATIONS[name].title,
            "precision": str(checked.way.dtype).removeprefix("torch."),
            "turns": self.turns if self.rounds else None,
            "seconds": [float(f"{t:.4g}") for t in times],
            "median": float(f"{median:.4g}"),
            "ratio": round(statistics.median(b / t for b, t in zip(base, times, strict=True)), 3) if base else None,
            "patches_per_second": round(work.batch / median, 1),
            "gflops": round(work.gflop / median, 1),
            "ceiling_percent": round(100 * work.gflop / median / ceiling, 1),
            "loss_error": float(f"{loss:.2e}"),
            "gradient_error": float(f"{gradient:.2e}"),
            "peak_mib": checked.peak_mib,
            "busy_percent": checked.busy_percent,
        }


def resident_peak_apart(work: Training, name: str) -> float | None:
    """The most memory, in MiB, of a process that takes steps; interpreter and libraries included. None where the system
    does not tell."""
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
        return pool.submit(_resident_peak, work, name, torch.get_num_threads()).result()


def _resident_peak(work: Training, name: str, threads: int) -> float | None:
    torch.set_num_threads(threads)
    way = IMPLEMENTATIONS[name].build(work)
    return resident_peak(lambda: way.run(3))


def busy_percent(way: Loop | Ours, seconds: float) -> float | None:
    """The share of a step of `seconds` in which the GPU works: time in kernels and copies, as the profiler sees it.

    The profiler slows steps down, but what it measures of each kernel holds, so the step's time is that without it.
    None where it may not see anything.
    """
    steps = -(-PROFILED // way.portion) * way.portion
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA]) as profile:
        way.run(steps)
    on_gpu = [e for e in profile.events() or [] if e.device_type.name == "CUDA" and not e.is_user_annotation]
    microseconds = covered([(e.time_range.start, e.time_range.end) for e in on_gpu]) / steps
    return round(microseconds / 1e4 / seconds, 1) if on_gpu else None


def covered(spans: list[tuple[float, float]]) -> float:
    """The length of the union of intervals."""
    total, reached = 0.0, float("-inf")
    for start, end in sorted(spans):
        total += max(0.0, end - max(start, reached))
        reached = max(reached, end)
    return total


def choose(gpu: str, entry: dict[str, Any]) -> None:
    """Notes which operations made the faster step of ours, for `launch.choice("training_step", "bf16 64", device)`.

    Ways that were wrong or died are not chosen, whatever they took before.
    """
    from bench import tune  # needs Triton, which there is not for every CPU

    record, names = tune.read(gpu), ("torch", "triton")
    right = [name for name in names if name in entry["cases"] and name not in entry["incorrect"]]
    seconds = {name: entry["cases"][name]["median"] for name in right}
    tune.choose(record, tune.Step(choice=("training_step", entry["features"], names)), seconds)
    tune.write(gpu, record)


# --- the command


def main(began: float | None = None) -> int:
    """began: when the process did, by time.monotonic(); None for now."""
    parser = argparse.ArgumentParser(
        prog="python -m bench.training", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--device", choices=("cpu", "cuda"), help="default: cuda where there is one")
    parser.add_argument("--model", nargs="+", choices=PRESETS, default=["edsr-baseline"], help="default: %(default)s")
    parser.add_argument("--scale", type=int, choices=SCALES, default=2, help="default: %(default)s")
    parser.add_argument("--batch", type=int, default=16, help="patches; default: %(default)s")
    parser.add_argument("--patch", type=int, default=48, help="LR pixels a side; default: %(default)s")
    parser.add_argument("--rounds", type=int, default=7, help="default: %(default)s")
    parser.add_argument("--seconds", type=float, default=0.3, help="of each way in a round; default: %(default)s")
    parser.add_argument("--workers", type=int, help="of a DataLoader; default: 4, on a CPU none")
    parser.add_argument("--minutes", type=float, default=float("inf"), help="on a GPU, stop after; default: never")
    parser.add_argument(
        "--only", nargs="+", choices=IMPLEMENTATIONS, default=list(IMPLEMENTATIONS), help="in this order; default: all"
    )
    parser.add_argument("--save", action="store_true", help="merge the record into the day's in bench/results")
    parser.add_argument(
        "--choose", action="store_true", help="on a GPU, note the faster of ours in kernels/triton/configs"
    )
    parser.add_argument("--json", action="store_true", help="print the record")
    options = parser.parse_args()
    deadline = time_limit(60 * options.minutes, began)
    device = options.device or ("cuda" if torch.cuda.is_available() else "cpu")
    if refused(device):
        return 2
    workers = options.workers if options.workers is not None else {"cuda": 4, "cpu": 0}[device]
    console = Console(stderr=True, markup=False, highlight=False, soft_wrap=True)
    shape = (options.batch, options.patch, device, torch.bfloat16 if device == "cuda" else torch.float32, workers)
    works = [Training(name, replace(PRESETS[name], scale=options.scale), *shape) for name in options.model]
    left = items(works, tuple(dict.fromkeys(options.only)), options.rounds, options.seconds)

    def so_far(item: Item, entry: dict) -> None:
        record.put(entry)

    def begin() -> Iterator[tuple[Item, Any]]:
        # A process of its own for each, with a GPU that no profiler and no other network has touched.
        return (
            run_isolated(compare, left[:1], deadline, so_far) if device == "cuda" else here(compare, left[:1], so_far)
        )

    done = begin()
    record = Record("training", describe(device), options.save)
    console.print(machine_line(record.content["machine"]))
    begun = str(left[0].work)
    try:
        with ending_on_sigterm():
            while left:
                for (work, *_), entry in done:
                    del left[0]
                    if isinstance(entry, str):
                        record.fail(str(work), entry)
                    else:
                        record.put(entry)
                        console.print(training_table(entry))
                        begun = ""
                if left and time.monotonic() < deadline:
                    done, begun = begin(), str(left[0].work)
                else:
                    break
    finally:
        for work, names, *_ in left:
            record.missed(str(work), names)
        path = record.keep()
        if options.choose and device == "cuda":
            for entry in record.content["workloads"]:
                choose(record.content["machine"]["name"], entry)
    for entry in record.content["workloads"]:
        if entry["work"] == begun and left:
            console.print(training_table(entry))
    for line in [*record.content.get("failed", {}).values(), *record.content.get("not_reached", [])]:
        console.print(line)
    if device == "cuda":
        console.print(targets_table(record.content))
    if path is not None:
        console.print(f"saved as {path}")
    if options.json:
        print(json.dumps(record.content))
    return 1 if record.bad else 0


def items(works: list[Training], names: tuple[str, ...], rounds: int, seconds: float) -> list[Item]:
    """All ways of the first work; then on a GPU the others without what is slow to make ready; then all of those."""
    quick = tuple(name for name in names if not IMPLEMENTATIONS[name].slow)
    early = [Item(work, quick, rounds, seconds) for work in works[1:] if work.device == "cuda" and quick != names]
    first, *rest = [Item(work, names, rounds, seconds) for work in works]
    return [first, *early, *rest]


if __name__ == "__main__":
    command(main)
