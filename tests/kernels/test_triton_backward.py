"""The gradients of the Triton kernels against fp64 autograd, with PyTorch in the same precision as the yardstick.

Without a GPU they run in Triton's interpreter; `pytest -m gpu` runs the same tests on the chip.
"""

import inspect

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

pytest.importorskip("triton")

from bench.ops import SingleOp
from bench.workloads import recorded
from edsr.kernels import is_faster_in_training, reference
from edsr.kernels.autograd import pixel_unshuffled
from edsr.kernels.triton import autograd as training
from edsr.kernels.triton import conv3x3_backward, launch
from edsr.kernels.triton import ops as fused
from edsr.kernels.triton.conv3x3_backward import dgrad, wgrad
from edsr.kernels.triton.hopper import dispatch
from edsr.models.edsr import EDSR, EDSRConfig
from tests.kernels.test_triton import DTYPES, NHWC, features, layer, wide

any_size = settings(max_examples=6, deadline=None)


@pytest.fixture(autouse=True)
def few_blocks(monkeypatch):
    """The interpreter takes its time for every block."""
    if not launch.interpreted():
        yield
        return
    blocks = {"BLOCK_H": 4, "BLOCK_W": 16}
    monkeypatch.setattr(conv3x3_backward, "ADDED", 2048)
    with launch.override_configs(lambda op, key, default: default | (blocks if op == "wgrad" else {})):
        yield


def judge(found, truth, reference_error, terms=None):
    """`found` may err against fp64 twice as much as torch in its precision, or as much as rounding the truth does.

    terms: of sums, the sums of their terms' magnitudes. Rounding those to fp32, in which sums are made, is what any
    order of adding costs, and torch's may cost less by luck where terms cancel.
    """
    assert found.shape == truth.shape and found.dtype == reference_error.dtype
    rounded = torch.finfo(reference_error.dtype).eps * truth.norm()
    if terms is not None:
        rounded = max(rounded, torch.finfo(torch.float32).eps * terms.norm())
    limit = max(2 * (reference_error.double() - truth).norm(), rounded)
    assert (found.double() - truth).norm() <= limit  # never true of NaN


def by_input(dy, weight, scale=1.0, mask=None, skip=None):
    """`dgrad` in PyTorch."""
    dx = F.conv_transpose2d(dy, weight, padding=1) * scale
    dx = dx if mask is None else dx.where(mask > 0, 0)
    return dx if skip is None else dx + skip


def by_weight(x, dy, scale=1.0):
    """`wgrad` in PyTorch, by the definition of its sums."""
    around = F.pad(x, (1, 1, 1, 1))
    h, w = x.shape[2:]
    taps = [torch.einsum("nohw,nihw->oi", dy, around[:, :, a : a + h, b : b + w]) for a in range(3) for b in range(3)]
    return torch.stack(taps, 2).unflatten(2, (3, 3)) * scale, dy.sum((0, 2, 3)) * scale


CASES = [  # N, Ci, Co, H, W, scale, mask, skip
    (1, 16, 16, 1, 1, 1.0, False, False),
    (2, 16, 32, 3, 19, 0.1, True, False),
    (1, 48, 16, 1, 20, -0.5, True, True),
    (1, 16, 48, 9, 2, 1.0, False, True),
]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("case", CASES)
def test_dgrad(case, dtype, chip):
    n, ci, co, h, w, scale, masked, skipped = case
    dy, (weight, _) = features(n, co, h, w, dtype=dtype, device=chip), layer(co, ci, 3, dtype, chip)
    mask = features(n, ci, h, w, dtype=dtype, device=chip).relu() if masked else None
    skip = features(n, ci, h, w, dtype=dtype, device=chip) if skipped else None
    operands = (dy, weight, scale, mask, skip)
    dx = dgrad(*operands)
    assert dx.is_contiguous(memory_format=NHWC)
    judge(dx, by_input(*map(wide, operands)), by_input(*operands))


