"""Runs the parts of a plan one after another, each in its own time: `python -m bench.parts --out DIR < PLAN`.

A line of a plan is a name, seconds, and a command; "rest" in place of seconds stands for what is left. In a command
{minutes} and {seconds} stand for the time in which it had better end by itself, {minutes-15} for 15 s less than it has,
{logs} for the folder of all logs.
A part that takes longer than it may is told to end (SIGTERM), and soon killed with all that it started; one that fails,
hangs or dies costs itself alone. What must be kept lies in DIR at any moment: `results.tar` has the logs so far and the
files that --keep names, and is renamed into place after every part and every few seconds between.

A plan that could take longer than --seconds is refused.
"""

import argparse
import contextlib
import os
import re
import shlex
import signal
import subprocess
import sys
import tarfile
import tempfile
import time
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from types import FrameType

from bench.mirror import mirror

START = 25.0  # seconds kept for what surrounds the parts: packages unpacked, the first import, the last words
GRACE = 4.0  # seconds from SIGTERM to SIGKILL, in which a part saves what it has
ENDING = 1.0  # seconds to wait for what was killed: it may be stuck in the driver
LEAST = 5.0  # seconds under which a part is not begun
EARLY = 1  # seconds before its limit that a part should have ended by itself


@dataclass(frozen=True)
class Part:
    """seconds: None for the rest."""

    name: str
    seconds: float | None
    command: list[str]


@dataclass
class Done:
    """How a part ended. code: None if it was not begun."""

    part: Part
    code: int | None
    seconds: float
    limit: float

    def __str__(self) -> str:
        if self.code is None:
            return f"{self.part.name:10} not begun: no time left"
        cut = f", ended at its limit of {self.limit:.0f} s" if self.seconds >= self.limit else ""
        return f"{self.part.name:10} exit code {self.code}, {self.seconds:.0f} s{cut}"


class PlanError(Exception):
    """A plan that makes no sense; one line that says what is wrong."""


def read(text: str, seconds: float) -> list[Part]:
    """The parts of a plan. Raises PlanError, also if they could take longer than `seconds`."""
    parts = []
    for line in text.splitlines():
        words = shlex.split(line, comments=True)
        if not words:
            continue
        if len(words) < 3 or not (words[1] == "rest" or words[1].isdecimal()):
            raise PlanError(f"a part is a name, seconds or rest, and a command, not {line.strip()!r}")
        parts.append(Part(words[0], None if words[1] == "rest" else float(words[1]), words[2:]))
    if not parts:
        raise PlanError("the plan has no parts")
    if any(part.seconds is None for part in parts[:-1]):
        raise PlanError("only the last part may take the rest")
    needed = most(parts)
    if needed > seconds:
        raise PlanError(f"the parts take up to {needed:.0f} s, start-up and kills included; there are {seconds:.0f}")
    return parts


def most(parts: list[Part]) -> float:
    """Seconds that a plan takes at most, its last part, if it gets the rest, counted as the least."""
    return START + sum((LEAST if part.seconds is None else part.seconds) + GRACE + ENDING for part in parts)


