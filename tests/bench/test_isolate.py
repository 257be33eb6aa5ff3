"""Processes of the benchmarks that die, hang or are told to end: what they had found is kept. Nothing is timed here."""

import importlib
import json
import os
import signal
import subprocess
import sys
import time
from types import SimpleNamespace

import pytest

from bench import isolate
from tests.conftest import ROOT

FRAGILE = """
import os, time

def step(item, failed, at):
    done = list(failed)
    for part in ("crash", "hang", "raise", "work"):
        if part in failed or (part != "work" and part != item):
            continue
        at(part, 0.5 if part == "hang" else 600.0)
        if part == "crash":
            os._exit(7)
        elif part == "hang":
            time.sleep(60)
        elif part == "raise":
            raise RuntimeError("first line\\nsecond line")
        done.append(failed.get(item, part))
    return done

def hopeless(item, failed, at):
    os._exit(3)

def telling(item, failed, at):
    at.so_far(["first", at.before])
    at(item, 600.0)
    if item not in failed:
        at.so_far(["second", at.before])
        os._exit(5)
    return at.before

def endless(item, failed, at):
    at.so_far(item)
    at("waits", 600.0)
    time.sleep(600)

def where(item, failed, at):
    at.so_far(item)
    return os.getpid()
"""


@pytest.fixture
def fragile(monkeypatch, tmp_path):
    """A module of its own: the processes import what they run, and the whole of this one would take them seconds."""
    (tmp_path / "fragile_steps.py").write_text(FRAGILE)
    monkeypatch.syspath_prepend(tmp_path)
    yield importlib.import_module("fragile_steps")
    sys.modules.pop("fragile_steps")


def test_a_part_that_dies_costs_itself_alone(fragile):
    items = ["work", "crash", "hang", "raise", "work"]
    assert list(isolate.run_isolated(fragile.step, items)) == [
        ("work", ["work"]),
        ("crash", ["crash", "its process ended with exit code 7"]),
        ("hang", ["hang", "not done after 0.5 s"]),
        ("raise", ["raise", "RuntimeError: first line"]),
        ("work", ["work"]),
    ]


def test_an_item_that_cannot_be_done_is_named_and_time_ends(fragile):
    assert list(isolate.run_isolated(fragile.hopeless, ["a"])) == [("a", "its process ended with exit code 3")]
    assert list(isolate.run_isolated(fragile.step, ["work"], time.monotonic() - 1)) == []


def test_what_was_told_outlives_its_process(fragile):
    heard = []
    found = list(
        isolate.run_isolated(fragile.telling, ["a"], so_far=lambda item, partial: heard.append((item, *partial)))
    )
    # Of the second try, what the first one told last is there from the beginning.
    assert heard == [("a", "first", None), ("a", "second", None), ("a", "first", ["second", None])]
    assert found == [("a", ["second", None])]


def test_at_the_deadline_what_was_told_is_known_and_nothing_blamed(fragile, monkeypatch):
    """Which comes at once after it was told, however slow this machine is."""
    heard, deadline = [], time.monotonic() + 9000
    monkeypatch.setattr(isolate, "time", SimpleNamespace(monotonic=lambda: deadline if heard else time.monotonic()))
    assert (
        list(isolate.run_isolated(fragile.endless, ["a", "b"], deadline, lambda *messages: heard.append(messages)))
        == []
    )
    assert heard == [("a", "a")]


def test_side_by_side_each_item_is_done_once(fragile):
    heard, items = [], [*"abcdefgh"]
    found = list(isolate.side_by_side(fragile.where, items, 2, so_far=lambda *messages: heard.append(messages)))
    assert sorted(item for item, _ in found) == items
    assert 1 <= len({process for _, process in found}) <= 2
    assert sorted(heard) == [(item, item) for item in items]
    mixed = dict(isolate.side_by_side(fragile.step, ["hang", "work", "crash"], 2))
    assert mixed["hang"] == ["hang", "not done after 0.5 s"] and mixed["work"] == ["work"]


def test_without_processes_it_is_the_same(fragile):
    heard = []
    found = list(isolate.here(fragile.where, ["a", "b"], lambda *messages: heard.append(messages)))
    assert found == [("a", os.getpid()), ("b", os.getpid())] and heard == [("a", "a"), ("b", "b")]


