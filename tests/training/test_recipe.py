import itertools
import json

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from edsr.training import recipe, run_log
from edsr.training.config import LOSSES
from edsr.training.recipe import DivergenceMonitor


def test_losses_are_their_formulas():
    y, target = torch.randn(2, 3, 5, 7).double(), torch.randn(2, 3, 5, 7).double()
    d = (y - target).numpy()
    assert recipe.loss("l1", y, target).item() == pytest.approx(np.abs(d).mean())
    assert recipe.loss("l2", y, target).item() == pytest.approx((d * d).mean())
    assert recipe.loss("charbonnier", y, target).item() == pytest.approx(np.sqrt(d * d + 1e-6).mean())
    for kind in LOSSES:  # differentiable where the network is right, too
        at = target.clone().requires_grad_()
        recipe.loss(kind, at, target).backward()
        assert at.grad is not None and at.grad.isfinite().all()


@pytest.mark.parametrize("schedule", ["cosine", "step"])
@pytest.mark.parametrize("steps", [1, 2, 60, 1000, 300_000])
def test_the_learning_rate_rises_once_and_falls(schedule, steps):
    at = sorted({*range(min(steps, 700)), *np.linspace(0, steps - 1, 300).astype(int).tolist()})
    rates = [recipe.learning_rate(step, steps, 1e-3, schedule) for step in at]
    top = rates.index(max(rates))
    assert max(rates) == pytest.approx(1e-3) and at[top] < max(1, min(500, steps / 50))
    assert all(a < b for a, b in itertools.pairwise(rates[: top + 1]))
    assert all(a >= b > 0 for a, b in itertools.pairwise(rates[top:]))
    if steps >= 1000:
        assert rates[-1] < 1e-3 / 31


def test_step_halves_at_its_milestones():
    rates = [recipe.learning_rate(step, 1000, 1.0, "step") for step in range(20, 1000)]
    assert [rates[m - 20] / rates[m - 21] for m in (500, 700, 800, 900, 950)] == [0.5] * 5
    assert len(set(rates)) == 6


def test_wsd_does_not_ask_how_long_a_run_is():
    for steps in 10, 5000, 300_000:
        rates = [recipe.learning_rate(step, steps, 1e-3, "wsd") for step in range(2000)]
        assert rates[0] == pytest.approx(2e-6) and rates[249] == pytest.approx(5e-4)
        assert all(a < b for a, b in itertools.pairwise(rates[:500])) and set(rates[499:]) == {1e-3}
        assert recipe.ema_decay(steps, "wsd") == 0.999


def test_a_decay_falls_in_a_line_to_nothing():
    rates = [recipe.linear_decay(step, 700, 710, 1e-3) for step in range(700, 711)]
    assert rates == pytest.approx([1e-4 * left for left in range(10, -1, -1)])


def test_the_average_forgets_in_time():
    assert recipe.ema_decay(300_000) == 0.999 and recipe.ema_decay(5) == 0
    assert recipe.ema_decay(1000) ** 1000 < 1e-8


def test_the_watch_sees_what_is_not_finite_and_what_jumps():
    random = np.random.default_rng(0)
    quiet = (0.02 * random.uniform(0.3, 2.5, 2000)).tolist()
    assert DivergenceMonitor()(quiet) is None
    assert DivergenceMonitor()([0.1, float("nan"), 0.1]) == (1, "the loss became nan")
    assert DivergenceMonitor()([0.1, float("inf")]) == (1, "the loss became inf")
    jumped = DivergenceMonitor()(quiet + [0.2] * 50)
    assert jumped is not None and 2000 <= jumped[0] < 2020 and "jumped" in jumped[1]
    assert DivergenceMonitor()([1.0] * 300 + [0.01] * 300) is None  # downwards is well


def as_kind(kind: str, differences) -> list[float]:
    """Losses of a kind, of patches that are off by so much."""
    return [d * d if kind == "l2" else d for d in differences]


