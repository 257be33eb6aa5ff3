"""The benchmarks' own code: what is chosen, what is told so far, launch configurations, commands.

Nothing is timed here. What needs a GPU in `bench` is exercised on tiny work, under Triton's interpreter.
"""

import os
import subprocess
import sys
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from rich.console import Console

from bench import compare
from bench.frames import frames
from bench.isolate import Heartbeat
from bench.ops import SingleOp, operations
from bench.workloads import Case, Workload
from tests.conftest import ROOT

needs_triton = pytest.mark.skipif(
    os.environ.get("TRITON_INTERPRET") != "1", reason="on a GPU, `python -m bench.verify` does this"
)


# --- what is chosen


def test_on_a_gpu_what_is_aimed_at_comes_first():
    items = compare.gpu_items(3)
    assert [str(work) for work, _, _ in items[:4]] == [str(work) for work in frames()[:4]]
    slow = [any(work.cases[name].slow for name in names) for work, names, _ in items]
    assert not any(slow[:4])
    everything = {str(work) for work in frames() + operations()}
    assert {str(work) for work, names, _ in items if set(names) == set(work.cases)} == everything


def chosen(line: str) -> list[tuple[str, tuple[str, ...]]]:
    only, _, cases = line.partition("--cases")
    items = compare.gpu_items(5, only.split(), cases.split())
    return [(str(work), names) for work, names, _ in items]


def test_work_is_chosen_by_name_in_the_order_asked_for():
    baseline, full = "edsr-baseline-x2-1920x1080", "edsr-x2-1920x1080"
    names = [baseline, "edsr-baseline-x2-64x64", full, "edsr-baseline-x4-1920x1080"]
    assert chosen(" ".join(names) + " --cases ours channels_last") == [(n, ("ours", "channels_last")) for n in names]
    assert chosen(f"{baseline} relu-64 skip-64 resblock-64 --cases ours one_kernel folded cudnn") == [
        (baseline, ("ours", "folded")),
        ("relu-64", ("ours", "cudnn")),
        ("skip-64", ("ours", "cudnn")),
        ("resblock-64", ("ours", "one_kernel", "cudnn")),
    ]
    peers_of = "ours channels_last compile tensorrt onnxruntime"
    assert chosen(f"{baseline} --cases {peers_of}") == [(baseline, tuple(peers_of.split()))]
    assert [work for work, _ in chosen("tail-64 head --cases ours")] == [
        *("tail-64-x2", "tail-64-x4"),
        *("head-64", "head-256"),
    ]
    # Nothing comes twice.
    assert [work for work, _ in chosen("resblock-64 resblock --cases ours")] == ["resblock-64", "resblock-256"]
    quick_first = chosen("relu-64 skip-64")
    assert [work for work, _ in quick_first] == ["relu-64", "skip-64"] * 2
    assert ["compile" in names for _, names in quick_first] == [False, False, True, True]
    ((work, names, rounds),) = compare.cpu_items(7, ["x2-1024"], ["eager", "bands"])
    assert (str(work), names, rounds) == ("x2-1024x1024", ("eager", "bands"), 3)


def test_a_whole_name_means_that_work_alone():
    works = [replace(operations()[0], name=name) for name in ("relu", "relu-64-relu", "prelu")]
    assert [str(work) for work in works] == ["relu-64", "relu-64-relu-64", "prelu-64"]
    assert compare.chosen(works, ["relu-64"]) == works[:1]
    assert compare.chosen(works, ["relu-6"]) == works


@pytest.mark.parametrize(
    ("line", "message"),
    [("--only nonsense", "--only nonsense: there is no such work"), ("--cases ours x", "--cases x: there is no such")],
)
def test_what_there_is_not_is_refused(monkeypatch, capsys, line, message):
    monkeypatch.setattr(sys, "argv", ["compare", "--device", "cuda", *line.split()])
    with pytest.raises(SystemExit):
        compare.main()
    assert message in capsys.readouterr().err


# --- what is known so far


