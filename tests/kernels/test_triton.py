"""The plain Triton kernels against fp64, with PyTorch in the same precision as the yardstick.

Without a GPU they run in Triton's interpreter; `pytest -m gpu` runs the same tests on the chip.
"""

import inspect
import logging
from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

pytest.importorskip("triton")

from edsr.kernels import reference
from edsr.kernels.interface import OutputSpec
from edsr.kernels.triton import conv3x3, launch
from edsr.kernels.triton import ops as fused

MEAN = (0.4488, 0.4371, 0.4040)
DTYPES = [torch.float16, torch.bfloat16, torch.float32]
NHWC = torch.channels_last


def features(*shape, dtype, device) -> torch.Tensor:
    """A map [N, C, H, W] that is a window of a larger buffer, as bands have them."""
    n, c, h, w = shape
    return torch.randn(n, c, h + 3, w, device=device).to(dtype).to(memory_format=NHWC)[:, :, 2 : h + 2]


def layer(co, ci, size, dtype, device):
    weight = torch.randn(co, ci, size, size, device=device) / (ci**0.5 * size)
    return weight.to(dtype).to(memory_format=NHWC), torch.randn(co, device=device).to(dtype)


def wide(value):
    """The same in fp64, whatever is a floating tensor."""
    return value.double() if isinstance(value, torch.Tensor) and value.is_floating_point() else value


def judge(y, op, *operands, **options):
    """y may err against fp64 twice as much as `op` does in y's precision, or as much as rounding the truth does."""
    target = op(*map(wide, operands), **{k: wide(v) for k, v in options.items()})
    reference_error = op(*operands, **options)
    assert y.shape == target.shape and y.dtype == reference_error.dtype
    rounding = torch.finfo(operands[1].dtype).eps * target.norm()
    limit = max(2 * (reference_error.double() - target).norm(), rounding)
    assert (y.double() - target).norm() <= limit  # never true of NaN


