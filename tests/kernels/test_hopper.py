"""The Gluon kernels for Hopper, on the CPU through an emulator that runs their source, and on the chip where one is."""

import contextlib
import functools
from collections.abc import Callable
from types import SimpleNamespace
from typing import NamedTuple

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

gluon = pytest.importorskip("triton.experimental.gluon")
from triton.experimental.gluon import language as gl  # noqa: E402
from triton.experimental.gluon.language.nvidia.hopper import (  # noqa: E402
    fence_async_shared,
    mbarrier,
    tma,
    warpgroup_mma,
    warpgroup_mma_wait,
)

from edsr.kernels import reference  # noqa: E402
from edsr.kernels.triton import launch  # noqa: E402
from edsr.kernels.triton.hopper import conv64, dispatch, resblock, self_test, verification  # noqa: E402
from edsr.kernels.triton.hopper.tma import descriptor as make_descriptor  # noqa: E402
from tests.support import gluon_emulator  # noqa: E402

NHWC = torch.channels_last
CPU = torch.device("cpu")
on_the_chip = pytest.mark.skipif(
    not torch.cuda.is_available() or torch.cuda.get_device_capability() != (9, 0), reason="needs a Hopper GPU"
)


class Case(NamedTuple):
    """A convolution or, without Co, a ResBlock. window: whether maps are windows of larger buffers."""

    n: int
    ci: int
    co: int | None
    h: int
    w: int
    padding: int = 1
    relu: bool = False
    scale: float = 1.0
    skip: bool = False
    window: bool = False
    dtype: torch.dtype = torch.float16


CONV64 = [
    Case(1, 64, 64, 1, 1),
    Case(1, 64, 64, 1, 130, relu=True),
    Case(2, 64, 64, 5, 128, relu=True, dtype=torch.bfloat16),
    Case(2, 64, 64, 7, 150, skip=True, scale=0.1, window=True),
    Case(1, 64, 64, 6, 257, relu=True, skip=True, scale=-2.0, padding=0, dtype=torch.bfloat16),
    Case(3, 64, 64, 1, 200, padding=0, skip=True, window=True),
    Case(1, 64, 64, 23, 40, skip=True),
]
WIDE = [
    Case(1, 64, 128, 1, 1, relu=True),
    Case(1, 128, 128, 3, 140, skip=True, scale=0.1, window=True),
    Case(2, 64, 256, 2, 128, relu=True, dtype=torch.bfloat16),
    Case(1, 192, 128, 5, 129, padding=0, relu=True, skip=True, scale=-2.0, window=True, dtype=torch.bfloat16),
    Case(1, 256, 256, 2, 70, padding=0),
]
BLOCK = [
    Case(1, 64, None, 1, 1),
    Case(2, 64, None, 4, 125, scale=0.1),
    Case(1, 64, None, 7, 126, window=True, dtype=torch.bfloat16),
    Case(2, 64, None, 3, 260, window=True),
]
# Rings as small as they may be, and as deep as they are.
RINGS = {
    "conv64": ({"SLOTS": 4}, {"SLOTS": 5}, {"SLOTS": 10}),
    "conv64 by turns": ({"SLOTS": 4, "TURNS": 1}, {"SLOTS": 5, "TURNS": 1}, {"SLOTS": 10, "TURNS": 1}),
    "wide": ({"X_SLOTS": 4, "W_SLOTS": 2}, {"X_SLOTS": 5, "W_SLOTS": 4}, {"X_SLOTS": 6, "W_SLOTS": 3}),
    "wide held": (
        {"X_SLOTS": 4, "W_SLOTS": 2, "HELD": 1},
        {"X_SLOTS": 5, "W_SLOTS": 4, "HELD": 1},
        {"X_SLOTS": 6, "W_SLOTS": 3, "HELD": 1},
    ),
    "block": ({"X_SLOTS": 5, "T_SLOTS": 3}, {"X_SLOTS": 6, "T_SLOTS": 3}, {"X_SLOTS": 7, "T_SLOTS": 4}),
}
OTHERWISE = {"conv64": "conv64 by turns", "wide": "wide held"}  # what the tuner tries


