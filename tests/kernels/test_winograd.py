"""Winograd convolutions on the CPU: their algebra, their accuracy, their edges, whole networks on them."""

import ctypes
import functools
import gc
import sys
import threading
import weakref

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from edsr.errors import BackendError
from edsr.inference.upscaler import Upscaler
from edsr.kernels import reference
from edsr.kernels.winograd import convolution, runtime
from edsr.kernels.winograd import ops as winograd_cpu
from edsr.kernels.winograd.transforms import POINTS, matrices
from edsr.models.folding import FoldedEDSR
from tests.conftest import make_image, network

needs_kernels = pytest.mark.skipif(
    bool(winograd_cpu.unavailable_reason("cpu", torch.float32, 16)), reason="needs llvmlite and AVX2, AVX-512 or NEON"
)


def features(n, c, h, w, dtype=torch.float32):
    return torch.randn(n, c, h, w, dtype=dtype).contiguous(memory_format=torch.channels_last)


def layer(inputs, outputs, taps=3):
    """Weights of a convolution that keeps the size of values, and a bias."""
    return torch.randn(outputs, inputs, taps, taps) * (2 / (taps * taps * inputs)) ** 0.5, torch.randn(outputs) / 4


def window(values, above=3, below=2):
    """The same values as rows of a larger buffer full of NaN, and that buffer."""
    n, c, h, w = values.shape
    buffer = torch.full((n, c, above + h + below, w), float("nan")).contiguous(memory_format=torch.channels_last)
    inside = buffer[:, :, above : above + h]
    inside.copy_(values)
    return inside, buffer


@functools.cache
def tail_of(scale):
    return FoldedEDSR(network(scale, 0, features=32))


class TestMatrices:
    @pytest.mark.parametrize(("outputs", "taps"), [(4, 3), (2, 5), (3, 4), (5, 2)])
    def test_they_compute_a_convolution(self, outputs, taps):
        at, g, bt = matrices(outputs, taps)
        d, w = np.random.default_rng(0).normal(size=(2, outputs + taps - 1))
        w = w[:taps]
        direct = [d[i : i + taps] @ w for i in range(outputs)]
        np.testing.assert_allclose(at @ ((g @ w) * (bt @ d)), direct, rtol=0, atol=1e-13)

    def test_lavin_and_gray(self):
        """F(2x2, 3x3) of the paper's equation 7, whose points are 0, 1 and -1; rows may differ in sign."""
        at, g, bt = matrices(2, 3, (0.0, 1.0, -1.0))
        paper = np.array([[1, 0, -1, 0], [0, 1, 1, 0], [0, -1, 1, 0], [0, -1, 0, 1]])
        np.testing.assert_array_equal(abs(bt), abs(paper))
        np.testing.assert_array_equal(abs(g), [[1, 0, 0], [0.5, 0.5, 0.5], [0.5, 0.5, 0.5], [0, 0, 1]])
        np.testing.assert_array_equal(abs(at), [[1, 1, 1, 0], [0, 1, 1, 1]])

    def test_a_wrong_number_of_points(self):
        with pytest.raises(ValueError, match="5 points are for 6 inputs"):
            matrices(4, 5)

    def test_points_are_those_that_err_least(self):
        """In fp32 on normal values: half the integers' error, and no other c is much better."""
        d, w = torch.randn(2000, 6, 6), torch.randn(2000, 3, 3)
        true = torch.einsum("nijkl,nkl->nij", d.double().unfold(1, 3, 1).unfold(2, 3, 1), w.double())

        def error(points):
            at, g, bt = (torch.from_numpy(m) for m in matrices(4, 3, points))
            u = (g @ w.double() @ g.T).float()
            found = at.float() @ (u * (bt.float() @ d @ bt.float().T)) @ at.float().T
            return (found - true).square().mean().sqrt().item()

        ours = error(POINTS)
        assert 1.5 * ours < error((0.0, 1.0, -1.0, 2.0, -2.0))
        assert all(ours < 1.2 * error((0.0, 1 / c, -1 / c, c, -c)) for c in (1.2, 1.3, 1.5, 1.6, 1.75, 2.0))


