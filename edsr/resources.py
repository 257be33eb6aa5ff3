"""What the machine, or the container, leaves this process: memory and cores."""

import os
import sys
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path, PurePosixPath


def available_cores() -> int:
    """How many of the machine's cores this process may compute on."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def available_memory(root: str | os.PathLike[str] = "/") -> int:
    """Bytes of memory that can be had without swapping: of the system's, and of what limits leave the process.

    Limits are those of its cgroups and that of its addresses.

    A container may have far less than the machine that it runs on. What cgroups hold in cached files counts as
    available, as it does in the system's own figure.

    Args:
        root: where `proc/self/cgroup` and `sys/fs/cgroup` are looked for; for tests.
    """
    import psutil  # takes 30 ms

    return min((psutil.virtual_memory().available, *_cgroup_headroom(Path(root)), *_address_space()))


def _address_space() -> Iterator[int]:
    """Bytes of addresses that the process may still map, where it has a limit (`ulimit -v`)."""
    if sys.platform != "win32":
        import resource

        import psutil

        limit, _ = resource.getrlimit(resource.RLIMIT_AS)
        if limit != resource.RLIM_INFINITY:
            yield max(0, limit - psutil.Process().memory_info().vms)


def _cgroup_headroom(root: Path) -> Iterator[int]:
    """Bytes below the limit of each memory cgroup that the process is in, from its own up; of versions 1 and 2."""
    try:
        lines = (root / "proc/self/cgroup").read_text(encoding="utf-8").splitlines()
    except (OSError, ValueError):
        return
    for line in lines:  # number:controllers:path, without controllers in version 2
        _, controllers, own = line.split(":", 2)
        mount, files, cached = (
            root / "sys/fs/cgroup",
            ("memory.max", "memory.current"),
            ("active_file", "inactive_file"),
        )
        if controllers:
            if "memory" not in controllers.split(","):
                continue
            mount, files = mount / "memory", ("memory.limit_in_bytes", "memory.usage_in_bytes")
            cached = "total_active_file", "total_inactive_file"
        path = PurePosixPath(own)
        for group in path, *path.parents:
            folder = mount / str(group).lstrip("/")
            # In a container the mount may begin at the own group; and there may be no limit: "max".
            with suppress(OSError, ValueError):
                limit, used = (int((folder / file).read_text(encoding="ascii")) for file in files)
                statistics = (folder / "memory.stat").read_text(encoding="ascii").splitlines()
                used -= sum(int(size) for name, size in map(str.split, statistics) if name in cached)
                yield max(0, limit - used)
