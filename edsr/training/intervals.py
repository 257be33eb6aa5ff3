"""When a run stops to look at itself or to save itself."""

import contextlib
import time
from collections.abc import Callable, Iterator

SHARE = 50  # a fiftieth of a run, 2 %, is the most that anything takes that nobody gave a number of steps for
APART = 30.0  # seconds between checkpoints, at least


class Cadence:
    """When something that takes time is due.

    every: the steps between. None: at a step that `grid` divides, once it has been left alone for SHARE times as long
    as it took last, and for `apart` seconds; for the first time after `apart` seconds. clock: tells seconds.
    """

    def __init__(
        self, every: int | None, grid: int = 1, apart: float = 0.0, clock: Callable[[], float] = time.monotonic
    ):
        self.every = every
        self._grid, self._apart, self._clock = grid, apart, clock
        self._next = clock() + apart

    def due(self, step: int) -> bool:
        """Whether now, `step` steps done."""
        if self.every is not None:
            return step % self.every == 0
        return step % self._grid == 0 and self._clock() >= self._next

    @contextlib.contextmanager
    def measured(self) -> Iterator[None]:
        """Around the doing of it."""
        begun = self._clock()
        yield
        ended = self._clock()
        self._next = ended + max(self._apart, SHARE * (ended - begun))
