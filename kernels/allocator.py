"""Memory for feature maps on a CPU, used again.

Feature maps are tens of megabytes, and the C library gives such blocks back to the system when they are freed. The next
map is then new memory, which the system clears page by page as it is touched: for large images more time than the
convolutions take. Here the last few blocks that were freed are kept.
"""

import threading
import weakref
from collections import deque

import numpy as np
import torch
from torch import Tensor

SMALL = 1 << 20  # bytes; smaller maps are left to the C library
KEPT = 4  # blocks; a residual block has four maps alive, and bands a few sizes
KEPT_IN_TRAINING = 160  # what a forward pass makes of them is needed until the backward pass
LINE = 64  # bytes that a map's address is a multiple of, a cache line
WASTE = 4  # a block serves for a map if it is at most so many times as large: an image's first bands have many sizes

_returned: deque[np.ndarray] = deque()  # filled by whoever frees a map, at any moment, so without the lock
_kept: list[np.ndarray] = []  # the latest last
_lock = threading.Lock()


def empty_feature_map(
    size: tuple[int, int, int, int], dtype: torch.dtype, device: torch.device | str = "cpu", kept: int = KEPT
) -> Tensor:
    """A channels_last tensor [N, C, H, W] that holds anything. Its memory comes back when no tensor shares it.

    kept: how many blocks that nobody uses are to be kept, at most.
    """
    n, c, h, w = size
    count = n * c * h * w
    large = torch.device(device).type == "cpu" and count * dtype.itemsize >= SMALL
    if not large or torch.are_deterministic_algorithms_enabled():  # PyTorch fills memory with NaN then
        return torch.empty(size, dtype=dtype, device=device, memory_format=torch.channels_last)
    block = _block(count * dtype.itemsize, kept)
    lent = block[:]  # the tensor keeps this array, and with the tensor it goes
    weakref.finalize(lent, _returned.append, block).atexit = False
    return torch.from_numpy(lent)[: count * dtype.itemsize].view(dtype).view(n, h, w, c).permute(0, 3, 1, 2)


def _block(need: int, kept: int) -> np.ndarray:
    with _lock:
        while _returned:
            _kept.append(_returned.popleft())
        del _kept[:-kept]
        fitting = [i for i in range(len(_kept)) if need <= _kept[i].size <= WASTE * need]
        if fitting:
            return _kept.pop(min(reversed(fitting), key=lambda i: _kept[i].size))  # of equal ones the latest
    block = np.empty(need + LINE, np.uint8)
    start = -block.ctypes.data % LINE
    return block[start : start + need]
