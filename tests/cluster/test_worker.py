"""A worker without its cluster: what becomes of a file that another worker had before."""

import os

import pytest
from PIL import Image

from edsr import __version__
from edsr.batch import Job, UpscaleOptions
from edsr.cluster.setup import Setup, fingerprint
from edsr.cluster.worker import Worker
from edsr.errors import ExistsError
from edsr.storage import Url
from edsr.weights import save_model
from tests.conftest import make_image, network


@pytest.fixture
def start(tmp_path):
    """Starts a worker for tmp_path / "a.png"."""
    save_model(network(blocks=1, features=8), tmp_path / "m.safetensors")
    Image.fromarray(make_image(20, 30)).save(tmp_path / "a.png")

    def started(**options):
        arguments = {"model": str(tmp_path / "m.safetensors"), "scale": None, "residual_scale": None}
        values = {"network": arguments, "device": "cpu", "threads": 1, "options": UpscaleOptions(**options)}
        values |= {"tag": "x2", "folder": tmp_path, "output": tmp_path, "probe": None, "sample": None}
        worker = Worker(Setup(**values, fingerprint=fingerprint(**arguments)), __version__)
        worker._pool = worker._setup.pool()
        return worker

    return started


def test_the_result_of_a_lost_worker_is_recognized(start, tmp_path):
    worker, job = start(), Job(tmp_path / "a.png", tmp_path / "b.png")
    assert worker.upscale(job, False).error is None
    content = job.output.read_bytes()
    os.utime(job.output, (1, 1))
    assert isinstance(worker.upscale(job, False).error, ExistsError)  # nobody was lost: it is of an earlier batch
    found = worker.upscale(job, False, again=True)
    assert found.error is None and found.job == job and found.output_size == (60, 40) and not found.skipped
    assert job.output.read_bytes() == content and job.output.stat().st_mtime == 1


def test_something_else_under_that_name_is_kept(start, tmp_path):
    worker, job = start(), Job(tmp_path / "a.png", tmp_path / "b.png")
    for other in b"other", b"":
        job.output.write_bytes(other)
        error = worker.upscale(job, False, again=True).error
        assert isinstance(error, ExistsError) and str(error).startswith(str(job.output))
        assert job.output.read_bytes() == other
    job.output.unlink()
    job.output.mkdir()
    assert "is a folder" in str(worker.upscale(job, False, again=True).error)


def test_a_result_at_a_url_is_recognized(start, tmp_path, s3):
    worker, job = start(), Job(tmp_path / "a.png", Url.parse("s3://photos/b.png"))
    assert worker.upscale(job, False).error is None
    assert isinstance(worker.upscale(job, False).error, ExistsError)
    assert worker.upscale(job, False, again=True).error is None
    s3.put_object(Bucket="photos", Key="b.png", Body=b"other")
    assert isinstance(worker.upscale(job, False, again=True).error, ExistsError)
    assert s3.get_object(Bucket="photos", Key="b.png")["Body"].read() == b"other"
