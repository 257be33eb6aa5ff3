"""Which launch configurations a GPU gets, by what it has, and what happens where they are too large for it."""

from types import SimpleNamespace

import pytest
import torch

pytest.importorskip("triton", reason="Triton is not installed")

from triton import OutOfResources

from edsr.kernels.interface import RAW_OUTPUT
from edsr.kernels.triton import collapsed_tail, conv3x3, conv3x3_backward, head, launch, ops
from edsr.kernels.triton.hopper import dispatch

NHWC = torch.channels_last
DTYPES = (torch.float16, torch.bfloat16, torch.float32)
GPUS = {  # compute capability, multiprocessors, KB of shared memory of a block, whether products are asynchronous
    "A100": ((8, 0), 108, 163, False),
    "RTX 3090": ((8, 6), 82, 99, False),
    "RTX 4090": ((8, 9), 128, 99, False),
    "H200": ((9, 0), 132, 227, True),
    "B200": ((10, 0), 148, 227, True),
    "B300": ((10, 3), 160, 227, True),
    "RTX 5090": ((12, 0), 170, 99, False),
    "GB10": ((12, 1), 48, 99, False),
    "of tomorrow": ((14, 0), 200, 512, False),
    "with less": ((14, 1), 20, 48, False),
}


@pytest.fixture(params=GPUS)
def gpu(request, monkeypatch):
    """(device, what it has) of a GPU that is not here."""
    (major, minor), multiprocessors, kilobytes, asynchronous = GPUS[request.param]
    has = SimpleNamespace(
        name=f"NVIDIA {request.param}",
        major=major,
        minor=minor,
        multi_processor_count=multiprocessors,
        shared_memory_per_block_optin=kilobytes << 10,
    )
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: has)
    launch._gpu.cache_clear()
    yield torch.device("cuda", 0), has, asynchronous
    launch._gpu.cache_clear()


def every_choice(device: torch.device):
    """(op, configurations, bytes of operands in shared memory of each) of every shape that the networks have."""
    for dtype in DTYPES:

        def needs(config, rows, dtype=dtype):
            return config["num_stages"] * rows * dtype.itemsize

        for ci in (16, 32, 48, 64, 256):
            for co, shuffle in ((ci, 1), (4 * ci, 2), (9 * ci, 3), (3, 1)):
                for kind in ("few", "narrow", ""):
                    found = conv3x3.default_configs(ci, co, shuffle, kind, dtype, device)
                    pixels = [c["BLOCK_H"] * c["BLOCK_W"] for c in found]
                    rows = [(p + c["BLOCK_CO"]) * c["BLOCK_CI"] for p, c in zip(pixels, found, strict=True)]
                    yield "conv3x3", found, list(map(needs, found, rows))
            found = conv3x3_backward.default_wgrad_configs(ci, dtype, device)
            rows = [3 * c["BLOCK_H"] * c["BLOCK_W"] * (c["BLOCK_CO"] + c["BLOCK_CI"]) for c in found]
            yield "wgrad", found, list(map(needs, found, rows))
            for outputs in (12, 27, 48):
                found = collapsed_tail.default_configs(ci, outputs, dtype, device)
                yield "tail", found, [needs(c, (c["BLOCK_W"] + c["BLOCK_J"]) * c["BLOCK_CI"]) for c in found]


def test_every_configuration_fits(gpu):
    """The one taken and those for the case that it does not fit after all, each smaller than the one before."""
    device, has, _ = gpu
    for op, configs, needs in every_choice(device):
        assert needs[0] <= has.shared_memory_per_block_optin, (op, configs)
        assert needs == sorted(set(needs), reverse=True) and needs[-1] <= 25 << 10, (op, configs, needs)


def test_large_blocks_are_for_asynchronous_products(gpu):
    """An RTX 50 is newer than a Hopper, and has neither its products nor its shared memory."""
    device, has, asynchronous = gpu
    assert launch.has_asynchronous_products(device) == asynchronous
    config = conv3x3.default_configs(64, 64, 1, "", torch.float16, device)[0]
    assert config["BLOCK_H"] * config["BLOCK_W"] == (256 if has.major == 9 else 128)
    assert config["BLOCK_CI"] == (64 if asynchronous else 32)


