"""Studies: what they train, that they go on where they were, and what they say."""

import csv
import json
import math
import re
import signal
import subprocess
import sys
import threading
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image

from edsr.cli import main
from edsr.errors import StudyError
from edsr.models import NETWORKS, build_network
from edsr.study.budgets import BUDGETS, METHODS, PUBLISHED, SCALES, claim_runs, runs_of_variant, table_runs
from edsr.study.claims import NO, OPEN, YES, decide, findings
from edsr.study.measures import bytes_kept_for_gradients
from edsr.study.report import write_report
from edsr.study.runner import StudyConfig, _train_all, run_study
from tests.conftest import ROOT
from tests.study.conftest import QUICK, photographs
from tests.support.processes import communicate, wait_until

# --- what is trained


@pytest.mark.parametrize("name", BUDGETS)
def test_runs_are_what_they_are_called(name):
    budget = BUDGETS[name]
    runs = table_runs(budget, 10)
    assert {run.method for run in runs} == {*METHODS} and {*METHODS.values()} <= {*NETWORKS}
    assert all(sum(scale in run.scales for run in runs if run.method == m) == 1 for m in METHODS for scale in SCALES)
    assert all(run.steps == 10 * len(run.scales) for run in runs)
    every = [*runs, *claim_runs(budget, 10)]
    names = [run.name for run in every]
    assert len(names) == len({*names})
    for i, run in enumerate(every):
        assert not run.start or run.start in names[:i]
    for variant in {re.sub(r"-seed\d+$", "", n) for n in names[len(runs) :]}:
        assert {*runs_of_variant(variant, budget)} <= {*names}
    if not budget.heading:
        assert all(build_network(r.network).config.describe() == NETWORKS[METHODS[r.method]].describe() for r in runs)


def test_published_figures_are_of_methods():
    assert {*PUBLISHED} < {*METHODS}


# --- verdicts


@pytest.mark.parametrize(
    ("better", "worse", "verdict"),
    [
        ([30.0, 30.1], [29.0, 29.1], YES),
        ([29.0, 29.1], [30.0, 30.1], NO),
        ([30.0, 29.0], [29.4, 29.5], OPEN),
        ([30.0], [20.0], OPEN),
        ([], [20.0, 21.0], OPEN),
    ],
)
def test_what_chance_could_do_is_not_decided(better, worse, verdict):
    assert decide(better, worse) == verdict


def test_batch_normalization_keeps_more_maps():
    config = replace(NETWORKS["srresnet"], scale=2, blocks=2, features=8)
    with_it, without = (bytes_kept_for_gradients(replace(config, normalized=n), 1, 8) for n in (True, False))
    # Of each of five normalizations its input, which nothing else keeps, and its mean and deviation.
    assert with_it - without == 5 * (8 * 64 + 2 * 8) * 4


def test_claims_that_hold(study):
    found = {f.name: f for f in findings(study)}
    assert {name: f.verdict for name, f in found.items()} == dict.fromkeys(found, YES)
    assert len(found) == 8 and "given up" in found["residual-scale"].measured
    assert found["memory"].measured.endswith("EDSR of as many blocks and features 8.0 MB, 56 % less")
    assert "+0.10 dB" in found["self-ensemble"].measured


def test_claims_that_do_not(study):
    for name, found in study.results.items():
        for scale in found["scales"].values():
            scale["psnr_ensemble"] = scale["psnr"]
            scale["psnr"] = [33.0] if name.startswith("edsr-l2") else scale["psnr"]
            scale["psnr"] = [25.0] if name.startswith("srresnet-plain") else scale["psnr"]
            scale["shift"] = [9.0] if name.startswith("srresnet-plain") else scale["shift"]
        found["rollbacks"] = 1 if name.startswith("wide-0.1") else 0
    found = {f.name: f.verdict for f in findings(study)}
    assert [found[n] for n in ("normalization", "shift", "residual-scale", "loss", "self-ensemble")] == [NO] * 5


def test_a_wide_network_that_was_stable_decides_nothing(study):
    for name, found in study.results.items():
        if name.startswith("wide-1"):
            found |= {"diverged": None, "scales": study.results["edsr-x2"]["scales"]}
    assert {f.name: f.verdict for f in findings(study)}["residual-scale"] == OPEN


def test_the_report(study):
    pytest.importorskip("matplotlib")
    files = write_report(study)
    text = files[0].read_text()
    figures = re.findall(r"!\[[^]]*\]\((figures/[^)]+)\)", text)
    assert len(figures) == 1 + 8 + 2
    for figure in figures:
        with Image.open(files[0].parent / figure) as image:
            assert np.asarray(image.convert("L")).std() > 5, figure
    headings = [line for line in text.splitlines() if line.startswith("#")]
    assert all("rehearsal with small networks" in line for line in headings) and len(headings) == 5
    rows = list(csv.DictReader(files[1].open()))
    assert len(rows) == 2 * (1 + len(METHODS))
    for row in rows:
        assert math.isfinite(float(row["psnr"])) and (row["method"] == "bicubic" or all(
            row[name] for name in ("parameters", "multiply_adds", "train_seconds", "peak_bytes", "seconds")
        ))  # fmt: skip
    page = files[2].read_text()
    assert "photos &amp; &lt;others&gt;" in page and page.count("data:image/png;base64,") == 11
    assert "http" not in re.sub(r"base64,[^\"]*", "", page).replace("http-equiv", "")


