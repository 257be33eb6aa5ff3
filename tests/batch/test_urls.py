"""Images and results at URLs: what the command line makes of them, byte for byte that of local files."""

import errno
import io
import itertools
import json
import os
import select
import signal
import socket
import subprocess
import sys
import tempfile
import threading
from pathlib import Path

import pytest
from PIL import Image

from edsr.batch import runner, transfers
from edsr.batch.transfers import local_files
from edsr.errors import ImageError
from edsr.images import READABLE
from tests.conftest import ROOT, make_image
from tests.support.image_files import write
from tests.support.processes import communicate, run, wait_until


@pytest.fixture
def photos(home, s3, monkeypatch):
    """Three images in the folder in/, the same in the bucket, and their results in right/."""
    (home / "tmp").mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(home / "tmp"))
    (home / "in").mkdir()
    for i, name in enumerate("abc"):
        write(home / "in" / f"{name}.png", make_image(20 + i, 30, seed=i))
        s3.upload_file(str(home / "in" / f"{name}.png"), "photos", f"in/{name}.png")
    yield home
    assert not list((home / "tmp").iterdir())


@pytest.fixture
def right(photos, upscale) -> dict[str, bytes]:
    """The results of local files."""
    assert upscale("in/", "-o", "right/")[0] == 0
    return {path.name: path.read_bytes() for path in sorted(Path("right").iterdir())}


def names(s3) -> list[str]:
    return [one["Key"] for one in s3.list_objects_v2(Bucket="photos").get("Contents", [])]


def body(s3, name) -> bytes:
    return s3.get_object(Bucket="photos", Key=name)["Body"].read()


URLS = [f"s3://photos/in/{name}.png" for name in "abc"]
OUT = [f"out/{name}_x2.png" for name in "abc"]


@pytest.mark.parametrize(
    ("inputs", "output"),
    [
        (URLS, "s3://photos/out/"),
        (URLS, "s3://photos/out"),
        (URLS, None),
        (URLS, "out"),
        (["in"], "memory://bucket/out"),
    ],
)
def test_results_are_those_of_local_files(right, s3, memory, upscale, output, inputs):
    code, out, err = upscale(*inputs, *(() if output is None else ("-o", output)))
    assert (code, err) == (0, "3 of 3 images done\n")
    assert len(out.splitlines()) == 3
    for name, data in right.items():
        if output and output.startswith("s3"):
            found = body(s3, f"out/{name}")
        elif output and output.startswith("memory"):
            found = memory.cat(f"memory://bucket/out/{name}")
        elif output is None and inputs is URLS:
            found = body(s3, f"in/{name}")
        else:
            found = Path(output or "in", name).read_bytes()
        assert found == data
        assert f"{output or inputs[0].rstrip('abc.png')}".rstrip("/") in out


def test_files_of_one_name(photos, s3, upscale):
    s3.upload_file("in/b.png", "photos", "other/a.png")
    s3.upload_file("in/b.png", "photos", "other/B.png")
    code, _, err = upscale(*URLS[:2], "s3://photos/other/a.png", "s3://photos/other/B.png", "-o", "s3://photos/out/")
    assert code == 1 and "would become the same file, s3://photos/out/a_x2.png; rename one of the two" in err
    assert [name for name in names(s3) if name.startswith("out/")] == ["out/B_x2.png", "out/b_x2.png"]


def test_nothing_is_replaced_without_being_asked(right, s3, upscale):
    s3.put_object(Bucket="photos", Key="out/b_x2.png", Body=b"old")
    s3.put_object(Bucket="photos", Key="out/c_x2.png", Body=b"")
    code, _, err = upscale(*URLS, "-o", "s3://photos/out/")
    assert code == 1 and "s3://photos/out/b_x2.png: exists; add --overwrite to replace it" in err
    assert [body(s3, name) for name in OUT] == [right["a_x2.png"], b"old", b""]
    code, _, err = upscale(*URLS, "-o", "s3://photos/out/", "--skip-existing")
    assert code == 0 and "3 of 3 images done, 2 skipped" not in err and "1 of 3 images done, 2 skipped" in err
    assert "s3://photos/in/c.png: done again, as s3://photos/out/c_x2.png was no finished image" in err
    assert [body(s3, name) for name in OUT] == [right["a_x2.png"], b"old", right["c_x2.png"]]
    assert upscale(*URLS, "-o", "s3://photos/out/", "--overwrite")[0] == 0
    assert [body(s3, name) for name in OUT] == list(right.values())


def test_what_appears_meanwhile_stays(photos, s3, upscale, monkeypatch):
    finish = runner._upscale

    def appear(*arguments):
        finish(*arguments)
        s3.put_object(Bucket="photos", Key="out/a_x2.png", Body=b"another's")

    monkeypatch.setattr(runner, "_upscale", appear)
    code, _, err = upscale(URLS[0], "-o", "s3://photos/out/")
    assert code == 1 and err == "error: s3://photos/out/a_x2.png: exists; add --overwrite to replace it\n"
    assert body(s3, "out/a_x2.png") == b"another's"


def test_a_batch_goes_on_without_what_fails(right, s3, upscale):
    s3.put_object(Bucket="photos", Key="in/half.png", Body=body(s3, "in/a.png")[:400])
    urls = ["s3://photos/in/half.png", "s3://none/z.png", "s3://photos/in/none.png", "s4://a/y.png", *URLS]
    code, out, err = upscale(*urls, "gs://a/x.png", "-o", "out/", "--json")
    records = {record["input"]: record for record in map(json.loads, out.splitlines())}
    assert code == 1 and "3 of 8 images done, 5 failed" in err
    assert [records[url]["error"] for url in URLS] == [None] * 3
    for url, problem in [
        ("s3://photos/in/half.png", "s3://photos/in/half.png: "),
        ("s3://none/z.png", "s3://none/z.png: there is no bucket none"),
        ("s3://photos/in/none.png", "s3://photos/in/none.png: no such object; look at its name"),
        ("s4://a/y.png", "s4://: an unknown scheme; use one of"),
    ]:
        assert records[url]["error"].startswith(problem)
    assert "/tmp" not in err and sorted(p.name for p in Path("out").iterdir()) == sorted(right)


def test_one_image_to_a_named_object_or_file(right, s3, upscale):
    assert upscale(URLS[0], "-o", "s3://photos/x/large.webp")[0] == 0
    assert body(s3, "x/large.webp")[8:12] == b"WEBP"
    assert upscale(URLS[0], URLS[0], "-o", "file://" + str(Path("named out.png").resolve()).replace(" ", "%20"))[0] == 0
    assert Path("named out.png").read_bytes() == right["a_x2.png"]


def test_standard_streams(right, s3):
    environment = os.environ | {"TMPDIR": str(Path("tmp").resolve())}
    command = [sys.executable, str(ROOT / "cli.py"), "upscale", "--model", "m.safetensors", "--device", "cpu"]
    result = run([*command, URLS[0], "-o", "-"], env=environment, capture_output=True)
    assert result.returncode == 0 and result.stdout == right["a_x2.png"]
    data = Path("in/a.png").read_bytes()
    result = run([*command, "-", "-o", "s3://photos/x.png"], input=data, env=environment, capture_output=True)
    assert result.returncode == 0 and body(s3, "x.png") == right["a_x2.png"]
    result = run([*command, "-", "-o", "s3://photos/x/"], input=data, env=environment, capture_output=True)
    assert result.returncode == 0 and body(s3, "x/stdin_x2.png") == right["a_x2.png"]


@pytest.mark.parametrize("local", [False, True])
def test_a_full_disk_under_a_result(photos, s3, upscale, monkeypatch, local):
    def fill(*_):
        raise ImageError(f"result: cannot be written ({os.strerror(errno.ENOSPC)})")

    monkeypatch.setattr(runner, "_upscale", fill)
    code, _, err = upscale(URLS[0], "-o", "out.png" if local else "s3://photos/x.png")
    told = "s3://photos/x.png: no room for its temporary file; set TMPDIR to a folder on a larger disk"
    assert code == 1 and (told in err) is not local


@pytest.mark.parametrize(
    ("arguments", "problem"),
    [
        (["-o", "https://host/x/"], "https://host/x/: https:// cannot be written to; choose a bucket or a folder"),
        (["-o", "s4://host/x/"], "s4://: an unknown scheme; use one of"),
        (["-o", "s3://photos/x.gif"], "s3://photos/x.gif: images are not written as .gif; use one of"),
        (["-o", "s3://photos/in/a.png"], "s3://photos/in/a.png: is the input itself, choose another output"),
    ],
)
def test_misuse(photos, s3, upscale, arguments, problem):
    code, _, err = upscale(URLS[0], *arguments)
    assert code == 2 and err.startswith(f"error: {problem}") and len(err.splitlines()) == 1
    assert len(names(s3)) == 3


def test_an_output_that_is_nowhere(photos, upscale):
    code, _, err = upscale(URLS[0], "-o", "s3://none/x/")
    assert code == 1 and err == "error: s3://none/x/: there is no bucket none; look at its name, or create it first\n"


def test_over_http_an_output_is_to_be_named(photos, s3_server, upscale, s3):
    signed = s3.generate_presigned_url("get_object", {"Bucket": "photos", "Key": "in/a.png"})
    code, _, err = upscale(signed)
    assert code == 2 and "http:// cannot be written to; name an output" in err
    code, out, err = upscale(signed, "-o", "out/")
    assert code == 0 and not err and out.startswith("out/a_x2.png  60 x 40")
    code, out, err = upscale(signed.replace("a.png", "none.png"), "-o", "out/")
    assert code == 1 and "Signature" not in err


def test_a_dry_run_stores_nothing(photos, s3, upscale):
    code, out, _ = upscale(*URLS, "-o", "s3://photos/out/", "--dry-run")
    assert code == 0 and "s3://photos/in/a.png -> s3://photos/out/a_x2.png  30 x 20 -> 60 x 40 PNG" in out
    assert len(names(s3)) == 3


