"""The connection to a Ray cluster, or a cluster of worker processes on this machine for as long as it is needed.

The only door to Ray but for `engine`, which is handed what this gives.
"""

import contextlib
import importlib
import logging
import os
import re
import shutil
import signal
import socket
import tempfile
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

from edsr.errors import ClusterError
from edsr.wording import named, option

INSTALL = "pip install 'edsr-triton[cluster]'"
QUIET = {
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_USAGE_STATS_PROMPT_ENABLED": "0",
    "RAY_DISABLE_IMPORT_WARNING": "1",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
    "RAY_ENABLE_UV_RUN_RUNTIME_ENV": "0",
}
"""Ray's settings by which it says nothing, to anybody."""
ANSWERS_WITHIN = 5.0
"""Seconds in which a cluster's address must answer."""
OBJECTS = 80_000_000
"""Bytes of shared memory of a local cluster: results are numbers and names."""
SHORT = 40
"""The most characters of a folder for Ray's sockets, whose paths may have 107."""
CURRENT = Path(os.environ.get("RAY_TMPDIR", "/tmp"), "ray", "ray_current_cluster")
"""Where Ray keeps the address of the cluster that was started on this machine."""


@contextlib.contextmanager
def connected(address: str | None, cores: int | None = None) -> Iterator[Any]:
    """Ray, connected, for as long as the block lasts. One that the process is connected to already is used and kept.

    Args:
        address: Of a cluster, as `host:port`, or "auto" for the one that this machine is part of; None for one of
            processes on this machine, which end with the block.
        cores: How many cores of this machine a local cluster has; by default all.

    Raises:
        ClusterError: Ray is not installed, or there is no cluster, or one of other versions.
    """
    for name, value in QUIET.items():
        os.environ.setdefault(name, value)
    try:
        import ray
    except ImportError:
        raise ClusterError(f"Ray is not installed; {INSTALL}") from None
    library: Any = ray  # whose types leave out half of it
    if library.is_initialized():
        yield library
        return
    options: dict[str, Any] = {"log_to_driver": False, "logging_level": logging.CRITICAL}
    with contextlib.ExitStack() as stack:
        if address is None:
            folder = tempfile.mkdtemp(prefix="edsr-")
            stack.callback(shutil.rmtree, folder, ignore_errors=True)
            options |= {"num_cpus": cores, "include_dashboard": False, "object_store_memory": OBJECTS}
            options |= {"_temp_dir": folder} if len(folder) <= SHORT else {}
        else:
            options["address"] = _checked(address)
        stack.enter_context(_silenced())
        stack.callback(library.shutdown)
        with _own_signals(), _captured_errors() as told:
            try:
                library.init(**options)
            except SystemExit:  # by Ray's own handler of a signal
                raise KeyboardInterrupt from None
            except (OSError, RuntimeError, ValueError, library.exceptions.RayError) as error:
                told.seek(0)
                raise ClusterError(_explained(address, error, told.read())) from None
        yield library


@contextlib.contextmanager
def _own_signals() -> Iterator[None]:
    """Handlers of signals are afterwards those of before: Ray sets its own."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@contextlib.contextmanager
def _silenced() -> Iterator[None]:
    """Ray's own lines about workers that died are not printed: they go to standard output, whatever its settings."""
    module = importlib.import_module("ray._private.worker")
    name = "print_to_stdstream"
    printing = getattr(module, name, None)
    setattr(module, name, lambda *_, **__: None)
    try:
        yield
    finally:
        setattr(module, name, printing)


@contextlib.contextmanager
def _captured_errors() -> Iterator[IO[str]]:
    """What Ray's library itself writes to standard error meanwhile goes into a file."""
    with tempfile.TemporaryFile("w+", errors="replace") as file:
        before = os.dup(2)
        try:
            os.dup2(file.fileno(), 2)
            yield file
        finally:
            os.dup2(before, 2)
            os.close(before)


def _checked(address: str) -> str:
    """The address of a cluster that answers. Ray itself would try for minutes, and then end the process."""
    if address.startswith("ray://"):
        advice = f"start on a machine of the cluster, with {option('address', 'auto')}"
        raise ClusterError(f"{address}: Ray's client is not supported; {advice}")
    known = address
    if address == "auto":
        known = os.environ.get("RAY_ADDRESS", "")
        with contextlib.suppress(OSError):
            known = known or CURRENT.read_text(encoding="utf-8").strip()
    host, _, port = known.rpartition(":")
    if address == "auto" and not known:
        return address  # Ray looks for processes
    if not port.isdecimal():
        raise ClusterError(f"{option('address', address)}: give HOST:PORT, such as 10.0.0.1:6379, or auto", misuse=True)
    try:
        socket.create_connection((host.strip("[]"), int(port)), ANSWERS_WITHIN).close()
    except (OSError, OverflowError) as error:
        why = getattr(error, "strerror", None) or error
        raise ClusterError(f"no cluster answers at {known} ({why}); start one with ray start --head") from None
    return address if address == "auto" else known  # for it alone Ray takes the token that lies on this machine


def _explained(address: str | None, error: Exception, told: str) -> str:
    """Why Ray could not be connected to, in a line. told: by its library."""
    text, where = str(error), address or "a local cluster"
    if address == "auto" and isinstance(error, ConnectionError):
        return f"no cluster on this machine; start one with ray start --head, or give {named('address')} HOST:PORT"
    if "InvalidAuthToken" in text + told or "token" in text.lower():
        return f"{where}: asks for its token; set RAY_AUTH_MODE=token, and copy ~/.ray/auth_token from its head"
    if "ersion mismatch" in text:
        there, here = (dict(found) for found in _versions(text))
        name = "Python" if there.get("Ray") == here.get("Ray") else "Ray"
        advice = "run the same version on every machine"
        return f"{where}: {name} {there.get(name)} in the cluster, {here.get(name)} here; {advice}"
    line = next((line.strip() for line in text.splitlines() if line.strip()), type(error).__name__)
    return f"{where}: {line}"


def _versions(text: str) -> tuple[list[tuple[str, str]], list[tuple[str, str]]]:
    """(name, version) of Ray and Python in the cluster, and here, of Ray's message."""
    there, _, here = text.partition("This process")
    pattern = re.compile(r"(Ray|Python): (\S+)")
    return pattern.findall(there), pattern.findall(here)
