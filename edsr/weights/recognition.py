"""Whether a checkpoint is of a network that is known here, by names and shapes alone: for registries of networks."""

from typing import Any

from torch import Tensor

from edsr.errors import WeightsError

from .edsr import checkpoint_config, detect_layout, expand_collapsed_upsampler, match_tensors
from .family import COUNTER, find_layout, match_family
from .unwrapping import stands_alone, unwrap


def recognize(checkpoint: Any) -> str | None:
    """The architecture of a checkpoint, a key of `edsr.models.ARCHITECTURES`; None if it is not one that is known here.

    All tensors must be those of the network, and have its shapes. Their values are not looked at.
    """
    try:
        if not stands_alone(checkpoint):
            return None
        tensors = {key: value for key, value in unwrap(checkpoint).items() if not key.endswith(COUNTER)}
        if not all(isinstance(value, Tensor) and value.is_floating_point() for value in tensors.values()):
            return None
        tensors = expand_collapsed_upsampler(tensors)
        if family := find_layout(tensors):
            return match_family(tensors, family, None, None).model.config.architecture
        name = detect_layout(tensors)
        match_tensors(tensors, name, checkpoint_config(tensors, name, 1.0, None))
        return "edsr"
    except WeightsError:
        return None
