"""What is said where there is no cluster, or another one."""

import socket
import sys
from pathlib import Path

import pytest

from edsr.cluster import connection
from edsr.cluster.connection import connected
from edsr.errors import ClusterError

pytest.importorskip("ray", reason="needs Ray: pip install 'edsr-triton[cluster]'")
MISMATCH = """Version mismatch: The cluster was started with:
    Ray: {}
    Python: {}
This process on node 10.0.0.2 was started with:
    Ray: 2.60.0
    Python: 3.11.7
"""


@pytest.fixture(autouse=True)
def nothing_known(monkeypatch, tmp_path):
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    monkeypatch.setattr(connection, "CURRENT", tmp_path / "none")


def refused(address):
    with pytest.raises(ClusterError) as caught, connected(address):
        pass
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_no_cluster(monkeypatch, tmp_path):
    with socket.socket() as bound:  # not listening
        bound.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{bound.getsockname()[1]}"
        want = f"no cluster answers at {address} (Connection refused); start one with ray start --head"
        assert refused(address) == want
        (tmp_path / "stale").write_text(address)  # as a killed cluster leaves it
        monkeypatch.setattr(connection, "CURRENT", tmp_path / "stale")
        assert refused("auto") == want


def test_no_cluster_here(monkeypatch):
    import ray

    def init(address, **_):
        raise ConnectionError(f"Could not find any running Ray instance ({address})")

    monkeypatch.setattr(ray, "init", init)
    assert refused("auto").startswith("no cluster on this machine; start one with ")


@pytest.mark.parametrize(
    ("address", "why"),
    [("here", "give HOST:PORT"), ("here:", "give HOST:PORT"), ("ray://10.0.0.1:10001", "client is not supported")],
)
def test_addresses_that_are_none(address, why):
    assert why in refused(address)


def test_a_port_beyond_all_is_an_error_of_one_line():
    assert "no cluster answers at 127.0.0.1:99999" in refused("127.0.0.1:99999")


def test_without_ray(monkeypatch):
    monkeypatch.setitem(sys.modules, "ray", None)
    assert refused("auto") == "Ray is not installed; pip install 'edsr-triton[cluster]'"


@pytest.mark.parametrize(
    ("text", "line"),
    [
        (MISMATCH.format("2.49.0", "3.11.7"), "c:1: Ray 2.49.0 in the cluster, 2.60.0 here"),
        (MISMATCH.format("2.60.0", "3.12.1"), "c:1: Python 3.12.1 in the cluster, 3.11.7 here"),
        ("\n something else\nand more", "c:1: something else"),
        ("", "c:1: RuntimeError"),
        ("Token authentication is enabled", "c:1: asks for its token"),
    ],
)
def test_what_ray_says_becomes_a_line(monkeypatch, text, line):
    import ray

    def init(**_):
        raise RuntimeError(text)

    with socket.create_server(("127.0.0.1", 0)) as server:
        monkeypatch.setattr(ray, "init", init)
        message = refused(f"127.0.0.1:{server.getsockname()[1]}")
    assert message.partition(": ")[2].partition(";")[0] == line.partition(": ")[2]


def test_rays_message_of_other_versions_is_as_it_was_read():
    """Its own words, so that another wording in a later Ray shows here."""
    from ray._private import utils

    text = Path(utils.__file__).read_text(encoding="utf-8")
    for part in "Version mismatch: ", "    Ray: {", "    Python: {", "This process on ":
        assert part in text
