"""Whether every kernel gives right results on this GPU: `python -m bench.check`. Takes seconds; times nothing.

On small pictures of odd sizes, in fp16 and bf16, against fp64. A kernel that hangs or crashes is named, too.
"""

import sys
from dataclasses import replace

import torch
from rich.console import Console

from bench.cases import Unavailable, Work
from bench.frames import Frame
from bench.machine import describe, machine_line, refused
from bench.ops import operations
from bench.worker import At, each
from edsr import PRESETS

SIZE = (13, 131)  # rows, columns


def works(device: str = "cuda", height: int = SIZE[0], width: int = SIZE[1]) -> list[Work]:
    found: list[Work] = []
    for dtype in (torch.float16, torch.bfloat16):
        found += operations(height, width, device=device, dtype=dtype)
        baseline = PRESETS["edsr-baseline"]
        found += [Frame(replace(baseline, scale=scale), height, width, device, dtype) for scale in (2, 4)]
    return found


def check(work: Work, failed: dict[str, str], at: At) -> dict[str, str]:
    """What became of each of our cases; see `bench.worker.each`."""
    said = dict(failed)
    at("the result in fp64")
    _ = work.yardstick
    for name, case in work.cases.items():
        if not case.ours or name in failed:
            continue
        at(name)
        try:
            run = case.run(work)
            # Thrice: the first may be computed in another way than the second and those after it (CUDA graphs).
            said[name] = f"off by {max(work.check(run, poison=True) for _ in range(3)):.1e}"
        except Unavailable as error:
            said[name] = f"not here: {error}"
        except AssertionError as error:
            said[name] = f"WRONG: {error}"
    return said


def main() -> int:
    if refused("cuda"):
        return 2
    console = Console(stderr=True, highlight=False, markup=False)
    console.print(machine_line(describe("cuda")))
    wrong = 0
    for work, said in each(check, works()):
        said = {"": f"WRONG: {said}"} if isinstance(said, str) else said
        for name, words in said.items():
            bad = not words.startswith(("off by", "not here"))
            wrong += bad
            console.print(
                f"{work} {str(work.dtype).removeprefix('torch.')} {name}: {words}", style="red" if bad else None
            )
    console.print(f"{wrong} wrong")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
