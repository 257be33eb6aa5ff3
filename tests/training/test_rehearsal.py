"""What is told of a run before it is begun: the dry run, and the learning-rate range test."""

import itertools
import math
from pathlib import Path

import pytest

from edsr.errors import DataError, TrainError
from edsr.training import dry_run, find_learning_rate
from edsr.training.rehearsal import HIGHEST, LOWEST, MARGIN
from edsr.training.step import TrainStep
from edsr.training.trainer import train
from tests.conftest import training

pytestmark = pytest.mark.usefixtures("tiny")


@pytest.fixture
def quick(monkeypatch):
    """The speed of steps is not measured, which takes 3 s."""
    monkeypatch.setattr("edsr.training.step_budget.measure_speed", lambda *_: 2.0)


def test_a_dry_run_tells_what_the_run_would_and_writes_nothing(folder, tmp_path, lines, quick):
    run = tmp_path / "run"
    dry_run(training(folder, run, steps=960))
    assert not run.exists()
    told = lines[:]
    assert told[-2:] == [
        "time        about 8 min; 2 steps a second",
        f"nothing is trained, and nothing written into {run}",
    ]
    lines.clear()
    next(train(training(folder, run, steps=960)))
    assert lines == told[:-2]


def test_a_dry_run_measures_real_steps(folder, tmp_path, monkeypatch, lines):
    monkeypatch.setattr("edsr.training.rehearsal.MEASURED_AS", 0.01)
    dry_run(training(folder, tmp_path / "run"))
    assert lines[-2].startswith("time  ") and lines[-2].endswith(" steps a second")


def test_a_dry_run_of_a_run_resumed_leaves_it(folder, tmp_path, lines, quick):
    run = tmp_path / "run"
    steps = train(training(folder, run))
    next(steps)
    steps.close()
    before = {path: path.read_bytes() for path in run.rglob("*") if path.is_file()}
    lines.clear()
    dry_run(training(folder, run, resume=True))
    assert lines[-2].startswith("time  ") and {p: p.read_bytes() for p in run.rglob("*") if p.is_file()} == before
    list(train(training(folder, run, resume=True)))
    lines.clear()
    dry_run(training(folder, run, resume=True))
    assert not any(line.startswith(("network", "time")) for line in lines)


@pytest.mark.parametrize("find", [dry_run, lambda config: find_learning_rate(config, 10)])
def test_what_a_run_refuses_they_refuse(folder, tmp_path, find):
    with pytest.raises(DataError, match="no image left"):
        find(training(folder, tmp_path / "run", patch=400))
    with pytest.raises(TrainError, match="lies in"):
        find(training(folder, folder / "run"))


def test_the_range_test_finds_where_the_loss_turns(folder, tmp_path, monkeypatch, lines):
    """A loss whose logarithm falls with that of the rate, and rises from 1e-2 on."""
    tried = []

    def run(self, first, rates):
        tried.extend(rates)
        return [10 ** (-0.2 * min(math.log10(r), -2) + 2 * max(0.0, math.log10(r) + 2)) for r in rates]

    monkeypatch.setattr(TrainStep, "run", run)
    found = find_learning_rate(training(folder, tmp_path / "run"), 600)
    assert tried[0] == LOWEST and tried[1] / tried[0] == pytest.approx((HIGHEST / LOWEST) ** (1 / 599))
    assert all(b > a for a, b in itertools.pairwise(tried)) and 1e-2 < tried[-1] < HIGHEST / 2
    assert found is not None and 0.9e-2 < found * MARGIN < 1.5e-2
    assert "the loss diverges" in lines[-2] and lines[-1].endswith("a peak to try: lr=0.001")
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("rises_at", [1e-2, 1e-5, None])
def test_a_first_batch_that_is_easy_is_no_lowest_loss(folder, tmp_path, monkeypatch, lines, rises_at):
    """A loss of trained weights: noise, from the first batch's, which is low, until the rate is too high."""
    noise = itertools.cycle([1.0, 1.1, 0.9, 1.05, 0.95])
    monkeypatch.setattr(
        TrainStep,
        "run",
        lambda self, first, rates: [
            (0.5 if first + k == 0 else next(noise)) * max(1.0, r / (rises_at or math.inf)) for k, r in enumerate(rates)
        ],
    )
    found = find_learning_rate(training(folder, tmp_path / "run"), 300)
    assert lines[-1].startswith("the loss never fell clearly below where it began")
    if rises_at == 1e-2:
        assert found is not None and rises_at < found * MARGIN < 2 * rises_at
        assert ", and rises beyond 0.01" in lines[-1] and lines[-1].endswith("; a peak to try: lr=0.001")
    else:
        assert found is None or found > LOWEST
        assert rises_at or lines[-1].endswith("began; no peak to propose")


def test_no_peak_is_below_the_lowest_rate_tried(folder, tmp_path, monkeypatch, lines):
    """A loss that falls, but turns soon."""
    monkeypatch.setattr(
        TrainStep,
        "run",
        lambda self, first, rates: [1.0 if r < 2e-6 else 0.1 if r < 5e-6 else 0.1 * r / 5e-6 for r in rates],
    )
    found = find_learning_rate(training(folder, tmp_path / "run"), 600)
    assert found == LOWEST and lines[-1].endswith("a peak to try: lr=1e-06")


def test_the_range_test_of_a_real_network(folder, tmp_path, lines):
    found = find_learning_rate(training(folder, tmp_path / "run"), 120)
    assert found is not None and 1e-5 < found < 1e-1
    rates = [line for line in lines if line.startswith("learning rate ")]
    assert len(rates) > 8 and "loss nan" not in " ".join(rates)


@pytest.mark.parametrize(
    ("option", "says"), [("--dry-run", "nothing is trained"), ("--find-lr=10", "a peak to try: --lr ")]
)
def test_the_command_line_has_both(folder, tmp_path, run, monkeypatch, option, says):
    monkeypatch.setattr("edsr.training.rehearsal.MEASURED_AS", 0.01)
    out = tmp_path / "run"
    code, _, err = run("train", "--data", folder, "--out", out, "--device", "cpu", "--patch", 8, "--batch", 2, option)
    assert code == 0 and says in err.splitlines()[-1] and "\nnetwork  " in err and not out.exists()


def test_the_range_test_needs_no_folder(folder, run, monkeypatch):
    monkeypatch.chdir(folder)  # in which a run that trains on it must not lie
    found = []
    monkeypatch.setattr("edsr.training.find_learning_rate", lambda config, steps: found.append(Path(config.out)))
    assert run("train", "--data", ".", "--find-lr")[0] == 0
    assert not found[0].is_relative_to(folder) and not found[0].parent.exists()
    for more in ["--dry-run"], ["--resume"]:
        code, _, err = run("train", "--data", ".", "--find-lr", *more)
        assert code == 2 and "name the folder of the run with --out" in err
