"""A pool of memory blocks for feature maps on a CPU.

Feature maps are tens of megabytes, and the C library returns blocks of that size to the system when they are freed. The
next map is then new memory, which the system clears page by page as it is touched: for large images this takes longer
than the convolutions. The pool therefore keeps the last few blocks that were freed.
"""

import threading
import weakref
from collections import deque

import numpy as np
import torch
from torch import Tensor

MIN_POOLED_BYTES = 1 << 20  # smaller maps are left to the C library
MAX_FREE = 4  # blocks; a residual block has four maps alive, and bands come in a few sizes
MAX_FREE_IN_TRAINING = 160  # the maps of a forward pass are needed until the backward pass
CACHE_LINE = 64  # bytes; the address of every block is a multiple of it
MAX_WASTE = 4  # a block is at most this many times as large as the map in it: an image's first bands vary in size


class BlockPool:
    """Memory blocks that are lent, and lent again when nothing uses them any more. Safe to use from several threads.

    `len(pool)` is the number of free blocks.
    """

    def __init__(self):
        self._free: list[np.ndarray] = []  # most recently returned last
        # A finalizer may run at any moment, even in a thread that holds the lock, so it appends here without it.
        self._returned: deque[np.ndarray] = deque()
        self._lock = threading.Lock()

    def __len__(self) -> int:
        return len(self._free) + len(self._returned)

    def lend(self, size: int, max_free: int = MAX_FREE) -> np.ndarray:
        """An uninitialized block, which returns to the pool when no array or tensor shares its memory.

        Args:
            size: in bytes.
            max_free: how many free blocks to keep before one is chosen; the oldest are dropped.

        Returns:
            uint8 [size or more], the smallest free block that fits, or a new one.
        """
        block = self._take(size, max_free)
        lent = block[:]  # finalized when the last tensor made from it is gone
        weakref.finalize(lent, self._returned.append, block).atexit = False
        return lent

    def _take(self, size: int, max_free: int) -> np.ndarray:
        with self._lock:
            while self._returned:
                self._free.append(self._returned.popleft())
            del self._free[:-max_free]
            fitting = [i for i in range(len(self._free)) if size <= self._free[i].size <= MAX_WASTE * size]
            if fitting:  # of equal sizes the most recent
                return self._free.pop(min(reversed(fitting), key=lambda i: self._free[i].size))
        block = np.empty(size + CACHE_LINE, np.uint8)
        start = -block.ctypes.data % CACHE_LINE
        return block[start : start + size]


SHARED_POOL = BlockPool()


def empty_feature_map(
    size: tuple[int, int, int, int],
    dtype: torch.dtype,
    device: torch.device | str = "cpu",
    max_free: int = MAX_FREE,
    pool: BlockPool = SHARED_POOL,
) -> Tensor:
    """An uninitialized channels_last tensor; large ones on a CPU take their memory from a pool.

    Args:
        size: N, C, H, W.
        dtype: of the elements.
        device: where to allocate.
        max_free: how many free blocks the pool may keep.
        pool: where the memory comes from, and returns to when no tensor shares it.

    Returns:
        [N, C, H, W], filled with NaN (or the largest integer) where PyTorch's deterministic algorithms are on.
    """
    n, c, h, w = size
    length = n * c * h * w * dtype.itemsize
    pooled = torch.device(device).type == "cpu" and length >= MIN_POOLED_BYTES
    if not pooled or torch.are_deterministic_algorithms_enabled():  # PyTorch then fills what it allocates
        return torch.empty(size, dtype=dtype, device=device, memory_format=torch.channels_last)
    block = torch.from_numpy(pool.lend(length, max_free))
    return block[:length].view(dtype).view(n, h, w, c).permute(0, 3, 1, 2)
