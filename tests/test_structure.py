"""The shape of the house: who imports whom, and that the packages imported are ours."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image

from tests.conftest import ROOT

ALLOWED = {  # module -> the project modules it may import; cli and tests may import all
    "edsr": {"edsr.engine", "edsr.model", "edsr.weights"},
    "edsr.model": {"kernels"},
    "edsr.fold": {"edsr.model", "kernels"},
    "edsr.stream": {"edsr.graphs", "edsr.model", "kernels"},
    "edsr.graphs": {"kernels"},
    "edsr.transfer": set(),
    "edsr.engine": {"edsr.model", "edsr.fold", "edsr.graphs", "edsr.passage", "edsr.stream", "kernels"},
    "edsr.passage": {"edsr.stream", "edsr.transfer", "kernels"},
    "edsr.weights": {"edsr.mixture", "edsr.model"},
    "edsr.mixture": {"edsr.model"},
    "edsr.lossy": {"edsr.exif", "edsr.headers"},
    "edsr.choice": {"edsr.lossy", "edsr.mixture", "edsr.weights"},
    "edsr.imageio": {"edsr.formats", "edsr.publish", "edsr.reading", "edsr.reducing", "edsr.writing"},
    "edsr.formats": set(),
    "edsr.exif": set(),
    "edsr.headers": {"edsr.exif", "edsr.formats"},
    "edsr.scratch": {"edsr.formats"},
    "edsr.reducing": set(),
    "edsr.reading": {"edsr.exif", "edsr.formats", "edsr.headers", "edsr.scratch"},
    "edsr.writing": {"edsr.exif", "edsr.formats", "edsr.publish", "edsr.reading", "edsr.reducing"},
    "edsr.metrics": set(),
    "edsr.resize": set(),
    "edsr.pictures": set(),
    "edsr.sources": {"edsr.imageio", "edsr.pictures"},
    "edsr.data": {"edsr.imageio", "edsr.pictures", "edsr.resize", "edsr.sources"},
    "edsr.degrade": set(),
    "edsr.patches": {"edsr.degrade", "edsr.pictures"},
    "edsr.evaluate": {"edsr.engine", "edsr.imageio", "edsr.metrics", "edsr.resize"},
    "edsr.compare": {
        "edsr.engine",
        "edsr.formats",
        "edsr.metrics",
        "edsr.progress",
        "edsr.reading",
        "edsr.resize",
        "edsr.publish",
    },
    "edsr.figure": {"edsr.compare"},
    "edsr.page": {"edsr.compare"},
    "edsr.batch": {"edsr.imageio"},
    "edsr.ahead": set(),
    "edsr.publish": set(),
    "edsr.team": {"edsr.ahead", "edsr.engine"},
    "edsr.sizes": set(),
    "edsr.shares": set(),
    "edsr.pipes": {"edsr.headers", "edsr.imageio"},
    "edsr.enlarge": {
        "edsr.ahead",
        "edsr.batch",
        "edsr.choice",
        "edsr.engine",
        "edsr.imageio",
        "edsr.model",
        "edsr.progress",
        "edsr.sizes",
        "edsr.team",
        "edsr.weights",
    },
    "edsr.arguments": set(),
    "edsr.failures": {
        "edsr.checkpoint",
        "edsr.compare",
        "edsr.data",
        "edsr.evaluate",
        "edsr.imageio",
        "edsr.train",
    },
    "edsr.checkpoint": set(),
    "edsr.journal": set(),
    "edsr.progress": set(),
    "edsr.recipe": set(),
    "edsr.ranks": {"edsr.engine"},
    "edsr.cadence": set(),
    "edsr.options": {"edsr.checkpoint", "edsr.degrade", "edsr.model", "edsr.recipe", "edsr.weights"},
    "edsr.origin": {"edsr.checkpoint", "edsr.options", "edsr.ranks", "edsr.recipe"},
    "edsr.step": {"edsr.graphs", "edsr.model", "edsr.patches", "edsr.ranks", "edsr.recipe", "edsr.tail"},
    "edsr.tail": {"edsr.fold", "edsr.model", "kernels"},
    "edsr.pace": {"edsr.journal", "edsr.ranks", "edsr.step"},
    "edsr.validation": {"edsr.degrade", "edsr.metrics", "edsr.model", "edsr.pictures", "edsr.resize"},
    "edsr.start": {
        "edsr.data",
        "edsr.engine",
        "edsr.model",
        "edsr.options",
        "edsr.pictures",
        "edsr.ranks",
        "edsr.step",
        "edsr.weights",
        "kernels",
    },
    "edsr.preview": {
        "edsr.options",
        "edsr.patches",
        "edsr.pictures",
        "edsr.publish",
        "edsr.ranks",
        "edsr.start",
    },
    "edsr.train": {
        "edsr.cadence",
        "edsr.checkpoint",
        "edsr.journal",
        "edsr.model",
        "edsr.options",
        "edsr.origin",
        "edsr.pace",
        "edsr.patches",
        "edsr.ranks",
        "edsr.recipe",
        "edsr.start",
        "edsr.step",
        "edsr.tail",
        "edsr.validation",
        "edsr.weights",
    },
    "kernels": set(),
    "kernels.reference": set(),
    "kernels.launch": set(),
    "kernels.conv3x3": {"kernels.launch", "kernels.hopper"},
    "kernels.conv3x3_grad": {"kernels.conv3x3", "kernels.hopper", "kernels.launch"},
    "kernels.autograd": set(),
    "kernels.training": {
        "kernels.autograd",
        "kernels.conv3x3",
        "kernels.conv3x3_grad",
        "kernels.launch",
        "kernels.reference",
    },
    "kernels.edges": {"kernels.conv3x3", "kernels.launch", "kernels.reference"},
    "kernels.cache": set(),
    "kernels.verdicts": {"kernels.cache", "kernels.launch"},
    "kernels.hopper": {
        "kernels.launch",
        "kernels.hopper_conv64",
        "kernels.hopper_conv256",
        "kernels.resblock",
        "kernels.verdicts",
    },
    "kernels.hopper_check": {"kernels.conv3x3", "kernels.hopper", "kernels.launch"},
    "kernels.probe": {"kernels.cache", "kernels.hopper_check", "kernels.launch", "kernels.verdicts"},
    "kernels.hopper_conv64": set(),
    "kernels.hopper_conv256": {"kernels.hopper_conv64"},
    "kernels.resblock": {"kernels.hopper", "kernels.hopper_conv64", "kernels.launch"},
    "kernels.fused": {"kernels.conv3x3", "kernels.edges", "kernels.hopper", "kernels.launch", "kernels.resblock"},
    "kernels.memory": set(),
    "kernels.winograd_cpu": {"kernels.memory", "kernels.reference", "kernels.winograd_cpu.run"},
    "kernels.winograd_cpu.transforms": set(),
    "kernels.winograd_cpu.builder": set(),
    "kernels.winograd_cpu.tiles": {"kernels.winograd_cpu.builder", "kernels.winograd_cpu.transforms"},
    "kernels.winograd_cpu.filters": {
        "kernels.winograd_cpu.builder",
        "kernels.winograd_cpu.tiles",
        "kernels.winograd_cpu.transforms",
    },
    "kernels.winograd_cpu.wgrad": {
        "kernels.winograd_cpu.builder",
        "kernels.winograd_cpu.tiles",
        "kernels.winograd_cpu.transforms",
    },
    "kernels.winograd_cpu.codegen": {
        "kernels.winograd_cpu.builder",
        "kernels.winograd_cpu.filters",
        "kernels.winograd_cpu.tiles",
        "kernels.winograd_cpu.transforms",
        "kernels.winograd_cpu.wgrad",
    },
    "kernels.winograd_cpu.native": {
        "kernels.cache",
        "kernels.winograd_cpu.codegen",
        "kernels.winograd_cpu.tiles",
    },
    "kernels.winograd_cpu.threads": set(),
    "kernels.winograd_cpu.run": {
        "kernels.memory",
        "kernels.winograd_cpu.threads",
        "kernels.winograd_cpu.transforms",
    },
    "kernels.winograd_cpu.training": {
        "kernels.autograd",
        "kernels.memory",
        "kernels.reference",
        "kernels.winograd_cpu",
        "kernels.winograd_cpu.run",
    },
    "kernels.aot": {"kernels"},
    "kernels.aot_cases": {"kernels"},
}


def imported(path: Path) -> set[str]:
    """Full names of the modules that a file imports, at any depth."""
    names = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            names.add(node.module)
            names |= {f"{node.module}.{alias.name}" for alias in node.names}
    return names


def module_name(path: Path) -> str:
    return ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")


MODULES = [
    (module_name(path), path) for package in ("edsr", "kernels") for path in sorted((ROOT / package).rglob("*.py"))
]


@pytest.mark.parametrize(("name", "path"), MODULES)
def test_imports_run_one_way(name, path):
    known = {module for module, _ in MODULES}
    for used in imported(path) & known:
        package = used.split(".")[0]
        if used == package:
            continue  # `from edsr import imageio` names the package as well
        assert used in ALLOWED[name] or package in ALLOWED[name], f"{name} imports {used}"


@pytest.mark.parametrize(("name", "path"), MODULES)
def test_triton_is_imported_by_kernels_alone(name, path):
    if not name.startswith("kernels"):
        assert not any(used.split(".")[0] == "triton" for used in imported(path))


@pytest.mark.parametrize(("name", "path"), MODULES)
def test_only_the_command_line_prints(name, path):
    calls = [n.func for n in ast.walk(ast.parse(path.read_text(encoding="utf-8"))) if isinstance(n, ast.Call)]
    assert not any(isinstance(f, ast.Name) and f.id == "print" for f in calls)


def test_kernels_is_ours():
    import kernels

    assert Path(kernels.__file__).parent == ROOT / "kernels"


def test_help_needs_no_torch():
    code = "import sys, cli\ntry: cli.main(['--help'])\nexcept SystemExit: pass\nassert 'torch' not in sys.modules"
    result = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr


def test_upscaling_imports_no_more_of_torch_than_it_needs(tmp_path):
    """Differentiating, exporting or compiling would import sympy: half a second and 60 MB."""
    Image.new("RGB", (9, 8)).save(tmp_path / "a.png")
    code = "import sys, torch\nbefore = 'sympy' in sys.modules\nimport cli\nassert cli.main(sys.argv[1:]) == 0\n"
    code += "assert before or 'sympy' not in sys.modules"
    command = [sys.executable, "-c", code, "upscale", str(tmp_path / "a.png"), "--device", "cpu"]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
