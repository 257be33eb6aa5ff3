import gc
import threading
import weakref

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from edsr.devices import cpu_has
from edsr.errors import BackendError
from edsr.inference.upscaler import Upscaler
from tests.conftest import make_image, network


def plain(model, image):
    """What an Upscaler must give: the plain network on the whole image in fp64, clamped and rounded."""
    x = torch.from_numpy(image.astype(np.float64) / {np.uint8: 255, np.uint16: 65535}.get(image.dtype.type, 1)).permute(
        2, 0, 1
    )[None]
    with torch.no_grad():
        y = model(x.expand(1, 3, -1, -1))[0].permute(1, 2, 0).numpy()
    return np.clip(y.mean(2, keepdims=True) if image.shape[2] == 1 else y, 0, 1)


@settings(max_examples=30, deadline=None)
@given(
    st.integers(1, 70),
    st.integers(1, 140),
    st.sampled_from([2, 3, 4]),
    st.sampled_from([32, 40, 256]),
    st.integers(0, 2),
)
def test_every_size_and_tile(height, width, scale, tile, blocks):
    m = network(scale, blocks)
    image = make_image(height, width)
    result = Upscaler(m, device="cpu", tile=tile)(image)
    assert result.shape == (height * scale, width * scale, 3) and result.dtype == np.uint8
    assert np.abs(result - plain(m, image) * 255).max() <= 0.501  # rounding to a whole number, and fp32's


@pytest.mark.parametrize("channels", [1, 3])
def test_float_images(channels):
    m = network()
    image = make_image(9, 11, channels).astype(np.float32) / 255
    result = Upscaler(m, device="cpu")(image)
    assert result.dtype == np.float32
    np.testing.assert_allclose(result, plain(m, image), rtol=0, atol=1e-5)
    assert Upscaler(m, device="cpu")(image[:, :, 0]).shape == (18, 22)


def test_non_contiguous_images():
    up = Upscaler(network(), device="cpu")
    image = make_image(20, 30)
    np.testing.assert_array_equal(up(image[::-2, ::3]), up(image[::-2, ::3].copy()))


@pytest.mark.filterwarnings("error")
def test_images_that_may_only_be_read():
    """As Pillow lends them."""
    up, image = Upscaler(network(), device="cpu"), make_image(40, 60)
    lent = image.view()
    lent.flags.writeable = False
    torch.set_warn_always(True)  # not once per process
    try:
        np.testing.assert_array_equal(up(lent), up(image))
    finally:
        torch.set_warn_always(False)


def test_bands_arrive_in_order_and_late():
    up = Upscaler(network(blocks=4), device="cpu", tile=32)
    image = make_image(60, 50)
    step = up.band_rows(50, 60)
    pieces = list(up.bands((image[i : i + step] for i in range(0, 60, step)), 50))
    assert len(pieces) > 2
    np.testing.assert_array_equal(np.concatenate(pieces), up(image))


def test_bands_pull_no_more_than_they_need():
    """One band ahead, to know whether the image ends; never the whole of it."""
    up, pulled = Upscaler(network(blocks=0), device="cpu", tile=32), 0

    def rows():
        nonlocal pulled
        for _ in range(50):
            pulled += 1
            yield make_image(10, 40)

    next(up.bands(rows(), 40))
    assert pulled <= 3


@pytest.mark.parametrize("scale", [2, 3])
def test_self_ensemble_is_the_mean_of_eight(scale):
    m = network(scale)
    image = make_image(13, 9).astype(np.float32) / 255
    total = 0
    for turns in range(4):
        for flip in (False, True):
            reoriented = np.rot90(image, turns)
            reoriented = reoriented[:, ::-1] if flip else reoriented
            x = torch.from_numpy(reoriented.astype(np.float64)).permute(2, 0, 1)[None]
            with torch.no_grad():
                y = m(x)[0].permute(1, 2, 0).numpy()
            total = total + np.rot90(y[:, ::-1] if flip else y, -turns)
    result = Upscaler(m, device="cpu")(image, self_ensemble=True)
    np.testing.assert_allclose(result, np.clip(total / 8, 0, 1), rtol=0, atol=1e-5)
    eight = Upscaler(m, device="cpu")(make_image(13, 9), self_ensemble=True)
    assert eight.dtype == np.uint8 and eight.shape == (13 * scale, 9 * scale, 3)


def test_several_threads_at_once():
    up = Upscaler(network(blocks=3), device="cpu", tile=32)
    images = [make_image(30 + i, 40 + 3 * i, seed=i) for i in range(4)]
    want = [up(image) for image in images]
    got: list = [None] * 4

    def work(i):
        for _ in range(3):
            got[i] = up(images[i])

    threads = [threading.Thread(target=work, args=(i,)) for i in range(4)]
    for t in threads:
        t.start()
    for t in threads:
        t.join()
    for a, b in zip(got, want, strict=True):
        np.testing.assert_array_equal(a, b)


