"""Batches over devices: who gets which file, what ends them, what is left."""

import contextlib
import itertools
import threading
import time

import numpy as np
import pytest
import torch

from edsr.batch import runner
from edsr.batch.clashes import Job
from edsr.batch.jobs import OutputSize
from edsr.batch.pool import UpscalerPool
from edsr.batch.runner import FILES_AT_ONCE, UpscaleOptions, upscale_files
from edsr.devices import list_devices
from edsr.errors import BackendError, WeightsError
from edsr.images import formats
from edsr.images.reader import read_image
from edsr.inference.upscaler import Upscaler
from edsr.progress import Silent
from edsr.weights import load_model, save_model
from tests.conftest import make_image, network
from tests.support.image_files import names
from tests.support.image_files import write as save

SILENT = Silent()


@pytest.fixture
def home(tmp_path, monkeypatch):
    """Twelve images and a network; the current folder."""
    monkeypatch.chdir(tmp_path)
    save_model(network(), "m.safetensors")
    (tmp_path / "in").mkdir()
    (tmp_path / "out").mkdir()
    for i in range(12):
        save(tmp_path / "in" / f"{i:02}.png", make_image(20 + i, 30, seed=i))
    return tmp_path


def batch(home) -> list[Job]:
    return [Job(path, home / "out" / path.name) for path in sorted((home / "in").iterdir())]


def check(home):
    up = Upscaler(load_model("m.safetensors"), "cpu")
    for job in batch(home):
        np.testing.assert_array_equal(read_image(job.output), up(read_image(job.source)))


@pytest.mark.parametrize("devices", [["cpu"], ["cpu", "cpu"], ["cpu"] * 3])
@pytest.mark.parametrize("at_once", [1, 3])
def test_files_are_shared_each_done_once(home, monkeypatch, devices, at_once):
    monkeypatch.setitem(FILES_AT_ONCE, "cpu", at_once)
    outcomes = list(upscale_files(batch(home), UpscalerPool("m.safetensors", None, devices), UpscaleOptions(), SILENT))
    assert sorted(o.job for o in outcomes) == batch(home) and not any(o.error for o in outcomes)
    assert {o.device for o in outcomes} == {"cpu"}
    check(home)


def test_fewer_files_than_devices_share_columns(home):
    wide = home / "wide.png"
    save(wide, make_image(40, 200))
    networks = UpscalerPool("m.safetensors", None, ["cpu", "cpu"])
    (outcome,) = upscale_files([Job(wide, home / "out" / "wide.png")], networks, UpscaleOptions(), SILENT)
    assert outcome.error is None and outcome.device == "cpu,cpu"
    want = Upscaler(load_model("m.safetensors"), "cpu")(read_image(wide)).astype(int)
    got = read_image(outcome.job.output).astype(int)
    assert np.abs(got - want).max() <= 1 and (got != want).mean() < 1e-3


@pytest.mark.parametrize("devices", [["cpu"], ["cpu", "cpu"]])
def test_failures_do_not_end_the_others(home, devices):
    (home / "in" / "03.png").write_bytes(b"no image")
    (home / "in" / "07.png").unlink()
    jobs = [*batch(home), Job(home / "in" / "none.png", home / "out" / "none.png")]
    outcomes = list(upscale_files(jobs, UpscalerPool("m.safetensors", None, devices), UpscaleOptions(), SILENT))
    failed = {o.job.source.name: str(o.error) for o in outcomes if o.error}
    assert set(failed) == {"03.png", "none.png"} and "no such file" in failed["none.png"]
    assert len(names(home / "out")) == 10


class Waiting(Silent):
    """Waits, with an output begun, until the batch is closed."""

    def __init__(self, closed):
        self._closed = closed

    @contextlib.contextmanager
    def file(self, *arguments):
        while not self._closed():
            time.sleep(0.01)
        yield self


