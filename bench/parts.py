"""Runs the parts of a plan one after another, each in its own time: `python -m bench.parts --out DIR < PLAN`.

A line of a plan is a name, seconds, and a command; "rest" in place of seconds stands for what is left. In a command
{minutes} and {seconds} stand for the time in which it had better end by itself, {minutes-15} for 15 s less than it has,
{logs} for the folder of all logs.
A part that takes longer than it may is told to end (SIGTERM), and soon killed with all that it started; one that fails,
hangs or dies costs itself alone. What must be kept lies in DIR at any moment: `results.tar` has the logs so far and the
files that --keep names, and is renamed into place after every part and every few seconds between.
"""

import argparse
import contextlib
import ctypes
import io
import os
import queue
import re
import shlex
import shutil
import signal
import subprocess
import sys
import tarfile
import tempfile
import threading
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from types import FrameType

from bench.mirror import mirror

START = 15.0  # seconds before the first part, as `most` counts them: packages unpacked, the first import
WORDS = 10.0  # seconds kept for the last words
GRACE = 4.0  # seconds from SIGTERM to SIGKILL, in which a part saves what it has
ENDING = 1.0  # seconds to wait for what was killed: it may be stuck in the driver
LEAST = 5.0  # seconds under which a part is not begun
EARLY = 1  # seconds before its limit that a part should have ended by itself
ENDLESS = 64 << 20  # bytes of a part's output, after which it is ended: it might fill the disk
LOGGED = 1 << 19  # bytes of a log's beginning, and of its end, that are kept


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


def read(text: str) -> list[Part]:
    """The parts of a plan. Raises PlanError."""
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
    return parts


def most(parts: list[Part]) -> float:
    """Seconds that a plan takes at most, its last part, if it gets the rest, counted as the least."""
    return START + WORDS + sum((LEAST if part.seconds is None else part.seconds) + GRACE + ENDING for part in parts)


