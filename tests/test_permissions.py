"""Who may read what is written, and what is no place to write to."""

import os
import socket
import stat
import sys

import pytest
from PIL import Image

from edsr.cli import main
from edsr.permissions import usual_mode
from edsr.system import atomic_file
from edsr.weights import save_model
from tests.conftest import make_image, network
from tests.support.image_files import names

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="has no such permissions")


def mode(path):
    return stat.S_IMODE(os.stat(path).st_mode)


@pytest.fixture(params=[0o022, 0o002, 0o077])
def umask(request):
    before = os.umask(request.param)
    yield request.param
    os.umask(before)


def test_usual_permissions(tmp_path, umask, monkeypatch):
    (tmp_path / "a").touch()
    assert usual_mode() == mode(tmp_path / "a") == 0o666 & ~umask
    monkeypatch.setattr("builtins.open", lambda *_, **__: (_ for _ in ()).throw(FileNotFoundError()))
    assert usual_mode() == usual_mode() == 0o666 & ~umask


@pytest.mark.parametrize(
    ("source", "old", "want"),
    [
        (0o644, None, 0o644),
        (0o600, None, 0o600),
        (0o640, None, 0o640),
        (0o604, None, 0o604),
        (0o444, None, 0o644),
        (0o400, None, 0o600),
        (0o755, None, 0o644),
        (0o644, 0o640, 0o640),
        (0o644, 0o600, 0o600),
        (0o644, 0o666, 0o666),
        (0o640, 0o666, 0o660),
        (0o600, 0o640, 0o600),
        (None, 0o640, 0o640),
        (None, None, 0o644),
    ],
)
def test_a_result_is_no_more_readable(tmp_path, source, old, want):
    a, b = tmp_path / "a", tmp_path / "b"
    for path, permissions in (a, source), (b, old):
        if permissions is not None:
            path.touch()
            path.chmod(permissions)
    before = os.umask(0o022)
    try:
        with atomic_file(b, sources=[a]) as file:
            assert mode(file.name) == 0o600
            file.write(b"x")
            file.flush()
            assert mode(file.name) == 0o600
    finally:
        os.umask(before)
    assert mode(b) == want and b.read_bytes() == b"x"


@pytest.mark.skipif(not hasattr(os, "getuid") or os.getuid() != 0, reason="only root gives files away")
def test_another_group_may_read_no_more(tmp_path, monkeypatch):
    a, b = tmp_path / "a", tmp_path / "b"
    a.touch(0o640)
    os.chown(a, -1, 4321)
    with atomic_file(b, sources=[a]):
        pass
    assert mode(b) == 0o640 and os.stat(b).st_gid == 4321
    with atomic_file(b):  # and so does what replaces it
        pass
    assert mode(b) == 0o640 and os.stat(b).st_gid == 4321

    def refuse(*_):
        raise PermissionError

    b.unlink()
    monkeypatch.setattr(os, "fchown", refuse)
    with atomic_file(b, sources=[a]):
        pass
    assert mode(b) == 0o600


def test_commands_keep_to_it(home, run, upscale):
    for kind in "png", "jpg":
        Image.fromarray(make_image(9, 9)).save(f"private.{kind}")
        os.chmod(f"private.{kind}", 0o600)
    assert upscale("private.png", "private.jpg", "photo.png", "-o", "out/")[0] == 0
    assert [mode(f"out/{name}") for name in names("out")] == [0o644, 0o600, 0o600]
    os.chmod("out/photo_x2.png", 0o640)
    assert upscale("photo.png", "-o", "out", "--overwrite")[0] == 0 and mode("out/photo_x2.png") == 0o640
    for flags, name in ([], "private_compare.png"), (["--html"], "private_compare.html"):
        assert run("compare", "private.png", "--model", "m.safetensors", *flags)[0] == 0 and mode(name) == 0o600


def test_a_link_is_followed(home, upscale):
    os.mkdir("there")
    for name, target in ("b.png", "there/real.png"), ("c.png", "there/none.png"):
        os.symlink(target, name)
    (home / "there" / "real.png").write_bytes(b"old")
    code, _, err = upscale("photo.png", "-o", "b.png")
    assert code == 1 and "--overwrite" in err and (home / "there" / "real.png").read_bytes() == b"old"
    for name in "b.png", "c.png":
        assert upscale("photo.png", "-o", name, "--overwrite")[0] == 0
        assert os.path.islink(name) and Image.open(name).size == (80, 60)
    assert names("there") == ["none.png", "real.png"]
    os.symlink("d.png", "d.png")
    assert upscale("photo.png", "-o", "d.png", "--overwrite")[0] == 1 and os.path.islink("d.png")
    os.symlink("nowhere/x.png", "e.png")
    code, _, err = upscale("photo.png", "-o", "e.png", "--overwrite")
    assert code == 1 and err.count("\n") == 1 and os.path.islink("e.png")


@pytest.mark.parametrize("kind", ["fifo", "socket", "device"])
@pytest.mark.parametrize("linked", [True, False])
def test_what_is_no_file_is_refused(home, upscale, run, kind, linked):
    for end in ".png", ".safetensors":
        name = f"{kind}{end}"
        if kind == "fifo":
            os.mkfifo(name)
        elif kind == "socket":
            with socket.socket(socket.AF_UNIX) as place:
                place.bind(name)
        else:
            os.symlink("/dev/null", name)
        if linked:
            os.rename(name, f"x{name}")
            os.symlink(f"x{name}", name)
    commands = {
        ".png": ["upscale", "photo.png", "--model", "m.safetensors", "-o", f"{kind}.png", "--overwrite"],
        ".safetensors": ["convert", "m.safetensors", f"{kind}.safetensors", "--overwrite"],
    }
    commands["compare"] = ["compare", "photo.png", "--model", "m.safetensors", "-o", f"{kind}.png", "--overwrite"]
    for command in commands.values():
        before = {name: os.lstat(name).st_mode for name in names(".")}
        code, out, err = run(*command)
        assert code == 1 and not out and "FIFO or socket" in err and err.count("\n") == 1
        assert {name: os.lstat(name).st_mode for name in names(".")} == before


@pytest.mark.parametrize("ending", [".safetensors", ".pt", ".pth"])
def test_converted_weights_are_no_more_readable(tmp_path, ending):
    """Nor is a mixture than any of its parts."""
    for name, permissions in ("open", 0o644), ("closed", 0o600):
        save_model(network(), tmp_path / f"{name}.safetensors")
        (tmp_path / f"{name}.safetensors").chmod(permissions)
    opened, closed = tmp_path / "open.safetensors", tmp_path / "closed.safetensors"
    for number, (source, want) in enumerate(
        {opened: 0o644, closed: 0o600, f"{opened}:0.5+{closed}:0.5": 0o600, "edsr-baseline": 0o644}.items()
    ):
        out = tmp_path / f"{number}{ending}"
        assert main(["convert", str(source), str(out), "--quiet"]) == 0
        assert mode(out) == want
