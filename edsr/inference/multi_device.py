"""One image on several devices: each computes some of its columns.

Neighbors overlap by the network's receptive radius on either side of what they keep, so each computes exactly what the
whole image's result is there. Devices go down the image each at its own pace.
"""

import threading
from collections import deque
from collections.abc import Generator, Iterable, Iterator, Sequence
from contextlib import ExitStack

import numpy as np

from .arrays import checked_rows
from .pixels import fill_hidden_colors
from .plan import ColumnSlice, split_columns
from .prefetch import Prefetcher
from .upscaler import Upscaler
from .whole_images import WholeImages


class MultiDeviceUpscaler(WholeImages):
    """Upscalers of one network on several devices that share each image. The result is that of one, to rounding."""

    def __init__(self, members: Sequence[Upscaler]):
        self.members = members
        self.scale = members[0].scale
        self.precision, self.backend = members[0].precision, members[0].backend
        self.device = ",".join(str(member.device) for member in members)

    def band_rows(self, width: int, height: int) -> int:
        """How many rows of an image are best handed over at once."""
        slices = zip(self.members, self.column_slices(width), strict=False)
        return max(member.band_rows(part.width, height) for member, part in slices)

    def state_bytes(self, width: int, height: int, channels: int, self_ensemble: bool = False) -> int:
        """As `Upscaler.state_bytes`, of all devices together."""
        slices = zip(self.members, self.column_slices(width), strict=False)
        return sum(member.state_bytes(part.width, height, channels, self_ensemble) for member, part in slices)

    def bands(
        self, rows: Iterable[np.ndarray], width: int, self_ensemble: bool = False
    ) -> Generator[np.ndarray, None, None]:
        """As `Upscaler.bands`, on all devices at once where the image is wide enough for all."""
        slices = self.column_slices(width)
        if len(slices) == 1:
            yield from self.members[0].bands(rows, width, self_ensemble)
            return
        shared = _SharedRows(
            fill_hidden_colors(checked_rows(rows, width)), len(slices)
        )  # before columns are cut, so that all see the same
        with ExitStack() as stack:
            results = []
            for i, (member, part) in enumerate(zip(self.members, slices, strict=False)):
                bands = member.bands_of_filled(shared.columns(i, part), part.width, self_ensemble)
                results.append(stack.enter_context(Prefetcher(bands)))
            waiting: list[np.ndarray | None] = [None] * len(slices)
            while True:
                for i, part in enumerate(slices):
                    if waiting[i] is None and (y := next(results[i], None)) is not None:
                        waiting[i] = y[:, part.kept(self.scale)]
                present = [y for y in waiting if y is not None]
                if len(present) < len(slices):
                    assert not present, "one device gave more rows than another"
                    return
                count = min(len(y) for y in present)
                yield np.concatenate([y[:count] for y in present], 1)
                waiting = [y[count:] if len(y) > count else None for y in present]

    def _check_process(self) -> None:
        for member in self.members:
            member._check_process()

    def column_slices(self, width: int) -> list[ColumnSlice]:
        """What each device that takes part computes of an image.

        A slice keeps at least four radii, so that the overlap is never more than half of what is kept.
        """
        radius = self.members[0].plan.receptive_radius
        return split_columns(width, max(1, min(len(self.members), width // (4 * radius))), radius)


class _SharedRows:
    """Rows that several consumers read, each all of them; fetched by whoever needs the next first."""

    def __init__(self, rows: Iterable[np.ndarray], count: int):
        self._rows, self._lock = iter(rows), threading.Lock()
        self._waiting: list[deque[np.ndarray]] = [deque() for _ in range(count)]

    def columns(self, i: int, part: ColumnSlice) -> Iterator[np.ndarray]:
        """Some columns of all rows, for consumer number `i`."""
        while True:
            with self._lock:
                if not self._waiting[i]:
                    rows = next(self._rows, None)
                    if rows is None:
                        return
                    for waiting in self._waiting:
                        waiting.append(rows)
                rows = self._waiting[i].popleft()
            yield rows[:, part.start : part.stop]