class Runner:
    """out: where results.tar goes. keep: patterns of files, relative to the current folder or absolute. run: a training
    run whose newest state is mirrored into `out` as well. every: seconds between two writings of results.tar. alone:
    whether this process has no children but the parts, so that what they leave behind can be told and ended."""

    def __init__(
        self, out: Path, keep: Iterable[str], run: Path | None = None, every: float = 20.0, alone: bool = False
    ):
        if alone:
            adopt_orphans()
        self._out, self._keep, self._run, self._every, self._alone = out, list(keep), run, every, alone
        self._aside = aside(out)
        self._logs = Path(tempfile.mkdtemp(prefix="edsr-parts-"))
        self._index = open(self._logs / "all.log", "ab", buffering=0)  # noqa: SIM115 - open to the end
        self._process: subprocess.Popen | None = None
        self._saved, self._complete = 0.0, False
        self._echo = Echo()
        self.done: list[Done] = []

    def report_line(self, line: str) -> None:
        self._index.write(f"{line}\n".encode())
        self._echo(f"{line}\n".encode())

    def run(self, part: Part, limit: float) -> Done:
        """Runs a part for `limit` seconds at most."""
        if limit < LEAST:
            done = Done(part, None, 0.0, limit)
        else:
            command = self._filled_in(part.command, limit)
            self.report_line(f"=== {part.name}, at most {limit:.0f} s: {shlex.join(command)}")
            begun = time.monotonic()
            code = self._watch(part.name, command, begun + limit)
            done = Done(part, code, time.monotonic() - begun, limit)
        self.done.append(done)
        self.report_line(f"=== {done}")
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
                self.report_line(f"{command[0]}: {error.strerror}")
                return 127
            while process.poll() is None and time.monotonic() < deadline:
                time.sleep(0.05)
                self._follow(source)
                if os.fstat(sink.fileno()).st_size > ENDLESS:
                    self.report_line(f"{name}: more than {ENDLESS >> 20} MiB of output; ended")
                    break
                if time.monotonic() - self._saved > self._every:
                    self.save()
            self.end()
            self._follow(source)
            return -signal.SIGKILL if process.returncode is None else process.returncode

    def _follow(self, source) -> None:
        if content := source.read(1 << 20):  # of more, the rest comes later, or is in the log
            self._echo(content)

    def end(self) -> None:
        """Ends the part that runs, and all that it has started, undisturbed by signals."""
        process = self._process
        with undisturbed():
            if process is not None:
                for number, seconds in ((signal.SIGTERM, GRACE), (signal.SIGKILL, ENDING)):
                    if process.poll() is None or number == signal.SIGKILL:
                        with contextlib.suppress(ProcessLookupError, PermissionError):
                            os.killpg(process.pid, number)
                        with contextlib.suppress(subprocess.TimeoutExpired):
                            process.wait(seconds)
                self._process = None
            if self._alone:  # a part, too, that a signal came upon before it was known here
                end_orphans(process.pid if process is not None else None)

    def save(self) -> None:
        """Writes results.tar, and the state of the training run."""
        self._saved, self._complete = time.monotonic(), True
        for write in (self._write_tar, self._mirror):
            try:
                write()
            except OSError as error:  # a file that went while it was read, say: the next writing has it right
                self._complete = False
                self._index.write(f"{write.__name__.strip('_')}: {error}\n".encode())

    def _write_tar(self) -> None:
        part = self._aside / "results.tar"
        with tarfile.open(part, "w") as tar:
            for log in sorted(self._logs.iterdir()):
                content = shortened(log)
                entry = tarfile.TarInfo(f"logs/{log.name}")
                entry.size, entry.mtime = len(content), time.time()
                tar.addfile(entry, io.BytesIO(content))
            for pattern in self._keep:
                for path in _found(pattern):
                    tar.add(path, path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path.name)
        os.replace(part, self._out / "results.tar")

    def _mirror(self) -> None:
        if self._run is not None:
            mirror(self._run, self._out, self._aside)

    def close(self) -> None:
        """Call save() before: the logs go, unless it could not write something, and they alone tell what happened."""
        self._index.close()
        if self._complete:
            shutil.rmtree(self._logs, ignore_errors=True)
        else:
            self._echo(f"=== logs stay in {self._logs}\n".encode())
        self._echo.close()
        shutil.rmtree(self._aside, ignore_errors=True)


class Echo:
    """Writes to standard output from a thread of its own: a reader that stalls must not stop the clock of a part."""

    def __init__(self) -> None:
        self._waiting: queue.Queue[bytes | None] = queue.Queue(1000)
        self._thread = threading.Thread(target=self._write, daemon=True)
        self._thread.start()

    def __call__(self, content: bytes | None) -> None:
        with contextlib.suppress(queue.Full):  # what is not read is in the logs
            self._waiting.put_nowait(content)

    def _write(self) -> None:
        with contextlib.suppress(OSError):
            while (content := self._waiting.get()) is not None:
                sys.stdout.buffer.write(content)
                sys.stdout.buffer.flush()

    def close(self) -> None:
        self(None)
        self._thread.join(2.0)


def aside(out: Path) -> Path:
    """A folder for what is not whole yet, on the disk of `out`, and beside it where that can be."""
    with contextlib.suppress(OSError):
        folder = Path(tempfile.mkdtemp(dir=out.resolve().parent, prefix=".edsr-parts-"))
        if folder.stat().st_dev == out.stat().st_dev:
            return folder
        folder.rmdir()
    return Path(tempfile.mkdtemp(dir=out, prefix="."))


def shortened(log: Path) -> bytes:
    """A log, without its middle if it is long."""
    with open(log, "rb") as file:
        size = file.seek(0, os.SEEK_END)
        file.seek(0)
        if size <= 2 * LOGGED:
            return file.read(2 * LOGGED)
        first = file.read(LOGGED)
        file.seek(size - LOGGED)
        return first + f"\n... {size - 2 * LOGGED} bytes left out ...\n".encode() + file.read(LOGGED)


