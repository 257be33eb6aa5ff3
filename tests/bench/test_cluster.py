"""The simulation of a batch over many workers, against cases that can be computed by hand. Nothing is timed."""

import itertools
import math

import pytest

from bench import cluster
from bench.cluster import Outcome, Rules, fixed_shares, hours, scaled, simulate, tasks


def lives(*first):
    """Lifetimes of the workers in the order in which they begin; all later ones live for ever."""
    return itertools.chain(first, itertools.repeat(math.inf)).__next__


@pytest.mark.parametrize(
    ("work", "pace", "life", "shared", "by_task"),
    [  # (seconds, busy) of each; a restart takes 10, a replacement 10
        ([4, 1, 1, 1, 1], [1, 1], (), (6, 8), (4, 8)),
        ([1] * 6, [2, 1], (), (6, 9), (4, 8)),
        ([1] * 4, [1, 1], (1.5,), (2 + 10 + 1, 4), (3, 4)),
        # The second process is lost twice, each time in its first file; as the only one, it would be waited for.
        ([1, 1, 1], [1, 1, 1], (9, 0.5, 9, 9, 0.5), (1 + 10 + 0.5 + 10 + 1, 3), (2, 3)),
        ([2], [1], (1,), (1 + 10 + 2, 2), (1 + 10 + 2, 2)),
        ([3], [1, 1, 1], (), (3, 3), (3, 3)),
    ],
)
def test_cases_computed_by_hand(work, pace, life, shared, by_task):
    ideal = sum(work) / sum(1 / one for one in pace)
    for run, (seconds, busy) in (fixed_shares, shared), (tasks, by_task):
        outcome = run(work, pace, lives(*life), 10)
        assert outcome == pytest.approx(Outcome(seconds, busy, len(pace), ideal))
        assert outcome.idle == pytest.approx(1 - busy / (seconds * len(pace)))
        assert outcome.lost == pytest.approx(seconds - ideal)


def test_the_same_seed_gives_the_same():
    one, same, other = (simulate(8, 30, [1.0, 5.0], 1.0, Rules(between_losses=300), seed) for seed in (1, 1, 2))
    assert one == same != other
    for outcome in one:
        assert outcome.seconds >= outcome.ideal and 0 <= outcome.idle < 1


def test_without_stragglers_and_losses_equal_files_divide_evenly():
    shared, by_task = simulate(8, 20, [3.0], 1.5, Rules(slow=0, between_losses=math.inf), 0)
    assert shared == by_task == pytest.approx(Outcome(40, 320, 8, 40))


def test_the_bill():
    assert hours(10_000_000, 12, 1) == pytest.approx(33_333.33, abs=0.01)
    core, gpu = cluster.measured_speeds()
    assert core.megapixels == pytest.approx(1.048576 / (2 * 5.072)) and "EPYC" in core.name
    assert gpu.megapixels == pytest.approx(2.0736 / 0.008308) and "H200" in gpu.name


def test_the_mix_keeps_its_proportions():
    assert scaled([1, 2, 3], 12) == pytest.approx([6, 12, 18])
    mix = cluster.newest_mix()
    assert mix["sizes"] == sorted(mix["sizes"]) and len(mix["sizes"]) == 201 and mix["images"] > 100


def test_a_folders_sizes_are_measured(tmp_path, monkeypatch):
    from PIL import Image

    (tmp_path / "in").mkdir()
    for i in range(3):
        Image.new("RGB", (1000, 1000 * (i + 1))).save(tmp_path / f"{'in/' if i else ''}{i}.png")
    (tmp_path / "broken.png").write_bytes(b"")
    monkeypatch.setattr(cluster, "_file_seconds", lambda: 0.125)
    record = cluster.measure(tmp_path)
    assert (record["images"], record["file_seconds_per_megapixel"]) == (3, 0.125)
    assert [record["sizes"][i] for i in (0, 100, 200)] == [1, 2, 3]