def kind(case: Case) -> str:
    return "block" if case.co is None else "conv64" if case.co == 64 else "wide"


def emulate(monkeypatch: pytest.MonkeyPatch, seed: int = 0, ring: dict | None = None, multiprocessors: int = 3) -> None:
    """Has the Gluon kernels launched in the emulator, on a GPU of few multiprocessors."""
    monkeypatch.setattr(launch, "run", functools.partial(gluon_emulator.run, seed=seed, lazy=seed % 2 == 1))
    monkeypatch.setattr(launch, "multiprocessors", lambda device: launch._multiprocessor_limit or multiprocessors)
    monkeypatch.setattr(launch, "config", lambda op, key, default, device: default | (ring or {}))


def feature_map(case: Case, channels: int, rows: int, value: float | None, device: torch.device) -> Tensor:
    """[N, channels, rows, W]: random, or `value` everywhere. A window lies in a buffer full of NaN."""
    edge = 3 if case.window else 0
    buffer = torch.full((case.n, rows + edge, case.w + edge, channels), torch.nan, dtype=case.dtype, device=device)
    window = buffer[:, edge:, edge // 2 : edge // 2 + case.w]
    if value is None:
        window.copy_(torch.randn(window.shape, device=device))
    else:
        window.fill_(value)
    return window.permute(0, 3, 1, 2)


def layer(case: Case, co: int, device: torch.device) -> tuple[Tensor, Tensor]:
    weight = torch.randn(co, case.ci, 3, 3) / (3 * case.ci**0.5)
    return weight.to(device, case.dtype, memory_format=NHWC), torch.randn(co).to(device, case.dtype)


def compute(case: Case, device: torch.device = CPU) -> None:
    """Runs a case, and judges it against fp64: it may err twice as much as torch, in fp32 and rounded as the kernel."""
    channels = case.co or case.ci
    x = feature_map(case, case.ci, case.h + 2 - 2 * case.padding, None, device)
    out = feature_map(case, channels, case.h, torch.nan, device)
    weight, bias = layer(case, channels, device)
    if case.co is None:
        weight2, bias2 = layer(case, channels, device)
        assert resblock.resblock(x, weight, bias, weight2, bias2, case.scale, out) is out

        def expected(dtype: torch.dtype, rounded: Callable[[Tensor], Tensor]) -> Tensor:
            wide = [t.to(dtype) for t in (x, weight, bias, weight2, bias2)]
            hidden = rounded(reference.conv3x3(*wide[:3], relu=True))
            return rounded(reference.conv3x3(hidden, *wide[3:], scale=case.scale, skip=wide[0]))
    else:
        skip = feature_map(case, channels, case.h, None, device) if case.skip else None
        dispatch.conv3x3(x, weight, bias, case.relu, case.scale, skip, case.padding, out)

        def expected(dtype: torch.dtype, rounded: Callable[[Tensor], Tensor]) -> Tensor:
            wide = [t.to(dtype) for t in (x, weight, bias)]
            added = None if skip is None else skip.to(dtype)
            return rounded(reference.conv3x3(*wide, case.relu, case.scale, added, padding=case.padding))

    target = expected(torch.float64, lambda t: t)
    reference_error = expected(torch.float32, lambda t: t.to(case.dtype).float())
    error, allowed = (out.double() - target).norm(), 2 * (reference_error.double() - target).norm()
    assert error <= allowed, f"{case}: {error / target.norm():.1e}, allowed {allowed / target.norm():.1e}"
    if case.window:  # nothing beside it has been written
        whole = out.untyped_storage()
        buffer = torch.empty(0, dtype=case.dtype, device=device).set_(whole)
        assert buffer.isnan().sum() == buffer.numel() - out.numel()


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("case", CONV64 + WIDE + BLOCK)
def test_emulated(case, seed, monkeypatch):
    emulate(monkeypatch, seed, RINGS[kind(case)][seed % 3], multiprocessors=1 + seed)
    compute(case)


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("case", CONV64 + WIDE)
def test_emulated_by_turns_or_with_weights_held(case, seed, monkeypatch):
    emulate(monkeypatch, seed, RINGS[OTHERWISE[kind(case)]][seed % 3], multiprocessors=1 + seed // 2)
    compute(case)


@pytest.mark.parametrize("turns", [0, 1])
def test_by_turns_one_computes_while_the_other_has_at_most_its_last_product_left(turns, monkeypatch):
    multiply, most = gluon_emulator._warpgroup_mma, 0

    def watched(*operands, **options):
        nonlocal most
        product = multiply(*operands, **options)  # others may run before it is issued, not after
        block = gluon_emulator._block
        most = max(most, *(len(part.products) for part in block.parts if part is not block.current))
        return product

    monkeypatch.setitem(gluon_emulator._EMULATED, id(warpgroup_mma), watched)
    for seed in range(6):
        emulate(monkeypatch, seed, {"TURNS": turns}, multiprocessors=1)
        compute(Case(2, 64, 64, 7, 150, skip=True))
    assert (most <= 1) == bool(turns)


@pytest.mark.parametrize("case", [CONV64[4], WIDE[3]])
def test_turns_and_held_weights_leave_the_bits_as_they_are(case, monkeypatch):
    results = []
    for ring in RINGS[kind(case)][2], RINGS[OTHERWISE[kind(case)]][2]:
        torch.manual_seed(0)
        emulate(monkeypatch, ring=ring)
        x, skip = (feature_map(case, c, case.h + more, None, CPU) for c, more in ((case.ci, 2), (case.co, 0)))
        results.append(feature_map(case, case.co, case.h, torch.nan, CPU))
        dispatch.conv3x3(x, *layer(case, case.co, CPU), case.relu, case.scale, skip, case.padding, results[-1])
    assert torch.equal(*results)


def copies(monkeypatch: pytest.MonkeyPatch) -> None:
    """As if the kernel of shifted views had been found wrong."""
    monkeypatch.setattr(dispatch, "is_verified", lambda kernel, dtype, device: kernel != "c64")


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("case", CONV64)
def test_emulated_with_copies_for_shifted_views(case, seed, monkeypatch):
    emulate(monkeypatch, seed, multiprocessors=1 + seed)
    copies(monkeypatch)
    launched = []
    run = launch.run
    monkeypatch.setattr(launch, "run", lambda *a, **options: (launched.append(options["COPIES"]), run(*a, **options)))
    compute(case)
    assert launched == [3]


@pytest.mark.slow
@settings(max_examples=40, deadline=None)
@given(
    st.sampled_from([64, 128, None]),
    st.integers(1, 2),
    st.integers(1, 9),
    st.integers(1, 280),
    st.integers(0, 1),
    st.booleans(),
    st.booleans(),
    st.sampled_from([torch.float16, torch.bfloat16]),
    st.integers(0, 1 << 16),
    st.integers(1, 6),
    st.booleans(),
)
def test_emulated_at_any_size(co, n, h, w, padding, relu, skip, dtype, seed, multiprocessors, otherwise):
    case = Case(n, 64, co, h, w, padding if co else 1, relu, 0.5, skip, dtype=dtype)
    rings = RINGS[OTHERWISE.get(kind(case), kind(case)) if otherwise else kind(case)]
    with pytest.MonkeyPatch.context() as monkeypatch:
        emulate(monkeypatch, seed, rings[seed % 3], multiprocessors)
        compute(case)


@pytest.mark.parametrize("co", [64, 128])
def test_bands_give_the_bits_of_the_whole(co, monkeypatch):
    """Where a row lies in a block's work must not show in it, or a streamed image would have seams."""
    emulate(monkeypatch)
    case = Case(1, 64, co, 8, 140)
    x, (weight, bias) = feature_map(case, 64, 8, None, CPU), layer(case, co, CPU)
    whole = feature_map(case, co, 8, torch.nan, CPU)
    dispatch.conv3x3(x, weight, bias, True, 1.0, None, 1, whole)
    band = feature_map(case, co, 3, torch.nan, CPU)
    dispatch.conv3x3(x[:, :, 2:7], weight, bias, True, 1.0, None, 0, band)
    assert torch.equal(band, whole[:, :, 3:6])


@pytest.mark.parametrize("co", [64, 128])
def test_the_result_may_go_over_the_skip(co, monkeypatch):
    emulate(monkeypatch)
    case = Case(1, co, co, 5, 140)
    x, (weight, bias) = feature_map(case, co, 5, None, CPU), layer(case, co, CPU)
    out, skip = feature_map(case, co, 5, torch.nan, CPU), feature_map(case, co, 5, None, CPU)
    dispatch.conv3x3(x, weight, bias, False, 1.0, skip, 1, out)
    dispatch.conv3x3(x, weight, bias, False, 1.0, skip, 1, skip)
    assert torch.equal(skip, out)


def test_nan_goes_through_relu(monkeypatch):
    """The engine recognizes an overflow by it."""
    emulate(monkeypatch)
    case = Case(1, 64, 64, 3, 70)
    x, (weight, bias) = feature_map(case, 64, 3, 0.0, CPU), layer(case, 64, CPU)
    x[0, 0, 1, 30] = torch.nan
    out = torch.zeros_like(x)
    dispatch.conv3x3(x, weight, bias, True, 1.0, None, 1, out)
    assert out.isnan().any(1).sum() == 9


# Which problems are served.


def meta(n: int, channels: int, h: int, w: int, dtype: torch.dtype = torch.float16) -> Tensor:
    return torch.empty((n, channels, h, w), dtype=dtype, device="meta", memory_format=NHWC)


def serves(x: Tensor, ci: int, co: int, shuffle: int = 1, arch: int = 90) -> bool:
    with launch.compile_only(arch, lambda name, kernel: None):
        return dispatch.should_use(x, meta(co, ci, 3, 3, x.dtype), shuffle)


def test_serves():
    assert serves(meta(1, 64, 1, 64), 64, 64)
    assert serves(meta(2, 256, 9, 1920, torch.bfloat16), 256, 256)
    assert serves(meta(1, 64, 9, 100)[:, :, 2:5, 1:90], 64, 64)
    assert not serves(meta(1, 64, 9, 100, torch.float32), 64, 64)
    assert not serves(meta(1, 64, 9, dispatch.MIN_WIDTH - 1), 64, 64)
    assert not serves(meta(1, 64, 9, 100), 64, 256, shuffle=2)
    assert not serves(meta(1, 64, 9, 100), 64, 64, arch=80)
    assert not serves(meta(1, 96, 9, 100), 96, 96)
    assert not serves(meta(1, 128, 9, 100), 128, 64)
    assert not serves(meta(1, 64, 9, 100).as_strided((1, 64, 9, 64), (0, 1, 6401, 64)), 64, 64)
    assert not serves(meta(1, 64, 9, 100).expand(3, 64, 9, 100), 64, 64)


def test_a_cpu_is_not_served():
    assert not dispatch.should_use(torch.zeros(1, 64, 9, 100).half(), torch.zeros(64, 64, 3, 3).half(), 1)


def test_what_was_measured_decides(monkeypatch):
    monkeypatch.setattr(launch, "choice", lambda op, key, device: {"relu": "portable", "skip": "hopper"}[op])
    assert serves(meta(1, 64, 9, 100), 64, 64)
    monkeypatch.setattr(launch, "choice", lambda op, key, device: "portable")
    assert not serves(meta(1, 64, 9, 100), 64, 64)


def test_the_block_is_served_only_when_measured_to_be_faster(monkeypatch):
    weight = meta(64, 64, 3, 3)
    with launch.compile_only(90, lambda name, kernel: None):
        assert not dispatch.should_use_block(meta(1, 64, 9, 100), weight)
        monkeypatch.setattr(launch, "choice", lambda op, key, device: "one_kernel")
        assert dispatch.should_use_block(meta(1, 64, 9, 100), weight)
        assert not dispatch.should_use_block(meta(1, 256, 9, 100), meta(256, 256, 3, 3))


# What is verified.


def on_a_hopper(monkeypatch, statuses: dict[str, str]) -> torch.device:
    """As if there were a GPU whose kernels have these statuses."""
    monkeypatch.setattr(verification, "process_statuses", lambda device: statuses)
    monkeypatch.setattr(launch, "architecture", lambda device: 90)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: SimpleNamespace(name="NVIDIA Made-up"))
    dispatch._log_untried.cache_clear()
    return torch.device("cuda", 0)


def test_what_was_not_tried_is_not_launched_and_said_once(monkeypatch, caplog):
    device = on_a_hopper(monkeypatch, {"c64 bf16": "verified"})
    assert not any(dispatch.is_verified(kernel, torch.float16, device) for kernel in dispatch.KERNELS)
    assert dispatch.is_verified("c64", torch.bfloat16, device)
    (record,) = caplog.records
    assert "edsr.kernels.triton.hopper.probe" in record.getMessage() and "portable" in record.getMessage()


def test_a_kernel_that_hangs_is_not_launched_and_nothing_more_is_said(monkeypatch, caplog):
    device = on_a_hopper(monkeypatch, {"c64 fp16": "hangs: nothing after 10 s", "copies fp16": "verified"})
    assert not dispatch.is_verified("c64", torch.float16, device) and dispatch.is_verified(
        "copies", torch.float16, device
    )
    assert not caplog.records


class OnHopper(torch.Tensor):
    """An operand that says it lies on a GPU."""

    @property
    def device(self):
        return torch.device("cuda", 0)


@pytest.mark.parametrize(
    ("statuses", "supported", "launched"),
    [
        ({"c64 fp16": "verified", "copies fp16": "verified"}, True, "c64"),
        ({"c64 fp16": "hangs: nothing after 10 s", "copies fp16": "verified"}, True, "copies"),
        ({"c64 fp16": "hangs: nothing after 10 s", "copies fp16": "fails: RuntimeError"}, False, None),
        ({"c64 bf16": "verified"}, False, None),
    ],
)
def test_support_goes_by_the_statuses(statuses, supported, launched, monkeypatch):
    on_a_hopper(monkeypatch, statuses)
    x, weight = (t.as_subclass(OnHopper) for t in (torch.zeros(1, 64, 3, 70), torch.zeros(64, 64, 3, 3)))
    x, weight = (t.half().contiguous(memory_format=NHWC) for t in (x, weight))
    assert dispatch.supports(x, weight, 1) == supported
    assert not dispatch.supports_block(x, weight)
    seen = []
    monkeypatch.setattr(
        dispatch, "KERNELS", {name: lambda *a, name=name: seen.append(name) for name in dispatch.KERNELS}
    )
    if supported:
        dispatch.conv3x3(x, weight, weight[:, 0, 0, 0], True, 1.0, None, 1, x)
        assert seen == [launched]


# The check of the kernels.


@pytest.fixture
def check(monkeypatch) -> Callable[[str], str | None]:
    """`self_test.check` in the emulator, on as many multiprocessors as a Hopper has, which give a block one row."""

    def portable(x, weight, bias, relu, scale, skip, shuffle, padding, out):
        out.copy_(reference.conv3x3(x, weight, bias, relu, scale, skip, shuffle, padding))

    emulate(monkeypatch, multiprocessors=132)
    monkeypatch.setattr(self_test, "portable", portable)
    return lambda kernel: self_test.check(kernel, torch.float16, CPU)


@pytest.mark.parametrize(
    "kernel", [pytest.param(kernel, marks=[pytest.mark.slow] * (kernel == "wide")) for kernel in dispatch.KERNELS]
)
def test_the_check_passes(kernel, check):
    assert check(kernel) is None


@pytest.mark.parametrize("kernel", dispatch.KERNELS)
@pytest.mark.parametrize("what", ["nothing written", "a wrong row"])
def test_the_check_fails(what, kernel, check, monkeypatch):
    def run(fn, grid, *args, **options):
        if what == "a wrong row":
            # The maps are the operands of this size; the last is the result.
            maps = [getattr(arg, "base", arg) for arg in args if not isinstance(arg, (int, float))]
            size = self_test.ROWS[kernel], self_test.WIDTH
            out = [m for m in maps if m.ndim == 4 and tuple(m.shape[2:]) == size][-1]
            out.copy_(torch.randn(out.shape))

    monkeypatch.setattr(launch, "run", run)
    assert "differs from the portable kernel" in str(check(kernel))


def sabotage(monkeypatch, what: str) -> None:
    """Faults that do not show where a block of threads computes a single row."""
    if what == "the second consumer never stores":
        store = gluon_emulator._TMA.async_copy_shared_to_global

        def store_of_others(*args):
            if gluon_emulator._block.current.number != 3:  # parts are numbered from 2 on, in the order of their list
                store(*args)

        monkeypatch.setattr(gluon_emulator._TMA, "async_copy_shared_to_global", store_of_others)
        return
    arrive, turns = gluon_emulator._MBARRIER.arrive, int(what.removeprefix("a slot is let go of ").split()[0])

    def let_go(empty, count, slots, pred=True):
        # Of a stage, which is a ring of two, nothing is wanted here.
        if slots == 2 or count % slots or count // slots < turns:
            arrive(empty.index(count % slots), count=1, pred=pred)

    monkeypatch.setitem(gluon_emulator._EMULATED, id(conv64.release), let_go)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("kernel", "what"),
    [("c64", "the second consumer never stores"), ("copies", "the second consumer never stores")]
    + [(kernel, f"a slot is let go of {turns} times") for kernel in dispatch.KERNELS for turns in (0, 1, 2)],
)
def test_the_check_turns_the_rings(kernel, what, check, monkeypatch):
    sabotage(monkeypatch, what)
    found = "a deadlock"
    with contextlib.suppress(gluon_emulator.Deadlock):
        found = check(kernel)
    assert found is not None


