"""The runner of the parts of bench/gpu.sh, with parts that fail, hang, die or start others; and the plans."""

import json
import os
import shlex
import signal
import subprocess
import sys
import tarfile
import tempfile
import time
from pathlib import Path
from types import SimpleNamespace

import pytest

from bench import findings, mirror, parts
from bench.parts import Part, PlanError, Runner
from tests.conftest import ROOT
from tests.support.processes import communicate

PYTHON = sys.executable


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    """No part needs the time to save that one on a GPU needs."""
    for name, seconds in (("LEAST", 0.0), ("GRACE", 0.5), ("ENDING", 0.5), ("EARLY", 0)):
        monkeypatch.setattr(parts, name, seconds)


@pytest.fixture(autouse=True)
def logs_elsewhere(tmp_path_factory, monkeypatch):
    """What a runner has in the folder of temporary files, logs above all, goes with the test's own."""
    folder = tmp_path_factory.mktemp("logs")
    monkeypatch.setattr(tempfile, "tempdir", str(folder))
    monkeypatch.setenv("TMPDIR", str(folder))


@pytest.fixture
def runner(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "out").mkdir()
    return Runner(tmp_path / "out", ["kept/*.txt"])


def shell(name: str, script: str, seconds: float = 30.0) -> Part:
    return Part(name, seconds, ["sh", "-c", script])


@pytest.fixture
def passes_when(monkeypatch):
    """Time flies once something has happened, and not before: the limit of a part is not this machine's."""

    def set_clock(happened) -> None:
        jumped = []

        def monotonic() -> float:
            if not jumped and happened():
                jumped.append(1e4)
            return time.monotonic() + sum(jumped)

        monkeypatch.setattr(parts, "time", SimpleNamespace(monotonic=monotonic, sleep=time.sleep, time=time.time))

    return set_clock


def kept(out: Path) -> dict[str, str]:
    with tarfile.open(out / "results.tar") as tar:
        files = [member for member in tar.getmembers() if member.isfile()]
        return {member.name: tar.extractfile(member).read().decode() for member in files}  # pyright: ignore


def alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return "\nState:\tZ" not in Path(f"/proc/{pid}/status").read_text()


def test_a_part_that_fails_or_is_not_there_costs_itself_alone(runner, tmp_path, capfdbinary):
    for part in (
        shell("bad", "echo one; exit 3"),
        Part("absent", 9.0, ["no-such-program"]),
        shell("good", "mkdir kept; echo two >kept/a.txt"),
    ):
        runner.run(part, 600.0)
    assert [done.code for done in runner.done] == [3, 127, 0]
    files = kept(tmp_path / "out")
    assert files["logs/bad.log"] == "one\n" and files["kept/a.txt"] == "two\n"
    assert (
        "=== bad        exit code 3" in files["logs/all.log"]
        and "no-such-program: No such file" in files["logs/all.log"]
    )
    assert b"one\n" in capfdbinary.readouterr().out


@pytest.mark.slow
def test_a_part_that_hangs_is_ended_with_all_that_it_started(runner, tmp_path, passes_when):
    script = "trap '' TERM; (trap '' TERM; exec sleep 600) & echo $! >pid; sleep 600"
    passes_when(lambda: (tmp_path / "pid").exists() and (tmp_path / "pid").read_text().endswith("\n"))
    done = runner.run(shell("hangs", script), 9000.0)
    assert done.code == -signal.SIGKILL and "ended at its limit" in str(done)
    until(lambda: not alive(int((tmp_path / "pid").read_text())))
    assert runner.run(shell("next", "true"), 600.0).code == 0


def test_what_a_part_leaves_running_is_ended_when_it_ends(runner, tmp_path):
    runner.run(shell("leaves", "sleep 600 & echo $! >pid"), 600.0)
    until(lambda: not alive(int((tmp_path / "pid").read_text())))


@pytest.mark.slow
def test_at_its_limit_a_part_may_save(runner, tmp_path, monkeypatch, passes_when):
    monkeypatch.setattr(parts, "GRACE", 600.0)
    passes_when((tmp_path / "kept" / "begun.txt").exists)
    script = (
        "mkdir kept; trap 'echo saved >kept/a.txt; exit 1' TERM; touch kept/begun.txt; while :; do sleep 0.05; done"
    )
    assert runner.run(shell("saves", script), 9000.0).code == 1
    assert kept(tmp_path / "out")["kept/a.txt"] == "saved\n"


def test_a_part_without_time_is_not_begun(runner, monkeypatch):
    monkeypatch.setattr(parts, "LEAST", 5.0)
    done = runner.run(shell("late", "touch begun"), 4.9)
    assert done.code is None and "no time left" in str(done) and not Path("begun").exists()


def test_commands_are_told_their_time(runner, tmp_path, monkeypatch):
    monkeypatch.setattr(parts, "EARLY", 6)
    runner.run(Part("told", None, ["echo", "{seconds}", "{minutes}", "--for={minutes-36}", "{logs}"]), 66.0)
    seconds, minutes, less, logs = kept(tmp_path / "out")["logs/told.log"].split()
    assert (seconds, minutes, less) == ("60", "1.000", "--for=0.500") and Path(logs).is_dir()


def test_a_long_log_is_kept_without_its_middle(runner, tmp_path, monkeypatch):
    monkeypatch.setattr(parts, "LOGGED", 1000)
    runner.run(shell("talks", "echo first; yes | head -c 1000000; echo last"), 600.0)
    log = kept(tmp_path / "out")["logs/talks.log"]
    assert log.startswith("first\n") and log.endswith("last\n") and "998011 bytes left out" in log
    assert len(log) < 2100


def test_output_without_end_ends_the_part(runner, monkeypatch):
    monkeypatch.setattr(parts, "ENDLESS", 1 << 20)
    runner.run(shell("talks", "exec yes"), 600.0)
    assert runner.done[0].code == -signal.SIGTERM
    assert runner.run(shell("next", "true"), 600.0).code == 0


def test_results_are_replaced_whole(runner, tmp_path, monkeypatch):
    runner.run(shell("one", "mkdir kept; echo 1 >kept/a.txt"), 600.0)
    before = (tmp_path / "out" / "results.tar").read_bytes()

    def full(*args, **options):
        raise OSError(28, "No space left on device")

    mirrored = []
    monkeypatch.setattr(tarfile.TarFile, "add", full)
    monkeypatch.setattr(parts, "mirror", lambda *of: mirrored.append(of))
    runner._run = tmp_path / "run"
    runner.save()
    assert (tmp_path / "out" / "results.tar").read_bytes() == before
    assert len(mirrored) == 1  # the training run is kept all the same
    runner.close()
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["results.tar"]


@pytest.mark.parametrize("lost", [False, True])
def test_logs_stay_only_where_they_could_not_be_written_elsewhere(lost, runner, tmp_path, monkeypatch, capfdbinary):
    runner.run(shell("one", "echo 1"), 600.0)
    logs = runner._logs
    if lost:
        monkeypatch.setattr(runner, "_out", tmp_path / "no such folder")
    runner.save()
    runner.close()
    assert logs.exists() is lost and runner._index.closed
    assert (f"logs stay in {logs}\n".encode() in capfdbinary.readouterr().out) is lost
    assert not lost or "No such file" in (logs / "all.log").read_text()


# --- the command


def start(folder: Path, plan: str, *options: str, first: str = "") -> subprocess.Popen:
    """first: Python that changes something in the command's process."""
    code = "import os, signal, sys; from bench import parts\nparts.LEAST = parts.EARLY = 0; parts.GRACE = 0.5\n"
    code += f"{first}\nsys.exit(parts.main())"
    command = [PYTHON, "-c", code, "--out", str(folder / "out"), *options]
    process = subprocess.Popen(
        command, cwd=folder, env=os.environ | {"PYTHONPATH": str(ROOT)}, stdin=subprocess.PIPE, text=True,
        stdout=subprocess.PIPE, stderr=subprocess.PIPE,
    )  # fmt: skip
    assert process.stdin is not None
    process.stdin.write(plan)
    process.stdin.close()
    process.stdin = None
    return process


def until(found, seconds: float = 600.0) -> None:
    deadline = time.monotonic() + seconds
    while not found():
        assert time.monotonic() < deadline
        time.sleep(0.05)


PLAN = """
# a comment
one 600 sh -c 'mkdir kept; echo first >kept/a.txt'
two 600 sh -c 'echo $$ >pid; echo so far; touch begun; sleep 600'
"""


def test_killed_in_part_two_what_is_left_holds_part_one_and_the_log_so_far(tmp_path):
    process = start(tmp_path, PLAN, "--seconds", "9000", "--keep", "kept/*.txt", "--every", "0.2")
    try:
        until(lambda: (tmp_path / "begun").exists())
        until(lambda: "so far" in kept(tmp_path / "out").get("logs/two.log", ""))
    finally:
        process.kill()
        process.wait()
        os.kill(int((tmp_path / "pid").read_text()), signal.SIGKILL)
    files = kept(tmp_path / "out")
    assert files["kept/a.txt"] == "first\n"
    assert "=== one        exit code 0" in files["logs/all.log"]


