"""The user's cache folder."""

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
