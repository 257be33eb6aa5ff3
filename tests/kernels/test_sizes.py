"""Which kernel computes a convolution, and with which configuration, by the size of its maps."""

import json

import pytest
import torch

pytest.importorskip("triton")

from edsr.kernels.triton import conv3x3, conv3x3_backward, launch, ops
from edsr.kernels.triton.hopper import dispatch

NHWC = torch.channels_last
SIZES = [  # images, rows, columns, padding; class, small
    ((1, 1, 1, 1), "few", True),
    ((1, 32, 32, 1), "few", True),
    ((1, 48, 48, 1), "few", True),
    ((1, 64, 64, 1), "few", True),
    ((2, 64, 63, 1), "few", True),
    ((1, 90, 91, 1), "few", True),
    ((2, 64, 64, 1), "", True),  # 8,192 pixels
    ((1, 300, 40, 1), "narrow", True),
    ((16, 48, 48, 1), "narrow", True),  # in training
    ((1, 96, 96, 1), "", True),
    ((1, 192, 192, 1), "", True),
    ((1, 255, 257, 1), "", True),
    ((1, 256, 256, 1), "", False),
    ((8, 96, 96, 1), "", False),
    ((1, 1080, 1920, 1), "", False),
    ((64, 48, 48, 1), "narrow", False),
    ((1, 1, 100, 0), "", False),  # the last band of an image, computed as the others are
    ((1, 40, 40, 0), "narrow", False),
    ((1, 500, 1920, 0), "", False),
]


def empty(n: int, channels: int, h: int, w: int, dtype: torch.dtype = torch.float16) -> torch.Tensor:
    return torch.empty((n, channels, h, w), dtype=dtype, device="meta", memory_format=NHWC)


@pytest.fixture
def launched(monkeypatch) -> list[str]:
    """Which kernels are launched, on a Hopper GPU on which all have been verified; none is compiled."""
    names: list[str] = []
    monkeypatch.setattr(launch, "run", lambda fn, grid, *operands, **options: names.append("portable"))
    monkeypatch.setattr(dispatch, "conv3x3", lambda *operands: names.append("hopper"))
    monkeypatch.setattr(dispatch, "resblock", lambda *operands: names.append("block"))
    with launch.compile_only(90, lambda name, kernel: None):
        yield names


@pytest.mark.parametrize(("size", "kind", "small"), SIZES, ids=lambda value: str(value))
def test_the_size_decides(size, kind, small, launched, monkeypatch):
    n, rows, w, padding = size
    x, weight = empty(n, 64, rows + 2 - 2 * padding, w), empty(64, 64, 3, 3)
    bias, out = weight.new_empty(64), empty(n, 64, rows, w)
    with launch.override_configs(lambda op, key, default: default) as asked:
        ops.conv3x3(x, weight, bias, padding=padding)
        conv3x3.portable(x, weight, bias, True, 1.0, None, 1, padding, out)
    hopper = not small and w >= dispatch.MIN_WIDTH
    assert launched == ["hopper" if hopper else "portable", "portable"]
    assert asked == {("conv3x3", f"fp16 64-64 {kind}".rstrip())}
    if padding:
        launched.clear()
        monkeypatch.setattr(launch, "choice", lambda op, key, device: "one_kernel")
        ops.resblock(x, weight, bias, weight, bias)
        conv3x3_backward.dgrad(x, weight, skip=x)
        assert launched == (["block", "hopper"] if hopper else ["portable"] * 3)


def test_of_other_channels_nothing_was_measured(launched):
    weight = empty(256, 256, 3, 3)
    ops.conv3x3(empty(1, 256, 64, 64), weight, weight.new_empty(256))
    assert launched == ["hopper"]


def test_every_band_of_an_image_is_computed_alike(launched):
    """However few rows are left for the last, or for a piece of one: seams would show in the bits otherwise."""
    weight = empty(64, 64, 3, 3)
    with launch.override_configs(lambda op, key, default: default) as asked:
        for rows in (1, 2, 8, 400):
            ops.conv3x3(empty(1, 64, rows + 2, 200), weight, weight.new_empty(64), padding=0)
            ops.conv3x3(empty(1, 64, rows + 2, 50), weight, weight.new_empty(64), padding=0)
    assert launched == ["hopper", "portable"] * 4 and asked == {("conv3x3", "fp16 64-64 narrow")}


@pytest.mark.parametrize("path", sorted(launch.FOLDER.glob("*.json")), ids=lambda path: path.stem)
def test_a_gpu_that_was_measured_has_every_class(path):
    found = json.loads(path.read_text(encoding="utf-8"))["configs"]["conv3x3"]
    wanted = {f"{dtype} 64-64 {kind}".rstrip() for dtype in ("fp16", "bf16") for _, kind, _ in SIZES}
    assert wanted <= found.keys()
