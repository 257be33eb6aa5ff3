"""Whatever is killed or refused by the system at any of its calls leaves the old file or the new one, whole.

strace kills, or fails, each call that touches the folder of the outputs, one at a time. EDSR_SYSTEM_CALLS=all takes
every error at every call, and more formats.
"""

import collections
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from edsr.training import checkpoint
from edsr.weights import load_model, save_model
from tests.conftest import ROOT, make_image, network
from tests.support import fault_server

ALL = os.environ.get("EDSR_SYSTEM_CALLS") == "all"
CALLS = re.findall(
    r"\w+",
    """open openat creat mkdir mkdirat write pwrite64 writev pwritev fsync fdatasync sync_file_range close ftruncate
    fallocate rename renameat renameat2 link linkat symlink unlink unlinkat rmdir chmod fchmod fchmodat fchown""",
)
ERRORS = "ENOSPC", "EIO"

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(sys.platform != "linux", reason="strace is Linux's"),
    pytest.mark.skipif(not shutil.which("strace"), reason="needs strace, which is not installed"),
]


class Traced:
    """A server of processes under strace, and the folder that they write into."""

    def __init__(self, place: Path):
        self.place, self.out = place, place / "out"
        self.go, self.log, self.trace = place / "go", place / "log", place / "trace"
        os.mkfifo(self.go)
        command = [sys.executable, "-m", "tests.support.fault_server"]
        environment = os.environ | {"OMP_NUM_THREADS": "1", "VIPS_CONCURRENCY": "1", "PYTHONPATH": str(ROOT)}
        self._server = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=place, env=environment
        )

    def close(self) -> None:
        self._server.communicate()

    def run(self, action: str, arguments: tuple[str, ...], watched: list[str] | None = None, inject: str = "") -> int:
        """The exit code of an action; negative if a signal ended it. watched: what in `out` strace looks for."""
        assert self._server.stdin is not None and self._server.stdout is not None
        order = {"action": action, "arguments": arguments, "go": str(self.go), "log": str(self.log)}
        self._server.stdin.write(json.dumps(order) + "\n")
        self._server.stdin.flush()
        child = self._server.stdout.readline().strip()
        strace = None
        if watched is not None:
            paths = [item for name in ("", *watched) for item in ("-P", os.path.join(self.out, name).rstrip("/"))]
            known = [f"?{name}" for name in CALLS]  # "?": other machines have no `open`, for instance
            options = ["-f", "-o", str(self.trace), "-e", f"trace={','.join(known)}", *paths]
            options += ["-e", f"inject={inject}"] if inject else []
            strace = subprocess.Popen(["strace", *options, "-p", child], stderr=subprocess.PIPE, text=True)
            assert strace.stderr is not None
            said = strace.stderr.readline()
            if "attached" not in said:
                strace.kill()
                strace.communicate()
                self.go.write_bytes(b"")
                self._server.stdout.readline()
                pytest.skip(f"strace cannot attach here: {said.strip()}")
        self.go.write_bytes(b"")
        code = int(self._server.stdout.readline())
        if strace is not None:
            strace.communicate()
        return code

    def calls(self) -> list[tuple[str, int]]:
        """Each call that the trace has, as (name, which of this name in its thread), once for all threads."""
        seen = collections.Counter(re.findall(r"^(\d+) +(\w+)\(", self.trace.read_text(errors="replace"), re.MULTILINE))
        most: dict[str, int] = {}
        for (_, name), count in seen.items():
            most[name] = max(most.get(name, 0), count)
        return [(name, i) for name, count in most.items() for i in range(1, count + 1)]

    def contents(self) -> dict[str, bytes]:
        return {str(p.relative_to(self.out)): p.read_bytes() for p in sorted(self.out.rglob("*")) if p.is_file()}


@pytest.fixture(scope="module")
def traced(tmp_path_factory):
    server = Traced(tmp_path_factory.mktemp("traced"))
    save_model(network(blocks=1), server.place / "m.safetensors")
    for kind in "png", "tif", "jpg", "webp", "avif":
        image, exif = Image.fromarray(make_image(12, 15)), Image.Exif()
        exif[0x010E] = "a ship"
        image.save(server.place / f"a.{kind}", exif=exif)
    yield server
    server.close()


def is_leftover(name: str) -> bool:
    return name.startswith(".edsr-") and name.split("/")[0].endswith(".part")


def injections(calls):
    """What strace does, for each call: kill, and the errors in turn, or all of them."""
    for number, (name, which) in enumerate(calls):
        if ALL or not name.startswith("open"):
            yield f"{name}:signal=SIGKILL:when={which}"
        for error in ERRORS if ALL else ERRORS[number % 2 :][:1]:
            yield f"{name}:error={error}:when={which}"


