"""The benchmarks' own code: records, tables and chart, launch configurations, processes that die, every case's path.

Nothing is timed here. What needs a GPU in `bench` is exercised on tiny work, under Triton's interpreter.
"""

import importlib
import json
import os
import subprocess
import sys
import time
from xml.etree import ElementTree

import pytest
import torch

from bench import compare, report, worker
from bench.cases import Unavailable, Work, Workload
from bench.frames import SIDE, Frame, frames, windows
from bench.ops import Op, operations
from edsr import EDSRConfig
from tests.conftest import ROOT

needs_triton = pytest.mark.skipif(
    os.environ.get("TRITON_INTERPRET") != "1", reason="on a GPU, `python -m bench.check` does this"
)


def made_up_entry(work: Work, seconds: dict[str, float], peak: float = 1000.0) -> dict:
    """An entry of a record, with figures nobody measured."""
    cases = {}
    for name, t in seconds.items():
        gflop = work.gflop(work.cases[name].collapsed)
        cases[name] = {
            "title": work.cases[name].title,
            "version": "0",
            "seconds": [t, t, t],
            "median": t,
            "ratio": None,
            "gflop": gflop,
            "gflops": gflop / t,
            "ceiling_percent": gflop / t / 8000,
            "error": 1e-3,
            "peak_mib": peak,
        }
    entry = {"work": str(work), **work.described(), "ceiling": {"gflops": 8e5, "gbs": 4e3}, "rounds": 3}
    return entry | {"cases": cases, "wrong": {}, "skipped": {"tensorrt": "not installed"}}


@pytest.fixture
def made_up_record() -> dict:
    machine = {"name": "NVIDIA Made-up", "device": "cuda", "multiprocessors": 1, "memory_gib": 1, "cuda": "0"}
    machine |= {"cudnn": 0, "triton": "0", "torch": "0", "python": "0", "system": "none", "date": "1970-01-01"}
    x2, x4, _, full = frames()[:4]
    entries = [
        made_up_entry(x2, {"ours": 0.008, "channels_last": 0.04, "compile": 0.012}),
        made_up_entry(x4, {"ours": 0.0082}),
        made_up_entry(full, {"ours": 0.25, "compile": 0.5}),
        made_up_entry(operations()[0], {"ours": 0.0003, "cudnn": 0.001}),
    ]
    return {"kind": "gpu", "machine": machine, "workloads": entries, "failed": {"x": "crashed"}, "not_reached": ["y"]}


# --- records


def test_targets_judge_what_was_measured(made_up_record):
    rows = report.targets_table(made_up_record).splitlines()[2:]
    verdicts = [row.split("|")[-2].strip() for row in rows]
    assert len(rows) == len(report.TARGETS)
    assert verdicts == ["yes", "yes", "no", "yes", "yes", "yes", "", "yes"]
    assert "125 frames/s" in rows[0] and "5 x" in rows[1] and "1.5 x" in rows[2] and "not measured" in rows[6]


def test_targets_are_about_work_that_is_compared():
    names = [str(work) for work in frames()[:4]]
    assert sorted(names) == sorted([report.BASELINE, report.BASELINE_X4, report.SMALL, report.FULL])
    assert len({str(work) for work in frames()}) == len(frames()) == 16


def test_report_of_a_gpu(made_up_record):
    said = report.render(made_up_record)
    assert "| ours | 8 | 125.0 |" in said and "NVIDIA Made-up" in said
    assert "x: crashed" in said and "tensorrt: not installed" in said and "No time was left for: y." in said
    for line in said.splitlines():
        assert "|" not in line or (line.startswith("| ") and line.endswith(" |"))


