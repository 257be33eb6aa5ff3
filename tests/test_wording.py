"""Messages name choices as their reader makes them: arguments in Python, options on the command line."""

import ast
import re
from collections.abc import Iterator

import numpy as np
import pytest
import torch

from edsr import EDSR, BackendError, EDSRConfig, EDSRError, Upscaler, cli
from edsr.images import ImageReader, ImageWriter, read_image
from edsr.wording import either, for_command_line, named, option
from tests.conftest import ROOT
from tests.support.image_files import make_image, write

OPTION = re.compile(r"(?<![\w-])--[a-z]")
MODEL = EDSR(EDSRConfig(blocks=1, features=8))


OWN_COMMANDS = {"kernels/aot.py", "kernels/triton/hopper/probe.py"}
OTHERS_COMMANDS = {"edsr/weights/exchange.py"}  # what EDSR-PyTorch takes
DOCUMENTS = {"edsr/integrations/card.py"}  # with commands for a shell
HELP = {"edsr/training/config.py"}  # of options, which have the names of fields


def texts(tree: ast.AST) -> Iterator[tuple[int, str]]:
    """(line, text) of the strings in a module that are neither for the command line alone nor docstrings."""
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant):
            continue
        if isinstance(node, ast.Constant) and isinstance(node.value, str):
            yield node.lineno, node.value
        elif isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "either":
            yield from texts(ast.Tuple([node.args[0]], ast.Load()))
        else:
            yield from texts(node)


def test_no_module_names_options_but_for_the_command_line():
    """Whatever the library says, `either`, `option` and `named` choose how; options are the command line's."""
    modules = [path for folder in ("edsr", "kernels") for path in (ROOT / folder).rglob("*.py")]
    found = set()
    for path in modules:
        name = path.relative_to(ROOT).as_posix()
        if not name.startswith("edsr/cli/") and name not in OWN_COMMANDS | OTHERS_COMMANDS | DOCUMENTS | HELP:
            for line, text in texts(ast.parse(path.read_text(encoding="utf-8"))):
                if OPTION.search(text.replace("ray start --head", "")) and not text.startswith(
                    "# "
                ):  # a comment in config.toml
                    found.add(f"{name}:{line}: {text}")
    assert len(modules) > 100 and not found
    assert list(texts(ast.parse("f(f'a --b {either(1, 2)}', either('c', '--d'))"))) == [(1, "a --b "), (1, "c")]


def test_both():
    assert option("tile", 64) == "tile=64" and option("device", "cpu") == "device='cpu'"
    with pytest.raises(ZeroDivisionError), for_command_line():
        assert option("tile", 64) == "--tile 64" and option("device", "cpu") == "--device cpu"
        assert option("overwrite") == "--overwrite" and option("val_every", 5) == "--val-every 5"
        assert either("a", "b") == "b"
        _ = 1 / 0
    assert option("overwrite") == "overwrite=True" and either("a", "b") == "a" and named("val_every") == "val_every"
    with for_command_line():
        assert named("val_every") == "--val-every"


@pytest.fixture
def files(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write("there.png", make_image(9, 9))
    write("range.tif", make_image(9, 9).astype(np.float32))
    (tmp_path / "cut.png").write_bytes((tmp_path / "there.png").read_bytes()[:-30])


FAULTS = {  # what -> how in Python, what it says there, how on the command line, what it says there
    "device": (
        lambda: Upscaler(MODEL, "cuda"),
        "use device='cpu' or auto",
        ["there.png", "--device", "cuda"],
        "use --device cpu or auto",
    ),
    "overwrite": (
        lambda: ImageWriter("there.png", 9, 9, 3),
        "add overwrite=True",
        ["range.tif", "--range=0,255", "-o", "there.png"],
        "add --overwrite",
    ),
    "salvage": (lambda: read_image("cut.png"), "by ImageReader(salvage=True)", ["cut.png"], "by upscale --salvage"),
    "range": (
        lambda: read_image("range.tif", full=True),
        "such as value_range=ValueRange(0, 255)",
        ["range.tif"],
        "such as --range=0,255",
    ),
}


@pytest.mark.skipif(torch.cuda.is_available(), reason="is refused where there is no GPU")
@pytest.mark.parametrize("name", FAULTS)
def test_messages(files, capsys, name):
    in_python, said, arguments, option_said = FAULTS[name]
    with pytest.raises(EDSRError) as error:
        in_python()
    assert said in str(error.value) and not OPTION.search(str(error.value))
    assert cli.main(["upscale", *arguments, "--model", "edsr-baseline"]) in (1, 2)
    err = capsys.readouterr().err
    assert option_said in err and said not in err


def test_what_is_said_there_works(files):
    assert len(list(ImageReader("cut.png", salvage=True).rows(9))) == 1
    assert Upscaler(MODEL, torch.device("cpu"), backend="torch").device == torch.device("cpu")
    for wrong in None, 3, "gpu":
        with pytest.raises(BackendError, match="unknown device"):
            Upscaler(MODEL, wrong)
