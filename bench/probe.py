"""Tries the kernels for Hopper GPUs on this GPU, and notes what was found for all of its kind: `python -m bench.probe`.

As `python -m kernels.triton.hopper.probe` does for one machine, each in a process of its own; the statuses go into
kernels/triton/configs/<gpu>.json as `choices["hopper"]`, from where a kernel that is not right is never launched again.
"""

import argparse
import sys

import torch

from bench import tune
from bench.machine import describe, machine_line, refused
from edsr.kernels.triton import launch
from edsr.kernels.triton.hopper import verification
from edsr.kernels.triton.hopper.probe import command, probe


def main() -> int:
    parser = argparse.ArgumentParser(
        prog="python -m bench.probe", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--seconds", type=float, default=10.0, help="that each kernel has; default: %(default)s")
    parser.add_argument("--compiling", type=float, default=60.0, help="that all have to compile; default: %(default)s")
    options = parser.parse_args()
    if refused("cuda"):
        return 2
    print(machine_line(describe("cuda")), flush=True)
    if launch.architecture(torch.device("cuda", 0)) != 90:
        print("no Hopper GPU: the portable kernels serve")
        return 0
    gpu, found = torch.cuda.get_device_name(), {}
    for key, words in probe([*command(0), "--one"], options.seconds, options.compiling):
        print(f"{key}: {words}", flush=True)
        if words.startswith(verification.UNTRIED):
            continue
        found[key] = words
        record = tune.read(gpu)
        record["choices"]["hopper"] = verification.shipping_record(found)
        tune.write(gpu, record)  # after each: what comes next may take the machine with it
    right = sum(words == verification.VERIFIED for words in found.values())
    print(f"{right} of {len(verification.ALL)} right; the others are not launched")
    return 0 if right == len(verification.ALL) else 1


if __name__ == "__main__":
    sys.exit(main())
