"""Lines that people are shown: what is logged, and errors."""

import logging
import os
import subprocess
import sys

import pytest
import torch
from rich.cells import cell_len

from edsr import cli, errors
from edsr.cli import commands, scores, train
from edsr.cli.console import describe, is_expected, show_log
from edsr.weights import read_info
from tests.conftest import ROOT
from tests.support.processes import killed_if_idle, read_terminal


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


def run_on_terminal(code, stdout=None):
    """Runs Python code on a terminal of 40 columns, standard output elsewhere if given. Returns what that shows."""
    import pty

    leader, follower = pty.openpty()
    stdout = follower if stdout is None else stdout
    environ = os.environ | {"TERM": "xterm", "COLUMNS": "40", "LINES": "24"}
    process = subprocess.Popen([sys.executable, "-c", code], cwd=ROOT, env=environ, stdout=stdout, stderr=follower)
    os.close(follower)
    with killed_if_idle(process):
        shown = read_terminal(leader)
        os.close(leader)
        assert process.wait() == 0
    return shown


@pytest.mark.skipif(sys.platform == "win32", reason="needs a Unix terminal")
def test_lines_stay_whole_above_the_bars():
    """On a terminal, while a bar is drawn."""
    code = "import logging; from edsr.cli import progress, console\nconsole.show_log(False)\n"
    code += "with progress.bars(False, ['a.png', 'b.png']) as bars, bars.file('a.png', 10, 10, 'a.png') as bar:\n"
    code += "    logging.getLogger('edsr.batch').info('a line of the log'); bar.advance(5)\n"
    shown = run_on_terminal(code, stdout=subprocess.DEVNULL)
    assert b"a line of the log\r\n" in shown and b" 50 %" in shown and b"0 of 2 images" in shown


@pytest.mark.skipif(sys.platform == "win32", reason="needs a Unix terminal")
def test_lines_wider_than_the_terminal_are_not_broken_by_the_bars():
    result, note = '{"input": "' + "a name/ of many words, " * 6 + '"}', "note: " + "a long path/" * 9
    code = "from edsr.cli import progress, console\nwith progress.bars(False, ['a.png']) as bars:\n"
    code += "    with bars.file('a.png', 10, 10, 'a.png') as bar:\n"
    code += f"        bar.advance(5); console.print_result({result!r}); console.print_line({note!r})\n"
    shown = run_on_terminal(code)
    assert f"{result}\r\n".encode() in shown and f"{note}\r\n".encode() in shown and b" 50 %" in shown


@pytest.mark.parametrize(("columns", "narrow"), [(40, True), (59, True), (60, False), (None, False)])
def test_scores_fit_the_terminal(capsys, monkeypatch, columns, narrow):
    monkeypatch.setattr(scores, "result_width", lambda: columns)
    name = "an image with a name that is long.png"
    table = scores.ScoreTable(["edsr-baseline"], ["edsr-baseline"], [name])
    found = {"psnr": 33.5, "ssim": 0.93, "bicubic_psnr": float("inf"), "bicubic_ssim": float("nan")}
    table.row(name, [found])
    lines = capsys.readouterr().out.splitlines()
    assert all(len(line) <= columns for line in lines if columns)
    if narrow:
        assert lines == [name, "  edsr-baseline        33.50   0.9300", "  bicubic                inf        -"]
    else:
        assert [line.split()[-2:] for line in lines] == [["edsr-baseline", "bicubic"], ["PSNR", "SSIM"], ["inf", "-"]]
        assert lines[2].startswith(f"{name} " if columns is None else "an image wi…is long.png ")


@pytest.mark.parametrize("columns", [80, None])
@pytest.mark.parametrize(
    "names",
    [
        [f"a name of an image that is longer than a row_{i}.png" for i in range(2)],
        [f"a name of an image, the {i}th, that is longer than a row of a terminal.png" for i in range(2)],
        ["写真" * 16 + ".png", "a.png"],
    ],
    ids=["ends differ", "middles differ", "wide characters"],
)
def test_names_beside_scores_are_told_apart(capsys, monkeypatch, columns, names):
    monkeypatch.setattr(scores, "result_width", lambda: columns)
    table = scores.ScoreTable(["edsr-baseline"], ["edsr-baseline"], names)
    for name in names:
        table.row(name, [{"psnr": 33.5, "ssim": 0.93, "bicubic_psnr": 30.0, "bicubic_ssim": 0.9}])
    out = capsys.readouterr().out
    rows = [line for line in out.splitlines() if line.endswith("0.9000")]
    if columns is None:
        assert all(name in out for name in names)
    if "…" in out or columns is None:
        shown = {row[:-36] for row in rows}
        assert len(shown) == 2 and len({cell_len(row) for row in rows}) == 1 and cell_len(rows[0]) <= (columns or 200)
    else:
        assert all(f"{name}\n" in out for name in names)


@pytest.mark.parametrize("columns", [40, 80, 120, None])
def test_info_fits_the_terminal(home, run, monkeypatch, columns):
    monkeypatch.setattr(commands, "result_width", lambda: columns)
    code, out, _ = run("info", "edsr-photo")
    lines = out.splitlines()
    steps = f"steps {read_info(ROOT / 'edsr/weights/edsr-photo-x2.safetensors')['training']['steps']}"
    assert code == 0 and {"'", "{"}.isdisjoint(out) and steps in " ".join(out.split())
    wide = [line for line in lines if columns and len(line) > columns]
    assert all(len(line[16:].split()) == 1 for line in wide)  # a name without a blank
    assert (columns is None) == (len(lines) == len([line for line in lines if line[0] != " "]))
