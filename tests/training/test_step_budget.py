"""`steps="auto"`: how many are chosen, and that choosing them changes nothing else; by a clock that steps move."""

import contextlib
from collections.abc import Callable

import pytest
import torch

from edsr.errors import TrainError
from edsr.training import checkpoint, step_budget
from edsr.training.config import AUTO
from edsr.training.step import TrainStep
from edsr.training.trainer import train
from tests.conftest import training

pytestmark = pytest.mark.usefixtures("tiny")


class Clock:
    """Stands still but for steps, which take `a_step` seconds, the first of all ten more."""

    def __init__(self, monkeypatch, a_step: float):
        self.now, self.ran = 0.0, []
        honest: Callable = TrainStep.run

        def run(step, first, rates):
            self.now += 10.0 * (not self.ran) + a_step * len(rates)
            self.ran.append((first, rates))
            return honest(step, first, rates)

        monkeypatch.setattr(TrainStep, "run", run)

    def __call__(self) -> float:
        return self.now


def same(one, other) -> bool:
    a, b = checkpoint.load_latest(one), checkpoint.load_latest(other)
    return a.step == b.step and all(torch.equal(a.tensors[name], b.tensors[name]) for name in a.tensors)


@pytest.mark.slow
def test_the_run_is_the_one_of_so_many_steps_and_ends_in_time(folder, tmp_path, monkeypatch, lines):
    clock = Clock(monkeypatch, 0.1)
    seldom = {"val_every": 200, "save_every": 300}
    auto = training(folder, tmp_path / "auto", steps=AUTO, minutes=1, **seldom)
    done = list(train(auto, clock=clock))
    steps = done[-1].steps
    assert done[-1].finished and [p.step for p in done] == list(range(1, steps + 1))
    assert f"10 steps a second: {steps} steps until the 1 minutes are over" in lines
    assert 400 < steps < 0.96 * (600 - 100) and clock.now < 60  # ten seconds are gone before it runs as fast
    list(train(training(folder, tmp_path / "given", steps=steps, **seldom)))
    assert same(tmp_path / "auto", tmp_path / "given")
    record = checkpoint.load_latest(tmp_path / "auto").record
    assert record["options"]["steps"] == steps


def test_what_was_fixed_stays_when_resumed(folder, tmp_path, monkeypatch):
    clock = Clock(monkeypatch, 1.0)
    auto = training(folder, tmp_path / "run", steps=AUTO, minutes=1)
    with contextlib.closing(train(auto, clock=clock)) as steps:
        first = next(steps)
    assert 20 < first.steps < 50
    clock.ran.clear()
    again = training(folder, tmp_path / "run", steps=AUTO, resume=True)  # minutes are not needed any more
    assert {p.steps for p in train(again, clock=clock)} == {first.steps}
    assert [step for step, _ in clock.ran] == list(range(1, first.steps))  # nothing is measured
    with pytest.raises(TrainError, match=f"steps={first.steps}, not 7"):
        list(train(training(folder, tmp_path / "run", steps=7, resume=True)))


def test_a_step_slower_than_all_there_is_time_for_is_taken_once(folder, tmp_path, monkeypatch):
    clock = Clock(monkeypatch, 1000.0)
    done = list(train(training(folder, tmp_path / "run", steps=AUTO, minutes=1), clock=clock))
    assert [(p.step, p.steps) for p in done] == [(1, 1)]
    assert [rates for _, rates in clock.ran[:-1]] == [[0.0], [0.0]]  # to make ready, and to measure by


@pytest.mark.parametrize(("minutes", "a_step", "least", "most"), [(15, 0.0024, 3.0, 10.3), (120, 0.0024, 3.0, 15.3)])
def test_measuring_takes_little_time(minutes, a_step, least, most):
    """At the pace of a GPU, in portions of 50."""

    class Stepper:
        max_steps, warm_up_steps, taken = 250, 4, 0

        def tensors(self):
            return {}

        def run(self, first, rates):
            self.warm_up_steps = 0
            self.taken += len(rates)
            self.losses = {"loss/discriminator": 1.0}
            return [0.0] * len(rates)

        def other_losses(self):
            losses, self.losses = self.losses, {}
            return losses

    class Alone:
        is_main = True

        def mean(self, values):
            return values

    stepper = Stepper()
    got = step_budget.measure_speed(stepper, Alone(), 0, 60.0 * minutes, lambda: stepper.taken * a_step)  # pyright: ignore
    assert got == pytest.approx(1 / a_step)
    assert least <= stepper.taken * a_step <= most
    assert stepper.other_losses() == {}  # so that none is counted among the run's


def test_auto_without_minutes_is_told_in_one_line(folder, tmp_path):
    with pytest.raises(TrainError, match=r"steps='auto' .* add minutes") as caught:
        list(train(training(folder, tmp_path / "run", steps=AUTO)))
    assert "\n" not in str(caught.value) and not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("rate", "steps", "says"),
    [
        (412.3, 300_000, "412 steps a second: 300,000 steps until"),
        (0.3111, 280, "0.31 steps a second: 280 steps until"),
    ],
)
def test_what_was_fixed_is_said(rate, steps, says):
    assert says in step_budget.describe(rate, steps, 15)