@needs_kernels
class TestConvolution:
    @pytest.fixture
    def non_temporal(self, monkeypatch):
        """The values of this field in the tasks of convolutions."""
        values, original = [], runtime.run_parallel
        field = 8 * pytest.importorskip("edsr.kernels.winograd.codegen").TASK.index("non_temporal")

        def run_parallel(function, task, *rest):
            if function is runtime.kernels().functions["conv3x3"]:
                values.append(ctypes.c_int64.from_address(task + field).value)
            original(function, task, *rest)

        monkeypatch.setattr(runtime, "run_parallel", run_parallel)
        return values

    @settings(max_examples=60, deadline=None)
    @given(
        height=st.integers(1, 21),
        width=st.integers(1, 21),
        inputs=st.integers(1, 6),
        outputs=st.integers(1, 9),
        batch=st.integers(1, 2),
        padding=st.integers(0, 1),
        relu=st.booleans(),
        scale=st.sampled_from([1.0, 0.1]),
        skipped=st.booleans(),
        into=st.sampled_from(["new", "window", "skip"]),
    )
    def test_shapes_and_epilogues(self, height, width, inputs, outputs, batch, padding, relu, scale, skipped, into):
        inputs, outputs, height = 16 * inputs, 16 * outputs, height + 2 - 2 * padding
        x, around = window(features(batch, inputs, height, width))
        weight, bias = layer(inputs, outputs)
        rows = height - 2 + 2 * padding
        skip, _ = window(features(batch, outputs, rows, width)) if skipped or into == "skip" else (None, None)
        wide = [None if t is None else t.double() for t in (x, weight, bias, skip)]
        want = reference.conv3x3(*wide[:3], relu, scale, wide[3], padding=padding)
        out, buffer = window(torch.full_like(want, float("nan"), dtype=torch.float32))
        out = {"new": None, "window": out, "skip": skip}[into]
        before = around.clone()
        y = winograd_cpu.conv3x3(x, weight, bias, relu, scale, skip, padding=padding, out=out)
        assert out is None or y.data_ptr() == out.data_ptr()
        torch.testing.assert_close(y.double(), want, rtol=0, atol=3e-5)
        assert torch.equal(around.nan_to_num(7), before.nan_to_num(7))
        assert buffer[:, :, :3].isnan().all() and buffer[:, :, 3 + rows :].isnan().all()

    @pytest.mark.parametrize("channels", [64, 256])
    @pytest.mark.parametrize("spread", [0.01, 1.0, 100.0])
    def test_accuracy(self, channels, spread):
        """No worse than twice direct convolution in fp32, the largest error and the mean one."""
        x, (weight, bias) = features(1, channels, 40, 48) * spread, layer(channels, channels)
        true = F.conv2d(x.double(), weight.double(), bias.double(), padding=1)
        ours = (winograd_cpu.conv3x3(x, weight, bias) - true).abs()
        direct = (F.conv2d(x, weight.contiguous(memory_format=torch.channels_last), bias, padding=1) - true).abs()
        assert ours.max() <= 2 * direct.max() and ours.mean() <= 2 * direct.mean()

    def test_accuracy_on_features_as_they_are(self):
        """After a ReLU values are not about zero, and neighbors are alike."""
        smooth = F.avg_pool2d(torch.rand(1, 64, 44, 52), 5, 1).contiguous(memory_format=torch.channels_last)
        weight, bias = layer(64, 64)
        true = F.conv2d(smooth.double(), weight.double(), bias.double(), padding=1)
        ours = (winograd_cpu.conv3x3(smooth, weight, bias) - true).abs()
        direct = (F.conv2d(smooth, weight.contiguous(memory_format=torch.channels_last), bias, padding=1) - true).abs()
        assert ours.max() <= 2 * direct.max() and ours.mean() <= 2 * direct.mean()

    def test_nan_and_infinity_are_seen(self):
        x, (weight, bias) = features(1, 16, 9, 9), layer(16, 16)
        x[0, 3, 4, 4] = float("inf")
        assert not winograd_cpu.conv3x3(x, weight, bias)[0, :, 3:6, 3:6].isfinite().any()
        x[0, 3, 4, 4] = float("nan")
        assert winograd_cpu.conv3x3(x, weight, bias, relu=True)[0, :, 3:6, 3:6].isnan().all()

    def test_shuffle(self):
        x, (weight, bias) = features(1, 32, 7, 9), layer(32, 64)
        y = winograd_cpu.conv3x3(x, weight, bias, shuffle=2)
        out = torch.empty_like(y)
        assert winograd_cpu.conv3x3(x, weight, bias, shuffle=2, out=out) is out and torch.equal(out, y)
        torch.testing.assert_close(y, reference.conv3x3(x, weight, bias, shuffle=2), rtol=0, atol=3e-5)

    @pytest.mark.parametrize("skipped", [False, True])
    @pytest.mark.parametrize(("height", "width", "batch"), [(1, 1, 1), (4, 4, 1), (17, 30, 2), (8, 36, 1)])
    def test_non_temporal_stores(self, non_temporal, skipped, height, width, batch):
        """Large maps that begin at a cache line are stored so, with the same bits; also over the skip."""
        x, (weight, bias) = features(batch, 48, height, width), layer(48, 80)
        skip = features(batch, 80, height, width) if skipped else None
        want = winograd_cpu.conv3x3(x, weight, bias, True, 0.1, skip)
        assert not any(non_temporal)
        non_temporal.clear()
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(convolution, "l2_bytes", lambda: 0)
            assert torch.equal(winograd_cpu.conv3x3(x, weight, bias, True, 0.1, skip), want)
            inside, buffer = window(torch.zeros_like(want))
            winograd_cpu.conv3x3(x, weight, bias, True, 0.1, skip, out=inside)
            assert all(non_temporal) == runtime.kernels().non_temporal and len(non_temporal) == 2
            assert torch.equal(inside, want) and buffer[:, :, :3].isnan().all() and buffer[:, :, -2:].isnan().all()
            non_temporal.clear()
            odd = torch.empty(want.numel() + 4)[4:].view(batch, height, width, 80).permute(0, 3, 1, 2)
            assert torch.equal(winograd_cpu.conv3x3(x, weight, bias, True, 0.1, skip, out=odd), want)
            assert not any(non_temporal)
            if skip is not None:
                assert torch.equal(winograd_cpu.conv3x3(x, weight, bias, True, 0.1, skip, out=skip), want)

    def test_no_rows(self):
        assert winograd_cpu.conv3x3(features(1, 16, 2, 5), *layer(16, 32), padding=0).shape == (1, 32, 0, 5)

    def test_resblock_over_its_input(self):
        x, first, second = features(1, 48, 10, 11), layer(48, 48), layer(48, 48)
        want = reference.resblock(x.double(), *(t.double() for t in (*first, *second)), 0.1)
        assert winograd_cpu.resblock(x, *first, *second, 0.1, out=x) is x
        torch.testing.assert_close(x.double(), want, rtol=0, atol=3e-5)

    def test_resblock_reuses_its_input_where_no_gradient_is_wanted(self):
        x, first, second = features(1, 48, 10, 11), layer(48, 48), layer(48, 48)
        given = x.clone()
        want = winograd_cpu.resblock(x, *first, *second, 0.1, reuse=True)
        assert want is not x and torch.equal(x, given)
        with torch.no_grad():
            assert winograd_cpu.resblock(x, *first, *second, 0.1, reuse=True) is x
        assert torch.equal(x, want)

    def test_weights_written_to_are_transformed_again(self):
        x, (weight, bias) = features(1, 16, 8, 8), layer(16, 16)
        for _ in range(2):
            y = winograd_cpu.conv3x3(x, weight, bias)
            torch.testing.assert_close(y, F.conv2d(x, weight, bias, padding=1), rtol=0, atol=3e-5)
            weight.mul_(-2)
            bias.add_(1)

    def test_a_fused_optimizer_is_noticed(self):
        """It writes to weights without counting that in their version."""
        x, (weight, bias) = features(1, 16, 8, 8), layer(16, 16)
        adam = torch.optim.Adam([weight.requires_grad_()], 0.1, fused=True)
        for _ in range(2):
            with torch.no_grad():
                y = winograd_cpu.conv3x3(x, weight, bias)
                torch.testing.assert_close(y, F.conv2d(x, weight, bias, padding=1), rtol=0, atol=3e-5)
            weight.grad = torch.randn_like(weight)
            adam.step()

    def test_transforms_go_with_their_weights(self):
        weight, _ = layer(16, 16)
        memory = weakref.ref(convolution.transformed_filter(weight).u)
        assert convolution.transformed_filter(weight).u is memory()
        del weight
        gc.collect()
        assert memory() is None

    @pytest.mark.parametrize(
        "change",
        [
            lambda x, w, b: (x.double(), w.double(), b.double()),
            lambda x, w, b: (x.contiguous(), w, b),
            lambda x, w, b: (x[:, :8], w[:, :8], b),
            lambda x, w, b: (x, w[:9], b[:9]),
            lambda x, w, b: (x, w.requires_grad_(), b),
        ],
        ids=["fp64", "NCHW", "channels in", "channels out", "gradients"],
    )
    def test_what_goes_to_pytorch(self, change):
        x, w, b = change(features(1, 16, 6, 6), *layer(16, 16))
        y = winograd_cpu.conv3x3(x, w, b, relu=True)
        assert torch.equal(y, reference.conv3x3(x, w, b, relu=True)) and y.requires_grad == w.requires_grad


