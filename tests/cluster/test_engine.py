"""A cluster of two processes on this machine: results, losses, interruption, and what is refused before it begins."""

import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
import psutil
import pytest
from PIL import Image

from edsr.batch import UpscaleOptions
from edsr.cluster import ClusterBatch, Crew, Setup, connected, engine, fingerprint
from edsr.errors import ClusterError
from edsr.weights import save_model
from tests.conftest import ROOT, make_image, network
from tests.support.processes import communicate, run, wait_until

pytest.importorskip("ray", reason="needs Ray: pip install 'edsr-triton[cluster]'")
pytestmark = [pytest.mark.slow, pytest.mark.skipif(sys.platform == "win32", reason="needs SIGKILL")]

FILES = 300
DEADLY = """
import os, sys
def hook(event, arguments):
    if event != "open":
        return
    name = str(arguments[0])
    if name.endswith("deadly.png"):
        os._exit(9)
    if name.endswith("late") and any(file in ("006_x2.png", "012_x2.png") for file in os.listdir(name)):
        try:
            os.mkdir(name + "-died")
        except FileExistsError:
            return
        os._exit(9)
sys.addaudithook(hook)
"""
"""Python runs it at the start of every worker, as sitecustomize: one file ends whoever opens it; a folder, `late`, does
so once, when it is opened to sync the name of one of two results in it."""


@pytest.fixture(scope="module")
def cluster():
    """The address of a cluster of two cores, and the process that keeps it."""
    with tempfile.TemporaryDirectory(prefix="edsr-", ignore_cleanup_errors=True) as folder:  # short, for sockets
        (Path(folder) / "sitecustomize.py").write_text(DEADLY)
        environment = os.environ | {"PYTHONPATH": folder, "RAY_USAGE_STATS_ENABLED": "0"}
        command = [sys.executable, "-m", "ray.scripts.scripts", "start", "--head", "--block", "--port", "0"]
        command += ["--num-cpus", "2", "--include-dashboard", "false", "--object-store-memory", "80000000"]
        command += ["--temp-dir", folder, "--disable-usage-stats"]
        log = Path(folder) / "log.txt"
        with open(log, "wb") as output:
            process = subprocess.Popen(command, env=environment, stdout=output, stderr=output, start_new_session=True)
        current = Path(folder) / "ray_current_cluster"
        try:
            wait_until(current.exists, process)
            yield current.read_text().strip(), process
        finally:
            members = [] if process.poll() is not None else psutil.Process(process.pid).children(recursive=True)
            process.terminate()
            communicate(process)
            for member in psutil.wait_procs(members, 10)[1]:
                member.kill()


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    """Three hundred images in two folders, a broken one among them, and what one machine makes of them."""
    folder = tmp_path_factory.mktemp("images")
    save_model(network(blocks=1, features=16), folder / "m.safetensors")
    (folder / "in" / "deep").mkdir(parents=True)
    for i in range(FILES - 1):
        place = folder / "in" / ("deep" if i % 2 else "")
        Image.fromarray(make_image(20 + i % 17, 30, seed=i)).save(place / f"{i:03}.{('png', 'jpg', 'webp')[i % 3]}")
    Image.fromarray(make_image(9, 9)).save(folder / "in" / "000.webp")  # 000.png is there, too
    (folder / "in" / "broken.png").write_bytes(b"no image")
    done = run(command("one"), cwd=folder, capture_output=True, text=True)
    assert done.returncode == 1 and len(files(folder / "one")) == FILES, done.stderr
    return folder


def command(output, *more):
    start = [sys.executable, ROOT / "cli.py", "upscale", "in", "-o", output, "--recursive", "--model", "m.safetensors"]
    return [*start, "--device", "cpu", "--backend", "winograd", "--threads", "1", *more]