@contextlib.contextmanager
def undisturbed() -> Iterator[None]:
    """Inside, SIGTERM and SIGINT do nothing. Only in the main thread."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {number: signal.signal(number, signal.SIG_IGN) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def adopt_orphans() -> None:
    """From now on, what loses its parent below this process becomes its child, a daemon as well (Linux)."""
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None).prctl(36, 1, 0, 0, 0)  # PR_SET_CHILD_SUBREAPER


def end_orphans(known: int | None) -> None:
    """Kills the children of this process that it does not know of. known: one that it does, and has waited for."""
    for _ in range(100):
        orphans = [pid for pid in _children() if pid != known]
        if not orphans:
            return
        for pid in orphans:
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.kill(pid, signal.SIGKILL)
            with contextlib.suppress(ChildProcessError):
                os.waitpid(pid, os.WNOHANG)
        time.sleep(0.01)


def _children() -> list[int]:
    found = []
    for stat in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError, ValueError, IndexError):
            if int(stat.read_text().rpartition(")")[2].split()[1]) == os.getpid():
                found.append(int(stat.parent.name))
    return found


def _found(pattern: str) -> list[Path]:
    base, rest = (Path("/"), pattern.lstrip("/")) if pattern.startswith("/") else (Path.cwd(), pattern)
    return sorted(path for path in base.glob(rest) if path.is_file())


def main() -> int:
    parser = argparse.ArgumentParser(
        prog="python -m bench.parts", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--seconds", type=float, required=True, help="that all parts have together")
    parser.add_argument("--elapsed", type=float, default=0.0, help="of these, already gone; default: %(default)s")
    parser.add_argument("--out", type=Path, required=True, help="folder for results.tar")
    parser.add_argument("--keep", nargs="*", default=[], metavar="PATTERN", help="files that belong into results.tar")
    parser.add_argument("--run", type=Path, help="training run whose newest state is copied to --out as well")
    parser.add_argument("--every", type=float, default=20.0, help="seconds between writings; default: %(default)s")
    parser.add_argument("--end", default="", metavar="COMMAND", help="run after all parts, whatever became of them")
    parser.add_argument("--slow", type=float, default=1.0, help="how many times as long everything may take here")
    options = parser.parse_args()
    began = time.monotonic() - options.elapsed
    try:
        parts = read(sys.stdin.read())
    except PlanError as error:
        print(error, file=sys.stderr)
        return 2
    options.out.mkdir(parents=True, exist_ok=True)
    runner = Runner(options.out, options.keep, options.run, options.every, alone=True)
    for number in signal.SIGTERM, signal.SIGINT:
        signal.signal(number, _interrupt)
    if most(parts) > options.seconds:
        runner.report_line(
            f"=== the plan takes up to {most(parts):.0f} s; of {options.seconds:.0f}, the last parts have least"
        )
    try:
        for part in parts:
            left = began + options.slow * (options.seconds - WORDS) - GRACE - ENDING - time.monotonic()
            # Time that parts before have not taken is for the last.
            runner.run(part, left if part.seconds is None else min(part.seconds * options.slow, left))
        if options.end:
            runner.run(Part("findings", None, shlex.split(options.end)), options.slow * (WORDS - GRACE))
        ignore_interruption()  # here, where one that comes just before is still caught
    except KeyboardInterrupt:
        runner.end()
        runner.report_line("=== interrupted")
        return 130
    finally:
        runner.report_line(f"=== {time.monotonic() - began:.0f} s in all")
        for done in runner.done:
            runner.report_line(str(done))
        runner.save()
        runner.close()
    return 1 if any(done.code for done in runner.done) else 0


def ignore_interruption() -> None:
    """From now on SIGTERM and SIGINT do nothing: the last words are said and saved, which takes seconds."""
    for number in signal.SIGTERM, signal.SIGINT:
        signal.signal(number, signal.SIG_IGN)


def _interrupt(number: int, frame: FrameType | None) -> None:
    ignore_interruption()
    raise KeyboardInterrupt


if __name__ == "__main__":
    sys.exit(main())