@pytest.mark.slow
@pytest.mark.parametrize("kernel", ["c64", "copies"])
@pytest.mark.parametrize("what", ["the second consumer never stores", "a slot is let go of 0 times"])
def test_a_block_of_one_row_hides_what_the_check_finds(kernel, what, check, monkeypatch):
    sabotage(monkeypatch, what)
    monkeypatch.setattr(launch, "limit_multiprocessors", lambda to: contextlib.nullcontext())
    assert check(kernel) is None


# That the emulator can fail.

LAYOUT = gl.constexpr(gl.NVMMASharedLayout(swizzle_byte_width=128, element_bitwidth=16, rank=2))
LINEAR = gl.constexpr(gl.SwizzledSharedLayout(1, 1, 1, [0]))
ANY = gl.constexpr(gl.BlockedLayout([1, 8], [4, 8], [4, 1], [1, 0]))


@gluon.jit
def copy_shifted(x_desc, out_ptr, SHIFT: gl.constexpr):
    """Loads 16 pixels by TMA, and stores the 8 from SHIFT on by ordinary instructions."""
    ring = gl.allocate_shared_memory(x_desc.dtype, [2, 8, 64], LAYOUT)
    bar = gl.allocate_shared_memory(gl.int64, [1, 1], mbarrier.MBarrierLayout()).index(0)
    mbarrier.init(bar, count=1)
    fence_async_shared()
    mbarrier.expect(bar, 16 * 64 * 2)
    for i in gl.static_range(2):
        tma.async_copy_global_to_shared(x_desc, [8 * i, 0], bar, ring.index(i))
    mbarrier.wait(bar, 0)
    pixels = ring._reinterpret(x_desc.dtype, [16, 64], LINEAR)
    row = gl.arange(0, 8, layout=gl.SliceLayout(1, ANY))
    column = gl.arange(0, 64, layout=gl.SliceLayout(0, ANY))
    values = pixels.index(SHIFT)._reinterpret(x_desc.dtype, [8, 64], LAYOUT).load(ANY)
    gl.store(out_ptr + (row[:, None] * 64 + column[None, :]), values, mask=(row < 8)[:, None])


