"""Rows of pytest-benchmark's table that are timed in turns: what is played back is what was measured."""

import json
import math
import os
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from bench.rounds import Implementation, Turns, in_turns, measured, measured_work, summary
from bench.workloads import CpuNetwork, Unavailable
from edsr import EDSRConfig
from tests.conftest import ROOT
from tests.support import processes

ROWS = """
import pytest
from bench.workloads import Unavailable
from bench.conftest import long
from bench.rounds import Implementation, in_rows, measured

SECONDS = {"ours": [0.25, 0.1, 0.7, 0.3], "plain": [0.5, 0.3, 0.7, 0.9], "wrong": [], "missing": [], "slow": [9.0] * 4}
pytestmark = in_rows


def make(name):
    if name == "missing":
        raise Unavailable("it is not installed")
    assert name != "wrong", "off by one"
    left = iter(SECONDS[name])

    def take():
        print("TOOK", name)
        return next(left)

    return Implementation(f"the way {name}", take, 2.0)


@pytest.mark.parametrize("name", [pytest.param(name, marks=long if name == "slow" else ()) for name in SECONDS])
@pytest.mark.parametrize("size", [1, 2])
def test_way(row, size, name):
    row(lambda names, turns: measured(f"size {size}", "plain", names, make, turns._replace(most=4)))


def test_other():
    raise AssertionError
"""


def run(folder: Path, *arguments: str, code: int = 0) -> str:
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", "-rs", *arguments]
    environment["PYTHONPATH"] = os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])
    done = processes.run(command, cwd=folder, env=environment, capture_output=True, text=True)
    assert done.returncode == code, done.stdout + done.stderr
    return done.stdout


@pytest.fixture
def folder(tmp_path):
    """A folder of rows, with the settings of this project's."""
    (tmp_path / "test_rows.py").write_text(ROWS)
    (tmp_path / "pytest.ini").write_text("[pytest]\naddopts = --benchmark-skip -p bench.conftest\n")
    return tmp_path


def read_image(path: Path) -> dict[str, dict]:
    return {row["name"]: row for row in json.loads(path.read_text())["benchmarks"]}


@pytest.mark.slow
def test_every_way_has_a_row_of_what_was_measured(folder):
    message = run(folder, "--benchmark-only", "--benchmark-json=rows.json", "-s", code=1)
    rows = read_image(folder / "rows.json")
    assert set(rows) == {f"test_way[{size}-{name}]" for size in (1, 2) for name in ("ours", "plain")}
    ours, plain = rows["test_way[2-ours]"], rows["test_way[2-plain]"]
    assert ours["group"] == plain["group"] == "size 2"
    assert ours["stats"]["data"] == [0.25, 0.1, 0.7, 0.3] and plain["stats"]["data"] == [0.5, 0.3, 0.7, 0.9]
    assert ours["extra_info"] == {"case": "the way ours", "ms": 275.0, "ratio": 2.5, "gflop": 2.0, "gflops": 2 / 0.275}
    turns = [line.split()[-1] for line in message.splitlines() if "TOOK" in line]
    assert turns == ["ours", "plain", "plain", "ours"] * 4  # of two sizes
    assert "benchmark 'size 1': 2 tests" in message and "2 failed, 4 passed, 5 skipped" in message
    assert "it is not installed" in message and "off by one" in message and "only with --benchmark-long" in message
    (line,) = {line.strip() for line in message.splitlines() if line.strip().startswith("the way ours")}
    assert line.split() == ["the", "way", "ours", "275", "2.50", "7.3"]


@pytest.mark.slow
def test_rows_are_saved_and_compared_and_only_what_is_selected_is_measured(folder):
    run(folder, "--benchmark-only", "-k", "1-ours or 1-plain", "--benchmark-save=before")
    message = run(
        folder, "--benchmark-only", "-k", "1-plain or 1-slow", "--benchmark-long", "--benchmark-compare", "-s"
    )
    assert "test_way[1-plain] (0001_before)" in message and "test_way[1-plain] (NOW)" in message
    assert message.count("TOOK slow") == message.count("TOOK plain") == 4 and "TOOK ours" not in message


