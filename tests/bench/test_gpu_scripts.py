"""Dry runs of bench/gpu.sh and bench/gpu_train.sh, on a GPU that tests/fake_gpu plays: every command line, file and
figure of the real thing, on networks of one block and images of a few pixels."""

import json
import os
import shutil
import subprocess
import sys
import tarfile
from datetime import date
from pathlib import Path

import pytest
import torch
from PIL import Image

from edsr.models.edsr import EDSR, EDSRConfig
from edsr.weights import save_model
from tests.conftest import ROOT, make_image
from tests.support.processes import run

pytest.importorskip("triton.experimental.gluon")
pytest.importorskip("xdist")
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU, for the real thing"),
]


@pytest.fixture(scope="module")
def house(tmp_path_factory) -> Path:
    """A copy of the project, with images to train on and small packaged weights."""
    folder = tmp_path_factory.mktemp("house")
    parts = "bench", "edsr", "kernels", "tests", "cli.py", "pyproject.toml"
    left_out = shutil.ignore_patterns("__pycache__", "results", "configs")
    for name in parts:
        source = ROOT / name
        if source.is_dir():
            shutil.copytree(source, folder / name, symlinks=True, ignore=left_out)
        else:
            shutil.copy(source, folder / name)
    (folder / "photos").mkdir()
    for i in range(4):
        Image.fromarray(make_image(110 + i, 120, seed=i)).save(folder / "photos" / f"{i}.png")
    (folder / "small" / "HR").mkdir(parents=True)
    Image.fromarray(make_image(44, 40)).save(folder / "small" / "HR" / "0.png")
    (folder / "weights").mkdir()
    save_model(EDSR(EDSRConfig(blocks=1, features=16)), folder / "weights" / "edsr-baseline-x2.safetensors")
    return folder


def script(house: Path, name: str, *arguments: str, **environment: str) -> subprocess.CompletedProcess:
    out = house / "out"
    settings = {"PYTHON": sys.executable, "PYTHONPATH": str(house / "tests" / "support" / "fake_gpu"), "OUT": str(out)}
    settings |= {"FAKE_WEIGHTS": str(house / "weights"), "XDG_CACHE_HOME": str(house / "cache")}
    # Many processes share few cores here, where threads that wait for each other crawl.
    settings |= {"TRITON_CACHE_DIR": str(house / "kernels-cache"), "OMP_NUM_THREADS": "1", "SLOW": "20"}
    return run(
        ["bash", str(house / "bench" / name), *arguments],
        cwd=house,
        env=os.environ | settings | environment,
        capture_output=True,
        text=True,
    )


def kept(house: Path) -> dict[str, str]:
    with tarfile.open(house / "out" / "results.tar") as tar:
        members = [member for member in tar.getmembers() if member.isfile()]
        found = {m.name: tar.extractfile(m).read() for m in members}  # pyright: ignore[reportOptionalMemberAccess]
    return {name: content.decode(errors="replace") for name, content in found.items()}


@pytest.fixture(scope="module")
def results(house) -> dict[str, str]:
    """What a dry run of the whole plan leaves; one kernel hangs, and torch.compile takes its process with it."""
    result = script(
        house, "gpu.sh", "photos", TIME="580", FAKE_HANGS="block fp16", FAKE_COMPILE_DIES="1",
        PYTEST_ADDOPTS="--collect-only",
    )  # fmt: skip
    assert result.returncode == 1 and " s in all\n" in result.stdout, result.stdout + result.stderr
    found = kept(house)
    return found


PARTS = ("probe", "check", "frames", "steps", "tests", "tune", "again", "peers", "compiled", "chart", "train")


def record(results: dict[str, str], ending: str) -> dict:
    (name,) = (name for name in results if name.startswith("bench/results/nvidia-h100") and name.endswith(ending))
    return json.loads(results[name])


