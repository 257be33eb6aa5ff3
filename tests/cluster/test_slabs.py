"""Columns of an image on workers, which here are objects of this process."""

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from edsr import Upscaler
from edsr.cluster.slabs import RemoteUpscaler, Slab
from edsr.cluster.worker import Worker
from edsr.errors import ClusterError, WeightsError
from edsr.inference import MultiDeviceUpscaler
from tests.conftest import make_image, network

MODEL = network(features=8).float()
WIDTH = 200


class RayError(Exception):
    """As Ray's."""


class RayTaskError(RayError):
    """As Ray's."""

    def __init__(self, cause):
        self.cause = cause


class Actor:
    """A worker, called as Ray's actors are; it dies at a call of that number."""

    def __init__(self, dies_at=None):
        self.worker: Any = Worker.__new__(Worker)
        upscaler = Upscaler(MODEL, "cpu", tile=44)
        self.worker._pool, self.worker._slab = SimpleNamespace(upscaler=lambda *_: upscaler), None
        self.calls, self.dies_at = 0, dies_at

    def __getattr__(self, name):
        def remote(*arguments):
            self.calls += 1
            if self.calls == self.dies_at:
                return RayError("gone\nlong ago")
            try:
                return getattr(self.worker, name)(*arguments)
            except WeightsError as error:
                return RayTaskError(error)

        return SimpleNamespace(remote=remote)


def get(result):
    if isinstance(result, RayError):
        raise result
    for band in result if isinstance(result, list) else ():
        band.flags.writeable = False  # as what lies in Ray's memory
    return result


RAY = SimpleNamespace(get=get, exceptions=SimpleNamespace(RayError=RayError, RayTaskError=RayTaskError))


def remote(count, **more):
    return [RemoteUpscaler(RAY, Actor(**more), 2, "m") for _ in range(count)]


def together(members):
    return MultiDeviceUpscaler(members)


@pytest.mark.parametrize("channels", [1, 3, 4])
@pytest.mark.parametrize("count", [1, 2, 3])
@pytest.mark.parametrize("self_ensemble", [False, True])
def test_shared_columns_are_the_whole_result(channels, count, self_ensemble):
    image = make_image(90, WIDTH, channels)
    want = Upscaler(MODEL, "cpu")(image, self_ensemble)
    got = together(remote(count))(image, self_ensemble)
    apart = np.abs(got.astype(int) - want)
    assert apart.max() <= 1 and (apart > 0).mean() < 0.001


def test_an_image_is_begun_again_where_another_was_left():
    members, image = remote(2), make_image(90, WIDTH)
    shared = together(members)
    bands = shared.bands(iter([image[:30], image[30:60], image[60:]]), WIDTH)
    next(bands)
    bands.close()
    np.testing.assert_array_equal(shared(image), together(remote(2))(image))


@pytest.mark.parametrize("dies_at", [1, 2, 3, 4, 5])
def test_a_lost_worker_is_told_and_known(dies_at):
    members = [*remote(1), *remote(1, dies_at=dies_at)]
    with pytest.raises(ClusterError, match=r"a worker is lost: gone$"):
        together(members)(make_image(90, WIDTH))
    assert [member.lost for member in members] == [False, True]


def test_errors_of_workers_are_raised_as_they_are():
    member = remote(1)[0]

    def bands(rows):
        yield next(rows)
        raise WeightsError("m: faulty")

    member._actor.worker.begin = lambda *_: setattr(member._actor.worker, "_slab", Slab(bands))
    with pytest.raises(WeightsError, match="m: faulty"):
        list(member.bands([np.zeros((8, 9, 3), np.uint8)] * 3, 9))
    assert not member.lost


def test_no_more_than_two_bands_wait():
    taken = []
    slab = Slab(lambda rows: (taken.append(len(part)) or part for part in rows))
    part = np.zeros((4, 9, 3), np.uint8)
    assert slab.advance(part) == []
    for i in range(5):
        assert [len(band) for band in slab.advance(part)] == [4] and len(taken) <= i + 2
    assert [len(band) for band in slab.advance(None)] == [4] and sum(taken) == 24
