"""Whether every kernel gives right results on this GPU: `python -m bench.verify [--seconds N]`. Times nothing.

On small images of odd sizes, in fp16 and bf16, against fp64, what is used most first; the network also on an image of
the size that the kernels for large ones serve. Each case is checked as it is, and again with the work narrowed to one
multiprocessor, because only so do the rings in shared memory turn: where the work is shared by 132, a block of threads
computes a row. Several processes work side by side. A kernel that hangs or crashes is named, too.

The record of the day, of kind "check", is on file at any moment. `--seconds` counts from the start of the process and
ends it in time; what was not reached by then counts as not right: exit code 1.
"""

import argparse
import contextlib
import importlib
from dataclasses import replace
from typing import Any, NamedTuple

import torch
from rich.console import Console

from bench.frames import GpuNetwork
from bench.isolate import Heartbeat, command, ending_on_sigterm, side_by_side, time_limit
from bench.machine import available_cores, describe, machine_line, refused
from bench.ops import operations
from bench.records import now, save
from bench.windows import largest
from bench.workloads import Unavailable, Workload
from edsr.models.edsr import PRESETS

SIZE = (17, 131)  # rows, columns: narrowed to one multiprocessor, the deepest ring turns three times
LARGE = (241, 275)  # of MANY pixels, see edsr/kernels/triton/conv3x3.py
PROCESSES = 8  # at most
LIMIT = 20.0  # seconds for a case, compiling included
NARROWED = ", narrowed"


class Checked(NamedTuple):
    """A piece of work, and how its cases are called."""

    work: Workload

    def __str__(self) -> str:
        return f"{self.work} {str(self.work.dtype).removeprefix('torch.')}"

    def parts(self) -> dict[str, tuple[str, bool]]:
        """What is checked: name -> (case, whether narrowed)."""
        ours = [name for name, case in self.work.cases.items() if case.ours]
        return {name + NARROWED * narrow: (name, narrow) for name in ours for narrow in (False, True)}

    def names(self) -> list[str]:
        return [f"{self} {part}" for part in self.parts()]


def works(
    device: str = "cuda", height: int = SIZE[0], width: int = SIZE[1], large: tuple[int, int] = LARGE
) -> list[Workload]:
    """All that is checked, in the order of worth, since compiling may take all the time there is: networks first, which
    have every kernel that serves images; then operations of 64 features, which are trained in bf16; then others."""
    dtypes = (torch.float16, torch.bfloat16)
    networks = [
        GpuNetwork(replace(PRESETS["edsr-baseline"], scale=scale), *size, device, dtype)
        for dtype in dtypes
        for scale, size in ((2, large), (4, (height, width)))
    ]
    single = [op for dtype in dtypes for op in operations(height, width, device=device, dtype=dtype)]
    baseline = [op for op in single if op.features == 64]
    gradients = [op for op in baseline if op.images > 1]
    forward = [op for op in baseline if op.images == 1]
    rest = [op for op in single if op.features != 64]
    return [*networks, *forward, *gradients[::-1], *rest]


def check(item: Checked, failed: dict[str, str], at: Heartbeat) -> dict[str, str]:
    """What became of each part, told as soon as it is known; see `bench.isolate.run_isolated`."""
    work, message = item.work, {**(at.before or {}), **failed}
    at("the result in fp64", LIMIT)
    _ = work.reference_error
    for part, (name, narrow) in item.parts().items():
        if part in message:
            continue
        at(part, LIMIT)
        with narrowed() if narrow else contextlib.nullcontext():
            message[part] = status(work, name)
        at.so_far(dict(message))
    return message


def status(work: Workload, name: str) -> str:
    try:
        run = work.cases[name].run(work)  # anew, and with it the graphs that it records
        # Thrice: the first may be computed in another way than the second and those after it (CUDA graphs).
        return f"off by {largest([work.check(run, poison=True) for _ in range(3)]):.1e}"
    except Unavailable as error:
        return f"not here: {error}"
    except AssertionError as error:
        return f"WRONG: {error}"


def narrowed() -> Any:
    """Inside, launchers share work out as if there were one multiprocessor."""
    return importlib.import_module("edsr.kernels.triton.launch").limit_multiprocessors(1)


def is_bad(words: str) -> bool:
    return not words.startswith(("off by", "not here"))


def main(began: float | None = None) -> int:
    """began: when the process did, by time.monotonic(); None for now."""
    parser = argparse.ArgumentParser(
        prog="python -m bench.verify", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--seconds", type=float, default=float("inf"), help="stop after; default: never")
    options = parser.parse_args()
    deadline = time_limit(options.seconds, began)
    if refused("cuda"):
        return 2
    console = Console(stderr=True, highlight=False, markup=False, soft_wrap=True)
    machine = describe("cuda")
    console.print(machine_line(machine))
    items = [Checked(work) for work in works()]
    cases: dict[str, str] = {}
    record: dict[str, Any] = {"kind": "check", "machine": machine, "run": now()}

    def keep() -> None:
        missing = [name for item in items for name in item.names() if name not in cases]
        save(record | {"cases": cases, "incorrect": sum(map(is_bad, cases.values())), "not_reached": missing})

    def tell(item: Checked, message: dict[str, str]) -> None:
        for part, words in message.items():
            name = f"{item} {part}"
            if cases.get(name) != words:
                cases[name] = words
                console.print(f"{name}: {words}", style="red" if is_bad(words) else None)
        keep()

    processes = min(PROCESSES, len(available_cores()), len(items))
    try:
        with ending_on_sigterm():
            for item, message in side_by_side(check, items, processes, deadline, tell):
                if isinstance(message, str):  # nothing of it could be done any more
                    message = {part: message for part in item.parts() if f"{item} {part}" not in cases}
                tell(item, message)
    finally:
        keep()
    missing = [name for item in items for name in item.names() if name not in cases]
    for name in missing:
        console.print(f"{name}: not reached", style="red")
    bad = sum(map(is_bad, cases.values()))
    console.print(f"{len(cases) - bad} right or not here, {bad} wrong, {len(missing)} not reached")
    return 1 if bad or missing else 0


if __name__ == "__main__":
    command(main)