def test_every_part_runs_and_ends_by_itself(results):
    failed = {"probe", "peers", "compiled"}  # a kernel hangs, and compile dies
    for name in PARTS:
        (line,) = (x for x in results["logs/all.log"].splitlines() if x.startswith(f"=== {name} ") and "exit" in x)
        assert f"exit code {int(name in failed)}," in line, line + "\n" + results[f"logs/{name}.log"][-3000:]
        assert "limit" not in line and "Traceback" not in results[f"logs/{name}.log"]


def test_the_kernel_that_hangs_is_named_and_launched_no_more(results):
    record = json.loads(results["kernels/triton/configs/nvidia-h100-80gb-hbm3.json"])
    statuses = record["choices"]["hopper"]["statuses"]
    assert statuses.pop("block fp16").startswith("hangs") and statuses.pop("block bf16").startswith("not tried")
    assert len(statuses) == 6 and set(statuses.values()) == {"verified"}


def test_the_network_and_its_peers_are_measured(results):
    works = {entry["work"]: entry for entry in record(results, date.today().isoformat() + ".json")["workloads"]}
    for work in (
        "edsr-baseline-x2-1920x1080",
        "edsr-baseline-x2-64x64",
        "edsr-x2-1920x1080",
        "edsr-baseline-x4-1920x1080",
    ):
        assert {"ours", "channels_last"} <= works[work]["cases"].keys(), works[work]
    x2 = works["edsr-baseline-x2-1920x1080"]
    assert x2["failed"] == ["compile"] and "exit code 7" in x2["incorrect"]["compile"]
    for work in ("relu-64", "skip-64", "resblock-64"):
        assert {"ours", "portable", "cudnn"} <= works[work]["cases"].keys(), works[work]


def test_the_step_of_training_is_measured(results):
    (entry,) = record(results, "-training.json")["workloads"]
    assert {"triton", "torch", "plain", "eager"} <= entry["cases"].keys()
    assert entry["failed"] == ["compile"] and "exit code 7" in entry["incorrect"]["compile"]


def test_everything_is_checked(results):
    checked = record(results, "-check.json")
    assert checked["incorrect"] == 0 and not checked["not_reached"] and len(checked["cases"]) > 20


def test_configurations_are_found(results):
    configs = json.loads(results["kernels/triton/configs/nvidia-h100-80gb-hbm3.json"])["configs"]
    assert configs["conv3x3"]["fp16 64-64 few"]["BLOCK_W"] == 16 and "bf16 64" in configs["head"]


def test_training_goes_on_for_the_time_that_is_left(results):
    (name,) = (name for name in results if name.endswith("metrics.jsonl"))
    assert json.loads(results[name].splitlines()[-1])["step"] > 1


def test_the_end_says_what_was_found_in_ten_lines(results):
    message = results["logs/findings.log"].splitlines()
    assert len(message) <= 10
    text = "\n".join(message)
    for words in ("NVIDIA H100", "block fp16: hangs", "0 wrong", "eager", "steps/s", "trained", "torch.compile died"):
        assert words in text, text


def test_training_in_two_commands(house):
    settings = {"TIME": "130", "DECAY": "30", "TEST": "small/HR", "RECOLOR": "1"}
    steps = []
    for arguments in (["photos"], ["photos", "--resume", "out/checkpoint"]):
        result = script(house, "gpu_train.sh", *arguments, **settings)
        assert result.returncode == 0, result.stdout + result.stderr
        names = {path.name for path in (house / "out").iterdir()}
        assert {"checkpoint", "best.safetensors", "metrics.jsonl", "results.tar"} <= names
        state = json.loads((house / "out" / "checkpoint" / "state.json").read_text())
        assert state["record"]["options"]["recolor"] is True
        steps.append(state["step"])
        found = kept(house)
        assert "last.safetensors" in found and "mean of 1" in found["logs/findings.log"]
    assert 0 < steps[0] < steps[1]
