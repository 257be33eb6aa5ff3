"""With this folder on PYTHONPATH, Python believes in a Hopper GPU, and computes what is meant for it on the CPU.

For dry runs of bench/gpu.sh and bench/gpu_train.sh. torch.cuda answers, "cuda" in place of a device means the CPU,
graphs run what they have recorded, plain Triton kernels are interpreted and Gluon kernels emulated. What the benchmarks
work on is made tiny under its own name, and networks have one block: every path is walked, but figures mean nothing.

$FAKE_HANGS: "KERNEL DTYPE" of a kernel that hangs. $FAKE_COMPILE_DIES: torch.compile takes its process with it.
"""

import contextlib
import importlib.abc
import importlib.machinery
import os
import sys
import threading
import time
from dataclasses import replace
from types import SimpleNamespace

os.environ["TRITON_INTERPRET"] = "1"
ROOT = os.path.dirname(os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__)))))
NAME = "NVIDIA H100 80GB HBM3"

PATIENCE = 20  # times as long as on a GPU may anything take here that does not hang on purpose
QUIET = 15.0  # seconds without any work of a process after which it hangs
TRAINED = 20.0  # seconds of a processor that training has, whatever it is told


# --- torch


class Event:
    def __init__(self, **options):
        self.at = 0.0

    def record(self, stream=None):
        self.at = time.perf_counter()

    def elapsed_time(self, end):
        return max(1e-3, 1e3 * (end.at - self.at))

    def synchronize(self): ...
    def wait(self, stream=None): ...


class Stream:
    def __init__(self, device=None, priority=0, **options):
        self.device, self.priority = device, priority

    def wait_stream(self, stream): ...
    def wait_event(self, event): ...
    def record_event(self, event=None): ...
    def synchronize(self): ...


def patch_torch(torch):
    from torch.overrides import TorchFunctionMode

    def to_cpu(value):
        if isinstance(value, torch.device):
            return torch.device("cpu") if value.type == "cuda" else value
        return "cpu" if isinstance(value, str) and value.split(":")[0] == "cuda" else value

    class OnTheCpu(TorchFunctionMode):
        def __torch_function__(self, function, types, args=(), kwargs=None):
            kwargs = dict(kwargs or {})
            kwargs.pop("pin_memory", None)
            if "device" in kwargs:
                kwargs["device"] = to_cpu(kwargs["device"])
            if function is torch.Tensor.to:
                args = (args[0], *map(to_cpu, args[1:]))
            return function(*args, **kwargs)

    OnTheCpu().__enter__()
    run = threading.Thread.run

    def run_on_the_cpu(thread):
        with OnTheCpu():  # a mode is of one thread
            run(thread)

    threading.Thread.run = run_on_the_cpu
    generator = torch.Generator

    class Kind(type):
        def __instancecheck__(cls, instance):
            return isinstance(instance, generator)

    class Generator(metaclass=Kind):
        def __new__(cls, device="cpu"):
            return generator(to_cpu(device))

    torch.Generator = Generator
    torch.compile = lambda function, **options: os._exit(7) if "FAKE_COMPILE_DIES" in os.environ else function
    torch.Tensor.pin_memory = lambda x: x
    torch.Tensor.record_stream = lambda x, stream: None
    to = torch.nn.Module.to
    torch.nn.Module.to = lambda self, *a, **o: to(self, *map(to_cpu, a), **{k: to_cpu(v) for k, v in o.items()})

    properties = SimpleNamespace(name=NAME, major=9, minor=0, multi_processor_count=132, total_memory=80 << 30)
    properties.shared_memory_per_block_optin = 227 << 10
    streams = [Stream()]

    @contextlib.contextmanager
    def nothing(*args, **options):
        yield

    for name, value in {
        "is_available": lambda: True,
        "device_count": lambda: 1,
        "current_device": lambda: 0,
        "set_device": lambda device: None,
        "device": nothing,
        "get_device_name": lambda device=None: NAME,
        "get_device_capability": lambda device=None: (9, 0),
        "get_device_properties": lambda device=None: properties,
        "is_bf16_supported": lambda **options: True,
        "is_current_stream_capturing": lambda: False,
        "synchronize": lambda device=None: None,
        "empty_cache": lambda: None,
        "memory_reserved": lambda device=None: 0,
        "max_memory_reserved": lambda device=None: 1 << 30,
        "reset_peak_memory_stats": lambda device=None: None,
        "mem_get_info": lambda device=None: (70 << 30, 80 << 30),
        "Event": Event,
        "Stream": Stream,
        "stream": nothing,
        "current_stream": lambda device=None: streams[0],
        "graph_pool_handle": lambda: (0, 1),
        "get_rng_state": lambda device=None: torch.zeros(1, dtype=torch.uint8),
        "set_rng_state": lambda state, device=None: None,
        "manual_seed": lambda seed: None,
        "manual_seed_all": lambda seed: None,
    }.items():
        setattr(torch.cuda, name, value)