CASES = [  # N, Ci, Co, H, W, shuffle, relu, scale, skip
    (1, 16, 16, 1, 1, 1, True, 1.0, False),
    (2, 32, 32, 9, 35, 1, True, 1.0, False),
    (1, 64, 64, 10, 33, 1, False, 0.1, True),
    (1, 48, 16, 1, 40, 1, False, 1.0, True),
    (1, 16, 80, 17, 2, 1, True, -0.5, True),
    (1, 48, 64, 5, 7, 2, False, 1.0, False),
    (1, 32, 144, 3, 5, 3, False, 2.0, True),
    (1, 16, 3, 4, 6, 1, False, 1.0, False),
    (1, 256, 256, 3, 4, 1, False, 0.1, True),
]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("case", CASES)
def test_conv3x3(case, dtype, chip):
    padding = CASES.index(case) % 2
    n, ci, co, h, w, shuffle, relu, scale, with_skip = case
    x = features(n, ci, h + 2 - 2 * padding, w, dtype=dtype, device=chip)
    weight, bias = layer(co, ci, 3, dtype, chip)
    skip = features(n, co, h, w, dtype=dtype, device=chip) if with_skip else None
    # Poisoned with NaN, and in the middle of something that must stay as it is.
    around = torch.full((n, co // shuffle**2, h * shuffle + 5, w * shuffle), 7.0, dtype=dtype, device=chip)
    around = around.to(memory_format=NHWC)
    out = around[:, :, 3 : h * shuffle + 3]
    out.fill_(float("nan"))
    y = fused.conv3x3(x, weight, bias, relu, scale, skip, shuffle, padding, out)
    assert y is out
    judge(y, reference.conv3x3, x, weight, bias, relu, scale, skip, shuffle, padding)
    assert (around[:, :, :3] == 7).all() and (around[:, :, h * shuffle + 3 :] == 7).all()


@pytest.mark.slow
@settings(max_examples=15, deadline=None)
@given(
    st.integers(1, 2),
    st.sampled_from([16, 32, 48]),
    st.integers(1, 40),
    st.integers(1, 20),
    st.integers(1, 70),
    st.booleans(),
    st.booleans(),
    st.sampled_from(DTYPES),
)
def test_conv3x3_of_any_size(chip, n, ci, co, h, w, relu, with_skip, dtype):
    x, (weight, bias) = features(n, ci, h, w, dtype=dtype, device=chip), layer(co, ci, 3, dtype, chip)
    skip = features(n, co, h, w, dtype=dtype, device=chip) if with_skip else None
    y = fused.conv3x3(x, weight, bias, relu, 1.0, skip)
    judge(y, reference.conv3x3, x, weight, bias, relu, 1.0, skip)


@pytest.mark.filterwarnings("ignore:invalid value:RuntimeWarning")
def test_relu_does_not_hide_nan(chip):
    x, (weight, bias) = features(1, 16, 4, 8, dtype=torch.float16, device=chip), layer(16, 16, 3, torch.float16, chip)
    x[0, 0, 1, 1] = float("nan")
    assert fused.conv3x3(x, weight, bias, relu=True)[:, :, :3, :3].isnan().all()


@pytest.mark.parametrize("dtype", DTYPES)
def test_resblock(dtype, chip):
    x, first, second = features(1, 16, 7, 20, dtype=dtype, device=chip), *(layer(16, 16, 3, dtype, chip) for _ in "12")
    judge(fused.resblock(x, *first, *second, 0.1), reference.resblock, x, *first, *second, 0.1)


def test_two_kernels_of_a_resblock_reuse_its_input(chip, monkeypatch):
    monkeypatch.setattr(fused.dispatch, "should_use_block", lambda *_: False)
    x, first, second = (
        features(1, 16, 7, 20, dtype=torch.float32, device=chip),
        *(layer(16, 16, 3, torch.float32, chip) for _ in "12"),
    )
    want = fused.resblock(x, *first, *second, 0.1)
    assert fused.resblock(x, *first, *second, 0.1, reuse=True) is x
    assert torch.equal(x, want)


def test_the_result_may_go_over_the_skip(chip):
    x, skip = (features(1, 16, 11, 40, dtype=torch.float16, device=chip) for _ in range(2))
    weight, bias = layer(16, 16, 3, torch.float16, chip)
    expected = fused.conv3x3(x, weight, bias, skip=skip)
    assert torch.equal(fused.conv3x3(x, weight, bias, skip=skip, out=skip), expected)


def test_where_a_pixel_lies_does_not_matter(chip):
    """A part of an image with a rim gives the bits of the whole: the sum of a pixel has one order."""
    if chip.type == "cpu":
        pytest.skip("the interpreter's matrix products add in an order that depends on the place")
    x, (weight, bias) = features(1, 32, 20, 50, dtype=torch.float16, device=chip), layer(32, 32, 3, torch.float16, chip)
    whole = fused.conv3x3(x, weight, bias)
    part = x[:, :, 3:16].contiguous(memory_format=NHWC)
    assert torch.equal(fused.conv3x3(part, weight, bias, padding=0), whole[:, :, 4:15])


def test_offsets_past_two_to_the_31(chip):
    """Rows 2^27 elements apart: the last one begins at element 2.5·10⁹. Memory that is not touched costs nothing."""
    pitch, h, w = 1 << 27, 20, 3
    try:
        space = torch.empty(h * pitch, dtype=torch.float16, device=chip)
    except RuntimeError:
        pytest.skip("needs 5 GiB of address space")
    x = space.as_strided((1, 16, h, w), (h * pitch, 1, pitch, 16))
    x.copy_(torch.randn(1, 16, h, w))
    weight, bias = layer(16, 16, 3, torch.float16, chip)
    dense = x.contiguous(memory_format=NHWC)
    expected = fused.conv3x3(dense, weight, bias, skip=dense)
    assert torch.equal(fused.conv3x3(x, weight, bias, skip=x), expected)
    out = space.as_strided((1, 16, h, w), (h * pitch, 1, pitch, 16), 1 << 20)
    fused.conv3x3(dense, weight, bias, skip=dense, out=out)
    assert torch.equal(out, expected)


def test_every_configuration_is_right(chip):
    x, (weight, bias) = features(1, 32, 9, 20, dtype=torch.float16, device=chip), layer(32, 32, 3, torch.float16, chip)
    for h, w, co, ci in ((8, 32, 64, 32), (4, 16, 16, 16), (16, 8, 32, 16)):
        config = {"BLOCK_H": h, "BLOCK_W": w, "BLOCK_CO": co, "BLOCK_CI": ci, "num_warps": 4, "num_stages": 2}
        out = torch.full((1, 32, 9, 20), float("nan"), dtype=torch.float16, device=chip).to(memory_format=NHWC)
        conv3x3.portable(x, weight, bias, True, 1.0, None, 1, 1, out, config)
        judge(out, reference.conv3x3, x, weight, bias, True)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("kind", [torch.uint8, torch.uint16, torch.float32])
@pytest.mark.parametrize(
    ("n", "co", "h", "w", "padding"),
    [(1, 16, 1, 1, (1, 1)), (2, 64, 3, 131, (1, 0)), (1, 48, 5, 7, (0, 1)), (1, 256, 3, 5, (0, 0))],
)
def test_head(n, co, h, w, padding, kind, dtype, chip):
    x = torch.rand(n, h, w, 3, device=chip)
    x = (x if kind == torch.float32 else (x * reference.MAX_VALUE[kind]).to(kind)).permute(0, 3, 1, 2)
    weight, bias = layer(co, 3, 3, dtype, chip)
    out = torch.full((n, co, h - 2 + sum(padding), w), float("nan"), dtype=dtype, device=chip).to(memory_format=NHWC)
    judge(fused.head(x, weight, bias, MEAN, padding, out), reference.head, x, weight, bias, MEAN, padding)


def test_head_takes_any_strides(chip):
    weight, bias = layer(16, 3, 3, torch.float16, chip)
    x = torch.rand(1, 3, 6, 9, device=chip)
    expected = fused.head(x, weight, bias, MEAN)
    assert torch.equal(fused.head(x.to(memory_format=NHWC), weight, bias, MEAN), expected)
    gray = x[:, :1].expand(-1, 3, -1, -1)
    assert torch.equal(fused.head(gray, weight, bias, MEAN), fused.head(gray.contiguous(), weight, bias, MEAN))


TAILS = [  # N, Ci, shuffle, H, W, padding, ends
    (1, 16, 2, 1, 1, 2, (True, True)),
    (1, 16, 2, 1, 2, 2, (True, True)),
    (1, 16, 2, 2, 1, 2, (True, True)),
    (1, 16, 2, 1, 3, 2, (True, False)),
    (2, 16, 3, 5, 4, 2, (True, True)),
    (1, 16, 4, 2, 3, 0, (True, False)),
    (1, 16, 2, 3, 140, 0, (False, False)),
    (1, 32, 2, 4, 140, 2, (True, True)),
    (1, 64, 2, 5, 9, 0, (False, True)),
]


def collapsed(ci, shuffle, dtype, device):
    """Weights in which every border class differs."""
    outputs = 3 * shuffle**2
    weight = torch.randn(4, 4, outputs, 5, 5, ci, device=device) / (5 * ci**0.5)
    return weight.to(dtype).permute(0, 1, 2, 5, 3, 4), torch.randn(4, 4, outputs, device=device).to(dtype)


@pytest.mark.parametrize("case", TAILS)
def test_collapsed_tail(case, chip):
    n, ci, shuffle, h, w, padding, ends = case
    x = features(n, ci, h + 4 - 2 * padding, w, dtype=torch.float16, device=chip)
    weight, bias = collapsed(ci, shuffle, torch.float16, chip)
    y = fused.collapsed_tail(x, weight, bias, MEAN, shuffle, padding=padding, ends=ends)
    judge(y, reference.collapsed_tail, x, weight, bias, MEAN, shuffle, padding=padding, ends=ends)


@pytest.mark.slow
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
@pytest.mark.parametrize(("shuffle", "w"), [(2, 35), (3, 2), (4, 1)])
def test_collapsed_tail_in_strips(shuffle, w, dtype, chip):
    limit = 3 * w * 144 * dtype.itemsize  # 6, 3 and 1 rows at a time
    x, (weight, bias) = features(1, 16, 7, w, dtype=dtype, device=chip), collapsed(16, shuffle, dtype, chip)
    blocks = {"BLOCK_W": 32, "BLOCK_J": 256, "BLOCK_CI": 16, "num_warps": 8, "num_stages": 2}
    y = fused.collapsed_tail(x, weight, bias, MEAN, shuffle, config=blocks, partial_bytes=limit)
    judge(y, reference.collapsed_tail, x, weight, bias, MEAN, shuffle)


@pytest.mark.parametrize("kind", [torch.uint8, torch.uint16])
def test_tail_gives_whole_numbers(kind, chip):
    x, (weight, bias) = features(1, 16, 5, 9, dtype=torch.float32, device=chip), collapsed(16, 2, torch.float32, chip)
    overflow = torch.zeros(1, dtype=torch.int32, device=chip)
    y = fused.collapsed_tail(x, weight, bias, MEAN, 2, OutputSpec(kind, overflow))
    values = reference.collapsed_tail(*map(wide, (x, weight, bias)), MEAN, 2) * reference.MAX_VALUE[kind]
    assert y.dtype == kind and y.permute(0, 2, 3, 1).is_contiguous()
    away = (y.double() - values.clamp(0, reference.MAX_VALUE[kind])).abs()
    assert away.max() <= (0.501 if kind == torch.uint8 else 0.6)  # half, and fp32's own rounding
    assert overflow.item() == 0 and (y == 0).any() and (y == reference.MAX_VALUE[kind]).any()


@pytest.mark.filterwarnings("ignore:invalid value:RuntimeWarning")
@pytest.mark.parametrize("value", [float("inf"), float("nan")])
@pytest.mark.parametrize("ops", [fused, reference])
def test_overflow_is_reported(ops, value, chip):
    x, (weight, bias) = features(1, 16, 6, 6, dtype=torch.float16, device=chip), collapsed(16, 2, torch.float16, chip)
    overflow = torch.zeros(1, dtype=torch.int32, device=chip)
    ops.collapsed_tail(x, weight, bias, MEAN, 2, OutputSpec(torch.uint8, overflow))
    assert overflow.item() == 0
    x[0, 3, 5, 2] = value
    ops.collapsed_tail(x, weight, bias, MEAN, 2, OutputSpec(torch.uint8, overflow))
    assert overflow.item() == 1


@pytest.mark.parametrize("dtype", DTYPES)
def test_tail(dtype, chip):
    x, (weight, bias) = features(1, 32, 5, 9, dtype=dtype, device=chip), layer(3, 32, 3, dtype, chip)
    judge(fused.tail(x, weight, bias, MEAN), reference.tail, x, weight, bias, MEAN)


@pytest.mark.parametrize("name", ["head", "conv3x3", "resblock", "tail", "collapsed_tail"])
def test_every_op_has_a_twin(name):
    ours, twin = (inspect.signature(getattr(ops, name)).parameters for ops in (fused, reference))
    assert {k: v for k, v in ours.items() if k not in ("config", "partial_bytes")} == dict(twin)


def test_what_no_kernel_takes(chip):
    x, (weight, bias) = features(1, 16, 4, 8, dtype=torch.float16, device=chip), layer(16, 16, 3, torch.float16, chip)
    refused = [
        (x.contiguous(), weight, bias, "channels_last"),
        (x[:, :, :, ::2], weight, bias, "channels_last"),
        (x[:, :8], weight[:, :8], bias, "multiple of 16"),
        (x.double(), weight, bias, "float64"),
        (x, weight.float(), bias, "weight is torch.float32"),
        (x, weight.contiguous(), bias, "weight is not channels_last"),
        (x, weight, bias[:8], "bias is torch"),
        (x, weight, torch.cat([bias, bias])[::2], "bias is not"),
        (x[:, :, :0], weight, bias, "nothing comes"),
        (x, weight, bias, "skip is", x[:, :, :2]),
    ]
    for x_, weight_, bias_, says, *skip in refused:
        with pytest.raises(fused.KernelError, match=says) as error:
            fused.conv3x3(x_, weight_, bias_, skip=skip[0] if skip else None)
        assert "\n" not in str(error.value)


def test_operands_on_other_devices_are_refused(chip):
    x, (weight, bias) = features(1, 16, 4, 8, dtype=torch.float16, device=chip), layer(16, 16, 3, torch.float16, chip)
    with pytest.raises(fused.KernelError, match="skip is on meta"):
        fused.conv3x3(x, weight, bias, skip=x.to("meta"))
    with pytest.raises(fused.KernelError, match="x is on meta"):
        fused.head(torch.rand(1, 3, 4, 8, device="meta"), *layer(16, 3, 3, torch.float16, chip), MEAN)
    with pytest.raises(fused.KernelError, match="weight is on meta"):
        weight, bias = collapsed(16, 2, torch.float16, chip)
        fused.collapsed_tail(x, weight.to("meta"), bias, MEAN, 2)


def test_a_cpu_is_refused_outside_the_interpreter(monkeypatch):
    monkeypatch.setattr(launch, "interpreted", lambda: False)
    with pytest.raises(fused.KernelError, match="CUDA device"):
        fused.conv3x3(features(1, 16, 4, 8, dtype=torch.float16, device="cpu"), *layer(16, 16, 3, torch.float16, "cpu"))


def test_configurations_are_data(tmp_path, monkeypatch):
    (tmp_path / "some-gpu-9.json").write_text(
        '{"configs": {"conv3x3": {"fp16 64-64": {"BLOCK_H": 4}}},'
        '"choices": {"resblock": {"fp16 64": {"fastest": "portable"}}}}'
    )
    monkeypatch.setattr(launch, "FOLDER", tmp_path)
    monkeypatch.setattr(launch, "_gpu", lambda device: launch._Gpu("Some (GPU) 9", 90, 132))
    cuda = torch.device("cuda")
    launch._load_record.cache_clear()
    try:
        assert launch.config("conv3x3", "fp16 64-64", {"BLOCK_H": 8}, cuda) == {"BLOCK_H": 4}
        assert launch.config("conv3x3", "fp16 32-32", {"BLOCK_H": 8}, cuda) == {"BLOCK_H": 8}
        assert launch.config("conv3x3", "fp16 64-64", {"BLOCK_H": 8}, torch.device("cpu")) == {"BLOCK_H": 8}
        assert launch.choice("resblock", "fp16 64", cuda) == "portable"
        assert launch.choice("resblock", "bf16 64", cuda) is None
    finally:
        launch._load_record.cache_clear()


def test_configurations_are_overridden_inside_and_in_this_thread_alone():
    def config(key: str = "k") -> dict[str, int]:
        return launch.config("toy", key, {"BLOCK": 1}, torch.device("cpu"))

    with launch.override_configs(lambda op, key, default: default | {"outer": 1}) as outer:
        assert config() == {"BLOCK": 1, "outer": 1}
        with launch.override_configs(lambda op, key, default: {"inner": 1}) as inner:
            assert config("other") == {"inner": 1}
        with ThreadPoolExecutor(1) as pool:
            assert pool.submit(config, "in a thread").result() == {"BLOCK": 1}
        with pytest.raises(ZeroDivisionError), launch.override_configs(lambda op, key, default: {}):
            raise ZeroDivisionError
        assert config() == {"BLOCK": 1, "outer": 1}
    assert config("after") == {"BLOCK": 1}
    assert outer == {("toy", "k")} and inner == {("toy", "other")}


def test_compilations_are_logged_but_not_those_found_in_the_cache(chip, caplog):
    caplog.set_level(logging.INFO, logger="edsr.kernels")
    fused.head(torch.rand(1, 3, 2, 3, device=chip), *layer(16, 3, 3, torch.float32, chip), MEAN)
    caplog.clear()  # a GPU may have compiled it
    for cache_hit in (True, False):
        launch.knobs.compilation.listener(
            src=None,
            metadata={"name": "_toy"},
            metadata_group={},
            times=SimpleNamespace(total=2_500_000),  # microseconds
            cache_hit=cache_hit,
        )
    (record,) = caplog.records
    assert record.message.startswith("compiled _toy in 2.5 s") and record.levelno == logging.INFO
