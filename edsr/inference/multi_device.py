"""One image on several devices: each takes some of its columns.

The columns of two neighbors overlap by the network's receptive radius on either side, so each computes what the whole
image's result is there, and keeps what is its own. Devices go down the image each at its own pace.
"""

import itertools
import threading
from collections import deque
from collections.abc import Generator, Iterable, Iterator, Sequence
from contextlib import ExitStack

import numpy as np

from .prefetch import Prefetcher
from .upscaler import Upscaler


class MultiDeviceUpscaler:
    """Upscalers of one network that share each image; made larger as by one of them, to rounding."""

    def __init__(self, members: Sequence[Upscaler]):
        self.members = members
        self.scale = members[0].scale
        self.precision, self.backend = members[0].precision, members[0].backend
        self.device = ",".join(str(member.device) for member in members)

    def band_rows(self, width: int, height: int) -> int:
        """How many rows of an image are best handed over at once."""
        slabs = self._slabs(width)
        return max(m.band_rows(right - left, height) for m, (left, right, *_) in zip(self.members, slabs, strict=False))

    def bands(
        self, rows: Iterable[np.ndarray], width: int, self_ensemble: bool = False
    ) -> Generator[np.ndarray, None, None]:
        """As `Upscaler.bands`, on all devices at once where the image is wide enough for all."""
        slabs, s = self._slabs(width), self.scale
        if len(slabs) == 1:
            yield from self.members[0].bands(rows, width, self_ensemble)
            return
        shared = _Shared(rows, len(slabs))
        with ExitStack() as stack:
            results = []
            for i, (member, (left, right, *_)) in enumerate(zip(self.members, slabs, strict=False)):
                columns = shared.rows(i, left, right)
                results.append(stack.enter_context(Prefetcher(member.bands(columns, right - left, self_ensemble))))
            waiting: list[np.ndarray | None] = [None] * len(slabs)
            while True:
                for i, (left, _, first, end) in enumerate(slabs):
                    if waiting[i] is None and (y := next(results[i], None)) is not None:
                        waiting[i] = y[:, (first - left) * s : (end - left) * s]
                present = [part for part in waiting if part is not None]
                if len(present) < len(slabs):
                    assert not present, "one device gave more rows than another"
                    return
                count = min(len(part) for part in present)
                yield np.concatenate([part[:count] for part in present], 1)
                waiting = [part[count:] if len(part) > count else None for part in present]

    def _slabs(self, width: int) -> list[tuple[int, int, int, int]]:
        """For each device that takes part: first and end column it computes, first and end column it keeps.

        A slab keeps at least four radii, so that what two compute both is never more than half of it.
        """
        radius = self.members[0].model.config.receptive_radius
        count = max(1, min(len(self.members), width // (4 * radius)))
        cuts = [width * i // count for i in range(count + 1)]
        return [(max(0, a - radius), min(width, b + radius), a, b) for a, b in itertools.pairwise(cuts)]


class _Shared:
    """Rows that several take, each all of them; fetched by whoever needs the next first."""

    def __init__(self, rows: Iterable[np.ndarray], count: int):
        self._rows, self._lock = iter(rows), threading.Lock()
        self._waiting: list[deque[np.ndarray]] = [deque() for _ in range(count)]

    def rows(self, i: int, left: int, right: int) -> Iterator[np.ndarray]:
        """Some columns of all rows, for taker number `i`."""
        while True:
            with self._lock:
                if not self._waiting[i]:
                    part = next(self._rows, None)
                    if part is None:
                        return
                    for waiting in self._waiting:
                        waiting.append(part)
                part = self._waiting[i].popleft()
            yield part[:, left:right]
