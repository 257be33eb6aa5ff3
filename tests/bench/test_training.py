"""The benchmark of a training step: its ways, what it finds wrong, its records. Nothing is timed here."""

import functools
import json
import os
import sys

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from bench import records, report, training, training_steps
from bench.isolate import Heartbeat
from bench.training_steps import IMPLEMENTATIONS, Loop, Ours, Patches, Training
from bench.workloads import Unavailable
from edsr.data.store import PairedImages
from edsr.images.resize import matlab_downscale
from edsr.kernels.triton import launch
from edsr.models.edsr import PRESETS, EDSRConfig

TINY = EDSRConfig(blocks=1, features=16)


def tiny(batch: int = 2, patch: int = 8, dtype: torch.dtype = torch.float32) -> Training:
    return Training("tiny", TINY, batch, patch, "cpu", dtype, 0, (48, 64))


@pytest.fixture
def uncompiled(monkeypatch):
    """Compiling takes its time."""
    monkeypatch.setattr(torch, "compile", lambda function, **options: function)


# --- the ways


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("name", IMPLEMENTATIONS)
def test_every_way_is_right(uncompiled, name, dtype):
    work = tiny(dtype=dtype)
    try:
        way = IMPLEMENTATIONS[name].build(work)
    except Unavailable as reason:
        assert name in ("eager", "triton") or (name == "winograd" and "fp32" in str(reason))
        return
    loss, gradient = training.check(work, way)
    assert 0 <= loss < 1e-2 and 0 < gradient < 0.1


@pytest.mark.skipif(os.environ.get("TRITON_INTERPRET") != "1", reason="on a GPU, the benchmark itself does this")
def test_our_kernels_take_a_right_step():
    work = tiny(1, 4)
    loss, gradient = Ours(work, "training", graph=True).first()
    allowed = training_steps.budget(work, torch.float32)
    assert abs(loss - work.target.loss) <= allowed[0]
    assert (gradient - work.target.direction).norm() <= allowed[1]


def test_patches_of_the_plain_loop_belong_together():
    low = np.arange(7 * 9 * 3, dtype=np.uint8).reshape(7, 9, 3)
    high = low.repeat(3, 0).repeat(3, 1)
    table = np.array([[0, 0, 7, 9, 0]])
    images = PairedImages(3, *(torch.from_numpy(x.reshape(-1, 3)) for x in (high, low)), table)
    seen = set()
    for small, large in (Patches(images, 4)[0] for _ in range(300)):
        assert small.shape == (3, 4, 4) and large.shape == (3, 12, 12) and small.dtype == torch.float32
        assert torch.equal(large, small.repeat_interleave(3, 1).repeat_interleave(3, 2))
        corners = (255 * small[0]).round().int()
        seen.add(tuple(torch.sign(corners[i, j] - corners[0, 0]).item() for i, j in ((0, 3), (3, 0))))
        step_right = abs(int(corners[0, 1] - corners[0, 0]))
        seen.add(("down" if step_right == 27 else "right", bool(corners[0, 1] > corners[0, 0])))
    assert len(seen) == 8  # four pairs of signs; two directions both ways


def test_ours_and_peers_train_from_the_same_weights_on_the_same_patches():
    work = tiny()
    plain, ours = Loop(work, fast=False), Ours(work, "reference", graph=True)
    for (name, a), b in zip(plain.model.named_parameters(), ours.model.parameters(), strict=True):
        assert torch.equal(a, b), name
    before = ours.first()
    ours.run(3)
    again = ours.first()  # from the start once more
    assert again[0] == before[0] and torch.equal(again[1], before[1])
    assert plain.first()[0] == pytest.approx(before[0], rel=1e-5)


# --- what is found wrong


class Spoilt:
    """A way whose first step is off."""

    def __init__(self, way, loss: float = 0.0, gradient: float = 0.0):
        self._way, self._loss, self._gradient = way, loss, gradient
        self.dtype, self.model, self.run = way.dtype, way.model, way.run

    def first(self):
        loss, gradient = self._way.first()
        return loss + self._loss, gradient + self._gradient


