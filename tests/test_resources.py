"""Free memory, a container's limit included."""

from types import SimpleNamespace

import psutil
import pytest

from edsr.resources import available_memory


def cgroups(root, lines, files):
    """A fake of what Linux shows: the lines of /proc/self/cgroup, and the files below /sys/fs/cgroup."""
    for name, text in {
        "proc/self/cgroup": lines,
        **{f"sys/fs/cgroup/{name}": text for name, text in files.items()},
    }.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text)


def version2(limit, used, active=0, inactive=0):
    statistics = f"anon 7\nfile 9\nactive_file {active}\ninactive_file {inactive}\n"
    return {"memory.max": f"{limit}\n", "memory.current": f"{used}\n", "memory.stat": statistics}


def version1(limit, used, active=0, inactive=0):
    statistics = f"active_file 1\ninactive_file 1\ntotal_active_file {active}\ntotal_inactive_file {inactive}\n"
    names = "memory.limit_in_bytes", "memory.usage_in_bytes", "memory.stat"
    return dict(zip(names, (f"{limit}\n", f"{used}\n", statistics), strict=True))


def below(folder, files):
    return {f"{folder}/{name}": text for name, text in files.items()}


UNLIMITED = 9223372036854771712  # as version 1 shows it

CGROUPS = {
    "version 2": ("0::/job\n", below("job", version2(9000, 4000)), 5000),
    "cached files count as available": ("0::/job\n", below("job", version2(9000, 8900, 1000, 500)), 1600),
    "nothing is left": ("0::/job\n", below("job", version2(9000, 9500)), 0),
    "a container's own": ("0::/\n", version2(9000, 4000), 5000),
    "the narrowest of those above": (
        "0::/user/session/job\n",
        below("user", version2(20000, 19000)) | below("user/session/job", version2(9000, 1000)),
        1000,
    ),
    "no limit below one": (
        "0::/user/job\n",
        below("user", version2(20000, 19000)) | below("user/job", version2("max", 10)),
        1000,
    ),
    "version 1": ("4:memory:/job\n0::/\n", below("memory/job", version1(9000, 4000, 200, 100)), 5300),
    "version 1, several controllers": ("4:cpu,memory:/job\n", below("memory/job", version1(9000, 4000)), 5000),
    "version 1 without a namespace": (
        "4:memory:/docker/0123\n3:cpu:/docker/0123\n",
        below("memory", version1(9000, 4000)),
        5000,
    ),
}


@pytest.mark.parametrize("lines, files, available", CGROUPS.values(), ids=CGROUPS)
def test_memory_minds_the_limit_of_cgroups(tmp_path, lines, files, available):
    cgroups(tmp_path, lines, files)
    assert available_memory(tmp_path) == available


@pytest.mark.parametrize(
    "lines, files",
    [
        ("0::/job\n", below("job", version2("max", 4000))),
        ("4:memory:/job\n", below("memory/job", version1(UNLIMITED, 4000))),
        ("3:cpu:/job\n", below("job", version2(9000, 4000))),  # of version 1, and not memory
        ("0::/job\n", below("job", version2("garbled", 4000))),
        ("0::/job\n", {}),
    ],
)
def test_memory_without_a_limit_is_the_system_s(tmp_path, lines, files, monkeypatch):
    cgroups(tmp_path, lines, files)
    monkeypatch.setattr(psutil, "virtual_memory", lambda: SimpleNamespace(available=123))
    assert available_memory(tmp_path) == available_memory(tmp_path / "no such place") == 123


def test_memory_of_this_machine():
    assert 2**20 < available_memory() < psutil.virtual_memory().total