def test_bf16_is_close_where_the_cpu_has_it():
    if not cpu_has("bf16"):
        pytest.skip("this CPU has no fast bf16")
    m = network(features=64)
    image = make_image(20, 20)
    fast = Upscaler(m, device="cpu", precision="bf16")(image).astype(int)
    assert np.abs(fast - plain(m, image) * 255).max() < 8


@pytest.mark.parametrize(
    ("wrong", "says"),
    [
        ({"device": "cuda"}, "no CUDA device"),
        ({"device": "cuda:0"}, "no CUDA device"),
        ({"device": "mps"}, "no Apple GPU"),
        ({"device": "gpu"}, "unknown device"),
        ({"device": "meta"}, "unknown device"),
        ({"precision": "fp16", "device": "cpu"}, "no fast fp16"),
        ({"precision": "bf16", "device": "cpu"}, "no fast bf16"),
        ({"precision": "fp8"}, "unknown precision"),
        ({"backend": "triton"}, "multiple of 16 features"),
        ({"backend": "tvm"}, "unknown backend"),
    ],
)
def test_what_cannot_be_had(wrong, says, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)
    monkeypatch.setattr("edsr.inference.plan.cpu_has", lambda precision: False)
    with pytest.raises(BackendError, match=says) as caught:
        Upscaler(network(), **wrong)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "image",
    [
        np.zeros((4, 4, 5), np.uint8),
        np.zeros((4,), np.uint8),
        np.zeros((0, 4, 3), np.uint8),
        np.zeros((4, 4, 3, 1), np.uint8),
    ],
)
def test_shapes_that_are_no_images(image):
    with pytest.raises(ValueError, match="images are"):
        Upscaler(network(), device="cpu")(image)


def test_dtypes_that_are_no_images():
    with pytest.raises(TypeError, match="int32"):
        Upscaler(network(), device="cpu")(np.zeros((4, 4, 3), np.int32))
    with pytest.raises(ValueError, match="float32"):
        Upscaler(network(), device="cpu").frame(torch.zeros(4, 4, 3))


@pytest.mark.parametrize("channels", [1, 3])
def test_16_bit_images_keep_their_depth(channels):
    m = network()
    image = make_image(20, 35, channels).astype(np.uint16) * 201 + 7
    result = Upscaler(m, device="cpu", tile=32)(image)
    assert result.dtype == np.uint16 and len(np.unique(result)) > 256
    assert np.abs(result - plain(m, image) * 65535).max() <= 0.6  # rounding to a whole number, and fp32's


def test_frames_are_images_as_tensors():
    up, images = Upscaler(network(), device="cpu"), np.stack([make_image(9, 14, seed=i) for i in range(2)])
    batch = up.frame(torch.from_numpy(images)).numpy()
    np.testing.assert_array_equal(batch, np.stack([up(image) for image in images]))
    np.testing.assert_array_equal(up.frame(torch.from_numpy(images[0])).numpy(), batch[0])


@pytest.mark.parametrize("given", [None, make_image(9, 9), [make_image(9, 9)]])
def test_frames_that_are_no_tensors(given):
    with pytest.raises(TypeError, match="frames are tensors on the device"):
        Upscaler(network(), device="cpu").frame(given)


def test_the_model_is_left_alone():
    m = network()
    before = m.head.weight.clone()
    Upscaler(m, device="cpu")(make_image(5, 5))
    assert m.head.weight.dtype == torch.float64 and torch.equal(before, m.head.weight)


def test_an_upscaler_that_is_dropped_is_gone_at_once():
    """Its weights are, too, on whatever device: no cycle waits for the garbage collector."""
    up = Upscaler(network(), device="cpu", tile=32)
    list(up.bands([make_image(40, 50)], 50))
    weights = weakref.ref(up.model.head.weight)
    gc.disable()
    try:
        del up
        assert weights() is None
    finally:
        gc.enable()


def test_threads():
    model, before = network(2, blocks=1, features=8), torch.get_num_threads()
    try:
        for number in 2, 1:
            Upscaler(model, "cpu", backend="torch", threads=number)
            assert torch.get_num_threads() == number
        Upscaler(model, "cpu", backend="torch")
        assert torch.get_num_threads() == 1
        for wrong in 0, True, 1.5, "2":
            with pytest.raises(BackendError, match=r"threads=.*: give a whole number of 1 or more"):
                Upscaler(model, "cpu", threads=wrong)
    finally:
        torch.set_num_threads(before)


@pytest.mark.parametrize("model", [None, "edsr-baseline", np.zeros((9, 9, 3))])
def test_what_is_no_model(model):
    with pytest.raises(TypeError, match=r"the model is a network, as edsr\.load_model gives it"):
        Upscaler(model)
