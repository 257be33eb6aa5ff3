import threading
import time

import pytest

from edsr.inference.prefetch import Prefetcher


def test_all_items_in_order():
    with Prefetcher(range(100)) as items:
        assert list(items) == list(range(100))
        assert next(items, None) is None


def test_no_more_than_count_ahead():
    made = []

    def items():
        for i in range(50):
            made.append(i)
            yield i

    with Prefetcher(items(), 3) as ahead:
        for i in ahead:
            time.sleep(0.001)
            assert len(made) <= i + 1 + 3 + 1  # taken, ready, in the making
    assert len(made) == 50


def test_made_before_they_are_asked_for():
    second = threading.Event()

    def items():
        yield 1
        second.set()
        yield 2

    with Prefetcher(items()) as ahead:
        assert second.wait(10)
        assert list(ahead) == [1, 2]


def test_an_error_comes_after_the_items_before_it():
    def items():
        yield 1
        raise ZeroDivisionError("here")

    with Prefetcher(items()) as ahead:
        assert next(ahead) == 1
        with pytest.raises(ZeroDivisionError, match="here"):
            next(ahead)
        assert next(ahead, None) is None


@pytest.mark.parametrize("taken", [0, 1, 5])
def test_leaving_early_ends_the_thread_and_closes_the_maker(taken):
    closed = []

    def items():
        try:
            yield from range(1000)
        finally:
            closed.append(threading.current_thread())

    before = set(threading.enumerate())
    with Prefetcher(items()) as ahead:
        for _ in range(taken):
            next(ahead)
    assert set(threading.enumerate()) <= before
    assert len(closed) == 1 and closed[0] is not threading.current_thread()
