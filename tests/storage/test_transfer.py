"""Objects to files and back, against a server that answers as S3 does: whole or not at all, and what goes wrong."""

import http.server
import os
import shutil
import threading
import traceback
from contextlib import nullcontext

import pytest

from edsr.errors import ImageError
from edsr.storage import Url, check_store, fetch, is_taken, size_of, store, transfer
from edsr.storage.faults import explain
from edsr.system import remove_unfinished
from tests.conftest import forget_storage

LARGE = 2 * transfer.PART + 1234
NAMES = ["a.png", "in/ä b#c?d%20::e[*].png", "../x.png", "a//b.png", " ", "n" * 1000]
url = Url.parse


@pytest.fixture(autouse=True)
def at_once(monkeypatch):
    monkeypatch.setattr(transfer, "PAUSE", 0)
    monkeypatch.setenv("AWS_MAX_ATTEMPTS", "1")


@pytest.fixture
def pieces(tmp_path):
    """Files smaller and larger than a piece."""
    (tmp_path / "small.png").write_bytes(os.urandom(1000))
    (tmp_path / "large.png").write_bytes(os.urandom(LARGE))
    return tmp_path


def objects(s3) -> dict[str, bytes]:
    listed = s3.list_objects_v2(Bucket="photos").get("Contents", [])
    return {one["Key"]: s3.get_object(Bucket="photos", Key=one["Key"])["Body"].read() for one in listed}


def uploads(s3) -> list:
    return s3.list_multipart_uploads(Bucket="photos").get("Uploads", [])


@pytest.mark.parametrize("size", ["small", "large"])
def test_what_is_stored_is_fetched(s3, pieces, size):
    file = pieces / f"{size}.png"
    for name in NAMES[: None if size == "small" else 1]:
        place = url(f"s3://photos/{name}")
        assert size_of(place) is None and not is_taken(place)
        store(file, place)
        assert size_of(place) == file.stat().st_size and is_taken(place)
        fetch(place, pieces / "got")
        assert (pieces / "got").read_bytes() == file.read_bytes() == objects(s3)[name]
        assert s3.head_object(Bucket="photos", Key=name)["ContentType"] == "image/png"
    assert not uploads(s3)


@pytest.mark.parametrize("size", ["small", "large"])
def test_nothing_is_replaced_without_being_asked(s3, pieces, size):
    s3.put_object(Bucket="photos", Key="a.png", Body=b"old")
    with pytest.raises(ImageError, match=r"^s3://photos/a.png: exists; add overwrite=True to replace it$"):
        store(pieces / f"{size}.png", url("s3://photos/a.png"))
    assert objects(s3) == {"a.png": b"old"} and not uploads(s3)
    store(pieces / f"{size}.png", url("s3://photos/a.png"), overwrite=True)
    assert objects(s3) == {"a.png": (pieces / f"{size}.png").read_bytes()} and not uploads(s3)


@pytest.mark.parametrize("size", ["small", "large"])
@pytest.mark.parametrize("other", [None, b"another's", b"as long"])
def test_an_answer_that_is_lost_is_no_failure(s3, pieces, monkeypatch, size, other):
    """What is found in the second attempt is what the first one has stored, unless somebody else was faster."""
    honest, calls, file = transfer._copy_in, [], pieces / f"{size}.png"
    if other == b"as long":
        other = file.read_bytes()[:-1] + bytes([file.read_bytes()[-1] ^ 1])

    def lose_the_answer(*arguments):
        calls.append(1)
        if len(calls) == 1 and other is not None:
            s3.put_object(Bucket="photos", Key="a.png", Body=other)
            raise ConnectionError
        honest(*arguments)
        if len(calls) == 1:
            raise ConnectionError

    monkeypatch.setattr(transfer, "_copy_in", lose_the_answer)
    with nullcontext() if other is None else pytest.raises(ImageError, match="exists; add overwrite=True"):
        store(file, url("s3://photos/a.png"))
    assert len(calls) == 2 and objects(s3) == {"a.png": other or file.read_bytes()} and not uploads(s3)


@pytest.mark.parametrize("after", [1, 2])
def test_an_upload_that_is_interrupted_leaves_nothing(s3, pieces, after):
    calls = iter(range(10))
    with pytest.raises(ImageError, match="interrupted"):
        store(pieces / "large.png", url("s3://photos/a.png"), stopped=lambda: next(calls) >= after)
    assert not objects(s3) and not uploads(s3)