# --- what is computed


def patch_graphs(module):
    class CapturedGraph:
        """A graph that runs what it was made of."""

        def __init__(self, compute, *args, **options):
            self.replay = compute

    module.CapturedGraph = CapturedGraph


def patch_step(module):
    module.CHUNK_FLOPS = 0.0  # one step at a time: interpreted kernels take seconds for one


def patch_model(module):
    module.PRESETS["edsr-baseline"] = module.EDSRConfig(blocks=1, features=16)
    module.PRESETS["edsr"] = module.EDSRConfig(blocks=1, features=32, residual_scale=0.1)


def patch_weights(module):
    if "FAKE_WEIGHTS" in os.environ:  # the packaged ones are of larger networks
        module.FOLDER = module.Path(os.environ["FAKE_WEIGHTS"])


def patch_launch(module):
    interpret = module.run

    def run(fn, grid, *args, **options):
        if fn.fn.__module__.startswith("edsr.kernels.triton.hopper."):
            from tests.support import gluon_emulator

            gluon_emulator.run(fn, grid, *args, **options)
        else:
            interpret(fn, grid, *args, **options)

    module.run = run
    from tests.support import interpreter

    interpreter.mend()


def patch_hopper_check(module):
    check = module.check

    def perhaps(kernel, dtype, device):
        if os.environ.get("FAKE_HANGS") == f"{kernel} {module.launch.DTYPE_NAMES[dtype]}":
            time.sleep(3600)
        return check(kernel, dtype, device)

    module.ROWS, module.WIDTH = dict.fromkeys(module.ROWS, 3), 70
    # Interpreted kernels cannot be compiled.
    module.check, module.compile_check = perhaps, lambda kernel, dtype, arch: None


def patch_probe(module):
    module.begin = lambda device: None  # it would outlive the test
    read_line = module._Process.read_line

    def read_or_hang(self, seconds):
        """The next line of a process that works; `seconds` are of a GPU, and of a machine without other work."""
        from tests.support.processes import Watch

        watch = Watch(self._process, idle=QUIET)
        while (line := read_line(self, 0.5)) is None and not watch.hangs():
            pass
        return line

    module._Process.read_line = read_or_hang


def patch_isolate(module):
    tell = module.Heartbeat.__call__
    module.Heartbeat.__call__ = lambda self, part, seconds=module.LIMIT: tell(self, part, PATIENCE * seconds)
    module.LIMIT *= PATIENCE


def patch_trainer(module):
    """Minutes of training are few, and of a processor: as many steps fit into them on a machine with other work."""
    init = module.Trainer.__init__

    def short(self, start, group, watch, clock, started):
        if start.config.minutes is not None:
            start = start._replace(config=replace(start.config, minutes=TRAINED / 60))
        init(self, start, group, watch, time.process_time, time.process_time())

    module.Trainer.__init__ = short


# --- what is measured


def patch_machine(module):
    module.MATRIX, module.COPIED, module.SAMPLE = ({"cpu": 32, "cuda": 32}, {"cpu": 1 << 12, "cuda": 1 << 12}, 1e-4)


SIDES = {"720p": (4, 6), "1080p": (5, 9), "4K": (6, 7), "64x64": (3, 8)}