@pytest.mark.parametrize(
    ("spoilt", "wrong"), [({"loss": 1e-4}, "loss"), ({"loss": float("nan")}, "loss"), ({"gradient": 1e-5}, "gradient")]
)
def test_a_wrong_step_is_found(spoilt, wrong):
    work = tiny()
    with pytest.raises(AssertionError, match=f"wrong {wrong}: off by"):
        training.check(work, Spoilt(Loop(work, fast=False), **spoilt))


def test_a_way_that_does_not_learn_is_found(monkeypatch):
    monkeypatch.setattr(training_steps, "LEARNING_RATE", 0.0)
    work = tiny()
    with pytest.raises(AssertionError, match="20 steps took the loss from"):
        training.check(work, Loop(work, fast=False))


def test_steps_without_the_graph_they_were_to_have_are_not_timed():
    way = Ours(tiny(), "reference", graph=True)
    way._step.graph_error = "why"
    with pytest.raises(AssertionError, match="no CUDA graph"):
        way.run(1)


# --- figures


def test_work_is_three_forward_passes():
    work = Training("edsr-baseline", PRESETS["edsr-baseline"])
    # Multiply-adds of one LR pixel, as in docs/architecture.md.
    assert work.gflop == pytest.approx(3 * 2 * (1_218_240 + 154_368) * 16 * 48 * 48 / 1e9)


@given(st.lists(st.tuples(st.integers(0, 40), st.integers(0, 10)), max_size=12))
def test_covered_counts_every_moment_once(spans):
    moments = {moment for start, length in spans for moment in range(start, start + length)}
    assert training.covered([(start, start + length) for start, length in spans]) == len(moments)


def test_ways_are_in_order_and_have_limits_that_leave_time_for_others():
    assert list(IMPLEMENTATIONS) == ["triton", "winograd", "torch", "plain", "channels_last", "eager", "compile"]
    assert max(way.limit for way in IMPLEMENTATIONS.values() if not way.slow) + training.LIMIT < 65
    assert [name for name, way in IMPLEMENTATIONS.items() if way.slow] == ["compile"]


def test_images_are_reduced_as_for_training():
    images = training_steps.drawn((49, 64), 3)
    assert len(images) == training_steps.IMAGES and images.scale == 3
    low, high = images.pair(1)
    assert low.shape == (16, 21, 3) and high.shape == (48, 63, 3) and high.dtype == np.uint8
    assert np.array_equal(low, matlab_downscale(high, 3))


def test_what_takes_long_comes_last():
    works = [Training(name, PRESETS[name]) for name in PRESETS]
    found = training.items(works, tuple(IMPLEMENTATIONS), 7, 0.3)
    assert [item.work.name for item in found] == ["edsr-baseline", "edsr", "edsr"]
    assert ["compile" in item.names for item in found] == [True, False, True]
    on_cpu = [Training(name, PRESETS[name], device="cpu") for name in PRESETS]
    assert len(training.items(on_cpu, tuple(IMPLEMENTATIONS), 7, 0.3)) == 2


# --- records


def made_up_entry(name: str, seconds: dict[str, float]) -> dict:
    """An entry of a record, with figures nobody measured."""
    work = Training(name, PRESETS[name])
    figures = {"precision": "bfloat16", "ratio": None, "patches_per_second": 1.0, "gflops": 1.0, "ceiling_percent": 1.0}
    figures |= {"loss_error": 1e-4, "gradient_error": 1e-2, "peak_mib": 1000.0, "busy_percent": 96.0}
    cases = {
        name: figures | {"title": IMPLEMENTATIONS[name].title, "seconds": [t, t, t], "median": t}
        for name, t in seconds.items()
    }
    entry = {"work": str(work), "model": name, "scale": 2, "batch": 16, "patch": 48, "workers": 4}
    entry |= {"blocks": work.config.blocks, "features": work.config.features, "gflop": work.gflop}
    return entry | {
        "ceiling": {"gflops": 8e5, "gbs": 4e3},
        "cases": cases,
        "incorrect": {},
        "skipped": {"eager": "why"},
    }


def made_up_record(*entries: dict) -> dict:
    machine = {"name": "NVIDIA Made-up", "device": "cuda", "multiprocessors": 1, "memory_gib": 1, "cuda": "0"}
    machine |= {"cudnn": 0, "triton": "0", "torch": "0", "python": "0", "system": "none", "date": "1970-01-01"}
    return {"kind": "training", "machine": machine, "workloads": list(entries)}


