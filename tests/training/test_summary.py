"""What a run says of itself."""

import contextlib
import json

import pytest
import torch

from edsr.models import EDSR, EDSRConfig, multiply_adds
from edsr.training import summary
from edsr.training.trainer import train
from tests.conftest import training


@pytest.mark.parametrize(("scale", "wanted"), [(2, 1_372_608), (3, 1_565_568), (4, 1_983_168)])
def test_multiply_adds_are_those_of_the_documents(scale, wanted):
    """docs/architecture.md: 1,218,240 of head and body, and 154,368, 347,328 or 764,928 of the plain end."""
    with torch.device("meta"):
        assert multiply_adds(EDSR(EDSRConfig(scale=scale))) == wanted


@pytest.mark.usefixtures("tiny")
def test_the_table_says_what_the_run_is(folder, tmp_path, lines):
    steps = train(training(folder, tmp_path / "run", backend="torch", degrade="jpeg:50", batch=3))
    next(steps)
    table = {line[:12].rstrip(): line[12:] for line in lines if line[11:12] == " "}
    shape = "edsr-baseline x2: 1 blocks of 8 features"
    parameters, macs = 216 + 8 + 3 * 584 + 2336 + 219, 216 + 3 * 576 + 2304 + 4 * 216
    work = f"{3 * 3 * 64 * macs / 1e6:.3g} M"
    assert table["network"] == f"{shape}, {parameters / 1e3:.3g} k parameters, {work} multiply-adds a step"
    assert table["device"].startswith("cpu, ") and table["device"].endswith(", fp32, backend torch")
    megapixels = sum((60 + i) // 2 * 2 * 70 for i in (0, 1, 3)) / 1e6
    assert table["images"] == f"3, {megapixels:.3g} megapixels, degraded by jpeg:50-50,clean:0.2"
    assert table["steps"] == "12 of 3 patches of 8 x 8, the most detailed of 4 places each"
    assert (
        table["validation"].startswith("1, 0.00434 megapixels; bicubic has ") and ", degraded " in table["validation"]
    )
    steps.close()


@pytest.mark.usefixtures("tiny")
def test_the_table_says_that_patches_are_recolored(folder, tmp_path, lines):
    with contextlib.closing(train(training(folder, tmp_path / "run", candidates=1, recolor=True))) as steps:
        next(steps)
    assert "steps       12 of 2 patches of 8 x 8, recolored" in lines


@pytest.mark.usefixtures("tiny")
def test_a_run_resumed_says_it_again_and_a_finished_one_does_not(folder, tmp_path, lines):
    for said in True, False:
        lines.clear()
        list(train(training(folder, tmp_path / "run", resume=not said)))
        assert any(line.startswith("network  ") for line in lines) is said


def test_the_time_is_told_once_when_it_is_known():
    watch = summary.Stopwatch()
    told = [watch.add(2, seconds, 960) for seconds in (0.5, 1.0, 0.25, 2.25, 4.0)]
    assert told == [None, None, None, "time        about 8 min; 2 steps a second", None]


@pytest.mark.usefixtures("tiny")
def test_losses_reported_are_those_of_the_metrics(folder, tmp_path):
    for name in "123":
        (folder / f"{name}.png").unlink()  # none is left to validate on
    reports = list(train(training(folder, tmp_path / "run", steps=70)))
    metrics = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert [(p.step, p.mean_loss) for p in reports if p.logged] == [(line["step"], line["loss"]) for line in metrics]
    assert [line["step"] for line in metrics] == [50, 70]
    assert reports[9].mean_loss == pytest.approx(sum(p.loss for p in reports[:10]) / 10)


@pytest.mark.usefixtures("tiny")
@pytest.mark.parametrize("degrade", [None, "jpeg:50"])
def test_validation_says_how_far_it_is(folder, tmp_path, degrade):
    seen = []
    config = training(folder, tmp_path / "run", steps=1, val=str(folder), degrade=degrade)
    list(train(config, validating=lambda *counts: seen.append(counts)))
    total = 4 if degrade is None else 8
    assert seen == [(i, total) for i in range(1, total + 1)]
