"""Runs what writes files, in processes whose system calls strace can let fail or kill.

The server has imported everything, forks a child for each order and says the child's process id; the child waits until
its orders' `go`, a FIFO, is written to, by when strace is attached. Temporary names are numbered, so that they can be
told to strace beforehand.
"""

import ctypes
import itertools
import json
import os
import signal
import sys
import traceback
from pathlib import Path

import torch

from edsr import cli, system
from edsr.errors import EDSRError
from edsr.training import checkpoint

PARTS = [f".edsr-{i:012x}.part" for i in range(4)]
SHARDS = ["00.safetensors", "01.safetensors", "state.json"]
STEP = 7


def state(step: int) -> checkpoint.Checkpoint:
    """What is written as the checkpoint of a step, and of no other."""
    tensors = {f"model.{i}": torch.full((50, 50), float(step + i)) for i in range(2)}
    return checkpoint.Checkpoint(step, tensors, {"best": step})


def command(*arguments: str) -> int:
    return cli.main(list(arguments))


def save_checkpoint(run: str) -> int:
    try:
        checkpoint.write(Path(run), state(STEP))
    except EDSRError as error:
        print(error, file=sys.stderr)
        return 1
    return 0


ACTIONS = {"command": command, "save_checkpoint": save_checkpoint}


def work(order: dict) -> int:
    """The exit code of one order; what it says goes to its log."""
    log = os.open(order["log"], os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    os.dup2(log, 1)
    os.dup2(log, 2)
    numbers = itertools.count()
    system.secrets.token_hex = lambda _: f"{next(numbers):012x}"  # pyright: ignore[reportAttributeAccessIssue]
    checkpoint.SHARD_BYTES = 10_000  # two files of tensors
    with open(order["go"], "rb"):  # until somebody opens it to write
        return ACTIONS[order["action"]](*order["arguments"])


def serve() -> None:
    torch.set_num_threads(1)
    allow_any_tracer = 0x59616D61, ctypes.c_ulong(-1)  # PR_SET_PTRACER, where the system lets parents alone trace
    for line in sys.stdin:
        order = json.loads(line)
        child = os.fork()
        if child == 0:
            code = 3  # of a traceback
            try:
                ctypes.CDLL(None).prctl(*allow_any_tracer, 0, 0, 0)
                code = work(order)
            except BaseException:
                traceback.print_exc()
            finally:
                sys.stdout.flush()
                sys.stderr.flush()
                os._exit(code)
        print(child, flush=True)
        _, status = os.waitpid(child, 0)
        print(os.waitstatus_to_exitcode(status), flush=True)


if __name__ == "__main__":
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    serve()