def judge_sums(found, x, dy, scale=1.0):
    """What `wgrad` gives in fp32, of operands in less: as exact as torch's sums of the same operands in fp32."""
    targets, yardsticks = by_weight(wide(x), wide(dy), scale), by_weight(x.float(), dy.float(), scale)
    terms = by_weight(wide(x).abs(), wide(dy).abs(), abs(scale))
    for judged in zip(found, targets, yardsticks, terms, strict=True):
        judge(*judged)


def test_sums_in_any_order_are_right_and_a_lost_digit_is_not():
    """Sixteen terms that cancel, as a bias's gradient may: torch's order is sometimes exact by luck."""
    lucky = 0
    for _ in range(300):
        terms = torch.randn(16, 16)
        truth, reference_error = terms.double().sum(0), terms.sum(0)
        backwards = torch.zeros(16)
        for term in terms.flip(0):
            backwards += term
        judge(backwards, truth, reference_error, terms.double().abs().sum(0))
        lucky += bool((backwards - truth).norm() > 2 * (reference_error - truth).norm())
        with pytest.raises(AssertionError):
            judge(terms.bfloat16().float().sum(0), truth, reference_error, terms.double().abs().sum(0))
    assert lucky  # such a sum was called wrong before


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("case", CASES)
def test_wgrad(case, dtype, chip):
    n, ci, co, h, w, scale, *_ = case
    x, dy = features(n, ci, h, w, dtype=dtype, device=chip), features(n, co, h, w, dtype=dtype, device=chip)
    found = wgrad(x, dy, scale)
    assert found[0].is_contiguous(memory_format=NHWC)
    judge_sums(found, x, dy, scale)
    for rounded, exact in zip(wgrad(x, dy, scale, dtype), found, strict=True):
        assert torch.equal(rounded, exact.to(dtype))


def test_features_of_a_network(chip):
    """As many as fill a block: where there are fewer, the rest of it is left out."""
    x, dy = (features(1, 64, 3, 17, dtype=torch.bfloat16, device=chip) for _ in range(2))
    weight, _ = layer(64, 64, 3, torch.bfloat16, chip)
    judge(dgrad(dy, weight), by_input(wide(dy), wide(weight)), by_input(dy, weight))
    judge_sums(wgrad(x, dy), x, dy)


@pytest.mark.slow
@any_size
@given(
    st.integers(1, 2),
    st.sampled_from([16, 48]),
    st.sampled_from([16, 32]),
    st.integers(1, 5),
    st.integers(1, 35),
    st.sampled_from(DTYPES),
)
def test_gradients_of_any_size(chip, n, ci, co, h, w, dtype):
    x, dy = features(n, ci, h, w, dtype=dtype, device=chip), features(n, co, h, w, dtype=dtype, device=chip)
    weight, _ = layer(co, ci, 3, dtype, chip)
    judge(dgrad(dy, weight), by_input(wide(dy), wide(weight)), by_input(dy, weight))
    judge_sums(wgrad(x, dy), x, dy)


@pytest.mark.parametrize("multiprocessors", [1, 5, 36])
def test_splits_of_any_length(multiprocessors, chip, monkeypatch):
    """One split of all pixels, several of different lengths, and more than are added at once."""
    monkeypatch.setattr(launch, "multiprocessors", lambda device: multiprocessors)
    blocks = {"BLOCK_H": 1, "BLOCK_W": 16, "BLOCK_CO": 16, "BLOCK_CI": 16, "num_warps": 4, "num_stages": 2}
    x, dy = (features(3, 16, 6, 30, dtype=torch.float16, device=chip) for _ in range(2))  # 36 rectangles
    with launch.override_configs(lambda op, key, default: blocks) as requested:
        judge_sums(wgrad(x, dy), x, dy)
    assert requested == {("wgrad", "fp16 16-16")}


def test_every_configuration_is_right(chip):
    x, dy = (features(1, 32, 5, 20, dtype=torch.float16, device=chip) for _ in range(2))
    for h, w, co, ci in ((1, 16, 16, 32), (2, 32, 64, 16), (8, 16, 32, 32)):
        blocks = {"BLOCK_H": h, "BLOCK_W": w, "BLOCK_CO": co, "BLOCK_CI": ci, "num_warps": 4, "num_stages": 2}
        judge_sums(wgrad(x, dy, config=blocks), x, dy)


def test_a_gradient_is_the_adjoint(chip):
    """<dy, conv(x, w)> is <dgrad(dy, w), x> and <wgrad(x, dy), w>, the convolution being linear in each."""
    x, dy = (features(2, c, 6, 21, dtype=torch.float32, device=chip) for c in (16, 32))
    weight, bias = layer(32, 16, 3, torch.float32, chip)
    dweight, dbias = wgrad(x, dy, 0.1)
    y = training.conv3x3(x, weight, torch.zeros_like(bias), scale=0.1)
    product = (wide(y) * dy).sum()
    size = y.double().norm() * dy.double().norm() * 1e-6
    assert abs((wide(dgrad(dy, weight, 0.1)) * x).sum() - product) <= size
    assert abs((wide(dweight) * weight).sum() - product) <= size
    assert abs((wide(dbias) * bias).sum() - 0.1 * (dy.double() * bias[:, None, None]).sum()) <= size


# --- through autograd


def gradients(op, operands, dy=None, **options):
    """Gradients of every floating tensor among `operands`, as a list; dy: of the result, 1 everywhere if None."""
    leaves = [x.detach().requires_grad_() if isinstance(x, torch.Tensor) else x for x in operands]
    y = op(*leaves, **options)
    wanted = [x for x in leaves if isinstance(x, torch.Tensor)]
    return torch.autograd.grad(y, wanted, torch.ones_like(y) if dy is None else dy)


def judge_gradients(op, twin, operands, dy):
    """The gradients of `op` by those of `twin`. Of operands' magnitudes nothing cancels: the terms."""
    found = gradients(op, operands, dy)
    targets = gradients(twin, [wide(x) for x in operands], wide(dy))
    terms = gradients(twin, [magnitude(wide(x)) for x in operands], wide(dy).abs())
    for judged in zip(found, targets, gradients(twin, operands, dy), terms, strict=True):
        judge(*judged)
    return found


def magnitude(value):
    """|value| of a tensor or a scale; of what else an op takes, itself."""
    return value.abs() if isinstance(value, torch.Tensor) else abs(value) if isinstance(value, float) else value


def plain(x, weight, bias, relu=False, scale=1.0, skip=None, shuffle=1):
    """`reference.conv3x3`, which cannot be differentiated where a ReLU and more come together, step by step."""
    y = F.conv2d(x, weight, bias, padding=1)
    y = scale * (y.relu() if relu else y)
    return F.pixel_shuffle(y if skip is None else y + skip, shuffle)


@pytest.mark.parametrize(
    ("relu", "scale", "skipped", "shuffle", "dtype"),
    [
        (False, 1.0, False, 1, torch.float16),
        (True, 1.0, False, 1, torch.bfloat16),
        (True, 1.0, False, 1, torch.float32),
        (False, 0.1, True, 1, torch.float16),
        (False, -3.0, True, 1, torch.bfloat16),
        (True, -2.0, True, 2, torch.float32),
        (False, 1.0, False, 2, torch.bfloat16),
        (False, -0.5, True, 3, torch.float16),
    ],
)
def test_conv3x3(relu, scale, skipped, shuffle, dtype, chip):
    co = 16 * shuffle**2
    x, (weight, bias) = features(2, 16, 3, 7, dtype=dtype, device=chip), layer(co, 16, 3, dtype, chip)
    skip = features(2, co, 3, 7, dtype=dtype, device=chip) if skipped else None
    dy = features(2, 16, 3 * shuffle, 7 * shuffle, dtype=dtype, device=chip)
    operands = (x, weight, bias, relu, scale, skip, shuffle)
    dx, dweight, *_ = judge_gradients(training.conv3x3, plain, operands, dy)
    assert dx.is_contiguous(memory_format=NHWC) and dweight.is_contiguous(memory_format=NHWC)
    judge(training.conv3x3(*operands), plain(*map(wide, operands)), plain(*operands))


@pytest.mark.parametrize(("scale", "dtype"), [(1.0, torch.float32), (0.1, torch.bfloat16), (-0.5, torch.float16)])
def test_resblock(scale, dtype, chip):
    x, first, second = features(2, 16, 5, 13, dtype=dtype, device=chip), *(layer(16, 16, 3, dtype, chip) for _ in "12")
    dy = features(2, 16, 5, 13, dtype=dtype, device=chip)
    operands = (x, *first, *second, scale)
    judge_gradients(training.resblock, reference.resblock, operands, dy)
    assert torch.equal(training.resblock(*operands), fused.resblock(*operands))


@any_size
@given(st.integers(1, 2), st.integers(1, 4), st.integers(1, 20), st.sampled_from([1, 2]), st.sampled_from(DTYPES))
def test_conv3x3_of_any_size(chip, n, h, w, shuffle, dtype):
    co = 16 * shuffle**2
    x, (weight, bias) = features(n, 16, h, w, dtype=dtype, device=chip), layer(co, 16, 3, dtype, chip)
    dy = features(n, 16, h * shuffle, w * shuffle, dtype=dtype, device=chip)
    judge_gradients(training.conv3x3, plain, (x, weight, bias, False, 1.0, None, shuffle), dy)


@pytest.mark.parametrize(("scale", "dtype"), [(2, torch.bfloat16), (4, torch.float32)])
def test_network(scale, dtype, chip):
    """All parameters' gradients of a whole network together, from a float image to L1."""
    model = EDSR(EDSRConfig(scale=scale, blocks=1, features=16, residual_scale=0.1))
    model = model.to(chip, dtype, memory_format=NHWC)
    image, target = torch.rand(2, 3, 3, 4, device=chip), torch.rand(2, 3, 3 * scale, 4 * scale, device=chip)

    def all_gradients(network, ops):
        network.zero_grad()
        loss = F.l1_loss(network(image.to(torch.promote_types(network.tail.weight.dtype, torch.float32)), ops), target)
        loss.backward()
        for parameter in network.parameters():
            assert parameter.grad.dtype == parameter.dtype and parameter.grad.stride() == parameter.stride()
        return torch.cat([parameter.grad.flatten() for parameter in network.parameters()])

    found, reference_error = all_gradients(model, training), all_gradients(model, reference)
    judge(found, all_gradients(model.double(), reference), reference_error)


def test_two_runs_give_the_same_bits(chip):
    size = (16, 64, 48, 48) if chip.type == "cuda" else (1, 16, 5, 13)
    x, dy = (features(*size, dtype=torch.bfloat16, device=chip) for _ in range(2))
    operands = (x, *(t for _ in "12" for t in layer(size[1], size[1], 3, torch.bfloat16, chip)), 0.1)
    first, second = (gradients(training.resblock, operands, dy) for _ in range(2))
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


@pytest.mark.parametrize("shuffle", [1, 2])
def test_gradients_may_come_in_any_layout(shuffle, chip):
    co = 16 * shuffle**2
    x, (weight, bias) = features(1, 16, 2, 5, dtype=torch.float32, device=chip), layer(co, 16, 3, torch.float32, chip)
    dy = features(1, 16, 2 * shuffle, 5 * shuffle, dtype=torch.float32, device=chip)
    expanded = dy[:, :, :1, :1].expand_as(dy)
    for usual, other in ((dy, dy.contiguous()), (expanded.contiguous(memory_format=NHWC), expanded)):
        pair = (gradients(training.conv3x3, (x, weight, bias), d, shuffle=shuffle) for d in (usual, other))
        assert all(torch.equal(a, b) for a, b in zip(*pair, strict=True))


