"""Memory of feature maps: lent to one map at a time, and used again."""

import threading
from functools import partial

import pytest
import torch

from edsr.kernels.allocator import CACHE_LINE, MAX_FREE, MIN_POOLED_BYTES, BlockPool, empty_feature_map

SIZE = (2, 16, 130, 128)  # 2 MiB and a little


@pytest.fixture
def pool():
    return BlockPool()


@pytest.fixture
def new_map(pool):
    """Allocates an fp32 feature map of some size from the test's own pool."""
    return partial(empty_feature_map, dtype=torch.float32, pool=pool)


def test_layout_and_alignment(pool):
    for dtype in (torch.float32, torch.float64, torch.bfloat16):
        x = empty_feature_map(SIZE, dtype, pool=pool)
        assert x.shape == SIZE and x.dtype == dtype and x.is_contiguous(memory_format=torch.channels_last)
        assert x.data_ptr() % CACHE_LINE == 0
        x.fill_(3)
        assert (x == 3).all()


def test_memory_is_used_again_when_nothing_shares_it(new_map):
    first = new_map(SIZE)
    place, window = first.data_ptr(), first[:, :, 5:9]
    del first
    second = new_map(SIZE)
    assert second.data_ptr() != place  # the window is still there
    del window
    third = new_map((2, 16, 70, 128))  # smaller
    assert third.data_ptr() == place


def test_maps_share_one_pool_by_default():
    size = (1, 16, 1031, 128)  # of no other test
    x = empty_feature_map(size, torch.float32)
    place = x.data_ptr()
    del x
    assert empty_feature_map(size, torch.float32).data_ptr() == place


def test_the_smallest_block_that_fits_is_taken_unless_it_is_much_too_large(new_map):
    maps = [new_map((1, 64, rows, 128)) for rows in (330, 200, 250)]
    places = [x.data_ptr() for x in maps]
    del maps[:]
    small = new_map((1, 64, 40, 128))
    assert small.data_ptr() not in places
    fitting = [new_map((1, 64, rows, 128)) for rows in (190, 190, 190)]
    assert [x.data_ptr() for x in fitting] == [places[1], places[2], places[0]]


def test_only_the_latest_free_blocks_are_kept(new_map, pool):
    maps = [new_map((1, 16, 130 + 40 * i, 128)) for i in range(MAX_FREE + 5)]
    latest = maps[-1].data_ptr()
    while maps:
        del maps[0]
    last = new_map((1, 16, 130 + 40 * (MAX_FREE + 4), 128))
    assert last.data_ptr() == latest
    assert len(pool) == MAX_FREE - 1


def test_more_blocks_are_kept_on_request(new_map):
    sizes = [(1, 16, 130 + 40 * i, 128) for i in range(MAX_FREE + 5)]
    maps = [new_map(size, max_free=MAX_FREE + 9) for size in sizes]
    places = {x.data_ptr() for x in maps}
    del maps[:]
    again = [new_map(size, max_free=MAX_FREE + 9) for size in sizes]
    assert {x.data_ptr() for x in again} == places


def test_small_maps_are_not_pooled(new_map, pool):
    x = new_map((1, 16, 4, 4))
    assert x.numel() * 4 < MIN_POOLED_BYTES and x.is_contiguous(memory_format=torch.channels_last)
    del x
    assert len(pool) == 0


def test_deterministic_algorithms_fill_new_maps_with_nan(new_map):
    torch.use_deterministic_algorithms(True)
    try:
        assert new_map(SIZE).isnan().all()
    finally:
        torch.use_deterministic_algorithms(False)


def test_threads_never_share(new_map):
    wrong = []

    def work(value):
        for _ in range(200):
            x = new_map(SIZE)[:, :1, ::16, ::16]
            x.fill_(value)
            y = new_map(SIZE)[:, :1, ::16, ::16]
            y.fill_(-value)
            if not (x == value).all() or not (y == -value).all():
                wrong.append(value)

    threads = [threading.Thread(target=work, args=(i,)) for i in range(1, 5)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong
