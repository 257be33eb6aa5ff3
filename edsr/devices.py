"""Devices, precisions, and the processes that torchrun starts."""

import contextlib
import gc
import os
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager
from datetime import timedelta
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

from edsr.errors import BackendError
from edsr.wording import option

T = TypeVar("T")
PRECISIONS = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}


def pick_device(name: str | torch.device) -> torch.device:
    """The device of that name, or the fastest here for "auto".

    Raises:
        BackendError: There is none such.
    """
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"
    try:
        device = torch.device(name)
    except (RuntimeError, TypeError):  # no such name; no name
        raise BackendError(f"unknown device {name!r}: use auto, cpu, cuda, cuda:N or mps", misuse=True) from None
    if device.type == "cuda" and not torch.cuda.is_available():
        raise BackendError(f"{option('device', name)}: no CUDA device here; use {option('device', 'cpu')} or auto")
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise BackendError(f"{option('device', name)}: the last CUDA device is cuda:{torch.cuda.device_count() - 1}")
    if device.type == "mps" and not torch.backends.mps.is_available():
        raise BackendError(f"{option('device', 'mps')}: no Apple GPU here; use {option('device', 'cpu')} or auto")
    if device.type not in ("cpu", "cuda", "mps"):
        raise BackendError(f"unknown device {name!r}: use auto, cpu, cuda, cuda:N or mps", misuse=True)
    return device


def cpu_has(precision: str) -> bool:
    """Whether the CPU's convolutions compute in fp16 or bf16 themselves."""
    if not torch.backends.mkldnn.is_available():
        return False
    ops = torch.ops.mkldnn
    return ops._is_mkldnn_fp16_supported() if precision == "fp16" else ops._is_mkldnn_bf16_supported()


_full_lock = threading.Lock()
_full_users = 0  # contexts that are open, in all threads
_full_undo: list[Callable[[], None]] = []


def in_precision(dtype: torch.dtype, device: torch.device) -> AbstractContextManager[None]:
    """A context to compute in: on CUDA fp32 is fp32 there, also where PyTorch would round operands to TF32, as its
    convolutions do by default."""
    return _full_fp32() if device.type == "cuda" and dtype == torch.float32 else contextlib.nullcontext()


@contextlib.contextmanager
def _full_fp32() -> Iterator[None]:
    """Inside, nothing is rounded to TF32. These settings are the whole process's: they are made when the first thread
    comes in and taken back when the last one leaves."""
    global _full_users
    with _full_lock:
        if _full_users == 0:
            _full_undo[:] = _forbid_tf32()
        _full_users += 1
    try:
        yield
    finally:
        with _full_lock:
            _full_users -= 1
            if _full_users == 0:
                for undo in _full_undo:
                    undo()


def _forbid_tf32() -> list[Callable[[], None]]:
    """Makes convolutions and matrix products of CUDA compute in fp32; gives what takes that back.

    By torch's older settings where these hold: they and the newer ones, which are of one operation each, refuse to be
    read where they contradict each other.
    """
    undo: list[Callable[[], None]] = []
    cudnn: Any = torch.backends.cudnn  # torch's types leave out what is in it
    matmul = torch.backends.cuda.matmul
    try:
        if cudnn.allow_tf32:
            cudnn.allow_tf32 = False
            undo.append(lambda: setattr(cudnn, "allow_tf32", True))
    except RuntimeError:
        conv, one = cudnn.conv, cudnn.conv.fp32_precision
        conv.fp32_precision = "ieee"
        undo.append(lambda: setattr(conv, "fp32_precision", one))
    try:
        before = torch.get_float32_matmul_precision()
        if before != "highest":
            torch.set_float32_matmul_precision("highest")
            undo.append(lambda: torch.set_float32_matmul_precision(before))
    except RuntimeError:
        other = matmul.fp32_precision
        matmul.fp32_precision = "ieee"
        undo.append(lambda: setattr(matmul, "fp32_precision", other))
    return undo


def list_devices(text: str) -> list[str]:
    """The devices that `--device` names, such as "cuda:0,cuda:1"; one may be named more than once.

    "all" is every CUDA device, or the fastest device where there is none.

    Raises:
        BackendError: A name is empty.
    """
    if text == "all":
        return [f"cuda:{i}" for i in range(torch.cuda.device_count())] or ["auto"]
    names = [name.strip() for name in text.split(",")]
    if not all(names):
        raise BackendError(f"{option('device', text)}: a name is missing between the commas", misuse=True)
    return names


