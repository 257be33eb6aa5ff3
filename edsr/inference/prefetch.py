"""Items produced in a thread of their own, a few ahead of the consumer."""

import threading
from collections import deque
from collections.abc import Iterable, Iterator
from typing import Generic, TypeVar

T = TypeVar("T")

_PATIENCE = 0.5  # seconds that somebody who interrupts waits for a decoder


class Prefetcher(Iterator[T], Generic[T]):
    """The items of an iterable, up to `count` of them produced before they are asked for.

    What the iterable raises is raised here, after the items before it. It is a context manager: when that ends the
    thread has ended, too, and if the iterable is a generator it has been closed, whether all items were taken or not.
    After a KeyboardInterrupt a thread that hangs is left behind.
    """

    def __init__(self, items: Iterable[T], count: int = 2):
        self._items, self._count = items, count
        self._ready: deque[T] = deque()
        self._changed = threading.Condition()
        self._finished = self._closed = False
        self._error: BaseException | None = None
        self._thread = threading.Thread(target=self._produce, name="edsr-reader", daemon=True)
        self._thread.start()

    def __enter__(self) -> "Prefetcher[T]":
        return self

    def __exit__(self, kind: object, *_: object) -> None:
        with self._changed:
            self._closed = True
            self._changed.notify_all()
        self._thread.join(_PATIENCE if kind is KeyboardInterrupt else None)

    def __next__(self) -> T:
        with self._changed:
            # With a timeout, because Windows delivers Ctrl-C to a waiting thread only after the wait.
            while not self._changed.wait_for(lambda: self._ready or self._finished, timeout=1):
                pass
            if self._ready:
                self._changed.notify_all()
                return self._ready.popleft()
            error, self._error = self._error, None
        if error is not None:
            raise error
        raise StopIteration

    def _produce(self) -> None:
        try:
            for item in self._items:
                with self._changed:
                    self._changed.wait_for(lambda: self._closed or len(self._ready) < self._count)
                    if self._closed:
                        break
                    self._ready.append(item)
                    self._changed.notify_all()
            if (close := getattr(self._items, "close", None)) is not None:
                close()
        except BaseException as error:
            self._error = error
        finally:
            with self._changed:
                self._finished = True
                self._changed.notify_all()