def shared_map(rows: int):
    x = torch.randn(rows, 64).half()
    descriptor = make_descriptor(x, [rows, 64], [64, 1], [8, 64])
    return x, descriptor


@pytest.mark.parametrize("shift", range(9))
def test_ordinary_loads_must_begin_where_the_swizzle_does(shift):
    x, descriptor = shared_map(16)
    out = torch.zeros(8, 64).half()
    gluon_emulator.run(copy_shifted, (1,), descriptor, out, SHIFT=shift)
    assert torch.equal(out, x[shift : shift + 8]) == (shift % 8 == 0)


@gluon.jit
def multiply_shifted(x_desc, out_desc, SHIFT: gl.constexpr, FENCE: gl.constexpr, WAIT: gl.constexpr):
    """Stores the identity, multiplies it by the 8 pixels from SHIFT on, and stores the product by TMA."""
    ring = gl.allocate_shared_memory(x_desc.dtype, [2, 8, 64], LAYOUT)
    stage = gl.allocate_shared_memory(x_desc.dtype, [8, 64], LAYOUT)
    identity = gl.allocate_shared_memory(x_desc.dtype, [64, 64], LAYOUT)
    bar = gl.allocate_shared_memory(gl.int64, [1, 1], mbarrier.MBarrierLayout()).index(0)
    mbarrier.init(bar, count=1)
    fence_async_shared()
    mbarrier.expect(bar, 16 * 64 * 2)
    for i in gl.static_range(2):
        tma.async_copy_global_to_shared(x_desc, [8 * i, 0], bar, ring.index(i))
    i = gl.arange(0, 64, layout=gl.SliceLayout(1, ANY))
    j = gl.arange(0, 64, layout=gl.SliceLayout(0, ANY))
    identity.store((i[:, None] == j[None, :]).to(x_desc.dtype))
    if FENCE:
        fence_async_shared()
    mbarrier.wait(bar, 0)
    pixels = ring._reinterpret(x_desc.dtype, [16, 64], LINEAR)
    x = pixels.index(SHIFT)._reinterpret(x_desc.dtype, [8, 64], LAYOUT).permute((1, 0))
    acc = warpgroup_mma(identity, x, gl.zeros([64, 8], gl.float32, layout=ANY), is_async=True)
    acc = warpgroup_mma_wait(0, deps=(acc,))
    stage.permute((1, 0)).store(acc.to(x_desc.dtype))
    fence_async_shared()
    tma.async_copy_shared_to_global(out_desc, [0, 0], stage)
    if WAIT:
        tma.store_wait(0)