def test_each_result_keeps_its_format(photos, s3, upscale):
    s3.put_object(Bucket="photos", Key="in/d.JPG", Body=body(s3, "in/a.png"))
    assert upscale("s3://photos/in/d.JPG", URLS[0], "-o", "s3://photos/out/", "--format", "keep")[0] == 0
    assert [name for name in names(s3) if "out" in name] == ["out/a_x2.png", "out/d_x2.JPG"]
    assert body(s3, "out/d_x2.JPG")[:2] == b"\xff\xd8"


def test_a_name_on_disk_is_safe(photos, s3, memory):
    from edsr.batch import Job
    from edsr.storage import Url

    for name in ["a", "a.b/..", "n" * 500, "a.exe", "a.png", "A.JPG"]:
        memory.pipe_file(f"memory://x/{name}", b"data")
        with local_files(Job(Url.parse(f"memory://x/{name}"), Path("out.png")), False) as files:
            assert files.source.read_bytes() == b"data" and files.source.stem == "source"
            assert files.source.suffix in ("", *READABLE) and files.output == Path("out.png")


def test_devices_share_the_transfers(right, s3, upscale):
    code, _, _ = upscale(*URLS, "-o", "s3://photos/out/", "--device", "cpu,cpu")
    assert code == 0 and [body(s3, name) for name in OUT] == list(right.values())


def test_transfers_go_on_while_an_image_is_computed(right, s3, upscale, monkeypatch):
    """The second is fetched while the first is computed, which is stored while the second is; one at a time."""
    fetch, store, compute = transfers.fetch, transfers.store, runner._upscale
    fetched, computing, at_work = threading.Event(), threading.Event(), threading.Lock()
    numbers = itertools.count()

    def second_fetched(url, *arguments):
        fetch(url, *arguments)
        if url.name == "b.png":
            fetched.set()

    def computed(result, *arguments):
        assert at_work.acquire(blocking=False)
        if next(numbers) == 0:
            assert result.job.source.name == "b.png" or fetched.wait(600)
        else:
            computing.set()
        compute(result, *arguments)
        at_work.release()

    def first_stored(path, url, *arguments):
        assert computing.wait(600)
        store(path, url, *arguments)

    monkeypatch.setattr(transfers, "fetch", second_fetched)
    monkeypatch.setattr(runner, "_upscale", computed)
    monkeypatch.setattr(transfers, "store", first_stored)
    code, _, err = upscale(*URLS, "-o", "s3://photos/out/")
    assert (code, err) == (0, "3 of 3 images done\n") and [body(s3, name) for name in OUT] == list(right.values())


@pytest.mark.slow
@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no SIGTERM")
def test_sigterm_leaves_nothing_behind(photos, s3):
    for i in range(9):
        s3.upload_file("in/a.png", "photos", f"many/{i}.png")
    write(photos / "large.png", make_image(1200, 1200))
    s3.upload_file("large.png", "photos", "many/large.png")
    command = [sys.executable, str(ROOT / "cli.py"), "upscale", "s3://photos/many/", "-o", "s3://photos/out/"]
    process = subprocess.Popen(
        [*command, "--model", "m.safetensors", "--device", "cpu", "--threads", "1"],
        env=os.environ | {"TMPDIR": str(photos / "tmp")},
        stderr=subprocess.PIPE,
    )
    wait_until(lambda: "out/0_png_x2.png" in names(s3) and any((photos / "tmp").rglob("*.part")), process)
    process.send_signal(signal.SIGTERM)
    _, err = communicate(process)
    assert process.returncode == 130 and b"the same command with --skip-existing goes on" in err
    assert not list((photos / "tmp").iterdir()) and not s3.list_multipart_uploads(Bucket="photos").get("Uploads")
    for name in names(s3):
        Image.open(io.BytesIO(body(s3, name))).load()


@pytest.mark.slow
@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no SIGTERM")
def test_a_server_that_hangs_in_the_middle_is_left_in_one_line(photos):
    with socket.create_server(("127.0.0.1", 0)) as server:
        url = f"http://127.0.0.1:{server.getsockname()[1]}/a.png"
        process = subprocess.Popen(
            [sys.executable, str(ROOT / "cli.py"), "upscale", url, "-o", "out.png", "--model", "m.safetensors"],
            env=os.environ | {"TMPDIR": str(photos / "tmp")},
            stderr=subprocess.PIPE,
        )
        wait_until(lambda: bool(select.select([server], [], [], 0)[0]), process)
        with server.accept()[0] as connection:
            connection.recv(10_000)
            connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 1000\r\n\r\nbeginning")
            wait_until(lambda: any((photos / "tmp").rglob("source.png")), process)
            process.send_signal(signal.SIGTERM)
            _, err = communicate(process)
    assert (process.returncode, err.splitlines()[-1:]) == (130, [b"interrupted"])
