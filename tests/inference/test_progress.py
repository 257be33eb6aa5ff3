"""Progress and cancellation, from threads and from asyncio: nothing is computed afterwards, and no thread is left."""

import asyncio
import threading

import numpy as np
import pytest
import torch
from PIL import Image

from edsr import Upscaler
from edsr.inference import MultiDeviceUpscaler
from edsr.inference.image_run import _BandComputer
from tests.conftest import make_image, network

MODEL = network()
IMAGE = make_image(70, 90)
TENSOR = torch.from_numpy(np.stack([IMAGE, IMAGE[::-1]])).permute(0, 3, 1, 2) / 255


class Stopped(Exception):
    """What a caller might raise."""


def one():
    return Upscaler(MODEL, "cpu", tile=32)


def several():
    return MultiDeviceUpscaler([one(), one()])


CALLS = {  # what is called, and how many rows there are
    "array": (lambda up, **options: up(IMAGE, **options), 70),
    "with alpha": (lambda up, **options: up(np.dstack([IMAGE, IMAGE[:, :, 0] // 128 * 255]), **options), 70),
    "one row": (lambda up, **options: up(IMAGE[:1], **options), 1),
    "ensemble": (lambda up, **options: up(IMAGE, self_ensemble=True, **options), 70),
    "Pillow": (lambda up, **options: np.asarray(up(Image.fromarray(IMAGE), **options)), 70),
    "tensor": (lambda up, **options: up.tensor(TENSOR, **options), 140),
}
everywhere = pytest.mark.parametrize("make", [one, several])
each_call = pytest.mark.parametrize("name", CALLS)


@pytest.fixture
def computed(monkeypatch):
    """Each band that is computed, by any Upscaler."""
    bands, honest = [], _BandComputer.__call__
    monkeypatch.setattr(_BandComputer, "__call__", lambda self, *args: (bands.append(self), honest(self, *args))[1])
    return bands


@everywhere
@each_call
def test_progress(name, make):
    """From 0 to all, in steps upwards, in the thread that called; and the result is the same."""
    call, total = CALLS[name]
    up, told = make(), []
    result = call(up, progress=lambda *rows: told.append((*rows, threading.current_thread())))
    done = [row for row, _, _ in told]
    assert done[0] == 0 and done[-1] == total and done == sorted(set(done)) and (total == 1 or len(done) > 3)
    assert {(rows, thread) for _, rows, thread in told} == {(total, threading.current_thread())}
    assert (np.asarray(result) == np.asarray(call(up))).all()


@pytest.mark.parametrize("after", [0, 2])
@everywhere
@each_call
def test_cancellation(name, make, after, computed):
    """Whatever progress raises arrives; at once nothing more is computed, and the next call is right."""
    call, total = CALLS[name]
    up, told, threads = make(), [], set(threading.enumerate())
    want = np.asarray(call(up))
    computed.clear()

    def progress(done, total):
        told.append(done)
        if len(told) > after or done == total:
            raise Stopped("enough")

    with pytest.raises(Stopped, match="enough") as caught:
        call(up, progress=progress)
    count = len(computed)
    assert set(threading.enumerate()) <= threads and len(told) == min(after + 1, 2 if total == 1 else 3)
    assert after or not count
    assert (np.asarray(call(up)) == want).all() and (total == 1 or count < len(computed) - count)
    assert caught.value.__context__ is None  # kept until here, as loggers do


@pytest.mark.parametrize("kind", [KeyboardInterrupt, asyncio.CancelledError, StopIteration, GeneratorExit])
def test_whatever_is_raised(kind):
    """Of classes that mean something to generators, too."""

    def progress(done, total):
        if done:
            raise kind("enough")

    threads = set(threading.enumerate())
    for up in one(), several():
        with pytest.raises(kind, match="enough"):
            up(IMAGE, progress=progress)
        assert set(threading.enumerate()) <= threads


def test_what_is_no_callback():
    with pytest.raises(TypeError, match="not callable"):
        one()(IMAGE, progress=3)


def test_cancelled_from_another_thread(computed):
    up, stop, raised = one(), threading.Event(), []

    def progress(done, total):
        if done:
            stop.wait(600)
        if stop.is_set():
            raise Stopped

    def work():
        try:
            up(IMAGE, progress=progress)
        except Stopped as error:
            raised.append(error)

    thread = threading.Thread(target=work)
    thread.start()
    stop.set()
    thread.join()
    assert raised and np.array_equal(up(IMAGE), one()(IMAGE))


async def upscaled(up, image, started=None):
    """As docs/api.md has it: a task that is cancelled ends its thread's work, too."""
    cancelled = threading.Event()

    def progress(done, total):
        if started is not None:
            started.set()
            cancelled.wait(600)
        if cancelled.is_set():
            raise Stopped

    try:
        return await asyncio.to_thread(up, image, progress=progress)
    finally:
        cancelled.set()


def test_tasks_share_an_upscaler():
    up, images = one(), [make_image(40 + i, 50, seed=i) for i in range(6)]

    async def all_at_once():
        return await asyncio.gather(*(upscaled(up, image) for image in images))

    for image, result in zip(images, asyncio.run(all_at_once()), strict=True):
        assert np.array_equal(result, up(image))


def test_a_task_that_is_cancelled_ends_alone(computed):
    """The others' results are right, its own work ends, and asyncio has nothing to complain of."""
    up, large, complaints = one(), make_image(500, 90), []

    async def some_give_up():
        asyncio.get_running_loop().set_exception_handler(lambda loop, context: complaints.append(context))
        started = threading.Event()
        patient = asyncio.create_task(upscaled(up, IMAGE))
        hasty = asyncio.create_task(upscaled(up, large, started))
        await asyncio.to_thread(started.wait)
        hasty.cancel()
        with pytest.raises(asyncio.CancelledError):
            await hasty
        return await patient

    result = asyncio.run(some_give_up())  # waits for its threads
    assert not complaints and np.array_equal(result, one()(IMAGE))
    spent, _ = len(computed), computed.clear()
    up(large)
    assert spent < len(computed)
