"""The probe of the kernels for Hopper GPUs: real processes, with kernels that are right, wrong, crash or hang."""

import json
import logging
import os
import subprocess
import sys
import time
from types import SimpleNamespace

import pytest
import torch

pytest.importorskip("triton.experimental.gluon")

from edsr.kernels.triton import launch
from edsr.kernels.triton.hopper import probe, verification
from tests.conftest import ROOT
from tests.support.processes import killed_if_idle, wait_until

# What `python -m kernels.triton.hopper.probe --one KERNEL DTYPE` does, with the GPU and the check of a kernel played.
STAND_IN = """
import os, sys, time, torch
from edsr.kernels.triton import launch
from edsr.kernels.triton.hopper import probe, self_test

fate = dict(pair.split("=") for pair in sys.argv[1].split(","))
kernel, dtype = sys.argv[2:]
does = fate.get(f"{kernel}-{dtype}", "right")

def check(name, of, device):
    if does == "hangs":
        time.sleep(600)
    if does == "crashes":
        os._exit(11)
    if does == "raises":
        raise RuntimeError("CUDA error: an illegal memory access was encountered\\nmore")
    if does == "no memory for Triton":
        raise RuntimeError("Triton Error [CUDA]: out of memory")
    if does == "no memory":
        raise torch.OutOfMemoryError("CUDA out of memory")
    return None if does == "right" else "differs"

def compile_check(name, of, arch):
    assert arch == 90
    if does == "does not compile":
        raise ValueError("ptxas")

def zeros(size, device):
    if does == "taken":
        raise RuntimeError("CUDA-capable device(s) is/are busy or unavailable")

torch.zeros = zeros
torch.cuda.device = lambda device: __import__("contextlib").nullcontext()
launch.architecture = lambda device: 90
self_test.check, self_test.compile_check = check, compile_check
say = lambda line: print(line, flush=True)
probe.try_one(kernel, probe.DTYPES[dtype], 0, sys.stdin.readline, say)
"""


@pytest.fixture
def patient(monkeypatch):
    """Time passes for what hangs alone: others take what this machine needs."""
    read_line, lines = probe._Process.read_line, {}

    def read(self, seconds: float) -> str | None:
        fates, kernel, dtype = self._process.args[-3:]
        fate = dict(pair.split("=") for pair in fates.split(",")).get(f"{kernel}-{dtype}")
        hangs = fate == "compiles for ever" or (fate == "hangs" and lines.get(self) == "compiled")
        lines[self] = read_line(self, 0.2 if hangs else 600.0)
        return lines[self]

    monkeypatch.setattr(probe._Process, "read_line", read)


@pytest.fixture
def play(tmp_path, patient):
    """Runs a probe of kernels of a given fate; all others are right."""
    script = tmp_path / "stand_in.py"
    script.write_text(STAND_IN)

    def run(seconds: float = 2.0, compiling: float = 60.0, **fate: str) -> dict[str, str]:
        words = ",".join(f"{key.replace('_', '-')}={value}" for key, value in fate.items()) or "none=right"
        environment = {"PYTHONPATH": str(ROOT), "TRITON_INTERPRET": "0"}
        with pytest.MonkeyPatch.context() as patch:
            for name, value in environment.items():
                patch.setenv(name, value)
            return dict(probe.probe([sys.executable, str(script), words], seconds, compiling))

    return run


# The lines that such a process exchanges with `probe`, without torch, whose import takes seconds.
PUPPET = """
import os, sys, time
status = dict(pair.split("=") for pair in sys.argv[1].split(",")).get("-".join(sys.argv[2:]), "verified")
if status == "compiles for ever":
    time.sleep(600)
if status == "does not compile":
    sys.exit(print(status))
print("compiled", flush=True)
assert sys.stdin.readline() == "go\\n"
if status == "hangs":
    time.sleep(600)
if status == "crashes":
    os._exit(11)
print(status)
"""