def test_chart_is_a_picture(made_up_record):
    picture = ElementTree.fromstring(report.chart(made_up_record))
    space = "{http://www.w3.org/2000/svg}"
    bars = picture.findall(f"{space}rect")[1:]  # the first is the background
    words = [element.text for element in picture.findall(f"{space}text")]
    assert len(bars) == 6 and "edsr-baseline x2, 1920 x 1080" in words and "125" in words
    width, height = float(picture.get("width", 0)), float(picture.get("height", 0))
    for bar in bars:
        assert float(bar.get("x", 0)) + float(bar.get("width", 0)) < width - 50
        assert float(bar.get("y", 0)) + float(bar.get("height", 0)) < height


def test_without_a_gpu_the_report_says_so(monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(report, "RESULTS", tmp_path)
    monkeypatch.setattr(sys, "argv", ["report", "--chart", str(tmp_path / "chart.svg")])
    assert report.main() == 1
    assert report.NOT_MEASURED in capsys.readouterr().out
    assert not list(tmp_path.iterdir())


def test_records_on_file_can_be_rendered():
    for path in report.RESULTS.glob("*.json"):
        assert "|" in report.render(json.loads(path.read_text()))


def test_saving_replaces_the_record_of_a_day(monkeypatch, tmp_path, made_up_record):
    monkeypatch.setattr(compare, "RESULTS", tmp_path)
    path = compare.save(made_up_record)
    assert path.name == "nvidia-made-up-1970-01-01.json"
    again = made_up_entry(frames()[0], {"ours": 0.007})
    compare.put(made_up_record["workloads"], again)
    compare.save(made_up_record)
    assert list(tmp_path.iterdir()) == [path]
    assert json.loads(path.read_text())["workloads"][0] == again
    assert len(made_up_record["workloads"]) == 4


def test_on_a_gpu_what_is_aimed_at_comes_first():
    items = compare.gpu_items(3)
    assert [str(work) for work, _, _ in items[:4]] == [str(work) for work in frames()[:4]]
    slow = [any(work.cases[name].slow for name in names) for work, names, _ in items]
    assert not any(slow[:4])
    everything = {str(work) for work in frames() + operations()}
    assert {str(work) for work, names, _ in items if set(names) == set(work.cases)} == everything


# --- steps in processes of their own


FRAGILE = """
import os, time

def step(item, failed, at):
    done = list(failed)
    for part in ("crash", "hang", "raise", "work"):
        if part in failed or (part != "work" and part != item):
            continue
        at(part, 0.5 if part == "hang" else 30.0)
        if part == "crash":
            os._exit(7)
        elif part == "hang":
            time.sleep(60)
        elif part == "raise":
            raise RuntimeError("first line\\nsecond line")
        done.append(failed.get(item, part))
    return done

def hopeless(item, failed, at):
    os._exit(3)
"""


@pytest.fixture
def fragile(monkeypatch, tmp_path):
    """A module of its own: the processes import what they run, and the whole of this one would take them seconds."""
    (tmp_path / "fragile_steps.py").write_text(FRAGILE)
    monkeypatch.syspath_prepend(tmp_path)
    yield importlib.import_module("fragile_steps")
    sys.modules.pop("fragile_steps")


def test_a_part_that_dies_costs_itself_alone(fragile):
    items = ["work", "crash", "hang", "raise", "work"]
    assert list(worker.each(fragile.step, items)) == [
        ("work", ["work"]),
        ("crash", ["crash", "its process ended with exit code 7"]),
        ("hang", ["hang", "not done after 0.5 s"]),
        ("raise", ["raise", "RuntimeError: first line"]),
        ("work", ["work"]),
    ]


def test_an_item_that_cannot_be_done_is_named_and_time_ends(fragile):
    assert list(worker.each(fragile.hopeless, ["a"])) == [("a", "its process ended with exit code 3")]
    assert list(worker.each(fragile.step, ["work"], time.monotonic() - 1)) == []


# --- what is compared


@pytest.mark.parametrize("length", [1, 64, SIDE + 10, SIDE + 11, 1080])
def test_windows_know_all_that_bears_on_them(length):
    for window in windows(length, 5):
        assert 0 <= window.start <= window.first < window.end <= window.stop <= length
        assert window.start == max(0, window.first - 5) and window.stop == min(length, window.end + 5)
    assert windows(length, 5)[0].first == 0 and windows(length, 5)[-1].end == length


def test_a_frame_is_judged_in_its_windows(monkeypatch):
    monkeypatch.setattr("bench.frames.SIDE", 4)
    work = Frame(EDSRConfig(blocks=1, features=8), 40, 45, "cpu", torch.float32)
    run = work.cases["channels_last"].run(work)
    assert len(work.windows) == 3
    work.check(run)
    for row, column in ((0, 0), (-1, -1), (40, 45)):
        wrong = run().clone()
        wrong[row, column, 1] ^= 128
        with pytest.raises(AssertionError, match="wrong result"):
            work.check(lambda wrong=wrong: wrong)


TINY = [
    Workload(EDSRConfig(blocks=1, features=8), 8, 9),
    Frame(EDSRConfig(blocks=1, features=16), 8, 8, "cpu", torch.float32),
    Frame(EDSRConfig(blocks=1, features=16, scale=4), 5, 7, "cpu", torch.float16),
    *(op for op in operations(3, 7, (2, 3, 5), device="cpu", dtype=torch.float16) if op.features == 64),
    Op("tail", 16, 3, 5, "cpu", torch.float32, scale=3),
]


@needs_triton
@pytest.mark.parametrize("work", TINY, ids=str)
def test_every_case_is_right(monkeypatch, work):
    monkeypatch.setattr(torch, "compile", lambda function, **options: function)  # compiling takes its time
    right = []
    for name, case in work.cases.items():
        try:
            run = case.run(work)
        except Unavailable as error:
            assert str(error)
            continue
        work.check(run, poison=case.ours)
        right.append(name)
    assert {work.base, "compile"} <= set(right)
    if not isinstance(work, Frame) or work.dtype == torch.float32:  # few CPUs have a network in fp16
        assert any(work.cases[name].ours for name in right)


def test_memory_is_poisoned_while_ours_is_checked():
    work = Op("relu", 16, 3, 5, "cpu", torch.float32)
    with pytest.raises(AssertionError, match="off by nan"):
        work.check(lambda: torch.empty(work.truth.shape, memory_format=torch.channels_last), poison=True)
    assert not torch.are_deterministic_algorithms_enabled()


def test_work_is_told_in_floating_point_operations():
    baseline = frames()[0]
    # Multiply-adds of one LR pixel, as in docs/design.md.
    assert baseline.gflop(collapsed=False) == pytest.approx(2 * (1_218_240 + 154_368) * 1080 * 1920 / 1e9)
    assert baseline.gflop(collapsed=True) == pytest.approx(2 * (1_218_240 + 19_200) * 1080 * 1920 / 1e9)
    relu = operations()[0]
    assert relu.gflop(False) == pytest.approx(2 * 9 * 64 * 64 * 1080 * 1920 / 1e9)


# --- tuning

tune = pytest.importorskip("bench.tune", reason="needs Triton")


@pytest.mark.parametrize("target", tune.TARGETS, ids=str)
def test_candidates_are_legal(target):
    candidates = target.candidates()
    assert 3 <= len(candidates) <= 32
    assert len({tune.label(config) for config in candidates}) == len(candidates)
    for config in candidates:
        blocks = [size for name, size in config.items() if name.startswith("BLOCK")]
        assert all(size & (size - 1) == 0 for size in blocks)
        assert target.features % config.get("BLOCK_CI", 1) == 0
        assert config["num_warps"] in (4, 8)
    small = target.candidates(shared=99 << 10)
    assert small and len(small) <= len(candidates)


@pytest.mark.parametrize("target", tune.TARGETS, ids=str)
def test_the_default_is_a_candidate(monkeypatch, target):
    """So a tuned kernel is never slower than an untuned one."""
    defaults = []
    monkeypatch.setattr(tune.launch, "run", lambda *operands, **options: None)
    with (
        tune.launch.compile_only(90, lambda name, kernel: None),
        tune.configured(lambda op, key, default: defaults.append((op, default)) or default),
    ):
        for op in target.operations(target.sizes.full, "meta"):
            op.cases[target.case].build(op)()
    assert {op for op, _ in defaults} == {target.op}
    assert all(default in target.candidates() for _, default in defaults)


def test_configurations_come_back_through_the_launchers(monkeypatch, tmp_path):
    monkeypatch.setattr(tune.launch, "FOLDER", tmp_path / "configs")
    tune.launch._record.cache_clear()
    monkeypatch.setattr(tune.launch, "_gpu", lambda device: tune.launch._Gpu("NVIDIA Made-up 1", 90, 132))
    record = tune.read("NVIDIA Made-up 1")
    target = next(target for target in tune.TARGETS if target.op == "conv3x3")
    best = {"config": target.candidates()[1], "seconds": 1.0, "tflops": 1.0, "percent": 1.0}
    tune.keep(record, tune.Step(target), {"rows": [best], "key": "fp16 64-64"})
    tune.choose(record, tune.Step(rival=tune.RIVALS[0]), {"portable": 0.002, "hopper": 0.001})
    tune.write("NVIDIA Made-up 1", record)
    try:
        for dtype in ("fp16", "bf16"):
            found = tune.launch.config("conv3x3", f"{dtype} 64-64", {}, torch.device("cuda"))
            assert found == best["config"]
        assert tune.launch.config("conv3x3", "fp32 64-64", {"a": 1}, torch.device("cuda")) == {"a": 1}
    finally:
        tune.launch._record.cache_clear()
    again = tune.read("NVIDIA Made-up 1")
    assert again["configs"] == record["configs"]
    assert again["choices"]["relu"]["bf16 64"] == {"fastest": "hopper", "ms": {"portable": 2.0, "hopper": 1.0}}
    assert {"gpu", "date", "triton", "torch"} <= set(again)
    assert [path.name for path in (tmp_path / "configs").iterdir()] == ["nvidia-made-up-1.json"]


@needs_triton
def test_a_candidate_is_launched_as_forced():
    target = next(target for target in tune.TARGETS if str(target) == "conv3x3-64")
    (op, _) = target.operations((1, 3, 5), "cpu")
    op = Op(op.name, op.features, op.height, op.width, "cpu", torch.float32)
    run = op.cases[target.case].build(op)
    config = {"BLOCK_H": 2, "BLOCK_W": 16, "BLOCK_CO": 16, "BLOCK_CI": 16, "num_warps": 4, "num_stages": 1}
    with tune.forced("conv3x3", config) as asked:
        op.check(run, poison=True)
    assert asked == {("conv3x3", "fp32 64-64 narrow")}


# --- commands


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU to run on")
@pytest.mark.parametrize("command", ["tune", "check", "compare --device cuda", "machine --device cuda"])
def test_without_a_gpu_commands_refuse_in_one_line(command, monkeypatch, capsys):
    module, *options = command.split()
    main = __import__(f"bench.{module}", fromlist=["main"]).main
    monkeypatch.setattr(sys, "argv", [module, *options])
    assert main() == 2
    assert capsys.readouterr().err == "there is no CUDA device here\n"


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU to run on")
def test_the_script_is_sound_and_refuses_too():
    script = ROOT / "bench" / "gpu.sh"
    subprocess.run(["bash", "-n", script], check=True)
    environment = os.environ | {"PYTHON": sys.executable}
    result = subprocess.run(["bash", script], capture_output=True, text=True, env=environment)
    assert (result.returncode, result.stderr) == (2, "there is no CUDA device here\n")


def test_the_script_takes_less_than_ten_minutes():
    lines = (ROOT / "bench" / "gpu.sh").read_text().splitlines()
    limits = [int(line.split()[2]) for line in lines if line.startswith("part ") and "{" not in line]
    assert len(limits) == 7 and sum(limits) < 600