@pytest.mark.parametrize("abandoned", [False, True])
def test_an_upload_that_fails_leaves_nothing(s3, pieces, monkeypatch, abandoned):
    from s3fs import S3FileSystem

    call = S3FileSystem.call_s3

    def fail(self, method, *arguments, **named):
        if method == "upload_part" and named["PartNumber"] == 2:
            raise PermissionError("no more")
        return call(self, method, *arguments, **named)

    def abort(*_):
        raise OSError("no longer there")

    monkeypatch.setattr(S3FileSystem, "call_s3", fail)
    if abandoned:
        monkeypatch.setattr(S3FileSystem, "abort_mpu", abort)
    with pytest.raises(ImageError, match="may not be written with these credentials"):
        store(pieces / "large.png", url("s3://photos/a.png"))
    assert not objects(s3) and bool(uploads(s3)) is abandoned


def test_an_end_by_force_in_the_middle_of_a_part_leaves_nothing(s3, pieces, monkeypatch):
    from s3fs import S3FileSystem

    call, reached, go_on, stopped = S3FileSystem.call_s3, *(threading.Event() for _ in range(3))

    def wait(self, method, *arguments, **named):
        if method == "upload_part" and named["PartNumber"] == 2:
            reached.set()
            assert go_on.wait(600)
        return call(self, method, *arguments, **named)

    def try_to_store():
        with pytest.raises(ImageError):
            store(pieces / "large.png", url("s3://photos/a.png"), stopped=stopped.is_set)

    monkeypatch.setattr(S3FileSystem, "call_s3", wait)
    thread = threading.Thread(target=try_to_store)
    thread.start()
    try:
        assert reached.wait(600) and uploads(s3)
        stopped.set()
        remove_unfinished()
        assert not uploads(s3)
    finally:
        go_on.set()
        thread.join()
    assert not objects(s3) and not uploads(s3)


def test_in_memory(memory, pieces):
    store(pieces / "large.png", url("memory://in/a.png"))
    with pytest.raises(ImageError, match="exists"):
        store(pieces / "small.png", url("memory://in/a.png"))
    fetch(url("memory://in/a.png"), pieces / "got")
    assert (pieces / "got").read_bytes() == (pieces / "large.png").read_bytes()
    assert size_of(url("memory://in/a.png")) == LARGE
    assert size_of(url("memory://in/b.png")) is size_of(url("memory://in")) is None


@pytest.mark.parametrize(
    ("place", "problem"),
    [
        ("s3://photos/none.png", "no such object; look at its name"),
        ("s3://none/a.png", "there is no bucket none; look at its name, or create it first"),
        ("s3://photos/in/", "names no object; give the whole address of an image"),
        ("s3://No_Bucket!/a.png", "no name that a bucket or an object can have"),
        ("s3://photos/" + "n" * 1100, "no such object"),
        ("s3://photos/a.png?versionId=1", "versions of objects are not read; leave out ?versionId="),
        ("memory://none/a.png", "no such object; look at its name"),
        ("http://127.0.0.1:9/a.png?sig=secret", "127.0.0.1:9 cannot be reached; look at the network and the address"),
        ("https://none.invalid/a.png", "none.invalid cannot be reached"),
    ],
)
def test_what_cannot_be_fetched(s3, memory, tmp_path, place, problem):
    with pytest.raises(ImageError) as caught:
        fetch(url(place), tmp_path / "got")
    assert str(caught.value).startswith(f"{url(place)}: ") and problem in str(caught.value)
    assert "secret" not in str(caught.value) and len(str(caught.value).splitlines()) == 1


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        ({"AWS_ACCESS_KEY_ID": None, "AWS_SECRET_ACCESS_KEY": None}, "no credentials; set AWS_PROFILE, or"),
        ({"AWS_PROFILE": "none"}, "no credentials; set AWS_PROFILE, or"),
        ({"AWS_ENDPOINT_URL": "http://127.0.0.1:9"}, "the service cannot be reached; look at the network"),
    ],
)
def test_settings_that_will_not_do(s3, pieces, monkeypatch, change, problem):
    from s3fs import S3FileSystem

    monkeypatch.setattr(S3FileSystem, "retries", 1)
    for name, value in change.items():
        monkeypatch.setenv(name, value) if value else monkeypatch.delenv(name)
    forget_storage()
    place = url("s3://photos/a.png")
    for action in (
        lambda: fetch(place, pieces / "got"),
        lambda: store(pieces / "small.png", place),
        lambda: size_of(place),
        lambda: check_store(place),
    ):
        with pytest.raises(ImageError) as caught:
            action()
        assert str(caught.value).startswith(f"s3://photos/a.png: {problem}")


def test_a_missing_package_is_named(monkeypatch, tmp_path):
    monkeypatch.setitem(__import__("sys").modules, "gcsfs", None)
    with pytest.raises(ImageError, match=r"^gs://p/a.png: gs:// needs the package gcsfs: pip install gcsfs$"):
        fetch(url("gs://p/a.png"), tmp_path / "got")