# --- from the command line


def test_a_folder_of_another_study(tmp_path, capsys):
    photographs(tmp_path / "photos", 11)
    out = tmp_path / "out"
    out.mkdir()
    (out / "notes.txt").write_text("mine")
    arguments = ["study", "--data", str(tmp_path / "photos"), "--out", str(out), "--quiet"]
    assert main(arguments) == 1 and "holds other files" in capsys.readouterr().err
    (out / "notes.txt").unlink()
    (out / "study.json").write_text(json.dumps({"budget": "cpu", "steps": 400, "training": [], "test": []}))
    assert main(arguments) == 1
    assert "holds a study of other budget and training and test; choose another --out" in capsys.readouterr().err
    (out / "study.json").write_text("{")
    assert main(arguments) == 1 and "damaged" in capsys.readouterr().err
    assert main([*arguments[:2], str(tmp_path / "nowhere"), *arguments[3:]]) == 1
    for damaged in "[]", "null", "\\":
        (out / "study.json").write_text(damaged)
        assert main(arguments) == 1 and "damaged" in capsys.readouterr().err
    assert {p.name for p in out.iterdir()} - {".lock"} == {"study.json"}  # which Windows needs


def test_images_may_move_but_not_be_others(tmp_path, monkeypatch):
    """Other images of the same names are another study."""
    monkeypatch.setattr("edsr.study.runner._train_all", lambda runs, *_: pytest.fail("no results") if runs else None)
    monkeypatch.setattr("edsr.study.runner.table_runs", lambda *_: [])
    photographs(tmp_path / "a", 11)
    photographs(tmp_path / "b", 11, 150)
    out = tmp_path / "out"

    def begin(folder):
        return run_study(StudyConfig((str(tmp_path / folder),), str(out)))

    begin("a")
    (tmp_path / "a").rename(tmp_path / "moved")
    assert begin("moved").dataset == "moved"
    with pytest.raises(StudyError, match="holds a study of other sizes of images; choose another"):
        begin("b")
    noted = json.loads((out / "study.json").read_text())
    del noted["sizes of images"]
    (out / "study.json").write_text(json.dumps(noted))  # as studies were begun once
    assert begin("moved").training == 10


def test_one_study_at_a_time_in_a_folder(tmp_path, capsys, monkeypatch):
    photographs(tmp_path / "photos", 11)
    arguments = ["study", "--data", str(tmp_path / "photos"), "--out", str(tmp_path / "out"), "--quiet"]
    codes = []

    def train_all(*_):
        if not codes:  # once, for it would go on without an end where nothing refuses it
            codes.append(None)
            codes[0] = main(arguments)
        raise StudyError("broken")

    monkeypatch.setattr("edsr.study.runner._train_all", train_all)
    assert main(arguments) == 1 and codes == [1]
    refused, broken = capsys.readouterr().err.splitlines()
    assert f"{tmp_path / 'out'} is being trained by another process" in refused and "broken" in broken
    assert main(arguments) == 1 and "broken" in capsys.readouterr().err  # the lock is free again


class Trainers:
    """In place of processes. The first `jobs` runs wait for one another, so that they have to be trained at once; all
    that do not fail wait for `stop` where one fails."""

    def __init__(self, folder, jobs, failing=""):
        self.config, self.folder, self.failing = StudyConfig(("photos",), str(folder), jobs=jobs), folder, failing
        self.begun, self.going, self.most, self.ended, self.lock = 0, 0, 0, [], threading.Lock()
        self.stopped, self.together = threading.Event(), threading.Barrier(jobs, timeout=60)

    def result(self, run):
        return self.folder / f"{run.name}.json"

    def train(self, run, advance):
        assert not run.start or run.start in self.ended
        with self.lock:
            self.begun, self.going = self.begun + 1, self.going + 1
            self.most, first = max(self.most, self.going), self.begun <= self.config.jobs
        if first:
            self.together.wait()
        advance(run, run.steps)
        if run.name == self.failing:
            raise StudyError("broken")
        if self.failing:
            assert self.stopped.wait(60)
        with self.lock:
            self.going -= 1
            self.ended.append(run.name)
        self.result(run).touch()

    def stop(self):
        self.stopped.set()