class Runner:
    """out: where results.tar goes. keep: patterns of files, relative to the current folder or absolute. run: a training
    run whose newest state is mirrored into `out` as well. every: seconds between two writings of results.tar."""

    def __init__(self, out: Path, keep: Iterable[str], run: Path | None = None, every: float = 20.0):
        self._out, self._keep, self._run, self._every = out, list(keep), run, every
        self._logs = Path(tempfile.mkdtemp(prefix="edsr-parts-"))
        self._log = self._logs / "all.log"
        self._file = open(self._log, "ab", buffering=0)  # noqa: SIM115 - open to the end
        self._process: subprocess.Popen | None = None
        self._saved = 0.0
        self.done: list[Done] = []

    def say(self, line: str) -> None:
        self._show(f"{line}\n".encode())

    def _show(self, content: bytes) -> None:
        self._file.write(content)
        with contextlib.suppress(OSError):  # nobody reads any more; the log goes on
            sys.stdout.buffer.write(content)
            sys.stdout.buffer.flush()

    def run(self, part: Part, limit: float) -> Done:
        """Runs a part for `limit` seconds at most."""
        if limit < LEAST:
            done = Done(part, None, 0.0, limit)
        else:
            command = self._filled_in(part.command, limit)
            self.say(f"=== {part.name}, at most {limit:.0f} s: {shlex.join(command)}")
            begun = time.monotonic()
            code = self._watch(part.name, command, begun + limit)
            done = Done(part, code, time.monotonic() - begun, limit)
        self.done.append(done)
        self.say(f"=== {done}")
        self.save()
        return done

    def _filled_in(self, command: list[str], seconds: float) -> list[str]:
        def time_of(match: re.Match[str]) -> str:
            left = max(1.0, seconds - float(match[2] or EARLY))
            return f"{left:.0f}" if match[1] == "seconds" else f"{left / 60:.3f}"

        words = (word.replace("{logs}", str(self._logs)) for word in command)
        return [re.sub(r"\{(minutes|seconds)(?:-(\d+))?\}", time_of, word) for word in words]

    def _watch(self, name: str, command: list[str], deadline: float) -> int:
        # Into a file, not a pipe: whoever is stuck in the driver would keep a pipe open for good.
        log = self._logs / f"{name}.log"
        with open(log, "wb") as sink, open(log, "rb") as source:
            try:
                self._process = process = subprocess.Popen(
                    command, stdin=subprocess.DEVNULL, stdout=sink, stderr=sink, start_new_session=True
                )
            except OSError as error:
                self.say(f"{command[0]}: {error.strerror}")
                return 127
            while process.poll() is None and time.monotonic() < deadline:
                time.sleep(0.05)
                self._follow(source)
                if time.monotonic() - self._saved > self._every:
                    self.save()
            self.end()
            self._follow(source)
            return -signal.SIGKILL if process.returncode is None else process.returncode

    def _follow(self, source) -> None:
        if content := source.read():
            self._show(content)

    def end(self) -> None:
        """Ends the part that runs, and all that it has started."""
        process, self._process = self._process, None
        if process is None:
            return
        for number, seconds in ((signal.SIGTERM, GRACE), (signal.SIGKILL, ENDING)):
            if process.poll() is None or number == signal.SIGKILL:
                with contextlib.suppress(ProcessLookupError, PermissionError):
                    os.killpg(process.pid, number)
                with contextlib.suppress(subprocess.TimeoutExpired):
                    process.wait(seconds)

    def save(self) -> None:
        """Writes results.tar, and the state of the training run."""
        self._saved = time.monotonic()
        part = self._out / ".results.tar.part"
        try:
            with tarfile.open(part, "w") as tar:
                for log in sorted(self._logs.iterdir()):
                    tar.add(log, f"logs/{log.name}")
                for pattern in self._keep:
                    for path in _found(pattern):
                        tar.add(path, path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path.name)
            os.replace(part, self._out / "results.tar")
            if self._run is not None:
                mirror(self._run, self._out)
        except OSError as error:  # a file that went while it was read: the next writing has it right
            self._file.write(f"results.tar: {error}\n".encode())


def _found(pattern: str) -> list[Path]:
    base, rest = (Path("/"), pattern.lstrip("/")) if pattern.startswith("/") else (Path.cwd(), pattern)
    return sorted(path for path in base.glob(rest) if path.is_file())


def main() -> int:
    parser = argparse.ArgumentParser(
        prog="python -m bench.parts", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--seconds", type=float, required=True, help="that all parts have together")
    parser.add_argument("--out", type=Path, required=True, help="folder for results.tar")
    parser.add_argument("--keep", nargs="*", default=[], metavar="PATTERN", help="files that belong into results.tar")
    parser.add_argument("--run", type=Path, help="training run whose newest state is copied to --out as well")
    parser.add_argument("--every", type=float, default=20.0, help="seconds between writings; default: %(default)s")
    parser.add_argument("--end", default="", metavar="COMMAND", help="run after all parts, whatever became of them")
    parser.add_argument("--slow", type=float, default=1.0, help="how many times as long everything may take here")
    options = parser.parse_args()
    begun = time.monotonic()
    try:
        parts = read(sys.stdin.read(), options.seconds)
    except PlanError as error:
        print(error, file=sys.stderr)
        return 2
    options.out.mkdir(parents=True, exist_ok=True)
    runner = Runner(options.out, options.keep, options.run, options.every)
    signal.signal(signal.SIGTERM, _interrupt)
    try:
        _all(runner, parts, begun, options.seconds * options.slow, options.slow)
        if options.end:
            runner.run(Part("findings", None, shlex.split(options.end)), 10 * options.slow)
    except KeyboardInterrupt:
        runner.end()
        runner.say("=== interrupted")
        return 130
    finally:
        runner.say(f"=== {time.monotonic() - begun:.0f} s in all")
        for done in runner.done:
            runner.say(str(done))
        runner.save()
    return 1 if any(done.code for done in runner.done) else 0


def _all(runner: Runner, parts: list[Part], begun: float, seconds: float, slow: float) -> None:
    for part in parts:
        left = seconds - (time.monotonic() - begun) - GRACE - ENDING
        # Time that parts before have not taken is for the last.
        runner.run(part, left if part.seconds is None else min(part.seconds * slow, left))


def _interrupt(number: int, frame: FrameType | None) -> None:
    raise KeyboardInterrupt


if __name__ == "__main__":
    sys.exit(main())