@needs_kernels
class TestThreads:
    @pytest.fixture(autouse=True)
    def as_before(self):
        threads = torch.get_num_threads()
        yield
        torch.set_num_threads(threads)

    def test_their_number_changes_nothing(self):
        x, (weight, bias) = features(2, 64, 30, 33), layer(64, 64)
        results = []
        for threads in (1, 2, 3, 64):
            torch.set_num_threads(threads)
            results.append(winograd_cpu.conv3x3(x, weight, bias, relu=True))
        assert all(torch.equal(y, results[0]) for y in results)

    def test_several_callers_at_once(self):
        torch.set_num_threads(2)
        work = [(features(1, 16 + 16 * i, 20 + i, 25), *layer(16 + 16 * i, 32)) for i in range(6)]
        want = [winograd_cpu.conv3x3(*operands) for operands in work]
        wrong = []

        def call(i):
            for _ in range(20):
                if not torch.equal(winograd_cpu.conv3x3(*work[i]), want[i]):
                    wrong.append(i)

        callers = [threading.Thread(target=call, args=(i,)) for i in range(len(work))]
        for caller in callers:
            caller.start()
        for caller in callers:
            caller.join()
        assert not wrong


@needs_kernels
class TestNetworks:
    @pytest.mark.parametrize("scale", [2, 3, 4])
    def test_no_worse_than_twice_pytorch(self, scale):
        m = network(scale, blocks=3, features=64)
        x = torch.rand(2, 3, 26, 37)
        with torch.no_grad():
            truth = m(x.double())
            folded = FoldedEDSR(m).float().to(memory_format=torch.channels_last)
            ours, torch_ = (folded(x, ops) - truth for ops in (winograd_cpu, reference))
        assert ours.abs().max() <= 2 * torch_.abs().max() and ours.abs().mean() <= 2 * torch_.abs().mean()

    @settings(max_examples=40, deadline=None)
    @given(
        scale=st.sampled_from([2, 3, 4]),
        height=st.integers(1, 13),
        width=st.integers(1, 13),
        padding=st.sampled_from([0, 2]),
        top=st.booleans(),
        bottom=st.booleans(),
    )
    def test_tail_with_its_ring(self, scale, height, width, padding, top, bottom):
        m = tail_of(scale)
        x, _ = window(features(1, 32, height + 4 - 2 * padding, width))
        weight, bias = m.tail_weight, m.tail_bias
        rest = m.config.mean, scale, reference.RAW_OUTPUT, padding, (top, bottom)
        want = reference.collapsed_tail(x.double(), weight, bias, *rest)
        got = winograd_cpu.collapsed_tail(x, weight.float(), bias.float(), *rest)
        torch.testing.assert_close(got.double(), want, rtol=0, atol=2e-5)

    @pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.float32])
    @pytest.mark.parametrize(("height", "width"), [(1, 1), (3, 50), (61, 33)])
    def test_images(self, dtype, height, width):
        m, image = network(2, blocks=2, features=32), make_image(height, width)
        image = (image.astype(np.float64) * {np.uint8: 1, np.uint16: 257, np.float32: 1 / 255}[dtype]).astype(dtype)
        ours, torch_ = (Upscaler(m, "cpu", backend=b, tile=32)(image) for b in ("winograd", "torch"))
        # One level of uint8 or a few of uint16 where a value lies between two; fp32's rounding otherwise.
        limit = {np.uint8: 1, np.uint16: 3, np.float32: 2e-6}[dtype]
        assert ours.dtype == dtype and np.abs(ours.astype(float) - torch_).max() <= limit

    @pytest.mark.parametrize("tile", [32, 64])
    def test_bands_and_columns(self, tile):
        m, image = network(3, blocks=2, features=16), (make_image(90, 70) / 255).astype(np.float32)
        small, whole = (Upscaler(m, "cpu", backend="winograd", tile=t) for t in (tile, 256))
        assert small.band_rows(70, 90) < 90 == whole.band_rows(70, 90)
        np.testing.assert_allclose(small(image), whole(image), rtol=0, atol=2e-6)

    def test_alpha_and_self_ensemble(self):
        m, image = network(2, blocks=1, features=16), make_image(20, 23, 4)
        for ensemble in (False, True):
            ours, torch_ = (Upscaler(m, "cpu", backend=b)(image, ensemble).astype(int) for b in ("winograd", "torch"))
            assert np.abs(ours - torch_).max() <= 1

    def test_in_inference_mode(self):
        m, x = network(2, blocks=1, features=16), (make_image(9, 8) / 255).astype(np.float32)
        want = Upscaler(m, "cpu", backend="torch")(x)
        with torch.inference_mode():
            np.testing.assert_allclose(Upscaler(m, "cpu", backend="winograd")(x), want, rtol=0, atol=2e-6)

    def test_the_backend_is_told(self):
        assert Upscaler(network(features=16), "cpu").backend == "winograd"
        assert Upscaler(network(features=8), "cpu").backend == "torch"
        assert Upscaler(network(features=16), "cpu", backend="torch").backend == "torch"
        with pytest.raises(BackendError, match=r"backend='winograd': .* 16 features.*backend='torch'"):
            Upscaler(network(features=8), "cpu", backend="winograd")