@pytest.mark.parametrize("shuffle", [1, 2, 3])
def test_unshuffling(shuffle):
    dy = torch.randn(2, 5, 4 * shuffle, 3 * shuffle).to(memory_format=NHWC)
    found = pixel_unshuffled(dy, shuffle)
    assert found.is_contiguous(memory_format=NHWC)
    assert torch.equal(found, F.pixel_unshuffle(dy, shuffle))


def test_only_what_is_needed_is_computed(chip, monkeypatch):
    asked = []
    for name in ("dgrad", "wgrad"):
        true = getattr(conv3x3_backward, name)
        monkeypatch.setattr(
            conv3x3_backward, name, lambda *a, name=name, true=true, **k: (asked.append(name), true(*a, **k))[1]
        )
    x, first, second = (
        features(1, 16, 2, 5, dtype=torch.float32, device=chip),
        *(layer(16, 16, 3, torch.float32, chip) for _ in "12"),
    )
    operands = [x, *first, *second]
    expected = [  # by which operand needs a gradient
        {"conv3x3": ["dgrad"], "resblock": ["dgrad", "dgrad"]},
        {"conv3x3": ["wgrad"], "resblock": ["dgrad", "wgrad"]},
        {"conv3x3": ["wgrad"], "resblock": ["dgrad", "wgrad"]},
        {"resblock": ["wgrad"]},
        {"resblock": ["wgrad"]},
    ]
    for i, by_op in enumerate(expected):
        for name, calls in by_op.items():
            leaves = [operand.detach().requires_grad_(i == j) for j, operand in enumerate(operands)]
            y = getattr(training, name)(*leaves[: 3 if name == "conv3x3" else 5])
            asked.clear()
            y.sum().backward()
            assert asked == calls
            assert [leaf.grad is not None for leaf in leaves] == [i == j for j in range(5)]
    assert not training.resblock(*operands).requires_grad


@pytest.mark.filterwarnings("ignore:invalid value:RuntimeWarning")
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_nan_and_infinities_propagate(value, chip):
    x, first, second = (
        features(1, 16, 5, 9, dtype=torch.float16, device=chip),
        *(layer(16, 16, 3, torch.float16, chip) for _ in "12"),
    )
    dy = torch.zeros_like(x)
    dy[0, 3, 2, 4] = value
    dx, dweight, dbias = gradients(training.conv3x3, (x, *first), dy)
    assert not dx[:, :, 1:4, 3:6].isfinite().any()
    assert not dweight[3].isfinite().any() and not dbias[3].isfinite()
    assert all(g.isfinite().any() for g in (dx, dbias))  # but not everywhere
    for gradient in gradients(training.resblock, (x, *first, *second), dy):
        assert not gradient.isfinite().all()


@pytest.mark.filterwarnings("ignore:invalid value:RuntimeWarning")
def test_a_closed_relu_lets_nothing_through(chip):
    dy, (weight, _) = features(1, 16, 3, 4, dtype=torch.float16, device=chip), layer(16, 16, 3, torch.float16, chip)
    mask = torch.ones_like(dy)
    mask[:, ::2], mask[:, 1::4], dy[0, 1, 1, 1] = 0, float("nan"), float("nan")
    dx = dgrad(dy, weight, mask=mask)
    assert (dx[:, ::2] == 0).all() and dx[:, 1::2, :, :3].isnan().all()