@pytest.mark.parametrize("lazy", [False, True])
@pytest.mark.parametrize("shift", range(9))
def test_products_may_begin_anywhere(shift, lazy):
    x, descriptor = shared_map(16)
    out, out_descriptor = shared_map(8)
    gluon_emulator.run(
        multiply_shifted, (1,), descriptor, out_descriptor, lazy=lazy, SHIFT=shift, FENCE=True, WAIT=True
    )
    assert torch.equal(out, x[shift : shift + 8])


def test_a_missing_fence_shows():
    _, descriptor = shared_map(16)
    out, out_descriptor = shared_map(8)
    gluon_emulator.run(multiply_shifted, (1,), descriptor, out_descriptor, SHIFT=0, FENCE=False, WAIT=True)
    assert out.isnan().any()


def test_a_store_that_outlives_its_block_is_refused():
    _, descriptor = shared_map(16)
    _, out_descriptor = shared_map(8)
    with pytest.raises(gluon_emulator.KernelFault, match="ends before"):
        gluon_emulator.run(
            multiply_shifted, (1,), descriptor, out_descriptor, lazy=True, SHIFT=0, FENCE=True, WAIT=False
        )


SABOTAGE = {
    "an arrival is missing": ("arrive", gluon_emulator.Deadlock),
    "bytes are not announced": ("expect", gluon_emulator.KernelFault),
    "nobody waits": ("wait", (AssertionError, gluon_emulator.KernelFault)),
}


