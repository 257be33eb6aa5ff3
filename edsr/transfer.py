"""Rows of pixels to a device and back, so that a GPU computes while the next rows are read and the last are written."""

from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor


class Arriving(NamedTuple):
    """Tensors on their way to the host, and the event that tells when they are there (None: they are)."""

    tensors: tuple[Tensor, ...]
    there: torch.cuda.Event | None

    def wait(self) -> tuple[Tensor, ...]:
        if self.there is not None:
            self.there.synchronize()
        return self.tensors


class Transfers:
    """Copies between the host and `device`.

    On CUDA each direction has a stream of its own and page-locked memory on the host, whose blocks torch keeps
    for the next copy of that size; what is computed on the current stream waits for its rows, and nothing else
    waits for anything. The streams are of the usual priority, 0, which no stream that graphs are recorded on has
    (`edsr.graphs.recording_stream`). On other devices copies are plain.
    """

    def __init__(self, device: torch.device):
        self.device = device
        self._up, self._down = (torch.cuda.Stream(device) for _ in range(2)) if device.type == "cuda" else (None, None)

    def to_device(self, rows: np.ndarray) -> Tensor:
        """[n, W, C] of any dtype -> the same on the device."""
        # Writable, because torch warns of what is not, and Pillow lends its pixels for reading alone.
        source = torch.from_numpy(np.require(rows, requirements=["C", "W"]))
        if self._up is None:
            return source.to(self.device)
        locked = torch.empty(source.shape, dtype=source.dtype, pin_memory=True)
        locked.copy_(source)
        with torch.cuda.stream(self._up):
            x = locked.to(self.device, non_blocking=True)
        computing = torch.cuda.current_stream(self.device)
        computing.wait_stream(self._up)
        x.record_stream(computing)
        return x

    def to_host(self, *tensors: Tensor) -> Arriving:
        """Copies of tensors that the current stream computes."""
        if self._down is None:
            return Arriving(tuple(x.cpu() for x in tensors), None)
        self._down.wait_stream(torch.cuda.current_stream(self.device))
        copies = []
        with torch.cuda.stream(self._down):
            for x in tensors:
                locked = torch.empty(x.shape, dtype=x.dtype, pin_memory=True)
                copies.append(locked.copy_(x, non_blocking=True))
                x.record_stream(self._down)
            there = torch.cuda.Event()
            there.record(self._down)
        return Arriving(tuple(copies), there)
