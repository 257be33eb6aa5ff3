"""Several processes: torchrun on a CPU, with gloo."""

import os
import signal
import socket
import subprocess
import sys
from contextlib import suppress

import pytest
import torch
from PIL import Image

from edsr.devices import ProcessGroup
from edsr.training import checkpoint
from edsr.weights import load_model
from tests.conftest import ROOT, make_image
from tests.support.processes import communicate, wait_until

pytestmark = pytest.mark.skipif(
    not torch.distributed.is_available() or sys.platform == "win32", reason="needs torch.distributed with gloo"
)


@pytest.fixture
def data(tmp_path):
    folder = tmp_path / "images"
    folder.mkdir()
    for i in range(4):
        Image.fromarray(make_image(60 + i, 70, seed=i)).save(folder / f"{i}.png")
    return folder


def command(processes: int, data, out, *more: str) -> subprocess.Popen:
    start = [sys.executable]
    if processes > 1:
        start += ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(processes)]
    arguments = ["train", "--data", str(data), "--out", str(out), "--device", "cpu", "--batch", "2", "--patch", "8"]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    arguments = [*arguments, *more] if data else ["train", "--device", "cpu", *more]
    command = [*start, str(ROOT / "cli.py"), *arguments]
    return subprocess.Popen(command, env=environment, stderr=subprocess.PIPE, text=True)


def test_alone_there_is_nothing_to_agree_on():
    group = ProcessGroup("cpu")
    assert group.is_main and group.world_size == 1
    assert group.mean([1.0, 2.0]) == [1.0, 2.0] and group.any(True) and not group.any(False)
    tensor = torch.randn(3)
    before = tensor.clone()
    assert group.broadcast([tensor], {"step": 1}) == {"step": 1} and torch.equal(tensor, before)
    assert group.share([3, 1, 2]) == [3, 1, 2] and group.gather("mine") == ["mine"]
    assert group.local_device("auto") == "auto"
    group.barrier()
    group.leave()


MDSR = "--model", "mdsr-baseline", "--blocks", "1", "--features", "16"  # of which a step leaves parts alone


@pytest.mark.slow
@pytest.mark.parametrize("model", [(), MDSR])
def test_two_processes_with_half_the_batch_train_as_one_with_the_whole(data, tmp_path, model):
    """To rounding: measured against the way the weights went, a thousandth. And so they do when resumed."""
    steps = "--steps", "6", "--save-every", "3", "--lr", "1e-3", *model
    texts = []
    for processes, out in (1, "one"), (2, "two"):
        process = command(processes, data, tmp_path / out, *steps)
        texts.append(communicate(process)[1])
        assert process.returncode == 0, texts[-1]
    one, two = (checkpoint.load_latest(tmp_path / out) for out in ("one", "two"))
    start = checkpoint.read(tmp_path / "one" / "checkpoint-00000003")
    assert one.step == two.step == 6
    for name in one.tensors:
        if name.startswith("model.") and name.endswith("weight"):
            way = (one.tensors[name] - start.tensors[name]).norm()
            assert way > 0 and (one.tensors[name] - two.tensors[name]).norm() < 1e-3 * way, name
    # One process speaks.
    assert (
        texts[1].count("\nimages  ") == 1
        and ", 2 processes" in texts[1]
        and texts[1].count("is ready for upscale") == 1
    )
    last = load_model(tmp_path / "two" / "last.safetensors").state_dict()
    assert all(torch.equal(last[name], two.tensors[f"ema.{name}"]) for name in last)


@pytest.mark.slow
def test_two_processes_stop_together_and_go_on(data, tmp_path):
    out = tmp_path / "run"
    process = command(2, data, out, "--steps", "100000", "--save-every", "1000000")
    wait_until(lambda: (out / "metrics.jsonl").exists() and (out / "metrics.jsonl").read_text() != "", process)
    process.send_signal(signal.SIGTERM)
    text = communicate(process)[1]
    stopped = checkpoint.load_latest(out).step
    assert stopped >= 50, text
    assert f"saved at step {stopped} of 100000" in text
    process = command(2, data, out, "--steps", "100000", "--resume", "--minutes", "0.0001")
    text = communicate(process)[1]
    assert process.returncode == 0, text
    assert f"resuming {out} at step {stopped}" in text and "stopped after 0.0001 minutes" in text
    assert checkpoint.load_latest(out).step == stopped + 1


