import copy

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from edsr.inference.plan import MIN_TILE, band_shape, smallest_tile
from edsr.inference.streaming import Band, Stream, StreamingOps, state_bytes
from edsr.models import EDSR, EDSRConfig
from edsr.models.folding import FoldedEDSR
from tests.conftest import network


def streamed(model, x, heights, columns=None):
    """The image in bands of the given heights, the last repeated."""
    stream, parts, first = Stream(model, x.shape[3], columns), [], 0
    while first < x.shape[2]:
        height = heights[min(len(parts), len(heights) - 1)]
        end = min(first + height, x.shape[2])
        parts.append(stream(x[:, :, first:end], last=end == x.shape[2]))
        first = end
    return torch.cat(parts, 2)


@settings(max_examples=60, deadline=None)
@given(
    height=st.integers(1, 40),
    width=st.integers(1, 30),
    heights=st.lists(st.integers(1, 20), min_size=1, max_size=4),
    scale=st.sampled_from([2, 3, 4]),
    blocks=st.integers(0, 4),
    batch=st.integers(1, 2),
    folded=st.booleans(),
    residual_scale=st.sampled_from([1.0, 0.1]),
)
def test_bands_equal_the_whole_image(height, width, heights, scale, blocks, batch, folded, residual_scale):
    m = network(scale, blocks, residual_scale=residual_scale)
    m = FoldedEDSR(m) if folded else m
    x = torch.rand(batch, 3, height, width, dtype=torch.float64)
    torch.testing.assert_close(streamed(m, x, heights), m(x), rtol=0, atol=1e-14)


@settings(max_examples=30, deadline=None)
@given(
    height=st.integers(1, 12),
    width=st.integers(30, 90),
    band=st.integers(1, 9),
    extra=st.integers(1, 30),
    scale=st.sampled_from([2, 3, 4]),
    blocks=st.integers(0, 2),
)
def test_split_columns_equal_the_whole_image(height, width, band, extra, scale, blocks):
    m = FoldedEDSR(network(scale, blocks))
    x = torch.rand(1, 3, height, width, dtype=torch.float64)
    y = streamed(m, x, [band], columns=2 * m.config.receptive_radius + extra)
    torch.testing.assert_close(y, m(x), rtol=0, atol=1e-14)


def shipped():
    """The network as shipped and run on a CPU: 64 channels, fp32, channels_last."""
    return FoldedEDSR(network(2, blocks=4, features=64).float()).to(memory_format=torch.channels_last)


def adds_in_one_order(model, x, rows):
    """Whether this backend's convolutions give the same bits for a band as for the whole image."""
    for layer in model.head, model.body_end:
        z = torch.rand(1, layer.in_channels, *x.shape[2:]).contiguous(memory_format=torch.channels_last)
        whole = layer(z)[:, :, 1 : rows + 1]
        band = torch.nn.functional.conv2d(z[:, :, : rows + 2], layer.weight, layer.bias, padding=(0, 1))
        if not torch.equal(whole, band):
            return False
    return True


@pytest.mark.parametrize("rows", [8, 32, 64])
def test_bands_equal_the_whole_image_bit_for_bit(rows):
    m, x = shipped(), torch.rand(1, 3, 96, 256)
    with torch.no_grad():
        if not adds_in_one_order(m, x, rows):
            pytest.skip(f"the convolution of this CPU adds in another order for bands of {rows} rows")
        whole = m(x)
    assert torch.equal(streamed(m, x, [rows]), whole)


@pytest.mark.parametrize("rows", [1, 3, 8, 32])
def test_bands_are_as_accurate_as_the_whole_image(rows):
    """fp64 is the truth, the whole image in fp32 the yardstick."""
    m, x = shipped(), torch.rand(1, 3, 48, 40)
    with torch.no_grad():
        whole = m(x)
        target = copy.deepcopy(m).double()(x.double())
    error = (streamed(m, x, [rows]) - target).abs().max()
    assert error <= 2 * (whole - target).abs().max()


def test_the_overlap_is_exactly_the_radius():
    """A pixel farther away than the radius changes nothing; at the radius it does (all weights positive)."""
    m = network(2, blocks=2, features=4)
    with torch.no_grad():
        for p in m.parameters():
            p.abs_()
    r = m.config.receptive_radius
    x = torch.ones(1, 3, 1, 2 * r + 3, dtype=torch.float64)
    at, beyond = x.clone(), x.clone()
    at[..., r], beyond[..., r + 1] = 2, 2
    first = slice(0, 2)  # the output pixels of column 0
    assert not torch.equal(m(at)[..., first], m(x)[..., first])
    assert torch.equal(m(beyond)[..., first], m(x)[..., first])


