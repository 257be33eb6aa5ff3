"""What all ways of executing the network's operations agree on."""

from typing import NamedTuple

import torch
from torch import Tensor

TO_UNIT = {
    torch.uint8: 1 / 255,
    torch.uint16: 1 / 65535,
    torch.float32: 1.0,
    torch.float64: 1.0,
}  # of an image's values
MAX_VALUE = {torch.uint8: 255, torch.uint16: 65535, None: 0}  # of a result's values; 0: as computed


class OutputSpec(NamedTuple):
    """What a tail gives. dtype: None for values as computed, in at least fp32 and not clamped; torch.uint8 or
    torch.uint16 for values clamped to 0..1, stretched to the full range and rounded to nearest. overflow: an
    int32 tensor [1] that is set to 1 where a value is NaN or infinite, None to go without."""

    dtype: torch.dtype | None = None
    overflow: Tensor | None = None


RAW_OUTPUT = OutputSpec()

INNER, FIRST, LAST, ONLY = range(4)  # border class of a row or column: 1 = first of the image, 2 = last, 3 = both