def test_report_of_a_training_record():
    small = made_up_entry("edsr-baseline", {"plain": 0.012, "compile": 0.003, "torch": 0.0025, "triton": 0.002})
    large = made_up_entry("edsr", {"plain": 0.12, "torch": 0.03})
    text = report.render(made_up_record(small, large))
    assert "16 blocks of 64 features, 16 patches of 48 x 48 a step, 304 GFLOP" in text
    assert "| ours, on Triton | bfloat16 | 2.00 | - | 1.00 | 0.00100 | 1 % | 1,000 | 96 % | 1e-04 | 1e-02 |" in text
    assert "eager: why" in text
    for line in text.splitlines():
        assert "|" not in line or (line.startswith("| ") and line.endswith(" |"))
    rows = report.targets_table(made_up_record(small, large)).splitlines()[2:]
    assert [row.split("|")[-2].strip() for row in rows] == ["yes", "yes", "yes", "yes", "no", ""]
    assert "2 ms" in rows[0] and "6 x" in rows[1] and "1.5 x" in rows[2] and "96 %" in rows[3] and "4 x" in rows[4]


def test_steps_are_compared_with_peers_of_their_own_run():
    """As the script does it: the compiled peer comes in a second command, with Triton and the plain loop."""
    first = made_up_entry("edsr-baseline", {"triton": 0.002, "torch": 0.0015, "plain": 0.012, "eager": 0.004})
    second = made_up_entry("edsr-baseline", {"triton": 0.0025, "plain": 0.01, "compile": 0.005})
    for entry, run in (first, "1970-01-01T10"), (second, "1970-01-01T11"):
        for case in entry["cases"].values():
            case |= {"run": run, "turns": run}
    record = records.merged(made_up_record(first), made_up_record(second))
    rows = report.targets_table(record).splitlines()[2:]
    assert "2.5 ms" in rows[0] and "4 x" in rows[1] and "2 x" in rows[2]
    assert len(record["workloads"][0]["cases"]) == 5


def test_aims_are_about_what_is_measured():
    assert {report.STEP, report.FULL_STEP} == {str(Training(name, PRESETS[name])) for name in PRESETS}


def test_the_faster_of_ours_is_noted_for_training(monkeypatch, tmp_path):
    pytest.importorskip("triton")
    monkeypatch.setattr(launch, "FOLDER", tmp_path / "configs")
    monkeypatch.setattr(launch, "_gpu", lambda device: launch._Gpu("NVIDIA Made-up 1", 90, 132))
    launch._load_record.cache_clear()
    try:
        training.choose("NVIDIA Made-up 1", made_up_entry("edsr-baseline", {"torch": 0.003, "triton": 0.002}))
        training.choose("NVIDIA Made-up 1", made_up_entry("edsr", {"torch": 0.03}))
        device = torch.device("cuda")
        assert launch.choice("training_step", "bf16 64", device) == "triton"
        assert launch.choice("training_step", "bf16 256", device) is None  # there was nothing to choose from
        training.choose("NVIDIA Made-up 1", made_up_entry("edsr-baseline", {"torch": 0.001, "triton": 0.002}))
        launch._load_record.cache_clear()
        assert launch.choice("training_step", "bf16 64", device) == "torch"
    finally:
        launch._load_record.cache_clear()


# --- the command


def command(monkeypatch, line: str) -> int:
    monkeypatch.setattr(sys, "argv", ["training", *line.split()])
    return training.main()


@pytest.fixture
def tiny_command(monkeypatch, tmp_path):
    """A tiny network to train, a ceiling found at once, results in tmp_path."""
    monkeypatch.setattr(training, "PRESETS", {"tiny": TINY})
    monkeypatch.setattr(training, "Training", functools.partial(Training, size=(48, 64)))
    monkeypatch.setattr("bench.records.RESULTS", tmp_path)
    monkeypatch.setattr("bench.machine.COPIED", {"cpu": 1 << 20})
    monkeypatch.setattr("bench.machine.MATRIX", {"cpu": 64})


