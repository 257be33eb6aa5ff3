"""Run folders damaged in every way: the older checkpoint serves, or a line says what is wrong. One run at a time."""

import json
import os
import random
import shutil
import subprocess
import sys
import zlib
from dataclasses import replace
from pathlib import Path

import pytest
from safetensors.torch import save_file

from edsr.errors import EDSRError, TrainError
from edsr.training import checkpoint, lock, setup
from edsr.training.config import TrainConfig
from edsr.training.lock import RunLock
from edsr.training.run_record import check_record
from edsr.training.trainer import train
from tests.conftest import ROOT, training

pytestmark = [
    pytest.mark.usefixtures("tiny"),
    pytest.mark.skipif(sys.platform == "win32", reason="pipes"),
]

DEEP = "[" * 200_000


def missing(path: Path) -> None:
    path.unlink()


def folder_instead(path: Path) -> None:
    path.unlink()
    path.mkdir()


def pipe(path: Path) -> None:
    path.unlink()
    os.mkfifo(path)


def link_to_itself(path: Path) -> None:
    path.unlink()
    path.symlink_to(path.name)


def device(path: Path) -> None:
    path.unlink()
    path.symlink_to("/dev/zero")


def content(data: bytes):
    return lambda path: path.write_bytes(data)


DAMAGES = {
    "missing": missing,
    "folder": folder_instead,
    "pipe": pipe,
    "link to itself": link_to_itself,
    "device": device,
    "empty": content(b""),
    "half": lambda path: path.write_bytes(path.read_bytes()[: path.stat().st_size // 2]),
    "zeros": lambda path: path.write_bytes(bytes(path.stat().st_size)),
    "longer": lambda path: path.write_bytes(path.read_bytes() + b"\0"),
    "text": content(b"<html>404</html>"),
    "deep": content(DEEP.encode()),
    "list": content(b"[]"),
    "null": content(b"null"),
    "empty table": content(b"{}"),
    "not UTF-8": content(b'{"a": "\xe9"}'),
    "huge": lambda path: os.truncate(path, 3_000_000_000),
}
VALUES = [None, "x", "\0", -1, 0, 1.5, 1e300, 10**30, float("nan"), True, [], {}, [[]], {"a": 1}, "../../x"]


_made: list[Path] = []


@pytest.fixture(autouse=True)
def relative_paths_stay_here(tmp_path_factory, monkeypatch):
    """A damaged record may name the cache "x" or "../../x", which is then made."""
    inside = tmp_path_factory.mktemp("working") / "two" / "deep"
    inside.mkdir(parents=True)
    monkeypatch.chdir(inside)


@pytest.fixture
def run(tmp_path, folder):
    """A run with two checkpoints, of steps 6 and 12; trained once."""
    if not _made:
        list(train(training(folder, tmp_path / "made", save_every=6)))
        _made.append(tmp_path / "made")
    return Path(shutil.copytree(_made[0], tmp_path / "run"))


def going_on(run: Path) -> TrainConfig:
    return TrainConfig((), str(run), resume=True, device="cpu", given=frozenset())


def resume(run: Path) -> int:
    """The step from which the run goes on."""
    steps = [progress.step for progress in train(going_on(run))]
    return steps[0] - 1 if steps else 12


@pytest.mark.parametrize("damage", DAMAGES)
@pytest.mark.parametrize("name", ["state.json", "00.safetensors"])
def test_the_older_checkpoint_serves(run, damage, name, lines):
    DAMAGES[damage](run / "checkpoint-00000012" / name)
    assert resume(run) == 6
    damaged = [line for line in lines if "checkpoint-00000012: damaged" in line]
    assert len(damaged) == 1 and len(damaged[0]) < 500 and "\n" not in damaged[0]


def test_a_piece_that_is_no_safetensors_though_its_checksum_is_right(run):
    folder = run / "checkpoint-00000012"
    state = json.loads((folder / "state.json").read_bytes())
    for data in b"", b"\0" * 100, b"{}", (9).to_bytes(8, "little") + b"[" * 9:
        (folder / "00.safetensors").write_bytes(data)
        state["files"] = {"00.safetensors": [len(data), zlib.crc32(data)]}
        (folder / "state.json").write_text(json.dumps(state))
        assert checkpoint.load_latest(run, check=check_record).step == 6


def test_tensors_of_another_network_are_refused(run):
    folder = run / "checkpoint-00000012"
    state = json.loads((folder / "state.json").read_bytes())
    tensors = checkpoint.read(folder).tensors
    name = next(name for name in tensors if name.endswith("head.weight"))
    save_file(tensors | {name: tensors[name][:1].clone()}, folder / "00.safetensors")
    data = (folder / "00.safetensors").read_bytes()
    state["files"] = {"00.safetensors": [len(data), zlib.crc32(data)]}
    (folder / "state.json").write_text(json.dumps(state))
    with pytest.raises(TrainError, match="of another network"):
        resume(run)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        *(("files", value) for value in ([], None, {}, {"/dev/zero": [1, 1]}, {"../x": [1, 1]}, {"00.safetensors": 3})),
        *(("record", value) for value in ({}, None, [])),
        *(("step", None), ("step", -3), ("version", "2"), ("version", [])),
    ],
    ids=str,
)
def test_fields_of_other_kinds(run, key, value):
    path = run / "checkpoint-00000012" / "state.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {key: value}))
    assert checkpoint.load_latest(run, check=check_record).step == 6


def leaves(value, path=()):
    """The places in a JSON document, tables and lists included."""
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, item in items:
        yield (*path, key)
        yield from leaves(item, (*path, key))


def spoil_field(path: Path, random_: random.Random) -> str:
    """Puts a value of another kind somewhere into a JSON file, or takes one away."""
    state = json.loads(path.read_text())
    place = random_.choice(list(leaves(state)))
    inner = state
    for key in place[:-1]:
        inner = inner[key]
    value = random_.choice([*VALUES, "nothing"])
    if value == "nothing":
        del inner[place[-1]]
    else:
        inner[place[-1]] = value
    path.write_text(json.dumps(state))
    return f"{place}: {value!r}"


def every_field_in_turn(run: Path, tmp_path: Path, seeds: range) -> None:
    for seed in seeds:
        random_ = random.Random(seed)
        copy = tmp_path / f"copy{seed}"
        shutil.copytree(run, copy)
        what = spoil_field(copy / "checkpoint-00000012" / "state.json", random_)
        files = ["metrics.jsonl", "best.safetensors", "last.safetensors"]
        if random_.random() < 0.3:
            damage, name = random_.choice(list(DAMAGES)), random_.choice(files)
            DAMAGES[damage](copy / name)
            what += f", {name} {damage}"
        try:
            resume(copy)
        except (EDSRError, OSError) as error:
            assert "\n" not in str(error)
        except Exception as error:
            raise AssertionError(f"seed {seed}, {what}") from error
        shutil.rmtree(copy)


def test_fields_damaged_at_random(run, tmp_path):
    every_field_in_turn(run, tmp_path, range(12))


@pytest.mark.slow
def test_fields_damaged_at_random_many_times(run, tmp_path):
    every_field_in_turn(run, tmp_path, range(12, int(os.environ.get("EDSR_DAMAGES", 100))))


@pytest.mark.parametrize("damage", [folder_instead, pipe])
@pytest.mark.parametrize("resumed", [False, True])
@pytest.mark.parametrize(
    "name", ["metrics.jsonl", "plot.png", "best.safetensors", "last.safetensors", "tensorboard", "checkpoint-00000099"]
)
def test_what_a_run_cannot_write_is_refused_before_images_are_read(
    run, folder, tmp_path, name, resumed, damage, monkeypatch
):
    if damage is folder_instead and "." not in name:
        return
    place = run / name if resumed else tmp_path / "new" / name
    place.parent.mkdir(exist_ok=True)
    if place.is_dir():
        shutil.rmtree(place)
    place.touch()
    damage(place)
    monkeypatch.setattr("edsr.training.setup.load_images", lambda *_: pytest.fail("reads images"))
    with pytest.raises(TrainError, match=f"{name}: is .*choose another out") as caught:
        if resumed:
            resume(run)
        else:
            list(train(training(folder, tmp_path / "new")))
    assert "\n" not in str(caught.value)