def rank_environment(rank: int, port: int) -> dict[str, str]:
    """As torchrun would have it."""
    ranks = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": 2, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    return os.environ | {"OMP_NUM_THREADS": "1"} | {name: str(value) for name, value in ranks.items()}


def free_port() -> int:
    """A port that no other process is given meanwhile: below those that the system gives away, by this process's id."""
    for port in range(20_000 + 7 * os.getpid() % 10_000, 32_000):
        with socket.socket() as bound, suppress(OSError):
            bound.bind(("127.0.0.1", port))
            return port
    raise OSError("no free port")


@pytest.mark.slow
@pytest.mark.parametrize("more", [[], ["--minutes", "60"]])
def test_a_signal_to_the_second_process_interrupts_both(data, tmp_path, more):
    out, port = tmp_path / "run", free_port()
    command = [sys.executable, str(ROOT / "cli.py"), "train", "--data", str(data), "--out", str(out)]
    command += ["--device", "cpu", "--batch", "2", "--patch", "8", "--steps", "100000", *more]
    first, second = (
        subprocess.Popen(command, env=rank_environment(rank, port), stderr=subprocess.PIPE, text=True)
        for rank in range(2)
    )
    try:
        metrics = out / "metrics.jsonl"
        wait_until(lambda: metrics.exists() and metrics.read_text() != "", first, second)
        second.send_signal(signal.SIGTERM)
        texts = [communicate(process)[1] for process in (first, second)]
    finally:
        first.kill(), second.kill()
    step = checkpoint.load_latest(out).step
    assert f"interrupted and saved at step {step} of 100000; continue with --resume {out}" in texts[0]
    assert (first.returncode, second.returncode) == (130, 130) and not any("Traceback" in text for text in texts)


GATHER = """
from edsr.devices import ProcessGroup
group = ProcessGroup.for_files()
print(group.local_device("cpu"), group.share(list("abcde")), group.gather(group.rank), group.is_main)
group.leave()
"""


@pytest.mark.slow
def test_processes_share_files_and_gather_results():
    port = free_port()
    start = [sys.executable, "-c", GATHER]
    processes = [
        subprocess.Popen(start, env=rank_environment(rank, port), stdout=subprocess.PIPE, text=True, cwd=ROOT)
        for rank in range(2)
    ]
    texts = [communicate(process)[0].strip() for process in processes]
    assert texts == ["cpu ['a', 'c', 'e'] [0, 1] True", "cpu ['b', 'd'] None False"]


@pytest.mark.slow
def test_two_processes_measure_fix_and_decay_as_one(data, tmp_path):
    """By the first one's clock. What the others do not know, images and options, it tells them."""
    out = tmp_path / "run"
    process = command(2, data, out, "--steps", "auto", "--minutes", "0.1", "--schedule", "wsd")
    text = communicate(process)[1]
    assert process.returncode == 0, text
    last = checkpoint.load_latest(out)
    steps = last.record["options"]["steps"]
    assert text.count(" steps a second: ") == 1 and f"{steps:,} steps until the 0.1 minutes are over" in text
    process = command(2, None, None, "--resume", str(out), "--decay", "auto", "--minutes", "0.1")
    text = communicate(process)[1]
    assert process.returncode == 0, text
    decay = checkpoint.load_latest(tmp_path / f"run-decay-{last.step}")
    more = decay.record["options"]["steps"] - last.step
    assert f"{more:,} steps until" in text and last.step < decay.step <= last.step + more


@pytest.mark.slow
def test_a_batch_that_cannot_be_shared_is_told(data, tmp_path):
    process = command(2, data, tmp_path / "run", "--batch", "3")
    text = communicate(process)[1]
    assert process.returncode != 0 and "--batch 3 cannot be shared evenly by 2 processes" in text
    assert not (tmp_path / "run").exists()