def test_where_nothing_can_be_stored(s3):
    check_store(url("s3://photos/new/"))
    with pytest.raises(ImageError, match="there is no bucket none"):
        check_store(url("s3://none/new/"))
    with pytest.raises(ImageError, match="cannot be written to") as caught:
        check_store(url("https://host/a.png"))
    assert caught.value.misuse


def test_a_bucket_elsewhere(s3, tmp_path, monkeypatch):
    from botocore.exceptions import ClientError
    from s3fs import S3FileSystem
    from s3fs.errors import translate_boto_error

    def fail(self, method, *arguments, **named):
        raise translate_boto_error(ClientError({"Error": {"Code": "PermanentRedirect", "Message": "go"}}, method))

    monkeypatch.setattr(S3FileSystem, "call_s3", fail)
    with pytest.raises(ImageError, match=r"in another region \(PermanentRedirect\); set AWS_DEFAULT_REGION to its own"):
        size_of(url("s3://photos/a.png"))


def test_a_disk_that_is_too_small_is_noticed_before(s3, pieces, monkeypatch):
    s3.upload_file(str(pieces / "large.png"), "photos", "a.png")
    monkeypatch.setattr(shutil, "disk_usage", lambda _: shutil._ntuple_diskusage(0, 0, LARGE + transfer.RESERVE - 1))
    with pytest.raises(ImageError, match=r"needs 34 MB more, of which .* has 168 MB free; set TMPDIR to a folder on a"):
        fetch(url("s3://photos/a.png"), pieces / "got")
    assert not (pieces / "got").read_bytes()


class Server(http.server.BaseHTTPRequestHandler):
    """Gives 1000 bytes; /broken-N only half of them, N times; /403 and the like this status."""

    seen: list[str] = []  # noqa: RUF012

    def do_GET(self) -> None:
        self.seen.append(self.path)
        name = self.path.partition("?")[0].rpartition("/")[2]
        status = int(name) if name.isdigit() else 200
        self.send_response(status)
        self.send_header("Content-Length", "1000")
        self.end_headers()
        broken = name.startswith("broken-") and self.seen.count(self.path) <= int(name[7:])
        self.wfile.write(bytes(500 if broken else 1000))

    def do_HEAD(self) -> None:
        self.send_response(200)
        self.send_header("Content-Length", "1000")
        self.end_headers()

    def log_message(self, *_) -> None: ...


@pytest.fixture(scope="module")
def server():
    pytest.importorskip("aiohttp")
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Server) as running:
        threading.Thread(target=running.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{running.server_port}"
        running.shutdown()


@pytest.mark.parametrize("times", [1, 3, 99])
def test_s3_through_connections_that_are_lost(s3, server, tmp_path, monkeypatch, times):
    monkeypatch.setenv("AWS_ENDPOINT_URL", server)
    forget_storage()
    Server.seen.clear()
    place = url(f"s3://photos/broken-{times}")
    if times < 99:
        fetch(place, tmp_path / "got")
        assert (tmp_path / "got").read_bytes() == bytes(1000)
    else:
        with pytest.raises(ImageError, match="the connection was lost, again and again; try once more later"):
            fetch(place, tmp_path / "got")


@pytest.mark.parametrize("name", ["a.png", "a%2Fb%20c.png?sig=%2Bx%2F&y=a+b", "broken-1"])
def test_over_http(server, tmp_path, name):
    fetch(url(f"{server}/{name}"), tmp_path / "got")
    assert (tmp_path / "got").read_bytes() == bytes(1000)
    assert Server.seen[-1] == f"/{name}"


@pytest.mark.parametrize(
    ("name", "problem"),
    [
        ("404", "no such object"),
        ("403", "may not be read with these credentials (403)"),
        ("503", "the server answers 503, again and again; try once more later"),
        ("broken-9", "the connection was lost, again and again; try once more later"),
    ],
)
def test_what_a_server_refuses(server, tmp_path, name, problem):
    place = url(f"{server.replace('//', '//me:secret@')}/{name}?sig=secret")
    with pytest.raises(ImageError) as caught:
        fetch(place, tmp_path / "got")
    assert problem in str(caught.value)
    assert "secret" not in "".join(traceback.format_exception(caught.value))


def test_addresses_in_the_words_of_libraries_hold_no_secrets():
    place = url("http://me:secret@host/a.png?sig=secret")
    for address in (place.address, "http://host/a.png?sig=secret", "http://me:secret@host/b.png?x=secret&y=secret"):
        message = str(explain(ValueError(f"0, url='{address}'"), place))
        assert "secret" not in message and message.endswith(".png?...')")
