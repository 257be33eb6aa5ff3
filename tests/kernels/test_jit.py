"""Machine code of the Winograd kernels: made once, kept safely, right for other CPUs too."""

import ctypes
import re
import subprocess
import sys

import pytest
import torch
import torch.nn.functional as F

from edsr.kernels.winograd import ops as winograd_cpu
from tests.conftest import ROOT
from tests.support.processes import communicate

if winograd_cpu.unavailable_reason("cpu", torch.float32, 16):
    pytest.skip(winograd_cpu.unavailable_reason("cpu", torch.float32, 16), allow_module_level=True)

from llvmlite import binding as llvm

from edsr.kernels.winograd import autograd, codegen, jit, runtime
from edsr.kernels.winograd.tiles import Shape

HERE = jit.this_machine()


@pytest.fixture
def cache(tmp_path, monkeypatch, caplog):
    """An empty cache folder of this process's own; gives what loads the kernels as if for the first time, and the
    lines logged meanwhile."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    caplog.set_level("INFO", "edsr")

    def load():
        jit.loaded.cache_clear()
        caplog.clear()
        return jit.load(), caplog.messages

    load.folder = tmp_path / "edsr-triton"
    return load


@pytest.fixture(scope="module")
def code() -> bytes:
    return jit.compiled(HERE)


def convolves(kernels) -> bool:
    """Whether the kernels give what PyTorch gives, on edges and inside, in strips full and not."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(jit, "load", lambda training=False: kernels)
        x = torch.randn(1, 48, 13, 18).contiguous(memory_format=torch.channels_last)
        weight, bias = torch.randn(80, 48, 3, 3) / 20, torch.randn(80)
        difference = winograd_cpu.conv3x3(x, weight, bias) - F.conv2d(x, weight, bias, padding=1)
        dy = torch.randn(1, 80, 13, 18).contiguous(memory_format=torch.channels_last)
        gradient = torch.zeros(1)
        if "wgrad3x3" in kernels.functions:
            gradient = autograd.wgrad(x, dy, 3)[0] - torch.nn.grad.conv2d_weight(x, weight.shape, dy, padding=1)
    return difference.abs().max().item() < 2e-5 and gradient.abs().max().item() < 2e-4


