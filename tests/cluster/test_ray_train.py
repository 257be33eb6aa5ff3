"""Training by Ray Train: the example, with a process killed in the middle."""

import os
import re
import subprocess
import sys

import psutil
import pytest
import torch
from PIL import Image

from edsr.training import checkpoint
from edsr.weights import load_model
from tests.conftest import ROOT, make_image
from tests.support.holding import held, holding
from tests.support.processes import communicate, run, wait_until

pytest.importorskip("ray.train", reason="needs Ray Train: pip install 'ray[train]'", exc_type=ImportError)
pytestmark = [pytest.mark.slow, pytest.mark.skipif(sys.platform == "win32", reason="needs SIGKILL and gloo")]

STEPS = ["--steps", "80", "--batch", "2", "--patch", "8", "--save-every", "10"]


def trainers(process):
    """Processes of the run."""
    found = []
    for one in psutil.Process(process.pid).children(recursive=True):
        try:
            found += [one] if "".join(one.cmdline()).startswith("ray::RayTrainWorker") else []
        except psutil.Error:
            continue
    return found


def test_a_process_killed_in_the_middle_goes_on_from_the_checkpoint(tmp_path):
    """To the weights that two processes of torchrun reach without a loss."""
    (tmp_path / "images").mkdir()
    for i in range(4):
        Image.fromarray(make_image(60 + i, 70, seed=i)).save(tmp_path / "images" / f"{i}.png")
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join([str(ROOT), *sys.path[1:]])}
    options = {"cwd": tmp_path, "env": environment, "text": True, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    start = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", ROOT / "cli.py"]
    whole = run([*start, "train", "--data", "images", "--out", "whole", "--device", "cpu", *STEPS], **options)
    assert whole.returncode == 0, whole.stderr
    command = [sys.executable, "-m", "examples.ray_train", "--data", "images", "--out", "run", "--cpu", *STEPS]
    search = os.pathsep.join([holding(tmp_path)["PYTHONPATH"], environment["PYTHONPATH"]])
    options["env"] = environment | {"PYTHONPATH": search}
    with held(tmp_path / "run", "checkpoint-*[1-9]0", 1):
        process = subprocess.Popen(command, **options)
        try:
            wait_until(lambda: len(trainers(process)) == 2, process)
            first = trainers(process)
            wait_until(lambda: any((tmp_path / "run").glob("checkpoint-*[1-9]0")), process)
            first[1].kill()
        except BaseException:
            process.kill()
            raise
    try:
        output, messages = communicate(process)
    finally:
        process.kill()
    assert process.returncode == 0, messages
    assert "best.safetensors is ready for upscale --model" in output
    assert checkpoint.load_latest(tmp_path / "run").step == 80
    (step,) = re.findall(rf"resuming {tmp_path / 'run'} at step (\d+)", output + messages)
    assert 10 <= int(step) < 80
    last, want = (load_model(tmp_path / name / "last.safetensors").state_dict() for name in ("run", "whole"))
    assert all(torch.equal(last[name], want[name]) for name in want)
