"""Finds launch configurations on this GPU: `python -m bench.tune [--minutes N] [--op TEXT ...]`.

For each kernel and number of features: all candidates are compiled in parallel processes, which takes most of the
time; then each is checked for right results and timed once, at 1080p or, for training, on patches; then the best are
timed in turns. What is best, and whether a special kernel is faster than the portable one, is written to
kernels/triton/configs/<gpu>.json after every step. Found in fp16, and taken over for bf16, which costs the same.
"""

import argparse
import gc
import json
import statistics
import time
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from dataclasses import dataclass
from datetime import date
from multiprocessing import get_context
from typing import Any, TypeVar

import torch
import triton
from rich.console import Console

from bench.compare import rotated
from bench.isolate import Heartbeat, command, one_line, run_isolated, time_limit
from bench.machine import Ceiling, clock, refused, repeats_for
from bench.ops import SingleOp
from bench.records import write_whole
from bench.report import markdown
from bench.tuning_space import CHOICES, IMAGE, SHARED, SHORT, TARGETS, Target
from bench.workloads import Run, Unavailable, recorded
from edsr.kernels import aot
from edsr.kernels.triton import launch
from edsr.kernels.triton.hopper import self_test
from edsr.kernels.triton.launch import Config

FINALISTS, ROUNDS = 6, 7
T = TypeVar("T")
WRONG = (AssertionError, launch.KernelError, triton.OutOfResources)  # of one candidate; others may be gone on with
LIMIT = 30.0  # seconds for one candidate
CHOICES_SECONDS = 30.0  # kept for the comparison of kernels that do the same


# --- configurations for one call


def forced(op: str, config: Config):
    """Inside, kernel `op` is launched with `config`, all others with their defaults."""
    return launch.override_configs(lambda asked, key, default: config if asked == op else default)


# --- compiling


def compile_candidate(target: Target, config: Config, arch: int, shared: int = SHARED) -> str | None:
    """Compiles all that timing it will need into Triton's cache; the reason if it cannot be done."""

    def call() -> None:
        for op in target.operations(target.sizes.full, "meta"):
            with forced(target.op, config):
                op.cases[target.case].build(op)()
        if target.hopper:
            with forced(target.op, config):
                self_test.compile_check(target.hopper, torch.float16, arch)

    outcome = aot.compile_case(aot.Case(str(target), "fp16", call, 0, 0), arch)
    wanted = max((kernel.metadata.shared for kernel in outcome.kernels), default=0)
    too_much = [f"{wanted} B of shared memory, where a block may have {shared}"] if wanted > shared else []
    return "; ".join(outcome.failures + too_much) or None


# --- timing, in a process of its own


@dataclass(frozen=True)
class Step:
    """What is measured in one go: candidates of one kernel, or rivals. found: configurations so far, by op and key."""

    target: Target | None = None
    candidates: tuple[Config, ...] = ()
    choice: tuple[str, int, tuple[str, ...]] | None = None
    found: dict[str, dict[str, Config]] | None = None

    def __str__(self) -> str:
        return str(self.target) if self.target else "-".join(map(str, self.choice[:2])) if self.choice else ""


def label(config: Config) -> str:
    return " ".join(f"{name}={value}" for name, value in config.items())


def step(item: Step, failed: dict[str, str], at: Heartbeat) -> dict[str, Any]:
    """Measures an item on the GPU; see `bench.isolate.run_isolated`."""
    torch.backends.cudnn.benchmark = True
    try:
        return tuned(item, failed, at) if item.target else head_to_head(item, failed, at)
    except Unavailable as error:
        return {"rows": [], "seconds": {}, "failed": {str(item): str(error)}, "tried": 0}
    finally:
        gc.collect()
        torch.cuda.empty_cache()


