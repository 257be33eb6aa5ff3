"""Whole networks through the Triton kernels: in the interpreter, and with `pytest -m gpu` on the chip."""

import numpy as np
import pytest
import torch

pytest.importorskip("triton")

from edsr.inference.cuda import MAX_GRAPHS, GraphCache
from edsr.inference.upscaler import Upscaler
from edsr.kernels.interface import OutputSpec
from edsr.kernels.winograd import ops as winograd_cpu
from tests.conftest import make_image, network


def error(upscaler, target, image):
    return np.abs(upscaler(image).astype(float) - target).max()


@pytest.mark.parametrize(
    ("scale", "dtype"),
    [(2, np.uint8), *(pytest.param(*of, marks=pytest.mark.slow) for of in ((3, np.uint16), (4, np.float32)))],
)
def test_images(scale, dtype, chip):
    m = network(scale, blocks=1, features=16)
    image = make_image(11, 7)
    image = image.astype(np.uint16) * 257 if dtype == np.uint16 else image
    image = (image / 255).astype(np.float32) if dtype == np.float32 else image
    x = torch.from_numpy(make_image(11, 7)).double().permute(2, 0, 1)[None] / 255
    target = m(x).detach()[0].permute(1, 2, 0).numpy()
    ours = Upscaler(m, chip.type, "fp32", "triton")(image)
    theirs = Upscaler(m, chip.type, "fp32", "torch")((make_image(11, 7) / 255).astype(np.float32))
    assert ours.dtype == dtype and ours.shape == target.shape
    # Twice PyTorch's error in fp32, and half a level for being rounded.
    whole = np.issubdtype(dtype, np.integer)
    most = np.iinfo(dtype).max if whole else 1
    allowed = 2 * np.abs(theirs - target).max() * most + 0.5 * whole
    wanted = most * (target.clip(0, 1) if whole else target)
    assert np.abs(ours - wanted).max() <= allowed <= 0.5 + 1e-5 * most


def test_gray_images(chip):
    m, image = network(2, blocks=1, features=16), make_image(6, 9, 1)[:, :, 0]
    torch_, triton_ = (Upscaler(m, chip.type, "fp32", backend)(image).astype(int) for backend in ("torch", "triton"))
    assert triton_.shape == (12, 18) and np.abs(torch_ - triton_).max() <= 1


@pytest.mark.slow
def test_bands(chip):
    """Two bands, through the kernels alone; in the interpreter sums depend on the place, by a rounding."""
    m, image = network(2, blocks=1, features=16), make_image(29, 40)
    small, large = (Upscaler(m, chip.type, "fp32", "triton", tile) for tile in (32, 256))
    assert small.band_rows(40, 29) == 16 and large.band_rows(40, 29) == 29
    assert np.abs(small(image).astype(int) - large(image)).max() <= (chip.type == "cpu")


def test_the_backend_is_told(chip):
    m = network(2, blocks=1, features=16)
    winograd = "torch" if winograd_cpu.unavailable_reason("cpu", torch.float32, 16) else "winograd"
    assert Upscaler(m, chip.type, backend="triton").backend == "triton"
    assert Upscaler(m, chip.type).backend == ("triton" if chip.type == "cuda" else winograd)
    assert Upscaler(network(features=8), chip.type).backend == "torch"  # not a multiple of 16


needs_cuda = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")]


class TestOnCuda:
    pytestmark = needs_cuda

    def test_graphs_give_what_the_kernels_give(self):
        m = network(2, blocks=2, features=64)
        up = Upscaler(m, "cuda")
        for size in [(16, 64), (40, 72)] * 3:  # met, recorded, replayed
            image = make_image(*size, seed=size[0])
            plain = up.model(*_operands(image, up.ops))
            assert torch.equal(up.frame(torch.from_numpy(image).cuda()), plain[0].permute(1, 2, 0))
            assert np.array_equal(up(image), plain[0].permute(1, 2, 0).cpu().numpy())

    def test_only_the_latest_graphs_are_kept(self):
        up = Upscaler(network(2, blocks=1, features=16), "cuda")
        graphs = GraphCache(lambda x, result: up.model(x, up.ops, result))
        for width in [*range(40, 60), *range(40, 60)]:
            x, _, result = _operands(make_image(8, width), up.ops)
            graphs(x, result)
        assert len(graphs) == MAX_GRAPHS

    def test_overflow_is_seen_through_graphs_and_bands(self, caplog):
        m = network(2, blocks=1, features=16)
        with torch.no_grad():
            m.body_end.weight.mul_(1e6)
        image = make_image(51, 40)
        want = Upscaler(m, "cuda", "fp32")(image)
        for tile in (32, 256):
            up = Upscaler(m, "cuda", "fp16", tile=tile)
            for _ in range(3):
                caplog.clear()
                assert np.abs(up(image).astype(int) - want).max() <= 1
                assert caplog.messages == ["the network overflows in fp16: going on in fp32"]

    def test_bands_overlapped_with_copies_come_in_order(self):
        m, image = network(2, blocks=2, features=64), make_image(1500, 200)
        assert np.array_equal(Upscaler(m, "cuda", tile=256)(image), Upscaler(m, "cuda", tile=2048)(image))

    def test_half_precision_is_as_near_as_torch_is(self):
        m, image = network(2, blocks=4, features=64), (make_image(60, 70) / 255).astype(np.float32)
        target = Upscaler(m, "cpu", "fp32")(image)
        for precision in ("fp16", "bf16"):
            ours, theirs = (error(Upscaler(m, "cuda", precision, b), target, image) for b in ("triton", "torch"))
            assert ours <= 2 * theirs


def _operands(image, ops):
    return torch.from_numpy(image).cuda().permute(2, 0, 1)[None], ops, OutputSpec(torch.uint8)