@pytest.mark.parametrize(
    ("case", "rings"),
    [
        (CONV64[3], "conv64"),
        (CONV64[3], "conv64 by turns"),
        (WIDE[1], "wide"),
        (WIDE[1], "wide held"),
        (BLOCK[1], "block"),
    ],
)
@pytest.mark.parametrize("what", SABOTAGE)
def test_sabotage_shows(what, case, rings, monkeypatch):
    """Kernels whose barriers do nothing hang, or give wrong results."""
    call, expected = SABOTAGE[what]
    emulate(monkeypatch, 1, RINGS[rings][0])
    monkeypatch.setattr(gluon_emulator._MBARRIER, call, lambda *args, **options: None)
    with pytest.raises(expected):
        compute(case)


# On the chip.


@pytest.mark.gpu
@on_the_chip
@pytest.mark.parametrize("case", CONV64 + WIDE + BLOCK)
@pytest.mark.parametrize("together", [False, True], ids=["spread", "together"])
def test_on_the_chip(case, together):
    """Spread over the GPU, where a block computes a row or two; and all in one block, where its rings turn."""
    kernel = "block" if case.co is None else "c64" if case.co == 64 else "wide"
    message = verification.read_statuses(torch.device("cuda", 0)).get(
        verification.key(kernel, case.dtype), verification.VERIFIED
    )
    if message != verification.VERIFIED:
        pytest.fail(f"the probe says: {message}")  # and a kernel that hangs is not begun once more
    with launch.limit_multiprocessors(1) if together else contextlib.nullcontext():
        compute(case, torch.device("cuda"))


