"""The shape of the house, as rules: no circles, packages met at their faces, one door for each dependency.

docs/architecture.md says why. Imports inside functions count; those for type checkers alone do, too.
"""

import ast
import graphlib
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest
from PIL import Image

from tests.conftest import ROOT

FILES = sorted(path for path in (ROOT / "edsr").rglob("*.py") if "kernels" not in path.relative_to(ROOT).parts[1:2])
FILES += sorted((ROOT / "kernels").rglob("*.py"))
DOORS = {  # who may import what others have made
    "triton": ("edsr.kernels",),
    "llvmlite": ("edsr.kernels.winograd",),
    "pyvips": ("edsr.images",),
    "pillow_heif": ("edsr.images.heic",),
    "PIL": (
        "edsr.evaluation",
        "edsr.data",
        "edsr.images",
        "edsr.training.preview",
        "edsr.study",
        "edsr.inference.pillow",
    ),
    "h5py": ("edsr.data",),
    "tensorboard": ("edsr.training",),
    "matplotlib": ("edsr.training", "edsr.study"),
    "rich": ("edsr.cli",),
    "onnx": ("edsr.export",),
    "onnxruntime": ("edsr.export",),
    "ncnn": ("edsr.export",),
    "fsspec": ("edsr.storage",),
    "aiohttp": ("edsr.storage",),
    "huggingface_hub": ("edsr.weights.hub", "edsr.integrations"),
    "spandrel": ("edsr.integrations.spandrel",),
    "ray": ("edsr.cluster.connection",),
}


def module_name(path: Path) -> str:
    parts = path.relative_to(ROOT).with_suffix("").parts
    name = ".".join(("edsr", *parts) if parts[0] == "kernels" else parts)
    return name.removesuffix(".__init__")


MODULES = {module_name(path): path for path in FILES}
PACKAGES = {module_name(path) for path in FILES if path.name == "__init__.py"}


def room(module: str) -> str:
    """The package that a module lies in: one of the folders of `edsr`, all of kernels being one; a file of its own."""
    return ".".join(module.split(".")[:2])