def test_no_checkpoint_left_is_a_line(run):
    for path in run.glob("checkpoint-*/state.json"):
        pipe(path)
    with pytest.raises(EDSRError, match="no intact checkpoint"):
        resume(run)


@pytest.mark.parametrize(("bad", "says"), [("a\0b", "NUL"), ("s3://bucket/a", "is a URL")])
@pytest.mark.parametrize("name", ["data", "out", "val", "cache", "init"])
def test_a_name_that_is_no_path_is_a_line_and_no_folder(folder, tmp_path, monkeypatch, name, bad, says):
    monkeypatch.chdir(tmp_path)
    options = {name: (bad,) if name == "data" else bad}
    config = training(folder, tmp_path / "run", **{k: v for k, v in options.items() if k not in ("data", "out")})
    with pytest.raises(EDSRError, match=says):
        list(train(replace(config, **options)))
    assert not (tmp_path / "s3:").exists()


# One at a time


def metrics(run: Path) -> bytes:
    return (run / "metrics.jsonl").read_bytes()


@pytest.mark.parametrize("resumed", [False, True])
def test_a_second_run_in_a_folder_is_refused(folder, tmp_path, resumed):
    out = tmp_path / "run"
    steps = train(training(folder, out, save_every=3))
    for _ in range(4):
        next(steps)
    before = metrics(out), sorted(p.name for p in out.iterdir())
    second = training(folder, out)
    if resumed:
        second = going_on(out)
    with pytest.raises(TrainError, match=r"another process|holds a run already"):
        list(train(second))
    assert (metrics(out), sorted(p.name for p in out.iterdir())) == before
    assert len(list(steps)) == 8
    assert list(train(going_on(out))) == []


def test_two_new_runs_that_start_at_once(folder, tmp_path, monkeypatch):
    """Both find an empty folder; the one that is slower to read its images finds the other there."""
    out, load, first = tmp_path / "run", setup.load_images, []

    def slow(*arguments):
        monkeypatch.setattr(setup, "load_images", load)
        first.append(train(training(folder, out)))
        next(first[0])
        return load(*arguments)

    monkeypatch.setattr(setup, "load_images", slow)
    with pytest.raises(TrainError, match="another process"):
        list(train(training(folder, out)))
    assert len(list(first[0])) == 11 and checkpoint.load_latest(out).step == 12


@pytest.mark.parametrize("signal", ["SIGKILL", "SIGTERM"])
def test_the_lock_goes_with_the_process(tmp_path, signal):
    code = (
        "import sys, pathlib; from edsr.training.lock import RunLock\n"
        "lock = RunLock(); lock.acquire(pathlib.Path(sys.argv[1])); print('held', flush=True); sys.stdin.read()"
    )
    start = [sys.executable, "-c", code, str(tmp_path)]
    with subprocess.Popen(start, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as other:
        assert other.stdout.readline() == "held\n"
        with pytest.raises(TrainError, match="being trained by another process"):
            RunLock().acquire(tmp_path)
        other.kill() if signal == "SIGKILL" else other.terminate()
        other.wait()
    lock = RunLock()
    lock.acquire(tmp_path)
    lock.acquire(tmp_path)
    lock.close()
    assert not list(tmp_path.iterdir())


def test_a_file_system_without_locks_is_said(tmp_path, monkeypatch, lines):
    def refuse(handle):
        raise OSError(95, "Operation not supported")

    monkeypatch.setattr(lock, "_lock", refuse)
    RunLock().acquire(tmp_path)
    assert len(lines) == 1 and "cannot be locked here" in lines[0]
