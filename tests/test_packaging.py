"""What an installed distribution is: one name, everything in it, beside the other project called kernels."""

import os
import shutil
import subprocess
import sys
import tomllib
import zipfile
from email import message_from_string
from pathlib import Path

import pytest

from tests.conftest import ROOT
from tests.support import processes

HOME = "https://example.org/somebody/edsr"
pytestmark = pytest.mark.slow


def run(*command, **environment) -> subprocess.CompletedProcess:
    env = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"} | environment
    elsewhere = Path(sys.executable).parent  # in the repository, its folder kernels/ would be found first
    return processes.run([*map(str, command)], capture_output=True, text=True, env=env, cwd=elsewhere)


@pytest.fixture(scope="module")
def wheel(tmp_path_factory) -> Path:
    """Built from a copy of the repository."""
    source, out = tmp_path_factory.mktemp("source"), tmp_path_factory.mktemp("wheel")
    kept = shutil.ignore_patterns(
        ".git", ".venv", "runs", "build", "__pycache__", ".*_cache", ".hypothesis", "*.egg-info"
    )
    shutil.copytree(ROOT, source / "edsr", symlinks=True, ignore=kept)
    command = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--wheel-dir", out, source / "edsr"]
    built = run(*command, EDSR_REPOSITORY=HOME)
    if built.returncode != 0 and "No matching distribution found for setuptools" in built.stderr:
        pytest.skip("setuptools cannot be had: no package index is reachable")
    assert built.returncode == 0, built.stderr
    return next(out.glob("*.whl"))


def environment(folder: Path) -> Path:
    """A new virtual environment that sees the packages of this one, but no editable installation; its interpreter."""
    assert run(sys.executable, "-m", "venv", folder).returncode == 0
    python = folder / ("Scripts/python.exe" if os.name == "nt" else "bin/python")
    own = run(python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))").stdout.strip()
    ours = {os.path.dirname(os.path.dirname(module.__file__)) for module in (pytest, __import__("torch"))}
    Path(own, "borrowed.pth").write_text("\n".join(sorted(ours)))
    return python


def install(python: Path, *what) -> None:
    done = run(python, "-m", "pip", "install", "--quiet", *what)
    if "No matching distribution found for kernels" in done.stderr:
        pytest.skip("no package index is reachable")
    assert done.returncode == 0, done.stderr


def test_one_name_and_all_that_belongs_to_it(wheel):
    with zipfile.ZipFile(wheel) as archive:
        names = archive.namelist()
        entry_points = archive.read(next(name for name in names if name.endswith("entry_points.txt"))).decode()
    assert {name.split("/")[0] for name in names} == {"edsr", "edsr_triton-0.1.0.dist-info"}
    for folder, inside in ("edsr", "edsr"), ("kernels", "edsr/kernels"):
        for path in (ROOT / folder).rglob("*"):
            if path.is_file() and not path.is_symlink() and "__pycache__" not in path.parts:
                inner = path.relative_to(ROOT / folder).as_posix()
                assert f"{inside}/{inner}" in names, f"{path} is missing"
    assert "edsr = edsr.cli:main" in entry_points


def test_metadata_are_complete(wheel):
    with zipfile.ZipFile(wheel) as archive:
        text = archive.read(next(name for name in archive.namelist() if name.endswith("METADATA"))).decode()
    found = message_from_string(text)
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    assert (found["Name"], found["Version"]) == (project["name"], project["version"])
    assert found["License-Expression"] == "MIT" and found["Author"] and found["Keywords"]
    assert f"Source, {HOME}" in found.get_all("Project-URL")
    body = found.get_payload()
    assert f"]({HOME}/raw/main/examples/before_after.png)" in body, "the picture would not show on a package's page"
    assert f"]({HOME}/blob/main/docs/" in body and "](docs/" not in body


def test_the_version_is_told_in_one_voice():
    import edsr

    citation = (ROOT / "CITATION.cff").read_text(encoding="utf-8")
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    assert edsr.__version__ == project["version"]
    assert f"version: {edsr.__version__}" in citation.replace('"', "")


@pytest.mark.parametrize("theirs_first", [True, False])
def test_beside_the_other_kernels(wheel, tmp_path, theirs_first):
    """`kernels` on the package index is another project: both work, in whatever order, and go without harm."""
    python = environment(tmp_path / "venv")
    wanted = [["kernels"], ["--no-deps", wheel]]
    for what in wanted if theirs_first else reversed(wanted):
        install(python, *what)
    code = "from kernels import get_kernel; import edsr, kernels, edsr.kernels; edsr.kernels.load_ops('torch')\n"
    code += "assert 'venv' in kernels.__file__ and 'venv' in edsr.__file__, (kernels.__file__, edsr.__file__)"
    both = run(python, "-c", code)
    assert both.returncode == 0, both.stderr
    assert run(python, "-m", "edsr", "--help").stdout.startswith("usage: python -m edsr")
    assert run(python.with_name("edsr"), "--help").stdout.startswith("usage: edsr")
    assert run(python, "-m", "pip", "uninstall", "--quiet", "--yes", "edsr-triton").returncode == 0
    assert run(python, "-c", "from kernels import get_kernel").returncode == 0
    assert run(python, "-c", "import edsr").returncode != 0