class ProcessGroup:
    """The processes that torchrun, or Ray Train, started, as one of them sees it; without that this is the only one.

    Joins torch's process group (nccl on CUDA, gloo elsewhere) if there are several; `leave` ends it. One that is there
    already, as Ray Train makes it, is used, and left to whoever made it.

    Args:
        device: Where the processes compute, as for `edsr.Upscaler`; with several processes and CUDA each takes the GPU
            of its number on its machine.
        timeout: How long one process waits for the others; None: torch's default.

    Attributes:
        rank: Number of this process.
        world_size: How many processes there are.
        local_rank: Number of this process on its machine.
        device: What this process computes on.

    Raises:
        BackendError: The device cannot be had.
    """

    def __init__(self, device: str, timeout: timedelta | None = None):
        self.rank = int(os.environ.get("RANK", 0))
        self.world_size = int(os.environ.get("WORLD_SIZE", 1))
        self.local_rank = int(os.environ.get("LOCAL_RANK", 0))
        self.device = pick_device(device)
        self._made = False
        if self.world_size == 1:
            return
        if self.device.type == "cuda":
            self.device = pick_device(f"cuda:{self.local_rank}")
            torch.cuda.set_device(self.device)
        if dist.is_initialized():
            return
        self._made = True
        dist.init_process_group("nccl" if self.device.type == "cuda" else "gloo", timeout=timeout)

    @classmethod
    def for_files(cls) -> "ProcessGroup":
        """The processes that share the files of a batch: they talk by way of the CPU, whatever they compute on, and
        the first to be done waits for the last, however long that takes."""
        return cls("cpu", timedelta(days=30))

    @property
    def is_main(self) -> bool:
        """Whether this is the one process that writes and logs."""
        return self.rank == 0

    def leave(self) -> None:
        """Ends the group. Whoever holds a DistributedDataParallel has let go of it: what is left of a group when Python
        ends takes the process down with it."""
        if self._made and dist.is_initialized():
            gc.collect()  # it lies in cycles
            dist.destroy_process_group()

    def local_device(self, name: str) -> str:
        """The device for `--device NAME`: for "auto" the GPU of this process's number on its machine, if any."""
        if self.world_size == 1 or name != "auto" or not torch.cuda.is_available():
            return name
        return f"cuda:{self.local_rank % torch.cuda.device_count()}"

    def share(self, items: Sequence[T]) -> list[T]:
        """Those of the items, which are the same in all processes, that are this one's; each has one owner."""
        return list(items[self.rank :: self.world_size])

    def gather(self, value: Any) -> list[Any] | None:
        """Every process's value, by rank, in the main one; None in the others. Waits until all have come here.

        torchrun ends all when one ends with an error, so nobody may end before this.
        """
        if self.world_size == 1:
            return [value]
        values = [None] * self.world_size if self.is_main else None
        dist.gather_object(value, values)
        dist.barrier()
        return values

    def mean(self, values: list[float]) -> list[float]:
        """The mean of each value over all processes, which all get the same numbers."""
        if self.world_size == 1:
            return values
        tensor = torch.tensor(values, dtype=torch.float64, device=self.device)
        dist.all_reduce(tensor)
        return (tensor / self.world_size).tolist()

    def any(self, flag: bool) -> bool:
        """Whether the flag is set in any process."""
        return self.mean([float(flag)])[0] > 0

    def barrier(self) -> None:
        """Waits until all processes have come here."""
        if self.world_size > 1:
            dist.barrier()

    def broadcast(self, tensors: Iterable[Tensor], record: dict | None) -> dict | None:
        """Fills `tensors` with the main process's values, and gives its `record` to all."""
        if self.world_size == 1:
            return record
        for tensor in tensors:
            # Element for element, whatever the layout in memory.
            values = tensor.contiguous()
            dist.broadcast(values, 0)
            tensor.copy_(values)
        box = [record]
        dist.broadcast_object_list(box, 0, device=self.device)
        return box[0]
