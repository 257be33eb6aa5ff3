"""Signals end the program, whatever hangs, and leave nothing half done."""

import os
import signal
import subprocess
import sys

import pytest

from edsr.system import atomic_file, remove_unfinished, temporary_folder
from tests.conftest import ROOT
from tests.support.processes import communicate

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
    ("main thread", (*UPSCALE, "photo.png"), [signal.SIGTERM]),
    ("opening", (*UPSCALE, "-"), [signal.SIGTERM]),
    ("main thread", (*UPSCALE, "photo.png"), [signal.SIGINT, signal.SIGTERM]),
    # A run may take any time to save its state, but not after a second signal.
    ("training", ("train", "--data", ".", "--out", "run"), [signal.SIGINT, signal.SIGTERM]),
]


@pytest.mark.parametrize(
    "cases", [CASES[:2], pytest.param(CASES[2:], marks=pytest.mark.slow)], ids=["codecs", "others"]
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
