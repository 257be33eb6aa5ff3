"""Which of the kernels for Hopper GPUs have been found right, on this kind of GPU or on this very machine.

A kernel that is new to a chip may wait for ever, and a process that launched it is lost with its work. So none is
launched on trust: `edsr.kernels.triton.hopper.probe` tries each in a process of its own, and what it found is read
here. Verdicts come with `configs/<gpu>.json`, as `choices["hopper"]`, if they were found with the Triton and the
kernels of now; else from the user's cache folder, where they belong to one GPU, driver, Triton and version of the
kernels.

A verdict is a word or a line: RIGHT, or what went wrong. Its key is the kernel's name and a dtype: "c64 fp16". One that
chance may have had a hand in (DOUBTFUL) is kept for a day, and the kernel then tried again.
"""

import hashlib
import json
import time
from functools import cache
from pathlib import Path
from typing import Any

import torch
import triton

from ... import cache as kept
from .. import launch

KERNELS = ("c64", "copies", "wide", "block")  # as `edsr.kernels.triton.hopper.dispatch` names them
RIGHT = "right"
UNTRIED = "untried"  # begins what says nothing of the kernel: the GPU was taken, say
# A kernel may seem to hang where the GPU is busy with somebody else's work.
DOUBTFUL = (UNTRIED, "hangs", "not tried")
AGAIN = 24 * 3600.0  # seconds until what is doubtful is tried again
SOURCES = ("dispatch.py", "tma.py", "conv64.py", "conv_wide.py", "resblock.py")


def key(kernel: str, dtype: torch.dtype) -> str:
    return f"{kernel} {launch.NAMES[dtype]}"


ALL = [key(kernel, dtype) for dtype in (torch.float16, torch.bfloat16) for kernel in KERNELS]


@cache  # what a process computes with must not change while it runs
def settled(device: torch.device) -> dict[str, str]:
    """The verdicts that this process goes by, as they were when it first asked."""
    return known(device)


def known(device: torch.device) -> dict[str, str]:
    """All verdicts of now that are known of a CUDA device, by key."""
    gpu = torch.cuda.get_device_properties(device).name
    return {key: words for key, (words, _) in _read(path(gpu)).items()} | shipped(launch.choices(gpu).get("hopper", {}))


def wanting(device: torch.device) -> list[str]:
    """Keys of kernels that are yet to be tried, or to be tried again."""
    gpu = torch.cuda.get_device_properties(device).name
    made, found = _read(path(gpu)), shipped(launch.choices(gpu).get("hopper", {}))
    before = time.time() - AGAIN
    settled = {key for key, (words, at) in made.items() if not words.startswith(DOUBTFUL) or at > before}
    return [key for key in ALL if key not in settled | found.keys()]


def shipped(record: dict[str, Any]) -> dict[str, str]:
    """The verdicts of `choices["hopper"]`; none if another Triton made them, or they are about other kernels."""
    of_now = record.get("triton") == triton.__version__ and record.get("kernels") == fingerprint()
    return record["verdicts"] if of_now else {}


def to_ship(verdicts: dict[str, str]) -> dict[str, Any]:
    """What `shipped` reads."""
    return {"triton": triton.__version__, "kernels": fingerprint(), "verdicts": verdicts}


def keep(device: torch.device, verdict_key: str, words: str) -> bool:
    """Adds a verdict to those kept for this machine; whether the disk took it."""
    file = path(torch.cuda.get_device_properties(device).name)
    verdicts = _read(file) | {verdict_key: (words, time.time())}
    return kept.write_whole(file, json.dumps(verdicts, indent=1).encode())


def path(gpu: str) -> Path:
    """The file of a GPU's verdicts in the cache folder."""
    found_with = "\0".join((gpu, driver(), triton.__version__, fingerprint()))
    return kept.folder() / f"hopper-{hashlib.sha256(found_with.encode()).hexdigest()[:32]}.json"


def _read(file: Path) -> dict[str, tuple[str, float]]:
    """By key the words and when they were found, in seconds as of time.time(); nothing of a file that is damaged."""
    try:
        content = json.loads(file.read_bytes())
        return {str(key): (str(words), float(at)) for key, (words, at) in content.items()}
    except (OSError, ValueError, TypeError, AttributeError):
        return {}


@cache
def fingerprint() -> str:
    """Of the sources of the kernels."""
    sources = (Path(__file__).with_name(name).read_bytes() for name in SOURCES)
    return hashlib.sha256(b"\0".join(sources)).hexdigest()[:16]


@cache
def driver() -> str:
    """The version of NVIDIA's driver, as exactly as the system tells it."""
    try:
        return Path("/proc/driver/nvidia/version").read_text(encoding="ascii").splitlines()[0]
    except (OSError, ValueError, IndexError):
        # No public function of torch tells the driver's own version of CUDA.
        return str(torch._C._cuda_getDriverVersion()) if hasattr(torch._C, "_cuda_getDriverVersion") else "unknown"