@torch.inference_mode()
def tuned(item: Step, failed: dict[str, str], at: Heartbeat) -> dict[str, Any]:
    """{rows: [{config, seconds, tflops, percent}], best first; failed: {label: why}; key}."""
    target, wrong = item.target, dict(failed)
    assert target is not None
    at("the ceiling")
    ceiling = Ceiling("cuda", torch.float16)
    at("the results in fp64")
    small, odd, full = map(target.operations, target.sizes)
    checks = [(op, op.cases[target.case].build(op)) for op in small]
    odd_checks = [(op, op.cases[target.case].build(op)) for op in odd]
    for op in small + odd:
        _ = op.reference_error
    runs = [op.cases[target.case].build(op) for op in full]

    def run() -> None:
        for each_run in runs:
            each_run()

    def timed() -> Run:
        """`run`, with the configuration of the moment."""
        return recorded(run) if target.sizes in SHORT else run

    first: list[tuple[float, int, Config]] = []
    key = ""
    for i, config in enumerate(item.candidates):
        if label(config) in failed:
            continue
        at(label(config), LIMIT)
        try:
            with forced(target.op, config):
                for op, check in checks:
                    op.check(check, poison=True)
            with forced(target.op, config) as asked:
                candidate = timed()
                first.append((min(clock(candidate, "cuda") for _ in range(4)), i, config))
            key = next(key for op, key in asked if op == target.op)
        except WRONG as error:
            wrong[label(config)] = one_line(error)
    finalists = [config for _, _, config in sorted(first)[:FINALISTS]]
    seconds: dict[str, list[float]] = {label(config): [] for config in finalists}
    for i in range(ROUNDS):
        ceiling.measure()
        for j in rotated([str(n) for n in range(len(finalists))], i):
            config = finalists[int(j)]
            at(label(config), LIMIT)
            with forced(target.op, config):
                candidate = timed()
                seconds[label(config)].append(clock(candidate, "cuda", repeats_for(candidate, "cuda")))
    gflop = sum(op.gflop(collapsed=True) for op in full)
    rows = []
    for config in sorted(finalists, key=lambda config: statistics.median(seconds[label(config)])):
        at(label(config), 2 * LIMIT)  # compiles it once more
        with forced(target.op, config):
            try:
                for op, check in odd_checks:
                    op.check(check, poison=True)
                # These sizes turn no ring; this does.
                if target.hopper and (why := self_test.check(target.hopper, torch.float16, torch.device("cuda"))):
                    raise AssertionError(why)
            except WRONG as error:
                wrong[label(config)] = f"at other sizes: {one_line(error)}"
                continue
        median = statistics.median(seconds[label(config)])
        percent = 100 * gflop / median / ceiling.gflops
        rows.append({"config": config, "seconds": median, "tflops": gflop / median / 1e3, "percent": percent})
    return {"rows": rows, "failed": wrong, "key": key, "tried": len(item.candidates)}


@torch.inference_mode()
def head_to_head(item: Step, failed: dict[str, str], at: Heartbeat) -> dict[str, Any]:
    """{seconds: {case: median}, failed, key}; cases that are wrong or not there have no seconds."""
    assert item.choice is not None
    name, features, cases = item.choice
    found, wrong = item.found or {}, dict(failed)
    with launch.override_configs(lambda op, key, default: found.get(op, {}).get(key, default)):
        full, small = SingleOp(name, features, *IMAGE.full[1:]), SingleOp(name, features, *IMAGE.odd[1:])
        runs = {}
        for case in cases:
            if case in failed:
                continue
            at(case, 2 * LIMIT)
            try:
                small.check(small.cases[case].run(small), poison=True)
                runs[case] = full.cases[case].run(full)
                runs[case]()
            except Exception as error:
                wrong[case] = one_line(error)
        times: dict[str, list[float]] = {case: [] for case in runs}
        for i in range(ROUNDS):
            for case in rotated(list(runs), i):
                at(case, LIMIT)
                times[case].append(clock(runs[case], "cuda", repeats_for(runs[case], "cuda")))
    return {"seconds": {case: statistics.median(values) for case, values in times.items()}, "failed": wrong}


# --- the command


