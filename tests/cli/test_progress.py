"""How far the work is: by pixels, on a terminal of any width, and in lines where there is none."""

import io
from pathlib import Path

import pytest
from PIL import Image
from rich.console import Console

from edsr.cli import progress
from edsr.cli.progress import LINE_SECONDS, BatchReport, BatchWork, TimeLeft, bars
from edsr.evaluation import evaluate_all
from edsr.inference import Upscaler
from edsr.weights import load_model
from tests.conftest import make_image

SMALL, LARGE, GONE = Path("small.png"), Path("large.png"), Path("gone.png")


def test_a_batch_weighs_by_pixels():
    work = BatchWork([SMALL, LARGE])
    work.measured(SMALL, 100)
    work.measured(LARGE, 900)
    work.advance(100)
    work.end(SMALL, 100)
    assert (work.ended, work.fraction) == (1, 0.1)
    work.advance(450)
    assert work.fraction == 0.55
    work.advance(450)
    work.end(LARGE, 900)
    assert (work.ended, work.fraction) == (2, 1.0)


def test_an_unknown_image_counts_as_the_mean():
    work = BatchWork([SMALL, LARGE, GONE])
    assert work.fraction == 0
    work.measured(SMALL, 100)
    work.measured(LARGE, 300)
    work.measured(LARGE, 300)  # by the file itself, too
    work.advance(100)
    assert work.fraction == 100 / 600


def test_what_fails_or_is_skipped_is_no_work():
    work = BatchWork([SMALL, LARGE, GONE])
    work.measured(SMALL, 100)
    work.measured(LARGE, 900)
    work.end(GONE, 0)
    work.advance(300)
    work.end(LARGE, 300)  # broken off
    assert (work.ended, work.fraction) == (2, 0.75)
    work.advance(100)
    work.end(SMALL, 100)
    assert work.fraction == 1


def test_time_left():
    """What came before work moved, and the first seconds after that, tell nothing."""
    left = TimeLeft()
    assert left(100, 0) == left(130, 0.1) == left(131, 0.15) == ""
    assert left(132, 0.2) == "16 s left" and left(140, 0.6) == "8 s left" and left(148, 1) == "0 s left"
    assert TimeLeft()(9, 1) == ""


@pytest.mark.parametrize("quiet", [False, True])
def test_without_a_terminal_there_is_a_line_now_and_then(capsys, quiet):
    now = [0.0]
    report = BatchReport(None, [SMALL, LARGE], quiet, lambda: now[0])
    with report.file("small.png", 10, 10, SMALL) as bar:
        for _ in range(10):
            now[0] += LINE_SECONDS / 10
            bar.advance(1)
    report.done(SMALL)
    report.work.measured(LARGE, 300)
    with report.file("large.png", 10, 30, LARGE) as bar:
        now[0] += LINE_SECONDS
        bar.advance(10)
    lines = "0 of 2 images, 50% done, about 30 s left\n1 of 2 images, 50% done, about 63 s left\n"
    assert capsys.readouterr() == ("", "" if quiet else lines)


def test_one_image_is_not_counted(capsys):
    now = [0.0]
    report = BatchReport(None, [SMALL], clock=lambda: now[0])
    with report.file("small.png", 10, 10) as bar:
        for _ in range(3):
            now[0] += LINE_SECONDS - 10
            bar.advance(2)
    assert capsys.readouterr().err == "40% done, about 60 s left\n"


@pytest.mark.parametrize("width", [40, 120])
def test_bars_fit_a_terminal_of_any_width(monkeypatch, width):
    shown = io.StringIO()
    monkeypatch.setattr(progress.sys.stderr, "isatty", lambda: True)
    monkeypatch.setattr(progress, "Console", lambda **_: Console(file=shown, width=width, force_terminal=True))
    names = [Path("a photograph with a name that is much too long for a line.png"), SMALL]
    with bars(False, names) as report, report.file(names[0].name, 400, 1000, names[0]) as bar:
        report.clock = iter([0.0, 0.0, 5.0, 5.0]).__next__
        bar.advance(250)
        bar.advance(250)
        assert report.bars is not None
        table = report.bars.make_tasks_table(report.bars.tasks)
        plain = Console(file=io.StringIO(), width=width)
        plain.print(table)
    assert isinstance(plain.file, io.StringIO)
    lines = plain.file.getvalue().splitlines()
    assert len(lines) == 2 and all(len(line) <= width for line in lines)
    assert all(line.rstrip().endswith("left") and " 50 %" in line for line in lines[1:])
    assert lines[0].startswith("0 of 2 images") and lines[1].startswith("a photograph")


def test_scores_have_a_bar_for_the_images_and_one_for_each(home, monkeypatch):
    """Of two networks each does half of an image's rows."""
    (home / "hr").mkdir()
    for name in "ab":
        Image.fromarray(make_image(80, 60)).save(home / "hr" / f"{name}.png")
    upscaler = Upscaler(load_model("m.safetensors"), "cpu", tile=32)
    now, seen = [0.0], []
    report = BatchReport(None, [home / "hr/a.png", home / "hr/b.png"], clock=lambda: now[0])
    monkeypatch.setattr(report, "advance", lambda pixels: seen.append(pixels))
    list(evaluate_all([upscaler, upscaler], home / "hr", progress=report))
    assert sum(seen) == 2 * 80 * 60 and len(seen) >= 8


@pytest.mark.parametrize("command", [("evaluate", "--hr", "hr"), ("compare", "photo.png")])
def test_what_takes_seconds_to_load_is_said(home, run, monkeypatch, command):
    (home / "hr").mkdir()
    Image.fromarray(make_image(80, 60)).save("hr/a.png")
    shown = io.StringIO()
    monkeypatch.setattr(progress.sys.stderr, "isatty", lambda: True, raising=False)
    monkeypatch.setattr(progress, "Console", lambda **_: Console(file=shown, width=80, force_terminal=True))
    assert run(*command, "--model", "m.safetensors")[0] == 0 and "loading the network" in shown.getvalue()
    first = shown.getvalue()
    assert run(*command, "--model", "m.safetensors", "--quiet", *(["--overwrite"] * (command[0] == "compare")))[0] == 0
    assert shown.getvalue() == first
