"""One training of a study, in this process: what it writes down, and what it leaves to be told."""

import json
import os
import sys

import pytest
import torch

from edsr.errors import TrainError
from edsr.models import build_network
from edsr.study import worker
from edsr.study.images import make_test_squares
from edsr.training import RunLock
from tests.study.conftest import photographs


@pytest.fixture
def work(tmp_path, monkeypatch):
    """Has the worker train a run of ten steps for each scale; gives its exit code and its result, None without one."""
    photographs(tmp_path / "photos", 3)
    files, out = sorted((tmp_path / "photos").iterdir()), tmp_path / "out"
    make_test_squares(files, out / "test", 1)
    (out / "results").mkdir()
    monkeypatch.setattr(worker.signal, "signal", lambda *_: None)  # pytest's stay

    def begin(run, model, parent=None):
        result = out / "results" / f"{run}.json"
        task = {"run": run, "budget": "quick", "steps": 10, "model": model, "out": str(out), "device": "cpu"}
        task |= {"files": [str(path) for path in files], "threads": None, "result": str(result)}
        (tmp_path / "task").write_text(json.dumps(task | {"parent": os.getppid() if parent is None else parent}))
        monkeypatch.setattr(sys, "argv", ["worker", str(tmp_path / "task")])
        code = worker.main()
        return code, json.loads(result.read_text()) if result.is_file() else None

    return begin


def test_a_folder_that_another_process_trains_in_is_no_divergence(tmp_path, work):
    folder, lock = tmp_path / "out" / "runs" / "srcnn-x2", RunLock()
    folder.mkdir(parents=True)
    lock.acquire(folder)
    try:
        with pytest.raises(TrainError, match="is being trained by another process"):
            work("srcnn-x2", "srcnn")
    finally:
        lock.close()
    assert not any((tmp_path / "out" / "results").iterdir())


def test_a_folder_in_the_way_is_no_divergence(tmp_path, work):
    (tmp_path / "out" / "runs" / "srcnn-x2" / "plot.png").mkdir(parents=True)
    with pytest.raises(TrainError, match=r"plot\.png"):
        work("srcnn-x2", "srcnn")
    assert not any((tmp_path / "out" / "results").iterdir())


@pytest.mark.parametrize(
    ("what", "told"),
    [
        ("edsr.training.recipe.DivergenceMonitor.__call__", "at step 1 it is far off, for the 4th time"),
        ("edsr.training.trainer.mean_absolute_error", "what it would go on from has diverged"),
    ],
)
def test_divergence_is_written_down(work, monkeypatch, what, told):
    monkeypatch.setattr(what, lambda *_: float("inf") if "error" in what else (0, "it is far off"))
    code, found = work("srcnn-x2", "srcnn")
    assert code == 0 and told in found["diverged"] and found["scales"] == {} and found["parameters"] > 0


def test_what_starts_from_what_diverged_has_diverged(tmp_path, work):
    (tmp_path / "out" / "results" / "srresnet-x2.json").write_text(json.dumps({"diverged": "at step 7"}))
    code, found = work("srgan-x2", "srgan")
    assert code == 0 and found["diverged"] == "srresnet-x2, from whose weights it starts, diverged"
    assert found["scales"] == {} and found["curve"] == [] and found["train_seconds"] == 0
    assert not (tmp_path / "out" / "runs").exists()


@pytest.mark.parametrize(
    ("value", "told"),
    [(float("nan"), "a weight is not finite"), (3e38, "its network gives values that are no numbers")],
)
def test_a_plain_run_that_ends_in_no_numbers_has_diverged(work, monkeypatch, value, told):
    def trained(run, *_):
        model = build_network(run.network)
        with torch.no_grad():
            for weight in model.parameters():
                weight.fill_(value)
        return model

    monkeypatch.setattr(worker, "train_plainly", trained)
    code, found = work("edsr-wrong-range-seed0", "edsr-baseline")
    assert code == 0 and found["diverged"] == told and found["scales"] == {}


def test_a_worker_whose_study_was_killed_before_it_looked_does_nothing(tmp_path, work):
    """The system names another parent then."""
    assert work("srcnn-x2", "srcnn", parent=os.getppid() + 1) == (130, None)
    assert not (tmp_path / "out" / "runs").exists()
