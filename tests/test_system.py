"""Files and folders that appear whole or not at all."""

import ctypes
import errno
import os
import shutil
import stat
import subprocess
import sys
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace

import pytest

from edsr import system
from edsr.system import atomic_file, atomic_folder, remove_abandoned
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


def write_into(kind, path, what: bytes) -> None:
    with kind(path) as written:
        if kind is atomic_file:
            written.write(what)
        else:
            (written / "a").write_bytes(what)


@pytest.mark.skipif(sys.platform == "win32", reason="open files cannot be deleted there")
@pytest.mark.parametrize("kind", [atomic_file, atomic_folder])
@pytest.mark.parametrize("when", ["before it is opened", "before it is locked", "while it is tried"])
def test_another_process_may_remove_what_was_just_made(tmp_path, kind, when, monkeypatch):
    """It looks for what is abandoned in the moment between making and locking: then another is made."""
    lock, opened, others = system._lock, os.open, []

    def come_first(part) -> None:
        if others:
            return
        others.append(opened(part, os.O_RDONLY))
        lock(others[0])
        if when != "while it is tried":
            os.close(others[0])
            remove_abandoned(tmp_path)

    def lock_late(file):
        monkeypatch.setattr(system, "_lock", lock)
        (part,) = tmp_path.glob(".edsr-*")
        come_first(part)
        lock(file)

    def open_late(path, *more, **options):
        if str(path).endswith(".part") and os.path.isdir(path):
            come_first(path)
        return opened(path, *more, **options)

    if when == "before it is opened":
        monkeypatch.setattr(os, "open", open_late)
    else:
        monkeypatch.setattr(system, "_lock", lock_late)
    write_into(kind, tmp_path / "new", b"whole")
    assert names(tmp_path) == ["new"]
    assert ((tmp_path / "new") if kind is atomic_file else tmp_path / "new" / "a").read_bytes() == b"whole"
    assert len(others) == (0 if kind is atomic_file and when == "before it is opened" else 1)
    if when == "while it is tried":
        os.close(others[0])


@pytest.mark.skipif(sys.platform == "win32", reason="deletes no open files")
def test_what_is_abandoned_is_locked_until_it_is_gone(tmp_path, monkeypatch):
    (tmp_path / ".edsr-0123456789ab.part").touch()
    unlink, seen = Path.unlink, []

    def look(path):
        with open(path, "rb") as file, pytest.raises(BlockingIOError):
            system._lock(file)
        seen.append(path)
        unlink(path)

    monkeypatch.setattr(Path, "unlink", look)
    remove_abandoned(tmp_path)
    assert len(seen) == 1 and names(tmp_path) == []


@pytest.mark.parametrize("exchange", [True, False])
def test_another_may_make_the_same_folder(tmp_path, monkeypatch, exchange):
    """It appears, or disappears, in the moment before the name is given: the last one has it."""
    target, rename, exists, moments = tmp_path / "a", os.rename, os.path.lexists, ["comes", "goes", "comes again"]
    if not exchange:
        monkeypatch.setattr(system, "_rename_in_one_step", lambda *_: False)
    target.mkdir()
    (target / "old").touch()

    def look(path):
        """What is true when it is looked at is not any more when it counts."""
        found = exists(path)
        if path == target and moments:
            moments.pop()
            shutil.rmtree(target) if found else write_into(atomic_folder, target, b"other")
        return found

    monkeypatch.setattr(os.path, "lexists", look)
    write_into(atomic_folder, target, b"ours")
    assert not moments and names(tmp_path) == ["a"] and (target / "a").read_bytes() == b"ours"
    moments, looked = [], []

    def come_between(source, new):
        """Another takes the name that the old folder has just left."""
        rename(source, new)
        if source == target and not looked:
            looked.append(new)
            write_into(atomic_folder, target, b"other")

    monkeypatch.setattr(os, "rename", come_between)
    write_into(atomic_folder, target, b"last")
    assert names(tmp_path) == ["a"] and (target / "a").read_bytes() == b"last" and bool(looked) != exchange


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