def start(folder, output, *more):
    options = {"cwd": folder, "text": True, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    return subprocess.Popen(command(output, "--engine", "ray", *more), **options)


def files(folder):
    """Relative path -> bytes of all files below, hidden ones too."""
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def workers(process):
    """Processes of the cluster that upscale."""
    found = []
    for one in psutil.Process(process.pid).children(recursive=True):
        try:
            found += [one] if one.cmdline()[:1] and one.cmdline()[0].startswith("ray::Worker") else []
        except psutil.Error:
            continue
    return found


def until_finished(folder, count, driver):
    """Waits until there are so many results."""

    def there():
        assert driver.poll() is None, driver.communicate()
        return sum(1 for path in folder.rglob("*.png") if not path.name.startswith(".")) >= count

    wait_until(there, driver, every=0.01)


def test_one_worker_killed_half_way_a_broken_file_and_a_deadly_one(cluster, images):
    address, keeper = cluster
    Image.fromarray(make_image(20, 30)).save(images / "in" / "deadly.png")
    try:
        driver = start(images, "out", "--address", address, "--json")
        until_finished(images / "out", FILES // 2, driver)
        victim = workers(keeper)[0]
        victim.kill()
        output, messages = communicate(driver)
    finally:
        (images / "in" / "deadly.png").unlink()
    assert driver.returncode == 1, messages
    records = [json.loads(line) for line in output.splitlines()]
    failed = {record["input"]: record["error"] for record in records if record["error"]}
    assert set(failed) == {"in/broken.png", "in/deadly.png"} and len(records) == FILES + 2
    assert failed["in/deadly.png"].startswith("in/deadly.png: 3 workers died over it; ")
    assert f"{FILES} of {FILES + 2} images done, 2 failed:" in messages.splitlines()
    assert messages.count(" is lost; its files go to others") == 4
    assert {record["backend"] for record in records if not record["error"]} == {"winograd"}
    assert files(images / "out") == files(images / "one")  # nothing half-written, either


@pytest.mark.parametrize("there", [False, True])
def test_a_worker_lost_when_its_result_had_its_name(cluster, images, there):
    """The file is done again elsewhere, and its result recognized; something else under its name is kept."""
    for name in "late", "late-died":
        shutil.rmtree(images / name, ignore_errors=True)
    sources = [f"in/{i:03}.png" for i in (0, 6, 12)]
    (images / "late").mkdir()
    if there:
        (images / "late" / "000_x2.png").write_bytes(b"kept")
    start = [sys.executable, ROOT / "cli.py", "upscale", *sources, "-o", "late/", "--model", "m.safetensors", "--json"]
    start += ["--device", "cpu", "--backend", "winograd", "--threads", "1", "--engine", "ray", "--address", cluster[0]]
    done = run(start, cwd=images, capture_output=True, text=True)
    assert (images / "late-died").exists() and done.stderr.count(" is lost; its files go to others") == 1, done.stderr
    errors = {record["input"]: record["error"] for record in map(json.loads, done.stdout.splitlines())}
    assert done.returncode == there and sorted(errors) == sources, done.stderr
    results = files(images / "late")
    if there:
        assert errors.pop(sources[0]).endswith("000_x2.png: exists; add --overwrite to replace it")
        assert results.pop("000_x2.png") == b"kept"
    assert set(errors.values()) == {None}
    one = files(images / "one")
    assert results == {
        name: one[name.replace("000_", "000_png_")] for name in ("000_x2.png", "006_x2.png", "012_x2.png")[there:]
    }


def test_a_signal_ends_all_and_the_batch_is_resumed(images):
    """With a cluster of its own."""
    driver = start(images, "part")
    until_finished(images / "part", 20, driver)
    others = psutil.Process(driver.pid).children(recursive=True)
    assert any(one.name().startswith("raylet") for one in others)
    driver.send_signal(signal.SIGTERM)
    output, messages = communicate(driver)
    assert driver.returncode == 130 and "Traceback" not in messages, messages
    line = messages.splitlines()[-1]
    assert line.startswith("interrupted: ") and line.endswith("; the same command with --skip-existing goes on")
    assert psutil.wait_procs(others, 10)[1] == []
    half = files(images / "part")
    assert 20 <= len(half) < FILES and half.items() <= files(images / "one").items()
    driver = start(images, "part", "--skip-existing")
    output, messages = communicate(driver)
    assert driver.returncode == 1 and f"{len(half)} skipped, 1 failed:" in messages
    assert len(output.splitlines()) == FILES - len(half) and files(images / "part") == files(images / "one")


def test_several_names_are_planned_as_on_one_machine(cluster, images):
    shutil.copy(images / "in" / "000.png", images / "000.png")
    arguments = ["000.png", "in/000.png", "in/002.webp", "gone.png", "-o", "named/", "--model", "m.safetensors"]
    told = []
    for more in [], ["--engine", "ray", "--address", cluster[0]]:
        shutil.rmtree(images / "named", ignore_errors=True)
        done = run(
            [sys.executable, ROOT / "cli.py", "upscale", *arguments, "--threads", "1", "--device", "cpu", *more],
            cwd=images,
            capture_output=True,
            text=True,
        )
        lines = [line for line in done.stderr.splitlines() if "worker" not in line]
        told.append((done.returncode, [line.split(",")[0] for line in done.stdout.splitlines()], lines))
        assert list(files(images / "named")) == ["002_x2.png"]
    assert told[0] == told[1] and told[0][0] == 1


def test_a_prefix_at_a_url(s3, images):
    """From a bucket into a bucket, by processes on this machine, and what lacks a bucket."""
    for name in ("000.png", "002.webp", "deep/001.jpg"):
        s3.put_object(Bucket="photos", Key=f"in/{name}", Body=(images / "in" / name).read_bytes())
    start = [sys.executable, ROOT / "cli.py", "upscale", "--recursive", "--engine", "ray", "--threads", "1"]
    start += ["--model", "m.safetensors", "--device", "cpu", "--backend", "winograd"]
    done = run([*start, "s3://photos/in/", "-o", "s3://photos/out/"], cwd=images, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    stored = {one["Key"] for one in s3.list_objects_v2(Bucket="photos", Prefix="out/")["Contents"]}
    assert stored == {"out/000_png_x2.png", "out/002_webp_x2.png", "out/deep/001_jpg_x2.png"}
    got = s3.get_object(Bucket="photos", Key="out/deep/001_jpg_x2.png")["Body"].read()
    assert got == (images / "one" / "deep" / "001_x2.png").read_bytes()
    done = run([*start, "s3://photos/in/", "-o", "s3://none/out/"], cwd=images, capture_output=True, text=True)
    assert done.returncode == 1 and "there is no bucket none" in done.stderr.splitlines()[-1]


@pytest.mark.parametrize("killed", [False, True])
def test_columns_of_one_image_on_two_workers(cluster, images, killed):
    address, keeper = cluster
    image, name = make_image(1200, 1500), f"killed-{killed}"
    Image.fromarray(image).save(images / "large.png")
    start = [sys.executable, ROOT / "cli.py", "upscale", "large.png", "--model", "m.safetensors"]
    start += ["--device", "cpu", "--backend", "winograd", "--threads", "1"]
    done = run([*start, "-o", "whole/", "--overwrite"], cwd=images, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    options = {"cwd": images, "text": True, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    driver = subprocess.Popen([*start, "-o", name, "--json", "--engine", "ray", "--address", address], **options)
    if killed:
        wait_until(lambda: any(path.stat().st_size > 1000 for path in (images / name).glob("*")), driver, every=0.01)
        workers(keeper)[0].kill()
    output, messages = communicate(driver)
    assert driver.returncode == 0, messages
    assert killed or json.loads(output)["device"] == "cpu,cpu"
    assert messages.count(" is lost; the image is begun again") == killed
    assert list(files(images / name)) == ["large_x2.png"]
    got, want = (np.asarray(Image.open(images / folder / "large_x2.png")).astype(int) for folder in (name, "whole"))
    apart = np.abs(got - want)
    assert apart.max() <= 1 and (apart > 0).mean() < 0.001


def setup(folder, **more):
    probe = folder / "probe"
    probe.write_bytes(b"")
    arguments = {"model": str(folder / "m.safetensors"), "scale": None, "residual_scale": None}
    same = fingerprint(**arguments)
    values = {"network": arguments, "device": "cpu", "threads": 1, "options": UpscaleOptions(), "tag": "x2"}
    values |= {"folder": folder, "output": folder, "probe": probe, "sample": None, "fingerprint": same}
    return Setup(**values | more)


@pytest.mark.parametrize(
    ("change", "why"),
    [
        ({"fingerprint": "other"}, "other weights there than here"),
        ({"version": "0.0.1"}, "there, 0.0.1 here; install the same version on every machine"),
        ({"probe": Path("/none/probe")}, ": the output folder here is not the one there; mount the same folder"),
        ({"sample": (Path("/none/a.png"), 1)}, "/none: the inputs are not seen there; mount the same folder"),
        ({"package": True}, "lacks this package; pip install edsr-triton=="),
    ],
)
def test_a_worker_that_would_differ_is_refused_before_it_begins(cluster, images, monkeypatch, change, why):
    def never():
        raise AssertionError("work has begun")
        yield

    if version := change.pop("version", None):
        monkeypatch.setattr(engine, "__version__", version)
    if change.pop("package", False):
        monkeypatch.setattr(engine.Worker, "__module__", "edsr.none")
        monkeypatch.setitem(sys.modules, "edsr.none", sys.modules["edsr.cluster.worker"])
    with (
        connected(cluster[0]) as ray,
        pytest.raises(ClusterError) as caught,
        ClusterBatch(ray, setup(images, **change), Crew.of(ray, "cpu", 1)) as batch,
    ):
        next(batch.results(never(), False))
    assert why in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("device", "threads", "want"),
    [("auto", None, (1, "cpu", 2, 0, 1)), ("cpu", 1, (2, "cpu", 1, 0, 1)), ("auto", 2, (1, "cpu", 2, 0, 1))],
)
def test_workers_that_a_cluster_has_room_for(cluster, device, threads, want):
    with connected(cluster[0]) as ray:
        assert Crew.of(ray, device, threads) == want
        with pytest.raises(ClusterError, match="no machine of the cluster has 3 cores"):
            Crew.of(ray, device, 3)
        with pytest.raises(ClusterError, match="the cluster has no GPU"):
            Crew.of(ray, "cuda", threads)
