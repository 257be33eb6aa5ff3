"""Files and folders that appear whole or not at all, and the memory there is."""

import ctypes
import errno
import os
import stat
import subprocess
import sys
from contextlib import nullcontext
from types import SimpleNamespace

import psutil
import pytest

from edsr import system
from edsr.system import atomic_file, atomic_folder, available_memory, remove_abandoned
from tests.conftest import ROOT

KILLED = """
import os, signal, sys
from edsr.system import atomic_file, atomic_folder
with atomic_folder("folder") as folder, atomic_file("file") as file:
    (folder / "a").write_bytes(b"half")
    file.write(b"half")
    file.flush()
    print("written", flush=True)
    sys.stdin.readline()
    os.kill(os.getpid(), signal.SIGKILL)
"""


def names(folder):
    return sorted(path.name for path in folder.iterdir())


@pytest.mark.parametrize("overwrite", [False, True])
def test_a_file_appears_at_the_end(tmp_path, overwrite):
    with atomic_file(tmp_path / "a", overwrite) as file:
        file.write(b"one")
        assert not (tmp_path / "a").exists()
    assert (tmp_path / "a").read_bytes() == b"one" and names(tmp_path) == ["a"]


def test_a_file_written_by_its_name(tmp_path):
    with atomic_file(tmp_path / "a") as file:
        with open(file.name, "wb") as other:
            other.write(b"one")
        file.seek(0, os.SEEK_END)
        file.write(b" and two")
    assert (tmp_path / "a").read_bytes() == b"one and two"


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt])
def test_a_file_is_left_as_it_was_by_an_error(tmp_path, error):
    (tmp_path / "a").write_bytes(b"old")
    with pytest.raises(error), atomic_file(tmp_path / "a") as file:
        file.write(b"new")
        raise error
    assert (tmp_path / "a").read_bytes() == b"old" and names(tmp_path) == ["a"]


@pytest.mark.parametrize("links", [True, False])
def test_a_file_that_is_there_is_replaced_only_if_wanted(tmp_path, links, monkeypatch):
    def no_links(*_):
        raise OSError("no links here")

    if not links:
        monkeypatch.setattr(os, "link", no_links)
    (tmp_path / "a").write_bytes(b"old")
    with pytest.raises(FileExistsError), atomic_file(tmp_path / "a", overwrite=False) as file:
        file.write(b"new")
    assert (tmp_path / "a").read_bytes() == b"old" and names(tmp_path) == ["a"]
    with atomic_file(tmp_path / "b", overwrite=False) as file:
        file.write(b"new")
    with atomic_file(tmp_path / "a") as file:
        file.write(b"new")
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes() == b"new"
    assert names(tmp_path) == ["a", "b"]


@pytest.mark.skipif(sys.platform == "win32", reason="syncs no folders")
@pytest.mark.parametrize("code", [errno.EINVAL, errno.EIO])
def test_names_are_synced_where_the_system_can(tmp_path, monkeypatch, code):
    synced, sync = [], os.fsync

    def fsync(handle):
        if stat.S_ISDIR(os.fstat(handle).st_mode):
            synced.append(os.fstat(handle).st_ino)
            raise OSError(code, os.strerror(code))
        sync(handle)

    monkeypatch.setattr(os, "fsync", fsync)
    with pytest.raises(OSError) if code == errno.EIO else nullcontext(), atomic_file(tmp_path / "a") as file:
        file.write(b"new")
    assert synced == [tmp_path.stat().st_ino]
    assert (tmp_path / "a").read_bytes() == b"new" and names(tmp_path) == ["a"]


@pytest.mark.skipif(sys.platform != "linux", reason="Linux's renameat2")
@pytest.mark.parametrize("code", [0, errno.EINVAL, errno.ENOSYS, errno.EIO])
def test_a_folder_is_replaced_in_one_step(tmp_path, monkeypatch, code):
    """Where the file system cannot, in two, and where it fails, not at all."""
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "old").write_bytes(b"")
    renamed, rename = [], os.rename
    monkeypatch.setattr(os, "rename", lambda *names: (renamed.append(names), rename(*names)))
    if code:
        library = SimpleNamespace(renameat2=lambda *_: -1)
        monkeypatch.setattr(ctypes, "CDLL", lambda *_, **__: library)
        monkeypatch.setattr(ctypes, "get_errno", lambda: code)
    with pytest.raises(OSError) if code == errno.EIO else nullcontext(), atomic_folder(tmp_path / "a") as folder:
        (folder / "new").write_bytes(b"")
    assert names(tmp_path) == ["a"] and names(tmp_path / "a") == ["old" if code == errno.EIO else "new"]
    assert len(renamed) == (2 if code in (errno.EINVAL, errno.ENOSYS) else 0)