@pytest.mark.gpu
@on_the_chip
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("kernel", dispatch.KERNELS)
def test_the_check_passes_on_the_chip(kernel, dtype):
    assert self_test.check(kernel, dtype, torch.device("cuda")) is None


@pytest.mark.gpu
@on_the_chip
@pytest.mark.parametrize("co", [64, None])
def test_more_than_two_to_the_31_elements(co):
    """The last rows of a map of 5.4 GB, whose offsets need more than 32 bits."""
    device = torch.device("cuda")
    case = Case(1, 64, co, 4200, 10000)
    x, out = feature_map(case, 64, case.h, 0.0, device), feature_map(case, 64, case.h, torch.nan, device)
    tail = torch.randn(1, 64, 8, case.w, device=device).half()
    x[:, :, -8:] = tail
    weight, bias = layer(case, 64, device)
    assert x.numel() > 2**31
    if co is None:
        resblock.resblock(x, weight, bias, weight, bias, 1.0, out)
        expected = reference.resblock(tail.float(), weight.float(), bias.float(), weight.float(), bias.float())
    else:
        dispatch.conv3x3(x, weight, bias, False, 1.0, None, 1, out)
        expected = reference.conv3x3(tail.float(), weight.float(), bias.float())
    torch.testing.assert_close(out[:, :, -4:].float(), expected[:, :, -4:], rtol=2e-3, atol=2e-2)
