"""What can be said about Windows without one: nothing that it lacks is used unguarded, and a program that finds itself
there, without it, does what it does elsewhere.

Machine code for Windows is in `tests/kernels/test_jit.py`.
"""

import ast
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from packaging.requirements import Requirement
from PIL import Image

from edsr.cli import main
from edsr.images import ImageReader, ImageWriter
from edsr.kernels.triton.hopper import probe
from edsr.weights import save_model
from tests.conftest import ROOT, network
from tests.support.processes import run

MODULES = {"fcntl", "grp", "posix", "pty", "pwd", "resource", "syslog", "termios", "tty"}


def words(text: str) -> set[str]:
    return set(text.split())


FUNCTIONS = {  # of Python 3.11 for Linux that 3.11 for Windows lacks
    "os": words(
        """
        chown chroot fchdir fchmod fchown fork forkpty fpathconf fstatvfs geteuid getegid getgid getgroups getloadavg
        getpgid getpgrp getpriority getresuid getsid getuid get_blocking initgroups killpg lchown lockf major makedev
        memfd_create minor mkfifo mknod nice openpty pathconf pidfd_open pipe2 posix_fadvise posix_fallocate posix_spawn
        posix_spawnp pread preadv pwrite pwritev readv sched_getaffinity sched_setaffinity sched_yield sendfile
        set_blocking setegid seteuid setgid setgroups setpgid setpriority setregid setreuid setsid setuid splice statvfs
        sync sysconf tcgetpgrp tcsetpgrp ttyname uname wait wait3 wait4 waitid writev WNOHANG WIFEXITED WEXITSTATUS
        WIFSIGNALED WTERMSIG O_ASYNC O_CLOEXEC O_DIRECT O_DIRECTORY O_DSYNC O_NOATIME O_NOCTTY O_NOFOLLOW O_NONBLOCK
        O_PATH O_SYNC O_TMPFILE
        """
    ),
    "signal": words(
        """
        SIGALRM SIGCHLD SIGCONT SIGHUP SIGKILL SIGPIPE SIGQUIT SIGSTOP SIGTSTP SIGTTIN SIGTTOU SIGUSR1 SIGUSR2 SIGWINCH
        alarm getitimer pause pthread_kill pthread_sigmask setitimer siginterrupt sigpending sigtimedwait sigwait
        """
    ),
    "time": words("tzset clock_settime"),
}
SOURCES = sorted([*(ROOT / "edsr").rglob("*.py"), *(ROOT / "kernels").rglob("*.py"), ROOT / "cli.py"])
SOURCES = [path for path in SOURCES if path.relative_to(ROOT).parts[:2] != ("edsr", "kernels")]  # a link


def asks(node: ast.AST) -> bool:
    """Whether an expression asks for the system, or for what it has."""
    text = ast.unparse(node)
    return any(words in text for words in ("sys.platform", "os.name", "hasattr(os", "hasattr(signal"))


def leaves(body: list[ast.stmt]) -> bool:
    return isinstance(body[-1], ast.Return | ast.Raise | ast.Continue)


def unguarded(body: list[ast.stmt], guarded: bool = False) -> Iterator[str]:
    """What Windows lacks, in statements that are not inside an `if` about the system, nor after one that returns."""
    for statement in body:
        if isinstance(statement, ast.If) and asks(statement.test):
            guarded = guarded or leaves(statement.body)
        else:
            yield from unguarded_in(statement, guarded)