def test_told_to_end_it_ends_its_part_and_says_what_was_done(tmp_path):
    process = start(tmp_path, PLAN, "--seconds", "9000")
    until(lambda: (tmp_path / "begun").exists())
    process.terminate()
    message, _ = communicate(process)
    assert process.returncode == 130
    assert message.splitlines()[-1].startswith("one        exit code 0")
    until(lambda: not alive(int((tmp_path / "pid").read_text())))


def test_told_twice_it_ends_its_part_all_the_same(tmp_path):
    plan = "two 600 sh -c 'trap : TERM; echo $$ >pid; touch begun; while :; do sleep 1; done'\n"
    process = start(tmp_path, plan, "--seconds", "9000")
    until(lambda: (tmp_path / "begun").exists())
    process.terminate()
    time.sleep(0.2)  # while the part ignores what it was told
    process.terminate()
    message, errors = communicate(process)
    assert process.returncode == 130 and " s in all" in message, errors
    until(lambda: not alive(int((tmp_path / "pid").read_text())))


@pytest.mark.parametrize(("command", "code"), [("true", 0), ("sh -c 'kill -TERM $PPID; sleep 600'", 130)])
@pytest.mark.parametrize("number", ["SIGTERM", "SIGINT"])
def test_told_while_it_says_its_last_words_it_says_them_all(command, code, number, tmp_path):
    first = "honest = parts.Runner.report_line\ndef report_line(self, line):\n"
    first += f"    if 's in all' in line: os.kill(os.getpid(), signal.{number})\n"
    first += "    honest(self, line)\nparts.Runner.report_line = report_line"
    process = start(tmp_path, f"one 600 {command}\n", "--seconds", "9000", first=first)
    message, errors = communicate(process)
    assert (process.returncode, errors) == (code, "")
    assert " s in all\n" in message and " s in all\n" in kept(tmp_path / "out")["logs/all.log"]


def test_told_while_it_starts_a_part_it_ends_that(tmp_path):
    """The signal comes when the part runs already, and nobody has been told its process."""
    first = "honest = parts.subprocess.Popen\ndef start(*arguments, **options):\n"
    first += "    honest(*arguments, **options)\n    while not os.path.exists('begun'): pass\n"
    first += "    os.kill(os.getpid(), signal.SIGTERM)\nparts.subprocess.Popen = start"
    process = start(tmp_path, PLAN.splitlines()[-1], "--seconds", "9000", first=first)
    _, errors = communicate(process)
    assert process.returncode == 130, errors
    until(lambda: not alive(int((tmp_path / "pid").read_text())))


def test_a_daemon_ends_with_the_part_that_started_it(tmp_path):
    code = (
        "import os, time\nif os.fork() == 0:\n    os.setsid()\n    open('pid', 'w').write(str(os.getpid()))\n"
        "    time.sleep(600)\n    os._exit(0)\nwhile not os.path.exists('pid'): time.sleep(0.01)\n"
    )
    (tmp_path / "daemon.py").write_text(code)
    process = start(tmp_path, f"one 600 {PYTHON} daemon.py\ntwo 600 true\n", "--seconds", "9000")
    _, errors = communicate(process)
    assert process.returncode == 0, errors
    until(lambda: not alive(int((tmp_path / "pid").read_text())))


@pytest.mark.slow
def test_nobody_reading_stops_no_clock(tmp_path):
    """Output that goes nowhere: the part ends at its limit, and the next is begun."""
    plan = "one 3 sh -c 'yes | head -c 1000000; sleep 600'\ntwo 600 touch reached\n"
    process = start(tmp_path, plan, "--seconds", "9000")
    try:
        until(lambda: (tmp_path / "reached").exists())
        assert process.wait(600) == 1
    finally:
        process.terminate()
        process.communicate()


def test_of_too_little_time_the_last_parts_get_least(tmp_path):
    plan = "one 1 sleep 0.1\ntwo 60 touch reached\n"
    process = start(tmp_path, plan, "--seconds", "40", "--elapsed", "31")
    message, _ = communicate(process)
    assert "=== the plan takes up to" in message and "two        not begun: no time left" in message
    assert not (tmp_path / "reached").exists()


