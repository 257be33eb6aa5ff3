"""The scripts in examples/ run, each as `python -m examples.NAME`, without arguments, network or more than its extra.

They write into the current folder, if at all, and leave the repository as it is.
"""

import ast
import importlib.metadata
import importlib.util
import os
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from tests.conftest import ROOT

OF_THE_README = ("draw", "before_after")  # they make the repository's own images
WITH_ARGUMENTS = ("ray_train",)  # which tests/cluster/test_ray_train.py runs
EXAMPLES = sorted(path for path in (ROOT / "examples").glob("*.py") if path.stem not in OF_THE_README + WITH_ARGUMENTS)
ALONE = """
import ipaddress, sys

def forbid(event, arguments):
    if event == "socket.connect" and isinstance(arguments[1], tuple):
        host = arguments[1][0]
    elif event == "socket.getaddrinfo":
        host = arguments[0]
    else:
        return
    host = host.decode() if isinstance(host, bytes) else host
    if host in (None, "", "localhost"):
        return
    try:
        local = ipaddress.ip_address(host).is_loopback
    except ValueError:
        local = False
    if not local:
        raise OSError(f"examples have no network, and this one asks for {host}")

sys.addaudithook(forbid)
"""  # as sitecustomize, before the script


def missing(path: Path) -> list[str]:
    """What a script imports, or its docstring names as `edsr-triton[EXTRA]`, that is not installed here."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    modules = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            modules.update(alias.name.partition(".")[0] for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and not node.level and node.module:
            modules.add(node.module.partition(".")[0])
    extras = re.findall(r"edsr-triton\[(\w+)\]", ast.get_docstring(tree) or "")
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    needed = {re.split(r"[^\w.-]", line)[0] for extra in extras for line in project["optional-dependencies"][extra]}
    installed = {distribution.name.lower().replace("_", "-") for distribution in importlib.metadata.distributions()}
    absent = {name for name in needed if name.lower().replace("_", "-") not in installed}
    return sorted(absent | {name for name in modules if importlib.util.find_spec(name) is None})


def repository() -> dict[Path, tuple[int, int]]:
    """Size and time of all that an example might write to."""
    found = [path for folder in ("examples", "edsr", "kernels", "docs") for path in (ROOT / folder).rglob("*")]
    files = [path for path in (*ROOT.iterdir(), *found) if path.is_file() and "__pycache__" not in path.parts]
    return {path: (path.stat().st_size, path.stat().st_mtime_ns) for path in files}


@pytest.mark.slow
@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.stem)
def test_runs(path, tmp_path):
    if absent := missing(path):
        pytest.skip(f"needs {', '.join(absent)}")
    here, site = tmp_path / "here", tmp_path / "site"
    here.mkdir()
    site.mkdir()
    (site / "sitecustomize.py").write_text(ALONE, encoding="utf-8")
    before = repository()
    environment = {
        "PYTHONPATH": os.pathsep.join([str(site), str(ROOT)]),
        "PYTHONDONTWRITEBYTECODE": "1",
        "PYTHONIOENCODING": "utf-8",
        "HF_HUB_OFFLINE": "1",
        "TMPDIR": str(tmp_path),
    }
    command = [sys.executable, "-m", f"examples.{path.stem}"]
    result = subprocess.run(
        command, cwd=here, env=os.environ | environment, stdin=subprocess.DEVNULL, capture_output=True, text=True
    )
    assert result.returncode == 0, result.stdout + result.stderr
    assert result.stdout.strip() and "Traceback" not in result.stderr, result.stderr
    assert repository() == before


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.stem)
def test_says_how_it_is_run(path):
    docstring = ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))) or ""
    assert f"examples.{path.stem}" in docstring or f"examples/{path.name}" in docstring


def test_what_is_missing_is_found(tmp_path):
    script = tmp_path / "x.py"
    script.write_text(
        '"""Needs edsr-triton[peers] and edsr-triton[onnx]."""\nimport torch, absent_one\n', encoding="utf-8"
    )
    installed = {
        name for name in ("onnx", "onnxscript", "onnxruntime", "openvino", "ncnn") if importlib.util.find_spec(name)
    }
    assert set(missing(script)) == {"absent_one", "onnx", "onnxscript", "onnxruntime", "openvino", "ncnn"} - installed


def test_the_network_is_barred(tmp_path):
    """That the bar above holds."""
    (tmp_path / "sitecustomize.py").write_text(ALONE, encoding="utf-8")
    for host, reached in ("192.0.2.1", "no network"), ("example.com", "no network"), ("127.0.0.1", "refused"):
        code = f"import socket\ntry: socket.create_connection(({host!r}, 9), 1)\nexcept OSError as error: print(error)"
        environment = os.environ | {"PYTHONPATH": str(tmp_path)}
        result = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True)
        assert reached in result.stdout, result.stdout + result.stderr