class OnGpu(Workload):
    """Made-up work on a GPU that is none. broken: cases that are wrong."""

    device, dtype, base = "cuda", torch.float16, "peer"
    reference_error = 0.0

    def __init__(self, broken: tuple[str, ...] = ()):
        self.broken = broken

    def __str__(self) -> str:
        return "made-up"

    @property
    def cases(self):
        names = ("ours", "other", "peer")
        return {name: Case(name, lambda work, name=name: lambda: torch.tensor(name in self.broken)) for name in names}

    def description(self):
        return {"op": "made", "title": "Made-up", "features": 1, "width": 1, "height": 1, "precision": "float16"}

    def gflop(self, collapsed):
        return 1.0

    def error_of(self, y):
        return float(y)


@pytest.fixture
def no_gpu(monkeypatch):
    """`bench.compare` goes the way of a GPU without one. A case takes a second more than the one before."""
    best = SimpleNamespace(gflops=1.0, gbs=1.0, measure=lambda: None)
    monkeypatch.setattr(compare, "Ceiling", lambda device, dtype: best)
    monkeypatch.setattr(compare, "allocated_bytes", lambda: 0)
    monkeypatch.setattr(compare, "gpu_peak", lambda run: 2**20)
    monkeypatch.setattr(compare, "repeats_for", lambda run, device: 1)
    times = iter(range(1, 100))
    monkeypatch.setattr(compare, "clock", lambda run, device, repeats: next(times))


def compared(work: Workload, rounds: int, failed: dict | None = None) -> tuple[dict, list[dict], list[str]]:
    """The entry, what was told before it, and the parts."""
    messages: list[tuple] = []
    names = ("ours", "other", "peer")
    entry = compare.compare(work, names, rounds, Console(quiet=True), failed, Heartbeat(messages.append))
    reported = [message[1] for message in messages if message[0] == "so far"]
    return entry, reported, [message[1] for message in messages if message[0] == "at"]


def test_each_case_is_timed_and_told_as_soon_as_it_is_right(no_gpu):
    entry, reported, parts = compared(OnGpu(broken=("other",)), 2)
    assert [list(known["cases"]) for known in reported] == [["ours"], ["ours"], *[["ours", "peer"]] * 3]
    assert [known["cases"]["ours"]["seconds"] for known in reported] == [[1], [1], [1], [3], [3, 6]]
    assert [known["cases"]["ours"]["turns"] is None for known in reported] == [True, True, True, False, False]
    assert reported[2]["cases"]["ours"]["ratio"] is None  # the base was timed, but not in turns
    assert reported[1]["incorrect"].keys() == entry["incorrect"].keys() == {"other"} and "failed" not in entry
    assert entry["cases"]["ours"]["ratio"] == round((4 / 3 + 5 / 6) / 2, 3) and entry == reported[-1]
    assert parts[:5] == ["the ceiling", "the result in fp64", "ours", "other", "peer"]


def test_what_died_before_is_left_out_and_said(no_gpu):
    entry, _, parts = compared(OnGpu(), 1, {"other": "not done after 25.0 s"})
    assert list(entry["cases"]) == ["ours", "peer"] and "other" not in parts
    assert entry["incorrect"] == {"other": "not done after 25.0 s"} and entry["failed"] == ["other"]


def test_a_yardstick_that_does_not_fit_skips_the_work(no_gpu):
    class Large(OnGpu):
        @property
        def reference_error(self):
            raise torch.cuda.OutOfMemoryError("no memory for 68 GB")

    entry, reported, _ = compared(Large(), 3)
    assert entry["cases"] == {} and reported == []
    assert entry["skipped"] == dict.fromkeys(("ours", "other", "peer"), "OutOfMemoryError: no memory for 68 GB")


# --- tuning

tune = pytest.importorskip("bench.tune", reason="needs Triton")


def test_what_is_tuned_is_chosen_between_afterwards():
    """A part of the name of a kernel or of a choice is enough; the plan's once chose no choice."""
    steps = [tune.Step(choice=choice) for choice in tune.CHOICES]
    assert [str(step) for step in tune.named_in(["64"], steps)] == ["relu-64", "skip-64", "resblock-64"]
    assert {target.features for target in tune.named_in(["64"], tune.TARGETS)} == {64}
    assert [str(target) for target in tune.named_in(["conv256"], tune.TARGETS)] == ["hopper_conv256-256"]
    assert len(tune.named_in([""], steps)) == len(tune.CHOICES)


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
        tune.launch.override_configs(lambda op, key, default: defaults.append((op, default)) or default),
    ):
        for op in target.operations(target.sizes.full, "meta"):
            op.cases[target.case].build(op)()
    assert {op for op, _ in defaults} == {target.op}
    assert all(default in target.candidates() for _, default in defaults)


