"""Files and folders that appear whole or not at all."""

import os
import subprocess
import sys

import pytest

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