def test_what_the_processes_report_and_how_they_end(tmp_path, patient):
    fates = (
        "c64-fp16=hangs,copies-fp16=crashes,wide-fp16=differs,block-fp16=compiles for ever,wide-bf16=does not compile"
    )
    (tmp_path / "puppet.py").write_text(PUPPET)
    found = dict(probe.probe([sys.executable, str(tmp_path / "puppet.py"), fates], seconds=1.0, compiling=5.0))
    assert list(found) == verification.ALL
    assert found == {
        "c64 fp16": "hangs: nothing after 1 s",
        "copies fp16": "crashes: its process ended with exit code 11",
        "wide fp16": "differs",
        "block fp16": "untried: not compiled after 5 s",
        "c64 bf16": "not tried, since it hangs in fp16",
        "copies bf16": "verified",
        "wide bf16": "does not compile",
        "block bf16": "verified",
    }


@pytest.mark.slow
def test_each_kernel_gets_its_status(play):
    found = play(
        c64_fp16="hangs", c64_bf16="right", copies_fp16="crashes", wide_fp16="raises", block_fp16="wrong",
        copies_bf16="no memory", wide_bf16="does not compile", block_bf16="taken",
    )  # fmt: skip
    assert list(found) == verification.ALL
    assert found == {
        "c64 fp16": "hangs: nothing after 2 s",
        "copies fp16": "crashes: its process ended with exit code 11",
        "wide fp16": "fails: RuntimeError: CUDA error: an illegal memory access was encountered",
        "block fp16": "differs",
        "c64 bf16": "not tried, since it hangs in fp16",
        "copies bf16": "untried: OutOfMemoryError: CUDA out of memory",
        "wide bf16": "does not compile: ValueError: ptxas",
        "block bf16": "untried: RuntimeError: CUDA-capable device(s) is/are busy or unavailable",
    }


@pytest.mark.slow
def test_a_kernel_that_is_right_is_verified(play):
    found = play(wide_bf16="no memory for Triton")
    assert found.pop("wide bf16") == "untried: RuntimeError: Triton Error [CUDA]: out of memory"
    assert set(found.values()) == {"verified"}