def patch_frames(module):
    real = dict(module.SIZES)
    names = {SIDES[name]: f"{columns}x{rows}" for name, (rows, columns) in real.items()}
    module.SIZES = SIDES
    module.GpuNetwork.__str__ = lambda work: (
        f"{work.model_name}-x{work.config.scale}-{names.get((work.height, work.width), 'small')}"
    )


def patch_ops(module):
    operations = module.operations

    def few(height=3, width=7, patches=(2, 3, 5), **where):
        return [op for op in operations(3, 7, (2, 3, 5), **where) if op.features == 64]

    module.operations = few


def patch_check(module):
    works, quick = module.works, ("relu-64", "resblock-64", "head-64", "edsr-baseline-x2-small")
    module.works = lambda: [work for work in works(height=3, width=7, large=(3, 7)) if str(work) in quick]


def patch_steps(module):
    init = module.Training.__init__

    def tiny(work, name, config, batch=16, patch=48, device="cuda", dtype=module.torch.bfloat16, workers=4, size=None):
        init(work, name, config, 1, 4, device, dtype, 0, (24, 32))

    module.Training.__init__ = tiny
    module.Training.__str__ = lambda work: f"training-{work.name}-x{work.config.scale}-16x48"


def patch_training(module):
    module.TRAINED, module.PROFILED = 2, 1


def compiled(*arguments, **options):
    """In the place of `bench.tune.compile_candidate`: interpreted kernels cannot be."""


CANDIDATES = {
    "conv3x3": {"BLOCK_H": 4, "BLOCK_W": 16, "BLOCK_CO": 64, "BLOCK_CI": 64},
    "head": {"BLOCK_W": 16, "BLOCK_CO": 64},
    "collapsed_tail": {"BLOCK_W": 16, "BLOCK_J": 64, "BLOCK_CI": 64},
}


def patch_tune(module):
    module.compile_candidate = compiled
    from bench.tuning_space import Sizes

    tiny = Sizes((1, 3, 16), (1, 3, 7), (1, 3, 7))
    module.IMAGE = tiny
    module.TARGETS = [replace(target, sizes=tiny) for target in module.TARGETS[:4]]
    fixed = {"num_warps": 4, "num_stages": 1}
    module.Target.candidates = lambda target, shared=0: [CANDIDATES.get(target.op, {"SLOTS": 10}) | fixed]
    module.ROUNDS = 2


PATCHES = {
    "torch": patch_torch,
    "edsr.models.edsr": patch_model,
    "edsr.inference.cuda": patch_graphs,
    "edsr.training.step": patch_step,
    "edsr.training.trainer": patch_trainer,
    "edsr.weights.files": patch_weights,
    "edsr.kernels.triton.launch": patch_launch,
    "edsr.kernels.triton.hopper.self_test": patch_hopper_check,
    "edsr.kernels.triton.hopper.probe": patch_probe,
    "bench.isolate": patch_isolate,
    "bench.machine": patch_machine,
    "bench.frames": patch_frames,
    "bench.ops": patch_ops,
    "bench.verify": patch_check,
    "bench.training_steps": patch_steps,
    "bench.training": patch_training,
    "bench.tune": patch_tune,
}


def patch_main(name, alias):
    PATCHES[name](sys.modules[alias])


MAIN = 'if __name__ == "__main__"'


class Finder(importlib.abc.MetaPathFinder):
    """Lets modules be imported as usual, and patches them before anybody sees them."""

    def find_spec(self, name, path=None, target=None):
        if name not in PATCHES:
            return None
        spec = importlib.machinery.PathFinder.find_spec(name, path)
        if spec is None or spec.loader is None:
            return None
        execute, patch = spec.loader.exec_module, PATCHES[name]

        def patched(module):
            execute(module)
            patch(module)

        def code_of_main(name):
            """A module that `python -m` runs is not executed by its loader."""
            source = spec.loader.get_source(name)
            before, main = (
                f"{MAIN}:",
                f"__import__('sitecustomize').PATCHES[{name!r}](__import__('sys').modules[__name__])\n{MAIN}:",
            )
            return compile(source.replace(before, main), spec.origin, "exec")

        spec.loader.exec_module, spec.loader.get_code = patched, code_of_main
        return spec


sys.meta_path.insert(0, Finder())
