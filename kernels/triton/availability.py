"""Whether the Triton kernels can be had here. Importing this module, unlike the others, does not need Triton."""

import torch


def unavailable_reason(device: torch.device, dtype: torch.dtype, channels: int) -> str:
    """See `edsr.kernels.unavailable_reason`."""
    try:
        from . import launch
    except ImportError:
        return "the package triton is not installed"
    if channels % 16:
        return f"the kernels need a multiple of 16 features, not {channels}"
    if dtype not in launch.NAMES:
        return f"the kernels compute in {', '.join(launch.NAMES.values())}, not {str(dtype).removeprefix('torch.')}"
    if device.type == "cuda":
        old = launch.architecture(device) < 80
        return f"{torch.cuda.get_device_name(device)} is older than compute capability 8.0" if old else ""
    interpreted = device.type == "cpu" and launch.interpreted()
    return "" if interpreted else f"the kernels need a CUDA device, not {device}"


def compile_ahead(device: torch.device) -> str:
    """See `edsr.kernels.compile_ahead`."""
    from .hopper import probe

    probe.begin(device)
    return ""