@pytest.mark.parametrize("kind", LOSSES)
@pytest.mark.parametrize("start", [[0.285], [0.004, 0.02, 0.011], [0.3, 0.25, 0.2, 0.17, 0.15, 0.13] * 5])
def test_the_watch_sees_a_run_that_diverges_from_its_first_steps_on(kind, start):
    """Measured of a network with random weights at a learning rate of 0.02; and the same after a better start."""
    diverging = [31.1, 4.2e4, 8.6e4, 2e10, 3.6e17, 5.2e19, 8.1e21, 1.1e25, 3.4e26] + [1e31] * 40
    watch = DivergenceMonitor(kind)
    seen = watch(as_kind(kind, start + diverging))
    assert seen is not None and seen[0] < max(20, len(start) + 5) and "jumped" in seen[1]
    # One that comes to its end before that is no good either.
    short = DivergenceMonitor(kind)
    assert short(as_kind(kind, start)) is None and short.suspicion is None
    assert short(as_kind(kind, diverging[:3])) is None and short.suspicion is not None


@pytest.mark.parametrize("kind", LOSSES)
def test_the_watch_sees_a_loss_that_creeps_up(kind):
    """By 0.6 % a step, which a mean over 200 steps follows within a factor of 3; the least that it was does not."""
    creeping = [0.02] * 300 + [0.02 * 1.006**i for i in range(1500)]
    seen = DivergenceMonitor(kind)(as_kind(kind, creeping))
    assert seen is not None and creeping[seen[0]] < 0.08


def calm(watch: DivergenceMonitor, losses: list[float]) -> bool:
    """Whether nothing is wrong with the losses, nor would be if the run ended with any of them."""
    return all(watch([loss]) is None and watch.suspicion is None for loss in losses)


@pytest.mark.parametrize("kind", LOSSES)
@pytest.mark.parametrize("seed", range(4))
def test_the_watch_takes_patches_easy_and_hard_for_what_they_are(kind, seed):
    """The logarithm spreads by 0.9 where a batch is one patch of 8 x 8, by 0.5 to 0.8 where it is two of 16 x 16."""
    random = np.random.default_rng(seed)
    assert calm(DivergenceMonitor(kind), as_kind(kind, 0.012 * np.exp(0.7 * random.normal(size=4000))))
    # A network that is all but perfect, but for a patch in ten; the first is of sky.
    sky = np.where(random.uniform(size=4000) < 0.1, 0.1, 1e-5)
    assert DivergenceMonitor(kind)(as_kind(kind, [0.0, *sky])) is None
    # Fine-tuning for images twice as hard as those before, at once or little by little.
    harder = 0.012 * np.exp(0.5 * random.normal(size=2000)) * np.linspace(1, 2, 2000)
    assert calm(DivergenceMonitor(kind), as_kind(kind, harder))


@pytest.mark.parametrize("kind", LOSSES)
def test_the_watch_lets_high_learning_rates_warm_up_and_spike(kind):
    """Measured of random weights at a learning rate of 0.002; later spikes made up."""
    first = [0.285, 0.483, 0.259, 2.26, 0.45, 0.28, 0.22, 0.0987, 0.277, 0.398, 0.157, 0.117]
    rest = [*np.geomspace(0.12, 0.03, 300), 2.0, 5.0, 1.0, 0.2, 0.06, *[0.03] * 40, 300.0, *[0.03] * 60]
    watch = DivergenceMonitor(kind)
    assert watch(as_kind(kind, first + rest)) is None and watch.suspicion is None


def test_squares_are_judged_by_their_roots():
    quiet = [0.01] * 300
    assert (
        DivergenceMonitor("l2")(quiet + [0.05] * 100) is None
        and DivergenceMonitor("l1")(quiet + [0.05] * 100) is not None
    )
    assert DivergenceMonitor("l2")(quiet + [0.15] * 100) is not None


@pytest.mark.parametrize("kind", LOSSES)
def test_the_watch_takes_the_three_numbers_of_older_checkpoints(kind):
    (level,), (high,) = as_kind(kind, [0.02]), as_kind(kind, [0.2])
    for count in 7, 1000:
        watch = DivergenceMonitor(kind)
        watch.restore([level, level, count])
        assert watch.suspicion is None and watch([level] * 30) is None
        seen = watch([high] * 30)
        assert seen is not None and seen[0] < 25
    watch.restore([1e31, 1e31, 300])  # diverged before anybody looked
    assert watch([1e31]) is not None