@pytest.mark.skipif(sys.platform == "win32", reason="has no such permissions")
def test_a_file_has_the_usual_permissions(tmp_path):
    (tmp_path / "usual").write_bytes(b"")
    with atomic_file(tmp_path / "a"):
        pass
    assert (tmp_path / "a").stat().st_mode == (tmp_path / "usual").stat().st_mode


def test_without_a_folder_to_write_into(tmp_path):
    for kind in atomic_file, atomic_folder:
        with pytest.raises(FileNotFoundError), kind(tmp_path / "none" / "a"):
            pytest.fail("the block must not run")


@pytest.mark.parametrize("old", [False, True])
def test_a_folder_appears_at_the_end(tmp_path, old):
    if old:
        (tmp_path / "a").mkdir()
        (tmp_path / "a" / "old").write_bytes(b"x")
    with atomic_folder(tmp_path / "a") as folder:
        (folder / "deep").mkdir()
        (folder / "deep" / "new").write_bytes(b"y")
        assert (tmp_path / "a").exists() == old
    assert names(tmp_path) == ["a"] and names(tmp_path / "a") == ["deep"]
    assert (tmp_path / "a" / "deep" / "new").read_bytes() == b"y"


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt])
def test_a_folder_is_left_as_it_was_by_an_error(tmp_path, error):
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "old").write_bytes(b"x")
    with pytest.raises(error), atomic_folder(tmp_path / "a") as folder:
        (folder / "new").write_bytes(b"y")
        raise error
    assert names(tmp_path) == ["a"] and names(tmp_path / "a") == ["old"]


def test_a_folder_that_cannot_be_renamed_leaves_the_old_one(tmp_path, monkeypatch):
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "old").write_bytes(b"x")
    rename = os.rename

    def fail(source, target):
        if os.path.exists(os.path.join(source, "new")):
            raise OSError("refused")
        rename(source, target)

    monkeypatch.setattr(os, "rename", fail)
    monkeypatch.setattr(system, "_rename_in_one_step", lambda *_: False)
    with pytest.raises(OSError, match="refused"), atomic_folder(tmp_path / "a") as folder:
        (folder / "new").write_bytes(b"y")
    assert names(tmp_path) == ["a"] and names(tmp_path / "a") == ["old"]


@pytest.mark.skipif(sys.platform == "win32", reason="needs SIGKILL")
def test_what_a_killed_process_leaves_is_removed_but_not_what_is_being_written(tmp_path):
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    (tmp_path / ".edsr-notes").write_bytes(b"somebody's own")
    with subprocess.Popen(
        [sys.executable, "-c", KILLED], cwd=tmp_path, env=environment, stdin=-1, stdout=-1, text=True
    ) as process:
        assert process.stdin and process.stdout
        assert process.stdout.readline() == "written\n"
        left = names(tmp_path)
        assert len(left) == 3
        remove_abandoned(tmp_path)
        assert names(tmp_path) == left
        process.stdin.write("\n")
        process.stdin.flush()
        process.wait()
    assert names(tmp_path) == left
    remove_abandoned(tmp_path)
    assert names(tmp_path) == [".edsr-notes"]


@pytest.mark.skipif(sys.platform == "win32", reason="uses POSIX's permissions")
def test_what_is_left_may_be_read_only(tmp_path):
    """As a result has that replaces a read-only file; not as root, who may write anything."""
    (tmp_path / ".edsr-0123456789ab.part").touch(0o444)
    script = "import fcntl, os, sys\nfrom pathlib import Path\nfrom edsr.system import remove_abandoned\n"
    if os.getuid() == 0:
        script += "os.setgroups([])\nos.setuid(65534)\n"
    for folder in (tmp_path, *tmp_path.parents[:-2]):
        folder.chmod(0o777 if folder == tmp_path else folder.stat().st_mode | 0o055)
    script += "remove_abandoned(Path(sys.argv[1]))"
    subprocess.run([sys.executable, "-c", script, tmp_path], cwd=ROOT, check=True)
    assert names(tmp_path) == []


def test_an_error_names_the_file_that_was_asked_for(tmp_path):
    (tmp_path / "folder").mkdir()
    for path in tmp_path / "none" / "a.txt", tmp_path / "folder":
        with pytest.raises(OSError) as caught, atomic_file(path):
            pass
        assert caught.value.filename == str(path)
    assert names(tmp_path) == ["folder"]


# ---- memory


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