def test_a_process_stuck_in_the_driver_is_not_waited_for(fragile, monkeypatch):
    one = isolate._Worker(fragile.step)
    process, limits = one._process, []

    class Stuck:
        exitcode = None

        def kill(self):
            process.kill()

        def join(self, timeout=None):
            limits.append(timeout)

    one._process = Stuck()
    assert one.kill() is None
    assert limits == [isolate.KILL_LIMIT]
    process.join()


def test_time_limits_leave_room_to_end_and_count_from_the_start():
    began = time.monotonic() - 10
    assert isolate.time_limit(60, began) == began + 60 - isolate.SPARE
    assert isolate.KILL_LIMIT < isolate.SPARE
    assert isolate.time_limit(float("inf"), None) == float("inf")


# --- a command that is told to end

# As on a GPU, with processes: `bench.training` with a third way that hangs, and says in which process.
COMMAND = """
import os, sys, time
from dataclasses import replace
from pathlib import Path
import torch
from bench import isolate, machine, records, training, training_steps
from edsr import EDSRConfig

real = training.compare

def hang(work):
    Path(os.environ["PROCESS_FILE"]).write_text(str(os.getpid()))
    time.sleep(600)

def step(item, failed, at):
    torch.set_num_threads(1)
    machine.COPIED, machine.MATRIX = {"cpu": 1 << 20}, {"cpu": 64}
    for name in ("plain", "eager"):
        training_steps.IMPLEMENTATIONS[name] = training_steps.IMPLEMENTATIONS["torch"]
    training_steps.IMPLEMENTATIONS["triton"] = training_steps.Implementation("hangs", hang, limit=600.0)
    return real(item, failed, at)

def on_cpu(name, config, batch, patch, device, dtype, workers):
    return training_steps.Training(name, config, 2, 8, "cpu", torch.float32, 0, (48, 64))

if __name__ == "__main__":
    records.RESULTS, training.compare, training.Training = Path(os.environ["RESULTS"]), step, on_cpu
    training.PRESETS = {"edsr-baseline": EDSRConfig(blocks=1, features=16)}
    training.refused, training.describe = lambda device: False, lambda device: machine.describe("cpu")
    sys.argv = "training --device cuda --only torch plain triton eager --rounds 1 --seconds 0 --save".split()
    isolate.command(training.main)
"""


def waiting():
    """Moments to look whether something has happened; fails when it does not for long."""
    for _ in range(6000):
        yield
        time.sleep(0.1)
    pytest.fail("what was waited for does not happen")


def process_is_gone(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return True
    status = f"/proc/{process}/stat"
    return os.path.exists(status) and open(status).read().rpartition(")")[2].split()[0] == "Z"  # nobody waits for it


@pytest.mark.slow
@pytest.mark.parametrize("blow", [signal.SIGTERM, signal.SIGKILL])
def test_a_record_killed_in_the_third_way_holds_two(tmp_path, blow):
    script, results, process_file = tmp_path / "script.py", tmp_path / "results", tmp_path / "id"
    script.write_text(COMMAND)
    names = {"PYTHONPATH": ROOT, "RESULTS": results, "PROCESS_FILE": process_file}
    environment = os.environ | {name: str(value) for name, value in names.items()}
    with open(tmp_path / "said", "w") as message:
        command = subprocess.Popen(
            [sys.executable, script], env=environment, cwd=tmp_path, stdout=message, stderr=message
        )
        try:
            for _ in waiting():
                if process_file.exists() and process_file.read_text():
                    break
                assert command.poll() is None, (tmp_path / "said").read_text()
            command.send_signal(blow)
            code = command.wait()
        finally:
            command.kill()
    assert code == (143 if blow == signal.SIGTERM else -signal.SIGKILL), (tmp_path / "said").read_text()
    (path,) = results.iterdir()
    record = json.loads(path.read_text())
    (entry,) = record["workloads"]
    assert list(entry["cases"]) == ["torch", "plain"]
    for case in entry["cases"].values():
        assert case["median"] > 0 and case["run"] == record["run"] and case["turns"] is None
    if blow == signal.SIGTERM:
        assert record["not_reached"] == [f"{entry['work']}: triton, eager"]
    for _ in waiting():  # it ends with its parent
        if process_is_gone(int(process_file.read_text())):
            break