@given(st.integers(0, 25))
@settings(deadline=None, max_examples=10)
def test_the_watch_goes_on_with_a_divergence_after_a_resume(at):
    losses = [0.3, 0.28, 5.0] + [1e4] * 30
    whole, first, rest = DivergenceMonitor("l2")(losses), DivergenceMonitor("l2"), DivergenceMonitor("l2")
    seen = first(losses[:at])
    if seen is None:
        rest.restore(json.loads(json.dumps(first.state())))
        assert rest.suspicion == first.suspicion
        seen = rest(losses[at:])
        seen = seen and (seen[0] + at, seen[1])
    assert seen == whole and whole is not None


@given(st.lists(st.integers(1, 40), max_size=12), st.integers(0, 300))
@settings(deadline=None, max_examples=30)
def test_the_watch_does_not_mind_portions_nor_being_saved(portions, jump_at):
    losses = [0.02 + 0.001 * (i % 7) for i in range(250 + jump_at)] + [1.0] * 100
    whole = DivergenceMonitor()(losses)
    watch, at = DivergenceMonitor(), 0
    for count in portions:
        if at + count > 250:
            break
        assert watch(losses[at : at + count]) is None
        at += count
        saved = json.loads(json.dumps(watch.state()))
        watch = DivergenceMonitor()
        watch.restore(saved)
    rest = watch(losses[at:])
    assert rest is not None and whole is not None
    assert (rest[0] + at, rest[1]) == whole


def test_the_journal_drops_what_will_be_done_again(tmp_path):
    first = run_log.RunLogger(tmp_path, 0)
    for step in 1, 2, 3:
        first.log(step, loss=1 / step, psnr=30.0 + step)
    first._file.write('{"step": 4, "los')  # killed in the middle of a line
    first.close()
    second = run_log.RunLogger(tmp_path, 2)
    second.log(3, loss=0.3)
    second.close()
    lines = run_log.read_metrics(tmp_path / "metrics.jsonl")
    assert [line["step"] for line in lines] == [1, 2, 3] and lines[-1] == {"step": 3, "loss": 0.3}


def test_metrics_of_earlier_versions_have_the_keys_of_today(tmp_path):
    old = [{"step": 50, "loss": 0.1, "images_per_second": 9.5}, {"step": 50, "setbacks": 1, "lr_factor": 0.5}]
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in old))
    run_log.RunLogger(tmp_path, 60).close()  # as a resumed run does
    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert lines == [
        {"step": 50, "loss": 0.1, "patches_per_second": 9.5},
        {"step": 50, "rollbacks": 1, "lr_factor": 0.5},
    ]


def test_the_plot_is_an_image(tmp_path):
    pytest.importorskip("matplotlib")
    from PIL import Image

    lines = [{"step": s, "loss": 1 / s, **({"psnr": 30 + s / 10} if s % 5 == 0 else {})} for s in range(1, 40)]
    run_log.plot(lines, tmp_path / "plot.png")
    pixels = np.asarray(Image.open(tmp_path / "plot.png").convert("RGB")).astype(int)
    assert pixels.shape[1] > 600
    assert ((pixels[:, :, 2] - pixels[:, :, 0]) > 60).any(), "no blue line of PSNR"
    run_log.plot([], tmp_path / "empty.png")


def test_without_the_extra_a_line_says_what_is_missing(tmp_path, monkeypatch, lines):
    import sys

    for name in "torch.utils.tensorboard", "matplotlib.figure", "matplotlib.backends.backend_agg":
        monkeypatch.setitem(sys.modules, name, None)
    j = run_log.RunLogger(tmp_path, 0)
    j.log(1, loss=0.5)
    j.log_images(1, {"sample": np.zeros((2, 2, 3), np.uint8)})
    j.close()
    assert len(lines) == 2 and all("edsr-triton[train]" in line for line in lines)
    assert [p.name for p in tmp_path.iterdir()] == ["metrics.jsonl"]


def test_tensorboard_gets_scalars_and_images(tmp_path):
    accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    j = run_log.RunLogger(tmp_path, 0)
    j.log(1, loss=0.5, psnr=31.0)
    j.log_images(1, {"sample/0": np.zeros((4, 6, 3), np.uint8)})
    j.close()
    events = accumulator.EventAccumulator(str(tmp_path / "tensorboard"))
    events.Reload()
    assert set(events.Tags()["scalars"]) == {"loss", "psnr"} and events.Tags()["images"] == ["sample/0"]