def try_every_call(traced, action, arguments, watched, prepare, check) -> None:
    """Injects into every call in turn. prepare fills `out`; check(new) asserts what is there, and if it must be new."""

    def begin():
        shutil.rmtree(traced.out, ignore_errors=True)
        traced.out.mkdir()
        prepare()

    begin()
    assert traced.run(action, arguments, watched) == 0, traced.log.read_text()
    check(True)
    calls = traced.calls()
    names = {name for name, _ in calls}
    assert "fsync" in names and len(calls) > 5, calls
    for inject in injections(calls):
        begin()
        code = traced.run(action, arguments, watched, inject)
        said = traced.log.read_text()
        what = f"{inject}: exit code {code}, {said}"
        if "SIGKILL" in inject:
            assert code == -9, what
        else:
            assert code in (0, 1), what
            assert code == 0 or len(said.strip().splitlines()) <= 3, what
        assert "INJECTED" in traced.trace.read_text(errors="replace") or code == -9, what
        try:
            check(code == 0)
            leftovers = [name for name in traced.contents() if is_leftover(name)]
            assert not leftovers or code == -9 or re.match("unlink|rmdir|open|close", inject), leftovers
            if leftovers or code == -9:
                again = ("--overwrite",) if "upscale" in arguments else ()
                assert traced.run(action, (*arguments, *again)) == 0, traced.log.read_text()
                check(True)
            assert not [name for name in traced.contents() if is_leftover(name)], "leftovers stay"
        except AssertionError as error:
            raise AssertionError(f"{what}\n{traced.trace.read_text(errors='replace')}\n{error}") from error


@pytest.mark.parametrize(
    ("kind", "there"),
    [("png", False), ("tif", True)]
    + ALL * [("png", True), ("tif", False), ("jpg", True), ("webp", True), ("avif", True)],
)
def test_upscale(traced, kind, there):
    name = f"a_x2.{kind}"
    options = "--model", str(traced.place / "m.safetensors"), "--device", "cpu", "--backend", "torch", "--quiet"
    arguments = "upscale", str(traced.place / f"a.{kind}"), "-o", str(traced.out / name), *options
    if there:
        arguments += ("--overwrite",)
    traced.out.mkdir(exist_ok=True)
    assert traced.run("command", (*arguments, "--overwrite")) == 0, traced.log.read_text()
    want = (traced.out / name).read_bytes()
    assert Image.open(traced.out / name).size == (30, 24)

    def prepare():
        if there:
            (traced.out / name).write_bytes(b"old")

    def check(new):
        found = {name: data for name, data in traced.contents().items() if not is_leftover(name)}
        allowed = [{name: want}] if new else [{name: want}, {name: b"old"} if there else {}]
        assert found in allowed, {name: len(data) for name, data in found.items()}

    try_every_call(traced, "command", arguments, [name, *fault_server.PARTS], prepare, check)


def test_convert(traced):
    source, target = traced.place / "m.safetensors", traced.out / "n.safetensors"
    arguments = "convert", str(source), str(target), "--overwrite"
    weights = load_model(source).state_dict()

    def prepare():
        target.write_bytes(b"old")

    def check(new):
        assert [name for name in traced.contents() if not is_leftover(name)] == [target.name]
        if target.read_bytes() == b"old":
            assert not new
        else:
            found = load_model(target).state_dict()
            assert all(np.array_equal(found[key], weights[key]) for key in weights)

    try_every_call(traced, "command", arguments, [target.name, *fault_server.PARTS], prepare, check)


@pytest.mark.parametrize("before", [(3, 5), (fault_server.STEP,)] + ALL * [(5, fault_server.STEP), ()], ids=str)
def test_checkpoint(traced, before):
    """before: the steps that have been saved; one of them may be the same, with other contents."""
    run, step = traced.out, fault_server.STEP
    folders = [f"checkpoint-{i:08d}" for i in sorted({*before, step})]
    inner = [f"{folder}/{name}" for folder in (*folders, *fault_server.PARTS) for name in fault_server.SHARDS]

    def prepare():
        for i in before:
            checkpoint.write(run, fault_server.state(i)._replace(record={"best": "old"}))

    def check(new):
        found = checkpoint.load_latest(run)
        assert found.step == step or (not new and found.step == max(before))
        assert found.record == {"best": step} or (not new and found.record == {"best": "old"})
        expected = fault_server.state(found.step).tensors
        assert all(np.array_equal(found.tensors[name], expected[name]) for name in expected)
        others = {name.split("/")[0] for name in traced.contents() if not is_leftover(name)}
        assert others <= set(folders)

    try_every_call(traced, "save_checkpoint", (str(run),), [*folders, *fault_server.PARTS, *inner], prepare, check)