def test_time_left_over_goes_to_the_last_part_and_the_end_comes_always(tmp_path):
    plan = "one 600 false\ntwo 600 true\nlast rest echo {seconds}\n"
    process = start(tmp_path, plan, "--seconds", "1500", "--end", "echo found {logs}")
    message, errors = communicate(process)
    assert process.returncode == 1, errors
    lines = message.splitlines()
    assert 600 < int(lines[lines.index(next(x for x in lines if "=== last" in x)) + 1]) < 1490
    assert any(line.startswith("found /") for line in lines)


@pytest.mark.parametrize(
    ("plan", "says"),
    [
        ("", "no parts"),
        ("one 20", "a part is a name, seconds or rest, and a command"),
        ("one soon true", "not 'one soon true'"),
        ("one rest true\ntwo 3 true", "only the last"),
    ],
)
def test_a_plan_that_makes_no_sense_is_refused_in_one_line(plan, says, monkeypatch):
    monkeypatch.undo()  # as it is
    with pytest.raises(PlanError, match=says) as caught:
        parts.read(plan)
    assert "\n" not in str(caught.value)


# --- the plans


def plan_of(script: str, folder: Path, *arguments: str, **environment: str) -> tuple[str, list[str]]:
    """The plan that a script hands to the runner, and the runner's options; with a Python that only takes notes."""
    python = folder / "python"
    python.write_text(
        f'#!/bin/sh\ncase "$2" in *torch*) exit 0;; esac\n[ "$2" = bench.parts ] || exec {PYTHON} "$@"\n'
        f'cat >"{folder}/plan"; for word; do echo "$word"; done >"{folder}/options"\n'
    )
    python.chmod(0o755)
    environment = os.environ | {"PYTHON": str(python), "OUT": "out"} | environment
    subprocess.run(["bash", ROOT / "bench" / script, *arguments], env=environment, cwd=folder, check=True)
    return (folder / "plan").read_text(), (folder / "options").read_text().splitlines()


STRANGE = ["photos", "two words", "ph#1", "it's", "phö"]


@pytest.fixture
def folders(tmp_path, monkeypatch) -> list[str]:
    monkeypatch.undo()
    for name in STRANGE:
        (tmp_path / name).mkdir()
    return [str(tmp_path / name) for name in STRANGE]


@pytest.mark.parametrize("data", [[], STRANGE])
def test_the_plan_takes_less_than_ten_minutes(data, folders, tmp_path):
    """Limits, kills, start-up and last words together."""
    plan, options = plan_of("gpu.sh", tmp_path, *data)
    assert options[:4] == ["-m", "bench.parts", "--seconds", "570"] and "--elapsed" in options
    assert options[options.index("--out") + 1] == str(tmp_path / "out")
    found = parts.read(plan)
    assert parts.START + parts.WORDS >= 25 and parts.most(found) <= 570
    names = [part.name for part in found]
    assert names[:5] == ["probe", "check", "frames", "steps", "tests"]
    assert names.index("tune") < names.index("again") < names.index("peers") < names.index("compiled")
    if not data:
        assert names[-1] == "chart"
    else:
        words = found[-1].command
        assert names[-1] == "train" and found[-1].seconds is None and words[-2:] == ["--minutes", "{minutes-15}"]
        assert words[words.index("--data") + 1 : words.index("--out")] == folders


def test_the_tests_of_the_plan_are_there_and_begin_with_what_is_new(tmp_path, monkeypatch):
    monkeypatch.undo()
    (tests,) = (part for part in parts.read(plan_of("gpu.sh", tmp_path)[0]) if part.name == "tests")
    files = [word for word in tests.command if word.startswith("tests/")]
    assert files[0] == "tests/kernels/test_hopper.py" and all((ROOT / file).exists() for file in files)
    words = " ".join(tests.command)
    assert "-n 8" in words and "--timeout-method thread" in words  # a signal cannot end what waits in CUDA
    extra = (ROOT / "pyproject.toml").read_text()
    assert '"pytest-xdist"' in extra and '"pytest-timeout"' in extra


def test_what_is_not_needed_may_be_missing(folders, tmp_path):
    """Packages, kernels and images that cannot be had cost no part that can do without."""
    (tmp_path / "wheels").mkdir()
    plan, _ = plan_of("gpu.sh", tmp_path, "nowhere", WHEELS="wheels", KERNELS="nowhere/kernels.tar")
    assert parts.read(plan)[0].name == "probe" and "cli.py train" not in plan
    plan, _ = plan_of("gpu_train.sh", tmp_path, "photos", TEST="nowhere/HR")
    assert [part.name for part in parts.read(plan)] == ["train", "decay"]