def main(began: float | None = None) -> int:
    """began: see `bench.isolate.time_limit`."""
    parser = argparse.ArgumentParser(
        prog="python -m bench.tune", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--minutes", type=float, default=10.0, help="stop after; default: %(default)s")
    parser.add_argument("--op", nargs="+", default=[""], metavar="TEXT", help="only kernels whose name has it")
    options = parser.parse_args()
    deadline = time_limit(60 * options.minutes, began)
    before_choices = deadline - min(CHOICES_SECONDS, 12 * options.minutes)
    if refused("cuda"):
        return 2
    gpu, arch = torch.cuda.get_device_name(), launch.architecture(torch.device("cuda"))
    shared = torch.cuda.get_device_properties("cuda").shared_memory_per_block_optin
    console = Console(stderr=True)
    targets = [target for target in named_in(options.op, TARGETS) if not target.archs or arch in target.archs]
    record = read(gpu)
    started = time.monotonic()
    with Compiler(targets, arch, shared, before_choices) as compiler:
        for item, result in run_isolated(step, compiler.steps(console), before_choices):
            if isinstance(result, str):
                console.print(f"{item}: {result}", style="red", markup=False)
                continue
            for name, why in (compiler.failed.get(str(item), {}) | result["failed"]).items():
                console.print(f"{item}: {name}: {why}", markup=False, highlight=False, soft_wrap=True)
            console.print(report(item, result), markup=False, highlight=False, soft_wrap=True)
            keep(record, item, result)
            write(gpu, record)
    choices = named_in(options.op, [Step(choice=choice, found=record["configs"]) for choice in CHOICES])
    for item, result in run_isolated(step, choices if arch == 90 else [], deadline):
        if isinstance(result, str):
            console.print(f"{item}: {result}", style="red", markup=False)
            continue
        for name, why in result["failed"].items():
            console.print(f"{item}: {name}: {why}", markup=False, highlight=False, soft_wrap=True)
        choose(record, item, result["seconds"])
        console.print(f"{item}: " + ", ".join(f"{case} {1e3 * s:.3f} ms" for case, s in result["seconds"].items()))
        write(gpu, record)
    minutes = (time.monotonic() - started) / 60
    console.print(f"{minutes:.1f} minutes; written to {launch.FOLDER.name}/{launch.slug(gpu)}.json")
    return 0


def named_in(texts: Sequence[str], items: Iterable[T]) -> list[T]:
    """Those whose names have one of the texts in them, as of --op: hopper_conv64-64, relu-64."""
    return [item for item in items if any(text in str(item) for text in texts)]


class Compiler:
    """Compiles candidates of all targets in parallel, in order, while others are measured.

    failed: why candidates cannot be compiled, by target and label.
    """

    def __init__(self, targets: list[Target], arch: int, shared: int, deadline: float):
        # Two cores are left to the process that measures and to this one.
        workers = max(1, aot.usable_cores() - 2)
        self._pool = ProcessPoolExecutor(workers, mp_context=get_context("spawn"))
        self._targets = [(target, target.candidates(shared)) for target in targets]
        self._deadline = deadline
        self._jobs: dict[tuple[str, str], Future] = {
            (str(target), label(config)): self._pool.submit(compile_candidate, target, config, arch, shared)
            for target, candidates in self._targets
            for config in candidates
        }
        self.failed: dict[str, dict[str, str]] = {}

    def __enter__(self) -> "Compiler":
        return self

    def __exit__(self, *_: object) -> None:
        self._pool.shutdown(wait=False, cancel_futures=True)

    def steps(self, console: Console) -> Iterator[Step]:
        """A step for each target as soon as its candidates are compiled, until the time is over."""
        for target, candidates in self._targets:
            started, ready = time.monotonic(), []
            failed = self.failed.setdefault(str(target), {})
            for config in candidates:
                job = self._jobs[str(target), label(config)]
                try:
                    reason = job.result(timeout=max(0.0, self._deadline - time.monotonic()))
                except TimeoutError:
                    return
                except Exception as error:  # its process has died
                    reason = one_line(error)
                if reason is None:
                    ready.append(config)
                else:
                    failed[label(config)] = reason
            waited = time.monotonic() - started
            console.print(f"{target}: {len(ready)} of {len(candidates)} candidates compiled, waited {waited:.0f} s")
            if ready:
                yield Step(target, tuple(ready))


def report(item: Step, result: dict[str, Any]) -> str:
    """The table of a kernel's best configurations."""
    rows = [
        (label(row["config"]), f"{1e3 * row['seconds']:.3f}", f"{row['tflops']:.0f}", f"{row['percent']:.0f} %")
        for row in result["rows"]
    ]
    return f"{item}, {result['tried']} tried\n" + markdown(("configuration", "ms", "TFLOP/s", "of ceiling"), rows)


def keep(record: dict[str, Any], item: Step, result: dict[str, Any]) -> None:
    """Puts a kernel's best configuration into a record, for fp16 and, under the key that differs by it, bf16."""
    if item.target is None or not result["rows"]:
        return
    entries = record["configs"].setdefault(item.target.op, {})
    for dtype in ("fp16", "bf16"):
        entries[result["key"].replace("fp16", dtype, 1)] = result["rows"][0]["config"]


def choose(record: dict[str, Any], item: Step, seconds: dict[str, float]) -> None:
    """Puts into a record which of several ways of one operation is the fastest, with the times."""
    if item.choice is None:
        return
    name, features, _ = item.choice
    milliseconds = {case: float(f"{1e3 * value:.4g}") for case, value in seconds.items()}
    entries = record["choices"].setdefault(name, {})
    for dtype in ("fp16", "bf16"):
        entries.pop(f"{dtype} {features}", None)
        if len(seconds) > 1:
            fastest = min(seconds, key=lambda case: seconds[case])
            entries[f"{dtype} {features}"] = {"fastest": fastest, "ms": milliseconds}


def read(gpu: str) -> dict[str, Any]:
    """The record of a GPU so far, or an empty one, under today's date and versions."""
    path = launch.FOLDER / f"{launch.slug(gpu)}.json"
    before = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    head = {"gpu": gpu, "date": date.today().isoformat(), "triton": triton.__version__, "torch": torch.__version__}
    return head | {"configs": before.get("configs", {}), "choices": before.get("choices", {})}


def write(gpu: str, record: dict[str, Any]) -> None:
    launch.FOLDER.mkdir(exist_ok=True)
    write_whole(launch.FOLDER / f"{launch.slug(gpu)}.json", json.dumps(record, indent=1) + "\n")


if __name__ == "__main__":
    command(main)
