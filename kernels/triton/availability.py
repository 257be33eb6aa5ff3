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
    if dtype not in launch.DTYPE_NAMES:
        return (
            f"the kernels compute in {', '.join(launch.DTYPE_NAMES.values())}, not {str(dtype).removeprefix('torch.')}"
        )
    if device.type == "cuda":
        if torch.version.hip:  # whose compute capability may be 9.0, like a Hopper's
            return f"the kernels are for NVIDIA's GPUs, and {torch.cuda.get_device_name(device)} is AMD's"
        old = launch.architecture(device) < 80
        return f"{torch.cuda.get_device_name(device)} is older than compute capability 8.0" if old else ""
    interpreted = device.type == "cpu" and launch.interpreted()
    return "" if interpreted else f"the kernels need a CUDA device, not {device}"


def compile_ahead(device: torch.device) -> str:
    """See `edsr.kernels.compile_ahead`."""
    from .hopper import probe

    probe.begin(device)
    return ""


def is_faster_in_training(device: torch.device, dtype: torch.dtype, channels: int) -> bool:
    """Whether a step of training on these kernels was measured to be faster than with PyTorch's on this kind of GPU."""
    from . import launch

    return launch.choice("training_step", f"{launch.DTYPE_NAMES[dtype]} {channels}", device) == "triton"
