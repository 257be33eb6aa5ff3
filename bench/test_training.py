"""Steps of training, every way to take them; `bench.training` has more about those of real networks."""

from dataclasses import replace

import pytest
import torch

from bench.conftest import long
from bench.machine import Ceiling
from bench.rounds import Group, Implementation, Turns, in_rows, measured, row_of, tidy
from bench.training import ready
from bench.training_steps import BASELINE, IMPLEMENTATIONS, Training
from edsr import PRESETS, EDSRConfig

pytestmark = in_rows
SMALL = EDSRConfig(blocks=2, features=32)
NETWORK = replace(PRESETS["edsr-baseline"], scale=2)


def prepared(title: str, device: str) -> Training:
    dtype, workers = (torch.bfloat16, 2) if device == "cuda" else (torch.float32, 0)
    if title == "small":
        return Training(title, SMALL, 4, 24, device, dtype, workers, (240, 320))
    return Training(title, NETWORK, 16, 48, device, dtype, workers)


def figures(work: Training, names: tuple[str, ...], turns: Turns) -> Group:
    def make(name: str) -> Implementation:
        checked = ready(work, name, 0.1)
        loss, gradient = checked.errors
        facts = {"loss_error": loss, "gradient_error": gradient}
        facts |= {} if checked.peak_mib is None else {"peak_mib": checked.peak_mib}
        return Implementation(IMPLEMENTATIONS[name].title, lambda: checked.step_seconds(work.device), work.gflop, facts)

    try:
        group = measured(f"{work} {work.device}", BASELINE, names, make, turns, Ceiling(work.device, work.dtype))
    finally:
        tidy()
    for info in group.info.values():
        info["patches_per_second"] = 1e3 * work.batch / info["ms"]
    return group


@pytest.mark.parametrize(
    ("title", "name"),
    [
        row_of(title, name, way, long if way.slow or title != "small" else ())
        for title in ("small", "edsr-baseline")
        for name, way in IMPLEMENTATIONS.items()
    ],
)
def test_training(row, device, title, name):
    row(lambda names, turns: figures(prepared(title, device), names, turns))