def test_offsets_past_two_to_the_31(chip):
    """Rows 2^27 elements apart: the last one begins at element 2.5·10⁹. Memory that is not touched costs nothing."""
    pitch, h, w = 1 << 27, 20, 3
    try:
        space = torch.empty(h * pitch, dtype=torch.float16, device=chip)
    except RuntimeError:
        pytest.skip("needs 5 GiB of address space")
    x = space.as_strided((1, 16, h, w), (h * pitch, 1, pitch, 16))
    x.copy_(torch.randn(1, 16, h, w))
    weight, _ = layer(16, 16, 3, torch.float16, chip)
    dense = x.contiguous(memory_format=NHWC)
    assert torch.equal(dgrad(x, weight, mask=x, skip=x), dgrad(dense, weight, mask=dense, skip=dense))
    for found, expected in zip(wgrad(x, x), wgrad(dense, dense), strict=True):
        assert torch.equal(found, expected)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("channels", [64, 256])
def test_masked_at_the_size_of_training(channels, dtype):
    """What `bench.verify` once called wrong: launched, and replayed after memory has been handed out; says where."""
    work = SingleOp("dgrad", channels, 48, 48, dtype=dtype, images=16)
    plain = work.cases["ours"].build(work)
    for run in (plain, recorded(plain)):
        for _ in range(3):
            work.check(run, poison=True)


def test_hopper_gets_a_turned_weight(chip, monkeypatch):
    def convolve(x, weight, bias, relu, scale, skip, padding, out):
        assert weight.is_contiguous(memory_format=NHWC)
        out.copy_(reference.conv3x3(x, weight, bias, relu, scale, skip, 1, padding))

    monkeypatch.setattr(dispatch, "should_use", lambda x, weight, shuffle: tuple(weight.shape) == (32, 16, 3, 3))
    monkeypatch.setattr(dispatch, "conv3x3", convolve)
    dy, skip = (features(1, c, 4, 5, dtype=torch.float32, device=chip) for c in (16, 32))
    weight, _ = layer(16, 32, 3, torch.float32, chip)
    operands = (dy, weight, 0.5, None, skip)
    judge(dgrad(*operands), by_input(*map(wide, operands)), by_input(*operands))


# --- the namespace


@pytest.mark.parametrize("name", ["head", "conv3x3", "resblock", "tail"])
def test_every_op_has_a_twin(name):
    ours, twin = (inspect.signature(getattr(ops, name)).parameters for ops in (training, reference))
    assert dict(ours) == dict(twin)


def test_pytorch_serves_what_the_kernels_do_not(chip, monkeypatch):
    monkeypatch.setattr(launch, "run", lambda *operands, **options: pytest.fail("a kernel was launched"))
    x, first, second = (
        features(1, 8, 4, 5, dtype=torch.float32, device=chip),
        *(layer(8, 8, 3, torch.float32, chip) for _ in "12"),
    )
    assert len(gradients(training.resblock, (x, *first, *second))) == 5
    assert len(gradients(training.conv3x3, (x, *first), relu=True)) == 3
    x, (weight, bias) = features(1, 16, 4, 5, dtype=torch.float32, device=chip), layer(16, 16, 3, torch.float32, chip)
    assert training.conv3x3(x, weight, bias, padding=0).shape == (1, 16, 2, 5)
    out = torch.empty_like(x)
    assert training.conv3x3(x, weight, bias, out=out) is out
    assert training.resblock(x, weight, bias, weight, bias, out=out) is out


def test_a_second_differentiation_is_refused(chip):
    x, (weight, bias) = features(1, 16, 2, 3, dtype=torch.float32, device=chip), layer(16, 16, 3, torch.float32, chip)
    for op, operands in ((training.conv3x3, (weight, bias)), (training.resblock, (weight, bias, weight, bias))):
        leaf = x.detach().requires_grad_()
        (dx,) = torch.autograd.grad(op(leaf, *operands).square().sum(), leaf, create_graph=True)
        with pytest.raises(RuntimeError, match="once_differentiable"):
            dx.sum().backward()


