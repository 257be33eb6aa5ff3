"""When validating and saving are due, by a clock that only they and the steps move."""

import itertools

import pytest

from edsr.training.intervals import APART, Cadence
from edsr.training.run_log import LOG_EVERY


class Clock:
    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


@pytest.mark.parametrize("minutes", [9.5, 15, 120])
def test_validating_and_saving_take_less_than_a_fiftieth_of_a_run_each(minutes):
    """At 2.4 ms a step, as predicted for an H100; 300,000 steps are 12 minutes."""
    clock = Clock()
    cadences = {"validate": Cadence(None, LOG_EVERY, clock=clock), "save": Cadence(None, apart=APART, clock=clock)}
    costs, spent, at = {"validate": 0.28, "save": 0.4}, dict.fromkeys(cadences, 0.0), {name: [] for name in cadences}
    begun, step = clock.now, 0
    while clock.now < begun + 60 * minutes:
        step += LOG_EVERY
        clock.now += LOG_EVERY * 0.0024
        for name, cadence in cadences.items():
            if cadence.due(step):
                at[name].append((step, clock.now))
                with cadence.measured():
                    clock.now += costs[name]
                spent[name] += costs[name]
    assert all(time < 0.02 * (clock.now - begun) for time in spent.values())
    assert at["validate"][0][0] == LOG_EVERY  # nobody waits to see whether it works at all
    assert all(step % LOG_EVERY == 0 for step, _ in at["validate"])
    times = [time for _, time in at["save"]]
    assert times[0] >= begun + APART and all(b - a >= APART for a, b in itertools.pairwise(times))
    # Nor are they put off for longer than that asks for.
    assert len(at["validate"]) > 60 * minutes / 15 and len(times) > 60 * minutes / 32


def test_what_has_become_dearer_is_put_off_for_longer():
    clock = Clock()
    cadence = Cadence(None, clock=clock)
    for cost in 1.0, 7.0:
        assert cadence.due(3)
        with cadence.measured():
            clock.now += cost
        clock.now += 50 * cost - 0.5
        assert not cadence.due(4)
        clock.now += 0.5


def test_a_number_means_steps():
    clock = Clock()
    cadence = Cadence(4, LOG_EVERY, APART, clock)
    for _ in range(2):
        assert [step for step in range(1, 13) if cadence.due(step)] == [4, 8, 12]
        with cadence.measured():
            clock.now += 100.0
