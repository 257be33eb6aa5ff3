"""Which of the kernels for Hopper GPUs have been verified, on this kind of GPU or on this very machine.

A kernel that is new to a chip may wait for ever, and a process that launched it is lost with its work. So none is
launched on trust: `edsr.kernels.triton.hopper.probe` tries each in a process of its own, and what it found is read
here. Statuses come with `configs/<gpu>.json`, as `choices["hopper"]`, if they were found with the Triton and the
kernels of now; else from the user's cache folder, where they belong to one GPU, driver, Triton and version of the
kernels.

A status is a word or a line: VERIFIED, or what went wrong. Its key is the kernel's name and a dtype: "c64 fp16". One
that chance may have had a hand in (TRANSIENT) holds for a day, and the kernel is then tried again.
"""

import hashlib
import json
import time
from functools import cache
from pathlib import Path
from typing import Any

import torch
import triton

from ... import cache as cache_folder
from .. import launch

KERNELS = ("c64", "copies", "wide", "block")  # as `edsr.kernels.triton.hopper.dispatch` names them
VERIFIED = "verified"
UNTRIED = "untried"  # begins a status that says nothing of the kernel: the GPU was taken, say
# A kernel may seem to hang where the GPU is busy with somebody else's work.
TRANSIENT = (UNTRIED, "hangs", "not tried")
RETRY_SECONDS = 24 * 3600.0  # until a transient status is checked again
SOURCES = ("dispatch.py", "tma.py", "conv64.py", "conv_wide.py", "resblock.py")


def key(kernel: str, dtype: torch.dtype) -> str:
    return f"{kernel} {launch.DTYPE_NAMES[dtype]}"


ALL = [key(kernel, dtype) for dtype in (torch.float16, torch.bfloat16) for kernel in KERNELS]


@cache  # what a process computes with must not change while it runs
def process_statuses(device: torch.device) -> dict[str, str]:
    """The statuses that this process goes by, as they were when it first asked."""
    return read_statuses(device)


def read_statuses(device: torch.device) -> dict[str, str]:
    """All statuses that are known of a CUDA device now, by key."""
    gpu = torch.cuda.get_device_properties(device).name
    cached = {key: status for key, (status, _) in _read(cache_path(gpu)).items()}
    return cached | shipped_statuses(launch.choices(gpu).get("hopper", {}))


def pending(device: torch.device) -> list[str]:
    """Keys of kernels that are yet to be tried, or to be tried again."""
    gpu = torch.cuda.get_device_properties(device).name
    cached, shipped = _read(cache_path(gpu)), shipped_statuses(launch.choices(gpu).get("hopper", {}))
    oldest = time.time() - RETRY_SECONDS
    final = {key for key, (status, at) in cached.items() if not status.startswith(TRANSIENT) or at > oldest}
    return [key for key in ALL if key not in final | shipped.keys()]


def shipped_statuses(record: dict[str, Any]) -> dict[str, str]:
    """The statuses of `choices["hopper"]`; none if another Triton made them, or they are about other kernels."""
    current = record.get("triton") == triton.__version__ and record.get("kernels") == fingerprint()
    return record["statuses"] if current else {}


def shipping_record(statuses: dict[str, str]) -> dict[str, Any]:
    """What `shipped_statuses` reads."""
    return {"triton": triton.__version__, "kernels": fingerprint(), "statuses": statuses}


def save_status(device: torch.device, key: str, status: str) -> bool:
    """Adds a status to those of this machine; whether the disk took it."""
    file = cache_path(torch.cuda.get_device_properties(device).name)
    statuses = _read(file) | {key: (status, time.time())}
    return cache_folder.write_whole(file, json.dumps(statuses, indent=1).encode())


def cache_path(gpu: str) -> Path:
    """The file of a GPU's statuses in the cache folder."""
    found_with = "\0".join((gpu, driver(), triton.__version__, fingerprint()))
    return cache_folder.folder() / f"hopper-{hashlib.sha256(found_with.encode()).hexdigest()[:32]}.json"


def _read(file: Path) -> dict[str, tuple[str, float]]:
    """By key the status and when it was found, in seconds as of time.time(); nothing of a damaged file."""
    try:
        content = json.loads(cache_folder.read_private(file) or b"")
        return {str(key): (str(status), float(at)) for key, (status, at) in content.items()}
    except (ValueError, TypeError, AttributeError, RecursionError):
        return {}


@cache
def fingerprint() -> str:
    """Hash of the kernels' sources."""
    sources = (Path(__file__).with_name(name).read_bytes() for name in SOURCES)
    return hashlib.sha256(b"\0".join(sources)).hexdigest()[:16]


@cache
def driver() -> str:
    """The version of NVIDIA's driver, as exactly as the system reports it."""
    try:
        return Path("/proc/driver/nvidia/version").read_text(encoding="ascii").splitlines()[0]
    except (OSError, ValueError, IndexError):
        # No public function of torch tells the driver's own version of CUDA.
        return str(torch._C._cuda_getDriverVersion()) if hasattr(torch._C, "_cuda_getDriverVersion") else "unknown"
