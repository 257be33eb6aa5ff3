"""When validating and saving are due, by a clock that only they and the steps move."""

import itertools

import pytest

from edsr.training.intervals import MIN_SAVE_SECONDS, IntervalTrigger
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
    triggers = {
        "validate": IntervalTrigger(None, LOG_EVERY, clock=clock),
        "save": IntervalTrigger(None, min_seconds=MIN_SAVE_SECONDS, clock=clock),
    }
    costs, spent, at = {"validate": 0.28, "save": 0.4}, dict.fromkeys(triggers, 0.0), {name: [] for name in triggers}
    begun, step = clock.now, 0
    while clock.now < begun + 60 * minutes:
        step += LOG_EVERY
        clock.now += LOG_EVERY * 0.0024
        for name, trigger in triggers.items():
            if trigger.due(step):
                at[name].append((step, clock.now))
                with trigger.timed():
                    clock.now += costs[name]
                spent[name] += costs[name]
    assert all(time < 0.02 * (clock.now - begun) for time in spent.values())
    assert at["validate"][0][0] == LOG_EVERY  # nobody waits to see whether it works at all
    assert all(step % LOG_EVERY == 0 for step, _ in at["validate"])
    times = [time for _, time in at["save"]]
    assert times[0] >= begun + MIN_SAVE_SECONDS and all(b - a >= MIN_SAVE_SECONDS for a, b in itertools.pairwise(times))
    # Nor are they put off for longer than that asks for.
    assert len(at["validate"]) > 60 * minutes / 15 and len(times) > 60 * minutes / 32


def test_what_has_become_dearer_is_put_off_for_longer():
    clock = Clock()
    trigger = IntervalTrigger(None, clock=clock)
    for cost in 1.0, 7.0:
        assert trigger.due(3)
        with trigger.timed():
            clock.now += cost
        clock.now += 50 * cost - 0.5
        assert not trigger.due(4)
        clock.now += 0.5


def test_a_number_means_steps():
    clock = Clock()
    trigger = IntervalTrigger(4, LOG_EVERY, MIN_SAVE_SECONDS, clock)
    for _ in range(2):
        assert [step for step in range(1, 13) if trigger.due(step)] == [4, 8, 12]
        with trigger.timed():
            clock.now += 100.0
