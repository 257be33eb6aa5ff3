"""Other engines on a GPU: TensorRT and ONNX Runtime, for a frame as `bench.frames` has it.

They get the plain network in fp16 and its operands in GPU memory; converting and rounding stay PyTorch's. A peer that
is not installed, or cannot be built for whatever reason, is `Unavailable`, which says why in one line.
"""

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from bench.isolate import one_line
from bench.workloads import CpuNetwork, Run, Unavailable, optional
from edsr.kernels import reference

Network = Callable[[Tensor], Tensor]  # float32 [1, 3, H, W] in 0..1 -> [1, 3, s·H, s·W]


def tensorrt(work: CpuNetwork) -> Run:
    """By Torch-TensorRT or, where that cannot be had, ONNX Runtime's provider."""
    on_gpu("TensorRT", work)
    try:
        return built(work, torch_tensorrt)
    except Unavailable as error:
        try:
            return built(work, onnx_tensorrt)
        except Unavailable as other:
            raise Unavailable(f"{error}, and {other}") from None


def onnxruntime(work: CpuNetwork) -> Run:
    on_gpu("ONNX Runtime's CUDA provider", work)
    return built(work, onnx_cuda)


def on_gpu(what: str, work: CpuNetwork) -> None:
    if work.device != "cuda":
        raise Unavailable(f"{what} needs a CUDA device")


def built(work: CpuNetwork, build: Callable[[CpuNetwork], Network]) -> Run:
    """Makes a network and runs it once, which may fail as well. Raises Unavailable, unless the GPU was lost by it."""
    try:
        network = build(work)

        def run() -> Tensor:
            y = network(work.image.permute(2, 0, 1)[None].float().div_(255))
            return reference.quantize(y.float(), torch.uint8)[0].permute(1, 2, 0).contiguous()

        with torch.inference_mode():
            run()
    except Unavailable:
        raise
    except Exception as error:
        if work.device == "cuda":
            torch.cuda.synchronize()  # raises where nothing can run in this process any more
        raise Unavailable(one_line(error)) from None
    return run


def torch_tensorrt(work: CpuNetwork) -> Network:
    trt = optional("torch_tensorrt")
    size = (1, 3, work.height, work.width)
    inputs = [trt.Input(size, dtype=torch.float32)]
    return trt.compile(work.plain(), ir="dynamo", inputs=inputs, enabled_precisions={torch.float32, work.dtype})


def onnx_tensorrt(work: CpuNetwork) -> Network:
    return onnx_network(work, "TensorrtExecutionProvider", {"trt_fp16_enable": "1"})


def onnx_cuda(work: CpuNetwork) -> Network:
    options = {"cudnn_conv_algo_search": "EXHAUSTIVE", "cudnn_conv_use_max_workspace": "1"}
    try:
        return onnx_network(work, "CUDAExecutionProvider", options | {"prefer_nhwc": "1"})
    except Exception:  # old ones, and those built without it, do not know NHWC
        return onnx_network(work, "CUDAExecutionProvider", options)


def onnx_network(work: CpuNetwork, provider: str, options: dict[str, str]) -> Network:
    """Reads and writes GPU memory, on a stream of its own in order with the current one, and never waits for it."""
    ort = optional("onnxruntime")
    if provider not in ort.get_available_providers():
        raise Unavailable(f"onnxruntime has no {provider}")
    stream = torch.cuda.Stream()
    options = options | {"user_compute_stream": str(stream.cuda_stream)}
    session = ort.InferenceSession(work.onnx, providers=[(provider, options)])
    if provider not in session.get_providers():  # it goes on with the CPU, and says so on standard error alone
        raise Unavailable(f"{provider} does not start here")
    queued = ort.RunOptions()
    queued.add_run_config_entry("disable_synchronize_execution_providers", "1")
    s, given, made = work.config.scale, session.get_inputs()[0].name, session.get_outputs()[0].name
    # The network ends in fp32 in whatever precision it computes.
    out = torch.empty((1, 3, s * work.height, s * work.width), device=work.device)
    binding = session.io_binding()
    binding.bind_output(made, "cuda", 0, np.float32, tuple(out.shape), out.data_ptr())

    def run(x: Tensor) -> Tensor:
        x = x.contiguous()
        stream.wait_stream(torch.cuda.current_stream())
        binding.bind_input(given, "cuda", 0, np.float32, tuple(x.shape), x.data_ptr())
        session.run_with_iobinding(binding, queued)
        x.record_stream(stream)
        torch.cuda.current_stream().wait_stream(stream)
        return out

    return run