@pytest.mark.parametrize("devices", [["cpu"], ["cpu", "cpu"]])
def test_closing_early_leaves_whole_files_only(home, devices, monkeypatch):
    before, numbers, honest = set(threading.enumerate()), itertools.count(), runner.run_job

    def all_but_the_first_wait(job, get_upscaler, pool, options, progress, *rest):
        return honest(job, get_upscaler, pool, options, Waiting(rest[0]) if next(numbers) else progress, *rest)

    with monkeypatch.context() as patch:
        patch.setattr(runner, "run_job", all_but_the_first_wait)
        outcomes = upscale_files(batch(home), UpscalerPool("m.safetensors", None, devices), UpscaleOptions(), SILENT)
        first = next(outcomes)
        outcomes.close()
    assert set(threading.enumerate()) <= before
    assert names(home / "out") == [first.job.output.name]
    rest = list(
        upscale_files(
            batch(home), UpscalerPool("m.safetensors", None, devices), UpscaleOptions(skip_existing=True), SILENT
        )
    )
    assert any(o.skipped for o in rest) and len(rest) == 12
    check(home)


def test_any_size_takes_the_next_larger_network(home):
    networks = UpscalerPool("edsr-baseline", None, ["cpu"], expected_scale=2.5)
    assert networks.scale == 3 and networks.scales == (2, 3, 4)
    for wish, size, scale in (
        (OutputSize(outscale=1.5), (45, 30), 2),
        (OutputSize(outscale=2.5), (75, 50), 3),
        (OutputSize(width=120), (120, 80), 4),
        (OutputSize(width=120, height=1), (120, 1), 4),
        (OutputSize(height=10), (15, 10), 2),
    ):
        job = Job(home / "in" / "00.png", home / "out" / f"{size}.png")
        (outcome,) = upscale_files([job], networks, UpscaleOptions(wish), SILENT)
        assert outcome.error is None and outcome.output_size == size
        assert read_image(job.output).shape == (size[1], size[0], 3)
        assert ("edsr-baseline", scale) in networks.loaded
    (outcome,) = upscale_files(
        [job._replace(output=home / "out" / "no.png")], networks, UpscaleOptions(OutputSize(5.0)), SILENT
    )
    assert "150 x 100 is more than 4 times its 30 x 20" in str(outcome.error)


def test_a_size_asked_of_one_network(home):
    networks = UpscalerPool("edsr-baseline", 4, ["cpu"])
    job = Job(home / "in" / "00.png", home / "out" / "a.png")
    (outcome,) = upscale_files([job], networks, UpscaleOptions(OutputSize(outscale=2.0)), SILENT)
    assert outcome.output_size == (60, 40) and networks.loaded == [("edsr-baseline", 4)]


def test_networks_that_cannot_be_had(home):
    with pytest.raises(WeightsError, match="not a preset"):
        UpscalerPool("none", None, ["cpu"])
    with pytest.raises(BackendError, match="unknown device"):
        UpscalerPool("m.safetensors", None, ["cpu", "abacus"])


def test_devices(monkeypatch):
    assert list_devices("cuda:0, cuda:1") == ["cuda:0", "cuda:1"]
    with pytest.raises(BackendError, match="missing"):
        list_devices("cpu,")
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 3)
    assert list_devices("all") == ["cuda:0", "cuda:1", "cuda:2"]
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    assert list_devices("all") == ["auto"]


def test_an_image_too_wide_for_what_bands_remember_is_refused_before(home, monkeypatch):
    """The others are done: memory grows with an image's width, not with its height."""
    pool = UpscalerPool("m.safetensors", None, ["cpu"])
    need = pool.upscaler(0, pool.scale).state_bytes(60_000, 2, 3)
    monkeypatch.setattr(formats, "available_memory", lambda: need - 1)
    save(home / "wide.png", make_image(2, 60_000))
    save(home / "narrow.png", make_image(2, 600))
    jobs = [Job(home / f"{name}.png", home / "out" / f"{name}.png") for name in ("wide", "narrow")]
    wide, narrow = upscale_files(jobs, pool, UpscaleOptions(), SILENT)
    assert "wide.png: needs" in str(wide.error) and "narrower" in str(wide.error) and not narrow.error
    assert names(home / "out") == ["narrow.png"]
