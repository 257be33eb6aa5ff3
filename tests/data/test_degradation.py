"""What `train --degrade` does to patches and images, and the batches made of them."""

import re
from collections import Counter
from dataclasses import replace
from functools import partial

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from edsr.data.degradation import BLOCK_GRID, Degradation, Range, crop_padded, degrade, parse_degradation
from edsr.data.patches import PatchDegrader, PatchLoader, PatchSampler
from edsr.data.store import PairedImages
from edsr.images.resize import matlab_downscale
from edsr.training.validation import degrade_images
from tests.conftest import make_image

ALL = "jpeg:40-95,webp:50-90,noise:0-10,blur:0-1,resize:0.8-1.2"


def plans(spec: str, count: int, seed: int = 0):
    degradation = parse_degradation(spec)
    return [degradation.draw(seed, step, index) for step in range(count // 20) for index in range(20)]


# ---- what is asked for


def test_a_spec_is_read_and_spelled_in_one_way():
    assert parse_degradation("noise:0-10, jpeg:40-95") == Degradation(jpeg=Range(40, 95), noise=Range(0, 10), clean=0.2)
    assert parse_degradation("jpeg:75,clean:0") == Degradation(jpeg=Range(75, 75), clean=0)
    assert str(parse_degradation("noise:0-10.50,jpeg:40-95")) == "jpeg:40-95,noise:0-10.5,clean:0.2"
    for spec in ALL, "blur:0.123456789-1", "resize:0.5-2,clean:1", "noise:0.00001":
        assert parse_degradation(str(parse_degradation(spec))) == parse_degradation(spec)


@pytest.mark.parametrize(
    ("spec", "says"),
    [
        ("jpg:40-95", "'jpg:40-95' is not known; there are jpeg:LOW-HIGH, webp:"),
        ("", "is not known; there are"),
        ("jpeg:40-95,", "is not known; there are"),
        ("jpeg", "jpeg:LOW-HIGH, whole numbers in order from 1 to 100"),
        ("jpeg:95-40", "in order"),
        ("jpeg:0-40", "from 1 to 100"),
        ("jpeg:40.5-90", "whole numbers"),
        ("noise:-1-5", "from 0 to 50"),
        ("noise:nan-5", "from 0 to 50"),
        ("noise:1e1-20", "from 0 to 50"),
        ("blur:0-9", "from 0 to 5"),
        ("resize:0.1-1", "from 0.5 to 2"),
        ("jpeg:40-95,jpeg:3", "jpeg is named twice"),
        ("jpeg:40-95,clean:1.5", "from 0 to 1"),
        ("jpeg:40-95,clean:0.1-0.3", "from 0 to 1"),
        ("clean:0.5", "clean alone"),
    ],
)
def test_a_wrong_spec_is_told_in_one_line(spec, says):
    with pytest.raises(ValueError, match=re.escape(says)) as caught:
        parse_degradation(spec)
    assert "\n" not in str(caught.value)


# ---- what is drawn


def test_draws_follow_from_seed_step_and_index_alone():
    degradation = parse_degradation(f"{ALL},clean:0")
    told = {str(degradation.draw(seed, step, k)) for seed in range(-1, 3) for step in (0, 1, 2**40) for k in range(9)}
    assert len(told) == 4 * 3 * 9
    image = make_image(40, 50)
    one, other = (degrade(image, degradation.draw(5, 6, 7)) for _ in range(2))
    assert np.array_equal(one, other) and not np.array_equal(one, degrade(image, degradation.draw(5, 6, 8)))


def test_asking_for_more_changes_nothing_of_the_rest():
    for few, more in zip(plans("jpeg:40-95", 200), plans("jpeg:40-95,noise:0-10,blur:0-1", 200), strict=True):
        assert (few is None) == (more is None)
        assert few is None or more is None or few.compressions == more.compressions


def test_how_often_what_is_drawn():
    drawn = plans(ALL, 4000)
    dirty = [plan for plan in drawn if plan is not None]
    assert 1 - len(dirty) / len(drawn) == pytest.approx(0.2, abs=0.03)
    assert sum(len(plan.compressions) == 2 for plan in dirty) / len(dirty) == pytest.approx(0.2, abs=0.03)
    assert all(len(plan.compressions) in (1, 2) for plan in dirty)
    assert sum(plan.compressions[0].codec == "webp" for plan in dirty) / len(dirty) == pytest.approx(0.25, abs=0.03)
    jpegs = [plan.compressions[0] for plan in dirty if plan.compressions[0].codec == "jpeg"]
    assert {save.quality for save in jpegs} == set(range(40, 96))
    kinds = Counter(save.subsampling for save in jpegs)
    assert kinds.keys() == {"4:2:0", "4:2:2", "4:4:4"} and kinds["4:2:0"] > len(jpegs) / 2
    assert {save.offset[k] for save in jpegs for k in (0, 1)} == set(range(1, BLOCK_GRID + 1))
    for name, low, high in ("noise", 0, 10), ("blur", 0, 1), ("resize", 0.8, 1.2):
        values = np.array([getattr(plan, name) for plan in dirty])
        assert low <= values.min() < low + 0.1 * (high - low) and high - 0.1 * (high - low) < values.max() <= high
    assert all(plan is None for plan in plans("jpeg:40-95,clean:1", 100))
    assert all(plan is not None for plan in plans("jpeg:40-95,clean:0", 100))
    assert {plan.compressions[0].codec for plan in plans("webp:40-95,clean:0", 100) if plan} == {"webp"}
    assert all(plan.compressions == () for plan in plans("blur:1,clean:0", 100) if plan)


# ---- what is done


@settings(max_examples=60, deadline=None)
@given(
    st.integers(1, 50), st.integers(1, 50), st.integers(0, 999), st.sampled_from([ALL, "jpeg:30", "blur:5,resize:2"])
)
def test_any_size_stays_what_it_is(height, width, index, spec):
    plan = parse_degradation(f"{spec},clean:0").draw(0, 0, index)
    result = degrade(make_image(height, width), plan)
    assert result.shape == (height, width, 3) and result.dtype == np.uint8


@pytest.mark.parametrize(
    ("spec", "most"),
    [("jpeg:98-100", 6), ("webp:100", 14), ("noise:0.2", 2), ("blur:0.2", 2), ("resize:1.9-2", 3), ("resize:0.5-2", 4)],
)
def test_a_slight_degradation_leaves_an_image_where_it_is(spec, most):
    y, x = np.mgrid[0:60, 0:70]
    image = np.stack([128 + 90 * np.sin(x / 9 + k) * np.cos(y / 11) for k in (0, 0.1, 0.2)], 2).astype(np.uint8)
    for index in range(12):
        off = np.abs(degrade(image, parse_degradation(f"{spec},clean:0").draw(0, 0, index)).astype(int) - image)
        assert off[4:-4, 4:-4].max() <= most


def test_the_grid_of_blocks_lies_anywhere():
    """At a quality of 5 blocks are nearly flat: differences between rows, or columns, are where a block begins."""
    image = (make_image(64, 64) // 2 + np.mgrid[0:64, 0:64].sum(0)[..., None]).astype(np.uint8)
    found = set()
    for plan in plans("jpeg:5,clean:0", 400):
        assert plan is not None
        if len(plan.compressions) == 2:
            continue
        luma = degrade(image, plan).astype(int).sum(2)
        for axis in 0, 1:
            steps = np.abs(np.diff(luma, axis=axis)).sum(1 - axis)
            phase = int(np.argmax([steps[k::8].mean() for k in range(8)]) + 1) % 8
            assert phase == -plan.compressions[0].offset[axis] % 8
            found.add((axis, phase))
    assert len(found) == 16


def test_saving_twice_shows_both():
    image = make_image(64, 64)
    twice = next(p for p in plans("jpeg:40-95,clean:0", 200) if p and len(p.compressions) == 2)
    first, second = twice.compressions
    assert first.offset != second.offset and first.quality != second.quality
    both = degrade(image, twice)
    for saves in (first,), (second,):
        assert not np.array_equal(both, degrade(image, replace(twice, compressions=saves)))


def test_noise_has_the_strength_drawn():
    for level in 40, 128, 215:
        plan = parse_degradation("noise:6,clean:0").draw(0, 0, level)
        assert plan is not None
        noise = degrade(np.full((200, 200, 3), level, np.uint8), plan).astype(float) - level
        assert noise.mean() == pytest.approx(0, abs=0.1)
        assert noise.std() == pytest.approx(6 * (1 + plan.noise_slope * (level / 127.5 - 1)), rel=0.03)
        assert abs(plan.noise_slope) <= 0.25


def test_sixteen_bits_are_degraded_as_eight():
    image = np.minimum(make_image(40, 50), 254)
    eight, wide = (
        degrade(levels, parse_degradation(f"{ALL},clean:0").draw(0, 0, 1))
        for levels in (image, image.astype(np.uint16) * 257 + 100)
    )
    assert wide.dtype == np.uint16 and np.array_equal(wide, eight.astype(np.uint16) * 257)
    assert degrade(image, None) is image


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 9), st.integers(0, 7), st.integers(0, 99), st.booleans())
def test_a_crop_is_the_flipped_patch_with_its_padding(side, dihedral, index, clean):
    random = np.random.default_rng(index)
    height, width = random.integers(side, 40, 2)
    image = random.integers(0, 256, (height, width, 3), np.uint8)
    y, x = int(random.integers(0, height - side + 1)), int(random.integers(0, width - side + 1))
    plan = None if clean else parse_degradation(f"{ALL},clean:0").draw(0, 0, index)
    (above, _), (left, _) = reach = plan.padding(side, side) if plan else ((0, 0), (0, 0))
    cut = crop_padded(image, y, x, side, dihedral, plan)
    assert cut.shape == (side + sum(reach[0]), side + sum(reach[1]), 3)
    # The whole image flipped and rotated, and where the patch lies then.
    turned = image[:: -1 if dihedral & 1 else 1, :: -1 if dihedral & 2 else 1]
    y, x = (height - side - y if dihedral & 1 else y), (width - side - x if dihedral & 2 else x)
    turned, y, x = (turned.transpose(1, 0, 2), x, y) if dihedral & 4 else (turned, y, x)
    rows = np.clip(np.arange(cut.shape[0]) + y - above, 0, turned.shape[0] - 1)
    columns = np.clip(np.arange(cut.shape[1]) + x - left, 0, turned.shape[1] - 1)
    assert np.array_equal(cut, turned[rows][:, columns])


# ---- batches


def make_loader(images, spec, batch=6, seed=0, steps=4, device="cpu", **more):
    return PatchLoader(images, 8, batch, seed, device, steps, degradation=spec and parse_degradation(spec), **more)


def batches(feed, first, count):
    feed.load(first, count)
    return [tuple(x.clone() for x in feed.batch(torch.tensor(i))) for i in range(count)]


def same(ours, theirs):
    return all(
        torch.equal(a, b) for pair, other in zip(ours, theirs, strict=True) for a, b in zip(pair, other, strict=True)
    )


@pytest.fixture(params=[8, 16])
def some(request):
    images = [make_image(40, 60), make_image(80, 36, seed=1)]
    if request.param == 16:
        images = [image.astype(np.uint16) * 256 + 77 for image in images]
    return PairedImages.from_pairs([(matlab_downscale(image, 2), image) for image in images], 2)


@pytest.fixture(params=[True, False])
def feed_of(request):
    return partial(make_loader, resident=request.param)


def test_clean_patches_and_all_of_hr_are_as_without(some, feed_of):
    plain = batches(feed_of(some, None), 3, 4)
    assert same(batches(feed_of(some, "jpeg:40,clean:1"), 3, 4), plain)
    mixed = batches(feed_of(some, "jpeg:40,clean:0.5"), 3, 4)
    for step, ((low, high), (clean, truth)) in enumerate(zip(mixed, plain, strict=True), 3):
        assert torch.equal(high, truth)
        assert low.stride() == clean.stride() and low.dtype == torch.float32
        for k in range(6):
            untouched = parse_degradation("jpeg:40,clean:0.5").draw(0, step, k) is None
            assert torch.equal(low[k], clean[k]) == untouched
            assert (low[k] - clean[k]).abs().mean() < 0.1


def test_bits_are_the_same_however_steps_are_portioned(some, feed_of):
    want = batches(feed_of(some, ALL), 0, 4) + batches(feed_of(some, ALL), 4, 4)
    feed = feed_of(some, ALL)
    assert same([x for step in range(8) for x in batches(feed, step, 1)], want)
    feed.prepare(8, 4)
    assert same(batches(feed, 2, 3), want[2:5])  # a run that went back
    feed.prepare(5, 3)
    assert same(batches(feed, 5, 1) + batches(feed, 6, 2), want[5:8])  # a portion cut short
    feed.close()
    assert not same(batches(feed_of(some, ALL, seed=1), 0, 4), want[:4])


@pytest.mark.parametrize("world", [2, 3])
def test_shares_make_up_the_batch(some, world, feed_of):
    whole = batches(feed_of(some, ALL), 5, 2)
    shares = [batches(feed_of(some, ALL, share=(rank, world)), 5, 2) for rank in range(world)]
    for step in range(2):
        for k in range(2):
            assert torch.equal(whole[step][k], torch.cat([share[step][k] for share in shares]))


def test_threads_work_ahead(some):
    degrader = PatchDegrader(some, 8, 0, parse_degradation(ALL), first=0, ahead=4)
    degrader.submit(0, PatchSampler(some.index, 8, 6, 0).draw(0, 3))
    assert len(degrader.pending) == 3
    assert all(future.result(timeout=600).shape == (6, 8, 8, 3) for future in degrader.pending.values())
    degrader.close()


@pytest.mark.gpu
def test_a_gpu_gets_the_same_patches(some, feed_of):
    if not torch.cuda.is_available():
        pytest.skip("needs a CUDA device")
    feed = feed_of(some, ALL, device="cuda")
    feed.load(2, 4)
    for i, want in enumerate(batches(feed_of(some, ALL), 2, 4)):
        for ours, theirs in zip(feed.batch(torch.tensor(i, device="cuda")), want, strict=True):
            torch.testing.assert_close(ours.cpu(), theirs, rtol=0, atol=6e-8)  # division by 255 on a GPU: one ulp


def test_validation_images_are_degraded_whole_once_and_all(some):
    ours = degrade_images(some, parse_degradation(f"{ALL},clean:1"))
    assert ours.hr.dtype == some.hr.dtype and np.array_equal(ours.index, some.index)
    assert torch.equal(ours.hr, some.hr) and torch.equal(ours.lr, degrade_images(some, parse_degradation(ALL)).lr)
    for i in range(len(some)):
        assert not np.array_equal(ours.pair(i)[0], some.pair(i)[0])
