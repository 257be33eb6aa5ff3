"""When a run validates and saves itself."""

import contextlib
import time
from collections.abc import Callable, Iterator

OVERHEAD_RATIO = 50  # a fiftieth of a run, 2 %, is the most that anything takes that nobody gave an interval for
MIN_SAVE_SECONDS = 30.0  # between checkpoints


class IntervalTrigger:
    """Says when something that takes time is due.

    Args:
        every: Steps between. None: it is due at multiples of `multiple_of`, once OVERHEAD_RATIO times as long as it
            took last, and `min_seconds`, have gone by since; for the first time after `min_seconds`.
        multiple_of: Steps.
        min_seconds: Time between.
        clock: Gives seconds.
    """

    def __init__(
        self,
        every: int | None,
        multiple_of: int = 1,
        min_seconds: float = 0.0,
        clock: Callable[[], float] = time.monotonic,
    ):
        self.every = every
        self._multiple_of, self._min_seconds, self._clock = multiple_of, min_seconds, clock
        self._next = clock() + min_seconds

    def due(self, step: int) -> bool:
        """Whether it is due now, `step` steps done."""
        if self.every is not None:
            return step % self.every == 0
        return step % self._multiple_of == 0 and self._clock() >= self._next

    @contextlib.contextmanager
    def timed(self) -> Iterator[None]:
        """Around the doing of it."""
        begun = self._clock()
        yield
        ended = self._clock()
        self._next = ended + max(self._min_seconds, OVERHEAD_RATIO * (ended - begun))
