"""Memory of feature maps: lent once at a time, and used again."""

import gc
import threading

import pytest
import torch

from edsr.kernels import allocator
from edsr.kernels.allocator import KEPT, SMALL, empty_feature_map

SIZE = (2, 16, 130, 128)  # 2 MiB and a little


@pytest.fixture(autouse=True)
def nothing_kept(monkeypatch):
    gc.collect()
    monkeypatch.setattr(allocator, "_kept", [])
    allocator._returned.clear()


def test_a_map():
    for dtype in (torch.float32, torch.float64, torch.bfloat16):
        x = empty_feature_map(SIZE, dtype)
        assert x.shape == SIZE and x.dtype == dtype and x.is_contiguous(memory_format=torch.channels_last)
        assert x.data_ptr() % allocator.LINE == 0
        x.fill_(3)
        assert (x == 3).all()


def test_memory_is_used_again_when_nothing_shares_it():
    first = empty_feature_map(SIZE, torch.float32)
    place, window = first.data_ptr(), first[:, :, 5:9]
    del first
    second = empty_feature_map(SIZE, torch.float32)
    assert second.data_ptr() != place  # the window is still there
    del window
    third = empty_feature_map((2, 16, 70, 128), torch.float32)  # smaller
    assert third.data_ptr() == place


def test_the_smallest_that_fits_serves_but_not_for_a_much_smaller_map():
    maps = [empty_feature_map((1, 64, rows, 128), torch.float32) for rows in (330, 200, 250)]
    places = [x.data_ptr() for x in maps]
    del maps[:]
    small = empty_feature_map((1, 64, 40, 128), torch.float32)
    assert small.data_ptr() not in places
    fitting = [empty_feature_map((1, 64, rows, 128), torch.float32) for rows in (190, 190, 190)]
    assert [x.data_ptr() for x in fitting] == [places[1], places[2], places[0]]


def test_little_is_kept():
    maps = [empty_feature_map((1, 16, 130 + 40 * i, 128), torch.float32) for i in range(KEPT + 5)]
    latest = maps[-1].data_ptr()
    while maps:
        del maps[0]
    assert empty_feature_map((1, 16, 130 + 40 * (KEPT + 4), 128), torch.float32).data_ptr() == latest
    assert len(allocator._kept) == KEPT - 1


def test_more_is_kept_where_it_is_asked_for():
    maps = [empty_feature_map((1, 16, 130 + 40 * i, 128), torch.float32, kept=KEPT + 9) for i in range(KEPT + 5)]
    places = {x.data_ptr() for x in maps}
    del maps[:]
    again = [empty_feature_map((1, 16, 130 + 40 * i, 128), torch.float32, kept=KEPT + 9) for i in range(KEPT + 5)]
    assert {x.data_ptr() for x in again} == places


def test_small_maps_are_left_alone():
    x = empty_feature_map((1, 16, 4, 4), torch.float32)
    assert x.numel() * 4 < SMALL and x.is_contiguous(memory_format=torch.channels_last)
    del x
    empty_feature_map(SIZE, torch.float32)
    assert not allocator._kept


def test_what_is_not_written_shows_where_that_is_asked_for():
    torch.use_deterministic_algorithms(True)
    try:
        assert empty_feature_map(SIZE, torch.float32).isnan().all()
    finally:
        torch.use_deterministic_algorithms(False)


def test_threads_never_share():
    wrong = []

    def work(value):
        for _ in range(200):
            x = empty_feature_map(SIZE, torch.float32)[:, :1, ::16, ::16]
            x.fill_(value)
            y = empty_feature_map(SIZE, torch.float32)[:, :1, ::16, ::16]
            y.fill_(-value)
            if not (x == value).all() or not (y == -value).all():
                wrong.append(value)

    threads = [threading.Thread(target=work, args=(i,)) for i in range(1, 5)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong
