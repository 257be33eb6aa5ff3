"""The columns of one image on the workers of a cluster: what a worker computes, and what stands for it elsewhere."""

import queue
import threading
from collections.abc import Callable, Generator, Iterable, Iterator
from typing import Any

import numpy as np

from edsr.errors import ClusterError
from edsr.inference import ExecutionPlan

_ASKS, _ENDED = object(), object()


class _Closed(Exception):
    """Nobody wants the rest of a slab."""


class Slab:
    """Some columns of an image, in a worker: computed in a thread, while rows arrive and results are fetched.

    It holds two bands of rows at most: one that is computed, and the next.

    Args:
        bands: Such as `Upscaler.bands_of_filled` with a width: gives results of rows that it takes one by one.
    """

    def __init__(self, bands: Callable[[Iterator[np.ndarray]], Iterable[np.ndarray]]):
        self._rows, self._results = queue.SimpleQueue[Any](), queue.SimpleQueue[Any]()
        threading.Thread(target=self._run, args=(bands,), name="edsr-slab", daemon=True).start()

    def _run(self, bands: Callable[[Iterator[np.ndarray]], Iterable[np.ndarray]]) -> None:
        try:
            for band in bands(self._taken()):
                self._results.put(band)
            self._results.put(_ENDED)
        except Exception as error:
            self._results.put(error)

    def _taken(self) -> Iterator[np.ndarray]:
        while True:
            self._results.put(_ASKS)
            rows = self._rows.get()
            if rows is None:
                return
            if isinstance(rows, _Closed):
                raise rows
            yield np.array(rows)  # which were in memory that is shared, and cannot be written

    def advance(self, rows: np.ndarray | None) -> list[np.ndarray]:
        """Hands over rows, and waits for the results of those before.

        Args:
            rows: [n, width, C], as all before; None: there are no more, so that the results are all the rest.
        """
        self._rows.put(rows)
        bands: list[np.ndarray] = []
        while (item := self._results.get()) is not _ENDED and (item is not _ASKS or rows is None):
            if isinstance(item, Exception):
                raise item
            if item is not _ASKS:
                bands.append(item)
        return bands

    def close(self) -> None:
        """Ends the thread after the band that it computes."""
        self._rows.put(_Closed())


class RemoteUpscaler:
    """A worker's network, as a member of a `MultiDeviceUpscaler`. Has one call at a time under way.

    Args:
        ray: As `connected` gives it.
        actor: Of `Worker`.
        scale, model: Of the network, as `UpscalerPool.upscaler` takes them.

    Attributes:
        lost: Whether the worker has died meanwhile.
    """

    def __init__(self, ray: Any, actor: Any, scale: int, model: str):
        self._ray, self._actor, self._network = ray, actor, (scale, model)
        self.scale, self.lost = scale, False
        self._planned = actor.plan.remote(scale, model)

    @property
    def plan(self) -> ExecutionPlan:
        """The worker's."""
        return self._get(self._planned)

    @property
    def precision(self) -> str:
        return self.plan.precision

    @property
    def backend(self) -> str:
        return self.plan.backend

    @property
    def device(self) -> object:
        return self.plan.device

    def band_rows(self, width: int, height: int) -> int:
        """As of `Upscaler`."""
        return self.plan.band_shape(width, height)[0]

    def state_bytes(self, width: int, height: int, channels: int, self_ensemble: bool = False) -> int:
        """Of this machine's memory: none."""
        return 0

    def bands(
        self, rows: Iterable[np.ndarray], width: int, self_ensemble: bool = False
    ) -> Generator[np.ndarray, None, None]:
        """As of `Upscaler`."""
        return self._bands(rows, width, self_ensemble, filled=False)

    def bands_of_filled(
        self, rows: Iterable[np.ndarray], width: int, self_ensemble: bool = False
    ) -> Generator[np.ndarray, None, None]:
        """As of `Upscaler`. Raises ClusterError if the worker is lost."""
        return self._bands(rows, width, self_ensemble, filled=True)

    def _bands(
        self, rows: Iterable[np.ndarray], width: int, self_ensemble: bool, filled: bool
    ) -> Generator[np.ndarray, None, None]:
        self._get(self._actor.begin.remote(*self._network, width, self_ensemble, filled))
        for part in rows:
            yield from map(np.array, self._get(self._actor.advance.remote(np.ascontiguousarray(part))))
        yield from map(np.array, self._get(self._actor.advance.remote(None)))

    def _get(self, reference: Any) -> Any:
        try:
            return self._ray.get(reference)
        except self._ray.exceptions.RayTaskError as error:
            raise error.cause from None  # of this project
        except self._ray.exceptions.RayError as error:
            self.lost = True
            lines = str(error).splitlines()
            raise ClusterError(f"a worker is lost: {lines[0] if lines else type(error).__name__}") from None

    def _check_process(self) -> None:
        """Nothing of it is lost in a fork."""