@pytest.mark.slow
def test_nothing_is_measured_without_being_asked_for(folder):
    assert "TOOK" not in run(folder, "-s", code=1)  # the test that is no benchmark fails
    (folder / "pytest.ini").write_text("[pytest]\naddopts = -p bench.conftest\n")
    message = run(folder, "--benchmark-disable", "-k", "1-ours or 1-plain", "-s")
    assert message.count("TOOK") == 2 and "2 passed" in message


@pytest.mark.slow
def test_the_real_rows(tmp_path):
    """They are found without and with the folder's name, under names that stay."""
    path = tmp_path / "rows.json"
    options = ["--benchmark-only", f"--benchmark-json={path}", "-k", "cpu-small-plain"]
    message = run(ROOT, "bench", *options)
    assert list(read_image(path)) == ["test_training[cpu-small-plain]"] and "ratio: times as fast as PyTorch" in message
    names = run(ROOT, "bench", "--collect-only", "-q", "--benchmark-long").splitlines()
    for name in ("ours-bands", "ours-whole", "ours-folded", "eager", "compile", "onnxruntime", "openvino", "ncnn"):
        for work in ("x2-128x128", "x4-128x128", "x2-1024x1024"):
            assert f"bench/test_model.py::test_network[{work}-{name}]" in names


# --- in this process


def test_every_round_starts_with_another_way():
    taken = []
    ways = {name: lambda name=name: taken.append(name) or 1.0 for name in "abc"}
    assert in_turns(ways, Turns(math.inf, 1, 4)) == dict.fromkeys("abc", [1.0] * 4)
    assert "".join(taken) == "abc" + "bca" + "cab" + "abc"
    assert in_turns(ways, Turns(0.0, 3, 9)) == dict.fromkeys("abc", [1.0] * 3)
    assert in_turns({}, Turns(math.inf, 3, 9)) == {}


def test_what_fails_costs_its_own_row():
    def make(name: str) -> Implementation:
        if name == "missing":
            raise Unavailable("it is not installed")
        if name == "broken":
            raise RuntimeError("first line\nsecond")
        if name == "wrong":
            raise AssertionError("off by one")
        return Implementation(name, lambda: 1.0)

    group = measured("work", "missing", ["missing", "broken", "wrong", "fine"], make, Turns(0.0, 2, 2))
    assert group.seconds == {"fine": [1.0, 1.0]} and group.info == {"fine": {"case": "fine", "ms": 1e3}}
    assert group.skipped == {"missing": "it is not installed"}
    assert group.incorrect == {"broken": "RuntimeError: first line", "wrong": "off by one"}
    message = summary(group)
    for part in ("broken failed: RuntimeError: first line", "missing left out: it is not installed"):
        assert part in message


def test_a_way_that_is_wrong_has_no_seconds(monkeypatch):
    monkeypatch.setattr("bench.machine.MATRIX", {"cpu": 8})
    monkeypatch.setattr("bench.machine.COPIED", {"cpu": 64})
    work = CpuNetwork(EDSRConfig(blocks=1, features=8), 9, 8)
    whole = work.cases["whole"]
    monkeypatch.setitem(work.cases, "whole", replace(whole, build=lambda work: lambda: whole.build(work)() + 0.1))
    group = measured_work(work, ["eager", "whole"], Turns(0.0, 2, 2))
    assert list(group.seconds) == ["eager"] and len(group.seconds["eager"]) == 2
    assert group.incorrect.keys() == {"whole"} and "wrong result" in group.incorrect["whole"]
    assert {"error", "ratio", "gflops", "ceiling_percent", "ceiling_gbs"} <= group.info["eager"].keys()
