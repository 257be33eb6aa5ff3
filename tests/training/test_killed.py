"""A run killed at any moment continues as if it had never been stopped."""

import multiprocessing
import random
import sys
import time

import pytest
import torch
from PIL import Image

from edsr.models.edsr import EDSRConfig
from edsr.training import checkpoint
from edsr.training.config import TrainConfig
from edsr.training.trainer import train
from edsr.weights import load_model
from tests.conftest import make_image

KILLS = 10
STEPS = 120


def work(data: str, out: str) -> None:
    """The run, resumed if there is something to resume."""
    from pathlib import Path

    torch.set_num_threads(1)
    network = EDSRConfig(blocks=1, features=8)
    resume = checkpoint.exists(Path(out))
    sizes = {"steps": STEPS, "batch": 2, "patch": 8, "val_every": 24, "save_every": 3}
    config = TrainConfig(data=(data,), out=out, device="cpu", lr=1e-3, resume=resume, network=network, **sizes)
    for _ in train(config):
        pass


@pytest.mark.slow
@pytest.mark.skipif(sys.platform == "win32", reason="needs SIGKILL")
def test_a_run_killed_ten_times_ends_with_the_same_bits(tmp_path):
    data = tmp_path / "images"
    data.mkdir()
    for i in range(4):
        Image.fromarray(make_image(60 + i, 70, seed=i)).save(data / f"{i}.png")
    # Children of a process that has imported everything begin at once.
    context = multiprocessing.get_context("forkserver")
    slow = ["torch._dynamo", "torch.utils.tensorboard", "matplotlib.figure"]
    context.set_forkserver_preload(["tests.training.test_killed", *slow])
    moments = random.Random(0)

    def start(out) -> multiprocessing.process.BaseProcess:
        process = context.Process(target=work, args=(str(data), str(out)))
        process.start()
        return process

    began = time.monotonic()
    whole = start(tmp_path / "whole")
    whole.join()
    assert whole.exitcode == 0
    usual = time.monotonic() - began
    kills, runs = 0, 0
    while kills < KILLS or not runs:
        out = tmp_path / f"killed{runs}"
        process = start(out)
        process.join(moments.uniform(0, 0.5) * usual if kills < KILLS else None)
        if process.exitcode is None:
            process.kill()
            process.join()
            kills += 1
            continue
        assert process.exitcode == 0  # a run that came to its end between kills: it must be the same
        compare(tmp_path / "whole", out)
        runs += 1


def compare(whole, killed):
    for name in "last", "best":
        want, got = (load_model(run / f"{name}.safetensors").state_dict() for run in (whole, killed))
        assert all(torch.equal(want[key], got[key]) for key in want), name
    want, got = (checkpoint.load_latest(run) for run in (whole, killed))
    assert want.step == got.step == STEPS
    assert all(torch.equal(want.tensors[key], got.tensors[key]) for key in want.tensors)
