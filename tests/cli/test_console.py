"""Lines that people are shown: what is logged, and errors."""

import logging
import os
import subprocess
import sys

import pytest
import torch

from edsr import cli, errors
from edsr.cli import train
from edsr.cli.console import describe, is_expected, show_log
from tests.conftest import ROOT


@pytest.fixture(autouse=True)
def logger():
    """The project's logger, as it was before afterwards."""
    logger = logging.getLogger("edsr")
    before = logger.handlers, logger.level
    yield logger
    logger.handlers, logger.level = before


def test_what_is_logged_is_a_line(capsys):
    for _ in range(2):  # shown once, however often it is set up
        show_log(quiet=False)
    logging.getLogger("edsr.kernels.winograd").info("compiling %s", "a\nb")
    logging.getLogger("edsr.training").debug("details")
    assert capsys.readouterr() == ("", "compiling a\\nb\n")
    show_log(quiet=True)
    logging.getLogger("edsr.kernels.winograd").error("compiling")
    assert capsys.readouterr() == ("", "")


@pytest.mark.parametrize(("rank", "lines"), [("0", "told\n"), ("1", "")])
def test_of_several_training_processes_one_speaks(monkeypatch, capsys, rank, lines):
    monkeypatch.setenv("RANK", rank)
    monkeypatch.setattr(train, "run_train", lambda options: logging.getLogger("edsr.training").info("told") or 0)
    assert cli.main(["train"]) == 0 and capsys.readouterr().err == lines


def test_which_errors_are_for_people():
    for error in errors.TrainError("x"), OSError("x"), MemoryError(), torch.OutOfMemoryError():
        assert is_expected(error)
    assert not is_expected(ValueError("x"))
    assert describe(FileNotFoundError(2, "No such file", "a\x1b[2J")) == r"a\x1b[2J: No such file"
    assert describe(torch.OutOfMemoryError()) == describe(MemoryError()) == "out of memory; try a smaller --tile"
    assert describe(KeyError("x")) == "KeyError('x'), a defect; --debug shows where"


@pytest.mark.skipif(sys.platform == "win32", reason="needs a Unix terminal")
def test_lines_stay_whole_above_the_bars():
    """On a terminal, while a bar is drawn."""
    import pty

    code = "import logging; from edsr.cli import progress, console\nconsole.show_log(False)\n"
    code += "with progress.bars(False, ['a.png', 'b.png']) as bars, bars.file('a.png', 10, 10, 'a.png') as bar:\n"
    code += "    logging.getLogger('edsr.batch').info('a line of the log'); bar.advance(5)\n"
    leader, follower = pty.openpty()
    process = subprocess.Popen(
        [sys.executable, "-c", code],
        cwd=ROOT,
        stdout=subprocess.DEVNULL,
        stderr=follower,
        env=os.environ | {"TERM": "xterm"},
    )
    os.close(follower)
    shown = b""
    while True:
        try:
            part = os.read(leader, 4096)
        except OSError:  # the other end is closed
            break
        if not part:
            break
        shown += part
    os.close(leader)
    assert process.wait(60) == 0
    assert b"a line of the log\r\n" in shown and b" 50 %" in shown and b"0 of 2 images" in shown