def test_what_no_kernel_takes(chip):
    x, (weight, bias) = features(1, 16, 4, 8, dtype=torch.float16, device=chip), layer(32, 16, 3, torch.float16, chip)
    dy = features(1, 32, 4, 8, dtype=torch.float16, device=chip)
    refused = [
        (lambda: dgrad(dy.contiguous(), weight), "channels_last"),
        (lambda: dgrad(dy.double(), weight), "float64"),
        (lambda: dgrad(x, weight), "weight is"),
        (lambda: dgrad(dy[:, :8], weight[:8]), "multiple of 16"),
        (lambda: dgrad(dy[:, :, :0], weight), "nothing comes"),
        (lambda: dgrad(dy, weight.float()), "weight is torch.float32"),
        (lambda: dgrad(dy, weight.contiguous()), "weight is not channels_last"),
        (lambda: dgrad(dy, weight, mask=dy), "mask is"),
        (lambda: dgrad(dy, weight, mask=x.float()), "mask is"),
        (lambda: dgrad(dy, weight, skip=x[:, :, 1:]), "skip is"),
        (lambda: dgrad(dy, weight, skip=x.contiguous()), "channels_last"),
        (lambda: dgrad(dy, weight, skip=x.to("meta")), "skip is on meta"),
        (lambda: wgrad(x.contiguous(), dy), "channels_last"),
        (lambda: wgrad(x, dy[:, :, :, ::2]), "dy is"),
        (lambda: wgrad(x, dy.float()), "dy is torch.float32"),
        (lambda: wgrad(x[:, :8], dy), "multiple of 16"),
        (lambda: wgrad(x, dy[:, :8]), "multiple of 16"),
        (lambda: wgrad(x[:, :, :0], dy[:, :, :0]), "empty"),
        (lambda: wgrad(x, dy.to("meta")), "dy is on meta"),
        (lambda: training.conv3x3(x.contiguous(), weight, bias), "channels_last"),
        (lambda: training.conv3x3(x, weight.contiguous(), bias), "weight is not channels_last"),
        (lambda: training.resblock(x, weight.double(), bias, weight, bias), "float64|weight"),
    ]
    for call, says in refused:
        with pytest.raises(training.KernelError, match=says) as error:
            call()
        assert "\n" not in str(error.value)


def test_a_cpu_is_refused_outside_the_interpreter(monkeypatch):
    monkeypatch.setattr(launch, "interpreted", lambda: False)
    x, layers = features(1, 16, 4, 8, dtype=torch.float16, device="cpu"), layer(16, 16, 3, torch.float16, "cpu")
    for call in (lambda: training.conv3x3(x, *layers), lambda: dgrad(x, layers[0]), lambda: wgrad(x, x)):
        with pytest.raises(training.KernelError, match="CUDA device"):
            call()


@pytest.mark.parametrize("more", [{"scale": 0.5}, {"skip": True}, {"scale": -2.0, "skip": True}])
def test_the_reference_itself_is_differentiable_with_every_epilogue(more):
    """In place where autograd allows it: a ReLU keeps what it gives, for its gradient."""
    x, weight, bias = (torch.randn(size, dtype=torch.float64) for size in ((1, 2, 4, 5), (2, 2, 3, 3), (2,)))
    skip = torch.randn(1, 2, 4, 5, dtype=torch.float64) if more.get("skip") else None
    operands = [t.requires_grad_() for t in (x, weight, bias)]

    def op(x, weight, bias):
        return reference.conv3x3(x, weight, bias, True, more.get("scale", 1.0), skip)

    assert torch.autograd.gradcheck(op, operands)


def test_the_backend_is_chosen_by_measurement(monkeypatch):
    chosen = {("training_step", "bf16 64"): "triton", ("training_step", "bf16 256"): "torch"}
    monkeypatch.setattr(launch, "choice", lambda op, key, device: chosen.get((op, key)))
    device = torch.device("cuda")
    assert is_faster_in_training("triton", device, torch.bfloat16, 64)
    assert not is_faster_in_training("triton", device, torch.bfloat16, 256)
    assert not is_faster_in_training("triton", device, torch.float16, 64)