def test_where_the_kernels_cannot_be_had(monkeypatch):
    m, image = network(2, blocks=1, features=16), make_image(9, 8)
    monkeypatch.setitem(sys.modules, "edsr.kernels.winograd.jit", None)  # as if its imports failed
    assert Upscaler(m, "cpu").backend == "torch"
    with pytest.raises(
        BackendError, match="backend='winograd': the package llvmlite is not installed; use backend='torch'"
    ):
        Upscaler(m, "cpu", backend="winograd")
    # The ops by themselves: PyTorch computes.
    runtime.is_available.cache_clear()
    try:
        x, (weight, bias) = features(1, 16, 6, 6), layer(16, 16)
        assert torch.equal(winograd_cpu.conv3x3(x, weight, bias), reference.conv3x3(x, weight, bias))
    finally:
        runtime.is_available.cache_clear()
    want = Upscaler(m, "cpu", backend="torch")(image)
    assert np.array_equal(Upscaler(m, "cpu")(image), want)


@needs_kernels
def test_where_they_cannot_be_compiled(monkeypatch, caplog):
    m = network(2, blocks=1, features=16)
    monkeypatch.setattr(winograd_cpu, "compile_ahead", lambda training=False: "no memory for code")
    up = Upscaler(m, "cpu")
    assert up.backend == "torch" and caplog.messages == ["no memory for code: PyTorch computes"]
    assert np.array_equal(up(make_image(9, 8)), Upscaler(m, "cpu", backend="torch")(make_image(9, 8)))
    with pytest.raises(BackendError, match="backend='winograd': no memory for code; use backend='torch'"):
        Upscaler(m, "cpu", backend="winograd")


@pytest.mark.parametrize(
    ("device", "dtype", "channels", "reason"),
    [
        ("cuda:0", torch.float32, 64, "the kernels need a CPU, not cuda:0"),
        (torch.device("cpu"), torch.bfloat16, 64, "the kernels compute in fp32, not bf16"),
        ("cpu", torch.float32, 24, "the kernels need a multiple of 16 features, not 24"),
    ],
)
def test_unavailable_reason(device, dtype, channels, reason):
    assert winograd_cpu.unavailable_reason(device, dtype, channels) == reason