def test_the_plan_of_training(tmp_path, folders):
    for folder in ("Set5/HR", "Set 14/HR", "old/checkpoint"):
        (tmp_path / folder).mkdir(parents=True)
    (tmp_path / "old/checkpoint/state.json").write_text('{"step": 1234}')
    plan, options = plan_of("gpu_train.sh", tmp_path, *STRANGE, TEST="Set5/HR:Set 14/HR")
    found = parts.read(plan)
    assert [part.name for part in found] == ["train", "decay", "score-Set5", "score-Set_14"]
    assert parts.most(found) <= 570
    words = found[0].command
    assert "wsd" in words and "--resume" not in words
    assert int(words[words.index("--steps") + 1]) > 10**8  # it is never at its end
    for part in found[:2]:
        assert [word for word in part.command if word in folders] == folders
    run = Path(options[options.index("--run") + 1])
    assert found[1].command[found[1].command.index("--resume") + 1] == str(run)
    plan, options = plan_of("gpu_train.sh", tmp_path, "photos", "--resume", "old/checkpoint")
    first = parts.read(plan)[0].command
    run = Path(options[options.index("--run") + 1])
    assert first[first.index("--resume") + 1] == str(run) and (run / "checkpoint-00001234" / "state.json").exists()


def test_what_to_validate_on_is_told_to_both_trainings(tmp_path, folders):
    (tmp_path / "others 2").mkdir()
    plan, _ = plan_of("gpu_train.sh", tmp_path, "photos", VAL="others 2")
    for part in parts.read(plan)[:2]:
        assert part.command[part.command.index("--val") + 1] == str(tmp_path / "others 2")


def test_names_with_spaces_stay_whole(tmp_path, monkeypatch):
    """Of the interpreter and of the folder for temporary files, where a run lies, its copy and its images' cache."""
    monkeypatch.undo()
    folder = tmp_path / "two words"
    for name in ("photos", "Set5/HR", "old/checkpoint", "tmp"):
        (folder / name).mkdir(parents=True)
    (folder / "old/checkpoint/state.json").write_text('{"step": 1234}')
    for script, *arguments in (
        ["gpu.sh", "photos"],
        ["gpu_train.sh", "photos"],
        ["gpu_train.sh", "photos", "--resume", "old/checkpoint"],
    ):
        plan, options = plan_of(script, folder, *arguments, TMPDIR=str(folder / "tmp"), TEST="Set5/HR")
        commands = [part.command for part in parts.read(plan)]
        commands.append(shlex.split(options[options.index("--end") + 1]))
        assert {words[0] for words in commands} == {str(folder / "python")}
        named = ("--out", "--run", "--resume", "--cache", "--model")
        values = [words[i + 1] for words in commands for i, word in enumerate(words) if word in named]
        assert len(values) == (2 if script == "gpu.sh" else 7)
        assert all(Path(value).is_relative_to(folder / "tmp") for value in values), values


@pytest.mark.parametrize(
    "arguments", [[], ["photos", "--resume"], ["photos", "--fast"], ["nowhere"], ["photos", "--resume", "photos"]]
)
def test_misuse_of_the_training_script_is_told(arguments, tmp_path):
    (tmp_path / "photos").mkdir()
    result = subprocess.run(
        ["bash", ROOT / "bench/gpu_train.sh", *arguments], cwd=tmp_path, capture_output=True, text=True
    )
    assert result.returncode == 2 and result.stderr.count("\n") == 1 and result.stderr.startswith("usage:")


# --- what is kept of a run


def test_the_newest_state_of_a_run_is_mirrored(tmp_path):
    run, out, aside = tmp_path / "run", tmp_path / "out", tmp_path / "aside"
    out.mkdir()
    aside.mkdir()
    mirror.mirror(run, out, aside)
    assert not list(out.iterdir())
    for step in (5, 10, 99_999_999, 100_000_000):
        folder = run / f"checkpoint-{step:08d}"
        folder.mkdir(parents=True)
        (folder / "state.json").write_text(json.dumps({"step": step}))
        (folder / "00.safetensors").write_text(f"weights of {step}")
        (run / "metrics.jsonl").write_text(f"{step}\n")
        mirror.mirror(run, out, aside)
        assert (out / "checkpoint" / "00.safetensors").read_text() == f"weights of {step}"
    (run / "best.safetensors").write_text("best")
    mirror.mirror(run, out, aside)
    assert {path.name for path in out.rglob("*")} == {
        "checkpoint", "state.json", "00.safetensors", "metrics.jsonl", "best.safetensors"
    }  # fmt: skip