@pytest.mark.parametrize("jobs", [1, 3])
def test_as_many_trainings_at_once_as_asked_for_none_before_what_it_starts_from(tmp_path, jobs):
    runs, trainers, told = [*table_runs(QUICK, 10), *claim_runs(QUICK, 10)], Trainers(tmp_path, jobs), {}
    trainers.result(runs[0]).touch()
    trainers.ended.append(runs[0].name)
    _train_all(runs, trainers, lambda run, step: told.update({run.name: step}))
    assert sorted(trainers.ended) == sorted(run.name for run in runs) and trainers.most == jobs
    assert told == {run.name: run.steps for run in runs[1:]}


def test_a_training_that_fails_stops_those_beside_it(tmp_path):
    runs = table_runs(QUICK, 10)
    trainers = Trainers(tmp_path, 2, failing=runs[1].name)
    with pytest.raises(StudyError, match="broken"):
        _train_all(runs, trainers, lambda run, step: None)
    assert trainers.stopped.is_set() and trainers.ended == [runs[0].name]


@pytest.mark.slow
def test_an_interrupted_study_gives_the_same_table(tmp_path, monkeypatch):
    """As far as a third method: starting processes is what takes the time. From another folder than the package's."""
    monkeypatch.chdir(tmp_path)
    photographs(tmp_path / "photos", 11)
    results = []
    for name in "whole", "stopped":
        config = StudyConfig((str(tmp_path / "photos"),), str(tmp_path / name), steps=10, device="cpu", threads=1)
        found = tmp_path / name / "results"
        if name == "stopped":
            interrupt(config, monkeypatch, "vdsr-x2x4", 6)
            assert sorted(found.glob("*.json")) == [found / "srcnn-x2.json", found / "srcnn-x4.json"]
            assert len([*(tmp_path / name / "runs" / "vdsr-x2x4").glob("checkpoint-*")]) > 0
            before = (found / "srcnn-x2.json").stat().st_mtime_ns
        interrupt(config, monkeypatch, "srresnet-x2", 2)
        results.append({path.name: json.loads(path.read_text())["scales"] for path in found.glob("*.json")})
    assert (found / "srcnn-x2.json").stat().st_mtime_ns == before
    assert results[0].keys() == results[1].keys() and "vdsr-x2x4.json" in results[0]
    for name, scales in results[0].items():
        for scale, scores in scales.items():
            other = results[1][name][scale]
            assert scores["psnr"] == other["psnr"] and scores["ssim"] == other["ssim"], name


HELD = """
import sys, time
from edsr.study import worker

train, tell = worker._train, worker._tell

def held(run, task, budget, ended, found):
    def tell_and_wait(**values):
        tell(**values)
        while run.name == RUN and values.get("step", 0) >= STEP and not ended():
            time.sleep(0.01)
    worker._tell = tell_and_wait
    return train(run, task, budget, ended, found)

worker._train = held
sys.exit(worker.main())
"""


def interrupt(config, monkeypatch, name, step):
    """Runs a study until a step of a run has been told of; the run, which has more, waits there for the signal."""
    popen, code, told = subprocess.Popen, HELD.replace("RUN", repr(name)).replace("STEP", str(step)), []

    def progress(done, total, run):
        told.append(run)
        if run == name and told.count(run) == step:
            raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(subprocess, "Popen", lambda command, **more: popen([command[0], "-c", code, command[-1]], **more))
        run_study(config, progress)


def test_a_missing_matplotlib_is_told_before_anything_is_trained(tmp_path, monkeypatch, capsys):
    photographs(tmp_path / "photos", 11, 8)
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    assert main(["study", "--data", str(tmp_path / "photos"), "--out", str(tmp_path / "out"), "--quiet"]) == 1
    assert "the plots need matplotlib: pip install" in capsys.readouterr().err and not (tmp_path / "out").exists()


@pytest.mark.slow
@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no SIGINT for one process")
def test_ctrl_c_waits_until_the_trainings_are_saved(tmp_path):
    photographs(tmp_path / "photos", 11)
    command = [sys.executable, str(ROOT / "cli.py"), "study", "--data", str(tmp_path / "photos"), "--steps", "100000"]
    process = subprocess.Popen(
        [*command, "--out", str(tmp_path / "out"), "--jobs", "2"], stderr=subprocess.PIPE, text=True, cwd=tmp_path
    )
    runs = [tmp_path / "out" / "runs" / name for name in ("srcnn-x2", "srcnn-x4")]

    def begun(run):
        return any(run.glob("checkpoint-*")) and (run / "metrics.jsonl").is_file()

    wait_until(lambda: all(map(begun, runs)), process)
    process.send_signal(signal.SIGINT)
    _, errors = communicate(process)
    assert process.returncode == 130
    assert errors.splitlines()[-1] == "interrupted; the same command goes on where it was"
    for run in runs:
        assert (run / "last.safetensors").is_file()  # which is written when a run is saved