@pytest.mark.slow
@pytest.mark.parametrize("after", ["compiled", "go"])
def test_without_the_probe_its_processes_end_and_launch_nothing(after, tmp_path):
    """Somebody has killed it: nobody would end a kernel that hangs."""
    code = (
        "import sys, time\nfrom edsr.kernels.triton import launch\n"
        "from edsr.kernels.triton.hopper import probe, self_test\n"
        "import torch\ntorch.zeros = lambda size, device: None\nlaunch.architecture = lambda device: 90\n"
        "torch.cuda.device = lambda device: __import__('contextlib').nullcontext()\n"
        "self_test.compile_check = lambda *of: None\n"
        "launched = sys.argv[1]\nself_test.check = lambda *of: (open(launched, 'w').close(), time.sleep(600))\n"
        "sys.exit(probe.main(['--one', 'c64', 'fp16']))"
    )
    launched = tmp_path / "launched"
    process = subprocess.Popen(
        [sys.executable, "-c", code, str(launched)], cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert process.stdin is not None and process.stdout is not None
    assert process.stdout.readline() == "compiled\n"
    if after == "go":
        process.stdin.write("go\n")
        process.stdin.flush()
        wait_until(launched.exists, process)
    process.stdin.close()
    with killed_if_idle(process):
        process.wait()
    assert launched.exists() == (after == "go")


def test_what_a_compiler_prints_is_no_status():
    """A process as the command starts it, whose standard output somebody else writes to as well."""
    code = (
        "import os, sys\nfrom edsr.kernels.triton.hopper import probe\n"
        "def try_one(kernel, dtype, index, wait, say):\n"
        "    os.write(1, b'ptxas says\\n')\n    print('so does Triton')\n    say(f'{kernel} {dtype}')\n"
        "probe.try_one = try_one\nsys.exit(probe.main(['--one', 'c64', 'fp16']))"
    )
    result = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert result.stdout == "c64 torch.float16\n", result.stderr


# --- what is kept


@pytest.fixture
def gpu(monkeypatch, tmp_path):
    """As if there were a Hopper GPU, with a cache and configurations of its own."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: SimpleNamespace(name="NVIDIA Made-up"))
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device=None: (9, 0))
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(launch, "FOLDER", tmp_path / "configs")
    monkeypatch.setattr(launch, "architecture", lambda device: 90)
    launch._load_record.cache_clear()
    verification.process_statuses.cache_clear()
    yield torch.device("cuda", 0)
    launch._load_record.cache_clear()
    verification.process_statuses.cache_clear()


def test_statuses_are_kept_for_this_gpu_driver_triton_and_kernels(gpu, monkeypatch):
    assert verification.read_statuses(gpu) == {}
    assert verification.save_status(gpu, "c64 fp16", "verified")
    assert verification.save_status(gpu, "block fp16", "differs")
    assert verification.read_statuses(gpu) == {"c64 fp16": "verified", "block fp16": "differs"}
    paths = {verification.cache_path("NVIDIA Made-up"), verification.cache_path("another GPU")}
    for module, name, value in (
        (verification, "driver", lambda: "0"),
        (verification.triton, "__version__", "0"),
        (verification, "fingerprint", lambda: "0"),
    ):
        with monkeypatch.context() as patch:
            patch.setattr(module, name, value)
            paths.add(verification.cache_path("NVIDIA Made-up"))
            assert verification.read_statuses(gpu) == {}
    assert len(paths) == 5


def test_the_fingerprint_is_of_the_kernels(monkeypatch):
    before = verification.fingerprint()
    monkeypatch.setattr(verification, "SOURCES", verification.SOURCES[:-1])
    verification.fingerprint.cache_clear()
    assert verification.fingerprint() != before
    verification.fingerprint.cache_clear()


@pytest.mark.parametrize(
    "content", [b"", b"{", b"[1]", b"\xff\xfe", b'{"c64 fp16": "verified"}', b'{"c64 fp16": [1, "x"]}']
)
def test_a_damaged_file_of_statuses_is_none(gpu, content):
    file = verification.cache_path("NVIDIA Made-up")
    file.parent.mkdir(parents=True)
    file.write_bytes(content)
    assert verification.read_statuses(gpu) == {}
    assert verification.save_status(gpu, "c64 fp16", "verified")
    assert verification.read_statuses(gpu) == {"c64 fp16": "verified"}


def test_a_process_goes_by_what_was_known_when_it_first_asked(gpu):
    assert verification.process_statuses(gpu) == {}
    verification.save_status(gpu, "c64 fp16", "verified")
    assert verification.process_statuses(gpu) == {}


def ship(record) -> None:
    launch.FOLDER.mkdir(exist_ok=True)
    (launch.FOLDER / "nvidia-made-up.json").write_text(json.dumps({"configs": {}, "choices": {"hopper": record}}))
    launch._load_record.cache_clear()


def test_shipped_statuses_go_before_cached_ones_if_they_are_of_these_kernels(gpu):
    verification.save_status(gpu, "c64 fp16", "verified")
    verification.save_status(gpu, "block fp16", "verified")
    ship(verification.shipping_record({"c64 fp16": "hangs: nothing after 10 s"}))
    assert verification.read_statuses(gpu) == {"c64 fp16": "hangs: nothing after 10 s", "block fp16": "verified"}
    for stale in ("triton", "kernels"):
        ship(verification.shipping_record({"c64 fp16": "hangs: nothing after 10 s"}) | {stale: "of yore"})
        assert verification.read_statuses(gpu)["c64 fp16"] == "verified"


# --- the command


def test_the_command_keeps_statuses(gpu, monkeypatch, capsys):
    found = [(key, "verified") for key in verification.ALL[:6]]
    found += [("wide bf16", "untried: busy"), ("block bf16", "hangs")]
    monkeypatch.setattr(probe, "probe", lambda command: iter(found))
    assert probe.main([]) == 1
    assert verification.read_statuses(gpu) == dict(found)
    assert "block bf16: hangs" in capsys.readouterr().out
    monkeypatch.setattr(probe, "probe", lambda command: pytest.fail("all have been tried"))
    assert probe.main([]) == 0
    assert "block bf16: hangs" in capsys.readouterr().out


def test_what_chance_had_a_hand_in_is_tried_again_after_a_day(gpu, monkeypatch):
    now = time.time()
    monkeypatch.setattr(verification.time, "time", lambda: now)
    words = ["verified", "untried: busy", "hangs: nothing after 10 s", "not tried, since it hangs in fp16"]
    words += ["fails: RuntimeError", "crashes: 11", "differs", "does not compile: ValueError"]
    for key, status in zip(verification.ALL, words, strict=True):
        assert key in verification.pending(gpu)
        verification.save_status(gpu, key, status)
    assert verification.pending(gpu) == []
    now += 25 * 3600
    assert verification.pending(gpu) == verification.ALL[1:4]
    ship(verification.shipping_record({verification.ALL[2]: "hangs: nothing after 5 s"}))
    assert verification.pending(gpu) == [verification.ALL[1], verification.ALL[3]]


def test_without_a_folder_for_statuses_the_command_still_tries(gpu, monkeypatch, capsys, tmp_path):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    monkeypatch.setattr(probe, "probe", lambda command: iter([("c64 fp16", "verified")]))
    assert probe.main([]) == 0
    said = capsys.readouterr().out
    assert "c64 fp16: verified" in said and "cannot keep that" in said


@pytest.mark.parametrize("path", sorted(launch.FOLDER.glob("*.json")), ids=lambda path: path.stem)
def test_shipped_statuses_are_about_these_kernels(path):
    """A kernel that was edited since is not what was tried; it is, as a rule, time to try again, or to say why not."""
    record = json.loads(path.read_text(encoding="utf-8"))["choices"].get("hopper")
    assert record is None or record["kernels"] == verification.fingerprint()


def test_one_probe_at_a_time(gpu, monkeypatch, capsys):
    with probe.exclusive_lock(verification.cache_path("NVIDIA Made-up").with_suffix(".lock")) as only:
        assert only
        assert probe.main([]) == 1
    assert "another process" in capsys.readouterr().out


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU to run on")
def test_without_a_hopper_gpu_it_refuses_in_one_line():
    result = subprocess.run(
        [sys.executable, "-m", "edsr.kernels.triton.hopper.probe"], cwd=ROOT, capture_output=True, text=True
    )
    assert result.returncode == 2 and result.stdout.count("\n") == 1 and not result.stderr


# --- beside a program


def test_begin_starts_a_probe_where_something_was_not_tried(gpu, monkeypatch, caplog):
    caplog.set_level(logging.INFO, logger="edsr.kernels")
    started = []
    monkeypatch.setattr(subprocess, "Popen", lambda command, **options: started.append((command, options)))
    probe.begin(gpu)
    ((command_line, options),) = started
    assert command_line[:3] == [sys.executable, "-m", "edsr.kernels.triton.hopper.probe"] and command_line[3:5] == [
        "--device",
        "0",
    ]
    assert options["env"]["PYTHONPATH"].split(os.pathsep)[0] == str(ROOT) and options["start_new_session"]
    (record,) = caplog.records
    assert "portable kernels serve in this run" in record.message
    for key in verification.ALL:
        verification.save_status(gpu, key, "verified")
    probe.begin(gpu)
    assert len(started) == 1 and len(caplog.records) == 1


def test_begin_can_be_switched_off(gpu, monkeypatch):
    monkeypatch.setattr(subprocess, "Popen", lambda *a, **o: pytest.fail("switched off"))
    monkeypatch.setenv("EDSR_PROBE", "0")
    probe.begin(gpu)
    assert "EDSR_PROBE=0" in (ROOT / "bench" / "machine.sh").read_text()


def test_begin_leaves_other_devices_alone(gpu, monkeypatch):
    monkeypatch.setattr(subprocess, "Popen", lambda *a, **o: pytest.fail("nothing to try"))
    probe.begin(torch.device("cpu"))
    monkeypatch.setattr(launch, "architecture", lambda device: 80)
    probe.begin(gpu)


@pytest.mark.slow
def test_a_probe_started_from_anywhere_finds_the_kernels(tmp_path):
    """As `begin` starts it, from a folder that has no kernels in it."""
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv("PYTHONPATH", raising=False)
        environment = os.environ | {"PYTHONPATH": os.pathsep.join(probe._import_paths())}
    result = subprocess.run(probe.command(0), cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert "kernels" in result.stdout and "No module" not in result.stderr
