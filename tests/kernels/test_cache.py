"""The user's cache folder."""

import os
import stat
import sys
from pathlib import Path

import pytest

from edsr.kernels import cache


def test_xdg_cache_home(monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert cache.folder() == tmp_path / "edsr-triton"
    monkeypatch.setenv("XDG_CACHE_HOME", "~/kept")
    assert cache.folder() == Path.home() / "kept" / "edsr-triton"


@pytest.mark.skipif(sys.platform != "linux", reason="where Linux keeps caches")
@pytest.mark.parametrize("unset", [True, False])
def test_the_usual_folder(monkeypatch, tmp_path, unset):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("XDG_CACHE_HOME", "")
    if unset:
        monkeypatch.delenv("XDG_CACHE_HOME")
    assert cache.folder() == tmp_path / ".cache" / "edsr-triton"


def test_files_are_written_whole(tmp_path):
    path = tmp_path / "new" / "file"
    for content in b"first", b"second":
        assert cache.write_whole(path, content) and path.read_bytes() == content
    assert list(path.parent.iterdir()) == [path]


def test_what_cannot_be_written_leaves_nothing(tmp_path):
    path = tmp_path / "file"
    path.mkdir()
    assert not cache.write_whole(path, b"content")
    assert list(tmp_path.iterdir()) == [path]


POSIX = pytest.mark.skipif(sys.platform == "win32", reason="owners and modes")


@pytest.mark.parametrize("relative", ["rel", "./x", "../up", "a/b"])
def test_a_relative_folder_is_ignored(monkeypatch, tmp_path, relative):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.setenv("XDG_CACHE_HOME", relative)
    assert cache.folder() == tmp_path / "home" / ".cache" / "edsr-triton"


@POSIX
@pytest.mark.parametrize("umask", [0o000, 0o022, 0o077, 0o777])
def test_folders_and_files_are_the_users_whatever_the_umask(tmp_path, umask):
    path = tmp_path / "a" / "b" / "file"
    before = os.umask(umask)
    try:
        assert cache.write_whole(path, b"content")
        with cache.open_private(path.with_name("log")) as file:
            file.write(b"line")
    finally:
        os.umask(before)
    modes = {p.name: stat.S_IMODE(p.stat().st_mode) for p in (path, path.parent, path.parent.parent)}
    assert modes == {"file": 0o600, "b": 0o700, "a": 0o700}
    assert cache.read_private(path) == b"content"


def shared_folder(path):
    path.parent.chmod(0o777)


def group_folder(path):
    path.parent.chmod(0o770)


def shared_file(path):
    path.chmod(0o666)


def linked_file(path):
    path.rename(path.with_name("elsewhere"))
    path.symlink_to("elsewhere")


def pipe(path):
    path.unlink()
    os.mkfifo(path)


def folder(path):
    path.unlink()
    path.mkdir()


@POSIX
@pytest.mark.parametrize("spoil", [shared_folder, group_folder, shared_file, linked_file, pipe, folder])
def test_what_others_can_write_is_not_read(tmp_path, spoil, caplog):
    path = tmp_path / "own" / "file"
    assert cache.write_whole(path, b"content") and cache.read_private(path) == b"content"
    spoil(path)
    cache._warn.cache_clear()
    caplog.set_level("WARNING", "edsr")
    assert cache.read_private(path) is None and cache.read_private(path) is None
    assert len(caplog.messages) == (spoil not in (linked_file, folder))  # said once


@POSIX
def test_what_belongs_to_others_is_neither_read_nor_written(tmp_path, monkeypatch, caplog):
    path = tmp_path / "own" / "file"
    assert cache.write_whole(path, b"content")
    own = os.geteuid()
    monkeypatch.setattr(os, "geteuid", lambda: own + 1)
    cache._warn.cache_clear()
    assert cache.read_private(path) is None and not cache.write_whole(path, b"mine")
    assert "belongs to another user" in caplog.text
    with pytest.raises(OSError, match="another user"):
        cache.open_private(path)
    monkeypatch.undo()
    assert path.read_bytes() == b"content"


@POSIX
@pytest.mark.skipif(hasattr(os, "geteuid") and os.geteuid() != 0, reason="only root can give files away")
@pytest.mark.parametrize("which", ["file", "folder"])
def test_files_and_folders_given_away(tmp_path, which):
    path = tmp_path / "own" / "file"
    assert cache.write_whole(path, b"content")
    os.chown(path if which == "file" else path.parent, 12345, 12345)
    assert cache.read_private(path) is None


@POSIX
def test_nothing_is_written_where_others_can_write(tmp_path):
    shared = tmp_path / "shared"
    shared.mkdir()
    shared.chmod(0o777)
    (tmp_path / "precious").write_bytes(b"kept")
    (shared / "log").symlink_to(tmp_path / "precious")
    assert not cache.write_whole(shared / "file", b"content")
    with pytest.raises(OSError, match="other users can write"):
        cache.open_private(shared / "log")
    shared.chmod(0o700)
    with pytest.raises(OSError):
        cache.open_private(shared / "log")  # a link is not followed
    assert (tmp_path / "precious").read_bytes() == b"kept" and [p.name for p in shared.iterdir()] == ["log"]


@POSIX
def test_what_was_checked_is_what_is_read(tmp_path, monkeypatch):
    """A file exchanged after the check changes nothing."""
    path = tmp_path / "own" / "file"
    assert cache.write_whole(path, b"content")
    check = cache._check

    def exchange(where, status, kind):
        check(where, status, kind)
        if where == path:
            path.unlink()
            path.write_bytes(b"evil")
        else:  # the folder
            path.parent.rename(tmp_path / "moved")
            path.parent.mkdir(mode=0o777)
            path.write_bytes(b"evil")
            monkeypatch.setattr(cache, "_check", check)

    monkeypatch.setattr(cache, "_check", exchange)
    assert cache.read_private(path) == b"content"
