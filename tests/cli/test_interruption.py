"""Signals end the program, whatever hangs, and leave nothing half done."""

import os
import signal
import subprocess
import sys

import pytest

from edsr.system import atomic_file, remove_unfinished, temporary_folder
from tests.conftest import ROOT
from tests.support.processes import communicate, killed_if_idle, wait_until

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="uses POSIX's signals")

# A mutex that is locked twice: C, from which no signal brings the thread back to Python.
SCRIPT = """
import ctypes, sys
from edsr import cli
from edsr.images.reader import ImageReader
from edsr.images.writer import ImageWriter
from edsr import training

def hang(*_, **__):
    print("hangs", flush=True)
    library, mutex = ctypes.CDLL(None), ctypes.create_string_buffer(256)
    library.pthread_mutex_lock(mutex)
    library.pthread_mutex_lock(mutex)

def hanging_rows(*_, **__):
    hang()
    yield

places = {
    "encoder": lambda: setattr(ImageWriter, "_save", hang),
    "decoder": lambda: setattr(ImageReader, "rows", hanging_rows),
    "main thread": lambda: setattr(ImageWriter, "write", hang),
    "opening": lambda: setattr(ImageReader, "__init__", hang),
    "training": lambda: setattr(training, "train", hang),
}
places[sys.argv[1]]()
sys.exit(cli.main(sys.argv[2:]))
"""
UPSCALE = "upscale", "--model", "m.safetensors", "--device", "cpu", "-o", "out.avif"
CASES = [  # where it hangs, the command, the signals
    ("encoder", (*UPSCALE, "photo.png"), [signal.SIGTERM]),
    ("decoder", (*UPSCALE, "photo.png"), [signal.SIGINT]),
    ("encoder", (*UPSCALE, "photo.png"), [signal.SIGHUP]),
    ("main thread", (*UPSCALE, "photo.png"), [signal.SIGTERM]),
    ("opening", (*UPSCALE, "-"), [signal.SIGTERM]),
    ("main thread", (*UPSCALE, "photo.png"), [signal.SIGINT, signal.SIGTERM]),
    # A run may take any time to save its state, but not after a second signal.
    ("training", ("train", "--data", ".", "--out", "run"), [signal.SIGINT, signal.SIGTERM]),
]


@pytest.mark.parametrize(
    "cases", [CASES[:3], pytest.param(CASES[3:], marks=pytest.mark.slow)], ids=["codecs", "others"]
)
def test_whatever_hangs_a_signal_ends_it(home, cases):
    (home / "temporary").mkdir()
    before = sorted(path.name for path in home.iterdir())
    environment = os.environ | {"TMPDIR": str(home / "temporary"), "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    started = []
    for place, command, signals in cases:
        with open(home / "photo.png", "rb") as image:
            process = subprocess.Popen(
                [sys.executable, "-c", SCRIPT, place, *command],
                cwd=home,
                env=environment,
                stdin=image,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                text=True,
            )
        started.append((process, place, signals))
    try:
        for process, place, signals in started:
            assert process.stdout.readline() == "hangs\n", (place, process.communicate())
            for number in signals:
                process.send_signal(number)
            _, messages = communicate(process)
            assert (process.returncode, messages) == (130, "interrupted\n"), place
    finally:
        for process, *_ in started:
            process.kill()
    assert sorted(path.name for path in home.iterdir()) == before and not list((home / "temporary").iterdir())


def test_what_is_unfinished_is_known(tmp_path, monkeypatch):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    with temporary_folder() as folder:
        (folder / "a").write_bytes(b"x")
        with pytest.raises(FileNotFoundError), atomic_file(tmp_path / "b") as file:
            file.write(b"x")
            assert len(list(tmp_path.iterdir())) == 2
            remove_unfinished()
            assert not list(tmp_path.iterdir())
    with atomic_file(tmp_path / "b") as file:
        file.write(b"x")
    remove_unfinished()
    assert [path.name for path in tmp_path.iterdir()] == ["b"]


TRAIN = (
    *("train", "--device", "cpu", "--threads", "1", "--blocks", "1", "--features", "4", "--patch", "8", "--batch", "1"),
    *("--steps", "1000000", "--save-every", "1000000", "--val-every", "1000000"),
)
# As a shell starts a program in a terminal, which is its standard error.
IN_TERMINAL = """
import fcntl, sys, termios
fcntl.ioctl(2, termios.TIOCSCTTY, 0)
from edsr import cli
sys.exit(cli.main(sys.argv[1:]))
"""


def saved_steps(run):
    """The steps of a run's checkpoints but for that of the beginning."""
    return [path.name for path in run.glob("checkpoint-*") if int(path.name.split("-")[1])]


def begun(run):
    """Whether a run has logged its first steps."""
    metrics = run / "metrics.jsonl"
    return metrics.exists() and metrics.read_text() != ""


def test_a_terminal_that_closes_leaves_a_run_saved(folder, tmp_path):
    leader, follower = os.openpty()
    run = tmp_path / "run"
    command = [sys.executable, "-c", IN_TERMINAL, *TRAIN, "--data", str(folder), "--out", str(run)]
    with subprocess.Popen(command, cwd=ROOT, start_new_session=True, stdout=follower, stderr=follower) as process:
        os.close(follower)
        with killed_if_idle(process):
            wait_until(lambda: begun(run), process)
            os.close(leader)
            process.wait()
    assert process.returncode == 130 and saved_steps(run)


@pytest.mark.parametrize("handler", ["SIG_DFL", "SIG_IGN"])
def test_hanging_up_twice_is_no_hurry_and_nohup_is_heeded(folder, tmp_path, handler):
    """A shell that is closed hangs up, and so does the system."""
    code = f"import signal, sys; from edsr import cli; signal.signal(signal.SIGHUP, signal.{handler}); "
    command = [sys.executable, "-c", code + "sys.exit(cli.main(sys.argv[1:]))", *TRAIN]
    command += ["--data", str(folder), "--out", str(tmp_path / "run")]
    metrics = tmp_path / "run" / "metrics.jsonl"
    process = subprocess.Popen(command, cwd=ROOT, stderr=subprocess.PIPE, text=True)
    with process, killed_if_idle(process):
        wait_until(lambda: begun(tmp_path / "run"), process)
        for _ in range(3):
            process.send_signal(signal.SIGHUP)
        if handler == "SIG_IGN":  # it goes on until it is told otherwise
            size = metrics.stat().st_size
            wait_until(lambda: metrics.stat().st_size > size, process)
            process.send_signal(signal.SIGTERM)
        errors = process.communicate()[1]
    assert process.returncode == 130 and "interrupted and saved at step" in errors and saved_steps(tmp_path / "run")