def imports(module: str) -> Iterator[tuple[str, str, int]]:
    """(imported module, imported name or "", level) of each import in a file; modules by their full names."""
    path = MODULES[module]
    package = module if path.name == "__init__.py" else module.rpartition(".")[0]
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from ((alias.name, "", 0) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                above = package.split(".")[: len(package.split(".")) - node.level + 1]
                base = ".".join([*above, *filter(None, [base])])
            for alias in node.names:
                submodule = f"{base}.{alias.name}"
                yield (submodule, "", node.level) if submodule in MODULES else (base, alias.name, node.level)


def circle(graph: dict[str, set[str]]) -> list[str]:
    """A circle in the graph, or nothing."""
    try:
        graphlib.TopologicalSorter(graph).prepare()
    except graphlib.CycleError as error:
        return error.args[1]
    return []


def test_circles_are_found():
    assert circle({"a": {"b"}, "b": {"c"}, "c": {"a"}})
    assert not circle({"a": {"b", "c"}, "b": {"c"}})


def test_no_modules_form_a_circle():
    faces = PACKAGES - {"edsr.kernels"}
    graph = {
        m: {used for used, _, _ in imports(m) if used in MODULES and used not in faces}
        for m in MODULES
        if m not in faces
    }
    assert not circle(graph)


def test_no_packages_form_a_circle():
    graph: dict[str, set[str]] = {}
    for module in MODULES:
        if module != "edsr":
            used = {room(name) for name, _, _ in imports(module) if name.startswith("edsr.")}
            graph.setdefault(room(module), set()).update(used - {room(module)})
    assert not circle(graph)


@pytest.mark.parametrize("module", MODULES)
def test_packages_are_met_at_their_faces(module):
    for used, name, level in imports(module):
        if used.split(".")[0] not in ("edsr", "kernels", "bench", "cli"):
            continue
        assert used.split(".")[0] == "edsr", f"{module} imports {used}"
        if room(used) == room(module):
            assert level > 0 or room(module) == module, f"{module} imports {used} by its full name"
        elif module not in ("edsr", "edsr.__main__"):
            assert used in PACKAGES or used.count(".") == 1, (
                f"{module} imports {used}: its package's face has {name or used}"
            )
            assert used != "edsr" or name == "__version__", f"{module} imports from edsr itself"
            assert used != "edsr.cli", f"{module} imports the command line"
    if room(module) == "edsr.kernels":
        others = [used for used, _, _ in imports(module) if used.startswith("edsr.") and room(used) != "edsr.kernels"]
        assert not others, f"{module} imports {others}"


@pytest.mark.parametrize("package", sorted(PACKAGES))
def test_faces_define_nothing(package):
    """But `__all__`, `__getattr__`, `__dir__` and a version. What they hand out exists, and hides no module."""
    tree = ast.parse(MODULES[package].read_text(encoding="utf-8"))
    stored = {n.id for n in ast.walk(tree) if isinstance(n, ast.Name) and isinstance(n.ctx, ast.Store)}
    assert stored <= {"__all__", "__getattr__", "__dir__", "__version__"}
    assert not any(isinstance(node, (ast.FunctionDef, ast.ClassDef)) for node in ast.walk(tree))
    exported = {alias.asname for node in ast.walk(tree) if isinstance(node, ast.ImportFrom) for alias in node.names} - {
        None
    }
    face = __import__(package, fromlist=["x"])
    assert exported == set(getattr(face, "__all__", ())) - {"__version__"}, (
        "what type checkers see is not what there is"
    )
    modules = {name.rpartition(".")[2] for name in MODULES if name.rpartition(".")[0] == package}
    assert not exported & modules, "a name that is a module's would hide it"
    for name in exported:
        getattr(face, name)


@pytest.mark.parametrize("module", MODULES)
def test_one_door_for_each_dependency(module):
    for used, _, _ in imports(module):
        doors = DOORS.get(used.split(".")[0])
        assert doors is None or module.startswith(doors), f"{module} imports {used}, which is for {doors}"


@pytest.mark.parametrize("module", MODULES)
def test_only_the_command_line_prints(module):
    if module.startswith("edsr.cli") or module in ("edsr.kernels.aot", "edsr.kernels.triton.hopper.probe"):
        return
    tree = ast.parse(MODULES[module].read_text(encoding="utf-8"))
    calls = [node.func for node in ast.walk(tree) if isinstance(node, ast.Call)]
    assert not any(isinstance(f, ast.Name) and f.id == "print" for f in calls)


def test_every_package_is_in_the_wheel():
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["tool"]["setuptools"]
    assert set(settings["packages"]) == PACKAGES
    assert settings["package-dir"] == {"edsr.kernels": "kernels"}


def test_the_link_to_kernels():
    import edsr.kernels

    assert Path(edsr.kernels.__file__).resolve().parent == ROOT / "kernels"


def python(*arguments: str) -> subprocess.CompletedProcess:
    return subprocess.run([sys.executable, *arguments], cwd=ROOT, capture_output=True, text=True)


@pytest.mark.parametrize(
    ("code", "absent"),
    [
        ("import edsr", "torch"),
        ("import edsr.kernels; edsr.kernels.load_ops('torch')", "triton"),
        ("from edsr.cli import main\ntry: main(['--help'])\nexcept SystemExit: pass", "torch"),
        ("from edsr.cli import main\ntry: main(['train', '--help'])\nexcept SystemExit: pass", "torch"),
    ],
)
def test_what_is_not_needed_is_not_imported(code, absent):
    # torch itself imports triton where it is installed, so what matters is that our kernels of it are not.
    absent = {"triton": "edsr.kernels.triton.launch"}.get(absent, absent)
    result = python("-c", f"import sys\n{code}\nassert {absent!r} not in sys.modules")
    assert result.returncode == 0, result.stderr


def test_upscaling_imports_no_more_of_torch_than_it_needs(tmp_path):
    """Differentiating, exporting or compiling would import sympy: half a second and 60 MB."""
    Image.new("RGB", (9, 8)).save(tmp_path / "a.png")
    code = "import sys, torch\nbefore = 'sympy' in sys.modules\nfrom edsr.cli import main\n"
    code += "assert main(sys.argv[1:]) == 0\nassert before or 'sympy' not in sys.modules"
    result = python("-c", code, "upscale", str(tmp_path / "a.png"), "--device", "cpu")
    assert result.returncode == 0, result.stderr