def test_memory_does_not_depend_on_height():
    m, ops = FoldedEDSR(network(2, blocks=3)), StreamingOps()
    band = torch.rand(1, 3, 4, 20, dtype=torch.float64)

    def remembered_bytes():
        storages = [t.untyped_storage() for t in ops.state()]
        return sum({storage.data_ptr(): storage.nbytes() for storage in storages}.values())

    sizes = []
    for _ in range(40):
        ops.begin()
        m(band, ops)
        sizes.append(remembered_bytes())
    assert len(set(sizes[20:])) <= 2  # a delay line alternates between pieces, but does not grow
    assert max(sizes[30:]) <= max(sizes[:30])


def test_dtypes_and_devices_follow_the_weights():
    m = FoldedEDSR(network(2, blocks=1).float()).bfloat16()
    y = streamed(m, torch.rand(1, 3, 9, 9), [4])
    assert y.dtype == torch.float32 and y.shape == (1, 3, 18, 18) and torch.isfinite(y).all()


class Repeated:
    """A CUDA graph's stand-in on a CPU: computes again on what is in the same places, into the same place."""

    made = 0

    def __init__(self, compute, pool=None):
        self._compute, self._result = compute, None
        type(self).made += 1

    def replay(self):
        y = self._compute()
        if self._result is None:
            with torch.inference_mode(False):  # a graph's memory may be written to in any mode
                self._result = torch.empty_like(y)
        return self._result.copy_(y)


@pytest.mark.parametrize(("rows", "columns", "captures"), [(9, None, 1), (3, None, 1), (5, 24, 4)])
def test_captured_bands_equal_the_others(rows, columns, captures, monkeypatch):
    monkeypatch.setattr("edsr.inference.cuda.CapturedGraph", Repeated)
    monkeypatch.setattr(Repeated, "made", 0)
    m, x = FoldedEDSR(network(2, blocks=2)), torch.rand(1, 3, 100, 31, dtype=torch.float64)
    bands = [*x[:, :, :70].split(rows, 2), x[:, :, 70:73], *x[:, :, 73:].split(rows, 2)]
    streams = [Stream(m, 31, columns, graphs=graphs) for graphs in (False, True)]
    plain, captured = (torch.cat([s(b, b is bands[-1]) for b in bands], 2) for s in streams)
    assert torch.equal(plain, captured) and plain.shape[2] == 200
    # Once for each piece of columns, and perhaps again after the band of another height.
    assert captures <= Repeated.made <= 2 * captures


def test_wrong_width_is_refused():
    with pytest.raises(ValueError, match="20 pixels wide"):
        Stream(network(), 20)(torch.rand(1, 3, 4, 21, dtype=torch.float64))


class LargestMap:
    """Watches every buffer for a feature map that is allocated."""

    def __init__(self, monkeypatch):
        self.pixels, honest = 0, Band.empty.__func__

        def watched(cls, like, channels, count, wide, dtype):
            band = honest(cls, like, channels, count, wide, dtype)
            self.pixels = max(self.pixels, band.buffer[0, 0].numel())
            return band

        monkeypatch.setattr(Band, "empty", classmethod(watched))


@settings(max_examples=20, deadline=None)
@given(st.integers(1, 300), st.integers(1, 60), st.integers(MIN_TILE, 64))
def test_no_feature_map_is_larger_than_a_tile(width, height, tile):
    """For a network of radius 6."""
    m = FoldedEDSR(network(2, blocks=1, features=2))
    rows, columns = band_shape(width, tile, m.config.receptive_radius)
    with pytest.MonkeyPatch.context() as patch:
        largest = LargestMap(patch)
        streamed(m, torch.rand(1, 3, height, width, dtype=torch.float64), [rows], columns)
    assert largest.pixels <= tile * tile


def test_nor_with_the_smallest_tile_of_a_large_network(monkeypatch):
    """Bands of one row, as deep as the larger network of the paper."""
    m = FoldedEDSR(network(2, blocks=32, features=2))
    tile = smallest_tile(m.config.receptive_radius)
    rows, columns = band_shape(600, tile, m.config.receptive_radius)
    assert rows == 1 and columns < 600
    largest, x = LargestMap(monkeypatch), torch.rand(1, 3, 4, 600, dtype=torch.float64)
    torch.testing.assert_close(streamed(m, x, [rows], columns), m(x), rtol=0, atol=1e-12)
    assert 0 < largest.pixels <= tile * tile


@pytest.mark.parametrize(("blocks", "features"), [(0, 16), (1, 16), (5, 16), (16, 64)])
@pytest.mark.parametrize("columns", [None, 160])
@pytest.mark.parametrize("rows", [4, 16, 50])
def test_what_a_stream_remembers_is_known_before(blocks, features, columns, rows):
    m = FoldedEDSR(EDSR(EDSRConfig(blocks=blocks, features=features)))
    width = 400
    stream, most = Stream(m, width, columns), 0
    for _ in range(3 + 40 // rows):
        stream(torch.rand(1, 3, rows, width))
        most = max(most, sum(tensor.nbytes for _, ops in stream._pieces for tensor in ops.state()))
    expected = state_bytes(m.config, width, (rows, columns or width), 4)
    assert most <= expected <= 1.5 * most + 20 * width * features * 4