def test_configurations_come_back_through_the_launchers(monkeypatch, tmp_path):
    monkeypatch.setattr(tune.launch, "FOLDER", tmp_path / "configs")
    tune.launch._load_record.cache_clear()
    monkeypatch.setattr(tune.launch, "_gpu", lambda device: tune.launch._Gpu("NVIDIA Made-up 1", 90, 132))
    record = tune.read("NVIDIA Made-up 1")
    target = next(target for target in tune.TARGETS if target.op == "conv3x3")
    best = {"config": target.candidates()[1], "seconds": 1.0, "tflops": 1.0, "percent": 1.0}
    tune.keep(record, tune.Step(target), {"rows": [best], "key": "fp16 64-64"})
    tune.choose(record, tune.Step(choice=tune.CHOICES[0]), {"portable": 0.002, "hopper": 0.001})
    tune.write("NVIDIA Made-up 1", record)
    try:
        for dtype in ("fp16", "bf16"):
            found = tune.launch.config("conv3x3", f"{dtype} 64-64", {}, torch.device("cuda"))
            assert found == best["config"]
        assert tune.launch.config("conv3x3", "fp32 64-64", {"a": 1}, torch.device("cuda")) == {"a": 1}
    finally:
        tune.launch._load_record.cache_clear()
    again = tune.read("NVIDIA Made-up 1")
    assert again["configs"] == record["configs"]
    assert again["choices"]["relu"]["bf16 64"] == {"fastest": "hopper", "ms": {"portable": 2.0, "hopper": 1.0}}
    assert {"gpu", "date", "triton", "torch"} <= set(again)
    assert [path.name for path in (tmp_path / "configs").iterdir()] == ["nvidia-made-up-1.json"]


@needs_triton
def test_a_candidate_is_launched_as_forced():
    target = next(target for target in tune.TARGETS if str(target) == "conv3x3-64")
    (op, _) = target.operations((1, 3, 5), "cpu")
    op = SingleOp(op.name, op.features, op.height, op.width, "cpu", torch.float32)
    run = op.cases[target.case].build(op)
    config = {"BLOCK_H": 2, "BLOCK_W": 16, "BLOCK_CO": 16, "BLOCK_CI": 16, "num_warps": 4, "num_stages": 1}
    with tune.forced("conv3x3", config) as asked:
        op.check(run, poison=True)
    assert asked == {("conv3x3", "fp32 64-64 few")}


# --- commands


def test_a_gpu_needs_no_image_library():
    code = "import sys\nsys.modules |= dict.fromkeys(('pyvips', 'h5py'))\n"
    code += "import bench.training, bench.verify, bench.compare, bench.report\n"
    code += "try: import bench.tune\nexcept ImportError as error: assert 'triton' in str(error)"
    result = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU to run on")
@pytest.mark.parametrize("command", ["tune", "verify", "compare --device cuda", "machine --device cuda"])
def test_without_a_gpu_commands_refuse_in_one_line(command, monkeypatch, capsys):
    module, *options = command.split()
    main = __import__(f"bench.{module}", fromlist=["main"]).main
    monkeypatch.setattr(sys, "argv", [module, *options])
    assert main() == 2
    assert capsys.readouterr().err == "there is no CUDA device here\n"


@pytest.mark.slow
@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU to run on")
def test_the_script_is_sound_and_refuses_too():
    script = ROOT / "bench" / "gpu.sh"
    subprocess.run(["bash", "-n", script], check=True)
    environment = os.environ | {"PYTHON": sys.executable}
    result = subprocess.run(["bash", script], capture_output=True, text=True, env=environment)
    assert (result.returncode, result.stderr) == (2, "there is no CUDA device here\n")