@pytest.mark.slow
def test_the_command_writes_a_record(uncompiled, tiny_command, monkeypatch, tmp_path, capsys):
    line = "--device cpu --model tiny --scale 3 --batch 2 --patch 8 --rounds 2 --seconds 0 --save --json"
    assert command(monkeypatch, line) == 0
    (path,) = tmp_path.iterdir()
    record = json.loads(path.read_text())
    text = capsys.readouterr()
    assert path.name.endswith("-training.json") and record == json.loads(text.out)
    (entry,) = record["workloads"]
    assert entry["work"] == "training-tiny-x3-2x8" and set(entry["skipped"]) == {"eager", "triton"}
    ways = ["winograd", "torch", "plain", "channels_last", "compile"]
    assert list(entry["cases"]) == ways and entry["incorrect"] == {}
    assert all(case["peak_mib"] is None or case["peak_mib"] > 50 for case in entry["cases"].values())
    assert all(len(case["seconds"]) == 2 and case["ratio"] > 0 for case in entry["cases"].values())
    assert "| ours, on PyTorch |" in report.render(record) and "aim" not in report.render(record)


@pytest.mark.slow
def test_a_part_is_added_to_the_whole(uncompiled, tiny_command, monkeypatch, tmp_path):
    line = "--device cpu --model tiny --batch 2 --patch 8 --rounds 1 --seconds 0 --save --only "
    assert command(monkeypatch, line + "plain") == 0
    assert command(monkeypatch, line + "torch compile") == 0
    (path,) = tmp_path.iterdir()
    (entry,) = json.loads(path.read_text())["workloads"]
    assert list(entry["cases"]) == ["plain", "torch", "compile"]
    assert len({case["run"] for case in entry["cases"].values()}) == 2
    assert entry["cases"]["torch"]["ratio"] is None  # the plain loop was timed in another run


@pytest.mark.slow
def test_a_way_that_dies_is_begun_again_and_loses_no_figures(tiny_command, monkeypatch):
    """Told is each way as soon as it is right, then every round; the second try starts with nothing."""
    entries: list[dict] = []

    def tell(message: tuple) -> None:
        if message[0] == "so far":
            records.add_entry(entries, message[1])
            counts.append(len(entries[0]["cases"]))

    counts: list[int] = []
    item = training.Item(tiny(), ("torch", "plain", "eager"), 2, 0.0)

    def die(work):
        raise KeyboardInterrupt

    monkeypatch.setitem(IMPLEMENTATIONS, "eager", training_steps.Implementation("dies", die))
    with pytest.raises(KeyboardInterrupt):
        training.compare(item, {}, Heartbeat(tell))
    first = {name: case["median"] for name, case in entries[0]["cases"].items()}
    assert counts == [1, 2] and first.keys() == {"torch", "plain"}
    entry = training.compare(item, {"eager": "not done after 25.0 s"}, Heartbeat(tell))
    assert counts == [1, 2] + [2] * 4
    assert entry["incorrect"] == {"eager": "not done after 25.0 s"} and entry["failed"] == ["eager"]
    assert all(len(case["seconds"]) == 2 and case["turns"] for case in entries[0]["cases"].values())


def test_a_profiler_that_hangs_costs_no_figures():
    """It is the last part: what the try before it told is the result."""
    before = made_up_entry("edsr-baseline", {"triton": 0.002})
    item = training.Item(tiny(), ("torch", "plain"), 2, 0.0)
    found = training.compare(item, {"the profiler": "not done after 20.0 s"}, Heartbeat(before=before))
    assert found["cases"] == before["cases"] and found["incorrect"] == {}
    assert found["skipped"] == {"eager": "why", "the profiler": "not done after 20.0 s"}


def test_a_way_that_died_is_not_chosen(monkeypatch, tmp_path):
    pytest.importorskip("triton")
    monkeypatch.setattr(launch, "FOLDER", tmp_path / "configs")
    entry = made_up_entry("edsr-baseline", {"torch": 0.003, "triton": 0.002}) | {"incorrect": {"triton": "not done"}}
    training.choose("NVIDIA Made-up 1", entry)
    (path,) = (tmp_path / "configs").iterdir()
    assert json.loads(path.read_text())["choices"] == {"training_step": {}}


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU to run on")
def test_without_a_gpu_it_refuses_in_one_line(monkeypatch, capsys):
    assert command(monkeypatch, "--device cuda") == 2
    assert capsys.readouterr().err == "there is no CUDA device here\n"
