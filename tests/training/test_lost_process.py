"""One of two processes of torchrun is killed: the run ends, and goes on from its checkpoint."""

import sys

import psutil
import pytest
import torch

from edsr.training import checkpoint
from edsr.weights import load_model
from tests.support.holding import held, holding
from tests.support.processes import communicate, wait_until
from tests.training.test_devices import command, data  # noqa: F401 - a fixture

pytestmark = [pytest.mark.slow, pytest.mark.skipif(sys.platform == "win32", reason="needs SIGKILL and gloo")]
STEPS = "--steps", "60", "--save-every", "10"


def test_a_killed_process_ends_the_run_which_goes_on_from_its_checkpoint(data, tmp_path, monkeypatch):  # noqa: F811
    whole = command(2, data, tmp_path / "whole", *STEPS)
    text = communicate(whole)[1]
    assert whole.returncode == 0, text
    out = tmp_path / "run"
    with held(out, "checkpoint-*[1-9]0", 1), monkeypatch.context() as patch:
        for name, value in holding(tmp_path).items():
            patch.setenv(name, value)
        first = command(2, data, out, *STEPS)
        wait_until(lambda: any(out.glob("checkpoint-*[1-9]0")), first)
        ranks = {one.environ()["RANK"]: one for one in psutil.Process(first.pid).children() if "RANK" in one.environ()}
        ranks["1"].kill()
    text = communicate(first)[1]
    assert first.returncode != 0, text
    step = checkpoint.load_latest(out).step
    assert 10 <= step < 60
    second = command(2, None, None, "--resume", str(out))
    text = communicate(second)[1]
    assert second.returncode == 0 and f"resuming {out} at step {step}" in text, text
    last, want = (load_model(folder / "last.safetensors").state_dict() for folder in (out, tmp_path / "whole"))
    assert all(torch.equal(last[name], want[name]) for name in want)