def test_small_images_have_small_blocks_everywhere(gpu):
    device, has, _ = gpu
    if has.shared_memory_per_block_optin >= 99 << 10:
        config = conv3x3.default_configs(64, 64, 1, "few", torch.float16, device)[0]
        assert config["BLOCK_H"] * config["BLOCK_W"] == 32


@pytest.mark.parametrize("arch", [80, 86, 89, 90, 100, 103, 120, 121])
def test_the_kernels_for_hopper_are_for_sm_90_alone(arch):
    x, weight = (torch.empty(size, dtype=torch.float16, device="meta") for size in ((1, 64, 300, 300), (64, 64, 3, 3)))
    x, weight = x.contiguous(memory_format=NHWC), weight.contiguous(memory_format=NHWC)
    with launch.compile_only(arch, lambda name, kernel: None):
        assert dispatch.supports(x, weight, 1) == dispatch.supports_block(x, weight) == (arch == 90)


# --- what does not fit after all


def empty(*size: int) -> torch.Tensor:
    return torch.empty(size, dtype=torch.float16, device="meta", memory_format=NHWC)


def tail() -> None:
    weight = torch.empty((4, 4, 12, 5, 5, 64), dtype=torch.float16, device="meta").permute(0, 1, 2, 5, 3, 4)
    ops.collapsed_tail(empty(1, 64, 40, 40), weight, weight.new_empty((4, 4, 12)), (0, 0, 0), 2, RAW_OUTPUT)


LAUNCHES = {
    "conv3x3": lambda: ops.conv3x3(empty(1, 64, 100, 100), empty(64, 64, 3, 3), empty(64, 1, 1, 1).view(64)),
    "dgrad": lambda: conv3x3_backward.dgrad(empty(1, 64, 100, 100), empty(64, 64, 3, 3)),
    "wgrad": lambda: conv3x3_backward.wgrad(empty(1, 64, 100, 100), empty(1, 64, 100, 100)),
    "collapsed_tail": tail,
    "head": lambda: head.head(
        torch.empty((1, 3, 40, 40), device="meta"), empty(64, 3, 3, 3), empty(64, 1, 1, 1).view(64), (0, 0, 0)
    ),
}


class Cramped:
    """In place of `launch.run`: a GPU on which blocks of more than so many stages do not fit, with one stage those of
    more than 64 pixels neither."""

    def __init__(self, stages: int):
        self.stages = stages
        self.tried: list[dict[str, int]] = []

    def __call__(self, fn, grid, *operands, **options):
        if "num_stages" not in options or "BLOCK_SPLITS" in options:
            return
        self.tried.append(options)
        pixels = options.get("BLOCK_H", 1) * options["BLOCK_W"]
        if options["num_stages"] > self.stages or (self.stages == 1 and pixels > 64):
            raise OutOfResources(122_880, 101_376, "shared memory")


@pytest.fixture
def no_memory(monkeypatch):
    monkeypatch.setattr(launch, "_too_large", {})


@pytest.mark.parametrize("op", LAUNCHES)
def test_what_does_not_fit_is_replaced_and_said_once(op, no_memory, monkeypatch, caplog):
    run = Cramped(1 if op == "head" else 2)
    monkeypatch.setattr(launch, "run", run)
    with launch.compile_only(120, lambda name, kernel: None):
        LAUNCHES[op]()
        first = len(run.tried)
        LAUNCHES[op]()
    assert run.tried[0] != run.tried[1] and len(run.tried) > first >= 2
    assert all(options == run.tried[1] for options in run.tried[1:])
    (line,) = caplog.messages
    assert line.startswith(f"{op} fp16 64") and "122880 of shared memory" in line and "101376" in line


def test_where_nothing_fits_the_error_comes_through(no_memory, monkeypatch):
    monkeypatch.setattr(launch, "run", Cramped(0))
    with launch.compile_only(120, lambda name, kernel: None), pytest.raises(OutOfResources):
        LAUNCHES["conv3x3"]()


def test_what_is_tuned_is_not_replaced(no_memory, monkeypatch):
    """A candidate that does not fit must not be timed as another."""
    run = Cramped(2)
    monkeypatch.setattr(launch, "run", run)
    with launch.compile_only(120, lambda name, kernel: None), launch.override_configs(lambda op, key, default: default):
        for _ in range(2):
            with pytest.raises(OutOfResources):
                LAUNCHES["conv3x3"]()
    assert run.tried[0] == run.tried[1] and not launch._too_large