def unguarded_in(node: ast.AST, guarded: bool) -> Iterator[str]:
    if guarded or (isinstance(node, ast.IfExp) and asks(node.test)):
        return
    if isinstance(node, ast.Import):
        yield from (alias.name for alias in node.names if alias.name in MODULES)
    elif isinstance(node, ast.ImportFrom) and node.module in MODULES:
        yield node.module
    elif isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name):
        yield from (f"{name}.{node.attr}" for name in [node.value.id] if node.attr in FUNCTIONS.get(name, ()))
    for _, value in ast.iter_fields(node):
        if isinstance(value, list) and value and isinstance(value[0], ast.stmt):
            yield from unguarded(value)
        else:
            for part in value if isinstance(value, list) else [value]:
                if isinstance(part, ast.AST):
                    yield from unguarded_in(part, False)


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(ROOT)))
def test_nothing_that_windows_lacks_is_used_unguarded(path):
    assert not list(unguarded(ast.parse(path.read_text(encoding="utf-8")).body))


@pytest.mark.parametrize(
    ("code", "found"),
    [
        ("import fcntl", ["fcntl"]),
        ("def f():\n from resource import getrlimit", ["resource"]),
        ("import sys\nif sys.platform != 'win32':\n import fcntl", []),
        ("def f():\n if sys.platform == 'win32':\n  return\n os.geteuid()", []),
        ("def f():\n if sys.platform == 'win32':\n  pass\n os.geteuid()", ["os.geteuid"]),
        ("n = len(os.sched_getaffinity(0)) if hasattr(os, 'sched_getaffinity') else 1", []),
        ("with open(os.O_NONBLOCK) as f:\n try:\n  pass\n except OSError:\n  os.fork()", ["os.O_NONBLOCK", "os.fork"]),
        ("getattr(os, 'O_NONBLOCK', 0)", []),
    ],
)
def test_what_is_unguarded_is_found(code, found):
    assert list(unguarded(ast.parse(code).body)) == found


# --- a program that finds itself on Windows

ON_WINDOWS = """
import sys
if sys.platform != "win32":
    import ctypes, importlib, os, platform, shutil, signal, subprocess, tempfile, threading, types
    import numpy, h5py, PIL.Image, platformdirs, psutil, pyvips, rich.console, rich.progress, safetensors.torch, torch
    import llvmlite.binding
    import torch.nn.functional, torch.utils.data
    import contextlib, multiprocessing.pool, sysconfig
    sysconfig.get_config_vars()
    tempfile._O_TMPFILE_WORKS = False
    with contextlib.suppress(ImportError):
        import triton, triton.experimental.gluon
        triton.runtime.driver
    for package in "huggingface_hub", "huggingface_hub.utils", "huggingface_hub.repocard", "ray":
        with contextlib.suppress(ImportError):
            importlib.import_module(package)
    lacking = {lacking}
    for module, names in lacking.items():
        for name in names:
            if hasattr(sys.modules[module], name):
                delattr(sys.modules[module], name)
    for name in {modules}:
        sys.modules[name] = None
    locked = []
    def locking(handle, how, length):
        status = os.fstat(handle)
        if (status.st_dev, status.st_ino) in locked:
            raise PermissionError(13, "Permission denied")
        locked.append((status.st_dev, status.st_ino))
    sys.modules["msvcrt"] = types.SimpleNamespace(locking=locking, LK_NBLCK=2, get_osfhandle=lambda handle: handle)
    sys.platform = "win32"
import edsr, edsr.cli
{then}
"""


def on_windows(then: str, *arguments: str, cwd: Path | None = None) -> subprocess.CompletedProcess:
    """Runs code where Windows seems to be: its name, without what it lacks. To other libraries all is as it is."""
    # What Python itself needs while it runs, or ends, is left.
    lacking = {name: sorted(names - {"wait", "WNOHANG"}) for name, names in FUNCTIONS.items()}
    code = ON_WINDOWS.format(lacking=lacking, modules=sorted(MODULES - {"posix"}), then=then)
    return run([sys.executable, "-c", code, *arguments], cwd=cwd or ROOT, capture_output=True, text=True)


