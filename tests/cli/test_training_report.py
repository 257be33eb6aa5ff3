"""What is shown of a training run, against a clock that the tests set."""

import io
from pathlib import Path

import pytest
from rich.console import Console
from rich.progress import Progress as Bar
from rich.progress import TextColumn

from edsr.cli import progress as bars
from edsr.cli import training_report
from edsr.cli.training_report import LINE_SECONDS, TrainingReport
from edsr.progress import describe_seconds
from edsr.training import Progress


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


def progress(step: int, mean: float, steps: int = 1000, **more) -> Progress:
    return Progress(step, steps, Path("run"), 9.0, 1e-4, 5.0, **({"mean_loss": mean} | more))


def bar() -> Bar:
    return Bar(TextColumn("{task.fields[text]}"), console=Console(file=io.StringIO()))


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0.2, "0 s"),
        (99, "99 s"),
        (100, "2 min"),
        (3570, "1 h"),
        (12_000, "3 h 20 min"),
        (2 * 86_400, "2 days"),
        (190_800, "2 days 5 h"),
    ],
)
def test_durations(seconds, text):
    assert describe_seconds(seconds) == text


def test_without_a_terminal_a_line_every_half_minute(capsys):
    clock = Clock()
    report = TrainingReport(None, False, clock)
    for step in range(1, 91):
        clock.now += 1
        report.show(progress(step, step / 1000, logged=step % 50 == 0))
    lines = capsys.readouterr().err.splitlines()
    assert [line.split(":")[0] for line in lines] == [f"step {n} of 1,000" for n in (30, 60, 90)]
    assert lines[0] == "step 30 of 1,000: loss 0.03000, about 16 min left"


@pytest.mark.parametrize("validates", [True, False])
def test_beside_a_bar_lines_are_of_validations_or_else_of_losses(capsys, validates):
    clock = Clock()
    report = TrainingReport(bar(), False, clock)
    for step in range(1, 101):
        clock.now += LINE_SECONDS / 20
        psnr = 30 + step / 100 if validates and step in (5, 50, 100) else None
        report.show(progress(step, 0.1, steps=100, psnr=psnr))
    lines = capsys.readouterr().err.splitlines()
    steps = (5, 50, 100) if validates else (20, 40, 60, 80, 100)
    assert [int(line.split()[1]) for line in lines] == [*steps]
    assert lines[-1] == "step 100 of 100: loss 0.10000" + (", validation 31.000 dB" if validates else "")


def test_quiet_shows_nothing(capsys):
    clock = Clock()
    report = TrainingReport(None, True, clock)
    clock.now = 100
    report.show_validation(1, 3)
    report.show(progress(1000, 0.1, psnr=30.0))
    assert capsys.readouterr() == ("", "")


def test_validation_shows_how_far_it_is(capsys):
    clock = Clock()
    drawn = bar()
    on_terminal, elsewhere = TrainingReport(drawn, False, clock), TrainingReport(None, False, clock)
    for report in on_terminal, elsewhere:
        report.show(progress(1, 0.1))
    for done in 1, 2, 3, 4:
        clock.now += 12
        for report in on_terminal, elsewhere:
            report.show_validation(done, 10)
    assert drawn.tasks[0].fields["text"] == "validating, 4 of 10 images, 72 s left"
    assert capsys.readouterr().err == "validating, 3 of 10 images, 84 s left\n"


@pytest.mark.parametrize("before", [[], [0.3], [0.3, 1e20, 7e31]])
def test_the_loss_shown_forgets_what_is_undone(before):
    """Also where it is the first that is shown, of a run resumed."""
    drawn = bar()
    report = TrainingReport(drawn, True)
    for step, loss in enumerate(before, 1):
        report.show(progress(step, loss, logged=True))
    report.show(progress(0, float("nan"), rolled_back=True))
    report.show(progress(1, 0.2))
    assert drawn.tasks[0].fields["text"].startswith("loss 0.20000  ")
    report.show(progress(2, 0.25, logged=True))
    report.show(progress(3, 0.9))
    assert drawn.tasks[0].fields["text"].startswith("loss 0.25000  "), "the mean that was logged, not one batch's"


@pytest.mark.parametrize("width", [40, 80, 120])
@pytest.mark.parametrize(("psnr", "shown"), [(None, "loss 0.02000"), (25.452, "25.452 dB")])
def test_the_bar_fits_a_terminal_of_any_width(monkeypatch, width, psnr, shown):
    file = io.StringIO()
    made = lambda **_: Console(file=file, width=width, force_terminal=True)  # noqa: E731
    monkeypatch.setattr(training_report, "Console", made)
    monkeypatch.setattr(bars, "Console", made)
    monkeypatch.setattr(bars.sys.stderr, "isatty", lambda: True)
    with training_report.training_report(False) as report:
        report.show(progress(123_456, 0.02, 300_000, psnr=psnr))
        assert report._bar is not None
        plain = Console(file=io.StringIO(), width=width)
        plain.print(report._bar.make_tasks_table(report._bar.tasks))
    assert isinstance(plain.file, io.StringIO)
    (line,) = plain.file.getvalue().splitlines()
    assert len(line) <= width and "123456/300000" in line and shown in line and "…" not in line
