"""Items made in a thread of their own, a few ahead of who takes them."""

import threading
from collections import deque
from collections.abc import Iterable, Iterator
from typing import Generic, TypeVar

T = TypeVar("T")


class Prefetcher(Iterator[T], Generic[T]):
    """The items of an iterable, up to `count` of them made before they are asked for.

    What the iterable raises is raised here, after the items before it. A context manager: at its end the thread has
    ended too, and a generator among its makers has been closed, whether all items were taken or not.
    """

    def __init__(self, items: Iterable[T], count: int = 2):
        self._items, self._count = items, count
        self._ready: deque[T] = deque()
        self._changed = threading.Condition()
        self._ended = self._left = False
        self._error: BaseException | None = None
        self._thread = threading.Thread(target=self._make, daemon=True)
        self._thread.start()

    def __enter__(self) -> "Prefetcher[T]":
        return self

    def __exit__(self, *_: object) -> None:
        with self._changed:
            self._left = True
            self._changed.notify_all()
        self._thread.join()

    def __next__(self) -> T:
        with self._changed:
            # In turns of a second, because Windows tells a waiting thread of Ctrl-C only afterwards.
            while not self._changed.wait_for(lambda: self._ready or self._ended, timeout=1):
                pass
            if self._ready:
                self._changed.notify_all()
                return self._ready.popleft()
            error, self._error = self._error, None
        if error is not None:
            raise error
        raise StopIteration

    def _make(self) -> None:
        try:
            for item in self._items:
                with self._changed:
                    self._changed.wait_for(lambda: self._left or len(self._ready) < self._count)
                    if self._left:
                        break
                    self._ready.append(item)
                    self._changed.notify_all()
            if (close := getattr(self._items, "close", None)) is not None:
                close()
        except BaseException as error:
            self._error = error
        finally:
            with self._changed:
                self._ended = True
                self._changed.notify_all()
