"""Patches of a step: which are drawn, how they are cropped, and the batches made of them."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from edsr.data import PairedImages
from edsr.data.patches import PatchLoader, PatchSampler, gather_patches, patch_offsets
from edsr.images.resize import matlab_downscale
from tests.conftest import make_image

from .files import sixteen_bit


def table(*shapes):
    return np.array([[0, 0, height, width, i] for i, (height, width) in enumerate(shapes)], np.int64)


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.tuples(st.integers(1, 40), st.integers(1, 40)), min_size=1, max_size=6),
    st.integers(1, 9),
    st.integers(1, 9),
    st.integers(-5, 2**70),
    st.integers(0, 2**40),
    st.integers(1, 5),
)
def test_draws_depend_on_seed_and_step_alone(shapes, patch, batch, seed, first, count):
    if all(min(shape) < patch for shape in shapes):
        with pytest.raises(ValueError, match="no image"):
            PatchSampler(table(*shapes), patch, batch, seed)
        return
    sampler = PatchSampler(table(*shapes), patch, batch, seed)
    drawn = sampler.draw(first, count)
    assert drawn.shape == (count, batch, 4) and drawn.dtype == np.int64
    for i in range(count):
        np.testing.assert_array_equal(drawn[i], PatchSampler(table(*shapes), patch, batch, seed).draw(first + i, 1)[0])
    heights, widths = np.array(shapes)[drawn[..., 0]].transpose(2, 0, 1)
    assert (drawn >= 0).all() and (drawn[..., 3] < 8).all()
    assert (drawn[..., 1] + patch <= heights).all() and (drawn[..., 2] + patch <= widths).all()


def test_every_position_is_as_likely_as_any_other():
    """Images of 3 x 4, 2 x 2 and 1 x 5 positions, one too small, 8 flips and rotations: 168 cells, chi-squared."""
    sampler = PatchSampler(table((5, 6), (4, 4), (2, 9), (3, 7)), 3, 50, 1)
    drawn = sampler.draw(0, 1680).reshape(-1, 4)
    cells, counts = np.unique(drawn, axis=0, return_counts=True)
    assert len(cells) == (12 + 4 + 5) * 8 and set(cells[:, 0]) == {0, 1, 3}
    assert ((counts - 500) ** 2 / 500).sum() < 167 + 4 * np.sqrt(2 * 167)
    assert not np.array_equal(sampler.draw(0, 9), sampler.draw(1, 9))
    other_seed = PatchSampler(table((5, 6), (4, 4), (2, 9), (3, 7)), 3, 50, 2)
    assert not np.array_equal(sampler.draw(0, 9), other_seed.draw(0, 9))


def test_a_set_of_billions_of_positions():
    sampler = PatchSampler(table(*[(100_000, 100_000)] * 3), 48, 1000, 0)
    drawn = sampler.draw(0, 4).reshape(-1, 4)
    assert set(drawn[:, 0]) == {0, 1, 2} and drawn[:, 1].max() > 99_000 and len(np.unique(drawn[:, 2])) > 3800


# ---- how they are cropped


DIHEDRALS = [lambda x, k=k, flip=flip: np.rot90(x[:, ::-1] if flip else x, k) for flip in (0, 1) for k in range(4)]


def test_all_eight_flips_and_rotations_are_cropped_alike():
    """All eight, and the LR patch lies where the HR patch lies: each LR pixel is the corner of its HR block."""
    image = np.arange(11 * 13 * 3).reshape(11, 13, 3).astype(np.uint16) * 97
    images = PairedImages.from_pairs(
        [(low, low.repeat(3, 0).repeat(3, 1)) for low in (image[:5, :4], image[:4, :5], image)], 3
    )
    drawn = np.array([[[2, 4, 7, turn] for turn in range(8)]])
    low, high = torch.from_numpy(patch_offsets(images, drawn, 5))[0]
    low, high = gather_patches(images.lr, *low, side=5), gather_patches(images.hr, *high, side=15)
    assert low.shape == (8, 3, 5, 5) and high.shape == (8, 3, 15, 15) and low.dtype == torch.float32
    assert low.is_contiguous(memory_format=torch.channels_last)
    assert torch.equal(high, low.repeat_interleave(3, 2).repeat_interleave(3, 3))
    ours = {(x.permute(1, 2, 0) * 65535).round().int().numpy().tobytes() for x in low}
    assert ours == {turn(image[4:9, 7:12]).astype(np.int32).tobytes() for turn in DIHEDRALS} and len(ours) == 8


def downscaled(*originals):
    return PairedImages.from_pairs([(matlab_downscale(image, 2), image) for image in originals], 2)


def feed_of(images, patch, batch, seed=0, steps=8, device="cpu", **more):
    return PatchLoader(images, patch, batch, seed, device, steps, **more)


def next_batch(images, patch, batch, step=0):
    feed = feed_of(images, patch, batch)
    feed.load(step, 1)
    return feed.batch(torch.tensor(0))


@settings(max_examples=25, deadline=None)
@given(st.integers(2, 4), st.integers(1, 6), st.integers(0, 2**40), st.booleans(), st.integers(0, 99))
def test_batches_are_the_patches_drawn(scale, patch, step, wide, seed):
    random = np.random.default_rng(seed)
    dtype, white = (np.uint16, 65535) if wide else (np.uint8, 255)
    pairs = []
    for height, width in random.integers(6, 20, (3, 2)):
        high = random.integers(0, white + 1, (height * scale, width * scale, 3), dtype)
        pairs.append((high[::scale, ::scale], high))
    images = PairedImages.from_pairs(pairs, scale)
    feed = feed_of(images, patch, 5, seed)
    feed.load(step, 3)
    drawn = PatchSampler(images.index, patch, 5, seed).draw(step, 3)
    for i in range(3):
        low, high = feed.batch(torch.tensor([i]))
        assert high.shape == (5, 3, patch * scale, patch * scale) and high.dtype == torch.float32
        for k, (row, y, x, turn) in enumerate(drawn[i]):
            for ours, image, s in (low, pairs[row][0], 1), (high, pairs[row][1], scale):
                want = image[y * s : (y + patch) * s, x * s : (x + patch) * s].astype(np.float32) / np.float32(white)
                want = want[:: -1 if turn & 1 else 1, :: -1 if turn & 2 else 1]
                want = want.transpose(1, 0, 2) if turn & 4 else want
                np.testing.assert_array_equal(ours[k].permute(1, 2, 0).numpy(), want)


def test_patches_fit_and_are_repeatable():
    images = PairedImages.from_pairs(
        [(matlab_downscale(p, 2), p) for p in (make_image(40, 60), make_image(80, 30, seed=1))], 2
    )
    low, high = next_batch(images, 8, 16, 7)
    assert low.shape == (16, 3, 8, 8) and high.shape == (16, 3, 16, 16)
    assert all(x.is_contiguous(memory_format=torch.channels_last) for x in (low, high))
    assert low.min() >= 0 and high.max() <= 1
    again = next_batch(images, 8, 16, 7)
    assert torch.equal(low, again[0]) and torch.equal(high, again[1])
    assert not torch.equal(low, next_batch(images, 8, 16, 8)[0])
    # A patch of the LR image is the HR patch downscaled, away from its border: so they fit, flipped alike.
    for x, y in zip(low, high, strict=True):
        reduced = matlab_downscale((y.permute(1, 2, 0).numpy() * 255).round().astype(np.uint8), 2)
        difference = np.abs(reduced - x.permute(1, 2, 0).numpy() * 255)[2:-2, 2:-2]
        assert difference.max() < 1.5


def test_one_small_image_fills_any_batch():
    image = make_image(8, 8)
    low, _ = next_batch(downscaled(image), 4, 64)
    assert len({x.numpy().tobytes() for x in low}) == 8


@pytest.mark.parametrize("resident", [True, False])
@pytest.mark.parametrize("world", [1, 2, 4])
def test_shares_make_up_the_batch(world, resident):
    images = PairedImages.from_pairs(
        [(matlab_downscale(p, 2), p) for p in (make_image(40, 60), make_image(80, 30, seed=1))], 2
    )
    whole = next_batch(images, 6, 8, 5)
    shares = []
    for rank in range(world):
        feed = feed_of(images, 6, 8, share=(rank, world), resident=resident)
        feed.load(4, 2)
        shares.append(feed.batch(torch.tensor(1)))
    for ours, theirs in zip(whole, zip(*shares, strict=True), strict=True):
        assert torch.equal(ours, torch.cat(theirs))
    with pytest.raises(ValueError, match="shared by 3"):
        feed_of(images, 6, 8, share=(0, 3))


@pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])
@pytest.mark.parametrize("wide", [False, True])
def test_gathered_on_the_host_or_the_device(wide, device):
    if device == "cuda" and not torch.cuda.is_available():
        pytest.skip("needs a CUDA device")
    images = [sixteen_bit(40, 60) if wide else make_image(40, 60), sixteen_bit(30, 44) if wide else make_image(30, 44)]
    images = downscaled(*images)
    resident = feed_of(images, 7, 6, device=device, resident=True)
    gathered = feed_of(images, 7, 6, device=device, resident=False)
    for first, count in (0, 8), (8, 3), (100, 1):
        for feed in resident, gathered:
            feed.prepare(first, count)
            feed.load(first, count)
        for i in range(count):
            at = torch.tensor(i, device=device)
            for a, b in zip(resident.batch(at), gathered.batch(at), strict=True):
                assert torch.equal(a, b) and a.stride() == b.stride() and str(a.device).startswith(device)


@pytest.mark.parametrize("resident", [True, False])
def test_buffers_stay_where_they_are(resident):
    """A CUDA graph reads the same addresses at every replay; what was prepared for other steps is not used."""
    image = make_image(40, 60)
    images = downscaled(image)
    feed = feed_of(images, 6, 8, resident=resident)
    addresses = [buffer.data_ptr() for buffer in feed.buffers]
    feed.load(0, 8)
    early = [x.clone() for x in feed.batch(torch.tensor(7))]
    feed.prepare(8, 8)
    feed.load(40, 2)
    assert [buffer.data_ptr() for buffer in feed.buffers] == addresses
    for ours, theirs in zip(feed.batch(torch.tensor(1)), next_batch(images, 6, 8, 41), strict=True):
        assert torch.equal(ours, theirs)
    for ours, theirs in zip(feed.batch(torch.tensor(7)), early, strict=True):
        assert torch.equal(ours, theirs)  # steps that were not loaded again
    with pytest.raises(ValueError, match="8 at most"):
        feed.load(0, 9)


@pytest.mark.gpu
@pytest.mark.parametrize("resident", [True, False])
def test_a_cuda_graph_of_a_batch(resident):
    if not torch.cuda.is_available():
        pytest.skip("needs a CUDA device")
    image = make_image(40, 60)
    images = downscaled(image)
    feed, at = feed_of(images, 6, 8, device="cuda", resident=resident), torch.zeros(1, dtype=torch.int64, device="cuda")
    feed.load(0, 8)
    feed.batch(at)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        low, high = feed.batch(at)
    for first in 0, 8, 16:
        feed.load(first, 8)
        for i in range(8):
            at.fill_(i)
            graph.replay()
            for ours, theirs in zip((low, high), next_batch(images, 6, 8, first + i), strict=True):
                torch.testing.assert_close(ours.cpu(), theirs, rtol=0, atol=6e-8)  # division by 255 on a GPU: one ulp