def test_every_module_can_be_imported():
    names = [".".join(path.relative_to(ROOT).with_suffix("").parts) for path in SOURCES if path.name != "cli.py"]
    names = [f"edsr.{name}" if name.startswith("kernels") else name for name in names if "__main__" not in name]
    names = [name.removesuffix(".__init__") for name in names if "aot" not in name]  # what is without Triton
    # One that needs another project's package may not find it, which it says.
    tolerated = "edsr.errors.WeightsError if name.startswith('edsr.integrations.') else ()"
    imports = f"for name in {names}:\n    with contextlib.suppress({tolerated}): importlib.import_module(name)"
    result = on_windows(f"import contextlib, importlib\nimport edsr.errors\n{imports}\nprint('all')")
    assert result.stdout.strip() == "all", result.stderr


@pytest.mark.slow
@pytest.mark.parametrize("backend", ["torch", "winograd"])
def test_a_file_is_upscaled_alike(backend, tmp_path):
    """In bands, with CPU kernels or without, PNG with and without interlacing and TIFF; replaced files, too."""
    save_model(network(features=16), tmp_path / "net.safetensors")
    pixels = np.random.default_rng(0).integers(0, 256, (90, 50, 3), np.uint8)
    Image.fromarray(pixels).save(tmp_path / "a.png")
    call = ["upscale", str(tmp_path / "a.png"), "--model", str(tmp_path / "net.safetensors"), "--backend", backend]
    call += ["--tile", "32", "--overwrite"]
    assert main([*call, "-o", str(tmp_path / "here.png")]) == 0
    (tmp_path / "there.png").write_bytes(b"old")
    result = on_windows("sys.exit(edsr.cli.main(sys.argv[1:]))", *call, "-o", str(tmp_path / "there.png"))
    assert result.returncode == 0, result.stderr
    here, there = (np.array(Image.open(tmp_path / f"{name}.png")) for name in ("here", "there"))
    assert np.array_equal(here, there)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.png", "here.png", "net.safetensors", "there.png"]


def test_python_reads_for_libvips(tmp_path, monkeypatch):
    """Numbers of open files may differ between libraries there."""
    pixels = np.random.default_rng(1).integers(0, 256, (40, 30, 3), np.uint8)
    Image.fromarray(pixels).save(tmp_path / "a.tif")
    monkeypatch.setattr("edsr.images.descriptor.sys", type("", (), {"platform": "win32"}))
    with ImageReader(tmp_path / "a.tif") as reader, ImageWriter(tmp_path / "b.png", 30, 40, 3) as writer:
        for rows in reader.rows(7):
            writer.write(rows)
    assert np.array_equal(np.array(Image.open(tmp_path / "b.png")), pixels)


def test_a_probe_is_alone(tmp_path):
    """The lock of Windows: taken by one, refused to another."""
    then = (
        "from pathlib import Path\nfrom edsr.kernels.triton.hopper import probe\n"
        "with probe.exclusive_lock(Path(sys.argv[1])) as first, probe.exclusive_lock(Path(sys.argv[1])) as second:\n"
        " print(first, second)"
    )
    assert on_windows(then, str(tmp_path / "x" / "a.lock")).stdout.split() == ["True", "False"]
    with (
        probe.exclusive_lock(tmp_path / "y" / "a.lock") as first,
        probe.exclusive_lock(tmp_path / "y" / "a.lock") as second,
    ):
        assert (first, second) == (True, False)


def test_triton_of_each_system():
    """The same releases, from a package of another name."""
    listed = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]["dependencies"]
    triton = [requirement for requirement in map(Requirement, listed) if "triton" in requirement.name]
    systems = {
        "triton": {"sys_platform": "linux", "platform_machine": "x86_64"},
        "triton-windows": {"sys_platform": "win32", "platform_machine": "AMD64"},
        None: {"sys_platform": "darwin", "platform_machine": "arm64"},
    }
    for name, system in systems.items():
        assert [r.name for r in triton if r.marker and r.marker.evaluate(system)] == [name][: name is not None]
    assert len({str(requirement.specifier) for requirement in triton}) == 1