@pytest.mark.skipif(sys.platform != "linux", reason="needs an exchange of folders")
def test_there_is_a_checkpoint_at_any_moment(tmp_path, monkeypatch):
    """Before and after whatever the mirror calls."""
    run, out, aside = tmp_path / "run", tmp_path / "out", tmp_path / "aside"
    for folder in (run / "checkpoint-00000001", out, aside):
        folder.mkdir(parents=True)
    (run / "checkpoint-00000001" / "state.json").write_text("1")
    mirror.mirror(run, out, aside)
    (run / "checkpoint-00000001").rename(run / "checkpoint-00000002")
    (run / "checkpoint-00000002" / "state.json").write_text("2")
    seen = []
    sys.setprofile(lambda *_: seen.append((out / "checkpoint" / "state.json").read_text()))
    try:
        mirror.mirror(run, out, aside)
    finally:
        sys.setprofile(None)
    assert set(seen) == {"1", "2"} and seen == sorted(seen)


# --- what is said at the end


def test_findings_are_ten_lines(tmp_path, monkeypatch):
    results, configs, run = tmp_path / "results", tmp_path / "configs", tmp_path / "run"
    for folder in (results, configs, run):
        folder.mkdir()
    monkeypatch.setattr(findings, "RESULTS", results)
    monkeypatch.setattr(findings, "CONFIGS", configs)
    assert list(findings.lines()) == ["no record of a GPU"]
    machine = {"name": "Made-up", "device": "cuda", "torch": "0", "triton": "0", "date": "1970-01-01"}
    cases = {
        "ours": {"median": 0.0091, "ceiling_percent": 71.2},
        "channels_last": {"median": 0.033, "ceiling_percent": 19},
    }
    works = [
        {"work": work, "cases": cases, "incorrect": {"compile": "x", "cudnn": "off"}, "failed": ["compile"]}
        for work in findings.NETWORKS + findings.OPERATIONS
    ]
    steps = {"triton": {"median": 0.0024, "ceiling_percent": 16}}
    training = [{"work": "training-edsr-baseline-x2-16x48", "cases": steps, "incorrect": {}}]
    check = {"cases": {"relu-64 ours": "off by 1e-3"}, "incorrect": 0, "not_reached": ["y"]}
    for kind, more in (("gpu", {"workloads": works}), ("training", {"workloads": training}), ("check", check)):
        (results / f"{kind}.json").write_text(json.dumps({"kind": kind, "machine": machine} | more))
    cpu = {"kind": "training", "machine": machine | {"device": "cpu", "date": "2020-01-01"}, "workloads": []}
    (results / "cpu.json").write_text(json.dumps(cpu))
    statuses = {"c64 fp16": "verified", "block fp16": "hangs: nothing after 5 s"}
    (configs / "made-up.json").write_text(json.dumps({"choices": {"hopper": {"statuses": statuses}}}))
    (run / "metrics.jsonl").write_text(
        '{"step": 50, "psnr": 37.5, "images_per_second": 6400}\n{"step": 6000, "patches_per_second": 6600}\n{"ste'
    )
    (tmp_path / "tests.log").write_bytes(b"..\xff..\n== 3 failed, 183 passed in 58.11s ==\n")
    (tmp_path / "score-Set5.log").write_text("head  0.91\nmean of 5  37.90\n")
    message = list(findings.lines(tmp_path, run))
    assert len(message) == 11  # with all that there may be
    assert "right c64 fp16; block fp16: hangs: nothing after 5 s" in message[1]
    assert "1 cases, 0 wrong, 1 works not reached" in message[2] and message[2].endswith(
        "3 failed, 183 passed in 58.11s"
    )
    assert "ours 9.1 ms (71 %), eager 33 ms (19 %), torch.compile died, cuDNN WRONG" in message[3]
    assert message[7].count("ours 9.1 ms") == 3 and "resblock-64" in message[7]
    assert "ours 2.4 ms (16 %, 417 steps/s)" in message[8]
    assert message[9] == "trained to step 6,000, 6,500 patches/s, validation 37.500 dB at best"
    assert message[10] == "score-Set5: mean of 5  37.90"
