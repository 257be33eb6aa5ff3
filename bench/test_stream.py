"""What bands cost over the whole image at once, on the same folded network: at most 5 % is the aim.

Tiles that would make bands too thin for an image this wide split its columns, too, and compute the
overlap twice: that price is theirs by design. Where the whole image leaves the cache, bands cost less
than nothing.
"""

import statistics

import pytest
import torch

from bench.conftest import long
from bench.machine import Ceiling, stopwatch
from bench.rounds import Group, Implementation, Turns, in_rows, measured
from bench.workloads import CpuNetwork, in_bands
from edsr.inference.plan import band_shape

pytestmark = in_rows
SIZES = [(512, 256), pytest.param(1024, 128, marks=long)]
TILES = {f"tile-{tile}": tile for tile in (64, 128, 256)}


def figures(width: int, height: int, device: str, names: tuple[str, ...], turns: Turns) -> Group:
    work = CpuNetwork.baseline(2, height, width, device)
    model, ops, x = work.upscaler.model, work.upscaler.ops, work.image
    with torch.inference_mode():
        expected = model(x, ops)

    def make(name: str) -> Implementation:
        if name == "whole":
            run = torch.inference_mode()(lambda: model(x, ops))
            return Implementation("the whole image", lambda: stopwatch(run, device), work.gflop(True))
        rows, columns = band_shape(width, TILES[name], model.config.receptive_radius)
        run = torch.inference_mode()(lambda: in_bands(model, x, rows, columns, ops))
        difference = (run() - expected).abs().max().item()
        # A few roundings apart at most: kernels may sum in another order for another height.
        assert difference <= 16 * torch.finfo(work.dtype).eps * expected.abs().max().item()
        facts = {"rows": rows, "columns": columns, "difference": difference}
        title = f"tile {TILES[name]}: bands of {rows} x {columns}"
        return Implementation(title, lambda: stopwatch(run, device), work.gflop(True), facts)

    ceiling = Ceiling(device, work.dtype)
    group = measured(f"bands {width}x{height} {device}", "whole", names, make, turns, ceiling)
    for name in TILES.keys() & group.seconds.keys() if "whole" in group.seconds else ():
        pairs = zip(group.seconds[name], group.seconds["whole"], strict=True)
        group.info[name]["price_percent"] = 100 * (statistics.median(b / w for b, w in pairs) - 1)
    return group


@pytest.mark.parametrize("name", ["whole", *TILES])
@pytest.mark.parametrize(("width", "height"), SIZES)
def test_bands(row, device, width, height, name):
    row(lambda names, turns: figures(width, height, device, names, turns))