class TestCache:
    def test_compiled_once(self, cache):
        kernels, lines = cache()
        assert re.fullmatch("compiling the CPU kernels for .*, once on this machine", lines[0])
        assert re.fullmatch(r"compiled in \d+\.\d s", lines[1]) and convolves(kernels)
        (kept,) = cache.folder.iterdir()
        before = kept.stat()
        kernels, lines = cache()
        assert not lines and convolves(kernels)
        assert kept.stat().st_mtime_ns == before.st_mtime_ns

    @pytest.mark.parametrize(
        "damage",
        [
            lambda code: b"",
            lambda code: code[:20],
            lambda code: code[: len(code) // 2],
            lambda code: code[:-1],
            lambda code: code[:5000] + bytes([code[5000] ^ 1]) + code[5001:],
            lambda code: b"\0" * len(code),
        ],
        ids=["empty", "no checksum", "half", "a byte short", "a bit turned", "zeros"],
    )
    def test_damage_is_mended(self, cache, damage, code, monkeypatch):
        monkeypatch.setattr(jit, "compiled", lambda *_: code)
        kept = jit.object_path(HERE)
        jit.write_object(kept, code)
        whole = kept.read_bytes()
        kept.write_bytes(damage(whole))
        kernels, lines = cache()
        assert len(lines) == 2 and convolves(kernels)
        assert kept.read_bytes() == whole

    @pytest.mark.skipif(sys.platform == "win32", reason="modes")
    @pytest.mark.parametrize("which", ["file", "folder"])
    def test_code_that_others_can_write_is_not_executed(self, cache, which, code, monkeypatch):
        """Though its checksum is right: it is compiled in memory, which is said, and the file is made anew."""
        monkeypatch.setattr(jit, "compiled", lambda *_: code)
        kept = jit.object_path(HERE)
        evil = bytes(len(code))
        jit.write_object(kept, evil)
        (kept if which == "file" else kept.parent).chmod(0o777)
        kernels, lines = cache()
        assert convolves(kernels) and "other users can write to it" in lines[0] and len(lines) == 3
        assert kept.read_bytes().endswith(evil if which == "folder" else code)

    @pytest.mark.slow
    @pytest.mark.parametrize("obstacle", ["a file for the folder", "a folder for the file"])
    def test_nowhere_to_keep_it(self, cache, obstacle, code, monkeypatch):
        monkeypatch.setattr(jit, "compiled", lambda *_: code)
        if obstacle == "a file for the folder":
            cache.folder.write_bytes(b"")
        else:
            jit.object_path(HERE).mkdir(parents=True)
        for _ in range(2):
            kernels, lines = cache()
            assert len(lines) == 2 and lines[1].endswith(f"{cache.folder} cannot keep them") and convolves(kernels)
        assert cache.folder.is_file() or len(list(cache.folder.iterdir())) == 1  # nothing half-written

    @pytest.mark.slow
    def test_two_processes_at_once(self, tmp_path):
        code = (
            "import sys; from edsr.kernels.winograd import jit\n"
            "sys.stdout.write('here\\n'); sys.stdout.flush()\n"
            "sys.stdin.readline(); jit.load(); jit.loaded.cache_clear()\n"
            "jit.compiled = lambda *_: sys.exit('not kept'); jit.load()"
        )
        start = [sys.executable, "-c", code]
        env = {"XDG_CACHE_HOME": str(tmp_path), "PATH": ""}
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
        both = [subprocess.Popen(start, cwd=ROOT, env=env, text=True, **pipes) for _ in range(2)]
        for process in both:
            assert process.stdout.readline() == "here\n"
        for process in both:  # both wait for a line, and neither has compiled
            process.stdin.write("\n")
            process.stdin.flush()
        for process in both:
            _, errors = communicate(process)
            assert process.returncode == 0, errors
        (kept,) = (tmp_path / "edsr-triton").iterdir()
        assert jit.read_object(kept)

    def test_the_file_name_depends_on_all_that_the_code_does(self, monkeypatch):
        others = HERE._replace(cpu="z80"), HERE._replace(features="+x"), HERE._replace(shape=Shape(4, 1, 1))
        paths = {jit.object_path(machine) for machine in (HERE, *others)} | {jit.object_path(HERE, training=True)}
        monkeypatch.setattr(jit, "llvmlite_version", "0")
        paths.add(jit.object_path(HERE))
        monkeypatch.setattr(jit.Path, "read_text", lambda path, encoding: path.name)
        paths.add(jit.object_path(HERE))
        assert len(paths) == 7


class TestOtherMachines:
    @pytest.mark.slow
    @pytest.mark.parametrize(
        ("cpu", "needs"),
        [("haswell", "avx2"), ("skylake-avx512", "avx512f"), ("x86-64", "sse2")],
    )
    def test_other_vectors(self, cpu, needs):
        features = llvm.get_host_cpu_features()
        if not features.get(needs):
            pytest.skip(f"this CPU has no {needs}")
        shape = {"avx2": Shape(8, 6, 2), "avx512f": Shape(16, 3, 4), "sse2": Shape(4, 3, 4)}[needs]
        machine = jit.Machine(cpu, "", shape)
        assert convolves(jit.link(machine, jit.compiled(machine, training=True), training=True))

    def test_shapes(self, monkeypatch):
        monkeypatch.setattr(sys, "platform", "linux")
        assert jit.shape_for("x86_64", {"avx512f": True, "avx2": True, "fma": True}).lanes == 16
        assert jit.shape_for("x86_64", {"avx512f": False, "avx2": True, "fma": True}).lanes == 8
        assert jit.shape_for("arm64", {}).lanes == 4
        with pytest.raises(jit.NativeError, match="AVX2"):
            jit.shape_for("x86_64", {"avx2": True, "fma": False})
        monkeypatch.setattr(sys, "platform", "win32")
        assert jit.shape_for("AMD64", {"avx2": True, "fma": True}).lanes == 8
        with pytest.raises(jit.NativeError, match="Windows on ARM"):
            jit.shape_for("ARM64", {})

    @pytest.mark.parametrize("training", [False, True])
    @pytest.mark.parametrize("shape", [Shape(4, 3, 4), Shape(8, 6, 2), Shape(16, 3, 4)], ids=["neon", "avx2", "avx512"])
    def test_the_ir_of_every_shape_is_valid(self, shape, training):
        module = llvm.parse_assembly(codegen.source(shape, training))
        module.verify()
        names = {function.name for function in module.functions if not function.is_declaration}
        assert names.issuperset(codegen.TRAINING_NAMES if training else codegen.NAMES)

    @pytest.mark.skipif(not HERE.triple.startswith("x86_64"), reason="runs code for x86-64")
    @pytest.mark.parametrize("needs", ["avx2", "avx512f"])
    def test_windows(self, needs):
        """Machine code for Windows, in its format and with its calling convention, computes the same; here, because it
        needs nothing of the system."""
        if not llvm.get_host_cpu_features().get(needs):
            pytest.skip(f"this CPU has no {needs}")
        cpu, shape = {"avx2": ("haswell", Shape(8, 6, 2)), "avx512f": ("skylake-avx512", Shape(16, 3, 4))}[needs]
        machine = jit.Machine(cpu, "", shape, "x86_64-pc-windows-msvc")
        code = jit.compiled(machine, training=True)
        sections = {section.name() for section in llvm.ObjectFileRef.from_data(code).sections()}
        assert b".text" in sections and b".pdata" not in sections  # tables that the linker may fail to place
        kernels = jit.link(machine, code, training=True)
        calls = "".join(
            f"define void @{name}(ptr %task, ptr %scratch) {{\n"
            f"call win64cc void inttoptr (i64 {ctypes.cast(function, ctypes.c_void_p).value} to ptr)"
            "(ptr %task, ptr %scratch)\nret void\n}\n"
            for name, function in kernels.functions.items()
        )
        # As native code, which hands its arguments over as Windows wants them.
        native = llvm.create_mcjit_compiler(llvm.parse_assembly(calls), jit._target(HERE))
        native.finalize_object()
        kind = ctypes.CFUNCTYPE(None, ctypes.c_void_p, ctypes.c_void_p)
        functions = {name: kind(native.get_function_address(name)) for name in kernels.functions}
        assert convolves(kernels._replace(functions=functions))

    def test_windows_needs_nothing_of_its_libraries(self):
        """What would be missing ends the process. LLVM calls `__chkstk` in large frames, which is there."""
        machine = HERE._replace(triple="x86_64-pc-windows-msvc")
        for training in (False, True):
            target = jit._target(machine)
            module = jit.translated(machine, training)
            text = target.emit_assembly(module)
            called = set(re.findall(r"movabsq\s+\$([a-z_]\w*), %r", text, re.I)) - {
                function.name for function in module.functions if not function.is_declaration
            }
            assert {name for name in called if not name.startswith("__real")} <= {"__chkstk"}
            assert "\n__chkstk:" in text

    @pytest.mark.slow
    def test_neon(self):
        """Translated for ARM: multiplied by one lane of a vector, so that there is nothing to broadcast."""
        llvm.initialize_all_targets()
        llvm.initialize_all_asmprinters()
        target = llvm.Target.from_triple("aarch64-linux-gnu").create_target_machine("neoverse-n1", opt=3)
        module = llvm.parse_assembly(codegen.source(jit.shape_for("aarch64", {}), training=True))
        module.verify()
        passes = llvm.create_pass_builder(target, llvm.create_pipeline_tuning_options(speed_level=2))
        passes.getModulePassManager().run(module, passes)
        text = target.emit_assembly(module)
        body = text[text.index("multiply_4:") : text.index(".size\tmultiply_4")]
        assert len(re.findall(r"fmla\s.*\.s\[\d\]", body)) == 15 * 12  # of 16 channels, the first is no sum

    def test_failure_is_one_line(self, cache, monkeypatch):
        monkeypatch.setattr(jit, "source", lambda *_: "this is no code")
        with pytest.raises(jit.NativeError, match=r"^the kernels could not be compiled: .*$"):
            cache()


def test_the_code_can_be_read():
    printed = subprocess.run(
        [sys.executable, "-m", "edsr.kernels.winograd.jit"], cwd=ROOT, capture_output=True, text=True
    )
    assert printed.returncode == 0 and f"<{HERE.shape.lanes} x float>" in printed.stdout
    llvm.parse_assembly(printed.stdout).verify()


def test_tasks_agree():
    """What Python packs is what the compiled code reads."""
    for name in codegen.TRAINING_NAMES:
        layout, fields = runtime.task_layout(name)
        assert layout.size == 8 * len(fields) == 8 * len((ctypes.c_int64 * len(fields))())
        assert fields is codegen.TASKS[name[:-3]] and sum(field.startswith("next") for field in fields) == 1
