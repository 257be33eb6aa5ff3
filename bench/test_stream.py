"""What bands cost over the whole image at once, on the same folded network: at most 5 % is the aim.

Tiles that would make bands too thin for an image this wide split its columns, too, and compute the
overlap twice: that price is theirs by design. Where the whole image leaves the cache, bands cost less
than nothing.
"""

import functools
import statistics

import pytest
import torch

from bench.machine import stopwatch
from bench.workloads import Workload, in_bands
from edsr.inference.plan import band_shape

ROUNDS = 2


@functools.lru_cache(maxsize=1)  # tests of one image follow each other
def prepared(width: int, height: int, device: str) -> tuple[Workload, torch.Tensor]:
    work = Workload.baseline(2, height, width, device)
    model = work.upscaler.model
    with torch.inference_mode():
        return work, model(work.image, work.upscaler.ops)


@pytest.mark.parametrize("tile", [64, 128, 256])
@pytest.mark.parametrize(("width", "height"), [(512, 256), (1024, 128)])
def test_bands(benchmark, device, width, height, tile):
    work, expected = prepared(width, height, device)
    model, ops, x = work.upscaler.model, work.upscaler.ops, work.image
    rows, columns = band_shape(width, tile, model.config.receptive_radius)
    difference = (in_bands(model, x, rows, columns, ops) - expected).abs().max().item()
    # A few roundings apart at most: kernels may sum in another order for another height.
    assert difference <= 16 * torch.finfo(work.dtype).eps * expected.abs().max().item()

    whole, bands = [], []

    @torch.inference_mode()
    def time_whole() -> None:
        whole.append(stopwatch(lambda: model(x, ops), device))

    def time_bands() -> None:
        bands.append(stopwatch(lambda: in_bands(model, x, rows, columns, ops), device))

    benchmark.group = f"bands {width}x{height} {device}"
    benchmark.pedantic(time_bands, setup=time_whole, rounds=ROUNDS)
    price = 100 * (statistics.median(b / w for b, w in zip(bands, whole, strict=True)) - 1)
    benchmark.extra_info.update(
        {
            "rows": rows,
            "columns": columns,
            "difference": difference,
            "whole_seconds": statistics.median(whole),
            "price_percent": price,
        }
    )
    print(f"tile {tile}, {width} x {height}: bands of {rows} x {columns}, {price:+.1f} % over whole")
